"""Means under a mask, and `aggregate`, the one place where per-token terms become a scalar.

The papers' losses differ here more than anywhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.checks import check_same_shape

AGGREGATIONS = ("sequence_mean", "token_mean", "sequence_sum", "constant")
SUM_OPERATIONS = 64  # roundings that an advantage or a return, a sum over many tokens, may hold


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    r"""Return the mean of x where mask is 1, over all slots or along `dim`; 0 for an empty mask.

    Equation   Σ_t m_t x_t / Σ_t m_t
    Shapes     x, mask: the same -> scalar, or x's shape without `dim`
    Gradient   through x, exactly 0 under a zero mask.
    Raises     ValueError if shapes differ.

    >>> masked_mean(torch.tensor([[1.0, 3.0, float("nan")]]), torch.tensor([[1, 1, 0]]))
    tensor(2.)
    """
    x, mask = _visible(x, mask)
    if dim is None:
        total, count = x.sum(dtype=mask.dtype), mask.sum()
    else:
        total, count = x.sum(dim, dtype=mask.dtype), mask.sum(dim)
    return (total / count.clamp(min=1)).to(x.dtype)


def masked_whiten(
    x: Tensor, mask: Tensor, *, shift_mean: bool = True, ddof: int = 1, eps: float = 1e-8
) -> Tensor:
    r"""Scale x to variance 1 under the mask, and to mean 0 if `shift_mean`; 0 under a zero mask.

    Equation   y_t = (x_t - mean) / sqrt(var + ε)             shift_mean=False adds the mean again
               var = Σ_t m_t (x_t - mean)² / (Σ_t m_t - ddof)
    Paper      none: a habit of the PPO code bases. Without the shift it is the reward whitening of
               Ziegler et al., arXiv:1909.08593.
    Shapes     x, mask: the same -> the same
    Raises     ValueError if shapes differ.

    Equal values, or fewer than two, have no spread: they give 0 (or their mean), not rounding
    errors multiplied by 1 / sqrt(ε). Values that differ by no more than the rounding of
    SUM_OPERATIONS additions count as equal.

    >>> masked_whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]]))  # mean 2, var 2
    tensor([[-0.7071,  0.7071,  0.0000]])
    """
    dtype = x.dtype if x.is_floating_point() else torch.float32
    low, high = _range(x, mask)
    wide = torch.promote_types(dtype, torch.float32)  # float16 has no room for the square of 300
    x, mask = _visible(x.to(wide), mask)
    mean = masked_mean(x, mask)
    centred = torch.where(mask.bool(), x - mean, 0)
    var = centred.square().sum() / (mask.sum() - ddof).clamp(min=1)
    flat = within_rounding(low, high, operations=SUM_OPERATIONS)
    white = torch.where(flat, 0, centred * torch.rsqrt(var + eps))
    if not shift_mean:
        white = torch.where(mask.bool(), white + mean, 0)
    return white.to(dtype)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    r"""Return how much of the returns' variance a value function predicts: 1 is all of it.

    Equation   1 - Var(returns - values) / Var(returns),   over the slots under the mask
    Paper      none: a habit of the PPO code bases, from OpenAI baselines.
    Shapes     values, returns, mask: the same -> scalar; 0 where the returns have no spread
    Gradient   none: a metric.
    Raises     ValueError if shapes differ.

    0 is what a constant predicts; below 0 is worse than a constant. A constant offset of the values
    does not count, just as whitening removes it from an advantage. Returns that differ by no more
    than the rounding of SUM_OPERATIONS additions have no spread.

    >>> values, returns = torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    >>> explained_variance(values, returns, torch.ones(1, 3))  # variances 2/9 of 6/9
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
    flat = within_rounding(low, high, operations=SUM_OPERATIONS) | (total == 0)
    explained = 1 - variance(returns - values) / torch.where(flat, 1, total)
    return torch.where(flat, 0, explained).to(dtype)


