"""Ray actors: one a worker, and one for the Leap learner. The only module that imports Ray.

The initialization goes out once per version, through the object store. Workers stream increments to the
learner while their tasks run; the driver only says who runs what, and asks the learner what has arrived.

Anything may die. A worker's task is taken up by another, from its last segment. A lost learner is replaced
by one at the checkpoint that the driver has committed; whoever takes a task up brings its ledger along. What
an isolated worker still sends for a task that was given to another is refused by its attempt.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from numpy.typing import NDArray
from ray._private.services import canonicalize_bootstrap_address
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
from leap_rl.config import Config
from leap_rl.learner import Checkpoint, MetaLearner, MetaStep
from leap_rl.ledger import TaskReport
from leap_rl.run import check_reachable
from leap_rl.storage import open_storage
from leap_rl.streaming import TaskStream
from leap_rl.task_store import TaskStore
from leap_rl.tasks import longest_first
from leap_rl.types import BadInputError, Fault, LeapRLError, Place, Task, TaskError, Tensors

CONNECT_SECONDS = 5.0  # for something to answer at ray.address
POLL_SECONDS = 1.0  # between questions to the learner while tasks run
MAX_LOSSES = 5  # workers that one task may lose without a segment done between, before the run stops
MAX_FAILED_STARTS = 20  # workers in a row that may die before they are ready


class _LostError(Exception):
    """An actor is gone, or (``alive``) something that it needed."""

    def __init__(self, text: str, alive: bool = False) -> None:
        super().__init__(text)
        self.alive = alive


class Worker:
    """Runs learning processes, one at a time (an actor)."""

    def __init__(self, config: Config) -> None:
        _send_tensors_as_arrays()
        self._config = config

    def ready(self) -> None:
        """Raises BadInputError where the run directory cannot be reached from this node."""
        check_reachable(self._config, ray.util.get_node_ip_address())

    def run_task(self, task: Task, version: int, initialization: Tensors, attempt: int, learner: Any) -> None:
        """Trains one task from wherever it stands, sending its increments to the learner: one is under way
        while the next is made. Stops early where the learner has no use for them."""
        store = TaskStore(open_storage(self._config.run.dir))
        stream = TaskStream(self._config, store, task, version, initialization, attempt)
        sent = learner.adopt.remote(stream.ledger)
        for increment in stream.increments():
            if not ray.get(sent):
                return
            sent = learner.receive.remote(increment)
        ray.get(sent)


class Learner(MetaLearner):
    """The Leap learner as an actor."""

    def __init__(self, config: Config, checkpoint: Checkpoint) -> None:
        _send_tensors_as_arrays()
        super().__init__(config.meta, checkpoint, config.faults.min_tasks)

    def poll(self, seen: dict[Place, int]) -> tuple[list[TaskReport], set[Place], bool]:
        """What the driver wants to know while tasks run: what is new, which tasks need no worker any more, and
        whether the learner is ready to step."""
        return self.reports(seen), self.done(), self.ready()


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
        self._starting: dict[Any, Any] = {}  # what will be done once it is ready → worker
        self._idle: list[Any] = []
        self._running: dict[Any, _Assignment] = {}  # what will be done → who does it
        self._waiting: deque[Task] = deque()
        self._given: dict[Place, Task] = {}
        self._seen: dict[Place, int] = {}  # segments of a task that were reported
        self._attempts: Counter[Place] = Counter()
        self._errors: Counter[Place] = Counter()  # raised by a task itself
        self._losses: Counter[Place] = Counter()  # of workers, since the task's last segment
        self._failed_starts = 0

    @property
    def num_workers(self) -> int:
        return len(self._workers) - len(self._starting)

    def __enter__(self) -> "RayBackend":
        try:
            with _interrupts_held_back():
                _connect(self._config)
            _check_resources(self._config)
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

    def run_tasks(self, tasks: Sequence[Task], checkpoint: Checkpoint) -> Iterator[TaskReport | Fault]:
        self._checkpoint, self._version = checkpoint, ray.put(checkpoint.initialization)
        self._waiting.extend(longest_first([task for task in tasks if task.place not in self._given]))
        self._given = {task.place: task for task in tasks}
        if self._learner is None:
            self._start_learner()
        while True:
            self._hire()
            self._assign()
            yield from self._collect()
            try:
                reports, done, ready = self._ask(self._learner.poll.remote(self._seen))
            except _LostError:
                yield self._replace_learner()
                continue
            for report in reports:
                place = report.task.place
                self._seen[place] = report.sequence + 1
                self._losses[place] = 0
                sums = {name: report.segment[name] for name in ("agent_steps", "increment_bytes")}
                self._count(increments=1, **sums)
                for assignment in self._running.values():
                    if assignment.task.place == place:
                        assignment.heard = time.monotonic()
                yield report
            if ready:
                return
            self._take_up_again(done)
            yield from self._watch()

    def meta_step(self) -> MetaStep:
        while True:
            try:
                outcome: MetaStep = self._ask(self._learner.step.remote())
                self._count(meta_steps=1)
                return outcome
            except _LostError:  # the next learner is given what this one had, and takes the same step
                for _ in self.run_tasks(list(self._given.values()), self._checkpoint):
                    pass

    # -------------------------------------------------------------------------------------- workers

    def _hire(self) -> None:
        """Asks for the workers that are missing. Ray places them when a node has room: nodes may join later."""
        workers = self._config.workers
        if workers.per_node is None:
            wanted: list[str | None] = [None] * workers.count
        else:
            nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and _fits(node, self._config)]
            wanted = [node for node in nodes for _ in range(workers.per_node)]
        missing = Counter(wanted) - Counter(self._workers.values())
        for node in missing.elements():
            options: dict[str, Any] = {"num_cpus": workers.cpus, "num_gpus": workers.gpus}
            if node:
                options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
            worker = ray.remote(Worker).options(**options).remote(self._config)
            self._workers[worker] = node
            self._starting[worker.ready.remote()] = worker

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
        for done in ready:
            if done in self._starting:
                self._collect_start(done)
            elif done in self._running:
                yield from self._collect_task(done)

    def _collect_start(self, done: Any) -> None:
        worker = self._starting.pop(done)
        try:
            self._ask(done)
        except _LostError as error:
            del self._workers[worker]
            self._failed_starts += 1
            if self._failed_starts == MAX_FAILED_STARTS:
                raise LeapRLError(f"{MAX_FAILED_STARTS} workers in a row died at their start: {error}") from error
        else:
            self._failed_starts = 0
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
            self._starting |= {idle.ready.remote(): idle for idle in self._idle}  # are they on the same node?
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

    def _watch(self) -> Iterator[Fault]:
        """Stops workers of which nothing has been heard for too long."""
        limit = self._config.faults.segment_timeout
        for assignment in self._running.values():
            if time.monotonic() - assignment.heard > limit:
                assignment.heard = time.monotonic()
                task = assignment.task
                ray.kill(assignment.worker)
                yield Fault(task, f"{task}: no increment for faults.segment_timeout = {limit:g} s; worker stopped")

    # ------------------------------------------------------------------------------------- the learner

    def _start_learner(self) -> None:
        """Starts it on the driver's node, and nowhere else: they die together anyway. (By a resource that each
        node has: Ray places an actor that needs none at random, even with a soft affinity.)"""
        here = ray.get_runtime_context().get_node_id()
        address = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == here)
        learner = ray.remote(Learner).options(num_cpus=0, resources={f"node:{address}": 0.001})
        self._learner = learner.remote(self._config, self._checkpoint)

    def _replace_learner(self) -> Fault:
        """Starts a learner at the last checkpoint. Tasks that run fail at their next increment and come back."""
        ray.kill(self._learner)  # it may hang
        self._start_learner()
        self._count(restarts=1)
        for assignment in self._running.values():  # it is not their fault that nothing was heard of them
            assignment.heard = time.monotonic()
        return Fault(None, "the Leap learner was lost; the next one is given what is saved of each task")

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


def _send_tensors_as_arrays() -> None:
    """Tensors leave this process through Ray as NumPy arrays, which Ray moves without pickling their bytes:
    several times faster than torch's own pickling. What arrives is a copy, since the store is read-only."""
    ray.util.register_serializer(torch.Tensor, serializer=_to_array, deserializer=_from_array)


