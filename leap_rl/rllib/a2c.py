"""Defines A2C on RLlib's new API stack: sampling, connectors and checkpoints are RLlib's, the loss is ours.

RLlib 2.60 has none of its own. An iteration is that of PPO with one epoch over the whole batch, in which the advantage
is λ = 1: the n-step returns of Mnih et al. 2016 up to the end of the fragment, as ``processes/a2c`` has them.
"""

import math
from typing import Any, Self

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.algorithms.ppo.ppo_learner import PPOLearner
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY, VF_LOSS_KEY
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor, nn

from leap_rl.processes.a2c.loss import a2c_loss


class A2CConfig(PPOConfig):  # type: ignore[misc]
    """Options of PPO that A2C has none of (epochs, minibatches, clipping, KL) stay as they are set here."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or A2C)
        self.num_epochs, self.minibatch_size = 1, None
        self.use_kl_loss, self.lambda_ = False, 1.0
        self.lr, self.entropy_coeff, self.vf_loss_coeff = 7e-4, 0.01, 0.5
        self.optimizer_name = "rmsprop"  # or "adam"
        self.rmsprop_decay, self.epsilon = 0.99, 1e-5

    def training(
        self,
        *,
        optimizer_name: str = NotProvided,
        rmsprop_decay: float = NotProvided,
        epsilon: float = NotProvided,
        **options: Any,
    ) -> Self:
        """Sets options as in RLlib. ``optimizer_name``: rmsprop or adam; ``rmsprop_decay``: its α; ``epsilon``: added
        to the root."""
        super().training(**options)
        given = {"optimizer_name": optimizer_name, "rmsprop_decay": rmsprop_decay, "epsilon": epsilon}
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def validate(self) -> None:
        """Raises ValueError for what PPO refuses, and for options that would make it another algorithm."""
        super().validate()
        fixed = {"num_epochs": 1, "minibatch_size": None, "lambda_": 1.0, "use_kl_loss": False, "use_gae": True}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                self._value_error(f"`{name}` ({getattr(self, name)}) must be {value}: A2C takes one step a batch")
        if self.optimizer_name not in ("rmsprop", "adam"):
            self._value_error(f"`optimizer_name` ({self.optimizer_name}) must be rmsprop or adam")

    def get_default_learner_class(self) -> type[TorchLearner]:
        return A2CTorchLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=A2CTorchRLModule)

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return super()._model_config_auto_includes | {"vf_share_layers": True}  # type: ignore[no-any-return]


class A2C(PPO):  # type: ignore[misc]
    """Trains advantage actor-critic (the synchronous form of Mnih et al. 2016)."""

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        return A2CConfig()


class A2CTorchRLModule(DefaultPPOTorchRLModule):  # type: ignore[misc]
    """Has RLlib's encoder and heads, whose weights are initialized as in ``processes/a2c``."""

    def setup(self) -> None:
        super().setup()
        gains = dict.fromkeys((name for name, _ in self.named_parameters()), math.sqrt(2))
        for head, gain in (("pi", 0.01), ("vf", 1.0)):
            outputs = [name for name in gains if name.startswith(f"{head}.") and name.endswith("weight")]
            gains.update(dict.fromkeys(outputs[-1:], gain))
        for name, parameter in self.named_parameters():
            nn.init.zeros_(parameter) if parameter.ndim == 1 else nn.init.orthogonal_(parameter, gains[name])


class A2CTorchLearner(PPOLearner, TorchLearner):  # type: ignore[misc]
    """Takes one gradient step on the whole batch."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        parameters = self.get_parameters(self._module[module_id])
        if config.optimizer_name == "adam":
            optimizer: Any = torch.optim.Adam(parameters, eps=config.epsilon)
        else:
            optimizer = torch.optim.RMSprop(parameters, alpha=config.rmsprop_decay, eps=config.epsilon)
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=config.lr
        )

    def compute_loss_for_module(
        self, *, module_id: str, config: A2CConfig, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """Returns the mean loss over the steps that were taken: the one RLlib adds to each fragment, to bootstrap from,
        is none."""
        values = self.module[module_id].unwrapped().compute_values(batch, embeddings=fwd_out.get(Columns.EMBEDDINGS))
        logits, actions = fwd_out[Columns.ACTION_DIST_INPUTS], batch[Columns.ACTIONS].long()
        taken = batch.get(Columns.LOSS_MASK, torch.ones_like(actions, dtype=torch.bool))
        entropy_cost = self.entropy_coeff_schedulers_per_module[module_id].get_current_value()
        loss = a2c_loss(
            logits[taken], values[taken], actions[taken], batch[Postprocessing.VALUE_TARGETS][taken],
            config.vf_loss_coeff, entropy_cost,
        )  # fmt: skip
        terms = {POLICY_LOSS_KEY: loss.policy, VF_LOSS_KEY: loss.value, ENTROPY_KEY: loss.entropy}
        self.metrics.log_dict(terms, key=module_id, window=1)
        return loss.total

    def _update_module_kl_coeff(self, **_: Any) -> None:
        """Does nothing: A2C has no KL coefficient."""
