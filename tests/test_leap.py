"""Leap's meta-gradient: by hand, against slow transcriptions of the paper, and by the identities it must keep."""

import itertools
import math
import weakref
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from leap_rl.leap import HELD, PathAccumulator

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


def bowl(parameters):
    """A smooth loss of all parameters, with a gradient that differs from point to point."""
    return sum((torch.sin(value) + value**2 / 4).sum() for value in parameters.values())


def with_gradient(parameters):
    parameters = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    loss = bowl(parameters)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return Point(loss.item(), parameters, dict(zip(parameters, gradients, strict=True)))


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


# Non-finite values

BROKEN = {
    "loss": lambda point, value: point._replace(loss=value),
    "gradient": lambda point, value: point._replace(gradients=_break(point.gradients, value)),
    "parameter": lambda point, value: point._replace(parameters=_break(point.parameters, value)),
}


def _break(named, value):
    """One number of the last of several tensors is not finite."""
    named = {name: tensor.clone() for name, tensor in named.items()}
    named["encoder.bias"][1] = value
    return named


def some_path(num_points=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(num_points, 2, SIZE, generator=generator, dtype=torch.float64)
    return [Point(float(i % 2), tensors(p.tolist(), dtype), tensors(g.tolist(), dtype)) for i, (p, g) in
            enumerate(numbers)]  # fmt: skip


def assert_contributes_nothing(accumulator, reason, dtype=torch.float64):
    assert accumulator.failed is not None
    assert reason in accumulator.failed
    assert_bits_equal(accumulator.increment(), tensors([0.0] * SIZE, dtype))


EVERY_VALUE_AND_VARIANT = list(itertools.product([NAN, INF, -INF], VARIANTS))


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("place", [0, 2, 3])
def test_a_path_with_a_non_finite_value_contributes_nothing(what, place):
    for value, variant in EVERY_VALUE_AND_VARIANT:
        path = some_path(4)
        path[place] = BROKEN[what](path[place], value)
        accumulator = walk(path, *variant)
        accumulator.finish(path[1].parameters, 1.0)
        assert_contributes_nothing(accumulator, what)


@pytest.mark.parametrize("loss", [None, 1.0])
def test_a_path_that_ends_in_a_non_finite_parameter_contributes_nothing(loss):
    for value, variant in EVERY_VALUE_AND_VARIANT:
        *path, end = some_path(4)
        accumulator = walk(path, *variant)
        accumulator.finish(_break(end.parameters, value), loss)
        assert_contributes_nothing(accumulator, "parameter")


def test_a_path_that_ends_in_a_non_finite_loss_contributes_nothing():
    for value, variant in EVERY_VALUE_AND_VARIANT:
        *path, end = some_path(4)
        accumulator = walk(path, *variant)
        accumulator.finish(end.parameters, torch.tensor(value))
        assert_contributes_nothing(accumulator, "loss")


def test_a_failed_path_stays_failed_through_cuts():
    path = some_path(6)
    accumulator = walk(path[:2])
    assert any(value.any() for value in accumulator.cut().values())
    accumulator.record(NAN, path[2].parameters, path[2].gradients)
    assert not any(value.any() for value in accumulator.cut().values())
    for point in path[3:]:
        accumulator.record(*point)
    assert_contributes_nothing(accumulator, "loss")


def test_finite_values_whose_float32_sum_overflows_are_no_failure():
    huge = {"theta": torch.tensor([3e38, 3e38, -3e38])}
    path = [Point(1.0, huge, huge), Point(0.5, huge, huge)]
    accumulator = walk(path, "energy")
    accumulator.finish(huge, 0.5)
    assert accumulator.failed is None
    assert torch.equal(accumulator.increment()["theta"], huge["theta"] / 2)


@pytest.mark.parametrize("loss", [1e39, 1e200, -1e200])
def test_no_finite_loss_raises_or_gives_a_non_finite_increment(loss):
    for variant in VARIANTS:
        accumulator = walk(line((0, 1, 1), (loss, 0, 1), (0, 0, 1), dtype=torch.float32), *variant)
        assert accumulator.increment()["theta"].isfinite()


# What it keeps, and what it is given


def test_no_autograd_history_is_kept():
    path = [with_gradient(point.parameters) for point in some_path(3)]
    accumulator = PathAccumulator("length")
    for _, parameters, gradients in path:
        accumulator.record(bowl(parameters), parameters, gradients)
    kept = [*accumulator.increment().values(), *accumulator.cut().values(), *accumulator.state().values()]
    assert not any(value.requires_grad or value.grad_fn for value in kept)


@pytest.mark.parametrize("told", [False, True])
def test_no_autograd_history_is_kept_of_stacks_nor_where_moves_are_told(told):
    path = [with_gradient(point.parameters) for point in some_path(HELD + 2)]
    stacks = {name: torch.stack([point.gradients[name] for point in path]).requires_grad_() for name in SHAPES}
    accumulator, expected = PathAccumulator(), walk(path)
    for row, point in enumerate(path):
        accumulator.record(point.loss, point.parameters, stacks, row=row)
        if told:
            accumulator.moved(1.0)
    accumulator.finish(path[0].parameters)
    increment = accumulator.increment()
    assert not any(value.requires_grad for value in (increment | accumulator.state()).values())
    for name, value in expected.increment().items():
        torch.testing.assert_close(increment[name], value)


def increments_of_a_stack(path, variant, num_rows, cuts, pauses):
    """Pairs of increments, of gradients in rows and of copied ones. Rows are overwritten as soon as they may be."""
    stack = {name: torch.full((num_rows, *shape), NAN) for name, shape in SHAPES.items()}
    stacked, copied = PathAccumulator(*variant), PathAccumulator(*variant)
    for index, (loss, parameters, gradients) in enumerate(path):
        if index in pauses:
            state = stacked.state()
            stacked = PathAccumulator(*variant)
            stacked.load_state(state)
        row = index % num_rows
        for name, value in gradients.items():
            stack[name][row] = value
        norm = math.sqrt(sum(float(value.square().sum()) for value in gradients.values()))
        stacked.record(loss, parameters, stack, norm, row)
        copied.record(loss, parameters, gradients)
        if index in cuts or index == len(path) - 1:
            assert numbers_of(stacked) == numbers_of(copied)
            yield stacked.cut(), copied.cut()


rows = st.integers(HELD + 1, 2 * HELD)
places = st.sets(st.integers(0, 5 * HELD))


@untimed
@given(paths(dyadic, torch.float32, 2 * HELD + 3, 5 * HELD), variants, rows, places, places)
def test_gradients_in_the_rows_of_a_stack_are_copied_ones_to_the_bit(path, variant, num_rows, cuts, pauses):
    for stacked, copied in increments_of_a_stack(path, variant, num_rows, cuts, pauses):
        assert_bits_equal(stacked, copied)


@untimed
@given(paths(ordinary, torch.float32, 2 * HELD + 3, 5 * HELD), variants, rows, places, places)
def test_gradients_in_the_rows_of_a_stack_are_copied_ones_but_for_rounding(path, variant, num_rows, cuts, pauses):
    for stacked, copied in increments_of_a_stack(path, variant, num_rows, cuts, pauses):
        if variant[0] == "length":  # each is added by itself
            assert_bits_equal(stacked, copied)
        largest = max(float(value.abs().max()) for point in path for value in point.gradients.values())
        scale = largest * max(abs(point.loss) for point in path) * len(path)
        torch.testing.assert_close(stacked, copied, rtol=1e-5, atol=1e-6 * scale)


def test_a_path_that_is_cut_and_goes_on_elsewhere_is_the_same_to_the_bit():
    """Which rows are added together is decided by the last cut, not by what is left in the stack."""
    path, cut, num_rows = some_path(4 * HELD), HELD + 2, 2 * HELD
    here, there = PathAccumulator(), PathAccumulator()

    def go_on(accumulator, first, last, stack):
        for index in range(first, last):
            for name, value in path[index].gradients.items():
                stack[name][index % num_rows] = value
            accumulator.record(path[index].loss, path[index].parameters, stack, row=index % num_rows)

    old, new = ({n: torch.zeros((num_rows, *shape)).double() for n, shape in SHAPES.items()} for _ in range(2))
    go_on(here, 0, cut, old)
    here.cut()
    there.load_state(here.state())
    go_on(here, cut, len(path), old)
    go_on(there, cut, len(path), new)
    assert_bits_equal(here.increment(), there.increment())


def test_a_move_whose_length_has_no_reciprocal_contributes_nothing_to_the_length():
    tiny = 1e-45  # the smallest of float32
    start, end = tensors([0.0] * SIZE, torch.float32), tensors([0.0] * (SIZE - 1) + [tiny], torch.float32)
    accumulator = walk([Point(0.0, start, start), Point(0.0, end, start)], "length")
    assert not accumulator.failed
    assert (accumulator.num_moves, accumulator.path_length) == (1, pytest.approx(float(end["scale"]), abs=0))
    assert_bits_equal(accumulator.increment(), start)


energies = st.tuples(st.just("energy"), st.booleans(), st.booleans())


@untimed
@given(path=paths(ordinary, torch.float32, 2, 9), variant=energies, cuts=st.sets(st.integers(0, 8)), data=st.data())
def test_moves_that_are_told_are_measured_ones(path, variant, cuts, data):
    """Points are kept where an increment follows, and overwritten as an optimizer does; the state is taken anywhere."""
    pause, last = data.draw(st.integers(0, len(path))), path.pop()
    told, measured = PathAccumulator(*variant), PathAccumulator(*variant)
    parameters = {name: torch.empty(shape) for name, shape in SHAPES.items()}
    for index, point in enumerate(path):
        if index == pause:
            state = told.state()
            told = PathAccumulator(*variant)
            told.load_state(state)
        for name, value in point.parameters.items():
            parameters[name].copy_(value)
        told.record(point.loss, parameters, point.gradients, keep_point=index in cuts or index == len(path) - 1)
        measured.record(*point)
        there = path[index + 1] if index + 1 < len(path) else last
        moves = [there.parameters[name] - parameters[name] for name in sorted(SHAPES)]
        told.moved(sum(float(move.flatten().dot(move.flatten())) for move in moves))
        if index in cuts:
            assert_bits_equal(told.cut(), measured.cut())
    told.finish(last.parameters)
    measured.finish(last.parameters)
    assert_bits_equal(told.increment(), measured.increment())
    lengths = {name: pytest.approx(getattr(measured, name), rel=1e-6) for name in ("path_length", "energy")}
    assert numbers_of(told) == numbers_of(measured) | lengths


def test_a_point_that_was_not_kept_is_missed():
    path = some_path(3)
    accumulator = PathAccumulator()
    accumulator.record(*path[0])
    accumulator.moved(1.0)
    accumulator.record(*path[1], keep_point=False)
    for question in (accumulator.increment, accumulator.cut, lambda: accumulator.record(*path[2])):
        with pytest.raises(RuntimeError):
            question()
    accumulator.moved(1.0)
    accumulator.record(*path[2])
    assert accumulator.num_moves == 2
    accumulator.increment()


def test_a_failed_path_is_zero_wherever_it_stands():
    path = some_path(3)
    accumulator = walk(path[:1])
    accumulator.moved(1.0)
    accumulator.record(*path[1], keep_point=False)
    accumulator.record(NAN, path[2].parameters, path[2].gradients)
    assert accumulator.failed
    assert_bits_equal(accumulator.cut(), tensors([0.0] * SIZE))


def test_moves_are_told_only_where_their_norm_is_enough():
    for path in (PathAccumulator("length"), PathAccumulator(loss_difference="paired"), PathAccumulator()):
        assert path.takes_norms == (path.metric == "energy" and not path.paired)
        with pytest.raises(RuntimeError):
            path.moved(1.0)


@pytest.mark.parametrize("squared_norm", [NAN, INF])
def test_a_told_move_that_is_not_finite_fails_the_path(squared_norm):
    accumulator = walk(some_path(2))
    accumulator.moved(squared_norm)
    state = accumulator.state()
    again = PathAccumulator()
    again.load_state(state)
    again.record(*some_path(3)[2])
    assert again.failed == "non-finite parameter"


def test_nothing_that_is_given_is_kept():
    point = with_gradient(some_path(1)[0].parameters)
    loss = bowl(point.parameters)
    given = [weakref.ref(value) for value in (loss, *point.parameters.values(), *point.gradients.values())]
    accumulator = PathAccumulator()
    accumulator.record(loss, point.parameters, point.gradients)
    del loss, point
    assert [reference() for reference in given] == [None] * len(given)
    assert accumulator.num_points == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_overwriting_what_was_given_changes_nothing(variant):
    expected = walk(some_path(4), *variant).increment()
    accumulator, path = PathAccumulator(*variant), some_path(4)
    for loss, parameters, gradients in path:
        loss = torch.tensor(loss)
        accumulator.record(loss, parameters, gradients)
        for value in (loss, *parameters.values(), *gradients.values()):
            value.fill_(NAN)  # as an optimizer's step or zero_grad overwrites them
    assert_bits_equal(accumulator.increment(), expected)


def test_overwriting_what_was_returned_changes_nothing():
    path = some_path(4)
    accumulator = walk(path[:3])
    for returned in (accumulator.increment(), accumulator.state()):
        for value in returned.values():
            value.fill_(1)
    assert_bits_equal(accumulator.increment(), walk(path[:3]).increment())
    for value in accumulator.cut().values():
        value.fill_(NAN)
    accumulator.record(*path[3])
    assert_bits_equal(accumulator.increment(), walk(path[2:]).increment())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_that_is_given_comes_out(variant, dtype):
    path = some_path(4, dtype)
    accumulator = walk(path[:3], *variant)
    accumulator.finish(path[3].parameters, 0.0)
    assert {value.dtype for value in accumulator.increment().values()} == {dtype}


def test_the_memory_layout_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 2, 2, 3, 4, 4, generator=generator)
    path = [Point(float(-i), {"w": p}, {"w": g}) for i, (p, g) in enumerate(images)]
    restrided = [
        Point(loss, {"w": p["w"].contiguous(memory_format=torch.channels_last)}, {"w": g["w"].transpose(0, 1).clone(
            memory_format=torch.contiguous_format).transpose(0, 1)}) for loss, p, g in path
    ]  # fmt: skip
    assert restrided[0].parameters["w"].stride() != path[0].parameters["w"].stride()
    assert_bits_equal(walk(restrided, "length").increment(), walk(path, "length").increment())


