"""Three hosts and a real Ray cluster on them: hung raylets, cut cables, lost power, and the same initialization."""

import json
import secrets
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from leap_rl.run import describe, read_metrics
from tests import cli_helpers
from tests.cli_helpers import cli, environment, write_config
from tests.hosts import hosts, why_unavailable

pytestmark = pytest.mark.slow

PORT = 6379
# A node that does not answer is dead after 4.5 s, and not after a minute. Workers authenticate, as they should.
RAY = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
# Tasks of some seconds, so that a fault finds them under way: 120 gradient steps, 10 segments.
CHANGES = {
    "meta.steps": 3,
    "meta.batch_size": 2,
    "meta.lr": 1e-4,  # tasks are longer than elsewhere: with 0.1 they diverge
    "task.agent_steps": 2400,
    "stream.segment_updates": 12,
    "workers.count": 2,
}
SEGMENTS = 10


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("nfs")


@pytest.fixture(scope="module")
def machines(shared):
    reason = why_unavailable()
    if reason:
        pytest.skip(reason)
    with hosts(3, shared=[shared]) as found:
        yield found


def wait_for(condition, driver):
    cli_helpers.wait_for(condition, driver, seconds=300)


# The harness itself


def comes_to_reach(host, other):
    """Soon, if not at once: a host that was silent is asked for its address again only after seconds."""
    return any(host.reaches(other) for _ in range(10))


def test_hosts_see_each_other_until_a_cable_is_cut_or_the_power_fails(machines, shared):
    first, second, third = machines
    assert comes_to_reach(first, second)
    assert comes_to_reach(third, first)
    second.cut()
    assert not first.reaches(second)
    assert not second.reaches(first)
    assert comes_to_reach(first, third)
    second.heal()
    assert comes_to_reach(first, second)

    sleeping = third.start("sleep", "1000")
    third.power_off()
    assert sleeping.wait(timeout=10) != 0
    assert not first.reaches(third)
    third.power_on()
    assert comes_to_reach(first, third)


def test_a_host_has_its_own_name_and_files_and_what_is_shared(machines, shared):
    first, second, _ = machines
    assert [host.run("hostname").stdout.strip() for host in machines] == ["host1", "host2", "host3"]
    for private in ("/tmp/only-here", "/dev/shm/only-here", "~/only-here"):
        first.run("sh", "-c", f"touch {private}")
        assert second.run("sh", "-c", f"test -e {private}", check=False).returncode == 1
        assert subprocess.run(["sh", "-c", f"test -e {private}"]).returncode == 1
    (shared / "note").write_text("seen")
    assert second.run("cat", shared / "note").stdout == "seen"


def test_nothing_of_the_hosts_is_left():
    if reason := why_unavailable():
        pytest.skip(reason)
    with suppress(ZeroDivisionError), hosts(2) as (host, _):
        process = host.start("sleep", "1000")
        own = host._own
        raise ZeroDivisionError
    assert process.wait(timeout=10) != 0
    assert not own.exists()


# A cluster on them


def ray_start(host, *options):
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats"]
    options = (*options, f"--node-ip-address={host.address}", "--object-store-memory=100000000")
    return host.start(*command, *options, env=environment() | RAY, stdout=subprocess.DEVNULL)


