"""Comparisons: how a labeller ranks completions, how rankings become pairs, and how both are read
from files.

    Ranking              a prompt and K completions, best first
    Demonstration        a prompt and a completion that a person wrote
    draw_ranking         rank completions as a labeller does whose judgement is noisy
    pairs                every comparison in some rankings, as (prompt, chosen, rejected)
    split_rankings       those to learn from, and those held out
    load_rankings        from files in TRL's preference format, or with all K completions
    load_demonstrations  from files in TRL's prompt-completion format
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from minirl.tasks.conversations import completion_field, prompt_field
from minirl.tasks.records import ANSWERS, PROMPTS, first_of, read_records
from minirl.tasks.rewards import answer_text
from minirl.tasks.verdicts import as_number


@dataclass(frozen=True)
class Ranking:
    """K completions of a prompt, best first.

    `source` says where it was read ("file.jsonl, line 3"), for messages.

    Raises     ValueError for fewer than two completions, an empty one, or two that are equal: such
               a pair's loss is log 2 whatever is learnt.
    """

    prompt: str
    completions: tuple[str, ...]
    source: str = ""

    def __post_init__(self) -> None:
        where = f"{self.source}: " if self.source else ""
        prompt = repr(self.prompt[:40])
        if len(self.completions) < 2:
            raise ValueError(f"{where}a ranking of {len(self.completions)} completions for "
                             f"{prompt}: at least two are wanted")
        if not all(self.completions):
            raise ValueError(f"{where}an empty completion in a ranking for {prompt}: leave it out")
        if len(set(self.completions)) < len(self.completions):
            raise ValueError(f"{where}two equal completions in a ranking for {prompt}: nothing can "
                             "be learnt from comparing them; leave one out")


class Demonstration(NamedTuple):
    """What a person wrote for a prompt. `source` says where it was read, for messages."""

    prompt: str
    completion: str
    source: str = ""


def draw_ranking(prompt: str, completions: Sequence[str], rewards: Sequence[float | None],
                 rng: random.Random, *, noise: float) -> Ranking | None:
    """Rank completions by their true reward, as a labeller does whose judgement is noisy.

    Equation   P(i before j) = σ((r_i - r_j) / noise)
    Paper      Bradley and Terry 1952; for more than two at once Plackett 1975 and Luce 1959, drawn
               by sorting r_i / noise + Gumbel noise.
    Raises     ValueError unless noise is positive.

    Of equal completions one is ranked, empty ones and those without a verdict are left out. Returns
    None where fewer than two remain.
    """
    if not noise > 0:
        raise ValueError(f"noise is {noise}: a positive number is wanted; the smaller, the "
                         "steadier the labeller")
    verdicts = [as_number(reward) for reward in rewards]
    candidates = {completion: verdict
                  for completion, verdict in zip(completions, verdicts, strict=True)
                  if completion and verdict is not None}
    if len(candidates) < 2:
        return None
    scores = {completion: reward / noise + _gumbel(rng)
              for completion, reward in candidates.items()}
    return Ranking(prompt, tuple(sorted(scores, key=lambda c: scores[c], reverse=True)))


def _gumbel(rng: random.Random) -> float:
    """Draw from the standard Gumbel distribution."""
    return -math.log(-math.log(rng.random() or 1e-300))


def pairs(rankings: Sequence[Ranking]) -> list[tuple[str, str, str]]:
    """Return all C(K, 2) comparisons of each ranking: (prompt, chosen, rejected)."""
    return [(ranking.prompt, chosen, rejected) for ranking in rankings
            for chosen, rejected in combinations(ranking.completions, 2)]


def split_rankings(rankings: Sequence[Ranking]) -> tuple[list[Ranking], list[Ranking]]:
    """Return the rankings to learn from, and those held out: every tenth prompt, with all its
    rankings. Raises ValueError for fewer than two prompts."""
    prompts = list(dict.fromkeys(ranking.prompt for ranking in rankings))
    if len(prompts) < 2:
        raise ValueError(f"rankings of {len(prompts)} prompt: at least two are wanted, as one in "
                         "ten is held out")
    held_out = set(prompts[::10])
    return ([ranking for ranking in rankings if ranking.prompt not in held_out],
            [ranking for ranking in rankings if ranking.prompt in held_out])


# files

def load_rankings(path: str | Path) -> list[Ranking]:
    """Read rankings from a file (records.py), one per record.

    A record is TRL's preference format, {"prompt": ..., "chosen": ..., "rejected": ...}, or what
    save_rankings writes, {"prompt": ..., "completions": [best, ..., worst]}. Conversations may have
    the prompt's messages in front of each completion, and no field for it.

    Raises ValueError, with file and line, for a record without these fields, an empty text, or a
    pair of equal completions.
    """
    rankings = []
    for source, entry in read_records(path, "prompt, chosen and rejected"):
        completions, chosen = entry.get("completions"), entry.get("chosen")
        if "prompt" not in entry and isinstance(chosen, list) and len(chosen) > 1:
            entry["prompt"] = chosen[:-1]
        prompt = prompt_field(entry.get("prompt"), "prompt", source)
        if isinstance(completions, list):
            texts = [completion_field(text, "completions", source, prompt=prompt,
                                      at=f" at index {i}") for i, text in enumerate(completions)]
        else:
            names = ("completions",) if "completions" in entry else ("chosen", "rejected")
            texts = [completion_field(entry.get(name), name, source, prompt=prompt)
                     for name in names]
        rankings.append(Ranking(prompt, tuple(texts), source))
    return rankings


def load_demonstrations(path: str | Path) -> list[Demonstration]:
    """Read demonstrations from a file (records.py), one per record.

    A record is TRL's prompt-completion format, {"prompt": ..., "completion": ...}, a conversation
    that ends with the assistant's message, {"messages": [...]}, or a question with its answer.

    Raises ValueError as load_rankings does.
    """
    demonstrations = []
    for source, entry in read_records(path, "prompt and completion"):
        messages = entry.get("messages")
        if isinstance(messages, list) and messages:
            if not isinstance(messages[-1], dict) or messages[-1].get("role") != "assistant":
                raise ValueError(f"{source}: 'messages' does not end with a message of the "
                                 "assistant: there is nothing to learn from")
            entry = {"prompt": messages[:-1], "completion": messages[-1:]}
        name = first_of(PROMPTS, entry) or "prompt"
        prompt = prompt_field(entry.get(name), name, source)
        name = first_of(("completion", *ANSWERS), entry) or "completion"
        completion = entry.get(name)
        if name in ANSWERS and isinstance(completion, (int, float)):
            completion = answer_text(completion)
        demonstrations.append(Demonstration(
            prompt, completion_field(completion, name, source, prompt=prompt), source))
    return demonstrations


def save_rankings(rankings: Sequence[Ranking], path: str | Path) -> None:
    """Write rankings as JSONL that load_rankings reads."""
    lines = (json.dumps({"prompt": ranking.prompt, "completions": ranking.completions},
                        ensure_ascii=False)
             for ranking in rankings)
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
