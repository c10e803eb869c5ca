"""Keeps what has been received of one task, in the learner and, beside the state of its process, in the worker.

Both apply the same increments in the same order, so both hold the same bits. The worker's copy is what becomes
durable: a learner that was lost gets its ledgers back from the workers that take the tasks up again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from torch import Tensor

from leap_rl.files.schemas import Count, FileSchema, parse_json
from leap_rl.meta.compression import unpack
from leap_rl.types import Parcel, PathSums, Task, TaskReport


class _Report(FileSchema):
    """Describes a TaskReport without its task."""

    sequence: Count
    attempt: Count
    path: PathSums
    done: bool
    statistics: dict[str, int | float]  # what was counted is read back as it was written
    segment: dict[str, int | float]
    residual_norm: float = 0.0


class _Header(FileSchema):
    task: Task
    version: Count
    attempt: Count
    reports: list[_Report]


@dataclass
class Ledger:
    """Holds the sum of one task's increments, each applied once and in turn, and a report for each."""

    task: Task
    version: int  # meta-steps that had been taken when the task started: its initialization
    attempt: int = 0
    total: dict[str, Tensor] = field(default_factory=dict)
    reports: list[TaskReport] = field(default_factory=list)
    early: dict[int, Parcel] = field(default_factory=dict)  # arrived before their turn
    failed: str | None = None  # why the task was dropped

    @property
    def done(self) -> bool:
        return self.failed is not None or (bool(self.reports) and self.reports[-1].done)

    @property
    def next_sequence(self) -> int:
        return len(self.reports)

    def copy(self) -> "Ledger":
        """Returns a copy that shares no tensor with this ledger."""
        total = {name: value.clone() for name, value in self.total.items()}
        return replace(self, total=total, reports=list(self.reports), early=dict(self.early))

    def receive(self, parcel: Parcel) -> bool:
        """Applies an increment in its turn; returns False if it was received before."""
        if parcel.sequence < self.next_sequence or parcel.sequence in self.early:
            return False
        self.early[parcel.sequence] = parcel
        while self.next_sequence in self.early:
            self._apply(self.early.pop(self.next_sequence))
        return True

    def _apply(self, parcel: Parcel) -> None:
        for name, value in unpack(parcel.packed).items():
            if name in self.total:
                self.total[name] += value
            else:
                self.total[name] = value.clone()
        before = self.reports[-1] if self.reports else None
        self.reports.append(
            TaskReport(
                task=self.task,
                sequence=parcel.sequence,
                attempt=parcel.attempt,
                path=before.path + parcel.path if before else parcel.path,
                done=parcel.last,
                statistics=added(before.statistics, parcel.statistics) if before else dict(parcel.statistics),
                segment=parcel.statistics,
                residual_norm=parcel.residual_norm,
            )
        )

    def header(self) -> str:
        """Returns task, version, attempt and reports as JSON."""
        reports = [
            {**{key: value for key, value in vars(report).items() if key != "task"}, "path": vars(report.path)}
            for report in self.reports
        ]
        return json.dumps({"task": asdict(self.task), "version": self.version, "attempt": self.attempt,
                           "reports": reports})  # fmt: skip

    @classmethod
    def from_header(cls, header: str, total: Mapping[str, Tensor]) -> "Ledger":
        """Puts back what :meth:`header` returned, with the sum of the increments. Raises BadInputError."""
        found = parse_json(_Header, header, "ledger")
        reports = [TaskReport(task=found.task, **dict(report)) for report in found.reports]
        return cls(found.task, found.version, found.attempt, dict(total), reports)


def added(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Returns the sums of two parts of a task, by name; one that a part does not have is 0 there."""
    return {name: before.get(name, 0) + after.get(name, 0) for name in {**before, **after}}
