"""Leap over RLlib's algorithms: its increments against slow ones from saved steps, whole tasks, and bad input."""

import copy
import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from leap_rl.backends import prepare_environment
from leap_rl.cli import main
from leap_rl.config import Config, load_config
from leap_rl.export import export_run, our_features, read_encoder, real_frames
from leap_rl.leap import PathAccumulator
from leap_rl.run import read_metrics
from leap_rl.storage import open_storage
from leap_rl.streaming import TaskStream
from leap_rl.task_store import TaskStore
from leap_rl.types import BadInputError, Increment, Task, TaskError
from tests.cli_helpers import held, session, wait_for, write_config
from tests.helpers import tiny_config
from tests.test_export import make_run

pytestmark = pytest.mark.slow
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


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests here."""
    prepare_environment("local")
    import ray

    from leap_rl.backends.cluster import ensure_ray

    ensure_ray("process = rllib")
    yield
    ray.shutdown()


def rllib_config(algorithm: str, **changes: Any) -> Config:
    agent_steps = 120 if algorithm in ("A2C", "PPO", "DQN") else 240
    base = {"process": "rllib", "rllib.algorithm": algorithm, "rllib.options": OPTIONS[algorithm],
            "task.agent_steps": agent_steps, "stream.segment_updates": 2, "tasks.games": ["pong", "breakout"],
            "agent.max_grad_norm": 0.5 if algorithm == "A2C" else None}  # fmt: skip
    return tiny_config(**base | changes)


# ------------------------------------------------------------------------------- the Learner


class Saved:
    """What a Learner saw, step by step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.points: list[dict[str, torch.Tensor]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.clipped: list[float] = []  # the norm of what moved the parameters
        self.ends: list[dict[str, torch.Tensor]] = []


def saving_learner(base: Any, saved: Saved) -> Any:
    class SavingLearner(base):
        def _copy(self, attribute: str = "data") -> dict[str, torch.Tensor]:
            (module,) = self.module.values()
            named = module.unwrapped().named_parameters()
            return {n: getattr(p, attribute).clone() for n, p in named if n.startswith("encoder.")}

        def compute_gradients(self, loss_per_module: Any, **kwargs: Any) -> Any:
            saved.losses.append(float(sum(loss_per_module.values()).detach()))
            saved.points.append(self._copy())
            gradients = super().compute_gradients(loss_per_module, **kwargs)
            saved.gradients.append(self._copy("grad"))
            return gradients

        def apply_gradients(self, gradients_dict: Any) -> None:
            saved.clipped.append(float(torch.cat([g.flatten() for g in gradients_dict.values()]).norm()))
            super().apply_gradients(gradients_dict)
            saved.ends.append(self._copy())

    return SavingLearner


def slow_increment(saved: Saved) -> dict[str, torch.Tensor]:
    """−Σ (Δθ + Δf ∇f), the sign of Δf flipped where the loss rose: in double, one move and one tensor at a time.
    It is slow to be plainly the equation."""
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in saved.points[0].items()}
    for i, (f, following) in enumerate(pairwise(saved.losses)):
        change = -abs(following - f)
        for name, value in total.items():
            move = saved.points[i + 1][name].double() - saved.points[i][name].double()
            value -= move + change * saved.gradients[i][name].double()
    return total


def ppo_on_cartpole(learner_class: Any) -> Any:
    from ray.rllib.algorithms.ppo import PPOConfig

    config = PPOConfig().environment("CartPole-v1")
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    config.training(
        train_batch_size_per_learner=64, minibatch_size=32, num_epochs=3, lr=1e-3, grad_clip=0.01,
        grad_clip_by="global_norm", model={},
    )  # fmt: skip
    config.debugging(seed=3)
    return config.learners(learner_class=learner_class)


