"""Puts the encoder of processes/a2c inside any of RLlib's default RLModules, through its Catalog.

So an initialization that was meta-learned with one algorithm fits all others, and our own A2C.
"""

from dataclasses import dataclass
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.models.base import Encoder as RLlibEncoder
from ray.rllib.core.models.catalog import Catalog
from ray.rllib.core.models.configs import ModelConfig
from ray.rllib.core.models.torch.base import TorchModel
from torch import nn

from leap_rl.processes.a2c.network import Encoder

PRECISION = "leap_rl_precision"  # key of an RLModule's model_config


@dataclass
class LeapEncoderConfig(ModelConfig):  # type: ignore[misc]
    """Configures the encoder of images uint8 [H, W, C], H = W."""

    precision: str = "fp32"

    @property
    def output_dims(self) -> tuple[int]:
        return (256,)

    def build(self, framework: str) -> "LeapEncoder":
        return LeapEncoder(self)


class LeapEncoder(TorchModel, RLlibEncoder):  # type: ignore[misc]
    """Wraps :class:`Encoder` in the interface that RLlib calls."""

    def __init__(self, config: LeapEncoderConfig) -> None:
        TorchModel.__init__(self, config)
        RLlibEncoder.__init__(self, config)
        height, _, channels = config.input_dims
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.net = Encoder(channels, height, dtype)

    def _forward(self, inputs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {ENCODER_OUT: self.net(inputs[Columns.OBS].permute(0, 3, 1, 2))}


def with_leap_encoder(base: type[Catalog]) -> type[Catalog]:
    """Returns a catalog that differs from ``base`` in the encoder alone."""

    class LeapCatalog(base):  # type: ignore[misc]
        @classmethod
        def _get_encoder_config(
            cls, observation_space: Any, model_config_dict: dict[str, Any], action_space: Any = None
        ) -> ModelConfig:
            return LeapEncoderConfig(observation_space.shape, precision=model_config_dict.get(PRECISION, "fp32"))

    LeapCatalog.__name__ = f"Leap{base.__name__}"
    return LeapCatalog


def shared_encoder(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters of an RLModule's :class:`LeapEncoder`, under the names of processes/a2c."""
    encoder = next(part.net for part in module.modules() if isinstance(part, LeapEncoder))
    return {f"encoder.{name}": parameter for name, parameter in encoder.named_parameters()}
