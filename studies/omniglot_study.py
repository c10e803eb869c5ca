"""Runs the paper's first experiment on Omniglot, as its authors' code has it, at the scale that they develop at.

    python -m studies.omniglot_study run --source omniglot.zip      # trains and evaluates every arm, seed by seed
    python -m studies.omniglot_study report                         # adds what is evaluated to docs/vision/omniglot/
    python -m studies.omniglot_study price --source omniglot.zip    # core-minutes of each arm's run, from one task

CONFIG with the keys in SCALE replaced, and each arm's own in ARMS, which have the authors' rates; ``arm@rate`` has
another meta learning rate, and QUESTIONS has arms that are run only if --arms names them. A seed draws the split of the
alphabets, the first initialization and the tasks: all arms have the same. MAML is meta-trained on tasks of 5 steps, as
by the authors; all arms are evaluated on 100. What still differs from the authors' code is listed in docs/vision.md. To
choose rates, give ``--validation`` and another ``--out``: arms are then evaluated on alphabets that are neither trained
on nor held out.

Keys for every run come right after the command: ``run meta.steps=10 --source …``.

A run that is interrupted goes on under the same command. Runs train serially, --jobs at a time, with a core each.
"""

import argparse
import csv
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import TypeAlias

from leap_rl.config import Config
from leap_rl.config_files import load_config
from leap_rl.evaluation.statistics import Estimate, mean_with_interval
from leap_rl.meta.sampling import sample_meta_batch
from leap_rl.processes import initial_parameters, parse_tasks, resolve, start_process
from leap_rl.runs.figures import new_figure, render_png
from studies.command import leap_rl
from studies.vision_study import shown

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
    "fomaml": ["meta.rule=fomaml", "meta.metric=energy", "meta.lr=0.5"],
    "none": ["meta.rule=none", "meta.metric=energy", "meta.steps=1", "meta.batch_size=1"],
}  # fmt: skip
QUESTIONS = {
    # Is `joint` ahead because it hands on no head?
    "leap_encoder": [*ARMS["leap"], "meta.parameters=encoder"],
    "reptile_encoder": [*ARMS["reptile"], "meta.parameters=encoder"],
    # What holds MAML back: running averages, the rate, or tasks of 5 steps?
    "maml_batch": [*ARMS["maml"], "classifier.norm=batch"],
    "maml_adam": [*ARMS["maml"], "meta.optimizer=adam", "meta.lr=0.003"],
    "maml_20": [*ARMS["maml"], "task.agent_steps=20", "stream.segment_updates=20"],
    "fomaml_5": ["meta.rule=fomaml", *FIVE_STEPS],
}
STEPS = 100  # gradient steps of a task in an evaluation
# After 1,000 meta-steps of 20 tasks, ten seeds (Flennerhag et al. 2020, "Meta-Learning with Warped Gradient Descent").
PAPER = {"leap": 0.748, "reptile": 0.708, "maml": 0.567}
RESULT, KEYS = "result.json", "keys.json"
RUN, SCORES = ("arm", "alphabets", "seed"), ("area", "held_out_accuracy")
COLUMNS = {
    "scores": (*RUN, "alphabet", *SCORES),
    "curves": (*RUN, "gradient_steps", "accuracy"),
    "training": (*RUN, "meta_step", "accuracy", "path_length"),
}
Row: TypeAlias = tuple[object, ...]


