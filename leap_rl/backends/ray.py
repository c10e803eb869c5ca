"""Drives Ray actors: one for each worker, and one for the Leap learner.

Each call of ``run_tasks`` broadcasts the initialization once, through the object store. Workers stream increments to
the learner while their tasks run; the driver only decides who runs what, and asks the learner what has arrived.

Anything may die. If a worker is lost, another one takes its task up from the last segment. If the learner is lost, a
new one starts, at the last committed checkpoint, and the workers that take up its tasks bring their ledgers along. An
isolated worker may still send increments for a task that was given to another; they carry an older attempt, and are
refused.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.metrics import Counter as RayCounter
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from leap_rl.backends.actors import News, Worker
from leap_rl.backends.backend import after_error
from leap_rl.backends.cluster import join, leave
from leap_rl.backends.learner_handle import LearnerHandle
from leap_rl.backends.nodes import check_code, check_nodes, fits, own_node, room
from leap_rl.backends.work import Assignment, LostError, StartingWorker, Work, answer, explained
from leap_rl.config import Config
from leap_rl.meta.collector import Collector
from leap_rl.meta.sampling import longest_first
from leap_rl.processes import process_of
from leap_rl.runs.quorum import Quorum
from leap_rl.types import (
    Broadcast,
    Fault,
    LeapRLError,
    MetaStep,
    Notice,
    Place,
    StorageError,
    Task,
    TaskError,
    TaskReport,
)

POLL_SECONDS = 1.0  # time that the driver waits for a worker to be ready, done or lost before it asks the learner
NOTICE_SECONDS = 60.0  # time without progress before a notice is yielded
MAX_LOSSES = 5  # workers that one task may lose within a segment before the run stops
MAX_FAILED_STARTS = 20  # workers in a row that may die before they are ready, before the run stops


class RayBackend:
    """Implements ``Backend`` with Ray actors. Its ``with`` statement joins or starts a cluster, and at the end
    stops the actors, and the cluster if it started one."""

    def __init__(self, config: Config) -> None:
        if "://" not in config.run.dir:  # workers have another current directory
            run = config.run.model_copy(update={"dir": str(Path(config.run.dir).resolve())})
            config = config.model_copy(update={"run": run})
        self._config = config
        self._cost = process_of(config).seconds_per_step
        self._learner = LearnerHandle(config.faults.segment_timeout)
        self._workers: dict[Any, str | None] = {}  # worker → the node it is bound to, if any
        self._starting: dict[Any, StartingWorker] = {}  # Ray's reference to ready() → the worker that starts
        self._idle: list[Any] = []
        self._running: dict[Any, Assignment] = {}  # Ray's reference to run_task() → worker and task
        self._waiting: deque[Task] = deque()
        self._work: dict[Place, Work] = {}
        self._failed_starts = 0  # number of workers in a row that died before they were ready
        self._late_starts = 0  # number of workers in a row that were stopped because they started too slowly
        self._batch: list[Place] = []  # the tasks that the next meta-step averages; all their reports were seen
        self._last_progress = 0.0  # monotonic time of the latest progress or notice
        self._num_announced = 0  # number of workers without a place in the latest notice

    @property
    def num_workers(self) -> int:
        return max(1, len(self._workers) - len(self._starting))  # after losses there may be none

    def __enter__(self) -> "RayBackend":
        try:
            join(self._config)
            counted = ("agent_steps", "increments", "increment_bytes", "meta_steps", "restarts")  # see docs/metrics.md
            self._metrics = {name: RayCounter(f"leap_rl_{name}", tag_keys=("run",)) for name in counted}
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        leave()

    def _count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._metrics[name].inc(amount, {"run": self._config.run.dir})

    def run_tasks(
        self, tasks: Sequence[Task], given: Broadcast, collector: Callable[[], Collector], quorum: Quorum | None = None
    ) -> Iterator[TaskReport | Fault | Notice]:
        self._given = ray.put(given)
        self._waiting.extend(longest_first([task for task in tasks if task.place not in self._work], self._cost))
        self._work = {task.place: self._work.get(task.place, Work(task)) for task in tasks}
        self._waiting = deque(task for task in self._waiting if task.place in self._work)
        if self._learner.actor is None:
            self._learner.start(collector)
        self._last_progress = time.monotonic()
        while True:
            own_node()
            if quorum:
                yield from self._leave_out(quorum)
            self._hire()
            self._assign()
            yield from self._collect()
            try:
                news = self._news()
            except LostError as error:
                yield self._learner.replace(error, collector)
                self._count(restarts=1)
                continue
            if news:
                yield from self._hear(news.reports)
                if quorum and quorum.decide(self._work.keys() - news.done, news.succeeded):
                    yield from self._leave_out(quorum)
                if news.batch is not None:
                    self._batch = news.batch
                    return
                self._take_up_again(news.done)
                yield from self._watch(news.places)
            yield from self._say_what_is_missing(news)

    def _leave_out(self, quorum: Quorum) -> Iterator[Fault]:
        """Drops the tasks that are late. The learner is told before it is asked for news: it may be a new one."""
        late = quorum.late or set()
        for place in sorted(late):
            work = self._work[place]
            self._learner.drop(work.task, quorum.reason)
            if not work.left_out:
                work.left_out = True
                yield Fault(work.task, f"{work.task}: left out: {quorum.reason}")
        self._waiting = deque(task for task in self._waiting if task.place not in late)

    def _work_on(self, task: Task) -> Work:
        return self._work.get(task.place, Work(task))  # a worker may still be at a task that nobody waits for

    def _hear(self, reports: Sequence[TaskReport]) -> Iterator[TaskReport]:
        assigned = {assignment.task.place: assignment for assignment in self._running.values()}
        for report in reports:
            work = self._work_on(report.task)
            if work.left_out:
                continue
            work.segments, work.losses = report.sequence + 1, 0
            sums = {name: report.segment[name] for name in ("agent_steps", "increment_bytes")}
            self._count(increments=1, **sums)
            if report.task.place in assigned:
                assigned[report.task.place].heard = time.monotonic()
            yield report

    def _news(self) -> News | None:
        """Returns the learner's news, or None if it has not answered yet. Raises LostError if it is lost."""
        starting = [start.worker._actor_id.hex() for start in self._starting.values()]
        news = self._learner.news({place: work.segments for place, work in self._work.items()}, starting)
        if news is None:  # without the learner's news, workers must not count as silent
            for assignment in self._running.values():
                assignment.heard = time.monotonic()
        return news

    def meta_step(self) -> MetaStep | None:
        outcome = self._learner.step(self._batch)
        if outcome is not None:
            self._count(meta_steps=1)
        return outcome

    def _hire(self) -> None:
        """Creates the actors of missing workers, but not more than there are tasks. Ray places them as soon as a node
        has room; nodes may join later."""
        workers = self._config.workers
        if workers.per_node is None:
            wanted: list[str | None] = [None] * workers.count
        else:
            nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and fits(node, self._config)]
            wanted = [node for _ in range(workers.per_node) for node in nodes]
        missing = Counter(wanted[: len(self._work)]) - Counter(self._workers.values())
        for node in missing.elements():
            options: dict[str, Any] = {"num_cpus": workers.cpus, "num_gpus": workers.gpus}
            if node:
                options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
            worker = ray.remote(Worker).options(**options).remote(self._config)
            self._workers[worker] = node
            self._starting[worker.ready.remote()] = StartingWorker(worker)

    def _assign(self) -> None:
        while self._waiting and self._idle:
            worker, task = self._idle.pop(), self._waiting.popleft()
            work = self._work_on(task)
            done = worker.run_task.remote(task, self._given, work.attempts, self._learner.actor)
            work.attempts += 1
            self._running[done] = Assignment(worker, task, time.monotonic())

    def _collect(self) -> Iterator[Fault]:
        """Waits a moment for workers that are ready, done or lost, and deals with them."""
        pending = [*self._running, *self._starting]
        ready, _ = ray.wait(pending, timeout=POLL_SECONDS) if pending else ([], [])
        if not self._workers:
            time.sleep(POLL_SECONDS)
        for done in ready:
            if done in self._starting:
                self._collect_start(done)
            elif done in self._running:
                yield from self._collect_task(done)

    def _collect_start(self, done: Any) -> None:
        worker = self._starting.pop(done).worker
        try:
            check_code(self._ask(done))
        except RayTaskError:
            check_nodes()
            raise
        except LostError as error:
            del self._workers[worker]
            self._failed_starts += 1
            if self._failed_starts == 1:
                check_nodes()
            if self._failed_starts == MAX_FAILED_STARTS:
                reason = explained(error, worker)
                raise LeapRLError(
                    f"{MAX_FAILED_STARTS} workers in a row died at their start; the last one {reason}"
                ) from error
        else:
            self._failed_starts = self._late_starts = 0
            self._idle.append(worker)

    def _collect_task(self, done: Any) -> Iterator[Fault]:
        assignment = self._running.pop(done)
        worker, task, work = assignment.worker, assignment.task, self._work_on(assignment.task)
        forgotten = task.place not in self._work  # left out of an earlier meta-step; its files may be gone meanwhile
        try:
            self._ask(done)
        except (TaskError, StorageError) as error:
            if forgotten:
                self._idle.append(worker)
                return
            if isinstance(error, StorageError):
                raise
            self._idle.append(worker)
            work.errors += 1
            again, fault = after_error(task, error, work.errors)
            if again:
                self._waiting.appendleft(task)
            else:
                self._learner.drop(task, str(error))
            yield fault
        except LostError as error:
            if not forgotten:
                self._waiting.appendleft(task)
            if error.alive:
                self._idle.append(worker)
                return
            ray.kill(worker)  # it may still live on an isolated node
            del self._workers[worker]
            self._count(restarts=1)
            # Idle workers may have been lost with it, so each must answer again.
            self._starting |= {idle.ready.remote(): StartingWorker(idle) for idle in self._idle}
            self._idle = []
            if forgotten:
                return
            work.losses += 1
            if work.losses == MAX_LOSSES:
                raise LeapRLError(
                    f"{task}: {MAX_LOSSES} workers died in segment {work.segments + 1} of it; the last one "
                    f"{explained(error, worker)}"
                ) from error
            yield Fault(task, f"{task}: its worker was lost in segment {work.segments + 1}; another takes it up")
        else:
            self._idle.append(worker)

    def _take_up_again(self, done: set[Place]) -> None:
        """Queues again the tasks that no worker has and whose end the learner lacks: it was lost after they ended, or
        it refused their worker. They continue from what is saved of them."""
        held = done | {assignment.task.place for assignment in self._running.values()}
        held |= {task.place for task in self._waiting}
        left = [work.task for place, work in self._work.items() if place not in held]
        self._waiting.extend(longest_first(left, self._cost))

    def _watch(self, places: dict[str, str]) -> Iterator[Fault]:
        """Stops workers that have sent nothing for too long, or that start too slowly although a node has room. Each
        such start gives the next one twice the time, so that slow starts succeed in the end."""
        now, limit = time.monotonic(), self._config.faults.segment_timeout
        for assignment in self._running.values():
            if now - assignment.heard > limit:
                assignment.heard = now
                task = assignment.task
                ray.kill(assignment.worker)
                yield Fault(task, f"{task}: no increment for faults.segment_timeout = {limit:g} s; worker stopped")
        limit *= 2**self._late_starts
        for start in self._starting.values():
            address = places.get(start.worker._actor_id.hex())
            if address and start.placed is None:
                start.placed = now
            elif address and start.placed is not None and now - start.placed > limit:
                start.placed = now
                self._late_starts += 1
                ray.kill(start.worker)
                next_task = self._waiting[0] if self._waiting else None
                text = f"the worker on {address} was not ready in {limit:g} s (faults.segment_timeout); worker stopped"
                yield Fault(next_task, f"{next_task}: {text}" if next_task else text)

    def _say_what_is_missing(self, news: News | None) -> Iterator[Notice]:
        """Yields a notice each minute without progress; only one if workers are missing while others work."""
        now = time.monotonic()
        missing = sum(start.placed is None for start in self._starting.values()) or int(not self._workers)
        if news and not missing:
            self._num_announced = 0
        if news and (not missing or (self._running and missing == self._num_announced)):
            self._last_progress = now
        elif now - self._last_progress > NOTICE_SECONDS:
            self._last_progress = now
            if news:
                self._num_announced = missing
                yield Notice(f"workers that wait for a node with room: {missing}; each asks for {room(self._config)}")
            else:
                yield Notice(f"the Leap learner has not answered for {now - self._learner.asked:.0f} s")

    def _ask(self, reference: Any) -> Any:
        return answer(reference, self._config.faults.segment_timeout)
