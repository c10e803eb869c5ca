"""Trains an advantage actor-critic on one task: the inner loop, which walks the path that Leap shortens.

    act for T steps in B environments → loss and gradient → record the point for Leap → optimizer step

T is the unroll, B the number of environments. All parameters are views of one vector, and their gradients of another:
clipping, optimizer and Leap are a few operations on them. Torch uses one thread, so that the bits do not depend on the
number of cores; further cores only step environments.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from leap_rl.config import MetaConfig
from leap_rl.environments import Vector
from leap_rl.files.tensor_files import below
from leap_rl.meta.rules import HEADS, name_in_initialization, part_for
from leap_rl.processes.a2c.energy_path import PlainPath, path_of_vector
from leap_rl.processes.a2c.loss import A2CLoss
from leap_rl.processes.a2c.network import ActorCritic, flatten
from leap_rl.processes.a2c.optimizer import Optimizer
from leap_rl.processes.a2c.popart import PopArt
from leap_rl.processes.a2c.rollout import Actor
from leap_rl.processes.a2c.statistics import Sums
from leap_rl.processes.a2c.zero_shot import play
from leap_rl.processes.agents import ActorCriticConfig
from leap_rl.processes.memory import keep_freed_memory
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import Increment, PathSums, Task, TaskError, Tensors

C = TypeVar("C", bound=ActorCriticConfig)


class ActorCriticProcess(ABC, Generic[C]):
    """Trains one task with A2C, as a ``LearningProcess``. Call :meth:`start` or :meth:`load_state`, then :meth:`walk`.

    A subclass says which environments a task has, and which network plays in them.
    """

    def __init__(self, config: C, task: Task) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        head_seed, action_seed, env_seed = np.random.SeedSequence(task.seed).generate_state(3, np.uint64).tolist()
        self.config, self.task = config, task
        envs = self.make_envs(config.agent.num_envs, env_seed)
        self.network = self.make_network(envs.num_actions).to(config.device)
        dtype = self.network.encoder.compute_dtype
        self.actor = Actor(envs, config.agent, action_seed >> 1, config.device, dtype, self.background())
        self._head_seed = head_seed >> 1
        self.parameters = flatten(self.network)
        self.meta_learned = select_meta_learned(config.meta, self.heads_owner(), self.network)
        # They are the first of ``parameters``.
        self.num_meta_learned = sum(parameter.numel() for parameter in self.meta_learned.values())
        self._num_encoder = sum(parameter.numel() for parameter in self.network.encoder.parameters())
        self.optimizer: Optimizer | PopArt = Optimizer(self.parameters, config.agent)
        if config.agent.value_scale == "popart":
            self.optimizer = PopArt(self.optimizer, sum(value.numel() for value in self.network.value.parameters()))
        self.path = path_of_vector(config.meta, self.parameters, self.num_meta_learned)
        self.num_updates = 0
        self.sums = Sums()
        self._frames_before = 0  # frames that the task had seen when the segment began
        self._measured: dict[str, Any] = {}  # path sums and meta-gradient of a segment, from its end to its increment

    @abstractmethod
    def make_envs(self, num_envs: int, seed: int, zero_shot: bool = False) -> Vector:
        """Returns environments of the task; with ``zero_shot``, those of the play before any update."""

    @abstractmethod
    def make_network(self, num_actions: int) -> ActorCritic:
        """Returns the network; its parameters are not drawn yet."""

    @abstractmethod
    def heads_owner(self) -> str:
        """Returns the name under which the initialization has the task's heads; empty if all tasks share them."""

    def background(self) -> Sequence[int]:
        """Returns what is subtracted from each channel of the observations."""
        return ()

    def start(self, initialization: Tensors) -> None:
        """Starts the task: heads are drawn from its seed, and what is meta-learned is the initialization. Raises
        ValueError where the initialization does not fit."""
        chosen = part_for(self.meta_learned, initialization)
        self.network.initialize(torch.Generator().manual_seed(self._head_seed))
        with torch.no_grad():
            for name, value in chosen.items():
                self.meta_learned[name].copy_(value)

    # ---------------------------------------------------------------------------------------- the path

    def walk(self) -> Iterator[Increment]:
        """Trains to the end of the task, yielding one increment a segment. At each of them :meth:`state` holds
        everything needed to go on elsewhere. Raises TaskError where the path is not finite."""
        if self.task.zero_shot and self.num_updates == 0:
            policy = lambda seen: self.network(self.actor.see(seen))[0]  # noqa: E731
            scores = play(policy, partial(self.make_envs, zero_shot=True), self.task.seed)
            self.sums.zero_shot_episodes, self.sums.zero_shot_score = len(scores), sum(scores)
        while self.num_updates < self.config.num_updates:
            self.update()
            if self.path.failed:
                raise TaskError(f"{self.path.failed} at gradient step {self.num_updates}")
            if self._segment_ends():
                yield self._increment()

    def update(self) -> A2CLoss:
        """Takes one gradient step."""
        started = time.perf_counter()
        gradient = self.path.next_gradient()
        rollout = self.actor.unroll(self.network)
        if isinstance(self.optimizer, PopArt):
            rollout = self.optimizer.scaled(rollout)
        loss = self.network.loss_and_gradient(rollout, self.config.agent, out=gradient)
        if self.task.frozen:
            gradient[: self._num_encoder] = 0
        norm = self.optimizer.norm(gradient)
        self.num_updates += 1

        # Leap is given the gradient before clipping, but without the encoder's part where only the heads are trained.
        self.path.record(float(loss.total), norm)
        if self._segment_ends() and self.path.cut_before_step:
            self._cut()
        self.path.moved(self.optimizer.step(gradient, self._clip(norm)))
        if isinstance(self.path, PlainPath) and self.path.paired:
            self.path.land(float(self.network.loss_again(rollout, self.config.agent).total))
        if self.num_updates == self.config.num_updates:
            self.path.finish()
        if self._segment_ends() and not self.path.cut_before_step:
            self._cut()

        self.sums.add(loss, norm, rollout, time.perf_counter() - started)
        return loss

    def _segment_ends(self) -> bool:
        return self.num_updates == self.config.num_updates or self.num_updates % self.config.stream.segment_updates == 0

    def _clip(self, norm: float) -> float:
        limit = self.config.agent.max_grad_norm
        return limit / norm if limit is not None and norm > limit else 1.0

    def _cut(self) -> None:
        sums = PathSums.of(self.path)
        self._measured = {"path": sums, "meta_gradient": self._named(self.path.cut())}

    def _named(self, vector: Tensor) -> Tensors:
        """Returns a vector of all that is meta-learned by parameter: name → tensor of its own."""
        shapes = {name: parameter.shape for name, parameter in self.meta_learned.items()}
        values = torch.split(vector.cpu(), [shape.numel() for shape in shapes.values()])
        return {n: v.view(shape).clone() for (n, shape), v in zip(shapes.items(), values, strict=True)}

    def _increment(self) -> Increment:
        """Returns the increment of the segment that has just ended, with its statistics (docs/metrics.md)."""
        frames = self.actor.envs.num_frames
        statistics = self.sums.statistics() | {"frames": frames - self._frames_before}
        if self.task.zero_shot:
            statistics |= self.sums.zero_shot_statistics()
        self.sums, self._frames_before = Sums(), frames
        last = self.num_updates == self.config.num_updates
        return Increment(last=last, statistics=statistics, **self._measured)

    # --------------------------------------------------------------------------------------- the state

    def shift(self, change: Tensors) -> None:
        """Adds the initialization's change to what is meta-learned, and to the open end of the path: name → tensor."""
        moves = [change.get(n, torch.zeros_like(value)).flatten() for n, value in self.meta_learned.items()]
        vector = torch.cat(moves).to(self.parameters.device)
        with torch.no_grad():
            self.parameters[: self.num_meta_learned] += vector
        self.path.shift(vector)

    def learned(self) -> Tensors:
        """Returns copies of the present values of what is meta-learned, by name in the initialization."""
        return self._named(self.parameters[: self.num_meta_learned])

    def state(self) -> Tensors:
        """Returns the whole state at an increment, as one flat mapping of named tensors: parameters, optimizer, random
        streams, environments and the open end of the path; about 12 MB with 32 copies of an Atari game. Raises
        RuntimeError within a segment."""
        parts = {"optimizer": self.optimizer.state(), "actor": self.actor.state(), "path": self.path.state()}
        state = {f"network/{name}": value.clone() for name, value in self.network.state_dict().items()}
        state |= {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        state["num_updates"], state["frames_before"] = torch.tensor(self.num_updates), torch.tensor(self._frames_before)
        return {name: value.cpu() for name, value in state.items()}

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` was taken, to the same bits."""
        self.network.load_state_dict(dict(below(state, "network/")))
        self.optimizer.load_state(below(state, "optimizer/"))
        self.actor.load_state(below(state, "actor/"))
        self.path.load_state({key: value.to(self.config.device) for key, value in below(state, "path/").items()})
        self.num_updates, self._frames_before = int(state["num_updates"]), int(state["frames_before"])


def select_meta_learned(config: MetaConfig, owner: str, network: ActorCritic) -> dict[str, nn.Parameter]:
    """Returns the parameters that Leap sees, by their names in the initialization."""
    named = [(name_in_initialization(config, owner, n), parameter) for n, parameter in network.named_parameters()]
    return {name: parameter for name, parameter in named if name is not None}


def draw_initialization(config: MetaConfig, owners: Mapping[str, Callable[[], ActorCritic]], seed: int) -> Tensors:
    """Draws a shared initialization: name → float32 tensor of what is meta-learned.

    ``owners`` maps each owner of heads to a function that makes its network. The encoder depends only on the seed, and
    an owner's heads only on the seed and its name, whichever other owners there are.
    """
    torch.set_num_threads(1)  # a QR decomposition gives other bits with more
    found: dict[str, Tensor] = {}
    for owner, make_network in owners.items():
        if found and not any(name.startswith(HEADS) for name in found):
            break  # no parameter belongs to one owner, so the first network has them all
        network = make_network()
        network.initialize(torch.Generator().manual_seed(seed))
        if owner:
            heads = torch.Generator().manual_seed(derive_seed(seed, Purpose.HEADS, *owner.encode()))
            network.initialize(heads, heads_only=True)
        learned = select_meta_learned(config, owner, network)
        found = {name: parameter.detach().clone() for name, parameter in learned.items()} | found
    return found
