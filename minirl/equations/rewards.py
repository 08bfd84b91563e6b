"""Rewards before they become advantages: penalties to add, rewards that look at the length, and the
scale of a reward model."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from minirl.equations.checks import check_positive, check_same_shape
from minirl.equations.reduce import within_rounding


def overlong_penalty(
    lengths: Tensor | Sequence[float], *, max_length: int = 20_480, cache: int = 4_096
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
    lengths = torch.as_tensor(lengths)
    if not 0 < cache <= max_length or bool((lengths < 0).any()):
        least = int(lengths.min()) if lengths.numel() else 0
        raise ValueError(f"max_length is {max_length}, cache {cache}, the least length {least}: "
                         "expected 0 < cache <= max_length, and lengths of at least 0")
    return ((max_length - cache - lengths) / cache).clamp(-1.0, 0.0)


def cosine_length_reward(
    lengths: Tensor | Sequence[float], correct: Tensor | Sequence[bool], *,
    max_length: int = 14_336, right: tuple[float, float] = (2.0, 1.0),
    wrong: tuple[float, float] = (-10.0, 0.0), too_long: float = -10.0,
) -> Tensor:
    r"""Reward of an answer by its length: short if right, long if wrong, and never cut off.

    Equation   r_L + (r_0 - r_L) (1 + cos(π |y| / L_max)) / 2    if |y| < L_max
               r_e                                               if |y| ≥ L_max
               (r_0, r_L: rewards of the shortest and the longest answer, one pair for right ones
               and one for wrong ones; max_length is L_max, too_long is r_e)
    Paper      Yeo et al., arXiv:2502.03373, section 4.2 (cosine reward). The numbers, and 14336 as
               L_max, are those of the scripts that the authors published for it; their code calls
               an answer too long 16 tokens earlier.
    Shapes     lengths, any; correct: the same, nonzero where the answer is right -> the same, float
    Raises     ValueError unless max_length is positive and lengths are at least 0, or if shapes
               differ.
    See        overlong_penalty, which does not look at whether the answer is right.

    A right answer earns less as it grows. A wrong one loses less: it should have thought longer.

    >>> cosine_length_reward([0, 50, 100], [True] * 3, max_length=100)
    tensor([  2.0000,   1.5000, -10.0000])
    >>> cosine_length_reward([0, 50, 100], [False] * 3, max_length=100)
    tensor([-10.0000,  -5.0000, -10.0000])
    """
    lengths, correct = torch.as_tensor(lengths), torch.as_tensor(correct)
    check_same_shape(lengths=lengths, correct=correct)
    check_positive(max_length=max_length)
    if bool((lengths < 0).any()):
        raise ValueError(f"the least length is {lengths.min().item()}: expected at least 0")
    share = (1 + torch.cos(math.pi * lengths / max_length)) / 2  # 1 at the shortest, to 0
    if_right = right[1] + (right[0] - right[1]) * share
    if_wrong = wrong[1] + (wrong[0] - wrong[1]) * share
    return torch.where(lengths < max_length, torch.where(correct != 0, if_right, if_wrong),
                       too_long)


def repetition_penalty(
    tokens: Sequence[Hashable] | Tensor, *, n: int = 3, max_penalty: float = -1.0
) -> float:
    r"""Penalty on one answer that says the same again, to be added to its reward.

    Equation   max_penalty (1 - #(different n-grams) / #(n-grams))
    Paper      Yeo et al., arXiv:2502.03373, appendix C.2 (n-gram repetition). Their main runs have
               n = 40, and put -0.05 on every token of a repeated n-gram; the share of repeated ones
               is the form of their code for one number per answer, and of TRL.
    Raises     ValueError if n is below 1, or max_penalty positive or NaN.
    See        cosine_length_reward: repetition is how a policy gets its length for nothing.

    An answer of fewer than n tokens has no n-gram, and no penalty. Tokens are ids, or words.

    >>> repetition_penalty("to be or not to be".split(), n=2)  # of 5 pairs, 4 are different
    -0.2
    """
    if n < 1 or not max_penalty <= 0:
        raise ValueError(f"n is {n}, max_penalty {max_penalty}: expected n of at least 1, and a "
                         "penalty of at most 0")
    tokens = tokens.tolist() if isinstance(tokens, Tensor) else tokens
    grams = [tuple(tokens[start:start + n]) for start in range(len(tokens) - n + 1)]
    repeated = len(grams) - len(set(grams))
    return max_penalty * repeated / len(grams) if repeated else 0.0


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
