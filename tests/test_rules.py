"""Meta-learning rules, each by an identity; and paired loss differences, by finite differences and by hand."""

import dataclasses
import functools
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leap_rl.backends.serial import SerialBackend
from leap_rl.config import MetaConfig
from leap_rl.leap import PathAccumulator
from leap_rl.meta.learner import MetaLearner
from leap_rl.meta.rules import make_path, without_heads
from leap_rl.processes import continue_process, start_process
from leap_rl.processes.a2c.process import initial_parameters
from leap_rl.types import SHARED, Broadcast, Checkpoint, Task
from tests.helpers import meta_batch, parcels, tiny_config

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TASK = Task(0, 0, "asterix", seed=11)


def make(rule, **meta):
    return make_path(MetaConfig(rule=rule, steps=1, batch_size=1, lr=0.1, **meta))


def theta(number):
    return {"theta": torch.tensor(number, dtype=torch.float64)}


def start(changes=None, task=TASK):
    config = tiny_config(**(changes or {}))
    return start_process(config, task, initial_parameters(config, seed=0))


def assert_bits_equal(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


# The rules


@pytest.mark.slow
@pytest.mark.parametrize("segment_updates", [10, 24])
def test_reptile_is_leaps_energy_without_the_loss_to_the_last_bit(segment_updates):
    """In one segment, both are where the path began minus where the optimizer's last move ended."""
    segments = {"stream.segment_updates": segment_updates}
    process = start(segments | {"meta.rule": "reptile"})
    first = {name: value.detach().clone() for name, value in process.meta_learned.items()}
    ours = list(process.walk())
    theirs = list(start(segments | {"meta.use_loss": False}).walk())
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert_bits_equal(one.meta_gradient, other.meta_gradient)
    if segment_updates == 24:
        assert_bits_equal(ours[0].meta_gradient, {n: first[n] - v.detach() for n, v in process.meta_learned.items()})


def test_first_order_maml_on_a_quadratic_by_hand():
    """f = θ²/2, lr 1/2: θ goes 2 → 1 → 1/2, where ∇f = 1/2. The move after that is not part of it."""
    path, point = make("fomaml"), 2.0
    for _ in range(3):
        path.record(point**2 / 2, theta(point), theta(point))
        point -= point / 2
    path.finish(theta(point))
    assert path.increment() == theta(0.5)
    assert (path.num_moves, path.path_length) == (2, pytest.approx((1 + 1.5**2) ** 0.5 + (0.25 + 0.375**2) ** 0.5))


def test_first_order_maml_is_the_gradient_of_the_last_update_and_nothing_before():
    process = start({"meta.rule": "fomaml", "agent.max_grad_norm": None})
    *before, last = process.walk()
    assert len(before) == 2
    assert not any(value.any() for increment in before for value in increment.meta_gradient.values())
    gradient = process.path.next_gradient()  # the plain path has one vector for all of them
    assert_bits_equal(last.meta_gradient, process._named(gradient[: process.num_meta_learned]))
    assert all(value.any() for value in last.meta_gradient.values())


def test_a_failed_path_asks_for_nothing_under_any_rule():
    for rule in ("reptile", "fomaml", "none"):
        path = make(rule)
        path.record(1.0, theta(1.0), theta(1.0))
        path.record(float("nan"), theta(2.0), theta(1.0))
        path.finish(theta(3.0))
        assert path.failed
        assert path.increment() == theta(0.0)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
def test_none_leaves_the_initialization_as_it_is(optimizer):
    learner_config = MetaConfig(rule="none", steps=1, batch_size=1, lr=0.1, optimizer=optimizer)
    process = start({"meta.rule": "none"})
    learner = MetaLearner(learner_config, Checkpoint(0, initial_parameters(process.config, 0), {}))
    for parcel in parcels(process.task, process.walk()):
        assert parcel.path.length > 0
        learner.receive(parcel)
    assert_bits_equal(learner.step().checkpoint.initialization, initial_parameters(process.config, 0))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["reptile", "fomaml", "joint", "none"])
