"""Does what was meta-learned on some variants of a game make others faster to learn? The study of docs/transfer.md.

    python -m studies.transfer ceiling      an initialization trained on the very game that is then learned
    python -m studies.transfer screening    one change at a time to the rule and the meta-optimizer
    python -m studies.transfer losses       Leap's loss term: its forms, and the cap without it
    python -m studies.transfer continual    meta-steps after segments in place of whole tasks
    python -m studies.transfer agents       one change at a time to the agent
    python -m studies.transfer optimizers   one change at a time to the meta-optimizer
    python -m studies.transfer confirmation what won, on test variants
    python -m studies.transfer rivals       with Leap's loss term, side by side, and the ceiling, on test variants
    python -m studies.transfer longer       what is shipped, on the same variants for three times as long
    python -m studies.transfer longest      the same for half a million agent steps, in which random weights learn
    python -m studies.transfer compare      the table of the stages that have serial12 as their bar, from their CSVs
    python -m studies.transfer paths        does a shorter path mean faster learning? from the same CSVs

Every stage is a list of `leap-rl train` and `leap-rl evaluate` commands below runs/transfer/, each in one process on
one core, so that a stage that was stopped goes on where it was. What came out is gathered in docs/transfer/STAGE.csv:
the learning curves of all evaluations, with a column that names the evaluation.
"""

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import exp, log
from pathlib import Path
from statistics import fmean

from scipy.stats import spearmanr

from leap_rl.evaluation.analysis import Analysis, analyse, measures_of
from leap_rl.evaluation.arms import RANDOM_ARM
from leap_rl.evaluation.figures import learning_curves
from leap_rl.evaluation.markdown import shown
from leap_rl.evaluation.results import read_curves
from leap_rl.evaluation.statistics import Estimate, mean_with_interval
from leap_rl.files.storage import LocalStorage
from leap_rl.runs.figures import render_png
from studies.command import leap_rl

RUNS, RESULTS = Path("runs/transfer"), Path("docs/transfer")
CONFIG = "configs/atari.yaml"
SERIAL = ["backend=serial", "workers.count=1"]

Command = list[str]
Job = list[Command]  # one after the other
Phase = list[Job]  # side by side; a phase begins when the one before has ended


def evaluation(runs: Sequence[Path], games: Sequence[str], seeds: int, steps: int, out: str, *keys: str) -> Command:
    """Returns the command that trains from the initializations of runs and from random ones."""
    where = keys or SERIAL
    return ["evaluate", *map(str, runs), *where, "--games", *games, "--seeds", str(seeds), "--agent-steps", str(steps),
            "--out", str(runs[0].parent / out)]  # fmt: skip


def ceiling() -> Iterator[Phase]:
    """Trains a whole network on a game, then starts on the same game from it: from its encoder, and from all of it."""
    jobs = []
    for game in ("breakout", "space_invaders", "freeway", "pong"):
        run = RUNS / "ceiling" / game
        train = ["train", CONFIG, f"run.dir={run}", f"tasks.games=[{game}]", "tasks.held_out=[]", "meta.rule=reptile",
                 "meta.lr=1", "meta.steps=1", "meta.batch_size=1", "meta.max_task_norm=null", "meta.parameters=all",
                 "task.agent_steps=600_000", *SERIAL]  # fmt: skip
        whole = evaluation([run], [game], 2, 150_000, f"{game}-all")
        encoder = evaluation([run], [game], 2, 150_000, f"{game}-encoder", "meta.parameters=encoder", *SERIAL)
        jobs.append([train, whole, encoder])
    yield jobs


# Four variants of each game are kept for the confirmation, and two are to choose by. This seed is the first whose test
# variants of Breakout leave out modes 0, 4, 8, 12, 16, 24 and 28, which a probe before this study had looked at.
POOL = ["tasks.games=['breakout:mode=*', 'space_invaders:mode=*']", "tasks.held_out=[]",
        "tasks.split={validation: 2, held_out: 4, seed: 301}"]  # fmt: skip
