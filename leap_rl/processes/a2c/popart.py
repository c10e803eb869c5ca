"""Learns values on one scale in every game: PopArt (van Hasselt et al. 2016; Hessel et al. 2019).

The loss sees returns G and values v divided by the running deviation σ of the task's returns: its value term, its
advantages, and so its gradients, are of one size whatever the rewards are. The papers keep a head n of normalized
outputs, v = σ n + μ, and rescale it whenever σ and μ change so that v does not. Here the head keeps v itself, and its
step is taken in the papers' units: the optimizer is given σ ∇v, the gradient in n's parameters, and σ times its move is
added. Both are the same algorithm (a test holds this one to a transcription of theirs), but here a change of the
statistics changes no parameter: Leap sees no move that is none, and a meta-learned head means the same in every task.
The mean μ drops out, but for σ² = E[G²] − μ².
"""

import math

import torch
from torch import Tensor

from leap_rl.processes.a2c.network import Rollout
from leap_rl.processes.a2c.optimizer import Optimizer
from leap_rl.types import Tensors

DECAY = 0.99  # of the statistics, at each update
SMALLEST_DEVIATION = 1e-2  # where all returns are equal, noise must not be scaled up without end


class PopArt:
    """Keeps the statistics of a task's returns, and has an optimizer step the value head in units of their deviation.

    It takes the place of the optimizer. The value head is the last ``num_head`` of the optimizer's parameters [N].
    """

    def __init__(self, optimizer: Optimizer, num_head: int) -> None:
        self._optimizer, self._num_head = optimizer, num_head
        self.statistics = torch.tensor([0.0, 1.0], dtype=torch.float64)  # running means of G and of G²

    @property
    def deviation(self) -> float:
        """Returns σ."""
        mean, square = self.statistics.tolist()
        return float(max(square - mean * mean, SMALLEST_DEVIATION**2) ** 0.5)

    def observe(self, returns: Tensor) -> None:
        """Counts the returns of one update, of any shape, in the statistics."""
        returns = returns.double()
        newest = torch.stack([returns.mean(), returns.square().mean()]).cpu()
        self.statistics.lerp_(newest, 1 - DECAY)

    def scaled(self, rollout: Rollout) -> Rollout:
        """Counts the returns of a rollout, and returns it with returns and values in deviations."""
        self.observe(rollout.returns)
        unit = self.deviation
        return rollout._replace(returns=rollout.returns / unit, values=rollout.values / unit, unit=unit)

    def norm(self, gradient: Tensor) -> float:
        """Returns the norm of a gradient [N], the head's part in the parameters of n."""
        rest, head = gradient[: -self._num_head], gradient[-self._num_head :]
        return math.hypot(self._optimizer.norm(rest), self._optimizer.norm(head) * self.deviation)

    @torch.no_grad()
    def step(self, gradient: Tensor, scale: float = 1.0) -> Tensor:
        """Takes one step against ``scale`` × ``gradient`` [N], which is left as it was. Returns what was added to the
        parameters [N], valid until the next step."""
        deviation, head = self.deviation, slice(-self._num_head, None)
        given, parameters = gradient[head].clone(), self._optimizer.parameters[head]
        before = parameters.clone()
        gradient[head] *= deviation
        step = self._optimizer.step(gradient, scale)
        gradient[head] = given
        step[head] *= deviation
        torch.add(before, step[head], out=parameters)
        return step

    def state(self) -> Tensors:
        """Returns copies of what the next step depends on, besides parameters and gradient."""
        return {"statistics": self.statistics.clone(), **self._optimizer.state()}

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` was taken."""
        self.statistics.copy_(state["statistics"])
        self._optimizer.load_state(state)
