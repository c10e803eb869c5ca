"""Defines a mixin for RLlib's Torch Learners that walks the path which Leap shortens, one point a gradient step.

    loss → backward → record the point for Leap → clipping, optimizer step (RLlib's)

RLlib computes a step's gradients in ``compute_gradients``, clips them in ``postprocess_gradients`` and moves the
parameters in ``apply_gradients``. So a point is recorded at the end of the first: its loss, the parameters that the
loss was taken at, and the gradient of the loss, unclipped. Where the step ends is where the next one begins; the
last one ends where the path is finished.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import Tensor, nn

from leap_rl.leap import PathAccumulator
from leap_rl.types import BadInputError

T = TypeVar("T")
Chosen = Callable[[nn.Module], Mapping[str, nn.Parameter]]


def encoder_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns an RLModule's trainable parameters below ``encoder.``: name → parameter.

    In RLlib's default modules that is all but the heads, which have another shape in every game, and but target
    networks. Raises BadInputError where there are none.
    """
    found = {
        name: parameter
        for name, parameter in module.named_parameters()
        if name.startswith("encoder.") and parameter.requires_grad
    }
    if not found:
        named = ", ".join(sorted({name.partition(".")[0] for name, _ in module.named_parameters()}))
        raise BadInputError(f"{type(module).__name__}: has no trainable parameter below encoder., only below {named}")
    return found


def leap_learner(
    base: type[TorchLearner],
    make_path: Callable[[], PathAccumulator] = PathAccumulator,
    chosen: Chosen = encoder_parameters,
) -> type[TorchLearner]:
    """Returns a subclass of ``base`` that feeds every gradient step to the path that ``make_path`` makes.

    ``chosen`` picks what is meta-learned of the RLModule: a mapping that gives the same names at every call. Use it
    with ``AlgorithmConfig.learners(learner_class=...)`` and one Learner (``num_learners`` 0 or 1): one of several, or
    with several modules, raises BadInputError when the algorithm is built.
    """

    class LeapLearner(base):  # type: ignore[misc]
        """Has ``path``, and ``num_steps``, ``loss_sum`` and ``gradient_norm_sum`` since the last cut."""

        def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
            # Not in build: a LearnerGroup whose actors fail after they have started hangs where Python ends.
            if config.num_learners > 1:
                raise BadInputError(f"num_learners = {config.num_learners}: Leap follows one path; it must be 0 or 1")
            super().__init__(config=config, **kwargs)

        def build(self) -> None:
            # Before RLlib's own: a Learner of IMPALA starts the thread that takes steps there.
            self.path = make_path()
            self.path_lock = threading.Lock()
            self.clear_sums()
            super().build()
            if len(self.module) != 1:
                raise BadInputError(f"{len(self.module)} modules: Leap follows the path of one, not of several agents")
            self.meta_learned()  # an encoder that is missing is said now, not at the first step

        def meta_learned(self) -> Mapping[str, nn.Parameter]:
            """Returns what Leap sees of the module: name → parameter."""
            (module,) = self.module.values()
            return chosen(module.unwrapped())

        def clear_sums(self) -> None:
            self.num_steps, self.loss_sum, self.gradient_norm_sum = 0, 0.0, 0.0

        def compute_gradients(self, loss_per_module: dict[str, Tensor], **kwargs: Any) -> Any:
            gradients = super().compute_gradients(loss_per_module, **kwargs)
            (loss,) = loss_per_module.values()
            parameters = self.meta_learned()
            raw = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
            whole = [gradient for gradient in gradients.values() if gradient is not None]
            norm = nn.utils.get_total_norm(whole)
            with self.path_lock:
                self.path.record(loss, parameters, raw)
                self.num_steps += 1
                self.loss_sum += float(loss.detach())
                self.gradient_norm_sum += float(norm)
            return gradients

    LeapLearner.__name__ = f"Leap{base.__name__}"
    return LeapLearner


def take_increment(algorithm: Algorithm, finish: bool = False) -> dict[str, Tensor]:
    """Returns the meta-gradient of an algorithm's path since its start or the last call: name → tensor.

    ``finish`` closes the path where the parameters are now: nothing can be recorded after it. Raises RuntimeError
    where the path is not finite, BadInputError where the algorithm has no Learner of :func:`leap_learner`.
    """
    name = algorithm.config.learner_class.__name__  # Ray wraps the class in another process

    def cut(learner: Any) -> dict[str, Tensor]:
        if not hasattr(learner, "path"):
            raise BadInputError(f"{name}: records no path; use config.learners(learner_class=leap_learner(...))")
        with learner.path_lock:
            if finish:
                learner.path.finish(learner.meta_learned())
            if learner.path.failed:
                raise RuntimeError(f"the path of {name}: {learner.path.failed}")
            learner.clear_sums()
            return learner.path.cut()  # type: ignore[no-any-return]

    (increment,) = on_learners(algorithm, cut)
    return increment


def on_learners(algorithm: Algorithm, function: Callable[[Any], T]) -> list[T]:
    """Returns what ``function`` returns for each of an algorithm's Learners. Raises what it raises there: RLlib returns
    what was raised in another process, and gives up the Learner. Raises BadInputError where there are no Learners."""
    if algorithm.learner_group is None:
        raise BadInputError(
            f"{type(algorithm).__name__}: is on RLlib's old API stack, which has no Learner: leave "
            "enable_rl_module_and_learner and enable_env_runner_and_connector_v2 on"
        )

    def guarded(learner: Any) -> T | Exception:
        try:
            return function(learner)
        except Exception as error:  # else RLlib would take the Learner out of service
            return error

    results = [result.get() for result in algorithm.learner_group.foreach_learner(guarded)]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
