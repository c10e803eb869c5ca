"""Draws the paper's figure 3 for glyphs: scores on held-out alphabets against the number of alphabets in meta-training.

    python -m studies.vision_study sweep      # meta learning rates of each rule, scored on validation alphabets
    python -m studies.vision_study train      # every rule, size of the training set and seed: SIZES, --seeds
    python -m studies.vision_study evaluate   # all of them on the alphabets that their seed holds out
    python -m studies.vision_study report     # results.csv, the table and the figure, from what has been evaluated
    python -m studies.vision_study price      # times the full protocol's inner loop, and prints the total cost
    python -m studies.vision_study memory     # peak memory of one task under Leap and under MAML

The study is smaller than the paper's: CONFIG with the keys in SCALE replaced, 4 sizes instead of 7, 5 seeds instead of
10. A seed draws the split of the alphabets, the first initialization and the tasks, which are the same for all rules.
MAML is meta-trained on tasks of 5 steps, as in its published settings, and evaluated on 100 like the others; it has
five times their meta-steps, which take about as long. The meta-optimizer is SGD; for MAML and first-order MAML it is
Adam, as in their papers.

Every command continues where it stopped. Runs are independent of each other and train serially, --jobs at a time.
"""

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias

from leap_rl.config import Config
from leap_rl.config_files import load_config, parse_config
from leap_rl.evaluation.statistics import Estimate, mean_with_interval
from leap_rl.meta.sampling import sample_meta_batch
from leap_rl.processes import initial_parameters, parse_tasks, resolve, start_process
from leap_rl.types import Task
from studies.command import leap_rl

CONFIG = "configs/glyphs_quickstart.yaml"
SCALE = ["meta.metric=energy", "meta.steps=30", "meta.batch_size=5", "classifier.filters=16", "backend=serial"]
SIZES = (1, 5, 10, 25)
RULES = {
    "leap": ["meta.metric=length"],
    "leap_energy": ["meta.metric=energy"],
    "reptile": ["meta.rule=reptile"],
    "fomaml": ["meta.rule=fomaml", "meta.optimizer=adam"],
    "maml": ["meta.rule=maml", "meta.optimizer=adam", "task.agent_steps=5", "meta.steps=150"],
    "joint": ["meta.rule=joint", "meta.parameters=encoder"],  # multi-headed: evaluated with fresh heads
    "none": ["meta.rule=none", "meta.steps=1"],  # one initialization for all tasks; the random arm draws many
}
RATES = {
    "leap": (0.03, 0.1, 0.3),
    "leap_energy": (0.1, 0.3, 1.0),
    "reptile": (0.3, 1.0, 3.0),
    "fomaml": (0.001, 0.003, 0.01),
    "maml": (0.001, 0.003, 0.01),
    "joint": (0.3, 1.0, 3.0),
    "none": (0.1,),
}
Groups: TypeAlias = dict[tuple[str, int], tuple[Estimate, ...]]  # rule and size → area, held-out accuracy
SWEEP_SIZE, SWEEP_SEED = 10, 1000  # the seed of the sweep's own split
PARTS, RESULT = ("shared", "joint"), "result.json"  # folders and file of an evaluation
FULL = {"tasks": 20 * 1000, "sizes": 7, "seeds": 10}  # the paper's protocol; "tasks" is per run


def keys_of(seed: int, size: int) -> list[str]:
    """Returns the keys that set the seed and the number of alphabets of a run."""
    return [f"run.seed={seed}", f"alphabets.split={seed}", f"alphabets.train={size}"]


def run_all(options: argparse.Namespace, runs: dict[str, list[str]]) -> None:
    """Trains runs, given as folder → keys. Finished ones are left as they are."""

    def train(folder: str) -> None:
        keys = [*SCALE, *runs[folder], *options.overrides, f"run.dir={folder}"]
        leap_rl("train", CONFIG, *keys, "--json")
        print(f"{folder}: trained", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(train, runs))


