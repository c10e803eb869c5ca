"""Walks the path of a learning process whose parameters are one vector: Leap's energy with few passes over memory.

:class:`EnergyPath` computes what ``PathAccumulator`` computes, for the energy of successive losses, without copies:

* It owns the memory of the gradients and hands it out, so that none is copied. Eight are added up together: reading
  them side by side takes half the time of one after the other.
* The optimizer tells it each move, so that no point is copied to be compared with the next one.
* It is cut before the optimizer's step, where the live parameters are the newest point.

:class:`PlainPath` has the same interface and leaves the work to a ``PathAccumulator``: for every other variant.
"""

import math
from typing import Any

import torch
from torch import Tensor

from leap_rl.config import PathConfig
from leap_rl.leap import PathAccumulator, weights_of_move
from leap_rl.meta.rules import make_path, shift
from leap_rl.tensors import is_finite
from leap_rl.types import Tensors

ADDED_TOGETHER = 8  # gradients


class EnergyPath:
    """Sums Leap's energy along the path of the first ``num_measured`` of ``parameters`` [N], which the optimizer
    changes in place. The calls of one gradient step:

        gradient = path.next_gradient()     # [N], to be filled
        path.record(loss, norm)             # the point, before the optimizer moves it
        increment = path.cut()              # [num_measured], where a piece of the path ends
        path.moved(step)                    # [N]: what the optimizer has added to the parameters

    The last move of a path is left out, since no loss follows it.
    """

    cut_before_step = True  # cut() must be called between record() and the optimizer's step; else after moved()

    def __init__(self, parameters: Tensor, num_measured: int, stabilizer: bool = True) -> None:
        self.failed: str | None = None  # why the path contributes nothing, or None
        self._point = parameters.detach()[:num_measured]  # live
        self._gradients = parameters.detach().new_zeros(ADDED_TOGETHER + 1, len(parameters))
        self._newest = 0  # row of the gradient at the newest point, which has no weight yet
        self._sum = torch.zeros_like(self._point)
        self._start = torch.zeros_like(self._point)  # ψ at the last cut
        self._stabilizer = stabilizer
        self._loss: float | None = None  # f(ψⁱ); None before the first point
        self._squared_move: float | None = None  # ‖ψⁱ⁺¹ − ψⁱ‖²; None before moved()
        self._start_piece()

    def _start_piece(self) -> None:
        self._weights = [0.0] * len(self._gradients)  # of the rows, not added yet
        self._num_waiting = 0
        self._at_cut = True
        self.path_length = self.energy = 0.0  # Σ ‖γⁱ⁺¹ − γⁱ‖ and Σ ‖γⁱ⁺¹ − γⁱ‖² since the start or the last cut
        self.num_points = self.num_moves = self.num_rises = 0

    def next_gradient(self) -> Tensor:
        """Returns the vector [N] where the gradient at the next point must be written."""
        self._newest = (self._newest + 1) % len(self._gradients)
        return self._gradients[self._newest]

    def record(self, loss: float, gradient_norm: float) -> None:
        """Records the present parameters as a point with this loss and the gradient that was written last, whose norm
        is given: where it is finite so are its numbers. Raises RuntimeError where :meth:`moved` is missing."""
        self._at_cut = False
        first = self._loss is None
        if not first and self._squared_move is None and self.failed is None:
            raise RuntimeError("record() needs moved() between two points")
        if not math.isfinite(loss):
            self._fail("non-finite loss")
        elif not math.isfinite(gradient_norm) and not is_finite(self._gradients[self._newest, : len(self._point)]):
            self._fail("non-finite gradient")
        elif first and not is_finite(self._point):
            self._fail("non-finite parameter")
        elif first:
            self._start.copy_(self._point)
        elif self.failed is None:
            self._close_move(loss)
        if self.failed is None:
            self._loss, self._squared_move = loss, None
            self.num_points += 1

    def _close_move(self, loss: float) -> None:
        """Gives the gradient before the newest one its weight, now that the loss at the end of its move is known."""
        assert self._loss is not None
        assert self._squared_move is not None
        loss_change = loss - self._loss
        weights = weights_of_move(self._squared_move, loss_change, "energy", self._stabilizer)
        if not abs(loss_change) <= torch.finfo(self._point.dtype).max or not math.isfinite(weights.squared_length):
            self._fail("non-finite loss")
            return
        self._weights[self._newest - 1] = -weights.gradient
        self._num_waiting += 1
        self.path_length += math.sqrt(weights.squared_length)
        self.energy += weights.squared_length
        self.num_moves += 1
        self.num_rises += loss_change > 0
        if self._num_waiting == ADDED_TOGETHER:
            self._add_waiting()

    @torch.no_grad()
    def _add_waiting(self) -> None:
        """Adds up the weighted gradients: all rows are read, of which one or more have weight 0."""
        if self._num_waiting:
            weights = torch.tensor(self._weights, dtype=self._sum.dtype, device=self._sum.device)
            self._sum.addmv_(self._gradients[:, : len(self._sum)].t(), weights)
        self._weights, self._num_waiting = [0.0] * len(self._gradients), 0

    def moved(self, step: Tensor) -> None:
        """Ends the move from the newest point. ``step`` [N] is what was added to the parameters."""
        move = step[: len(self._point)]
        squared = float(torch.dot(move, move))
        if not 1e-30 < squared < math.inf and move.any():  # the squares leave the range of the dtype
            squared = float(move.double().square().sum())
        if not math.isfinite(squared):
            self._fail("non-finite parameter")
        self._squared_move = squared

    def cut(self) -> Tensor:
        """Returns the increment [num_measured] since the start or the last cut, and starts the next piece here. It must
        be called before the optimizer moves the newest point, else it raises RuntimeError. Zeros for a failed path."""
        if self.failed or self._loss is None:
            self._start_piece()
            return torch.zeros_like(self._start)
        if self._squared_move is not None:
            raise RuntimeError("cut() must come before the optimizer's step")
        self._add_waiting()
        increment = self._start - self._point + self._sum
        if not is_finite(increment):
            self._fail("non-finite parameter")
        self._start.copy_(self._point)
        self._sum.zero_()
        self._start_piece()
        return torch.zeros_like(increment) if self.failed else increment

    def shift(self, change: Tensor) -> None:
        """Adds ``change`` [num_measured] to the newest point, at a cut. Moves and losses stay as they were measured."""
        self._start += change

    def finish(self) -> None:
        """Closes the path: there is nothing to be done."""

    def _fail(self, reason: str) -> None:
        self.failed = self.failed or reason

    def state(self) -> dict[str, Tensor]:
        """Returns copies of what the path needs to go on elsewhere, by name. Raises RuntimeError unless the path is at
        a cut: before the first record, or after :meth:`cut` and the move that follows it."""
        if not self._at_cut or self.failed:
            raise RuntimeError("state() is to be had at a cut of a path that has not failed")
        numbers = {"loss": self._loss, "squared_move": self._squared_move}
        state = {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items() if v is not None}
        state |= {"newest": torch.tensor(self._newest), "start": self._start.clone()}
        return state | {"gradient": self._gradients[self._newest, : len(self._point)].clone()}

    def load_state(self, state: Tensors) -> None:
        """Goes on where :meth:`state` was taken, to the same bits."""
        self._start_piece()
        self.failed, self._newest = None, int(state["newest"])  # the row decides in which order gradients are added
        self._gradients.zero_()
        self._gradients[self._newest, : len(self._point)] = state["gradient"]
        self._start.copy_(state["start"])
        self._sum.zero_()
        self._loss, self._squared_move = (float(state[k]) if k in state else None for k in ("loss", "squared_move"))


