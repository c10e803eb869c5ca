"""The run directory: the only module that touches a run's files.

    config.yaml                 the resolved configuration
    initialization.safetensors  the newest shared initialization
    checkpoints/000003/         the learner after 3 meta-steps: learner.safetensors, state.json, done
    metrics.jsonl               one row a segment, task and meta-step
    tensorboard/                event files

A checkpoint is written aside, fsynced, renamed, and marked ``done`` last: what has no mark does not exist.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from leap_rl import __version__
from leap_rl.config import Config, config_hash, flatten, identity, parse_config
from leap_rl.learner import Checkpoint
from leap_rl.types import BadInputError, Tensors

CONFIG, INITIALIZATION, METRICS, CHECKPOINTS = (
    "config.yaml", "initialization.safetensors", "metrics.jsonl", "checkpoints",
)  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """What a run has done so far, over all its sessions: kept with each checkpoint."""

    meta_step: int = 0
    agent_steps: int = 0
    frames: int = 0
    seconds: float = 0.0


class RunDirectory:
    """A run's files. Make one with :meth:`open`, which locks the directory until :meth:`close`."""

    def __init__(self, path: Path, config: Config, lock: int) -> None:
        self.path = path
        self.config = config
        self.tensorboard = path / "tensorboard"
        self._lock = lock

    @classmethod
    def open(cls, config: Config) -> "RunDirectory":
        """Creates ``run.dir``, or opens it where it holds a run of the same configuration.

        Raises BadInputError where it is not a directory, cannot be written, holds something else, is in
        use, or holds a run whose result another key decides.
        """
        path = Path(config.run.dir)
        stored = _check(path, config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise BadInputError(f"run.dir = {path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise BadInputError(f"run.dir = {path}: another process is training this run") from None
        if stored is None:
            text = yaml.safe_dump(config.model_dump(), sort_keys=False, width=100)
            _write(path / CONFIG, text.encode())
        return cls(path, config, lock)

    def close(self) -> None:
        os.close(self._lock)

    def commit(self, checkpoint: Checkpoint, progress: Progress) -> None:
        """Makes a meta-step durable: a checkpoint first, then ``initialization.safetensors``."""
        final = self.path / CHECKPOINTS / f"{checkpoint.meta_step:06d}"
        aside = final.with_name(f".{final.name}.tmp")
        for leftover in (aside, final):
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir(parents=True)
        tensors = {f"initialization/{name}": value for name, value in checkpoint.initialization.items()}
        tensors |= {f"optimizer/{name}": value for name, value in checkpoint.optimizer.items()}
        save_file(tensors, aside / "learner.safetensors")
        (aside / "state.json").write_text(json.dumps(vars(progress)))
        for file in (aside / "learner.safetensors", aside / "state.json", aside):
            _fsync(file)
        aside.rename(final)
        _fsync(final.parent)
        _write(final / "done", b"")

        self.publish(checkpoint)
        self._prune(checkpoint.meta_step)

    def _prune(self, newest: int) -> None:
        """Keeps the newest few. What is half-written, or later than what the run continued from, is damaged."""
        kept = 0
        for path in self._checkpoints():
            whole = (path / "done").exists() and int(path.name) <= newest
            kept += whole
            if not whole or kept > self.config.run.keep_checkpoints:
                shutil.rmtree(path)

    def publish(self, checkpoint: Checkpoint) -> None:
        """Makes ``initialization.safetensors`` that of the checkpoint."""
        metadata = {
            "format": "leap_rl initialization",
            "meta_step": str(checkpoint.meta_step),
            "config_hash": config_hash(self.config),
            **{f"version.{name}": value for name, value in package_versions().items()},
        }
        aside = self.path / f".{INITIALIZATION}.tmp"
        save_file(dict(checkpoint.initialization), aside, metadata)
        _fsync(aside)
        aside.rename(self.path / INITIALIZATION)
        _fsync(self.path)

    def _checkpoints(self) -> list[Path]:
        """Checkpoint directories, newest first, half-written ones included."""
        parent = self.path / CHECKPOINTS
        found = [path for path in parent.iterdir() if path.name.isdecimal()] if parent.is_dir() else []
        return sorted(found, reverse=True)

    def latest(self) -> tuple[Checkpoint | None, Progress, list[str]]:
        """The newest checkpoint that is whole, how far the run is, and what was passed over, a line each."""
        ignored = [f"{path}: half-written, ignored" for path in (self.path / CHECKPOINTS).glob(".*.tmp")]
        for path in self._checkpoints():
            if not (path / "done").exists():
                ignored.append(f"{path}: half-written, ignored")
                continue
            try:
                progress = Progress(**json.loads((path / "state.json").read_text()))
                tensors, _ = _read_safetensors(path / "learner.safetensors")
            except (BadInputError, OSError, ValueError, TypeError) as error:
                ignored.append(f"{path}: cannot be read, ignored ({error})")
                continue
            checkpoint = Checkpoint(
                progress.meta_step, _below(tensors, "initialization/"), _below(tensors, "optimizer/")
            )
            return checkpoint, progress, ignored
        return None, Progress(), ignored

    def append_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with (self.path / METRICS).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def forget_metrics_from(self, meta_step: int) -> None:
        """Drops rows of ``meta_step`` and later: those meta-steps were not committed and run again."""
        path = self.path / METRICS
        if path.exists():
            kept = [json.dumps(row) + "\n" for row in read_metrics(self.path) if row["meta_step"] < meta_step]
            _write(path, "".join(kept).encode())


@contextmanager
def open_run(config: Config) -> Iterator[RunDirectory]:
    """:meth:`RunDirectory.open` for a ``with`` statement."""
    run = RunDirectory.open(config)
    try:
        yield run
    finally:
        run.close()


def package_versions() -> dict[str, str]:
    """Versions of what decides the bits of a run."""
    names = ("torch", "ale-py", "numpy", "opencv-python-headless")
    return {"leap-rl": __version__, **{name: version(name) for name in names}}


def read_config(path: Path) -> Config:
    """The configuration a run directory was made with. Raises BadInputError."""
    file = path / CONFIG
    try:
        tree = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        tree = None
    if not isinstance(tree, dict):
        raise BadInputError(f"{file}: cannot be read: not a run's configuration")
    try:
        return parse_config(tree)
    except BadInputError as error:
        raise BadInputError(f"{file}: not a run's configuration: {error}") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``; a line that a crash cut short is left out."""
    rows = []
    file = path / METRICS
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def read_initialization(file: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of an ``initialization.safetensors``. Raises BadInputError."""
    tensors, metadata = _read_safetensors(file)
    if metadata.get("format") != "leap_rl initialization":
        raise BadInputError(f"{file}: a safetensors file, but not an initialization of this project")
    return tensors, metadata


def fingerprint(initialization: Tensors) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, sorted by name: equal exactly for equal bits."""
    digest = hashlib.sha256()
    for name, value in sorted(initialization.items()):
        dtype = str(value.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{'x'.join(map(str, value.shape))}\0".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """What ``leap-rl show`` prints: state, meta-step, fingerprint, configuration. Raises BadInputError."""
    if not path.is_dir():
        raise BadInputError(f"{path}: not a run directory: {'is a file' if path.exists() else 'does not exist'}")
    if not (path / CONFIG).exists():
        raise BadInputError(f"{path}: not a run directory: it has no {CONFIG}")
    config = read_config(path)
    run = RunDirectory(path, config, lock=-1)
    checkpoint, progress, ignored = run.latest()
    file = path / INITIALIZATION
    tensors, metadata = read_initialization(file) if file.exists() else ({}, {})
    meta_step = int(metadata.get("meta_step", 0))
    if checkpoint is not None and checkpoint.meta_step > meta_step:  # a crash between the two: a resume mends it
        meta_step, tensors = checkpoint.meta_step, checkpoint.initialization
    return {
        "run": str(path),
        "meta_step": meta_step,
        "meta_steps": config.meta.steps,
        "finished": meta_step >= config.meta.steps,
        "fingerprint": fingerprint(tensors) if tensors else None,
        "config_hash": config_hash(config),
        "agent_steps": progress.agent_steps,
        "frames": progress.frames,
        "seconds": progress.seconds,
        "parameters": {name: list(value.shape) for name, value in sorted(tensors.items())},
        "versions": {k.removeprefix("version."): v for k, v in metadata.items() if k.startswith("version.")},
        "ignored": ignored,
        "config": config.model_dump(),
    }


def adopt_precision(config: Config) -> Config:
    """``precision: auto`` takes what the run in ``run.dir`` was started with, if there is one."""
    path = Path(config.run.dir)
    if config.precision != "auto" or not (path / CONFIG).is_file():
        return config
    return config.model_copy(update={"precision": read_config(path).precision})


def _check_directory(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise BadInputError(f"run.dir = {path}: is a file; it must be a directory or not exist yet")
    ancestor = path
    while not ancestor.exists():
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise BadInputError(f"run.dir = {path}: {ancestor} is a file")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise BadInputError(f"run.dir = {path}: {ancestor} is not writable")
    if path.is_dir() and not (path / CONFIG).exists() and any(p.name != ".lock" for p in path.iterdir()):
        raise BadInputError(f"run.dir = {path}: holds files but no run; choose an empty or a new directory")


def _check(path: Path, config: Config) -> Config | None:
    """The configuration of the run that ``path`` holds, if any. Raises BadInputError where it cannot be used."""
    _check_directory(path)
    if not (path / CONFIG).exists():
        return None
    stored = read_config(path)
    _check_same(path, stored, config)
    return stored


def is_finished(config: Config) -> bool:
    """Whether ``run.dir`` holds this run with all its meta-steps done. Raises BadInputError; writes nothing."""
    path = Path(config.run.dir)
    if _check(path, config) is None:
        return False
    _, progress, _ = RunDirectory(path, config, lock=-1).latest()
    return progress.meta_step >= config.meta.steps


def _check_same(path: Path, stored: Config, wanted: Config) -> None:
    before, after = dict(flatten(identity(stored))), dict(flatten(identity(wanted)))
    differing = [
        f"{key} ({before.get(key)} there, {value} here)" for key, value in after.items() if before.get(key) != value
    ]
    if differing:
        raise BadInputError(
            f"run.dir = {path}: holds a run of another configuration: {', '.join(differing)}; "
            "choose another run.dir, or the same values"
        )


def _read_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}, handle.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInputError(f"{file}: not a whole safetensors file: {error}") from None


def _below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _write(path: Path, data: bytes) -> None:
    """Atomically: aside, fsync, rename."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(data)
    _fsync(aside)
    aside.rename(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
