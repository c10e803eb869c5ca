"""Initializations that come with leap_rl: found by name, evaluated and exported as a run's is."""

import json

import pytest
import torch

from leap_rl import pretrained
from leap_rl.config_files import parse_config
from leap_rl.evaluation.plan import make_plan
from leap_rl.runs.run_files import fingerprint
from leap_rl.types import BadInputError

SHORT = ("--games", "breakout:mode=20", "--seeds", "1", "--agent-steps", "320")


@pytest.mark.parametrize("name", pretrained.names())
def test_each_is_sound_and_says_what_it_is(name):
    folder = pretrained.folder(name)
    tensors, description = pretrained.load(name), json.loads((folder / "config.json").read_text())
    assert fingerprint(tensors) == description["fingerprint"]
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in tensors.values())
    assert f"`{description['fingerprint']}`" in (folder / "README.md").read_text()
    config = parse_config(description["run"], may_import=False)
    assert config.run.dir
    assert not any(part.startswith("/") for part in config.run.dir.split())  # no path of a machine


def test_the_variants_are_what_their_preset_trains():
    description = json.loads((pretrained.folder("variants") / "config.json").read_text())
    from leap_rl.config_files import load_config
    from leap_rl.presets import path_of

    preset = load_config(path_of("variants")).model_dump()
    for section in ("agent", "env", "tasks", "task"):
        assert description["run"][section] == preset[section], section
    theirs, ours = description["run"]["meta"], preset["meta"]
    assert (theirs.pop("rule"), theirs.pop("use_loss")) == ("reptile", True)
    assert (ours.pop("rule"), ours.pop("use_loss")) == ("leap", False)  # the same to the last bit
    assert theirs == ours


def test_an_unknown_name_is_one_line_with_the_nearest(run_main):
    with pytest.raises(BadInputError, match=r"^pretrained:variant: unknown; did you mean pretrained:variants\? "):
        pretrained.folder("pretrained:variant")
    for command in (("evaluate", "pretrained:zzz"), ("export", "pretrained:zzz", "--to", "torch")):
        code, _, stderr = run_main(*command)
        assert (code, stderr) == (2, "error: pretrained:zzz: unknown; there are pretrained:variants\n")


def test_a_plan_names_the_arm_and_the_folder_after_it():
    plan = make_plan(["pretrained:variants"], ["backend=serial"], ["breakout:mode=20"], 1, 320, None)
    assert plan.config.run.dir == "runs/variants-evaluation"
    assert [arm.name for arm in plan.arms] == ["random", "variants"]
    assert plan.arms[1].fresh_heads == ()
    others = make_plan(["pretrained:variants"], ["backend=serial"], ["pong"], 1, 320, None)
    assert others.arms[1].fresh_heads == ("pong",)


@pytest.mark.slow
def test_it_is_evaluated_and_exported_from_any_folder(tmp_path, monkeypatch, run_main):
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run_main("evaluate", "pretrained:variants", "backend=serial", *SHORT)
    assert code == 0, stderr
    assert (tmp_path / "runs" / "variants-evaluation" / "report.md").exists()
    code, stdout, stderr = run_main(
        "export", "pretrained:variants", "--to", "torch", "--game", "breakout", "--out", "torch", "--json"
    )
    assert code == 0, stderr
    assert json.loads(stdout)["largest_difference"] <= 1e-5
