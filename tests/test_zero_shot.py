"""Play before any update: what is counted, and that training does not notice it."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from leap_rl.evaluation.results import _curves_csv, read_curves
from leap_rl.files.storage import open_storage
from leap_rl.processes import initial_parameters, process_type, start_process
from leap_rl.processes.a2c import process, zero_shot
from leap_rl.processes.a2c.process import A2CProcess, AtariVector
from leap_rl.processes.a2c.zero_shot import EPISODES
from leap_rl.runs.task_store import TaskStore
from leap_rl.streaming import TaskStream
from leap_rl.types import Broadcast, Start, Task
from tests.helpers import tiny_config

TASK = Task(0, 0, "breakout", seed=5, start=Start("leap"), zero_shot=True)
CONFIG = tiny_config(**{"env.max_episode_frames": 400})


def increments(task):
    return list(start_process(CONFIG, task, initial_parameters(CONFIG, 1)).walk())


def test_training_does_not_notice():
    """The same bits as those of a task of meta-training, which plays nothing before."""
    plain = replace(TASK, zero_shot=False)
    for ours, theirs in zip(increments(TASK), increments(plain), strict=True):
        added = {"seconds", "zero_shot_episodes", "zero_shot_score_sum"}
        left = [{k: v for k, v in i.statistics.items() if k not in added} for i in (ours, theirs)]
        assert left[0] == left[1]
        assert ours.path == theirs.path
        for name, value in ours.meta_gradient.items():
            assert torch.equal(value, theirs.meta_gradient[name])


def test_it_is_in_the_first_segment_and_not_in_meta_training():
    first, *others = increments(TASK)
    assert first.statistics["zero_shot_episodes"] == EPISODES
    assert {increment.statistics["zero_shot_episodes"] for increment in others} == {0}
    assert "zero_shot_episodes" not in increments(replace(TASK, zero_shot=False))[0].statistics


def play(policy, config, task):
    return zero_shot.play(policy, partial(A2CProcess(config, task).make_envs, zero_shot=True), task.seed)


def constant(action):
    """A policy that always takes the same action."""

    def policy(observations):
        assert observations.dtype == np.uint8
        logits = torch.full((len(observations), 6), -1e9)
        logits[:, action] = 0
        return logits

    return policy


def test_the_first_episode_of_each_environment_counts_whole():
    """Pong without moving is lost 0 to 21, in every environment."""
    config = tiny_config(**{"env.sticky_actions": 0.0})
    assert play(constant(0), config, replace(TASK, name="pong")) == [-21.0] * EPISODES


def test_an_episode_that_does_not_end_is_cut(monkeypatch):
    """Breakout waits for the ball to be served."""
    steps = []
    original = AtariVector.step
    monkeypatch.setattr(AtariVector, "step", lambda self, a: steps.append(len(a)) or original(self, a))
    monkeypatch.setattr(process, "ZERO_SHOT_FRAMES", 400)
    assert play(constant(0), tiny_config(**{"env.noop_max": 0}), TASK) == [0.0] * EPISODES
    assert len(steps) == 400 / 4


def test_the_same_seed_plays_the_same_and_another_another():
    uniform = lambda observations: torch.zeros(len(observations), 4)  # noqa: E731
    config = tiny_config()
    first, again, other = (play(uniform, config, replace(TASK, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) > 1, "environments differ"
    assert 0 < np.mean(first) < 4, "random play"


@pytest.mark.usefixtures("one_torch_thread")
def test_the_curve_has_it_as_a_row_at_0_agent_steps(tmp_path):
    storage, task = open_storage(str(tmp_path)), replace(TASK, start=Start("random", share=0.0))
    stream = TaskStream(CONFIG, TaskStore(storage), task, Broadcast({}))
    for _ in stream.increments():
        pass
    storage.write("curves.csv", _curves_csv([stream.ledger], process_type("a2c").measures).encode())
    _, zero, one, *_ = (tmp_path / "curves.csv").read_text().splitlines()
    assert zero.startswith(f"random,breakout,0,0,0,{EPISODES},")
    assert one.startswith("random,breakout,0,200,")
    (curve,) = read_curves(storage, process_type("a2c").measures)
    assert curve.agent_steps[0] == 200
    assert curve.zero_shot == float(zero.split(",")[6])
