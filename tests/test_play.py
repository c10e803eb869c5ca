"""`leap-rl play`: clips of a random start and of initializations, side by side."""

import base64
import dataclasses
import io
import itertools
import os
import shutil
from argparse import Namespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from leap_rl.cli import main
from leap_rl.evaluation.clip import (
    FRAMES_A_SECOND,
    MARGIN,
    REPORT_BYTES,
    SCALE,
    Screen,
    draw,
    pictures,
    report_clip,
    trained,
)
from leap_rl.evaluation.plan import make_plan
from leap_rl.files.storage import open_storage
from leap_rl.files.tensor_files import below, dump_tensors, load_tensors
from leap_rl.processes import initial_parameters, process_of, start_process
from leap_rl.runs.task_store import TaskStore
from leap_rl.streaming import WATCHED
from leap_rl.types import BadInputError, Frame, Task
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
    plan = Namespace(config=classification_config())
    with pytest.raises(BadInputError, match="process = classification: has no screen to be seen"):
        next(pictures(plan, 0, 1))


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


# The clip in a report


EVALUATE = ["pretrained:variants", "--games", "breakout:mode=36", "pong", "--seeds", "1", "--agent-steps", "640"]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation") / "out"
    assert main(["evaluate", *EVALUATE, "--out", str(out), "backend=serial"]) == 0
    return out


def test_a_report_shows_the_first_game_at_play(evaluation, tmp_path, capsys):
    clip = (evaluation / "clip.gif").read_bytes()
    assert len(clip) < REPORT_BYTES
    assert "![variants beside a random start at play](clip.gif)" in (evaluation / "report.md").read_text()
    assert base64.b64encode(clip).decode() in (evaluation / "report.html").read_text()
    copy = shutil.copytree(evaluation, tmp_path / "copy")
    (copy / "clip.gif").unlink()
    assert main(["report", str(copy)]) == 0
    assert (copy / "clip.gif").read_bytes() == clip
    shutil.rmtree(copy / "tasks")
    (copy / "clip.gif").unlink()
    capsys.readouterr()
    assert main(["report", str(copy)]) == 0
    assert capsys.readouterr().err == ""
    assert not (copy / "clip.gif").exists()
    assert "clip.gif" not in (copy / "report.md").read_text()


def test_a_report_shows_the_networks_that_training_ended_with(evaluation):
    plan = make_plan(EVALUATE[:1], ["backend=serial"], EVALUATE[2:4], 1, 640, None)
    store = TaskStore(open_storage(str(evaluation)))
    shown = [task for task in plan.tasks() if task.watched]
    assert [(task.name, task.start.name) for task in shown] == [
        ("breakout:mode=36", "random"), ("breakout:mode=36", "variants")
    ]  # fmt: skip
    networks = {name: process.network.state_dict() for name, process in trained(
        dataclasses.replace(plan, games=plan.games[:1]), 640, io.StringIO())}  # fmt: skip
    for task in plan.tasks():
        saved = store.load(task)
        found = below(saved.state, WATCHED)
        assert bool(found) == task.watched
        for name, value in found.items():
            assert torch.equal(value, networks[task.start.name][name])


def test_a_clip_for_a_report_is_cut_to_its_size(evaluation, monkeypatch):
    monkeypatch.setattr("leap_rl.evaluation.clip.REPORT_BYTES", len((evaluation / "clip.gif").read_bytes()) - 1)
    description = {"games": ["breakout:mode=36"], "arms": [{"name": "random"}, {"name": "variants"}]}
    clip = report_clip(open_storage(str(evaluation)), description)
    assert len(clip) < len((evaluation / "clip.gif").read_bytes())
    assert report_clip(open_storage(str(evaluation)), description | {"games": ["pong"]}) is None


def test_a_clip_that_cannot_be_made_is_said_and_the_report_is_written(evaluation, tmp_path, capsys):
    copy = shutil.copytree(evaluation, tmp_path / "copy")
    [file] = (copy / "tasks" / "000000-01").iterdir()
    tensors, metadata = load_tensors(file.read_bytes(), "file")
    file.write_bytes(dump_tensors({n: v[:1] if n.endswith("policy.bias") else v for n, v in tensors.items()}, metadata))
    assert main(["report", str(copy)]) == 0
    assert f"{copy}/clip.gif: " in capsys.readouterr().err
    assert "clip.gif" not in (copy / "report.md").read_text()


@pytest.mark.parametrize(
    ("out", "options", "said"),
    [
        ("clip.avi", (), "must end in .gif or .mp4"),
        ("nowhere/clip.gif", (), "nowhere is not a directory"),
        ("there.gif", (), "there.gif: is a directory"),
        ("clip.gif", ("--seconds", "0"), "--seconds 0: must be at least 1"),
        ("clip.gif", ("--agent-steps", "-1"), "--agent-steps -1: must be at least 0"),
        ("clip.gif", ("--seed", "-1"), "--seed -1: must be at least 0"),
        ("clip.gif", ("--game", "pogn"), "did you mean pong?"),
        ("clip.gif", ("--game", "breakout:mode=*"), "--game breakout:mode=*: names 12 games; name one"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, out, options, said):
    (tmp_path / "there.gif").mkdir()
    code = play(tmp_path / out, *options)
    assert_one_line(code, *capsys.readouterr(), said)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there.gif"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_clip_that_may_not_be_written_is_said_before_any_training(tmp_path, capsys, monkeypatch, exists):
    out = tmp_path / "clip.gif"
    if exists:
        out.write_bytes(b"before")
    refused = out if exists else tmp_path
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (refused, os.W_OK))
    monkeypatch.setattr("leap_rl.evaluation.clip.trained", lambda *_: 1 / 0)
    assert_one_line(play(out), *capsys.readouterr(), f"--out {out}: is not writable")


def test_an_mpeg_that_opencv_cannot_write_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("leap_rl.evaluation.clip.check_out", lambda _: None)
    (tmp_path / "clip.mp4").mkdir()
    code = play(tmp_path / "clip.mp4")
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.endswith(f"error: --out {tmp_path}/clip.mp4: OpenCV cannot write it\n")
    assert captured.out == ""
