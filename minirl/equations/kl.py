"""Kullback-Leibler divergence from a policy to its reference, estimated from the sampled tokens, or summed over the vocabulary.

What an estimator is worth depends on where it stands. Its mean under pi as a *value*, and its mean gradient as a *loss term*, are two
questions, and tests/equations/test_kl.py answers both by enumeration:

    estimator   E_pi[value]        mean gradient when it is differentiated as a loss
    k1          KL(pi || ref)      0: no penalty at all
    k2          biased             that of KL(pi || ref)
    k3          KL(pi || ref)      that of KL(ref || pi): another divergence with the same minimum
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0     # exp(20) = 4.9e8: beyond it a ratio is only a number that overflows later, in a square or a sum


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    r"""The log-ratio itself: unbiased, often negative. Minimise (but see Gradient).

    Equation   k1 = log(pi / ref)
    Paper      Schulman, "Approximating KL divergence" (2020). As reward -kl_coef * k1: InstructGPT, arXiv:2203.02155, eq. 2.
    Shapes     logp, ref_logp: the same -> the same
    Gradient   through logp; as a loss its expectation is 0. It belongs into the reward.
    Raises     ValueError if shapes differ, or if ref_logp requires grad.

    >>> k1(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())            # log 2
    tensor([0.6931])
    """
    _check(logp, ref_logp)
    return logp - ref_logp


def k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    r"""Half the squared log-ratio: never negative, biased as a value. Minimise.

    Equation   k2 = 1/2 log(pi / ref)^2
    Paper      Schulman, "Approximating KL divergence" (2020); as a loss: arXiv:2510.01555.
    Shapes     logp, ref_logp: the same -> the same
    Gradient   through logp; as an on-policy loss its expectation is the gradient of KL(pi || ref).
    Raises     ValueError if shapes differ, or if ref_logp requires grad.

    >>> k2(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())            # 0.6931^2 / 2
    tensor([0.2402])
    """
    _check(logp, ref_logp)
    return 0.5 * (logp - ref_logp).square()


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    r"""The ratio minus its logarithm minus 1: unbiased as a value, never negative, small variance. Minimise.

    Equation   k3 = ref / pi - log(ref / pi) - 1
    Paper      DeepSeekMath, arXiv:2402.03300, eq. 4; Schulman, "Approximating KL divergence" (2020).
    Erratum    DeepSeekMath calls it unbiased. That holds for its value; as a loss its gradient is that of KL(ref || pi).
    Shapes     logp, ref_logp: the same -> the same
    Gradient   through logp; 0 where ref / pi is above exp(20), a token that pi practically never samples: there the value is held.
    Raises     ValueError if shapes differ, or if ref_logp requires grad.

    >>> k3(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())            # 1/2 + log 2 - 1
    tensor([0.1931])
    """
    _check(logp, ref_logp)
    log_ratio = (ref_logp - logp).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    r"""KL(pi || ref) of each next-token distribution, summed over the whole vocabulary. Minimise.

    Equation   KL = sum_v pi(v) (log pi(v) - log ref(v))
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


def _check(logp: Tensor, ref_logp: Tensor) -> None:
    if logp.shape != ref_logp.shape:
        raise ValueError(f"policy {tuple(logp.shape)} and reference {tuple(ref_logp.shape)}: the same shape is wanted")
    if ref_logp.requires_grad:
        raise ValueError("the reference requires grad: it is a constant here; compute it under torch.no_grad(), or detach it")
