"""Measures a run of many workers on a real Ray cluster on this machine, with tasks that only wait.

    python -m benchmarks.workers --workers 16 64
    python -m benchmarks.workers --workers 16 --tasks 256 1000 --segment-seconds 1

Driver, Ray, learner, workers, increments and saved tasks are real and of real sizes; only the training is not there
(benchmarks/waiting.py). Three meta-steps: in the first the workers start, in the second a quarter of them are killed
together, and the third is undisturbed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sessions import Processes, rounded
from benchmarks.waiting import TIMES

SEGMENTS = 6  # of a task
PATIENCE = 900.0  # seconds for anything to happen


class Events:
    """Knows when a task began and when its increments were made, from the files that workers touch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def times(self, kind: str, meta_step: int, segment: int | None = None) -> dict[int, float]:
        """Returns the time of an event for each slot: the latest one, where ``segment`` is not given."""
        found: dict[int, float] = {}
        for file in self._folder.glob(f"{kind}-{meta_step}-*-{'*' if segment is None else segment}"):
            slot, when = int(file.name.split("-")[2]), file.stat().st_mtime
            found[slot] = max(found.get(slot, 0.0), when)
        return found

    def at_work(self, meta_step: int, pids: Sequence[int]) -> set[int]:
        """Returns the slots of the tasks that these processes have begun and not ended."""
        begun = {int(file.name.split("-")[2]) for file in self._folder.glob(f"begun-{meta_step}-*")
                 if int(file.read_text() or 0) in pids}  # fmt: skip
        return begun - self.times("made", meta_step, SEGMENTS).keys()


def wait_for(driver: "subprocess.Popen[bytes]", condition: Callable[[], bool]) -> float:
    """Waits until a condition holds, and returns the time. Raises RuntimeError if the run ends first or is too slow."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end or driver.poll() is not None:
            raise RuntimeError(f"the run ended, or nothing happened for {PATIENCE:g} s")
        time.sleep(0.2)
    return time.time()


def measure(workers: int, tasks: int, segment_seconds: float, folder: Path) -> dict[str, Any]:
    """Runs ``leap-rl train`` with many workers, and returns what it took."""
    (folder / "times").mkdir()
    file = folder / "config.yaml"
    file.write_text(json.dumps({
        "process": "benchmarks.waiting:PROCESS", "segment_seconds": segment_seconds, "run": {"dir": f"{folder}/run"},
        "meta": {"rule": "reptile", "steps": 3, "batch_size": tasks, "lr": 0.3, "max_task_norm": None},
        "task": {"agent_steps": SEGMENTS}, "stream": {"segment_updates": 1},
        "workers": {"count": workers}, "backend": "ray", "ray": {"address": "local"},
    }))  # fmt: skip
    environment = os.environ | {TIMES: str(folder / "times")}
    events, began = Events(folder / "times"), time.time()
    with (folder / "log").open("wb") as log:
        driver = subprocess.Popen([sys.executable, "-m", "leap_rl.cli", "train", str(file)], stdout=log,
                                  stderr=log, start_new_session=True, env=environment)  # fmt: skip
    processes = Processes(driver.pid)
    try:
        # In the first meta-step the workers start.
        first = wait_for(driver, lambda: bool(events.times("begun", 0)))
        started = wait_for(driver, lambda: len(processes.by_role()["worker"]) >= workers
                           and len(events.times("begun", 0)) >= min(workers, tasks))  # fmt: skip
        # In the second a quarter of them is killed, once many tasks have sent two increments.
        wait_for(driver, lambda: len(events.times("begun", 1)) >= min(workers, tasks) // 2)
        wait_for(driver, lambda: len(events.times("made", 1, 2)) >= min(workers, tasks) // 2)
        lost = sorted(processes.by_role()["worker"])[::4]
        theirs, killed = events.at_work(1, lost), time.time()
        if not theirs:
            raise RuntimeError("the workers to be killed had no task just then; try again")
        for pid in lost:
            os.kill(pid, signal.SIGKILL)
        again = wait_for(driver, lambda: all(events.times("begun", 1)[slot] > killed for slot in theirs))
        # The third is undisturbed.
        wait_for(driver, lambda: len(events.times("begun", 2)) >= min(workers, tasks))
        quiet, before = time.time(), processes.seconds()
        memory = processes.megabytes()
        wait_for(driver, lambda: len(events.times("made", 2, SEGMENTS - 1)) >= tasks // 2)
        after, lasted = processes.seconds(), time.time() - quiet
        made = sum(
            when > quiet for segment in range(1, SEGMENTS + 1) for when in events.times("made", 2, segment).values()
        )
        end = threading.Timer(PATIENCE, driver.kill)
        end.start()
        code = driver.wait()
        end.cancel()
    except RuntimeError as error:
        raise SystemExit(f"{error}: {(folder / 'log').read_text()[-2000:]}") from None
    finally:
        processes.kill()
    if code:
        raise SystemExit((folder / "log").read_text()[-2000:])
    latencies = [min(events.times("begun", r + 1).values()) - max(events.times("made", r, SEGMENTS).values())
                 for r in (0, 1)]  # fmt: skip
    used = {role: after[role] - before.get(role, 0.0) for role in ("driver", "learner", "raylet", "gcs")}
    return {
        "workers": workers, "tasks": tasks, "first_task_after_s": first - began, "all_workers_after_s": started - began,
        "lost_workers": len(lost), "lost_tasks_go_on_after_s": again - killed,
        "last_increment_to_next_task_s": latencies, "increments_a_second": made / lasted,
        "ms_an_increment": {role: 1e3 * seconds / made for role, seconds in used.items()},
        "share_of_a_core": {role: seconds / lasted for role, seconds in used.items()},
        "pss_mb": memory,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[16])
    parser.add_argument("--tasks", type=int, nargs="+", help="of a meta-step (default: as many as workers)")
    parser.add_argument("--segment-seconds", type=float, default=4.0)
    options = parser.parse_args()
    for workers in options.workers:
        for tasks in options.tasks or [workers]:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(workers, tasks, options.segment_seconds, Path(folder))
                print(json.dumps(rounded(found)), flush=True)


if __name__ == "__main__":
    main()
