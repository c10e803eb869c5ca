"""Evaluation without training: plans, what is refused, learning curves by hand, the report."""

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from leap_rl.cli import main
from leap_rl.evaluation.analysis import analyse, mean_curve, steps_to_reach
from leap_rl.evaluation.plan import make_plan
from leap_rl.evaluation.results import Curve, columns_of
from leap_rl.learner import Checkpoint
from leap_rl.measures import MEASURES
from leap_rl.probes import cosines, drift_by_layer
from leap_rl.processes import initial_parameters, start_process
from leap_rl.run import INITIALIZATION, Progress, open_run, read_initialization
from leap_rl.streaming import _where_it_starts
from tests.cli_helpers import make_config

COLUMNS = columns_of(MEASURES["a2c"])
HELD_OUT = {"tasks.games": ["pong", "asterix", "qbert"], "tasks.held_out": ["breakout", "space_invaders"]}


def make_run(folder, name="run", seed=3, **changes):
    """A run whose initialization is what a network of its configuration is drawn as: a folder."""
    config = make_config(folder, HELD_OUT | {"run.dir": str(folder / name)} | changes)
    with open_run(config) as run:
        run.commit(Checkpoint(1, initial_parameters(config, seed), {}), Progress(1))
    return folder / name


def plan(*sources, overrides=(), games=None, num_seeds=2, agent_steps=None, out=None):
    return make_plan([str(source) for source in sources], overrides, games, num_seeds, agent_steps, out)


# The plan


def test_every_arm_on_every_game_from_every_seed(tmp_path):
    made = plan(make_run(tmp_path))
    assert [arm.name for arm in made.arms] == ["random", "run"]
    assert made.games == ("breakout", "space_invaders"), "held out, by the run's configuration"
    assert [(task.meta_step, task.name, task.arm) for task in made.tasks()] == [
        (seed, game, arm) for seed in (0, 1) for game in made.games for arm in ("random", "run")
    ]
    assert len({task.place for task in made.tasks()}) == 8
    assert made.config.run.dir == f"{tmp_path / 'run'}-evaluation"


def test_seeds_are_those_of_game_and_number_alone(tmp_path):
    """Paired over arms; and the same whatever else is evaluated, and whatever the run's own seed was."""
    run, other = make_run(tmp_path), make_run(tmp_path, "other", **{"run.seed": 99})
    seeds = {(task.name, task.meta_step): task.seed for task in plan(run).tasks()}
    assert len(set(seeds.values())) == 4
    for task in plan(other, run, games=["alien", "space_invaders", "breakout"], num_seeds=3).tasks():
        if (task.name, task.meta_step) in seeds:
            assert task.seed == seeds[task.name, task.meta_step]


def test_arms_differ_in_the_encoder_they_start_from_and_in_nothing_else(tmp_path):
    made = plan(make_run(tmp_path), games=["breakout"])
    states, encoders = {}, {}
    for task in made.tasks():
        process = start_process(made.config, task, _where_it_starts(made.config, task, made.initializations()))
        state, here = process.state(), (task.meta_step, task.arm)
        encoders[here] = {name: value for name, value in state.items() if name.startswith("network/encoder.")}
        states[here] = {name: value for name, value in state.items() if name not in encoders[here]}
    assert any(name.startswith("envs/emulator/") for name in states[0, "run"])
    for seed in (0, 1):
        for name, value in states[seed, "run"].items():
            assert value.numpy().tobytes() == states[seed, "random"][name].numpy().tobytes(), name  # NaN is NaN
    weight = "network/encoder.conv1.weight"
    assert torch.equal(encoders[0, "run"][weight], encoders[1, "run"][weight])
    assert not torch.equal(encoders[0, "run"][weight], encoders[0, "random"][weight])
    assert not torch.equal(encoders[0, "random"][weight], encoders[1, "random"][weight]), "each seed its own"
    assert not torch.equal(states[0, "run"]["network/policy.weight"], states[1, "run"]["network/policy.weight"])


