"""One task, made durable segment by segment, and taken up by others; on a real game."""

import dataclasses
import os
from itertools import islice

import pytest
import torch

from leap_rl.files.storage import open_storage
from leap_rl.meta.ledger import Ledger
from leap_rl.processes import initial_parameters, process_type, start_process
from leap_rl.runs.metrics import task_row
from leap_rl.runs.status import under_way
from leap_rl.runs.task_store import SavedTask, TaskStore
from leap_rl.streaming import TaskStream
from leap_rl.types import SHARED, Broadcast, Start, StorageError, Task, TaskError
from tests.helpers import parcels, tiny_config

TASK = Task(round=3, slot=1, name="space_invaders", seed=11)
SEGMENTS = 3  # of tiny_config: 10, 10 and 4 gradient steps
FOLDER = "tasks/000003-01"


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path))


def take_up(storage, config, attempt=0, version=3, task=TASK):
    given = Broadcast({SHARED: initial_parameters(config, seed=5)}, version)
    return TaskStream(config, TaskStore(storage), task, given, attempt)


def without_time(report):
    """A report without seconds and attempt: what must be equal however often a task was taken up."""
    statistics = {name: value for name, value in report.statistics.items() if name != "seconds"}
    segment = {name: value for name, value in report.segment.items() if name != "seconds"}
    return dataclasses.replace(report, statistics=statistics, segment=segment, attempt=0)


def assert_same_ledger(ours, theirs):
    assert [without_time(report) for report in ours.reports] == [without_time(report) for report in theirs.reports]
    assert ours.total.keys() == theirs.total.keys()
    for name, value in theirs.total.items():
        assert torch.equal(ours.total[name], value), name


