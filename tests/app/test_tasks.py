"""minirl/app/tasks.py: the one table of tasks."""

import random

import pytest

from minirl.app.tasks import TASKS, make_task, with_changes
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.bilingual import Bilingual
from minirl.tasks.instructions import Instructions
from minirl.tasks.products import Products


@pytest.mark.parametrize("fields, task", [
    ({"name": "addition", "digits": 2}, Arithmetic("addition", 2)),
    ({"name": "multiplication"}, Arithmetic("multiplication")),
    ({"name": "bilingual", "digits": 3, "reason_in": "ko"}, Bilingual((3,), reason_in="ko")),
    ({"name": "bilingual", "digits": [2, 3]}, Bilingual((2, 3))),
    ({"name": "products", "digits": 2, "easy_share": 0.5}, Products(2, easy_share=0.5)),
    ({"name": "instructions"}, Instructions())])
def test_fields_make_a_task(fields, task):
    assert make_task(fields) == task


@pytest.mark.parametrize("name", TASKS)
def test_every_name_is_a_task(name):
    task = make_task({"name": name})
    problem, = task.sample(1, random.Random(0), split="test")
    assert problem.prompt and task.name and "accuracy" in task.rewards


@pytest.mark.parametrize("fields, says", [
    ({"name": "poetry"}, "there is no task 'poetry': one of addition, subtraction"),
    ({}, "there is no task None"),
    ("addition", "a task is 'addition': an object with a name"),
    ({"name": "instructions", "digits": 3}, "task instructions has no digits: it has no fields"),
    ({"name": "addition", "sides": 3}, "task addition has no sides: it has digits"),
    ({"name": "addition", "digits": 9}, "digits is 9"),
    ({"name": "addition", "digits": "3"}, "digits is '3'"),
    ({"name": "bilingual", "digits": None}, "bilingual cannot be made from"),
    ({"name": "bilingual", "reason_in": "fr"}, "fr")])
def test_what_is_no_task_is_named(fields, says):
    with pytest.raises(ValueError, match=says):
        make_task(fields)


def test_changes_keep_what_both_tasks_have():
    """minirl eval --task subtraction of a run on one-digit additions: one-digit subtractions."""
    run = {"name": "addition", "digits": 1}
    assert with_changes(run) == run
    assert with_changes(run, "subtraction") == {"name": "subtraction", "digits": 1}
    assert with_changes(run, None, 2) == {"name": "addition", "digits": 2}
    assert with_changes(run, "instructions") == {"name": "instructions"}
    longer = {"name": "addition", "digits": 4}
    assert with_changes({"name": "instructions"}, "addition", 4) == longer
    assert run == {"name": "addition", "digits": 1}
