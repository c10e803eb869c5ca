"""Shows a run in the terminal: with progress bars, or in plain lines where the output is a file."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from leap_rl.files.text import printable
from leap_rl.measures import Measures
from leap_rl.runs.sink import Sink
from leap_rl.types import Place, Task, TaskReport

PLAIN_SECONDS = 30.0  # time between status lines if the output is not a terminal


class PlainConsole(Console):
    """Shows text as it is, since paths and names may look like markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Raises the BrokenPipeError, where rich would end the process: the run goes on without whoever watched it."""
        raise


class Terminal(Sink):
    """Shows a run's progress. ``steps_per_task`` is how many agent steps a task has."""

    name = "the terminal"

    def __init__(self, measures: Measures, steps_per_task: int, stream: TextIO | None = None) -> None:
        self._measures, self._steps_per_task = measures, steps_per_task
        self._console = PlainConsole(file=stream or sys.stderr, soft_wrap=True)
        self._bars: Progress | None = None
        self._bar_of: dict[Place, Any] = {}
        self._whole_bar: Any = None
        self._last_line = time.monotonic()

    def begin(self, title: str, tasks: Sequence[Task]) -> None:
        if not self._console.is_terminal:
            self.say(f"{title}: {', '.join(task.name for task in tasks)}")
            return
        self.close()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn(self._measures.step), TimeElapsedColumn(), console=self._console, transient=True,
        )  # fmt: skip
        self._bars.start()
        self._whole_bar = self._bars.add_task(title, total=self._steps_per_task * len(tasks))
        self._bar_of = {task.place: self._bars.add_task(task.name, total=self._steps_per_task) for task in tasks}

    def progress(self, report: TaskReport) -> None:
        if self._bars:
            self._bars.update(self._bar_of[report.task.place], completed=report.statistics["agent_steps"])
            self._bars.advance(self._whole_bar, report.segment["agent_steps"])
        if not self._console.is_terminal:
            self._say_plainly(report)

    def _say_plainly(self, report: TaskReport) -> None:
        """Prints a line for each finished task, and now and then one for a running task."""
        steps, seconds = report.statistics["agent_steps"], report.statistics["seconds"]
        measures = self._measures
        text = f"  {report.task.name}: {steps:,.0f} {measures.step}, {steps / max(seconds, 1e-9):,.0f} a second"
        if report.done:
            score = measures.score_of(report.statistics)
            shown = "–" if score is None else f"{score:.{measures.digits}f}"
            self.say(f"{text}, {measures.score_text} {shown}, path length {report.path.length:.2f}")
        elif time.monotonic() - self._last_line > PLAIN_SECONDS:
            self.say(text)

    def say(self, text: str, style: str = "") -> None:
        self._last_line = time.monotonic()
        self._console.print(printable(text), style=style or None)

    def close(self) -> None:
        if self._bars:
            self._bars.stop()


def summary_table(rows: Sequence[Mapping[str, Any]], measures: Measures) -> Table:
    """Returns a table with a row for each meta-step, from the rows of metrics.jsonl."""
    table = Table(title="Meta-training", title_justify="left")
    for name in ("meta-step", "path length", "energy", measures.step, measures.frame, "steps/s"):
        table.add_column(name, justify="right")
    table.add_column(f"mean {measures.score.replace('_', ' ')}")
    for row in rows:
        if row["kind"] != "meta_step":
            continue
        tasks = [task for task in rows if task["kind"] == "task" and task["meta_step"] == row["meta_step"]]
        scores = sorted((str(t.get("game")), t[measures.score]) for t in tasks if t.get(measures.score) is not None)
        shown = ", ".join(f"{name} {value:.{measures.digits}f}" for name, value in scores[:6])
        more = f" and {len(scores) - 6} more" if len(scores) > 6 else ""
        steps, frames = (sum(task.get(name, 0) for task in tasks) for name in ("agent_steps", "frames"))
        length, energy = (row.get(name, math.nan) for name in ("path_length", "energy"))
        speed = row.get("agent_steps_per_second")
        table.add_row(
            str(row["meta_step"] + 1), f"{length:.2f}", f"{energy:.2f}", f"{steps:,}", f"{frames:,}",
            "–" if speed is None else f"{speed:,.0f}",
            Text(printable(shown + more) or "no episode ended"),
        )  # fmt: skip
    return table
