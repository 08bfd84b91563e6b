"""minirl/tasks/products.py"""

import itertools
import random
import re
import time

import pytest

from minirl.tasks import products
from minirl.tasks.problem import columns
from minirl.tasks.products import (
    FORMS,
    ProductProblem,
    Products,
    at_once,
    call_cost,
    chain,
    form_of,
    form_reward,
    problem_of,
    product_demonstrations,
    program,
    tool_call,
    value_accuracy,
)
from minirl.tasks.rewards import judge
from minirl.tasks.tools import TOOL_WORDS, calculate


def numbers(problem):
    return tuple(int(x) for x in re.fullmatch(r"(\d+)[*+](\d+)=", problem.prompt).groups())


@pytest.mark.parametrize("a, b, worked, written", [
    # 8*2 = 16: 6, carry 1; 8*9+1 = 73 and 3*2+73 = 79: 9, carry 7; 3*9+7 = 34
    (38, 92, "8*2+0=016;8*9+1=0736,3*2+73=0796;3*9+7=03496", "03496"),
    (10, 10, "0*0+0=000;0*1+0=0000,1*0+0=0000;1*1+0=00100", "00100"),
    (7, 8, "7*8+0=056", "056"),
    (0, 5, "0*5+0=000", "000"),
])
def test_hand_examples(a, b, worked, written):
    expected = ProductProblem(f"{a}*{b}=", str(a * b), worked, written, expression=f"{a}*{b}")
    assert problem_of(f"{a}*{b}") == expected
    assert problem_of("3+4") == ProductProblem("3+4=", "7", "3+4+0=07", "07", "3+4", True)


@pytest.mark.parametrize("digits", [1, 2, 3, 4, 5])
def test_every_step_of_a_chain_follows_from_the_one_before(digits):
    for problem in Products(digits).sample(60, random.Random(digits)):
        a, b = numbers(problem)
        total, done = 0, ""
        columns_of = problem.worked.split(";")
        assert len(columns_of) == 2 * digits - 1
        for k, column in enumerate(columns_of):
            pairs = set()
            for step in column.split(","):
                x, y, before, after = re.fullmatch(r"(\d)\*(\d)\+(\d+)=(\d+)", step).groups()
                assert int(before) == total
                total += int(x) * int(y)
                assert after == f"{total:03}{done}" and total < 1000
                pairs.add((x, y))
            factors = [(i, k - i) for i in range(digits) if 0 <= k - i < digits]
            assert len(column.split(",")) == len(factors)
            assert pairs == {(str(a)[::-1][i], str(b)[::-1][j]) for i, j in factors}
            total, done = total // 10, f"{total % 10}{done}"
        assert after == problem.written and int(problem.written) == a * b == int(problem.answer)


def test_problems_have_their_lengths_and_their_share_of_easy_ones():
    """Of 1,000 at share 0.3, 300 +- 14.5."""
    task = Products(3, easy_share=0.3)
    for split in ("train", "test"):
        problems = task.sample(1000, random.Random(0), split=split)
        assert 230 < sum(p.easy for p in problems) < 370
        for p in problems:
            assert [len(str(x)) for x in numbers(p)] == ([1, 1] if p.easy else [3, 3])
            assert ("+" in p.prompt) == p.easy and calculate(p.expression) == p.answer
    assert not any(p.easy for p in Products(3).sample(100, random.Random(0)))
    assert all(p.easy for p in Products(3, easy_share=1.0).sample(100, random.Random(0)))


def test_splits_of_products_are_disjoint_in_both_orders():
    task = Products(1, easy_share=0.5)
    train, test = ({(p.easy, *sorted(numbers(p)))
                    for p in task.sample(2000, random.Random(0), split=split)}
                   for split in ("train", "test"))
    sums, every_product = ({(easy, *pair) for pair in
                            itertools.combinations_with_replacement(range(1 - easy, 10), 2)}
                           for easy in (True, False))
    assert train & test == sums, "a table of sums is known by heart, or it is not"
    assert train | test == sums | every_product and 2 <= len(test - sums) <= 8    # of 45


def test_same_seed_same_problems_however_they_are_cut():
    task, rng = Products(4, easy_share=0.4), random.Random(7)
    once = task.sample(20, random.Random(7))
    assert task.sample(8, rng) + task.sample(12, rng) == once != task.sample(20, random.Random(8))
    pairs = [product_demonstrations(task, 20, random.Random(7), tool_share=0.5) for _ in range(2)]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("fields", [
    {"digits": 0}, {"digits": 6}, {"digits": 2.0}, {"digits": True}, {"easy_share": 1.1},
    {"easy_share": -0.1}, {"easy_share": float("nan")}, {"cost": -0.1}, {"cost": float("nan")},
    {"cost": float("inf")}])
def test_bad_tasks_raise(fields):
    with pytest.raises(ValueError, match="wanted"):
        Products(**fields)


