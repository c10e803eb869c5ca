"""The figures of a report, as PNG and SVG bytes. The only module that imports matplotlib.

The same data give the same figure: no date is written into it.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from leap_rl.evaluation.analysis import Analysis, mean_curve
from leap_rl.evaluation.results import Numbers
from leap_rl.evaluation.scores import reference_scores
from leap_rl.evaluation.statistics import Estimate, t_quantile
from leap_rl.streaming import RANDOM_ARM

mpl.rcParams.update({"svg.hashsalt": "leap_rl", "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})


def render(figure: Figure) -> dict[str, bytes]:
    """Suffix → bytes."""
    files = {}
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=130, metadata=metadata)
        files[suffix] = buffer.getvalue()
    return files


def new_figure(width: float, height: float) -> Figure:
    """An empty one, in the style of all of them; inches."""
    return Figure(figsize=(width, height), layout="constrained")


def color_of(arm: str, arms: Sequence[str]) -> str:
    return "0.35" if arm == RANDOM_ARM else f"C{(arms.index(arm) - 1) % 10}"


def learning_curves(analysis: Analysis) -> Figure:
    """A panel a game: mean over seeds of the smoothed return, with its 95 % interval (Student's t)."""
    measures = analysis.measures
    columns = min(3, len(analysis.games))
    rows = math.ceil(len(analysis.games) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, game in zip(axes, analysis.games, strict=False):
        for arm in analysis.arms:
            curves = analysis.curves[arm, game]
            steps, returns = mean_curve(curves)
            mean, color = returns.mean(axis=0), color_of(arm, analysis.arms)
            style: dict[str, Any] = {"linestyle": "--"} if arm == RANDOM_ARM else {}
            axis.plot(steps, mean, color=color, linewidth=1.8, label=arm, **style)
            if len(curves) > 1:
                half = _half_width(returns)
                axis.fill_between(steps, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
        reference = None if measures.natural_scale else reference_scores(game)
        if reference:
            axis.axhline(reference.random, color="0.6", linestyle=":", linewidth=1, label="random play")
        axis.set_title(game)
        axis.set_xlim(0)
        axis.xaxis.set_major_formatter(lambda value, _: _steps(value))
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    for axis in axes[len(analysis.games) :]:
        axis.set_visible(False)
    figure.supxlabel(measures.step)
    figure.supylabel("training accuracy" if measures.natural_scale else "return (raw score)")
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries, loc="outside upper center", ncols=min(len(entries), 6), frameon=False)
    return figure


def _half_width(returns: Numbers) -> Numbers:
    count = len(returns)
    half: Numbers = t_quantile(0.975, count - 1) * returns.std(axis=0, ddof=1) / math.sqrt(count)
    return half


def _steps(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def over_games(analysis: Analysis) -> Figure:
    """Interquartile means and probabilities of improvement with their intervals, a row an arm."""
    unit = analysis.measures.score_text if analysis.measures.natural_scale else "human-normalized"
    panels = [
        ("final", f"final score, IQM\n({unit})", None),
        ("area", f"area under the curve, IQM\n({unit})", None),
        ("final_better", "P(better than random)\nby final score", 0.5),
        ("area_better", "P(better than random)\nby area", 0.5),
    ]
    arms = analysis.arms[::-1]
    figure = Figure(figsize=(12, 0.42 * len(arms) + 1.4), layout="constrained")
    for axis, (name, title, line) in zip(figure.subplots(1, 4, sharey=True), panels, strict=True):
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
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
    return figure


def _interval(axis: Any, estimate: Estimate, y: float, color: str) -> None:
    if estimate.low is not None and estimate.high is not None:
        axis.plot([estimate.low, estimate.high], [y, y], color=color, linewidth=5, alpha=0.35, solid_capstyle="butt")
    axis.plot(estimate.value, y, "o", color=color, markersize=5)


def paths(analysis: Analysis) -> Figure:
    """Path length and energy of each arm as multiples of the random arm's, a group a game."""
    figure = Figure(figsize=(max(6.0, 1.1 * len(analysis.games) + 2) * 1.6, 3.2), layout="constrained")
    arms = [arm for arm in analysis.arms if arm != RANDOM_ARM]
    for axis, (name, title) in zip(
        figure.subplots(1, 2), (("path_ratio", "path length"), ("energy_ratio", "energy")), strict=True
    ):
        width = 0.8 / len(arms)
        for index, arm in enumerate(arms):
            heights = [getattr(analysis.results[arm, game], name) for game in analysis.games]
            places = np.arange(len(heights)) + (index - (len(arms) - 1) / 2) * width
            axis.bar(places, heights, width * 0.92, color=color_of(arm, analysis.arms), label=arm)
        axis.axhline(1, color="0.35", linestyle="--", linewidth=1)
        axis.set_title(f"{title}, as a multiple of the random arm's")
        axis.set_xticks(range(len(analysis.games)), analysis.games, rotation=20, ha="right")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 5), frameon=False)
    return figure


def heat_maps(matrices: Mapping[str, Any]) -> Figure:
    """Cosines between the increments of games, a panel for each of ``matrices`` (name → games, matrix)."""
    num_games = max(len(entry["games"]) for entry in matrices.values())
    columns = min(3, len(matrices))
    rows, side = math.ceil(len(matrices) / columns), 1.6 + 0.55 * num_games
    figure = Figure(figsize=(side * columns + 1.2, side * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (name, entry) in zip(axes, matrices.items(), strict=False):
        matrix = np.array([[np.nan if value is None else value for value in row] for row in entry["matrix"]])
        image = axis.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
        for (row, column), value in np.ndenumerate(matrix):
            text = "–" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
            color = "white" if abs(value) > 0.6 else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
        axis.set_xticks(range(len(entry["games"])), entry["games"], rotation=35, ha="right")
        axis.set_yticks(range(len(entry["games"])), entry["games"])
        axis.set_title(name)
    for axis in axes[len(matrices) :]:
        axis.set_visible(False)
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    return figure
