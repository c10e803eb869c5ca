"""Reads and writes a run directory, on a local path, on NFS or in an object store.

    config.yaml                 the resolved configuration
    initialization.safetensors  the newest shared initialization
    checkpoints/000003/         the learner after 3 meta-steps: learner.safetensors, state.json, done
    tasks/000003-05/            an unfinished task (task_store.py)
    metrics.jsonl               one row a segment, task, meta-step and fault
    left_out.json               with faults.quorum: the tasks that were late (quorum.py)
    versions.json               the package versions that trained it, with the first meta-step of each
    tensorboard/                event files
    wandb.json, mlflow.json     what experiment trackers were given (trackers.py)

Every file is written under a temporary name, fsynced and renamed. A checkpoint is marked ``done`` last; without this
mark it counts as not written.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leap_rl.config import Config, config_hash
from leap_rl.files.interface import MAX_TEXT, Storage
from leap_rl.files.schemas import FileSchema, Schema, parse_json
from leap_rl.files.storage import LocalStorage, is_open, open_storage
from leap_rl.files.tensor_files import below, dump_tensors, load_tensors
from leap_rl.files.yaml_files import dump_yaml
from leap_rl.meta.schedule import due, needed
from leap_rl.runs.admission import LOCK, check_run, extending_changes, lock_directory, remove_half_written
from leap_rl.runs.formats import FORMAT_VERSION, OtherFormatError, check_format
from leap_rl.runs.run_files import (
    CONFIG,
    FORMAT,
    INITIALIZATION,
    METRICS,
    Progress,
    State,
    check_parameters,
    fingerprint,
    jsonl,
    metrics_of,
    package_versions,
    parse_initialization,
    record_versions,
)
from leap_rl.runs.task_store import TaskStore
from leap_rl.types import BadInputError, Checkpoint, Place, StorageError, Tensors

CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
LEARNER, STATE, DONE = "learner.safetensors", "state.json", "done"
REPAIRS = "the same `leap-rl train` command repairs it"
OUTDATED = f"but the newest checkpoint is of meta-step {{}}; {REPAIRS}"


class RunDirectory:
    """Reads a run's files, and writes them if made with :meth:`open`, which locks a local folder until
    :meth:`close`."""

    def __init__(self, config: Config, storage: Storage, lock: int | None = None) -> None:
        self.config = config
        self.url = storage.url
        self.tasks = TaskStore(storage)
        self.notes: list[str] = []  # lines to show when training starts
        self._storage = storage
        self._lock = lock
        self._rows: list[Mapping[str, Any]] = []  # rows of metrics.jsonl to be written with the next flush
        self._events: Path | None = None  # local folder of event files to be copied to an object store

    @classmethod
    def open(cls, config: Config) -> "RunDirectory":
        """Creates ``run.dir``, or opens it if it holds a run of the same configuration.

        Raises BadInputError if it is not a directory, cannot be written, is in use, or holds something else or a run of
        another configuration. If ``config`` extends the run (:func:`extending_changes`), the run's config.yaml is
        replaced.
        """
        storage = open_storage(config.run.dir)
        stored = check_run(storage, config)
        lock = lock_directory(storage.path) if isinstance(storage, LocalStorage) else None
        extended = extending_changes(stored, config) if stored else []
        if stored is None or extended:
            storage.write(CONFIG, dump_yaml(config.model_dump()).encode())
        run = cls(config, storage, lock)
        run.notes = [f"{run.url}: extended: {', '.join(extended)}"] if extended else []
        return run

    def close(self) -> None:
        """Writes pending rows and event files, and releases the lock."""
        try:
            self.flush()
        finally:
            if self._lock is not None:
                remove_half_written(Path(self.url))
                os.close(self._lock)
            if self._events is not None:
                shutil.rmtree(self._events, ignore_errors=True)

    def _check_there(self) -> None:
        """Raises StorageError if the directory was removed or moved, even if another is in its place meanwhile."""
        if self._lock is not None and not is_open(Path(self.url) / LOCK, self._lock):
            raise StorageError(f"run.dir = {self.url}: was removed or moved while it was in use")

    def commit(self, checkpoint: Checkpoint, progress: Progress) -> None:
        """Saves a meta-step: first a checkpoint, then ``initialization.safetensors``. Then removes the tasks that it
        averaged, and old checkpoints."""
        self._check_there()
        self.flush()
        folder = f"{CHECKPOINTS}/{checkpoint.meta_step:06d}"
        self._storage.remove(folder)
        tensors = {f"initialization/{name}": value for name, value in checkpoint.initialization.items()}
        tensors |= {f"optimizer/{name}": value for name, value in checkpoint.optimizer.items()}
        state = json.dumps(vars(progress) | {"unfinished": checkpoint.unfinished}).encode()
        self._storage.write(f"{folder}/{LEARNER}", dump_tensors(tensors, FORMAT_VERSION))
        self._storage.write(f"{folder}/{STATE}", state)
        self._storage.write(f"{folder}/{DONE}", _mark(state))
        self.settle(checkpoint)

    def settle(self, checkpoint: Checkpoint) -> None:
        """Finishes a commit after its checkpoint is written; may be repeated if it failed. It writes
        ``initialization.safetensors``, and removes averaged tasks and old checkpoints."""
        self.publish(checkpoint)
        self.tasks.forget_all_but(self._needed(checkpoint))
        self._prune(checkpoint.meta_step)

    def is_settled(self, checkpoint: Checkpoint) -> bool:
        """Returns whether ``initialization.safetensors`` is the checkpoint's, and no averaged task is left."""
        try:
            tensors, metadata = self.published()
        except BadInputError:
            return False
        left = self.tasks.names() - {TaskStore.name_of(place) for place in self._needed(checkpoint)}
        same = fingerprint(tensors) == fingerprint(checkpoint.initialization)
        return same and int(metadata["meta_step"]) == checkpoint.meta_step and not left

    def _needed(self, checkpoint: Checkpoint) -> list[Place]:
        return needed(self.config.meta, checkpoint, self.config.run.keep_checkpoints)

    def _prune(self, newest: int) -> None:
        """Removes all checkpoints but the newest few. Half-written ones, and ones after ``newest``, are damaged."""
        kept = 0
        for folder in self._checkpoints():
            whole = DONE in self._storage.names(folder) and int(folder.rpartition("/")[2]) <= newest
            kept += whole
            if not whole or kept > self.config.run.keep_checkpoints:
                self._storage.remove(folder)

    def publish(self, checkpoint: Checkpoint) -> None:
        """Writes the checkpoint's initialization to ``initialization.safetensors``."""
        metadata = {
            "format": FORMAT,
            **FORMAT_VERSION,
            "meta_step": str(checkpoint.meta_step),
            "config_hash": config_hash(self.config),
            **{f"version.{name}": value for name, value in package_versions().items()},
        }
        self._storage.write(INITIALIZATION, dump_tensors(checkpoint.initialization, metadata))

    def published(self) -> tuple[Tensors, dict[str, str]]:
        """Returns the tensors and metadata of ``initialization.safetensors``; both are empty if there is none yet.
        Raises BadInputError if the file is damaged or is not an initialization."""
        try:
            data = self._storage.read(INITIALIZATION)
        except FileNotFoundError:
            return {}, {}
        return parse_initialization(data, f"{self.url}/{INITIALIZATION}")

    def current_initialization(self) -> tuple[Tensors, dict[str, str]]:
        """Returns what :meth:`published` returns, for evaluation and export. Raises BadInputError if there is no
        initialization yet, or if a checkpoint is newer because a write failed after it."""
        tensors, metadata = self.published()
        checkpoint, _, _ = self.latest()
        committed = checkpoint.meta_step if checkpoint else 0
        if not tensors or committed > int(metadata["meta_step"]):
            if not committed:
                raise BadInputError(f"{self.url}: the run has no {INITIALIZATION} yet")
            found = f"is of meta-step {metadata['meta_step']}" if tensors else "is missing"
            raise BadInputError(f"{self.url}/{INITIALIZATION}: {found}, {OUTDATED.format(committed)}")
        return tensors, metadata

    def _checkpoints(self) -> list[str]:
        """Returns the checkpoint folders, newest first, half-written ones included."""
        found = [f"{CHECKPOINTS}/{name}" for name in self._storage.names(CHECKPOINTS) if name.isdecimal()]
        return sorted(found, reverse=True)

    def latest(self) -> tuple[Checkpoint | None, Progress, list[str]]:
        """Returns the newest intact checkpoint, the run's progress, and a line for each checkpoint that was ignored.

        Raises OtherFormatError if another version has written it."""
        ignored = []
        for folder in self._checkpoints():
            where = f"{self.url}/{folder}"
            if DONE not in self._storage.names(folder):
                ignored.append(f"{where}: half-written, ignored")
                continue
            try:
                return *self._load(folder), ignored
            except OtherFormatError:
                raise
            except (BadInputError, FileNotFoundError) as error:
                ignored.append(f"{where}: cannot be read, ignored ({error})")
        return None, Progress(), ignored

    def record_versions(self, meta_step: int) -> list[str]:
        """Calls :func:`leap_rl.runs.run_files.record_versions` for this run."""
        return record_versions(self._storage, meta_step)

    def _load(self, folder: str) -> tuple[Checkpoint, Progress]:
        """Returns a checkpoint. Raises BadInputError if it is damaged, FileNotFoundError if a file is missing."""
        where = f"{self.url}/{folder}"
        data, mark = (self._storage.read(f"{folder}/{name}", MAX_TEXT) for name in (STATE, DONE))
        if mark not in (b"", _mark(data)):  # an earlier version's mark is empty
            raise BadInputError(f"{where}/{STATE}: is damaged: its checksum does not match its bytes")
        state = parse_json(State, data, f"{where}/{STATE}")
        tensors, metadata = load_tensors(self._storage.read(f"{folder}/{LEARNER}"), where)
        check_format(metadata, f"{where}/{LEARNER}")
        initialization, optimizer = below(tensors, "initialization/"), below(tensors, "optimizer/")
        check_parameters(initialization, where)
        check_parameters(optimizer, where)
        if not initialization:
            raise BadInputError(f"{where}: has no initialization")
        return Checkpoint(state.meta_step, initialization, optimizer, tuple(state.unfinished)), state.progress

    def append_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows to ``metrics.jsonl``: at once on a local path, and with the next commit in an object store."""
        self._check_there()
        self._rows.extend(rows)
        if isinstance(self._storage, LocalStorage):
            self.flush()

    @property
    def tensorboard(self) -> Path:
        """Returns the local folder for event files: the run's own, or one that :meth:`flush` copies to an object
        store."""
        if isinstance(self._storage, LocalStorage):
            return self._storage.path / TENSORBOARD
        if self._events is None:
            self._events = Path(tempfile.mkdtemp(prefix="leap_rl-"))
        return self._events

    def flush(self) -> None:
        """Writes pending rows, and copies event files to an object store."""
        rows, self._rows = self._rows, []
        if rows:
            self._storage.append(METRICS, jsonl(rows))
        if self._events is not None:
            for file in self._events.rglob("*.tfevents.*"):
                name = f"{TENSORBOARD}/{file.relative_to(self._events).as_posix()}"
                self._storage.write(name, file.read_bytes())

    def forget_metrics(self, checkpoint: Checkpoint) -> None:
        """Removes the rows of tasks and meta-steps that ``checkpoint`` has not averaged, since they will be logged
        again."""
        is_averaged = self._averaged_by(checkpoint)
        kept = [row for row in metrics_of(self._storage) if is_averaged(row)]
        self._storage.write(METRICS, jsonl(kept))

    def committed_rows(self, checkpoint: Checkpoint, after: Checkpoint) -> list[dict[str, Any]]:
        """Returns the rows that ``checkpoint`` has averaged, without those that ``after`` had averaged already."""
        now, before = self._averaged_by(checkpoint), self._averaged_by(after)
        return [row for row in metrics_of(self._storage) if now(row) and not before(row)]

    def _averaged_by(self, checkpoint: Checkpoint) -> Callable[[Mapping[str, Any]], bool]:
        """Returns a function that says whether a row is of a meta-step, or an averaged task, before a checkpoint."""
        due_places = set(due(self.config.meta, checkpoint))
        drawn = checkpoint.meta_step + self.config.meta.staleness  # tasks up to this meta-step may be averaged

        def is_averaged(row: Mapping[str, Any]) -> bool:
            if "slot" in row:
                return row["meta_step"] <= drawn and (row["meta_step"], row["slot"]) not in due_places
            return bool(row["meta_step"] < checkpoint.meta_step)

        return is_averaged

    def read_json(self, name: str, schema: type[Schema]) -> Schema | None:
        """Returns a JSON file of the run; None if there is none. Raises BadInputError if it does not fit ``schema``."""
        try:
            return parse_json(schema, self._storage.read(name, MAX_TEXT), f"{self.url}/{name}")
        except FileNotFoundError:
            return None

    def write_json(self, name: str, content: FileSchema) -> None:
        """Writes a JSON file beside those of the run."""
        self._storage.write(name, content.model_dump_json().encode() + b"\n")

    @property
    def folder(self) -> Path | None:
        """Returns the run directory as a path; None if it is in an object store."""
        return self._storage.path if isinstance(self._storage, LocalStorage) else None


@contextmanager
def open_run(config: Config) -> Iterator[RunDirectory]:
    """Opens a run directory with :meth:`RunDirectory.open`, and closes it at the end of the ``with`` statement."""
    run = RunDirectory.open(config)
    try:
        yield run
    finally:
        run.close()


def _mark(state: bytes) -> bytes:
    """Returns the content of ``done``: a line in the format of sha256sum."""
    return f"{hashlib.sha256(state).hexdigest()}  {STATE}\n".encode()
