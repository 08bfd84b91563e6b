"""Checks that several equations share: shapes that would broadcast, and gradients of constants."""

from __future__ import annotations

import torch
from torch import Tensor


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError if shapes differ: (B,) beside (B, B) would broadcast along the wrong axis.

    >>> check_same_shape(scores=torch.zeros(3), margin=torch.zeros(3, 1))
    Traceback (most recent call last):
    ValueError: scores (3,), margin (3, 1): expected the same shape
    """
    if len({x.shape for x in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise ValueError(f"{shapes}: expected the same shape")


def check_constants(**tensors: Tensor) -> None:
    """Raise ValueError if a tensor that the update holds fixed requires grad.

    >>> check_constants(ref_logp=torch.zeros(1, requires_grad=True))
    Traceback (most recent call last):
    ValueError: ref_logp requires grad: it is a constant here; detach it
    """
    for name, x in tensors.items():
        if x.requires_grad:
            raise ValueError(f"{name} requires grad: it is a constant here; detach it")


def check_positive(**numbers: float) -> None:
    """Raise ValueError if a number is not positive. NaN is not positive.

    >>> check_positive(beta=0.0)
    Traceback (most recent call last):
    ValueError: beta is 0.0: expected a positive number
    """
    for name, x in numbers.items():
        if not x > 0:
            raise ValueError(f"{name} is {x}: expected a positive number")


def guard_gradient(x: Tensor, **constants: Tensor) -> Tensor:
    r"""Return x, with a gradient that no constant of the update can break.

    Constants must have x's shape and no gradient of their own. Where one is not finite, x is
    detached. Padding may hold NaN: there the gradient of the aggregate is 0, but 0 times NaN would
    be NaN. Anywhere else the NaN shows in the value.

    >>> logp = torch.zeros(2, requires_grad=True)
    >>> adv = torch.tensor([1.0, float("nan")])
    >>> torch.autograd.grad((guard_gradient(logp, adv=adv) * adv)[0], logp)
    (tensor([1., 0.]),)
    """
    for name, constant in constants.items():
        if constant.shape != x.shape:
            raise ValueError(f"{name} is {tuple(constant.shape)} beside {tuple(x.shape)}: expected "
                             "the same shape; spread one number per sequence over its tokens with "
                             "advantages.spread")
        check_constants(**{name: constant})
        x = torch.where(constant.isfinite(), x, x.detach())
    return x
