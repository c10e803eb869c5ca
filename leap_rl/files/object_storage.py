"""Reads and writes files in an object store, with pyarrow or fsspec."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from leap_rl.extras import require_extra
from leap_rl.files.interface import MAX_FILE, Storage, explained, explained_write
from leap_rl.types import BadInputError

ANSWER_SECONDS = 60.0  # time limit of one request, uploads included
Answer = TypeVar("Answer")


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
        with explained(self.url):
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

        with explained_write(self.url):
            _in_time(call)

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

        with suppress(FileNotFoundError):  # another process may have removed it meanwhile
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
