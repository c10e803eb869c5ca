"""Trains one task from wherever it stands to its end: train a segment → make it durable → hand its increment out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from leap_rl.config import Config
from leap_rl.meta.compression import Compressor
from leap_rl.meta.ledger import Ledger
from leap_rl.processes import continue_process, initial_parameters, start_process
from leap_rl.runs.task_store import SavedTask, TaskStore
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import Broadcast, Parcel, Task, TaskError, Tensors


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
        compressor = Compressor(self._config.stream.compression, saved.residual if saved else None)
        with _errors_naming(task):
            if saved:
                process = continue_process(self._config, task, saved.state)
            else:
                process = start_process(self._config, task, self._start())
        walk = process.walk()
        while not ledger.done:
            with _errors_naming(task):
                increment = next(walk)
                state = process.state() if not increment.last else process.learned() if task.keeps_weights else {}
            packed, residual_norm = compressor.pack(increment.meta_gradient)
            parcel = Parcel(
                task, ledger.next_sequence, ledger.attempt, packed, increment.path, increment.last,
                {**increment.statistics, "increment_bytes": sum(value.nbytes for value in packed.values())},
                residual_norm,
            )  # fmt: skip
            ledger.receive(parcel)
            self._store.save(SavedTask(ledger, state, {} if parcel.last else compressor.residual))
            yield parcel

    def _start(self) -> Tensors:
        """Returns the weights that the task starts from. Raises TaskError if they are the last weights of a task that
        is not done."""
        before = self._task.start.after
        if before is None:
            return starting_weights(self._config, self._task, self._given)
        saved = self._store.load(before)
        if saved is None or not saved.ledger.done:
            raise TaskError(f"{before}, whose last weights it starts from, is not done")
        return saved.state


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
    """Turns any exception into a TaskError that names the task."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, TaskError) else f"{type(error).__name__}: {error}"
        raise TaskError(f"{task}: {reason}") from error
