"""Measures how many increments a second the central Leap learner takes from simulated workers.

    python -m benchmarks.learner --senders 1 2 4 8 --json

Each simulated worker sends increments of the real size through a real Ray cluster on this machine, one on its way while
the next is made, as workers do, but without training. In addition it measures the learner by itself, in this process
(what an increment and a meta-step cost), and the broadcast of an initialization to a node.
"""

import argparse
import json
import time
from functools import partial
from typing import Any

import ray
import torch

from leap_rl.backends.actors import Learner
from leap_rl.config import Config
from leap_rl.config_files import load_config
from leap_rl.meta.compression import Compressor
from leap_rl.meta.learner import MetaLearner
from leap_rl.processes import initial_parameters
from leap_rl.types import Checkpoint, Parcel, PathSums, Task, Tensors

STATISTICS = {"agent_steps": 1.0, "frames": 4.0, "seconds": 1.0}


def make_parcel(packed: Tensors, slot: int, sequence: int, last: bool = False) -> Parcel:
    """Returns a segment's increment as a simulated worker sends it."""
    task, path = Task(0, slot, "pong", seed=0), PathSums(1.0, 1.0, moves=1)
    return Parcel(task, sequence, 0, packed, path, last, STATISTICS)


class Sender:
    """Sends increments like a worker, as a Ray actor."""

    def __init__(self, config: Config, slot: int) -> None:
        torch.set_num_threads(1)
        gradient = initial_parameters(config, seed=slot)
        packed, _ = Compressor(config.stream.compression, None).pack(gradient)
        self._packed, self._slot, self._sequence = packed, slot, 0

    def send(self, learner: Any, seconds: float) -> int:
        """Sends increments for a while, and returns how many the learner took."""
        started, taken = time.perf_counter(), 0
        sent = learner.receive.remote(make_parcel(self._packed, self._slot, self._sequence))
        while time.perf_counter() < started + seconds:
            self._sequence += 1
            following = make_parcel(self._packed, self._slot, self._sequence)
            taken += ray.get(sent)
            sent = learner.receive.remote(following)
        self._sequence += 1
        return taken + int(ray.get(sent))


def through_ray(config: Config, num_senders: int, seconds: float) -> float:
    """Returns the increments a second that the learner takes from ``num_senders`` workers."""
    checkpoint = Checkpoint(0, initial_parameters(config, seed=0), {})
    learner = ray.remote(Learner).options(num_cpus=0).remote(partial(MetaLearner, config.meta, checkpoint))
    senders = [ray.remote(Sender).options(num_cpus=0).remote(config, slot) for slot in range(num_senders)]
    ray.get([sender.send.remote(learner, 0.5) for sender in senders])
    started = time.perf_counter()
    taken = sum(ray.get([sender.send.remote(learner, seconds) for sender in senders]))
    rate: float = taken / (time.perf_counter() - started)
    for actor in [learner, *senders]:
        ray.kill(actor)
    return rate


def alone(config: Config, batch_size: int) -> dict[str, float]:
    """Returns the milliseconds of processor time that an increment and a meta-step take in the learner itself."""
    meta = config.meta.model_copy(update={"batch_size": batch_size})
    gradient = initial_parameters(config, seed=1)
    packed, _ = Compressor(config.stream.compression, None).pack(gradient)
    learner = MetaLearner(meta, Checkpoint(0, gradient, {}))
    num_segments = 4
    started = time.process_time()
    for sequence in range(num_segments):
        for slot in range(batch_size):
            learner.receive(make_parcel(packed, slot, sequence, last=sequence == num_segments - 1))
    received = time.process_time()
    learner.step()
    stepped = time.process_time()
    return {
        "receive_ms": 1e3 * (received - started) / (num_segments * batch_size),
        "step_ms": 1e3 * (stepped - received),
    }


def broadcast(config: Config) -> float:
    """Returns the milliseconds to put an initialization into the object store and to take it out again, on one node."""
    initialization = initial_parameters(config, seed=0)
    started = time.perf_counter()
    for _ in range(20):
        ray.get(ray.put(initialization))
    return 1e3 * (time.perf_counter() - started) / 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--seconds", type=float, default=5.0, help="duration for each number of senders")
    parser.add_argument("--config", default="configs/atari.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")
    parser.add_argument("--json", action="store_true", help="print JSON on one line")
    options = parser.parse_args()
    config = load_config(options.config, options.overrides)
    meta = config.meta.model_copy(update={"batch_size": max(options.senders)})
    result: dict[str, Any] = {"compression": config.stream.compression}
    packed, _ = Compressor(config.stream.compression, None).pack(initial_parameters(config, seed=0))
    result["increment_bytes"] = sum(value.nbytes for value in packed.values())
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        config = config.model_copy(update={"meta": meta})
        rates = {str(count): round(through_ray(config, count, options.seconds), 1) for count in options.senders}
        result["increments_per_second"] = rates
        result["broadcast_ms"] = round(broadcast(config), 2)
    finally:
        ray.shutdown()
    for size in options.batch_sizes:
        result[f"learner_of_{size}"] = {key: round(value, 2) for key, value in alone(config, size).items()}
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
