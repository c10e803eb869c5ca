"""Reads the files of a run, each checked by a schema. A file that does not fit is reported in one line.

A run may come from elsewhere, be damaged, or be of an earlier version. Storage checks the type and size of every file
before it is read.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, RootModel, TypeAdapter

from leap_rl import __version__
from leap_rl.config import Config
from leap_rl.config_files import parse_config
from leap_rl.files.interface import MAX_TEXT, Storage
from leap_rl.files.schemas import Count, FileSchema, Finite, parse_json
from leap_rl.files.storage import open_storage, read_file
from leap_rl.files.tensor_files import load_tensors
from leap_rl.files.text import is_plain
from leap_rl.files.yaml_files import parse_yaml
from leap_rl.types import BadInputError, Tensors

CONFIG, INITIALIZATION, METRICS = "config.yaml", "initialization.safetensors", "metrics.jsonl"
VERSIONS = "versions.json"
EVALUATION = "evaluation.json"  # a directory with this file holds an evaluation
FORMAT = "leap_rl initialization"


@dataclass(frozen=True)
class Progress:
    """Holds a run's totals over all its sessions. Each checkpoint has them."""

    meta_step: int = 0
    agent_steps: int = 0
    frames: int = 0
    seconds: float = 0.0


class State(FileSchema):
    """Describes the content of a checkpoint's state.json."""

    meta_step: Count
    agent_steps: Count
    frames: Count
    seconds: Annotated[Finite, Field(ge=0)]
    unfinished: list[tuple[Count, Count]]  # places of the unfinished tasks

    @property
    def progress(self) -> Progress:
        """Returns the run's totals."""
        return Progress(self.meta_step, self.agent_steps, self.frames, self.seconds)


class Metadata(FileSchema):
    """Describes the metadata of an initialization."""

    model_config = ConfigDict(extra="allow")  # also has package versions
    format: Literal["leap_rl initialization"]
    meta_step: Annotated[str, Field(pattern=r"^[0-9]{1,15}$")]


class _Row(FileSchema):
    """Describes a line of metrics.jsonl, with only the keys that are read."""

    kind: Literal["segment", "task", "meta_step", "fault"]
    meta_step: Count
    slot: Count = 0
    game: str | None = None
    attempt: Count = 0
    task_agent_steps: Count = 0
    agent_steps: Count = 0
    frames: Count = 0
    seconds: float = 0.0
    path_length: float = 0.0
    energy: float = 0.0
    agent_steps_per_second: float | None = 0.0  # None: not timed
    episodic_return: float | None = None
    accuracy: float | None = None


_ROW = TypeAdapter(_Row)


@functools.cache
def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that decide a run's bits."""
    names = ("torch", "ale-py", "numpy", "opencv-python-headless")
    versions = {"leap-rl": __version__}
    for name in names:
        with suppress(PackageNotFoundError):  # it belongs to an extra that is not installed
            versions[name] = version(name)
    return versions


class _Stage(FileSchema):
    meta_step: Count
    versions: dict[str, str]


class _Stages(RootModel[list[_Stage]]):
    """Describes the content of versions.json."""


def record_versions(storage: Storage, meta_step: int) -> list[str]:
    """Records the package versions that continue from ``meta_step``, if they have changed. Returns lines to show: which
    versions differ. A run without versions.json has its versions in the metadata of its initialization."""
    known: list[_Stage] = []
    try:
        known = parse_json(_Stages, storage.read(VERSIONS, MAX_TEXT), f"{storage.url}/{VERSIONS}").root
    except FileNotFoundError:
        with suppress(FileNotFoundError, BadInputError):
            _, metadata = parse_initialization(storage.read(INITIALIZATION), f"{storage.url}/{INITIALIZATION}")
            known = [_Stage(meta_step=0, versions=versions_of(metadata))]
    except BadInputError as error:  # a damaged record must not stop a run
        return [f"{error}; left as it is"]
    before, now = known[-1].versions if known else {}, package_versions()
    if before == now:
        return []
    stages = [*(stage.model_dump() for stage in known), {"meta_step": meta_step, "versions": now}]
    storage.write(VERSIONS, (json.dumps(stages, indent=1) + "\n").encode())
    changed = [f"{name} {before[name]} → {now.get(name, '–')}" for name in before if before[name] != now.get(name)]
    if not changed:
        return []
    return [f"{storage.url}: continues under other versions: {', '.join(changed)}; rounding may differ from here on"]


