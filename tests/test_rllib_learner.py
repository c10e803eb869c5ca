"""Leap in RLlib's Learner, and A2C as one of RLlib's algorithms."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch

from leap_rl.leap import PathAccumulator
from leap_rl.processes import start_process
from leap_rl.types import BadInputError, Task
from tests.test_rllib import rllib_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cluster")]


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
    from leap_rl.processes.a2c.network import flatten
    from leap_rl.processes.a2c.optimizer import Optimizer
    from leap_rl.processes.a2c.process import new_network
    from leap_rl.processes.rllib.envs import TaskEnv
    from leap_rl.processes.rllib.network import shared_encoder
    from leap_rl.processes.rllib.process import initial_parameters

    played: list[tuple[bytes, int, float, bool, bytes]] = []
    take = TaskEnv.step

    def recorded(env: Any, action: Any) -> Any:
        before = env.env._observation(env.env._vector.observations[0]).tobytes()
        observation, reward, terminated, truncated, info = take(env, action)
        played.append((before, int(action), reward, terminated, b"" if terminated else observation.tobytes()))
        return observation, reward, terminated, truncated, info

    monkeypatch.setattr(TaskEnv, "step", recorded)
    config = rllib_config("A2C", **{"agent.unroll": 10, "agent.max_grad_norm": 0.1})
    process = start_process(config, Task(0, 0, "breakout", seed=7), initial_parameters(config, 3))
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
    network = new_network(config, num_actions=4)
    flat = flatten(network)
    optimizer = Optimizer(flat, config.agent)
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
