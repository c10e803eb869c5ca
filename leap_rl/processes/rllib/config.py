"""Defines the configuration of a run with ``process: rllib``."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from leap_rl.config import Section, require
from leap_rl.processes.atari import AtariConfig

AGENT_KEYS = ("num_envs", "discount", "reward_clip", "lr")  # of the section agent, which all algorithms take
A2C_OPTIONS = {  # key of the section agent, which our A2C takes besides → RLlib's name of it
    "unroll": "rollout_fragment_length", "entropy_cost": "entropy_coeff", "value_cost": "vf_loss_coeff",
    "optimizer": "optimizer_name", "rmsprop_decay": "rmsprop_decay", "epsilon": "epsilon", "max_grad_norm": "grad_clip",
}  # fmt: skip


class AlgorithmConfig(Section):
    algorithm: Literal["A2C", "APPO", "DQN", "IMPALA", "PPO"] = "PPO"
    options: Annotated[dict[str, Any], Field(description="of its AlgorithmConfig, by RLlib's names")] = {}  # noqa: RUF012


class RLlibConfig(AtariConfig):
    """Holds the configuration of a run with ``process: rllib``."""

    carries_out: ClassVar[frozenset[str]] = frozenset()  # Leap sees the losses of RLlib's own gradient steps alone

    process: Literal["rllib"]
    rllib: AlgorithmConfig = AlgorithmConfig()

    def check(self) -> None:
        """Raises ValueError, one line, where keys do not go together."""
        super().check()
        meta = self.meta
        require(meta.rule != "joint", "meta.rule = joint: process = rllib has no common steps of several tasks")
        require(meta.parameters == "encoder", "meta.parameters = all: process = rllib meta-learns the encoder alone")
        require(self.env.center == "none", "env.center = background: process = rllib does not have it")
        require(self.device == "cpu", "device = cuda: process = rllib runs on the CPU")
        for name, field in type(self.agent).model_fields.items():
            value = getattr(self.agent, name)
            if name in AGENT_KEYS or value == field.default:
                continue
            require(name in A2C_OPTIONS, f"agent.{name} = {value}: process = rllib does not have it")
            require(
                self.rllib.algorithm == "A2C",
                f"agent.{name} = {value}: {self.rllib.algorithm} has options of its own for it; give rllib.options",
            )
