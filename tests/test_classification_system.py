"""Classification through the command line, on real Ray: one fingerprint whatever happens, evaluation, and bad input."""

import csv
import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from leap_rl.cli import main
from leap_rl.runs.run_files import read_metrics
from tests.alphabets import drawings, tiny_tree, write_zip
from tests.cli_helpers import cli, here, started, wait_for
from tests.results import Result, assert_same_run, committed

LONGER = {"task.agent_steps": 60, "classifier.filters": 8}  # long enough to be met in mid-task


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_zip(tmp_path_factory.mktemp("omniglot") / "images.zip")


def write_config(folder, archive, **changes):
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tiny_tree(archive, folder / "run", **LONGER | changes)))
    return file


def train(folder, archive, **changes):
    done = here("train", write_config(folder, archive, **changes), "--json")
    assert done.returncode == 0, done.stderr
    return Result(json.loads(done.stdout), read_metrics(folder / "run"), folder / "run")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, archive):
    """The serial run that every other run must equal."""
    return train(tmp_path_factory.mktemp("undisturbed"), archive)


@pytest.mark.slow
def test_rows_have_accuracies_and_the_last_of_a_task_that_of_held_out_drawings(undisturbed):
    tasks = [row for row in undisturbed.rows if row["kind"] == "task"]
    assert len(tasks) == 9
    for row in tasks:
        assert (row["agent_steps"], row["frames"]) == (60, 480)
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["held_out_accuracy"] <= 1
        assert "episodic_return" not in row
    segments = [row for row in undisturbed.rows if row["kind"] == "segment"]
    assert len(segments) == 9 * 12
    assert all((row["held_out_accuracy"] is None) == (row["task_agent_steps"] < 60) for row in segments)


