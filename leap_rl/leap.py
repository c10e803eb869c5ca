"""Computes Leap's meta-gradient of a learning process in one pass over its path.

Source: Flennerhag, Moreno, Lawrence, Damianou, "Transferring Knowledge across Learning Processes",
ICLR 2019 (arXiv 1812.01054v3), Algorithm 1 and equation 8, with the Jacobian taken as the identity.

A learning process starts at the shared initialization θ⁰ and visits ψ⁰ = θ⁰, ψ¹, …, ψᴷ. Together with the
loss f it walks a path through the points γⁱ = (ψⁱ, f(ψⁱ)). With Δθⁱ = ψⁱ⁺¹ − ψⁱ, Δfⁱ = f(ψⁱ⁺¹) − f(ψⁱ) and
∇fⁱ the gradient at ψⁱ, move i adds to the meta-gradient

    energy (p = 2):   −( Δθⁱ + Δfⁱ ∇fⁱ )
    length (p = 1):   −( Δθⁱ + Δfⁱ ∇fⁱ ) / ‖γⁱ⁺¹ − γⁱ‖,      ‖γⁱ⁺¹ − γⁱ‖ = sqrt( ‖Δθⁱ‖² + (Δfⁱ)² )

and the meta-optimizer steps θ⁰ against the sum. The path length is Σ ‖γⁱ⁺¹ − γⁱ‖ and the energy is Σ ‖γⁱ⁺¹ − γⁱ‖²;
both are reported, whichever of them the meta-gradient is of.

The choices that the equation leaves open (docs/algorithm.md):

* Constant factors (the 2 of p = 2) are left to the meta learning rate.
* Stabilizer: where the loss rose (Δfⁱ > 0), the sign of Δfⁱ is flipped in the numerator, but not in the norm.
* Without the loss term (``use_loss=False``) Δf is 0. The energy's increments then telescope to θ⁰ − ψᴷ: Reptile.
* K recorded points make K − 1 moves. The optimizer's last move ends at a point that is never recorded. Since its Δf is
  not known, it is left out, unless there is no loss term or one more loss is evaluated.
* A move of length zero adds nothing. Under the length metric, neither does a move whose reciprocal length overflows. A
  path with a non-finite loss, gradient or parameter contributes nothing at all; ``failed`` says why.
* The terms −Δθⁱ of the energy telescope: their sum is computed as the difference of the path's ends, and rounds once.
* With ``loss_difference="paired"``, f(ψⁱ⁺¹) and f(ψⁱ) are losses of one batch, so Δfⁱ is free of sampling noise.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from leap_rl.tensors import Named, checked, copied, is_finite, squared_norm_of

Metric = Literal["energy", "length"]
LossDifference = Literal["successive", "paired"]
SHORTEST = 3e-39  # a shorter move has a length whose reciprocal overflows float32


class Weights(NamedTuple):
    """Holds the weights of move i, which adds −(``move`` · Δθⁱ + ``gradient`` · ∇fⁱ) to the meta-gradient, and
    ``squared_length`` to the energy."""

    move: float
    gradient: float
    squared_length: float  # ‖γⁱ⁺¹ − γⁱ‖²


def weights_of_move(squared_move: float, loss_change: float, metric: Metric, stabilizer: bool) -> Weights:
    """Returns the weights of a move by equation 8, given ‖Δθⁱ‖² and Δfⁱ (0 without the loss term)."""
    squared_length = squared_move + loss_change * loss_change
    if stabilizer and loss_change > 0:
        loss_change = -loss_change
    if metric == "energy":
        return Weights(1.0, loss_change, squared_length)
    length = math.sqrt(squared_length)
    return (
        Weights(1 / length, loss_change / length, squared_length)
        if length > SHORTEST
        else Weights(0, 0, squared_length)
    )


class PathAccumulator:
    """Accumulates Leap's meta-gradient along one path, in constant memory.

    Call :meth:`record` at every gradient step, after ``backward()`` and before the optimizer moves the parameters; then
    :meth:`finish` once, and :meth:`increment` for the result. :meth:`cut` returns the increment of a long path in
    pieces, which sum to that of the whole. Parameters are a module (those of them that require a gradient) or a mapping
    of names to tensors, the same at every call (else ValueError). Arguments are copied; their dtype and device are
    kept.
    """

    def __init__(
        self,
        metric: Metric = "energy",
        use_loss: bool = True,
        stabilizer: bool = True,
        loss_difference: LossDifference = "successive",
    ) -> None:
        if metric not in ("energy", "length"):
            raise ValueError(f"metric must be 'energy' or 'length', not {metric!r}")
        if loss_difference not in ("successive", "paired"):
            raise ValueError(f"loss_difference must be 'successive' or 'paired', not {loss_difference!r}")
        self.metric, self.use_loss, self.stabilizer = metric, use_loss, stabilizer
        self.paired = loss_difference == "paired"
        self.failed: str | None = None  # why the path contributes nothing, or None
        self.finished = False
        self.point: dict[str, Tensor] = {}  # ψⁱ, the newest point
        self.gradient: dict[str, Tensor] = {}  # ∇fⁱ
        self._loss = math.nan  # f(ψⁱ)
        self._start_piece()

    def _start_piece(self) -> None:
        self._start: dict[str, Tensor] = {}  # ψ before the piece's first move: the energy needs it, whose −Δθ telescope
        self._sum: dict[str, Tensor] = {}  # all other terms of the piece's increment
        self._at_cut = True
        self.path_length = self.energy = 0.0  # Σ ‖γⁱ⁺¹ − γⁱ‖ and Σ ‖γⁱ⁺¹ − γⁱ‖² since the start or the last cut
        self.num_points = self.num_moves = self.num_rises = 0  # num_rises counts the moves on which the loss rose

    def record(self, loss: float | Tensor, parameters: nn.Module | Named, gradients: Named | None = None) -> None:
        """Records the point (ψⁱ, f(ψⁱ)) and its gradient ∇fⁱ: ``gradients``, or by default each parameter's ``.grad``.
        Raises ValueError if one is missing, and RuntimeError after :meth:`finish`."""
        if self.finished:
            raise RuntimeError("record() after finish(): the path is closed")
        parameters = checked("parameters", parameters, self.point)
        given = {name: value.grad for name, value in parameters.items()} if gradients is None else gradients
        gradients = checked("gradients", given, parameters)
        loss = loss.item() if isinstance(loss, Tensor) else loss
        self._at_cut = False
        if self._check_finite(loss, gradient=gradients, parameter=parameters) and self.point and not self.paired:
            self._advance(parameters, loss)
        if self.failed is None:
            self.num_points += 1
            self.gradient, self._loss = copied(gradients) if self.use_loss else {}, loss
        self.point = self.point or copied(parameters)

    def land(self, parameters: nn.Module | Named, loss: float | Tensor) -> None:
        """Ends the newest move at ``parameters``, at which the batch of the newest point has this ``loss``. With paired
        loss differences it must be called after each :meth:`record`; otherwise it raises RuntimeError."""
        if not self.paired or not self.point or self.finished:
            raise RuntimeError("land() is for paired loss differences, after record() and before finish()")
        self._end_at(parameters, loss)

    def finish(self, parameters: nn.Module | Named | None = None, loss: float | Tensor | None = None) -> None:
        """Closes the path. ``parameters`` are those after the optimizer's last step, and ``loss`` is evaluated at them.
        With the loss term that last move is left out, unless ``loss`` is given."""
        self.finished = True
        if parameters is not None and self.point and not self.paired:
            self._end_at(parameters, loss if self.use_loss or loss is not None else self._loss)

    def increment(self) -> dict[str, Tensor]:
        """Returns the meta-gradient since the start or the last :meth:`cut`: name → tensor; zeros for a failed path."""
        increment = {name: torch.zeros_like(value) for name, value in self.point.items()}
        if self.failed is None:
            for name, start in self._start.items():
                torch.sub(start, self.point[name], out=increment[name])
            for name, value in self._sum.items():
                increment[name] += value
        return increment

    def cut(self) -> dict[str, Tensor]:
        """Returns the :meth:`increment` and starts the next piece of the path at the newest point."""
        increment = self.increment()
        self._start_piece()
        return increment

    def state(self) -> dict[str, Tensor]:
        """Returns copies of all tensors that :meth:`load_state` needs. It can be called before the first record and
        right after :meth:`cut`, and raises RuntimeError at any other time."""
        if not self._at_cut:
            raise RuntimeError("state() can only be taken at a cut: call cut() first")
        state = {"loss": torch.tensor(self._loss, dtype=torch.float64), "finished": torch.tensor(self.finished)}
        state["failed"] = torch.tensor(list((self.failed or "").encode()), dtype=torch.uint8)
        state |= {f"point/{name}": value.clone() for name, value in self.point.items()}
        return state | {f"gradient/{name}": value.clone() for name, value in self.gradient.items()}

    def load_state(self, state: Named) -> None:
        """Restores what :meth:`state` returned, in an accumulator that was made with the same arguments."""
        self._start_piece()
        self._loss, self.finished = float(state["loss"]), bool(state["finished"])
        self.failed = bytes(state["failed"].tolist()).decode() or None
        self.point, self.gradient = (
            copied({key.removeprefix(group): value for key, value in state.items() if key.startswith(group)})
            for group in ("point/", "gradient/")
        )

    def _end_at(self, parameters: nn.Module | Named, loss: float | Tensor | None) -> None:
        """Adds the move from the newest point to (``parameters``, ``loss``), unless the loss is None."""
        parameters = checked("parameters", parameters, self.point)
        self._at_cut = False
        if self._check_finite(0.0 if loss is None else float(loss), parameter=parameters) and loss is not None:
            self._advance(parameters, float(loss))

    @torch.no_grad()
    def _advance(self, parameters: Named, loss: float) -> None:
        """Adds the move from the newest point to (``parameters``, ``loss``), which becomes the newest point."""
        moves = {name: parameters[name] - point for name, point in self.point.items()}
        loss_change = loss - self._loss if self.use_loss else 0.0
        squared_move = sum(squared_norm_of(move) for move in moves.values())
        weights = weights_of_move(squared_move, loss_change, self.metric, self.stabilizer)
        largest = min(torch.finfo(point.dtype).max for point in self.point.values())
        if not abs(loss_change) <= largest or not math.isfinite(weights.squared_length):
            self.failed = "non-finite loss" if math.isfinite(squared_move) else "non-finite parameter"
            return
        self.path_length += math.sqrt(weights.squared_length)
        self.energy += weights.squared_length
        self.num_moves += 1
        self.num_rises += loss_change > 0
        if self.metric == "energy":
            self._start, moves = self._start or self.point, {}  # −Δθ telescopes
        for direction, weight in ((moves, weights.move), (self.gradient, weights.gradient)):
            for name, value in direction.items():
                self._sum.setdefault(name, torch.zeros_like(value)).sub_(value, alpha=weight)
        self.point = copied(parameters)

    def _check_finite(self, loss: float, **tensors: Named) -> bool:
        """Notes in ``failed`` the first value that is not finite, and returns whether all were finite so far."""
        finite = {"loss": math.isfinite(loss), **{k: all(map(is_finite, v.values())) for k, v in tensors.items()}}
        self.failed = self.failed or next((f"non-finite {what}" for what, fine in finite.items() if not fine), None)
        return self.failed is None
