"""What the machine around a run may be like: homes, paths, object stores, devices, signals; each in one line."""

import errno
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from leap_rl.backends import cluster
from leap_rl.files import object_storage
from leap_rl.files.storage import LocalStorage, expand, open_storage
from leap_rl.files.text import as_text
from leap_rl.runs.inspection import describe
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import Progress
from leap_rl.types import BadInputError, LeapRLError, StorageError
from tests.cli_helpers import environment, make_checkpoint, make_config, make_run, start, write_config
from tests.test_evaluation import HELD_OUT, plan
from tests.test_evaluation import make_run as make_evaluable_run


def assert_one_line(result, code=2):
    assert result[0] == code, result
    assert result[2].count("\n") == 1, result
    return result[2]


# Paths that no shell has expanded


@pytest.mark.parametrize("written", ["~/runs/a", "$HOME/runs/a", "${HOME}/runs/a", "$BASE/a"])
def test_a_home_and_variables_in_paths_are_expanded(tmp_path, monkeypatch, written):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BASE", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path, {"run.dir": written})
    assert config.run.dir == str(tmp_path / "runs" / "a")
    with open_run(config):
        assert not (tmp_path / "~").exists()
    assert expand(written) == config.run.dir


@pytest.mark.parametrize(
    "written",
    [
        "~nobody-of-this-name/a",
        "$NOT_SET_ANYWHERE/a",
        "runs/${NOT_SET_ANYWHERE}",
        "s3://b/$NOT_SET",
        "$(pwd)/a",
        "a-`date`",
    ],
)
def test_what_stands_for_nothing_is_refused(tmp_path, run_main, monkeypatch, written):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    for arguments in (("train", config, f"run.dir={written}"), ("show", written), ("report", written)):
        line = assert_one_line(run_main(*arguments))
        assert "is not known here" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]


def test_a_file_that_has_the_very_name_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~", "$USER_$SLURM_JOB_ID"):
        (tmp_path / name).mkdir()
        assert expand(name) == name
    assert expand("costs $5") == "costs $5"


# Object stores


