"""minirl/tasks/tools.py"""

import inspect
import json
import os
import random
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirl.tasks import tools
from minirl.tasks.tools import ToolError, calculate, call, run_program

SECONDS = 0.05    # of CPU time, for any text

# Annotated calculations as GSM8K has them: every form in its test set and in 2,000 of its training
# problems.
ANNOTATED = """
    9*2=18  16-3-4=9  200000-130000=70000  2/2=1  20+160+80=260  60/100*5=3  20*20/100=4
    80000*1.5=120000  30*.5=15  125=125  128+64+32+16=240  4*4=16.00  1.5*4=6  7*1.5=10.5
    200*40*.01=80  3/2=1.5  30*.25=7.5  40-20=20.00  90/7.5=12  6*(2/3)=4  15/.3=50  .05*104000=5200
    (20/100)*25=5  6/12=.5  6*60+4*40=520  125*4-2=498  15-7.5=7.5  +8=8  700+5*100=1200  5*.01=.05
    100/(2/3)=150  5+28/2=19  10+0.5=10.50  12.5=12.5  15840/(440)=36  100-150=-50  .75/.25=3
    .6*.5=.3  500*(60*.01)=300  3/4=3/4  -48+21+(-3)=-30  -30/3=-10  1.75-(-1.25)=3  560//10=56
    7.5*(1+(1/3))=10  2+2+2+1/3+1/3+1/3=7  100+(100*(10/100))=110  (3*30)+(25*4)=190
    +12.5+25+16.5=54  50+80+80+60+40+90+100+70+60=630  1/2*40*20=400
""".split()


def rounds_to(value, annotated):
    """Whether a value is the annotated one, to half a unit of its last digit."""
    places = len(annotated.partition(".")[2])
    gap = abs(Fraction(value) - Fraction(calculate(annotated)))
    return gap <= Fraction(1, 2 * 10 ** places)


@pytest.mark.parametrize("calculation", ANNOTATED)
def test_annotated_calculations_of_gsm8k(calculation):
    expression, _, annotated = calculation.rpartition("=")
    assert rounds_to(calculate(expression), annotated)
    assert not rounds_to(calculate(f"{expression}+1"), annotated)