def test_the_encoder_of_a_joint_run_meets_fresh_heads(tmp_path):
    run = make_run(tmp_path, **{"meta.rule": "joint"})
    given, _ = read_initialization(run / "initialization.safetensors")
    assert any(name.startswith("heads/pong/") for name in given)
    made = plan(run, games=["pong"], num_seeds=1)
    processes = [
        start_process(made.config, task, _where_it_starts(made.config, task, made.initializations()))
        for task in made.tasks()
    ]
    random, joint = processes
    assert joint.task.arm == "run"
    assert torch.equal(joint.network.encoder.conv1.weight, given["encoder.conv1.weight"])
    assert torch.equal(joint.network.policy.weight, random.network.policy.weight)
    assert not torch.equal(joint.network.policy.weight, given["heads/pong/policy.weight"])


def test_an_initialization_may_be_a_file_beside_a_run_or_elsewhere(tmp_path):
    run = make_run(tmp_path)
    elsewhere = tmp_path / "files" / "mine.safetensors"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes((run / INITIALIZATION).read_bytes())
    made = plan(run / INITIALIZATION, elsewhere, run)
    assert [arm.name for arm in made.arms] == ["random", "run", "mine", "run-2"]
    assert len({arm.fingerprint for arm in made.arms}) == 2
    assert made.arms[2].trained_on == ()


def test_a_run_that_trained_otherwise_than_it_is_evaluated_is_noted(tmp_path):
    other = make_run(tmp_path, "other", **{"agent.lr": 3e-4, "env.sticky_actions": 0.0, "task.agent_steps": 999})
    made = plan(make_run(tmp_path), other)
    assert [arm.trained_with for arm in made.arms] == [(), (), ("agent.lr = 0.0003", "env.sticky_actions = 0.0")]
    assert [arm.meta_steps for arm in made.arms] == [None, 1, 1]


def test_what_belongs_to_meta_training_is_the_same_for_all_runs(tmp_path):
    """The path is measured as the paper has it, and training is the run's own."""
    run = make_run(tmp_path, **{"meta.rule": "reptile", "agent.lr": 3e-4, "meta.schedule": "asynchronous"})
    config = plan(run, agent_steps=20_000).config
    assert (config.meta.rule, config.meta.metric, config.meta.use_loss) == ("leap", "energy", True)
    assert config.meta.schedule == "synchronous"
    assert (config.agent.lr, config.task.agent_steps, config.run.seed) == (3e-4, 20_000, 0)
    assert config.num_updates // config.stream.segment_updates >= 50
    assert plan(run, overrides=["workers.count=5"]).config.workers.count == 5


# What is refused, in one line, before anything is written


