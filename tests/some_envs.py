"""Environments that strangers might write, and what registers them."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Sequence, Text


class Steps(gymnasium.Env):
    """A walk on a line, drawn as a dot in a row of bytes; ``kind`` says how it goes wrong."""

    def __init__(self, kind="", side=8, channels_first=False):
        self.kind, self.channels_first = kind, channels_first
        shape = (1, side, side) if channels_first else (side, side, 1)
        self.observation_space = Box(0, 255, shape, np.uint8)
        self.action_space = Discrete(2, start=3)
        if kind in ("undefined", "outside"):
            self.observation_space = Box(-1, 1, (side,), np.float32)
        if kind == "sequence":
            self.observation_space = Sequence(Box(0, 1, (2,)))
        if kind == "dictionary":
            self.observation_space = Dict({"place": Box(-np.inf, np.inf, (2,)), "way": Discrete(2)})
        if kind == "text":
            self.observation_space = Dict({"word": Text(3)})
        if kind == "continuous":
            self.action_space = Box(0, 1, (2,))
        if kind == "broken":
            raise RuntimeError("no such\ndisplay")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        rng = np.random.default_rng() if self.kind == "dice" else self.np_random
        self.place, self.steps = int(rng.integers(2, 6)), 0
        return self._show(), {}

    def step(self, action):
        assert action in (3, 4)
        self.place, self.steps = self.place + (1 if action == 4 else -1), self.steps + 1
        if self.kind == "raises" and self.steps == 5:
            raise RuntimeError("lost its\nconnection")
        ended = self.kind != "endless" and not 0 < self.place < 7
        reward = float("nan") if self.kind == "reward" else float(self.place >= 7)
        return self._show(), reward, ended, False, {}

    def _show(self):
        if self.kind == "dictionary":
            return {"place": np.full(2, self.place, np.float32), "way": self.place % 2}
        if self.kind in ("undefined", "outside"):
            value = float("nan") if self.kind == "undefined" else 2.0
            return np.full(self.observation_space.shape, value if self.place == 6 else 0, np.float32)
        image = np.zeros(self.observation_space.shape, np.uint8)
        image[(0, 0, self.place % 8) if self.channels_first else (0, self.place % 8, 0)] = 255
        return image


class Remembering(gymnasium.Wrapper):
    """Its rewards depend on all that was ever seen."""

    total = 0.0

    def step(self, action):
        seen, reward, *others = self.env.step(action)
        self.total = (self.total + float(np.asarray(seen, np.float64).sum())) % 100
        return seen, reward + self.total / 100, *others


def offset(env):
    return gymnasium.wrappers.TransformReward(env, lambda reward: reward + 1)


class Nothing:
    pass


if "Steps-v0" not in gymnasium.registry:
    gymnasium.register("Steps-v0", entry_point=Steps)
