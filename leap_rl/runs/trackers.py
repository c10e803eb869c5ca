"""Feeds experiment trackers, such as W&B and MLflow, with rows of metrics.jsonl once a checkpoint has averaged them.

Rows that are not committed may be taken back and logged again, after a kill; a tracker forgets nothing. So it is given
committed rows only, always in the same order, and the run directory keeps how many it has been given, under which id.
"""

from abc import abstractmethod
from collections.abc import Sequence

from leap_rl.config import Config
from leap_rl.files.schemas import Count, FileSchema
from leap_rl.processes import process_of
from leap_rl.runs.metrics import Chart, charts_of
from leap_rl.runs.run import RunDirectory
from leap_rl.runs.sink import Sink
from leap_rl.types import Checkpoint, Place


class Position(FileSchema):
    """Describes the content of wandb.json and mlflow.json: what a tracker has been given of a run."""

    id: str  # of the run in the tracker
    rows: Count  # number of rows that it has been given
    meta_step: Count  # of the checkpoint that averaged the last of them
    unfinished: list[Place]  # tasks that this checkpoint left for later ones


class Tracker(Sink):
    """Serves as the base of sinks that are fed with committed rows. ``file`` of the run directory has its Position."""

    file: str

    def __init__(self, config: Config, run: RunDirectory) -> None:
        self._config, self._run = config, run
        self._measures = process_of(config).measures
        self._given: Position | None = None

    @abstractmethod
    def open(self, known: str | None) -> str:
        """Opens the run whose id is ``known`` in the tracker, or makes one. Returns its id."""

    @abstractmethod
    def send(self, charts: Sequence[Chart], first_row: int) -> None:
        """Sends what there is new, a chart's points of one row each; ``first_row`` is the number of the first."""

    def committed(self, checkpoint: Checkpoint) -> None:
        """Sends the rows that ``checkpoint`` has averaged and that were not sent yet."""
        if self._given is None:
            before = self._run.read_json(self.file, Position)
            name = self.open(before.id if before else None)
            self._given = before or Position(id=name, rows=0, meta_step=0, unfinished=[])
            if before is None:  # at once: a run that is killed before its first commit has the same id then
                self._run.write_json(self.file, self._given)
        given = self._given
        after = Checkpoint(given.meta_step, {}, {}, tuple(given.unfinished))
        rows = self._run.committed_rows(checkpoint, after)
        charts = [charts_of(row, self._measures, self._config.task_steps) for row in rows]
        if charts:
            self.send(charts, given.rows)
        self._given = Position(
            id=given.id, rows=given.rows + len(rows), meta_step=checkpoint.meta_step,
            unfinished=list(checkpoint.unfinished),
        )  # fmt: skip
        self._run.write_json(self.file, self._given)