def start_head(head):
    """Without CPUs: what trains, trains on the other hosts."""
    ready = ray_start(head, "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
    assert ready.wait(timeout=300) == 0


def join(head, *workers):
    joining = [ray_start(host, f"--address={head.address}:{PORT}", "--num-cpus=2") for host in workers]
    assert [process.wait(timeout=300) for process in joining] == [0] * len(workers)


@contextmanager
def training(head, folder):
    """``leap-rl train`` on the head host, under way; what it says is in ``folder``."""
    command = [sys.executable, "-m", "leap_rl.cli", "train", write_config(folder, CHANGES)]
    command += ["backend=ray", f"ray.address={head.address}:{PORT}", "--json"]
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("a") as stderr:
        driver = head.start(*command, env=environment() | RAY, stdout=stdout, stderr=stderr)
        try:
            yield driver
        finally:
            driver.kill()


def pids(host, title):
    """On the host itself."""
    processes = (line.split(maxsplit=1) for line in host.run("ps", "-ww", "-eo", "pid=,args=").stdout.splitlines())
    return [pid for pid, name in processes if title in name]


def segments(folder, meta_step, attempt=0):
    """Segments that have arrived from this attempt or a later one."""
    rows = read_metrics(folder / "run")
    rows = [row for row in rows if row["kind"] == "segment" and row["meta_step"] == meta_step]
    return [row for row in rows if row["attempt"] >= attempt]


def under_way(folder, meta_step, host):
    """Tasks of the meta-step are in their middle, by what is saved of them, and this host has a worker at one."""
    saved = [file.stem for file in (folder / "run" / "tasks").glob(f"{meta_step:06d}-*/*.safetensors")]
    return saved and all(1 <= int(name) <= SEGMENTS - 4 for name in saved) and pids(host, "ray::Worker.run_task")


def numbers(folder):
    """What metrics.jsonl says of each segment and meta-step, without what time and faults decide."""
    rows = [row for row in read_metrics(folder / "run") if row["kind"] in ("segment", "meta_step")]
    keys = [(row["meta_step"], row.get("slot"), row.get("sequence")) for row in rows]
    assert len(set(keys)) == len(keys), "a segment or meta-step is there twice"
    names = ("agent_steps", "frames", "loss", "gradient_norm", "episodes", "path_length", "meta_gradient_norm")
    return {key: [row.get(name) for name in names] for key, row in zip(keys, rows, strict=True)}


@pytest.fixture(scope="module")
def undisturbed(machines, tmp_path_factory):
    """The serial run, on this machine, that every other run must equal."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = cli("train", write_config(folder, CHANGES), "backend=serial", "--json", timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def cluster(machines):
    head, *workers = machines
    start_head(head)
    join(head, *workers)
    return machines


def finish(driver, folder, undisturbed):
    assert driver.wait(timeout=400) == 0, (folder / "stderr").read_text()[-4000:]
    state = json.loads((folder / "stdout").read_text())
    assert state["fingerprint"] == describe(undisturbed / "run")["fingerprint"]
    assert numbers(folder) == numbers(undisturbed)


def test_hung_raylets_cut_cables_and_lost_power_change_nothing(cluster, undisturbed, shared):
    """In one run, one in each meta-step, over a network that is slow and loses 2 % of all packets."""
    head, second, third = cluster
    folder = shared / "network"
    folder.mkdir()
    for host in cluster:
        host.degrade(loss=0.02, rate="20mbit")
    with training(head, folder) as driver:
        # The raylet of the second host hangs. Its node is declared dead, but its worker lives on.
        wait_for(lambda: under_way(folder, 0, second), driver)
        assert pids(head, "ray::Learner")
        stopped = pids(second, "/raylet/raylet ") + pids(second, "ray::Worker.run_task")
        second.run("kill", "-STOP", *stopped)
        wait_for(lambda: segments(folder, 0, attempt=1), driver)
        second.run("kill", "-CONT", *stopped[1:])  # the worker alone: what it sends, if it lives to, is refused
        wait_for(lambda: segments(folder, 1), driver)
        second.run("kill", "-CONT", *stopped[:1])  # it finds that it is dead, and ends
        wait_for(lambda: not pids(second, "/raylet/raylet "), driver)
        join(head, second)

        # The cable of the third is cut for 30 seconds. The second host goes on alone.
        wait_for(lambda: under_way(folder, 1, third), driver)
        third.cut()
        cut = time.monotonic()
        wait_for(lambda: segments(folder, 1, attempt=1), driver)

        # The second loses power as well: no host is left.
        wait_for(lambda: under_way(folder, 2, second), driver)
        second.power_off()
        time.sleep(max(0.0, cut + 30 - time.monotonic()))
        third.heal()
        wait_for(lambda: not pids(third, "/raylet/raylet "), driver)
        join(head, third)
        finish(driver, folder, undisturbed)
    faults = [row["text"] for row in read_metrics(folder / "run") if row["kind"] == "fault"]
    assert len(faults) >= 3


def test_the_head_loses_power_and_the_same_command_goes_on_in_mid_task(cluster, undisturbed, shared):
    head, second, third = cluster
    folder = shared / "head"
    folder.mkdir()
    second.power_off()
    second.power_on()
    join(head, second)
    with training(head, folder) as driver:
        wait_for(lambda: under_way(folder, 1, third) and segments(folder, 1), driver)
        before = len(segments(folder, 1))
        head.power_off()
        assert driver.wait(timeout=10) != 0

    second.power_off()
    for host in (head, second):  # the third is left to itself, with a worker that has lost everything
        host.power_on()
    start_head(head)
    join(head, second)
    with training(head, folder) as driver:
        finish(driver, folder, undisturbed)
    assert "resuming at meta-step 2 of 3" in (folder / "stderr").read_text()
    first_attempt = len(segments(folder, 1)) - len(segments(folder, 1, attempt=1))
    assert first_attempt >= before  # what had arrived was not trained again
