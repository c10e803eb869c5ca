"""The command line: help that helps, and bad input in one line, exit code 2, with nothing created."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import leap_rl
from leap_rl.config_files import all_keys
from leap_rl.runs.run_files import fingerprint
from tests.cli_helpers import assert_one_line, cli, environment, make_checkpoint, make_run, truncate, write_config

COMMANDS = ("train", "evaluate", "report", "games", "show")


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_helps(run_main, command):
    code, stdout, stderr = run_main(command, "--help")
    assert (code, stderr) == (0, "")
    assert f"usage: leap-rl {command}" in stdout
    assert "--json" in stdout
    assert "example" in stdout or "--keys" in stdout


def test_help_lists_every_command():
    done = cli("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout


def test_version(run_main):
    assert run_main("--version") == (0, f"leap-rl {leap_rl.__version__}\n", "")


def test_keys_lists_every_key_and_what_may_differ_on_a_resume(run_main):
    code, stdout, _ = run_main("train", "--keys")
    assert code == 0
    assert len(all_keys()) > 40
    for key in all_keys():
        assert f"\n{key} " in f"\n{stdout}"
    assert "energy | length" in stdout or "length | energy" in stdout
    free = stdout.splitlines()[-1]
    assert "resumed" in free
    assert "workers" in free
    assert "backend" in free


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nosuch",),
        ("train",),
        ("show",),
        ("games", "pong"),
        ("games", "--json", "pong"),
        ("export", "a", "b", "--to", "torch"),
        ("train", "--nosuch", "c.yaml"),
        ("train", "c.yaml", "--json", "meta.steps=3", "--nosuch"),
    ],
    ids=" ".join,
)
def test_arguments_that_are_not_understood_are_one_line(run_main, arguments):
    assert_one_line(*run_main(*arguments), "--help")


# games


def test_games_as_json(run_main):
    code, stdout, _ = run_main("games", "--json")
    games = {game["name"]: game for game in json.loads(stdout)}
    assert code == 0
    assert len(games) == 103
    assert (games["breakout"]["num_actions"], games["breakout"]["pool"]) == (4, "held-out")
    assert games["pong"]["pool"] == "meta-training"
    assert games["alien"]["pool"] == "out-of-distribution"
    assert sum(game["pool"] == "meta-training" for game in games.values()) == 25
    assert not {"combat", "joust", "maze_craze", "warlords"} & set(games)
    for game in games.values():
        assert game["default_mode"] in game["modes"]
        assert game["difficulties"]


def test_games_as_a_table_has_a_line_for_each(run_main):
    code, stdout, stderr = run_main("games")
    assert (code, stderr) == (0, "")
    [breakout] = [line for line in stdout.splitlines() if line.startswith("breakout ")]
    assert breakout.split()[1] == "4"
    assert breakout.endswith("held-out")
    assert len([line for line in stdout.splitlines() if line.endswith(("-", "training", "held-out", "ution"))]) == 103
    assert "two players" in stdout


def test_a_reader_that_stops_early_is_no_error():
    """`leap-rl games | head -1`"""
    command = f"'{sys.executable}' -m leap_rl.cli games | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=600, env=environment())
    assert (done.returncode, done.stderr) == (0, "")


# show


def test_show_as_json(tmp_path, run_main):
    code, stdout, stderr = run_main("show", make_run(tmp_path, last=2), "--json")
    state = json.loads(stdout)
    assert (code, stderr) == (0, "")
    assert (state["meta_step"], state["finished"]) == (2, False)
    assert state["fingerprint"] == fingerprint(make_checkpoint(2).initialization)
    assert len(state["config_hash"]) == 64


def test_show_of_a_finished_run(tmp_path, run_main):
    code, stdout, _ = run_main("show", make_run(tmp_path, last=3))
    assert code == 0
    assert "meta-step 3 of 3, finished" in stdout
    assert fingerprint(make_checkpoint(3).initialization) in stdout
    assert "agent_steps: 235" in stdout  # the resolved configuration


def test_show_of_a_run_without_a_checkpoint(tmp_path, run_main):
    """What a run is before its first commit."""
    code, stdout, _ = run_main("show", make_run(tmp_path, last=-1), "--json")
    state = json.loads(stdout)
    assert (code, state["meta_step"], state["finished"], state["fingerprint"]) == (0, 0, False, None)


def test_show_says_which_checkpoint_is_passed_over(tmp_path, run_main):
    run = make_run(tmp_path, last=2)
    (run / "checkpoints" / "000002" / "done").unlink()
    code, stdout, _ = run_main("show", run)
    assert code == 0
    assert "000002: half-written, ignored" in stdout


def test_show_changes_nothing(tmp_path, run_main):
    run = make_run(tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}
    assert run_main("show", run)[0] == 0
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()} == before


def test_show_of_a_missing_directory_is_one_line(tmp_path):
    done = cli("show", tmp_path / "nosuch")
    assert_one_line(done.returncode, done.stdout, done.stderr, "nosuch", "does not exist")


def test_show_of_a_file_is_one_line(tmp_path, run_main):
    assert_one_line(*run_main("show", write_config(tmp_path)), "is a file")


def test_show_of_a_directory_that_is_no_run_is_one_line(tmp_path, run_main):
    assert_one_line(*run_main("show", tmp_path), "not a run directory", "config.yaml")


def test_show_of_a_truncated_initialization_is_one_line(tmp_path, run_main):
    run = make_run(tmp_path)
    truncate(run / "initialization.safetensors")
    assert_one_line(*run_main("show", run), "initialization.safetensors", "not a whole safetensors file")
    assert_one_line(*run_main("show", run, "--json"), "initialization.safetensors")


def test_show_of_an_empty_initialization_is_one_line(tmp_path, run_main):
    run = make_run(tmp_path)
    (run / "initialization.safetensors").write_bytes(b"")
    assert_one_line(*run_main("show", run), "initialization.safetensors")


def test_show_of_a_foreign_initialization_is_one_line(tmp_path, run_main):
    run = make_run(tmp_path)
    save_file({"model.embed_tokens.weight": torch.zeros(2)}, run / "initialization.safetensors", {"format": "pt"})
    assert_one_line(*run_main("show", run), "initialization.safetensors", "not an initialization of this project")


# Bad configurations

BAD_VALUES = [
    pytest.param({"tasks.games": ["pong", "asterix", "brekout"]}, ["tasks.games", "brekout", "breakout"], id="game"),
    pytest.param({"tasks.games": ["pong", "asterix", "joust"]}, ["joust", "two players"], id="two players"),
    pytest.param({"tasks.held_out": ["warlords"]}, ["warlords", "two players"], id="two players held out"),
    pytest.param({"tasks.games": []}, ["tasks.games"], id="no game"),
    pytest.param({"tasks.games": ["pong:mode=99", "asterix"]}, ["mode", "99"], id="mode"),
    pytest.param({"meta.batch_size": 5}, ["meta.batch_size = 5", "at most 4"], id="batch larger than the pool"),
    pytest.param({"tasks.held_out": ["pong"]}, ["tasks.held_out = pong", "tasks.games"], id="held out in the pool"),
    pytest.param({"tasks.held_out": ["Pong"]}, ["tasks.held_out = pong"], id="held out in the pool, spelt otherwise"),
    pytest.param({"meta.steps": 0}, ["meta.steps = 0", "greater than 0"], id="no meta-step"),
    pytest.param({"meta.batch_size": -1}, ["meta.batch_size = -1", "greater than 0"], id="negative batch"),
    pytest.param({"workers.count": 0}, ["workers.count = 0", "greater than 0"], id="no worker"),
    pytest.param({"agent.num_envs": -4}, ["agent.num_envs = -4"], id="negative environments"),
    pytest.param({"task.agent_steps": 0}, ["task.agent_steps = 0"], id="no agent step"),
    pytest.param({"stream.segment_updates": 0}, ["stream.segment_updates = 0"], id="empty segments"),
    pytest.param({"run.keep_checkpoints": 0}, ["run.keep_checkpoints = 0"], id="no checkpoint kept"),
    pytest.param({"run.seed": -1}, ["run.seed = -1"], id="negative seed"),
    pytest.param({"meta.lr": float("nan")}, ["meta.lr"], id="lr not a number"),
    pytest.param({"meta.steps": "many"}, ["meta.steps = many", "integer"], id="type"),
    pytest.param({"meta.metric": "distance"}, ["meta.metric = distance", "energy", "length"], id="choice"),
    pytest.param({"meta.stepz": 3}, ["meta.stepz", "unknown key", "meta.steps"], id="unknown key"),
    pytest.param({"agnt.lr": 3}, ["agnt", "unknown key", "agent"], id="unknown section"),
]


@pytest.mark.parametrize(("changes", "fragments"), BAD_VALUES)
def test_a_bad_value_is_one_line_and_creates_nothing(tmp_path, run_main, changes, fragments):
    config = write_config(tmp_path, changes)
    assert_one_line(*run_main("train", config), *fragments)
    assert listing(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("meta.steps=0", ["meta.steps = 0"]),
        ("meta.stepz=3", ["meta.stepz", "did you mean meta.steps"]),
        ("meta.steps", ["meta.steps", "key=value"]),
        ("=3", ["key=value"]),
        ("meta.steps.more=3", ["meta.steps.more=3"]),
        ("meta=3", ["meta = 3"]),
        ("tasks.games=[pong", ["tasks.games", "not YAML"]),
    ],
)
def test_a_bad_override_is_one_line_and_creates_nothing(tmp_path, run_main, override, fragments):
    config = write_config(tmp_path)
    assert_one_line(*run_main("train", config, override), *fragments)
    assert listing(tmp_path) == ["config.yaml"]


def test_overrides_and_options_come_in_any_order(tmp_path, run_main):
    config = write_config(tmp_path)
    for arguments in (
        ("--json", config, "meta.steps=0"),
        (config, "meta.steps=0", "--json"),
        (config, "--json", "meta.steps=0"),
        (config, "meta.lr=2.0", "--json", "meta.steps=0"),
    ):
        assert_one_line(*run_main("train", *arguments), "meta.steps = 0")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        pytest.param(b"run: [dir\nmeta: {", "not YAML", id="unclosed"),
        pytest.param(b"\tmeta: 3", "not YAML", id="tab"),
        pytest.param(b"run: \x00", "not YAML", id="control character"),
        pytest.param(b"\xff\xfe\x00\x01", "UTF-8", id="binary"),
        pytest.param(b"just a sentence", "mapping", id="a string"),
        pytest.param(b"- meta\n- run\n", "mapping", id="a list"),
        pytest.param(b"", "mapping", id="empty"),
        pytest.param(b"run: {dir: a}\nrun: {dir: b}\n", "twice", id="a key twice"),
        pytest.param(b"{[run, dir]: a}\n", "config.yaml", id="a list as key"),
        pytest.param(b"1: a\n", "not text", id="a number as key"),
        pytest.param(b"run:\n", "run", id="an empty section"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(tmp_path, run_main, content, fragment):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    assert_one_line(*run_main("train", file), fragment)
    assert listing(tmp_path) == ["config.yaml"]


def test_a_missing_configuration_is_one_line(tmp_path, run_main):
    assert_one_line(*run_main("train", tmp_path / "nosuch.yaml"), "nosuch.yaml", "No such file")
    assert listing(tmp_path) == []


def test_a_directory_as_configuration_is_one_line(tmp_path, run_main):
    assert_one_line(*run_main("train", tmp_path), "directory")


def test_the_program_itself_exits_so(tmp_path):
    """The cases above call main() in this process; two in one of their own show that they may."""
    for override, fragment in (("tasks.games=[pong,joust]", "two players"), ("meta.steps=-1", "meta.steps = -1")):
        done = cli("train", write_config(tmp_path), override)
        assert_one_line(done.returncode, done.stdout, done.stderr, fragment)
    assert listing(tmp_path) == ["config.yaml"]


# Run directories that cannot be used


def test_a_run_directory_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "run").write_text("mine")
    done = cli("train", write_config(tmp_path))
    assert_one_line(done.returncode, done.stdout, done.stderr, "run.dir", "is a file")
    assert (tmp_path / "run").read_text() == "mine"
    assert listing(tmp_path) == ["config.yaml", "run"]


def test_a_run_directory_that_cannot_be_made_is_one_line(tmp_path, run_main):
    """Nobody can make a directory in /proc, not even root."""
    config = write_config(tmp_path, {"run.dir": "/proc/leap_rl_run"})
    assert_one_line(*run_main("train", config), "run.dir = /proc/leap_rl_run", "writ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in a read-only directory")
def test_a_read_only_parent_is_one_line(tmp_path, run_main):
    config = write_config(tmp_path, {"run.dir": str(tmp_path / "locked" / "run")})
    (tmp_path / "locked").mkdir(mode=0o555)
    assert_one_line(*run_main("train", config), "run.dir", "not writable")
    assert listing(tmp_path) == ["config.yaml", "locked"]


def test_a_directory_with_other_files_is_one_line_and_left_alone(tmp_path, run_main):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    assert_one_line(*run_main("train", write_config(tmp_path)), "run.dir", "holds files but no run")
    assert listing(tmp_path) == ["config.yaml", "run", "run/thesis.tex"]


def test_a_run_of_another_configuration_is_one_line_and_left_alone(tmp_path, run_main):
    run = make_run(tmp_path)
    before = listing(tmp_path)
    assert_one_line(*run_main("train", write_config(tmp_path), "meta.lr=0.25", "run.seed=8"), "meta.lr", "run.seed")
    assert listing(tmp_path) == before
    assert json.loads(run_main("show", run, "--json")[1])["meta_step"] == 2


# Ray clusters that are not there: an answer within 30 seconds, on a machine with nothing else to do.

SECONDS = 120


def assert_unreachable(tmp_path, address, *fragments):
    done = cli("train", write_config(tmp_path), "backend=ray", f"ray.address={address}", timeout=SECONDS)
    assert_one_line(done.returncode, done.stdout, done.stderr, f"ray.address = {address}", *fragments)
    assert listing(tmp_path) == ["config.yaml"]


def test_an_address_where_nobody_listens_is_one_line(tmp_path):
    assert_unreachable(tmp_path, "127.0.0.1:1", "Connection refused")


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:port", ":6379", "ray://127.0.0.1", "127.0.0.1:99999"])
def test_a_malformed_address_is_one_line(tmp_path, address):
    assert_unreachable(tmp_path, address)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_is_not_ray_is_one_line(tmp_path, scheme):
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts connections and says nothing
        assert_unreachable(tmp_path, f"{scheme}127.0.0.1:{listener.getsockname()[1]}")


@pytest.mark.slow
def test_auto_without_a_cluster_is_one_line(tmp_path):
    """Where it sees no other process: any Ray cluster of this machine would be joined."""
    alone = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("namespaces are not permitted here, and auto would join whatever cluster runs on this machine")
    command = [*alone, sys.executable, "-m", "leap_rl.cli", "train", str(write_config(tmp_path))]
    command += ["backend=ray", "ray.address=auto"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=SECONDS)
    assert_one_line(done.returncode, done.stdout, done.stderr, "ray.address = auto")
    assert listing(tmp_path) == ["config.yaml"]
