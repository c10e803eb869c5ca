"""Leap over RLlib's algorithms: its increments against slow ones from saved steps, whole tasks, and bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leap_rl.cli import main
from leap_rl.config import Config
from leap_rl.files.storage import open_storage
from leap_rl.processes import continue_process, start_process
from leap_rl.runs.run_files import read_metrics
from leap_rl.runs.task_store import TaskStore
from leap_rl.streaming import TaskStream
from leap_rl.testing import check_process
from leap_rl.types import SHARED, BadInputError, Broadcast, Increment, Task, TaskError
from tests.cli_helpers import held, session, wait_for, write_config
from tests.helpers import tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cluster")]
MINATAR = "MinAtar==1.0.15"
TASK = Task(0, 0, "pong", seed=7)
OPTIONS: dict[str, dict[str, Any]] = {
    "A2C": {},
    "PPO": {"train_batch_size_per_learner": 60, "minibatch_size": 32, "num_epochs": 2},
    "DQN": {"num_steps_sampled_before_learning_starts": 40, "train_batch_size_per_learner": 8,
            "rollout_fragment_length": 4},
    "IMPALA": {"train_batch_size_per_learner": 40, "rollout_fragment_length": 10},
    "APPO": {"train_batch_size_per_learner": 40, "rollout_fragment_length": 10},
}  # fmt: skip


def rllib_config(algorithm: str, **changes: Any) -> Config:
    agent_steps = 120 if algorithm in ("A2C", "PPO", "DQN") else 240
    base = {"process": "rllib", "rllib.algorithm": algorithm, "rllib.options": OPTIONS[algorithm],
            "task.agent_steps": agent_steps, "stream.segment_updates": 2, "tasks.games": ["pong", "breakout"],
            "agent.max_grad_norm": 0.5 if algorithm == "A2C" else None}  # fmt: skip
    return tiny_config(**base | changes)


# ------------------------------------------------------------------------------- whole tasks


def walk(process: Any, at_most: int = 99) -> list[Increment]:
    increments: list[Increment] = []
    for increment in process.walk():
        increments.append(increment)
        if len(increments) == at_most:
            break
    return increments


def equal(a: Increment, b: Increment) -> bool:
    return all(torch.equal(a.meta_gradient[n], b.meta_gradient[n]) for n in a.meta_gradient)


@pytest.mark.parametrize("algorithm", ["A2C", "PPO", "DQN"])
def test_a_task_streams_and_repeats_itself_when_it_is_taken_up(algorithm: str) -> None:
    from leap_rl.processes.rllib.process import initial_parameters

    config = rllib_config(algorithm)
    initialization = initial_parameters(config, 3)
    first = start_process(config, TASK, initialization)
    walking = first.walk()
    increments = [next(walking)]
    state = first.state()
    increments += walking

    assert [increment.last for increment in increments][-2:] == [False, True]
    assert sum(increment.statistics["agent_steps"] for increment in increments) >= 120
    assert all(increment.meta_gradient.keys() == initialization.keys() for increment in increments)
    assert sum(increment.path.length for increment in increments) > 0
    assert all(np.isfinite(list(increment.statistics.values())).all() for increment in increments)
    assert increments[0].statistics.keys() == increments[-1].statistics.keys()
    assert any(name.startswith("rllib/") for name in increments[0].statistics)

    later = walk(continue_process(config, TASK, state))
    assert len(later) == len(increments) - 1
    assert all(equal(a, b) for a, b in zip(increments[1:], later, strict=True))


def test_a_task_whose_worker_was_lost_comes_to_the_ledger_of_an_undisturbed_one(tmp_path_factory: Any) -> None:
    """Its increments are compressed: what is kept back must go on where it was, too."""
    from leap_rl.processes.rllib.process import initial_parameters

    config = rllib_config("A2C", **{"stream.compression": "int8"})
    initialization = initial_parameters(config, 3)
    given = Broadcast({SHARED: initialization})
    ledgers = []
    for name, losses in (("undisturbed", 0), ("disturbed", 2)):
        store = TaskStore(open_storage(str(tmp_path_factory.mktemp(name))))
        for attempt in range(losses):
            next(TaskStream(config, store, TASK, given, attempt).increments())
        stream = TaskStream(config, store, TASK, given, losses)
        for _ in stream.increments():
            pass
        ledgers.append(stream.ledger)
    undisturbed, disturbed = ledgers
    assert len(undisturbed.reports) == len(disturbed.reports) == 3
    assert [report.attempt for report in disturbed.reports] != [0, 0, 0]
    assert all(torch.equal(undisturbed.total[name], disturbed.total[name]) for name in initialization)
    assert undisturbed.reports[-1].statistics["agent_steps"] == disturbed.reports[-1].statistics["agent_steps"]


def test_a_task_that_does_not_repeat_itself_fails() -> None:
    from leap_rl.processes.rllib.process import initial_parameters

    config = rllib_config("A2C")
    process = start_process(config, TASK, initial_parameters(config, 3))
    walk(process, at_most=1)
    other = dict(process.state()) | {"fingerprint": torch.zeros(32, dtype=torch.uint8)}
    with pytest.raises(TaskError, match="A2C came to other parameters after 1 segments"):
        walk(continue_process(config, TASK, other))


@pytest.mark.parametrize("algorithm", ["IMPALA", "APPO"])
def test_a_task_of_a_threaded_algorithm_is_one_segment(algorithm: str) -> None:
    from leap_rl.processes.rllib.process import initial_parameters

    config = rllib_config(algorithm)
    initialization = initial_parameters(config, 3)
    (increment,) = walk(start_process(config, TASK, initialization))
    assert increment.last
    assert increment.path.moves >= 2
    assert increment.meta_gradient.keys() == initialization.keys()


def test_the_environment_is_that_of_our_own_process() -> None:
    from leap_rl.atari.games import parse_game
    from leap_rl.atari.vector import AtariVector
    from leap_rl.processes.rllib.envs import AtariGame

    config = tiny_config().env
    env = AtariGame("breakout", config, seed=5)
    first, _ = env.reset(seed=9)
    stream = int(np.random.SeedSequence([5, 9]).generate_state(1, np.uint64)[0])
    vector = AtariVector(parse_game("breakout"), 1, config, stream)
    assert np.array_equal(first, vector.observations[0].transpose(1, 2, 0))
    actions = np.random.default_rng(0).integers(0, 4, 400)
    ended = 0
    for action in actions:
        expected = vector.step(np.array([action]))
        observation, reward, terminated, truncated, _ = env.step(int(action))
        assert np.array_equal(observation, expected.observations[0].transpose(1, 2, 0))
        assert (reward, terminated, truncated) == (expected.rewards[0], expected.terminated[0], expected.truncated[0])
        if terminated:
            ended += 1
            assert np.array_equal(env.reset()[0], observation), "the next game has begun"
    assert ended


def test_it_keeps_what_a_process_must() -> None:
    """It has no state but where it began: continued, it trains again from there."""
    changes = {
        "tasks": {"games": ["pong"]}, "agent": {"lr": 1e-4, "num_envs": 2}, "rllib": {"algorithm": "A2C"},
        "env": {"max_episode_frames": 400}, "task.agent_steps": 100, "stream.segment_updates": 4,
    }  # fmt: skip
    check_process("rllib", changes)


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        ("PPO", {"minibatch_sizes": 8}, r"\.minibatch_sizes = 8: PPOConfig has no such option; did you mean min"),
        ("PPO", {"minibatch_size": 999, "train_batch_size_per_learner": 60}, r": .*_size` \(999\) must be <= "),
        ("PPO", {"num_learners": 2}, r"\.num_learners = 2: is not free"),
        ("PPO", {"enable_rl_module_and_learner": False}, r"\.enable_rl_module_and_learner = false: RLlib's new API"),
        ("DQN", {"enable_env_runner_and_connector_v2": False}, r"\.enable_env_runner_and_connector_v2 = false: RL"),
        ("A2C", {"num_epochs": 3}, r": .*`num_epochs` \(3\) must be 1: A2C takes one step a batch"),
        ("PPO", {"model_config": {"conv_filters": [[16, 99, 99, "valid"]]}}, r"\.model_config: pong: "),
        ("PPO", {"env_runner_cls": "os.system"}, r"\.env_runner_cls = .*may name code, files or addresses"),
        ("PPO", {"input_": "os.system"}, r"\.input_ = .*may name code, files or addresses"),
        ("PPO", {"callbacks_class": "a.B"}, r"\.callbacks_class = .*may name code, files or addresses"),
        ("PPO", {"policy_mapping_fn": "os"}, r"\.policy_mapping_fn = .*may name code"),
        ("DQN", {"replay_buffer_config": {"type": "os.system"}}, r"\.replay_buffer_config = .*a dotted name could be"),
        ("PPO", {"model_config": {"catalog_class": "a.b"}}, r"\.model_config = .*a dotted name could be imported"),
        ("PPO", {"placement_strategy": "/etc/passwd"}, r"\.placement_strategy = .*a path or a dotted name"),
    ],
)  # fmt: skip
def test_what_rllib_refuses_is_one_line_with_our_key(algorithm: str, options: dict[str, Any], message: str) -> None:
    from leap_rl.processes.rllib.options import check

    with pytest.raises(BadInputError, match="^rllib.options" + message) as error:
        check(rllib_config(algorithm, **{"rllib.options": options}))
    assert "\n" not in str(error.value)


def test_an_initialization_that_does_not_fit_is_told_by_key_and_shape() -> None:
    from leap_rl.processes.rllib.process import initial_parameters

    config = rllib_config("A2C")
    given = dict(initial_parameters(config, 3))
    given["encoder.conv1.weight"] = given["encoder.conv1.weight"][:, :3]
    given["encoder.gate"] = given.pop("encoder.conv2.bias")
    with pytest.raises(BadInputError) as error:
        start_process(config, TASK, given)
    assert str(error.value) == (
        "the initialization does not fit the RLModule's encoder: encoder.conv1.weight is (16, 3, 8, 8), in the "
        "RLModule (16, 4, 8, 8); encoder.conv2.bias is not in the initialization, in the RLModule (32,); "
        "encoder.gate is (32,), in the RLModule missing"
    )


# ------------------------------------------------------------------------------- examples


def run_environment() -> dict[str, str]:
    """One thread each: several of these run at a time."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def run_example(name: str, *arguments: str) -> str:
    """In a process of its own, as a reader runs it."""
    script = Path(__file__).parents[1] / "docs" / "examples" / name
    result = subprocess.run(
        [sys.executable, str(script), *arguments], env=run_environment(), capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_example_of_leap_in_a_script_of_ones_own() -> None:
    (line,) = [line for line in run_example("leap_over_rllib.py").splitlines() if "meta-gradient" in line]
    assert float(line.rpartition(" ")[2]) > 0


def test_example_from_meta_training_to_fine_tuning_with_rllib(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"meta.steps": 1, "task.agent_steps": 100})
    assert main(["train", str(config)]) == 0
    assert main(["export", str(tmp_path / "run"), "--to", "rllib", "--out", str(tmp_path / "encoder")]) == 0
    out = run_example(
        "finetune_with_rllib.py", str(tmp_path / "encoder"), "breakout", "--iterations", "1", "--batch-size", "128"
    )
    assert "loaded 8 tensors; as they were drawn: pi.net.mlp.2.bias, pi.net.mlp.2.weight, vf." in out
    losses = {line.partition(":")[0]: line.rpartition(" ")[2] for line in out.splitlines() if ": iteration" in line}
    assert losses.keys() == {"random", "meta-learned"}
    assert losses["random"] != losses["meta-learned"]