def scores(evaluation: Path) -> dict[str, tuple[float, float]]:
    """Returns for each arm the area under the learning curve and the held-out accuracy, as means over alphabets and
    seeds."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for part in PARTS:
        file = evaluation / part / RESULT
        for entry in json.loads(file.read_text())["results"] if file.exists() else []:
            if part == PARTS[0] or entry["arm"] != "random":
                pairs.setdefault(entry["arm"], []).append((entry["area"]["value"], entry["final"]["value"]))
    return {arm: (statistics.mean(a for a, _ in found), statistics.mean(f for _, f in found))
            for arm, found in pairs.items()}  # fmt: skip


def evaluate_all(out: Path, runs: list[str], *arguments: str) -> dict[str, tuple[float, float]]:
    """Evaluates the runs, and returns their scores. Runs of the joint rule are evaluated apart, since they share no
    heads."""
    for part in PARTS:
        mine = [run for run in runs if ("/joint-" in run) == (part == "joint")]
        mine.sort(key=lambda run: "/maml-" in run)  # the first run decides how to train, and maml's tasks are too short
        where = str(out / part)
        if mine:
            text = leap_rl("evaluate", *mine, "backend=serial", "--seeds", "1", "--out", where, "--json", *arguments)
            (out / part / RESULT).write_text(text)
    return scores(out)


def sweep(options: argparse.Namespace) -> None:
    """Runs the sweep, and writes sweep.csv with a row for each rule and rate. ``train`` uses each rule's best by
    area."""
    folder = Path(options.out) / "sweep"
    runs = {
        f"{folder}/{rule}-{rate:g}": [*RULES[rule], *keys_of(SWEEP_SEED, SWEEP_SIZE), f"meta.lr={rate:g}"]
        for rule in RULES
        for rate in RATES[rule]
        if len(RATES[rule]) > 1
    }
    run_all(options, runs)
    alphabets = parse_tasks(load_config(CONFIG, keys_of(SWEEP_SEED, SWEEP_SIZE)), "validation")[:10]
    found = evaluate_all(folder / "evaluation", list(runs), "--games", *alphabets)
    with (folder / "sweep.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rule", "meta_lr", "area", "held_out_accuracy"])
        for run in runs:
            rule, _, rate = run.rpartition("/")[2].rpartition("-")
            writer.writerow([rule, rate, *found[f"{rule}-{rate}"]])
    print((folder / "sweep.csv").read_text())


def best_rates(out: str) -> dict[str, float]:
    """Returns the best rate of each rule in the sweep, or its first rate if it was not swept."""
    best = {rule: rates[0] for rule, rates in RATES.items()}
    file = Path(out) / "sweep" / "sweep.csv"
    if file.exists():
        rows = sorted(csv.DictReader(file.open()), key=lambda row: float(row["area"]))
        best |= {row["rule"]: float(row["meta_lr"]) for row in rows}
    return best


def study_runs(options: argparse.Namespace, seed: int) -> dict[str, list[str]]:
    """Returns the runs of a seed: folder → keys."""
    rates = best_rates(options.out)
    return {
        f"{options.out}/seed{seed}/{rule}-{size}": [*keys, *keys_of(seed, size), f"meta.lr={rates[rule]:g}"]
        for rule, keys in RULES.items()
        for size in (SIZES if rule != "none" else SIZES[:1])
    }


def train(options: argparse.Namespace) -> None:
    """Trains all runs of the study."""
    for seed in range(options.seeds):  # so that an unfinished study is a whole one with fewer seeds
        run_all(options, study_runs(options, seed))


def evaluate(options: argparse.Namespace) -> None:
    """Evaluates all runs of the study."""
    for seed in range(options.seeds):
        evaluate_all(Path(options.out) / f"seed{seed}" / "evaluation", list(study_runs(options, seed)))
        print(f"seed {seed}: evaluated", flush=True)


class Row(NamedTuple):
    """Is a row of results.csv, with means over the held-out alphabets of a seed."""

    rule: str
    alphabets: int  # 0: the random arm
    seed: int
    area: float
    held_out_accuracy: float


def report(options: argparse.Namespace) -> None:
    """Writes results.csv, results.md and figure.png / .svg from the seeds that are evaluated."""
    out = Path(options.out)
    rows = []
    for seed in range(options.seeds):
        if (out / f"seed{seed}" / "evaluation" / PARTS[0] / RESULT).exists():
            for arm, (area, final) in scores(out / f"seed{seed}" / "evaluation").items():
                rule, _, size = arm.partition("-")
                rows.append(Row(rule, int(size or 0), seed, area, final))
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
    groups: Groups = {}
    lines = [
        "| rule | alphabets | area under the training curve | held-out accuracy | seeds |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, number in sorted({(row.rule, row.alphabets) for row in rows}):
        mine = [row for row in rows if (row.rule, row.alphabets) == (name, number)]
        values = [row.area for row in mine], [row.held_out_accuracy for row in mine]
        groups[name, number] = tuple(mean_with_interval(value) for value in values)
        cells = " | ".join(shown(estimate) for estimate in groups[name, number])
        lines.append(f"| {name} | {number or '–'} | {cells} | {len(mine)} |")
    (out / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    _draw(groups, out)


def shown(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{interval}"


def _draw(groups: Groups, out: Path) -> None:
    from leap_rl.runs.figures import new_figure, render

    figure = new_figure(width=10, height=3.8)
    titles = ("area under the training curve", "held-out accuracy after 100 steps")
    for index, (axis, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        for color, rule in enumerate(["random", *RULES]):
            points = sorted((size, values[index]) for (name, size), values in groups.items() if name == rule)
            if not points:
                continue
            sizes = [size for size, _ in points] if rule not in ("random", "none") else list(SIZES)
            estimates = [estimate for _, estimate in points] * (len(sizes) // len(points))
            style = {"color": f"C{color}", "linestyle": "--" if rule in ("random", "none") else "-"}
            axis.plot(sizes, [estimate.value for estimate in estimates], "o", label=rule, **style)
            lows, highs = zip(*((e.low, e.high) for e in estimates), strict=True)
            if None not in lows:
                axis.fill_between(sizes, lows, highs, color=f"C{color}", alpha=0.12, linewidth=0)
        axis.set(title=title, xlabel="alphabets of meta-training")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for suffix, data in render(figure).items():
        (out / f"figure.{suffix}").write_bytes(data)


def first_tasks(config: Config) -> list[Task]:
    """Returns the tasks of the first meta-step of seed 0."""
    return sample_meta_batch(parse_tasks(config, "training"), config.meta.batch_size, 0, 0)


def price(options: argparse.Namespace) -> None:
    """Prints the seconds that one task of the full protocol takes here, and the cost of all tasks."""
    tree = load_config("configs/omniglot_paper.yaml", ["alphabets.source=glyphs", "backend=serial"]).model_dump()
    config = resolve(parse_config(tree))
    seconds = []
    for task in first_tasks(config)[:3]:
        process = start_process(config, task, initial_parameters(config, 0))
        started = time.perf_counter()
        list(process.walk())
        seconds.append(time.perf_counter() - started)
    a_task = statistics.median(seconds)
    a_run = a_task * FULL["tasks"] / 3600
    runs = FULL["sizes"] * FULL["seeds"]
    print(f"one task of {config.num_updates} steps, {tree['classifier']['filters']} filters: {a_task:.2f} s on a core")
    print(f"one run of {FULL['tasks']:,} tasks: {a_run:.1f} core-hours; a rule, {runs} runs: {a_run * runs:,.0f}")


def memory(options: argparse.Namespace) -> None:
    """Prints the peak memory of tasks, each measured in a process of its own, beyond that of two steps under Leap."""
    print("| rule | steps a task | peak memory, MB |\n|---|--:|--:|")
    for rule in ("leap", "maml"):
        for steps in (5, 20, 100):
            code = f"from studies.vision_study import peak; print(peak({rule!r}, {steps}))"
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(f"| {rule} | {steps} | {done.stdout.strip()} |", flush=True)


def peak(rule: str, steps: int) -> str:
    """Returns the MB that a task takes beyond two steps under Leap."""
    before = 0
    for name, length in (("leap", 2), (rule, steps)):
        keys = ["alphabets.source=glyphs", f"meta.rule={name}", f"task.agent_steps={length}", "meta.metric=energy"]
        config = resolve(load_config("configs/omniglot_paper.yaml", keys))
        process = start_process(config, first_tasks(config)[0], initial_parameters(config, 0))
        list(process.walk())
        before, now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, before
    return f"{(before - now) / 1024:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {f.__name__: f for f in (sweep, train, evaluate, report, price, memory)}
    parser.add_argument("command", choices=commands)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys for every run, e.g. meta.steps=10")
    parser.add_argument("--out", default="runs/vision")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    options = parser.parse_intermixed_args()
    commands[options.command](options)


if __name__ == "__main__":
    main()
