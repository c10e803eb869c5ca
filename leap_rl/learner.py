"""The Leap learner: increments in, the next shared initialization out.

Increments may arrive late, twice or in any order: each is applied once, in the order of its task, and the
tasks of a meta-batch are averaged in the order of their places. So the sums, and their rounding, depend on
nothing else. Which tasks a meta-step averages: batch_size of those that are done, the ones that started from the
oldest initialization first. In the synchronous schedule that is the meta-batch that was drawn for it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leap_rl.config import MetaConfig
from leap_rl.ledger import Ledger, TaskReport
from leap_rl.probes import Cosines, cosines
from leap_rl.types import Increment, LeapRLError, Place, Task, Tensors


class NonFiniteMetaGradientError(LeapRLError):
    """The mean meta-gradient holds a NaN or an infinity: stepping would destroy the initialization."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything the learner needs to go on: ``meta_step`` steps were taken."""

    meta_step: int
    initialization: Tensors  # name → float32 tensor
    optimizer: Tensors  # state of the meta-optimizer, name → tensor
    unfinished: tuple[Place, ...] = ()  # tasks drawn for earlier meta-steps that none has averaged yet


@dataclass(frozen=True)
class MetaStep:
    """What one meta-step did."""

    meta_step: int  # 0-based
    path_length: float  # mean over the tasks that were averaged
    energy: float
    meta_gradient_norm: float
    task_norms: tuple[float, ...]  # of the meta-gradient of each of ``tasks``, before it was scaled down
    update_norm: float  # ‖θ⁰ after − θ⁰ before‖
    lr: float
    tasks: tuple[TaskReport, ...]  # the newest report of each task that was averaged, in order of place
    dropped: tuple[tuple[Task, str], ...]  # tasks that failed, and why: left out of the mean
    staleness: tuple[int, ...]  # of each task: meta-steps that were taken while it ran
    duplicates: int  # increments that had been applied already
    stale: int  # increments of an attempt that had been given up
    cosines: Cosines  # between the games' meta-gradients
    compression_error: float  # at most this share of the meta-gradient was kept back by compression
    checkpoint: Checkpoint


