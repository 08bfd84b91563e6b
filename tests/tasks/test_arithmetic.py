"""Tests of minirl.tasks.arithmetic."""

import itertools
import random
import re

import pytest

from minirl.tasks import arithmetic
from minirl.tasks.arithmetic import Arithmetic, completion, demonstrations
from minirl.tasks.problem import Problem, columns

OPERATIONS = ("addition", "subtraction", "multiplication")
every_operation = pytest.mark.parametrize("operation", OPERATIONS)


def read(problem):
    """The two numbers and the sign of a prompt."""
    a, sign, b = re.fullmatch(r"(\d+)([-+*])(\d+)=", problem.prompt).groups()
    return int(a), sign, int(b)


def add_up(a, b, work):
    """The answer that the columns of a sum spell, each recomputed from the one before."""
    digits, carry = "", 0
    for i, column in enumerate(work):
        x, y, c, total = map(int, re.fullmatch(r"(\d)\+(\d)\+(\d)=(\d\d)", column).groups())
        assert (x, y, c) == (a // 10 ** i % 10, b // 10 ** i % 10, carry) and x + y + c == total
        digits, carry = str(total % 10) + digits, total // 10
    return int(str(carry) + digits)


def take_away(a, b, work):
    digits, borrow = "", 0
    for i, column in enumerate(work):
        top, y, c, left = re.fullmatch(r"(\d+)-(\d)(?:-(1))?=(\d)", column).groups()
        assert int(y) == b // 10 ** i % 10 and int(c or 0) == borrow and int(top) - int(y) - int(c or 0) == int(left)
        borrow = int(int(top) >= 10)
        assert int(top) - 10 * borrow == a // 10 ** i % 10
        digits = left + digits
    assert borrow == 0
    return int(digits)


def multiply_out(a, b, work):
    digits, carry = "", 0
    for i, column in enumerate(work):
        x, y, c, total = map(int, re.fullmatch(r"(\d)\*(\d)\+(\d)=(\d\d)", column).groups())
        assert (x, y, c) == (a // 10 ** i % 10, b, carry) and x * y + c == total
        digits, carry = str(total % 10) + digits, total // 10
    return int(str(carry) + digits)


@pytest.mark.parametrize("operation, a, b, worked, answer", [
    ("addition", 347, 285, "7+5+0=12,4+8+1=13,3+2+1=06", "632"),
    ("addition", 12, 34, "2+4+0=06,1+3+0=04", "46"),
    ("addition", 999, 999, "9+9+0=18,9+9+1=19,9+9+1=19", "1998"),
    ("addition", 995, 5, "5+5+0=10,9+0+1=10,9+0+1=10", "1000"),
    ("addition", 0, 0, "0+0+0=00", "0"),
    ("subtraction", 58, 23, "8-3=5,5-2=3", "35"),
    ("subtraction", 500, 123, "10-3=7,10-2-1=7,5-1-1=3", "377"),
    ("subtraction", 100, 1, "10-1=9,10-0-1=9,1-0-1=0", "99"),
    ("subtraction", 42, 42, "2-2=0,4-4=0", "0"),
    ("multiplication", 347, 6, "7*6+0=42,4*6+4=28,3*6+2=20", "2082"),
    ("multiplication", 999, 9, "9*9+0=81,9*9+8=89,9*9+8=89", "8991"),
    ("multiplication", 21, 4, "1*4+0=04,2*4+0=08", "84"),
    ("multiplication", 345, 0, "5*0+0=00,4*0+0=00,3*0+0=00", "0"),
])
def test_hand_examples(operation, a, b, worked, answer):
    sign = dict(zip(OPERATIONS, "+-*"))[operation]
    assert Arithmetic(operation, len(str(a))).problem(a, b) == Problem(f"{a}{sign}{b}=", answer, worked)


@every_operation
@pytest.mark.parametrize("digits", [1, 2, 3, 4, 5])
def test_worked_text_column_by_column(operation, digits):
    """A demonstration with a wrong carry would teach wrong sums, and the reward, which reads the answer alone, would never show it."""
    spelt = {"addition": add_up, "subtraction": take_away, "multiplication": multiply_out}[operation]
    for problem in Arithmetic(operation, digits).sample(150, random.Random(digits)):
        a, sign, b = read(problem)
        assert int(problem.answer) == {"+": a + b, "-": a - b, "*": a * b}[sign] >= 0
        assert spelt(a, b, problem.worked.split(",")) == int(problem.answer) and len(problem.worked.split(",")) == len(str(a))
        assert len(str(a)) == digits and len(str(b)) == (1 if operation == "multiplication" else digits)


@every_operation
@pytest.mark.parametrize("digits", [1, 2])
def test_splits_are_disjoint(operation, digits):
    """Train samples never in test, not even the other way round: 12+34 in train gives 34+12 in test away."""
    task = Arithmetic(operation, digits)
    seen = {split: {frozenset(read(p)[::2]) for p in task.sample(400, random.Random(0), split=split)} for split in ("train", "test")}
    assert seen["train"] and seen["test"] and not seen["train"] & seen["test"]


@every_operation
def test_a_tenth_is_held_out(operation):
    task, numbers = Arithmetic(operation, 2), range(10, 100)
    pairs = list(itertools.product(numbers, range(10) if operation == "multiplication" else numbers))
    if operation == "subtraction":
        pairs = [(a, b) for a, b in pairs if a >= b]
    share = sum(task.split_of(a, b) == "test" for a, b in pairs) / len(pairs)
    assert 0.07 < share < 0.13
    if operation != "subtraction":
        assert all(task.split_of(a, b) == task.split_of(b, a) for a, b in pairs)
    else:
        assert any(task.split_of(a, b) != task.split_of(b, a) for a, b in pairs)


def test_the_split_is_the_same_in_every_process():
    """Python's own hash of a string changes from run to run, and test problems would leak into the training of a resumed run. Pinned."""
    held_out = [(a, b) for a in range(10) for b in range(a, 10) if Arithmetic("addition", 1).split_of(a, b) == "test"]
    assert held_out == [(1, 9), (2, 2), (2, 6), (3, 4), (3, 9)]


@every_operation
def test_same_seed_same_problems(operation):
    task = Arithmetic(operation, 3)
    once, again, other = (task.sample(20, random.Random(seed)) for seed in (7, 7, 8))
    assert once == again != other and len(once) == 20 and task.sample(0, random.Random(0)) == []
    rng = random.Random(7)
    assert task.sample(8, rng) + task.sample(12, rng) == once                                # a stream: it does not matter how it is cut
    pairs = [demonstrations(task, 20, random.Random(7), worked_share=0.5) for _ in range(2)]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("arguments", [
    ("division", 3), ("", 3), ("+", 3), ("addition", 0), ("addition", 6), ("addition", -1), ("addition", 2.0), ("addition", "3"),
])
def test_bad_tasks_raise(arguments):
    with pytest.raises(ValueError, match="wanted"):
        Arithmetic(*arguments)


def test_bad_arguments_raise():
    task, rng = Arithmetic(), random.Random(0)
    for n, split in ((1, "valid"), (1, "Train"), (-1, "train")):
        with pytest.raises(ValueError, match="wanted"):
            task.sample(n, rng, split=split)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share"):
            demonstrations(task, 1, rng, worked_share=share)


@pytest.mark.parametrize("share, low, high", [(0.0, 0, 0), (0.3, 230, 370), (1.0, 1000, 1000)])
def test_demonstrations_share(share, low, high):
    """Of 1000 at share .3, 300 +- 14.5: the band is nearly five deviations wide, and the seed is fixed."""
    pairs = demonstrations(Arithmetic("addition", 2), 1000, random.Random(0), worked_share=share)
    assert low <= sum("<think></think>" not in text for _, text in pairs) <= high and len(pairs) == 1000


@every_operation
@pytest.mark.parametrize("split", ["train", "test"])
def test_demonstrations_are_of_their_split_and_right(operation, split):
    """What SFT teaches earns the full reward of what RL scores."""
    task = Arithmetic(operation, 2)
    pairs = demonstrations(task, 50, random.Random(0), worked_share=0.5, split=split)
    problems = {prompt: task.problem(*read(Problem(prompt, ""))[::2]) for prompt, _ in pairs}
    assert all(text in (completion(problems[prompt], worked=worked) for worked in (True, False)) for prompt, text in pairs)
    for worked in (True, False):
        texts = [completion(p, worked=worked) for p in problems.values()]
        assert all(task.split_of(*read(p)[::2]) == split for p in problems.values())
        for reward in task.rewards.values():
            assert reward(list(problems), texts, **columns(list(problems.values()))) == [1.0] * len(texts)
    wrong = [completion(Problem("", str(int(p.answer) + 1)), worked=False) for p in problems.values()]
    assert task.rewards["accuracy"](list(problems), wrong, answer=[p.answer for p in problems.values()]) == [0.0] * len(wrong)


def test_the_documented_example_is_what_comes_out():
    problem = Arithmetic().problem(347, 285)
    for worked in (False, True):
        assert f"{problem.prompt}   {completion(problem, worked=worked)} " in arithmetic.__doc__
