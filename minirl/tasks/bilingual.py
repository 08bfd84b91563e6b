"""Sums and word problems in English or in Korean, worked out in either, or in both at once: the toy on which a model can be seen to mix its languages.

    add three tens four plus two tens eight =
        <think>ones: four plus eight is one two, tens: three plus two plus one is six</think><answer>62</answer>
    철수가 사과를 삼 십 사 개, 영희가 이 십 팔 개 가졌다. 모두 몇 개?
        <think>일의 자리: 일 이, 십의 자리: 육</think><answer>62</answer>

Numbers are told by their places and added column by column from the right, with the carry where there is one; the answer is in figures. Reasoning is long (every
column is worked out), brief (columns' totals alone) or missing, and haste errs. The text that a base model reads is `mixed` in part: each column of the reasoning
is told in a language of its own. Nothing about that is wrong, so a reward for right answers does not punish it; rewards.language_consistency does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import Problem, RewardFunction
from minirl.tasks.rewards import accuracy, format_reward, language_consistency

DIGITS = {"en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
          "ko": ("영", "일", "이", "삼", "사", "오", "육", "칠", "팔", "구")}
LANGUAGES = tuple(DIGITS)
NAMES = {"en": "English", "ko": "Korean"}
PLACES = {"en": ("", " tens", " hundreds", " thousands", " ten-thousands"),              # behind a digit, from the right
          "ko": ("", " 십", " 백", " 천", " 만")}
COLUMNS = {"en": ("ones:", ", tens:", ", hundreds:", ", thousands:", ", ten-thousands:"),      # in front of a column
           "ko": ("일의 자리:", ", 십의 자리:", ", 백의 자리:", ", 천의 자리:", ", 만의 자리:")}
PLUS = {"en": " plus", "ko": " 더하기"}
IS = {"en": " is", "ko": " 은"}
# What stands before, between and behind the two numbers: of a sum, and of word problems.
SUMS = {"en": ("add", PLUS["en"], " ="), "ko": ("계산:", PLUS["ko"], " =")}
STORIES = {
    "en": (("ann has", " apples and ben", ". how many in all?"), ("a bus carries", " people,", " more get on. how many now?"),
           ("the shop sold", " books, then", ". how many books?")),
    "ko": (("철수가 사과를", " 개, 영희가", " 개 가졌다. 모두 몇 개?"), ("버스에", " 명이 있고", " 명이 더 탔다. 몇 명?"),
           ("책을 어제", " 권, 오늘", " 권 팔았다. 모두 몇 권?"))}


def pieces(lang: str) -> list[str]:
    """All text of a language. Digits have the space in front of them, so that they are the same piece wherever they stand."""
    return [*(" " + digit for digit in DIGITS[lang]), PLUS[lang], IS[lang], *PLACES[lang][1:], *COLUMNS[lang], *SUMS[lang], *(piece for story in STORIES[lang] for piece in story)]


WORDS = tuple(dict.fromkeys(piece for lang in LANGUAGES for piece in pieces(lang)))      # what is one token each in this toy's vocabulary


@dataclass(frozen=True)
class BilingualProblem(Problem):
    """A Problem with the language that its reasoning should be in, and the two numbers."""

    language: str = "en"
    numbers: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Bilingual:
    """Additions of two numbers, told in `languages`. What is drawn is drawn evenly: how many of `digits` both numbers have, the sum, the language, and whether
    it is told as a sum or, for a share of `stories`, as a word problem. The splits are those of Arithmetic: no sum is in both, however it is told.

    `reason_in` says in which language reasoning should be; None: in that of the prompt.
    """

    digits: tuple[int, ...] = (2, 3)
    languages: tuple[str, ...] = LANGUAGES
    reason_in: str | None = None
    stories: float = 0.5

    def __post_init__(self):
        if not isinstance(self.digits, tuple) or not self.digits:
            raise ValueError(f"digits is {self.digits!r}: a tuple of how many digits numbers may have, such as (2, 3), is wanted")
        for digits in self.digits:
            Arithmetic("addition", digits)
        for name, given in (("languages", self.languages), ("reason_in", () if self.reason_in is None else (self.reason_in,))):
            if unknown := set(given) - set(LANGUAGES):
                raise ValueError(f"{name} has {', '.join(sorted(unknown))}: {' and '.join(LANGUAGES)} are there")
        if not self.languages:
            raise ValueError(f"languages is empty: {' or '.join(LANGUAGES)} is wanted")
        if not 0 <= self.stories <= 1:
            raise ValueError(f"stories is {self.stories}: a share in [0, 1] is wanted")

    @property
    def name(self) -> str:
        digits = " and ".join(f"{digits}-digit" for digits in self.digits)
        return f"{digits} addition in {' and '.join(NAMES[lang] for lang in self.languages)}"

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        return {"accuracy": accuracy, "format_reward": format_reward,
                "language_consistency": language_consistency}

    @property
    def weights(self) -> dict[str, float]:
        return dict.fromkeys(self.rewards, 1.0)

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[BilingualProblem]:
        """n problems of a split, drawn with replacement."""
        if n < 0:
            raise ValueError(f"n is {n}: a number of problems is wanted")
        return [self._problem(rng, split) for _ in range(n)]

    def _problem(self, rng: random.Random, split: str) -> BilingualProblem:
        sum_, = Arithmetic("addition", rng.choice(self.digits)).sample(1, rng, split=split)
        a, b = sum_.prompt.rstrip("=").split("+")
        language = rng.choice(self.languages)
        before, between, behind = rng.choice(STORIES[language]) if rng.random() < self.stories else SUMS[language]
        wanted = self.reason_in or language
        return BilingualProblem(before + spoken(a, language) + between + spoken(b, language) + behind, sum_.answer, worked=worked(a, b, lambda: wanted), language=wanted,
                                numbers=(a, b))


def spoken(number: str, language: str) -> str:
    """A number by its places: "304" -> " three hundreds zero tens four"."""
    return "".join(told(digit, language) + PLACES[language][place] for place, digit in zip(reversed(range(len(number))), number))


def told(number: str, language: str) -> str:
    """A number digit by digit: "34" -> " three four"."""
    return "".join(" " + DIGITS[language][int(d)] for d in number)


def added(a: str, b: str) -> list[tuple[int, int, int, int]]:
    """The addition by column, from the right: two digits, the carry, and their total."""
    columns, carry, width = [], 0, max(len(a), len(b))
    for x, y in zip(map(int, reversed(a.zfill(width))), map(int, reversed(b.zfill(width)))):
        columns.append((x, y, carry, x + y + carry))
        carry = (x + y + carry) // 10
    return columns


def worked(a: str, b: str, language: Callable[[], str]) -> str:
    """Long reasoning: every column worked out, in the language that language() says for it."""
    text = ""
    for place, (x, y, carry, total) in enumerate(added(a, b)):
        lang = language()
        terms = [told(str(digit), lang) for digit in (x, y, *[1] * carry)]
        text += COLUMNS[lang][place] + PLUS[lang].join(terms) + IS[lang] + told(str(total), lang)
    return text


def brief(totals: list[int], language: Callable[[], str]) -> str:
    """Brief reasoning: columns' totals alone."""
    text = ""
    for place, total in enumerate(totals):
        lang = language()
        text += COLUMNS[lang][place] + told(str(total), lang)
    return text