def within_rounding(low: Tensor, high: Tensor, *, operations: int = 0) -> Tensor:
    r"""Return whether low <= high may be one number, rounded differently.

    This is what "no spread" means wherever a spread is divided by: over a standard deviation of
    6e-8 the last digit of a float32 would be an advantage of 1. Neighbouring numbers are equal, as
    0.3 and 0.1 + 0.2 are. Where a number is the result of many `operations`, each may have added
    its own rounding (in float32 at least, since narrower types are computed in float32).

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


def aggregate(
    x: Tensor, mask: Tensor, how: str, *, total: float | Tensor | None = None
) -> Tensor:
    r"""Reduce per-token terms to the scalar that is differentiated. `how` says which mean.

    Equation   sequence_mean   1/N Σ_i 1/|o_i| Σ_t x_{i,t}      N sequences
               token_mean      1/N Σ_i Σ_t x_{i,t}              N tokens
               sequence_sum    1/N Σ_i Σ_t x_{i,t}              N sequences
               constant        1/N Σ_i Σ_t x_{i,t}              N = B L_max, given as `total`
    Paper      DeepSeekMath, arXiv:2402.03300, eq. 3 (sequence_mean); DAPO, arXiv:2503.14476, eq. 8
               (token_mean); RLOO, arXiv:2402.14740 (sequence_sum); Dr. GRPO, arXiv:2503.20783
               (constant).
    Shapes     x, mask: (B, T) -> scalar
    Gradient   through x, exactly 0 under a zero mask, whatever stands there.
    Raises     ValueError if shapes differ, `how` is unknown, `total` is not positive, or
               "constant" comes without it.
    See        normaliser, which computes the N of a whole batch.

    `total` is N. A micro-batch passes the N of its whole batch: then the micro-batches add up to
    the batch's value and gradient, however it was split. An empty row adds 0, and counts as a
    sequence.

    >>> x = torch.tensor([[1.0, 1, 1, 1, 10, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 10]])
    >>> mask = torch.tensor([[1] * 5 + [0] * 5, [1] * 10])
    >>> aggregate(x, mask, "sequence_mean")  # (14/5 + 19/10) / 2
    tensor(2.3500)
    >>> aggregate(x, mask, "token_mean")  # 33 / 15
    tensor(2.2000)
    >>> aggregate(x, mask, "constant", total=2 * 10)  # 33 / 20
    tensor(1.6500)
    """
    x, mask = _visible(x, mask)
    if x.dim() != 2:
        raise ValueError(f"x is {tuple(x.shape)}: expected per-token terms of shape (B, T)")
    _check_aggregation(how)
    total = float(normaliser(mask, how) if total is None else total)
    if not 0 < total < float("inf"):
        if bool(mask.any()):
            raise ValueError(f"total is {total}: expected the positive number of sequences, tokens "
                             "or slots of the whole batch")
        return x.sum()  # nothing to average: 0, still attached to the graph
    if how == "sequence_mean":
        rows = masked_mean(x, mask, dim=1)  # (B,)
    else:
        rows = x.sum(1, dtype=mask.dtype)  # (B,)
    return (rows.sum(dtype=mask.dtype) / total).to(x.dtype)


def normaliser(mask: Tensor, how: str, *, max_length: int | None = None) -> float:
    r"""Return the N that `aggregate` divides by, for the whole batch under `mask`.

    `max_length` is L_max, and only "constant" needs it.

    >>> mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    >>> normaliser(mask, "sequence_mean"), normaliser(mask, "token_mean")
    (2.0, 3.0)
    >>> normaliser(mask, "constant", max_length=3)
    6.0
    """
    _check_aggregation(how)
    if how == "constant":
        if max_length is None:
            raise ValueError('"constant" needs its number, B * L_max: pass total to aggregate, or '
                             "max_length to normaliser")
        return float(len(mask) * max_length)
    return float(mask.sum()) if how == "token_mean" else float(len(mask))


def _check_aggregation(how: str) -> None:
    if how not in AGGREGATIONS:
        raise ValueError(f"how is {how!r}: expected one of {', '.join(AGGREGATIONS)}")


def _visible(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return x with 0 wherever mask is 0, and the mask as numbers that can be counted.

    NaN under a zero mask reaches neither value nor gradient. The mask is float32 at least, because
    a sum of ones overflows at 65,504 in float16 and stops at 256 in bfloat16. Whole numbers become
    float32, because their mean need not be whole.
    """
    check_same_shape(x=x, mask=mask)
    mask = mask.bool()
    x = x if x.is_floating_point() else x.float()
    return torch.where(mask, x, 0), mask.to(torch.promote_types(x.dtype, torch.float32))


def _range(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest x under the mask: inf and -inf under an empty one."""
    x, count = _visible(x, mask)
    hidden = count.flatten() == 0
    highest = x.new_tensor([torch.inf])
    low = torch.cat([x.flatten().masked_fill(hidden, torch.inf), highest]).min()
    high = torch.cat([x.flatten().masked_fill(hidden, -torch.inf), -highest]).max()
    return low, high
