"""The embedded family of alphabets: characters of many scripts from the fonts that matplotlib ships, drawn anew.

    glyphs.json        alphabet → font, 20 characters (written by ``python -m benchmarks.glyphs``)
    draw_glyph         one character, as the font has it
    render             20 drawings of each, as if by 20 hands: a random affine map and an elastic distortion each

Everything comes from one seed. The drawings are kept in the user's cache, under a name that says what they were made
of, with a checksum: a file that is damaged is made again.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from leap_rl.processes.classification.omniglot import NUM_DRAWINGS, SIDE
from leap_rl.tensor_files import dump_tensors, load_tensors
from leap_rl.types import BadInputError

SEED = 1_812_01054
RECIPE = 1  # to be raised with every change of what is drawn
CANVAS = 112  # pixels a side of a character before it is drawn
INK = 76  # of them, at most, the character itself

# Of a drawing, uniform: degrees; shares of the size.
TURN, SHEAR, STRETCH, SHIFT = 12.0, 0.2, (0.75, 1.1), 0.06
ELASTIC_POINTS, ELASTIC = 5, 0.04  # points a side that are moved by this share of the size (standard deviation)

Image: TypeAlias = NDArray[Any]


@functools.cache
def _table() -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = json.loads((files("leap_rl") / "glyphs.json").read_text(encoding="utf-8"))
    return table


def font_folder() -> Path:
    """Where matplotlib keeps its fonts. Raises BadInputError where it is not installed."""
    found = importlib.util.find_spec("matplotlib")
    folder = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" if found and found.origin else None
    if folder is None or not folder.is_dir():
        raise BadInputError(
            "alphabets.source = glyphs: needs the fonts that come with matplotlib: pip install 'leap-rl[report]'"
        )
    return folder


@functools.cache
def _font(name: str, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(font_folder() / name), size, layout_engine=ImageFont.Layout.BASIC)


def has_glyph(font: str, character: str) -> bool:
    """Whether the font has more to show for the character than for one that it does not know."""
    shown, unknown = _font(font, 48).getmask(character), _font(font, 48).getmask("\U0010fffe")
    return shown.size != (0, 0) and (shown.size, bytes(shown)) != (unknown.size, bytes(unknown))


def draw_glyph(font: str, character: str) -> Image:
    """uint8 [CANVAS, CANVAS], ink 255: the character as large as it may be, in the middle."""
    mask = _font(font, 160).getmask(character, mode="L")
    ink = np.frombuffer(bytes(mask), np.uint8).reshape(mask.size[::-1])
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(2, round(length * INK / max(ink.shape))) for length in ink.shape)
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    top, left = (CANVAS - height) // 2, (CANVAS - width) // 2
    canvas[top : top + height, left : left + width] = cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA)
    return canvas


def distort(glyph: Image, rng: np.random.Generator) -> Image:
    """uint8 [SIDE, SIDE]: the character as another hand would draw it."""
    turn, shear = np.radians(rng.uniform(-TURN, TURN)), rng.uniform(-SHEAR, SHEAR)
    stretch, shift = rng.uniform(*STRETCH, size=2), rng.uniform(-SHIFT, SHIFT, size=2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    back = np.linalg.inv(rotation @ np.array([[1, shear], [0, 1]]) @ np.diag(stretch))  # of the drawing to the glyph
    points = np.indices((CANVAS, CANVAS))[::-1].reshape(2, -1) / CANVAS - 0.5  # x, y of each pixel
    moved = back @ (points - shift[:, None]) + 0.5
    coarse = rng.normal(0, ELASTIC, size=(ELASTIC_POINTS, ELASTIC_POINTS, 2)).astype(np.float32)
    elastic = cv2.resize(coarse, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
    x, y = moved.reshape(2, CANVAS, CANVAS).astype(np.float32) * CANVAS
    drawn = cv2.remap(glyph, x + elastic[..., 0] * CANVAS, y + elastic[..., 1] * CANVAS, cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(drawn, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def render(alphabet: str) -> Image:
    """uint8 [20 characters, 20 drawings, 28, 28], ink 255."""
    row = _table()[alphabet]
    rng = np.random.default_rng([SEED, *alphabet.encode()])
    glyphs = [draw_glyph(row["font"], character) for character in row["characters"]]
    return np.array([[distort(glyph, rng) for _ in range(NUM_DRAWINGS)] for glyph in glyphs])


def load_glyphs() -> dict[str, Image]:
    """Alphabet → uint8 [20 characters, 20 drawings, 28, 28]. Raises BadInputError where the fonts are not there."""
    file = cache_folder() / f"glyphs-{_made_of()}.safetensors"
    cached = _read_cache(file)
    if cached is None:
        cached = {alphabet: render(alphabet) for alphabet in sorted(_table())}
        _write_cache(file, cached)
    return cached


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/leap_rl``, or ``~/.cache/leap_rl``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "leap_rl"


def _made_of() -> str:
    """A digest of everything that decides the drawings."""
    fonts = sorted({row["font"] for row in _table().values()})
    digest = hashlib.sha256(json.dumps([RECIPE, SEED, _table()]).encode())
    for package in ("pillow", "opencv-python-headless", "numpy"):
        digest.update(version(package).encode())
    for font in fonts:
        digest.update((font_folder() / font).read_bytes())
    return digest.hexdigest()[:16]


def checksum(drawings: dict[str, Image]) -> str:
    """SHA-256 over names, shapes and pixels, sorted by name."""
    digest = hashlib.sha256()
    for name, images in sorted(drawings.items()):
        digest.update(f"{name}\0{images.shape}\0".encode() + images.tobytes())
    return digest.hexdigest()


def _read_cache(file: Path) -> dict[str, Image] | None:
    try:
        tensors, metadata = load_tensors(file.read_bytes(), file)
    except (OSError, BadInputError):
        return None
    drawings = {name: value.numpy() for name, value in tensors.items()}
    return drawings if metadata.get("sha256") == checksum(drawings) else None


def _write_cache(file: Path, drawings: dict[str, Image]) -> None:
    """Whole or not at all; where the cache cannot be written the drawings are made again next time."""
    tensors = {name: torch.from_numpy(images) for name, images in drawings.items()}
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(dump_tensors(tensors, {"sha256": checksum(drawings)}))
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
