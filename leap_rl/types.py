"""The vocabulary: what flows between tasks, learning processes and the Leap learner. Plain immutable data.

Task → learning process → Increment, Increment, … → Leap learner → initialization → next tasks
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:  # the command line must not wait for torch to say --help
    from torch import Tensor

Tensors: TypeAlias = "Mapping[str, Tensor]"  # parameters, a meta-gradient, or the state of a process, by name
Place: TypeAlias = tuple[int, int]  # of a task: the meta-step it was drawn for, and its slot in the meta-batch


class LeapRLError(Exception):
    """Something a user can mend: reported as one line. ``exit_code`` 2 is bad input, 1 a run that failed."""

    exit_code = 1


class BadInputError(LeapRLError):
    """A configuration, argument or file that cannot be used."""

    exit_code = 2


class TaskError(LeapRLError):
    """A learning process raised, or its path is not finite."""


class StorageError(LeapRLError):
    """The run directory cannot be written or read: full, gone, or not reachable from here."""


@dataclass(frozen=True)
class Task:
    """One learning problem of a meta-batch: ``Task(0, 3, "breakout:mode=4", seed=…)``."""

    meta_step: int  # the one it was drawn for
    slot: int  # place in the meta-batch: the order in which increments are summed
    name: str
    seed: int  # every random stream of the task derives from it
    arm: str = ""  # of an evaluation: whose initialization it starts from; meta-training has only the shared one

    @property
    def place(self) -> Place:
        """Names the task within its run."""
        return self.meta_step, self.slot

    def __str__(self) -> str:
        return f"{self.name} (meta-step {self.meta_step}, slot {self.slot})"


@dataclass(frozen=True)
class IncrementKey:
    """Identifies one segment of one task's path, so that it can be applied once, in order."""

    meta_step: int
    slot: int
    sequence: int  # segment number within the task, from 0
    attempt: int = 0  # how often the task had been taken up before


@dataclass(frozen=True)
class Increment:
    """What one segment of a learning process adds to the meta-gradient."""

    key: IncrementKey
    task: Task
    meta_gradient: Tensors  # Σ over the segment's moves, name → tensor shaped like the parameter; may be packed
    path_length: float
    energy: float
    num_moves: int
    num_rises: int  # moves on which the loss rose
    last: bool  # the task ends with this segment
    statistics: Mapping[str, float] = field(default_factory=dict)  # see docs/metrics.md
    residual_norm: float = 0.0  # of what compression has kept back so far


@dataclass(frozen=True)
class Fault:
    """Something went wrong and was dealt with, or a task was dropped."""

    task: Task | None  # None: it was not about one task
    text: str


@dataclass(frozen=True)
class Notice:
    """Why nothing goes on: somebody may want to know, and nothing is wrong yet."""

    text: str


class LearningProcess(Protocol):
    """Walks a path on one task's loss surface: a generator of increments over explicit state."""

    def walk(self) -> Iterator[Increment]:
        """Trains to the end of the task, yielding one increment a segment."""
        ...

    def state(self) -> Tensors:
        """The whole state between two gradient steps; continuing from it gives the same bits."""
        ...
