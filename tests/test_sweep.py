"""`leap-rl sweep`: a grid of runs, the worse half of which is given up early."""

import csv
import json
import time

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from leap_rl.cli import main
from leap_rl.runs.inspection import describe
from leap_rl.runs.run_files import read_metrics
from leap_rl.sweep.grid import make_sweep
from leap_rl.sweep.train import shares
from leap_rl.types import DivergedError
from tests.cli_helpers import assert_one_line, cli, make_run, start

SMALL = ["backend=serial", "meta.steps=4", "meta.batch_size=3", "task.agent_steps=20"]
GRID = ["meta.lr=0.01,1,0.3,0.1", "run.seed=0..1"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A configuration of a process of one's own, whose runs take a second."""
    monkeypatch.syspath_prepend("docs/examples")
    tree = {
        "process": "sinusoids:PROCESS", "run": {"dir": str(tmp_path / "sweep")}, "task": {"agent_steps": 20},
        "meta": {"rule": "reptile", "steps": 4, "batch_size": 3, "lr": 0.3},
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "own.yaml"


def sweep(*arguments):
    return main(["sweep", *map(str, arguments)])


def rows(folder):
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_worse_half_is_given_up_and_the_rest_are_ordinary_runs(own, tmp_path, capsys):
    assert sweep(own, *SMALL, *GRID, "--halving", 1, "--by", "area") == 0
    said = capsys.readouterr().out
    folder = tmp_path / "sweep"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        f"lr_{lr}-seed_{seed}" for lr in ("0.01", "1", "0.3", "0.1") for seed in (0, 1)
    }  # fmt: skip
    found = rows(folder)
    assert [row["meta_steps"] for row in found] == ["4"] * 4 + ["2"] * 4
    assert [row["state"] for row in found] == ["trained"] * 4 + ["given up after 2"] * 4
    for row in found:  # both seeds of a setting stay or go
        assert describe(folder / row["run"])["meta_step"] == int(row["meta_steps"])
        tasks = [task for task in read_metrics(folder / row["run"]) if task["kind"] == "task"]
        judged = [task["negative_loss"] for task in tasks if task["meta_step"] >= int(row["meta_steps"]) // 2]
        assert float(row["negative_loss"]) == pytest.approx(sum(judged) / len(judged))
    assert found[0]["meta.lr"] == "1"  # Reptile's full step, on waves that are all learned from scratch
    assert "given up after 2" in said
    assert "tensorboard --logdir" in said

    trained = cli(
        "train", folder / "lr_0.01-seed_0", "process=sinusoids:PROCESS", extra={"PYTHONPATH": "docs/examples"}
    )
    assert trained.returncode == 0, trained.stderr  # one that was given up can be finished
    assert describe(folder / "lr_0.01-seed_0")["finished"]


@pytest.mark.slow
def test_a_sweep_that_was_killed_ends_in_the_same_table(own, tmp_path, capsys):
    elsewhere = tmp_path / "undisturbed"
    arguments = [own, *SMALL, "meta.lr=0.01,1", "run.seed=0..1", "--halving", "1", "--json"]
    assert sweep(*arguments, f"run.dir={elsewhere}") == 0
    expected = json.loads(capsys.readouterr().out)
    folder, kills = tmp_path / "sweep", 0
    for moment in ("lr_0.01-seed_1/metrics.jsonl", "lr_1-seed_0/checkpoints/000003"):
        process = start("sweep", *arguments, stdout=open("/dev/null", "wb"), stderr=open("/dev/null", "wb"),  # noqa: SIM115
                        extra={"PYTHONPATH": "docs/examples"})  # fmt: skip
        while process.poll() is None and not (folder / moment).exists():
            time.sleep(0.01)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills == 2
    assert not (folder / "sweep.csv").exists()
    done = cli("sweep", *arguments, extra={"PYTHONPATH": "docs/examples"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
    assert (folder / "sweep.csv").read_bytes() == (elsewhere / "sweep.csv").read_bytes()
    for row in expected:
        ours, theirs = (describe(place / row["run"])["fingerprint"] for place in (folder, elsewhere))
        assert ours == theirs


def test_a_sweep_that_is_done_trains_nothing_again(own, tmp_path, capsys, monkeypatch):
    arguments = [own, *SMALL, "meta.lr=0.1,1", "--halving", 1]
    assert sweep(*arguments) == 0
    before = (tmp_path / "sweep" / "sweep.csv").read_bytes()
    monkeypatch.setattr("leap_rl.sweep.train.train_run", None)
    assert sweep(*arguments) == 0
    assert (tmp_path / "sweep" / "sweep.csv").read_bytes() == before


def test_a_setting_that_cannot_go_on_is_the_worst(own, tmp_path, capsys, monkeypatch):
    from leap_rl.sweep import train

    real = train.train_run

    def diverge(config, *arguments):
        if config.meta.lr == 1:
            raise DivergedError("meta-step 0: its numbers are not finite")
        real(config, *arguments)

    monkeypatch.setattr(train, "train_run", diverge)
    assert sweep(own, *SMALL, "meta.lr=1,0.1,0.3", "run.seed=0..1") == 0
    said = capsys.readouterr()
    assert "lr_1-seed_0: meta-step 0: its numbers are not finite; the sweep goes on" in said.err
    assert "lr_1-seed_1: meta-step" not in said.err
    assert [row["state"] for row in rows(tmp_path / "sweep")] == ["trained"] * 4 + ["failed"] * 2
    monkeypatch.setattr(train, "train_run", lambda *_: (_ for _ in ()).throw(DivergedError("no")))
    assert sweep(own, *SMALL, "meta.lr=1,0.1", f"run.dir={tmp_path / 'none'}") == 1


def test_tensorboard_tells_runs_apart_by_what_is_swept(own, tmp_path):
    assert sweep(own, *SMALL, "meta.lr=0.1,1") == 0
    events = EventAccumulator(str(tmp_path / "sweep" / "lr_0.1" / "tensorboard" / "meta")).Reload()
    session, experiment = (
        plugin_data_pb2.HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/{name}").plugin_data.content)
        for name in ("session_start_info", "experiment")
    )
    started = session.session_start_info
    assert started.group_name == "meta.lr=0.1"
    assert {name: value.number_value for name, value in started.hparams.items()} == {"meta.lr": 0.1}
    shown = {info.name.tag for info in experiment.experiment.metric_infos}
    assert shown <= set(events.Tags()["scalars"])
    assert "meta/path_length" in shown


def test_only_the_same_task_is_compared():
    high, low = ("pong",), ("asterix",)
    assert shares([{high: 1000.0, low: 1.0}, {high: 999.0, low: 2.0}]) == [0.5, 0.5]  # one each, whatever the scale
    assert shares([{high: 2.0}, {high: 1.0}, {high: 2.0}]) == [0.75, 0, 0.75]
    assert shares([{high: 2.0}, {low: 1.0}, {}]) == [None, None, None]


def test_values_are_written_as_in_any_override(tmp_path):
    made = make_sweep(
        "quickstart",
        [f"run.dir={tmp_path}/s", "tasks.games=['breakout:mode=4,difficulty=1'],[pong, qbert]", "run.seed=3..4,7",
         "agent.lr=1e-3,0.0001", "tasks.held_out=[]", "meta.batch_size=1"],
        0, "area",
    )  # fmt: skip
    names = [run.name for run in made.runs]
    assert names[:3] == ["games_no1-seed_3-lr_1e-3", "games_no1-seed_3-lr_0.0001", "games_no1-seed_4-lr_1e-3"]
    assert made.runs[0].config.tasks.games == ["breakout:mode=4,difficulty=1"]
    assert made.runs[-1].config.tasks.games == ["pong", "qbert"]
    assert sorted({run.config.run.seed for run in made.runs}) == [3, 4, 7]
    both = make_sweep("quickstart", [f"run.dir={tmp_path}/s", "agent.lr=0.1,0.2", "meta.lr=0.1,0.2"], 0, "area")
    assert both.runs[0].name == "agent.lr_0.1-meta.lr_0.1"


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["meta.lr=0.1"], "no key has several values"),
        (["meta.lr="], "meta.lr=: a value is missing"),
        (["meta.lr=0.1,,1"], "meta.lr=0.1,,1: a value is missing"),
        (["meta.lr=0.1,x"], "meta.lr = x: must be a number"),
        (["meta.lr=0.1,-1"], "meta.lr = -1: must be greater than 0"),
        (["meta.lrr=1,2"], "meta.lrr = 1: unknown key; did you mean meta.lr?"),
        (["run.seed=0.."], "0.. is no range; write FIRST..LAST"),
        (["run.seed=2..0"], "2..0 is no range"),
        (["run.seed=0..0.5"], "0..0.5 is no range"),
        (["run.seed=0..999999999999"], "makes 1,000,000,000,000 runs; at most 500"),
        (["run.seed=0..99", "meta.lr=1,2,3,4,5,6"], "meta.lr=1,2,3,4,5,6: makes 600 runs; at most 500"),
        (["meta.lr=0.1,0.10"], "meta.lr=0.1,0.10: names a value twice"),
        (["meta.lr=1,2", "meta.lr=3,4"], "meta.lr is given twice"),
        (["workers.count=1,2"], "workers.count says where a run trains"),
        (["run.dir=a,b"], "run.dir says where a run trains"),
        (["meta.lr=1,2", "--halving=2"], "--halving 2: must be from 0 to 1, for 2 settings"),
        (["run.seed=0..3", "--halving=1"], "--halving 1: must be from 0 to 0"),
        (["meta.lr=1,2", "--halving=-1"], "--halving -1: must be from 0 to 1"),
        (["meta.lr=1,2", "meta.steps=3", "--halving=1"], "meta.steps = 3 must be at least 4"),
        (["meta.lr=1,2", "task.agent_steps=20,30", "--halving=1"], "task.agent_steps must be the same in all runs"),
        (["meta.lr=1,2", "--by=held_out"], "holds nothing out of a task"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_nothing_is_written(own, tmp_path, capsys, arguments, fragment):
    before = sorted(tmp_path.iterdir())
    code = sweep(own, *arguments)
    said = capsys.readouterr()
    assert_one_line(code, said.out, said.err, fragment)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_holds_anything_else_is_refused(own, tmp_path, capsys):
    two = ["meta.lr=0.1,1"]
    folder = tmp_path / "sweep"
    assert sweep(own, *SMALL, *two, "meta.steps=1") == 0
    capsys.readouterr()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.tex").touch()
    (tmp_path / "made").mkdir()
    run = make_run(tmp_path / "made")
    before = sorted(tmp_path.rglob("*"))
    for arguments, fragment in [
        (["meta.lr=0.1,2"], f"run.dir = {folder}: holds another sweep: it differs in grid"),
        ([*two, "meta.steps=2"], "it differs in other keys of the configuration"),
        ([*two, "meta.steps=8", "--halving=1"], "it differs in halving"),
        ([*two, f"run.dir={run}"], f"holds a run; give the sweep a folder, e.g. run.dir={run}-sweep"),
        ([*two, f"run.dir={tmp_path / 'files'}"], "holds files but no sweep"),
        ([*two, f"run.dir={own}"], "is a file; it must be a directory"),
    ]:
        given = [text for text in SMALL if text.partition("=")[0] not in str(arguments)]
        code = sweep(own, *given, "meta.steps=1", *arguments)
        said = capsys.readouterr()
        assert_one_line(code, said.out, said.err, fragment)
    assert sorted(tmp_path.rglob("*")) == before
