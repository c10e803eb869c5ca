"""A meta-step as a pure function: clipping, the mean over tasks, the step of the meta-optimizer."""

import pytest
import torch

from leap_rl.config import MetaConfig
from leap_rl.meta.learner import MetaLearner
from leap_rl.meta.step import clipped, mean_of, meta_step, normalized
from tests.test_learner import OPTIMIZERS, assert_bits_equal, deliver, first, increment, parameters


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_meta_step_is_a_function_of_what_it_is_given(optimizer):
    """It leaves that alone, and is the learner's, to the bit."""
    config = MetaConfig(steps=5, batch_size=2, lr=0.5, optimizer=optimizer, max_task_norm=2.0)
    learner, totals = MetaLearner(config, first()), [parameters((3, 0), 4), parameters((0, 0.5), 1)]
    initialization, state = first().initialization, {}
    for number in range(2):
        before = {name: value.clone() for name, value in (initialization | state).items()}
        made = meta_step(initialization, state, totals, config, number)
        assert_bits_equal(initialization | state, before)
        assert_bits_equal(totals[0], parameters((3, 0), 4))
        initialization, state = made.initialization, made.optimizer
        deliver(
            learner, *(increment(s, a, b, meta_step=number) for s, (a, b) in enumerate([((3, 0), 4), ((0, 0.5), 1)]))
        )
        learner.step()
        assert_bits_equal(learner.checkpoint.initialization, initialization)
        assert_bits_equal(learner.checkpoint.optimizer, state)


def test_a_meta_gradient_is_clipped_to_a_length():
    total = parameters((3, 0), 4)
    assert_bits_equal(clipped(total, 5.0, 2.5), parameters((1.5, 0), 2))
    assert clipped(total, 5.0, 5.0) is total
    assert clipped(total, 5.0, None) is total
    assert_bits_equal(normalized(parameters((0, 0), 0), 0.0), parameters((0, 0), 0))


def test_heads_are_averaged_over_the_tasks_that_have_them():
    shared, theirs = {"a": torch.ones(1)}, {"a": torch.ones(1), "heads/pong/b": torch.ones(1)}
    shapes = theirs | {"heads/qbert/b": torch.ones(1)}
    mean = mean_of([shared, theirs], shapes)
    assert {name: value.item() for name, value in mean.items()} == {"a": 1, "heads/pong/b": 1, "heads/qbert/b": 0}
