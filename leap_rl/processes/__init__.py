"""Learning processes: whatever walks a path on a task's loss surface. ``process`` of the configuration says which."""

from typing import Any

from leap_rl.config import Config
from leap_rl.types import LearningProcess, Task, Tensors


def initial_parameters(config: Config, seed: int) -> Tensors:
    """A fresh shared initialization for the configured process: name → float32 tensor."""
    match config.process:
        case "a2c":
            from leap_rl.processes.a2c.network import initial_parameters as draw
        case "classification":
            from leap_rl.processes.classification.network import initial_parameters as draw
        case "rllib":
            from leap_rl.rllib.process import initial_parameters as draw
    return draw(config, seed)


def resolve(config: Config) -> Config:
    """What is left to the machine, as what it means here, so that every worker computes the same: ``precision:
    auto``, and which drawings there are. Raises BadInputError where there is not what the configuration needs."""
    match config.process:
        case "a2c" | "rllib":
            from leap_rl.processes.a2c.network import resolve_precision

            if config.process == "rllib":
                _check_rllib(config)
            return config.model_copy(update={"precision": resolve_precision(config.precision)})
        case "classification":
            from leap_rl.processes.classification.data import checked_family, split

            split(config.alphabets)
            checksum = checked_family(config.alphabets).checksum
            alphabets = config.alphabets.model_copy(update={"checksum": checksum})
            return config.model_copy(update={"precision": "fp32", "alphabets": alphabets})


def _check_rllib(config: Config) -> None:
    from leap_rl.backends import prepare_environment

    prepare_environment(config.ray.address)  # before RLlib imports Ray
    from leap_rl.rllib.options import check

    check(config)


def start_process(config: Config, task: Task, initialization: Tensors, attempt: int = 0) -> LearningProcess:
    """The configured process at the start of a task."""
    process: LearningProcess = _process(config)(config, task, initialization, attempt)
    return process


def continue_process(config: Config, task: Task, state: Tensors, attempt: int = 0) -> LearningProcess:
    """The configured process where ``state()`` was taken, to the same bits."""
    process: LearningProcess = _process(config).from_state(config, task, state, attempt)
    return process


def _process(config: Config) -> Any:
    match config.process:
        case "a2c":
            from leap_rl.processes.a2c.process import A2CProcess

            return A2CProcess
        case "classification":
            from leap_rl.processes.classification.process import ClassificationProcess

            return ClassificationProcess
        case "rllib":
            from leap_rl.rllib.process import RLlibProcess

            return RLlibProcess
