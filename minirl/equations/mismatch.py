"""Training-inference mismatch: weights for samples that the learner's policy did not quite draw.

Samples come from μ, the sampler (other kernels, another precision, older weights), but the gradient
is that of π. Three log-probs: behavior_logp is log μ, old_logp is the learner before the update,
logp is the learner now. The weights correct π_old / μ; PPO's ratio is π / π_old.

    weight                      bias of the gradient                       variance
    none                        grows with the mismatch                    that of the samples
    importance_ratio per token  leaves out the earlier tokens' ratios;     small
                                mostly less than without weights
    sequence_weights            none                                       exponential in the length
    truncated or masked         more, once the cap takes effect; masked    bounded
                                can be worse than none
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.checks import check_positive, guard_gradient
from minirl.equations.kl import max_log_ratio
from minirl.equations.objectives import sequence_ratio


def importance_ratio(logp: Tensor, behavior_logp: Tensor) -> Tensor:
    r"""Return how much likelier each token is under the learner than under the sampler.

    Equation   ρ_t = π(y_t) / μ(y_t) = exp(logp_t - behavior_logp_t)
    Paper      FP16 against the mismatch, arXiv:2510.26788, section 3.
    Shapes     logp, behavior_logp: the same -> the same
    Gradient   through logp, so ρ A is itself an objective (exact importance sampling,
               arXiv:2510.26788); 0 above exp(20), where it is capped.
    Raises     ValueError if shapes differ, or if behavior_logp requires grad.
    See        truncated_weights and masked_weights, which bound it.

    >>> logp, behavior_logp = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.5]]).log()
    >>> importance_ratio(logp, behavior_logp)
    tensor([[2., 1.]])
    """
    logp = guard_gradient(logp, behavior_logp=behavior_logp)
    return (logp - behavior_logp).clamp(max=max_log_ratio(logp)).exp()


def truncated_weights(ratio: Tensor, cap: float) -> Tensor:
    r"""TIS: cap the weights. Every sample is kept, but one with too large a weight counts less.

    Equation   w = min(ρ, C)                                                  (cap is C)
    Paper      Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
               training", where C = 2; Espeholt et al., arXiv:1802.01561 (V-trace). C = 3 in
               arXiv:2510.26788.
    Shapes     ratio, per token (B, T) or per sequence (B,) -> the same
    Gradient   none: a weight is a constant.
    Raises     ValueError if cap is not positive.

    >>> truncated_weights(torch.tensor([0.5, 2.0, 5.0]), 3.0)
    tensor([0.5000, 2.0000, 3.0000])
    """
    check_positive(cap=cap)
    return ratio.detach().clamp(max=cap)


def masked_weights(ratio: Tensor, cap: float, *, floor: float = 0.0) -> Tensor:
    r"""MIS: set weights outside the bounds to 0, so that tokens with a large mismatch do not count.

    Equation   w = ρ 1{floor ≤ ρ ≤ C}                                         (cap is C)
    Paper      FP16 against the mismatch, arXiv:2510.26788, section 3 (sequence-level MIS, C = 3).
               Also known as "IcePop", and as TRL's sequence_mask.
    Shapes     ratio, per token (B, T) or per sequence (B,) -> the same
    Gradient   none: a weight is a constant.
    Raises     ValueError unless 0 ≤ floor < cap.

    >>> masked_weights(torch.tensor([0.1, 2.0, 5.0]), 3.0, floor=0.5)
    tensor([0., 2., 0.])
    """
    if not 0 <= floor < cap:
        raise ValueError(f"floor is {floor} and cap {cap}: expected 0 <= floor < cap")
    ratio = ratio.detach()
    return torch.where((ratio >= floor) & (ratio <= cap), ratio, 0)


def sequence_weights(logp: Tensor, behavior_logp: Tensor, mask: Tensor) -> Tensor:
    r"""The weight of a whole completion: no bias, but a variance that grows like (1 + χ²)^T.

    Equation   w_i = π(o_i) / μ(o_i) = exp(Σ_t log(π_t / μ_t))
    Paper      FP16 against the mismatch, arXiv:2510.26788, section 3 (sequence-level importance
               sampling). It is not normalised by length: then it would be biased.
    Shapes     logp, behavior_logp, mask: (B, T) -> (B,)
    Gradient   none: a weight is a constant.
    Raises     ValueError if shapes differ.
    See        objectives.sequence_ratio(length_normalised=False), the same with a gradient.

    >>> logp, behavior_logp = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.25]]).log()
    >>> sequence_weights(logp, behavior_logp, torch.ones(1, 2))
    tensor([4.])
    """
    return sequence_ratio(logp.detach(), behavior_logp.detach(), mask, length_normalised=False)


def effective_sample_size(weights: Tensor) -> Tensor:
    r"""Return how many equally weighted samples carry as much information as these.

    Equation   ESS = (Σ_i w_i)² / Σ_i w_i²
    Paper      Kong 1992; Liu, "Monte Carlo Strategies in Scientific Computing", section 2.5.3.
    Shapes     weights, any -> scalar; 0 where all weights are 0
    Raises     ValueError for a weight that is negative or not finite.

    It is the number of samples if all weights are equal, and 1 if one sample has all the weight.

    >>> effective_sample_size(torch.tensor([1.0, 1.0, 2.0]))  # 16 / 6
    tensor(2.6667)
    """
    if bool((weights < 0).any()) or not bool(weights.isfinite().all()):
        raise ValueError("weights hold a number that is negative or not finite: expected "
                         "importance weights")
    dtype = weights.dtype if weights.is_floating_point() else torch.float32
    weights = weights.to(torch.promote_types(dtype, torch.float32))  # 256² overflows float16
    tiny = torch.finfo(weights.dtype).tiny
    if weights.numel():
        weights = weights / weights.max().clamp(min=tiny)  # or squares may overflow
    size = weights.sum().square() / weights.square().sum().clamp(min=tiny)
    return size.to(dtype)
