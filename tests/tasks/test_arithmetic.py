"""minirl/tasks/arithmetic.py"""

import itertools
import random
import re

import pytest

from minirl.tasks import arithmetic
from minirl.tasks.arithmetic import Arithmetic, completion, demonstrations, with_slips
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
        x, y, c, total, before = re.fullmatch(r"(\d)\+(\d)\+(\d)=(\d\d)(\d*)", column).groups()
        assert (int(x), int(y)) == (a // 10**i % 10, b // 10**i % 10)
        assert int(c) == carry and int(x) + int(y) + int(c) == int(total) and before == digits
        carry, digits = int(total) // 10, total[1] + digits
    return int(f"{carry}{digits}")


def take_away(a, b, work):
    digits, borrow = "", 0
    for i, column in enumerate(work):
        top, y, c, left = re.fullmatch(r"(\d\d)-(\d)-([01])=(\d+)", column).groups()
        assert int(y) == b // 10**i % 10 and int(c) == borrow
        assert left == f"{int(top) - int(y) - int(c)}{digits}"
        borrow, digits = int(top[0]), left
        assert int(top[1]) == a // 10**i % 10
    assert borrow == 0
    return int(digits)


def multiply_out(a, b, work):
    digits, carry = "", 0
    for i, column in enumerate(work):
        x, y, c, total, before = re.fullmatch(r"(\d)\*(\d)\+(\d)=(\d\d)(\d*)", column).groups()
        assert (int(x), int(y), int(c)) == (a // 10**i % 10, b, carry)
        assert int(x) * int(y) + int(c) == int(total) and before == digits
        carry, digits = int(total) // 10, total[1] + digits
    return int(f"{carry}{digits}")


@pytest.mark.parametrize("operation, a, b, worked, answer, written", [
    # 7+5, 47+85, 347+285
    ("addition", 347, 285, "7+5+0=12,4+8+1=132,3+2+1=0632", "632", "0632"),
    ("addition", 12, 34, "2+4+0=06,1+3+0=046", "46", "046"),
    ("addition", 999, 999, "9+9+0=18,9+9+1=198,9+9+1=1998", "1998", "1998"),
    ("addition", 995, 5, "5+5+0=10,9+0+1=100,9+0+1=1000", "1000", "1000"),
    ("addition", 0, 0, "0+0+0=00", "0", "00"),
    ("subtraction", 58, 23, "08-3-0=5,05-2-0=35", "35", "35"),
    ("subtraction", 500, 123, "10-3-0=7,10-2-1=77,05-1-1=377", "377", "377"),
    ("subtraction", 100, 1, "10-1-0=9,10-0-1=99,01-0-1=099", "99", "099"),
    ("subtraction", 42, 42, "02-2-0=0,04-4-0=00", "0", "00"),
    # 7*6, 47*6, 347*6
    ("multiplication", 347, 6, "7*6+0=42,4*6+4=282,3*6+2=2082", "2082", "2082"),
    ("multiplication", 999, 9, "9*9+0=81,9*9+8=891,9*9+8=8991", "8991", "8991"),
    ("multiplication", 21, 4, "1*4+0=04,2*4+0=084", "84", "084"),
    ("multiplication", 345, 0, "5*0+0=00,4*0+0=000,3*0+0=0000", "0", "0000"),
])
def test_hand_examples(operation, a, b, worked, answer, written):
    sign = dict(zip(OPERATIONS, "+-*", strict=True))[operation]
    problem = Arithmetic(operation, len(str(a))).problem(a, b)
    assert problem == Problem(f"{a}{sign}{b}=", answer, worked, written)


@every_operation
@pytest.mark.parametrize("digits", [1, 2, 3, 4, 5])
def test_worked_text_column_by_column(operation, digits):
    """A demonstration with a wrong carry would teach wrong sums, and the reward, which reads the
    answer alone, would never show it."""
    recompute = {
        "addition": add_up,
        "subtraction": take_away,
        "multiplication": multiply_out,
    }[operation]
    for problem in Arithmetic(operation, digits).sample(150, random.Random(digits)):
        a, sign, b = read(problem)
        assert int(problem.answer) == {"+": a + b, "-": a - b, "*": a * b}[sign] >= 0
        work = problem.worked.split(",")
        assert recompute(a, b, work) == int(problem.answer) and len(work) == len(str(a))
        assert problem.worked.endswith("=" + problem.written), "the last total is the answer"
        assert int(problem.written) == int(problem.answer) and len(str(a)) == digits
        assert len(str(b)) == (1 if operation == "multiplication" else digits)


@every_operation
@pytest.mark.parametrize("digits", [1, 2])
def test_splits_are_disjoint(operation, digits):
    """No problem is in both splits, not even the other way round: 12+34 in train would give 34+12
    in test away."""
    task = Arithmetic(operation, digits)
    train, test = (
        {frozenset(read(p)[::2]) for p in task.sample(400, random.Random(0), split=split)}
        for split in ("train", "test")
    )
    assert train and test and not train & test


@every_operation
def test_a_tenth_is_held_out(operation):
    task, numbers = Arithmetic(operation, 2), range(10, 100)
    second = range(10) if operation == "multiplication" else numbers
    pairs = list(itertools.product(numbers, second))
    if operation == "subtraction":
        pairs = [(a, b) for a, b in pairs if a >= b]
    share = sum(task.split_of(a, b) == "test" for a, b in pairs) / len(pairs)
    assert 0.07 < share < 0.13
    if operation != "subtraction":
        assert all(task.split_of(a, b) == task.split_of(b, a) for a, b in pairs)
    else:
        assert any(task.split_of(a, b) != task.split_of(b, a) for a, b in pairs)


def test_the_split_is_the_same_in_every_process():
    """Python's own hash of a string changes from run to run, and test problems would leak into the
    training of a resumed run."""
    task = Arithmetic("addition", 1)
    pairs = itertools.combinations_with_replacement(range(10), 2)
    held_out = [(a, b) for a, b in pairs if task.split_of(a, b) == "test"]
    assert held_out == [(1, 9), (2, 2), (2, 6), (3, 4), (3, 9)]


@every_operation
def test_same_seed_same_problems(operation):
    task = Arithmetic(operation, 3)
    once, again, other = (task.sample(20, random.Random(seed)) for seed in (7, 7, 8))
    assert once == again != other and len(once) == 20
    assert task.sample(0, random.Random(0)) == []
    rng = random.Random(7)
    assert task.sample(8, rng) + task.sample(12, rng) == once, "it does not matter how it is cut"
    pairs = [demonstrations(task, 20, random.Random(7), worked_share=0.5) for _ in range(2)]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("arguments", [
    ("division", 3), ("", 3), ("+", 3), ("addition", 0), ("addition", 6), ("addition", -1),
    ("addition", 2.0), ("addition", "3"),
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
        with pytest.raises(ValueError, match="share"):
            demonstrations(task, 1, rng, worked_share=0.5, guessed_share=share)


@pytest.mark.parametrize("share, low, high", [(0.0, 0, 0), (0.3, 230, 370), (1.0, 1000, 1000)])
def test_demonstrations_share(share, low, high):
    """Of 1000 at share .3, 300 +- 14.5: the band is nearly five deviations wide, and the seed is
    fixed."""
    pairs = demonstrations(Arithmetic("addition", 2), 1000, random.Random(0), worked_share=share)
    worked = sum("<think></think>" not in text for _, text in pairs)
    assert low <= worked <= high and len(pairs) == 1000


def test_guesses_are_answers_to_other_problems_and_only_where_nothing_is_worked_out():
    """Half of 1000 answers at once are guesses: 500 +- 16 wrong (two sums of two digits are seldom
    the same)."""
    task = Arithmetic("addition", 2)
    right = {True: 0, False: 0}
    pairs = demonstrations(task, 2000, random.Random(0), worked_share=0.5, guessed_share=0.5)
    for prompt, text in pairs:
        answer = task.problem(*read(Problem(prompt, ""))[::2]).answer
        verdict, = task.rewards["accuracy"]([prompt], [text], answer=[answer])
        right["<think></think>" not in text] += verdict == 1.0
        assert task.rewards["format_reward"]([prompt], [text]) == [1.0]
    worked = sum("<think></think>" not in text for _, text in pairs)
    assert right[True] == worked and 0.42 < right[False] / (2000 - worked) < 0.58


@every_operation
@pytest.mark.parametrize("split", ["train", "test"])
def test_demonstrations_are_of_their_split_and_right(operation, split):
    """What SFT teaches earns the full reward of what RL scores."""
    task = Arithmetic(operation, 2)
    pairs = demonstrations(task, 50, random.Random(0), worked_share=0.5, split=split)
    problems = {prompt: task.problem(*read(Problem(prompt, ""))[::2]) for prompt, _ in pairs}
    for prompt, text in pairs:
        assert text in (completion(problems[prompt], worked=worked) for worked in (True, False))
    assert all(task.split_of(*read(p)[::2]) == split for p in problems.values())
    known = columns(list(problems.values()))
    for worked in (True, False):
        texts = [completion(p, worked=worked) for p in problems.values()]
        for reward in task.rewards.values():
            assert reward(list(problems), texts, **known) == [1.0] * len(texts)
    wrong = [str(int(p.answer) + 1) for p in problems.values()]
    texts = [completion(Problem("", answer), worked=False) for answer in wrong]
    assert task.rewards["accuracy"](list(problems), texts, **known) == [0.0] * len(wrong)


def test_the_documented_example_is_what_comes_out():
    problem = Arithmetic().problem(347, 285)
    for worked in (False, True):
        example = f"{problem.prompt}   {completion(problem, worked=worked)} "
        assert example in arithmetic.__doc__


# slips

def totals(text):
    """(x, y, carry, the total that is written) of each column."""
    work = re.fullmatch(r"<think>(.*)</think><answer>\d+</answer>", text)[1]
    return [tuple(map(int, re.fullmatch(r"(\d)[+*](\d)\+(\d)=(\d\d)\d*", column).groups()))
            for column in work.split(",")]


@pytest.mark.parametrize("operation, combine", [("addition", int.__add__),
                                                ("multiplication", int.__mul__)])
def test_a_slip_forgets_a_carry_and_what_follows_goes_on_from_it(operation, combine):
    """Each column takes the carry that the one before it wrote. A third of the carries that there
    were are gone."""
    rng, kept, lost = random.Random(0), 0, 0
    for problem in Arithmetic(operation, 3).sample(400, rng):
        text, before = with_slips(problem, rng, 1 / 3), 0
        for x, y, carry, total in totals(text):
            right = combine(x, y) + carry
            assert carry == before and total in (right, right % 10)
            before = total // 10
            kept += total >= 10
            lost += total != right
    assert lost / (kept + lost) == pytest.approx(1 / 3, abs=0.05)


def test_the_answer_is_what_the_slips_lead_to():
    problem = Arithmetic(digits=3).problem(347, 285)
    assert with_slips(problem, random.Random(0), 0.0) == completion(problem, worked=True)
    assert with_slips(problem, random.Random(0), 1.0) == (
        "<think>7+5+0=02,4+8+0=022,3+2+0=0522</think><answer>0522</answer>")


def test_a_subtraction_has_no_carry_to_forget():
    problem = Arithmetic("subtraction", 2).problem(52, 37)
    with pytest.raises(ValueError, match="'52-37=' is worked out without a carry"):
        with_slips(problem, random.Random(0), 0.5)


def test_demonstrations_with_slips_change_nothing_but_what_is_worked_out():
    """The same problems, and the same ones answered at once; without slips the same texts."""
    def drawn(**options):
        return demonstrations(Arithmetic(), 200, random.Random(0), worked_share=1.0, **options)

    assert drawn(slip_share=0.0) == drawn()
    slips = drawn(slip_share=1.0)
    assert all("+1=" not in text for _, text in slips)
    with pytest.raises(ValueError, match="slip_share is 2"):
        drawn(slip_share=2)
