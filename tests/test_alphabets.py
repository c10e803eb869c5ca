"""Where drawings come from: Omniglot's layout, glyphs; splits, problems, and batches turned and moved."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch

import tools.glyphs
from leap_rl.processes import parse_tasks, resolve
from leap_rl.processes.classification import data, glyphs
from leap_rl.processes.classification.data import Problem, augment, held_out_batch, load_problem
from leap_rl.processes.classification.omniglot import load_omniglot
from leap_rl.types import BadInputError
from tests.alphabets import drawings, tiny_config, training_batch, write_folder, write_zip
from tests.helpers import meta_batch


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_zip(tmp_path_factory.mktemp("omniglot") / "images.zip")


# Omniglot's layout


def test_a_folder_and_a_zip_give_the_same_drawings(tmp_path, archive):
    folder, zipped = load_omniglot(str(write_folder(tmp_path))), load_omniglot(str(archive))
    assert list(folder) == [f"Script_{i}" for i in range(6)]
    for name, images in folder.items():
        assert images.shape == (21, 20, 28, 28)
        assert np.array_equal(images, zipped[name])


def test_ink_is_bright_and_drawings_stand_in_the_order_of_their_names(archive):
    image = cv2.imdecode(np.frombuffer(drawings()["images/Script_2/character05/0007.png"], np.uint8), 0)
    wanted = 255 - cv2.resize(image, (28, 28), interpolation=cv2.INTER_AREA)
    assert np.array_equal(load_omniglot(str(archive))["Script_2"][4, 6], wanted)


def test_alphabets_with_too_few_characters_or_drawings_are_left_out(tmp_path):
    few = {name: data for name, data in drawings().items() if not name.startswith("images/Script_1/character0")}
    few = {name: data for name, data in few.items() if not ("Script_3" in name and name.endswith("0020.png"))}
    assert set(load_omniglot(str(write_zip(tmp_path / "few.zip", few)))) == {f"Script_{i}" for i in (0, 2, 4, 5)}


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "holds no alphabet of 20 characters with 20 drawings each"),
        (lambda path: path.write_bytes(b"PK\3\4 cut short"), "neither a folder nor a zip"),
        (lambda path: write_zip(path, {}), "holds no alphabet"),
        (lambda path: write_zip(path, {"a/b/c.png": b"no image"}), "a/b/c.png: not an image"),
        (lambda path: write_zip(path, {"a/b/c.png": b""}), "a/b/c.png: not an image"),
    ],
)
def test_what_is_no_omniglot_is_refused_in_one_line(tmp_path, make, part):
    make(tmp_path / "omniglot")
    with pytest.raises(BadInputError) as refused:
        load_omniglot(str(tmp_path / "omniglot"))
    assert str(refused.value).startswith(f"alphabets.source = {tmp_path / 'omniglot'}")
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


# Splits and problems


def test_smaller_pools_are_part_of_larger_ones_and_held_out_is_the_same(archive):
    splits = [data.split(tiny_config(archive, **{"alphabets.train": n}).alphabets) for n in range(1, 6)]
    for n, (train, validation, held_out) in enumerate(splits, start=1):
        assert len(train) == n
        assert held_out == splits[0].held_out
        assert sorted([*train, *held_out, *validation]) == [f"Script_{i}" for i in range(6)]
        assert train == splits[4].training[:n]
    others = [data.split(tiny_config(archive, **{"alphabets.split": n}).alphabets).held_out for n in range(8)]
    assert len({tuple(names) for names in others}) > 1


def test_an_evaluation_names_the_parts_of_a_split(archive):
    config = tiny_config(archive, **{"alphabets.train": 3})
    parts = data.split(config.alphabets)
    found = {part: parse_tasks(config, part) for part in ("training", "validation", "held_out")}
    assert found == {"training": parts.training, "validation": parts.validation, "held_out": parts.held_out}
    with pytest.raises(BadInputError, match=r"^validation: the run has no such tasks"):
        parse_tasks(tiny_config(archive, **{"alphabets.train": 5}), "validation")


def test_more_alphabets_than_there_are_are_refused(archive):
    with pytest.raises(BadInputError, match=r"^alphabets.train = 6: must be at most 5: .* has 6 alphabets"):
        resolve(tiny_config(archive, **{"alphabets.train": 6}))


def test_a_meta_batch_larger_than_the_pool_has_every_alphabet_equally_often(archive):
    config = tiny_config(archive, **{"meta.batch_size": 11})
    tasks = meta_batch(config, 0)
    names = [task.name for task in tasks]
    assert [sorted(names[:4]), sorted(names[4:8])] == [sorted(data.split(config.alphabets).training)] * 2
    assert len(set(names[8:])) == 3
    assert len({task.seed for task in tasks}) == 11


def test_an_alphabet_is_one_problem_of_20_labels_with_drawings_held_out(archive):
    config = tiny_config(archive).alphabets
    problem, images = load_problem(config, "Script_3"), load_omniglot(str(archive))["Script_3"]
    assert (problem.train.shape, problem.held_out.shape) == ((20, 15, 28, 28), (20, 5, 28, 28))
    labels = [next(c for c in range(21) if np.array_equal(images[c, 0], problem.train[i, 0])) for i in range(20)]
    assert len(set(labels)) == 20, "different characters"
    assert labels != sorted(labels), "in an order of their own"
    for label, character in enumerate(labels):
        assert np.array_equal(images[character, :15], problem.train[label])
        assert np.array_equal(images[character, 15:], problem.held_out[label])
    assert torch.equal(load_problem(config, "Script_3").train, problem.train)
    other = load_problem(tiny_config(archive, **{"alphabets.split": 1}).alphabets, "Script_3")
    assert not torch.equal(other.train, problem.train)


def test_other_drawings_than_the_run_began_with_are_refused(archive):
    resolved = resolve(tiny_config(archive))
    assert resolved.alphabets.checksum == data.load_family(str(archive)).checksum
    assert resolve(resolved) == resolved
    with pytest.raises(BadInputError, match=r"^alphabets.checksum = 0000.* are others here: [0-9a-f]{64}$"):
        resolve(tiny_config(archive, **{"alphabets.checksum": "0" * 64}))


def test_the_checksum_sees_every_drawing(tmp_path, archive):
    changed = dict(drawings())
    changed["images/Script_0/character01/0001.png"] = changed["images/Script_0/character02/0001.png"]
    other = data.load_family(str(write_zip(tmp_path / "changed.zip", changed)))
    assert other.checksum != data.load_family(str(archive)).checksum


# Batches


def draws(angle=0.0, right=0.5, down=0.5, scale=0.5):
    """Draws for :func:`augment`, of which 0.5 is no shift and no change of scale."""
    return torch.tensor([[angle], [right], [down], [scale]])


@pytest.fixture
def picture():
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 12:16, 8:22] = 200
    image[0, 8:12, 18:22] = 100
    return image


def test_no_turn_no_shift_and_no_scale_leave_a_drawing_as_it_is(picture):
    assert torch.allclose(augment(picture, draws()), picture[:, None] / 255, atol=1e-5)


def test_a_quarter_turn_is_a_quarter_turn(picture):
    turned = augment(picture, draws(angle=0.25))
    assert torch.allclose(turned, torch.rot90(picture[:, None] / 255, -1, (2, 3)), atol=1e-4), "clockwise"


def centre(image):
    y, x = (image[0, 0].sum(dim) for dim in (1, 0))
    places = torch.arange(28.0)
    return float((x * places).sum() / x.sum()), float((y * places).sum() / y.sum())


def test_shifts_go_up_to_a_fifth_of_the_size_whatever_the_turn(picture):
    for angle in (0.0, 0.3):
        x, y = centre(augment(picture, draws(angle)))
        moved = centre(augment(picture, draws(angle, right=1.0, down=0.25)))
        assert moved == pytest.approx((x + 0.2 * 28, y - 0.1 * 28), abs=0.05)


@pytest.mark.parametrize(("draw", "scale"), [(0.0, 0.8), (1.0, 1.2)])
def test_scale_is_a_length(picture, draw, scale):
    before = float(augment(picture, draws()).sum())
    assert float(augment(picture, draws(scale=draw)).sum()) == pytest.approx(before * scale**2, rel=0.03)


def flat_problem():
    """Every drawing of label i is of one brightness, 10 i."""
    shade = (torch.arange(20, dtype=torch.uint8) * 10)[:, None, None, None]
    return Problem(shade.expand(20, 15, 28, 28), shade.expand(20, 5, 28, 28))


def test_labels_belong_to_their_drawings():
    for batch in (training_batch(flat_problem(), 40, 3, 0), held_out_batch(flat_problem(), 3)):
        middle = batch.images[:, 0, 13:15, 13:15].mean(dim=(1, 2)) * 255
        assert torch.equal(middle.round().long(), batch.labels * 10)
    assert held_out_batch(flat_problem(), 3).labels.bincount().tolist() == [5] * 20


def test_a_batch_is_a_function_of_seed_and_step(archive):
    problem = load_problem(tiny_config(archive).alphabets, "Script_0")
    batch, again = (training_batch(problem, 8, seed=5, step=3) for _ in range(2))
    assert torch.equal(batch.images, again.images)
    assert torch.equal(batch.labels, again.labels)
    for other in (training_batch(problem, 8, 5, 4), training_batch(problem, 8, 6, 3)):
        assert not torch.equal(batch.images, other.images)
    labels = torch.cat([training_batch(problem, 20, 1, step).labels for step in range(100)])
    assert labels.bincount(minlength=20).min() > 60, "100 of each are expected"


# Glyphs


def test_the_drawings_are_those_that_runs_began_with():
    found = glyphs.load_glyphs()
    assert len(found) == 51
    assert {(images.shape, images.dtype) for images in found.values()} == {((20, 20, 28, 28), np.dtype(np.uint8))}
    assert glyphs.checksum(found) == "f9ed46bfddf216856693a8e6fcff7b72083edff4c76f8d62266306a26b54ae14"


def test_glyphs_need_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    data.load_family.cache_clear()
    assert len(data.load_family("glyphs").drawings) == 51


def test_each_alphabet_has_20_characters_that_its_font_shows():
    table = json.loads(tools.glyphs.TABLE.read_text(encoding="utf-8"))
    assert table.keys() == glyphs.load_glyphs().keys()
    for row in table.values():
        assert len(set(row["characters"])) == len(row["characters"]) == 20
        if not (tools.glyphs.font_folder() / row["font"]).exists():
            pytest.skip(f"this matplotlib has no {row['font']}; the drawings themselves are a data file")
        assert all(tools.glyphs.has_glyph(row["font"], character) for character in row["characters"])


def test_drawings_of_a_glyph_differ_and_come_again_from_the_seed():
    row = json.loads(tools.glyphs.TABLE.read_text(encoding="utf-8"))["hebrew"]
    images = tools.glyphs.render("hebrew", **row)
    assert np.array_equal(tools.glyphs.render("hebrew", **row), images)
    images = glyphs.load_glyphs()["hebrew"]  # another version of pillow may draw others
    assert len({image.tobytes() for image in images.reshape(400, -1)}) == 400
    assert images.max(axis=(2, 3)).min() > 128, "there is ink in every drawing"
    # Drawings of one character are nearer each other than those of different characters, on the mean.
    flat = images.reshape(20, 20, -1).astype(float)
    means = flat.mean(axis=1)
    within = np.linalg.norm(flat - means[:, None], axis=2).mean()
    between = np.linalg.norm(flat[:, None] - means[None, :, None], axis=3)[~np.eye(20, dtype=bool)].mean()
    assert within < 0.85 * between
