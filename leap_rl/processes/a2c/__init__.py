"""Registers A2C on Atari games: the project's own agent, exact and fast."""

from collections.abc import Iterator
from typing import Any, ClassVar

from leap_rl.processes.a2c.config import A2CConfig
from leap_rl.processes.atari import AtariProcessType
from leap_rl.types import Frame, LearningProcess, Task, Tensors


class A2C(AtariProcessType[A2CConfig]):
    """Describes A2C on Atari games to the registry."""

    config = A2CConfig
    freezes: ClassVar[bool] = True
    watches: ClassVar[bool] = True
    note: ClassVar[str] = "Agent steps are actions, each of several emulator frames."
    look_next: ClassVar[str] = (
        "The games there are:  leap-rl games\n"
        "The paper's recipe:   leap-rl train configs/atari_paper.yaml   (see README.md for what it costs)"
    )

    def resolve(self, config: A2CConfig) -> A2CConfig:
        """Replaces ``precision: auto`` by what this machine computes with. Raises BadInputError where the emulator is
        not installed."""
        from leap_rl.processes.a2c.network import resolve_precision

        precision = resolve_precision(config.precision)
        return super().resolve(config).model_copy(update={"precision": precision})

    def initial_parameters(self, config: A2CConfig, seed: int) -> Tensors:
        """Draws a fresh shared initialization: name → float32 tensor."""
        from leap_rl.processes.a2c.process import initial_parameters

        return initial_parameters(config, seed)

    def build(self, config: A2CConfig, task: Task) -> LearningProcess:
        """Returns the process on a task, before it is started or given a state."""
        from leap_rl.processes.a2c.process import A2CProcess

        return A2CProcess(config, task)

    def network(self, process: Any) -> Tensors:
        """Returns copies of all parameters of a process's network."""
        return {name: value.detach().cpu().clone() for name, value in process.network.state_dict().items()}

    def watch(self, process: Any) -> Iterator[Frame]:
        """Yields play with the network of a process as it is, a frame an agent step, without end."""
        from leap_rl.processes.a2c.watch import watch

        return watch(process)


PROCESS = A2C()
