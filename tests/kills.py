"""Runs of other kinds than games under our own A2C, shot at: at random times, any process that Ray started for them.

    python -m tests.kills --kind rllib --kills 20           or classification, or evaluation

The same command is given until it ends with 0; fingerprint (or curves), rows and files must be the undisturbed serial
run's. ``tests/soak.py`` has the schedules by segment, for A2C.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from leap_rl.runs.inspection import describe
from leap_rl.runs.run_files import read_metrics
from tests.cli_helpers import TINY, cli, here, kill_session, session, start, write_config
from tests.helpers import nest

VICTIMS = ("ray::Worker", "ray::Learner", "/raylet/raylet ", "leap_rl.cli")  # titles; the last is the driver
TIMED = (
    "seconds", "agent_steps_per_second", "worker_utilization", "attempt", "faults", "duplicate_increments",
    "stale_increments",
)  # fmt: skip  # differ from run to run
MAX_SECONDS = 3600.0
RLLIB = {
    "process": "rllib", "rllib.algorithm": "PPO", "meta.batch_size": 2, "meta.optimizer": "sgd", "agent.num_envs": 1,
    "task.agent_steps": 240,
    "rllib.options": {"train_batch_size_per_learner": 40, "minibatch_size": 20, "num_epochs": 1},
}  # fmt: skip
CLASSIFICATION = {
    "run": {}, "process": "classification", "backend": "serial", "alphabets": {"train": 4, "held_out": 1},
    "meta": {"steps": 6, "batch_size": 2, "lr": 0.1}, "task": {"agent_steps": 40}, "stream": {"segment_updates": 5},
}  # fmt: skip


def command(kind: str, folder: Path) -> list[str]:
    """Writes the configuration, and what is to be evaluated, into ``folder``. Returns the command without a backend."""
    if kind == "classification":
        tree = nest({"run.dir": str(folder / "run")}, json.loads(json.dumps(CLASSIFICATION)))
        (folder / "config.yaml").write_text(json.dumps(tree))  # JSON is YAML
        return ["train", str(folder / "config.yaml")]
    if kind == "rllib":
        return ["train", str(write_config(folder, RLLIB))]
    config = write_config(folder, {"tasks.held_out": ["breakout", "pong"], "tasks.games": TINY["tasks.games"][1:]})
    if not (folder / "run").exists():
        done = here("train", config, "backend=serial", "meta.steps=1")
        assert done.returncode == 0, done.stderr
    return ["evaluate", str(folder / "run"), "--seeds", "4", "--out", str(folder / "evaluation")]


def came_to(kind: str, folder: Path) -> dict[str, Any]:
    """What must be equal: files, rows without times, and the bits."""
    where = folder / ("evaluation" if kind == "evaluation" else "run")
    files = sorted(str(file.relative_to(where)) for file in where.rglob("*") if "tfevents" not in file.name)
    if kind == "evaluation":
        rows = sorted(map(str, csv.DictReader((where / "curves.csv").open())))
        return {"files": files, "rows": rows, "bits": (where / "probes.json").read_text()}
    kept = [row for row in read_metrics(where) if row["kind"] != "fault"]
    rows = sorted(str({key: value for key, value in row.items() if key not in TIMED}) for row in kept)
    return {"files": files, "rows": rows, "bits": describe(where)["fingerprint"]}


def shoot(kind: str, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Runs the command on Ray while processes die. Begins anew, in a fresh directory, until so many were killed."""
    rng, hit, drivers = random.Random(seed), Counter[str](), 0
    what = [*command(kind, folder), "backend=ray", "workers.count=2"]
    began, runs, finished = time.monotonic(), 0, False
    expected = None
    where = folder / ("evaluation" if kind == "evaluation" else "run")
    while not finished or hit.total() < kills:
        if finished:
            shutil.rmtree(where)
        runs, finished = runs + 1, False
        while not finished:
            assert time.monotonic() - began < MAX_SECONDS, "it does not end"
            drivers += 1
            with (folder / f"out{drivers}").open("wb") as out:
                driver = start(*what, stdout=out, stderr=out)
            due, before = time.monotonic() + rng.uniform(5, 40), hit.total()
            while driver.poll() is None:
                time.sleep(0.1)
                if time.monotonic() > due and hit.total() < kills:
                    title = rng.choice(VICTIMS)
                    victims = [pid for pid, name in session(driver.pid).items() if title in name]
                    with suppress(ProcessLookupError):
                        if victims:
                            os.kill(rng.choice(sorted(victims)), signal.SIGKILL)
                            hit[title.strip()] += 1
                    due = time.monotonic() + rng.uniform(1, 30)
            kill_session(driver.pid)
            finished = driver.wait() == 0
            said = (folder / f"out{drivers}").read_text(errors="replace")[-2000:]
            assert finished or hit.total() > before, f"it ended though nothing was done to it: {said}"
        found = came_to(kind, folder)
        expected = expected or undisturbed(kind, folder)
        for part, value in expected.items():
            only = [[x for x in a if x not in b] if part != "bits" else a
                    for a, b in ((found[part], value), (value, found[part]))]  # fmt: skip
            assert found[part] == value, f"run {runs}: {part}: {only[0]}, and undisturbed: {only[1]}"[:4000]
    return {"kind": kind, "runs": runs, "drivers": drivers, "killed": dict(hit), "equal": True,
            "seconds": round(time.monotonic() - began)}  # fmt: skip


def undisturbed(kind: str, folder: Path) -> dict[str, Any]:
    """What the serial command comes to, in a directory of its own."""
    alone = folder / "undisturbed"
    alone.mkdir()
    if kind == "evaluation":
        shutil.copytree(folder / "run", alone / "run")
    run = cli if kind == "rllib" else here  # RLlib would keep a cluster in this process
    done = run(*command(kind, alone), "backend=serial")
    assert done.returncode == 0, done.stderr
    return came_to(kind, alone)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("rllib", "classification", "evaluation"), required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="leap_rl-kills-") as folder:
        print(json.dumps(shoot(options.kind, Path(folder), options.kills, options.seed), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
