"""Sampling: prompts in, Rollouts out. A prompt is read once for its whole group, then every row grows by one token a step.

Rows share one clock: prompts are padded on the *left* while sampling, so that all rows write the same cache slot, and the result is
laid out again with padding on the right, as everything else in the library has it. How rows grow is in decoding.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from minirl.lm.decoding import Choice, decoder_for, whole
from minirl.lm.memory import check_room, sampling_bytes
from minirl.lm.rollouts import Rollouts, span_mask

WIDTH = 16      # tokens: on a GPU prompts are padded to a multiple, so that few widths occur, and what was recorded for one is used again


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
                   ids={"eos_id": stops, "pad_id": [pad_id]}, device=model.device)
    was_training = model.training
    model.eval()
    try:
        return _sample(model, prompts, group, max_new_tokens, temperature, top_k, top_p, stops, pad_id, generator)
    finally:
        model.train(was_training)


def _sample(model, prompts, group, max_new_tokens, temperature, top_k, top_p, stops, pad_id, generator) -> Rollouts:
    device = model.device
    # 1. prompts, padded on the left, and the uniform numbers that decide every draw
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts])                            # (P,)
    width = int(prompt_lengths.max())
    if device.type == "cuda":
        width = min(whole(width, WIDTH), model.config.max_seq_len - max_new_tokens)
    tokens = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts], device=device)      # (P, width)
    padding = None if bool((prompt_lengths == width).all()) else (width - prompt_lengths).to(device)
    source = generator.device if generator is not None else device
    uniform = torch.rand(max_new_tokens, len(prompts) * group, generator=generator, device=source).to(device)    # row i's t-th draw, whatever has ended

    # 2. each prompt read once, then a row per completion, growing by a token a step until all have ended
    decoder = decoder_for(model, len(prompts) * group, width, max_new_tokens, Choice(temperature, top_k, top_p, tuple(stops)), padded=padding is not None)
    new_tokens, new_logp = decoder.grow(model, tokens, padding, group, uniform)                   # (B, max_new_tokens) each, with anything behind the ends
    if not bool(new_logp.isfinite().all()):
        raise ValueError("the model gave logits that are not finite: its weights hold NaN or infinity, or overflow in its dtype; go back to an "
                         "earlier checkpoint, or use float32")

    # 3. where each row ended
    ended = torch.isin(new_tokens, torch.tensor(stops, dtype=torch.long, device=device))          # (B, max_new_tokens)
    truncated = ~ended.any(1)
    lengths = torch.where(truncated, max_new_tokens, ended.int().argmax(1) + 1)                   # (B,)

    # 4. lay out with padding on the right
    prompt_lengths = prompt_lengths.to(device).repeat_interleave(group)                           # (B,)
    ends = prompt_lengths + lengths
    B, T = len(ends), int(ends.max())
    mask = span_mask(prompt_lengths, ends, T)                                                     # (B, T)
    sampled = span_mask(torch.zeros_like(lengths), lengths, max_new_tokens)                       # (B, max_new_tokens)
    out = torch.full((B, T), pad_id, device=device)
    out[span_mask(torch.zeros_like(ends), prompt_lengths, T)] = torch.tensor([i for p in prompts for _ in range(group) for i in p], device=device)
    out[mask] = new_tokens[sampled]
    behavior_logp = torch.zeros(B, T, device=device)
    behavior_logp[mask] = new_logp[sampled]
    return Rollouts(out, mask, prompt_lengths, behavior_logp, truncated)


def _ids(prompt) -> list[int]:
    if isinstance(prompt, str):
        raise ValueError(f"the prompt {prompt[:40]!r} is text: sample takes lists of ids, as tokenizer.encode gives them")
    return prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)


def check_sampling(config, prompts, *, group, max_new_tokens, temperature, top_k, top_p, ids, device="cpu") -> None:
    """Raise ValueError for what cannot be sampled, before anything is computed."""
    check_choices(group=group, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    if not prompts:
        raise ValueError("prompts is empty: at least one prompt is wanted")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty: at least one id is wanted, for instance the tokenizer's BOS")
        check_context(f"prompt {i}", len(prompt), max_new_tokens, config.max_seq_len)
    for name, given in [*((f"prompt {i}", p) for i, p in enumerate(prompts)), *ids.items()]:
        for i in given:
            if not isinstance(i, int) or not 0 <= i < config.vocab_size:
                raise ValueError(f"{name} holds the id {i!r}, unknown to the model: whole numbers in [0, {config.vocab_size}) are wanted")
    rows, length = len(prompts) * group, max(map(len, prompts)) + max_new_tokens
    check_room(sampling_bytes(config, rows, length), torch.device(device), f"sampling {rows:,} completions at once")


def check_choices(*, group: int, max_new_tokens: int, temperature: float, top_k: int = 0, top_p: float = 1.0) -> None:
    """Raise ValueError for numbers that no model could sample with."""
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


def check_context(what: str, tokens: int, max_new_tokens: int, context: int) -> None:
    """Raise ValueError where a prompt of so many tokens leaves no room for a completion."""
    if tokens + max_new_tokens > context:
        raise ValueError(f"{what} has {tokens} tokens; with max_new_tokens {max_new_tokens} that is more than the model's context of "
                         f"{context}: shorten the prompt or lower max_new_tokens")
