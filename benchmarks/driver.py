"""Measures what the driver and the learner of a large run take of a core, with workers that only pretend.

    python -m benchmarks.driver --workers 16 64 256 1000

The Ray backend, the Leap learner, the monitor and the run directory are the real ones. Instead of Ray there is a
stand-in in this process: actors are objects, time is simulated, and a worker sends the increments of its task when it
would have trained them. So this says how the work of driver and learner grows with the number of workers, and nothing
of Ray's own work. A quarter of the workers die together in the second meta-step.
"""

import argparse
import heapq
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ray.exceptions import RayActorError

from leap_rl.atari.variants import left_out, listed
from leap_rl.backends import learner_handle, work
from leap_rl.backends import ray as ray_backend
from leap_rl.backends.actors import News
from leap_rl.backends.ray import RayBackend
from leap_rl.config import Config
from leap_rl.config_files import load_config
from leap_rl.meta.learner import MetaLearner
from leap_rl.meta.ledger import Ledger
from leap_rl.processes import initial_parameters, start_process
from leap_rl.runs.monitoring import Monitor
from leap_rl.runs.run import open_run
from leap_rl.training import meta_train
from leap_rl.types import Broadcast, Increment, LeapRLError, Parcel, Place, Task

SEGMENTS, SECONDS = 12, 40.0  # of a task of a million agent steps, and for each (docs/scaling.md)


class Reference:
    """Stands for an answer that may come later."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.is_there = False

    def give(self, answer: Any) -> "Reference":
        """Gives the answer."""
        self.answer, self.is_there = answer, True
        return self


class Actor:
    """Stands for a handle of an actor: each method of the object behind it has a ``remote``."""

    def __init__(self, simulation: "Simulation", behind: Any, number: int) -> None:
        self._simulation, self._behind, self._number, self.alive = simulation, behind, number, True
        self._actor_id = SimpleNamespace(hex=lambda: f"{number:08x}")

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._behind, name)
        return SimpleNamespace(remote=lambda *arguments: self._simulation.call(self, method, arguments))


class Worker:
    """Pretends to train: its increments arrive at their time."""

    def __init__(self, simulation: "Simulation", number: int) -> None:
        self.simulation, self.seconds = simulation, SECONDS * (0.9 + 0.2 * (number % 101) / 100)

    def ready(self) -> None:
        """Answers at once."""

    def run_task(self, task: Task, given: Reference, attempt: int, learner: Actor) -> Iterator[float]:
        """Yields the seconds to wait until the next increment is sent."""
        sent = self.simulation.sent.setdefault(task.place, 0)
        broadcast: Broadcast = given.answer
        ledger = self.simulation.ledgers.setdefault(task.place, Ledger(task, broadcast.version))
        self.simulation.learner(learner).adopt(ledger)
        for sequence in range(sent, SEGMENTS):
            yield self.seconds
            parcel = self.simulation.parcel(task, sequence, attempt)
            ledger.receive(parcel)
            self.simulation.sent[task.place] = sequence + 1
            if not self.simulation.learner(learner).receive(parcel):
                return


class Learner:
    """Is the learner's actor, without a process of its own."""

    def __init__(self, make: Callable[[], MetaLearner]) -> None:
        self.collector = make()

    def ready(self) -> None:
        """Answers at once."""

    def poll(self, seen: dict[Place, int], starting: list[str]) -> News:
        """Does what the actor's does, but for asking Ray where actors are."""
        collector = self.collector
        return News(collector.reports(seen), collector.done(), collector.succeeded(), collector.batch(), {})

    def drop(self, task: Task, reason: str) -> None:
        """Does what the actor's does."""
        self.collector.drop(task, reason)

    def step(self, batch: list[Place]) -> Any:
        """Does what the actor's does."""
        return self.collector.step(batch)