BASE = ["meta.rule=reptile", "meta.lr=1", "meta.parameters=all", "meta.max_task_norm=null", "meta.batch_size=4",
        "meta.steps=3", "task.agent_steps=100_000"]  # fmt: skip

# What differs from BASE. The runs of a group have the agent of BASE: they are evaluated beside one random arm.
SERIAL_TASKS = ["meta.batch_size=1", "meta.steps=12"]  # as many agent steps as BASE's, one task after the other
LEAP = ["meta.rule=leap", "meta.max_task_norm=10"]
META_FACTORS: dict[str, dict[str, list[str]]] = {
    "serial": {
        "serial12": SERIAL_TASKS,
        "serial_leap": [*SERIAL_TASKS, *LEAP],
    },
    "rules": {
        "base": [],
        "leap": [*LEAP],
        "length": ["meta.rule=leap", "meta.metric=length", "meta.use_loss=false", "meta.lr=0.1"],
        "leap_paired": [*LEAP, "meta.loss_difference=paired"],
    },
}
# What Leap's loss term does, one task after the other: without it but with its cap, and in each of its forms. (With it
# and without the cap, norms reach 10¹⁴ in the third meta-step, and the next task's first loss is not finite.)
LOSS_FACTORS = {
    "capped": [*SERIAL_TASKS, "meta.max_task_norm=10"],
    "leap_paired": [*SERIAL_TASKS, *LEAP, "meta.loss_difference=paired"],
}
# How far the initialization moves with each task. Increments of serial12 have norms around 8.
OPTIMIZER_FACTORS = {
    "unit_norm": [*SERIAL_TASKS, "meta.normalize_tasks=true", "meta.lr=8"],
    "nesterov": [*SERIAL_TASKS, "meta.optimizer=nesterov", "meta.lr=0.7"],
    "adam_003": [*SERIAL_TASKS, "meta.optimizer=adam", "meta.lr=0.003"],
    "adam_010": [*SERIAL_TASKS, "meta.optimizer=adam", "meta.lr=0.01"],
}
# Runs whose agent differs from BASE's, each group with a random arm of its own; all train one task after the other.
AGENT_FACTORS: dict[str, dict[str, list[str]]] = {
    "popart": {"popart": [], "popart_leap": LEAP},
    "layer_norm": {"layer_norm": []},
    "value_gain_0": {"value_gain_0": []},
    "corrected": {"corrected": []},
    "squares_at_1": {"squares_at_1": []},
}
AGENT_KEYS = {
    "popart": "agent.value_scale=popart",
    "layer_norm": "agent.layer_norm=true",
    "value_gain_0": "agent.value_gain=0",
    "corrected": "agent.rmsprop_start=corrected",
    "squares_at_1": "agent.rmsprop_start=ones",
}


def training(run: Path, changes: Sequence[str]) -> Command:
    """Returns the command that meta-trains on the training variants of POOL."""
    return ["train", CONFIG, f"run.dir={run}", *POOL, *BASE, *changes, *SERIAL]


# What screening and agents evaluate: validation variants, two seeds, 50,000 agent steps.
CHOSEN = (["validation"], 2, 50_000)


def screening() -> Iterator[Phase]:
    """Trains and evaluates with one change at a time, on variants to choose by.

    The rule, written down before the first result: a change is taken up where the logarithm of the area under the
    learning curve, against BASE on the same variants and seeds, rises by 0.1 or more in the mean and on three of the
    four validation variants; an agent's key is kept where it does so for the random or for the meta-learned arm. What
    is not kept is deleted from the program.
    """
    folder = RUNS / "screening"
    for name, factors in META_FACTORS.items():
        yield [[training(folder / run, changes)] for run, changes in factors.items()]
        runs = [folder / run for run in factors]
        yield [[evaluation(runs, *CHOSEN, f"{name}-validation", "backend=ray", "workers.count=2")]]


