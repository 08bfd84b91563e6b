"""Sums that a tiny model finds hard to answer at once and easy to work out: the toy on which
thinking pays.

    347+285=   <think></think><answer>0632</answer>                                at once
    347+285=   <think>7+5+0=12,4+8+1=132,3+2+1=0632</think><answer>0632</answer>    worked out

Columns are worked out from the right. Each adds its digits and the carry, and writes its total in
front of the digits that are already there: 7+5 is 12, 47+85 is 132, 347+285 is 0632. Totals have
two digits, and answers as many as the largest possible result, so that every column has its place.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from minirl.tasks.problem import Problem, RewardFunction, Task, check_share, draw, split_of
from minirl.tasks.rewards import accuracy, format_reward

SUM = re.compile(r"(\d+)([+*])(\d+)=")
Slip = Callable[[int], int]  # a column's total -> what is written
SYMBOLS = {"addition": "+", "subtraction": "-", "multiplication": "*"}


@dataclass(frozen=True)
class Arithmetic:
    """`digits`-digit addition, subtraction (never below 0), or multiplication by one digit.

    The splits are disjoint by construction: a hash of the problem decides which one it is in, and
    12+34 and 34+12 have the same.
    """

    operation: str = "addition"
    digits: int = 3

    def __post_init__(self) -> None:
        if self.operation not in SYMBOLS:
            raise ValueError(f"operation is {self.operation!r}: one of {', '.join(SYMBOLS)} is "
                             "wanted")
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
        """Draw n problems of a split, evenly and with replacement."""
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
        """Return "train" or "test": the same for both orders of a commutative problem."""
        if self.operation != "subtraction":
            a, b = max(a, b), min(a, b)
        return split_of(f"{a}{SYMBOLS[self.operation]}{b}")

    def problem(self, a: int, b: int) -> Problem:
        """Return the problem of these two numbers."""
        work_out = {"addition": _add, "subtraction": _subtract, "multiplication": _multiply}
        work, result = work_out[self.operation](a, b)
        width = self.digits + (self.operation != "subtraction")
        return Problem(prompt=f"{a}{SYMBOLS[self.operation]}{b}=", answer=str(result),
                       worked=",".join(work), written=str(result).zfill(width))


def completion(problem: Problem, *, worked: bool) -> str:
    """Return the right completion of a problem, worked out or answered at once."""
    reasoning = problem.worked if worked else ""
    answer = problem.written or problem.answer
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


def with_slips(problem: Problem, rng: random.Random, share: float) -> str:
    """Return a completion in which a column that has a carry forgets it with probability `share`.
    What comes after goes on from what is written, as a person would who has not noticed. So the
    answer is wrong, too.

    Raises ValueError for a problem that has no carry, such as a subtraction.

    >>> with_slips(Arithmetic(digits=2).problem(47, 85), random.Random(1), share=0.5)
    '<think>7+5+0=02,4+8+0=122</think><answer>122</answer>'
    """
    match = SUM.fullmatch(problem.prompt)
    if match is None:
        raise ValueError(f"{problem.prompt!r} is worked out without a carry: an addition or a "
                         "multiplication, such as '12+34=', is wanted")

    def slip(total: int) -> int:
        return total % 10 if rng.random() < share else total

    work_out = {"+": _add, "*": _multiply}[match[2]]
    work, _ = work_out(int(match[1]), int(match[3]), slip)
    return f"<think>{','.join(work)}</think><answer>{work[-1].partition('=')[2]}</answer>"


def demonstrations(task: Task, n: int, rng: random.Random, *, worked_share: float,
                   guessed_share: float = 0.0, slip_share: float = 0.0,
                   split: str = "train") -> list[tuple[str, str]]:
    """Draw n (prompt, completion) pairs for SFT: what a base model reads.

    worked_share   share that is worked out; the rest is answered at once
    guessed_share  share of the latter that is guessed: the right answer to another problem
    slip_share     share of the carries that are forgotten in what is worked out: see with_slips
    """
    check_share("worked_share", worked_share)
    check_share("guessed_share", guessed_share)
    check_share("slip_share", slip_share)
    pairs = []
    for problem in task.sample(n, rng, split=split):
        worked, guessed = rng.random() < worked_share, rng.random() < guessed_share
        source = problem
        if guessed and not worked:
            source, = task.sample(1, rng, split=split)
        pairs.append((problem.prompt, with_slips(problem, rng, slip_share) if worked and slip_share
                      else completion(source, worked=worked)))
    return pairs


# working a problem out, column by column

def _digit_columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digits of a and b by column, from the right, as many as the longer has."""
    width = max(len(str(a)), len(str(b)))
    return [(int(x), int(y)) for x, y in zip(reversed(str(a).zfill(width)),
                                             reversed(str(b).zfill(width)), strict=True)]


def _add(a: int, b: int, slip: Slip = int) -> tuple[list[str], int]:
    return _with_carry(_digit_columns(a, b), "+", operator.add, slip), a + b


def _multiply(a: int, b: int, slip: Slip = int) -> tuple[list[str], int]:
    columns = [(x, b) for x, _ in _digit_columns(a, 0)]
    return _with_carry(columns, "*", operator.mul, slip), a * b


def _with_carry(columns: list[tuple[int, int]], sign: str,
                operation: Callable[[int, int], int], slip: Slip) -> list[str]:
    work, carry, digits = [], 0, ""
    for x, y in columns:
        total = slip(operation(x, y) + carry)
        work.append(f"{x}{sign}{y}+{carry}={total:02}{digits}")
        carry, digits = total // 10, f"{total % 10}{digits}"
    return work


def _subtract(a: int, b: int) -> tuple[list[str], int]:
    work, borrow, digits = [], 0, ""
    for x, y in _digit_columns(a, b):
        top = x + 10 if x - borrow < y else x
        digits = f"{top - y - borrow}{digits}"
        work.append(f"{top:02}-{y}-{borrow}={digits}")
        borrow = int(top > x)
    return work, a - b
