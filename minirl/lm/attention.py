"""Where tokens meet. Outside attention a transformer treats every token by itself, so its blocks work on a plain list of N tokens, (N, d). In
attention a context lays the list out in rows and says who sees whom:

    Rows       B rows of T tokens, each a sequence: on their own, or behind what a cache holds
    Distinct   rows that begin alike and end at many lengths: each prompt is computed once, and padding never

A context is called with q (N, H, D), k and v (N, K, D) of one layer, and gives back (N, H * D).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

SHORT = 64            # queries: on a CPU, up to here two plain matrix products take less time than the fused kernel
WORTH_A_PIECE = 0.8   # of the attention's work: what a layout in two pieces must come down to, to pay for its calls
# Fused kernels that may be chosen. Not cuDNN's, which torch puts first on a Hopper GPU: it plans every new shape, for about a second, and a batch's are new.
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class KVCache:
    """Keys and values of the tokens seen so far, preallocated: one tensor (B, K, S, D) of each per layer; `length` slots are filled.

    It is good for as long as the weights stay as they are, and so are `weights`, the blocks' weights joined and cast once for all steps. Where
    `slot` (1,) is given, it says on the device where the next token goes, and all slots are read: then no step depends on a number that the host
    must know, and a step can be recorded once and played again (decoding.py).
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], *, length: int, slot: Tensor | None = None, weights: list | None = None):
        self.keys, self.values, self.length, self.slot, self.weights = keys, values, length, slot, weights

    @classmethod
    def empty(cls, config, rows: int, slots: int, *, device=None, dtype=None, by_slot: bool = False) -> KVCache:
        """`by_slot`: in memory a slot's rows come one after the other, and not a row's slots, so that what a step writes, and what it reads, is in
        one stretch. A compiled step, one pass over all that is filled, is faster for it; products are slower."""
        K, D = config.num_kv_heads, config.head_dim

        def store() -> Tensor:
            if by_slot:                  # with a row too many: strides that were a multiple of `rows` would be compiled for rows that are all in use
                return torch.empty(slots, rows + 1, K, D, device=device, dtype=dtype)[:, :rows].permute(1, 2, 0, 3)
            return torch.empty(rows, K, slots, D, device=device, dtype=dtype)

        keys, values = ([store() for _ in range(config.num_layers)] for _ in range(2))
        return cls(keys, values, length=0)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, D) behind the filled slots of one layer; return all its keys and values, with the new ones."""
        keys, values = self.keys[layer], self.values[layer]
        if self.slot is not None:
            keys.index_copy_(2, self.slot, k.to(keys.dtype))
            values.index_copy_(2, self.slot, v.to(values.dtype))
            return keys, values
        end = self.length + k.shape[2]
        keys[:, :, self.length:end] = k
        values[:, :, self.length:end] = v
        return keys[:, :, :end], values[:, :, :end]

    def take(self, source: KVCache, rows: Tensor) -> None:
        """Make the given rows of another cache the rows of this one; only filled slots are copied."""
        self.length = source.length
        for mine, theirs in zip(self.keys + self.values, source.keys + source.values):
            mine[:, :, :self.length] = theirs[:, :, :self.length].index_select(0, rows)

    def move(self, rows: Tensor, to: Tensor) -> None:
        """Write `rows` over the rows `to`."""
        for store in self.keys + self.values:
            store[to, :, :self.length] = store[rows, :, :self.length]


def cache_dtype(dtype: torch.dtype, device: torch.device, compiled: bool) -> torch.dtype:
    """What keys and values are kept in: on a CPU, unless compiled, float32 at least, as small batched products in less take longer than in float32."""
    return torch.promote_types(dtype, torch.float32) if device.type == "cpu" and not compiled else dtype


class Rows:
    """B rows of T tokens; with a cache they continue what it holds. `starts` (B,): the slot of each row's first token, after padding on the left."""

    def __init__(self, B: int, T: int, *, device, cache: KVCache | None = None, starts: Tensor | None = None):
        before = 0 if cache is None else cache.length
        recorded = cache is not None and cache.slot is not None                                       # T is 1, and the cache knows the slot
        self.B, self.T, self.cache, self.bias = B, T, cache, None
        self.longest = before if recorded else before + T                                             # no position is beyond it
        slots = cache.slot if recorded else torch.arange(before, before + T, device=device)           # (T,)
        keys = torch.arange(self.longest, device=device)                                              # (S,)
        if starts is None:
            self.positions = slots.repeat(B)                                                          # (N,)
            if recorded or (T > 1 and (before or plain(T, device))):
                self.bias = hide(keys > slots[:, None])[None, None]                                   # (1, 1, T, S)
        else:
            starts = torch.minimum(starts[:, None], slots)                # (B, T): a padding slot sees itself, as an empty softmax would be NaN
            self.positions = (slots - starts).flatten()
            self.bias = hide((keys > slots[:, None]) | (keys < starts[..., None])).unsqueeze(1)       # (B, 1, T, S)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (self.B, self.T)).transpose(1, 2) for x in (q, k, v))               # (B, H, T, D), (B, K, T, D)
        if self.cache is not None:
            k, v = self.cache.append(layer, k, v)                                                     # (B, K, S, D)
        return attend(q, k, v, self.bias).transpose(1, 2).reshape(self.B * self.T, -1)