PLAIN = tiny_config()
INT8 = tiny_config(**{"stream.compression": "int8"})  # what is kept back must be taken up as well


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Compression → the ledger of the task, trained in one go."""
    ledgers = {}
    for config in (PLAIN, INT8):
        stream = take_up(open_storage(str(tmp_path_factory.mktemp("whole"))), config)
        list(stream.increments())
        ledgers[config.stream.compression] = stream.ledger
    return ledgers


def test_every_segment_is_durable_before_it_is_handed_out(storage):
    stream = take_up(storage, PLAIN)
    for sequence, increment in enumerate(stream.increments()):
        assert (increment.sequence, increment.last) == (sequence, sequence == SEGMENTS - 1)
        saved = TaskStore(storage).load(TASK)
        assert_same_ledger(saved.ledger, stream.ledger)
        assert saved.ledger.next_sequence == sequence + 1
        assert bool(saved.state) is not increment.last, "the state of a task that is done is not kept"
        assert storage.names(FOLDER) == [f"{sequence + 1:06d}.safetensors"], "only the newest is kept"
    assert stream.ledger.done


def test_a_stream_is_the_walk_of_its_process(whole):
    process = start_process(PLAIN, TASK, initial_parameters(PLAIN, seed=5))
    ledger = Ledger(TASK, version=3)
    for parcel in parcels(TASK, process.walk()):
        size = sum(value.nbytes for value in parcel.packed.values())
        ledger.receive(dataclasses.replace(parcel, statistics=parcel.statistics | {"increment_bytes": size}))
    assert_same_ledger(whole["none"], ledger)


@pytest.mark.parametrize(("config", "losses"), [(PLAIN, [1, 1]), (PLAIN, [0, 2, 0]), (INT8, [1, 1])])
def test_a_task_that_is_taken_up_again_and_again_ends_in_the_same_bits(storage, whole, config, losses):
    """``losses``: how many segments each worker does before it is lost in the next one."""
    done = []
    for attempt, segments in enumerate(losses):
        stream = take_up(storage, config, attempt)
        done += islice(stream.increments(), segments)
    last = take_up(storage, config, len(losses))
    done += last.increments()
    assert [increment.sequence for increment in done] == list(range(SEGMENTS)), "no segment is done twice"
    assert_same_ledger(last.ledger, whole[config.stream.compression])


def test_attempts_rise_whoever_saved_last(storage):
    """A worker may be lost before it saves anything: the next is told so by its caller."""
    attempts = []
    for attempt, segments in enumerate([1, 0, 0, 1, 0]):
        stream = take_up(storage, PLAIN, attempt)
        attempts.append(stream.ledger.attempt)
        list(islice(stream.increments(), segments))
    assert attempts == sorted(set(attempts)), "strictly rising"
    restarted = take_up(storage, PLAIN)  # by a driver that knows of none of them
    assert restarted.ledger.attempt > max(report.attempt for report in restarted.ledger.reports)


def test_a_status_counts_how_often_a_task_was_taken_up_not_the_numbers_of_the_attempts(storage):
    for attempt in range(3):
        stream = take_up(storage, PLAIN, attempt)
        list(islice(stream.increments(), 1))
    rows = [task_row("segment", report, process_type("a2c").measures) for report in stream.ledger.reports]
    assert [row["attempt"] for row in rows] == [0, 2, 5]
    assert [task.restarts for task in under_way(rows, {TASK.place})] == [2]


def test_a_task_that_is_done_has_nothing_to_come(storage):
    list(take_up(storage, PLAIN).increments())
    again = take_up(storage, PLAIN, 1)
    assert again.ledger.done
    assert list(again.increments()) == []


def test_an_isolated_worker_that_lives_on_does_no_harm(storage, whole):
    """It saves the same segments again, late: whoever reads finds one of two equal states."""
    isolated = take_up(storage, PLAIN).increments()
    next(isolated)
    successor = take_up(storage, PLAIN, 1).increments()
    next(successor)
    next(isolated)
    next(successor)
    list(isolated)
    assert_same_ledger(take_up(storage, PLAIN, 2).ledger, whole["none"])


def test_a_state_that_is_replaced_in_the_moment_it_is_read_is_not_the_end_of_it(storage, monkeypatch):
    """Two attempts at once, or a listing that NFS has kept too long: the task does not start again."""
    next(take_up(storage, PLAIN).increments())
    listed = storage.names
    stale = [["000000.safetensors"], ["000000.safetensors"]]
    monkeypatch.setattr(storage, "names", lambda folder="": stale.pop() if stale else listed(folder))
    assert take_up(storage, PLAIN).ledger.next_sequence == 1
    assert not stale


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_a_damaged_state_is_not_used(storage, tmp_path, damage):
    list(islice(take_up(storage, PLAIN).increments(), 2))
    file = tmp_path / FOLDER / "000002.safetensors"
    if damage == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.write_bytes(b"no safetensors" if damage == "foreign" else b"")
    assert TaskStore(storage).load(TASK) is None, "and nothing older is kept: the task starts again"


def test_a_state_of_another_task_is_not_used(storage):
    list(islice(take_up(storage, PLAIN).increments(), 1))
    other = dataclasses.replace(TASK, seed=12)
    assert TaskStore(storage).load(other) is None


def test_only_what_is_under_way_is_kept(storage):
    store = TaskStore(storage)
    for slot in range(3):
        store.save(SavedTask(Ledger(Task(0, slot, "pong", 1), version=0), {}, {}))
    store.forget_all_but([(0, 1), (1, 0)])
    assert storage.names("tasks") == ["000000-01"]


def test_what_a_process_raises_names_the_task(storage):
    hot = tiny_config(**{"agent.lr": 1e30})
    with pytest.raises(TaskError, match=r"^space_invaders \(meta-step 3, slot 1\): non-finite .* at gradient step \d$"):
        list(take_up(storage, hot).increments())
    assert TaskStore(storage).load(TASK) is None

    with pytest.raises(TaskError, match=r"slot 1\): ValueError: the initialization does not fit"):
        list(
            TaskStream(PLAIN, TaskStore(storage), TASK, Broadcast({SHARED: {"encoder.x": torch.zeros(1)}})).increments()
        )


@pytest.mark.parametrize(
    "task",
    [
        dataclasses.replace(TASK, leg=1, num_legs=3),
        dataclasses.replace(TASK, start=Start("ceiling", after=dataclasses.replace(TASK, round=2))),
    ],
    ids=["the leg before", "the task whose weights it starts from"],
)
def test_storage_that_cannot_be_read_is_not_the_tasks_fault(storage, monkeypatch, task):
    stream = take_up(storage, PLAIN, task=task)

    def stale(_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "listdir", stale)
    with pytest.raises(StorageError, match="Stale file handle"):
        next(stream.increments())


def test_storage_that_fails_is_not_the_tasks_fault(storage, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        list(take_up(storage, PLAIN).increments())
