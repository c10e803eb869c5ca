"""Defines the interface of a backend, which runs tasks for meta-training and for evaluations."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from leap_rl.meta.collector import Collector
from leap_rl.runs.quorum import Quorum
from leap_rl.types import Broadcast, Fault, MetaStep, Notice, Task, TaskError, TaskReport

MAX_ERRORS = 2  # of one task


class Backend(Protocol):
    """Runs tasks, durably, and hands their increments to one collector."""

    @property
    def num_workers(self) -> int:
        """Returns the number of workers that are ready; at least 1."""
        ...

    def run_tasks(
        self, tasks: Sequence[Task], given: Broadcast, collector: Callable[[], Collector], quorum: Quorum | None = None
    ) -> Iterator[TaskReport | Fault | Notice]:
        """Trains tasks and streams their increments to the collector, until it has a batch. Tasks start from what is
        ``given``; those that are running from an earlier call go on.

        ``collector`` makes the collector, where there is none yet or it was lost. ``quorum`` says which tasks are left
        out because they are late; by default none is. Yields a report for each segment that it has received, a fault
        for everything that went wrong, and a notice of what is waited for. It must be exhausted before
        :meth:`meta_step` is called.
        """
        ...

    def meta_step(self) -> MetaStep | None:
        """Takes a meta-step with the batch, and returns what the step did. The collector must be a Leap learner.

        Returns None if it was lost; then :meth:`run_tasks` must be called again with the same tasks.
        """
        ...


def after_error(task: Task, error: TaskError, num_errors: int) -> tuple[bool, Fault]:
    """Returns whether a task that has now raised ``num_errors`` times is tried again, and what is reported of it.

    It is tried once more: since it is deterministic, a second error means that the task is at fault, not the machine.
    """
    if num_errors < MAX_ERRORS:
        return True, Fault(task, f"{error}; tried again, since the machine may be at fault")
    return False, Fault(task, f"{error}; left out")
