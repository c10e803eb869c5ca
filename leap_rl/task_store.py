"""Tasks under way, made durable at the end of each segment, so that any worker can take one up.

    tasks/000003-05/000007.safetensors    task of meta-step 3, slot 5, after its first 7 segments

A file holds the task's ledger (the sum of its increments, and a report for each), what compression has kept
back, and, until the task is done, the state of its learning process. Only the newest file of a task is kept,
and none once its meta-step is committed.
"""

import json
import time
from collections.abc import Collection
from dataclasses import dataclass

from leap_rl.ledger import Ledger
from leap_rl.storage import Storage
from leap_rl.tensor_files import below, dump_tensors, load_tensors
from leap_rl.types import BadInputError, Place, Task, Tensors

TASKS = "tasks"
MAX_LOOKS, LOOK_SECONDS = 20, 0.25  # at a folder that changes


@dataclass(frozen=True)
class SavedTask:
    """One task as it stands between two segments."""

    ledger: Ledger
    state: Tensors  # of the learning process; empty once the task is done
    residual: Tensors  # what compression has kept back


class TaskStore:
    """The saved tasks of a run directory."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def save(self, saved: SavedTask) -> None:
        """Durable on return; then what was saved of the task before is removed."""
        ledger = saved.ledger
        folder, name = _folder(ledger.task.place), f"{ledger.next_sequence:06d}.safetensors"
        groups = {"state": saved.state, "total": ledger.total, "residual": saved.residual}
        tensors = {f"{group}/{key}": value for group, values in groups.items() for key, value in values.items()}
        older = [other for other in self._storage.names(folder) if other < name]
        self._storage.write(f"{folder}/{name}", dump_tensors(tensors, {"ledger": json.dumps(ledger.header())}))
        for other in older:
            self._storage.remove(f"{folder}/{other}")

    def load(self, task: Task) -> SavedTask | None:
        """What was saved last of the task, if anything can be read."""
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
                header = json.loads(metadata["ledger"])
                ledger = Ledger.from_header(header, below(tensors, "total/"))
            except (BadInputError, ValueError, KeyError, TypeError):
                continue  # damaged: the one before, or from the start
            if ledger.task == task:
                return SavedTask(ledger, below(tensors, "state/"), below(tensors, "residual/"))
        return None

    def forget_all_but(self, places: Collection[Place]) -> None:
        """Removes every task that is not at one of ``places``."""
        kept = {_folder(place).rpartition("/")[2] for place in places}
        for name in self._storage.names(TASKS):
            if name not in kept:
                self._storage.remove(f"{TASKS}/{name}")


def _folder(place: Place) -> str:
    return f"{TASKS}/{place[0]:06d}-{place[1]:02d}"
