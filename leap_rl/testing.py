"""Checks a learning process of your own, as ``gymnasium.utils.env_checker.check_env`` checks an environment.

from leap_rl.testing import check_process

check_process("my_package.my_module:PROCESS", {"lr": 0.01})
"""

import math
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from leap_rl.config import Config
from leap_rl.config_files import parse_config
from leap_rl.files.tensor_files import dump_tensors, load_tensors
from leap_rl.meta.sampling import sample_meta_batch
from leap_rl.processes import continue_process, initial_parameters, parse_tasks, process_of, process_type, start_process
from leap_rl.types import Increment, Task, Tensors

TREE = {"run": {"dir": "unused"}, "backend": "serial", "meta": {"steps": 1, "batch_size": 1, "lr": 0.1},
        "task": {"agent_steps": 60}, "stream": {"segment_updates": 7}}  # fmt: skip


class ProcessError(AssertionError):
    """Is raised where a learning process does not keep what it must; the message says what, and what to mend."""


def check_process(name: str, changes: Mapping[str, Any] | None = None) -> None:
    """Trains short tasks, and raises ProcessError, one line, for the first thing that a process must do and does not.

    ``name`` is what ``process`` of a configuration would be; ``changes`` are keys of the configuration, dotted or
    nested: a task must have two segments at least. Checked are: the same seed gives the same bits; a state that is
    loaded in another process goes on to the same bits, from every segment; increments add up to the whole path's, are
    finite and named as the initialization; statistics are sums, ints or floats, of the same names, with those that the
    measures need.
    """
    process_type(name)
    config = make_config(name, changes or {})
    task = sample_meta_batch(parse_tasks(config, "training"), 1, 0, 0)[0]
    initialization = initial_parameters(config, 0)
    _check(_same(initialization, initial_parameters(config, 0)), "initial_parameters(config, seed) is not repeatable")
    _check(all(value.dtype == torch.float32 for value in initialization.values()), "an initialization must be float32")

    increments, states = walk(config, task, initialization)
    _check(len(increments) >= 2, "the task has one segment; give fewer stream.segment_updates or more task.agent_steps")
    _check_increments(config, initialization, increments)
    again, _ = walk(config, task, initialization)
    _check(_equal(increments, again), "the same seed gives other increments: draw what is random from task.seed")

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as elsewhere:
        for number, state in enumerate(states):
            packed = dump_tensors(state, {})
            rest = elsewhere.submit(_continue, name, dict(changes or {}), task, packed).result()
            _check(
                _equal(increments[number + 1 :], rest),
                f"continued from state() after segment {number + 1} in another process, it comes to other increments: "
                "state() leaves something out",
            )
    whole, _ = walk(make_config(name, {**(changes or {}), "stream.segment_updates": 10**9}), task, initialization)
    for key, value in whole[0].meta_gradient.items():
        pieces = sum((increment.meta_gradient[key].double() for increment in increments), torch.tensor(0.0))
        scale = max(float(value.abs().max()), 1e-30)
        near = float((pieces - value.double()).abs().max()) <= 1e-3 * scale
        _check(near, f"the increments of the segments do not add up to the whole path's: {key}")


def make_config(name: str, changes: Mapping[str, Any]) -> Config:
    """Returns the small configuration that a process is checked with."""
    tree: dict[str, Any] = {"process": name, **{key: dict(value) if isinstance(value, dict) else value
                                                for key, value in TREE.items()}}  # fmt: skip
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        if isinstance(value, Mapping):
            tree[key] = {**tree.get(key, {}), **value}
        else:
            (tree.setdefault(section, {}) if section else tree)[leaf or key] = value
    return parse_config(tree)


def walk(config: Config, task: Task, initialization: Tensors) -> tuple[list[Increment], list[Tensors]]:
    """Trains a task to its end. Returns its increments, and the state after each but the last."""
    process = start_process(config, task, initialization)
    increments: list[Increment] = []
    states: list[Tensors] = []
    for increment in process.walk():
        increments.append(increment)
        if not increment.last:
            states.append({key: value.clone() for key, value in process.state().items()})
    return increments, states


def _continue(name: str, changes: dict[str, Any], task: Task, packed: bytes) -> list[Increment]:
    state, _ = load_tensors(packed, "state")
    return list(continue_process(make_config(name, changes), task, state).walk())


def _check_increments(config: Config, initialization: Tensors, increments: Sequence[Increment]) -> None:
    measures, names = process_of(config).measures, increments[0].statistics.keys()
    needed = {"agent_steps", "frames", "seconds", *measures.counts, *measures.totals}
    needed |= {name for counts in measures.means.values() for name in counts}
    for number, increment in enumerate(increments, start=1):
        where = f"segment {number}"
        _check(increment.last == (number == len(increments)), f"{where}: last must be true of the last segment alone")
        found = {key: tuple(value.shape) for key, value in increment.meta_gradient.items()}
        for key, shape in found.items():
            known = tuple(initialization[key].shape) if key in initialization else None
            _check(shape == known, f"{where}: meta_gradient: {key} is {shape}, in the initialization {known}")
        finite = all(bool(torch.isfinite(value).all()) for value in increment.meta_gradient.values())
        _check(finite, f"{where}: meta_gradient is not finite")
        _check(
            increment.statistics.keys() >= needed,
            f"{where}: statistics lack {sorted(needed - increment.statistics.keys())}",
        )
        _check(increment.statistics.keys() == names, f"{where}: statistics have other names than those of segment 1")
        for key, value in increment.statistics.items():
            number = isinstance(value, int | float)
            _check(
                number, f"{where}: statistics: {key} is of type {type(value).__name__}; it must be an int or a float"
            )
            _check(math.isfinite(value), f"{where}: statistics: {key} = {value} is not finite")


def _equal(ours: Sequence[Increment], theirs: Sequence[Increment]) -> bool:
    return len(ours) == len(theirs) and all(
        _same(one.meta_gradient, other.meta_gradient) and one.path == other.path
        for one, other in zip(ours, theirs, strict=True)
    )


def _same(ours: Tensors, theirs: Tensors) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ProcessError(message)
