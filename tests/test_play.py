"""`leap-rl play`: clips of a random start and of initializations, side by side."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from leap_rl.cli import main
from leap_rl.evaluation.clip import FRAMES_A_SECOND, MARGIN, SCALE, Screen, draw
from leap_rl.processes import initial_parameters, process_of, start_process
from leap_rl.types import Frame, Task
from tests.cli_helpers import assert_one_line
from tests.helpers import classification_config, tiny_config

CONFIG = tiny_config(**{"env.max_episode_frames": 400})


def start(config=CONFIG, name="breakout"):
    return start_process(config, Task(0, 0, name, seed=5), initial_parameters(config, 1))


def test_watching_leaves_the_process_as_it_is():
    watched, plain = start(), start()
    list(itertools.islice(process_of(CONFIG).watch(watched), 120))
    for ours, theirs in zip(watched.walk(), plain.walk(), strict=True):
        assert ours.path == theirs.path
        assert all(torch.equal(value, theirs.meta_gradient[name]) for name, value in ours.meta_gradient.items())


def test_a_score_is_of_the_episode_that_is_seen():
    frames = list(itertools.islice(process_of(CONFIG).watch(start(name="space_invaders")), 250))
    episodes = [frame.episode for frame in frames]
    assert episodes == sorted(episodes)
    assert set(episodes) >= {1, 2}
    scores = {episode: [f.score for f in frames if f.episode == episode] for episode in episodes}
    for of_one in scores.values():
        assert of_one[0] == 0
        assert of_one == sorted(of_one)
    assert max(scores[1]) > 0
    assert frames[0].screen.shape == (210, 160, 3)


def test_a_process_without_a_screen_says_so():
    config = classification_config()
    with pytest.raises(Exception, match="process = classification: has no screen to be seen"):
        next(process_of(config).watch(start(config, process_of(config).parts(config).training[0])))


def test_a_picture_has_all_screens_side_by_side():
    red, blue = (np.full((210, 160, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    picture = np.asarray(draw([Screen("a", Frame(red, 1.0, 1)), Screen("b", Frame(blue, 2.0, 1))], "practice"))
    left, right = MARGIN + SCALE * 80, 2 * MARGIN + SCALE * 240
    assert picture[-MARGIN - 1, left].tolist() == [255, 0, 0]
    assert picture[-MARGIN - 1, right].tolist() == [0, 0, 255]
    assert picture[-MARGIN - SCALE * 210, left].tolist() == [255, 0, 0]
    assert picture[: -MARGIN - SCALE * 210].max() > 200, "there is text above"


def play(out, *options):
    return main(["play", "pretrained:variants", "--game", "breakout:mode=36", "--seconds", "1", "--out", str(out),
                 "--agent-steps", "0", *options])  # fmt: skip


def test_the_same_command_gives_the_same_clip_and_training_another(tmp_path, capsys):
    names = {"once": (), "again": (), "trained": ("--agent-steps", "320"), "seed": ("--seed", "1")}
    for name, options in names.items():
        assert play(tmp_path / f"{name}.gif", *options) == 0
        assert capsys.readouterr().out == f"{tmp_path}/{name}.gif\n"
    once, again, trained, seed = ((tmp_path / f"{name}.gif").read_bytes() for name in names)
    assert once == again
    assert len({once, trained, seed}) == 3
    with Image.open(tmp_path / "once.gif") as clip:
        assert clip.size == (2 * SCALE * 160 + 3 * MARGIN, SCALE * 210 + 76)
        assert clip.n_frames > 2


def test_an_mpeg_has_a_frame_an_agent_step(tmp_path):
    assert play(tmp_path / "clip.mp4") == 0
    clip = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    assert clip.get(cv2.CAP_PROP_FRAME_COUNT) == FRAMES_A_SECOND
    assert clip.get(cv2.CAP_PROP_FPS) == FRAMES_A_SECOND
    read, frame = clip.read()
    assert read
    assert frame.shape == (SCALE * 210 + 76, 2 * SCALE * 160 + 3 * MARGIN, 3)


@pytest.mark.parametrize(
    ("out", "options", "said"),
    [
        ("clip.avi", (), "must end in .gif or .mp4"),
        ("nowhere/clip.gif", (), "nowhere is not a directory"),
        ("clip.gif", ("--seconds", "0"), "--seconds 0: must be at least 1"),
        ("clip.gif", ("--agent-steps", "-1"), "--agent-steps -1: must be at least 0"),
        ("clip.gif", ("--seed", "-1"), "--seed -1: must be at least 0"),
        ("clip.gif", ("--game", "pogn"), "did you mean pong?"),
        ("clip.gif", ("--game", "breakout:mode=*"), "--game breakout:mode=*: names 12 games; name one"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, out, options, said):
    code = play(tmp_path / out, *options)
    assert_one_line(code, *capsys.readouterr(), said)
    assert list(tmp_path.iterdir()) == []
