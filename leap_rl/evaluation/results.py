"""What the tasks of an evaluation came to: learning curves, and probes that need no more training.

``curves.csv`` and ``probes.json`` hold it, and are written from the finished tasks alone: the same tasks give the
same bytes. The report reads nothing else.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leap_rl.evaluation.plan import Plan
from leap_rl.ledger import Ledger
from leap_rl.measures import MEASURES, Measures
from leap_rl.probes import cosines, drift_by_layer
from leap_rl.storage import Storage
from leap_rl.streaming import RANDOM_ARM
from leap_rl.task_store import TaskStore
from leap_rl.types import BadInputError

CURVES, PROBES = "curves.csv", "probes.json"
WINDOW = 0.1  # of a task: what the final score and the smoothed curve are means over

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One task: a number for each of its S segments. ``returns`` (of classification: accuracies) is NaN where nothing
    was scored, no episode ended in the segment."""

    arm: str
    game: str
    seed: int
    agent_steps: Numbers  # [S] of the task so far
    frames: Numbers  # [S] of the task so far
    episodes: Numbers  # [S] that ended in the segment; of classification, images
    returns: Numbers  # [S] their mean raw return; the share that was classified correctly
    path_length: Numbers  # [S] of the task so far, parameters and loss (paper's measure), as the energy
    energy: Numbers
    moves: Numbers
    loss_rises: Numbers
    held_out: Numbers = field(
        default_factory=lambda: np.array([math.nan])
    )  # [S] score on data held out from the task; NaN before its end

    @property
    def _window(self) -> int:
        return max(1, round(WINDOW * len(self.returns)))

    def _mean_return(self, start: int, end: int) -> float:
        """Over the episodes that ended in the segments from ``start`` up to ``end``; NaN where none did."""
        episodes = self.episodes[start:end]
        total = float(np.nansum(self.returns[start:end] * episodes))
        return total / float(episodes.sum()) if episodes.any() else float("nan")

    @property
    def final_score(self) -> float:
        """On held-out data, or, where there is none, :attr:`last_score`."""
        held_out = float(self.held_out[-1])
        return self.last_score if math.isnan(held_out) else held_out

    @property
    def last_score(self) -> float:
        """Mean return over the last tenth of the task; further back where no episode ended there."""
        ended = np.flatnonzero(self.episodes)
        if not len(ended):
            return float("nan")
        return self._mean_return(min(len(self.returns) - self._window, int(ended[-1])), len(self.returns))

    @property
    def first_score(self) -> float:
        """Mean return over the first tenth of the task; further on where no episode ended there."""
        ended = np.flatnonzero(self.episodes)
        if not len(ended):
            return float("nan")
        return self._mean_return(0, max(self._window, int(ended[0]) + 1))

    def smoothed(self) -> Numbers:
        """[S] mean return over the tenth of the task that ends with each segment; NaN before the first episode;
        where none ended in the window, the value before."""
        values = np.array([self._mean_return(max(0, i + 1 - self._window), i + 1) for i in range(len(self.returns))])
        return _carried_on(values)

    @property
    def area(self) -> float:
        """Area under the learning curve, divided by its length: the mean over agent steps of the return, from the
        first segment in which an episode ended."""
        steps = np.diff(self.agent_steps, prepend=0.0)
        returns = _carried_on(self.returns)
        known = ~np.isnan(returns)
        return float((returns[known] * steps[known]).sum() / steps[known].sum()) if known.any() else float("nan")


def _carried_on(values: Numbers) -> Numbers:
    """Gaps (NaN) take the value before them; those at the start stay."""
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
    storage.write(CURVES, _curves_csv(ledgers, MEASURES[plan.config.process]).encode())
    storage.write(PROBES, (json.dumps(_probes(plan, ledgers), indent=1) + "\n").encode())


def columns_of(measures: Measures) -> tuple[str, ...]:
    """Of curves.csv."""
    held_out = (measures.held_out_score,) if measures.held_out_counts else ()
    further = ("entropy", "loss") if "entropy" in measures.means else ("loss",)
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
            row: dict[str, Any] = {
                **segment, "arm": task.arm, "game": task.name, "seed": task.meta_step,
                "agent_steps": int(total["agent_steps"]), "frames": int(total["frames"]),
                measures.counts[1]: int(segment[measures.counts[1]]), measures.score: measures.score_of(segment),
                measures.held_out_score: measures.held_out_score_of(segment),
                "path_length": report.path_length, "energy": report.energy, "moves": report.num_moves,
                "loss_rises": report.num_rises,
            }  # fmt: skip
            writer.writerow({column: "" if row[column] is None else row[column] for column in columns})
    return file.getvalue()


def _probes(plan: Plan, ledgers: Sequence[Ledger]) -> dict[str, Any]:
    """Cosines between the games' increments (rows and columns as ``games``; on the diagonal between seeds of one
    game; null where there is no pair) and the drift of each initialization, by layer."""
    matrices = {}
    for arm in plan.arms:
        if arm.name == RANDOM_ARM:
            continue  # its tasks start from different points
        mine = [ledger for ledger in ledgers if ledger.task.arm == arm.name]
        matrices[arm.name] = cosines([ledger.task.name for ledger in mine], [ledger.total for ledger in mine])
    drift = {arm.name: drift_by_layer(arm.first, arm.initialization) for arm in plan.arms if arm.first}
    return {"cosines": matrices, "drift": drift}


def read_curves(storage: Storage, measures: Measures) -> list[Curve]:
    """The curves of an evaluation. Raises BadInputError where there are none, or the file is damaged."""
    try:
        rows = list(csv.DictReader(io.StringIO(storage.read(CURVES).decode())))
        tasks: dict[tuple[str, str, int], list[dict[str, str]]] = {}
        for row in rows:
            tasks.setdefault((row["arm"], row["game"], int(row["seed"])), []).append(row)
        columns = ("agent_steps", "frames", measures.counts[1], measures.score, "path_length", "energy", "moves",
                   "loss_rises", *((measures.held_out_score,) if measures.held_out_counts else ()))  # fmt: skip
        return [
            Curve(
                *key,
                *(np.array([_number(row[column]) for row in task]) for column in columns),
            )
            for key, task in tasks.items()
        ]
    except FileNotFoundError:
        raise BadInputError(f"{storage.url}: has no {CURVES}; the same `leap-rl evaluate` command makes it") from None
    except (KeyError, ValueError, TypeError) as error:
        raise BadInputError(f"{storage.url}/{CURVES}: cannot be read: {error}") from None


def _number(text: str) -> float:
    return float(text) if text else math.nan


def read_probes(storage: Storage) -> dict[str, Any]:
    """The content of probes.json; empty where there is none."""
    try:
        probes: dict[str, Any] = json.loads(storage.read(PROBES))
    except (FileNotFoundError, ValueError):
        return {}
    return probes