def keys_of(arm: str, size: int, seed: int, options: argparse.Namespace) -> list[str]:
    """Returns the keys of a run, the source of the drawings among them."""
    name, _, rate = arm.partition("@")
    own = [*(ARMS | QUESTIONS)[name], *([f"meta.lr={rate}"] if rate else [])]
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
    """Adds what has been evaluated to the CSVs in --results, and prints the table and draws the figure from them. A run
    replaces one of the same keys alone."""
    results = Path(options.results)
    results.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(options.out).glob(f"seed*/*/{RESULT}"))
    _add_keys(results / KEYS, {f"{file.parent.parent.name}/{file.parent.name}": _asked(file.parent) for file in files})
    found: dict[str, list[Row]] = {name: [] for name in COLUMNS}
    for file in files:
        arm, _, size = file.parent.name.rpartition("-")
        run = (int(size), int(file.parent.parent.name.removeprefix("seed")))
        entries = json.loads(file.read_text())["results"]
        for name in ("random", "run") if arm == "none" else ("run",):  # random is the same in a seed's evaluations
            key = (arm if name == "run" else name, *run)
            found["scores"] += [(*key, entry["game"], entry["area"]["value"], entry["final"]["value"])
                                for entry in entries if entry["arm"] == name]  # fmt: skip
            found["curves"] += [(*key, *row) for row in _curve(file.parent / "evaluation" / "curves.csv", name)]
        if arm != "none":
            found["training"] += [(arm, *run, *row) for row in _training(file.parent / "run" / "metrics.jsonl")]
            kept = results / f"{arm}-{run[0]}-seed{run[1]}.safetensors"
            shutil.copyfile(file.parent / "run" / "initialization.safetensors", kept)
    kept_rows = {name: _add(results / f"{name}.csv", COLUMNS[name], rows) for name, rows in found.items()}
    _print_table(kept_rows["scores"])
    _draw(kept_rows["curves"], kept_rows["training"], results / "learning_curves.png")


def _asked(folder: Path) -> list[str | bool]:
    """Returns the keys of a run, without the place of its drawings, and last whether it was evaluated on validation
    alphabets."""
    keys: list[str | bool] = json.loads((folder / KEYS).read_text())
    return [key for key in keys if not str(key).startswith("alphabets.source=")]


def _add_keys(file: Path, new: dict[str, list[str | bool]]) -> None:
    """Adds the keys of runs to those that a folder of results has. Raises SystemExit where a run has other keys there,
    or the alphabets of evaluation are others."""
    kept: dict[str, list[str | bool]] = json.loads(file.read_text()) if file.exists() else {}
    for run, keys in new.items():
        if kept.get(run, keys) != keys or any(others[-1] != keys[-1] for others in (*kept.values(), *new.values())):
            raise SystemExit(f"{file.parent}: has results of other keys than {run}'s; choose another --results")
    file.write_text(json.dumps(kept | new, indent=1, sort_keys=True) + "\n")


def _curve(file: Path, arm: str) -> Iterator[Row]:
    """Yields an arm's learning curve, the mean over alphabets: gradient steps, accuracy of the batches since the row
    before."""
    accuracy: dict[int, list[float]] = {}
    with file.open() as lines:
        for row in csv.DictReader(lines):
            if row["arm"] == arm and row["accuracy"]:
                accuracy.setdefault(int(row["agent_steps"]), []).append(float(row["accuracy"]))
    yield from ((step, mean(values)) for step, values in sorted(accuracy.items()))


def _training(file: Path) -> Iterator[Row]:
    """Yields the means over each meta-step's tasks: number of the meta-step, accuracy in training, path length."""
    tasks: dict[int, list[tuple[float, float]]] = {}
    with file.open() as lines:
        for row in map(json.loads, lines):
            if row["kind"] == "task":
                tasks.setdefault(row["meta_step"], []).append((row["accuracy"], row["path_length"]))
    yield from ((step + 1, *map(mean, zip(*values, strict=True))) for step, values in sorted(tasks.items()))


