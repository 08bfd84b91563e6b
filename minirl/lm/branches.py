"""Rows that branch: they grow by some tokens, are copied, dropped, cut back or given tokens, and
grow on, over one cache.

`sampling.sample` reads its prompts, grows its rows once and is done. A search asks again and again
how its rows go on, and what they share is read once for all of them: a prompt for its rows, and a
row for its copies.

>>> from minirl.lm.model import ModelConfig, Transformer
>>> branches = Branches(Transformer(ModelConfig(vocab_size=10)), [[3, 1, 4, 1, 5]])
>>> branches.select([0, 0, 0])                                # three rows of one prompt
>>> first = branches.grow([2, 2, 2], stops=[], choice=Choice(1.0, 0, 1.0))
>>> branches.select([1, 1])                                   # two copies of the second row
>>> second = branches.grow([3, 3], stops=[], choice=Choice(1.0, 0, 1.0))
>>> [len(row) for row in branches.tokens]
[10, 10]
>>> branches.computed     # 4 tokens of the prompt, once, and one token for each that was drawn
16
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirl.lm.cache import KVCache, cache_dtype
from minirl.lm.choice import Choice
from minirl.lm.decoding import WORTH_LEAVING, advance
from minirl.lm.model import Transformer, hidden_alone, with_head
from minirl.lm.precision import compute_dtype
from minirl.lm.replies import DRAWN


class Branches:
    """Rows of tokens that grow. At first there is one for each of P prompts.

    tokens     each row's ids, its prompt among them
    computed   tokens that the model has read so far, padding not counted

    The model has read all tokens of a row but the last one, or few more. The last token of a prompt
    is therefore read by each of its rows, in the step that draws its next token.
    """

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.computed = model, 0
        self.tokens = [list(prompt) for prompt in prompts]
        P = len(self.tokens)
        self._cached = [len(prompt) - 1 for prompt in self.tokens]    # tokens in the cache
        width = max(self._cached, default=0)
        self._place = list(range(P))                            # rows of the cache
        self._start = [width - length for length in self._cached]     # slots of the first token
        self._cache = self._empty(P, width)
        if width:
            padded = [[0] * start + row[:-1] for start, row in zip(self._start, self.tokens,
                                                                   strict=True)]
            starts = torch.tensor(self._start, device=model.device)  # (P,)
            with _asking(model):
                with_head(model, torch.tensor(padded, device=model.device), hidden_alone,
                          cache=self._cache, starts=starts)
            self.computed += sum(self._cached)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order. A row that is named twice becomes two."""
        self.tokens = [list(self.tokens[i]) for i in rows]
        for column in (self._cached, self._place, self._start):
            column[:] = [column[i] for i in rows]

    def give(self, row: int, ids: Iterable[int]) -> None:
        """Put tokens behind a row. They are read when it grows."""
        self.tokens[row] += ids

    def take_back(self, row: int) -> int:
        """Remove a row's last token, and return it."""
        last = self.tokens[row].pop()
        self._cached[row] = min(self._cached[row], len(self.tokens[row]))
        return last

    def grow(self, limits: Sequence[int], *, stops: Iterable[int], choice: Choice,
             generator: torch.Generator | None = None) -> list[list[int]]:
        """Let row i draw tokens up to the first stop, and limits[i] of them at most -> what each
        row drew.

        Raises     ValueError for a limit below 1 and for logits that are not finite.

        A row that has ended leaves the batch. Tokens that were given are read one in each step,
        while other rows draw.
        """
        if len(limits) != len(self.tokens) or min(limits, default=1) < 1:
            raise ValueError(f"limits are {list(limits)[:8]} for {len(self.tokens)} rows: a number "
                             "of tokens for each, at least 1, is wanted")
        if not self.tokens:
            return []
        given = [row[cached + 1:] for row, cached in zip(self.tokens, self._unread(), strict=True)]
        steps = [len(ids) + limit for ids, limit in zip(given, limits, strict=True)]
        cache, starts = self._aligned(max(steps))
        with _asking(self.model):
            new, lengths = self._grow(cache, starts, given, steps, stops, choice, generator)
        drawn = [row[len(ids):length] for row, ids, length in zip(
            new.tolist(), given, lengths, strict=True)]
        for i, ids in enumerate(drawn):
            self.tokens[i] += ids
            self._cached[i] += lengths[i]
        return drawn

    def next_logits(self) -> Tensor:
        """Return the logits of each row's next token, (n, V)."""
        if any(len(row) - cached > 1 for row, cached in zip(self.tokens, self._unread(),
                                                            strict=True)):
            raise ValueError("a row was given several tokens: grow reads them, next_logits does "
                             "not")
        cache, starts = self._aligned(1)
        last = torch.tensor([row[-1] for row in self.tokens], device=self.model.device)  # (n,)

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            return F.linear(hidden[:, -1].to(weight.dtype), weight)  # (n, V)

        with _asking(self.model):
            logits = with_head(self.model, last[:, None], head, cache=cache, starts=starts)
        self.computed += len(self.tokens)
        self._cached = [cached + 1 for cached in self._cached]
        return logits

    def _grow(self, cache: KVCache, starts: Tensor, given: list[list[int]], steps: list[int],
              stops: Iterable[int], choice: Choice, generator: torch.Generator | None
              ) -> tuple[Tensor, list[int]]:
        """Return each row's new tokens (n, steps), those that it was given first, and their
        number."""
        device, n, total = self.model.device, len(steps), max(steps)
        forced = torch.full((n, total), DRAWN)
        for i, entries in enumerate(given):
            forced[i, :len(entries)] = torch.tensor(entries, dtype=torch.long)
        forced, stop_ids = forced.to(device), torch.tensor(list(stops), device=device).long()
        source = generator.device if generator is not None else device
        uniform = torch.rand(total, n, generator=generator, device=source).to(device)
        row, limit = torch.arange(n, device=device), torch.tensor(steps, device=device)  # (n,)
        ids = torch.tensor([tokens[cached] for tokens, cached in zip(
            self.tokens, self._cached, strict=True)], device=device)  # (n,)
        new, lengths = torch.zeros_like(forced), limit.clone()
        finite = torch.ones((), dtype=torch.bool, device=device)
        for t in range(total):
            end, m = cache.length + 1, len(ids)
            drawn_ids, logp = advance(
                self.model, ids, starts[row], uniform[t, row], [x[:m, :, :end] for x in cache.keys],
                [x[:m, :, :end] for x in cache.values], None, (cache.weights, cache.head), choice)
            cache.length = end
            self.computed += m
            drawn = forced[row, t] == DRAWN  # (m,)
            ids = torch.where(drawn, drawn_ids, forced[row, t])
            finite &= (logp.isfinite() | ~drawn).all()
            new[row, t] = ids
            stopped = drawn & torch.isin(ids, stop_ids) & (t < lengths[row])
            lengths[row[stopped]] = t + 1
            running = t + 1 < lengths[row]  # (m,)
            if not bool(running.any()):
                break
            row, ids = self._leave(cache, running, row, ids)
        if not bool(finite):
            raise ValueError("the model gave logits that are not finite: its weights hold NaN or "
                             "infinity, or overflow in its dtype; go back to an earlier "
                             "checkpoint, or use float32")
        return new, lengths.tolist()

    def _leave(self, cache: KVCache, running: Tensor, row: Tensor, ids: Tensor
               ) -> tuple[Tensor, Tensor]:
        """Let the rows that have ended leave, where they are enough. Their part of the cache is
        kept behind that of the others."""
        m, stay = len(running), int(running.sum())
        if m - stay < WORTH_LEAVING * m:
            return row, ids
        rows = stay + running[stay:].nonzero().squeeze(1)
        places = (~running[:stay]).nonzero().squeeze(1)
        here, there = torch.cat([places, rows]), torch.cat([rows, places])
        cache.move(there, here)
        row[here], ids[here] = row[there], ids[there]
        for place, i in enumerate(row.tolist()):
            self._place[i] = place
        return row[:stay], ids[:stay]

    def _unread(self) -> list[int]:
        """Where each row's unread tokens begin: the last token is always read anew."""
        self._cached[:] = [min(cached, len(row) - 1) for cached, row in zip(
            self._cached, self.tokens, strict=True)]
        return self._cached

    def _aligned(self, more: int) -> tuple[KVCache, Tensor]:
        """Make a cache in which all rows end in the same slot, with room for more -> it, and the
        slot at which each row starts.

        Keys are turned by their position in the row, which does not change: they can be moved.
        """
        device, width = self.model.device, max(self._cached)
        place, old, cached = (torch.tensor(column, device=device) for column in (
            self._place, self._start, self._cached))  # (n,)
        starts = width - cached  # (n,)
        cache = self._empty(len(place), width + more)
        cache.length, cache.weights, cache.head = width, self._cache.weights, self._cache.head
        slots = (torch.arange(width, device=device) - starts[:, None] + old[:, None]).clamp(min=0)
        if width:
            for own, other in zip(cache.keys + cache.values, self._cache.keys + self._cache.values,
                                  strict=True):
                own[:, :, :width] = other[place[:, None], :, slots].transpose(1, 2)
        self._cache, self._start = cache, starts.tolist()
        self._place = list(range(len(place)))
        return cache, starts

    def _empty(self, rows: int, slots: int) -> KVCache:
        model, device = self.model, self.model.device
        dtype = cache_dtype(compute_dtype(model.dtype, device), device, compiled=False)
        cache = KVCache.empty(model.config, rows, slots, device=device, dtype=dtype)
        for store in cache.keys + cache.values:
            store.zero_()    # slots of padding are multiplied by 0, so they must hold numbers
        return cache


@contextmanager
def _asking(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
