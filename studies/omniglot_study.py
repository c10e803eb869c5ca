"""Runs the paper's first experiment on Omniglot, as its authors' code has it, at the scale that they develop at.

    python -m studies.omniglot_study run --source omniglot.zip      # trains and evaluates every arm, seed by seed
    python -m studies.omniglot_study report                         # results.csv and a table, from what is evaluated
    python -m studies.omniglot_study price --source omniglot.zip    # core-minutes of each arm's run, from one task

CONFIG with the keys in SCALE replaced, and each arm's own in ARMS, which have the authors' rates; ``arm@rate`` has
another meta learning rate. A seed draws the split of the alphabets, the first initialization and the tasks: all arms
have the same. MAML is meta-trained on tasks of 5 steps, as by the authors; all arms are evaluated on 100. To choose
rates, give ``--validation`` and another ``--out``: arms are then evaluated on alphabets that are neither trained on nor
held out.

Keys for every run come right after the command: ``run meta.steps=10 --source …``.

A run that is interrupted goes on under the same command. Runs train serially, --jobs at a time, with a core each.
"""

import argparse
import csv
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median

from leap_rl.config import Config
from leap_rl.config_files import load_config
from leap_rl.evaluation.statistics import mean_with_interval
from leap_rl.meta.sampling import sample_meta_batch
from leap_rl.processes import initial_parameters, parse_tasks, resolve, start_process
from studies.vision_study import leap_rl, shown

CONFIG = "configs/omniglot_authors.yaml"
SCALE = ["meta.steps=200", "meta.batch_size=5", "backend=serial", "log.segments=false"]
FIVE_STEPS = ["meta.metric=energy", "meta.lr=0.5", "task.agent_steps=5", "stream.segment_updates=5"]
ARMS = {
    "leap_energy": ["meta.metric=energy"],
    "leap": ["meta.metric=length"],
    "reptile": ["meta.rule=reptile", "meta.metric=energy"],
    "joint": ["meta.rule=joint", "meta.metric=energy", "meta.parameters=encoder", "meta.lr=1", "meta.batch_size=1",
              "alphabets.per_task=5"],
    "maml": ["meta.rule=maml", *FIVE_STEPS],
    "fomaml": ["meta.rule=fomaml", *FIVE_STEPS],
    "none": ["meta.rule=none", "meta.metric=energy", "meta.steps=1", "meta.batch_size=1"],
}  # fmt: skip
STEPS = 100  # gradient steps of a task in an evaluation
RESULT, KEYS = "result.json", "keys.json"


def keys_of(arm: str, size: int, seed: int, options: argparse.Namespace) -> list[str]:
    """Returns the keys of a run, the source of the drawings among them."""
    name, _, rate = arm.partition("@")
    own = [*ARMS[name], *([f"meta.lr={rate}"] if rate else [])]
    split = [f"run.seed={seed}", f"alphabets.split={seed}", f"alphabets.train={size}"]
    return [*SCALE, *own, *split, *options.overrides, f"alphabets.source={options.source}"]


def run_one(arm: str, size: int, seed: int, options: argparse.Namespace) -> None:
    """Trains and evaluates an arm with a seed, from wherever that stands."""
    folder = Path(options.out) / f"seed{seed}" / f"{arm}-{size}"
    keys, run = keys_of(arm, size, seed, options), str(folder / "run")
    asked = json.dumps([*keys, options.validation])
    if (folder / RESULT).exists():
        if (folder / KEYS).read_text() != asked:
            raise SystemExit(f"{folder}: is the result of other keys; choose another --out")
        return
    leap_rl("train", CONFIG, *keys, f"run.dir={run}", "--json")
    print(f"{folder}: trained", flush=True)
    games = parse_tasks(load_config(CONFIG, keys), "validation")[:10] if options.validation else []
    where = ["--out", str(folder / "evaluation"), *(["--games", *games] if games else [])]
    evaluation = ["backend=serial", f"alphabets.source={options.source}", "--seeds", "1", "--agent-steps", str(STEPS)]
    text = leap_rl("evaluate", run, *evaluation, *where, "--json")
    (folder / KEYS).write_text(asked)
    (folder / "new").write_text(text)
    (folder / "new").rename(folder / RESULT)
    print(f"{folder}: evaluated", flush=True)


