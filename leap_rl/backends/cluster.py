"""Joins a Ray cluster or starts one, and leaves it."""

import errno
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import RayError
from ray.job_config import JobConfig

import leap_rl
from leap_rl.backends.nodes import CONNECT_SECONDS, check_nodes, fits
from leap_rl.config import Config
from leap_rl.files.storage import read_file
from leap_rl.private_folder import private_folder
from leap_rl.types import BadInputError, LeapRLError


class _DriversPath(JobConfig):  # type: ignore[misc]
    """Makes workers search for modules where this process does, in the same order. By default Ray would search the
    current directory first, and run any copy of leap_rl, or of another module, that lies there."""

    def __init__(self) -> None:
        package = Path(leap_rl.__file__).parent.parent  # needed since an editable installation is not on sys.path
        searched = [os.path.abspath(folder) for folder in sys.path]
        super().__init__(_py_driver_sys_path=[str(package), *reversed(searched)])  # a worker prepends each in turn

    def _runtime_env_has_working_dir(self) -> bool:
        """Returns True, which keeps Ray from adding folders of its own."""
        return True


QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
LEAVE_SECONDS = 15.0  # time limit for a cluster of our own to end by itself


def join(config: Config) -> None:
    """Joins the cluster at ``ray.address``, or starts one on the loopback interface.

    Raises BadInputError if no cluster answers, or if it cannot hold a worker.
    """
    with _interrupts_held_back():
        _connect(config)
    _check_resources(config)
    if config.ray.address.startswith("ray://"):  # the server process unpickles our actors with its own leap_rl
        check_nodes()


def leave() -> None:
    """Leaves the cluster, and ends one that this process started. If its processes do not answer, they are killed: Ray
    would wait for them without a limit."""
    started = ray._private.worker._global_node
    processes = [info.process for infos in started.all_processes.values() for info in infos] if started else []
    force = threading.Timer(LEAVE_SECONDS, lambda: [process.kill() for process in processes])
    force.daemon = True
    force.start()
    try:
        ray.shutdown()
    finally:
        force.cancel()


def ensure_ray(asked_by: str) -> None:
    """Starts a cluster of one core for this process, unless it is in one. (RLlib would otherwise join any cluster that
    it finds.) Raises LeapRLError if the cluster does not start."""
    if not ray.is_initialized():
        with _interrupts_held_back():
            _start(1, asked_by)


def _start(num_cpus: int, asked_by: str) -> None:
    """Starts a cluster of this process, with a second try: Ray waits 30 s for its own processes, which may be too short
    on a busy machine. Raises LeapRLError if the cluster does not start."""
    folder = private_folder() / "ray"  # Ray opens this folder to everybody; its parent stays closed
    for attempt in range(2):
        try:
            ray.init(
                "local", num_cpus=num_cpus, include_dashboard=False, _temp_dir=str(folder), job_config=_DriversPath(),
                **QUIET,
            )  # fmt: skip
            return
        except Exception as error:  # Ray raises bare Exceptions
            ray.shutdown()
            reason = " ".join(f"{error}".split())
            if attempt:
                raise LeapRLError(f"{asked_by}: Ray does not start: {reason}{_remedy(error)}") from error
            print(f"Ray does not start ({reason}); it is tried once more", file=sys.stderr)


