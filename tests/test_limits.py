"""Extreme configurations are refused before anything is made, and say what they ask for."""

import pytest

from leap_rl.cli import main
from leap_rl.config_files import parse_config
from leap_rl.types import BadInputError, LeapRLError
from tests.cli_helpers import write_config
from tests.helpers import tiny_config, tiny_tree
from tests.test_learner import increment, make_learner


def refused(**changes):
    with pytest.raises(BadInputError) as caught:
        tiny_config(**changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "value"),
    [("env.frame_stack", 100_000), ("agent.num_envs", 10**7), ("agent.unroll", 10**9), ("env.frame_skip", 10**12)],
)
def test_what_multiplies_into_memory_is_bounded_and_the_bytes_are_said(key, value):
    message = refused(**{key: value})
    assert f"{key} = {value}" in message
    assert "bytes" in message
    assert "GiB" in message


@pytest.mark.parametrize(("key", "value"), [("filters", 10**6), ("batch_size", 10**9)])
def test_a_classifiers_memory_is_bounded(key, value):
    tree = {k: v for k, v in tiny_tree().items() if k not in ("tasks", "agent", "env")}
    with pytest.raises(BadInputError, match="bytes"):
        parse_config(tree | {"process": "classification", "classifier": {key: value}})


def test_large_but_sensible_ones_pass():
    tiny_config(**{"agent.num_envs": 1024, "agent.unroll": 20, "env.frame_stack": 4, "task.agent_steps": 10**6})
    tiny_config(**{"agent.num_envs": 256, "env.screen_size": 210, "env.color": "rgb", "task.agent_steps": 10**6})


@pytest.mark.parametrize(
    ("key", "value"),
    [("meta.lr", 1e308), ("agent.value_cost", 1e39), ("agent.epsilon", 1e31), ("workers.count", 10**9),
     ("meta.max_staleness", 10**12), ("env.noop_max", 10**9), ("faults.segment_timeout", 1e308)],
)  # fmt: skip
def test_numbers_that_nothing_can_compute_with_are_refused(key, value):
    assert f"{key} = " in refused(**{key: value, "env.max_episode_frames": 10**12})


@pytest.mark.parametrize("value", ['"a\\0b"', "x" * 300, "/".join(["x" * 200] * 30), '"a\\nb"', '"a\\eb"'])
def test_a_path_that_cannot_be_made_is_one_line(tmp_path, capsys, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    assert main(["train", str(config), f"run.dir={value}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [config]


def test_a_step_that_leaves_no_finite_parameters_stops_the_run():
    learner = make_learner(lr=1e30)
    for slot in range(2):
        learner.receive(increment(slot, (1e10, 1e10), 1e10, agent_steps=1))
    with pytest.raises(LeapRLError, match=r"a step of meta\.lr = 1e\+30 leaves parameters that are not finite"):
        learner.step()
