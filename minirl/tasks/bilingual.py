"""Sums and word problems in English or Korean: the toy on which a model mixes its languages.

    add three tens four plus two tens eight =
        <think>ones: four plus eight is one two, tens: three plus two plus one is six</think>
        <answer>62</answer>
    철수가 사과를 삼 십 사 개, 영희가 이 십 팔 개 가졌다. 모두 몇 개?
        <think>일의 자리: 일 이, 십의 자리: 육</think><answer>62</answer>

Numbers are named by their places and added column by column from the right, with the carry where
there is one; the answer is in figures. Reasoning is long (every column is worked out), brief (only
the columns' totals) or missing, and what is not worked out may be wrong. A part of the text that a
base model reads is mixed: each column of the reasoning is in a language of its own. Nothing about
that is wrong, so a reward for right answers does not punish it; rewards.language_consistency does,
and `rewrite` puts such reasoning into one language.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import Problem, RewardFunction, check_share
from minirl.tasks.rewards import accuracy, format_reward, language_consistency

NAMES = {"en": "English", "ko": "Korean"}
LANGUAGES = tuple(NAMES)
DIGITS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "ko": ("영", "일", "이", "삼", "사", "오", "육", "칠", "팔", "구")}
# behind a digit of a number, from the right
PLACES = {
    "en": ("", " tens", " hundreds", " thousands", " ten-thousands"),
    "ko": ("", " 십", " 백", " 천", " 만")}
# in front of a column of the reasoning, from the right
COLUMNS = {
    "en": ("ones:", ", tens:", ", hundreds:", ", thousands:", ", ten-thousands:"),
    "ko": ("일의 자리:", ", 십의 자리:", ", 백의 자리:", ", 천의 자리:", ", 만의 자리:")}
PLUS = {"en": " plus", "ko": " 더하기"}
IS = {"en": " is", "ko": " 은"}
# before, between and behind the two numbers: of a sum, and of word problems
SUMS = {"en": ("add", PLUS["en"], " ="), "ko": ("계산:", PLUS["ko"], " =")}
STORIES = {
    "en": (("ann has", " apples and ben", ". how many in all?"),
           ("a bus carries", " people,", " more get on. how many now?"),
           ("the shop sold", " books, then", ". how many books?")),
    "ko": (("철수가 사과를", " 개, 영희가", " 개 가졌다. 모두 몇 개?"),
           ("버스에", " 명이 있고", " 명이 더 탔다. 몇 명?"),
           ("책을 어제", " 권, 오늘", " 권 팔았다. 모두 몇 권?"))}


def text_pieces(language: str) -> list[str]:
    """Return all pieces of text of a language.

    A digit has a space in front, so that it is the same piece wherever it stands.
    """
    digits = [" " + digit for digit in DIGITS[language]]
    stories = [piece for story in STORIES[language] for piece in story]
    return [*digits, PLUS[language], IS[language], *PLACES[language][1:], *COLUMNS[language],
            *SUMS[language], *stories]


# what is one token each in this toy's vocabulary
WORDS = tuple(dict.fromkeys(piece for language in LANGUAGES for piece in text_pieces(language)))


@dataclass(frozen=True)
class BilingualProblem(Problem):
    """A Problem with the language that its reasoning should be in, and its two numbers."""

    language: str = "en"
    numbers: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Bilingual:
    """Additions of two numbers, asked in `languages`.

    Drawn evenly are: how many digits both numbers have, one of `digits`; the sum; the language; and
    whether it is asked as a sum or, with probability `stories`, as a word problem. The splits are
    those of Arithmetic: no sum is in both, however it is asked.

    `reason_in` is the language that reasoning should be in; None: the prompt's.
    """

    digits: tuple[int, ...] = (2, 3)
    languages: tuple[str, ...] = LANGUAGES
    reason_in: str | None = None
    stories: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.digits, tuple) or not self.digits:
            raise ValueError(f"digits is {self.digits!r}: a tuple of how many digits numbers may "
                             "have, such as (2, 3), is wanted")
        for digits in self.digits:
            Arithmetic("addition", digits)
        reason_in = () if self.reason_in is None else (self.reason_in,)
        for name, languages in (("languages", self.languages), ("reason_in", reason_in)):
            if unknown := set(languages) - set(LANGUAGES):
                raise ValueError(f"{name} has {', '.join(sorted(unknown))}: "
                                 f"expected {' or '.join(LANGUAGES)}")
        if not self.languages:
            raise ValueError(f"languages is empty: {' or '.join(LANGUAGES)} is wanted")
        check_share("stories", self.stories)

    @property
    def name(self) -> str:
        digits = " and ".join(f"{digits}-digit" for digits in self.digits)
        languages = " and ".join(NAMES[language] for language in self.languages)
        reasoning = f", reasoning in {NAMES[self.reason_in]}" if self.reason_in else ""
        return f"{digits} addition in {languages}{reasoning}"

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        return {"accuracy": accuracy, "format_reward": format_reward,
                "language_consistency": language_consistency}

    @property
    def weights(self) -> dict[str, float]:
        return dict.fromkeys(self.rewards, 1.0)

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[BilingualProblem]:
        """Draw n problems of a split, with replacement."""
        if n < 0:
            raise ValueError(f"n is {n}: a number of problems is wanted")
        return [self._problem(rng, split) for _ in range(n)]

    def _problem(self, rng: random.Random, split: str) -> BilingualProblem:
        addition, = Arithmetic("addition", rng.choice(self.digits)).sample(1, rng, split=split)
        a, b = addition.prompt.rstrip("=").split("+")
        asked_in = rng.choice(self.languages)
        story = rng.random() < self.stories
        before, between, behind = rng.choice(STORIES[asked_in]) if story else SUMS[asked_in]
        prompt = "".join([before, words_by_place(a, asked_in), between,
                          words_by_place(b, asked_in), behind])
        reason_in = self.reason_in or asked_in
        return BilingualProblem(prompt, addition.answer,
                                worked=long_reasoning(a, b, lambda: reason_in),
                                language=reason_in, numbers=(a, b))


# numbers and reasoning in words

def words_by_place(number: str, language: str) -> str:
    """Return a number's digits with their places: "304" -> " three hundreds zero tens four"."""
    places = reversed(PLACES[language][:len(number)])
    return "".join(words_by_digit(digit, language) + place
                   for digit, place in zip(number, places, strict=True))


