"""Everything in this process, one task after the other: for debugging, tests and machines without Ray."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from leap_rl.backends import MAX_ERRORS
from leap_rl.config import Config
from leap_rl.learner import Checkpoint, MetaLearner, MetaStep
from leap_rl.ledger import TaskReport
from leap_rl.storage import open_storage
from leap_rl.streaming import TaskStream
from leap_rl.task_store import TaskStore
from leap_rl.types import Fault, Place, Task, TaskError


class SerialBackend:
    num_workers = 1

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store = TaskStore(open_storage(config.run.dir))
        self._learner: MetaLearner | None = None
        self._given: set[Place] = set()
        self._waiting: deque[Task] = deque()
        self._seen: dict[Place, int] = {}  # segments of a task that were reported

    def __enter__(self) -> "SerialBackend":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def run_tasks(self, tasks: Sequence[Task], checkpoint: Checkpoint) -> Iterator[TaskReport | Fault]:
        if self._learner is None:
            self._learner = MetaLearner(self._config.meta, checkpoint, self._config.faults.min_tasks)
        self._waiting.extend(task for task in tasks if task.place not in self._given)
        self._given.update(task.place for task in tasks)
        while self._learner.batch() is None:
            task = self._waiting.popleft()
            for attempt in range(MAX_ERRORS):
                try:
                    yield from self._train(self._learner, task, checkpoint, attempt)
                    break
                except TaskError as error:
                    if attempt + 1 < MAX_ERRORS:
                        yield Fault(task, f"{error}; tried again, since the machine may be at fault")
                    else:
                        self._learner.drop(task, str(error))
                        yield Fault(task, f"{error}; left out of the meta-batch")

    def _train(self, learner: MetaLearner, task: Task, checkpoint: Checkpoint, attempt: int) -> Iterator[TaskReport]:
        version, initialization = checkpoint.meta_step, checkpoint.initialization
        stream = TaskStream(self._config, self._store, task, version, initialization, attempt)
        learner.adopt(stream.ledger)
        yield from self._news(learner)
        for increment in stream.increments():
            learner.receive(increment)
            yield from self._news(learner)

    def _news(self, learner: MetaLearner) -> Iterator[TaskReport]:
        for report in learner.reports(self._seen):
            self._seen[report.task.place] = report.sequence + 1
            yield report

    def meta_step(self) -> MetaStep:
        assert self._learner is not None, "run_tasks comes first"
        return self._learner.step()
