"""Runs shown in W&B (offline) and in MLflow (a local store): every number once, in one run, whatever is killed."""

import json
import os
import signal
import sys
from importlib.util import find_spec

import pytest
from mlflow.tracking import MlflowClient
from wandb.proto import wandb_internal_pb2

from leap_rl.processes import process_type
from leap_rl.runs.metrics import Chart, charts_of
from leap_rl.runs.mlflow_sink import MlflowSink
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import read_metrics
from leap_rl.runs.trackers import Tracker
from leap_rl.types import Checkpoint
from tests.cli_helpers import assert_one_line, cli, held, make_config, wait_for, write_config
from tests.results import committed, in_mid_task

MEASURES = process_type("a2c").measures
TASK_STEPS = 235  # of cli_helpers.TINY


def store(folder):
    return f"sqlite:///{folder}/mlflow.db"


def expected(run):
    """What a tracker is to have: name → (step, value) pairs, from the rows of a finished run."""
    points = {}
    for row in read_metrics(run):
        chart = charts_of(row, MEASURES, TASK_STEPS)
        for name, value in chart.values.items():
            points.setdefault(name, []).append((chart.step, value))
    return {name: sorted(pairs) for name, pairs in points.items()}


def of_mlflow(folder):
    """What MLflow has, of the only run in its store."""
    client = MlflowClient(store(folder))
    (experiment,) = [found for found in client.search_experiments() if found.name == "leap_rl"]
    (run,) = client.search_runs([experiment.experiment_id])
    points = {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }
    return run, points


def records(file):
    """The records of a .wandb file. Behind a header of 7 bytes it is a log in LevelDB's format: blocks of 32 KiB;
    in them a record is whole (kind 1), or has a first part (2), parts in between (3), and a last one (4)."""
    data, at, parts = file.read_bytes(), 7, []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def of_wandb(folder):
    """What W&B has in the files of all its sessions: ids of runs, and the same points."""
    ids, points = set(), {}
    for file in sorted(folder.rglob("run-*.wandb")):
        for record in records(file):
            if record.run.run_id:
                ids.add(record.run.run_id)
            if record.history.item:
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                step = row.get("meta_step", row.get("agent_steps"))
                for name, value in row.items():
                    if "/" in name:
                        points.setdefault(name, []).append((step, value))
    return ids, {name: sorted(pairs) for name, pairs in points.items()}


def test_a_chart_is_named_after_its_task_and_stands_on_its_axis():
    row = {"kind": "segment", "meta_step": 2, "slot": 0, "game": "breakout:mode=8", "task_agent_steps": 50}
    shown = dict.fromkeys(("episodic_return", *MEASURES.means)) | {"loss": 0.5}
    chart = charts_of(row | shown, MEASURES, 100)
    assert chart == Chart("agent_steps", 250, {"game/loss/breakout_mode8": 0.5}), "what is null has no point"
    assert charts_of(row | {"loss": 0.5}, MEASURES, 100) == chart, "nor has what an older row lacks"
    task = charts_of(row | {"kind": "task", "path_length": 3.0, "episodic_return": 7.5}, MEASURES, 100)
    assert (task.axis, task.step) == ("meta_step", 2)
    assert task.values == {"task/path_length/breakout_mode8": 3.0, "task/episodic_return/breakout_mode8": 7.5}
    step = charts_of({"kind": "meta_step", "meta_step": 2, "energy": 4.0, "layer_drift": {"w": 0.1}}, MEASURES, 100)
    assert step == Chart("meta_step", 2, {"meta/energy": 4.0, "layer/drift/w": 0.1})
    assert not charts_of({"kind": "fault", "meta_step": 2, "game": None, "text": "lost"}, MEASURES, 100).values


class Recorder(Tracker):
    """A tracker that keeps what it is sent, and may fail."""

    name, file = "recorder", "recorder.json"

    def __init__(self, *given):
        super().__init__(*given)
        self.opened, self.sent, self.broken = [], [], False

    def open(self, known):
        self.opened.append(known)
        return known or "made"

    def send(self, charts, first_row):
        if self.broken:
            raise OSError("no route to host")
        self.sent += [(number, chart.step, *chart.values) for number, chart in enumerate(charts, first_row)]


def a_task(meta_step, slot, game):
    return {"kind": "task", "meta_step": meta_step, "slot": slot, "game": game, "path_length": 1.0,
            "episodic_return": None}  # fmt: skip


def a_step(meta_step):
    return {"kind": "meta_step", "meta_step": meta_step, "energy": 2.0, "layer_drift": {}}


