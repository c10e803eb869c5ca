"""The real Omniglot, where it is at hand: the loader finds all of it, and a task of the authors' code is learned."""

from pathlib import Path

import pytest

from leap_rl.config_files import load_config
from leap_rl.processes import initial_parameters, parse_tasks, start_process
from leap_rl.processes.classification.omniglot import load_omniglot
from leap_rl.types import Task

ROOT = Path(__file__).parent.parent
PLACES = [ROOT / "data/omniglot.zip", *sorted(ROOT.parent.glob("*/data/omniglot.zip"))]
SOURCE = next((place for place in PLACES if place.exists()), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SOURCE is None, reason="no data/omniglot.zip, neither here nor in a folder beside this one"),
]


def test_all_of_it_is_found():
    """Lake et al. 2015: 50 alphabets and 1,623 characters of 20 drawings each; four alphabets have fewer than the 20
    characters of a task, 61 of them in all."""
    alphabets = load_omniglot(str(SOURCE))
    assert len(alphabets) == 46
    assert sum(len(drawings) for drawings in alphabets.values()) == 1_623 - 61
    assert {drawings.shape[1:] for drawings in alphabets.values()} == {(20, 28, 28)}
    assert all(0.01 < (drawings > 127).mean() < 0.3 for drawings in alphabets.values())  # ink


def test_a_task_is_learned_far_above_chance():
    keys = [f"alphabets.source={SOURCE}", "classifier.filters=16", "task.agent_steps=400", "stream.segment_updates=400"]
    config = load_config(ROOT / "configs/omniglot_authors.yaml", keys)
    name = parse_tasks(config, "held_out")[0]
    process = start_process(config, Task(0, 0, name, seed=1), initial_parameters(config, 0))
    [increment] = process.walk()
    found = increment.statistics
    assert found["held_out_images"] == 100  # five drawings of 20 characters
    assert found["held_out_correct"] / found["held_out_images"] > 0.15  # chance is 0.05
