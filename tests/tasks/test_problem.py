"""Tests of minirl.tasks.problem."""

import random
from dataclasses import FrozenInstanceError

import pytest

from minirl.tasks.arithmetic import SYMBOLS, Arithmetic
from minirl.tasks.bilingual import Bilingual
from minirl.tasks.instructions import KINDS, Instructions
from minirl.tasks.mixture import Mixture
from minirl.tasks.problem import Problem, columns, draw

PROBLEMS = [Problem("1+2=", "3", "1+2+0=03"), Problem("2+2=", "4")]


def test_columns():
    """Everything but the prompt, one entry per problem."""
    assert columns(PROBLEMS) == {"answer": ["3", "4"], "worked": ["1+2+0=03", ""], "written": ["", ""]}


def test_columns_of_groups():
    """Repeated in a row, as completions of one prompt stand side by side: interleaved, every group would be scored on its neighbours' answers."""
    assert columns(PROBLEMS, repeat=3)["answer"] == ["3", "3", "3", "4", "4", "4"]
    assert columns([], repeat=3) == {"answer": [], "worked": [], "written": []}


def test_problem_is_frozen():
    with pytest.raises(FrozenInstanceError):
        PROBLEMS[0].answer = "5"
    assert PROBLEMS[1] == Problem(prompt="2+2=", answer="4", worked="") and len({*PROBLEMS, *PROBLEMS}) == 2


def verdicts(prompts, completions, **_):
    return [0.0] * len(completions)


TASKS = [*(Arithmetic(operation, digits) for operation in SYMBOLS for digits in range(1, 6)),
         *(Bilingual((digits,)) for digits in range(1, 6)), Bilingual((1,), ("ko",), "en", 0.0),
         *(Instructions((kind,), 3) for kind in KINDS),
         Mixture(Bilingual(), Instructions(), verdicts)]


def name_of(task) -> str:
    """A test's name: the same in every process, as the address of a mixture's reward is not."""
    return "mixture" if isinstance(task, Mixture) else str(task)


@pytest.mark.parametrize("task", TASKS, ids=name_of)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_task_has_distinct_problems_in_both_splits(task, split):
    """Held-out problems are counted by putting them into a set: of 1-digit sums there are a few."""
    problems = task.sample(100, random.Random(0), split=split)
    again = task.sample(100, random.Random(0), split=split)
    assert len(problems) == 100 and len({*problems, *again}) == len(set(problems)) >= 6
    assert len({p.prompt for p in problems}) == len(set(problems))


@pytest.mark.parametrize("task", TASKS[::5], ids=name_of)
def test_no_problems_are_no_problem(task):
    assert task.sample(0, random.Random(0)) == []


def test_an_empty_split_is_refused():
    """A task all of whose problems are in one split drew for ever from the other."""
    def one():
        return PROBLEMS[0], "train"

    assert draw(2, "train", one) == [PROBLEMS[0]] * 2
    with pytest.raises(ValueError, match=r"such as '1\+2=', none is in the test split"):
        draw(1, "test", one)


def test_a_small_split_is_found():
    """One problem in 500 is drawn all the same, as often as it is asked for."""
    rng, rare = random.Random(0), PROBLEMS[1]
    found = draw(100, "test", lambda: (rare, "test") if rng.random() < 1 / 500 else (rare, "train"))
    assert found == [rare] * 100