def losses() -> Iterator[Phase]:
    """Separates what Leap's loss term does from what the cap on its increments does, by the rule of ``screening``.

    Two other forms of the term were tried and deleted: of a running mean of the loss, and a hundredth of it."""
    folder = RUNS / "losses"
    yield [[training(folder / run, changes)] for run, changes in LOSS_FACTORS.items()]
    runs = [folder / run for run in LOSS_FACTORS]
    yield [[evaluation(runs, *CHOSEN, "losses-validation", "backend=ray", "workers.count=2")]]


def continual() -> Iterator[Phase]:
    """Steps after segments of 5, 20 and 50 thousand agent steps of four tasks under way, beside BASE, which steps after
    whole tasks and has as many agent steps."""
    folder = RUNS / "continual"
    factors = {"base": list[str]()} | {
        f"segments_{thousands}": ["meta.schedule=continual", f"meta.steps={steps}", f"stream.segment_updates={updates}"]
        for thousands, updates, steps in ((5, 31, 60), (20, 125, 15), (50, 312, 6))
    }
    yield [[training(folder / run, changes)] for run, changes in factors.items()]
    runs = [folder / run for run in factors]
    yield [[evaluation(runs, *CHOSEN, "continual-validation", "backend=ray", "workers.count=2")]]


def agents() -> Iterator[Phase]:
    """Trains and evaluates with one change to the agent at a time, by the rule of ``screening``.

    The bar is ``serial12`` of that stage instead of BASE: it was the better of the two when this began.
    """
    folder = RUNS / "agents"
    yield [
        [training(folder / run, [*SERIAL_TASKS, AGENT_KEYS[name], *changes]) for run, changes in factors.items()]
        + [evaluation([folder / run for run in factors], *CHOSEN, f"{name}-validation")]
        for name, factors in AGENT_FACTORS.items()
    ]


def optimizers() -> Iterator[Phase]:
    """Moves the initialization otherwise than to where a task has ended, by the rule of ``screening``; the bar is
    ``serial12`` of that stage."""
    folder = RUNS / "optimizers"
    yield [[training(folder / run, changes)] for run, changes in OPTIMIZER_FACTORS.items()]
    runs = [folder / run for run in OPTIMIZER_FACTORS]
    yield [[evaluation(runs, *CHOSEN, "optimizers-validation", "backend=ray", "workers.count=2")]]


def confirmation() -> Iterator[Phase]:
    """Trains what the screening left, twice as long, and evaluates it on the variants that no choice has looked at."""
    run = RUNS / "confirmation" / "serial24"
    yield [[training(run, ["meta.batch_size=1", "meta.steps=24"])]]
    yield [[evaluation([run], ["held_out"], 5, 50_000, "serial24-held_out", "backend=ray", "workers.count=2")]]


def rivals() -> Iterator[Phase]:
    """Evaluates on the test variants what had 1.2 million agent steps in the screening: twelve tasks one after the
    other without Leap's loss term and with it, and four side by side. Beside them are pretrained:variants, which had
    twice as many, and the ceiling."""
    kept = [str(RESULTS / "screening" / f"{name}.safetensors") for name in ("serial12", "serial_leap", "base")]
    yield [
        [["evaluate", "pretrained:variants", *kept, "backend=ray", "workers.count=2", "--arms", "ceiling",
          "--seeds", "3", "--agent-steps", "50_000", "--out", str(RUNS / "rivals" / "rivals-held_out")]]
    ]  # fmt: skip


def longer() -> Iterator[Phase]:
    """Evaluates pretrained:variants, which the confirmation has trained, for as long as random weights need to learn
    something on most test variants."""
    yield [
        [["evaluate", "pretrained:variants", *SERIAL, "--seeds", "3", "--agent-steps", "150_000",
          "--out", str(RUNS / "longer" / "variants-held_out")]]
    ]  # fmt: skip


