"""Plays a game with a network as it is, to be watched."""

from collections.abc import Iterator

import numpy as np
import torch

from leap_rl.atari.games import parse_game
from leap_rl.atari.vector import AtariVector
from leap_rl.processes.a2c.process import A2CProcess
from leap_rl.processes.a2c.rollout import draw_actions
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import Frame


@torch.no_grad()
def watch(process: A2CProcess) -> Iterator[Frame]:
    """Yields a frame an agent step, episode after episode, without end. The process itself stays as it is: emulator and
    actions have random streams of their own, which depend on the task's seed alone."""
    config, task = process.config, process.task
    env_seed, action_seed = np.random.SeedSequence(derive_seed(task.seed, Purpose.PLAY)).generate_state(2, np.uint64)
    envs = AtariVector(parse_game(task.name), 1, config.env, int(env_seed))
    actions_rng = torch.Generator().manual_seed(int(action_seed) >> 1)
    score, episode = 0.0, 1
    while True:
        yield Frame(envs.screen(0), score, episode)
        logits, _ = process.network(process.actor.see(envs.observations))
        step = envs.step(draw_actions(logits, actions_rng))
        score += float(step.rewards[0])
        if step.episodes:
            score, episode = 0.0, episode + 1
