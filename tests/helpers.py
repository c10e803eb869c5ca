"""Configurations and processes that several test files share."""

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from leap_rl.config import Config
from leap_rl.config_files import parse_config
from leap_rl.meta.sampling import sample_meta_batch
from leap_rl.processes import continue_process, initial_parameters, process_of, start_process
from leap_rl.types import Increment, Parcel, Task, Tensors


def nest(dotted: Mapping[str, Any], tree: dict[str, Any] | None = None) -> dict[str, Any]:
    """``{"meta.lr": 0.1}`` as ``{"meta": {"lr": 0.1}}``, put into ``tree`` if there is one already; returns it."""
    tree = {} if tree is None else tree
    for key, value in dotted.items():
        *sections, leaf = key.split(".")
        section = tree
        for name in sections:
            section = section.setdefault(name, {})
        section[leaf] = value
    return tree


def tiny_tree(**dotted_overrides: Any) -> dict[str, Any]:
    """The nested mapping behind :func:`tiny_config`, to be written to a file or changed further."""
    tree: dict[str, Any] = {
        "run": {"dir": "unused"},
        "backend": "serial",
        "precision": "fp32",
        "meta": {"steps": 2, "batch_size": 2, "lr": 0.1},
        "tasks": {"games": ["pong", "space_invaders", "asterix"]},
        "task": {"agent_steps": 480},  # 24 gradient steps: segments of 10, 10 and 4
        "agent": {"lr": 7e-4, "num_envs": 4, "max_grad_norm": 0.5},
        "stream": {"segment_updates": 10},
    }
    return nest(dotted_overrides, tree)


def tiny_config(**dotted_overrides: Any) -> Config:
    """A configuration that trains for seconds; ``tiny_config(**{"agent.lr": 1e-3})`` changes a key."""
    return parse_config(tiny_tree(**dotted_overrides))


def another_process() -> ProcessPoolExecutor:
    """One interpreter started afresh: it inherits nothing, so what it is to know must be sent to it."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def assert_goes_on_elsewhere(config: Config, task: Task) -> dict[str, Tensor]:
    """Takes a task's second segment here, and in another process from the state after the first one: both must end in
    the same state, to the bit. Returns it."""
    process = start_process(config, task, initial_parameters(config, 0))
    walk = process.walk()
    next(walk)
    with another_process() as pool:
        elsewhere = pool.submit(_walk_on, config, task, process.state()).result()
    next(walk)
    here = dict(process.state())
    assert here.keys() == elsewhere.keys()
    assert all(torch.equal(value, elsewhere[name]) for name, value in here.items())
    return here


def _walk_on(config: Config, task: Task, state: Tensors) -> Tensors:
    process = continue_process(config, task, state)
    next(process.walk())
    return process.state()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def screens(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator())


def randomize_biases(module: nn.Module) -> None:
    """They start at zero, where a test could not see them."""
    rng = generator(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))


def meta_batch(config: Config, meta_step: int = 0) -> list[Task]:
    """Returns the tasks that a run trains on at a meta-step."""
    names = process_of(config).parts(config).training
    return sample_meta_batch(names, config.meta.batch_size, config.run.seed, meta_step)


MINIMAL = """\
run:
  dir: runs/test
meta:
  steps: 2
  batch_size: 2
  lr: 0.1
tasks:
  games: [pong, qbert, asterix]
  held_out: [breakout]
task:
  agent_steps: 1_000
agent:
  lr: 1e-4
"""


def classification_config(**changes: Any) -> Config:
    """A small configuration of ``process: classification`` (nothing is read)."""
    tree: dict[str, Any] = {"process": "classification", "run": {"dir": "runs/test"}, "task": {"agent_steps": 100},
            "meta": {"steps": 2, "batch_size": 40, "lr": 0.1}}  # fmt: skip
    return parse_config(nest(changes, tree))


def parcels(task: Task, increments: Iterable[Increment]) -> Iterator[Parcel]:
    """Increments of a task as they are sent, uncompressed."""
    for sequence, one in enumerate(increments):
        yield Parcel(task, sequence, 0, one.meta_gradient, one.path, one.last, one.statistics)
