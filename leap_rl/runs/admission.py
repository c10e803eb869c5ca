"""Decides who may use a run directory: what it must hold, which changes of a configuration it continues under, and its
lock."""

import fcntl
import os
from pathlib import Path

from leap_rl.config import Config, flatten, identity
from leap_rl.files.interface import Storage
from leap_rl.files.storage import LocalStorage
from leap_rl.runs.formats import check_formats
from leap_rl.runs.run_files import CONFIG, read_config
from leap_rl.types import BadInputError

LOCK = ".lock"


def check_run(storage: Storage, config: Config) -> Config | None:
    """Returns the configuration of the run in ``run.dir``, if any. Raises BadInputError if it cannot be used."""
    if isinstance(storage, LocalStorage):
        check_directory(storage.path)
    names = storage.names()
    if CONFIG in names:
        stored = read_config(storage)
        _check_same(storage.url, stored, config)
        check_formats(storage)
        return stored
    if names:
        raise BadInputError(f"run.dir = {storage.url}: holds files but no run; choose an empty or a new directory")
    return None


def check_directory(path: Path) -> None:
    """Raises BadInputError where ``run.dir`` cannot be a folder that is written to."""
    if path.exists() and not path.is_dir():
        raise BadInputError(f"run.dir = {path}: is a file; it must be a directory or not exist yet")
    ancestor = path
    while not ancestor.exists():
        if ancestor.is_symlink():
            raise BadInputError(f"run.dir = {path}: {ancestor} is a symbolic link that leads nowhere")
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise BadInputError(f"run.dir = {path}: {ancestor} is a file")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise BadInputError(f"run.dir = {path}: {ancestor} is not writable")


def extending_changes(stored: Config, wanted: Config) -> list[str]:
    """Returns the changes of ``wanted`` over the run's configuration that extend the run: more meta-steps at a constant
    rate, and other held-out games. They change no bit of the meta-steps that are done."""
    found = []
    if wanted.meta.steps > stored.meta.steps and wanted.meta.lr_decay == "constant":
        found.append(f"meta.steps ({stored.meta.steps} → {wanted.meta.steps})")
    before, after = (dict(flatten(config.model_dump())) for config in (stored, wanted))
    for key in wanted.extendable():
        if key in before and before[key] != after[key]:
            found.append(f"{key} ({' → '.join(', '.join(names) or 'none' for names in (before[key], after[key]))})")
    return found


def differing_keys(stored: Config, wanted: Config) -> list[str]:
    """Returns the keys in which ``wanted`` would make another result of what ``stored`` began, as
    "key (… there, … here)"."""
    before, after = dict(flatten(identity(stored))), dict(flatten(identity(wanted)))
    free = [text.partition(" ")[0] for text in extending_changes(stored, wanted)]
    return [
        f"{key} ({before.get(key)} there, {value} here)"
        for key, value in after.items()
        if before.get(key) != value and key not in free
    ]


def _check_same(url: str, stored: Config, wanted: Config) -> None:
    differing = differing_keys(stored, wanted)
    if differing:
        linear = wanted.meta.lr_decay == "linear" and wanted.meta.steps > stored.meta.steps
        why = "; with meta.lr_decay = linear, meta.steps decides every rate" if linear else ""
        raise BadInputError(
            f"run.dir = {url}: holds a run of another configuration: {', '.join(differing)}; "
            f"choose another run.dir, or the same values{why}"
        )


def lock_directory(path: Path) -> int:
    """Locks a local run directory. Raises BadInputError if it cannot be written or is in use."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise BadInputError(f"run.dir = {path}: cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise BadInputError(f"run.dir = {path}: another process is training this run") from None
    remove_half_written(path)
    return lock


def remove_half_written(path: Path) -> None:
    """Removes the temporary files of writes that were killed, in other drivers and in workers of this one."""
    for leftover in path.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)
