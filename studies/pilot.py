"""Compares Leap with its rivals in a pilot for two cores. Every command continues where it stopped.

    python -m studies.pilot sweep                # short runs over meta learning rates and meta-optimizers
    python -m studies.pilot train                # every rule: configs/pilot.yaml with the keys in RULES replaced
    python -m studies.pilot evaluate             # their initializations on the held-out games, and the report
    python -m studies.pilot train task.agent_steps=200000 meta.steps=15    # at another scale, with keys replaced

With the configuration as it is, meta-training takes 6 games × 30,000 agent steps × 6 meta-steps = 1.1 million for each
of the five rules. The evaluation takes 3 held-out games × 3 seeds × 50,000 = 0.45 million for each of six arms, the
random one included, and the sweep 0.24 million for each of its nine runs. Choose from the sweep's sweep.csv, and write
the choice into RULES.
"""

import argparse
import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leap_rl.runs.run_files import read_metrics
from studies.command import leap_rl

RULES = {
    "leap_energy": [],
    "leap_energy_paired": ["meta.loss_difference=paired"],
    "leap_length": ["meta.metric=length", "meta.lr=1"],
    "leap_length_paired": ["meta.metric=length", "meta.lr=1", "meta.loss_difference=paired"],
    "reptile": ["meta.rule=reptile", "meta.lr=1"],
}
SWEPT = {  # rule → meta-optimizers and meta learning rates; meta.max_task_norm bounds each task's meta-gradient
    "leap_energy": (("sgd", 0.1), ("sgd", 0.3), ("sgd", 1.0), ("nesterov", 0.1)),
    "leap_length": (("sgd", 0.1), ("sgd", 0.3), ("sgd", 1.0)),
    "reptile": (("sgd", 0.3), ("sgd", 1.0)),
}
SWEEP = (
    "meta.steps=3",
    "task.agent_steps=20000",
    "tasks.games=[asterix, assault, qbert, phoenix]",
    "meta.batch_size=4",
)


def train(options: argparse.Namespace) -> None:
    """Meta-trains all rules, and writes meta_training.csv with a row for each rule, meta-step and game."""
    for name, keys in RULES.items():
        leap_rl("train", options.config, *options.overrides, *keys, f"run.dir={options.out}/{name}")
    rows = [
        [name, row["meta_step"], row["game"], row["path_length"], row["energy"], row["episodic_return"]]
        for name in RULES
        for row in sorted(tasks_of(f"{options.out}/{name}"), key=lambda row: (row["meta_step"], row["game"]))
    ]
    write(options, "meta_training.csv", ["rule", "meta_step", "game", "path_length", "energy", "episodic_return"], rows)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluates the initializations of all rules and prints what ``leap-rl evaluate`` prints."""
    runs = [f"{options.out}/{name}" for name in RULES]
    arguments = ["--seeds", str(options.seeds), "--agent-steps", str(options.agent_steps)]
    print(leap_rl("evaluate", *runs, *options.overrides, *arguments, "--out", f"{options.out}/evaluation"))


def sweep(options: argparse.Namespace) -> None:
    """Runs the sweep, and writes sweep.csv: path length and energy, means over the games, of each setting's first and
    last meta-step."""
    found = []
    for name, settings in SWEPT.items():
        for optimizer, rate in settings:
            folder = f"{options.out}/sweep/{name}-{optimizer}-{rate:g}"
            keys = [f"meta.lr={rate:g}", f"meta.optimizer={optimizer}", *SWEEP]
            leap_rl("train", options.config, *options.overrides, *RULES[name], *keys, f"run.dir={folder}")
            tasks = tasks_of(folder)
            for meta_step in (0, max(row["meta_step"] for row in tasks)):
                mine = [row for row in tasks if row["meta_step"] == meta_step]
                means = [statistics.mean(row[key] for row in mine) for key in ("path_length", "energy")]
                found.append([name, optimizer, rate, meta_step, *means])
    write(options, "sweep.csv", ["rule", "optimizer", "meta_lr", "meta_step", "path_length", "energy"], found)


def tasks_of(run: str) -> list[dict[str, Any]]:
    """Returns the rows of a run's tasks."""
    return [row for row in read_metrics(Path(run)) if row["kind"] == "task"]


def write(options: argparse.Namespace, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a CSV file and prints it."""
    file = Path(options.out) / name
    with file.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    print(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("sweep", "train", "evaluate"))
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--config", default="configs/pilot.yaml")
    parser.add_argument("--out", default="runs/pilot")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the evaluation")
    parser.add_argument("--agent-steps", type=int, default=50_000, help="agent steps of an evaluation's task")
    options = parser.parse_intermixed_args()
    {"sweep": sweep, "train": train, "evaluate": evaluate}[options.command](options)


if __name__ == "__main__":
    main()
