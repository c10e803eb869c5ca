"""The optimizer that goes by pieces against torch's own, and what it measures on the way."""

import pytest
import torch

from leap_rl.config import AgentConfig
from leap_rl.processes.a2c.optimizer import PIECE, Optimizer
from tests.helpers import generator

# With more threads the first square root of a process is at times rough in one of them (torch's RMSprop, not ours).
pytestmark = pytest.mark.usefixtures("one_torch_thread")
NUM_MEASURED, NUM = PIECE + 1000, 2 * PIECE + 10  # pieces of several sizes, and some that are not measured


def agent(optimizer: str) -> AgentConfig:
    return AgentConfig(optimizer=optimizer, lr=1e-3, epsilon=1e-5, rmsprop_decay=0.95)


def torch_s_own(optimizer: str, parameters: torch.Tensor) -> torch.optim.Optimizer:
    if optimizer == "adam":
        return torch.optim.Adam([parameters], 1e-3, eps=1e-5)
    return torch.optim.RMSprop([parameters], 1e-3, alpha=0.95, eps=1e-5)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_steps_are_those_of_torch_and_moves_are_measured(optimizer: str) -> None:
    ours = torch.randn(NUM, generator=generator(0))
    theirs = torch.nn.Parameter(ours.clone())
    expected, stepping = torch_s_own(optimizer, theirs), Optimizer(ours, agent(optimizer), NUM_MEASURED)
    for step in range(6):
        gradient = torch.randn(NUM, generator=generator(step)) * 10.0**-step
        scale = None if step % 2 else 0.3
        kept, before = gradient.clone(), ours.clone()
        squared_norm = stepping.step(stepping.split(gradient), scale)
        theirs.grad = gradient * (scale or 1)
        expected.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(gradient, kept), "Leap still needs it"
        move = (ours - before)[:NUM_MEASURED].double()
        assert squared_norm == pytest.approx(float(move @ move), rel=1e-5)
        assert squared_norm < 0.9 * float((ours - before).double().square().sum())


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_a_state_goes_on_to_the_same_bits(optimizer: str) -> None:
    ours = torch.randn(NUM, generator=generator(0))
    stepping = Optimizer(ours, agent(optimizer), NUM_MEASURED)

    def steps(taking: Optimizer, seeds: range) -> None:
        for seed in seeds:
            taking.step(taking.split(torch.randn(NUM, generator=generator(seed))), 0.5)

    steps(stepping, range(3))
    again = ours.clone()
    other = Optimizer(again, agent(optimizer), NUM_MEASURED)
    state = stepping.state()
    other.load_state(state)
    for value in state.values():
        value.fill_(1)
    steps(stepping, range(3, 6))
    steps(other, range(3, 6))
    assert torch.equal(ours, again)
