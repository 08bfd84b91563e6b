"""Equations in the form in which a page calls its objective.

An Objective takes logp, old_logp, adv and mask, all (b, T), and returns a value for each token,
(b, T), to be maximised. The functions here make one from an equation and its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from minirl.equations.objectives import (
    cispo,
    clipped_surrogate,
    dppo,
    dual_clipped_surrogate,
    gmpo,
    gspo_token,
    policy_gradient,
    sapo,
    sequence_clipped_surrogate,
    vespo,
)

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # logp, old, adv, mask -> (b, T)


def per_token(objective: Callable[..., Tensor], **numbers: float) -> Objective:
    """Return an equation of single tokens as one that also takes the mask."""
    return lambda logp, old_logp, adv, mask: objective(logp, old_logp, adv, **numbers)


def per_completion(objective: Callable[..., Tensor], **numbers: float) -> Objective:
    """Return an equation of whole completions, whose value stands on every token of the row. So
    sequence_mean gives the mean over completions."""
    def spread(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
        value = objective(logp, old_logp, of_completion(adv, mask), mask, **numbers)  # (b,)
        return value[:, None].expand_as(logp)

    return spread


def of_completion(adv: Tensor, mask: Tensor) -> Tensor:
    """Return the advantage of each row's first sampled token: its completion's, where all of its
    tokens have the same. (b, T) -> (b,)"""
    return adv.gather(1, mask.int().argmax(1, keepdim=True)).squeeze(1)


def clipped(clip_low: float, clip_high: float, dual_clip: float = 0.0) -> Objective:
    if not dual_clip:
        return per_token(clipped_surrogate, clip_low=clip_low, clip_high=clip_high)
    return per_token(dual_clipped_surrogate, clip_low=clip_low, clip_high=clip_high, cap=dual_clip)


def whole_sequence(clip_low: float, clip_high: float) -> Objective:
    """One ratio per completion, the product of its tokens' ratios."""
    return per_completion(partial(sequence_clipped_surrogate, length_normalised=False),
                          clip_low=clip_low, clip_high=clip_high)


def score_function() -> Objective:
    return lambda logp, old_logp, adv, mask: policy_gradient(logp, adv)


def capped(clip_high: float) -> Objective:
    return per_token(cispo, cap=1 + clip_high)


def sequence_ratio(clip_low: float, clip_high: float) -> Objective:
    return partial(gspo_token, clip_low=clip_low, clip_high=clip_high)


def soft_gate(sapo_temp_pos: float, sapo_temp_neg: float) -> Objective:
    return per_token(sapo, temp_pos=sapo_temp_pos, temp_neg=sapo_temp_neg)


def trust_region(dppo_delta: float) -> Objective:
    return per_token(dppo, delta=dppo_delta)


def geometric_mean(clip_high: float) -> Objective:
    """The clip is a distance of log-ratios, one-sided: up where A > 0, down where A < 0."""
    return per_completion(gmpo, clip=clip_high)


def bell(vespo_k_pos: float, vespo_lambda_pos: float, vespo_k_neg: float,
         vespo_lambda_neg: float) -> Objective:
    return partial(vespo, k_pos=vespo_k_pos, lam_pos=vespo_lambda_pos, k_neg=vespo_k_neg,
                   lam_neg=vespo_lambda_neg)
