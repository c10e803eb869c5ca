"""Chooses the characters of each alphabet of glyphs, and draws them: 20 times each, as if by 20 hands.

Run it in the project's root, where it writes tools/glyphs.json (alphabet → font, 20 characters) and
leap_rl/processes/classification/glyphs.npz (the drawings):

    python -m tools.glyphs [--show FILE.png]

Candidates are scripts, and parts of scripts, that matplotlib's fonts cover. Tasks turn every drawing by any angle, so
an alphabet must not contain two characters that are each other turned or shifted (d and p, or the vowels of a syllabic
letter). Characters are chosen one by one: always the one that is farthest from those already chosen. The distance of
two characters is the smallest over 36 turns. An alphabet is kept only if its 20th character is at least
``MIN_DISTANCE`` away. A drawing is the character after a random affine map and an elastic distortion.

Other versions of pillow and OpenCV may draw other pixels, which makes other tasks of the same alphabets: runs on the
old drawings are then refused. So the file is written again only where the alphabets change.
"""

import argparse
import functools
import importlib.util
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ImageFont

from leap_rl.processes.classification.glyphs import Image, checksum
from leap_rl.processes.classification.omniglot import NUM_CHARACTERS, NUM_DRAWINGS, SIDE

TABLE = Path("tools/glyphs.json")
DRAWINGS = Path("leap_rl/processes/classification/glyphs.npz")

SEED = 1_812_01054
CANVAS = 112  # pixels a side of a character before it is drawn
INK = 76  # of them, at most, the character itself

# Of a drawing, uniform: degrees; shares of the size.
TURN, SHEAR, STRETCH, SHIFT = 12.0, 0.2, (0.75, 1.1), 0.06
ELASTIC_POINTS, ELASTIC = 5, 0.04  # points a side that are moved by this share of the size (standard deviation)

TURNS = 36
MIN_DISTANCE = 0.38  # blurred characters of unit norm have distance 0 if equal, √2 if they share nothing


def block(first: int, last: int, *categories: str) -> list[str]:
    """Returns the characters of a range whose Unicode category begins with one of ``categories`` (default: letters)."""
    wanted = categories or ("L",)
    return [chr(code) for code in range(first, last + 1) if unicodedata.category(chr(code)).startswith(wanted)]


def plain(characters: Iterable[str]) -> list[str]:
    """Returns the characters that are not another character with a diacritical mark."""
    return [character for character in characters if len(unicodedata.normalize("NFD", character)) == 1]


