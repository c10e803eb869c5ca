"""Defines A2C on an Atari game: which environments, network and heads its task has. The inner loop is in
actor_critic.py."""

from collections.abc import Callable
from functools import partial

import torch

from leap_rl.atari.games import catalogue, parse_game
from leap_rl.atari.vector import AtariVector, background
from leap_rl.processes.a2c.actor_critic import ActorCriticProcess, draw_initialization
from leap_rl.processes.a2c.config import A2CConfig
from leap_rl.processes.a2c.network import ActorCritic, Encoder
from leap_rl.processes.atari import AtariConfig
from leap_rl.types import Tensors

ZERO_SHOT_FRAMES = 18_000  # at most, of an episode: five minutes of play, as Mnih et al. 2015 evaluate


class A2CProcess(ActorCriticProcess[A2CConfig]):
    """Trains A2C on one game, as a ``LearningProcess``."""

    def make_envs(self, num_envs: int, seed: int, zero_shot: bool = False) -> AtariVector:
        """Returns emulators of the game."""
        env = self.config.env
        if zero_shot:
            env = env.model_copy(update={"max_episode_frames": min(ZERO_SHOT_FRAMES, env.max_episode_frames)})
        return AtariVector(parse_game(self.task.name), num_envs, env, seed, self.config.workers.cpus)

    def make_network(self, num_actions: int) -> ActorCritic:
        """Returns the network of Mnih et al. 2013."""
        return new_network(self.config, num_actions)

    def heads_owner(self) -> str:
        """Returns whose heads the game takes."""
        return owner_of_heads(self.config, self.task.name)

    def background(self) -> list[int]:
        """Returns the game's background. Far from zero, it is an offset common to all weights of the first layer, with
        which Pong (87 of 255) is learned far more slowly."""
        return background(self.task.name, self.config.env)


def new_network(config: AtariConfig, num_actions: int) -> ActorCritic:
    """Returns the network for the observations of ``env``; its parameters are not drawn yet."""
    compute_dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    encoder = Encoder(config.env.channels, config.env.screen_size, compute_dtype, config.agent.layer_norm)
    return ActorCritic(encoder, num_actions, config.agent.value_gain)


def owner_of_heads(config: AtariConfig, game: str) -> str:
    """Returns whose heads in the initialization a game takes: its ROM's, which all of its variants share, or those of
    all games (an empty string) where ``meta.parameters`` is ``all`` and every game has the same 18 actions."""
    if config.meta.parameters == "all" and config.env.full_action_space:
        return ""
    return parse_game(game).rom


def initial_parameters(config: AtariConfig, seed: int) -> Tensors:
    """Draws a shared initialization: name → float32 tensor of what is meta-learned."""
    owners: dict[str, Callable[[], ActorCritic]] = {}
    for game in config.tasks.games:
        num_actions = 18 if config.env.full_action_space else catalogue()[parse_game(game).rom].num_actions
        owners.setdefault(owner_of_heads(config, game), partial(new_network, config, num_actions))
    return draw_initialization(config.meta, owners, seed)
