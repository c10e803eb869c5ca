"""The Leap learner: any order of arrival gives the same bits, and nothing is applied twice."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leap_rl.config import MetaConfig
from leap_rl.learner import Checkpoint, MetaLearner, NonFiniteMetaGradientError, merge_statistics
from leap_rl.types import Increment, IncrementKey, LeapRLError, Task

START = {"encoder.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "encoder.bias": torch.tensor([0.5, -0.5])}


def meta_config(**values):
    return MetaConfig(**{"steps": 4, "batch_size": 3, "lr": 0.1, **values})


def increment(slot, sequence, *, last=False, meta_step=0, failed=None, value=None, attempt=0):
    """Values that do not add associatively, so that another order would be seen in the bits."""
    rng = torch.Generator().manual_seed(1000 * meta_step + 100 * slot + sequence)
    gradient = {name: torch.randn(start.shape, generator=rng) * 10.0**sequence for name, start in START.items()}
    if value is not None:
        gradient = {name: torch.full_like(start, value) for name, start in START.items()}
    return Increment(
        IncrementKey(meta_step, slot, sequence, attempt), Task(meta_step, slot, f"game{slot}", slot), gradient,
        path_length=1.0 + slot, energy=2.0, num_moves=5, num_rises=2, last=last, failed=failed,
        statistics={"agent_steps": 10, "frames": 40, "loss": float(sequence)},
    )  # fmt: skip


def batch(meta_step=0, num_slots=3, num_segments=3):
    return [
        increment(slot, sequence, last=sequence == num_segments - 1, meta_step=meta_step)
        for slot, sequence in itertools.product(range(num_slots), range(num_segments))
    ]


def learn(increments, **values):
    learner = MetaLearner(meta_config(**values), Checkpoint(0, START, {}))
    for one in increments:
        learner.receive(one)
    return learner.step()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_sgd_steps_against_the_mean_over_tasks():
    outcome = learn([increment(0, 0, last=True, value=1.0), increment(1, 0, last=True, value=4.0)], batch_size=2)
    for name, value in outcome.checkpoint.initialization.items():
        torch.testing.assert_close(value, START[name] - 0.1 * 2.5)
    assert (outcome.path_length, outcome.energy) == (1.5, 2.0)
    assert outcome.meta_gradient_norm == pytest.approx(2.5 * math.sqrt(6))
    assert outcome.update_norm == pytest.approx(0.25 * math.sqrt(6))


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
def test_meta_optimizers_are_torchs_and_survive_a_checkpoint(optimizer):
    config = meta_config(optimizer=optimizer)
    expected = {name: torch.nn.Parameter(value.clone()) for name, value in START.items()}
    reference = {
        "sgd": lambda: torch.optim.SGD(expected.values(), 0.1),
        "nesterov": lambda: torch.optim.SGD(expected.values(), 0.1, momentum=0.9, nesterov=True),
        "adam": lambda: torch.optim.Adam(expected.values(), 0.1),
    }[optimizer]()
    checkpoint = Checkpoint(0, START, {})
    for meta_step in range(4):
        learner = MetaLearner(config, checkpoint)  # from the checkpoint every time: nothing else is needed
        for one in batch(meta_step):
            learner.receive(one)
        checkpoint = learner.step().checkpoint
        for name, parameter in expected.items():
            gradients = [one.meta_gradient[name] for one in batch(meta_step)]
            sums = [sum(gradients[i : i + 3], torch.zeros_like(parameter)) for i in (0, 3, 6)]
            parameter.grad = sum((total / 3 for total in sums), torch.zeros_like(parameter))
        reference.step()
    assert checkpoint.meta_step == 4
    for name, value in checkpoint.initialization.items():
        torch.testing.assert_close(value, expected[name].detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
def test_a_learner_that_stopped_goes_on_to_the_same_bits(optimizer):
    config = meta_config(optimizer=optimizer)
    steady = MetaLearner(config, Checkpoint(0, START, {}))
    stopped = Checkpoint(0, START, {})
    for meta_step in range(4):
        fresh = MetaLearner(config, stopped)
        for one in batch(meta_step):
            steady.receive(one)
            fresh.receive(one)
        lasting, stopped = steady.step().checkpoint, fresh.step().checkpoint
    assert same(lasting.initialization, stopped.initialization)
    assert same(lasting.optimizer, stopped.optimizer)


@given(order=st.permutations(range(9)), again=st.lists(st.integers(0, 8), max_size=12), data=st.data())
@settings(max_examples=60, deadline=None)
def test_order_duplicates_and_stale_increments_change_nothing(order, again, data):
    increments = batch()
    arriving = [increments[i] for i in order]
    for i in again:  # a second attempt sends the same bits under a later attempt number
        repeated = dataclasses.replace(increments[i], key=dataclasses.replace(increments[i].key, attempt=1))
        arriving.insert(data.draw(st.integers(0, len(arriving))), repeated)
    arriving.insert(data.draw(st.integers(0, len(arriving))), increment(0, 0, meta_step=7, value=math.nan))
    outcome, calm = learn(arriving), learn(increments)
    assert same(outcome.checkpoint.initialization, calm.checkpoint.initialization)
    assert outcome.refused == len(again) + 1
    assert [(t.task.slot, t.num_moves, t.path_length) for t in outcome.tasks] == [
        (slot, 15, 3 * (1.0 + slot)) for slot in range(3)
    ]


def test_another_order_of_summing_would_show():
    """The values above are such that the tests of order can fail."""
    values = [one.meta_gradient["encoder.weight"] for one in batch()[:3]]
    assert not torch.equal((values[0] + values[1]) + values[2], values[0] + (values[1] + values[2]))


def test_failed_tasks_are_left_out_of_the_mean_and_reported():
    good, bad = increment(0, 0, last=True, value=1.0), increment(1, 0, last=True, value=9.0, failed="non-finite loss")
    outcome = learn([bad, good])
    torch.testing.assert_close(outcome.checkpoint.initialization["encoder.bias"], START["encoder.bias"] - 0.1)
    assert [task.failed for task in outcome.tasks] == [None, "non-finite loss"]
    assert outcome.path_length == 1.0


def test_a_meta_batch_without_a_task_that_succeeded_stops_the_run():
    with pytest.raises(LeapRLError, match=r"every task failed \(game0: non-finite loss\)"):
        learn([increment(0, 0, last=True, failed="non-finite loss")])


def test_stepping_before_the_tasks_are_done_is_a_mistake():
    with pytest.raises(RuntimeError, match="game1"):
        learn([increment(0, 0, last=True), increment(1, 1, last=True)])  # segment 0 of slot 1 never came
    with pytest.raises(RuntimeError, match="nothing received"):
        learn([])


def test_a_non_finite_meta_gradient_is_refused_and_the_initialization_kept():
    learner = MetaLearner(meta_config(), Checkpoint(0, START, {}))
    learner.receive(increment(0, 0, last=True, value=math.inf))
    with pytest.raises(NonFiniteMetaGradientError):
        learner.step()
    assert same(learner.initialization(), START)


def test_the_learning_rate_decays_linearly_to_zero():
    learner, rates = MetaLearner(meta_config(lr_decay="linear"), Checkpoint(0, START, {})), []
    for meta_step in range(4):
        learner.receive(increment(0, 0, last=True, meta_step=meta_step))
        rates.append(learner.step().lr)
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_statistics_of_a_task_are_sums_and_means_weighted_by_steps():
    merged = merge_statistics(
        {"agent_steps": 30, "loss": 1.0, "episodes": 2}, {"agent_steps": 10, "loss": 3.0, "episodes": 1}
    )
    assert merged == {"agent_steps": 40, "loss": 1.5, "episodes": 3}
    assert merge_statistics({}, merged) == merged
