"""A run that goes on in another place, under other versions, or further than it was meant to."""

import json
import shutil

import pytest
import yaml

from leap_rl.files.storage import LocalStorage
from leap_rl.files.tensor_files import dump_tensors, load_tensors
from leap_rl.processes.classification.data import load_family
from leap_rl.runs import run, run_files
from leap_rl.runs.inspection import describe
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import Progress, package_versions, read_config
from tests.alphabets import tiny_tree, write_zip
from tests.cli_helpers import make_checkpoint, make_config, make_run


@pytest.fixture(autouse=True)
def _new_process():
    """Drawings are read again, as another process would."""
    load_family.cache_clear()


def write_tree(folder, source, **changes):
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_tree(source, folder / "run", **changes)))
    return file


@pytest.fixture
def trained(tmp_path, run_main):
    """A run of one meta-step on alphabets, which is finished; and the file that made it."""
    file = write_tree(tmp_path, write_zip(tmp_path / "omniglot.zip"), **{"meta.steps": 1})
    code, _, stderr = run_main("train", file)
    assert code == 0, stderr
    return tmp_path / "run", file


# Other versions


def test_other_versions_are_said_once_and_both_are_kept(tmp_path, trained, run_main, monkeypatch):
    folder, file = trained
    first = package_versions()
    second = first | {"torch": "99.0", "ale-py": "0.1"}
    for module in (run, run_files):
        monkeypatch.setattr(module, "package_versions", lambda: second)
    code, _, stderr = run_main("train", file, "meta.steps=2")
    assert code == 0, stderr
    line = f"continues under other versions: torch {first['torch']} → 99.0, ale-py {first['ale-py']} → 0.1"
    assert stderr.count(line) == 1
    known = json.loads((folder / "versions.json").read_text())
    assert known == [{"meta_step": 0, "versions": first}, {"meta_step": 1, "versions": second}]
    assert describe(folder)["versions"]["torch"] == "99.0"
    code, _, stderr = run_main("train", file, "meta.steps=3")
    assert "other versions" not in stderr


def test_a_run_from_before_versions_were_written_down_has_them_in_its_initialization(trained, run_main, monkeypatch):
    run, file = trained
    first = package_versions()
    (run / "versions.json").unlink()
    monkeypatch.setattr(run_files, "package_versions", lambda: first | {"leap-rl": "99.0"})
    _, _, stderr = run_main("train", file, "meta.steps=2")
    assert f"leap-rl {first['leap-rl']} → 99.0" in stderr
    assert json.loads((run / "versions.json").read_text())[0] == {"meta_step": 0, "versions": first}


def test_a_checkpoint_of_a_newer_format_is_refused_and_nothing_is_overwritten(trained, run_main):
    run, file = trained
    learner = run / "checkpoints" / "000001" / "learner.safetensors"
    tensors, _ = load_tensors(learner.read_bytes(), learner)
    learner.write_bytes(dump_tensors(tensors, {"format_version": "3"}))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for arguments in (("train", file), ("train", file, "meta.steps=2"), ("show", run)):
        code, _, stderr = run_main(*arguments)
        assert code == 2
        assert "learner.safetensors: is of format 3, which a later leap-rl reads" in stderr
        assert stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before


# Moved runs


