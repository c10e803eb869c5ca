"""Agent steps per second on all cores, ours beside its peers: same games, network, number of environments, in turns.

    python -m benchmarks.peers --games pong breakout --seconds 30 --rounds 3

Each system runs by itself, as its users run it on one machine, until its speed over ``--seconds`` is known: the
first ``--warm-up`` seconds after its first report are left out. Peers that are not in our lock get an environment of
their own in .venv-peers, made on first use. One JSON line a system and game; ratios are ours over the peer's of the
same round.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.peers.environments import ENVPOOL, SAMPLE_FACTORY, SB3, make_environment
from leap_rl.config import load_config
from leap_rl.processes.atari import background

SCRIPTS = Path(__file__).parent


class Peer(NamedTuple):
    """``processes``: 0 means one a core. ``requirements``: none means that our lock has it."""

    script: str
    requirements: tuple[str, ...] = ()
    settings: dict[str, Any] = {}  # noqa: RUF012  (never written)
    processes: int = 1


PEERS = {
    "leap_rl": Peer("leap_rl_a2c.py", processes=0),
    "sb3": Peer("sb3_a2c.py", SB3),
    "envpool": Peer("envpool_a2c.py", ENVPOOL),
    "sample_factory": Peer("sample_factory_appo.py", SAMPLE_FACTORY),
    "rllib_ppo": Peer("rllib.py", settings={"algorithm": "PPO"}),
    "rllib_impala": Peer("rllib.py", settings={"algorithm": "IMPALA"}),
}


def measure(name: str, game: str, options: argparse.Namespace) -> float:
    """Agent steps per second of all processes of a peer together."""
    peer, cores = PEERS[name], len(os.sched_getaffinity(0))
    python = make_environment(name, peer.requirements) if peer.requirements else Path(sys.executable)
    with tempfile.TemporaryDirectory(prefix="p-") as folder:  # short: Ray has sockets in it
        overrides = [f"agent.num_envs={options.num_envs}", f"agent.unroll={options.unroll}"]
        config = load_config(options.config, overrides)
        settings = {
            "game": game, "center": background(game, config.env)[0], "cores": cores, "folder": folder,
            "row_steps": 5 * options.num_envs * options.unroll,
            "config": options.config, "overrides": overrides, **peer.settings,
            **config.model_dump(include={"run", "agent", "env"}),
            "task": {"agent_steps": 10**9},
        }  # fmt: skip
        command = [str(python), str(SCRIPTS / peer.script), json.dumps(settings)]
        paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        processes = []
        try:
            for _ in range(peer.processes or cores):
                process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
                    env=os.environ | {"PYTHONPATH": paths},
                )  # fmt: skip
                processes.append(process)
            return sum(rates(processes, options))
        finally:
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def rates(processes: list[subprocess.Popen[str]], options: argparse.Namespace) -> list[float]:
    """Of each process, over the same window: from ``warm_up`` seconds after the last of them has first reported."""
    reports: queue.Queue[tuple[int, float, dict[str, float] | None]] = queue.Queue()
    for index, process in enumerate(processes):
        threading.Thread(target=_read, args=(index, process, reports), daemon=True).start()
    rows: dict[int, list[tuple[float, float]]] = {index: [] for index in range(len(processes))}
    begin = float("inf")
    while True:
        index, at, row = reports.get(timeout=300)
        if row is None:
            raise SystemExit(f"exit code {processes[index].wait()}: {processes[index].args!r}")
        rows[index].append((at, row["agent_steps"]))
        if begin == float("inf") and all(rows.values()):
            begin = at + options.warm_up
        windows = [[found for found in of_process if found[0] >= begin] for of_process in rows.values()]
        if at >= begin + options.seconds and all(len(window) > 1 for window in windows):
            return [(last[1] - first[1]) / (last[0] - first[0]) for first, *_, last in windows]


def _read(index: int, process: subprocess.Popen[str], reports: queue.Queue[Any]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            reports.put((index, time.perf_counter(), json.loads(line)))
    reports.put((index, time.perf_counter(), None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=["pong", "breakout"])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--warm-up", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-envs", type=int, default=32, help="of each process of ours, of all a peer's together")
    parser.add_argument("--unroll", type=int, default=5)
    parser.add_argument("--config", default="configs/atari.yaml")
    options = parser.parse_args()
    for game in options.games:
        rounds: list[dict[str, float]] = []
        for _ in range(options.rounds):
            rounds.append({})
            for name in options.peers:
                rounds[-1][name] = measure(name, game, options)
                print(f"{game} {name}: {rounds[-1][name]:,.0f} agent steps/s", file=sys.stderr)
        for name in options.peers:
            result = {"game": game, "system": name, "agent_steps_per_second": [round(r[name]) for r in rounds]}
            if "leap_rl" in options.peers:
                result["leap_rl_over_it"] = round(median(r["leap_rl"] / r[name] for r in rounds), 2)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
