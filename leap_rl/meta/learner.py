"""Defines the Leap learner, which collects increments and steps the shared initialization once enough tasks are
done."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from leap_rl.config import MetaConfig
from leap_rl.meta.collector import Collector
from leap_rl.meta.probes import by_game, cosines
from leap_rl.meta.schedule import due, next_batch
from leap_rl.meta.step import meta_step
from leap_rl.tensors import copied, distance
from leap_rl.types import Checkpoint, DivergedError, MetaStep, Place

TINY = torch.finfo(torch.float32).tiny


class MetaLearner(Collector):
    """Collects increments and owns the shared initialization, which begins at ``checkpoint``. At least ``min_tasks`` of
    a batch must not fail."""

    def __init__(self, config: MetaConfig, checkpoint: Checkpoint, min_tasks: int = 1) -> None:
        super().__init__(due(config, checkpoint), checkpoint.meta_step)
        self.config = config
        self.checkpoint = _copied(checkpoint)  # with the serial backend, tasks start from the caller's tensors
        self._min_tasks = min_tasks

    def batch(self) -> list[Place] | None:
        """Returns the tasks that :meth:`step` would average now; None where it must wait."""
        return next_batch(self.config, self.checkpoint.meta_step, self._ledgers)

    def step(self, batch: Sequence[Place] | None = None) -> MetaStep:
        """Takes a meta-step with the tasks of ``batch``, as :meth:`batch` returned it; by default it is asked now. A
        caller that reads reports gives the batch whose reports it has read, since more tasks may have ended.

        Failed tasks are left out of the mean. Raises DivergedError where fewer than ``min_tasks`` are left,
        RuntimeError where the batch is not done, and what :func:`meta_step` raises.
        """
        batch = self.batch() if batch is None else batch
        if batch is None or not self.done().issuperset(batch):
            raise RuntimeError(f"step() before {self.config.batch_size} tasks are done")
        number, before = self.checkpoint.meta_step, self.checkpoint.initialization
        taken = [self._ledgers[place] for place in batch]
        ledgers = [ledger for ledger in taken if not ledger.failed]
        dropped = tuple((ledger.task, ledger.failed) for ledger in taken if ledger.failed)
        if len(ledgers) < self._min_tasks:
            reasons = "; ".join(f"{task.name}: {reason}" for task, reason in dropped)
            raise DivergedError(
                f"meta-step {number}: {len(dropped)} of {len(taken)} tasks failed, and "
                f"faults.min_tasks = {self._min_tasks} must not ({reasons})"
            )
        totals = [ledger.total for ledger in ledgers]
        made = meta_step(before, self.checkpoint.optimizer, totals, self.config, number)
        unfinished = tuple(sorted(self._due.difference(batch)))
        self.checkpoint = Checkpoint(number + 1, made.initialization, made.optimizer, unfinished)
        reports = tuple(ledger.reports[-1] for ledger in ledgers)
        residual_norm = sum(report.residual_norm for report in reports) / len(reports)
        outcome = MetaStep(
            meta_step=number,
            path_length=sum(report.path.length for report in reports) / len(reports),
            energy=sum(report.path.energy for report in reports) / len(reports),
            meta_gradient_norm=made.mean_norm,
            task_norms=made.task_norms,
            update_norm=distance(made.initialization, before),
            lr=made.lr,
            tasks=reports,
            dropped=dropped,
            staleness=tuple(number - ledger.version for ledger in ledgers),
            duplicates=self._duplicates,
            stale=self._stale,
            cosines=cosines(by_game([ledger.task.name for ledger in ledgers]), totals),
            compression_error=residual_norm / max(made.mean_norm, TINY),
            checkpoint=_copied(self.checkpoint),
        )
        self._forget(batch)
        self._due, self._version = set(due(self.config, self.checkpoint)), self.checkpoint.meta_step
        return outcome


def _copied(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, initialization=copied(checkpoint.initialization))
