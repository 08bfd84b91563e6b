"""Rule rewards, in TRL's signature: f(prompts, completions, **columns) -> a number per completion.

Rewards are called as TRL calls them, by keyword: parameters may stand in any order, and a function
names those that it needs. A verdict is a finite number of any type; None and NaN are "no verdict".
Async functions are awaited, all of them at once.
"""

from __future__ import annotations

import inspect
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import wraps
from typing import Any

from minirl.tasks.language import SCRIPTS, share_of_words
from minirl.tasks.problem import RewardFunction
from minirl.tasks.verdicts import Verdicts, as_number, read_verdicts
from minirl.tasks.waiting import Pending, start

Completion = str | Sequence[Mapping[str, Any]]        # text, or a conversation in TRL's format

ANSWER = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
FORMAT = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
NUMBER = re.compile(r"([+-]?)(?=\.?[0-9])([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.([0-9]*))?")
FULL_WIDTH = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


# rule rewards

def accuracy(prompts: Sequence[Any], completions: Sequence[Completion], answer: Sequence[Any],
             **_: Any) -> Verdicts:
    """1.0 where what stands in <answer> equals the answer, else 0.0.

    Both are compared as numbers where both are ("1,234" = "1234.00"), as text otherwise;
    normalise_answer says what is equal. A completion without an <answer>, or with more than one
    opening or closing tag, is wrong: listing guesses does not pay. None where `answer` is None, NaN
    or empty: nothing can be right there.
    """
    check_lengths(completions, answer=answer)
    golds = [normalise_answer(answer_text(gold) or "") or None for gold in answer]
    return [None if gold is None else float(answer_of(completion) == gold)
            for completion, gold in zip(completions, golds, strict=True)]


def answer_of(completion: Completion) -> str | None:
    """Return a completion's answer as normalise_answer spells it, so that equal answers are equal
    votes; None where accuracy finds no answer."""
    content = text(completion)
    if not content.count("<answer>") == content.count("</answer>") == 1:
        return None
    match = ANSWER.search(content)
    return None if match is None else normalise_answer(match[1]) or None


def normalise_answer(answer: str) -> str:
    """Return one spelling for all answers that are equal.

    Text is in Unicode's form NFC, full-width characters are plain ones, and there is no white space
    around it. (NFKC would go too far: it makes x2 of x².) A number has no plus sign, no commas, and
    no zeros in front of it or behind its point.

    >>> [normalise_answer(answer) for answer in ("062", "+62.0", "1,234.50", ".5", "5.", "-0")]
    ['62', '62', '1234.5', '0.5', '5', '0']
    """
    plain = unicodedata.normalize("NFC", answer.translate(FULL_WIDTH)).strip()
    number = NUMBER.fullmatch(plain.replace("\u2212", "-"))  # the minus that is no hyphen
    if number is None:
        return plain
    whole = number[2].replace(",", "").lstrip("0") or "0"
    fraction = (number[3] or "").rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return f"-{size}" if number[1] == "-" and size != "0" else size


def format_reward(prompts: Sequence[Any], completions: Sequence[Completion], **_: Any) -> Verdicts:
    """1.0 where the completion is <think>…</think><answer>…</answer>, each tag once and in this
    order, and nothing before or after; else 0.0.

    Paper      DeepSeek-R1, arXiv:2501.12948, section 2.2.2.

    What the tags hold, and white space between them, is free.
    """
    texts = [text(completion) for completion in completions]
    return [float(all(content.count(tag) == 1 for tag in TAGS)
                  and FORMAT.fullmatch(content) is not None) for content in texts]


def language_consistency(prompts: Sequence[Any], completions: Sequence[Completion],
                         language: Sequence[Any], **_: Any) -> Verdicts:
    """Share of the words inside <think>…</think> that are in the language asked for, "ko" or "en".
    None where `language` is None.

    Equation   #(words of the target language) / #(words),  of the chain of thought
    Paper      DeepSeek-R1, arXiv:2501.12948v2, eq. 7.
    Raises     ValueError for an unknown language, or not one entry per completion.
    See        language.share_of_words, which says what a word is.

    Reasoning that is missing or has no word gets 0: silence does not pay.
    """
    check_lengths(completions, language=language)
    unknown = {entry for entry in language if not _is_missing(entry)} - set(SCRIPTS)
    if unknown:
        raise ValueError(f"language is {sorted(map(str, unknown))[0]!r}: one of "
                         f"{', '.join(SCRIPTS)} is wanted (or None, for no verdict)")
    return [None if _is_missing(wanted) else share_of_words(text(completion), wanted)
            for completion, wanted in zip(completions, language, strict=True)]


# several rewards

