"""The gradient steps of a run, as its processes begin them: written down, and held up, from outside.

    steps = GradientSteps(folder)
    steps.hold(1, 7)                              # whoever comes to the 8th gradient step of meta-step 1 waits there
    with started(…, extra=steps.environment()):
        …                                         # what is under way stays under way, however fast the machine is
        steps.let_go()
    steps.begun()                                 # who repeats work cannot hide it

Processes find a ``sitecustomize`` in the folder, which wraps ``A2CProcess.update``: it waits while it is held up, then
appends a line (meta-step, slot, gradient step) to a file. The folder must be seen by all of them under the same name.

RLlib takes gradient steps where they cannot be held up: of ``RLlibProcess`` it is the end of each training iteration,
and its number is that of the segment, so that there may be several of one.
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

WRAPPED = {  # module → class, method, and what counts it
    "leap_rl.processes.a2c.process": ("A2CProcess", "update", "num_updates"),
    "leap_rl.processes.gymnasium.process": ("GymnasiumProcess", "update", "num_updates"),
    "leap_rl.processes.rllib.process": ("RLlibProcess", "_keep", "num_segments"),
    "leap_rl.processes.loop": ("TrainingLoop", "_update", "step"),
}
VARIABLE = "LEAP_RL_GRADIENT_STEPS"
LOOK_SECONDS = 0.02  # at whether it is still held up


class GradientSteps:
    """Those of the processes that have :meth:`environment`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sitecustomize.py").write_text(f"{Path(__file__).read_text()}\n\ninstall()\n")
        self._folder = folder

    def environment(self) -> dict[str, str]:
        repository = Path(__file__).parent.parent
        return {VARIABLE: str(self._folder), "PYTHONPATH": f"{self._folder}{os.pathsep}{repository}"}

    def hold(self, meta_step: int, step: int = 0) -> None:
        """Nobody begins this gradient step (counted from 0) of a task of this meta-step, nor a later one, before the
        next call. What was held up before it goes on."""
        aside = self._folder / "held.tmp"
        aside.write_text(f"{meta_step} {step}")
        aside.rename(self._folder / "held")

    def let_go(self) -> None:
        (self._folder / "held").unlink(missing_ok=True)

    def begun(self) -> Counter[tuple[int, ...]]:
        """(meta-step, slot, gradient step) → how often it was begun."""
        return Counter(tuple(map(int, line.split())) for line in (self._folder / "begun").read_text().splitlines())


def install() -> None:
    """Called as Python starts: a module is wrapped once it is imported, and costs nothing where it is not."""
    if VARIABLE in os.environ:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self._seen: set[str] = set()  # where it must not find itself

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in WRAPPED or name in self._seen:
            return None
        self._seen.add(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_wrap(module: Any) -> None:
            execute(module)
            owner, method, count = WRAPPED[name]
            _wrap(getattr(module, owner), method, count, Path(os.environ[VARIABLE]))

        spec.loader.exec_module = execute_and_wrap
        return spec


def _wrap(process_class: Any, name: str, count: str, folder: Path) -> None:
    method = getattr(process_class, name)
    file = os.open(folder / "begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # whole lines, whoever writes

    def when_it_may(self: Any, *arguments: Any) -> Any:
        number = getattr(self, count)
        while _is_held(folder, (self.task.round, number)):
            time.sleep(LOOK_SECONDS)
        os.write(file, f"{self.task.round} {self.task.slot} {number}\n".encode())
        return method(self, *arguments)

    setattr(process_class, name, when_it_may)


def _is_held(folder: Path, step: tuple[int, int]) -> bool:
    try:
        meta_step, first = map(int, (folder / "held").read_text().split())
    except FileNotFoundError:
        return False
    return step >= (meta_step, first)
