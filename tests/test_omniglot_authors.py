"""The keys with which classification goes as the code of the paper's authors does, beside torch's own modules."""

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from leap_rl.config_files import load_config
from leap_rl.processes import initial_parameters, start_process
from leap_rl.processes.classification.data import (
    Problem,
    augment,
    held_out_batch,
    load_family,
    load_problem,
    split,
)
from leap_rl.types import Task
from tests.alphabets import drawings, tiny_config, training_batch, write_zip
from tests.helpers import assert_goes_on_elsewhere

TASK = Task(0, 0, "Script_2", seed=11)
AUTHORS = {
    "classifier.pooling": "before_norm",
    "classifier.norm": "running",
    "alphabets.sampling": "permutation",
    "alphabets.held_out_drawings": "first",
    "alphabets.drawings": "nearest",
    "alphabets.order": "training_first",
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_zip(tmp_path_factory.mktemp("omniglot") / "images.zip")


class Reference(nn.Module):
    """Convolution → pooling → batch norm with running averages → ReLU, four times."""

    def __init__(self, filters):
        super().__init__()
        self.encoder = nn.ModuleDict()
        for block in range(1, 5):
            self.encoder[f"conv{block}"] = nn.Conv2d(1 if block == 1 else filters, filters, 3, padding=1, bias=False)
            self.encoder[f"norm{block}"] = nn.BatchNorm2d(filters)
        self.head = nn.Linear(filters, 20)

    def forward(self, x):
        for block in range(1, 5):
            x = nn.functional.max_pool2d(self.encoder[f"conv{block}"](x), 2)
            x = nn.functional.relu(self.encoder[f"norm{block}"](x))
        return self.head(x.flatten(1))


def test_a_task_is_trained_and_scored_as_torchs_modules_do(archive):
    """Training mode with torch's SGD, then evaluation mode, 20 drawings at a time."""
    config = tiny_config(archive, **AUTHORS)
    process = start_process(config, TASK, initial_parameters(config, 0))
    network = Reference(config.classifier.filters)
    network.load_state_dict({**network.state_dict(), **process.parameters})
    optimizer = torch.optim.SGD(network.parameters(), config.classifier.lr)
    *_, last = process.walk()
    network.train()
    for step in range(config.num_updates):
        batch = training_batch(
            process.courses[0].problem, config.classifier.batch_size, process.courses[0].data_seed, step, "permutation"
        )  # fmt: skip
        optimizer.zero_grad()
        F.cross_entropy(network(batch.images), batch.labels).backward()
        optimizer.step()
    for name, value in process.parameters.items():
        assert torch.allclose(value, network.get_parameter(name), atol=1e-4), name
    for block in range(1, 5):
        norm = network.encoder[f"norm{block}"]
        mean, variance = process.running.of(block)
        assert torch.allclose(mean, norm.running_mean, atol=1e-4)
        assert torch.allclose(variance, norm.running_var, atol=1e-4)
    network.eval()
    drawings = held_out_batch(process.courses[0].problem, process.courses[0].data_seed)
    with torch.no_grad():
        guesses = torch.cat([network(part).argmax(dim=1) for part in torch.split(drawings.images, 20)])
    assert last.statistics["held_out_correct"] == int((guesses == drawings.labels).sum())
    assert last.statistics["held_out_images"] == 100


def test_paired_losses_leave_no_trace_in_the_running_averages(archive):
    once, paired = (
        tiny_config(archive, **AUTHORS, **{"meta.loss_difference": kind}) for kind in ("successive", "paired")
    )
    processes = [start_process(config, TASK, initial_parameters(config, 0)) for config in (once, paired)]
    for process in processes:
        list(process.walk())
    ours, theirs = (process.running.values for process in processes)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_running_averages_go_on_elsewhere(archive):
    config = tiny_config(archive, **AUTHORS, **{"stream.segment_updates": 2})
    assert any(name.startswith("running/") for name in assert_goes_on_elsewhere(config, TASK))


@pytest.mark.parametrize("size", [20, 7, 300, 301])
def test_a_permutation_has_every_drawing_once_before_any_comes_again(size):
    numbered = torch.arange(300, dtype=torch.uint8).view(20, 15, 1, 1).expand(20, 15, 28, 28)
    problem = Problem(numbered, numbered[:, :5])
    labels = [training_batch(problem, size, 3, step, "permutation").labels for step in range(-(-600 // size))]
    seen = torch.cat(labels)[:600]
    for turn in torch.split(seen, 300):
        assert torch.bincount(turn).tolist() == [15] * 20
    assert not torch.equal(seen[:300], seen[300:])
    again = training_batch(problem, size, 3, 1, "permutation")
    assert torch.equal(again.labels, labels[1]), "a batch is a function of seed and step"


def test_the_first_drawings_are_held_out(archive):
    first, last = (
        load_problem(tiny_config(archive, **{"alphabets.held_out_drawings": kind}).alphabets, "Script_2")
        for kind in ("first", "last")
    )
    whole_first = torch.cat([first.held_out, first.train], dim=1)
    assert torch.equal(whole_first, torch.cat([last.train, last.held_out], dim=1))
    assert first.held_out.shape[1] == last.held_out.shape[1] == 5


def test_drawings_are_shrunk_by_the_nearest_pixel_as_pillow_does(archive):
    config = tiny_config(archive, **{"alphabets.drawings": "nearest"}).alphabets
    found = load_family(config.source, nearest=True).drawings["Script_2"]
    for character, drawing in ((0, 0), (4, 6), (20, 19)):
        data = drawings()[f"images/Script_2/character{character + 1:02d}/{drawing + 1:04d}.png"]
        wanted = Image.open(io.BytesIO(data)).resize((28, 28), Image.Resampling.NEAREST)
        assert np.array_equal(255 - found[character, drawing], np.asarray(wanted))
    assert load_problem(config, "Script_2").nearest


def test_drawings_are_turned_by_the_nearest_pixel_with_ink_around_the_paper():
    """Beside a slow transcription: each pixel of the new image asks where it was."""
    images = torch.randint(0, 2, (6, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)) * 255
    draws = torch.rand(4, 6, generator=torch.Generator().manual_seed(2))
    found = augment(images, draws, nearest=True)
    differing = 0
    for number, (angle, right, down, scale) in enumerate(draws.double().T.tolist()):
        turn, times = 2 * math.pi * angle, 0.8 + 0.4 * scale
        for row in range(28):
            for column in range(28):
                x = (column + 0.5 - 14) - 28 * 0.2 * (2 * right - 1)
                y = (row + 0.5 - 14) - 28 * 0.2 * (2 * down - 1)
                was_x = (math.cos(turn) * x + math.sin(turn) * y) / times + 14
                was_y = (-math.sin(turn) * x + math.cos(turn) * y) / times + 14
                inside = 0 <= was_x < 28 and 0 <= was_y < 28
                wanted = 1 - float(images[number, int(was_y), int(was_x)]) / 255 if inside else 0.0
                differing += wanted != float(found[number, 0, row, column])
    assert differing <= 3, "points that lie on the edge between two pixels, to a rounding error"
    assert set(found.unique().tolist()) == {0.0, 1.0}


def test_alphabets_to_train_on_come_first_and_the_next_are_held_out(archive):
    names = [f"Script_{i}" for i in range(6)]
    for train in (1, 3):
        config = tiny_config(archive, **AUTHORS, **{"alphabets.train": train, "alphabets.held_out": 2}).alphabets
        shuffled = [names[index] for index in np.random.default_rng(config.split).permutation(6)]
        assert split(config) == (shuffled[:train], shuffled[train + 2 :], shuffled[train : train + 2])


def test_the_preset_has_them_all():
    config = load_config("configs/omniglot_authors.yaml")
    for key, value in AUTHORS.items():
        section, _, name = key.partition(".")
        assert getattr(getattr(config, section), name) == value
