"""minirl/tasks/problem.py"""

import random
from dataclasses import FrozenInstanceError

import pytest

from minirl.tasks.arithmetic import SYMBOLS, Arithmetic
from minirl.tasks.bilingual import Bilingual, BilingualProblem
from minirl.tasks.instructions import KINDS, Instructions
from minirl.tasks.mixture import Mixture
from minirl.tasks.problem import JudgedTask, Problem, columns, draw, weights_of
from minirl.tasks.products import Products

PROBLEMS = [Problem("1+2=", "3", "1+2+0=03"), Problem("2+2=", "4")]


def test_columns():
    """Everything but the prompt, one entry per problem."""
    assert columns(PROBLEMS) == {
        "answer": ["3", "4"],
        "worked": ["1+2+0=03", ""],
        "written": ["", ""],
    }


def test_columns_of_groups():
    """Repeated in a row, as completions of one prompt stand side by side: interleaved, every group
    would be scored on its neighbours' answers."""
    assert columns(PROBLEMS, repeat=3)["answer"] == ["3", "3", "3", "4", "4", "4"]
    assert columns([], repeat=3) == {"answer": [], "worked": [], "written": []}


@pytest.mark.parametrize("order", [1, -1], ids=["plain first", "plain last"])
def test_columns_of_different_classes_are_refused(order):
    """Only the first problem's fields were looked at: the others' were lost."""
    problems = [PROBLEMS[0], BilingualProblem("a", "1", language="ko")][::order]
    with pytest.raises(ValueError, match="BilingualProblem.*; they must be of one class"):
        columns(problems)
    assert columns(problems[:1])["answer"] and columns(problems[1:])["answer"]


def test_problem_is_frozen():
    with pytest.raises(FrozenInstanceError):
        PROBLEMS[0].answer = "5"
    assert PROBLEMS[1] == Problem(prompt="2+2=", answer="4", worked="")
    assert len({*PROBLEMS, *PROBLEMS}) == 2


def verdicts(prompts, completions, **_):
    return [0.0] * len(completions)


TASKS = [
    *(Arithmetic(operation, digits) for operation in SYMBOLS for digits in range(1, 6)),
    *(Bilingual((digits,)) for digits in range(1, 6)),
    Bilingual((1,), ("ko",), "en", 0.0),
    *(Instructions((kind,), 3) for kind in KINDS),
    *(Products(digits, easy_share=0.5) for digits in range(1, 6)),
    Mixture(Bilingual(), Instructions(), verdicts),
    JudgedTask(Arithmetic("addition", 1), {"length": verdicts}, {"length": 0.5}),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_task_has_distinct_problems_in_both_splits(task, split):
    """Held-out problems are counted by putting them into a set: of 1-digit sums there are a few."""
    problems = task.sample(100, random.Random(0), split=split)
    again = task.sample(100, random.Random(0), split=split)
    assert len(problems) == 100 and len({*problems, *again}) == len(set(problems)) >= 6
    assert len({p.prompt for p in problems}) == len(set(problems))


@pytest.mark.parametrize("task", TASKS[::5], ids=lambda task: task.name)
def test_no_problems_are_no_problem(task):
    assert task.sample(0, random.Random(0)) == []


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_has_a_name_and_weighs_its_own_rewards(task):
    assert task.name and weights_of(task) == task.weights and set(task.weights) <= {*task.rewards}
    problems = task.sample(3, random.Random(0))
    for name in task.weights:
        judged = task.rewards[name](prompts=[p.prompt for p in problems], completions=["x"] * 3,
                                    **columns(problems))
        assert len(judged) == 3


def test_names_say_what_is_learnt():
    assert Arithmetic("multiplication", 3).name == "3-digit multiplication"
    assert Bilingual().name == "2-digit and 3-digit addition in English and Korean"
    assert Bilingual((4,), ("ko",)).name == "4-digit addition in Korean"
    assert Bilingual((3,), reason_in="ko").name == (
        "3-digit addition in English and Korean, reasoning in Korean")
    mixture = Mixture(Arithmetic("addition", 2), Instructions(), verdicts)
    assert mixture.name == "2-digit addition and instructions"


def test_each_reward_of_a_task_counts_once():
    for task in (Arithmetic(), Bilingual(), Instructions()):
        assert weights_of(task) == dict.fromkeys(task.rewards, 1.0)


class Plain:
    """A task without weights."""

    rewards = {"a": verdicts, "b": verdicts}


def test_a_task_without_weights_weighs_each_reward_once():
    assert weights_of(Plain()) == {"a": 1.0, "b": 1.0}


def test_weights_are_of_the_tasks_rewards():
    judged = JudgedTask(Arithmetic(), {"a": verdicts, "b": verdicts}, {"b": 0.0, "a": 2})
    assert list(weights_of(judged).items()) == [("b", 0.0), ("a", 2)]
    weights = weights_of(judged)
    weights["a"] = 5.0
    assert judged.weights["a"] == 2, "what it returns is the caller's own"
    with pytest.raises(ValueError, match="no reward 'c'; the task has a, b"):
        weights_of(JudgedTask(Arithmetic(), judged.rewards, {"a": 1.0, "c": 1.0}))


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

    def one():
        return rare, "test" if rng.random() < 1 / 500 else "train"

    assert draw(100, "test", one) == [rare] * 100
