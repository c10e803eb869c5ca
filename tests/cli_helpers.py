"""Tiny configurations, and the command line: in a process of its own, or in this one."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from leap_rl.cli import main
from leap_rl.config import Config
from leap_rl.config_files import load_config
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import Progress
from leap_rl.types import Checkpoint
from tests.gradient_steps import GradientSteps
from tests.helpers import nest

# Three of four games a meta-step: two workers run one after the others. 24 gradient steps a task; 235 is no
# multiple of an update's 10 agent steps, and 400 frames end episodes of every game within a task. Small screens give a
# fifth of the parameters and of the work: a tiny run then takes three quarters of the processor time.
TINY: dict[str, Any] = {
    "run.seed": 7,
    "backend": "serial",
    "precision": "fp32",
    "meta.steps": 3,
    "meta.batch_size": 3,
    "meta.lr": 0.1,
    "meta.optimizer": "nesterov",
    "meta.max_task_norm": 1.0,  # below most tasks': all tests go through it
    "tasks.games": ["pong", "asterix", "space_invaders", "qbert"],
    "task.agent_steps": 235,
    "agent.num_envs": 2,
    "agent.lr": 1e-4,
    "env.max_episode_frames": 400,
    "env.screen_size": 44,
    "stream.segment_updates": 5,
}


def assert_one_line(code, stdout, stderr, *fragments):
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    for fragment in fragments:
        assert fragment in lines[0]
    assert stdout == ""
    assert code == 2


def write_config(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """A YAML file in ``folder`` of a tiny run in ``folder/run``; ``changes`` by dotted key."""
    tree = nest({"run.dir": str(folder / "run"), **TINY, **(changes or {})})
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def make_config(folder: Path, changes: Mapping[str, Any] | None = None) -> Config:
    return load_config(write_config(folder, changes))


def make_checkpoint(meta_step: int) -> Checkpoint:
    """What a learner with momentum leaves after ``meta_step`` steps, in a few numbers that differ by step."""
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3) + meta_step
    momentum = {"encoder.weight|momentum_buffer": weight / 7, "encoder.bias|momentum_buffer": torch.tensor([-0.0])}
    return Checkpoint(meta_step, {"encoder.weight": weight, "encoder.bias": torch.tensor([0.1])}, momentum)


def make_run(folder: Path, last: int = 2, changes: Mapping[str, Any] | None = None) -> Path:
    """The directory of a tiny run that has committed meta-steps 0 to ``last``, without training anything."""
    with open_run(make_config(folder, changes)) as run:
        for meta_step in range(last + 1):
            run.commit(make_checkpoint(meta_step), Progress(meta_step, 960 * meta_step, 3840 * meta_step, 1.5))
    return Path(run.url)


def truncate(file: Path) -> None:
    """Cuts a file in half, as a full disk or a lost page does."""
    os.truncate(file, file.stat().st_size // 2)


def find_process(leader: int, title: str) -> list[int]:
    """Processes of a session whose title begins so, e.g. ``ray::Learner``."""
    return [pid for pid, found in session(leader).items() if found.startswith(title)]


def environment() -> dict[str, str]:
    """Ours without Ray's settings, so that a run meets what a newcomer's does. Actors are as nice as we are, and a
    process that is aborted says where it was."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return ours | {"RAY_worker_niceness": "0", "PYTHONFAULTHANDLER": "1"}


def start(
    *arguments: str | Path, stdout: Any, stderr: Any, extra: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """``leap-rl`` in a session of its own, where Ctrl-C works even if whoever started the tests ignores it.
    ``extra``: environment variables beside ours."""
    return subprocess.Popen(
        [sys.executable, "-m", "leap_rl.cli", *map(str, arguments)],
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        env=environment() | dict(extra or {}),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def cli(
    *arguments: str | Path, timeout: float = 600, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs ``leap-rl`` to its end, and leaves no process behind."""
    process = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, extra=extra)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        kill_session(process.pid)
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout.decode(), stderr.decode())


def here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs ``leap-rl`` in this process, which takes 3 s of processor time less than :func:`cli`."""
    handler, stdout, stderr = signal.getsignal(signal.SIGTERM), io.StringIO(), io.StringIO()
    given = [str(argument) for argument in arguments]
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = main(given)
    finally:
        signal.signal(signal.SIGTERM, handler)  # `train` sets its own
    return subprocess.CompletedProcess(given, code, stdout.getvalue(), stderr.getvalue())


@contextmanager
def started(
    folder: Path, *arguments: str | Path, extra: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """``leap-rl`` under way, its output in ``folder``/stdout and /stderr. What is left of its session at the end is
    killed."""
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = start(*arguments, stdout=stdout, stderr=stderr, extra=extra)
    try:
        yield process
    finally:
        kill_session(process.pid)
        process.wait()


def session(leader: int) -> dict[int, str]:
    """The live processes of a session: pid → title. A driver and all that Ray starts for it are one session."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may end while we look
            state, _, _, sid = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(sid) == leader and state not in "ZX":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


def kill_session(leader: int) -> None:
    while pids := session(leader):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


@contextmanager
def held(
    folder: Path, *arguments: str | Path, meta_step: int, step: int = 0
) -> Iterator[tuple[subprocess.Popen[bytes], GradientSteps]]:
    """The same, and no task gets to this gradient step of this meta-step before it may."""
    steps = GradientSteps(folder / "gradient steps")
    steps.hold(meta_step, step)
    with started(folder, *arguments, extra=steps.environment()) as process:
        yield process, steps


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    """Until ``condition`` holds; an error where ``process`` ends or ``seconds`` pass first."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process ended before what was waited for"
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.02)  # a look at all processes takes 3 ms of processor time


def kill_workers(driver: subprocess.Popen[bytes]) -> None:
    """Kills every worker that is at a task of a driver that :func:`start` began."""
    workers = [pid for pid, title in session(driver.pid).items() if title.startswith("ray::Worker.run_task")]
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
