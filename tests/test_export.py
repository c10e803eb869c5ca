"""Encoders for other libraries: what is written is loaded there and must compute the same on real frames."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from leap_rl.atari.games import catalogue
from leap_rl.cli import main
from leap_rl.config_files import load_config
from leap_rl.export.export import our_features, read_encoder, real_frames, torch_encoder
from leap_rl.processes.a2c.network import Encoder
from leap_rl.processes.a2c.process import initial_parameters
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import Progress
from leap_rl.types import Checkpoint
from tests.cli_helpers import make_config

pytestmark = pytest.mark.slow
SB3 = "stable-baselines3==2.9.2"


def make_initialization(config):
    """A random encoder whose biases are not 0, so that a bias that is lost or not folded shows."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=generator) * (value.ndim == 1)
        for name, value in initial_parameters(config, 5).items()
    }


def make_run(folder, changes=None):
    config = make_config(folder, {"env.screen_size": 84} | (changes or {}))  # what the other libraries make of Atari
    with open_run(config) as run:
        checkpoint = Checkpoint(2, make_initialization(config), {})
        run.commit(checkpoint, Progress(2, 1920, 7680, 1.5))
        run.publish(checkpoint)
    return Path(run.url)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def frames(run):
    """Frames of a game, and our features of them."""
    config = load_config(run / "config.yaml")
    images = real_frames(config)
    assert len(images.unique(dim=0)) > 32, "frames of a game that moves"
    features = our_features(read_encoder(load_file(run / "initialization.safetensors"), "run"), images)
    assert 0.1 < (features > 0).float().mean() < 0.9
    return images, features


def export(run, target, out):
    assert main(["export", str(run), "--to", target, "--out", str(out)]) == 0
    return out


def close(found, expected):
    return float((found - expected).abs().max()) <= 1e-5


def test_torch(run, frames, tmp_path):
    folder = export(run, "torch", tmp_path / "out")
    encoder = torch_encoder(num_channels=4, screen_size=84)
    encoder.load_state_dict(load_file(folder / "encoder.safetensors"), strict=True)
    with torch.no_grad():
        assert close(encoder(frames[0].float() / 255), frames[1])
        assert not close(encoder(frames[0].float() / 256), frames[1]), "the scale matters"


def outputs_of(folder, images):
    """What ONNX Runtime alone computes, in a process that has neither torch nor leap_rl."""
    np.save(folder / "images.npy", images.numpy())
    script = (
        "import sys; sys.modules.update(torch=None, leap_rl=None)\n"
        "import numpy as np, onnxruntime\n"
        "session = onnxruntime.InferenceSession('encoder.onnx', providers=['CPUExecutionProvider'])\n"
        "names = [output.name for output in session.get_outputs()]\n"
        "found = session.run(names, {'pixels': np.load('images.npy')})\n"
        "np.savez('found.npz', **dict(zip(names, found)))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder, timeout=600)
    with np.load(folder / "found.npz") as found:
        return {name: torch.from_numpy(found[name]) for name in found}


def test_onnx(run, frames, tmp_path, capsys):
    folder = export(run, "onnx", tmp_path / "out")
    assert "features of real frames differ" in capsys.readouterr().out
    description = json.loads((folder / "config.json").read_text())
    assert (description["shape"], description["high"], description["scale"]) == ([4, 84, 84], 255, "pixel")
    for images, expected in (frames, (frames[0][:3], frames[1][:3])):  # any number of them
        found = outputs_of(folder, images)
        assert list(found) == ["features"]
        assert close(found["features"], expected)
        assert not close(outputs_of(folder, images ^ 1)["features"], expected), "each pixel matters"


def test_onnx_has_the_policy_of_a_game_whose_heads_are_meta_learned(tmp_path):
    run = make_run(tmp_path, {"meta.parameters": "all", "env.center": "background"})
    tensors = load_file(run / "initialization.safetensors")
    images = real_frames(load_config(run / "config.yaml"), "qbert")
    background = torch.tensor(catalogue()["qbert"].background[0])
    features = our_features(read_encoder(tensors, "run"), images - background)
    expected = features @ tensors["heads/qbert/policy.weight"].T + tensors["heads/qbert/policy.bias"]
    assert main(["export", str(run), "--to", "onnx", "--game", "qbert", "--out", str(tmp_path / "out")]) == 0
    found = outputs_of(tmp_path / "out", images)
    assert found["logits"].shape == (64, 6)
    assert close(found["logits"], expected)


def test_an_onnx_graph_that_computes_anything_else_is_not_written(run, tmp_path, capsys, monkeypatch):
    real = Encoder.activations
    monkeypatch.setattr(Encoder, "activations", lambda *given: real(*given)._replace(features=torch.zeros(64, 256)))
    assert main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "out")]) == 1
    assert "features for onnx differ from ours" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_encoder_with_layer_norm_is_for_the_hub_alone(tmp_path, capsys):
    run = make_run(tmp_path, {"agent.layer_norm": True})
    for target in ("torch", "onnx"):
        assert main(["export", str(run), "--to", target, "--out", str(tmp_path / "out")]) == 2
        assert "agent.layer_norm = true: its encoder can only be exported --to hub" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    export(run, "hub", tmp_path / "out")