def _add(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> list[dict[str, str]]:
    """Replaces the rows of the runs that ``rows`` are of, in a CSV, and returns all of its rows."""
    texts = [tuple(map(str, row)) for row in rows]
    if file.exists():
        with file.open() as lines:
            new = {row[:3] for row in texts}
            texts += [tuple(row) for row in list(csv.reader(lines))[1:] if tuple(row[:3]) not in new]
    texts.sort(key=lambda row: row[:3])  # a run's rows stay in their order
    with file.open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([columns, *texts])
    return [dict(zip(columns, row, strict=True)) for row in texts]


def _print_table(scores: list[dict[str, str]]) -> None:
    """Prints each arm's means and its difference from Leap on the same alphabets, with 95 % intervals over seeds, or
    over the alphabets where there is one seed."""
    runs: dict[tuple[str, str], dict[str, dict[str, tuple[float, ...]]]] = {}
    for row in scores:
        values = tuple(float(row[score]) for score in SCORES)
        runs.setdefault((row["arm"], row["alphabets"]), {}).setdefault(row["seed"], {})[row["alphabet"]] = values
    print("| arm | alphabets | area under the learning curve | held-out accuracy | less Leap's | paper | seeds |")
    print("|---|--:|---|---|---|--:|--:|")
    for (arm, size), seeds in sorted(runs.items()):
        leap = runs.get(("leap", size), {})
        area, final = (
            _estimate([[values[score] for values in found.values()] for found in seeds.values()]) for score in (0, 1)
        )
        differences = [
            [values[1] - leap[seed][alphabet][1] for alphabet, values in found.items()]
            for seed, found in seeds.items()
            if seed in leap and arm != "leap"
        ]
        difference = shown(_estimate(differences)) if differences else "–"
        if 0 < len(differences) < len(seeds):
            difference += f", {len(differences)} of the seeds"
        paper = PAPER.get(arm, "–") if size == "25" else "–"
        print(f"| {arm} | {size} | {shown(area)} | {shown(final)} | {difference} | {paper} | {len(seeds)} |")


def _estimate(values: list[list[float]]) -> Estimate:
    """Returns the mean of what lists of seed → alphabets hold, with its interval."""
    return mean_with_interval([mean(found) for found in values] if len(values) > 1 else values[0])


def _draw(curves: list[dict[str, str]], training: list[dict[str, str]], file: Path) -> None:
    """Draws accuracy on held-out alphabets and in meta-training, means over seeds, for 25 alphabets."""
    figure = new_figure(width=10, height=3.8)
    axes = figure.subplots(1, 2, sharey=True)
    for color, arm in enumerate(dict.fromkeys(row["arm"] for row in curves)):
        label: str | None = arm
        for axis, rows, step in zip(axes, (curves, training), ("gradient_steps", "meta_step"), strict=True):
            values: dict[int, list[float]] = {}
            for row in rows:
                if row["arm"] == arm and row["alphabets"] == "25":
                    values.setdefault(int(row[step]), []).append(float(row["accuracy"]))
            if values:
                axis.plot(list(values), [mean(found) for found in values.values()], color=f"C{color}", label=label)
                label = None  # one entry of the legend for both panels
    axes[0].set(xlabel="gradient steps on a held-out alphabet", ylabel="accuracy on the batches")
    axes[1].set(xlabel="meta-steps: mean accuracy over their own tasks")
    figure.legend(frameon=False, loc="outside right upper")
    file.write_bytes(render_png(figure))


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
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help="of ARMS and QUESTIONS; @rate: another meta.lr")
    parser.add_argument("--sizes", type=int, nargs="+", default=[25], help="alphabets of meta-training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--validation", action="store_true", help="evaluate on ten validation alphabets")
    parser.add_argument("--out", default="runs/omniglot")
    parser.add_argument("--results", default="docs/vision/omniglot", help="the CSVs that report adds to")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    options = parser.parse_intermixed_args()
    known = ARMS | QUESTIONS
    unknown = {arm.partition("@")[0] for arm in options.arms} - known.keys()
    if unknown:
        parser.error(f"--arms {' '.join(sorted(unknown))}: must be of {', '.join(known)}")
    commands[options.command](options)


if __name__ == "__main__":
    main()
