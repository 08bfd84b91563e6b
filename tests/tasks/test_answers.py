"""minirl/tasks/answers.py"""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minirl.tasks.answers import (
    boxed,
    claim,
    claims,
    equal,
    is_formula,
    judged_answers,
    marked,
    read_answer,
    vote_of,
)

CLAIMS = {
    "": [], "42": [], "the answer is 42": [],
    "#### 42": ["42"], "a\n#### 42\nb": ["42"], "#### 1\n#### 2": ["1", "2"],
    "<answer>Paris</answer>": ["Paris"], "<answer>a\nb</answer>": ["a\nb"],
    "<answer>5": [""], "<answer>1</answer> <answer>2</answer>": ["1", "2"],
    r"\boxed{5}": ["5"], r"\boxed {5}": ["5"], r"\boxed 5": ["5"],
    r"$\boxed{\frac{1}{2}}$ and \boxed{\sqrt{\frac{a}{b}}}.": [r"\sqrt{\frac{a}{b}}"],
    r"\boxed{\{1, 2\}}": [r"\{1, 2\}"], r"\boxed{\left\{ x \right\}}": [r"\left\{ x \right\}"],
    r"\boxed{1} then \boxed{2": [], r"\boxed{": [], r"\boxed": [], r"\boxed{}": [""],
    r"<think>\boxed{1}</think> \boxed{2}": ["2"], r"<think>\boxed{1}</think> so 2": [],
    r"<think>I think \boxed{1}": [], r"I think \boxed{1}</think>\boxed{2}": ["2"],
    r"<answer>\boxed{3}</answer>": ["3"], r"#### \boxed{3}": ["3"],
    "<answer>#### 3</answer>": ["3", "3"], r"\boxed{1} <answer>2</answer>": ["2"],
}


@pytest.mark.parametrize("content, places", CLAIMS.items())
def test_what_a_completion_claims(content, places):
    assert claims(content) == places


def test_one_claim_or_none():
    """Listing guesses does not pay, saying the same twice does no harm."""
    assert claim("<answer>3</answer>#### 3.0") == "3.0" and claim("#### 1/2\n#### 0.5") == "0.5"
    assert claim("#### 3\n#### 4") is None and claim("<answer>3<answer>4</answer>") is None
    assert claim([{"role": "assistant", "content": r"\boxed{7}"}]) == "7"


SAME = [
    ["1,234", "1234", "1234.00", "$1,234", r"\$1{,}234", "1234.", "+1234", "１２３４", "**1234**",
     "01234", "$1234$", r"\(1234\)", r"\text{1234}", r"1{,}234.0", "x = 1234", "1.234e3",
     r"1.234 \times 10^3", r"1.234 \cdot 10^{3}"],
    ["1/2", "0.5", ".5", r"\frac{1}{2}", r"\dfrac12", r"\tfrac{2}{4}", "2 / 4", "50/100", "5e-1"],
    ["-3/2", "-1.5", r"-1\frac{1}{2}", "- 1 1/2", r"\frac{-3}{2}", "\u22121.5"],
    ["50%", r"50\%", "50", r"50^\circ", "50°", "50 %"], ["-0", "0", "0/7"],
    ["18 dollars", "18", "$18", "18 Dollars.", r"18\text{ dollars}"],
    ["18개", "18"], ["5 cm^2", "5", r"5\text{ cm}^2"],
    ["Paris", "paris", " Paris. ", r"\text{Paris}", "**Paris**"], ["New York", "new  york"],
    ["(A)", "A", r"\text{(A)}", r"\textbf{(A)}"],
    [r"\frac{\pi}{2}", r"\dfrac{\pi}{2}", r"$\frac{\pi}{2}$", r"\frac{ \pi }{ 2 }"],
    [r"\left(1, 2\right)", "(1,2)", r"( 1,\, 2 )"], ["서울", " 서울."]]


@pytest.mark.parametrize("same", SAME)
def test_answers_that_are_the_same(same):
    for other in same:
        assert equal(read_answer(same[0]), read_answer(other)), other


@pytest.mark.parametrize("one, other", [
    ("1/3", "0.333"), ("3", "3.1"), ("5", r"\sqrt{5}"), ("2", r"2\pi"), ("2", "2 pi"), ("3", "3x"),
    ("5", "5!"), ("8", "2**3"), ("3", "3 or four"), ("3", "3, 4"), ("18 dollars", "18 apples"),
    ("0.5", "50%"), ("1234", "1,23,4"), ("1", "-1"), ("1/0", "0"), ("", "0"), ("(1,2)", "12"),
    ("Paris", "London"), ("12", "1 2"), ("5", "five"), ("703", "196+507"), ("3", "٣")])
def test_answers_that_differ(one, other):
    assert not equal(read_answer(one), read_answer(other))
    assert not equal(read_answer(other), read_answer(one))


