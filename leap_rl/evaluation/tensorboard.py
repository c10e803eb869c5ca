"""Writes an evaluation's curves as TensorBoard runs, one for each arm and game. All arms of a game share a chart."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from leap_rl.evaluation.analysis import Analysis, mean_curve
from leap_rl.evaluation.results import Curve, Numbers
from leap_rl.files.event_files import EventFile
from leap_rl.runs.figures import heat_maps, render_png

FOLDER = "tensorboard"


def write_tensorboard(analysis: Analysis, probes: dict[str, object], directory: Path) -> None:
    """Replaces the event files in ``directory``: means over seeds, plotted against agent steps."""
    folder = directory / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    for (arm, game), curves in analysis.curves.items():
        with closing(EventFile(folder / arm / game.replace(":", "_"))) as writer:
            measures: dict[str, Callable[[Curve], Numbers]] = {
                analysis.measures.score_text: Curve.smoothed,
                "path_length": lambda curve: curve.path_length,
                "energy": lambda curve: curve.energy,
            }
            for name, measure in measures.items():
                steps, values = mean_curve(curves, measure)
                for step, value in zip(steps, values.mean(axis=0), strict=True):
                    if not np.isnan(value):
                        writer.add_scalar(f"{name}/{game}", value, int(step))
    matrices = probes.get("cosines")
    if isinstance(matrices, dict):
        with closing(EventFile(folder / "probes")) as writer:
            for arm, entry in matrices.items():
                if entry["games"]:
                    writer.add_png(f"increment_cosine/{arm}", render_png(heat_maps({arm: entry})))
