"""Leap's meta-gradient: by hand, against slow transcriptions of the paper, and by the identities it must keep."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from leap_rl.leap import PathAccumulator, weights_of_move
from tests.paths import (
    SHAPES,
    SIZE,
    assert_bits_equal,
    bowl,
    dyadic,
    flat,
    line,
    ordinary,
    paths,
    tensors,
    untimed,
    variants,
    walk,
    with_gradient,
)

# By hand


@pytest.mark.parametrize(
    ("metric", "use_loss", "expected"),
    [("length", True, 4 / math.sqrt(2)), ("energy", True, 4), ("length", False, 1), ("energy", False, 1)],
)
def test_the_hand_example(metric, use_loss, expected):
    """θ goes 1 → 0, f goes 2 → 1, ∇f = 3."""
    accumulator = walk(line((2, 1, 3), (1, 0, 5)), metric, use_loss)
    assert accumulator.increment()["theta"].item() == pytest.approx(expected, rel=1e-15)
    assert accumulator.path_length == pytest.approx(math.sqrt(2) if use_loss else 1)
    assert accumulator.energy == pytest.approx(2 if use_loss else 1)


@pytest.mark.parametrize(("stabilizer", "expected"), [(True, 4), (False, -2)])
def test_the_hand_example_where_the_loss_rises(stabilizer, expected):
    """θ goes 1 → 0, f goes 1 → 2, ∇f = 3: −(−1 ∓ 3)."""
    path = line((1, 1, 3), (2, 0, 5))
    assert walk(path, "energy", True, stabilizer).increment()["theta"].item() == expected
    length = walk(path, "length", True, stabilizer)
    assert length.increment()["theta"].item() == pytest.approx(expected / math.sqrt(2), rel=1e-15)
    assert length.num_rises == 1
    assert length.path_length == pytest.approx(math.sqrt(2))  # the norm does not depend on the sign


def test_a_loss_that_changes_while_the_parameters_stay_is_a_move():
    accumulator = walk(line((2, 1, 3), (1.5, 1, 3)), "length")
    assert accumulator.increment()["theta"].item() == 3
    assert accumulator.path_length == 0.5


@pytest.mark.parametrize(
    ("metric", "stabilizer", "expected"),
    [
        ("energy", True, (1, -4, 25)),
        ("energy", False, (1, 4, 25)),
        ("length", True, (1 / 5, -4 / 5, 25)),
        ("length", False, (1 / 5, 4 / 5, 25)),
    ],
)
def test_the_weights_of_a_move_by_hand(metric, stabilizer, expected):
    """‖Δθ‖ = 3 and Δf = 4: the loss rises on a move of length 5."""
    assert weights_of_move(9.0, 4.0, metric, stabilizer) == pytest.approx(expected, rel=1e-15)


# Against slow transcriptions


def slow_increment(path, metric, use_loss, stabilizer):
    """Equation 8 as it is printed, number by number on Python floats.

    Slow because every number of every point is a turn of the interpreter; for the same reason it shares nothing
    with what it checks: no in-place sums, no telescoping, no tensors. Returns increment, path length and energy.
    """
    increment, path_length, energy = [0.0] * SIZE, 0.0, 0.0
    for i in range(len(path) - 1):
        here, there, gradient = flat(path[i].parameters), flat(path[i + 1].parameters), flat(path[i].gradients)
        delta_f = path[i + 1].loss - path[i].loss if use_loss else 0.0
        squared = delta_f * delta_f
        for j in range(SIZE):
            squared += (there[j] - here[j]) * (there[j] - here[j])
        path_length += math.sqrt(squared)
        energy += squared
        if squared == 0.0:
            continue
        if stabilizer and delta_f > 0:
            delta_f = -delta_f
        for j in range(SIZE):
            term = -((there[j] - here[j]) + delta_f * gradient[j])
            increment[j] += term / math.sqrt(squared) if metric == "length" else term
    return increment, path_length, energy


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-10, 1e-12), (torch.float32, 1e-5, 5e-5)])
@settings(untimed, max_examples=150)
@given(data=st.data(), variant=variants, ending=st.sampled_from(["open", "parameters", "parameters and loss"]))
def test_the_increment_is_that_of_a_slow_transcription(dtype, rtol, atol, data, variant, ending):
    path = data.draw(paths(ordinary, dtype, min_points=2))
    accumulator = walk(path[:-1], *variant)
    loss, parameters, gradients = path[-1]
    if ending == "open":
        accumulator.record(loss, parameters, gradients)
    elif ending == "parameters":
        accumulator.finish(parameters)
    else:
        accumulator.finish(parameters, loss)
    use_loss = variant[1]
    if ending == "parameters" and use_loss:  # no honest Δf exists for the last move
        path = path[:-1]
    increment, path_length, energy = slow_increment(path, *variant)
    expected = tensors(increment, dtype)
    torch.testing.assert_close(accumulator.increment(), expected, rtol=rtol, atol=atol)
    assert accumulator.path_length == pytest.approx(path_length, rel=rtol)
    assert accumulator.energy == pytest.approx(energy, rel=rtol)
    assert accumulator.num_moves == len(path) - 1


@pytest.mark.parametrize("metric", ["energy", "length"])
@untimed
@given(path=paths(ordinary, min_points=2, max_points=4))
def test_the_increment_is_the_gradient_of_the_path_with_the_next_points_held(metric, path):
    """The objective that equation 8 is the gradient of, differentiated by autograd.

    Each ψⁱ is pulled towards a fixed γⁱ⁺¹. The energy's factor 2 is left to the meta learning rate.
    """
    path = [with_gradient(point.parameters) for point in path]
    expected = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for here, there in itertools.pairwise(path):
        leaves = {name: value.detach().clone().requires_grad_() for name, value in here.parameters.items()}
        squared = (there.loss - bowl(leaves)) ** 2
        squared = squared + sum(((there.parameters[name].detach() - leaves[name]) ** 2).sum() for name in SHAPES)
        if squared == 0:
            continue
        objective = squared.sqrt() if metric == "length" else squared / 2
        for name, gradient in zip(SHAPES, torch.autograd.grad(objective, list(leaves.values())), strict=True):
            expected[name] += gradient
    increment = walk(path, metric, True, False).increment()
    torch.testing.assert_close(increment, expected, rtol=1e-9, atol=1e-9)


# Identities


def floats(dtype):
    """Any finite floats of a dtype whose differences can be squared without an overflow."""
    limit = 2.0 ** (59 if dtype == torch.float32 else 500)
    return st.floats(-limit, limit, width=32 if dtype == torch.float32 else 64)


def arbitrary_points(dtype):
    return st.tuples(st.just(dtype), st.lists(st.lists(floats(dtype), min_size=2, max_size=2), min_size=2, max_size=8))


@untimed
@given(drawn=st.one_of(arbitrary_points(torch.float32), arbitrary_points(torch.float64)), data=st.data())
@example(drawn=(torch.float32, [[0.1, 0.2], [0.3, -7.0], [1e9, 0.7]]), data=None)
@example(drawn=(torch.float32, [[1e-30, 0.0], [0.0, 0.0], [0.0, 1.0]]), data=None)  # the first move squared is 0
@example(drawn=(torch.float64, [[1e-200, 0.0], [0.0, 0.0]]), data=None)
def test_energy_without_the_loss_telescopes_to_the_last_bit(drawn, data):
    """Σ −Δθ = θ⁰ − θᴷ: Reptile. Each piece of a path that is cut telescopes by itself."""
    dtype, points = drawn
    points = [torch.tensor(point, dtype=dtype) for point in points]
    cuts = data.draw(st.sets(st.integers(1, len(points) - 1))) if data else set()
    accumulator, start = PathAccumulator("energy", use_loss=False), points[0]
    for index, point in enumerate(points[:-1]):
        accumulator.record(0.0, {"theta": point}, {"theta": point})
        if index in cuts:
            assert torch.equal(accumulator.cut()["theta"], start - point)
            start = point
    accumulator.finish({"theta": points[-1]})
    assert accumulator.failed is None
    assert torch.equal(accumulator.increment()["theta"], start - points[-1])


@untimed
@given(path=paths(ordinary), variant=variants)
def test_path_length_is_that_of_the_polyline_and_energy_its_sum_of_squares(path, variant):
    """In (θ, f) space; in θ space alone without the loss. Whichever metric is descended."""
    _, use_loss, _ = variant
    corners = [[*flat(point.parameters), point.loss if use_loss else 0.0] for point in path]
    sides = [math.dist(a, b) for a, b in itertools.pairwise(corners)]
    accumulator = walk(path, *variant)
    assert accumulator.path_length == pytest.approx(math.fsum(sides), rel=1e-12)
    assert accumulator.energy == pytest.approx(math.fsum(side**2 for side in sides), rel=1e-12)


@pytest.mark.parametrize("size", [1e-30, 1e20])
@pytest.mark.parametrize("use_loss", [True, False])
def test_a_float32_move_whose_square_is_no_float32_has_its_length(size, use_loss):
    accumulator = walk(line((0, 0, 1), (0, size, 1), dtype=torch.float32), "length", use_loss)
    assert accumulator.failed is None
    assert accumulator.path_length == pytest.approx(size, rel=1e-6)
    assert accumulator.increment()["theta"].item() == pytest.approx(-1, rel=1e-6)


@pytest.mark.parametrize("metric", ["energy", "length"])
def test_stepping_against_the_increment_shortens_the_path(metric):
    """SGD on a long valley: θ⁰ moves along the path, and what is left to walk becomes less."""
    curvature = torch.tensor([1.0, 0.1], dtype=torch.float64)
    initialization = torch.tensor([3.0, -4.0], dtype=torch.float64)
    lengths = []
    for _ in range(10):
        theta, accumulator = initialization.clone(), PathAccumulator(metric)
        for _ in range(20):
            gradient = curvature * theta
            accumulator.record(theta @ gradient / 2, {"theta": theta}, {"theta": gradient})
            theta = theta - 0.5 * gradient
        lengths.append(accumulator.path_length)
        initialization = initialization - 0.05 * accumulator.increment()["theta"]
    assert all(after < before for before, after in itertools.pairwise(lengths))
    assert lengths[-1] < 0.8 * lengths[0]


# The choices that the equation leaves open


@untimed
@given(path=paths(ordinary, min_points=2), metric=st.sampled_from(["energy", "length"]))
def test_the_stabilizer_only_turns_the_loss_term_where_the_loss_rises(path, metric):
    falling = sorted(path, key=lambda point: -point.loss)
    assert_bits_equal(walk(falling, metric, True, True).increment(), walk(falling, metric, True, False).increment())


@untimed
@given(path=paths(dyadic, min_points=2, max_points=2))
def test_with_the_stabilizer_the_loss_term_never_pushes_uphill(path):
    """Stepping against the loss term's share goes along −∇f, whether the loss fell or rose."""
    with_loss, without = walk(path, "energy", True).increment(), walk(path, "energy", False).increment()
    share = {name: with_loss[name] - without[name] for name in SHAPES}
    loss_change = abs(path[1].loss - path[0].loss)
    assert_bits_equal(share, {name: loss_change * path[0].gradients[name] for name in SHAPES})


