"""Turns what happens in a run into numbers (metrics.py), and hands them to the sinks.

metrics.jsonl belongs to the run: if it cannot be written, the run stops. Event files, pictures and the terminal only
show the run: if one of them fails, a line says so once, and the run continues without it.
"""

import importlib.util
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TextIO

from leap_rl.config import Config
from leap_rl.extras import explain, require_extra
from leap_rl.files.yaml_files import dump_yaml
from leap_rl.meta.probes import mean_cosine
from leap_rl.meta.schedule import due
from leap_rl.processes import process_of
from leap_rl.runs.event_sink import EventSink
from leap_rl.runs.metrics import (
    META,
    Point,
    fault_row,
    meta_step_points,
    meta_step_row,
    meta_step_scalars,
    task_points,
    task_row,
)
from leap_rl.runs.mlflow_sink import MlflowSink
from leap_rl.runs.run import RunDirectory
from leap_rl.runs.run_files import Progress, package_versions
from leap_rl.runs.sink import Sink
from leap_rl.runs.terminal import Terminal
from leap_rl.runs.trackers import Tracker
from leap_rl.runs.wandb_sink import WandbSink
from leap_rl.types import Checkpoint, Fault, MetaStep, Notice, Task, TaskReport

PICTURE_SECONDS = 30.0  # time between pictures at least: one may take longer to draw than a small meta-step to train


def about(config: Config) -> dict[str, str]:
    """Returns what there is to read about a run, in Markdown: how it was started, its configuration, and versions."""
    return {
        "command": f"    {shlex.join(['leap-rl', *sys.argv[1:]])}",
        "configuration": "\n".join(f"    {line}" for line in dump_yaml(config.model_dump()).splitlines()),
        "versions": "\n".join(f"* {name} {number}" for name, number in package_versions().items()),
    }


class RowSink(Sink):
    """Writes metrics.jsonl."""

    name = "metrics.jsonl"
    needed = True

    def __init__(self, run: RunDirectory) -> None:
        self._run = run

    def log(self, rows: Sequence[dict[str, Any]], points: Sequence[Point]) -> None:
        self._run.append_metrics(rows)


# Key of the section ``log``, which is also the name of the extra → sink.
TRACKERS: dict[str, type[Tracker]] = {"wandb": WandbSink, "mlflow": MlflowSink}


def require_trackers(config: Config) -> None:
    """Raises BadInputError, one line, where a package of a tracker that the section ``log`` names is not installed."""
    for key in TRACKERS:
        named = getattr(config.log, key)
        if named is not None:
            require_extra(key, f"log.{key} = {named}")


def trackers(config: Config, run: RunDirectory) -> list[Sink]:
    """Returns the sinks for the experiment trackers that the section ``log`` names."""
    return [sink(config, run) for key, sink in TRACKERS.items() if getattr(config.log, key) is not None]


