"""Sampling: prompts in, Rollouts out. A prompt is read once for its whole group, then every row grows by one token a step.

Rows share one clock: prompts are padded on the *left* while sampling, so that all rows write the same cache slot, and the result is
laid out again with padding on the right, as everything else in the library has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from minirl.lm.attention import KVCache
from minirl.lm.precision import compute_dtype
from minirl.lm.rollouts import Rollouts, span_mask


@torch.no_grad()
def sample(model, prompts: Sequence[Sequence[int]], *, group: int = 1, max_new_tokens: int, temperature: float = 1.0, top_k: int = 0,
           top_p: float = 1.0, eos_id: int | Iterable[int] | None, pad_id: int, generator: torch.Generator | None = None) -> Rollouts:
    r"""Draw `group` completions of each prompt.

    Equation   tokens[t] ~ softmax(logits / temperature), cut to the top_k likeliest ids and then to the smallest set of probability
               top_p, and renormalised; temperature 0 takes the likeliest id
    Shapes     P prompts, as lists of ids of any lengths -> Rollouts of B = P * group rows
    Raises     ValueError for an empty prompt, an id outside the vocabulary, a prompt that leaves no room for max_new_tokens in the
               context, and numbers out of range.
    See        logprobs.token_logprobs, which gives the learner's log-prob of the same tokens.

    eos_id is an id, several, or None: a row ends behind the first of them that it samples. behavior_logp is the log-prob of the
    distribution that was sampled from; for greedy rows, where that would be 0, it is the model's at temperature 1. The model is run in
    eval mode. `generator` decides every draw: row i's t-th number is the same whichever rows have ended.
    """
    stops = [] if eos_id is None else [eos_id] if isinstance(eos_id, int) else list(eos_id)
    prompts = [_ids(prompt) for prompt in prompts]
    check_sampling(model.config, prompts, group=group, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                   ids={"eos_id": stops, "pad_id": [pad_id]})
    was_training = model.training
    model.eval()
    try:
        return _sample(model, prompts, group, max_new_tokens, temperature, top_k, top_p, stops, pad_id, generator)
    finally:
        model.train(was_training)


def _sample(model, prompts, group, max_new_tokens, temperature, top_k, top_p, stops, pad_id, generator) -> Rollouts:
    device = model.device
    # 1. read each prompt once
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts])                            # (P,)
    width = int(prompt_lengths.max())
    tokens = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts], device=device)      # (P, width)
    starts = None if bool((prompt_lengths == width).all()) else (width - prompt_lengths).to(device)
    cache = KVCache(model.config, len(prompts), width + max_new_tokens, device=device, dtype=compute_dtype(model))
    hidden = model.hidden(tokens, cache=cache, starts=starts)[:, -1]                  # (P, d)

    # 2. one cache row and one last hidden state per completion
    alive = torch.arange(len(prompts) * group, device=device)                                     # the rows still growing
    cache.select(alive // group)
    hidden = hidden.repeat_interleave(group, dim=0)                                               # (B, d)
    if starts is not None:
        starts = starts.repeat_interleave(group)
    B = len(alive)
    new_tokens = torch.full((B, max_new_tokens), pad_id, device=device)
    new_logp = torch.zeros(B, max_new_tokens, device=device)
    lengths = torch.full((B,), max_new_tokens, device=device)
    truncated = torch.ones(B, dtype=torch.bool, device=device)
    stop_ids = torch.tensor(stops, dtype=torch.long, device=device)

    # 3. grow
    for t in range(max_new_tokens):
        uniform = torch.rand(B, generator=generator, device=device if generator is None else generator.device).to(device)
        ids, logp = draw(model.lm_head(hidden).float(), uniform[alive], temperature, top_k, top_p)
        new_tokens[alive, t] = ids
        new_logp[alive, t] = logp
        ended = torch.isin(ids, stop_ids)
        if bool(ended.any()):                                                                     # ended rows leave the batch
            lengths[alive[ended]] = t + 1
            truncated[alive[ended]] = False
            going = (~ended).nonzero().squeeze(1)
            if len(going) == 0:
                break
            alive, ids = alive[going], ids[going]
            cache.select(going)
            starts = None if starts is None else starts[going]
        if t + 1 < max_new_tokens:
            hidden = model.hidden(ids[:, None], cache=cache, starts=starts)[:, -1]

    if not bool(new_logp.isfinite().all()):
        raise ValueError("the model gave logits that are not finite: its weights hold NaN or infinity, or overflow in its dtype; go back to an "
                         "earlier checkpoint, or use float32")

    # 4. lay out with padding on the right
    prompt_lengths = prompt_lengths.to(device).repeat_interleave(group)                           # (B,)
    ends = prompt_lengths + lengths
    T = int(ends.max())
    mask = span_mask(prompt_lengths, ends, T)                                                     # (B, T)
    sampled = span_mask(torch.zeros_like(lengths), lengths, max_new_tokens)                       # (B, max_new_tokens)
    out = torch.full((B, T), pad_id, device=device)
    out[span_mask(torch.zeros_like(ends), prompt_lengths, T)] = torch.tensor([i for p in prompts for _ in range(group) for i in p], device=device)
    out[mask] = new_tokens[sampled]
    behavior_logp = torch.zeros(B, T, device=device)
    behavior_logp[mask] = new_logp[sampled]
    return Rollouts(out, mask, prompt_lengths, behavior_logp, truncated)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """One id a row by inverting the cumulative distribution at one uniform number: logits (B, V), uniform (B,) -> ids (B,), logp (B,)."""
    if temperature == 0:
        logp = logits.log_softmax(-1)
        ids = logits.argmax(-1)
    else:
        logp = keep_likeliest((logits / temperature).log_softmax(-1), top_k, top_p)               # (B, V), normalised
        cumulative = logp.exp().cumsum(-1)                                                        # ends at 1, but for rounding
        # u < total, so the first id whose cumulative sum exceeds u has probability > 0 (the clamp is for NaN, which _sample reports)
        u = (uniform * cumulative[:, -1]).minimum(torch.nextafter(cumulative[:, -1], torch.zeros_like(uniform)))
        ids = torch.searchsorted(cumulative, u[:, None], right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
    return ids, logp.gather(1, ids[:, None]).squeeze(1)


def keep_likeliest(logp: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set all but the top_k likeliest ids, then all but the fewest of probability >= top_p, to -inf, and renormalise. (B, V) -> (B, V)."""
    if 0 < top_k < logp.shape[-1]:
        rank = logp.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)                 # 0: the likeliest; ties by id
        logp = logp.masked_fill(rank >= top_k, float("-inf")).log_softmax(-1)
    if top_p < 1.0:
        sorted_logp, order = logp.sort(dim=-1, descending=True, stable=True)
        before = sorted_logp.exp().cumsum(-1) - sorted_logp.exp()                                 # probability of all likelier ids
        drop = torch.zeros_like(logp, dtype=torch.bool).scatter(1, order, before >= top_p)
        logp = logp.masked_fill(drop, float("-inf")).log_softmax(-1)
    return logp


