"""Shows play of a random start and of initializations side by side, after the same training: ``leap-rl play``.

Every arm trains the task that an evaluation would train, and then plays. The same command gives the same pictures.
"""

import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from leap_rl.config_files import parse_config
from leap_rl.evaluation.plan import Plan, shown_tasks
from leap_rl.files.interface import Storage
from leap_rl.files.tensor_files import below
from leap_rl.processes import initial_parameters, process_of, start_process
from leap_rl.runs.run_files import CONFIG, read_config
from leap_rl.runs.task_store import TaskStore
from leap_rl.streaming import WATCHED, starting_weights
from leap_rl.types import BadInputError, Frame, LearningProcess

FRAMES_A_SECOND = 15  # agent steps a second: real time for games with env.frame_skip = 4
SCALE, MARGIN, LINE = 2, 8, 20  # enlargement of the screen; pixels between screens; pixels a line of text
BACKGROUND, TEXT, FAINT = (24, 24, 27), (250, 250, 250), (161, 161, 170)
FORMATS = (".gif", ".mp4")
REPORT_SECONDS, REPORT_BYTES = 10, 1_000_000  # of the clip in a report, at most


class Screen(NamedTuple):
    """Holds one arm's part of the picture."""

    name: str
    frame: Frame


def check_out(out: Path) -> None:
    """Raises BadInputError where a clip cannot be written to ``out``."""
    if out.suffix not in FORMATS:
        raise BadInputError(f"--out {out}: must end in {' or '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise BadInputError(f"--out {out}: {out.parent} is not a directory")
    if out.is_dir():
        raise BadInputError(f"--out {out}: is a directory")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise BadInputError(f"--out {out}: is not writable")


def trained(plan: Plan, agent_steps: int, stream: TextIO = sys.stderr) -> Iterator[tuple[str, LearningProcess]]:
    """Yields each arm's name and its process on the plan's last seed, trained to the end of its task, or untrained if
    ``agent_steps`` is 0. The plan must have one game."""
    tasks = [task for task in plan.tasks() if task.round == plan.num_seeds - 1]
    for arm, task in zip(plan.arms, tasks, strict=True):
        initialization = starting_weights(plan.config, task, plan.initializations())
        process = start_process(plan.config, replace(task, zero_shot=False), initialization)
        if agent_steps:
            done = 0.0
            for increment in process.walk():
                done += increment.statistics["agent_steps"]
                print(f"\r{arm.name}: {done:,.0f} of {agent_steps:,} agent steps", end="", file=stream, flush=True)
            print(file=stream)
        yield arm.name, process


def pictures(plan: Plan, agent_steps: int, num_frames: int) -> Iterator[Image.Image]:
    """Yields ``num_frames`` pictures, in which all arms play side by side. Raises BadInputError, before any training,
    where there is nothing to see."""
    if not process_of(plan.config).watches:
        raise BadInputError(f"process = {plan.config.process}: has no screen to be seen; a2c has")
    arms = dict(trained(plan, agent_steps))
    watched = [process_of(plan.config).watch(process) for process in arms.values()]
    training_text = f"after {agent_steps:,} agent steps" if agent_steps else "before any training"
    for frames in islice(zip(*watched, strict=True), num_frames):
        yield draw([Screen(name, frame) for name, frame in zip(arms, frames, strict=True)], training_text)


def report_clip(storage: Storage, description: Mapping[str, Any]) -> bytes | None:
    """Returns a small GIF for the report of an evaluation: on its first game, the random arm beside the first
    initialization, with the networks that training has ended with. None where they are not saved, or where there is
    nothing to see."""
    arms = [arm["name"] for arm in description["arms"]]
    if CONFIG not in storage.names() or len(arms) < 2:
        return None
    config = read_config(storage)
    if not process_of(config).watches:
        return None
    small = {"agent": config.model_dump()["agent"] | {"num_envs": 1}, "device": "cpu", "precision": "fp32"}
    config = parse_config(config.model_dump() | small, may_import=False)  # what is shown has an emulator of its own
    watched, steps = [], 0.0
    for task in shown_tasks(description["games"][0], arms[1]):
        saved = TaskStore(storage).load(task)
        network = below(saved.state, WATCHED) if saved else {}
        if not saved or not network:
            return None
        process: Any = start_process(config, replace(task, zero_shot=False), initial_parameters(config, 0))
        process.network.load_state_dict(dict(network))
        watched.append((task.start.name, process_of(config).watch(process)))
        steps = saved.ledger.reports[-1].statistics["agent_steps"]
    names, plays = zip(*watched, strict=True)
    shown = [
        draw([Screen(*pair) for pair in zip(names, frames, strict=True)], f"after {steps:,.0f} agent steps", scale=1)
        for frames in islice(zip(*plays, strict=True), REPORT_SECONDS * FRAMES_A_SECOND)
    ]
    while len(clip := gif(shown, 64)) > REPORT_BYTES:
        shown = shown[: len(shown) // 2]
    return clip


def draw(screens: Sequence[Screen], training_text: str, scale: int = SCALE) -> Image.Image:
    """Draws screens beside each other, each below its arm's name, the ``training_text`` and its score."""
    height, width = (scale * length for length in screens[0].frame.screen.shape[:2])
    head = 3 * LINE + MARGIN
    picture = Image.new("RGB", (len(screens) * (width + MARGIN) + MARGIN, head + height + MARGIN), BACKGROUND)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15 if scale > 1 else 11)
    for index, (name, frame) in enumerate(screens):
        left = MARGIN + index * (width + MARGIN)
        lines = ((name, TEXT), (training_text, FAINT), (f"game {frame.episode}, score {frame.score:g}", TEXT))
        for row, (text, color) in enumerate(lines):
            pen.text((left, MARGIN // 2 + row * LINE), text, fill=color, font=font)
        screen = Image.fromarray(frame.screen).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(screen, (left, head))
    return picture


def gif(frames: Iterable[Image.Image], colors: int) -> bytes:
    """Returns pictures of one size as an animated GIF."""
    first, *others = (frame.quantize(colors, dither=Image.Dither.NONE) for frame in frames)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=1000 // FRAMES_A_SECOND, loop=0)
    return file.getvalue()


def write_clip(frames: Iterator[Image.Image], out: Path) -> None:
    """Writes pictures of one size as a clip, GIF or MPEG-4, as the suffix of ``out`` says."""
    if out.suffix == ".gif":
        out.write_bytes(gif(frames, 128))
        return
    import cv2

    video: Any = None
    for frame in frames:
        pixels: NDArray[np.uint8] = np.asarray(frame)[..., ::-1]
        video = video or cv2.VideoWriter(str(out), cv2.VideoWriter.fourcc(*"mp4v"), FRAMES_A_SECOND, frame.size)
        if not video.isOpened():  # which OpenCV raises no error for
            raise BadInputError(f"--out {out}: OpenCV cannot write it")
        video.write(np.ascontiguousarray(pixels))
    video.release()
