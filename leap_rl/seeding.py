"""Keys every random stream of a run by what it is for, so that no stream depends on who draws first."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Says what a stream is for. The numbers are part of the results: never reuse or reorder them."""

    INITIALIZATION = 0  # the run's first shared initialization
    META_BATCH = 1  # which tasks a meta-step trains on
    TASK = 2  # one task: its heads, actions and environments
    EVALUATION = 3  # the same of one game and seed of an evaluation: equal in all of its arms
    HEADS = 4  # the heads of one game in an initialization
    SPLIT = 5  # where one variant stands in the order that its game's are divided in
    ZERO_SHOT = 6  # the episodes that one task of an evaluation plays before any update
    PLAY = 7  # what `leap-rl play` shows of a task
    VARIANT = 8  # the options of one task that a pattern draws


def derive_seed(run_seed: int, purpose: Purpose, *key: int) -> int:
    """Returns a 63-bit seed for one stream of a run, e.g. ``derive_seed(seed, Purpose.TASK, meta_step, slot)``."""
    sequence = np.random.SeedSequence(run_seed, spawn_key=(int(purpose), *key))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
