"""Rule rewards, in TRL's signature: f(prompts, completions, **columns) -> a number per completion.

Rewards are called as TRL calls them, by keyword: parameters may stand in any order, and a function
names those that it needs. A verdict is a finite number of any type; None and NaN are "no verdict".
"""

from __future__ import annotations

import inspect
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import wraps
from itertools import groupby

from minirl.tasks.problem import RewardFunction

ANSWER = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
FORMAT = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Reasoning ends at the next tag, at one that was cut off, or at the end.
REASONING = re.compile(r"<think>(.*?)(?:</?(?:think|answer)>|<[^\s<>]*\Z|\Z)", re.DOTALL)
# <pad>, <|im_end|>, </s>, <b>, [PAD], [/INST]
MARKUP = re.compile(r"<[^\s<>]+>|\[/?(?:PAD|UNK|BOS|EOS|CLS|SEP|MASK|INST)\]")
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")             # letters of any script; a number is a word of no language
SCRIPTS = {"ko": re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]"), "en": re.compile("[A-Za-z\u00c0-\u024f]")}
NUMBER = re.compile(r"([+-]?)(?=\.?[0-9])([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.([0-9]*))?")
FULL_WIDTH = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def accuracy(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str | None], **_) -> list[float | None]:
    """1.0 where what stands in <answer> equals the answer, as numbers where both are ("1,234" = "1234.00"), as text otherwise; else 0.0.

    A completion without an <answer>, or with more than one opening or closing tag, is wrong: listing guesses does not pay. None where
    `answer` is None, NaN or empty: nothing can be right there. normalise_answer says what is equal.
    """
    _same_length(completions, answer=answer)
    golds = [_gold(gold) for gold in answer]
    return [None if gold is None else float(answer_of(completion) == gold)
            for completion, gold in zip(completions, golds)]


def answer_of(completion: str | Sequence[dict]) -> str | None:
    """What a completion answers, as normalise_answer spells it, so that equal answers are equal
    votes. None where accuracy finds no answer."""
    said = text(completion)
    match = ANSWER.search(said) if said.count("<answer>") == said.count("</answer>") == 1 else None
    return None if match is None else normalise_answer(match[1]) or None


def normalise_answer(answer: str) -> str:
    """One spelling for all answers that are equal.

    Text is in Unicode's form NFC, full-width characters are plain ones, and there is no white space
    around it. (NFKC would go too far: it makes x2 of x².) A number has no plus sign, no commas, and
    no zeros in front of it or behind its point.

    >>> [normalise_answer(answer) for answer in ("062", "+62.0", "1,234.50", ".5", "5.", "-0")]
    ['62', '62', '1234.5', '0.5', '5', '0']
    """
    plain = unicodedata.normalize("NFC", answer.translate(FULL_WIDTH)).strip()
    number = NUMBER.fullmatch(plain.replace("\u2212", "-"))           # the minus that is no hyphen
    if number is None:
        return plain
    whole, fraction = number[2].replace(",", "").lstrip("0") or "0", (number[3] or "").rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return f"-{size}" if number[1] == "-" and size != "0" else size


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
    English, single Latin letters (names of quantities) are words of no language. So are numerals
    (x², ½, ①, Ⅷ), tags and special tokens (<pad>, <|im_end|>). Reasoning that is missing, or has no
    word at all, gets 0: silence does not pay. One that was not closed ends at the next tag, or with
    the completion.
    """
    _same_length(completions, language=language)
    if unknown := {x for x in language if not _missing(x)} - set(SCRIPTS):
        raise ValueError(f"language is {sorted(map(str, unknown))[0]!r}: one of {', '.join(SCRIPTS)} is wanted (or None, for no verdict)")
    return [None if _missing(wanted) else _share(text(completion), wanted)
            for completion, wanted in zip(completions, language)]


def combine(rewards: Sequence[RewardFunction], weights: Sequence[float]) -> RewardFunction:
    """One reward function: the weighted sum of several. "No verdict" (None or NaN) counts as 0
    beside other verdicts; from all of them it is None.

    Paper      DeepSeek-R1, arXiv:2501.12948, section 2.2.2: accuracy and format with equal weights.
    """
    if len(rewards) != len(weights) or not rewards:
        raise ValueError(f"{len(rewards)} rewards and {len(weights)} weights: at least one of each, and as many weights as rewards, are wanted")

    def combined(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        return weighted_sum([_verdicts(reward, prompts, completions, columns) for reward in rewards], weights)

    return combined


def conversational(reward: RewardFunction) -> RewardFunction:
    """A reward that reads conversations, as most of TRL's own do, made to read text: each prompt
    and completion is handed over as one message.

    >>> def polite(completions, **_):
    ...     return [float("please" in messages[0]["content"]) for messages in completions]
    >>> conversational(polite)(prompts=["a cup?", "a plate?"], completions=["yes, please", "no"])
    [1.0, 0.0]
    """
    def as_messages(role: str, texts: Sequence) -> list:
        return [[{"role": role, "content": x}] if isinstance(x, str) else x for x in texts]

    @wraps(reward)
    def asked(prompts: Sequence, completions: Sequence, **columns) -> list[float | None]:
        return reward(prompts=as_messages("user", prompts),
                      completions=as_messages("assistant", completions), **columns)

    return asked


def judge(rewards: Mapping[str, RewardFunction], names: Iterable[str], prompts: Sequence[str], completions: Sequence[str], /,
          **columns) -> dict[str, list[float | None]]:
    """What the named rewards say: one number per completion each, None for "no verdict".

    Raises ValueError for an unknown name, a reward that does not take these columns, or one that
    does not give a finite number, None or NaN for each completion.
    """
    names = list(names)
    if unknown := [name for name in names if name not in rewards]:
        raise ValueError(f"there is no reward {unknown[0]!r}: one of {', '.join(rewards)} is wanted")
    return {name: _verdicts(rewards[name], prompts, completions, columns, name) for name in names}


def _verdicts(reward: RewardFunction, prompts: Sequence[str], completions: Sequence[str], columns: dict, name: str | None = None) -> list[float | None]:
    name = name or getattr(reward, "__name__", repr(reward))
    arguments = {"prompts": prompts, "completions": completions, **columns}
    if (misfit := _misfit(reward, arguments)) is not None:
        raise ValueError(f"the reward {name!r} cannot be called ({misfit}): its keywords are "
                         f"{', '.join(arguments)}; let it name what it needs, and the rest be **_")
    judged = reward(**arguments)
    try:
        verdicts = list(judged)
    except TypeError:                                # None, a number, a tensor without dimensions
        verdicts = None
    if verdicts is None or isinstance(judged, str):
        came = repr(judged)
    elif len(verdicts) != len(completions):
        came = f"{len(verdicts)} of them"
    else:
        try:
            return [as_number(verdict) for verdict in verdicts]
        except ValueError as error:
            came = str(error)
    raise ValueError(f"the reward {name!r} gave {came}: a list of one number (or None) for each of "
                     f"the {len(completions)} completions is wanted")


def _misfit(reward: RewardFunction, arguments: dict) -> TypeError | None:
    """Why a function does not take these arguments; None where it does, or does not tell."""
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(**arguments)
    except TypeError as error:
        return error


def as_number(verdict) -> float | None:
    """A verdict as a float, whether it is a bool, a Decimal, or one of numpy's or torch's numbers;
    None for "no verdict": None and NaN. Raises ValueError for anything else, infinity too."""
    if verdict is None:
        return None
    try:
        value = float(verdict) if hasattr(verdict, "__float__") else None
    except (TypeError, ValueError, RuntimeError, OverflowError):     # 1e400, or several numbers
        value = None
    if value is None or math.isinf(value):
        raise ValueError(repr(verdict) + (", which is not finite" if value is not None else ""))
    return None if math.isnan(value) else value


def weighted_sum(verdicts: Sequence[list[float | None]], weights: Sequence[float]) -> list[float | None]:
    """Per completion the weighted sum of several rewards' verdicts; None where none of them has one
    (None or NaN). One of weight 0 beside others is only watched."""
    counted = [(w, [as_number(v) for v in verdict])
               for w, verdict in zip(weights, verdicts, strict=True) if w or not any(weights)]
    return [None if all(v is None for v in row) else sum(w * v for (w, _), v in zip(counted, row) if v is not None)
            for row in zip(*(verdict for _, verdict in counted), strict=True)]


def text(completion: str | Sequence[dict]) -> str:
    """A completion's text: itself, or, where TRL hands over a conversation, what the assistant said
    last ("" where it said nothing).

    >>> parts = [{"type": "text", "text": "5"}]
    >>> text([{"role": "assistant", "content": parts}, {"role": "tool", "content": "6"}])
    '5'
    """
    if isinstance(completion, str):
        return completion
    said = [message for message in completion if message.get("role", "assistant") == "assistant"]
    return content_text(said[-1].get("content")) if said else ""


def content_text(content: str | Sequence | None) -> str:
    """The text in a message's content, which is text, a list of parts, or None."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)


