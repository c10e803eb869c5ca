"""The run directory: what is committed comes back, what is not does not exist, and nothing foreign is touched."""

import dataclasses
import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from leap_rl.config import config_hash
from leap_rl.runs.inspection import describe
from leap_rl.runs.run import RunDirectory, open_run
from leap_rl.runs.run_files import Progress, fingerprint, package_versions, read_initialization, read_metrics
from leap_rl.types import BadInputError
from tests.cli_helpers import environment, make_checkpoint, make_config, make_run, truncate, write_config


def latest(folder, changes=None):
    with open_run(make_config(folder, changes)) as run:
        return run.latest()


def assert_same(ours, expected):
    assert ours.meta_step == expected.meta_step
    for mine, theirs in ((ours.initialization, expected.initialization), (ours.optimizer, expected.optimizer)):
        assert fingerprint(mine) == fingerprint(theirs)


def assert_refused(config, *fragments):
    with pytest.raises(BadInputError) as refusal:
        RunDirectory.open(config)
    message = str(refusal.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


# Checkpoints


def test_a_new_run_has_no_checkpoint(tmp_path):
    assert latest(tmp_path) == (None, Progress(), [])


def test_the_newest_checkpoint_comes_back_to_the_bit_with_the_optimizer(tmp_path):
    make_run(tmp_path, last=2)
    checkpoint, progress, ignored = latest(tmp_path)
    assert_same(checkpoint, make_checkpoint(2))
    assert set(checkpoint.optimizer) == {"encoder.weight|momentum_buffer", "encoder.bias|momentum_buffer"}
    assert progress == Progress(2, 1920, 7680, 1.5)
    assert ignored == []


def test_scalar_optimizer_entries_come_back(tmp_path):
    """Adam counts its steps in a tensor without dimensions."""
    checkpoint = make_checkpoint(1)
    checkpoint.optimizer["encoder.bias|step"] = torch.tensor(1.0)
    with open_run(make_config(tmp_path)) as run:
        run.commit(checkpoint, Progress(1))
        assert_same(run.latest()[0], checkpoint)


@pytest.mark.parametrize(("keep", "names"), [(1, ["000004"]), (3, ["000002", "000003", "000004"])])
def test_the_newest_checkpoints_are_kept(tmp_path, keep, names):
    run = make_run(tmp_path, last=4, changes={"run.keep_checkpoints": keep})
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names


def test_a_checkpoint_without_its_mark_is_passed_over_and_said(tmp_path):
    run = make_run(tmp_path, last=2)
    (run / "checkpoints" / "000002" / "done").unlink()
    checkpoint, progress, ignored = latest(tmp_path)
    assert_same(checkpoint, make_checkpoint(1))
    assert progress.meta_step == 1
    [line] = ignored
    assert "000002" in line
    assert "ignored" in line


def test_a_half_written_checkpoint_is_passed_over_said_and_then_overwritten(tmp_path):
    run = make_run(tmp_path, last=1)
    half = run / "checkpoints" / "000002"
    half.mkdir()
    (half / ".learner.safetensors.1.tmp").write_bytes(b"half")
    checkpoint, _, [line] = latest(tmp_path)
    assert checkpoint.meta_step == 1
    assert "000002" in line
    make_run(tmp_path, last=2)
    assert_same(latest(tmp_path)[0], make_checkpoint(2))
    assert sorted(path.name for path in half.iterdir()) == ["done", "learner.safetensors", "state.json"]


def test_what_a_killed_write_left_is_swept_away(tmp_path):
    run = make_run(tmp_path)
    (run / ".initialization.safetensors.1.tmp").write_bytes(b"half")
    latest(tmp_path)
    assert not list(run.glob(".*.tmp"))


def test_what_a_killed_worker_left_is_gone_when_the_run_ends(tmp_path):
    run = make_run(tmp_path)
    with open_run(make_config(tmp_path)):
        task = run / "tasks" / "000001-00"
        task.mkdir(parents=True)
        (task / ".000009.safetensors.9335.tmp").write_bytes(b"half")
    assert not list(run.rglob(".*.tmp"))


@pytest.mark.parametrize("file", ["learner.safetensors", "state.json"])
def test_a_damaged_file_in_a_marked_checkpoint_is_passed_over_and_said(tmp_path, file):
    run = make_run(tmp_path, last=2)
    truncate(run / "checkpoints" / "000002" / file)
    checkpoint, _, ignored = latest(tmp_path)
    assert_same(checkpoint, make_checkpoint(1))
    [line] = ignored
    assert "000002" in line
    assert "\n" not in line


def test_a_run_whose_checkpoints_are_all_damaged_starts_again(tmp_path):
    run = make_run(tmp_path, last=2)
    for path in (run / "checkpoints").iterdir():
        truncate(path / "learner.safetensors")
    checkpoint, progress, ignored = latest(tmp_path)
    assert (checkpoint, progress) == (None, Progress())
    assert len(ignored) == 3


def test_a_new_checkpoint_is_kept_although_damaged_newer_ones_lie_there(tmp_path):
    """A run that starts again below a damaged checkpoint must not drop what it has just committed."""
    keep = {"run.keep_checkpoints": 1}
    run = make_run(tmp_path, last=2, changes=keep)
    truncate(run / "checkpoints" / "000002" / "learner.safetensors")
    make_run(tmp_path, last=0, changes=keep)
    assert_same(latest(tmp_path, keep)[0], make_checkpoint(0))


# initialization.safetensors


def test_the_initialization_is_the_newest_and_says_where_it_is_from(tmp_path):
    run = make_run(tmp_path, last=2)
    tensors, metadata = read_initialization(run / "initialization.safetensors")
    assert fingerprint(tensors) == fingerprint(make_checkpoint(2).initialization)
    assert metadata["meta_step"] == "2"
    assert metadata["config_hash"] == config_hash(make_config(tmp_path))
    for name, version in package_versions().items():
        assert metadata[f"version.{name}"] == version
    with safe_open(run / "initialization.safetensors", "pt") as handle:  # any safetensors reader can use it
        assert set(handle.keys()) == {"encoder.weight", "encoder.bias"}


def test_a_truncated_initialization_is_refused(tmp_path):
    file = make_run(tmp_path) / "initialization.safetensors"
    truncate(file)
    with pytest.raises(BadInputError, match=r"initialization.safetensors: not a whole safetensors file") as refusal:
        read_initialization(file)
    assert "\n" not in str(refusal.value)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    file = tmp_path / "initialization.safetensors"
    save_file({"encoder.weight": torch.zeros(2, 3)}, file)
    with pytest.raises(BadInputError, match="not an initialization of this project") as refusal:
        read_initialization(file)
    assert "\n" not in str(refusal.value)


def test_publishing_mends_a_damaged_initialization(tmp_path):
    """What a resume does: the checkpoints decide, initialization.safetensors follows."""
    file = make_run(tmp_path) / "initialization.safetensors"
    truncate(file)
    with open_run(make_config(tmp_path)) as run:
        run.publish(run.latest()[0])
    assert fingerprint(read_initialization(file)[0]) == fingerprint(make_checkpoint(2).initialization)


def test_describe_says_what_was_passed_over(tmp_path):
    run = make_run(tmp_path, last=2)
    (run / "checkpoints" / "000003").mkdir()
    state = describe(run)
    assert (state["meta_step"], state["meta_steps"], state["finished"]) == (2, 3, False)
    assert state["fingerprint"] == fingerprint(make_checkpoint(2).initialization)
    assert state["config_hash"] == config_hash(make_config(tmp_path))
    assert ["000003" in line for line in state["ignored"]] == [True]
    assert json.loads(json.dumps(state)) == state


def test_describe_is_where_a_resume_goes_on(tmp_path):
    """A crash between the mark of a checkpoint and initialization.safetensors leaves the two a meta-step apart."""
    run = make_run(tmp_path, last=1)
    older = (run / "initialization.safetensors").read_bytes()
    make_run(tmp_path, last=2)
    (run / "initialization.safetensors").write_bytes(older)
    state = describe(run)
    assert state["meta_step"] == latest(tmp_path)[0].meta_step == 2
    assert state["fingerprint"] == fingerprint(make_checkpoint(1).initialization), "of the bytes that are there"
    assert not state["finished"]
    assert "is of meta-step 1, but the newest checkpoint is of meta-step 2" in state["ignored"][0]


# The fingerprint


def test_the_fingerprint_is_the_documented_sha_256():
    tensors = {"b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "a": torch.tensor(-0.5)}
    bytes_ = b"a\0float32\0\0" + struct.pack("<f", -0.5) + b"b\0float32\x002x2\0" + struct.pack("<4f", 1, 2, 3, 4)
    assert fingerprint(tensors) == hashlib.sha256(bytes_).hexdigest()
    # Written down as well, so that fingerprints on record stay comparable.
    assert fingerprint(tensors) == "e8a53dbc98b4a30bb9de1fa79daed1d34246e0710d8be9acf67f39ec6cfca9ef"


def test_the_fingerprint_does_not_depend_on_order_or_memory_layout():
    a, b = torch.tensor([1.0, 2.0]), torch.arange(6.0).reshape(2, 3)
    column_major = b.t().contiguous().t()
    assert not column_major.is_contiguous()
    assert fingerprint({"a": a, "b": b}) == fingerprint({"b": column_major, "a": a})


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"weights": torch.zeros(2, 3)}, id="name"),
        pytest.param({"weight": torch.zeros(3, 2)}, id="shape"),
        pytest.param({"weight": torch.zeros(2, 3, dtype=torch.int32)}, id="dtype"),
        pytest.param({"weight": torch.tensor([[0.0, 0, 0], [0, 0, 1e-45]])}, id="value"),
        pytest.param({"weight": -torch.zeros(2, 3)}, id="sign of zero"),
        pytest.param({"weight": torch.zeros(2, 3), "bias": torch.zeros(0)}, id="one tensor more"),
    ],
)
def test_the_fingerprint_tells_apart(other):
    assert fingerprint({"weight": torch.zeros(2, 3)}) != fingerprint(other)


