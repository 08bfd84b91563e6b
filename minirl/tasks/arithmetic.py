"""Sums that a tiny model finds hard to answer at once and easy to work out: the toy on which thinking pays.

    347+285=   <think></think><answer>0632</answer>                                at once
    347+285=   <think>7+5+0=12,4+8+1=132,3+2+1=0632</think><answer>0632</answer>    column by column, from the right

Each column adds its digits and the carry, and writes its total in front of the digits that are already done: 7+5 is 12, 47+85 is 132, 347+285
is 0632. Totals have two digits and answers as many as the largest result, so that every column has its place.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Callable
from dataclasses import dataclass

from minirl.tasks.problem import Problem, RewardFunction, draw
from minirl.tasks.rewards import accuracy, format_reward

SYMBOLS = {"addition": "+", "subtraction": "-", "multiplication": "*"}
TEST_SHARE = 10        # one problem in ten is held out


@dataclass(frozen=True)
class Arithmetic:
    """`digits`-digit addition, subtraction (never below 0), or multiplication by one digit.

    The splits are disjoint by construction: which split a problem is in is a hash of the problem itself, the same for 12+34 and 34+12.
    """

    operation: str = "addition"
    digits: int = 3

    def __post_init__(self):
        if self.operation not in SYMBOLS:
            raise ValueError(f"operation is {self.operation!r}: one of {', '.join(SYMBOLS)} is wanted")
        if type(self.digits) is not int or not 1 <= self.digits <= 5:
            raise ValueError(f"digits is {self.digits!r}: 1 to 5 is wanted")

    @property
    def name(self) -> str:
        return f"{self.digits}-digit {self.operation}"

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        return {"accuracy": accuracy, "format_reward": format_reward}

    @property
    def weights(self) -> dict[str, float]:
        return dict.fromkeys(self.rewards, 1.0)

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        """n problems of a split, drawn evenly and with replacement."""
        def one() -> tuple[Problem, str]:
            a, b = self._operands(rng)
            return self.problem(a, b), self.split_of(a, b)

        return draw(n, split, one)

    def _operands(self, rng: random.Random) -> tuple[int, int]:
        low, high = (0 if self.digits == 1 else 10 ** (self.digits - 1)), 10 ** self.digits - 1
        a, b = rng.randint(low, high), rng.randint(low, high)
        if self.operation == "subtraction":
            return max(a, b), min(a, b)
        return (a, b % 10) if self.operation == "multiplication" else (a, b)

    def split_of(self, a: int, b: int) -> str:
        """"train" or "test"; for the two orders of a commutative problem the same."""
        if self.operation != "subtraction":
            a, b = max(a, b), min(a, b)
        digest = hashlib.blake2b(f"{a}{SYMBOLS[self.operation]}{b}".encode(), digest_size=4).digest()
        return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"

    def problem(self, a: int, b: int) -> Problem:
        work, result = {"addition": _add, "subtraction": _subtract, "multiplication": _multiply}[self.operation](a, b)
        width = self.digits + (self.operation != "subtraction")
        return Problem(prompt=f"{a}{SYMBOLS[self.operation]}{b}=", answer=str(result), worked=",".join(work), written=str(result).zfill(width))


def completion(problem: Problem, *, worked: bool) -> str:
    """The right completion of a problem, worked out or given at once."""
    return f"<think>{problem.worked if worked else ''}</think><answer>{problem.written or problem.answer}</answer>"


def demonstrations(task, n: int, rng: random.Random, *, worked_share: float, guessed_share: float = 0.0, split: str = "train") -> list[tuple[str, str]]:
    """n (prompt, completion) pairs for SFT, of which a share is worked out and the rest answered at once: a base model's mixed reading.

    Of the answers given at once, `guessed_share` are guesses: the right answer to another problem. What is worked out is always right.
    """
    for name, share in (("worked_share", worked_share), ("guessed_share", guessed_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}: a share in [0, 1] is wanted")
    pairs = []
    for problem in task.sample(n, rng, split=split):
        worked, guessed = rng.random() < worked_share, rng.random() < guessed_share
        answered = task.sample(1, rng, split=split)[0] if guessed and not worked else problem
        pairs.append((problem.prompt, completion(answered, worked=worked)))
    return pairs


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """Digits of a and b by column, from the right, as many as the longer has."""
    width = max(len(str(a)), len(str(b)))
    return list(zip(map(int, reversed(str(a).zfill(width))), map(int, reversed(str(b).zfill(width)))))


def _add(a: int, b: int) -> tuple[list[str], int]:
    return _carried(_columns(a, b), "+", operator.add), a + b


def _multiply(a: int, b: int) -> tuple[list[str], int]:
    return _carried([(x, b) for x, _ in _columns(a, 0)], "*", operator.mul), a * b


def _carried(columns: list[tuple[int, int]], sign: str, operation: Callable[[int, int], int]) -> list[str]:
    work, carry, done = [], 0, ""
    for x, y in columns:
        total = operation(x, y) + carry
        work.append(f"{x}{sign}{y}+{carry}={total:02}{done}")
        carry, done = total // 10, f"{total % 10}{done}"
    return work


def _subtract(a: int, b: int) -> tuple[list[str], int]:
    work, borrow, done = [], 0, ""
    for x, y in _columns(a, b):
        top = x + 10 if x - borrow < y else x
        done = f"{top - y - borrow}{done}"
        work.append(f"{top:02}-{y}-{borrow}={done}")
        borrow = int(top > x)
    return work, a - b
