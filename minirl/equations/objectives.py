"""Policy objectives, one value per token (or per sequence). All are maximised, as the papers write them; averaging is reduce.aggregate."""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.kl import MAX_LOG_RATIO


def clipped_surrogate(logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    r"""PPO-clip objective, one value per token. Maximise.

    Equation   rho_t = exp(logp_t - old_logp_t)              (the paper calls rho_t "r_t(theta)")
               L_t   = min(rho_t A_t, clip(rho_t, 1 - eps_low, 1 + eps_high) A_t)
    Paper      PPO, arXiv:1707.06347, section 3, eq. 7, where eps_low = eps_high = 0.2. The same inner term: DeepSeekMath,
               arXiv:2402.03300, eq. 3. Two bounds ("clip-higher", 0.2 and 0.28): DAPO, arXiv:2503.14476, eq. 10.
    Shapes     logp, old_logp, adv: (B, T) -> (B, T)
    Gradient   through logp only; zero where A > 0 and rho > 1 + eps_high, and where A < 0 and rho < 1 - eps_low.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if a bound is negative.
    See        reduce.aggregate for the mean, kl.k3 for the penalty.

    A ratio above exp(20) = 4.9e8 is held there, with gradient 0, so that one broken token gives a large number and not an overflow.

    >>> rho = torch.tensor([[0.5, 1.0, 1.5]]); zero = torch.zeros(1, 3); one = torch.ones(1, 3)
    >>> clipped_surrogate(rho.log(), zero, one)          # the gain is capped above 1 + eps
    tensor([[0.5000, 1.0000, 1.2000]])
    >>> clipped_surrogate(rho.log(), zero, -one)         # pessimistic: min, never max
    tensor([[-0.8000, -1.0000, -1.5000]])
    """
    if not logp.shape == old_logp.shape == adv.shape:
        raise ValueError(f"logp {tuple(logp.shape)}, old_logp {tuple(old_logp.shape)}, adv {tuple(adv.shape)}: the same shape is wanted; "
                         "spread one advantage per sequence over its tokens with adv[:, None].expand_as(logp)")
    for name, x in (("old_logp", old_logp), ("adv", adv)):
        if x.requires_grad:
            raise ValueError(f"{name} requires grad: it is a constant of the update; detach it")
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip_low is {clip_low}, clip_high {clip_high}: distances below and above 1, not negative, are wanted")
    ratio = (logp - old_logp).clamp(max=MAX_LOG_RATIO).exp()                                 # (B, T)
    return torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)
