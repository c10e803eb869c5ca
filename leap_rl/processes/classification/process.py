"""Runs the inner loop of few-shot classification: gradient descent on one alphabet, walking the path that Leap
shortens.

    batch of step i → loss → gradient → record the point for Leap → step of SGD;  at the end: score held-out drawings

The batch is a function of the task's seed and i, so the state between two steps is the parameters, the open path, a few
sums, and batch norm's running averages where there are any (network.py). With ``alphabets.per_task`` a task has several
alphabets, each with a head of its own; its seed also shuffles whose batch is next.
"""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leap_rl.files.tensor_files import below
from leap_rl.meta.rules import HEADS, make_path, name_in_initialization, part_for
from leap_rl.processes.classification.config import ClassificationConfig
from leap_rl.processes.classification.course import Course, courses_of, turns_of
from leap_rl.processes.classification.data import Batch, held_out_batch, training_batches
from leap_rl.processes.classification.gradient import flattened, loss_and_gradient, named
from leap_rl.processes.classification.maml import unrolled_gradient
from leap_rl.processes.classification.network import NAMES, RunningStatistics, draw_parameters, logits, owner_of_heads
from leap_rl.processes.memory import keep_freed_memory
from leap_rl.types import Increment, PathSums, Task, TaskError, Tensors

AHEAD = 10  # batches that are made together
VECTOR = "meta-learned"  # name of all that is meta-learned, where it is one vector


@dataclass
class _Segment:
    """Sums over the segment in hand, float64."""

    loss: float = 0.0
    gradient_norm: float = 0.0
    correct: float = 0.0
    seconds: float = 0.0


