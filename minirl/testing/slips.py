"""The slips that the field keeps making, as functions: what each of them computes.

`check` looks here for what came. A slip has the equation's argument names, and returns what the
equation returns. It is wrong on purpose; nothing else may import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Slip(NamedTuple):
    """What is wrong, in words, and the function that is wrong in this way.

    choice      another convention, which some paper or project has: no mistake
    reduces     the function returns the mean, and takes `mask_`
    """

    text: str
    function: Callable[..., Any]
    choice: bool = False
    reduces: bool = False


def _clips(logp: Tensor, old_logp: Tensor, adv: Tensor, clip_low: float, clip_high: float
           ) -> tuple[Tensor, Tensor]:
    ratio = (logp - old_logp).exp()
    return ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv


def inverted_clip(logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2,
                  clip_high: float = 0.2) -> Tensor:
    plain, clipped = _clips(logp, old_logp, adv, clip_low, clip_high)
    return torch.where(adv < 0, torch.maximum(plain, clipped), torch.minimum(plain, clipped))


def clip_alone(logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2,
               clip_high: float = 0.2) -> Tensor:
    return _clips(logp, old_logp, adv, clip_low, clip_high)[1]


def no_clip(logp: Tensor, old_logp: Tensor, adv: Tensor) -> Tensor:
    return (logp - old_logp).exp() * adv


def detached_ratio(logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2,
                   clip_high: float = 0.2) -> Tensor:
    plain, clipped = _clips(logp.detach(), old_logp, adv, clip_low, clip_high)
    return torch.minimum(plain, clipped)


def reversed_ratio(logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2,
                   clip_high: float = 0.2) -> Tensor:
    return torch.minimum(*_clips(old_logp, logp, adv, clip_low, clip_high))


def reversed_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    return (logp - ref_logp).exp() - (logp - ref_logp) - 1


def k1_as_a_loss(logp: Tensor, ref_logp: Tensor) -> Tensor:
    return logp - ref_logp


SLIPS: dict[str, list[Slip]] = {
    "clipped_surrogate": [
        Slip("for A < 0 this takes the maximum: gradient 0 at ratio 1.5, where -1.5 A is right, "
             "and a gradient at ratio 0.5, where 0 is right; seen in reasoning-from-scratch's "
             "chapter 7", inverted_clip),
        Slip("the clip alone, without the min: a token that went the wrong way is not brought back",
             clip_alone),
        Slip("there is no clip", no_clip),
        Slip("the ratio is detached: the value is right, and no gradient flows", detached_ratio),
        Slip("the ratio is turned over: old / new", reversed_ratio),
    ],
    "k3": [
        Slip("the ratio is turned over: its mean is not the KL; seen in rlhf-book", reversed_k3),
        Slip("this is k1: as a loss its mean gradient is 0; seen in reasoning-from-scratch's "
             "7_5_plus_kl.py", k1_as_a_loss),
    ],
    "k2": [
        Slip("this is k1: as a loss its mean gradient is 0", k1_as_a_loss),
    ],
}
