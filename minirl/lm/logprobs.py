"""Log-probabilities of given tokens. The one place that shifts by one, and the one place that turns logits into log-probs in training.

    token_logprobs     log pi(tokens[t] | tokens[:t]) at slot t, from a model: what every objective takes
    linear_logprobs    the same for N hidden states and the output matrix, without ever holding N x V logits

Why chunks. One log-prob needs V logits, of which all but one are thrown away. For 16,384 tokens of a 151,936-word vocabulary they are 10 GB in
float32, and autograd would keep as much again for their gradient. But both directions need them only for a moment. With z = h W^T / T, m = max z and

    s = sum_j e^(z_j - m),   w = sum_j e^(z_j - m) (z_j - m)

the log-prob of token y is z_y - L with L = logsumexp(z) = m + log s, and the entropy, -sum_j p_j log p_j with log p_j = z_j - m - log s, is

    H = log s - w / s.

So one pass over a chunk's logits finds all that is wanted, and two numbers per row, L and H, are all that is kept. Backwards,

    d logp / d z_j = 1{j = y} - p_j                     (softmax minus one-hot, with the sign of a log-prob)
    d H    / d z_j = -p_j (log p_j + H)                 (as d log p_i / d z_j = 1{i = j} - p_j, and sum_i p_i log p_i = -H)

With a and b the gradients that arrive for logp and H, the gradient of z_j is therefore a 1{j = y} - p_j (a + b (log p_j + H)): every p_j comes from z_j
and L alone. Each chunk's z is computed once more, one pass turns it into its gradient where it stands, and two products carry that on to h and W.

What it costs. Four matrix products instead of three (z, z again, dh, dW), one read of z forwards, one read and write backwards, and one chunk of
memory, however large N is. Chunks are large, so that the products run as fast as one product would; the two passes, _statistics and _gradient, are
compiled where that pays, since left to themselves they are six passes and three; what they can, they do in place, as new memory costs most.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minirl.lm.attention import Distinct, take
from minirl.lm.compiled import compiled
from minirl.lm.rollouts import TOKEN_BUDGET, Rollouts, micro_batches

MOST_LOGITS = {"cpu": 2 ** 24, "cuda": 2 ** 29}     # held at once, and an eighth of all of them
FEW_LOGITS = 2 ** 18         # so few (1 MiB) are cheap: half of all of them may be held
WORTH_COMPILING = 2 ** 26    # logits of one call, on a CPU, where compiling takes seconds


def chunk_rows(rows: int, vocab: int, device: str = "cpu") -> int:
    """How many rows are taken at a time: always less than all (but for a single row), so that no (N, V) tensor exists."""
    few = min(FEW_LOGITS // vocab, -(-rows // 2))
    return max(1, few, min(MOST_LOGITS.get(device, 2 ** 29) // vocab, -(-rows // 8)))


def _statistics(z: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor]:
    """Logits before the temperature (n, V) -> logsumexp and entropy (n,), in float32 at least; without with_entropy the second means nothing."""
    z = _wide(z)
    z = z if temperature == 1.0 else z / temperature
    top = z.amax(-1, keepdim=True)
    below = z - top
    e = below.exp()
    s = e.sum(-1, keepdim=True).squeeze(-1)            # kept: so a compiler for GPUs finds maximum and sum in one read
    log_s = s.log()
    return top.squeeze(-1) + log_s, log_s - e.mul_(below).sum(-1) / s if with_entropy else log_s


def _gradient(z: Tensor, temperature: float, logsumexp: Tensor, entropy: Tensor, grad_logp: Tensor, grad_entropy: Tensor | None) -> None:
    """Turn logits before the temperature (n, V) into their gradient, in place, but for the one at the target."""
    log_p = _wide(z)
    log_p = (log_p if temperature == 1.0 else log_p.div_(temperature)).sub_(logsumexp[:, None])
    scale = grad_logp[:, None] if grad_entropy is None else (log_p + entropy[:, None]).mul_(grad_entropy[:, None]).add_(grad_logp[:, None])
    z.copy_(log_p.exp_().mul_(scale / -temperature))                             # float32 is its own wide form: then nothing is left to copy


def _wide(z: Tensor) -> Tensor:
    return z.to(torch.promote_types(z.dtype, torch.float32))


_compiled_statistics, _compiled_gradient = compiled(_statistics), compiled(_gradient)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, with_entropy: bool):
        N, V = len(hidden), len(weight)
        logp = torch.empty(N, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        logsumexp, entropy = torch.empty_like(logp), torch.zeros_like(logp)
        worth = hidden.is_cuda or N * V >= WORTH_COMPILING
        statistics = _compiled_statistics if worth else _statistics
        buffer = hidden.new_empty(min(N, chunk_rows(N, V, hidden.device.type)), V)
        for rows, z in _chunks(hidden, weight, buffer):                                        # (n, V)
            logsumexp[rows], entropy[rows] = statistics(z, temperature, with_entropy)
            logp[rows] = _wide(z.gather(1, targets[rows, None]).squeeze(1)) / temperature - logsumexp[rows]
        ctx.set_materialize_grads(False)                          # an entropy that is only reported costs nothing in backward
        ctx.save_for_backward(hidden, weight, targets, logsumexp, entropy)
        ctx.temperature, ctx.worth = temperature, worth
        return logp, entropy

    @staticmethod
    @once_differentiable                                          # a second derivative would take logsumexp for a constant: refused, not wrong
    def backward(ctx, grad_logp: Tensor | None, grad_entropy: Tensor | None):
        hidden, weight, targets, logsumexp, entropy = ctx.saved_tensors
        grad_logp = torch.zeros_like(logsumexp) if grad_logp is None else grad_logp
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=logsumexp.dtype) if ctx.needs_input_grad[1] else None
        gradient = _compiled_gradient if ctx.worth else _gradient
        buffer = hidden.new_empty(min(len(hidden), chunk_rows(len(hidden), len(weight), hidden.device.type)), len(weight))
        for rows, z in _chunks(hidden, weight, buffer):                                        # (n, V), once more
            gradient(z, ctx.temperature, logsumexp[rows], entropy[rows], grad_logp[rows], None if grad_entropy is None else grad_entropy[rows])
            z.scatter_add_(1, targets[rows, None], (grad_logp[rows, None] / ctx.temperature).to(z.dtype))
            if grad_hidden is not None:
                torch.mm(z, weight, out=grad_hidden[rows])
            if grad_weight is not None and grad_weight.dtype == z.dtype:
                grad_weight.addmm_(z.T, hidden[rows])
            elif grad_weight is not None:
                grad_weight += z.T @ hidden[rows]                 # summed over chunks in float32
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def _chunks(hidden: Tensor, weight: Tensor, buffer: Tensor):
    """Rows and their logits before the temperature, chunk after chunk in the same memory."""
    for start in range(0, len(hidden), max(1, len(buffer))):
        rows = slice(start, min(start + len(buffer), len(hidden)))
        yield rows, torch.mm(hidden[rows], weight.T, out=buffer[:rows.stop - start])


def linear_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, return_entropy: bool = False):
    r"""log softmax(hidden weight^T / temperature) at the targets, without an (N, V) tensor.

    Equation   logp_n = z_n[y_n] - logsumexp(z_n),  z = hidden weight^T / temperature
               H_n    = -sum_v p_n[v] log p_n[v],   p = softmax(z)
    Shapes     hidden (N, d), weight (V, d), targets (N,) of int64 -> (N,), or with return_entropy ((N,), (N,)), in float32 at least
    Gradient   through hidden and weight, for both results.
    Raises     ValueError if shapes do not fit, a target is no row of weight, or temperature is not positive.
    See        token_logprobs, which finds the hidden states and targets of a batch of sequences.

    >>> hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [1.0986123]])     # logits 0 and log 3: p = 1/4 and 3/4
    >>> logp, entropy = linear_logprobs(hidden, weight, torch.tensor([1]), return_entropy=True)
    >>> logp.exp(), entropy                                                            # H = log 4 - 3/4 log 3
    (tensor([0.7500]), tensor([0.5623]))
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}: "
                         "(N, d), (V, d) and (N,) are wanted")
    check_temperature(temperature)
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(weight):
        raise ValueError(f"targets span {int(targets.min())} to {int(targets.max())}: ids in [0, {len(weight)}) are wanted")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):                        # both directions in the one lower precision
        hidden, weight = hidden.to(torch.get_autocast_dtype(device)), weight.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        logp, entropy = _LinearLogprobs.apply(hidden, weight, targets, temperature, return_entropy)
    return (logp, entropy) if return_entropy else logp