class MetaLearner:
    """Holds the shared initialization, its meta-optimizer, and a ledger for each task under way.

    ``checkpoint`` is where it goes on from; ``min_tasks`` of a meta-batch must not fail.
    """

    def __init__(self, config: MetaConfig, checkpoint: Checkpoint, min_tasks: int = 1) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.meta_step = checkpoint.meta_step
        self._min_tasks = min_tasks
        self._parameters = {  # by name: a checkpoint that was loaded from a file has another order
            name: torch.nn.Parameter(value.clone()) for name, value in sorted(checkpoint.initialization.items())
        }
        self._optimizer = _make_optimizer(config, list(self._parameters.values()))
        _load_optimizer(self._optimizer, list(self._parameters), checkpoint.optimizer)
        self._due = set(due(config, checkpoint))
        self._ledgers: dict[Place, Ledger] = {}
        self._duplicates = self._stale = 0

    def initialization(self) -> Tensors:
        """The current shared initialization (a copy): name → float32 tensor."""
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    # ------------------------------------------------------------------------------------- receiving

    def adopt(self, theirs: Ledger) -> bool:
        """A worker takes up a task: what it knows of it is taken over where it is more than is known here.

        From now on older attempts are refused. False where the attempt itself is one, or the task is not due.
        """
        place = theirs.task.place
        ours = self._ledgers.get(place)
        if place not in self._due or (ours and (theirs.attempt < ours.attempt or ours.failed)):
            self._stale += 1
            return False
        if ours is None or theirs.version != ours.version or theirs.next_sequence > ours.next_sequence:
            self._ledgers[place] = ours = theirs.copy()
        ours.attempt = theirs.attempt
        return True

    def receive(self, increment: Increment) -> bool:
        """Applies an increment once and in turn. False where its sender should stop: another attempt has the
        task now, or nobody waits for it. What was received before is ignored and counted."""
        key, place = increment.key, increment.task.place
        if place not in self._due:
            self._stale += 1
            return False
        ledger = self._ledgers.setdefault(place, Ledger(increment.task, self.meta_step, key.attempt))
        if ledger.failed or key.attempt < ledger.attempt:
            self._stale += 1
            return False
        ledger.attempt = key.attempt
        if not ledger.receive(increment):
            self._duplicates += 1
        return True

    def drop(self, task: Task, reason: str) -> None:
        """Leaves a task out of its meta-batch."""
        self._ledgers.setdefault(task.place, Ledger(task, self.meta_step)).failed = reason

    def reports(self, seen: Mapping[Place, int]) -> list[TaskReport]:
        """A report for each segment after the first ``seen`` of its task."""
        return [
            report for place in sorted(self._ledgers) for report in self._ledgers[place].reports[seen.get(place, 0) :]
        ]

    def done(self) -> set[Place]:
        """Tasks that need no worker any more: received whole, or dropped."""
        return {place for place, ledger in self._ledgers.items() if ledger.done}

    # -------------------------------------------------------------------------------------- stepping

    def batch(self) -> list[Place] | None:
        """What a step would average: a batch's worth of the tasks that are done, those from the oldest initialization
        first. None where less is done, or a task under way would become too stale by a step. After the last meta-step
        (an evaluation's tasks) no step is to come: all that is due, or None until it is done."""
        oldest = self.meta_step - self.config.staleness
        waiting = any(not ledger.done and ledger.version <= oldest for ledger in self._ledgers.values())
        wanted = self.config.batch_size if self.meta_step < self.config.steps else len(self._due)
        done = sorted((ledger.version, place) for place, ledger in self._ledgers.items() if ledger.done)
        return None if waiting or len(done) < wanted else sorted(place for _, place in done[:wanted])

    def step(self, batch: Sequence[Place] | None = None) -> MetaStep:
        """Averages a batch's worth of tasks and steps the initialization against the mean meta-gradient.

        ``batch``: what :meth:`batch` said; more tasks may have ended since, whose reports nobody has read. By default
        what it says now. Failed tasks are left out of the mean. Raises LeapRLError where fewer than ``min_tasks`` are
        left, RuntimeError where the batch is not done, NonFiniteMetaGradientError (and keeps the initialization) where
        the mean is not finite.
        """
        batch = self.batch() if batch is None else batch
        if batch is None or not self.done().issuperset(batch):
            raise RuntimeError(f"step() before {self.config.batch_size} tasks are done")
        taken = [self._ledgers[place] for place in batch]
        dropped = tuple((ledger.task, ledger.failed) for ledger in taken if ledger.failed)
        ledgers = [ledger for ledger in taken if not ledger.failed]
        if len(ledgers) < self._min_tasks:
            reasons = "; ".join(f"{task.name}: {reason}" for task, reason in dropped)
            raise LeapRLError(
                f"meta-step {self.meta_step}: {len(dropped)} of {len(taken)} tasks failed, and "
                f"faults.min_tasks = {self._min_tasks} must not ({reasons})"
            )

        mean = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        counts = Counter(name for ledger in ledgers for name in ledger.total)  # a game's own heads are in its tasks'
        norms = [float(_norm({name: value.double() for name, value in ledger.total.items()})) for ledger in ledgers]
        limit = self.config.max_task_norm
        for ledger, task_norm in zip(ledgers, norms, strict=True):
            for name, value in ledger.total.items():
                # Where losses are large Δf ∇f is, by orders of magnitude: one game would be the whole mean.
                scaled = value if limit is None or task_norm <= limit else value * (limit / task_norm)
                mean[name] += scaled / counts[name]
        norm = _norm(mean)
        if not torch.isfinite(norm):
            raise NonFiniteMetaGradientError(
                f"meta-step {self.meta_step}: the meta-gradient is not finite; the initialization is kept"
            )

        before = self.initialization()
        lr = self._learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        for name, parameter in self._parameters.items():
            parameter.grad = mean[name]
        self._optimizer.step()
        self._optimizer.zero_grad()
        after = self.initialization()

        reports = tuple(ledger.reports[-1] for ledger in ledgers)
        shared = [{n: v for n, v in ledger.total.items() if counts[n] == len(ledgers)} for ledger in ledgers]
        self._due -= {ledger.task.place for ledger in taken}
        outcome = MetaStep(
            meta_step=self.meta_step,
            path_length=sum(report.path_length for report in reports) / len(reports),
            energy=sum(report.energy for report in reports) / len(reports),
            meta_gradient_norm=float(norm),
            task_norms=tuple(norms),
            update_norm=distance(after, before),
            lr=lr,
            tasks=reports,
            dropped=dropped,
            staleness=tuple(self.meta_step - ledger.version for ledger in ledgers),
            duplicates=self._duplicates,
            stale=self._stale,
            cosines=cosines([ledger.task.name for ledger in ledgers], shared),
            compression_error=sum(report.residual_norm for report in reports)
            / len(reports)
            / max(float(norm), torch.finfo(torch.float32).tiny),
            checkpoint=Checkpoint(
                self.meta_step + 1, after, _dump_optimizer(self._optimizer, list(before)), tuple(sorted(self._due))
            ),
        )
        self.meta_step += 1
        self._due = set(due(self.config, outcome.checkpoint))
        for ledger in taken:
            del self._ledgers[ledger.task.place]
        self._duplicates = self._stale = 0
        return outcome

    def _learning_rate(self) -> float:
        if self.config.lr_decay == "constant":
            return self.config.lr
        return self.config.lr * (1 - self.meta_step / self.config.steps)


def due(config: MetaConfig, checkpoint: Checkpoint) -> list[Place]:
    """Places of the tasks that may run at a checkpoint: what is unfinished, and what is drawn for this
    meta-step (asynchronous: and for the ``max_staleness`` after it)."""
    first = 0 if checkpoint.meta_step == 0 else config.staleness
    drawn = range(checkpoint.meta_step + first, min(checkpoint.meta_step + config.staleness + 1, config.steps))
    return sorted({*checkpoint.unfinished, *((m, slot) for m in drawn for slot in range(config.batch_size))})


def distance(a: Tensors, b: Tensors) -> float:
    """‖a − b‖ over all parameters."""
    return float(_norm({name: a[name] - b[name] for name in a}))


def _norm(tensors: Tensors) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(v) for _, v in sorted(tensors.items())])
    )
    return norm


def _make_optimizer(config: MetaConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, config.lr)
        case "nesterov":
            return torch.optim.SGD(parameters, config.lr, momentum=config.momentum, nesterov=True)
        case "adam":
            return torch.optim.Adam(parameters, config.lr)


def _dump_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """{index: {key: tensor}} as "parameter name|key" → tensor. (SGD without momentum has none.)"""
    return {
        f"{names[index]}|{key}": value.clone()
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
        if value is not None
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, names: list[str], dump: Tensors) -> None:
    state = optimizer.state_dict()
    for key, value in dump.items():
        name, _, entry = key.partition("|")
        state["state"].setdefault(names.index(name), {})[entry] = value.clone()
    optimizer.load_state_dict(state)
