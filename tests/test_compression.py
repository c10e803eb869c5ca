"""Smaller increments, and what error feedback promises of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leap_rl.meta.compression import Compressor, pack, unpack

SHAPES = {"conv": (4, 2, 3, 3), "bias": (5,), "scalar": ()}


def tensors(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}


def size(values):
    return sum(value.nbytes for value in values.values())


def test_none_is_the_increment_itself():
    increment = tensors(0)
    packed, residual_norm = Compressor("none").pack(increment)
    assert packed is increment
    assert unpack(packed).keys() == increment.keys()
    assert residual_norm == 0


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), exponent=st.integers(-30, 30))
def test_bf16_keeps_eight_bits_of_each_number(seed, exponent):
    increment = tensors(seed, 2.0**exponent)
    sent = unpack(pack(increment, "bf16"))
    for name, value in increment.items():
        assert sent[name].dtype == torch.float32
        assert ((sent[name] - value).abs() <= value.abs() * 2**-8).all()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), exponent=st.integers(-30, 30))
def test_int8_is_off_by_half_a_step_of_its_row_at_most(seed, exponent):
    increment = tensors(seed, 2.0**exponent)
    sent = unpack(pack(increment, "int8"))
    for name, value in increment.items():
        assert sent[name].shape == value.shape
        rows = value.reshape(len(value) if value.dim() else 1, -1)
        step = rows.abs().amax(dim=1, keepdim=True) / 127
        error = (sent[name].reshape(rows.shape) - rows).abs()
        assert (error <= step * 0.5001).all()


def test_a_compression_that_is_not_known_packs_nothing():
    with pytest.raises(AssertionError, match="int4"):
        pack(tensors(0), "int4")


@pytest.mark.parametrize("compression", ["bf16", "int8"])
def test_zeros_stay_zeros(compression):
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for name, value in unpack(pack(zeros, compression)).items():
        assert torch.equal(value, zeros[name])


@pytest.mark.parametrize(("compression", "ratio"), [("bf16", 2), ("int8", 4)])
def test_it_is_smaller(compression, ratio):
    increment = {"linear": torch.randn(256, 2592)}
    assert size(pack(increment, compression)) <= size(increment) / ratio * 1.01


@pytest.mark.parametrize("compression", ["bf16", "int8"])
def test_what_was_sent_sums_to_what_was_meant_but_for_the_last_residual(compression):
    """Error feedback: the error of the sum is that of one increment, however many there were."""
    compressor = Compressor(compression)
    meant = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    sent = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for seed in range(50):
        increment = tensors(seed)
        packed, residual_norm = compressor.pack(increment)
        for name, value in unpack(packed).items():
            meant[name] += increment[name]
            sent[name] += value
    error = {name: meant[name] - sent[name] for name in meant}
    for name, value in compressor.residual.items():
        assert torch.allclose(error[name], value.double(), atol=1e-5)
    norm = torch.cat([value.flatten() for value in error.values()]).norm()
    assert residual_norm == pytest.approx(float(norm), rel=1e-3)
    plain = sum(
        (unpack(pack(tensors(seed), compression))["conv"] - tensors(seed)["conv"]).double() for seed in range(50)
    )
    assert error["conv"].norm() < plain.norm() / 2, "without feedback errors add up"


def test_a_residual_is_carried_on():
    """Packing is a function of the increment and the residual: whoever goes on from it sends the same bits."""
    first = Compressor("int8")
    first.pack(tensors(1))
    second = Compressor("int8", first.residual)
    ours, theirs = first.pack(tensors(2)), second.pack(tensors(2))
    assert ours[1] == theirs[1]
    for name, value in ours[0].items():
        assert torch.equal(value, theirs[0][name])
