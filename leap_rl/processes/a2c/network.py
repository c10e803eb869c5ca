"""Defines the network of Mnih et al., "Playing Atari with Deep Reinforcement Learning" (2013), with two linear heads.

The encoder is what Leap meta-learns in the paper's Atari experiment; the heads belong to a task.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leap_rl.processes.a2c.loss import A2CLoss, a2c_gradients, a2c_loss
from leap_rl.processes.agents import AgentConfig
from leap_rl.processes.layers import CONVOLUTIONS, NUM_FEATURES, sides


class Layers(Protocol):
    """Holds what an encoder computes of N observations: a named tuple of tensors [N, …], the first and the last of
    which are these."""

    @property
    def inputs(self) -> Tensor:
        """Returns the observations in the compute dtype."""
        ...

    @property
    def features(self) -> Tensor:
        """Returns what the heads see, [N, num_features]."""
        ...

    def __iter__(self) -> Iterator[Tensor]: ...


class Activations(NamedTuple):
    """Holds what the encoder computes of N observations, layer by layer: all that its gradient needs."""

    inputs: Tensor  # [N, C, H, W], 0..255 in the compute dtype
    conv1: Tensor  # [N, 16, H', W']
    conv2: Tensor  # [N, 32, H'', W''], not channels-last: the linear layer takes it as it is
    hidden: Tensor  # [N, 256], the linear layer's output
    features: Tensor  # [N, 256]


class Rollout(NamedTuple):
    """Holds T steps in B environments: what was computed on the way, and what came of them."""

    activations: Layers  # of the encoder, [T·B, …]
    weights: list[Tensor]  # of the encoder, in the compute dtype
    logits: Tensor  # [T, B, A]
    values: Tensor  # [T, B], in units of ``unit``
    actions: Tensor  # int64 [T, B]
    returns: Tensor  # [T, B], in units of ``unit``
    statistics: Mapping[str, float]  # sums over T and B, by name (docs/metrics.md)
    unit: float = 1.0  # of returns and values in the loss: PopArt's deviation of returns


class AnyEncoder(nn.Module, ABC):
    """Turns observations into features, and knows the gradient of its parameters."""

    compute_dtype: torch.dtype
    num_features: int

    @abstractmethod
    def weights(self) -> list[Tensor]:
        """Returns the parameters as they are used until the optimizer's next step."""

    @abstractmethod
    def activations(self, observations: Tensor, weights: list[Tensor], out: Any = None) -> Layers:
        """Returns every layer, [N, …], of observations in any dtype; all but the inputs in ``out``, if given."""

    @abstractmethod
    def gradients(
        self, activations: Any, weights: list[Tensor], gradient: Tensor, out: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the gradient of each parameter, by name, given that of the features. ``out`` is memory for that of
        ``linear.weight``, if there is such a parameter."""


class Encoder(AnyEncoder):
    """Computes the features of the paper's encoder: conv 16 8×8/4 → conv 32 4×4/2 → linear 256, ReLU after each.

    Parameters are kept in float32 and rounded to ``compute_dtype`` where they are used (:meth:`weights`), once
    for all passes between two optimizer steps. The gradient is written out, so that the passes of an unroll,
    each over few observations, are differentiated as one batch. Images are channels-last: the fast layout.
    """

    def __init__(
        self, num_channels: int, screen_size: int, compute_dtype: torch.dtype, layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.compute_dtype, self.layer_norm, self.num_features = compute_dtype, layer_norm, NUM_FEATURES
        first, second = CONVOLUTIONS
        self.conv1 = nn.Conv2d(num_channels, first.channels, first.kernel, first.stride)
        self.conv2 = nn.Conv2d(first.channels, second.channels, second.kernel, second.stride)
        self.linear = nn.Linear(second.channels * sides(screen_size)[-1] ** 2, NUM_FEATURES)

    def forward(self, observations: Tensor) -> Tensor:
        """Returns the features, float32 [N, 256], of ``observations``, uint8 [N, C, H, W]; differentiable in the
        parameters."""
        return _Encode.apply(self, observations, *self.parameters())  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def weights(self) -> list[Tensor]:
        """Returns the parameters in the compute dtype. Pixels stay 0..255, which both dtypes hold exactly: the scale
        1/255 is folded into the first weights."""
        scaled = [self.conv1.weight / 255, *list(self.parameters())[1:]]
        images = torch.channels_last
        return [
            w.to(self.compute_dtype, memory_format=images if w.ndim == 4 else torch.preserve_format) for w in scaled
        ]

    @torch.no_grad()
    def activations(self, observations: Tensor, weights: list[Tensor], out: Activations | None = None) -> Activations:
        """Returns every layer after its ReLU, of ``observations`` [N, C, H, W], 0..255 in any dtype; all but the inputs
        are written to ``out``, if given."""
        weight1, bias1, weight2, bias2, weight3, bias3 = weights
        inputs = observations.to(self.compute_dtype, memory_format=torch.channels_last)
        conv1 = _relu(F.conv2d(inputs, weight1, bias1, CONVOLUTIONS[0].stride), out and out.conv1)
        conv2 = _relu(F.conv2d(conv1, weight2, bias2, CONVOLUTIONS[1].stride))
        conv2 = out.conv2.copy_(conv2) if out else conv2.contiguous()
        # Not F.linear: with few observations the product takes a third longer in that order.
        linear = torch.addmm(bias3.unsqueeze(1), weight3, conv2.flatten(1).t()).t()
        hidden = out.hidden.copy_(linear) if out else linear.contiguous()
        normalized = F.layer_norm(hidden, hidden.shape[1:]) if self.layer_norm else hidden
        features = _relu(normalized, out.features if out else torch.empty_like(hidden))
        return Activations(inputs, conv1, conv2, hidden, features)

    @torch.no_grad()
    def gradients(
        self, activations: Activations, weights: list[Tensor], gradient: Tensor, out: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the gradient of each parameter, by name, given that of the features [N, 256]. Nearly all of it is the
        linear layer's weight, whose gradient is written into ``out``, if that is given in the compute dtype."""
        (first, second), (inputs, conv1, conv2, hidden, features) = CONVOLUTIONS, activations
        weight1, _, weight2, _, weight3, _ = weights
        found = {}
        gradient = _through_relu(gradient.to(self.compute_dtype, copy=True), features)
        if self.layer_norm:
            gradient = _through_layer_norm(gradient, hidden)
        out = out if out is not None and out.dtype == self.compute_dtype else None
        found["linear.weight"] = torch.mm(gradient.t(), conv2.flatten(1), out=out)
        found["linear.bias"] = gradient.sum(0)
        gradient = _through_relu((gradient @ weight3).view(conv2.shape), conv2)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        gradient, found["conv2.weight"], found["conv2.bias"] = _of_convolution(gradient, conv1, weight2, second.stride)
        gradient = _through_relu(gradient, conv1)
        _, of_weight1, found["conv1.bias"] = _of_convolution(gradient, inputs, weight1, first.stride, of_input=False)
        return found | {"conv1.weight": of_weight1 / 255}


def _relu(values: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.clamp_min(values, 0, out=values if out is None else out)


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """Returns the gradient of a ReLU's input, computed in place. Both arguments must have one layout: it is ten times
    slower where they do not."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)  # type: ignore


def _through_layer_norm(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Returns the gradient of ``inputs`` [N, D], given that of their normalized values."""
    _, mean, deviation = torch.native_layer_norm(inputs, inputs.shape[1:], None, None, 1e-5)
    of_inputs, _, _ = torch.ops.aten.native_layer_norm_backward(
        gradient, inputs, inputs.shape[1:], mean, deviation, None, None, [True, False, False]
    )
    return of_inputs  # type: ignore[no-any-return]


def _of_convolution(
    gradient: Tensor, inputs: Tensor, weight: Tensor, stride: int, of_input: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of a convolution's input, weight and bias, given that of its output."""
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        gradient, inputs, weight, [len(weight)], [stride, stride], [0, 0], [1, 1], False, [0, 0], 1,
        [of_input, True, True],
    )  # fmt: skip


class _Encode(torch.autograd.Function):
    """Ties the encoder's own gradient to autograd."""

    @staticmethod
    def forward(ctx: Any, encoder: Encoder, observations: Tensor, *_parameters: Tensor) -> Tensor:
        ctx.encoder, ctx.weights = encoder, encoder.weights()
        ctx.activations = encoder.activations(observations, ctx.weights)
        return ctx.activations.features.float()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        found = ctx.encoder.gradients(ctx.activations, ctx.weights, gradient)
        return None, None, *(found[name] for name, _ in ctx.encoder.named_parameters())


class ActorCritic(nn.Module):
    """Computes policy logits and a value from one shared encoder."""

    def __init__(self, encoder: AnyEncoder, num_actions: int, value_gain: float = 1.0) -> None:
        super().__init__()
        self.value_gain = value_gain
        self.encoder = encoder
        self.policy = nn.Linear(encoder.num_features, num_actions)
        self.value = nn.Linear(encoder.num_features, 1)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Observations [B, …] → logits [B, num_actions], values [B]."""
        return self.heads(self.encoder(observations))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits […, num_actions] and values […] of ``features``, float32 […, num_features]."""
        return self.policy(features), self.value(features).squeeze(-1)

    @torch.no_grad()
    def loss_and_gradient(self, rollout: Rollout, agent: AgentConfig, out: Tensor) -> A2CLoss:
        """Returns the loss of a rollout, and writes its gradient into ``out`` [N], in the order of ``parameters()``.

        No graph is built: the gradient is written out by hand, layer by layer.
        """
        given = rollout.logits, rollout.values, rollout.actions, rollout.returns, agent.value_cost, agent.entropy_cost
        places = {name: place for (name, _), place in zip(self.named_parameters(), split_like(out, self), strict=True)}
        features = rollout.activations.features.float()
        of_logits, of_values = a2c_gradients(*given)
        of_features, found = self._head_gradients(features, of_logits, of_values / rollout.unit)
        whole = places.get("encoder.linear.weight")
        of_encoder = self.encoder.gradients(rollout.activations, rollout.weights, of_features, out=whole)
        for name, gradient in (found | {f"encoder.{name}": value for name, value in of_encoder.items()}).items():
            places[name].copy_(gradient)
        return a2c_loss(*given)

    @torch.no_grad()
    def loss_again(self, rollout: Rollout, agent: AgentConfig) -> A2CLoss:
        """Returns the loss of a rollout at the present parameters, its returns and advantages held as they were: the
        function whose gradient was taken. The forward passes have the shapes of acting, so that equal parameters give
        equal bits."""
        weights, num_envs = self.encoder.weights(), rollout.actions.shape[1]
        passes = [
            self.encoder.activations(x, weights).features for x in torch.split(rollout.activations.inputs, num_envs)
        ]
        logits, values = self.heads(torch.stack(passes).float())
        costs = agent.value_cost, agent.entropy_cost
        return a2c_loss(
            logits, values / rollout.unit, rollout.actions, rollout.returns, *costs, held_values=rollout.values
        )

    def _head_gradients(
        self, features: Tensor, of_logits: Tensor, of_values: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the gradient of the features [N, num_features], and those of the heads' parameters by name, given
        those of the logits […, num_actions] and values […]."""
        of_logits, of_values = of_logits.flatten(0, -2), of_values.flatten().unsqueeze(-1)
        of_features = torch.addmm(of_logits @ self.policy.weight, of_values, self.value.weight)
        of_heads = {"policy": of_logits, "value": of_values}
        found = {f"{head}.weight": of_output.t() @ features for head, of_output in of_heads.items()}
        return of_features, found | {f"{head}.bias": of_output.sum(0) for head, of_output in of_heads.items()}

    @torch.no_grad()
    def initialize(self, generator: torch.Generator, heads_only: bool = False) -> None:
        """Draws orthogonal weights, of gain √2 (policy 0.01, value ``agent.value_gain``), and zero biases, as in A2C's
        baselines."""
        gains = {"policy": 0.01, "value": self.value_gain}
        for name, parameter in self.named_parameters():
            if heads_only and name.startswith("encoder."):
                continue
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                gain = gains.get(name.partition(".")[0], math.sqrt(2))
                parameter.copy_(nn.init.orthogonal_(torch.empty(parameter.shape), gain, generator=generator))


def flatten(module: nn.Module) -> Tensor:
    """Lays a module's parameters out as views of one vector, in their order: what is done to all of them is then one
    operation."""
    parameters = list(module.parameters())
    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    for parameter, value in zip(parameters, split_like(flat, module), strict=True):
        parameter.data = value
    return flat


def split_like(vector: Tensor, module: nn.Module) -> list[Tensor]:
    """Views of a vector of all parameters, one of each."""
    parameters = list(module.parameters())
    pieces = torch.split(vector, [parameter.numel() for parameter in parameters])
    return [piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]


def resolve_precision(precision: str) -> str:
    """Returns a precision with ``auto`` replaced: by bf16 where the CPU has bf16 instructions, else by fp32."""
    if precision != "auto":
        return precision
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
