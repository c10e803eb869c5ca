"""Asks ALE what each game offers and times its emulation; writes leap_rl/games.json.

python -m benchmarks.games            # about 3 minutes on a quiet machine
"""

import json
import time
from pathlib import Path

import numpy as np
from ale_py import roms

from leap_rl.tasks import TWO_PLAYER_ROMS, open_game

SECONDS = 1.0  # of emulation, each game
SCREENS = 30  # of random play, 10 agent steps apart: what the background is the median of


def describe(name: str, seconds: float = SECONDS) -> dict[str, object]:
    """One row of games.json."""
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
    """Median of all pixels in random play: grey, red, green, blue."""
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
    names = sorted(set(roms.get_all_rom_ids()) - TWO_PLAYER_ROMS)
    rows = ",\n".join(json.dumps(describe(name)) for name in names)
    Path("leap_rl/games.json").write_text(f"[\n{rows}\n]\n")
    print(f"leap_rl/games.json: {len(names)} games")


if __name__ == "__main__":
    main()
