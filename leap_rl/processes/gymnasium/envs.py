"""Steps Gymnasium's environments for A2C: B copies whose whole state is their history.

Gymnasium has no way to save an environment, and what Python has (pickle) would run code from a file. But environments
are deterministic: with its seed and the actions so far, a vector of them is what it was. So a history is the state, and
continuing plays it again, without learning: see docs/adr/0013-an-environment-is-its-history.md.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple, cast

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box, Dict, Discrete, Space, Text, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation
from numpy.typing import NDArray
from torch import Tensor

from leap_rl.environments import Episode, Step
from leap_rl.files.text import closest, one_line
from leap_rl.processes.gymnasium import physics
from leap_rl.processes.gymnasium.config import EnvConfig
from leap_rl.processes.gymnasium.names import parse_name
from leap_rl.processes.registry import load_object, search_here
from leap_rl.types import BadInputError, TaskError, Tensors

LONGEST = 10_000  # steps of an episode, in an environment that has no limit
MOST_ACTIONS = 2**16
KEY = "tasks.environments"


class Spaces(NamedTuple):
    """Describes what an agent sees and does."""

    observations: Box
    num_actions: int


def make_env(name: str, config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """Returns the environment of a task, wrapped. Raises BadInputError, one line, where there is none, or where it is
    none that A2C can learn."""
    kind, options = parse_name(name)
    find(kind, config.modules)
    wrappers = [load_object("env.wrappers", path) for path in config.wrappers]
    try:
        limit = config.max_episode_steps or gymnasium.spec(kind).max_episode_steps or LONGEST
        env = gymnasium.make(kind, max_episode_steps=limit, disable_env_checker=True, **options)
        for wrapper in wrappers:
            env = wrapper(env)
        if not isinstance(env.observation_space, Box):
            env = FlattenObservation(env) if _is_flattenable(env.observation_space) else env
    except Exception as error:
        misspelled = _misspelled(kind, options) if isinstance(error, TypeError) else ""
        raise BadInputError(f"{KEY} = {name}: {misspelled or one_line(error)}") from None
    seen, actions = env.observation_space, env.action_space
    if not isinstance(actions, Discrete) or int(actions.n) > MOST_ACTIONS:
        raise BadInputError(f"{KEY} = {name}: its actions must be discrete, not {one_line(actions)}")
    if not isinstance(seen, Box):
        raise BadInputError(
            f"{KEY} = {name}: its observations must be images, vectors, or what FlattenObservation makes a vector of, "
            f"not {one_line(seen)}; env.wrappers may change them"
        )
    return env


def _misspelled(kind: str, options: Mapping[str, Any]) -> str:
    """Returns what is wrong with the first option that an environment does not have, if it has one of a like name;
    otherwise ""."""
    creator = gymnasium.spec(kind).entry_point
    assert creator is not None, "it was called"
    known = inspect.signature(load_env_creator(creator) if isinstance(creator, str) else creator).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return ""
    near = {key: closest(key, known) for key in options if key not in known}
    return next((f"has no option {key}; did you mean {other}?" for key, other in near.items() if other), "")


def _is_flattenable(space: Space[Any]) -> bool:
    """Returns whether FlattenObservation makes the same vector of it in every process. Of a text it does not: letters
    are numbered in the order of a set."""
    if isinstance(space, (Dict, Tuple)):
        parts = space.spaces.values() if isinstance(space, Dict) else space.spaces
        return all(map(_is_flattenable, parts))
    return space.is_np_flattenable and not isinstance(space, Text)


def find(kind: str, modules: Sequence[str]) -> None:
    """Has the id registered, if ``modules``, or an installed package, register it."""
    for module in modules:
        search_here()
        try:
            import_module(module)
        except Exception as error:
            raise BadInputError(f"env.modules = {module}: cannot be imported: {one_line(error)}") from None
    physics.register()
    if kind not in gymnasium.registry:  # a package may offer to register what is below its name
        for offer in entry_points(group="gymnasium.envs", name=kind.partition("/")[0]):
            offer.load()()


def spaces_of(name: str, config: EnvConfig) -> Spaces:
    """Returns the spaces of a task's environment, which is made once for it. Raises BadInputError."""
    return _spaces_of(name, config.model_dump_json())


@cache
def _spaces_of(name: str, config: str) -> Spaces:
    env = make_env(name, EnvConfig.model_validate_json(config))
    assert isinstance(env.observation_space, Box)
    assert isinstance(env.action_space, Discrete)
    return Spaces(env.observation_space, int(env.action_space.n))


