"""Ray actors: one a worker, and one for the Leap learner. The only module that imports Ray.

The initialization goes out once per version, through the object store. Workers stream increments to the
learner while their tasks run; the driver only says who runs what, and asks the learner what has arrived. A
worker that dies is replaced, and its task starts again: it is deterministic, so what the learner has received
already is refused as received.
"""

import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError

from leap_rl.config import Config
from leap_rl.learner import Checkpoint, MetaLearner, MetaStep, TaskReport
from leap_rl.processes import run_task
from leap_rl.types import BadInputError, Increment, LeapRLError, Task, Tensors

CONNECT_SECONDS = 5.0  # for something to answer at ray.address
POLL_SECONDS = 1.0  # between questions to the learner while tasks run
MAX_ATTEMPTS = 3  # starts of one task whose workers die, before the run stops


class Worker:
    """Runs learning processes, one at a time (an actor)."""

    def __init__(self, config: Config) -> None:
        _send_tensors_as_arrays()
        self._config = config

    def run_task(self, task: Task, initialization: Tensors, attempt: int, learner: Any) -> None:
        """Trains one task, sending its increments to the learner. One is under way while the next is made."""
        sent = None
        for increment in run_task(self._config, task, initialization, attempt):
            if sent is not None:
                ray.get(sent)
            sent = learner.receive.remote(increment)
        ray.get(sent)


class Learner(MetaLearner):
    """The Leap learner as an actor: also keeps the reports that the driver has not asked for yet."""

    def __init__(self, config: Config, checkpoint: Checkpoint) -> None:
        _send_tensors_as_arrays()
        super().__init__(config.meta, checkpoint)
        self._reports: list[TaskReport] = []

    def receive(self, increment: Increment) -> None:  # nobody waits for the report
        report = super().receive(increment)
        if report:
            self._reports.append(report)

    def take_reports(self) -> list[TaskReport]:
        reports, self._reports = self._reports, []
        return reports


class RayBackend:
    """Joins or starts a cluster on entry; on exit stops its actors, and the cluster if it started one."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.num_workers = config.workers.count

    def __enter__(self) -> "RayBackend":
        try:
            with _interrupts_held_back():
                _connect(self._config)
            _check_resources(self._config)
            self._workers = [self._new_worker() for _ in range(self.num_workers)]
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        ray.shutdown()

    def _new_worker(self) -> Any:
        workers = self._config.workers
        options = {"num_cpus": workers.cpus, "num_gpus": workers.gpus}
        return ray.remote(Worker).options(**options).remote(self._config)

    def start_learner(self, checkpoint: Checkpoint) -> None:
        self._learner = ray.remote(Learner).options(num_cpus=0).remote(self._config, checkpoint)

    def run_tasks(self, tasks: Sequence[Task], initialization: Tensors) -> Iterator[TaskReport]:
        version = ray.put(initialization)
        waiting = deque((task, 0) for task in tasks)  # (task, attempt)
        idle = list(self._workers)
        running: dict[Any, tuple[Any, Task, int]] = {}  # what will be done → worker, task, attempt
        while waiting or running:
            while waiting and idle:
                worker, (task, attempt) = idle.pop(), waiting.popleft()
                running[worker.run_task.remote(task, version, attempt, self._learner)] = (worker, task, attempt)
            ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
            for done in ready:
                worker, task, attempt = running.pop(done)
                if self._succeeded(done):
                    idle.append(worker)
                    continue
                self._workers[self._workers.index(worker)] = replacement = self._new_worker()
                idle.append(replacement)
                if attempt + 1 == MAX_ATTEMPTS:
                    raise LeapRLError(f"{task}: its worker died {MAX_ATTEMPTS} times")
                waiting.appendleft((task, attempt + 1))
            with _clear_errors():
                reports = ray.get(self._learner.take_reports.remote())
            yield from reports

    def _succeeded(self, done: Any) -> bool:
        """Whether a task ended well; False where its worker died. Raises what the task raised."""
        with _clear_errors():
            try:
                ray.get(done)
            except RayActorError as error:
                if isinstance(error, RayTaskError):  # raised in the worker, which lives: it lost the learner
                    raise
                return False
        return True

    def meta_step(self) -> MetaStep:
        with _clear_errors():
            outcome: MetaStep = ray.get(self._learner.step.remote())
        return outcome


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Our own errors as they were raised in an actor; a lost learner in one line."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, LeapRLError):
            raise error.cause from None
        if not isinstance(error, RayActorError):
            raise
        raise LeapRLError("the Leap learner was lost; the same command continues from the last meta-step") from error
    except RayActorError as error:
        raise LeapRLError("the Leap learner was lost; the same command continues from the last meta-step") from error


def _send_tensors_as_arrays() -> None:
    """Tensors leave this process through Ray as NumPy arrays, which Ray moves without pickling their bytes:
    several times faster than torch's own pickling. What arrives is a copy, since the store is read-only."""
    ray.util.register_serializer(
        torch.Tensor,
        serializer=lambda tensor: tensor.detach().cpu().numpy(),
        deserializer=lambda array: torch.from_numpy(array.copy()),
    )


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
        ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
        return
    problem = f"ray.address = {address}: "
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise BadInputError(problem + "must be local, auto, host:port or ray://host:port")
        try:
            answer = _greet(host, int(port))
        except OSError as error:
            raise BadInputError(f"{problem}no Ray cluster answers there: {error.strerror or error}") from None
        if not answer:
            raise BadInputError(f"{problem}what answers there is not a Ray cluster")
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


def _check_resources(config: Config) -> None:
    """Raises BadInputError where the workers could never all be placed: Ray would wait for ever."""
    total, workers = ray.cluster_resources(), config.workers
    for name, each, key in (("CPU", workers.cpus, "cpus"), ("GPU", workers.gpus, "gpus")):
        if workers.count * each > total.get(name, 0):
            raise BadInputError(
                f"workers.count = {workers.count}: with workers.{key} = {each} needs {workers.count * each:g} {name}s; "
                f"the cluster has {total.get(name, 0):g}"
            )
