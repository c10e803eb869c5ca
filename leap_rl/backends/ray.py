"""Ray actors: one a worker, and one for the Leap learner. The only module that imports Ray.

The initialization goes out once per version, through the object store. A worker's task is a streaming
generator of increments; the driver hands each increment's reference to the learner, so the tensors go from
worker to learner without passing through the driver. A worker that dies is replaced, and its task starts
again: it is deterministic, so what the learner has received already is refused as received.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError

from leap_rl.config import Config
from leap_rl.learner import Checkpoint, MetaLearner, MetaStep, TaskReport
from leap_rl.processes import run_task
from leap_rl.types import BadInputError, Increment, LeapRLError, Task, Tensors

CONNECT_SECONDS = 20.0
MAX_ATTEMPTS = 3  # starts of one task whose workers die, before the run stops


class Worker:
    """Runs learning processes, one at a time."""

    def __init__(self, config: Config) -> None:
        _send_tensors_as_arrays()
        self._config = config

    def run_task(self, task: Task, initialization: Tensors, attempt: int) -> Iterator[Increment]:
        yield from run_task(self._config, task, initialization, attempt)


class Learner(MetaLearner):
    """The Leap learner as an actor."""

    def __init__(self, config: Config, checkpoint: Checkpoint) -> None:
        _send_tensors_as_arrays()
        super().__init__(config.meta, checkpoint)


class RayBackend:
    """Joins or starts a cluster on entry; on exit kills its actors and, if it started the cluster, stops it."""

    def __init__(self, config: Config, checkpoint: Checkpoint) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self.num_workers = config.workers.count

    def __enter__(self) -> "RayBackend":
        _connect(self._config)
        try:
            _check_resources(self._config)
            _send_tensors_as_arrays()
            self._workers = [self._new_worker() for _ in range(self.num_workers)]
            self._learner = ray.remote(Learner).options(num_cpus=0).remote(self._config, self._checkpoint)
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

    def run_tasks(self, tasks: Sequence[Task], initialization: Tensors) -> Iterator[TaskReport]:
        version = ray.put(initialization)
        waiting = deque((task, 0) for task in tasks)  # (task, attempt)
        idle = list(self._workers)
        running: dict[Any, tuple[Any, Task, int]] = {}  # stream of increments → worker, task, attempt
        while waiting or running:
            while waiting and idle:
                worker, (task, attempt) = idle.pop(), waiting.popleft()
                stream = worker.run_task.options(num_returns="streaming").remote(task, version, attempt)
                running[stream] = (worker, task, attempt)
            [stream], _ = ray.wait(list(running), num_returns=1)
            worker, task, attempt = running[stream]
            try:
                report = self._hand_to_learner(next(stream))
            except StopIteration:
                del running[stream]
                idle.append(worker)
            except _WorkerDiedError as error:
                del running[stream]
                self._workers[self._workers.index(worker)] = replacement = self._new_worker()
                idle.append(replacement)
                if attempt + 1 == MAX_ATTEMPTS:
                    raise LeapRLError(f"{task}: its worker died {MAX_ATTEMPTS} times: {error}") from error
                waiting.appendleft((task, attempt + 1))
            else:
                if report:
                    yield report

    def _hand_to_learner(self, increment: Any) -> TaskReport | None:
        """Lets the learner fetch an increment by its reference. Raises _WorkerDiedError where it cannot be had
        any more, and what the learning process raised where it raised."""
        with _clear_errors():
            try:
                report: TaskReport | None = ray.get(self._learner.receive.remote(increment))
            except RayTaskError as error:
                if isinstance(error.cause, ActorDiedError | ActorUnavailableError):
                    raise _WorkerDiedError(str(error.cause).strip().splitlines()[-1]) from error
                raise
        return report

    def meta_step(self) -> MetaStep:
        with _clear_errors():
            outcome: MetaStep = ray.get(self._learner.step.remote())
        return outcome


class _WorkerDiedError(Exception):
    """The actor that was to yield the next increment is gone."""


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Our own errors as they were raised in an actor; Ray's in one line."""
    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        raise cause if isinstance(cause, LeapRLError) else error from None
    except RayError as error:
        raise LeapRLError(f"the Leap learner was lost: {str(error).strip().splitlines()[0]}") from error


def _send_tensors_as_arrays() -> None:
    """Tensors leave this process through Ray as NumPy arrays, which Ray moves without pickling their bytes:
    several times faster than torch's own pickling. What arrives is a copy, since the store is read-only."""
    ray.util.register_serializer(
        torch.Tensor,
        serializer=lambda tensor: tensor.detach().cpu().numpy(),
        deserializer=lambda array: torch.from_numpy(array.copy()),
    )


def _connect(config: Config) -> None:
    """Joins the cluster at ``ray.address``, or starts one on the loopback interface.

    Raises BadInputError where nothing answers.
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
        if not host or not port.isdecimal():
            raise BadInputError(problem + "must be local, auto, host:port or ray://host:port")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS / 2).close()
        except OSError as error:
            raise BadInputError(f"{problem}no Ray cluster answers there: {error.strerror or error}") from None
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        lines = [line for line in str(error).strip().splitlines() if line]
        raise BadInputError(problem + "cannot join: " + (lines[0] if lines else type(error).__name__)) from error


def _check_resources(config: Config) -> None:
    """Raises BadInputError where the workers could never all be placed: Ray would wait for ever."""
    total, workers = ray.cluster_resources(), config.workers
    for name, each, key in (("CPU", workers.cpus, "cpus"), ("GPU", workers.gpus, "gpus")):
        if workers.count * each > total.get(name, 0):
            raise BadInputError(
                f"workers.count = {workers.count}: with workers.{key} = {each} needs {workers.count * each} {name}s; "
                f"the cluster has {total.get(name, 0):g}"
            )
