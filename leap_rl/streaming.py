"""One task from wherever it stands to its end: train a segment → make it durable → hand its increment out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from leap_rl.compression import Compressor
from leap_rl.config import Config
from leap_rl.ledger import Ledger
from leap_rl.processes import continue_process, initial_parameters, start_process
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.task_store import SavedTask, TaskStore
from leap_rl.tensor_files import below
from leap_rl.types import Increment, Task, TaskError, Tensors

RANDOM_ARM = "random"  # of an evaluation: the one that starts from a random initialization


class TaskStream:
    """A task being trained: its ledger so far, and the increments that are still to come.

    Takes up what is saved of the task, or starts it from the initialization of ``version``. ``attempt`` is how
    often the caller had it taken up before; it counts on from the one that was saved, so that of two that meet
    the later one is the higher.
    """

    def __init__(
        self, config: Config, store: TaskStore, task: Task, version: int, initialization: Tensors, attempt: int = 0
    ) -> None:
        saved = store.load(task)
        self.ledger = saved.ledger if saved else Ledger(task, version)
        self.ledger.attempt = attempt + (saved.ledger.attempt + 1 if saved else 0)
        self._config, self._store, self._task, self._initialization = config, store, task, initialization
        self._saved = saved

    def increments(self) -> Iterator[Increment]:
        """The increments to come, each durable before it is handed out: whoever gets it may rely on it.

        Raises TaskError, which names the task, for whatever the process raises, and StorageError.
        """
        if self.ledger.done:
            return
        ledger, task, saved = self.ledger, self._task, self._saved
        compressor = Compressor(self._config.stream.compression, saved.residual if saved else None)
        with _named(task):
            if saved:
                process = continue_process(self._config, task, saved.state, ledger.attempt)
            else:
                initialization = _where_it_starts(self._config, task, self._initialization)
                process = start_process(self._config, task, initialization, ledger.attempt)
        walk = process.walk()
        while not ledger.done:
            with _named(task):
                increment = next(walk)
                state = {} if increment.last else process.state()
            packed, residual_norm = compressor.pack(increment.meta_gradient)
            statistics = {**increment.statistics, "increment_bytes": sum(value.nbytes for value in packed.values())}
            increment = replace(increment, meta_gradient=packed, statistics=statistics, residual_norm=residual_norm)
            ledger.receive(increment)
            self._store.save(SavedTask(ledger, state, {} if increment.last else compressor.residual))
            yield increment


def _where_it_starts(config: Config, task: Task, given: Tensors) -> Tensors:
    """The shared initialization; in an evaluation the one that is ``given`` below the arm's name, or, for the
    random arm, one that is drawn from the task's seed."""
    if not task.arm:
        return given
    if task.arm == RANDOM_ARM:
        return initial_parameters(config, derive_seed(task.seed, Purpose.INITIALIZATION))
    return below(given, f"{task.arm}/")


@contextmanager
def _named(task: Task) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, TaskError) else f"{type(error).__name__}: {error}"
        raise TaskError(f"{task}: {reason}") from error
