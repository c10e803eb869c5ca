"""Defines what the Ray backend keeps of tasks and workers, a record each, and how it takes an actor's answer.

A task is queued, then assigned to a worker, until it is done. It is queued again when its worker is lost, when the
learner is lost, or once after an error of its own. A worker starts, is idle, and works, in turns.
"""

from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
)

from leap_rl.backends.nodes import last_line, last_words
from leap_rl.types import LeapRLError, Task


class LostError(Exception):
    """Reports that an actor is gone, or that it is ``alive`` and something that it needed is gone."""

    def __init__(self, text: str, alive: bool = False) -> None:
        super().__init__(text)
        self.alive = alive


def answer(reference: Any, seconds: float) -> Any:
    """Returns an actor's answer. Raises our own errors as they were raised there, and LostError if the actor is gone or
    does not answer in time."""
    try:
        return ray.get(reference, timeout=seconds)
    except RayTaskError as error:
        if isinstance(error.cause, LeapRLError):
            raise error.cause from None
        if isinstance(error.cause, RayError):  # the actor is alive, but the learner or an object was lost
            raise LostError(str(error.cause), alive=True) from error
        raise
    except GetTimeoutError as error:
        raise LostError(f"no answer in {seconds:g} s") from error
    except (RayActorError, ActorUnschedulableError, NodeDiedError, ObjectLostError) as error:
        raise LostError(str(error)) from error


def explained(error: LostError, actor: Any) -> str:
    """Returns why an actor is gone: the last line that it wrote, if that can be read, or Ray's own reason."""
    words = last_words(actor._actor_id.hex())
    return f"wrote: {words}" if words else last_line(str(error))


@dataclass
class StartingWorker:
    """Tracks a worker that is not ready yet."""

    worker: Any
    placed: float | None = None  # monotonic time at which a node had room for it, if one has


@dataclass
class Assignment:
    """Tracks a task that a worker is training."""

    worker: Any
    task: Task
    heard: float  # monotonic time of its latest segment


@dataclass
class Work:
    """Tracks one task, from when it is first given out until the meta-step that averages it."""

    task: Task
    segments: int = 0  # number of segments that were reported
    attempts: int = 0  # number of workers it was given to
    errors: int = 0  # number of errors that the task itself has raised
    left_out: bool = False  # late (see quorum.py)
    losses: int = 0  # number of workers lost since its last segment; MAX_LOSSES stop the run
