"""The network of Mnih et al., "Playing Atari with Deep Reinforcement Learning" (2013), with two linear heads.

The encoder is what Leap meta-learns in the paper's Atari experiment; the heads belong to a task.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leap_rl.config import Config
from leap_rl.types import Tensors


class Encoder(nn.Module):
    """conv 16 8×8/4 → conv 32 4×4/2 → linear 256, ReLU after each."""

    def __init__(self, num_channels: int, screen_size: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        self.conv1 = nn.Conv2d(num_channels, 16, kernel_size=8, stride=4)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=4, stride=2)
        side = ((screen_size - 8) // 4 + 1 - 4) // 2 + 1
        self.linear = nn.Linear(32 * side * side, 256)

    def forward(self, observations: Tensor) -> Tensor:
        """uint8 [B, C, H, W] → float32 [B, 256].

        Weights are kept in float32 and rounded to ``compute_dtype`` where they are used, so gradients are
        summed in float32. Both dtypes hold 0..255 exactly; the scale 1/255 is folded into the first weights.
        """
        dtype = self.compute_dtype
        x = observations.to(dtype)
        if dtype == torch.float32:  # 4 contiguous channels would take a slow kernel (docs/performance.md)
            x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu(F.conv2d(x, (self.conv1.weight / 255).to(dtype), _bias(self.conv1, dtype), stride=4))
        x = F.relu(F.conv2d(x, self.conv2.weight.to(dtype), _bias(self.conv2, dtype), stride=2))
        x = F.relu(F.linear(x.flatten(1), self.linear.weight.to(dtype), _bias(self.linear, dtype)))
        return x.float()


def _bias(layer: nn.Conv2d | nn.Linear, dtype: torch.dtype) -> Tensor:
    assert layer.bias is not None
    return layer.bias.to(dtype)


class ActorCritic(nn.Module):
    """Policy logits and value from one shared encoder."""

    def __init__(self, config: Config, num_actions: int) -> None:
        super().__init__()
        channels = config.env.frame_stack * (1 if config.env.color == "grey" else 3)
        compute_dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.encoder = Encoder(channels, config.env.screen_size, compute_dtype)
        self.policy = nn.Linear(256, num_actions)
        self.value = nn.Linear(256, 1)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, C, H, W] → logits [B, num_actions], values [B]."""
        features = self.encoder(observations)
        return self.policy(features), self.value(features).squeeze(-1)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Orthogonal weights (gain √2; policy 0.01, value 1) and zero biases, as A2C's baselines have it."""
        gains = {"policy": 0.01, "value": 1.0}
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                gain = gains.get(name.partition(".")[0], math.sqrt(2))
                nn.init.orthogonal_(parameter, gain, generator=generator)


def meta_learned(config: Config, network: ActorCritic) -> dict[str, nn.Parameter]:
    """The parameters that Leap sees: the encoder's, or all (``meta.parameters``)."""
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if config.meta.parameters == "all" or name.startswith("encoder.")
    }


def initial_parameters(config: Config, seed: int) -> Tensors:
    """A fresh shared initialization: name → float32 tensor of what is meta-learned."""
    network = ActorCritic(config, num_actions=18)  # heads enter only with meta.parameters = all: 18 actions
    network.initialize(torch.Generator().manual_seed(seed))
    return {name: parameter.detach().clone() for name, parameter in meta_learned(config, network).items()}


def resolve_precision(precision: str) -> str:
    """``auto`` becomes bf16 where the CPU has bf16 instructions, else fp32."""
    if precision != "auto":
        return precision
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
