"""Computes the gradient of a batch's loss by hand: what autograd makes of ``network.logits``, without a graph.

All parameters are one vector, in which the weights of convolutions lie as channels-last has them, so that none is
rearranged on its way into a convolution or back.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leap_rl.processes.classification.data import NUM_CLASSES, Batch
from leap_rl.processes.classification.network import NUM_BLOCKS, RunningStatistics
from leap_rl.types import Tensors

EPSILON = 1e-5  # of batch norm
_aten: Any = torch.ops.aten


def flattened(parameters: Tensors) -> Tensor:
    """Returns a vector of all parameters, in their order."""
    return torch.cat([value.permute(0, 2, 3, 1).flatten() if value.ndim == 4 else value.flatten()
                      for value in parameters.values()])  # fmt: skip


def named(vector: Tensor, like: Tensors) -> dict[str, Tensor]:
    """Returns the parts of a vector of the first of the parameters ``like``, as views: name → tensor."""
    views, end = {}, 0
    for name, value in like.items():
        if end == len(vector):
            break
        first, end = end, end + value.numel()
        part = vector[first:end]
        if value.ndim == 4:
            out, channels, height, width = value.shape
            views[name] = part.view(out, height, width, channels).permute(0, 3, 1, 2)
        else:
            views[name] = part.view(value.shape)
    return views


@torch.no_grad()
def loss_and_gradient(
    parameters: Tensors, batch: Batch, pooling: str, running: RunningStatistics | None, out: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns a batch's loss and logits, as ``network.logits`` has them in training, and writes the gradient of each
    parameter into ``out``."""
    x, blocks = batch.images.contiguous(memory_format=torch.channels_last), []
    for block in range(1, NUM_BLOCKS + 1):
        weight, scale, shift = _of_block(parameters, block)
        inputs, convolved = x, F.conv2d(x, weight, padding=1)
        x, places = _pooled(convolved) if pooling == "before_norm" else (convolved, None)
        mean, variance = running.of(block) if running else (None, None)
        before = x
        x, *moments = torch.native_batch_norm(
            before, scale, shift, mean, variance, True, RunningStatistics.MOMENTUM, EPSILON
        )
        normalized = x
        if places is None:
            x, places = _pooled(normalized)
        x = x.clamp_min_(0)
        blocks.append((inputs, convolved, before, moments, normalized, places, x))
    features, weight = x.flatten(1), parameters["head.weight"]
    outputs = torch.addmm(parameters["head.bias"], features, weight.t())

    gradient = (outputs.softmax(1) - F.one_hot(batch.labels, NUM_CLASSES)) / len(outputs)
    torch.mm(gradient.t(), features, out=out["head.weight"])
    torch.sum(gradient, 0, out=out["head.bias"])
    gradient = (gradient @ weight).view(x.shape).contiguous(memory_format=torch.channels_last)
    for block, (inputs, convolved, before, moments, normalized, places, x) in zip(
        range(NUM_BLOCKS, 0, -1), reversed(blocks), strict=True
    ):
        weight, scale, _ = _of_block(parameters, block)
        _aten.threshold_backward.grad_input(gradient, x, 0, grad_input=gradient)
        if pooling == "after_norm":
            gradient = _through_pooling(gradient, normalized, places)
        gradient, of_scale, of_shift = _aten.native_batch_norm_backward(
            gradient, before, scale, None, None, *moments, True, EPSILON, [True, True, True]
        )
        if pooling == "before_norm":
            gradient = _through_pooling(gradient, convolved, places)
        gradient, of_weight, _ = _aten.convolution_backward(
            gradient, inputs, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [block > 1, True, False]
        )
        for place, value in zip(_of_block(out, block), (of_weight, of_scale, of_shift), strict=True):
            place.copy_(value)
    return F.cross_entropy(outputs, batch.labels), outputs


def _of_block(parameters: Mapping[str, Tensor], block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a block's weight, and the scale and shift of its batch norm."""
    names = f"encoder.conv{block}.weight", f"encoder.norm{block}.weight", f"encoder.norm{block}.bias"
    return parameters[names[0]], parameters[names[1]], parameters[names[2]]


def _pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the maxima, and where they are."""
    return _aten.max_pool2d_with_indices(x, [2, 2], [2, 2])  # type: ignore[no-any-return]


def _through_pooling(gradient: Tensor, inputs: Tensor, places: Tensor) -> Tensor:
    return _aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
        gradient, inputs, [2, 2], [2, 2], [0, 0], [1, 1], False, places
    )
