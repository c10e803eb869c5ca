"""Exports a run's encoder to other libraries: ``leap-rl export RUN --to {rllib,torch,sb3,onnx,hub}``.

    torch   encoder.safetensors for :func:`torch_encoder`, plain PyTorch: images [N, C, H, W], 0..1
    sb3     the same for Stable-Baselines3; its features extractor is written beside it, to features.py
    rllib   for RLlib's default networks: images [N, H, W, C], −1..1 (pixel / 128 − 1), see leap_rl/rllib/load.py
    onnx    encoder.onnx, a graph that needs neither torch nor leap_rl (onnx_model.py): images [N, C, H, W], 0..255
    hub     a folder for the Hugging Face hub: model.safetensors, config.json, a model card

Differences in layout and scale are folded into the weights exactly, since a convolution without padding is linear in
its input: W·(x / 255) + b = (128 / 255) W·y + (b + (128 / 255) Σ W) for y = x / 128 − 1. Before anything is written,
the exported encoder's features are compared with those of the run's encoder, on frames of one of its games.
"""

import json
from collections import OrderedDict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leap_rl import hub
from leap_rl.atari.games import is_gymnasium_id, parse_game
from leap_rl.config import Config
from leap_rl.export.model_card import model_card
from leap_rl.extras import require_extra
from leap_rl.files.storage import open_storage
from leap_rl.files.tensor_files import dump_tensors
from leap_rl.meta.rules import name_in_initialization
from leap_rl.processes.a2c.network import Encoder
from leap_rl.processes.atari import AtariConfig
from leap_rl.processes.layers import CONVOLUTIONS, NUM_FEATURES, screen_size_of, sides
from leap_rl.rllib_encoder import ENCODER, RLLIB_KEYS, RLLIB_MODEL_CONFIG
from leap_rl.runs.run import RunDirectory
from leap_rl.runs.run_files import CONFIG, fingerprint
from leap_rl.runs.sources import Source, folder_of, read_source
from leap_rl.types import BadInputError, LeapRLError, Tensors

TOLERANCE = 1e-5  # largest difference between features, which are of the order of 1
NUM_FRAMES = 64
LAYERS = ("conv1", "conv2", "linear")
TORCH_KEYS = {"conv1": "0", "conv2": "2", "linear": "5"}
SB3_KEYS = {"conv1": "cnn.0", "conv2": "cnn.2", "linear": "linear.0"}


