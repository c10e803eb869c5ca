"""Checks that this version can continue from a run's files: checkpoints and saved tasks say which format they have.

In format 2 the state of a learning process is saved by name, and only at increments. Its sums round differently from
those of format 1, so neither version continues a run of the other.
"""

from collections.abc import Mapping

from leap_rl.files.interface import Storage
from leap_rl.files.tensor_files import load_tensors
from leap_rl.types import BadInputError

FORMAT_VERSION = {"format_version": "2"}  # metadata of files that this version writes
READERS = {"1": "0.1"}  # earlier format → the version of leap-rl that reads it
FOLDERS = ("checkpoints", "tasks")


class OtherFormatError(BadInputError):
    """Is raised for an intact file of another format, which must not be skipped as if it were damaged."""


def check_format(metadata: Mapping[str, str], where: str) -> None:
    """Raises OtherFormatError, with the version that reads it, if a file has another format."""
    found = metadata.get("format_version", "1")
    if found != FORMAT_VERSION["format_version"]:
        reader = f"leap-rl {READERS[found]}" if found in READERS else "a later leap-rl"
        raise OtherFormatError(f"{where}: is of format {found}, which {reader} reads; choose another run.dir")


def check_formats(storage: Storage) -> None:
    """Raises OtherFormatError if a run has a checkpoint or a saved task of another format. Damaged files are skipped
    here, and dealt with by the code that reads them."""
    for folder in FOLDERS:
        for entry in storage.names(folder):
            for name in storage.names(f"{folder}/{entry}"):
                path = f"{folder}/{entry}/{name}"
                if name.endswith(".safetensors"):
                    try:
                        _, metadata = load_tensors(storage.read(path), path)
                    except (BadInputError, FileNotFoundError):
                        continue
                    check_format(metadata, f"{storage.url}/{path}")