class EnvVector:
    """Steps ``num_envs`` copies of an environment together, with Gymnasium's ``SyncVectorEnv``."""

    def __init__(self, name: str, num_envs: int, config: EnvConfig, seed: int) -> None:
        self._name, self.num_envs = name, num_envs
        self.num_actions = spaces_of(name, config).num_actions
        made = [lambda: make_env(name, config)] * num_envs
        self._envs: Any = cast(Any, SyncVectorEnv(made, copy=False, autoreset_mode=AutoresetMode.SAME_STEP))
        self._space: Box = self._envs.single_observation_space
        space, self._start = self._space, int(self._envs.single_action_space.start)
        self._is_bounded = bool(np.isfinite(space.low).any() or np.isfinite(space.high).any())
        self._history = bytearray()  # uint16: the actions so far
        self._scores, self._lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        seeds = np.random.SeedSequence(seed).generate_state(num_envs, np.uint32).tolist()
        seen = self._envs.reset(seed=seeds)[0]
        self._check(seen)
        self.observations = arranged(seen, space)
        self.num_frames = 0

    def step(self, actions: NDArray[np.int64]) -> Step:
        """Takes ``actions`` [B]. Raises TaskError where an environment shows or gives what it must not."""
        self._history += actions.astype(np.uint16).tobytes()
        seen, rewards, terminated, truncated, infos = self._envs.step(actions + self._start)
        self._check(seen)
        if not np.isfinite(rewards).all():
            raise TaskError(f"{self._name}: gives a reward that is not finite: {rewards[~np.isfinite(rewards)][0]}")
        self.observations = arranged(seen, self._space)
        self.num_frames += self.num_envs
        self._scores += rewards
        self._lengths += 1
        ended = terminated | truncated
        truncated &= ~terminated
        episodes = [Episode(float(self._scores[i]), int(self._lengths[i]), int(i)) for i in ended.nonzero()[0]]
        self._scores[ended] = self._lengths[ended] = 0
        final = {int(env): self._final(infos["final_obs"][env]) for env in truncated.nonzero()[0]}
        return Step(self.observations, rewards.astype(np.float32), terminated, truncated, final, episodes)

    def _final(self, observation: Any) -> NDArray[Any]:
        batch = np.asarray(observation, self._space.dtype)[None]
        self._check(batch)
        last: NDArray[Any] = arranged(batch, self._space)[0].copy()
        return last

    def _check(self, seen: NDArray[Any]) -> None:
        """Raises TaskError for observations [B, …] that are not numbers of the space."""
        space = self._space
        if seen.dtype.kind == "f" and not np.isfinite(seen).all():
            raise TaskError(f"{self._name}: shows what is not finite: {seen[~np.isfinite(seen)][0]}")
        if self._is_bounded and seen.dtype.kind != "b":
            outside = (seen < space.low) | (seen > space.high)
            if outside.any():
                index = tuple(int(i) for i in np.argwhere(outside)[0])
                low, high = space.low[index[1:]], space.high[index[1:]]
                raise TaskError(
                    f"{self._name}: shows what is outside of its observation space: {seen[index]} at {index[1:]}, "
                    f"where {low} to {high} are allowed"
                )

    def state(self) -> dict[str, Tensor]:
        """Returns the history, 4 bytes an action, and the newest observations."""
        actions = np.frombuffer(self._history, np.uint16).astype(np.int32).reshape(-1, self.num_envs)
        return {"actions": torch.from_numpy(actions), "observations": torch.from_numpy(self.observations.copy())}

    def load_state(self, state: Tensors) -> None:
        """Plays the history again. Raises TaskError where it does not end in the same observations."""
        for actions in state["actions"].numpy().astype(np.int64):
            self.step(actions)
        if not np.array_equal(self.observations, state["observations"].numpy()):
            raise TaskError(
                f"{self._name}: with the same seed and the same actions it shows something else: it is not "
                "deterministic, and cannot be continued"
            )


def is_image(space: Box) -> bool:
    """Returns whether observations are images: of three dimensions, or of two and bytes; 3 pixels a side at least."""
    is_grey = len(space.shape) == 2 and space.dtype == np.uint8
    return (len(space.shape) == 3 or is_grey) and sorted(space.shape)[-2] >= 3


def arranged(batch: NDArray[Any], space: Box) -> NDArray[Any]:
    """Returns observations [B, …] as networks take them: images [B, C, H, W], all others [B, D]; a view."""
    if not is_image(space):
        return batch.reshape(len(batch), -1)
    if batch.ndim == 3:
        return batch[:, None]
    first, _, last = space.shape  # [H, W, C], Gymnasium's habit, unless the first is the smallest
    return batch if first < last else batch.transpose(0, 3, 1, 2)
