"""Environments as values: sticky actions, seeds, and snapshots that go on to the same bits."""

import struct
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leap_rl.atari.config import EnvConfig
from leap_rl.atari.vector import AtariVector
from tests.test_atari import PLAIN, Trace, assert_same, draw_actions, make, play, with_

# ------------------------------------------------------------------------------------------ sticky actions


def test_a_frame_repeats_the_last_action_as_often_as_it_should() -> None:
    """Seen on the paddle of Breakout, which ALE moves one way or the other every frame."""

    def paddle() -> int:
        """The first number of an emulator's state. It grows to the left."""
        return struct.unpack_from("<i", vector._emulators[0].cloneState().__getstate__())[0]

    config = with_(PLAIN, frame_skip=1, frame_stack=1, sticky_actions=0.25, max_episode_frames=50)
    vector = make("breakout", config)
    right, left = 2, 3
    position, held, repeats = paddle(), None, []
    for index in range(3000):
        asked = (right, left)[index % 2]
        ended = vector.step(np.array([asked])).truncated[0]
        before, position = position, paddle()
        moved = None if ended or position == before else (left if position > before else right)
        if held and moved and held != asked:  # otherwise a repeat cannot be told from the action
            repeats.append(moved == held)
        held = moved
    assert len(repeats) > 1500
    assert abs(np.mean(repeats) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(repeats))


def test_an_action_that_always_sticks_never_comes_through() -> None:
    """A new game holds the no-op."""
    stuck, idle = make("space_invaders", with_(PLAIN, sticky_actions=1.0)), make("space_invaders")
    actions = draw_actions(stuck, 100)
    assert_same(play(stuck, actions), play(idle, np.zeros_like(actions)))


# ------------------------------------------------------------------------------------- seeds and settings


def streams(vector: AtariVector, num_steps: int = 120) -> set[bytes]:
    """What each environment shows when all take the same actions."""
    actions = np.random.default_rng(0).integers(vector.num_actions, size=(num_steps, 1))
    trace = play(vector, np.repeat(actions, vector.num_envs, axis=1))
    return {trace["observations"][:, env].tobytes() for env in range(vector.num_envs)}


def test_every_seed_and_every_environment_has_its_own_stream() -> None:
    sticky = with_(PLAIN, sticky_actions=0.25)
    seeds = [streams(make("breakout", sticky, num_envs=2, seed=seed)) for seed in (3, 4, 2**64 - 1)]
    assert len(set.union(*seeds)) == 6


def test_without_sticky_actions_and_no_ops_the_environments_agree() -> None:
    """The control of the test above: nothing else is random."""
    assert len(streams(make("breakout", PLAIN, num_envs=2))) == 1


def test_no_ops_alone_tell_environments_apart() -> None:
    assert len(streams(make("pong", with_(PLAIN, noop_max=30), num_envs=3))) > 1


def test_equal_seeds_give_equal_bits_with_one_thread_or_two() -> None:
    config = EnvConfig(max_episode_frames=200)
    traces = []
    for num_threads in (1, 1, 2):
        vector = make("space_invaders", config, num_envs=3, num_threads=num_threads)
        traces.append(play(vector, draw_actions(vector, 100)))
    assert_same(traces[0], traces[1])
    assert_same(traces[0], traces[2])


def test_the_full_action_space_has_eighteen_actions() -> None:
    vector = make("freeway", with_(PLAIN, full_action_space=True))
    assert vector.num_actions == 18
    vector.step(np.array([17]))
    with pytest.raises(IndexError):
        vector.step(np.array([18]))


def test_mode_and_difficulty_are_those_of_the_task_in_every_game() -> None:
    config = with_(PLAIN, max_episode_frames=100)
    default, chosen = make("breakout", config), make("breakout:mode=4,difficulty=1", config)
    actions = draw_actions(default, 60)
    assert not np.array_equal(play(default, actions)["observations"], play(chosen, actions)["observations"])
    for vector, mode, difficulty in ((default, 0, 0), (chosen, 4, 1)):
        state = vector._emulators[0].cloneState()  # in the third game by now
        assert (state.getCurrentMode(), state.getDifficulty()) == (mode, difficulty)


