"""Learning processes of one's own: found by name, held to what they must do, the same bits wherever they run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from leap_rl.config_files import parse_config
from leap_rl.evaluation.results import _curves_csv
from leap_rl.files.storage import open_storage
from leap_rl.processes import initial_parameters, process_of, process_type
from leap_rl.runs.run_files import read_metrics
from leap_rl.runs.task_store import TaskStore
from leap_rl.streaming import TaskStream
from leap_rl.testing import ProcessError, check_process, make_config, walk
from leap_rl.types import SHARED, BadInputError, Broadcast, Task, TaskError
from tests.cli_helpers import cli, environment, held, kill_workers, wait_for

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
SINUSOIDS = "docs.examples.sinusoids:PROCESS"
TASK = Task(0, 0, "7", seed=3)
OURS = {
    "a2c": {
        "tasks": {"games": ["pong"]}, "agent": {"lr": 1e-4, "num_envs": 2}, "task.agent_steps": 200,
        "env": {"max_episode_frames": 400},
    },
    "classification": {"alphabets": {"train": 2, "held_out": 1}, "classifier": {"filters": 4}, "task.agent_steps": 20},
}  # fmt: skip


def write(folder, **changes):
    tree = {
        "process": SINUSOIDS, "run": {"dir": str(folder / "run")}, "stream": {"segment_updates": 20},
        "meta": {"steps": 3, "batch_size": 4, "lr": 0.1, "max_task_norm": 1}, "task": {"agent_steps": 100},
    }  # fmt: skip
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump(tree | changes))
    return file


def fingerprint_of(folder, changes, *overrides):
    folder.mkdir()
    done = cli("train", write(folder, **changes), *overrides, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["fingerprint"]


# What a process must do


def test_the_example_keeps_what_it_must():
    check_process(SINUSOIDS)


def test_a_loop_over_an_environment_keeps_what_it_must():
    check_process("docs.examples.policy_gradient:PROCESS", {"task.agent_steps": 15})


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_our_own_processes_do(name):
    check_process(name, OURS[name])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("LOSSLESS", "state() leaves something out"),
        ("DICE", "the same seed gives other increments"),
        ("SILENT", "segment 1: statistics lack ['frames']"),
        ("TIRING", "segment 2: statistics lack ['frames']"),
        ("UNWRAPPED", "segment 1: statistics: frames is of type Tensor; it must be an int or a float"),
        ("RENAMED", "theirs is (40, 1), in the initialization None"),
        ("ENDLESS", "last must be true of the last segment alone"),
        ("DOUBLED", "do not add up to the whole path's"),
        ("FORGETFUL", "initial_parameters(config, seed) is not repeatable"),
    ],
)
def test_a_fault_is_named_in_one_line(fault, message):
    with pytest.raises(ProcessError) as error:
        check_process(f"tests.own_processes:{fault}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("meta.rule", "maml"), ("meta.loss_difference", "paired")],
)
def test_what_a_loop_does_not_carry_out_is_refused(key, value):
    """It would have been ignored, or made each meta-gradient zero."""
    with pytest.raises(BadInputError) as error:
        make_config(SINUSOIDS, {key: value})
    assert str(error.value) == f"{key} = {value}: process = {SINUSOIDS} does not have it"


def test_a_loop_may_count_in_tensors_and_a_run_has_them_as_numbers():
    check_process("tests.own_processes:COUNTED")
    config = make_config("tests.own_processes:COUNTED", {})
    [increment, *_], _ = walk(config, TASK, initial_parameters(config, 0))
    found = {name: (type(value), value) for name, value in increment.statistics.items()}
    assert (found["frames"], found["steps"], found["exact_sum"]) == ((int, 70), (int, 7), (float, 3.5))
    assert found["negative_loss_sum"] == (float, -found["loss_sum"][1])


@pytest.mark.parametrize(("fault", "said"), [("UNWRAPPED", "TypeError: "), ("LISTED", "AttributeError: ")])
def test_what_a_process_hands_out_is_its_tasks_own_fault(tmp_path, fault, said):
    """Nothing of it has been stored, and the run goes on without the task."""
    config = make_config(f"tests.own_processes:{fault}", {})
    store, given = TaskStore(open_storage(str(tmp_path))), Broadcast({SHARED: initial_parameters(config, 0)})
    with pytest.raises(TaskError, match=rf"^7 \(meta-step 0, slot 0\): {said}"):
        list(TaskStream(config, store, TASK, given).increments())
    assert store.load(TASK) is None


def test_the_curves_of_a_process_have_the_means_that_it_shows(tmp_path):
    config = make_config("tests.own_processes:PLAIN", {})
    store, given = TaskStore(open_storage(str(tmp_path))), Broadcast({SHARED: initial_parameters(config, 0)})
    stream = TaskStream(config, store, TASK, given)
    list(stream.increments())
    header, *rows = _curves_csv([stream.ledger], process_of(config).measures).splitlines()
    assert header.endswith(",steps,negative_loss,path_length,energy,moves,loss_rises")
    assert len(rows) == len(stream.ledger.reports)


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:PROCESS", "no_such_module cannot be imported: ModuleNotFoundError"),
        ("tests.own_processes:NOTHING", "tests.own_processes has no NOTHING; it has"),
        ("tests.own_processes:NUMBER", "is a int; it must be an instance of leap_rl.processes.ProcessType"),
        ("tests.own_processes:CLASS", "is a class; it must be an instance, e.g. PROCESS = Sinusoids()"),
        ("tests.own_processes:OLDER", "was written for version 0 of the interface"),
        ("nothing", "must be 'a2c', 'classification', 'gymnasium' or 'rllib', or name your own as module:NAME"),
    ],
)
def test_a_name_that_is_no_process_is_one_line(name, message):
    with pytest.raises(BadInputError) as error:
        process_type(name)
    assert str(error.value).startswith(f"process = {name}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_from_elsewhere_names_no_code_to_import(tmp_path, monkeypatch, run_main):
    monkeypatch.setattr("leap_rl.processes.registry._given", {})
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w').write('')\n")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, process="evil:PROCESS")
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "own.yaml").rename(run / "config.yaml")
    for command in (("evaluate", run), ("show", run), ("train", run), ("export", run, "--to", "hub")):
        code, _, stderr = run_main(*command)
        assert (code, stderr.count("\n")) == (2, 1)
        assert "names code to import" in stderr
    assert not marker.exists()
    assert run_main("show", run, "process=evil:PROCESS")[0] == 2  # the reader's word: it is imported, and is no process
    assert marker.exists()


def test_show_and_report_take_nothing_else_behind_the_path(tmp_path, run_main):
    for command in ("show", "report"):
        code, _, stderr = run_main(command, tmp_path, "meta.steps=3")
        assert (code, stderr) == (2, "error: override 'meta.steps=3': only process=NAME can be given here\n")


def test_the_commands_that_training_ends_with_are_not_refused(tmp_path, run_main, monkeypatch):
    monkeypatch.setattr("leap_rl.processes.registry._given", {})
    code, stdout, stderr = run_main("train", write(tmp_path), "backend=serial", "meta.steps=1", "meta.batch_size=1")
    assert code == 0, stderr
    named = re.findall(r"leap-rl (show|evaluate) (\S+) (process=\S+)$", stdout, re.MULTILINE)
    assert named == [(command, str(tmp_path / "run"), f"process={SINUSOIDS}") for command in ("show", "evaluate")]
    monkeypatch.setattr("leap_rl.processes.registry._given", {})
    assert run_main(*named[0])[0] == 0


def test_every_command_takes_the_name_that_it_asks_for(tmp_path, run_main, monkeypatch):
    run = tmp_path / "run"
    code, _, stderr = run_main("train", write(tmp_path), "backend=serial", "meta.steps=1", "meta.batch_size=1")
    assert code == 0, stderr
    for command, exit_code, said in (
        (("status", run), 0, ""),
        (("diff", run, run), 0, ""),
        (("export", run, "--to", "hub", "--out", tmp_path / "hub"), 0, ""),
        (("export", run, "--to", "torch", "--out", tmp_path / "torch"), 2, "it can be exported --to hub"),
        (("play", run, "--out", tmp_path / "clip.gif"), 2, "has no screen to be seen; a2c has"),
    ):
        monkeypatch.setattr("leap_rl.processes.registry._given", {})
        code, _, stderr = run_main(*command)
        assert (code, stderr.count("\n"), f"give process={SINUSOIDS} yourself" in stderr) == (2, 1, True), command
        monkeypatch.setattr("leap_rl.processes.registry._given", {})
        code, _, stderr = run_main(*command, f"process={SINUSOIDS}")
        assert (code, stderr.count("\n"), said in stderr) == (exit_code, exit_code // 2, True), (command, stderr)


def test_what_a_reader_has_given_a_file_may_name(monkeypatch):
    tree = {"process": SINUSOIDS, "run": {"dir": "x"}, "meta": {"steps": 1, "batch_size": 1, "lr": 1.0},
            "task": {"agent_steps": 5}}  # fmt: skip
    monkeypatch.setattr("leap_rl.processes.registry._given", {})
    with pytest.raises(BadInputError, match="names code to import"):
        parse_config(tree, may_import=False)
    parse_config(tree)
    parse_config(tree, may_import=False)


# The same bits wherever it runs


CARTPOLES = {
    "process": "gymnasium", "tasks": {"environments": ["4*cartpole:length=0.3..2"]}, "task": {"agent_steps": 1000},
    "agent": {"lr": 1e-3, "num_envs": 2},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, CARTPOLES], ids=["one's own", "gymnasium"])
def test_a_process_ends_in_the_same_bits_serial_on_ray_and_after_a_kill(tmp_path, changes):
    serial = fingerprint_of(tmp_path / "serial", changes, "backend=serial")
    assert fingerprint_of(tmp_path / "one", changes, "workers.count=1") == serial
    folder = tmp_path / "two"
    folder.mkdir()
    command = ["train", write(folder, **changes), "workers.count=2", "--json"]
    with held(folder, *command, meta_step=1, step=30) as (driver, steps):
        wait_for(lambda: any(row["meta_step"] == 1 for row in read_metrics(folder / "run")), driver)
        kill_workers(driver)
        steps.let_go()
        assert driver.wait(timeout=600) == 0, (folder / "stderr").read_text()
    assert json.loads((folder / "stdout").read_text())["fingerprint"] == serial


@pytest.mark.slow
def test_the_example_is_trained_and_evaluated_as_it_says(tmp_path):
    def run(*command):
        return subprocess.run(
            [sys.executable, "-m", "leap_rl.cli", *map(str, command)], cwd=EXAMPLES, text=True, capture_output=True,
            timeout=600, env=environment(),
        )  # fmt: skip

    done = run("train", "sinusoids.yaml", "backend=serial", f"run.dir={tmp_path / 'run'}", "meta.steps=10")
    assert done.returncode == 0, done.stderr
    done = run("evaluate", tmp_path / "run", "process=sinusoids:PROCESS", "backend=serial", "--seeds", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert "wave" in (tmp_path / "run-evaluation" / "report.md").read_text()
    done = run("report", tmp_path / "run-evaluation")
    assert (done.returncode, "names code to import" in done.stderr) == (2, True)
    assert run("report", tmp_path / "run-evaluation", "process=sinusoids:PROCESS").returncode == 0


@pytest.mark.slow
def test_an_installed_package_registers_its_process(tmp_path):
    package = tmp_path / "source"
    package.mkdir()
    (package / "waves.py").write_text((EXAMPLES / "sinusoids.py").read_text())
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "waves"\nversion = "1"\n'
        '[project.entry-points."leap_rl.processes"]\nwaves = "waves:PROCESS"\n'
        '[tool.setuptools]\npy-modules = ["waves"]\n'
    )
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(package)], check=True)
    config = write(tmp_path, process="waves")
    extra = {"PYTHONPATH": str(tmp_path / "site")}
    done = cli("train", config, "backend=serial", "meta.steps=1", "--json", extra=extra)
    assert done.returncode == 0, done.stderr
    shown = cli("show", tmp_path / "run", "--json", extra=extra)
    assert json.loads(shown.stdout)["config"]["process"] == "waves"
