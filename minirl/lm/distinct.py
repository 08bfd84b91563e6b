"""Rows that share prompts and end at many lengths, with each token computed once.

In a batch of rollouts, the rows of one group begin with the same prompt, and rows end at different
lengths. `Distinct` lists the tokens that must be computed: each prompt once, and no padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minirl.lm.attention import attend, hide, plain

WORTH_A_PIECE = 0.8   # share of attention's work that is left after a cut which pays for its calls

Sharers = tuple[Tensor, Tensor, Tensor]


class Distinct:
    """The tokens that B rows need, each once: `tokens` (N,) at `positions` (N,).

    tokens (B, T); prompt, lengths (B,), on the CPU: row b begins with a prompt of prompt[b] tokens,
    which it shares with all rows that have the same prompt, and it needs its first lengths[b]
    tokens, at least its prompt. Slot (b, t) of the rows is token `place[b, t]` of the list.

    For attention, tokens are laid out in rows with padding on the right, pieces of similar length
    at a time. A row has keys from its start, and queries from its first own token. The queries of
    a shared prompt are a row of their own. (The fused kernel of a GPU needs as many queries as
    keys. So there all rows have queries from the start, and those of a shared prompt are answered
    more than once.) Any token may stand after the end of a row, as no other one sees it. A key's
    gradient is the sum over the rows in which it stands.
    """

    def __init__(self, tokens: Tensor, prompt: Tensor, lengths: Tensor) -> None:
        (B, T), device = tokens.shape, tokens.device
        rows, t = torch.arange(B), torch.arange(T)
        source = same_prompt(tokens, prompt, lengths)  # (B,): the row that computes the prompt
        # (B, T): the row that computes each slot
        origin = torch.where(t < prompt[:, None], source[:, None], rows[:, None])
        own = (t < lengths[:, None]) & (origin == rows[:, None])  # (B, T)
        place = (own.flatten().cumsum(0) - 1).view(B, T)[origin, t]  # (B, T)
        self.tokens = tokens[own.to(device)]  # (N,)
        self.positions = t.expand(B, T)[own].to(device)  # (N,)
        self.place, self.longest = place.to(device), int(lengths.max())
        queries, keys = self._cut(place, source, prompt, lengths, device)
        self._index(queries, keys, device)

    def _cut(self, place: Tensor, source: Tensor, prompt: Tensor, lengths: Tensor,
             device: torch.device) -> tuple[Tensor, Tensor]:
        """Lay the rows out in pieces; return the tokens of all queries and of all keys.

        -1 stands after a row's end.
        """
        B = len(source)
        rows = torch.arange(B)
        several = (torch.bincount(source[lengths > 0], minlength=B) > 1)[source]
        shares_prompt = several & (lengths > 0)  # (B,): the row shares its prompt with others
        # (B,): and so leaves the prompt's queries to a row of their own
        apart = shares_prompt if plain(1, device) else torch.zeros_like(shares_prompt)
        prompts = (apart & (source == rows)).nonzero().squeeze(1)
        row = torch.cat([rows, prompts])  # (R,): the rows, then the prompts as rows
        # (R,): a row has the queries [begin, end) and the keys [0, end)
        begin = torch.cat([torch.where(apart, prompt, 0), torch.zeros_like(prompts)])
        end = torch.cat([lengths, prompt[prompts]])

        self.pieces, queries, keys = [], [], []
        for piece in similar(end):
            width = max(1, int((end - begin)[piece].max()))
            reach = max(1, int(end[piece].max()))
            at = begin[piece, None] + torch.arange(width)  # (r, width): a query's slot in its row
            every = torch.arange(reach).expand(len(piece), reach)
            queries.append(tokens_at(place[row[piece]], at, end[piece]))
            keys.append(tokens_at(place[row[piece]], every, end[piece]))
            bias = None  # causal, with as many queries as keys
            if plain(width, device) or bool(begin[piece].any()):
                at = at[:1] if bool((at == at[0]).all()) else at
                # (1 or r, 1, width, reach)
                bias = hide(torch.arange(reach) > at[..., None]).unsqueeze(1).to(device)
            self.pieces.append((len(piece), width, reach, bias))
        return torch.cat(queries), torch.cat(keys)

    def _index(self, queries: Tensor, keys: Tensor, device: torch.device) -> None:
        """Find the slots of each token, in both directions."""
        every = torch.arange(len(self.tokens))
        slots, start, _ = by_token(queries, len(every))
        home = slots[start]  # (N,): the slot of a token's query
        answers = torch.zeros(len(queries), dtype=torch.bool).index_fill_(0, home, True)
        slots, start, count = by_token(keys, len(every))
        shared = sharers(slots, start, count)
        self.as_they_are = all(torch.equal(x, every) for x in (queries, keys))
        self.queries, self.home = queries.clamp(min=0).to(device), home.to(device)
        self.answers = answers.to(device)
        self.keys, self.key_home = keys.clamp(min=0).to(device), slots[start].to(device)
        self.shared_keys = None
        if shared is not None:
            self.shared_keys = tuple(x.to(device) for x in shared)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (N, H, D), K = q.shape, k.shape[1]
        q, kv = q.reshape(N, H * D), torch.cat([k, v], dim=1).flatten(1)
        if not self.as_they_are:
            q = _Take.apply(q, self.queries, self.home, None, None)
            kv = _Take.apply(kv, self.keys, self.key_home, None, self.shared_keys)
        parts = []
        queries = q.split([n * width for n, width, _, _ in self.pieces])
        keys = kv.split([n * reach for n, _, reach, _ in self.pieces])
        for (n, width, reach, bias), q, kv in zip(self.pieces, queries, keys, strict=True):
            q = q.view(n, width, H, D).transpose(1, 2)  # (n, H, width, D)
            # (n, K, reach, D)
            k, v = kv.view(n, reach, 2 * K, D).transpose(1, 2).split(K, dim=1)
            piece = attend(q, k, v, bias)  # (n, H, width, D)
            parts.append(piece.transpose(1, 2).reshape(n * width, H * D))
        out = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.as_they_are:
            return out
        return _Take.apply(out, self.home, self.queries, self.answers, None)


def same_prompt(tokens: Tensor, prompt: Tensor, lengths: Tensor) -> Tensor:
    """For each row, return the first row with the same prompt, maybe itself. (B,), on the CPU."""
    width = max(1, int(prompt.max()))
    columns = tokens[:, :width].tolist(), prompt.tolist(), (lengths > 0).tolist()
    first_row: dict[object, int] = {}
    source = []
    for b, (ids, length, some) in enumerate(zip(*columns, strict=True)):
        key = tuple(ids[:length]) if some else b
        source.append(first_row.setdefault(key, b))
    return torch.tensor(source)


def similar(lengths: Tensor) -> list[Tensor]:
    """Split rows into up to four pieces of similar length. (B,) -> the rows of each piece.

    A cut is made where it saves clearly more of attention's work, which grows with the square of
    the longest row in a piece, than its calls cost.
    """
    def split(rows: Tensor, depth: int) -> list[Tensor]:  # rows: from long to short
        n, sizes = len(rows), lengths[rows].double() ** 2
        count = torch.arange(1, n)
        cost = sizes[0] * count + sizes[1:] * (n - count)  # (n - 1,): of a cut after each row
        if depth == 0 or n < 2 or cost.min() > WORTH_A_PIECE * sizes[0] * n:
            return [rows.sort().values]
        at = int(cost.argmin()) + 1
        return split(rows[:at], depth - 1) + split(rows[at:], depth - 1)

    return split(lengths.argsort(descending=True, stable=True), 2)


def tokens_at(place: Tensor, at: Tensor, end: Tensor) -> Tensor:
    """Return the tokens at slots `at` (r, w) of rows, place (r, T): (r * w,), -1 after an end."""
    tokens = place.gather(1, at.clamp(max=place.shape[1] - 1))
    return torch.where(at < end[:, None], tokens, -1).flatten()


def by_token(tokens: Tensor, N: int) -> tuple[Tensor, Tensor, Tensor]:
    """Group slots by their token: tokens (slots,), -1 for none.

    Returns all slots that have a token, in the order of their tokens, and for each of the N tokens
    where its slots start in that order, and how many it has.
    """
    real = (tokens >= 0).nonzero().squeeze(1)
    count = torch.bincount(tokens[real], minlength=N)
    return real[tokens[real].argsort(stable=True)], count.cumsum(0) - count, count


def sharers(slots: Tensor, start: Tensor, count: Tensor) -> Sharers | None:
    """Of by_token's results, return those of tokens with several slots; None where there are none.

    These are the tokens (M,), their slots (M, U), and which of these slots are theirs (M, U).
    """
    shared = (count > 1).nonzero().squeeze(1)
    if len(shared) == 0:
        return None
    n = torch.arange(int(count.max()))
    users = slots[(start[shared, None] + n).clamp(max=len(slots) - 1)]
    return shared, users, n < count[shared, None]


class _Take(torch.autograd.Function):
    """x (n, F) -> x[there] (m, F), with a gradient that is only read, in a fixed order.

    back (n,) says in which of the m rows a row of x stands. `answers` (n,) is false for rows of x
    that are not taken, whose gradient is 0; `shared` lists those that are taken several times.
    Nothing is scattered, so the bits are the same every time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, answers: Tensor | None,
                shared: Sharers | None) -> Tensor:
        ctx.index = back, answers, shared
        return x.index_select(0, there)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        back, answers, shared = ctx.index
        out = grad.index_select(0, back)
        if answers is not None:
            out.mul_(answers[:, None])
        if shared is not None:
            rows, users, valid = shared  # (M,), (M, U), (M, U)
            total = (grad[users] * valid[..., None]).sum(1)  # under autocast CUDA sums in float32
            out[rows] = total.to(out.dtype)
        return out, None, None, None, None


def take(x: Tensor, there: Tensor) -> Tensor:
    """x (n, F) -> x[there] (m, F), with the same bits in the gradient every time.

    The gradient of indexing adds the gradients of a row that is taken several times in the order
    in which the threads of a CPU come, and from three on the sum depends on this order.
    """
    if x.is_cuda or not x.requires_grad or len(there) == 0:
        return x[there]
    slots, start, count = by_token(there, len(x))
    back = slots[start.clamp(max=len(slots) - 1)]
    return _Take.apply(x, there, back, count > 0, sharers(slots, start, count))
