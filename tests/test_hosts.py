"""Three hosts and a real Ray cluster on them: hung raylets, cut cables, lost power, and the same initialization."""

import json
import secrets
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from leap_rl.runs.inspection import describe
from leap_rl.runs.run_files import read_metrics
from tests import cli_helpers
from tests.cli_helpers import environment, here, write_config
from tests.gradient_steps import GradientSteps
from tests.hosts import hosts, why_unavailable

pytestmark = pytest.mark.slow

PORT = 6379
NODE_MANAGER = 7001  # the port at which a node takes orders
# A node that does not answer is dead after 10 s, and not after a minute. Workers authenticate, as they should.
RAY = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
# One worker a host. 72 gradient steps a task, 6 segments.
CHANGES = {
    "meta.steps": 3,
    "meta.batch_size": 2,
    "task.agent_steps": 1440,
    "stream.segment_updates": 12,
    "workers.per_node": 1,
}
DELAY = 0.01  # seconds, of each cable: 40 ms between two hosts, there and back
HELD = 30  # the gradient step at which tasks are held up, in their third segment, while a test prepares what comes next


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


def test_a_long_cable_delays_and_loses_until_the_power_fails(machines):
    first, second, _ = machines
    assert comes_to_reach(first, second)
    second.lengthen_cable(0.3, loss=0.0)
    assert comes_to_reach(first, second)
    started = time.monotonic()
    assert first.reaches(second, seconds=10)
    assert time.monotonic() - started >= 2 * 0.3  # there and back
    second.cut()
    assert not first.reaches(second)
    for loss in (1.0, 0.0):
        second.power_off()
        second.power_on()
        second.lengthen_cable(0.0, loss)
        assert comes_to_reach(first, second) == (loss == 0)
        assert comes_to_reach(second, first) == (loss == 0)  # nothing comes back
    second.power_off()
    second.power_on()


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

# As a host's own init would: joins again whenever the raylet has ended, e.g. since the head took it for dead.
SUPERVISE = """
while :; do
    "$@" >/dev/null && echo joined && exec >/dev/null
    sleep 1
    while pidof raylet >/dev/null; do sleep 1; done
done
"""


