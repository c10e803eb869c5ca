"""Writes named tensors and text metadata as one safetensors file with a checksum over all of it, and reads it back.

The checksum is the metadata's ``sha256``: the SHA-256 of the file with zeros in place of those 64 digits. It detects
damage but not forgery, since anyone who can write the file can write its checksum.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from leap_rl.types import BadInputError, Tensors

CHECKSUM, MARK = "sha256", "checked"  # two keys, so that damage to one of them is detected too
_ZEROS = b"0" * 64


def dump_tensors(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """Returns the bytes of a safetensors file that contains its checksum."""
    marked = dict(metadata) | {CHECKSUM: _ZEROS.decode(), MARK: CHECKSUM}
    data = bytearray(save(dict(tensors), marked))
    digest = hashlib.sha256(data).hexdigest().encode()
    start = _checksum_starts(data, _ZEROS)
    data[start : start + 64] = digest
    return bytes(data)


def load_tensors(data: bytes, where: object) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the tensors and metadata of a safetensors file. Raises BadInputError, which names the file as ``where``,
    if it is something else or its checksum is wrong. A file without a checksum (of an earlier version, or by other
    programs) is read without this check."""
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")  # the header's; the library has just found it well-formed
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as error:
        raise BadInputError(f"{where}: not a whole safetensors file: {' '.join(str(error).split())}") from None
    if (CHECKSUM in metadata or MARK in metadata) and not _is_sound(data, metadata.get(CHECKSUM, "")):
        raise BadInputError(f"{where}: is damaged: its checksum does not match its bytes")
    metadata.pop(CHECKSUM, None)
    metadata.pop(MARK, None)
    return tensors, metadata


def _is_sound(data: bytes, checksum: str) -> bool:
    """Returns whether the checksum is the SHA-256 of the bytes with zeros in its place."""
    try:
        start = _checksum_starts(data, checksum.encode())
    except ValueError:
        return False
    whole = memoryview(data)
    digest = hashlib.sha256(whole[:start])
    digest.update(_ZEROS)
    digest.update(whole[start + 64 :])
    return digest.hexdigest() == checksum


def _checksum_starts(data: bytes | bytearray, value: bytes) -> int:
    """Returns where the 64 digits begin. Raises ValueError if they are not in the header."""
    before = f'"{CHECKSUM}":"'.encode()
    return data.index(before + value + b'"', 8, 8 + int.from_bytes(data[:8], "little")) + len(before)


def below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the entries whose names begin with ``prefix``, which is removed from the names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
