"""Defines the optimizer of the inner loop: RMSprop or Adam on one vector, which says by how much it moved the
parameters.

The arithmetic is that of ``torch.optim.RMSprop`` and ``torch.optim.Adam``, which do not hand out the step that they
take: Leap would have to copy all parameters before it and take the difference after it.
"""

import torch
from torch import Tensor

from leap_rl.processes.agents import AgentConfig
from leap_rl.types import Tensors


class Optimizer:
    """Steps ``parameters`` [N] in place."""

    def __init__(self, parameters: Tensor, agent: AgentConfig) -> None:
        self.parameters = parameters.detach()
        self._adam = agent.optimizer == "adam"
        self._lr, self._epsilon = agent.lr, agent.epsilon
        self._decay, self._square_decay = (0.9, 0.999) if self._adam else (0.0, agent.rmsprop_decay)
        # The running mean of squared gradients. TensorFlow's RMSprop starts it at 1, which makes the first steps small.
        start = 1.0 if agent.rmsprop_start == "ones" and not self._adam else 0.0
        self.squares = torch.full_like(self.parameters, start)
        self._corrected = self._adam or agent.rmsprop_start == "corrected"
        self.means = torch.zeros_like(self.parameters) if self._adam else None  # the running mean of gradients
        self.num_steps = 0
        self._step = torch.empty_like(self.parameters)
        self._zero = self.parameters.new_zeros(())

    def norm(self, gradient: Tensor) -> float:
        """Returns the norm of a gradient [N], by which it is clipped."""
        return float(torch.linalg.vector_norm(gradient))

    @torch.no_grad()
    def step(self, gradient: Tensor, scale: float = 1.0) -> Tensor:
        """Takes one step against ``gradient`` [N] times ``scale``. Returns what was added to the parameters [N], valid
        until the next step."""
        self.num_steps += 1
        self.squares.mul_(self._square_decay)
        self.squares.addcmul_(gradient, gradient, value=(1 - self._square_decay) * scale * scale)
        root = torch.sqrt(self.squares, out=self._step)
        if self._corrected:
            root.mul_((1 - self._square_decay**self.num_steps) ** -0.5)
        if self.means is None:
            rate, mean = self._lr * scale, gradient
        else:
            rate = self._lr / (1 - self._decay**self.num_steps)
            mean = self.means.mul_(self._decay).add_(gradient, alpha=(1 - self._decay) * scale)
        torch.addcdiv(self._zero, mean, root.add_(self._epsilon), value=-rate, out=self._step)
        self.parameters.add_(self._step)
        return self._step

    def state(self) -> Tensors:
        """Returns copies of what the next step depends on, besides parameters and gradient."""
        state = {"squares": self.squares.clone(), "num_steps": torch.tensor(self.num_steps)}
        return state if self.means is None else state | {"means": self.means.clone()}

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` was taken."""
        self.num_steps = int(state["num_steps"])
        self.squares.copy_(state["squares"])
        if self.means is not None:
            self.means.copy_(state["means"])
