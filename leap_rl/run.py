"""The run directory, on a local path, on NFS or in an object store.

    config.yaml                 the resolved configuration
    initialization.safetensors  the newest shared initialization
    checkpoints/000003/         the learner after 3 meta-steps: learner.safetensors, state.json, done
    tasks/000003-05/            a task under way (task_store.py)
    metrics.jsonl               one row a segment, task, meta-step and fault
    tensorboard/                event files

Every file is written aside, fsynced and renamed; a checkpoint is marked ``done`` last: what has no mark does
not exist.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from leap_rl import __version__
from leap_rl.config import Config, config_hash, flatten, identity, parse_config
from leap_rl.learner import Checkpoint, due
from leap_rl.storage import LocalStorage, Storage, open_storage
from leap_rl.task_store import TaskStore
from leap_rl.tensor_files import below, dump_tensors, load_tensors
from leap_rl.types import BadInputError, Tensors

CONFIG, INITIALIZATION, METRICS, CHECKPOINTS, TENSORBOARD = (
    "config.yaml", "initialization.safetensors", "metrics.jsonl", "checkpoints", "tensorboard",
)  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """What a run has done so far, over all its sessions: kept with each checkpoint."""

    meta_step: int = 0
    agent_steps: int = 0
    frames: int = 0
    seconds: float = 0.0


class RunDirectory:
    """A run's files. Make one with :meth:`open`, which locks a local directory until :meth:`close`."""

    def __init__(self, config: Config, storage: Storage, lock: int | None = None) -> None:
        self.config = config
        self.url = storage.url
        self.tasks = TaskStore(storage)
        self._storage = storage
        self._lock = lock
        self._rows: list[Mapping[str, Any]] = []  # of metrics.jsonl, where one row at a time would cost too much
        self._events: Path | None = None  # event files on their way to an object store

    @classmethod
    def open(cls, config: Config) -> "RunDirectory":
        """Creates ``run.dir``, or opens it where it holds a run of the same configuration.

        Raises BadInputError where it is not a directory, cannot be written, holds something else, is in
        use, or holds a run whose result another key decides.
        """
        storage = open_storage(config.run.dir)
        stored = _check(storage, config)
        lock = _lock(storage.path) if isinstance(storage, LocalStorage) else None
        if stored is None:
            text = yaml.safe_dump(config.model_dump(), sort_keys=False, width=100)
            storage.write(CONFIG, text.encode())
        return cls(config, storage, lock)

    def close(self) -> None:
        """Hands in what is still held back, and unlocks."""
        try:
            self.flush()
        finally:
            if self._lock is not None:
                os.close(self._lock)
            if self._events is not None:
                shutil.rmtree(self._events, ignore_errors=True)

    def commit(self, checkpoint: Checkpoint, progress: Progress) -> None:
        """Makes a meta-step durable: a checkpoint first, then ``initialization.safetensors``. Then forgets the
        tasks that it averaged, and old checkpoints."""
        self.flush()
        folder = f"{CHECKPOINTS}/{checkpoint.meta_step:06d}"
        self._storage.remove(folder)
        tensors = {f"initialization/{name}": value for name, value in checkpoint.initialization.items()}
        tensors |= {f"optimizer/{name}": value for name, value in checkpoint.optimizer.items()}
        state = vars(progress) | {"unfinished": checkpoint.unfinished}
        self._storage.write(f"{folder}/learner.safetensors", dump_tensors(tensors, {}))
        self._storage.write(f"{folder}/state.json", json.dumps(state).encode())
        self._storage.write(f"{folder}/done", b"")

        self.publish(checkpoint)
        self.tasks.forget_all_but(due(self.config.meta, checkpoint))
        self._prune(checkpoint.meta_step)

    def _prune(self, newest: int) -> None:
        """Keeps the newest few. What is half-written, or later than what the run continued from, is damaged."""
        kept = 0
        for folder in self._checkpoints():
            whole = "done" in self._storage.names(folder) and int(folder.rpartition("/")[2]) <= newest
            kept += whole
            if not whole or kept > self.config.run.keep_checkpoints:
                self._storage.remove(folder)

    def publish(self, checkpoint: Checkpoint) -> None:
        """Makes ``initialization.safetensors`` that of the checkpoint."""
        metadata = {
            "format": "leap_rl initialization",
            "meta_step": str(checkpoint.meta_step),
            "config_hash": config_hash(self.config),
            **{f"version.{name}": value for name, value in package_versions().items()},
        }
        self._storage.write(INITIALIZATION, dump_tensors(checkpoint.initialization, metadata))

    def published(self) -> tuple[Tensors, dict[str, str]]:
        """Tensors and metadata of ``initialization.safetensors``; nothing where there is none yet."""
        try:
            data = self._storage.read(INITIALIZATION)
        except FileNotFoundError:
            return {}, {}
        return _parse_initialization(data, f"{self.url}/{INITIALIZATION}")

    def _checkpoints(self) -> list[str]:
        """Checkpoint folders, newest first, half-written ones included."""
        found = [f"{CHECKPOINTS}/{name}" for name in self._storage.names(CHECKPOINTS) if name.isdecimal()]
        return sorted(found, reverse=True)

    def latest(self) -> tuple[Checkpoint | None, Progress, list[str]]:
        """The newest checkpoint that is whole, how far the run is, and what was passed over, a line each."""
        ignored = []
        for folder in self._checkpoints():
            where = f"{self.url}/{folder}"
            if "done" not in self._storage.names(folder):
                ignored.append(f"{where}: half-written, ignored")
                continue
            try:
                state = json.loads(self._storage.read(f"{folder}/state.json"))
                unfinished = tuple((meta_step, slot) for meta_step, slot in state.pop("unfinished"))
                progress = Progress(**state)
                tensors, _ = load_tensors(self._storage.read(f"{folder}/learner.safetensors"), where)
            except (BadInputError, FileNotFoundError, ValueError, TypeError, KeyError) as error:
                ignored.append(f"{where}: cannot be read, ignored ({error})")
                continue
            checkpoint = Checkpoint(
                progress.meta_step, below(tensors, "initialization/"), below(tensors, "optimizer/"), unfinished
            )
            return checkpoint, progress, ignored
        return None, Progress(), ignored

    def append_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows to ``metrics.jsonl``: at once on a local path, with the next commit in an object store."""
        self._rows.extend(rows)
        if isinstance(self._storage, LocalStorage):
            self.flush()

    @property
    def tensorboard(self) -> Path:
        """The local folder for event files: the run's own, or one that :meth:`flush` copies to an object store."""
        if isinstance(self._storage, LocalStorage):
            return self._storage.path / TENSORBOARD
        if self._events is None:
            self._events = Path(tempfile.mkdtemp(prefix="leap_rl-"))
        return self._events

    def flush(self) -> None:
        """Hands in rows and, to an object store, event files."""
        rows, self._rows = self._rows, []
        if rows:
            self._storage.append(METRICS, _jsonl(rows))
        if self._events is not None:
            for file in self._events.rglob("*.tfevents.*"):
                name = f"{TENSORBOARD}/{file.relative_to(self._events).as_posix()}"
                self._storage.write(name, file.read_bytes())

    def forget_metrics(self, checkpoint: Checkpoint) -> None:
        """Drops rows of tasks and meta-steps that ``checkpoint`` has not averaged: they come again."""
        due_places = set(due(self.config.meta, checkpoint))
        drawn = checkpoint.meta_step + self.config.meta.staleness  # and of these some may be averaged already

        def is_averaged(row: Mapping[str, Any]) -> bool:
            if "slot" in row:
                return row["meta_step"] <= drawn and (row["meta_step"], row["slot"]) not in due_places
            return bool(row["meta_step"] < checkpoint.meta_step)

        kept = [row for row in _metrics(self._storage) if is_averaged(row)]
        self._storage.write(METRICS, _jsonl(kept))


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


