"""Computes the numbers of the report from learning curves: each arm against the random one, game by game and over
games.

Arms are paired: a seed has the same heads, environments and action noise in each arm. Of a game the seeds are used that
every arm has finished. The aggregates are taken over the games that have the full number of seeds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leap_rl.evaluation.arms import RANDOM_ARM
from leap_rl.evaluation.results import Curve, Numbers
from leap_rl.evaluation.scores import scale
from leap_rl.evaluation.speed import PairOfCurves, Standing, shares_of_gain, speedup, steps_to_reach
from leap_rl.evaluation.statistics import (
    Estimate,
    interquartile_mean_with_interval,
    is_above_zero,
    mean_with_interval,
    paired_difference,
    paired_interquartile_mean_difference,
    probability_of_improvement,
    ratio_of_means,
)
from leap_rl.measures import Measures
from leap_rl.processes import process_type


@dataclass(frozen=True)
class GameResult:
    """Holds the numbers of one arm on one game. Scores are raw returns, or accuracies in classification; ratios and
    differences are against the random arm."""

    arm: str
    game: str
    num_seeds: int
    zero_shot: Estimate | None  # score before any update; None if it was not measured
    head_start: Estimate  # score over the first tenth of training
    final: Estimate
    area: Estimate  # area under the learning curve: the mean return over all of training
    head_start_difference: Estimate
    final_difference: Estimate
    area_difference: Estimate
    human_normalized: float | None  # final score: 0 random play, 1 human; None without an entry in the table
    steps_to_target: float | None  # agent steps until the mean curve is at the random arm's final score; None: never
    seeds_at_target: int
    speedup: Estimate | None  # see speed.py; None if the random arm learned nothing
    path_length: Estimate
    energy: Estimate
    path_ratio: float
    energy_ratio: float
    loss_rise_share: float  # share of moves on which the loss rose, where the stabilizer acts
    gain_per_path: float  # final score above the untrained one, per unit of path length


@dataclass(frozen=True)
class Aggregate:
    """Holds the numbers of one arm over games, or None where no game can be used.

    On the scale of the random arm's gain (speed.py) 0 is where its training begins, and 1 where it ends.
    """

    arm: str
    speedup: Estimate | None  # geometric mean over the games that the random arm learned
    num_reached: int  # number of these games on which the random arm's final score is reached
    gain_zero_shot: Estimate | None  # on the scale of the random arm's gain, over the same games
    gain_head_start: Estimate | None
    gain_area: Estimate | None
    gain_final: Estimate | None
    final: Estimate | None  # interquartile mean of human-normalized final scores
    area: Estimate | None
    final_difference: Estimate | None  # difference to the random arm's, paired by seed
    area_difference: Estimate | None
    final_better: Estimate | None  # probability that a run beats one of the random arm, by final score
    area_better: Estimate | None
    path_ratio: float  # geometric mean over games
    energy_ratio: float


@dataclass(frozen=True)
class Analysis:
    """Holds all numbers of a report."""

    measures: Measures
    arms: list[str]  # the random one first
    games: list[str]  # games with curves of every arm
    counted: list[str]  # games with all seeds: used in probabilities of improvement
    normalized: list[str]  # counted games with an entry in the score table: used in interquartile means
    learned: list[str]  # counted games that the random arm learned: used in speed-ups and on the scale of its gain
    num_seeds: int
    results: dict[tuple[str, str], GameResult]  # (arm, game) → result
    aggregates: dict[str, Aggregate]
    curves: dict[tuple[str, str], list[Curve]]  # (arm, game) → by seed
    missing: list[str]  # lines that say what is missing

    def harmed(self, arm: str) -> list[tuple[GameResult, bool]]:
        """Returns the games on which the arm's mean is below the random arm's, by final score or by area; and for each,
        whether one of the 95 % intervals of the differences lies entirely below 0."""
        below = []
        for game in self.games:
            result = self.results[arm, game]
            differences = (result.final_difference, result.area_difference)
            if any(difference.value < 0 for difference in differences):
                below.append((result, any(difference.sign < 0 for difference in differences)))
        return below

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers without the curves, for ``--json``."""
        return {
            "num_seeds": self.num_seeds,
            "games": self.games,
            "counted": self.counted,
            "normalized": self.normalized,
            "learned": self.learned,
            "missing": self.missing,
            "results": [_plain(vars(result)) for result in self.results.values()],
            "aggregates": [_plain(vars(aggregate)) for aggregate in self.aggregates.values()],
        }


def analyse(description: dict[str, Any], curves: Sequence[Curve]) -> Analysis:
    """Returns the numbers of an evaluation, given the content of its evaluation.json and its curves."""
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
    learned = [game for game in counted if results[RANDOM_ARM, game].speedup]
    aggregates = {arm: _aggregate(measures, arm, paired, results, counted, normalized, learned) for arm in arms}
    return Analysis(
        measures, arms, games, counted, normalized, learned, num_seeds, results, aggregates, paired, missing
    )


def measures_of(description: dict[str, Any]) -> Measures:
    """Returns the measures of the process that an evaluation trained. (Descriptions without a process are older than
    the other processes, and mean a2c.)"""
    return process_type(description.get("process", "a2c"), may_import=False).measures


