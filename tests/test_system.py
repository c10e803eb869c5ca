"""Real games, real Ray clusters, real signals: whatever happens to a run, it ends in the same initialization."""

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from leap_rl.runs.run import describe
from leap_rl.runs.run_files import read_metrics
from tests.cli_helpers import TINY, cli, held, kill_workers, session, wait_for, write_config

pytestmark = pytest.mark.slow

# What wall time decides, and what a lost worker's repeated increments add to.
INCIDENTAL = {"seconds", "agent_steps_per_second", "worker_utilization", "attempt", "faults", "duplicate_increments",
              "stale_increments"}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A finished run, and what `train --json` said of it."""

    state: dict
    rows: list
    path: Path


def train(folder, *overrides):
    done = cli("train", write_config(folder), *overrides, "--json")
    assert done.returncode == 0, done.stderr
    path = folder / "run"
    return Result(json.loads(done.stdout), read_metrics(path), path)


def key_of(row):
    return (row["meta_step"], row.get("slot", -1), row.get("task_agent_steps", -1), row["kind"])


def comparable(rows):
    """Rows in one order, without what depends on time. A row that is there twice stays there twice."""
    rows = [row for row in rows if row["kind"] != "fault"]
    kept = [{name: value for name, value in row.items() if name not in INCIDENTAL} for row in rows]
    return sorted(kept, key=key_of)


def assert_same_run(result, undisturbed):
    assert result.state["fingerprint"] == undisturbed.state["fingerprint"]
    assert comparable(result.rows) == comparable(undisturbed.rows)


def in_mid_task(run, meta_step=1):
    """The meta-step has handed in something that is not committed, and a task of it is still under way."""
    kinds = [row["kind"] for row in read_metrics(run) if row["meta_step"] == meta_step]
    return kinds and kinds.count("task") < TINY["meta.batch_size"]


def committed(run, meta_step=1):
    return (run / "checkpoints" / f"{meta_step:06d}" / "done").exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The serial run that every other run must equal."""
    return train(tmp_path_factory.mktemp("undisturbed"), "backend=serial")


# Same bits wherever it runs


def test_train_json_is_one_object_that_agrees_with_show(undisturbed):
    shown = json.loads(cli("show", undisturbed.path, "--json").stdout)
    assert undisturbed.state == shown
    assert (shown["meta_step"], shown["finished"]) == (TINY["meta.steps"], True)
    assert len(shown["fingerprint"]) == len(shown["config_hash"]) == 64


def test_every_row_is_there_once(undisturbed):
    """The undisturbed run is the standard of the others, so its own rows are counted: 24 updates are 5 segments."""
    kinds = [row["kind"] for row in undisturbed.rows]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"meta_step": 3, "task": 9, "segment": 45}
    keys = [key_of(row) for row in undisturbed.rows]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("workers", [1, 2])
def test_ray_ends_in_the_fingerprint_of_serial(tmp_path, undisturbed, workers):
    result = train(tmp_path, "backend=ray", f"workers.count={workers}")
    assert_same_run(result, undisturbed)
    for row in result.rows:
        if row["kind"] == "meta_step":
            assert (row["duplicate_increments"], row["stale_increments"], row["faults"]) == (0, 0, 0)


def test_another_seed_ends_elsewhere(tmp_path, undisturbed):
    """Else the equalities here would say nothing."""
    result = train(tmp_path, "run.seed=8", "meta.steps=1")
    assert result.state["fingerprint"] != undisturbed.state["fingerprint"]
    first = [row["loss"] for row in undisturbed.rows if row["kind"] == "task" and row["meta_step"] == 0]
    assert [row["loss"] for row in result.rows if row["kind"] == "task"] != first


