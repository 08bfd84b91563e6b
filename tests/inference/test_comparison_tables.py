"""minirl/inference/comparison_tables.py"""

import re

from minirl.inference.comparison_tables import (
    accuracy_table,
    comparison_report,
    error,
    pleased_table,
    theory_table,
)
from minirl.inference.points import Point
from minirl.lm.text import WIDTH
from tests.inference.comparisons import comparison


def test_accuracy_for_several_n_and_tokens_at_the_largest():
    """Problems right at 0.5 and 0.8: 0.65, of two. Tokens: 4 + 4 * 10 + 4 * 12."""
    text = accuracy_table(comparison())
    head, columns, *rows = text.splitlines()
    assert head == "2-digit addition, 2 held-out problems"
    assert re.findall(r"= +1 +4 +95 % at 4 +tokens$", columns)
    assert [row.split("  ")[0] for row in rows] == [
        "majority vote", "best of n, ORM", "best of n, PRM last", "any of n is right",
        "beam search"]
    assert re.search(r"any of n is right +0\.650 +0\.650 +0\.\d\d to 0\.\d\d +92$", rows[3])


def test_theory_has_no_row_for_a_search():
    text = theory_table([comparison(), comparison("3-digit addition")])
    assert "beam search" not in text and text.count("+-") == 2 * (1 + 4)
    assert re.search(r"\none sample +1 +\+0\.125", text) and text.count("one sample") == 1
    # majority vote: 0.5 - 0.5 and 0.5 - 0.25: the mean is 0.125, the deviation 0.1768
    assert re.search(r"majority vote +4 +\+0\.125 \+- 0\.245 +\+0\.125 \+- 0\.245\n", text)


def test_an_error_of_one_problem_has_no_interval():
    assert error(Point("x", 1, [0.5], 1, 1, 1, predicted=[1.0])) == "-0.500 +- 0.000"


def test_where_the_best_of_n_is_right_most_often():
    """Scores 0.5, 0.6, 0.7; right 0.4, 0.5, 0.4: it falls after n = 2."""
    text = pleased_table([comparison()])
    assert "at n = 4: at most 0.64 nats" in text
    assert re.search(r"ORM, 2-digit addition +0\.500 +0\.700 +0\.500 +2 +0\.400\n", text)


def test_the_report_fits_a_terminal():
    many = [comparison(f"{n}-digit multiplication", sizes=tuple(2 ** i for i in range(7)),
                       verifiers=("ORM", "PRM last", "PRM min", "PRM product"), problems=2000)
            for n in (2, 3, 4)]
    text = comparison_report(many)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "2-digit" in text and "measured - predicted" in text and "n = 64" in text
    voting = comparison(verifiers=())
    assert "nats" not in comparison_report([voting])
