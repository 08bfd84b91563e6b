"""Sums told in English or in Korean, worked out in either, or in both at once: the toy on which a model can be seen to mix its languages.

    three four plus two eight =    <think>four plus eight is one two, three plus two plus one is six</think><answer>62</answer>
    삼 사 더하기 이 팔 =             <think>사 더하기 팔 은 일 이, 삼 더하기 이 더하기 일 은 육</think><answer>62</answer>

Numbers are told digit by digit and added column by column from the right, with the carry where there is one; the answer is in figures. The text that a base
model reads is `mixed` in part: each column of the reasoning is told in a language of its own. Nothing about that is wrong, so a reward for right answers does not
punish it; rewards.language_consistency does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import Problem
from minirl.tasks.rewards import accuracy, format_reward, language_consistency

DIGITS = {"en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"), "ko": ("영", "일", "이", "삼", "사", "오", "육", "칠", "팔", "구")}
PLUS = {"en": "plus", "ko": "더하기"}
IS = {"en": "is", "ko": "은"}
LANGUAGES = tuple(DIGITS)
# What is one token each in this toy's vocabulary: words with the space in front of them, and the first of a prompt or a column without.
WORDS = tuple(word for lang in LANGUAGES for plain in (*DIGITS[lang], PLUS[lang], IS[lang]) for word in (plain, " " + plain))


@dataclass(frozen=True)
class BilingualProblem(Problem):
    """A Problem with the language that its reasoning should be in, and the two numbers."""

    language: str = "en"
    numbers: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Bilingual:
    """Additions of two numbers of `digits` digits, told in `languages`, drawn evenly. The splits are those of Arithmetic: no sum is in both, in any language.

    `reason_in` says in which language reasoning should be; None: in that of the prompt.
    """

    digits: int = 2
    languages: tuple[str, ...] = LANGUAGES
    reason_in: str | None = None

    def __post_init__(self):
        Arithmetic("addition", self.digits)
        for name, given in (("languages", self.languages), ("reason_in", () if self.reason_in is None else (self.reason_in,))):
            if unknown := set(given) - set(LANGUAGES):
                raise ValueError(f"{name} has {', '.join(sorted(unknown))}: {' and '.join(LANGUAGES)} are there")
        if not self.languages:
            raise ValueError(f"languages is empty: {' or '.join(LANGUAGES)} is wanted")

    @property
    def rewards(self) -> dict:
        return {"accuracy": accuracy, "format_reward": format_reward, "language_consistency": language_consistency}

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[BilingualProblem]:
        """n problems of a split, drawn with replacement."""
        problems = []
        for sum_ in Arithmetic("addition", self.digits).sample(n, rng, split=split):
            a, b = sum_.prompt.rstrip("=").split("+")
            language = rng.choice(self.languages)
            wanted = self.reason_in or language
            problems.append(BilingualProblem(f"{told(a, language)} {PLUS[language]} {told(b, language)} =", sum_.answer, worked=worked(a, b, lambda: wanted), language=wanted,
                                             numbers=(a, b)))
        return problems


def told(number: str, language: str) -> str:
    """A number digit by digit: "34" -> "three four"."""
    return " ".join(DIGITS[language][int(d)] for d in number)


def worked(a: str, b: str, language: Callable[[], str]) -> str:
    """The addition column by column from the right; each column is told in the language that language() says."""
    columns, carry = [], 0
    width = max(len(a), len(b))
    for x, y in zip(map(int, reversed(a.zfill(width))), map(int, reversed(b.zfill(width)))):
        lang, total = language(), x + y + carry
        terms = [DIGITS[lang][x], DIGITS[lang][y]] + [DIGITS[lang][1]] * carry
        columns.append(f" {PLUS[lang]} ".join(terms) + f" {IS[lang]} {told(str(total), lang)}")
        carry = total // 10
    return ", ".join(columns)


def demonstrations(task: Bilingual, n: int, rng: random.Random, *, worked_share: float = 1.0, mixed_share: float = 0.0, guessed_share: float = 0.0,
                   split: str = "train") -> list[tuple[str, str]]:
    """n (prompt, completion) pairs: worked out with the given chance, and then mixed with the given chance, in language that each column chooses; else answered at
    once, and then with the given chance by a guess, the answer to another problem."""
    for name, share in (("worked_share", worked_share), ("mixed_share", mixed_share), ("guessed_share", guessed_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}: a share in [0, 1] is wanted")
    pairs = []
    for problem in task.sample(n, rng, split=split):
        reasoning, answer = "", problem.answer
        if rng.random() < worked_share:
            reasoning = worked(*problem.numbers, lambda: rng.choice(LANGUAGES)) if rng.random() < mixed_share else problem.worked
        elif rng.random() < guessed_share:
            answer = task.sample(1, rng, split=split)[0].answer
        pairs.append((problem.prompt, f"<think>{reasoning}</think><answer>{answer}</answer>"))
    return pairs
