"""Writes leap_rl/atari/games.json: what ALE says about each game, its background, and the speed of its emulation.

python -m tools.games            # about 3 minutes on a quiet machine
"""

import json
import time
from pathlib import Path

import numpy as np
from ale_py import roms

from leap_rl.atari.emulators import open_game
from leap_rl.atari.games import NOT_RESTORED, TWO_PLAYER_ROMS

SECONDS = 1.0  # duration of emulation for each game
SCREENS = 30  # number of screens of random play, 10 agent steps apart, whose median is the background


def describe(name: str, seconds: float = SECONDS) -> dict[str, object]:
    """Returns one row of games.json."""
    emulator = open_game(name)
    state = emulator.cloneState()
    actions = emulator.getMinimalActionSet()
    rng = np.random.default_rng(0)
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        action = actions[rng.integers(len(actions))]
        for _ in range(4):
            emulator.act(action)
        if emulator.game_over():
            emulator.reset_game()
        steps += 1
    return {
        "name": name,
        "num_actions": len(actions),
        "modes": list(emulator.getAvailableModes()),
        "difficulties": list(emulator.getAvailableDifficulties()),
        "default_mode": state.getCurrentMode(),
        "default_difficulty": state.getDifficulty(),
        "background": background(name),
        "seconds_per_step": round((time.perf_counter() - started) / max(steps, 1), 6),
    }


def background(name: str) -> list[int]:
    """Returns the median of all pixels in random play: grey, red, green, blue."""
    emulator = open_game(name)
    actions = emulator.getMinimalActionSet()
    rng = np.random.default_rng(0)
    screens = []
    for _ in range(SCREENS):
        for action in rng.integers(len(actions), size=10):
            for _ in range(4):
                emulator.act(actions[action])
            if emulator.game_over():
                emulator.reset_game()
        screens.append(np.concatenate([emulator.getScreenGrayscale()[..., None], emulator.getScreenRGB()], axis=-1))
    return [int(value) for value in np.median(screens, axis=(0, 1, 2))]


def main() -> None:
    names = sorted(set(roms.get_all_rom_ids()) - TWO_PLAYER_ROMS - NOT_RESTORED)
    rows = ",\n".join(json.dumps(describe(name)) for name in names)
    Path("leap_rl/atari/games.json").write_text(f"[\n{rows}\n]\n")
    print(f"leap_rl/atari/games.json: {len(names)} games")


if __name__ == "__main__":
    main()
