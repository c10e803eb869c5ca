"""The Leap learner: increments in, the next shared initialization out.

Increments may arrive late, twice or in any order: each is applied once, in the order of its task, and the
tasks of a meta-batch are averaged in slot order. So the sums, and their rounding, depend on nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leap_rl.config import MetaConfig
from leap_rl.types import Increment, LeapRLError, Task, Tensors


class NonFiniteMetaGradientError(LeapRLError):
    """The mean meta-gradient holds a NaN or an infinity: stepping would destroy the initialization."""


@dataclass(frozen=True)
class TaskReport:
    """One task so far: sums over its path, and statistics by name (docs/metrics.md)."""

    task: Task
    path_length: float
    energy: float
    num_moves: int
    num_rises: int
    done: bool
    failed: str | None
    statistics: Mapping[str, float]
    segment: Mapping[str, float]  # statistics of the newest segment alone


@dataclass(frozen=True)
class Checkpoint:
    """Everything the learner needs to go on: ``meta_step`` steps were taken."""

    meta_step: int
    initialization: Tensors  # name → float32 tensor
    optimizer: Tensors  # state of the meta-optimizer, name → tensor


@dataclass(frozen=True)
class MetaStep:
    """What one meta-step did."""

    meta_step: int  # 0-based
    path_length: float  # mean over the tasks that were averaged
    energy: float
    meta_gradient_norm: float
    update_norm: float  # ‖θ⁰ after − θ⁰ before‖
    lr: float
    tasks: tuple[TaskReport, ...]  # in slot order, failed ones included
    refused: int  # increments that had been applied already, or belonged to another meta-step
    checkpoint: Checkpoint


@dataclass
class _Ledger:
    """What has been received of one task."""

    task: Task
    total: dict[str, Tensor] = field(default_factory=dict)
    next_sequence: int = 0
    early: dict[int, Increment] = field(default_factory=dict)  # arrived before their turn
    path_length: float = 0.0
    energy: float = 0.0
    num_moves: int = 0
    num_rises: int = 0
    done: bool = False
    failed: str | None = None
    statistics: Mapping[str, float] = field(default_factory=dict)
    segment: Mapping[str, float] = field(default_factory=dict)

    def apply(self, increment: Increment) -> None:
        self.next_sequence += 1
        for name, value in increment.meta_gradient.items():
            if name in self.total:
                self.total[name] += value
            else:
                self.total[name] = value.clone()
        self.path_length += increment.path_length
        self.energy += increment.energy
        self.num_moves += increment.num_moves
        self.num_rises += increment.num_rises
        self.done = increment.last
        self.failed = self.failed or increment.failed
        self.statistics = merge_statistics(self.statistics, increment.statistics)
        self.segment = increment.statistics

    def report(self) -> TaskReport:
        return TaskReport(
            self.task, self.path_length, self.energy, self.num_moves, self.num_rises, self.done, self.failed,
            self.statistics, self.segment,
        )  # fmt: skip


class MetaLearner:
    """Holds the shared initialization and its meta-optimizer.

    ``total_steps`` is the length of the run, which ``lr_decay: linear`` needs.
    """

    def __init__(self, config: MetaConfig, checkpoint: Checkpoint) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.meta_step = checkpoint.meta_step
        self._parameters = {  # by name: a checkpoint that was loaded from a file has another order
            name: torch.nn.Parameter(value.clone()) for name, value in sorted(checkpoint.initialization.items())
        }
        self._optimizer = _make_optimizer(config, list(self._parameters.values()))
        _load_optimizer(self._optimizer, list(self._parameters), checkpoint.optimizer)
        self._ledgers: dict[int, _Ledger] = {}
        self._refused = 0

    def initialization(self) -> Tensors:
        """The current shared initialization (a copy): name → float32 tensor."""
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def receive(self, increment: Increment) -> TaskReport | None:
        """Applies an increment once and in turn. Returns a report on its task, or None where the increment
        is refused (and counted): it belongs to another meta-step or was received before."""
        key = increment.key
        ledger = self._ledgers.get(key.slot) or _Ledger(increment.task)
        if key.meta_step != self.meta_step or key.sequence < ledger.next_sequence or key.sequence in ledger.early:
            self._refused += 1
            return None
        self._ledgers[key.slot] = ledger
        ledger.early[key.sequence] = increment
        while ledger.next_sequence in ledger.early:
            ledger.apply(ledger.early.pop(ledger.next_sequence))
        return ledger.report()

    def step(self) -> MetaStep:
        """Averages the meta-batch and steps the initialization against the mean meta-gradient.

        Failed tasks are left out of the mean. Raises LeapRLError where none is left, RuntimeError where a
        task is not done, NonFiniteMetaGradientError (and keeps the initialization) where the mean is not
        finite.
        """
        reports = tuple(self._ledgers[slot].report() for slot in sorted(self._ledgers))
        done = sum(report.done for report in reports)
        if done < self.config.batch_size:
            raise RuntimeError(f"step() before the meta-batch is done: {done} of {self.config.batch_size} tasks")
        ledgers = [self._ledgers[slot] for slot in sorted(self._ledgers) if not self._ledgers[slot].failed]
        if not ledgers:
            reasons = "; ".join(f"{report.task.name}: {report.failed}" for report in reports)
            raise LeapRLError(f"meta-step {self.meta_step}: every task failed ({reasons})")

        mean = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        for ledger in ledgers:
            for name, value in ledger.total.items():
                mean[name] += value / len(ledgers)
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

        outcome = MetaStep(
            meta_step=self.meta_step,
            path_length=sum(ledger.path_length for ledger in ledgers) / len(ledgers),
            energy=sum(ledger.energy for ledger in ledgers) / len(ledgers),
            meta_gradient_norm=float(norm),
            update_norm=distance(after, before),
            lr=lr,
            tasks=reports,
            refused=self._refused,
            checkpoint=Checkpoint(self.meta_step + 1, after, _dump_optimizer(self._optimizer, list(before))),
        )
        self.meta_step += 1
        self._ledgers = {}
        self._refused = 0
        return outcome

    def _learning_rate(self) -> float:
        if self.config.lr_decay == "constant":
            return self.config.lr
        return self.config.lr * (1 - self.meta_step / self.config.steps)


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


SUMMED_STATISTICS = frozenset({"agent_steps", "frames", "seconds", "episodes", "score_sum", "episode_length_sum"})


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
