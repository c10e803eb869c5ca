"""The arms that an evaluation adds on request: what they are called, and where and how their tasks start."""

import pytest
import torch

from leap_rl.evaluation.arms import ExtraArm, parse_arms
from leap_rl.evaluation.evaluate import stages
from leap_rl.files.storage import open_storage
from leap_rl.processes import start_process
from leap_rl.runs.task_store import TaskStore
from leap_rl.streaming import TaskStream, starting_weights
from leap_rl.types import BadInputError, Broadcast, TaskError
from tests.test_evaluation import make_run, plan

ARMS = "random,ceiling,frozen,shrink-perturb=0.25"


def test_arms_are_read_in_their_order_and_random_is_there_anyway():
    assert parse_arms(None, "a2c") == parse_arms("random", "a2c") == []
    assert parse_arms(ARMS, "a2c") == [
        ExtraArm("ceiling"), ExtraArm("frozen"), ExtraArm("shrink-perturb", 0.25)
    ]  # fmt: skip
    assert parse_arms("shrink-perturb=0.2,shrink-perturb=0.8", "a2c")[1].share == 0.8


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ceilng", ["'ceilng'", "did you mean ceiling?", "allowed are random, ceiling, frozen and shrink-perturb"]),
        ("ceiling,", ["''", "allowed are"]),
        ("shrink-perturb", ["'shrink-perturb'", "λ above 0 and below 1"]),
        ("shrink-perturb=1", ["'shrink-perturb=1'", "above 0 and below 1"]),
        ("shrink-perturb=nan", ["above 0 and below 1"]),
        ("shrink-perturb=half", ["'shrink-perturb=half'"]),
        ("frozen=1", ["'frozen=1'", "takes no value"]),
        ("ceiling,ceiling", ["named twice"]),
    ],
)
def test_bad_arms_are_one_line(text, parts):
    with pytest.raises(BadInputError) as error:
        parse_arms(text, "a2c")
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_only_a2c_can_leave_its_encoder():
    with pytest.raises(BadInputError, match="process = classification always trains its encoder"):
        parse_arms("frozen", "classification")
    assert parse_arms("ceiling,shrink-perturb=0.5", "rllib")


@pytest.fixture
def made(tmp_path):
    return plan(make_run(tmp_path), games=["breakout", "pong"], num_seeds=2, arms=ARMS)


def test_each_initialization_has_one_of_each_and_the_ceiling_stands_alone(tmp_path):
    run = make_run(tmp_path)
    made = plan(run, run, games=["pong"], arms=ARMS)
    names = [arm.name for arm in made.arms]
    assert names == ["random", "run", "run-2", "ceiling", "run-frozen", "run-2-frozen", "run-shrink-perturb-0.25",
                     "run-2-shrink-perturb-0.25"]  # fmt: skip
    assert [arm.has_one_start for arm in made.arms] == [False, True, True] + [False] * 5
    other = plan(run, games=["pong"], arms="shrink-perturb=0.75")
    assert other.arms[-1].describe()["source"] == "0.75 × run + 0.25 × a fresh draw"


def test_the_ceiling_comes_after_the_random_arm(made):
    first, second = stages(made)
    assert {task.start.name for task in second} == {"ceiling"}
    assert len(first) + len(second) == len(made.tasks()) == 2 * 2 * 5
    by_place = {task.place: task for task in first}
    for task in second:
        before = by_place[task.start.after.place]
        assert before == task.start.after
        assert (before.start.name, before.name, before.seed) == ("random", task.name, task.seed)


def find(made, arm, game="breakout"):
    return next(task for task in made.tasks() if (task.start.name, task.name) == (arm, game))


def start(made, arm):
    task = find(made, arm)
    return start_process(made.config, task, starting_weights(made.config, task, made.initializations()))


def test_shrink_and_perturb_mixes_with_the_random_arms_own_draw(made):
    random, run, mixed = (start(made, arm).network.state_dict() for arm in ("random", "run", "run-shrink-perturb-0.25"))
    for name, value in mixed.items():
        expected = 0.25 * run[name] + 0.75 * random[name] if name.startswith("encoder.") else random[name]
        assert torch.equal(value, expected), name


def test_a_frozen_encoder_stays_and_its_heads_learn(made):
    frozen, trained = start(made, "run-frozen"), start(made, "run")
    before = {name: value.clone() for name, value in frozen.network.state_dict().items()}
    for process in (frozen, trained):
        for _ in process.walk():
            pass
    after = frozen.network.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"policy.weight", "policy.bias", "value.weight", "value.bias"}
    weight = "encoder.conv1.weight"
    assert not torch.equal(trained.network.state_dict()[weight], before[weight])


@pytest.mark.usefixtures("one_torch_thread")
def test_the_ceiling_starts_where_the_random_arm_ended_with_its_own_heads_fresh(made, tmp_path):
    store = TaskStore(open_storage(str(tmp_path)))
    random, ceiling = find(made, "random"), find(made, "ceiling")
    with pytest.raises(TaskError, match="is not done"):
        next(TaskStream(made.config, store, ceiling, Broadcast({})).increments())
    for _ in TaskStream(made.config, store, random, Broadcast({})).increments():
        pass
    process = start(made, "random")
    for _ in process.walk():
        pass
    stream = TaskStream(made.config, store, ceiling, Broadcast({}))
    given = stream._start()
    assert set(given) == {name for name in process.network.state_dict() if name.startswith("encoder.")}
    for name, value in given.items():
        assert torch.equal(value, process.network.state_dict()[name]), name
    assert torch.equal(start_process(made.config, ceiling, given).network.policy.weight,
                       start(made, "random").network.policy.weight)  # fmt: skip
    assert next(stream.increments()).task == ceiling
