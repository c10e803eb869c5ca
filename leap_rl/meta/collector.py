"""Collects increments into a ledger for each task. Evaluations use it as it is; the Leap learner is a subclass.

Increments may arrive late, twice or in any order: each is applied once, in the order of its task. So the sums, and
their rounding, depend on nothing else.
"""

from collections.abc import Iterable, Mapping

import torch

from leap_rl.meta.ledger import Ledger
from leap_rl.types import Parcel, Place, Task, TaskReport


class Collector:
    """Keeps a ledger of each task that is waited for: those at ``places``."""

    def __init__(self, places: Iterable[Place], version: int = 0) -> None:
        torch.set_num_threads(1)
        self._due = set(places)
        self._version = version  # of the initialization that tasks start from
        self._ledgers: dict[Place, Ledger] = {}
        self._duplicates = self._stale = 0  # numbers of increments, since the last meta-step

    def adopt(self, theirs: Ledger) -> bool:
        """Takes over the ledger of a worker that takes up a task, if it holds more than ours. From now on older
        attempts are refused. Returns False if this attempt is itself older, or if the task is not due or was
        dropped."""
        place = theirs.task.place
        ours = self._ledgers.get(place)
        if place not in self._due or (ours and (theirs.attempt < ours.attempt or ours.failed)):
            self._stale += 1
            return False
        if ours is None or theirs.version != ours.version or theirs.next_sequence > ours.next_sequence:
            self._ledgers[place] = ours = theirs.copy()
        ours.attempt = theirs.attempt
        return True

    def receive(self, parcel: Parcel) -> bool:
        """Applies an increment once and in turn. Returns False if its sender should stop: another attempt has the task
        now, or nobody waits for it. What was received before is ignored and counted."""
        place = parcel.task.place
        if place not in self._due:
            self._stale += 1
            return False
        ledger = self._ledgers.setdefault(place, Ledger(parcel.task, self._version, parcel.attempt))
        if ledger.failed or parcel.attempt < ledger.attempt:
            self._stale += 1
            return False
        ledger.attempt = parcel.attempt
        if not ledger.receive(parcel):
            self._duplicates += 1
        return True

    def drop(self, task: Task, reason: str) -> None:
        """Leaves a task out."""
        self._ledgers.setdefault(task.place, Ledger(task, self._version)).failed = reason

    def reports(self, seen: Mapping[Place, int]) -> list[TaskReport]:
        """Returns a report for each segment after the first ``seen`` of its task."""
        return [
            report for place in sorted(self._ledgers) for report in self._ledgers[place].reports[seen.get(place, 0) :]
        ]

    def done(self) -> set[Place]:
        """Returns the tasks that need no worker any more: received whole, or dropped."""
        return {place for place, ledger in self._ledgers.items() if ledger.done}

    def succeeded(self) -> set[Place]:
        """Returns the tasks that were received whole and not dropped."""
        return {place for place, ledger in self._ledgers.items() if ledger.done and not ledger.failed}

    def batch(self) -> list[Place] | None:
        """Returns the tasks that were waited for, once all of them are done; None before."""
        return sorted(self._due) if self._due <= self.done() else None

    def _forget(self, batch: Iterable[Place]) -> None:
        """Forgets the tasks of a batch, and what was counted."""
        for place in batch:
            del self._ledgers[place]
        self._duplicates = self._stale = 0
