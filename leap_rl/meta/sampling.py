"""Draws the tasks of a meta-step, as a pure function of their names and a seed, and orders them for starting."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import Place, Task


def sample_meta_batch(names: Sequence[str], size: int, seed: int, meta_step: int) -> list[Task]:
    """Draws the tasks of one meta-step, in slot order: ``size`` different ones of ``names``. Where there are fewer
    names, takes all of them, and then all of them again."""
    rng = np.random.default_rng(derive_seed(seed, Purpose.META_BATCH, meta_step))
    chosen: list[int] = []
    while len(chosen) < size:
        chosen.extend(rng.choice(len(names), size=min(len(names), size - len(chosen)), replace=False))
    return [
        Task(meta_step, slot, names[index], derive_seed(seed, Purpose.TASK, meta_step, slot))
        for slot, index in enumerate(chosen)
    ]


def tasks_at(places: Sequence[Place], names: Sequence[str], size: int, seed: int, num_legs: int = 0) -> list[Task]:
    """Returns the tasks at these places, which :func:`sample_meta_batch` draws for the meta-step that they start in.

    With ``num_legs`` a task is a segment of a learning process of that many, and most have started earlier.
    """
    legs = {place: leg_of(place, size, num_legs) for place in places}
    batches = {start: sample_meta_batch(names, size, seed, start) for start in {leg.start for leg in legs.values()}}
    return [
        replace(batches[leg.start][slot], round=meta_step, leg=meta_step - leg.start, num_legs=leg.num_legs)
        for (meta_step, slot), leg in legs.items()
    ]


class Leg(NamedTuple):
    """Says where a place stands in the learning process that its task is a segment of."""

    start: int  # the meta-step that the process starts in
    num_legs: int  # segments of the process; 0: the task is a whole one


def leg_of(place: Place, size: int, num_legs: int) -> Leg:
    """Returns the leg at a place of the continual schedule. The first process of a slot is shorter than the later ones,
    by another length for each slot, so that not all of them start at once."""
    meta_step, slot = place
    if num_legs == 0:
        return Leg(meta_step, 0)
    first = -(-num_legs * (slot + 1) // size)
    if meta_step < first:
        return Leg(0, first)
    return Leg(meta_step - (meta_step - first) % num_legs, num_legs)


def longest_first(tasks: Sequence[Task], seconds_per_step: Callable[[str], float]) -> list[Task]:
    """Returns the tasks in the order to start them: slow ones first, so that the last one does not hold the batch.

    Only the order of the costs matters, and no result depends on it.
    """
    return sorted(tasks, key=lambda task: (task.round, -seconds_per_step(task.name), task.slot))