@pytest.fixture
def run_main(capsys):
    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ending:
            code = ending.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refused(run_main, folder, *arguments):
    """The one line; nothing is created."""
    before = sorted(folder.rglob("*"))
    code, stdout, stderr = run_main(*arguments)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1), stderr
    assert sorted(folder.rglob("*")) == before
    return stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["RUN", "--seeds", "0"], ["--seeds 0", "at least 1"]),
        (["RUN", "--games", "brekout"], ["unknown game 'brekout'", "did you mean breakout?"]),
        (["RUN", "--games", "alien", "Alien"], ["alien is named 2 times"]),
        (["RUN", "--agent-steps", "10"], ["--agent-steps 10", "must be more than 10"]),
        (["RUN", "--agent-steps", "many"], ["--agent-steps", "invalid int value"]),
        (["RUN", "agent.lr=1"], ["agent.lr=1", "trains as the run did", "workers"]),
        (["RUN", "run.dir=x"], ["run.dir=x", "trains as the run did"]),
        (["RUN", "workers.count=0"], ["workers.count = 0", "greater than 0"]),
        (["RUN", "--seeds", "1", "workers.count=0"], ["workers.count = 0", "greater than 0"]),
        (["RUN", "--games", "alien", "workers.count=0"], ["workers.count = 0", "greater than 0"]),
        (["backend=serial"], ["name a run directory"]),
        (["nowhere"], ["nowhere: does not exist"]),
        (["zzz://bucket/run"], ["zzz://bucket/run", "cannot be opened"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_arguments_are_one_line(tmp_path, run_main, arguments, parts):
    run = make_run(tmp_path)
    line = refused(run_main, tmp_path, "evaluate", *(run if argument == "RUN" else argument for argument in arguments))
    for part in parts:
        assert part in line


def test_a_file_that_is_no_initialization_is_one_line(tmp_path, run_main):
    run = make_run(tmp_path)
    foreign, text = tmp_path / "foreign.safetensors", tmp_path / "text.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    text.write_text("not one")
    assert "not an initialization" in refused(run_main, tmp_path, "evaluate", run, foreign)
    assert "not a whole safetensors file" in refused(run_main, tmp_path, "evaluate", text)
    (tmp_path / "empty").mkdir()
    assert "not a run directory" in refused(run_main, tmp_path, "evaluate", tmp_path / "empty")


def test_a_file_alone_needs_a_run(tmp_path, run_main):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "mine.safetensors").write_bytes((make_run(tmp_path) / INITIALIZATION).read_bytes())
    assert "config.yaml beside it" in refused(run_main, tmp_path, "evaluate", alone / "mine.safetensors")


def test_another_network_says_what_it_has_and_what_is_needed(tmp_path, run_main):
    run, rgb = make_run(tmp_path), make_run(tmp_path, "rgb", **{"env.color": "rgb"})
    line = refused(run_main, tmp_path, "evaluate", run, rgb)
    assert f"{rgb}: encoder.conv1.weight is float32 16×12×8×8; needed is float32 16×4×8×8" in line
    small = make_run(tmp_path, "small", **{"env.screen_size": 64})
    assert "encoder.linear.weight" in refused(run_main, tmp_path, "evaluate", run, small)
    heads = make_run(tmp_path, "heads", **{"meta.parameters": "all", "env.full_action_space": True})
    assert "policy.bias is in it" in refused(run_main, tmp_path, "evaluate", run, heads)
    assert "policy.bias is not in it" in refused(run_main, tmp_path, "evaluate", heads, run)


def test_an_initialization_that_is_not_finite_is_one_line(tmp_path, run_main):
    run = make_run(tmp_path)
    config = make_config(tmp_path, HELD_OUT | {"run.dir": str(tmp_path / "broken")})
    broken = {name: value * math.nan for name, value in initial_parameters(config, 0).items()}
    with open_run(config) as directory:
        directory.commit(Checkpoint(1, broken, {}), Progress(1))
    assert "not finite" in refused(run_main, tmp_path, "evaluate", run, tmp_path / "broken")


def test_a_run_without_held_out_games_needs_games(tmp_path, run_main):
    run = make_run(tmp_path, **{"tasks.held_out": []})
    assert "name the games to evaluate with --games" in refused(run_main, tmp_path, "evaluate", run)


def test_a_directory_of_something_else_is_one_line(tmp_path, run_main):
    run = make_run(tmp_path)
    assert "holds a run" in refused(run_main, tmp_path, "evaluate", run, "--out", run)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "mine.txt").write_text("mine")
    assert "holds files" in refused(run_main, tmp_path, "evaluate", run, "--out", tmp_path / "files")
    assert "is a file" in refused(run_main, tmp_path, "evaluate", run, "--out", tmp_path / "files" / "mine.txt")


# Learning curves by hand


def curve(returns, episodes=None, arm="random", game="breakout", seed=0, steps=None, length=10.0):
    returns = np.array(returns, float)
    count = len(returns)
    steps = np.arange(1, count + 1) * 100.0 if steps is None else np.array(steps, float)
    episodes = np.where(np.isnan(returns), 0.0, 1.0) if episodes is None else np.array(episodes, float)
    path = np.linspace(length / count, length, count)
    return Curve(arm, game, seed, steps, steps * 4, episodes, returns, path, path * 2, steps, steps / 2)


NAN = math.nan


