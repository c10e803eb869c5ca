"""Learning processes: whatever walks a path on a task's loss surface. A2C on Atari games so far."""

from collections.abc import Iterator

from leap_rl.config import Config
from leap_rl.types import Increment, Task, TaskError, Tensors


def initial_parameters(config: Config, seed: int) -> Tensors:
    """A fresh shared initialization for the configured process: name → float32 tensor."""
    from leap_rl.processes.a2c.network import initial_parameters

    return initial_parameters(config, seed)


def resolve(config: Config) -> Config:
    """``precision: auto`` as what it means on this machine, so that every worker computes the same."""
    from leap_rl.processes.a2c.network import resolve_precision

    return config.model_copy(update={"precision": resolve_precision(config.precision)})


def run_task(config: Config, task: Task, initialization: Tensors, attempt: int = 0) -> Iterator[Increment]:
    """Trains one task from the initialization, yielding one increment a segment.

    Raises TaskError, which names the task, for whatever the process raises.
    """
    from leap_rl.processes.a2c.process import A2CProcess

    try:
        yield from A2CProcess(config, task, initialization, attempt).walk()
    except Exception as error:
        raise TaskError(f"{task}: {type(error).__name__}: {error}") from error
