"""Runs tasks, either in this process or in Ray actors. Both call the same functions and give the same bits."""

import os
import secrets
import sys
from contextlib import AbstractContextManager

from leap_rl.backends.backend import Backend
from leap_rl.config import Config
from leap_rl.extras import require_extra
from leap_rl.private_folder import private_folder


def open_backend(config: Config) -> AbstractContextManager[Backend]:
    """Returns the configured backend, which stops what it started at the end of the ``with`` statement. Raises
    BadInputError if it cannot start."""
    if config.backend == "serial":
        from leap_rl.backends.serial import SerialBackend

        return SerialBackend(config)
    require_extra("ray", "backend = ray (backend=serial trains without it)")
    prepare_environment(config.ray.address)
    from leap_rl.backends.ray import RayBackend

    return RayBackend(config)


def try_cluster(config: Config) -> None:
    """Joins the cluster of ``ray.address``, or starts one, as a run would, and leaves it again. Raises BadInputError if
    no cluster answers, or if it cannot hold a worker."""
    prepare_environment(config.ray.address)
    from leap_rl.backends.cluster import join, leave

    try:
        join(config)
    finally:
        leave()


def prepare_environment(address: str) -> None:
    """Sets the variables that Ray reads when it is imported; variables that are set already are kept.

    A cluster that we start ourselves then stays on the loopback interface (the name of that variable is historical),
    needs a token that only its own processes know, sends no usage reports, and writes to a folder that only this user
    can enter.
    """
    os.environ["RAY_TMPDIR"] = str(private_folder())
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local" and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