def test_the_area_is_the_mean_over_agent_steps():
    assert curve([0, 10]).area == 5
    assert curve([0, 10], steps=[300, 400]).area == 2.5  # the last segment is shorter
    assert curve([4, NAN, 10]).area == (4 + 4 + 10) / 3  # nothing ended: as before
    assert curve([NAN, 4, 10]).area == 7  # from where something is known
    assert math.isnan(curve([NAN, NAN]).area)


def test_scores_are_means_over_episodes_of_a_tenth():
    returns, episodes = np.arange(20.0), np.ones(20)
    episodes[-1] = 3
    assert curve(returns, episodes).final_score == (18 + 3 * 19) / 4
    assert curve(returns, episodes).first_score == 0.5
    assert curve([*range(17), NAN, NAN, NAN]).final_score == 16  # further back: the last that ended
    assert curve([NAN, NAN, NAN, *range(17)]).first_score == 0
    assert math.isnan(curve([NAN] * 20).final_score)


def test_a_smoothed_curve_has_no_value_before_the_first_episode():
    smoothed = curve([NAN, 4, NAN, NAN, 8, *[8] * 15]).smoothed()  # windows of two segments
    assert math.isnan(smoothed[0])
    assert smoothed[1:6].tolist() == [4, 4, 4, 8, 8]


def test_curves_with_rows_at_steps_of_their_own_are_read_at_those_of_the_shortest():
    """RLlib's: none of a curve's later rows is seen earlier."""
    first, second = curve([1, 2, 3], steps=[95, 190, 290]), curve([10, 20, 30, 40], steps=[100, 190, 280, 300])
    steps, returns = mean_curve([second, first])
    assert steps.tolist() == [95, 190, 290]
    assert np.array_equal(returns, [[NAN, 20, 30], [1, 2, 3]], equal_nan=True)
    _, energy = mean_curve([first, second], lambda curve: curve.energy)
    assert np.array_equal(energy, [first.energy, [NAN, *second.energy[1:3]]], equal_nan=True)


def test_steps_to_a_score_are_those_of_the_first_time():
    assert steps_to_reach(np.array([1.0, 2, 3]), np.array([NAN, 5, 4]), 4) == 2
    assert steps_to_reach(np.array([1.0, 2, 3]), np.array([NAN, 5, 4]), 6) is None


def describe(arms=("random", "leap"), games=("breakout", "alien", "air_raid"), num_seeds=3):
    listed = [{"name": arm, "source": arm, "fingerprint": "f" * 64, "meta_steps": 5, "trained_on": ["alien"],
               "trained_with": ["agent.lr = 1.0"]} for arm in arms]  # fmt: skip
    return {"format": "leap_rl evaluation", "arms": listed, "games": list(games), "num_seeds": num_seeds}


def simulated(description, better=0.0):
    """Curves that rise from 1 to about 21; every arm but the random one is ``better`` at each point."""
    rng, curves = np.random.default_rng(0), []
    for arm in description["arms"]:
        for game in description["games"]:
            for seed in range(description["num_seeds"]):
                returns = np.linspace(1, 21, 40) + rng.normal(size=40) + better * (arm["name"] != "random")
                curves.append(curve(returns, arm=arm["name"], game=game, seed=seed))
    return curves


def test_a_clear_effect_is_found_and_a_faster_arm_is_faster():
    description = describe()
    analysis = analyse(description, simulated(description, better=10))
    aggregate = analysis.aggregates["leap"]
    assert aggregate.final_difference.sign == aggregate.area_difference.sign == 1
    assert aggregate.area_better.value == 1
    assert analysis.harmed("leap") == []
    result = analysis.results["leap", "breakout"]
    assert result.area_difference.value == pytest.approx(10, abs=1)
    assert (result.path_ratio, result.loss_rise_share) == (1, 0.5)
    assert 1.5 < result.speedup < 3, "the random arm's final score is reached about halfway"
    assert result.seeds_at_target == 3
    assert analysis.results["leap", "air_raid"].human_normalized is None
    assert analysis.normalized == ["breakout", "alien"]
    assert analysis.counted == ["breakout", "alien", "air_raid"]


