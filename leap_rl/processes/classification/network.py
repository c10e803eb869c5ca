"""Defines the network of the paper's Omniglot experiment: four blocks of convolution, batch norm, ReLU, pooling; then
linear.

It is a function of its parameters, so that a step can be differentiated. In training batch norm uses the statistics of
the batch in hand; scale and shift are parameters like the others. Held-out drawings are normalized as
``classifier.norm`` says: by the statistics of all of them together, in which case what is predicted for a drawing
depends on those beside it, or by :class:`RunningStatistics`, as the authors' code does.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leap_rl.meta.rules import name_in_initialization
from leap_rl.processes.classification.config import ClassificationConfig
from leap_rl.processes.classification.data import NUM_CLASSES, split
from leap_rl.processes.classification.omniglot import SIDE
from leap_rl.types import Tensors

NUM_BLOCKS = 4
NAMES = (
    *(f"encoder.{layer}{block}.{kind}" for block in range(1, NUM_BLOCKS + 1)
      for layer, kind in (("conv", "weight"), ("norm", "weight"), ("norm", "bias"))),
    "head.weight", "head.bias",
)  # fmt: skip
NUM_FEATURES = (SIDE >> NUM_BLOCKS) ** 2  # of a filter: 28 → 14 → 7 → 3 → 1 pixels a side


class RunningStatistics:
    """Holds running averages of batch norm's statistics: a task's, from its first batch on.

    As in torch, a mean starts at 0 and a variance at 1, and a batch moves both by a tenth of the way to its own.
    """

    MOMENTUM = 0.1

    def __init__(self, filters: int) -> None:
        self.values = {
            f"{statistic}{block}": torch.full((filters,), start)
            for block in range(1, NUM_BLOCKS + 1)
            for statistic, start in (("mean", 0.0), ("variance", 1.0))
        }

    def of(self, block: int) -> tuple[Tensor, Tensor]:
        """Returns the mean and variance of a block [filters], which ``F.batch_norm`` updates in place."""
        return self.values[f"mean{block}"], self.values[f"variance{block}"]

    def to(self, device: torch.device) -> "RunningStatistics":
        """Moves the values to a device, and returns these statistics."""
        self.values = {name: value.to(device) for name, value in self.values.items()}
        return self


def logits(
    parameters: Tensors,
    images: Tensor,
    pooling: str = "after_norm",
    running: RunningStatistics | None = None,
    training: bool = True,
) -> Tensor:
    """Returns the logits [N, 20] of images [N, 1, 28, 28].

    In ``training`` drawings are normalized by their own statistics, which ``running`` takes up, if given; otherwise by
    ``running``. Channels-last, the fast layout; pooled before ReLU, which gives the same.
    """
    x = images.to(memory_format=torch.channels_last)
    for block in range(1, NUM_BLOCKS + 1):
        weight = parameters[f"encoder.conv{block}.weight"].to(memory_format=torch.channels_last)
        x = F.conv2d(x, weight, padding=1)  # no bias: batch norm would remove it
        if pooling == "before_norm":
            x = F.max_pool2d(x, 2)
        scale, shift = parameters[f"encoder.norm{block}.weight"], parameters[f"encoder.norm{block}.bias"]
        mean, variance = running.of(block) if running else (None, None)
        x = F.batch_norm(x, mean, variance, scale, shift, training, RunningStatistics.MOMENTUM)
        if pooling == "after_norm":
            x = F.max_pool2d(x, 2)
        x = F.relu(x)
    return F.linear(x.flatten(1), parameters["head.weight"], parameters["head.bias"])


def draw_parameters(config: ClassificationConfig, seed: int) -> dict[str, Tensor]:
    """Returns all parameters as PyTorch would draw them (He et al. 2015, uniform, gain for a slope of √5), from a
    seed."""
    generator = torch.Generator().manual_seed(seed)
    filters, parameters = config.classifier.filters, {}
    for block in range(1, NUM_BLOCKS + 1):
        weight = torch.empty(filters, 1 if block == 1 else filters, 3, 3)
        parameters[f"encoder.conv{block}.weight"] = nn.init.kaiming_uniform_(weight, math.sqrt(5), generator=generator)
        parameters[f"encoder.norm{block}.weight"] = torch.ones(filters)
        parameters[f"encoder.norm{block}.bias"] = torch.zeros(filters)
    inputs = filters * NUM_FEATURES
    for name, shape in (("weight", (NUM_CLASSES, inputs)), ("bias", (NUM_CLASSES,))):
        bound = 1 / math.sqrt(inputs)
        parameters[f"head.{name}"] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return parameters


def owner_of_heads(config: ClassificationConfig, alphabet: str) -> str:
    """Returns whose heads in the initialization an alphabet takes: its own under the joint rule, else those of all."""
    return alphabet if config.meta.rule == "joint" else ""


def initial_parameters(config: ClassificationConfig, seed: int) -> Tensors:
    """Returns a fresh shared initialization: name → float32 tensor of what is meta-learned."""
    torch.set_num_threads(1)
    found: dict[str, Tensor] = {}
    for number, alphabet in enumerate(split(config.alphabets).training if config.meta.rule == "joint" else [""]):
        for name, value in draw_parameters(config, seed + number).items():
            known_as = name_in_initialization(config.meta, owner_of_heads(config, alphabet), name)
            if known_as is not None:
                found.setdefault(known_as, value)
    return found
