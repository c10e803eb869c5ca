"""What random and human play score, to put games on one scale.

Both from Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", appendix, raw scores
with up to 30 no-op actions at the start: the 57 games of today's tables. (The scores of random play are those
of Mnih et al. 2015, extended data table 2, where it has the game; their human scores are others.)
"""

import functools
import json
from dataclasses import dataclass
from importlib.resources import files

from leap_rl.measures import Measures


@dataclass(frozen=True)
class ReferenceScores:
    """Raw scores of one game, in its default mode and difficulty."""

    random: float
    human: float

    def normalize(self, score: float) -> float:
        """0 is random play, 1 the human's."""
        return (score - self.random) / (self.human - self.random)


@functools.cache
def _table() -> dict[str, ReferenceScores]:
    rows = json.loads((files("leap_rl") / "scores.json").read_text())
    return {game: ReferenceScores(**row) for game, row in rows.items()}


def reference_scores(game: str) -> ReferenceScores | None:
    """Of a game as tasks name it; None for games without an entry, and for modes other than the default."""
    return _table().get(game)


def scale(measures: Measures, task: str) -> ReferenceScores | None:
    """What puts the scores of a task on one scale with those of others: nothing, where they are on it as they are."""
    return ReferenceScores(0.0, 1.0) if measures.natural_scale else reference_scores(task)