def read_config(storage: Storage) -> Config:
    """The configuration a run directory was made with. Raises BadInputError."""
    where = f"{storage.url}/{CONFIG}"
    try:
        tree = yaml.safe_load(storage.read(CONFIG).decode())
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError):
        tree = None
    if not isinstance(tree, dict):
        raise BadInputError(f"{where}: cannot be read: not a run's configuration")
    try:
        return parse_config(tree)
    except BadInputError as error:
        raise BadInputError(f"{where}: not a run's configuration: {error}") from None


def read_metrics(url: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``; a line that a crash cut short is left out."""
    return _metrics(open_storage(str(url)))


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _metrics(storage: Storage) -> list[dict[str, Any]]:
    try:
        lines = storage.read(METRICS).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def read_initialization(file: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of an ``initialization.safetensors``. Raises BadInputError."""
    try:
        return _parse_initialization(file.read_bytes(), file)
    except OSError as error:
        raise BadInputError(f"{file}: {error.strerror}") from None


def _parse_initialization(data: bytes, where: object) -> tuple[Tensors, dict[str, str]]:
    tensors, metadata = load_tensors(data, where)
    if metadata.get("format") != "leap_rl initialization":
        raise BadInputError(f"{where}: a safetensors file, but not an initialization of this project")
    return tensors, metadata


def fingerprint(initialization: Tensors) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, sorted by name: equal exactly for equal bits."""
    digest = hashlib.sha256()
    for name, value in sorted(initialization.items()):
        dtype = str(value.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{'x'.join(map(str, value.shape))}\0".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def describe(url: str | Path) -> dict[str, Any]:
    """What ``leap-rl show`` prints: state, meta-step, fingerprint, configuration. Raises BadInputError."""
    storage = open_storage(str(url))
    if isinstance(storage, LocalStorage) and not storage.path.is_dir():
        raise BadInputError(f"{url}: not a run directory: {'is a file' if storage.path.exists() else 'does not exist'}")
    if CONFIG not in storage.names():
        raise BadInputError(f"{url}: not a run directory: it has no {CONFIG}")
    config = read_config(storage)
    run = RunDirectory(config, storage)
    checkpoint, progress, ignored = run.latest()
    tensors, metadata = run.published()
    meta_step = int(metadata.get("meta_step", 0))
    if checkpoint is not None and checkpoint.meta_step > meta_step:  # a crash between the two: a resume mends it
        meta_step, tensors = checkpoint.meta_step, checkpoint.initialization
    return {
        "run": storage.url,
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


def check_reachable(config: Config, node: str) -> None:
    """Raises BadInputError where this node does not see the run in ``run.dir``."""
    try:
        same = config_hash(read_config(open_storage(config.run.dir))) == config_hash(config)
    except BadInputError:
        same = False
    if not same:
        raise BadInputError(
            f"run.dir = {config.run.dir}: the run is not to be seen from node {node}; it must be on storage that "
            "every node reaches under the same name (NFS, or an object store)"
        )


def adopt_precision(config: Config) -> Config:
    """``precision: auto`` takes what the run in ``run.dir`` was started with, if there is one."""
    storage = open_storage(config.run.dir)
    if config.precision != "auto" or CONFIG not in storage.names():
        return config
    return config.model_copy(update={"precision": read_config(storage).precision})


def is_finished(config: Config) -> bool:
    """Whether ``run.dir`` holds this run with all its meta-steps done. Raises BadInputError; writes nothing."""
    storage = open_storage(config.run.dir)
    if _check(storage, config) is None:
        return False
    _, progress, _ = RunDirectory(config, storage).latest()
    return progress.meta_step >= config.meta.steps


def _check(storage: Storage, config: Config) -> Config | None:
    """The configuration of the run that ``run.dir`` holds, if any. Raises BadInputError where it cannot be used."""
    if isinstance(storage, LocalStorage):
        _check_directory(storage.path)
    names = storage.names()
    if CONFIG in names:
        stored = read_config(storage)
        _check_same(storage.url, stored, config)
        return stored
    if names:
        raise BadInputError(f"run.dir = {storage.url}: holds files but no run; choose an empty or a new directory")
    return None


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


def _check_same(url: str, stored: Config, wanted: Config) -> None:
    before, after = dict(flatten(identity(stored))), dict(flatten(identity(wanted)))
    differing = [
        f"{key} ({before.get(key)} there, {value} here)" for key, value in after.items() if before.get(key) != value
    ]
    if differing:
        raise BadInputError(
            f"run.dir = {url}: holds a run of another configuration: {', '.join(differing)}; "
            "choose another run.dir, or the same values"
        )


def _lock(path: Path) -> int:
    """Locks a local run directory. Raises BadInputError where it cannot be written or is in use."""
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
    for leftover in path.glob(".*.tmp"):  # of a write that was killed
        leftover.unlink()
    return lock
