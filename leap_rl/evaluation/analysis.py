"""From learning curves to the numbers of the report: each arm against the random one, game by game and over games.

Arms are paired: the same seed has the same heads, environments and action noise in each. A game counts with the
seeds that every arm has finished; games over which all arms have the same number of seeds enter the aggregates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leap_rl.evaluation.results import Curve, Numbers
from leap_rl.evaluation.scores import scale
from leap_rl.evaluation.statistics import (
    Estimate,
    interquartile_mean_with_interval,
    mean_with_interval,
    paired_difference,
    paired_interquartile_mean_difference,
    probability_of_improvement,
    ratio_of_means,
)
from leap_rl.measures import MEASURES, Measures
from leap_rl.streaming import RANDOM_ARM


@dataclass(frozen=True)
class GameResult:
    """One arm on one game. Scores are raw returns; ratios and differences are against the random arm."""

    arm: str
    game: str
    num_seeds: int
    final: Estimate
    area: Estimate  # under the learning curve: the mean return over all of training
    final_difference: Estimate
    area_difference: Estimate
    human_normalized: float | None  # final score: 0 random play, 1 human; None without an entry in the table
    steps_to_target: float | None  # until the mean curve is at the random arm's final score; None: never
    seeds_at_target: int
    speedup: float | None  # the random arm's steps to that score / this arm's; None where either has none
    path_length: Estimate
    energy: Estimate
    path_ratio: float
    energy_ratio: float
    loss_rise_share: float  # of the moves: where the stabilizer acts
    gain_per_path: float  # final score above the untrained one, per unit of path length


@dataclass(frozen=True)
class Aggregate:
    """One arm over games. None where no game counts."""

    arm: str
    final: Estimate | None  # interquartile mean of human-normalized final scores
    area: Estimate | None
    final_difference: Estimate | None  # from the random arm's, seeds paired
    area_difference: Estimate | None
    final_better: Estimate | None  # probability that a run beats one of the random arm, by final score
    area_better: Estimate | None
    path_ratio: float  # geometric mean over games
    energy_ratio: float


@dataclass(frozen=True)
class Analysis:
    measures: Measures
    arms: list[str]  # the random one first
    games: list[str]  # with curves of every arm
    counted: list[str]  # that have all seeds: in probabilities of improvement
    normalized: list[str]  # of these, with an entry in the score table: in interquartile means
    num_seeds: int
    results: dict[tuple[str, str], GameResult]  # (arm, game) → result
    aggregates: dict[str, Aggregate]
    curves: dict[tuple[str, str], list[Curve]]  # (arm, game) → by seed
    missing: list[str]  # what is not there, a line each
    seeds_wanted: int

    def harmed(self, arm: str) -> list[tuple[GameResult, bool]]:
        """Games on which the arm's mean is below the random arm's, by final score or by area, and whether one
        of the 95 % intervals lies wholly below 0."""
        below = []
        for game in self.games:
            result = self.results[arm, game]
            differences = (result.final_difference, result.area_difference)
            if any(difference.value < 0 for difference in differences):
                below.append((result, any(difference.sign < 0 for difference in differences)))
        return below

    def to_json(self) -> dict[str, Any]:
        """For ``--json``: the numbers without the curves."""
        return {
            "num_seeds": self.num_seeds,
            "games": self.games,
            "counted": self.counted,
            "normalized": self.normalized,
            "missing": self.missing,
            "results": [_plain(vars(result)) for result in self.results.values()],
            "aggregates": [_plain(vars(aggregate)) for aggregate in self.aggregates.values()],
        }


def analyse(description: dict[str, Any], curves: Sequence[Curve]) -> Analysis:
    """``description``: the content of evaluation.json."""
    measures = measures_of(description)
    arms = [arm["name"] for arm in description["arms"]]
    wanted: int = description["num_seeds"]
    by_task = {(curve.arm, curve.game, curve.seed): curve for curve in curves if not math.isnan(curve.area)}
    paired: dict[tuple[str, str], list[Curve]] = {}
    games, missing = [], []
    for game in description["games"]:
        seeds = [seed for seed in range(wanted) if all((arm, game, seed) in by_task for arm in arms)]
        if seeds:
            games.append(game)
            paired |= {(arm, game): [by_task[arm, game, seed] for seed in seeds] for arm in arms}
        if len(seeds) < wanted:
            scored = "" if measures.natural_scale else ", with an episode that ended,"
            missing.append(f"{game}: {len(seeds)} of {wanted} seeds have finished{scored} in every arm")
    results = {
        (arm, game): _compare(measures, paired[arm, game], paired[RANDOM_ARM, game]) for arm in arms for game in games
    }
    num_seeds = max((len(paired[RANDOM_ARM, game]) for game in games), default=0)
    counted = [game for game in games if len(paired[RANDOM_ARM, game]) == num_seeds]
    normalized = [game for game in counted if scale(measures, game)]
    aggregates = {arm: _aggregate(measures, arm, paired, results, counted, normalized) for arm in arms}
    return Analysis(measures, arms, games, counted, normalized, num_seeds, results, aggregates, paired, missing, wanted)


def measures_of(description: dict[str, Any]) -> Measures:
    """Of the process that an evaluation trained. (Descriptions without one are older than the others.)"""
    return MEASURES[description.get("process", "a2c")]


def mean_curve(
    curves: Sequence[Curve], measure: Callable[[Curve], Numbers] = Curve.smoothed
) -> tuple[Numbers, Numbers]:
    """Agent steps [S] of the curve with the fewest rows, and the smoothed returns, or another measure, [seeds, S].

    RLlib's segments end at steps of their own: of each curve it is the last row that is not beyond the step, NaN where
    there is none yet.
    """
    steps = min((curve.agent_steps for curve in curves), key=len)
    rows = []
    for curve in curves:
        row = np.searchsorted(curve.agent_steps, steps, side="right") - 1
        rows.append(np.where(row < 0, np.nan, measure(curve)[row]))
    return steps, np.stack(rows)


def steps_to_reach(agent_steps: Numbers, returns: Numbers, target: float) -> float | None:
    """The first agent step at which a curve is at least at ``target``; None where it never is."""
    reached = np.flatnonzero(returns >= target)
    return float(agent_steps[reached[0]]) if len(reached) else None


def _compare(measures: Measures, ours: Sequence[Curve], theirs: Sequence[Curve]) -> GameResult:
    """``theirs``: the random arm's, of the same seeds."""
    final, area = [curve.final_score for curve in ours], [curve.area for curve in ours]
    their_final = [curve.final_score for curve in theirs]
    target, untrained = (
        float(np.mean([curve.last_score for curve in theirs])),
        float(np.mean([curve.first_score for curve in theirs])),
    )
    steps, smoothed = mean_curve(ours)
    to_target = steps_to_reach(steps, smoothed.mean(axis=0), target)
    their_steps, their_smoothed = mean_curve(theirs)
    their_to_target = steps_to_reach(their_steps, their_smoothed.mean(axis=0), target)
    learned = target > untrained  # else there is nothing to be faster at
    length, energy = [float(curve.path_length[-1]) for curve in ours], [float(curve.energy[-1]) for curve in ours]
    reference = scale(measures, ours[0].game)
    moves = sum(float(curve.moves[-1]) for curve in ours)
    return GameResult(
        arm=ours[0].arm,
        game=ours[0].game,
        num_seeds=len(ours),
        final=mean_with_interval(final),
        area=mean_with_interval(area),
        final_difference=paired_difference(final, their_final),
        area_difference=paired_difference(area, [curve.area for curve in theirs]),
        human_normalized=reference.normalize(float(np.mean(final))) if reference else None,
        steps_to_target=to_target if learned else None,
        seeds_at_target=sum(steps_to_reach(steps, curve, target) is not None for curve in smoothed),
        speedup=their_to_target / to_target if learned and to_target and their_to_target else None,
        path_length=mean_with_interval(length),
        energy=mean_with_interval(energy),
        path_ratio=ratio_of_means(length, [float(curve.path_length[-1]) for curve in theirs]),
        energy_ratio=ratio_of_means(energy, [float(curve.energy[-1]) for curve in theirs]),
        loss_rise_share=sum(float(curve.loss_rises[-1]) for curve in ours) / moves if moves else math.nan,
        gain_per_path=ratio_of_means([curve.last_score - untrained for curve in ours], length),
    )


