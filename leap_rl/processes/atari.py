"""A vector of Atari games whose whole state is a value: it can be saved, moved and put back to the same bits.

Preprocessing is that of Machado et al., "Revisiting the Arcade Learning Environment" (2018), as in
gymnasium's AtariPreprocessing: an action is held for ``frame_skip`` frames, the observation is the maximum
of the last two, resized by area. Stepping ``ALEInterface`` objects is as fast as ale-py's own vector
environment on one core, and only they can be snapshotted (docs/adr/0002-emulators-as-values.md).

Sticky actions are ours, not ALE's: an emulator's snapshot does not hold the action that ALE would repeat.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ale_py
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leap_rl.config import EnvConfig
from leap_rl.tasks import Game, catalogue, open_game, parse_game
from leap_rl.types import Tensors

cv2.setNumThreads(0)  # one thread: resizing is called from threads that own a core already


class Episode(NamedTuple):
    """A finished game."""

    score: float  # sum of raw rewards: the game's own score
    length: int  # agent steps


class Step(NamedTuple):
    """What one action in each of B environments led to."""

    observations: NDArray[np.uint8]  # [B, C, H, W]; the vector's own buffer: valid until the next step
    rewards: NDArray[np.float32]  # [B], raw
    terminated: NDArray[np.bool_]  # [B]; the value of what follows is 0
    truncated: NDArray[np.bool_]  # [B]; cut by the frame limit: the value of final_observations follows
    final_observations: dict[int, NDArray[np.uint8]]  # env → [C, H, W], for truncated environments
    episodes: list[Episode]  # games that ended with this step


class AtariVector:
    """``num_envs`` copies of one game, stepped together; a game that ends starts anew in the same step.

    Every environment has its own emulator seed; sticky actions and no-op counts come from one generator of
    the vector. C is ``frame_stack`` (grey) or 3 × ``frame_stack`` (rgb), oldest frame first; a new game fills
    the stack with its first frame. A game that ends within the skipped frames shows the frames it still had.
    """

    def __init__(self, game: Game, num_envs: int, config: EnvConfig, seed: int, num_threads: int = 1) -> None:
        emulator_seeds, rng_seed = np.random.SeedSequence(seed).spawn(2)
        self.num_envs = num_envs
        self.config = config
        self._emulators = [_open(game, int(value) >> 1) for value in emulator_seeds.generate_state(num_envs, np.uint32)]
        first = self._emulators[0]
        actions = first.getLegalActionSet() if config.full_action_space else first.getMinimalActionSet()
        self._actions = np.array([action.value for action in actions])  # ALE's numbers; 0 is NOOP
        self._held = np.zeros(num_envs, np.int64)  # what each emulator did in its last frame
        self._rng = torch.Generator().manual_seed(int(rng_seed.generate_state(1)[0]))

        grey, size = config.color == "grey", config.screen_size
        screen = first.getScreenDims() if grey else (*first.getScreenDims(), 3)
        self._frames = np.zeros((num_envs, 2, *screen), np.uint8)  # the last two raw frames
        self._shrinkers = [_Shrinker(screen, size) for _ in range(num_envs)]
        self._channels = 1 if grey else 3
        # Channels-last in memory: the layout that convolutions are fast in.
        self._stacks = np.zeros((num_envs, size, size, self._channels * config.frame_stack), np.uint8)
        self.observations = self._stacks.transpose(0, 3, 1, 2)
        self._scores = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._lives = np.zeros(num_envs, np.int64)
        self.num_frames = 0  # emulator frames since the start, no-ops included

        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._slices = [range(i, num_envs, num_threads) for i in range(num_threads)]
        for env in range(num_envs):
            self._new_game(env)

    @property
    def num_actions(self) -> int:
        return len(self._actions)

    def step(self, actions: NDArray[np.int64]) -> Step:
        """Takes ``actions`` [B], each in [0, num_actions). Raises IndexError for any other, before stepping."""
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() >= self.num_actions:
            raise IndexError(f"actions must be {self.num_envs} numbers in [0, {self.num_actions}), not {actions}")
        played = self._stick(self._actions[actions])
        rewards = np.zeros(self.num_envs, np.float32)
        frames = np.zeros(self.num_envs, np.int64)
        self._in_parallel(lambda envs: self._act(envs, played, rewards, frames))
        self.num_frames += int(frames.sum())
        self._scores += rewards
        self._lengths += 1

        terminated = np.zeros(self.num_envs, np.bool_)
        truncated = np.zeros(self.num_envs, np.bool_)
        final_observations: dict[int, NDArray[np.uint8]] = {}
        episodes: list[Episode] = []
        for env, emulator in enumerate(self._emulators):
            lives = emulator.lives()
            if emulator.game_over(with_truncation=False):
                terminated[env] = True
            elif self._out_of_frames(emulator):
                truncated[env] = True
                final_observations[env] = self.observations[env].copy()
            elif lives < self._lives[env] and self.config.life_loss == "terminal":
                terminated[env] = True  # the game itself goes on
            self._lives[env] = lives
            if truncated[env] or emulator.game_over(with_truncation=False):
                episodes.append(Episode(float(self._scores[env]), int(self._lengths[env])))
                self._new_game(env)
        return Step(self.observations, rewards, terminated, truncated, final_observations, episodes)

    def _stick(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is played in each skipped frame, [B, frame_skip]: with probability ``sticky_actions`` whatever
        was played in the frame before, else the chosen action [B]. (Machado et al. 2018, section 5.3.)"""
        played = np.repeat(chosen[:, None], self.config.frame_skip, axis=1)
        if self.config.sticky_actions:
            stuck = torch.rand(played.shape, generator=self._rng).numpy() < self.config.sticky_actions
            before = self._held
            for frame in range(self.config.frame_skip):
                before = played[:, frame] = np.where(stuck[:, frame], before, played[:, frame])
            self._held = played[:, -1].copy()
        return played

    def _in_parallel(self, work: Callable[[Iterable[int]], None]) -> None:
        if self._pool is None:
            work(range(self.num_envs))
        else:
            list(self._pool.map(work, self._slices))  # list: raise what a thread raised

    def _act(self, envs: Iterable[int], played: NDArray[np.int64], rewards: NDArray[Any], frames: NDArray[Any]) -> None:
        """Plays ``frame_skip`` frames in each environment and pushes the frame that results."""
        skip, limit = self.config.frame_skip, self.config.max_episode_frames
        for env in envs:
            emulator = self._emulators[env]
            before = emulator.getEpisodeFrameNumber()
            allowed = played[env, : limit - before].tolist()  # the frames that the frame limit leaves
            first_shown = min(skip - 2, len(allowed) - 1)
            reward, captured = 0, 0
            for frame, action in enumerate(allowed):
                reward += emulator.act(action)  # nothing happens, and the screen stays, where the game is over
                if frame >= first_shown:
                    self._capture(env, captured)
                    captured += 1
            rewards[env] = reward
            frames[env] = emulator.getEpisodeFrameNumber() - before
            self._push_frame(env, captured)

    def _out_of_frames(self, emulator: ale_py.ALEInterface) -> bool:
        return bool(emulator.getEpisodeFrameNumber() >= self.config.max_episode_frames)

    def _capture(self, env: int, index: int) -> None:
        emulator, buffer = self._emulators[env], self._frames[env, index]
        emulator.getScreenGrayscale(buffer) if self._channels == 1 else emulator.getScreenRGB(buffer)

    def _push_frame(self, env: int, captured: int) -> None:
        """Maximum of the captured frames → resize → newest frame of the stack."""
        first, second = self._frames[env]
        resized = self._shrinkers[env].shrink(np.maximum(first, second, out=first) if captured == 2 else first)
        stack, depth = self._stacks[env], self._channels
        flat = stack.reshape(-1)
        flat[:-depth] = flat[depth:]  # every pixel's channels move up; the last of each are written next
        stack[..., -depth:] = resized.reshape(*stack.shape[:2], depth)

    def _new_game(self, env: int) -> None:
        emulator = self._emulators[env]
        emulator.reset_game()
        if self.config.noop_max:
            noops = int(torch.randint(1, self.config.noop_max + 1, (), generator=self._rng))
            for _ in range(noops):
                emulator.act(0)
                if emulator.game_over():
                    emulator.reset_game()
            self.num_frames += noops
        self._scores[env] = self._lengths[env] = self._held[env] = 0
        self._lives[env] = emulator.lives()
        self._capture(env, 0)
        for _ in range(self.config.frame_stack):
            self._push_frame(env, captured=1)

    def state(self) -> dict[str, Tensor]:
        """The whole state as named tensors (copies): about 15 kB an environment, and its frame stack."""
        state = {
            "observations": torch.from_numpy(self.observations.copy()),
            "scores": torch.from_numpy(self._scores.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
            "lives": torch.from_numpy(self._lives.copy()),
            "held": torch.from_numpy(self._held.copy()),
            "num_frames": torch.tensor(self.num_frames),
            "rng": self._rng.get_state(),
        }
        for env, emulator in enumerate(self._emulators):
            snapshot = emulator.cloneState(include_rng=True).__getstate__()
            state[f"emulator/{env:04d}"] = torch.frombuffer(bytearray(snapshot), dtype=torch.uint8)
        return state

    def load_state(self, state: Tensors) -> None:
        """Puts back what :meth:`state` of a vector with the same arguments returned."""
        self.observations[:] = state["observations"].numpy()
        self._scores[:] = state["scores"].numpy()
        self._lengths[:] = state["lengths"].numpy()
        self._lives[:] = state["lives"].numpy()
        self.num_frames = int(state["num_frames"])
        self._held = state["held"].numpy().copy()
        self._rng.set_state(state["rng"])
        for env, emulator in enumerate(self._emulators):
            snapshot = ale_py.ALEState.__new__(ale_py.ALEState)
            snapshot.__setstate__(state[f"emulator/{env:04d}"].numpy().tobytes())  # type: ignore[arg-type]
            emulator.restoreState(snapshot)


class _Shrinker:
    """cv2.resize by area to the same bits, of what has changed since the last frame only.

    Where height / size is a fraction p / q that floating point holds exactly (210 / 84 = 5 / 2), every p rows of a
    frame become q rows of the result by themselves, with the same weights: only groups of p rows that changed are
    resized. Elsewhere weights are rounded differently from group to group, and the whole frame is one group.
    """

    def __init__(self, screen: tuple[int, ...], size: int) -> None:
        rows, rows_out = (1 / (size / screen[0])).as_integer_ratio()  # the scale as cv2 computes it
        if size % rows_out:
            rows, rows_out = screen[0], size
        num_groups = size // rows_out
        self._last = np.zeros((num_groups, rows, *screen[1:]), np.uint8)
        self._result = np.zeros((num_groups, rows_out, size, *screen[2:]), np.uint8)

    def shrink(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """[height, width] or [height, width, 3] → [size, size] or [size, size, 3], valid until the next call."""
        last, result = self._last, self._result
        groups = frame.reshape(last.shape)
        # The screen is 160 wide: rows are whole words of 8 bytes.
        words, last_words = (array.reshape(len(last), -1).view(np.uint64) for array in (groups, last))
        changed = (words != last_words).any(axis=1).nonzero()[0]
        if len(changed):
            strip = groups[changed]
            last[changed] = strip
            _, rows_out, size, *channels = result.shape
            strip = cv2.resize(
                strip.reshape(-1, *frame.shape[1:]), (size, len(changed) * rows_out), interpolation=cv2.INTER_AREA
            )
            result[changed] = strip.reshape(len(changed), rows_out, size, *channels)
        return result.reshape(-1, *result.shape[2:])


def background(game: str, config: EnvConfig) -> list[int]:
    """What ``env.center`` takes from each channel of a game's observations: zeros where it takes nothing."""
    grey, *colors = catalogue()[parse_game(game).rom].background if config.center == "background" else (0, 0, 0, 0)
    return (colors if config.color == "rgb" else [grey]) * config.frame_stack


def _open(game: Game, seed: int) -> ale_py.ALEInterface:
    emulator = open_game(game.rom, seed)
    if game.mode is not None:
        emulator.setMode(game.mode)
    if game.difficulty is not None:
        emulator.setDifficulty(game.difficulty)
    return emulator