class Distinct:
    """The tokens that B rows have need of, each once: `tokens` (N,) at `positions` (N,); slot (b, t) of the rows is token `place[b, t]`.

    tokens (B, T); first, used (B,) on the CPU: row b begins with first[b] tokens of prompt, which rows with an equal prompt share, and needs its first
    used[b] tokens, its prompt at least.

    For attention tokens are laid out in right-padded rows, pieces of similar length at a time. A row has keys from its start and queries from where
    its own tokens begin; a shared prompt's queries are a row of their own. (The fused kernel of a GPU wants as many queries as keys, so there all
    rows have queries from the start, and those of a shared prompt are answered more than once.) What stands behind a row's end is any token, which
    no other sees. A key's gradient is the sum over the rows that it stands in.
    """

    def __init__(self, tokens: Tensor, first: Tensor, used: Tensor):
        (B, T), device = tokens.shape, tokens.device
        rows, t = torch.arange(B), torch.arange(T)
        source = same_prompt(tokens, first, used)                                                     # (B,): the row that computes the prompt
        origin = torch.where(t < first[:, None], source[:, None], rows[:, None])                      # (B, T): the row that computes each slot
        own = (t < used[:, None]) & (origin == rows[:, None])
        place = (own.flatten().cumsum(0) - 1).view(B, T)[origin, t]                                   # (B, T)
        self.tokens, self.positions = tokens[own.to(device)], t.expand(B, T)[own].to(device)
        self.place, self.longest = place.to(device), int(used.max())

        together = (torch.bincount(source[used > 0], minlength=B) > 1)[source] & (used > 0)           # (B,): has its prompt in common with others
        apart = together if plain(1, device) else torch.zeros_like(together)                          # (B,): and leaves its queries to a row of their own
        prompts = (apart & (source == rows)).nonzero().squeeze(1)
        row = torch.cat([rows, prompts])                                                              # (R,): rows, then prompts as rows
        begin = torch.cat([torch.where(apart, first, 0), torch.zeros_like(prompts)])                  # (R,): queries are [begin, end), keys [0, end)
        end = torch.cat([used, first[prompts]])
        self.pieces, queries, keys = [], [], []
        for piece in similar(end):
            width, reach = max(1, int((end - begin)[piece].max())), max(1, int(end[piece].max()))
            asked = begin[piece, None] + torch.arange(width)                                          # (r, width): where in its row a query is
            queries.append(tokens_at(place[row[piece]], asked, end[piece]))
            keys.append(tokens_at(place[row[piece]], torch.arange(reach).expand(len(piece), reach), end[piece]))
            bias = None                                                                               # as many queries as keys, and causal
            if plain(width, device) or bool(begin[piece].any()):
                asked = asked[:1] if bool((asked == asked[0]).all()) else asked
                bias = hide(torch.arange(reach) > asked[..., None]).unsqueeze(1).to(device)           # (1 or r, 1, width, reach)
            self.pieces.append((len(piece), width, reach, bias))

        queries, keys = torch.cat(queries), torch.cat(keys)                                           # (slots,): their tokens, -1 behind a row's end
        slots, start, _ = by_token(queries, len(self.tokens))
        home = slots[start]                                                                           # (N,): the slot that asks for a token
        answers = torch.zeros(len(queries), dtype=torch.bool).index_fill_(0, home, True)
        slots, start, count = by_token(keys, len(self.tokens))
        shared = sharers(slots, start, count)                                                         # a shared token's key stands in many slots
        self.as_they_are = all(torch.equal(x, torch.arange(len(self.tokens))) for x in (queries, keys))
        self.queries, self.home, self.answers = queries.clamp(min=0).to(device), home.to(device), answers.to(device)
        self.keys, self.key_home = keys.clamp(min=0).to(device), slots[start].to(device)
        self.shared = shared and tuple(x.to(device) for x in shared)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (N, H, D), K = q.shape, k.shape[1]
        q, kv = q.reshape(N, H * D), torch.cat([k, v], dim=1).flatten(1)
        if not self.as_they_are:
            q = _Take.apply(q, self.queries, self.home, None, None)
            kv = _Take.apply(kv, self.keys, self.key_home, None, self.shared)
        out = []
        queries = q.split([n * width for n, width, _, _ in self.pieces])
        keys = kv.split([n * reach for n, _, reach, _ in self.pieces])
        for (n, width, reach, bias), q, kv in zip(self.pieces, queries, keys):
            k, v = kv.view(n, reach, 2 * K, D).transpose(1, 2).split(K, dim=1)                        # (n, K, reach, D)
            found = attend(q.view(n, width, H, D).transpose(1, 2), k, v, bias)                        # (n, H, width, D)
            out.append(found.transpose(1, 2).reshape(n * width, H * D))
        out = torch.cat(out) if len(out) > 1 else out[0]
        return out if self.as_they_are else _Take.apply(out, self.home, self.queries, self.answers, None)


