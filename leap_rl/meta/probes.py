"""Computes what needs no further training: whether games pull the initialization the same way, and how far its layers
moved."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leap_rl.types import Cosines, Tensors

MAX_NAMES = 64  # of a matrix of cosines: more pairs would take longer than the rest of a meta-step


def cosines(games: Sequence[str], totals: Sequence[Tensors]) -> Cosines:
    """Returns the cosines between tasks' meta-gradients, by pairs of games: at +1 they help each other, at −1 they undo
    each other.

    ``games`` names each task's game, and ``totals`` has each task's meta-gradient. Where a game has several tasks, the
    mean is taken over all pairs of different tasks: the diagonal then says how much two seeds of one game agree, which
    is the most that two games can. A meta-gradient of norm zero agrees with nothing (0). Only what all tasks have is
    compared: not a game's own heads.
    """
    shared = sorted(set.intersection(*map(set, totals))) if totals else []
    # The mean over pairs of unit vectors is a product of their sums: one product a pair of games, not of tasks.
    names = list(dict.fromkeys(games))
    counts, norms = Counter(games), Counter(dict.fromkeys(names, 0))
    sums: dict[str, Tensor] = {}
    for game, total in zip(games, totals, strict=True):
        vector = torch.cat([total[name].flatten() for name in shared])
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


def by_game(names: Sequence[str]) -> Sequence[str]:
    """Returns the names of tasks for :func:`cosines`: where there are more than MAX_NAMES, of several games, each
    variant's is its game's."""
    games = [name.partition(":")[0] for name in names]
    return games if len(set(names)) > MAX_NAMES and len(set(games)) > 1 else names


def mean_cosine(found: Cosines) -> float | None:
    """Returns the mean cosine over pairs of different games; None if there is none."""
    size = range(len(found["games"]))
    pairs = [found["matrix"][i][j] for i in size for j in size if i < j]
    return _mean([cosine for cosine in pairs if cosine is not None])


def drift_by_layer(first: Tensors, now: Tensors) -> Mapping[str, float]:
    """Returns ‖now − first‖ / ‖first‖ of each tensor; the distance itself where it started at zero (biases)."""
    drift = {}
    for name, start in sorted(first.items()):
        norm = float(torch.linalg.vector_norm(start))
        drift[name] = float(torch.linalg.vector_norm(now[name] - start)) / (norm or 1.0)
    return drift


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
