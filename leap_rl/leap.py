"""Leap: the meta-gradient of a learning process, from one pass over its path.

Source: Flennerhag, Moreno, Lawrence, Damianou, "Transferring Knowledge across Learning Processes",
ICLR 2019 (arXiv 1812.01054v3), Algorithm 1 and equation 8, with the Jacobian taken as the identity.

A learning process starts at the shared initialization θ⁰ and visits ψ⁰ = θ⁰, ψ¹, …, ψᴷ. Together with the
loss f it walks a path through the points γⁱ = (ψⁱ, f(ψⁱ)). With Δθⁱ = ψⁱ⁺¹ − ψⁱ, Δfⁱ = f(ψⁱ⁺¹) − f(ψⁱ) and
∇fⁱ the gradient at ψⁱ, move i adds to the meta-gradient

    energy (p = 2):   −( Δθⁱ + Δfⁱ ∇fⁱ )
    length (p = 1):   −( Δθⁱ + Δfⁱ ∇fⁱ ) / ‖γⁱ⁺¹ − γⁱ‖,      ‖γⁱ⁺¹ − γⁱ‖ = sqrt( ‖Δθⁱ‖² + (Δfⁱ)² )

and the meta-optimizer steps θ⁰ against the sum. The path length is Σ ‖γⁱ⁺¹ − γⁱ‖, the energy its sum of
squares; both are reported whichever of them is descended.

What the equation leaves open, and what is done here:

* Constant factors (the 2 of p = 2) are left to the meta learning rate.
* Stabilizer: where the loss rose (Δfⁱ > 0) the sign of Δfⁱ in the numerator is flipped, so that the loss
  term never pushes θ⁰ uphill. The norm does not depend on the sign.
* Without the loss term (``use_loss=False``) Δf is left out of the numerator and of the norm. The energy's
  increments then telescope to θ⁰ − ψᴷ, which is Reptile.
* K recorded points make K − 1 moves. The optimizer's last move ends at a point that was never recorded:
  without the loss term ``finish(parameters)`` includes it; with the loss term it is left out, since no
  honest Δf exists for it, unless one more loss is evaluated: ``finish(parameters, loss)``.
* A move of length zero contributes nothing; nor, to the length, one so short that the dtype of the parameters does
  not hold the reciprocal of its length (in float32 below 3·10⁻³⁹).
* A path that meets a non-finite loss, gradient or parameter contributes nothing and is reported as
  ``failed``. What is recorded after that is ignored.
* The share −Δθⁱ of the energy telescopes, so it is taken as the difference of the path's two ends: one
  rounding instead of K, and Reptile's identity holds to the last bit.
* Where every step has a batch of its own, f(ψⁱ⁺¹) and f(ψⁱ) are losses of two batches, and most of their
  difference may be chance. ``loss_difference="paired"`` takes both on batch i instead: after the step,
  ``land(parameters, loss)`` is given the loss of the same batch there. Every move then has an honest Δf, the last
  one too; the path is no polyline, since a point has one loss as an end and another as a start.
* Only the tensors that are given enter Δθ, ∇f and the norm: what is not meta-learned is not recorded.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["energy", "length"]
LossDifference = Literal["successive", "paired"]
HELD = 8  # gradients that are added together: read side by side, in half the time it takes one after the other
PIECE = 3 * 2**14  # numbers of a tensor that are dealt with at once: what belongs to them fits a core's second cache


class PathAccumulator:
    """Accumulates Leap's meta-gradient along one path, in constant memory.

    Call :meth:`record` at every gradient step, after ``backward()`` and before the optimizer moves the
    parameters; then :meth:`finish` once; then read :meth:`increment`. A long path can be taken in pieces:
    :meth:`cut` returns the increment so far and goes on from the same point, so that the pieces of a path
    sum to its increment.

    Tensors are copied on entry, but for gradients that are rows of a stack (:meth:`record`): no other reference to them
    and no autograd history is kept. Everything is computed in the dtype and on the device that is given (float64 in,
    float64 out).
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
        self.metric = metric
        self.use_loss = use_loss
        self.stabilizer = stabilizer
        self.paired = loss_difference == "paired"
        self.failed: str | None = None  # why the path contributes nothing, or None
        self.finished = False
        self._point: dict[str, Tensor] = {}  # ψⁱ, the newest point
        self._gradient: Mapping[str, Tensor] = {}  # ∇fⁱ
        self._row: int | None = None  # of the caller's stack, where ∇fⁱ is one: it can wait to be added
        self._kept = True  # whether _point is ψⁱ, or one before it
        self._squared_move: float | None = None  # ‖ψⁱ⁺¹ − ψⁱ‖², where moved() has told
        self._loss = math.nan  # f(ψⁱ)
        self._largest: float | None = None  # number that all dtypes of the parameters hold
        self._move: dict[str, Tensor] = {}  # Δθⁱ, where more than its norm is asked for
        self._clear_sums()

    def _clear_sums(self) -> None:
        self._start: dict[str, Tensor] = {}  # ψ before the piece's first move, where −Δθ telescopes (energy)
        self._sum: dict[str, Tensor] = {}  # everything of the piece's increment that does not telescope, …
        self._stack: Mapping[str, Tensor] = {}  # … but for rows of this, …
        self._held: list[float] = []  # … times these weights, …
        self._first_held = 0  # … from this row on
        self.path_length = 0.0  # Σ ‖γⁱ⁺¹ − γⁱ‖ since the start or the last cut
        self.energy = 0.0  # Σ ‖γⁱ⁺¹ − γⁱ‖²
        self.num_points = 0
        self.num_moves = 0
        self.num_rises = 0  # moves on which the loss rose: where the stabilizer acts

    def record(
        self,
        loss: float | Tensor,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        gradient_norm: float = math.nan,
        row: int | None = None,
        keep_point: bool = True,
    ) -> None:
        """Records the point (ψⁱ, f(ψⁱ)) and the gradient ∇fⁱ taken there.

        ``parameters`` and ``gradients`` map the same names to tensors of the same shapes at every call.
        ``gradient_norm`` may be the norm of a vector that holds them all: where it is finite so are they. With ``row``
        the gradients are stacks [rows, …] of more than ``HELD``, always the same and written in turn, of which this
        point's is that row: it is not copied, and must not change until ``HELD`` more points are recorded. Without
        ``keep_point`` the parameters are not copied where :meth:`moved` made it unnecessary: it must be called again
        then, and the increment is not to be had before a point is kept. Raises ValueError where names or shapes differ,
        RuntimeError after :meth:`finish`.
        """
        if self.finished:
            raise RuntimeError("record() after finish(): the path is closed")
        self._check("parameters", parameters, self._point or parameters)
        self._check("gradients", gradients, parameters, stacked=row is not None)
        if self.failed:
            return
        loss = _number(loss)
        first = not self._point
        if first:
            # By name: norms are summed in this order, which must not depend on where a state was loaded from.
            self._point = {name: value.detach().clone() for name, value in sorted(parameters.items())}
        if not math.isfinite(loss):
            self._fail("non-finite loss")
        elif not math.isfinite(gradient_norm) and not _all_finite(_row_of(gradients, row)):
            self._fail("non-finite gradient")
        elif not first and not self.paired:
            self._advance(parameters, loss, keep_point)
        elif not _all_finite(parameters):
            self._fail("non-finite parameter")
        if self.failed is not None:
            return
        self._loss = loss
        self.num_points += 1
        if self.use_loss:
            self._row = row
            if row is None:
                self._gradient = {name: value.detach().clone() for name, value in gradients.items()}
            else:
                self._stack = gradients

    @property
    def takes_norms(self) -> bool:
        """Whether the norm of a move is all that is needed of it, and :meth:`moved` can tell it."""
        return self.metric == "energy" and not self.paired

    def moved(self, squared_norm: float) -> None:
        """The optimizer has moved the parameters from the newest point by Δθ, of which this is ‖Δθ‖²: whoever moves
        them can measure it while both ends are in the cache. Raises RuntimeError where :attr:`takes_norms` is not so,
        and where nothing was recorded."""
        if not self.takes_norms or not self._point:
            raise RuntimeError("moved() is for the energy of successive losses, after record()")
        self._squared_move = squared_norm

    def land(self, parameters: Mapping[str, Tensor], loss: float | Tensor) -> None:
        """Ends the move from the newest point at ``parameters``. ``loss`` is there what :meth:`record` was given at
        its start: of the same batch. Only where the loss difference is paired, and then once after each record."""
        if not self.paired or not self._point or self.finished:
            raise RuntimeError("land() is for paired loss differences, after record() and before finish()")
        self._check("parameters", parameters, self._point)
        if self.failed:
            return
        if not math.isfinite(_number(loss)):
            self._fail("non-finite loss")
        elif not _all_finite(parameters):
            self._fail("non-finite parameter")
        else:
            self._advance(parameters, _number(loss))

    def finish(self, parameters: Mapping[str, Tensor] | None = None, loss: float | Tensor | None = None) -> None:
        """Closes the path. ``parameters`` is where the optimizer's last move ended.

        The last move is included without the loss term, or where ``loss``, evaluated at ``parameters``, is
        given; otherwise it is left out (see the head of this module).
        """
        self.finished = True
        if parameters is None or self.failed or self.paired or not self._point:
            return
        self._check("parameters", parameters, self._point)
        if not _all_finite(parameters):
            self._fail("non-finite parameter")
        elif loss is not None and not math.isfinite(_number(loss)):
            self._fail("non-finite loss")
        elif loss is not None:
            self._advance(parameters, _number(loss))
        elif not self.use_loss:
            self._advance(parameters, self._loss)

    def increment(self) -> dict[str, Tensor]:
        """The meta-gradient of the path since its start or the last :meth:`cut`: name → tensor.

        Zeros for a failed path and for one of a single point; empty if nothing was recorded. Raises RuntimeError where
        the newest point was not kept.
        """
        if not self._kept and not self.failed:
            raise RuntimeError("the increment up to a point that was recorded without keep_point")
        increment = {name: torch.zeros_like(value) for name, value in self._point.items()}
        if not self.failed:
            self._add_held()
            for name, start in self._start.items():
                torch.sub(start, self._point[name], out=increment[name])
            for name, value in self._sum.items():
                increment[name] += value
        return increment

    def cut(self) -> dict[str, Tensor]:
        """Returns :meth:`increment` and starts the next piece of the path at the newest point."""
        increment = self.increment()
        self._take_out()
        self._clear_sums()
        return increment

    def _advance(self, parameters: Mapping[str, Tensor], loss: float, keep_point: bool = True) -> None:
        """Adds the move from the newest point to (``parameters``, ``loss``)."""
        if self.metric == "energy" and not self._start:  # −Δθ telescopes: see increment()
            self._start = {name: value.clone() for name, value in self._point.items()}
        if self._squared_move is None:
            squared_norm = self._move_to(parameters)
        else:
            squared_norm, self._squared_move = self._squared_move, None
            self._kept = keep_point
            for name, point in self._point.items() if keep_point else ():
                point.copy_(parameters[name].detach())
        loss_change = loss - self._loss if self.use_loss else 0.0
        squared_norm += loss_change * loss_change
        if not math.isfinite(squared_norm):
            self._fail("non-finite parameter")
        elif not self._in_range(loss_change):
            self._fail("non-finite loss")  # in the dtype of the parameters
        if self.failed:
            return

        norm = math.sqrt(squared_norm)
        self.path_length += norm
        self.energy += squared_norm
        self.num_moves += 1
        self.num_rises += loss_change > 0
        if self.stabilizer and loss_change > 0:
            loss_change = -loss_change
        if self.metric == "energy":
            self._hold(-loss_change)
        elif norm > 0 and self._in_range(1 / norm):
            self._add(self._move, -1 / norm)
            self._take_out()
            self._add(self._gradient, -loss_change / norm)

    @torch.no_grad()
    def _move_to(self, parameters: Mapping[str, Tensor]) -> float:
        """Makes ``parameters`` the newest point. Returns ‖Δθ‖², and leaves Δθ where more than that is asked for."""
        if not self._kept:
            raise RuntimeError("moved() must follow record() without keep_point")
        squared_norm = 0.0
        for name, point in self._point.items():
            if self.metric == "length" and name not in self._move:
                self._move[name] = torch.empty_like(point)
            # All of one piece before the next: it is in the cache.
            for start, end, move in _pieces(point, parameters[name], self._move.get(name, point)):
                squared_norm += squared_norm_of(torch.sub(end, start, out=move))
                start.copy_(end)
        return squared_norm

    def _take_out(self) -> None:
        """Of the stack, the newest gradient: it is added by itself, as where a state was put back."""
        if self._row is not None:
            self._gradient, self._row = _row_of(self._stack, self._row), None

    def _add(self, direction: Mapping[str, Tensor], weight: float) -> None:
        """Adds ``direction`` (∇f, which is empty without the loss term, or Δθ) to the piece's increment."""
        for name, value in direction.items():
            self._sum_of(name).add_(value, alpha=weight)

    def _hold(self, weight: float) -> None:
        """Adds the newest gradient, as soon as ``HELD`` are held where it is a row of a stack."""
        if self._row != self._first_held + len(self._held):
            self._add_held()
        if self._row is None:
            self._add(self._gradient, weight)
            return
        if not self._held:
            self._first_held = self._row
        self._held.append(weight)
        if len(self._held) == HELD:
            self._add_held()

    @torch.no_grad()
    def _add_held(self) -> None:
        rows = slice(self._first_held, self._first_held + len(self._held))
        for name, stacked in self._stack.items() if self._held else ():
            weights = torch.tensor(self._held, dtype=stacked.dtype, device=stacked.device)
            self._sum_of(name).view(-1).addmv_(stacked[rows].reshape(len(weights), -1).t(), weights)
        self._held = []

    def _sum_of(self, name: str) -> Tensor:
        if name not in self._sum:
            self._sum[name] = torch.zeros_like(self._point[name], memory_format=torch.contiguous_format)
        return self._sum[name]

    def _in_range(self, number: float) -> bool:
        """Whether the dtype of the parameters holds it."""
        if self._largest is None:
            self._largest = min(torch.finfo(point.dtype).max for point in self._point.values())
        return abs(number) <= self._largest

    def _fail(self, reason: str) -> None:
        self.failed = reason

    @staticmethod
    def _check(what: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], stacked: bool = False) -> None:
        if given.keys() != expected.keys():
            raise ValueError(f"{what} must be named {sorted(expected)}, not {sorted(given)}")
        for name, value in given.items():
            shape = expected[name].shape
            if value is None or value.shape[stacked:] != shape:
                found = None if value is None else tuple(value.shape[stacked:])
                raise ValueError(f"{what}: {name} must be a tensor of shape {tuple(shape)}, not {found}")

    def state(self) -> dict[str, Tensor]:
        """Everything the accumulator holds, as named tensors; :meth:`load_state` puts it back exactly. What is held is
        added first, which may round otherwise than later; after a :meth:`cut` nothing is."""
        self._add_held()
        self._take_out()
        numbers = [self._loss, self.path_length, self.energy, self.num_points, self.num_moves, self.num_rises]
        squared_move = -1.0 if self._squared_move is None else self._squared_move
        state = {"numbers": torch.tensor([*numbers, self.finished, self._kept, squared_move], dtype=torch.float64)}
        state["failed"] = torch.frombuffer(bytearray((self.failed or "").encode() + b"\0"), dtype=torch.uint8)
        groups = {"start": self._start, "point": self._point, "gradient": self._gradient, "sum": self._sum}
        for group, tensors in groups.items():
            state.update({f"{group}/{name}": value.clone() for name, value in tensors.items()})
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`state` returned, in an accumulator made with the same arguments."""
        numbers = state["numbers"].tolist()
        self._loss, self.path_length, self.energy = numbers[:3]
        self.num_points, self.num_moves, self.num_rises = map(int, numbers[3:6])
        self.finished, self._kept = bool(numbers[6]), bool(numbers[7])
        self._squared_move = None if numbers[8] < 0 else numbers[8]
        self.failed = bytes(state["failed"].tolist())[:-1].decode() or None
        groups: dict[str, dict[str, Tensor]] = {"start": {}, "point": {}, "gradient": {}, "sum": {}}
        for key, value in sorted(state.items()):
            group, _, name = key.partition("/")
            if group in groups:
                groups[group][name] = value.clone()
        self._start, self._point = groups["start"], groups["point"]
        self._gradient, self._sum = groups["gradient"], groups["sum"]
        self._row, self._held, self._move = None, [], {}


def _number(loss: float | Tensor) -> float:
    return float(loss.detach()) if isinstance(loss, Tensor) else float(loss)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape in pieces of ``PIECE``; as they are where that would take copies."""
    if not all(tensor.is_contiguous() for tensor in tensors):
        return iter([tensors])
    return zip(*(torch.split(tensor.view(-1), PIECE) for tensor in tensors), strict=True)


def squared_norm_of(move: Tensor) -> float:
    """‖move‖²; once more in double where the squares leave the range of the dtype."""
    flat = move.flatten()
    squared = float(torch.dot(flat, flat))
    if 1e-30 < squared < math.inf or not flat.any():  # a layer's gradient is often zero throughout: its units are dead
        return squared
    return float(flat.double().square().sum())


def _row_of(stacks: Mapping[str, Tensor], row: int | None) -> Mapping[str, Tensor]:
    return stacks if row is None else {name: stack[row].detach() for name, stack in stacks.items()}


def _all_finite(values: Mapping[str, Tensor]) -> bool:
    return all(_is_finite(value.detach()) for value in values.values())


def _is_finite(value: Tensor) -> bool:
    """Whether every element is finite. A finite sum proves it in one cheap pass; only an overflow does not."""
    return math.isfinite(value.sum()) or bool(torch.isfinite(value).all())
