"""Answers to the exercises of tutorials/10_deepseek_r1.py."""


def share(words, is_korean):
    """1. Equation 7, and 0 where there is no word."""
    return sum(map(is_korean, words)) / len(words) if words else 0.0


weight = 1.0           # 2. right and English gets 1, wrong and Korean gets the weight: at 1 nobody is told to add any more


def check(tutorial):
    """Both answers against the tutorial's checkers (its names, as runpy returns them)."""
    tutorial["check_share"](share)
    tutorial["check_weight"](weight)
