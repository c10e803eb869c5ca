"""Runs leap_rl's inner loop, Leap included, on one core.

``benchmarks.peers`` starts one process of it for each core. It takes settings as JSON, and prints a JSON row of
agent_steps and seconds about every second, until it is stopped.
"""

import json
import sys
import time
from typing import Any

from leap_rl.config_files import load_config
from leap_rl.processes import initial_parameters, resolve
from leap_rl.processes.a2c.config import A2CConfig
from leap_rl.processes.a2c.process import A2CProcess
from leap_rl.types import Task


def main(settings: dict[str, Any]) -> None:
    config = resolve(load_config(settings["config"], settings["overrides"]))
    assert isinstance(config, A2CConfig)
    process = A2CProcess(config, Task(0, 0, settings["game"], seed=0))
    process.start(initial_parameters(config, seed=0))
    agent_steps, started, printed = 0, time.perf_counter(), 0.0
    while True:
        process.update()
        agent_steps += config.agent.num_envs * config.agent.unroll
        if (seconds := time.perf_counter() - started) > printed + 1:
            print(json.dumps({"agent_steps": agent_steps, "seconds": seconds}), flush=True)
            printed = seconds


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