@pytest.mark.skipif("GSM8K" not in os.environ, reason="GSM8K is no folder of GSM8K's .jsonl files")
def test_every_annotated_calculation_of_gsm8k():
    wrong, n = [], 0
    for file in sorted(Path(os.environ["GSM8K"]).glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            for calculation in re.findall(r"<<(.*?)>>", json.loads(line)["answer"]):
                expression, _, annotated = calculation.rpartition("=")
                n += 1
                if not rounds_to(calculate(expression), annotated):
                    wrong.append(calculation)
    assert n and not wrong


@pytest.mark.parametrize("expression, value", [
    ("3841*9273", "35617593"),              # 3841*9000 + 3841*273 = 34569000 + 1048593
    (" 2 +\t3\n", "5"),
    ("1,234*2", "2468"), ("1,234,567.50", "1234567.5"), ("007", "7"), ("5.", "5"), (".5", "0.5"),
    ("0.1+0.2", "0.3"),                     # not 0.30000000000000004
    ("2-3-4", "-5"), ("2-(3-4)", "3"), ("16/4/2", "2"), ("2+3*4", "14"), ("(2+3)*4", "20"),
    ("2**3**2", "512"), ("-2**2", "-4"), ("(-2)**2", "4"), ("2**-3", "0.125"), ("0**0", "1"),
    ("--3", "3"), ("2*-3", "-6"), ("+-+3", "-3"),
    ("7//2", "3"), ("-7//2", "-4"), ("7%3", "1"), ("-7%3", "2"), ("7.5%2", "1.5"), ("7%(-3)", "-2"),
    ("50%", "0.5"), ("80*150%", "120"), ("20%*50", "10"), ("(5%)+1", "1.05"), ("7%%3", "0.07"),
    ("6×7", "42"), ("6÷4", "1.5"), ("\u22125", "-5"),
    ("1/3", "0.3333333333"), ("2/3", "0.6666666667"), ("-2/3", "-0.6666666667"),
    ("10/3", "3.3333333333"), ("1/200", "0.005"), ("2/300", "0.006666666667"),
    ("1/10**20", "0.00000000000000000001"), ("1-1/10**12", "1"), ("1/8-1/8", "0"),
    ("9007199254740993*1", "9007199254740993"),    # 2**53 + 1: no float
    ("2**100", "1267650600228229401496703205376"),
    ("1**(10**200)", "1"), ("(-1)**(10**200+1)", "-1"),
])
def test_values_by_hand(expression, value):
    assert calculate(expression) == value


HOSTILE = [
    "", " ", "()", "(", ")", "(1", "1)", "1+", "*1", "1 2", "2(3)", "(2)(3)", "1..2", ".", "1.2.3",
    ",", "1,23", "1,2345", "1,,234", "1_000", "1e5", "1e999999", "0x10", "1j", "nan", "inf",
    "-inf", "infinity", "x", "a+1", "answer", "1/0", "1//0", "1%0", "0**-1", "1/(1-1)", "0%/0%",
    "4**.5", "2**(1/2)", "2**50%", "9**9**9**9", "10**100000", "10**302", "2**-100000",
    "(1/3)**9999", "9" * 400, "." + "9" * 400, "9" * 10**6, "(" * 10**6, "-" * 10**6,
    "-" * 500 + "1", "(" * 400 + "1" + ")" * 400, "2**" * 300 + "1", "1+" * 10**5 + "1", "5%-3",
    "5% + 3", "7%%", "1=1", "3+4=", "1<2", "1,2",
    "[1]", "{1}", "'1'", "1;2", "1\\2", "1&2", "1^2", "1|2", "~1",
    "1 if 1 else 2", "lambda: 1", "__import__('os').system('ls')", "__import__", "().__class__",
    "exec('1')", "print(1)", "f(1)", "None", "True", "١+٢", "１+２", "²", "½", "5\u00a0+1",
    "1\x001", "\x00", "\ud800", "1\u200b", "1\x0c+1", "🙂", "</tool>", "<tool>1</tool>",
    "$5", "1#2", None, 5, 5.0, True, b"1+1", ["1+1"], float("nan"), object(), 10**6,
]


@pytest.mark.parametrize("expression", HOSTILE, ids=lambda e: ascii(e)[:20])
def test_hostile_expressions_are_refused_at_once(expression):
    start = time.thread_time()
    for tool in (calculate, run_program):
        with pytest.raises(ToolError) as error:
            tool(expression)
        says = str(error.value)
        assert 0 < len(says) < 80 and says.isascii() and "\n" not in says, "a model reads it"
    assert time.thread_time() - start < 2 * SECONDS


@pytest.mark.parametrize("expression", [
    "3**315*3**315/5**300*" * 40 + "1", "7**350//3+" * 90 + "1", "7**350%" * 100 + "3",
    "+".join(f"1/{n}" for n in range(100, 265)), "*".join(["1.234567891"] * 80),
    "(" * 29 + "1" + ")" * 29, "1/3**600+" * 100 + "1", "1-1/3**600*" * 90 + "1", "9%" * 400])
def test_the_hardest_that_is_allowed_is_quick(expression):
    start = time.thread_time()
    call(calculate, expression)
    assert time.thread_time() - start < SECONDS


def python_value(expression):
    """The value in Python's own precedence, of an expression known to be small. None where Python
    reads no such expression, or reads its commas otherwise."""
    if "," in expression:
        return None
    number = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")
    exact = number.sub(lambda match: f"Fraction('{match[0]}')", expression)
    try:
        return eval(exact, {"Fraction": Fraction})
    except SyntaxError:
        return None


def check(expression):
    """A right answer or a ToolError, and at once -> whether there was an answer to compare."""
    start = time.thread_time()
    try:
        answer = calculate(expression)
    except ToolError:
        answer = None
    assert time.thread_time() - start < SECONDS
    if answer is None or (value := python_value(expression)) is None:
        return False
    assert re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?", answer) and answer != "-0"
    exact = Fraction(answer)
    if abs(value) >= 1 or value == 0:
        assert abs(exact - value) <= Fraction(1, 2 * 10 ** tools.PLACES)
    else:
        assert abs(exact - value) <= abs(value) / 10 ** (tools.PLACES - 1) / 2
    assert exact == value or value.denominator != 1
    return True


PIECES = [*"0123456789", *"+-*/%().", "**", "//", " ", "10", "99", ".5", "(", ")", "-", "1/3"]


def test_fuzzed_expressions_have_pythons_value_or_none():
    rng = random.Random(0)
    texts = ("".join(rng.choices(PIECES, k=rng.randint(1, 12))) for _ in range(10_000))
    compared = sum(check(text) for text in texts)
    assert compared > 500, "the test compares something"


@st.composite
def sums(draw):
    """Well-formed arithmetic, with spaces here and there."""
    leaf = st.one_of(st.integers(0, 9999).map(str), st.sampled_from([".5", "0.25", "1.50", "3."]))
    signs = st.sampled_from(["+", "-", "*", "/", "//", " % ", "**", " - "])
    pair = lambda e: st.tuples(e, signs, e).map("".join)    # noqa: E731
    more = lambda e: st.one_of(pair(e), e.map("({})".format), e.map("-{}".format))    # noqa: E731
    return draw(st.recursive(leaf, more, max_leaves=12))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.one_of(sums(), st.text(), st.text("0123456789+-*/%(). ,x=eE_\x00٣\n"),
                 st.lists(st.sampled_from(PIECES), max_size=600).map("".join)))
