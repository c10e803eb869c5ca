"""Defines the configuration of a run with ``process: gymnasium``."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from leap_rl.config import PositiveInt, Section, require
from leap_rl.pools import SplitConfig, check_batch, check_parts, divided, expanded
from leap_rl.processes.agents import ActorCriticConfig, AgentConfig
from leap_rl.processes.gymnasium.names import expand

OURS = "gymnasium.wrappers:"  # wrappers of these need no word of the reader: they are made without arguments


class EnvironmentsConfig(Section):
    environments: Annotated[
        list[str],
        Field(min_length=1, description="the pool of meta-training: ids of Gymnasium's, with options "
              "(FrozenLake-v1:map_name=8x8), or many draws of them (64*cartpole:gravity=5..15,length=0.3..2)"),
    ]  # fmt: skip
    validation: Annotated[list[str], Field(description="to choose by; named alike")] = []  # noqa: RUF012  (pydantic copies it)
    held_out: Annotated[list[str], Field(description="to evaluate on; named alike")] = []  # noqa: RUF012  (pydantic copies it)
    split: Annotated[SplitConfig, Field(description="of the pool, when a run is made")] = SplitConfig()

    @field_validator("environments", "validation", "held_out")
    @classmethod
    def _expanded(cls, names: list[str]) -> list[str]:
        return expanded(names, expand)

    @model_validator(mode="after")
    def _divided(self) -> "EnvironmentsConfig":
        return divided(self, "environments")


class EnvConfig(Section):
    modules: Annotated[list[str], Field(description="to import first: they register environments")] = []  # noqa: RUF012
    wrappers: Annotated[
        list[str], Field(description="module:NAME of what takes an environment and returns one, innermost first")
    ] = []  # noqa: RUF012
    max_episode_steps: Annotated[
        PositiveInt | None, Field(description="null: the environment's own; 10,000 where it has none")
    ] = None

    @field_validator("wrappers")
    @classmethod
    def _named(cls, paths: list[str]) -> list[str]:
        for path in paths:
            module, _, name = path.partition(":")
            require(bool(module) and name.isidentifier(), f"{path}: must be module:NAME")
        return paths


class GymnasiumAgentConfig(AgentConfig):
    num_envs: PositiveInt = 8


class GymnasiumConfig(ActorCriticConfig):
    """Holds the configuration of a run with ``process: gymnasium``."""

    process: Literal["gymnasium"]
    tasks: EnvironmentsConfig
    agent: GymnasiumAgentConfig
    env: EnvConfig = EnvConfig()

    def check(self) -> None:
        """Raises ValueError, one line, where keys do not go together."""
        check_parts(self.tasks, "environments", "environment")
        super().check()
        require(self.precision != "bf16", "precision = bf16: process = gymnasium computes in fp32")
        require(not self.agent.layer_norm, "agent.layer_norm = true: process = gymnasium does not have it")
        require(
            self.workers.cpus == 1,
            f"workers.cpus = {self.workers.cpus}: process = gymnasium steps its environments on one core",
        )

    def check_training(self) -> None:
        """Raises ValueError, one line, where there are too few environments to meta-train on."""
        check_batch(self.tasks, "environments", self.meta.batch_size)

    def memory(self) -> tuple[int, str]:
        """Returns how many bytes the smallest environments and networks take, and what decides it."""
        agent = self.agent
        keys = f"agent.num_envs = {agent.num_envs}, agent.unroll = {agent.unroll}"
        return agent.num_envs * (10_000 + 4 * 128 * (agent.unroll + 3)), keys

    def paths(self) -> tuple[str, ...]:
        """Returns the keys that name code of the machine on which the configuration was written."""
        foreign = [path for path in self.env.wrappers if not path.startswith(OURS)]
        given = {"env.modules": self.env.modules, "env.wrappers": foreign}
        return tuple(key for key, names in given.items() if names)

    def extendable(self) -> tuple[str, ...]:
        """Returns the keys, of lists of names, that may change in a run without changing a bit of what is done."""
        return ("tasks.validation", "tasks.held_out")
