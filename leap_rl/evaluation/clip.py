"""Shows play of a random start and of initializations side by side, after the same training: ``leap-rl play``.

Every arm trains the task that an evaluation would train, and then plays. The same command gives the same pictures.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from leap_rl.evaluation.plan import Plan
from leap_rl.processes import ProcessType, process_of, start_process
from leap_rl.streaming import starting_weights
from leap_rl.types import BadInputError, Frame, LearningProcess

FRAMES_A_SECOND = 15  # agent steps a second: real time for games with env.frame_skip = 4
SCALE, MARGIN, LINE = 2, 8, 20  # enlargement of the screen; pixels between screens; pixels a line of text
BACKGROUND, TEXT, FAINT = (24, 24, 27), (250, 250, 250), (161, 161, 170)
FORMATS = (".gif", ".mp4")


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
    if type(process_of(plan.config)).watch is ProcessType.watch:
        raise BadInputError(f"process = {plan.config.process}: has no screen to be seen; a2c has")
    arms = dict(trained(plan, agent_steps))
    watched = [process_of(plan.config).watch(process) for process in arms.values()]
    training_text = f"after {agent_steps:,} agent steps" if agent_steps else "before any training"
    for frames in islice(zip(*watched, strict=True), num_frames):
        yield draw([Screen(name, frame) for name, frame in zip(arms, frames, strict=True)], training_text)


def draw(screens: Sequence[Screen], training_text: str) -> Image.Image:
    """Draws screens beside each other, each below its arm's name, the ``training_text`` and its score."""
    height, width = (SCALE * length for length in screens[0].frame.screen.shape[:2])
    head = 3 * LINE + MARGIN
    picture = Image.new("RGB", (len(screens) * (width + MARGIN) + MARGIN, head + height + MARGIN), BACKGROUND)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for index, (name, frame) in enumerate(screens):
        left = MARGIN + index * (width + MARGIN)
        lines = ((name, TEXT), (training_text, FAINT), (f"game {frame.episode}, score {frame.score:g}", TEXT))
        for row, (text, color) in enumerate(lines):
            pen.text((left, MARGIN // 2 + row * LINE), text, fill=color, font=font)
        screen = Image.fromarray(frame.screen).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(screen, (left, head))
    return picture


def write_clip(frames: Iterator[Image.Image], out: Path) -> None:
    """Writes pictures of one size as a clip, GIF or MPEG-4, as the suffix of ``out`` says."""
    if out.suffix == ".gif":
        first, *others = (frame.quantize(128, dither=Image.Dither.NONE) for frame in frames)
        first.save(out, save_all=True, append_images=others, duration=1000 // FRAMES_A_SECOND, loop=0)
        return
    import cv2

    video: Any = None
    for frame in frames:
        pixels: NDArray[np.uint8] = np.asarray(frame)[..., ::-1]
        video = video or cv2.VideoWriter(str(out), cv2.VideoWriter.fourcc(*"mp4v"), FRAMES_A_SECOND, frame.size)
        video.write(np.ascontiguousarray(pixels))
    video.release()
