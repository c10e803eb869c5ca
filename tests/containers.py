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
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
# By their full names: another docker may stand before Debian's on PATH, without compose.
DOCKER, COMPOSE, DAEMON = "/usr/bin/docker", "/usr/bin/docker-compose", "/usr/sbin/dockerd"
PACKAGES = "docker.io docker-compose iptables mmdebstrap"
BASE = "python:3.11-slim-bookworm"
DISK = 8e9  # bytes that all of it takes for a while
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
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
            self.run("build", "--quiet", "--tag", BASE, "--file", f"{index}/Dockerfile", "docker", timeout=120)
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
    """A daemon with the base image of docker/Dockerfile in it. Ends with nothing of it left."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="leap-rl-engine-"))
        stack.callback(shutil.rmtree, folder)
        base = _make_base(folder)
        stack.callback(_restore, _rules(), FORWARDING.read_text())
        daemon = _start_daemon(folder)
        stack.callback(_stop, daemon)
        docker = Docker(folder)
        _wait_until_up(docker, daemon, folder / "log")
        stack.callback(_remove_all, docker)
        docker.run("import", base, BASE, timeout=120)
        base.unlink()
        yield docker


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


def _start_daemon(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [DAEMON, "--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid",
             "--host", f"unix://{folder}/socket", "--storage-driver", "overlay2"],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def _wait_until_up(docker: Docker, daemon: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while docker.run("info", check=False).returncode:
        if daemon.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the daemon is not up: {log.read_text()[-2000:]}")
        time.sleep(0.2)


def _remove_all(docker: Docker) -> None:
    """Containers first, so that no process outlives the daemon, then their networks, which are bridges here."""
    containers = docker.run("ps", "--all", "--quiet").stdout.split()
    if containers:
        docker.run("rm", "--force", *containers)
    docker.run("network", "prune", "--force")


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=60)
    finally:
        daemon.kill()


def _rules() -> bytes:
    tables = [subprocess.run(["iptables-save", "-t", t], check=True, capture_output=True) for t in ("filter", "nat")]
    return b"".join(table.stdout for table in tables)


def _restore(rules: bytes, forwarding: str) -> None:
    """The daemon leaves its rules, a FORWARD policy of DROP, forwarding and its bridge behind."""
    subprocess.run(["iptables-restore"], input=rules, check=True)
    FORWARDING.write_text(forwarding)
    subprocess.run(["ip", "link", "delete", "docker0"], check=True)


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
