"""Rewards, before they become advantages: what is added to a verdict, and how a reward model's scale is set."""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.reduce import within_rounding


def overlong_penalty(lengths: Tensor, *, max_length: int = 20_480, cache: int = 4_096) -> Tensor:
    r"""DAPO's soft punishment of long answers: none, then on a straight line to -1, where the answer is cut off. To be added to the reward.

    Equation   0 if |y| <= L_max - L_cache ;   ((L_max - L_cache) - |y|) / L_cache ;   -1 if |y| > L_max
    Paper      DAPO, arXiv:2503.14476, section 3.4, eq. 13; L_max 20480, L_cache 4096.
    Shapes     lengths, any -> the same, float
    Raises     ValueError unless 0 < cache <= max_length, or if a length is negative.

    >>> overlong_penalty(torch.tensor([16384, 18432, 20480, 20481]))
    tensor([ 0.0000, -0.5000, -1.0000, -1.0000])
    """
    if not 0 < cache <= max_length or bool((lengths < 0).any()):
        raise ValueError(f"max_length is {max_length}, cache {cache}, the least length {int(lengths.min()) if lengths.numel() else 0}: 0 < cache <= max_length, and "
                         "lengths of at least 0, are wanted")
    return ((max_length - cache - lengths) / cache).clamp(-1.0, 0.0)


def reward_bias(demonstration_scores: Tensor) -> Tensor:
    r"""What is added to a reward model's scores so that the labelers' demonstrations score 0 on average.

    Equation   b = -mean(r(x, y_demo))
    Paper      InstructGPT, arXiv:2203.02155, section 3.5: the ranking loss is blind to a shift, so the scale is fixed before RL.
    Shapes     demonstration_scores (N,) -> scalar
    Raises     ValueError for no scores, or one that is not finite.
    See        reward_gain_and_bias, which also sets the spread.

    >>> reward_bias(torch.tensor([1.0, 3.0]))
    tensor(-2.)
    """
    _check_scores(demonstration_scores)
    return -demonstration_scores.mean()


def reward_gain_and_bias(scores: Tensor, *, mean: float = 0.0, std: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Gain and bias that give a reward model's scores of reference samples the wanted mean and standard deviation.

    Equation   g = std / std(r),   b = mean - g mean(r) ;   use g r + b
    Paper      Ziegler et al., arXiv:1909.08593, section 2.1: mean 0 and variance 1 under samples of the reference policy.
    Shapes     scores (N,) -> two scalars
    Raises     ValueError for a score that is not finite, scores that are all equal (but for their
               rounding: see reduce.within_rounding), or a std that is not positive.

    >>> gain, bias = reward_gain_and_bias(torch.tensor([1.0, 3.0]))                      # mean 2, std (of the population) 1
    >>> gain, bias
    (tensor(1.), tensor(-2.))
    """
    _check_scores(scores)
    spread = scores.std(correction=0)
    if not std > 0:
        raise ValueError(f"std is {std}: a positive number is wanted")
    if bool(within_rounding(scores.min(), scores.max())):
        raise ValueError(f"{scores.numel()} scores without any spread: no gain can give them a standard deviation of {std}; is the reward model untrained?")
    gain = std / spread
    return gain, mean - gain * scores.mean()


def _check_scores(scores: Tensor) -> None:
    if scores.dim() != 1 or scores.numel() == 0 or not scores.is_floating_point() or not bool(scores.isfinite().all()):
        raise ValueError(f"scores are {tuple(scores.shape)}, {scores.dtype}, {int((~scores.isfinite()).sum())} of them not finite: a row (N,) of finite "
                         "floating-point scores is wanted")
