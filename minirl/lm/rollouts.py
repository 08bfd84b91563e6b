"""Rollouts: what the sampler hands to the learner. One alignment for every per-token tensor, (B, T), slot t about emitting token t."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

TOKEN_BUDGET = 8_192      # tokens of a micro-batch: on a CPU more take longer, as their tensors are new memory each time; a GPU that has room wants more


@dataclass(frozen=True)
class Rollouts:
    """B completions with their prompts, padded on the right. Rows of one prompt stand together: row p * G + g is sample g of prompt p.

    Shapes     tokens (B, T) int64; mask (B, T) bool; prompt_lengths (B,) int64; behavior_logp (B, T) float32; truncated (B,) bool

    `mask` is true exactly where the policy sampled the token, its EOS included; it is made from lengths, never from token values.
    `behavior_logp` is the log-probability with which the sampler drew each token (temperature, top-k and top-p applied), 0 elsewhere.
    `truncated` rows ran out of max_new_tokens before an EOS.
    """

    tokens: Tensor
    mask: Tensor
    prompt_lengths: Tensor
    behavior_logp: Tensor
    truncated: Tensor

    def __post_init__(self):
        B, T = self.tokens.shape
        for name, shape in (("mask", (B, T)), ("behavior_logp", (B, T)), ("prompt_lengths", (B,)), ("truncated", (B,))):
            if getattr(self, name).shape != shape:
                raise ValueError(f"Rollouts.{name} is {tuple(getattr(self, name).shape)}: {shape} is wanted beside tokens {(B, T)}")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Tensor:
        """(B,): tokens per row up to the last sampled one, or the prompt where nothing was sampled. Tool output between sampled tokens counts."""
        last = self.mask.shape[1] - self.mask.flip(1).to(torch.int8).argmax(1) if self.mask.numel() else self.prompt_lengths
        return torch.where(self.mask.any(1), last, self.prompt_lengths)

    @property
    def completion_lengths(self) -> Tensor:
        """(B,): sampled tokens per row, EOS included."""
        return self.mask.sum(1)

    def completion_ids(self) -> list[list[int]]:
        """The ids behind each prompt, EOS included: what was sampled (and what tools put in), never decoded and encoded again."""
        return [row[start:end] for row, start, end in zip(self.tokens.tolist(), self.prompt_lengths.tolist(), self.lengths.tolist())]

    def rows(self, index: Tensor) -> Rollouts:
        """The given rows, cut to the longest of them: a micro-batch carries no padding but its own."""
        picked = {field.name: getattr(self, field.name)[index] for field in fields(self)}
        width = int(self.lengths[index].max()) if len(index) else 0
        return Rollouts(**{name: x[:, :width] if x.dim() == 2 else x for name, x in picked.items()})

    def to(self, device) -> Rollouts:
        return Rollouts(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def right_pad(rows: list[list[int]], pad_id: int, *, device=None) -> tuple[Tensor, Tensor]:
    """Rows of ids -> tokens (B, T) filled up with pad_id on the right, and lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    width = int(lengths.max()) if len(rows) else 0
    tokens = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], dtype=torch.long).view(len(rows), width)
    return tokens.to(device), lengths.to(device)


def span_mask(starts: Tensor, ends: Tensor, width: int) -> Tensor:
    """(B, width) bool: true in slots starts <= t < ends of each row. Masks come from lengths, so that a pad id equal to EOS hides no EOS."""
    slots = torch.arange(width, device=starts.device)
    return (slots >= starts[:, None]) & (slots < ends[:, None])


def completion_batch(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device) -> tuple[Tensor, Tensor]:
    """Prompts with their completions as tokens (B, T), filled up on the right, and the mask (B, T) of the completions."""
    tokens, ends = right_pad([[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)], pad_id, device=device)
    starts = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.long, device=device)
    return tokens, span_mask(starts, ends, tokens.shape[1])


def micro_batches(lengths: Tensor, token_budget: int = TOKEN_BUDGET) -> Iterator[Tensor]:
    """Split rows into micro-batches of similar length, at most token_budget tokens each (a single row may exceed it; padding costs nothing).

    lengths (N,) -> index tensors that cover 0..N-1 once, longest rows first, in as few parts as the budget wants, and these about even. The split
    changes no gradient: see reduce.aggregate.
    """
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    start, rest = 0, sum(sizes)
    while start < len(sizes):
        share = rest / max(1, -(-rest // token_budget))
        end, tokens = start + 1, sizes[start]
        while end < len(sizes) and tokens < share and tokens + sizes[end] <= token_budget:
            tokens += sizes[end]
            end += 1
        yield order[start:end]
        start, rest = end, rest - tokens
