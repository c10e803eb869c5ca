"""The Leap learner: increments in, in any order and more than once; the next shared initialization out."""

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leap_rl.config import MetaConfig
from leap_rl.meta.collector import Collector
from leap_rl.meta.learner import MetaLearner
from leap_rl.meta.ledger import Ledger, added
from leap_rl.meta.probes import mean_cosine
from leap_rl.meta.step import NonFiniteMetaGradientError
from leap_rl.processes import process_type
from leap_rl.tensors import distance
from leap_rl.types import Checkpoint, LeapRLError, Parcel, PathSums, Task

OPTIMIZERS = ["sgd", "nesterov", "adam"]
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure


def parameters(a, b):
    return {"a": torch.tensor(a, dtype=torch.float32), "b": torch.tensor(b, dtype=torch.float32)}


def first():
    return Checkpoint(0, parameters((1, 2), 3), {})


def make_learner(checkpoint=None, min_tasks=1, **meta):
    meta = {"steps": 5, "batch_size": 2, "lr": 0.5} | meta
    return MetaLearner(MetaConfig(**meta), checkpoint or first(), min_tasks)


def task(slot, meta_step=0):
    return Task(meta_step, slot, f"game_{slot}", seed=slot)


def increment(slot, a=(0, 0), b=0, *, meta_step=0, sequence=0, last=True, attempt=0, **statistics):
    path = PathSums(2.0 + slot, 4.0 + slot, moves=3, rises=1)
    return Parcel(task(slot, meta_step), sequence, attempt, parameters(a, b), path, last, statistics)


def deliver(learner, *increments):
    return [learner.receive(increment) for increment in increments]


def assert_bits_equal(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value), name


# One meta-step


def test_sgd_steps_against_the_mean_over_the_tasks():
    """a: (1, 2) − 0.5 · ((2, 0) + (4, 1)) / 2; task 1 comes in two segments."""
    learner = make_learner()
    deliver(learner, increment(0, (2, 0), 8), increment(1, (3, 3), 0, last=False), increment(1, (1, -2), 0, sequence=1))
    outcome = learner.step()
    assert_bits_equal(learner.checkpoint.initialization, parameters((-0.5, 1.75), 1))
    assert_bits_equal(outcome.checkpoint.initialization, learner.checkpoint.initialization)
    assert (outcome.meta_step, learner.checkpoint.meta_step, outcome.checkpoint.meta_step) == (0, 1, 1)
    norm = math.sqrt(3**2 + 0.5**2 + 4**2)
    assert outcome.meta_gradient_norm == pytest.approx(norm)
    assert outcome.update_norm == pytest.approx(0.5 * norm)
    assert outcome.lr == 0.5
    assert (outcome.duplicates, outcome.stale) == (0, 0)


def test_a_task_whose_meta_gradient_is_too_long_is_scaled_down_before_the_mean():
    """Norms 5 (over a and b), 0.5, of which the first is scaled to 2: a: 0.4 · (3, 0) and (0, 0.5); b: 0.4 · 4."""
    learner = make_learner(max_task_norm=2)
    deliver(learner, increment(0, (3, 0), 0, last=False), increment(0, (0, 0), 4, sequence=1), increment(1, (0, 0.5)))
    outcome = learner.step()
    assert outcome.task_norms == (5, 0.5)
    assert outcome.meta_gradient_norm == pytest.approx(math.sqrt(0.6**2 + 0.25**2 + 0.8**2))
    expected = {n: first().initialization[n] - 0.5 * value for n, value in parameters((0.6, 0.25), 0.8).items()}
    for name, value in learner.checkpoint.initialization.items():
        torch.testing.assert_close(value, expected[name])


def test_normalized_tasks_weigh_alike_in_the_mean_and_a_zero_stays_zero():
    """(3, 0; 4) has norm 5, (0, 0.5; 0) has 0.5; the third task did not move at all."""
    learner = make_learner(normalize_tasks=True, batch_size=3)
    deliver(learner, increment(0, (3, 0), 4), increment(1, (0, 0.5)), increment(2, (0, 0)))
    learner.step()
    mean = parameters((0.6 / 3, 1 / 3), 0.8 / 3)
    expected = {name: first().initialization[name] - 0.5 * value for name, value in mean.items()}
    for name, value in learner.checkpoint.initialization.items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("limit", [None, 5.0])
def test_a_task_at_the_limit_is_left_to_the_last_bit(limit):
    learner, bounded = make_learner(), make_learner(max_task_norm=limit)
    for each in (learner, bounded):
        deliver(each, increment(0, (3, 0), 4), increment(1, (1 / 3, 0.1)))
        each.step()
    assert_bits_equal(bounded.checkpoint.initialization, learner.checkpoint.initialization)


