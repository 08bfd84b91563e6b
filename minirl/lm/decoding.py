"""How rows grow: one forward pass and one draw a step, for all rows that have not ended.

A step is one function of tensors, `advance`, for as many rows and slots as there are by then. It is mostly calls: the work of a small model's step takes
less time than starting it. So where the model is compiled, a CPU runs it as one compiled piece, and on CUDA it is recorded once per number of rows and
per reach (a CUDA graph) and then played. For that the host decides nothing that it would have to read from the device: which token came, where a row
stands and which draw is next are tensors. Only every few steps it asks who has ended, and lets those rows leave.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from minirl.lm.attention import KVCache, cache_dtype
from minirl.lm.compiled import compiled
from minirl.lm.precision import compute_dtype

ASK = {"cpu": 1, "cuda": 8}       # steps between two looks at who has ended: asking a GPU makes it wait
WORTH_LEAVING = 1 / 32            # of the rows: when so many have ended, others take their places
REACH = 128                       # recorded steps read the cache in whole multiples of so many slots
ROUNDING = 5e-7                   # relative error of a sum of float32 probabilities, with room


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
        self.compiled = getattr(model, "compiled", False) and device.type == "cpu"
        self.cache = KVCache.empty(model.config, rows, width + max_new_tokens, device=device, dtype=cache_dtype(self.dtype, device, self.compiled),
                                   by_slot=self.compiled)
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)                # the token that each row drew last
        self.row = torch.zeros(rows, dtype=torch.long, device=device)                # which completion it is
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.starts = torch.zeros(rows, dtype=torch.long, device=device) if padded or self.compiled else None      # compiled, there is one form for both
        self.t = torch.zeros(1, dtype=torch.long, device=device)                     # how many tokens each row has drawn
        self.stops = torch.tensor(choice.stops, dtype=torch.long, device=device)
        self.uniform = torch.zeros(max_new_tokens, rows, device=device)
        self.new_tokens = torch.zeros(rows, max_new_tokens, dtype=torch.long, device=device)
        self.new_logp = torch.zeros(rows, max_new_tokens, device=device)
        self.slot = None
        self.graphs, self.pool = {}, None
        if recording:
            self.slot = torch.zeros(1, dtype=torch.long, device=device)              # where the last token goes: width + t - 1
        self.head = None
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

    def grow(self, model, prompts: Tensor, padding: Tensor | None, group: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """P prompts (P, width) -> the tokens that P * group rows draw and their log-probs, (B, max_new_tokens) each."""
        n, cache, (P, width) = self.rows, self.cache, prompts.shape
        every = torch.arange(n, device=self.row.device)
        self.row.copy_(every)
        self.ended.zero_()
        self.t.zero_()
        self.new_tokens.zero_()
        self.new_logp.zero_()
        self.uniform.copy_(uniform)
        if padding is not None:
            self.starts.copy_(padding.repeat_interleave(group))
        if self.recording:
            self.slot.fill_(width)
            for store in cache.keys + cache.values:
                store.zero_()                                                        # slots that are read before they are written must be numbers
        read = KVCache.empty(model.config, P, width, device=prompts.device, dtype=cache.keys[0].dtype)
        read.weights = cache.weights
        hidden = model.hidden(prompts, cache=read, starts=padding)[:, -1]                                             # (P, d)
        cache.take(read, every // group)
        self.note(*choose(hidden.repeat_interleave(group, dim=0), self.head, self.uniform[0], self.choice), n)
        for t in range(1, self.max_new_tokens):
            if self.choice.stops and t % ASK[self.row.device.type] == 0:
                n = self.leave(n, width + t - 1)
                if n == 0:
                    break
            self.step(model, n, width + t)
        return self.new_tokens, self.new_logp

    def step(self, model, n: int, filled: int) -> None:
        """One token more for the first n rows; with it, `filled` slots of the cache are."""
        end = min(whole(filled, REACH), self.width + self.max_new_tokens) if self.recording else filled
        key = n, end
        if key in self.graphs:
            return self.graphs[key].replay()

        def work():
            keys, values = ([x[:n, :, :end] for x in stores] for stores in (self.cache.keys, self.cache.values))
            starts = None if self.starts is None else self.starts[:n]
            uniform = self.uniform[self.t].squeeze(0)[self.row[:n]]                                                   # (n,)
            run = _compiled_advance if self.compiled else advance
            self.note(*run(model, self.ids[:n], starts, uniform, keys, values, self.slot, (self.cache.weights, self.head), self.choice), n)
            if self.recording:
                self.slot.add_(1)

        work()                                            # for real, and so that what is recorded next allocates and compiles nothing new
        if self.recording and self.row.is_cuda:
            self.graphs[key] = self.record(work)

    def record(self, work):
        """Note the kernels that `work` launches, without running them."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self.pool):
            work()
        self.pool = graph.pool()
        return graph

    def note(self, ids: Tensor, logp: Tensor, n: int) -> None:
        """Write down what the first n rows drew, (n,) each."""
        row = self.row[:n]
        self.ids[:n] = ids
        self.new_tokens[row, self.t] = ids
        self.new_logp[row, self.t] = logp
        self.ended[:n] |= (ids[:, None] == self.stops).any(1)
        self.t.add_(1)

    def leave(self, n: int, filled: int) -> int:
        """Let ended rows go, where they are enough to be worth it -> how many rows stay.

        Recorded steps come in halves, so that few are recorded. Two rows are kept, as one row would be compiled anew.
        """
        going = n - int(self.ended[:n].sum())
        kept = going
        if self.recording and going:
            kept = n
            while kept // 2 >= max(2, going):
                kept //= 2
        elif self.compiled and going:
            kept = min(n, max(2, going))
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


