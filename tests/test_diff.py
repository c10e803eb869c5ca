"""`leap-rl diff`: what differs between two runs or initializations."""

import json
import math

import pytest
import torch

from leap_rl.cli import main
from leap_rl.runs.diff import compare, differing
from leap_rl.runs.run_files import INITIALIZATION, METRICS, jsonl
from tests.cli_helpers import assert_one_line, make_run


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
