"""Decides which tasks may run, and which finished ones a meta-step averages, by pure functions."""

from collections.abc import Mapping

from leap_rl.config import MetaConfig
from leap_rl.meta.ledger import Ledger
from leap_rl.types import Checkpoint, Place


def due(config: MetaConfig, checkpoint: Checkpoint) -> list[Place]:
    """Returns the places of the tasks that may run at a checkpoint: what is unfinished, and what is drawn for this
    meta-step (asynchronous: and for the ``max_staleness`` after it)."""
    first = 0 if checkpoint.meta_step == 0 else config.staleness
    drawn = range(checkpoint.meta_step + first, min(checkpoint.meta_step + config.staleness + 1, config.steps))
    return sorted({*checkpoint.unfinished, *((m, slot) for m in drawn for slot in range(config.batch_size))})


def needed(config: MetaConfig, checkpoint: Checkpoint, num_checkpoints: int) -> list[Place]:
    """Returns the places of the tasks whose files are needed to go on from a checkpoint, or from one of the
    ``num_checkpoints`` − 1 before it: those that are due, and in the continual schedule those that they continue."""
    places = due(config, checkpoint)
    if config.schedule == "continual":
        rounds = range(max(0, checkpoint.meta_step - num_checkpoints), checkpoint.meta_step)
        places = [(meta_step, slot) for meta_step in rounds for slot in range(config.batch_size)] + places
    return places


def next_batch(config: MetaConfig, meta_step: int, ledgers: Mapping[Place, Ledger]) -> list[Place] | None:
    """Returns the tasks that a meta-step averages: a batch's worth of those that are done, the ones from the oldest
    initialization first. In the synchronous schedule that is the meta-batch that was drawn for it.

    Returns None where less is done, or where a task that is left would become too stale.
    """
    done = sorted((ledger.version, place) for place, ledger in ledgers.items() if ledger.done)
    if len(done) < config.batch_size:
        return None
    chosen = sorted(place for _, place in done[: config.batch_size])
    left = sorted(ledger.version for place, ledger in ledgers.items() if place not in chosen)
    # The next steps take those that are left in this order, under way or done, a batch each.
    steps = (meta_step + 1 + index // config.batch_size for index in range(len(left)))
    late = any(step - version > config.staleness for step, version in zip(steps, left, strict=True))
    return None if late else chosen
