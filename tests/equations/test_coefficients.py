"""Tests of minirl.equations.coefficients: each is the derivative of its method's own loss."""

import pytest
import torch

from minirl.equations import coefficients, kl
from minirl.equations.coefficients import (
    dpo_coefficient,
    gradient_coefficient,
    grpo_coefficient,
    online_rft_coefficient,
    ppo_coefficient,
    rft_coefficient,
    sft_coefficient,
)
from minirl.equations.objectives import clipped_surrogate
from minirl.equations.preferences import dpo_loss
from minirl.equations.reduce import aggregate

# 2, 3 and 1 tokens after a prompt
MASK = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0, 0]]).bool()
GENERATOR = torch.Generator().manual_seed(0)
LOGP = -torch.rand(3, 4, generator=GENERATOR) - 0.1
REF = -torch.rand(3, 4, generator=GENERATOR) - 0.1
ADV = torch.randn(3, 4, generator=GENERATOR)
RIGHT = torch.tensor([True, False, True])


def derivative(objective, logp=LOGP):
    """d / dlogp of an objective of logp, times the normaliser of eq. 5: the 1/|o| of the row and
    the mean over three rows."""
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
    """The objective is the likelihood of right answers. Nothing pushes wrong ones down, which is
    what GRPO adds."""
    check(lambda logp: torch.where(RIGHT[:, None], logp, 0), coefficient(right, LOGP))


def test_ppo():
    """At pi = pi_old the surrogate is the policy gradient, clip or no clip; one step later it is
    not."""
    check(lambda logp: clipped_surrogate(logp, LOGP, ADV), ppo_coefficient(ADV))
    later = derivative(lambda logp: clipped_surrogate(logp, LOGP - 0.5, ADV))  # ratio e^.5 = 1.65
    torch.testing.assert_close(later, torch.where(MASK & (ADV < 0), ADV * 1.6487213, 0))


@pytest.mark.parametrize("kl_coef", [0.0, 0.04, 1.0])
def test_grpo(kl_coef):
    def objective(logp):
        return clipped_surrogate(logp, LOGP, ADV) - kl_coef * kl.k3(logp, REF)

    check(objective, grpo_coefficient(ADV, LOGP, REF, kl_coef=kl_coef))


def test_grpo_hand_numbers():
    """ref / pi 1/2, 1, 2, 0 at beta .04: 1 + .04 (-1/2, 0, 1, -1).

    A token that the reference likes better is pulled up, even where A is 0.
    """
    zero, ref_logp = torch.zeros(1, 4), torch.tensor([[0.5, 1.0, 2.0, 0.0]]).log()
    coefficient = grpo_coefficient(zero + 1, zero, ref_logp)
    torch.testing.assert_close(coefficient, torch.tensor([[0.98, 1.0, 1.04, 0.96]]))
    coefficient = grpo_coefficient(zero, zero, ref_logp, kl_coef=1.0)
    torch.testing.assert_close(coefficient, torch.tensor([[-0.5, 0.0, 1.0, -1.0]]))


@pytest.mark.parametrize("log_ratio", [100.0, 30.0, -30.0, -100.0])
def test_grpo_far_away_is_still_the_derivative(log_ratio):
    """k3 is capped above ref / pi = e^20, with gradient 0: there the gradient of the loss is A
    alone. Without the cap the coefficient would be 1.9e7."""
    ref_logp = LOGP + log_ratio

    def objective(logp):
        return clipped_surrogate(logp, LOGP, ADV) - 0.04 * kl.k3(logp, ref_logp)

    check(objective, grpo_coefficient(ADV, LOGP, ref_logp))


