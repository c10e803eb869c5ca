"""`leap-rl plan`: what a run will cost."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leap_rl.cli import main
from leap_rl.runs.costs import Trial, drawn, estimate, kind_of, makespan, num_workers, scaled_to, try_kind
from tests.cli_helpers import assert_one_line, write_config
from tests.helpers import classification_config, tiny_config

FAST, SLOW = Trial(100.0, 4.0, 1.0, 5_000, 1_000), Trial(50.0, 3.0, 1.0, 6_000, 1_000)
TRIALS = {"pong": FAST, "breakout": SLOW}
TWO = {"tasks.games": ["pong", "breakout"], "meta.batch_size": 2, "meta.steps": 10, "task.agent_steps": 1000}


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(1, 3))
def test_the_makespan_is_close_to_the_shortest_there_is(durations, workers):
    shortest = min(
        max(sum(d for d, at in zip(durations, placed, strict=True) if at == worker) for worker in range(workers))
        for placed in itertools.product(range(workers), repeat=len(durations))
    )
    assert shortest * (1 - 1e-9) <= makespan(durations, workers) <= shortest * (4 / 3 + 1e-9)  # Graham 1969


def test_a_synchronous_run_waits_for_its_slowest_task(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    config = tiny_config(**TWO, backend="ray", **{"workers.count": 5})
    costs = estimate(config, TRIALS)
    assert (costs.workers, costs.tasks, costs.agent_steps) == (2, 20, 20_000)
    assert costs.hours * 3600 == pytest.approx(10 * (1000 / 50 + 1))
    assert costs.core_hours * 3600 == pytest.approx(10 * (1000 / 50 + 1000 / 100 + 2))
    assert costs.frames == 10 * 1000 * 4 + 10 * 1000 * 3
    segments = -(-config.num_updates // config.stream.segment_updates)
    assert costs.streamed_bytes == 20 * segments * 1000
    assert costs.disk_bytes > 2 * 6000
    serial = estimate(tiny_config(**TWO, backend="serial"), TRIALS)
    assert serial.hours == pytest.approx(costs.core_hours)


def test_an_asynchronous_run_keeps_its_workers_busy(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    config = tiny_config(**TWO, backend="ray", **{"workers.count": 4, "meta.schedule": "asynchronous"})
    costs = estimate(config, TRIALS)
    assert costs.workers == 4
    assert costs.hours == pytest.approx(costs.core_hours / 4)


def test_a_continual_run_keeps_the_rounds_that_its_checkpoints_go_on_from():
    changes = {"task.agent_steps": 4000, "stream.segment_updates": 5, "run.keep_checkpoints": 3}
    whole, legs = (estimate(tiny_config(**TWO | changes | {"meta.schedule": schedule}, backend="serial"), TRIALS)
                   for schedule in ("synchronous", "continual"))  # fmt: skip
    assert legs.agent_steps < whole.agent_steps
    tasks = 2 * (6000 + 2 * 1000)  # of a round: states, and twice an increment
    assert legs.disk_bytes - whole.disk_bytes == 3 * tasks


def test_workers_are_no_more_than_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    many = tiny_config(backend="ray", **{"workers.count": 9, "workers.cpus": 2})
    assert num_workers(many) == 2


def test_variants_of_a_game_are_tried_once_and_alphabets_too():
    config = tiny_config(**{"tasks.games": ["breakout:mode=4", "breakout:mode=8", "pong"], "meta.batch_size": 3})
    kinds = {kind_of(config, task.name) for tasks in drawn(config) for task in tasks}
    assert kinds == {"breakout", "pong"}
    alphabets = classification_config()
    assert len({kind_of(alphabets, task.name) for tasks in drawn(alphabets) for task in tasks}) == 1


def test_a_checkpoint_has_what_its_meta_optimizer_keeps():
    kept = {name: estimate(tiny_config(**TWO, **{"meta.optimizer": name, "run.keep_checkpoints": 1}), TRIALS).disk_bytes
            for name in ("sgd", "nesterov", "adam")}  # fmt: skip
    assert kept["nesterov"] - kept["sgd"] == kept["adam"] - kept["nesterov"] == FAST.increment_bytes


def test_a_trial_measures_a_real_task():
    config = tiny_config(**{"task.agent_steps": 400})
    trial = try_kind(config, "pong", seconds=0.1)
    assert trial.steps_per_second > 0
    assert 3.5 < trial.frames_per_step < 6  # some frames more than four, for no-ops
    assert trial.increment_bytes < trial.state_bytes
    short = try_kind(tiny_config(**{"task.agent_steps": 10, "meta.use_loss": False}), "pong", seconds=0.1)
    assert short.steps_per_second > 0, "a task that ends before the warm-up does"


def test_a_recipe_fits_the_hours():
    config = tiny_config(**TWO)
    costs = estimate(config, TRIALS)
    assert scaled_to(config, costs, 2 * costs.hours) == "meta.steps=20"
    assert scaled_to(config, costs, costs.hours / 20) == "meta.steps=1 task.agent_steps=500"


def test_the_command_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("leap_rl.runs.costs.TRIAL_SECONDS", 0.1)
    file = write_config(tmp_path, {"tasks.games": ["pong"], "meta.batch_size": 1})
    assert main(["plan", str(file), "--hours", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 meta-steps, 3 tasks, 720 agent steps, ")
    assert "in 2.0 hours: meta.steps=" in said
    assert main(["plan", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"].keys() == {"pong"}
    assert list(tmp_path.iterdir()) == [file]
    for hours in ("0", "nan"):
        assert_one_line(main(["plan", str(file), "--hours", hours]), *capsys.readouterr(), f"--hours {float(hours)}")
