"""Defines A2C on an environment of Gymnasium's: its vector, network and heads. The inner loop is in
a2c/actor_critic.py."""

from collections.abc import Callable
from functools import partial

from leap_rl.limits import COPIES, check_memory
from leap_rl.processes.a2c.actor_critic import ActorCriticProcess, draw_initialization
from leap_rl.processes.a2c.network import ActorCritic
from leap_rl.processes.gymnasium.config import GymnasiumConfig
from leap_rl.processes.gymnasium.envs import KEY, EnvVector, spaces_of
from leap_rl.processes.gymnasium.names import parse_name
from leap_rl.processes.gymnasium.networks import new_network
from leap_rl.types import BadInputError, Tensors


class GymnasiumProcess(ActorCriticProcess[GymnasiumConfig]):
    """Trains A2C in one environment, as a ``LearningProcess``."""

    def make_envs(self, num_envs: int, seed: int, zero_shot: bool = False) -> EnvVector:
        """Returns copies of the environment."""
        return EnvVector(self.task.name, num_envs, self.config.env, seed)

    def make_network(self, num_actions: int) -> ActorCritic:
        """Returns the network that the environment's spaces ask for."""
        return new_network(spaces_of(self.task.name, self.config.env), self.config.agent.value_gain)

    def heads_owner(self) -> str:
        """Returns whose heads the environment takes."""
        return owner_of_heads(self.task.name)


def owner_of_heads(name: str) -> str:
    """Returns whose heads in the initialization an environment takes: those of its id, whatever its options."""
    kind, _ = parse_name(name)
    return kind.replace("/", ".")


def initial_parameters(config: GymnasiumConfig, seed: int) -> Tensors:
    """Draws a shared initialization: name → float32 tensor of what is meta-learned."""
    owners: dict[str, Callable[[], ActorCritic]] = {}
    for name in config.tasks.environments:
        if owner_of_heads(name) not in owners:
            make_network = partial(new_network, spaces_of(name, config.env), config.agent.value_gain)
            owners[owner_of_heads(name)] = make_network
    return draw_initialization(config.meta, owners, seed)


def check_tasks(config: GymnasiumConfig) -> None:
    """Raises BadInputError, one line, where a task has no environment, or none that this network can see."""
    tasks, agent = config.tasks, config.agent
    first = tasks.environments[0]
    shape = spaces_of(first, config.env).observations.shape
    for name in (*tasks.environments, *tasks.validation, *tasks.held_out):
        found = spaces_of(name, config.env).observations.shape
        if found != shape:
            raise BadInputError(
                f"{KEY} = {name}: shows {found}, but {first} shows {shape}: one encoder sees all tasks; "
                "env.wrappers may change what they show"
            )
    try:
        network = new_network(spaces_of(first, config.env), agent.value_gain)
        seen = spaces_of(first, config.env).observations
        size = 4 * agent.num_envs * (agent.unroll + 3) * seen.low.size
        parameters = sum(parameter.numel() for parameter in network.parameters())
        keys = f"agent.num_envs = {agent.num_envs}, agent.unroll = {agent.unroll}"
        check_memory(size + 4 * COPIES * parameters, keys)
    except ValueError as error:
        raise BadInputError(f"{KEY} = {first}: {error}") from None