def test_a_length_beyond_float32_is_scaled_down_and_what_is_not_finite_still_refused():
    learner = make_learner(max_task_norm=1)
    deliver(learner, increment(0, (3e38, 3e38)), increment(1))
    assert learner.step().meta_gradient_norm == pytest.approx(0.5)
    deliver(learner, increment(0, (math.inf, 0), meta_step=1), increment(1, meta_step=1))
    with pytest.raises(NonFiniteMetaGradientError):
        learner.step()


def test_path_lengths_and_energies_are_summed_over_segments_and_averaged_over_tasks():
    learner = make_learner()
    deliver(learner, increment(1), increment(0, last=False), increment(0, sequence=1))
    outcome = learner.step()
    assert (outcome.path_length, outcome.energy) == ((2 * 2.0 + 3.0) / 2, (2 * 4.0 + 5.0) / 2)
    assert [(task.task.name, task.path.moves, task.path.rises) for task in outcome.tasks] == [
        ("game_0", 6, 2),
        ("game_1", 3, 1),
    ]


def test_a_collector_has_its_batch_when_all_that_it_waits_for_is_done():
    """An evaluation; one of its tasks is dropped."""
    collector = Collector([(0, 0), (0, 7), (3, 1)])
    deliver(collector, increment(0), increment(1, meta_step=3))
    assert collector.batch() is None
    collector.drop(task(7), "raised")
    assert collector.batch() == [(0, 0), (0, 7), (3, 1)]
    assert collector.receive(increment(1)) is False, "nobody waits for it"
    assert Collector([]).batch() == [], "nothing was left to do"


def test_a_meta_step_says_how_far_its_games_pull_the_same_way():
    learner = make_learner(batch_size=3)
    deliver(learner, increment(0, (3, 0)), increment(1, (4, 4)), increment(2, (0, -1)))
    root = 1 / math.sqrt(2)
    found = learner.step().cosines
    assert found["games"] == ["game_0", "game_1", "game_2"]
    expected = [None, root, 0.0, root, None, -root, 0.0, -root, None]
    assert [cosine for row in found["matrix"] for cosine in row] == pytest.approx(expected)
    assert mean_cosine(found) == pytest.approx(0.0, abs=1e-7)


def test_a_dropped_task_is_left_out_of_the_mean_and_named():
    learner = make_learner(batch_size=3)
    deliver(learner, increment(0, (2, 0)), increment(1, (999, 0), last=False), increment(2, (4, 0)))
    learner.drop(task(1), "non-finite loss")
    assert learner.receive(increment(1, (9, 9), sequence=1)) is False, "nobody waits for it any more"
    outcome = learner.step()
    assert learner.checkpoint.initialization["a"].tolist() == [1 - 0.5 * 3, 2]
    assert outcome.dropped == ((task(1), "non-finite loss"),)
    assert [report.task.slot for report in outcome.tasks] == [0, 2]
    assert (outcome.path_length, outcome.energy) == (3.0, 5.0)  # of tasks 0 and 2


def test_a_task_may_be_dropped_before_anything_of_it_came():
    learner = make_learner()
    learner.receive(increment(1, (2, 0)))
    learner.drop(task(0), "raised")
    learner.step()
    assert learner.checkpoint.initialization["a"].tolist() == [0, 2]


@pytest.mark.parametrize(("min_tasks", "dropped"), [(1, 3), (2, 2), (3, 1)])
def test_a_meta_step_with_too_few_tasks_left_is_an_error_that_names_the_others(min_tasks, dropped):
    learner = make_learner(batch_size=3, min_tasks=min_tasks)
    for slot in range(3):
        if slot < dropped:
            learner.drop(task(slot), "non-finite loss")
        else:
            learner.receive(increment(slot, (1, 1)))
    with pytest.raises(LeapRLError, match=rf"faults.min_tasks = {min_tasks} .*\(game_0: non-finite loss"):
        learner.step()
    assert_bits_equal(learner.checkpoint.initialization, first().initialization)


