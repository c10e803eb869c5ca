"""The curves of an evaluation as TensorBoard runs: one for each arm and game, a chart a game with all arms in it."""

import shutil
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from leap_rl.evaluation.analysis import Analysis
from leap_rl.evaluation.figures import heat_maps

FOLDER = "tensorboard"


def write_tensorboard(analysis: Analysis, probes: dict[str, object], directory: Path) -> None:
    """Replaces what was there: means over seeds, against agent steps."""
    folder = directory / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    for (arm, game), curves in analysis.curves.items():
        with SummaryWriter(str(folder / arm / game.replace(":", "_"))) as writer:
            returns = np.mean([curve.smoothed() for curve in curves], axis=0)
            path_length = np.mean([curve.path_length for curve in curves], axis=0)
            energy = np.mean([curve.energy for curve in curves], axis=0)
            for index, step in enumerate(curves[0].agent_steps):
                if not np.isnan(returns[index]):
                    writer.add_scalar(f"{analysis.measures.score_text}/{game}", returns[index], int(step))
                writer.add_scalar(f"path_length/{game}", path_length[index], int(step))
                writer.add_scalar(f"energy/{game}", energy[index], int(step))
    matrices = probes.get("cosines")
    if isinstance(matrices, dict):
        with SummaryWriter(str(folder / "probes")) as writer:
            for arm, entry in matrices.items():
                if entry["games"]:
                    writer.add_figure(f"increment_cosine/{arm}", heat_maps({arm: entry}))