def test_increments_are_those_of_the_saved_steps_of_ppo_over_epochs_and_minibatches() -> None:
    """To the bit those of the same path recorded outside; to 1e-4 (float32 against double) those of the equation."""
    from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner

    from leap_rl.rllib import leap_learner, take_increment

    saved = Saved()
    algorithm = ppo_on_cartpole(leap_learner(saving_learner(PPOTorchLearner, saved))).build_algo()
    path = algorithm.learner_group._learner.path
    algorithm.train()
    again = PathAccumulator()
    for loss, point, gradient in zip(saved.losses, saved.points, saved.gradients, strict=True):
        again.record(loss, point, gradient)
    assert path.num_points == len(saved.ends) >= 3 * 2, "every minibatch of every epoch is a point"
    first = take_increment(algorithm)
    expected = again.increment()
    assert first.keys() == expected.keys()
    assert all(torch.equal(first[name], expected[name]) for name in expected)

    algorithm.train()
    second = take_increment(algorithm, finish=True)
    algorithm.stop()
    assert all(torch.equal(end[n], start[n]) for end, start in zip(saved.ends, saved.points[1:], strict=False)
               for n in end), "nothing moves the parameters between two steps"  # fmt: skip
    raw = [float(torch.cat([gradient.flatten() for gradient in step.values()]).norm()) for step in saved.gradients]
    assert max(saved.clipped) <= 0.0101 < min(raw), "what is recorded is the gradient before clipping"
    for name, value in slow_increment(saved).items():
        torch.testing.assert_close(first[name].double() + second[name].double(), value, rtol=1e-4, atol=1e-6)


def test_several_learners_are_refused() -> None:
    """As a user's script sees it: each Learner is an actor, and what it raises comes out of Ray's exception."""
    from ray.exceptions import RayError
    from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner

    from leap_rl.rllib import leap_learner

    config = ppo_on_cartpole(leap_learner(PPOTorchLearner)).learners(num_learners=2, num_cpus_per_learner=0)
    with pytest.raises(RayError, match=r"BadInputError: num_learners = 2: Leap follows one path; it must be 0 or 1"):
        config.build_algo()


def test_the_old_api_stack_is_told_by_name() -> None:
    """RLlib itself only warns that it leaves the Learner out."""
    from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner

    from leap_rl.rllib import leap_learner, take_increment

    config = ppo_on_cartpole(leap_learner(PPOTorchLearner))
    config.api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
    algorithm = config.build_algo()
    with pytest.raises(BadInputError, match=r"^PPO: is on RLlib's old API stack, which has no Learner: .*$"):
        take_increment(algorithm)
    algorithm.stop()


# ------------------------------------------------------------------------------- A2C


def test_a2c_is_our_own_process_on_transitions_that_rllib_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every update once more from what its batch holds: each row is a transition of the game, each fragment's targets
    are its n-step returns, and the parameters move by our optimizer's step on our loss. Games end on the way."""
    from leap_rl.processes.a2c.loss import a2c_loss
    from leap_rl.processes.a2c.network import ActorCritic, flatten
    from leap_rl.processes.a2c.optimizer import Optimizer
    from leap_rl.rllib.envs import TaskEnv
    from leap_rl.rllib.network import shared_encoder
    from leap_rl.rllib.process import RLlibProcess, initial_parameters

    played: list[tuple[bytes, int, float, bool, bytes]] = []
    take = TaskEnv.step

    def recorded(env: Any, action: Any) -> Any:
        before = env.env._observation(env.env._vector.observations[0]).tobytes()
        observation, reward, terminated, truncated, info = take(env, action)
        played.append((before, int(action), reward, terminated, b"" if terminated else observation.tobytes()))
        return observation, reward, terminated, truncated, info

    monkeypatch.setattr(TaskEnv, "step", recorded)
    config = rllib_config("A2C", **{"agent.unroll": 10, "agent.max_grad_norm": 0.1})
    process = RLlibProcess(config, Task(0, 0, "breakout", seed=7), initial_parameters(config, 3))
    (module,) = process.learner.module.values()

    def parameters() -> dict[str, torch.Tensor]:
        heads = {"policy": module.pi.net.mlp[0], "value": module.vf.net.mlp[0]}
        named = {f"{head}.{end}": getattr(layer, end) for head, layer in heads.items() for end in ("weight", "bias")}
        return {name: value.detach().clone() for name, value in (shared_encoder(module) | named).items()}

    batches: list[dict[str, torch.Tensor]] = []
    original = process.learner.compute_losses

    def compute_losses(*, fwd_out: Any, batch: Any) -> Any:
        losses = original(fwd_out=fwd_out, batch=batch)
        batches.append(copy.deepcopy(dict(batch["default_policy"])) | {"loss": losses["default_policy"].detach()})
        return losses

    process.learner.compute_losses = compute_losses
    network = ActorCritic(config, num_actions=4)
    flat = flatten(network)
    optimizer = Optimizer(flat, config.agent, num_measured=0)
    ends = clipped = 0
    for _ in range(30):
        network.load_state_dict(parameters())
        before = flat.detach().clone()
        played.clear()
        process.algorithm.train()
        (batch,) = batches
        batches.clear()
        taken, rewards, terminated = batch["loss_mask"], batch["rewards"], batch["terminateds"]
        assert int(taken.sum()) == len(played), "every step that was taken, once"
        logits, values = network(batch["obs"].permute(0, 3, 1, 2))
        returns, following = torch.empty(len(taken)), 0.0
        for row in reversed(range(len(taken))):
            if not taken[row]:  # the observation after a fragment: nothing was done there
                following = float(values[row].detach())
                continue
            following = float(rewards[row]) + (0 if terminated[row] else config.agent.discount * following)
            returns[row] = following
            images = [batch["obs"][i].numpy().tobytes() for i in (row, row + 1)]
            ended = bool(terminated[row])
            ends += ended
            key = images[0], int(batch["actions"][row]), float(rewards[row]), ended, b"" if ended else images[1]
            assert key in played
        torch.testing.assert_close(batch["value_targets"][taken], returns[taken], rtol=1e-5, atol=1e-6)
        loss = a2c_loss(logits[taken], values[taken], batch["actions"][taken].long(), returns[taken], 0.5, 0.01)
        assert float(batch["loss"]) == pytest.approx(float(loss.total.detach()), rel=1e-5, abs=1e-6)
        gradients = torch.autograd.grad(loss.total, list(network.parameters()))
        gradient = torch.cat([part.flatten() for part in gradients])
        norm = float(gradient.norm())
        clipped += norm > 0.1
        optimizer.step(gradient, min(1.0, 0.1 / norm))
        theirs = torch.cat([parameters()[name].flatten() for name, _ in network.named_parameters()])
        assert float((theirs - flat.detach()).norm()) < 1e-3 * float((theirs - before).norm())
    process.algorithm.stop()
    assert ends
    assert clipped
    assert process.learner.path.num_points == 30


