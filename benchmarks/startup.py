"""Measures how long ``leap-rl train`` takes until a first gradient step is made and saved.

    python -m benchmarks.startup --rounds 5

Each round starts each backend once, in turns, in a process of its own, on two games with 8 environments.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

KEYS = ["tasks.games=[breakout,pong]", "tasks.held_out=[]", "meta.steps=1", "meta.batch_size=2",
        "task.agent_steps=3200", "stream.segment_updates=1", "workers.count=2"]  # fmt: skip


def seconds_to_first_step(backend: str, config: str) -> float:
    """Returns the seconds from the command to the first file of a task."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "leap_rl.cli", "train", config, f"run.dir={folder}/run", f"backend={backend}"]
        began = time.monotonic()
        run = subprocess.Popen([*command, *KEYS], stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            while not list(Path(folder).glob("run/tasks/*/*.safetensors")):
                if run.poll() is not None:
                    raise SystemExit(f"the run ended with {run.returncode} before a gradient step was saved")
                time.sleep(0.01)
            return time.monotonic() - began
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGTERM)
            run.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=["serial", "ray"])
    parser.add_argument("--config", default="configs/atari.yaml")
    options = parser.parse_args()
    rounds = [[seconds_to_first_step(name, options.config) for name in options.backends] for _ in range(options.rounds)]
    for name, seconds in zip(options.backends, zip(*rounds, strict=True), strict=True):
        print(json.dumps({"backend": name, "median_s": round(median(seconds), 2), "s": [round(s, 2) for s in seconds]}))


if __name__ == "__main__":
    main()
