"""Measures what a gradient step of classification costs, in processor time of one core.

    python -m benchmarks.classification --filters 16 64
    python -m benchmarks.classification --filters 16 64 --before ../another_checkout

Whole tasks are timed, batches and Leap's record included, each in a process of its own. With ``--before`` the tasks of
this checkout and of another take turns, and the ratio is the median over such pairs.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

TASK = """
import sys, time
from leap_rl.config_files import load_config
from leap_rl.processes import initial_parameters, process_of, resolve, start_process
from leap_rl.types import Task

config = resolve(load_config("configs/omniglot_authors.yaml", sys.argv[1:]))
name, first = process_of(config).parts(config).training[0], initial_parameters(config, 0)
spent = []
for seed in range(3):  # the first warms up
    process = start_process(config, Task(0, 0, name, seed), first)
    started = time.process_time()
    list(process.walk())
    spent.append((time.process_time() - started) / config.num_updates)
print(1e3 * min(spent[1:]))
"""


def milliseconds(checkout: Path, overrides: list[str]) -> float:
    """Returns what a gradient step costs in a checkout, scoring at the task's end included."""
    command = [sys.executable, "-c", TASK, "backend=serial", "alphabets.source=glyphs", *overrides]
    return float(subprocess.run(command, check=True, cwd=checkout, stdout=subprocess.PIPE, text=True).stdout)


def measure(checkouts: list[Path], overrides: list[str], rounds: int) -> dict[str, Any]:
    """Returns medians over rounds, in each of which every checkout has a turn."""
    rows = [[milliseconds(checkout, overrides) for checkout in checkouts] for _ in range(rounds)]
    result: dict[str, Any] = {"ms": round(median(row[0] for row in rows), 3)}
    if len(checkouts) > 1:
        ratios = sorted(row[1] / row[0] for row in rows)
        result["before_ms"] = round(median(row[1] for row in rows), 3)
        result["ratio"], result["ratios"] = round(median(ratios), 3), [round(ratio, 2) for ratio in ratios]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", help="folder of another checkout")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")
    options = parser.parse_args()
    checkouts = [Path(), *([Path(options.before)] if options.before else [])]
    for filters in options.filters:
        found = measure(checkouts, [f"classifier.filters={filters}", *options.overrides], options.rounds)
        print(json.dumps({"filters": filters} | found), flush=True)


if __name__ == "__main__":
    main()
