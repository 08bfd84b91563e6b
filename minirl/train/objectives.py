"""Equations in the form in which a page calls its objective.

An Objective takes logp, old_logp, adv and mask, all (b, T), and returns a value for each token,
(b, T), to be maximised. The functions here make one from an equation and its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minirl.equations.entropy import clip_cov_mask, kl_cov_mask, token_covariance
from minirl.equations.objectives import (
    cispo,
    clipped_surrogate,
    dppo,
    dual_clipped_surrogate,
    gmpo,
    gspo_token,
    kl_penalised_surrogate,
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


def clip_cov(clip_low: float, clip_high: float, cov_share: float, cov_low: float,
             cov_high: float) -> Objective:
    """Clip-Cov: PPO's clip, and no gradient from a few tokens, drawn from those with a large
    covariance. As in verl, a token that the clip stops already is not drawn.

    The seed of the draw is made from the log-probs, so a run resumes with the same bits.
    The means, the share and the draw are those of the rows that are passed, a micro-batch, as in
    verl: the choice is the minibatch's where --token-budget lets it pass as a whole.
    """
    def objective(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
        surrogate = clipped_surrogate(logp, old_logp, adv, clip_low=clip_low, clip_high=clip_high)
        stopped = surrogate < (logp - old_logp).exp() * adv  # (b, T)
        covariance = token_covariance(logp, adv, mask).masked_fill(stopped, 0)
        seed = seed_of(torch.where(mask.bool(), logp.detach(), 0))
        kept = clip_cov_mask(covariance, mask, share=cov_share, low=cov_low, high=cov_high,
                             generator=torch.Generator().manual_seed(seed))
        return torch.where(kept, surrogate, 0)

    return objective


def seed_of(numbers: Tensor) -> int:
    """Return the sum of the numbers' bits: exact, so neither padding (of zeros) nor the order of
    rows changes it."""
    return int(numbers.float().view(torch.int32).sum(dtype=torch.int64))


def kl_cov(cov_share: float, cov_kl_coef: float) -> Objective:
    """KL-Cov: no clip, and a penalty on how far the few tokens with the largest covariance move.
    They are chosen among the rows that are passed, a micro-batch, as in verl (see clip_cov).

    The penalty estimates KL(π_old || π) by |log ρ|, whose gradient at ρ = 1 is 0: it does nothing
    in the first update for a batch, and so nothing at all where there is one update.
    """
    def objective(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
        chosen = kl_cov_mask(token_covariance(logp, adv, mask), mask, share=cov_share)  # (b, T)
        return kl_penalised_surrogate(logp, old_logp, adv, (logp - old_logp).abs() * chosen,
                                      cov_kl_coef)

    return objective
