"""Defines what learning processes on Atari games, a2c and rllib, have in common: their tasks and environments.

Another suite of games does not start from here: processes/gymnasium/ is the template for one.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from leap_rl.atari.config import EnvConfig, TasksConfig
from leap_rl.atari.games import catalogue
from leap_rl.atari.variants import expand
from leap_rl.config import require
from leap_rl.extras import require_extra
from leap_rl.limits import COPIES
from leap_rl.pools import check_batch, check_parts
from leap_rl.processes import ProcessType
from leap_rl.processes.agents import ActorCriticConfig, AgentConfig, episodic
from leap_rl.processes.layers import CONVOLUTIONS, NUM_FEATURES, sides
from leap_rl.types import Parts

EMULATOR, FRAMES = 700_000, 4 * 250 * 160  # bytes of an emulator, and of its last frames


class AtariConfig(ActorCriticConfig):
    """Holds the configuration of a run whose tasks are Atari games."""

    tasks: TasksConfig
    agent: AgentConfig
    env: EnvConfig = EnvConfig()

    def check(self) -> None:
        """Raises ValueError, one line, where keys do not go together."""
        env = self.env
        check_parts(self.tasks, "games", "game")
        super().check()
        require(
            env.max_episode_frames > env.noop_max,
            f"env.max_episode_frames = {env.max_episode_frames}: must exceed env.noop_max = {env.noop_max}",
        )

    def check_training(self) -> None:
        """Raises ValueError, one line, where there are too few games to meta-train on."""
        check_batch(self.tasks, "games", self.meta.batch_size)

    def memory(self) -> tuple[int, str]:
        """Returns how many bytes a worker takes, emulators and activations above all, and what decides it."""
        agent, env = self.agent, self.env
        first, second = CONVOLUTIONS
        conv1, conv2 = sides(env.screen_size)
        parameters = first.channels * first.kernel**2 * env.channels
        parameters += second.channels * (second.kernel**2 * first.channels + NUM_FEATURES * conv2**2)
        seen = env.screen_size**2 * env.channels  # an observation
        computed = 4 * (first.channels * conv1**2 + second.channels * conv2**2 + NUM_FEATURES)  # activations of one
        per_env = EMULATOR + FRAMES + 8 * env.frame_skip + (agent.unroll + 3) * (seen + computed)
        keys = (
            f"agent.num_envs = {agent.num_envs}, agent.unroll = {agent.unroll}, env.frame_stack = {env.frame_stack}, "
            f"env.frame_skip = {env.frame_skip}, env.screen_size = {env.screen_size}"
        )
        return agent.num_envs * per_env + 4 * COPIES * parameters, keys

    def extendable(self) -> tuple[str, ...]:
        """Returns the keys, of lists of names, that may change in a run without changing a bit of what is done."""
        return ("tasks.validation", "tasks.held_out")


G = TypeVar("G", bound=AtariConfig)


class AtariProcessType(ProcessType[G]):
    """Describes a learning process whose tasks are Atari games and their variants."""

    measures = episodic(
        "game", "games", frame="frames", paired="heads, environments and action noise", human_normalized=True
    )
    shape_keys: ClassVar[tuple[str, ...]] = ("env.color", "env.frame_stack", "env.screen_size")
    training_keys: ClassVar[tuple[str, ...]] = ("agent", "env", "precision")

    def resolve(self, config: G) -> G:
        """Raises BadInputError where the emulator is not installed."""
        require_extra("atari", f"process = {config.process}")
        return config

    def parts(self, config: G) -> Parts:
        """Returns the games of the section ``tasks``."""
        return Parts(config.tasks.games, config.tasks.validation, config.tasks.held_out)

    def parse(self, config: G, text: str) -> list[str]:
        """Returns the games of a pattern, or one by its name. Raises BadInputError where there are none."""
        return expand(text)

    def evaluate_on(self, tree: dict[str, Any], names: Sequence[str]) -> None:
        """Makes ``names`` the games of a configuration's nested mappings."""
        tree["tasks"] = {"games": list(names), "held_out": []}

    def seconds_per_step(self, name: str) -> float:
        """Returns how long the emulation of an agent step takes; 0 where the task is no game of ALE's."""
        game = catalogue().get(name.partition(":")[0])
        return game.seconds_per_step if game else 0.0

    def facts(self, config: G) -> Iterator[tuple[str, str]]:
        """Yields what a model card says of games and observations, as (name, text)."""
        yield from super().facts(config)
        env = config.env
        yield (
            "observations",
            f"{env.frame_stack} {env.color} frames of {env.screen_size}×{env.screen_size}, one of {env.frame_skip} "
            f"emulator frames; sticky actions {env.sticky_actions:g}",
        )