@pytest.mark.parametrize("metric", ["lenght", "", None])
def test_an_unknown_metric_is_refused(metric):
    with pytest.raises(ValueError, match="'energy' or 'length'"):
        PathAccumulator(metric)


MISFITS = {
    "missing name": lambda named: {name: named[name] for name in list(named)[1:]},
    "extra name": lambda named: named | {"head.bias": torch.zeros(2)},
    "other shape": lambda named: named | {"encoder.bias": torch.zeros(4, dtype=torch.float64)},
    "same size, other shape": lambda named: named | {"encoder.weight": torch.zeros(4, dtype=torch.float64)},
}


@pytest.mark.parametrize("num_before", [0, 2])
@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("field", ["parameters", "gradients"])
def test_wrong_names_and_shapes_are_refused_and_change_nothing(field, misfit, num_before):
    path = some_path(4)
    accumulator = walk(path[:num_before])
    wrong = path[num_before]._replace(**{field: MISFITS[misfit](getattr(path[num_before], field))})
    with pytest.raises(ValueError, match="must be"):
        accumulator.record(*wrong)
    for point in path[num_before:]:
        accumulator.record(*point)
    assert_bits_equal(accumulator.increment(), walk(path).increment())


@pytest.mark.parametrize("num_before", [0, 2])
def test_a_parameter_without_a_gradient_is_refused(num_before):
    path = some_path(3)
    accumulator = walk(path[:num_before])
    with pytest.raises(ValueError, match=r"gradients: encoder\.bias must be a tensor"):
        accumulator.record(1.0, path[2].parameters, path[2].gradients | {"encoder.bias": None})


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("use_loss", [True, False])
def test_finishing_with_wrong_names_or_shapes_is_refused(misfit, use_loss):
    path = some_path(3)
    accumulator = walk(path, "energy", use_loss)
    with pytest.raises(ValueError, match="must be"):
        accumulator.finish(MISFITS[misfit](path[0].parameters))