def export_run(run: str, target: str, out: str | None, game: str | None = None) -> dict[str, Any]:
    """Writes the export and returns what ``--json`` prints. The background of ``game`` is folded into the weights if
    the run has ``env.center: background``. Raises BadInputError, and writes nothing, if the run has no encoder that can
    be exported to this target."""
    found = read_source(run)
    config, tensors = found.config, found.tensors
    if config is None:
        raise BadInputError(f"{run}: there is no {CONFIG} beside it that says what it is")
    for name, value in sorted(tensors.items()):
        if not torch.isfinite(value).all():
            raise BadInputError(f"{run}: {name} holds numbers that are not finite; nothing is exported")
    folder = Path(out or (target if "://" in run else f"{folder_of(run)}-{target}"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInputError(f"--out {folder}: exists already; choose another directory")
    difference = None
    if target == "hub":
        content = _hub(run, found, config)
    elif not isinstance(config, AtariConfig):
        raise BadInputError(f"{run}: process = {config.process}: has no encoder of games; it can be exported --to hub")
    else:
        for extra in _EXTRAS.get(target, ("atari",)):
            require_extra(extra, f"--to {target}")
        if config.agent.layer_norm:
            raise BadInputError(f"{run}: agent.layer_norm = true: its encoder can only be exported --to hub")
        encoder = read_encoder(tensors, run)
        policy = _policy(config, tensors, game) if target == "onnx" else None
        center = _center(run, config, game, bool(policy))
        frames = real_frames(config, game)
        expected = our_features(encoder, frames - center)
        _fold(encoder, center)
        description = describe_input(config, target) | {"fingerprint": fingerprint(tensors)}
        if target == "onnx":
            content, difference = _onnx(encoder, policy, frames, expected)
        else:
            converted, features = _TARGETS[target](encoder, frames)
            content, difference = {ENCODER: dump_tensors(converted, {})}, float((features - expected).abs().max())
        if not difference <= TOLERANCE:
            raise LeapRLError(f"{run}: features for {target} differ from ours by {difference:.1e}; nothing is written")
        content["config.json"] = _json(description)
        if target == "sb3":
            content["features.py"] = files("leap_rl.export").joinpath("sb3_features.py").read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return {"out": str(folder), "to": target, "files": sorted(content), "largest_difference": difference}


def read_encoder(tensors: Tensors, where: str) -> Encoder:
    """Returns the encoder of an initialization, in float32. Raises BadInputError, with key and shape, if it is not that
    of process a2c."""
    weight, linear = tensors.get("encoder.conv1.weight"), tensors.get("encoder.linear.weight")
    if weight is None or linear is None:
        raise BadInputError(
            f"{where}: its encoder is not that of process a2c, but {', '.join(sorted(tensors)[:3])}, …; it can be "
            "exported --to hub"
        )
    (num, size, _), channels = CONVOLUTIONS[0], CONVOLUTIONS[-1].channels
    if weight.dim() != 4 or (weight.shape[0], *weight.shape[2:]) != (num, size, size):
        shape = f"({num}, C, {size}, {size})"
        raise BadInputError(f"{where}: encoder.conv1.weight is {tuple(weight.shape)}, must be {shape}")
    if linear.dim() != 2 or linear.shape[0] != NUM_FEATURES or linear.shape[1] < channels:
        shape = f"({NUM_FEATURES}, {channels}·h·w)"
        raise BadInputError(f"{where}: encoder.linear.weight is {tuple(linear.shape)}, must be {shape}")
    encoder = Encoder(weight.shape[1], screen_size_of(_last_side(linear)), torch.float32)
    given = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    load_strictly(encoder, given, where)
    return encoder


def load_strictly(module: nn.Module, given: Tensors, where: str) -> None:
    """Loads all parameters. Raises BadInputError that lists every key that is missing, unexpected or of another
    shape."""
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
    """Returns the encoder in plain PyTorch: float32 [N, C, H, W], 0..1 → [N, 256]."""
    layers: list[nn.Module] = []
    for convolution in CONVOLUTIONS:
        layers += [nn.Conv2d(num_channels, *convolution), nn.ReLU()]
        num_channels = convolution.channels
    inputs = num_channels * sides(screen_size)[-1] ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, NUM_FEATURES), nn.ReLU())


def _policy(config: AtariConfig, tensors: Tensors, game: str | None) -> "Tensors | None":
    """Returns the policy's linear layer for a game; None where the initialization has none."""
    from leap_rl.processes.a2c.process import owner_of_heads

    games = [game] if game else config.tasks.games
    owners = {owner_of_heads(config, name) for name in games if not is_gymnasium_id(name)}
    prefix = name_in_initialization(config.meta, owners.pop(), "policy.") if len(owners) == 1 else None
    found = {end: tensors[f"{prefix}{end}"] for end in ("weight", "bias") if f"{prefix}{end}" in tensors}
    return found if len(found) == 2 else None


def _onnx(
    encoder: Encoder, policy: "Tensors | None", frames: Tensor, expected: Tensor
) -> tuple[dict[str, bytes], float]:
    """Returns the files, and the largest difference between what ONNX Runtime computes and what we do."""
    from leap_rl.export.onnx_model import FEATURES, LOGITS, onnx_model, run_onnx

    data = onnx_model(encoder, frames.shape[-1], policy)
    found = run_onnx(data, frames)
    ours = {FEATURES: expected}
    if policy is not None:
        ours[LOGITS] = nn.functional.linear(expected, policy["weight"], policy["bias"])
    return {"encoder.onnx": data}, max(float((found[name] - ours[name]).abs().max()) for name in ours)


def _last_side(linear: Tensor) -> int:
    """Returns the side of the image that the weight of the linear layer takes."""
    side: int = round((linear.shape[1] / CONVOLUTIONS[-1].channels) ** 0.5)
    return side


