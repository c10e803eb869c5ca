"""Draws the figures of a report (runs/figures.py renders them)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from leap_rl.evaluation.analysis import Analysis, mean_curve
from leap_rl.evaluation.arms import RANDOM_ARM
from leap_rl.evaluation.results import Numbers
from leap_rl.evaluation.scores import reference_scores
from leap_rl.evaluation.statistics import Estimate, t_quantile
from leap_rl.runs.figures import Figure, MaxNLocator, heat_maps, label, render, styled

__all__ = ["heat_maps", "learning_curves", "over_games", "paths", "render"]


def color_of(arm: str, arms: Sequence[str]) -> str:
    """Returns an arm's colour, which is the same in all figures: grey for the random arm."""
    return "0.35" if arm == RANDOM_ARM else f"C{(arms.index(arm) - 1) % 10}"


@styled
def learning_curves(analysis: Analysis) -> Figure:
    """Draws a panel for each game: mean over seeds of the smoothed return, with its 95 % interval (Student's t); where
    the random arm ends, and where each arm is first there; play before any update."""
    measures = analysis.measures
    columns = min(3, len(analysis.games))
    rows = math.ceil(len(analysis.games) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, game in zip(axes, analysis.games, strict=False):
        _, random = mean_curve(analysis.curves[RANDOM_ARM, game])
        target = float(random[:, -1].mean())
        axis.axhline(target, color=color_of(RANDOM_ARM, analysis.arms), linewidth=0.7, alpha=0.7)
        for arm in analysis.arms:
            curves, result = analysis.curves[arm, game], analysis.results[arm, game]
            steps, returns = mean_curve(curves)
            mean, color = returns.mean(axis=0), color_of(arm, analysis.arms)
            style: dict[str, Any] = {"linestyle": "--"} if arm == RANDOM_ARM else {}
            axis.plot(steps, mean, color=color, linewidth=1.8, label=label(arm), **style)
            if len(curves) > 1:
                half = _half_width(returns)
                axis.fill_between(steps, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
            if result.steps_to_target is not None:
                axis.plot(result.steps_to_target, target, "o", color=color, markersize=5, zorder=3)
            if result.zero_shot is not None:
                axis.plot(0, result.zero_shot.value, "D", color=color, markersize=5, zorder=3, clip_on=False)
        reference = reference_scores(game) if measures.human_normalized else None
        if reference:
            axis.axhline(reference.random, color="0.6", linestyle=":", linewidth=1, label="random play")
        axis.set_title(game)
        axis.set_xlim(0)
        axis.set_ylim(*_limits(analysis, game, reference.random if reference else target))
        axis.xaxis.set_major_formatter(lambda value, _: _steps(value))
        axis.xaxis.set_major_locator(MaxNLocator(5))
    for axis in axes[len(analysis.games) :]:
        axis.set_visible(False)
    figure.supxlabel(measures.step)
    scored = f"training {measures.score_text}" if measures.held_out_counts else measures.score_text
    figure.supylabel(f"{scored} (raw score)" if measures.human_normalized else scored)
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = math.ceil(len(entries) / math.ceil(len(entries) / 6))  # so that the rows of the legend are equally long
    figure.legend(entries.values(), entries, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def _limits(analysis: Analysis, game: str, level: float) -> tuple[float, float]:
    """Returns the least and the greatest value of a panel: all single seeds, and ``level``, are inside. Intervals over
    two or three seeds reach far beyond, and would leave the curves no room."""
    values = [level]
    for arm in analysis.arms:
        _, returns = mean_curve(analysis.curves[arm, game])
        zero_shot = analysis.results[arm, game].zero_shot
        values += [*returns[np.isfinite(returns)].tolist(), *([zero_shot.value] if zero_shot else [])]
    margin = 0.08 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _half_width(returns: Numbers) -> Numbers:
    count = len(returns)
    half: Numbers = t_quantile(0.975, count - 1) * returns.std(axis=0, ddof=1) / math.sqrt(count)
    return half


def _steps(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


@styled
def over_games(analysis: Analysis) -> Figure:
    """Draws interquartile means and probabilities of improvement with their intervals, a row for each arm. What no arm
    has, since its tasks have no common scale, has no panel."""
    unit = analysis.measures.score_text if analysis.measures.natural_scale else "human-normalized"
    panels = [
        ("final", f"final score, IQM\n({unit})", None),
        ("area", f"area under the curve, IQM\n({unit})", None),
        ("final_better", "P(better than random)\nby final score", 0.5),
        ("area_better", "P(better than random)\nby area", 0.5),
    ]
    panels = [panel for panel in panels if any(getattr(entry, panel[0]) for entry in analysis.aggregates.values())]
    arms = analysis.arms[::-1]
    figure = Figure(figsize=(3 * len(panels), 0.42 * len(arms) + 1.4), layout="constrained")
    for axis, (name, title, line) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        if line is not None:
            axis.axvline(line, color="0.6", linestyle=":", linewidth=1)
            axis.set_xlim(-0.03, 1.03)
        for y, arm in enumerate(arms):
            estimate = getattr(analysis.aggregates[arm], name)
            if estimate is not None and not (line is not None and arm == RANDOM_ARM):
                _interval(axis, estimate, y, color_of(arm, analysis.arms))
        axis.set_title(title, fontsize=9)
        axis.set_yticks(range(len(arms)), arms)
        axis.set_ylim(-0.6, len(arms) - 0.4)
        axis.grid(axis="x", linewidth=0.4)
        axis.xaxis.set_major_locator(MaxNLocator(4))
    return figure


def _interval(axis: Any, estimate: Estimate, y: float, color: str) -> None:
    if estimate.low is not None and estimate.high is not None:
        axis.plot([estimate.low, estimate.high], [y, y], color=color, linewidth=5, alpha=0.35, solid_capstyle="butt")
    axis.plot(estimate.value, y, "o", color=color, markersize=5)


@styled
def paths(analysis: Analysis) -> Figure:
    """Draws path length and energy of each arm as multiples of the random arm's, grouped by game."""
    figure = Figure(figsize=(max(6.0, 1.1 * len(analysis.games) + 2) * 1.6, 3.2), layout="constrained")
    arms = [arm for arm in analysis.arms if arm != RANDOM_ARM]
    for axis, (name, title) in zip(
        figure.subplots(1, 2), (("path_ratio", "path length"), ("energy_ratio", "energy")), strict=True
    ):
        width = 0.8 / len(arms)
        for index, arm in enumerate(arms):
            heights = [getattr(analysis.results[arm, game], name) for game in analysis.games]
            places = np.arange(len(heights)) + (index - (len(arms) - 1) / 2) * width
            axis.bar(places, heights, width * 0.92, color=color_of(arm, analysis.arms), label=label(arm))
        axis.axhline(1, color="0.35", linestyle="--", linewidth=1)
        axis.set_title(f"{title}, as a multiple of the random arm's")
        axis.set_xticks(range(len(analysis.games)), analysis.games, rotation=20, ha="right")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 5), frameon=False)
    return figure
