"""Solutions of 13_precision.py, and wrong answers that its checks refuse."""

import torch

from minirl.equations.mismatch import importance_ratio, sequence_weights, truncated_weights
from minirl.equations.objectives import policy_gradient
from minirl.equations.reduce import aggregate


def exercise_1(logp, behavior_logp, adv, mask, cap):
    # The weight is a constant: importance_ratio has no gradient.
    weights = truncated_weights(importance_ratio(logp, behavior_logp), cap)
    return aggregate(weights * policy_gradient(logp, adv), mask, "token_mean")


def exercise_2(pi, mu):
    # E_μ[(π/μ)²] of one token is Σ π²/μ. Of T independent tokens it is the T-th power, and the
    # square of the mean, which is 1, is subtracted.
    second_moment = (pi.square() / mu).sum()
    return lambda T: second_moment ** T - 1


def exercise_bug(function):
    # Scaled and unscaled, it is the same step: here the gradient has norm 5, and 1 is the limit.
    gradient = torch.tensor([3.0, 4.0])
    for scale in (1.0, 65536.0):
        came = function(scale * gradient, scale, 1.0)
        assert torch.allclose(came, gradient / 5), f"at scale {scale:.0f} it is {came.tolist()}"


def upside_down(logp, behavior_logp, adv, mask, cap):
    return exercise_1(logp, 2 * logp.detach() - behavior_logp, adv, mask, cap)


def with_a_gradient_in_the_weight(logp, behavior_logp, adv, mask, cap):
    weights = (logp - behavior_logp).exp().clamp(max=cap)
    return aggregate(weights * policy_gradient(logp, adv), mask, "token_mean")


def whole_answers(logp, behavior_logp, adv, mask, cap):
    weights = truncated_weights(sequence_weights(logp, behavior_logp, mask), cap)[:, None]
    return aggregate(weights * policy_gradient(logp, adv), mask, "sequence_mean")


def no_cap(logp, behavior_logp, adv, mask, cap):
    return exercise_1(logp, behavior_logp, adv, mask, 1e9)


def linear(pi, mu):
    one = (pi.square() / mu).sum() - 1
    return lambda T: T * one


def of_the_policy(pi, mu):
    return lambda T: (pi * (pi / mu - 1).square()).sum() * T


def scale_of_one(function):
    assert torch.allclose(function(torch.tensor([3.0, 4.0]), 1.0, 1.0), torch.tensor([0.6, 0.8]))


def never_clipped(function):
    assert torch.allclose(function(torch.tensor([3.0, 4.0]) / 100, 4.0, 1.0),
                          torch.tensor([3.0, 4.0]) / 400)


def refuses_everything(function):
    raise AssertionError("wrong")


WRONG = {
    "exercise_1": [upside_down, with_a_gradient_in_the_weight, whole_answers, no_cap],
    "exercise_2": [linear, of_the_policy],
    "exercise_bug": [scale_of_one, never_clipped, refuses_everything],
}
