"""What launches clusters: the front door's bad input, a cluster of this machine for real, and recipes that only another
machine can start, as far as they can be checked here."""

import os
import re
import socket
import subprocess
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.cli_helpers import environment, session, write_config
from tests.gradient_steps import GradientSteps

REPOSITORY = Path(__file__).parent.parent
CLUSTER = REPOSITORY / "launch" / "cluster.sh"
KUBERNETES = REPOSITORY / "launch" / "kubernetes"
LOOPBACK = "0100007F"  # 127.0.0.1 in /proc/net, where IPv6 has it as its last digits


@pytest.fixture
def home(tmp_path):
    """An environment with a home of its own, so without the token of whoever runs the tests."""
    (tmp_path / "home").mkdir()
    return environment() | {"HOME": str(tmp_path / "home")}


def cluster(env, *arguments, timeout=600):
    command = [CLUSTER, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["start"], "start: must be up, submit, status, logs, tensorboard or down"),
        (["up", "--on", "mars"], "--on mars: must be local, ray-up, slurm, kubernetes or http://HOST:PORT"),
        (["up"], "--on nothing: must be local, ray-up, slurm, kubernetes or http://HOST:PORT"),
        (["submit", "--on", "slurm"], "submit needs a configuration, e.g. configs/quickstart.yaml"),
        (["submit", "--on", "local", "configs/quickstart.yaml", "meta.stops=3"], "meta.stops = 3: unknown key; did you "
         "mean meta.steps?"),
        (["submit", "--on", "http://head:8265", "configs/quickstart.yaml"], "run.dir = runs/quickstart: must be an "
         "absolute path or a URL that all nodes of http://head:8265 reach; add run.dir=…"),
        (["down", "--on", "http://head:8265"], "down: only whoever started http://head:8265 can; submit, status and "
         "logs work"),
        (["logs", "--on", "local"], "which job? `status` lists them"),
        (["down", "--on", "local"], "it is not up"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(home, arguments, message):
    done = cluster(home, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize("content", ["{pid}\n", "{pid} Mon Jan 1 00:00:00 2001\n", "-1 x\n", "\n"])
def test_down_stops_no_process_that_only_has_the_number(home, content):
    """A pid file outlives a reboot; by then another process may have its number."""
    with subprocess.Popen(["sleep", "600"]) as innocent:
        file = Path(home["HOME"]) / ".ray" / "leap-rl-cluster.pid"
        file.parent.mkdir()
        file.write_text(content.format(pid=innocent.pid))
        done = cluster(home, "down", "--on", "local")
        assert (done.returncode, done.stderr) == (2, "error: it is not up\n")
        assert innocent.poll() is None
        innocent.kill()


@pytest.mark.parametrize("target", ["local", "http://head:8265", "ray-up", "kubernetes"])
def test_a_refused_submit_leaves_no_folder(home, tmp_path, target):
    (tmp_path / "temporary").mkdir()
    env = home | {"TMPDIR": str(tmp_path / "temporary")}
    done = cluster(env, "submit", "--on", target, "configs/quickstart.yaml", "meta.lr=never")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert not list((tmp_path / "temporary").iterdir())


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def listening(pids):
    """The addresses at which processes listen, in the hexadecimal of /proc/net."""
    opened = set()
    for pid in pids:
        with suppress(OSError):  # it may end while we look
            opened |= {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in opened}


def counters(port, process):
    """Our counters that Prometheus finds there, once those of a segment have come."""
    found, end = set(), time.monotonic() + 600
    while process.poll() is None and len(found) < 3 and time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            found |= set(re.findall(r"^ray_leap_rl_(\w+)_total{", answer.read().decode(), re.MULTILINE))
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_a_local_cluster_takes_a_job_and_ends_in_the_same_bits(tmp_path, home, tiny_run):
    with tempfile.TemporaryDirectory(prefix="ray-") as short:  # Ray has sockets in it, whose names must be short
        check_a_local_cluster(tmp_path, home, short, tiny_run.state["fingerprint"])


def check_a_local_cluster(tmp_path, home, temporary, fingerprint):
    gcs, dashboard, client, agent, metrics = free_ports(5)
    address = f"http://127.0.0.1:{dashboard}"
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
             f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", "--num-cpus=2",
             f"--temp-dir={temporary}"]  # fmt: skip
    steps = GradientSteps(tmp_path / "gradient steps")
    steps.hold(2)  # until the counters have been asked for
    env = home | {"RAY_API_SERVER_ADDRESS": address, "RAY_metrics_report_interval_ms": "500"} | steps.environment()
    up = cluster(env, "up", "--on", "local", "--", *ports)
    assert up.returncode == 0, up.stderr
    pid = int((Path(home["HOME"]) / ".ray" / "leap-rl-cluster.pid").read_text().split()[0])
    try:
        token = Path(home["HOME"]) / ".ray" / "auth_token"
        assert token.stat().st_mode & 0o077 == 0
        assert {address[-8:] for address in listening(session(pid))} == {LOOPBACK}

        config = write_config(tmp_path, {"backend": "ray", "run.dir": "run"})
        refused = cluster(env | {"RAY_AUTH_TOKEN": "0" * 64}, "submit", "--on", "local", config)
        assert refused.returncode != 0
        assert not (REPOSITORY / "run").exists()

        command = [CLUSTER, "submit", "--on", address, config, f"run.dir={tmp_path / 'run'}"]
        with subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as submit:
            counted = counters(metrics, submit)
            steps.let_go()
            output = submit.stdout.read()
        assert submit.returncode == 0, output
        assert fingerprint in output
        assert {"agent_steps", "increments", "increment_bytes"} <= counted, output
        assert "SUCCEEDED" in cluster(env, "status", "--on", "local").stdout
        assert token.read_text() not in output + up.stderr
    finally:
        down = cluster(env, "down", "--on", "local")
    assert down.returncode == 0, down.stderr
    assert not session(pid)


# Kubernetes: what the operator's resources hold, since kubernetes-validate knows only Kubernetes' own

TEMPLATE = {"type": "object", "required": ["spec"]}
GROUP = {"rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}}, "template": TEMPLATE}
RAY_JOB = {  # the fields of ray.io/v1 RayJob that we use, from the operator's reference
    "type": "object",
    "required": ["entrypoint", "rayClusterSpec"],
    "additionalProperties": False,
    "properties": {
        "entrypoint": {"type": "string"},
        "shutdownAfterJobFinishes": {"const": True},
        "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
        "backoffLimit": {"type": "integer", "minimum": 1},
        "rayClusterSpec": {
            "type": "object",
            "required": ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
            "additionalProperties": False,
            "properties": {
                "rayVersion": {"type": "string"},
                "authOptions": {"const": {"mode": "token"}},
                "headGroupSpec": {"type": "object", "additionalProperties": False, "properties": GROUP},
                "workerGroupSpecs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["groupName", "template"],
                        "additionalProperties": False,
                        "properties": GROUP
                        | {"groupName": {"type": "string"}}
                        | {key: {"type": "integer"} for key in ("replicas", "minReplicas", "maxReplicas")},
                    },
                },
            },
        },
    },
}