# ------------------------------------------------------------------------------- whole tasks


def walk(process: Any, at_most: int = 99) -> list[Increment]:
    increments: list[Increment] = []
    for increment in process.walk():
        increments.append(increment)
        if len(increments) == at_most:
            break
    return increments


def equal(a: Increment, b: Increment) -> bool:
    return a.key == b.key and all(torch.equal(a.meta_gradient[n], b.meta_gradient[n]) for n in a.meta_gradient)


@pytest.mark.parametrize("algorithm", ["A2C", "PPO", "DQN"])
def test_a_task_streams_and_repeats_itself_when_it_is_taken_up(algorithm: str) -> None:
    from leap_rl.rllib.process import RLlibProcess, initial_parameters

    config = rllib_config(algorithm)
    initialization = initial_parameters(config, 3)
    first = RLlibProcess(config, TASK, initialization)
    walking = first.walk()
    increments = [next(walking)]
    state = first.state()
    increments += walking

    assert [increment.last for increment in increments][-2:] == [False, True]
    assert [increment.key.sequence for increment in increments] == list(range(len(increments)))
    assert sum(increment.statistics["agent_steps"] for increment in increments) >= 120
    assert all(increment.meta_gradient.keys() == initialization.keys() for increment in increments)
    assert sum(increment.path_length for increment in increments) > 0
    assert all(np.isfinite(list(increment.statistics.values())).all() for increment in increments)
    assert increments[0].statistics.keys() == increments[-1].statistics.keys()
    assert any(name.startswith("rllib/") for name in increments[0].statistics)

    later = walk(RLlibProcess.from_state(config, TASK, state))
    assert len(later) == len(increments) - 1
    assert all(equal(a, b) for a, b in zip(increments[1:], later, strict=True))


def test_a_task_whose_worker_was_lost_comes_to_the_ledger_of_an_undisturbed_one(tmp_path: Path) -> None:
    """Its increments are compressed: what is kept back must go on where it was, too."""
    from leap_rl.rllib.process import initial_parameters

    config = rllib_config("A2C", **{"stream.compression": "int8"})
    initialization = initial_parameters(config, 3)
    ledgers = []
    for name, losses in (("undisturbed", 0), ("disturbed", 2)):
        store = TaskStore(open_storage(str(tmp_path / name)))
        for attempt in range(losses):
            next(TaskStream(config, store, TASK, 0, initialization, attempt).increments())
        stream = TaskStream(config, store, TASK, 0, initialization, losses)
        for _ in stream.increments():
            pass
        ledgers.append(stream.ledger)
    undisturbed, disturbed = ledgers
    assert len(undisturbed.reports) == len(disturbed.reports) == 3
    assert [report.attempt for report in disturbed.reports] != [0, 0, 0]
    assert all(torch.equal(undisturbed.total[name], disturbed.total[name]) for name in initialization)
    assert undisturbed.reports[-1].statistics["agent_steps"] == disturbed.reports[-1].statistics["agent_steps"]


