"""What Ray writes on this machine is out of other users' reach."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import ray

from leap_rl.backends import cluster
from leap_rl.private_folder import LONGEST, private_folder
from leap_rl.types import BadInputError, LeapRLError
from tests.cli_helpers import cli, session, started, wait_for, write_config
from tests.gradient_steps import GradientSteps

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


@pytest.fixture
def base(monkeypatch):
    """A short path, as sockets need, where everybody may write, as in /tmp."""
    folder = Path(f"/tmp/b{os.getpid()}")
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


def test_it_is_made_for_its_owner_alone_and_found_again(base, monkeypatch):
    folder = private_folder()
    assert folder == base / f"leap_rl-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert private_folder() == folder
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    assert private_folder() == folder, "a process that ours started makes no other within it"


def test_a_path_too_long_for_sockets_is_not_taken(base, monkeypatch):
    long = base / ("x" * LONGEST)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    assert private_folder() == Path(f"/tmp/leap_rl-{os.getuid()}")


def refused(base):
    with pytest.raises(BadInputError) as caught:
        private_folder()
    assert str(base) in str(caught.value)
    return str(caught.value)


def test_an_open_one_is_refused(base):
    private_folder().chmod(0o755)
    assert "mode 0755, must be 0700" in refused(base)


def test_a_link_and_a_file_are_refused(base, tmp_path):
    where = base / f"leap_rl-{os.getuid()}"
    where.symlink_to(tmp_path)
    assert "is not a folder" in refused(base)
    where.unlink()
    where.write_text("")
    assert "exists" in refused(base).lower() or "not a folder" in refused(base)


def test_one_that_others_could_replace_is_refused(base):
    private_folder()
    base.chmod(0o777)  # without the sticky bit
    assert "could be replaced by others" in refused(base)


@as_root
def test_another_users_is_refused(base):
    folder = base / f"leap_rl-{os.getuid()}"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    assert "belongs to another user (uid 65534)" in refused(base)


@as_root
@pytest.mark.slow
def test_another_user_reaches_nothing_of_a_run(base, tmp_path):
    """Ray's own folders have mode 0777; sockets and unpacked jobs lie in them."""
    config = write_config(tmp_path, {"backend": "ray"})
    steps = GradientSteps(tmp_path / "gradient steps")
    steps.hold(0, 0)
    with started(tmp_path, "train", config, extra=steps.environment() | {"RAY_TMPDIR": str(base)}) as driver:
        wait_for(lambda: list((tmp_path / "run").glob("config.yaml")), driver)
        titles = " ".join(session(driver.pid).values())
        folders = set(re.findall(r"/\S*/session_[0-9_-]+", titles))
        assert folders, titles
        assert all(folder.startswith(f"{base}/leap_rl-") for folder in folders)
        for folder in folders:
            assert any(Path(folder, "sockets").iterdir()), "the path is the one that is used"
            for command in (["ls", folder], ["mv", f"{folder}/sockets", f"{base}/mine"], ["touch", f"{folder}/mine"]):
                done = subprocess.run(command, user=NOBODY, group=NOBODY, capture_output=True, text=True, check=False)
                assert done.returncode != 0
                assert "Permission denied" in done.stderr


@pytest.mark.slow
def test_a_serial_run_leaves_nothing_in_the_temporary_folder(tmp_path):
    (tmp_path / "temporary").mkdir()
    config = write_config(tmp_path, {"meta.steps": 1, "task.agent_steps": 30})
    done = cli("train", config, extra={"TMPDIR": str(tmp_path / "temporary")})
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "temporary").iterdir())


def test_a_start_that_is_too_slow_is_tried_once_more_and_said(base, monkeypatch, capsys):
    tried = []

    def init(*_, **options):
        tried.append(options["_temp_dir"])
        if len(tried) == 1:
            raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    cluster._start(1, "this test")
    assert tried == [str(private_folder() / "ray")] * 2
    assert (
        capsys.readouterr().err
        == "Ray does not start (The current node timed out during startup.); it is tried once more\n"
    )

    def never(*_, **__):
        raise Exception("no room")

    monkeypatch.setattr(ray, "init", never)
    with pytest.raises(LeapRLError, match="this test: Ray does not start: no room"):
        cluster._start(1, "this test")


def test_auto_joins_a_cluster_of_this_user_alone(base, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TMPDIR", str(base))
    (base / "ray").mkdir()
    planted = base / "ray" / "ray_current_cluster"
    planted.write_text("10.0.0.66:6379")
    if os.getuid() == 0:
        os.chown(planted, NOBODY, NOBODY)
        with pytest.raises(BadInputError, match="no cluster of this user"):
            cluster._own_cluster()
    (private_folder() / "ray").mkdir()
    (private_folder() / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert cluster._own_cluster() == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert cluster._own_cluster() == "10.0.0.2:6379"
