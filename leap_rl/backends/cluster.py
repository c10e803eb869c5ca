"""Joining a Ray cluster or starting one, and what there is to know of it. Imports Ray, as actors.py and ray.py do."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address
from ray._private.state import actors
from ray.exceptions import RayError

from leap_rl.config import Config
from leap_rl.types import BadInputError, LeapRLError

QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
CONNECT_SECONDS = 5.0  # for something to answer at ray.address


def join(config: Config) -> None:
    """Joins the cluster at ``ray.address``, or starts one on the loopback interface.

    Raises BadInputError where no cluster answers, or where it cannot hold a worker.
    """
    with _interrupts_held_back():
        _connect(config)
    _check_resources(config)


def own_node() -> dict[str, Any]:
    """The node of this process, as ``ray.nodes()`` has it. Raises LeapRLError where Ray has lost it: nothing can be
    started there any more, nor fetched."""
    here = ray.get_runtime_context().get_node_id()
    node: dict[str, Any] = next(node for node in ray.nodes() if node["NodeID"] == here)
    if not (node["Alive"] and _listens(node["RayletSocketName"])):
        raise LeapRLError(
            "Ray's daemon on this machine (the raylet) has died; nothing is lost, the same command continues"
        )
    return node


def _listens(path: str) -> bool:
    """Whether a raylet is behind its socket; true where that is elsewhere, as for a ray:// driver.

    Ray itself notices a dead raylet after some 20 s, and then may end this process from C++, without a word.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:  # no such socket here, or a raylet too busy to take a connection
            return True
    return True


def places(actor_ids: Sequence[str]) -> dict[str, str]:
    """Which actors have been given a place, even if they are still starting there: id → the node's address. For
    processes of the cluster itself: a driver that came by ray:// cannot ask."""
    known = {actor_id: actors(actor_id) for actor_id in actor_ids}
    return {actor_id: actor["Address"]["IPAddress"] for actor_id, actor in known.items() if actor and actor["Pid"]}


def fits(node: dict[str, Any], config: Config) -> bool:
    """Whether a node is large enough for a worker."""
    return all(node["Resources"].get(name, 0) >= amount for name, amount in _wanted(config).items())


def room(config: Config) -> str:
    """What a worker asks for, and what the cluster has of it."""
    has, free = ray.cluster_resources(), ray.available_resources()
    return " and ".join(
        f"{amount:g} {name} (the cluster has {has.get(name, 0):g}, {free.get(name, 0):g} free)"
        for name, amount in _wanted(config).items()
    )


def _wanted(config: Config) -> dict[str, float]:
    wanted = {"CPU": config.workers.cpus, "GPU": config.workers.gpus}
    return {name: amount for name, amount in wanted.items() if amount}


def ensure_ray(asked_by: str) -> None:
    """Starts a cluster of one core for this process where it is in none: left to itself, a library would join any that
    it finds. Raises LeapRLError where it does not start."""
    if not ray.is_initialized():
        with _interrupts_held_back():
            _start(1, asked_by)


def _start(num_cpus: int, asked_by: str) -> None:
    try:
        ray.init("local", num_cpus=num_cpus, include_dashboard=False, **QUIET)
    except Exception as error:  # Ray raises bare ones, e.g. where the machine is too busy to start in time
        raise LeapRLError(f"{asked_by}: Ray does not start: {error}") from error


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until Ray has started: stopped while it starts, it leaves processes behind.
    Puts the handlers back that ray.init replaces."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
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

    Raises BadInputError where no cluster answers.
    """
    address = config.ray.address
    if address == "local":
        _start(max(config.workers.count * config.workers.cpus, os.cpu_count() or 1), "ray.address = local")
        return
    problem = f"ray.address = {address}: "
    where = address.removeprefix("ray://")
    host, _, port = where.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise BadInputError(problem + "must be local, auto, host:port or ray://host:port")
    if where == address:  # ray.init looks at the node's address for 127.0.0.1, and at a file's, maybe old, for auto
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
    try:
        ray.init(address, **QUIET)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        lines = [line for line in str(error).strip().splitlines() if line]
        raise BadInputError(f"{problem}cannot join: {lines[0] if lines else type(error).__name__}") from error


def _greet(host: str, port: int) -> bool:
    """Whether a gRPC server answers: Ray's own attempt would take more than a minute to give up.

    Sends an HTTP/2 preface with an empty SETTINGS frame (RFC 9113, section 3.4) and expects a SETTINGS frame.
    """
    with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        try:
            header = connection.recv(9)
        except TimeoutError:
            return False
    return len(header) == 9 and header[3] == 4


def _check_resources(config: Config) -> None:
    """Raises BadInputError where not one worker could be placed, or, on this machine, not all of them: Ray
    would wait for ever. On a cluster the others start when nodes join."""
    workers = config.workers
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not any(fits(node, config) for node in nodes):
        largest = {name: max(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        raise BadInputError(
            f"workers.cpus = {workers.cpus}, workers.gpus = {workers.gpus:g}: no node has room for a worker; "
            f"the largest has {largest['CPU']:g} CPUs and {largest['GPU']:g} GPUs"
        )
    total = ray.cluster_resources().get("GPU", 0)
    if config.ray.address == "local" and workers.count * workers.gpus > total:
        raise BadInputError(
            f"workers.count = {workers.count}: with workers.gpus = {workers.gpus:g} needs "
            f"{workers.count * workers.gpus:g} GPUs; this machine has {total:g}"
        )
