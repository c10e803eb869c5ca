"""Actors run the driver's leap_rl, or the run is refused; actors that always die end it with their own words."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import leap_rl
from leap_rl.backends.installation import installation
from tests.cli_helpers import cli, environment, here, kill_session, session, start, wait_for, write_config
from tests.test_faults import rows_of, sabotage

pytestmark = pytest.mark.slow
PACKAGE = Path(leap_rl.__file__).parent
SHORT = {"meta.steps": 1, "workers.count": 1, "task.agent_steps": 100}
BROKEN = "raise ImportError('this copy must not be imported')\n"


def copy_of_leap_rl(folder, file, *change):
    """Another copy of the package in ``folder``, with one text of one file replaced."""
    shutil.copytree(PACKAGE, folder / "leap_rl", ignore=shutil.ignore_patterns("__pycache__"))
    changed = folder / "leap_rl" / file
    text = changed.read_text()
    assert change[0] in text
    changed.write_text(text.replace(*change))


def train_in(folder, *arguments):
    """``leap-rl train`` as the installed script runs it, where the current directory is not searched for modules."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "leap_rl.cli", "train", *map(str, arguments), "--json"], cwd=folder, text=True,
        env=environment(), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        stdout, stderr = process.communicate(timeout=600)
    finally:
        kill_session(process.pid)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    done = here("train", write_config(tmp_path_factory.mktemp("expected"), SHORT), "--json")
    return json.loads(done.stdout)["fingerprint"]


def test_workers_import_nothing_from_the_current_directory(tmp_path, expected):
    """Neither another checkout, which would be refused, or stand still, nor what fails as it is imported."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy_of_leap_rl(elsewhere, "backends/actors.py", "def run_task", "def run_another_task")
    for file in (
        "random.py",  # a script of the user's, by the name of a module that Ray and torch import
        "ale_py/__init__.py",  # a checkout of a dependency
    ):
        (elsewhere / file).parent.mkdir(exist_ok=True)
        (elsewhere / file).write_text(BROKEN)
    done = train_in(elsewhere, write_config(tmp_path, SHORT), "backend=ray")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fingerprint"] == expected


@pytest.fixture
def foreign_cluster(tmp_path):
    """A Ray cluster that imports the copy of leap_rl in the test's folder ``theirs``: its ray:// address."""
    with socket.socket() as free, socket.socket() as also_free:
        free.bind(("127.0.0.1", 0))
        also_free.bind(("127.0.0.1", 0))
        gcs, client = free.getsockname()[1], also_free.getsockname()[1]
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    command = (
        f"import sys; from ray.scripts.scripts import main; sys.argv[1:] = 'start --head --block --num-cpus=2 "
        f"--node-ip-address=127.0.0.1 --port={gcs} --ray-client-server-port={client} --include-dashboard=false'.split()"
        "; main()"
    )
    own = {"PYTHONPATH": str(theirs), "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with (tmp_path / "cluster.log").open("wb") as log:
        head = subprocess.Popen(
            [sys.executable, "-c", command], cwd=theirs, env=environment() | own, start_new_session=True,
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_for(lambda: "Ray runtime started" in (tmp_path / "cluster.log").read_text(), head)
        yield f"ray://127.0.0.1:{client}"
    finally:
        kill_session(head.pid)
        head.wait()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("types.py", ("exit_code = 1", "exit_code = 3")),  # would give another result without a word
        ("backends/actors.py", ("def run_task", "def run_another_task")),  # would stand still
    ],
)
def test_a_cluster_of_another_leap_rl_is_refused_and_both_paths_are_named(tmp_path, foreign_cluster, file, change):
    copy_of_leap_rl(tmp_path / "theirs", file, *change, 1)
    address = ("backend=ray", f"ray.address={foreign_cluster}")
    for _ in range(5):  # Ray gives its own server 30 s to start, which a busy machine may not have
        done = cli("train", write_config(tmp_path, SHORT), *address, extra={"RAY_AUTH_MODE": "disabled"})
        if "Starting Ray client server failed" not in done.stderr:
            break
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(PACKAGE) in done.stderr
    assert str(tmp_path / "theirs" / "leap_rl") in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_digest_tells_sources_apart_and_not_where_they_lie(tmp_path, monkeypatch):
    found = installation()
    copy_of_leap_rl(tmp_path, "types.py", "", "")
    monkeypatch.setattr(leap_rl, "__file__", str(tmp_path / "leap_rl" / "__init__.py"))
    assert installation()[1:] == found[1:]
    assert installation()[0] == str(tmp_path / "leap_rl")
    (tmp_path / "leap_rl" / "games.json").write_text("[]")
    assert installation()[2] != found[2]


