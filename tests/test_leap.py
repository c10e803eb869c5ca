"""The accumulator against the paper: by hand, by a slow transcription of equation 8, and by identities."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leap_rl.leap import PathAccumulator

SHAPES = {"conv.weight": (2, 3), "conv.bias": (2,), "scale": ()}
RULES = list(itertools.product(["energy", "length"], [True, False], [True, False]))


def random_path(seed, num_points, dtype=torch.float64):
    """[(loss, parameters, gradients)] of a random walk, and where its last move ends."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda: {name: torch.randn(shape, generator=rng, dtype=dtype) for name, shape in SHAPES.items()}  # noqa: E731
    losses = torch.randn(num_points, generator=rng, dtype=torch.float64).tolist()
    return [(loss, draw(), draw()) for loss in losses], draw()


def walk(path, metric="energy", use_loss=True, stabilizer=True, end=None, end_loss=None):
    accumulator = PathAccumulator(metric, use_loss, stabilizer)
    for point in path:
        accumulator.record(*point)
    accumulator.finish(end, end_loss)
    return accumulator


def transcription(points, metric, use_loss, stabilizer):
    """Equation 8 one scalar at a time, over the whole path in memory: slow, so that it can be read off the paper.

    ``points`` are (loss, parameters, gradients). Returns (increment, path length, energy).
    """
    total = {name: [0.0] * math.prod(shape) for name, shape in SHAPES.items()}
    length = energy = 0.0
    for (f, psi, gradient), (f_next, psi_next, _) in itertools.pairwise(points):
        change = f_next - f if use_loss else 0.0
        moves = {name: (psi_next[name] - psi[name]).flatten().tolist() for name in SHAPES}
        squared = change**2 + sum(x * x for move in moves.values() for x in move)
        length, energy = length + math.sqrt(squared), energy + squared
        if stabilizer and change > 0:
            change = -change
        divisor = math.sqrt(squared) if metric == "length" else 1.0
        if squared == 0:
            continue
        for name, move in moves.items():
            for i, (step, slope) in enumerate(zip(move, gradient[name].flatten().tolist(), strict=True)):
                total[name][i] -= (step + change * slope) / divisor
    return total, length, energy


def assert_close(increment, expected, rtol):
    for name, values in expected.items():
        expected_values = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(increment[name].flatten().double(), expected_values, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("metric", "expected"), [("length", 4 / math.sqrt(2)), ("energy", 4.0)])
def test_the_hand_example(metric, expected):
    at = lambda x: {"x": torch.tensor([x], dtype=torch.float64)}  # noqa: E731
    accumulator = walk([(2.0, at(1.0), at(3.0)), (1.0, at(0.0), at(0.0))], metric)
    assert accumulator.increment()["x"].item() == pytest.approx(expected, rel=1e-15)
    assert accumulator.path_length == pytest.approx(math.sqrt(2))
    assert accumulator.energy == pytest.approx(2)
    assert (accumulator.num_points, accumulator.num_moves) == (2, 1)


@pytest.mark.parametrize(("metric", "use_loss", "stabilizer"), RULES)
@given(seed=st.integers(0, 2**31), num_points=st.integers(1, 8), double=st.booleans())
@settings(max_examples=40, deadline=None)
def test_equals_the_slow_transcription(metric, use_loss, stabilizer, seed, num_points, double):
    dtype, rtol = (torch.float64, 1e-10) if double else (torch.float32, 2e-4)
    path, _ = random_path(seed, num_points, dtype)
    accumulator = walk(path, metric, use_loss, stabilizer)
    expected, length, energy = transcription(path, metric, use_loss, stabilizer)
    increment = accumulator.increment()
    assert_close(increment, expected, rtol)
    assert accumulator.path_length == pytest.approx(length, rel=rtol)
    assert accumulator.energy == pytest.approx(energy, rel=rtol)
    assert accumulator.num_moves == num_points - 1
    assert {name: (value.dtype, tuple(value.shape)) for name, value in increment.items()} == {
        name: (dtype, shape) for name, shape in SHAPES.items()
    }