@pytest.mark.parametrize(
    "received",
    [
        [],
        [increment(0), increment(1, last=False)],
        [increment(0), increment(1, sequence=1)],  # the last segment, but not the one before it
        [increment(0)],  # of two tasks
    ],
)
def test_stepping_before_the_meta_batch_is_done_is_an_error(received):
    learner = make_learner()
    deliver(learner, *received)
    with pytest.raises(RuntimeError, match="before 2 tasks are done"):
        learner.step()
    assert learner.checkpoint.meta_step == 0
    assert_bits_equal(learner.checkpoint.initialization, first().initialization)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "increments",
    [
        [increment(0, (math.nan, 0)), increment(1)],
        [increment(0), increment(1, b=-math.inf)],
        [increment(0), increment(1, b=3e38, last=False), increment(1, b=3e38, sequence=1)],  # overflows when summed
    ],
)
def test_a_meta_gradient_that_is_not_finite_is_refused_and_the_initialization_kept(increments, optimizer):
    learner = make_learner(optimizer=optimizer)
    deliver(learner, *increments)
    with pytest.raises(NonFiniteMetaGradientError, match="meta-step 0"):
        learner.step()
    assert learner.checkpoint.meta_step == 0
    assert_bits_equal(learner.checkpoint.initialization, first().initialization)


# Meta-optimizers


