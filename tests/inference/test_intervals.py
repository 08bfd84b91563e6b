"""minirl/inference/intervals.py"""

import math
import subprocess
import sys

import pytest

from minirl.inference.intervals import mean_interval, wilson_interval


@pytest.mark.parametrize(
    "mean, n, low, high",
    [
        (0.5, 100, 0.4038, 0.5962),
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        (0.9, 20, 0.6990, 0.9721),
    ],
)
def test_wilson_interval_from_published_tables(mean, n, low, high):
    """An interval of +- 1.96 standard errors has no width where every answer is right; this has."""
    assert wilson_interval(mean, n) == (pytest.approx(low, abs=2e-4), pytest.approx(high, abs=2e-4))


def test_an_interval_always_contains_its_mean():
    """At means of 0 and 1 rounding once put the end of the interval 1e-17 beyond the mean, and a
    figure with error bars of negative length cannot be drawn."""
    for n in range(1, 400):
        for mean in (0.0, 1.0, 0.5):
            low, high = wilson_interval(mean, n)
            assert 0.0 <= low <= mean <= high <= 1.0


def test_no_numbers_tell_nothing():
    assert wilson_interval(math.nan, 0) == (0.0, 1.0)
    assert mean_interval([]) == mean_interval([math.nan]) == "nan"


def test_mean_intervals_by_hand():
    """The standard deviation of 1, 2, 3 is 1: 1.96 / sqrt(3) = 1.1316."""
    assert mean_interval([1, 2, 3]) == "2.000 +- 1.132" and mean_interval([0.25]) == "0.250"


def test_problems_without_a_verdict_are_left_out_of_an_interval():
    assert mean_interval([1, math.nan, 2, 3]) == "2.000 +- 1.132"


def test_intervals_load_no_torch():
    """`minirl plot` draws intervals, and starts without torch."""
    code = "import sys, minirl.inference.intervals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
