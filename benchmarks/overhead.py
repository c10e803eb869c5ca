"""What Leap's pass over the path adds to plain A2C, in processor time; timed inside whole updates.

python -m benchmarks.overhead --game pong --rounds 20 --json
"""

import argparse
import json
import time
from statistics import median

from leap_rl.config import Config, load_config
from leap_rl.processes import initial_parameters, resolve
from leap_rl.processes.a2c.process import A2CProcess
from leap_rl.types import Task


def leap_share(config: Config, game: str, rounds: int) -> dict[str, float]:
    """Leap's processor time over that of whole updates without it, median of updates."""
    process = A2CProcess(config, Task(0, 0, game, seed=0), initial_parameters(config, seed=0))
    record = process.path.record
    spent = 0.0

    def timed(*arguments: object) -> None:
        nonlocal spent
        started = time.process_time()
        record(*arguments)  # type: ignore[arg-type]
        spent += time.process_time() - started

    process.path.record = timed  # type: ignore[method-assign,assignment]
    for _ in range(3):
        process.update()
    shares, seconds = [], []
    for _ in range(rounds):
        spent, started = 0.0, time.process_time()
        process.update()
        total = time.process_time() - started
        shares.append(spent / (total - spent))
        seconds.append(spent)
    return {"leap_share": round(median(shares), 4), "leap_seconds_per_update": round(median(seconds), 6)}


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
    result = settings | leap_share(config, options.game, options.rounds)
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
