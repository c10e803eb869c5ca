"""Answers questions about the cluster that this process is in: which nodes there are, what they have room for, which
leap_rl they run, and why an actor died."""

import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from leap_rl.backends import installation as installations
from leap_rl.config import Config
from leap_rl.types import BadInputError, LeapRLError

CONNECT_SECONDS = 5.0  # time limit for an answer at a socket or at ray.address
ANSWER_SECONDS = 30.0  # time limit for nodes to say which leap_rl they have


def own_node() -> dict[str, Any]:
    """Returns this process's node, as in ``ray.nodes()``. Raises LeapRLError if Ray has lost the node, so that nothing
    can be started or fetched there any more."""
    here = ray.get_runtime_context().get_node_id()
    node: dict[str, Any] = next(node for node in ray.nodes() if node["NodeID"] == here)
    if not (node["Alive"] and _listens(node["RayletSocketName"])):
        raise LeapRLError(
            "Ray's daemon on this machine (the raylet) has died; nothing is lost, the same command continues"
        )
    return node


def _listens(path: str) -> bool:
    """Returns whether a raylet answers at its socket. Returns True if the socket is on another machine, as for a ray://
    driver.

    Ray itself notices a dead raylet only after some 20 s, and then may end this process from C++ without a message.
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
    """Returns the actors that a node has room for, even if they are still starting there: id → the node's address. Must
    be called in a process of the cluster itself: a ray:// driver cannot ask."""
    known = {actor_id: actors(actor_id) for actor_id in actor_ids}
    return {actor_id: actor["Address"]["IPAddress"] for actor_id, actor in known.items() if actor and actor["Pid"]}


def fits(node: dict[str, Any], config: Config) -> bool:
    """Returns whether a node is large enough for a worker."""
    return all(node["Resources"].get(name, 0) >= amount for name, amount in _wanted(config).items())


def room(config: Config) -> str:
    """Returns a text that says what a worker asks for, and what the cluster has of it."""
    has, free = ray.cluster_resources(), ray.available_resources()
    return " and ".join(
        f"{amount:g} {name} (the cluster has {has.get(name, 0):g}, {free.get(name, 0):g} free)"
        for name, amount in _wanted(config).items()
    )


def _wanted(config: Config) -> dict[str, float]:
    wanted = {"CPU": config.workers.cpus, "GPU": config.workers.gpus}
    return {name: amount for name, amount in wanted.items() if amount}


def check_code(found: object) -> None:
    """Raises BadInputError unless an actor's answer ``found`` has the version and source of this process."""
    if not (isinstance(found, tuple) and found[1:] == installations.installation()[1:]):
        check_nodes()


def check_nodes() -> None:
    """Raises BadInputError, with both paths, if a node imports another leap_rl than this process.

    Nodes that do not answer are skipped, since they have another problem."""
    ours = installations.installation()
    ray.cloudpickle.register_pickle_by_value(installations)  # it must run even if the other copy lacks it
    try:
        asked = {
            ray.remote(installations.installation)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(): node["NodeManagerAddress"]
            for node in ray.nodes()
            if node["Alive"]
        }
    finally:
        ray.cloudpickle.unregister_pickle_by_value(installations)
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    for question in answered:
        try:
            path, version, digest = ray.get(question)
        except RayTaskError as error:
            raise BadInputError(f"node {asked[question]} cannot import leap_rl: {last_line(str(error))}") from None
        except RayError:
            continue
        if (version, digest) != ours[1:]:
            raise BadInputError(
                f"node {asked[question]} has another leap_rl than this process: {path} ({version}, {digest[:12]}) "
                f"there, {ours[0]} ({ours[1]}, {ours[2][:12]}) here; install the same on every node"
            )


def last_line(text: str) -> str:
    """Returns the last line of one of Ray's errors, without colours."""
    lines = [line for line in re.sub(r"\x1b\[\d*m", "", text).splitlines() if line.strip(" ^\t")]
    return lines[-1].strip() if lines else text


def last_words(actor_id: str) -> str:
    """Returns the error that an actor of this machine wrote before it died, and its log file; an empty text if there is
    none."""
    try:
        actor = actors(actor_id)
        logs = Path(own_node()["ObjectStoreSocketName"]).parent.parent / "logs"
        [file] = logs.glob(f"worker-*-{actor['Pid']}.err")
        lines = [line for line in file.read_text(errors="replace").splitlines() if line and not line.startswith(":")]
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return f"{[*lines, *fatal][-1]} ({file})" if lines else ""
    except Exception:  # this only explains another error, and uses files that Ray does not promise
        return ""