@given(seed=st.integers(0, 2**31), num_points=st.integers(1, 6), double=st.booleans())
@settings(max_examples=60, deadline=None)
def test_energy_without_loss_telescopes_to_the_last_bit(seed, num_points, double):
    path, end = random_path(seed, num_points, torch.float64 if double else torch.float32)
    increment = walk(path, use_loss=False, end=end).increment()
    for name, value in increment.items():
        assert torch.equal(value, path[0][1][name] - end[name])


def test_the_last_move_needs_a_loss_of_its_own():
    path, end = random_path(0, 3)
    left_out = walk(path, end=end)
    assert left_out.num_moves == 2
    assert_close(left_out.increment(), transcription(path, "energy", True, True)[0], 1e-10)
    included = walk(path, end=end, end_loss=0.25)
    assert included.num_moves == 3
    assert_close(included.increment(), transcription([*path, (0.25, end, None)], "energy", True, True)[0], 1e-10)


def test_the_stabilizer_never_pushes_uphill():
    # Δθ is tiny, the loss rises: with the stabilizer a step against the increment goes down the gradient.
    still = lambda x: {"x": torch.tensor([x], dtype=torch.float64)}  # noqa: E731
    path = [(1.0, still(0.0), still(2.0)), (4.0, still(1e-9), still(0.0))]
    assert walk(path).increment()["x"].item() == pytest.approx(+6.0)
    assert walk(path, stabilizer=False).increment()["x"].item() == pytest.approx(-6.0)
    assert walk(path).num_rises == 1


@pytest.mark.parametrize("metric", ["energy", "length"])
def test_a_move_of_length_zero_contributes_nothing(metric):
    path, _ = random_path(1, 2)
    still = walk([path[0], path[0]], metric)
    assert still.path_length == still.energy == 0
    assert all(torch.equal(value, torch.zeros_like(value)) for value in still.increment().values())
    # ... and does not disturb the moves around it.
    again, direct = walk([path[0], path[0], path[1]], metric), walk(path, metric)
    assert all(torch.equal(again.increment()[name], direct.increment()[name]) for name in SHAPES)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("what", ["loss", "parameter", "gradient"])
def test_a_non_finite_value_fails_the_path(bad, where, what):
    path, end = random_path(2, 3)
    _, parameters, gradients = path[where]
    if what == "loss":
        path[where] = (bad, parameters, gradients)
    else:
        (parameters if what == "parameter" else gradients)["conv.weight"][1, 2] = bad
    accumulator = walk(path, end=end)
    assert accumulator.failed == f"non-finite {what}"
    assert all(torch.equal(value, torch.zeros_like(value)) for value in accumulator.increment().values())
    assert accumulator.num_points == where


def test_a_non_finite_end_fails_the_path():
    path, end = random_path(3, 2)
    assert walk(path, end=end, end_loss=math.nan).failed == "non-finite loss"
    end["conv.bias"][0] = math.inf
    assert walk(path, use_loss=False, end=end).failed == "non-finite parameter"


def test_large_finite_values_whose_sum_overflows_are_no_failure():
    large = {"x": torch.full((4,), 3e38)}
    accumulator = PathAccumulator()
    accumulator.record(1.0, {"x": torch.zeros(4)}, large)
    assert accumulator.failed is None


def test_nothing_of_what_is_given_is_kept():
    parameters = {"x": torch.ones(3, requires_grad=True)}
    gradients = {"x": torch.ones(3)}
    accumulator = PathAccumulator()
    accumulator.record((parameters["x"] ** 2).sum(), parameters, gradients)
    with torch.no_grad():
        parameters["x"] -= 0.5  # what an optimizer does, in place
    gradients["x"].fill_(100.0)
    accumulator.record(torch.tensor(2.0), parameters, gradients)
    increment = accumulator.increment()["x"]
    assert not increment.requires_grad
    torch.testing.assert_close(increment, torch.full((3,), 0.5 - (2.0 - 3.0)))  # −Δθ − Δf·∇f
    before = increment.clone()
    accumulator.increment()["x"].fill_(7.0)
    assert torch.equal(accumulator.increment()["x"], before)


