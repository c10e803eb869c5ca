"""A small family of alphabets in Omniglot's own layout, and configurations that train on it for a second or two."""

import functools
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from leap_rl.config import Config
from leap_rl.config_files import parse_config
from leap_rl.processes.classification.data import Batch, Problem, training_batches
from tests.helpers import nest

NUM_ALPHABETS, NUM_CHARACTERS, SIDE = 6, 21, 15


@functools.cache
def drawings() -> dict[str, bytes]:
    """Path in the archive → PNG: dark ink on white paper. A character is a pattern of its own, each drawing of it with
    other noise."""
    rng = np.random.default_rng(5)
    files = {}
    for alphabet in range(NUM_ALPHABETS):
        for character in range(NUM_CHARACTERS):
            pattern = cv2.resize(rng.uniform(0, 255, (5, 5)), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
            for drawing in range(20):
                image = np.clip(pattern + rng.normal(0, 30, pattern.shape), 0, 255).astype(np.uint8)
                name = f"images/Script_{alphabet}/character{character + 1:02d}/{drawing + 1:04d}.png"
                files[name] = cv2.imencode(".png", image)[1].tobytes()
    return files


def write_zip(file: Path, files: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (drawings() if files is None else files).items():
            archive.writestr(name, data)
    return file


def write_folder(folder: Path) -> Path:
    for name, data in drawings().items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def tiny_tree(source: Path | str, run: Path | str = "unused", **dotted_overrides: Any) -> dict[str, Any]:
    """12 gradient steps a task in segments of 5, 5 and 2; three of four alphabets a meta-step."""
    tree: dict[str, Any] = {
        "process": "classification",
        "run": {"dir": str(run), "seed": 7},
        "backend": "serial",
        "meta": {"steps": 3, "batch_size": 3, "lr": 0.1, "parameters": "all", "optimizer": "nesterov"},
        "alphabets": {"source": str(source), "train": 4, "held_out": 1},
        "task": {"agent_steps": 12},
        "classifier": {"filters": 4, "batch_size": 8},
        "stream": {"segment_updates": 5},
    }
    return nest(dotted_overrides, tree)


def tiny_config(source: Path | str, **dotted_overrides: Any) -> Config:
    return parse_config(tiny_tree(source, **dotted_overrides))


def training_batch(problem: Problem, size: int, seed: int, step: int, sampling: str = "with_replacement") -> Batch:
    """What gradient step ``step`` of a task with this seed sees."""
    return training_batches([(problem, seed, step)], size, sampling)[0]
