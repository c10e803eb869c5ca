"""A run that is shot at: at the end nobody can tell.

    python -m tests.soak --faults 30        kill -9 workers, the learner, the raylet and the driver, or have them hang
    python -m tests.soak --faults 30 --continual    the same where the learner steps after each round of segments
    python -m tests.soak --minutes 30       nothing is killed: is memory flat?

Both train real games on a Ray cluster of their own and print what they measured as JSON. It stands with the tests
and not with the benchmarks because nothing of it is about speed: it must end as the undisturbed run does.
"""

import argparse
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leap_rl.runs.inspection import describe
from leap_rl.runs.run_files import read_metrics
from tests.cli_helpers import TINY, cli, kill_session, session, start, write_config
from tests.gradient_steps import GradientSteps

WORKERS = 2
UPDATES, SEGMENT_UPDATES = 40, 8  # gradient steps of a task and of a segment: 5 segments
TASKS = TINY["meta.batch_size"]  # under way together
SEGMENT_TIMEOUT = 40.0  # seconds: after that, what hangs is given up; long, since the machine may be busy
TITLES = {"worker": "ray::Worker", "learner": "ray::Learner", "raylet": "/raylet/raylet "}
LOST = {"worker": 1, "learner": 0, "raylet": WORKERS, "driver": WORKERS}  # segments in hand that a kill may cost
PATIENCE = 600.0  # seconds without a new row, or until a driver ends that must
MAX_UNEXPECTED = 3  # drivers that may end though nothing was done to them
CLEAR_SECONDS = 120.0  # for the processes of a dead driver to be gone


@dataclass(frozen=True)
class Setting:
    """A schedule of meta-steps, and how many faults there are in one."""

    changes: dict[str, Any]  # to the tiny configuration
    first: int  # segments of a meta-step that are handed in before its first fault, at least
    last: int  # and before its last
    faults: int  # a meta-step
    delay: float  # seconds after that, at most


# Of the 15 segments of a meta-step the last ones are left out: it must not be over before a fault.
SYNCHRONOUS = Setting({}, first=1, last=TASKS * UPDATES // SEGMENT_UPDATES - 4, faults=4, delay=0.5)
# A meta-step is one segment of each task, and takes a fraction of a second.
CONTINUAL = Setting({"meta.schedule": "continual"}, first=0, last=TASKS - 1, faults=2, delay=0.1)


@dataclass(frozen=True)
class Kill:
    """kill -9 ``what`` at meta-step s, segment q: ``delay`` seconds after q segments of it were handed in."""

    meta_step: int
    segment: int
    what: str  # worker, learner, raylet or driver
    rank: int = 0  # of a worker
    delay: float = 0.0  # so that it is not always in the same place of a segment
    hang: bool = False  # kill -STOP instead

    def __str__(self) -> str:
        what = f"worker {self.rank}" if self.what == "worker" else self.what
        signal_name = "STOP" if self.hang else "9"
        return f"kill -{signal_name} {what} at meta-step {self.meta_step}, segment {self.segment} + {self.delay:.2f} s"


@dataclass
class Report:
    """What came of a run."""

    fingerprint: str = ""
    kills: list[str] = field(default_factory=list)
    drivers: int = 0  # that the run took
    unexpected: int = 0  # of them: ended though nothing was done to them
    seconds: float = 0.0
    rows_twice: list[Any] = field(default_factory=list)  # keys that metrics.jsonl holds more than once
    segments: int = 0  # that it holds
    steps: int = 0  # gradient steps that an undisturbed run takes
    steps_again: int = 0  # gradient steps that were begun once more
    steps_again_at_most: int = 0  # one segment for each worker that was lost
    attempts: int = 0  # the highest
    stale_increments: int = 0
    duplicate_increments: int = 0
    faults_logged: int = 0
    files: list[str] = field(default_factory=list)  # that are left in the run directory
    processes_left: list[str] = field(default_factory=list)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)


