"""Defines what a sink is: it receives the numbers of a meta-training run (TensorBoard, the terminal, metrics.jsonl, a
tracker, or one more)."""

from collections.abc import Mapping, Sequence
from typing import Any

from leap_rl.runs.metrics import Point
from leap_rl.types import Checkpoint, Task, TaskReport


class Sink:
    """Shows or keeps what happens in a run. A subclass defines the methods that it has a use for.

    If a sink raises, one line says so and the run continues without it, unless it is ``needed``.
    """

    name: str  # in the line that says that it has failed
    needed: bool = False  # the run stops where it fails

    def about(self, texts: Mapping[str, str]) -> None:
        """The run begins, or continues. ``texts`` describe it, in Markdown, by name."""

    def begin(self, title: str, tasks: Sequence[Task]) -> None:
        """A meta-step begins, with these tasks."""

    def progress(self, report: TaskReport) -> None:
        """A task has one segment more."""

    def log(self, rows: Sequence[dict[str, Any]], points: Sequence[Point]) -> None:
        """New numbers have arrived: the same as rows of metrics.jsonl and as points of charts (metrics.py)."""

    def committed(self, checkpoint: Checkpoint) -> None:
        """The run has reached ``checkpoint``, or continues from it: the rows that it has averaged stay as they are."""

    def picture(self, name: str, png: bytes, meta_step: int) -> None:
        """A picture of a meta-step was drawn."""

    def say(self, text: str, style: str = "") -> None:
        """A line is to be shown to whoever watches."""

    def close(self) -> None:
        """The run ends, or is interrupted."""