def _to_array(tensor: torch.Tensor) -> tuple[NDArray[Any], torch.dtype]:
    tensor = tensor.detach().cpu()
    as_bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor  # NumPy has no bf16
    return as_bits.numpy(), tensor.dtype


def _from_array(message: tuple[NDArray[Any], torch.dtype]) -> torch.Tensor:
    array, dtype = message
    return torch.from_numpy(array.copy()).view(dtype)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until Ray has started: stopped while it starts, it leaves processes behind.
    Puts the handlers back that ray.init replaces."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda received, _: came.append(received)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _connect(config: Config) -> None:
    """Joins the cluster at ``ray.address``, or starts one on the loopback interface.

    Raises BadInputError where no cluster answers.
    """
    address = config.ray.address
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        cpus = max(config.workers.count * config.workers.cpus, os.cpu_count() or 1)
        try:
            ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises bare ones, e.g. where the machine is too busy to start in time
            raise LeapRLError(f"ray.address = local: Ray does not start: {error}") from error
        return
    problem = f"ray.address = {address}: "
    where = address.removeprefix("ray://")
    host, _, port = where.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise BadInputError(problem + "must be local, auto, host:port or ray://host:port")
    if (
        where == address
    ):  # where ray.init will look: the node's address for 127.0.0.1, a file's that may be old for auto
        where = canonicalize_bootstrap_address(address)
    if where:
        host, _, port = where.rpartition(":")
        try:
            answer = _greet(host, int(port))
        except OSError as error:
            reason = error.strerror or error
            raise BadInputError(f"{problem}no Ray cluster answers at {where}: {reason}") from None
        if not answer:
            raise BadInputError(f"{problem}what answers at {where} is not a Ray cluster")
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        lines = [line for line in str(error).strip().splitlines() if line]
        raise BadInputError(f"{problem}cannot join: {lines[0] if lines else type(error).__name__}") from error


