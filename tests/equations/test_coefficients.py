"""Tests of minirl.equations.coefficients: each one is the derivative of its method's own loss, taken by autograd."""

import pytest
import torch

from minirl.equations import coefficients, kl
from minirl.equations.coefficients import (dpo_coefficient, gradient_coefficient, grpo_coefficient, online_rft_coefficient, ppo_coefficient,
                                           rft_coefficient, sft_coefficient)
from minirl.equations.objectives import clipped_surrogate
from minirl.equations.preferences import dpo_loss
from minirl.equations.reduce import aggregate

MASK = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0, 0]]).bool()                      # 2, 3 and 1 tokens behind a prompt
GENERATOR = torch.Generator().manual_seed(0)
LOGP, REF, ADV = -torch.rand(3, 4, generator=GENERATOR) - 0.1, -torch.rand(3, 4, generator=GENERATOR) - 0.1, torch.randn(3, 4, generator=GENERATOR)
RIGHT = torch.tensor([True, False, True])


def derivative(objective, logp=LOGP):
    """d / dlogp of an objective of logp, times the normaliser of eq. 5: the 1/|o| of the row and the mean over three rows."""
    leaf = logp.clone().requires_grad_()
    aggregate(objective(leaf), MASK, "sequence_mean").backward()
    return leaf.grad * 3 * MASK.sum(1, keepdim=True)


def check(objective, coefficient):
    torch.testing.assert_close(derivative(objective), torch.where(MASK, coefficient, 0))
    assert not coefficient.requires_grad and coefficient.shape == MASK.shape


def test_sft():
    check(lambda logp: logp, sft_coefficient(LOGP))


@pytest.mark.parametrize("coefficient", [rft_coefficient, online_rft_coefficient])
@pytest.mark.parametrize("right", [RIGHT, RIGHT.long(), RIGHT.float()])
def test_rft(coefficient, right):
    """Right answers have the likelihood for their objective, wrong ones none at all: nothing pushes them down, which is what GRPO adds."""
    check(lambda logp: torch.where(RIGHT[:, None], logp, 0), coefficient(right, LOGP))


def test_ppo():
    """At pi = pi_old the surrogate is the policy gradient, clip or no clip; one step later it is not."""
    check(lambda logp: clipped_surrogate(logp, LOGP, ADV), ppo_coefficient(ADV))
    later = derivative(lambda logp: clipped_surrogate(logp, LOGP - 0.5, ADV))               # ratio e^.5 = 1.65
    torch.testing.assert_close(later, torch.where(MASK & (ADV < 0), ADV * 1.6487213, 0))


@pytest.mark.parametrize("kl_coef", [0.0, 0.04, 1.0])
def test_grpo(kl_coef):
    check(lambda logp: clipped_surrogate(logp, LOGP, ADV) - kl_coef * kl.k3(logp, REF), grpo_coefficient(ADV, LOGP, REF, kl_coef=kl_coef))


def test_grpo_hand_numbers():
    """ref / pi 1/2, 1, 2, 0 at beta .04: 1 + .04 (-1/2, 0, 1, -1). A token that the reference likes better is pulled up, also where A is 0."""
    zero, ref_logp = torch.zeros(1, 4), torch.tensor([[0.5, 1.0, 2.0, 0.0]]).log()
    torch.testing.assert_close(grpo_coefficient(zero + 1, zero, ref_logp), torch.tensor([[0.98, 1.0, 1.04, 0.96]]))
    torch.testing.assert_close(grpo_coefficient(zero, zero, ref_logp, kl_coef=1.0), torch.tensor([[-0.5, 0.0, 1.0, -1.0]]))


@pytest.mark.parametrize("log_ratio", [100.0, 30.0, -30.0, -100.0])
def test_grpo_far_away_is_still_the_derivative(log_ratio):
    """k3 is held above ref / pi = e^20, with gradient 0: there the pull of the loss is A alone. A coefficient that went on would say 1.9e7."""
    ref_logp = LOGP + log_ratio
    check(lambda logp: clipped_surrogate(logp, LOGP, ADV) - 0.04 * kl.k3(logp, ref_logp), grpo_coefficient(ADV, LOGP, ref_logp))