def test_any_text_gets_a_right_answer_or_a_tool_error(expression):
    check(expression)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, derandomize=True, database=None)
@given(st.one_of(sums(), st.text(), st.text("0123456789+-*/%(). ,x=eE_\x00٣\n"),
                 st.lists(st.sampled_from(PIECES), max_size=600).map("".join)))
def test_ten_thousand_texts_get_right_answers_or_tool_errors(expression):
    check(expression)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.one_of(st.text(), st.text("ab=+-*/%()123;\n "),
                 st.lists(st.sampled_from(["a", "b", "=", "\n", ";", *PIECES])).map("".join)))
def test_any_text_is_a_program_or_a_tool_error(program):
    start = time.thread_time()
    try:
        assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", run_program(program))
    except ToolError:
        pass
    assert time.thread_time() - start < SECONDS


@pytest.mark.parametrize("program, value", [
    ("a=6*7", "42"),
    ("eggs = 16 - 3 - 4\nanswer = eggs*2\n", "18"),
    ("a=1;b=a+1;c=b+a", "3"),
    ("answer=5\nrest=10-answer", "5"),              # not the last: it is called answer
    ("a=2\r\n\r\n  b = a**3 ;; ", "8"),
    ("a=1;a=a+1;a=a*10", "20"),
    ("_x1=2;X=3;y=_x1*X", "6"),
    ("a=50%;b=a*80", "40"), ("a=7;b=a%3", "1"), ("a=7;b=3;c=a%b", "1"), ("a=7;b=3;c=a%(b)", "1"),
])
def test_programs_by_hand(program, value):
    assert run_program(program) == value


@pytest.mark.parametrize("program", [
    "", "\n;\n", "a", "1=2", "a=", "=1", "a==1", "a=b", "a=a+1", "b=a;a=1", "a=1;b", "a b=1",
    "a=1,b=2", "a+=1", "for i in 9: a=1", "while 1: a=1", "import os", "a=f(1)", "print(1)",
    "answer=1/0", "a=1/0;answer=1", "a=9**300;b=a*a*a;answer=1", "é=1", "a.b=1", "a[0]=1",
    "a=2 b=3", "a=9**300" + ";a=a*a" * 20, "a=2;" * 300, "a=b2",
])
def test_what_is_no_program_is_refused(program):
    start = time.thread_time()
    with pytest.raises(ToolError):
        run_program(program)
    assert time.thread_time() - start < SECONDS


def test_a_program_of_many_large_numbers_is_quick():
    start = time.thread_time()
    call(run_program, "a=3**310/7**170\nb=5**200/11**140\nc=" + "a+b*a/b-" * 100 + "1")
    call(run_program, "a=3**310/7**170\nb=5**200/11**140\nc=" + "a*b/a/b*" * 110 + "1")
    assert time.thread_time() - start < 2 * SECONDS


def test_a_text_is_as_long_as_it_may_be():
    assert calculate("1+" * 499 + "10") == "509"      # 1,000 characters
    with pytest.raises(ToolError, match="1001 characters are too many: at most 1000"):
        calculate("1+" * 499 + "100")
    deep = "(" * (tools.DEEPEST - 1)
    assert calculate(f"{deep}1{deep.replace('(', ')')}") == "1"
    with pytest.raises(ToolError, match="too deep"):
        calculate(f"({deep}1{deep.replace('(', ')')})")
    assert calculate("2**999") and call(calculate, "2**1000").startswith("error: a number is too")


def test_a_call_answers_or_says_what_was_wrong():
    assert call(calculate, "6*7") == "42"
    assert call(calculate, "2+x") == "error: x has no value"
    assert call(calculate, "2@3") == "error: '@' is no arithmetic"
    assert call(run_program, "a=1\nb") == "error: a line is no assignment: write name = arithmetic"
    with pytest.raises(KeyError):
        call({}.__getitem__, "a fault of the tool itself")


def test_the_calculator_describes_itself_as_a_tool():
    """What a chat template tells a model about a tool is read from its signature and docstring."""
    assert inspect.get_annotations(calculate, eval_str=True) == {"expression": str, "return": str}
    assert "\n    Args:\n        expression: " in calculate.__doc__
    assert issubclass(ToolError, ValueError)