def test_a_process_goes_on_to_the_same_bits_under_any_rule(rule):
    process = start({"meta.rule": rule})
    walk = process.walk()
    next(walk)
    again = continue_process(process.config, TASK, process.state())
    for one, other in zip(walk, again.walk(), strict=True):
        assert_bits_equal(one.meta_gradient, other.meta_gradient)
        assert one.path == other.path


@pytest.mark.slow
def test_rules_differ_in_the_increment_and_in_nothing_else(tmp_path):
    """The same tasks train through the same points, whatever the rule makes of them."""
    losses, gradients = set(), {}
    for rule in ("leap", "reptile", "fomaml", "none"):
        config = tiny_config(**{"meta.rule": rule, "run.dir": str(tmp_path / rule), "task.agent_steps": 120})
        (tmp_path / rule).mkdir()
        with SerialBackend(config) as backend:
            first = initial_parameters(config, 0)
            learner = functools.partial(MetaLearner, config.meta, Checkpoint(0, first, {}))
            list(backend.run_tasks(meta_batch(config, 0), Broadcast({SHARED: first}), learner))
            outcome = backend.meta_step()
        losses.add(tuple(report.statistics["loss_sum"] for report in outcome.tasks))
        gradients[rule] = outcome.meta_gradient_norm
    assert len(losses) == 1
    assert gradients["none"] == 0
    assert len(set(gradients.values())) == 4


# Joint pretraining


def joint_step():
    """One meta-step of two games of three from the first initialization: processes, what was, and what came out."""
    config = tiny_config(**{"meta.rule": "joint", "meta.lr": 1.0, "stream.segment_updates": 24})
    before = initial_parameters(config, 0)
    learner = MetaLearner(config.meta, Checkpoint(0, before, {}))
    tasks = [Task(0, slot, game, 7 + slot) for slot, game in enumerate(["pong", "asterix"])]
    processes = [start_process(config, task, before) for task in tasks]
    for process in processes:
        for parcel in parcels(process.task, process.walk()):
            learner.receive(parcel)
    return processes, before, learner.step()


def test_each_game_has_heads_of_its_own_in_a_joint_initialization():
    joint = initial_parameters(tiny_config(**{"meta.rule": "joint"}), 0)
    assert_bits_equal(without_heads(joint), initial_parameters(tiny_config(), 0))
    shapes = {name: tuple(value.shape) for name, value in joint.items() if name.startswith("heads/")}
    assert shapes == {
        f"heads/{game}/{name}": shape
        for game, num_actions in (("pong", 6), ("space_invaders", 6), ("asterix", 9))
        for name, shape in (("policy.weight", (num_actions, 256)), ("policy.bias", (num_actions,)),
                            ("value.weight", (1, 256)), ("value.bias", (1,)))
    }  # fmt: skip
    assert not torch.equal(joint["heads/pong/policy.weight"], joint["heads/space_invaders/policy.weight"])


@pytest.mark.slow
def test_a_joint_meta_step_goes_to_the_mean_of_the_encoders_and_to_each_games_own_heads():
    processes, before, outcome = joint_step()
    after = outcome.checkpoint.initialization
    assert after.keys() == before.keys()
    for name in without_heads(before):
        mean = sum(process.meta_learned[name].detach().double() for process in processes) / 2
        assert torch.allclose(after[name].double(), mean, rtol=0, atol=1e-6), name
        assert not torch.equal(after[name], before[name])
    for process in processes:
        for name in ("policy.weight", "value.bias"):
            key = f"heads/{process.task.name}/{name}"
            assert torch.allclose(after[key], process.meta_learned[key].detach(), rtol=0, atol=1e-6)
            assert not torch.equal(after[key], before[key])
    for name, value in before.items():
        if name.startswith("heads/space_invaders/"):  # the game that was not drawn
            assert torch.equal(after[name], value)


@pytest.mark.slow
def test_a_joint_task_starts_from_its_games_heads():
    _, before, outcome = joint_step()
    given = outcome.checkpoint.initialization
    joint = start_process(tiny_config(**{"meta.rule": "joint"}), Task(1, 0, "pong", 3), given)
    for end in ("policy.weight", "value.bias"):
        assert torch.equal(joint.network.get_parameter(end), given[f"heads/pong/{end}"])
    assert not torch.equal(joint.network.policy.weight, before["heads/pong/policy.weight"])


