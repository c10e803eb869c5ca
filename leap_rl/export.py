"""A run's encoder for other libraries: ``leap-rl export RUN --to {rllib,torch,sb3,hub}``.

    torch   encoder.safetensors for :func:`torch_encoder`, plain PyTorch: images [N, C, H, W], 0..1
    sb3     the same for Stable-Baselines3's features extractor in features.py, written beside it
    rllib   for RLlib's default networks: images [N, H, W, C], −1..1 (pixel / 128 − 1), see leap_rl/rllib/load.py
    hub     a folder that the Hugging Face hub takes: model.safetensors, config.json, a model card

What differs between them in layout and scale is folded into the weights, exactly: a convolution without padding is
linear in its input, so W·(x / 255) + b = (128 / 255) W·y + (b + (128 / 255) Σ W) for y = x / 128 − 1. Before anything
is written, the exported encoder's features are compared with ours on frames of a game of the run.
"""

import json
from collections import OrderedDict
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leap_rl.config import Config
from leap_rl.model_card import model_card
from leap_rl.processes.a2c.network import Encoder
from leap_rl.processes.atari import AtariVector, background
from leap_rl.run import RunDirectory, fingerprint, read_config
from leap_rl.storage import open_storage
from leap_rl.tasks import is_gymnasium_id, parse_game
from leap_rl.tensor_files import dump_tensors
from leap_rl.types import BadInputError, LeapRLError, Tensors

TARGETS = ("rllib", "torch", "sb3", "hub")
TOLERANCE = 1e-5  # between features, which are of the order of 1
NUM_FRAMES = 64
ENCODER = "encoder.safetensors"
LAYERS = ("conv1", "conv2", "linear")
TORCH_KEYS = {"conv1": "0", "conv2": "2", "linear": "5"}
SB3_KEYS = {"conv1": "cnn.0", "conv2": "cnn.2", "linear": "linear.0"}
# Of PPO, APPO, IMPALA and our A2C; RLlib puts what follows the convolutions into each head.
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


def export_run(run: str, target: str, out: str | None, game: str | None = None) -> dict[str, Any]:
    """Writes the export and returns what ``--json`` prints. ``game``: whose background is folded into the weights,
    where the run has ``env.center: background``. Raises BadInputError, and writes nothing, where the run
    has no encoder that can be exported there."""
    storage = open_storage(run)
    if "config.yaml" not in storage.names():
        raise BadInputError(f"{run}: not a run directory: it has no config.yaml")
    config = read_config(storage)
    tensors, metadata = RunDirectory(config, storage).published()
    if not tensors:
        raise BadInputError(f"{run}: has no initialization.safetensors yet")
    folder = Path(out or f"{run.rstrip('/')}-{target}" if "://" not in run else out or target)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInputError(f"--out {folder}: exists already; choose another directory")
    difference = None
    if target == "hub":
        content = _hub(run, config, tensors, metadata)
    elif config.process == "classification":
        raise BadInputError(f"{run}: its network classifies drawings; it can be exported --to hub")
    else:
        encoder = read_encoder(tensors, run)
        center = _center(run, config, game)
        frames = real_frames(config, game)
        expected = our_features(encoder, frames - center)
        _fold(encoder, center)
        converted, features = _TARGETS[target](encoder, frames)
        difference = float((features - expected).abs().max())
        if not difference <= TOLERANCE:
            raise LeapRLError(f"{run}: features for {target} differ from ours by {difference:.1e}; nothing is written")
        description = describe_input(config, target) | {"fingerprint": fingerprint(tensors)}
        content = {ENCODER: dump_tensors(converted, {}), "config.json": _json(description)}
        if target == "sb3":
            content["features.py"] = files("leap_rl").joinpath("sb3_features.py").read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return {"out": str(folder), "to": target, "files": sorted(content), "largest_difference": difference}


def read_encoder(tensors: Tensors, where: str) -> Encoder:
    """The encoder that an initialization holds, in float32. Raises BadInputError, by key and shape, for another."""
    weight, bias = tensors.get("encoder.conv1.weight"), tensors.get("encoder.linear.weight")
    if weight is None or bias is None:
        raise BadInputError(
            f"{where}: its encoder is not that of process a2c, but {', '.join(sorted(tensors)[:3])}, …; it can be "
            "exported --to hub"
        )
    side = round((bias.shape[1] / 32) ** 0.5)
    encoder = Encoder(weight.shape[1], ((side - 1) * 2 + 4 - 1) * 4 + 8, torch.float32)
    given = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    load_strictly(encoder, given, where)
    return encoder


