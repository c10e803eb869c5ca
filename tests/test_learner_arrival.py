"""Increments arrive late, twice or in any order, and in any schedule: each is applied once, in its turn."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leap_rl.meta.ledger import Ledger
from leap_rl.meta.schedule import due
from leap_rl.types import Checkpoint
from tests.test_learner import (
    assert_bits_equal,
    deliver,
    first,
    increment,
    make_learner,
    one_meta_batch,
    task,
    untimed,
)

# Arrival


def test_the_order_of_adding_changes_the_bits():
    """Otherwise the next test would hold for a learner that adds as increments arrive."""
    batch = one_meta_batch(1)
    segments = [parcel.packed["a"] for parcel in batch if parcel.task.slot == 2]
    sums = {tuple(sum(order).tolist()) for order in itertools.permutations(segments)}
    assert len(sums) > 1
    totals = [sum(i.packed["a"] for i in batch if i.task.slot == slot) / 5 for slot in range(5)]
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
    assert wanted == [arrival.task.round == 1 for arrival in arrivals]

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
            [fresh] = [one for one in batch if (one.task.slot, one.sequence) == (slot, ledger.next_sequence)]
            fresh = dataclasses.replace(fresh, attempt=ledger.attempt)
            assert ledger.receive(fresh)
            saved[slot] = ledger.copy()
            zombies.append(fresh)
            assert learner.receive(fresh)
            applied.add((slot, fresh.sequence))
        elif event == "worker":
            running[slot] = take_up(slot)
        elif event == "late" and zombies:
            late = data.draw(st.sampled_from(zombies), label="late")
            accepted = learner.receive(late)
            assert accepted == (late.attempt >= attempts[late.task.slot])
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
    assert learner.checkpoint.initialization["a"].tolist() == [1 - 0.5 * 3, 2]
    assert (outcome.duplicates, outcome.stale) == (1, 0)


def test_what_is_adopted_is_a_copy():
    theirs = Ledger(task(0), version=0)
    theirs.receive(increment(0, (1, 0), last=False))
    learner = make_learner(batch_size=1)
    learner.adopt(theirs)
    theirs.receive(increment(0, (50, 0), sequence=1))
    learner.receive(increment(0, (1, 0), sequence=1))
    learner.step()
    assert learner.checkpoint.initialization["a"].tolist() == [1 - 0.5 * 2, 2]


def test_duplicates_are_counted_by_meta_step():
    learner = make_learner(batch_size=1)
    deliver(learner, increment(0), increment(0))
    assert learner.step().duplicates == 1
    deliver(learner, increment(0), increment(0, meta_step=1))  # the first is of the meta-step before
    outcome = learner.step()
    assert (outcome.duplicates, outcome.stale) == (0, 1)


def test_an_increment_that_is_early_is_reported_when_its_turn_has_come():
    learner = make_learner()
    learner.receive(increment(0, sequence=1, agent_steps=30, loss_sum=5.0))
    assert learner.reports({}) == []
    learner.receive(increment(0, sequence=0, last=False, agent_steps=10, loss_sum=1.0))
    first_report, report = learner.reports({})
    assert (first_report.sequence, first_report.path.moves, first_report.done) == (0, 3, False)
    assert (report.sequence, report.path.moves, report.done) == (1, 6, True)
    assert report.statistics == {"agent_steps": 40, "loss_sum": 6.0}
    assert report.segment == {"agent_steps": 30, "loss_sum": 5.0}
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


def test_asynchronous_waits_while_more_tasks_are_as_old_as_may_be_than_a_step_takes():
    learner = make_learner(batch_size=1, schedule="asynchronous", max_staleness=2)
    for meta_step in range(3):
        learner.adopt(Ledger(task(0, meta_step), version=0))
    learner.receive(increment(0, meta_step=2))
    learner.step()
    learner.adopt(Ledger(task(0, 3), version=1))
    learner.receive(increment(0, meta_step=3))
    assert learner.batch() is None, "two tasks of version 0 are under way, and one step could take one of them in time"
    learner.receive(increment(0, meta_step=1))
    assert learner.batch() == [(1, 0)]