def _ids(prompt) -> list[int]:
    if isinstance(prompt, str):
        raise ValueError(f"the prompt {prompt[:40]!r} is text: sample takes lists of ids, as tokenizer.encode gives them")
    return prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)


def check_sampling(config, prompts, *, group, max_new_tokens, temperature, top_k, top_p, ids) -> None:
    if not prompts:
        raise ValueError("prompts is empty: at least one prompt is wanted")
    if group < 1:
        raise ValueError(f"group is {group}: at least 1 completion per prompt is wanted")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: at least 1 is wanted")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: 0 (greedy) or a positive number is wanted")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}: 0 (off) or a positive number is wanted")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: a number in (0, 1] is wanted (1 is off)")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty: at least one id is wanted, for instance the tokenizer's BOS")
        if len(prompt) + max_new_tokens > config.max_seq_len:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens; with max_new_tokens {max_new_tokens} that is more than the model's context of "
                             f"{config.max_seq_len}: shorten the prompt or lower max_new_tokens")
    for name, given in [*((f"prompt {i}", p) for i, p in enumerate(prompts)), *ids.items()]:
        for i in given:
            if not isinstance(i, int) or not 0 <= i < config.vocab_size:
                raise ValueError(f"{name} holds the id {i!r}, unknown to the model: whole numbers in [0, {config.vocab_size}) are wanted")
