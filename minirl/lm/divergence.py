"""Divergence of a policy from a teacher over the whole vocabulary, at each token of a completion.

A sampled token shows how likely the two found that one token. Their logits show it for all V
tokens: the divergence is then exact in each state. But logits of N tokens take (N, V) numbers, for
policy and teacher both, and autograd keeps several times as many.

So the states of N tokens, (N, d), are taken in chunks. A chunk's logits are computed, compared and
forgotten, and computed once more in the backward pass. Memory is that of one chunk, about ten times
(n, V) numbers with n = chunk_rows(N, V), however many tokens there are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minirl.lm.logprobs import (
    check_mask,
    check_temperature,
    chunk_rows,
    fill_slots,
    head_before,
    widened,
)
from minirl.lm.model import Transformer, hidden_alone

Divergence = Callable[[Tensor, Tensor], Tensor]  # logits, teacher's logits (n, V) -> (n,)


def token_divergence(model: Transformer, teacher: Transformer, tokens: Tensor, mask: Tensor,
                     divergence: Divergence, *, teacher_tokens: Tensor | None = None,
                     teacher_mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    r"""Return the divergence of the policies' next-token distributions, before each token under the
    mask.

    Equation   D_t = D(softmax(z_t / T), softmax(z'_t / T)),  z, z' the logits of model and teacher
    Shapes     tokens, mask (B, T) -> (B, T), 0 outside the mask
    Gradient   through the model, not through the teacher.
    Raises     ValueError if the vocabularies differ, a mask does not fit, or the two masks do not
               have the same number of tokens in each row.
    See        kl.exact_kl and kl.generalised_jsd, which are values for `divergence`.

    The teacher may read other tokens: the same completions behind other prompts.
    """
    vocab = check_same_vocabulary(model, teacher)
    check_temperature(temperature)
    mask = mask.bool()
    if teacher_tokens is None or teacher_mask is None:
        teacher_tokens, teacher_mask = tokens, mask
    teacher_mask = teacher_mask.bool()
    if not torch.equal(mask.sum(1), teacher_mask.sum(1)):
        raise ValueError("the teacher's mask does not have as many tokens in each row as the "
                         "model's: the same completions are wanted")
    check_mask(tokens, mask)
    check_mask(teacher_tokens, teacher_mask)
    with torch.no_grad():
        theirs = head_before(teacher, teacher_tokens, teacher_mask, hidden_alone)  # (n, d')
    their_weight = teacher.lm_head.weight.detach()
    size = chunk_rows(max(1, len(theirs)), vocab, tokens.device.type)

    def of_chunk(own: Tensor, weight: Tensor, theirs: Tensor) -> Tensor:
        z, teacher_z = F.linear(own, weight), F.linear(theirs, their_weight)  # (n, V)
        return divergence(widened(z) / temperature, widened(teacher_z) / temperature)  # (n,)

    def head(own: Tensor, weight: Tensor) -> Tensor:
        return torch.cat([checkpoint(of_chunk, part, weight, other, use_reentrant=False,
                                     preserve_rng_state=False)
                          for part, other in zip(own.split(size), theirs.split(size), strict=True)])

    return fill_slots(head_before(model, tokens, mask, head), mask)


def check_same_vocabulary(model: Transformer, teacher: Transformer) -> int:
    """Return the size of the models' vocabulary. Raise ValueError if it is not the same."""
    size, other = (len(m.lm_head.weight) for m in (model, teacher))
    if size != other:
        raise ValueError(f"the model has a vocabulary of {size:,} tokens and the teacher one of "
                         f"{other:,}: models with the same tokenizer are wanted")
    return size
