"""Defines the sections of a configuration that say which games there are, and how they are played."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from leap_rl.atari.variants import expand
from leap_rl.config import Fraction, PositiveInt, Section
from leap_rl.pools import SplitConfig, divided, expanded


class TasksConfig(Section):
    games: Annotated[
        list[str],
        Field(min_length=1, description="the pool of meta-training: games, variants (breakout:mode=4,difficulty=1), "
              "patterns (breakout:mode=*, breakout:* for all); quote in a shell: 'tasks.games=[\"breakout:*\", pong]'"),
    ]  # fmt: skip
    validation: Annotated[list[str], Field(description="to choose by; named as tasks.games")] = []  # noqa: RUF012  (pydantic copies it)
    held_out: Annotated[list[str], Field(description="to evaluate on; named as tasks.games")] = []  # noqa: RUF012  (pydantic copies it)
    split: Annotated[SplitConfig, Field(description="of tasks.games, when a run is made")] = SplitConfig()

    @field_validator("games", "validation", "held_out")
    @classmethod
    def _expanded(cls, names: list[str]) -> list[str]:
        return expanded(names, expand)

    @model_validator(mode="after")
    def _divided(self) -> "TasksConfig":
        return divided(self, "games")


class EnvConfig(Section):
    frame_skip: Annotated[PositiveInt, Field(description="emulator frames per agent step")] = 4
    sticky_actions: Annotated[Fraction, Field(description="chance that a frame repeats the last action")] = 0.25
    noop_max: Annotated[int, Field(ge=0, le=100_000, description="no-ops after a reset: 1 to this many; 0: none")] = 30
    max_episode_frames: PositiveInt = 108_000
    life_loss: Annotated[Literal["ignore", "terminal"], Field(description="terminal: it cuts returns")] = "ignore"
    full_action_space: Annotated[bool, Field(description="all 18 actions in every game")] = False
    color: Literal["grey", "rgb"] = "grey"
    screen_size: Annotated[int, Field(ge=36, le=210, description="pixels a side")] = 84
    frame_stack: PositiveInt = 4
    center: Annotated[
        Literal["none", "background"], Field(description="background: the game's median pixel, in random play, is 0")
    ] = "none"

    @property
    def channels(self) -> int:
        """Returns the number of channels of an observation."""
        return self.frame_stack * (1 if self.color == "grey" else 3)
