"""Leaves late tasks out of a synchronous meta-step (``faults.quorum``), and keeps which in the run directory, so that a
run that goes on from an earlier checkpoint leaves out the same ones."""

import time
from collections.abc import Callable, Collection

from leap_rl.config import Config
from leap_rl.files.schemas import Count, FileSchema, parse_json
from leap_rl.files.storage import open_storage
from leap_rl.types import BadInputError, Place

FILE = "left_out.json"


class LeftOut(FileSchema):
    """Describes the content of left_out.json."""

    slots: dict[Count, list[Count]]  # meta-step → the slots of its tasks that were late; none where all were in time


class Quorum:
    """Decides once which tasks of a meta-step are late: those that are not done ``faults.grace_seconds`` after
    ``faults.quorum`` tasks have succeeded. ``late`` is None until then, and has no task where all were in time.

    A decision is on the disk before anybody can act on it. Where one is there already, from before a resume, it holds.
    Raises BadInputError where the file is damaged, and StorageError.
    """

    def __init__(self, config: Config, meta_step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._faults, self._meta_step, self._clock = config.faults, meta_step, clock
        self._storage = open_storage(config.run.dir)
        self._since: float | None = None  # when the quorum was there
        self._decided: dict[int, list[int]] = {}
        if FILE in self._storage.names():
            where = f"{self._storage.url}/{FILE}"
            self._decided = parse_json(LeftOut, self._storage.read(FILE), where).slots
            if any(slot >= config.meta.batch_size for slots in self._decided.values() for slot in slots):
                raise BadInputError(f"{where}: slots must be below meta.batch_size = {config.meta.batch_size}")
        slots = self._decided.get(meta_step)
        self.late: set[Place] | None = None if slots is None else {(meta_step, slot) for slot in slots}

    @property
    def reason(self) -> str:
        """Returns why the late tasks are left out."""
        return (
            f"not done {self._faults.grace_seconds:g} s (faults.grace_seconds) after {self._faults.quorum} tasks had "
            "succeeded (faults.quorum)"
        )

    def decide(self, pending: Collection[Place], succeeded: Collection[Place]) -> bool:
        """Decides if it is time to, given the tasks that are not done and those that have succeeded; returns whether it
        did so now. The caller drops the tasks in :attr:`late`, again where the learner was lost."""
        assert self._faults.quorum is not None, "there is a quorum only where faults.quorum says so"
        if self.late is not None:
            return False
        if len(succeeded) < self._faults.quorum:
            self._since = None  # also where a new learner does not have yet what the lost one had
        elif self._since is None:
            self._since = self._clock()
        if pending and (self._since is None or self._clock() - self._since < self._faults.grace_seconds):
            return False
        self._decided[self._meta_step] = sorted(slot for _, slot in pending)
        self._storage.write(FILE, LeftOut(slots=self._decided).model_dump_json().encode() + b"\n")
        self.late = set(pending)
        return True
