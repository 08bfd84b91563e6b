"""Rollouts: what the sampler hands to the learner.

Every per-token tensor has one alignment, (B, T): slot t is about emitting token t.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

# Tokens of a micro-batch. On a CPU more is slower, as the tensors are new memory each time; a GPU
# with enough memory is faster with more.
TOKEN_BUDGET = 8_192


@dataclass(frozen=True)
class Rollouts:
    """B completions with their prompts, padded on the right. Row p * G + g is sample g of prompt p.

    Shapes     tokens (B, T) int64; mask (B, T) bool; prompt_lengths (B,) int64;
               behavior_logp (B, T) float32; truncated (B,) bool

    `mask` is true exactly where the policy sampled the token, its EOS included. It is made from
    lengths, never from token values. `behavior_logp` is the log-probability with which the sampler
    drew each token, after temperature, top-k and top-p; it is 0 elsewhere. `truncated` rows reached
    max_new_tokens without an EOS.
    """

    tokens: Tensor
    mask: Tensor
    prompt_lengths: Tensor
    behavior_logp: Tensor
    truncated: Tensor

    def __post_init__(self) -> None:
        B, T = self.tokens.shape
        shapes = {"mask": (B, T), "behavior_logp": (B, T), "prompt_lengths": (B,),
                  "truncated": (B,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"Rollouts.{name} is {tuple(getattr(self, name).shape)}: expected "
                                 f"{shape} beside tokens {(B, T)}")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row up to the last sampled one, or its prompt's if none was. (B,)

        Tool output between sampled tokens counts.
        """
        if self.mask.numel() == 0:
            return self.prompt_lengths
        last = self.mask.shape[1] - self.mask.flip(1).to(torch.int8).argmax(1)  # (B,)
        return torch.where(self.mask.any(1), last, self.prompt_lengths)

    @property
    def completion_lengths(self) -> Tensor:
        """Sampled tokens of each row, EOS included. (B,)"""
        return self.mask.sum(1)

    def completion_ids(self) -> list[list[int]]:
        """Return the ids after each prompt, EOS included, with tool output between them.

        They are the sampled ids, not the ids of a text that was decoded and encoded again.
        """
        columns = self.tokens.tolist(), self.prompt_lengths.tolist(), self.lengths.tolist()
        return [row[start:end] for row, start, end in zip(*columns, strict=True)]

    def rows(self, index: Tensor) -> Rollouts:
        """Return some rows, cut to the longest: a micro-batch has no padding but its own."""
        chosen = {field.name: getattr(self, field.name)[index] for field in fields(self)}
        width = int(self.lengths[index].max()) if len(index) else 0
        return Rollouts(**{name: x[:, :width] if x.dim() == 2 else x
                           for name, x in chosen.items()})

    def without(self, rows: Tensor) -> Rollouts:
        """Return rollouts in which some rows, (B,) bool, have an empty mask: they are in no loss
        and no number of tokens, and still are rows of the batch."""
        return replace(self, mask=self.mask & ~rows[:, None])

    def to(self, device: torch.device | str) -> Rollouts:
        return Rollouts(**{field.name: getattr(self, field.name).to(device)
                           for field in fields(self)})


def right_pad(rows: Sequence[Sequence[int]], pad_id: int, *,
              device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Rows of ids -> tokens (B, T), filled up with pad_id on the right, and lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    width = int(lengths.max()) if len(rows) else 0
    table = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    tokens = torch.tensor(table, dtype=torch.long).view(len(rows), width)
    return tokens.to(device), lengths.to(device)


def span_mask(starts: Tensor, ends: Tensor, width: int) -> Tensor:
    """Return (B, width) bool: true in slots starts <= t < ends of each row.

    As masks come from lengths, a pad id that is equal to EOS hides no EOS.
    """
    slots = torch.arange(width, device=starts.device)
    return (slots >= starts[:, None]) & (slots < ends[:, None])


def completion_batch(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]],
                     pad_id: int, device: torch.device | str, *,
                     own_tokens: Sequence[Sequence[bool]] | None = None) -> tuple[Tensor, Tensor]:
    """Return prompts with their completions, padded on the right, and the completions' mask.

    Shapes     B prompts and completions, lists of ids -> tokens (B, T), mask (B, T)

    `own_tokens` says which tokens of the completions are the policy's own, and not a tool's: the
    mask covers these. Without it, all are.
    """
    rows = [[*prompt, *completion]
            for prompt, completion in zip(prompts, completions, strict=True)]
    tokens, ends = right_pad(rows, pad_id, device=device)
    starts = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.long, device=device)
    mask = span_mask(starts, ends, tokens.shape[1])
    if own_tokens is not None:
        mask[mask.clone()] = torch.tensor([own for row in own_tokens for own in row],
                                          device=device)
    return tokens, mask


def with_prompts(rollouts: Rollouts, prompts: Sequence[Sequence[int]], pad_id: int) -> Rollouts:
    """Return the same completions behind other prompts, one for each row: what a policy that knows
    more than the sampler's did has read.

    The tokens under the mask are the same, in the same order, and keep their behavior_logp.
    """
    spans = zip(rollouts.mask.tolist(), rollouts.prompt_lengths.tolist(),
                rollouts.lengths.tolist(), strict=True)
    tokens, mask = completion_batch(prompts, rollouts.completion_ids(), pad_id,
                                    rollouts.tokens.device,
                                    own_tokens=[row[start:end] for row, start, end in spans])
    behavior_logp = rollouts.behavior_logp.new_zeros(mask.shape).masked_scatter(
        mask, rollouts.behavior_logp[rollouts.mask])
    lengths = rollouts.prompt_lengths.new_tensor([len(prompt) for prompt in prompts])
    return Rollouts(tokens, mask, lengths, behavior_logp, rollouts.truncated)


def micro_batches(lengths: Tensor, token_budget: int = TOKEN_BUDGET) -> Iterator[Tensor]:
    """Split rows into micro-batches of similar length, of at most token_budget tokens each.

    Shapes     lengths (N,) -> index tensors that hold each of 0..N-1 once, longest rows first

    There are as few parts as the budget allows, of about the same size. A single row may exceed the
    budget. Padding is not counted. The split changes no gradient: see reduce.aggregate.
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
