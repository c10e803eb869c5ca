"""Acts for T steps in B environments with a network's policy, and keeps what the loss needs to know of them.

The forward passes that choose the actions are the ones that are differentiated: the activations of all T + 1 passes
(the last one values what follows the unroll) are kept in one set of buffers, so that the network's gradient takes them
as one batch and no observation is seen twice.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leap_rl.environments import Step, Vector
from leap_rl.files.tensor_files import below
from leap_rl.processes.a2c.loss import n_step_returns
from leap_rl.processes.a2c.network import ActorCritic, Layers, Rollout
from leap_rl.processes.agents import AgentConfig
from leap_rl.types import Tensors

L = TypeVar("L", bound=Layers)


class Actor:
    """Plays in B environments. They and the random stream of its actions are all that it remembers.

    ``background`` is what is subtracted from each channel of images [B, C, H, W].
    """

    def __init__(
        self, envs: Vector, agent: AgentConfig, action_seed: int, device: str, dtype: torch.dtype,
        background: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.envs, self._agent, self._device, self._dtype = envs, agent, torch.device(device), dtype
        self._rng = torch.Generator().manual_seed(action_seed)
        self.center = self._find_center(background)
        self._passes: list[Layers] = []  # of the T acting passes and the last one, in one set of buffers

    @torch.no_grad()
    def unroll(self, network: ActorCritic) -> Rollout:
        """Takes T steps. The rollout's activations are valid until the next call."""
        num_steps, num_envs = self._agent.unroll, self._agent.num_envs
        weights = network.encoder.weights()
        if not self._passes:
            self._make_room(network, weights)
        *acting, last = self._passes
        actions, steps = [], []
        for activations, noise in zip(acting, self.draw_noise(), strict=True):
            self.see(self.envs.observations, activations.inputs)
            network.encoder.activations(activations.inputs, weights, out=activations)
            logits = network.policy(activations.features.float())
            chosen = (logits.cpu() - noise).argmax(dim=-1)
            actions.append(chosen)
            steps.append(self.envs.step(chosen.numpy()))
        self.see(self.envs.observations, last.inputs)
        network.encoder.activations(last.inputs, weights, out=last)

        all_logits, values = network.heads(self._all.features.float().view(num_steps + 1, num_envs, -1))
        rewards, discounts, clipped_reward = self.targets(steps, network)
        episodes = [episode for step in steps for episode in step.episodes]
        return Rollout(
            activations=self._whole,
            weights=weights,
            logits=all_logits[:-1],
            values=values[:-1],
            actions=torch.stack(actions).to(self._device),
            returns=n_step_returns(rewards, discounts, values[-1]),
            statistics={
                "clipped_reward_sum": clipped_reward,
                "episodes": len(episodes),
                "score_sum": sum(episode.score for episode in episodes),
                "episode_length_sum": sum(episode.length for episode in episodes),
            },
        )

    def draw_noise(self) -> Tensor:
        """Returns [T, B, A] (CPU): argmax(logits − noise) is drawn from the policy (the Gumbel trick)."""
        shape = (self._agent.unroll, self._agent.num_envs, self.envs.num_actions)
        return torch.empty(shape).exponential_(generator=self._rng).log_()

    @torch.no_grad()
    def targets(self, steps: list[Step], network: ActorCritic) -> tuple[Tensor, Tensor, float]:
        """Returns rewards [T, B], clipped, discounts [T, B], and the sum of the clipped rewards alone.

        An episode that was cut by a limit did not end: the value of its last observation is added
        to its reward, and its discount is 0 since what the environment shows next is another episode.
        """
        discount, limit = self._agent.discount, self._agent.reward_clip
        rewards = torch.from_numpy(np.stack([step.rewards for step in steps]))
        if limit is not None:
            rewards.clamp_(-limit, limit)
        clipped_reward = float(rewards.sum())
        for t, step in enumerate(steps):
            for env, observation in step.final_observations.items():
                value = network(self.see(observation[None]))[1]
                rewards[t, env] += discount * float(value)
        ended = np.stack([step.terminated | step.truncated for step in steps])
        discounts = torch.from_numpy(~ended).float() * discount
        return rewards.to(self._device), discounts.to(self._device), clipped_reward

    def see(self, observations: NDArray[Any], out: Tensor | None = None) -> Tensor:
        """Returns observations [B, …] as the network takes them: in its compute dtype, which holds pixels exactly."""
        seen = torch.from_numpy(observations)
        out = torch.empty_like(seen, dtype=self._dtype, device=self._device) if out is None else out
        out.copy_(seen)
        return out if self.center is None else out.sub_(self.center)

    def _find_center(self, channels: Sequence[int]) -> Tensor | None:
        """Returns what is subtracted from each observation, [1, C, H, W], or None where that is nothing."""
        if not any(channels):
            return None
        # A whole image in the layout of the observations: subtracting one number a channel is ten times slower.
        center = torch.tensor(channels).view(1, -1, 1, 1).expand(1, *self.envs.observations.shape[1:])
        center = center.contiguous(memory_format=torch.channels_last)
        return center.to(self._device, self._dtype)

    def _make_room(self, network: ActorCritic, weights: list[Tensor]) -> None:
        """Allocates the buffers of all T + 1 passes, [(T + 1)·B, …]; their shapes come from one pass over zeros."""
        num_steps, num_envs = self._agent.unroll, self._agent.num_envs
        shape = ((num_steps + 1) * num_envs, *self.envs.observations.shape[1:])
        self._all = network.encoder.activations(torch.zeros(shape, device=self._device), weights)
        self._whole = _like(self._all, (layer[:-num_envs] for layer in self._all))  # what is differentiated
        by_pass = zip(*(torch.split(layer, num_envs) for layer in self._all), strict=True)
        self._passes = [_like(self._all, layers) for layers in by_pass]

    def state(self) -> dict[str, Tensor]:
        """Returns environments and random stream, by name (copies)."""
        return {"rng": self._rng.get_state()} | {f"envs/{name}": value for name, value in self.envs.state().items()}

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` was taken."""
        self._rng.set_state(state["rng"])
        self.envs.load_state(below(state, "envs/"))


def draw_actions(logits: Tensor, generator: torch.Generator) -> NDArray[np.int64]:
    """Draws an action for each row of ``logits`` [B, A], with its probability in the policy (the Gumbel trick)."""
    noise = torch.empty(logits.shape).exponential_(generator=generator).log_()
    actions: NDArray[np.int64] = (logits.cpu() - noise).argmax(dim=-1).numpy()
    return actions


def _like(layers: L, values: Iterable[Tensor]) -> L:
    return type(layers)(*values)
