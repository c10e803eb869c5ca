"""Makes a learning process of your own a few lines: a network, an optimizer, and the loss of a gradient step.

docs/examples/sinusoids.py is one. A process that does not fit is written against ``LearningProcess`` (types.py) itself.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from leap_rl.config import Config
from leap_rl.files.tensor_files import below
from leap_rl.meta.rules import make_path, shift
from leap_rl.tensors import dump_optimizer, load_optimizer
from leap_rl.types import Increment, PathSums, Task, TaskError, Tensors

C = TypeVar("C", bound=Config)


class TrainingLoop(ABC, Generic[C]):
    """Trains a network on one task, and meta-learns all of its parameters; a ``LearningProcess``.

    A subclass defines :meth:`setup` and :meth:`loss`. What it keeps between gradient steps besides the network and the
    optimizer it returns from :meth:`extra_state`, and takes back in :meth:`load_extra_state`.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, config: C, task: Task) -> None:
        torch.set_num_threads(1)  # sums of several threads round otherwise
        self.config, self.task = config, task
        self.path, self.step = make_path(config.meta), 0
        self.setup()

    @abstractmethod
    def setup(self) -> None:
        """Makes ``self.network``, ``self.optimizer``, and what the task needs."""

    @abstractmethod
    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """Returns the loss of a gradient step, and statistics: sums by name, with ``agent_steps`` and ``frames``.

        What is random in it must be drawn from ``self.task.seed`` and ``step``, or from a generator in the extra state.
        """

    def extra_state(self) -> Tensors:
        """Returns what else decides the next steps, as tensors by name."""
        return {}

    def load_extra_state(self, state: Tensors) -> None:
        """Goes on where :meth:`extra_state` was taken."""

    def start(self, initialization: Tensors) -> None:
        """Starts the task at the shared initialization. Raises RuntimeError if it does not fit."""
        self.network.load_state_dict(dict(initialization))

    def walk(self) -> Iterator[Increment]:
        """Trains to the end of the task, yielding one increment a segment. Raises TaskError where the path is not
        finite."""
        length, end = self.config.stream.segment_updates, self.config.num_updates
        while self.step < end:
            sums: dict[str, float] = {}
            while True:
                self._update(sums)
                if self.step == end:
                    self.path.finish(self.network)
                if self.path.failed:
                    raise TaskError(f"{self.path.failed} at gradient step {self.step}")
                if self.step == end or self.step % length == 0:
                    break
            measured = PathSums.of(self.path)
            yield Increment(dict(self.path.cut()), measured, self.step == end, sums)

    def _update(self, sums: dict[str, float]) -> None:
        started = time.perf_counter()
        self.optimizer.zero_grad()
        loss, statistics = self.loss(self.step)
        loss.backward()  # type: ignore[no-untyped-call]
        self.path.record(loss.detach(), self.network)
        self.optimizer.step()
        self.step += 1
        counted = {"updates": 1, "loss_sum": float(loss.detach()), "seconds": time.perf_counter() - started}
        for name, value in (dict(statistics) | counted).items():
            sums[name] = sums.get(name, 0) + _as_number(value)

    def shift(self, change: Tensors) -> None:
        """Adds the initialization's change to the parameters, and to the open end of the path: name → tensor."""
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.add_(change[name])
        shift(self.path, change)

    def learned(self) -> Tensors:
        """Returns copies of the present parameters, by name."""
        return {name: value.detach().clone() for name, value in self.network.named_parameters()}

    def state(self) -> Tensors:
        """Returns the whole state at an increment. Raises RuntimeError elsewhere."""
        names = [name for name, _ in self.network.named_parameters()]
        parts = {
            "path": self.path.state(), "network": self.network.state_dict(), "extra": self.extra_state(),
            "optimizer": dump_optimizer(self.optimizer, names),
        }  # fmt: skip
        state = {f"{part}/{name}": value.clone() for part, values in parts.items() for name, value in values.items()}
        return state | {"step": torch.tensor(self.step)}

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` was taken, to the same bits."""
        self.network.load_state_dict(below(state, "network/"))
        load_optimizer(self.optimizer, [n for n, _ in self.network.named_parameters()], below(state, "optimizer/"))
        self.path.load_state(below(state, "path/"))
        self.load_extra_state(below(state, "extra/"))
        self.step = int(state["step"])


def _as_number(value: Any) -> float:
    """Returns a statistic as JSON can have it: a tensor or a scalar of NumPy as the int or float that it holds."""
    number: float = value.item() if hasattr(value, "item") else value
    return number
