"""Finds a learning process by its name: one of ours, one that an installed package registers, or ``module:NAME``.

A package registers its process under the entry point ``leap_rl.processes``. ``module:NAME`` imports a module and takes
from it the record, an instance of ``ProcessType``, of that name; the current folder is searched as well. A name decides
which code is run, so a file that came from elsewhere is refused if it has one that the reader has not given.
"""

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from leap_rl.config import Config
from leap_rl.files.text import one_line
from leap_rl.processes.process_type import INTERFACE, ProcessType
from leap_rl.types import BadInputError

PROCESSES = {
    "a2c": "leap_rl.processes.a2c",
    "classification": "leap_rl.processes.classification",
    "gymnasium": "leap_rl.processes.gymnasium",
    "rllib": "leap_rl.processes.rllib",
}  # name → module, which has the record as PROCESS
GROUP = "leap_rl.processes"
_given: dict[str, ProcessType[Any]] = {}  # by their import paths: what the reader has asked for in this process


def registered() -> dict[str, EntryPoint]:
    """Returns the processes of installed packages: name → entry point."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in PROCESSES}


def process_type(name: str, may_import: bool = True) -> ProcessType[Any]:
    """Returns the record of the process of that name.

    Without ``may_import`` an import path is refused, unless it has been used in this process before. Raises
    BadInputError, one line, where there is no such process, or where it is none.
    """
    if name in PROCESSES:
        return _ours(name)
    if ":" in name:
        if name not in _given and not may_import:
            raise BadInputError(f"process = {name}: names code to import; to allow it, give process={name} yourself")
        if name not in _given:
            _given[name] = _checked(name, load_object("process", name, ProcessType))
        return _given[name]
    others = registered()
    if name not in others:
        allowed = [repr(known) for known in (*PROCESSES, *others)]
        raise BadInputError(
            f"process = {name}: must be {', '.join(allowed[:-1])} or {allowed[-1]}, or name your own as module:NAME"
        )
    try:
        record = others[name].load()
    except Exception as error:
        raise BadInputError(f"process = {name}: {others[name].value} cannot be imported: {one_line(error)}") from None
    return _checked(name, record)


def import_named_process(overrides: Sequence[str]) -> None:
    """Imports the process that a reader names with ``process=module:NAME``, so that files may name it too."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key.strip() == "process":
            process_type(value.strip())


@cache
def _ours(name: str) -> ProcessType[Any]:
    record: ProcessType[Any] = import_module(PROCESSES[name]).PROCESS
    return record


def search_here() -> None:
    """Makes modules of the current folder importable, as a reader's own are. Workers get the driver's path."""
    if os.getcwd() not in sys.path:  # last, so that nothing there hides another module
        sys.path.append(os.getcwd())


def load_object(key: str, path: str, kind: type[object] = object) -> Any:
    """Imports ``module:NAME``. Raises BadInputError, which names the ``key`` that has the path, where there is no such
    thing, and then names those of the ``kind`` that the module has."""
    module, _, attribute = path.partition(":")
    search_here()
    try:
        found = import_module(module)
    except Exception as error:
        raise BadInputError(f"{key} = {path}: {module} cannot be imported: {one_line(error)}") from None
    if not hasattr(found, attribute):
        others = [name for name, value in vars(found).items() if kind is not object and isinstance(value, kind)]
        hint = f"; it has {', '.join(others)}" if others else ""
        raise BadInputError(f"{key} = {path}: {module} has no {attribute or 'name after the colon'}{hint}")
    return getattr(found, attribute)


def _checked(name: str, record: Any) -> ProcessType[Any]:
    if isinstance(record, type) and issubclass(record, ProcessType):
        raise BadInputError(f"process = {name}: is a class; it must be an instance, e.g. PROCESS = {record.__name__}()")
    if not isinstance(record, ProcessType):
        kind = type(record).__name__
        raise BadInputError(f"process = {name}: is a {kind}; it must be an instance of leap_rl.processes.ProcessType")
    if record.interface != INTERFACE:
        raise BadInputError(
            f"process = {name}: was written for version {record.interface} of the interface; this leap_rl has version "
            f"{INTERFACE}"
        )
    if {"agent_steps", "frames"} & set(record.measures.counts):
        raise BadInputError(
            f"process = {name}: measures.counts must be statistics of their own, not agent_steps or frames"
        )
    config = getattr(record, "config", None)
    if not (isinstance(config, type) and issubclass(config, Config)):
        raise BadInputError(f"process = {name}: its config must be a subclass of leap_rl.config.Config")
    return record
