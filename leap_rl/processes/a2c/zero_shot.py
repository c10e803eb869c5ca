"""Plays with a policy before any update, to see what an initialization can do as it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leap_rl.environments import Vector
from leap_rl.processes.a2c.rollout import draw_actions
from leap_rl.seeding import Purpose, derive_seed

EPISODES = 8  # one in each environment, so that short ones do not count more often than long ones


@torch.no_grad()
def play(
    policy: Callable[[NDArray[Any]], Tensor], make_envs: Callable[[int, int], Vector], task_seed: int
) -> list[float]:
    """Returns the scores of the first episodes of a few environments.

    ``policy`` maps observations [B, …] to logits [B, A]; ``make_envs`` takes B and a seed. Environments and actions
    have random streams of their own, and the task's own are left alone. An episode that a limit cuts counts with its
    score so far.
    """
    seed = derive_seed(task_seed, Purpose.ZERO_SHOT)
    env_seed, action_seed = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
    envs = make_envs(EPISODES, env_seed)
    actions_rng = torch.Generator().manual_seed(action_seed >> 1)
    scores, playing = np.zeros(EPISODES), np.ones(EPISODES, np.bool_)
    while playing.any():
        step = envs.step(draw_actions(policy(envs.observations), actions_rng))
        scores[playing] += step.rewards[playing]
        playing[[episode.env for episode in step.episodes]] = False
    return scores.tolist()