@untimed
@given(path=paths(ordinary), variant=variants)
def test_k_points_give_k_minus_1_moves_and_finishing_adds_none(path, variant):
    accumulator = walk(path, *variant)
    increment = accumulator.increment()
    assert (accumulator.num_points, accumulator.num_moves) == (len(path), len(path) - 1)
    accumulator.finish()
    assert_bits_equal(accumulator.increment(), increment)
    assert accumulator.num_moves == len(path) - 1


@pytest.mark.parametrize(
    ("use_loss", "given_loss", "num_moves"), [(True, None, 1), (True, 0.5, 2), (False, None, 2), (False, 0.5, 2)]
)
def test_the_last_move_is_included_without_the_loss_or_with_one_more(use_loss, given_loss, num_moves):
    accumulator = walk(line((2, 4, 3), (1, 2, 3)), "energy", use_loss)
    accumulator.finish({"theta": torch.tensor(1.0, dtype=torch.float64)}, given_loss)
    assert accumulator.num_moves == num_moves
    expected = {(True, 1): 2 + 3, (True, 2): 3 + 3 + 1.5, (False, 2): 3}[use_loss, num_moves]
    assert accumulator.increment()["theta"].item() == expected


def test_one_point_has_no_moves():
    accumulator = walk(line((2, 1, 3)))
    assert accumulator.increment() == {"theta": torch.tensor(0.0)}
    assert (accumulator.path_length, accumulator.energy, accumulator.failed) == (0, 0, None)


def test_a_path_without_points_is_empty():
    accumulator = PathAccumulator()
    accumulator.finish({"theta": torch.tensor(1.0)})
    assert accumulator.increment() == {}


@untimed
@given(path=paths(ordinary), variant=variants, data=st.data())
def test_a_move_of_length_zero_contributes_nothing(path, variant, data):
    stays = data.draw(st.integers(0, len(path) - 1))
    accumulator = walk([*path[: stays + 1], *path[stays:]], *variant)
    expected = walk(path, *variant)
    assert_bits_equal(accumulator.increment(), expected.increment())
    assert (accumulator.path_length, accumulator.energy) == (expected.path_length, expected.energy)


@pytest.mark.parametrize("metric", ["energy", "length"])
def test_without_the_loss_a_change_of_loss_alone_is_no_move(metric):
    accumulator = walk(line((2, 1, 3), (1, 1, 3)), metric, False)
    assert accumulator.increment()["theta"].item() == 0
    assert accumulator.path_length == 0
