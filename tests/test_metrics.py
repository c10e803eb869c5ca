"""The numbers of a run, by hand; and the sinks that they go to."""

import dataclasses
import io

import pytest

from leap_rl.processes import process_type
from leap_rl.runs.metrics import META, Point, meta_step_points, meta_step_scalars, task_points, task_row
from leap_rl.runs.monitoring import Monitor
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import Progress, read_metrics
from leap_rl.runs.sink import Sink
from leap_rl.types import Checkpoint, Fault, MetaStep, PathSums, Task, TaskReport
from tests.cli_helpers import make_config

MEASURES = process_type("a2c").measures
SEGMENT = {
    "agent_steps": 20, "frames": 80, "seconds": 0.5, "updates": 2, "increment_bytes": 8, "episodes": 2, "score_sum": 9,
    "episode_length_sum": 30, "loss_sum": 4.0, "policy_loss_sum": 1.0, "value_loss_sum": 2.0, "entropy_sum": 3.0,
    "gradient_norm_sum": 5.0, "clipped_reward_sum": 1.0, "rllib/kl": 6.0,
}  # fmt: skip
WHOLE = {name: 2 * value for name, value in SEGMENT.items()}


def report(slot=0, name="pong"):
    return TaskReport(Task(3, slot, name, 7), 1, 0, PathSums(2.0, 4.0, 10, 4), True, WHOLE, SEGMENT)


def outcome(num_tasks=2):
    return MetaStep(
        meta_step=3, path_length=2.0, energy=4.0, meta_gradient_norm=1.5, task_norms=(0.5,) * (num_tasks - 1) + (3.0,),
        update_norm=0.1, lr=0.2, tasks=tuple(report(slot, f"game_{slot}") for slot in range(num_tasks)), dropped=(),
        staleness=(0,) * (num_tasks - 1) + (1,), duplicates=1, stale=2, cosines={"games": ["a"], "matrix": [[None]]},
        compression_error=0.0, checkpoint=Checkpoint(4, {}, {}),
    )  # fmt: skip


def test_a_row_is_of_a_segment_or_of_the_whole_task():
    segment, task = (task_row(kind, report(), MEASURES) for kind in ("segment", "task"))
    assert (segment["agent_steps"], task["agent_steps"], segment["task_agent_steps"]) == (20, 40, 40)
    assert (segment["episodes"], segment["episodic_return"], segment["loss"]) == (2, 4.5, 2.0)
    assert (task["episodes"], task["path_length"], task["moves"], task["loss_rises"]) == (4, 2.0, 10, 4)
    assert (task["meta_step"], task["slot"], task["game"]) == (3, 0, "pong")
    assert "path_length" not in segment


def test_what_a_process_or_an_older_ledger_does_not_sum_is_shown_as_none():
    lacking = {name: value for name, value in SEGMENT.items() if name not in ("entropy_sum", "episodes")}
    row = task_row("segment", dataclasses.replace(report(), segment=lacking), MEASURES)
    assert (row["entropy"], row["episodes"], row["episodic_return"], row["loss"]) == (None, None, None, 2.0)


def test_points_of_a_game_stand_after_the_tasks_of_the_meta_steps_before():
    points = {point.name: point for point in task_points(report(), MEASURES, steps_per_task=100)}
    assert points["game/episodic_return"] == Point("pong", "game/episodic_return", 3 * 100 + 40, 4.5)
    assert not points.keys() & {"game/frames", "game/agent_steps", "game/episodes"}, "counts would be saw-teeth"
    assert points["rllib/kl"].value == 3.0, "a mean over the updates of the segment"


def scalars(made, config, **more):
    totals = Progress(4, 500, 2000)
    return meta_step_scalars(made, totals, config, drift=0.3, seconds=2.0, num_workers=4, faults=5, **more)


def test_a_meta_step_that_two_sessions_have_trained_has_no_speed(tmp_path):
    found = scalars(outcome(), make_config(tmp_path), timed=False)
    assert (found["agent_steps_per_second"], found["worker_utilization"]) == (None, None)
    assert "meta/agent_steps_per_second" not in {p.name for p in meta_step_points(outcome(), found, {}, MEASURES)}


def test_the_numbers_of_a_meta_step(tmp_path):
    found = scalars(outcome(), make_config(tmp_path, {"meta.max_task_norm": 1.0}))
    expected = {
        "clipped_tasks": 1, "loss_rise_fraction": 0.4, "agent_steps": 500, "agent_steps_per_second": 40.0,
        "staleness": 0.5, "max_staleness": 1, "worker_utilization": 2.0 / (4 * 2.0), "faults": 5,
        "increment_bytes": 32, "stale_increments": 2,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    points = list(meta_step_points(outcome(), found, {"encoder.w": 0.7}, MEASURES))
    assert {(point.series, point.step) for point in points} == {(META, 3)}
    values = {point.name: point.value for point in points}
    assert values["layer/drift/encoder.w"] == 0.7
    assert values["task/meta_gradient_norm/game_1"] == 3.0
    assert values["task/episodic_return/game_0"] == 4.5
    assert "meta/increment_cosine" not in values, "there was no pair of games"


class Mine(Sink):
    """Another sink, as a file of one's own would have it."""

    name = "mine"

    def __init__(self):
        self.kinds, self.names, self.said = [], set(), []

    def log(self, rows, points):
        self.kinds += [row["kind"] for row in rows]
        self.names |= {point.name for point in points}

    def say(self, text, style=""):
        self.said.append(text)


class Broken(Sink):
    name = "broken"

    def log(self, rows, points):
        raise OSError("no route to host")


def test_every_sink_is_given_everything_and_one_that_fails_is_said_once(tmp_path):
    config, stream, mine = make_config(tmp_path, {}), io.StringIO(), Mine()
    with open_run(config) as run, Monitor(config, run, stream) as monitor:
        monitor._sinks += [Broken(), mine]
        monitor.log_segment(report())
        monitor.log_fault(Fault(None, "a worker was lost"), meta_step=3)
        made = outcome()
        monitor.log_meta_step(made, Progress(4, 500, 2000), 0.3, {}, 2.0, 4)
    assert mine.kinds == ["segment", "task", "fault", "meta_step"] == [r["kind"] for r in read_metrics(config.run.dir)]
    assert {"game/loss", "meta/energy", "task/path_length/game_1"} <= mine.names
    line = "broken: no route to host; left out from here on, the run continues"
    assert mine.said == [line, "a worker was lost"]
    assert stream.getvalue().count(line) == 1


def test_rows_that_cannot_be_written_stop_the_run(tmp_path, monkeypatch):
    config = make_config(tmp_path, {})
    with open_run(config) as run, Monitor(config, run, io.StringIO()) as monitor:
        monkeypatch.setattr(run, "append_metrics", lambda rows: Broken().log(rows, ()))
        with pytest.raises(OSError, match="no route"):
            monitor.log_fault(Fault(None, "a worker was lost"), meta_step=0)