def run(options: argparse.Namespace) -> None:
    """Runs all arms, seed by seed, so that an unfinished study is a whole one with fewer seeds."""
    with ThreadPoolExecutor(options.jobs) as pool:
        places = [(arm, size, seed) for seed in options.seeds for size in options.sizes for arm in options.arms]
        for started in [pool.submit(run_one, arm, size, seed, options) for arm, size, seed in places]:
            started.result()


def report(options: argparse.Namespace) -> None:
    """Writes results.csv, with a row for each arm, size and seed, and prints means over seeds with 95 % intervals."""
    out, rows = Path(options.out), []
    for file in sorted(out.glob(f"seed*/*/{RESULT}")):
        arm, _, size = file.parent.name.rpartition("-")
        entries = json.loads(file.read_text())["results"]
        for name in ("random", "run") if arm == "none" else ("run",):  # random is the same in a seed's evaluations
            mine = [entry for entry in entries if entry["arm"] == name]
            scores = (mean(entry[score]["value"] for entry in mine) for score in ("area", "final"))
            seed = int(file.parent.parent.name.removeprefix("seed"))
            rows.append((arm if name == "run" else name, int(size), seed, *scores))
    with (out / "results.csv").open("w", newline="") as file_out:
        writer = csv.writer(file_out, lineterminator="\n")
        writer.writerows([["arm", "alphabets", "seed", "area", "held_out_accuracy"], *rows])
    print("| arm | alphabets | area under the learning curve | held-out accuracy | seeds |\n|---|--:|---|---|--:|")
    for group in sorted({row[:2] for row in rows}):
        found = [row[3:] for row in rows if row[:2] == group]
        cells = [shown(mean_with_interval(scores)) for scores in zip(*found, strict=True)]
        print(f"| {' | '.join(map(str, group))} | {' | '.join(cells)} | {len(found)} |")


def price(options: argparse.Namespace) -> None:
    """Prints what a run of each arm and its evaluation take, in minutes of processor time, from a task of the arm."""
    steps: list[float] = []
    print("| arm | tasks | gradient steps | core-minutes to train | to evaluate |\n|---|--:|--:|--:|--:|")
    for arm in options.arms:
        config = resolve(load_config(CONFIG, keys_of(arm, options.sizes[0], 0, options)))
        seconds = median(_seconds(config, seed) for seed in range(3))
        tasks = config.meta.steps * config.meta.batch_size
        if config.num_updates >= STEPS:
            steps.append(seconds / config.num_updates)
        evaluation = f"{2 * 10 * STEPS * median(steps) / 60:.1f}" if steps else "–"
        total = f"{tasks:,} | {tasks * config.num_updates:,} | {tasks * seconds / 60:.1f}"
        print(f"| {arm} | {total} | {evaluation} |", flush=True)


def _seconds(config: Config, seed: int) -> float:
    """Returns the processor time of a task."""
    [task] = sample_meta_batch(parse_tasks(config, "training"), 1, seed, 0)
    process = start_process(config, task, initial_parameters(config, 0))
    started = time.process_time()
    list(process.walk())
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {f.__name__: f for f in (run, report, price)}
    parser.add_argument("command", choices=commands)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys for every run, e.g. meta.steps=10")
    parser.add_argument("--source", default="data/omniglot.zip", help="Omniglot: a zip, or a folder")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help="of ARMS, each with @rate for another meta.lr")
    parser.add_argument("--sizes", type=int, nargs="+", default=[25], help="alphabets of meta-training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--validation", action="store_true", help="evaluate on ten validation alphabets")
    parser.add_argument("--out", default="runs/omniglot")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    options = parser.parse_intermixed_args()
    unknown = {arm.partition("@")[0] for arm in options.arms} - ARMS.keys()
    if unknown:
        parser.error(f"--arms {' '.join(sorted(unknown))}: must be of {', '.join(ARMS)}")
    commands[options.command](options)


if __name__ == "__main__":
    main()
