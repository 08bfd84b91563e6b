"""minirl/app/tasks.py: the one table of tasks."""

import os
import random

import pytest

from minirl.app.tasks import OF_A_FILE, TASKS, make_task, title_of, with_changes
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.bilingual import Bilingual
from minirl.tasks.environment import tool_task, with_tools
from minirl.tasks.instructions import Instructions
from minirl.tasks.products import Products
from minirl.tasks.tools import calculate


@pytest.mark.parametrize("fields, task", [
    ({"name": "addition", "digits": 2}, Arithmetic("addition", 2)),
    ({"name": "multiplication"}, Arithmetic("multiplication")),
    ({"name": "bilingual", "digits": 3, "reason_in": "ko"}, Bilingual((3,), reason_in="ko")),
    ({"name": "bilingual", "digits": [2, 3]}, Bilingual((2, 3))),
    ({"name": "products", "digits": 2, "easy_share": 0.5}, Products(2, easy_share=0.5)),
    ({"name": "instructions"}, Instructions())])
def test_fields_make_a_task(fields, task):
    assert make_task(fields) == task


def test_every_task_may_have_tools_and_a_number_of_calls():
    fields = {"name": "addition", "tools": "calculator"}
    for changes, calls in (({}, 8), ({"max_tool_calls": 2}, 2)):
        task = make_task({**fields, **changes})
        assert task == with_tools(Arithmetic("addition"), [calculate], max_calls=calls)
        assert tool_task(task).max_calls == calls


@pytest.mark.parametrize("name", TASKS)
def test_every_name_is_a_task(name, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "1?", "answer": "#### 1"}\n'
                                      '{"question": "2?", "answer": "#### 2"}\n')
    fields = {"data": str(tmp_path / "a.jsonl")} if name in OF_A_FILE else {}
    if name == "reasoning_gym":
        pytest.importorskip(name)
        name = "reasoning_gym:chain_sum"
    task = make_task({"name": name, **fields})
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
    ({"name": "bilingual", "reason_in": "fr"}, "fr"),
    ({"name": "gsm8k"}, "the task gsm8k reads a file: name it with --data"),
    ({"name": "dataset"}, "the task dataset reads a file"),
    ({"name": "dataset", "data": "nowhere.csv"}, "there is no file nowhere.csv"),
    ({"name": "gsm8k", "data": "x", "math_verify": True}, "the task gsm8k has no math_verify"),
    ({"name": "reasoning_gym"}, "has many tasks: name one, such as reasoning_gym:chain_sum"),
    ({"name": "reasoning_gym:"}, "has many tasks: name one"),
    ({"name": "addition", "tools": "hammer"}, "there is no tool 'hammer': calculator"),
    ({"name": "addition", "tools": "calculator", "max_tool_calls": 0}, "max_calls is 0"),
    ({"name": "addition", "max_tool_calls": 2}, "max_tool_calls is 2, .* addition has no tools"),
    ({"name": "addition:3"}, "there is no task 'addition:3'")])
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


def test_a_file_is_read_once_and_again_where_it_has_changed(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "1?", "answer": "1"}\n')
    fields = {"name": "dataset", "data": str(file)}
    task = make_task(fields)
    assert make_task(fields) is task
    file.write_text('{"question": "1?", "answer": "1"}\n' * 2)
    os.utime(file, ns=(1, 1))
    assert len(make_task(fields).problems) == 2


def test_a_title_needs_no_file():
    assert title_of({"name": "gsm8k", "data": "/gone/train.jsonl"}) == "train.jsonl"
    assert title_of({"name": "addition", "digits": 2}) == "2-digit addition"


def test_changes_of_the_file():
    run = {"name": "dataset", "data": "a.jsonl", "math_verify": True}
    assert with_changes(run, None, None, data="b.jsonl", split="test", eval_data=None) == {
        "name": "dataset", "data": "b.jsonl", "math_verify": True, "split": "test"}
    assert with_changes(run, "gsm8k") == {"name": "gsm8k", "data": "a.jsonl"}
    assert with_changes(run, "addition", 2) == {"name": "addition", "digits": 2}
