"""Objectives with one ratio for the whole completion, beyond GSPO's: what an update maximises.

GSPO and R1 are objectives.sequence_clipped_surrogate. These three change one thing each. The names
stand in objectives, too, where a reader looks first.

    gmpo    clip each token's ratio before the geometric mean, not the mean        GMPO
    luspo   times the length, so that a token of a long answer counts as much      LUSPO
    vespo   no clip: the product of ratios, in a bell around 1, weighs log π       VESPO
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.checks import check_constants, check_positive, guard_gradient
from minirl.equations.kl import max_log_ratio


def gmpo(
    logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor, *, clip: float = 0.4
) -> Tensor:
    r"""The geometric mean of clipped token ratios, one value per sequence. Maximise.

    Equation   d_t = logp_t - old_logp_t
               c_t = min(d_t, ε) where A_i > 0, max(d_t, -ε) elsewhere           (clip is ε)
               L_i = exp(1/|o_i| Σ_t c_t) A_i
    Paper      GMPO, arXiv:2507.20673, of which the authors' code was read: it has the same numbers.
               ε = 0.4, so ratios between e^-0.4 = 0.67 and e^0.4 = 1.49.
    Erratum    ε is a distance in log-ratios: PPO's 0.2 bounds the ratio itself.
    Shapes     logp, old_logp, mask: (B, T), adv: (B,) -> (B,). The objective is the mean over rows.
    Gradient   through logp: L_i / |o_i| for each token, and 0 for one that is clipped. GSPO clips a
               completion as a whole.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if clip is not
               positive.
    See        objectives.sequence_clipped_surrogate, where the clip comes after the mean.

    >>> d, zero, mask = torch.tensor([[1.0, -0.2]]), torch.zeros(1, 2), torch.ones(1, 2)
    >>> gmpo(d, zero, torch.ones(1), mask)  # 1 is cut to 0.4: e^((0.4 - 0.2) / 2)
    tensor([1.1052])
    >>> gmpo(d, zero, -torch.ones(1), mask)  # A < 0 cuts below alone: -e^((1 - 0.2) / 2)
    tensor([-1.4918])
    """
    check_positive(clip=clip)
    logp = _check_rows(logp, old_logp, adv, mask)
    log_ratio = logp - old_logp  # (B, T)
    gains = (adv > 0)[:, None]  # (B, 1)
    clipped = torch.where(gains, log_ratio.clamp(max=clip), log_ratio.clamp(min=-clip))
    return _exp(_sum(clipped, mask) / _lengths(mask)) * adv


def luspo(
    logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    r"""GSPO times the length of the completion, one value per sequence. Maximise.

    Equation   L_i = |o_i| min(s_i A_i, clip(s_i, 1-ε_low, 1+ε_high) A_i)
               s_i = exp(1/|o_i| Σ_t (logp_t - old_logp_t))
    Paper      LUSPO, arXiv:2602.05261, of which the abstract was read; TRL's loss has the same
               numbers. GSPO's 1/|o_i|, which is in s_i, makes a token of a long answer count for
               less, so answers get shorter.
    Shapes     logp, old_logp, mask: (B, T), adv: (B,) -> (B,). The objective is the mean over rows.
    Gradient   through logp. At ratio 1 every token of row i has the weight A_i: on-policy it is
               the policy gradient.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if a bound is
               negative.
    See        objectives.sequence_clipped_surrogate, of which it is |o_i| times.

    >>> d, zero, mask = torch.tensor([[0.1, 0.3]]), torch.zeros(1, 2), torch.ones(1, 2)
    >>> luspo(d, zero, torch.ones(1), mask, clip_low=0.2, clip_high=0.3)  # 2 e^0.2
    tensor([2.4428])
    """
    if not (clip_low >= 0 and clip_high >= 0):
        raise ValueError(f"clip_low is {clip_low}, clip_high {clip_high}: expected distances below "
                         "and above 1, at least 0")
    logp = _check_rows(logp, old_logp, adv, mask)
    length = _lengths(mask)  # (B,)
    ratio = _exp(_sum(logp - old_logp, mask) / length)  # (B,)
    return length * torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)


def vespo(
    logp: Tensor,
    old_logp: Tensor,
    adv: Tensor,
    mask: Tensor,
    *,
    k_pos: float = 2.0,
    lam_pos: float = 3.0,
    k_neg: float = 3.0,
    lam_neg: float = 2.0,
) -> Tensor:
    r"""Policy gradient whose weight falls off on both sides of an on-policy completion. Maximise.

    Equation   w_i = Π_t π_t / π_old_t                             (the completion, no mean)
               φ(w) = w^k e^(λ (1 - w))                            (1 at w = 1)
               L_t = sg[φ(w_i)] A_t log π_t                        (sg: no gradient)
               k, λ = k_pos, lam_pos where A_t ≥ 0, k_neg, lam_neg elsewhere
    Paper      VESPO, arXiv:2602.10693v3, section 3.5, eq. 20, and appendix I; φ is the shifted form
               of eq. 17 (c_1 is k, c_2 is λ). The four numbers: section 4.1, and TRL's defaults.
    Erratum    φ is largest at w = k/λ, not at 1: with these numbers at 2/3 where A ≥ 0 (φ = 1.21),
               and at 3/2 where A < 0 (φ = 1.24).
    Shapes     logp, old_logp, adv, mask: (B, T) -> (B, T), 0 under a zero mask. The mean is over
               tokens.
    Gradient   through logp: φ(w) A. It fades for completions far away, and nothing is clipped.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if a number is not
               positive.
    See        objectives.cispo, whose weight is a token's own, and capped.

    >>> one, zero = torch.ones(1, 2), torch.zeros(1, 2)
    >>> w = torch.tensor([[1.0, 2.0]]).log()  # the product is 2: φ = 2² e^-3 = 0.1991
    >>> vespo(w, zero, one, one)  # 0.1991 log 1, 0.1991 log 2
    tensor([[0.0000, 0.1380]])
    """
    check_positive(k_pos=k_pos, lam_pos=lam_pos, k_neg=k_neg, lam_neg=lam_neg)
    logp = guard_gradient(logp, old_logp=old_logp, adv=adv)
    _check_mask(logp, mask)
    log_w = _sum(logp.detach() - old_logp, mask).clamp(max=max_log_ratio(logp))[:, None]  # (B, 1)
    gains, losses = (
        (lam + k * log_w - lam * log_w.exp()).exp()
        for k, lam in ((k_pos, lam_pos), (k_neg, lam_neg)))
    weights = torch.where(adv >= 0, gains, losses)  # (B, T)
    return torch.where(mask.bool(), weights * adv * logp, 0)


def _check_rows(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
    """Return logp as guard_gradient does; raise ValueError unless adv is one constant per row."""
    check_constants(adv=adv)
    if adv.shape != logp.shape[:1]:
        raise ValueError(f"adv is {tuple(adv.shape)} beside logp {tuple(logp.shape)}: expected one "
                         "constant per sequence, (B,)")
    _check_mask(logp, mask)
    return guard_gradient(logp, old_logp=old_logp)


def _check_mask(logp: Tensor, mask: Tensor) -> None:
    if mask.shape != logp.shape or logp.dim() != 2:
        raise ValueError(f"mask {tuple(mask.shape)} beside logp {tuple(logp.shape)}: expected "
                         "twice (B, T)")


def _sum(x: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of each row under the mask: (B, T) -> (B,)."""
    return torch.where(mask.bool(), x, 0).sum(1)


def _lengths(mask: Tensor) -> Tensor:
    """Return how many tokens each row has, (B,): 1 for an empty one."""
    return mask.bool().sum(1).clamp(min=1)


def _exp(log_ratio: Tensor) -> Tensor:
    """Return the ratio, capped where it would overflow."""
    return log_ratio.clamp(max=max_log_ratio(log_ratio)).exp()
