"""Computes speed-ups over the random arm, and scores on the scale of the random arm's gain.

Both arms are read in the same way, from the mean over seeds of their smoothed learning curves: the steps to a level are
those at which the mean curve first reaches it. The level is the random arm's final score, which is the end of its own
mean curve, so the random arm always reaches it, often before its budget is spent.

    speed-up = the random arm's steps to its final score / this arm's steps to that score

For an arm that never reaches it within the budget, the speed-up is taken at the highest level of its own mean curve:

    speed-up = a / max(b, c)    a: the random arm's steps to that level
                                b: this arm's steps to that level
                                c: the random arm's steps to its final score

This is at most 1. (The budget must not be used as the arm's steps: where curves still rise at the end, an arm that is
no better than random would then be above 1 half of the time, and at 1 otherwise.)

Over games the speed-up is the geometric mean. Games on which the random arm learned nothing have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from leap_rl.evaluation.results import Numbers
from leap_rl.evaluation.statistics import Estimate, draw_weights, percentile_interval, trimmed_mean


@dataclass(frozen=True)
class PairOfCurves:
    """Holds an arm's and the random arm's curves on one game, for the same seeds at the same agent steps. Values are
    NaN before the first episode."""

    steps: Numbers  # [S]
    ours: Numbers  # [seeds, S]
    random: Numbers  # [seeds, S]


class Standing(NamedTuple):
    """Holds, for one game, an arm's score and the random arm's first and last score, each by seed: [seeds]."""

    ours: Numbers
    random_first: Numbers
    random_last: Numbers


def steps_to_reach(agent_steps: Numbers, returns: Numbers, target: Numbers | float) -> Numbers:
    """Returns the agent steps [...] at which curves [..., S] first reach a target [...], interpolated linearly between
    points; NaN for curves that never do. A curve has no value before its first point."""
    known = np.where(np.isnan(returns), -np.inf, returns)
    level = np.broadcast_to(np.asarray(target, float)[..., None], (*known.shape[:-1], 1))
    reached = known >= level
    at = reached.argmax(axis=-1)[..., None]
    before = np.maximum(at - 1, 0)
    value, value_before = (np.take_along_axis(known, index, axis=-1) for index in (at, before))
    rising = np.isfinite(value_before) & (value > value_before)
    height = np.where(rising, value - np.where(rising, value_before, 0), 1)
    share = np.where(rising, (level - np.where(rising, value_before, 0)) / height, 1)
    steps = agent_steps[before] + share * (agent_steps[at] - agent_steps[before])
    result: Numbers = np.where(reached.any(axis=-1), steps[..., 0], np.nan)
    return result


def speedup(games: Sequence[PairOfCurves]) -> Estimate:
    """Returns the speed-up on one game, or the geometric mean over several, with a bootstrap interval.

    The bootstrap draws the seeds of both arms together. All games must have the same number of seeds.
    """
    num_seeds = len(games[0].ours)
    weights = draw_weights(num_seeds, len(games))
    value = np.mean([_log_speedup(game.steps, game.ours.mean(axis=0), game.random.mean(axis=0)) for game in games])
    parts = np.stack([
        _log_speedup(game.steps, *(_mean_curve(weights[..., index], curves) for curves in (game.ours, game.random)))
        for index, game in enumerate(games)
    ], axis=-1)  # fmt: skip
    return percentile_interval(float(np.exp(value)), np.exp(parts.mean(axis=-1)), parts, num_seeds)


def _mean_curve(weights: Numbers, curves: Numbers) -> Numbers:
    """Returns weighted means over seeds, [replicates, seeds] and [seeds, S] → [replicates, S], which are NaN where a
    seed that was drawn is."""
    unknown = (weights > 0) @ np.isnan(curves).astype(float) > 0
    result: Numbers = np.where(unknown, np.nan, weights @ np.nan_to_num(curves))
    return result


def _log_speedup(agent_steps: Numbers, ours: Numbers, random: Numbers) -> Numbers:
    """Returns the logarithm of the speed-up [...] of mean curves ``ours`` over ``random``, both [..., S]."""
    target = random[..., -1]
    steps, random_steps = (steps_to_reach(agent_steps, curve, target) for curve in (ours, random))
    highest = np.nanmax(ours, axis=-1)
    level = np.minimum(highest, target)
    steps_there, random_steps_there = (steps_to_reach(agent_steps, curve, level) for curve in (ours, random))
    below: Numbers = random_steps_there / np.maximum(steps_there, random_steps)
    result: Numbers = np.log(np.where(np.isnan(steps), below, random_steps / steps))
    return result


def shares_of_gain(games: Sequence[Standing]) -> Estimate:
    """Returns a score on the scale of the random arm's gain: 0 is where its training begins, and 1 where it ends.

    For one game it is a ratio of means over seeds; over games it is the interquartile mean of these ratios. The
    bootstrap draws the seeds of both arms together. All games must have the same number of seeds.
    """
    num_seeds = len(games[0].ours)
    weights = draw_weights(num_seeds, len(games))

    def share(game: Standing, of_seeds: Numbers) -> Numbers:
        ours, first, last = (of_seeds @ values for values in game)
        result: Numbers = (ours - first) / (last - first)
        return result

    values = np.array([share(game, np.full(num_seeds, 1 / num_seeds)) for game in games])
    with np.errstate(divide="ignore", invalid="ignore"):  # in a replicate without any gain
        replicates = np.stack([share(game, weights[..., index]) for index, game in enumerate(games)], axis=-1)
    # NaN (0 / 0) is no position on the scale; such a replicate counts as 0.
    parts = np.nan_to_num(replicates)
    return percentile_interval(float(trimmed_mean(values[None])[0]), trimmed_mean(parts), parts, num_seeds)
