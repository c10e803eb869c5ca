"""Defines the configuration of a run with ``process: a2c``."""

from typing import Literal

from leap_rl.atari.games import game_of, is_gymnasium_id
from leap_rl.config import require
from leap_rl.processes.atari import AtariConfig


class A2CConfig(AtariConfig):
    """Holds the configuration of a run with ``process: a2c``."""

    process: Literal["a2c"] = "a2c"

    def check(self) -> None:
        """Raises ValueError, one line, where keys do not go together."""
        super().check()
        for key in ("games", "validation", "held_out"):
            for name in getattr(self.tasks, key):
                hint = f"; did you mean {game_of(name)}?" if game_of(name) else ""
                require(
                    not is_gymnasium_id(name),
                    f"tasks.{key} = {name}: is an id of Gymnasium's: process = gymnasium has these, in "
                    f"tasks.environments, and process = rllib{hint}",
                )
