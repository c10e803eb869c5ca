"""Writes and reads the results of an evaluation: learning curves, and probes that need no further training.

They are in ``curves.csv`` and ``probes.json``, and depend only on the finished tasks: the same tasks give the same
bytes. The report reads only these two files and evaluation.json.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leap_rl.evaluation.plan import Plan
from leap_rl.evaluation.schemas import Probes, check_curve
from leap_rl.files.interface import Storage
from leap_rl.files.schemas import parse_json
from leap_rl.measures import Measures
from leap_rl.meta.ledger import Ledger
from leap_rl.meta.probes import cosines, drift_by_layer
from leap_rl.processes import process_of
from leap_rl.runs.task_store import TaskStore
from leap_rl.types import BadInputError

CURVES, PROBES = "curves.csv", "probes.json"
WINDOW = 0.1  # share of a task over which the final score and the smoothed curve are means

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Holds the learning curve of one task: a number for each of its S segments.

    In classification the returns are accuracies, and the episodes are images.
    """

    arm: str
    game: str
    seed: int
    agent_steps: Numbers  # [S] total of the task so far
    frames: Numbers  # [S] total of the task so far
    episodes: Numbers  # [S] number of episodes that ended in the segment
    returns: Numbers  # [S] their mean raw return; NaN if none ended
    path_length: Numbers  # [S] total of the task so far, through parameters and loss as in the paper; so is the energy
    energy: Numbers
    moves: Numbers
    loss_rises: Numbers
    # [S] score on data that the task holds out; NaN before the task's end
    held_out: Numbers = field(default_factory=lambda: np.array([math.nan]))
    zero_shot: float = math.nan  # mean return of the episodes played before any update

    @property
    def _window(self) -> int:
        return max(1, round(WINDOW * len(self.returns)))

    def _mean_return(self, start: int, end: int) -> float:
        """Returns the mean over the episodes that ended in the segments [``start``, ``end``); NaN if none did."""
        episodes = self.episodes[start:end]
        total = float(np.nansum(self.returns[start:end] * episodes))
        return total / float(episodes.sum()) if episodes.any() else float("nan")

    @property
    def final_score(self) -> float:
        """Returns the score on held-out data, or the :attr:`last_score` if there is none."""
        held_out = float(self.held_out[-1])
        return self.last_score if math.isnan(held_out) else held_out

    @property
    def last_score(self) -> float:
        """Returns the mean return over the last tenth of the task, or a longer part if no episode ended in that."""
        ended = np.flatnonzero(self.episodes)
        if not len(ended):
            return float("nan")
        return self._mean_return(min(len(self.returns) - self._window, int(ended[-1])), len(self.returns))

    @property
    def first_score(self) -> float:
        """Returns the mean return over the first tenth of the task, or a longer part if no episode ended in that."""
        ended = np.flatnonzero(self.episodes)
        if not len(ended):
            return float("nan")
        return self._mean_return(0, max(self._window, int(ended[0]) + 1))

    def smoothed(self) -> Numbers:
        """Returns for each segment the mean return over the tenth of the task that ends with it, [S]. If no episode
        ended in a window the value before is repeated; before the first episode it is NaN."""
        values = np.array([self._mean_return(max(0, i + 1 - self._window), i + 1) for i in range(len(self.returns))])
        return _carried_on(values)

    @property
    def area(self) -> float:
        """Returns the area under the learning curve divided by its length, which is the mean return over agent steps,
        from the first segment in which an episode ended."""
        steps = np.diff(self.agent_steps, prepend=0.0)
        returns = _carried_on(self.returns)
        known = ~np.isnan(returns)
        return float((returns[known] * steps[known]).sum() / steps[known].sum()) if known.any() else float("nan")


def _carried_on(values: Numbers) -> Numbers:
    """Returns values with each gap (NaN) filled by the value before it. Gaps at the start stay."""
    last = np.maximum.accumulate(np.where(np.isnan(values), -1, np.arange(len(values))))
    carried: Numbers = np.where(last < 0, np.nan, values[last])
    return carried


def collect(plan: Plan, storage: Storage) -> None:
    """Writes curves.csv and probes.json from the tasks that are done."""
    torch.set_num_threads(1)
    store = TaskStore(storage)
    ledgers: list[Ledger] = []
    for task in plan.tasks():
        saved = store.load(task)
        if saved and saved.ledger.done:
            ledgers.append(saved.ledger)
    storage.write(CURVES, _curves_csv(ledgers, process_of(plan.config).measures).encode())
    storage.write(PROBES, (json.dumps(_probes(plan, ledgers), indent=1) + "\n").encode())


def columns_of(measures: Measures) -> tuple[str, ...]:
    """Returns the columns of curves.csv."""
    held_out = (measures.held_out_score,) if measures.held_out_counts else ()
    further = tuple(name for name in ("entropy", "loss") if name in measures.means)
    paths = ("path_length", "energy", "moves", "loss_rises")
    scored = (measures.counts[1], measures.score)
    return ("arm", "game", "seed", "agent_steps", "frames", *scored, *held_out, *paths, *further)


