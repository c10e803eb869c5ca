"""What a sink of a run's numbers is: TensorBoard, the terminal, metrics.jsonl, or one more."""

from collections.abc import Mapping, Sequence
from typing import Any

from leap_rl.runs.metrics import Point
from leap_rl.types import Checkpoint, Task, TaskReport


class Sink:
    """Shows or keeps what happens in a run. A subclass defines the methods that it has a use for.

    Whatever one raises is said once, and the run continues without it, unless the sink is ``needed``.
    """

    name: str  # in the line that says that it has failed
    needed: bool = False  # the run stops where it fails

    def about(self, texts: Mapping[str, str]) -> None:
        """The run begins, or continues. There are texts about it, in Markdown, by name."""

    def begin(self, title: str, tasks: Sequence[Task]) -> None:
        """A meta-step begins, with these tasks."""

    def progress(self, report: TaskReport) -> None:
        """A task has one segment more."""

    def log(self, rows: Sequence[dict[str, Any]], points: Sequence[Point]) -> None:
        """There are new numbers: the same as rows of metrics.jsonl and as points of charts (metrics.py)."""

    def committed(self, checkpoint: Checkpoint) -> None:
        """The run has reached ``checkpoint``, or continues from it: the rows that it has averaged stay as they are."""

    def picture(self, name: str, png: bytes, meta_step: int) -> None:
        """There is a picture of a meta-step."""

    def say(self, text: str, style: str = "") -> None:
        """There is a line for whoever watches."""

    def close(self) -> None:
        """The run ends, or is interrupted."""
