"""Advantages: how much better a completion was than what was to be expected. Groups are the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, *, scale: str = "group", ddof: int = 1, eps: float = 1e-4) -> Tensor:
    r"""Each reward against the other samples of its prompt.

    Equation   A_i = (r_i - mean(r)) / (std(r) + eps)                 scale = "group"
               A_i = (r_i - mean(r)) / (std(all rewards) + eps)       scale = "batch": the mean stays the group's
               A_i =  r_i - mean(r)                                   scale = "none"
    Paper      DeepSeekMath, arXiv:2402.03300, section 4.1.2 (outcome supervision); "none": Dr. GRPO, arXiv:2503.20783, section 3.2.
    Erratum    The paper writes "std" and leaves ddof open. TRL and verl take 1 (as here), others 0; at G = 2 that is +-0.71 or +-1.
    Shapes     rewards (P, G) -> (P, G)
    Gradient   none: rewards are numbers.
    Raises     ValueError if rewards is not (P, G), holds an infinity or requires grad, scale is unknown, or ddof is not 0 or 1.
    See        objectives.clipped_surrogate takes them, one per token of the completion.

    A NaN reward means "no verdict": it is left out of mean and std, and its advantage is 0. Where all rewards of a group are equal, every
    advantage is exactly 0 (tested as max == min: the float32 mean of eight 0.7 is not 0.7, and 6e-8 / 1e-8 would be an advantage of 6).

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))                     # mean 1/4, std 1/2
    tensor([[ 1.4997, -0.4999, -0.4999, -0.4999]])
    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale="none")
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    """
    rewards = rewards if rewards.is_floating_point() else rewards.float()                    # counts and yes-or-no are rewards too
    if rewards.dim() != 2 or rewards.shape[1] == 0 or rewards.requires_grad or bool(rewards.isinf().any()):
        raise ValueError(f"rewards: shape {tuple(rewards.shape)}, requires_grad {rewards.requires_grad}, {int(rewards.isinf().sum())} of them infinite: "
                         "finite numbers (NaN for no verdict) of shape (P, G), one row per prompt, are wanted")
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale is {scale!r}: one of group, batch, none is wanted")
    if ddof not in (0, 1):
        raise ValueError(f"ddof is {ddof}: 0 (divide by n) or 1 (by n - 1) is wanted")
    judged = ~rewards.isnan()                                                                # (P, G)
    count = judged.sum(-1, keepdim=True)                                                     # (P, 1)
    known = torch.where(judged, rewards, 0)
    centred = torch.where(judged, rewards - known.sum(-1, keepdim=True) / count.clamp(min=1), 0)
    if scale == "group":
        centred = centred / (_std(centred, count, ddof) + eps)
    elif scale == "batch":
        everyone = torch.where(judged, rewards - known.sum() / count.sum().clamp(min=1), 0)
        centred = centred / (_std(everyone.flatten(), count.sum()[None], ddof) + eps)
    return torch.where(zero_spread(rewards), 0, centred)


def zero_spread(rewards: Tensor) -> Tensor:
    r"""Groups in which nothing can be compared: all judged rewards equal, or none judged. (P, G) -> (P, 1) bool.

    >>> zero_spread(torch.tensor([[0.7, 0.7, 0.7], [0.0, 1.0, float("nan")]]))
    tensor([[ True],
            [False]])
    """
    high = rewards.nan_to_num(nan=-torch.inf).amax(-1, keepdim=True)
    low = rewards.nan_to_num(nan=torch.inf).amin(-1, keepdim=True)
    return high <= low


def _std(centred: Tensor, count: Tensor, ddof: int) -> Tensor:
    """Standard deviation along the last dimension from already centred values; 0 of fewer than two."""
    return (centred.square().sum(-1, keepdim=True) / (count - ddof).clamp(min=1)).sqrt()
