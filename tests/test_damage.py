"""What a failed write or a flipped bit leaves is said, mended or refused: nothing stale or damaged goes on as sound."""

import json

import pytest
import torch
from safetensors.torch import save_file

from leap_rl.cli import main
from leap_rl.export.export import export_run
from leap_rl.files.storage import LocalStorage
from leap_rl.files.tensor_files import dump_tensors, load_tensors
from leap_rl.meta.ledger import Ledger
from leap_rl.runs.inspection import describe, is_finished
from leap_rl.runs.run import RunDirectory, open_run
from leap_rl.runs.run_files import INITIALIZATION, Progress, fingerprint, parse_initialization, read_initialization
from leap_rl.runs.task_store import SavedTask, TaskStore
from leap_rl.types import BadInputError, PathSums, StorageError, Task, TaskReport
from tests.cli_helpers import make_checkpoint, make_config, make_run

STEPS = {"meta.steps": 2}


def read(folder):
    return read_initialization(folder / INITIALIZATION)[0]


def train_again(folder, capsys):
    """The same command on a run that has all its meta-steps."""
    assert main(["train", str(folder / "config.yaml"), "--json"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


# What follows the last commit


def test_a_write_that_failed_after_the_last_commit_is_made_good_by_the_same_command(tmp_path, capsys, monkeypatch):
    config = make_config(tmp_path, STEPS)
    write = LocalStorage.write

    def fail(self, name, data):
        if name == INITIALIZATION and b'"meta_step":"2"' in data:
            raise StorageError("run.dir: Input/output error")
        write(self, name, data)

    with monkeypatch.context() as patch, open_run(config) as run:
        patch.setattr(LocalStorage, "write", fail)
        run.commit(make_checkpoint(0), Progress(0))
        with pytest.raises(StorageError):
            run.commit(make_checkpoint(2), Progress(2))
    assert fingerprint(read(tmp_path / "run")) == fingerprint(make_checkpoint(0).initialization), "stale"
    shown, said = train_again(tmp_path, capsys)
    assert shown["fingerprint"] == fingerprint(read(tmp_path / "run")) == fingerprint(make_checkpoint(2).initialization)
    assert shown["finished"]
    assert "is written again" in said
    assert "written again" not in train_again(tmp_path, capsys)[1], "once"


def missing(run):
    (run / INITIALIZATION).unlink()


def damaged(run):
    data = (run / INITIALIZATION).read_bytes()
    (run / INITIALIZATION).write_bytes(flipped(data, 8 * len(data) - 20))


def another(run):
    """Of the same meta-step, and other bits."""
    data = dump_tensors({"encoder.weight": torch.ones(2, 3)}, {"format": "leap_rl initialization", "meta_step": "2"})
    (run / INITIALIZATION).write_bytes(data)


@pytest.mark.parametrize("harm", [missing, damaged, another])
def test_the_same_command_mends_the_initialization(tmp_path, capsys, harm):
    run = make_run(tmp_path, changes=STEPS)
    harm(run)
    if harm is damaged:
        with pytest.raises(
            BadInputError, match=r"is damaged: its checksum .* the same `leap-rl train` command repairs it"
        ):
            describe(run)
    else:
        assert describe(run)["fingerprint"] != fingerprint(make_checkpoint(2).initialization)
    shown, _ = train_again(tmp_path, capsys)
    assert shown["fingerprint"] == fingerprint(read(run)) == fingerprint(make_checkpoint(2).initialization)


def test_a_task_that_was_left_is_forgotten_by_the_same_command(tmp_path):
    run = make_run(tmp_path, changes=STEPS)
    (run / "tasks" / "000001-00").mkdir(parents=True)
    assert is_finished(make_config(tmp_path, STEPS))
    assert not list((run / "tasks").iterdir())


def test_a_finished_run_that_is_whole_is_left_as_it_is(tmp_path):
    run = make_run(tmp_path, changes=STEPS)
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    assert is_finished(make_config(tmp_path, STEPS))
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_what_is_stale_is_not_handed_on(tmp_path):
    run = make_run(tmp_path, last=1)
    older = (run / INITIALIZATION).read_bytes()
    make_run(tmp_path, last=2)
    (run / INITIALIZATION).write_bytes(older)
    with pytest.raises(
        BadInputError, match=r"is of meta-step 1, but the newest checkpoint is of meta-step 2; .* repairs it"
    ):
        export_run(str(run), "hub", str(tmp_path / "out"))
    (run / INITIALIZATION).unlink()
    with pytest.raises(BadInputError, match="is missing, but the newest checkpoint is of meta-step 2"):
        export_run(str(run), "hub", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# Flipped bits


def test_every_flipped_bit_of_an_initialization_is_refused(tmp_path):
    data = (make_run(tmp_path) / INITIALIZATION).read_bytes()
    parse_initialization(data, "file")
    for bit in range(8 * len(data)):
        with pytest.raises(BadInputError):
            parse_initialization(flipped(data, bit), "file")


@pytest.mark.parametrize("name", ["learner.safetensors", "state.json", "done"])
def test_a_flipped_bit_in_a_checkpoint_is_said_and_the_one_before_is_used(tmp_path, name):
    run = make_run(tmp_path, last=2)
    file = run / "checkpoints" / "000002" / name
    data = file.read_bytes()
    for bit in range(3, 8 * len(data), 41):
        file.write_bytes(flipped(data, bit))
        directory = RunDirectory(make_config(tmp_path), LocalStorage(str(run)))
        checkpoint, progress, [line] = directory.latest()
        assert checkpoint.meta_step == progress.meta_step == 1
        assert "000002: cannot be read, ignored" in line


def test_a_flipped_bit_in_a_saved_task_is_not_trained_on(tmp_path):
    storage, task = LocalStorage(str(tmp_path)), Task(1, 0, "pong", 7)
    report = TaskReport(task, 0, 0, PathSums(1.0, 2.0, 3, 1), True, {"agent_steps": 10.0}, {"agent_steps": 10.0})
    saved = SavedTask(Ledger(task, 1, 0, {"weight": torch.ones(3)}, [report]), {"x": torch.zeros(2)}, {})
    TaskStore(storage).save(saved)
    assert TaskStore(storage).load(task).ledger.reports == [report]
    [file] = (tmp_path / "tasks" / "000001-00").iterdir()
    data = file.read_bytes()
    for bit in range(0, 8 * len(data), 37):
        file.write_bytes(flipped(data, bit))
        assert TaskStore(storage).load(task) is None


def test_files_that_carry_no_checksum_are_read(tmp_path):
    """As an earlier version, or another program, wrote them."""
    run = make_run(tmp_path, last=1)
    learner = run / "checkpoints" / "000001" / "learner.safetensors"
    for file in (run / INITIALIZATION, learner):
        tensors, metadata = load_tensors(file.read_bytes(), file)
        save_file(tensors, file, metadata)
    (run / "checkpoints" / "000001" / "done").write_bytes(b"")
    assert fingerprint(read(run)) == fingerprint(make_checkpoint(1).initialization)
    checkpoint, _, ignored = RunDirectory(make_config(tmp_path), LocalStorage(str(run))).latest()
    assert (checkpoint.meta_step, ignored) == (1, [])
