"""Alphabets as tasks: where their drawings come from, which are held out, and batches of them, turned and moved.

    drawings of all alphabets → split into meta-training, held-out and validation alphabets
    one alphabet              → a problem: 20 of its characters, 15 drawings of each to train on and 5 held out
    step i of a task          → a batch, from the task's seed and i alone

Left open by the paper, and chosen here: an alphabet's 20 characters and their labels are drawn once, from
``alphabets.split`` and its name, so that an alphabet is one problem wherever it is met; drawings that are held out are
turned and moved as well, each once. Which drawings and alphabets are held out, and how a batch is drawn, are keys.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from leap_rl.files.text import closest
from leap_rl.processes.classification.config import AlphabetsConfig
from leap_rl.processes.classification.glyphs import checksum, load_glyphs
from leap_rl.processes.classification.omniglot import SIDE, load_omniglot
from leap_rl.types import BadInputError, Parts

NUM_CLASSES, NUM_HELD_OUT = 20, 5
TURN, SHIFT, SCALE = 360.0, 0.2, (0.8, 1.2)  # degrees; share of the size; times


@dataclass(frozen=True)
class Family:
    """Holds all alphabets of a source."""

    drawings: dict[str, NDArray[Any]]  # alphabet → uint8 [characters, 20 drawings, 28, 28], ink 255
    checksum: str  # SHA-256 of all of them


@functools.cache
def load_family(source: str, nearest: bool = False) -> Family:
    """Returns the alphabets with at least 20 characters. Raises BadInputError where there is nothing to be read."""
    drawings = load_glyphs() if source == "glyphs" else load_omniglot(source, nearest)
    return Family(drawings, checksum(drawings))


def checked_family(config: AlphabetsConfig) -> Family:
    """Returns what :func:`load_family` returns. Raises BadInputError where its drawings are not those of
    ``alphabets.checksum``."""
    family = load_family(config.source, config.drawings == "nearest")
    if config.checksum not in (None, family.checksum):
        raise BadInputError(
            f"alphabets.checksum = {config.checksum}: the drawings of alphabets.source = {config.source} are others "
            f"here: {family.checksum}"
        )
    return family


def split(config: AlphabetsConfig) -> Parts:
    """Returns which alphabets are for what. Raises BadInputError where there are too few.

    Of two numbers to train on, the smaller pool is part of the larger. What is held out depends on neither, unless
    ``alphabets.order`` has the alphabets to train on come first.
    """
    names = sorted(checked_family(config).drawings)
    if config.train + config.held_out > len(names):
        raise BadInputError(
            f"alphabets.train = {config.train}: must be at most {max(0, len(names) - config.held_out)}: "
            f"{config.source} has {len(names)} alphabets of at least {NUM_CLASSES} characters, and "
            f"alphabets.held_out = {config.held_out} of them are held out"
        )
    shuffled = [names[index] for index in np.random.default_rng(config.split).permutation(len(names))]
    end = config.held_out + config.train
    if config.order == "training_first":
        return Parts(shuffled[: config.train], shuffled[end:], shuffled[config.train : end])
    return Parts(shuffled[config.held_out : end], shuffled[end:], shuffled[: config.held_out])


def parse_alphabet(config: AlphabetsConfig, text: str) -> str:
    """Returns the name of an alphabet of the family. Raises BadInputError where there is none such."""
    names = sorted(checked_family(config).drawings)
    if text not in names:
        near = closest(text, names, cutoff=0.4)
        hint = f"; did you mean {near}?" if near else ""
        raise BadInputError(f"unknown alphabet {text!r}: {config.source} has {len(names)} others{hint}")
    return text


class Problem(NamedTuple):
    """Holds a 20-way classification: uint8, ink 255; and how it is shown (``alphabets.drawings``)."""

    train: Tensor  # [20 labels, drawings, 28, 28]
    held_out: Tensor  # [20 labels, 5 drawings, 28, 28]
    nearest: bool = False


def load_problem(config: AlphabetsConfig, alphabet: str) -> Problem:
    """Returns the problem that an alphabet is. Raises BadInputError where it is not there."""
    drawings = checked_family(config).drawings[alphabet]
    rng = np.random.default_rng([config.split, *alphabet.encode()])
    chosen = torch.from_numpy(drawings[rng.permutation(len(drawings))[:NUM_CLASSES]])
    nearest = config.drawings == "nearest"
    if config.held_out_drawings == "first":
        return Problem(chosen[:, NUM_HELD_OUT:], chosen[:, :NUM_HELD_OUT], nearest)
    return Problem(chosen[:, :-NUM_HELD_OUT], chosen[:, -NUM_HELD_OUT:], nearest)


class Batch(NamedTuple):
    images: Tensor  # float32 [N, 1, 28, 28], as `augment` returns them
    labels: Tensor  # int64 [N]


def training_batches(
    places: Sequence[tuple[Problem, int, int]], size: int, sampling: str = "with_replacement"
) -> list[Batch]:
    """Returns what gradient step ``step`` of a task sees, for each (problem, seed, step): no stream is carried from one
    step to the next. The batches are turned and moved together, which is faster, and might round otherwise."""
    images, labels, draws = [], [], []
    for problem, seed, step in places:
        generator = _generator(seed, step)
        num_classes, num_drawings = problem.train.shape[:2]
        total = num_classes * num_drawings
        if sampling == "permutation":
            chosen = _in_turn(total, range(step * size, (step + 1) * size), seed)
        else:
            chosen = torch.randint(total, (size,), generator=generator)
        images.append(problem.train.flatten(0, 1)[chosen])
        labels.append(chosen // num_drawings)
        draws.append(draw(size, generator))
    moved = augment(torch.cat(images), torch.cat(draws, dim=1), places[0][0].nearest)
    return [Batch(*both) for both in zip(torch.split(moved, size), labels, strict=True)]


def _in_turn(total: int, places: range, seed: int) -> Tensor:
    """Returns the drawings at ``places`` of a row of permutations of all ``total``."""
    rounds = range(places.start // total, (places.stop - 1) // total + 1)
    row = torch.cat([torch.randperm(total, generator=_generator(seed, 0, number)) for number in rounds])
    first = places.start - rounds.start * total
    return row[first : first + len(places)]


def held_out_batch(problem: Problem, seed: int) -> Batch:
    """Returns all drawings that are held out, each once."""
    labels = torch.arange(len(problem.held_out)).repeat_interleave(problem.held_out.shape[1])
    draws = draw(len(labels), _generator(seed))
    return Batch(augment(problem.held_out.flatten(0, 1), draws, problem.nearest), labels)


def _generator(seed: int, *key: int) -> torch.Generator:
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


def draw(size: int, generator: torch.Generator) -> Tensor:
    """Returns how each of ``size`` drawings is to be turned, shifted and scaled [4, size], as numbers from 0 to 1."""
    return torch.rand(4, size, generator=generator)


def augment(images: Tensor, draws: Tensor, nearest: bool = False) -> Tensor:
    """Turns images uint8 [N, 28, 28] by any angle, shifts and scales them, each by its own draws. Returns float32
    [N, 1, 28, 28]: ink is 1, paper and what comes from outside of it 0. If ``nearest``, pixels are taken over instead
    of interpolated, and paper is 1, ink and what comes from outside 0, as in the code of the paper's authors.
    """
    size = len(images)
    angle, right, down, scale = draws
    angle = angle * math.radians(TURN)
    right, down = (2 * SHIFT * (2 * shift - 1) for shift in (right, down))  # of an image that is 2 wide
    scale = SCALE[0] + (SCALE[1] - SCALE[0]) * scale
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    # From a point of the new image to where it was: shift back, then turn and scale back.
    rows = [cosine, sine, -(cosine * right + sine * down), -sine, cosine, sine * right - cosine * down]
    back = torch.stack(rows, dim=1).view(2 * size, 3)
    grid = (back @ _points()).view(size, 2, SIDE, SIDE).permute(0, 2, 3, 1)  # F.affine_grid takes four times as long
    ink = images[:, None].float() / 255
    if nearest:
        return F.grid_sample(1 - ink, grid, mode="nearest", align_corners=False)
    return F.grid_sample(ink, grid, align_corners=False)


@functools.cache
def _points() -> Tensor:
    """Returns the pixels of an image that is 2 wide, row by row: x, y and 1 [3, 28 · 28]."""
    places = (2 * torch.arange(SIDE) + 1) / SIDE - 1
    return torch.stack([places.repeat(SIDE), places.repeat_interleave(SIDE), torch.ones(SIDE**2)])