class Simulation:
    """Stands in for the module ``ray``: simulated time, and processor time of the learner apart from the driver's."""

    def __init__(self, increment: Increment, num_workers: int) -> None:
        self.now = 0.0
        self.learner_seconds = self.worker_seconds = 0.0
        self.sent: dict[Place, int] = {}
        self.ledgers: dict[Place, Ledger] = {}  # what each task has saved
        self._increment, self._num_workers = increment, num_workers
        self._events: list[tuple[float, int, Actor, Iterator[float], Reference]] = []
        self._numbers = itertools.count()
        self._workers: list[Actor] = []
        self._busy: dict[Actor, Reference] = {}
        self.num_events = self.num_lost = 0

    # ------------------------------------------------------------------ what stands for the module's functions

    def put(self, value: Any) -> Reference:
        """Keeps a value."""
        return Reference().give(value)

    def get(self, reference: Reference, timeout: float | None = None) -> Any:
        """Returns an answer that is there, or raises the error that it is."""
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer

    def wait(self, references: list[Reference], timeout: float) -> tuple[list[Reference], list[Reference]]:
        """Lets time pass until an answer is there, at most ``timeout`` seconds."""
        end = self.now + timeout
        while not any(reference.is_there for reference in references):
            if not self._events or self._events[0][0] > end:
                self.now = end
                break
            self._run_one()
        ready = next((reference for reference in references if reference.is_there), None)
        return ([ready] if ready else []), []

    def nodes(self) -> list[Any]:
        """Returns no node: workers are placed anywhere."""
        return []

    def kill(self, actor: Actor) -> None:
        """Ends an actor; what it was at is lost."""
        actor.alive = False
        reference = self._busy.pop(actor, None)
        if reference:
            reference.give(RayActorError())

    def remote(self, kind: type) -> Any:
        """Returns what makes actors of a class."""

        def make(*arguments: Any) -> Actor:
            number = next(self._numbers)
            if kind.__name__ == "Learner":
                return Actor(self, Learner(*arguments), number)
            worker = Actor(self, Worker(self, number), number)
            self._workers.append(worker)
            return worker

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    # ------------------------------------------------------------------ how time passes

    def call(self, actor: Actor, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Reference:
        """Calls a method of an actor: of a worker's task bit by bit, of everything else at once."""
        reference = Reference()
        if method.__name__ == "run_task":
            self._busy[actor] = reference
            self._go_on(actor, method(*arguments), reference)
            return reference
        if method.__name__ == "step":
            self.ledgers.clear()
        started = time.process_time()
        reference.give(method(*arguments))
        if isinstance(actor._behind, Learner):
            self.learner_seconds += time.process_time() - started
        return reference

    def _go_on(self, actor: Actor, walk: Iterator[float], reference: Reference) -> None:
        started, learner = time.process_time(), self.learner_seconds
        try:
            seconds = next(walk)
        except (StopIteration, LeapRLError) as ending:
            self._busy.pop(actor, None)
            reference.give(ending if isinstance(ending, LeapRLError) else None)
        else:
            heapq.heappush(self._events, (self.now + seconds, next(self._numbers), actor, walk, reference))
        self.worker_seconds += time.process_time() - started - (self.learner_seconds - learner)

    def _run_one(self) -> None:
        self.now, _, actor, walk, reference = heapq.heappop(self._events)
        if actor.alive:
            self.num_events += 1
            self._go_on(actor, walk, reference)
        if self.num_lost == 0 and self.num_events > 1.5 * SEGMENTS * self._num_workers:
            lost = [worker for worker in self._workers if worker.alive][::4]
            self.num_lost = len(lost)
            for worker in lost:
                self.kill(worker)

    @contextmanager
    def _of_learner(self) -> Iterator[None]:
        started = time.process_time()
        yield
        self.learner_seconds += time.process_time() - started

    def learner(self, actor: Actor) -> Any:
        """Returns the collector behind a handle; the time that its methods take is the learner's."""
        collector = actor._behind.collector

        def timed(method: Callable[..., bool]) -> Callable[..., bool]:
            def call(*arguments: Any) -> bool:
                with self._of_learner():
                    return method(*arguments)

            return call

        return SimpleNamespace(adopt=timed(collector.adopt), receive=timed(collector.receive))

    def parcel(self, task: Task, sequence: int, attempt: int) -> Parcel:
        """Returns the increment of a task's segment."""
        increment = self._increment
        return Parcel(task, sequence, attempt, increment.meta_gradient, increment.path, sequence == SEGMENTS - 1,
                      {**increment.statistics, "increment_bytes": 0.0})  # fmt: skip


@contextmanager
def simulated(config: Config, simulation: Simulation) -> Iterator[RayBackend]:
    """Yields a Ray backend whose Ray is the simulation."""
    replaced: dict[str, Any] = {
        "ray": simulation, "time": SimpleNamespace(monotonic=lambda: simulation.now, sleep=None),
        "own_node": lambda: {"NodeManagerAddress": "here"}, "check_code": lambda _: None,
    }  # fmt: skip
    with (
        mock.patch.multiple(work, ray=simulation, last_words=lambda _: ""),
        mock.patch.multiple(ray_backend, **replaced),
        mock.patch.multiple(learner_handle, **replaced),
    ):
        backend = RayBackend(config)
        names = ("agent_steps", "increments", "increment_bytes", "meta_steps", "restarts")
        backend._metrics = {name: mock.Mock() for name in names}
        yield backend


def measure(config: Config, num_workers: int, increment: Increment) -> dict[str, float]:
    """Returns the milliseconds of processor time an increment, in the driver and in the learner, over two meta-steps of
    ``num_workers`` tasks, and the share of a core that each takes while the run lasts."""
    simulation = Simulation(increment, num_workers)
    with simulated(config, simulation) as backend, open_run(config) as run, Monitor(config, run) as monitor:
        started = time.process_time()
        meta_train(config, backend, run, monitor)
        total = time.process_time() - started
    driver, count = total - simulation.learner_seconds - simulation.worker_seconds, simulation.num_events
    return {
        "increments": count,
        "lost_workers": simulation.num_lost,
        "driver_ms_an_increment": 1e3 * driver / count,
        "learner_ms_an_increment": 1e3 * simulation.learner_seconds / count,
        "driver_share_of_a_core": driver / simulation.now,
        "learner_share_of_a_core": simulation.learner_seconds / simulation.now,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--config", default="configs/atari.yaml")
    options = parser.parse_args()
    pool = [name for name in listed([]) if name not in left_out()]
    for count in options.workers:
        with tempfile.TemporaryDirectory() as folder:
            keys = [f"run.dir={folder}/run", "backend=ray", f"workers.count={count}", f"meta.batch_size={count}",
                    "meta.steps=2", f"tasks.games={json.dumps(pool[: max(count, 25)])}",
                    "tasks.held_out=[]"]  # fmt: skip
            config = load_config(options.config, keys)
            short = config.model_copy(update={"stream": config.stream.model_copy(update={"segment_updates": 2})})
            task = Task(0, 0, "pong", seed=0)
            increment = next(iter(start_process(short, task, initial_parameters(config, seed=0)).walk()))
            found = {key: round(value, 4) for key, value in measure(config, count, increment).items()}
            print(json.dumps({"workers": count} | found), flush=True)


if __name__ == "__main__":
    main()
