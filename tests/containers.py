"""A container engine of our own, for tests: a Docker daemon with its own data, and a base image made here, so that
the Dockerfile builds unchanged where no image can be pulled. At the end the machine is as it was.

    with engine() as docker:
        docker.build("leap-rl")
        docker.run("run", "--rm", "leap-rl", "--version")
"""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
# By their full names: another docker may stand before Debian's on PATH, without compose.
DOCKER, COMPOSE, DAEMON = "/usr/bin/docker", "/usr/bin/docker-compose", "/usr/sbin/dockerd"
PACKAGES = "docker.io docker-compose iptables mmdebstrap"
BASE = "python:3.11-slim-bookworm"
DISK = 8e9  # bytes that all of it takes for a while
BRIDGE = Path("/sys/class/net/docker0")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

# What python:3.11-slim has and Debian's python3.11 has not; "$1" is the image's root.
CUSTOMIZE = f"""
ln -s /usr/bin/python3.11 "$1/usr/local/bin/python"
ln -s /usr/bin/python3.11 "$1/usr/local/bin/python3"
ln -s /usr/bin/pip3 "$1/usr/local/bin/pip"
rm "$1/usr/lib/python3.11/EXTERNALLY-MANAGED"
cp {CERTIFICATES} "$1{CERTIFICATES}"
"""


# Runs the daemon in a folder "$1" until the tests close its input, or are no more. Then it removes containers, so that
# no process outlives the daemon, and their networks, which are bridges of this machine; and takes back what the daemon
# leaves: its rules, a FORWARD policy of DROP, forwarding, its bridge.
KEEPER = f"""
cd "$1" && exec >log 2>&1
forwarding=$(cat /proc/sys/net/ipv4/ip_forward)
iptables-save -t filter >rules && iptables-save -t nat >>rules || exit
{DAEMON} --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" --host "unix://$1/socket" \\
    --storage-driver overlay2 &
cat >/dev/null
export DOCKER_HOST="unix://$1/socket"
{DOCKER} ps --all --quiet | xargs --no-run-if-empty {DOCKER} rm --force
{DOCKER} network prune --force
kill "$!"
wait "$!"
iptables-restore rules && echo "$forwarding" >/proc/sys/net/ipv4/ip_forward &&
    if [ -e {BRIDGE} ]; then ip link delete {BRIDGE.name}; fi && rm -r "$1"
"""


def why_unavailable() -> str | None:
    """What this machine lacks for :func:`engine`; None where nothing is missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a container engine of our own needs Linux and root"
    tools = (DOCKER, COMPOSE, DAEMON, "iptables-save", "iptables-restore", "ip", "mmdebstrap")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        return f"a container engine of our own needs {', '.join(missing)} (Debian 12: {PACKAGES})"
    if BRIDGE.exists():
        return "another container engine runs here, or has run (there is a docker0); ours would disturb it"
    if shutil.disk_usage(tempfile.gettempdir()).free < DISK:
        return f"building the image needs {DISK / 1e9:.0f} GB in {tempfile.gettempdir()}"
    return None


class Docker:
    """The command line of a daemon of ours."""

    def __init__(self, folder: Path) -> None:
        self.volumes = folder / "data" / "volumes"
        self._environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "DOCKER_BUILDKIT": "1",
            "DOCKER_HOST": f"unix://{folder}/socket",
        }  # fmt: skip

    def start(self, *command: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(map(str, command)), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY,
            env=self._environment | (env or {}),
        )  # fmt: skip

    def run(self, *arguments: str | Path, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``docker …`` to its end. Raises CalledProcessError where it fails, with what it said as a note."""
        return finish(self.start(DOCKER, *arguments), timeout, check)

    def build(self, image: str) -> None:
        """The image of docker/Dockerfile, with the build of torch that is installed here."""
        shown = subprocess.run(["ip", "-json", "-4", "address", "show", BRIDGE.name], check=True, capture_output=True)
        address = json.loads(shown.stdout)[0]["addr_info"][0]["local"]
        with tempfile.TemporaryDirectory(prefix="leap-rl-index-") as index, _served(Path(index), address) as url:
            torch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"torch=={version('torch')}"]
            subprocess.run([*torch, "--dest", f"{index}/torch"], check=True, capture_output=True)
            settings = f"[global]\\ncert = {CERTIFICATES}\\ntrusted-host = {address}\\n"
            (Path(index) / "Dockerfile").write_text(f"FROM {BASE}\nRUN printf '{settings}' >/etc/pip.conf\n")
            self.run("build", "--quiet", "--tag", BASE, "--file", f"{index}/Dockerfile", "docker", timeout=600)
            arguments = ["--tag", image, "--file", "docker/Dockerfile", "--build-arg", f"TORCH_INDEX={url}"]
            self.run("build", *arguments, ".", timeout=900)


def finish(process: subprocess.Popen[str], timeout: float, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Waits for a command. Raises CalledProcessError where it fails, with what it said as a note."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    if check and process.returncode:
        error = subprocess.CalledProcessError(process.returncode, process.args, stdout, stderr)
        error.add_note(stdout + stderr)
        raise error
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@contextmanager
def engine() -> Iterator[Docker]:
    """A daemon with the base image of docker/Dockerfile in it. Nothing of it is left, however the tests end."""
    folder = Path(tempfile.mkdtemp(prefix="leap-rl-engine-"))
    keeper = subprocess.Popen(["sh", "-c", KEEPER, "sh", folder], stdin=subprocess.PIPE, start_new_session=True)
    try:
        docker = Docker(folder)
        base = _make_base(folder)
        _wait_until_up(docker, keeper, folder / "log")
        docker.run("import", base, BASE, timeout=600)
        base.unlink()
        yield docker
    finally:
        keeper.stdin.close()
        assert keeper.wait(timeout=600) == 0, f"{folder}: the machine is not as it was"


def _make_base(folder: Path) -> Path:
    hook, base = folder / "customize", folder / "base.tar"
    hook.write_text(CUSTOMIZE)
    packages = "ca-certificates,python3.11,python3.11-venv,python3-pip,libpython3.11"
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}",
         f'--customize-hook=sh -e {hook} "$1"', "bookworm", str(base)],
        check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    return base


def _wait_until_up(docker: Docker, keeper: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while docker.run("info", check=False).returncode:
        if keeper.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the daemon is not up: {log.read_text()[-2000:]}")
        time.sleep(0.2)


@contextmanager
def _served(folder: Path, address: str) -> Iterator[str]:
    """The folder over HTTP, to containers only: a package index for pip."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((address, 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{address}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
