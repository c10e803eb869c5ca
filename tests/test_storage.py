"""Files by name: the same promises on a local path, in memory and on a real S3-compatible server."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing
from types import SimpleNamespace

import pytest

from leap_rl.files.storage import LocalStorage, open_storage
from leap_rl.runs.inspection import describe
from leap_rl.runs.run import RunDirectory, open_run
from leap_rl.runs.run_files import Progress, read_metrics
from leap_rl.types import BadInputError, StorageError
from tests.cli_helpers import cli, here, make_checkpoint, make_config, write_config


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """Folder → its URL in a bucket of moto's server, a process of its own: Ray actors reach it as well."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=output, stderr=output)
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_EC2_METADATA_DISABLED="true")
    options = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    try:
        create_bucket(port, server, log)
        yield lambda folder: f"s3://bucket/{folder}?{options}"
    finally:
        server.kill()
        server.wait()


def create_bucket(port, server, log):
    import boto3
    from botocore.exceptions import BotoCoreError

    end = time.monotonic() + 60
    while True:
        try:
            client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
            client.create_bucket(Bucket="bucket")
            return
        except BotoCoreError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def url(request, tmp_path):
    folder = f"runs/{uuid.uuid4().hex}"
    match request.param:
        case "local":
            (tmp_path / folder).mkdir(parents=True)  # by whoever writes there first
            return str(tmp_path / folder)
        case "memory":
            return f"memory://{folder}"
        case "s3":
            return request.getfixturevalue("s3")(folder)


def test_two_hosts_whose_processes_have_one_number_may_write_at_once(tmp_path, monkeypatch):
    """Containers on one NFS, each with its own count of processes: the second writes while the first waits for its
    disk."""
    storage, fsync, others = LocalStorage(str(tmp_path)), os.fsync, [b"second"]

    def slow(handle):
        fsync(handle)
        if others:
            storage.write("file", others.pop())

    monkeypatch.setattr(os, "fsync", slow)
    storage.write("file", b"first")
    assert storage.read("file") == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_files_are_written_listed_replaced_and_removed(url):
    storage = open_storage(url)
    assert storage.names() == storage.names("a") == []
    with pytest.raises(FileNotFoundError):
        storage.read("a/b")
    storage.remove("a/b")
    storage.remove("a")

    storage.write("a/b", b"1")
    storage.write("a/c/d", b"2")
    storage.write("a/b", b"3")
    storage.write("e", b"")
    assert open_storage(url).read("a/b") == b"3"
    assert storage.read("e") == b""
    assert storage.names() == ["a", "e"]
    assert storage.names("a") == ["b", "c"]

    storage.append("log", b"one\n")
    storage.append("log", b"two\n")
    assert storage.read("log") == b"one\ntwo\n"

    storage.remove("a/b")
    assert storage.names("a") == ["c"]
    storage.remove("a")
    assert storage.names() == ["e", "log"]


def test_a_run_directory_keeps_its_promises(url, tmp_path):
    """Commit, resume, prune, show: nothing but the storage differs."""
    config = make_config(tmp_path, {"run.dir": url, "run.keep_checkpoints": 2})
    with open_run(config) as run:
        for meta_step in range(4):
            run.append_metrics([{"kind": "meta_step", "meta_step": meta_step}])
            run.commit(make_checkpoint(meta_step), Progress(meta_step))
        storage = open_storage(url)
        assert storage.names("checkpoints") == ["000002", "000003"]
        storage.remove("checkpoints/000003/done")
    with open_run(config) as run:
        checkpoint, progress, [ignored] = run.latest()
        assert (checkpoint.meta_step, progress.meta_step) == (2, 2)
        assert "half-written" in ignored
        run.forget_metrics(checkpoint)
    assert [row["meta_step"] for row in read_metrics(url)] == [0, 1]
    assert describe(url)["meta_step"] == 3, "initialization.safetensors is newer than the checkpoint"
    with pytest.raises(BadInputError, match=r"run\.seed \(7 there, 8 here\)"):
        RunDirectory.open(make_config(tmp_path, {"run.dir": url, "run.seed": 8}))


@pytest.mark.parametrize("url", ["nonsense://bucket/run", "s3:///"])
def test_a_url_that_nothing_opens_is_bad_input(url):
    with pytest.raises(BadInputError, match=r"run\.dir = "):
        open_storage(url)


