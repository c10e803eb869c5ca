"""The curves of an evaluation as TensorBoard runs: one for each arm and game, a chart a game with all arms in it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from leap_rl.evaluation.analysis import Analysis, mean_curve
from leap_rl.evaluation.figures import heat_maps
from leap_rl.evaluation.results import Curve, Numbers

FOLDER = "tensorboard"


def write_tensorboard(analysis: Analysis, probes: dict[str, object], directory: Path) -> None:
    """Replaces what was there: means over seeds, against agent steps."""
    folder = directory / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    for (arm, game), curves in analysis.curves.items():
        with SummaryWriter(str(folder / arm / game.replace(":", "_"))) as writer:
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
        with SummaryWriter(str(folder / "probes")) as writer:
            for arm, entry in matrices.items():
                if entry["games"]:
                    writer.add_figure(f"increment_cosine/{arm}", heat_maps({arm: entry}))
