"""Verdicts: what a reward function says of completions, read as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from itertools import islice
from typing import Any

Verdicts = list["float | None"]        # one per completion; None: no verdict


class VerdictError(ValueError):
    """A reward returned something else than a verdict for each completion.

    `row` is the completion whose verdict is none; None: it is not about one of them.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def read_verdicts(name: str, returned: Any, n: int) -> Verdicts:
    """Return what the reward of this name returned for n completions, as a list of n verdicts.

    Raises VerdictError where it is something else.

    >>> read_verdicts("short", (True, None, math.nan), 3)
    [1.0, None, None]
    """
    wanted = f"a list of one number (or None) for each of the {n} completions is wanted"
    try:
        if isinstance(returned, (str, bytes, Mapping, Set)):  # no order, or no numbers
            raise TypeError
        sized = hasattr(returned, "__len__")
        verdicts = list(returned if sized else islice(returned, n + 1))  # it may have no end
    except TypeError:  # None, a number, a tensor without dimensions
        raise VerdictError(f"the reward {name!r} gave {returned!r}: {wanted}") from None
    if len(verdicts) != n:
        more = "" if sized or len(verdicts) < n else " or more"
        raise VerdictError(f"the reward {name!r} gave {len(verdicts)} of them{more}: {wanted}")
    numbers: Verdicts = []
    for row, verdict in enumerate(verdicts):
        try:
            numbers.append(as_number(verdict))
        except ValueError as error:
            raise VerdictError(f"the reward {name!r} gave {error}: {wanted}", row) from None
    return numbers


def as_number(verdict: Any) -> float | None:
    """Return a verdict as a float, whether it is a bool, a Decimal, or one of numpy's or torch's
    numbers; None for "no verdict": None and NaN.

    Raises ValueError for anything else, infinity too.
    """
    if verdict is None:
        return None
    try:
        value = float(verdict) if hasattr(verdict, "__float__") else None
    except (TypeError, ValueError, RuntimeError, OverflowError):  # 1e400, or several numbers
        value = None
    if value is None or math.isinf(value):
        raise ValueError(repr(verdict) + (", which is not finite" if value is not None else ""))
    return None if math.isnan(value) else value
