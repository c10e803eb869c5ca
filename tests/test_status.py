"""`leap-rl status`: how a run stands, from its directory alone."""

import json
import os
import time

import pytest

from leap_rl.cli import main
from leap_rl.files.text import duration
from leap_rl.runs.run_files import METRICS, jsonl
from leap_rl.runs.status import TaskStatus, seconds_left, status_of
from tests.cli_helpers import assert_one_line, make_run
from tests.helpers import tiny_config


def segment(meta_step, slot, done, seconds=1.0, attempt=0, kind="segment"):
    return {"kind": kind, "meta_step": meta_step, "slot": slot, "game": f"game-{slot}", "task_agent_steps": done,
            "agent_steps": done, "seconds": seconds, "attempt": attempt}  # fmt: skip


def meta_step(number, seconds):
    return {"kind": "meta_step", "meta_step": number, "agent_steps": 720, "agent_steps_per_second": 100.0,
            "seconds": seconds}  # fmt: skip


ROWS = [
    segment(0, 0, 240, 3.0, kind="task"), segment(0, 1, 240, 3.0, kind="task"), meta_step(0, 10.0),
    {"kind": "fault", "meta_step": 1, "game": None, "text": "a worker was lost"},
    segment(1, 0, 50, 2.0), segment(1, 0, 100, 2.0, attempt=1), segment(1, 2, 200, 4.0),
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run of three meta-steps of three tasks each, one of which is done and two tasks under way."""
    folder = make_run(tmp_path, last=1)
    (folder / METRICS).write_bytes(jsonl(ROWS))
    return folder


def test_a_run_under_way(run):
    then = time.time() - 60
    os.utime(run / METRICS, (then, then))
    found = status_of(str(run))
    assert (found.meta_step, found.meta_steps, found.steps_per_task, found.faults) == (1, 3, 240, 1)
    assert found.tasks == [TaskStatus("game-0", 100, 4.0, 1), TaskStatus("game-2", 200, 4.0, 0)]
    assert found.core_hours * 3600 == pytest.approx(3 + 3 + 4 + 4)
    assert found.seconds_left == pytest.approx((2 - 300 / 720) * 10)
    assert 59 < found.seconds_since < 90


def test_the_time_that_is_left_is_that_of_the_last_few_meta_steps():
    config = tiny_config(**{"meta.steps": 20})
    steps = [meta_step(number, 100.0 if number < 5 else 10.0) for number in range(10)]
    assert seconds_left(config, steps, 10, []) == pytest.approx(10 * 10)
    resumed = {**steps[-1], "seconds": 1.0, "agent_steps_per_second": None}
    assert seconds_left(config, [*steps, resumed], 10, []) == pytest.approx(10 * 10)
    assert seconds_left(config, [resumed], 10, []) == pytest.approx(10)
    assert seconds_left(config, [], 0, []) is None


def test_what_is_printed(run, capsys):
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{run}: meta-step 1 of 3\n")
    assert "  game-0: 100 agent steps (42%), 25 a second, taken up again 1 time\n" in said
    assert "1 fault\n" in said
    assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"][1]["name"] == "game-2"


def test_rows_of_another_version_need_not_have_everything(run, capsys, tmp_path):
    lacking = [{"kind": kind, "meta_step": 0, "slot": 0} for kind in ("task", "segment", "meta_step")]
    lacking += [{"kind": "segment", "meta_step": 1, "slot": 0}, {"kind": "segment", "meta_step": 1}]
    (run / METRICS).write_bytes(
        jsonl([*lacking, {"kind": "segment", "meta_step": 1, "slot": 2, "task_agent_steps": 9}])
    )
    assert main(["status", str(run), "--html", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "time left  not known" in said
    assert said.endswith("\n  –: 9 agent steps (4%)\n")
    (run / METRICS).write_bytes(jsonl([{**row, "seconds": "long"} for row in ROWS]))
    assert status_of(str(run)).core_hours == 0, "these are no rows"


def test_a_finished_run_is_not_watched_any_longer(tmp_path, capsys):
    folder = make_run(tmp_path, last=3)
    assert main(["status", str(folder), "--watch"]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: meta-step 3 of 3, finished\n")


def test_a_run_that_has_not_begun_and_a_folder_without_one(tmp_path, capsys):
    folder = make_run(tmp_path, last=0)
    found = status_of(str(folder))
    assert (found.tasks, found.seconds_left, found.seconds_since) == ([], None, None)
    (folder / "evaluation.json").touch()
    for other, said in ((folder, "holds an evaluation"), (tmp_path / "none", "it has no config.yaml")):
        code = main(["status", str(other)])
        assert_one_line(code, *capsys.readouterr(), f"{other}: not a run directory: {said}")


def test_durations():
    assert [duration(seconds) for seconds in (42, 700, 12_240)] == ["42 s", "12 min", "3.4 hours"]
