"""How a task starts: the optimizer's running squares; and all of it in a state."""

import pytest
import torch

from leap_rl.processes import continue_process, initial_parameters, start_process
from leap_rl.types import Task
from tests.helpers import another_process, tiny_config

TASK = Task(0, 0, "pong", seed=5)
EVERYTHING = {
    "agent.value_scale": "popart", "agent.value_gain": 0.0, "agent.layer_norm": True,
    "agent.rmsprop_start": "corrected",
    "meta.parameters": "all", "task.agent_steps": 300, "stream.segment_updates": 5,
}  # fmt: skip


def start(**changes):
    config = tiny_config(**changes)
    return start_process(config, TASK, initial_parameters(config, 0))


def finish(config, state):
    process = continue_process(config, TASK, state)
    increments = list(process.walk())
    return [increment.meta_gradient for increment in increments], dict(process.network.state_dict())


@pytest.mark.slow
def test_a_process_with_every_key_goes_on_in_another_one_to_the_same_bits():
    process = start(**EVERYTHING)
    walk, states, increments = process.walk(), [], []
    for increment in walk:
        increments.append(increment.meta_gradient)
        states.append(process.state())
    with another_process() as elsewhere:
        for done, state in enumerate(states[:-1], start=1):
            theirs, parameters = elsewhere.submit(finish, process.config, state).result()
            assert len(theirs) == len(increments) - done
            for ours, other in zip(increments[done:], theirs, strict=True):
                assert all(torch.equal(value, other[name]) for name, value in ours.items())
            assert all(torch.equal(value, parameters[name]) for name, value in process.network.state_dict().items())


def test_the_first_move_is_small_where_squares_start_at_one_and_of_the_rate_where_they_are_corrected():
    moves = {}
    for kind in ("zeros", "ones", "corrected"):
        process = start(**{"agent.rmsprop_start": kind, "agent.epsilon": 1e-8})
        before = process.parameters.clone()
        process.update()
        moves[kind] = (process.parameters - before).abs()
    rate = 7e-4
    assert float(moves["corrected"].max()) == pytest.approx(rate, rel=1e-3)  # g / √g²
    assert float(moves["zeros"].max()) == pytest.approx(10 * rate, rel=1e-3)  # g / √(0.01 g²)
    assert float(moves["ones"].max()) <= 0.5 * rate + 1e-6  # the gradient's norm is at most 0.5
