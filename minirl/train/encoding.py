"""Texts to ids for the pages that learn from texts: BOS in front of a prompt, EOS behind a completion, and nothing cut off."""

from __future__ import annotations

from collections.abc import Sequence

from minirl.tasks.preferences import Demonstration, Ranking


def encode_pairs(tokenizer, pairs: Sequence[tuple[str, str] | Demonstration], max_seq_len: int) -> tuple[list[list[int]], list[list[int]]]:
    """Texts -> prompt ids (BOS in front) and completion ids (EOS behind). Raises ValueError for none, or for a pair that does not fit."""
    if not pairs:
        raise ValueError("there is nothing to learn from: at least one (prompt, completion) pair is wanted")
    prompts = [_with_bos(tokenizer, ids) for ids in tokenizer.encode_batch([pair[0] for pair in pairs])]
    completions = [ids + [tokenizer.eos_id] for ids in tokenizer.encode_batch([pair[1] for pair in pairs])]
    for i, (prompt, completion) in enumerate(zip(prompts, completions)):
        _check_fits(getattr(pairs[i], "source", "") or f"pair {i}", prompt, completion, max_seq_len)
    return prompts, completions


def encode_texts(tokenizer, texts: Sequence[str], max_seq_len: int) -> tuple[list[list[int]], list[list[int]]]:
    """Texts without a prompt, as encode_pairs gives pairs. What comes first is given: BOS, or the first token where the tokenizer knows no BOS."""
    if not texts:
        raise ValueError("there is nothing to read: at least one text is wanted")
    rows = [_with_bos(tokenizer, ids) + [tokenizer.eos_id] for ids in tokenizer.encode_batch(list(texts))]
    prompts, completions = [row[:1] for row in rows], [row[1:] for row in rows]
    for i, (prompt, completion) in enumerate(zip(prompts, completions)):
        _check_fits(f"text {i}", prompt, completion, max_seq_len)
    return prompts, completions


def encode_rankings(tokenizer, rankings: Sequence[Ranking], max_seq_len: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompt ids (BOS in front) and, for each completion, ids with EOS behind. Raises ValueError for none, or for a completion that would lose its end."""
    if not rankings:
        raise ValueError("there is nothing to learn from: at least one ranking is wanted")
    prompts = [tokenizer.encode_prompt(ranking.prompt) for ranking in rankings]
    completions = [[ids + [tokenizer.eos_id] for ids in tokenizer.encode_batch(ranking.completions)] for ranking in rankings]
    for ranking, prompt, ranked in zip(rankings, prompts, completions):
        _check_fits(ranking.source or f"the ranking for {ranking.prompt[:40]!r}", prompt, max(ranked, key=len), max_seq_len)
    return prompts, completions


def _with_bos(tokenizer, ids: list[int]) -> list[int]:
    return ids if tokenizer.bos_id is None else [tokenizer.bos_id, *ids]


def _check_fits(where: str, prompt: list[int], completion: list[int], max_seq_len: int) -> None:
    if not prompt or not completion:
        raise ValueError(f"{where} has an empty prompt and the tokenizer no BOS: at least one token must come before the completion")
    if len(prompt) + len(completion) > max_seq_len:
        raise ValueError(f"{where} has {len(prompt) + len(completion)} tokens, more than the model's context of {max_seq_len}: cut, it would have no end, and "
                         "might be equal to another; shorten it, leave it out, or use a model with a larger max_seq_len")
