"""The inner loop of few-shot classification: gradient descent on one alphabet, walking the path that Leap shortens.

    batch of step i → loss → gradient → record the point for Leap → step of SGD;  at the end: score held-out drawings

The batch is a function of the task's seed and i, and batch norm has no memory (network.py), so the state between two
steps is the parameters, the open path and a few sums.
"""

import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leap_rl.config import Config
from leap_rl.processes.classification.data import Batch, held_out_batch, load_problem, training_batch
from leap_rl.processes.classification.maml import unrolled_gradient
from leap_rl.processes.classification.network import draw_parameters, logits
from leap_rl.rules import make_path, name_in_initialization, part_for
from leap_rl.tensor_files import below
from leap_rl.types import Increment, IncrementKey, Task, TaskError, Tensors


@dataclass
class _Segment:
    """Sums over the segment in hand, float64."""

    loss: float = 0.0
    gradient_norm: float = 0.0
    correct: float = 0.0
    seconds: float = 0.0


class ClassificationProcess:
    """SGD on one alphabet, from the shared initialization; a ``LearningProcess``."""

    def __init__(self, config: Config, task: Task, initialization: Tensors, attempt: int = 0) -> None:
        """Starts the task. Raises ValueError where the initialization does not fit what is meta-learned."""
        torch.set_num_threads(1)
        head_seed, self.data_seed = np.random.SeedSequence(task.seed).generate_state(2, np.uint64).tolist()
        self.config, self.task, self.attempt = config, task, attempt
        self.device = torch.device(config.device)
        self.problem = load_problem(config.alphabets, task.name)
        drawn = draw_parameters(config, head_seed >> 1)
        named = [(name, name_in_initialization(config.meta, task, name)) for name in drawn]
        self.names = {name: known_as for name, known_as in named if known_as is not None}  # in the initialization
        chosen = part_for(self._meta_learned(drawn), initialization)
        given = {name: chosen[known_as] for name, known_as in self.names.items()}
        self.parameters = {name: value.to(self.device, copy=True) for name, value in (drawn | given).items()}
        self.start = {name: value.clone() for name, value in self.parameters.items()}  # θ⁰, for MAML
        self.path = make_path(config.meta)
        self.num_updates = 0
        self.segment = _Segment()

    # ---------------------------------------------------------------------------------------- the path

    def walk(self) -> Iterator[Increment]:
        """Trains to the end of the task, yielding one increment a segment. Between two increments
        :meth:`state` holds everything needed to go on elsewhere. Raises TaskError where the path is not finite."""
        length, last_update = self.config.stream.segment_updates, self.config.num_updates
        while self.num_updates < last_update:
            self.update()
            if self.num_updates == last_update:
                self.path.finish(self._meta_learned(self.parameters))
            if self.path.failed:
                raise TaskError(f"{self.path.failed} at gradient step {self.num_updates}")
            if self.num_updates == last_update or self.num_updates % length == 0:
                yield self._cut_segment((self.num_updates - 1) // length)

    def update(self) -> None:
        """One batch and one gradient step."""
        started = time.perf_counter()
        batch = self._batch(self.num_updates)
        leaves = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        outputs = logits(leaves, batch.images)
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
                after = F.cross_entropy(logits(self.parameters, batch.images), batch.labels)
            self.path.land(self._meta_learned(self.parameters), after)

        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients.values()])
        self.segment.loss += float(loss.detach())
        self.segment.gradient_norm += float(torch.linalg.vector_norm(norms))
        self.segment.correct += _num_correct(outputs, batch)
        self.segment.seconds += time.perf_counter() - started

    def _batch(self, step: int) -> Batch:
        batch = training_batch(self.problem, self.config.classifier.batch_size, self.data_seed, step)
        return Batch(batch.images.to(self.device), batch.labels.to(self.device))

    @torch.no_grad()
    def held_out_correct(self) -> tuple[int, int]:
        """How many of the held-out drawings are classified correctly now, and how many there are."""
        batch = held_out_batch(self.problem, self.data_seed)
        batch = Batch(batch.images.to(self.device), batch.labels.to(self.device))
        return _num_correct(logits(self.parameters, batch.images), batch), len(batch.labels)

    def _unrolled_gradient(self) -> Tensors:
        """MAML's: of the last batch's loss, through the steps before it. The path is taken once more for it."""
        steps = range(self.config.num_updates)
        losses = [functools.partial(_loss, self._batch(step)) for step in steps]
        gradient = unrolled_gradient(self.start, losses, self.config.classifier.lr)
        return {name: value.contiguous().cpu() for name, value in self._meta_learned(gradient).items()}

    def _meta_learned(self, values: Mapping[str, Tensor]) -> Tensors:
        """By their names in the initialization."""
        return {known_as: values[name] for name, known_as in self.names.items()}

    def _cut_segment(self, sequence: int) -> Increment:
        """The increment of the segment that ends here, and its statistics (means; see docs/metrics.md)."""
        sums, path = self.segment, self.path
        updates = self.num_updates - sequence * self.config.stream.segment_updates
        last = self.num_updates == self.config.num_updates
        correct, num_held_out = self.held_out_correct() if last else (0, 0)
        path_length, energy, num_moves, num_rises = path.path_length, path.energy, path.num_moves, path.num_rises
        meta_gradient = {name: value.cpu() for name, value in path.cut().items()}
        if last and self.config.meta.rule == "maml":
            started = time.perf_counter()
            meta_gradient = dict(self._unrolled_gradient())
            sums.seconds += time.perf_counter() - started
        increment = Increment(
            key=IncrementKey(self.task.meta_step, self.task.slot, sequence, self.attempt),
            task=self.task,
            path_length=path_length,
            energy=energy,
            num_moves=num_moves,
            num_rises=num_rises,
            last=last,
            meta_gradient=meta_gradient,
            statistics={
                "agent_steps": updates,
                "frames": updates * self.config.classifier.batch_size,
                "images": updates * self.config.classifier.batch_size,  # that were scored
                "seconds": sums.seconds,
                "loss": sums.loss / updates,
                "gradient_norm": sums.gradient_norm / updates,
                "correct": sums.correct,
                "held_out_correct": correct,
                "held_out_images": num_held_out,
            },
        )
        self.segment = _Segment()
        return increment

    # --------------------------------------------------------------------------------------- the state

    def state(self) -> Tensors:
        """The whole state between two gradient steps, as one flat mapping of named tensors: parameters, open path,
        sums of the segment; under MAML also where the task started."""
        state = {f"parameters/{name}": value.clone() for name, value in self.parameters.items()}
        if self.config.meta.rule == "maml":
            state |= {f"start/{name}": value for name, value in self.start.items()}
        state.update({f"path/{name}": value for name, value in self.path.state().items()})
        state["num_updates"] = torch.tensor(self.num_updates)
        state["segment"] = torch.tensor(list(vars(self.segment).values()), dtype=torch.float64)
        return {name: value.cpu() for name, value in state.items()}

    @classmethod
    def from_state(cls, config: Config, task: Task, state: Tensors, attempt: int = 0) -> "ClassificationProcess":
        """A process that goes on from ``state`` to the same bits as the one it was taken of."""
        parameters = below(state, "parameters/")
        named = [(name_in_initialization(config.meta, task, name), value) for name, value in parameters.items()]
        process = cls(config, task, {name: value for name, value in named if name is not None}, attempt)
        for name, value in parameters.items():
            process.parameters[name].copy_(value)
        for name, value in below(state, "start/").items():
            process.start[name].copy_(value)
        process.path.load_state({key: value.to(process.device) for key, value in below(state, "path/").items()})
        process.num_updates = int(state["num_updates"])
        process.segment = _Segment(*state["segment"].tolist())
        return process


def _loss(batch: Batch, parameters: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(logits(parameters, batch.images), batch.labels)


def _num_correct(outputs: Tensor, batch: Batch) -> int:
    return int((outputs.argmax(dim=1) == batch.labels).sum())
