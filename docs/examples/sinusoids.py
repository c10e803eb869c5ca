"""Sinusoid regression (Finn et al. 2017, section 5.1) as a learning process of your own. In this folder:

leap-rl train sinusoids.yaml
leap-rl evaluate runs/sinusoids process=sinusoids:PROCESS
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from leap_rl.config import Config
from leap_rl.measures import Measures
from leap_rl.processes import ProcessType
from leap_rl.processes.loop import TrainingLoop
from leap_rl.types import Parts, Task, Tensors


def new_network() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


class Sinusoid(TrainingLoop[Config]):
    def setup(self) -> None:
        self.network = new_network()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01)
        amplitude, phase = torch.rand(2, generator=torch.Generator().manual_seed(int(self.task.name)))
        self.wave = 0.1 + 4.9 * amplitude, math.pi * phase

    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        generator = torch.Generator().manual_seed((self.task.seed + step) % 2**63)
        x, (amplitude, phase) = 10 * torch.rand(10, 1, generator=generator) - 5, self.wave
        loss = nn.functional.mse_loss(self.network(x), amplitude * torch.sin(x + phase))
        return loss, {"agent_steps": 1, "frames": 10, "steps": 1, "negative_loss_sum": -float(loss.detach())}


class Sinusoids(ProcessType[Config]):
    config = Config
    measures = Measures(
        task="wave", tasks="waves", step="gradient steps", frame="points", score="negative_loss", score_text="−loss",
        counts=("negative_loss_sum", "steps"), digits=2, paired="points",
        final_text="−loss over the last tenth of training", means={"loss": ("loss_sum", "updates")},
    )  # fmt: skip

    def parts(self, config: Config) -> Parts:
        return Parts(*(list(map(str, seeds)) for seeds in (range(100), range(100, 110), range(110, 120))))

    def parse(self, config: Config, text: str) -> list[str]:
        return [text]

    def initial_parameters(self, config: Config, seed: int) -> Tensors:
        torch.manual_seed(seed)
        return {name: value.detach() for name, value in new_network().named_parameters()}

    def build(self, config: Config, task: Task) -> Sinusoid:
        return Sinusoid(config, task)


PROCESS = Sinusoids()
