"""What makes a gradient step of classification fast, beside its plain twins."""

import pytest
import torch
import torch.nn.functional as F

from leap_rl.processes.classification.data import Batch, Problem, training_batches
from leap_rl.processes.classification.gradient import flattened, loss_and_gradient, named
from leap_rl.processes.classification.network import RunningStatistics, draw_parameters, logits
from tests.alphabets import tiny_config, training_batch

FILTERS = 6


@pytest.fixture
def parameters():
    """Scales of both signs: where one is negative, what is largest after batch norm was smallest before it."""
    generator = torch.Generator().manual_seed(1)
    drawn = draw_parameters(tiny_config("glyphs", **{"classifier.filters": FILTERS}), seed=0)
    return {n: v + torch.randn(v.shape, generator=generator) if "norm" in n else v for n, v in sorted(drawn.items())}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(20, 1, 28, 28, generator=generator)
    return Batch(images * (images > 0.6), torch.randint(20, (20,), generator=generator))  # with areas of equal pixels


@pytest.mark.parametrize("pooling", ["before_norm", "after_norm"])
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_the_gradient_written_out_is_autograds(parameters, batch, pooling, norm):
    ours, theirs = (RunningStatistics(FILTERS) if norm == "running" else None for _ in range(2))
    vector = flattened(parameters)
    gradient = torch.full_like(vector, torch.nan)
    loss, outputs = loss_and_gradient(named(vector, parameters), batch, pooling, ours, named(gradient, parameters))
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    expected_outputs = logits(leaves, batch.images, pooling, theirs)
    expected_loss = F.cross_entropy(expected_outputs, batch.labels)
    expected = torch.autograd.grad(expected_loss, list(leaves.values()))
    torch.testing.assert_close(outputs, expected_outputs.detach())
    torch.testing.assert_close(loss, expected_loss.detach())
    for (name, value), slope in zip(named(gradient, parameters).items(), expected, strict=True):
        torch.testing.assert_close(value, slope, rtol=1e-4, atol=1e-6, msg=name)
    if ours and theirs:
        for name, value in ours.values.items():
            torch.testing.assert_close(value, theirs.values[name])


def test_a_vector_holds_the_parameters_as_they_are_and_a_part_of_it_the_first_of_them(parameters):
    views = named(flattened(parameters), parameters)
    assert views.keys() == parameters.keys()
    assert all(torch.equal(views[name], value) for name, value in parameters.items())
    encoder = [name for name in parameters if name.startswith("encoder.")]
    part = flattened(parameters)[: sum(parameters[name].numel() for name in encoder)]
    assert list(named(part, parameters)) == encoder


@pytest.mark.parametrize("sampling", ["with_replacement", "permutation"])
def test_batches_made_together_are_the_batches_one_by_one(sampling):
    drawings = torch.randint(256, (20, 20, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    one, other = Problem(drawings[:, :15], drawings[:, 15:]), Problem(drawings[:, 5:], drawings[:, :5])
    places = [(one, 7, 0), (other, 8, 3), (one, 7, 41)]
    together = training_batches(places, 9, sampling)
    for batch, (problem, seed, step) in zip(together, places, strict=True):
        alone = training_batch(problem, 9, seed, step, sampling)
        assert torch.equal(batch.labels, alone.labels)
        torch.testing.assert_close(batch.images, alone.images, rtol=0, atol=1e-5)
