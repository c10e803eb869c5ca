"""The committed CSVs of the studies still give the numbers that docs/transfer.md and docs/vision.md state."""

import csv
import json
import shutil
from argparse import Namespace
from pathlib import Path

from studies import omniglot_study, transfer, vision_study

DOCS = Path(__file__).parents[1] / "docs"


def test_transfer_over_half_a_million_agent_steps(tmp_path, monkeypatch, capsys):
    shutil.copy(DOCS / "transfer" / "longest.csv", tmp_path)
    monkeypatch.setattr(transfer, "RESULTS", tmp_path)
    transfer.summarize("longest")
    *variants, over_all = [line for line in capsys.readouterr().out.splitlines() if ":mode=" in line or "of 8" in line]
    assert len(variants) == 8
    assert "| breakout:mode=36 | 2 | 72.0 | 208.5 | 2.9 | 128.2 | 246.5 | 1.9 | 7.31 " in "\n".join(variants)
    for number in ("2.15 [1.39, 3.33]", "8 of 8", "1.63 [1.33, 2.00]", "9.7 [4.0, 23.4]"):
        assert f"| {number} |" in over_all


def test_omniglot_with_smooth_drawings(tmp_path, capsys):
    """Nothing new has been evaluated, so the CSVs stay as they are."""
    kept = {file.name: file.read_bytes() for file in (DOCS / "vision" / "omniglot_smooth").glob("*.csv")}
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    omniglot_study.report(Namespace(out=str(tmp_path / "nothing"), results=str(tmp_path)))
    table = capsys.readouterr().out
    assert "| leap | 25 | 0.630 [0.600, 0.660] | 0.738 [0.702, 0.774] | – | 0.748 | 1 |" in table
    assert "| reptile | 25 | 0.537 [0.510, 0.565] | 0.604 [0.542, 0.666] | -0.134 [-0.180, -0.088] | 0.708 |" in table
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept


def test_glyphs(tmp_path, capsys):
    """The evaluations that the rows of results.csv are of give these rows again."""
    committed = DOCS / "vision" / "results.csv"
    seeds = {}
    with committed.open() as file:
        for row in csv.DictReader(file):
            arm = row["rule"] if row["alphabets"] == "0" else f"{row['rule']}-{row['alphabets']}"
            scores = {"area": {"value": float(row["area"])}, "final": {"value": float(row["held_out_accuracy"])}}
            seeds.setdefault(row["seed"], []).append({"arm": arm, **scores})
    for seed, results in seeds.items():
        folder = tmp_path / f"seed{seed}" / "evaluation" / "shared"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"results": results}))
    vision_study.report(Namespace(out=str(tmp_path), seeds=5))
    assert (tmp_path / "results.csv").read_bytes() == committed.read_bytes()
    table = capsys.readouterr().out
    assert "| leap | 25 | 0.404 [0.374, 0.434] | 0.514 [0.460, 0.568] | 5 |" in table
    assert "| joint | 25 | 0.484 [0.457, 0.512] | 0.621 [0.574, 0.669] | 5 |" in table
