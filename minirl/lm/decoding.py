"""How rows grow: one forward pass and one draw a step, for all rows that have not ended.

The host decides nothing that it would have to read from the device for: which token came, where a row stands and which draw is next are tensors. Only
every few steps it asks who has ended, and lets those rows leave. On CUDA that makes a step the same list of kernels every time, so it is recorded
once per number of rows and per reach (a CUDA graph) and then played: a small model's step is otherwise all launches.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from minirl.lm.attention import KVCache, cache_dtype
from minirl.lm.precision import compute_dtype

ASK = {"cpu": 1, "cuda": 8}       # steps between two looks at who has ended: asking a GPU makes it wait
WORTH_LEAVING = 1 / 32            # of the rows: when so many have ended, others take their places
REACH = 128                       # recorded steps read the cache in whole multiples of so many slots


class Choice(NamedTuple):
    """How the next token is chosen: see sampling.sample."""

    temperature: float
    top_k: int
    top_p: float
    stops: tuple[int, ...]


class Decoder:
    """Buffers for B rows and what is recorded of them. `recording`: steps read positions from the device, and on CUDA are recorded."""

    def __init__(self, model, rows: int, width: int, max_new_tokens: int, choice: Choice, *, padded: bool, recording: bool):
        device, self.dtype = model.device, compute_dtype(model)
        self.rows, self.width, self.max_new_tokens, self.choice, self.recording = rows, width, max_new_tokens, choice, recording
        self.cache = KVCache(model.config, rows, width + max_new_tokens, device=device, dtype=cache_dtype(self.dtype, device))
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)                # the token that each row drew last
        self.row = torch.zeros(rows, dtype=torch.long, device=device)                # which completion it is
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.starts = torch.zeros(rows, dtype=torch.long, device=device) if padded else None
        self.t = torch.zeros(1, dtype=torch.long, device=device)                     # how many tokens each row has drawn
        self.stops = torch.tensor(choice.stops, dtype=torch.long, device=device)
        self.uniform = torch.zeros(max_new_tokens, rows, device=device)
        self.new_tokens = torch.zeros(rows, max_new_tokens, dtype=torch.long, device=device)
        self.new_logp = torch.zeros(rows, max_new_tokens, device=device)
        self.head = None
        self.graphs, self.pool = {}, None
        if recording:
            for store in self.cache.layers:
                store.zero_()                                                        # slots that are read before they are written must be numbers
            self.slot = torch.zeros(1, dtype=torch.long, device=device)              # where the last token goes: width + t - 1
        self.refresh(model)

    @torch.no_grad()
    def refresh(self, model) -> None:
        """Take the weights as they are now, into the same memory as before."""
        if hasattr(model, "layers"):
            now = [block.weights(self.dtype) for block in model.layers]
            if self.cache.weights is None:
                self.cache.weights = now
            for old, new in zip(self.cache.weights, now):
                for a, b in zip(old, new):
                    if a is not None and a.data_ptr() != b.data_ptr():
                        a.copy_(b)
        head = model.lm_head.weight.to(self.dtype)
        if self.head is None:
            self.head = head
        elif self.head.data_ptr() != head.data_ptr():
            self.head.copy_(head)

    def grow(self, model, hidden: Tensor, prompts: KVCache, padding: Tensor | None, group: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states (P, d) and cache of P prompts -> the tokens that P * group rows draw and their log-probs, (B, max_new_tokens) each."""
        n, cache = self.rows, self.cache
        every = torch.arange(n, device=self.row.device)
        self.row.copy_(every)
        self.ended.zero_()
        self.t.zero_()
        self.new_tokens.zero_()
        self.new_logp.zero_()
        self.uniform.copy_(uniform)
        cache.slot = None
        cache.take(prompts, every // group)
        if self.starts is not None:
            self.starts.copy_(padding.repeat_interleave(group))
        if self.recording:
            cache.slot = self.slot.fill_(self.width)
        self.draw(hidden.repeat_interleave(group, dim=0), n)
        for t in range(1, self.max_new_tokens):
            if self.choice.stops and t % ASK[self.row.device.type] == 0:
                n = self.leave(n, self.width + t - 1)
                if n == 0:
                    break
            self.step(model, n, self.width + t)
        return self.new_tokens, self.new_logp

    def step(self, model, n: int, filled: int) -> None:
        """One token more for the first n rows; with it, `filled` slots of the cache are."""
        def work():
            starts = None if self.starts is None else self.starts[:n]
            hidden = model.hidden(self.ids[:n, None], cache=self.cache, starts=starts)[:, -1]
            if self.recording:
                self.slot.add_(1)
            self.draw(hidden, n)

        if not self.recording:
            return work()
        self.cache.length = min(-(-filled // REACH) * REACH, self.width + self.max_new_tokens)
        key = n, self.cache.length
        if key in self.graphs:
            return self.graphs[key].replay()
        work()                                            # for real, and so that what is recorded next allocates and compiles nothing new
        if self.row.is_cuda:
            self.graphs[key] = self.record(work)

    def record(self, work):
        """Note the kernels that `work` launches, without running them."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self.pool):
            work()
        self.pool = graph.pool()
        return graph

    def draw(self, hidden: Tensor, n: int) -> None:
        """Choose the next token of the first n rows from their hidden states (n, d), and note it."""
        row = self.row[:n]
        uniform = self.uniform[self.t].squeeze(0)[row]                                                # (n,)
        logits = F.linear(hidden.to(self.dtype), self.head).float()                                   # (n, V)
        ids, logp = draw(logits, uniform, self.choice.temperature, self.choice.top_k, self.choice.top_p)
        self.ids[:n] = ids
        self.new_tokens[row, self.t] = ids
        self.new_logp[row, self.t] = logp
        self.ended[:n] |= (ids[:, None] == self.stops).any(1)
        self.t.add_(1)

    def leave(self, n: int, filled: int) -> int:
        """Let ended rows go, where they are enough to be worth it -> how many rows stay. Recorded steps come in halves, so that few are recorded."""
        going = n - int(self.ended[:n].sum())
        kept = going
        if self.recording and going:
            kept = n
            while kept // 2 >= going:
                kept //= 2
        if n - kept < WORTH_LEAVING * n or kept == 0:
            return n if kept else 0
        rows = kept + (~self.ended[kept:n]).nonzero().squeeze(1)                      # those of the last rows that go on take the places of
        places = self.ended[:kept].nonzero().squeeze(1)[:len(rows)]                   # ended ones among the first
        self.cache.length = filled
        self.cache.move(rows, places)
        for x in (self.ids, self.row, self.ended, self.starts):
            if x is not None:
                x[places] = x[rows]
        return kept


_kept: WeakKeyDictionary = WeakKeyDictionary()


def decoder_for(model, rows: int, width: int, max_new_tokens: int, choice: Choice, *, padded: bool) -> Decoder:
    """A decoder with the model's present weights. On CUDA a model's last one is kept, with what it recorded, and used again where all sizes are the same."""
    if model.device.type != "cuda":
        return Decoder(model, rows, width, max_new_tokens, choice, padded=padded, recording=False)
    key = (rows, width, max_new_tokens, choice, padded, compute_dtype(model), model.compiled, tuple(p.data_ptr() for p in model.parameters()))
    known, decoder = _kept.get(model, (None, None))
    if known == key:
        decoder.refresh(model)
    else:
        _kept.pop(model, None)                            # first, so that its memory is free
        decoder = Decoder(model, rows, width, max_new_tokens, choice, padded=padded, recording=True)
        _kept[model] = key, decoder
    return decoder


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """One id a row by inverting the cumulative distribution at one uniform number: logits (B, V), uniform (B,) -> ids (B,), logp (B,)."""
    if temperature == 0:
        logp = logits.log_softmax(-1)
        ids = logits.argmax(-1)
    else:
        logp = keep_likeliest((logits / temperature).log_softmax(-1), top_k, top_p)               # (B, V), normalised
        cumulative = logp.exp().cumsum(-1)                                                        # ends at 1, but for rounding
        # u < total, so the first id whose cumulative sum exceeds u has probability > 0 (the clamp is for NaN, which _sample reports)
        u = (uniform * cumulative[:, -1]).minimum(torch.nextafter(cumulative[:, -1], torch.zeros_like(uniform)))
        ids = torch.searchsorted(cumulative, u[:, None], right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
    return ids, logp.gather(1, ids[:, None]).squeeze(1)


def keep_likeliest(logp: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set all but the top_k likeliest ids, then all but the fewest of probability >= top_p, to -inf, and renormalise. (B, V) -> (B, V)."""
    if 0 < top_k < logp.shape[-1]:
        rank = logp.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)                 # 0: the likeliest; ties by id
        logp = logp.masked_fill(rank >= top_k, float("-inf")).log_softmax(-1)
    if top_p < 1.0:
        sorted_logp, order = logp.sort(dim=-1, descending=True, stable=True)
        before = sorted_logp.exp().cumsum(-1) - sorted_logp.exp()                                 # probability of all likelier ids
        drop = torch.zeros_like(logp, dtype=torch.bool).scatter(1, order, before >= top_p)
        logp = logp.masked_fill(drop, float("-inf")).log_softmax(-1)
    return logp