def test_rows_are_sent_when_a_checkpoint_has_averaged_them_and_once_in_all_sessions(tmp_path):
    asynchronous = {"meta.schedule": "asynchronous", "meta.batch_size": 1, "faults.min_tasks": 1}
    config = make_config(tmp_path, asynchronous)
    with open_run(config) as run:
        recorder = Recorder(config, run)
        recorder.committed(Checkpoint(0, {}, {}))
        assert (recorder.opened, recorder.sent) == ([None], [])
        run.append_metrics([a_task(1, 0, "b"), a_task(0, 0, "a"), a_step(0)])
        recorder.committed(Checkpoint(1, {}, {}, ((0, 0),)))  # the task of meta-step 1 was done first
        assert recorder.sent == [(0, 1, "task/path_length/b"), (1, 0, "meta/energy")]
    with open_run(config) as run:
        resumed = Recorder(config, run)
        resumed.committed(Checkpoint(1, {}, {}, ((0, 0),)))
        assert (resumed.opened, resumed.sent) == (["made"], [])
        run.append_metrics([a_step(1)])
        resumed.committed(Checkpoint(2, {}, {}))
        assert resumed.sent == [(2, 0, "task/path_length/a"), (3, 1, "meta/energy")]


def test_what_could_not_be_sent_is_sent_by_the_next_session(tmp_path):
    config = make_config(tmp_path, {"meta.batch_size": 1})
    with open_run(config) as run:
        run.append_metrics([a_task(0, 0, "a"), a_step(0)])
        recorder = Recorder(config, run)
        recorder.broken = True
        with pytest.raises(OSError, match="no route"):
            recorder.committed(Checkpoint(1, {}, {}))
        resumed = Recorder(config, run)
        resumed.committed(Checkpoint(1, {}, {}))
        assert resumed.opened == ["made"]
        assert [row[0] for row in resumed.sent] == [0, 1]


def test_mlflow_is_not_sent_twice_what_a_killed_driver_did_not_write_down(tmp_path, monkeypatch):
    config = make_config(tmp_path, {"meta.batch_size": 1, "log.mlflow": store(tmp_path)})
    with open_run(config) as run:
        run.append_metrics([a_task(0, 0, "a"), a_step(0)])
        sink = MlflowSink(config, run)
        sink.committed(Checkpoint(0, {}, {}))
        monkeypatch.setattr(run, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sink.committed(Checkpoint(1, {}, {}))
        monkeypatch.undo()
        run.append_metrics([a_task(1, 0, "a"), a_step(1)])
        resumed = MlflowSink(config, run)
        resumed.committed(Checkpoint(2, {}, {}))
        resumed.close()
    tracked, points = of_mlflow(tmp_path)
    assert points == {"task/path_length/a": [(0, 1.0), (1, 1.0)], "meta/energy": [(0, 2.0), (1, 2.0)]}
    assert tracked.info.status == "KILLED", "it has a third meta-step to go"


@pytest.mark.slow
def test_a_killed_and_resumed_run_is_one_run_with_every_number_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config, run = write_config(tmp_path), tmp_path / "run"
    keys = (f"log.mlflow={store(tmp_path)}", "log.wandb=leap")
    with held(tmp_path, "train", config, *keys, meta_step=1, step=12) as (driver, _):
        wait_for(lambda: committed(run) and in_mid_task(run), driver)
        os.kill(driver.pid, signal.SIGKILL)
    done = cli("train", config, *keys)
    assert done.returncode == 0, done.stderr
    tracked, points = of_mlflow(tmp_path)
    assert points == expected(run)
    assert len(points["meta/energy"]) == 3
    assert (tracked.info.status, tracked.info.run_name) == ("FINISHED", "run")
    assert tracked.data.params["meta.lr"] == "0.1"
    ids, points = of_wandb(run)
    assert len(ids) == 1
    assert points == expected(run)


def test_a_tracker_that_is_not_installed_or_does_not_answer(tmp_path, run_main, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "wandb", None)
        without.setattr("leap_rl.extras.find_spec", lambda name: None if name == "wandb" else find_spec(name))
        result = run_main("train", write_config(tmp_path), "log.wandb=leap")
        assert_one_line(*result, "log.wandb = leap", "wandb is not installed", "leap-rl[wandb]")
        assert not (tmp_path / "run").exists()
    assert_one_line(*run_main("train", write_config(tmp_path), "log.mlflow=''"), "log.mlflow")
    changes = {"meta.steps": 1, "meta.batch_size": 1, "log.mlflow": "nosuch://store"}
    code, _, stderr = run_main("train", write_config(tmp_path, changes))
    assert code == 0
    (line,) = [line for line in stderr.splitlines() if line.startswith("MLflow: ")]
    assert "nosuch" in line
    assert line.endswith("left out from here on, the run continues")
