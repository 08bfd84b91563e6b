"""The golden tables, a file for each file of equations: TABLE maps a function's name to its rows.

Here belong numbers that were worked out by hand, with the arithmetic in words. No formula of an
equation is typed again: a value is a literal, or arithmetic on literals.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

Numbers = Any                          # a number, or lists of numbers, nested as a tensor's rows

LN2, LN3 = math.log(2), math.log(3)
NAN, INF = math.nan, math.inf


class Row(NamedTuple):
    """One case: the inputs by argument, what comes out, and why.

    why         the arithmetic, so that a reader can check it
    inputs      lists of numbers become tensors; other things stay as they are
    value       of the function
    gradient    of the sum of the value, by argument
    ours        a number that is a choice of this library, such as the cap of an exploded ratio
    """

    why: str
    inputs: dict[str, Any]
    value: Any
    gradient: dict[str, Numbers] = {}
    ours: bool = False


Table = dict[str, list[Row]]


def log(numbers: Numbers) -> Numbers:
    """Return the logs of nested lists of probabilities or ratios.

    >>> log([[1.0, 0.0]])
    [[0.0, -inf]]
    """
    if isinstance(numbers, list):
        return [log(number) for number in numbers]
    return math.log(numbers) if numbers else -INF
