"""Learning processes: whatever walks a path on a task's loss surface. A2C on Atari games so far."""

from leap_rl.config import Config
from leap_rl.types import LearningProcess, Task, Tensors


def initial_parameters(config: Config, seed: int) -> Tensors:
    """A fresh shared initialization for the configured process: name → float32 tensor."""
    from leap_rl.processes.a2c.network import initial_parameters

    return initial_parameters(config, seed)


def resolve(config: Config) -> Config:
    """``precision: auto`` as what it means on this machine, so that every worker computes the same."""
    from leap_rl.processes.a2c.network import resolve_precision

    return config.model_copy(update={"precision": resolve_precision(config.precision)})


def start_process(config: Config, task: Task, initialization: Tensors, attempt: int = 0) -> LearningProcess:
    """The configured process at the start of a task."""
    from leap_rl.processes.a2c.process import A2CProcess

    return A2CProcess(config, task, initialization, attempt)


def continue_process(config: Config, task: Task, state: Tensors, attempt: int = 0) -> LearningProcess:
    """The configured process where ``state()`` was taken, to the same bits."""
    from leap_rl.processes.a2c.process import A2CProcess

    return A2CProcess.from_state(config, task, state, attempt)
