"""Draws the tasks of a meta-step, as a pure function of their names and a seed, and orders them for starting."""

from collections.abc import Callable, Sequence

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


def tasks_at(places: Sequence[Place], names: Sequence[str], size: int, seed: int) -> list[Task]:
    """Returns the tasks that :func:`sample_meta_batch` draws for these places."""
    batches = {meta_step: sample_meta_batch(names, size, seed, meta_step) for meta_step, _ in places}
    return [batches[meta_step][slot] for meta_step, slot in places]


def longest_first(tasks: Sequence[Task], seconds_per_step: Callable[[str], float]) -> list[Task]:
    """Returns the tasks in the order to start them: slow ones first, so that the last one does not hold the batch.

    Only the order of the costs matters, and no result depends on it.
    """
    return sorted(tasks, key=lambda task: (task.round, -seconds_per_step(task.name), task.slot))
