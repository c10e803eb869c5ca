"""The optimizer of the inner loop: a step over one vector of parameters, a piece at a time.

What is done to a piece (clipping, the step, measuring how far it moved) is done while it is in the core's cache. The
step is torch's own: of its fused optimizers only Adam runs on a CPU, and RMSprop is Adam without momentum and without
correction of the bias.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from leap_rl.config import AgentConfig
from leap_rl.leap import PIECE, squared_norm_of
from leap_rl.types import Tensors


class Optimizer:
    """RMSprop or Adam, in place on ``parameters`` [N]; measures the moves of the first ``num_measured`` of them."""

    def __init__(self, parameters: Tensor, agent: AgentConfig, num_measured: int) -> None:
        self._adam = agent.optimizer == "adam"
        self._lr, self._epsilon = agent.lr, agent.epsilon
        self._decays = (0.9, 0.999) if self._adam else (0.0, agent.rmsprop_decay)
        self.squares = torch.zeros_like(parameters)  # the running mean of squared gradients
        self.means = torch.zeros_like(parameters) if self._adam else None
        # Of RMSprop so many that the correction is 1, in every bit.
        self.steps = torch.full((), 0.0 if self._adam else 1e12, device=parameters.device)
        measured, rest = num_measured, len(parameters) - num_measured
        self._sizes = [min(PIECE, n - i) for n in (measured, rest) for i in range(0, n, PIECE)]
        self.num_measured = -(-measured // PIECE)  # pieces
        moves, clipped = ([scratch[:size] for size in self._sizes] for scratch in torch.empty(2, PIECE).to(parameters))
        means = [None] * len(self._sizes) if self.means is None else self.split(self.means)
        self._pieces = list(zip(self.split(parameters), means, self.split(self.squares), moves, clipped, strict=True))

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """The pieces of a vector [N]: views. What is measured comes first, in ``num_measured`` of them."""
        return torch.split(vector, self._sizes)

    @torch.no_grad()
    def step(self, gradient: Sequence[Tensor], scale: float | None = None) -> float:
        """One step against ``gradient``, in the pieces of :meth:`split`, times ``scale`` if given. Returns the squared
        norm of the move of what is measured."""
        squared_norm = 0.0
        if self._adam:
            self.steps += 1
        for i, (part, (parameters, mean, square, move, clipped)) in enumerate(zip(gradient, self._pieces, strict=True)):
            if scale is not None:
                part = torch.mul(part, scale, out=clipped)
            if i < self.num_measured:
                move.copy_(parameters)
            # RMSprop's mean is the gradient itself: it is given a second time, and keeps its bits.
            torch._fused_adam_(
                [parameters], [part], [part if mean is None else mean], [square], [], [self.steps],
                lr=self._lr, beta1=self._decays[0], beta2=self._decays[1], weight_decay=0, eps=self._epsilon,
                amsgrad=False, maximize=False,
            )  # fmt: skip
            if i < self.num_measured:
                squared_norm += squared_norm_of(torch.sub(parameters, move, out=move))
        return squared_norm

    def state(self) -> Tensors:
        """Copies of what the next step depends on, besides parameters and gradient."""
        state = {"squares": self.squares.clone()}
        return state if self.means is None else state | {"means": self.means.clone(), "steps": self.steps.clone()}

    def load_state(self, state: Tensors) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(value)
