"""Describes the encoder of Mnih et al. 2013 as a table: what it is built from, exported to, and measured by.

screen [C, S, S] → convolution → ReLU → convolution → ReLU → linear → ReLU → features [256]
"""

from typing import NamedTuple


class Convolution(NamedTuple):
    """Describes a convolution without padding, with square kernels."""

    channels: int
    kernel: int
    stride: int


CONVOLUTIONS = (Convolution(16, 8, 4), Convolution(32, 4, 2))
NUM_FEATURES = 256


def sides(screen_size: int) -> list[int]:
    """Returns the side of the image after each convolution: 84 → [20, 9]."""
    found = []
    for layer in CONVOLUTIONS:
        screen_size = (screen_size - layer.kernel) // layer.stride + 1
        found.append(screen_size)
    return found


def screen_size_of(side: int) -> int:
    """Returns the smallest screen whose last image has that side: 9 → 84."""
    for layer in reversed(CONVOLUTIONS):
        side = (side - 1) * layer.stride + layer.kernel
    return side
