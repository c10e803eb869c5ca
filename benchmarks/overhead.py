"""Measures what Leap's pass over the path adds to plain A2C, and what streaming and durability add to both.

    python -m benchmarks.overhead --game pong --rounds 100 --json

The cost of Leap's pass is the difference between whole updates with and without it, taken in turns. A segment's end
(taking the state of the process, packing the increment, saving both on a local path) is timed by itself, and compared
with the updates of a segment of the configured length.
"""

import argparse
import json
import tempfile
import time
from statistics import median

import numpy as np
from torch import Tensor

from leap_rl.config_files import load_config
from leap_rl.files.storage import open_storage
from leap_rl.meta.compression import Compressor
from leap_rl.meta.ledger import Ledger
from leap_rl.processes import initial_parameters, resolve
from leap_rl.processes.a2c.config import A2CConfig
from leap_rl.processes.a2c.energy_path import ADDED_TOGETHER, EnergyPath
from leap_rl.processes.a2c.process import A2CProcess
from leap_rl.runs.task_store import SavedTask, TaskStore
from leap_rl.types import Parcel, Task


class NoPath(EnergyPath):
    """Turns the process into plain A2C: provides memory for one gradient, and ignores everything else."""

    def next_gradient(self) -> Tensor:
        return self._gradients[0]

    def record(self, loss: float, gradient_norm: float) -> None:
        """Does nothing."""

    def moved(self, step: Tensor) -> None:
        """Does nothing."""


def leap_share(config: A2CConfig, game: str, rounds: int) -> dict[str, float]:
    """Returns the processor time that Leap's path adds to an update, relative to updates without it.

    Updates with and without the path are taken in turns. A round has as many updates as the path adds up together,
    since the last of these has more to do than the others. Both kinds use one process: where two processes happen to
    lie in memory makes more of a difference than Leap.
    """
    process = A2CProcess(config, Task(0, 0, game, seed=0))
    process.start(initial_parameters(config, seed=0))
    with_leap, without = process.path, NoPath(process.parameters, process.num_meta_learned)
    rows = []
    for turn in range((rounds + 1) * ADDED_TOGETHER):
        spent = {}
        for path in (with_leap, without) if turn % 2 else (without, with_leap):
            process.path = path
            started = time.process_time()
            process.update()
            spent[path is with_leap] = time.process_time() - started
        rows.append((spent[True], spent[False]))
    more, less = np.array(rows).reshape(-1, ADDED_TOGETHER, 2).mean(axis=1)[1:].T
    shares, differences = more / less - 1, more - less
    return {
        "leap_share": round(float(np.median(shares)), 4),
        # A median's standard error is 1.25 times that of a mean.
        "leap_share_standard_error": round(1.25 * shares.std(ddof=1) / len(shares) ** 0.5, 4),
        "leap_seconds_per_update": round(float(np.median(differences)), 6),
    }


def streaming_share(config: A2CConfig, game: str, rounds: int) -> dict[str, float]:
    """Returns the wall time of a segment's end relative to that of a segment's updates, as medians over segments."""
    length = config.stream.segment_updates
    short = config.model_copy(update={"stream": config.stream.model_copy(update={"segment_updates": 5})})
    process = A2CProcess(short, Task(0, 0, game, seed=0))
    process.start(initial_parameters(config, seed=0))
    ledger, compressor = Ledger(process.task, 0), Compressor(config.stream.compression, None)
    ends, updates = [], []
    walk, started = process.walk(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = TaskStore(open_storage(folder))
        for _ in range(rounds):
            increment = next(walk)
            trained = time.perf_counter()
            packed, _ = compressor.pack(increment.meta_gradient)
            sums = increment.path, increment.last, increment.statistics
            ledger.receive(Parcel(process.task, ledger.next_sequence, 0, packed, *sums))
            store.save(SavedTask(ledger, process.state(), compressor.residual))
            ended = time.perf_counter()
            updates.append((trained - started) / 5)
            ends.append(ended - trained)
            started = ended
    return {
        "streaming_share": round(median(ends) / (length * median(updates)), 5),
        "streaming_seconds_per_segment": round(median(ends), 4),
        "segment_seconds": round(length * median(updates), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="pong")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--config", default="configs/atari.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")
    parser.add_argument("--json", action="store_true", help="print JSON on one line")
    options = parser.parse_args()
    config = resolve(load_config(options.config, options.overrides))
    assert isinstance(config, A2CConfig)
    settings = {"game": options.game, "num_envs": config.agent.num_envs, "unroll": config.agent.unroll}
    settings["segment_updates"] = config.stream.segment_updates
    leap, streaming = (share(config, options.game, options.rounds) for share in (leap_share, streaming_share))
    result = settings | leap | streaming
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
