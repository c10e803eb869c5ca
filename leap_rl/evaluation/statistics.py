"""Statistics of an evaluation: few seeds, several games, and no more certainty than they carry.

Aggregates over games follow Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (their library is rliable): the interquartile mean, the probability of improvement, and bootstrap
intervals stratified by game. Their percentile intervals are too narrow with few seeds, so the percentiles are
moved outwards as Hesterberg 2015 does ("What Teachers Should Know About the Bootstrap", section 4.1, expanded
percentiles): the more seeds there are, the closer the two. One game alone has too few seeds for a bootstrap
and gets Student's t.

A matrix of scores is [seeds, games]. What is paired has the same seeds, in the same order.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
REPLICATES = 10_000  # of a bootstrap
SEED = 20_190_501  # of every bootstrap: the same data give the same intervals

Scores = NDArray[np.float64]


class Estimate(NamedTuple):
    """A number and its 95 % interval; without one (None) where there is a single seed."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def sign(self) -> int:
        """+1 or −1 where the interval lies wholly above or below 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def mean_with_interval(values: Sequence[float] | Scores) -> Estimate:
    """The mean over seeds with Student's t interval."""
    scores = np.asarray(values, float)
    mean, count = float(scores.mean()), len(scores)
    if count < 2:
        return Estimate(mean)
    half = t_quantile((1 + CONFIDENCE) / 2, count - 1) * float(scores.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half)


def paired_difference(ours: Sequence[float] | Scores, theirs: Sequence[float] | Scores) -> Estimate:
    """The mean of ours − theirs, seed by seed, with Student's t interval."""
    return mean_with_interval(np.asarray(ours, float) - np.asarray(theirs, float))


def interquartile_mean(scores: Scores) -> float:
    """The mean of what is left when the lowest and the highest quarter of all scores are cut off."""
    return float(_trimmed_mean(scores.reshape(1, -1))[0])


def interquartile_mean_with_interval(scores: Scores) -> Estimate:
    """:func:`interquartile_mean` over seeds and games, with a bootstrap interval stratified by game."""
    return _bootstrap([scores], lambda draws: _trimmed_mean(draws[0].reshape(len(draws[0]), -1)))


def paired_interquartile_mean_difference(ours: Scores, theirs: Scores) -> Estimate:
    """The interquartile mean of ours minus that of theirs; the bootstrap draws seeds of both together."""
    both = np.stack([ours, theirs], axis=-1)

    def difference(draws: list[Scores]) -> Scores:
        flat = draws[0].reshape(len(draws[0]), -1, 2)
        return _trimmed_mean(flat[..., 0]) - _trimmed_mean(flat[..., 1])

    return _bootstrap([both], difference)


def probability_of_improvement(ours: Scores, theirs: Scores) -> Estimate:
    """How often a run of ours is better than one of theirs: P(ours > theirs) + P(equal) / 2 over all pairs of
    seeds (Mann and Whitney's U), then the mean over games. 0.5 is no difference."""

    def share(draws: list[Scores]) -> Scores:
        a, b = draws[0][:, :, None, :], draws[1][:, None, :, :]
        result: Scores = (np.count_nonzero(a > b, axis=(1, 2)) + 0.5 * np.count_nonzero(a == b, axis=(1, 2))).mean(
            axis=-1
        ) / (a.shape[1] * b.shape[2])
        return result

    return _bootstrap([ours, theirs], share)


def ratio_of_means(ours: Sequence[float] | Scores, theirs: Sequence[float] | Scores) -> float:
    """Mean of ours / mean of theirs; NaN where that is 0."""
    below = float(np.mean(theirs))
    return float(np.mean(ours)) / below if below else math.nan


def t_quantile(probability: float, degrees: int) -> float:
    """Of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def _bootstrap(samples: Sequence[Scores], statistic: Callable[[list[Scores]], Scores]) -> Estimate:
    """``samples``: each [seeds, games, …]. Seeds are drawn with replacement, in each game and sample for itself.

    ``statistic`` maps draws, each [replicates, seeds, games, …], to [replicates].
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
    tail = _expanded_tail(num_seeds, num_games)
    low, high = np.quantile(statistic(draws), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _expanded_tail(num_seeds: int, num_games: int) -> float:
    """The percentile to take for the lower end of an interval; rliable's 0.025 for many seeds.

    A bootstrap with n draws has n/(n − 1) times too little variance, and its spread is estimated from
    games × (n − 1) degrees of freedom.
    """
    t = t_quantile((1 + CONFIDENCE) / 2, num_games * (num_seeds - 1))
    return NormalDist().cdf(-t * math.sqrt(num_seeds / (num_seeds - 1)))


def _trimmed_mean(rows: Scores) -> Scores:
    """[replicates, scores] → [replicates]: as scipy.stats.trim_mean(…, 0.25)."""
    cut = rows.shape[1] // 4
    if cut:
        rows = np.partition(rows, (cut, rows.shape[1] - cut - 1), axis=1)[:, cut : rows.shape[1] - cut]
    mean: Scores = rows.mean(axis=1)
    return mean
