"""The optimizer's step against torch's own optimizers, and the move that it reports."""

import pytest
import torch

from leap_rl.processes.a2c.optimizer import Optimizer
from leap_rl.processes.agents import AgentConfig
from tests.helpers import generator

# With more threads the first square root of a process is at times rough in one of them (torch's RMSprop, not ours).
pytestmark = pytest.mark.usefixtures("one_torch_thread")
NUM = 32_778


def agent(optimizer: str) -> AgentConfig:
    return AgentConfig(optimizer=optimizer, lr=1e-3, epsilon=1e-5, rmsprop_decay=0.95)


def torch_s_own(optimizer: str, parameters: torch.Tensor) -> torch.optim.Optimizer:
    if optimizer == "adam":
        return torch.optim.Adam([parameters], 1e-3, eps=1e-5)
    return torch.optim.RMSprop([parameters], 1e-3, alpha=0.95, eps=1e-5)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_steps_are_those_of_torch_and_what_was_added_is_returned(optimizer: str) -> None:
    ours = torch.randn(NUM, generator=generator(0))
    theirs = torch.nn.Parameter(ours.clone())
    expected, stepping = torch_s_own(optimizer, theirs), Optimizer(ours, agent(optimizer))
    for step in range(6):
        gradient = torch.randn(NUM, generator=generator(step)) * 10.0**-step
        scale = 1.0 if step % 2 else 0.3
        kept, before = gradient.clone(), ours.clone()
        moved = stepping.step(gradient, scale)
        theirs.grad = gradient * scale
        expected.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(gradient, kept), "Leap still needs it"
        assert torch.equal(ours, before + moved)
        assert moved.any()


def test_a_gradient_that_is_not_finite_shows_in_the_move() -> None:
    stepping = Optimizer(torch.zeros(NUM), agent("rmsprop"))
    gradient = torch.zeros(NUM)
    assert not stepping.step(gradient).any()
    gradient[7] = float("inf")
    moved = stepping.step(gradient)
    assert not moved[7].isfinite()
    assert moved.isfinite().sum() == NUM - 1


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_a_state_goes_on_to_the_same_bits(optimizer: str) -> None:
    ours = torch.randn(NUM, generator=generator(0))
    stepping = Optimizer(ours, agent(optimizer))

    def steps(taking: Optimizer, seeds: range) -> None:
        for seed in seeds:
            taking.step(torch.randn(NUM, generator=generator(seed)), 0.5)

    steps(stepping, range(3))
    again = ours.clone()
    other = Optimizer(again, agent(optimizer))
    state = stepping.state()
    other.load_state(state)
    for value in state.values():
        value.fill_(1)
    steps(stepping, range(3, 6))
    steps(other, range(3, 6))
    assert torch.equal(ours, again)