def _remedy(error: Exception) -> str:
    """Returns which variable to set if Ray cannot use its folder; an empty text for other errors."""
    if "AF_UNIX path length" in str(error):
        return "; set RAY_TMPDIR to a shorter path"
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return "; set RAY_TMPDIR to a folder of your own, with a short path"
    return ""


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM until Ray has started, since an interrupted start would leave processes behind.
    Restores the signal handlers that ray.init replaces."""
    if threading.current_thread() is not threading.main_thread():  # no handler can be set there
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda received, _: came.append(received)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _connect(config: Config) -> None:
    """Joins the cluster at ``ray.address``, or starts one on the loopback interface.

    Raises BadInputError if no cluster answers.
    """
    address = config.ray.address
    if address == "local":
        _, number = _workers_here(config)
        _start(max(number * config.workers.cpus, os.cpu_count() or 1), "ray.address = local")
        return
    problem = f"ray.address = {address}: "
    address = _own_cluster() if address == "auto" else address
    where = address.removeprefix("ray://")
    host, _, port = where.rpartition(":")
    if not (re.fullmatch(r"[\w.-]+|\[[\w.:%]+\]", host) and port.isdecimal() and 0 < int(port) < 65536):
        raise BadInputError(f"{problem}must be local, auto, host:port or ray://host:port")
    if where == address:  # ray.init replaces 127.0.0.1 by the node's address
        where = canonicalize_bootstrap_address(address)
    if where:
        host, _, port = where.rpartition(":")
        try:
            answer = _greet(host, int(port))
        except OSError as error:
            reason = error.strerror or error
            raise BadInputError(f"{problem}no Ray cluster answers at {where}: {reason}") from None
        if not answer:
            raise BadInputError(f"{problem}what answers at {where} is not a Ray cluster")
    # A ray:// driver has no folders in common with the cluster.
    more = {} if address.startswith("ray://") else {"job_config": _DriversPath()}
    try:
        ray.init(address, **more, **QUIET)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInputError(f"{problem}cannot join: {reason}") from error


def _own_cluster() -> str:
    """Returns host:port of the cluster that this user started last on this machine, or that RAY_ADDRESS names.

    Ray itself would take any process of this machine that looks like its own, or a file in /tmp that anybody may have
    written, and send the token there. Raises BadInputError if there is no cluster.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named and named != "auto":
        return named
    # Ray's default folder is the second one, in which `ray start` by hand leaves the file.
    for folder in (private_folder(), Path(os.environ.get("TMPDIR", "/tmp"))):
        file = folder / "ray" / "ray_current_cluster"
        with suppress(OSError, BadInputError):
            if file.lstat().st_uid == os.getuid():
                return read_file(file, 1000).decode(errors="replace").strip()
    raise BadInputError("ray.address = auto: no cluster of this user runs on this machine, and RAY_ADDRESS names none")


def _greet(host: str, port: int) -> bool:
    """Returns whether a gRPC server answers. (Ray's own attempt takes more than a minute to give up.)

    It sends an HTTP/2 preface with an empty SETTINGS frame (RFC 9113, section 3.4) and expects a SETTINGS frame.
    """
    with socket.create_connection((host.strip("[]"), port), timeout=CONNECT_SECONDS) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        try:
            header = connection.recv(9)
        except TimeoutError:
            return False
    return len(header) == 9 and header[3] == 4


def _check_resources(config: Config) -> None:
    """Raises BadInputError if no worker could be placed, since Ray would wait for ever. On this machine all workers
    must fit; on a cluster the others start when nodes join."""
    workers = config.workers
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not any(fits(node, config) for node in nodes):
        largest = {name: max(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        raise BadInputError(
            f"workers.cpus = {workers.cpus}, workers.gpus = {workers.gpus:g}: no node has room for a worker; "
            f"the largest has {largest['CPU']:g} CPUs and {largest['GPU']:g} GPUs"
        )
    total, (key, number) = ray.cluster_resources().get("GPU", 0), _workers_here(config)
    if config.ray.address == "local" and number * workers.gpus > total:
        raise BadInputError(
            f"{key} = {number}: with workers.gpus = {workers.gpus:g} needs {number * workers.gpus:g} GPUs; this "
            f"machine has {total:g}"
        )


def _workers_here(config: Config) -> tuple[str, int]:
    """Returns the key that says how many workers run on this machine, the only node of a local cluster, and its
    value."""
    workers = config.workers
    return ("workers.count", workers.count) if workers.per_node is None else ("workers.per_node", workers.per_node)
