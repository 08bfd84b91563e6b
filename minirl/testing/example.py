"""One question and its four answers, so small that every number can be checked by hand.

The question is "7+5=". A policy makes at most two choices: it begins with "1" or "2", and after
"1" it goes on with "2", "3" or "0". All other tokens are certain. So there are four answers, and
every expectation is a sum of four terms. These are the choices of the policy OLD:

                     ┌─ 0.5 ─ 2 <eos>              "12"        0.25   right: reward 1
        ┌─ 0.5 ─ 1 ──┼─ 0.3 ─ 3 <eos>              "13"        0.15   wrong: reward 0
    7+5=│            └─ 0.2 ─ 0 + 1 = 1 1 <eos>    "10+1=11"   0.10   wrong
        └─ 0.5 ─ 2 <eos>                           "2"         0.50   wrong

Per-token tensors are (4, 8): a row for each answer, a slot for each of its tokens, and padding.
The prompt has no slots here. Everything is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

Choices = tuple[Tensor, Tensor]        # logits of the first token (2,), and after "1" (3,)

QUESTION = "7+5="
TOKENS = (
    ("1", "2", "<eos>"),
    ("1", "3", "<eos>"),
    ("1", "0", "+", "1", "=", "1", "1", "<eos>"),
    ("2", "<eos>"),
)
ANSWERS = tuple("".join(tokens[:-1]) for tokens in TOKENS)
LENGTHS = torch.tensor([len(tokens) for tokens in TOKENS])                    # (4,)
MASK = torch.arange(8) < LENGTHS.unsqueeze(1)                                 # (4, 8)
REWARDS = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)           # (P, G) = (1, 4)
SCORES = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)           # a reward model's

FIRST = torch.tensor([0, 0, 0, 1])                     # (4,) which first token: "1" or "2"
THEN = torch.tensor([0, 1, 2, 3])                      # (4,) which one after "1"; 3: no such choice


def choices(first: list[float], then: list[float]) -> Choices:
    """Return the logits of a policy from its probabilities: first (2,), then (3,)."""
    return (torch.tensor(first, dtype=torch.float64).log(),
            torch.tensor(then, dtype=torch.float64).log())


OLD = choices([0.5, 0.5], [0.5, 0.3, 0.2])             # wrote the answers
NEW = choices([0.35, 0.65], [0.75, 0.15, 0.10])        # after an update: ratios 0.7, 1.3; 1.5, 0.5
REFERENCE = choices([0.75, 0.25], [0.25, 0.45, 0.30])  # OLD / REFERENCE is 2/3 or 2 everywhere


def token_logprobs(policy: Choices) -> Tensor:
    """Return the log-prob of each token of each answer, differentiable in the policy's logits.

    Shapes     policy: (2,) and (3,) -> (4, 8), 0 on certain tokens and on padding

    >>> token_logprobs(OLD)[:, :2].exp()
    tensor([[0.5000, 0.5000],
            [0.5000, 0.3000],
            [0.5000, 0.2000],
            [0.5000, 1.0000]], dtype=torch.float64)
    """
    first, then = (logits.log_softmax(0) for logits in policy)
    certain = torch.zeros(4, 6, dtype=first.dtype)
    second = torch.cat([then, then.new_zeros(1)])                             # (4,), 0 after "2"
    return torch.cat([first[FIRST].unsqueeze(1), second[THEN].unsqueeze(1), certain], dim=1)


def probabilities(policy: Choices) -> Tensor:
    """Return the probability of each answer, (4,). Their sum is 1.

    >>> probabilities(OLD)
    tensor([0.2500, 0.1500, 0.1000, 0.5000], dtype=torch.float64)
    """
    return token_logprobs(policy).sum(1).exp()