class ClassificationProcess:
    """Runs SGD on one alphabet, or on several at once, as a ``LearningProcess``. Call :meth:`start` or
    :meth:`load_state`, then :meth:`walk`."""

    def __init__(self, config: ClassificationConfig, task: Task) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self.config, self.task = config, task
        self.device = torch.device(config.device)
        self.courses = courses_of(config, task)
        self.turns = turns_of(config, task)
        self._ahead: dict[int, list[Batch]] = {}  # the batches of the next few steps, by the first of them
        self.path = make_path(config.meta)
        self.num_updates = 0
        self.segment = _Segment()
        classifier = config.classifier
        self.running = RunningStatistics(classifier.filters).to(self.device) if classifier.norm == "running" else None

    def start(self, initialization: Tensors) -> None:
        """Starts the task: heads are drawn from its seed, and what is meta-learned is the initialization. Raises
        ValueError where the initialization does not fit."""
        drawn: dict[str, Tensor] = {}
        for course in self.courses:
            fresh = draw_parameters(self.config, course.head_seed)
            drawn |= {course.key(self.config, name): value for name, value in fresh.items()}
        self._take(drawn)
        chosen = part_for(self._meta_learned(drawn), initialization)
        self._take(drawn | {name: chosen[known_as] for name, known_as in self.names.items() if known_as in chosen})

    def _take(self, parameters: Tensors) -> None:
        """Makes copies of these the parameters, and the point where the task started."""
        # By name: the norm of a gradient is summed in this order, and a saved state has another than a fresh draw. So
        # what is meta-learned comes first: the encoder, or everything.
        ordered = dict(sorted(parameters.items()))
        owner, meta = owner_of_heads(self.config, self.task.name), self.config.meta
        known = {n: n if n.startswith(HEADS) else name_in_initialization(meta, owner, n) for n in ordered}
        self.names = {name: known_as for name, known_as in known.items() if known_as is not None}
        self._num_meta_learned = sum(ordered[name].numel() for name in self.names)
        self._vector = flattened(ordered).to(self.device)
        self._gradient = torch.zeros_like(self._vector)
        self._start = self._vector.clone()  # θ⁰, for MAML
        self.parameters, gradients = named(self._vector, ordered), named(self._gradient, ordered)
        self._seen = [self._of_course(course, self.parameters) for course in self.courses]
        self._gradients = [self._of_course(course, gradients) for course in self.courses]

    def _of_course(self, course: Course, values: Tensors) -> dict[str, Tensor]:
        """Returns those of the values that an alphabet's network has, by their names there."""
        return {name: values[course.key(self.config, name)] for name in NAMES}

    # ---------------------------------------------------------------------------------------- the path

    def walk(self) -> Iterator[Increment]:
        """Trains to the end of the task, yielding one increment a segment. At each of them
        :meth:`state` holds everything needed to go on elsewhere. Raises TaskError where the path is not finite."""
        length, last_update = self.config.stream.segment_updates, self.config.num_updates
        while self.num_updates < last_update:
            self.update()
            if self.num_updates == last_update:
                self.path.finish(self._point())
            if self.path.failed:
                raise TaskError(f"{self.path.failed} at gradient step {self.num_updates}")
            if self.num_updates == last_update or self.num_updates % length == 0:
                yield self._cut_segment()

    def update(self) -> None:
        """Takes one gradient step on one batch."""
        started = time.perf_counter()
        batch, course = self._batch(self.num_updates), int(self.turns[self.num_updates, 0])
        if len(self.courses) > 1:
            self._gradient.zero_()  # of the heads of other alphabets
        pooling = self.config.classifier.pooling
        loss, outputs = loss_and_gradient(self._seen[course], batch, pooling, self.running, self._gradients[course])
        self.path.record(loss, self._point(), {VECTOR: self._gradient[: self._num_meta_learned]})
        self._vector.sub_(self._gradient, alpha=self.config.classifier.lr)
        self.num_updates += 1
        if self.path.paired:
            with torch.no_grad():
                after = self._loss(batch, self._seen[course])
            self.path.land(self._point(), after)

        self.segment.loss += float(loss)
        self.segment.gradient_norm += float(torch.linalg.vector_norm(self._gradient))
        self.segment.correct += _num_correct(outputs, batch)
        self.segment.seconds += time.perf_counter() - started

    def _point(self) -> Tensors:
        """Returns what of the parameters is meta-learned, as the path records it: one vector is faster than many."""
        return {VECTOR: self._vector[: self._num_meta_learned]}

    def _batch(self, step: int) -> Batch:
        first = step - step % AHEAD
        if first not in self._ahead:
            turns = self.turns[first : first + AHEAD].tolist()
            places = [(self.courses[i].problem, self.courses[i].data_seed, number) for i, number in turns]
            size, sampling = self.config.classifier.batch_size, self.config.alphabets.sampling
            self._ahead = {first: training_batches(places, size, sampling)}
        batch = self._ahead[first][step - first]
        return Batch(batch.images.to(self.device), batch.labels.to(self.device))

    @torch.no_grad()
    def held_out_correct(self) -> tuple[int, int]:
        """Returns how many of the held-out drawings are classified correctly now, and how many there are."""
        correct = count = 0
        for course, parameters in zip(self.courses, self._seen, strict=True):
            batch = held_out_batch(course.problem, course.data_seed)
            batch = Batch(batch.images.to(self.device), batch.labels.to(self.device))
            running, pooling = self.running, self.config.classifier.pooling
            outputs = logits(parameters, batch.images, pooling, running, training=running is None)
            correct, count = correct + _num_correct(outputs, batch), count + len(batch.labels)
        return correct, count

    def _loss(self, batch: Batch, parameters: Tensors) -> Tensor:
        """Returns the loss of a batch, which leaves no trace in the running averages."""
        return F.cross_entropy(logits(parameters, batch.images, self.config.classifier.pooling), batch.labels)

    def _unrolled_gradient(self) -> dict[str, Tensor]:
        """Returns MAML's gradient: of the last batch's loss, through the steps before it. The path is taken once more
        for it."""
        steps = range(self.config.num_updates)
        losses = [functools.partial(self._loss, self._batch(step)) for step in steps]
        gradient = unrolled_gradient(named(self._start, self.parameters), losses, self.config.classifier.lr)
        return _copied(self._meta_learned(gradient))

    def _meta_learned(self, values: Tensors) -> dict[str, Tensor]:
        """Returns the values of what is meta-learned, by their names in the initialization."""
        return {known_as: values[name] for name, known_as in self.names.items()}

    def _cut_segment(self) -> Increment:
        """Returns the increment of the segment that ends here, with its statistics (sums; see docs/metrics.md)."""
        sums, path = self.segment, self.path
        updates = (self.num_updates - 1) % self.config.stream.segment_updates + 1
        last = self.num_updates == self.config.num_updates
        correct, num_held_out = self.held_out_correct() if last else (0, 0)
        measured = PathSums.of(path)
        meta_gradient = _copied(self._meta_learned(named(path.cut()[VECTOR], self.parameters)))
        if last and self.config.meta.rule == "maml":
            started = time.perf_counter()
            meta_gradient = self._unrolled_gradient()
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
        return _copied(self._meta_learned(self.parameters))

    def state(self) -> Tensors:
        """Returns the whole state at an increment, as one flat mapping of named tensors: parameters, the open end of
        the path, batch norm's running averages, and under MAML where the task started. Raises RuntimeError within a
        segment."""
        groups: dict[str, Tensors] = {"parameters": self.parameters, "path": self.path.state()}
        if self.config.meta.rule == "maml":
            groups["start"] = named(self._start, self.parameters)
        if self.running:
            groups["running"] = self.running.values
        state = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
        return _copied(state) | {"num_updates": torch.tensor(self.num_updates)}

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` was taken, to the same bits."""
        self._take(below(state, "parameters/"))
        for name, value in below(state, "start/").items():
            named(self._start, self.parameters)[name].copy_(value)
        if self.running:
            for name, value in below(state, "running/").items():
                self.running.values[name].copy_(value)
        self.path.load_state({key: value.to(self.device) for key, value in below(state, "path/").items()})
        self.num_updates = int(state["num_updates"])


def _copied(values: Tensors) -> dict[str, Tensor]:
    """Returns copies in main memory, which lie there in the order of their indices."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in values.items()
    }


def _num_correct(outputs: Tensor, batch: Batch) -> int:
    return int((outputs.argmax(dim=1) == batch.labels).sum())
