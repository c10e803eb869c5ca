"""Does Leap help, beside its rivals? A pilot at a scale for two cores; everything goes on where it stopped.

    python -m benchmarks.pilot sweep                # short runs over meta learning rates and meta-optimizers
    python -m benchmarks.pilot train                # every rule: configs/pilot.yaml, but for the keys in RULES
    python -m benchmarks.pilot evaluate             # their initializations on the held-out games: the report
    python -m benchmarks.pilot train task.agent_steps=200000 meta.steps=15    # at another scale: keys replaced

Agent steps, with the configuration as it is: 6 games × 30,000 × 8 meta-steps = 1.4 million for each of the five rules,
and 3 held-out games × 3 seeds × 80,000 = 0.7 million for each of six arms, the random one among them; the sweep 0.24
million for each of its nine runs. It ends with a table: choose from it, and write the choice into RULES.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from leap_rl.run import read_metrics

RULES = {
    "leap_energy": [],
    "leap_energy_paired": ["meta.loss_difference=paired"],
    "leap_length": ["meta.metric=length"],
    "leap_length_paired": ["meta.metric=length", "meta.loss_difference=paired"],
    "reptile": ["meta.rule=reptile"],
}
SWEPT = {  # meta-optimizers and meta learning rates: no task's meta-gradient is longer than meta.max_task_norm
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


def leap_rl(*arguments: str) -> str:
    """Runs ``leap-rl`` and returns what it prints."""
    command = [sys.executable, "-m", "leap_rl.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def train(options: argparse.Namespace) -> None:
    for name, keys in RULES.items():
        leap_rl("train", options.config, *options.overrides, *keys, f"run.dir={options.out}/{name}")


def evaluate(options: argparse.Namespace) -> None:
    runs = [f"{options.out}/{name}" for name in RULES]
    arguments = ["--seeds", str(options.seeds), "--agent-steps", str(options.agent_steps)]
    print(leap_rl("evaluate", *runs, *options.overrides, *arguments, "--out", f"{options.out}/evaluation"))


def sweep(options: argparse.Namespace) -> None:
    """Path length and energy, first and last meta-step, of each setting: what the rules descend."""
    print("| rule | optimizer | meta lr | path length | energy | last mean returns |\n|---|---|--:|--:|--:|---|")
    for name, settings in SWEPT.items():
        for optimizer, rate in settings:
            folder = Path(options.out) / "sweep" / f"{name}-{optimizer}-{rate:g}"
            keys = [f"meta.lr={rate:g}", f"meta.optimizer={optimizer}", *SWEEP]
            leap_rl("train", options.config, *options.overrides, *RULES[name], *keys, f"run.dir={folder}")
            rows = read_metrics(folder)
            steps = [row for row in rows if row["kind"] == "meta_step"]
            last = [row for row in rows if row["kind"] == "task" and row["meta_step"] == steps[-1]["meta_step"]]
            returns = ", ".join(f"{row['game']} {row['episodic_return']:.1f}" for row in last if row["episodic_return"])
            path, energy = (f"{steps[0][key]:.2f} → {steps[-1][key]:.2f}" for key in ("path_length", "energy"))
            print(f"| {name} | {optimizer} | {rate:g} | {path} | {energy} | {returns} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("sweep", "train", "evaluate"))
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--config", default="configs/pilot.yaml")
    parser.add_argument("--out", default="runs/pilot")
    parser.add_argument("--seeds", type=int, default=3, help="of the evaluation")
    parser.add_argument("--agent-steps", type=int, default=80_000, help="of an evaluation's task")
    options = parser.parse_intermixed_args()
    {"sweep": sweep, "train": train, "evaluate": evaluate}[options.command](options)


if __name__ == "__main__":
    main()
