"""Process supervision: what a step is worth, and the loss of a model that predicts it.

The advantages that follow from it are advantages.process_advantages, and one score for a whole
solution is inference_time.solution_score.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from minirl.equations.checks import check_constants, check_same_shape


def soft_estimate(verdicts: Tensor) -> Tensor:
    r"""Return the share of N completions from a step that are right.

    Equation   y_SE = 1/N Σ_j 1{a_j = a*}
    Paper      Math-Shepherd, arXiv:2312.08935, section 3.3, eq. 4; N = 8.
    Shapes     verdicts: (..., N), 1 right, 0 wrong, NaN no verdict -> (...), NaN where all are NaN
    Raises     ValueError for a verdict that is not 0, 1 or NaN.

    It estimates the value of the state behind the step under the policy that completes it: a right
    step that this policy hardly ever finishes is worth little.

    >>> soft_estimate(torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, float("nan")]]))
    tensor([0.2500, 1.0000])
    """
    _check_unit(verdicts, "verdicts")
    if bool(((verdicts > 0) & (verdicts < 1)).any()):
        raise ValueError("a verdict is between 0 and 1: expected 1 for a right completion, 0 for a "
                         "wrong one, NaN for no verdict")
    return verdicts.nanmean(-1)


def hard_estimate(values: Tensor) -> Tensor:
    r"""Return 1 for a step from which any completion is right, 0 for one from which none is.

    Equation   y_HE = 1 if ∃ j: a_j = a*, else 0; that is 1{y_SE > 0}
    Paper      Math-Shepherd, arXiv:2312.08935, section 3.3, eq. 3.
    Shapes     values, the soft estimates: any, NaN no verdict -> the same, NaN kept
    Raises     ValueError for a value outside [0, 1].

    The more completions, the more wrong steps get a 1: one of N may be right by luck, or by a
    second mistake that takes the first one back.

    >>> hard_estimate(torch.tensor([0.0, 0.125, 1.0]))
    tensor([0., 1., 1.])
    """
    _check_unit(values, "values")
    return torch.where(values.isnan(), values, (values > 0).to(values.dtype))


def process_reward_loss(scores: Tensor, labels: Tensor) -> Tensor:
    r"""Cross entropy of a label in [0, 1] per step, one value per step. Minimise.

    Equation   L_j = -(y_j log σ(s_j) + (1 - y_j) log(1 - σ(s_j)))
    Paper      Math-Shepherd, arXiv:2312.08935, section 3.2, eq. 2; its r is our σ(s).
    Shapes     scores, labels: any, but the same -> the same, 0 where the label is NaN
    Gradient   through scores only: σ(s_j) - y_j, and exactly 0 where the label is NaN.
    Raises     ValueError if shapes differ, a label is outside [0, 1] or requires grad.

    Its least value for a soft label is not 0 but the label's entropy, at σ(s) = y.

    >>> process_reward_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, float("nan")]))  # ln 2
    tensor([0.6931, 0.0000])
    """
    check_same_shape(scores=scores, labels=labels)
    check_constants(labels=labels)
    _check_unit(labels, "labels")
    judged = ~labels.isnan()
    s, y = torch.where(judged, scores, 0), torch.where(judged, labels, 0)
    return torch.where(judged, -(y * logsigmoid(s) + (1 - y) * logsigmoid(-s)), 0)


def _check_unit(x: Tensor, name: str) -> None:
    """Raise ValueError unless all numbers are in [0, 1], or NaN."""
    wrong = x[(x < 0) | (x > 1)]
    if wrong.numel():
        raise ValueError(f"{name}: {float(wrong[0])} is among them: expected numbers in [0, 1], or "
                         "NaN for no verdict")
