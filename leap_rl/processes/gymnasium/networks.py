"""Chooses the network that sees an environment: its encoder follows the space of observations.

images of bytes, square, 36 pixels a side or more   the paper's convolutions (processes/a2c/network.py)
smaller images                                      conv 16 3×3/1 → linear 128, ReLU: MinAtar's (Young & Tian 2019)
vectors                                             linear 64 → linear 64, tanh: A2C's usual one
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from leap_rl.processes.a2c.network import ActorCritic, AnyEncoder, Encoder
from leap_rl.processes.gymnasium.envs import Spaces, arranged, is_image

SMALLEST = 36  # pixels a side that the paper's convolutions take


class Seen(NamedTuple):
    """Holds what a :class:`PlainEncoder` keeps of N observations."""

    inputs: Tensor  # [N, …]
    features: Tensor  # [N, num_features]


class PlainEncoder(AnyEncoder):
    """Wraps any network of torch's. Its gradient is autograd's, of one pass over all observations of an unroll."""

    compute_dtype = torch.float32

    def __init__(self, net: nn.Sequential, num_features: int, scale: float = 1.0) -> None:
        super().__init__()
        self.net, self.num_features, self._scale = net, num_features, scale

    def forward(self, observations: Tensor) -> Tensor:
        """Observations [N, …] → [N, num_features]."""
        features: Tensor = self.net(observations.float() * self._scale)
        return features

    def weights(self) -> list[Tensor]:
        """Returns the parameters as they are."""
        return list(self.parameters())

    @torch.no_grad()
    def activations(self, observations: Tensor, weights: list[Tensor], out: Seen | None = None) -> Seen:
        """Returns observations and features."""
        features = self(observations)
        return Seen(observations.float(), out.features.copy_(features) if out else features)

    def gradients(
        self, activations: Any, weights: list[Tensor], gradient: Tensor, out: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the gradient of each parameter, by name, given that of the features."""
        with torch.enable_grad():
            found = torch.autograd.grad(self(activations.inputs), weights, gradient)
        return {name: value for (name, _), value in zip(self.named_parameters(), found, strict=True)}


def new_network(spaces: Spaces, value_gain: float) -> ActorCritic:
    """Returns the network for these spaces; its parameters are not drawn yet. Raises ValueError for large images that
    are not square, or not of bytes."""
    return ActorCritic(_new_encoder(spaces.observations), spaces.num_actions, value_gain)


def _new_encoder(space: Box) -> AnyEncoder:
    shape = arranged(np.zeros((1, *space.shape), space.dtype), space).shape[1:]
    if not is_image(space):
        (size,) = shape
        return PlainEncoder(nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()), 64)
    channels, height, width = shape
    if max(height, width) < SMALLEST:
        flat = 16 * (height - 2) * (width - 2)
        net = nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(flat, 128), nn.ReLU())
        return PlainEncoder(net, 128, scale=1 / 255 if space.dtype == np.uint8 else 1.0)
    if height != width or space.dtype != np.uint8:
        raise ValueError(
            f"images of {SMALLEST} pixels a side or more must be square and of bytes, not {space}; env.wrappers may "
            "change them"
        )
    return Encoder(channels, height, torch.float32)
