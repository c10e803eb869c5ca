"""Compares agent steps per second on all cores with other libraries: same games, network and number of environments.

    python -m benchmarks.peers --games pong breakout --seconds 30 --rounds 3

The systems run in turns, each by itself, as its users run it on one machine. Speed is measured over ``--seconds``,
after the first ``--warm-up`` seconds from a system's first report. Libraries that are not in requirements.lock get a
virtual environment of their own in .venv-peers, made on first use. The output is one JSON line for each system and
game; a ratio is our speed divided by the other's in the same round.
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
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.peers.environments import ENVPOOL, SAMPLE_FACTORY, SB3, make_environment
from leap_rl.atari.vector import background
from leap_rl.config_files import load_config
from leap_rl.processes.a2c.config import A2CConfig

SCRIPTS = Path(__file__).parent


class Peer(NamedTuple):
    """Says how to run a system. ``processes`` of 0 means one for each core; without ``requirements`` the system is in
    requirements.lock."""

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
    """Returns the agent steps per second of all processes of a system together."""
    peer, cores = PEERS[name], len(os.sched_getaffinity(0))
    python = make_environment(name, peer.requirements) if peer.requirements else Path(sys.executable)
    with tempfile.TemporaryDirectory(prefix="p-") as folder:  # a short path, since Ray's sockets are in it
        overrides = [f"agent.num_envs={options.num_envs}", f"agent.unroll={options.unroll}"]
        config = load_config(options.config, overrides)
        assert isinstance(config, A2CConfig)
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
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def rates(processes: list[subprocess.Popen[str]], options: argparse.Namespace) -> list[float]:
    """Returns the rate of each process over the same window, which begins ``warm_up`` seconds after all have
    reported."""
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
    parser.add_argument("--num-envs", type=int, default=32, help="in each process of leap_rl; in total for the others")
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
