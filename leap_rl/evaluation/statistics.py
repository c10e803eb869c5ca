"""Computes the statistics of an evaluation, with intervals that hold for few seeds and several games.

Aggregates over games follow Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (their library is rliable): the interquartile mean, the probability of improvement, and bootstrap
intervals stratified by game. Their percentile intervals are too narrow with few seeds, so the percentiles are
moved outwards, as in Hesterberg 2015 ("What Teachers Should Know About the Bootstrap", section 4.1, expanded
percentiles). The more seeds there are, the smaller the difference. Games whose seeds differ more count for more in this
(Welch and Satterthwaite's degrees of freedom).

Where seeds and games are so few that not even the most extreme draw is as rare as such a percentile (one game with up
to four seeds, two games with three), there is no bootstrap interval. Between its extremes it would hold the true value
in about 75 % of cases for one game with three seeds, and in 50 % with two. Means over the seeds of one game, and their
differences, have Student's t intervals.

A matrix of scores is [seeds, games]. Paired matrices have the same seeds in the same order.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
REPLICATES = 10_000  # number of replicates of a bootstrap
SEED = 20_190_501  # seed of every bootstrap, so that the same data give the same intervals

Scores = NDArray[np.float64]
Statistic = Callable[[list[Scores]], Scores]


class Estimate(NamedTuple):
    """Holds a number and its 95 % interval, which is None for a single seed."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def sign(self) -> int:
        """Returns +1 or −1 if the interval lies entirely above or below 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def mean_with_interval(values: Sequence[float] | Scores) -> Estimate:
    """Returns the mean over seeds with Student's t interval."""
    scores = np.asarray(values, float)
    mean, count = float(scores.mean()), len(scores)
    if count < 2:
        return Estimate(mean)
    half = t_quantile((1 + CONFIDENCE) / 2, count - 1) * float(scores.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half)


def is_above_zero(values: Sequence[float] | Scores) -> bool:
    """Returns whether the mean over seeds is above 0 by a one-sided t test at 5 %. Fewer than three seeds are too few
    for the test; for these it returns whether the mean is above 0 at all."""
    scores = np.asarray(values, float)
    mean, count = float(scores.mean()), len(scores)
    if count < 3:
        return mean > 0
    return mean > t_quantile(CONFIDENCE, count - 1) * float(scores.std(ddof=1)) / math.sqrt(count)


def paired_difference(ours: Sequence[float] | Scores, theirs: Sequence[float] | Scores) -> Estimate:
    """Returns the mean of ours − theirs, seed by seed, with Student's t interval."""
    return mean_with_interval(np.asarray(ours, float) - np.asarray(theirs, float))


def interquartile_mean_with_interval(scores: Scores) -> Estimate:
    """Returns the interquartile mean over seeds and games, which is the mean of all scores without the lowest and the
    highest quarter, with a bootstrap interval stratified by game."""

    def parts(draws: list[Scores]) -> Scores:
        means: Scores = draws[0].mean(axis=1)
        return means

    return _bootstrap([scores], lambda draws: trimmed_mean(draws[0].reshape(len(draws[0]), -1)), parts)


def paired_interquartile_mean_difference(ours: Scores, theirs: Scores) -> Estimate:
    """Returns the interquartile mean of ours minus that of theirs. The bootstrap draws the seeds of both together."""
    both = np.stack([ours, theirs], axis=-1)

    def difference(draws: list[Scores]) -> Scores:
        flat = draws[0].reshape(len(draws[0]), -1, 2)
        return trimmed_mean(flat[..., 0]) - trimmed_mean(flat[..., 1])

    def parts(draws: list[Scores]) -> Scores:
        means: Scores = draws[0].mean(axis=1)
        difference: Scores = means[..., 0] - means[..., 1]
        return difference

    return _bootstrap([both], difference, parts)


def probability_of_improvement(ours: Scores, theirs: Scores) -> Estimate:
    """Returns the probability that a run of ours is better than one of theirs; 0.5 means no difference.

    For a game it is P(ours > theirs) + P(equal) / 2 over all pairs of seeds (Mann and Whitney's U); over games, the
    mean.
    """

    def shares(draws: list[Scores]) -> Scores:
        a, b = draws[0][:, :, None, :], draws[1][:, None, :, :]
        wins = np.count_nonzero(a > b, axis=(1, 2)) + 0.5 * np.count_nonzero(a == b, axis=(1, 2))
        result: Scores = wins / (a.shape[1] * b.shape[2])
        return result

    return _bootstrap([ours, theirs], lambda draws: shares(draws).mean(axis=-1), shares)


