"""Runs an RLlib algorithm as a learning process: PPO, APPO, IMPALA, DQN or our A2C on one environment.

    algorithm.train() until a segment's worth of gradient steps is recorded → cut the path → increment

Everything runs in this process (no EnvRunner and no Learner actors), with one torch thread: a worker stays one
actor on one core. RLlib cannot save its environments, so the state of a task between two segments is where it
began and what came of it: it is continued by training once more from the beginning, and it is checked that the same
came of it. The algorithms that take their gradient steps in a thread of their own (APPO, IMPALA) would not repeat
themselves: theirs is one segment a task.
"""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from torch import Tensor

from leap_rl.backends.cluster import ensure_ray
from leap_rl.files.tensor_files import below
from leap_rl.meta.rules import make_path
from leap_rl.processes.a2c.process import initial_parameters as games_initialization
from leap_rl.processes.rllib.config import RLlibConfig
from leap_rl.processes.rllib.envs import TaskEnv
from leap_rl.processes.rllib.options import algorithm_config, build_module, meta_learned, own_network
from leap_rl.rllib.load import spread
from leap_rl.rllib.quiet import quiet
from leap_rl.runs.run_files import fingerprint
from leap_rl.types import BadInputError, Increment, PathSums, Task, TaskError, Tensors

THREADED = ("APPO", "IMPALA")  # take gradient steps in a thread of their own: not repeatable
RLLIB_NAMES = {"policy_loss": "policy_loss", "value_loss": "vf_loss", "entropy": "entropy"}  # our name → RLlib's
IDLE_ITERATIONS = 10_000  # of train() without a step in the environment, before a task is given up