SANS, SERIF, MONO = "DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf"
STIX, STIX_ITALIC, STIX_BOLD = "STIXGeneral.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBol.ttf"
CANDIDATES: dict[str, tuple[str, list[str]]] = {
    "latin_capitals": (SANS, block(0x41, 0x5A)),
    "latin_small": (SERIF, block(0x61, 0x7A)),
    "latin_italic": ("DejaVuSerif-Italic.ttf", block(0x61, 0x7A)),
    "latin_italic_capitals": ("cmti10.ttf", block(0x41, 0x5A)),
    "latin_typewriter": ("cmtt10.ttf", block(0x61, 0x7A)),
    "latin_extended_a": (SANS, block(0x100, 0x17F)),
    "latin_extended_b": (SANS, plain(block(0x180, 0x24F))),
    "latin_extended_c_d": (SANS, plain([*block(0x2C60, 0x2C7F), *block(0xA720, 0xA7FF)])),
    "latin_extended_additional": (SERIF, block(0x1E00, 0x1EFF)),
    "ipa": (SANS, block(0x250, 0x2AF)),
    "phonetic_extensions": (SERIF, block(0x1D00, 0x1D7F)),
    "greek_capitals": (SANS, plain(block(0x391, 0x3A9))),
    "greek_small": (SERIF, plain(block(0x3B1, 0x3C9))),
    "greek_italic": (STIX_ITALIC, plain([*block(0x391, 0x3A9), *block(0x3B1, 0x3C9)])),
    "greek_archaic_and_coptic": (SANS, plain([*block(0x370, 0x37F), *block(0x3CF, 0x3FF)])),
    "greek_extended": (SERIF, block(0x1F00, 0x1FFF)),
    "cyrillic_capitals": (SANS, plain(block(0x410, 0x42F))),
    "cyrillic_small": (SERIF, plain(block(0x430, 0x44F))),
    "cyrillic_italic": ("DejaVuSerif-Italic.ttf", plain(block(0x430, 0x45F))),
    "cyrillic_extended": (SANS, plain(block(0x460, 0x52F))),
    "cyrillic_extended_b": (SANS, plain(block(0xA640, 0xA69F))),
    "armenian_capitals": (SANS, block(0x531, 0x556)),
    "armenian_small": (SERIF, block(0x561, 0x586)),
    "hebrew": (SANS, plain(block(0x5D0, 0x5EA))),
    "arabic": (SANS, plain(block(0x621, 0x64A))),
    "arabic_extended": (SANS, plain(block(0x66E, 0x6D3))),
    "arabic_initial_forms": (MONO, [c for c in block(0xFB50, 0xFEFC) if "INITIAL FORM" in unicodedata.name(c, "")]),
    "arabic_final_forms": (SANS, [c for c in block(0xFB50, 0xFEFC) if "FINAL FORM" in unicodedata.name(c, "")]),
    "nko": (SANS, block(0x7C0, 0x7EA, "L", "N")),
    "lao": (SANS, block(0xE81, 0xEDD, "L", "N")),
    "georgian_mkhedruli": (SANS, block(0x10D0, 0x10FF)),
    "georgian_asomtavruli": (SERIF, block(0x10A0, 0x10C5)),
    "georgian_nuskhuri": (SERIF, block(0x2D00, 0x2D25)),
    "canadian_syllabics": (SANS, block(0x1401, 0x14DF)),
    "canadian_syllabics_carrier": (SANS, block(0x15A0, 0x167F)),
    "tifinagh": (SANS, block(0x2D30, 0x2D6F)),
    "lisu": (SANS, block(0xA4D0, 0xA4FF)),
    "old_italic": (SANS, block(0x10300, 0x1031F)),
    "hexagrams": (SANS, block(0x4DC0, 0x4DFF, "S")),
    "braille": (SANS, block(0x2801, 0x28FF, "S")),
    "double_struck_capitals": (STIX, [*"ℂℍℕℙℚℝℤ", *block(0x1D538, 0x1D550)]),
    "double_struck_small": (STIX, block(0x1D552, 0x1D56B)),
    "fraktur_capitals": (STIX, [*"ℭℌℑℜℨ", *block(0x1D504, 0x1D51C)]),
    "fraktur_small": (STIX, block(0x1D51E, 0x1D537)),
    "script_capitals": (STIX, [*"ℬℰℱℋℐℒℳℛ", *block(0x1D49C, 0x1D4B5)]),
    "script_small": (STIX, [*"ℯℊℴ", *block(0x1D4B6, 0x1D4CF)]),
    "calligraphic_capitals": ("cmsy10.ttf", block(0x41, 0x5A)),
    "currency": (SANS, [*"$¢£¤¥", *block(0x20A0, 0x20B8, "S")]),
    "letterlike": (SANS, block(0x2100, 0x214F, "L", "S")),
    "mathematical_operators": (STIX, block(0x2200, 0x22FF, "S")),
    "arrows": (SANS, block(0x2190, 0x21FF, "S")),
    "apl": (MONO, block(0x2336, 0x237A, "S")),
    "technical": (SANS, block(0x2300, 0x23FF, "S")),
    "miscellaneous_symbols": (SANS, block(0x2600, 0x266F, "S")),
    "dingbats": (SANS, block(0x2701, 0x27BE, "S")),
    "circled_letters": (SANS, block(0x249C, 0x24E9, "S")),
    "numerals": (SERIF, [*"0123456789", *block(0x2150, 0x2189, "N"), *"²³¹¼½¾"]),
    "domino": (SANS, block(0x1F030, 0x1F061, "S")),
    "box_drawing": (MONO, block(0x2500, 0x257F, "S")),
    "tetragrams": (SANS, block(0x1D306, 0x1D356, "S")),
}  # fmt: skip


