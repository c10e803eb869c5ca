"""Encoders exported to RLlib's default networks and to other libraries."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from leap_rl.config_files import load_config
from leap_rl.export.export import export_run, our_features, read_encoder, real_frames
from leap_rl.types import BadInputError
from tests.test_export import make_run
from tests.test_rllib import rllib_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cluster")]


# ------------------------------------------------------------------------------- exports


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a run for RLlib."""
    folder = tmp_path_factory.mktemp("export")
    run = make_run(folder)
    export_run(str(run), "rllib", str(folder / "out"))
    return folder / "out"


@pytest.mark.parametrize("algorithm", ["PPO", "DQN", "APPO", "IMPALA", "A2C"])
def test_an_algorithm_of_rllib_loads_an_export_and_computes_our_features(algorithm: str, export: Path) -> None:
    from ray.rllib.core.columns import Columns
    from ray.tune.registry import register_env

    from leap_rl.processes.rllib.envs import AtariGame, FloatImage
    from leap_rl.processes.rllib.options import ALGORITHMS
    from leap_rl.rllib import load_encoder, take_increment
    from leap_rl.rllib.learner import on_learners

    description = json.loads((export / "config.json").read_text())
    config = load_config(export.parent / "run" / "config.yaml")
    register_env("exported", lambda _: FloatImage(AtariGame("pong", config.env, 0)))
    options = ALGORITHMS[algorithm]().environment("exported").env_runners(num_env_runners=0)
    if algorithm == "IMPALA":  # APPO's Learner stays where it is by default, in another process
        options.learners(num_learners=0)
    built = options.rl_module(model_config=description["model_config"]).build_algo()
    report = load_encoder(built, export)
    assert not any(name.startswith("encoder.") for name in report.missing)

    frames = real_frames(config)
    expected = our_features(read_encoder(load_file(export.parent / "run" / "initialization.safetensors"), ""), frames)
    images = frames.permute(0, 2, 3, 1).float() / 128 - 1

    def features(module: Any) -> torch.Tensor:
        encoded = module.encoder({Columns.OBS: images})["encoder_out"]
        if algorithm == "DQN":
            return module.af.net.mlp[:2](encoded).detach()
        return module.pi.net.mlp[:2](encoded["actor"]).detach()

    def in_learner(learner: Any) -> tuple[torch.Tensor, list[bool]]:
        """Its features, and for each parameter of a target network whether it is equal."""
        (module,) = learner.module.values()
        pairs = module.unwrapped().get_target_network_pairs() if algorithm in ("DQN", "APPO") else []
        equal = [torch.equal(a, b) for pair in pairs for a, b in zip(*(net.parameters() for net in pair), strict=True)]
        return features(module.unwrapped()), equal

    ((found, equal),) = on_learners(built, in_learner)
    assert bool(equal) == (algorithm in ("DQN", "APPO"))
    assert all(equal)
    for each in (found, features(built.env_runner.module)):
        assert float((each - expected).abs().max()) <= 1e-5
    with pytest.raises(BadInputError, match=rf"^{algorithm}TorchLearner: records no path"):
        take_increment(built)
    assert on_learners(built, lambda _: "in service") == ["in service"]
    built.stop()


def test_a_module_that_an_export_does_not_fit_is_told_by_key_and_shape(export: Path) -> None:
    from leap_rl.processes.rllib.options import build_module
    from leap_rl.rllib import load_encoder

    three = {"model_config": {"conv_filters": [[16, 8, 4, "valid"], [32, 4, 2, "valid"], [32, 3, 1, "valid"]],
                              "vf_share_layers": True, "head_fcnet_hiddens": [128]}}  # fmt: skip
    module = build_module(rllib_config("PPO", **{"rllib.options": three}), "pong")
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(BadInputError) as error:
        load_encoder(module, export)
    text = str(error.value)
    assert "encoder.encoder.net.0.cnn.4.weight (32, 32, 3, 3) is missing" in text
    assert "pi.net.mlp.0.weight is (256, 2592), in the RLModule (128, 1568)" in text
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)), "nothing was loaded"
