"""The inner loop: advantage actor-critic on one Atari game, walking the path that Leap shortens.

    act for T steps in B environments → loss → backward → record the point for Leap → optimizer step

T is the unroll, B the number of environments. The forward passes that choose the actions are the ones that
are differentiated: the observations are seen once. One torch thread, so that the bits do not depend on how
many cores there are; further cores step environments.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leap_rl.config import Config
from leap_rl.leap import PathAccumulator
from leap_rl.processes.a2c.loss import A2CLoss, a2c_loss, n_step_returns
from leap_rl.processes.a2c.network import ActorCritic, meta_learned
from leap_rl.processes.atari import AtariVector, Step
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


class A2CProcess:
    """A2C on one task, from the shared initialization; a ``LearningProcess``."""

    def __init__(self, config: Config, task: Task, initialization: Tensors, attempt: int = 0) -> None:
        """Starts the task. Raises ValueError where the initialization does not fit what is meta-learned."""
        torch.set_num_threads(1)
        head_seed, action_seed, env_seed = np.random.SeedSequence(task.seed).generate_state(3, np.uint64).tolist()
        self.config, self.task, self.attempt = config, task, attempt
        agent = config.agent
        self.device = torch.device(config.device)
        game = parse_game(task.name)
        self.envs = AtariVector(game, agent.num_envs, config.env, env_seed, config.workers.cpus)
        self.network = ActorCritic(config, self.envs.num_actions)
        self.network.initialize(torch.Generator().manual_seed(head_seed >> 1))
        self.network.to(self.device)
        self.meta_learned = meta_learned(config, self.network)
        self._load_initialization(initialization)
        if agent.optimizer == "rmsprop":
            self.optimizer: torch.optim.Optimizer = torch.optim.RMSprop(
                self.network.parameters(), agent.lr, alpha=agent.rmsprop_decay, eps=agent.epsilon
            )
        else:
            self.optimizer = torch.optim.Adam(self.network.parameters(), agent.lr, eps=agent.epsilon)
        self.path = PathAccumulator(config.meta.metric, config.meta.use_loss, config.meta.stabilizer)
        self.actions_rng = torch.Generator().manual_seed(action_seed >> 1)
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
                self.path.finish(self.meta_learned)
            if self.path.failed:
                raise TaskError(f"{self.path.failed} at gradient step {self.num_updates}")
            if self.num_updates == last_update or self.num_updates % length == 0:
                yield self._cut_segment((self.num_updates - 1) // length)

    def update(self) -> A2CLoss:
        """One unroll and one gradient step."""
        started = time.perf_counter()
        agent = self.config.agent
        loss = self._unroll()
        self.optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        loss = A2CLoss(*(term.detach() for term in loss))

        gradients = {name: _gradient(parameter) for name, parameter in self.meta_learned.items()}
        self.path.record(loss.total, self.meta_learned, gradients)  # before clipping: the gradient of the loss

        parameters = list(self.network.parameters())
        if agent.max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(parameters, agent.max_grad_norm)
        else:
            norm = torch.nn.utils.get_total_norm([_gradient(parameter) for parameter in parameters])
        self.optimizer.step()
        self.num_updates += 1

        self.segment.loss += float(loss.total)
        self.segment.policy_loss += float(loss.policy)
        self.segment.value_loss += float(loss.value)
        self.segment.entropy += float(loss.entropy)
        self.segment.gradient_norm += float(norm)
        self.segment.seconds += time.perf_counter() - started
        return loss

    def _unroll(self) -> A2CLoss:
        """Acts for T steps and returns the loss of what came of it."""
        agent = self.config.agent
        observations = self._to_device(self.envs.observations)
        logits, values, actions, rewards, discounts = [], [], [], [], []
        for _ in range(agent.unroll):
            step_logits, step_values = self.network(observations)
            chosen = self._sample(step_logits)
            step = self.envs.step(chosen.numpy())
            step_rewards, step_discounts = self._targets(step)
            observations = self._to_device(step.observations)
            logits.append(step_logits)
            values.append(step_values)
            actions.append(chosen)
            rewards.append(step_rewards)
            discounts.append(step_discounts)
        with torch.no_grad():
            bootstrap = self.network(observations)[1]
        returns = n_step_returns(self._stack(rewards), self._stack(discounts), bootstrap)
        return a2c_loss(
            torch.stack(logits), torch.stack(values), self._stack(actions), returns,
            agent.value_cost, agent.entropy_cost,
        )  # fmt: skip

    def _targets(self, step: Step) -> tuple[Tensor, Tensor]:
        """Clipped rewards [B] and discounts [B]; counts the rewards and episodes of the segment.

        An episode that was cut by the frame limit did not end: the value of its last observation is added
        to its reward, and its discount is 0 since what the environment shows next is another game.
        """
        agent = self.config.agent
        rewards = torch.from_numpy(step.rewards.copy())
        if agent.reward_clip is not None:
            rewards = rewards.clamp(-agent.reward_clip, agent.reward_clip)
        self.segment.clipped_reward += float(rewards.sum())
        for episode in step.episodes:
            self.segment.episodes += 1
            self.segment.score += episode.score
            self.segment.episode_length += episode.length
        for env, observation in step.final_observations.items():
            with torch.no_grad():
                value = self.network(self._to_device(observation[None]))[1]
            rewards[env] += agent.discount * float(value)
        discounts = torch.from_numpy(~(step.terminated | step.truncated)).float() * agent.discount
        return rewards, discounts

    def _sample(self, logits: Tensor) -> Tensor:
        """Actions [B] (CPU) from the policy, by the Gumbel trick: argmax(logits + noise)."""
        noise = torch.empty(logits.shape).exponential_(generator=self.actions_rng).log_()
        return (logits.detach().cpu() - noise).argmax(dim=-1)

    def _to_device(self, observations: np.ndarray) -> Tensor:
        return torch.from_numpy(observations).to(self.device)

    def _stack(self, steps: list[Tensor]) -> Tensor:
        return torch.stack(steps).to(self.device)

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
            meta_gradient={name: value.cpu() for name, value in path.cut().items()},
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
        for index, values in self.optimizer.state_dict()["state"].items():
            state.update({f"optimizer/{index}/{name}": value.clone() for name, value in values.items()})
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
        chosen = {n: v for n, v in network.items() if config.meta.parameters == "all" or n.startswith("encoder.")}
        process = cls(config, task, chosen, attempt)
        process.network.load_state_dict(network)
        optimizer = process.optimizer.state_dict()
        optimizer["state"] = {}
        for key, value in state.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                optimizer["state"].setdefault(int(index), {})[name] = value.clone()
        process.optimizer.load_state_dict(optimizer)
        process.envs.load_state(below(state, "envs/"))
        process.path.load_state({key: value.to(process.device) for key, value in below(state, "path/").items()})
        process.actions_rng.set_state(state["actions_rng"])
        process.num_updates = int(state["num_updates"])
        process.segment = _Segment(*state["segment"].tolist())
        return process

    def _load_initialization(self, initialization: Tensors) -> None:
        expected = {name: tuple(parameter.shape) for name, parameter in self.meta_learned.items()}
        found = {name: tuple(value.shape) for name, value in initialization.items()}
        if expected != found:
            differing = sorted(set(expected.items()) ^ set(found.items()))
            raise ValueError(f"the initialization does not fit the network: {differing}")
        with torch.no_grad():
            for name, value in initialization.items():
                self.meta_learned[name].copy_(value)


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every parameter takes part in the loss"
    return parameter.grad