def test_whatever_a_client_raises_is_said_as_its_reason(monkeypatch):
    """Of pyarrow's own errors one is neither an OSError nor a ValueError, and fsspec's clients have others."""
    files = open_storage(f"memory://{uuid.uuid4().hex}")

    class ClientError(Exception):
        pass

    def fails(*_):
        raise ClientError("Failed to get token")

    monkeypatch.setattr(files, "_files", SimpleNamespace(get_file_info=fails, open_input_stream=fails))
    for ask in (lambda: files.read("a"), lambda: files.remove("a")):
        with pytest.raises(StorageError, match=r"run\.dir = memory://.*: Failed to get token"):
            ask()
    monkeypatch.setattr("leap_rl.files.object_storage._file_system", fails)
    with pytest.raises(BadInputError, match=r"cannot be opened: Failed to get token"):
        open_storage("memory://a")


def test_a_bucket_that_was_removed_meanwhile_is_named_by_what_writes_and_nothing_to_what_removes(monkeypatch):
    from pyarrow.fs import FileType

    def missing(*_, **__):
        raise FileNotFoundError(2, "no such bucket")

    files = open_storage(f"memory://{uuid.uuid4().hex}")
    found = SimpleNamespace(get_file_info=lambda _: SimpleNamespace(type=FileType.File), type_name="s3")
    calls = ("open_input_stream", "open_output_stream", "delete_file")
    monkeypatch.setattr(files, "_files", SimpleNamespace(**vars(found), **dict.fromkeys(calls, missing)))
    for write in (files.write, files.append):
        with pytest.raises(StorageError, match=r"run\.dir = memory://.*: was removed or moved while it was in use"):
            write("a", b"1")
    files.remove("a")


# Local writes


def test_a_write_that_fails_leaves_the_old_bytes_and_no_half_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    storage = LocalStorage(str(tmp_path))
    storage.write("file", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device; what was committed is kept"):
        storage.write("file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert storage.read("file") == b"old"


def test_readers_never_see_a_half_written_file(tmp_path):
    storage = LocalStorage(str(tmp_path))
    contents = [bytes([value]) * 200_000 for value in (1, 2)]
    storage.write("file", contents[0])
    done = threading.Event()

    def rewrite():
        for index in range(60):
            storage.write("file", contents[index % 2])
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    reads = 0
    while not done.is_set() or reads == 0:
        assert storage.read("file") in contents
        assert storage.names() == ["file"]
        reads += 1
    writer.join()


# Real runs


TWO_STEPS = {"meta.steps": 2, "env.screen_size": 84}  # three such tasks under way need more than 40 MB


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What ``show`` says of a serial run of two meta-steps on a local path."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = here("train", write_config(folder, TWO_STEPS), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_each_row_is_there_once(url):
    kinds = [row["kind"] for row in read_metrics(url)]
    assert [kinds.count(kind) for kind in ("meta_step", "task", "segment")] == [2, 6, 30]


@pytest.mark.slow
def test_a_run_in_an_object_store_ends_in_the_same_initialization(tmp_path, undisturbed, s3):
    """Two Ray workers that share nothing but the bucket; event files and metrics arrive there as well."""
    url = s3("runs/whole")
    config = write_config(tmp_path, TWO_STEPS | {"run.dir": url})
    done = cli("train", config, "backend=ray", "--json")
    assert done.returncode == 0, done.stderr
    fingerprint = json.loads(done.stdout)["fingerprint"]
    assert fingerprint == undisturbed["fingerprint"]
    storage = open_storage(url)
    assert storage.names("tasks") == [], "none is under way any more"
    assert storage.names("checkpoints") == ["000000", "000001", "000002"]
    assert storage.names("tensorboard/meta")[0].startswith("events.out.tfevents")
    assert_each_row_is_there_once(url)
    assert fingerprint in here("show", url).stdout
    again = here("train", config)
    assert (again.returncode, "finished" in again.stderr) == (0, True)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_a_full_disk_stops_the_run_in_one_line_and_the_same_command_goes_on(tmp_path, undisturbed, backend):
    disk = tmp_path / "disk"
    run = disk / "run"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted: {mounted.stderr.strip()}")
    try:
        config = write_config(tmp_path, TWO_STEPS | {"run.dir": str(run)})
        stopped = cli("train", config, f"backend={backend}")
        assert stopped.returncode == 1, stopped.stderr
        last = stopped.stderr.splitlines()[-1]
        assert last == f"error: run.dir = {run}: No space left on device; what was committed is kept"
        assert "Traceback" not in stopped.stderr
        assert describe(run)["finished"] is False

        subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
        done = cli("train", config, f"backend={backend}", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["fingerprint"] == undisturbed["fingerprint"]
        assert_each_row_is_there_once(run)
    finally:
        subprocess.run(["umount", disk], check=True)
