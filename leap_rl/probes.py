"""What increments and initializations say without further training: do games pull the same way, and what moved?"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch

from leap_rl.types import Tensors


class Cosines(TypedDict):
    """``matrix[i][j]`` belongs to ``games[i]`` and ``games[j]``; None where no pair of tasks was compared."""

    games: list[str]
    matrix: list[list[float | None]]


def cosines(games: Sequence[str], increments: Sequence[Tensors]) -> Cosines:
    """How much the meta-gradients of tasks point the same way: +1 help each other, −1 undo each other.

    ``games`` names each task's game. Of several tasks of a game the mean over all pairs of different tasks is
    taken: the diagonal then says how much two seeds of one game agree, which is the most that two games can.
    An increment of norm zero agrees with nothing (0).
    """
    names = list(dict.fromkeys(games))
    vectors = [torch.cat([value.flatten() for _, value in sorted(increment.items())]) for increment in increments]
    norms = [float(torch.linalg.vector_norm(vector)) for vector in vectors]
    found: dict[tuple[str, str], list[float]] = {}
    for i, one in enumerate(vectors):
        for j in range(i):
            product = norms[i] * norms[j]
            cosine = float(torch.dot(one, vectors[j])) / product if product else 0.0
            found.setdefault((games[i], games[j]), []).append(cosine)
            if games[i] != games[j]:
                found.setdefault((games[j], games[i]), []).append(cosine)
    matrix = [[_mean(found.get((row, column), [])) for column in names] for row in names]
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
