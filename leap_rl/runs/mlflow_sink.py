"""Shows a run in MLflow."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leap_rl.config import flatten
from leap_rl.runs.metrics import Chart
from leap_rl.runs.trackers import Tracker


class MlflowSink(Tracker):
    """Sends committed rows to the tracking URI ``log.mlflow``, in the experiment $MLFLOW_EXPERIMENT_NAME or leap_rl."""

    name = "MLflow"
    file = "mlflow.json"
    _client: Any = None
    _run_id = ""
    _resumed = False  # and nothing sent since

    def open(self, known: str | None) -> str:
        """Opens the run whose id is ``known``, or makes one. Returns its id."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = client = MlflowClient(tracking_uri=self._config.log.mlflow)
        if known:
            client.update_run(known, status="RUNNING")
            self._run_id, self._resumed = known, True
            return known
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "leap_rl")
        found = client.get_experiment_by_name(experiment)
        made = client.create_run(
            found.experiment_id if found else client.create_experiment(experiment), run_name=Path(self._run.url).name
        )
        self._run_id = str(made.info.run_id)
        parameters = [Param(key, str(value)) for key, value in flatten(self._config.model_dump())]
        for first in range(0, len(parameters), 100):  # a request takes no more
            client.log_batch(self._run_id, params=parameters[first : first + 100])
        return self._run_id

    def send(self, charts: Sequence[Chart], first_row: int) -> None:
        """Sends each row's numbers at its step on its axis. What was sent before this session's first row, and not
        written down because the driver was killed, is not sent twice."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, value, now, chart.step) for chart in charts for name, value in chart.values.items()]
        if self._resumed:
            known = {name: self._steps(name) for name in {name for chart in charts for name in chart.values}}
            points = [point for point in points if point.step not in known[point.key]]
            self._resumed = False
        for first in range(0, len(points), 1000):
            self._client.log_batch(self._run_id, metrics=points[first : first + 1000])

    def _steps(self, name: str) -> set[int]:
        """Returns the steps at which the run has a number."""
        return {point.step for point in self._client.get_metric_history(self._run_id, name)}

    def close(self) -> None:
        """Ends this session of the run."""
        if self._client is not None:
            done = self._given is not None and self._given.meta_step == self._config.meta.steps
            self._client.set_terminated(self._run_id, "FINISHED" if done else "KILLED")
