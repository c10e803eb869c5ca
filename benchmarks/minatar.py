"""Compares agent steps per second on MinAtar: ours, Stable-Baselines3's A2C, and a loop as CleanRL writes it.

    pip install stable-baselines3==2.9.2
    python -m benchmarks.minatar --seconds 10 --rounds 3

All have the same environment, network, number of environments and unroll, and one thread; they run in turns. Speed is
per second of processor time, so that what else runs on the machine counts less. The output is one JSON line for each.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import gymnasium
import torch
from minatar.gym import register_envs
from torch import nn

from leap_rl.config_files import parse_config
from leap_rl.processes import initial_parameters, start_process
from leap_rl.types import Task

NUM_ENVS, UNROLL = 32, 5
Update = Callable[[], Any]  # takes one gradient step of NUM_ENVS × UNROLL agent steps


def layers(channels: int) -> nn.Sequential:
    """Returns MinAtar's network up to its heads."""
    flat = nn.Linear(16 * 8 * 8, 128)
    return nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten(), flat, nn.ReLU())


def ours(name: str) -> Update:
    """Returns the update of our process, Leap included."""
    config = parse_config({
        "process": "gymnasium", "run": {"dir": "unused"}, "backend": "serial", "tasks": {"environments": [name]},
        "meta": {"steps": 1, "batch_size": 1, "lr": 0.1}, "task": {"agent_steps": 10**9},
        "agent": {"lr": 1e-3, "num_envs": NUM_ENVS, "unroll": UNROLL, "max_grad_norm": 0.5},
    })  # fmt: skip
    process: Any = start_process(config, Task(0, 0, name, seed=0), initial_parameters(config, 0))
    update: Update = process.update
    return update


def stable_baselines3(name: str) -> Update:
    """Returns a rollout and an update of Stable-Baselines3's A2C."""
    from stable_baselines3 import A2C
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import DummyVecEnv

    class Features(BaseFeaturesExtractor):  # type: ignore[misc]
        def __init__(self, space: Any) -> None:
            super().__init__(space, features_dim=128)
            self.layers = layers(space.shape[2])

        def forward(self, images: torch.Tensor) -> Any:
            return self.layers(images.permute(0, 3, 1, 2).float())

    policy = {"features_extractor_class": Features, "net_arch": [], "normalize_images": False}
    envs = DummyVecEnv([lambda: gymnasium.make(name, disable_env_checker=True)] * NUM_ENVS)
    model = A2C("MlpPolicy", envs, n_steps=UNROLL, learning_rate=1e-3, policy_kwargs=policy, device="cpu")
    model.set_logger(Logger(None, []))
    _, callback = model._setup_learn(10**12, None)

    def update() -> None:
        model.collect_rollouts(model.env, callback, model.rollout_buffer, UNROLL)
        model.train()

    return update


def plain_loop(name: str) -> Update:
    """Returns an update as CleanRL's single files write it: autograd, torch's optimizer, Gymnasium's vector."""
    envs: Any = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make(name, disable_env_checker=True)] * NUM_ENVS)
    network = layers(envs.single_observation_space.shape[2])
    actor, critic = nn.Linear(128, int(envs.single_action_space.n)), nn.Linear(128, 1)
    parameters = [*network.parameters(), *actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.RMSprop(parameters, lr=1e-3, eps=1e-5)
    last = [envs.reset(seed=0)[0]]

    def see() -> torch.Tensor:
        features: torch.Tensor = network(torch.as_tensor(last[0]).permute(0, 3, 1, 2).float())
        return features

    def update() -> None:
        logs, entropies, values, rewards, discounts = [], [], [], [], []
        for _ in range(UNROLL):
            features = see()
            policy = torch.distributions.Categorical(logits=actor(features))
            action = policy.sample()  # type: ignore[no-untyped-call]
            last[0], reward, terminated, truncated, _ = envs.step(action.numpy())
            logs.append(policy.log_prob(action))  # type: ignore[no-untyped-call]
            entropies.append(policy.entropy())  # type: ignore[no-untyped-call]
            values.append(critic(features)[:, 0])
            rewards.append(torch.as_tensor(reward).float())
            discounts.append(0.99 * torch.as_tensor(~(terminated | truncated)).float())
        with torch.no_grad():
            following = critic(see())[:, 0]
        returns: list[torch.Tensor] = []
        for reward, discount in zip(reversed(rewards), reversed(discounts), strict=True):
            following = reward + discount * following
            returns.insert(0, following)
        advantages = torch.stack(returns) - torch.stack(values)
        policy_loss = -(advantages.detach() * torch.stack(logs)).mean()
        loss = policy_loss + 0.5 * advantages.square().mean() - 0.01 * torch.stack(entropies).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()

    return update


def rate(update: Update, seconds: float) -> float:
    """Returns agent steps per second of processor time."""
    started, number = time.process_time(), 0
    while time.process_time() < started + seconds:
        update()
        number += 1
    return number * NUM_ENVS * UNROLL / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="MinAtar/Breakout-v1")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    register_envs()
    updates = {make.__name__: make(options.game) for make in (ours, stable_baselines3, plain_loop)}
    rates: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(options.rounds):
        for name, update in updates.items():
            update()
            rates[name].append(rate(update, options.seconds))
    for name, found in rates.items():
        row = {"game": options.game, "system": name, "steps_per_cpu_second": round(median(found))}
        print(json.dumps(row | {"rounds": [round(value) for value in found]}))


if __name__ == "__main__":
    main()
