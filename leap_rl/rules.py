"""Meta-learning rules: how a learning process's path becomes its increment of the meta-gradient.

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

from leap_rl.config import MetaConfig
from leap_rl.leap import PathAccumulator
from leap_rl.types import Task, Tensors

HEADS = "heads/"  # of a game, in an initialization of the joint rule: heads/pong/policy.weight


def make_path(config: MetaConfig) -> PathAccumulator:
    """What records a task's path and gives out its increment under ``meta.rule``."""
    match config.rule:
        case "leap":
            return PathAccumulator(config.metric, config.use_loss, config.stabilizer, config.loss_difference)
        case "reptile" | "joint":
            return PathAccumulator("energy", use_loss=False)
        case "fomaml":
            return LastGradient()
        case "maml" | "none":
            return NoIncrement()


def name_in_initialization(config: MetaConfig, task: Task, name: str) -> str | None:
    """What a parameter of the network is called in the initialization; None where it is the task's alone.

    The encoder is shared, and all of the network where ``meta.parameters`` says so. Under the joint rule each game has
    heads of its own there. (An evaluation is under no such rule: all of its heads are fresh.)
    """
    if name.startswith("encoder.") or config.parameters == "all":
        return name
    return f"{HEADS}{task.name}/{name}" if config.rule == "joint" else None


def part_for(parameters: Tensors, initialization: Tensors) -> Tensors:
    """The part of an initialization that is for these parameters: all but the heads of other games. Raises ValueError
    where names or shapes differ."""
    chosen = {n: value for n, value in initialization.items() if n in parameters or not n.startswith(HEADS)}
    expected = {name: tuple(value.shape) for name, value in parameters.items()}
    found = {name: tuple(value.shape) for name, value in chosen.items()}
    if expected != found:
        differing = sorted(set(expected.items()) ^ set(found.items()))
        raise ValueError(f"the initialization does not fit the network: {differing}")
    return chosen


def without_heads(initialization: Tensors) -> Tensors:
    """What of an initialization is for any game: name → tensor."""
    return {name: value for name, value in initialization.items() if not name.startswith(HEADS)}


class NoIncrement(PathAccumulator):
    """Measures the path and asks for nothing."""

    def increment(self) -> dict[str, Tensor]:
        """Zeros: name → tensor."""
        return {name: torch.zeros_like(value) for name, value in self._point.items()}


class LastGradient(NoIncrement):
    """Measures the path and asks for the gradient at its last point, once it is finished.

    The last point is the last that was recorded: ψᴷ after K optimizer steps. In A2C its gradient is that of a
    rollout which no earlier step has seen; the step that the optimizer takes with it is not part of the path.
    """

    def increment(self) -> dict[str, Tensor]:
        """∇f(ψᴷ) after :meth:`finish`, zeros before it and for a failed path: name → tensor."""
        increment = super().increment()
        if self.finished and not self.failed:
            self._take_out()
            for name, gradient in self._gradient.items():
                increment[name].copy_(gradient)
        return increment
