"""Reads initializations from run directories, files, folders for the hub, and those that come with leap_rl."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from leap_rl import hub, pretrained
from leap_rl.config import Config
from leap_rl.config_files import parse_config
from leap_rl.files.interface import MAX_TEXT, Storage
from leap_rl.files.schemas import Count, FileSchema, parse_json
from leap_rl.files.storage import LocalStorage, open_storage
from leap_rl.files.tensor_files import load_tensors
from leap_rl.runs.foreign import of_this_machine
from leap_rl.runs.run import RunDirectory
from leap_rl.runs.run_files import (
    CONFIG,
    INITIALIZATION,
    check_parameters,
    fingerprint,
    read_config,
    read_initialization,
    versions_of,
)
from leap_rl.types import BadInputError, Tensors


@dataclass(frozen=True)
class Source:
    """Holds an initialization, and what is known about it."""

    tensors: Tensors  # name → float32 tensor
    meta_step: int  # number of meta-steps that were taken
    config: Config | None  # its run's configuration; None for a file of tensors without one
    where: str = ""  # the file of the configuration
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that wrote it, if they are known

    def for_this_machine(self, overrides: Sequence[str]) -> tuple[Config | None, str]:
        """Returns the configuration for this machine, and a line about entries of its file that are ignored.

        Keys that say where and how to run get this machine's defaults and then the ``overrides``. Raises BadInputError.
        """
        if self.config is None:
            return None, ""
        config, ignored = of_this_machine(self.config, overrides, self.where)
        line = f"{self.where}: {', '.join(ignored)}: not taken over; key=value decides where it runs"
        return config, line if ignored else ""


def read_source(source: str) -> Source:
    """Reads a run directory, an initialization file, a folder that ``leap-rl export --to hub`` has written,
    ``pretrained:NAME`` or ``hub:OWNER/NAME``. Raises BadInputError for anything else."""
    path = Path(source)
    if pretrained.is_name(source):
        path = pretrained.folder(source)
    elif hub.is_name(source):
        path = hub.folder(source)
    if path.name == hub.TENSORS and path.is_file():
        path = path.parent
    if path.is_file():
        tensors, metadata = read_initialization(path)
        beside = LocalStorage(str(path.parent))
        config = read_config(beside) if CONFIG in beside.names() else None
        return Source(tensors, int(metadata["meta_step"]), config, f"{beside.url}/{CONFIG}", versions_of(metadata))
    if "://" not in source and not path.exists():
        raise BadInputError(f"{source}: does not exist, so it is not a run directory or an initialization file")
    storage = open_storage(source if "://" in source else str(path))
    if hub.TENSORS in storage.names():
        return _read_hub(storage)
    if CONFIG not in storage.names():
        raise BadInputError(f"{source}: not a run directory: it has no {CONFIG}")
    config = read_config(storage)
    tensors, metadata = RunDirectory(config, storage).current_initialization()
    return Source(tensors, int(metadata["meta_step"]), config, f"{storage.url}/{CONFIG}", versions_of(metadata))


def folder_of(source: str) -> str:
    """Returns the name after which results of a source are named: the run's folder, a file's path without its suffix,
    or a name without its prefix, owner and revision."""
    if pretrained.is_name(source):
        return f"runs/{source.removeprefix(pretrained.PREFIX)}"
    if hub.is_name(source):
        return f"runs/{source.partition('@')[0].rpartition('/')[2]}"
    path = Path(source)
    if not path.is_file():
        return source.rstrip("/")
    return str(path.parent if path.name in (INITIALIZATION, hub.TENSORS) else path.with_suffix(""))


class _Hub(FileSchema):
    """Describes the content of the config.json that ``leap-rl export --to hub`` writes, with only the keys that are
    read."""

    meta_step: Count
    fingerprint: str
    run: dict[str, Any] = Field(min_length=1)


def _read_hub(storage: Storage) -> Source:
    where, tensors_where = f"{storage.url}/{hub.CONFIG}", f"{storage.url}/{hub.TENSORS}"
    try:
        description = parse_json(_Hub, storage.read(hub.CONFIG, MAX_TEXT), where)
        config = parse_config(description.run, may_import=False)
    except (FileNotFoundError, BadInputError) as error:
        raise BadInputError(f"{where}: not what `leap-rl export --to hub` writes: {error}") from None
    tensors, _ = load_tensors(storage.read(hub.TENSORS), tensors_where)
    check_parameters(tensors, tensors_where)
    if fingerprint(tensors) != description.fingerprint:
        raise BadInputError(f"{tensors_where}: not the tensors that {hub.CONFIG} describes")
    return Source(tensors, description.meta_step, config, where)
