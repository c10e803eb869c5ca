"""The image and the cluster of containers, in a real engine: the same bits as outside, and nothing to see without
the token."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from leap_rl.runs.run_files import read_metrics
from tests.cli_helpers import TINY, here
from tests.containers import COMPOSE, REPOSITORY, engine, finish, why_unavailable
from tests.gradient_steps import VARIABLE, GradientSteps

MISSING = why_unavailable()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

IMAGE, PROJECT = "leap-rl-test", "leaprltest"
PORTS = {"DASHBOARD_PORT": "28265", "TENSORBOARD_PORT": "26006"}
# Long enough to lose a container and to get it back, on top of what TINY says.
LONGER = {
    "tasks.held_out": [],
    "meta.steps": 4,
    "meta.batch_size": 2,
    "task.agent_steps": 800,
    "stream.segment_updates": 20,
}
ARGUMENTS = [f"{key}={json.dumps(value)}" for key, value in (TINY | LONGER).items() if key != "backend"]


@pytest.fixture(scope="module")
def docker():
    with engine() as docker:
        docker.build(IMAGE)
        yield docker


@pytest.fixture(scope="module")
def fingerprint(tmp_path_factory):
    """Of the serial run on this machine, outside of containers."""
    run = tmp_path_factory.mktemp("serial") / "run"
    done = here("train", "configs/quickstart.yaml", *ARGUMENTS, "backend=serial", f"run.dir={run}", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["fingerprint"]


def get(url, token=None):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def wait_for(condition, process=None, seconds=240):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.5)
    return value


def test_the_image_is_small_and_knows_no_token(docker):
    image = json.loads(docker.run("inspect", IMAGE).stdout)[0]
    assert image["Config"]["User"] == "10001"
    assert image["Size"] < 2.1e9, "CUDA has come along, or what the Dockerfile removes has moved"
    assert not [entry for entry in image["Config"]["Env"] if "TOKEN" in entry]
    inside = docker.run("run", "--rm", "--entrypoint", "find", IMAGE, "/leap-rl", "/opt/leap-rl", "-name", "*.env")
    assert inside.stdout == ""


def test_one_container_trains_alone(docker, fingerprint):
    arguments = [*ARGUMENTS, "run.dir=runs/alone", "--json"]
    done = docker.run("run", "--rm", IMAGE, "train", "configs/quickstart.yaml", *arguments, timeout=600)
    assert json.loads(done.stdout)["fingerprint"] == fingerprint


def test_it_has_what_reports_and_glyphs_are_drawn_with(docker):
    """Among what is removed from the packages nothing is missing either."""
    code = "import leap_rl.evaluation.figures, leap_rl.evaluation.statistics, leap_rl.processes.classification.glyphs"
    docker.run("run", "--rm", "--entrypoint", "python", IMAGE, "-c", f"import matplotlib; {code}")


@pytest.fixture
def steps(tmp_path):
    """The gradient steps of the workers in containers, where their folder has another name and they are not root."""
    steps = GradientSteps(tmp_path / "steps")
    (tmp_path / "steps").chmod(0o777)
    worker = {"environment": {VARIABLE: "/steps", "PYTHONPATH": "/steps"}, "volumes": [f"{tmp_path}/steps:/steps"]}
    (tmp_path / "compose.yaml").write_text(json.dumps({"services": {"worker": worker}}))
    return steps


@pytest.fixture
def cluster(docker, tmp_path, steps):
    """compose.yaml with two workers; its commands."""
    environment = {"LEAP_RL_IMAGE": IMAGE, **PORTS}
    folder = REPOSITORY / "docker"
    ours = not (folder / "cluster.env").exists()
    finish(docker.start(folder / "make-token.sh"), 10)

    def compose(*arguments):
        files = ("-f", folder / "compose.yaml", "-f", tmp_path / "compose.yaml")
        return docker.start(COMPOSE, "-p", PROJECT, *files, *arguments, env=environment)

    try:
        finish(compose("up", "--detach", "--scale", "worker=2", "head", "worker", "tensorboard"), 240)
        yield compose
    finally:
        finish(compose("down", "--volumes"), 240)
        if ours:
            (folder / "cluster.env").unlink()


def test_a_cluster_loses_a_container_gets_it_back_and_ends_in_the_same_bits(docker, cluster, steps, fingerprint):
    run = docker.volumes / f"{PROJECT}_runs" / "_data" / "cluster"
    lost, network = f"{PROJECT}_worker_1", f"{PROJECT}_default"
    arguments = [*ARGUMENTS, "ray.address=auto", "run.dir=runs/cluster"]
    steps.hold(1, 30)
    driver = cluster("run", "--rm", "driver", "configs/quickstart.yaml", *arguments)
    wait_for((run / "checkpoints" / "000001" / "done").exists, driver)
    docker.run("network", "disconnect", network, lost)
    wait_for(lambda: [row for row in read_metrics(run) if row["kind"] == "fault"], driver)
    steps.let_go()
    docker.run("network", "connect", network, lost)
    finish(driver, 600)

    shown = docker.run("exec", f"{PROJECT}_head_1", "leap-rl", "show", "runs/cluster", "--json")
    state = json.loads(shown.stdout)
    assert (state["finished"], state["fingerprint"]) == (True, fingerprint)
    wait_for(lambda: num_nodes(docker) == 3)

    scalars = f"http://127.0.0.1:{PORTS['TENSORBOARD_PORT']}/data/plugin/scalars/tags"
    tags = wait_for(lambda: get(scalars).get("cluster/tensorboard/meta"))
    assert {"meta/path_length", "meta/energy", "task/path_length/pong"} <= set(tags)
    assert set(published(docker)) == {"127.0.0.1"}
    assert_the_dashboard_asks_for_the_token()


def num_nodes(docker):
    status = docker.run("exec", f"{PROJECT}_head_1", "ray", "status", check=False).stdout
    return status.partition("Pending:")[0].count(" node_")


def published(docker):
    """The addresses of this machine at which containers are to be reached."""
    containers = json.loads(docker.run("inspect", *docker.run("ps", "--quiet").stdout.split()).stdout)
    ports = [ports for container in containers for ports in container["NetworkSettings"]["Ports"].values() if ports]
    return [port["HostIp"] for bindings in ports for port in bindings]


def assert_the_dashboard_asks_for_the_token():
    jobs = f"http://127.0.0.1:{PORTS['DASHBOARD_PORT']}/api/jobs/"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(jobs)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(jobs, "0" * 64)
    token = Path(REPOSITORY / "docker" / "cluster.env").read_text().split("RAY_AUTH_TOKEN=")[1].strip()
    assert [job["status"] for job in get(jobs, token)] == ["SUCCEEDED"]
