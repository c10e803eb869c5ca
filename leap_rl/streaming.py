"""Trains one task from wherever it stands to its end: train a segment → make it durable → hand its increment out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from leap_rl.config import Config
from leap_rl.files.tensor_files import below
from leap_rl.meta.compression import Compressor
from leap_rl.meta.ledger import Ledger
from leap_rl.processes import continue_process, initial_parameters, process_of, start_process
from leap_rl.runs.task_store import SavedTask, TaskStore
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import (
    Broadcast,
    Increment,
    LearningProcess,
    Parcel,
    ShiftedProcess,
    StorageError,
    Task,
    TaskError,
    Tensors,
)

WATCHED = "watched/"  # prefix of the parameters that are saved to be watched


class TaskStream:
    """Continues a task from what is saved of it, or starts it from ``given``: has its ledger so far, and yields the
    increments that are still to come.

    ``attempt`` is how often the caller has given the task out before. The saved attempt + 1 is added to it, so that of
    two workers with one task the later has the higher number.
    """

    def __init__(self, config: Config, store: TaskStore, task: Task, given: Broadcast, attempt: int = 0) -> None:
        saved = store.load(task)
        self.ledger = saved.ledger if saved else Ledger(task, given.version)
        self.ledger.attempt = attempt + (saved.ledger.attempt + 1 if saved else 0)
        self._config, self._store, self._task, self._given = config, store, task, given.initializations
        self._saved = saved

    def increments(self) -> Iterator[Parcel]:
        """Yields the increments to come. Each is saved before it is handed out, so whoever gets it may rely on it.

        Raises TaskError, which names the task, for whatever the process raises, and StorageError.
        """
        if self.ledger.done:
            return
        ledger, task, saved = self.ledger, self._task, self._saved
        with _errors_naming(task):
            before = None if saved or task.before is None else self._ended(task.before)
        earlier = saved or before
        compressor = Compressor(self._config.stream.compression, earlier.residual if earlier else None)
        with _errors_naming(task):
            if saved:
                process = continue_process(self._config, task, saved.state)
            elif before:
                process = self._next_leg(before)
            else:
                process = start_process(self._config, task, self._start())
        walk = process.walk()
        while not ledger.done:
            with _errors_naming(task):
                increment = next(walk)
                last = increment.last or task.num_legs > 0
                state = self._kept(process, increment)
                packed, residual_norm = compressor.pack(increment.meta_gradient)
                parcel = Parcel(
                    task, ledger.next_sequence, ledger.attempt, packed, increment.path, last,
                    {**increment.statistics, "increment_bytes": sum(value.nbytes for value in packed.values())},
                    residual_norm,
                )  # fmt: skip
                ledger.receive(parcel)
                residual = compressor.residual if state and not increment.last else {}
                self._store.save(SavedTask(ledger, state, residual))
            yield parcel

    def _start(self) -> Tensors:
        """Returns the weights that the task starts from. Raises TaskError if they are the last weights of a task that
        is not done."""
        before = self._task.start.after
        if before is None:
            return starting_weights(self._config, self._task, self._given)
        return {name: value for name, value in self._ended(before).state.items() if not name.startswith(WATCHED)}

    def _ended(self, task: Task) -> SavedTask:
        """Returns what is saved of a task that this one goes on from. Raises TaskError if it is not done."""
        saved = self._store.load(task)
        if saved is None or not saved.ledger.done:
            raise TaskError(f"{task}, which it goes on from, is not done")
        return saved

    def _kept(self, process: LearningProcess, increment: Increment) -> Tensors:
        """Returns what is saved after an increment: the state to go on from. Of a task's end that is nothing, but for
        the weights that another task starts from. The next leg needs the initialization of this one beside the state.
        """
        task = self._task
        if task.num_legs:
            if task.ends:
                return {}
            groups = {"process": process.state(), "given": self._given[task.start.name]}
            return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
        if not increment.last:
            return process.state()
        watched = process_of(self._config).network(process) if task.watched else {}
        kept = process.learned() if task.keeps_weights else {}
        return {**kept, **{f"{WATCHED}{name}": value for name, value in watched.items()}}

    def _next_leg(self, before: SavedTask) -> LearningProcess:
        """Returns the process that a leg goes on with, where the leg before has left it, moved along with the
        initialization (Shin et al. 2021, "Large-Scale Meta-Learning with Continual Trajectory Shifting")."""
        process = continue_process(self._config, self._task, below(before.state, "process/"))
        then, now = below(before.state, "given/"), self._given[self._task.start.name]
        cast("ShiftedProcess", process).shift({name: now[name] - value for name, value in then.items()})
        return process


def starting_weights(config: Config, task: Task, given: Mapping[str, Tensors]) -> Tensors:
    """Returns the weights that a task starts from: ``task.start.share`` of the initialization that it names, and the
    rest drawn from its seed."""
    share, ours = task.start.share, given.get(task.start.name, {})
    if share == 1:
        return ours
    drawn = initial_parameters(config, derive_seed(task.seed, Purpose.INITIALIZATION))
    if share == 0:
        return drawn
    return {name: share * value + (1 - share) * drawn[name] if name in drawn else value for name, value in ours.items()}


@contextmanager
def _errors_naming(task: Task) -> Iterator[None]:
    """Turns any exception into a TaskError that names the task, but for StorageError, of which no task is at fault."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, TaskError) else f"{type(error).__name__}: {error}"
        raise TaskError(f"{task}: {reason}") from error
