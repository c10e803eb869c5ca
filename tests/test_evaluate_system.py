"""`leap-rl evaluate` on real games: the same bytes wherever and however it runs, and no effect of nothing."""

import csv
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from leap_rl.processes import initial_parameters
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import Progress
from leap_rl.types import Checkpoint
from tests.cli_helpers import cli, held, here, make_config, wait_for

pytestmark = pytest.mark.slow

# 24 gradient steps; episodes of 400 frames end within them. Two arms of one initialization, and the random one.
WHAT = ("--games", "breakout", "--seeds", "2")
NUM_TASKS = 6
DATA = ("curves.csv", "probes.json", "report.md", "learning_curves.png", "over_games.svg")


@dataclass(frozen=True)
class Evaluation:
    path: Path
    result: dict

    def data(self):
        return {name: (self.path / name).read_bytes() for name in DATA}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with an initialization: that of a network, a little scaled."""
    config = make_config(tmp_path_factory.mktemp("run"))
    scaled = {name: value * 1.1 for name, value in initial_parameters(config, 3).items()}
    with open_run(config) as directory:
        directory.commit(Checkpoint(1, scaled, {}), Progress(1))
    return Path(config.run.dir)


def command(run, out, *more, backend="serial"):
    return ["evaluate", run, run, f"backend={backend}", *WHAT, *more, "--out", out, "--json"]


def evaluate(run, out, *more, backend="serial"):
    """Serially in this process, on Ray in one of its own."""
    done = (cli if backend == "ray" else here)(*command(run, out, *more, backend=backend))
    assert done.returncode == 0, done.stderr
    return Evaluation(out, json.loads(done.stdout))


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    return evaluate(run, tmp_path_factory.mktemp("undisturbed") / "evaluation")


def test_curves_have_every_task_to_its_end(undisturbed):
    rows = list(csv.DictReader((undisturbed.path / "curves.csv").open()))
    tasks = {(row["arm"], row["game"], row["seed"]) for row in rows}
    assert len(tasks) == NUM_TASKS
    assert [int(row["agent_steps"]) for row in rows if row["seed"] == "0" and row["arm"] == "run"][-1] == 240
    assert any(row["episodic_return"] for row in rows)
    assert undisturbed.result["num_seeds"] == 2


def test_the_same_initialization_twice_shows_no_difference(undisturbed):
    rows = list(csv.DictReader((undisturbed.path / "curves.csv").open()))
    curves = {arm: [{**row, "arm": ""} for row in rows if row["arm"] == arm] for arm in ("random", "run", "run-2")}
    assert curves["run"] == curves["run-2"] != curves["random"]
    first, second = ({**entry, "arm": ""} for entry in undisturbed.result["aggregates"][1:])
    assert first == second


def finished(out):
    """Tasks that are done: file → when it was written."""
    found = {}
    for folder in sorted((out / "tasks").glob("*")):
        for file in folder.glob("000024.safetensors"):
            found[file] = file.stat().st_mtime_ns
    return found


@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_a_killed_evaluation_goes_on_with_the_same_command_to_the_same_bytes(run, undisturbed, tmp_path, backend):
    out = tmp_path / "evaluation"
    with held(tmp_path, *command(run, out, backend=backend), meta_step=1, step=7) as (driver, _):  # second seed
        wait_for(lambda: len(finished(out)) >= 2, driver)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    before = finished(out)
    assert 2 <= len(before) < NUM_TASKS
    again = evaluate(run, out, backend=backend)
    assert again.data() == undisturbed.data()
    assert len(finished(out)) == NUM_TASKS
    assert {file: time for file, time in finished(out).items() if file in before} == before, "left as they are"


def test_a_finished_evaluation_trains_nothing_and_report_writes_the_same(run, undisturbed):
    before, data = finished(undisturbed.path), undisturbed.data()
    assert evaluate(run, undisturbed.path).data() == data
    os.remove(undisturbed.path / "report.md")
    assert here("report", undisturbed.path).returncode == 0
    assert undisturbed.data() == data
    assert finished(undisturbed.path) == before


def test_more_seeds_extend_an_evaluation_and_leave_what_is_done(run, undisturbed, tmp_path):
    out = tmp_path / "evaluation"
    one = command(run, out, "--seeds", "1")
    few = here(*one)
    assert few.returncode == 0, few.stderr
    before = finished(out)
    done = here(*command(run, out))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("extended: num_seeds (1 → 2)") == 1
    assert {file: time for file, time in finished(out).items() if file in before} == before
    assert (out / "curves.csv").read_bytes() == (undisturbed.path / "curves.csv").read_bytes()
    refused = here(*one)
    assert (refused.returncode, "num_seeds (2 there, 1 here)" in refused.stderr) == (2, True)


def test_another_evaluation_is_refused_and_says_what_differs(run, undisturbed, tmp_path):
    config = make_config(tmp_path)
    with open_run(config) as directory:
        zeros = {name: torch.zeros_like(value) for name, value in initial_parameters(config, 3).items()}
        directory.commit(Checkpoint(1, zeros, {}), Progress(1))
    data = undisturbed.data()
    for arguments, parts in (
        (["evaluate", run, run, "--games", "pong"], ["games (breakout there, pong here)", "num_seeds"]),
        (["evaluate", run, *WHAT], ["arms (random, run "]),
        (["evaluate", config.run.dir, run, *WHAT], ["arms (random, run "]),
        (["evaluate", run, run, *WHAT, "--agent-steps", "600"], ["task.agent_steps (235 there, 600 here)"]),
    ):  # fmt: skip
        done = here(*arguments, "--out", undisturbed.path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        for part in parts:
            assert part in done.stderr
    assert undisturbed.data() == data


# Arms that are added: of eight, the ceiling's task is slot 3

MORE = ("--arms", "ceiling,frozen,shrink-perturb=0.5", "--seeds", "1")


@pytest.fixture(scope="module")
def with_more_arms(run, tmp_path_factory):
    return evaluate(run, tmp_path_factory.mktemp("more") / "evaluation", *MORE)


def last_row(evaluation, arm):
    rows = list(csv.DictReader((evaluation.path / "curves.csv").open()))
    return [{**row, "arm": ""} for row in rows if row["arm"] == arm][-1]


def test_more_arms_are_trained_to_their_end(with_more_arms):
    names = ["random", "run", "run-2", "ceiling", "run-frozen", "run-2-frozen", "run-shrink-perturb-0.5",
             "run-2-shrink-perturb-0.5"]  # fmt: skip
    assert [entry["arm"] for entry in with_more_arms.result["aggregates"]] == names
    ends = {arm: last_row(with_more_arms, arm) for arm in names}
    assert {row["agent_steps"] for row in ends.values()} == {"240"}
    assert ends["run-frozen"] == ends["run-2-frozen"]
    assert len({row["path_length"] for row in ends.values()}) == 5


def test_ray_gives_the_same_bytes(run, with_more_arms, tmp_path):
    out = tmp_path / "evaluation"
    assert evaluate(run, out, *MORE, "workers.count=2", backend="ray").data() == with_more_arms.data()


def test_a_ceiling_that_is_killed_on_ray_goes_on_serially_to_the_same_bytes(run, with_more_arms, tmp_path):
    out = tmp_path / "evaluation"
    shutil.copytree(with_more_arms.path, out)
    shutil.rmtree(out / "tasks" / "000000-03")
    with held(tmp_path, *command(run, out, *MORE, backend="ray"), meta_step=0, step=7) as (driver, _):
        wait_for(lambda: (out / "tasks" / "000000-03" / "000007.safetensors").exists(), driver)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    before = finished(out)
    assert len(before) == 7
    assert evaluate(run, out, *MORE).data() == with_more_arms.data()
    assert {file: time for file, time in finished(out).items() if file in before} == before, "left as they are"
