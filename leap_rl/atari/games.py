"""Lists the Atari games, their modes and difficulties, and the names by which they are tasks."""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from leap_rl.files.text import closest
from leap_rl.types import BadInputError

TWO_PLAYER_ROMS = frozenset({"combat", "joust", "maze_craze", "warlords"})  # loadROM aborts the process
NOT_RESTORED = frozenset({"miniature_golf"})  # its score is not what it was where ALE 0.12.1 puts a snapshot back
OUT_OF_DISTRIBUTION = ("alien", "gravitar", "road_runner")  # the paper's, with 18 actions
HELD_OUT = ("breakout", "space_invaders")  # the paper's
# The paper's pool: the classic games with at most 10 actions, the two held out left aside (Appendix F).
META_TRAINING = (
    "air_raid", "amidar", "assault", "asterix", "atlantis", "beam_rider", "bowling", "carnival",
    "crazy_climber", "demon_attack", "enduro", "freeway", "gopher", "ms_pacman", "name_this_game",
    "phoenix", "pong", "pooyan", "qbert", "skiing", "time_pilot", "tutankham", "up_n_down",
    "video_pinball", "wizard_of_wor",
)  # fmt: skip


@dataclass(frozen=True)
class Game:
    """Names a game as a task. None stands for the ROM's own default mode or difficulty."""

    rom: str
    mode: int | None = None
    difficulty: int | None = None

    def __str__(self) -> str:
        options = [f"{key}={value}" for key, value in (("mode", self.mode), ("difficulty", self.difficulty))
                   if value is not None]  # fmt: skip
        return self.rom + (":" + ",".join(options) if options else "")


@dataclass(frozen=True)
class GameInfo:
    """Says what a ROM offers, as ALE reports it."""

    name: str
    num_actions: int  # of the minimal action set
    modes: tuple[int, ...]
    difficulties: tuple[int, ...]
    default_mode: int
    default_difficulty: int
    background: tuple[int, ...]  # median pixel of random play: grey, red, green, blue
    seconds_per_step: float  # emulation of one agent step of 4 frames, on the machine that wrote the file

    @property
    def pool(self) -> str:
        """Returns which of the paper's pools the game is in, or "-"."""
        for pool, names in (("meta-training", META_TRAINING), ("held-out", HELD_OUT),
                            ("out-of-distribution", OUT_OF_DISTRIBUTION)):  # fmt: skip
            if self.name in names:
                return pool
        return "-"


@functools.cache
def catalogue() -> dict[str, GameInfo]:
    """Returns every one-player game that ships with ale-py and can be saved, by name.

    ``games.json`` is written by ``python -m tools.games``, which asks ALE (10 s for all ROMs) and
    times each; a test holds it against ALE.
    """
    rows = json.loads((files("leap_rl.atari") / "games.json").read_text())
    return {
        row["name"]: GameInfo(**row | {key: tuple(row[key]) for key in ("modes", "difficulties", "background")})
        for row in rows
    }


def parse_game(text: str) -> Game:
    """Reads ``breakout``, ``SpaceInvaders`` or ``breakout:mode=4,difficulty=1``.

    A mode or difficulty that is the default is dropped, so that equal tasks have equal names. Raises
    BadInputError for an unknown or two-player game and for a mode or difficulty it does not have.
    """
    name, _, options = text.partition(":")
    info = find_game(name)
    chosen: dict[str, int] = {}
    given: set[str] = set()
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        allowed = {"mode": info.modes, "difficulty": info.difficulties}.get(key.strip())
        if allowed is None:
            raise BadInputError(f"{text!r}: unknown option {key!r}; allowed are mode and difficulty")
        if not value.strip().isdecimal() or int(value) not in allowed:
            raise BadInputError(f"{text!r}: {info.name} has {key} {ranges(allowed)}, not {value!r}")
        if key.strip() in given:
            raise BadInputError(f"{text!r}: {key.strip()} is given twice")
        given.add(key.strip())
        default = info.default_mode if key.strip() == "mode" else info.default_difficulty
        if int(value) != default:
            chosen[key.strip()] = int(value)
    return Game(info.name, **chosen)


