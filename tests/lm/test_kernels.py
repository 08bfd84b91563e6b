"""minirl/lm/kernels.py"""

import pytest
import torch

from minirl.lm import kernels
from minirl.lm.kernels import rms_norm, swiglu


def plain(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 4, 8)])
def test_value_and_gradients_are_those_of_the_plain_formula(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), plain(x, weight, 1e-3))
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-3), (x, weight))


def test_inputs_are_left_alone_and_a_zero_row_is_no_division_by_zero():
    x, weight = torch.zeros(2, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    rms_norm(x, weight, 1e-6).sum().backward()
    assert x.grad.isfinite().all() and weight.grad.isfinite().all()
    assert bool((x == 0).all()) and bool((weight == 1).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype):
    """300² is more than float16 holds; the mean square of a row of them must not overflow."""
    x = torch.full((1, 64), 300.0, dtype=dtype, requires_grad=True)
    y = rms_norm(x, torch.ones(64, dtype=dtype), 1e-6)
    y.sum().backward()
    assert y.dtype == dtype and x.grad.dtype == dtype and x.grad.isfinite().all()
    torch.testing.assert_close(y, torch.ones_like(y), atol=1e-2, rtol=0)


def test_the_gradient_is_in_full_precision_under_autocast():
    """A product in bfloat16 inside backward put an error of 7e-3 into it."""
    x, weight, grad = torch.randn(8, 64), torch.rand(64) + 0.5, torch.randn(8, 64)

    def gradient(autocast):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return torch.autograd.grad(rms_norm(leaf, weight, 1e-6), leaf, grad)[0]

    torch.testing.assert_close(gradient(True), gradient(False))


def test_swiglu_is_the_plain_formula_and_keeps_gate_and_up_alone(monkeypatch):
    """By hand at gate 0, up 3: silu(0) = 0, its slope is 1/2, so ∂y/∂gate = 3/2 and ∂y/∂up = 0."""
    inputs = [torch.randn(4, 5, requires_grad=True) for _ in range(2)]
    plain_slopes = torch.autograd.grad(swiglu(*inputs).square().sum(), inputs)   # a narrow layer
    monkeypatch.setattr(kernels, "WIDE", 1)
    slopes = torch.autograd.grad(swiglu(*inputs).square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain_slopes, slopes, strict=True))
    gate, up = torch.zeros(1, requires_grad=True), torch.tensor([3.0], requires_grad=True)
    swiglu(gate, up).backward()
    assert gate.grad.item() == 1.5 and up.grad.item() == 0.0
    a, b = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(swiglu(a, b), torch.nn.functional.silu(a) * b)
    assert torch.autograd.gradcheck(swiglu, (a, b))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        swiglu(a, b)
    assert len(kept) == 2
