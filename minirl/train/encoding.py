"""Texts to ids for the pages that learn from texts: BOS in front of a prompt, EOS behind a completion, and nothing cut off."""

from __future__ import annotations

from collections.abc import Sequence

from minirl.tasks.preferences import Demonstration, Ranking


def encode_pairs(tokenizer, pairs: Sequence[tuple[str, str] | Demonstration], max_seq_len: int) -> tuple[list[list[int]], list[list[int]]]:
    """Texts -> prompt ids (BOS in front) and completion ids (EOS behind). Raises ValueError for none, or for a pair that does not fit."""
    if not pairs:
        raise ValueError("there is nothing to learn from: at least one (prompt, completion) pair is wanted")
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    prompts = [bos + ids for ids in tokenizer.encode_batch([pair[0] for pair in pairs])]
    completions = [ids + [tokenizer.eos_id] for ids in tokenizer.encode_batch([pair[1] for pair in pairs])]
    for i, (prompt, completion) in enumerate(zip(prompts, completions)):
        where = getattr(pairs[i], "source", "") or f"pair {i}"
        if not prompt:
            raise ValueError(f"{where} has an empty prompt and the tokenizer no BOS: at least one token must come before the completion")
        if len(prompt) + len(completion) > max_seq_len:
            raise ValueError(f"{where} has {len(prompt) + len(completion)} tokens, more than the model's context of {max_seq_len}: cut, its completion would have "
                             "no end; shorten it, or use a model with a larger max_seq_len")
    return prompts, completions


def encode_rankings(tokenizer, rankings: Sequence[Ranking], max_seq_len: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompt ids (BOS in front) and, for each completion, ids with EOS behind. Raises ValueError for none, or for a completion that would lose its end."""
    if not rankings:
        raise ValueError("there is nothing to learn from: at least one ranking is wanted")
    prompts = [tokenizer.encode_prompt(ranking.prompt) for ranking in rankings]
    completions = [[ids + [tokenizer.eos_id] for ids in tokenizer.encode_batch(ranking.completions)] for ranking in rankings]
    for ranking, prompt, ranked in zip(rankings, prompts, completions):
        where = ranking.source or f"the ranking for {ranking.prompt[:40]!r}"
        if not prompt:
            raise ValueError(f"{where} has an empty prompt and the tokenizer no BOS: at least one token must come before the completion")
        if (longest := len(prompt) + max(map(len, ranked))) > max_seq_len:
            raise ValueError(f"{where} has {longest} tokens, more than the model's context of {max_seq_len}: cut, its completions would have no end and may be "
                             "equal; leave it out, or use a model with a larger max_seq_len")
    return prompts, completions