# Paired loss differences

numbers = st.floats(-2, 2).map(lambda number: round(number, 3))
steps = st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=6)


@untimed
@given(steps=steps, metric=st.sampled_from(["energy", "length"]), stabilizer=st.booleans())
def test_paired_moves_are_those_of_a_slow_transcription(steps, metric, stabilizer):
    """Each step: θ before it, loss before and after on the same batch, gradient; the next θ is where it lands."""
    path = PathAccumulator(metric, True, stabilizer, "paired")
    points = [step[0] for step in steps] + [0.25]
    increment = length = energy = 0.0
    for (here, before, after, gradient), there in zip(steps, points[1:], strict=True):
        path.record(before, theta(here), theta(gradient))
        path.land(theta(there), after)
        change = after - before
        squared = (there - here) ** 2 + change**2
        length, energy = length + squared**0.5, energy + squared
        change = -change if stabilizer and change > 0 else change
        term = -((there - here) + change * gradient)
        increment += term if metric == "energy" else term / squared**0.5 if squared else 0.0
    path.finish(theta(points[-1]))
    assert path.num_moves == len(steps), "the last move has an honest difference too"
    assert path.increment()["theta"].item() == pytest.approx(increment, rel=1e-10, abs=1e-12)
    assert (path.path_length, path.energy) == (pytest.approx(length), pytest.approx(energy))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_landing_on_what_is_not_finite_fails_the_path(bad):
    for parameters, loss in ((theta(bad), 1.0), (theta(1.0), bad)):
        path = PathAccumulator(loss_difference="paired")
        path.record(1.0, theta(0.0), theta(1.0))
        path.land(parameters, loss)
        assert path.failed
        assert path.increment() == theta(0.0)


def test_landing_where_nothing_was_recorded_or_pairs_are_not_asked_for_is_an_error():
    recorded = PathAccumulator()
    recorded.record(1.0, theta(0.0), theta(1.0))
    for path in (recorded, PathAccumulator(loss_difference="paired")):
        with pytest.raises(RuntimeError, match="paired"):
            path.land(theta(1.0), 1.0)


def watch(process):
    """(loss before, loss after, parameters before, parameters after) of each update, as the path is told."""
    seen, recorded = [], {}
    record, land = process.path.record, process.path.land

    def recording(loss, norm):
        recorded["loss"] = loss
        record(loss, norm)

    def landing(loss):
        seen.append((recorded["loss"], loss))
        land(loss)

    process.path.record, process.path.land = recording, landing
    return seen


PAIRED = {"meta.loss_difference": "paired", "agent.max_grad_norm": None}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_of_the_same_rollout_is_the_same_where_nothing_moved(precision):
    process = start(PAIRED | {"agent.lr": 1e-30, "precision": precision})
    seen = watch(process)
    for _ in range(3):
        process.update()
    assert [after for _, after in seen] == [before for before, _ in seen]


def test_a_small_step_changes_the_loss_by_its_gradient():
    """Δf = ∇f·Δθ + O(‖Δθ‖²): it is the very function whose gradient was taken, returns and advantages held."""
    process = start(PAIRED | {"agent.lr": 1e-7, "agent.epsilon": 1.0})  # ε so large that steps follow the gradient
    gradients = []

    def descend(gradient, scale):
        gradients.append(gradient * scale)
        process.parameters.sub_(gradients[-1], alpha=1e-3)
        return gradients[-1] * -1e-3

    process.optimizer.step = descend
    seen = watch(process)
    checked = 0
    for _ in range(6):
        before = process.parameters.clone()
        process.update()
        slope = float((process.parameters - before).double() @ gradients[-1].double())
        loss, after = seen[-1]
        assert slope <= 0
        if abs(slope) > 1e-5:  # above the rounding of a float32 loss
            assert after - loss == pytest.approx(slope, rel=0.1)
            checked += 1
    assert checked >= 2


