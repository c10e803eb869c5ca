"""Says how a run stands, from its directory alone: in another terminal, or on another host (``leap-rl status``)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leap_rl.config import Config
from leap_rl.files.storage import LocalStorage, open_storage
from leap_rl.files.text import duration, printable
from leap_rl.meta.schedule import due
from leap_rl.processes import process_of
from leap_rl.runs.run import RunDirectory
from leap_rl.runs.run_files import CONFIG, EVALUATION, METRICS, metrics_of, read_config
from leap_rl.types import BadInputError, Place

RECENT = 5  # meta-steps whose mean duration says how long the others will take


@dataclass(frozen=True)
class TaskStatus:
    """Says how far a task is that no meta-step has averaged yet."""

    name: str
    agent_steps: int
    seconds: float  # of training, of whichever workers had it
    restarts: int  # times that it was taken up again, and got further


@dataclass(frozen=True)
class Status:
    """Says how a run stands."""

    run: str
    meta_step: int  # number of meta-steps that are done
    meta_steps: int
    steps_per_task: int
    agent_steps: int  # of the meta-steps that are done
    agent_steps_per_second: float | None  # of the last of them
    tasks: list[TaskStatus]  # that have begun, of the meta-steps to come
    faults: int  # that were dealt with so far
    core_hours: float  # of training, tasks under way included
    seconds_left: float | None  # None before the first meta-step is done
    seconds_since: float | None  # since the run last wrote something; None in an object store


def status_of(url: str) -> Status:
    """Returns how the run in a directory stands. Raises BadInputError where there is none."""
    storage = open_storage(url)
    names = storage.names()
    if CONFIG not in names or EVALUATION in names:
        reason = "holds an evaluation" if EVALUATION in names else f"it has no {CONFIG}"
        raise BadInputError(f"{url}: not a run directory: {reason}")
    config = read_config(storage)
    checkpoint, progress, _ = RunDirectory(config, storage).latest()
    meta_step = checkpoint.meta_step if checkpoint else 0
    places = set(due(config.meta, checkpoint)) if checkpoint else set()
    rows = metrics_of(storage)
    steps = [row for row in rows if row["kind"] == "meta_step"]
    tasks = under_way(rows, places)
    since = None
    if isinstance(storage, LocalStorage) and METRICS in names:
        since = time.time() - (storage.path / METRICS).stat().st_mtime
    trained = sum(row.get("seconds", 0.0) for row in rows if row["kind"] == "task") + sum(
        task.seconds for task in tasks
    )
    return Status(
        run=storage.url,
        meta_step=meta_step,
        meta_steps=config.meta.steps,
        steps_per_task=config.task_updates * config.update_steps,
        agent_steps=progress.agent_steps,
        agent_steps_per_second=steps[-1].get("agent_steps_per_second") if steps else None,
        tasks=tasks,
        faults=sum(row["kind"] == "fault" for row in rows),
        core_hours=trained * config.workers.cpus / 3600,
        seconds_left=seconds_left(config, steps, meta_step, tasks),
        seconds_since=since,
    )


def under_way(rows: Sequence[Mapping[str, Any]], places: set[Place]) -> list[TaskStatus]:
    """Returns the tasks at ``places`` that have begun, as the rows of their segments say. Rows may lack what another
    version of this program, or another program, has not written."""
    newest: dict[Place, Mapping[str, Any]] = {}
    seconds: dict[Place, float] = {}
    attempts: dict[Place, set[int]] = {}
    for row in rows:
        place = (row["meta_step"], row.get("slot", -1))
        if row["kind"] == "segment" and place in places:
            newest[place] = row
            seconds[place] = seconds.get(place, 0.0) + row.get("seconds", 0.0)
            attempts.setdefault(place, {0}).add(row.get("attempt", 0))
    return [
        TaskStatus(row.get("game") or "–", row["task_agent_steps"], seconds[place], len(attempts[place]) - 1)
        for place, row in sorted(newest.items())
        if row.get("task_agent_steps")
    ]


def seconds_left(
    config: Config, steps: Sequence[Mapping[str, Any]], meta_step: int, tasks: Sequence[TaskStatus]
) -> float | None:
    """Returns how long the meta-steps to come will take, if they take as long as the last few did; what is done of the
    tasks under way is left out. None where no meta-step is done."""
    steps = [row for row in steps if "seconds" in row]
    # A meta-step that an earlier session has trained a part of has no speed, and its seconds are of the rest.
    timed = [row for row in steps if row.get("agent_steps_per_second", 0) is not None]
    recent: list[float] = [row["seconds"] for row in (timed or steps)[-RECENT:]]
    if not recent:
        return None
    whole = config.meta.batch_size * config.task_updates * config.update_steps
    done = min(sum(task.agent_steps for task in tasks) / whole, config.meta.steps - meta_step)
    return (config.meta.steps - meta_step - done) * sum(recent) / len(recent)


def describe_status(status: Status, config: Config) -> str:
    """Returns what `leap-rl status` prints."""
    measures = process_of(config).measures
    finished = status.meta_step >= status.meta_steps
    speed = status.agent_steps_per_second
    lines = [
        f"{status.run}: meta-step {status.meta_step} of {status.meta_steps}{', finished' if finished else ''}",
        f"trained    {status.agent_steps:,} {measures.step}" + (f", {speed:,.0f} a second" if speed else ""),
        f"cost       {status.core_hours:,.2f} core-hours, {status.faults} fault{'s' if status.faults != 1 else ''}",
    ]
    if not finished:
        left = "not known before the first meta-step is done"
        lines.append(f"time left  {left if status.seconds_left is None else duration(status.seconds_left)}")
        if status.seconds_since is not None:
            lines.append(f"last word  {duration(status.seconds_since)} ago")
    for task in status.tasks:
        share = task.agent_steps / status.steps_per_task
        again = f", taken up again {task.restarts} time{'s' if task.restarts > 1 else ''}" if task.restarts else ""
        rate = f", {task.agent_steps / task.seconds:,.0f} a second" if task.seconds else ""
        lines.append(f"  {task.name}: {task.agent_steps:,} {measures.step} ({share:.0%}){rate}{again}")
    return printable("\n".join(lines))
