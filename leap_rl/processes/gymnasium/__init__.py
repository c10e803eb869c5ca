"""Trains A2C on any environment of Gymnasium's with discrete actions.

It is the template for another suite of games. Such a suite needs a vector of its environments, which keeps the contract
of ``Vector`` (environments.py); a configuration with its names; a process, which makes vector and network
(:class:`~leap_rl.processes.a2c.actor_critic.ActorCriticProcess` is the loop); and the record below, which
processes/registry.py names.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from leap_rl.extras import require_extra
from leap_rl.processes import ProcessType
from leap_rl.processes.agents import episodic
from leap_rl.processes.gymnasium.config import GymnasiumConfig
from leap_rl.processes.gymnasium.names import expand
from leap_rl.types import LearningProcess, Parts, Task, Tensors


class Gymnasium(ProcessType[GymnasiumConfig]):
    """Describes A2C on Gymnasium's environments to the registry."""

    config = GymnasiumConfig
    measures = episodic("environment", "environments", frame="frames", paired="heads, environments and action noise")
    freezes: ClassVar[bool] = True
    shape_keys: ClassVar[tuple[str, ...]] = ("tasks.environments", "env.wrappers")
    path_keys: ClassVar[tuple[str, ...]] = ("env.modules", "env.wrappers")
    training_keys: ClassVar[tuple[str, ...]] = ("agent", "env")

    def resolve(self, config: GymnasiumConfig) -> GymnasiumConfig:
        """Makes each environment once. Raises BadInputError where A2C cannot learn one of them, and where
        Gymnasium is not installed."""
        require_extra("gymnasium", f"process = {config.process}")
        from leap_rl.processes.gymnasium.process import check_tasks

        check_tasks(config)
        return config.model_copy(update={"precision": "fp32"})

    def parts(self, config: GymnasiumConfig) -> Parts:
        """Returns the environments of the section ``tasks``."""
        return Parts(config.tasks.environments, config.tasks.validation, config.tasks.held_out)

    def parse(self, config: GymnasiumConfig, text: str) -> list[str]:
        """Returns the environments of a pattern, or one by its name. Raises BadInputError where there are none."""
        return expand(text)

    def evaluate_on(self, tree: dict[str, Any], names: Sequence[str]) -> None:
        """Makes ``names`` the environments of a configuration's nested mappings."""
        tree["tasks"] = {"environments": list(names), "held_out": []}

    def facts(self, config: GymnasiumConfig) -> Iterator[tuple[str, str]]:
        """Yields what a model card says of the environments, as (name, text)."""
        yield from super().facts(config)
        if config.env.wrappers:
            yield "wrappers", ", ".join(config.env.wrappers)

    def initial_parameters(self, config: GymnasiumConfig, seed: int) -> Tensors:
        """Draws a fresh shared initialization: name → float32 tensor."""
        from leap_rl.processes.gymnasium.process import initial_parameters

        return initial_parameters(config, seed)

    def build(self, config: GymnasiumConfig, task: Task) -> LearningProcess:
        """Returns the process on a task, before it is started or given a state."""
        from leap_rl.processes.gymnasium.process import GymnasiumProcess

        return GymnasiumProcess(config, task)


PROCESS = Gymnasium()
