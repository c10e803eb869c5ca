"""Runs all tasks in this process, one after the other: for debugging, tests and machines without Ray."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from leap_rl.backends.backend import after_error
from leap_rl.config import Config
from leap_rl.files.storage import open_storage
from leap_rl.meta.collector import Collector
from leap_rl.meta.learner import MetaLearner
from leap_rl.runs.quorum import Quorum
from leap_rl.runs.task_store import TaskStore
from leap_rl.streaming import TaskStream
from leap_rl.types import Broadcast, Fault, MetaStep, Place, Task, TaskError, TaskReport


class SerialBackend:
    """Implements ``Backend`` with the collector and the learning processes in this process."""

    num_workers = 1

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store = TaskStore(open_storage(config.run.dir))
        self._collector: Collector | None = None
        self._known: set[Place] = set()
        self._waiting: deque[Task] = deque()
        self._errors: Counter[Place] = Counter()
        self._seen: dict[Place, int] = {}  # number of segments of a task that were reported

    def __enter__(self) -> "SerialBackend":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def run_tasks(
        self, tasks: Sequence[Task], given: Broadcast, collector: Callable[[], Collector], quorum: Quorum | None = None
    ) -> Iterator[TaskReport | Fault]:
        if self._collector is None:
            self._collector = collector()
        self._waiting.extend(task for task in tasks if task.place not in self._known)
        self._known.update(task.place for task in tasks)
        yield from self._leave_out(self._collector, tasks, quorum)
        while self._collector.batch() is None:
            task = self._waiting.popleft()
            try:
                for report in self._train(self._collector, task, given):
                    yield report
                    yield from self._leave_out(self._collector, tasks, quorum)
                    if quorum and quorum.late and task.place in quorum.late:
                        break
            except TaskError as error:
                self._errors[task.place] += 1
                again, fault = after_error(task, error, self._errors[task.place])
                if again:
                    self._waiting.appendleft(task)
                else:
                    self._collector.drop(task, str(error))
                yield fault
                yield from self._leave_out(self._collector, tasks, quorum)

    def _leave_out(self, collector: Collector, tasks: Sequence[Task], quorum: Quorum | None) -> Iterator[Fault]:
        if quorum is None:
            return
        pending = [task for task in tasks if task.place not in collector.done()]
        quorum.decide([task.place for task in pending], collector.succeeded())
        for task in pending:
            if task.place in (quorum.late or ()):
                collector.drop(task, quorum.reason)
                yield Fault(task, f"{task}: left out: {quorum.reason}")
        self._waiting = deque(task for task in self._waiting if task.place not in collector.done())

    def _train(self, collector: Collector, task: Task, given: Broadcast) -> Iterator[TaskReport]:
        stream = TaskStream(self._config, self._store, task, given, attempt=self._errors[task.place])
        collector.adopt(stream.ledger)
        yield from self._news(collector)
        for parcel in stream.increments():
            collector.receive(parcel)
            yield from self._news(collector)

    def _news(self, collector: Collector) -> Iterator[TaskReport]:
        for report in collector.reports(self._seen):
            self._seen[report.task.place] = report.sequence + 1
            yield report

    def meta_step(self) -> MetaStep:
        assert isinstance(self._collector, MetaLearner), "run_tasks comes first, with a Leap learner"
        return self._collector.step()
