"""Writes leap_rl/atari/variants.json: which modes and difficulties patterns leave out, and why, by playing all.

python -m tools.variants FILE [GAME ...]

All games take an hour on one core. Results are kept in FILE, one line of JSON each, and are not played again. A variant
is left out if an agent alone cannot play it, or if it duplicates another one. Random play scores in few games, so each
variant is compared with the default one of its game. A variant that is merely hard to play stays in.
"""

import argparse
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import ale_py
import numpy as np

from leap_rl.atari.emulators import open_game
from leap_rl.atari.games import GameInfo, catalogue

VARIANTS = Path("leap_rl/atari/variants.json")
SHORT, LONG = 4_000, 20_000  # frames of random play for each variant, and for those that look unplayable after that
MOMENTS = 20  # number of moments of random play at which control is tested
WITHIN = 600  # frames (10 s) within which actions must make a difference; by then a ship that was shot is back
FEW_EVENTS = 5  # fewer events in the default variant say nothing about another one
ENOUGH_SCORES = 50  # changes of the score that are needed to tell two variants apart
LITTLE_CONTROL = 0.5  # less than this share of the default variant's control is too little, if that has at least this


class Variant(NamedTuple):
    """Names a mode and difficulty of a game."""

    name: str
    mode: int
    difficulty: int

    def __str__(self) -> str:
        return f"mode {self.mode}, difficulty {self.difficulty}"


@dataclass(frozen=True)
class Played:
    """Holds what was seen of one variant in random play."""

    name: str
    mode: int
    difficulty: int
    frames: int
    scores: int  # number of actions at which the score changed
    games: int  # number of games that ended
    screens: int  # number of different screens
    control: float  # share of the moments at which random play led to another screen than no-ops
    fingerprint: str  # hash of all screens and scores; the actions are the same in all variants of a game

    @property
    def events(self) -> int:
        """Returns the number of changes of the score and ends of games."""
        return self.scores + self.games


