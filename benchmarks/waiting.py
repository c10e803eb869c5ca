"""Defines a learning process that only waits, for benchmarks.workers: the sizes of configs/atari.yaml without its work.

A task's segments last ``segment_seconds`` each, a tenth more or less. What a worker sends, saves and takes up again has
the sizes of an agent's: 676,000 parameters of the encoder, and as much again for its optimizer.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import PositiveFloat

from leap_rl.config import Config
from leap_rl.measures import Measures
from leap_rl.processes import ProcessType
from leap_rl.types import Increment, Parts, PathSums, Task, Tensors

NUM_PARAMETERS = 676_000
TIMES = "LEAP_RL_BENCHMARK_TIMES"  # environment variable: a folder for the times of events


class WaitingConfig(Config):
    """Adds how long a segment lasts."""

    carries_out = frozenset({"continual"})
    segment_seconds: PositiveFloat = 4.0


def say(event: str) -> None:
    """Writes down that an event happened now, as the time of a file, and in which process."""
    (Path(os.environ[TIMES]) / event).write_text(str(os.getpid()))


class Waiting:
    """Waits instead of training; a ``LearningProcess``."""

    def __init__(self, config: WaitingConfig, task: Task) -> None:
        torch.set_num_threads(1)
        self._config, self._task, self._segments = config, task, 0

    def start(self, initialization: Tensors) -> None:
        """Starts the task at the shared initialization."""
        self._weights = {name: value.clone() for name, value in initialization.items()}
        self._squares = {name: torch.zeros_like(value) for name, value in initialization.items()}

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` was taken."""
        self._segments = int(state["segments"])
        self._weights, self._squares = {"encoder": state["weights"]}, {"encoder": state["squares"]}

    def walk(self) -> Iterator[Increment]:
        """Waits, and yields one increment a segment."""
        place = "{}-{}".format(*self._task.place)
        say(f"begun-{place}-{self._segments}")
        end = self._config.num_updates // self._config.stream.segment_updates
        while self._segments < end:
            time.sleep(self._config.segment_seconds * (0.9 + 0.2 * ((self._task.seed + self._segments) % 101) / 100))
            self._segments += 1
            gradient = {name: torch.full_like(value, 1e-3) for name, value in self._weights.items()}
            statistics = {"agent_steps": 1.0, "frames": 4.0, "seconds": 1.0, "score_sum": 0.0, "scores": 1.0}
            last = self._segments == end
            say(f"made-{place}-{self._segments}")
            yield Increment(gradient, PathSums(1.0, 1.0, moves=1), last, statistics)

    def learned(self) -> Tensors:
        """Returns copies of what is meta-learned."""
        return {name: value.clone() for name, value in self._weights.items()}

    def state(self) -> Tensors:
        """Returns the whole state."""
        return {"weights": self._weights["encoder"].clone(), "squares": self._squares["encoder"].clone(),
                "segments": torch.tensor(self._segments)}  # fmt: skip

    def shift(self, change: Tensors) -> None:
        """Moves the weights along with the initialization."""
        for name, value in self._weights.items():
            value.add_(change[name])


class WaitingType(ProcessType[WaitingConfig]):
    """Has tasks without end, and nothing to learn in them."""

    config = WaitingConfig
    measures = Measures(
        task="task", tasks="tasks", step="agent steps", frame="frames", score="score", score_text="score",
        counts=("score_sum", "scores"), digits=1, paired="nothing", final_text="score", means={},
    )  # fmt: skip

    def parts(self, config: WaitingConfig) -> Parts:
        """Returns names that are numbers."""
        return Parts([str(i) for i in range(60)], [], ["60"])

    def parse(self, config: WaitingConfig, text: str) -> list[str]:
        """Returns the text, which is a name."""
        return [text]

    def initial_parameters(self, config: WaitingConfig, seed: int) -> Tensors:
        """Returns zeros."""
        return {"encoder": torch.zeros(NUM_PARAMETERS)}

    def build(self, config: WaitingConfig, task: Task) -> Waiting:
        """Returns the process."""
        return Waiting(config, task)


PROCESS = WaitingType()