def mean_curve(
    curves: Sequence[Curve], measure: Callable[[Curve], Numbers] = Curve.smoothed
) -> tuple[Numbers, Numbers]:
    """Returns the agent steps [S] of the curve with the fewest rows, and the smoothed returns (or another measure) of
    all curves at these steps, [seeds, S].

    RLlib's segments may end at different steps in each seed. Each curve contributes its last row up to a step, or NaN
    if there is none yet.
    """
    steps = min((curve.agent_steps for curve in curves), key=len)
    rows = []
    for curve in curves:
        row = np.searchsorted(curve.agent_steps, steps, side="right") - 1
        rows.append(np.where(row < 0, np.nan, measure(curve)[row]))
    return steps, np.stack(rows)


def _compare(measures: Measures, ours: Sequence[Curve], theirs: Sequence[Curve]) -> GameResult:
    """Returns the result of an arm's curves ``ours`` against the random arm's curves of the same seeds, ``theirs``."""
    final, area, first = ([getattr(curve, name) for curve in ours] for name in ("final_score", "area", "first_score"))
    their_final, their_area, their_first = (
        [getattr(curve, name) for curve in theirs] for name in ("final_score", "area", "first_score")
    )
    untrained = float(np.mean(their_first))
    pair = _pair(ours, theirs)
    target = float(pair.random[:, -1].mean())
    to_target = float(steps_to_reach(pair.steps, pair.ours.mean(axis=0), target))
    gains = [curve.last_score - curve.first_score for curve in theirs]
    zero_shot = [curve.zero_shot for curve in ours]
    length, energy = [float(curve.path_length[-1]) for curve in ours], [float(curve.energy[-1]) for curve in ours]
    reference = scale(measures, ours[0].game)
    moves = sum(float(curve.moves[-1]) for curve in ours)
    return GameResult(
        arm=ours[0].arm,
        game=ours[0].game,
        num_seeds=len(ours),
        zero_shot=None if np.isnan(zero_shot).any() else mean_with_interval(zero_shot),
        head_start=mean_with_interval(first),
        final=mean_with_interval(final),
        area=mean_with_interval(area),
        head_start_difference=paired_difference(first, their_first),
        final_difference=paired_difference(final, their_final),
        area_difference=paired_difference(area, their_area),
        human_normalized=reference.normalize(float(np.mean(final))) if reference else None,
        steps_to_target=None if math.isnan(to_target) else to_target,
        seeds_at_target=int(np.isfinite(steps_to_reach(pair.steps, pair.ours, target)).sum()),
        speedup=speedup([pair]) if is_above_zero(gains) else None,
        path_length=mean_with_interval(length),
        energy=mean_with_interval(energy),
        path_ratio=ratio_of_means(length, [float(curve.path_length[-1]) for curve in theirs]),
        energy_ratio=ratio_of_means(energy, [float(curve.energy[-1]) for curve in theirs]),
        loss_rise_share=sum(float(curve.loss_rises[-1]) for curve in ours) / moves if moves else math.nan,
        gain_per_path=ratio_of_means([curve.last_score - untrained for curve in ours], length),
    )


def _pair(ours: Sequence[Curve], theirs: Sequence[Curve]) -> PairOfCurves:
    """Returns the smoothed curves of two arms at the same agent steps."""
    steps, returns = mean_curve([*ours, *theirs])
    return PairOfCurves(steps, returns[: len(ours)], returns[len(ours) :])


def _aggregate(
    measures: Measures,
    arm: str,
    curves: dict[tuple[str, str], list[Curve]],
    results: dict[tuple[str, str], GameResult],
    counted: Sequence[str],
    normalized: Sequence[str],
    learned: Sequence[str],
) -> Aggregate:
    def matrix(which: str, measure: str, games: Sequence[str], normalize: bool) -> Numbers:
        """Returns the scores of an arm, [seeds, games]."""
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
    for name, measure in (("zero_shot", "zero_shot"), ("head_start", "first_score"), ("area", "area"),
                          ("final", "last_score")):  # fmt: skip
        standings = [_standing(measure, curves[arm, game], curves[RANDOM_ARM, game]) for game in learned]
        known = standings and not any(np.isnan(standing.ours).any() for standing in standings)
        numbers[f"gain_{name}"] = shares_of_gain(standings) if known else None
    pairs = [_pair(curves[arm, game], curves[RANDOM_ARM, game]) for game in learned]
    return Aggregate(
        arm=arm,
        speedup=speedup(pairs) if pairs else None,
        num_reached=sum(results[arm, game].steps_to_target is not None for game in learned),
        path_ratio=_geometric_mean([results[arm, game].path_ratio for game in counted]),
        energy_ratio=_geometric_mean([results[arm, game].energy_ratio for game in counted]),
        **numbers,
    )


def _standing(measure: str, ours: Sequence[Curve], theirs: Sequence[Curve]) -> Standing:
    scores = ((ours, measure), (theirs, "first_score"), (theirs, "last_score"))
    return Standing(*(np.array([getattr(curve, name) for curve in curves]) for curves, name in scores))


def _geometric_mean(ratios: Sequence[float]) -> float:
    logarithms = [math.log(ratio) for ratio in ratios if ratio > 0]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def _plain(value: Any) -> Any:
    """Returns a value that JSON can represent, with null for NaN."""
    if isinstance(value, Estimate):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
