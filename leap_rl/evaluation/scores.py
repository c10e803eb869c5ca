"""Provides the scores of random and human play, which put games on one scale.

Both are from Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", appendix: raw scores
with up to 30 no-op actions at the start, for the 57 games of today's tables. (The random scores agree with Mnih et al.
2015, extended data table 2, for the games in it; the human scores there are different.)
"""

import functools
import json
from dataclasses import dataclass
from importlib.resources import files

from leap_rl.measures import Measures


@dataclass(frozen=True)
class ReferenceScores:
    """Holds the raw scores of one game, in its default mode and difficulty."""

    random: float
    human: float

    def normalize(self, score: float) -> float:
        """Returns a score on the scale on which random play is 0 and human play is 1."""
        return (score - self.random) / (self.human - self.random)


@functools.cache
def _table() -> dict[str, ReferenceScores]:
    rows = json.loads((files("leap_rl.evaluation") / "scores.json").read_text())
    return {game: ReferenceScores(**row) for game, row in rows.items()}


def reference_scores(game: str) -> ReferenceScores | None:
    """Returns the scores of a game, given as a task's name; None for games without an entry and for other modes."""
    return _table().get(game)


def scale(measures: Measures, task: str) -> ReferenceScores | None:
    """Returns which scores of a task become 0 and 1 where tasks are compared: those of random and human play for ALE's
    games, and 0 and 1 themselves for accuracies. None where there are no such scores."""
    if measures.natural_scale:
        return ReferenceScores(0.0, 1.0)
    return reference_scores(task) if measures.human_normalized else None
