"""Evaluation without training: plans, what is refused, learning curves by hand, the report."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from leap_rl.evaluation.analysis import analyse, mean_curve
from leap_rl.evaluation.evaluate import open_directory
from leap_rl.evaluation.plan import make_plan
from leap_rl.evaluation.results import Curve, columns_of
from leap_rl.processes import initial_parameters, process_type, start_process
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import INITIALIZATION, Progress, read_initialization
from leap_rl.streaming import starting_weights
from leap_rl.types import Checkpoint
from tests.cli_helpers import make_config

COLUMNS = columns_of(process_type("a2c").measures)
HELD_OUT = {"tasks.games": ["pong", "asterix", "qbert"], "tasks.held_out": ["breakout", "space_invaders"]}


def make_run(folder, name="run", seed=3, **changes):
    """A run whose initialization is what a network of its configuration is drawn as: a folder."""
    config = make_config(folder, HELD_OUT | {"run.dir": str(folder / name)} | changes)
    with open_run(config) as run:
        run.commit(Checkpoint(1, initial_parameters(config, seed), {}), Progress(1))
    return folder / name


def plan(*sources, overrides=(), games=None, num_seeds=2, agent_steps=None, out=None, arms=None):
    return make_plan([str(source) for source in sources], overrides, games, num_seeds, agent_steps, out, arms)


# The plan


def test_every_arm_on_every_game_from_every_seed(tmp_path):
    made = plan(make_run(tmp_path))
    assert [arm.name for arm in made.arms] == ["random", "run"]
    assert made.games == ("breakout", "space_invaders"), "held out, by the run's configuration"
    assert [(task.round, task.name, task.start.name) for task in made.tasks()] == [
        (seed, game, arm) for seed in (0, 1) for game in made.games for arm in ("random", "run")
    ]
    assert len({task.place for task in made.tasks()}) == 8
    assert made.config.run.dir == f"{tmp_path / 'run'}-evaluation"


def test_seeds_are_those_of_game_and_number_alone(tmp_path):
    """Paired over arms; and the same whatever else is evaluated, and whatever the run's own seed was."""
    run, other = make_run(tmp_path), make_run(tmp_path, "other", **{"run.seed": 99})
    seeds = {(task.name, task.round): task.seed for task in plan(run).tasks()}
    assert len(set(seeds.values())) == 4
    for task in plan(other, run, games=["alien", "space_invaders", "breakout"], num_seeds=3).tasks():
        if (task.name, task.round) in seeds:
            assert task.seed == seeds[task.name, task.round]


def test_arms_differ_in_the_encoder_they_start_from_and_in_nothing_else(tmp_path):
    made = plan(make_run(tmp_path), games=["breakout"])
    states, encoders = {}, {}
    for task in made.tasks():
        process = start_process(made.config, task, starting_weights(made.config, task, made.initializations()))
        state, here = process.state(), (task.round, task.start.name)
        encoders[here] = {name: value for name, value in state.items() if name.startswith("network/encoder.")}
        states[here] = {name: value for name, value in state.items() if name not in encoders[here]}
    assert any(name.startswith("actor/envs/emulator/") for name in states[0, "run"])
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
        start_process(made.config, task, starting_weights(made.config, task, made.initializations()))
        for task in made.tasks()
    ]
    random, joint = processes
    assert joint.task.start.name == "run"
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


def test_the_path_is_measured_in_the_same_way_for_all_runs(tmp_path):
    """The path is measured as the paper has it, and training is the run's own."""
    run = make_run(tmp_path, **{"meta.rule": "reptile", "agent.lr": 3e-4})
    config = plan(run, agent_steps=20_000).config
    assert (config.meta.rule, config.meta.metric, config.meta.use_loss) == ("leap", "energy", True)
    assert (config.agent.lr, config.task.agent_steps, config.run.seed) == (3e-4, 20_000, 0)
    assert config.num_updates // config.stream.segment_updates >= 50
    assert plan(run, overrides=["workers.count=5"]).config.workers.count == 5


def test_all_else_of_meta_is_the_runs_own_even_where_it_has_fewer_games(tmp_path):
    made = plan(make_run(tmp_path, **{"meta.batch_size": 3, "meta.lr": 0.25, "meta.steps": 7}), games=["breakout"])
    assert (made.config.meta.batch_size, made.config.meta.lr, made.config.meta.steps) == (3, 0.25, 7)