def whole(n: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-n // unit) * unit


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


def advance(model, ids: Tensor, starts: Tensor | None, uniform: Tensor, keys: list[Tensor], values: list[Tensor], slot: Tensor | None,
            weights: tuple[list, Tensor], choice: Choice) -> tuple[Tensor, Tensor]:
    """Read the last token of n rows, and draw the next: ids, starts, uniform (n,), keys and values (n, K, S, D) a layer -> ids (n,), logp (n,).

    The token's own keys and values go into the last slot, or, where all S are read whatever is in them, into `slot`.
    """
    S = keys[0].shape[2]
    blocks, head = weights
    cache = KVCache(keys, values, length=S - 1 if slot is None else S, slot=slot, weights=blocks)
    hidden = model.hidden(ids[:, None], cache=cache, starts=starts)[:, -1]
    return choose(hidden, head, uniform, choice)


_compiled_advance = compiled(advance, lists=(0, 2))                # any number of rows and slots


def choose(hidden: Tensor, head: Tensor, uniform: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """Hidden states (n, d), output matrix (V, d), uniform (n,) -> ids (n,), logp (n,)."""
    logits = F.linear(hidden.to(head.dtype), head).float()                                        # (n, V)
    return draw(logits, uniform, choice.temperature, choice.top_k, choice.top_p)


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
    """Set all but the top_k likeliest ids, then all but the fewest that reach top_p, to -inf, and
    renormalise. (B, V) -> (B, V). A sum that falls short of top_p by rounding alone reaches it:
    in float32 0.5 + 0.3 may be 0.79999995."""
    if 0 < top_k < logp.shape[-1]:
        rank = logp.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)                 # 0: the likeliest; ties by id
        logp = logp.masked_fill(rank >= top_k, float("-inf")).log_softmax(-1)
    if top_p < 1.0:
        sorted_logp, order = logp.sort(dim=-1, descending=True, stable=True)
        before = sorted_logp.exp().cumsum(-1) - sorted_logp.exp()                                 # probability of all likelier ids
        enough = top_p * (1 - ROUNDING)
        drop = torch.zeros_like(logp, dtype=torch.bool).scatter(1, order, before >= enough)
        logp = logp.masked_fill(drop, float("-inf")).log_softmax(-1)
    return logp
