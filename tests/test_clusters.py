"""launch/cluster.sh on SLURM and through `ray up`, and Ray's token, on hosts of their own: each ends in the bits of a
serial run."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli_helpers import cli, environment, write_config
from tests.gradient_steps import GradientSteps
from tests.hosts import REPOSITORY, hosts, why_unavailable

MISSING = why_unavailable()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

CLUSTER = REPOSITORY / "launch" / "cluster.sh"


def needs(packages, *tools):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)} (Debian: {packages})")


@pytest.fixture
def fingerprint(tiny_run):
    return tiny_run.state["fingerprint"]


def finished_with(fingerprint, run):
    state = json.loads(cli("show", run, "--json").stdout)
    return (state["finished"], state["fingerprint"]) == (True, fingerprint)


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.5)
    return value


def processes(host):
    return host.run("ps", "-eo", "args").stdout


# SLURM

SLURM = """
ClusterName=test
SlurmctldHost=host1({head})
SlurmUser=root
AuthInfo=socket=/tmp/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
StateSaveLocation=/tmp/slurm
SlurmdSpoolDir=/tmp/slurmd
SlurmctldPidFile=/tmp/slurmctld.pid
SlurmdPidFile=/tmp/slurmd.pid
SlurmctldLogFile=/tmp/slurmctld.log
SlurmdLogFile=/tmp/slurmd.log
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def start_slurm(nodes, folder):
    """munge and SLURM on hosts; the first has the controller."""
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    lines = [f"NodeName={node.name} NodeAddr={node.address} CPUs=2 State=UNKNOWN" for node in nodes]
    (folder / "slurm.conf").write_text(SLURM.format(head=nodes[0].address) + "\n".join(lines) + "\n")
    env = environment() | {"SLURM_CONF": str(folder / "slurm.conf")}
    files = ["--socket=/tmp/munge.socket", "--pid-file=/tmp/munge.pid", "--log-file=/tmp/munge.log"]
    for node in nodes:
        node.run("mkdir", "/tmp/slurm", "/tmp/slurmd")
        node.run("munged", "--force", f"--key-file={folder}/munge.key", "--seed-file=/tmp/munge.seed", *files)
    nodes[0].run("slurmctld", env=env)
    for node in nodes:
        node.run("slurmd", "-N", node.name, env=env)
    wait_for(lambda: nodes[0].run("sinfo", "--noheader", "--format=%D %t", env=env).stdout.strip() == "2 idle")
    return env


@needs("slurm-wlm munge", "slurmctld", "slurmd", "munged")
def test_a_slurm_job_that_is_requeued_resumes_and_ends_in_the_same_bits(tmp_path, fingerprint):
    run = tmp_path / "run"
    steps = GradientSteps(tmp_path / "gradient steps")
    steps.hold(1, 7)  # until the job has been requeued
    with hosts(2, shared=[tmp_path]) as nodes:
        env = start_slurm(nodes, tmp_path) | steps.environment()
        login = nodes[0]

        def cluster(*arguments):
            return login.run("env", "-C", tmp_path, CLUSTER, *arguments, env=env).stdout

        config = write_config(tmp_path)
        job = cluster("submit", "--on", "slurm", config, "workers.per_node=1", "--", "--nodes=2").split()[-1]
        log = tmp_path / f"leap-rl-{job}.log"
        wait_for(lambda: (run / "checkpoints" / "000001" / "done").exists())
        assert "R" in cluster("status", "--on", "slurm")
        login.run("scontrol", "requeue", job, env=env)
        wait_for(lambda: "PENDING" in login.run("scontrol", "show", "job", job, env=env).stdout)
        steps.let_go()
        login.run("scontrol", "update", f"jobid={job}", "starttime=now", env=env)
        wait_for(lambda: "COMPLETED" in login.run("scontrol", "show", "job", job, env=env).stdout)
        assert "resuming at meta-step" in log.read_text()
        for node in nodes:
            assert "raylet" not in processes(node)
    assert finished_with(fingerprint, run), log.read_text()


# ray up, over ssh


def start_ssh(nodes, folder):
    """An ssh daemon on each host, and the key that opens them."""
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\nPermitRootLogin yes\n"
        f"UsePAM no\nPidFile none\nSetEnv PYTHONPATH={Path.home()}/leap_rl\n"  # what was copied there is what runs
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    for node in nodes:
        node.run("/usr/sbin/sshd", "-f", folder / "sshd_config")
    return folder / "user"


def recipe(head, worker, key, folder):
    """launch/ray-up/on-premise.yaml for these hosts."""
    text = (REPOSITORY / "launch" / "ray-up" / "on-premise.yaml").read_text()
    ours = {"[10.0.0.2, 10.0.0.3]": f"[{worker.address}]", "max_workers: 2": "max_workers: 1", "10.0.0.1": head.address,
            "ssh_user: leap": "ssh_user: root", "~/.ssh/id_ed25519": str(key)}  # fmt: skip
    for shipped, wanted in ours.items():
        assert shipped in text
        text = text.replace(shipped, wanted)
    file = folder / "ray-up.yaml"
    file.write_text(text)
    return file


def refused(host, *command):
    done = host.run(*command, env=environment() | {"RAY_AUTH_MODE": "disabled"}, timeout=600, check=False)
    return done.returncode != 0 and "token" in (done.stdout + done.stderr).lower()


@needs("openssh-server openssh-client rsync", "/usr/sbin/sshd", "ssh", "rsync")
def test_ray_up_trains_to_the_same_bits_and_refuses_whoever_has_no_token(tmp_path, fingerprint):
    run = tmp_path / "run"
    with hosts(3, shared=[tmp_path]) as (head, worker, laptop):
        for node in (head, worker):  # what setup.sh has installed already
            node.run("sh", "-c", f"mkdir ~/leap_rl && ln -s {REPOSITORY}/.venv ~/leap_rl/.venv")
        file = recipe(head, worker, start_ssh([head, worker], tmp_path), tmp_path)
        env = environment() | {"CLUSTER": str(file), "RAY_enable_autoscaler_v2": "0"}

        def cluster(*arguments, timeout=600):
            return laptop.run(CLUSTER, *arguments, env=env, timeout=timeout).stdout

        cluster("up", "--on", "ray-up")
        wait_for(lambda: "2 local.cluster.node" in cluster("status", "--on", "ray-up"))

        ray = Path(REPOSITORY / ".venv" / "bin" / "ray")
        assert refused(laptop, ray, "start", f"--address={head.address}:6379")
        (tmp_path / "stranger").mkdir()
        strange = write_config(tmp_path / "stranger", {"backend": "ray", "ray.address": f"{head.address}:6379"})
        assert refused(head, ray.with_name("python"), "-m", "leap_rl.cli", "train", strange)

        cluster("submit", "--on", "ray-up", write_config(tmp_path, {"backend": "ray"}), "workers.per_node=1")
        cluster("down", "--on", "ray-up")
        for node in (head, worker):  # a worker's ends once it has missed the head for a while
            wait_for(lambda node=node: "raylet" not in processes(node))
    assert finished_with(fingerprint, run)
