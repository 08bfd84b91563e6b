"""Tests of minirl.equations.regression. tests/test_ground_truth_further.py has the optimum."""

import math

import pytest
import torch

from minirl.equations.preferences import implicit_reward
from minirl.equations.regression import astar_po_loss, optimal_values

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("rewards, beta, value", [
    ([1.0, 0.0], 0.5, 0.716890),  # 1/2 ln((e² + 1) / 2) = 1/2 ln 4.194528
    ([1.0, 0.0], 1.0, 0.620115),  # ln((e + 1) / 2)
    ([1.0, 0.0], 100.0, 0.501250),  # the mean, and β / 2 times the variance / β²: 1/2 + 1/800
    ([1.0, 0.0], 0.01, 0.993069),  # the best, less 0.01 ln 2
    ([0.7] * 5, 0.5, 0.7),
    ([-2.0], 0.5, -2.0),
])
def test_optimal_values_hand_numbers(rewards, beta, value):
    for dtype in (torch.float32, torch.float64):
        values = optimal_values(torch.tensor([rewards], dtype=dtype), beta=beta)
        assert values.dtype == dtype and values.tolist() == pytest.approx([value], abs=2e-6)


def test_optimal_values_are_between_mean_and_best_and_fall_with_beta():
    rewards = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    values = [optimal_values(rewards, beta=beta) for beta in (0.05, 0.5, 5.0)]
    assert (values[0] > values[1]).all() and (values[1] > values[2]).all()
    assert (rewards.amax(1) > values[0]).all() and (values[2] > rewards.mean(1)).all()


def test_optimal_values_do_not_overflow():
    """exp(1000 / 0.01) is no float: the best reward is taken out first."""
    values = optimal_values(torch.tensor([[1000.0, 0.0], [-1000.0, -1000.0]]), beta=0.01)
    torch.testing.assert_close(values, torch.tensor([1000 - 0.01 * math.log(2), -1000.0]))


def test_optimal_values_of_missing_verdicts_and_of_counts():
    """NaN is left out of the mean, which is of one: the reward itself. Whole numbers are rewards
    too."""
    values = optimal_values(torch.tensor([[3.0, NAN], [NAN, NAN]]))
    assert values[0] == 3 and values[1].isnan()
    assert optimal_values(torch.tensor([[1, 1]])).tolist() == [1.0]


def test_the_default_betas_are_those_of_trl():
    one, zero = torch.ones(1), torch.zeros(1)
    assert optimal_values(torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0.716890, abs=1e-6)
    assert astar_po_loss(1000 * one, zero, one, zero).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("log_ratio, gap, beta, loss, slope", [
    (math.log(2), 1.0, 1.0, 0.094159, -0.613706),  # (ln 2 - 1)², 2 (ln 2 - 1)
    (0.0, 0.25, 0.5, 0.0625, -0.25),  # at the reference
    (2.0, 1.0, 0.5, 0.0, 0.0),  # fitted
    (-2.0, 1.0, 0.5, 4.0, -2.0),  # the wrong way: (-1 - 1)², 2 * 0.5 * -2
])
def test_astar_po_loss_hand_numbers(log_ratio, gap, beta, loss, slope):
    """`gap` is r - V*, whatever the two are."""
    logp = torch.tensor([log_ratio - 3.0], dtype=torch.float64, requires_grad=True)
    ref_logp = torch.full((1,), -3.0, dtype=torch.float64)
    values = torch.tensor([0.5], dtype=torch.float64)
    out = astar_po_loss(logp, ref_logp, gap + values, values, beta=beta)
    out.sum().backward()
    assert out.item() == pytest.approx(loss, abs=1e-6)
    assert logp.grad.item() == pytest.approx(slope, abs=1e-6)


def test_it_is_the_square_of_the_implicit_reward_less_the_advantage():
    logp, ref_logp, rewards, values = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    expected = (implicit_reward(logp, ref_logp, beta=0.3) - rewards + values).square()
    torch.testing.assert_close(astar_po_loss(logp, ref_logp, rewards, values, beta=0.3), expected)


ZERO = torch.zeros(2)


@pytest.mark.parametrize("call, message", [
    (lambda: optimal_values(ZERO), r"\(2,\).*expected finite rewards \(P, G\)"),
    (lambda: optimal_values(torch.zeros(2, 0)), r"\(2, 0\)"),
    (lambda: optimal_values(torch.tensor([[INF, 0.0]])), "1 of them infinite"),
    (lambda: optimal_values(torch.zeros(1, 2), beta=0.0), "beta is 0.0"),
    (lambda: optimal_values(torch.zeros(1, 2, requires_grad=True)), "rewards requires grad"),
    (lambda: astar_po_loss(ZERO, ZERO, ZERO, torch.zeros(2, 1)), "same shape"),
    (lambda: astar_po_loss(*[torch.zeros(2, 2)] * 4), r"\(2, 2\).*expected \(N,\)"),
    (lambda: astar_po_loss(ZERO, ZERO, ZERO, ZERO, beta=-1.0), "beta is -1.0"),
    (lambda: astar_po_loss(ZERO, ZERO, ZERO.clone().requires_grad_(), ZERO), "rewards requires"),
    (lambda: astar_po_loss(ZERO, ZERO, ZERO, ZERO.clone().requires_grad_()), "values requires"),
    (lambda: astar_po_loss(ZERO, ZERO.clone().requires_grad_(), ZERO, ZERO), "ref_logp requires"),
])
def test_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
