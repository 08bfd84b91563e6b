"""Data for the pages that learn from texts: ids with BOS before a prompt and EOS behind a
completion, never cut off, and the batches of an epoch.

A prompt gets the same ids as when a policy samples from it, and a completion is tokenised as its
continuation: see Tokenizer.encode_pairs. No text gets a second BOS or EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations
from typing import Any

import torch

from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.preferences import Demonstration, Ranking
from minirl.tasks.steps import Solution

# Text; or its parts in turn, those that are the policy's own and those that it is given:
# ("<tool>6*7</tool>", "<result>42</result>", "<answer>42</answer>")
Completion = str | Sequence[str]


def epoch_batch(n: int, batch_size: int, step: int, seed: int, page: str) -> list[int]:
    """Return the indices of the batch at this step: each epoch is a new shuffle of all n, cut into
    batches, the last of them smaller. It depends on (seed, page, step) alone."""
    epoch, position = divmod(step, -(-n // batch_size))
    shuffle = torch.Generator().manual_seed(derive_seed(seed, page, epoch, "shuffle"))
    order = torch.randperm(n, generator=shuffle)
    return order[position * batch_size:(position + 1) * batch_size].tolist()


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str] | Demonstration],
                 max_seq_len: int) -> tuple[list[list[int]], list[list[int]]]:
    """Texts -> prompt ids (BOS in front) and completion ids (EOS behind). Raises ValueError for
    none, or for a pair that does not fit."""
    if not pairs:
        raise ValueError("there is nothing to learn from: at least one (prompt, completion) pair "
                         "is wanted")
    prompts, completions = tokenizer.encode_pairs([pair[:2] for pair in pairs])
    completions = [with_eos(tokenizer, ids) for ids in completions]
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        _check_fits(getattr(pairs[i], "source", "") or f"pair {i}", prompt, completion, max_seq_len)
    return prompts, completions


def encode_demonstrations(tokenizer: Tokenizer,
                          pairs: Sequence[tuple[str, Completion] | Demonstration], max_seq_len: int
                          ) -> tuple[list[list[int]], list[list[int]], list[list[bool]]]:
    """Encode pairs of which parts of a completion may be given, such as a tool's answers -> prompt
    ids, completion ids, and of each token of a completion whether it is the policy's own.

    Raises ValueError as encode_pairs does.
    """
    whole: list[Any] = [pair if isinstance(pair[1], str) else (pair[0], "".join(pair[1]))
                        for pair in pairs]
    prompts, completions = encode_pairs(tokenizer, whole, max_seq_len)
    own_tokens = [[True] * len(ids) for ids in completions]
    for i, (prompt, parts, *_) in enumerate(pairs):
        if not isinstance(parts, str):
            before = accumulate(parts, initial=tokenizer.prompt_text(prompt))
            _, ids = tokenizer.plain.encode_pairs(list(zip(before, parts, strict=False)))
            ids[-1] = with_eos(tokenizer, ids[-1])
            completions[i] = [id for part in ids for id in part]
            own_tokens[i] = [number % 2 == 0 for number, part in enumerate(ids) for _ in part]
    return prompts, completions, own_tokens


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str],
                 max_seq_len: int) -> tuple[list[list[int]], list[list[int]]]:
    """Texts without a prompt, as encode_pairs returns pairs. The first token is the prompt: BOS, or
    the text's own where there is no BOS."""
    if not texts:
        raise ValueError("there is nothing to read: at least one text is wanted")
    rows = [with_eos(tokenizer, ids) for ids in tokenizer.plain.encode_prompts(texts)]
    prompts, completions = [row[:1] for row in rows], [row[1:] for row in rows]
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        _check_fits(f"text {i}", prompt, completion, max_seq_len)
    return prompts, completions


def encode_rankings(tokenizer: Tokenizer, rankings: Sequence[Ranking],
                    max_seq_len: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompt ids (BOS in front) and, for each completion, ids with EOS behind.

    Raises ValueError for none, for a completion that would lose its end, and for two whose ids are
    equal, as a tokenizer makes them of one text in two Unicode spellings: comparing them, the loss
    is log 2 whatever is learnt.
    """
    if not rankings:
        raise ValueError("there is nothing to learn from: at least one ranking is wanted")
    prompts, completions = [], []
    for ranking in rankings:
        where = ranking.source or f"the ranking for {ranking.prompt[:40]!r}"
        pairs = [(ranking.prompt, completion) for completion in ranking.completions]
        encoded, ranked = tokenizer.encode_pairs(pairs)
        ranked = [with_eos(tokenizer, ids) for ids in ranked]
        for i, j in combinations(range(len(ranked)), 2):
            if ranked[i] == ranked[j]:
                raise ValueError(f"{where}: completions {i + 1} and {j + 1} are the same "
                                 f"{len(ranked[i])} tokens: nothing can be learnt from comparing "
                                 "them; leave one out")
        _check_fits(where, encoded[0], max(ranked, key=len), max_seq_len)
        prompts.append(encoded[0])
        completions.append(ranked)
    return prompts, completions


def encode_solutions(tokenizer: Tokenizer, solutions: Sequence[Solution], max_seq_len: int
                     ) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Prompt ids (BOS in front), completion ids, and how many of these come up to the end of each
    step. A solution that was sampled keeps its ids; the steps of another are tokenised one after
    the other, and EOS stands behind the last.

    Raises ValueError for none, or for a solution that does not fit.
    """
    if not solutions:
        raise ValueError("there is nothing to learn from: at least one solution is wanted")
    prompts = tokenizer.encode_prompts(solution.prompt for solution in solutions)
    completions, ends = [], []
    for solution, prompt in zip(solutions, prompts, strict=True):
        ids, marks = list(solution.ids), list(solution.ends)
        if not ids:
            before = accumulate(solution.steps, initial=tokenizer.prompt_text(solution.prompt))
            _, steps = tokenizer.plain.encode_pairs(list(zip(before, solution.steps, strict=False)))
            steps[-1] = with_eos(tokenizer, steps[-1])
            ids, marks = [i for step in steps for i in step], list(accumulate(map(len, steps)))
        _check_fits(solution.source or f"the solution of {solution.prompt[:40]!r}", prompt, ids,
                    max_seq_len)
        completions.append(ids)
        ends.append(marks)
    return prompts, completions, ends


def with_eos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Return a completion's ids with EOS, unless they end in a stop token already."""
    return ids if ids and ids[-1] in tokenizer.stop_ids else [*ids, tokenizer.eos_id]


def _check_fits(where: str, prompt: list[int], completion: list[int], max_seq_len: int) -> None:
    if not prompt or not completion:
        raise ValueError(f"{where} has an empty prompt and the tokenizer no BOS: at least one "
                         "token must come before the completion")
    if len(prompt) + len(completion) > max_seq_len:
        raise ValueError(f"{where} has {len(prompt) + len(completion)} tokens, more than the "
                         f"model's context of {max_seq_len}: cut, it would have no end, and "
                         "might be equal to another; shorten it, leave it out, or use a model with "
                         "a larger max_seq_len")
