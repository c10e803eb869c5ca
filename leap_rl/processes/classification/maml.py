"""Computes MAML's gradient (Finn et al. 2017, equation 1): the derivative of the last loss in the initialization,
through all steps.

    ψⁱ⁺¹ = ψⁱ − α ∇fⁱ(ψⁱ),  so  d fᴷ(ψᴷ)/dθ⁰ = (I − α H⁰) (I − α H¹) … (I − α Hᴷ⁻¹) ∇fᴷ(ψᴷ),  Hⁱ = ∇²fⁱ(ψⁱ)

The product is taken from the right: one product of a Hessian and a vector for each step, a derivative along a
direction of the gradient (``torch.func.jvp`` of ``torch.func.grad``). So no graph of the whole path is kept, as
differentiating the unrolled steps would need: one copy of the parameters for each step is, where Leap needs three
in all. With α = 0, or without the H, it is first-order MAML.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Parameters: TypeAlias = dict[str, Tensor]
Loss: TypeAlias = Callable[[Parameters], Tensor]  # differentiable, to a scalar


def unrolled_gradient(start: Parameters, losses: Sequence[Loss], lr: float) -> Parameters:
    """Returns the derivative in ``start`` of the last loss, after a step of gradient descent on each of those before
    it: tensors shaped like the parameters, by name. ``losses`` are f⁰ … fᴷ."""
    points = [start]
    for loss in losses[:-1]:
        gradient = torch.func.grad(loss)(points[-1])
        points.append({name: value - lr * gradient[name] for name, value in points[-1].items()})
    result: Parameters = torch.func.grad(losses[-1])(points[-1])
    for point, loss in reversed(list(zip(points, losses[:-1], strict=False))):
        change = _change_of_gradient(loss, point, result)
        result = {name: value - lr * change[name] for name, value in result.items()}
    return {name: value.detach() for name, value in result.items()}


def _change_of_gradient(loss: Loss, point: Parameters, direction: Parameters) -> Parameters:
    """Returns the Hessian's product with a direction."""
    try:
        change: Parameters = torch.func.jvp(torch.func.grad(loss), (point,), (direction,))[1]
    except RuntimeError as error:
        # Batch norm's derivative runs in TorchScript, which wraps an interrupt as if the step had failed.
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from error
        raise
    return change
