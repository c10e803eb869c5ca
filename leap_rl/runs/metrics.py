"""Computes the numbers of a run, as pure functions of what happened: rows of metrics.jsonl, and points of charts.

docs/metrics.md lists them all. measures.py says what other processes have instead of games and returns.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from leap_rl.config import Config
from leap_rl.measures import Measures
from leap_rl.meta.probes import mean_cosine
from leap_rl.runs.run_files import Progress
from leap_rl.types import Fault, MetaStep, TaskReport

META = "meta"  # the series of the meta-steps; every other one is a game's


@dataclass(frozen=True)
class Point:
    """Holds one point of a chart."""

    series: str  # the meta-steps, or a game: one chart compares all games
    name: str  # of the chart
    step: int
    value: float


def task_row(kind: str, report: TaskReport, measures: Measures) -> dict[str, Any]:
    """Returns a row for the newest segment of a task ("segment"), or for the whole task ("task")."""
    statistics = report.statistics if kind == "task" else report.segment
    row: dict[str, Any] = {
        "kind": kind,
        "meta_step": report.task.round,
        "slot": report.task.slot,
        "sequence": report.sequence,
        "attempt": report.attempt,
        "game": report.task.name,
        "task_agent_steps": int(report.statistics["agent_steps"]),
        "agent_steps": int(statistics["agent_steps"]),
        "frames": int(statistics["frames"]),
        "seconds": round(statistics["seconds"], 3),
        **measures.shown(statistics),
    }
    if kind == "task":
        path = report.path
        row |= {"path_length": path.length, "energy": path.energy, "moves": path.moves, "loss_rises": path.rises}
    return row


def fault_row(fault: Fault, meta_step: int) -> dict[str, Any]:
    """Returns a row for a fault that was dealt with."""
    return {"kind": "fault", "meta_step": meta_step, "game": fault.task and fault.task.name, "text": fault.text}


def task_points(report: TaskReport, measures: Measures, steps_per_task: int) -> Iterator[Point]:
    """Yields the points of a task's newest segment, at meta_step × task.agent_steps + agent steps of the task. Totals
    (``measures.totals``) are left out, since they start anew in each task; rows have them."""
    step = report.task.round * steps_per_task + int(report.statistics["agent_steps"])
    shown = {name: value for name, value in measures.shown(report.segment).items() if name not in measures.totals}
    values: dict[str, float | None] = {
        **{f"{measures.task}/{name}": value for name, value in shown.items()},
        **{  # RLlib's own numbers, which no Measures names: sums over gradient steps
            name: value / report.segment["updates"]
            for name, value in report.segment.items()
            if name.startswith("rllib/") and report.segment["updates"]
        },
    }
    for name, value in values.items():
        if value is not None:
            yield Point(report.task.name, name, step, value)


def meta_step_scalars(
    outcome: MetaStep,
    progress: Progress,
    config: Config,
    drift: float,
    seconds: float,
    num_workers: int,
    faults: int,
    timed: bool = True,
) -> dict[str, float | None]:
    """Returns the numbers of a meta-step by name. ``progress`` has the run's totals, this meta-step included; ``drift``
    is the initialization's distance from the first one; ``faults`` were dealt with since the last meta-step. The speeds
    are None unless the meta-step is ``timed``: ``seconds`` must be the time of all of it."""
    totals = {
        name: sum(task.statistics[name] for task in outcome.tasks)
        for name in ("agent_steps", "seconds", "increment_bytes")
    }
    moves, rises = (sum(getattr(task.path, name) for task in outcome.tasks) for name in ("moves", "rises"))
    return {
        "path_length": outcome.path_length,
        "energy": outcome.energy,
        "meta_gradient_norm": outcome.meta_gradient_norm,
        "clipped_tasks": sum(norm > (config.meta.max_task_norm or math.inf) for norm in outcome.task_norms),
        "update_norm": outcome.update_norm,
        "initialization_drift": drift,
        "lr": outcome.lr,
        "loss_rise_fraction": rises / max(moves, 1),
        "agent_steps": progress.agent_steps,
        "frames": progress.frames,
        "agent_steps_per_second": totals["agent_steps"] / seconds if timed else None,
        "worker_utilization": totals["seconds"] / (num_workers * seconds) if timed else None,
        "seconds": seconds,
        "failed_tasks": len(outcome.dropped),
        "staleness": sum(outcome.staleness) / len(outcome.staleness),
        "max_staleness": max(outcome.staleness),
        "faults": faults,
        "duplicate_increments": outcome.duplicates,
        "stale_increments": outcome.stale,
        "increment_bytes": totals["increment_bytes"],
        "compression_error": outcome.compression_error,
    }


def meta_step_row(
    outcome: MetaStep, scalars: Mapping[str, float | None], layers: Mapping[str, float]
) -> dict[str, Any]:
    """Returns the row of a meta-step, given its :func:`meta_step_scalars` and the drift of each layer."""
    return {
        "kind": "meta_step", "meta_step": outcome.meta_step, **scalars,
        "increment_cosine": mean_cosine(outcome.cosines), "increment_cosines": outcome.cosines,
        "layer_drift": dict(layers), "task_norms": outcome.task_norms,
    }  # fmt: skip


def meta_step_points(
    outcome: MetaStep, scalars: Mapping[str, float | None], layers: Mapping[str, float], measures: Measures
) -> Iterator[Point]:
    """Yields the points of a meta-step, given its :func:`meta_step_scalars` and the drift of each layer."""
    cosine = mean_cosine(outcome.cosines)
    values = {f"meta/{name}": value for name, value in scalars.items() if value is not None}
    values |= {} if cosine is None else {"meta/increment_cosine": cosine}
    values |= {f"layer/drift/{name}": value for name, value in layers.items()}
    for name, value in values.items():
        yield Point(META, name, outcome.meta_step, value)
    for report, norm in zip(outcome.tasks, outcome.task_norms, strict=True):
        score = measures.score_of(report.statistics)
        values = {
            "path_length": report.path.length,
            "meta_gradient_norm": norm,
            "loss_rise_fraction": report.path.rises / max(report.path.moves, 1),
            **({} if score is None else {measures.score: score}),
        }
        for name, value in values.items():
            yield Point(META, f"task/{name}/{report.task.name}", outcome.meta_step, value)


def plain(series: str) -> str:
    """Returns the name of a series as a part of names of files and charts, in which not all signs may stand."""
    return series.replace(":", "_").replace(",", "_").replace("=", "")


@dataclass(frozen=True)
class Chart:
    """Holds the numbers of one row for charts that have a common axis."""

    axis: Literal["meta_step", "agent_steps"]
    step: int  # on the axis
    values: Mapping[str, float]


def charts_of(row: Mapping[str, Any], measures: Measures, steps_per_task: int) -> Chart:
    """Returns what a row of metrics.jsonl shows, named as in TensorBoard, with the task's name at the end. A fault
    shows nothing, and the row of a whole task shows what its segments do not have."""
    game, meta_step = plain(row.get("game") or ""), int(row["meta_step"])
    axis: Literal["meta_step", "agent_steps"] = "meta_step"
    step, values = meta_step, dict[str, Any]()
    if row["kind"] == "meta_step":
        values = {f"meta/{name}": row[name] for name in row if name not in ("kind", "meta_step")}
        values |= {f"layer/drift/{name}": value for name, value in row["layer_drift"].items()}
    elif row["kind"] == "task":
        values = {f"task/{name}/{game}": row[name] for name in ("path_length", measures.score)}
    elif row["kind"] == "segment":
        axis, step = "agent_steps", meta_step * steps_per_task + int(row["task_agent_steps"])
        held_out = [measures.held_out_score] if measures.held_out_counts else []
        names = (measures.score, *held_out, *measures.means)
        values = {f"{measures.task}/{name}/{game}": row.get(name) for name in names}  # older rows may lack one
    return Chart(axis, step, {name: value for name, value in values.items() if isinstance(value, int | float)})


def layout(measures: Measures) -> dict[str, dict[str, list[str]]]:
    """Returns what belongs together on a page of charts, and in which order: category → title → names of charts, as
    regular expressions."""
    return {
        "Meta-training": {
            "path length": ["^meta/path_length$"],
            "energy": ["^meta/energy$"],
            f"{measures.score_text} of each {measures.task}, by meta-step": [f"^task/{measures.score}/"],
            "path length, by meta-step": ["^task/path_length/"],
            "step of the initialization": ["^meta/update_norm$"],
            "distance from the first initialization": ["^meta/initialization_drift$"],
        },
        f"Learning curves of {measures.tasks}": {
            f"{measures.score_text}": [f"^{measures.task}/{measures.score}$"],
            "loss": [f"^{measures.task}/loss$"],
            "gradient norm": [f"^{measures.task}/gradient_norm$"],
        },
        "System": {
            f"{measures.step} a second": ["^meta/agent_steps_per_second$"],
            "utilization of workers": ["^meta/worker_utilization$"],
            "faults": ["^meta/(faults|failed_tasks)$"],
        },
    }
