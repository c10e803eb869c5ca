"""Saves unfinished tasks at the end of each segment, so that any worker can take them up.

    tasks/000003-05/000007.safetensors    task of round 3, slot 5, after its first 7 segments

A file holds the task's ledger (the sum of its increments, and a report for each), the residual of compression, and,
until the task is done, the state of its learning process. After that it holds no state, except for a task whose last
weights are kept. Only the newest file of a task is kept, and none after its meta-step is committed.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass

from leap_rl.files.interface import Storage
from leap_rl.files.tensor_files import below, dump_tensors, load_tensors
from leap_rl.meta.ledger import Ledger
from leap_rl.runs.formats import FORMAT_VERSION
from leap_rl.types import BadInputError, Place, Task, Tensors

TASKS = "tasks"
MAX_LOOKS, LOOK_SECONDS = 20, 0.25  # a folder that changes while it is read is read again


@dataclass(frozen=True)
class SavedTask:
    """Holds everything that a task needs to go on between two segments."""

    ledger: Ledger
    state: Tensors  # the learning process's; after the task's end its last weights, if it keeps them
    residual: Tensors  # the part of the increments that compression has kept back


class TaskStore:
    """Saves and loads the tasks of a run directory."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def save(self, saved: SavedTask) -> None:
        """Saves a task durably, and removes its older files."""
        ledger = saved.ledger
        folder, name = _folder(ledger.task.place), f"{ledger.next_sequence:06d}.safetensors"
        groups = {"state": saved.state, "total": ledger.total, "residual": saved.residual}
        tensors = {f"{group}/{key}": value for group, values in groups.items() for key, value in values.items()}
        older = [other for other in self._storage.names(folder) if other < name]
        self._storage.write(f"{folder}/{name}", dump_tensors(tensors, {**FORMAT_VERSION, "ledger": ledger.header()}))
        for other in older:
            self._storage.remove(f"{folder}/{other}")

    def load(self, task: Task) -> SavedTask | None:
        """Returns the newest state of the task that can be read, or None."""
        for _ in range(MAX_LOOKS):
            try:
                return self._newest(task)
            except FileNotFoundError:  # another attempt has just replaced it, or NFS still lists what is gone
                time.sleep(LOOK_SECONDS)
        return None

    def _newest(self, task: Task) -> SavedTask | None:
        folder = _folder(task.place)
        for name in reversed(self._storage.names(folder)):
            where = f"{folder}/{name}"
            try:
                tensors, metadata = load_tensors(self._storage.read(where), where)
                ledger = Ledger.from_header(metadata["ledger"], below(tensors, "total/"))
            except (BadInputError, KeyError):
                continue  # damaged: use the file before, or start from the beginning
            if ledger.task == task:
                return SavedTask(ledger, below(tensors, "state/"), below(tensors, "residual/"))
        return None

    def forget_all_but(self, places: Collection[Place]) -> None:
        """Removes every task that is not at one of ``places``."""
        for name in self.names() - {self.name_of(place) for place in places}:
            self._storage.remove(f"{TASKS}/{name}")

    def names(self) -> set[str]:
        """Returns the names of the saved tasks."""
        return set(self._storage.names(TASKS))

    @staticmethod
    def name_of(place: Place) -> str:
        """Returns the name of the task at a place: "000003-05"."""
        return f"{place[0]:06d}-{place[1]:02d}"


def _folder(place: Place) -> str:
    return f"{TASKS}/{TaskStore.name_of(place)}"
