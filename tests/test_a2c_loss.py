"""The loss of advantage actor-critic against its definition: by hand, by slow transcriptions, by finite differences."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leap_rl.processes.a2c.loss import a2c_gradients, a2c_loss, n_step_returns
from tests.helpers import generator

# ------------------------------------------------------------------------------------------------ returns


def test_n_step_returns_by_hand() -> None:
    """Two environments; the second ends an episode with its second reward."""
    rewards = torch.tensor([[1.0, 1.0], [0.0, 2.0], [2.0, 3.0]])
    discounts = torch.tensor([[0.5, 0.5], [0.5, 0.0], [0.5, 0.5]])
    bootstrap = torch.tensor([8.0, 10.0])
    expected = [[2.5, 2.0], [3.0, 2.0], [6.0, 8.0]]
    assert n_step_returns(rewards, discounts, bootstrap).tolist() == expected


@given(st.data())
def test_n_step_returns_are_the_discounted_sums_of_their_definition(data: st.DataObject) -> None:
    """R[t] = Σₖ (Πⱼ₌ₜ..ₖ₋₁ dⱼ) rₖ + (Πⱼ₌ₜ..T₋₁ dⱼ) bootstrap."""
    num_steps, num_envs = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 3))

    def draw(values: st.SearchStrategy[float], num_rows: int) -> list[list[float]]:
        row = st.lists(values, min_size=num_envs, max_size=num_envs)
        return data.draw(st.lists(row, min_size=num_rows, max_size=num_rows))

    rewards = draw(st.one_of(st.just(0.0), st.floats(-100, 100)), num_steps)
    discounts = draw(st.one_of(st.sampled_from([0.0, 0.99, 1.0]), st.floats(0, 1)), num_steps)
    (bootstrap,) = draw(st.floats(-100, 100), 1)
    found = n_step_returns(*(torch.tensor(x, dtype=torch.float64) for x in (rewards, discounts, bootstrap)))
    for env in range(num_envs):
        for t in range(num_steps):
            expected = 0.0
            for k in range(t, num_steps):
                expected += math.prod(discounts[j][env] for j in range(t, k)) * rewards[k][env]
            expected += math.prod(discounts[j][env] for j in range(t, num_steps)) * bootstrap[env]
            assert float(found[t, env]) == pytest.approx(expected, rel=1e-12, abs=1e-9)


# --------------------------------------------------------------------------------------------------- loss


def test_the_loss_by_hand() -> None:
    """Equal odds for two actions, value ½, return 2: advantage 3/2."""
    loss = a2c_loss(torch.zeros(1, 1, 2), torch.tensor([[0.5]]), torch.tensor([[0]]), torch.tensor([[2.0]]), 0.5, 0.01)
    assert float(loss.policy) == pytest.approx(1.5 * math.log(2))
    assert float(loss.value) == pytest.approx(2.25)
    assert float(loss.entropy) == pytest.approx(math.log(2))
    assert float(loss.total) == pytest.approx(1.49 * math.log(2) + 1.125)


def test_the_loss_is_a_mean_over_steps_and_environments() -> None:
    """Odds 3 : 1. Action 0 with advantage 2 in one place, action 1 with advantage −4 in the other."""
    logits = torch.tensor([[[math.log(3), 0.0]], [[math.log(3), 0.0]]])
    values, returns = torch.tensor([[1.0], [1.0]]), torch.tensor([[3.0], [-3.0]])
    loss = a2c_loss(logits, values, torch.tensor([[0], [1]]), returns, 0.25, 0.1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(loss.policy) == pytest.approx((-2 * math.log(0.75) + 4 * math.log(0.25)) / 2)
    assert float(loss.value) == pytest.approx((4 + 16) / 2)
    assert float(loss.entropy) == pytest.approx(entropy)
    assert float(loss.total) == pytest.approx(float(loss.policy) + 0.25 * 10 - 0.1 * entropy)


def example(num_steps: int = 3, num_envs: int = 2, num_actions: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Random arguments of the loss, in float64."""
    rng = generator(seed)
    return {
        "logits": 2 * torch.randn(num_steps, num_envs, num_actions, generator=rng, dtype=torch.float64),
        "values": torch.randn(num_steps, num_envs, generator=rng, dtype=torch.float64),
        "actions": torch.randint(num_actions, (num_steps, num_envs), generator=rng),
        "returns": 3 * torch.randn(num_steps, num_envs, generator=rng, dtype=torch.float64),
    }


