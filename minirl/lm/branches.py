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
from minirl.lm.choice import Choice, check_finite, ids_of
from minirl.lm.decoding import ASK, WORTH_LEAVING, advance, compiled_advance, is_compiled
from minirl.lm.model import Transformer, hidden_alone, with_head
from minirl.lm.precision import compute_dtype
from minirl.lm.replies import DRAWN

ROOM = 32     # slots: rows that grow token by token move to a larger cache once in so many steps


class Branches:
    """Rows of tokens that grow. At first there is one for each of P prompts.

    tokens     each row's ids, its prompt among them
    computed   tokens that the model has read so far, padding not counted

    The model has read all tokens of a row but the last one, or few more. The last token of a prompt
    is therefore read by each of its rows, in the step that draws its next token.
    """

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.computed = model, 0
        self._compiled = is_compiled(model) and model.device.type == "cpu"
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
            with _asking(model):
                with_head(model, torch.tensor(padded, device=model.device), hidden_alone,
                          cache=self._cache, starts=self._starts())
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
        self._align(max(steps), max(steps))
        with _asking(self.model):
            new, lengths = self._grow(given, steps, stops, choice, generator)
        drawn = [row[len(ids):length] for row, ids, length in zip(
            new[:, :max(lengths)].tolist(), given, lengths, strict=True)]
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
        self._align(1, ROOM)
        last = torch.tensor([row[-1] for row in self.tokens], device=self.model.device)  # (n,)
        starts = self._starts()

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            return F.linear(hidden[:, -1].to(weight.dtype), weight)  # (n, V)

        with _asking(self.model):
            logits = with_head(self.model, last[:, None], head, cache=self._cache, starts=starts)
        self.computed += len(self.tokens)
        self._cached = [cached + 1 for cached in self._cached]
        return logits

    def _grow(self, given: list[list[int]], steps: list[int], stops: Iterable[int], choice: Choice,
              generator: torch.Generator | None) -> tuple[Tensor, list[int]]:
        """Return each row's new tokens (n, steps), those that it was given first, and their
        number."""
        device, n, total = self.model.device, len(steps), max(steps)
        asks, last_steps = ASK.get(device.type, ASK["cuda"]), set(steps)
        source = generator.device if generator is not None else device
        uniform = torch.rand(total, n, generator=generator, device=source).to(device)
        forced, longest = _table(given, total).to(device), max(map(len, given))
        stop_ids = torch.tensor(list(stops), dtype=torch.long, device=device)
        limits = torch.tensor(steps, device=device)  # (n,)
        ids = torch.tensor([tokens[cached] for tokens, cached in zip(
            self.tokens, self._cached, strict=True)], device=device)  # (n,)
        new, logp_sum = torch.zeros_like(forced), torch.zeros((), device=device)
        # row[i] stands at place i of the cache; those that grow stand at the first m places
        row, ended, m = torch.arange(n, device=device), torch.zeros_like(ids, dtype=torch.bool), n
        starts, seen = self._starts(), self._seen() if choice.repetition_penalty != 1 else None
        if starts is None and self._compiled:       # compiled steps have one form
            starts = torch.zeros_like(row)
        for t in range(total):
            here = row[:m]
            drawn, logp = self._step(ids[:m], None if starts is None else starts[here],
                                     uniform[t, here], choice, None if seen is None else seen[here])
            stopped = torch.isin(drawn, stop_ids)  # (m,)
            if t < longest:
                draws = forced[here, t] == DRAWN  # (m,)
                drawn, stopped = torch.where(draws, drawn, forced[here, t]), stopped & draws
            if seen is not None:
                seen[here, drawn] = True
            ids[:m] = new[here, t] = drawn
            logp_sum += logp.sum()
            ended[:m] |= stopped | (limits[here] == t + 1)
            # a row whose limit is reached may fill the context: it must not stay
            full = t + 1 in last_steps
            if (full or (t + 1) % asks == 0) and not (m := self._leave(m, row, ids, ended, full)):
                break
        self._place = row.argsort().tolist()
        check_finite(logp_sum)
        return new, _lengths(torch.isin(new, stop_ids) & (forced == DRAWN), limits)

    def _step(self, ids: Tensor, starts: Tensor | None, uniform: Tensor, choice: Choice,
              seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Read the last token of the first m rows of the cache, and draw: ids and logp, (m,)."""
        cache, m = self._cache, len(ids)
        cache.length, self.computed = cache.length + 1, self.computed + m
        keys, values = ([x[:m, :, :cache.length] for x in store]
                        for store in (cache.keys, cache.values))
        # One row would be compiled anew, and so would the joining of the weights.
        run = compiled_advance if self._compiled and m > 1 and cache.head is not None else advance
        return run(self.model, ids, starts, uniform, keys, values, None,
                   (cache.weights, cache.head), choice, seen)

    def _leave(self, m: int, row: Tensor, ids: Tensor, ended: Tensor, all_leave: bool) -> int:
        """Let those of the first m rows that have ended leave, where they are enough or `all_leave`
        -> how many stay. Their part of the cache is kept behind that of the others."""
        stay = m - int(ended[:m].sum())
        if stay == 0 or stay == m or m - stay < WORTH_LEAVING * m and not all_leave:
            return m if stay else 0
        back = stay + (~ended[stay:m]).nonzero().squeeze(1)     # they grow on, further in front
        front = ended[:stay].nonzero().squeeze(1)
        here, there = torch.cat([front, back]), torch.cat([back, front])
        self._cache.move(there, here)
        for x in (row, ids, ended):
            x[here] = x[there]
        return stay

    def _unread(self) -> list[int]:
        """Where each row's unread tokens begin: the last token is always read anew."""
        self._cached[:] = [min(cached, len(row) - 1) for cached, row in zip(
            self._cached, self.tokens, strict=True)]
        return self._cached

    def _starts(self) -> Tensor | None:
        """The slot of each row's first token, (n,); None where no row has padding."""
        return torch.tensor(self._start, device=self.model.device) if any(self._start) else None

    def _seen(self) -> Tensor:
        """Which ids each row holds, those that it was given and has not read yet too, (n, V)."""
        width = max(map(len, self.tokens))
        padding = torch.tensor([width - len(row) for row in self.tokens], device=self.model.device)
        padded = [[0] * (width - len(row)) + row for row in self.tokens]
        return ids_of(torch.tensor(padded, device=self.model.device), padding,
                      self.model.config.vocab_size)

    def _align(self, more: int, room: int) -> None:
        """Let all rows end in the same slot of the cache, with room for `more` behind it, and for
        `room` where another cache must be made.

        Keys are turned by their position in the row, which does not change: they can be moved.
        """
        old, n, width = self._cache, len(self._place), max(self._cached)
        ends = {start + cached for start, cached in zip(self._start, self._cached, strict=True)}
        old_rows, heads, slots, _ = old.keys[0].shape
        if ends == {width} and self._place == list(range(old_rows)) and width + more <= slots:
            old.length = width
            return
        device = self.model.device
        place, start, cached = (torch.tensor(column, device=device) for column in (
            self._place, self._start, self._cached))  # (n,)
        new = self._cache = self._empty(n, width + room)
        new.weights, new.head, old.length = old.weights, old.head, width
        if ends == {width}:
            new.take(old, place)
        elif width:
            shift = start - (width - cached)  # (n,)
            slot = (torch.arange(width, device=device) + shift[:, None]).clamp(min=0)  # (n, width)
            head = place[:, None] * heads + torch.arange(heads, device=device)  # (n, K)
            index = head[..., None] * slots + slot[:, None]  # (n, K, width)
            for own, other in zip(new.keys + new.values, old.keys + old.values, strict=True):
                own[:, :, :width] = F.embedding(index, other.flatten(0, 2))
        new.length = width
        self._place, self._start = list(range(n)), (width - cached).tolist()

    def _empty(self, rows: int, slots: int) -> KVCache:
        model, device = self.model, self.model.device
        dtype = cache_dtype(compute_dtype(model.dtype, device), device, self._compiled)
        return KVCache.empty(model.config, rows, slots, device=device, dtype=dtype,
                             by_slot=self._compiled)


def _table(given: list[list[int]], width: int) -> Tensor:
    """The ids that each row is given, and DRAWN where it draws, (n, width)."""
    table = torch.full((len(given), width), DRAWN)
    for i, ids in enumerate(given):
        if ids:
            table[i, :len(ids)] = torch.tensor(ids)
    return table


def _lengths(stopped: Tensor, limits: Tensor) -> list[int]:
    """How many tokens each row has, up to its first stop or its limit. (n, steps), (n,) -> n"""
    allowed = torch.arange(stopped.shape[1], device=limits.device) < limits[:, None]
    stopped = stopped & allowed  # (n, steps): a row that left late may have more
    return torch.where(stopped.any(1), stopped.int().argmax(1) + 1, limits).tolist()


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
