"""Steps a vector of Atari games whose whole state is a value: it can be saved, moved and put back to the same bits.

Preprocessing is that of Machado et al., "Revisiting the Arcade Learning Environment" (2018), as in
gymnasium's AtariPreprocessing: an action is held for ``frame_skip`` frames, the observation is the maximum
of the last two, resized by area. Stepping ``ALEInterface`` objects is as fast as ale-py's own vector
environment on one core, and only they can be snapshotted (docs/adr/0002-emulators-as-values.md).

Sticky actions are ours, not ALE's: an emulator's snapshot does not hold the action that ALE would repeat. Nor does it
hold whether a frame is half drawn, as it may be right after a reset: see :meth:`AtariVector.load_state`.
"""

import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import ale_py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leap_rl.atari.config import EnvConfig
from leap_rl.atari.emulators import give_back, take
from leap_rl.atari.games import Game, catalogue, parse_game
from leap_rl.atari.screens import Shrinker
from leap_rl.environments import Episode, Step
from leap_rl.types import Tensors

# Frames of these games may take longer than ALE waits for one: it may be half drawn at any time. Seen with all games by
# ``python -m tests.snapshots``.
LONG_FRAMES = frozenset({"tic_tac_toe_3d", "yars_revenge"})


class AtariVector:
    """Steps ``num_envs`` copies of one game together; a game that ends starts anew in the same step.

    Emulators are deterministic; sticky actions and no-op counts come from one generator of the vector. C is
    ``frame_stack`` (grey) or 3 × ``frame_stack`` (rgb), oldest frame first; a new game fills the stack with its first
    frame. A game that ends within the skipped frames shows the frames it still had.
    """

    def __init__(self, game: Game, num_envs: int, config: EnvConfig, seed: int, num_threads: int = 1) -> None:
        _, rng_seed = np.random.SeedSequence(seed).spawn(2)  # the second: a seed's fingerprint must not change
        self.num_envs = num_envs
        self.config = config
        self._long_frames = game.rom in LONG_FRAMES
        self._emulators = take(game, num_envs)
        weakref.finalize(self, give_back, game, self._emulators).atexit = False
        first = self._emulators[0]
        actions = first.getLegalActionSet() if config.full_action_space else first.getMinimalActionSet()
        self._actions = np.array([action.value for action in actions])  # ALE's numbers; 0 is NOOP
        self._held = np.zeros(num_envs, np.int64)  # what each emulator did in its last frame
        self._rng = torch.Generator().manual_seed(int(rng_seed.generate_state(1)[0]))

        grey, size = config.color == "grey", config.screen_size
        screen = first.getScreenDims()
        # The last two frames of this step and of the one before, in turn: [2, 2, B, height, width], in ALE's colours.
        self._frames = np.zeros((2, 2, num_envs, *screen), np.uint8)
        self._turn = 0
        self._shrinker = Shrinker(num_envs, screen, size, grey)
        self._channels = 1 if grey else 3
        self._captures = [  # turn → env → what writes its screen into either of its frames
            [[partial(e.getScreen, frames[i, env]) for i in range(2)] for env, e in enumerate(self._emulators)]
            for frames in self._frames
        ]
        # Channels-last in memory: the layout that convolutions are fast in.
        self._stacks = np.zeros((num_envs, size, size, self._channels * config.frame_stack), np.uint8)
        self.observations = self._stacks.transpose(0, 3, 1, 2)
        self._scores = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._lives = np.zeros(num_envs, np.int64)
        self._just_reset = np.zeros(num_envs, np.bool_)  # no frame was played since the emulator was reset
        self.num_frames = 0  # emulator frames since the start, no-ops included

        self._map = ThreadPoolExecutor(num_threads).map if num_threads > 1 else map
        length = -(-num_envs // num_threads)
        self._slices = [slice(i, min(i + length, num_envs)) for i in range(0, num_envs, length)]
        for env in range(num_envs):
            self._new_game(env)

    @property
    def num_actions(self) -> int:
        return len(self._actions)

    def step(self, actions: NDArray[np.int64]) -> Step:
        """Takes ``actions`` [B], each in [0, num_actions). Raises IndexError for any other, before stepping."""
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() >= self.num_actions:
            raise IndexError(f"actions must be {self.num_envs} numbers in [0, {self.num_actions}), not {actions}")
        played = self._stick(self._actions[actions]).tolist()
        rewards = np.zeros(self.num_envs, np.float32)
        self._turn = 1 - self._turn
        self._just_reset[:] = False
        self.num_frames += sum(self._map(lambda envs: self._act(envs, played, rewards), self._slices))
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
                episodes.append(Episode(float(self._scores[env]), int(self._lengths[env]), env))
                self._new_game(env)
        return Step(self.observations, rewards, terminated, truncated, final_observations, episodes)

    def screen(self, env: int) -> NDArray[np.uint8]:
        """Returns what an environment's emulator shows, in ALE's colours: uint8 [height, width, 3]."""
        return np.asarray(self._emulators[env].getScreenRGB(), np.uint8)

    def _stick(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns what is played in each skipped frame, [B, frame_skip]: with probability ``sticky_actions`` whatever
        was played in the frame before, else the chosen action [B]. (Machado et al. 2018, section 5.3.)"""
        played = np.repeat(chosen[:, None], self.config.frame_skip, axis=1)
        if self.config.sticky_actions:
            stuck = torch.rand(played.shape, generator=self._rng).numpy() < self.config.sticky_actions
            before = self._held
            for frame in range(self.config.frame_skip):
                before = played[:, frame] = np.where(stuck[:, frame], before, played[:, frame])
            self._held = played[:, -1].copy()
        return played

    def _act(self, envs: slice, played: list[list[int]], rewards: NDArray[np.float32]) -> int:
        """Plays ``frame_skip`` frames in each environment and pushes the frames that result. Returns how many were."""
        skip, limit = self.config.frame_skip, self.config.max_episode_frames
        num_frames = 0
        for env in range(envs.start, envs.stop):
            emulator, captures = self._emulators[env], self._captures[self._turn][env]
            before = emulator.getEpisodeFrameNumber()
            allowed = played[env][: limit - before]  # the frames that the frame limit leaves
            num_shown = 2 if len(allowed) == skip > 1 else 1
            reward = 0
            for action in allowed[:-num_shown]:
                reward += emulator.act(action)  # nothing happens, and the screen stays, where the game is over
            for action, capture in zip(allowed[-num_shown:], captures, strict=False):
                reward += emulator.act(action)
                capture()
            if num_shown == 1:
                captures[1]()
            rewards[env] = reward
            num_frames += emulator.getEpisodeFrameNumber() - before
        # After all of them: what NumPy and cv2 do in between slows an emulator down.
        self._shrinker.shrink(self._frames[self._turn, :, envs], self._frames[1 - self._turn, :, envs], envs)
        stacks, depth = self._stacks[envs], self._channels
        flat = stacks.reshape(-1)
        flat[:-depth] = flat[depth:]  # every pixel's channels move up; the last of each are written next
        stacks[..., -depth:] = self._shrinker.images[envs]
        return num_frames

    def _out_of_frames(self, emulator: ale_py.ALEInterface) -> bool:
        return bool(emulator.getEpisodeFrameNumber() >= self.config.max_episode_frames)

    def _new_game(self, env: int) -> None:
        emulator = self._emulators[env]
        emulator.reset_game()
        self._just_reset[env] = True
        if self.config.noop_max:
            noops = int(torch.randint(1, self.config.noop_max + 1, (), generator=self._rng))
            for _ in range(noops):
                emulator.act(0)
                self._just_reset[env] = emulator.game_over()
                if self._just_reset[env]:
                    emulator.reset_game()
            self.num_frames += noops
        self._scores[env] = self._lengths[env] = self._held[env] = 0
        self._lives[env] = emulator.lives()
        other = 1 - self._turn
        for capture in self._captures[other][env]:
            capture()
        this = slice(env, env + 1)
        self._shrinker.shrink(self._frames[other, :, this], self._frames[self._turn, :, this], this)
        self._frames[self._turn, :, env] = self._frames[other, :, env]
        self._stacks[env] = np.tile(self._shrinker.images[env], self.config.frame_stack)

    def state(self) -> dict[str, Tensor]:
        """Returns the whole state as named tensors (copies): about 15 kB an environment, and its frame stack.

        In the games of ``LONG_FRAMES`` it ends a frame that is half drawn, here as in whatever it is loaded into: they
        play on equally, but not as without it.
        """
        state = {
            "observations": torch.from_numpy(self.observations.copy()),
            "scores": torch.from_numpy(self._scores.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
            "lives": torch.from_numpy(self._lives.copy()),
            "just_reset": torch.from_numpy(self._just_reset.copy()),
            "held": torch.from_numpy(self._held.copy()),
            "num_frames": torch.tensor(self.num_frames),
            "rng": self._rng.get_state(),
        }
        for env, emulator in enumerate(self._emulators):
            snapshot = emulator.cloneState(include_rng=True)
            state[f"emulator/{env:04d}"] = torch.frombuffer(bytearray(snapshot.__getstate__()), dtype=torch.uint8)
            if self._long_frames:
                _end_frame(emulator)
                emulator.restoreState(snapshot)
        return state

    def load_state(self, state: Tensors) -> None:
        """Puts back what :meth:`state` of a vector with the same arguments returned.

        An emulator's snapshot leaves out whether a frame is half drawn (the TIA's flag of a partial frame). In some
        games (Q*bert, Tetris) it is after a reset; after a frame was played it is only in the games of ``LONG_FRAMES``.
        So an emulator first does last what the one in the snapshot had done last: it is reset, or plays a frame.
        """
        self.observations[:] = state["observations"].numpy()
        self._scores[:] = state["scores"].numpy()
        self._lengths[:] = state["lengths"].numpy()
        self._lives[:] = state["lives"].numpy()
        self.num_frames = int(state["num_frames"])
        self._held = state["held"].numpy().copy()
        self._rng.set_state(state["rng"])
        before = self._just_reset
        no_word = torch.zeros(self.num_envs, dtype=torch.bool)  # of a snapshot by an earlier version
        self._just_reset = state.get("just_reset", no_word).numpy().copy()
        for env, emulator in enumerate(self._emulators):
            if self._long_frames:
                _end_frame(emulator)
            elif self._just_reset[env] and not before[env]:
                emulator.reset_game()
            elif before[env] and not self._just_reset[env]:
                emulator.act(0)
            snapshot = ale_py.ALEState.__new__(ale_py.ALEState)
            snapshot.__setstate__(state[f"emulator/{env:04d}"].numpy().tobytes())  # type: ignore[arg-type]
            emulator.restoreState(snapshot)


def _end_frame(emulator: ale_py.ALEInterface) -> None:
    """Has the emulator end in a whole frame, whatever it did before; it must be put back to a snapshot then."""
    emulator.reset_game()
    emulator.act(0)


def background(game: str, config: EnvConfig) -> list[int]:
    """Returns what ``env.center`` takes from each channel of a game's observations: zeros where it takes nothing."""
    grey, *rgb = catalogue()[parse_game(game).rom].background if config.center == "background" else (0, 0, 0, 0)
    return (rgb if config.color == "rgb" else [grey]) * config.frame_stack
