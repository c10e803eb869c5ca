"""Files by name, in a folder or an object store: the least that a run directory needs.

A write is atomic and durable: after it, and after a crash at any point of it, readers find the old bytes or the
new ones. Names are relative, with forward slashes. Whatever goes wrong is a StorageError that says where.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leap_rl.types import BadInputError, StorageError


class Storage(ABC):
    """``url`` is a local path, or what pyarrow or fsspec can open: s3://bucket/runs/1, gs://…, memory://…"""

    url: str

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is no such file."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Atomic and durable; makes the folders that it needs."""

    @abstractmethod
    def append(self, name: str, data: bytes) -> None:
        """Adds to the end of a file. A crash may cut the last line short."""

    @abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """What a folder holds, sorted; nothing where it does not exist. Half-written files are left out."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, or a folder and all it holds; nothing happens where it does not exist."""


def open_storage(url: str) -> Storage:
    """The storage at a path or URL. Raises BadInputError where nothing here can open such a URL."""
    return ObjectStorage(url) if "://" in url else LocalStorage(url)


class LocalStorage(Storage):
    """A folder of this machine, or one that all hosts mount (NFS)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = Path(url)

    def read(self, name: str) -> bytes:
        with _explained(self.url):
            return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        path = self.path / name
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two attempts at a task may write at once
        with _explained(self.url):
            new_folders = [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("wb") as file:
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
        with _explained(self.url), (self.path / name).open("ab") as file:
            file.write(data)

    def names(self, folder: str = "") -> list[str]:
        with _explained(self.url):
            try:
                return sorted(name for name in os.listdir(self.path / folder) if not name.startswith("."))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def remove(self, name: str) -> None:
        path = self.path / name
        with _explained(self.url):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)  # a worker that was given up may be writing there
            else:
                path.unlink(missing_ok=True)


class ObjectStorage(Storage):
    """An object store, where one object is written at once or not at all."""

    def __init__(self, url: str) -> None:
        from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

        self.url = url
        try:
            self._files, path = FileSystem.from_uri(url)
        except Exception:  # not one of pyarrow's own
            try:
                import fsspec

                files, path = fsspec.core.url_to_fs(url)
                self._files = PyFileSystem(FSSpecHandler(files))
            except (ImportError, ValueError, OSError) as error:
                raise BadInputError(f"run.dir = {url}: cannot be opened: {error}") from None
        self._root = path.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def read(self, name: str) -> bytes:
        with _explained(self.url), self._files.open_input_stream(self._path(name)) as stream:
            data: bytes = stream.read()
            return data

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with _explained(self.url):
            if self._files.type_name != "s3":  # where keys are no folders, a marker object would be made of it
                self._files.create_dir(path.rpartition("/")[0], recursive=True)
            with self._files.open_output_stream(path) as stream:
                stream.write(data)

    def append(self, name: str, data: bytes) -> None:
        """Object stores cannot append: the object is read and written again."""
        try:
            before = self.read(name)
        except FileNotFoundError:
            before = b""
        self.write(name, before + data)

    def names(self, folder: str = "") -> list[str]:
        from pyarrow.fs import FileSelector

        with _explained(self.url):
            found: list[Any] = self._files.get_file_info(FileSelector(self._path(folder), allow_not_found=True))
        return sorted(info.base_name for info in found if info.base_name)

    def remove(self, name: str) -> None:
        from pyarrow.fs import FileType

        path = self._path(name)
        with _explained(self.url):
            kind = self._files.get_file_info(path).type
            if kind == FileType.Directory:
                self._files.delete_dir(path)
            elif kind == FileType.File:
                self._files.delete_file(path)


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
