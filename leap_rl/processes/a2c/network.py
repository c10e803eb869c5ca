"""The network of Mnih et al., "Playing Atari with Deep Reinforcement Learning" (2013), with two linear heads.

The encoder is what Leap meta-learns in the paper's Atari experiment; the heads belong to a task.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leap_rl.config import Config
from leap_rl.rules import name_in_initialization
from leap_rl.tasks import catalogue, parse_game
from leap_rl.types import Task, Tensors


class Activations(NamedTuple):
    """What the encoder computes of N observations, layer by layer: all that its gradient needs."""

    inputs: Tensor  # [N, C, H, W], 0..255 in the compute dtype
    conv1: Tensor  # [N, 16, H', W']
    conv2: Tensor  # [N, 32, H'', W''], not channels-last: the linear layer takes it as it is
    features: Tensor  # [N, 256]


class Encoder(nn.Module):
    """conv 16 8×8/4 → conv 32 4×4/2 → linear 256, ReLU after each.

    Parameters are kept in float32 and rounded to ``compute_dtype`` where they are used (:meth:`weights`), once
    for all passes between two optimizer steps. The gradient is written out, so that the passes of an unroll,
    each over few observations, are differentiated as one batch. Images are channels-last: the fast layout.
    """

    def __init__(self, num_channels: int, screen_size: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        self.conv1 = nn.Conv2d(num_channels, 16, kernel_size=8, stride=4)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=4, stride=2)
        side = ((screen_size - 8) // 4 + 1 - 4) // 2 + 1
        self.linear = nn.Linear(32 * side * side, 256)

    def forward(self, observations: Tensor) -> Tensor:
        """uint8 [N, C, H, W] → float32 [N, 256], differentiable in the parameters."""
        return _Encode.apply(self, observations, *self.parameters())  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def weights(self) -> list[Tensor]:
        """The parameters in the compute dtype. Pixels stay 0..255, which both dtypes hold exactly: the scale
        1/255 is folded into the first weights."""
        scaled = [self.conv1.weight / 255, *list(self.parameters())[1:]]
        images = torch.channels_last
        return [
            w.to(self.compute_dtype, memory_format=images if w.ndim == 4 else torch.preserve_format) for w in scaled
        ]

    @torch.no_grad()
    def activations(self, observations: Tensor, weights: list[Tensor], out: Activations | None = None) -> Activations:
        """[N, C, H, W], 0..255 in any dtype → every layer after its ReLU; all but the inputs in ``out``, if given."""
        weight1, bias1, weight2, bias2, weight3, bias3 = weights
        inputs = observations.to(self.compute_dtype, memory_format=torch.channels_last)
        conv1 = _relu(F.conv2d(inputs, weight1, bias1, stride=4), out and out.conv1)
        conv2 = _relu(F.conv2d(conv1, weight2, bias2, stride=2))
        conv2 = out.conv2.copy_(conv2) if out else conv2.contiguous()
        # Not F.linear: with few observations the product takes a third longer in that order.
        linear = torch.addmm(bias3.unsqueeze(1), weight3, conv2.flatten(1).t()).t()
        features = out.features.copy_(linear) if out else linear.contiguous()
        features = _relu(features)
        return Activations(inputs, conv1, conv2, features)

    @torch.no_grad()
    def gradients(
        self, activations: Activations, weights: list[Tensor], gradient: Tensor, out: Tensor | None = None
    ) -> list[Tensor]:
        """That of each of ``parameters()``, given ``gradient`` [N, 256], that of the features. Nearly all of them are
        the linear layer's weight: its gradient is written into ``out``, if that is given in the compute dtype."""
        inputs, conv1, conv2, features = activations
        weight1, _, weight2, _, weight3, _ = weights
        gradient = _through_relu(gradient.to(self.compute_dtype, copy=True), features)
        out = out if out is not None and out.dtype == self.compute_dtype else None
        of_weight3, of_bias3 = torch.mm(gradient.t(), conv2.flatten(1), out=out), gradient.sum(0)
        gradient = _through_relu((gradient @ weight3).view(conv2.shape), conv2)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        gradient, of_weight2, of_bias2 = _of_convolution(gradient, conv1, weight2, stride=2)
        gradient = _through_relu(gradient, conv1)
        _, of_weight1, of_bias1 = _of_convolution(gradient, inputs, weight1, stride=4, of_input=False)
        return [of_weight1 / 255, of_bias1, of_weight2, of_bias2, of_weight3, of_bias3]