def longest() -> Iterator[Phase]:
    """Evaluates pretrained:variants for half a million agent steps, to see how much sooner it is where random weights
    end."""
    yield [
        [["evaluate", "pretrained:variants", "backend=ray", "workers.count=2", "--seeds", "5",
          "--agent-steps", "500_000", "--out", str(RUNS / "longest" / "variants-held_out")]]
    ]  # fmt: skip


STAGES: dict[str, Callable[[], Iterator[Phase]]] = {
    "ceiling": ceiling, "screening": screening, "losses": losses, "continual": continual, "agents": agents,
    "optimizers": optimizers, "confirmation": confirmation, "rivals": rivals, "longer": longer, "longest": longest,
}  # fmt: skip
COMPARED = ("agents", "losses", "continual", "optimizers")
BAR = "serial-validation"  # the evaluation of serial12, in the screening


def run_job(job: Job) -> None:
    """Runs commands in turn. Raises CalledProcessError where one fails; the same call goes on from there."""
    for command in job:
        print("leap-rl", *command, flush=True)
        leap_rl(*command)


def collect(stage: str) -> None:
    """Gathers the learning curves of a stage's evaluations in one CSV file."""
    rows = []
    for path in sorted((RUNS / stage).glob("*/curves.csv")):
        with path.open() as file:
            rows += [{"evaluation": path.parent.name, **row} for row in csv.DictReader(file)]
    if not rows:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{stage}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def analyses(stage: str) -> dict[str, Analysis]:
    """Returns the numbers of each evaluation in a stage's CSV, by its name, as a report has them."""
    with (RESULTS / f"{stage}.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {}
    for name in dict.fromkeys(row["evaluation"] for row in rows):
        own = [row for row in rows if row["evaluation"] == name]
        kept = sorted({(row["arm"], row["game"]) for row in own}, key=natural)
        arms, games = (list(dict.fromkeys(key[i] for key in kept)) for i in (0, 1))
        arms.sort(key=lambda arm: arm != RANDOM_ARM)
        with tempfile.TemporaryDirectory() as folder:
            with Path(folder, "curves.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(own)
            curves = read_curves(LocalStorage(folder), measures_of({}))
        seeds = max(sum(curve.arm == arm and curve.game == game for curve in curves) for arm, game in kept)
        found[name] = analyse({"arms": [{"name": arm} for arm in arms], "games": games, "num_seeds": seeds}, curves)
    return found


def mean_returns(stage: str) -> dict[tuple[str, str, str], float]:
    """Returns the mean return over a task, mean over seeds, of each (evaluation, arm, game) of a stage's CSV."""
    return {(name, *key): result.area.value for name, analysis in analyses(stage).items()
            for key, result in analysis.results.items()}  # fmt: skip


def compare() -> None:
    """Prints, for each arm of the screening and of the stages in COMPARED, the logarithm of its mean return over that
    of serial12 (for the random arm with a key, over that of random weights without it): its mean over the variants, and
    each."""
    stages = [stage for stage in ("screening", *COMPARED) if (RESULTS / f"{stage}.csv").exists()]
    found = {key: value for stage in stages for key, value in mean_returns(stage).items()}
    bar = {key[1:]: value for key, value in found.items() if key[0] == BAR}
    for name, arm in sorted({key[:2] for key in found}):
        of = RANDOM_ARM if arm == RANDOM_ARM and name != BAR else "serial12"
        logs = {game: log(found[name, arm, game] / bar[of, game]) for _, game in bar if (name, arm, game) in found}
        each = ", ".join(f"{game} {value:+.2f}" for game, value in sorted(logs.items()))
        print(f"{name:25} {arm:13} {fmean(logs.values()):+.2f}   {each}")


def paths() -> None:
    """Prints, for each initialization that was evaluated on the validation variants, how long its paths are and how
    high its mean return is, as multiples of those of random weights (geometric means over the variants), and the rank
    correlation of the two over the initializations: over all, and over those that took one task after another."""
    print("| initialization | path length | mean return |\n|---|--:|--:|")
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}  # one task after another?
    for stage in ("screening", *COMPARED):
        if (RESULTS / f"{stage}.csv").exists():
            for analysis in analyses(stage).values():
                for arm in analysis.arms[1:]:
                    length = exp(fmean(log(analysis.results[arm, game].path_ratio) for game in analysis.games))
                    mean_return = ratio(analysis, arm, "area").value
                    found[stage != "continual"].append((length, mean_return))
                    print(f"| {arm} | {length:.2f} | {mean_return:.2f} |")
    for pairs in ([*found[True], *found[False]], found[True]):
        correlation = spearmanr(*zip(*pairs, strict=True))
        print(f"rank correlation {correlation.statistic:+.2f} over {len(pairs)}, p = {correlation.pvalue:.3f}")


PRINTED = {"compare": compare, "paths": paths}


def ratio(analysis: Analysis, arm: str, name: str) -> Estimate:
    """Returns an arm's number (a field of GameResult) as a multiple of the random arm's: the geometric mean over the
    variants, with Student's t interval of the logarithms."""
    values = [[getattr(analysis.results[which, game], name).value for game in analysis.games]
              for which in (arm, RANDOM_ARM)]  # fmt: skip
    return _geometric([own / theirs for own, theirs in zip(*values, strict=True)])


def _geometric(values: Sequence[float]) -> Estimate:
    logs = mean_with_interval([log(value) for value in values])
    return Estimate(*(None if x is None else exp(x) for x in logs))  # type: ignore[arg-type]


def summarize(stage: str) -> None:
    """Prints tables of a stage's one evaluation, from its CSV, and draws the learning curves: each arm against random
    weights on each variant, and over the variants."""
    [analysis] = analyses(stage).values()
    for arm in analysis.arms[1:]:
        print(f"| test variant | seeds | random | {arm} | × | last tenth: random | {arm} | × | speed-up |")
        print("|---|" + "--:|" * 8)
        for game in analysis.games:
            theirs, own = analysis.results[RANDOM_ARM, game], analysis.results[arm, game]
            pairs = (theirs.area.value, own.area.value), (theirs.final.value, own.final.value)
            cells = [text for a, b in pairs for text in (f"{a:.1f}", f"{b:.1f}", f"{b / a:.1f}")]
            print(f"| {game} | {own.num_seeds} | {' | '.join(cells)} | {shown(own.speedup)} |")
        print()
    print("| over the variants | mean return | higher on | last tenth | speed-up | on |\n|---|" + "--:|" * 5)
    for arm in analysis.arms[1:]:
        results = [analysis.results[arm, game] for game in analysis.games]
        higher = sum(result.area_difference.value > 0 for result in results)
        ratios = " | ".join(f"{shown(ratio(analysis, arm, name), 2)}{more}"
                            for name, more in (("area", f" | {higher} of {len(results)}"), ("final", "")))  # fmt: skip
        speeds = [result.speedup.value for result in results if result.speedup]
        speed = shown(_geometric(speeds), 1) if speeds else "–"
        print(f"| {arm} | {ratios} | {speed} | {len(speeds)} |")
    (RESULTS / f"{stage}.png").write_bytes(render_png(learning_curves(analysis)))


def natural(key: tuple[str, str]) -> tuple[str, str, int]:
    """Returns a key that sorts variants by their mode."""
    arm, game = key
    name, _, mode = game.partition(":mode=")
    return arm, name, int(mode or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, *PRINTED])
    parser.add_argument(
        "--table", action="store_true", help="run nothing: from the stage's CSV, print its table and draw STAGE.png"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side; each takes one core")
    arguments = parser.parse_args()
    if arguments.stage in PRINTED:
        PRINTED[arguments.stage]()
        return
    if arguments.table:
        summarize(arguments.stage)
        return
    with ThreadPoolExecutor(arguments.jobs) as pool:
        try:
            for phase in STAGES[arguments.stage]():
                list(pool.map(run_job, phase))
                collect(arguments.stage)
        finally:
            collect(arguments.stage)


if __name__ == "__main__":
    main()
