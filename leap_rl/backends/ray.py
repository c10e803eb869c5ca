"""The driver of Ray actors: one a worker, and one for the Leap learner. Only this, actors.py and cluster.py import Ray.

The initialization goes out once per version, through the object store. Workers stream increments to the
learner while their tasks run; the driver only says who runs what, and asks the learner what has arrived.

Anything may die. A worker's task is taken up by another, from its last segment. A lost learner is replaced
by one at the checkpoint that the driver has committed; whoever takes a task up brings its ledger along. What
an isolated worker still sends for a task that was given to another is refused by its attempt.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from ray.util.metrics import Counter as Metric
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from leap_rl.backends import MAX_ERRORS
from leap_rl.backends.actors import Learner, News, Worker
from leap_rl.backends.cluster import fits, join, own_node, room
from leap_rl.config import Config
from leap_rl.learner import Checkpoint, MetaStep
from leap_rl.ledger import TaskReport
from leap_rl.tasks import longest_first
from leap_rl.types import Fault, LeapRLError, Notice, Place, Task, TaskError

POLL_SECONDS = 1.0  # between questions to the learner while tasks run
NOTICE_SECONDS = 60.0  # of waiting, until that is said
MAX_LOSSES = 5  # workers that one task may lose without a segment done between, before the run stops
MAX_FAILED_STARTS = 20  # workers in a row that may die before they are ready


class _LostError(Exception):
    """An actor is gone, or (``alive``) something that it needed."""

    def __init__(self, text: str, alive: bool = False) -> None:
        super().__init__(text)
        self.alive = alive


@dataclass
class _Start:
    """A worker that is not ready yet."""

    worker: Any
    placed: float | None = None  # since when it has had a place, on the monotonic clock


@dataclass
class _Assignment:
    """A task that a worker has."""

    worker: Any
    task: Task
    heard: float  # when there was news of it, on the monotonic clock


class RayBackend:
    """Joins or starts a cluster on entry; on exit stops its actors, and the cluster if it started one."""

    def __init__(self, config: Config) -> None:
        if "://" not in config.run.dir:  # workers have another working directory
            run = config.run.model_copy(update={"dir": str(Path(config.run.dir).resolve())})
            config = config.model_copy(update={"run": run})
        self._config = config
        self._learner: Any = None
        self._workers: dict[Any, str | None] = {}  # worker → the node it is bound to, if any
        self._starting: dict[Any, _Start] = {}  # what will be done once it is ready → which
        self._idle: list[Any] = []
        self._running: dict[Any, _Assignment] = {}  # what will be done → who does it
        self._waiting: deque[Task] = deque()
        self._given: dict[Place, Task] = {}
        self._seen: dict[Place, int] = {}  # segments of a task that were reported
        self._attempts: Counter[Place] = Counter()
        self._errors: Counter[Place] = Counter()  # raised by a task itself
        self._losses: Counter[Place] = Counter()  # of workers, since the task's last segment
        self._failed_starts = 0  # of workers, in a row
        self._late_starts = 0  # of them: too late
        self._batch: list[Place] = []  # the tasks that the next meta-step averages: all their reports were seen
        self._question: Any = None  # to the learner, under way
        self._asked = self._spoke = 0.0  # when, on the monotonic clock, and when all was well or that was said
        self._late_answers = 0  # of learners, in a row
        self._told = 0  # workers for which there was no room when that was said last

    @property
    def num_workers(self) -> int:
        return max(1, len(self._workers) - len(self._starting))  # of those that did the work one may be left, or none

    def __enter__(self) -> "RayBackend":
        try:
            join(self._config)
            counted = ("agent_steps", "increments", "increment_bytes", "meta_steps", "restarts")  # on Ray's dashboard
            self._metrics = {name: Metric(f"leap_rl_{name}", tag_keys=("run",)) for name in counted}
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        ray.shutdown()

    def _count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._metrics[name].inc(amount, {"run": self._config.run.dir})

    def run_tasks(self, tasks: Sequence[Task], checkpoint: Checkpoint) -> Iterator[TaskReport | Fault | Notice]:
        self._checkpoint, self._version = checkpoint, ray.put(checkpoint.initialization)
        self._waiting.extend(longest_first([task for task in tasks if task.place not in self._given]))
        self._given = {task.place: task for task in tasks}
        if self._learner is None:
            self._start_learner()
        self._spoke = time.monotonic()
        while True:
            own_node()
            self._hire()
            self._assign()
            yield from self._collect()
            try:
                news = self._news()
            except _LostError as error:
                yield self._replace_learner(error)
                continue
            if news:
                for report in news.reports:
                    self._hear(report)
                    yield report
                if news.batch is not None:
                    self._batch = news.batch
                    return
                self._take_up_again(news.done)
                yield from self._watch(news.places)
            yield from self._say_what_is_missing(news)

    def _hear(self, report: TaskReport) -> None:
        place = report.task.place
        self._seen[place] = report.sequence + 1
        self._losses[place] = 0
        sums = {name: report.segment[name] for name in ("agent_steps", "increment_bytes")}
        self._count(increments=1, **sums)
        for assignment in self._running.values():
            if assignment.task.place == place:
                assignment.heard = time.monotonic()

    def meta_step(self) -> MetaStep | None:
        try:
            outcome: MetaStep = self._ask(self._learner.step.remote(self._batch))
        except _LostError:
            ray.kill(self._learner)  # it may hang, and step after all
            return None
        self._count(meta_steps=1)
        return outcome

    # -------------------------------------------------------------------------------------- workers

    def _hire(self) -> None:
        """Asks for the workers that are missing. Ray places them when a node has room: nodes may join later."""
        workers = self._config.workers
        if workers.per_node is None:
            wanted: list[str | None] = [None] * workers.count
        else:
            nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and fits(node, self._config)]
            wanted = [node for node in nodes for _ in range(workers.per_node)]
        missing = Counter(wanted) - Counter(self._workers.values())
        for node in missing.elements():
            options: dict[str, Any] = {"num_cpus": workers.cpus, "num_gpus": workers.gpus}
            if node:
                options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
            worker = ray.remote(Worker).options(**options).remote(self._config)
            self._workers[worker] = node
            self._starting[worker.ready.remote()] = _Start(worker)

    def _assign(self) -> None:
        while self._waiting and self._idle:
            worker, task = self._idle.pop(), self._waiting.popleft()
            attempt = self._attempts[task.place]
            self._attempts[task.place] += 1
            done = worker.run_task.remote(task, self._checkpoint.meta_step, self._version, attempt, self._learner)
            self._running[done] = _Assignment(worker, task, time.monotonic())

    def _collect(self) -> Iterator[Fault]:
        """Waits for workers that are ready, done or lost."""
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
            self._ask(done)
        except _LostError as error:
            del self._workers[worker]
            self._failed_starts += 1
            if self._failed_starts == MAX_FAILED_STARTS:
                raise LeapRLError(f"{MAX_FAILED_STARTS} workers in a row died at their start: {error}") from error
        else:
            self._failed_starts = self._late_starts = 0
            self._idle.append(worker)

    def _collect_task(self, done: Any) -> Iterator[Fault]:
        assignment = self._running.pop(done)
        worker, task = assignment.worker, assignment.task
        try:
            self._ask(done)
        except TaskError as error:
            self._idle.append(worker)
            self._errors[task.place] += 1
            if self._errors[task.place] < MAX_ERRORS:
                self._waiting.appendleft(task)
                yield Fault(task, f"{error}; tried again, since the machine may be at fault")
            else:
                self._learner.drop.remote(task, str(error))
                yield Fault(task, f"{error}; left out of the meta-batch")
        except _LostError as error:
            self._waiting.appendleft(task)
            if error.alive:
                self._idle.append(worker)
                return
            ray.kill(worker)  # it may live on an isolated node
            del self._workers[worker]
            self._count(restarts=1)
            self._starting |= {idle.ready.remote(): _Start(idle) for idle in self._idle}  # are they on the same node?
            self._idle = []
            self._losses[task.place] += 1
            if self._losses[task.place] == MAX_LOSSES:
                raise LeapRLError(
                    f"{task}: {MAX_LOSSES} workers died in segment {self._segment(task)} of it"
                ) from error
            yield Fault(task, f"{task}: its worker was lost in segment {self._segment(task)}; another takes it up")
        else:
            self._idle.append(worker)

    def _take_up_again(self, done: set[Place]) -> None:
        """Tasks that nobody has and that the learner does not have whole: it was lost after they ended, or it
        refused the worker. They bring along what is saved of them."""
        held = done | {assignment.task.place for assignment in self._running.values()}
        held |= {task.place for task in self._waiting}
        self._waiting.extend(longest_first([task for place, task in self._given.items() if place not in held]))

    def _segment(self, task: Task) -> int:
        return self._seen.get(task.place, 0) + 1

    def _watch(self, places: dict[str, str]) -> Iterator[Fault]:
        """Stops workers of which nothing has been heard for too long: at a task, or since they had a place to start.

        Those that only start slowly must not be stopped for ever: each that is late gives the next twice the time.
        """
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
        """Once a minute while nothing goes on. Where workers are missing and others work, once."""
        now = time.monotonic()
        missing = sum(start.placed is None for start in self._starting.values()) or int(not self._workers)
        if news and not missing:
            self._told = 0
        if news and (not missing or (self._running and missing == self._told)):
            self._spoke = now
        elif now - self._spoke > NOTICE_SECONDS:
            self._spoke = now
            if news:
                self._told = missing
                yield Notice(f"workers that wait for a node with room: {missing}; each asks for {room(self._config)}")
            else:
                yield Notice(f"the Leap learner has not answered for {now - self._asked:.0f} s")

    # ------------------------------------------------------------------------------------- the learner

    def _start_learner(self) -> None:
        """Starts it on the driver's node, and nowhere else: they die together anyway. (By a resource that each
        node has: Ray places an actor that needs none at random, even with a soft affinity.)"""
        address = own_node()["NodeManagerAddress"]
        learner = ray.remote(Learner).options(num_cpus=0, resources={f"node:{address}": 0.001})
        self._learner = learner.remote(self._config, self._checkpoint)

    def _news(self) -> News | None:
        """What the learner has to say; None where it has not answered yet, as while it starts. Raises _LostError where
        it is gone or too late: then the next one is given twice the time, since it may only be slow to start."""
        if self._question is None:
            starting = [start.worker._actor_id.hex() for start in self._starting.values()]
            self._question, self._asked = self._learner.poll.remote(self._seen, starting), time.monotonic()
        answered, _ = ray.wait([self._question], timeout=POLL_SECONDS)
        if answered:
            news: News = self._ask(self._question)
            self._question, self._late_answers = None, 0
            return news
        limit = self._config.faults.segment_timeout * 2**self._late_answers
        if time.monotonic() - self._asked > limit:
            self._late_answers += 1
            raise _LostError(f"no answer in {limit:g} s")
        for assignment in self._running.values():  # it is not their fault that nothing is heard of them
            assignment.heard = time.monotonic()
        return None

    def _replace_learner(self, error: _LostError) -> Fault:
        """Starts a learner at the last checkpoint. Tasks that run fail at their next increment and come back."""
        ray.kill(self._learner)  # it may hang
        self._question = None
        self._start_learner()
        self._count(restarts=1)
        reason = str(error).partition("\n")[0].rstrip(".")
        return Fault(None, f"the Leap learner was lost ({reason}); the next one is given what is saved of each task")

    def _ask(self, reference: Any) -> Any:
        """What an actor answers. Our own errors as they were raised there; _LostError where it is gone."""
        try:
            return ray.get(reference, timeout=self._config.faults.segment_timeout)
        except RayTaskError as error:
            if isinstance(error.cause, LeapRLError):
                raise error.cause from None
            if isinstance(error.cause, RayError):  # it lives, and lost the learner, or an object on its way
                raise _LostError(str(error.cause), alive=True) from error
            raise
        except GetTimeoutError as error:
            raise _LostError(f"no answer in {self._config.faults.segment_timeout:g} s") from error
        except (RayActorError, ActorUnschedulableError, NodeDiedError, ObjectLostError) as error:
            raise _LostError(str(error)) from error
