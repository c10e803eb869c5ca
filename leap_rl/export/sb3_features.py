"""Provides leap_rl's encoder as a features extractor for Stable-Baselines3.

It needs torch, safetensors and stable_baselines3, and not leap_rl:

    from features import LeapFeatures, load_encoder

    model = PPO("CnnPolicy", env, policy_kwargs={"features_extractor_class": LeapFeatures, "net_arch": []})
    load_encoder(model, "encoder.safetensors")

The frames of ``env`` must be as config.json says, e.g. a VecFrameStack of 84×84 grey frames. Stable-Baselines3 puts the
channels first and divides pixels by 255. The weights are loaded into the finished model, because actor-critic policies
initialize their features extractor again after they have made it (``ortho_init``).
"""

from safetensors.torch import load_file
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn


class LeapFeatures(BaseFeaturesExtractor):  # type: ignore[misc]
    """Implements the encoder: conv 16 8×8/4 → conv 32 4×4/2 → linear 256, ReLU after each."""

    def __init__(self, observation_space) -> None:  # type: ignore[no-untyped-def]
        super().__init__(observation_space, features_dim=256)
        channels, height, width = observation_space.shape
        rows, columns = (((side - 8) // 4 + 1 - 4) // 2 + 1 for side in (height, width))
        self.cnn = nn.Sequential(
            nn.Conv2d(channels, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten()
        )
        self.linear = nn.Sequential(nn.Linear(32 * rows * columns, 256), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """Returns the features of images: float32 [N, C, H, W], 0..1 → [N, 256]."""
        features: Tensor = self.linear(self.cnn(observations))
        return features


def load_encoder(model, weights: str) -> None:  # type: ignore[no-untyped-def]
    """Loads the weights into every LeapFeatures of the model (a DQN has two). Raises RuntimeError, with key and shape,
    if anything does not fit."""
    extractors = [module for module in model.policy.modules() if isinstance(module, LeapFeatures)]
    if not extractors:
        raise RuntimeError("the model's policy has no LeapFeatures: give it as features_extractor_class")
    for extractor in extractors:
        extractor.load_state_dict(load_file(weights), strict=True)