def test_bad_arguments_raise():
    task, rng = Products(), random.Random(0)
    for n, split in ((1, "valid"), (-1, "train")):
        with pytest.raises(ValueError, match="wanted"):
            task.sample(n, rng, split=split)
    shares = [{"tool_share": 1.1}, {"tool_share": -0.1}, {"tool_share": 0.5, "slip_share": 2},
              {"tool_share": 0.6, "chain_share": 0.6}, {"tool_share": 0.5, "program_share": 0.51}]
    for share in shares:
        with pytest.raises(ValueError, match="share in .0, 1. is wanted"):
            product_demonstrations(task, 1, rng, **share)
    product_demonstrations(task, 1, rng, tool_share=0.7, chain_share=0.2, program_share=0.1)


def test_each_way_is_right_and_has_its_form():
    problem = problem_of("38*92")
    ways = {"at once": at_once("3496"), "chain": chain(problem), "tool": tool_call("38*92"),
            "program": program("38*92")}
    assert tuple(ways) == FORMS
    for form, completion in ways.items():
        assert form_of(completion) == form
        example = completion.replace("</think><answer>", "</think>\n             <answer>")
        assert completion in products.__doc__ or example in products.__doc__
    texts = list(ways.values())
    verdicts = judge(Products().rewards, Products().weights, ["38*92="] * 4, texts,
                     **columns([problem], repeat=4))
    assert verdicts == {"accuracy": [1.0] * 4, "format_reward": [1.0] * 4,
                        "call_cost": [0.0, 0.0, -1.0, -1.0]}
    assert Products(cost=0.25).weights == {"accuracy": 1.0, "format_reward": 1.0, "call_cost": 0.25}


@pytest.mark.parametrize("completion, form", [
    ("<think></think><answer>1</answer>", "at once"),
    ("\n<think> </think>\n<answer></answer> ", "at once"),
    ("<think>3<4</think><answer>1</answer>", "chain"),
    ("<think>a <tool>1</tool><result>1</result> b <tool>2</tool><result>2</result></think>"
     "<answer>1</answer>", "tool"),
    ("<think><tool>1/0</tool><result>error: division by zero</result></think><answer>0</answer>",
     "tool"),
    ("<think>so</think> <program>a=1\nb=a</program>", "program"),
    ("<think></think><program></program>", "program"),
    ("", None), ("1", None), ("<answer>1</answer>", None), ("<program>a=1</program>", None),
    ("<think></think>", None), ("<think></think><answer>1</answer>2", None),
    ("x<think></think><answer>1</answer>", None),
    ("<think></think><answer>1</answer><answer>2</answer>", None),
    ("<think><think></think><answer>1</answer>", None),
    ("<think></think><answer>1</answer><program>a=1</program>", None),
    ("<think></think><program>a=1</program><answer>1</answer>", None),
    ("<think></think><program>a=1</program><program>a=1</program>", None),
    ("<think><program>a=1</program></think><answer>1</answer>", None),
    # a call without a result, a result without a call, one that the model wrote itself
    ("<think><tool>1</tool></think><answer>1</answer>", None),
    ("<think><tool>1<result>1</result></think><answer>1</answer>", None),
    ("<think><result>1</result></think><answer>1</answer>", None),
    ("<think><tool>1</tool><result>1</result><result>2</result></think><answer>2</answer>", None),
    ("<think><tool>1</tool> <result>1</result></think><answer>2</answer>", None),
    ("<think></think><tool>1</tool><result>1</result><answer>1</answer>", None),
    ("<think></think><answer><tool>1</tool><result>1</result></answer>", None),
    ("<think></tool></think><answer>1</answer>", None),
])
def test_forms(completion, form):
    assert form_of(completion) == form
    assert form_reward([""], [completion]) == [float(form is not None)]
    assert form_of([{"role": "assistant", "content": completion}]) == form


@pytest.mark.parametrize("completion, right", [
    (at_once("3496"), 1.0), (at_once("03,496.0"), 1.0), (at_once("3497"), 0.0),
    (at_once("38*92"), 0.0),                                     # nobody calculates for an answer
    (tool_call("38*92"), 1.0), (tool_call("38*93"), 0.0),        # the tool says what was asked
    (program("38*92"), 1.0), (program("38*93"), 0.0), (program("1/0"), 0.0), (program(""), 0.0),
    ("<program>a=38\nb=92;c=a*b</program>", 1.0),
    ("<program>answer=3496;rest=1</program>", 1.0),
    ("<program>a=3496", 0.0), ("a=3496</program>", 0.0), ("", 0.0),
    ("<program>a=3496</program><program>a=3496</program>", 0.0),
    (at_once("3497") + "<program>a=3496</program>", 0.0),        # the answer counts
    (at_once("3496") + "<program>a=1</program>", 1.0),
    ("<answer>3497<program>a=3496</program>", 0.0),
    ("<program>a=3496</answer></program>", 0.0),
    ("<program>__import__('os')</program>", 0.0),
    ("<program>a=9**9**9**9</program>", 0.0),
])
def test_accuracy(completion, right):
    assert value_accuracy(["38*92="], [completion], answer=["3496"]) == [right]
    assert value_accuracy(["38*92="], [completion], answer=[None]) == [None]