class RLlibProcess:
    """Trains an RLlib algorithm on one task, as a ``LearningProcess``. Call :meth:`start` or :meth:`load_state`, then
    :meth:`walk`, which stops the algorithm at its end."""

    def __init__(self, config: RLlibConfig, task: Task) -> None:
        torch.set_num_threads(1)
        ensure_ray("process = rllib")
        self.config, self.task = config, task
        self.num_segments = 0
        self._replayed: tuple[int, Tensor] | None = None
        seed = int(np.random.SeedSequence(task.seed).generate_state(1)[0] >> 1)
        options = algorithm_config(config, task.name, seed, lambda: make_path(config.meta))
        with quiet():
            self.algorithm: Algorithm = options.build_algo()
        Path(self.algorithm.logdir).rmdir()  # empty: what RLlib would write there goes into the increments
        self.learner = self.algorithm.learner_group._learner
        if hasattr(self.algorithm.local_replay_buffer, "rng"):  # DQN's, which RLlib does not seed
            self.algorithm.local_replay_buffer.rng = np.random.default_rng(seed)
        self._counts = self._count()
        self._rllib: dict[str, float] = {}
        self._seconds = 0.0

    def start(self, initialization: Tensors) -> None:
        """Starts the task, in the Learner, its EnvRunner and target networks. Raises BadInputError, and stops the
        algorithm, where the initialization does not fit the encoder."""
        self.initialization = {name: value.clone() for name, value in initialization.items()}
        try:
            fitting = _fitting(self.learner.meta_learned(), self.initialization)
        except BadInputError:
            self.algorithm.stop()
            raise
        with torch.no_grad():
            for name, parameter in fitting.items():
                parameter.copy_(self.initialization[name])
        spread(self.algorithm)

    # ---------------------------------------------------------------------------------------- the path

    def walk(self) -> Iterator[Increment]:
        """Trains to the end of the task, yielding one increment a segment. A segment ends with the iteration of
        RLlib in which it gets ``stream.segment_updates`` gradient steps. Raises TaskError where the path is not
        finite, or where a task that is continued does not repeat itself."""
        try:
            for increment in self._segments():
                if self._replayed is None or self.num_segments > self._replayed[0]:
                    yield increment
                elif self.num_segments == self._replayed[0]:
                    self._check_repeated(self._replayed[1])
        finally:
            self.algorithm.stop()

    def _segments(self) -> Iterator[Increment]:
        streams = self.config.rllib.algorithm not in THREADED
        idle, last = 0, False
        while not last:
            started = time.perf_counter()
            results = self.algorithm.train()
            self._seconds += time.perf_counter() - started
            steps = self._count()["agent_steps"]
            idle = idle + 1 if steps == self._counts["agent_steps"] else 0
            if idle > IDLE_ITERATIONS:
                raise TaskError(f"{self.config.rllib.algorithm} takes no step in the environment")
            self._keep(results)
            last = steps >= self.config.task.agent_steps
            if self.learner.path.failed:
                raise TaskError(f"{self.learner.path.failed} within {steps} agent steps")
            if last or (streams and self.learner.num_steps >= self.config.stream.segment_updates):
                yield self._cut_segment(last)

    def _cut_segment(self, last: bool) -> Increment:
        """Returns the increment of the segment that ends here, and its statistics (docs/metrics.md)."""
        if last:
            self.algorithm.stop()  # a thread of IMPALA's may still take steps
        learner, before = self.learner, self._counts
        self._counts = self._count()
        with learner.path_lock:
            path, updates = learner.path, learner.num_steps
            if last:
                path.finish(learner.meta_learned())
            if path.failed:
                raise TaskError(f"{path.failed} at the end of the task")
            if last and path.num_points == 0 and self.num_segments == 0:
                raise TaskError(
                    f"{self.config.rllib.algorithm} took no gradient step in {self.config.task.agent_steps} agent steps"
                )
            statistics = {
                **{name: value - before[name] for name, value in self._counts.items()},
                "seconds": self._seconds,
                "updates": updates,
                "loss_sum": learner.loss_sum,
                "gradient_norm_sum": learner.gradient_norm_sum,
                **{f"{name}_sum": updates * self._rllib.get(key, 0.0) for name, key in RLLIB_NAMES.items()},
                **{f"rllib/{name}": updates * value for name, value in self._rllib.items()},
            }
            increment = Increment(
                path=PathSums.of(path),
                last=last,
                meta_gradient=path.cut(),
                statistics=statistics,
            )
            learner.clear_sums()
        self._seconds = 0.0
        self.num_segments += 1
        return increment

    def _count(self) -> dict[str, float]:
        """Returns sums over the environments since the start of the task."""
        envs = [_task_env(env) for env in self.algorithm.env_runner.env.unwrapped.envs]
        episodes = [episode for env in envs for episode in env.episodes]
        return {
            "agent_steps": sum(env.num_steps for env in envs),
            "frames": sum(env.num_frames for env in envs),
            "clipped_reward_sum": sum(env.clipped_reward for env in envs),
            "episodes": len(episodes),
            "score_sum": sum(episode.score for episode in episodes),
            "episode_length_sum": sum(episode.length for episode in episodes),
        }

    def _keep(self, results: Mapping[str, Any]) -> None:
        """Keeps RLlib's own numbers of its newest update; one that is missing in an iteration keeps its value."""
        (module,) = self.learner.module.keys()
        for name, value in results.get("learners", {}).get(module, {}).items():
            known = self.num_segments == 0 or name in self._rllib  # all segments have the same statistics
            if known and isinstance(value, (int, float, np.number)) and math.isfinite(value):
                self._rllib[name] = float(value)

    # --------------------------------------------------------------------------------------- the state

    def learned(self) -> Tensors:
        """Returns copies of the present values of what is meta-learned, by name in the initialization."""
        return {name: value.detach().cpu().clone() for name, value in self.learner.meta_learned().items()}

    def state(self) -> Tensors:
        """Returns where the task began, how many segments it has had, and the fingerprint of what came of them."""
        state = {f"initialization/{name}": value for name, value in self.initialization.items()}
        return state | {"num_segments": torch.tensor(self.num_segments), "fingerprint": self._fingerprint()}

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` was taken, by training from the beginning up to there."""
        self.start(below(state, "initialization/"))
        self._replayed = int(state["num_segments"]), state["fingerprint"]

    def _check_repeated(self, expected: Tensor) -> None:
        if not torch.equal(self._fingerprint(), expected):
            raise TaskError(
                f"trained again from its beginning, {self.config.rllib.algorithm} came to other parameters after "
                f"{self.num_segments} segments: its increments would not belong to one path"
            )

    def _fingerprint(self) -> Tensor:
        values = {name: value.detach() for name, value in self.learner.meta_learned().items()}
        return torch.frombuffer(bytearray.fromhex(fingerprint(values)), dtype=torch.uint8)


def _fitting(parameters: Mapping[str, Tensor], given: Tensors) -> Mapping[str, Tensor]:
    """Returns ``parameters``. Raises BadInputError, which says what differs, where ``given`` has other names or
    shapes."""
    expected = {name: tuple(value.shape) for name, value in parameters.items()}
    found = {name: tuple(value.shape) for name, value in given.items()}
    differing = [
        f"{name} is {found.get(name, 'not in the initialization')}, in the RLModule {expected.get(name, 'missing')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if differing:
        raise BadInputError(f"the initialization does not fit the RLModule's encoder: {'; '.join(differing)}")
    return parameters


def initial_parameters(config: RLlibConfig, seed: int) -> Tensors:
    """Returns what is meta-learned of a fresh RLModule of the first game: name → float32 tensor."""
    torch.set_num_threads(1)
    if not own_network(config):
        return games_initialization(config, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build_module(config, config.tasks.games[0])
    return {name: parameter.detach().clone() for name, parameter in meta_learned(config)(module).items()}


def _task_env(env: Any) -> TaskEnv:
    while not isinstance(env, TaskEnv):
        env = env.env
    return env
