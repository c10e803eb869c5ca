"""Loads what ``leap-rl export --to rllib`` wrote into RLlib's default networks, strictly.

RLlib's own ``RLModule.set_state`` loads what happens to fit and says nothing of the rest: a state with other keys
loads nothing. Here every key is accounted for, and an encoder that does not fit is an error.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from pydantic import ConfigDict
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from torch import Tensor

from leap_rl.files.interface import MAX_TEXT
from leap_rl.files.schemas import FileSchema, parse_json
from leap_rl.files.storage import read_file
from leap_rl.files.tensor_files import load_tensors
from leap_rl.rllib.learner import on_learners
from leap_rl.rllib.quiet import quiet
from leap_rl.rllib_encoder import ENCODER, RLLIB_MODEL_CONFIG
from leap_rl.runs.run_files import check_parameters
from leap_rl.types import BadInputError, Tensors


@dataclass(frozen=True)
class LoadReport:
    """Accounts for every key of the module and of the file. A key of the file that the module lacks is an error."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # of the module: what belongs to the task, as it was


class _Description(FileSchema):
    model_config = ConfigDict(extra="allow")
    format: str


def read_export(folder: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """Returns the tensors and the description. Raises BadInputError where it is no export for RLlib."""
    where = f"{folder}/{ENCODER}"
    try:
        tensors, _ = load_tensors(read_file(Path(folder) / ENCODER), where)
        data = read_file(Path(folder) / "config.json", MAX_TEXT)
    except OSError as error:
        raise BadInputError(f"{folder}: not an export: {error}") from None
    check_parameters(tensors, where)
    description = parse_json(_Description, data, f"{folder}/config.json")
    if description.format != "leap_rl encoder for rllib":
        raise BadInputError(f"{folder}: is a {description.format[:80]}; needed is one made with --to rllib")
    return tensors, description.model_dump()


def load_encoder(target: Algorithm | RLModule, folder: str | Path) -> LoadReport:
    """Loads an export into an RLModule, or into an algorithm's Learners and from there into its EnvRunners.

    The module must be one of RLlib's default ones, built with the export's ``model_config``. Raises BadInputError,
    and loads nothing, where a key of the export has no place of its shape, or one of the encoder's gets no value.
    """
    tensors, _ = read_export(folder)
    if isinstance(target, RLModule):
        return load_into_module(target, tensors)

    def load(learner: Any) -> LoadReport:
        (module,) = learner.module.values()
        return load_into_module(module.unwrapped(), tensors)

    report, *_ = on_learners(target, load)  # APPO's and IMPALA's is in another process, unless num_learners is 0
    spread(target)
    return report


def load_into_module(module: RLModule, tensors: Tensors) -> LoadReport:
    """Loads tensors into an RLModule, as :func:`load_encoder` does."""
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not any(name.startswith("encoder.encoder.") for name in parameters):  # DQN: no actor and critic to share it
        renamed = {"encoder.encoder.": "encoder.", "pi.": "af."}
        tensors = {_renamed(name, renamed): value for name, value in tensors.items()}
    if not any(name.startswith("vf.") for name in parameters):
        tensors = {name: value for name, value in tensors.items() if not name.startswith("vf.")}
    problems = []
    for name in sorted(tensors.keys() | parameters.keys()):
        if name in tensors and name not in parameters:
            problems.append(f"{name} {tuple(tensors[name].shape)} is unexpected")
        elif name not in tensors and name.startswith("encoder."):
            problems.append(f"{name} {tuple(parameters[name].shape)} is missing")
        elif name in tensors and tensors[name].shape != parameters[name].shape:
            found, shape = tuple(tensors[name].shape), tuple(parameters[name].shape)
            problems.append(f"{name} is {found}, in the RLModule {shape}")
    if problems:
        raise BadInputError(
            f"{type(module).__name__}: the encoder does not fit: {'; '.join(problems)}; build it with "
            "rl_module(model_config=...) of the export's config.json"
        )
    with torch.no_grad():
        for name, value in tensors.items():
            parameters[name].copy_(value)
    return LoadReport(tuple(sorted(tensors)), tuple(sorted(parameters.keys() - tensors.keys())))


def spread(algorithm: Algorithm) -> None:
    """Copies the weights of an algorithm's Learners into their target networks, and into the EnvRunners."""

    def into_targets(learner: Any) -> None:
        (module,) = learner.module.values()
        if hasattr(module.unwrapped(), "get_target_network_pairs"):
            for network, target in module.unwrapped().get_target_network_pairs():
                target.load_state_dict(network.state_dict())

    on_learners(algorithm, into_targets)
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group, inference_only=True)


def default_module_features(tensors: Tensors, images: Tensor) -> Tensor:
    """Returns float32 [N, 256]: what PPO's default RLModule computes of images [N, H, W, C] in front of its heads."""
    with quiet():
        module = RLModuleSpec(
            module_class=DefaultPPOTorchRLModule,
            observation_space=gymnasium.spaces.Box(-1.0, 1.0, tuple(images.shape[1:]), np.float32),
            action_space=gymnasium.spaces.Discrete(4),
            model_config=RLLIB_MODEL_CONFIG,
        ).build()
    load_into_module(module, tensors)
    encoded = module.encoder({Columns.OBS: images})["encoder_out"]
    actor, critic = (head.net.mlp[:2](encoded[key]) for head, key in ((module.pi, "actor"), (module.vf, "critic")))
    assert torch.equal(actor, critic)
    return actor  # type: ignore[no-any-return]


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    for before, after in prefixes.items():
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name
