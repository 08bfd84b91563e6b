"""Operations written by hand: the numbers of the plain formula, in fewer passes over memory.

rms_norm. With autograd, y = x r w with r = (mean(x²) + eps)^(-1/2) keeps six intermediate tensors
and takes a dozen passes backwards. By hand, with n = x r (the normalised row), D features and g the
gradient of y,

    ∂r / ∂x_j = -r³ x_j / D = -r² n_j / D    so    dx = r (g w - n mean(g w n)),    dw = Σ_rows g n

and only x, w and one number per row are kept. On two CPU cores, a norm of 128 rows of 45 tokens,
forward and backward, is 1.4 to 1.6 times as fast as the plain formula; of 16 rows about as fast
(python benchmarks/rms_norm.py).

swiglu. Autograd would keep silu(gate), too, a quarter of what a feed-forward layer keeps. Here it
is computed again, with the same bits, where the layer is wide enough for that to matter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    r = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    r = r.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
    n = (wide * r).to(x.dtype)
    # Not in place where it is compiled: torch 2.11 gives a wrong gradient where the last operation
    # of such a function is in place.
    return (n * weight if torch.compiler.is_compiling() else n.mul_(weight)), r


WIDE = 1024         # features of a feed-forward layer, from which on memory counts


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, r = _normalise(x, weight, eps)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight, r = ctx.saved_tensors
        n, g, w = x.to(r.dtype) * r, grad.to(r.dtype), weight.to(r.dtype)
        gn = g * n  # (..., D)
        gw = g * w
        with torch.autocast(x.device.type, enabled=False):    # it would take a vecdot in bfloat16
            # (..., 1): mean(g w n)
            mean = torch.linalg.vecdot(gw, n).div_(x.shape[-1]).unsqueeze(-1)
        grad_x = gw.addcmul_(n, mean, value=-1).mul_(r)
        grad_weight = gn.reshape(-1, *weight.shape).sum(0)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    r"""Scale each row to mean square 1, then each feature by its weight; in float32 at least.

    Equation   y = x / sqrt(mean(x²) + eps) * weight
    Paper      RMSNorm, arXiv:1910.07467, eq. 4 (there without eps).
    Shapes     x (..., D), weight (D,) or, one per head, (H, D) -> (..., D)
    Gradient   through x and weight.

    >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)    # mean square 12.5
    tensor([[0.8485, 2.2627]])
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(x, weight, eps)
    return _normalise(x, weight, eps)[0]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        gate, up = ctx.saved_tensors
        silu = torch.nn.functional.silu(gate)
        return torch.ops.aten.silu_backward(grad * up, gate), grad * silu


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    r"""Return silu(gate) * up, and keep gate and up alone for the gradient.

    Equation   y = g σ(g) u;   ∂y / ∂g = u (σ(g) + g σ(g) (1 - σ(g))),   ∂y / ∂u = g σ(g)
    Paper      SwiGLU, arXiv:2002.05202, eq. 5
    Shapes     gate, up (..., D) -> (..., D)
    Gradient   through both.

    >>> swiglu(torch.tensor([0.0, 100.0]), torch.tensor([3.0, 3.0]))
    tensor([  0., 300.])
    """
    needs_gradient = torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad)
    if needs_gradient and gate.shape[-1] >= WIDE:
        return _SwiGLU.apply(gate, up)
    return torch.nn.functional.silu(gate) * up