# What is refused, in one line, before anything is written


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
        (["RUN", "--games", "alien", "Alien"], ["--games: alien is listed 2 times"]),
        (["RUN", "--agent-steps", "10"], ["--agent-steps 10", "must be more than 10"]),
        (["RUN", "--agent-steps", "many"], ["--agent-steps", "invalid int value"]),
        (["RUN", "--arms", "celing"], ["--arms 'celing'", "did you mean ceiling?"]),
        (["RUN", "--arms", "shrink-perturb=2"], ["--arms 'shrink-perturb=2'", "above 0 and below 1"]),
        (["RUN", "agent.lr=1"], ["agent.lr=1", "trains as the run did", "workers"]),
        (["RUN", "run.dir=x"], ["run.dir=x", "trains as the run did"]),
        (["RUN", "workers.count=0"], ["workers.count = 0", "greater than 0"]),
        (["RUN", "--seeds", "1", "workers.count=0"], ["workers.count = 0", "greater than 0"]),
        (["RUN", "--games", "alien", "workers.count=0"], ["workers.count = 0", "greater than 0"]),
        (["backend=serial"], ["required: RUN_OR_FILE"]),
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
    assert f"{rgb}: encoder.conv1.weight is float32 16×12×8×8; it must be float32 16×4×8×8" in line
    small = make_run(tmp_path, "small", **{"env.screen_size": 64})
    assert "encoder.linear.weight" in refused(run_main, tmp_path, "evaluate", run, small)
    heads = make_run(tmp_path, "heads", **{"meta.parameters": "all", "env.full_action_space": True})
    assert "policy.bias has no place in the network" in refused(run_main, tmp_path, "evaluate", run, heads)
    assert "policy.bias is missing" in refused(run_main, tmp_path, "evaluate", heads, run)


def test_heads_of_an_initialization_are_used_where_it_has_them_and_fresh_elsewhere(tmp_path):
    encoder = make_run(tmp_path, **{"tasks.held_out": ["pong:difficulty=1"]})
    whole = make_run(tmp_path, "whole", **{"meta.parameters": "all", "tasks.held_out": ["pong:difficulty=1"]})
    made = plan(whole, encoder, games=["pong:difficulty=1", "breakout"])
    assert [arm.fresh_heads for arm in made.arms] == [(), ("breakout",), ("breakout", "pong")]
    assert "heads/pong/policy.weight" in made.arms[1].initialization
    alone = plan(whole, overrides=["meta.parameters=encoder"], games=["breakout"])
    assert alone.config.meta.parameters == "encoder"
    assert set(alone.arms[1].initialization) == set(made.arms[2].initialization)


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


def test_another_length_of_the_tasks_is_another_evaluation(tmp_path, run_main):
    """It says so before anything starts, in the options that `evaluate` has."""
    run = make_run(tmp_path)
    with open_directory(plan(run)) as storage:
        out = storage.url
    line = refused(run_main, tmp_path, "evaluate", run, "--seeds", "3", "--agent-steps", "300")
    assert line.startswith(f"error: --out {out}: holds another evaluation: task.agent_steps (235 there, 300 here)")
    assert "run.dir" not in line


# Learning curves by hand


def curve(returns, episodes=None, arm="random", game="breakout", seed=0, steps=None, length=10.0):
    returns = np.array(returns, float)
    count = len(returns)
    steps = np.arange(1, count + 1) * 100.0 if steps is None else np.array(steps, float)
    episodes = np.where(np.isnan(returns), 0.0, 1.0) if episodes is None else np.array(episodes, float)
    path = np.linspace(length / count, length, count)
    return Curve(arm, game, seed, steps, steps * 4, episodes, returns, path, path**2, steps, steps / 2)


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
    assert aggregate.final_difference.value > 0 < aggregate.area_difference.value
    assert aggregate.area_difference.sign == 0, "three seeds of the two games with human scores are too few for it"
    assert aggregate.area_better.value == 1
    assert analysis.harmed("leap") == []
    result = analysis.results["leap", "breakout"]
    assert result.area_difference.value == pytest.approx(10, abs=1)
    assert (result.path_ratio, result.loss_rise_share) == (1, 0.5)
    assert 1.5 < result.speedup.value < 3, "the random arm's final score is reached about halfway"
    assert result.head_start_difference.value == pytest.approx(10, abs=1)
    assert (aggregate.num_reached, analysis.learned) == (3, ["breakout", "alien", "air_raid"])
    assert 1.5 < aggregate.speedup.low < aggregate.speedup.value < 3
    assert aggregate.gain_head_start.value == pytest.approx(0.55, abs=0.1), "10 of a gain of 18"
    assert analysis.aggregates["random"].gain_final == (1, 1, 1), "by definition"
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
    assert (result.steps_to_target, result.seeds_at_target) == (None, 0)
    assert 0.3 < result.speedup.value < 0.7, "slower, where the random arm is about halfway in the end"
    assert result.speedup.low is None, "three seeds of one game are too few for it"
    assert analysis.aggregates["leap"].speedup.high < 1


def test_where_the_random_arm_learns_nothing_there_is_no_speedup():
    description = describe(games=("breakout",))
    flat = [curve([5.0] * 20, arm=arm, seed=seed) for arm in ("random", "leap") for seed in range(3)]
    analysis = analyse(description, flat)
    assert analysis.results["leap", "breakout"].speedup is None
    assert (analysis.learned, analysis.aggregates["leap"].speedup) == ([], None)


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
