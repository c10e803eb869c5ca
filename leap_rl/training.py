"""Runs the outer loop: tasks → learning processes → increments → Leap learner → initialization → next tasks."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from leap_rl.backends import open_backend
from leap_rl.backends.backend import Backend
from leap_rl.config import Config
from leap_rl.meta.learner import MetaLearner
from leap_rl.meta.probes import drift_by_layer
from leap_rl.meta.sampling import tasks_at
from leap_rl.meta.schedule import due
from leap_rl.processes import initial_parameters, process_of
from leap_rl.runs.monitoring import Monitor, require_trackers
from leap_rl.runs.quorum import Quorum
from leap_rl.runs.run import RunDirectory, open_run
from leap_rl.runs.run_files import Progress
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.tensors import distance
from leap_rl.types import SHARED, Broadcast, Checkpoint, Fault, MetaStep, Notice


def train_run(
    config: Config,
    until: int | None = None,
    hparams: Mapping[str, Any] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Meta-trains the run in ``run.dir`` as :func:`meta_train` does, on a backend of its own. ``hparams`` are shown as
    such by TensorBoard. ``begin`` is called before anything is written; where the backend cannot start, nothing is."""
    require_trackers(config)
    with contextlib.redirect_stdout(sys.stderr), open_backend(config) as backend:  # Ray prints when an actor dies
        begin()
        with open_run(config) as run, Monitor(config, run, hparams=hparams) as monitor:
            meta_train(config, backend, run, monitor, until)


def meta_train(
    config: Config, backend: Backend, run: RunDirectory, monitor: Monitor, until: int | None = None
) -> Checkpoint:
    """Meta-trains to ``meta.steps``, or ``until`` so many are done, from wherever the run stands. Returns the last
    checkpoint.

    Every meta-step is committed to the run directory before the next one starts from it.
    """
    first = initial_parameters(config, derive_seed(config.run.seed, Purpose.INITIALIZATION))
    checkpoint, progress, ignored = run.latest()
    notes = [*ignored, *run.notes, *run.record_versions(progress.meta_step)]
    if checkpoint is None:
        checkpoint = Checkpoint(0, first, {})
        run.commit(checkpoint, progress)
    run.publish(checkpoint)
    run.forget_metrics(checkpoint)
    monitor.start(checkpoint, progress, notes)

    names = process_of(config).parts(config).training
    begun = run.tasks.names()  # by earlier sessions
    for meta_step in range(checkpoint.meta_step, config.meta.steps if until is None else until):
        started = time.perf_counter()
        tasks = tasks_at(due(config.meta, checkpoint), names, config.meta.batch_size, config.run.seed, config.num_legs)
        given = Broadcast({SHARED: checkpoint.initialization}, version=meta_step)
        learner = partial(MetaLearner, config.meta, checkpoint, config.faults.min_tasks)
        quorum = None if config.faults.quorum is None else Quorum(config, meta_step)
        monitor.begin_meta_step(meta_step, tasks)
        outcome = None
        while outcome is None:  # or the learner was lost in its step: the tasks bring their ledgers to a new one
            for event in backend.run_tasks(tasks, given, learner, quorum):
                if isinstance(event, Fault):
                    monitor.log_fault(event, meta_step)
                elif isinstance(event, Notice):
                    monitor.notice(event)
                else:
                    monitor.log_segment(event)
            outcome = backend.meta_step()
        checkpoint = outcome.checkpoint
        seconds = time.perf_counter() - started
        progress = advance(progress, outcome, seconds)
        drift, layers = distance(checkpoint.initialization, first), drift_by_layer(first, checkpoint.initialization)
        timed = not any(run.tasks.name_of(task.place) in begun for task in tasks)
        monitor.log_meta_step(outcome, progress, drift, layers, seconds, backend.num_workers, timed)
        run.commit(checkpoint, progress)  # after logging: where a run stops in between, resuming drops these rows
        monitor.show_meta_step(outcome, seconds, timed)
    return checkpoint


def advance(progress: Progress, outcome: MetaStep, seconds: float) -> Progress:
    """Returns the run's totals after one more meta-step, which took ``seconds``."""
    return Progress(
        meta_step=outcome.meta_step + 1,
        agent_steps=progress.agent_steps + sum(int(task.statistics["agent_steps"]) for task in outcome.tasks),
        frames=progress.frames + sum(int(task.statistics["frames"]) for task in outcome.tasks),
        seconds=progress.seconds + seconds,
    )