@pytest.fixture
def silent_store(monkeypatch):
    """The URL of an object store that takes connections and never answers."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "y"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"s3://bucket/run?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{listener.getsockname()[1]}"


def test_a_store_that_does_not_answer_has_a_time_limit(silent_store, monkeypatch):
    monkeypatch.setattr(object_storage, "ANSWER_SECONDS", 1.0)
    store, began = open_storage(silent_store), time.monotonic()
    for ask in (store.names, lambda: store.read("config.yaml"), lambda: store.write("a", b"b")):
        with pytest.raises(StorageError, match="no answer in 1 s"):
            ask()
    assert time.monotonic() - began < 15


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_waiting_for_a_store_can_be_interrupted(silent_store, number):
    process = start("show", silent_store, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    task = f"/proc/{process.pid}/task"
    while not any("AwsEventLoop" in Path(task, thread, "comm").read_text() for thread in os.listdir(task)):
        time.sleep(0.05)  # until it asks
    time.sleep(2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 130, stderr
    assert stderr.startswith(b"interrupted")


def test_the_reason_is_that_of_the_store_and_not_of_what_was_tried_next(monkeypatch):
    class Unreachable:
        @staticmethod
        def from_uri(url):
            raise OSError("When resolving region for bucket: curlCode: 6, Could not resolve hostname")

    monkeypatch.setattr("pyarrow.fs.FileSystem", Unreachable)
    with pytest.raises(BadInputError, match="Could not resolve hostname"):
        open_storage("s3://no-such-bucket/run")


def test_a_scheme_that_nothing_knows_is_one_line(run_main):
    assert "nosuch" in assert_one_line(run_main("show", "nosuch://bucket/run"))


# Devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
@pytest.mark.parametrize("backend", [("backend=serial",), ("backend=ray", "workers.gpus=0.5")])
def test_cuda_where_there_is_none_is_refused_before_anything_is_made(tmp_path, run_main, backend):
    line = assert_one_line(run_main("train", write_config(tmp_path), "device=cuda", *backend))
    assert line.startswith("error: device = cuda: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_an_evaluation_on_cuda_where_there_is_none_is_refused_before_anything_is_made(tmp_path, run_main):
    make_evaluable_run(tmp_path)
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("device: cpu", "device: cuda"))
    line = assert_one_line(run_main("evaluate", tmp_path / "run", "backend=serial"))
    assert line.startswith("error: device = cuda: torch ")
    assert not (tmp_path / "run-evaluation").exists()


# Homes


@pytest.fixture
def homeless(monkeypatch):
    def unknown(_):
        raise KeyError("no entry")

    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_figures_without_a_home_are_drawn(homeless):
    script = (
        "import pwd\n"
        "def unknown(_): raise KeyError\n"
        "pwd.getpwuid = unknown\n"
        "from leap_rl.runs import figures\n"
        "print(len(figures.render_png(figures.heat_maps({'a': {'games': ['pong'], 'matrix': [[1.0]]}}))) > 1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, env=os.environ)
    assert done.stdout == "True\n", done.stderr


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_from_the_start(number):
    """The first process of a container ignores one for which it has no handler yet."""
    script = (
        "import os\n"
        "from leap_rl import cli, commands\n"
        f"commands.games = lambda options: os.kill(os.getpid(), {number:d})\n"
        "raise SystemExit(cli.main(['games']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )  # fmt: skip
    assert done.returncode == 130, done


# Run directories that go


def test_what_was_removed_under_a_run_does_not_come_back_in_part(tmp_path):
    run = make_run(tmp_path)
    with open_run(make_config(tmp_path)) as opened:
        opened.append_metrics([{"kind": "task"}])
        shutil.rmtree(run)
        for write in (lambda: opened.publish(make_checkpoint(3)), lambda: opened.append_metrics([{"kind": "task"}])):
            with pytest.raises(StorageError, match="was removed or moved"):
                write()
    assert not run.exists()


def test_a_run_of_which_some_files_were_removed_while_others_were_written_stops(tmp_path):
    run = make_run(tmp_path)
    with open_run(make_config(tmp_path)) as opened:
        shutil.rmtree(run)
        (run / "tasks").mkdir(parents=True)  # a worker had just written there
        with pytest.raises(StorageError, match="was removed"):
            opened.append_metrics([{"kind": "task"}])


def test_a_run_that_is_moved_while_it_trains_stops(tmp_path):
    run = make_run(tmp_path)
    with open_run(make_config(tmp_path)) as opened:
        run.rename(tmp_path / "elsewhere")
        with pytest.raises(StorageError, match="was removed or moved"):
            opened.publish(make_checkpoint(3))
    assert not run.exists()


def test_a_run_in_whose_place_another_folder_lies_stops(tmp_path):
    run = make_run(tmp_path)
    with open_run(make_config(tmp_path)) as opened:
        run.rename(tmp_path / "elsewhere")
        (run / "tasks").mkdir(parents=True)
        (run / ".lock").touch()
        for write in (lambda: opened.commit(make_checkpoint(3), Progress(3)), lambda: opened.append_metrics([{}])):
            with pytest.raises(StorageError, match="was removed or moved"):
                write()
    assert sorted(path.name for path in run.iterdir()) == [".lock", "tasks"]


@pytest.mark.parametrize("opened_before", [True, False])  # a worker opens it for each of its tasks
@pytest.mark.parametrize("name", ["a", "tasks/000000-00/000001.safetensors"])
def test_a_removed_folder_is_said(tmp_path, name, opened_before):
    (tmp_path / "run").mkdir()
    store = LocalStorage(str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run")
    if not opened_before:
        store = LocalStorage(str(tmp_path / "run"))
    with pytest.raises(StorageError, match="was removed or moved while it was in use"):
        store.write(name, b"")
    assert not (tmp_path / "run").exists()


# Ray


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "https://a.b:1", "grpc://a:1", "ray://http://a:1", "a b:1"]
)
def test_the_address_of_something_else_is_one_line(tmp_path, run_main, address):
    line = assert_one_line(run_main("train", write_config(tmp_path), "backend=ray", f"ray.address={address}"))
    assert "must be local, auto, host:port or ray://host:port" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/tmp/ray/session_1"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("AF_UNIX path length cannot exceed 107 bytes: /a/long/path"),
        OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes"),
    ],
)
def test_a_folder_that_ray_cannot_use_names_the_variable(monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(cluster.ray, "init", fails)
    with pytest.raises(LeapRLError, match="set RAY_TMPDIR to"):
        cluster._start(1, "ray.address = local")


# Names and numbers


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("task.agent_steps=1e6", "1_000_000"),
        ("meta.steps=2.0", "write 2"),
        ("run.seed=1e3", "1_000"),
        ("agent.max_grad_norm=None", "write null"),
        ("agent.reward_clip=none", "write null"),
        ("workers.per_node=None", "write null"),
        ("tasks.held_out=None", "write []"),
        ("tasks.games=pong, breakout", "write [pong, breakout]"),
    ],
)
def test_a_number_that_is_written_otherwise_says_how(tmp_path, run_main, override, hint):
    assert hint in assert_one_line(run_main("train", write_config(tmp_path), override))


def test_no_null_is_proposed_where_none_is_allowed(tmp_path, run_main):
    assert "null" not in assert_one_line(run_main("train", write_config(tmp_path), "meta.lr=None"))


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("PongNoFrameskip-v4", "pong"),
        ("ALE/Pong-v5", "pong"),
        ("SpaceInvadersDeterministic-v0", "space_invaders"),
        ("Breakout-ram-v4", "breakout"),
        ("ALE/MsPacman-ram-v5", "ms_pacman"),
        ("ALE/Pong", "pong"),
        ("PongNoFrameskip", "pong"),
    ],
)
def test_gymnasium_s_ids_under_a2c_name_the_game(tmp_path, run_main, name, game):
    for key in ("tasks.games", "tasks.held_out"):
        line = assert_one_line(run_main("train", write_config(tmp_path), f"{key}=[{name}]", "meta.batch_size=1"))
        assert f"did you mean {game}?" in line
        assert key in line


def test_an_id_that_is_no_atari_game_has_no_hint(tmp_path, run_main):
    line = assert_one_line(run_main("train", write_config(tmp_path), "tasks.games=[CartPole-v1]", "meta.batch_size=1"))
    assert "did you mean" not in line


def test_names_are_text_in_markdown():
    assert as_text("a|b $x$ <i> `c`\n*d*") == r"a\|b \$x\$ \<i> \`c\` \*d\*"


# Evaluations


def test_an_evaluation_that_stopped_before_it_was_described_goes_on(tmp_path, run_main):
    from leap_rl.evaluation.evaluate import check_directory

    made = plan(make_evaluable_run(tmp_path))
    with open_run(made.config):
        pass
    assert os.listdir(made.config.run.dir) != []
    check_directory(made)
    (tmp_path / "fresh").mkdir()
    run = make_run(tmp_path / "fresh", changes=HELD_OUT)
    assert "holds a run" in assert_one_line(run_main("evaluate", tmp_path / "run", "--out", run))


def test_an_export_for_the_hub_can_be_evaluated(tmp_path, run_main):
    run = make_evaluable_run(tmp_path)
    assert run_main("export", run, "--to", "hub", "--out", tmp_path / "hub")[0] == 0
    for source in (tmp_path / "hub", tmp_path / "hub" / "model.safetensors"):
        made = plan(source, out=str(tmp_path / "out"))
        assert made.arms[1].name == "hub"
        assert made.arms[1].fingerprint == describe(run)["fingerprint"] == plan(run).arms[1].fingerprint
        assert made.arms[1].trained_on == plan(run).arms[1].trained_on
    (tmp_path / "hub" / "config.json").write_text("{}")
    assert "not what `leap-rl export --to hub` writes" in assert_one_line(run_main("evaluate", tmp_path / "hub"))


# Workers


@pytest.mark.slow
def test_no_more_workers_are_started_than_there_are_tasks(tmp_path):
    script = (
        "import sys\n"
        "from leap_rl.backends import open_backend, prepare_environment\n"
        "prepare_environment('local')\n"
        "from leap_rl.backends.ray import RayBackend\n"
        "from leap_rl import cli\n"
        "most, hire = [0], RayBackend._hire\n"
        "def count(self):\n"
        "    hire(self)\n"
        "    most[0] = max(most[0], len(self._workers))\n"
        "RayBackend._hire = count\n"
        "code = cli.main(sys.argv[1:])\n"
        "print('most', most[0], code)\n"
    )
    changes = {"meta.steps": 1, "meta.batch_size": 2, "task.agent_steps": 40, "workers.count": 8, "backend": "ray"}
    command = [sys.executable, "-c", script, "train", str(write_config(tmp_path, changes)), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment())
    assert "most 2 0" in done.stdout, done.stderr
