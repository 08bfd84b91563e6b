"""minirl/tasks/verdicts.py: what a reward may return, and what it may not."""

import itertools
from decimal import Decimal

import numpy
import pytest
import torch

from minirl.tasks.verdicts import VerdictError, read_verdicts

NAN = float("nan")


@pytest.mark.parametrize("returned", [
    [1.0, 0.5, None], (1, 0.5, NAN), [True, 0.5, None], numpy.array([1.0, 0.5, NAN]),
    torch.tensor([1.0, 0.5, NAN]), [torch.tensor(1.0), numpy.float32(0.5), None],
    [Decimal(1), Decimal("0.5"), None], (x for x in (1.0, 0.5, None)),
    map(float, ("1", "0.5", "nan")), torch.tensor([1.0, 0.5, NAN])[None][0]])
def test_whatever_holds_numbers_in_order_is_read(returned):
    verdicts = read_verdicts("r", returned, 3)
    assert verdicts == [1.0, 0.5, None] and [type(x) for x in verdicts[:2]] == [float, float]


@pytest.mark.parametrize("returned, came, row", [
    (None, "None", None), (1.0, "1.0", None), (torch.tensor(1.0), r"tensor\(1.\)", None),
    (numpy.float64(1), "1.0", None), ("10", "'10'", None), (b"10", "b'10'", None),
    ({0: 1.0, 1: 2.0}, "{0: 1.0, 1: 2.0}", None), ({1.0, 2.0}, "{1.0, 2.0}", None),
    ([], "0 of them", None), ([1.0], "1 of them", None), ([1.0] * 3, "3 of them", None),
    ((x for x in [1.0]), "1 of them", None),
    (itertools.repeat(1.0), "3 of them or more", None),
    ([1.0, "1.0"], "'1.0'", 1), ([[1.0, 2.0], [0.0, 1.0]], r"\[1.0, 2.0\]", 0),
    (torch.zeros(2, 2), r"tensor\(\[0., 0.\]\)", 0), ([1.0, float("inf")], "inf, which", 1),
    ([object(), 1.0], "<object object", 0), ([1.0, 1j], "1j", 1), ([1.0, [None]], "None", 1)])
def test_anything_else_is_named_with_its_row(returned, came, row):
    with pytest.raises(VerdictError, match=f"'r' gave .*{came}.*one number .* the 2 compl") as it:
        read_verdicts("r", returned, 2)
    assert it.value.row == row