def check_temperature(temperature: float) -> None:
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: a positive number is wanted (a log-prob at temperature 0 does not exist)")


def token_logprobs(model, tokens: Tensor, *, mask: Tensor | None = None, temperature: float = 1.0, return_entropy: bool = False):
    r"""log pi(tokens[t] | tokens[:t]) at slot t, for every token or for those under the mask.

    Shapes     tokens (B, T), mask (B, T) -> (B, T), or with return_entropy ((B, T), (B, T)); 0 where nothing was asked for
    Gradient   through the model.
    Raises     ValueError if mask and tokens differ in shape, if the mask asks for slot 0, which no token comes before, or for a
               temperature that is not positive.
    See        linear_logprobs, which runs on the asked-for slots alone: prompts and padding cost no logits.

    The shift by one is here: the hidden state at slot t - 1 emits the token at slot t. Rows are padded on the right.
    """
    if mask is None:
        wanted = torch.ones_like(tokens, dtype=torch.bool)
        wanted[:, 0] = False
    else:
        if mask.shape != tokens.shape:
            raise ValueError(f"mask {tuple(mask.shape)} and tokens {tuple(tokens.shape)}: the same shape is wanted")
        wanted = mask.bool()
        if bool(wanted[:, 0].any()):
            raise ValueError("the mask asks for slot 0, but the first token of a row is given, not predicted: start rows with a BOS or a prompt")
    hidden, before = states_before(model, tokens, wanted)                                      # (N, d), (slots,)
    results = linear_logprobs(take(hidden, before), model.lm_head.weight, tokens[wanted], temperature=temperature, return_entropy=return_entropy)
    spread = [result.new_zeros(tokens.shape).masked_scatter(wanted, result) for result in (results if return_entropy else (results,))]
    return tuple(spread) if return_entropy else spread[0]


