"""Schedules: numbers that change with the step."""

from __future__ import annotations

import math


def cosine_to_floor(step: int, steps: int, *, floor: float = 0.1, warmup: int = 0) -> float:
    r"""Factor on the learning rate: half a cosine from 1 at the first step to `floor` at the last, after an optional linear rise.

    Equation   f(s) = floor + (1 - floor) (1 + cos(pi (s - warmup) / (steps - 1 - warmup))) / 2 ;   (s + 1) / (warmup + 1) while s < warmup
    Paper      InstructGPT, arXiv:2203.02155, appendix C.1: cosine to 10 % of the first learning rate, no warm-up.
    Raises     ValueError if step is outside [0, steps), floor outside [0, 1], or warmup outside [0, steps).

    >>> [round(cosine_to_floor(s, 5), 3) for s in range(5)]                # 1, then halfway 0.55, then the floor
    [1.0, 0.868, 0.55, 0.232, 0.1]
    """
    if not 0 <= step < steps or not 0.0 <= floor <= 1.0 or not 0 <= warmup < steps:
        raise ValueError(f"step {step} of {steps}, floor {floor}, warmup {warmup}: 0 <= step < steps, floor in [0, 1] and 0 <= warmup < steps are wanted")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
