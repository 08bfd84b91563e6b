"""Intervals of means: how far a measured mean may be from the true one. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence


def wilson_interval(mean: float, n: int, *, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a mean of n numbers in [0, 1]: inside [0, 1] at any mean.

    Equation   (m + z²/2n ± z √(m (1 - m) / n + z²/4n²)) / (1 + z²/n),  m the mean
    Paper      Wilson 1927.

    For several samples per problem let n be the number of distinct problems: numbers between 0 and
    1 vary at most as much as yes and no do, so the interval is then wide enough. For n = 0 it is
    all of [0, 1].
    """
    if n < 1:
        return 0.0, 1.0
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    # the interval contains the mean, whatever was rounded
    return max(0.0, min(mean, centre - spread)), min(1.0, max(mean, centre + spread))


def mean_interval(numbers: Sequence[float]) -> str:
    """The mean of some numbers and half the width of its 95 % interval. NaNs are left out.

    >>> mean_interval([1.0, 2.0, 3.0])
    '2.000 +- 1.132'
    """
    numbers = [number for number in numbers if not math.isnan(number)]
    n = len(numbers)
    mean = sum(numbers) / n if n else math.nan
    if n < 2:
        return f"{mean:.3f}"
    variance = sum((number - mean) ** 2 for number in numbers) / (n - 1)
    return f"{mean:.3f} +- {1.96 * math.sqrt(variance / n):.3f}"
