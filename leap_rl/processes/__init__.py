"""Holds the learning processes, which walk a path on a task's loss surface. ``process`` of a configuration names one.

Each has two halves. Its :class:`ProcessType` (process_type.py) is one record, which says what there is to know before a
task runs: configuration, tasks, words. For each task the record builds a ``LearningProcess`` (types.py), which trains.
There are two base classes for that: ``TrainingLoop`` (loop.py) for a network, an optimizer and a loss, and
``ActorCriticProcess`` (a2c/actor_critic.py) for environments.

``registry.py`` finds a record by its name, and imports it where it is asked for, so that nobody waits for the libraries
of another process.
"""

from typing import Any

from leap_rl.config import Config
from leap_rl.processes.process_type import ProcessType as ProcessType
from leap_rl.processes.registry import PROCESSES as PROCESSES
from leap_rl.processes.registry import process_type as process_type
from leap_rl.types import BadInputError, LearningProcess, Parts, Task, Tensors


def process_of(config: Config) -> ProcessType[Any]:
    """Returns the record of the process that a configuration names."""
    return process_type(config.process)


def initial_parameters(config: Config, seed: int) -> Tensors:
    """Draws a fresh shared initialization for the configured process: name → float32 tensor."""
    return process_of(config).initial_parameters(config, seed)


def resolve(config: Config) -> Config:
    """Fills in what the configuration leaves to this machine (``precision: auto``, which drawings there are), so that
    all workers compute the same. Raises BadInputError where the configuration needs what is not here."""
    if config.backend == "serial" or config.ray.address == "local":
        check_device(config.device)
    resolved: Config = process_of(config).resolve(config)
    return resolved


def check_device(device: str) -> None:
    """Raises BadInputError where this machine has no such device, or cannot compute on it."""
    if device == "cuda":
        import torch

        try:
            torch.ones(1, device="cuda").add_(1).item()
        except Exception as error:  # AssertionError, RuntimeError, …: as torch was built, and by driver and device
            raise BadInputError(f"device = cuda: torch {torch.__version__} cannot use it here: {error}") from None


def parse_tasks(config: Config, text: str) -> list[str]:
    """Returns the names of the tasks that a text stands for: a part of the run's own (``training``, ``validation``,
    ``held_out``), a pattern, or a task by its name. Raises BadInputError where there are none."""
    process = process_of(config)
    if text not in Parts._fields:
        return process.parse(config, text)
    names: list[str] = getattr(process.parts(config), text)
    if not names:
        raise BadInputError(f"{text}: the run has no such tasks")
    return list(names)


def start_process(config: Config, task: Task, initialization: Tensors) -> LearningProcess:
    """Returns the configured process at the start of a task."""
    process = process_of(config).build(config, task)
    process.start(initialization)
    return process


def continue_process(config: Config, task: Task, state: Tensors) -> LearningProcess:
    """Returns the configured process where ``state()`` was taken, to the same bits."""
    process = process_of(config).build(config, task)
    process.load_state(state)
    return process