def tokens_at(place: Tensor, at: Tensor, end: Tensor) -> Tensor:
    """The tokens at places `at` (r, w) of rows, place (r, T); -1 behind a row's end. (r * w,)"""
    return torch.where(at < end[:, None], place.gather(1, at.clamp(max=place.shape[1] - 1)), -1).flatten()


def by_token(tokens: Tensor, N: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slots in the order of their tokens (N of them; -1 is none), and for each token where its slots start in that order, and how many they are."""
    real = (tokens >= 0).nonzero().squeeze(1)
    count = torch.bincount(tokens[real], minlength=N)
    return real[tokens[real].argsort(stable=True)], count.cumsum(0) - count, count


def sharers(slots: Tensor, start: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """From by_token: the tokens with more than one slot (M,), their slots (M, U), and which of these are theirs (M, U); None where there are none."""
    shared, n = (count > 1).nonzero().squeeze(1), torch.arange(int(count.max()) if len(count) else 0)
    users = slots[(start[shared, None] + n).clamp(max=len(slots) - 1)]
    return (shared, users, n < count[shared, None]) if len(shared) else None


class _Take(torch.autograd.Function):
    """x (n, F) -> x[there] (m, F), where back (n,) says which of the m has a row's gradient: `answers` (n,), if any has, `shared`, if more than one.

    Both directions only read, in a fixed order: no scattered additions, and the same bits every time.
    """

    @staticmethod
    def forward(ctx, x, there, back, answers, shared):
        ctx.index = back, answers, shared
        return x.index_select(0, there)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        back, answers, shared = ctx.index
        out = grad.index_select(0, back)
        if answers is not None:
            out.mul_(answers[:, None])
        if shared is not None:
            rows, users, valid = shared                                                               # (M,), (M, U), (M, U)
            out[rows] = (grad[users] * valid[..., None]).sum(1).to(out.dtype)                         # under autocast CUDA sums in float32
        return out, None, None, None, None


def take(x: Tensor, there: Tensor) -> Tensor:
    """x (n, F) -> x[there] (m, F), with the same bits in the gradient every time, however often a row is taken.

    Indexing adds a row's gradients up in any order, where a CPU has several threads; from three on the sum depends on it.
    """
    if x.is_cuda or not x.requires_grad or len(there) == 0:
        return x[there]
    slots, start, count = by_token(there, len(x))
    return _Take.apply(x, there, slots[start.clamp(max=len(slots) - 1)], count > 0, sharers(slots, start, count))


def same_prompt(tokens: Tensor, first: Tensor, used: Tensor) -> Tensor:
    """For each row the first row with the same prompt (first[b] tokens), itself where it is alone. (B,) on the CPU."""
    known, source = {}, []
    for b, (row, length, some) in enumerate(zip(tokens[:, :max(1, int(first.max()))].tolist(), first.tolist(), (used > 0).tolist())):
        key = tuple(row[:length]) if some else b
        source.append(known.setdefault(key, b))
    return torch.tensor(source)


def similar(lengths: Tensor) -> list[Tensor]:
    """Rows in pieces of similar length, up to four of them, where padding to the longest of a piece costs attention clearly less. (B,) -> indices."""
    def split(rows: Tensor, depth: int) -> list[Tensor]:                                              # rows from long to short
        n, sizes = len(rows), lengths[rows].double() ** 2
        count = torch.arange(1, n)
        cost = sizes[0] * count + sizes[1:] * (n - count)                                             # of cutting behind each row
        if depth == 0 or n < 2 or cost.min() > WORTH_A_PIECE * sizes[0] * n:
            return [rows.sort().values]
        cut = int(cost.argmin()) + 1
        return split(rows[:cut], depth - 1) + split(rows[cut:], depth - 1)
    return split(lengths.argsort(descending=True, stable=True), 2)


def hide(hidden: Tensor) -> Tensor:
    """What attention adds to a score: minus infinity where `hidden` is true."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))


def plain(queries: int, device) -> bool:
    """Whether attention of so many queries is two matrix products, and not the fused kernel."""
    return torch.device(device).type == "cpu" and queries <= SHORT


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """q (B, H, T, D) over k, v (B, K, S, D); added to the scores is `bias` (B or 1, 1, T, S), or without one T == S is causal and one query sees all."""
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    if not plain(T, q.device):
        mask = None if bias is None else bias.to(q.dtype)
        if T == 1:                                                                  # a key/value head's query heads are its queries: keys are read once
            q, mask = q.reshape(B, K, H // K, D), mask if mask is None else mask.expand(-1, 1, H // K, S)
        with sdpa_kernel(FUSED):
            found = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask, is_causal=bias is None and T > 1,
                                                   enable_gqa=H != K and T > 1)
        return found.reshape(B, H, T, D)
    if bias is None and T > 1:
        bias = hide(torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1))[None, None]
    if T == 1 and torch.compiler.is_compiling():                                    # which makes one pass of it; left to themselves, products are faster
        wide = torch.promote_types(k.dtype, torch.float32)
        one, keys, values = q.view(B, K, H // K, 1, D).to(wide), k[:, :, None].to(wide), v[:, :, None].to(wide)
        scores = (one * D ** -0.5 * keys).sum(-1)                                                                      # (B, K, H/K, S)
        scores = scores if bias is None else scores + bias
        e = (scores - scores.amax(-1, keepdim=True)).exp()                          # divided by their sum at the end: D numbers, and not S * D
        return ((e[..., None] * values).sum(-2) / e.sum(-1, keepdim=True)).view(B, H, T, D).to(q.dtype)
    with torch.autocast(q.device.type, enabled=False):                              # in what the keys are kept in
        q_rows = q.reshape(B * K, H // K * T, D).to(k.dtype)                        # a key/value head serves H/K query heads
        if bias is None:
            start, beta = q_rows.new_zeros(1, 1, 1), 0
        else:
            start, beta = bias.to(k.dtype).expand(B, H, T, S).reshape(B * K, -1, S) if len(bias) > 1 or K < H else bias[0].to(k.dtype), 1
        scores = torch.baddbmm(start, q_rows, k.reshape(B * K, S, D).transpose(1, 2), beta=beta, alpha=D ** -0.5)      # (B * K, H/K * T, S)
        p = scores.softmax(-1, dtype=torch.promote_types(k.dtype, torch.float32)).to(v.dtype)
        return torch.bmm(p, v.reshape(B * K, S, D)).view(B, H, T, D).to(q.dtype)
