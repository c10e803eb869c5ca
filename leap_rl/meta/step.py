"""Takes a meta-step: maps the tasks' meta-gradients to the next shared initialization. All functions are pure.

each task's total → clipped → mean over the tasks → step of the meta-optimizer
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leap_rl.config import MetaConfig
from leap_rl.tensors import dump_optimizer, is_finite, load_optimizer, norm_of
from leap_rl.types import LeapRLError, Tensors


class NonFiniteMetaGradientError(LeapRLError):
    """Reports that a meta-step met, or would leave, numbers that are not finite; the initialization is kept."""


@dataclass(frozen=True)
class Stepped:
    """Holds the result of a meta-step, and the norms of its meta-gradients."""

    initialization: Tensors
    optimizer: Tensors  # state of the meta-optimizer, name → tensor
    lr: float
    mean_norm: float  # of the mean meta-gradient
    task_norms: tuple[float, ...]  # of each total, before it was scaled


def meta_step(
    initialization: Tensors, optimizer: Tensors, totals: Sequence[Tensors], config: MetaConfig, number: int
) -> Stepped:
    """Steps an initialization against the mean of its tasks' meta-gradients, and returns what comes of it.

    ``optimizer`` is the state of the meta-optimizer, empty before the first step; ``totals`` are the meta-gradients, in
    the order of the tasks; ``number`` counts meta-steps from 0. Raises NonFiniteMetaGradientError.
    """
    # By name: a checkpoint that was loaded from a file has another order.
    parameters = {name: nn.Parameter(value.clone()) for name, value in sorted(initialization.items())}
    # In double: the square of what float32 can hold may be more than it can hold.
    norms = tuple(norm_of({name: value.double() for name, value in total.items()}) for total in totals)
    pairs = zip(totals, norms, strict=True)
    if config.normalize_tasks:
        mean = mean_of([normalized(total, norm) for total, norm in pairs], parameters)
    else:
        mean = mean_of([clipped(total, norm, config.max_task_norm) for total, norm in pairs], parameters)
    mean_norm = norm_of(mean)
    if not math.isfinite(mean_norm):
        raise NonFiniteMetaGradientError(
            f"meta-step {number}: the meta-gradient is not finite; the initialization is kept"
        )
    lr = learning_rate(config, number)
    meta_optimizer = _make_optimizer(config, list(parameters.values()), lr)
    load_optimizer(meta_optimizer, list(parameters), optimizer)
    for name, parameter in parameters.items():
        parameter.grad = mean[name]
    meta_optimizer.step()
    after = {name: parameter.detach() for name, parameter in parameters.items()}
    if not all(is_finite(value) for value in after.values()):
        raise NonFiniteMetaGradientError(
            f"meta-step {number}: a step of meta.lr = {lr:g} leaves parameters that are not finite"
        )
    return Stepped(after, dump_optimizer(meta_optimizer, list(parameters)), lr, mean_norm, norms)


def clipped(total: Tensors, norm: float, limit: float | None) -> Tensors:
    """Returns a meta-gradient of length ``norm``, scaled down to ``limit`` where it is longer. (Where losses are large
    so is Δf ∇f, by orders of magnitude, and one task would dominate the mean.)"""
    if limit is None or norm <= limit:
        return total
    return {name: value * (limit / norm) for name, value in total.items()}


def normalized(total: Tensors, norm: float) -> Tensors:
    """Returns a meta-gradient of length ``norm`` with length 1; one of length 0 stays as it is."""
    return {name: value / max(norm, torch.finfo(value.dtype).tiny) for name, value in total.items()}


def mean_of(totals: Sequence[Tensors], parameters: Tensors) -> dict[str, Tensor]:
    """Returns the mean meta-gradient of all ``parameters``. That of heads is a mean over the tasks that have them."""
    mean = {name: torch.zeros_like(value) for name, value in parameters.items()}
    counts = Counter(name for total in totals for name in total)
    for total in totals:
        for name, value in total.items():
            mean[name] += value / counts[name]
    return mean


def learning_rate(config: MetaConfig, number: int) -> float:
    """Returns the meta learning rate of a meta-step."""
    return config.lr if config.lr_decay == "constant" else config.lr * (1 - number / config.steps)


def _make_optimizer(config: MetaConfig, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, lr)
        case "nesterov":
            return torch.optim.SGD(parameters, lr, momentum=config.momentum, nesterov=True)
        case "adam":
            return torch.optim.Adam(parameters, lr)