# ------------------------------------------------------------------------------------------- the snapshot


def go_on(game: str, config: EnvConfig, seed: int, state: bytes, actions: NDArray[np.int64]) -> Trace:
    """Runs in another process: a fresh vector takes over."""
    vector = make(game, config, actions.shape[1], seed)
    vector.load_state(safetensors.torch.load(state))
    return play(vector, actions)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    game=st.sampled_from(
        ["breakout", "breakout:mode=4,difficulty=1", "pong:difficulty=2", "space_invaders:mode=5", "asterix", "qbert"]
    ),
    color=st.sampled_from(["grey", "rgb"]),
    life_loss=st.sampled_from(["ignore", "terminal"]),
    frame_limit=st.integers(61, 300),  # a new game, and so a draw of no-ops, every 8 to 75 steps
    num_steps_before=st.integers(0, 150),
    seed=st.integers(0, 2**63),
)
def test_a_vector_goes_on_in_another_process_to_the_same_bits(
    elsewhere: ProcessPoolExecutor,
    game: str,
    color: str,
    life_loss: str,
    frame_limit: int,
    num_steps_before: int,
    seed: int,
) -> None:
    config = EnvConfig(color=color, life_loss=life_loss, max_episode_frames=frame_limit, sticky_actions=0.25)
    vector = make(game, config, num_envs=2, seed=seed)
    play(vector, draw_actions(vector, num_steps_before))
    snapshot = safetensors.torch.save(vector.state())
    actions = draw_actions(vector, 160, seed=1)
    expected = play(vector, actions)
    assert sum(map(len, expected["episodes"])) >= 4
    assert_same(elsewhere.submit(go_on, game, config, seed, snapshot, actions).result(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("game", ["breakout", "qbert", "space_invaders:mode=2"])
def test_a_snapshot_goes_on_across_games_that_end_by_themselves(elsewhere: ProcessPoolExecutor, game: str) -> None:
    vector = make(game, EnvConfig(), num_envs=2)
    play(vector, draw_actions(vector, 77))
    snapshot = safetensors.torch.save(vector.state())
    actions = draw_actions(vector, 700, seed=1)
    expected = play(vector, actions)
    assert expected["terminated"].any()
    assert_same(elsewhere.submit(go_on, game, EnvConfig(), 7, snapshot, actions).result(), expected)


def test_a_snapshot_is_a_copy_and_taking_it_disturbs_nothing() -> None:
    config = EnvConfig(max_episode_frames=120)
    disturbed, alone = (make("breakout", config, num_envs=2) for _ in range(2))
    first, second = draw_actions(alone, 40), draw_actions(alone, 60, seed=1)
    play(disturbed, first)
    play(alone, first)
    snapshot = disturbed.state()
    before = safetensors.torch.save(snapshot)
    expected = play(alone, second)
    assert_same(play(disturbed, second), expected)
    assert safetensors.torch.save(snapshot) == before

    disturbed.load_state(snapshot)  # back in time, in a vector that has gone on
    assert safetensors.torch.save(disturbed.state()) == before
    assert_same(play(disturbed, second), expected)


def test_a_life_lost_right_after_a_snapshot_is_seen() -> None:
    """The lives there were before the step belong to the state."""
    config = with_(PLAIN, life_loss="terminal")
    vector = make("breakout", config)
    actions = draw_actions(vector, 400)
    lost = int(play(vector, actions)["terminated"][:, 0].argmax())
    before = make("breakout", config)
    play(before, actions[:lost])
    restored = make("breakout", config)
    restored.load_state(before.state())
    assert restored.step(actions[lost]).terminated[0]
    assert lost > 0
