"""Computes the loss of advantage actor-critic (A2C, the synchronous form of Mnih et al. 2016, "Asynchronous Methods").

T is time within an unroll, B is environments.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class A2CLoss(NamedTuple):
    """Holds the parts of the loss, scalars, means over T and B: ``total`` = policy + value_cost × value − entropy_cost
    × entropy."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor


def n_step_returns(rewards: Tensor, discounts: Tensor, bootstrap: Tensor) -> Tensor:
    """Returns R [T, B], where R[t] = rewards[t] + discounts[t] · R[t+1], with R[T] = bootstrap.

    ``rewards``, ``discounts`` [T, B]; a discount of 0 ends an episode; ``bootstrap`` [B], the value of what
    follows the unroll. (Mnih et al. 2016, algorithm S3.)
    """
    returns = torch.empty_like(rewards)
    following = bootstrap
    for t in reversed(range(len(rewards))):
        following = rewards[t] + discounts[t] * following
        returns[t] = following
    return returns


def a2c_loss(
    logits: Tensor,
    values: Tensor,
    actions: Tensor,
    returns: Tensor,
    value_cost: float,
    entropy_cost: float,
    held_values: Tensor | None = None,
) -> A2CLoss:
    """Returns the loss of ``logits`` [T, B, A], ``values`` [T, B], ``actions`` int64 [T, B] and ``returns`` [T, B].

    No gradient flows through the returns, nor through the advantage of the policy term: the loss whose gradient
    this is holds both. ``held_values`` [T, B] evaluates that loss elsewhere: they are the values at the point
    where the gradient was taken, from which the advantages are.
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)
    chosen = log_probabilities.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    advantages = returns.detach() - values
    held_advantages = advantages.detach() if held_values is None else returns - held_values
    policy = -(held_advantages * chosen).mean()
    value = advantages.square().mean()
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean()
    return A2CLoss(policy + value_cost * value - entropy_cost * entropy, policy, value, entropy)


@torch.no_grad()
def a2c_gradients(
    logits: Tensor, values: Tensor, actions: Tensor, returns: Tensor, value_cost: float, entropy_cost: float
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of :func:`a2c_loss`'s total in ``logits`` [T, B, A] and ``values`` [T, B],
    without a graph.

    With advantage a, policy π, its entropy H and N = T·B: (π (a + entropy_cost (log π + H)) − a, the last only where
    the action was chosen) / N for a logit, and −2 value_cost a / N for a value.
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities).sum(-1, keepdim=True)
    advantages = (returns - values).unsqueeze(-1)
    of_logits = probabilities * (advantages + entropy_cost * (log_probabilities + entropy))
    of_logits.scatter_add_(-1, actions.unsqueeze(-1), -advantages)
    return of_logits / values.numel(), advantages.squeeze(-1) * (-2 * value_cost / values.numel())