def _greet(host: str, port: int) -> bool:
    """Whether a gRPC server answers: Ray's own attempt would take more than a minute to give up.

    Sends an HTTP/2 preface with an empty SETTINGS frame (RFC 9113, section 3.4) and expects a SETTINGS frame.
    """
    with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        try:
            header = connection.recv(9)
        except TimeoutError:
            return False
    return len(header) == 9 and header[3] == 4


def _fits(node: dict[str, Any], config: Config) -> bool:
    """Whether a node is large enough for a worker."""
    wanted = {"CPU": config.workers.cpus, "GPU": config.workers.gpus}
    return all(node["Resources"].get(name, 0) >= amount for name, amount in wanted.items() if amount)


def _check_resources(config: Config) -> None:
    """Raises BadInputError where not one worker could be placed, or, on this machine, not all of them: Ray
    would wait for ever. On a cluster the others start when nodes join."""
    workers = config.workers
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not any(_fits(node, config) for node in nodes):
        largest = {name: max(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        raise BadInputError(
            f"workers.cpus = {workers.cpus}, workers.gpus = {workers.gpus:g}: no node has room for a worker; "
            f"the largest has {largest['CPU']:g} CPUs and {largest['GPU']:g} GPUs"
        )
    total = ray.cluster_resources().get("GPU", 0)
    if config.ray.address == "local" and workers.count * workers.gpus > total:
        raise BadInputError(
            f"workers.count = {workers.count}: with workers.gpus = {workers.gpus:g} needs "
            f"{workers.count * workers.gpus:g} GPUs; this machine has {total:g}"
        )
