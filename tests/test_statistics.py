"""Statistics of evaluations: against slow transcriptions of Agarwal et al. 2021, by hand, and by their coverage."""

import itertools
import json
import math
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from leap_rl.atari.games import META_TRAINING, catalogue
from leap_rl.evaluation import statistics
from leap_rl.evaluation.scores import ReferenceScores, reference_scores, scale
from leap_rl.evaluation.statistics import (
    Estimate,
    interquartile_mean_with_interval,
    mean_with_interval,
    paired_difference,
    paired_interquartile_mean_difference,
    probability_of_improvement,
)
from leap_rl.processes import process_type

untimed = settings(deadline=None, max_examples=50)


def matrices(min_seeds=1):
    shapes = st.tuples(st.integers(min_seeds, 6), st.integers(1, 4))
    scores = st.floats(-5, 5).map(lambda number: round(number, 1))  # rounded: ties
    return shapes.flatmap(lambda shape: hnp.arrays(float, shape, elements=scores))


def draw(seed, seeds, games):
    return np.random.default_rng(seed).normal(size=(seeds, games))


# Against slow transcriptions: a Python loop over every number


def slow_interquartile_mean(scores):
    ordered = sorted(float(score) for row in scores for score in row)
    cut = int(0.25 * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


@untimed
@given(scores=matrices())
def test_the_interquartile_mean_is_that_of_what_a_quarter_at_each_end_leaves(scores):
    assert interquartile_mean_with_interval(scores).value == pytest.approx(slow_interquartile_mean(scores))


@untimed
@given(ours=matrices(), data=st.data())
def test_the_probability_of_improvement_counts_pairs(ours, data):
    shape = (data.draw(st.integers(1, 5)), ours.shape[1])
    theirs = data.draw(hnp.arrays(float, shape, elements=st.floats(-5, 5).map(lambda number: round(number, 1))))
    games = []
    for game in range(ours.shape[1]):
        pairs = itertools.product(ours[:, game], theirs[:, game])
        games.append(sum(1.0 if x > y else 0.5 if x == y else 0.0 for x, y in pairs) / (len(ours) * len(theirs)))
    assert probability_of_improvement(ours, theirs).value == pytest.approx(sum(games) / len(games))


def slow_bootstrap(scores, statistic, replicates, seed):
    """Seeds drawn with replacement, game by game: the statistic of each replicate, sorted."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(replicates):
        columns = [
            [scores[int(rng.integers(len(scores))), game] for _ in range(len(scores))]
            for game in range(scores.shape[1])
        ]  # fmt: skip
        values.append(statistic(np.array(columns).T))
    return sorted(values)


def test_the_bootstrap_is_stratified_by_game(monkeypatch):
    """Games that differ a lot, seeds that do not: a bootstrap over games would be far wider."""
    scores = draw(0, 20, 4) * 0.1 + np.array([0, 10, 20, 30])
    monkeypatch.setattr(statistics, "_tail", lambda *_: 0.025)  # the plain percentiles of the paper
    ours = interquartile_mean_with_interval(scores)
    slow = slow_bootstrap(scores, slow_interquartile_mean, 1500, seed=1)
    assert ours.low == pytest.approx(slow[int(0.025 * 1500)], abs=0.01)
    assert ours.high == pytest.approx(slow[int(0.975 * 1500)], abs=0.01)
    assert ours.high - ours.low < 0.2


def test_percentiles_are_moved_outwards_for_few_seeds_and_hardly_for_many():
    assert statistics._tail(1000, 10) == pytest.approx(0.025, rel=0.01)
    assert statistics._tail(3, 3) == pytest.approx(0.00136, rel=0.01)  # Φ(−√1.5 · 2.4469)
    assert statistics._tail(3, 9) > statistics._tail(3, 3)


def test_one_noisy_game_among_quiet_ones_counts_as_one():
    assert statistics.effective_number(np.ones(8)) == pytest.approx(8)
    assert statistics.effective_number(np.array([1.0, 0, 0, 0])) == 1
    assert statistics.effective_number(np.zeros(4)) == 4, "games without any noise"
    quiet = draw(0, 5, 8) * 0.01
    noisy = quiet + draw(1, 5, 8) * (np.arange(8) == 0)
    noise = [interquartile_mean_with_interval(scores - scores.mean(axis=0)) for scores in (quiet, noisy)]
    assert noise[1].high > noise[0].high


@pytest.mark.parametrize(
    ("seeds", "games", "has"), [(4, 1, False), (5, 1, True), (3, 2, False), (3, 3, True), (2, 5, False), (2, 6, True)]
)
def test_there_is_an_interval_where_the_most_extreme_draw_is_rarer_than_its_percentile(seeds, games, has):
    estimate = interquartile_mean_with_interval(draw(0, seeds, games))
    assert (estimate.low is not None) == (estimate.high is not None) == has
    pairs = probability_of_improvement(draw(0, seeds, games), draw(1, seeds, games))
    assert (pairs.low is not None) == (has or (seeds, games) in {(4, 1), (3, 2), (2, 5)}), "seeds of two arms are drawn"


# By hand


def test_students_interval_by_hand():
    """2, 4, 9: mean 5, s = √13, t(0.975, 2) = 4.3027."""
    estimate = mean_with_interval([2, 4, 9])
    half = 4.302653 * math.sqrt(13) / math.sqrt(3)
    assert estimate == pytest.approx((5, 5 - half, 5 + half), rel=1e-6)


def test_a_paired_difference_does_not_see_what_both_share():
    shared = np.array([0.0, 100, -50, 7])
    estimate = paired_difference(shared + np.array([1, 1.1, 0.9, 1]), shared)
    assert estimate.value == pytest.approx(1)
    assert estimate.sign == 1
    assert mean_with_interval(shared + 1).sign == 0


def test_the_paired_bootstrap_does_not_see_what_both_share():
    shared = draw(0, 6, 4) * 100
    estimate = paired_interquartile_mean_difference(shared + 1, shared)
    assert estimate == pytest.approx((1, 1, 1))


def test_one_seed_has_no_intervals():
    one = draw(0, 1, 3)
    for estimate in (
        mean_with_interval(one[:, 0]), paired_difference(one[:, 0], one[:, 1]), interquartile_mean_with_interval(one),
        paired_interquartile_mean_difference(one, one), probability_of_improvement(one, one),
    ):  # fmt: skip
        assert (estimate.low, estimate.high, estimate.sign) == (None, None, 0)


def test_the_same_against_itself_is_no_difference():
    scores = draw(0, 4, 3)
    assert paired_interquartile_mean_difference(scores, scores) == (0, 0, 0)
    assert paired_difference(scores[:, 0], scores[:, 0]) == (0, 0, 0)
    chance = probability_of_improvement(scores, scores)
    assert chance.value == 0.5
    assert chance.low < 0.5 < chance.high


def test_the_same_data_give_the_same_intervals():
    first, again = (interquartile_mean_with_interval(draw(0, 5, 3)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("estimate", "sign"), [((1, 0.1, 2), 1), ((-1, -2, -0.1), -1), ((1, -1, 3), 0), ((1, 0, 2), 0)]
)
def test_an_effect_is_an_interval_that_excludes_zero(estimate, sign):
    assert Estimate(*estimate).sign == sign


# Coverage, on simulated data without an effect


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "games"), [(3, 3), (5, 6)])
def test_intervals_cover_no_effect_about_95_times_in_100(monkeypatch, seeds, games):
    """800 simulated evaluations: a share within 0.92 and 0.99 (binomial standard error 0.008)."""
    monkeypatch.setattr(statistics, "REPLICATES", 1000)
    rng, trials = np.random.default_rng(5), 800
    covered = {"iqm": 0, "difference": 0, "probability": 0, "t": 0}
    for _ in range(trials):
        ours, theirs = rng.normal(size=(2, seeds, games))
        iqm = interquartile_mean_with_interval(ours)
        difference = paired_interquartile_mean_difference(ours, theirs)
        chance = probability_of_improvement(ours, theirs)
        t = paired_difference(ours[:, 0], theirs[:, 0])
        covered["iqm"] += iqm.low <= 0 <= iqm.high
        covered["difference"] += difference.sign == 0
        covered["probability"] += chance.low <= 0.5 <= chance.high
        covered["t"] += t.sign == 0
    shares = {name: count / trials for name, count in covered.items()}
    assert all(0.92 <= share <= 0.99 for share in shares.values()), shares


# The score table


def test_the_table_has_the_57_games_of_atari_57_by_our_names():
    table = json.loads((files("leap_rl.evaluation") / "scores.json").read_text())
    assert len(table) == 57
    assert set(table) <= set(catalogue())
    assert all(row["human"] > row["random"] for row in table.values())


def test_normalized_scores_put_random_play_at_0_and_the_human_at_1():
    scores = reference_scores("breakout")
    assert (scores.normalize(1.7), scores.normalize(30.5)) == (0, 1)
    assert reference_scores("skiing").normalize(-17098.1) == 0


def test_games_of_the_paper_without_an_entry_are_known():
    assert {game for game in META_TRAINING if reference_scores(game) is None} == {"air_raid", "carnival", "pooyan"}
    assert reference_scores("breakout:mode=4") is None, "another mode is another game"


def test_a_task_of_another_suite_is_not_measured_by_the_game_of_the_same_name():
    measures = {name: process_type(name).measures for name in ("a2c", "rllib", "gymnasium", "classification")}
    assert scale(measures["a2c"], "pong") == scale(measures["rllib"], "pong") == reference_scores("pong")
    assert scale(measures["gymnasium"], "pong") is None
    assert scale(measures["classification"], "pong") == ReferenceScores(0.0, 1.0)