def slow_loss(
    logits: list[Any], values: list[Any], actions: list[Any], returns: list[Any], held_advantages: list[Any]
) -> tuple[float, float, float]:
    """Policy, value and entropy terms, scalar by scalar. The policy term takes its advantages from outside."""
    policy = value = entropy = 0.0
    for t in range(len(values)):
        for b in range(len(values[0])):
            odds = [math.exp(x) for x in logits[t][b]]
            probabilities = [x / sum(odds) for x in odds]
            policy -= held_advantages[t][b] * math.log(probabilities[actions[t][b]])
            value += (returns[t][b] - values[t][b]) ** 2
            entropy -= sum(p * math.log(p) for p in probabilities)
    count = len(values) * len(values[0])
    return policy / count, value / count, entropy / count


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_that_of_a_slow_transcription(seed: int) -> None:
    arguments = example(num_steps=1 + seed, num_envs=5 - seed, num_actions=2 + seed, seed=seed)
    loss = a2c_loss(**arguments, value_cost=0.5, entropy_cost=0.01)
    advantages = (arguments["returns"] - arguments["values"]).tolist()
    expected = slow_loss(**{name: value.tolist() for name, value in arguments.items()}, held_advantages=advantages)
    assert [float(term) for term in loss[1:]] == pytest.approx(expected, rel=1e-12)
    policy, value, entropy = expected
    assert float(loss.total) == pytest.approx(policy + 0.5 * value - 0.01 * entropy, rel=1e-12)


@pytest.mark.parametrize("name", ["logits", "values"])
def test_gradients_are_those_of_finite_differences_with_the_advantage_held(name: str) -> None:
    arguments = example()
    variable = arguments[name].requires_grad_()
    a2c_loss(**arguments, value_cost=0.7, entropy_cost=0.3).total.backward()
    assert variable.grad is not None

    plain = {key: value.tolist() for key, value in arguments.items()}
    held = (arguments["returns"] - arguments["values"]).tolist()

    def total(moved: Tensor) -> float:
        policy, value, entropy = slow_loss(**plain | {name: moved.tolist()}, held_advantages=held)
        return policy + 0.7 * value - 0.3 * entropy

    step = 1e-6
    for index in np.ndindex(*variable.shape):
        up, down = variable.detach().clone(), variable.detach().clone()
        up[index] += step
        down[index] -= step
        slope = (total(up) - total(down)) / (2 * step)
        assert float(variable.grad[index]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_the_gradients_that_are_written_out_are_those_of_the_loss(seed: int) -> None:
    arguments = example(num_steps=1 + seed, num_envs=5 - seed, num_actions=2 + seed, seed=seed)
    variables = [arguments[name].requires_grad_() for name in ("logits", "values")]
    expected = torch.autograd.grad(a2c_loss(**arguments, value_cost=0.7, entropy_cost=0.3).total, variables)
    found = a2c_gradients(**arguments, value_cost=0.7, entropy_cost=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert not any(gradient.requires_grad for gradient in found)


def test_autograd_agrees_with_itself_where_nothing_is_held() -> None:
    """Through the logits, and through the values with the policy term gone."""
    arguments = example()

    def through_logits(logits: Tensor) -> Tensor:
        return a2c_loss(**arguments | {"logits": logits}, value_cost=0.5, entropy_cost=0.1).total

    def through_values(values: Tensor) -> Tensor:
        return a2c_loss(**arguments | {"values": values}, value_cost=0.5, entropy_cost=0.1).value

    assert torch.autograd.gradcheck(through_logits, (arguments["logits"].clone().requires_grad_(),))
    assert torch.autograd.gradcheck(through_values, (arguments["values"].clone().requires_grad_(),))


def test_no_gradient_flows_into_the_returns_nor_from_the_policy_into_the_values() -> None:
    arguments = example()
    returns, values = arguments["returns"].requires_grad_(), arguments["values"].requires_grad_()
    logits = arguments["logits"].requires_grad_()
    loss = a2c_loss(**arguments, value_cost=0.5, entropy_cost=0.01)
    assert torch.autograd.grad(loss.total, returns, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(loss.policy, values, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(loss.policy, logits)[0].abs().sum() > 0


@pytest.mark.parametrize("num_actions", [2, 6, 18])
def test_the_entropy_of_uniform_logits_is_log_a(num_actions: int) -> None:
    arguments = example(num_actions=num_actions) | {"logits": torch.full((3, 2, num_actions), 7.0)}
    assert float(a2c_loss(**arguments, value_cost=0.5, entropy_cost=0.0).entropy) == pytest.approx(
        math.log(num_actions)
    )
