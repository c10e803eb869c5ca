"""Defines the vocabulary: what flows between tasks, learning processes and the Leap learner. Plain immutable data.

Task → learning process → Increment, Increment, … → Leap learner → initialization → next tasks
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypedDict

if TYPE_CHECKING:  # the command line must not wait for torch to say --help
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Tensors: TypeAlias = "Mapping[str, Tensor]"  # parameters, a meta-gradient, or the state of a process, by name
Place: TypeAlias = tuple[int, int]  # of a task: its round and its slot
SHARED = ""  # the name of the one initialization of meta-training


class LeapRLError(Exception):
    """Is raised for what a user can mend, and is reported as one line. ``exit_code`` 2 is bad input, 1 a run that
    failed."""

    exit_code = 1


class BadInputError(LeapRLError):
    """Is raised for a configuration, an argument or a file that cannot be used."""

    exit_code = 2


class TaskError(LeapRLError):
    """Is raised where a learning process has raised, or its path is not finite."""


class DivergedError(LeapRLError):
    """Is raised where a run cannot go on for a reason of its own: too many of its tasks failed, or its numbers are not
    finite. Other runs may."""


class StorageError(LeapRLError):
    """Is raised where the run directory cannot be written or read: full, gone, or not reachable from here."""


@dataclass(frozen=True)
class Start:
    """Says where a task starts: in meta-training at the shared initialization, in an evaluation at that of an arm."""

    name: str = SHARED  # of one of the initializations that workers are given; of an evaluation the arm
    share: float = 1.0  # of it in the task's weights; the rest is drawn from the task's seed
    after: Task | None = None  # at whose last weights it starts instead


@dataclass(frozen=True)
class Task:
    """Is one learning problem: ``Task(0, 3, "breakout:mode=4", seed=…)``."""

    round: int  # of meta-training: the meta-step that it was drawn for; of an evaluation: the number of its seed
    slot: int  # place in its round: the order in which increments are summed
    name: str
    seed: int  # every random stream of the task derives from it
    start: Start = Start()
    frozen: bool = False  # the encoder is not trained
    zero_shot: bool = False  # the policy plays before the first update
    keeps_weights: bool = False  # its last weights are saved, for another task to start from
    watched: bool = field(default=False, compare=False)  # so is its whole network, for a report to show it at play
    # In the continual schedule a task is one segment of a learning process, of ``num_legs``; 0: it is a whole one.
    leg: int = 0  # from 0; the others go on where the task at the same slot of the round before has ended
    num_legs: int = 0

    @property
    def before(self) -> Task | None:
        """Returns the task whose learning process it continues; None where it starts one."""
        return replace(self, round=self.round - 1, leg=self.leg - 1) if self.leg else None

    @property
    def ends(self) -> bool:
        """Says whether its learning process ends with it."""
        return self.leg + 1 >= self.num_legs

    @property
    def place(self) -> Place:
        """Names the task within its run or its evaluation."""
        return self.round, self.slot

    def __str__(self) -> str:
        if self.start.name == SHARED:
            return f"{self.name} (meta-step {self.round}, slot {self.slot})"
        return f"{self.name} (seed {self.round}, {self.start.name})"


@dataclass(frozen=True)
class Broadcast:
    """Holds what all workers are given: the initializations that tasks start from, by name."""

    initializations: Mapping[str, Tensors]
    version: int = 0  # meta-steps that were taken before


class MeasuredPath(Protocol):
    """Records a path (leap.py, processes/a2c/energy_path.py) and has its sums since the last cut."""

    path_length: float
    energy: float
    num_moves: int
    num_rises: int


@dataclass(frozen=True)
class PathSums:
    """Holds what is summed over the moves of a path, or of a part of it."""

    length: float = 0.0
    energy: float = 0.0
    moves: int = 0
    rises: int = 0  # moves on which the loss rose

    @classmethod
    def of(cls, path: MeasuredPath) -> PathSums:
        """Returns the sums of a path since its last cut."""
        return cls(path.path_length, path.energy, path.num_moves, path.num_rises)

    def __add__(self, other: PathSums) -> PathSums:
        return PathSums(
            self.length + other.length, self.energy + other.energy, self.moves + other.moves, self.rises + other.rises
        )


@dataclass(frozen=True)
class Increment:
    """Holds what one segment of a learning process adds to the meta-gradient."""

    meta_gradient: Tensors  # Σ over the segment's moves, name → tensor shaped like the parameter
    path: PathSums  # over the same moves
    last: bool  # the task ends with this segment
    statistics: Mapping[str, float] = field(default_factory=dict)  # sums by name (docs/metrics.md)


@dataclass(frozen=True)
class Parcel:
    """Holds an increment as it is sent: packed, and with all that is needed to apply it once, in its turn."""

    task: Task
    sequence: int  # number of the segment within the task, from 0
    attempt: int  # rises each time that the task is taken up; not a count (streaming.py)
    packed: Tensors  # the meta-gradient (meta/compression.py)
    path: PathSums
    last: bool
    statistics: Mapping[str, float] = field(default_factory=dict)
    residual_norm: float = 0.0  # of what compression has kept back so far


@dataclass(frozen=True)
class TaskReport:
    """Says what has been received of a task up to a segment: sums over its path, and statistics (sums by name)."""

    task: Task
    sequence: int  # of the newest segment, from 0
    attempt: int  # that delivered it
    path: PathSums
    done: bool
    statistics: Mapping[str, float]
    segment: Mapping[str, float]  # statistics of the newest segment alone
    residual_norm: float = 0.0  # of what compression has kept back


@dataclass(frozen=True)
class Checkpoint:
    """Holds everything the learner needs to go on after ``meta_step`` steps."""

    meta_step: int
    initialization: Tensors  # name → float32 tensor
    optimizer: Tensors  # state of the meta-optimizer, name → tensor
    unfinished: tuple[Place, ...] = ()  # tasks drawn for earlier meta-steps that none has averaged yet


class Cosines(TypedDict):
    """Holds cosines, of which ``matrix[i][j]`` belongs to ``games[i]`` and ``games[j]``; None where no pair of tasks
    was compared."""

    games: list[str]
    matrix: list[list[float | None]]


@dataclass(frozen=True)
class MetaStep:
    """Says what one meta-step did."""

    meta_step: int  # 0-based
    path_length: float  # mean over the tasks that were averaged
    energy: float
    meta_gradient_norm: float
    task_norms: tuple[float, ...]  # of the meta-gradient of each of ``tasks``, before it was scaled down
    update_norm: float  # ‖θ⁰ after − θ⁰ before‖
    lr: float
    tasks: tuple[TaskReport, ...]  # the newest report of each task that was averaged, in order of place
    dropped: tuple[tuple[Task, str], ...]  # tasks that failed, and why: left out of the mean
    staleness: tuple[int, ...]  # of each task: meta-steps that were taken while it ran
    duplicates: int  # increments that had been applied already
    stale: int  # increments of an attempt that had been given up
    cosines: Cosines  # between the games' meta-gradients
    compression_error: float  # at most this share of the meta-gradient was kept back by compression
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Fault:
    """Says that something went wrong and was dealt with, or that a task was dropped."""

    task: Task | None  # None: it was not about one task
    text: str


@dataclass(frozen=True)
class Notice:
    """Says why nothing goes on: somebody may want to know, and nothing is wrong yet."""

    text: str


class Parts(NamedTuple):
    """Names of all tasks in three parts, each in its own order."""

    training: list[str]
    validation: list[str]
    held_out: list[str]


class Frame(NamedTuple):
    """Holds what there is to see of play after one agent step."""

    screen: NDArray[np.uint8]  # [height, width, 3], RGB
    score: float  # of the episode so far
    episode: int  # from 1


class LearningProcess(Protocol):
    """Walks a path on one task's loss surface: a generator of increments over explicit state.

    A process is built from a configuration and a task; then either :meth:`start` or :meth:`load_state` is
    called, once; then :meth:`walk`.
    """

    def start(self, initialization: Tensors) -> None:
        """Starts the task at the shared initialization. Raises an exception, of any kind, where it does not fit."""
        ...

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` was taken, to the same bits."""
        ...

    def walk(self) -> Iterator[Increment]:
        """Trains to the end of the task, yielding one increment a segment."""
        ...

    def learned(self) -> Tensors:
        """Returns copies of the present values of what is meta-learned, by name in the initialization."""
        ...

    def state(self) -> Tensors:
        """Returns the whole state at an increment; raises RuntimeError elsewhere."""
        ...


class ShiftedProcess(LearningProcess, Protocol):
    """Is a learning process that the continual schedule moves along with the initialization."""

    def shift(self, change: Tensors) -> None:
        """Adds the initialization's ``change`` to what is meta-learned, and to the open end of the path: name → tensor.
        To be called at an increment, or after :meth:`load_state`."""
        ...
