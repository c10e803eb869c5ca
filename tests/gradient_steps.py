"""Writes down each gradient step that any process begins: who repeats work cannot hide it.

A run is counted from outside. :func:`counted` gives environment variables for it: its Python processes find a
``sitecustomize`` that wraps ``A2CProcess.update``, and append a line (meta-step, slot, gradient step) to one file.
"""

import importlib.abc
import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

MODULE = "leap_rl.processes.a2c.process"
VARIABLE = "LEAP_RL_STEP_COUNTER"


def counted(folder: Path) -> dict[str, str]:
    """Environment variables with which a run counts its steps in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text("from tests.step_counter import install\n\ninstall()\n")
    repository = Path(__file__).parent.parent
    return {VARIABLE: str(folder / "steps"), "PYTHONPATH": f"{folder}{os.pathsep}{repository}"}


def steps_begun(folder: Path) -> Counter[tuple[int, ...]]:
    """(meta-step, slot, gradient step) → how often it was begun."""
    return Counter(tuple(map(int, line.split())) for line in (folder / "steps").read_text().splitlines())


def install() -> None:
    """Called as Python starts: the module is wrapped once it is imported, and costs nothing where it is not."""
    if VARIABLE in os.environ:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_wrap(module: Any) -> None:
            execute(module)
            _count(module.A2CProcess)

        spec.loader.exec_module = execute_and_wrap
        return spec


def _count(process_class: Any) -> None:
    update = process_class.update
    file = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # whole lines, whoever writes

    def update_and_count(self: Any) -> Any:
        os.write(file, f"{self.task.meta_step} {self.task.slot} {self.num_updates}\n".encode())
        return update(self)

    process_class.update = update_and_count