def play(variant: Variant, frames: int) -> Played:
    """Plays at random, in actions of 4 frames, and tests at a few moments whether actions make a difference."""
    emulator = _open(variant)
    actions = emulator.getMinimalActionSet()
    chosen = np.random.default_rng(0).integers(len(actions), size=frames // 4)
    every = len(chosen) // MOMENTS
    scores = games = 0
    seen: set[bytes] = set()
    control = []
    whole = hashlib.sha256()
    for step, number in enumerate(chosen):
        reward = sum(emulator.act(actions[number]) for _ in range(4))
        screen = _digest(emulator)
        whole.update(screen + str(reward).encode())
        seen.add(screen)
        scores += reward != 0
        if emulator.game_over():
            games += 1
            emulator.reset_game()
        if step % every == every // 2:
            control.append(_in_control(variant.name, emulator.cloneState(include_rng=True)))
    share = round(sum(control) / len(control), 2)
    return Played(*variant, frames, scores, games, len(seen), share, whole.hexdigest()[:16])


def _open(variant: Variant) -> ale_py.ALEInterface:
    emulator = open_game(variant.name)
    emulator.setMode(variant.mode)
    emulator.setDifficulty(variant.difficulty)
    emulator.reset_game()
    return emulator


@functools.lru_cache(maxsize=1)
def _pair(name: str) -> tuple[ale_py.ALEInterface, ale_py.ALEInterface]:
    return open_game(name), open_game(name)


def _in_control(name: str, state: ale_py.ALEState) -> bool:
    """Returns whether random play leads to another screen than no-ops within ``WITHIN`` frames."""
    idle, playing = _pair(name)
    for emulator in (idle, playing):
        emulator.restoreState(state)
    actions = playing.getMinimalActionSet()
    rng = np.random.default_rng(1)
    for _ in range(0, WITHIN, 20):
        for number in rng.integers(len(actions), size=5):
            for _ in range(4):
                idle.act(ale_py.Action.NOOP)
                playing.act(actions[number])
        if _digest(idle) != _digest(playing):
            return True
    return False


def _digest(emulator: ale_py.ALEInterface) -> bytes:
    return hashlib.blake2b(emulator.getScreen().tobytes(), digest_size=8).digest()


class Record:
    """Keeps what was seen so far in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        rows = [Played(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
        self._seen = {(Variant(row.name, row.mode, row.difficulty), row.frames): row for row in rows}

    def played(self, variant: Variant, frames: int) -> Played:
        """Returns what was seen of a variant in so many frames, which are played now if they were not before."""
        if (variant, frames) not in self._seen:
            self._seen[variant, frames] = row = play(variant, frames)
            with self._file.open("a") as out:
                out.write(json.dumps(asdict(row)) + "\n")
        return self._seen[variant, frames]


def judge(info: GameInfo, record: Record) -> Iterator[tuple[Variant, str]]:
    """Yields each variant that patterns must leave out, with the reason."""
    default = Variant(info.name, info.default_mode, info.default_difficulty)
    offered = [Variant(info.name, mode, difficulty) for mode in info.modes for difficulty in info.difficulties]
    if default not in offered:  # one game starts in a difficulty that ALE does not offer
        default = offered[0]
    kept: list[Variant] = []
    for variant in dict.fromkeys([default, *offered]):
        short, by_default = record.played(variant, SHORT), record.played(default, SHORT)
        quiet = not short.events and record.played(default, LONG).events >= FEW_EVENTS
        reason = None
        if variant != default and short.games > SHORT / 8:
            reason = "the game is over as soon as it has begun"
        elif variant != default and (quiet or short.control < LITTLE_CONTROL * by_default.control):
            reason = unplayable(record.played(variant, LONG), record.played(default, LONG))
        if reason is None and short.scores:  # without a score too little was seen
            twin = next((other for other in kept if is_twin(record, variant, other, info)), None)
            reason = twin and f"the same screens and scores as {twin}, in {LONG:,} frames of random play"
        if reason is None:
            kept.append(variant)
        else:
            yield variant, reason


def is_twin(record: Record, variant: Variant, other: Variant, info: GameInfo) -> bool:
    """Returns whether a variant duplicates another one: two difficulties in every mode, or two modes in every
    difficulty.

    A difference that random play does not meet in one mode may show in the next, so all are compared.
    """
    if variant.mode == other.mode:
        pairs = [(variant._replace(mode=mode), other._replace(mode=mode)) for mode in info.modes]
    elif variant.difficulty == other.difficulty:
        pairs = [(variant._replace(difficulty=d), other._replace(difficulty=d)) for d in info.difficulties]
    else:
        return False

    def same(frames: int) -> bool:
        return all(
            record.played(one, frames).fingerprint == record.played(two, frames).fingerprint for one, two in pairs
        )

    return same(SHORT) and record.played(variant, LONG).scores >= ENOUGH_SCORES and same(LONG)


def unplayable(played: Played, default: Played) -> str | None:
    """Returns why an agent alone cannot play a variant, or None if it can."""
    if default.events >= FEW_EVENTS and not played.events:
        return f"no game ended and no score changed in {played.frames:,} frames of random play"
    if default.control >= LITTLE_CONTROL:
        if not played.control:
            return "nothing that an agent does changes the screen"
        if played.control < LITTLE_CONTROL * default.control:
            return (
                f"an agent is in control for {played.control:.0%} of the time, in the default variant for "
                f"{default.control:.0%}: it waits for another player or a switch"
            )
    return None


def as_rows(found: list[tuple[Variant, str]]) -> list[dict[str, object]]:
    """Returns the rows of variants.json: one for each mode and reason."""
    difficulties: dict[tuple[str, int, str], list[int]] = {}
    for variant, reason in found:
        difficulties.setdefault((variant.name, variant.mode, reason), []).append(variant.difficulty)
    return [
        {"name": name, "mode": mode, "difficulties": numbers, "reason": reason}
        for (name, mode, reason), numbers in difficulties.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("games", metavar="GAME", nargs="*", help="only these: prints what is left out, writes nothing")
    options = parser.parse_args()
    record = Record(options.file)
    rows = as_rows([row for name in options.games or catalogue() for row in judge(catalogue()[name], record)])
    lines = [json.dumps(row) for row in rows]
    print("\n".join(lines))
    if not options.games:
        VARIANTS.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
