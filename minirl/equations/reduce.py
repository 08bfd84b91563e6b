"""Means under a mask, and the one place where per-token terms become a scalar. The papers' losses differ here more than anywhere else."""

from __future__ import annotations

import torch
from torch import Tensor

AGGREGATIONS = ("sequence_mean", "token_mean", "sequence_sum", "constant")
SUMMED = 64      # roundings that may stand in an advantage or a return, a sum over many tokens


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    r"""Mean of x where mask is 1, over all slots or along `dim`; 0 where the mask is empty.

    Equation   sum_t m_t x_t / sum_t m_t
    Shapes     x, mask: the same -> scalar, or x's without `dim`
    Gradient   through x, exactly 0 under a zero mask.
    Raises     ValueError if shapes differ.

    >>> masked_mean(torch.tensor([[1.0, 3.0, float("nan")]]), torch.tensor([[1, 1, 0]]))
    tensor(2.)
    """
    x, mask = _visible(x, mask)
    total, count = (x.sum(dtype=mask.dtype), mask.sum()) if dim is None else (x.sum(dim, dtype=mask.dtype), mask.sum(dim))
    return (total / count.clamp(min=1)).to(x.dtype)


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, ddof: int = 1, eps: float = 1e-8) -> Tensor:
    r"""Scale x to variance 1 over the masked slots, and to mean 0 unless `shift_mean` is off; 0 under a zero mask.

    Equation   y_t = (x_t - mean) / sqrt(var + eps)  (+ mean),  var = sum_t m_t (x_t - mean)^2 / (sum_t m_t - ddof)
    Paper      none: a habit of the PPO code bases; without the shift it is the reward whitening of Ziegler et al., arXiv:1909.08593.
    Shapes     x, mask: the same -> the same
    Raises     ValueError if shapes differ.

    Equal values, or fewer than two, have no spread: they give 0 (or their mean), and not rounding errors blown up by 1 / sqrt(eps).
    Values that differ by no more than the rounding of SUMMED additions are equal here.

    >>> masked_whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]]))        # mean 2, var (1 + 1) / 1
    tensor([[-0.7071,  0.7071,  0.0000]])
    """
    dtype = x.dtype if x.is_floating_point() else torch.float32
    low, high = _range(x, mask)
    x, mask = _visible(x.to(torch.promote_types(dtype, torch.float32)), mask)              # the square of 300 is too much for float16
    mean = masked_mean(x, mask)
    centred = torch.where(mask.bool(), x - mean, 0)
    var = centred.square().sum() / (mask.sum() - ddof).clamp(min=1)
    flat = within_rounding(low, high, operations=SUMMED)
    white = torch.where(flat, 0, centred * torch.rsqrt(var + eps))
    return (white if shift_mean else torch.where(mask.bool(), white + mean, 0)).to(dtype)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    r"""How much of the returns' spread a value function foresees: 1 all of it, 0 as much as a constant does, below 0 less.

    Equation   1 - Var(returns - values) / Var(returns),  over the slots under the mask
    Paper      none: a habit of the PPO code bases, from OpenAI baselines.
    Shapes     values, returns, mask: the same -> scalar; 0 where the returns have no spread
    Gradient   none: a metric.
    Raises     ValueError if shapes differ.

    A constant offset of the values is forgiven, as it is in an advantage that is whitened. Returns
    that differ by no more than the rounding of SUMMED additions have no spread.

    >>> returns = torch.tensor([[1.0, 2.0, 3.0]])
    >>> explained_variance(torch.tensor([[1.0, 2.0, 2.0]]), returns, torch.ones(1, 3))        # variances 2/9 of 6/9
    tensor(0.6667)
    """
    low, high = _range(returns.detach(), mask)
    dtype = returns.dtype if returns.is_floating_point() else torch.float32
    wide = torch.promote_types(dtype, torch.float32)
    values, _ = _visible(values.detach().to(wide), mask)
    returns, mask = _visible(returns.detach().to(wide), mask)

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)).square(), mask)

    total = variance(returns)
    flat = within_rounding(low, high, operations=SUMMED) | (total == 0)
    explained = 1 - variance(returns - values) / torch.where(flat, 1, total)
    return torch.where(flat, 0, explained).to(dtype)


def within_rounding(low: Tensor, high: Tensor, *, operations: int = 0) -> Tensor:
    r"""Whether two numbers, low <= high, may be one number that was rounded differently.

    It is what "no spread" means wherever a spread is divided by: over a standard deviation of 6e-8,
    the last digit of a float32 would be an advantage of 1. Neighbouring numbers are equal, as 0.3
    and 0.1 + 0.2 are. Where either is the result of many `operations`, each may have added its own
    rounding (in float32 at least, as narrower types are computed with in float32).

    >>> within_rounding(torch.tensor(0.3).double(), torch.tensor(0.1).double() + 0.2)
    tensor(True)
    >>> within_rounding(torch.tensor([0.0, 1.0]), torch.tensor([1e-30, 1.000001]))
    tensor([False, False])
    >>> within_rounding(torch.tensor([0.0, 1.0]), torch.tensor([1e-30, 1.000001]), operations=64)
    tensor([False,  True])
    """
    if not low.is_floating_point():
        return high <= low
    wide = torch.promote_types(low.dtype, torch.float32)
    tolerance = torch.finfo(low.dtype).eps + operations * torch.finfo(wide).eps
    low, high = low.to(wide), high.to(wide)
    return (high <= low) | (high - low < tolerance * torch.maximum(low.abs(), high.abs()))