def seeded(faults: int, seed: int, setting: Setting = SYNCHRONOUS) -> list[Kill]:
    """A schedule of kills of each kind, and now and then a worker or learner that hangs."""
    random = np.random.default_rng(seed)
    kinds = [("worker", "learner", "raylet", "worker", "learner", "driver")[i % 6] for i in range(faults)]
    random.shuffle(kinds)
    schedule = []
    for i, what in enumerate(kinds):
        segment, rank = int(random.integers(setting.first, setting.last + 1)), int(random.integers(WORKERS))
        hang = what in ("worker", "learner") and random.random() < 0.2
        schedule.append(Kill(i // setting.faults, segment, what, rank, float(random.uniform(0, setting.delay)), hang))
    return sorted(schedule, key=lambda kill: (kill.meta_step, kill.segment))


def meta_steps(schedule: Sequence[Kill]) -> int:
    """One more than those with kills."""
    return schedule[-1].meta_step + 2


def changes(steps: int, setting: Setting) -> dict[str, Any]:
    """To the tiny configuration."""
    return setting.changes | {
        "meta.steps": steps,
        "task.agent_steps": UPDATES * TINY["agent.num_envs"] * 5,
        "stream.segment_updates": SEGMENT_UPDATES,
        "workers.count": WORKERS,
        "faults.segment_timeout": SEGMENT_TIMEOUT,
    }


def undisturbed(folder: Path, schedule: Sequence[Kill], setting: Setting = SYNCHRONOUS) -> Report:
    """The serial run that a run under ``schedule`` must equal."""
    config = write_config(folder, changes(meta_steps(schedule), setting))
    done = cli("train", config, "backend=serial", "--json", timeout=1800)
    assert done.returncode == 0, done.stderr
    return _inspect(folder / "run", Report())


def disturbed(
    folder: Path,
    schedule: Sequence[Kill],
    setting: Setting = SYNCHRONOUS,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Trains on Ray while the schedule comes true; whenever the driver ends, the same command is given again. No later
    meta-step begins before a kill has happened."""
    report = Report()
    run = folder / "run"
    began = time.monotonic()
    config = write_config(folder, changes(meta_steps(schedule), setting))
    with _Drivers(folder, ["train", config, "backend=ray"]) as drivers:
        for kill in schedule:
            drivers.steps.hold(kill.meta_step + 1)
            drivers.wait_for(lambda kill=kill: _reached(run, kill))
            time.sleep(kill.delay)
            pid = drivers.wait_for(lambda kill=kill: _victim(drivers.process.pid, kill))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if kill.hang else signal.SIGKILL)
            say(f"{time.monotonic() - began:6.1f} s  {kill}")
            report.kills.append(str(kill))
            if kill.what in ("raylet", "driver"):
                code = drivers.start_again()
                say(f"{time.monotonic() - began:6.1f} s  driver ended with {code}; the same command again")
        drivers.steps.let_go()
        drivers.wait_for(lambda: drivers.process.poll() == 0)
        report.seconds = round(time.monotonic() - began, 1)
        report.processes_left = drivers.wait_until_clear()
        report.drivers, report.unexpected = len(drivers.all), drivers.unexpected
        report.memory = drivers.memory()
    begun = drivers.steps.begun()
    report.steps = len(begun)
    report.steps_again = begun.total() - len(begun)
    report.steps_again_at_most = SEGMENT_UPDATES * sum(LOST[kill.what] for kill in schedule)
    return _inspect(run, report)


def at_rest(folder: Path, minutes: float) -> Report:
    """Trains on Ray for some minutes, and is then told to stop."""
    report = Report()
    config = write_config(folder, changes(1_000_000, SYNCHRONOUS))
    with _Drivers(folder, ["train", config, "backend=ray"]) as drivers:
        drivers.wait_for(lambda: _size(folder / "run" / "metrics.jsonl"))
        began = time.monotonic()
        while time.monotonic() - began < 60 * minutes:
            assert drivers.process.poll() is None, drivers.stderr()
            time.sleep(1)
        report.seconds = round(time.monotonic() - began, 1)
        report.memory = drivers.memory()
        drivers.process.send_signal(signal.SIGTERM)
        assert drivers.process.wait(timeout=PATIENCE) == 130, drivers.stderr()
        report.processes_left = drivers.wait_until_clear()
        report.drivers = len(drivers.all)
    return _inspect(folder / "run", report)


class _Drivers:
    """One command, given again and again; and what all its processes use of memory."""

    def __init__(self, folder: Path, command: Sequence[str | Path]) -> None:
        self._folder, self._command = folder, command
        self._ray = tempfile.TemporaryDirectory(prefix="ray-")  # its logs; a short path, since sockets are there
        self.steps = GradientSteps(folder / "gradient steps")
        self._environment = self.steps.environment() | {"RAY_TMPDIR": self._ray.name}
        self._samples: dict[tuple[str, int], list[tuple[float, float]]] = {}
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample)
        self.all: list[subprocess.Popen[bytes]] = []
        self.unexpected = 0  # times that it ended though nothing had been done to it

    def __enter__(self) -> "_Drivers":
        self._start()
        self._sampler.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._sampler.join()
        for driver in self.all:
            kill_session(driver.pid)
            driver.wait()
        self._ray.cleanup()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.all[-1]

    def stderr(self) -> str:
        return (self._folder / f"stderr{len(self.all)}").read_text()[-4000:]

    def _start(self) -> None:
        with (self._folder / f"stderr{len(self.all) + 1}").open("wb") as stderr:
            self.all.append(start(*self._command, stdout=stderr, stderr=stderr, extra=self._environment))

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """What ``condition`` returns once it is true."""
        end, before = time.monotonic() + PATIENCE, None
        while not (found := condition()):
            if self.process.poll() not in (None, 0):  # e.g. a machine so busy that Ray cannot start
                assert self.unexpected < MAX_UNEXPECTED, self.stderr()
                self.unexpected += 1
                self._start()
            rows = _size(self._folder / "run" / "metrics.jsonl")
            if rows != before:
                end, before = time.monotonic() + PATIENCE, rows
            assert time.monotonic() < end, f"nothing happened in {PATIENCE:g} s: {self.stderr()}"
            assert self.process.poll() != 0 or condition(), "the run ended before its last fault"
            time.sleep(0.02)
        return found

    def start_again(self) -> int:
        """The same command, once the driver has ended. Returns its exit code."""
        code = self.process.wait(timeout=PATIENCE)
        self._start()
        return code

    def wait_until_clear(self) -> list[str]:
        """Processes that stay. (Of a driver that was killed, Ray's two agents stay for minutes.)"""
        end = time.monotonic() + CLEAR_SECONDS
        while left := [title for driver in self.all for title in session(driver.pid).values()]:
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        return left

    def _sample(self) -> None:
        while not self._stop.wait(5.0):
            driver = self.process.pid
            now = time.monotonic()
            for pid, title in session(driver).items():
                names = [name for name in ("worker", "learner") if title.startswith(TITLES[name])]
                role = "driver" if pid == driver else names[0] if names else None
                if role and (megabytes := _own_memory(pid)):
                    self._samples.setdefault((role, pid), []).append((now, megabytes))

    def memory(self) -> dict[str, dict[str, float]]:
        """Of each role the process that lived longest: its first fifth left out, since it still warms up."""
        found = {}
        for role in ("driver", "learner", "worker"):
            longest = max((samples for (name, _), samples in self._samples.items() if name == role), key=len)
            time_of, used = np.array(longest[len(longest) // 5 :]).T
            slope = np.polyfit(time_of, used, 1)[0] * 3600 if len(used) > 2 else float("nan")
            found[role] = {
                "minutes": round((time_of[-1] - time_of[0]) / 60, 1),
                "first_mb": round(used[0], 1),
                "last_mb": round(used[-1], 1),
                "mb_per_hour": round(slope, 2),
            }
        return found


def _own_memory(pid: int) -> float | None:
    """Anonymous memory in MB: what is shared with others, and files that are mapped, left out."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return None


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _reached(run: Path, kill: Kill) -> bool:
    """Whether its segment has been handed in (or the meta-step is over: the moment was missed by a little)."""
    rows = [row for row in read_metrics(run) if row["meta_step"] == kill.meta_step]
    return sum(row["kind"] == "segment" for row in rows) >= kill.segment or any(r["kind"] == "meta_step" for r in rows)


def _victim(driver: int, kill: Kill) -> int | None:
    if kill.what == "driver":
        return driver
    pids = sorted(pid for pid, title in session(driver).items() if TITLES[kill.what] in title)
    return pids[kill.rank % len(pids)] if pids else None


def _inspect(run: Path, report: Report) -> Report:
    """Fills in what the run directory says."""
    rows = read_metrics(run)
    segments = Counter((r["meta_step"], r["slot"], r["sequence"]) for r in rows if r["kind"] == "segment")
    steps = [row for row in rows if row["kind"] == "meta_step"]
    keys = segments + Counter((r["meta_step"], r["slot"]) for r in rows if r["kind"] == "task")
    keys += Counter((row["meta_step"],) for row in steps)
    report.fingerprint = describe(run)["fingerprint"]
    report.segments = len(segments)
    report.rows_twice = sorted(key for key, count in keys.items() if count > 1)
    report.attempts = max(row["attempt"] for row in rows if row["kind"] == "segment")
    report.stale_increments = sum(row["stale_increments"] for row in steps)
    report.duplicate_increments = sum(row["duplicate_increments"] for row in steps)
    report.faults_logged = sum(row["kind"] == "fault" for row in rows)
    files = (str(path.relative_to(run)) for path in run.rglob("*"))
    report.files = sorted(name for name in files if not name.startswith("tensorboard"))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--continual", action="store_true", help="faults in meta.schedule = continual")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        if options.faults:
            setting = CONTINUAL if options.continual else SYNCHRONOUS
            schedule = seeded(options.faults, options.seed, setting)
            for folder in ("undisturbed", "disturbed"):
                (Path(name) / folder).mkdir()
            with ThreadPoolExecutor() as side_by_side:
                reference = side_by_side.submit(undisturbed, Path(name) / "undisturbed", schedule, setting)
                found = disturbed(Path(name) / "disturbed", schedule, setting, lambda text: print(text, flush=True))
            wanted = reference.result()
            print(json.dumps(asdict(found), indent=1))
            same = (found.fingerprint, found.files) == (wanted.fingerprint, wanted.files)
            print("the same as undisturbed" if same else f"NOT the same as undisturbed: {json.dumps(asdict(wanted))}")
        if options.minutes:
            (Path(name) / "at rest").mkdir()
            print(json.dumps(asdict(at_rest(Path(name) / "at rest", options.minutes)), indent=1))


if __name__ == "__main__":
    main()