class Monitor:
    """Logs and shows a run. It must be used in a ``with`` statement, which draws the last meta-step and closes the
    sinks."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        stream: TextIO | None = None,
        hparams: Mapping[str, Any] | None = None,
    ) -> None:
        self._config, self._url = config, run.url
        self._measures = process_of(config).measures
        self._sinks: list[Sink] = [
            RowSink(run),
            EventSink(f"{run.url}/tensorboard", lambda: run.tensorboard, self._first_step, self._measures, hparams),
            Terminal(self._measures, config.task_updates * config.update_steps, stream),
            *trackers(config, run),
            # a new sink goes here
        ]
        self._failed: set[str] = set()  # names of what has failed, and is left out
        self._first_meta_step = 0  # the first one of this session
        self._first_drawn = 0  # the meta-step for which the oldest pending task was drawn
        self._faults = 0  # counted since the last meta-step
        self._last_picture = time.monotonic()  # or when the session began
        self._undrawn: MetaStep | None = None  # the latest one, if there is no picture of it

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        if error is None:
            self._draw()
        self._each(lambda sink: sink.close())

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in self._sinks:
            if sink.needed:
                call(sink)
            else:
                self._attempt(sink.name, partial(call, sink))

    def _attempt(self, name: str, call: Callable[[], None]) -> None:
        """Makes a call, unless one under that ``name`` has failed before. If it fails, prints a line that says so."""
        if name in self._failed:
            return
        try:
            call()
        except Exception as error:
            self._failed.add(name)
            missing = explain(error) if isinstance(error, ModuleNotFoundError) else ""
            reason = missing or " ".join(str(error).split()) or type(error).__name__
            self._say(f"{name}: {reason}; left out from here on, the run continues", "yellow")

    def _say(self, text: str, style: str = "") -> None:
        self._each(lambda sink: sink.say(text, style))

    def _log(self, rows: Sequence[dict[str, Any]], points: Sequence[Point] = ()) -> None:
        self._each(lambda sink: sink.log(rows, points))

    def _first_step(self, series: str) -> int:
        """Returns the first step that this session logs in a series; what an interrupted session logged from there on
        is void. Tasks are rounded up to whole updates; points of committed tasks lie below their step."""
        if series == META:
            return self._first_meta_step
        return self._first_drawn * self._config.task_steps + self._config.update_steps

    def start(self, checkpoint: Checkpoint, progress: Progress, notes: Sequence[str]) -> None:
        """Prints where the run begins, after the lines of ``notes`` about the state that it continues from."""
        self._first_meta_step = checkpoint.meta_step
        self._first_drawn = min((drawn for drawn, _ in due(self._config.meta, checkpoint)), default=0)
        self._each(lambda sink: sink.about(about(self._config)))
        for line in notes:
            self._say(line, "yellow")
        steps = self._config.meta.steps
        if progress.meta_step or notes:
            self._say(f"{self._url}: resuming at meta-step {checkpoint.meta_step + 1} of {steps}")
        else:
            self._say(f"{self._url}: a run of {steps} meta-steps")
        self._each(lambda sink: sink.committed(checkpoint))

    def begin_meta_step(self, meta_step: int, tasks: Sequence[Task]) -> None:
        """Shows which tasks run."""
        title = f"meta-step {meta_step + 1}/{self._config.meta.steps}"
        self._each(lambda sink: sink.begin(title, tasks))

    def log_segment(self, report: TaskReport) -> None:
        """Logs and shows one more segment of a task."""
        kinds = [*(["segment"] if self._config.log.segments else []), *(["task"] if report.done else [])]
        rows = [task_row(kind, report, self._measures) for kind in kinds]
        self._log(rows, list(task_points(report, self._measures, self._config.task_steps)))
        self._each(lambda sink: sink.progress(report))

    def log_fault(self, fault: Fault, meta_step: int) -> None:
        """Logs and prints a fault that was dealt with."""
        self._faults += 1
        self._say(fault.text, "yellow")
        self._log([fault_row(fault, meta_step)])

    def notice(self, notice: Notice) -> None:
        """Prints why nothing happens at the moment."""
        self._say(notice.text, "yellow")

    def log_meta_step(
        self,
        outcome: MetaStep,
        progress: Progress,
        drift: float,
        layers: Mapping[str, float],
        seconds: float,
        num_workers: int,
        timed: bool = True,
    ) -> None:
        """Logs a meta-step. ``progress`` has the run's totals, this meta-step included; ``drift`` and ``layers`` are
        the initialization's distance from the first one, in total and by layer. It is not ``timed`` where an earlier
        session has trained a part of it, which is not in its ``seconds``."""
        scalars = meta_step_scalars(outcome, progress, self._config, drift, seconds, num_workers, self._faults, timed)
        self._faults = 0
        points = list(meta_step_points(outcome, scalars, layers, self._measures))
        self._log([meta_step_row(outcome, scalars, layers)], points)

    def show_meta_step(self, outcome: MetaStep, seconds: float, timed: bool = True) -> None:
        """Prints the result of a meta-step, and draws it, unless this was done a moment ago. Must be called after its
        commit. ``timed`` is as in :meth:`log_meta_step`."""
        self._each(lambda sink: sink.committed(outcome.checkpoint))
        if mean_cosine(outcome.cosines) is not None and importlib.util.find_spec("matplotlib") is not None:
            self._undrawn = outcome
            if time.monotonic() - self._last_picture > PICTURE_SECONDS:
                self._draw()
        agent_steps = sum(task.statistics["agent_steps"] for task in outcome.tasks)
        speed = f"{agent_steps / seconds:,.0f} {self._measures.step}/s, " if timed else ""
        self._say(
            f"meta-step {outcome.meta_step + 1}/{self._config.meta.steps}: "
            f"path length {outcome.path_length:.2f}, energy {outcome.energy:.3g}, "
            f"{speed}{seconds:.0f} s",
            "bold",
        )

    def _draw(self) -> None:
        """Draws the latest meta-step, if it is not drawn yet."""
        outcome, self._undrawn, self._last_picture = self._undrawn, None, time.monotonic()
        if outcome is not None:
            self._attempt("the heat map", partial(self._draw_cosines, outcome))

    def _draw_cosines(self, outcome: MetaStep) -> None:
        """Draws a heat map of the cosines. Needs matplotlib, which is an extra."""
        from leap_rl.runs.figures import heat_maps, render_png

        png = render_png(heat_maps({f"meta-step {outcome.meta_step}": outcome.cosines}))
        self._each(lambda sink: sink.picture("meta/increment_cosines", png, outcome.meta_step))
