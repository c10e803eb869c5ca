"""What increments and initializations say without further training: do games pull the same way, and what moved?"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leap_rl.types import Cosines, Tensors


def cosines(games: Sequence[str], increments: Sequence[Tensors]) -> Cosines:
    """How much the meta-gradients of tasks point the same way: +1 help each other, −1 undo each other.

    ``games`` names each task's game. Of several tasks of a game the mean over all pairs of different tasks is
    taken: the diagonal then says how much two seeds of one game agree, which is the most that two games can.
    An increment of norm zero agrees with nothing (0). Only what all of them have is compared: not a game's own heads.
    """
    shared = sorted(set.intersection(*map(set, increments))) if increments else []
    # The mean over pairs of unit vectors is a product of their sums: one product a pair of games, not of tasks.
    names = list(dict.fromkeys(games))
    counts, norms = Counter(games), Counter(dict.fromkeys(names, 0))
    sums: dict[str, Tensor] = {}
    for game, increment in zip(games, increments, strict=True):
        vector = torch.cat([increment[name].flatten() for name in shared])
        norm = float(torch.linalg.vector_norm(vector))
        unit = vector / norm if norm else vector
        norms[game] += norm > 0
        sums[game] = sums[game].add_(unit) if game in sums else unit

    def mean(row: str, column: str) -> float | None:
        product = float(torch.dot(sums[row], sums[column]))
        if row != column:
            return product / (counts[row] * counts[column])
        pairs = counts[row] * (counts[row] - 1)
        return (product - norms[row]) / pairs if pairs else None

    matrix = [[mean(row, column) for column in names] for row in names]
    return {"games": names, "matrix": matrix}


def mean_cosine(found: Cosines) -> float | None:
    """Over pairs of different games; None where there is none."""
    size = range(len(found["games"]))
    pairs = [found["matrix"][i][j] for i in size for j in size if i < j]
    return _mean([cosine for cosine in pairs if cosine is not None])


def drift_by_layer(first: Tensors, now: Tensors) -> Mapping[str, float]:
    """‖now − first‖ / ‖first‖ of each tensor; the plain distance where it started at zero (biases)."""
    drift = {}
    for name, start in sorted(first.items()):
        norm = float(torch.linalg.vector_norm(start))
        drift[name] = float(torch.linalg.vector_norm(now[name] - start)) / (norm or 1.0)
    return drift


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