# metrics.jsonl


def row(meta_step, slot=0):
    return {"kind": "task", "meta_step": meta_step, "slot": slot, "episodic_return": None}


def test_rows_of_meta_steps_that_were_not_committed_are_dropped(tmp_path):
    with open_run(make_config(tmp_path)) as run:
        run.append_metrics([row(0, 0), row(0, 1)])
        run.append_metrics([row(1), row(2)])
        run.forget_metrics(make_checkpoint(1))
        assert read_metrics(run.url) == [row(0, 0), row(0, 1)]
        run.append_metrics([row(1)])
        assert read_metrics(run.url) == [row(0, 0), row(0, 1), row(1)]


def test_rows_of_tasks_that_were_averaged_before_their_meta_step_are_kept(tmp_path):
    """Asynchronous: a task of meta-step 1 was faster than one of meta-step 0."""
    changes = {"meta.schedule": "asynchronous", "meta.max_staleness": 1, "meta.steps": 9}
    checkpoint = dataclasses.replace(make_checkpoint(1), unfinished=((0, 2), (1, 0), (1, 2)))
    averaged = [row(0, 0), row(0, 1), row(1, 1)]
    with open_run(make_config(tmp_path, changes)) as run:
        run.append_metrics([*averaged, row(0, 2), row(1, 0), row(2, 1), row(3, 0)])
        run.forget_metrics(checkpoint)
        assert read_metrics(run.url) == averaged


