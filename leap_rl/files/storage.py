"""Reads and writes files by name, in a folder or an object store, with only the operations that a run directory needs.

A write is atomic and durable: after it, and after a crash at any point of it, readers find either the old bytes or the
new ones. Names are relative, with forward slashes. Failures are raised as StorageError, with the location.
"""

import errno
import os
import re
import secrets
import shutil
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from leap_rl.extras import require_extra
from leap_rl.types import BadInputError, StorageError

ANSWER_SECONDS = 60.0  # time limit of one request to an object store, uploads included
Answer = TypeVar("Answer")

PATHS = ("run.dir", "alphabets.source")  # keys of the configuration
MAX_TEXT = 1 << 20  # bytes: limit for small files and those that people write
MAX_FILE = 2 << 30  # bytes: limit for all others


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


class Storage(ABC):
    """Stores the files below ``url``: a local path, or a URL that pyarrow or fsspec can open (s3://bucket/runs/1, gs://…).

    Names are relative to it.
    """

    url: str

    @abstractmethod
    def read(self, name: str, limit: int = MAX_FILE) -> bytes:
        """Returns a file's content. Raises FileNotFoundError if there is no such file, and BadInputError if it is not a
        regular file or has more than ``limit`` bytes."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Writes a file atomically and durably, and makes the folders that it needs."""

    @abstractmethod
    def append(self, name: str, data: bytes) -> None:
        """Appends to a file. A crash may cut the last line short."""

    @abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """Returns the names in a folder, sorted and without half-written files; an empty list if there is no folder."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, or a folder with its content. Does nothing if it does not exist."""


def open_storage(url: str) -> Storage:
    """Returns the storage at a path or URL. Raises BadInputError if no installed library can open such a URL."""
    return ObjectStorage(url) if "://" in url else LocalStorage(url)


class LocalStorage(Storage):
    """Stores files in a local folder, or in one that all hosts mount (NFS). The folder must exist before a write."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = Path(url)

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:
        with _explained(self.url):
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
        with self._explained():
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
        with self._explained(), open(os.open(self._within(name), flags, 0o666), "ab") as file:
            file.write(data)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises StorageError for all errors of a write, a missing file included."""
        try:
            with _explained(self.url):
                yield
        except FileNotFoundError:
            raise StorageError(f"run.dir = {self.url}: was removed or moved while it was in use") from None

    def names(self, folder: str = "") -> list[str]:
        with _explained(self.url):
            try:
                return sorted(name for name in os.listdir(self.path / folder) if not name.startswith("."))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    return []
                raise

    def remove(self, name: str) -> None:
        path = self._within(name)
        with _explained(self.url):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)  # a worker that was given up may still write there
            else:
                path.unlink(missing_ok=True)


class ObjectStorage(Storage):
    """Stores files in an object store, which writes an object as a whole or not at all.

    Each request must be answered within ``ANSWER_SECONDS``, and can be interrupted meanwhile.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, path = _in_time(lambda: _file_system(url))
        except (ImportError, ValueError, OSError) as error:
            require_extra("ray", f"run.dir = {url}")  # pyarrow
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadInputError(f"run.dir = {url}: cannot be opened: {reason}") from None
        self._root = path.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        with _explained(self.url):
            return _in_time(call)

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:
        def call() -> bytes:
            with self._files.open_input_stream(self._path(name)) as stream:
                return bytes(stream.read(limit + 1))

        data = self._ask(call)
        if len(data) > limit:
            raise BadInputError(f"{self.url}/{name}: has more than {limit:,} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)

        def call() -> None:
            if self._files.type_name != "s3":  # S3 has no folders: this would create a marker object
                self._files.create_dir(path.rpartition("/")[0], recursive=True)
            with self._files.open_output_stream(path) as stream:
                stream.write(data)

        self._ask(call)

    def append(self, name: str, data: bytes) -> None:
        """Reads the object and writes it again with ``data``, since object stores cannot append."""
        try:
            before = self.read(name)
        except FileNotFoundError:
            before = b""
        self.write(name, before + data)

    def names(self, folder: str = "") -> list[str]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path(folder), allow_not_found=True)
        found: list[Any] = self._ask(lambda: self._files.get_file_info(selector))
        return sorted(info.base_name for info in found if info.base_name)

    def remove(self, name: str) -> None:
        from pyarrow.fs import FileType

        path = self._path(name)

        def call() -> None:
            kind = self._files.get_file_info(path).type
            if kind == FileType.Directory:
                self._files.delete_dir(path)
            elif kind == FileType.File:
                self._files.delete_file(path)

        self._ask(call)


def _file_system(url: str) -> tuple[Any, str]:
    """Returns a URL's file system, and the path in it. Schemes that pyarrow does not know are opened with fsspec."""
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    if url.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in url:  # by default it retries for 15 minutes
        url += f"{'&' if '?' in url else '?'}retry_limit_seconds={ANSWER_SECONDS / 2:g}"
    try:
        files, path = FileSystem.from_uri(url)
    except ValueError as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
        import fsspec

        files, path = fsspec.core.url_to_fs(url)
        files = PyFileSystem(FSSpecHandler(files))
    return files, path


def _in_time(call: Callable[[], Answer]) -> Answer:
    """Returns what ``call`` returns, or raises what it raises; raises TimeoutError if it takes too long.

    The call runs in a thread, which is abandoned on a timeout. Clients of object stores retry for many minutes, and in
    the main thread they would block signals meanwhile.
    """
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except (OSError, ValueError, ImportError) as error:
            answer.set_exception(error)
        except BaseException as error:  # each client has its own
            answer.set_exception(OSError(str(error) or type(error).__name__))

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(ANSWER_SECONDS)
    except TimeoutError:
        if answer.done():
            raise
        raise TimeoutError(f"no answer in {ANSWER_SECONDS:g} s") from None


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise StorageError(f"run.dir = {url}: {reason}; what was committed is kept") from error
