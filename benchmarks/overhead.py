"""What Leap's pass over the path adds to plain A2C, and what streaming and durability add to both.

    python -m benchmarks.overhead --game pong --rounds 20 --json

Leap's pass is timed inside whole updates, in processor time. A segment's end (taking the state of the process, packing
the increment, making both durable on a local path) is timed by itself, and compared with the updates of a segment of
the configured length.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from statistics import median

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
    """Leap's processor time over that of whole updates without it."""
    process = A2CProcess(config, Task(0, 0, game, seed=0), initial_parameters(config, seed=0))
    record = process.path.record
    spent = 0.0

    def timed(*arguments: object, **options: object) -> None:
        nonlocal spent
        started = time.process_time()
        record(*arguments, **options)  # type: ignore[arg-type]
        spent += time.process_time() - started

    process.path.record = timed  # type: ignore[method-assign]
    for _ in range(3):
        process.update()
    totals, spents = [], []
    for _ in range(rounds * HELD):
        spent, started = 0.0, time.process_time()
        process.update()
        totals.append(time.process_time() - started)
        spents.append(spent)
    # Every HELDth update has more to do than the others: sums of so many, then their median.
    rows = [(sum(spents[i : i + HELD]), sum(totals[i : i + HELD])) for i in range(0, len(totals), HELD)]
    share = median(leap / (total - leap) for leap, total in rows)
    return {
        "leap_share": round(share, 4),
        "leap_seconds_per_update": round(median(leap for leap, _ in rows) / HELD, 6),
    }


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
    parser.add_argument("--rounds", type=int, default=50)
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
