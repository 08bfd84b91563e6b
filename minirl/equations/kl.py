"""Kullback-Leibler divergence from a policy to its reference, estimated from the sampled tokens, or summed over the vocabulary.

What an estimator is worth depends on where it stands. Its mean under pi as a *value*, and its mean gradient as a *loss term*, are two
questions, and tests/equations/test_kl.py answers both by enumeration:

    estimator   E_pi[value]        mean gradient as a loss                        ... as a reward, E_pi[value grad log pi]
    k1          KL(pi || ref)      0: no penalty at all                           that of KL(pi || ref)
    k2          biased             that of KL(pi || ref)                          that of its own bias, E[k2] - KL
    k3          KL(pi || ref)      that of KL(ref || pi): the same minimum        that of KL(pi || ref) - KL(ref || pi)
    rho k3      KL(pi || ref)      that of KL(pi || ref)

(rho = pi / pi_old.) The two differences in the last column vanish near the reference, where a penalty is wanted first, and far from it point
anywhere. Over whole sequences, k1 in the reward, k2 of the sequence's log-ratio and rho k3 with the sequence's rho keep the gradient of the KL;
token by token, k2 and rho k3 as losses leave out how a token changes the states behind it. All this for ref / pi below exp(20).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0     # exp(20) = 4.9e8: beyond it a ratio is only a number that overflows later, in a square or a sum


def max_log_ratio(x: Tensor) -> float:
    r"""Where log-ratios of x's type are held: at 20, or where the ratio's square would overflow.

    >>> max_log_ratio(torch.zeros(1)), round(math.exp(max_log_ratio(torch.zeros(1).half())))
    (20.0, 256)
    """
    dtype = x.dtype if x.is_floating_point() else torch.float32
    return min(MAX_LOG_RATIO, math.log(torch.finfo(dtype).max) / 2)


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    r"""The log-ratio itself: unbiased, often negative. Minimise (but see Gradient).

    Equation   k1 = log(pi / ref)
    Paper      Schulman 2020, "Approximating KL divergence". As reward -kl_coef * k1: InstructGPT, arXiv:2203.02155, eq. 2.
    Shapes     logp, ref_logp: the same -> the same
    Gradient   through logp; as a loss its expectation is 0. It belongs into the reward.
    Raises     ValueError if shapes differ, or if ref_logp requires grad.

    >>> k1(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())            # log 2
    tensor([0.6931])
    """
    return _checked(logp, ref_logp) - ref_logp


def k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    r"""Half the squared log-ratio: never negative, biased as a value. Minimise.

    Equation   k2 = 1/2 log(pi / ref)^2
    Paper      Schulman 2020, "Approximating KL divergence"; as a loss: arXiv:2510.01555.
    Shapes     logp, ref_logp: the same -> the same
    Gradient   through logp; as an on-policy loss its expectation is the gradient of KL(pi || ref).
    Raises     ValueError if shapes differ, or if ref_logp requires grad.

    >>> k2(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())            # 0.6931^2 / 2
    tensor([0.2402])
    """
    return 0.5 * (_checked(logp, ref_logp) - ref_logp).square()


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    r"""The ratio minus its logarithm minus 1: unbiased as a value, never negative, small variance. Minimise.

    Equation   k3 = ref / pi - log(ref / pi) - 1
    Paper      DeepSeekMath, arXiv:2402.03300, eq. 4; Schulman 2020, "Approximating KL divergence".
    Erratum    DeepSeekMath calls it unbiased. That holds for its value; as a loss its gradient is that of KL(ref || pi).
    Shapes     logp, ref_logp: the same -> the same
    Gradient   through logp; 0 where ref / pi is above exp(20), a token that pi practically never samples: there the value is held.
    Raises     ValueError if shapes differ, or if ref_logp requires grad.

    >>> k3(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())            # 1/2 + log 2 - 1
    tensor([0.1931])
    """
    log_ratio = (ref_logp - _checked(logp, ref_logp)).clamp(max=max_log_ratio(logp))
    return torch.expm1(log_ratio) - log_ratio


def corrected_k3(logp: Tensor, old_logp: Tensor, ref_logp: Tensor) -> Tensor:
    r"""k3 times the importance ratio: as a loss it has the gradient that k3 lacks, also for samples of an older policy. Minimise.

    Equation   rho k3 = (pi / pi_old) (ref / pi - log(ref / pi) - 1)
    Paper      DeepSeek-V3.2, arXiv:2512.02556, section 3.1, eq. 7; in TRL use_bias_correction_kl.
    Shapes     logp, old_logp, ref_logp: the same -> the same
    Gradient   through logp, in the ratio too: its mean under pi_old is the gradient of KL(pi || ref), while no ref / pi exceeds exp(20).
    Raises     ValueError if shapes differ, or if old_logp or ref_logp requires grad.

    >>> half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    >>> corrected_k3(half, quarter, quarter)                                 # ratio 2, k3 0.1931
    tensor([0.3863])
    """
    logp = _checked(_checked(logp, old_logp), ref_logp)
    return (logp - old_logp).clamp(max=max_log_ratio(logp)).exp() * k3(logp, ref_logp)


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    r"""KL(pi || ref) of each next-token distribution, summed over the whole vocabulary. Minimise.

    Equation   KL = sum_v pi(v) (log pi(v) - log ref(v))
    Paper      Kullback and Leibler 1951; as PPO's penalty (there old || new): arXiv:1707.06347, eq. 8.
    Shapes     logits, ref_logits: (..., V) -> (...)
    Gradient   through logits.
    Raises     ValueError if shapes differ, or if ref_logits requires grad.

    An id that pi never takes (probability 0) adds 0, in value and gradient, whatever ref gives it; one that pi takes and ref never does
    makes KL infinite, rightly.

    >>> exact_kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())      # (log 2 + log 2/3) / 2
    tensor(0.1438)
    """
    _check(logits, ref_logits)
    logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    p = logp.exp()
    return (p * torch.where(p > 0, logp - ref_logp, 0)).sum(-1)


def kl_shaped_rewards(scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, kl_coef: float, *,
                      estimator: Callable[[Tensor, Tensor], Tensor] = k1, allow_biased: bool = False) -> Tensor:
    r"""Per-token rewards: the price of leaving the reference at every sampled token, the score on the last one.

    Equation   R_t = -beta k(logp_t, ref_logp_t) + 1{t is the last sampled token} score
    Paper      InstructGPT, arXiv:2203.02155, eq. 2; Ziegler et al., arXiv:1909.08593, eq. 2; DeepSeekMath, arXiv:2402.03300, eq. 2.
    Erratum    TRL's PPO puts the score one slot behind the EOS, except in rows that are full; a mean over tokens instead of this sum (rlhf-book)
               makes beta depend on the length.
    Shapes     scores (B,), logp, ref_logp, mask (B, T) -> (B, T), 0 under a zero mask
    Gradient   none: rewards are numbers.
    Raises     ValueError if shapes differ, if a score is not finite, if a row with a score has no sampled token to carry it, or for k3, which
               near the reference pulls nowhere (module docstring): pass allow_biased=True to show that. k2 is little better.
    See        advantages.gae, which takes them.

    >>> half = torch.full((1, 3), 0.5).log(); quarter = torch.full((1, 3), 0.25).log()      # k1 = log 2 = 0.6931
    >>> kl_shaped_rewards(torch.tensor([1.0]), half, quarter, torch.tensor([[0, 1, 1]]), 0.1)
    tensor([[ 0.0000, -0.0693,  0.9307]])
    """
    if estimator is k3 and not allow_biased:
        raise ValueError("k3 in the reward has not the gradient of the KL, and near the reference almost none (k1 has exactly it): use estimator=k1, put "
                         "k3 into the loss, or pass allow_biased=True to see what happens")
    if not logp.shape == ref_logp.shape == mask.shape or logp.dim() != 2 or scores.shape != logp.shape[:1]:
        raise ValueError(f"scores {tuple(scores.shape)}, logp {tuple(logp.shape)}, ref_logp {tuple(ref_logp.shape)}, mask {tuple(mask.shape)}: "
                         "(B,) and three times (B, T) are wanted")
    mask = mask.bool()
    if not bool(scores.isfinite().all()):
        raise ValueError(f"scores hold {int((~scores.isfinite()).sum())} values that are not finite: leave such rows out of the batch")
    if bool((scores.ne(0) & ~mask.any(1)).any()):
        raise ValueError("a row has a score but no sampled token to carry it: leave rows without a completion out of the batch")
    logp, ref_logp = torch.where(mask, logp.detach(), 0), torch.where(mask, ref_logp.detach(), 0)
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)                                      # (B, T): the last sampled token of each row
    return torch.where(mask, -kl_coef * estimator(logp, ref_logp), 0) + torch.where(last, scores.detach()[:, None], 0)


def adaptive_kl_coef(kl_coef: float, kl: float, target: float) -> float:
    r"""PPO's rule after each update: half the penalty if the policy moved too little, twice if too much.

    Equation   beta / 2 if KL < target / 1.5 ;   2 beta if KL > 1.5 target ;   beta otherwise
    Paper      PPO, arXiv:1707.06347, section 4. The KL there is old || new, not to a reference.
    Raises     ValueError if kl_coef or target is not positive, or kl is not a number.

    >>> adaptive_kl_coef(1.0, 0.005, 0.01), adaptive_kl_coef(1.0, 0.012, 0.01), adaptive_kl_coef(1.0, 0.02, 0.01)
    (0.5, 1.0, 2.0)
    """
    if not (kl_coef > 0 and target > 0) or kl != kl:
        raise ValueError(f"kl_coef {kl_coef}, kl {kl}, target {target}: positive kl_coef and target, and a number for kl, are wanted")
    return kl_coef / 2 if kl < target / 1.5 else kl_coef * 2 if kl > target * 1.5 else kl_coef


class AdaptiveKLController:
    r"""Ziegler's proportional controller: a KL above the target raises kl_coef, slowly.

    Equation   e = clip(KL / target - 1, -0.2, 0.2) ;   beta <- beta (1 + e n / horizon)
    Paper      Ziegler et al., arXiv:1909.08593, section 2.2; there target 6 nats (10 for one task), horizon 10,000.
    Raises     ValueError if a number is not positive, if kl is not finite, or for so many samples at once (5 horizons) that kl_coef would turn its sign.

    `kl` is the mean over samples of the KL of the whole sequence, in nats; n counts samples since the last update.

    >>> controller = AdaptiveKLController(0.15, target=6.0, horizon=10_000)
    >>> controller.update(kl=9.0, n_samples=256)                             # e = 0.5, cut to 0.2: 1 + 0.2 * 0.0256 = 1.00512
    >>> round(controller.kl_coef / 0.15, 6)
    1.00512
    """

    def __init__(self, kl_coef: float, target: float, horizon: float):
        if not (kl_coef > 0 and target > 0 and horizon > 0):
            raise ValueError(f"kl_coef {kl_coef}, target {target}, horizon {horizon}: three positive numbers are wanted")
        self.kl_coef, self.target, self.horizon = kl_coef, target, horizon

    def update(self, kl: float, n_samples: int) -> None:
        if not abs(kl) < float("inf"):
            raise ValueError(f"kl is {kl}: a finite number is wanted; with it kl_coef would stay {kl} for ever")
        if not 0 <= n_samples < 5 * self.horizon:
            raise ValueError(f"n_samples is {n_samples} and horizon {self.horizon}: a number below 5 horizons, not negative, is wanted, or kl_coef would turn its sign; "
                             "update more often, or raise the horizon")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.kl_coef *= 1 + error * n_samples / self.horizon


def _check(logp: Tensor, ref_logp: Tensor) -> None:
    if logp.shape != ref_logp.shape:
        raise ValueError(f"policy {tuple(logp.shape)} and reference {tuple(ref_logp.shape)}: the same shape is wanted")
    if ref_logp.requires_grad:
        raise ValueError("the reference requires grad: it is a constant here; compute it under torch.no_grad(), or detach it")


def _checked(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """logp, without a gradient where the reference is not finite. Under a zero mask that may be,
    and there the gradient of the aggregate, 0, times NaN would be NaN."""
    _check(logp, ref_logp)
    return torch.where(ref_logp.isfinite(), logp, logp.detach())
