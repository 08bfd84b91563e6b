"""Answers to the exercises of tutorials/01_language_model.py."""

from __future__ import annotations

import torch


def exercise_1(prompt_length: int, completion_length: int) -> list[int]:
    """One slot before each token of the completion: the last of the prompt is the first, and EOS is
    scored by the token before it."""
    return list(range(prompt_length - 1, prompt_length - 1 + completion_length))


def exercise_2(p: float, limit: int) -> float:
    """The n-th token is sampled if the n - 1 before it were no EOS. The expected length is the sum
    of these probabilities."""
    return sum((1 - p) ** (n - 1) for n in range(1, limit + 1))


def exercise_bug(function) -> None:
    """Each part is divided by its own number of tokens, and then all parts count alike: a token in
    a short part counts more than one in a long part. With equal lengths nothing shows. transformers
    and the trainers built on it had this bug in gradient accumulation until October 2024
    (https://github.com/huggingface/transformers/pull/34191)."""
    logp = torch.tensor([[-1.0, -1.0, -1.0], [-5.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    whole, parts = function(logp, mask, 2), function(logp, mask, 1)
    assert abs(whole - 2.0) < 1e-6 and abs(parts - 2.0) < 1e-6      # (1 + 1 + 1 + 5) / 4


# Answers that the checks must refuse.

def equal_lengths(function) -> None:
    logp, mask = -torch.arange(6.0).view(2, 3), torch.ones(2, 3)
    assert abs(function(logp, mask, 1) - 2.5) < 1e-6


def whole_batch_alone(function) -> None:
    logp, mask = torch.tensor([[-1.0, -1.0], [-5.0, 0.0]]), torch.tensor([[1, 1], [1, 0]])
    assert abs(function(logp, mask, 2) - 7 / 3) < 1e-6


def mean_of_means(function) -> None:
    logp, mask = torch.tensor([[-1.0, -1.0], [-5.0, 0.0]]), torch.tensor([[1, 1], [1, 0]])
    assert abs(function(logp, mask, 1) - 3.0) < 1e-6                # what the wrong one gives


WRONG = {
    "exercise_1": [lambda p, c: list(range(p, p + c)),              # without the shift by one
                   lambda p, c: list(range(p - 1, p + c)),          # with the logits behind EOS
                   lambda p, c: list(range(p + c - 1))],            # with the prompt
    "exercise_2": [lambda p, limit: min(limit, 1 / p) if p else limit,
                   lambda p, limit: sum((1 - p) ** n for n in range(1, limit + 1)),
                   lambda p, limit: sum(n * p * (1 - p) ** (n - 1) for n in range(1, limit + 1))],
    "exercise_bug": [equal_lengths, whole_batch_alone, mean_of_means],
}
