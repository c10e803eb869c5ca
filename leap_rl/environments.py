"""Defines what A2C asks of environments that are stepped together: Atari games (atari/vector.py), any of Gymnasium's
(processes/gymnasium/envs.py), or those of another suite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from leap_rl.types import Tensors


class Episode(NamedTuple):
    """Describes a finished episode."""

    score: float  # sum of raw rewards: a game's own score
    length: int  # agent steps
    env: int = 0  # the environment in which it was played


class Step(NamedTuple):
    """Holds what one action in each of B environments led to."""

    observations: NDArray[Any]  # [B, …]; the vector's own buffer: valid until the next step
    rewards: NDArray[np.float32]  # [B], raw
    terminated: NDArray[np.bool_]  # [B]; the value of what follows is 0
    truncated: NDArray[np.bool_]  # [B]; cut by a limit: the value of final_observations follows
    final_observations: dict[int, NDArray[Any]]  # env → [...], for truncated environments
    episodes: list[Episode]  # those that ended with this step


class Vector(Protocol):
    """Steps B environments together; their whole state is a value. An episode that ends is followed by the next in the
    same step."""

    observations: NDArray[Any]  # [B, …], of the newest step
    num_frames: int  # that were played since the start

    @property
    def num_actions(self) -> int:
        """Returns the number of actions, of which one is taken in each environment a step."""
        ...

    def step(self, actions: NDArray[np.int64]) -> Step:
        """Takes ``actions`` [B], each in [0, num_actions)."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Returns everything needed to go on elsewhere, by name (copies)."""
        ...

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` of a vector with the same arguments was taken. It is called before any step."""
        ...