# ------------------------------------------------------------------------------- runs


def write_tiny(folder: Path) -> Path:
    """The configuration of a run of two tasks, each of two iterations or a little more, each a segment."""
    folder.mkdir(exist_ok=True)
    return write_config(folder, {
        "process": "rllib", "rllib.options": OPTIONS["PPO"], "meta.steps": 1, "meta.batch_size": 2,
        "tasks.games": ["pong", "asterix"], "task.agent_steps": 120, "stream.segment_updates": 2,
    })  # fmt: skip


def fingerprint_of(folder: Path, *overrides: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Of a whole run, in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "leap_rl.cli", "train", str(write_tiny(folder)), *overrides, "--json"],
        env=run_environment() | (environment or {}), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    shown: dict[str, Any] = json.loads(result.stdout)
    return shown


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run that others must equal, and its fingerprint."""
    folder = tmp_path_factory.mktemp("serial")
    shown = fingerprint_of(folder, "backend=serial")
    assert shown["finished"]
    return folder / "run", shown["fingerprint"]


def test_what_rllib_measures_is_logged(serial: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(serial[0] / "tensorboard" / "pong"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"rllib/mean_kl_loss", "rllib/vf_explained_var", "game/loss", "game/gradient_norm"} <= set(tags)


def test_killed_workers_on_ray_train_again_from_the_beginning_to_the_fingerprint_of_serial(
    tmp_path: Path, serial: tuple[Path, str]
) -> None:
    """Both tasks have handed in their first segment and have not ended."""
    command = ["train", write_tiny(tmp_path), "backend=ray", "workers.count=2", "--json"]
    with held(tmp_path, *command, meta_step=0, step=1) as (driver, steps):
        wait_for(lambda: sum(row["kind"] == "segment" for row in read_metrics(tmp_path / "run")) == 2, driver)
        workers = [pid for pid, title in session(driver.pid).items() if title.startswith("ray::Worker.run_task")]
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        steps.let_go()
        assert driver.wait(timeout=600) == 0, (tmp_path / "stderr").read_text()
    assert json.loads((tmp_path / "stdout").read_text())["fingerprint"] == serial[1]
    assert [steps.begun()[0, slot, 0] for slot in (0, 1)] == [2, 2], "the first segment was trained again"


def test_a_run_is_evaluated_reported_and_exported(tmp_path: Path, serial: tuple[Path, str]) -> None:
    """Two seeds, whose segments need not end at the same steps."""
    run, out = str(serial[0]), tmp_path / "evaluation"
    what = ["--games", "breakout", "--seeds", "2", "--agent-steps", "240", "--out", str(out)]
    assert main(["evaluate", run, "backend=serial", *what]) == 0
    rows = list(csv.DictReader((out / "curves.csv").open()))
    assert {(row["arm"], row["seed"]) for row in rows if row["episodic_return"]} == {
        (arm, seed) for arm in ("random", "run") for seed in "01"
    }
    written = (out / "report.md").read_bytes()
    (out / "report.md").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.md").read_bytes() == written
    assert main(["export", run, "--to", "rllib", "--out", str(tmp_path / "encoder")]) == 0
    assert (tmp_path / "encoder" / "encoder.safetensors").exists()


def test_another_suite_of_images(tmp_path: Path) -> None:
    """MinAtar, whose wheel is 17 kB: tasks are ids of Gymnasium, the network is RLlib's."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site"), MINATAR]
    if subprocess.run(pip, capture_output=True, timeout=600).returncode:
        pytest.skip(f"no registry gives {MINATAR}")
    network = "rllib.options.model_config={conv_filters: [[16, 3, 1, valid]], head_fcnet_hiddens: [64]}"
    shown = fingerprint_of(
        tmp_path / "minatar", "tasks.games=[MinAtar/Breakout-v1, MinAtar/Asterix-v1]", network,
        environment={"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])},
    )  # fmt: skip
    assert shown["finished"]
    assert shown["parameters"]["encoder.actor_encoder.net.0.cnn.0.weight"] == [16, 4, 3, 3]
    assert shown["agent_steps"] >= 240