def resources(name):
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def validate(resource):
    kubernetes_validate.validate(resource, "1.30", strict=True)


@pytest.mark.parametrize("name", ["runs.yaml", "tensorboard.yaml"])
def test_what_kubernetes_knows_is_valid(name):
    for resource in resources(name):
        validate(resource)


def test_the_ray_job_is_valid():
    (job,) = resources("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    jsonschema.validate(job["spec"], RAY_JOB)
    cluster = job["spec"]["rayClusterSpec"]
    locked = (REPOSITORY / "requirements.lock").read_text()
    assert f"\nray=={cluster['rayVersion']} " in locked
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        validate(
            {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "ray"}, "template": group["template"]}
        )


def test_every_recipe_gives_up_lost_nodes_alike():
    lines = Path("launch/ray.env").read_text().splitlines()
    wanted = dict(line.split("=") for line in lines if not line.startswith("#"))
    assert len(wanted) == 4
    job = yaml.safe_load(Path("launch/kubernetes/rayjob.yaml").read_text())
    (head,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value") for entry in head["env"]}
    assert {name: given[name] for name in wanted} == wanted
    for recipe in ("launch/slurm/train.sbatch", "launch/ray-up/aws.yaml", "launch/ray-up/on-premise.yaml"):
        assert "launch/ray.env" in Path(recipe).read_text()
    compose = yaml.safe_load(Path("docker/compose.yaml").read_text())
    assert "../launch/ray.env" in compose["services"]["head"]["env_file"]


def test_a_slip_in_a_recipe_is_found():
    """Else the two tests above would say nothing."""
    (job,) = resources("rayjob.yaml")
    with pytest.raises(jsonschema.ValidationError, match="backoffLimits"):
        jsonschema.validate(job["spec"] | {"backoffLimits": 3}, RAY_JOB)
    (runs,) = resources("runs.yaml")
    runs["spec"]["accessMode"] = "ReadWriteMany"
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(runs)


@pytest.mark.parametrize("name", ["on-premise.yaml", "aws.yaml"])
def test_ray_knows_what_a_ray_up_recipe_says(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((REPOSITORY / "launch" / "ray-up" / name).read_text())))


def test_no_secret_is_in_the_repository():
    """Tokens are 64 hexadecimal digits, as fingerprints are: none stands in what is launched or built."""
    shipped = subprocess.run(["git", "ls-files", "launch", "docker"], cwd=REPOSITORY, capture_output=True, text=True)
    files = shipped.stdout.split()
    assert "docker/cluster.env" not in files
    for file in files:
        text = (REPOSITORY / file).read_text()
        assert not any(len(word) == 64 and not set(word) - set("0123456789abcdef") for word in text.split("=")), file
