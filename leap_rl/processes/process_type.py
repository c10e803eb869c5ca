"""Defines what a run must know of a learning process: the interface that all processes have, ours and yours."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from leap_rl.config import Config
from leap_rl.measures import Measures
from leap_rl.types import Frame, LearningProcess, Parts, Task, Tensors

INTERFACE = 1  # raised with every change that a process must follow

C = TypeVar("C", bound=Config)


class ProcessType(ABC, Generic[C]):
    """Says what a run must know of a learning process: its configuration, its tasks, its words, and how to build the
    ``LearningProcess`` of a task.

    ``config`` is its class of configurations: :class:`~leap_rl.config.Config` with the sections and checks of the
    process. Methods are given instances of it.
    """

    interface: ClassVar[int] = INTERFACE  # that the process was written for
    config: type[C]
    measures: Measures
    freezes: ClassVar[bool] = False  # whether it can leave the encoder as it is (Task.frozen)
    watches: ClassVar[bool] = False  # whether its tasks have a screen to be seen (watch)
    note: ClassVar[str] = ""  # what `leap-rl train` says of its numbers at the end
    look_next: ClassVar[str] = ""  # and of what to look at; "": the evaluation
    field: ClassVar[str] = "reinforcement-learning"  # tag of a model card
    shape_keys: ClassVar[tuple[str, ...]] = ()  # keys that decide the shapes of what is meta-learned
    path_keys: ClassVar[tuple[str, ...]] = ()  # keys that may name files of the machine
    training_keys: ClassVar[tuple[str, ...]] = ()  # sections and keys that say how a task is trained

    def resolve(self, config: C) -> C:
        """Fills in what the configuration leaves to this machine, so that all workers compute the same.

        Raises BadInputError where the configuration needs what is not here.
        """
        return config

    @abstractmethod
    def parts(self, config: C) -> Parts:
        """Returns the names of all tasks: to meta-train on, to choose by, and held out for evaluations."""

    @abstractmethod
    def parse(self, config: C, text: str) -> list[str]:
        """Returns the names of the tasks that a text stands for. Raises BadInputError where there are none."""

    def evaluate_on(self, tree: dict[str, Any], names: Sequence[str]) -> None:
        """Changes the nested mappings of a configuration to those of an evaluation on the tasks ``names``."""

    def seconds_per_step(self, name: str) -> float:
        """Returns about how long a step of a task takes, in comparison with other tasks. Long tasks start first."""
        return 0.0

    def num_training_tasks(self, config: C) -> int:
        """Returns the number of tasks to meta-train on."""
        return len(self.parts(config).training)

    def facts(self, config: C) -> Iterator[tuple[str, str]]:
        """Yields what a model card says of tasks and inputs, as (name, text)."""
        parts = self.parts(config)
        yield "meta-trained on", ", ".join(parts.training)
        if parts.validation:
            yield "for validation", ", ".join(parts.validation)
        yield "held out", ", ".join(parts.held_out) or "none"

    @abstractmethod
    def initial_parameters(self, config: C, seed: int) -> Tensors:
        """Draws a fresh shared initialization: name → float32 tensor."""

    @abstractmethod
    def build(self, config: C, task: Task) -> LearningProcess:
        """Returns the process on a task, before it is started or given a state."""

    def network(self, process: Any) -> Tensors:
        """Returns copies of all parameters that :meth:`watch` plays with; nothing where there is nothing to see."""
        return {}

    def watch(self, process: Any) -> Iterator[Frame]:
        """Yields play with what a process of this type has learned so far, a frame an agent step, without end. The
        process must stay as it is. It is not called unless :attr:`watches`."""
        raise NotImplementedError