def test_a_harmed_game_is_listed_and_never_reaches_the_score():
    description = describe()
    analysis = analyse(description, simulated(description, better=-10))
    assert [(result.game, certain) for result, certain in analysis.harmed("leap")] == [
        ("breakout", True), ("alien", True), ("air_raid", True)
    ]  # fmt: skip
    result = analysis.results["leap", "alien"]
    assert (result.steps_to_target, result.speedup, result.seeds_at_target) == (None, None, 0)


def test_where_the_random_arm_learns_nothing_there_is_no_speedup():
    description = describe(games=("breakout",))
    flat = [curve([5.0] * 20, arm=arm, seed=seed) for arm in ("random", "leap") for seed in range(3)]
    result = analyse(description, flat).results["leap", "breakout"]
    assert (result.steps_to_target, result.speedup) == (None, None)


def test_an_arm_beside_itself_is_no_difference():
    description = describe(arms=("random", "a", "b"))
    curves = simulated(description)
    twins = [c for c in curves if c.arm != "b"]
    twins += [Curve("b", *list(vars(c).values())[1:]) for c in curves if c.arm == "a"]
    analysis = analyse(description, twins)
    for game in analysis.games:
        a, b = (vars(analysis.results[arm, game]) for arm in ("a", "b"))
        assert {**a, "arm": ""} == {**b, "arm": ""}


def test_a_game_with_missing_seeds_is_said_and_left_out_of_what_is_over_games():
    description = describe()
    curves = [c for c in simulated(description) if (c.arm, c.game, c.seed) != ("leap", "alien", 1)]
    analysis = analyse(description, curves)
    assert analysis.games == ["breakout", "alien", "air_raid"]
    assert analysis.counted == ["breakout", "air_raid"]
    assert analysis.results["random", "alien"].num_seeds == 2, "paired: the other arm's seed goes too"
    assert analysis.missing == ["alien: 2 of 3 seeds have finished, with an episode that ended, in every arm"]


# Probes


def test_cosines_by_hand():
    """Two seeds of a, one of b, in the plane: a's agree at 45°, b is at 90° and 135° from them."""
    increments = [{"x": torch.tensor([x]), "y": torch.tensor([y])} for x, y in ((1.0, 0.0), (2.0, 2.0), (-3.0, 0.0))]
    found = cosines(["a", "a", "b"], increments)
    root = 1 / math.sqrt(2)
    assert found["games"] == ["a", "b"]
    assert found["matrix"][0] == pytest.approx([root, (-1 - root) / 2])
    assert found["matrix"][1] == [found["matrix"][0][1], None]


def test_an_increment_of_zero_agrees_with_nothing():
    assert cosines(["a", "b"], [{"x": torch.zeros(2)}, {"x": torch.ones(2)}])["matrix"] == [[None, 0.0], [0.0, None]]


def test_cosines_are_the_means_over_all_pairs_of_tasks():
    generator = torch.Generator().manual_seed(0)
    games = ["a", "b", "a", "c", "b", "a"]
    increments = [{"x": torch.randn(5, generator=generator), "y": torch.randn(3, generator=generator)} for _ in games]
    increments[3] = {"x": torch.zeros(5), "y": torch.zeros(3)}
    vectors = [torch.cat([increment["x"], increment["y"]]).double() for increment in increments]
    found = cosines(games, increments)
    for i, row in enumerate(found["games"]):
        for j, column in enumerate(found["games"]):
            pairs = [
                float(torch.nn.functional.cosine_similarity(vectors[m], vectors[n], dim=0))
                for m in range(6) for n in range(6) if m != n and (games[m], games[n]) == (row, column)
            ]  # fmt: skip
            expected = pytest.approx(sum(pairs) / len(pairs), abs=1e-6) if pairs else None
            assert found["matrix"][i][j] == expected


def test_drift_is_relative_to_where_a_layer_started():
    first = {"weight": torch.tensor([3.0, 4.0]), "bias": torch.zeros(2)}
    now = {"weight": torch.tensor([3.0, 5.0]), "bias": torch.tensor([0.0, 2.0])}
    assert drift_by_layer(first, now) == {"weight": pytest.approx(0.2), "bias": pytest.approx(2.0)}


