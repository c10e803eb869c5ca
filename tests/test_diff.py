"""`leap-rl diff`: what differs between two runs, initializations or evaluations."""

import json
import math

import numpy as np
import pytest
import torch

from leap_rl.cli import main
from leap_rl.runs.diff import compare, differing
from leap_rl.runs.run_files import INITIALIZATION, METRICS, jsonl
from tests.cli_helpers import assert_one_line, make_run
from tests.test_evaluation import describe, simulated
from tests.test_report import write_evaluation


def rows(*path_lengths):
    return jsonl([
        {"kind": "meta_step", "meta_step": step, "path_length": length, "energy": 2 * length}
        for step, length in enumerate(path_lengths)
    ])  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    """Two runs of two and three meta-steps, at different rates."""
    folders = []
    for name, last, changes in (("a", 2, {}), ("b", 3, {"meta.lr": 0.5, "meta.steps": 4})):
        (tmp_path / name).mkdir()
        folders.append(make_run(tmp_path / name, last, changes))
        (folders[-1] / METRICS).write_bytes(rows(*range(10, 10 + last)))
    return folders


def diff(capsys, *arguments):
    assert main(["diff", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_runs_differ_in_keys_weights_and_curves(runs, capsys):
    found = diff(capsys, *runs)
    assert found["config"] == {
        "meta.lr": [0.1, 0.5], "meta.steps": [3, 4], "run.dir": [str(run) for run in runs],
    }  # fmt: skip
    assert found["meta_steps"] == [2, 3]
    assert found["versions"] == {}
    assert found["curves"] == {"meta_step": 1, "path_length": [11, 11], "energy": [22, 22]}
    bias, weight = found["layers"]
    assert (bias["name"], bias["distance"], bias["cosine"]) == ("encoder.bias", 0.0, pytest.approx(1))
    a, b = torch.arange(6.0) + 2, torch.arange(6.0) + 3  # tests/cli_helpers.py: make_checkpoint
    assert weight["distance"] == pytest.approx(math.sqrt(6))
    assert weight["relative"] == pytest.approx(math.sqrt(6) / float(a.norm()))
    assert weight["cosine"] == pytest.approx(float(a @ b / a.norm() / b.norm()))


def test_what_is_printed_names_every_difference(runs, capsys):
    assert main(["diff", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    for line in ("meta.lr: 0.1 → 0.5", "versions: the same, or not known", "meta-step 2, the last that both have:",
                 "path_length: 11 → 11"):  # fmt: skip
        assert line in said
    assert main(["diff", str(runs[0]), str(runs[0])]) == 0
    assert "the same bits" in capsys.readouterr().out


def test_a_file_is_compared_with_a_run(runs, capsys):
    found = diff(capsys, runs[0] / INITIALIZATION, runs[0])
    assert found["fingerprints"][0] == found["fingerprints"][1]
    assert found["config"] == {}, "the configuration beside the file is the file's"
    assert found["curves"] == {}


def test_other_shapes_and_missing_tensors_are_said():
    a = {"conv": torch.ones(2, 3), "old": torch.ones(1), "zero": torch.zeros(2)}
    b = {"conv": torch.ones(2, 4), "new": torch.ones(1), "zero": torch.zeros(2)}
    found = {layer.name: layer for layer in compare(a, b)}
    assert found["conv"].shapes == ("2×3", "2×4")
    assert found["old"].shapes == ("1", "")
    assert found["new"].shapes == ("", "1")
    assert found["conv"].distance is found["old"].distance is found["new"].cosine is None
    assert (found["zero"].distance, found["zero"].relative, found["zero"].cosine) == (0.0, None, None)


def test_a_key_that_one_lacks_differs():
    assert differing({"a": 1, "b": 2}, {"b": 2, "c": None, "d": 3}) == {"a": [1, None], "d": [None, 3]}


def test_what_is_no_initialization_is_one_line(runs, tmp_path, capsys):
    assert_one_line(
        main(["diff", str(runs[0]), str(tmp_path / "none")]), *capsys.readouterr(), "none", "does not exist"
    )


# Evaluations


def evaluation(folder, better=0.0, **changes):
    """The directory of an evaluation whose meta-learned arm is ``better`` at each point of its curves."""
    folder.mkdir()
    description = describe(**changes)
    write_evaluation(folder, description, simulated(description, better))
    return folder


def test_evaluations_differ_in_arms_and_in_the_scores_that_both_have(tmp_path, capsys):
    a = evaluation(tmp_path / "a", games=("breakout", "alien"))
    b = evaluation(tmp_path / "b", 5.0, games=("breakout", "alien", "pong"), arms=("random", "leap", "reptile"))
    found = diff(capsys, a, b)
    assert found["arms"] == {"reptile": [None, "f" * 64]}
    assert found["config"] == found["versions"] == {}
    scores = {(row["arm"], row["game"]): row for row in found["scores"]}
    assert scores.keys() == {(arm, game) for arm in ("random", "leap") for game in ("breakout", "alien")}
    ours, theirs = (simulated(describe(games=("breakout", "alien"))), simulated(
        describe(games=("breakout", "alien", "pong"), arms=("random", "leap", "reptile")), 5.0))  # fmt: skip
    areas = [[curve.area for curve in curves if (curve.arm, curve.game) == ("leap", "alien")]
             for curves in (ours, theirs)]  # fmt: skip
    differences = np.subtract(areas[1], areas[0])
    row = scores["leap", "alien"]
    assert row["num_seeds"] == 3
    half = 4.302653 * np.std(differences, ddof=1) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    expected = {"value": np.mean(differences), "low": np.mean(differences) - half, "high": np.mean(differences) + half}
    assert row["mean"]["difference"] == pytest.approx(expected)
    assert row["mean"]["values"][1] - row["mean"]["values"][0] == pytest.approx(np.mean(differences))


def test_what_is_printed_of_evaluations(tmp_path, capsys):
    a, b = evaluation(tmp_path / "a"), evaluation(tmp_path / "b", 5.0, num_seeds=2)
    assert main(["diff", str(a), str(b)]) == 0
    said = capsys.readouterr().out
    assert f"b  {b}: 3 game(s), 2 seed(s), arms random, leap" in said
    assert "arms: the same" in said
    for folder, key in ((a, "loss_weight"), (b, "use_loss")):  # one of a version that had another key
        (folder / "config.yaml").write_text(f"meta: {{{key}: 1}}\n")
    assert main(["diff", str(a), str(evaluation(tmp_path / "c", arms=("random", "leap", "ceiling")))]) == 0
    assert "  ceiling: only in b" in capsys.readouterr().out
    assert diff(capsys, a, b)["config"] == {"meta.loss_weight": [1, None], "meta.use_loss": [None, 1]}
    [line] = [line for line in said.splitlines() if line.startswith("  leap    breakout ")]
    assert "2 seed(s)" in line
    assert " → " in line


def test_a_run_is_not_compared_with_an_evaluation(runs, tmp_path, capsys):
    b = evaluation(tmp_path / "evaluated")
    assert_one_line(
        main(["diff", str(runs[0]), str(b)]), *capsys.readouterr(),
        f"{b}: is an evaluation, and {runs[0]} is not: two of a kind are compared",
    )  # fmt: skip


def test_evaluations_of_two_processes_are_not_compared(tmp_path, capsys):
    a, b = evaluation(tmp_path / "a"), evaluation(tmp_path / "b")
    description = json.loads((b / "evaluation.json").read_text()) | {"process": "classification"}
    (b / "evaluation.json").write_text(json.dumps(description))
    assert_one_line(main(["diff", str(a), str(b)]), *capsys.readouterr(), "is of process classification")
