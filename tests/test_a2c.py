"""The learning process of advantage actor-critic on real games."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from leap_rl.atari.vector import background
from leap_rl.config import Config
from leap_rl.environments import Step
from leap_rl.processes import continue_process, start_process
from leap_rl.processes.a2c.loss import a2c_loss
from leap_rl.processes.a2c.process import initial_parameters, new_network
from leap_rl.types import Increment, Task, TaskError
from tests.helpers import another_process, screens, tiny_config

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TASK = Task(round=0, slot=1, name="space_invaders", seed=11)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    with another_process() as pool:
        yield pool


def start(config: Config, task: Task = TASK) -> Any:
    return start_process(config, task, initial_parameters(config, seed=5))


# --------------------------------------------------------------------------------- the process: its start


def test_the_encoder_starts_at_the_initialization_and_the_heads_at_the_tasks_seed() -> None:
    config = tiny_config(**{"agent.num_envs": 1})
    initialization = initial_parameters(config, seed=5)
    first, again, other = (
        start_process(config, Task(0, 0, "pong", seed), initialization).network.state_dict() for seed in (1, 1, 2)
    )
    for name, value in initialization.items():
        assert torch.equal(first[name], value)
        assert torch.equal(other[name], value)
    for name in ("policy.weight", "value.weight"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_the_initialization_is_left_as_it_was_given() -> None:
    config = tiny_config(**{"task.agent_steps": 40, "agent.num_envs": 1})
    initialization = initial_parameters(config, seed=5)
    before = {name: value.clone() for name, value in initialization.items()}
    assert len(list(start_process(config, TASK, initialization).walk())) == 1
    assert all(torch.equal(value, before[name]) for name, value in initialization.items())


@pytest.mark.parametrize("wrong", ["missing", "extra", "shape", "empty"])
def test_an_initialization_that_does_not_fit_is_a_value_error(wrong: str) -> None:
    config = tiny_config(**{"agent.num_envs": 1})
    initialization = dict(initial_parameters(config, seed=5))
    if wrong == "missing":
        del initialization["encoder.conv2.bias"]
    elif wrong == "extra":
        initialization["policy.weight"] = torch.zeros(6, 256)
    elif wrong == "shape":
        initialization["encoder.conv1.weight"] = torch.zeros(16, 3, 8, 8)
    else:
        initialization = {}
    with pytest.raises(ValueError, match="initialization"):
        start_process(config, TASK, initialization)


# ------------------------------------------------------------------------------- the process: one gradient


def fake_step(rewards: list[float], terminated: list[bool], truncated: list[bool], final: dict[int, Any]) -> Step:
    observations = screens(len(rewards), 4, 84, 84).numpy()
    return Step(observations, np.array(rewards, np.float32), np.array(terminated), np.array(truncated), final, [])


@pytest.mark.parametrize("clip", [1.0, 5.0, None])
def test_a_truncated_game_is_worth_its_last_observation_and_a_terminated_one_nothing(clip: float | None) -> None:
    process = start(tiny_config(**{"agent.reward_clip": clip, "agent.discount": 0.9}))
    final = screens(4, 84, 84).numpy()
    raw = [10.0, -10.0, 0.5, 3.0]
    step = fake_step(raw, [True, False, False, False], [False, True, False, False], {1: final})
    [rewards], [discounts], clipped_reward = process.actor.targets([step], process.network)
    clipped = [max(-clip, min(clip, reward)) if clip else reward for reward in raw]
    value = float(process.network(torch.from_numpy(final[None]))[1].detach())
    assert abs(value) > 0.01, "else nothing is seen"
    assert rewards.tolist() == pytest.approx([clipped[0], clipped[1] + 0.9 * value, clipped[2], clipped[3]], abs=1e-5)
    assert discounts.tolist() == pytest.approx([0, 0, 0.9, 0.9])
    assert clipped_reward == pytest.approx(sum(clipped)), "without the value"
    assert not rewards.requires_grad
    assert step.rewards.tolist() == raw, "the step keeps the raw rewards"


def test_actions_are_drawn_with_the_probabilities_of_the_policy() -> None:
    process = start(tiny_config(**{"agent.num_envs": 1}))
    logits = torch.tensor([0.0, 1.0, -2.0, 2.0, -1.0, 0.5])
    num_draws = 20_000
    noise = torch.cat([process.actor.draw_noise().flatten(0, 1) for _ in range(num_draws)])[:num_draws]
    counts = torch.bincount((logits - noise).argmax(-1), minlength=6)
    probabilities = logits.softmax(0)
    deviations = (probabilities * (1 - probabilities) / num_draws).sqrt()
    assert ((counts / num_draws - probabilities).abs() < 5 * deviations).all()


@pytest.mark.parametrize(("optimizer", "center"), [("rmsprop", "none"), ("adam", "background")])
def test_an_update_is_one_step_of_the_optimizer_on_the_loss_of_what_was_seen(optimizer: str, center: str) -> None:
    """Everything again from the recorded transitions, with a copy of the network and torch's own optimizers.
    Games are cut after 5 agent steps, so that the unroll holds truncated ones."""
    config = tiny_config(
        **{
            "agent.optimizer": optimizer, "agent.max_grad_norm": 0.1, "agent.unroll": 7, "agent.discount": 0.9,
            "env.max_episode_frames": 20, "env.noop_max": 0, "agent.num_envs": 2, "env.center": center,
        }
    )  # fmt: skip
    process = start(config, Task(0, 0, "pong", seed=11))
    copy = new_network(config, process.actor.envs.num_actions)
    copy.load_state_dict(process.network.state_dict())
    observations, steps, actions = [torch.from_numpy(process.actor.envs.observations.copy())], [], []
    take = process.actor.envs.step

    def recorded(chosen: Any) -> Step:
        step = take(chosen)
        more = 3 * (chosen % 2).astype(np.float32)  # random play may not score in 7 steps
        step = step._replace(rewards=step.rewards + more)
        actions.append(torch.from_numpy(chosen.copy()))
        steps.append(step._replace(rewards=step.rewards.copy()))
        observations.append(torch.from_numpy(step.observations.copy()))
        return step

    process.actor.envs.step = recorded  # type: ignore[method-assign]
    loss = process.update()

    def seen(screens: torch.Tensor) -> torch.Tensor:
        return screens.float() - 87 if center == "background" else screens  # Pong's background

    assert sum(len(step.final_observations) for step in steps) == 2
    logits, values = zip(*(copy(seen(screen)) for screen in observations[:-1]), strict=True)
    returns = torch.zeros(7, 2)
    for env in range(2):
        following = float(copy(seen(observations[-1]))[1][env].detach())
        for t in reversed(range(7)):
            reward = float(np.clip(steps[t].rewards[env], -1, 1))
            if steps[t].truncated[env]:
                following = float(copy(seen(torch.from_numpy(steps[t].final_observations[env][None])))[1].detach())
            following = reward + (0 if steps[t].terminated[env] else 0.9 * following)
            returns[t, env] = following
    expected = a2c_loss(torch.stack(logits), torch.stack(values), torch.stack(actions), returns, 0.5, 0.01)
    for ours, theirs in zip(loss, expected, strict=True):
        assert float(ours) == pytest.approx(float(theirs.detach()), rel=1e-4, abs=1e-6)

    expected.total.backward()
    unclipped = float(torch.cat([parameter.grad.flatten() for parameter in copy.parameters()]).norm())
    assert unclipped > 0.1, "else clipping is not seen"
    assert process.sums.gradient_norm == pytest.approx(unclipped, rel=1e-3), "the norm before clipping"
    torch.nn.utils.clip_grad_norm_(copy.parameters(), 0.1)
    if optimizer == "rmsprop":
        torch.optim.RMSprop(copy.parameters(), lr=7e-4, alpha=0.99, eps=1e-5).step()
    else:
        torch.optim.Adam(copy.parameters(), lr=7e-4, eps=1e-5).step()
    for (name, ours), theirs in zip(process.network.named_parameters(), copy.parameters(), strict=True):
        moved = 7e-3 if optimizer == "rmsprop" else 7e-4  # the first move of a parameter is at most this long
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * moved, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize(
    ("game", "env", "expected"),
    [
        ("pong", {}, [87] * 4),
        ("breakout", {}, [0] * 4),
        ("pong:mode=1", {"env.color": "rgb", "env.frame_stack": 2}, [144, 72, 17] * 2),
    ],
)
def test_the_center_is_the_background_of_the_game(game: str, env: dict[str, Any], expected: list[int]) -> None:
    config = tiny_config(**{"env.center": "background", **env})
    assert background(game, config.env) == expected
    center = start(config, Task(0, 0, game, seed=11)).actor.center
    if not any(expected):
        assert center is None, "nothing to subtract"
        return
    assert center is not None
    assert center.shape == (1, len(expected), 84, 84)
    assert center.mean((0, 2, 3)).tolist() == expected
    assert center.std((0, 2, 3)).max() == 0


def test_nothing_is_taken_from_the_pixels_unless_asked_for() -> None:
    assert background("pong", tiny_config().env) == [0] * 4
    assert start(tiny_config(), Task(0, 0, "pong", seed=11)).actor.center is None


# -------------------------------------------------------------------------------------- the process: walks


def assert_same_increments(left: list[Increment], right: list[Increment]) -> None:
    """To the last bit, but for the seconds it took."""
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        for name in ("path", "last"):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert ours.statistics.keys() == theirs.statistics.keys()
        for name in ours.statistics.keys() - {"seconds"}:
            assert ours.statistics[name] == theirs.statistics[name], name
        assert ours.meta_gradient.keys() == theirs.meta_gradient.keys()
        for name, value in ours.meta_gradient.items():
            assert torch.equal(value, theirs.meta_gradient[name]), name


@pytest.mark.parametrize(
    ("agent_steps", "updates"),
    [(480, [10, 10, 4]), (461, [10, 10, 4]), (400, [10, 10]), (120, [6])],  # 461 is rounded up to whole updates
)
def test_a_walk_yields_its_segments_in_order(agent_steps: int, updates: list[int]) -> None:
    process = start(tiny_config(**{"task.agent_steps": agent_steps}))
    increments = list(process.walk())
    assert [increment.last for increment in increments] == [False] * (len(updates) - 1) + [True]
    assert [increment.statistics["agent_steps"] for increment in increments] == [20 * count for count in updates]
    moves = [updates[0] - 1, *updates[1:]]  # a segment's first move starts at the last point of the one before
    assert [increment.path.moves for increment in increments] == moves
    assert sum(increment.statistics["frames"] for increment in increments) == process.actor.envs.num_frames
    expected = process.meta_learned
    for increment in increments:
        assert {name: value.shape for name, value in increment.meta_gradient.items()} == {
            name: parameter.shape for name, parameter in expected.items()
        }
        assert not any(value.requires_grad for value in increment.meta_gradient.values())
    assert list(process.walk()) == [], "the task is over"


@pytest.mark.slow
def test_scores_are_raw_and_rewards_clipped() -> None:
    config = tiny_config(**{"env.max_episode_frames": 200, "task.agent_steps": 1200, "stream.segment_updates": 25})
    process = start(config, Task(0, 0, "asterix", seed=2))
    steps, take = [], process.actor.envs.step

    def recorded(actions: Any) -> Step:
        steps.append(step := take(actions))
        return step._replace(rewards=step.rewards.copy())

    process.actor.envs.step = recorded  # type: ignore[method-assign]
    increments = list(process.walk())
    episodes = [episode for step in steps for episode in step.episodes]
    rewards = np.concatenate([step.rewards for step in steps])
    assert len(episodes) >= 12
    assert rewards.max() >= 50
    total = {name: sum(increment.statistics[name] for increment in increments) for name in increments[0].statistics}
    assert total["episodes"] == len(episodes)
    assert total["score_sum"] == sum(episode.score for episode in episodes) >= 50
    assert total["episode_length_sum"] == sum(episode.length for episode in episodes)
    assert total["clipped_reward_sum"] == pytest.approx(np.clip(rewards, -1, 1).sum())


@pytest.mark.parametrize("parameters", ["encoder", "all"])
@pytest.mark.parametrize("segment_updates", [10, 24])
def test_the_energy_without_the_loss_telescopes_to_the_ends_of_the_path(segment_updates: int, parameters: str) -> None:
    config = tiny_config(
        **{
            "meta.use_loss": False, "stream.segment_updates": segment_updates,
            "meta.parameters": parameters, "env.full_action_space": True,
        }
    )  # fmt: skip
    process = start(config)
    first = {name: value.detach().clone() for name, value in process.meta_learned.items()}
    increments = list(process.walk())
    assert sum(increment.path.moves for increment in increments) == 24, "the optimizer's last move is included"
    for name, last in process.meta_learned.items():
        total = torch.stack([increment.meta_gradient[name] for increment in increments]).sum(0)
        assert total.any()
        if segment_updates == 24:
            assert torch.equal(total, first[name] - last)
        else:  # float32 pieces: a few roundings of parameters below 2
            torch.testing.assert_close(total, first[name] - last.detach(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_same_task_gives_the_same_bits_and_another_seed_others() -> None:
    config = tiny_config(**{"task.agent_steps": 240})
    first, again = list(start(config).walk()), list(start(config).walk())
    assert_same_increments(first, again)
    other = list(start(config, Task(0, 1, "space_invaders", seed=12)).walk())
    assert any(not torch.equal(value, other[0].meta_gradient[name]) for name, value in first[0].meta_gradient.items())


@pytest.mark.parametrize("use_loss", [True, False])
def test_parameters_that_become_infinite_end_the_task(use_loss: bool) -> None:
    config = tiny_config(**{"agent.lr": 1e30, "meta.use_loss": use_loss})
    with pytest.raises(TaskError, match=r"non-finite .* at gradient step \d$"):
        next(start(config).walk())


# -------------------------------------------------------------------------------------- the process: state


def finish(config: Config, task: Task, state: bytes) -> tuple[list[Increment], Mapping[str, Tensor]]:
    """Runs in another process: goes on from a state to the end of the task."""
    process = continue_process(config, task, safetensors.torch.load(state))
    return list(process.walk()), process.network.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "precision", "metric", "parameters"),  # every pair of values occurs
    [
        ("rmsprop", "fp32", "energy", "encoder"),
        ("rmsprop", "bf16", "length", "all"),
        ("adam", "fp32", "length", "all"),
        ("adam", "bf16", "energy", "all"),
        ("adam", "bf16", "length", "encoder"),
    ],
)
def test_a_process_goes_on_in_another_one_to_the_same_bits(
    elsewhere: ProcessPoolExecutor, optimizer: str, precision: str, metric: str, parameters: str
) -> None:
    """From before the first step, and from the end of each segment."""
    config = tiny_config(
        **{
            "agent.optimizer": optimizer, "precision": precision, "meta.metric": metric,
            "meta.parameters": parameters, "env.full_action_space": parameters == "all",
            "env.center": "background" if metric == "length" else "none",
            "agent.num_envs": 2, "task.agent_steps": 110, "stream.segment_updates": 4,  # segments of 4, 4 and 3
            "env.max_episode_frames": 70,  # games end, and no-ops are drawn, within the few steps
            "env.sticky_actions": 0.5,  # the action that was held before a state shows after it
        }
    )  # fmt: skip
    task = Task(0, 1, "asterix", seed=11)
    process = start(config, task)
    walk, increments, continued = process.walk(), [], {}
    for num_updates in (0, 4, 8):
        while process.num_updates < num_updates:
            increments.append(next(walk))
        state = safetensors.torch.save(dict(process.state()))
        continued[num_updates] = elsewhere.submit(finish, config, task, state)
    increments += walk
    assert len(increments) == 3
    for num_updates, result in continued.items():
        remaining, parameters_there = result.result()
        assert_same_increments(remaining, increments[num_updates // 4 :])
        for name, value in process.network.state_dict().items():
            assert torch.equal(value, parameters_there[name]), (num_updates, name)


def test_a_state_is_a_copy_and_taking_it_disturbs_nothing() -> None:
    config = tiny_config(**{"agent.num_envs": 2, "task.agent_steps": 110, "stream.segment_updates": 4})
    expected = list(start(config).walk())
    process = start(config)
    walk = process.walk()
    first = next(walk)
    state = process.state()
    before = safetensors.torch.save(dict(state))
    assert_same_increments([first, *walk], expected)
    assert safetensors.torch.save(dict(state)) == before
    assert safetensors.torch.save(dict(continue_process(config, TASK, state).state())) == before


@pytest.mark.parametrize("rule", ["leap", "reptile"])
def test_there_is_no_state_within_a_segment(rule: str) -> None:
    """There the path holds sums that a state would have to round."""
    process = start(tiny_config(**{"agent.num_envs": 2, "meta.rule": rule}))
    process.state()
    process.update()
    with pytest.raises(RuntimeError, match="cut"):
        process.state()
    next(process.walk())
    process.state()