# The report


def write_evaluation(folder, description, curves):
    (folder / "evaluation.json").write_text(json.dumps(description))
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for c in curves:
        columns = zip(c.agent_steps, c.frames, c.episodes, c.returns, c.path_length, c.energy, c.moves, c.loss_rises,
                      strict=True)  # fmt: skip
        for row in columns:
            named = dict(zip(COLUMNS[3:11], row, strict=True)) | {"arm": c.arm, "game": c.game, "seed": c.seed}
            writer.writerow(named | {"entropy": 1.0, "loss": 0.5})
    (folder / "curves.csv").write_text(file.getvalue())
    matrix = [[None if i == j else 0.5 for j in range(3)] for i in range(3)]
    drift = {"leap": {"encoder.conv1.weight": 0.25}}
    probes = {"cosines": {"leap": {"games": description["games"], "matrix": matrix}}, "drift": drift}
    (folder / "probes.json").write_text(json.dumps(probes))


def report(folder, run_main, description, curves):
    write_evaluation(folder, description, curves)
    code, stdout, stderr = run_main("report", folder)
    assert (code, stdout, stderr) == (0, f"{folder}/report.md\n", "")
    return (folder / "report.md").read_text()


def test_a_report_has_its_tables_and_figures(tmp_path, run_main):
    description = describe()
    text = report(tmp_path, run_main, description, simulated(description, better=10))
    for name in ("learning_curves", "over_games", "paths", "heat_maps"):
        assert f"({name}.png)" in text
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (tmp_path / f"{name}.svg").read_bytes()
    assert "no entry: air_raid" in text
    assert "Not held out: leap was meta-trained on alien" in text
    assert "| encoder.conv1.weight | 0.2500 |" in text
    assert "Evaluated otherwise than leap was meta-trained, which had agent.lr = 1.0." in text
    assert "none whose interval lies below the random arm" in text
    assert "nan" not in text.lower().replace("nan ", "")
    runs = sorted(path.parent.relative_to(tmp_path / "tensorboard").as_posix() for path in tmp_path.rglob("*tfevents*"))
    assert runs == sorted(["probes", *(f"{arm}/{g}" for arm in ("random", "leap") for g in description["games"])])


def test_the_same_data_give_the_same_report_and_figures(tmp_path, run_main):
    description = describe()
    first = report(tmp_path, run_main, description, simulated(description))
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".png", ".svg")}
    assert report(tmp_path, run_main, description, simulated(description)) == first
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept


@pytest.mark.parametrize(("num_seeds", "words"), [(1, "One seed only: no intervals"), (2, "Two seeds only")])
def test_a_report_of_few_seeds_says_so(tmp_path, run_main, num_seeds, words):
    description = describe(num_seeds=num_seeds)
    text = report(tmp_path, run_main, description, simulated(description))
    assert words in text
    assert (" [" in text.partition("## Over all games")[2]) == (num_seeds > 1)


def test_a_report_of_tasks_in_which_no_episode_ended_says_so(tmp_path, run_main):
    description = describe(games=("breakout",))
    curves = [curve([NAN] * 20, arm=arm, seed=seed) for arm in ("random", "leap") for seed in range(3)]
    text = report(tmp_path, run_main, description, curves)
    assert "breakout: 0 of 3 seeds have finished, with an episode that ended" in text
    assert "Nothing can be compared yet" in text


def test_report_of_what_is_no_evaluation_is_one_line(tmp_path, run_main):
    assert "not an evaluation: it has no evaluation.json" in refused(run_main, tmp_path, "report", tmp_path)
    (tmp_path / "evaluation.json").write_text("{}")
    assert "not the description of an evaluation" in refused(run_main, tmp_path, "report", tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps(describe()))
    assert "has no curves.csv" in refused(run_main, tmp_path, "report", tmp_path)
    (tmp_path / "curves.csv").write_text("arm,game\nleap,alien\n")
    assert "cannot be read" in refused(run_main, tmp_path, "report", tmp_path)
