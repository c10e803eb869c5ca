"""Snapshots of every game of the pool; ``python -m tests.snapshots`` has more of them, and the other games."""

import pytest

from leap_rl.atari.games import HELD_OUT, META_TRAINING, NOT_RESTORED, OUT_OF_DISTRIBUTION, catalogue, parse_game
from leap_rl.cli import main
from leap_rl.types import BadInputError
from tests.snapshots import differing


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*META_TRAINING, *HELD_OUT, *OUT_OF_DISTRIBUTION, "tetris", "yars_revenge", "tic_tac_toe_3d"]
)
def test_a_snapshot_goes_on_as_the_game_does(name: str) -> None:
    bad, taken, resets = differing(name, 32)
    assert bad == 0
    assert taken == 32
    assert resets > 0, "some must be taken right after a reset"


def test_a_game_that_ale_cannot_restore_is_no_task(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NOT_RESTORED:
        assert name not in catalogue()
        with pytest.raises(BadInputError, match="could not be resumed"):
            parse_game(name)
        assert main(["games"]) == 0
        assert name in capsys.readouterr().out