def _aggregate(
    measures: Measures,
    arm: str,
    curves: dict[tuple[str, str], list[Curve]],
    results: dict[tuple[str, str], GameResult],
    counted: Sequence[str],
    normalized: Sequence[str],
) -> Aggregate:
    def matrix(which: str, measure: str, games: Sequence[str], normalize: bool) -> Numbers:
        """[seeds, games]"""
        columns = []
        for game in games:
            scores = [getattr(curve, measure) for curve in curves[which, game]]
            reference = scale(measures, game)
            columns.append([reference.normalize(score) for score in scores] if normalize and reference else scores)
        return np.array(columns).T

    numbers: dict[str, Estimate | None] = {}
    for name, measure in (("final", "final_score"), ("area", "area")):
        numbers |= {name: None, f"{name}_difference": None, f"{name}_better": None}
        if normalized:
            ours, theirs = (matrix(which, measure, normalized, True) for which in (arm, RANDOM_ARM))
            numbers[name] = interquartile_mean_with_interval(ours)
            numbers[f"{name}_difference"] = paired_interquartile_mean_difference(ours, theirs)
        if counted:
            ours, theirs = (matrix(which, measure, counted, False) for which in (arm, RANDOM_ARM))
            numbers[f"{name}_better"] = probability_of_improvement(ours, theirs)
    return Aggregate(
        arm=arm,
        path_ratio=_geometric_mean([results[arm, game].path_ratio for game in counted]),
        energy_ratio=_geometric_mean([results[arm, game].energy_ratio for game in counted]),
        **numbers,
    )


def _geometric_mean(ratios: Sequence[float]) -> float:
    logarithms = [math.log(ratio) for ratio in ratios if ratio > 0]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def _plain(value: Any) -> Any:
    """As JSON can hold it: NaN is null."""
    if isinstance(value, Estimate):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