# Actors that die always at the same place


@pytest.mark.parametrize(
    ("last_act", "words"),
    [
        ("import ctypes; ctypes.string_at(0)", "Fatal Python error: Segmentation fault"),
        ('os.write(2, b"libfoo: no such device\\n"); os._exit(7)', "libfoo: no such device"),
    ],
)
def test_workers_that_die_in_their_first_segment_end_the_run_with_their_own_words(tmp_path, last_act, words):
    extra = sabotage(tmp_path, "processes.a2c.process", 'before(module.A2CProcess, "update", do)', last_act)
    done = cli("train", write_config(tmp_path, SHORT), "backend=ray", extra=extra)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert "5 workers died in segment 1 of it" in error
    assert words in error


def test_learners_that_die_before_they_answer_end_the_run(tmp_path):
    spoil = 'before(module.Learner, "poll", do)'
    extra = sabotage(tmp_path, "backends.actors", spoil, 'os.write(2, b"out of luck\\n"); os._exit(7)')
    done = cli("train", write_config(tmp_path, SHORT), "backend=ray", extra=extra)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert "5 Leap learners in a row died" in error
    assert "out of luck" in error
    assert len(rows_of(tmp_path / "run", "fault")) == 4


def test_learners_that_die_in_one_step_end_the_run(tmp_path):
    extra = sabotage(
        tmp_path, "backends.actors", 'before(module.Learner, "step", do)', 'os.write(2, b"no luck\\n"); os._exit(7)'
    )
    done = cli("train", write_config(tmp_path, SHORT), "backend=ray", extra=extra)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert "5 Leap learners in a row died at one step" in error
    assert "no luck" in error


def test_a_run_ends_though_its_cluster_does_not_answer(tmp_path):
    """As on a machine that is too busy: the run directory is gone, and Ray would wait for its raylet without end."""
    file = write_config(tmp_path, SHORT | {"task.agent_steps": 200_000})
    process = start("train", file, "backend=ray", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: list((tmp_path / "run").glob("tasks/*/*.safetensors")), process)
        [raylet] = [pid for pid, title in session(process.pid).items() if "/raylet/raylet " in title]
        (tmp_path / "run").rename(tmp_path / "moved")
        os.kill(raylet, signal.SIGSTOP)
        _, stderr = process.communicate(timeout=600)
    finally:
        kill_session(process.pid)
    assert process.returncode == 1
    # Ray's own threads may print further lines, also after ours.
    [error] = [line for line in stderr.splitlines() if line.startswith(b"error: ")]
    assert b"was removed or moved while it was in use" in error


def test_workers_that_are_killed_from_outside_one_by_one_do_not_end_it(tmp_path):
    """The other side: what is lost and comes back is not a run that cannot work."""
    mark = tmp_path / "lost"
    mark.write_text("")
    action = (
        f"left = len(open({str(mark)!r}).read())\n    "
        f'if left < 4: open({str(mark)!r}, "a").write("."); os.kill(os.getpid(), {signal.SIGKILL:d})'
    )
    extra = sabotage(tmp_path, "processes.a2c.process", 'before(module.A2CProcess, "update", do)', action)
    done = cli("train", write_config(tmp_path, SHORT), "backend=ray", extra=extra)
    assert done.returncode == 0, done.stderr
    assert os.path.getsize(mark) == 4
