"""What goes wrong while a run goes on: tasks that fail, actors that hang or die, nodes that come and go."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from leap_rl.runs.inspection import describe
from leap_rl.runs.run_files import read_metrics
from tests.cli_helpers import (
    cli,
    environment,
    find_process,
    held,
    kill_session,
    kill_workers,
    session,
    start,
    started,
    wait_for,
    write_config,
)
from tests.gradient_steps import GradientSteps
from tests.results import assert_same_run, committed, read_result, train

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
    """Environment variables of a run in which ``spoil`` is done to a module. It may have ``do`` precede a method.
    Several add up, also to the :class:`GradientSteps` of ``folder`` / "saboteur"."""
    place = folder / "saboteur"
    place.mkdir(exist_ok=True)
    name = f"saboteur{len(list(place.glob('saboteur*')))}"
    (place / f"{name}.py").write_text(SABOTAGE.format(module=module, spoil=spoil, action=action))
    with (place / "sitecustomize.py").open("a") as starts:
        starts.write(f"\nimport {name}\n")
    return {"PYTHONPATH": f"{place}{os.pathsep}{Path(__file__).parent.parent}"}


def sabotage_a_task(folder, action, meta_step=1):
    """A task of a meta-step, by default of the second one, does ``action`` at its 8th update."""
    elsewhere = f"if (self.task.round, self.task.slot, self.num_updates) != ({meta_step}, 0, 7): return"
    spoil = 'before(module.A2CProcess, "update", do)'
    return sabotage(folder, "processes.a2c.process", spoil, f"{elsewhere}\n    {action}")


def once(folder, action):
    """``action``, but only the first time, in whichever process."""
    mark = folder / f"done once: {action}".replace("/", " ")
    return f'if os.path.exists({str(mark)!r}): return\n    open({str(mark)!r}, "w")\n    {action}'


def rows_of(run, kind):
    return [row for row in read_metrics(run) if row["kind"] == kind]


def segments(run, meta_step):
    return [row for row in rows_of(run, "segment") if row["meta_step"] == meta_step]


def attempts(run, meta_step):
    """(slot, sequence) → the attempt that a segment is of."""
    return {(row["slot"], row["sequence"]): row["attempt"] for row in segments(run, meta_step)}


def assert_each_segment_once(run):
    keys = [(row["meta_step"], row["slot"], row["sequence"]) for row in rows_of(run, "segment")]
    assert len(keys) == len(set(keys)) == 45


def compressed(folder, compression, **changes):
    """The configuration of a run with compressed increments, and the serial run that it must equal."""
    changes |= {"stream.compression": compression}
    (folder / "serial").mkdir()
    return write_config(folder, changes), train(folder / "serial", changes=changes)


def assert_small_errors(*runs):
    errors = [row["compression_error"] for run in runs for row in run.rows if row["kind"] == "meta_step"]
    assert all(0 < error < 0.05 for error in errors), errors


# Tasks that fail, actors that die or hang


def test_a_task_that_raises_once_is_tried_again_from_its_last_segment(tmp_path, tiny_run):
    done = cli("train", write_config(tmp_path), "--json", extra=sabotage_a_task(tmp_path, once(tmp_path, RAISES)))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fingerprint"] == tiny_run.state["fingerprint"]
    [fault] = rows_of(tmp_path / "run", "fault")
    assert_it_was_tried_again(tmp_path / "run", fault)
    assert_each_segment_once(tmp_path / "run")


def assert_it_was_tried_again(run, fault):
    assert "slot 0): OSError: joystick unplugged; tried again" in fault["text"]
    assert fault["text"].startswith(fault["game"])
    of_task = {sequence: attempt for (slot, sequence), attempt in attempts(run, 1).items() if slot == 0}
    assert of_task[0] == 0, "its first segment was not done again"
    assert of_task[1] > 0


def test_failing_tasks_lost_workers_and_lost_learners_change_nothing(tmp_path):
    """In one run, on compressed increments: a learner that is lost as it is to step; a task that raises once; both
    workers that are lost in mid-task; a learner whose ledgers the workers bring back."""
    config, serial = compressed(tmp_path, "int8")
    run = tmp_path / "run"
    steps = GradientSteps(tmp_path / "saboteur")
    kill = once(tmp_path, "import ray; ray.kill(self._learner.actor)")
    sabotage(tmp_path, "backends.ray", 'before(module.RayBackend, "meta_step", do)', kill)
    sabotage_a_task(tmp_path, once(tmp_path, RAISES))
    steps.hold(1, 12)
    with started(tmp_path, "train", config, "backend=ray", "--json", extra=steps.environment()) as driver:
        wait_for(lambda: len(segments(run, 1)) == 4, driver)  # of two workers, in their third
        kill_workers(driver)
        steps.hold(2, 7)
        wait_for(lambda: segments(run, 2), driver)
        [learner] = find_process(driver.pid, "ray::Learner")
        os.kill(learner, signal.SIGKILL)
        steps.let_go()
        assert driver.wait(timeout=600) == 0, (tmp_path / "stderr").read_text()
    result = read_result(tmp_path, (tmp_path / "stdout").read_text())
    assert_same_run(result, serial)
    assert_each_segment_once(run)
    assert_small_errors(result, serial)
    faults = rows_of(run, "fault")
    lost = [(row["meta_step"], "the Leap learner was lost" in row["text"]) for row in faults]
    assert lost.count((0, True)) == lost.count((2, True)) == 1
    assert sum("its worker was lost in segment 3; another takes it up" in row["text"] for row in faults) == 2
    [raised] = [row for row in faults if "joystick" in row["text"]]
    assert_it_was_tried_again(run, raised)
    assert len(faults) == 5


def test_what_hangs_or_starts_slowly_is_replaced_and_named(tmp_path):
    """In one run, on compressed increments: learners that take longer than faults.segment_timeout whenever they start
    (which must not go on for ever); a worker that hangs in its start; one that hangs in a task. For that SIGSTOP is
    what a machine that has stalled looks like from outside."""
    config, serial = compressed(tmp_path, "bf16", **{"meta.steps": 2})
    run = tmp_path / "run"
    steps = GradientSteps(tmp_path / "saboteur")
    sabotage(tmp_path, "backends.actors", 'before(module.Learner, "__init__", do)', "time.sleep(16)")
    hangs = once(tmp_path, "time.sleep(1000)")
    sabotage(tmp_path, "backends.actors", 'before(module.Worker, "__init__", do)', hangs)
    steps.hold(1, 7)
    command = ["train", config, "backend=ray", "workers.count=1", "faults.segment_timeout=15", "--json"]
    with started(tmp_path, *command, extra=steps.environment()) as driver:
        wait_for(lambda: segments(run, 1), driver)
        os.kill(find_process(driver.pid, "ray::Worker.run_task")[0], signal.SIGSTOP)
        steps.let_go()
        assert driver.wait(timeout=600) == 0, (tmp_path / "stderr").read_text()
    result = read_result(tmp_path, (tmp_path / "stdout").read_text())
    assert_same_run(result, serial)
    assert_small_errors(result, serial)
    faults = {row["text"]: row["game"] for row in rows_of(run, "fault")}
    assert all(text.startswith(game or "the Leap learner") for text, game in faults.items()), faults
    assert any("the Leap learner was lost (no answer in 15 s)" in text for text in faults), faults
    late = [text for text in faults if "was not ready in" in text]
    assert late, faults
    assert late[0].startswith(f"{faults[late[0]]} (meta-step 0, slot ")
    stopped = [text for text in faults if "no increment for faults.segment_timeout = 15 s; worker stopped" in text]
    assert any("(meta-step 1, " in text for text in stopped), faults  # the one that hangs in mid-task


def test_a_task_that_raises_again_is_dropped_and_the_others_are_averaged(tmp_path, tiny_run):
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
    assert fingerprints[0] == fingerprints[1] != tiny_run.state["fingerprint"]


# Runs that stop


def lose_the_raylet(folder, command):
    """The run ends with one line."""
    with held(folder, *command, meta_step=1, step=7) as (driver, _):
        wait_for(lambda: segments(folder / "run", 1), driver)
        [raylet] = [pid for pid, title in session(driver.pid).items() if "/raylet/raylet " in title]
        os.kill(raylet, signal.SIGKILL)
        assert driver.wait(timeout=600) == 1
    stderr = (folder / "stderr").read_text()
    assert stderr.splitlines()[-1].startswith(
        "error: Ray's daemon on this machine (the raylet) has died; nothing is lost"
    )
    assert "Traceback" not in stderr


def kill_the_driver(folder, command, moment, meta_step, step):
    with held(folder, *command, meta_step=meta_step, step=step) as (driver, _):
        wait_for(moment, driver)
        driver.kill()  # only the driver; held() then clears away what Ray has left
        assert driver.wait() == -signal.SIGKILL


@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_whatever_stops_a_run_the_same_command_goes_on_in_mid_task(tmp_path, tiny_run, backend):
    """One after the other: the raylet dies; the driver is killed in mid-task, and between two meta-steps; too few tasks
    are left. What was durable before is not done again."""
    run = tmp_path / "run"
    command = ["train", write_config(tmp_path, {"faults.min_tasks": 3}), f"backend={backend}"]
    if backend == "ray":
        lose_the_raylet(tmp_path, command)

    def second_segments():
        return [key for key in attempts(run, 1) if key[1] == 1]

    kill_the_driver(tmp_path, command, second_segments, meta_step=1, step=12)
    assert committed(run, 1)
    assert not committed(run, 2)
    before = attempts(run, 1)
    if backend == "ray":
        kill_the_driver(tmp_path, command, lambda: committed(run, 2), meta_step=2, step=0)
        assert not committed(run, 3)

    stopped = cli(*command, extra=sabotage_a_task(tmp_path, RAISES, meta_step=2))
    assert stopped.returncode == 1
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith("error: meta-step 2: 1 of 3 tasks failed, and faults.min_tasks = 3 must not (")
    assert "joystick unplugged" in last
    assert "Traceback" not in stopped.stderr
    assert describe(run)["meta_step"] == 2

    done = cli(*command, "--json")  # on a machine that is not broken
    assert done.returncode == 0, done.stderr
    assert "resuming at meta-step 3 of 3" in done.stderr
    assert_same_run(read_result(tmp_path, done.stdout), tiny_run)
    assert_each_segment_once(run)
    after = attempts(run, 1)
    assert before
    assert {key: after[key] for key in before} == before
    assert any(after[key] > 0 for key in after.keys() - before.keys()), "and the rest is of later attempts"


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
    expected = train(whole, changes=changes).state["fingerprint"]

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
