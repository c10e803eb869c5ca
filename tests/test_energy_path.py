"""The fast path of a vector against the plain one: to the bit where sums are exact, and wherever it goes on."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leap_rl.config import MetaConfig
from leap_rl.leap import PathAccumulator
from leap_rl.processes.a2c.energy_path import ADDED_TOGETHER, EnergyPath, PlainPath, path_of_vector
from tests.paths import INF, NAN, untimed

NUM, NUM_MEASURED = 11, 8
NUMBERS = ("path_length", "energy", "num_points", "num_moves", "num_rises")
longs = st.integers(1, 5 * ADDED_TOGETHER)
cuts = st.sets(st.integers(0, 5 * ADDED_TOGETHER))
seeds = st.integers(0, 2**31)


def drawn(seed, num_points, exact=True, dtype=torch.float32):
    """Losses [K], points [K + 1, N] and gradients [K, N]. Exact numbers are multiples of 1/8 up to 4, so that any order
    of adding a few of their products gives the same bits."""
    rng = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        if exact:
            return torch.randint(-32, 33, shape, generator=rng).to(dtype) / 8
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    return numbers(num_points).tolist(), numbers(num_points + 1, NUM), numbers(num_points, NUM)


class Walker:
    """Takes a path as an inner loop does: gradients into the path's memory, parameters moved in place."""

    def __init__(self, path, parameters):
        self.path, self.parameters = path, parameters

    def step(self, loss, point, gradient, there, is_cut=False):
        self.parameters.copy_(point)
        memory = self.path.next_gradient()
        memory.copy_(gradient)
        self.path.record(loss, float(torch.linalg.vector_norm(memory)))
        numbers = {name: getattr(self.path, name) for name in NUMBERS}
        increment = self.path.cut() if is_cut else None
        move = there - self.parameters
        self.parameters.add_(move)
        self.path.moved(move)
        memory[NUM_MEASURED:] = NAN  # the part that is not measured is nobody's business
        return numbers, increment


def fast(stabilizer=True, dtype=torch.float32):
    parameters = torch.zeros(NUM, dtype=dtype)
    return Walker(EnergyPath(parameters, NUM_MEASURED, stabilizer), parameters)


def pairs(seed, num_points, cuts, stabilizer, exact=True, pauses=()):
    """(numbers, increment) at each cut of the fast path and of the plain one."""
    losses, points, gradients = drawn(seed, num_points, exact)
    walker, plain = fast(stabilizer), PathAccumulator("energy", True, stabilizer)
    for i, loss in enumerate(losses):
        is_cut = i in cuts or i == num_points - 1
        ours = walker.step(loss, points[i], gradients[i], points[i + 1], is_cut)
        plain.record(loss, {"theta": points[i][:NUM_MEASURED]}, {"theta": gradients[i][:NUM_MEASURED]})
        if is_cut:
            theirs = {name: getattr(plain, name) for name in NUMBERS}, plain.cut()["theta"]
            yield ours, theirs
        if is_cut and i in pauses:
            state, walker = walker.path.state(), fast(stabilizer)
            walker.path.load_state(state)


@untimed
@given(seeds, longs, cuts, st.booleans(), cuts)
def test_it_is_the_plain_path_to_the_bit_where_sums_are_exact(seed, num_points, cuts, stabilizer, pauses):
    for (numbers, increment), (expected_numbers, expected) in pairs(seed, num_points, cuts, stabilizer, True, pauses):
        assert torch.equal(increment, expected)
        assert numbers == pytest.approx(expected_numbers, rel=1e-12)


@untimed
@given(seeds, longs, cuts, st.booleans())
def test_it_is_the_plain_path_but_for_rounding_elsewhere(seed, num_points, cuts, stabilizer):
    for (numbers, increment), (expected_numbers, expected) in pairs(seed, num_points, cuts, stabilizer, exact=False):
        torch.testing.assert_close(increment, expected, rtol=1e-5, atol=1e-5 * num_points)
        assert numbers == pytest.approx(expected_numbers, rel=1e-5)


@untimed
@given(seeds, st.integers(2, 5 * ADDED_TOGETHER), cuts, st.data())
def test_a_path_that_goes_on_elsewhere_at_a_cut_is_the_same_to_the_bit(seed, num_points, cuts, data):
    """Whatever was in the memory of either: the order of adding is part of the state."""
    losses, points, gradients = drawn(seed, num_points, exact=False)
    pause = data.draw(st.integers(0, num_points - 2), label="pause")  # a cut with at least one point after it
    here, there = fast(), fast()
    for i in range(ADDED_TOGETHER):
        there.step(float(i), points[0], gradients[0], points[0])
    followed = False
    for i, loss in enumerate(losses):
        is_cut = i in cuts or i in (pause, num_points - 1)
        step = loss, points[i], gradients[i], points[i + 1], is_cut
        numbers, increment = here.step(*step)
        if followed:
            their_numbers, theirs = there.step(*step)
            assert numbers == their_numbers
            assert increment is None or torch.equal(increment, theirs)
        elif i == pause:
            there.path.load_state(here.path.state())
            followed = True
    assert followed


