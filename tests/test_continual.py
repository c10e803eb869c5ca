"""The continual schedule: a meta-step after each segment, and tasks under way move along with the initialization."""

import json
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from docs.examples.sinusoids import Sinusoids
from leap_rl.backends.serial import SerialBackend
from leap_rl.config import Config
from leap_rl.config_files import parse_config
from leap_rl.files.storage import open_storage
from leap_rl.meta.learner import MetaLearner
from leap_rl.meta.sampling import leg_of, tasks_at
from leap_rl.meta.schedule import due, needed
from leap_rl.processes import initial_parameters, start_process
from leap_rl.processes.loop import TrainingLoop
from leap_rl.runs.task_store import TaskStore
from leap_rl.streaming import TaskStream
from leap_rl.types import SHARED, BadInputError, Broadcast, Checkpoint, Task, TaskError
from tests.cli_helpers import cli, held, here, kill_workers, wait_for, write_config
from tests.helpers import tiny_config
from tests.test_faults import rows_of, segments

LR = 0.07


class QuadraticConfig(Config):
    carries_out = frozenset({"continual"})


class Quadratic(TrainingLoop[QuadraticConfig]):
    """f(ψ) = ½ Σ aₖ (ψₖ − bₖ)², in double; b is the task's."""

    def setup(self):
        self.network = nn.ParameterDict({"w": nn.Parameter(torch.zeros(3, dtype=torch.float64))})
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=LR)
        self.target = target(self.task)

    def loss(self, step):
        loss = 0.5 * (SCALES * (self.network["w"] - self.target).square()).sum()
        return loss, {"agent_steps": 1, "frames": 1, "steps": 1, "negative_loss_sum": -float(loss.detach())}


SCALES = torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64)


def target(task):
    return torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(task.seed % 2**63))


class Quadratics(Sinusoids):
    config = QuadraticConfig

    def build(self, config, task):
        return Quadratic(config, task)


QUADRATICS = Quadratics()


@pytest.fixture
def quadratic(tmp_path):
    """Makes the configuration of a run with one task of 11 gradient steps, three a segment."""

    (tmp_path / "run").mkdir()

    def make(**meta):
        return QuadraticConfig.model_validate({
            "process": "tests.test_continual:QUADRATICS", "run": {"dir": str(tmp_path / "run")}, "backend": "serial",
            "meta": {"steps": 9, "batch_size": 1, "lr": 0.02, "schedule": "continual", **meta},
            "task": {"agent_steps": 11}, "stream": {"segment_updates": 3},
        })  # fmt: skip

    return make


def meta_train(config, start):
    """Each meta-step's tasks and what they added up to; the last initialization."""
    checkpoint, found = Checkpoint(0, {"w": start}, {}), []
    with SerialBackend(config) as backend:
        for meta_step in range(config.meta.steps):
            tasks = tasks_at(due(config.meta, checkpoint), ["0"], config.meta.batch_size, 0, config.num_legs)
            given = Broadcast({SHARED: checkpoint.initialization}, meta_step)
            list(backend.run_tasks(tasks, given, lambda held=checkpoint: MetaLearner(config.meta, held)))
            outcome = backend.meta_step()
            found.append((tasks, outcome))
            checkpoint = outcome.checkpoint
    return found, checkpoint.initialization["w"]


def test_it_equals_its_slow_transcription(quadratic):
    """One task after the other, plain numbers: Shin et al. 2021, with Leap's moves in place of θ⁰ − ψᴷ."""
    config, theta = quadratic(), torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
    found, ours = meta_train(config, theta)
    lengths = [4, 4, 1]  # legs of the first three processes, in nine rounds
    rounds = iter(found)
    for number, legs in enumerate(lengths):
        psi, newest, step = theta.clone(), None, 0
        for leg in range(legs):
            [task], outcome = next(rounds)
            assert (task.leg, task.num_legs) == (leg, 4), number
            b, increment = target(task), torch.zeros(3, dtype=torch.float64)
            for _ in range(min(3, 11 - step)):
                f, slope = 0.5 * (SCALES * (psi - b) ** 2).sum(), SCALES * (psi - b)
                if newest is not None:
                    point, before, gradient = newest
                    increment -= (psi - point) - abs(f - before) * gradient
                newest, psi, step = (psi.clone(), f, slope), psi - LR * slope, step + 1
            change = -0.02 * increment
            assert float(outcome.meta_gradient_norm) == pytest.approx(float(increment.norm()), abs=1e-12)
            theta, psi = theta + change, psi + change
            newest = (newest[0] + change, *newest[1:])
    torch.testing.assert_close(ours, theta, rtol=0, atol=1e-12)


def test_without_a_shift_it_is_the_synchronous_path(quadratic):
    """A meta learning rate that changes nothing in double leaves the increments of a whole task, to the bit."""
    start = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
    found, end = meta_train(quadratic(lr=1e-30), start)
    assert torch.equal(end, start)
    [task], _ = found[0]
    process = start_process(quadratic(), replace(task, leg=0, num_legs=0), {"w": start})
    for ([leg], outcome), increment in zip(found[:4], process.walk(), strict=True):
        assert leg.seed == task.seed
        assert outcome.meta_gradient_norm == pytest.approx(float(increment.meta_gradient["w"].norm()), rel=1e-15)
        assert outcome.tasks[0].path == increment.path


