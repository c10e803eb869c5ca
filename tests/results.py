"""What a run came to, and whether it is what another came to, to the bit."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leap_rl.runs.run_files import read_metrics
from tests.cli_helpers import TINY, cli, here, write_config

# What wall time decides, and what a lost worker's repeated increments add to.
INCIDENTAL = {"seconds", "agent_steps_per_second", "worker_utilization", "attempt", "faults", "duplicate_increments",
              "stale_increments"}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A finished run, and what `train --json` said of it."""

    state: dict[str, Any]
    rows: list[dict[str, Any]]
    path: Path


def train(folder: Path, *overrides: str, changes: Mapping[str, Any] | None = None) -> Result:
    """Trains a tiny run to its end: serially in this process, on Ray in one of its own."""
    run = cli if "backend=ray" in overrides else here
    done = run("train", write_config(folder, changes), *overrides, "--json")
    assert done.returncode == 0, done.stderr
    return read_result(folder, done.stdout)


def read_result(folder: Path, stdout: str) -> Result:
    """Of the run in ``folder``/run, which has ended with this output."""
    return Result(json.loads(stdout), read_metrics(folder / "run"), folder / "run")


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["meta_step"], row.get("slot", -1), row.get("task_agent_steps", -1), row["kind"])


def comparable(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows in one order, without what depends on time. A row that is there twice stays there twice."""
    rows = [row for row in rows if row["kind"] != "fault"]
    kept = [{name: value for name, value in row.items() if name not in INCIDENTAL} for row in rows]
    return sorted(kept, key=key_of)


def assert_same_run(result: Result, undisturbed: Result) -> None:
    assert result.state["fingerprint"] == undisturbed.state["fingerprint"]
    assert comparable(result.rows) == comparable(undisturbed.rows)


def in_mid_task(run: Path, meta_step: int = 1) -> bool:
    """The meta-step has handed in something that is not committed, and a task of it is still under way."""
    kinds = [row["kind"] for row in read_metrics(run) if row["meta_step"] == meta_step]
    return bool(kinds) and kinds.count("task") < TINY["meta.batch_size"]


def committed(run: Path, meta_step: int = 1) -> bool:
    return (run / "checkpoints" / f"{meta_step:06d}" / "done").exists()
