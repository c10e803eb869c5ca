"""Measures what the processes of a run take of processor and memory. A driver and all that Ray starts for it are one
session of Linux."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
ROLES = {"worker": "ray::Worker", "learner": "ray::Learner", "raylet": "raylet/raylet", "gcs": "gcs/gcs_server"}


class Processes:
    """Samples what the processes of a driver's session take of processor and memory."""

    def __init__(self, leader: int) -> None:
        self._leader = leader

    def by_role(self) -> dict[str, list[int]]:
        """Returns the ids of the processes of each role."""
        found: dict[str, list[int]] = {role: [] for role in ROLES} | {"driver": [self._leader]}
        for pid in self._all():
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").partition(" ")[0]
                for role, words in ROLES.items():
                    if words in title:
                        found[role].append(pid)
        return found

    def seconds(self) -> dict[str, float]:
        """Returns the processor time of each role so far."""
        found: dict[str, float] = {}
        for role, pids in self.by_role().items():
            for pid in pids:
                with suppress(OSError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    found[role] = found.get(role, 0.0) + (int(fields[11]) + int(fields[12])) / TICKS
        return found

    def megabytes(self) -> dict[str, float]:
        """Returns the median proportional set size of the processes of each role."""
        found: dict[str, list[float]] = {}
        for role, pids in self.by_role().items():
            for pid in pids:
                with suppress(OSError):
                    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                        if line.startswith("Pss:"):
                            found.setdefault(role, []).append(int(line.split()[1]) / 1024)
        return {role: median(values) for role, values in found.items()}

    def kill(self) -> None:
        """Kills all processes of the session, and waits until they are gone."""
        while pids := list(self._all()):
            for pid in pids:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def _all(self) -> Iterator[int]:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it may end while we look
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self._leader and state not in "ZX":
                    yield int(folder.name)


def rounded(value: Any) -> Any:
    """Returns a value whose floats, however deep, have three decimals."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value
