"""Kullback-Leibler divergence from a policy π to its reference.

It is estimated from the sampled tokens, or summed over the vocabulary. What an estimator is worth
depends on where it stands: its mean under π as a *value*, its mean gradient as a *loss*, and what
it does as a *reward* are three questions. tests/equations/test_kl.py answers them by enumeration:

    estimator   E_π[value]      gradient as a loss        as a reward: E_π[value ∇ log π]
    k1          KL(π || ref)    0: no penalty at all      that of KL(π || ref)
    k2          biased          that of KL(π || ref)      that of its own bias, E[k2] - KL(π || ref)
    k3          KL(π || ref)    that of KL(ref || π)      that of KL(π || ref) - KL(ref || π)
    ρ k3        KL(π || ref)    that of KL(π || ref)      (ρ = π / π_old)

KL(ref || π) has the same minimum as KL(π || ref), but another gradient. As rewards, k2 and k3
have gradients that vanish near the reference, where a penalty is needed first, and that may point
anywhere far from it.

For whole sequences, three choices keep the gradient of the KL: k1 in the reward, k2 of the
sequence's log-ratio, and ρ k3 with the sequence's ρ. Token by token, k2 and ρ k3 as losses leave
out how a token changes the states that follow. All this holds while ref / π is below exp(20).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minirl.equations.checks import (
    check_constants,
    check_positive,
    check_same_shape,
    guard_gradient,
)

MAX_LOG_RATIO = 20.0  # exp(20) = 4.9e8: a larger ratio only overflows later, in a square or a sum


def max_log_ratio(x: Tensor) -> float:
    r"""Return the cap on log-ratios of x's type: 20, or where the ratio's square overflows.

    >>> max_log_ratio(torch.zeros(1)), round(math.exp(max_log_ratio(torch.zeros(1).half())))
    (20.0, 256)
    """
    dtype = x.dtype if x.is_floating_point() else torch.float32
    return min(MAX_LOG_RATIO, math.log(torch.finfo(dtype).max) / 2)


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    r"""The log-ratio itself: unbiased, often negative. Minimise (but see Gradient).

    Equation   k1 = log(π / ref)
    Paper      Schulman 2020, "Approximating KL divergence". As a reward, -kl_coef * k1:
               InstructGPT, arXiv:2203.02155, eq. 2.
    Shapes     logp, ref_logp: the same -> the same
    Gradient   through logp. As a loss its expectation is 0: k1 belongs in the reward.
    Raises     ValueError if shapes differ, or if ref_logp requires grad.

    >>> k1(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())  # log 2
    tensor([0.6931])
    """
    return guard_gradient(logp, ref_logp=ref_logp) - ref_logp


def k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    r"""Half the squared log-ratio: never negative, biased as a value. Minimise.

    Equation   k2 = 1/2 (log(π / ref))²
    Paper      Schulman 2020, "Approximating KL divergence"; as a loss: arXiv:2510.01555.
    Shapes     logp, ref_logp: the same -> the same
    Gradient   through logp. As an on-policy loss its expectation is the gradient of KL(π || ref).
    Raises     ValueError if shapes differ, or if ref_logp requires grad.

    >>> k2(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())  # 0.6931² / 2
    tensor([0.2402])
    """
    return 0.5 * (guard_gradient(logp, ref_logp=ref_logp) - ref_logp).square()


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    r"""The ratio minus its log minus 1: unbiased as a value, never negative. Minimise.

    Equation   k3 = ref/π - log(ref/π) - 1
    Paper      DeepSeekMath, arXiv:2402.03300, eq. 4; Schulman 2020, "Approximating KL divergence".
    Erratum    DeepSeekMath calls it unbiased. Its value is; as a loss its gradient is that of
               KL(ref || π).
    Shapes     logp, ref_logp: the same -> the same
    Gradient   through logp; 0 where ref/π is above exp(20), the ratio of a token that π
               practically never samples: there the value is capped.
    Raises     ValueError if shapes differ, or if ref_logp requires grad.
    See        corrected_k3, whose gradient as a loss is that of KL(π || ref).

    >>> k3(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())  # 1/2 + log 2 - 1
    tensor([0.1931])
    """
    log_ratio = ref_logp - guard_gradient(logp, ref_logp=ref_logp)
    log_ratio = log_ratio.clamp(max=max_log_ratio(logp))
    return torch.expm1(log_ratio) - log_ratio


def corrected_k3(logp: Tensor, old_logp: Tensor, ref_logp: Tensor) -> Tensor:
    r"""k3 times the importance ratio: the gradient that k3 lacks as a loss. Minimise.

    Equation   ρ k3 = (π / π_old) (ref/π - log(ref/π) - 1)
    Paper      DeepSeek-V3.2, arXiv:2512.02556, section 3.1, eq. 7; in TRL use_bias_correction_kl.
    Shapes     logp, old_logp, ref_logp: the same -> the same
    Gradient   through logp, in the ratio too: under samples of any π_old its expectation is the
               gradient of KL(π || ref), while no ref/π exceeds exp(20).
    Raises     ValueError if shapes differ, or if old_logp or ref_logp requires grad.

    >>> half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    >>> corrected_k3(half, quarter, quarter)  # ratio 2, k3 0.1931
    tensor([0.3863])
    """
    logp = guard_gradient(logp, old_logp=old_logp, ref_logp=ref_logp)
    ratio = (logp - old_logp).clamp(max=max_log_ratio(logp)).exp()
    return ratio * k3(logp, ref_logp)


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    r"""KL(π || ref) of each next-token distribution, summed over the whole vocabulary. Minimise.

    Equation   KL = Σ_v π(v) (log π(v) - log ref(v))
    Paper      Kullback and Leibler 1951. As PPO's penalty, there KL(old || new): arXiv:1707.06347,
               eq. 8.
    Shapes     logits, ref_logits: (..., V) -> (...)
    Gradient   through logits.
    Raises     ValueError if shapes differ, or if ref_logits requires grad.

    A token that π never takes (probability 0) adds 0 to value and gradient, whatever ref gives it.
    One that π takes and ref never does makes the KL infinite, as it should.

    >>> half, ref = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> exact_kl(half, ref)  # (log 2 + log 2/3) / 2
    tensor(0.1438)
    """
    check_same_shape(logits=logits, ref_logits=ref_logits)
    check_constants(ref_logits=ref_logits)
    return _kl(logits.log_softmax(-1), ref_logits.log_softmax(-1))


def generalised_jsd(logits: Tensor, teacher_logits: Tensor, beta: float) -> Tensor:
    r"""Divergence between a student and a teacher, from forward to reverse KL. Minimise.

    Equation   JSD_β = β KL(π_T || M) + (1 - β) KL(π || M),   M = β π_T + (1 - β) π
               β = 0: KL(π_T || π), the forward KL;   β = 1: KL(π || π_T), the reverse KL
    Paper      GKD, arXiv:2306.13649, eq. 1.
    Erratum    As written, JSD_β is 0 at β = 0 and 1; it is JSD_β / β that goes to the forward KL,
               and JSD_β / (1 - β) to the reverse. TRL puts the KL itself there, and so do we: near
               0 and 1 the loss jumps, and a small β is a small loss.
    Shapes     logits, teacher_logits: (..., V) -> (...)
    Gradient   through logits, in the mixture M too.
    Raises     ValueError if shapes differ, if teacher_logits requires grad, or if beta is outside
               [0, 1].
    See        exact_kl, which is β = 1; advantages.distillation_advantages, from samples alone.

    >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
    >>> generalised_jsd(student, teacher, 0.0)  # forward: log 2
    tensor(0.6931)
    >>> generalised_jsd(student, teacher, 0.5)  # M 3/4 1/4: (log 4/3 + log 2/3 / 2 + log 2 / 2) / 2
    tensor(0.2158)
    """
    check_same_shape(logits=logits, teacher_logits=teacher_logits)
    check_constants(teacher_logits=teacher_logits)
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}: expected the weight of the teacher, in [0, 1]")
    logp, teacher_logp = logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    if beta == 0:
        return _kl(teacher_logp, logp)
    if beta == 1:
        return _kl(logp, teacher_logp)
    # -inf for both would make NaN of the gradient; e^-10000 is 0, too
    mixture = torch.logaddexp(teacher_logp.clamp(min=-1e4) + math.log(beta),
                              logp + math.log(1 - beta))
    return beta * _kl(teacher_logp, mixture) + (1 - beta) * _kl(logp, mixture)


def kl_shaped_rewards(
    scores: Tensor,
    logp: Tensor,
    ref_logp: Tensor,
    mask: Tensor,
    kl_coef: float,
    *,
    estimator: Callable[[Tensor, Tensor], Tensor] = k1,
    allow_biased: bool = False,
) -> Tensor:
    r"""Per-token rewards: a KL penalty on every sampled token, and the score on the last one.

    Equation   R_t = -β k(logp_t, ref_logp_t) + 1{t is the last sampled token} score
               (kl_coef is β)
    Paper      InstructGPT, arXiv:2203.02155, eq. 2; Ziegler et al., arXiv:1909.08593, eq. 2;
               DeepSeekMath, arXiv:2402.03300, eq. 2.
    Erratum    TRL's PPO puts the score one slot after the EOS, except in rows that are full. A mean
               over tokens instead of this sum (rlhf-book) makes β depend on the length.
    Shapes     scores: (B,), logp, ref_logp, mask: (B, T) -> (B, T), 0 under a zero mask
    Gradient   none: rewards are numbers.
    Raises     ValueError if shapes differ, if a score is not finite, if a row has a score but no
               sampled token to carry it, or for k3, which near the reference is no penalty (see
               the module's docstring); allow_biased=True permits it. k2 is little better.
    See        advantages.gae, which takes them.

    >>> half, quarter = torch.full((1, 3), 0.5).log(), torch.full((1, 3), 0.25).log()
    >>> mask = torch.tensor([[0, 1, 1]])
    >>> kl_shaped_rewards(torch.tensor([1.0]), half, quarter, mask, 0.1)  # k1 = log 2 = 0.6931
    tensor([[ 0.0000, -0.0693,  0.9307]])
    """
    if estimator is k3 and not allow_biased:
        raise ValueError("k3 in the reward does not have the gradient of the KL, and near the "
                         "reference it has almost none: use estimator=k1, put k3 into the loss, or "
                         "pass allow_biased=True to see what happens")
    one_shape = logp.shape == ref_logp.shape == mask.shape and logp.dim() == 2
    if not one_shape or scores.shape != logp.shape[:1]:
        raise ValueError(f"scores {tuple(scores.shape)}, logp {tuple(logp.shape)}, ref_logp "
                         f"{tuple(ref_logp.shape)}, mask {tuple(mask.shape)}: expected (B,) and "
                         "three times (B, T)")
    mask = mask.bool()
    broken = int((~scores.isfinite()).sum())
    if broken:
        raise ValueError(f"scores hold {broken} values that are not finite: leave such rows out of "
                         "the batch")
    if bool((scores.ne(0) & ~mask.any(1)).any()):
        raise ValueError("a row has a score but no sampled token to carry it: leave rows without a "
                         "completion out of the batch")
    logp = torch.where(mask, logp.detach(), 0)
    ref_logp = torch.where(mask, ref_logp.detach(), 0)
    penalties = torch.where(mask, -kl_coef * estimator(logp, ref_logp), 0)  # (B, T)
    tokens_left = mask.flip(1).cumsum(1).flip(1)  # (B, T), this one included
    last = mask & (tokens_left == 1)
    return penalties + torch.where(last, scores.detach()[:, None], 0)


def adaptive_kl_coef(kl_coef: float, kl: float, target: float) -> float:
    r"""PPO's rule after each update: halve β if the policy moved too little, double it if too much.

    Equation   β <- β / 2   if KL < target / 1.5
               β <- 2 β     if KL > 1.5 target
               β <- β       otherwise                    (kl_coef is β, target is d_targ)
    Paper      PPO, arXiv:1707.06347, section 4. The KL there is KL(old || new), not to a reference.
    Raises     ValueError if kl_coef or target is not positive, or kl is not a number.

    >>> [adaptive_kl_coef(1.0, kl, target=0.01) for kl in (0.005, 0.012, 0.02)]
    [0.5, 1.0, 2.0]
    """
    check_positive(kl_coef=kl_coef, target=target)
    if kl != kl:
        raise ValueError(f"kl is {kl}: expected a number")
    if kl < target / 1.5:
        return kl_coef / 2
    return kl_coef * 2 if kl > target * 1.5 else kl_coef


class AdaptiveKLController:
    r"""Ziegler's proportional controller: a KL above the target raises kl_coef, slowly.

    Equation   e = clip(KL / target - 1, -0.2, 0.2)
               β <- β (1 + e n / horizon)                (kl_coef is β, n is n_samples)
    Paper      Ziegler et al., arXiv:1909.08593, section 2.2. There the target is 6 nats (10 for one
               task), the horizon 10,000.
    Raises     ValueError if a number is not positive, if kl is not finite, or for 5 horizons or
               more samples at once, which could turn kl_coef negative.

    `kl` is the KL of the whole sequence in nats, averaged over samples. `n_samples` counts samples
    since the last update.

    >>> controller = AdaptiveKLController(0.15, target=6.0, horizon=10_000)
    >>> controller.update(kl=9.0, n_samples=256)  # e = 0.5, clipped to 0.2: 1 + 0.2 * 0.0256
    >>> round(controller.kl_coef / 0.15, 6)
    1.00512
    """

    def __init__(self, kl_coef: float, target: float, horizon: float):
        check_positive(kl_coef=kl_coef, target=target, horizon=horizon)
        self.kl_coef, self.target, self.horizon = kl_coef, target, horizon

    def update(self, kl: float, n_samples: int) -> None:
        """Change kl_coef after n_samples samples whose mean KL was kl."""
        if not abs(kl) < float("inf"):
            raise ValueError(f"kl is {kl}: expected a finite number; kl_coef would never recover")
        if not 0 <= n_samples < 5 * self.horizon:
            raise ValueError(f"n_samples is {n_samples} and horizon {self.horizon}: expected at "
                             "least 0 and less than 5 horizons, or kl_coef could turn negative; "
                             "update more often, or raise the horizon")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.kl_coef *= 1 + error * n_samples / self.horizon


def _kl(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return Σ_v p(v) (log p(v) - log ref(v)), in which a probability of 0 adds 0."""
    p = logp.exp()
    return (p * torch.where(p > 0, logp - ref_logp, 0)).sum(-1)