@pytest.mark.parametrize(("metric", "use_loss", "stabilizer"), RULES)
@given(seed=st.integers(0, 2**31), cuts=st.sets(st.integers(0, 5)))
@settings(max_examples=20, deadline=None)
def test_pieces_sum_to_the_whole(metric, use_loss, stabilizer, seed, cuts):
    path, end = random_path(seed, 6)
    whole = walk(path, metric, use_loss, stabilizer, end)
    accumulator, pieces, length = PathAccumulator(metric, use_loss, stabilizer), [], 0.0
    for i, point in enumerate(path):
        accumulator.record(*point)
        if i in cuts:
            length += accumulator.path_length
            pieces.append(accumulator.cut())
    accumulator.finish(end)
    pieces.append(accumulator.increment())
    for name, value in whole.increment().items():
        torch.testing.assert_close(sum(piece[name] for piece in pieces), value, rtol=1e-12, atol=1e-12)
    assert length + accumulator.path_length == pytest.approx(whole.path_length)


@pytest.mark.parametrize(("metric", "use_loss", "stabilizer"), RULES)
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("place", range(5))
def test_a_restored_path_goes_on_to_the_same_bits(metric, use_loss, stabilizer, cut, place):
    path, end = random_path(place, 5, torch.float32)
    steady, moved = (PathAccumulator(metric, use_loss, stabilizer) for _ in range(2))
    for i, point in enumerate(path):
        steady.record(*point)
        moved.record(*point)
        if i == place:
            if cut:
                steady.cut()
                moved.cut()
            state = moved.state()
            moved = PathAccumulator(metric, use_loss, stabilizer)
            moved.load_state(state)
    for accumulator in (steady, moved):
        accumulator.finish(end)
    assert all(torch.equal(steady.increment()[name], moved.increment()[name]) for name in SHAPES)
    assert vars(steady).keys() == vars(moved).keys()
    assert (steady.path_length, steady.energy, steady.num_moves) == (moved.path_length, moved.energy, moved.num_moves)


def test_a_restored_failure_stays_a_failure():
    accumulator = PathAccumulator()
    accumulator.record(math.nan, {"x": torch.zeros(1)}, {"x": torch.zeros(1)})
    restored = PathAccumulator()
    restored.load_state(accumulator.state())
    assert restored.failed == "non-finite loss"


def test_misuse_is_refused():
    x, y = {"x": torch.zeros(2)}, {"y": torch.zeros(2)}
    accumulator = PathAccumulator()
    with pytest.raises(ValueError, match="gradients must be named"):
        accumulator.record(1.0, x, y)
    accumulator.record(1.0, x, x)
    with pytest.raises(ValueError, match="parameters must be named"):
        accumulator.record(1.0, y, y)
    with pytest.raises(ValueError, match="shape"):
        accumulator.record(1.0, {"x": torch.zeros(3)}, {"x": torch.zeros(3)})
    accumulator.finish()
    with pytest.raises(RuntimeError, match="closed"):
        accumulator.record(1.0, x, x)
    with pytest.raises(ValueError, match="metric"):
        PathAccumulator(metric="manhattan")


@pytest.mark.parametrize("metric", ["energy", "length"])
def test_stepping_against_the_increment_shortens_the_path(metric):
    """The point of it all: on quadratics, descending the meta-gradient shortens the paths of gradient descent."""
    optima = torch.tensor([[3.0, 1.0], [1.0, 3.0]], dtype=torch.float64)

    def train(start, optimum):
        theta, accumulator = start.clone(), PathAccumulator(metric)
        for _ in range(20):
            gradient = theta - optimum
            accumulator.record(0.5 * (gradient @ gradient), {"x": theta}, {"x": gradient})
            theta = theta - 0.1 * gradient
        accumulator.finish({"x": theta})
        return accumulator

    start, lengths = torch.zeros(2, dtype=torch.float64), []
    for _ in range(15):
        paths = [train(start, optimum) for optimum in optima]
        lengths.append(sum(path.path_length for path in paths))
        start = start - 0.05 * sum(path.increment()["x"] for path in paths) / 2
    assert lengths[-1] < 0.5 * lengths[0]
