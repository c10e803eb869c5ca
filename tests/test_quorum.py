"""A quorum: late tasks are left out of a synchronous meta-step, and a run that goes on leaves out the same ones."""

import json
import shutil
from pathlib import Path

import pytest

from leap_rl.cli import main
from leap_rl.runs.inspection import describe
from leap_rl.runs.quorum import FILE, Quorum
from leap_rl.runs.run_files import read_metrics
from leap_rl.types import BadInputError
from tests.cli_helpers import assert_one_line, cli, here, make_config, write_config

PLACES = {(4, slot) for slot in range(3)}
KEYS = {"faults.quorum": 2, "faults.grace_seconds": 10.0}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def config(tmp_path):
    (tmp_path / "run").mkdir()
    return make_config(tmp_path, KEYS)


def test_who_is_not_done_when_the_grace_is_over_is_late(config, clock):
    quorum = Quorum(config, 4, clock)
    one, two = {(4, 0)}, {(4, 0), (4, 2)}
    assert not quorum.decide(PLACES - one, one)
    clock.now = 100.0
    assert not quorum.decide(PLACES - two, two), "the grace begins with the quorum"
    clock.now = 109.9
    assert not quorum.decide(PLACES - two, two)
    assert quorum.late is None
    clock.now = 110.0
    assert quorum.decide(PLACES - two, two)
    assert quorum.late == {(4, 1)}
    assert not quorum.decide(set(), PLACES), "once decided, it stays"
    assert quorum.late == {(4, 1)}


def test_a_new_learner_that_has_nothing_yet_makes_nobody_late(config, clock):
    quorum = Quorum(config, 4, clock)
    two = {(4, 0), (4, 2)}
    quorum.decide(PLACES - two, two)
    clock.now = 50.0
    assert not quorum.decide(PLACES, set()), "the learner was lost in the meantime"
    clock.now = 60.0
    assert not quorum.decide(PLACES - two, two), "the grace begins anew"
    clock.now = 70.0
    assert quorum.decide(PLACES - two, two)
    assert quorum.late == {(4, 1)}


def test_failed_tasks_do_not_count(config, clock):
    quorum = Quorum(config, 4, clock)
    assert not quorum.decide({(4, 2)}, {(4, 0)})
    clock.now = 1e6
    assert not quorum.decide({(4, 2)}, {(4, 0)})


def test_a_decision_holds_after_a_resume_even_that_nobody_was_late(config, clock):
    assert Quorum(config, 4, clock).decide(set(), PLACES)
    second = Quorum(config, 5, clock)
    second.decide({(5, 1)}, {(5, 0), (5, 2)})
    clock.now = 11.0
    assert second.decide({(5, 1)}, {(5, 0), (5, 2)})
    assert [Quorum(config, step, clock).late for step in (4, 5, 6)] == [set(), {(5, 1)}, None]


def test_a_damaged_record_is_one_line(config, clock):
    file = Path(config.run.dir, FILE)
    file.write_text('{"slots": {"4": [-1]}}')
    with pytest.raises(BadInputError) as error:
        Quorum(config, 4, clock)
    assert str(error.value).startswith(f"{file}: slots.4.0: ")


def test_a_record_of_a_slot_that_there_is_not_is_one_line(config):
    Path(config.run.dir, FILE).write_text('{"slots": {"4": [3]}}')
    with pytest.raises(BadInputError, match=r"slots must be below meta.batch_size = 3$"):
        Quorum(config, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["faults.quorum=4"], "faults.quorum = 4: must be from faults.min_tasks = 1 to meta.batch_size = 3"),
        (["faults.quorum=1", "faults.min_tasks=2"], "faults.quorum = 1: must be from faults.min_tasks = 2 to"),
        (["faults.quorum=2", "meta.schedule=asynchronous"], "faults.quorum = 2: only meta.schedule = synchronous has"),
        (["faults.quorum=0"], "faults.quorum = 0"),
        (["faults.grace_seconds=-1"], "faults.grace_seconds = -1"),
    ],
)
def test_what_a_quorum_cannot_be(tmp_path, capsys, override, message):
    assert_one_line(main(["train", str(write_config(tmp_path)), *override]), *capsys.readouterr(), message)


def left_out(run):
    """meta-step → the slots that were left out of it, by the record and by the rows of the tasks that were averaged."""
    recorded = {int(step): slots for step, slots in json.loads((run / FILE).read_text())["slots"].items()}
    rows = read_metrics(run)
    averaged = {(row["meta_step"], row["slot"]) for row in rows if row["kind"] == "task"}
    assert recorded == {step: [slot for slot in range(3) if (step, slot) not in averaged] for step in recorded}
    assert [row["failed_tasks"] for row in rows if row["kind"] == "meta_step"] == [*map(len, recorded.values())]
    return recorded


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_leaves_out_the_same_tasks(tmp_path):
    config = write_config(
        tmp_path, {"faults.quorum": 2, "faults.grace_seconds": 0.0, "task.agent_steps": 1000, "run.keep_checkpoints": 9}
    )
    done = cli("train", config, "backend=ray", "workers.count=1")
    assert done.returncode == 0, done.stderr
    assert "left out: not done 0 s (faults.grace_seconds) after 2 tasks had succeeded (faults.quorum)" in done.stderr
    run = tmp_path / "run"
    recorded, before = left_out(run), describe(run)
    assert [len(slots) for slots in recorded.values()] == [1, 1, 1], "one worker: the third has just begun"
    for meta_step in (2, 3):
        shutil.rmtree(run / "checkpoints" / f"{meta_step:06d}")
    assert recorded[1] != [2] or recorded[2] != [2], "in turn, without the record, the third is left out"
    assert here("train", config, "backend=serial").returncode == 0
    assert left_out(run) == recorded
    assert describe(run)["fingerprint"] == before["fingerprint"]
