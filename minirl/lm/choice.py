"""The choice of the next token: from logits to an id, and the log-probability of drawing it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from minirl.lm import batch_invariant
from minirl.lm.logprobs import log_normaliser
from minirl.lm.panels import linear

ROUNDING = 5e-7     # relative error of a sum of float32 probabilities, with a margin


class Choice(NamedTuple):
    """How the next token is chosen: see sampling.sample."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def choose(hidden: Tensor, weight: Tensor, uniform: Tensor, choice: Choice, seen: Tensor | None
           ) -> tuple[Tensor, Tensor]:
    """Hidden states (n, d), output matrix (V, d), uniform (n,), seen (n, V) -> ids (n,), logp (n,).

    `seen` says which ids a row holds already; None without a penalty on them.
    """
    logits = linear(hidden.to(weight.dtype), weight).float()  # (n, V)
    return draw(logits, uniform, *choice, seen=seen)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float,
         min_p: float = 0.0, repetition_penalty: float = 1.0, *, seen: Tensor | None = None
         ) -> tuple[Tensor, Tensor]:
    """Draw one id per row by inverting the cumulative distribution at one uniform number.

    Shapes     logits (B, V), uniform (B,), seen (B, V) bool -> ids (B,), logp (B,)
    """
    scores = logits if seen is None else penalise(logits, seen, repetition_penalty)  # (B, V)
    if temperature == 0:
        logp = logits.log_softmax(-1)
        ids = scores.argmax(-1)
    else:
        logp = log_softmax(scores, temperature)
        logp = keep_likeliest(logp, top_k, top_p, min_p)  # (B, V), normalised
        cumulative = logp.exp().cumsum(-1)  # ends at 1, but for rounding
        # u < total, so the first id whose cumulative sum exceeds u has a probability above 0.
        total = cumulative[:, -1]
        u = (uniform * total).minimum(torch.nextafter(total, torch.zeros_like(uniform)))
        ids = torch.searchsorted(cumulative, u[:, None], right=True).squeeze(1)
        ids = ids.clamp(max=logits.shape[-1] - 1)    # for NaN, which sample reports
    return ids, logp.gather(1, ids[:, None]).squeeze(1)


def log_softmax(scores: Tensor, temperature: float) -> Tensor:
    """Return log softmax(scores / temperature), (B, V): the learner's bits, if batch-invariant."""
    if batch_invariant.active():
        return scores / temperature - log_normaliser(scores, temperature)[:, None]
    return (scores / temperature).log_softmax(-1)


def ids_of(tokens: Tensor, padding: Tensor | None, vocab_size: int) -> Tensor:
    """Return which ids each row holds behind its padding on the left.

    Shapes     tokens (n, T), padding (n,) -> (n, vocab_size) bool
    """
    if padding is not None:
        slots = torch.arange(tokens.shape[1], device=tokens.device)
        tokens = tokens.masked_fill(slots < padding[:, None], vocab_size)  # (n, T)
    ids = torch.zeros(len(tokens), vocab_size + 1, dtype=torch.bool, device=tokens.device)
    return ids.scatter_(1, tokens, True)[:, :vocab_size]


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower the logits of ids that a row holds already, its prompt included; a penalty below 1
    raises them.

    Equation   x_j <- x_j / θ where x_j > 0, x_j θ otherwise, for the ids j that were seen
    Paper      CTRL, arXiv:1909.05858, section 4.1: θ = 1.2
    Erratum    the paper divides negative logits, too, which raises them; transformers multiplies
    Shapes     logits (B, V), seen (B, V) bool -> (B, V)

    >>> seen = torch.tensor([[True, True, False]])
    >>> penalise(torch.tensor([[3.0, -1.0, 2.0]]), seen, 2.0)
    tensor([[ 1.5000, -2.0000,  2.0000]])
    """
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered, logits)


def keep_likeliest(logp: Tensor, top_k: int, top_p: float, min_p: float = 0.0) -> Tensor:
    """Keep the top_k likeliest ids, of these the fewest that reach top_p, and of these the ones
    that have at least min_p times the probability of the likeliest. (B, V) -> (B, V).

    Paper      top_p: Holtzman et al., arXiv:1904.09751. min_p: Nguyen et al., arXiv:2407.01082.

    The others become -inf, and the rest is renormalised. A sum that falls short of top_p by
    rounding alone reaches it: in float32 0.5 + 0.3 may be 0.79999995.
    """
    if 0 < top_k < logp.shape[-1]:
        order = logp.argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(dim=-1)  # 0: the likeliest; ties by id
        logp = logp.masked_fill(rank >= top_k, float("-inf")).log_softmax(-1)
    if top_p < 1.0:
        sorted_logp, order = logp.sort(dim=-1, descending=True, stable=True)
        p = sorted_logp.exp()
        likelier = p.cumsum(-1) - p  # probability of all likelier ids
        enough = top_p * (1 - ROUNDING)
        drop = torch.zeros_like(logp, dtype=torch.bool).scatter(1, order, likelier >= enough)
        logp = logp.masked_fill(drop, float("-inf")).log_softmax(-1)
    if min_p > 0.0:
        least = logp.amax(-1, keepdim=True) + math.log(min_p * (1 - ROUNDING))  # (B, 1)
        logp = logp.masked_fill(logp < least, float("-inf")).log_softmax(-1)
    return logp


def check_finite(logp: Tensor) -> None:
    """Raise ValueError where the log-prob of a draw, or the sum of several, is NaN or infinite."""
    if not bool(logp.isfinite().all()):
        raise ValueError("the model gave logits that are not finite: its weights hold NaN or "
                         "infinity, or overflow in its dtype; go back to an earlier checkpoint, or "
                         "use float32")