def summed(logp):
    return torch.where(MASK, logp, 0).sum(1)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo(beta):
    """In a pair every token of the chosen answer has +GC, every token of the rejected one -GC.

    The DPO paper's eq. 8 has beta in front.
    """
    chosen, rejected = LOGP.clone().requires_grad_(), ADV.clone().requires_grad_()
    pair = summed(chosen), summed(rejected), summed(REF), summed(REF - 1)
    (-dpo_loss(*pair, beta=beta)).sum().backward()
    coefficient = dpo_coefficient(*pair, beta=beta)
    assert not coefficient.requires_grad and ((coefficient > 0) & (coefficient < 1)).all()
    per_token = torch.where(MASK, coefficient[:, None], 0)
    torch.testing.assert_close(chosen.grad / beta, per_token)
    torch.testing.assert_close(rejected.grad / beta, -per_token)


@pytest.mark.parametrize("chosen, rejected, ref_chosen, ref_rejected, beta, expected", [
    (2.0, -1.0, 0.0, 0.0, 0.1, 0.425557),  # 1 / (1 + e^.3) = 1 / 2.349859
    (-1.0, 2.0, 0.0, 0.0, 0.1, 0.574443),  # the pair the wrong way round counts more
    (5.0, 3.0, 5.0, 3.0, 0.1, 0.5),  # at the reference
    (0.0, 0.0, 1.0986123, 0.0, 1.0, 0.75),  # the reference liked the chosen 3 times as much: 3/4
    (100.0, -100.0, 0.0, 0.0, 1.0, 0.0),
    (-100.0, 100.0, 0.0, 0.0, 1.0, 1.0),
])
def test_dpo_hand_numbers(chosen, rejected, ref_chosen, ref_rejected, beta, expected):
    pair = [torch.tensor([x]) for x in (chosen, rejected, ref_chosen, ref_rejected)]
    assert dpo_coefficient(*pair, beta=beta).item() == pytest.approx(expected, abs=1e-6)


def test_online_rft_differs_in_the_data_only():
    """The two rows of the paper's table have one coefficient."""
    assert torch.equal(rft_coefficient(RIGHT, LOGP), online_rft_coefficient(RIGHT, LOGP))
    functions = {name for name, x in vars(coefficients).items()
                 if name.endswith("_coefficient") and callable(x)}
    assert functions == {
        "sft_coefficient", "rft_coefficient", "online_rft_coefficient", "dpo_coefficient",
        "ppo_coefficient", "grpo_coefficient"}


def test_bad_arguments_raise():
    message = r"correct \(3, 4\) beside logp \(3, 4\): expected \(B,\) beside \(B, T\)"
    with pytest.raises(ValueError, match=message):
        rft_coefficient(MASK, LOGP)
    with pytest.raises(ValueError, match=r"adv \(3,\).*expected"):
        grpo_coefficient(torch.zeros(3), torch.zeros(3, 3), torch.zeros(3, 3))
    for i in range(4):
        pair = [torch.zeros(3, 3) if j == i else torch.zeros(3) for j in range(4)]
        with pytest.raises(ValueError, match=r"\(3, 3\).*expected"):
            dpo_coefficient(*pair)


def test_the_table_names_every_method():
    """DeepSeekMath, appendix A.1: six methods. A = 1, beta = 0.04, ref / pi = 1/2: 0.98."""
    assert list(gradient_coefficient) == ["SFT", "RFT", "online RFT", "DPO", "PPO", "GRPO"]
    half, zero = torch.full((1, 1), 0.5).log(), torch.zeros(1, 1)
    coefficient = gradient_coefficient["GRPO"](zero + 1, zero, half, kl_coef=0.04)
    assert coefficient.item() == pytest.approx(0.98)


@pytest.mark.parametrize("function, inputs", [
    (ppo_coefficient, (ADV,)), (grpo_coefficient, (ADV, LOGP, REF)),
    (dpo_coefficient, (LOGP[:, 0], LOGP[:, 1], REF[:, 0], REF[:, 1])),
])
def test_a_coefficient_is_a_number(function, inputs):
    """None of its inputs gets a gradient through it, whatever they ask for."""
    options = {"kl_coef": 0.1} if function is grpo_coefficient else {}
    for i in range(len(inputs)):
        asked = [x.clone().requires_grad_(i == j) for j, x in enumerate(inputs)]
        assert not function(*asked, **options).requires_grad
