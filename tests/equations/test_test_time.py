"""Tests of minirl.equations.test_time."""

from itertools import combinations
from math import comb

import pytest

from minirl.equations.test_time import pass_at_k


@pytest.mark.parametrize("n, c, k, expected", [
    (5, 2, 2, 0.7),                # 1 - C(3,2)/C(5,2) = 1 - 3/10; the plug-in 1 - (3/5)^2 says .64
    (16, 1, 8, 0.5),               # one right among 16: it is in half of them
    (10, 3, 1, 0.3),
    (10, 3, 5, 0.916667),          # 1 - 21/252
    (4, 0, 4, 0.0), (4, 4, 1, 1.0), (1, 1, 1, 1.0), (1, 0, 1, 0.0),
    (5, 3, 3, 1.0),                # only 2 wrong: any 3 hold a right one
    (5, 2, 3, 0.9),                # 1 - C(3,3)/C(5,3) = 1 - 1/10
])
def test_hand_numbers(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n, c, k", [(n, c, k) for n in (1, 4, 7) for c in range(n + 1) for k in range(1, n + 1)])
def test_share_of_all_subsets(n, c, k):
    """By enumeration: of all k out of n samples, the share that holds one of the c right ones."""
    subsets = list(combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(s) < c for s in subsets) / len(subsets), abs=1e-12)


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_unbiased_by_enumeration(p, k):
    """Averaged over how many of 8 come out right it is 1 - (1 - p)^k; the plug-in 1 - (1 - c/n)^k is below, and only right at k = 1."""
    chances = [comb(8, c) * p ** c * (1 - p) ** (8 - c) for c in range(9)]
    truth = 1 - (1 - p) ** k
    assert sum(w * pass_at_k(8, c, k) for c, w in enumerate(chances)) == pytest.approx(truth, abs=1e-12)
    plug_in = sum(w * (1 - (1 - c / 8) ** k) for c, w in enumerate(chances))
    assert plug_in == pytest.approx(truth, abs=1e-12) if k == 1 else plug_in < truth - 1e-9


def test_large_numbers_stay_in_range():
    """C(10000, 5000) has 3000 digits: the product form needs none of them."""
    values = [pass_at_k(10_000, c, 100) for c in (0, 1, 100, 5000, 9900, 10_000)]
    assert values == sorted(values) and values[0] == 0.0 and values[1] == pytest.approx(0.01, abs=1e-9) and values[-1] == 1.0


@pytest.mark.parametrize("n, c, k", [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6), (0, 0, 1)])
def test_bad_arguments_raise(n, c, k):
    with pytest.raises(ValueError, match="wanted"):
        pass_at_k(n, c, k)
