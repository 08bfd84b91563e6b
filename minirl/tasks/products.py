"""Products that are too hard to do in the head, sums that are not, and three ways to a solution.

    38*92=   <think></think><answer>3496</answer>                                      at once
    38*92=   <think>8*2+0=016;8*9+1=0736,3*2+73=0796;3*9+7=03496</think>
             <answer>03496</answer>                                                    chain
    38*92=   <think><tool>38*92</tool><result>3496</result></think>
             <answer>3496</answer>                                                     tool
    38*92=   <think></think><program>answer=38*92</program>                            program
    3+4=     <think></think><answer>7</answer>                                         at once

A chain of thought goes through the columns of the product from the right: column k is the sum of
all products of a digit i of one number with a digit j of the other, i + j = k. Each product is
added to what there is, and the total is written in front of the digits that are already there, as
in arithmetic.py: 8*2 is 016, so the last digit is 6 and 1 is carried; 8*9+1 is 073; 3*2+73 is 079.
Columns end with a semicolon.

A tool-integrated solution calls the calculator, and copies what it says. What stands in <result> is
not the model's: whoever samples puts it there. A program of thought is run by the reward, and no
answer is written: it is the program's. So both are right where the numbers are copied right; a
chain has to get dozens of small steps right. But calls are not free (`call_cost`), and for 3+4 no
call is needed: what is to be learnt is when to call.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import Problem, RewardFunction, check_share, draw, split_of
from minirl.tasks.rewards import TAGS, Completion, Verdicts, accuracy, normalise_answer, text
from minirl.tasks.tools import TOOL_WORDS, ToolError, calculate, call, run_program

SUM = Arithmetic("addition", 1)
THOUGHT = re.compile(r"<think>(.*)</think>\s*<answer>[^<]*</answer>", re.DOTALL)
CALLS = re.compile(r"[^<]*(?:<tool>[^<]*</tool><result>[^<]*</result>[^<]*)+")
PROGRAM = re.compile(r"<think>[^<]*</think>\s*<program>([^<]*)</program>")
FORMS = ("at once", "chain", "tool", "program")


@dataclass(frozen=True)
class ProductProblem(Problem):
    """A Problem with the expression that a call or a program has to copy, and whether it is one of
    the easy sums."""

    expression: str = ""
    easy: bool = False


@dataclass(frozen=True)
class Products:
    """Products of two numbers of `digits` digits and, with probability `easy_share`, sums of two
    digits.

    The splits of the products are disjoint by construction: a hash of the problem decides which one
    it is in, and 38*92 and 92*38 have the same. The easy sums are the same in both: they are a
    table of 100, which a model knows by heart or not at all.

    `cost` is what a call costs, where a right answer is worth 1.
    """

    digits: int = 4
    easy_share: float = 0.0
    cost: float = 0.1

    def __post_init__(self) -> None:
        if type(self.digits) is not int or not 1 <= self.digits <= 5:
            raise ValueError(f"digits is {self.digits!r}: 1 to 5 is wanted")
        check_share("easy_share", self.easy_share)
        if not 0 <= self.cost < float("inf"):
            raise ValueError(f"cost is {self.cost}: 0 or a positive number is wanted")

    @property
    def name(self) -> str:
        sums = " and easy sums" if self.easy_share else ""
        return f"{self.digits}-digit products{sums}"

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        return {"accuracy": value_accuracy, "format_reward": form_reward, "call_cost": call_cost}

    @property
    def weights(self) -> dict[str, float]:
        return {"accuracy": 1.0, "format_reward": 1.0, "call_cost": self.cost}

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        """Draw n problems of a split, with replacement."""
        def product() -> tuple[Problem, str]:
            low, high = 10 ** (self.digits - 1), 10 ** self.digits - 1
            a, b = rng.randint(low, high), rng.randint(low, high)
            return Problem(f"{a}*{b}", ""), split_of(f"{max(a, b)}*{min(a, b)}")

        drawn = draw(min(n, 0), split, product)    # none yet, but n and split are checked
        for _ in range(n):
            easy = rng.random() < self.easy_share
            drawn += ([Problem(f"{rng.randint(0, 9)}+{rng.randint(0, 9)}", "")] if easy else
                      draw(1, split, product))
        return [problem_of(problem.prompt) for problem in drawn]


def problem_of(expression: str) -> ProductProblem:
    """Return the problem of a product of numbers that are as long as each other, or of a sum of two
    digits.

    >>> problem_of("38*92").worked
    '8*2+0=016;8*9+1=0736,3*2+73=0796;3*9+7=03496'
    >>> problem_of("3+4").worked
    '3+4+0=07'
    """
    a, sign, b = re.split(r"([+*])", expression)
    if sign == "+":
        easy = SUM.problem(int(a), int(b))
        return ProductProblem(easy.prompt, easy.answer, easy.worked, easy.written, expression, True)
    worked, written = _columns(a[::-1], b[::-1])
    return ProductProblem(f"{expression}=", str(int(a) * int(b)), worked, written, expression)


def _columns(a: str, b: str) -> tuple[str, str]:
    """The columns of a product, of digits from the right, and its last total."""
    columns, total, digits = [], 0, ""
    for k in range(len(a) + len(b) - 1):
        steps = []
        for i in range(max(0, k - len(b) + 1), min(k, len(a) - 1) + 1):
            before, total = total, int(a[i]) * int(b[k - i]) + total
            steps.append(f"{a[i]}*{b[k - i]}+{before}={total:03}{digits}")
        columns.append(",".join(steps))
        written = f"{total:03}{digits}"
        total, digits = total // 10, f"{total % 10}{digits}"
    return ";".join(columns), written


# ways to a solution

def at_once(answer: str) -> str:
    return f"<think></think><answer>{answer}</answer>"


def chain(problem: ProductProblem) -> str:
    return f"<think>{problem.worked}</think><answer>{problem.written}</answer>"


def tool_call(expression: str) -> str:
    """Return a solution that calls the calculator, and copies what it says."""
    result = call(calculate, expression)
    return (f"<think><tool>{expression}</tool><result>{result}</result></think>"
            f"<answer>{result}</answer>")


def program(expression: str) -> str:
    return f"<think></think><program>answer={expression}</program>"


def product_demonstrations(task: Products, n: int, rng: random.Random, *, tool_share: float,
                           chain_share: float = 0.0, program_share: float = 0.0,
                           slip_share: float = 0.0, easy_calls: float = 1.0,
                           split: str = "train"
                           ) -> list[tuple[str, Sequence[str]]]:
    """Draw n (prompt, completion) pairs for SFT, so that a base model knows every way. A completion
    with calls is the tuple of its parts: the policy's own, and in between the calculator's.

    tool_share     share that calls the calculator
    chain_share    share that works in a chain of thought
    program_share  share that writes a program
    slip_share     share of the calls and programs that copy one digit wrong
    easy_calls     factor on tool_share for easy sums; 1: nothing about a problem says how it is
                   solved

    The rest is answered at once: easy sums right, and products by a guess, the right answer to
    another product.
    """
    shares = {"tool_share": tool_share, "chain_share": chain_share, "program_share": program_share}
    for name, share in {**shares, "the sum of all three": sum(shares.values()),
                        "slip_share": slip_share, "easy_calls": easy_calls}.items():
        check_share(name, round(share, 12))    # 0.7 + 0.2 + 0.1 is above 1 by rounding
    rest = max(0.0, 1 - sum(shares.values()))
    products = replace(task, easy_share=0.0)
    pairs: list[tuple[str, Sequence[str]]] = []
    for problem in task.sample(n, rng, split=split):
        assert isinstance(problem, ProductProblem)
        fewer = tool_share * (1 - easy_calls) if problem.easy else 0.0
        form, = rng.choices(FORMS, [rest + fewer, chain_share, tool_share - fewer, program_share])
        slips = rng.random() < slip_share
        expression = _with_slip(problem.expression, rng) if slips else problem.expression
        guess = problem if problem.easy else products.sample(1, rng, split=split)[0]
        completion = {"at once": at_once(guess.answer), "chain": chain(problem),
                      "tool": in_parts(tool_call(expression)), "program": program(expression)}[form]
        pairs.append((problem.prompt, completion))
    return pairs


def in_parts(content: str) -> tuple[str, ...]:
    """Return a completion in parts: what the policy writes, and in between what a tool answers.

    >>> in_parts("<tool>6*7</tool><result>42</result><answer>42</answer>")
    ('<tool>6*7</tool>', '<result>42</result>', '<answer>42</answer>')
    """
    return tuple(re.split("(<result>.*?</result>)", content, flags=re.DOTALL))


def _with_slip(expression: str, rng: random.Random) -> str:
    """The expression with another digit in one place."""
    place = rng.choice([i for i, character in enumerate(expression) if character.isdigit()])
    other = (int(expression[place]) + rng.randint(1, 9)) % 10
    return f"{expression[:place]}{other}{expression[place + 1:]}"


# rewards

def form_of(completion: Completion) -> str | None:
    """Return the form of a completion, one of FORMS; None where it has none of them, nothing before
    and nothing behind it.

    Each <think>, <answer> and <program> stands there once, each call has its result right behind
    it, and a result stands nowhere else: nobody may write one himself.

    >>> form_of(tool_call("38*92")), form_of(program("38*92")), form_of("3496")
    ('tool', 'program', None)
    """
    content = text(completion).strip()
    if PROGRAM.fullmatch(content):
        return "program"
    thought = THOUGHT.fullmatch(content)
    if thought is None or any(content.count(tag) != 1 for tag in TAGS):
        return None
    if CALLS.fullmatch(thought[1]):
        return "tool"
    if any(word in thought[1] for word in TOOL_WORDS):
        return None
    return "chain" if thought[1].strip() else "at once"


def form_reward(prompts: Sequence[Any], completions: Sequence[Completion], **_: Any) -> Verdicts:
    """1.0 where a completion has one of the forms, whichever, else 0.0."""
    return [float(form_of(completion) is not None) for completion in completions]


def value_accuracy(prompts: Sequence[Any], completions: Sequence[Completion],
                   answer: Sequence[Any], **_: Any) -> Verdicts:
    """1.0 where the answer is right, else 0.0: what stands in <answer>, as rewards.accuracy reads
    it, or else the value of the one program that a completion without any <answer> has.

    >>> value_accuracy(["6*7="] * 2, [program("6*7"), at_once("6*7")], answer=["42"] * 2)
    [1.0, 0.0]
    """
    return accuracy(prompts, [_with_value(text(completion)) for completion in completions], answer)


def _with_value(content: str) -> str:
    """The text, with the value of its program in the form of an answer."""
    if "answer>" in content or content.count("<program>") != 1:
        return content
    inside, closed, _ = content.partition("<program>")[2].partition("</program>")
    try:
        return at_once(normalise_answer(run_program(inside))) if closed else content
    except ToolError:
        return content


def call_cost(prompts: Sequence[Any], completions: Sequence[Completion], **_: Any) -> Verdicts:
    """Minus the number of calls, programs included. Its weight is what one costs.

    A call counts where it begins, whether or not it gets a result.
    """
    return [-float(content.count("<tool>") + content.count("<program>"))
            for content in map(text, completions)]