def test_a_task_that_does_not_repeat_itself_fails() -> None:
    from leap_rl.rllib.process import RLlibProcess, initial_parameters

    config = rllib_config("A2C")
    process = RLlibProcess(config, TASK, initial_parameters(config, 3))
    walk(process, at_most=1)
    other = dict(process.state()) | {"fingerprint": torch.zeros(32, dtype=torch.uint8)}
    with pytest.raises(TaskError, match="A2C came to other parameters after 1 segments"):
        walk(RLlibProcess.from_state(config, TASK, other))


@pytest.mark.parametrize("algorithm", ["IMPALA", "APPO"])
def test_a_task_of_a_threaded_algorithm_is_one_segment(algorithm: str) -> None:
    from leap_rl.rllib.process import RLlibProcess, initial_parameters

    config = rllib_config(algorithm)
    initialization = initial_parameters(config, 3)
    (increment,) = walk(RLlibProcess(config, TASK, initialization))
    assert increment.last
    assert increment.num_moves >= 2
    assert increment.meta_gradient.keys() == initialization.keys()


def test_the_environment_is_that_of_our_own_process() -> None:
    from leap_rl.processes.atari import AtariVector
    from leap_rl.rllib.envs import AtariGame
    from leap_rl.tasks import parse_game

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
    ],
)  # fmt: skip
def test_what_rllib_refuses_is_one_line_with_our_key(algorithm: str, options: dict[str, Any], message: str) -> None:
    from leap_rl.rllib.options import check

    with pytest.raises(BadInputError, match="^rllib.options" + message) as error:
        check(rllib_config(algorithm, **{"rllib.options": options}))
    assert "\n" not in str(error.value)


def test_an_initialization_that_does_not_fit_is_told_by_key_and_shape() -> None:
    from leap_rl.rllib.process import RLlibProcess, initial_parameters

    config = rllib_config("A2C")
    given = dict(initial_parameters(config, 3))
    given["encoder.conv1.weight"] = given["encoder.conv1.weight"][:, :3]
    given["encoder.gate"] = given.pop("encoder.conv2.bias")
    with pytest.raises(BadInputError) as error:
        RLlibProcess(config, TASK, given)
    assert str(error.value) == (
        "the initialization does not fit the RLModule's encoder: encoder.conv1.weight is (16, 3, 8, 8), in the "
        "RLModule (16, 4, 8, 8); encoder.conv2.bias is not in the initialization, in the RLModule (32,); "
        "encoder.gate is (32,), in the RLModule missing"
    )


