"""Measures the inner loop's agent steps per second, on one core and on all cores, and its share of a core's hard limit.

    python -m benchmarks.throughput --game pong --seconds 30 --json

The hard limit of a core is 1 / (1/raw + 1/network). The rate "raw" is emulation only (the frames of an agent step,
without screens). The rate "network" is one forward and one backward pass over an unroll's batch, with our encoder or
with torch's autograd, in whichever memory layout is fastest. All rates are measured in turns, so that a machine whose
speed drifts does not favour one of them. On all cores there is one independent process for each core, as for workers.
"""

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leap_rl.atari.emulators import open_game
from leap_rl.config_files import load_config
from leap_rl.processes import initial_parameters, resolve
from leap_rl.processes.a2c.config import A2CConfig
from leap_rl.processes.a2c.network import Encoder
from leap_rl.processes.a2c.process import A2CProcess, new_network
from leap_rl.types import Task

ROUNDS = 3


def emulation(config: A2CConfig, game: str) -> Callable[[], int]:
    """Returns a function that takes one agent step in each environment, with emulation only."""
    emulators = [open_game(game) for _ in range(config.agent.num_envs)]
    actions = emulators[0].getMinimalActionSet()
    rng = np.random.default_rng(0)

    def step() -> int:
        for emulator, index in zip(emulators, rng.integers(len(actions), size=len(emulators)).tolist(), strict=True):
            for _ in range(config.env.frame_skip):
                emulator.act(actions[index])
            if emulator.game_over():
                emulator.reset_game()
        return len(emulators)

    return step


def encoder(config: A2CConfig, num_actions: int) -> Callable[[], int]:
    """Returns a function that runs one forward and backward pass of our network over the batch of an unroll, in the
    memory layout of the inner loop."""
    model, observations = new_network(config, num_actions), batch(config)
    inputs = observations.to(model.encoder.compute_dtype, memory_format=torch.channels_last)

    def step() -> int:
        model.zero_grad()
        logits, values = model(inputs)
        (logits.square().mean() + values.square().mean()).backward()
        return len(inputs)

    return step


def plain(config: A2CConfig, num_actions: int, memory_format: torch.memory_format) -> Callable[[], int]:
    """Returns the same function with torch's own modules and autograd."""
    encoder, observations = new_network(config, num_actions).encoder, batch(config)
    assert isinstance(encoder, Encoder)
    for convolution in (encoder.conv1, encoder.conv2):
        convolution.weight.data = convolution.weight.data.contiguous(memory_format=memory_format)
    model = nn.Sequential(
        encoder.conv1, nn.ReLU(), encoder.conv2, nn.ReLU(), nn.Flatten(), encoder.linear, nn.ReLU(),
        nn.Linear(256, num_actions + 1),
    )  # fmt: skip
    inputs = observations.to(encoder.compute_dtype, memory_format=memory_format)
    bf16 = encoder.compute_dtype == torch.bfloat16

    def step() -> int:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(inputs)
        outputs.float().square().mean().backward()
        return len(inputs)

    return step


def batch(config: A2CConfig) -> Tensor:
    """Returns random observations of an unroll."""
    agent, env = config.agent, config.env
    shape = (agent.num_envs * agent.unroll, env.channels, env.screen_size, env.screen_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def training(config: A2CConfig, game: str) -> Callable[[], int]:
    """Returns a function that takes one update of the learning process, Leap included."""
    process = A2CProcess(config, Task(0, 0, game, seed=0))
    process.start(initial_parameters(config, seed=0))

    def step() -> int:
        process.update()
        return config.agent.num_envs * config.agent.unroll

    return step


def rate(step: Callable[[], int], seconds: float) -> float:
    """Returns the agent steps per second of repeated calls."""
    steps, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        steps += step()
    return steps / elapsed


def measure(config: A2CConfig, game: str, seconds: float) -> dict[str, float]:
    """Returns medians over rounds of the agent steps per second of one core."""
    torch.set_num_threads(1)
    train = training(config, game)  # made first, as in a worker: its place in memory makes a few per cent
    networks = {
        "encoder": encoder(config, num_actions=6),
        "autograd": plain(config, 6, torch.contiguous_format),
        "autograd_channels_last": plain(config, 6, torch.channels_last),
    }
    steps = {"raw_emulation": emulation(config, game), **networks, "agent_steps_per_second": train}
    for step in steps.values():
        rate(step, 0.5)
    rounds = [{name: rate(step, seconds / ROUNDS / len(steps)) for name, step in steps.items()} for _ in range(ROUNDS)]
    result = {name: median(r[name] for r in rounds) for name in steps}
    result["hard_limit"] = 1 / (1 / result["raw_emulation"] + 1 / max(result[name] for name in networks))
    result["share_of_hard_limit"] = result["agent_steps_per_second"] / result["hard_limit"]
    return result


def one_core(config: A2CConfig, game: str, seconds: float, barrier: Any) -> float:
    """Returns the agent steps per second of one process, while the others run too."""
    torch.set_num_threads(1)
    train = training(config, game)
    rate(train, 2)
    barrier.wait()
    return rate(train, seconds)


def all_cores(config: A2CConfig, game: str, seconds: float) -> float:
    """Returns the agent steps per second of one process for each core, all together."""
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(cores, context) as pool:
        barrier = manager.Barrier(cores)
        return sum(pool.map(one_core, *zip(*[(config, game, seconds, barrier)] * cores, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="pong")
    parser.add_argument("--seconds", type=float, default=30.0, help="duration on one core, all rounds together")
    parser.add_argument("--config", default="configs/atari.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = resolve(load_config(options.config, options.overrides))
    assert isinstance(config, A2CConfig)
    result = measure(config, options.game, options.seconds)
    result["all_cores"] = all_cores(config, options.game, options.seconds / ROUNDS)
    machine = {"game": options.game, "precision": config.precision, "num_envs": config.agent.num_envs,
               "python": platform.python_version(), "torch": torch.__version__}  # fmt: skip
    if options.json:
        print(json.dumps({**machine, **{name: round(value, 3) for name, value in result.items()}}))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for name, value in result.items():
        print(f"{name:24} {value:10,.2f}")


if __name__ == "__main__":
    main()
