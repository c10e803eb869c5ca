"""Speed-ups and head starts: by hand, and how often their intervals cover what is known of simulated curves."""

import math

import numpy as np
import pytest

from leap_rl.evaluation import statistics
from leap_rl.evaluation.results import WINDOW
from leap_rl.evaluation.speed import PairOfCurves, Standing, shares_of_gain, speedup, steps_to_reach
from leap_rl.evaluation.statistics import draw_weights, is_above_zero

NAN = math.nan


def test_steps_to_a_score_are_those_of_the_first_time():
    steps = np.array([1.0, 2, 3])
    assert steps_to_reach(steps, np.array([NAN, 5, 4]), 4) == 2, "nothing is known before"
    assert steps_to_reach(steps, np.array([6, 5, 4]), 4) == 1
    assert math.isnan(steps_to_reach(steps, np.array([NAN, 5, 4]), 6))


def test_between_two_points_a_curve_is_linear():
    steps = np.array([100.0, 200, 300])
    curves = np.array([[0, 4, 0], [0, 0, 8], [0, 2, 2]])
    reached = steps_to_reach(steps, curves, np.array([1.0, 2, 2]))
    assert reached.tolist() == [125, 225, 200]


def pair(ours, random):
    steps = np.arange(1, len(ours) + 1) * 100.0
    return PairOfCurves(steps, np.array([ours], float), np.array([random], float))


def test_the_random_arms_own_steps_are_counted_as_any_arms_not_as_its_budget():
    """It is where it ends after 300 of 600 agent steps; ours after 150."""
    assert speedup([pair([0, 20, 20, 20, 20, 20], [0, 5, 10, 10, 10, 10])]) == (2, None, None)


def test_an_arm_that_never_gets_there_is_measured_where_it_gets():
    """The highest that it has, 5, takes it 600 agent steps and the random arm 300: half as fast."""
    assert speedup([pair([0, 1, 2, 3, 4, 5], [0, 3, 5, 7, 9, 11])]).value == 0.5


def test_an_arm_that_learns_nothing_is_not_as_fast_as_the_random_arm_was_to_its_start():
    """It has its highest, 1, at once, as the random arm has it; but that one went on, and took 500."""
    assert speedup([pair([1, 1, 1, 1, 1], [1, 2, 3, 4, 5])]).value == pytest.approx(100 / 500)


def test_over_games_it_is_the_geometric_mean():
    fast, slow = pair([10, 20, 20, 20], [1, 4, 7, 10]), pair([1, 2, 3, 4], [4, 5, 6, 7])
    assert [speedup([game]).value for game in (fast, slow)] == [4, 0.25]
    assert speedup([fast, slow]).value == pytest.approx(1)


def test_of_mean_curves_over_seeds_with_nothing_known_before_all_have_an_episode():
    random = np.array([[NAN, 2.0, 6, 10], [2.0, 4, 6, 10]])
    ours = np.array([[NAN, 12.0, 12, 12], [2.0, 10, 12, 12]])
    steps = np.array([100.0, 200, 300, 400])
    estimate = speedup([PairOfCurves(steps, ours, random)])
    assert estimate.value == 2, "the mean curves are at 10 after 400 and, from where they are known, 200"


def test_where_the_late_seed_is_not_drawn_the_mean_is_known_from_the_start():
    """Of five seeds one has no episode in the first half: without it, ours is there after 100 of 400 agent steps."""
    random = np.array([[2.0, 4, 6, 10]] * 5)
    ours = np.array([[NAN, NAN, 12.0, 12], *[[10.0, 12, 12, 12]] * 4])
    estimate = speedup([PairOfCurves(np.array([100.0, 200, 300, 400]), ours, random)])
    assert estimate == (pytest.approx(400 / 300), pytest.approx(400 / 300), pytest.approx(4))


def test_the_same_arm_twice_is_exactly_as_fast():
    curves = np.cumsum(np.random.default_rng(0).normal(1, 1, (5, 20)), axis=1)
    assert speedup([PairOfCurves(np.arange(1.0, 21), curves, curves)]) == (1, 1, 1)


