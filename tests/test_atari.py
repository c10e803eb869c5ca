"""The vector of games, on the real emulator: against gymnasium, against a plain loop, against itself elsewhere."""

from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing
from numpy.typing import NDArray

from leap_rl.atari import vector as atari
from leap_rl.atari.config import EnvConfig
from leap_rl.atari.emulators import open_game, take
from leap_rl.atari.games import parse_game
from leap_rl.atari.vector import AtariVector
from leap_rl.environments import Episode

gymnasium.register_envs(ale_py)
PLAIN = EnvConfig(sticky_actions=0.0, noop_max=0)
Trace = dict[str, Any]  # what a vector showed: name → array with one row a step


def make(game: str, config: EnvConfig = PLAIN, num_envs: int = 1, seed: int = 7, num_threads: int = 1) -> AtariVector:
    return AtariVector(parse_game(game), num_envs, config, seed, num_threads)


def with_(config: EnvConfig, **changes: Any) -> EnvConfig:
    return EnvConfig(**config.model_dump() | changes)


def draw_actions(vector: AtariVector, num_steps: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(vector.num_actions, size=(num_steps, vector.num_envs))


def play(vector: AtariVector, actions: NDArray[np.int64]) -> Trace:
    steps = []
    for row in actions:
        step = vector.step(row)
        steps.append(step._replace(observations=step.observations.copy()))
    fields = ("observations", "rewards", "terminated", "truncated")
    trace: Trace = {name: np.array([getattr(step, name) for step in steps]) for name in fields}
    trace["final_observations"] = [step.final_observations for step in steps]
    trace["episodes"] = [step.episodes for step in steps]
    trace["num_frames"] = vector.num_frames
    return trace


def assert_same(left: Trace, right: Trace) -> None:
    assert left["episodes"] == right["episodes"]
    assert left["num_frames"] == right["num_frames"]
    for name in ("rewards", "terminated", "truncated", "observations"):
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    for step, (ours, theirs) in enumerate(zip(left["final_observations"], right["final_observations"], strict=True)):
        assert ours.keys() == theirs.keys(), step
        assert all(np.array_equal(ours[env], theirs[env]) for env in ours), step


# ------------------------------------------------------------------------------------- against gymnasium


def gymnasium_twin(vector: AtariVector, name: str, **preprocessing: Any) -> AtariPreprocessing:
    """gymnasium's environment with the emulator seed of the vector's first."""
    config = vector.config
    env = gymnasium.make(
        f"ALE/{name}-v5",
        frameskip=1,
        repeat_action_probability=config.sticky_actions,
        full_action_space=False,
        max_num_frames_per_episode=config.max_episode_frames,
        disable_env_checker=True,
    )
    game: Any = env.unwrapped
    game.ale.setInt("random_seed", vector._emulators[0].getInt("random_seed"))
    game.load_game()
    return AtariPreprocessing(
        env,
        noop_max=0,
        frame_skip=config.frame_skip,
        screen_size=config.screen_size,
        grayscale_obs=config.color == "grey",
        **preprocessing,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_steps", "changes"),
    [
        ("Pong", 1100, {}),
        ("Breakout", 400, {"color": "rgb"}),
        ("Qbert", 500, {"color": "rgb", "frame_stack": 1}),
        ("SpaceInvaders", 700, {"screen_size": 64, "frame_skip": 3}),
        ("Breakout", 300, {"max_episode_frames": 207, "frame_stack": 2}),
        ("Breakout", 700, {"frame_skip": 1}),
        ("Asterix", 500, {"frame_skip": 2}),
        ("AirRaid", 250, {"max_episode_frames": 407}),  # PAL
        ("Carnival", 250, {"max_episode_frames": 407, "color": "rgb"}),  # 214 lines
        ("Pooyan", 250, {"max_episode_frames": 407}),  # 220
    ],
)
def test_pixels_rewards_and_ends_are_those_of_gymnasium(name: str, num_steps: int, changes: dict[str, Any]) -> None:
    """The last observation of a game is not compared: gymnasium leaves the frames of the step before in it.
    ``test_a_game_cut_within_the_skipped_frames_shows_the_frames_it_had`` holds ours against the emulator."""
    vector = make(name, with_(PLAIN, **changes))
    twin = gymnasium_twin(vector, name)
    depth = 1 if vector.config.color == "grey" else 3
    expected, _ = twin.reset()
    games_ended = 0
    for index, action in enumerate(draw_actions(vector, num_steps)):
        frame = vector.observations[0, -depth:].transpose(1, 2, 0).squeeze()
        np.testing.assert_array_equal(frame, expected, err_msg=f"observation {index}")
        ours = vector.step(action)
        expected, reward, terminated, truncated, _ = twin.step(int(action[0]))
        assert (ours.rewards[0], ours.terminated[0], ours.truncated[0]) == (reward, terminated, truncated), index
        if terminated or truncated:
            expected, _ = twin.reset()
            games_ended += 1
    assert games_ended >= 1


@pytest.mark.parametrize("name", ["Breakout", "SpaceInvaders", "Qbert"])
def test_a_lost_life_terminates_where_gymnasium_says_so(name: str) -> None:
    """Up to the first lost life: there gymnasium stops within the skipped frames and we go on to their end."""
    vector = make(name, with_(PLAIN, life_loss="terminal"))
    twin = gymnasium_twin(vector, name, terminal_on_life_loss=True)
    twin.reset()
    for action in draw_actions(vector, 1000):
        ours = vector.step(action)
        _, _, terminated, _, info = twin.step(int(action[0]))
        assert ours.terminated[0] == terminated
        if terminated:
            break
    assert terminated
    assert info["lives"] > 0
    assert not ours.episodes, "the game itself goes on"
    assert not (ours.observations[0, 0] == ours.observations[0, 3]).all(), "the frame stack goes on too"


def test_a_lost_life_cuts_returns_but_not_the_game() -> None:
    lives = {}
    for life_loss in ("ignore", "terminal"):
        vector = make("breakout", with_(PLAIN, life_loss=life_loss))
        lives[life_loss] = play(vector, draw_actions(vector, 400))
    ignored, terminal = lives["ignore"], lives["terminal"]
    games = sum(map(len, ignored["episodes"]))
    assert games >= 1
    assert terminal["episodes"] == ignored["episodes"]
    assert np.array_equal(terminal["observations"], ignored["observations"])
    assert ignored["terminated"].sum() == games
    ends = np.flatnonzero([len(episodes) for episodes in ignored["episodes"]])
    assert terminal["terminated"][: ends[0] + 1].sum() == 5, "Breakout has five lives"


# --------------------------------------------------------------------- against a plain loop on the emulator


def screen(emulator: ale_py.ALEInterface, color: str) -> NDArray[np.uint8]:
    return emulator.getScreenGrayscale() if color == "grey" else emulator.getScreenRGB()


def shrink(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Raw screen → [C, 84, 84]."""
    small = cv2.resize(raw, (84, 84), interpolation=cv2.INTER_AREA)
    return small.reshape(84, 84, -1).transpose(2, 0, 1)


@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_the_stack_is_oldest_first_and_a_new_game_fills_it_with_its_first_frame(color: str) -> None:
    vector = make("breakout", with_(PLAIN, color=color, frame_stack=3))
    emulator = open_game("breakout")
    emulator.reset_game()
    shown = [shrink(screen(emulator, color))] * 3
    ended = 0
    for (action,) in draw_actions(vector, 300):
        np.testing.assert_array_equal(vector.observations[0], np.concatenate(shown[-3:]))
        step = vector.step(np.array([action]))
        screens = []
        for _ in range(4):
            emulator.act(emulator.getMinimalActionSet()[action])
            screens.append(screen(emulator, color))
        shown.append(shrink(np.maximum(screens[2], screens[3])))
        if step.terminated[0]:
            emulator.reset_game()
            shown = [shrink(screen(emulator, color))] * 3
            ended += 1
    assert ended >= 1


def test_rgb_channels_are_red_green_blue() -> None:
    """Breakout's top row of bricks is red, its lowest blue."""
    frame = make("breakout", with_(PLAIN, color="rgb", frame_stack=1)).observations[0]
    red, green, blue = frame[:, 24, 42]
    assert red > 150 > 2 * max(green, blue) - 50
    red, green, blue = frame[:, 36, 42]
    assert blue > 150 > 2 * max(red, green) - 50


@pytest.mark.parametrize("frames_left", [1, 2, 3, 4])
@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_a_game_cut_within_the_skipped_frames_shows_the_frames_it_had(color: str, frames_left: int) -> None:
    limit = 12 * 4 + frames_left
    vector = make("pong", with_(PLAIN, color=color, max_episode_frames=limit))
    depth = len(vector.observations[0]) // 4
    emulator = open_game("pong")
    emulator.reset_game()
    actions = draw_actions(vector, 13)
    for action in actions[:-1]:
        step = vector.step(action)
        assert not step.truncated[0]
        assert not step.final_observations
        for _ in range(4):
            emulator.act(emulator.getMinimalActionSet()[action[0]])
    before = vector.observations[0].copy()
    final = vector.step(actions[-1]).final_observations[0]

    screens = []
    for _ in range(frames_left):
        emulator.act(emulator.getMinimalActionSet()[actions[-1, 0]])
        screens.append(screen(emulator, color))
    of_last_two = screens[2:] or screens[-1:]
    np.testing.assert_array_equal(final[-depth:], shrink(np.maximum.reduce(of_last_two)))
    np.testing.assert_array_equal(final[:-depth], before[depth:])


# -------------------------------------------------------------------------------- ends, scores and counts


def test_the_frame_limit_truncates_and_does_not_terminate() -> None:
    vector = make("pong", with_(PLAIN, noop_max=10, max_episode_frames=50), num_envs=2)
    trace = play(vector, draw_actions(vector, 60))
    assert trace["truncated"].sum() >= 8
    assert not trace["terminated"].any()
    for truncated, final, observations in zip(
        trace["truncated"], trace["final_observations"], trace["observations"], strict=True
    ):
        assert set(final) == set(np.flatnonzero(truncated))
        for env, observation in final.items():
            assert observation.shape == observations[env].shape
            assert not np.array_equal(observation, observations[env]), "the vector already shows the next game"
    lengths = [episode.length for episodes in trace["episodes"] for episode in episodes]
    assert len(lengths) == trace["truncated"].sum()
    assert set(lengths) <= {10, 11, 12, 13}, "1 to 10 of the 50 frames went to no-ops"
    assert len(set(lengths)) > 1


def test_a_game_that_ends_by_itself_terminates_and_is_not_truncated() -> None:
    vector = make("breakout")
    trace = play(vector, draw_actions(vector, 400))
    assert trace["terminated"].sum() == sum(map(len, trace["episodes"])) >= 1
    assert not trace["truncated"].any()
    assert not any(trace["final_observations"])


def test_episodes_hold_the_raw_score_and_the_length() -> None:
    vector = make("asterix", with_(PLAIN, sticky_actions=0.25, max_episode_frames=1100), num_envs=2)
    trace = play(vector, draw_actions(vector, 700))
    scores, lengths, found = np.zeros(2), np.zeros(2, int), []
    for rewards, ended, episodes in zip(
        trace["rewards"], trace["terminated"] | trace["truncated"], trace["episodes"], strict=True
    ):
        scores += rewards
        lengths += 1
        expected = [Episode(scores[env], lengths[env], env) for env in np.flatnonzero(ended)]
        assert episodes == expected
        found += expected
        scores[ended], lengths[ended] = 0, 0
    assert trace["truncated"].any(), "both kinds of end must be seen"
    assert trace["terminated"].any()
    assert max(episode.score for episode in found) >= 50, "Asterix scores in fifties: raw, not clipped"


def test_every_frame_is_counted_no_ops_included(monkeypatch: pytest.MonkeyPatch) -> None:
    acted = 0

    class Counting:
        def __init__(self, emulator: ale_py.ALEInterface) -> None:
            self._emulator = emulator

        def __getattr__(self, name: str) -> Any:
            return getattr(self._emulator, name)

        def act(self, action: Any) -> float:
            nonlocal acted
            acted += 1
            return self._emulator.act(action)

    monkeypatch.setattr(atari, "take", lambda game, count: [Counting(emulator) for emulator in take(game, count)])
    monkeypatch.setattr(atari, "give_back", lambda *_: None)
    vector = make("breakout", EnvConfig(max_episode_frames=301), num_envs=2)
    assert vector.num_frames == acted > 0
    for row in draw_actions(vector, 300):
        vector.step(row)
        assert vector.num_frames == acted


def test_no_ops_are_one_to_noop_max() -> None:
    vector = make("pong", with_(PLAIN, noop_max=3, max_episode_frames=4))  # a new game at every step
    seen = set()
    for row in draw_actions(vector, 40):
        vector.step(row)
        seen.add(vector._emulators[0].getEpisodeFrameNumber())
    assert seen == {1, 2, 3}


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("action", [-1, 3, 1_000_000])
def test_an_action_out_of_range_is_an_index_error(action: int, num_threads: int) -> None:
    vector = make("freeway", num_envs=2, num_threads=num_threads)
    assert vector.num_actions == 3
    with pytest.raises(IndexError, match=str(action)):
        vector.step(np.array([0, action]))
