"""Emulators with a game loaded, kept from one task to the next: loading takes ALE 80 ms each, nearly all of it for a
palette that nobody uses.

With ALE's own sticky actions off an emulator is deterministic, whatever its seed: one that is put back to where it was
when it had loaded the game is as good as a new one.
"""

import atexit

import ale_py
from ale_py import roms

from leap_rl.atari.games import Game

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)

KEPT = 256  # at most, of 0.7 MB each: those of the games that were played last

_idle: dict[Game, list[ale_py.ALEInterface]] = {}
_fresh: dict[Game, ale_py.ALEState] = {}  # what they are put back to


def open_game(name: str) -> ale_py.ALEInterface:
    """Returns a fresh emulator with the ROM loaded. No action is sticky, so its seed makes no difference."""
    emulator = ale_py.ALEInterface()
    emulator.setInt("random_seed", 0)
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(roms.get_rom_path(name))
    return emulator


def take(game: Game, count: int) -> list[ale_py.ALEInterface]:
    """Returns emulators that have loaded the game and played nothing of it."""
    idle = _idle.pop(game, [])
    taken, left = idle[:count], idle[count:]
    if left:
        _idle[game] = left
    for emulator in taken:
        emulator.restoreState(_fresh[game])
    taken += [_open(game) for _ in range(count - len(taken))]
    if taken and game not in _fresh:
        _fresh[game] = taken[0].cloneState(include_rng=True)
    return taken


def give_back(game: Game, emulators: list[ale_py.ALEInterface]) -> None:
    """Takes back emulators that are not played any more, and keeps them for the next task."""
    if game not in _fresh:  # all was forgotten while they played
        return
    _idle[game] = _idle.pop(game, []) + emulators  # as the last that was played
    while sum(map(len, _idle.values())) > KEPT:
        longest_ago = next(iter(_idle))
        _idle[longest_ago].pop()
        if not _idle[longest_ago]:
            del _idle[longest_ago]


def _open(game: Game) -> ale_py.ALEInterface:
    emulator = open_game(game.rom)
    if game.mode is not None:
        emulator.setMode(game.mode)
    if game.difficulty is not None:
        emulator.setDifficulty(game.difficulty)
    return emulator


@atexit.register
def _forget() -> None:
    """Frees all emulators before Python ends, while ALE is still there to take them down."""
    _idle.clear()
    _fresh.clear()