def states_before(model, tokens: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states of all that the wanted slots depend on, and which of them each wanted slot is predicted from: (B, T) -> (N, d), (slots,).

    Computed are a row's tokens before its last wanted slot, and those before its first one, its prompt, once for all rows that begin with it.
    """
    first, last = _span(wanted)
    if not wanted.any():
        last[:1] = 1                                                                           # nothing wanted: a token, for zeros of the right shape
    hidden, place = _states(model, tokens, first, last)
    return hidden, place[wanted.roll(-1, 1)]                                                   # slot 0 is not wanted, so that nothing comes round


def states_around(model, tokens: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """states_before, with the state behind each row's last wanted slot: (B, T) -> hidden (N, d), (slots,), end (B,). What a value function reads."""
    if wanted.shape != tokens.shape:
        raise ValueError(f"mask {tuple(wanted.shape)} and tokens {tuple(tokens.shape)}: the same shape is wanted")
    if bool(wanted[:, 0].any()) or not bool(wanted.any(1).all()):
        raise ValueError("the mask asks for slot 0, or a row has nothing under it: rows of a prompt (or a BOS) and at least one token behind it are wanted")
    first, last = _span(wanted)
    hidden, place = _states(model, tokens, first, last + 1)
    rows = torch.arange(len(tokens), device=place.device)
    return hidden, place[wanted.roll(-1, 1)], place[rows, last.to(place.device)]


def _span(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last wanted slot of each row, 0 where there is none: (B, T) -> twice (B,), on the CPU."""
    on_cpu = wanted.cpu()
    some, T = on_cpu.any(1), on_cpu.shape[1]
    return torch.where(some, on_cpu.int().argmax(1), 0), torch.where(some, T - 1 - on_cpu.flip(1).int().argmax(1), 0)


def _states(model, tokens: Tensor, prompt: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (N, d) of the first used[b] tokens of each row, of which prompt[b] are its prompt, and which of them is whose: place (B, T).

    A model that has `hidden` alone, such as a table of logits, computes every slot.
    """
    if not hasattr(model, "hidden_of"):
        return model.hidden(tokens).flatten(0, 1), torch.arange(tokens.numel(), device=tokens.device).view(tokens.shape)
    context = Distinct(tokens, prompt, used)
    return model.hidden_of(context.tokens, context), context.place


@torch.no_grad()
def rollout_logprobs(model, rollouts: Rollouts, *, temperature: float = 1.0, token_budget: int = TOKEN_BUDGET) -> Tensor:
    """token_logprobs of every sampled token, without a gradient and a micro-batch at a time: the frozen columns old_logp and ref_logp. (B, T)."""
    out = torch.zeros(rollouts.tokens.shape, device=rollouts.tokens.device)
    for rows in micro_batches(rollouts.lengths, token_budget):
        part = rollouts.rows(rows)
        out[rows, :part.tokens.shape[1]] = token_logprobs(model, part.tokens, mask=part.mask, temperature=temperature).float()
    return out
