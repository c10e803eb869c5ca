"""Says what the numbers of a learning process are called, and what a score is: the same everywhere they are shown.

Statistics are sums (docs/metrics.md); a mean is a quotient of two of them, made where it is shown. Those of any process
have ``agent_steps`` (how far a task is), ``frames`` (what it has seen), and the two counts whose quotient is its
score: the more the better.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Measures:
    """Says what a process calls its numbers, and which statistics its scores and means are made of."""

    task: str  # what a task is
    tasks: str
    step: str  # what agent_steps counts
    frame: str  # what frames counts
    score: str  # as columns and rows name it
    score_text: str  # as tables and figures do
    counts: tuple[str, str]  # statistics: what is summed, and over how many
    digits: int  # of a score, behind the point
    final_text: str  # what the final score of a task is
    paired: str  # what a seed of an evaluation has the same in every arm
    means: Mapping[str, tuple[str, str]]  # what rows and charts show besides → what is summed, and over how many
    totals: tuple[str, ...] = ()  # sums that rows show as they are
    held_out_counts: tuple[str, str] | None = None  # the same of data held out from a task, scored once at its end
    zero_shot_counts: tuple[str, str] | None = None  # the same of episodes that an evaluation plays before any update
    natural_scale: bool = False  # scores of all tasks are on one scale, 0 to 1, as they are
    human_normalized: bool = False  # tasks are ALE's games, whose random and human scores evaluation/scores.py has

    @property
    def held_out_score(self) -> str:
        return f"held_out_{self.score}"

    @property
    def target_text(self) -> str:
        """Returns what speed-ups are measured at, the end of the random arm's learning curve, in words: its final
        score, unless that is of held-out data."""
        return f"final training {self.score_text}" if self.held_out_counts else "final score"

    def score_of(self, statistics: Mapping[str, float]) -> float | None:
        """Returns the score; None where nothing was scored."""
        return _quotient(statistics, self.counts)

    def held_out_score_of(self, statistics: Mapping[str, float]) -> float | None:
        """Returns the score on held-out data; None before a task's end, and where the process holds nothing out."""
        return _quotient(statistics, self.held_out_counts) if self.held_out_counts else None

    def zero_shot_score_of(self, statistics: Mapping[str, float]) -> float | None:
        """Returns the score before any update; None after the first segment, and where none was measured."""
        return _quotient(statistics, self.zero_shot_counts) if self.zero_shot_counts else None

    def shown(self, statistics: Mapping[str, float]) -> dict[str, float | None]:
        """Returns what rows and charts show of the sums of a segment or a task, by name: None for a mean over nothing,
        for one of a sum that is not there, and for what is scored at a task's end before it."""
        found: dict[str, float | None] = {
            name: int(statistics[name]) if name in statistics else None for name in self.totals
        }
        found[self.score] = self.score_of(statistics)
        if self.held_out_counts:
            found[self.held_out_score] = self.held_out_score_of(statistics)
        return found | {name: _quotient(statistics, counts) for name, counts in self.means.items()}


def _quotient(statistics: Mapping[str, float], counts: tuple[str, str]) -> float | None:
    """Returns a mean; None where it is over nothing, or where the process, or an older version of it, has no such
    sum."""
    total, number = (statistics.get(name) for name in counts)
    return total / number if total is not None and number else None