def broken(what, value):
    losses, points, gradients = drawn(3, 4)
    if what == "loss":
        losses[2] = value
    elif what == "gradient":
        gradients[2, 5] = value
    else:
        points[2, 5] = value
    return losses, points, gradients


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("what", ["loss", "gradient", "parameter"])
def test_a_path_with_a_non_finite_value_contributes_nothing(what, value):
    losses, points, gradients = broken(what, value)
    walker = fast()
    for i, loss in enumerate(losses):
        _, increment = walker.step(loss, points[i], gradients[i], points[i + 1], is_cut=True)
        assert increment.any() == (i == 1)
    assert walker.path.failed == f"non-finite {what}"
    with pytest.raises(RuntimeError, match="failed"):
        walker.path.state()


def test_a_path_that_starts_at_a_non_finite_parameter_fails():
    losses, points, gradients = drawn(3, 1)
    points[0, 0] = INF
    walker = fast()
    walker.step(losses[0], points[0], gradients[0], points[1])
    assert walker.path.failed == "non-finite parameter"


def test_a_parameter_that_overflows_while_its_move_is_finite_fails_the_path_at_the_cut():
    losses, points, gradients = drawn(3, 2)
    walker = fast()
    walker.step(losses[0], points[0], gradients[0], points[1])
    points[1, 0] = INF
    _, increment = walker.step(losses[1], points[1], gradients[1], points[2], is_cut=True)
    assert walker.path.failed == "non-finite parameter"
    assert not increment.any()


def test_what_is_not_measured_may_be_anything():
    losses, points, gradients = drawn(3, 3)
    gradients[:, NUM_MEASURED:] = NAN
    points[:, NUM_MEASURED:] = INF
    walker, plain = fast(), PathAccumulator()
    for i, loss in enumerate(losses):
        _, increment = walker.step(loss, points[i], gradients[i], points[i + 1], is_cut=i == 2)
        plain.record(loss, {"theta": points[i][:NUM_MEASURED]}, {"theta": gradients[i][:NUM_MEASURED]})
    assert torch.equal(increment, plain.increment()["theta"])
    assert walker.path.failed is None


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_a_move_whose_square_is_no_float32_has_its_length(size):
    walker, zero = fast(), torch.zeros(NUM)
    there = zero.clone()
    there[0] = size
    walker.step(0.0, zero, zero, there)
    walker.step(0.0, there, zero, there)
    assert walker.path.path_length == pytest.approx(size, rel=1e-6)


@pytest.mark.parametrize("loss", [1e39, 1e200, -1e200])
def test_a_loss_that_float32_does_not_hold_fails_the_path(loss):
    _, points, gradients = drawn(3, 2)
    walker = fast()
    walker.step(0.0, points[0], gradients[0], points[1])
    walker.step(loss, points[1], gradients[1], points[2])
    assert walker.path.failed == "non-finite loss"


def test_calls_that_are_out_of_order_are_errors():
    losses, points, gradients = drawn(3, 2)
    walker = fast()
    walker.path.state()
    assert not walker.path.cut().any(), "nothing was recorded"
    walker.step(losses[0], points[0], gradients[0], points[1])
    with pytest.raises(RuntimeError, match="before the optimizer's step"):
        walker.path.cut()
    with pytest.raises(RuntimeError, match="at a cut"):
        walker.path.state()
    walker.path.next_gradient()
    walker.path.record(1.0, 1.0)
    walker.path.next_gradient()
    with pytest.raises(RuntimeError, match=r"moved\(\)"):
        walker.path.record(1.0, 1.0)


def meta(**changes):
    return MetaConfig(**{"rule": "leap", "steps": 1, "batch_size": 1, "lr": 0.1, **changes})


def test_the_fast_path_is_taken_where_it_does_what_is_asked_for():
    for config in (meta(), meta(stabilizer=False)):
        assert isinstance(path_of_vector(config, torch.zeros(NUM), NUM_MEASURED), EnergyPath)
    others = [{"metric": "length"}, {"use_loss": False}, {"loss_difference": "paired"}]
    for changes in (*others, *({"rule": rule} for rule in ("reptile", "fomaml", "joint", "none"))):
        assert isinstance(path_of_vector(meta(**changes), torch.zeros(NUM), NUM_MEASURED), PlainPath)


@pytest.mark.parametrize("stabilizer", [True, False])
def test_the_stabilizer_of_the_configuration_is_taken(stabilizer):
    losses, points, gradients = [0.0, 1.0], *drawn(3, 2)[1:]
    parameters = torch.zeros(NUM)
    walker = Walker(path_of_vector(meta(stabilizer=stabilizer), parameters, NUM_MEASURED), parameters)
    for i, loss in enumerate(losses):
        _, increment = walker.step(loss, points[i], gradients[i], points[i + 1], is_cut=i == 1)
    sign = 1 if stabilizer else -1
    expected = points[0] - points[1] + sign * gradients[0]
    assert torch.equal(increment, expected[:NUM_MEASURED])
    assert math.isfinite(walker.path.energy)


def test_the_plain_path_of_a_vector_is_the_accumulators():
    losses, points, gradients = drawn(3, 6)
    parameters = torch.zeros(NUM)
    walker = Walker(path_of_vector(meta(metric="length"), parameters, NUM_MEASURED), parameters)
    plain = PathAccumulator("length")
    for i, loss in enumerate(losses):
        walker.step(loss, points[i], gradients[i], points[i + 1])
        plain.record(loss, {"theta": points[i][:NUM_MEASURED]}, {"theta": gradients[i][:NUM_MEASURED]})
    assert walker.path.path_length == plain.path_length
    assert torch.equal(walker.path.cut(), plain.cut()["theta"])
