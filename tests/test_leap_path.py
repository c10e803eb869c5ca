"""A path accumulator: what fails a path, what it keeps of what it is given, pieces of a path, and its state."""

import itertools
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leap_rl.leap import PathAccumulator
from tests.paths import (
    INF,
    NAN,
    SHAPES,
    SIZE,
    VARIANTS,
    Point,
    assert_bits_equal,
    bowl,
    dyadic,
    line,
    numbers_of,
    ordinary,
    paths,
    some_path,
    tensors,
    untimed,
    variants,
    walk,
    with_gradient,
)

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
    kept = [*accumulator.increment().values(), *accumulator.cut().values()]
    kept += [*accumulator.state().values(), *accumulator.point.values(), *accumulator.gradient.values()]
    assert not any(value.requires_grad or value.grad_fn for value in kept)


def test_a_move_whose_length_has_no_reciprocal_contributes_nothing_to_the_length():
    tiny = 1e-45  # the smallest of float32
    start, end = tensors([0.0] * SIZE, torch.float32), tensors([0.0] * (SIZE - 1) + [tiny], torch.float32)
    accumulator = walk([Point(0.0, start, start), Point(0.0, end, start)], "length")
    assert not accumulator.failed
    assert (accumulator.num_moves, accumulator.path_length) == (1, pytest.approx(float(end["scale"]), abs=0))
    assert_bits_equal(accumulator.increment(), start)


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
    for value in accumulator.increment().values():
        value.fill_(1)
    assert_bits_equal(accumulator.increment(), walk(path[:3]).increment())
    for returned in (accumulator.cut(), accumulator.state()):
        for value in returned.values():
            value.fill_(1)
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


def test_an_unknown_loss_difference_is_refused():
    with pytest.raises(ValueError, match="loss_difference must be 'successive' or 'paired', not 'pair'"):
        PathAccumulator(loss_difference="pair")


def test_a_module_stands_for_its_parameters_and_their_gradients():
    """Those that are trained: what is frozen is no part of the path."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    network[0].bias.requires_grad_(False)
    ours, theirs = PathAccumulator(), PathAccumulator()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    inputs = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        loss = network(inputs).square().mean()
        loss.backward()
        ours.record(loss, network)
        named = {name: value for name, value in network.named_parameters() if name != "0.bias"}
        theirs.record(loss, named, {name: value.grad for name, value in named.items()})
        optimizer.step()
        optimizer.zero_grad()
    ours.finish(network, network(inputs).square().mean())
    theirs.finish(named, network(inputs).square().mean())
    assert ours.increment().keys() == {"0.weight", "2.weight", "2.bias"}
    assert ours.num_moves == 3
    assert_bits_equal(ours.increment(), theirs.increment())


def test_a_module_without_gradients_is_refused():
    with pytest.raises(ValueError, match="gradients: weight must be a tensor"):
        PathAccumulator().record(1.0, nn.Linear(2, 2))


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
def test_a_path_that_goes_on_elsewhere_at_a_cut_is_the_same_to_the_bit(data, variant, dtype):
    path = data.draw(paths(st.floats(-9, 9, width=32), dtype, min_points=2))
    cuts = data.draw(st.sets(st.integers(0, len(path) - 1)))
    broken = data.draw(st.sampled_from([None, *range(len(path) - 1)]))
    if broken is not None:
        path[broken] = path[broken]._replace(loss=NAN)
    last_loss = data.draw(st.sampled_from([None, 1.5]))

    def run(interruption):
        accumulator, increments = PathAccumulator(*variant), []
        for index in range(len(path)):
            if (index == 0 or index - 1 in cuts) and index == interruption:
                state = accumulator.state()
                accumulator = walk(some_path(3, dtype), *variant)  # what it holds is replaced
                accumulator.load_state(state)
                for value in state.values():
                    value.fill_(1)
            if index < len(path) - 1:
                accumulator.record(*path[index])
            else:
                accumulator.finish(path[index].parameters, last_loss)
            if index in cuts:
                increments.append(accumulator.cut())
        return [*increments, accumulator.increment()], numbers_of(accumulator)

    expected, numbers = run(interruption=None)
    resumed, resumed_numbers = run(interruption=data.draw(st.sampled_from([0, *(cut + 1 for cut in sorted(cuts))])))
    for ours, theirs in zip(resumed, expected, strict=True):
        assert_bits_equal(ours, theirs)
    assert resumed_numbers == numbers


@pytest.mark.parametrize("pairs", [False, True])
def test_there_is_a_state_at_a_cut_and_nowhere_else(pairs):
    path = some_path(3)
    accumulator = PathAccumulator(loss_difference="paired" if pairs else "successive")
    accumulator.state()
    for point in path:
        accumulator.record(*point)
        with pytest.raises(RuntimeError, match="at a cut"):
            accumulator.state()
        if pairs:
            accumulator.cut()
            accumulator.land(path[0].parameters, 1.0)
            with pytest.raises(RuntimeError, match="at a cut"):
                accumulator.state()
        accumulator.cut()
        before = numbers_of(accumulator)
        accumulator.state()
        assert numbers_of(accumulator) == before


def test_loading_leaves_nothing_of_another_path():
    """Not even its dtype, in which the moves would be measured: the interrupted path is a float32 one."""
    path = line((0.0, 0.1, 0.0), (0.0, 0.7, 0.0), dtype=torch.float32)
    accumulator, first = walk(line((0.0, 0.0, 0.0), (0.0, 1.0, 0.0)), "length"), walk(path[:1], "length")
    first.cut()
    accumulator.load_state(first.state())
    accumulator.record(*path[1])
    assert accumulator.path_length == walk(path, "length").path_length
