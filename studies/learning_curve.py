"""Trains A2C on games from a random initialization and writes the learning curves, to see whether it learns.

    python -m studies.learning_curve run pong breakout            # process: a2c, one CSV a game
    python -m studies.learning_curve run pong breakout --sb3      # Stable-Baselines3's A2C, same settings
    python -m studies.learning_curve run breakout --rllib         # process: rllib with A2C, same settings
    python -m studies.learning_curve plot                         # the figure of all CSVs

Stable-Baselines3 runs in a virtual environment of its own (.venv-peers, made on first use). All get the settings of the
configuration file and one torch thread, and write agent_steps, score (mean raw return of the episodes that ended since
the row before), episodes and seconds.
"""

import argparse
import csv
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import SB3, make_environment
from leap_rl.atari.vector import background
from leap_rl.config_files import load_config
from leap_rl.processes import initial_parameters, resolve, start_process
from leap_rl.processes.atari import AtariConfig
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import Task

ROW_STEPS = 20_000  # agent steps between rows
COLUMNS = ("agent_steps", "score", "episodes", "seconds")
LABELS = {
    "leap_rl": "leap_rl A2C",
    "sb3": "Stable-Baselines3 A2C",
    "bf16": "leap_rl A2C, bf16",
    "uncentered": "leap_rl A2C, bf16, env.center: none",
    "rllib": "process: rllib, A2C",
}  # the keys are the systems in names of files, game_system_seedN.csv
RANDOM_SCORE = {"pong": -20.7, "breakout": 1.7}  # Mnih et al. 2015, extended data table 2
SB3_SCRIPT = Path(__file__).parents[1] / "benchmarks" / "peers" / "sb3_a2c.py"
RLLIB = ("process=rllib", "rllib.algorithm=A2C", "env.center=none")  # process: rllib has no centring


def ours(config: AtariConfig, game: str) -> Iterator[dict[str, float]]:
    """Yields the rows of the configured process on ``game``: our A2C, or RLlib's."""
    task = Task(0, 0, game, derive_seed(config.run.seed, Purpose.TASK, 0, 0))
    initialization = initial_parameters(config, derive_seed(config.run.seed, Purpose.INITIALIZATION))
    started, steps = time.perf_counter(), 0.0
    for increment in start_process(config, task, initialization).walk():
        statistics = increment.statistics
        steps += statistics["agent_steps"]
        yield {
            "agent_steps": steps,
            "score": statistics["score_sum"] / max(statistics["episodes"], 1),
            "episodes": statistics["episodes"],
            "seconds": time.perf_counter() - started,
        }


def sb3(config: AtariConfig, game: str) -> Iterator[dict[str, float]]:
    """Yields the rows of Stable-Baselines3's A2C at the same settings, from a process in its own environment."""
    python = make_environment("sb3", SB3)
    settings = {
        "game": game,
        "row_steps": ROW_STEPS,
        "cores": 1,
        "center": background(game, config.env)[0],
        **config.model_dump(include={"run", "agent", "env", "task"}),
    }
    command = [str(python), str(SB3_SCRIPT), json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise SystemExit(process.returncode)


def run(options: argparse.Namespace) -> None:
    """Trains on each game and writes its learning curve."""
    config = load_config(options.config, options.overrides)
    assert isinstance(config, AtariConfig)
    row_updates = ROW_STEPS // (config.agent.num_envs * config.agent.unroll)
    overrides = [*options.overrides, f"stream.segment_updates={row_updates}"]
    name, rows = ("sb3", sb3) if options.sb3 else ("leap_rl", ours)
    if options.rllib:
        for game in options.games:  # a background other than 0 would make the images differ
            if any(background(game, config.env)):
                raise SystemExit(f"{game}: process: rllib has no env.center, and the background of {game} is not 0")
        name, overrides = "rllib", [*overrides, *RLLIB]
    config = resolve(load_config(options.config, overrides))
    assert isinstance(config, AtariConfig)
    options.out.mkdir(parents=True, exist_ok=True)
    for game in options.games:
        path = options.out / f"{game}_{name}_seed{config.run.seed}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for row in rows(config, game):
                writer.writerow({key: round(row[key], 2) for key in COLUMNS})
                file.flush()
        print(f"{path}: {row['agent_steps']:,.0f} agent steps, last score {row['score']:.2f}, {row['seconds']:.0f} s")


def plot(options: argparse.Namespace) -> None:
    """Draws a panel for each game: score over agent steps, each seed as a thin line and their mean as a thick one."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import numpy as np

    mpl.rcParams["svg.hashsalt"] = "leap_rl"  # the same figure from the same data
    curves: dict[str, dict[str, list[Any]]] = {}
    for path in sorted(options.out.glob("*_seed*.csv")):
        game, system = path.stem.rsplit("_seed", 1)[0].split("_", 1)
        rows = list(csv.DictReader(path.open()))
        curve = [[float(row["agent_steps"]) for row in rows], smooth(rows)]
        curves.setdefault(game, {}).setdefault(system, []).append(curve)
    figure, axes = plt.subplots(1, len(curves), figsize=(5.5 * len(curves), 3.8), squeeze=False)
    for axis, (game, systems) in zip(axes[0], sorted(curves.items()), strict=True):
        for system, seeds in sorted(systems.items()):
            color = f"C{list(LABELS).index(system)}"
            for steps, scores in seeds:
                axis.plot(steps, scores, color=color, alpha=0.35, linewidth=1)
            length = min(len(steps) for steps, _ in seeds)
            mean = np.mean([scores[:length] for _, scores in seeds], axis=0)
            label = LABELS[system]
            axis.plot(seeds[0][0][:length], mean, color=color, linewidth=2, label=f"{label}, {len(seeds)} seed(s)")
        axis.axhline(RANDOM_SCORE[game], color="grey", linestyle=":", label="random play (Mnih et al. 2015)")
        axis.set(title=game, xlabel="agent steps (4 frames each)", ylabel="mean return (raw score)")
        axis.legend(fontsize=8)
    figure.tight_layout()
    for suffix in ("png", "svg"):
        figure.savefig(
            options.out / f"learning_curves.{suffix}", dpi=130, metadata={"Date": None} if suffix == "svg" else None
        )


def smooth(rows: list[dict[str, str]], window: int = 5) -> list[float]:
    """Returns for each row the mean score over the episodes of the last ``window`` rows."""
    means = []
    for end in range(1, len(rows) + 1):
        recent = rows[max(0, end - window) : end]
        episodes = sum(float(row["episodes"]) for row in recent)
        total = sum(float(row["episodes"]) * float(row["score"]) for row in recent)
        means.append(total / episodes if episodes else float("nan"))
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/learning_curves"))
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("run")
    train.add_argument("games", nargs="+")
    peer = train.add_mutually_exclusive_group()
    peer.add_argument("--sb3", action="store_true")
    peer.add_argument("--rllib", action="store_true")
    train.add_argument("--config", default="configs/atari.yaml")
    train.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")
    train.set_defaults(command=run)
    commands.add_parser("plot").set_defaults(command=plot)
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
