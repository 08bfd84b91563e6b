"""minirl/tasks/yes_no.py"""

import random
import re
from collections import Counter

import pytest

from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import columns
from minirl.tasks.rewards import judge
from minirl.tasks.yes_no import YesNo, claim, right_work, yes_no_demonstrations

WORKED = "7+5+0=12,4+8+1=132"


def numbers(prompt):
    return tuple(int(x) for x in re.fullmatch(r"(\d+)\+(\d+)=(\d+)\?", prompt).groups())


@pytest.mark.parametrize("digits", [1, 2, 3, 4, 5])
def test_the_answer_is_yes_where_the_claim_is_true(digits):
    problems = YesNo(digits).sample(300, random.Random(digits))
    for problem in problems:
        a, b, result = numbers(problem.prompt)
        assert problem.answer == ("yes" if a + b == result else "no")
        assert problem.question == Arithmetic("addition", digits).problem(a, b)
        assert problem.worked == problem.question.worked
    says = Counter(problem.answer for problem in problems)
    assert 100 < says["yes"] < 200                          # half of 300: 150 +- 3 * 8.7


def test_a_false_claim_differs_in_the_digit_behind_the_first():
    question = Arithmetic("addition", 3).problem(347, 285)
    rng = random.Random(0)
    claims = Counter(claim(question, rng, true=False).prompt for _ in range(900))
    # 0632, and any digit but 6 in its place: nine of them, 100 +- 5 * 9.4 each
    assert set(claims) == {f"347+285=0{digit}32?" for digit in "012345789"}
    assert 50 < min(claims.values()) and max(claims.values()) < 150


def test_a_true_claim_by_hand():
    problem = claim(Arithmetic("addition", 2).problem(47, 85), random.Random(0), true=True)
    assert (problem.prompt, problem.answer, problem.worked) == ("47+85=132?", "yes", WORKED)


def test_a_sum_is_held_out_in_both_forms():
    """Otherwise training on one form would show the other's held-out sums."""
    sums = Arithmetic("addition", 2)
    for split in ("train", "test"):
        for problem in YesNo(2).sample(200, random.Random(1), split=split):
            a, b, _ = numbers(problem.prompt)
            assert sums.split_of(a, b) == split


def test_problems_of_the_task_are_judged_as_text():
    problems = YesNo(2).sample(40, random.Random(2))
    completions = [f"<think></think><answer>{problem.answer}</answer>" for problem in problems]
    task = YesNo(2)
    verdicts = judge(task.rewards, task.weights, [p.prompt for p in problems], completions,
                     **columns(problems))
    assert verdicts == {"accuracy": [1.0] * 40, "format_reward": [1.0] * 40}
    wrong = [text.replace("yes", "maybe").replace("no", "yes") for text in completions]
    assert not any(judge(task.rewards, ["accuracy"], [p.prompt for p in problems], wrong,
                         **columns(problems))["accuracy"])


def test_one_answer_for_all_is_right_half_of_the_time():
    problems = YesNo(3).sample(1000, random.Random(3))
    for says in ("yes", "no"):
        text = f"<think></think><answer>{says}</answer>"
        verdicts = YesNo(3).rewards["accuracy"](prompts=[], completions=[text] * 1000,
                                                **columns(problems))
        assert 450 < sum(verdicts) < 550


# ---- demonstrations

def test_what_is_worked_out_without_slips_is_right():
    pairs = yes_no_demonstrations(YesNo(3), 100, random.Random(4), worked_share=1.0)
    for prompt, text in pairs:
        a, b, result = numbers(prompt)
        work, says = re.fullmatch(r"<think>(.+)</think><answer>(yes|no)</answer>", text).groups()
        assert work == Arithmetic("addition", 3).problem(a, b).worked
        assert says == ("yes" if a + b == result else "no")


def test_the_answer_follows_from_what_is_written_where_a_carry_is_forgotten():
    """So a true claim is denied, and a false one is denied for a wrong reason."""
    pairs = yes_no_demonstrations(YesNo(2), 400, random.Random(5), worked_share=1.0, slip_share=0.8)
    kinds = Counter()
    for prompt, text in pairs:
        a, b, claimed = numbers(prompt)
        work, says = re.fullmatch(r"<think>(.+)</think><answer>(yes|no)</answer>", text).groups()
        written = int(work.rpartition("=")[2])
        assert says == ("yes" if written == claimed else "no")
        kinds[written == a + b, says == ("yes" if a + b == claimed else "no")] += 1
    assert kinds[True, True] > 50
    assert kinds[False, False] > 50             # a true claim, denied
    assert kinds[False, True] > 50              # right by luck
    assert not kinds[True, False]


def test_a_guess_is_a_coin_that_knows_nothing_of_the_claim():
    pairs = yes_no_demonstrations(YesNo(2), 800, random.Random(6), worked_share=0.0)
    right = 0
    for prompt, text in pairs:
        a, b, claimed = numbers(prompt)
        assert text in ("<think></think><answer>yes</answer>", "<think></think><answer>no</answer>")
        right += ("yes" in text) == (a + b == claimed)
    assert 340 < right < 460                    # 400 +- 4 * 14


def test_demonstrations_come_from_their_split():
    sums = Arithmetic("addition", 2)
    for prompt, _ in yes_no_demonstrations(YesNo(2), 50, random.Random(7), worked_share=0.5,
                                           split="test"):
        assert sums.split_of(*numbers(prompt)[:2]) == "test"


# ---- the reward that is watched

@pytest.mark.parametrize("completion, verdict", [
    (f"<think>{WORKED}</think><answer>yes</answer>", 1.0),
    (f"<think>{WORKED}</think><answer>no</answer>", 1.0),        # the answer does not count
    (f"<think>{WORKED}</think>", 1.0),
    ("<think>7+5+0=12,4+8+0=122</think><answer>no</answer>", 0.0),
    ("<think>7+5+0=12</think><answer>yes</answer>", 0.0),        # one column is missing
    (f"<think>{WORKED},0+0+1=0132</think><answer>yes</answer>", 0.0),
    ("<think></think><answer>yes</answer>", 0.0),
    ("", 0.0),
])
def test_right_work(completion, verdict):
    assert right_work(["47+85=132?"], [completion], [WORKED]) == [verdict]


def test_without_a_known_way_no_reasoning_is_right():
    assert right_work(["?"], ["<think></think><answer>yes</answer>"], [""]) == [0.0]


# ---- hostile input

@pytest.mark.parametrize("digits", [0, 6, "3", 2.0, True])
def test_digits_out_of_range_are_refused(digits):
    with pytest.raises(ValueError, match="digits is .*1 to 5 is wanted"):
        YesNo(digits)


@pytest.mark.parametrize("shares", [{"worked_share": 1.5}, {"worked_share": 0.5, "slip_share": -1}])
def test_shares_out_of_range_are_refused(shares):
    with pytest.raises(ValueError, match="share in"):
        yes_no_demonstrations(YesNo(2), 1, random.Random(0), **shares)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'dev'"):
        YesNo(2).sample(1, random.Random(0), split="dev")
