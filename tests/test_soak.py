"""A short soak; ``python -m tests.soak`` is the long one. And a moment that a soak would hardly ever hit."""

import json
import subprocess
import sys

import pytest

from tests.cli_helpers import environment, here, write_config
from tests.soak import Kill, disturbed, seeded, undisturbed

pytestmark = pytest.mark.slow

SCHEDULE = [
    Kill(0, 2, "worker", rank=1, delay=0.2),
    Kill(0, 5, "learner"),
    Kill(0, 7, "driver", delay=0.1),
    Kill(1, 2, "worker", rank=0),
    Kill(1, 3, "worker", rank=1),
    Kill(1, 4, "learner", delay=0.1),
]


def test_whatever_is_killed_the_run_is_the_same_and_repeats_at_most_a_segment(tmp_path):
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
    wanted = undisturbed(tmp_path / "undisturbed", SCHEDULE)
    found = disturbed(tmp_path / "disturbed", SCHEDULE)
    assert found.kills == [str(kill) for kill in SCHEDULE]
    assert (found.drivers, found.unexpected) == (2, 0)
    assert found.faults_logged >= 3  # those of the driver that was killed are forgotten with its meta-step
    assert found.fingerprint == wanted.fingerprint
    assert (found.rows_twice, found.segments) == ([], wanted.segments)
    assert found.steps == 3 * 3 * 40
    assert 0 < found.steps_again <= found.steps_again_at_most
    assert found.files == wanted.files
    assert found.processes_left == []


def test_a_seed_gives_a_schedule_with_every_kind_of_fault():
    schedule = seeded(30, seed=0)
    assert schedule == seeded(30, seed=0) != seeded(30, seed=1)
    assert {kill.what for kill in schedule} == {"worker", "learner", "raylet", "driver"}
    assert {kill.hang for kill in schedule} == {True, False}


# The driver asks for news, and meanwhile its worker ends a task well and the learner dies.
DIES_AFTER_A_TASK = """
import sys

import ray

from leap_rl.backends import learner_handle
from leap_rl.backends import ray as backend
from leap_rl.backends.ray import RayBackend
from leap_rl.cli import main

backend.POLL_SECONDS = learner_handle.POLL_SECONDS = 0.05  # it asks more than once in a task, however fast that is
news = RayBackend._news


def news_too_late(self):
    if self._running and any(work.segments for work in self._work.values()) and not hasattr(self, "too_late"):
        self.too_late = True
        ray.wait(list(self._running))
        ray.kill(self._learner.actor)
    return news(self)


RayBackend._news = news_too_late
raise SystemExit(main(sys.argv[1:]))
"""


def test_a_learner_that_dies_after_a_task_has_ended_is_given_it_again(tmp_path):
    config = write_config(tmp_path, {"meta.steps": 1, "workers.count": 1, "backend": "ray"})
    command = [sys.executable, "-c", DIES_AFTER_A_TASK, "train", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment())
    assert done.returncode == 0, done.stderr
    assert "the Leap learner was lost" in done.stderr
    (tmp_path / "serial").mkdir()
    serial = here("train", write_config(tmp_path / "serial", {"meta.steps": 1}), "--json")
    assert json.loads(done.stdout)["fingerprint"] == json.loads(serial.stdout)["fingerprint"]
