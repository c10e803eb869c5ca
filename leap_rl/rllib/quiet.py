"""The Ray that RLlib needs even for an algorithm that runs in one process, and RLlib's talk."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from leap_rl.backends.cluster import interrupts_held_back
from leap_rl.types import LeapRLError


def ensure_ray() -> None:
    """Starts a cluster of this process where it is in none: left to itself, RLlib would join any that it finds.

    Raises LeapRLError where it does not start.
    """
    if ray.is_initialized():
        return
    try:
        with interrupts_held_back():
            ray.init("local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # Ray raises bare ones, e.g. where the machine is too busy to start in time
        raise LeapRLError(f"process = rllib: Ray does not start: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """RLlib's warnings of what is deprecated inside RLlib are for its authors."""
    loggers = [logging.getLogger("ray.rllib"), logging.getLogger("ray._common.deprecation")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
