"""Writes TensorBoard's event files in the caller's thread, so that errors are raised where they can be handled."""

import itertools
import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

_PREFIX = "events.out.tfevents."
_COUNT = itertools.count()  # orders the files that one process creates in the same second, as names are


class EventFile:
    """Writes one TensorBoard run in ``folder``. TensorBoard hides what earlier files have from ``purge_step`` on."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{_PREFIX}{_later_second(folder):010d}.{socket.gethostname()}.{os.getpid()}.{next(_COUNT):06d}"
        self._records = RecordWriter((folder / name).open("ab", buffering=0))
        self._add(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._add(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point to a chart."""
        self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=float(value))])))

    def add_png(self, name: str, png: bytes, step: int = 0) -> None:
        """Adds a picture, whose height and width are read from the PNG's header."""
        width, height = (int.from_bytes(png[start : start + 4]) for start in (16, 20))
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def add_text(self, name: str, markdown: str) -> None:
        """Adds a text, written in Markdown."""
        self._add(Event(summary=text_pb(name, markdown)))

    def add_hparams(self, values: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Adds a row to the tab "HParams": what tells this run from others, and the last points of some charts."""
        from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb

        plain = {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in values.items()}
        name = " ".join(f"{key}={value}" for key, value in plain.items())
        shown = [Metric(metric) for metric in metrics]
        self._add(Event(summary=hparams_config_pb([HParam(key) for key in values], shown)))
        self._add(Event(summary=hparams_pb(plain, trial_id=name)))

    def add_layout(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Adds the tab "Custom Scalars": category → title of a chart → regular expressions for what it shows."""
        content = layout_pb2.Layout(category=[
            layout_pb2.Category(title=category, chart=[
                layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))
                for title, tags in charts.items()
            ])
            for category, charts in layout.items()
        ])  # fmt: skip
        value = Summary.Value(
            tag=custom_scalars.CONFIG_SUMMARY_TAG,
            metadata=custom_scalars.create_summary_metadata(),
            tensor=make_tensor_proto(content.SerializeToString()),
        )
        self._add(Event(summary=Summary(value=[value])))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        """Closes the file."""
        self._records.close()


def _later_second(folder: Path) -> int:
    """Returns the time for a new file's name: a second that no file of the folder has reached. TensorBoard reads files
    in the order of their names, and would never show a session whose clock is behind that of the one before."""
    seconds = (path.name.removeprefix(_PREFIX).partition(".")[0] for path in folder.glob(f"{_PREFIX}*"))
    return max([int(time.time()), *(int(second) + 1 for second in seconds if re.fullmatch("[0-9]{10}", second))])
