"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015) as its authors lay it out: alphabet/character/drawing.png.

A folder or a zip, given by path and never downloaded. What lies above the alphabets does not matter, so a folder
that holds both ``images_background`` and ``images_evaluation`` is all 50 alphabets.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from leap_rl.types import BadInputError

NUM_CHARACTERS, NUM_DRAWINGS, SIDE = 20, 20, 28  # of an alphabet; of a character; pixels


def load_omniglot(source: str) -> dict[str, NDArray[Any]]:
    """Alphabet → uint8 [characters, 20 drawings, 28, 28], ink 255; those with fewer than 20 characters left out.

    Raises BadInputError where the path cannot be read, a drawing is no image, or no alphabet is left.
    """
    found: dict[tuple[str, str], dict[str, NDArray[Any]]] = {}
    for name, data in _files(source):
        alphabet, character, drawing = PurePosixPath(name).parts[-3:]
        found.setdefault((alphabet, character), {})[drawing] = _read(data, f"{source}: {name}")
    alphabets: dict[str, list[NDArray[Any]]] = {}
    for (alphabet, _), drawings in sorted(found.items()):
        if len(drawings) >= NUM_DRAWINGS:
            chosen = [image for _, image in sorted(drawings.items())][:NUM_DRAWINGS]
            alphabets.setdefault(alphabet, []).append(np.array(chosen))
    kept = {name: np.array(images) for name, images in alphabets.items() if len(images) >= NUM_CHARACTERS}
    if not kept:
        raise BadInputError(
            f"alphabets.source = {source}: holds no alphabet of {NUM_CHARACTERS} characters with {NUM_DRAWINGS} "
            "drawings each, as alphabet/character/drawing.png"
        )
    return kept


def _files(source: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of every PNG that lies two folders deep or deeper."""
    path = Path(source)
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*.png")):
                name = file.relative_to(path).as_posix()
                if name.count("/") >= 2:
                    yield name, file.read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".png") and name.count("/") >= 2 and not name.startswith("__MACOSX"):
                    yield name, archive.read(name)
    except OSError as error:
        raise BadInputError(f"alphabets.source = {source}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, RuntimeError) as error:
        raise BadInputError(
            f"alphabets.source = {source}: neither a folder nor a zip that can be read: {error}"
        ) from None


def _read(data: bytes, where: str) -> NDArray[Any]:
    """A drawing of dark ink on white paper → uint8 [28, 28], ink 255."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    if image is None:
        raise BadInputError(f"alphabets.source = {where}: not an image")
    return 255 - np.asarray(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
