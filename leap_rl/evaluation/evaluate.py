"""Trains the tasks of a plan in a directory from which the same command can continue.

    evaluation.json           the plan: arms with their fingerprints, games, number of seeds
    config.yaml               how every task trains
    tasks/                    every task, finished or not (task_store.py), from which a second call continues
    curves.csv, probes.json   the results (results.py)
    tensorboard/, report.md   the report, with figures

Tasks run on the backends of meta-training, durably, with a collector of increments in the place of the Leap learner.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TextIO

from leap_rl.backends.backend import Backend
from leap_rl.config import identity
from leap_rl.evaluation.plan import Plan, differences
from leap_rl.evaluation.schemas import Description
from leap_rl.files.interface import Storage
from leap_rl.files.schemas import parse_json
from leap_rl.files.storage import open_storage
from leap_rl.measures import Measures
from leap_rl.meta.collector import Collector
from leap_rl.processes import process_of, process_type
from leap_rl.runs.admission import differing_keys
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import CONFIG, EVALUATION, read_config, record_versions
from leap_rl.runs.task_store import TaskStore
from leap_rl.types import BadInputError, Broadcast, Fault, Notice, Task, TaskReport

MAX_DESCRIPTION = 64 << 20  # bytes


def check_directory(plan: Plan) -> None:
    """Raises BadInputError if the directory holds another evaluation than this one, or something else. Prints a line if
    it holds this one with fewer seeds, which is extended. Writes no file."""
    url = plan.config.run.dir
    storage = open_storage(url)
    names = storage.names()
    if EVALUATION not in names:
        stopped = names == [CONFIG] and identity(read_config(storage)) == identity(plan.config)
        if CONFIG in names and not stopped:
            raise BadInputError(f"--out {url}: holds a run; choose another directory")
        return
    before, wanted = read_description(storage), plan.describe()
    differing = differences(before, wanted)
    seeds = {"num_seeds": max(before["num_seeds"], plan.num_seeds)}
    extends = bool(differing) and not differences(before | seeds, wanted)  # what is done stays as it is
    others = [] if extends else differing
    if CONFIG in names:
        others += differing_keys(read_config(storage), plan.config)
    if others:
        raise BadInputError(
            f"--out {url}: holds another evaluation: {'; '.join(others)}; choose another directory, or the same"
        )
    if extends:
        print(f"{url}: extended: num_seeds ({before['num_seeds']} → {plan.num_seeds})", file=sys.stderr)


def read_description(storage: Storage) -> dict[str, Any]:
    """Returns the content of evaluation.json. Raises BadInputError if there is none."""
    where = f"{storage.url}/{EVALUATION}"
    try:
        data = storage.read(EVALUATION, MAX_DESCRIPTION)
    except FileNotFoundError:
        raise BadInputError(f"{storage.url}: not an evaluation: it has no {EVALUATION}") from None
    found = parse_json(Description, data, f"{where}: not the description of an evaluation")
    try:
        process_type(found.process, may_import=False)
    except BadInputError as error:
        raise BadInputError(f"{where}: not the description of an evaluation that can be read: {error}") from None
    return found.model_dump()


@contextmanager
def open_directory(plan: Plan) -> Iterator[Storage]:
    """Makes the directory if it does not exist, locks it, and yields it. Raises BadInputError if it cannot be used."""
    with open_run(plan.config):  # the checks, the lock and config.yaml of a run directory
        storage = open_storage(plan.config.run.dir)
        storage.write(EVALUATION, (json.dumps(plan.describe(), indent=1) + "\n").encode())
        yield storage


def stages(plan: Plan) -> list[list[Task]]:
    """Returns the plan's tasks in groups that must be trained one after the other, since tasks of the ceiling start
    where those of the random arm end."""
    tasks = plan.tasks()
    groups = [[task for task in tasks if (task.start.after is None) == first] for first in (True, False)]
    return [group for group in groups if group]


def run_evaluation(
    plan: Plan, tasks: Sequence[Task], backend: Backend, storage: Storage, stream: TextIO | None = None
) -> None:
    """Trains those of ``tasks`` that are not done, and prints the progress to ``stream`` (default: stderr)."""
    stream = stream or sys.stderr
    store = TaskStore(storage)
    done = {task.place for task in plan.tasks() if is_done(store, task)}
    pending = [task for task in tasks if task.place not in done]
    num_done = len(tasks) - len(pending)
    for line in record_versions(storage, 0):
        _say(line, stream)
    _say(f"{storage.url}: {len(tasks)} tasks, {num_done} of them done", stream)
    for task in [task for task in pending if task.start.after is not None and task.start.after.place not in done]:
        pending.remove(task)
        _say(f"  {task}: left out, since the random arm's task failed", stream)
    collector = partial(Collector, [task.place for task in pending])
    for event in backend.run_tasks(pending, Broadcast(plan.initializations()), collector):
        if isinstance(event, Fault | Notice):
            _say(f"  {event.text}", stream)
        elif event.done:
            num_done += 1
            _say(f"  {num_done}/{len(tasks)} {_line(event, process_of(plan.config).measures)}", stream)


def _say(text: str, stream: TextIO) -> None:
    with suppress(OSError):  # a closed terminal must not stop the evaluation
        print(text, file=stream)


def is_done(store: TaskStore, task: Task) -> bool:
    """Returns whether a task is saved as finished."""
    saved = store.load(task)
    return saved is not None and saved.ledger.done


def _line(report: TaskReport, measures: Measures) -> str:
    task, statistics = report.task, report.statistics
    score = measures.score_of(statistics)
    shown = "no episode ended" if score is None else f"mean {measures.score_text} {score:.{measures.digits}f}"
    steps = f"{statistics['agent_steps']:,.0f} {measures.step}"
    return f"{task.name}, seed {task.round}, {task.start.name}: {steps}, {shown}"