def _center(run: str, config: AtariConfig, game: str | None, has_heads: bool = False) -> Tensor:
    """Returns what the run subtracts from the pixels of a game, float32 [C, 1, 1]. Raises BadInputError if the run
    needs a game for it and none is given, or the other way round."""
    if config.env.center == "none" and game is not None and not has_heads:
        raise BadInputError(
            f"--game {game}: only for a run with env.center = background, or for its heads --to onnx; {run} has none"
        )
    if config.env.center == "background" and game is None:
        raise BadInputError(
            f"{run}: env.center = background: its encoder sees pixels less the game's background; name the game that "
            "the export is for with --game, or export --to hub"
        )
    from leap_rl.atari.vector import background

    any_game = "pong"  # without centring, zeros are subtracted for every game
    return torch.tensor(background(game or any_game, config.env)).float().view(-1, 1, 1)


@torch.no_grad()
def _fold(encoder: Encoder, center: Tensor) -> None:
    """Changes the encoder to take pixels that are not centred: W·(x − c) / 255 + b = W·x / 255 + (b − W·c / 255)."""
    weight, bias = encoder.conv1.weight.double(), encoder.conv1.bias
    assert bias is not None
    bias.copy_(bias.double() - (weight * center).sum((1, 2, 3)) / 255)


def real_frames(config: AtariConfig, game: str | None = None) -> Tensor:
    """Returns frames of random play, uint8 [N, C, H, W], of the game or of the run's first game."""
    from leap_rl.atari.vector import AtariVector

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
    """Returns the features of the run's own encoder: uint8 [N, C, H, W] → float32 [N, 256]."""
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
    side = _last_side(linear)  # [256, (C, H, W)] → [256, (H, W, C)]
    images = linear.view(NUM_FEATURES, -1, side, side).permute(0, 2, 3, 1)
    values["linear.weight"] = images.reshape(NUM_FEATURES, -1).contiguous()
    converted = {
        f"{key}.{end}": values[f"{layer}.{end}"].clone()
        for layer, keys in RLLIB_KEYS.items() for key in keys for end in ("weight", "bias")
    }  # fmt: skip
    return converted, default_module_features(converted, frames.permute(0, 2, 3, 1).float() / 128 - 1)


_EXTRAS = {"rllib": ("atari", "ray", "rllib"), "onnx": ("atari", "onnx")}
_TARGETS = {"torch": _to_torch, "sb3": _to_sb3, "rllib": _to_rllib}


def _renamed(encoder: Encoder, keys: dict[str, list[str]]) -> dict[str, Tensor]:
    state = OrderedDict(encoder.named_parameters())
    return {
        f"{key}.{end}": state[f"{layer}.{end}"].detach().clone()
        for layer in LAYERS for key in keys[layer] for end in ("weight", "bias")
    }  # fmt: skip


def describe_input(config: AtariConfig, target: str) -> dict[str, Any]:
    """Returns a description of the images that the exported encoder takes."""
    channels, size = config.env.channels, config.env.screen_size
    shape, low, high, scale = [channels, size, size], 0.0, 1.0, "pixel / 255"
    if target == "onnx":
        high, scale = 255.0, "pixel"
    if target == "rllib":
        shape, low, high, scale = [size, size, channels], -1.0, 1.0, "pixel / 128 - 1"
    description: dict[str, Any] = {
        "format": f"leap_rl encoder for {target}", "features": 256, "shape": shape, "low": low, "high": high,
        "scale": scale, "env": config.env.model_dump() | {"center": "none"},
    }  # fmt: skip
    return description | ({"model_config": RLLIB_MODEL_CONFIG} if target == "rllib" else {})


def _hub(run: str, source: Source, config: Config) -> dict[str, bytes]:
    storage = open_storage(run)
    if CONFIG not in storage.names():
        raise BadInputError(f"{run}: not a run directory: it has no {CONFIG}; --to hub takes a run")
    _, progress, _ = RunDirectory(config, storage).latest()
    tensors, meta_step = source.tensors, source.meta_step
    description = {
        "format": "leap_rl initialization", "meta_step": meta_step, "fingerprint": fingerprint(tensors),
        "parameters": {name: list(value.shape) for name, value in sorted(tensors.items())}, "run": config.model_dump(),
    }  # fmt: skip
    return {
        hub.TENSORS: dump_tensors(tensors, {"format": "pt"}),
        hub.CONFIG: _json(description),
        "README.md": model_card(run, config, meta_step, vars(progress), tensors).encode(),
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