def _relu(values: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.clamp_min(values, 0, out=values if out is None else out)


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """In place. Both must have one layout: it is ten times slower where they do not."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)  # type: ignore


def _of_convolution(
    gradient: Tensor, inputs: Tensor, weight: Tensor, stride: int, of_input: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a convolution's input, weight and bias, given that of its output."""
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
        return None, None, *ctx.encoder.gradients(ctx.activations, ctx.weights, gradient)


class ActorCritic(nn.Module):
    """Policy logits and value from one shared encoder."""

    def __init__(self, config: Config, num_actions: int) -> None:
        super().__init__()
        channels = config.env.frame_stack * (1 if config.env.color == "grey" else 3)
        compute_dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.encoder = Encoder(channels, config.env.screen_size, compute_dtype)
        self.policy = nn.Linear(256, num_actions)
        self.value = nn.Linear(256, 1)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, C, H, W] → logits [B, num_actions], values [B]."""
        return self.heads(self.encoder(observations))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """float32 […, 256] → logits […, num_actions], values […]."""
        return self.policy(features), self.value(features).squeeze(-1)

    @torch.no_grad()
    def head_gradients(self, features: Tensor, of_logits: Tensor, of_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The gradient of the features [N, 256], and those of the parameters of both heads, given ``features`` […, 256]
        and those of the logits […, num_actions] and values […]."""
        features, of_logits = features.flatten(0, -2), of_logits.flatten(0, -2)
        of_values = of_values.flatten().unsqueeze(-1)
        of_features = torch.addmm(of_logits @ self.policy.weight, of_values, self.value.weight)
        of_policy, of_value = ([of_output.t() @ features, of_output.sum(0)] for of_output in (of_logits, of_values))
        return of_features, [*of_policy, *of_value]

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Orthogonal weights (gain √2; policy 0.01, value 1) and zero biases, as A2C's baselines have it."""
        gains = {"policy": 0.01, "value": 1.0}
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                gain = gains.get(name.partition(".")[0], math.sqrt(2))
                nn.init.orthogonal_(parameter, gain, generator=generator)


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


def meta_learned(config: Config, task: Task, network: ActorCritic) -> dict[str, nn.Parameter]:
    """The parameters that Leap sees, by their names in the initialization."""
    named = [
        (name_in_initialization(config.meta, task, name), parameter) for name, parameter in network.named_parameters()
    ]
    return {name: parameter for name, parameter in named if name is not None}


def initial_parameters(config: Config, seed: int) -> Tensors:
    """A fresh shared initialization: name → float32 tensor of what is meta-learned."""
    torch.set_num_threads(1)  # a QR decomposition gives other bits with more
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for game in config.tasks.games if config.meta.rule == "joint" else config.tasks.games[:1]:
        own_actions = config.meta.rule == "joint" and not config.env.full_action_space
        # Otherwise heads enter only with meta.parameters = all, and then with 18 actions in every game.
        network = ActorCritic(config, catalogue()[parse_game(game).rom].num_actions if own_actions else 18)
        network.initialize(generator)
        learned = meta_learned(config, Task(0, 0, game, seed), network)
        found = {name: parameter.detach().clone() for name, parameter in learned.items()} | found
    return found


def resolve_precision(precision: str) -> str:
    """``auto`` becomes bf16 where the CPU has bf16 instructions, else fp32."""
    if precision != "auto":
        return precision
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
