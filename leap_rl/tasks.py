"""Tasks: the Atari games there are, their modes and difficulties; which tasks a meta-step trains on."""

import difflib
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import ale_py
import numpy as np
from ale_py import roms

from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import BadInputError, Place, Task

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)

TWO_PLAYER_ROMS = frozenset({"combat", "joust", "maze_craze", "warlords"})  # loadROM aborts the process
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
    """A game as a task: None stands for the ROM's own default mode or difficulty."""

    rom: str
    mode: int | None = None
    difficulty: int | None = None

    def __str__(self) -> str:
        options = [f"{key}={value}" for key, value in (("mode", self.mode), ("difficulty", self.difficulty))
                   if value is not None]  # fmt: skip
        return self.rom + (":" + ",".join(options) if options else "")


@dataclass(frozen=True)
class GameInfo:
    """What a ROM offers, as ALE reports it."""

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
        """Which of the paper's pools the game is in, or "-"."""
        for pool, names in (("meta-training", META_TRAINING), ("held-out", HELD_OUT),
                            ("out-of-distribution", OUT_OF_DISTRIBUTION)):  # fmt: skip
            if self.name in names:
                return pool
        return "-"


def open_game(name: str) -> ale_py.ALEInterface:
    """A fresh emulator with the ROM loaded, no action sticky: its seed makes no difference then."""
    emulator = ale_py.ALEInterface()
    emulator.setInt("random_seed", 0)
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(roms.get_rom_path(name))
    return emulator


@functools.cache
def catalogue() -> dict[str, GameInfo]:
    """Every one-player game that ships with ale-py, by name.

    ``games.json`` is written by ``python -m benchmarks.games``, which asks ALE (10 s for all ROMs) and
    times each; a test holds it against ALE.
    """
    rows = json.loads((files("leap_rl") / "games.json").read_text())
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
    plain = _plain(name)
    rom = next((rom for rom in (*catalogue(), *TWO_PLAYER_ROMS) if _plain(rom) == plain), "")
    if rom in TWO_PLAYER_ROMS:
        raise BadInputError(f"{rom} is a game for two players, which ALE cannot run with one agent")
    info = catalogue().get(rom)
    if info is None:
        near = difflib.get_close_matches(name.strip().lower(), catalogue(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadInputError(f"unknown game {name!r}; {hint}`leap-rl games` lists all {len(catalogue())}")
    chosen: dict[str, int] = {}
    given: set[str] = set()
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        allowed = {"mode": info.modes, "difficulty": info.difficulties}.get(key.strip())
        if allowed is None:
            raise BadInputError(f"{text!r}: unknown option {key!r}; allowed are mode and difficulty")
        if not value.strip().isdecimal() or int(value) not in allowed:
            raise BadInputError(f"{text!r}: {rom} has {key} {ranges(allowed)}, not {value!r}")
        if key.strip() in given:
            raise BadInputError(f"{text!r}: {key.strip()} is given twice")
        given.add(key.strip())
        default = info.default_mode if key.strip() == "mode" else info.default_difficulty
        if int(value) != default:
            chosen[key.strip()] = int(value)
    return Game(rom, **chosen)


def is_gymnasium_id(name: str) -> bool:
    """Whether a task is named by an id of Gymnasium, such as ``MinAtar/Breakout-v1``: only ``process: rllib``
    has those."""
    return bool(re.search(r"-v\d+$", name))


def canonical_name(name: str) -> str:
    """A game's name as it is kept. Raises BadInputError for a game that there is not; ids are Gymnasium's to judge."""
    return name if is_gymnasium_id(name) else str(parse_game(name))


def _plain(name: str) -> str:
    """UpNDown, up_n_down and up-n-down are one game."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def ranges(values: Sequence[int]) -> str:
    """1, 2, 3, 7 as "1-3, 7"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def training_tasks(config: Any) -> list[str]:
    """Names of the tasks to meta-train on."""
    match config.process:
        case "classification":
            from leap_rl.processes.classification.data import split

            return split(config.alphabets).train
        case _:
            return list(config.tasks.games)


def held_out_tasks(config: Any) -> list[str]:
    """Names of the tasks to evaluate on."""
    match config.process:
        case "classification":
            from leap_rl.processes.classification.data import split

            return split(config.alphabets).held_out
        case _:
            return list(config.tasks.held_out)


def parse_task(config: Any, text: str) -> str:
    """The name of a task of the configured process. Raises BadInputError where there is none such."""
    match config.process:
        case "classification":
            from leap_rl.processes.classification.data import parse_alphabet

            return parse_alphabet(config.alphabets, text)
        case _:
            return canonical_name(text)


def sample_meta_batch(config: Any, meta_step: int) -> list[Task]:
    """The tasks of one meta-step, in slot order: ``meta.batch_size`` different ones; where there are fewer, all of
    them, and then all of them again."""
    names, size = training_tasks(config), config.meta.batch_size
    rng = np.random.default_rng(derive_seed(config.run.seed, Purpose.META_BATCH, meta_step))
    chosen: list[int] = []
    while len(chosen) < size:
        chosen.extend(rng.choice(len(names), size=min(len(names), size - len(chosen)), replace=False))
    return [
        Task(meta_step, slot, names[index], derive_seed(config.run.seed, Purpose.TASK, meta_step, slot))
        for slot, index in enumerate(chosen)
    ]


def tasks_at(config: Any, places: Sequence[Place]) -> list[Task]:
    """The tasks that were drawn for these places."""
    batches = {meta_step: sample_meta_batch(config, meta_step) for meta_step, _ in places}
    return [batches[meta_step][slot] for meta_step, slot in places]


def longest_first(tasks: Sequence[Task]) -> list[Task]:
    """Tasks in the order to start them: slow games first, so that the last one does not hold the batch.

    Only the order of the costs matters, and no result depends on it.
    """

    def seconds(task: Task) -> float:
        game = catalogue().get(task.name.partition(":")[0])
        return game.seconds_per_step if game else 0.0  # alphabets take equally long

    return sorted(tasks, key=lambda task: (task.meta_step, -seconds(task), task.slot))
