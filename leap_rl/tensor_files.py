"""Named tensors and JSON as the bytes of one safetensors file."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from leap_rl.types import BadInputError, Tensors


def dump_tensors(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file."""
    return bytes(save(dict(tensors), dict(metadata)))


def load_tensors(data: bytes, where: object) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises BadInputError, which names ``where`` it was."""
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")  # of the header, which the library has just found well-formed
        return tensors, json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise BadInputError(f"{where}: not a whole safetensors file: {error}") from None


def below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