def find_game(name: str) -> GameInfo:
    """Returns the game of that name, in any of its usual spellings. Raises BadInputError for an unknown or
    two-player game."""
    if "=" in name:  # [breakout:mode=4,difficulty=1] is two items in YAML
        raise BadInputError(f"{name!r}: is an option without its game; quote a name that has a comma in it")
    plain = _plain(name)
    rom = next((rom for rom in (*catalogue(), *TWO_PLAYER_ROMS, *NOT_RESTORED) if _plain(rom) == plain), "")
    if rom in TWO_PLAYER_ROMS:
        raise BadInputError(f"{rom} is a game for two players, which ALE cannot run with one agent")
    if rom in NOT_RESTORED:
        raise BadInputError(
            f"{rom}: ALE does not put its snapshots back to what they were: a task could not be resumed"
        )
    info = catalogue().get(rom)
    if info is None:
        near = game_of(name) or closest(name.strip().lower(), catalogue())
        hint = f"did you mean {near}? " if near else ""
        raise BadInputError(f"unknown game {name!r}; {hint}`leap-rl games` lists all {len(catalogue())}")
    return info


def is_gymnasium_id(name: str) -> bool:
    """Returns whether a name is an id of Gymnasium's with a version, such as ``MinAtar/Breakout-v1``, and no game of
    ALE's."""
    return bool(re.search(r"-v\d+$", name))


def game_of(name: str) -> str:
    """Returns the game that an id of Gymnasium's Atari names, such as ``ALE/Pong-v5`` or
    ``PongNoFrameskip-v4``; or ""."""
    plain = _plain(re.sub(r"^ALE/|(NoFrameskip|Deterministic)?(-ram)?(NoFrameskip|Deterministic)?(-v\d+)?$", "", name))
    return next((game for game in catalogue() if _plain(game) == plain), "")


def canonical_name(name: str) -> str:
    """Returns a game's name as it is kept. Raises BadInputError for a game that there is not, and for an id that names
    a module to import ("module:Name-v0"): a configuration must not decide which code is run. Other ids are Gymnasium's
    to judge.
    """
    if is_gymnasium_id(name) and ":" in name:
        raise BadInputError(
            f"{name}: names a module to import; give the id alone, of an environment that a package registers"
        )
    return name if is_gymnasium_id(name) else str(parse_game(name))


def _plain(name: str) -> str:
    """Returns a name as it is compared: UpNDown, up_n_down and up-n-down are one game."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def ranges(values: Sequence[int]) -> str:
    """Returns numbers as text, in rising order, with runs of them as ranges: 1, 2, 3, 7 become "1-3, 7"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def to_json() -> list[dict[str, Any]]:
    """Returns what `leap-rl games --json` prints."""
    return [
        {"name": game.name, "num_actions": game.num_actions, "modes": game.modes, "difficulties": game.difficulties,
         "default_mode": game.default_mode, "default_difficulty": game.default_difficulty, "pool": game.pool}
        for game in catalogue().values()
    ]  # fmt: skip


def describe_games() -> str:
    """Returns what `leap-rl games` prints."""
    lines = [f"{'game':24}{'actions':>8}  {'modes':24}{'difficulties':14}{'pool'}"]
    for game in catalogue().values():
        modes, difficulties = ranges(game.modes), ranges(game.difficulties)
        lines.append(f"{game.name:24}{game.num_actions:8}  {modes:24}{difficulties:14}{game.pool}")
    end = (
        f"\n{len(catalogue())} games. Pools are the paper's. As a task: breakout, or breakout:mode=4,difficulty=1; "
        "many at once: 'breakout:mode=*', 'breakout:*' (`leap-rl games --variants breakout` lists them). "
        f"Not listed, since they need two players: {', '.join(sorted(TWO_PLAYER_ROMS))}; since ALE cannot save and "
        f"restore it: {', '.join(sorted(NOT_RESTORED))}."
    )
    return "\n".join([*lines, end])
