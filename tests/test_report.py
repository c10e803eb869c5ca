"""What an evaluation came to: probes, and the report."""

import csv
import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
import torch

from leap_rl.evaluation.analysis import analyse
from leap_rl.evaluation.figures import learning_curves
from leap_rl.evaluation.schemas import Description
from leap_rl.evaluation.sections import lines
from leap_rl.meta.probes import MAX_NAMES, by_game, cosines, drift_by_layer
from tests.test_evaluation import COLUMNS, NAN, curve, describe, refused, simulated

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


def test_many_variants_count_as_their_games():
    names = [f"{game}:mode={mode}" for mode in range(MAX_NAMES // 2) for game in ("breakout", "pong")]
    assert by_game(names) == names
    assert by_game([*names, "pong"]) == ["breakout", "pong"] * (MAX_NAMES // 2) + ["pong"]
    alone = [f"cartpole:length={i}" for i in range(MAX_NAMES + 1)]
    assert by_game(alone) == alone, "one game has no pair of games to compare"


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
    size = range(len(description["games"]))
    matrix = [[None if i == j else 0.5 for j in size] for i in size]
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
    assert "**leap: it helps.** The random arm's final score is reached 1.9 times as fast" in text.partition("##")[0]
    assert "no entry: air_raid" in text
    assert "Not held out: leap was meta-trained on alien" in text
    assert "| encoder.conv1.weight | 0.2500 |" in text
    assert "differently from the meta-training of leap, which had agent.lr = 1.0." in text
    assert "none whose interval lies below the random arm" in text
    assert "nan" not in text.lower().replace("nan ", "")
    runs = sorted(path.parent.relative_to(tmp_path / "tensorboard").as_posix() for path in tmp_path.rglob("*tfevents*"))
    assert runs == sorted(["probes", *(f"{arm}/{g}" for arm in ("random", "leap") for g in description["games"])])


def test_tasks_without_a_common_scale_have_no_means_on_it(tmp_path, run_main):
    """Neither words, nor columns, nor panels: nothing is human-normalized."""
    description = describe(games=("cartpole", "acrobot:mass_2=2", "CartPole-v1"))
    text = report(tmp_path, run_main, description, simulated(description, better=10))
    for word in ("human", "IQM", "interquartile", "raw |", "no entry"):
        assert word not in text
    assert "| arm | P(final better) | P(area better) | path length | energy |" in text
    drawn = (tmp_path / "over_games.svg").read_text()
    assert drawn.count('id="axes_') == 2


def test_names_of_an_evaluation_from_elsewhere_are_shown_literally(tmp_path, run_main):
    """A process of one's own may name its tasks as it likes, and anybody may write evaluation.json."""
    description = describe(games=("<i>", "[a](http://b)", "|pipe|"))
    description["arms"][1] |= {"trained_on": ["<i>"], "trained_with": ["[c](http://d)"], "fresh_heads": ["|pipe|"]}
    curves = [c for c in simulated(description, better=-10) if (c.game, c.seed) != ("|pipe|", 1)]
    text = report(tmp_path, run_main, description, curves)
    assert "no heads for \\|pipe\\|; " in text
    assert "* **leap**: \\<i>, [a]\\(http://b)" in text
    for read_as_markup in (r"(?<!\\)<i>", r"\]\(http", r"(?<!\\)\|pipe"):
        assert not re.search(read_as_markup, text), read_as_markup


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "return (raw score)"),
        ({"human_normalized": False}, "return"),
        ({"human_normalized": False, "score_text": "−loss"}, "−loss"),
        ({"human_normalized": False, "score_text": "accuracy", "held_out_counts": ("a", "b")}, "training accuracy"),
    ],
)
def test_curves_are_labelled_with_what_the_process_calls_its_score(changes, said):
    description = describe()
    analysis = analyse(description, simulated(description))
    measures = dataclasses.replace(analysis.measures, **changes)
    assert learning_curves(dataclasses.replace(analysis, measures=measures)).get_supylabel() == said


def test_scores_on_a_natural_scale_are_called_what_the_process_calls_them():
    description = Description.model_validate(describe()).model_dump()
    analysis = analyse(description, simulated(description))
    measures = dataclasses.replace(analysis.measures, score_text="share solved", natural_scale=True)
    text = "\n".join(lines(description, dataclasses.replace(analysis, measures=measures), {}, set()))
    assert "Scores are share solved, from 0 to 1: interquartile means" in text
    assert "Mean share solved over seeds" in text
    assert "accurac" not in text


def test_the_same_data_give_the_same_report_and_figures(tmp_path, run_main):
    description = describe()
    first = report(tmp_path, run_main, description, simulated(description))
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".png", ".svg")}
    assert report(tmp_path, run_main, description, simulated(description)) == first
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept


@pytest.mark.parametrize(
    ("better", "verdict"), [(10, "scores are higher"), (-10, "scores are lower"), (0, "no difference shown")]
)
def test_where_the_random_arm_learns_nothing_mean_scores_decide(tmp_path, run_main, better, verdict):
    description = describe()
    rng, curves = np.random.default_rng(1), []
    for arm in ("random", "leap"):
        for game in description["games"]:
            for seed in range(3):
                returns = 50 + rng.normal(size=40) + better * (arm != "random")
                curves.append(curve(returns, arm=arm, game=game, seed=seed))
    first, _, _ = report(tmp_path, run_main, description, curves).partition("##")
    assert "**Nothing can be said about speed:**" in first
    assert f"* **leap: {verdict}.** A task's mean return is higher than the random arm's with probability" in first


def test_one_task_whose_seeds_are_too_few_for_a_speed_is_judged_by_its_scores(tmp_path, run_main):
    description = describe(games=("breakout",))
    first, _, _ = report(tmp_path, run_main, description, simulated(description, better=10)).partition("##")
    assert (
        "* **leap: scores are higher.** The task's mean return less that of the random arm is 9.8 (95 % interval"
        in first
    )
    assert "The random arm's final score is reached 1.8 times as fast, on 1 of 1 games." in first
    two = describe(games=("breakout", "alien"))
    first, _, _ = report(tmp_path, run_main, two, simulated(two, better=10)).partition("##")
    assert (
        "* **leap: scores are higher.** A task's mean return is higher than the random arm's with probability" in first
    )


@pytest.mark.parametrize(
    ("num_seeds", "verdict", "words"),
    [
        (1, "* **leap: one seed cannot tell whether it helps.**", "One seed only: no intervals"),
        (2, "* **leap: two seeds cannot tell whether it helps.**", "Two seeds only"),
    ],
)
def test_a_report_of_few_seeds_says_so(tmp_path, run_main, num_seeds, verdict, words):
    description = describe(num_seeds=num_seeds)
    text = report(tmp_path, run_main, description, simulated(description))
    assert verdict in text
    assert words in text
    assert (" [" in text.partition("## How high")[2]) == (num_seeds > 1)


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
