"""minirl/tasks/latex.py"""

import gc
import os
import signal
import sys
import time

import pytest

from minirl.tasks import latex
from minirl.tasks.latex import MathVerify

# Stands for math-verify where it is not installed: formulas are equal where their letters are.
STAND_IN = '''
def parse(formula, **_):
    print("a library may print")
    if formula == "$hang$":
        while True:
            pass
    if formula == "$sleep in C$":
        sum(range(10 ** 12))
    if formula == "$eat$":
        return [bytearray(10 ** 12)]
    if formula == "$exit$":
        raise SystemExit
    return sorted(formula)

def verify(gold, claim, **_):
    return gold == claim
'''


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "math_verify", raising=False)


def test_a_question_is_asked_once(stand_in):
    same = MathVerify()
    assert same("ab", "ba") and not same("ab", "c")
    process = same.process
    assert same("ab", "ba") and same.same.cache_info().hits == 1
    assert same("\n\ud800\"", "\"\n\ud800"), "any text is one line of JSON"
    assert same.process is process
    assert not same("a" * 400, "a" * 400), "that is no short answer"


@pytest.mark.parametrize("formula", ["hang", "sleep in C", "eat", "exit"])
def test_what_takes_too_long_is_wrong_and_the_next_question_is_answered(formula, stand_in):
    same = MathVerify(seconds=0.2)
    assert same("ab", "ba")
    began = time.monotonic()
    assert not same(formula, "x") and not same("ab", formula)
    assert same("cd", "dc"), "a new process answers"
    assert time.monotonic() - began < 30


def test_a_process_that_was_killed_is_replaced(stand_in):
    same = MathVerify()
    assert same("ab", "ba")
    os.kill(same.process.pid, signal.SIGKILL)
    same.process.wait()
    assert same("cd", "dc")


def test_the_process_ends_with_its_owner(stand_in):
    same = MathVerify()
    assert same("ab", "ba")
    process = same.process
    del same
    gc.collect()
    assert process.wait(10) is not None


def test_without_math_verify(monkeypatch):
    monkeypatch.setattr(latex, "is_installed", lambda: False)
    with pytest.raises(ValueError, match="not installed: python -m pip install math-verify"):
        MathVerify()


def test_one_that_does_not_start_is_said_so(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "math_verify", raising=False)
    with pytest.raises(ValueError, match="math-verify does not start"):
        MathVerify()("a", "b")


@pytest.mark.skipif(not latex.is_installed(), reason="math-verify is not installed")
def test_formulas_by_the_true_math_verify():
    same = MathVerify(seconds=2)
    for gold, other in [(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"), ("x^2-1", "(x-1)(x+1)"),
                        (r"\{1,2\}", r"\{2,1\}"), ("(1,2)", "(1, 2)")]:
        assert same(gold, other), other
    for gold, other in [("x^2-1", "(x-1)(x+2)"), ("(1,2)", "(2,1)"), ("x^2", "$"), ("x^2", ""),
                        ("x^2", "2^{10^{10}}")]:
        assert not same(gold, other), other