def combine(rewards: Sequence[RewardFunction], weights: Sequence[float]) -> RewardFunction:
    """Return one reward function: the weighted sum of several.

    Paper      DeepSeek-R1, arXiv:2501.12948, section 2.2.2: accuracy and format with equal weights.
    Raises     ValueError unless there are as many weights as rewards, and at least one.

    "No verdict" (None or NaN) counts as 0 beside other verdicts; from all of them it is None.
    """
    if len(rewards) != len(weights) or not rewards:
        raise ValueError(f"{len(rewards)} rewards and {len(weights)} weights: at least one of "
                         "each, and as many weights as rewards, are wanted")

    def weighted(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Verdicts:
        arguments = {"prompts": prompts, "completions": completions, **columns}
        named = [(getattr(reward, "__name__", repr(reward)), reward) for reward in rewards]
        return weighted_sum(_verdicts(named, arguments), weights)

    return weighted


def judge(rewards: Mapping[str, RewardFunction], names: Iterable[str], prompts: Sequence[Any],
          completions: Sequence[Any], /, **columns: Any) -> dict[str, Verdicts]:
    """Return the verdicts of the named rewards: one number per completion each, None for none.

    Raises ValueError for an unknown name, a reward that does not take these columns, or one that
    does not give a finite number, None or NaN for each completion.
    """
    names = list(names)
    for name in names:
        if name not in rewards:
            raise ValueError(f"there is no reward {name!r}: one of {', '.join(rewards)} is wanted")
    arguments = {"prompts": prompts, "completions": completions, **columns}
    verdicts = _verdicts([(name, rewards[name]) for name in names], arguments)
    return dict(zip(names, verdicts, strict=True))


def weighted_sum(verdicts: Sequence[Sequence[Any]], weights: Sequence[float]) -> Verdicts:
    """Return the weighted sum of several rewards' verdicts per completion.

    None where no reward has a verdict (None or NaN). A reward of weight 0 beside others is only
    watched: its verdicts do not count, and do not make a completion one with a verdict.
    """
    columns = [(weight, [as_number(verdict) for verdict in column])
               for weight, column in zip(weights, verdicts, strict=True)
               if weight or not any(weights)]
    sums: Verdicts = []
    for row in zip(*(column for _, column in columns), strict=True):
        terms = [weight * verdict for (weight, _), verdict in zip(columns, row, strict=True)
                 if verdict is not None]
        sums.append(sum(terms) if terms else None)
    return sums


def _verdicts(rewards: Sequence[tuple[str, RewardFunction]], arguments: Mapping[str, Any]
              ) -> list[Verdicts]:
    """The verdicts of named rewards. Async ones work on while the next ones are called."""
    returned: list[Any] = []
    for name, reward in rewards:
        if (misfit := _misfit(reward, arguments)) is not None:
            raise ValueError(f"the reward {name!r} cannot be called ({misfit}): its keywords are "
                             f"{', '.join(arguments)}; let it name what it needs, and the rest be "
                             "**_")
        verdicts: Any = reward(**arguments)
        returned.append(start(verdicts) if inspect.isawaitable(verdicts) else verdicts)
    return [read_verdicts(name, x.result() if isinstance(x, Pending) else x,
                          len(arguments["completions"]))
            for (name, _), x in zip(rewards, returned, strict=True)]


def _misfit(reward: RewardFunction, arguments: Mapping[str, Any]) -> TypeError | None:
    """Why a function does not take these arguments; None where it does, or does not tell."""
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(**arguments)
    except TypeError as error:
        return error
    return None


# conversations

def conversational(reward: RewardFunction) -> RewardFunction:
    """Return a reward that reads text, made of one that reads conversations, as most of TRL's own
    do: each prompt and completion is handed over as one message.

    >>> def polite(completions, **_):
    ...     return [float("please" in messages[0]["content"]) for messages in completions]
    >>> conversational(polite)(prompts=["a cup?", "a plate?"], completions=["yes, please", "no"])
    [1.0, 0.0]
    """
    def as_messages(role: str, texts: Sequence[Completion]) -> list[Any]:
        return [[{"role": role, "content": x}] if isinstance(x, str) else x for x in texts]

    @wraps(reward)
    def reward_of_texts(prompts: Sequence[Any], completions: Sequence[Any],
                        **columns: Any) -> Verdicts:
        return reward(prompts=as_messages("user", prompts),
                      completions=as_messages("assistant", completions), **columns)

    return reward_of_texts


def text(completion: Completion) -> str:
    """Return a completion's text: itself, or, where TRL hands over a conversation, the assistant's
    last message ("" where there is none).

    >>> parts = [{"type": "text", "text": "5"}]
    >>> text([{"role": "assistant", "content": parts}, {"role": "tool", "content": "6"}])
    '5'
    """
    if isinstance(completion, str):
        return completion
    messages = [message for message in completion
                if message.get("role", "assistant") == "assistant"]
    return content_text(messages[-1].get("content")) if messages else ""


def content_text(content: str | Sequence[Any] | None) -> str:
    """Return the text in a message's content, which is text, a list of parts, or None."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)


# columns

def _is_missing(entry: Any) -> bool:
    """Whether a column has no entry here: None, or the NaN that data frames put in its place."""
    return entry is None or entry != entry


def answer_text(answer: Any) -> str | None:
    """Return the right answer as text; None where there is none: None, NaN, or empty."""
    if _is_missing(answer):
        return None
    if isinstance(answer, (float, Decimal)) and math.isfinite(answer):
        answer = format(Decimal(str(answer)), "f")  # not 1e+16
    return str(answer).strip() or None


def check_lengths(completions: Sequence[Any], **columns: Sequence[Any]) -> None:
    """Raise ValueError unless each column has an entry for each completion."""
    for name, column in columns.items():
        if len(column) != len(completions):
            raise ValueError(f"{len(completions)} completions and {len(column)} entries of "
                             f"{name!r}: one entry per completion is wanted")
