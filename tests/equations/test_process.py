"""minirl/equations/process.py"""

import math

import pytest
import torch

from minirl.equations.process import hard_estimate, process_reward_loss, soft_estimate

NAN = float("nan")


def test_estimates_of_eight_completions_by_hand():
    """Math-Shepherd, eqs. 3 and 4: 0, 1, 3 and 8 of 8 are right; then 1 of the 2 with a verdict."""
    verdicts = torch.tensor([[0.0] * 8, [1.0] + [0.0] * 7, [1.0] * 3 + [0.0] * 5, [1.0] * 8,
                             [1.0, 0.0] + [NAN] * 6])
    soft = soft_estimate(verdicts)
    assert soft.tolist() == [0.0, 0.125, 0.375, 1.0, 0.5]
    assert hard_estimate(soft).tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_without_a_verdict_there_is_no_estimate():
    soft = soft_estimate(torch.full((2, 3), NAN))
    assert soft.isnan().all()
    assert hard_estimate(soft).isnan().all()


@pytest.mark.parametrize("verdict, message", [(0.5, "between 0 and 1"), (2.0, "2.0"),
                                              (-1.0, "-1.0"), (math.inf, "inf")])
def test_a_verdict_is_right_or_wrong(verdict, message):
    with pytest.raises(ValueError, match=message):
        soft_estimate(torch.tensor([[verdict, 1.0]]))


def test_the_soft_estimate_is_the_value_of_the_state_on_average():
    """All 2^3 outcomes of three completions that are right with p = 0.3 each."""
    p, mean, lucky = 0.3, 0.0, 0.0
    for i in range(8):
        verdicts = torch.tensor([float(i >> k & 1) for k in range(3)])
        chance = p ** int(verdicts.sum()) * (1 - p) ** int(3 - verdicts.sum())
        soft = soft_estimate(verdicts)
        mean += chance * float(soft)
        lucky += chance * float(hard_estimate(soft))
    assert mean == pytest.approx(p)
    assert lucky == pytest.approx(1 - 0.7 ** 3)             # and the hard one is not: 0.657


def test_the_loss_by_hand():
    """σ(ln 3) = 3/4: -ln(3/4) for a good step, -ln(1/4) for a bad one, and between them their mean
    for a label of 1/2."""
    scores = torch.full((1, 3), math.log(3))
    losses = process_reward_loss(scores, torch.tensor([[1.0, 0.0, 0.5]]))
    torch.testing.assert_close(losses, torch.tensor([[0.287682, 1.386294, 0.836988]]))


def test_the_gradient_is_the_probability_minus_the_label_and_nothing_without_a_label():
    scores = torch.tensor([0.0, math.log(3), NAN, 5.0], requires_grad=True)
    losses = process_reward_loss(scores, torch.tensor([1.0, 0.25, NAN, NAN]))
    losses.sum().backward()
    assert losses[2:].tolist() == [0.0, 0.0]
    torch.testing.assert_close(scores.grad, torch.tensor([-0.5, 0.5, 0.0, 0.0]))


def test_a_large_score_gives_a_large_loss_and_not_infinity():
    losses = process_reward_loss(torch.tensor([1e4, -1e4, 1e4]), torch.tensor([0.0, 1.0, 1.0]))
    assert losses.tolist() == [1e4, 1e4, 0.0]


@pytest.mark.parametrize("scores, labels, message", [
    (torch.zeros(2), torch.zeros(3), "shape"),
    (torch.zeros(1), torch.tensor([1.5]), "1.5"),
    (torch.zeros(1), torch.tensor([0.5], requires_grad=True), "requires grad|grad"),
])
def test_what_the_loss_refuses(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        process_reward_loss(scores, labels)
