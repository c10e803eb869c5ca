"""Shows a run in Weights & Biases."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from leap_rl.runs.metrics import Chart
from leap_rl.runs.trackers import Tracker


class WandbSink(Tracker):
    """Sends committed rows to the project ``log.wandb``; all else is set by W&B's own environment variables.

    The number of a row is W&B's step, which cannot go back: a row that it has already is ignored there.
    """

    name = "W&B"
    file = "wandb.json"
    _tracked: Any = None

    def open(self, known: str | None) -> str:
        """Opens the run whose id is ``known``, or makes one. Returns its id."""
        import wandb

        settings = wandb.Settings(
            console="off",
            x_transaction_log_flush_interval=0.1,  # offline: 15 s of numbers would be lost if the run is killed
        )
        run_id = known or uuid4().hex
        self._tracked = wandb.init(
            project=self._config.log.wandb, id=run_id, resume="allow", name=Path(self._run.url).name,
            config=self._config.model_dump(), dir=self._run.folder, settings=settings,
        )  # fmt: skip
        for group, axis in (
            ("meta", "meta_step"), ("task", "meta_step"), ("layer", "meta_step"), (self._measures.task, "agent_steps"),
        ):  # fmt: skip
            self._tracked.define_metric(f"{group}/*", step_metric=axis)
        return run_id

    def send(self, charts: Sequence[Chart], first_row: int) -> None:
        """Sends each row's numbers at the row's number."""
        for number, chart in enumerate(charts, first_row):
            if chart.values:
                self._tracked.log({chart.axis: chart.step, **chart.values}, step=number, commit=True)

    def close(self) -> None:
        """Ends this session of the run."""
        if self._tracked is not None:
            self._tracked.finish()
