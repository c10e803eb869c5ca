"""Says what a run will cost before it starts (``leap-rl plan``): each kind of task is tried for a moment, the rest is
arithmetic."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import heapreplace
from typing import Any

import torch

from leap_rl.config import Config, MetaConfig
from leap_rl.files.text import duration, printable
from leap_rl.meta.compression import Compressor
from leap_rl.meta.sampling import tasks_at
from leap_rl.meta.step import meta_step
from leap_rl.processes import initial_parameters, process_of, start_process
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import Task, Tensors

TRIAL_SECONDS = 3.0  # of measured training; what comes before, such as loading a game, is measured apart
TRIAL_UPDATES = 10  # gradient steps between two looks at the clock


@dataclass(frozen=True)
class Trial:
    """Holds what was measured of one kind of task."""

    steps_per_second: float  # agent steps, of one worker that has a core for itself
    frames_per_step: float
    start_seconds: float  # to make the process
    state_bytes: int  # saved at the end of a segment
    increment_bytes: int  # sent at the end of a segment


@dataclass(frozen=True)
class Costs:
    """Holds what a run will take."""

    meta_steps: int
    tasks: int  # in all
    agent_steps: int
    frames: int
    workers: int  # that work at the same time
    hours: float
    core_hours: float  # of training; workers that wait for the slowest task of a meta-step take none
    worker_bytes: int  # of memory, at least
    disk_bytes: int  # at most: checkpoints that are kept, and the tasks under way
    streamed_bytes: int  # of increments, to the learner


def kind_of(config: Config, name: str) -> str:
    """Returns what is tried for a task: its game, whose variants take equally long, or any where all do."""
    process = process_of(config)
    alike = process.seconds_per_step(name) == 0
    return process.parts(config).training[0] if alike else name.partition(":")[0]


def drawn(config: Config) -> Iterator[list[Task]]:
    """Yields the tasks of each meta-step of a run, as the run will draw them."""
    names, size = process_of(config).parts(config).training, config.meta.batch_size
    for number in range(config.meta.steps):
        places = [(number, slot) for slot in range(size)]
        yield tasks_at(places, names, size, config.run.seed, config.num_legs)


def try_kind(config: Config, name: str, seconds: float) -> Trial:
    """Trains a task for some ``seconds`` and returns what was measured."""
    short = config.stream.model_copy(update={"segment_updates": TRIAL_UPDATES})
    started = time.perf_counter()
    task = Task(0, 0, name, derive_seed(config.run.seed, Purpose.TASK, 0, 0))
    first = initial_parameters(config, derive_seed(config.run.seed, Purpose.INITIALIZATION))
    process = start_process(config.model_copy(update={"stream": short}), task, first)
    start_seconds = time.perf_counter() - started
    steps = frames = elapsed = 0.0
    warm = False
    before = time.perf_counter()
    for increment in process.walk():
        now = time.perf_counter()
        if warm or increment.last:  # the first updates also allocate, and compile what is compiled
            steps += increment.statistics["agent_steps"]
            frames += increment.statistics["frames"]
            elapsed += now - before
        packed, _ = Compressor(config.stream.compression).pack(increment.meta_gradient)
        if elapsed >= seconds or increment.last:
            break
        warm, before = True, time.perf_counter()
    return Trial(steps / elapsed, frames / steps, start_seconds, _size(process.state()), _size(packed))


def estimate(config: Config, trials: Mapping[str, Trial]) -> Costs:
    """Returns what a run costs, given a trial of each kind of task that it draws. A synchronous meta-step lasts until
    the last of its tasks has ended; an asynchronous run keeps all workers busy."""
    updates, per_task = config.task_updates, config.task_updates * config.update_steps
    segments = -(-updates // config.stream.segment_updates)
    workers = num_workers(config)
    busy = elapsed = frames = streamed = 0.0
    counts: Counter[str] = Counter()
    for tasks in drawn(config):
        kinds = [kind_of(config, task.name) for task in tasks]
        durations = [per_task / trials[kind].steps_per_second + trials[kind].start_seconds for kind in kinds]
        busy += sum(durations)
        elapsed += makespan(durations, workers)
        counts.update(kinds)
    for kind, count in counts.items():
        frames += count * per_task * trials[kind].frames_per_step
        streamed += count * segments * trials[kind].increment_bytes
    state = max(trial.state_bytes for trial in trials.values())
    increment = max(trial.increment_bytes for trial in trials.values())
    # Of the continual schedule the rounds are kept too that its checkpoints go on from.
    rounds = config.meta.staleness + 1 + (config.run.keep_checkpoints if config.num_legs else 0)
    under_way = config.meta.batch_size * rounds
    kept = config.run.keep_checkpoints * tensors_per_parameter(config.meta) + 1
    return Costs(
        meta_steps=config.meta.steps,
        tasks=counts.total(),
        agent_steps=counts.total() * per_task,
        frames=round(frames),
        workers=workers,
        hours=(busy / workers if config.meta.schedule == "asynchronous" else elapsed) / 3600,
        core_hours=busy * config.workers.cpus / 3600,
        worker_bytes=config.memory()[0],
        disk_bytes=under_way * (state + 2 * increment) + kept * increment,
        streamed_bytes=round(streamed),
    )


def tensors_per_parameter(meta: MetaConfig) -> int:
    """Returns how many tensors of a parameter's size are in a checkpoint: itself, and what the meta-optimizer keeps."""
    parameter = {"parameter": torch.zeros(2)}
    kept = meta_step(parameter, {}, [parameter], meta, 0).optimizer.values()
    return 1 + sum(value.numel() == 2 for value in kept)


