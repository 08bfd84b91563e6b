"""Training-inference mismatch: the sampler's probabilities are not quite the learner's, and weights that make up for it.

Samples come from mu (the sampler: another kernel, another precision, older weights), the gradient is of pi. Three columns: behavior_logp is
log mu, old_logp is the learner before the update, logp now. The weights correct old_logp / behavior_logp; PPO's ratio is logp / old_logp.

    weight                                          bias of the gradient                                          variance
    none                                            grows with the mismatch                                       that of the samples
    importance_ratio, of each token                 earlier tokens' ratios are left out; mostly less than none's  small
    sequence_weights                                none                                                          grows exponentially with the length
    truncated_weights, masked_weights of either     more, where the cap bites; masked can be worse than none      bounded
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.kl import max_log_ratio
from minirl.equations.objectives import sequence_ratio


def importance_ratio(logp: Tensor, behavior_logp: Tensor) -> Tensor:
    r"""How much likelier the learner finds each token than the sampler did.

    Equation   rho_t = pi(y_t) / mu(y_t) = exp(logp_t - behavior_logp_t)
    Paper      FP16 against the mismatch, arXiv:2510.26788, section 3.
    Shapes     logp, behavior_logp: the same -> the same
    Gradient   through logp, so that rho A is itself an objective (exact importance sampling, arXiv:2510.26788); 0 above exp(20), where it is held.
    Raises     ValueError if shapes differ, or if behavior_logp requires grad.
    See        truncated_weights and masked_weights, which bound it.

    >>> importance_ratio(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.5]]).log())
    tensor([[2., 1.]])
    """
    if logp.shape != behavior_logp.shape:
        raise ValueError(f"logp {tuple(logp.shape)} and behavior_logp {tuple(behavior_logp.shape)}: the same shape is wanted")
    if behavior_logp.requires_grad:
        raise ValueError("behavior_logp requires grad: it is what the sampler drew with, a constant; detach it")
    logp = torch.where(behavior_logp.isfinite(), logp, logp.detach())        # as in kl._checked
    return (logp - behavior_logp).clamp(max=max_log_ratio(logp)).exp()


def truncated_weights(ratio: Tensor, cap: float) -> Tensor:
    r"""TIS: weights cut to a cap. Everything is kept, what is over-weighed counts less.

    Equation   w = min(rho, C)
    Paper      Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; Espeholt et al., arXiv:1802.01561 (V-trace).
               C = 2 there, 3 in arXiv:2510.26788.
    Shapes     ratio, per token (B, T) or per sequence (B,) -> the same
    Gradient   none: a weight is a constant.
    Raises     ValueError if cap is not positive.

    >>> truncated_weights(torch.tensor([0.5, 2.0, 5.0]), 3.0)
    tensor([0.5000, 2.0000, 3.0000])
    """
    if not cap > 0:
        raise ValueError(f"cap is {cap}: the largest weight, a positive number, is wanted")
    return ratio.detach().clamp(max=cap)


def masked_weights(ratio: Tensor, cap: float, *, floor: float = 0.0) -> Tensor:
    r"""MIS: weights outside the bounds are set to 0, so that what the two policies see too differently teaches nothing.

    Equation   w = rho 1{floor <= rho <= C}
    Paper      FP16 against the mismatch, arXiv:2510.26788, section 3 (sequence-level MIS, C = 3); also "IcePop", and TRL's sequence_mask.
    Shapes     ratio, per token (B, T) or per sequence (B,) -> the same
    Gradient   none: a weight is a constant.
    Raises     ValueError if 0 <= floor < cap does not hold.

    >>> masked_weights(torch.tensor([0.1, 2.0, 5.0]), 3.0, floor=0.5)
    tensor([0., 2., 0.])
    """
    if not 0 <= floor < cap:
        raise ValueError(f"floor is {floor} and cap {cap}: 0 <= floor < cap is wanted")
    ratio = ratio.detach()
    return torch.where((ratio >= floor) & (ratio <= cap), ratio, 0)


def sequence_weights(logp: Tensor, behavior_logp: Tensor, mask: Tensor) -> Tensor:
    r"""The weight of a whole completion: without bias, and with a variance that grows like (1 + chi^2)^T.

    Equation   w_i = pi(o_i) / mu(o_i) = exp(sum_t log(pi_t / mu_t))
    Paper      FP16 against the mismatch, arXiv:2510.26788, section 3 (sequence-level importance sampling). Not normalised by length, as a weight must not be.
    Shapes     logp, behavior_logp, mask (B, T) -> (B,)
    Gradient   none: a weight is a constant.
    Raises     ValueError if shapes differ.
    See        objectives.sequence_ratio(length_normalised=False), the same with a gradient.

    >>> sequence_weights(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.25]]).log(), torch.ones(1, 2))
    tensor([4.])
    """
    return sequence_ratio(logp.detach(), behavior_logp.detach(), mask, length_normalised=False)


def effective_sample_size(weights: Tensor) -> Tensor:
    r"""How many equally weighted samples are worth as much as these: all of them where weights are equal, 1 where one has all the weight.

    Equation   ESS = (sum_i w_i)^2 / sum_i w_i^2
    Paper      Kong 1992; Liu, "Monte Carlo Strategies in Scientific Computing", section 2.5.3.
    Shapes     weights, any -> scalar; 0 where all weights are 0
    Raises     ValueError for a weight that is negative or not finite.

    >>> effective_sample_size(torch.tensor([1.0, 1.0, 2.0]))                              # 16 / 6
    tensor(2.6667)
    """
    if bool((weights < 0).any()) or not bool(weights.isfinite().all()):
        raise ValueError("weights hold a number that is negative or not finite: importance weights are wanted")
    dtype = weights.dtype if weights.is_floating_point() else torch.float32
    weights = weights.to(torch.promote_types(dtype, torch.float32))          # 256^2 in float16
    scaled = weights / weights.max().clamp(min=torch.finfo(weights.dtype).tiny) if weights.numel() else weights      # no overflow of the squares
    size = scaled.sum().square() / scaled.square().sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return size.to(dtype)
