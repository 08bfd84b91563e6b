"""Slips of the newer equations, as slips.py has those of the older ones: wrong on purpose.

FURTHER maps an equation's name to rows: what is wrong, the function, and whether it is another
convention and no mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minirl.equations.entropy import entropy_mask
from minirl.equations.kl import generalised_jsd
from minirl.equations.reduce import masked_mean


def _drift(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """The mean log-ratio of each row."""
    return masked_mean(torch.where(mask.bool(), logp - old_logp, 0), mask, dim=1)


# distillation

def away_from_the_teacher(logp: Tensor, teacher_logp: Tensor) -> Tensor:
    return (logp - teacher_logp).detach()


def exchanged_weights(logits: Tensor, teacher_logits: Tensor, beta: float) -> Tensor:
    return generalised_jsd(logits, teacher_logits, 1 - beta)


# objectives

def probabilities_on_both_sides(logp: Tensor, old_logp: Tensor, adv: Tensor, *, delta: float,
                                cap: float = 20.0) -> Tensor:
    near = (logp.detach().exp() - old_logp.exp()).abs() <= delta
    return (logp.detach() - old_logp).exp().clamp(max=cap) * near * adv * logp


def clipped_on_both_sides(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor, *,
                          clip: float = 0.4) -> Tensor:
    zero = torch.zeros_like(logp)
    log_ratio = torch.where(mask.bool(), logp - old_logp, 0).clamp(-clip, clip)
    return _drift(log_ratio, zero, mask).exp() * adv


def clipped_after_the_mean(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor, *,
                           clip: float = 0.4) -> Tensor:
    mean = _drift(logp, old_logp, mask)
    return torch.where(adv > 0, mean.clamp(max=clip), mean.clamp(min=-clip)).exp() * adv


def without_the_length(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor, *,
                       clip_low: float, clip_high: float) -> Tensor:
    ratio = _drift(logp, old_logp, mask).exp()
    return torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)


def weight_of_the_mean(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor, *,
                       k_pos: float = 2.0, lam_pos: float = 3.0, k_neg: float = 3.0,
                       lam_neg: float = 2.0) -> Tensor:
    log_w = _drift(logp.detach(), old_logp, mask)[:, None]
    gains, losses = ((lam + k * log_w - lam * log_w.exp()).exp()
                     for k, lam in ((k_pos, lam_pos), (k_neg, lam_neg)))
    weights = torch.where(adv >= 0, gains, losses)
    return torch.where(mask.bool(), weights * adv * logp, 0)


# masks

def drift_the_other_way(logp: Tensor, behavior_logp: Tensor, adv: Tensor, mask: Tensor, *,
                        delta: float) -> Tensor:
    return (adv >= 0) | (_drift(logp, behavior_logp, mask) <= delta)


def bad_ones_are_kept(logp: Tensor, behavior_logp: Tensor, adv: Tensor, mask: Tensor, *,
                      delta: float) -> Tensor:
    return (adv < 0) | (-_drift(logp, behavior_logp, mask) <= delta)


def share_to_drop(entropy: Tensor, mask: Tensor, *, quantile: float) -> Tensor:
    return entropy_mask(entropy, mask, quantile=1 - quantile)


# groups

def added_before_compared(rewards: Tensor, weights: Sequence[float] | Tensor, *,
                          eps: float = 1e-4) -> Tensor:
    total = (rewards.nan_to_num() * torch.as_tensor(weights, dtype=rewards.dtype)).sum(-1)
    centred = total - total.mean(1, keepdim=True)
    return centred / (total.std(1, keepdim=True) + eps)


def log_of_the_sum(rewards: Tensor, *, beta: float = 0.5) -> Tensor:
    return beta * (rewards / beta).logsumexp(1)


FURTHER: dict[str, list[tuple[str, Callable[..., Any], bool]]] = {
    "distillation_advantages": [
        ("the sign is turned: the student learns to be unlike the teacher", away_from_the_teacher,
         False),
    ],
    "generalised_jsd": [
        ("β and 1 - β are exchanged: β = 0 is the reverse KL here", exchanged_weights, False),
    ],
    "dppo": [
        ("the region has both sides for either sign of A: a token that moved too far is not "
         "brought back; so does prime-rl's IPO", probabilities_on_both_sides, True),
    ],
    "gmpo": [
        ("each token is clipped on both sides: clip the side alone that A pushes to, as PPO's "
         "minimum does", clipped_on_both_sides, False),
        ("the clip comes after the mean: that is GSPO's, clip each token first",
         clipped_after_the_mean, False),
    ],
    "luspo": [
        ("the length is missing: that is GSPO", without_the_length, False),
    ],
    "vespo": [
        ("the weight is that of the mean log-ratio: w is the product of all ratios, without a "
         "root", weight_of_the_mean, False),
    ],
    "off_policy_mask": [
        ("the drift has the wrong sign: it drops what the policy likes more than the sampler did",
         drift_the_other_way, False),
        ("good completions are dropped, and bad ones kept", bad_ones_are_kept, False),
    ],
    "entropy_mask": [
        ("quantile is taken for the share to drop: it is the share to keep", share_to_drop, False),
    ],
    "gdpo_advantages": [
        ("the rewards are added before they are compared: that is GRPO of their sum",
         added_before_compared, False),
    ],
    "optimal_values": [
        ("it is the log of the sum: V* is that of the mean, lower by β log G", log_of_the_sum,
         False),
    ],
}