def num_workers(config: Config) -> int:
    """Returns how many workers of a run train at the same time on this machine, each on cores of its own."""
    if config.backend == "serial":
        return 1
    count = config.workers.per_node or config.workers.count
    return max(1, min(count, config.meta.batch_size * (config.meta.staleness + 1),
                      len(os.sched_getaffinity(0)) // config.workers.cpus))  # fmt: skip


def makespan(durations: Sequence[float], workers: int) -> float:
    """Returns how long tasks take when the longest start first, each on the worker that is free first."""
    free = [0.0] * workers
    for seconds in sorted(durations, reverse=True):
        heapreplace(free, free[0] + seconds)
    return max(free)


def scaled_to(config: Config, costs: Costs, hours: float) -> str:
    """Returns the key that makes a run of the same kind last for about ``hours``: fewer or more meta-steps, or shorter
    tasks where that would be none."""
    steps = int(hours * costs.meta_steps / costs.hours)
    if steps:
        return f"meta.steps={steps}"
    agent_steps = round(config.task.agent_steps * hours * costs.meta_steps / costs.hours)
    return f"meta.steps=1 task.agent_steps={max(agent_steps, config.update_steps)}"


def describe_costs(config: Config, found: Costs, trials: Mapping[str, Trial], hours: float | None) -> str:
    """Returns what `leap-rl plan` prints."""
    measures = process_of(config).measures
    workers = f"{found.workers} worker{'s' if found.workers > 1 else ''}"
    lines = [
        f"{found.meta_steps:,} meta-steps, {found.tasks:,} tasks, {found.agent_steps:,} {measures.step}, "
        f"{found.frames:,} {measures.frame}",
        f"time      {duration(3600 * found.hours)} with {workers} on this machine; {found.core_hours:,.2f} core-hours",
        f"memory    {found.worker_bytes / 1e6:,.0f} MB a worker for its tensors and emulators, besides Python's",
        f"disk      {found.disk_bytes / 1e6:,.0f} MB at most",
        f"streamed  {found.streamed_bytes / 1e6:,.0f} MB to the learner",
        *(f"speed     {kind}: {trial.steps_per_second:,.0f} {measures.step}/s" for kind, trial in trials.items()),
    ]
    if hours is not None:
        lines.append(f"in {duration(3600 * hours)}: {scaled_to(config, found, hours)}")
    return printable("\n".join(lines))


def to_json(costs: Costs, trials: Mapping[str, Trial]) -> dict[str, Any]:
    """Returns what `leap-rl plan --json` prints."""
    return asdict(costs) | {"trials": {kind: asdict(trial) for kind, trial in trials.items()}}


def _size(tensors: Tensors) -> int:
    return sum(value.nbytes for value in tensors.values())
