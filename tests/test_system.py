"""Real games, real Ray clusters, real signals: whatever happens to a run, it ends in the same initialization."""

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from leap_rl.runs.inspection import describe
from leap_rl.runs.run_files import read_metrics
from tests.cli_helpers import TINY, cli, held, here, session, wait_for, write_config
from tests.results import Result, assert_same_run, in_mid_task, key_of, read_result, train

pytestmark = pytest.mark.slow


# Same bits wherever it runs


def test_train_json_is_one_object_that_agrees_with_show(tiny_run):
    shown = json.loads(cli("show", tiny_run.path, "--json").stdout)
    assert tiny_run.state == shown
    assert (shown["meta_step"], shown["finished"]) == (TINY["meta.steps"], True)
    assert len(shown["fingerprint"]) == len(shown["config_hash"]) == 64


def test_every_row_is_there_once(tiny_run):
    """This run is the standard of the others, so its own rows are counted: 24 updates are 5 segments."""
    kinds = [row["kind"] for row in tiny_run.rows]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"meta_step": 3, "task": 9, "segment": 45}
    keys = [key_of(row) for row in tiny_run.rows]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("workers", [1, 2])
def test_ray_ends_in_the_fingerprint_of_serial(tmp_path, tiny_run, workers):
    result = train(tmp_path, "backend=ray", f"workers.count={workers}")
    assert_same_run(result, tiny_run)
    for row in result.rows:
        if row["kind"] == "meta_step":
            assert (row["duplicate_increments"], row["stale_increments"], row["faults"]) == (0, 0, 0)


def test_another_seed_ends_elsewhere(tmp_path, tiny_run):
    """Else the equalities here would say nothing."""
    result = train(tmp_path, "run.seed=8", "meta.steps=1")
    assert result.state["fingerprint"] != tiny_run.state["fingerprint"]
    first = [row["loss"] for row in tiny_run.rows if row["kind"] == "task" and row["meta_step"] == 0]
    assert [row["loss"] for row in result.rows if row["kind"] == "task"] != first


def test_a_finished_run_is_left_as_it_is(tmp_path, tiny_run):
    run = shutil.copytree(tiny_run.path, tmp_path / "run")
    before = sorted(run.rglob("*"))
    done = here("train", write_config(tmp_path), "--json")
    assert done.returncode == 0
    assert "finished" in done.stderr
    assert json.loads(done.stdout)["fingerprint"] == tiny_run.state["fingerprint"]
    assert sorted(run.rglob("*")) == before
    assert read_metrics(run) == tiny_run.rows


# A checkpoint that is damaged


@pytest.mark.parametrize("damage", ["unmarked", "truncated"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(tmp_path, tiny_run, damage):
    run = shutil.copytree(tiny_run.path, tmp_path / "run")
    newest = run / "checkpoints" / "000003"
    if damage == "unmarked":
        (newest / "done").unlink()
    else:
        os.truncate(newest / "learner.safetensors", 1000)
    done = here("train", write_config(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    assert any("000003" in line and "ignored" in line for line in done.stderr.splitlines())
    assert "resuming at meta-step 3 of 3" in done.stderr
    assert_same_run(read_result(tmp_path, done.stdout), tiny_run)


# Ctrl-C, and the SIGTERM of schedulers and containers


@dataclass(frozen=True)
class Interruption:
    returncode: int
    stderr: str
    left: dict  # processes alive 20 s after the signal
    at: int  # the meta-step that the run goes on from


@dataclass(frozen=True)
class Interrupted:
    """A run that was interrupted in mid-task, in one meta-step on Ray and in the next one serially; then resumed."""

    interruptions: list[Interruption]
    resumed: Result


def interrupt(folder, backend, number, meta_step):
    run = folder / "run"
    command = ["train", write_config(folder), f"backend={backend}"]
    with held(folder, *command, meta_step=meta_step, step=7) as (driver, _):
        wait_for(lambda: in_mid_task(run, meta_step), driver)
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
    return Interruption(returncode, (folder / "stderr").read_text(), left, describe(run)["meta_step"])


@pytest.fixture(
    scope="module",
    params=[(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)],
    ids=["Ctrl-C on Ray, SIGTERM serially", "SIGTERM on Ray, Ctrl-C serially"],
)
def interrupted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    on_ray, serially = request.param
    interruptions = [interrupt(folder, "ray", on_ray, 1), interrupt(folder, "serial", serially, 2)]
    return Interrupted(interruptions, train(folder, "backend=serial"))


def test_an_interrupted_run_stops_within_20_seconds_with_exit_code_130(interrupted):
    for interruption in interrupted.interruptions:
        assert interruption.returncode == 130, interruption.stderr
        assert interruption.left == {}


def test_an_interrupted_run_says_so_in_one_line(interrupted):
    for interruption in interrupted.interruptions:
        *progress, last = interruption.stderr.splitlines()
        assert last.startswith("interrupted")
        assert "the same command" in last
        run = str(interrupted.resumed.path)
        assert all(line.startswith((run, "meta-step ", "  ")) for line in progress)  # progress as ever, no traceback


def test_an_interrupted_run_resumes_to_the_same_run(interrupted, tiny_run):
    assert [interruption.at for interruption in interrupted.interruptions] == [1, 2]
    assert_same_run(interrupted.resumed, tiny_run)


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
    "path_length", "energy", "meta_gradient_norm", "clipped_tasks", "initialization_drift", "seconds",
]  # fmt: skip


def test_tensorboard_has_each_meta_step_once(interrupted):
    tags = scalars(interrupted.resumed.path / "tensorboard" / "meta")
    rows = [row for row in interrupted.resumed.rows if row["kind"] == "meta_step"]
    for name in META_TAGS:
        events = tags[f"meta/{name}"]
        assert [event.step for event in events] == [0, 1, 2]
        assert [event.value for event in events] == pytest.approx([row[name] for row in rows], rel=1e-6)
    speeds = [row["agent_steps_per_second"] for row in rows]
    assert None in speeds, "a meta-step that two sessions have trained has no speed"
    assert [event.step for event in tags["meta/agent_steps_per_second"]] == [n for n in range(3) if speeds[n]]
    limit = TINY["meta.max_task_norm"]
    assert [row["clipped_tasks"] for row in rows] == [sum(n > limit for n in row["task_norms"]) for row in rows]
    assert any(row["clipped_tasks"] for row in rows)
    games = {tag.rpartition("/")[2] for tag in tags if tag.startswith("task/meta_gradient_norm/")}
    assert games == {row["game"] for row in interrupted.resumed.rows if row["kind"] == "task"}


def test_tensorboard_has_each_segment_of_each_game_once(interrupted):
    run = interrupted.resumed
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
