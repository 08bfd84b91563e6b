"""minirl/inference/perfectible.py"""

import random

import pytest

from minirl.inference.perfectible import perfectible_set
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.environment import tool_task, with_tools
from minirl.tasks.problem import Problem
from minirl.tasks.tools import calculate
from tests.inference.conftest import Listed

NEVER, SELDOM, OFTEN, ALWAYS = (Problem(f"{i}+{i}=", str(2 * i)) for i in (1, 2, 3, 4))
SAID = {"1+1=": ["0"] * 10, "2+2=": ["4"] * 2 + ["0"] * 8, "3+3=": ["6"] * 8 + ["0"] * 2,
        "4+4=": ["8"] * 9 + ["0"]}


class Trained(Listed):
    """A task of which all problems are in the train split but one."""

    def sample(self, n, rng, *, split="train"):
        return rng.choices(self.problems[1:] if split == "train" else self.problems[:1], k=n)


TASK = Trained([Problem("5+5=", "10"), NEVER, SELDOM, OFTEN, ALWAYS])


def test_what_is_solved_at_times_is_kept(base, say):
    """Shares of 0, 0.2, 0.8 and 0.9: the bounds belong to what is kept."""
    say(SAID)
    kept = perfectible_set(*base, TASK, n=4, samples=10, max_new_tokens=8)
    assert dict(zip(kept.problems, kept.accuracies, strict=True)) == {SELDOM: 0.2, OFTEN: 0.8}
    assert kept.asked == 4 and kept.name == "2 problems of listed problems"
    narrow = perfectible_set(*base, TASK, n=4, samples=10, low=0.85, high=1.0, max_new_tokens=8)
    assert list(narrow.problems) == [ALWAYS]


def test_the_set_is_a_task_of_the_kept_problems(base, say):
    say(SAID)
    kept = perfectible_set(*base, TASK, n=4, samples=10, max_new_tokens=8)
    assert set(kept.sample(40, random.Random(0))) == {SELDOM, OFTEN}
    assert set(kept.sample(3, random.Random(0), split="test")) == {TASK.problems[0]}
    assert kept.rewards == TASK.rewards and kept.weights == {"accuracy": 1.0}


def test_a_problem_without_a_verdict_is_left_out(base, say):
    def judge(prompts, completions, answer, **_):
        return [None if text == "none" else float(text == right)
                for text, right in zip(completions, answer, strict=True)]

    say(SAID | {"1+1=": ["none"] * 10, "2+2=": ["none"] * 5 + ["4"] + ["0"] * 4})
    task = Trained(TASK.problems, {"accuracy": judge})
    kept = perfectible_set(*base, task, n=4, samples=10, low=0.0, max_new_tokens=8)
    assert dict(zip(kept.problems, kept.accuracies, strict=True)) == {SELDOM: 0.2, OFTEN: 0.8}


def test_nothing_is_kept(base, say):
    say(SAID)
    with pytest.raises(ValueError, match="of 4 problems none is solved in 30% to 70% of 10 "
                       "samples: 2 are solved less often, 2 more often, and 0 got no verdict"):
        perfectible_set(*base, TASK, n=4, samples=10, low=0.3, high=0.7, max_new_tokens=8)


def test_a_real_policy_is_asked_the_same_with_the_same_seed(base):
    """Fresh weights never solve a sum, so all are kept at a share of 0; and no two are the same."""
    sets = [perfectible_set(*base, Arithmetic("addition", 2), n=6, samples=2, low=0.0, high=0.0,
                            max_new_tokens=4, seed=seed) for seed in (0, 0, 1)]
    assert len(set(sets[0].problems)) == 6 and set(sets[0].accuracies) == {0.0}
    assert sets[0].problems == sets[1].problems != sets[2].problems


def test_tools_stay(base):
    task = with_tools(Arithmetic("addition", 2), [calculate])
    kept = perfectible_set(*base, task, n=2, samples=2, low=0.0, max_new_tokens=4)
    assert tool_task(kept) is task


@pytest.mark.parametrize("numbers, message", [
    ({"n": 0}, "0 problems and 10 samples: at least one"),
    ({"samples": 0}, "4 problems and 0 samples: at least one"),
    ({"low": -0.1}, "low is -0.1: a share"),
    ({"high": 20}, "high is 20: a share"),
    ({"low": 0.8, "high": 0.2}, "low is 0.8 and high 0.2: a lower bound"),
])
def test_numbers_out_of_range(base, numbers, message):
    with pytest.raises(ValueError, match=message):
        perfectible_set(*base, TASK, **{"n": 4, "samples": 10, **numbers})


def test_a_task_that_does_not_say_what_is_right(base):
    with pytest.raises(ValueError, match="no reward named accuracy.*it has format"):
        perfectible_set(*base, Trained(TASK.problems, {"format": lambda **_: []}), n=4)
