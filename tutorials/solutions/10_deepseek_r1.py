"""Answers to the exercises of tutorials/10_deepseek_r1.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def share(words: Sequence[str], is_korean: Callable[[str], bool]) -> float:
    """1. Equation 7, and 0 where there is no word."""
    return sum(map(is_korean, words)) / len(words) if words else 0.0


# 2. A completion that is right and in English gets 1; one that is wrong and in Korean gets the
#    weight. With a weight of 1 they are equal, and nothing teaches the policy to add.
weight = 1.0


def check(tutorial: dict[str, Any]) -> None:
    """Check both answers with the tutorial's checkers. `tutorial` has its names, as runpy returns
    them."""
    tutorial["check_share"](share)
    tutorial["check_weight"](weight)
