"""Where tasks run: in this process, or in Ray actors. Both run the same functions and give the same bits."""

import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from leap_rl.config import Config
from leap_rl.learner import Checkpoint, MetaStep
from leap_rl.ledger import TaskReport
from leap_rl.types import Fault, Notice, Task

MAX_ERRORS = 2  # of a task itself: it is deterministic, so once more tells a broken machine from a broken task


class Backend(Protocol):
    """One Leap learner, and somewhere to run learning processes."""

    @property
    def num_workers(self) -> int: ...

    def run_tasks(self, tasks: Sequence[Task], checkpoint: Checkpoint) -> Iterator[TaskReport | Fault | Notice]:
        """Trains tasks from the checkpoint's initialization, streaming increments to the learner, until it is
        ready to step. What is under way from an earlier call goes on.

        Yields a report for each segment that the learner has received, what went wrong, and what is waited for.
        """
        ...

    def meta_step(self) -> MetaStep | None:
        """Steps the learner, which is ready. None where it was lost: :meth:`run_tasks` gives the next one its tasks."""
        ...


def open_backend(config: Config) -> AbstractContextManager[Backend]:
    """The configured backend; leaving it stops what it started. Raises BadInputError where it cannot start."""
    if config.backend == "serial":
        from leap_rl.backends.serial import SerialBackend

        return SerialBackend(config)
    prepare_environment(config.ray.address)
    from leap_rl.backends.ray import RayBackend

    return RayBackend(config)


def prepare_environment(address: str) -> None:
    """What Ray reads from the environment when it is imported; a variable that is set already is kept.

    A cluster that we start ourselves stays on the loopback interface (the switch's name is historical) and
    is closed by a token that only its own processes know. No report of usage is sent anywhere.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local" and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
