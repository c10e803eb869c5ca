"""Finds the configuration that a command is given: a file, a preset by its name, or a run's directory.

Presets come with leap_rl: they are those of the folder configs/, wherever leap_rl is installed.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leap_rl.files.text import closest
from leap_rl.types import BadInputError

if TYPE_CHECKING:  # pydantic is not needed to find a preset
    from leap_rl.config import Config

FOLDER = Path(__file__).parent / "configs"  # in the repository a link to the folder at its root


@dataclass(frozen=True)
class Preset:
    """Holds a configuration's name, with the first sentence of the comment at its head."""

    name: str
    path: Path

    @property
    def summary(self) -> str:
        """Returns what the preset is, in a sentence."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        comment = [line.removeprefix("#").strip() for line in lines[: next(n for n, x in enumerate(lines) if not x)]]
        return re.split(r"(?<=[\w)])\. ", " ".join(comment))[0].rstrip(".") + "."


def presets() -> list[Preset]:
    """Returns all presets, sorted by name."""
    return [Preset(path.stem, path) for path in sorted(FOLDER.glob("*.yaml"))]


def find_preset(name: str) -> Preset:
    """Returns the preset of that name. Raises BadInputError where there is none, with the nearest."""
    found = {preset.name: preset for preset in presets()}
    if name not in found:
        near = closest(name, found)
        hint = f"did you mean {near}? " if near else ""
        raise BadInputError(f"{name}: no such file, and no preset; {hint}`leap-rl presets` lists all")
    return found[name]


def path_of(source: str) -> str:
    """Returns the file of a preset where ``source`` is a bare name, such as ``quickstart``; any other path as it is.

    Raises BadInputError where the name is unknown, or stands for a file of the current folder as well.
    """
    bare = re.fullmatch(r"[\w-]+", source) is not None
    if not bare or Path(source).is_dir():
        return source
    if Path(source).exists():
        if source in {preset.name for preset in presets()}:
            raise BadInputError(f"{source}: is a preset, and a file in this folder; write ./{source} for the file")
        return source
    return str(find_preset(source).path)


def configuration_of(source: str, overrides: Sequence[str]) -> "Config":
    """Returns the configuration that ``leap-rl train`` is given: of a file, or of a run, which continues where it
    lies."""
    from leap_rl.config_files import apply_overrides, load_config, parse_training
    from leap_rl.processes.registry import import_named_process

    source = path_of(source)
    named = Path(source)
    if "://" not in source and not named.is_dir() and named.name != "config.yaml":
        return load_config(source, overrides)
    from leap_rl.files.storage import open_storage
    from leap_rl.runs.run_files import read_config, run_directory

    directory = run_directory(source)
    if directory is None:
        return load_config(source, overrides)
    import_named_process(overrides)
    tree = read_config(open_storage(directory)).model_dump()
    tree["run"]["dir"] = directory
    apply_overrides(tree, overrides)
    return parse_training(tree)


def copy_preset(name: str, file: str) -> None:
    """Writes a preset to a new file. Raises BadInputError for an unknown name, and for a file that exists."""
    preset = find_preset(name)
    if Path(file).exists():
        raise BadInputError(f"{file}: exists already; choose another file")
    shutil.copyfile(preset.path, file)