def ratio_of_means(ours: Sequence[float] | Scores, theirs: Sequence[float] | Scores) -> float:
    """Returns the mean of ours divided by the mean of theirs; NaN if the latter is 0."""
    below = float(np.mean(theirs))
    return float(np.mean(ours)) / below if below else math.nan


def t_quantile(probability: float, degrees: float) -> float:
    """Returns a quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def _bootstrap(samples: Sequence[Scores], statistic: Statistic, parts: Statistic) -> Estimate:
    """Returns a statistic of ``samples``, each [seeds, games, …], with its bootstrap interval.

    Seeds are drawn with replacement, independently in each game and sample. ``statistic`` maps draws, each [replicates,
    seeds, games, …], to [replicates], and ``parts`` maps them to what each game adds, [replicates, games].
    """
    value = float(statistic([sample[None] for sample in samples])[0])
    num_seeds, num_games = min(len(sample) for sample in samples), samples[0].shape[1]
    if num_seeds < 2:
        return Estimate(value)
    rng = np.random.default_rng(SEED)
    draws = []
    for sample in samples:
        chosen = rng.integers(len(sample), size=(REPLICATES, len(sample), num_games))
        draws.append(sample[chosen, np.arange(num_games)])
    return percentile_interval(value, statistic(draws), parts(draws), num_seeds, len(samples))


def draw_weights(num_seeds: int, num_games: int) -> Scores:
    """Returns the weight of each seed in each replicate of a bootstrap, [replicates, seeds, games].

    Seeds are drawn with replacement, independently in each game. The weights of a replicate and game sum to 1, so that
    ``weights @ values`` is a mean over seeds. For a single seed there is one replicate, which is the data.
    """
    if num_seeds < 2:
        return np.ones((1, num_seeds, num_games))
    chosen = np.random.default_rng(SEED).integers(num_seeds, size=(REPLICATES, num_seeds, num_games))
    counts = [np.count_nonzero(chosen == seed, axis=1) for seed in range(num_seeds)]
    weights: Scores = np.stack(counts, axis=1) / num_seeds
    return weights


def percentile_interval(
    value: float, replicates: Scores, parts: Scores, num_seeds: int, num_samples: int = 1
) -> Estimate:
    """Returns ``value`` with the expanded percentiles of a bootstrap's replicates; without an interval where the most
    extreme draw is likelier than such a percentile, as it is for a single seed.

    ``parts`` is what each game adds to a replicate, [replicates, games]; ``num_samples`` says how many samples of
    ``num_seeds`` seeds are drawn in each game.
    """
    num_games = parts.shape[1]
    if num_seeds < 2 or num_seeds ** -float(num_seeds * num_games * num_samples) > _tail(num_seeds, num_games):
        return Estimate(value)
    tail = _tail(num_seeds, effective_number(parts.var(axis=0)))
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def effective_number(variances: Scores) -> float:
    """Returns how many games of equal variance have as many degrees of freedom as games of these (Satterthwaite 1946):
    their number if the variances are equal, near 1 if one is far above the others."""
    usable = variances[np.isfinite(variances)]
    total = float(usable.sum())
    return total**2 / float((usable**2).sum()) if total else float(len(variances))


def _tail(num_seeds: int, num_games: float) -> float:
    """Returns the percentile for the lower end of an interval. With many seeds it is rliable's 0.025.

    The variance of a bootstrap with n draws is too small by the factor (n − 1)/n, and its spread is estimated from
    games × (n − 1) degrees of freedom.
    """
    t = t_quantile((1 + CONFIDENCE) / 2, num_games * (num_seeds - 1))
    return NormalDist().cdf(-t * math.sqrt(num_seeds / (num_seeds - 1)))


def trimmed_mean(rows: Scores) -> Scores:
    """Returns the interquartile mean of each replicate: [replicates, scores] → [replicates]."""
    from scipy.stats import trim_mean

    mean: Scores = trim_mean(rows, 0.25, axis=1)
    return mean
