"""Solutions of 05_clipped_surrogate.py, and wrong answers that its checks refuse."""

import torch

from minirl.equations.objectives import dual_clipped_surrogate


def exercise_1(ratio, adv, clip_low, clip_high):
    # A > 0 pushes the token up, so the upper bound is the one that stops it; A < 0 the other way.
    return ((adv > 0) & (ratio > 1 + clip_high)) | ((adv < 0) & (ratio < 1 - clip_low))


def exercise_2(ratio, adv, clip, cap):
    # The minus sign turns the min of two objectives into the max of two losses. The cap bounds that
    # loss where A < 0; where A > 0 it would be a negative number, and nothing is to be bounded.
    loss = torch.maximum(-ratio * adv, -ratio.clamp(1 - clip, 1 + clip) * adv)
    return torch.where(adv < 0, torch.minimum(loss, -cap * adv), loss)


def exercise_bug(function):
    # The function clamps before it takes the min, so the min compares two equal numbers. Inside the
    # band, and on the side where the clip acts, that changes nothing: the test must look at a token
    # that is outside the band and has to be brought back.
    logp = torch.tensor([[0.5, 1.5]]).log().requires_grad_()
    value = function(logp, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]))
    slope, = torch.autograd.grad(value.sum(), logp)
    assert torch.allclose(value, torch.tensor([[0.5, -1.5]])), f"values {value.tolist()}"
    assert torch.allclose(slope, torch.tensor([[0.5, -1.5]])), f"gradients {slope.tolist()}"


def only_inside_the_band(function):
    ratio = torch.tensor([[0.9, 1.0, 1.1]])
    value = function(ratio.log(), torch.zeros(1, 3), torch.ones(1, 3))
    assert torch.allclose(value, ratio)


def only_where_the_clip_acts(function):
    value = function(torch.tensor([[1.5, 0.5]]).log(), torch.zeros(1, 2), torch.tensor([[1.0, -1]]))
    assert torch.allclose(value, torch.tensor([[1.2, -0.8]]))


def never_above_the_plain_surrogate(function):
    ratio, adv = torch.tensor([[0.5, 1.0, 1.5]]), torch.tensor([[-1.0, -1.0, 1.0]])
    assert bool((function(ratio.log(), torch.zeros(1, 3), adv) <= ratio * adv + 1e-6).all())


def refuses_everything(function):
    raise AssertionError("wrong")


WRONG = {
    "exercise_1": [
        lambda ratio, adv, low, high: (ratio < 1 - low) | (ratio > 1 + high),
        lambda ratio, adv, low, high: ratio * adv < ratio.clamp(1 - low, 1 + high) * adv,
        lambda ratio, adv, low, high: exercise_1(ratio, adv, high, low),
    ],
    "exercise_2": [
        lambda ratio, adv, clip, cap: exercise_2(ratio, -adv, clip, cap),
        lambda ratio, adv, clip, cap: exercise_2(ratio, adv, clip, float("inf")),
        lambda ratio, adv, clip, cap: exercise_2(ratio, adv, cap - 1, cap),
        lambda ratio, adv, clip, cap: torch.minimum(exercise_2(ratio, adv, clip, cap), -cap * adv),
        lambda ratio, adv, clip, cap: dual_clipped_surrogate(ratio.log(), 0 * ratio, adv, cap=cap),
    ],
    "exercise_bug": [only_inside_the_band, only_where_the_clip_acts,
                     never_above_the_plain_surrogate, refuses_everything],
}
