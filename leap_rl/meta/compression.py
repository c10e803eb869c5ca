"""Makes increments smaller: bf16 halves them, int8 quarters them, and what rounding loses is added to the next one.

This is error feedback (Seide et al. 2014, "1-Bit Stochastic Gradient Descent"; Karimireddy et al. 2019, "Error
Feedback Fixes SignSGD"): the sum of what was sent differs from the sum of what was meant by the last residual
alone. Packing is a pure function of the increment and the residual, so the bits stay those of the seed.
"""

from collections.abc import Mapping
from typing import assert_never

import torch
from torch import Tensor

from leap_rl.config import Compression
from leap_rl.tensors import norm_of
from leap_rl.types import Tensors

_SCALE = "|scale"  # int8: one float32 for each row (first dimension) of a tensor


def pack(tensors: Tensors, compression: Compression) -> Tensors:
    """Returns float32 tensors in fewer bytes. :func:`unpack` knows how each was packed by its dtype alone."""
    match compression:
        case "none":
            return tensors
        case "bf16":
            return {name: value.to(torch.bfloat16) for name, value in tensors.items()}
        case "int8":
            return _pack_rows(tensors)
        case _:
            assert_never(compression)


def _pack_rows(tensors: Tensors) -> Tensors:
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        rows = value.reshape(value.shape[0] if value.dim() else 1, -1)
        scale = rows.abs().amax(dim=1, keepdim=True) / 127
        packed[name] = (rows / scale.clamp_min(torch.finfo(scale.dtype).tiny)).round().to(torch.int8).view(value.shape)
        packed[name + _SCALE] = scale.squeeze(1)
    return packed


def unpack(packed: Tensors) -> Tensors:
    """Returns what :func:`pack` was given, as float32; leaves tensors that were not packed as they are."""
    return {name: _unpack(name, value, packed) for name, value in packed.items() if not name.endswith(_SCALE)}


def _unpack(name: str, value: Tensor, packed: Tensors) -> Tensor:
    if value.dtype == torch.int8:
        scale = packed[name + _SCALE].unsqueeze(1)
        return (value.reshape(len(scale), -1) * scale).view(value.shape)
    return value.float() if value.dtype == torch.bfloat16 else value


class Compressor:
    """Packs the increments of one task, carrying what each loses into the next."""

    def __init__(self, compression: Compression, residual: Mapping[str, Tensor] | None = None) -> None:
        self._compression = compression
        self.residual: dict[str, Tensor] = dict(residual or {})

    def pack(self, increment: Tensors) -> tuple[Tensors, float]:
        """Returns the packed increment, and the norm of what has been kept back so far."""
        if self._compression == "none":
            return increment, 0.0
        meant = {name: value + self.residual[name] if self.residual else value for name, value in increment.items()}
        packed = pack(meant, self._compression)
        sent = unpack(packed)
        self.residual = {name: meant[name] - sent[name] for name in meant}
        return packed, norm_of(self.residual)