@pytest.mark.slow
def test_pairs_change_what_the_path_measures_and_not_where_it_leads():
    paired, successive = start(PAIRED), start(PAIRED | {"meta.loss_difference": "successive"})
    ours, theirs = list(paired.walk()), list(successive.walk())
    assert [increment.path.moves for increment in ours] == [10, 10, 4]
    assert [increment.path.moves for increment in theirs] == [9, 10, 4]
    for name, value in paired.network.named_parameters():
        assert torch.equal(value, dict(successive.network.named_parameters())[name])
    assert ours[-1].path.energy != theirs[-1].path.energy


@pytest.mark.slow
def test_a_paired_process_goes_on_to_the_same_bits():
    process = start(PAIRED)
    walk = process.walk()
    first = next(walk)
    again = continue_process(process.config, TASK, process.state())
    for one, other in itertools.zip_longest(walk, again.walk()):
        assert_bits_equal(one.meta_gradient, other.meta_gradient)
        assert dataclasses.replace(one, meta_gradient={}, statistics={}) == dataclasses.replace(
            other, meta_gradient={}, statistics={}
        )
    assert first.path.moves == 10


# The whole network


def whole(*games, **changes):
    return tiny_config(**{"meta.parameters": "all", "tasks.games": list(games), "meta.batch_size": 1} | changes)


def test_variants_of_a_game_share_the_heads_of_its_rom():
    drawn = initial_parameters(whole("pong", "pong:difficulty=1", "asterix"), 0)
    owners = {name.split("/")[1] for name in drawn if name.startswith("heads/")}
    assert owners == {"pong", "asterix"}
    config = whole("pong", "pong:difficulty=1", "asterix")
    process = start_process(config, Task(0, 0, "pong:difficulty=1", 3), drawn)
    for end in ("policy.weight", "policy.bias", "value.weight", "value.bias"):
        assert torch.equal(process.network.get_parameter(end), drawn[f"heads/pong/{end}"])


def test_heads_are_drawn_alike_whatever_other_games_there_are():
    alone, among = initial_parameters(whole("pong"), 0), initial_parameters(whole("qbert", "breakout", "pong"), 0)
    assert_bits_equal(alone, {name: among[name] for name in alone})


def test_eighteen_actions_in_every_game_are_one_head_for_all_of_them():
    drawn = initial_parameters(whole("pong", "qbert", **{"env.full_action_space": True}), 0)
    assert not any(name.startswith("heads/") for name in drawn)
    assert drawn["policy.weight"].shape == (18, 256)


def test_a_game_that_the_initialization_has_no_heads_for_keeps_fresh_ones():
    drawn = initial_parameters(whole("qbert"), 0)
    fresh = start_process(tiny_config(**{"tasks.games": ["pong"], "meta.batch_size": 1}), Task(0, 0, "pong", 3),
                       without_heads(drawn))  # fmt: skip
    process = start_process(whole("pong"), Task(0, 0, "pong", 3), drawn)
    assert_bits_equal(dict(process.network.state_dict()), dict(fresh.network.state_dict()))
    part = {name: value for name, value in drawn.items() if not name.endswith("value.bias")}
    with pytest.raises(ValueError, match="does not fit"):
        start_process(whole("qbert"), Task(0, 0, "qbert", 3), part)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["reptile", "joint"])
def test_a_meta_step_of_the_whole_network_moves_the_heads_of_the_games_it_trained(rule):
    config = whole("pong", "pong:difficulty=1", "qbert", **{
        "meta.rule": rule, "meta.lr": 1.0, "meta.batch_size": 2, "stream.segment_updates": 24})  # fmt: skip
    before = initial_parameters(config, 0)
    learner = MetaLearner(config.meta, Checkpoint(0, before, {}))
    ends = []
    for slot, game in enumerate(["pong", "pong:difficulty=1"]):
        process = start_process(config, Task(0, slot, game, 7 + slot), before)
        for parcel in parcels(process.task, process.walk()):
            learner.receive(parcel)
        ends.append({name: value.detach().clone() for name, value in process.meta_learned.items()})
    after = learner.step().checkpoint.initialization
    for name, value in after.items():
        if name.startswith("heads/qbert/"):
            assert torch.equal(value, before[name])
        else:
            torch.testing.assert_close(value, (ends[0][name] + ends[1][name]) / 2, rtol=0, atol=1e-6)
