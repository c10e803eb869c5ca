"""The Leap learner: increments in, in any order and more than once; the next shared initialization out."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leap_rl.config import MetaConfig
from leap_rl.learner import Checkpoint, MetaLearner, NonFiniteMetaGradientError, distance, due
from leap_rl.ledger import SUMMED_STATISTICS, Ledger, merge_statistics
from leap_rl.probes import mean_cosine
from leap_rl.types import Increment, IncrementKey, LeapRLError, Task

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
    return Increment(
        key=IncrementKey(meta_step, slot, sequence, attempt),
        task=task(slot, meta_step),
        meta_gradient=parameters(a, b),
        path_length=2.0 + slot,
        energy=4.0 + slot,
        num_moves=3,
        num_rises=1,
        last=last,
        statistics=statistics,
    )


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
    assert_bits_equal(learner.initialization(), parameters((-0.5, 1.75), 1))
    assert_bits_equal(outcome.checkpoint.initialization, learner.initialization())
    assert (outcome.meta_step, learner.meta_step, outcome.checkpoint.meta_step) == (0, 1, 1)
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
    for name, value in learner.initialization().items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("limit", [None, 5.0])
def test_a_task_at_the_limit_is_left_to_the_last_bit(limit):
    learner, bounded = make_learner(), make_learner(max_task_norm=limit)
    for each in (learner, bounded):
        deliver(each, increment(0, (3, 0), 4), increment(1, (1 / 3, 0.1)))
        each.step()
    assert_bits_equal(bounded.initialization(), learner.initialization())


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
    assert [(task.task.name, task.num_moves, task.num_rises) for task in outcome.tasks] == [
        ("game_0", 6, 2),
        ("game_1", 3, 1),
    ]


def test_after_the_last_meta_step_it_is_ready_when_all_that_is_due_is_done():
    """An evaluation: more tasks than a batch has, of places that were never drawn; one of them is dropped."""
    places = ((0, 0), (0, 7), (3, 1))
    learner = make_learner(Checkpoint(5, parameters((1, 2), 3), {}, places))
    assert learner.batch() is None
    deliver(learner, increment(0), increment(1, meta_step=3))
    assert learner.batch() is None, "a batch's worth, but not all"
    learner.drop(task(7), "raised")
    assert learner.batch() is not None
    assert learner.receive(increment(1)) is False, "not due"
    assert make_learner(Checkpoint(5, parameters((1, 2), 3), {})).batch() == [], "nothing was left to do"


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
    assert learner.initialization()["a"].tolist() == [1 - 0.5 * 3, 2]
    assert outcome.dropped == ((task(1), "non-finite loss"),)
    assert [report.task.slot for report in outcome.tasks] == [0, 2]
    assert (outcome.path_length, outcome.energy) == (3.0, 5.0)  # of tasks 0 and 2


def test_a_task_may_be_dropped_before_anything_of_it_came():
    learner = make_learner()
    learner.receive(increment(1, (2, 0)))
    learner.drop(task(0), "raised")
    learner.step()
    assert learner.initialization()["a"].tolist() == [0, 2]


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
    assert_bits_equal(learner.initialization(), first().initialization)


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
    assert learner.meta_step == 0
    assert_bits_equal(learner.initialization(), first().initialization)


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
    assert learner.meta_step == 0
    assert_bits_equal(learner.initialization(), first().initialization)


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
        assert_bits_equal(learner.initialization(), {name: value.data for name, value in ours.items()})


def test_the_learning_rate_decays_linearly_towards_zero_over_the_run():
    learner, rates = make_learner(steps=4, batch_size=1, lr=1.0, lr_decay="linear"), []
    for meta_step in range(4):
        learner.receive(increment(0, (1, 0), meta_step=meta_step))
        rates.append(learner.step().lr)
    assert rates == [1, 0.75, 0.5, 0.25]
    assert learner.initialization()["a"][0] == 1 - sum(rates)


# Arrival

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


def test_the_order_of_adding_changes_the_bits():
    """Otherwise the next test would hold for a learner that adds as increments arrive."""
    batch = one_meta_batch(1)
    segments = [increment.meta_gradient["a"] for increment in batch if increment.key.slot == 2]
    sums = {tuple(sum(order).tolist()) for order in itertools.permutations(segments)}
    assert len(sums) > 1
    totals = [sum(i.meta_gradient["a"] for i in batch if i.key.slot == slot) / 5 for slot in range(5)]
    assert len({tuple(sum(order).tolist()) for order in itertools.permutations(totals)}) > 1


@untimed
@given(data=st.data())
def test_increments_may_come_twice_late_and_in_any_order(data):
    batch = one_meta_batch(1)
    foreign = [*one_meta_batch(0), *one_meta_batch(2)]  # of meta-steps that are over, or not yet there
    extra = data.draw(st.lists(st.sampled_from([*batch, *foreign]), max_size=12))
    expected = make_learner(Checkpoint(1, first().initialization, {}), batch_size=5)
    deliver(expected, *batch)

    learner = make_learner(Checkpoint(1, first().initialization, {}), batch_size=5)
    arrivals = data.draw(st.permutations([*batch, *extra]))
    wanted = deliver(learner, *arrivals)
    assert wanted == [arrival.key.meta_step == 1 for arrival in arrivals]

    ours, theirs = learner.step(), expected.step()
    assert (ours.stale, ours.duplicates) == (wanted.count(False), len(arrivals) - len(batch) - wanted.count(False))
    assert_bits_equal(ours.checkpoint.initialization, theirs.checkpoint.initialization)
    assert ours.tasks == theirs.tasks
    assert (ours.path_length, ours.energy, ours.meta_gradient_norm) == (
        theirs.path_length, theirs.energy, theirs.meta_gradient_norm,
    )  # fmt: skip


@untimed
@given(data=st.data())
def test_any_number_of_attempts_of_which_old_ones_live_on_give_the_same_bits(data):
    """Workers are declared lost, others take their tasks up from what was saved, and what was declared lost goes
    on sending. The learner may be lost as well: whoever takes a task up brings its ledger."""
    batch = one_meta_batch(1)
    expected = make_learner(Checkpoint(1, first().initialization, {}), batch_size=5)
    deliver(expected, *batch)

    learner = make_learner(Checkpoint(1, first().initialization, {}), batch_size=5)
    saved = {slot: Ledger(task(slot, 1), version=1) for slot in range(5)}  # durable: newest segment of each task
    attempts, zombies, applied, stale = dict.fromkeys(range(5), -1), [], set(), 0

    def take_up(slot):
        attempts[slot] += 1
        ledger = saved[slot].copy()
        ledger.attempt = attempts[slot]
        assert learner.adopt(ledger)
        return ledger

    running = {slot: take_up(slot) for slot in range(5)}
    while learner.batch() is None:
        slot = data.draw(st.sampled_from([slot for slot in range(5) if not running[slot].done]), label="slot")
        event = data.draw(st.sampled_from(["segment", "segment", "worker", "late", "learner"]), label="event")
        if event == "segment":
            ledger = running[slot]
            [fresh] = [one for one in batch if (one.key.slot, one.key.sequence) == (slot, ledger.next_sequence)]
            fresh = dataclasses.replace(fresh, key=dataclasses.replace(fresh.key, attempt=ledger.attempt))
            assert ledger.receive(fresh)
            saved[slot] = ledger.copy()
            zombies.append(fresh)
            assert learner.receive(fresh)
            applied.add((slot, fresh.key.sequence))
        elif event == "worker":
            running[slot] = take_up(slot)
        elif event == "late" and zombies:
            late = data.draw(st.sampled_from(zombies), label="late")
            accepted = learner.receive(late)
            assert accepted == (late.key.attempt >= attempts[late.key.slot])
            stale += not accepted
        elif event == "learner":
            learner, stale = make_learner(Checkpoint(1, first().initialization, {}), batch_size=5), 0
            running = {each: take_up(each) for each in range(5)}
    ours, theirs = learner.step(), expected.step()
    assert len(applied) == len(batch)
    assert ours.stale == stale
    assert_bits_equal(ours.checkpoint.initialization, theirs.checkpoint.initialization)
    assert [dataclasses.replace(report, attempt=0) for report in ours.tasks] == list(theirs.tasks)


def test_a_stale_attempt_is_refused_and_counted_and_told_to_stop():
    learner = make_learner()
    assert learner.receive(increment(0, last=False))
    assert learner.adopt(Ledger(task(0), version=0, attempt=1))
    assert learner.receive(increment(0, sequence=1)) is False
    assert learner.adopt(Ledger(task(0), version=0, attempt=0)) is False
    assert learner.receive(increment(0, sequence=1, attempt=1))
    learner.receive(increment(1))
    assert learner.step().stale == 2


def test_a_ledger_that_knows_more_is_taken_over_and_one_that_knows_less_is_not():
    ahead, behind = Ledger(task(0), version=0, attempt=1), Ledger(task(0), version=0, attempt=2)
    for sequence in range(2):
        ahead.receive(increment(0, (1, 0), sequence=sequence, last=False))
    behind.receive(increment(0, (1, 0), last=False))
    learner = make_learner(batch_size=1)
    assert learner.receive(increment(0, (1, 0), last=False))
    assert learner.adopt(ahead)
    assert learner.adopt(behind)
    assert learner.receive(increment(0, (1, 0), sequence=1, last=False, attempt=2))  # repeated by the one behind
    assert learner.receive(increment(0, (1, 0), sequence=2, attempt=2))
    outcome = learner.step()
    assert learner.initialization()["a"].tolist() == [1 - 0.5 * 3, 2]
    assert (outcome.duplicates, outcome.stale) == (1, 0)


def test_what_is_adopted_is_a_copy():
    theirs = Ledger(task(0), version=0)
    theirs.receive(increment(0, (1, 0), last=False))
    learner = make_learner(batch_size=1)
    learner.adopt(theirs)
    theirs.receive(increment(0, (50, 0), sequence=1))
    learner.receive(increment(0, (1, 0), sequence=1))
    learner.step()
    assert learner.initialization()["a"].tolist() == [1 - 0.5 * 2, 2]


def test_duplicates_are_counted_by_meta_step():
    learner = make_learner(batch_size=1)
    deliver(learner, increment(0), increment(0))
    assert learner.step().duplicates == 1
    deliver(learner, increment(0), increment(0, meta_step=1))  # the first is of the meta-step before
    outcome = learner.step()
    assert (outcome.duplicates, outcome.stale) == (0, 1)


def test_an_increment_that_is_early_is_reported_when_its_turn_has_come():
    learner = make_learner()
    learner.receive(increment(0, sequence=1, agent_steps=30, loss=5.0))
    assert learner.reports({}) == []
    learner.receive(increment(0, sequence=0, last=False, agent_steps=10, loss=1.0))
    first_report, report = learner.reports({})
    assert (first_report.sequence, first_report.num_moves, first_report.done) == (0, 3, False)
    assert (report.sequence, report.num_moves, report.done) == (1, 6, True)
    assert report.statistics == {"agent_steps": 40, "loss": 4.0}
    assert report.segment == {"agent_steps": 30, "loss": 5.0}
    assert learner.reports({(0, 0): 1}) == [report]
    assert learner.reports({(0, 0): 2}) == []


# The asynchronous schedule


def simulate(data, max_staleness, batch_size, steps, num_workers):
    """Workers that take any time: every order in which tasks may start and end."""
    meta = {
        "schedule": "asynchronous", "max_staleness": max_staleness, "batch_size": batch_size, "steps": steps, "lr": 0.5,
    }  # fmt: skip
    learner = make_learner(**meta)
    config, checkpoint = learner.config, first()
    waiting, running, outcomes, given = [], {}, [], set()

    def end_a_task():
        meta_step, slot = data.draw(st.sampled_from(sorted(running)))
        del running[meta_step, slot]
        assert learner.receive(increment(slot, (1, 0), meta_step=meta_step))

    while checkpoint.meta_step < steps:
        waiting += [place for place in due(config, checkpoint) if place not in given]
        given.update(waiting)
        while learner.batch() is None:
            assert waiting or running, "nothing runs and nothing can start"
            start = waiting and len(running) < num_workers
            if start and (not running or data.draw(st.booleans())):
                meta_step, slot = waiting.pop(0)
                running[meta_step, slot] = Ledger(task(slot, meta_step), version=checkpoint.meta_step)
                assert learner.adopt(running[meta_step, slot])
            else:
                end_a_task()
        batch = learner.batch()
        while running and data.draw(st.booleans(), label="one more ends before the step"):
            end_a_task()
        outcomes.append(learner.step(batch))
        assert [report.task.place for report in outcomes[-1].tasks] == batch
        checkpoint = outcomes[-1].checkpoint
        if data.draw(st.booleans(), label="driver lost"):
            learner = make_learner(checkpoint, **meta)
            waiting, running, given = [], {}, set()
    return outcomes


@untimed
@given(data=st.data(), max_staleness=st.integers(1, 3), batch_size=st.integers(1, 3), num_workers=st.integers(1, 8))
def test_asynchronous_steps_average_each_task_once_and_none_that_is_too_stale(
    data, max_staleness, batch_size, num_workers
):
    outcomes = simulate(data, max_staleness, batch_size, steps=5, num_workers=num_workers)
    taken = [report.task.place for outcome in outcomes for report in outcome.tasks]
    assert sorted(taken) == [(meta_step, slot) for meta_step in range(5) for slot in range(batch_size)]
    assert all(0 <= stale <= max_staleness for outcome in outcomes for stale in outcome.staleness)
    assert all(len(outcome.tasks) == batch_size for outcome in outcomes)
    assert outcomes[-1].checkpoint.unfinished == ()


def test_a_task_that_ends_between_the_driver_s_question_and_its_step_waits_for_the_next_step():
    """It is older than what was chosen, but the driver has not read its last report: its rows would be missing."""
    learner = make_learner(batch_size=2, schedule="asynchronous", max_staleness=2)
    learner.adopt(Ledger(task(0), version=0))
    deliver(learner, increment(1), increment(0, meta_step=1))
    batch = learner.batch()
    assert batch == [(0, 1), (1, 0)]
    learner.receive(increment(0))
    assert learner.batch() == [(0, 0), (0, 1)]
    outcome = learner.step(batch)
    assert [report.task.place for report in outcome.tasks] == batch
    assert (0, 0) in outcome.checkpoint.unfinished
    deliver(learner, increment(1, meta_step=1))
    assert learner.batch() == [(0, 0), (1, 1)]
    with pytest.raises(RuntimeError, match="before 2 tasks are done"):
        learner.step(batch)


def test_asynchronous_does_not_wait_for_the_slowest_task():
    learner = make_learner(batch_size=2, schedule="asynchronous", max_staleness=1)
    slow = Ledger(task(0), version=0)
    learner.adopt(slow)
    deliver(learner, increment(1), increment(0, meta_step=1))
    assert learner.batch() is not None
    outcome = learner.step()
    assert [report.task.place for report in outcome.tasks] == [(0, 1), (1, 0)]
    assert outcome.checkpoint.unfinished == ((0, 0), (1, 1))
    deliver(learner, increment(1, meta_step=1), increment(0, meta_step=2))
    assert learner.batch() is None, "one more step would be taken over the slow task's head"
    learner.receive(increment(0))
    assert (0, 0) in [report.task.place for report in learner.step().tasks]


# What it keeps, and what it is given


def test_overwriting_what_was_given_or_returned_changes_nothing():
    checkpoint = first()
    learner = make_learner(checkpoint, batch_size=1, optimizer="nesterov")
    one, two = increment(0, (2, 0), last=False), increment(0, (2, 0), sequence=1)
    deliver(learner, one, two)
    for given_or_returned in (checkpoint.initialization, learner.initialization(), one.meta_gradient):
        for value in given_or_returned.values():
            value.fill_(math.nan)
    outcome = learner.step()
    assert two.meta_gradient["a"].tolist() == [2, 0]
    assert outcome.checkpoint.initialization["a"].tolist() == pytest.approx([1 - 0.5 * 4 * 1.9, 2])


# Checkpoints


def run(learner, upto):
    """Meta-steps to ``upto``: the checkpoint after each."""
    checkpoints = []
    while learner.meta_step < upto:
        deliver(learner, *one_meta_batch(learner.meta_step))
        checkpoints.append(learner.step().checkpoint)
    return checkpoints


@pytest.mark.parametrize("lr_decay", ["constant", "linear"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_continues_from_any_checkpoint_ends_in_the_same_bits(optimizer, lr_decay):
    meta = {"steps": 5, "batch_size": 5, "optimizer": optimizer, "lr_decay": lr_decay}
    whole = [first(), *run(make_learner(**meta), upto=5)]
    for checkpoint in whole:
        resumed = make_learner(checkpoint, **meta)
        assert_bits_equal(resumed.initialization(), checkpoint.initialization)
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


def test_statistics_of_segments_add_or_are_averaged_by_agent_steps():
    before = {"agent_steps": 10.0, "frames": 40.0, "episodes": 1.0, "score_sum": 7.0, "loss": 1.0}
    after = {"agent_steps": 30.0, "frames": 120.0, "episodes": 0.0, "score_sum": 0.0, "loss": 3.0}
    expected = {"agent_steps": 40.0, "frames": 160.0, "episodes": 1.0, "score_sum": 7.0, "loss": 2.5}
    assert merge_statistics(before, after) == expected


def test_every_summed_statistic_is_summed():
    one = dict.fromkeys(SUMMED_STATISTICS, 2.0)
    assert merge_statistics(one, one) == dict.fromkeys(SUMMED_STATISTICS, 4.0)


def test_the_first_statistics_are_taken_as_they_are():
    one = {"agent_steps": 10.0, "loss": 1.0}
    merged = merge_statistics({}, one)
    assert merged == one
    assert merged is not one


@untimed
@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(-10, 10)), min_size=1))
def test_merging_one_by_one_gives_the_mean_over_all_agent_steps(segments):
    merged = {}
    for agent_steps, loss in segments:
        merged = merge_statistics(merged, {"agent_steps": agent_steps, "loss": loss})
    total = sum(agent_steps for agent_steps, _ in segments)
    assert merged["agent_steps"] == total
    mean = math.fsum(agent_steps * loss for agent_steps, loss in segments) / total
    assert merged["loss"] == pytest.approx(mean, rel=1e-9, abs=1e-9)


def test_the_distance_is_over_all_parameters():
    assert distance(parameters((1, 2), 3), parameters((1, 5), 7)) == 5


def test_the_order_of_names_in_a_checkpoint_changes_nothing():
    """A safetensors file gives its tensors back in another order: norms and optimizer state go by name."""
    start = first()
    turned = Checkpoint(start.meta_step, dict(reversed(start.initialization.items())), start.optimizer)
    assert list(turned.initialization) != list(start.initialization)
    orders = [list(make_learner(checkpoint).initialization()) for checkpoint in (start, turned)]
    assert orders == [sorted(start.initialization)] * 2
