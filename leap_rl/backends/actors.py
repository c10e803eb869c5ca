"""What runs in Ray actors: learning processes, and the Leap learner."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from numpy.typing import NDArray

from leap_rl.backends.cluster import places
from leap_rl.config import Config
from leap_rl.learner import Checkpoint, MetaLearner
from leap_rl.ledger import TaskReport
from leap_rl.run import check_reachable
from leap_rl.storage import open_storage
from leap_rl.streaming import TaskStream
from leap_rl.task_store import TaskStore
from leap_rl.types import Place, Task, Tensors


class Worker:
    """Runs learning processes, one at a time (an actor)."""

    def __init__(self, config: Config) -> None:
        send_tensors_as_arrays()
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
        send_tensors_as_arrays()
        super().__init__(config.meta, checkpoint, config.faults.min_tasks)

    def poll(self, seen: dict[Place, int], starting: Sequence[str]) -> "News":
        """``seen``: segments of a task that the driver knows of; ``starting``: ids of actors."""
        return News(self.reports(seen), self.done(), self.batch(), places(starting))


@dataclass(frozen=True)
class News:
    """What the driver wants to know while tasks run."""

    reports: list[TaskReport]  # that the driver has not seen
    done: set[Place]  # tasks that need no worker any more
    batch: list[Place] | None  # what a step would average; its reports are known with these
    places: dict[str, str]  # of actors that start: id → the address of a node that had room


def send_tensors_as_arrays() -> None:
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
