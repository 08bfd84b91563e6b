"""Batch-invariant arithmetic: a token's numbers do not depend on what is computed beside it.

    Paper      Thinking Machines, "Defeating Nondeterminism in LLM Inference", 2025 (no arXiv
               number); for RL: arXiv:2510.26788, which makes the mismatch small instead

A sampler has a few rows and one new token of each; a learner has thousands of tokens at once. A
matrix product chooses its kernel by the number of rows, and each kernel adds in its own order. So
one token's sums round differently in the two, and π/μ is not 1 although the weights are the same.
Three rules take the shape out of it:

    products    x Wᵀ in blocks of ROWS rows, the last one filled up with zeros: always one shape
    attention   in blocks of QUERIES queries and KEYS keys, from a row's first token on; partial
                sums are added from left to right, and a block of masked keys adds exactly 0
    log-probs   the sampler computes them as the learner does (logprobs._statistics)

What else a token needs is computed for each token by itself anyway. Then π/μ = 1 to the bit, for
every row of any batch, and it costs time: benchmarks/RESULTS.md. It holds where a product of one
shape adds in the same order for each of its rows, as those of MKL and oneDNN do: a run reports
sampling/ratio, whose least and largest value are 1. Nothing is compiled while it is on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROWS = 64       # of a product
QUERIES = 8     # of attention: rows of a product, too
KEYS = 32
aten = torch.ops.aten
LEFT = {aten.mm: 0, aten.addmm: 1}    # which argument holds the rows

_active: ContextVar[bool] = ContextVar("batch_invariant", default=False)


def active() -> bool:
    """Return whether arithmetic is batch-invariant now: never in what is being compiled."""
    return not torch.compiler.is_compiling() and _active.get()


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Let sampler and learner give each token the same bits, whatever stands beside it.

    >>> x, weight = torch.ones(70, 64) / 3, torch.ones(32, 64) / 7
    >>> with batch_invariant():
    ...     bool((F.linear(x, weight)[:1] == F.linear(x[:1], weight)).all())
    True
    """
    before = _active.set(True)
    try:
        with Blocks():
            yield
    finally:
        _active.reset(before)


class Blocks(TorchDispatchMode):
    """While it is active, products of two matrices are computed in blocks of ROWS rows."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        kwargs, packet = kwargs or {}, function.overloadpacket
        if packet is aten.sum and args[0].dim() == 2 and len(args[0]) == 1:
            # Threads would share the sum of a single row, and add in another order.
            return function(args[0].expand(2, -1), *args[1:], **kwargs)[:1]
        at = LEFT.get(packet)
        if at is None or at == 1 and args[0].dim() != 1:
            return function(*args, **kwargs)
        product, numbers = packet.default, {k: x for k, x in kwargs.items() if k != "out"}
        blocks = filled(args[at], 0, ROWS).split(ROWS)
        result = torch.cat([product(*args[:at], block, *args[at + 1:], **numbers)
                            for block in blocks])[:len(args[at])]
        return kwargs["out"].copy_(result) if "out" in kwargs else result


def filled(x: Tensor, dim: int, unit: int, value: float = 0.0) -> Tensor:
    """Fill a dimension up to a whole multiple of `unit`, at least one."""
    size = max(1, -(-x.shape[dim] // unit)) * unit
    if size == x.shape[dim]:
        return x
    return F.pad(x, (0, 0) * (x.dim() - 1 - dim % x.dim()) + (0, size - x.shape[dim]), value=value)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Return softmax(q kᵀ / √D + bias) v, as attention.attend, in float32 at least."""
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    wide, R = torch.promote_types(q.dtype, torch.float32), H // K * T
    if bias is None:
        later = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1 + S - T)
        bias = torch.zeros(T, S, device=q.device).masked_fill_(later, float("-inf"))[None, None]
    bias = bias.expand(-1, H // K, T, S).reshape(-1, 1, R, S)  # (B or 1, 1, R, S)
    bias = in_blocks(filled(bias, 3, KEYS, float("-inf")))
    # the queries of all heads that share a key head are its rows, (B, K, n, QUERIES, D)
    queries = in_blocks(q.reshape(B, K, R, D).to(wide) * D ** -0.5)
    keys, values = ([filled(block.to(wide), 2, KEYS).unsqueeze(2) for block in x.split(KEYS, 2)]
                    for x in (k, v))  # of (B, K, 1, KEYS, D)
    with torch.autocast(q.device.type, enabled=False):
        scores = [queries @ block.mT + hidden
                  for block, hidden in zip(keys, bias.split(KEYS, -1), strict=True)]
        top = torch.stack([x.detach().amax(-1, keepdim=True) for x in scores]).amax(0)
        out, total = torch.zeros_like(queries), torch.zeros_like(top)
        for x, block in zip(scores, values, strict=True):
            p = (x - top).exp()  # (B, K, n, QUERIES, KEYS)
            out, total = out + p @ block, total + p.sum(-1, keepdim=True)
    return (out / total).flatten(2, 3)[:, :, :R].reshape(B, H, T, D).to(q.dtype)


def in_blocks(x: Tensor) -> Tensor:
    """Cut rows into blocks, the last one filled up: (B, K, R, X) -> (B, K, n, QUERIES, X)."""
    return filled(x, 2, QUERIES).unflatten(2, (-1, QUERIES))
