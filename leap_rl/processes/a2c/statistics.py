"""Counts the updates of a segment, and makes the statistics of an increment of them (docs/metrics.md).

A statistic of the rollout is counted where it is played (rollout.py), all others here. processes/agents.py says which
means are shown.
"""

from dataclasses import dataclass, field

from leap_rl.meta.ledger import added
from leap_rl.processes.a2c.loss import A2CLoss
from leap_rl.processes.a2c.network import Rollout


@dataclass
class Sums:
    """Sums over the updates of one segment."""

    updates: int = 0
    agent_steps: int = 0
    loss: float = 0.0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    entropy: float = 0.0
    gradient_norm: float = 0.0
    seconds: float = 0.0
    of_rollouts: dict[str, float] = field(default_factory=dict)  # what the rollouts count themselves (rollout.py)
    zero_shot_episodes: int = 0  # played before the first update of an evaluation's task
    zero_shot_score: float = 0.0

    def add(self, loss: A2CLoss, gradient_norm: float, rollout: Rollout, seconds: float) -> None:
        """Counts one update."""
        self.updates += 1
        self.agent_steps += rollout.actions.numel()
        self.loss += float(loss.total)
        self.policy_loss += float(loss.policy)
        self.value_loss += float(loss.value)
        self.entropy += float(loss.entropy)
        self.gradient_norm += gradient_norm
        self.seconds += seconds
        self.of_rollouts = added(self.of_rollouts, rollout.statistics)

    def statistics(self) -> dict[str, float]:
        """Returns what an increment reports. Means are made of these sums where they are shown (measures.py)."""
        return {
            "updates": self.updates,
            "agent_steps": self.agent_steps,
            "seconds": self.seconds,
            "loss_sum": self.loss,
            "policy_loss_sum": self.policy_loss,
            "value_loss_sum": self.value_loss,
            "entropy_sum": self.entropy,
            "gradient_norm_sum": self.gradient_norm,
            **self.of_rollouts,
        }

    def zero_shot_statistics(self) -> dict[str, float]:
        """Returns what an increment of an evaluation's task reports besides."""
        return {"zero_shot_episodes": self.zero_shot_episodes, "zero_shot_score_sum": self.zero_shot_score}
