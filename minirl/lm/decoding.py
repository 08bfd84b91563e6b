"""How rows grow while sampling: one forward pass and one draw per step, for all unfinished rows.

A step is one function of tensors, `advance`. With a small model, most of a step's time is spent on
starting operations, not on computing them. So where the model is compiled, a CPU runs a step as one
compiled function. On CUDA a step is recorded (a CUDA graph) once per number of rows and per reach,
and then replayed. This is possible as the host decides nothing that it would have to read from the
device: which token came, where a row stands and which draw is next are tensors. Only every few
steps the host asks which rows have ended, and lets them leave.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirl.lm.cache import KVCache, Weights, cache_dtype
from minirl.lm.compiled import compiled
from minirl.lm.model import Transformer, with_head
from minirl.lm.precision import compute_dtype

ASK = {"cpu": 1, "cuda": 8}     # steps between two checks for ended rows; a check makes a GPU wait
WORTH_LEAVING = 1 / 32          # compact the batch once this share of its rows has ended
REACH = 128                     # recorded steps read the cache in whole multiples of so many slots
ROUNDING = 5e-7                 # relative error of a sum of float32 probabilities, with a margin


class Choice(NamedTuple):
    """How the next token is chosen: see sampling.sample."""

    temperature: float
    top_k: int
    top_p: float


class Decoder:
    """Buffers for B rows that grow together, and the recordings of their steps.

    With `recording`, steps read positions from the device, and on CUDA they are recorded. A
    recording reads memory by its address. So such a decoder owns everything that its steps read:
    the buffers, the cache with the joined weights, and a copy of the model, `own`, into which each
    call of `grow` copies the weights of the model that it is given.
    """

    def __init__(self, model: Transformer, rows: int, width: int, max_new_tokens: int,
                 choice: Choice, stops: tuple[int, ...], *, padded: bool, recording: bool) -> None:
        device, dtype = model.device, compute_dtype(model.dtype, model.device)
        self.rows, self.width, self.max_new_tokens = rows, width, max_new_tokens
        self.choice, self.any_stops, self.recording = choice, len(stops) > 0, recording
        self.own = copy.deepcopy(model).requires_grad_(False) if recording else None
        self.compiled = is_compiled(model) and device.type == "cpu"
        self.cache = KVCache.empty(model.config, rows, width + max_new_tokens, device=device,
                                   dtype=cache_dtype(dtype, device, self.compiled),
                                   by_slot=self.compiled)

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.ids = zeros(rows)                          # the token that each row drew last
        self.row = zeros(rows)                          # which completion it is
        self.ended = zeros(rows, dtype=torch.bool)
        # Compiled steps have one form for rows with and without padding.
        self.starts = zeros(rows) if padded or self.compiled else None
        self.t = zeros(1)                               # how many tokens each row has drawn
        self.slot = zeros(1) if recording else None     # where the last token goes: width + t - 1
        self.stops = torch.tensor(stops, dtype=torch.long, device=device)
        self.uniform = zeros(max_new_tokens, rows, dtype=torch.float32)
        self.new_tokens = zeros(rows, max_new_tokens)
        self.new_logp = zeros(rows, max_new_tokens, dtype=torch.float32)
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.pool: Any = None                           # the memory that all recordings share

    @torch.no_grad()
    def grow(self, model: Transformer, prompts: Tensor, padding: Tensor | None, group: int,
             uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Let each of P prompts (P, width) grow into `group` rows.

        Returns the tokens that the B = P * group rows draw and their log-probs, (B, max_new_tokens)
        each. Entries after a row's end are undefined.
        """
        if self.own is not None:
            self.own.load_state_dict(model.state_dict())    # into the memory that is there
            model = self.own
        self._begin(padding, group, uniform)
        n, steps = self.rows, ASK.get(self.row.device.type, ASK["cuda"])
        self.note(*self._read(model, prompts, padding, group), n)
        for t in range(1, self.max_new_tokens):
            if self.any_stops and t % steps == 0:
                n = self.leave(n, self.width + t - 1)
                if n == 0:
                    break
            self.step(model, n, self.width + t)
        return self.new_tokens, self.new_logp

    def _begin(self, padding: Tensor | None, group: int, uniform: Tensor) -> None:
        """Put all buffers into their first state."""
        torch.arange(self.rows, out=self.row)
        for x in (self.ended, self.t, self.new_tokens, self.new_logp):
            x.zero_()
        self.uniform.copy_(uniform)
        if self.starts is not None and padding is not None:
            self.starts.copy_(padding.repeat_interleave(group))
        if self.slot is not None:
            self.slot.fill_(self.width)
            for store in self.cache.keys + self.cache.values:
                store.zero_()    # slots that are read before they are written must hold numbers

    def _read(self, model: Transformer, prompts: Tensor, padding: Tensor | None, group: int
              ) -> tuple[Tensor, Tensor]:
        """Read each prompt once, and draw the first token of all its rows: ids and logp, (B,)."""
        P, width = prompts.shape
        cache = KVCache.empty(model.config, P, width, device=prompts.device,
                              dtype=self.cache.keys[0].dtype)

        def head(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            last = hidden[:, -1].repeat_interleave(group, dim=0)  # (B, d)
            return choose(last, weight, self.uniform[0], self.choice)

        first = with_head(model, prompts, head, cache=cache, starts=padding)
        self.cache.take(cache, self.row // group)
        self.cache.take_weights(cache)
        return first

    def step(self, model: Transformer, n: int, slots: int) -> None:
        """Draw one more token for the first n rows. Afterwards `slots` of the cache are filled."""
        end = slots
        if self.recording:
            end = min(whole(slots, REACH), self.width + self.max_new_tokens)
        if (n, end) in self.graphs:
            self.graphs[n, end].replay()
            return

        def work() -> None:
            keys = [x[:n, :, :end] for x in self.cache.keys]
            values = [x[:n, :, :end] for x in self.cache.values]
            starts = None if self.starts is None else self.starts[:n]
            uniform = self.uniform[self.t].squeeze(0)[self.row[:n]]  # (n,)
            run = _compiled_advance if self.compiled else advance
            weights = self.cache.weights, self.cache.head
            ids, logp = run(model, self.ids[:n], starts, uniform, keys, values, self.slot, weights,
                            self.choice)
            self.note(ids, logp, n)
            if self.slot is not None:
                self.slot.add_(1)

        work()    # before a recording, so that the recording allocates and compiles nothing new
        if self.recording and self.row.is_cuda:
            self.graphs[n, end] = self.record(work)

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record the kernels that `work` launches, without running them."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self.pool):
            work()
        self.pool = graph.pool()
        return graph

    def note(self, ids: Tensor, logp: Tensor, n: int) -> None:
        """Write down what the first n rows drew, ids and logp (n,)."""
        row = self.row[:n]
        self.ids[:n] = ids
        self.new_tokens[row, self.t] = ids
        self.new_logp[row, self.t] = logp
        self.ended[:n] |= (ids[:, None] == self.stops).any(1)
        self.t.add_(1)

    def leave(self, n: int, slots: int) -> int:
        """Let ended rows leave, where enough of the first n have ended; return how many stay.

        `slots` of the cache are filled. Recorded steps halve the number of rows, so that there are
        few recordings. Two rows stay at least, as a single row would be compiled anew.
        """
        running = n - int(self.ended[:n].sum())
        stay = running
        if self.recording and running:
            stay = n
            while stay // 2 >= max(2, running):
                stay //= 2
        elif self.compiled and running:
            stay = min(n, max(2, running))
        if n - stay < WORTH_LEAVING * n or stay == 0:
            return n if stay else 0
        # Unfinished rows among the last ones take the places of ended ones among the first.
        rows = stay + (~self.ended[stay:n]).nonzero().squeeze(1)
        places = self.ended[:stay].nonzero().squeeze(1)[:len(rows)]
        self.cache.length = slots
        self.cache.move(rows, places)
        for x in (self.ids, self.row, self.ended, self.starts):
            if x is not None:
                x[places] = x[rows]
        return stay


def whole(n: int, unit: int) -> int:
    """Return the next multiple of `unit`, from n on."""
    return -(-n // unit) * unit


def decoder_for(model: Transformer, rows: int, width: int, max_new_tokens: int, choice: Choice,
                stops: tuple[int, ...], *, padded: bool) -> Decoder:
    """Return a decoder for a model: on CUDA one that records its steps, and is kept.

    A model whose weights are spread over several processes (FSDP) gathers them in every step, which
    cannot be recorded.
    """
    recording = model.device.type == "cuda" and not is_sharded(model)
    make = kept_decoder if recording else Decoder
    return make(model, rows, width, max_new_tokens, choice, stops, padded=padded,
                recording=recording)


def is_sharded(model: nn.Module) -> bool:
    """Return whether parameters are torch.distributed's DTensors, of which a process has a part."""
    return any(type(p) is not nn.Parameter for p in model.parameters())


def is_compiled(model: Transformer) -> bool:
    """Return whether a model is compiled. One that is no Transformer, as in with_head, never is."""
    return isinstance(model, Transformer) and model.compiled


_kept: WeakKeyDictionary[Transformer, tuple[tuple, Decoder]] = WeakKeyDictionary()


def kept_decoder(model: Transformer, *sizes: Any, padded: bool, recording: bool) -> Decoder:
    """Return the model's last decoder with its recordings, or a new one where it does not fit.

    It fits where all sizes, the choice and the dtypes are the same. The weights may be others, and
    in other memory.
    """
    key = (*sizes, padded, recording, model.device, model.dtype,
           compute_dtype(model.dtype, model.device), is_compiled(model))
    if model in _kept and _kept[model][0] != key:
        del _kept[model]    # before the next one is made, so that its memory is free
    if model not in _kept:
        _kept[model] = key, Decoder(model, *sizes, padded=padded, recording=recording)
    return _kept[model][1]


def advance(model: Transformer, ids: Tensor, starts: Tensor | None, uniform: Tensor,
            keys: list[Tensor], values: list[Tensor], slot: Tensor | None,
            weights: tuple[list[Weights | None], Tensor | None], choice: Choice
            ) -> tuple[Tensor, Tensor]:
    """Read the last token of n rows, and draw the next one.

    Shapes     ids, starts, uniform (n,), keys and values (n, K, S, D) per layer -> ids (n,),
               logp (n,)

    The token's own keys and values go into the last slot. Where `slot` is given, they go there,
    and all S slots are read, whatever they hold.
    """
    length = keys[0].shape[2] - (1 if slot is None else 0)
    blocks, output = weights
    cache = KVCache(keys, values, length=length, slot=slot, weights=blocks, head=output)

    def head(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return choose(hidden[:, -1], weight, uniform, choice)

    return with_head(model, ids[:, None], head, cache=cache, starts=starts)


_compiled_advance = compiled(advance, lists=(0, 2))    # for any number of rows and slots


def choose(hidden: Tensor, weight: Tensor, uniform: Tensor, choice: Choice
           ) -> tuple[Tensor, Tensor]:
    """Hidden states (n, d), output matrix (V, d), uniform (n,) -> ids (n,), logp (n,)."""
    logits = F.linear(hidden.to(weight.dtype), weight).float()  # (n, V)
    return draw(logits, uniform, choice.temperature, choice.top_k, choice.top_p)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float
         ) -> tuple[Tensor, Tensor]:
    """Draw one id per row by inverting the cumulative distribution at one uniform number.

    Shapes     logits (B, V), uniform (B,) -> ids (B,), logp (B,)
    """
    if temperature == 0:
        logp = logits.log_softmax(-1)
        ids = logits.argmax(-1)
    else:
        logp = (logits / temperature).log_softmax(-1)
        logp = keep_likeliest(logp, top_k, top_p)  # (B, V), normalised
        cumulative = logp.exp().cumsum(-1)  # ends at 1, but for rounding
        # u < total, so the first id whose cumulative sum exceeds u has a probability above 0.
        total = cumulative[:, -1]
        u = (uniform * total).minimum(torch.nextafter(total, torch.zeros_like(uniform)))
        ids = torch.searchsorted(cumulative, u[:, None], right=True).squeeze(1)
        ids = ids.clamp(max=logits.shape[-1] - 1)    # for NaN, which sample reports
    return ids, logp.gather(1, ids[:, None]).squeeze(1)


def keep_likeliest(logp: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the top_k likeliest ids, and of these the fewest that reach top_p. (B, V) -> (B, V).

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
    return logp