@pytest.mark.slow
def test_a_killed_driver_of_workers_on_ray_resumes_to_the_serial_run(tmp_path, archive, undisturbed):
    run = tmp_path / "run"
    command = ["train", write_config(tmp_path, archive), "backend=ray", "workers.count=2"]

    def in_mid_task():
        kinds = [row["kind"] for row in read_metrics(run) if row["meta_step"] == 1]
        return "segment" in kinds and kinds.count("task") < 3

    with started(tmp_path, *command) as driver:
        wait_for(in_mid_task, driver)
        driver.kill()
        assert driver.wait() == -signal.SIGKILL
    assert committed(run, 1)
    assert not committed(run, 2)

    done = cli(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert "resuming at meta-step 2" in done.stderr
    assert_same_run(Result(json.loads(done.stdout), read_metrics(run), run), undisturbed)


@pytest.mark.slow
def test_maml_is_taken_up_again_to_the_same_run(tmp_path_factory, archive):
    """A task that stopped after its first segment: killed between two, and gone on from what was saved."""
    few = {"meta.rule": "maml", "meta.steps": 1, "meta.batch_size": 1, "task.agent_steps": 12}
    whole = train(tmp_path_factory.mktemp("whole"), archive, **few)
    folder = tmp_path_factory.mktemp("stopped")
    with started(folder, "train", write_config(folder, archive, **few)) as process:
        wait_for(lambda: list((folder / "run").glob("tasks/*/*.safetensors")), process)
        process.kill()
        process.wait()
    assert not committed(folder / "run", 1)
    assert_same_run(train(folder, archive, **few), whole)


# Evaluation


@dataclass(frozen=True)
class Evaluation:
    path: Path
    result: dict
    rows: list


def evaluate(run, archive, out):
    ours = ("backend=serial", f"alphabets.source={archive}")  # paths are the reader's to give
    done = here("evaluate", run, *ours, "--seeds", "2", "--agent-steps", "12", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((out / "curves.csv").open()))
    return Evaluation(out, json.loads(done.stdout), rows)


@pytest.fixture(scope="module")
def evaluation(undisturbed, archive, tmp_path_factory):
    return evaluate(undisturbed.path, archive, tmp_path_factory.mktemp("evaluation") / "out")


@pytest.mark.slow
def test_an_evaluation_scores_the_training_and_the_held_out_drawings(evaluation):
    assert len({(row["arm"], row["game"], row["seed"]) for row in evaluation.rows}) == 4, "2 arms, 1 alphabet, 2 seeds"
    [result] = [entry for entry in evaluation.result["results"] if entry["arm"] == "run"]
    mine = [row for row in evaluation.rows if row["arm"] == "run"]
    ends = [float(row["held_out_accuracy"]) for row in mine if row["held_out_accuracy"]]
    assert len(ends) == 2
    assert result["final"]["value"] == pytest.approx(sum(ends) / 2)
    accuracies = [float(row["accuracy"]) for row in mine]
    assert len(accuracies) == 24, "a segment is a gradient step here"
    assert result["area"]["value"] == pytest.approx(sum(accuracies) / 24)
    [_, overall] = evaluation.result["aggregates"]
    assert overall["final"]["value"] == pytest.approx(sum(ends) / 2), "of accuracies, an interquartile mean"
    text = (evaluation.path / "report.md").read_text()
    for part in ("1 alphabet(s), 2 seed(s), 12 gradient steps (96 drawings)", "## Over all alphabets",
                 "accuracy on the drawings that the task held out"):  # fmt: skip
        assert part in text
    assert not re.search(r"\b(games?|human|episodes?|raw)\b", text.lower())


@pytest.mark.slow
def test_a_model_card_has_the_accuracies_of_the_evaluation(undisturbed, evaluation, tmp_path):
    (tmp_path / "run").symlink_to(undisturbed.path)
    (tmp_path / "run-evaluation").symlink_to(evaluation.path)
    assert main(["export", str(tmp_path / "run"), "--to", "hub", "--out", str(tmp_path / "card")]) == 0
    card = (tmp_path / "card" / "README.md").read_text()
    assert "| alphabet | from | final score | 95 % interval |" in card
    for result in evaluation.result["results"]:
        assert f"| {result['game']} | {result['arm']} | {result['final']['value']:.3f} |" in card
    assert "atari" not in card
    assert "reinforcement" not in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--games", "Script_9"], "unknown alphabet 'Script_9'"),
        (["--games", "pong"], "unknown alphabet 'pong'"),
        (["--games", "Script_1", "Script_1"], "--games: Script_1 is listed 2 times"),
        (["--agent-steps", "1"], "--agent-steps 1: task.agent_steps = 1: must be more than 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(undisturbed, archive, tmp_path, capsys, arguments, part):
    evaluate = ["evaluate", str(undisturbed.path), f"alphabets.source={archive}", "--out", str(tmp_path / "out")]
    assert main([*evaluate, *arguments]) == 2
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert part in stderr
    assert not (tmp_path / "out").exists()


# Bad input to training: one line, exit code 2, nothing written


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"alphabets.source": "/nowhere"}, "alphabets.source = /nowhere: No such file or directory"),
        ({"alphabets.train": 40}, "alphabets.train = 40: must be at most 5"),
        ({"alphabets.checksum": "1" * 64}, "alphabets.checksum = 1111"),
        ({"precision": "bf16"}, "precision = bf16: process = classification computes in fp32"),
        ({"agent.lr": 0.1}, "agent: only process = a2c, gymnasium or rllib has it, not classification"),
        ({"meta.rule": "mmaml"}, "meta.rule = mmaml"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, archive, capsys, changes, part):
    assert main(["train", str(write_config(tmp_path, archive, **changes))]) == 2
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert part in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.slow
def test_a_run_whose_drawings_have_changed_is_not_continued(tmp_path, archive, capsys):
    copy = tmp_path / "images.zip"
    copy.write_bytes(archive.read_bytes())
    train(tmp_path, copy, **{"meta.steps": 1, "meta.batch_size": 1, "task.agent_steps": 5})
    other = write_config(tmp_path, write_zip(tmp_path / "images.zip", _without_one()),
                         **{"meta.steps": 1, "meta.batch_size": 1, "task.agent_steps": 5})  # fmt: skip
    done = cli("train", other)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "holds a run of another configuration: alphabets.checksum" in done.stderr


def _without_one():
    files = dict(drawings())
    files["images/Script_0/character01/0001.png"] = files["images/Script_0/character02/0001.png"]
    return files