def test_a_metrics_line_that_was_cut_off_is_left_out(tmp_path):
    with open_run(make_config(tmp_path)) as run:
        run.append_metrics([row(0), row(1)])
        file = Path(run.url) / "metrics.jsonl"
        file.write_bytes(file.read_bytes()[:-10])
        assert read_metrics(run.url) == [row(0)]
        run.forget_metrics(make_checkpoint(1))
        run.append_metrics([row(1)])
        assert [json.loads(line) for line in file.read_text().splitlines()] == [row(0), row(1)]


def test_a_run_without_metrics_has_no_rows(tmp_path):
    with open_run(make_config(tmp_path)) as run:
        run.forget_metrics(make_checkpoint(0))
        assert read_metrics(run.url) == []


# Opening a run


def test_the_stored_configuration_is_the_resolved_one(tmp_path):
    stored = yaml.safe_load((make_run(tmp_path) / "config.yaml").read_text())
    assert stored == make_config(tmp_path).model_dump()
    assert stored["agent"]["unroll"] == 5  # a default that the file did not name


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    make_run(tmp_path)
    assert describe(tmp_path / "run")["meta_step"] == 2


def test_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    assert_refused(make_config(tmp_path), "run.dir", "is a file")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    assert_refused(make_config(tmp_path, {"run.dir": str(tmp_path / "run" / "below")}), "run.dir", "is a file")


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    """Nobody can make a directory in /proc, not even root, who passes every check of permissions."""
    assert_refused(make_config(tmp_path, {"run.dir": "/proc/leap_rl_run"}), "run.dir = /proc/leap_rl_run", "writ")


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    assert_refused(make_config(tmp_path), "run.dir", "holds files but no run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_directory_with_a_foreign_config_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("theme: dark\n")
    assert_refused(make_config(tmp_path), "config.yaml", "not a run's configuration")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_another_configuration_is_refused_naming_the_keys_that_differ(tmp_path):
    make_run(tmp_path)
    with pytest.raises(BadInputError) as refusal:
        RunDirectory.open(make_config(tmp_path, {"meta.lr": 0.25, "env.frame_stack": 2, "workers.count": 3}))
    message = str(refusal.value)
    assert "meta.lr (0.1 there, 0.25 here)" in message
    assert "env.frame_stack (4 there, 2 here)" in message
    assert "workers" not in message
    assert "run.seed" not in message


def test_what_does_not_change_the_result_may_differ(tmp_path):
    make_run(tmp_path)
    free = {
        "backend": "ray",
        "workers.count": 7,
        "ray.address": "auto",
        "run.keep_checkpoints": 9,
        "log.segments": False,
    }
    checkpoint, _, _ = latest(tmp_path, free)
    assert checkpoint.meta_step == 2
    assert config_hash(make_config(tmp_path, free)) == config_hash(make_config(tmp_path))


def test_a_run_in_use_by_another_process_is_refused_until_it_ends(tmp_path):
    config = make_config(tmp_path)
    script = (
        "import sys\n"
        "from leap_rl.config_files import load_config\n"
        "from leap_rl.runs.run import RunDirectory\n"
        "run = RunDirectory.open(load_config(sys.argv[1]))\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(write_config(tmp_path))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout.readline() == "open\n"
        assert_refused(config, "run.dir", "another process")
        process.kill()
        process.wait()
    RunDirectory.open(config).close()  # the lock ends with its process, however that ended
