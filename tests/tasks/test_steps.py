"""minirl/tasks/steps.py"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirl.tasks.arithmetic import Arithmetic, completion
from minirl.tasks.problem import Problem
from minirl.tasks.steps import (
    Solution,
    first_wrong,
    load_solutions,
    save_solutions,
    split_steps,
    step_truths,
)

SUM = Arithmetic(digits=3).problem(347, 285)       # 7+5+0=12,4+8+1=132,3+2+1=0632


@pytest.mark.parametrize("completion, steps", [
    ("<think>a,b</think><answer>c</answer>", ["<think>a,", "b</think>", "<answer>c</answer>"]),
    ("<think></think><answer>c</answer>", ["<think></think>", "<answer>c</answer>"]),
    ("<think>a</think><answer>1,234</answer>", ["<think>a</think>", "<answer>1,234</answer>"]),
    ("<think>a,b", ["<think>a,", "b"]),                     # cut off in its second step
    ("<think>a,", ["<think>a,"]),
    ("<think>a</think>", ["<think>a</think>"]),             # an answer without a token but EOS
    (",,", [",", ","]),
    ("a</think>b</think>c,d", ["a</think>", "b</think>c,d"]),
    ("", [""]),
])
def test_where_a_step_ends(completion, steps):
    assert split_steps(completion) == steps


@given(st.text(alphabet=",ab") | st.text(), st.sampled_from([",", "ab", "\n\n"]))
def test_joined_steps_are_the_completion_and_none_is_empty(text, separator):
    steps = split_steps(text, separator)
    assert "".join(steps) == text
    assert all(steps) or steps == [""]


def test_a_separator_without_text_is_refused():
    with pytest.raises(ValueError, match="separator is empty"):
        split_steps("a,b", "")


@pytest.mark.parametrize("operation", ["addition", "subtraction", "multiplication"])
def test_every_step_of_a_right_completion_is_true(operation):
    import random
    for problem in Arithmetic(operation, 3).sample(20, random.Random(0)):
        truths = step_truths(problem, completion(problem, worked=True))
        assert truths == [1.0] * 4                          # three columns and the answer


@pytest.mark.parametrize("think, answer, truths", [
    ("7+5+0=12,4+8+1=132,3+2+1=0632", "0632", [1.0, 1.0, 1.0, 1.0]),
    ("7+5+0=12,4+8+1=122,3+2+1=0622", "0622", [1.0, 0.0, 0.0, 0.0]),
    ("7+5+0=13,4+8+1=133,3+2+1=0633", "0632", [0.0, 0.0, 0.0, 1.0]),  # an answer by luck
    ("7+5+0=12,7+5+0=12,3+2+1=0632", "0632", [1.0, 0.0, 1.0, 1.0]),   # true, but not here
    ("7+5+0=12", "0632", [1.0, 1.0]),                                 # two columns are left out
    ("7+5+0=12,4+8+1=132,3+2+1=0632,9+9+0=18", "18", [1.0, 1.0, 1.0, 0.0, 0.0]),
    ("", "632", [None, 1.0]),                                         # no claim, the right number
])
def test_which_steps_are_true(think, answer, truths):
    assert step_truths(SUM, f"<think>{think}</think><answer>{answer}</answer>") == truths


@pytest.mark.parametrize("cut_off, truths", [
    ("<think>7+5+0=12,4+8", [1.0, 0.0]),
    ("<think>7+5+0=12,", [1.0]),
    ("<think>7+5+0=12</think><answer>06", [1.0, 0.0]),
    ("", [None]),
])
def test_what_is_cut_off_has_no_true_answer(cut_off, truths):
    assert step_truths(SUM, cut_off) == truths


def test_without_a_worked_solution_no_step_of_the_reasoning_is_true():
    assert step_truths(Problem("1+1=", "2"), "<think>1+1=2</think><answer>2</answer>") == [0.0, 1.0]


@pytest.mark.parametrize("labels, first", [
    ([1.0, 1.0], None), ([0.4, 0.0], 0), ([0.5, 0.49], 1), ([None, 0.0], 1), ([], None),
])
def test_the_first_wrong_step(labels, first):
    assert first_wrong(labels) == first


@pytest.mark.parametrize("steps, labels, more, message", [
    ((), (), {}, "0 steps and 0 labels"),
    (("a",), (1.0, 0.0), {}, "1 steps and 2 labels"),
    (("a",), (1.5,), {}, "the label 1.5"),
    (("a",), (-0.1,), {}, "the label -0.1"),
    (("a",), (float("nan"),), {}, "the label nan"),
    (("a", "b"), (1.0, 0.0), {"ids": (5, 6), "ends": (1,)}, r"the ends \[1\]"),
    (("a", "b"), (1.0, 0.0), {"ids": (5, 6), "ends": (1, 3)}, r"the ends \[1, 3\]"),
])
def test_what_is_no_solution(steps, labels, more, message):
    with pytest.raises(ValueError, match=message):
        Solution("p", steps, labels, **more)


def test_solutions_come_back_from_their_file(tmp_path):
    path = tmp_path / "solutions.jsonl"
    solutions = [Solution("347+285=", ("<think>a,", "b</think>"), (0.125, None), (3, 4, 5), (2, 3)),
                 Solution("한글", ("하나",), (1.0,))]
    save_solutions(solutions, path)
    read = load_solutions(path)
    assert [(s.prompt, s.steps, s.labels, s.ids, s.ends) for s in read] == [
        (s.prompt, s.steps, s.labels, s.ids, s.ends) for s in solutions]
    assert read[1].source == f"{path}, line 2"


def test_trls_stepwise_format(tmp_path):
    path = tmp_path / "trl.jsonl"
    path.write_text(json.dumps({"prompt": "Which number is larger, 9.8 or 9.11?", "completions": [
        "Compare 0.8 and 0.11.", "0.11 is larger."], "labels": [True, False]}) + "\n")
    solution, = load_solutions(path)
    assert solution.steps == ("Compare 0.8 and 0.11.", "0.11 is larger.")
    assert solution.labels == (1.0, 0.0)
    assert solution.ids == ()


@pytest.mark.parametrize("line, message", [
    ('{"prompt": "p", "completions": "a", "labels": [1]}', "line 1: 'completions' is a str"),
    ('{"prompt": "p", "labels": [1]}', "line 1 has 0 steps and 1 labels"),
    ('{"prompt": "p", "completions": ["a"], "labels": ["good"]}', "line 1: 'good'"),
    ('{"prompt": "p", "completions": ["a"], "labels": [2]}', "line 1 has the label 2"),
    ('{"prompt": "p", "completions": [""], "labels": [1]}', "line 1: 'completions' is empty"),
    ('{"prompt": "p", "completions": ["a"], "labels": [1], "ids": ["x"]}', "line 1: "),
    ("[1]", "line 1 is a list"),
])
def test_a_line_that_is_no_solution(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        load_solutions(path)


def test_a_completion_that_ends_at_once_is_saved_and_loaded(tmp_path):
    """One of a thousand samples was EOS alone. The run wrote it, and could not read its file."""
    solution = Solution("12+34=", ("",), (0.0,), ids=(2,), ends=(1,))
    save_solutions([solution], tmp_path / "solutions.jsonl")
    loaded, = load_solutions(tmp_path / "solutions.jsonl")
    assert (loaded.steps, loaded.labels, loaded.ids) == (("",), (0.0,), (2,))
