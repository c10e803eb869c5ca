"""The configuration of a run with ``process: rllib``."""

from typing import Annotated, Any, Literal

from pydantic import Field

from leap_rl.config import Section, require
from leap_rl.processes.agents import AgentConfig
from leap_rl.processes.games import GamesConfig


class AlgorithmConfig(Section):
    algorithm: Literal["A2C", "APPO", "DQN", "IMPALA", "PPO"] = "PPO"
    options: Annotated[dict[str, Any], Field(description="of its AlgorithmConfig, by RLlib's names")] = {}  # noqa: RUF012


class RLlibConfig(GamesConfig):
    """The configuration of a run with ``process: rllib``."""

    process: Literal["rllib"]
    rllib: AlgorithmConfig = AlgorithmConfig()

    def check(self) -> None:
        """Raises ValueError, one line, where keys do not go together."""
        super().check()
        meta = self.meta
        require(meta.rule != "joint", "meta.rule = joint: process = rllib has no common steps of several tasks")
        require(meta.parameters == "encoder", "meta.parameters = all: process = rllib meta-learns the encoder alone")
        require(
            meta.loss_difference == "successive",
            f"meta.loss_difference = {meta.loss_difference}: process = rllib has successive alone",
        )
        require(self.env.center == "none", "env.center = background: only process = a2c has it, not rllib")
        require(self.device == "cpu", "device = cuda: process = rllib runs on the CPU")
        for name in ("value_scale", "value_gain", "rmsprop_start", "head_updates", "layer_norm"):
            value, default = getattr(self.agent, name), AgentConfig.model_fields[name].default
            require(value == default, f"agent.{name} = {value}: only process = a2c has it, not rllib")
        for name in ("unroll", "entropy_cost", "value_cost", "optimizer", "rmsprop_decay", "epsilon", "max_grad_norm"):
            value = getattr(self.agent, name)
            require(
                self.rllib.algorithm == "A2C" or value == AgentConfig.model_fields[name].default,
                f"agent.{name} = {value}: {self.rllib.algorithm} has options of its own for it; give rllib.options",
            )
