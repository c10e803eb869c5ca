"""Keeps the Leap learner's actor: starts it, asks it, and says when it is lost."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from leap_rl.backends.actors import Learner, News
from leap_rl.backends.nodes import check_code, check_nodes, own_node
from leap_rl.backends.work import LostError, answer, explained
from leap_rl.meta.collector import Collector
from leap_rl.types import Fault, LeapRLError, MetaStep, Place, Task

POLL_SECONDS = 1.0  # time that a poll waits for an answer
MAX_LOSSES = 5  # learners in a row that may be lost before the run stops


class LearnerHandle:
    """Holds the actor, one question to it, and how many learners in a row were lost. ``timeout`` is in seconds."""

    def __init__(self, timeout: float) -> None:
        self.actor: Any = None
        self.asked = 0.0  # monotonic time of the latest poll
        self._timeout = timeout
        self._question: Any = None  # Ray's reference to a poll that is not answered yet
        self._code: Any = None  # Ray's reference to ready(), until it is checked
        self._late_answers = self._losses = self._lost_steps = 0  # numbers of learners in a row

    def start(self, make_collector: Callable[[], Collector]) -> None:
        """Starts the learner on the driver's node, since it is of no use without the driver. A resource that each node
        has pins it there: Ray places actors without resources at random, even with a soft affinity."""
        address = own_node()["NodeManagerAddress"]
        learner = ray.remote(Learner).options(num_cpus=0, resources={f"node:{address}": 0.001})
        self.actor = learner.remote(make_collector)
        self._question, self._code = None, self.actor.ready.remote()

    def drop(self, task: Task, reason: str) -> None:
        """Tells the learner to leave a task out."""
        self.actor.drop.remote(task, reason)

    def news(self, seen: Mapping[Place, int], starting: Sequence[str]) -> News | None:
        """Returns what is new since ``seen`` (place → segments that were reported), and where the workers ``starting``
        (their ids) are; None if the learner has not answered yet, for example because it is starting.

        Raises LostError if it is gone or too late; then the next one gets twice the time, since it may only start
        slowly. Raises BadInputError if it runs another leap_rl.
        """
        if self._question is None:
            self._question, self.asked = self.actor.poll.remote(seen, starting), time.monotonic()
        answered, _ = ray.wait([self._question], timeout=POLL_SECONDS)
        if answered:
            if self._code is not None:
                self._check()
            news: News = answer(self._question, self._timeout)
            self._question, self._late_answers, self._losses = None, 0, 0
            return news
        limit = self._timeout * 2**self._late_answers
        if time.monotonic() - self.asked > limit:
            self._late_answers += 1
            raise LostError(f"no answer in {limit:g} s")
        return None

    def _check(self) -> None:
        try:
            check_code(answer(self._code, self._timeout))
            self._code = None
        except (LostError, RayTaskError):
            check_nodes()
            raise

    def step(self, batch: Sequence[Place]) -> MetaStep | None:
        """Takes the meta-step; None if the learner is lost in it, which is killed then. Raises LeapRLError if this has
        happened MAX_LOSSES times in a row."""
        try:
            outcome: MetaStep = answer(self.actor.step.remote(batch), self._timeout)
        except LostError as error:
            self._lost_steps += 1
            if self._lost_steps == MAX_LOSSES:
                raise LeapRLError(
                    f"{MAX_LOSSES} Leap learners in a row died at one step; the last one {explained(error, self.actor)}"
                ) from error
            ray.kill(self.actor)  # it may only be stuck, and step later
            return None
        self._lost_steps = 0
        return outcome

    def replace(self, error: LostError, make_collector: Callable[[], Collector]) -> Fault:
        """Starts a new learner, in meta-training at the last checkpoint. Running tasks fail at their next increment.
        Raises LeapRLError if MAX_LOSSES in a row have not answered once."""
        if not self._late_answers:
            self._losses += 1
        if self._losses == MAX_LOSSES:
            raise LeapRLError(
                f"{MAX_LOSSES} Leap learners in a row died before they answered; the last one "
                f"{explained(error, self.actor)}"
            ) from error
        ray.kill(self.actor)  # it may only be stuck
        self.start(make_collector)
        reason = str(error).partition("\n")[0].rstrip(".")
        return Fault(None, f"the Leap learner was lost ({reason}); a new one continues from what is saved of each task")
