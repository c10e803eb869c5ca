"""Defines the Ray actors: the worker, which runs learning processes, and the learner, which collects increments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from numpy.typing import NDArray

from leap_rl.backends.installation import Installation, installation
from leap_rl.backends.nodes import places
from leap_rl.config import Config
from leap_rl.files.storage import open_storage
from leap_rl.meta.collector import Collector
from leap_rl.meta.learner import MetaLearner
from leap_rl.meta.ledger import Ledger
from leap_rl.processes import check_device
from leap_rl.runs.inspection import check_reachable
from leap_rl.runs.task_store import TaskStore
from leap_rl.streaming import TaskStream
from leap_rl.types import Broadcast, MetaStep, Parcel, Place, Task, TaskReport


class Worker:
    """Runs learning processes, one at a time (an actor)."""

    def __init__(self, config: Config) -> None:
        send_tensors_as_arrays()
        self._config = config

    def ready(self) -> Installation:
        """Returns which leap_rl this is. Raises BadInputError if this node does not reach the run directory, or lacks
        the configured device."""
        check_device(self._config.device)
        check_reachable(self._config, ray.util.get_node_ip_address())
        return installation()

    def run_task(self, task: Task, given: Broadcast, attempt: int, learner: Any) -> None:
        """Trains one task from wherever it stands and sends its increments to the learner, one on its way while the
        next is made. Stops early if the learner refuses them."""
        store = TaskStore(open_storage(self._config.run.dir))
        stream = TaskStream(self._config, store, task, given, attempt)
        sent = learner.adopt.remote(stream.ledger)
        for parcel in stream.increments():
            if not ray.get(sent):
                return
            sent = learner.receive.remote(parcel)
        ray.get(sent)


class Learner:
    """Runs a collector in an actor: in meta-training, the Leap learner."""

    def __init__(self, collector: Callable[[], Collector]) -> None:
        send_tensors_as_arrays()
        self._collector = collector()

    def adopt(self, ledger: Ledger) -> bool:
        """Calls :meth:`Collector.adopt`."""
        return self._collector.adopt(ledger)

    def receive(self, parcel: Parcel) -> bool:
        """Calls :meth:`Collector.receive`."""
        return self._collector.receive(parcel)

    def drop(self, task: Task, reason: str) -> None:
        """Calls :meth:`Collector.drop`."""
        self._collector.drop(task, reason)

    def step(self, batch: Sequence[Place]) -> MetaStep:
        """Calls :meth:`MetaLearner.step`."""
        assert isinstance(self._collector, MetaLearner), "only a Leap learner takes meta-steps"
        return self._collector.step(batch)

    def ready(self) -> Installation:
        """Returns which leap_rl this is."""
        return installation()

    def poll(self, seen: dict[Place, int], starting: Sequence[str]) -> "News":
        """Returns what is new. ``seen`` has the number of segments of each task that the driver knows of, and
        ``starting`` the ids of actors whose nodes it asks for."""
        collector = self._collector
        return News(
            collector.reports(seen), collector.done(), collector.succeeded(), collector.batch(), places(starting)
        )


@dataclass(frozen=True)
class News:
    """Holds what the learner tells the driver while tasks run."""

    reports: list[TaskReport]  # those that the driver has not seen
    done: set[Place]  # tasks that need no worker any more
    succeeded: set[Place]  # those that were received whole
    batch: list[Place] | None  # the tasks that a step would average; the driver has all their reports now
    places: dict[str, str]  # for each starting actor that has a place: id → its node's address


def send_tensors_as_arrays() -> None:
    """Makes Ray send this process's tensors as NumPy arrays, whose bytes it moves without pickling: several times
    faster than torch's own pickling. The receiver gets a copy, since Ray's object store is read-only."""
    ray.util.register_serializer(torch.Tensor, serializer=_to_array, deserializer=_from_array)


def _to_array(tensor: torch.Tensor) -> tuple[NDArray[Any], torch.dtype]:
    tensor = tensor.detach().cpu()
    as_bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor  # NumPy has no bf16
    return as_bits.numpy(), tensor.dtype


def _from_array(message: tuple[NDArray[Any], torch.dtype]) -> torch.Tensor:
    array, dtype = message
    return torch.from_numpy(array.copy()).view(dtype)
