"""What Leap's pass over the path adds to plain A2C, and what streaming and durability add to both.

    python -m benchmarks.overhead --game pong --rounds 100 --json

Leap's pass is what whole updates take longer than without it, in turns. A segment's end (taking the state of the
process, packing the increment, making both durable on a local path) is timed by itself, and compared with the updates
of a segment of the configured length.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from statistics import median

import numpy as np

from leap_rl.compression import Compressor
from leap_rl.config import Config, load_config
from leap_rl.leap import HELD
from leap_rl.ledger import Ledger
from leap_rl.processes import initial_parameters, resolve
from leap_rl.processes.a2c.process import A2CProcess
from leap_rl.storage import open_storage
from leap_rl.task_store import SavedTask, TaskStore
from leap_rl.types import Task


def leap_share(config: Config, game: str, rounds: int) -> dict[str, float]:
    """Processor time of updates with Leap over that of updates without it, in turns, by rounds of HELD of each: every
    HELDth has more to do than the others. They are of one process: where two happen to lie in memory makes more of a
    difference than Leap. The optimizer's loop measures the move with and without: it takes no longer for that
    (docs/performance.md)."""
    process = A2CProcess(config, Task(0, 0, game, seed=0), initial_parameters(config, seed=0))
    path = process.path
    with_leap = path.record, path.moved, process.gradients
    without = _nothing, _nothing, process.gradients[:1]
    rows = []
    for turn in range((rounds + 1) * HELD):
        spent = {}
        for arm in (with_leap, without) if turn % 2 else (without, with_leap):
            path.record, path.moved, process.gradients = arm  # type: ignore[method-assign]
            process.num_updates = turn  # as if the other arm's had not been: gradients take their places in turn
            started = time.process_time()
            process.update()
            spent[arm is with_leap] = time.process_time() - started
        rows.append((spent[True], spent[False]))
    more, less = np.array(rows).reshape(-1, HELD, 2).mean(axis=1)[1:].T
    shares, differences = more / less - 1, more - less
    return {
        "leap_share": round(float(np.median(shares)), 4),
        "leap_share_standard_error": round(1.25 * shares.std(ddof=1) / len(shares) ** 0.5, 4),  # of a median
        "leap_seconds_per_update": round(float(np.median(differences)), 6),
    }


def _nothing(*_: object, **__: object) -> None:
    """In place of what Leap is told."""


def streaming_share(config: Config, game: str, rounds: int) -> dict[str, float]:
    """Wall time of a segment's end over that of a segment's updates, median of segments."""
    length = config.stream.segment_updates
    short = config.model_copy(update={"stream": config.stream.model_copy(update={"segment_updates": 5})})
    process = A2CProcess(short, Task(0, 0, game, seed=0), initial_parameters(config, seed=0))
    ledger, compressor = Ledger(process.task, 0), Compressor(config.stream.compression, None)
    ends, updates = [], []
    walk, started = process.walk(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = TaskStore(open_storage(folder))
        for _ in range(rounds):
            increment = next(walk)
            trained = time.perf_counter()
            packed, _ = compressor.pack(increment.meta_gradient)
            ledger.receive(replace(increment, meta_gradient=packed))
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
    parser.add_argument("--json", action="store_true", help="on one line")
    options = parser.parse_args()
    config = resolve(load_config(options.config, options.overrides))
    settings = {"game": options.game, "num_envs": config.agent.num_envs, "unroll": config.agent.unroll}
    settings["segment_updates"] = config.stream.segment_updates
    leap, streaming = (share(config, options.game, options.rounds) for share in (leap_share, streaming_share))
    result = settings | leap | streaming
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
