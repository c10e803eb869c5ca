"""Reads the grid of a sweep, ``meta.lr=0.1,0.3 run.seed=0..2``, and checks all of it before anything is trained."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leap_rl.config import Config, config_hash, is_free
from leap_rl.config_files import as_value
from leap_rl.files.interface import MAX_TEXT
from leap_rl.files.schemas import Count, FileSchema, parse_json
from leap_rl.files.storage import LocalStorage, open_storage
from leap_rl.files.yaml_files import parse_yaml
from leap_rl.measures import Measures
from leap_rl.presets import configuration_of
from leap_rl.processes import process_of
from leap_rl.runs.admission import check_directory
from leap_rl.runs.run_files import CONFIG
from leap_rl.types import BadInputError

MAX_RUNS = 500
SEED = "run.seed"
DESCRIPTION = "sweep.json"
NOT_HALVED = ("meta.steps", "task.agent_steps")  # runs of different length cannot be compared halfway


class Description(FileSchema):
    """Describes the content of sweep.json."""

    grid: dict[str, list[Any]]
    by: str
    halving: Count
    config_hashes: list[str]


@dataclass(frozen=True)
class Run:
    """Holds one run of a sweep."""

    name: str  # of its directory
    values: Mapping[str, Any]  # of the keys that are swept
    config: Config

    @property
    def setting(self) -> str:
        """Returns what it has in common with the runs that differ from it in their seed alone."""
        return "  ".join(f"{key}={as_value(value)}" for key, value in self.values.items() if key != SEED) or "all"


@dataclass(frozen=True)
class Sweep:
    """Holds a checked grid of runs. Nothing has been written for it yet."""

    url: str
    runs: list[Run]
    by: str
    rungs: list[int]  # meta-steps after which settings are compared; the last is the end
    description: Description
    measures: Measures

    @property
    def column(self) -> str:
        """Returns the name of the score in rows of metrics.jsonl."""
        return self.measures.score if self.by == "area" else self.measures.held_out_score


def make_sweep(source: str, overrides: Sequence[str], halving: int, by: str) -> Sweep:
    """Returns the sweep that a command asks for. Raises BadInputError where it cannot be, or where ``run.dir`` holds
    anything else."""
    fixed, grid = _grid(overrides)
    if not grid:
        raise BadInputError("no key has several values; name them as in meta.lr=0.1,0.3,1 or run.seed=0..2")
    runs = []
    for chosen in itertools.product(*(values.items() for values in grid.values())):
        values = dict(zip(grid, (value for _, value in chosen), strict=True))
        texts = [f"{key}={text}" for key, (text, _) in zip(grid, chosen, strict=True)]
        config = configuration_of(source, [*fixed, *texts])
        url, name = config.run.dir, _name(grid, [text for text, _ in chosen])
        config = config.model_copy(update={"run": config.run.model_copy(update={"dir": f"{url}/{name}"})})
        runs.append(Run(name, values, config))
    config, num_settings = runs[0].config, len({run.setting for run in runs})
    rungs = _rungs(config.meta.steps, num_settings, halving, grid)
    measures = process_of(config).measures
    if by == "held_out" and not measures.held_out_counts:
        raise BadInputError(f"--by held_out: process = {config.process} holds nothing out of a task; --by area")
    wanted = Description(
        grid={key: list(values.values()) for key, values in grid.items()}, by=by, halving=halving,
        config_hashes=[config_hash(run.config) for run in runs],
    )  # fmt: skip
    _check_folder(url, wanted, {run.name for run in runs})
    return Sweep(url, runs, by, rungs, wanted, measures)


def _grid(overrides: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Returns the overrides that all runs share, and for each key with several values: its text → the value."""
    fixed, grid, count = [], dict[str, dict[str, Any]](), 1
    for override in overrides:
        key, _, text = override.partition("=")
        what = f"{key}={text[:80]}"
        pieces = [piece for part in _split(text) for piece in _range(part.strip(), what)]
        if "" in pieces:
            raise BadInputError(f"{what}: a value is missing; write e.g. {key}=1,2,3")
        if len(pieces) == 1:
            fixed.append(override)
            continue
        if key in grid:
            raise BadInputError(f"{what}: {key} is given twice")
        if is_free(key):
            raise BadInputError(f"{what}: {key} says where a run trains, and changes nothing in it; give it one value")
        values = {piece: parse_yaml(piece, what) for piece in pieces}
        if len({json.dumps(value, default=str) for value in values.values()}) < len(pieces):
            raise BadInputError(f"{what}: names a value twice")
        grid[key] = values
        count *= len(pieces)
        if count > MAX_RUNS:
            raise BadInputError(f"{what}: makes {count:,} runs; at most {MAX_RUNS} are swept at once")
    return fixed, grid


