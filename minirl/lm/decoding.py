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
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from minirl.lm.cache import KVCache, Weights, cache_dtype
from minirl.lm.choice import Choice, choose, ids_of
from minirl.lm.compiled import compiled
from minirl.lm.model import Transformer, with_head
from minirl.lm.panels import worth_panels
from minirl.lm.precision import compute_dtype
from minirl.lm.replies import Replies, Reply

ASK = {"cpu": 1, "cuda": 8}     # steps between two checks for ended rows; a check makes a GPU wait
WORTH_LEAVING = 1 / 32          # compact the batch once this share of its rows has ended
REACH = 128                     # recorded steps read the cache in whole multiples of so many slots


class Decoder:
    """Buffers for B rows that grow together, and the recordings of their steps.

    With `recording`, steps read positions from the device, and on CUDA they are recorded. A
    recording reads memory by its address. So such a decoder owns everything that its steps read:
    the buffers, the cache with the joined weights, and a copy of the model, `own`, into which each
    call of `grow` copies the weights of the model that it is given. `replying` is for rows that get
    replies (replies.py).
    """

    def __init__(self, model: Transformer, rows: int, width: int, max_new_tokens: int,
                 choice: Choice, stops: tuple[int, ...], *, padded: bool, recording: bool,
                 replying: bool = False) -> None:
        device, dtype = model.device, compute_dtype(model.dtype, model.device)
        self.rows, self.width, self.max_new_tokens = rows, width, max_new_tokens
        self.choice, self.any_stops, self.recording = choice, len(stops) > 0, recording
        self.own = copy.deepcopy(model).requires_grad_(False) if recording else None
        self.compiled = is_compiled(model) and device.type == "cpu"
        self.in_panels = isinstance(model, Transformer) and not self.compiled and worth_panels(
            model.config, rows, max_new_tokens, device, dtype)
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
        # the ids that each row holds, its prompt's among them
        self.seen = (zeros(rows, model.config.vocab_size, dtype=torch.bool)
                     if choice.repetition_penalty != 1 else None)
        self.t = zeros(1)                               # how many tokens each row has drawn
        self.slot = zeros(1) if recording else None     # where the last token goes: width + t - 1
        self.stops = torch.tensor(stops, dtype=torch.long, device=device)
        self.uniform = zeros(max_new_tokens, rows, dtype=torch.float32)
        self.new_tokens = zeros(rows, max_new_tokens)
        self.new_logp = zeros(rows, max_new_tokens, dtype=torch.float32)
        self.replies = (Replies(rows, max_new_tokens, model.config.vocab_size, device)
                        if replying else None)
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.pool: Any = None                           # the memory that all recordings share

    @torch.no_grad()
    def grow(self, model: Transformer, prompts: Tensor, padding: Tensor | None, group: int,
             uniform: Tensor, reply: Reply | None = None) -> tuple[Tensor, Tensor]:
        """Let each of P prompts (P, width) grow into `group` rows.

        Returns the tokens that the B = P * group rows draw and their log-probs, (B, max_new_tokens)
        each. Entries after a row's end are undefined. `reply` is for a decoder that is `replying`.
        """
        if self.own is not None:
            self.own.load_state_dict(model.state_dict())    # into the memory that is there
            model = self.own
        self._begin(prompts, padding, group, uniform)
        n, steps = self.rows, ASK.get(self.row.device.type, ASK["cuda"])
        if reply is not None:
            steps = 1    # a row that called something draws no further before it has the reply
        self.note(*self._read(model, prompts, padding, group), n)
        for t in range(1, self.max_new_tokens):
            if self.any_stops and t % steps == 0:
                self._ask(reply, n, t)
                n = self.leave(n, self.width + t - 1)
                if n == 0:
                    break
            self.step(model, n, self.width + t)
        self._ask(reply, n, self.max_new_tokens)
        return self.new_tokens, self.new_logp

    def _ask(self, reply: Reply | None, n: int, t: int) -> None:
        """Let the first n rows have their replies, after t tokens."""
        if self.replies is not None and reply is not None:
            self.replies.ask(reply, self.row[:n], self.ended[:n], self.new_tokens, t)

    def _begin(self, prompts: Tensor, padding: Tensor | None, group: int, uniform: Tensor) -> None:
        """Put all buffers into their first state."""
        torch.arange(self.rows, out=self.row)
        for x in (self.ended, self.t, self.new_tokens, self.new_logp):
            x.zero_()
        self.uniform.copy_(uniform)
        if self.replies is not None:
            self.replies.begin()
        if self.starts is not None and padding is not None:
            self.starts.copy_(padding.repeat_interleave(group))
        if self.seen is not None:
            self.seen.copy_(ids_of(prompts, padding, self.seen.shape[1])[self.row // group])
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
            return choose(last, weight, self.uniform[0], self.choice, self.seen)

        first = with_head(model, prompts, head, cache=cache, starts=padding)
        self.cache.take(cache, self.row // group)
        if self.in_panels:
            cache.use_panels()
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
            seen = None if self.seen is None else self.seen[:n]
            uniform = self.uniform[self.t].squeeze(0)[self.row[:n]]  # (n,)
            run = compiled_advance if self.compiled else advance
            weights = self.cache.weights, self.cache.head
            ids, logp = run(model, self.ids[:n], starts, uniform, keys, values, self.slot, weights,
                            self.choice, seen)
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
        row, stopped = self.row[:n], (ids[:, None] == self.stops).any(1)  # (n,)
        if self.replies is not None:
            ids, logp, drawn = self.replies.put(row, self.t, ids, logp)
            stopped = stopped & drawn
        if self.seen is not None:
            self.seen[:n].scatter_(1, ids[:, None], True)
        self.ids[:n] = ids
        self.new_tokens[row, self.t] = ids
        self.new_logp[row, self.t] = logp
        self.ended[:n] |= stopped
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
        for x in (self.ids, self.row, self.ended, self.starts, self.seen):
            if x is not None:
                x[places] = x[rows]
        return stay


def whole(n: int, unit: int) -> int:
    """Return the next multiple of `unit`, from n on."""
    return -(-n // unit) * unit


def decoder_for(model: Transformer, rows: int, width: int, max_new_tokens: int, choice: Choice,
                stops: tuple[int, ...], *, padded: bool, replying: bool) -> Decoder:
    """Return a decoder for a model: on CUDA one that records its steps, and is kept.

    A model whose weights are spread over several processes (FSDP) gathers them in every step, which
    cannot be recorded.
    """
    recording = model.device.type == "cuda" and not is_sharded(model)
    make = kept_decoder if recording else Decoder
    return make(model, rows, width, max_new_tokens, choice, stops, padded=padded,
                recording=recording, replying=replying)


def is_sharded(model: nn.Module) -> bool:
    """Return whether parameters are torch.distributed's DTensors, of which a process has a part."""
    return any(type(p) is not nn.Parameter for p in model.parameters())


def is_compiled(model: Transformer) -> bool:
    """Return whether a model is compiled. One that is no Transformer, as in with_head, never is."""
    return isinstance(model, Transformer) and model.compiled


_kept: WeakKeyDictionary[Transformer, tuple[tuple, Decoder]] = WeakKeyDictionary()


def kept_decoder(model: Transformer, *sizes: Any, padded: bool, recording: bool,
                 replying: bool = False) -> Decoder:
    """Return the model's last decoder with its recordings, or a new one where it does not fit.

    It fits where all sizes, the choice and the dtypes are the same. The weights may be others, and
    in other memory.
    """
    key = (*sizes, padded, recording, replying, model.device, model.dtype,
           compute_dtype(model.dtype, model.device), is_compiled(model))
    if model in _kept and _kept[model][0] != key:
        del _kept[model]    # before the next one is made, so that its memory is free
    if model not in _kept:
        _kept[model] = key, Decoder(model, *sizes, padded=padded, recording=recording,
                                    replying=replying)
    return _kept[model][1]


def advance(model: Transformer, ids: Tensor, starts: Tensor | None, uniform: Tensor,
            keys: list[Tensor], values: list[Tensor], slot: Tensor | None,
            weights: tuple[list[Weights | None], Tensor | None], choice: Choice,
            seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Read the last token of n rows, and draw the next one.

    Shapes     ids, starts, uniform (n,), keys and values (n, K, S, D) per layer, seen (n, V) ->
               ids (n,), logp (n,)

    The token's own keys and values go into the last slot. Where `slot` is given, they go there,
    and all S slots are read, whatever they hold.
    """
    length = keys[0].shape[2] - (1 if slot is None else 0)
    blocks, output = weights
    cache = KVCache(keys, values, length=length, slot=slot, weights=blocks, head=output)

    def head(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return choose(hidden[:, -1], weight, uniform, choice, seen)

    return with_head(model, ids[:, None], head, cache=cache, starts=starts)


compiled_advance = compiled(advance, lists=(0, 2))    # for any number of rows and slots
