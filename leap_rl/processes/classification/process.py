"""The inner loop of few-shot classification: gradient descent on one alphabet, walking the path that Leap shortens.

    batch of step i → loss → gradient → record the point for Leap → step of SGD;  at the end: score held-out drawings

The batch is a function of the task's seed and i, so the state between two steps is the parameters, the open path, a few
sums, and batch norm's running averages where there are any (network.py).
"""

import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leap_rl.files.tensor_files import below
from leap_rl.meta.rules import make_path, name_in_initialization, part_for
from leap_rl.processes.classification.config import ClassificationConfig
from leap_rl.processes.classification.data import Batch, held_out_batch, load_problem, training_batch
from leap_rl.processes.classification.maml import unrolled_gradient
from leap_rl.processes.classification.network import RunningStatistics, draw_parameters, logits, owner_of_heads
from leap_rl.tensors import norm_of
from leap_rl.types import Increment, PathSums, Task, TaskError, Tensors


@dataclass
class _Segment:
    """Sums over the segment in hand, float64."""

    loss: float = 0.0
    gradient_norm: float = 0.0
    correct: float = 0.0
    seconds: float = 0.0


class ClassificationProcess:
    """SGD on one alphabet; a ``LearningProcess``. Call :meth:`start` or :meth:`load_state`, then :meth:`walk`."""

    def __init__(self, config: ClassificationConfig, task: Task) -> None:
        torch.set_num_threads(1)
        head_seed, self.data_seed = np.random.SeedSequence(task.seed).generate_state(2, np.uint64).tolist()
        self.config, self.task = config, task
        self.device = torch.device(config.device)
        self.problem = load_problem(config.alphabets, task.name)
        self._head_seed = head_seed >> 1
        self.path = make_path(config.meta)
        self.num_updates = 0
        self.segment = _Segment()
        classifier = config.classifier
        self.running = RunningStatistics(classifier.filters).to(self.device) if classifier.norm == "running" else None

    def start(self, initialization: Tensors) -> None:
        """Starts the task: heads are drawn from its seed, and what is meta-learned is the initialization. Raises
        ValueError where the initialization does not fit."""
        drawn = draw_parameters(self.config, self._head_seed)
        self._take(drawn)
        chosen = part_for(self._meta_learned(drawn), initialization)
        self._take(drawn | {name: chosen[known_as] for name, known_as in self.names.items() if known_as in chosen})

    def _take(self, parameters: Tensors) -> None:
        """Makes copies of these the parameters, and the point where the task started."""
        owner = owner_of_heads(self.config, self.task.name)
        named = {name: name_in_initialization(self.config.meta, owner, name) for name in parameters}
        self.names = {name: known_as for name, known_as in named.items() if known_as is not None}
        # By name: the norm of a gradient is summed in this order, and a saved state has another than a fresh draw.
        self.parameters = {name: value.to(self.device, copy=True) for name, value in sorted(parameters.items())}
        self.first_point = {name: value.clone() for name, value in self.parameters.items()}  # θ⁰, for MAML

    # ---------------------------------------------------------------------------------------- the path

    def walk(self) -> Iterator[Increment]:
        """Trains to the end of the task, yielding one increment a segment. At each of them
        :meth:`state` holds everything needed to go on elsewhere. Raises TaskError where the path is not finite."""
        length, last_update = self.config.stream.segment_updates, self.config.num_updates
        while self.num_updates < last_update:
            self.update()
            if self.num_updates == last_update:
                self.path.finish(self._meta_learned(self.parameters))
            if self.path.failed:
                raise TaskError(f"{self.path.failed} at gradient step {self.num_updates}")
            if self.num_updates == last_update or self.num_updates % length == 0:
                yield self._cut_segment()

    def update(self) -> None:
        """One batch and one gradient step."""
        started = time.perf_counter()
        batch = self._batch(self.num_updates)
        leaves = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        outputs = logits(leaves, batch.images, self.config.classifier.pooling, self.running)
        loss = F.cross_entropy(outputs, batch.labels)
        found = torch.autograd.grad(loss, list(leaves.values()))
        gradients = {name: gradient.contiguous() for name, gradient in zip(leaves, found, strict=True)}
        self.path.record(loss, self._meta_learned(self.parameters), self._meta_learned(gradients))
        with torch.no_grad():
            for name, gradient in gradients.items():
                self.parameters[name].sub_(gradient, alpha=self.config.classifier.lr)
        self.num_updates += 1
        if self.path.paired:
            with torch.no_grad():
                after = self._loss(batch, self.parameters)
            self.path.land(self._meta_learned(self.parameters), after)

        self.segment.loss += float(loss.detach())
        self.segment.gradient_norm += norm_of(gradients)
        self.segment.correct += _num_correct(outputs, batch)
        self.segment.seconds += time.perf_counter() - started

    def _batch(self, step: int) -> Batch:
        size, sampling = self.config.classifier.batch_size, self.config.alphabets.sampling
        batch = training_batch(self.problem, size, self.data_seed, step, sampling)
        return Batch(batch.images.to(self.device), batch.labels.to(self.device))

    @torch.no_grad()
    def held_out_correct(self) -> tuple[int, int]:
        """How many of the held-out drawings are classified correctly now, and how many there are."""
        batch = held_out_batch(self.problem, self.data_seed)
        batch = Batch(batch.images.to(self.device), batch.labels.to(self.device))
        running, pooling = self.running, self.config.classifier.pooling
        outputs = logits(self.parameters, batch.images, pooling, running, training=running is None)
        return _num_correct(outputs, batch), len(batch.labels)

    def _loss(self, batch: Batch, parameters: Tensors) -> Tensor:
        """Returns the loss of a batch, which leaves no trace in the running averages."""
        return F.cross_entropy(logits(parameters, batch.images, self.config.classifier.pooling), batch.labels)

    def _unrolled_gradient(self) -> Tensors:
        """MAML's: of the last batch's loss, through the steps before it. The path is taken once more for it."""
        steps = range(self.config.num_updates)
        losses = [functools.partial(self._loss, self._batch(step)) for step in steps]
        gradient = unrolled_gradient(self.first_point, losses, self.config.classifier.lr)
        return {name: value.contiguous().cpu() for name, value in self._meta_learned(gradient).items()}

    def _meta_learned(self, values: Mapping[str, Tensor]) -> Tensors:
        """By their names in the initialization."""
        return {known_as: values[name] for name, known_as in self.names.items()}

    def _cut_segment(self) -> Increment:
        """The increment of the segment that ends here, and its statistics (sums; see docs/metrics.md)."""
        sums, path = self.segment, self.path
        updates = (self.num_updates - 1) % self.config.stream.segment_updates + 1
        last = self.num_updates == self.config.num_updates
        correct, num_held_out = self.held_out_correct() if last else (0, 0)
        measured = PathSums.of(path)
        meta_gradient = {name: value.cpu() for name, value in path.cut().items()}
        if last and self.config.meta.rule == "maml":
            started = time.perf_counter()
            meta_gradient = dict(self._unrolled_gradient())
            sums.seconds += time.perf_counter() - started
        increment = Increment(
            path=measured,
            last=last,
            meta_gradient=meta_gradient,
            statistics={
                "agent_steps": updates,
                "frames": updates * self.config.classifier.batch_size,
                "images": updates * self.config.classifier.batch_size,  # that were scored
                "seconds": sums.seconds,
                "loss_sum": sums.loss,
                "gradient_norm_sum": sums.gradient_norm,
                "correct": sums.correct,
                "held_out_correct": correct,
                "held_out_images": num_held_out,
            },
        )
        self.segment = _Segment()
        return increment

    # --------------------------------------------------------------------------------------- the state

    def learned(self) -> Tensors:
        """Returns copies of the present values of what is meta-learned, by name in the initialization."""
        return {name: value.detach().cpu().clone() for name, value in self._meta_learned(self.parameters).items()}

    def state(self) -> Tensors:
        """Returns the whole state at an increment, as one flat mapping of named tensors: parameters, the open end of
        the path, batch norm's running averages, and under MAML where the task started. Raises RuntimeError within a
        segment."""
        state = {f"parameters/{name}": value.clone() for name, value in self.parameters.items()}
        if self.config.meta.rule == "maml":
            state |= {f"start/{name}": value for name, value in self.first_point.items()}
        if self.running:
            state |= {f"running/{name}": value.clone() for name, value in self.running.values.items()}
        state |= {f"path/{name}": value for name, value in self.path.state().items()}
        return {name: value.cpu() for name, value in state.items()} | {"num_updates": torch.tensor(self.num_updates)}

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` was taken, to the same bits."""
        self._take(below(state, "parameters/"))
        for name, value in below(state, "start/").items():
            self.first_point[name].copy_(value)
        if self.running:
            for name, value in below(state, "running/").items():
                self.running.values[name].copy_(value)
        self.path.load_state({key: value.to(self.device) for key, value in below(state, "path/").items()})
        self.num_updates = int(state["num_updates"])


def _num_correct(outputs: Tensor, batch: Batch) -> int:
    return int((outputs.argmax(dim=1) == batch.labels).sum())