@pytest.mark.parametrize("loss", [1.0, NAN])
def test_recording_after_finishing_is_an_error(loss):
    path = some_path(2)
    accumulator = walk([path[0]._replace(loss=loss)])
    accumulator.finish()
    with pytest.raises(RuntimeError, match="after finish"):
        accumulator.record(*path[1])


# In pieces


def pieces(path, cuts, *variant):
    """Increments, path lengths, energies and counts of moves of a path that is cut after some of its points."""
    accumulator = PathAccumulator(*variant)
    found = []
    for index, point in enumerate(path):
        accumulator.record(*point)
        if index in cuts or point is path[-1]:
            numbers = [accumulator.path_length, accumulator.energy, accumulator.num_points, accumulator.num_moves]
            found.append(([*numbers, accumulator.num_rises], accumulator.cut()))
    numbers = [sum(column) for column in zip(*(numbers for numbers, _ in found), strict=True)]
    return numbers, {name: sum(increment[name] for _, increment in found) for name in SHAPES}


@untimed
@given(path=paths(ordinary), variant=variants, cuts=st.sets(st.integers(0, 5)))
def test_the_pieces_of_a_path_sum_to_the_whole(path, variant, cuts):
    whole = walk(path, *variant)
    numbers, increment = pieces(path, cuts, *variant)
    torch.testing.assert_close(increment, whole.increment(), rtol=1e-12, atol=1e-13)
    expected = [whole.path_length, whole.energy, whole.num_points, whole.num_moves, whole.num_rises]
    assert numbers == pytest.approx(expected, rel=1e-12)


