"""Reads Omniglot (Lake, Salakhutdinov, Tenenbaum 2015) as its authors lay it out: alphabet/character/drawing.png.

The source is a folder or a zip, given by path and never downloaded. What lies above the alphabets does not matter, so a
folder that holds both ``images_background`` and ``images_evaluation``, or links to them, is all 50 alphabets. Hidden
files and ``__MACOSX`` are left out.
"""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from leap_rl.files.storage import read_file
from leap_rl.types import BadInputError

NUM_CHARACTERS, NUM_DRAWINGS, SIDE = 20, 20, 28  # of an alphabet; of a character; pixels
MIN_CONTRAST = 32  # between the darkest and the lightest pixel of a drawing, of 255
MIN_PAPER = 160  # the lightest pixel of a drawing, of 255
MAX_INK = 0.75  # of a drawing, on average; a real one has a tenth


def load_omniglot(source: str, nearest: bool = False) -> dict[str, NDArray[Any]]:
    """Returns alphabet → uint8 [characters, 20 drawings, 28, 28], ink 255; those with fewer than 20 characters are left
    out. A pixel is the mean of those that it replaces, or the one ``nearest`` to its middle.

    Raises BadInputError where the path cannot be read, a drawing is no image, or no alphabet is left.
    """
    found: dict[tuple[str, str], dict[str, NDArray[Any]]] = {}
    for name, data in _files(source):
        alphabet, character, drawing = PurePosixPath(name).parts[-3:]
        image = _read(data, f"{source}: {name}", nearest)
        if not np.array_equal(found.setdefault((alphabet, character), {}).setdefault(drawing[:-4], image), image):
            raise BadInputError(
                f"alphabets.source = {source}: {name}: is another drawing than one of the same alphabet, character and "
                "name that lies elsewhere in it"
            )
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
    """Yields name and content of every PNG that lies two folders deep or deeper."""
    path = Path(source)
    try:
        if path.is_dir():
            for name in _names(path):
                if _is_drawing(name):
                    yield name, read_file(path / name)
            return
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if _is_drawing(name.replace("\\", "/")):  # as some archivers of Windows write it
                    yield name.replace("\\", "/"), archive.read(name)
    except BadInputError as error:
        raise BadInputError(f"alphabets.source = {error}") from None
    except OSError as error:
        where = f" ({error.filename})" if error.filename not in (None, source) else ""
        raise BadInputError(f"alphabets.source = {source}: {error.strerror or error}{where}") from None
    except Exception as error:  # each compression has its own
        raise BadInputError(
            f"alphabets.source = {source}: neither a folder nor a zip that can be read: {error}"
        ) from None


def _names(root: Path, folder: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Files below ``root``, sorted. Links are followed, but none into a folder that it lies in (``above``: their
    devices and inodes). Raises OSError where a folder cannot be read, or a link leads nowhere."""
    status = os.stat(root / folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
        name = f"{folder}{entry.name}"
        if entry.is_dir():
            if not _is_left_out(entry.name):
                yield from _names(root, f"{name}/", (*above, here))
        elif not _is_left_out(entry.name):
            os.stat(entry.path)
            yield name


def _is_left_out(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _is_drawing(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.lower().endswith(".png") and len(parts) >= 3 and not any(map(_is_left_out, parts))


def _read(data: bytes, where: str, nearest: bool) -> NDArray[Any]:
    """Returns a drawing of dark ink on white paper as uint8 [28, 28], ink 255. Raises BadInputError if it is none."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    except cv2.error:  # of more pixels than it reads
        image = None
    if image is None:
        raise BadInputError(f"alphabets.source = {where}: not an image")
    darkest, lightest, ink = int(image.min()), int(image.max()), 1 - float(image.mean()) / 255
    if lightest - darkest < MIN_CONTRAST:
        raise BadInputError(
            f"alphabets.source = {where}: nothing is drawn: pixels are {darkest} to {lightest}; it must be dark ink "
            "on white paper, 0 to 255, without transparency"
        )
    if lightest < MIN_PAPER and ink <= MAX_INK:
        raise BadInputError(
            f"alphabets.source = {where}: is dark: pixels are {darkest} to {lightest}; it must be dark ink on white "
            "paper, 0 to 255"
        )
    if ink > MAX_INK:
        raise BadInputError(
            f"alphabets.source = {where}: is inverted: its share of ink is {ink:.2f}, where drawings have 0.1; it must "
            "be dark ink on white paper"
        )
    how = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_AREA
    return 255 - np.asarray(cv2.resize(image, (SIDE, SIDE), interpolation=how))