@pytest.mark.parametrize("name", ["config.yaml", ""])
def test_a_run_that_was_moved_goes_on_where_it_is(tmp_path, trained, run_main, name):
    old, _ = trained
    new = tmp_path / "new place" / "010"
    new.parent.mkdir()
    old.rename(new)
    code, stdout, stderr = run_main("train", new / name, "meta.steps=2", "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["run"] == str(new)
    assert json.loads(stdout)["meta_step"] == 2
    assert not old.exists()


def test_a_copy_goes_on_by_itself_and_a_given_directory_wins(tmp_path, trained, run_main):
    run, _ = trained
    shutil.copytree(run, tmp_path / "copy")
    assert run_main("train", tmp_path / "copy", "meta.steps=2")[0] == 0
    assert describe(run)["meta_step"] == 1
    assert describe(tmp_path / "copy")["meta_step"] == 2
    assert run_main("train", run, f"run.dir={tmp_path / 'third'}")[0] == 0
    assert describe(tmp_path / "third")["fingerprint"] == describe(run)["fingerprint"]


def test_directories_that_hold_no_run_are_one_line(tmp_path, trained, run_main):
    run, _ = trained
    for given in (tmp_path, tmp_path / "run" / "checkpoints"):
        code, _, stderr = run_main("train", given)
        assert (code, stderr.count("\n")) == (2, 1)
        assert "not a run directory" in stderr
    evaluate = ("evaluate", run, "backend=serial", f"alphabets.source={tmp_path / 'omniglot.zip'}", "--seeds", "1")
    assert run_main(*evaluate)[0] == 0
    evaluation = tmp_path / "run-evaluation"
    for given in (evaluation, evaluation / "config.yaml"):
        code, _, stderr = run_main("train", given)
        assert code == 2
        assert "holds an evaluation" in stderr
    assert run_main(*evaluate)[0] == 0, "and the evaluation goes on"


def test_a_file_that_happens_to_be_called_config_yaml_is_a_file(tmp_path, run_main):
    config = make_config(tmp_path)  # tmp_path/config.yaml, beside no run
    code, _, stderr = run_main("train", tmp_path / "config.yaml", "meta.steps=none")
    assert code == 2
    assert "meta.steps" in stderr
    assert not (tmp_path / "run").exists()
    assert config.run.dir == str(tmp_path / "run")


def test_a_directory_whose_name_looks_like_a_variable_is_moved_evaluated_and_exported(
    tmp_path, trained, run_main, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    name = "$NOT_SET_ANYWHERE"
    (tmp_path / "run").rename(name)
    assert run_main("train", name, "meta.steps=2")[0] == 0  # and now its config.yaml names it so
    (tmp_path / "new").mkdir()
    (tmp_path / name).rename(tmp_path / "new" / name)
    moved = f"new/{name}"
    assert run_main("train", moved, "meta.steps=3")[0] == 0
    assert run_main("export", moved, "--to", "hub")[0] == 0
    evaluate = ("evaluate", moved, "backend=serial", "alphabets.source=omniglot.zip", "--seeds", "1")
    code, _, stderr = run_main(*evaluate)
    assert code == 0, stderr
    assert (tmp_path / f"{moved}-evaluation" / "report.md").exists()


def test_the_current_directory_is_a_run_s_too(tmp_path, trained, run_main, monkeypatch):
    monkeypatch.chdir(tmp_path / "run")
    for given in (".", "./", "config.yaml"):
        assert run_main("train", given)[0] == 0
    assert run_main("export", ".", "--to", "hub")[0] == 0
    assert (tmp_path / "run-hub").is_dir()


# Moved data


def test_drawings_may_lie_elsewhere_if_they_are_the_same(tmp_path, trained, run_main, monkeypatch):
    run, file = trained
    (tmp_path / "other").mkdir()
    (tmp_path / "omniglot.zip").rename(tmp_path / "other" / "moved.zip")
    load_family.cache_clear()
    code, _, stderr = run_main("train", run, "meta.steps=2")
    assert code == 2
    assert "omniglot.zip" in stderr
    monkeypatch.chdir(tmp_path / "other")
    there = f"alphabets.source={tmp_path / 'other' / 'moved.zip'}"
    for source in (there, "alphabets.source=moved.zip"):
        code, _, stderr = run_main("train", file, "meta.steps=2", source)
        assert code == 0, stderr
    code, _, stderr = run_main("evaluate", run, "backend=serial", there, "--seeds", "1")
    assert code == 0, stderr
    code, _, stderr = run_main("evaluate", run, "backend=serial", "alphabets.source=moved.zip", "--seeds", "1")
    assert code == 0, stderr


def test_other_drawings_are_still_refused(tmp_path, trained, run_main):
    from tests.alphabets import drawings

    run, _ = trained
    files = drawings()
    names = sorted(files)
    files[names[0]] = files[names[1]]
    other = write_zip(tmp_path / "other.zip", files)
    for arguments in (("train", run, "meta.steps=2"), ("evaluate", run)):
        code, _, stderr = run_main(*arguments, f"alphabets.source={other}")
        assert code == 2
        assert "alphabets.checksum" in stderr


def test_a_relative_source_is_kept_as_a_whole_path(tmp_path, run_main, monkeypatch):
    write_zip(tmp_path / "omniglot.zip")
    monkeypatch.chdir(tmp_path)
    assert run_main("train", write_tree(tmp_path, "omniglot.zip", **{"meta.steps": 1}))[0] == 0
    monkeypatch.chdir("/")
    assert read_config(LocalStorage(str(tmp_path / "run"))).alphabets.source == str(tmp_path / "omniglot.zip")
    code, _, stderr = run_main("train", tmp_path / "run", "meta.steps=2")
    assert code == 0, stderr


# Extensions


def test_more_meta_steps_end_where_a_run_of_so_many_ends(tmp_path, trained, run_main):
    run, file = trained
    code, _, stderr = run_main("train", file, "meta.steps=3")
    assert code == 0, stderr
    assert "extended: meta.steps (1 → 3)" in stderr
    whole = tmp_path / "whole"
    assert run_main("train", file, "meta.steps=3", f"run.dir={whole}")[0] == 0
    assert describe(run)["fingerprint"] == describe(whole)["fingerprint"]
    assert describe(run)["config_hash"] == describe(whole)["config_hash"]
    code, _, stderr = run_main("train", file, "meta.steps=2")
    assert code == 2, "fewer are another run"


def test_other_held_out_games_are_taken_over_and_said(tmp_path, run_main):
    run = make_run(tmp_path, last=3)
    file = tmp_path / "config.yaml"
    code, _, stderr = run_main("train", file, "tasks.held_out=[breakout]")
    assert code == 0, stderr
    assert "extended: tasks.held_out (none → breakout)" in stderr
    assert read_config(LocalStorage(str(run))).tasks.held_out == ["breakout"]
    _, _, stderr = run_main("train", file, "tasks.held_out=[breakout]")
    assert "extended" not in stderr
    code, _, stderr = run_main("train", file, "tasks.held_out=[breakout]", "tasks.validation=[alien]")
    assert (code, stderr.count("extended: tasks.validation (none → alien)")) == (0, 1)


@pytest.mark.parametrize("changes", [{"meta.lr_decay": "linear"}, {}])
def test_what_decides_a_rate_or_a_task_is_refused(tmp_path, run_main, changes):
    make_run(tmp_path, changes=changes)
    override = "meta.steps=9" if changes else "tasks.games=[pong, asterix, space_invaders, breakout]"
    code, _, stderr = run_main("train", tmp_path / "config.yaml", override)
    assert code == 2
    assert "holds a run of another configuration" in stderr
    assert ("decides every rate" in stderr) == bool(changes)


def test_an_extension_of_an_unfinished_run_keeps_what_is_done(tmp_path):
    run = make_run(tmp_path)
    longer = make_config(tmp_path, {"meta.steps": 9, "run.dir": str(run)})
    with open_run(longer) as opened:
        assert opened.latest()[0].meta_step == 2
        assert opened.notes == [f"{run}: extended: meta.steps (3 → 9)"]
        opened.commit(make_checkpoint(3), Progress(3))
    assert read_config(LocalStorage(str(run))).meta.steps == 9


# A run's own configuration


def test_a_run_s_own_configuration_is_read_as_the_user_s_is(tmp_path):
    run = make_run(tmp_path)
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("lr: 0.0001", "lr: 1e-4"))
    assert "lr: 1e-4" in file.read_text()
    assert read_config(LocalStorage(str(run))).agent.lr == 1e-4