@pytest.mark.parametrize("lr_decay", ["constant", "linear"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_meta_optimizers_are_those_of_torch(optimizer, lr_decay):
    ours = {name: torch.nn.Parameter(value) for name, value in first().initialization.items()}
    direct = {
        "sgd": lambda: torch.optim.SGD(ours.values(), 0.3),
        "nesterov": lambda: torch.optim.SGD(ours.values(), 0.3, momentum=0.8, nesterov=True),
        "adam": lambda: torch.optim.Adam(ours.values(), 0.3),
    }[optimizer]()
    learner = make_learner(batch_size=1, lr=0.3, optimizer=optimizer, momentum=0.8, lr_decay=lr_decay)
    for meta_step in range(5):
        a, b = (0.7 - meta_step, 1 / 3), -0.1 * meta_step
        for group in direct.param_groups:
            group["lr"] = 0.3 * (1 - meta_step / 5) if lr_decay == "linear" else 0.3
        ours["a"].grad, ours["b"].grad = parameters(a, b).values()
        direct.step()
        learner.receive(increment(0, a, b, meta_step=meta_step))
        learner.step()
        assert_bits_equal(learner.checkpoint.initialization, {name: value.data for name, value in ours.items()})


def test_the_learning_rate_decays_linearly_towards_zero_over_the_run():
    learner, rates = make_learner(steps=4, batch_size=1, lr=1.0, lr_decay="linear"), []
    for meta_step in range(4):
        learner.receive(increment(0, (1, 0), meta_step=meta_step))
        rates.append(learner.step().lr)
    assert rates == [1, 0.75, 0.5, 0.25]
    assert learner.checkpoint.initialization["a"][0] == 1 - sum(rates)


# What it keeps, and what it is given


def test_overwriting_what_was_given_or_returned_changes_nothing():
    checkpoint = first()
    learner = make_learner(checkpoint, batch_size=1, optimizer="nesterov")
    one, two = increment(0, (2, 0), last=False), increment(0, (2, 0), sequence=1)
    deliver(learner, one, two)
    for tensors in (checkpoint.initialization, one.packed):
        for value in tensors.values():
            value.fill_(math.nan)
    outcome = learner.step()
    assert two.packed["a"].tolist() == [2, 0]
    assert outcome.checkpoint.initialization["a"].tolist() == pytest.approx([1 - 0.5 * 4 * 1.9, 2])
    for value in outcome.checkpoint.initialization.values():
        value.fill_(math.nan)
    learner.receive(increment(0, (0, 1), meta_step=1))
    assert math.isfinite(learner.step().checkpoint.initialization["a"].sum())


# Checkpoints


def run(learner, upto):
    """Meta-steps to ``upto``: the checkpoint after each."""
    checkpoints = []
    while learner.checkpoint.meta_step < upto:
        deliver(learner, *one_meta_batch(learner.checkpoint.meta_step))
        checkpoints.append(learner.step().checkpoint)
    return checkpoints


@pytest.mark.parametrize("lr_decay", ["constant", "linear"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_continues_from_any_checkpoint_ends_in_the_same_bits(optimizer, lr_decay):
    meta = {"steps": 5, "batch_size": 5, "optimizer": optimizer, "lr_decay": lr_decay}
    whole = [first(), *run(make_learner(**meta), upto=5)]
    for checkpoint in whole:
        resumed = make_learner(checkpoint, **meta)
        assert_bits_equal(resumed.checkpoint.initialization, checkpoint.initialization)
        for ours, theirs in zip(run(resumed, upto=5), whole[checkpoint.meta_step + 1 :], strict=True):
            assert ours.meta_step == theirs.meta_step
            assert_bits_equal(ours.initialization, theirs.initialization)
            assert_bits_equal(ours.optimizer, theirs.optimizer)


@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
def test_the_state_of_the_optimizer_is_needed(optimizer):
    """Otherwise the test above would hold for checkpoints without it."""
    meta = {"batch_size": 5, "optimizer": optimizer}
    learner = make_learner(**meta)
    (checkpoint,) = run(learner, upto=1)
    forgetful = make_learner(Checkpoint(1, checkpoint.initialization, {}), **meta)
    assert not torch.equal(run(learner, 2)[0].initialization["a"], run(forgetful, 2)[0].initialization["a"])


# Statistics


def test_statistics_of_segments_add():
    before = {"agent_steps": 10, "episodes": 1, "loss_sum": 1.5}
    after = {"agent_steps": 30, "episodes": 0, "loss_sum": 3.0, "zero_shot_episodes": 4}
    expected = {"agent_steps": 40, "episodes": 1, "loss_sum": 4.5, "zero_shot_episodes": 4}
    assert added(before, after) == expected
    assert before == {"agent_steps": 10, "episodes": 1, "loss_sum": 1.5}


@untimed
@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(-10, 10)), min_size=1))
def test_a_mean_of_sums_is_that_over_all_gradient_steps(segments):
    merged = {}
    for updates, loss in segments:
        merged = added(merged, {"updates": updates, "loss_sum": updates * loss})
    total = sum(updates for updates, _ in segments)
    assert merged["updates"] == total
    mean = math.fsum(updates * loss for updates, loss in segments) / total
    assert merged["loss_sum"] / merged["updates"] == pytest.approx(mean, rel=1e-9, abs=1e-9)


def test_means_are_shown_as_quotients_and_over_nothing_as_none():
    sums = {
        "episodes": 2, "score_sum": 5.0, "episode_length_sum": 30, "updates": 4, "agent_steps": 80, "loss_sum": 2.0,
        "policy_loss_sum": 1.0, "value_loss_sum": 3.0, "entropy_sum": 6.0, "gradient_norm_sum": 8.0,
        "clipped_reward_sum": 20.0,
    }  # fmt: skip
    measures = process_type("a2c").measures
    assert measures.shown(sums) == {
        "episodes": 2, "episodic_return": 2.5, "episode_length": 15.0, "loss": 0.5, "policy_loss": 0.25,
        "value_loss": 0.75, "entropy": 1.5, "gradient_norm": 2.0, "clipped_reward": 0.25,
    }  # fmt: skip
    none = measures.shown(sums | {"episodes": 0, "updates": 0})
    assert (none["episodic_return"], none["episode_length"], none["loss"], none["clipped_reward"]) == (
        None, None, None, 0.25,
    )  # fmt: skip


def test_the_distance_is_over_all_parameters():
    assert distance(parameters((1, 2), 3), parameters((1, 5), 7)) == 5


def test_the_order_of_names_in_a_checkpoint_changes_nothing():
    """A safetensors file gives its tensors back in another order: norms and optimizer state go by name."""
    start = first()
    turned = Checkpoint(start.meta_step, dict(reversed(start.initialization.items())), start.optimizer)
    assert list(turned.initialization) != list(start.initialization)
    orders = [list(make_learner(checkpoint).checkpoint.initialization) for checkpoint in (start, turned)]
    assert orders == [sorted(start.initialization)] * 2


def test_statistics_that_were_counted_are_whole_numbers_again_in_a_ledger_that_was_saved():
    ledger = Ledger(task(1), 0)
    ledger.receive(increment(1, (3, 0), 4, agent_steps=5, loss=0.5, increment_bytes=7))
    text = ledger.header()
    again = Ledger.from_header(text, ledger.total).header()
    assert json.loads(again) == json.loads(text)
    assert '"increment_bytes": 7,' in again or '"increment_bytes": 7}' in again, "as rows of metrics.jsonl have it"


NUM_SEGMENTS = (3, 1, 4, 2, 2)  # of the task in slot 0, 1, …


def one_meta_batch(meta_step):
    """Numbers of many magnitudes: in another order their float32 sums round differently."""
    generator = torch.Generator().manual_seed(meta_step)

    def draw(*size):
        scale = 10 ** torch.empty(size).uniform_(-3, 3, generator=generator)
        return (torch.randn(size, generator=generator) * scale).tolist()

    return [
        increment(slot, draw(2), draw(), meta_step=meta_step, sequence=sequence, last=sequence == num_segments - 1,
                  agent_steps=10 + 7 * sequence, loss=draw())
        for slot, num_segments in enumerate(NUM_SEGMENTS)
        for sequence in range(num_segments)
    ]  # fmt: skip
