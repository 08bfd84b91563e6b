"""Tests of minirl.equations.checks."""

import pytest
import torch

from minirl.equations.checks import (
    check_constants,
    check_positive,
    check_same_shape,
    guard_gradient,
)

NAN, INF = float("nan"), float("inf")
LEAF = torch.zeros(2, requires_grad=True)


@pytest.mark.parametrize("call, message", [
    (lambda: check_same_shape(a=torch.zeros(2), b=torch.zeros(2, 1)),
     r"^a \(2,\), b \(2, 1\): expected the same shape$"),
    (lambda: check_constants(a=torch.zeros(2), b=LEAF), "^b requires grad: .* detach"),
    (lambda: check_positive(beta=0.0), "beta is 0.0: expected a positive number"),
    (lambda: check_positive(beta=1.0, cap=-1.0), "cap is -1.0"),
    (lambda: check_positive(beta=NAN), "beta is nan"),
    (lambda: guard_gradient(LEAF, adv=torch.zeros(2, 2)),
     r"adv is \(2, 2\) beside \(2,\): expected the same shape"),
    (lambda: guard_gradient(LEAF, adv=torch.zeros(2), old=LEAF), "old requires grad"),
])
def test_the_error_says_which_argument_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_right_passes():
    check_same_shape(a=torch.zeros(2, 3), b=torch.zeros(2, 3))
    check_constants(a=LEAF.detach())
    check_positive(beta=1e-9)


@pytest.mark.parametrize("junk", [NAN, INF, -INF])
def test_no_gradient_beside_a_constant_that_is_not_finite(junk):
    """The value stays what it was; in the gradient 0 times NaN would be NaN."""
    x = guard_gradient(LEAF, adv=torch.tensor([1.0, junk]), old=torch.tensor([0.0, 0.0]))
    assert torch.equal(x, LEAF)
    gradient, = torch.autograd.grad(x.sum(), LEAF)
    assert gradient.tolist() == [1.0, 0.0]
