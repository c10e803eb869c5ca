"""Opens the storage at a path or URL, and reads and writes files in a local folder."""

import errno
import os
import re
import secrets
import shutil
import stat
from pathlib import Path
from typing import Any

from leap_rl.files.interface import MAX_FILE, Storage, explained, explained_write
from leap_rl.files.object_storage import ObjectStorage
from leap_rl.types import BadInputError, StorageError

PATHS = ("run.dir", "alphabets.source")  # keys of the configuration


def read_file(path: Path, limit: int = MAX_FILE) -> bytes:
    """Returns the content of a regular file, whose type and size are checked before memory is allocated. Raises OSError
    if it cannot be read, and BadInputError if it is a device, a pipe or a folder, or has more bytes than ``limit``."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for a writer
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            what = os.strerror(errno.EISDIR) if stat.S_ISDIR(found.st_mode) else "is not a regular file"
            raise BadInputError(f"{path}: {what}")
        if found.st_size > limit:
            raise BadInputError(f"{path}: has {found.st_size:,} bytes; at most {limit:,} are read")
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def is_open(path: Path, handle: int) -> bool:
    """Returns whether ``handle`` is of the file that is at a path now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except OSError:
        return False


def expand(path: str) -> str:
    """Returns a path with ``~`` and ``$NAME`` expanded as in a shell, unless a file has exactly this name.

    Raises BadInputError for an unknown user or variable.
    """
    if os.path.exists(path):
        return path
    expanded = os.path.expandvars(path if "://" in path else os.path.expanduser(path))
    unknown = re.search(r"^~[^/]*|\$([A-Za-z_]\w*|\{[^}]*\}|\([^)]*\))|`[^`]*`", expanded)
    if unknown:
        raise BadInputError(f"{path}: {unknown[0]} is not known here; give the path itself")
    return expanded


def expand_key(key: str, value: Any) -> Any:
    """Returns a value that the user gave to a key, expanded if it is a path. Raises BadInputError."""
    if key not in PATHS or not isinstance(value, str):
        return value
    try:
        return expand(value)
    except BadInputError as error:
        raise BadInputError(f"{key} = {error}") from None


def open_storage(url: str) -> Storage:
    """Returns the storage at a path or URL. Raises BadInputError if no installed library can open such a URL."""
    return ObjectStorage(url) if "://" in url else LocalStorage(url)


class LocalStorage(Storage):
    """Stores files in a local folder, or in one that all hosts mount (NFS). The folder must exist before a write."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = Path(url)

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:
        with explained(self.url):
            return read_file(self.path / name, limit)

    def _within(self, name: str) -> Path:
        """Returns the path of a file to be written or removed. Raises StorageError if a folder on the way to it is a
        link: other users who can write around the run directory could otherwise redirect the write."""
        folder = self.path
        for part in Path(name).parts[:-1]:
            folder /= part
            if folder.is_symlink():
                raise StorageError(f"run.dir = {self.url}: {folder} is a symbolic link; nothing is written through it")
        return self.path / name

    def write(self, name: str, data: bytes) -> None:
        path = self._within(name)
        # Two attempts at a task may write at once, in containers whose processes have the same numbers.
        aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        with explained_write(self.url):
            os.stat(self.path)  # a run directory that was removed meanwhile must not reappear with one file
            new_folders = [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                aside.rename(path)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise
            for folder in (path.parent, *(folder.parent for folder in new_folders)):
                _fsync(folder)

    def append(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with explained_write(self.url), open(os.open(self._within(name), flags, 0o666), "ab") as file:
            file.write(data)

    def names(self, folder: str = "") -> list[str]:
        with explained(self.url):
            try:
                return sorted(name for name in os.listdir(self.path / folder) if not name.startswith("."))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    return []
                raise

    def remove(self, name: str) -> None:
        path = self._within(name)
        with explained(self.url):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)  # a worker that was given up may still write there
            else:
                path.unlink(missing_ok=True)


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