@untimed
@given(path=paths(dyadic), use_loss=st.booleans(), stabilizer=st.booleans(), cuts=st.sets(st.integers(0, 5)))
def test_the_pieces_sum_exactly_where_sums_are_exact(path, use_loss, stabilizer, cuts):
    _, increment = pieces(path, cuts, "energy", use_loss, stabilizer)
    assert_bits_equal(increment, walk(path, "energy", use_loss, stabilizer).increment())


def test_cutting_twice_gives_nothing_the_second_time():
    accumulator = walk(some_path(3))
    accumulator.cut()
    assert_bits_equal(accumulator.cut(), tensors([0.0] * SIZE))


# Interrupted


@settings(untimed, max_examples=150)
@given(data=st.data(), variant=variants, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_an_interrupted_path_is_an_uninterrupted_one_to_the_bit(data, variant, dtype):
    path = data.draw(paths(st.floats(-9, 9, width=32), dtype, min_points=2))
    cuts = data.draw(st.sets(st.integers(0, len(path) - 2)))
    broken = data.draw(st.sampled_from([None, *range(len(path) - 1)]))
    if broken is not None:
        path[broken] = path[broken]._replace(loss=NAN)
    last_loss = data.draw(st.sampled_from([None, 1.5]))

    def run(interruption):
        accumulator, increments = PathAccumulator(*variant), []
        for index in range(len(path) + 1):
            if index == interruption:
                state = {name: value.clone() for name, value in accumulator.state().items()}
                accumulator = walk(some_path(3, dtype), *variant)  # what it holds is replaced
                accumulator.load_state(state)
                for value in state.values():
                    value.fill_(1)
            if index < len(path) - 1:
                accumulator.record(*path[index])
            elif index < len(path):
                accumulator.finish(path[index].parameters, last_loss)
            if index in cuts:
                increments.append(accumulator.cut())
        return [*increments, accumulator.increment()], numbers_of(accumulator)

    expected, numbers = run(interruption=None)
    resumed, resumed_numbers = run(interruption=data.draw(st.integers(0, len(path))))
    for ours, theirs in zip(resumed, expected, strict=True):
        assert_bits_equal(ours, theirs)
    assert resumed_numbers == numbers


def test_loading_leaves_nothing_of_another_path():
    """Not even its dtype, in which the moves would be measured: the interrupted path is a float32 one."""
    path = line((0.0, 0.1, 0.0), (0.0, 0.7, 0.0), dtype=torch.float32)
    accumulator = walk(line((0.0, 0.0, 0.0), (0.0, 1.0, 0.0)), "length")
    accumulator.load_state(walk(path[:1], "length").state())
    accumulator.record(*path[1])
    assert accumulator.path_length == walk(path, "length").path_length