def words_by_digit(number: str, language: str) -> str:
    """Return a number's digits alone: "34" -> " three four"."""
    return "".join(" " + DIGITS[language][int(digit)] for digit in number)


class Column(NamedTuple):
    """A column of an addition: a digit of each number, the carry, and their total."""

    a: int
    b: int
    carry: int
    total: int


def addition_columns(a: str, b: str) -> list[Column]:
    """Return the columns of a + b, from the right."""
    width = max(len(a), len(b))
    columns: list[Column] = []
    carry = 0
    for x, y in zip(reversed(a.zfill(width)), reversed(b.zfill(width)), strict=True):
        total = int(x) + int(y) + carry
        columns.append(Column(int(x), int(y), carry, total))
        carry = total // 10
    return columns


def long_reasoning(a: str, b: str, language: Callable[[], str]) -> str:
    """Return a + b with every column worked out; language() names each column's language."""
    text = ""
    for place, column in enumerate(addition_columns(a, b)):
        lang = language()
        terms = [column.a, column.b, *[1] * column.carry]
        text += COLUMNS[lang][place]
        text += PLUS[lang].join(words_by_digit(str(term), lang) for term in terms)
        text += IS[lang] + words_by_digit(str(column.total), lang)
    return text


def brief_reasoning(totals: list[int], language: Callable[[], str]) -> str:
    """Return the totals of the columns alone; language() names each column's language."""
    text = ""
    for place, total in enumerate(totals):
        lang = language()
        text += COLUMNS[lang][place] + words_by_digit(str(total), lang)
    return text


