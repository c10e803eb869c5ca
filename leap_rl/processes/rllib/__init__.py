"""Registers RLlib's algorithms as a learning process: PPO, APPO, IMPALA, DQN or our A2C."""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from leap_rl.extras import require_extra
from leap_rl.processes.atari import AtariProcessType
from leap_rl.processes.rllib.config import RLlibConfig
from leap_rl.types import LearningProcess, Task, Tensors

# Means of ``episodic`` whose sums are in process.py. A new one is A2C's alone, until it is named here.
MEANS = ("episode_length", "loss", "policy_loss", "value_loss", "entropy", "gradient_norm", "clipped_reward")


class RLlib(AtariProcessType[RLlibConfig]):
    """Describes RLlib's algorithms to the registry."""

    config = RLlibConfig
    measures = replace(AtariProcessType.measures, means={name: AtariProcessType.measures.means[name] for name in MEANS})
    training_keys: ClassVar[tuple[str, ...]] = (*AtariProcessType.training_keys, "rllib")

    def resolve(self, config: RLlibConfig) -> RLlibConfig:
        """Replaces ``precision: auto`` by what this machine computes with. Raises BadInputError for an option that
        RLlib refuses, and where RLlib or the emulator is not installed."""
        from leap_rl.backends import prepare_environment
        from leap_rl.processes.a2c.network import resolve_precision

        config = super().resolve(config)
        for extra in ("ray", "rllib"):
            require_extra(extra, f"process = {config.process}")
        prepare_environment(config.ray.address)  # before RLlib imports Ray
        from leap_rl.processes.rllib.options import check

        check(config)
        return config.model_copy(update={"precision": resolve_precision(config.precision)})

    def facts(self, config: RLlibConfig) -> Iterator[tuple[str, str]]:
        """Yields what a model card says of games, observations and the algorithm, as (name, text)."""
        yield from super().facts(config)
        yield "algorithm", f"{config.rllib.algorithm} of RLlib"

    def initial_parameters(self, config: RLlibConfig, seed: int) -> Tensors:
        """Draws a fresh shared initialization: name → float32 tensor."""
        from leap_rl.processes.rllib.process import initial_parameters

        return initial_parameters(config, seed)

    def build(self, config: RLlibConfig, task: Task) -> LearningProcess:
        """Returns the process on a task, before it is started or given a state."""
        from leap_rl.processes.rllib.process import RLlibProcess

        return RLlibProcess(config, task)


PROCESS = RLlib()
