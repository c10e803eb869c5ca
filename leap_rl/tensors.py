"""Tensors by name: whether they fit, whether they are finite, how long they are. It needs torch and nothing else."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Named: TypeAlias = Mapping[str, Tensor]


def checked(what: str, given: nn.Module | Mapping[str, Any], expected: Named) -> Named:
    """Returns ``given`` as a mapping. Raises ValueError unless names and shapes are those of ``expected``, if any."""
    if isinstance(given, nn.Module):
        given = {name: value for name, value in given.named_parameters() if value.requires_grad}
    shapes, found = _shapes(expected or given), _shapes(given)
    if found.keys() != shapes.keys():
        raise ValueError(f"{what} must be named {sorted(shapes)}, not {sorted(found)}")
    for name, shape in shapes.items():
        if found[name] is None or found[name] != shape:
            raise ValueError(f"{what}: {name} must be a tensor of shape {shape}, not {found[name]}")
    return given


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...] | None]:
    return {name: None if value is None else tuple(value.shape) for name, value in tensors.items()}


def copied(tensors: Named) -> dict[str, Tensor]:
    """Returns copies, sorted by name: norms are summed in this order, which must not depend on who gave the tensors."""
    return {name: value.detach().clone() for name, value in sorted(tensors.items())}


def squared_norm_of(move: Tensor) -> float:
    """Returns ‖move‖², added up in double: the squares of a dtype's numbers leave its range."""
    double = move.flatten().double()
    return float(torch.dot(double, double))


def norm_of(tensors: Named) -> float:
    """Returns the norm over all tensors. They are taken in the order of their names, which decides how sums round."""
    return float(nn.utils.get_total_norm([value for _, value in sorted(tensors.items())]))


def distance(a: Named, b: Named) -> float:
    """Returns ‖a − b‖ over all tensors."""
    return norm_of({name: a[name] - b[name] for name in a})


def is_finite(value: Tensor) -> bool:
    """Returns whether every element is finite. A finite sum proves it in one cheap pass; only an overflow does not."""
    return math.isfinite(value.detach().sum()) or bool(torch.isfinite(value).all())


def dump_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """Returns an optimizer's state as "parameter name|key" → tensor. ``names`` are those of its parameters, in their
    order. (SGD without momentum has no state.)"""
    return {
        f"{names[index]}|{key}": value.clone()
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], dump: Named) -> None:
    """Puts back what :func:`dump_optimizer` returned."""
    state = optimizer.state_dict()
    for key, value in dump.items():
        name, _, entry = key.partition("|")
        state["state"].setdefault(names.index(name), {})[entry] = value.clone()
    optimizer.load_state_dict(state)