def test_each_call_costs_whether_or_not_it_helps():
    texts = ["", at_once("1"), tool_call("1/0"), "<tool><tool>1", "<result>1</result>",
             program("1") + tool_call("1"), [{"role": "assistant", "content": tool_call("1")}]]
    assert call_cost([""] * 7, texts) == [0.0, 0.0, -1.0, -2.0, 0.0, -2.0, -1.0]


def test_an_error_of_the_tool_is_text_that_can_be_copied():
    assert "<result>error: division by zero</result>" in tool_call("1/0")
    assert form_of(tool_call("38x92")) == "tool"


def as_text(pairs):
    return [(prompt, "".join(completion)) for prompt, completion in pairs]


@pytest.mark.parametrize("shares", [(0.25, 0.25, 0.25), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5)])
def test_demonstrations_have_their_shares(shares):
    """Of 1,200 at share 1/4, 300 +- 15; half of them easy, in each form."""
    names = ("tool_share", "chain_share", "program_share")
    task = Products(2, easy_share=0.5)
    pairs = as_text(product_demonstrations(task, 1200, random.Random(0),
                                           **dict(zip(names, shares, strict=True))))
    forms = {name: [p for p, c in pairs if form_of(c) == name] for name in FORMS}
    for name, share in zip(("tool", "chain", "program"), shares, strict=True):
        assert abs(len(forms[name]) - 1200 * share) <= (80 if share < 1 else 0)
        if share:
            easy = sum("+" in prompt for prompt in forms[name])
            assert abs(easy / len(forms[name]) - 0.5) < 0.12
    assert sum(map(len, forms.values())) == 1200, "each has a form"


def test_easy_sums_may_be_called_for_less_often():
    """Of about 600 sums and 600 products at share 1/2: 150 +- 11 calls, and 300 +- 12."""
    task = Products(2, easy_share=0.5)
    pairs = as_text(product_demonstrations(task, 1200, random.Random(0), tool_share=0.5,
                                           chain_share=0.25, easy_calls=0.5))
    for sign, share in (("+", 0.25), ("*", 0.5)):
        forms = [form_of(completion) for prompt, completion in pairs if sign in prompt]
        assert abs(forms.count("tool") / len(forms) - share) < 0.07
        assert abs(forms.count("chain") / len(forms) - 0.25) < 0.07


@pytest.mark.parametrize("split", ["train", "test"])
def test_demonstrations_are_right_but_for_guesses(split):
    task = Products(3, easy_share=0.5)
    pairs = product_demonstrations(task, 600, random.Random(0), tool_share=0.25, chain_share=0.25,
                                   program_share=0.25, split=split)
    for prompt, completion in as_text(pairs):
        right, = value_accuracy([prompt], [completion], answer=[calculate(prompt[:-1])])
        guessed = form_of(completion) == "at once" and "*" in prompt
        assert right == float(not guessed)
        if guessed:
            assert re.fullmatch(r"<think></think><answer>\d{5,6}</answer>", completion)


def test_what_the_calculator_says_is_a_part_of_its_own():
    """A model must not learn to say it: parts are the policy's and the calculator's, in turn."""
    pairs = product_demonstrations(Products(2), 20, random.Random(0), tool_share=1.0)
    for prompt, (call, result, answer) in pairs:
        assert call == f"<think><tool>{prompt[:-1]}</tool>"
        assert result == f"<result>{calculate(prompt[:-1])}</result>"
        assert answer == f"</think><answer>{calculate(prompt[:-1])}</answer>"


def test_slips_are_calls_of_another_problem_and_the_tool_answers_what_was_asked():
    """Half of 1,000: 500 +- 16. A slip changes one digit; 0*x can be right all the same."""
    task = Products(2)
    pairs = product_demonstrations(task, 1000, random.Random(0), tool_share=0.5, program_share=0.5,
                                   slip_share=0.5)
    slips = 0
    for prompt, completion in as_text(pairs):
        asked = re.search(r"(?:<tool>|answer=)([^<]*)<", completion)[1]
        slips += asked != prompt[:-1]
        assert len(asked) == len(prompt) - 1
        assert sum(x != y for x, y in zip(asked, prompt, strict=False)) <= 1
        right, = value_accuracy([prompt], [completion], answer=[calculate(asked)])
        assert right == 1.0
    assert 420 < slips < 580


def test_the_words_are_those_of_the_forms():
    written = tool_call("1") + program("1")
    tags = set(re.findall(r"</?\w+>", written)) - {"<think>", "</think>", "<answer>", "</answer>"}
    assert tags == set(TOOL_WORDS) == set(products.TOOL_WORDS)


@pytest.mark.parametrize("text", [
    "<think>" * 10**5, "<think>" + "</think>" * 10**5, "<tool>" * 10**5, "<program>" * 10**5,
    "<think>" + tool_call("1") * 3000, "<think></think>" + " " * 10**6,
    "<think>" + " </think>" * 10**5])
def test_long_completions_are_judged_in_a_moment(text):
    start = time.thread_time()
    for reward in Products().rewards.values():
        reward(prompts=["1*1="], completions=[text], answer=["1"])
    assert time.thread_time() - start < 1
