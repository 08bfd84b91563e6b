"""Sums as questions that a guess answers half of the time. The open form, of which a guess answers
hardly any, is arithmetic.py's; both are worked out in the same way.

    47+85=       <think>7+5+0=12,4+8+1=132</think><answer>132</answer>     open
    47+85=132?   <think>7+5+0=12,4+8+1=132</think><answer>yes</answer>     yes or no
    47+85=172?   <think>7+5+0=12,4+8+1=132</think><answer>no</answer>
    47+85=172?   <think>7+5+0=02,4+8+0=122</think><answer>no</answer>      right by luck

Half of the sums that are claimed are true. In a false one the digit behind the first is another.
So whether a claim is true is settled by comparing two digits, which a tiny model can learn, but by
no others: the first digit, 0 or 1, does not give it away, and a carry can.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minirl.tasks.arithmetic import Arithmetic, completion, with_slips
from minirl.tasks.problem import Problem, RewardFunction, check_share
from minirl.tasks.rewards import Completion, Verdicts, accuracy, format_reward, text
from minirl.tasks.steps import CLOSE


@dataclass(frozen=True)
class YesNoProblem(Problem):
    """A claimed sum. `question` is the open problem of the same numbers."""

    question: Problem = Problem("", "")


@dataclass(frozen=True)
class YesNo:
    """Claimed `digits`-digit sums, half of them true. A sum is in the same split in both forms."""

    digits: int = 3

    def __post_init__(self) -> None:
        _ = self.sums                                   # refuses digits out of range

    @property
    def sums(self) -> Arithmetic:
        return Arithmetic("addition", self.digits)

    @property
    def name(self) -> str:
        return f"{self.digits}-digit sums, yes or no"

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        return {"accuracy": accuracy, "format_reward": format_reward}

    @property
    def weights(self) -> dict[str, float]:
        return dict.fromkeys(self.rewards, 1.0)

    def sample(self, n: int, rng: random.Random, *, split: str = "train"
               ) -> list[YesNoProblem]:
        """Draw n claims about problems of a split, evenly and with replacement."""
        return [claim(problem, rng, true=rng.random() < 0.5)
                for problem in self.sums.sample(n, rng, split=split)]


def claim(question: Problem, rng: random.Random, *, true: bool) -> YesNoProblem:
    """Return a sum as a claim: the true one, or one with another second digit.

    >>> question = Arithmetic("addition", 2).problem(47, 85)
    >>> claim(question, random.Random(0), true=False).prompt
    '47+85=172?'
    """
    written = question.written
    if not true:
        other = rng.choice([digit for digit in "0123456789" if digit != written[1]])
        written = written[0] + other + written[2:]
    return YesNoProblem(f"{question.prompt}{written}?", "yes" if true else "no",
                        worked=question.worked, question=question)


def yes_no_demonstrations(task: YesNo, n: int, rng: random.Random, *, worked_share: float,
                          slip_share: float = 0.0, split: str = "train"
                          ) -> list[tuple[str, str]]:
    """Draw n (prompt, completion) pairs for SFT.

    worked_share   share that is worked out, and answered by what was worked out; the rest is
                   guessed by a coin
    slip_share     share of the carries that are forgotten: see arithmetic.with_slips
    """
    check_share("worked_share", worked_share)
    check_share("slip_share", slip_share)
    pairs = []
    for problem in task.sample(n, rng, split=split):
        work, says = "<think>" + CLOSE, rng.choice(("yes", "no"))
        if rng.random() < worked_share:
            solution = (with_slips(problem.question, rng, slip_share) if slip_share
                        else completion(problem.question, worked=True))
            work, result = solution.removesuffix("</answer>").split("<answer>")
            says = "yes" if problem.prompt.endswith(f"={result}?") else "no"
        pairs.append((problem.prompt, f"{work}<answer>{says}</answer>"))
    return pairs


def right_work(prompts: Sequence[Any], completions: Sequence[Completion], worked: Sequence[str],
               **_: Any) -> Verdicts:
    """1.0 where the reasoning is `worked`, step by step, whatever the answer; else 0.0.

    A reward of weight 0: it says which right answers are right by luck. An answer without reasoning
    has no right one.

    >>> lucky = "<think>7+5+0=02,4+8+0=122</think><answer>no</answer>"
    >>> right_work(["47+85=172?"], [lucky], ["7+5+0=12,4+8+1=132"])
    [0.0]
    """
    reasonings = [text(completion).partition(CLOSE)[0].removeprefix("<think>")
                  for completion in completions]
    return [float(bool(right) and reasoning == right)
            for reasoning, right in zip(reasonings, worked, strict=True)]
