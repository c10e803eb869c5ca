"""Trains the runs of a sweep one after another, and gives up the worse half of them early.

Nothing that is decided is kept: the same command reads the rows of the same committed meta-steps again, and comes to
the same decisions.
"""

import csv
import io
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from leap_rl.config_files import as_value
from leap_rl.files.storage import LocalStorage, open_storage
from leap_rl.files.text import printable
from leap_rl.processes import resolve
from leap_rl.runs.inspection import adopt_precision, is_finished
from leap_rl.runs.run import RunDirectory
from leap_rl.runs.run_files import read_metrics
from leap_rl.sweep.grid import DESCRIPTION, SEED, Run, Sweep
from leap_rl.training import train_run
from leap_rl.types import DivergedError

TABLE = "sweep.csv"
FAILED = "failed"
Scores = Mapping[tuple[Any, ...], float]  # task → score


@dataclass
class Setting:
    """Holds runs that differ in their seed alone, and how they stand."""

    runs: list[Run]
    meta_steps: int = 0  # that it was last judged after
    score: float | None = None  # mean over tasks
    better: float | None = None  # share of comparisons with other settings, on the same tasks, that it wins
    state: str = "trained"


def train_sweep(sweep: Sweep) -> list[Setting]:
    """Trains all runs, from wherever they stand, writes sweep.csv, and returns the settings, the best first."""
    settings: dict[str, Setting] = {}
    for run in sweep.runs:
        settings.setdefault(run.setting, Setting([])).runs.append(run)
    left, given_up = list(settings.values()), list[Setting]()
    for rung in sweep.rungs:
        for run in (run for setting in left for run in setting.runs if setting.state != FAILED):
            print(f"{run.name}: to meta-step {rung}", file=sys.stderr)
            if not _train(sweep, run, rung):
                settings[run.setting].state = FAILED
        rank(sweep, left, rung)
        kept = [setting for setting in left if setting.state != FAILED]
        if rung != sweep.rungs[-1]:
            kept = kept[: -(-len(left) // 2)]
            for setting in left[len(kept) :]:
                setting.state = FAILED if setting.state == FAILED else f"given up after {rung}"
        left, given_up = kept, [*left[len(kept) :], *given_up]
    found = sorted([*left, *given_up], key=lambda setting: setting.state == FAILED)
    open_storage(sweep.url).write(TABLE, _csv(rows(sweep, found)))
    return found


def _train(sweep: Sweep, run: Run, until: int) -> bool:
    """Trains a run ``until`` so many meta-steps are done. Returns False where it cannot go on."""
    config = resolve(adopt_precision(run.config))
    if is_finished(config):
        return True
    directory = RunDirectory(config, open_storage(config.run.dir))
    checkpoint, _, _ = directory.latest()
    if checkpoint is not None and checkpoint.meta_step >= until and directory.is_settled(checkpoint):
        return True
    try:
        train_run(config, until, run.values, lambda: _describe(sweep))
    except DivergedError as error:
        print(printable(f"{run.name}: {error}; the sweep goes on without its setting"), file=sys.stderr)
        return False
    return True


def _describe(sweep: Sweep) -> None:
    storage = open_storage(sweep.url)
    if isinstance(storage, LocalStorage):
        storage.path.mkdir(parents=True, exist_ok=True)
    storage.write(DESCRIPTION, sweep.description.model_dump_json().encode() + b"\n")


def rank(sweep: Sweep, settings: list[Setting], rung: int) -> None:
    """Judges settings by what is committed of the first ``rung`` meta-steps, and sorts them, the best first."""
    found = [{} if setting.state == FAILED else scores(sweep, setting.runs, rung) for setting in settings]
    for setting, own, better in zip(settings, found, shares(found), strict=True):
        setting.meta_steps, setting.score, setting.better = rung, _mean(own.values()), better
    settings.sort(key=lambda setting: (setting.state == FAILED, -1 if setting.better is None else -setting.better))


def scores(sweep: Sweep, runs: Sequence[Run], rung: int) -> dict[tuple[Any, ...], float]:
    """Returns the scores of the tasks of the second half of ``rung`` meta-steps. Those of the very first would say
    nothing, since all runs begin alike."""
    first = max(rung // 2, min(1, rung - 1))
    return {
        (run.values.get(SEED), row["meta_step"], row["slot"], row["game"]): row[sweep.column]
        for run in runs for row in read_metrics(run.config.run.dir)
        if row["kind"] == "task" and first <= row["meta_step"] < rung
        and row.get(sweep.column) is not None and math.isfinite(row[sweep.column])
    }  # fmt: skip


def _mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None


def shares(found: Sequence[Scores]) -> list[float | None]:
    """Returns, for each setting, the share of comparisons with the others that it wins; a tie is half of one. Only the
    same task is compared, so that no game counts for more because its scores are higher. None: nothing to compare."""
    return [
        _mean([
            (value > other[task]) + (value == other[task]) / 2
            for task, value in own.items() for other in found if other is not own and task in other
        ])
        for own in found
    ]  # fmt: skip


def table(sweep: Sweep, settings: Sequence[Setting]) -> Table:
    """Returns a table with a row for each setting, the best first."""
    shown = Table(title=f"Sweep, by {sweep.by}", title_justify="left")
    for name in ("setting", "runs", "meta-steps", "better than the others", sweep.column.replace("_", " "), ""):
        shown.add_column(name, justify="left" if name in ("setting", "") else "right")
    for setting in settings:
        better = "–" if setting.better is None else f"{setting.better:.0%}"
        score = "–" if setting.score is None else f"{setting.score:.{sweep.measures.digits}f}"
        cells = (str(len(setting.runs)), str(setting.meta_steps), better, score)
        shown.add_row(printable(setting.runs[0].setting), *cells, setting.state)
    return shown


def rows(sweep: Sweep, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Returns a row for each run, as sweep.csv and ``--json`` have them, those of the best setting first."""
    return [
        {
            "run": run.name, **run.values, "meta_steps": setting.meta_steps, "state": setting.state,
            "better": setting.better, sweep.column: _mean(scores(sweep, [run], setting.meta_steps).values()),
        }
        for setting in settings for run in setting.runs
    ]  # fmt: skip


def _csv(found: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else as_value(value) for key, value in row.items()} for row in found)
    return text.getvalue().encode()