def _share(completion: str, language: str) -> float:
    reasoning = REASONING.search(completion)
    plain = _letters(MARKUP.sub(" ", reasoning[1])) if reasoning else ""
    scripts = [script for word in WORD.findall(plain) for script in _scripts(word)]
    words = [script for script in scripts if language == "en" or script != "letter"]
    return sum(script in (language, "letter") for script in words) / len(words) if words else 0.0


def _letters(reasoning: str) -> str:
    """Reasoning with gaps for numerals, and its letters in their plain and composed form."""
    if reasoning.isascii():
        return reasoning
    composed = unicodedata.normalize("NFC", "".join(map(_letter, reasoning)))
    return "".join(c for c in composed if not unicodedata.category(c).startswith("M"))     # accents


def _letter(c: str) -> str:
    if not c.isalpha():
        return " " if c.isalnum() else c                             # ½, ①, Ⅷ: \w, and no letters
    small = unicodedata.decomposition(c).startswith(("<super>", "<sub>"))        # 2ⁿ, 1º
    return " " if small else unicodedata.normalize("NFKC", c)        # of another font or width: 𝑥


def _scripts(word: str) -> list[str]:
    """The language of each run of one script in a word: "ko", "en", "letter" for a single Latin letter, or "other"."""
    kinds = [next((name for name, script in SCRIPTS.items() if script.match(c)), "other") for c in word if c not in "'’"]
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    return ["letter" if (kind, length) == ("en", 1) else kind for kind, length in runs]


def _missing(entry) -> bool:
    """Whether a column has no entry here: None, or the NaN that data frames put in its place."""
    return entry is None or entry != entry


def _gold(answer) -> str | None:
    """The right answer as normalise_answer spells it, None where there is none."""
    if _missing(answer):
        return None
    if isinstance(answer, (float, Decimal)) and math.isfinite(answer):
        answer = format(Decimal(str(answer)), "f")                           # not 1e+16
    return normalise_answer(str(answer)) or None


def _same_length(completions: Sequence, **columns: Sequence) -> None:
    for name, column in columns.items():
        if len(column) != len(completions):
            raise ValueError(f"{len(completions)} completions and {len(column)} entries of {name!r}: one entry per completion is wanted")
