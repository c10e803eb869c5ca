"""`leap-rl doctor`: what would stop or slow a run on this machine. Each fault is made, and must be found."""

import os
import resource
import shutil
from collections import namedtuple

import pytest

from leap_rl import doctor
from leap_rl.cli import main
from leap_rl.doctor import GIGABYTE
from leap_rl.files.yaml_files import dump_yaml
from tests.alphabets import tiny_tree
from tests.cli_helpers import write_config
from tests.helpers import tiny_config

RAY = {"backend": "ray", "workers.count": 4}
Usage = namedtuple("Usage", "total used free")


def write_classification(folder):
    file = folder / "config.yaml"
    file.write_text(dump_yaml(tiny_tree("glyphs", folder / "run")))
    return file


def one(findings):
    (finding,) = findings
    return finding


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """The files of a kernel with 8 cores and 16 GiB, and a function that writes one of them."""

    def write(name, text):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    write("proc/meminfo", f"MemTotal: 1 kB\nMemAvailable: {16 << 20} kB\n")
    write("proc/cpuinfo", "processor: 0\nflags: fpu avx2 amx_bf16\n")
    write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    write.root = tmp_path
    return write


@pytest.mark.parametrize(
    ("file", "text", "allowed"),
    [
        ("sys/fs/cgroup/cpu.max", "max 100000", 8),
        ("sys/fs/cgroup/cpu.max", "250000 100000", 2.5),
        ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1", 8),
        ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000", 3),
    ],
)
def test_more_workers_than_cores(machine, file, text, allowed):
    machine(file, text)
    machine("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    found = one(doctor.cores(machine.root, tiny_config(**RAY)))
    assert found.is_problem == (allowed < 4)
    assert f"{allowed:g} cores may be used" in found.text
    if found.is_problem:
        assert f"set workers.count={int(allowed)}" in found.text
    assert not one(doctor.cores(machine.root, tiny_config())).is_problem, "a serial run takes one"


@pytest.mark.parametrize(
    ("limit", "used"), [("memory.max", "memory.current"),
                        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)  # fmt: skip
def test_too_little_memory(machine, limit, used):
    config = tiny_config(**RAY)
    assert not one(doctor.memory(machine.root, config)).is_problem
    machine(f"sys/fs/cgroup/{limit}", str(4 * GIGABYTE))
    assert not one(doctor.memory(machine.root, config)).is_problem
    machine(f"sys/fs/cgroup/{used}", str(3 * GIGABYTE))
    found = one(doctor.memory(machine.root, config))
    assert found.is_problem
    assert "1.0 GiB of memory are left, and 4 workers take 2." in found.text


def test_huge_pages_that_are_off(machine):
    assert [finding.is_problem for finding in doctor.speed(machine.root)] == [False]
    machine("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n")
    vectors, pages = doctor.speed(machine.root)
    assert vectors.text == "vector instructions: avx2, amx_bf16"
    assert pages.is_problem


def test_other_versions_than_those_of_the_lock(tmp_path):
    file = tmp_path / "requirements.lock"
    file.write_text("# a comment with ==\nnumpy==0.1   # via leap-rl\nno-such-package==1\n")
    found = one(doctor.lock(file))
    assert found.is_problem
    assert "(tested: 0.1)" in found.text
    assert list(doctor.lock(tmp_path / "none")) == []


def test_a_game_that_cannot_be_loaded(monkeypatch):
    assert not one(doctor.games()).is_problem
    monkeypatch.setattr("leap_rl.atari.emulators.take", lambda *_: 1 / 0)
    assert one(doctor.games()).is_problem


@pytest.mark.parametrize(
    ("write", "override", "problem"),
    [
        (write_config, "device=cuda", "device = cuda: torch "),
        (write_classification, "alphabets.source=/none.zip", "alphabets.source = /none.zip: No such file"),
    ],
)
def test_what_training_would_refuse_is_a_problem(tmp_path, run_main, monkeypatch, write, override, problem):
    monkeypatch.setattr("torch.ones", lambda *_, **__: 1 / 0)  # as if there were no GPU, where there is one
    file = write(tmp_path)
    code, stdout, _ = run_main("doctor", file, override)
    assert code == 1
    assert f"problem  {problem}" in stdout
    code, _, stderr = run_main("train", file, override)
    assert code == 2
    assert stderr.startswith(f"error: {problem}")


def test_few_open_files(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    assert "only 1024 files" in one(doctor.limits()).text
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    assert list(doctor.limits()) == []


def test_a_full_disk_and_a_folder_that_is_not_writable(tmp_path, monkeypatch):
    config = tiny_config(**{"run.dir": str(tmp_path / "new" / "run")})
    assert not one(doctor.disk(config)).is_problem
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(GIGABYTE, GIGABYTE, 1000))
    assert "make room" in one(doctor.disk(config)).text
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert f"{tmp_path} is not writable" in one(doctor.disk(config)).text
    assert list(doctor.disk(tiny_config(**{"run.dir": "s3://bucket/run"}))) == []


@pytest.mark.parametrize("below", ["", "below/it"])
def test_a_run_directory_that_is_a_file_or_below_one(tmp_path, run_main, below):
    (tmp_path / "file").touch()
    run_dir = tmp_path / "file" / below
    found = one(doctor.disk(tiny_config(**{"run.dir": str(run_dir)})))
    assert found.is_problem
    code, _, stderr = run_main("train", write_config(tmp_path), f"run.dir={run_dir}")
    assert (code, stderr) == (2, f"error: {found.text}\n")


def test_a_small_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 << 20, 0, 0))  # what Docker gives by default
    assert "64 MiB" in one(doctor.shared_memory(tmp_path)).text
    assert one(doctor.shared_memory(tmp_path / "none")).is_problem


def test_a_cluster_that_does_not_answer():
    found = one(doctor.cluster_answers(tiny_config(**RAY, **{"ray.address": "127.0.0.1:1"})))
    assert found.is_problem
    assert "ray.address = 127.0.0.1:1: no Ray cluster answers" in found.text


def test_the_command_says_how_many_problems_there_are(tmp_path, capsys, monkeypatch):
    file = write_config(tmp_path)
    monkeypatch.setattr(doctor, "limits", list)
    monkeypatch.setattr(doctor, "lock", lambda _: [doctor.Finding(True, "one\nthing")])
    monkeypatch.setattr(doctor, "speed", lambda _: [])
    assert main(["doctor", str(file)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "problem  one thing" in said
    assert said[-1] == "1 problem"
    assert list(tmp_path.iterdir()) == [file]
    monkeypatch.setattr(doctor, "lock", lambda _: [])
    assert main(["doctor", str(file)]) == 0
    assert capsys.readouterr().out.endswith("\nno problems\n")
