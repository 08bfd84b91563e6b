"""Rule rewards, in the signature that TRL uses: f(prompts, completions, **columns) -> one number (or None: no verdict) per completion."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import groupby

from minirl.tasks.problem import RewardFunction

ANSWER = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
FORMAT = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
REASONING = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")             # letters of any script; a number is a word of no language
SCRIPTS = {"ko": re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]"), "en": re.compile("[A-Za-z\u00c0-\u024f]")}
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


def language_consistency(prompts: Sequence[str], completions: Sequence[str], language: Sequence[str | None], **_) -> list[float | None]:
    """Share of the words inside <think>…</think> that are in the language asked for, "ko" or "en". None where `language` is None.

    Equation   #(words of the target language) / #(words),  of the chain of thought
    Paper      DeepSeek-R1, arXiv:2501.12948v2, eq. 7.
    Raises     ValueError for an unknown language, or not one entry per completion.

    A word is a run of letters of one script ("3더하기four" has two), and one of Hangul is Korean, one of Latin letters English. Numbers, signs and, outside
    English, single Latin letters (names of quantities) are words of no language. Reasoning that is missing, or has no word at all, gets 0: silence does not pay. One
    that was cut off counts up to its end.
    """
    _same_length(completions, language=language)
    if unknown := {x for x in language if x is not None} - set(SCRIPTS):
        raise ValueError(f"language is {sorted(map(str, unknown))[0]!r}: one of {', '.join(SCRIPTS)} is wanted (or None, for no verdict)")
    return [None if wanted is None else _share(text(completion), wanted) for completion, wanted in zip(completions, language)]


def combine(rewards: Sequence[RewardFunction], weights: Sequence[float]) -> RewardFunction:
    """One reward function: the weighted sum of several. A None counts as 0 beside other verdicts; None from all of them stays None.

    Paper      DeepSeek-R1, arXiv:2501.12948, section 2.2.2: accuracy and format with equal weights.
    """
    if len(rewards) != len(weights) or not rewards:
        raise ValueError(f"{len(rewards)} rewards and {len(weights)} weights: at least one of each, and as many weights as rewards, are wanted")

    def combined(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        return weighted_sum([_verdicts(reward, prompts, completions, columns) for reward in rewards], weights)

    return combined


def judge(rewards: dict[str, RewardFunction], names: Iterable[str], prompts: Sequence[str], completions: Sequence[str], /,
          **columns) -> dict[str, list[float | None]]:
    """What the named rewards say: one number per completion (None: no verdict) each. Raises ValueError for an unknown name, or anything else than that."""
    if unknown := [name for name in names if name not in rewards]:
        raise ValueError(f"there is no reward {unknown[0]!r}: one of {', '.join(rewards)} is wanted")
    return {name: _verdicts(rewards[name], prompts, completions, columns, name) for name in names}


def _verdicts(reward: RewardFunction, prompts: Sequence[str], completions: Sequence[str], columns: dict, name: str | None = None) -> list[float | None]:
    found = reward(prompts, completions, **columns)
    said = list(found) if hasattr(found, "__len__") and not isinstance(found, str) else None
    if said is None:
        came = repr(found)
    elif len(said) != len(completions):
        came = f"{len(said)} of them"
    else:
        came = next((repr(verdict) for verdict in said if verdict is not None and not hasattr(verdict, "__float__")), None)
    if came is not None:
        raise ValueError(f"the reward {name or getattr(reward, '__name__', repr(reward))!r} gave {came}: a list of one number (or None) for each of the "
                         f"{len(completions)} completions is wanted")
    return said


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


def _share(completion: str, language: str) -> float:
    reasoning = REASONING.search(completion)
    words = [script for word in WORD.findall(reasoning[1] if reasoning else "") for script in _scripts(word) if language == "en" or script != "letter"]
    return sum(script in (language, "letter") for script in words) / len(words) if words else 0.0


def _scripts(word: str) -> list[str]:
    """The language of each run of one script in a word: "ko", "en", "letter" for a single Latin letter, or "other"."""
    kinds = [next((name for name, script in SCRIPTS.items() if script.match(c)), "other") for c in word if c not in "'’"]
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    return ["letter" if (kind, length) == ("en", 1) else kind for kind, length in runs]


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
