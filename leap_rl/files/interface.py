"""Defines the interface of a storage, which reads and writes files by name, in a folder or an object store, with only
the operations that a run directory needs.

A write is atomic and durable: after it, and after a crash at any point of it, readers find either the old bytes or the
new ones. Names are relative, with forward slashes. Failures are raised as StorageError, with the location.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from leap_rl.types import StorageError

MAX_TEXT = 1 << 20  # bytes: limit for small files and those that people write
MAX_FILE = 2 << 30  # bytes: limit for all others


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


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Raises StorageError for any OSError, but lets FileNotFoundError pass."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise StorageError(f"run.dir = {url}: {reason}; what was committed is kept") from error


@contextmanager
def explained_write(url: str) -> Iterator[None]:
    """Raises StorageError for any OSError, a missing file or bucket included."""
    try:
        with explained(url):
            yield
    except FileNotFoundError:
        raise StorageError(f"run.dir = {url}: was removed or moved while it was in use") from None
