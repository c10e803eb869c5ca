"""Compares what `leap-rl plan` says with a real run: the seconds of training of each, and their ratio.

    python -m benchmarks.plan                   runs of about a minute: serial, and Ray with two workers
    python -m benchmarks.plan CONFIG key=value  another one

Both are meant for a machine that does nothing else. The run is in a temporary folder.
"""

import json
import subprocess
import sys
import tempfile
from typing import Any

RUNS = [
    ["variants", "meta.steps=3", "task.agent_steps=20_000"],
    ["pilot", "backend=ray", "workers.count=2", "meta.steps=2", "task.agent_steps=20_000"],
]


def leap_rl(*arguments: str) -> str:
    """Runs a command and returns what it prints. Raises CalledProcessError."""
    command = [sys.executable, "-m", "leap_rl.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def compare(config: list[str], folder: str) -> tuple[float, float]:
    """Returns the seconds that a plan says, and those that the run had taken when its last meta-step was committed."""
    planned: dict[str, Any] = json.loads(leap_rl("plan", *config, f"run.dir={folder}", "--json"))
    leap_rl("train", *config, f"run.dir={folder}")
    return planned["hours"] * 3600, json.loads(leap_rl("show", folder, "--json"))["seconds"]


def main() -> None:
    for config in [sys.argv[1:]] if sys.argv[1:] else RUNS:
        with tempfile.TemporaryDirectory() as folder:
            planned, took = compare(config, f"{folder}/run")
        print(f"{' '.join(config)}: planned {planned:.0f} s, took {took:.0f} s: {took / planned:.2f}")


if __name__ == "__main__":
    main()
