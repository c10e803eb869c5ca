"""Presets: the files of configs/, by name, from any folder."""

import json
from pathlib import Path

import pytest
import yaml

import leap_rl
from leap_rl.config_files import load_config
from leap_rl.presets import path_of, presets
from leap_rl.types import BadInputError

CONFIGS = Path(__file__).parents[1] / "configs"


def test_every_file_of_configs_is_a_preset_with_a_summary():
    assert [preset.name for preset in presets()] == sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    for preset in presets():
        assert preset.path.samefile(CONFIGS / f"{preset.name}.yaml")
        assert 10 < len(preset.summary) < 200
        assert preset.summary.endswith(".")


def test_a_preset_is_trained_by_its_name_from_any_folder(tmp_path, monkeypatch, run_main):
    monkeypatch.chdir(tmp_path)
    code, stdout, _ = run_main("resolve", "quickstart", "meta.steps=7", "--only", "meta.steps")
    assert (code, stdout) == (0, "7\n")
    assert load_config(path_of("quickstart")) == load_config(CONFIGS / "quickstart.yaml")


def test_what_is_printed_of_a_key_can_be_given_as_its_value(run_main):
    given = (
        "meta.lr=0.00001",
        "log.wandb=null",
        "log.segments=true",
        'tasks.held_out=["breakout:mode=4,difficulty=1"]',
    )
    for override in given:
        key = override.partition("=")[0]
        _, printed, _ = run_main("resolve", "quickstart", override, "--only", key)
        again, _ = run_main("resolve", "quickstart", f"{key}={printed.rstrip()}")[1:]
        assert again == run_main("resolve", "quickstart", override)[1] != "", override
    assert run_main("resolve", "quickstart", "--only", "workers.per_node")[1] == "null\n"


@pytest.mark.parametrize(
    ("name", "parts"), [("quikstart", ("did you mean quickstart?",)), ("zzz", ("no such file", "leap-rl presets"))]
)
def test_an_unknown_preset_is_one_line_with_the_nearest(tmp_path, monkeypatch, run_main, name, parts):
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run_main("train", name)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert all(part in stderr for part in parts)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_a_preset_and_a_file_is_refused_and_a_path_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("process: a2c\n")
    with pytest.raises(
        BadInputError, match=r"^quickstart: is a preset, and a file in this folder; write \./quickstart"
    ):
        path_of("quickstart")
    assert path_of("./quickstart") == "./quickstart"
    Path("mine").write_text("process: a2c\n")
    assert path_of("mine") == "mine"


def test_a_preset_is_copied_to_a_new_file_only(tmp_path, run_main):
    file = tmp_path / "my.yaml"
    assert run_main("train", "--copy", "quickstart", file)[0] == 0
    assert file.read_bytes() == (CONFIGS / "quickstart.yaml").read_bytes()
    file.write_text("mine")
    code, _, stderr = run_main("train", "--copy", "quickstart", file)
    assert (code, stderr) == (2, f"error: {file}: exists already; choose another file\n")
    assert file.read_text() == "mine"


def test_presets_are_listed_with_what_they_cost(run_main):
    code, stdout, _ = run_main("presets", "--json")
    found = {row["name"]: row for row in json.loads(stdout)}
    assert code == 0
    assert (found["quickstart"]["steps"], found["quickstart"]["unit"]) == (400_000, "agent steps")
    assert found["omniglot_paper"]["unit"] == "gradient steps"
    listed = run_main("presets")[1]
    assert all(name in listed for name in found)


def test_the_citation_names_this_version():
    assert yaml.safe_load((CONFIGS.parent / "CITATION.cff").read_text())["version"] == leap_rl.__version__
