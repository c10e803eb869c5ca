"""Runs A2C over envpool, in one file in CleanRL's manner.

``benchmarks.peers`` runs it in a virtual environment of its own. It takes settings as JSON, and prints a JSON row of
agent_steps and seconds about every second, until it is stopped.
"""

import json
import sys
import time
from typing import Any

import envpool
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical


class Agent(nn.Module):
    """Implements the network of Mnih et al. 2013."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(4, 16, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 9 * 9, 256),
            nn.ReLU(),
        )
        self.actor, self.critic = nn.Linear(256, num_actions), nn.Linear(256, 1)

    def forward(self, observations: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        features = self.network(observations / 255.0)
        return Categorical(logits=self.actor(features)), self.critic(features).flatten()


def main(settings: dict[str, Any]) -> None:
    wanted, cores = settings["agent"], settings["cores"]
    num_envs, unroll = wanted["num_envs"], wanted["unroll"]
    torch.set_num_threads(cores)
    name = "".join(part.capitalize() for part in settings["game"].split("_"))
    envs = envpool.make(
        f"{name}-v5", env_type="gymnasium", num_envs=num_envs, num_threads=cores, seed=0, episodic_life=False,
        reward_clip=True, repeat_action_probability=0.0,
    )  # fmt: skip
    agent = Agent(envs.action_space.n)
    optimizer = torch.optim.RMSprop(agent.parameters(), lr=wanted["lr"], alpha=0.99, eps=1e-5)
    observation, done = torch.from_numpy(envs.reset()[0]), torch.zeros(num_envs)
    agent_steps, started, printed = 0, time.perf_counter(), 0.0
    while True:
        observations, actions, rewards, dones = [], [], [], []
        for _ in range(unroll):
            observations.append(observation)
            dones.append(done)
            with torch.no_grad():
                action = agent(observation)[0].sample()
            actions.append(action)
            following, reward, terminated, truncated, _ = envs.step(action.numpy())
            rewards.append(torch.from_numpy(reward.astype(np.float32)))
            observation, done = torch.from_numpy(following), torch.from_numpy(terminated | truncated).float()
        with torch.no_grad():
            following_return = agent(observation)[1]
        returns: list[torch.Tensor] = []
        following_done = done
        for t in reversed(range(unroll)):
            following_return = rewards[t] + 0.99 * (1 - following_done) * following_return
            following_done = dones[t]
            returns.insert(0, following_return)
        distribution, values = agent(torch.cat(observations))
        advantages = torch.cat(returns) - values
        policy_loss = -(advantages.detach() * distribution.log_prob(torch.cat(actions))).mean()
        loss = policy_loss + 0.5 * advantages.square().mean() - wanted["entropy_cost"] * distribution.entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
        agent_steps += num_envs * unroll
        if (seconds := time.perf_counter() - started) > printed + 1:
            print(json.dumps({"agent_steps": agent_steps, "seconds": seconds}), flush=True)
            printed = seconds


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
