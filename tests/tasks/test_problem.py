"""Tests of minirl.tasks.problem."""

from dataclasses import FrozenInstanceError

import pytest

from minirl.tasks.problem import Problem, columns

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