def answered(totals: list[int]) -> str:
    """The answer that columns' totals, from the right, amount to: [12, 6] -> "62"."""
    return "".join(str(total if column == len(totals) - 1 else total % 10) for column, total in reversed(list(enumerate(totals))))


def demonstrations(task: Bilingual, n: int, rng: random.Random, *, worked_share: float = 1.0, brief_share: float = 0.0, mixed_share: float = 0.0, slip_share: float = 0.0,
                   bare_share: float = 0.0, split: str = "train") -> list[tuple[str, str]]:
    """n (prompt, completion) pairs: worked out or briefly reasoned with the given chances, else answered at once. Reasoning is mixed with the given chance: each
    column is in a language of its own. What is not worked out has a slip with the given chance, one column's total drawn anew, and mostly a wrong answer with it.
    Some are bare, without tags."""
    shares = {"worked_share": worked_share, "brief_share": brief_share, "mixed_share": mixed_share, "slip_share": slip_share, "bare_share": bare_share,
              "worked_share + brief_share": worked_share + brief_share}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}: a share in [0, 1] is wanted")
    pairs = []
    for problem in task.sample(n, rng, split=split):
        kind, mixed, slips, bare = rng.random(), rng.random() < mixed_share, rng.random() < slip_share, rng.random() < bare_share
        totals = [column[-1] for column in added(*problem.numbers)]
        if kind >= worked_share and slips:
            totals[rng.randrange(len(totals))] = rng.randint(0, 18)
        language = (lambda: rng.choice(LANGUAGES)) if mixed else (lambda: problem.language)
        reasoning = worked(*problem.numbers, language) if kind < worked_share else brief(totals, language) if kind < worked_share + brief_share else ""
        pairs.append((problem.prompt, f"{reasoning} {answered(totals)}" if bare else f"<think>{reasoning}</think><answer>{answered(totals)}</answer>"))
    return pairs
