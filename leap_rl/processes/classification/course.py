"""Says which alphabets a task trains on, and whose batch is next: with ``alphabets.per_task``, the batches of several
alphabets are shuffled together, as in the finetuning of the authors' code."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leap_rl.meta.rules import name_in_initialization
from leap_rl.processes.classification.config import ClassificationConfig
from leap_rl.processes.classification.data import Problem, load_problem, split
from leap_rl.types import Task


class Course(NamedTuple):
    """Describes an alphabet as a task trains on it."""

    alphabet: str
    problem: Problem
    head_seed: int
    data_seed: int

    def key(self, config: ClassificationConfig, name: str) -> str:
        """Returns what a parameter of the network is called among those of the task. (Several alphabets have a head
        each, which the joint rule keeps.)"""
        if config.alphabets.per_task == 1:
            return name
        return name_in_initialization(config.meta, self.alphabet, name) or name


def courses_of(config: ClassificationConfig, task: Task) -> list[Course]:
    """Returns the ``alphabets.per_task`` alphabets of a task, its own first. All are different; where that is more than
    there are, they repeat in the same order."""
    count, names = config.alphabets.per_task, [task.name]
    if count > 1:
        others = [name for name in split(config.alphabets).training if name != task.name]
        names += [others[index] for index in _rng(task).permutation(len(others))]
    courses = []
    for number in range(count):
        seeds = np.random.SeedSequence(task.seed, spawn_key=(number,) if number else ())
        head_seed, data_seed = seeds.generate_state(2, np.uint64).tolist()
        name = names[number % len(names)]
        courses.append(Course(name, load_problem(config.alphabets, name), head_seed >> 1, data_seed))
    return courses


def turns_of(config: ClassificationConfig, task: Task) -> NDArray[np.int64]:
    """Returns for each gradient step of a task which of its courses has its turn, and with which of its own batches
    [num_updates, 2]."""
    turns = np.arange(config.num_updates)
    if config.alphabets.per_task > 1:
        turns = _rng(task).permutation(turns)
    return np.stack(np.divmod(turns, config.task.agent_steps), axis=1)


def _rng(task: Task) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(task.seed, spawn_key=(0,)))