def test_verdicts_by_hand():
    golds = ["4", 4, 4.0, "so 2+2 = 4\n#### 4", r"\boxed{4}", "Paris", None, float("nan"), ""]
    right = judged_answers([r"\boxed{4}"] * 9, golds)
    assert right == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, None, None, None]
    assert judged_answers(["4", "", "<answer></answer>", "#### 5", "<answer>paris</answer>"],
                          ["4", "4", ".", "4", "Paris"]) == [0.0, 0.0, 0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="1 completions and 2 entries of 'answer'"):
        judged_answers(["4"], ["4", "5"])


def test_formulas_alone_are_asked_about():
    """196+507 is 703, and a policy that answers a sum with the sum would be right."""
    asked = []

    def same(gold, place):
        asked.append((gold, place))
        return True

    golds = [r"\boxed{\frac{\sqrt{2}}{2}}", "703", "Paris", "x^2-1", "x^2-1"]
    texts = [r"\boxed{\frac{1}{\sqrt{2}}}", "<answer>196+507</answer>", "<answer>sPari</answer>",
             "<answer>(x-1)(x+1)</answer>", "<answer> x^2 - 1 </answer>"]
    assert judged_answers(texts, golds, same) == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert asked == [(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"), ("x^2-1", "(x-1)(x+1)")]


@pytest.mark.parametrize("gold, formula", [
    (r"\sqrt{2}", True), ("x+1", True), ("(1, 2)", True), ("2xy-3", True), (r"\{1,2\}", True),
    (r"\frac{1}{2}", False), ("12", False), ("yes", False), ("x", False), ("", False),
    ("state-of-the-art", False), (r"\text{left-handed}", False)])
def test_what_is_a_formula(gold, formula):
    assert is_formula(gold) == formula


def test_gold_answers():
    assert marked("work\n#### 1,234") == "1,234" and marked(r"so $\boxed{x}$.") == "x"
    assert marked(" Paris ") == "Paris" and marked("#### 1\n#### 2") == "#### 1\n#### 2"


def test_votes():
    """Equal answers are equal votes; what the toy tasks write is read as their reward reads it."""
    assert vote_of("#### 1,234") == vote_of(r"\boxed{1234.0}") == "1234"
    assert vote_of("<answer>062</answer>") == "62" and vote_of("62") is None
    assert vote_of("<answer>5</answer><answer>5</answer>") is None
    assert vote_of(r"\boxed{New York}") == vote_of("#### new york.") and vote_of("####") is None


PIECES = st.lists(st.one_of(st.sampled_from([
    "<answer>", "</answer>", "####", r"\boxed{", "{", "}", r"\frac", r"\text{", "1,234", " ", "\n",
    "<think>", "</think>", "$", "\\", "^", "5", "1/2", "e9", "x = ", r"\{", "-", ".", "%", "cm"]),
    st.text(max_size=5)), max_size=40).map("".join)


@settings(max_examples=400, deadline=500)
@given(PIECES, st.one_of(PIECES, st.none(), st.integers(), st.floats(), st.booleans()))
@example("<answer>1/0</answer>", "1/0")
@example("#### 1e999", "1e999")
@example("<answer>" + "9" * 990 + "/" + "7" * 9 + "</answer>", "5")
def test_nothing_that_a_model_writes_raises(content, gold):
    verdict, = judged_answers([content], [gold])
    assert verdict in (0.0, 1.0, None)
    vote_of(content), boxed(content), marked(content)


@given(PIECES)
def test_an_answer_equals_itself(content):
    assert equal(read_answer(content), read_answer(content))
    if any(read_answer(content)) and not set(content) & set("<#\\{}"):
        assert judged_answers([f"<answer>{content}</answer>"], [content]) in ([1.0], [None])


LONG = 2 * 10**5


@pytest.mark.parametrize("content", [
    "<answer>" * LONG, "####" * LONG, r"\boxed{" * LONG, r"\boxed" + "{" * LONG,
    r"\boxed{" + "}" * LONG, "<think>" * LONG, "</think>" * LONG, "#### " + "9" * LONG,
    *(r"\boxed{" + inside + "}" for inside in (
        "1" * 990, "a" * 990 + "1", "5 " + "ab" * 490 + "1", "5" + " ab" * 320 + "1", " " * 990,
        r"\text{" * 160, r"\frac{1}" * 120, "5" + " " * 980 + "/", "1,234" * 190, "1e999",
        "$" * 990, "1" * 500 + "/" + "3" * 490, "5 " + "ab ^ {2} " * 100 + "!"))])
def test_long_completions_are_read_in_a_moment(content):
    began = time.thread_time()
    judged_answers([content], ["5 cm"])
    vote_of(content)
    assert time.thread_time() - began < 1