def test_rgb_frames(tmp_path):
    run = make_run(tmp_path, {"env.color": "rgb", "env.frame_stack": 1, "env.screen_size": 60})
    folder = export(run, "torch", tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["shape"] == [3, 60, 60]
    assert load_file(folder / "encoder.safetensors")["0.weight"].shape == (16, 3, 8, 8)


def test_a_games_background_is_folded_into_the_weights(tmp_path, capsys):
    run = make_run(tmp_path, {"env.center": "background"})
    assert main(["export", str(run), "--to", "torch", "--out", str(tmp_path / "out")]) == 2
    assert "name the game that the export is for with --game" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "torch", "--game", "pong", "--out", str(tmp_path / "out")]) == 0
    images = real_frames(load_config(tmp_path / "config.yaml"), "pong")
    grey = catalogue()["pong"].background[0]
    assert grey > 0
    encoder = torch_encoder(num_channels=4, screen_size=84)
    encoder.load_state_dict(load_file(tmp_path / "out" / "encoder.safetensors"), strict=True)
    ours = read_encoder(load_file(run / "initialization.safetensors"), "run")
    with torch.no_grad():
        assert close(encoder(images.float() / 255), our_features(ours, images.float() - grey))


def test_rllib_is_checked_and_described(run, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["export", str(run), "--to", "rllib", "--out", str(folder), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert 0 < written["largest_difference"] <= 1e-5
    description = json.loads((folder / "config.json").read_text())
    assert (description["shape"], description["scale"]) == ([84, 84, 4], "pixel / 128 - 1")


def test_stable_baselines3_itself_loads_it_strictly_and_computes_the_same(run, frames, tmp_path):
    """Its wheel is 190 kB; what it needs is in our environment already, but for itself."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), SB3]
    if subprocess.run(pip, capture_output=True, timeout=600).returncode:
        pytest.skip(f"no registry gives {SB3}")
    folder = export(run, "sb3", tmp_path / "out")
    torch.save(frames, tmp_path / "frames.pt")
    script = """
import sys
import gymnasium, numpy, torch
from stable_baselines3 import PPO
from features import LeapFeatures, load_encoder

class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), numpy.uint8)
    action_space = gymnasium.spaces.Discrete(6)

extractor = {"features_extractor_class": LeapFeatures, "net_arch": []}
model = PPO("CnnPolicy", Env(), policy_kwargs=extractor, device="cpu", n_steps=8, batch_size=8)
load_encoder(model, "encoder.safetensors")
images, features = torch.load(sys.argv[1])
with torch.no_grad():
    found = model.policy.extract_features(images)
print(float((found - features).abs().max()))
"""
    path = os.pathsep.join([str(site), str(folder)])
    environment = os.environ | {"PYTHONPATH": path}
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "frames.pt")],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) <= 1e-5


def test_hub_folder(run, tmp_path):
    folder = export(run, "hub", tmp_path / "out")
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    tensors, ours = load_file(folder / "model.safetensors"), load_file(run / "initialization.safetensors")
    assert tensors.keys() == ours.keys()
    assert all(torch.equal(tensors[name], ours[name]) for name in ours)
    header, card = (folder / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(header)["library_name"] == "leap-rl"
    for fact in (
        "pong, asterix, space_invaders, qbert",
        "2 of 3 tasks",
        "235 agent steps of a2c",
        "not been evaluated",
    ):
        assert fact in card
    assert json.loads((folder / "config.json").read_text())["run"]["meta"]["steps"] == 3


# Bad input


def complaint(capsys, *arguments):
    assert main(["export", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return err


def test_what_is_there_is_not_overwritten(run, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert "exists already" in complaint(capsys, run, "--to", "torch", "--out", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_run(tmp_path, capsys):
    assert "not a run directory" in complaint(capsys, tmp_path / "nothing", "--to", "hub")
    assert not (tmp_path / "nothing").exists()


def test_another_network_is_told_by_name(tmp_path, capsys):
    run = make_run(tmp_path)
    with open_run(load_config(run / "config.yaml")) as opened:
        strange = {"encoder.encoder.net.0.cnn.0.weight": torch.zeros(16, 4, 8, 8)}
        opened.publish(Checkpoint(2, strange, {}))
    assert "not that of process a2c, but encoder.encoder.net.0.cnn.0.weight" in complaint(
        capsys, run, "--to", "rllib", "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_does_not_fit_is_told_by_key_and_shape():
    config = {"encoder.conv1.weight": torch.zeros(16, 4, 8, 8), "encoder.linear.weight": torch.zeros(256, 2592)}
    from leap_rl.types import BadInputError

    with pytest.raises(BadInputError, match=r"conv1\.bias is missing; .*conv2\.weight is missing"):
        read_encoder(config, "file")