def ray_start(host, steps, *options, **environment_variables):
    """Returns once it is up; from then on it is kept up."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", *options]
    command += [f"--node-ip-address={host.address}", f"--node-manager-port={NODE_MANAGER}"]
    env = environment() | RAY | steps.environment() | environment_variables
    command = ["sh", "-c", SUPERVISE, "sh", *command, "--object-store-memory=100000000"]
    return host.start(*command, env=env, stdout=subprocess.PIPE, text=True).stdout


def start_head(head, steps, **environment_variables):
    """Too small for a worker: what trains, trains on the other hosts."""
    options = ("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
    assert ray_start(head, steps, *options, **environment_variables).readline() == "joined\n"


def join(head, steps, *workers):
    joining = [ray_start(host, steps, f"--address={head.address}:{PORT}", "--num-cpus=1") for host in workers]
    assert [output.readline() for output in joining] == ["joined\n"] * len(workers)


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


def faults(folder):
    return [row["text"] for row in read_metrics(folder / "run") if row["kind"] == "fault"]


def held_up(folder, meta_step):
    """All tasks of the meta-step are in their third segment, by what is saved of them."""
    saved = [file.stem for file in (folder / "run" / "tasks").glob(f"{meta_step:06d}-*/*.safetensors")]
    return saved == ["000002"] * CHANGES["meta.batch_size"]


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
    done = here("train", write_config(folder, CHANGES), "backend=serial", "--json")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def steps(shared):
    """The gradient steps of all tests here."""
    return GradientSteps(shared / "gradient steps")


@pytest.fixture(scope="module")
def cluster(machines, steps):
    head, *workers = machines
    start_head(head, steps)
    join(head, steps, *workers)
    return machines


def finish(driver, folder, undisturbed):
    assert driver.wait(timeout=600) == 0, (folder / "stderr").read_text()[-4000:]
    state = json.loads((folder / "stdout").read_text())
    assert state["fingerprint"] == describe(undisturbed / "run")["fingerprint"]
    assert numbers(folder) == numbers(undisturbed)


def test_a_run_directory_that_a_worker_does_not_see_is_one_line(cluster, shared):
    """/tmp is each host's own."""
    folder = shared / "unseen"
    folder.mkdir()
    command = [sys.executable, "-m", "leap_rl.cli", "train", write_config(folder, CHANGES), "run.dir=/tmp/unseen"]
    command += ["backend=ray", f"ray.address={cluster[0].address}:{PORT}"]
    done = cluster[0].run(*command, env=environment() | RAY, timeout=600, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: run.dir = /tmp/unseen: node ")
    assert any(f"node {worker.address} does not see the run;" in last for worker in cluster[1:])


def test_hung_raylets_cut_cables_and_lost_power_change_nothing(cluster, undisturbed, shared, steps):
    """In one run, one in each meta-step, over cables that delay what they carry and lose 2 % of it."""
    head, second, third = cluster
    folder = shared / "network"
    folder.mkdir()
    for host in cluster:
        host.lengthen_cable(DELAY, loss=0.02)
    steps.hold(0, HELD)
    with training(head, folder) as driver:
        # The raylet of the second host hangs. Its node is declared dead, but its worker lives on.
        wait_for(lambda: held_up(folder, 0), driver)
        assert pids(head, "ray::Learner")
        raylet = pids(second, "/raylet/raylet ")
        second.run("kill", "-STOP", *raylet)
        wait_for(lambda: faults(folder), driver)
        steps.hold(1, HELD)
        wait_for(lambda: segments(folder, 0, attempt=1) and segments(folder, 1), driver)
        second.run("kill", "-CONT", *raylet)  # it finds that it is dead, and ends; the host joins again

        # The cable of the third is cut for 30 seconds. The second host goes on alone.
        wait_for(lambda: held_up(folder, 1), driver)
        before = len(faults(folder))
        third.cut()
        cut = time.monotonic()
        wait_for(lambda: len(faults(folder)) > before, driver)
        steps.hold(2, HELD)

        # The second loses power as well: no host is left.
        wait_for(lambda: segments(folder, 1, attempt=1) and segments(folder, 2), driver)
        before = len(faults(folder))
        second.power_off()
        wait_for(lambda: len(faults(folder)) > before, driver)
        time.sleep(max(0.0, cut + 30 - time.monotonic()))
        third.heal()
        steps.let_go()
        finish(driver, folder, undisturbed)


def test_the_head_loses_power_and_the_same_command_goes_on_in_mid_task(cluster, undisturbed, shared, steps):
    head, second, _ = cluster
    folder = shared / "head"
    folder.mkdir()
    second.power_off()
    second.power_on()
    join(head, steps, second)
    steps.hold(1, HELD)
    with training(head, folder) as driver:
        wait_for(lambda: held_up(folder, 1) and len(segments(folder, 1)) == 4, driver)
        head.power_off()
        assert driver.wait(timeout=10) != 0

    second.power_off()
    for host in (head, second):  # the third has a worker that has lost everything; it joins when it has seen that
        host.power_on()
    start_head(head, steps)
    join(head, steps, second)
    steps.let_go()
    with training(head, folder) as driver:
        finish(driver, folder, undisturbed)
    assert "resuming at meta-step 2 of 3" in (folder / "stderr").read_text()
    first_attempt = len(segments(folder, 1)) - len(segments(folder, 1, attempt=1))
    assert first_attempt >= 4  # what had arrived was not trained again


def test_what_a_worker_sends_that_was_given_up_and_lives_on_is_refused(cluster, undisturbed, shared, steps):
    """The head's connection to it breaks, and no order reaches its node: neither to stop it nor to start another.

    The node must not count as dead. From one that does, nothing large arrives: its worker can call the learner, but Ray
    does not fetch the objects that the call names (docs/validation.md).
    """
    head, second, third = cluster
    folder = shared / "stale"
    folder.mkdir()
    for host in cluster:
        host.power_off()
        host.power_on()
    start_head(head, steps, RAY_health_check_failure_threshold="1000000")
    join(head, steps, second, third)
    steps.hold(0, HELD)
    with training(head, folder) as driver:
        wait_for(lambda: held_up(folder, 0), driver)
        [worker] = pids(second, "ray::Worker.run_task")
        second.run("kill", "-STOP", worker)
        second.shut_out(head, NODE_MANAGER)
        for port in second.ports(worker):
            head.reset(second, port)
        wait_for(lambda: faults(folder), driver)
        steps.hold(1)
        wait_for(lambda: segments(folder, 0, attempt=1), driver)
        second.run("kill", "-CONT", worker)
        wait_for(lambda: worker not in pids(second, "ray::Worker.run_task"), driver)
        assert worker in pids(second, "ray::")  # told by the learner that it may stop, and not killed
        steps.let_go()
        finish(driver, folder, undisturbed)
    rows = read_metrics(folder / "run")
    assert sum(row["stale_increments"] for row in rows if row["kind"] == "meta_step") >= 1