def aggregate(x: Tensor, mask: Tensor, how: str, *, total: float | Tensor | None = None) -> Tensor:
    r"""Reduce per-token terms to the scalar that is differentiated. The name says which mean.

    Equation   sequence_mean   1/N sum_i 1/|o_i| sum_t x_it      N sequences
               token_mean      1/N sum_i sum_t x_it              N tokens
               sequence_sum    1/N sum_i sum_t x_it              N sequences
               constant        1/N sum_i sum_t x_it              N = B * L_max, given as `total`
    Paper      DeepSeekMath, arXiv:2402.03300, eq. 3 (sequence_mean); DAPO, arXiv:2503.14476, eq. 8 (token_mean); RLOO, arXiv:2402.14740
               (sequence_sum); Dr. GRPO, arXiv:2503.20783 (constant).
    Shapes     x, mask: (B, T) -> scalar
    Gradient   through x, exactly 0 under a zero mask, whatever stands there.
    Raises     ValueError if shapes differ, `how` is unknown, `total` is not positive, or `constant` comes without it.
    See        normaliser, which computes the N of a whole batch.

    `total` is N. A micro-batch passes the N of its whole batch, and then the sum over the micro-batches is the batch's value and
    gradient, however it was split. An empty row adds 0 (and counts as a sequence).

    >>> x = torch.tensor([[1.0, 1, 1, 1, 10, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 10]])
    >>> mask = torch.tensor([[1] * 5 + [0] * 5, [1] * 10])
    >>> aggregate(x, mask, "sequence_mean")              # (14/5 + 19/10) / 2
    tensor(2.3500)
    >>> aggregate(x, mask, "token_mean")                 # 33 / 15
    tensor(2.2000)
    >>> aggregate(x, mask, "constant", total=2 * 10)     # 33 / 20
    tensor(1.6500)
    """
    x, mask = _visible(x, mask)
    if x.dim() != 2:
        raise ValueError(f"x is {tuple(x.shape)}: per-token terms of shape (B, T) are wanted")
    _check_aggregation(how)
    total = float(normaliser(mask, how) if total is None else total)
    if not 0 < total < float("inf"):
        if bool(mask.any()):
            raise ValueError(f"total is {total}: the positive number of sequences, tokens or slots of the whole batch is wanted")
        return x.sum()                                   # nothing to average: 0, still attached to the graph
    if how == "sequence_mean":
        rows = masked_mean(x, mask, dim=1)                                      # (B,)
    else:
        rows = x.sum(1, dtype=mask.dtype)
    return (rows.sum(dtype=mask.dtype) / total).to(x.dtype)


def normaliser(mask: Tensor, how: str, *, max_length: int | None = None) -> float:
    r"""The N that `aggregate` divides by, for the whole batch under `mask`. `max_length` is L_max, for "constant" alone.

    >>> mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    >>> normaliser(mask, "sequence_mean"), normaliser(mask, "token_mean"), normaliser(mask, "constant", max_length=3)
    (2.0, 3.0, 6.0)
    """
    _check_aggregation(how)
    if how == "constant":
        if max_length is None:
            raise ValueError('"constant" needs its number, B * L_max: pass total to aggregate (or max_length to normaliser)')
        return float(len(mask) * max_length)
    return float(mask.sum()) if how == "token_mean" else float(len(mask))


def _check_aggregation(how: str) -> None:
    if how not in AGGREGATIONS:
        raise ValueError(f"how is {how!r}: one of {', '.join(AGGREGATIONS)} is wanted")


def _visible(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """x with 0 wherever mask is 0 (also over NaN, in value and gradient), and the mask as numbers that can be counted: in float16 a sum of
    ones overflows at 65,504, in bfloat16 it stops at 256. Whole numbers become float32, as their
    mean need not be whole."""
    if x.shape != mask.shape:
        raise ValueError(f"x is {tuple(x.shape)} and mask {tuple(mask.shape)}: the same shape is wanted")
    mask, x = mask.bool(), x if x.is_floating_point() else x.float()
    return torch.where(mask, x, 0), mask.to(torch.promote_types(x.dtype, torch.float32))


def _range(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of what the mask shows: inf and -inf where it shows nothing."""
    x, count = _visible(x, mask)
    hidden, none = count.flatten() == 0, x.new_tensor([torch.inf])
    return (torch.cat([x.flatten().masked_fill(hidden, torch.inf), none]).min(),
            torch.cat([x.flatten().masked_fill(hidden, -torch.inf), -none]).max())
