"""Sampling: prompts in, Rollouts out.

What sampling is, in twelve lines:

>>> def plain_sample(model, prompt, max_new_tokens, eos_id, temperature=1.0):
...     ids = list(prompt)
...     for _ in range(max_new_tokens):
...         logits = model(torch.tensor([ids]))[0, -1]    # (V,): about the token after the prefix
...         p = (logits / temperature).softmax(-1)
...         ids.append(int(torch.multinomial(p, 1)))
...         if ids[-1] == eos_id:
...             break
...     return ids[len(prompt):]

`sample` draws from the same distribution, for many prompts at once, and reads nothing twice: a
prompt is read once for its whole group, then every row grows by one token per step, and the keys
and values of all tokens before are kept (decoding.py).

>>> from minirl.lm.model import ModelConfig, Transformer
>>> model = Transformer(ModelConfig(vocab_size=10))
>>> rollouts = sample(model, [[3, 1, 4]], max_new_tokens=8, temperature=0, eos_id=0, pad_id=0)
>>> plain_sample(model, [3, 1, 4], 8, eos_id=0, temperature=1e-6) == rollouts.completion_ids()[0]
True

While sampling, prompts are padded on the left, so that all rows write to the same cache slot. The
result is padded on the right, as everywhere else in the library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from minirl.lm.choice import Choice, check_finite
from minirl.lm.config import ModelConfig
from minirl.lm.decoding import decoder_for, whole
from minirl.lm.memory import check_room, sampling_bytes
from minirl.lm.model import Transformer
from minirl.lm.precision import sampling_in
from minirl.lm.replies import DRAWN, Reply
from minirl.lm.rollouts import Rollouts, span_mask

# Tokens: on a GPU prompts are padded to a multiple of this, so that there are few widths, and what
# was recorded for one is used again.
WIDTH = 16

Prompt = Sequence[int] | Tensor


@torch.no_grad()
def sample(model: Transformer, prompts: Sequence[Prompt], *, group: int = 1, max_new_tokens: int,
           temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
           repetition_penalty: float = 1.0, eos_id: int | Iterable[int] | None, pad_id: int,
           generator: torch.Generator | None = None, reply: Reply | None = None) -> Rollouts:
    r"""Draw `group` completions of each prompt.

    Equation   tokens[t] ~ softmax(logits / temperature), cut to the top_k likeliest ids, then to
               the smallest set of probability top_p, then to those with min_p times the
               probability of the likeliest, and renormalised; temperature 0 takes the likeliest
               id. A repetition_penalty lowers the logits of ids that a row holds already, before
               all of this: see choice.penalise
    Shapes     P prompts, as lists of ids of any lengths -> Rollouts of B = P * group rows
    Raises     ValueError for an empty prompt, an id outside the vocabulary, a prompt that leaves no
               room for max_new_tokens in the context, and numbers out of range.
    See        logprobs.token_logprobs, which gives the learner's log-prob of the same tokens.

    eos_id is an id, several, or None: a row ends after the first of them that it samples.
    behavior_logp is the log-prob under the distribution that was sampled from. For greedy rows,
    where that would be 0, it is the model's at temperature 1. The model runs in eval mode.
    `generator` decides every draw: row i's t-th number does not depend on which rows have ended.

    With `reply`, a row that samples a stop asks reply(row, the ids after its prompt so far) for ids
    that it is given, such as a tool's answer. It then samples on; without ids it has ended. These
    ids count in max_new_tokens, end no row, have mask 0 and no log-prob.
    """
    if eos_id is None:
        stops = []
    else:
        stops = [eos_id] if isinstance(eos_id, int) else list(eos_id)
    ids = [_ids(prompt) for prompt in prompts]
    check_sampling(model.config, ids, group=group, max_new_tokens=max_new_tokens,
                   temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                   repetition_penalty=repetition_penalty,
                   ids={"eos_id": stops, "pad_id": [pad_id]}, device=model.device)
    choice = Choice(temperature, top_k, top_p, min_p, repetition_penalty)
    was_training = model.training
    model.eval()
    try:
        with sampling_in(model.device):
            return _sample(model, ids, group, max_new_tokens, choice, tuple(stops), pad_id,
                           generator, reply)
    finally:
        model.train(was_training)


def _sample(model: Transformer, prompts: list[list[int]], group: int, max_new_tokens: int,
            choice: Choice, stops: tuple[int, ...], pad_id: int,
            generator: torch.Generator | None, reply: Reply | None) -> Rollouts:
    device = model.device
    # 1. prompts, padded on the left, and the uniform numbers that decide every draw
    lengths = torch.tensor([len(prompt) for prompt in prompts])  # (P,)
    width = int(lengths.max())
    if device.type == "cuda":
        width = min(whole(width, WIDTH), model.config.max_seq_len - max_new_tokens)
    table = [[pad_id] * (width - len(prompt)) + prompt for prompt in prompts]
    tokens = torch.tensor(table, device=device)  # (P, width)
    padding = None
    if not bool((lengths == width).all()):
        padding = (width - lengths).to(device)  # (P,)
    source = generator.device if generator is not None else device
    rows = len(prompts) * group
    uniform = torch.rand(max_new_tokens, rows, generator=generator, device=source).to(device)

    # 2. grow each prompt into its rows, a token per step, until all have ended
    decoder = decoder_for(model, rows, width, max_new_tokens, choice, stops,
                          padded=padding is not None, replying=reply is not None)
    new_tokens, new_logp = decoder.grow(model, tokens, padding, group, uniform, reply)
    check_finite(new_logp)
    # 3. where each row ends, and what of it was drawn
    if decoder.replies is None:
        is_stop = torch.isin(new_tokens, torch.tensor(stops, dtype=torch.long, device=device))
        ends = torch.where(is_stop.any(1), is_stop.int().argmax(1) + 1, 0)  # (B,), 0: cut off
        drawn = torch.ones_like(new_tokens, dtype=torch.bool)  # (B, max_new_tokens)
    else:
        ends, drawn = decoder.replies.ends, decoder.replies.given == DRAWN
    return _lay_out(prompts, group, new_tokens, new_logp, ends, drawn, pad_id)


def _lay_out(prompts: list[list[int]], group: int, new_tokens: Tensor, new_logp: Tensor,
             ends: Tensor, drawn: Tensor, pad_id: int) -> Rollouts:
    """Put new tokens and log-probs (B, max_new_tokens) after their prompts."""
    device, max_new_tokens = new_tokens.device, new_tokens.shape[1]
    truncated = ends == 0  # (B,)
    lengths = torch.where(truncated, max_new_tokens, ends)  # (B,)

    row_prompts = [prompt for prompt in prompts for _ in range(group)]
    prompt_lengths = torch.tensor([len(prompt) for prompt in row_prompts], device=device)  # (B,)
    start, stop = torch.zeros_like(prompt_lengths), prompt_lengths + lengths
    B, T = len(stop), int(stop.max())
    filled = span_mask(prompt_lengths, stop, T)  # (B, T)
    new_mask = span_mask(start, lengths, max_new_tokens)  # (B, max_new_tokens)
    tokens = torch.full((B, T), pad_id, device=device)
    prompt_ids = torch.tensor([i for prompt in row_prompts for i in prompt], device=device)
    tokens[span_mask(start, prompt_lengths, T)] = prompt_ids
    tokens[filled] = new_tokens[new_mask]
    mask, behavior_logp = torch.zeros_like(filled), torch.zeros(B, T, device=device)  # (B, T)
    mask[filled] = drawn[new_mask]
    behavior_logp[filled] = new_logp[new_mask]
    return Rollouts(tokens, mask, prompt_lengths, behavior_logp, truncated)


def _ids(prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        raise ValueError(f"the prompt {prompt[:40]!r} is text: sample takes lists of ids, as "
                         "tokenizer.encode gives them")
    return prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)


def check_sampling(config: ModelConfig, prompts: Sequence[Sequence[int]], *, group: int,
                   max_new_tokens: int, temperature: float, top_k: int, top_p: float,
                   ids: dict[str, list[int]], min_p: float = 0.0, repetition_penalty: float = 1.0,
                   device: torch.device | str = "cpu") -> None:
    """Raise ValueError for what cannot be sampled, before anything is computed."""
    check_choices(group=group, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                  top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
    if not prompts:
        raise ValueError("prompts is empty: expected at least one prompt")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty: expected at least one id, for instance the "
                             "tokenizer's BOS")
        check_context(f"prompt {i}", len(prompt), max_new_tokens, config.max_seq_len)
    pairs = [(f"prompt {i}", prompt) for i, prompt in enumerate(prompts)]
    for name, row in [*pairs, *ids.items()]:
        for id in row:
            if not isinstance(id, int) or not 0 <= id < config.vocab_size:
                raise ValueError(f"{name} holds the id {id!r}, unknown to the model: expected "
                                 f"whole numbers in [0, {config.vocab_size})")
    rows, length = len(prompts) * group, max(map(len, prompts)) + max_new_tokens
    check_room(sampling_bytes(config, rows, length), torch.device(device),
               f"sampling {rows:,} completions at once")


def check_choices(*, group: int, max_new_tokens: int, temperature: float, top_k: int = 0,
                  top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0) -> None:
    """Raise ValueError for numbers that no model could sample with."""
    if group < 1:
        raise ValueError(f"group is {group}: expected at least 1 completion per prompt")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: expected 0 (greedy) or a positive number")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}: expected 0 (off) or a positive number")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: expected a number in (0, 1], where 1 is off")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}: expected a number in [0, 1], where 0 is off")
    if not 0 < repetition_penalty < float("inf"):
        raise ValueError(f"repetition_penalty is {repetition_penalty}: expected a positive number, "
                         "where 1 is off")


def check_context(what: str, tokens: int, max_new_tokens: int, context: int) -> None:
    """Raise ValueError where a prompt of so many tokens leaves no room for a completion."""
    if tokens + max_new_tokens > context:
        raise ValueError(f"{what} has {tokens} tokens; with max_new_tokens {max_new_tokens} that "
                         f"is more than the model's context of {context}: shorten the prompt, "
                         "lower max_new_tokens, or use a model with a larger context")
