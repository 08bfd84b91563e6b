"""Solutions of 15_test_your_own_loss.py, and wrong answers that its checks refuse."""

import torch

from minirl.equations.objectives import clipped_surrogate
from minirl.equations.reduce import aggregate


def exercise_1(logp, old_logp, adv, mask):
    # What is masked goes before the exp, so that no NaN gets into the gradient. The minus makes a
    # loss of an objective. No row is divided by its own length.
    ratio = torch.where(mask, logp - old_logp, 0).clamp(max=20).exp()
    terms = torch.minimum(ratio * adv, ratio.clamp(0.8, 1.28) * adv)
    return -torch.where(mask, terms, 0).sum() / mask.sum()


def exercise_2():
    # A: ln 1.3231 is 0.28, so the log-ratio was clamped, and not the ratio. B: 1.4681 is 5/4 of
    # 1.1745; one row of five is empty, and the mean should count it. C: 1.2 stands where 1.28 is
    # right: the lower and the upper ε have changed places.
    return {"A": "bounds on the log-ratio", "B": "empty rows left out", "C": "bounds swapped"}


def batch():
    """Ratios 0.5, 1.5, 1.5, 0.5, and the advantages 1, 2, -1, -1."""
    return (torch.tensor([[0.5, 1.5], [1.5, 0.5]]).log(), torch.zeros(2, 2),
            torch.tensor([[1.0, 2.0], [-1.0, -1.0]]), torch.ones(2, 2).bool())


def exercise_bug(function):
    # `adv *= -1` writes into the caller's tensor. The first call is right, and the second one, of
    # the second pass, has the sign turned: it takes back what the first one did. So call it twice
    # with the same tensors, or assert that they are unchanged. nano-aha-moment had a bug of this
    # kind: its log-probs wrote into the labels, and what was counted from them later was wrong.
    logp, old_logp, adv, mask = batch()
    for time in ("first", "second"):
        loss = float(function(logp, old_logp, adv, mask))
        assert abs(loss + (0.5 + 2.4 - 1.5 - 0.8) / 4) < 1e-6, f"{time} call: {loss}, not -0.15"


def one_call(function):
    assert abs(float(function(*batch())) + 0.15) < 1e-6


def new_tensors_for_each_call(function):
    for _ in range(2):
        one_call(function)


def numbers_too_symmetric(function):
    logp, old_logp, adv, mask = batch()
    adv = adv.sign()                   # with the sign turned, these give the same loss
    for _ in range(2):
        assert abs(float(function(logp, old_logp, adv, mask)) - 0.15) < 1e-6


def old_logp_stays(function):
    logp, old_logp, adv, mask = batch()
    function(logp, old_logp, adv, mask)
    assert torch.equal(old_logp, torch.zeros(2, 2))


def refuses_everything(function):
    raise AssertionError("wrong")


def dapo_with(how, clip_high, sign=-1):
    return lambda logp, old_logp, adv, mask: sign * aggregate(
        clipped_surrogate(logp, old_logp, adv, clip_high=clip_high), mask, how)


def mask_by_product(logp, old_logp, adv, mask):
    terms = clipped_surrogate(logp, old_logp, adv, clip_high=0.28)
    return -(terms * mask).sum() / mask.sum()


def padding_counted(logp, old_logp, adv, mask):
    terms = clipped_surrogate(logp, old_logp, adv, clip_high=0.28)
    return -torch.where(mask, terms, 0).mean()


WRONG = {
    "exercise_1": [dapo_with("sequence_mean", 0.28), dapo_with("token_mean", 0.2),
                   dapo_with("token_mean", 0.28, sign=1), mask_by_product, padding_counted],
    "exercise_2": [
        dict,
        lambda: {"A": "bounds swapped", "B": "empty rows left out",
                 "C": "bounds on the log-ratio"},
        lambda: {**exercise_2(), "B": "padding counted"},
        lambda: {**exercise_2(), "A": "ratio detached"},
    ],
    "exercise_bug": [one_call, new_tensors_for_each_call, numbers_too_symmetric, old_logp_stays,
                     refuses_everything],
}
