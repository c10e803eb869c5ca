"""Defines the section ``agent``, which all actor-critics have, and what their numbers are called."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from leap_rl.config import Config, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section, require
from leap_rl.measures import Measures


class AgentConfig(Section):
    """Holds the section ``agent``. rllib refuses a key that processes/rllib/config.py does not name."""

    num_envs: PositiveInt = 32
    unroll: Annotated[PositiveInt, Field(description="agent steps per environment and update")] = 5
    discount: Fraction = 0.99
    entropy_cost: NonNegativeFloat = 0.01
    value_cost: NonNegativeFloat = 0.5
    reward_clip: Annotated[PositiveFloat | None, Field(description="|reward| at most; null: unclipped")] = 1.0
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    lr: PositiveFloat
    rmsprop_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    epsilon: PositiveFloat = 1e-5
    max_grad_norm: Annotated[PositiveFloat | None, Field(description="null: no clipping")] = None
    value_scale: Annotated[
        Literal["none", "popart"], Field(description="popart: values and advantages in deviations of the returns")
    ] = "none"
    value_gain: Annotated[NonNegativeFloat, Field(description="of the value head's first weights; 0: zeros")] = 1.0
    rmsprop_start: Annotated[
        Literal["zeros", "ones", "corrected"], Field(description="running squares; corrected: of their bias, as Adam's")
    ] = "zeros"
    layer_norm: Annotated[bool, Field(description="the encoder's features are normalized before their ReLU")] = False


class ActorCriticConfig(Config):
    """Holds the configuration of a run whose tasks an actor-critic learns."""

    carries_out: ClassVar[frozenset[str]] = frozenset({"paired", "continual"})  # (a2c/actor_critic.py)

    agent: AgentConfig

    @property
    def update_steps(self) -> int:
        """Returns the agent steps a gradient step."""
        return self.agent.num_envs * self.agent.unroll

    def check(self) -> None:
        """Raises ValueError, one line, where keys do not go together."""
        require(
            self.agent.rmsprop_start == "zeros" or self.agent.optimizer == "rmsprop",
            f"agent.rmsprop_start = {self.agent.rmsprop_start}: needs agent.optimizer = rmsprop",
        )


def episodic(task: str, tasks: str, frame: str, paired: str, human_normalized: bool = False) -> Measures:
    """Returns the words of a process whose score is the return of an episode."""
    return Measures(
        task=task,
        tasks=tasks,
        step="agent steps",
        frame=frame,
        score="episodic_return",
        score_text="return",
        counts=("score_sum", "episodes"),
        digits=1,
        final_text="mean raw return over the episodes of the last tenth of training",
        paired=paired,
        means={
            "episode_length": ("episode_length_sum", "episodes"),
            "loss": ("loss_sum", "updates"),
            "policy_loss": ("policy_loss_sum", "updates"),
            "value_loss": ("value_loss_sum", "updates"),
            "entropy": ("entropy_sum", "updates"),
            "gradient_norm": ("gradient_norm_sum", "updates"),
            "clipped_reward": ("clipped_reward_sum", "agent_steps"),
        },
        totals=("episodes",),
        zero_shot_counts=("zero_shot_score_sum", "zero_shot_episodes"),
        human_normalized=human_normalized,
    )
