"""Defines the names of our encoder in RLlib's default networks, without importing RLlib, which takes seconds."""

ENCODER = "encoder.safetensors"
# These keys are those of PPO, APPO, IMPALA and our A2C. RLlib puts the layers after the convolutions into each head.
RLLIB_KEYS = {
    "conv1": ["encoder.encoder.net.0.cnn.0"],
    "conv2": ["encoder.encoder.net.0.cnn.2"],
    "linear": ["pi.net.mlp.0", "vf.net.mlp.0"],
}
RLLIB_MODEL_CONFIG = {
    "conv_filters": [[16, 8, 4, "valid"], [32, 4, 2, "valid"]],
    "conv_activation": "relu",
    "head_fcnet_hiddens": [256],
    "head_fcnet_activation": "relu",
    "vf_share_layers": True,
}
