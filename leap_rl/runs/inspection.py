"""Looks at a run directory from outside: what it holds, whether it is finished, and whether a node sees it."""

import sys
from pathlib import Path
from typing import Any

from leap_rl.config import Config, config_hash
from leap_rl.files.storage import LocalStorage, open_storage
from leap_rl.processes import process_of
from leap_rl.runs.admission import check_run
from leap_rl.runs.run import OUTDATED, REPAIRS, RunDirectory, open_run
from leap_rl.runs.run_files import CONFIG, EVALUATION, INITIALIZATION, fingerprint, read_config, versions_of
from leap_rl.types import BadInputError


def describe(url: str | Path) -> dict[str, Any]:
    """Returns what ``leap-rl show`` prints: state, meta-step, fingerprint, configuration. Raises BadInputError."""
    storage = open_storage(str(url))
    if isinstance(storage, LocalStorage) and not storage.path.is_dir():
        raise BadInputError(f"{url}: not a run directory: {'is a file' if storage.path.exists() else 'does not exist'}")
    if CONFIG not in storage.names():
        raise BadInputError(f"{url}: not a run directory: it has no {CONFIG}")
    config = read_config(storage)
    run = RunDirectory(config, storage)
    checkpoint, progress, ignored = run.latest()
    try:
        tensors, metadata = run.published()
    except BadInputError as error:
        repairs = f"; {REPAIRS}" if checkpoint else ""
        raise BadInputError(f"{error}{repairs}") from None
    published = int(metadata.get("meta_step", 0))
    meta_step = max(published, checkpoint.meta_step if checkpoint else 0)
    if checkpoint and (published < meta_step or not tensors):  # a crash or a failed write between the two
        found = f"is of meta-step {published}" if tensors else "is missing"
        ignored.append(f"{url}/{INITIALIZATION}: {found}, {OUTDATED.format(meta_step)}")
    return {
        "run": storage.url,
        "meta_step": meta_step,
        "meta_steps": config.meta.steps,
        "finished": bool(tensors) and published >= config.meta.steps,
        "fingerprint": fingerprint(tensors) if tensors else None,
        "config_hash": config_hash(config),
        "agent_steps": progress.agent_steps,
        "frames": progress.frames,
        "seconds": progress.seconds,
        "parameters": {name: list(value.shape) for name, value in sorted(tensors.items())},
        "versions": versions_of(metadata),
        "ignored": ignored,
        "config": config.model_dump(),
    }


def check_reachable(config: Config, node: str) -> None:
    """Raises BadInputError if this node does not see the run in ``run.dir``."""
    process_of(config)  # the driver's word: now the run's file may name code of the user's as well
    try:
        same = config_hash(read_config(open_storage(config.run.dir))) == config_hash(config)
    except BadInputError:
        same = False
    if not same:
        raise BadInputError(
            f"run.dir = {config.run.dir}: node {node} does not see the run; it must be on storage that every node "
            "reaches under the same name (NFS, or an object store)"
        )


def adopt_precision(config: Config) -> Config:
    """Returns ``config`` with ``precision: auto`` replaced by the precision of the run in ``run.dir``, if there is
    one."""
    storage = open_storage(config.run.dir)
    if config.precision != "auto" or CONFIG not in storage.names():
        return config
    return config.model_copy(update={"precision": read_config(storage).precision})


def is_finished(config: Config) -> bool:
    """Returns whether ``run.dir`` holds this run with all its meta-steps done. Raises BadInputError.

    Writes nothing, unless the work after the last checkpoint failed: then it does that work, and says so.
    """
    storage = open_storage(config.run.dir)
    if EVALUATION in storage.names():
        raise BadInputError(f"run.dir = {storage.url}: holds an evaluation; `leap-rl evaluate` continues it")
    if check_run(storage, config) is None:
        return False
    checkpoint, progress, _ = RunDirectory(config, storage).latest()
    if checkpoint is None or progress.meta_step < config.meta.steps:
        return False
    if not RunDirectory(config, storage).is_settled(checkpoint):
        with open_run(config) as run:
            run.settle(checkpoint)
        print(f"{storage.url}: {INITIALIZATION} is written again, from the last checkpoint", file=sys.stderr)
    return True