def load_strictly(module: nn.Module, given: Tensors, where: str) -> None:
    """Loads all parameters. Raises BadInputError with every key that is missing, unexpected or of another shape."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in given.items()}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} is unexpected" for name in sorted(found.keys() - expected.keys())]
    problems += [f"{name} is {found[name]}, must be {shape}" for name, shape in sorted(expected.items())
                 if found.get(name, shape) != shape]  # fmt: skip
    if problems:
        raise BadInputError(f"{where}: does not fit the encoder: {'; '.join(problems)}")
    module.load_state_dict(dict(given))


def torch_encoder(num_channels: int, screen_size: int) -> nn.Sequential:
    """The encoder in plain PyTorch: float32 [N, C, H, W], 0..1 → [N, 256]."""
    side = ((screen_size - 8) // 4 + 1 - 4) // 2 + 1
    return nn.Sequential(
        nn.Conv2d(num_channels, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * side * side, 256), nn.ReLU(),
    )  # fmt: skip


def _center(run: str, config: Config, game: str | None) -> Tensor:
    """float32 [C, 1, 1]: what the run takes from the pixels of a game. Raises BadInputError where it must be named."""
    if config.env.center == "none" and game is not None:
        raise BadInputError(f"--game {game}: only for a run with env.center = background; {run} has none")
    if config.env.center == "background" and game is None:
        raise BadInputError(
            f"{run}: env.center = background: its encoder sees pixels less the game's background; name the game that "
            "the export is for with --game, or export --to hub"
        )
    any_game = "pong"  # where nothing is centred, all have the same zeros
    return torch.tensor(background(game or any_game, config.env)).float().view(-1, 1, 1)


@torch.no_grad()
def _fold(encoder: Encoder, center: Tensor) -> None:
    """Has the encoder take pixels as they are: W·(x − c) / 255 + b = W·x / 255 + (b − W·c / 255)."""
    weight, bias = encoder.conv1.weight.double(), encoder.conv1.bias
    assert bias is not None
    bias.copy_(bias.double() - (weight * center).sum((1, 2, 3)) / 255)


def real_frames(config: Config, game: str | None = None) -> Tensor:
    """uint8 [N, C, H, W], of the game, or of the run's first one, under random play."""
    game = game or next((name for name in config.tasks.games if not is_gymnasium_id(name)), "pong")
    envs = AtariVector(parse_game(game), 4, config.env, seed=0)
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(NUM_FRAMES // 4):
        for _ in range(5):
            envs.step(rng.integers(0, envs.num_actions, 4))
        frames.append(torch.from_numpy(envs.observations.copy()))
    return torch.cat(frames)


@torch.no_grad()
def our_features(encoder: Encoder, frames: Tensor) -> Tensor:
    """float32 [N, 256] of uint8 [N, C, H, W]."""
    features: Tensor = encoder(frames)
    return features


@torch.no_grad()
def _to_torch(encoder: Encoder, frames: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    converted = _renamed(encoder, {layer: [key] for layer, key in TORCH_KEYS.items()})
    plain = torch_encoder(frames.shape[1], frames.shape[2])
    load_strictly(plain, converted, "torch")
    return converted, plain(frames.float() / 255)


@torch.no_grad()
def _to_sb3(encoder: Encoder, frames: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    _, features = _to_torch(encoder, frames)  # the same network under other names
    return _renamed(encoder, {layer: [key] for layer, key in SB3_KEYS.items()}), features


@torch.no_grad()
def _to_rllib(encoder: Encoder, frames: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    from leap_rl.rllib.load import default_module_features

    scale = 128 / 255
    values = {name: value.detach().clone() for name, value in encoder.named_parameters()}
    weight = values["conv1.weight"].double()
    values["conv1.bias"] = (values["conv1.bias"].double() + scale * weight.sum((1, 2, 3))).float()
    values["conv1.weight"] = (scale * weight).float()
    linear = values["linear.weight"]
    side = round((linear.shape[1] / 32) ** 0.5)  # [256, (C, H, W)] → [256, (H, W, C)]
    values["linear.weight"] = linear.view(256, 32, side, side).permute(0, 2, 3, 1).reshape(256, -1).contiguous()
    converted = {
        f"{key}.{end}": values[f"{layer}.{end}"].clone()
        for layer, keys in RLLIB_KEYS.items() for key in keys for end in ("weight", "bias")
    }  # fmt: skip
    return converted, default_module_features(converted, frames.permute(0, 2, 3, 1).float() / 128 - 1)


_TARGETS = {"torch": _to_torch, "sb3": _to_sb3, "rllib": _to_rllib}


def _renamed(encoder: Encoder, keys: dict[str, list[str]]) -> dict[str, Tensor]:
    state = OrderedDict(encoder.named_parameters())
    return {
        f"{key}.{end}": state[f"{layer}.{end}"].detach().clone()
        for layer in LAYERS for key in keys[layer] for end in ("weight", "bias")
    }  # fmt: skip


def describe_input(config: Config, target: str) -> dict[str, Any]:
    """What whoever loads the encoder must feed it."""
    channels = config.env.frame_stack * (1 if config.env.color == "grey" else 3)
    size = config.env.screen_size
    shape, low, high, scale = [channels, size, size], 0.0, 1.0, "pixel / 255"
    if target == "rllib":
        shape, low, high, scale = [size, size, channels], -1.0, 1.0, "pixel / 128 - 1"
    description: dict[str, Any] = {
        "format": f"leap_rl encoder for {target}", "features": 256, "shape": shape, "low": low, "high": high,
        "scale": scale, "env": config.env.model_dump() | {"center": "none"},
    }  # fmt: skip
    return description | ({"model_config": RLLIB_MODEL_CONFIG} if target == "rllib" else {})


def _hub(run: str, config: Config, tensors: Tensors, metadata: dict[str, str]) -> dict[str, bytes]:
    storage = open_storage(run)
    _, progress, _ = RunDirectory(config, storage).latest()
    meta_step = int(metadata["meta_step"])
    description = {
        "format": "leap_rl initialization", "meta_step": meta_step, "fingerprint": fingerprint(tensors),
        "parameters": {name: list(value.shape) for name, value in sorted(tensors.items())}, "run": config.model_dump(),
    }  # fmt: skip
    return {
        "model.safetensors": dump_tensors(tensors, {"format": "pt"}),
        "config.json": _json(description),
        "README.md": model_card(run, config, meta_step, asdict(progress), tensors).encode(),
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