# ------------------------------------------------------------------------------- exports


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a run for RLlib."""
    folder = tmp_path_factory.mktemp("export")
    run = make_run(folder)
    export_run(str(run), "rllib", str(folder / "out"))
    return folder / "out"


@pytest.mark.parametrize("algorithm", ["PPO", "DQN", "APPO", "IMPALA", "A2C"])
def test_an_algorithm_of_rllib_loads_an_export_and_computes_our_features(algorithm: str, export: Path) -> None:
    from ray.rllib.core.columns import Columns
    from ray.tune.registry import register_env

    from leap_rl.rllib import load_encoder, take_increment
    from leap_rl.rllib.envs import AtariGame, FloatImage
    from leap_rl.rllib.learner import on_learners
    from leap_rl.rllib.options import ALGORITHMS

    description = json.loads((export / "config.json").read_text())
    config = load_config(export.parent / "run" / "config.yaml")
    register_env("exported", lambda _: FloatImage(AtariGame("pong", config.env, 0)))
    options = ALGORITHMS[algorithm]().environment("exported").env_runners(num_env_runners=0)
    if algorithm == "IMPALA":  # APPO's Learner stays where it is by default, in another process
        options.learners(num_learners=0)
    built = options.rl_module(model_config=description["model_config"]).build_algo()
    report = load_encoder(built, export)
    assert report.unexpected == ()
    assert not any(name.startswith("encoder.") for name in report.missing)

    frames = real_frames(config)
    expected = our_features(read_encoder(load_file(export.parent / "run" / "initialization.safetensors"), ""), frames)
    images = frames.permute(0, 2, 3, 1).float() / 128 - 1

    def features(module: Any) -> torch.Tensor:
        encoded = module.encoder({Columns.OBS: images})["encoder_out"]
        if algorithm == "DQN":
            return module.af.net.mlp[:2](encoded).detach()
        return module.pi.net.mlp[:2](encoded["actor"]).detach()

    def in_learner(learner: Any) -> tuple[torch.Tensor, list[bool]]:
        """Its features, and for each parameter of a target network whether it is equal."""
        (module,) = learner.module.values()
        pairs = module.unwrapped().get_target_network_pairs() if algorithm in ("DQN", "APPO") else []
        equal = [torch.equal(a, b) for pair in pairs for a, b in zip(*(net.parameters() for net in pair), strict=True)]
        return features(module.unwrapped()), equal

    ((found, equal),) = on_learners(built, in_learner)
    assert bool(equal) == (algorithm in ("DQN", "APPO"))
    assert all(equal)
    for each in (found, features(built.env_runner.module)):
        assert float((each - expected).abs().max()) <= 1e-5
    with pytest.raises(BadInputError, match=rf"^{algorithm}TorchLearner: records no path"):
        take_increment(built)
    assert on_learners(built, lambda _: "in service") == ["in service"]
    built.stop()


def test_a_module_that_an_export_does_not_fit_is_told_by_key_and_shape(export: Path) -> None:
    from leap_rl.rllib import load_encoder
    from leap_rl.rllib.options import build_module

    three = {"model_config": {"conv_filters": [[16, 8, 4, "valid"], [32, 4, 2, "valid"], [32, 3, 1, "valid"]],
                              "vf_share_layers": True, "head_fcnet_hiddens": [128]}}  # fmt: skip
    module = build_module(rllib_config("PPO", **{"rllib.options": three}), "pong")
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(BadInputError) as error:
        load_encoder(module, export)
    text = str(error.value)
    assert "encoder.encoder.net.0.cnn.4.weight (32, 32, 3, 3) is missing" in text
    assert "pi.net.mlp.0.weight is (256, 2592), in the RLModule (128, 1568)" in text
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)), "nothing was loaded"


# ------------------------------------------------------------------------------- examples


def run_environment() -> dict[str, str]:
    """One thread each: several of these run at a time."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def run_example(name: str, *arguments: str) -> str:
    """In a process of its own, as a reader runs it."""
    script = Path(__file__).parents[1] / "docs" / "examples" / name
    result = subprocess.run(
        [sys.executable, str(script), *arguments], env=run_environment(), capture_output=True, text=True, timeout=400
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
        env=run_environment() | (environment or {}), capture_output=True, text=True, timeout=400,
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


def test_ray_ends_in_the_fingerprint_of_serial_and_logs_what_rllib_measures(
    tmp_path: Path, serial: tuple[Path, str]
) -> None:
    run, fingerprint = serial
    assert fingerprint_of(tmp_path, "backend=ray", "workers.count=2")["fingerprint"] == fingerprint
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "pong"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"rllib/mean_kl_loss", "rllib/vf_explained_var", "game/loss", "game/gradient_norm"} <= set(tags)


def test_killed_workers_train_again_from_the_beginning_to_the_same_fingerprint(
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
        assert driver.wait(timeout=300) == 0, (tmp_path / "stderr").read_text()
    assert json.loads((tmp_path / "stdout").read_text())["fingerprint"] == serial[1]
    assert [steps.begun()[0, slot, 0] for slot in (0, 1)] == [2, 2], "the first segment was trained again"


def test_a_run_is_evaluated_reported_and_exported(tmp_path: Path, serial: tuple[Path, str]) -> None:
    """Two seeds, whose segments need not end at the same steps."""
    run, out = str(serial[0]), tmp_path / "evaluation"
    what = ["--games", "breakout", "--seeds", "2", "--agent-steps", "240", "--out", str(out)]
    assert main(["evaluate", run, *what]) == 0
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
    if subprocess.run(pip, capture_output=True, timeout=120).returncode:
        pytest.skip(f"no registry gives {MINATAR}")
    network = "rllib.options.model_config={conv_filters: [[16, 3, 1, valid]], head_fcnet_hiddens: [64]}"
    shown = fingerprint_of(
        tmp_path / "minatar", "tasks.games=[MinAtar/Breakout-v1, MinAtar/Asterix-v1]", network,
        environment={"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])},
    )  # fmt: skip
    assert shown["finished"]
    assert shown["parameters"]["encoder.actor_encoder.net.0.cnn.0.weight"] == [16, 4, 3, 3]
    assert shown["agent_steps"] >= 240
