"""Rewards before they become advantages: penalties to add, and the scale of a reward model."""

from __future__ import annotations

from torch import Tensor

from minirl.equations.checks import check_positive
from minirl.equations.reduce import within_rounding


def overlong_penalty(
    lengths: Tensor, *, max_length: int = 20_480, cache: int = 4_096
) -> Tensor:
    r"""DAPO's soft punishment of long answers, to be added to the reward.

    Equation   0                                    if |y| ≤ L_max - L_cache
               ((L_max - L_cache) - |y|) / L_cache  if L_max - L_cache < |y| ≤ L_max
               -1                                   if |y| > L_max
               (max_length is L_max, where answers are cut off; cache is L_cache)
    Paper      DAPO, arXiv:2503.14476, section 3.4, eq. 13; L_max = 20480, L_cache = 4096.
    Shapes     lengths, any -> the same, float
    Raises     ValueError unless 0 < cache ≤ max_length, or if a length is negative.

    >>> overlong_penalty(torch.tensor([16384, 18432, 20480, 20481]))
    tensor([ 0.0000, -0.5000, -1.0000, -1.0000])
    """
    if not 0 < cache <= max_length or bool((lengths < 0).any()):
        least = int(lengths.min()) if lengths.numel() else 0
        raise ValueError(f"max_length is {max_length}, cache {cache}, the least length {least}: "
                         "expected 0 < cache <= max_length, and lengths of at least 0")
    return ((max_length - cache - lengths) / cache).clamp(-1.0, 0.0)


def reward_bias(demonstration_scores: Tensor) -> Tensor:
    r"""Return the bias with which the labelers' demonstrations score 0 on average.

    Equation   b = -mean(r(x, y_demo))
    Paper      InstructGPT, arXiv:2203.02155, section 3.5. The ranking loss does not see a shift,
               so the scale is fixed before RL.
    Shapes     demonstration_scores: (N,) -> scalar, to be added to a reward model's scores
    Raises     ValueError for no scores, or one that is not finite.
    See        reward_gain_and_bias, which also sets the spread.

    >>> reward_bias(torch.tensor([1.0, 3.0]))
    tensor(-2.)
    """
    _check_scores(demonstration_scores)
    return -demonstration_scores.mean()


def reward_gain_and_bias(
    scores: Tensor, *, mean: float = 0.0, std: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Return the gain and bias that give a reward model's scores this mean and standard deviation.

    Equation   g = std / std(r),   b = mean - g mean(r);   use g r + b
    Paper      Ziegler et al., arXiv:1909.08593, section 2.1: mean 0 and variance 1 under samples of
               the reference policy.
    Shapes     scores: (N,) -> two scalars
    Raises     ValueError for a score that is not finite, scores that are equal up to rounding (see
               reduce.within_rounding), or a std that is not positive.

    >>> reward_gain_and_bias(torch.tensor([1.0, 3.0]))  # mean 2, standard deviation 1 (ddof 0)
    (tensor(1.), tensor(-2.))
    """
    _check_scores(scores)
    check_positive(std=std)
    if bool(within_rounding(scores.min(), scores.max())):
        raise ValueError(f"{scores.numel()} scores without any spread: no gain can give them a "
                         f"standard deviation of {std}; is the reward model untrained?")
    gain = std / scores.std(correction=0)
    return gain, mean - gain * scores.mean()


def _check_scores(scores: Tensor) -> None:
    """Raise ValueError unless scores are a row of finite floating-point numbers."""
    broken = int((~scores.isfinite()).sum())
    if scores.dim() != 1 or scores.numel() == 0 or not scores.is_floating_point() or broken:
        raise ValueError(f"scores are {tuple(scores.shape)}, {scores.dtype}, {broken} of them not "
                         "finite: expected a row (N,) of finite floating-point scores")
