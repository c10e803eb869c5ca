"""The network of the paper's Omniglot experiment: four blocks of convolution, batch norm, ReLU, pooling; then linear.

A function of its parameters, so that a step can be differentiated. **Batch norm uses the statistics of the batch in
hand, always**: in training those of its drawings, where held-out drawings are scored those of all of them together.
There are no running averages, so the parameters are all the state there is; scale and shift are parameters like the
others. (What is predicted for a held-out drawing therefore depends on the drawings beside it.)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leap_rl.config import Config
from leap_rl.processes.classification.data import NUM_CLASSES
from leap_rl.processes.classification.omniglot import SIDE
from leap_rl.rules import name_in_initialization
from leap_rl.tasks import training_tasks
from leap_rl.types import Task, Tensors

NUM_BLOCKS = 4
NUM_FEATURES = (SIDE >> NUM_BLOCKS) ** 2  # of a filter: 28 → 14 → 7 → 3 → 1 pixels a side


def logits(parameters: Tensors, images: Tensor) -> Tensor:
    """[N, 1, 28, 28] → [N, 20]. Channels-last, the fast layout; pooled before ReLU, which gives the same."""
    x = images.to(memory_format=torch.channels_last)
    for block in range(1, NUM_BLOCKS + 1):
        weight = parameters[f"encoder.conv{block}.weight"].to(memory_format=torch.channels_last)
        x = F.conv2d(x, weight, padding=1)  # no bias: batch norm would remove it
        scale, shift = parameters[f"encoder.norm{block}.weight"], parameters[f"encoder.norm{block}.bias"]
        x = F.batch_norm(x, None, None, scale, shift, training=True)
        x = F.relu(F.max_pool2d(x, 2))
    return F.linear(x.flatten(1), parameters["head.weight"], parameters["head.bias"])


def draw_parameters(config: Config, seed: int) -> dict[str, Tensor]:
    """All parameters as PyTorch would draw them (He et al. 2015, uniform, gain for a slope of √5), from a seed."""
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


def initial_parameters(config: Config, seed: int) -> Tensors:
    """A fresh shared initialization: name → float32 tensor of what is meta-learned."""
    torch.set_num_threads(1)
    found: dict[str, Tensor] = {}
    for number, alphabet in enumerate(training_tasks(config) if config.meta.rule == "joint" else [""]):
        for name, value in draw_parameters(config, seed + number).items():
            known_as = name_in_initialization(config.meta, Task(0, 0, alphabet, seed), name)
            if known_as is not None:
                found.setdefault(known_as, value)
    return found