def answer_from(totals: list[int]) -> str:
    """Return the answer that columns' totals, from the right, amount to: [12, 6] -> "62"."""
    *lower, highest = totals
    return str(highest) + "".join(str(total % 10) for total in reversed(lower))


# text to learn from

def demonstrations(task: Bilingual, n: int, rng: random.Random, *, worked_share: float = 1.0,
                   brief_share: float = 0.0, mixed_share: float = 0.0, slip_share: float = 0.0,
                   bare_share: float = 0.0, split: str = "train") -> list[tuple[str, str]]:
    """Draw n (prompt, completion) pairs. Each share is a probability.

    worked_share  every column is worked out, and the answer is right
    brief_share   the columns' totals alone; the rest is answered without reasoning
    mixed_share   each column is in a language of its own
    slip_share    of what is not worked out: one column's total is drawn anew, so that the answer is
                  mostly wrong
    bare_share    without tags
    """
    _check_shares(worked_share=worked_share, brief_share=brief_share, mixed_share=mixed_share,
                  slip_share=slip_share, bare_share=bare_share)
    pairs = []
    for problem in task.sample(n, rng, split=split):
        kind = rng.random()
        mixed = rng.random() < mixed_share
        slips = rng.random() < slip_share
        bare = rng.random() < bare_share
        totals = [column.total for column in addition_columns(*problem.numbers)]
        if kind >= worked_share and slips:
            totals[rng.randrange(len(totals))] = rng.randint(0, 18)

        language = _column_language(problem, rng, mixed=mixed)
        reasoning = ""
        if kind < worked_share:
            reasoning = long_reasoning(*problem.numbers, language)
        elif kind < worked_share + brief_share:
            reasoning = brief_reasoning(totals, language)
        answer = answer_from(totals)
        tagged = f"<think>{reasoning}</think><answer>{answer}</answer>"
        pairs.append((problem.prompt, f"{reasoning} {answer}" if bare else tagged))
    return pairs


def _column_language(problem: BilingualProblem, rng: random.Random, *,
                     mixed: bool) -> Callable[[], str]:
    """What names the next column's language: a random one if mixed, else the problem's."""
    return (lambda: rng.choice(LANGUAGES)) if mixed else (lambda: problem.language)


def _check_shares(**shares: float) -> None:
    total = shares["worked_share"] + shares["brief_share"]
    for name, share in {**shares, "worked_share + brief_share": total}.items():
        check_share(name, share)


# one language instead of two

def reasoning_words(language: str) -> list[str]:
    """Return the words of reasoning, without the spaces and commas around them.

    Word i of one language means the same as word i of the other.
    """
    pieces = [*COLUMNS[language], *PLACES[language][1:], *DIGITS[language], PLUS[language],
              IS[language]]
    return [piece.strip(" ,") for piece in pieces]


def rewrite(problem: BilingualProblem, completion: str) -> str:
    """Return the completion with its reasoning in the problem's language alone.

    Paper      DeepSeek-R1, arXiv:2501.12948v2: R1-Zero's outputs are refined for the cold start
               (there, by another model and by people).

    The other language's words are replaced: digits, places, plus, is and the columns' names. The
    answer, and all that is not in this toy's words, stays as it is.

    >>> problem = BilingualProblem("", "62", language="en")
    >>> rewrite(problem, "<think>ones: 일 이, 십의 자리: six</think><answer>62</answer>")
    '<think>ones: one two, tens: six</think><answer>62</answer>'
    """
    reasoning, tag, answer = completion.partition("<answer>")
    for language in LANGUAGES:
        if language != problem.language:
            pairs = zip(reasoning_words(language), reasoning_words(problem.language), strict=True)
            reasoning = _replace_words(reasoning, dict(pairs))
    return reasoning + tag + answer


def _replace_words(text: str, words: dict[str, str]) -> str:
    """Replace whole words, the longest first: "tens:" is a column's name, and "tens" a place."""
    longest_first = sorted(words, key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)"
    return re.sub(pattern, lambda match: words[match[0]], text)
