"""Your own PyTorch loop over an environment of Gymnasium's: REINFORCE on CartPole, each task with another pole.

leap-rl train policy_gradient.yaml
leap-rl evaluate runs/policy_gradient process=policy_gradient:PROCESS
"""

from collections.abc import Mapping

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from leap_rl.config import Config, PositiveFloat
from leap_rl.measures import Measures
from leap_rl.processes import ProcessType
from leap_rl.processes.loop import TrainingLoop
from leap_rl.types import Parts, Task, Tensors


class PoleConfig(Config):
    lr: PositiveFloat = 0.01


def new_network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))


class Pole(TrainingLoop[PoleConfig]):
    """An episode a gradient step. Every episode is reset with a seed of its own: nothing else has to be saved."""

    def setup(self) -> None:
        self.network = new_network()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.config.lr)
        self.env = gymnasium.make("CartPole-v1", max_episode_steps=200)
        half_length = float(self.task.name)
        self.env.unwrapped.length = half_length  # type: ignore[attr-defined]
        self.env.unwrapped.polemass_length = 0.1 * half_length  # type: ignore[attr-defined]

    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        seed = np.random.SeedSequence([self.task.seed, step]).generate_state(1)[0]
        actions = torch.Generator().manual_seed(int(seed))
        seen, _ = self.env.reset(seed=int(seed))
        logs: list[Tensor] = []
        rewards: list[float] = []
        ended = False
        while not ended:
            policy = torch.log_softmax(self.network(torch.from_numpy(seen)), -1)
            action = int(torch.multinomial(policy.exp(), 1, generator=actions))
            seen, reward, terminated, truncated, _ = self.env.step(action)
            logs.append(policy[action])
            rewards.append(float(reward))
            ended = terminated or truncated
        returns = torch.tensor(rewards).flip(0).cumsum(0).flip(0)
        returns = (returns - returns.mean()) / (returns.std() + 1e-6)
        loss = -(torch.stack(logs) * returns).sum()
        counts = {"agent_steps": 1, "frames": len(rewards), "episodes": 1, "score_sum": sum(rewards)}
        return loss, counts


class Poles(ProcessType[PoleConfig]):
    config = PoleConfig
    measures = Measures(
        task="pole", tasks="poles", step="episodes", frame="steps", score="episodic_return", score_text="return",
        counts=("score_sum", "episodes"), digits=1, paired="starts and action noise",
        final_text="mean return over the last tenth of training", means={"loss": ("loss_sum", "updates")},
    )  # fmt: skip

    def parts(self, config: PoleConfig) -> Parts:
        lengths = [f"{length:.2f}" for length in np.linspace(0.1, 2.0, 24)]
        return Parts(lengths[1::2], lengths[2::8], lengths[4::8])

    def parse(self, config: PoleConfig, text: str) -> list[str]:
        return [f"{float(text):.2f}"]

    def initial_parameters(self, config: PoleConfig, seed: int) -> Tensors:
        torch.manual_seed(seed)
        return {name: value.detach() for name, value in new_network().named_parameters()}

    def build(self, config: PoleConfig, task: Task) -> Pole:
        return Pole(config, task)


PROCESS = Poles()
