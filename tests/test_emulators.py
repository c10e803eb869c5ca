"""Emulators that are kept from one task to the next: one that was put back is as good as a new one."""

from collections.abc import Iterator

import numpy as np
import pytest

from leap_rl.atari import emulators
from leap_rl.atari.config import EnvConfig
from leap_rl.atari.emulators import give_back, take
from leap_rl.atari.games import HELD_OUT, META_TRAINING, OUT_OF_DISTRIBUTION, parse_game
from leap_rl.atari.vector import AtariVector


@pytest.fixture(autouse=True)
def _none_kept() -> Iterator[None]:
    emulators._forget()
    yield
    emulators._forget()


def num_kept(name: str) -> int:
    return len(emulators._idle.get(parse_game(name), []))


def test_one_that_was_taken_before_all_was_forgotten_is_not_kept() -> None:
    game = parse_game("pong")
    taken = take(game, 1)
    emulators._forget()
    give_back(game, taken)
    assert num_kept("pong") == 0
    assert take(game, 1) != taken


@pytest.mark.parametrize(
    "name", [*META_TRAINING, *HELD_OUT, *OUT_OF_DISTRIBUTION, "breakout:mode=4,difficulty=1", "space_invaders:mode=7"]
)
def test_one_that_was_played_and_put_back_plays_as_a_new_one(name: str) -> None:
    game, rng = parse_game(name), np.random.default_rng(0)
    [used] = take(game, 1)
    actions = [action.value for action in used.getMinimalActionSet()]
    used.reset_game()
    for index in rng.integers(len(actions), size=400):
        used.act(actions[index])
    give_back(game, [used])
    [again], new = take(game, 1), emulators._open(game)
    assert again is used
    for emulator in (again, new):
        emulator.reset_game()
    for index in rng.integers(len(actions), size=200):
        assert again.act(actions[index]) == new.act(actions[index])
        assert again.lives() == new.lives()
        if new.game_over():
            assert again.game_over()
            again.reset_game()
            new.reset_game()
    assert np.array_equal(again.getScreenRGB(), new.getScreenRGB())
    assert again.cloneState().__getstate__() == new.cloneState().__getstate__()


def test_a_vector_that_is_gone_leaves_its_emulators_to_the_next_one_which_plays_the_same() -> None:
    config, game = EnvConfig(max_episode_frames=200), parse_game("pong")
    seen = []
    for used in (False, True):
        vector = AtariVector(game, 3, config, seed=7)
        assert num_kept("pong") == 0
        assert used == (len(emulators._idle) > 0)
        steps = [vector.step(np.full(3, t % vector.num_actions)) for t in range(80)]
        seen.append((vector.observations.tobytes(), [step.rewards.tolist() for step in steps], vector.num_frames))
        del vector, steps
        assert num_kept("pong") == 3
        take(parse_game("breakout"), 1)
        give_back(parse_game("breakout"), take(parse_game("breakout"), 1))
    assert seen[0] == seen[1]


def test_more_are_loaded_where_fewer_are_kept_and_the_rest_stays() -> None:
    game = parse_game("pong")
    give_back(game, take(game, 2))
    assert len({id(emulator) for emulator in take(game, 3)}) == 3
    assert num_kept("pong") == 0
    give_back(game, take(game, 3))
    take(game, 1)
    assert num_kept("pong") == 2


def test_the_games_that_were_played_longest_ago_are_given_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulators, "KEPT", 5)
    for name, count in (("pong", 2), ("breakout", 2), ("pong", 2), ("asterix", 3)):
        give_back(parse_game(name), take(parse_game(name), count))
    assert {name: num_kept(name) for name in ("pong", "breakout", "asterix")} == {
        "pong": 2,
        "breakout": 0,
        "asterix": 3,
    }
    give_back(parse_game("qbert"), take(parse_game("qbert"), 4))
    assert {name: num_kept(name) for name in ("pong", "asterix", "qbert")} == {"pong": 0, "asterix": 1, "qbert": 4}
