"""How Omniglot lies on disks: behind links, with what other programs leave beside it; and drawings that are none."""

import os
import shutil
import struct
import zipfile
import zlib

import cv2
import numpy as np
import pytest

from leap_rl.processes.classification.omniglot import load_omniglot
from leap_rl.types import BadInputError
from tests.alphabets import drawings, write_folder, write_zip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("omniglot"))


@pytest.fixture(scope="module")
def expected(folder):
    return load_omniglot(str(folder))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


# Links


def test_links_to_folders_alphabets_characters_and_drawings_are_followed(tmp_path, folder, expected):
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "images_background").symlink_to(folder / "images")
    assert_same(load_omniglot(str(tmp_path / "both")), expected)
    (tmp_path / "link").symlink_to(tmp_path / "both")
    assert_same(load_omniglot(str(tmp_path / "link")), expected)
    for alphabet in sorted((folder / "images").iterdir()):
        for character in sorted(alphabet.iterdir()):
            there = tmp_path / "single" / alphabet.name / character.name
            if character.name < "character05":
                there.mkdir(parents=True)
                for drawing in character.iterdir():
                    (there / drawing.name).symlink_to(drawing)
            else:
                there.symlink_to(character)
    assert_same(load_omniglot(str(tmp_path / "single")), expected)


def test_links_that_lead_back_are_followed_once(tmp_path, folder, expected):
    there = tmp_path / "omniglot"
    there.mkdir()
    (there / "images").symlink_to(folder / "images")
    (there / "again").symlink_to(there)
    (there / "above").symlink_to(tmp_path)
    assert_same(load_omniglot(str(there)), expected)


@pytest.mark.parametrize("name", ["images_evaluation", "Script_0/character01/0001.png"])
def test_a_link_that_leads_nowhere_is_refused_and_named(tmp_path, folder, name):
    (tmp_path / "images_background").symlink_to(folder / "images")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(BadInputError, match=f"No such file or directory.*{name}"):
        load_omniglot(str(tmp_path))


# What lies beside drawings


@pytest.mark.parametrize("archived", [False, True])
def test_capital_endings_count_and_hidden_files_do_not(tmp_path, expected, archived):
    files = {name.replace("0001.png", "0001.PNG"): data for name, data in drawings().items()}
    for hidden in ("__MACOSX/images/Script_0/character01/._0001.png", "images/__MACOSX/Script_9/c/0001.png",
                   "images/Script_0/character01/.0000.png", "images/.Script_0/character01/0001.png"):  # fmt: skip
        files[hidden] = b"not an image"
    if archived:
        assert_same(load_omniglot(str(write_zip(tmp_path / "omniglot.zip", files))), expected)
        return
    for name, data in files.items():
        file = tmp_path / "folder" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    assert_same(load_omniglot(str(tmp_path / "folder")), expected)


def test_the_folder_that_is_named_may_be_hidden_itself(tmp_path, expected):
    assert_same(load_omniglot(str(write_folder(tmp_path / ".cache" / "omniglot"))), expected)


def test_a_zip_with_backslashes_in_its_names_is_read(tmp_path, expected):
    files = {name.replace("/", "\\"): data for name, data in drawings().items()}
    assert_same(load_omniglot(str(write_zip(tmp_path / "windows.zip", files))), expected)


@pytest.mark.parametrize(
    "other", ["images_small/Script_0/character01/0001.png", "images/Script_0/character01/0001.PNG"]
)
def test_two_drawings_of_one_name_must_be_the_same(tmp_path, expected, other):
    files, name = dict(drawings()), "images/Script_0/character01/0001.png"
    assert_same(load_omniglot(str(write_zip(tmp_path / "same.zip", files | {other: files[name]}))), expected)
    files[other] = files["images/Script_1/character01/0001.png"]
    with pytest.raises(BadInputError, match="is another drawing than one of the same alphabet, character and name"):
        load_omniglot(str(write_zip(tmp_path / "others.zip", files)))


def test_a_pipe_among_drawings_is_refused_and_named(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "omniglot")
    pipe = tmp_path / "omniglot" / "images" / "Script_0" / "character01" / "0001.png"
    pipe.unlink()
    os.mkfifo(pipe)
    with pytest.raises(BadInputError, match=f"{pipe}: is not a regular file"):
        load_omniglot(str(tmp_path / "omniglot"))


# Drawings that are none


def encoded(image, suffix=".png"):
    return cv2.imencode(suffix, np.asarray(image))[1].tobytes()


LINE = np.full((105, 105), 255, np.uint8)
LINE[20:80, 50:56] = 0
TRANSPARENT = np.zeros((105, 105, 4), np.uint8)
TRANSPARENT[20:80, 50:56, 3] = 255  # black ink on a transparent ground, which is black below


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (255 - LINE, "is inverted: its share of ink is 0.97"),
        (TRANSPARENT, "nothing is drawn: pixels are 0 to 0"),
        (LINE // 255, "nothing is drawn: pixels are 0 to 1"),
        (1 - LINE // 255, "nothing is drawn: pixels are 0 to 1"),
        (np.full_like(LINE, 255), "nothing is drawn: pixels are 255 to 255"),
        ((LINE.astype(np.uint16) // 255) * 255, "nothing is drawn"),  # 8 bits stored in 16
        (np.dstack([255 - LINE] * 3), "is inverted"),
        (LINE // 255 * 100, "is dark: pixels are 0 to 100"),
        (LINE // 2, "is dark: pixels are 0 to 127"),
    ],
)
def test_a_drawing_that_is_none_is_refused_and_named(tmp_path, image, problem):
    name = "images/Script_0/character01/0001.png"
    files = drawings() | {name: encoded(image)}
    with pytest.raises(BadInputError, match=problem) as error:
        load_omniglot(str(write_zip(tmp_path / "omniglot.zip", files)))
    assert name in str(error.value)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [20_000, 60_000, 1 << 20])  # of the last two, OpenCV raises an error of its own
def test_a_drawing_that_claims_to_be_huge_is_refused_and_named(tmp_path, side):
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    name = "images/Script_0/character01/0001.png"
    with pytest.raises(BadInputError, match=f"{name}: not an image"):
        load_omniglot(str(write_zip(tmp_path / "omniglot.zip", drawings() | {name: data})))


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_a_zip_that_is_damaged_is_refused_however_it_is_compressed(tmp_path, compression, expected):
    file = tmp_path / "omniglot.zip"
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in drawings().items():
            archive.writestr(name, data)
    assert_same(load_omniglot(str(file)), expected)
    damaged = bytearray(file.read_bytes())
    damaged[90:150] = b"\xaa" * 60  # behind the first file's header
    file.write_bytes(damaged)
    with pytest.raises(BadInputError, match=r"omniglot\.zip"):
        load_omniglot(str(file))


def test_grey_and_coloured_drawings_of_dark_ink_on_light_paper_are_taken(tmp_path):
    name = "images/Script_0/character01/0001.png"
    for image in (
        LINE,
        np.dstack([LINE] * 3),
        np.clip(LINE, 60, 230),
        np.dstack([LINE] * 3 + [np.full_like(LINE, 255)]),
    ):
        load_omniglot(str(write_zip(tmp_path / "omniglot.zip", drawings() | {name: encoded(image)})))
