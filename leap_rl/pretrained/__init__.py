"""Provides the initializations that come with leap_rl, by name: ``pretrained:variants``.

Each is a folder of this package in the format of ``leap-rl export RUN --to hub``: model.safetensors, config.json with
the whole configuration of its run, and a model card. ``leap-rl evaluate`` and ``leap-rl export`` accept such a name
instead of a run.
"""

from pathlib import Path

from leap_rl.files.storage import read_file
from leap_rl.files.tensor_files import load_tensors
from leap_rl.files.text import closest
from leap_rl.hub import TENSORS
from leap_rl.types import BadInputError, Tensors

PREFIX = "pretrained:"
FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Returns the names of all initializations that come with the package, without the prefix."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{TENSORS}"))


def is_name(source: str) -> bool:
    """Returns whether a source is the name of a pretrained initialization, not a path."""
    return source.startswith(PREFIX)


def folder(name: str) -> Path:
    """Returns the folder of an initialization, given as ``variants`` or ``pretrained:variants``. Raises BadInputError
    for an unknown name, with the nearest one and all there are."""
    plain = name.removeprefix(PREFIX)
    if plain not in names():
        near = closest(plain, names())
        hint = f"did you mean {PREFIX}{near}? " if near else ""
        raise BadInputError(f"{PREFIX}{plain}: unknown; {hint}there are {', '.join(PREFIX + name for name in names())}")
    return FOLDER / plain


def load(name: str) -> Tensors:
    """Returns the parameters of an initialization: name → float32 tensor. Raises BadInputError for an unknown name."""
    file = folder(name) / TENSORS
    tensors, _ = load_tensors(read_file(file), file)
    return tensors
