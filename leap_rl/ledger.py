"""What has been received of one task: kept by the learner, and by the worker beside the state of its process.

Both apply the same increments in the same order, so both hold the same bits. The worker's copy is what becomes
durable: a learner that was lost gets its ledgers back from the workers that take the tasks up again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from leap_rl.compression import unpack
from leap_rl.types import Increment, Task

SUMMED_STATISTICS = frozenset({
    "agent_steps", "frames", "seconds", "increment_bytes",
    "episodes", "score_sum", "episode_length_sum",
    "images", "correct", "held_out_images", "held_out_correct",
})  # fmt: skip


@dataclass(frozen=True)
class TaskReport:
    """One task up to a segment: sums over its path, and statistics by name (docs/metrics.md)."""

    task: Task
    sequence: int  # of the newest segment, from 0
    attempt: int  # that delivered it
    path_length: float
    energy: float
    num_moves: int
    num_rises: int
    done: bool
    statistics: Mapping[str, float]
    segment: Mapping[str, float]  # statistics of the newest segment alone
    residual_norm: float = 0.0  # of what compression has kept back


@dataclass
class Ledger:
    """One task: the sum of its increments, each applied once and in turn, and a report for each."""

    task: Task
    version: int  # meta-steps that had been taken when the task started: its initialization
    attempt: int = 0
    total: dict[str, Tensor] = field(default_factory=dict)
    reports: list[TaskReport] = field(default_factory=list)
    early: dict[int, Increment] = field(default_factory=dict)  # arrived before their turn
    failed: str | None = None  # why the task was dropped

    @property
    def done(self) -> bool:
        return self.failed is not None or (bool(self.reports) and self.reports[-1].done)

    @property
    def next_sequence(self) -> int:
        return len(self.reports)

    def copy(self) -> "Ledger":
        """One that shares no tensor with this one."""
        total = {name: value.clone() for name, value in self.total.items()}
        return replace(self, total=total, reports=list(self.reports), early=dict(self.early))

    def receive(self, increment: Increment) -> bool:
        """Applies an increment in its turn; False where it was received before."""
        sequence = increment.key.sequence
        if sequence < self.next_sequence or sequence in self.early:
            return False
        self.early[sequence] = increment
        while self.next_sequence in self.early:
            self._apply(self.early.pop(self.next_sequence))
        return True

    def _apply(self, increment: Increment) -> None:
        for name, value in unpack(increment.meta_gradient).items():
            if name in self.total:
                self.total[name] += value
            else:
                self.total[name] = value.clone()
        before = self.reports[-1] if self.reports else None
        self.reports.append(
            TaskReport(
                task=self.task,
                sequence=increment.key.sequence,
                attempt=increment.key.attempt,
                path_length=increment.path_length + (before.path_length if before else 0.0),
                energy=increment.energy + (before.energy if before else 0.0),
                num_moves=increment.num_moves + (before.num_moves if before else 0),
                num_rises=increment.num_rises + (before.num_rises if before else 0),
                done=increment.last,
                statistics=merge_statistics(before.statistics if before else {}, increment.statistics),
                segment=increment.statistics,
                residual_norm=increment.residual_norm,
            )
        )

    def header(self) -> dict[str, Any]:
        """All but the tensors, as JSON can hold it."""
        reports = [{key: value for key, value in vars(report).items() if key != "task"} for report in self.reports]
        return {"task": vars(self.task), "version": self.version, "attempt": self.attempt, "reports": reports}

    @classmethod
    def from_header(cls, header: Mapping[str, Any], total: Mapping[str, Tensor]) -> "Ledger":
        """Puts back what :meth:`header` returned, with the sum of the increments."""
        task = Task(**header["task"])
        reports = [TaskReport(task=task, **report) for report in header["reports"]]
        return cls(task, header["version"], header["attempt"], dict(total), reports)


def merge_statistics(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Statistics of a task from those of its segments: sums add, means are weighted by agent steps."""
    if not before:
        return dict(after)
    steps, more = before["agent_steps"], after["agent_steps"]
    return {
        name: before[name] + after[name]
        if name in SUMMED_STATISTICS
        else (before[name] * steps + after[name] * more) / (steps + more)
        for name in before
    }
