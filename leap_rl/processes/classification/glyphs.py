"""Reads the embedded family of alphabets: 51 scripts of 20 characters, each drawn 20 times by ``tools/glyphs.py``."""

import hashlib
from importlib.resources import files
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[Any]


def load_glyphs() -> dict[str, Image]:
    """Returns the drawings: alphabet → uint8 [20 characters, 20 drawings, 28, 28], ink 255."""
    file = files("leap_rl.processes.classification") / "glyphs.npz"
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as drawings:
        return {name: drawings[name] for name in drawings.files}


def checksum(drawings: dict[str, Image]) -> str:
    """Returns the SHA-256 over names, shapes and pixels, sorted by name."""
    digest = hashlib.sha256()
    for name, images in sorted(drawings.items()):
        digest.update(f"{name}\0{images.shape}\0".encode() + images.tobytes())
    return digest.hexdigest()