def summed(logp):
    return torch.where(MASK, logp, 0).sum(1)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo(beta):
    """Of a pair every token of the chosen answer has +GC, every token of the rejected one -GC; the DPO paper's eq. 8 has beta in front."""
    chosen, rejected = LOGP.clone().requires_grad_(), ADV.clone().requires_grad_()
    ref_chosen, ref_rejected = summed(REF), summed(REF - 1)
    (-dpo_loss(summed(chosen), summed(rejected), ref_chosen, ref_rejected, beta=beta)).sum().backward()
    coefficient = dpo_coefficient(summed(chosen), summed(rejected), ref_chosen, ref_rejected, beta=beta)
    assert not coefficient.requires_grad and ((coefficient > 0) & (coefficient < 1)).all()
    torch.testing.assert_close(chosen.grad / beta, torch.where(MASK, coefficient[:, None], 0))
    torch.testing.assert_close(rejected.grad / beta, torch.where(MASK, -coefficient[:, None], 0))


@pytest.mark.parametrize("chosen, rejected, ref_chosen, ref_rejected, beta, expected", [
    (2.0, -1.0, 0.0, 0.0, 0.1, 0.425557),          # 1 / (1 + e^.3) = 1 / 2.349859
    (-1.0, 2.0, 0.0, 0.0, 0.1, 0.574443),          # the pair the wrong way round counts more
    (5.0, 3.0, 5.0, 3.0, 0.1, 0.5),                # at the reference
    (0.0, 0.0, 1.0986123, 0.0, 1.0, 0.75),         # the reference had the chosen 3 times likelier: 3 / (1 + 3)
    (100.0, -100.0, 0.0, 0.0, 1.0, 0.0), (-100.0, 100.0, 0.0, 0.0, 1.0, 1.0),
])
def test_dpo_hand_numbers(chosen, rejected, ref_chosen, ref_rejected, beta, expected):
    pair = [torch.tensor([x]) for x in (chosen, rejected, ref_chosen, ref_rejected)]
    assert dpo_coefficient(*pair, beta=beta).item() == pytest.approx(expected, abs=1e-6)


def test_online_rft_differs_in_the_data_only():
    """The two rows of the paper's table have one coefficient."""
    assert torch.equal(rft_coefficient(RIGHT, LOGP), online_rft_coefficient(RIGHT, LOGP))
    assert {name for name, x in vars(coefficients).items() if name.endswith("_coefficient") and callable(x)} == {
        "sft_coefficient", "rft_coefficient", "online_rft_coefficient", "dpo_coefficient", "ppo_coefficient", "grpo_coefficient"}


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match=r"correct \(3, 4\) beside logp \(3, 4\): expected \(B,\) beside \(B, T\)"):
        rft_coefficient(MASK, LOGP)
    with pytest.raises(ValueError, match=r"adv \(3,\).*expected"):
        grpo_coefficient(torch.zeros(3), torch.zeros(3, 3), torch.zeros(3, 3))
    for i in range(4):
        with pytest.raises(ValueError, match=r"\(3, 3\).*expected"):
            dpo_coefficient(*[torch.zeros(3, 3) if j == i else torch.zeros(3) for j in range(4)])


def test_the_table_names_every_method():
    """DeepSeekMath, appendix A.1: six methods. A = 1, beta = 0.04, ref / pi = 1/2: 0.98."""
    assert list(gradient_coefficient) == ["SFT", "RFT", "online RFT", "DPO", "PPO", "GRPO"]
    half = torch.full((1, 1), 0.5).log()
    assert gradient_coefficient["GRPO"](torch.ones(1, 1), torch.zeros(1, 1), half, kl_coef=0.04).item() == pytest.approx(0.98)