def _curves_csv(ledgers: Sequence[Ledger], measures: Measures) -> str:
    file = io.StringIO(newline="")
    columns = columns_of(measures)
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for ledger in ledgers:
        task = ledger.task
        for report in ledger.reports:
            segment, total = report.segment, report.statistics
            zero_shot = measures.zero_shot_score_of(segment)
            if zero_shot is not None and measures.zero_shot_counts:  # a row at 0 agent steps
                episodes = int(segment[measures.zero_shot_counts[1]])
                row = {"arm": task.start.name, "game": task.name, "seed": task.round, "agent_steps": 0, "frames": 0,
                       measures.counts[1]: episodes, measures.score: zero_shot, "path_length": 0.0, "energy": 0.0,
                       "moves": 0, "loss_rises": 0}  # fmt: skip
                writer.writerow(row)
            row = {
                **measures.shown(segment), "arm": task.start.name, "game": task.name, "seed": task.round,
                "agent_steps": int(total["agent_steps"]), "frames": int(total["frames"]),
                measures.counts[1]: int(segment[measures.counts[1]]), measures.score: measures.score_of(segment),
                measures.held_out_score: measures.held_out_score_of(segment),
                "path_length": report.path.length, "energy": report.path.energy, "moves": report.path.moves,
                "loss_rises": report.path.rises,
            }  # fmt: skip
            writer.writerow({column: "" if row[column] is None else row[column] for column in columns})
    return file.getvalue()


def _probes(plan: Plan, ledgers: Sequence[Ledger]) -> dict[str, Any]:
    """Returns the cosines between the games' increments and the drift of each initialization, by layer.

    Rows and columns of a matrix are in the order of ``games``. The diagonal has cosines between seeds of one game, or
    null if there is only one.
    """
    matrices = {}
    for arm in plan.arms:
        if not arm.has_one_start:
            continue
        mine = [ledger for ledger in ledgers if ledger.task.start.name == arm.name]
        matrices[arm.name] = cosines([ledger.task.name for ledger in mine], [ledger.total for ledger in mine])
    drift = {arm.name: drift_by_layer(arm.first, arm.initialization) for arm in plan.arms if arm.first}
    return {"cosines": matrices, "drift": drift}


def read_curves(storage: Storage, measures: Measures) -> list[Curve]:
    """Returns the curves of an evaluation. Raises BadInputError if there are none or the file is damaged."""
    try:
        reader = csv.DictReader(io.StringIO(storage.read(CURVES).decode()))
        columns = ("agent_steps", "frames", measures.counts[1], measures.score, "path_length", "energy", "moves",
                   "loss_rises", *((measures.held_out_score,) if measures.held_out_counts else ()))  # fmt: skip
        if lacking := {"arm", "game", "seed", *columns} - set(reader.fieldnames or ()):
            raise ValueError(f"it has no {', '.join(sorted(lacking))}")
        tasks: dict[tuple[str, str, int], list[dict[str, str]]] = {}
        for row in reader:
            tasks.setdefault((row["arm"], row["game"], int(row["seed"])), []).append(row)
        return [_curve(key, task, columns, {measures.score, measures.held_out_score}) for key, task in tasks.items()]
    except FileNotFoundError:
        raise BadInputError(f"{storage.url}: has no {CURVES}; the same `leap-rl evaluate` command makes it") from None
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise BadInputError(f"{storage.url}/{CURVES}: cannot be read: {' '.join(str(error).split())[:300]}") from None


def _curve(
    key: tuple[str, str, int], rows: Sequence[dict[str, str]], columns: Sequence[str], scores: set[str]
) -> Curve:
    """Returns the curve of one task from its rows, given the columns in the order of the fields of Curve.

    A first row at 0 agent steps has the score before any update. Raises ValueError if the rows are not a learning
    curve.
    """
    zero_shot = math.nan
    if _number(rows[0]["agent_steps"]) == 0:
        zero_shot, rows = _number(rows[0][columns[3]]), rows[1:]
    if not rows or math.isinf(zero_shot):
        raise ValueError("the row at 0 agent steps is the only one, or its score is not a number")
    numbers = {column: np.array([_number(row[column]) for row in rows]) for column in columns}
    check_curve(numbers, scores)
    return replace(Curve(*key, *numbers.values()), zero_shot=zero_shot)  # type: ignore[arg-type]


def _number(text: str) -> float:
    return float(text) if text else math.nan


def read_probes(storage: Storage) -> dict[str, Any]:
    """Returns the content of probes.json; empty if there is none. Raises BadInputError if it is damaged."""
    try:
        data = storage.read(PROBES)
    except FileNotFoundError:
        return {}
    return parse_json(Probes, data, f"{storage.url}/{PROBES}").model_dump()