def _split(text: str) -> list[str]:
    """Splits a text at the commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote or sign in "'\"":
            quote = "" if sign == quote else quote or sign
        else:
            depth += (sign in "[{") - (sign in "]}")
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def _range(part: str, what: str) -> list[str]:
    """Returns the numbers of a range such as 0..2, and any other value as it is."""
    if not re.fullmatch(r"[-+.\d]*\.\.[-+.\d]*", part) or not re.search(r"\d", part):
        return [part]
    ends = re.fullmatch(r"(-?\d{1,18})\.\.(-?\d{1,18})", part)
    first, last = map(int, ends.groups()) if ends else (1, 0)
    if first > last:
        raise BadInputError(f"{what}: {part} is no range; write FIRST..LAST, whole numbers in order, e.g. 0..2")
    if last - first >= MAX_RUNS:
        raise BadInputError(f"{what}: makes {last - first + 1:,} runs; at most {MAX_RUNS} are swept at once")
    return [str(number) for number in range(first, last + 1)]


def _name(grid: Mapping[str, Mapping[str, Any]], texts: Sequence[str]) -> str:
    """Returns the name of a run's directory, e.g. lr_0.1-seed_0. A long value is named by its place in the list."""
    leaves = [key.rpartition(".")[2] for key in grid]
    keys = leaves if len(set(leaves)) == len(leaves) else list(grid)
    shown = [
        text if re.fullmatch(r"[\w.+-]{1,30}", text) else f"no{list(values).index(text) + 1}"
        for text, values in zip(texts, grid.values(), strict=True)
    ]
    return "-".join(f"{key}_{text}" for key, text in zip(keys, shown, strict=True))


def _rungs(steps: int, num_settings: int, halving: int, grid: Mapping[str, Any]) -> list[int]:
    most = (num_settings - 1).bit_length()
    if not 0 <= halving <= most:
        raise BadInputError(f"--halving {halving}: must be from 0 to {most}, for {num_settings} settings")
    rungs = [steps >> number for number in range(halving, 0, -1)] + [steps]
    if halving and rungs[0] < 2:
        raise BadInputError(
            f"--halving {halving}: meta.steps = {steps} must be at least {2 << halving}: the first comparison comes "
            f"after 1/{1 << halving} of them, and needs two, since all runs begin alike"
        )
    for key in NOT_HALVED:
        if halving and key in grid:
            raise BadInputError(f"--halving {halving}: {key} must be the same in all runs, which are compared halfway")
    return rungs


def _check_folder(url: str, wanted: Description, runs: set[str]) -> None:
    """Raises BadInputError unless the folder is new, empty, or that of the same sweep."""
    storage = open_storage(url)
    if isinstance(storage, LocalStorage):
        check_directory(storage.path)
    names = storage.names()
    other = "choose another run.dir, or the same command"
    if DESCRIPTION in names:
        found = parse_json(Description, storage.read(DESCRIPTION, MAX_TEXT), f"{url}/{DESCRIPTION}")
        differing = [key for key, value in found.model_dump().items() if value != getattr(wanted, key)]
        if differing:
            which = differing[0].replace("config_hashes", "other keys of the configuration")
            raise BadInputError(f"run.dir = {url}: holds another sweep: it differs in {which}; {other}")
    elif CONFIG in names:
        raise BadInputError(f"run.dir = {url}: holds a run; give the sweep a folder, e.g. run.dir={url}-sweep")
    elif set(names) - runs:  # a sweep that was killed as it began has a run, or the beginning of one
        raise BadInputError(f"run.dir = {url}: holds files but no sweep; choose an empty or a new directory")
