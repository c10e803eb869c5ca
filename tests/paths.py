"""Paths of learning processes, drawn and by hand, that the tests of leap.py share."""

import itertools
import math
from typing import NamedTuple

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from leap_rl.leap import PathAccumulator

NAN, INF = math.nan, math.inf
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
SHAPES = {"encoder.weight": (2, 2), "encoder.bias": (3,), "scale": ()}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())
VARIANTS = list(itertools.product(("energy", "length"), (True, False), (True, False)))
variants = st.sampled_from(VARIANTS)  # metric, use_loss, stabilizer


class Point(NamedTuple):
    """What one call of record() is given."""

    loss: float
    parameters: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]


def tensors(numbers, dtype=torch.float64):
    """SIZE numbers as named tensors."""
    numbers = iter(numbers)
    return {
        name: torch.tensor(list(itertools.islice(numbers, math.prod(shape))), dtype=dtype).reshape(shape)
        for name, shape in SHAPES.items()
    }


def flat(named):
    return [float(number) for name in SHAPES for number in named[name].flatten()]


def paths(elements, dtype=torch.float64, min_points=1, max_points=6):
    numbers = st.lists(elements, min_size=SIZE, max_size=SIZE).map(lambda drawn: tensors(drawn, dtype))
    return st.lists(st.builds(Point, elements, numbers, numbers), min_size=min_points, max_size=max_points)


# Ordinary numbers for comparisons within a tolerance: equal, or apart by more than their rounding.
ordinary = st.floats(-2, 2).map(lambda number: round(number, 3))
# Multiples of 1/8 up to 4: sums and products of a few are exact, so that any order of adding gives the same bits.
dyadic = st.integers(-32, 32).map(lambda eighths: eighths / 8)


def walk(path, *variant):
    accumulator = PathAccumulator(*variant)
    for point in path:
        accumulator.record(*point)
    return accumulator


def line(*points, dtype=torch.float64):
    """A path of one parameter: (loss, θ, ∇f), …"""
    return [
        Point(loss, {"theta": torch.tensor(theta, dtype=dtype)}, {"theta": torch.tensor(gradient, dtype=dtype)})
        for loss, theta, gradient in points
    ]


def numbers_of(accumulator):
    """Everything it reports beside the increment."""
    names = ("path_length", "energy", "num_points", "num_moves", "num_rises", "failed", "finished")
    return {name: getattr(accumulator, name) for name in names}


def assert_bits_equal(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value), name


def some_path(num_points=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(num_points, 2, SIZE, generator=generator, dtype=torch.float64)
    return [Point(float(i % 2), tensors(p.tolist(), dtype), tensors(g.tolist(), dtype)) for i, (p, g) in
            enumerate(numbers)]  # fmt: skip


def bowl(parameters):
    """A smooth loss of all parameters, with a gradient that differs from point to point."""
    return sum((torch.sin(value) + value**2 / 4).sum() for value in parameters.values())


def with_gradient(parameters):
    parameters = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    loss = bowl(parameters)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return Point(loss.item(), parameters, dict(zip(parameters, gradients, strict=True)))
