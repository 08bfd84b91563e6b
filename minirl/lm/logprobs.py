"""Log-probabilities of given tokens.

This is the one file that shifts by one, and the one that turns logits into log-probs in training.

    token_logprobs     log π(tokens[t] | tokens[:t]) at slot t, from a model, as every objective
                       takes it
    linear_logprobs    the same for N hidden states and the output matrix, without holding (N, V)
                       logits

Why chunks. A log-prob needs V logits, of which all but one are thrown away. For 16,384 tokens and
a vocabulary of 151,936 they take 10 GB in float32, and autograd would keep as much again for their
gradient. But both directions need them only for a moment. With z = h Wᵀ / T, m = max z and

    s = Σ_j exp(z_j - m),    w = Σ_j exp(z_j - m) (z_j - m)

the log-prob of token y is z_y - L with L = logsumexp(z) = m + log s. As log p_j = z_j - m - log s,
the entropy is

    H = -Σ_j p_j log p_j = log s - w / s.

So one pass over a chunk's logits finds everything, and only L and H are kept, two numbers per row.
Backwards,

    ∂logp / ∂z_j = 1{j = y} - p_j            (softmax minus one-hot, with the sign of a log-prob)
    ∂H    / ∂z_j = -p_j (log p_j + H)        (as ∂log p_i / ∂z_j = 1{i = j} - p_j,
                                              and Σ_i p_i log p_i = -H)

With a and b the gradients that arrive for logp and H, the gradient of z_j is therefore
a 1{j = y} - p_j (a + b (log p_j + H)), and p_j comes from z_j and L alone. Each chunk's z is
computed a second time, one pass turns it into its gradient in place, and two products carry that
on to h and W.

Cost. Four matrix products instead of three (z, z again, ∂h, ∂W), one read of z forwards, one read
and one write backwards, and the memory of one chunk, however large N is. Chunks are large, so that
the products run as fast as a single product would. The passes over z, _statistics and _gradient,
are compiled where that pays; uncompiled they are six passes and three. They work in place where
they can, as new memory costs most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minirl.lm.compiled import compiled
from minirl.lm.distinct import Distinct, take
from minirl.lm.model import Head, Transformer, with_head
from minirl.lm.rollouts import TOKEN_BUDGET, Rollouts, micro_batches

# most logits in a chunk, which is at most an eighth of all rows
MOST_LOGITS = {"cpu": 2 ** 24, "cuda": 2 ** 29}
FEW_LOGITS = 2 ** 18          # below this (1 MiB) a chunk may be half of all rows
WORTH_COMPILING = 2 ** 26     # logits of one call, on a CPU, where compiling takes seconds


def chunk_rows(rows: int, vocab: int, device: str = "cpu") -> int:
    """Return how many rows to take at a time: fewer than all, so that no (N, V) tensor exists."""
    few = min(FEW_LOGITS // vocab, -(-rows // 2))
    return max(1, few, min(MOST_LOGITS.get(device, 2 ** 29) // vocab, -(-rows // 8)))


def _statistics(z: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor]:
    """Logits before the temperature (n, V) -> logsumexp and entropy (n,), in float32 at least.

    Without with_entropy the second result is meaningless.
    """
    z = widened(z)
    z = z if temperature == 1.0 else z / temperature
    top = z.amax(-1, keepdim=True)
    below = z - top
    e = below.exp()
    # keepdim lets the compiler for GPUs find the maximum and the sum in one read
    s = e.sum(-1, keepdim=True).squeeze(-1)
    log_s = s.log()
    entropy = log_s - e.mul_(below).sum(-1) / s if with_entropy else log_s
    return top.squeeze(-1) + log_s, entropy


def log_normaliser(z: Tensor, temperature: float) -> Tensor:
    """Return logsumexp(z / temperature) of logits (n, V), (n,): the number that linear_logprobs
    subtracts, to the bit."""
    return _statistics(z, temperature, False)[0]


def _gradient(z: Tensor, temperature: float, logsumexp: Tensor, entropy: Tensor, grad_logp: Tensor,
              grad_entropy: Tensor | None) -> None:
    """Turn logits before the temperature (n, V) into their gradient, in place.

    The part at the target is left out.
    """
    log_p = widened(z)
    log_p = (log_p if temperature == 1.0 else log_p.div_(temperature)).sub_(logsumexp[:, None])
    scale = grad_logp[:, None]
    if grad_entropy is not None:
        scale = (log_p + entropy[:, None]).mul_(grad_entropy[:, None]).add_(grad_logp[:, None])
    z.copy_(log_p.exp_().mul_(scale / -temperature))    # in float32, log_p is z: no copy


def widened(z: Tensor) -> Tensor:
    return z.to(torch.promote_types(z.dtype, torch.float32))


_compiled_statistics, _compiled_gradient = compiled(_statistics), compiled(_gradient)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float,
                with_entropy: bool) -> tuple[Tensor, Tensor]:
        N, V = len(hidden), len(weight)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp = torch.empty(N, dtype=wide, device=hidden.device)
        logsumexp, entropy = torch.empty_like(logp), torch.zeros_like(logp)
        worth_compiling = hidden.is_cuda or N * V >= WORTH_COMPILING
        statistics = _compiled_statistics if worth_compiling else _statistics
        for rows, z in _chunks(hidden, weight):  # (n, V)
            logsumexp[rows], entropy[rows] = statistics(z, temperature, with_entropy)
            at_target = widened(z.gather(1, targets[rows, None]).squeeze(1))
            logp[rows] = at_target / temperature - logsumexp[rows]
        ctx.set_materialize_grads(False)    # an entropy that is only reported costs no backward
        ctx.save_for_backward(hidden, weight, targets, logsumexp, entropy)
        ctx.temperature, ctx.worth_compiling = temperature, worth_compiling
        return logp, entropy

    # A second derivative would treat logsumexp as a constant: it raises, instead of being wrong.
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None) -> tuple:
        hidden, weight, targets, logsumexp, entropy = ctx.saved_tensors
        if grad_logp is None:
            grad_logp = torch.zeros_like(logsumexp)
        grad_hidden = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_hidden = torch.empty_like(hidden)
        if ctx.needs_input_grad[1]:    # summed over chunks in float32
            grad_weight = torch.zeros_like(weight, dtype=logsumexp.dtype)
        gradient = _compiled_gradient if ctx.worth_compiling else _gradient
        for rows, z in _chunks(hidden, weight):  # (n, V), computed once more
            from_entropy = None if grad_entropy is None else grad_entropy[rows]
            gradient(z, ctx.temperature, logsumexp[rows], entropy[rows], grad_logp[rows],
                     from_entropy)
            at_target = (grad_logp[rows, None] / ctx.temperature).to(z.dtype)
            z.scatter_add_(1, targets[rows, None], at_target)
            if grad_hidden is not None:
                torch.mm(z, weight, out=grad_hidden[rows])
            if grad_weight is not None and grad_weight.dtype == z.dtype:
                grad_weight.addmm_(z.T, hidden[rows])
            elif grad_weight is not None:
                grad_weight += z.T @ hidden[rows]
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows, and their logits before the temperature, chunk after chunk in the same memory."""
    N, V = len(hidden), len(weight)
    size = min(N, chunk_rows(N, V, hidden.device.type))
    buffer = hidden.new_empty(size, V)
    for start in range(0, N, max(1, size)):
        rows = slice(start, min(start + size, N))
        yield rows, torch.mm(hidden[rows], weight.T, out=buffer[:rows.stop - start])