@given(size=st.integers(1, 6), num_legs=st.integers(2, 7))
def test_the_legs_of_a_slot_are_whole_processes_that_start_at_different_times(size, num_legs):
    starts = defaultdict(list)
    for slot in range(size):
        legs = [leg_of((meta_step, slot), size, num_legs) for meta_step in range(5 * num_legs)]
        for meta_step, leg in enumerate(legs):
            assert 0 <= meta_step - leg.start < leg.num_legs <= num_legs
            if meta_step and leg.start != legs[meta_step - 1].start:
                before = legs[meta_step - 1]
                assert leg.start == meta_step == before.start + before.num_legs
                starts[meta_step].append(slot)
        assert all(leg.num_legs == num_legs for leg in legs if leg.start)
    later = [len(slots) for meta_step, slots in starts.items()]
    assert max(later) <= -(-size // num_legs), "processes start as evenly as may be"


def test_a_task_of_its_own_name_and_seed_is_drawn_where_its_process_starts():
    names = ["a", "b", "c", "d", "e"]
    tasks = {place: tasks_at([place], names, 2, 0, 3)[0] for place in ((m, s) for m in range(12) for s in range(2))}
    assert [tasks[m, 1].leg for m in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [tasks[m, 0].leg for m in range(7)] == [0, 1, 0, 1, 2, 0, 1]
    for task in tasks.values():
        if task.leg:
            assert tasks[task.round - 1, task.slot] == task.before
        else:
            assert task.before is None
            [whole] = [other for other in tasks_at([task.place], names, 2, 0) if other.slot == task.slot]
            assert (task.name, task.seed) == (whole.name, whole.seed)


def test_files_are_kept_for_as_many_rounds_as_checkpoints(quadratic):
    meta = quadratic(batch_size=2).meta
    assert needed(meta, Checkpoint(5, {}, {}), 2) == [(3, 0), (3, 1), (4, 0), (4, 1), (5, 0), (5, 1)]
    assert needed(meta, Checkpoint(1, {}, {}), 3) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    synchronous = meta.model_copy(update={"schedule": "synchronous"})
    assert needed(synchronous, Checkpoint(5, {}, {}), 2) == [(5, 0), (5, 1)]


def test_a_leg_whose_leg_before_is_not_there_is_an_error_that_names_both(quadratic, tmp_path):
    config = quadratic()
    leg = Task(2, 0, "0", 7, leg=1, num_legs=4)
    stream = TaskStream(config, TaskStore(open_storage(config.run.dir)), leg, Broadcast({SHARED: {}}))
    with pytest.raises(TaskError, match=r"0 \(meta-step 2, slot 0\): 0 \(meta-step 1, slot 0\), which it goes on from"):
        next(stream.increments())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process": "docs.examples.sinusoids:PROCESS"}, "process = docs.examples.sinusoids:PROCESS does not have it"),
        ({"meta.rule": "fomaml"}, "needs meta.rule = leap or reptile, not fomaml"),
        ({"meta.rule": "joint"}, "needs meta.rule = leap or reptile, not joint"),
    ],
)
def test_what_cannot_move_along_is_refused(changes, message):
    tree = {"process": "a2c", "run": {"dir": "unused"}, "stream": {"segment_updates": 2}, "task": {"agent_steps": 1000},
            "meta": {"steps": 2, "batch_size": 1, "lr": 0.1, "schedule": "continual"}}  # fmt: skip
    tree["meta"] |= {key.removeprefix("meta."): value for key, value in changes.items() if key.startswith("meta.")}
    tree["process"] = changes.get("process", "a2c")
    if tree["process"] == "a2c":
        tree |= {"tasks": {"games": ["pong"]}, "agent": {"lr": 1e-4}}
    with pytest.raises(BadInputError, match=f"^meta.schedule = continual: {message}$"):
        parse_config(tree)


# Real games

CONTINUAL = {
    "meta.schedule": "continual", "meta.steps": 7, "meta.lr": 0.3, "meta.parameters": "all", "task.agent_steps": 200,
    "tasks.held_out": [], "run.keep_checkpoints": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The fingerprint of a serial run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = here("train", write_config(folder, CONTINUAL), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["fingerprint"]


@pytest.mark.slow
def test_killed_workers_and_drivers_end_in_the_bits_of_an_undisturbed_serial_run(tmp_path, undisturbed):
    run = tmp_path / "run"
    command = ["train", write_config(tmp_path, CONTINUAL), "backend=ray", "--json"]
    with held(tmp_path, *command, meta_step=3, step=12) as (driver, steps):
        wait_for(lambda: segments(run, 2), driver)
        kill_workers(driver)
        steps.let_go()
        wait_for(lambda: len(rows_of(run, "meta_step")) >= 4, driver)
        driver.kill()
        driver.wait()
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fingerprint"] == undisturbed
    keys = [(row["meta_step"], row["slot"]) for row in rows_of(run, "segment")]
    assert sorted(keys) == [(meta_step, slot) for meta_step in range(7) for slot in range(3)]
    legs = sorted(entry.name for entry in (run / "tasks").iterdir())
    assert legs == [f"{meta_step:06d}-{slot:02d}" for meta_step in (5, 6) for slot in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"meta.loss_difference": "paired"}, {"agent.value_scale": "popart"}])
def test_other_paths_and_optimizers_move_along_as_well(change):
    """The point and the parameters move by the change, and the move between them stays as long as it was."""
    config = tiny_config(**CONTINUAL, **change, backend="serial", **{"stream.segment_updates": 3})
    task = Task(0, 0, "pong", 3, num_legs=4)
    process = start_process(config, task, initial_parameters(config, 1))
    next(process.walk())
    before, state = process.learned(), process.state()
    change = {name: torch.randn_like(value) for name, value in before.items()}
    process.shift(change)
    for name, value in process.learned().items():
        assert torch.equal(value, before[name] + change[name])
    moved = {key: value for key, value in process.state().items() if not torch.equal(value, state[key])}
    assert {key.partition("/")[0] for key in moved} == {"network", "path"}