def read_versions(storage: Storage) -> dict[str, str]:
    """Returns the versions that versions.json has last: package → version; none where it does not exist. Raises
    BadInputError where it is damaged."""
    try:
        stages = parse_json(_Stages, storage.read(VERSIONS, MAX_TEXT), f"{storage.url}/{VERSIONS}").root
    except FileNotFoundError:
        return {}
    return stages[-1].versions if stages else {}


def versions_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Returns the versions in the metadata of an initialization: package → version."""
    return {key.removeprefix("version."): value for key, value in metadata.items() if key.startswith("version.")}


def run_directory(path: str) -> str | None:
    """Returns the run directory that a path names, directly or by the ``config.yaml`` in it; None for any other file.
    The run continues there, wherever it was made. Raises BadInputError for a directory without a run."""
    if "://" in path or Path(path).is_dir():
        storage = open_storage(path)
        if CONFIG not in storage.names():
            raise BadInputError(f"{path}: not a run directory: it has no {CONFIG}")
        return storage.url
    folder = Path(path).parent
    kept = any((folder / name).exists() for name in ("checkpoints", INITIALIZATION, EVALUATION))
    return str(folder) if Path(path).name == CONFIG and kept else None


def read_config(storage: Storage) -> Config:
    """Returns the configuration of a run directory. Raises BadInputError."""
    where = f"{storage.url}/{CONFIG}"
    try:
        tree = parse_yaml(storage.read(CONFIG, MAX_TEXT).decode(), where)
    except (FileNotFoundError, UnicodeDecodeError):
        tree = None
    if not isinstance(tree, dict):
        raise BadInputError(f"{where}: cannot be read: not a run's configuration")
    try:
        return parse_config(tree, may_import=False)
    except BadInputError as error:
        raise BadInputError(f"{where}: not a run's configuration: {error}") from None


def read_metrics(url: str | Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's ``metrics.jsonl``, without lines that a crash cut short or that are no rows."""
    return metrics_of(open_storage(str(url)))


def metrics_of(storage: Storage) -> list[dict[str, Any]]:
    """Returns what :func:`read_metrics` returns, for an open storage."""
    try:
        lines = storage.read(METRICS).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
            _ROW.validate_python(row)
        except (ValueError, RecursionError):  # pydantic's errors are ValueErrors
            continue
        rows.append(row)
    return rows


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns rows as the lines of metrics.jsonl."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read_initialization(file: Path) -> tuple[Tensors, dict[str, str]]:
    """Returns the tensors and metadata of an ``initialization.safetensors``. Raises BadInputError."""
    try:
        return parse_initialization(read_file(file), file)
    except OSError as error:
        raise BadInputError(f"{file}: {error.strerror}") from None


def parse_initialization(data: bytes, where: object) -> tuple[Tensors, dict[str, str]]:
    """Returns the tensors and metadata of an initialization, given the bytes of its file. Raises BadInputError unless
    all tensors are float32 and not empty, and all names can be shown."""
    tensors, metadata = load_tensors(data, where)
    if metadata.get("format") != FORMAT:
        raise BadInputError(f"{where}: a safetensors file, but not an initialization of this project")
    parse_json(Metadata, json.dumps(metadata), f"{where}: metadata")
    if not all(is_plain(text) for text in (*metadata, *metadata.values())):
        raise BadInputError(f"{where}: metadata that cannot be shown")
    check_parameters(tensors, where)
    return tensors, metadata


def check_parameters(tensors: Tensors, where: object) -> None:
    """Raises BadInputError if these tensors cannot be the parameters of a network."""
    for name, value in sorted(tensors.items()):
        shown = f"{where}: {name if is_plain(name) else ascii(name)[:80]}"
        if not is_plain(name):
            raise BadInputError(f"{shown}: not the name of a parameter")
        if value.dtype != torch.float32:
            raise BadInputError(f"{shown}: is {str(value.dtype).removeprefix('torch.')}; parameters are float32")
        if not value.numel():
            raise BadInputError(f"{shown}: is {'×'.join(map(str, value.shape))}: holds nothing")


def fingerprint(initialization: Tensors) -> str:
    """Returns the SHA-256 of names, shapes, dtypes and bytes, sorted by name. It is equal exactly for equal bits."""
    digest = hashlib.sha256()
    for name, value in sorted(initialization.items()):
        dtype = str(value.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{'x'.join(map(str, value.shape))}\0".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
