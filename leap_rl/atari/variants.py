"""Expands patterns that stand for many variants (modes and difficulties) of a game, and lists those left out."""

import functools
import itertools
import json
from collections.abc import Sequence
from importlib.resources import files

from leap_rl.atari.games import canonical_name, catalogue, find_game, is_gymnasium_id, parse_game
from leap_rl.types import BadInputError


@functools.cache
def left_out() -> dict[str, str]:
    """Returns the variants that patterns leave out: canonical name → reason, e.g. "two players take turns".

    ``python -m tools.variants`` plays every mode and difficulty of every game and writes ``variants.json``.
    """
    rows = json.loads((files("leap_rl.atari") / "variants.json").read_text())
    return {
        str(parse_game(f"{row['name']}:mode={row['mode']},difficulty={difficulty}")): row["reason"]
        for row in rows
        for difficulty in row["difficulties"]
    }


def all_variants(rom: str) -> list[str]:
    """Returns the canonical names of all modes and difficulties of a ROM, including those that patterns leave out."""
    info = catalogue()[rom]
    return [
        str(parse_game(f"{rom}:mode={mode},difficulty={difficulty}"))
        for mode, difficulty in itertools.product(info.modes, info.difficulties)
    ]


def expand(text: str) -> list[str]:
    """Returns the canonical names of the tasks that ``text`` stands for.

    ``breakout:mode=*`` stands for every mode, ``breakout:mode=4,difficulty=*`` for mode 4 in every difficulty, and
    ``breakout:*`` for every mode in every difficulty. An option that is not given has its default. Text without a star
    is one task. Patterns do not match the variants in :func:`left_out`. Raises BadInputError if nothing matches.
    """
    if "*" not in text or is_gymnasium_id(text):
        return [canonical_name(text)]
    name, _, options = text.partition(":")
    if "*" in name and "=" not in name:
        raise BadInputError(
            f"{text!r}: a pattern stands for modes and difficulties of one game, e.g. breakout:* or breakout:mode=*"
        )
    info = find_game(name)
    values = {"mode": info.modes, "difficulty": info.difficulties}
    given = ["mode=*", "difficulty=*"] if options.strip() == "*" else options.split(",")
    choices = []
    for option in sorted(given, key=str.strip, reverse=True):  # mode by mode, in either notation
        key, _, value = option.partition("=")
        known = values.get(key.strip(), ()) if value.strip() == "*" else ()
        choices.append([f"{key}={number}" for number in known] or [option])
    matching = [str(parse_game(f"{name}:{','.join(chosen)}")) for chosen in itertools.product(*choices)]
    playable = [variant for variant in matching if variant not in left_out()]
    if not playable:
        raise BadInputError(
            f"{text!r}: patterns leave out all that it matches: {matching[0]}, since {left_out()[matching[0]]}; to "
            "take a variant anyway, name it without *"
        )
    return playable


def listed(games: Sequence[str]) -> list[str]:
    """Returns all variants of the named games, of all games where none is named. Raises BadInputError for an unknown
    one."""
    return [name for rom in [find_game(name).name for name in games] or catalogue() for name in all_variants(rom)]


def to_json(variants: Sequence[str]) -> list[dict[str, str | None]]:
    """Returns what `leap-rl games --variants --json` prints."""
    return [{"name": name, "left_out": left_out().get(name)} for name in variants]


def describe_variants(variants: Sequence[str]) -> str:
    """Returns what `leap-rl games --variants` prints."""
    reasons = left_out()
    num_left_out = sum(name in reasons for name in variants)
    lines = [f"{name:34} left out: {reasons[name]}" if name in reasons else name for name in variants]
    end = (
        f"\n{len(variants) - num_left_out} variants, {num_left_out} left out of patterns such as breakout:*; a variant "
        "that is named in full is taken all the same."
    )
    return "\n".join([*lines, end])
