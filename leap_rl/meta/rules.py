"""Defines the meta-learning rules, which say how a process's path becomes its increment of the meta-gradient.

Everything else is the same for all of them: the tasks, the streaming, the mean over a meta-batch, the
meta-optimizer that steps the initialization against it.

    leap      Σ over the moves of what leap.py says (Flennerhag et al. 2019)
    reptile   θ⁰ − ψᴷ: Leap's energy without the loss term, to the last bit (Nichol et al. 2018, section 5)
    fomaml    ∇f at the last point: first-order MAML (Finn et al. 2017, section 5.2)
    maml      the derivative of f at the last point in θ⁰, through all steps (the same, equation 1): only a process
              that can take its path again has it, and adds it to the last increment itself
    joint     multi-task pretraining: one encoder for all games and heads of each game's own, which are kept from
              one meta-step to the next as part of the initialization. Each task goes on from both, and the mean of
              θ⁰ − ψᴷ steps them (with SGD at a meta learning rate of 1: to the mean of the ψᴷ): the games' gradient
              steps are interleaved, task.agent_steps at a time
    none      0: the initialization stays as it is drawn
"""

import torch
from torch import Tensor

from leap_rl.config import PathConfig
from leap_rl.leap import PathAccumulator
from leap_rl.types import Tensors

HEADS = "heads/"  # prefix of the heads of one game in an initialization: heads/pong/policy.weight


def make_path(config: PathConfig) -> PathAccumulator:
    """Returns the accumulator that records a task's path and makes its increment under ``meta.rule``. What it cannot do
    alone is up to the process (``Config.carries_out``)."""
    match config.rule:
        case "leap":
            return PathAccumulator(config.metric, config.use_loss, config.stabilizer, config.loss_difference)
        case "reptile" | "joint":
            return PathAccumulator("energy", use_loss=False)
        case "fomaml":
            return LastGradient()
        case "maml" | "none":
            return NoIncrement()


def shift(path: PathAccumulator, change: Tensors) -> None:
    """Adds ``change`` to the newest point of a path that is at a cut: name → tensor. The moves before and after it are
    as long as they would have been."""
    path.point = {name: value + change[name] if name in change else value for name, value in path.point.items()}


def name_in_initialization(config: PathConfig, owner: str, name: str) -> str | None:
    """Returns what a parameter of the network is called in the initialization; None where it is the task's alone.

    All tasks share the encoder. Heads are in the initialization where ``meta.parameters`` is ``all`` and under the
    joint rule; they belong to ``owner`` (a game, an alphabet), or to all tasks where it is empty.
    """
    if name.startswith("encoder."):
        return name
    if config.parameters != "all" and config.rule != "joint":
        return None
    return f"{HEADS}{owner}/{name}" if owner else name


def part_for(parameters: Tensors, initialization: Tensors) -> Tensors:
    """Returns the part of an initialization that these parameters take: all but the heads of other games.

    A game for whose heads the initialization has nothing keeps its fresh ones. Raises ValueError where names or shapes
    differ otherwise.
    """
    chosen = {n: value for n, value in initialization.items() if n in parameters or not n.startswith(HEADS)}
    has_heads = any(name.startswith(HEADS) for name in chosen)
    expected = {n: tuple(value.shape) for n, value in parameters.items() if has_heads or not n.startswith(HEADS)}
    found = {name: tuple(value.shape) for name, value in chosen.items()}
    if expected != found:
        differing = sorted(set(expected.items()) ^ set(found.items()))
        raise ValueError(f"the initialization does not fit the network: {differing}")
    return chosen


def without_heads(initialization: Tensors) -> Tensors:
    """Returns an initialization less the heads of single games: name → tensor."""
    return {name: value for name, value in initialization.items() if not name.startswith(HEADS)}


class NoIncrement(PathAccumulator):
    """Measures the path; its increment is zero."""

    def increment(self) -> dict[str, Tensor]:
        """Returns zeros: name → tensor."""
        return {name: torch.zeros_like(value) for name, value in self.point.items()}


class LastGradient(NoIncrement):
    """Measures the path; its increment is the gradient at the last point, once the path is finished.

    The last point is the last that was recorded: ψᴷ after K optimizer steps. In A2C its gradient is that of a
    rollout which no earlier step has seen; the step that the optimizer takes with it is not part of the path.
    """

    def increment(self) -> dict[str, Tensor]:
        """Returns ∇f(ψᴷ) after :meth:`finish`, zeros before it and for a failed path: name → tensor."""
        if not self.finished or self.failed:
            return super().increment()
        return {name: value.clone() for name, value in self.gradient.items()}
