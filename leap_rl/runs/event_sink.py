"""Writes event files for TensorBoard: one run for the meta-steps, and one for each task name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leap_rl.measures import Measures
from leap_rl.runs.metrics import META, Point, layout, plain
from leap_rl.runs.sink import Sink

if TYPE_CHECKING:  # needs TensorBoard, which is an extra
    from leap_rl.files.event_files import EventFile


class EventSink(Sink):
    """Writes event files below ``folder()``, which is called only when the first is written.

    What describes the run is written with its first numbers, so that no task waits until TensorBoard is imported.
    Points of a series from ``first_step`` on, which an interrupted session wrote, are hidden by TensorBoard.
    """

    def __init__(
        self,
        name: str,
        folder: Callable[[], Path],
        first_step: Callable[[str], int],
        measures: Measures,
        hparams: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._folder, self._first_step, self._measures = folder, first_step, measures
        self._hparams = hparams or {}
        self._files: dict[str, EventFile] = {}
        self._texts: Mapping[str, str] | None = None  # which have not been written yet

    def about(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def _describe(self, texts: Mapping[str, str]) -> None:
        self._file(META).add_layout(layout(self._measures))
        for name, text in texts.items():
            self._file(META).add_text(name, text)
        if self._hparams:
            self._file(META).add_hparams(
                self._hparams, ("meta/path_length", "meta/energy", "meta/initialization_drift")
            )

    def log(self, rows: Sequence[dict[str, Any]], points: Sequence[Point]) -> None:
        if self._texts is not None:
            self._describe(self._texts)
            self._texts = None
        for point in points:
            self._file(point.series).add_scalar(point.name, point.value, point.step)

    def picture(self, name: str, png: bytes, meta_step: int) -> None:
        self._file(META).add_png(name, png, meta_step)

    def _file(self, series: str) -> "EventFile":
        if series not in self._files:
            from leap_rl.files.event_files import EventFile

            self._files[series] = EventFile(self._folder() / plain(series), self._first_step(series))
        return self._files[series]

    def close(self) -> None:
        for file in self._files.values():
            file.close()