class PlainPath:
    """Feeds a :class:`PathAccumulator` with the first ``num_measured`` of ``parameters`` [N]; see :class:`EnergyPath`.
    Everything else that it is asked for is the accumulator's."""

    cut_before_step = False

    def __init__(self, path: PathAccumulator, parameters: Tensor, num_measured: int) -> None:
        self._path = path
        self._point = {"parameters": parameters.detach()[:num_measured]}  # live
        self._whole_gradient = torch.zeros_like(parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path, name)

    def next_gradient(self) -> Tensor:
        """Returns the vector [N] where the gradient at the next point must be written."""
        return self._whole_gradient

    def record(self, loss: float, gradient_norm: float) -> None:
        """Records the present parameters with this loss and the gradient that was written last."""
        gradient = self._whole_gradient[: len(self._point["parameters"])]
        self._path.record(loss, self._point, {"parameters": gradient})

    def moved(self, step: Tensor) -> None:
        """Ignores the step: the accumulator measures it."""

    def land(self, loss: float) -> None:
        """Ends a move whose losses are paired at the present parameters."""
        self._path.land(self._point, loss)

    def finish(self) -> None:
        """Closes the path where the optimizer's last move has ended."""
        self._path.finish(self._point)

    def shift(self, change: Tensor) -> None:
        """Adds ``change`` [num_measured] to the newest point, at a cut."""
        shift(self._path, {"parameters": change})

    def cut(self) -> Tensor:
        """Returns the increment [num_measured] since the start or the last cut."""
        return self._path.cut()["parameters"]


def path_of_vector(config: PathConfig, parameters: Tensor, num_measured: int) -> EnergyPath | PlainPath:
    """Returns the fastest path that does what ``meta.rule`` and its variants ask for. A new rule needs nothing here: it
    gets the path of ``make_path``."""
    if config.rule == "leap" and config.metric == "energy" and config.use_loss and config.loss_difference != "paired":
        return EnergyPath(parameters, num_measured, config.stabilizer)
    return PlainPath(make_path(config), parameters, num_measured)
