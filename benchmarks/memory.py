"""Measures the memory of a run's processes as proportional set sizes: what several share is divided among them.

    python -m benchmarks.memory --workers 8 --set agent.num_envs=32 --set agent.unroll=5

Each worker plays a game of its own, and all are looked at when each has handed in two segments.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.sessions import Processes, rounded

GAMES = ("pong", "breakout", "space_invaders", "freeway", "asterix", "qbert", "seaquest", "boxing", "enduro", "gopher",
         "amidar", "alien", "tennis", "krull", "assault", "atlantis")  # fmt: skip


def megabytes(workers: int, config: str, overrides: list[str]) -> dict[str, float]:
    """Returns the median over the processes of each role."""
    with tempfile.TemporaryDirectory() as folder:
        keys = [f"run.dir={folder}/run", f"tasks.games=[{','.join(GAMES[:workers])}]", "tasks.held_out=[]",
                f"meta.batch_size={workers}", f"workers.count={workers}", "meta.steps=1", "backend=ray",
                "stream.segment_updates=10", *overrides]  # fmt: skip
        driver = subprocess.Popen([sys.executable, "-m", "leap_rl.cli", "train", config, *keys],
                                  stdout=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        processes = Processes(driver.pid)
        try:
            while sum(int(f.stem) >= 2 for f in Path(folder).glob("run/tasks/*/*.safetensors")) < workers:
                if driver.poll() is not None:
                    raise SystemExit(f"the run ended with {driver.returncode} too early")
                time.sleep(0.1)
            return processes.megabytes()
        finally:
            processes.kill()
            driver.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8, choices=range(1, len(GAMES) + 1))
    parser.add_argument("--config", default="configs/atari.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")
    options = parser.parse_args()
    print(json.dumps(rounded(megabytes(options.workers, options.config, options.overrides))))


if __name__ == "__main__":
    main()
