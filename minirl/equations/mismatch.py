"""Training-inference mismatch: weights for samples that the learner's policy did not quite draw.

Samples come from μ, the sampler (other kernels, another precision, older weights), but the gradient
is that of π. Three log-probs: behavior_logp is log μ, old_logp is the learner before the update,
logp is the learner now. The weights correct π_old / μ; PPO's ratio is π / π_old.

    weight                      bias of the gradient                       variance
    none                        grows with the mismatch                    that of the samples
    importance_ratio per token  leaves out the earlier tokens' ratios;     small
                                mostly less than without weights
    sequence_weights            none                                       exponential in the length
    prefix_weights per token    none, if the advantage is that of π        exponential in t
    minimum_prefix_weights      mostly less than the token's ratio alone   small
    truncated or masked         more, once the cap takes effect; masked    bounded
                                can be worse than none

off_policy_mask and geometric_mask keep or drop whole completions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.checks import check_positive, guard_gradient
from minirl.equations.kl import max_log_ratio
from minirl.equations.objectives import sequence_ratio
from minirl.equations.reduce import masked_mean


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


def icepop_weights(ratio: Tensor, *, low: float = 0.5, high: float = 5.0) -> Tensor:
    r"""IcePop: masked_weights with a bound on either side, for each token.

    Equation   w = ρ where α ≤ ρ ≤ β, else 0                     (low is α, high is β)
    Paper      IcePop, arXiv:2510.18855 (Ring-1T), section 2.3.2, of which descriptions were read;
               INTELLECT-3, arXiv:2512.16144, eq. 1. rLLM's defaults are α = 0.5 and β = 5.
    Erratum    Ring-1T weighs by π_old / μ, and so do we; INTELLECT-3 by π / μ, in which the update
               itself can take a token out. Others have β = 2: a ratio of 3 is then 0, not 3.
    Shapes     ratio, per token (B, T) -> the same
    Gradient   none: it multiplies the clipped surrogate, whose ratio is π / π_old.
    Raises     ValueError unless 0 ≤ low < high.
    See        masked_weights, which it is.

    >>> icepop_weights(torch.tensor([0.4, 0.5, 2.0, 5.0, 6.0]))
    tensor([0.0000, 0.5000, 2.0000, 5.0000, 0.0000])
    """
    return masked_weights(ratio, high, floor=low)


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


def prefix_weights(logp: Tensor, behavior_logp: Tensor, mask: Tensor) -> Tensor:
    r"""The exact weight of each token's advantage: the ratios up to it, and none behind it.

    Equation   w_t = Π_{s≤t} π_s / μ_s
    Paper      Precup et al. 2000 (per-decision importance sampling). For language models: A step
               back, arXiv:2601.22718, where it is the prefix importance ratio.
    Shapes     logp, behavior_logp, mask: (B, T) -> (B, T), 0 under a zero mask
    Gradient   none: a weight is a constant. Σ_t w_t A_t ∇ log π_t has the policy gradient as its
               mean if A_t is the advantage of t under π. A reward at the end is also due to the
               tokens behind t, which μ drew: then it takes sequence_weights.
    Raises     ValueError if shapes differ.
    See        importance_ratio, the last factor alone; minimum_prefix_weights, its surrogate.

    A product above exp(20) is capped there.

    >>> logp, behavior_logp = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.25]]).log()
    >>> prefix_weights(logp, behavior_logp, torch.ones(1, 2))
    tensor([[2., 4.]])
    """
    log_ratio = _log_ratio(logp, behavior_logp, mask)
    weights = log_ratio.cumsum(1).clamp(max=max_log_ratio(logp)).exp()
    return torch.where(mask.bool(), weights, 0)


def minimum_prefix_weights(logp: Tensor, behavior_logp: Tensor, mask: Tensor) -> Tensor:
    r"""MinPRO: a token's ratio, times the smallest ratio before it in the place of their product.

    Equation   w_t = ρ_t min_{s<t} ρ_s,   ρ = π / μ;   w = ρ for the first token
    Paper      MinPRO, arXiv:2601.22718, of which the abstract was read: the product with ρ_t is our
               reading of it.
    Shapes     logp, behavior_logp, mask: (B, T) -> (B, T), 0 under a zero mask
    Gradient   none: a weight is a constant. It is biased, but does not explode with the length.
    Raises     ValueError if shapes differ.
    See        prefix_weights, which it stands for: both are the same for the first two tokens.

    >>> logp = torch.tensor([[0.5, 0.125, 0.5]]).log()
    >>> minimum_prefix_weights(logp, torch.full((1, 3), 0.25).log(), torch.ones(1, 3))  # ρ 2 1/2 2
    tensor([[2., 1., 1.]])
    """
    log_ratio = _log_ratio(logp, behavior_logp, mask)
    sampled = mask.bool()
    lowest = log_ratio.masked_fill(~sampled, torch.inf).cummin(1).values  # (B, T), this one too
    before = lowest.roll(1, dims=1).index_fill(1, lowest.new_zeros(1).long(), torch.inf)
    before = torch.where(before < torch.inf, before, 0)  # the first token has none before it
    weights = (log_ratio + before).clamp(max=max_log_ratio(logp)).exp()
    return torch.where(sampled, weights, 0)


def off_policy_mask(
    logp: Tensor, behavior_logp: Tensor, adv: Tensor, mask: Tensor, *, delta: float
) -> Tensor:
    r"""Drop bad completions that the policy itself would hardly write any more.

    Equation   keep row i if A_i ≥ 0 or 1/|o_i| Σ_t log(μ_t / π_t) ≤ δ            (delta is δ)
    Paper      DeepSeek-V3.2, arXiv:2512.02556, section 3.1, eq. 9; TRL's off_policy_mask_threshold.
    Shapes     logp, behavior_logp, mask: (B, T), adv: (B,) -> (B,) bool; True for an empty row
    Gradient   none: it multiplies the surrogate, and neither the KL nor the normaliser.
    Raises     ValueError if shapes differ, or if delta is not positive.
    See        geometric_mask, which looks at both sides and at no advantage.

    A good one is kept, however unlikely it has become: it is what the policy should learn again.

    >>> logp, behavior_logp = torch.tensor([[0.25, 0.5]] * 2).log(), torch.full((2, 2), 0.5).log()
    >>> adv, mask = torch.tensor([1.0, -1.0]), torch.ones(2, 2)
    >>> off_policy_mask(logp, behavior_logp, adv, mask, delta=0.3)  # the mean is log 2 / 2 = 0.35
    tensor([ True, False])
    """
    check_positive(delta=delta)
    if adv.shape != logp.shape[:1]:
        raise ValueError(f"adv is {tuple(adv.shape)} beside logp {tuple(logp.shape)}: expected one "
                         "per sequence, (B,)")
    drift = -masked_mean(_log_ratio(logp, behavior_logp, mask), mask, dim=1)  # (B,)
    return (adv >= 0) | (drift <= delta)


def geometric_mask(
    logp: Tensor, behavior_logp: Tensor, mask: Tensor, *, low: float, high: float
) -> Tensor:
    r"""Drop completions whose typical token has another probability than the sampler gave it.

    Equation   keep row i if low ≤ exp(1/|o_i| Σ_t log(π_t / μ_t)) ≤ high
    Paper      none: verl's seq_mean_k1 ("geometric rejection"). Sequence-level masks in general:
               arXiv:2510.26788.
    Shapes     logp, behavior_logp, mask: (B, T) -> (B,) bool
    Gradient   none: it multiplies the surrogate.
    Raises     ValueError if shapes differ, or unless 0 ≤ low < high.
    See        sequence_weights, the product, which leaves any bound when answers get long.

    >>> logp, behavior_logp = torch.tensor([[0.5, 0.5], [0.9, 0.5]]).log(), torch.zeros(2, 2) - 1
    >>> geometric_mask(logp, behavior_logp, torch.ones(2, 2), low=0.8, high=1.5)  # 1.36, 1.82
    tensor([ True, False])
    """
    if not 0 <= low < high:
        raise ValueError(f"low is {low} and high {high}: expected 0 <= low < high")
    mean = masked_mean(_log_ratio(logp, behavior_logp, mask), mask, dim=1).exp()  # (B,)
    return (mean >= low) & (mean <= high)


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


def _log_ratio(logp: Tensor, behavior_logp: Tensor, mask: Tensor) -> Tensor:
    """Return log(π / μ) of each sampled token, a constant, and 0 elsewhere: (B, T)."""
    if not logp.shape == behavior_logp.shape == mask.shape or logp.dim() != 2:
        raise ValueError(f"logp {tuple(logp.shape)}, behavior_logp {tuple(behavior_logp.shape)}, "
                         f"mask {tuple(mask.shape)}: expected three times (B, T)")
    return torch.where(mask.bool(), logp.detach() - behavior_logp.detach(), 0)
