"""The inner loop: advantage actor-critic on one Atari game, walking the path that Leap shortens.

    act for T steps in B environments → loss → backward → record the point for Leap → optimizer step

T is the unroll, B the number of environments. The forward passes that choose the actions are the ones that
are differentiated, as one batch: the observations are seen once. All parameters are views of one vector, and
their gradients of another: clipping, optimizer and Leap are a few operations on them. One torch thread, so
that the bits do not depend on how many cores there are; further cores step environments.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from leap_rl.config import Config
from leap_rl.leap import HELD
from leap_rl.memory import keep_freed_memory
from leap_rl.processes.a2c.loss import A2CLoss, a2c_gradients, a2c_loss, n_step_returns
from leap_rl.processes.a2c.network import Activations, ActorCritic, flatten, meta_learned, split_like
from leap_rl.processes.a2c.optimizer import Optimizer
from leap_rl.processes.atari import AtariVector, Step, background
from leap_rl.rules import make_path, name_in_initialization, part_for
from leap_rl.tasks import parse_game
from leap_rl.tensor_files import below
from leap_rl.types import Increment, IncrementKey, Task, TaskError, Tensors


@dataclass
class _Segment:
    """Sums over the segment in hand, float64."""

    loss: float = 0.0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    entropy: float = 0.0
    gradient_norm: float = 0.0
    clipped_reward: float = 0.0
    episodes: float = 0.0
    score: float = 0.0
    episode_length: float = 0.0
    frames_before: float = 0.0  # of the task, when the segment began
    seconds: float = 0.0


class _Gradient(NamedTuple):
    """Where a gradient of all parameters is written: one vector, and views of it."""

    vector: Tensor  # [N]
    by_parameter: Tensors


class _Rollout(NamedTuple):
    """What an update has seen besides the observations, to take its loss once more after it."""

    actions: Tensor  # [T, B]
    returns: Tensor  # [T, B]
    values: Tensor  # [T, B], those it acted with


class A2CProcess:
    """A2C on one task, from the shared initialization; a ``LearningProcess``."""

    def __init__(self, config: Config, task: Task, initialization: Tensors, attempt: int = 0) -> None:
        """Starts the task. Raises ValueError where the initialization does not fit what is meta-learned."""
        torch.set_num_threads(1)
        keep_freed_memory()
        head_seed, action_seed, env_seed = np.random.SeedSequence(task.seed).generate_state(3, np.uint64).tolist()
        self.config, self.task, self.attempt = config, task, attempt
        agent = config.agent
        self.device = torch.device(config.device)
        game = parse_game(task.name)
        self.envs = AtariVector(game, agent.num_envs, config.env, env_seed, config.workers.cpus)
        self.network = ActorCritic(config, self.envs.num_actions)
        self.network.initialize(torch.Generator().manual_seed(head_seed >> 1))
        self.network.to(self.device)
        self.parameters = flatten(self.network)
        self.meta_learned = meta_learned(config, task, self.network)
        self.num_meta_learned = sum(parameter.numel() for parameter in self.meta_learned.values())
        self._load_initialization(initialization)
        self.optimizer = Optimizer(self.parameters, agent, self.num_meta_learned)
        self.point = self._meta_learned(self.parameters)  # a view: it follows the parameters
        # Leap still needs those of the last few updates: each has a row of its own, in turn.
        gradients = self.parameters.new_zeros(2 * HELD, len(self.parameters))
        self.gradients = [self._views_of(row) for row in gradients]
        self.stack = self._meta_learned(gradients)
        self.path = make_path(config.meta)
        self.center = self._find_center()
        encoder, images = self.network.encoder, self.envs.observations.shape[1:]
        # Of all passes of an unroll, [(T + 1)·B, …]: a pass over anything makes room for what they are to write.
        room = encoder.activations(
            torch.zeros(((agent.unroll + 1) * agent.num_envs, *images), device=self.device), encoder.weights()
        )
        self.unroll = Activations(*(layer[: agent.unroll * agent.num_envs] for layer in room))
        by_pass = zip(*(torch.split(layer, agent.num_envs) for layer in room), strict=True)
        self.passes = [Activations(*layers) for layers in by_pass]
        self.actions_rng = torch.Generator().manual_seed(action_seed >> 1)
        self.num_updates = 0
        self.segment = _Segment()

    # ---------------------------------------------------------------------------------------- the path

    def walk(self) -> Iterator[Increment]:
        """Trains to the end of the task, yielding one increment a segment. Between two increments
        :meth:`state` holds everything needed to go on elsewhere. Raises TaskError where the path is not finite."""
        last_update = self.config.num_updates
        while self.num_updates < last_update:
            self.update()
            if self.num_updates == last_update:
                self.path.finish(self.point)
            if self.path.failed:
                raise TaskError(f"{self.path.failed} at gradient step {self.num_updates}")
            if self._segment_ends():
                yield self._cut_segment((self.num_updates - 1) // self.config.stream.segment_updates)

    def _segment_ends(self) -> bool:
        return self.num_updates == self.config.num_updates or self.num_updates % self.config.stream.segment_updates == 0

    def update(self) -> A2CLoss:
        """One unroll and one gradient step."""
        started = time.perf_counter()
        agent = self.config.agent
        row = self.num_updates % len(self.gradients)
        gradient = self.gradients[row]
        loss, rollout = self._unroll(gradient.by_parameter)
        norm, total = float(torch.linalg.vector_norm(gradient.vector)), float(loss.total)
        self.num_updates += 1
        # Before clipping: Leap is given the gradient of the loss.
        self.path.record(total, self.point, self.stack, norm, row, keep_point=self._segment_ends())
        limit = agent.max_grad_norm
        scale = limit / norm if limit is not None and norm > limit else 1.0
        squared_move = self.optimizer.step(gradient.vector, scale)
        if self.path.takes_norms:
            self.path.moved(squared_move)
        if self.path.paired:
            self.path.land(self.point, self._loss_of(rollout))

        self.segment.loss += total
        self.segment.policy_loss += float(loss.policy)
        self.segment.value_loss += float(loss.value)
        self.segment.entropy += float(loss.entropy)
        self.segment.gradient_norm += norm
        self.segment.seconds += time.perf_counter() - started
        return loss

    @torch.no_grad()
    def _unroll(self, out: Tensors) -> tuple[A2CLoss, _Rollout]:
        """Acts for T steps; returns the loss of what came of it, and writes its gradient into ``out``, by parameter."""
        agent, network = self.config.agent, self.network
        weights = network.encoder.weights()
        actions, steps = [], []
        *acting, last = self.passes
        for activations, noise in zip(acting, self._draw_noise(), strict=True):
            inputs = self._see(self.envs.observations, out=activations.inputs)
            network.encoder.activations(inputs, weights, out=activations)
            logits = network.policy(activations.features.float())
            chosen = (logits.cpu() - noise).argmax(dim=-1)
            actions.append(chosen)
            steps.append(self.envs.step(chosen.numpy()))
        network.encoder.activations(self._see(self.envs.observations, out=last.inputs), weights, out=last)
        bootstrap = network.value(last.features.float()).squeeze(-1)
        returns = n_step_returns(*self._targets(steps), bootstrap)

        features = self.unroll.features.float().view(agent.unroll, agent.num_envs, -1)
        logits, values = network.heads(features)
        rollout = _Rollout(torch.stack(actions).to(self.device), returns, values)
        loss = self._loss(logits, values, rollout)
        of_outputs = a2c_gradients(logits, values, rollout.actions, returns, agent.value_cost, agent.entropy_cost)
        of_features, of_heads = network.head_gradients(features, *of_outputs)
        of_encoder = network.encoder.gradients(self.unroll, weights, of_features, out=out["encoder.linear.weight"])
        for part, gradient in zip(out.values(), [*of_encoder, *of_heads], strict=True):
            part.copy_(gradient)
        return loss, rollout

    def _loss(self, logits: Tensor, values: Tensor, rollout: _Rollout) -> A2CLoss:
        """``logits`` [T, B, A], ``values`` [T, B] of a rollout."""
        agent = self.config.agent
        return a2c_loss(
            logits, values, rollout.actions, rollout.returns, agent.value_cost, agent.entropy_cost, rollout.values
        )

    @torch.no_grad()
    def _loss_of(self, rollout: _Rollout) -> Tensor:
        """The loss of the newest rollout at the present parameters, its returns and advantages held as they were: the
        function whose gradient the update took. Forward passes are those of acting, so that equal parameters
        give equal bits."""
        encoder = self.network.encoder
        weights = encoder.weights()
        features = torch.stack([encoder.activations(acting.inputs, weights).features for acting in self.passes[:-1]])
        return self._loss(*self.network.heads(features.float()), rollout).total

    @torch.no_grad()
    def _targets(self, steps: list[Step]) -> tuple[Tensor, Tensor]:
        """Clipped rewards [T, B] and discounts [T, B]; counts the rewards and episodes of the segment.

        An episode that was cut by the frame limit did not end: the value of its last observation is added
        to its reward, and its discount is 0 since what the environment shows next is another game.
        """
        agent = self.config.agent
        rewards = torch.from_numpy(np.stack([step.rewards for step in steps]))
        if agent.reward_clip is not None:
            rewards.clamp_(-agent.reward_clip, agent.reward_clip)
        self.segment.clipped_reward += float(rewards.sum())
        for t, step in enumerate(steps):
            for episode in step.episodes:
                self.segment.episodes += 1
                self.segment.score += episode.score
                self.segment.episode_length += episode.length
            for env, observation in step.final_observations.items():
                value = self.network(self._see(observation[None]))[1]
                rewards[t, env] += agent.discount * float(value)
        ended = np.stack([step.terminated | step.truncated for step in steps])
        discounts = torch.from_numpy(~ended).float() * agent.discount
        return rewards.to(self.device), discounts.to(self.device)

    def _draw_noise(self) -> Tensor:
        """[T, B, A] (CPU): argmax(logits − noise) is drawn from the policy (the Gumbel trick)."""
        shape = (self.config.agent.unroll, self.config.agent.num_envs, self.envs.num_actions)
        return torch.empty(shape).exponential_(generator=self.actions_rng).log_()

    def _views_of(self, vector: Tensor) -> _Gradient:
        names = [name for name, _ in self.network.named_parameters()]
        return _Gradient(vector, dict(zip(names, split_like(vector, self.network), strict=True)))

    def _meta_learned(self, vectors: Tensor) -> Tensors:
        """What Leap sees of vectors [..., N] of all parameters: they come first."""
        return {"parameters": vectors[..., : self.num_meta_learned]}

    def _named(self, vector: Tensor) -> Tensors:
        """What is meta-learned split by parameter: name → tensor of its own."""
        shapes = {name: parameter.shape for name, parameter in self.meta_learned.items()}
        values = torch.split(vector.cpu(), [shape.numel() for shape in shapes.values()])
        return {n: v.view(shape).clone() for (n, shape), v in zip(shapes.items(), values, strict=True)}

    def _see(self, observations: np.ndarray, out: Tensor | None = None) -> Tensor:
        """uint8 [B, C, H, W] → what the network is given, in the compute dtype, which holds it exactly."""
        seen = torch.from_numpy(observations)
        if out is None:
            out = torch.empty_like(seen, dtype=self.network.encoder.compute_dtype, device=self.device)
        elif self.center is not None and out.dtype == torch.float32 and out.is_cpu:
            # The images of an unroll are laid out alike, channels last; one that stands alone may not be.
            rows = (images.permute(0, 2, 3, 1).view(len(images), -1) for images in (seen, self.center, out))
            _subtract(*(images.numpy() for images in rows))
            return out
        if self.center is None:
            return out.copy_(seen)
        return out.copy_(seen).sub_(self.center)

    def _find_center(self) -> Tensor | None:
        """[1, C, H, W]: what is subtracted from each observation; None where nothing is. A background far from zero is
        an offset common to all weights of the first layer, with which Pong (87 of 255) is learned far more slowly."""
        channels = background(self.task.name, self.config.env)
        if not any(channels):
            return None
        # A whole image in the layout of the observations: subtracting one number a channel is ten times slower.
        center = torch.tensor(channels).view(1, -1, 1, 1).expand(1, *self.envs.observations.shape[1:])
        center = center.contiguous(memory_format=torch.channels_last)
        return center.to(self.device, self.network.encoder.compute_dtype)

    def _cut_segment(self, sequence: int) -> Increment:
        """The increment of the segment that ends here, and its statistics (means; see docs/metrics.md)."""
        sums, agent = self.segment, self.config.agent
        updates = self.num_updates - sequence * self.config.stream.segment_updates
        agent_steps = updates * agent.num_envs * agent.unroll
        statistics = {
            "agent_steps": agent_steps,
            "frames": self.envs.num_frames - sums.frames_before,
            "seconds": sums.seconds,
            "loss": sums.loss / updates,
            "policy_loss": sums.policy_loss / updates,
            "value_loss": sums.value_loss / updates,
            "entropy": sums.entropy / updates,
            "gradient_norm": sums.gradient_norm / updates,
            "clipped_reward": sums.clipped_reward / agent_steps,
            "episodes": sums.episodes,
            "score_sum": sums.score,
            "episode_length_sum": sums.episode_length,
        }
        path = self.path
        increment = Increment(
            key=IncrementKey(self.task.meta_step, self.task.slot, sequence, self.attempt),
            task=self.task,
            path_length=path.path_length,
            energy=path.energy,
            num_moves=path.num_moves,
            num_rises=path.num_rises,
            last=self.num_updates == self.config.num_updates,
            meta_gradient=self._named(path.cut()["parameters"]),
            statistics=statistics,
        )
        self.segment = _Segment(frames_before=self.envs.num_frames)
        return increment

    # --------------------------------------------------------------------------------------- the state

    def state(self) -> Tensors:
        """The whole state between two gradient steps, as one flat mapping of named tensors.

        Parameters, optimizer, random streams, emulators, frame stacks, episode statistics and the open
        path: about 12 MB with 32 environments.
        """
        state = {f"network/{name}": value.clone() for name, value in self.network.state_dict().items()}
        state.update({f"optimizer/{name}": value for name, value in self.optimizer.state().items()})
        state.update({f"envs/{name}": value for name, value in self.envs.state().items()})
        state.update({f"path/{name}": value for name, value in self.path.state().items()})
        state["actions_rng"] = self.actions_rng.get_state()
        state["num_updates"] = torch.tensor(self.num_updates)
        state["segment"] = torch.tensor(list(vars(self.segment).values()), dtype=torch.float64)
        return {name: value.cpu() for name, value in state.items()}

    @classmethod
    def from_state(cls, config: Config, task: Task, state: Tensors, attempt: int = 0) -> "A2CProcess":
        """A process that goes on from ``state`` to the same bits as the one it was taken of."""
        names = [name.removeprefix("network/") for name in state if name.startswith("network/")]
        network = {name: state[f"network/{name}"] for name in names}
        named = [(name_in_initialization(config.meta, task, name), value) for name, value in network.items()]
        process = cls(config, task, {name: value for name, value in named if name is not None}, attempt)
        process.network.load_state_dict(network)
        process.optimizer.load_state(below(state, "optimizer/"))
        process.envs.load_state(below(state, "envs/"))
        process.path.load_state({key: value.to(process.device) for key, value in below(state, "path/").items()})
        process.actions_rng.set_state(state["actions_rng"])
        process.num_updates = int(state["num_updates"])
        process.segment = _Segment(*state["segment"].tolist())
        return process

    def _load_initialization(self, initialization: Tensors) -> None:
        with torch.no_grad():
            for name, value in part_for(self.meta_learned, initialization).items():
                self.meta_learned[name].copy_(value)


@njit
def _subtract(images, center, out):  # type: ignore[no-untyped-def]
    """uint8 [B, N] − float32 [1, N] → float32 [B, N]. Converts as it subtracts: torch goes through all of it twice, and
    it is larger than the cache."""
    for image in range(len(images)):
        for i in range(center.shape[1]):
            out[image, i] = images[image, i] - center[0, i]
