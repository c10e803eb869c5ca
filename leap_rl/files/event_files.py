"""Writes TensorBoard's event files in the caller's thread, so that errors are raised where they can be handled.

TensorBoard's own writers import boto3, absl and more, which takes longer than all that a tiny run writes.
"""

import itertools
import json
import os
import re
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.text import metadata as texts

_PREFIX = "events.out.tfevents."
_COUNT = itertools.count()  # orders the files that one process creates in the same second, as names are


class EventFile:
    """Writes one TensorBoard run in ``folder``. TensorBoard hides what earlier files have from ``purge_step`` on."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{_PREFIX}{_later_second(folder):010d}.{socket.gethostname()}.{os.getpid()}.{next(_COUNT):06d}"
        self._file = (folder / name).open("ab", buffering=0)
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
        self._add_string(name, markdown.encode(), texts.create_summary_metadata(display_name=None, description=None))

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
        metadata = custom_scalars.create_summary_metadata()
        self._add_string(custom_scalars.CONFIG_SUMMARY_TAG, content.SerializeToString(), metadata)

    def _add_string(self, name: str, content: bytes, metadata: SummaryMetadata) -> None:
        tensor = TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[content])
        self._add(Event(summary=Summary(value=[Summary.Value(tag=name, metadata=metadata, tensor=tensor)])))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write(_record(event.SerializeToString()))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _record(content: bytes) -> bytes:
    """Returns a record of TensorFlow's TFRecord format: a length and some bytes, a checksum behind each."""
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", _masked_crc(length)) + content + struct.pack("<I", _masked_crc(content))


def _masked_crc(content: bytes) -> int:
    """Returns the CRC-32C (Castagnoli) of the bytes, masked as the format wants it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_of_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_CRC_TABLE = [_crc_of_byte(byte) for byte in range(256)]


def _later_second(folder: Path) -> int:
    """Returns the time for a new file's name: a second that no file of the folder has reached. TensorBoard reads files
    in the order of their names, and would never show a session whose clock is behind that of the one before."""
    seconds = (path.name.removeprefix(_PREFIX).partition(".")[0] for path in folder.glob(f"{_PREFIX}*"))
    return max([int(time.time()), *(int(second) + 1 for second in seconds if re.fullmatch("[0-9]{10}", second))])