def test_a_share_of_the_gain_is_0_where_the_random_arm_begins_and_1_where_it_ends():
    first, last = np.array([1.0, 3, 1, 3, 1]), np.array([9.0, 15, 9, 15, 9])
    assert shares_of_gain([Standing(first, first, last)]) == (0, 0, 0)
    assert shares_of_gain([Standing(last, first, last)]) == (1, 1, 1)
    negative = Standing(np.array([-18.0, -16]), np.array([-21.0, -21]), np.array([-20.0, -18]))
    assert shares_of_gain([negative]).value == 2, "of Pong, too: 4 of a gain of 2"


def test_over_games_shares_are_interquartile_means():
    first, last = np.zeros(1), np.ones(1)
    games = [Standing(np.array([share]), first, last) for share in (0.0, 1.0, 2.0, 100.0)]
    assert shares_of_gain(games).value == 1.5


def test_whether_the_random_arm_gained_is_a_one_sided_test():
    assert is_above_zero([4, 5, 9]), "6 over √7 / √3 is 3.93: above t(0.95, 2) = 2.92, if below t(0.975, 2) = 4.30"
    assert not is_above_zero([2, 4, 9]), "5 over √13 / √3 is 2.40"
    assert is_above_zero([-1, 1.1]), "two seeds cannot tell"
    assert not is_above_zero([0.0])


def test_weights_are_those_of_seeds_drawn_with_replacement():
    weights = draw_weights(5, 3)
    assert weights.shape == (statistics.REPLICATES, 5, 3)
    assert np.allclose(weights.sum(axis=1), 1)
    assert weights.var(axis=0) == pytest.approx(np.full((5, 3), 4 / 125), rel=0.05)  # multinomial
    assert draw_weights(1, 2).tolist() == [[[1, 1]]]


def test_the_seeds_of_each_game_are_drawn_on_their_own():
    """So over four times as many copies of a game an interval is half as wide. If all copies had the same seeds in a
    replicate, it would hardly be narrower."""
    rng, steps = np.random.default_rng(0), np.arange(1, 21) * 100.0
    ours, random = (np.linspace(0, 10, 20) + rng.normal(size=(5, 1)) for _ in range(2))
    curves, standing = PairOfCurves(steps, ours, random), Standing(ours[:, -1], random[:, 0], random[:, -1])
    for estimate, game in ((speedup, curves), (shares_of_gain, standing)):
        few, many = estimate([game] * 4), estimate([game] * 16)
        assert (many.high - many.low) / (few.high - few.low) == pytest.approx(0.5, abs=0.1)


# Coverage, on simulated curves: each seed learns at its own speed, each point has noise of its own


def simulate(rng, shape, speed, seeds, games, segments=50):
    """Smoothed curves [seeds, games, S], as Curve.smoothed has them, of an arm that is ``speed`` times as fast."""
    own = np.exp(0.2 * rng.normal(size=(seeds, games, 1)))
    time = np.arange(1, segments + 1) / segments * speed * own
    curves = 1 + 10 * (time if shape == "rising" else 1 - np.exp(-5 * time)) + rng.normal(size=time.shape)
    window = round(WINDOW * segments)
    sums = np.cumsum(curves, axis=-1)
    sums[..., window:] -= np.cumsum(curves, axis=-1)[..., :-window]
    return sums / np.minimum(np.arange(1, segments + 1), window)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "speed", "least"),
    [("rising", 1, 0.92), ("levelling", 1, 0.92), ("rising", 3, 0.92), ("rising", 0.5, 0.90)],
)
def test_intervals_cover_the_speedup_about_95_times_in_100(monkeypatch, shape, speed, least):
    """300 simulated evaluations of 5 seeds and 8 games (binomial standard error 0.013)."""
    monkeypatch.setattr(statistics, "REPLICATES", 500)
    rng, trials, steps = np.random.default_rng(5), 300, np.arange(1, 51) * 1000.0
    ours, random = (simulate(rng, shape, s, 20_000, 1)[:, 0].mean(axis=0)[None] for s in (speed, 1))
    truth = 1.0 if speed == 1 else speedup([PairOfCurves(steps, ours, random)]).value  # of means over endless seeds
    assert truth == pytest.approx(speed, rel=0.1)
    covered = 0
    for _ in range(trials):
        ours, random = (simulate(rng, shape, s, 5, 8) for s in (speed, 1))
        estimate = speedup([PairOfCurves(steps, ours[:, game], random[:, game]) for game in range(8)])
        covered += estimate.low <= truth <= estimate.high
    assert least <= covered / trials, covered / trials
