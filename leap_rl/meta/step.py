"""Takes a meta-step: maps the tasks' meta-gradients to the next shared initialization. All functions are pure.

each task's total → clipped → mean over the tasks → step of the meta-optimizer
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from leap_rl.config import MetaConfig
from leap_rl.tensors import is_finite, norm_of
from leap_rl.types import DivergedError, Tensors


class NonFiniteMetaGradientError(DivergedError):
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
    parameters = dict(sorted(initialization.items()))
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
    after, state = optimized(parameters, mean, optimizer, config, lr)
    if not all(is_finite(value) for value in after.values()):
        raise NonFiniteMetaGradientError(
            f"meta-step {number}: a step of meta.lr = {lr:g} leaves parameters that are not finite"
        )
    return Stepped(after, state, lr, mean_norm, norms)


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


# What torch's optimizers keep for each parameter, before their first step.
SGD: dict[str, Callable[[Tensor], Tensor | None]] = {"momentum_buffer": lambda value: None}
ADAM: dict[str, Callable[[Tensor], Tensor | None]] = {
    "step": lambda value: torch.tensor(0.0),
    "exp_avg": torch.zeros_like,
    "exp_avg_sq": torch.zeros_like,
}


def optimized(
    parameters: Tensors, gradients: Tensors, state: Tensors, config: MetaConfig, lr: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns parameters after a step of the meta-optimizer against ``gradients``, and the optimizer's next state: the
    entries of that of ``torch.optim``'s class, as "parameter name|entry" → tensor."""
    # torch's functions and not its classes: the first object of these imports torch's compiler, which takes 1.4 s.
    after = {name: value.clone() for name, value in parameters.items()}
    entries: dict[str, list[Any]] = {
        key: [
            state[f"{name}|{key}"].clone() if f"{name}|{key}" in state else fresh(value)
            for name, value in after.items()
        ]
        for key, fresh in (ADAM if config.optimizer == "adam" else SGD).items()
    }
    values, slopes = list(after.values()), [gradients[name] for name in after]
    if config.optimizer == "adam":
        averages, squares, steps = entries["exp_avg"], entries["exp_avg_sq"], entries["step"]
        adam(
            values, slopes, averages, squares, [], steps, lr=lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0,
            amsgrad=False, maximize=False,
        )  # fmt: skip
    else:
        nesterov = config.optimizer == "nesterov"
        sgd(
            values, slopes, entries["momentum_buffer"], lr=lr, momentum=config.momentum if nesterov else 0,
            nesterov=nesterov, dampening=0, weight_decay=0, maximize=False,
        )  # fmt: skip
    kept = {f"{name}|{key}": value for key, row in entries.items() for name, value in zip(after, row, strict=True)}
    return after, {name: value for name, value in kept.items() if value is not None}
