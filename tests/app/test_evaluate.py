"""minirl/app/evaluate.py"""

import math
import random
from dataclasses import replace

import pytest

from minirl.app.evaluate import Evaluation, distinct_problems, evaluate
from minirl.lm.checkpoint import load_pretrained
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import Problem


def test_accuracy_and_pass_at_k_from_counts():
    result = Evaluation(problems=[], completions=[], correct=[5, 0, 2], samples=5, rewards={}, mean_length=0.0, truncated=0.0)
    assert result.accuracy == pytest.approx(7 / 15)
    assert result.pass_at(1) == pytest.approx(7 / 15) and result.pass_at(2) == pytest.approx((1 + 0 + 0.7) / 3)      # pass@2 of 2 in 5: 1 - 3/10


def test_batches_change_nothing_but_memory_and_problems_are_held_out(base):
    model, tokenizer = load_pretrained(base)
    task = Arithmetic("addition", 2)
    whole = evaluate(model, tokenizer, task, n=9, samples=2, max_new_tokens=6, temperature=0)
    split = evaluate(model, tokenizer, task, n=9, samples=2, max_new_tokens=6, temperature=0, batch=4)
    assert whole == split and len(whole.completions) == 9 and all(len(row) == 2 for row in whole.completions)
    for problem in whole.problems:
        a, b = map(int, problem.prompt.rstrip("=").split("+"))
        assert task.split_of(a, b) == "test"


class Listed:
    """A task of some problems, drawn with replacement, and the verdict for each answer."""

    def __init__(self, problems, verdicts=None):
        self.problems, self.drawn = problems, 0
        self.rewards = {
            "accuracy": lambda prompts, completions, answer, **_: [verdicts[a] for a in answer]
        }

    def sample(self, n, rng, *, split="train"):
        self.drawn += n
        return rng.choices(self.problems, k=n) if split == "test" else []


def listed(n, verdicts=None):
    return Listed([Problem(f"{i}=", str(i)) for i in range(n)], verdicts)


def test_held_out_problems_are_distinct(base):
    """What was called 512 held-out problems of 1-digit sums were nine, each drawn some sixty times,
    and the interval took n = 512."""
    model, tokenizer = load_pretrained(base)
    task = Arithmetic("addition", 1)
    held_out = {f"{a}+{b}=" for a in range(10) for b in range(10) if task.split_of(a, b) == "test"}
    result = evaluate(model, tokenizer, task, n=512, max_new_tokens=2)
    assert (
        len(result.problems) == len(result.completions) == len(result.correct) == len(held_out) < 20
    )
    assert {p.prompt for p in result.problems} == held_out


@pytest.mark.parametrize(
    "n, there, want",
    [(1, 1, 1), (5, 5, 5), (512, 5, 5), (300, 300, 300), (300, 301, 300), (10**12, 40, 40)],
)
def test_as_many_distinct_problems_as_there_are_and_no_endless_search(n, there, want):
    task = listed(there)
    found = distinct_problems(task, n, random.Random(0))
    assert len({p.prompt for p in found}) == len(found) == want
    assert task.drawn <= 20 * max(there, 64) + 2 * 4096


def test_the_first_problems_are_the_first_of_more_and_the_seed_decides():
    few, many = (distinct_problems(listed(50), n, random.Random(1)) for n in (3, 40))
    assert few == many[:3] == distinct_problems(
        listed(50), 3, random.Random(1)
    ) and few != distinct_problems(listed(50), 3, random.Random(2))


def test_one_prompt_with_two_answers_is_two_problems():
    """The same number in another spelling, or another field, is the same problem."""
    problems = [
        Problem("a", "1"),
        Problem("a", "2"),
        Problem("b", "1"),
        Problem("a", "1", worked="x"),
    ]
    found = distinct_problems(Listed(problems), 9, random.Random(0))
    assert sorted((p.prompt, p.answer) for p in found) == [("a", "1"), ("a", "2"), ("b", "1")]


def test_a_task_without_held_out_problems_is_named():
    with pytest.raises(ValueError, match="no problem in its split 'train'"):
        distinct_problems(listed(3), 2, random.Random(0), split="train")


def test_a_task_without_accuracy_is_named_before_anything_is_sampled():
    """It was a KeyError, after all the sampling."""
    task = listed(3)
    task.rewards = {"format": None, "length": None}
    with pytest.raises(ValueError, match="no reward named accuracy.*it has format, length"):
        evaluate(None, None, task, n=1)


def test_no_verdict_counts_neither_as_right_nor_as_wrong(base):
    """Where a task judged half of the completions, all of them right, the accuracy was 0.5, and the
    mean of the reward 1.0 beside it."""
    model, tokenizer = load_pretrained(base)
    task = listed(6, {"0": 1.0, "1": 1.0, "2": 0.0, "3": None, "4": float("nan"), "5": None})
    result = evaluate(model, tokenizer, task, n=6, samples=2, max_new_tokens=2)
    right = {p.answer: (c, j) for p, c, j in zip(result.problems, result.correct, result.judged)}
    assert right == {"0": (2, 2), "1": (2, 2), "2": (0, 2), "3": (0, 0), "4": (0, 0), "5": (0, 0)}
    assert (
        result.accuracy == result.rewards["accuracy"] == pytest.approx(2 / 3)
        and result.judged_problems == 3
    )
    assert result.pass_at(1) == result.pass_at(2) == pytest.approx(2 / 3) and math.isnan(
        result.pass_at(3)
    )
    nothing = replace(result, correct=[0] * 6, judged=[0] * 6)
    assert math.isnan(nothing.accuracy) and nothing.judged_problems == 0


def test_some_completions_of_a_problem_without_a_verdict():
    """Of 4 samples two are judged and one is right: pass@1 1/2 there. pass@2 needs two verdicts."""
    result = Evaluation(
        [], [], correct=[1, 1], samples=4, rewards={}, mean_length=0.0, truncated=0.0, judged=[2, 1]
    )
    assert (
        result.accuracy == pytest.approx(2 / 3)
        and result.pass_at(1) == pytest.approx(3 / 4)
        and result.pass_at(2) == 1.0
    )


def test_progress_is_told_of_every_batch(base):
    class Told(list):
        update = list.append

    model, tokenizer = load_pretrained(base)
    told = Told()
    evaluate(
        model,
        tokenizer,
        listed(5, dict.fromkeys("01234", 1.0)),
        n=5,
        samples=3,
        max_new_tokens=2,
        batch=6,
        progress=told,
    )
    assert told == [6, 6, 3]
