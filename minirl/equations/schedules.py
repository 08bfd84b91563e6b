"""Schedules: what changes with the step besides the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def cosine_to_floor(step: int, steps: int, *, floor: float = 0.1, warmup: int = 0) -> float:
    r"""Factor on the learning rate: a linear rise to 1 if asked for, then half a cosine to `floor`.

    Equation   f(s) = floor + (1 - floor) (1 + cos(π (s - warmup) / (steps - 1 - warmup))) / 2
               f(s) = (s + 1) / (warmup + 1)   while s < warmup
    Paper      InstructGPT, arXiv:2203.02155, appendix C.1: cosine to 10 % of the first learning
               rate, no warm-up.
    Raises     ValueError if step is outside [0, steps), floor outside [0, 1], or warmup outside
               [0, steps).

    >>> [round(cosine_to_floor(s, 5), 3) for s in range(5)]  # 1, halfway 0.55, the floor
    [1.0, 0.868, 0.55, 0.232, 0.1]
    """
    if not 0 <= step < steps or not 0.0 <= floor <= 1.0 or not 0 <= warmup < steps:
        raise ValueError(f"step {step} of {steps}, floor {floor}, warmup {warmup}: expected "
                         "0 <= step < steps, floor in [0, 1] and 0 <= warmup < steps")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def warmup_to_constant(step: int, *, warmup: int = 10, start: float = 0.1) -> float:
    r"""Factor on the learning rate: linear from `start` to 1 over `warmup` steps, then 1.

    Equation   f(s) = start + (1 - start) s / warmup   while s < warmup, then 1
    Paper      InstructGPT, arXiv:2203.02155, appendix C.4: over the first 10 iterations, starting
               with a tenth of the peak learning rate.
    Raises     ValueError if step or warmup is negative, or start outside [0, 1].

    >>> [warmup_to_constant(s, warmup=2) for s in range(4)]
    [0.1, 0.55, 1.0, 1.0]
    """
    if step < 0 or warmup < 0 or not 0.0 <= start <= 1.0:
        raise ValueError(f"step {step}, warmup {warmup}, start {start}: expected no negative "
                         "numbers, and start in [0, 1]")
    return 1.0 if step >= warmup else start + (1 - start) * step / warmup


@torch.no_grad()
def update_ema(
    averages: Iterable[Tensor], weights: Iterable[Tensor], *, decay: float = 0.992
) -> None:
    r"""Exponential moving average of the weights, in place: a policy without the latest noise.

    Equation   average <- decay average + (1 - decay) weights
    Paper      InstructGPT, arXiv:2203.02155, appendix C.4: decay 0.992. With the reference for
               `averages` it is TRL's sync_ref_model (mixup alpha = 1 - decay).
    Shapes     two lists of tensors, pairwise the same. Averages are float32 at least: bfloat16
               cannot hold steps this small (1 + 2^-9 is 1 there).
    Raises     ValueError if they do not fit, an average has lower precision, or decay is outside
               [0, 1].

    >>> average = [torch.tensor([1.0])]
    >>> update_ema(average, [torch.tensor([2.0])], decay=0.9)
    >>> average
    [tensor([1.1000])]
    """
    averages, weights = list(averages), list(weights)
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}: expected a number in [0, 1]")
    if len(averages) != len(weights):
        raise ValueError(f"{len(averages)} averages and {len(weights)} weights: expected as many")
    pairs = list(zip(averages, weights, strict=True))
    unlike = [(tuple(a.shape), tuple(w.shape)) for a, w in pairs if a.shape != w.shape]
    if unlike:
        raise ValueError(f"averages and weights of the shapes {unlike[:3]}: expected pairwise the "
                         "same")
    low = {x.dtype for x in averages} - {torch.float32, torch.float64}
    if low:
        raise ValueError(f"averages are of {', '.join(map(str, low))}: expected float32 or "
                         "float64, or small steps are lost in rounding")
    for average, weight in pairs:
        average.lerp_(weight.to(average), 1 - decay)
