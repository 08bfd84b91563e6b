"""Answers to the exercises of tutorials/02_sampling.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def exercise_1(p: Sequence[float], top_p: float) -> list[float]:
    """Take tokens from the likeliest on, until what is taken reaches top_p; then divide by the sum.
    The token that crosses the line is kept."""
    kept, total = [0.0] * len(p), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        kept[i], total = p[i], total + p[i]
        if total >= top_p - 1e-9:
            break
    return [x / total for x in kept]


def exercise_2(logits: Tensor, tokens: Tensor) -> Tensor:
    """The logits at slot t - 1 are about the token at slot t; nothing is about the first one."""
    logp = logits[:-1].log_softmax(-1).gather(1, tokens[1:, None]).squeeze(1)
    return torch.cat([logp.new_zeros(1), logp])


def exercise_bug(function) -> None:
    """The temperature must divide the logits before the softmax. Divided afterwards, log-probs are
    not those of a distribution: at temperature 2 these probabilities sum to more than 1. prime-rl
    had this (https://github.com/PrimeIntellect-ai/prime-rl/pull/697)."""
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    p = torch.cat([function(logits, torch.tensor([i]), 2.0) for i in range(3)]).exp()
    assert abs(p.sum().item() - 1) < 1e-5


# Answers that the checks must refuse.

def without_the_last(p: Sequence[float], top_p: float) -> list[float]:
    kept, total = [0.0] * len(p), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if total and total + p[i] > top_p:
            break
        kept[i], total = p[i], total + p[i]
    return [x / total for x in kept]


def not_normalised(p: Sequence[float], top_p: float) -> list[float]:
    total = sum(exercise_1(p, top_p)[i] > 0 and p[i] for i in range(len(p)))
    return [x * total for x in exercise_1(p, top_p)]


def without_shift(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)


def shift_to_the_left(logits: Tensor, tokens: Tensor) -> Tensor:
    logp = logits[1:].log_softmax(-1).gather(1, tokens[:-1, None]).squeeze(1)
    return torch.cat([logp.new_zeros(1), logp])


def without_softmax(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.cat([logits.new_zeros(1), logits[:-1].gather(1, tokens[1:, None]).squeeze(1)])


def at_temperature_1(function) -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    p = torch.cat([function(logits, torch.tensor([i]), 1.0) for i in range(3)]).exp()
    assert abs(p.sum().item() - 1) < 1e-5


def order_alone(function) -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    low, high = (function(logits, torch.tensor([i]), 2.0).item() for i in (0, 2))
    assert low < high < 0


def what_the_wrong_one_gives(function) -> None:
    half = function(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), 2.0).item()
    whole = function(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), 1.0).item()
    assert abs(half - whole / 2) < 1e-6


WRONG = {
    "exercise_1": [without_the_last, not_normalised, lambda p, top_p: list(p)],
    "exercise_2": [without_shift, shift_to_the_left, without_softmax],
    "exercise_bug": [at_temperature_1, order_alone, what_the_wrong_one_gives],
}
