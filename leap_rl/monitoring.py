"""What a run says of itself: metrics.jsonl, TensorBoard event files and the terminal. docs/metrics.md lists all.

TensorBoard gets one run for the meta-steps (``meta``, by meta-step) and one for each game (by agent steps,
counted through the meta-steps: meta_step × task.agent_steps + agent steps of the task), so that one chart
compares the games. What other processes have in the place of games and returns is in measures.py.
"""

import importlib.util
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from leap_rl.config import Config
from leap_rl.learner import Checkpoint, MetaStep, due
from leap_rl.ledger import TaskReport
from leap_rl.measures import MEASURES, Measures
from leap_rl.probes import Cosines, mean_cosine
from leap_rl.run import Progress, RunDirectory
from leap_rl.types import Fault, Notice, Place, Task

PLAIN_SECONDS = 30.0  # between status lines where output is not a terminal


class Monitor:
    """Use in a ``with`` statement: closing it flushes the event files and takes the progress bars down."""

    def __init__(self, config: Config, run: RunDirectory, stream: TextIO = sys.stderr) -> None:
        self._config = config
        self._measures = MEASURES[config.process]
        self._run = run
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._bars: Bars | None = None
        self._bar_of: dict[Place, Any] = {}
        self._whole_bar: Any = None
        self._writers: dict[str, SummaryWriter] = {}
        self._first_meta_step = 0  # of this session
        self._first_drawn = 0  # the meta-step that the oldest task to come was drawn for
        self._faults = 0  # in this meta-step
        self._last_line = time.monotonic()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bars:
            self._bars.stop()
        for writer in self._writers.values():
            writer.close()

    def start(self, checkpoint: Checkpoint, progress: Progress, ignored: Sequence[str]) -> None:
        """Says where the run begins. ``ignored``: checkpoints that were passed over, a line each."""
        self._first_meta_step = checkpoint.meta_step
        self._first_drawn = min((drawn for drawn, _ in due(self._config.meta, checkpoint)), default=0)
        for line in ignored:
            self._say(f"[yellow]{line}[/]")
        steps, run = self._config.meta.steps, self._run.url
        if progress.meta_step or ignored:
            self._say(f"{run}: resuming at meta-step {checkpoint.meta_step + 1} of {steps}")
        else:
            self._say(f"{run}: a run of {steps} meta-steps")

    def begin_meta_step(self, meta_step: int, tasks: Sequence[Task]) -> None:
        title = f"meta-step {meta_step + 1}/{self._config.meta.steps}"
        if not self._console.is_terminal:
            self._say(f"{title}: {', '.join(task.name for task in tasks)}")
            return
        if self._bars:
            self._bars.stop()
        self._bars = Bars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(self._measures.step),
            TimeElapsedColumn(), console=self._console, transient=True,
        )  # fmt: skip
        self._bars.start()
        total = self._config.num_updates * self._config.update_steps
        self._whole_bar = self._bars.add_task(f"[bold]{title}[/]", total=total * len(tasks))
        self._bar_of = {task.place: self._bars.add_task(task.name, total=total) for task in tasks}

    def log_segment(self, report: TaskReport) -> None:
        """A task has come one segment further."""
        task, segment = report.task, report.segment
        if self._bars:
            self._bars.update(self._bar_of[task.place], completed=report.statistics["agent_steps"])
            self._bars.advance(self._whole_bar, segment["agent_steps"])
        step = task.meta_step * self._config.task.agent_steps + int(report.statistics["agent_steps"])
        rows = []
        if self._config.log.segments:
            rows.append(_task_row("segment", report, segment, self._measures))
        if report.done:
            rows.append(_task_row("task", report, report.statistics, self._measures))
        self._run.append_metrics(rows)
        # A task is rounded up to whole updates: points of committed tasks lie below this, of new ones not.
        purge_step = self._first_drawn * self._config.task.agent_steps + self._config.update_steps
        writer = self._writer(task.name, purge_step)
        for name, value in _scores_and_means(segment, self._measures).items():
            if value is not None:
                writer.add_scalar(f"{self._measures.task}/{name}", value, step)
        for name, value in segment.items():
            if name.startswith("rllib/"):
                writer.add_scalar(name, value, step)
        writer.add_scalar(f"{self._measures.task}/frames", report.statistics["frames"], step)
        writer.add_scalar(f"{self._measures.task}/agent_steps", report.statistics["agent_steps"], step)
        if not self._console.is_terminal:
            self._say_plainly(report)

    def log_fault(self, fault: Fault, meta_step: int) -> None:
        """Something went wrong, and was dealt with."""
        self._faults += 1
        self._say(f"[yellow]{fault.text}[/]")
        row = {"kind": "fault", "meta_step": meta_step, "game": fault.task and fault.task.name, "text": fault.text}
        self._run.append_metrics([row])

    def notice(self, notice: Notice) -> None:
        """Nothing goes on: says why."""
        self._say(f"[yellow]{notice.text}[/]")

    def _say_plainly(self, report: TaskReport) -> None:
        """A line for each finished task, and a sign of life between them."""
        steps, seconds = report.statistics["agent_steps"], report.statistics["seconds"]
        measures = self._measures
        text = f"  {report.task.name}: {steps:,.0f} {measures.step}, {steps / max(seconds, 1e-9):,.0f} a second"
        if report.done:
            score = measures.score_of(report.statistics)
            shown = "–" if score is None else f"{score:.{measures.digits}f}"
            self._say(f"{text}, {measures.score_text} {shown}, path length {report.path_length:.2f}")
        elif time.monotonic() - self._last_line > PLAIN_SECONDS:
            self._say(text)

    def log_meta_step(
        self,
        outcome: MetaStep,
        progress: Progress,
        drift: float,
        layers: Mapping[str, float],
        seconds: float,
        num_workers: int,
    ) -> None:
        """The learner has stepped. ``progress``: totals of the run, this meta-step included. ``drift`` of the
        initialization, in all and by layer."""
        agent_steps = sum(task.statistics["agent_steps"] for task in outcome.tasks)
        busy = sum(task.statistics["seconds"] for task in outcome.tasks)
        moves = sum(task.num_moves for task in outcome.tasks)
        scalars = {
            "path_length": outcome.path_length,
            "energy": outcome.energy,
            "meta_gradient_norm": outcome.meta_gradient_norm,
            "clipped_tasks": sum(norm > (self._config.meta.max_task_norm or math.inf) for norm in outcome.task_norms),
            "update_norm": outcome.update_norm,
            "initialization_drift": drift,
            "lr": outcome.lr,
            "loss_rise_fraction": sum(task.num_rises for task in outcome.tasks) / max(moves, 1),
            "agent_steps": progress.agent_steps,
            "frames": progress.frames,
            "agent_steps_per_second": agent_steps / seconds,
            "worker_utilization": busy / (num_workers * seconds),
            "seconds": seconds,
            "failed_tasks": len(outcome.dropped),
            "staleness": sum(outcome.staleness) / len(outcome.staleness),
            "max_staleness": max(outcome.staleness),
            "faults": self._faults,
            "duplicate_increments": outcome.duplicates,
            "stale_increments": outcome.stale,
            "increment_bytes": sum(task.statistics["increment_bytes"] for task in outcome.tasks),
            "compression_error": outcome.compression_error,
        }
        self._faults = 0
        cosine = mean_cosine(outcome.cosines)
        row = {"kind": "meta_step", "meta_step": outcome.meta_step, **scalars, "increment_cosine": cosine}
        more = {"increment_cosines": outcome.cosines, "layer_drift": dict(layers), "task_norms": outcome.task_norms}
        self._run.append_metrics([row | more])
        writer = self._writer("meta", purge_step=self._first_meta_step)
        for name, value in scalars.items():
            writer.add_scalar(f"meta/{name}", value, outcome.meta_step)
        if cosine is not None:
            writer.add_scalar("meta/increment_cosine", cosine, outcome.meta_step)
            _draw_cosines(writer, outcome.cosines, outcome.meta_step)
        for name, value in layers.items():
            writer.add_scalar(f"layer/drift/{name}", value, outcome.meta_step)
        for task, norm in zip(outcome.tasks, outcome.task_norms, strict=True):
            name = f"task/path_length/{task.task.name}"
            writer.add_scalar(name, task.path_length, outcome.meta_step)
            writer.add_scalar(f"task/meta_gradient_norm/{task.task.name}", norm, outcome.meta_step)
            rises = task.num_rises / max(task.num_moves, 1)
            writer.add_scalar(f"task/loss_rise_fraction/{task.task.name}", rises, outcome.meta_step)
            score = self._measures.score_of(task.statistics)
            if score is not None:
                writer.add_scalar(f"task/{self._measures.score}/{task.task.name}", score, outcome.meta_step)
        for writer in self._writers.values():
            writer.flush()
        self._say(
            f"[bold]meta-step {outcome.meta_step + 1}/{self._config.meta.steps}[/]: "
            f"path length {outcome.path_length:.2f}, energy {outcome.energy:.3g}, "
            f"{agent_steps / seconds:,.0f} {self._measures.step}/s, {seconds:.0f} s"
        )

    def _writer(self, name: str, purge_step: int) -> SummaryWriter:
        """The event file of ``meta`` or of a game; what an interrupted session wrote past ``purge_step``
        disappears from TensorBoard."""
        if name not in self._writers:
            directory = name.replace(":", "_").replace(",", "_").replace("=", "")
            self._writers[name] = SummaryWriter(str(self._run.tensorboard / directory), purge_step=purge_step)
        return self._writers[name]

    def _say(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(text)


def _draw_cosines(writer: SummaryWriter, cosines: Cosines, meta_step: int) -> None:
    """A heat map, where matplotlib (an extra) is installed."""
    if importlib.util.find_spec("matplotlib") is not None:
        from leap_rl.evaluation.figures import heat_maps

        writer.add_figure("meta/increment_cosines", heat_maps({f"meta-step {meta_step}": cosines}), meta_step)


def _task_row(kind: str, report: TaskReport, statistics: Mapping[str, float], measures: Measures) -> dict[str, Any]:
    """A row of metrics.jsonl: of one segment, or of a whole task."""
    row: dict[str, Any] = {
        "kind": kind,
        "meta_step": report.task.meta_step,
        "slot": report.task.slot,
        "sequence": report.sequence,
        "attempt": report.attempt,
        "game": report.task.name,
        "task_agent_steps": int(report.statistics["agent_steps"]),
        "agent_steps": int(statistics["agent_steps"]),
        "frames": int(statistics["frames"]),
        "seconds": round(statistics["seconds"], 3),
        **_scores_and_means(statistics, measures),
    }
    if kind == "task":
        row |= {"path_length": report.path_length, "energy": report.energy, "moves": report.num_moves,
                "loss_rises": report.num_rises}  # fmt: skip
    return row


def _scores_and_means(statistics: Mapping[str, float], measures: Measures) -> dict[str, float | None]:
    """By name; None for the mean over episodes of which none ended, and what is scored at a task's end before it."""
    found: dict[str, float | None] = {measures.score: measures.score_of(statistics)}
    if "episodes" in statistics:
        episodes = int(statistics["episodes"])
        length = statistics["episode_length_sum"] / episodes if episodes else None
        found = {"episodes": episodes, **found, "episode_length": length}
    if measures.held_out_counts:
        found[measures.held_out_score] = measures.held_out_score_of(statistics)
    return found | {name: statistics[name] for name in measures.means}


def summary_table(rows: Sequence[Mapping[str, Any]], measures: Measures) -> Table:
    """A row a meta-step, from the rows of metrics.jsonl."""
    table = Table(title="Meta-training", title_justify="left")
    for name in ("meta-step", "path length", "energy", measures.step, measures.frame, "steps/s"):
        table.add_column(name, justify="right")
    table.add_column(f"mean {measures.score.replace('_', ' ')}")
    for row in rows:
        if row["kind"] != "meta_step":
            continue
        tasks = [task for task in rows if task["kind"] == "task" and task["meta_step"] == row["meta_step"]]
        scores = sorted((t["game"], t[measures.score]) for t in tasks if t[measures.score] is not None)
        shown = ", ".join(f"{name} {value:.{measures.digits}f}" for name, value in scores[:6])
        more = f" and {len(scores) - 6} more" if len(scores) > 6 else ""
        steps = sum(task["agent_steps"] for task in tasks)
        frames = sum(task["frames"] for task in tasks)
        table.add_row(
            str(row["meta_step"] + 1), f"{row['path_length']:.2f}", f"{row['energy']:.2f}", f"{steps:,}",
            f"{frames:,}", f"{row['agent_steps_per_second']:,.0f}", shown + more or "no episode ended",
        )  # fmt: skip
    return table
