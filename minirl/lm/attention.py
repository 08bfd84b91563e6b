"""Attention: where tokens meet.

Outside attention a transformer treats each token by itself, so its blocks work on a plain list of
N tokens, (N, d). For attention, a context lays the list out in rows and says which tokens each
one sees:

    Rows                  B rows of T tokens, each a sequence, or the continuation of a cache
    distinct.Distinct     rows that share prompts and end at many lengths: each prompt is computed
                          once, and padding never
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from minirl.lm import batch_invariant
from minirl.lm.cache import KVCache

SHORT = 64      # queries: on a CPU, two matrix products are faster than the fused kernel up to here
# Fused kernels that may be chosen. torch prefers cuDNN's on a Hopper GPU, but that one plans every
# new shape, for about a second, and the shapes of a batch are new each time.
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Context(Protocol):
    """Lays out a list of N tokens for attention."""

    positions: Tensor  # (N,)
    longest: int       # an upper bound of the positions + 1

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (N, H, D), k and v (N, K, D) of one layer -> what each token reads, (N, H * D)."""


class Rows:
    """B rows of T tokens, which continue what `cache` holds, if there is one.

    `starts` (B,) is the slot of each row's first token after padding on the left.
    """

    def __init__(self, B: int, T: int, *, device: torch.device, cache: KVCache | None = None,
                 starts: Tensor | None = None) -> None:
        self.B, self.T, self.cache = B, T, cache
        self.bias: Tensor | None = None
        self.order: Tensor | None = None    # of the keys, where that is not the order of slots
        before = 0 if cache is None else cache.length
        if cache is not None and cache.slot is not None:  # a recorded step: T is 1
            self.longest, slots = before, cache.slot  # (T,)
            later_slots = True
        else:
            self.longest = before + T
            slots = torch.arange(before, before + T, device=device)  # (T,)
            later_slots = T > 1 and (before > 0 or plain(T, device))
        keys = torch.arange(self.longest, device=device)  # (S,)
        if starts is None:
            self.positions = slots.repeat(B)  # (N,)
            if later_slots:
                self.bias = hide(keys > slots[:, None])[None, None]  # (1, 1, T, S)
        else:
            # A slot of padding sees itself, as a softmax over nothing would be NaN.
            first, starts = starts[:, None], torch.minimum(starts[:, None], slots)  # (B, T)
            self.positions = (slots - starts).flatten()  # (N,)
            hidden = (keys > slots[:, None]) | (keys < starts[..., None])  # (B, T, S)
            if batch_invariant.active():    # keys from a row's first token on, then nothing
                self.order = (first + keys).clamp(max=self.longest - 1)  # (B, S)
                hidden = keys > (slots - starts)[..., None]
            self.bias = hide(hidden).unsqueeze(1)  # (B, 1, T, S)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (self.B, self.T)).transpose(1, 2) for x in (q, k, v))
        if self.cache is not None:
            k, v = self.cache.append(layer, k, v)  # (B, K, S, D)
        if self.order is not None:
            order = self.order[:, None, :, None].expand_as(k)
            k, v = k.gather(2, order), v.gather(2, order)
        out = attend(q, k, v, self.bias)  # (B, H, T, D)
        return out.transpose(1, 2).reshape(self.B * self.T, -1)


def hide(hidden: Tensor) -> Tensor:
    """Return what attention adds to a score: minus infinity where `hidden` is true, 0 elsewhere."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))


def plain(queries: int, device: torch.device) -> bool:
    """Return whether so many queries are answered by two matrix products, not the fused kernel."""
    return device.type == "cpu" and queries <= SHORT


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Return softmax(q kᵀ / √D + bias) v.

    Shapes     q (B, H, T, D), k and v (B, K, S, D), bias (B or 1, 1, T, S) -> (B, H, T, D)

    A key/value head serves H / K query heads that stand next to each other. Without a bias, T == S
    is causal, and a single query sees all keys.
    """
    T, S = q.shape[2], k.shape[2]
    if batch_invariant.active():
        return batch_invariant.attend(q, k, v, bias)
    if not plain(T, q.device):
        return _fused(q, k, v, bias)
    if bias is None and T > 1:
        bias = hide(torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1))[None, None]
    if T == 1 and torch.compiler.is_compiling():
        return _one_query(q, k, v, bias)
    with torch.autocast(q.device.type, enabled=False):  # in the dtype of the keys
        return _two_products(q, k, v, bias)


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """One kernel, which reads the keys once and never stores the scores."""
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    mask = None if bias is None else bias.to(q.dtype)
    if T == 1:  # the query heads of a key/value head become its queries, so that keys are read once
        q = q.reshape(B, K, H // K, D)
        mask = None if mask is None else mask.expand(-1, 1, H // K, S)
    with sdpa_kernel(FUSED):
        out = F.scaled_dot_product_attention(
            q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask, is_causal=bias is None and T > 1,
            enable_gqa=H != K and T > 1)
    return out.reshape(B, H, T, D)


def _one_query(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The form for a compiler, which makes one pass of it. Uncompiled, two products are faster."""
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    wide = torch.promote_types(k.dtype, torch.float32)
    one = q.view(B, K, H // K, 1, D).to(wide)
    keys, values = k[:, :, None].to(wide), v[:, :, None].to(wide)  # (B, K, 1, S, D)
    scores = (one * D ** -0.5 * keys).sum(-1)  # (B, K, H/K, S)
    scores = scores if bias is None else scores + bias
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    # The sum divides at the end, where it divides D numbers and not S.
    out = (e[..., None] * values).sum(-2) / e.sum(-1, keepdim=True)  # (B, K, H/K, D)
    return out.view(B, H, T, D).to(q.dtype)


def _two_products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    queries = q.reshape(B * K, H // K * T, D).to(k.dtype)
    keys = k.reshape(B * K, S, D).transpose(1, 2)
    start, beta = queries.new_zeros(1, 1, 1), 0
    if bias is not None:
        start, beta = bias[0].to(k.dtype), 1  # (1, T, S)
        if len(bias) > 1 or K < H:
            start = bias.to(k.dtype).expand(B, H, T, S).reshape(B * K, -1, S)
    scores = torch.baddbmm(start, queries, keys, beta=beta, alpha=D ** -0.5)  # (B K, H/K T, S)
    p = scores.softmax(-1, dtype=torch.promote_types(k.dtype, torch.float32)).to(v.dtype)
    return torch.bmm(p, v.reshape(B * K, S, D)).view(B, H, T, D).to(q.dtype)
