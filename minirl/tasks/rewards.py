"""Rule rewards, in the signature that TRL uses: f(prompts, completions, **columns) -> one number (or None: no verdict) per completion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from minirl.tasks.problem import RewardFunction

ANSWER = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
FORMAT = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")


def accuracy(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str | None], **_) -> list[float | None]:
    """1.0 where what stands in <answer> equals the answer, as numbers where both are ("1,234" = "1234.00"), as text otherwise; else 0.0.

    A completion without an <answer>, or with more than one opening or closing tag, is wrong: listing guesses does not pay. None where
    `answer` is None.
    """
    _same_length(completions, answer=answer)
    return [None if gold is None else float(_says(text(completion), str(gold))) for completion, gold in zip(completions, answer)]


def format_reward(prompts: Sequence[str], completions: Sequence[str], **_) -> list[float | None]:
    """1.0 where the completion is <think>…</think><answer>…</answer>, each tag once and in this order, and nothing before or after; else 0.0.

    Paper      DeepSeek-R1, arXiv:2501.12948, section 2.2.2. What the tags hold, and white space between them, is free.
    """
    texts = [text(completion) for completion in completions]
    return [float(all(t.count(tag) == 1 for tag in TAGS) and FORMAT.fullmatch(t) is not None) for t in texts]


def combine(rewards: Sequence[RewardFunction], weights: Sequence[float]) -> RewardFunction:
    """One reward function: the weighted sum of several. A None counts as 0 beside other verdicts; None from all of them stays None.

    Paper      DeepSeek-R1, arXiv:2501.12948, section 2.2.2: accuracy and format with equal weights.
    """
    if len(rewards) != len(weights) or not rewards:
        raise ValueError(f"{len(rewards)} rewards and {len(weights)} weights: at least one of each, and as many weights as rewards, are wanted")

    def combined(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        return weighted_sum([reward(prompts, completions, **columns) for reward in rewards], weights)

    return combined


def weighted_sum(verdicts: Sequence[list[float | None]], weights: Sequence[float]) -> list[float | None]:
    """Per completion the weighted sum of several rewards' verdicts; None where none of them has one. One of weight 0 beside others is only watched."""
    counted = [(w, verdict) for w, verdict in zip(weights, verdicts, strict=True) if w or not any(weights)]
    return [None if all(v is None for v in row) else sum(w * v for (w, _), v in zip(counted, row) if v is not None)
            for row in zip(*(verdict for _, verdict in counted), strict=True)]


def text(completion: str | list[dict]) -> str:
    """A completion's text: itself, or the content of the last message where TRL hands over a conversation ("" where there is none)."""
    if isinstance(completion, str):
        return completion
    return completion[-1].get("content") or "" if completion else ""


def _says(completion: str, gold: str) -> bool:
    if completion.count("<answer>") != 1 or completion.count("</answer>") != 1 or (said := ANSWER.search(completion)) is None:
        return False
    a, b = said[1].strip(), gold.strip()
    if NUMBER.fullmatch(a) and NUMBER.fullmatch(b):
        return Decimal(a.replace(",", "")) == Decimal(b.replace(",", ""))
    return a == b


def _same_length(completions: Sequence, **columns: Sequence) -> None:
    for name, column in columns.items():
        if len(column) != len(completions):
            raise ValueError(f"{len(completions)} completions and {len(column)} entries of {name!r}: one entry per completion is wanted")
