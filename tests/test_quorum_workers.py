"""Workers that are still at a task which an earlier meta-step has left out: whatever becomes of them, nobody waits."""

import json
from pathlib import Path

import pytest

from benchmarks.driver import SEGMENTS, Simulation, Worker, simulated
from leap_rl.processes import initial_parameters, start_process
from leap_rl.runs.monitoring import Monitor
from leap_rl.runs.quorum import FILE
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import read_metrics
from leap_rl.training import meta_train
from leap_rl.types import StorageError, Task, TaskError
from tests.cli_helpers import make_config

KEYS = {"backend": "ray", "workers.count": 3, "faults.quorum": 2, "faults.grace_seconds": 0.0, "meta.steps": 4,
        "log.segments": False}  # fmt: skip


class Slow(Worker):
    """Takes so long for a segment that it is still at its first task in the third meta-step; then something happens."""

    end = None  # what the task raises at its second segment

    def __init__(self, simulation, number):
        super().__init__(simulation, number)
        self.seconds *= 2.5 * SEGMENTS

    def run_task(self, task, given, attempt, learner):
        walk = super().run_task(task, given, attempt, learner)
        yield next(walk)
        if self.end:
            raise self.end
        yield from walk


class OneIsSlow(Simulation):
    """Its first worker is slow; ``assigned`` has the places of all tasks that were given out, in turn."""

    def __init__(self, increment, end):
        super().__init__(increment, num_workers=10**9)  # so that none is killed
        self.end, self.assigned = end, []

    def remote(self, kind):
        made = super().remote(kind)

        def make(*arguments):
            actor = made.options().remote(*arguments)
            if len(self._workers) == 1 and kind.__name__ == "Worker" and isinstance(actor._behind, Worker):
                actor._behind = Slow(self, 0)
                actor._behind.end = self.end
            return actor

        return type("Made", (), {"options": staticmethod(lambda **_: type("M", (), {"remote": staticmethod(make)}))})

    def call(self, actor, method, arguments):
        if method.__name__ == "run_task":
            self.assigned.append(arguments[0].place)
        return super().call(actor, method, arguments)


@pytest.mark.parametrize("end", [None, TaskError("its worker is broken"), StorageError("its files are gone")])
def test_a_late_task_is_not_given_out_again(tmp_path, end):
    config = make_config(tmp_path, KEYS)
    task = Task(0, 0, "pong", seed=0)
    increment = next(iter(start_process(config, task, initial_parameters(config, seed=0)).walk()))
    simulation = OneIsSlow(increment, end)
    with simulated(config, simulation) as backend, open_run(config) as run, Monitor(config, run) as monitor:
        assert meta_train(config, backend, run, monitor).meta_step == 4
    slots = json.loads(Path(run.url, FILE).read_text())["slots"]
    late = {(int(meta_step), slot) for meta_step, of_step in slots.items() for slot in of_step}
    assert len(late & {(0, slot) for slot in range(3)}) == 1
    assert len(simulation.assigned) == len(set(simulation.assigned)), "no task was given out twice"
    rows = read_metrics(run.url)
    assert late.isdisjoint({(row["meta_step"], row["slot"]) for row in rows if row["kind"] == "task"})
    texts = [row["text"] for row in rows if row["kind"] == "fault"]
    assert len(texts) == len(late), texts
