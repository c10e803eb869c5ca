"""What goes wrong while a run goes on: tasks that fail, actors that hang or die, nodes that come and go."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from leap_rl.runs.run import describe
from leap_rl.runs.run_files import read_metrics
from tests.cli_helpers import (
    cli,
    environment,
    find_process,
    held,
    kill_session,
    session,
    start,
    wait_for,
    write_config,
)
from tests.gradient_steps import GradientSteps

pytestmark = pytest.mark.slow

# Put on PYTHONPATH: whatever interpreter imports the module gets one that misbehaves.
SABOTAGE = """
import importlib.abc, importlib.util, os, sys, time

class Saboteur(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "leap_rl.{module}":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def load_and_spoil(module):
            load(module)
            {spoil}
        spec.loader.exec_module = load_and_spoil
        return spec

def before(owner, name, action):
    method = getattr(owner, name)
    def spoiled(self, *arguments):
        action(self)
        return method(self, *arguments)
    setattr(owner, name, spoiled)

def do(self):
    {action}

sys.meta_path.insert(0, Saboteur())
"""
RAISES = 'raise OSError("joystick unplugged")'


def sabotage(folder, module, spoil, action="pass"):
    """Environment variables of a run in which ``spoil`` is done to a module. It may have ``do`` precede a method."""
    (folder / "saboteur").mkdir()
    (folder / "saboteur" / "sitecustomize.py").write_text(SABOTAGE.format(module=module, spoil=spoil, action=action))
    return {"PYTHONPATH": f"{folder / 'saboteur'}{os.pathsep}{Path(__file__).parent.parent}"}


def sabotage_a_task(folder, action):
    """A task of the second meta-step does ``action`` at its 8th update."""
    elsewhere = "if (self.task.round, self.task.slot, self.num_updates) != (1, 0, 7): return"
    spoil = 'before(module.A2CProcess, "update", do)'
    return sabotage(folder, "processes.a2c.process", spoil, f"{elsewhere}\n    {action}")


def once(folder, action):
    """``action``, but only the first time, in whichever process."""
    mark = folder / "done once"
    return f'if os.path.exists({str(mark)!r}): return\n    open({str(mark)!r}, "w")\n    {action}'


def rows_of(run, kind):
    return [row for row in read_metrics(run) if row["kind"] == kind]


def segments(run, meta_step):
    return [row for row in rows_of(run, "segment") if row["meta_step"] == meta_step]


def assert_each_segment_once(run):
    keys = [(row["meta_step"], row["slot"], row["sequence"]) for row in rows_of(run, "segment")]
    assert len(keys) == len(set(keys)) == 45


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The fingerprint of the serial run."""
    done = cli("train", write_config(tmp_path_factory.mktemp("undisturbed")), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["fingerprint"]


# Tasks that fail


@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_a_task_that_raises_once_is_tried_again_from_its_last_segment(tmp_path, undisturbed, backend):
    extra = sabotage_a_task(tmp_path, once(tmp_path, RAISES))
    done = cli("train", write_config(tmp_path), f"backend={backend}", "--json", extra=extra)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fingerprint"] == undisturbed
    [fault] = rows_of(tmp_path / "run", "fault")
    assert "slot 0): OSError: joystick unplugged; tried again" in fault["text"]
    assert fault["text"].startswith(fault["game"])
    assert_each_segment_once(tmp_path / "run")
    attempts = {row["sequence"]: row["attempt"] for row in rows_of(tmp_path / "run", "segment")
                if (row["meta_step"], row["slot"]) == (1, 0)}  # fmt: skip
    assert attempts[0] == 0, "its first segment was not done again"
    assert attempts[1] > 0


def test_a_task_that_raises_again_is_dropped_and_the_others_are_averaged(tmp_path, undisturbed):
    fingerprints = []
    for backend in ("serial", "ray"):
        folder = tmp_path / backend
        folder.mkdir()
        extra = sabotage_a_task(folder, RAISES)
        done = cli("train", write_config(folder), f"backend={backend}", "--json", extra=extra)
        assert done.returncode == 0, done.stderr
        assert "joystick unplugged; left out" in done.stderr
        assert "Traceback" not in done.stderr
        fingerprints.append(json.loads(done.stdout)["fingerprint"])
        assert [row["failed_tasks"] for row in rows_of(folder / "run", "meta_step")] == [0, 1, 0]
        assert [row["faults"] for row in rows_of(folder / "run", "meta_step")] == [0, 2, 0]
        averaged = [(row["meta_step"], row["slot"]) for row in rows_of(folder / "run", "task")]
        assert (1, 0) not in averaged
        assert len(averaged) == 8
    assert fingerprints[0] == fingerprints[1] != undisturbed


@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_too_few_tasks_left_stop_the_run_and_the_same_command_goes_on(tmp_path, backend):
    config = write_config(tmp_path, {"faults.min_tasks": 3})
    command = ["train", config, f"backend={backend}"]
    stopped = cli(*command, extra=sabotage_a_task(tmp_path, RAISES))
    assert stopped.returncode == 1
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith("error: meta-step 1: 1 of 3 tasks failed, and faults.min_tasks = 3 must not (")
    assert "joystick unplugged" in last
    assert "Traceback" not in stopped.stderr
    assert describe(tmp_path / "run")["meta_step"] == 1
    done = cli(*command, "--json")  # on a machine that is not broken
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"]
    assert_each_segment_once(tmp_path / "run")


# Actors that die or hang


def test_a_lost_learner_gets_its_ledgers_back(tmp_path, undisturbed):
    run = tmp_path / "run"
    command = ["train", write_config(tmp_path), "backend=ray", "--json"]
    with held(tmp_path, *command, meta_step=1, step=7) as (driver, steps):
        wait_for(lambda: segments(run, 1), driver)
        [learner] = find_process(driver.pid, "ray::Learner")
        os.kill(learner, signal.SIGKILL)
        steps.let_go()
        assert driver.wait(timeout=600) == 0, (tmp_path / "stderr").read_text()
    assert json.loads((tmp_path / "stdout").read_text())["fingerprint"] == undisturbed
    assert_each_segment_once(run)


def test_a_learner_that_is_lost_as_it_is_to_step_is_replaced_and_that_is_said(tmp_path, undisturbed):
    run = tmp_path / "run"
    kill = once(tmp_path, "import ray; ray.kill(self._learner)")
    extra = sabotage(tmp_path, "backends.ray", 'before(module.RayBackend, "meta_step", do)', kill)
    done = cli("train", write_config(tmp_path), "backend=ray", "--json", extra=extra)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fingerprint"] == undisturbed
    assert_each_segment_once(run)
    assert ["the Leap learner was lost" in row["text"] for row in rows_of(run, "fault")] == [True]


def test_a_worker_that_hangs_is_stopped_and_named(tmp_path, undisturbed):
    """The watchdog: SIGSTOP is what a machine that has stalled looks like from outside."""
    run = tmp_path / "run"
    command = ["train", write_config(tmp_path), "backend=ray", "faults.segment_timeout=15", "--json"]
    with held(tmp_path, *command, meta_step=1, step=7) as (driver, steps):
        wait_for(lambda: segments(run, 1), driver)
        os.kill(find_process(driver.pid, "ray::Worker.run_task")[0], signal.SIGSTOP)
        steps.let_go()
        assert driver.wait(timeout=600) == 0, (tmp_path / "stderr").read_text()
    assert json.loads((tmp_path / "stdout").read_text())["fingerprint"] == undisturbed
    faults = {row["text"]: row["game"] for row in rows_of(run, "fault")}
    assert any("no increment for faults.segment_timeout = 15 s; worker stopped" in text for text in faults), faults
    assert all(text.startswith(game or "the Leap learner") for text, game in faults.items())
    assert_each_segment_once(run)


def test_a_worker_that_hangs_in_its_start_is_stopped_and_the_game_named(tmp_path, undisturbed):
    hangs = once(tmp_path, "time.sleep(1000)")
    extra = sabotage(tmp_path, "backends.actors", 'before(module.Worker, "__init__", do)', hangs)
    command = ["train", write_config(tmp_path), "backend=ray", "workers.count=1", "faults.segment_timeout=15", "--json"]
    done = cli(*command, extra=extra, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fingerprint"] == undisturbed
    faults = [row for row in rows_of(tmp_path / "run", "fault") if "was not ready in" in row["text"]]
    assert faults, done.stderr
    assert faults[0]["text"].startswith(f"{faults[0]['game']} (meta-step 0, slot ")


def test_a_learner_that_starts_slowly_is_not_replaced_for_ever(tmp_path):
    """It takes longer than faults.segment_timeout, whenever it starts."""
    slowly = sabotage(tmp_path, "backends.actors", 'before(module.Learner, "__init__", do)', "time.sleep(16)")
    command = ["train", write_config(tmp_path), "backend=ray", "meta.steps=1", "faults.segment_timeout=15", "--json"]
    done = cli(*command, extra=slowly, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "the Leap learner was lost (no answer in 15 s)" in done.stderr


def test_a_raylet_that_dies_on_this_machine_ends_the_run_with_one_line_and_the_same_command_goes_on(
    tmp_path, undisturbed
):
    run = tmp_path / "run"
    command = ["train", write_config(tmp_path), "backend=ray", "--json"]
    with held(tmp_path, *command, meta_step=1, step=7) as (driver, _):
        wait_for(lambda: segments(run, 1), driver)
        [raylet] = [pid for pid, title in session(driver.pid).items() if "/raylet/raylet " in title]
        os.kill(raylet, signal.SIGKILL)
        assert driver.wait(timeout=600) == 1
    stderr = (tmp_path / "stderr").read_text()
    assert stderr.splitlines()[-1].startswith(
        "error: Ray's daemon on this machine (the raylet) has died; nothing is lost"
    )
    assert "Traceback" not in stderr
    done = cli(*command)
    assert json.loads(done.stdout)["fingerprint"] == undisturbed
    assert_each_segment_once(run)


@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_a_killed_driver_goes_on_in_mid_task(tmp_path, undisturbed, backend):
    """Not from the last meta-step: what was durable before is not done again."""
    run = tmp_path / "run"
    config = write_config(tmp_path)

    def second_segments():
        return [row for row in rows_of(run, "segment") if (row["meta_step"], row["sequence"]) == (1, 1)]

    with held(tmp_path, "train", config, f"backend={backend}", meta_step=1, step=12) as (driver, _):
        wait_for(second_segments, driver)
        driver.kill()
        driver.wait()
    before = {(row["slot"], row["sequence"]) for row in rows_of(run, "segment") if row["meta_step"] == 1}
    done = cli("train", config, f"backend={backend}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fingerprint"] == undisturbed
    assert_each_segment_once(run)
    attempts = {(row["slot"], row["sequence"]): row["attempt"]
                for row in rows_of(run, "segment") if row["meta_step"] == 1}  # fmt: skip
    assert before
    assert all(attempts[key] == 0 for key in before)
    assert any(attempts.values()), "and the rest is of later attempts"


# Compression


@pytest.mark.parametrize("compression", ["bf16", "int8"])
def test_compressed_increments_give_the_same_bits_everywhere(tmp_path, undisturbed, compression):
    fingerprints, errors = [], []
    for backend in ("serial", "ray"):
        folder = tmp_path / backend
        folder.mkdir()
        config = write_config(folder, {"stream.compression": compression, "meta.steps": 2})
        done = cli("train", config, f"backend={backend}", "--json")
        assert done.returncode == 0, done.stderr
        fingerprints.append(json.loads(done.stdout)["fingerprint"])
        errors += [row["compression_error"] for row in rows_of(folder / "run", "meta_step")]
    assert fingerprints[0] == fingerprints[1]
    assert all(0 < error < 0.05 for error in errors), errors


# The asynchronous schedule


@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_asynchronous_meta_training_averages_each_task_once(tmp_path, backend):
    """Killed and continued in the middle: what is unfinished then belongs to several meta-steps."""
    run = tmp_path / "run"
    steps = 6
    changes = {"meta.schedule": "asynchronous", "meta.max_staleness": 2, "meta.steps": steps}
    config = write_config(tmp_path, changes | {"meta.lr": 0.01})  # late increments and momentum: 0.1 would diverge
    with held(tmp_path, "train", config, f"backend={backend}", meta_step=4, step=7) as (driver, _):
        wait_for(lambda: len(rows_of(run, "meta_step")) >= 2, driver)
        driver.kill()
        driver.wait()
    # Tasks end while the driver is about to step: they are logged before they are averaged all the same.
    slow_steps = sabotage(tmp_path, "backends.ray", 'before(module.RayBackend, "meta_step", do)', "time.sleep(2)")
    done = cli("train", config, f"backend={backend}", "--json", extra=slow_steps)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["meta_step"] == steps
    rows = rows_of(run, "meta_step")
    assert [row["meta_step"] for row in rows] == list(range(steps))
    assert all(0 <= row["staleness"] <= row["max_staleness"] <= 2 for row in rows)
    tasks = [(row["meta_step"], row["slot"]) for row in rows_of(run, "task")]
    assert sorted(tasks) == [(meta_step, slot) for meta_step in range(steps) for slot in range(3)]
    accumulator = EventAccumulator(str(run / "tensorboard" / "meta")).Reload()
    assert len(accumulator.Scalars("meta/staleness")) == steps


# Nodes that come and go

ELASTIC = """
import subprocess, sys, time
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "join":
        node = cluster.add_node(num_cpus=1)
    elif line.strip() == "leave":
        cluster.remove_node(node, allow_graceful=False)
    print("done", flush=True)
cluster.shutdown()
"""


NO_ROOM = "workers that wait for a node with room: 1; each asks for 1 CPU (the cluster has 1, 0 free)\n"


def test_a_node_that_joins_gets_work_and_one_that_leaves_costs_no_result(tmp_path):
    run = tmp_path / "run"
    changes = {"task.agent_steps": 1200, "stream.segment_updates": 20, "meta.steps": 2}
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = json.loads(cli("train", write_config(whole, changes), "--json").stdout)["fingerprint"]

    steps = GradientSteps(tmp_path / "gradient steps")
    steps.hold(0, 30)  # until the node has come and gone
    extra = {"RAY_AUTH_MODE": "disabled"} | steps.environment()
    cluster = subprocess.Popen(
        [sys.executable, "-c", ELASTIC], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment() | extra, start_new_session=True,
    )  # fmt: skip

    def tell(word):
        cluster.stdin.write(word + "\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline().strip() == "done"

    def busy():
        return len(find_process(cluster.pid, "ray::Worker.run_task"))

    try:
        address = cluster.stdout.readline().strip()
        command = ["train", write_config(tmp_path, changes), "backend=ray", f"ray.address={address}", "--json"]
        soon = sabotage(tmp_path, "backends.ray", "module.NOTICE_SECONDS = 0.5")
        with (tmp_path / "stderr").open("wb") as stderr, (tmp_path / "stdout").open("wb") as stdout:
            driver = start(*command, stdout=stdout, stderr=stderr, extra={"RAY_AUTH_MODE": "disabled"} | soon)
            wait_for(lambda: rows_of(run, "segment"), driver)
            assert busy() == 1
            wait_for(lambda: NO_ROOM in (tmp_path / "stderr").read_text(), driver)
            tell("join")
            wait_for(lambda: busy() == 2, driver)
            tell("leave")
            steps.let_go()
            assert driver.wait(timeout=600) == 0, (tmp_path / "stderr").read_text()
    finally:
        kill_session(cluster.pid)
        cluster.wait()
    assert json.loads((tmp_path / "stdout").read_text())["fingerprint"] == expected
