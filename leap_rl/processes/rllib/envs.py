"""Environments of tasks, as RLlib takes them: a game as processes/a2c plays it, or any Gymnasium image environment."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from leap_rl.atari.config import EnvConfig
from leap_rl.atari.games import is_gymnasium_id, parse_game
from leap_rl.atari.vector import AtariVector
from leap_rl.environments import Episode
from leap_rl.processes.rllib.config import RLlibConfig
from leap_rl.types import BadInputError


class AtariGame(gymnasium.Env[NDArray[np.uint8], int]):
    """Plays one copy of a game, preprocessed as in :class:`AtariVector`; observations uint8 [H, W, C].

    It is seeded by its first reset and by the task's seed together.
    """

    def __init__(self, game: str, config: EnvConfig, seed: int) -> None:
        self._game, self._config, self._seed = parse_game(game), config, seed
        self._vector = AtariVector(self._game, 1, config, seed)
        _, channels, height, width = self._vector.observations.shape
        self.observation_space = Box(0, 255, (height, width, channels), np.uint8)
        self.action_space = Discrete(self._vector.num_actions)

    @property
    def num_frames(self) -> int:
        """Returns the number of emulator frames since the start, no-ops included."""
        return self._vector.num_frames

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed, options=options)
        if seed is not None:
            stream = np.random.SeedSequence([self._seed, seed]).generate_state(1, np.uint64)
            self._vector = AtariVector(self._game, 1, self._config, int(stream[0]))
        return self._observation(self._vector.observations[0]), {}  # where a game ended the next has begun

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        step = self._vector.step(np.array([action]))
        last = step.final_observations.get(0, step.observations[0])
        reward, terminated, truncated = float(step.rewards[0]), bool(step.terminated[0]), bool(step.truncated[0])
        return self._observation(last), reward, terminated, truncated, {"episodes": step.episodes}

    def _observation(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Returns a copy of an image [C, H, W] as [H, W, C]."""
        return np.ascontiguousarray(image.transpose(1, 2, 0))


class TaskEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Counts what a task reports, and clips rewards for the learner; scores are of raw rewards."""

    def __init__(self, env: gymnasium.Env[Any, Any], reward_clip: float | None) -> None:
        super().__init__(env)
        self._reward_clip = reward_clip
        self._score, self._length = 0.0, 0
        self.episodes: list[Episode] = []
        self.num_steps, self.clipped_reward = 0, 0.0

    @property
    def num_frames(self) -> int:
        """Returns the number of emulator frames so far; of an environment that counts none, its steps."""
        return self.env.num_frames if isinstance(self.env, AtariGame) else self.num_steps

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.num_steps += 1
        self._score, self._length = self._score + float(reward), self._length + 1
        if isinstance(self.env, AtariGame):  # with life_loss = terminal, more ends than games do
            self.episodes.extend(info["episodes"])
        elif terminated or truncated:
            self.episodes.append(Episode(self._score, self._length))
        if terminated or truncated:
            self._score, self._length = 0.0, 0
        clip = self._reward_clip
        seen = float(reward) if clip is None else min(max(float(reward), -clip), clip)
        self.clipped_reward += seen
        return observation, seen, terminated, truncated, {}


class FloatImage(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Images as RLlib's own networks want them: float32; 0..255 becomes −1..1, RLlib's convention."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        self._bytes = space.dtype == np.uint8
        low, high = (-1.0, 1.0) if self._bytes else (0.0, 1.0)
        self.observation_space = Box(low, high, space.shape, np.float32) if space.dtype != np.float32 else space

    def observation(self, observation: Any) -> NDArray[np.float32]:
        image = np.asarray(observation, np.float32)
        return image / np.float32(128) - np.float32(1) if self._bytes else image


class RLlibEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Makes what :func:`make_env` makes, but takes the arguments as one mapping, as RLlib gives them."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        super().__init__(make_env(*(context[name] for name in ("config", "name", "seed", "own_network"))))


def make_env(config: RLlibConfig, name: str, seed: int, own_network: bool) -> gymnasium.Env[Any, Any]:
    """Returns the environment of the task ``name``. ``own_network``: RLlib's network sees it, not that of
    processes/a2c.

    Raises BadInputError for an id that Gymnasium does not have, and for observations or actions of another kind.
    """
    env = _make_gymnasium(name) if is_gymnasium_id(name) else AtariGame(name, config.env, seed)
    env = TaskEnv(env, config.agent.reward_clip)
    return FloatImage(env) if own_network else env


def _make_gymnasium(name: str) -> gymnasium.Env[Any, Any]:
    if name not in gymnasium.registry:  # a package may offer to register what is below its name
        for offer in entry_points(group="gymnasium.envs", name=name.partition("/")[0]):
            offer.load()()
    try:
        env = gymnasium.make(name, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise BadInputError(f"tasks.games = {name}: {error}") from None
    space = env.observation_space
    if not isinstance(space, Box) or len(space.shape) != 3 or not isinstance(env.action_space, Discrete):
        raise BadInputError(
            f"tasks.games = {name}: must have images as observations and discrete actions, not {space} and "
            f"{env.action_space}"
        )
    return env
