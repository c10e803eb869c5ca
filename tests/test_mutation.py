"""A few of the cases of ``python -m tests.mutation`` and ``python -m tests.kills``, which run long by hand."""

import random

import pytest

from tests.kills import shoot
from tests.mutation import draw_override, mutate, try_configurations, try_files


def test_drawn_configurations_are_accepted_or_refused_in_one_line():
    failures = []
    counts = try_configurations(0, 200, failures.append)
    assert failures == []
    assert counts["accepted"] + counts["refused"] == 200
    assert counts["accepted"] > 0


def test_cases_are_drawn_from_their_number():
    assert draw_override(random.Random(5)) == draw_override(random.Random(5))
    data = b'{"key": "value"}' * 50
    assert mutate(data, random.Random(5)) == mutate(data, random.Random(5)) != mutate(data, random.Random(6))


@pytest.mark.slow
def test_mutated_files_of_each_kind_end_in_one_line():
    failures = []
    counts = try_files(0, 10, failures.append)
    assert failures == []
    assert counts["mutated files"] == 10


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), [("classification", 45), ("evaluation", 28), ("rllib", 1)])
def test_kills_at_random_times_change_nothing(tmp_path, kind, seed):
    """Seeds of which both kills come early, so that one run is enough: of the driver and the raylet, of the learner and
    the driver, of a worker and the driver."""
    assert shoot(kind, tmp_path, kills=2, seed=seed)["equal"]
