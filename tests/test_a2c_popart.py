"""PopArt: values on one scale in every game, held to a transcription of the papers' head of normalized outputs."""

import pytest
import torch

from leap_rl.processes import initial_parameters, start_process
from leap_rl.processes.a2c.optimizer import Optimizer
from leap_rl.processes.a2c.popart import DECAY, PopArt
from leap_rl.processes.agents import AgentConfig
from leap_rl.types import Task
from tests.helpers import generator, tiny_config

FEATURES = 7


class NormalizedHead:
    """The head n of van Hasselt et al. 2016, algorithm 1: v = σ n + μ, rescaled whenever σ or μ change.

    Slow and in float64; it shares nothing with what it checks.
    """

    def __init__(self, weight, bias, lr, decay, epsilon):
        self.weight, self.bias = weight.double().clone(), bias.double().clone()
        self.mean, self.square, self.lr, self.decay, self.epsilon = 0.0, 1.0, lr, decay, epsilon
        self.squares = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]

    @property
    def deviation(self):
        return max(self.square - self.mean**2, 1e-4) ** 0.5

    def values(self, features):
        return self.deviation * (features.double() @ self.weight + self.bias) + self.mean

    def observe(self, returns):
        before, mean = self.deviation, self.mean
        self.mean += (1 - DECAY) * (float(returns.double().mean()) - self.mean)
        self.square += (1 - DECAY) * (float((returns.double() ** 2).mean()) - self.square)
        self.weight *= before / self.deviation
        self.bias = (before * self.bias + mean - self.mean) / self.deviation

    def step(self, features, returns):
        """One RMSprop step on ½-less mean squared error of normalized values."""
        normalized = (returns.double() - self.mean) / self.deviation
        error = features.double() @ self.weight + self.bias - normalized
        gradients = [2 * features.double().T @ error / len(error), 2 * error.mean()]
        for parameter, squares, gradient in zip([self.weight, self.bias], self.squares, gradients, strict=True):
            squares.mul_(self.decay).add_((1 - self.decay) * gradient**2)
            parameter -= self.lr * gradient / (squares.sqrt() + self.epsilon)


def test_it_is_the_papers_head_of_normalized_outputs_step_by_step():
    rng = generator(4)
    agent = AgentConfig(lr=0.01, value_scale="popart", rmsprop_decay=0.9)
    head = torch.randn(FEATURES + 1, generator=rng)
    theirs = NormalizedHead(head[:-1], head[-1:].squeeze(), agent.lr, agent.rmsprop_decay, agent.epsilon)
    theirs.bias = head[-1].double().clone()
    parameters = torch.cat([torch.ones(3), head])  # others come first, and take ordinary steps
    head, plain = parameters[3:], torch.ones(3)
    ours, ordinary = PopArt(Optimizer(parameters, agent), FEATURES + 1), Optimizer(plain, agent)
    for i in range(60):
        features = torch.randn(16, FEATURES, generator=rng)
        returns = 30 * torch.randn(16, generator=rng) + 5 * i  # the scale grows, and the mean wanders
        before = theirs.values(features)
        ours.observe(returns)
        theirs.observe(returns)
        torch.testing.assert_close(theirs.values(features), before, rtol=0, atol=1e-6)  # theirs keeps its outputs
        error = features @ head[:-1] + head[-1] - returns
        in_units = error / ours.deviation
        gradient = torch.cat([2 * features.T @ in_units / len(error), 2 * in_units.mean()[None]]) / ours.deviation
        old, whole = parameters.clone(), torch.cat([torch.full((3,), 0.1 * i), gradient])
        norm = (0.03 * i * i + (ours.deviation * gradient).square().sum().item()) ** 0.5
        assert ours.norm(whole) == pytest.approx(norm, rel=1e-5)
        moved = ours.step(whole, 1.0)
        ordinary.step(whole[:3], 1.0)
        theirs.step(features, returns)
        assert torch.equal(whole[3:], gradient), "Leap still needs it"
        assert torch.equal(parameters[:3], plain)
        torch.testing.assert_close(moved, parameters - old, rtol=1e-3, atol=1e-6)
        values = (features @ head[:-1] + head[-1]).double()
        torch.testing.assert_close(values, theirs.values(features), rtol=1e-4, atol=1e-4)


def test_a_change_of_the_statistics_moves_no_parameter():
    head = torch.randn(FEATURES + 1, generator=generator(1))
    before = head.clone()
    popart = PopArt(Optimizer(head, AgentConfig(lr=0.01)), FEATURES + 1)
    popart.observe(torch.full((5, 4), 1000.0))
    assert popart.deviation > 10
    assert torch.equal(head, before)


def test_equal_returns_do_not_scale_noise_up_without_end():
    popart = PopArt(Optimizer(torch.zeros(3), AgentConfig(lr=0.01)), 3)
    for _ in range(5000):
        popart.observe(torch.full((5, 4), 2.0))
    assert popart.deviation == pytest.approx(1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("parameters", ["encoder", "all"])
def test_rewards_a_thousand_times_as_large_leave_the_loss_of_one_size(parameters, monkeypatch):
    losses, norms = {}, {}
    for factor in (1, 1000):
        changes = {"agent.reward_clip": None, "agent.value_scale": "popart", "agent.value_gain": 0.0,
                   "meta.parameters": parameters, "task.agent_steps": 2000, "agent.num_envs": 8}  # fmt: skip
        config = tiny_config(**{**changes, "tasks.games": ["space_invaders"], "meta.batch_size": 1})
        process = start_process(config, Task(0, 0, "space_invaders", 3), initial_parameters(config, 0))
        step = process.actor.envs.step

        def scaled(actions, step=step, factor=factor):
            result = step(actions)
            return result._replace(rewards=result.rewards * factor)

        process.actor.envs.step = scaled
        increments = list(process.walk())
        losses[factor] = increments[-1].statistics["value_loss_sum"] / increments[-1].statistics["updates"]
        norms[factor] = increments[-1].path.length
        assert process.optimizer.deviation > 0.3 * factor
    assert losses[1000] < 20 * losses[1]
    assert norms[1000] < 1000 * norms[1]
