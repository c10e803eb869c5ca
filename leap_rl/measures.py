"""What the numbers of a learning process are called, and what a score is: the same everywhere they are shown.

Whatever the process, statistics (docs/metrics.md) have ``agent_steps`` (how far a task is), ``frames`` (what it has
seen) and the two counts whose quotient is its score, the more the better.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Measures:
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
    means: tuple[str, ...]  # statistics that are means over the gradient steps
    held_out_counts: tuple[str, str] | None = None  # the same of data held out from a task, scored once at its end
    natural_scale: bool = False  # scores of all tasks are on one scale, 0 to 1, as they are

    @property
    def held_out_score(self) -> str:
        return f"held_out_{self.score}"

    def score_of(self, statistics: Mapping[str, float]) -> float | None:
        """None where nothing was scored."""
        return _quotient(statistics, self.counts)

    def held_out_score_of(self, statistics: Mapping[str, float]) -> float | None:
        """None before the end of a task, and where the process holds nothing out."""
        return _quotient(statistics, self.held_out_counts) if self.held_out_counts else None


def _quotient(statistics: Mapping[str, float], counts: tuple[str, str]) -> float | None:
    total, number = (statistics[name] for name in counts)
    return total / number if number else None


MEASURES = {
    "a2c": Measures(
        task="game",
        tasks="games",
        step="agent steps",
        frame="frames",
        score="episodic_return",
        score_text="return",
        counts=("score_sum", "episodes"),
        digits=1,
        final_text="mean raw return over the episodes of the last tenth of training",
        paired="heads, environments and action noise",
        means=("loss", "policy_loss", "value_loss", "entropy", "gradient_norm", "clipped_reward"),
    ),
    "classification": Measures(
        task="alphabet",
        tasks="alphabets",
        step="gradient steps",
        frame="drawings",
        score="accuracy",
        score_text="accuracy",
        counts=("correct", "images"),
        digits=3,
        final_text="accuracy on the drawings that the task held out, after its last gradient step",
        paired="batches of drawings, turned and moved alike,",
        means=("loss", "gradient_norm"),
        held_out_counts=("held_out_correct", "held_out_images"),
        natural_scale=True,
    ),
}
MEASURES["rllib"] = MEASURES["a2c"]
