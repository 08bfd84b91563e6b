"""What a token counts for in the surrogate: weights for rollouts that are not quite the policy's.

    surrogate_t <- w_t surrogate_t,   w a product of equations, each a constant of the update

The KL penalty and the entropy bonus are added after the weights, and have none. A token of weight 0
still counts in the mean: it is left out of the numerator alone, as in TRL.

    importance        π_old/μ of the token or the completion, cut off or set to 0 beyond its bounds
    geometric_*       0 for a completion whose mean ratio is outside the bounds
    off_policy_delta  0 for a completion worse than its group that the policy has moved away from
    top_entropy       0 for all tokens but those of the highest entropy

π_old is the learner before the update, μ the sampler: an older policy, or other kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Protocol

import torch
from torch import Tensor

from minirl.equations.entropy import entropy_mask
from minirl.equations.mismatch import (
    geometric_mask,
    importance_ratio,
    masked_weights,
    off_policy_mask,
    sequence_weights,
    truncated_weights,
)
from minirl.lm import world
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.rollouts import Rollouts, micro_batches
from minirl.train.objectives import of_completion
from minirl.train.options import GRPOOptions

# logp, old_logp, behavior_logp, adv, counted, mask -> (b, T), all of them without a gradient.
# `counted` is the mask without the tokens that top_entropy leaves out.
Weights = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Bounded = Callable[[Tensor, Tensor, Tensor], Tensor]  # old_logp, behavior_logp, mask -> (b, T or 1)


def token_weights(config: GRPOOptions) -> Weights | None:
    """Return the product of the weights that a configuration names; None if it names none."""
    factors: list[Weights] = []
    if config.top_entropy < 1:
        factors.append(lambda logp, old, behavior, adv, counted, mask: counted.to(logp.dtype))
    if config.importance != "none":
        ratio = IMPORTANCE[config.importance](config.importance_min, config.importance_max or inf)
        factors.append(lambda logp, old, behavior, adv, counted, mask: ratio(old, behavior, mask))
    if config.geometric_min or config.geometric_max:
        low, high = config.geometric_min, config.geometric_max or inf
        factors.append(lambda logp, old, behavior, adv, counted, mask: geometric_mask(
            old, behavior, mask, low=low, high=high)[:, None].to(logp.dtype))
    if config.off_policy_delta:
        factors.append(lambda logp, old, behavior, adv, counted, mask: off_policy_mask(
            logp, behavior, of_completion(adv, mask), mask,
            delta=config.off_policy_delta)[:, None].to(logp.dtype))

    def product(logp: Tensor, old_logp: Tensor, behavior_logp: Tensor, adv: Tensor,
                counted: Tensor, mask: Tensor) -> Tensor:
        weight = torch.ones_like(logp)
        for factor in factors:
            weight = weight * factor(logp, old_logp, behavior_logp, adv, counted, mask)
        return torch.where(mask, weight, 0)  # what is under a zero mask may be infinite

    return product if factors else None


def token_truncate(low: float, high: float) -> Bounded:
    return lambda old, behavior, mask: truncated_weights(
        importance_ratio(old, behavior), high).clamp(min=low)


def token_mask(low: float, high: float) -> Bounded:
    """IcePop, arXiv:2510.18855."""
    return lambda old, behavior, mask: masked_weights(
        importance_ratio(old, behavior), high, floor=low)


def sequence_truncate(low: float, high: float) -> Bounded:
    return lambda old, behavior, mask: truncated_weights(
        sequence_weights(old, behavior, mask), high).clamp(min=low)[:, None]


def sequence_mask(low: float, high: float) -> Bounded:
    """MIS, arXiv:2510.26788."""
    return lambda old, behavior, mask: masked_weights(
        sequence_weights(old, behavior, mask), high, floor=low)[:, None]


# TRL's vllm_importance_sampling_mode, by its names
IMPORTANCE = {"token_truncate": token_truncate, "token_mask": token_mask,
              "sequence_truncate": sequence_truncate, "sequence_mask": sequence_mask}


class EntropyConfig(Protocol):
    """The fields of a page's configuration that counted_tokens reads."""

    @property
    def top_entropy(self) -> float: ...
    @property
    def temperature(self) -> float: ...
    @property
    def token_budget(self) -> int: ...


@torch.no_grad()
def counted_tokens(model: Transformer, rollouts: Rollouts, config: EntropyConfig) -> Tensor:
    """Return the tokens whose surrogate counts: the share `top_entropy` of the batch with the
    highest entropy before the update. (B, T) bool

    Paper      Beyond the 80/20 rule, arXiv:2506.01939: tokens at which the policy hesitates are
               forks, and a fifth of the tokens is enough to learn from.

    The whole batch has one threshold, so no split into micro-batches, or over processes, changes
    it. That costs one more forward pass. (TRL: a threshold for each micro-batch, at no cost.)
    """
    if config.top_entropy == 1:
        return rollouts.mask
    entropy = torch.zeros(rollouts.tokens.shape, device=rollouts.tokens.device)
    for rows in micro_batches(rollouts.lengths, config.token_budget):
        part = rollouts.rows(rows)
        _, its_entropy = token_logprobs(model, part.tokens, mask=part.mask,
                                        temperature=config.temperature, return_entropy=True)
        entropy[rows, :part.tokens.shape[1]] = its_entropy.float()
    mask = partial(entropy_mask, quantile=config.top_entropy)
    return world.over_tokens(mask)(entropy, rollouts.mask)
