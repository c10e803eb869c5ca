"""Trains what a plan lists, in a directory that can be taken up again, and collects what came of it.

    evaluation.json           the plan: arms with their fingerprints, games, number of seeds
    config.yaml               how every task trains
    tasks/                    every task, under way or done (task_store.py): what a second call goes on from
    curves.csv, probes.json   what they came to (results.py)
    tensorboard/, report.md   and the figures

Tasks run on the backends of meta-training. An evaluation is to them a run after its last meta-step, with tasks
that are not finished: they are trained, and no step is taken.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from leap_rl.backends import Backend
from leap_rl.evaluation.plan import Plan, differences
from leap_rl.learner import Checkpoint
from leap_rl.ledger import TaskReport
from leap_rl.measures import MEASURES, Measures
from leap_rl.run import CONFIG, open_run
from leap_rl.storage import Storage, open_storage
from leap_rl.task_store import TaskStore
from leap_rl.types import BadInputError, Fault, Notice, Task

EVALUATION = "evaluation.json"


def check_directory(plan: Plan) -> bool:
    """Whether the directory holds this evaluation already. Writes nothing.

    Raises BadInputError where it holds another one, or something else.
    """
    url = plan.config.run.dir
    storage = open_storage(url)
    names = storage.names()
    if EVALUATION not in names:
        if CONFIG in names:
            raise BadInputError(f"--out {url}: holds a run; choose another directory")
        return False
    differing = differences(read_description(storage), plan.describe())
    if differing:
        raise BadInputError(
            f"--out {url}: holds another evaluation: {'; '.join(differing)}; choose another directory, or the same"
        )
    return True


def read_description(storage: Storage) -> dict[str, object]:
    """The content of evaluation.json. Raises BadInputError where there is none."""
    try:
        description = json.loads(storage.read(EVALUATION))
    except FileNotFoundError:
        raise BadInputError(f"{storage.url}: not an evaluation: it has no {EVALUATION}") from None
    except ValueError:
        description = None
    if not isinstance(description, dict) or description.get("format") != "leap_rl evaluation":
        raise BadInputError(f"{storage.url}/{EVALUATION}: not the description of an evaluation")
    return description


@contextmanager
def open_directory(plan: Plan) -> Iterator[Storage]:
    """The directory, made where it does not exist, and locked. Raises BadInputError where it cannot be used."""
    with open_run(plan.config):  # the checks, the lock and config.yaml of a run directory
        storage = open_storage(plan.config.run.dir)
        storage.write(EVALUATION, (json.dumps(plan.describe(), indent=1) + "\n").encode())
        yield storage


def run_evaluation(plan: Plan, backend: Backend, storage: Storage, stream: TextIO = sys.stderr) -> None:
    """Trains every task that is not done, and says on ``stream`` how far it is."""
    tasks, store = plan.tasks(), TaskStore(storage)
    pending = [task for task in tasks if not is_done(store, task)]
    print(f"{storage.url}: {len(tasks)} tasks, {len(tasks) - len(pending)} of them done", file=stream)
    checkpoint = Checkpoint(
        plan.config.meta.steps, plan.initializations(), {}, unfinished=tuple(task.place for task in pending)
    )
    num_done = len(tasks) - len(pending)
    for event in backend.run_tasks(pending, checkpoint):
        if isinstance(event, Fault | Notice):
            print(f"  {event.text}", file=stream)
        elif event.done:
            num_done += 1
            print(f"  {num_done}/{len(tasks)} {_line(event, MEASURES[plan.config.process])}", file=stream)


def is_done(store: TaskStore, task: Task) -> bool:
    saved = store.load(task)
    return saved is not None and saved.ledger.done


def _line(report: TaskReport, measures: Measures) -> str:
    task, statistics = report.task, report.statistics
    score = measures.score_of(statistics)
    shown = "no episode ended" if score is None else f"mean {measures.score_text} {score:.{measures.digits}f}"
    return f"{task.name}, seed {task.meta_step}, {task.arm}: {statistics['agent_steps']:,.0f} {measures.step}, {shown}"
