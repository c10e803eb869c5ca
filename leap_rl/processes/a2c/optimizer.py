"""The optimizer of the inner loop: one pass over all parameters, which also measures how far they moved.

A step is bound by memory. What Leap asks of it, the norm of the move, is had in passing, while both ends are at hand;
torch has no operation that does, so that on a CPU the pass is a loop of our own, compiled by Numba. Other devices take
torch's fused Adam, of which RMSprop is the case without momentum and without correction of the bias.
"""

import numpy as np
import torch
from numba import float32, njit
from torch import Tensor

from leap_rl.config import AgentConfig
from leap_rl.leap import squared_norm_of
from leap_rl.types import Tensors

BLOCK = 8192  # squares that are added up in float32, before the sum goes on in float64


class Optimizer:
    """RMSprop or Adam, in place on ``parameters`` [N] (float32); measures the move of the first ``num_measured``."""

    def __init__(self, parameters: Tensor, agent: AgentConfig, num_measured: int) -> None:
        self._parameters, self.num_measured = parameters.detach(), num_measured
        self._adam = agent.optimizer == "adam"
        self._lr, self._epsilon = agent.lr, agent.epsilon
        self._decays = (0.9, 0.999) if self._adam else (0.0, agent.rmsprop_decay)
        self.squares = torch.zeros_like(self._parameters)  # the running mean of squared gradients
        self.means = torch.zeros_like(self._parameters) if self._adam else None
        # Of RMSprop so many that the correction is 1, in every bit.
        self.steps = torch.full((), 0.0 if self._adam else 1e12, device=parameters.device)

    def step(self, gradient: Tensor, scale: float = 1.0) -> float:
        """One step against ``gradient`` [N] times ``scale``. Returns the squared norm of the measured part's move."""
        if self._adam:
            self.steps += 1
        step = self._step_compiled if self._parameters.is_cpu else self._step_of_torch
        return step(gradient, scale)

    def _step_compiled(self, gradient: Tensor, scale: float) -> float:
        (decay, square_decay), steps = self._decays, float(self.steps)
        rate, correction = self._lr / (1 - decay**steps), 1 / (1 - square_decay**steps) ** 0.5
        factors = scale, rate, correction, self._epsilon, decay, 1 - decay, square_decay, 1 - square_decay
        numbers = [np.float32(factor) for factor in factors]
        vectors = self._parameters, gradient, self.squares, self.means
        arrays = [None if vector is None else vector.numpy() for vector in vectors]
        measured, rest = slice(self.num_measured), slice(self.num_measured, None)
        squared_norm, _ = (_step(*(a if a is None else a[part] for a in arrays), *numbers) for part in (measured, rest))
        return float(squared_norm)

    @torch.no_grad()
    def _step_of_torch(self, gradient: Tensor, scale: float) -> float:
        before = self._parameters[: self.num_measured].clone()
        gradient = gradient * scale
        # RMSprop's mean is the gradient itself: it is given a second time, and keeps its bits.
        torch._fused_adam_(
            [self._parameters], [gradient], [gradient if self.means is None else self.means], [self.squares], [],
            [self.steps], lr=self._lr, beta1=self._decays[0], beta2=self._decays[1], weight_decay=0,
            eps=self._epsilon, amsgrad=False, maximize=False,
        )  # fmt: skip
        return squared_norm_of(self._parameters[: self.num_measured] - before)

    def state(self) -> Tensors:
        """Copies of what the next step depends on, besides parameters and gradient."""
        state = {"squares": self.squares.clone()}
        return state if self.means is None else state | {"means": self.means.clone(), "steps": self.steps.clone()}

    def load_state(self, state: Tensors) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(value)


@njit(fastmath={"reassoc"})
def _plus(sum_, term):  # type: ignore[no-untyped-def]
    """In any order: only so can the sum be taken several numbers at a time. All else is done as it is written, and to
    the same bits by every CPU."""
    return sum_ + term


@njit(error_model="numpy")
def _step(  # type: ignore[no-untyped-def]
    parameters, gradient, squares, means, scale, rate, correction, epsilon, decay, fresh, square_decay, fresh_square
):
    squared_norm = 0.0
    for start in range(0, len(parameters), BLOCK):
        part, of_block = slice(start, start + BLOCK), float32(0)
        p, g, s = parameters[part], gradient[part], squares[part]
        m = None if means is None else means[part]
        for i in range(len(p)):
            scaled = g[i] * scale
            s[i] = square_decay * s[i] + fresh_square * scaled * scaled
            if m is None:
                mean = scaled
            else:
                mean = m[i] = decay * m[i] + fresh * scaled
            before = p[i]
            p[i] = before - rate * mean / (np.sqrt(s[i]) * correction + epsilon)
            move = p[i] - before
            of_block = _plus(of_block, move * move)
        squared_norm += of_block
    return squared_norm