def linear_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0,
                    return_entropy: bool = False) -> Any:
    r"""Return log softmax(hidden weightᵀ / temperature) at the targets, without an (N, V) tensor.

    Equation   logp_n = z_n[y_n] - logsumexp(z_n),  z = hidden weightᵀ / temperature
               H_n    = -Σ_v p_n[v] log p_n[v],     p = softmax(z)
    Shapes     hidden (N, d), weight (V, d), targets (N,) of int64 -> (N,), or with return_entropy
               ((N,), (N,)), in float32 at least
    Gradient   through hidden and weight, for both results.
    Raises     ValueError if shapes do not fit, a target is no row of weight, or temperature is not
               positive.
    See        token_logprobs, which finds the hidden states and targets of a batch of sequences.

    >>> hidden = torch.tensor([[1.0]])
    >>> weight = torch.tensor([[0.0], [1.0986123]])    # logits 0 and log 3: p = 1/4 and 3/4
    >>> logp, entropy = linear_logprobs(hidden, weight, torch.tensor([1]), return_entropy=True)
    >>> logp.exp(), entropy                            # H = log 4 - 3/4 log 3
    (tensor([0.7500]), tensor([0.5623]))
    """
    matrices = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1]
    if not matrices or targets.shape != hidden.shape[:1]:
        raise ValueError(f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets "
                         f"{tuple(targets.shape)}: expected (N, d), (V, d) and (N,)")
    check_temperature(temperature)
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(weight):
        raise ValueError(f"targets span {int(targets.min())} to {int(targets.max())}: expected ids "
                         f"in [0, {len(weight)})")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # both directions in the lower precision
        lower = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(lower), weight.to(lower)
    with torch.autocast(device, enabled=False):
        logp, entropy = _LinearLogprobs.apply(hidden, weight, targets, temperature, return_entropy)
    return (logp, entropy) if return_entropy else logp


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless the temperature is positive and finite."""
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: expected a positive number, as there is "
                         "no log-prob at temperature 0")


def token_logprobs(model: Transformer, tokens: Tensor, *, mask: Tensor | None = None,
                   temperature: float = 1.0, return_entropy: bool = False) -> Any:
    r"""Return log π(tokens[t] | tokens[:t]) at slot t, for every token or for those under the mask.

    Shapes     tokens (B, T), mask (B, T) -> (B, T), or with return_entropy ((B, T), (B, T)); 0
               outside the mask
    Gradient   through the model.
    Raises     ValueError if mask and tokens differ in shape, if the mask is set at slot 0, which no
               token comes before, or if temperature is not positive.
    See        linear_logprobs, which computes logits for the slots under the mask alone.

    The shift by one is here: the hidden state at slot t - 1 predicts the token at slot t. Rows are
    padded on the right. A model may also be any module with `hidden(tokens)` and `lm_head`.
    """
    if mask is None:
        slots = torch.ones_like(tokens, dtype=torch.bool)
        slots[:, 0] = False
    else:
        slots = mask.bool()
        check_mask(tokens, slots)
    targets = tokens[slots]  # (n,)
    results = head_before(model, tokens, slots, lambda hidden, weight: linear_logprobs(
        hidden, weight, targets, temperature=temperature, return_entropy=return_entropy))
    if not return_entropy:
        return fill_slots(results, slots)
    logp, entropy = results
    return fill_slots(logp, slots), fill_slots(entropy, slots)


def head_before(model: Transformer, tokens: Tensor, slots: Tensor, head: Head) -> Any:
    """Return head(hidden, weight), computed inside the model's forward: `hidden` (n, d) are the
    last hidden states before the tokens at the n slots that are true, row after row."""
    ids, options, place = states(model, tokens, slots)
    before = place[state_before(slots)]  # (n,)
    return with_head(model, ids, lambda hidden, weight: head(
        take(hidden.flatten(0, -2), before), weight), **options)


def check_mask(tokens: Tensor, mask: Tensor) -> None:
    """Raise ValueError where a mask (B, T) cannot be one of sampled tokens."""
    if mask.shape != tokens.shape:
        raise ValueError(f"mask {tuple(mask.shape)} and tokens {tuple(tokens.shape)}: expected the "
                         "same shape")
    if bool(mask[:, 0].any()):
        raise ValueError("the mask asks for slot 0, but nothing predicts the first token of a row: "
                         "start rows with a BOS or a prompt")


def state_before(slots: Tensor) -> Tensor:
    """Return the slots before these: bool (B, T) -> (B, T). Slot 0 is none of them."""
    return slots.roll(-1, 1)


def fill_slots(values: Tensor, slots: Tensor) -> Tensor:
    """Put one value at each slot that is true, and 0 elsewhere: (n,) -> (B, T)."""
    return values.new_zeros(slots.shape).masked_scatter(slots, values)


def states(model: Transformer, tokens: Tensor, slots: Tensor, *, ends: bool = False
           ) -> tuple[Tensor, dict, Tensor]:
    """Choose the states to compute, so that the token at each slot that is true can be predicted.

    Shapes     tokens, slots (B, T) -> ids, options, place (B, T)

    with_head(model, ids, head, **options) computes a state for each id, and place[b, t] is the
    state of slot (b, t). These are the states before the last of a row's slots, with `ends` that of
    the last one too. A prompt, the tokens before the first of the slots, is computed once for all
    rows that begin with it. A model that takes no context, such as a table of logits, computes
    every slot.
    """
    if not isinstance(model, Transformer):
        return tokens, {}, torch.arange(tokens.numel(), device=tokens.device).view(tokens.shape)
    slots = slots.cpu()
    prompt, last = first_slot(slots), last_slot(slots)
    if not slots.any():
        last[:1] = 1    # one token, so that results have the right shape
    context = Distinct(tokens, prompt, last + 1 if ends else last)
    return context.tokens, {"context": context}, context.place


def first_slot(slots: Tensor) -> Tensor:
    """Return the first true slot of each row, 0 where there is none: (B, T) -> (B,), on the CPU."""
    slots = slots.cpu()
    return torch.where(slots.any(1), slots.int().argmax(1), 0)


def last_slot(slots: Tensor) -> Tensor:
    """Return the last true slot of each row, 0 where there is none: (B, T) -> (B,), on the CPU."""
    slots = slots.cpu()
    last = slots.shape[1] - 1 - slots.flip(1).int().argmax(1)
    return torch.where(slots.any(1), last, 0)


@torch.no_grad()
def rollout_logprobs(model: Transformer, rollouts: Rollouts, *, temperature: float = 1.0,
                     token_budget: int = TOKEN_BUDGET) -> Tensor:
    """Return token_logprobs of every sampled token, without a gradient: old_logp and ref_logp.

    Shapes     B rollouts -> (B, T); computed in micro-batches of about token_budget tokens
    """
    out = torch.zeros(rollouts.tokens.shape, device=rollouts.tokens.device)
    for rows in micro_batches(rollouts.lengths, token_budget):
        part = rollouts.rows(rows)
        logp = token_logprobs(model, part.tokens, mask=part.mask, temperature=temperature)
        out[rows, :part.tokens.shape[1]] = logp.float()
    return out
