"""Everything in this process, one task after the other: for debugging, tests and machines without Ray."""

from collections.abc import Iterator, Sequence
from typing import Any

from leap_rl.config import Config
from leap_rl.learner import Checkpoint, MetaLearner, MetaStep, TaskReport
from leap_rl.processes import run_task
from leap_rl.types import Task, Tensors


class SerialBackend:
    num_workers = 1

    def __init__(self, config: Config) -> None:
        self._config = config

    def __enter__(self) -> "SerialBackend":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def start_learner(self, checkpoint: Checkpoint) -> None:
        self._learner = MetaLearner(self._config.meta, checkpoint)

    def run_tasks(self, tasks: Sequence[Task], initialization: Tensors) -> Iterator[TaskReport]:
        for task in tasks:
            for increment in run_task(self._config, task, initialization):
                report = self._learner.receive(increment)
                if report:
                    yield report

    def meta_step(self) -> MetaStep:
        return self._learner.step()
