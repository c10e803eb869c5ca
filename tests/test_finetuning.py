"""Several alphabets in a task, their batches shuffled together: the finetuning of the authors' code."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leap_rl.evaluation.plan import make_plan
from leap_rl.meta.learner import MetaLearner
from leap_rl.processes import initial_parameters, start_process
from leap_rl.processes.classification.course import courses_of
from leap_rl.processes.classification.data import split
from leap_rl.training import train_run
from leap_rl.types import BadInputError, Checkpoint, Task
from tests.alphabets import tiny_config, training_batch, write_zip
from tests.helpers import assert_goes_on_elsewhere, parcels

FINETUNING = {
    "meta.rule": "joint", "meta.parameters": "encoder", "meta.batch_size": 1, "meta.lr": 1.0, "meta.optimizer": "sgd",
    "alphabets.per_task": 3, "task.agent_steps": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_zip(tmp_path_factory.mktemp("omniglot") / "images.zip")


@pytest.fixture
def config(archive):
    return tiny_config(archive, **FINETUNING)


def task_of(config, seed=3):
    return Task(0, 0, split(config.alphabets).training[1], seed)


def transcription(config, courses, turns, first):
    """Plain torch: every batch of every alphabet in one list, one SGD over it in the shuffled order. Returns the
    parameters in the end, by their names in the initialization."""
    values = {name: value.clone().requires_grad_() for name, value in first.items()}
    optimizer = torch.optim.SGD(values.values(), config.classifier.lr)
    batches = [
        (course.alphabet, training_batch(course.problem, 8, course.data_seed, step))
        for course in courses
        for step in range(config.task.agent_steps)
    ]
    for number, step in turns.tolist():
        alphabet, batch = batches[number * config.task.agent_steps + step]
        x = batch.images
        for block in range(1, 5):
            x = F.conv2d(x, values[f"encoder.conv{block}.weight"], padding=1)
            norm = nn.BatchNorm2d(x.shape[1], affine=False)
            scale, shift = (values[f"encoder.norm{block}.{end}"].view(1, -1, 1, 1) for end in ("weight", "bias"))
            x = F.max_pool2d(F.relu(norm(x) * scale + shift), 2)
        head = [values[f"heads/{alphabet}/head.{end}"] for end in ("weight", "bias")]
        optimizer.zero_grad()
        F.cross_entropy(F.linear(x.flatten(1), *head), batch.labels).backward()
        optimizer.step()
    return {name: value.detach() for name, value in values.items()}


def test_a_meta_step_is_one_sgd_over_the_shuffled_batches_of_all_its_alphabets(config):
    first, task = initial_parameters(config, 0), task_of(config)
    process = start_process(config, task, first)
    expected = transcription(config, process.courses, process.turns, first)
    learner = MetaLearner(config.meta, Checkpoint(0, first, {}))
    for parcel in parcels(task, process.walk()):
        learner.receive(parcel)
    outcome = learner.step()
    assert outcome.tasks[0].statistics["agent_steps"] == 12
    assert outcome.tasks[0].statistics["held_out_images"] == 300
    after = outcome.checkpoint.initialization
    assert after.keys() == expected.keys()
    for name, value in after.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)
    moved = {name for name, value in after.items() if not torch.equal(value, first[name])}
    trained = {course.alphabet for course in process.courses}
    assert len(trained) == 3
    assert {name.split("/")[1] for name in moved if name.startswith("heads/")} == trained


def test_every_batch_has_one_turn_in_an_order_of_the_tasks_own(config):
    orders = [start_process(config, task_of(config, seed), initial_parameters(config, 0)).turns for seed in (1, 1, 2)]
    one, again, other = (order.tolist() for order in orders)
    whole = [[number, step] for number in range(3) for step in range(4)]
    assert sorted(one) == sorted(other) == whole
    assert one == again
    assert len({str(order) for order in (one, other, whole)}) == 3


def test_where_there_are_fewer_alphabets_they_come_again_with_other_batches(archive):
    config = tiny_config(archive, **FINETUNING, **{"alphabets.train": 2})
    first, second, third = courses_of(config, task_of(config))
    assert (first.alphabet, third.alphabet) == (task_of(config).name,) * 2 != (second.alphabet,) * 2
    assert len({first.data_seed, second.data_seed, third.data_seed}) == 3


def test_it_goes_on_elsewhere_to_the_same_bits(config):
    assert_goes_on_elsewhere(config, task_of(config))


def test_an_evaluation_has_each_alphabet_by_itself(archive, tmp_path):
    run = tmp_path / "run"
    train_run(tiny_config(archive, **FINETUNING, **{"run.dir": str(run), "meta.steps": 1}))
    config = make_plan([str(run)], [f"alphabets.source={archive}"], None, 1, None, None).config
    assert (config.alphabets.per_task, config.num_updates) == (1, 4)


@pytest.mark.parametrize("rule", ["leap", "reptile", "maml"])
def test_other_rules_have_one_alphabet_a_task(archive, rule):
    changes = FINETUNING | {"meta.rule": rule, "meta.parameters": "all"}
    with pytest.raises(BadInputError, match=f"^alphabets.per_task = 3: only meta.rule = joint has it, not {rule}$"):
        tiny_config(archive, **changes)