def font_folder() -> Path:
    """Returns the folder of matplotlib's fonts. Ends the program where it is not installed."""
    found = importlib.util.find_spec("matplotlib")
    folder = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" if found and found.origin else None
    if folder is None or not folder.is_dir():
        raise SystemExit("needs the fonts that come with matplotlib: pip install 'leap-rl[report]'")
    return folder


@functools.cache
def _font(name: str, size: int) -> Any:
    return ImageFont.truetype(str(font_folder() / name), size, layout_engine=ImageFont.Layout.BASIC)


def has_glyph(font: str, character: str) -> bool:
    """Returns whether the font has more to show for the character than for one that it does not know."""
    shown, unknown = _font(font, 48).getmask(character), _font(font, 48).getmask("\U0010fffe")
    return shown.size != (0, 0) and (shown.size, bytes(shown)) != (unknown.size, bytes(unknown))


def draw_glyph(font: str, character: str) -> Image:
    """Returns a character as large as it may be, in the middle: uint8 [CANVAS, CANVAS], ink 255."""
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
    """Returns a character as another hand would draw it: uint8 [SIDE, SIDE]."""
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


def render(alphabet: str, font: str, characters: str) -> Image:
    """Returns the drawings of an alphabet, from a seed of its own: uint8 [20 characters, 20 drawings, 28, 28]."""
    rng = np.random.default_rng([SEED, *alphabet.encode()])
    glyphs = [draw_glyph(font, character) for character in characters]
    return np.array([[distort(glyph, rng) for _ in range(NUM_DRAWINGS)] for glyph in glyphs])


def turned(image: Image) -> Image:
    """Returns a character blurred, turned about the centre of its ink, and scaled to unit norm: [TURNS, pixels]."""
    weights = image.astype(float)
    y, x = (float((axis * weights).sum() / weights.sum()) for axis in np.indices(image.shape))
    side = image.shape[0]
    views = []
    for turn in range(TURNS):
        move = cv2.getRotationMatrix2D((x, y), 360 * turn / TURNS, 1.0)
        move[:, 2] += (side / 2 - x, side / 2 - y)
        view = cv2.GaussianBlur(cv2.warpAffine(image, move, (side, side)), (0, 0), side / 24).astype(float)
        small = cv2.resize(view, (28, 28), interpolation=cv2.INTER_AREA).ravel()
        views.append(small / np.linalg.norm(small))
    return np.array(views)


def choose(font: str, characters: list[str]) -> tuple[str, float]:
    """Returns the 20 characters, in the order of ``characters``, and the distance of the last one chosen."""
    known = [character for character in dict.fromkeys(characters) if has_glyph(font, character)]
    if len(known) < NUM_CHARACTERS:
        return "", 0.0
    views = np.array([turned(draw_glyph(font, character)) for character in known])
    similar = np.array([(views[:, 0] @ view.T).max(axis=1) for view in views])
    distances = np.sqrt(np.maximum(0, 2 - 2 * np.maximum(similar, similar.T)))
    chosen = [int(distances.sum(axis=1).argmax())]
    distance = 0.0
    while len(chosen) < NUM_CHARACTERS:
        nearest = distances[:, chosen].min(axis=1)
        distance = float(nearest.max())
        chosen.append(int(nearest.argmax()))
    return "".join(known[index] for index in sorted(chosen)), distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", metavar="FILE.png", help="draws every alphabet that was chosen")
    options = parser.parse_args()
    font_folder()  # raises an error if there is none
    table = {}
    for name, (font, characters) in CANDIDATES.items():
        chosen, distance = choose(font, characters)
        kept = distance >= MIN_DISTANCE
        print(f"{name:28} {distance:.3f}{'' if kept else '  left out'}  {chosen}")
        if kept:
            table[name] = {"font": font, "characters": chosen}
    TABLE.write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    drawings = {name: render(name, **row) for name, row in sorted(table.items())}
    np.savez_compressed(DRAWINGS, **drawings)  # type: ignore[arg-type]
    print(f"{len(table)} alphabets; the drawings have SHA-256 {checksum(drawings)}")
    if options.show:
        rows = [np.hstack([draw_glyph(row["font"], c) for c in row["characters"]]) for row in table.values()]
        cv2.imwrite(options.show, np.vstack(rows))


if __name__ == "__main__":
    main()
