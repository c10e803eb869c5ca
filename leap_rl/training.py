"""The outer loop: tasks → learning processes → increments → Leap learner → initialization → next tasks."""

import time

from leap_rl.backends import Backend
from leap_rl.config import Config
from leap_rl.learner import Checkpoint, MetaStep, distance, due
from leap_rl.monitoring import Monitor
from leap_rl.probes import drift_by_layer
from leap_rl.processes import initial_parameters
from leap_rl.run import Progress, RunDirectory
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.tasks import tasks_at
from leap_rl.types import Fault, Notice


def meta_train(config: Config, backend: Backend, run: RunDirectory, monitor: Monitor) -> Checkpoint:
    """Meta-trains to ``meta.steps``, from wherever the run directory is. Returns the last checkpoint.

    Every meta-step is committed to the run directory before the next one starts from it.
    """
    first = initial_parameters(config, derive_seed(config.run.seed, Purpose.INITIALIZATION))
    checkpoint, progress, ignored = run.latest()
    if checkpoint is None:
        checkpoint = Checkpoint(0, first, {})
        run.commit(checkpoint, progress)
    run.publish(checkpoint)
    run.forget_metrics(checkpoint)
    monitor.start(checkpoint, progress, ignored)

    for meta_step in range(checkpoint.meta_step, config.meta.steps):
        started = time.perf_counter()
        tasks = tasks_at(config, due(config.meta, checkpoint))
        monitor.begin_meta_step(meta_step, tasks)
        outcome = None
        while outcome is None:
            for event in backend.run_tasks(tasks, checkpoint):
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
        monitor.log_meta_step(outcome, progress, drift, layers, seconds, backend.num_workers)
        run.commit(checkpoint, progress)  # after logging: what is logged twice is dropped on a resume
    return checkpoint


def advance(progress: Progress, outcome: MetaStep, seconds: float) -> Progress:
    """The run's totals after one more meta-step that took ``seconds``."""
    return Progress(
        meta_step=outcome.meta_step + 1,
        agent_steps=progress.agent_steps + sum(int(task.statistics["agent_steps"]) for task in outcome.tasks),
        frames=progress.frames + sum(int(task.statistics["frames"]) for task in outcome.tasks),
        seconds=progress.seconds + seconds,
    )
