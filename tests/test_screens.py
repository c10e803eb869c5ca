"""The colours that are looked up here are those that ALE looks up, in every game."""

import numpy as np
import pytest

from leap_rl.atari.emulators import open_game
from leap_rl.atari.games import catalogue
from leap_rl.atari.screens import colors


@pytest.mark.slow
def test_colors_are_those_that_ale_shows() -> None:
    rng = np.random.default_rng(0)
    seen: dict[int, set[int]] = {}  # lines of a screen → numbers
    for name in catalogue():
        emulator = open_game(name)
        emulator.reset_game()
        actions = emulator.getLegalActionSet()
        lines = emulator.getScreenDims()[0]
        for frame in range(400):
            emulator.act(actions[rng.integers(len(actions))])
            if emulator.game_over():
                emulator.reset_game()
            if frame % 10 == 0:
                numbers = emulator.getScreen()
                np.testing.assert_array_equal(colors(lines, True)[numbers], emulator.getScreenGrayscale(), name)
                np.testing.assert_array_equal(colors(lines, False)[numbers], emulator.getScreenRGB(), name)
                seen.setdefault(lines, set()).update(np.unique(numbers).tolist())
    assert len(seen[210]) > 100, "most of the 128 were compared"
    assert len({number for number in seen[250] if number % 2}) > 10, "and some of a PAL game that has lost its colours"
    assert len({number for number in seen[250] if number % 2 == 0}) > 100
