"""The network of advantage actor-critic against its paper and against torch's own layers."""

import pytest
import torch
from torch import nn

from leap_rl.config import Config
from leap_rl.processes import layers
from leap_rl.processes.a2c.network import ActorCritic, Encoder
from leap_rl.processes.a2c.process import initial_parameters, new_network
from leap_rl.runs.run_files import fingerprint
from tests.helpers import generator, randomize_biases, screens, tiny_config

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def network(config: Config, num_actions: int = 6, seed: int = 0) -> ActorCritic:
    module = new_network(config, num_actions)
    module.initialize(generator(seed))
    return module


@pytest.mark.parametrize(("color", "frame_stack", "channels"), [("grey", 4, 4), ("rgb", 1, 3), ("rgb", 2, 6)])
def test_screens_become_logits_and_values(color: str, frame_stack: int, channels: int) -> None:
    config = tiny_config(**{"env.color": color, "env.frame_stack": frame_stack})
    logits, values = network(config, num_actions=9)(screens(5, channels, 84, 84))
    assert (logits.shape, values.shape) == ((5, 9), (5,))
    assert logits.dtype == values.dtype == torch.float32


@pytest.mark.parametrize("size", [36, 64, 83, 210])
def test_every_screen_size_has_a_network(size: int) -> None:
    config = tiny_config(**{"env.screen_size": size})
    assert network(config)(screens(1, 4, size, size))[0].shape == (1, 6)


def test_the_encoder_is_that_of_mnih_2013_with_two_linear_heads() -> None:
    sizes = {name: parameter.numel() for name, parameter in network(tiny_config()).named_parameters()}
    assert {name.partition(".")[0] for name in sizes} == {"encoder", "policy", "value"}
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        part = name.rpartition(".")[0]
        parts[part] = parts.get(part, 0) + size
    assert parts == {
        "encoder.conv1": 4_112,  # 16 filters of 4×8×8
        "encoder.conv2": 8_224,  # 32 filters of 16×4×4
        "encoder.linear": 663_808,  # 256 units on 32×9×9
        "policy": 257 * 6,
        "value": 257,
    }


def plain_network(module: ActorCritic, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The same network out of torch's own layers: screens in [0, 1] → features; features → logits, value."""
    norm = [nn.LayerNorm(256, elementwise_affine=False)] if module.encoder.layer_norm else []
    encoder = nn.Sequential(
        nn.Conv2d(channels, 16, 8, stride=4), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(2592, 256), *norm, nn.ReLU(),
    )  # fmt: skip
    encoder.load_state_dict(dict(zip(encoder.state_dict(), module.encoder.state_dict().values(), strict=True)))
    return encoder, module.policy, module.value


@pytest.mark.parametrize(
    ("color", "frame_stack", "layer_norm"), [("grey", 4, False), ("rgb", 1, False), ("grey", 4, True)]
)
def test_in_fp32_it_computes_what_plain_layers_compute(color: str, frame_stack: int, layer_norm: bool) -> None:
    changes = {"env.color": color, "env.frame_stack": frame_stack, "agent.layer_norm": layer_norm}
    module, observations = network(tiny_config(**changes)), screens(6, 4 if color == "grey" else 3, 84, 84)
    randomize_biases(module)
    encoder, policy, value = plain_network(module, observations.shape[1])
    features = encoder(observations / 255)
    logits, values = module(observations)
    torch.testing.assert_close(module.encoder(observations), features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, policy(features), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, value(features)[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_in_fp32_its_gradients_are_those_of_plain_layers(layer_norm: bool) -> None:
    module, observations = network(tiny_config(**{"agent.layer_norm": layer_norm})), screens(6, 4, 84, 84)
    randomize_biases(module)
    encoder, _, value = plain_network(module, 4)
    module(observations)[1].sum().backward()
    found = [parameter.grad for parameter in module.encoder.parameters()]
    expected = torch.autograd.grad(value(encoder(observations / 255)).sum(), list(encoder.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_bf16_is_close_to_fp32_forward_and_backward() -> None:
    """bf16 keeps 8 bits: 3 % of the largest feature, 5 % of the gradient's norm."""
    observations, features, gradients = screens(8, 4, 84, 84), [], []
    for precision in ("fp32", "bf16"):
        module = network(tiny_config(precision=precision))
        features.append(module.encoder(observations))
        features[-1].square().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in module.encoder.parameters()]))
        assert features[-1].dtype == gradients[-1].dtype == torch.float32
    assert 0 < (features[1] - features[0]).abs().max() < 0.03 * features[0].abs().max()
    assert 0 < (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_the_initialization_is_the_generators_and_orthogonal() -> None:
    config = tiny_config()
    first, again, other = (network(config, seed=seed).state_dict() for seed in (3, 3, 4))
    gains = {"encoder": 2.0, "policy": 1e-4, "value": 1.0}  # squared
    for name, value in first.items():
        assert torch.equal(value, again[name])
        if value.ndim == 1:
            assert not value.any()
            continue
        assert not torch.equal(value, other[name])
        rows = value.flatten(1)
        gain = gains[name.partition(".")[0]]
        torch.testing.assert_close(rows @ rows.T, gain * torch.eye(len(rows)), rtol=0, atol=1e-5 * gain)


def test_the_initialization_does_not_depend_on_the_number_of_threads() -> None:
    """Orthogonal weights come from a QR decomposition, whose last bits do."""
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(fingerprint(initial_parameters(tiny_config(), seed=5)))
    torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_what_is_meta_learned_is_the_encoder_or_all() -> None:
    encoder = initial_parameters(tiny_config(), seed=5)
    everything = initial_parameters(tiny_config(**{"meta.parameters": "all", "env.full_action_space": True}), seed=5)
    assert all(name.startswith("encoder.") for name in encoder)
    assert len(encoder) == 6
    assert {name: tuple(value.shape) for name, value in everything.items() if name not in encoder} == {
        "policy.weight": (18, 256),
        "policy.bias": (18,),
        "value.weight": (1, 256),
        "value.bias": (1,),
    }


def test_the_value_head_starts_at_its_gain() -> None:
    assert not network(tiny_config(**{"agent.value_gain": 0.0})).value.weight.any()
    half = network(tiny_config(**{"agent.value_gain": 0.5})).value.weight
    assert torch.allclose(half, network(tiny_config()).value.weight / 2)


@pytest.mark.parametrize("screen_size", [36, 84, 100, 163])
def test_the_table_of_layers_knows_how_large_the_images_are(screen_size: int) -> None:
    encoder = Encoder(4, screen_size, torch.float32)
    found = encoder.activations(torch.zeros(1, 4, screen_size, screen_size), encoder.weights())
    assert layers.sides(screen_size) == [found.conv1.shape[-1], found.conv2.shape[-1]]
    smallest = layers.screen_size_of(found.conv2.shape[-1])
    assert layers.sides(smallest)[-1] == layers.sides(screen_size)[-1] > layers.sides(smallest - 1)[-1]