def test_a_finished_run_is_left_as_it_is(tmp_path, undisturbed):
    run = shutil.copytree(undisturbed.path, tmp_path / "run")
    before = sorted(run.rglob("*"))
    done = cli("train", write_config(tmp_path), "--json")
    assert done.returncode == 0
    assert "finished" in done.stderr
    assert json.loads(done.stdout)["fingerprint"] == undisturbed.state["fingerprint"]
    assert sorted(run.rglob("*")) == before
    assert read_metrics(run) == undisturbed.rows


# A driver that is killed


@pytest.mark.parametrize("moment", [committed, in_mid_task], ids=["between meta-steps", "in mid-task"])
def test_a_killed_driver_resumes_to_the_same_run(tmp_path, undisturbed, moment):
    run = tmp_path / "run"
    command = ["train", write_config(tmp_path), "backend=ray"]
    with held(tmp_path, *command, meta_step=1, step=7) as (driver, _):
        wait_for(lambda: moment(run), driver)
        driver.kill()  # only the driver; held() then clears away what Ray has left
        assert driver.wait() == -signal.SIGKILL
    assert committed(run, 1)
    assert not committed(run, TINY["meta.steps"])

    done = cli(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert "resuming at meta-step" in done.stderr
    assert_same_run(Result(json.loads(done.stdout), read_metrics(run), run), undisturbed)


@pytest.mark.parametrize("damage", ["unmarked", "truncated"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(tmp_path, undisturbed, damage):
    run = shutil.copytree(undisturbed.path, tmp_path / "run")
    newest = run / "checkpoints" / "000003"
    if damage == "unmarked":
        (newest / "done").unlink()
    else:
        os.truncate(newest / "learner.safetensors", 1000)
    done = cli("train", write_config(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    assert any("000003" in line and "ignored" in line for line in done.stderr.splitlines())
    assert "resuming at meta-step 3 of 3" in done.stderr
    assert_same_run(Result(json.loads(done.stdout), read_metrics(run), run), undisturbed)


# A worker that is killed


def test_a_killed_worker_is_replaced_and_the_run_is_the_same(tmp_path, undisturbed):
    run = tmp_path / "run"
    command = ["train", write_config(tmp_path), "backend=ray", "--json"]
    with held(tmp_path, *command, meta_step=1, step=7) as (driver, steps):
        wait_for(lambda: in_mid_task(run), driver)
        kill_workers(driver)
        steps.let_go()
        assert driver.wait(timeout=600) == 0, (tmp_path / "stderr").read_text()
    state = json.loads((tmp_path / "stdout").read_text())  # one object, whatever Ray has to say of its workers
    assert_same_run(Result(state, read_metrics(run), run), undisturbed)


# Ctrl-C, and the SIGTERM of schedulers and containers


@dataclass(frozen=True)
class Interruption:
    returncode: int
    stderr: str
    left: dict  # processes alive 20 s after the signal
    at: int  # the meta-step it resumed from
    resumed: Result


@pytest.fixture(
    scope="module",
    params=[("ray", signal.SIGINT), ("ray", signal.SIGTERM), ("serial", signal.SIGINT), ("serial", signal.SIGTERM)],
    ids=["ray, Ctrl-C", "ray, SIGTERM", "serial, Ctrl-C", "serial, SIGTERM"],
)
def interruption(request, tmp_path_factory):
    """A run that is interrupted in mid-task and then resumed serially."""
    backend, number = request.param
    folder = tmp_path_factory.mktemp("interrupted")
    run = folder / "run"
    command = ["train", write_config(folder), f"backend={backend}"]
    with held(folder, *command, meta_step=1, step=7) as (driver, _):
        wait_for(lambda: in_mid_task(run), driver)
        end = time.monotonic() + 20
        if number == signal.SIGINT:
            os.killpg(driver.pid, number)  # as a terminal does, to the whole foreground process group
        else:
            driver.send_signal(number)
        try:
            returncode = driver.wait(timeout=20)
        except subprocess.TimeoutExpired:
            returncode = None
            driver.send_signal(signal.SIGABRT)  # its stacks in stderr
        while (left := session(driver.pid)) and time.monotonic() < end:
            time.sleep(0.1)
    at = describe(run)["meta_step"]
    return Interruption(returncode, (folder / "stderr").read_text(), left, at, train(folder, "backend=serial"))


def test_an_interrupted_run_stops_within_20_seconds_with_exit_code_130(interruption):
    assert interruption.returncode == 130, interruption.stderr
    assert interruption.left == {}


def test_an_interrupted_run_says_so_in_one_line(interruption):
    *progress, last = interruption.stderr.splitlines()
    assert last.startswith("interrupted")
    assert "the same command" in last
    run = str(interruption.resumed.path)
    assert all(line.startswith((run, "meta-step ", "  ")) for line in progress)  # progress as ever, no traceback


def test_an_interrupted_run_resumes_to_the_same_run(interruption, undisturbed):
    assert interruption.at == 1
    assert_same_run(interruption.resumed, undisturbed)


def test_ctrl_c_while_ray_starts_leaves_no_process(tmp_path):
    with held(tmp_path, "train", write_config(tmp_path), "backend=ray", meta_step=0) as (driver, _):
        wait_for(lambda: any(title.startswith("ray::") for title in session(driver.pid).values()), driver)
        end = time.monotonic() + 20
        os.killpg(driver.pid, signal.SIGINT)
        assert driver.wait(timeout=20) == 130
        while (left := session(driver.pid)) and time.monotonic() < end:
            time.sleep(0.1)
        assert left == {}
    [*_, last] = (tmp_path / "stderr").read_text().splitlines()
    assert last.startswith("interrupted")


# TensorBoard, as it reads the event files of runs that were interrupted


def scalars(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}


META_TAGS = [
    "path_length", "energy", "meta_gradient_norm", "clipped_tasks", "initialization_drift", "agent_steps_per_second",
]  # fmt: skip


def test_tensorboard_has_each_meta_step_once(interruption):
    tags = scalars(interruption.resumed.path / "tensorboard" / "meta")
    rows = [row for row in interruption.resumed.rows if row["kind"] == "meta_step"]
    for name in META_TAGS:
        events = tags[f"meta/{name}"]
        assert [event.step for event in events] == [0, 1, 2]
        assert [event.value for event in events] == pytest.approx([row[name] for row in rows], rel=1e-6)
    limit = TINY["meta.max_task_norm"]
    assert [row["clipped_tasks"] for row in rows] == [sum(n > limit for n in row["task_norms"]) for row in rows]
    assert any(row["clipped_tasks"] for row in rows)
    games = {tag.rpartition("/")[2] for tag in tags if tag.startswith("task/meta_gradient_norm/")}
    assert games == {row["game"] for row in interruption.resumed.rows if row["kind"] == "task"}


def test_tensorboard_has_each_segment_of_each_game_once(interruption):
    run = interruption.resumed
    games = sorted(path.name for path in (run.path / "tensorboard").iterdir() if path.name != "meta")
    assert games == sorted({row["game"] for row in run.rows if row["kind"] == "task"})
    for game in games:
        tags = scalars(run.path / "tensorboard" / game)
        segments = [row for row in run.rows if row["kind"] == "segment" and row["game"] == game]
        segments.sort(key=key_of)
        # One behind the other: a game's tasks of several meta-steps share an axis.
        steps = [row["meta_step"] * TINY["task.agent_steps"] + row["task_agent_steps"] for row in segments]
        for name in ("loss", "entropy", "episodic_return"):
            wanted = [(step, row[name]) for step, row in zip(steps, segments, strict=True) if row[name] is not None]
            assert wanted
            events = tags[f"game/{name}"]
            assert [event.step for event in events] == [step for step, _ in wanted], (game, name)
            assert [event.value for event in events] == pytest.approx([value for _, value in wanted], rel=1e-6)
