"""The optimizer's single pass against torch's own optimizers, and what it measures on the way."""

import numpy as np
import pytest
import torch

from leap_rl.config import AgentConfig
from leap_rl.processes.a2c.optimizer import BLOCK, Optimizer
from tests.helpers import generator

# With more threads the first square root of a process is at times rough in one of them (torch's RMSprop, not ours).
pytestmark = pytest.mark.usefixtures("one_torch_thread")
NUM_MEASURED, NUM = 2 * BLOCK + 1000, 4 * BLOCK + 10  # blocks of several sizes, and some that are not measured


def agent(optimizer: str) -> AgentConfig:
    return AgentConfig(optimizer=optimizer, lr=1e-3, epsilon=1e-5, rmsprop_decay=0.95)


def torch_s_own(optimizer: str, parameters: torch.Tensor) -> torch.optim.Optimizer:
    if optimizer == "adam":
        return torch.optim.Adam([parameters], 1e-3, eps=1e-5)
    return torch.optim.RMSprop([parameters], 1e-3, alpha=0.95, eps=1e-5)


@pytest.mark.parametrize("device", ["cpu", "another"])
@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_steps_are_those_of_torch_and_moves_are_measured(
    optimizer: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "another":  # what runs there, run here
        monkeypatch.setattr(Optimizer, "_step_compiled", Optimizer._step_of_torch)
    ours = torch.randn(NUM, generator=generator(0))
    theirs = torch.nn.Parameter(ours.clone())
    expected, stepping = torch_s_own(optimizer, theirs), Optimizer(ours, agent(optimizer), NUM_MEASURED)
    for step in range(6):
        gradient = torch.randn(NUM, generator=generator(step)) * 10.0**-step
        scale = 1.0 if step % 2 else 0.3
        kept, before = gradient.clone(), ours.clone()
        squared_norm = stepping.step(gradient, scale)
        theirs.grad = gradient * scale
        expected.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(gradient, kept), "Leap still needs it"
        move = (ours - before)[:NUM_MEASURED].double()
        assert squared_norm == pytest.approx(float(move @ move), rel=1e-5)
        assert squared_norm < 0.9 * float((ours - before).double().square().sum())


def test_a_step_is_rounded_as_it_is_written_whatever_the_cpu() -> None:
    """One operation after the other in float32, none of them fused or reordered: so all CPUs agree to the bit. NumPy's,
    since torch's square root is not always the nearest number."""
    parameters = torch.randn(NUM, generator=generator(0))
    stepping = Optimizer(parameters, agent("rmsprop"), NUM_MEASURED)
    expected, squares = parameters.numpy().copy(), np.zeros(NUM, np.float32)
    scale, decay, fresh, rate, epsilon = np.array([0.3, 0.95, 1 - 0.95, 1e-3, 1e-5], np.float32)
    for step in range(4):
        gradient = torch.randn(NUM, generator=generator(step))
        stepping.step(gradient, 0.3)
        scaled = gradient.numpy() * scale
        squares = decay * squares + fresh * scaled * scaled
        expected = expected - rate * scaled / (np.sqrt(squares) + epsilon)
        np.testing.assert_array_equal(parameters.numpy(), expected)


def test_a_gradient_that_is_not_finite_shows_in_the_move() -> None:
    stepping = Optimizer(torch.zeros(NUM), agent("rmsprop"), NUM_MEASURED)
    gradient = torch.zeros(NUM)
    assert stepping.step(gradient) == 0
    gradient[NUM_MEASURED] = float("nan")
    assert stepping.step(gradient) == 0, "what is not measured"
    gradient[NUM_MEASURED - 1] = float("inf")
    assert not stepping.step(gradient) < float("inf")


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_a_state_goes_on_to_the_same_bits(optimizer: str) -> None:
    ours = torch.randn(NUM, generator=generator(0))
    stepping = Optimizer(ours, agent(optimizer), NUM_MEASURED)

    def steps(taking: Optimizer, seeds: range) -> None:
        for seed in seeds:
            taking.step(torch.randn(NUM, generator=generator(seed)), 0.5)

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
