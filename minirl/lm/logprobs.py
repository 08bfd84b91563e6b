"""Log-probabilities of given tokens. The one place that shifts by one, and the one place that turns logits into log-probs in training.

    token_logprobs     log pi(tokens[t] | tokens[:t]) at slot t, from a model: what every objective takes
    linear_logprobs    the same for N hidden states and the output matrix, without ever holding N x V logits

Why chunks. One log-prob needs V logits, of which all but one are thrown away. For 16,384 tokens of a 151,936-word vocabulary they
are 10 GB in float32, and autograd would keep as much again for their gradient. But both directions need them only for a moment:

    forward     z = h W^T / T,  logp = z_y - logsumexp(z),  entropy H = logsumexp(z) - sum_j p_j z_j,  p = softmax(z)
    backward    d logp / d z_j = 1{j = y} - p_j             (softmax minus one-hot, with the sign of a log-prob)
                d H    / d z_j = -p_j (z_j - logsumexp(z) + H)

so the rows are taken a chunk at a time, nothing of size V outlives its chunk, and backward computes each chunk's z once more. That is
one more matrix product (four instead of three, forward and backward together) for memory that does not grow with N.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minirl.lm.attention import Distinct
from minirl.lm.rollouts import Rollouts, micro_batches

MOST_LOGITS = 2 ** 24        # held at once: 64 MiB in float32, and an eighth of all of them
FEW_LOGITS = 2 ** 18         # so few (1 MiB) are cheap: half of all of them may be held


def chunk_rows(rows: int, vocab: int) -> int:
    """How many rows are taken at a time: always less than all (but for a single row), so that no (N, V) tensor exists."""
    few = min(FEW_LOGITS // vocab, -(-rows // 2))
    return max(1, few, min(MOST_LOGITS // vocab, -(-rows // 8)))


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, with_entropy: bool):
        N, V = len(hidden), len(weight)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp = torch.empty(N, dtype=wide, device=hidden.device)
        logsumexp, entropy = torch.empty_like(logp), torch.empty_like(logp)
        size = chunk_rows(N, V)
        for start in range(0, N, size):
            rows = slice(start, start + size)
            z = _scaled_logits(hidden[rows], weight, temperature, wide)                        # (n, V)
            logsumexp[rows] = z.logsumexp(-1)
            log_p = z.sub_(logsumexp[rows, None])
            logp[rows] = log_p.gather(1, targets[rows, None]).squeeze(1)
            if with_entropy:
                entropy[rows] = -torch.linalg.vecdot(log_p.exp(), log_p)
        ctx.set_materialize_grads(False)                          # an entropy that is only reported costs nothing in backward
        ctx.save_for_backward(hidden, weight, targets, logsumexp, entropy)
        ctx.temperature = temperature
        return logp, entropy

    @staticmethod
    @once_differentiable                                          # a second derivative would take logsumexp for a constant: refused, not wrong
    def backward(ctx, grad_logp: Tensor | None, grad_entropy: Tensor | None):
        hidden, weight, targets, logsumexp, entropy = ctx.saved_tensors
        N, V = len(hidden), len(weight)
        wide = logsumexp.dtype
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        size = chunk_rows(N, V)
        for start in range(0, N, size):
            rows = slice(start, start + size)
            z = _scaled_logits(hidden[rows], weight, ctx.temperature, wide)                        # (n, V), once more
            log_p = z.sub_(logsumexp[rows, None])
            p = log_p.exp()
            grad_z = torch.zeros_like(z) if grad_logp is None else p * -grad_logp[rows, None]
            if grad_logp is not None:
                grad_z.scatter_add_(1, targets[rows, None], grad_logp[rows, None])
            if grad_entropy is not None:
                grad_z -= grad_entropy[rows, None] * p * (log_p + entropy[rows, None])
            grad_z = grad_z.div_(ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_z @ weight
            if grad_weight is not None:
                grad_weight += (grad_z.T @ hidden[rows]).to(wide)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def _scaled_logits(hidden: Tensor, weight: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    z = (hidden @ weight.T).to(dtype)
    return z if temperature == 1.0 else z.div_(temperature)


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
    results = linear_logprobs(hidden[before], model.lm_head.weight, tokens[wanted], temperature=temperature, return_entropy=return_entropy)
    spread = [result.new_zeros(tokens.shape).masked_scatter(wanted, result) for result in (results if return_entropy else (results,))]
    return tuple(spread) if return_entropy else spread[0]


def states_before(model, tokens: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states of all that the wanted slots depend on, and which of them each wanted slot is predicted from: (B, T) -> (N, d), (slots,).

    Computed are a row's tokens before its last wanted slot, and those before its first one, its prompt, once for all rows that begin with it. A model
    that has `hidden` alone, such as a table of logits, computes every slot.
    """
    previous = wanted.roll(-1, 1)                                                              # slot 0 is not wanted, so that nothing comes round
    if not hasattr(model, "hidden_of"):
        return model.hidden(tokens).flatten(0, 1), previous.flatten().nonzero().squeeze(1)
    on_cpu = wanted.cpu()
    B, T = on_cpu.shape
    some = on_cpu.any(1)
    first = torch.where(some, on_cpu.int().argmax(1), 0)                                       # (B,): tokens of prompt
    used = torch.where(some, T - 1 - on_cpu.flip(1).int().argmax(1), 0)                        # (B,): tokens before the last wanted slot
    if not some.any():
        used[:1] = 1                                                                           # nothing wanted: a token, for zeros of the right shape
    context = Distinct(tokens, first, used)
    return model.hidden_of(context.tokens, context), context.place[previous]


@torch.no_grad()
def rollout_logprobs(model, rollouts: Rollouts, *, temperature: float = 1.0, token_budget: int = 16_384) -> Tensor:
    """token_logprobs of every sampled token, without a gradient and a micro-batch at a time: the frozen columns old_logp and ref_logp. (B, T)."""
    out = torch.zeros(rollouts.tokens.shape, device=rollouts.tokens.device)
    for rows in micro_batches(rollouts.lengths, token_budget):
        part = rollouts.rows(rows)
        out[rows, :part.tokens.shape[1]] = token_logprobs(model, part.tokens, mask=part.mask, temperature=temperature).float()
    return out
