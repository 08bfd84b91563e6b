"""Gradient coefficients: six training methods as one formula, with one weight that differs.

    ∇J = E[ 1/|o| Σ_t GC(q, o, t) ∇ log π(o_t | q, o_{<t}) ]

(DeepSeekMath, arXiv:2402.03300, eq. 5). The methods and their coefficients:

    method       who answers the prompts   GC
    SFT          people                    1
    RFT          the SFT model             1 if right, else 0
    online RFT   the policy                1 if right, else 0
    DPO          the SFT model, pairs      ±σ(β h_l - β h_w)
    PPO          the policy                A_t
    GRPO         the policy                A_i + β (ref/π - 1)

tests/equations/test_coefficients.py derives each with autograd: it is the derivative of the
method's own loss with respect to log π.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.checks import check_same_shape
from minirl.equations.kl import max_log_ratio
from minirl.equations.preferences import implicit_reward


def sft_coefficient(logp: Tensor) -> Tensor:
    r"""Supervised fine-tuning: every token of a demonstration counts the same.

    Equation   GC = 1
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.1, eq. 7.
    Shapes     logp: (B, T) -> (B, T)

    >>> sft_coefficient(torch.zeros(1, 2))
    tensor([[1., 1.]])
    """
    return torch.ones_like(logp)


def rft_coefficient(correct: Tensor, logp: Tensor) -> Tensor:
    r"""Rejection-sampling fine-tuning: SFT on the right ones of the SFT model's own answers.

    Equation   GC = 1{o is right}
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.2, eq. 10.
    Shapes     correct: (B,), logp: (B, T) -> (B, T)
    Raises     ValueError if shapes do not fit.

    >>> rft_coefficient(torch.tensor([True, False]), torch.zeros(2, 2))
    tensor([[1., 1.],
            [0., 0.]])
    """
    if logp.dim() != 2 or correct.shape != logp.shape[:1]:
        raise ValueError(f"correct {tuple(correct.shape)} beside logp {tuple(logp.shape)}: "
                         "expected (B,) beside (B, T)")
    return correct.to(logp.dtype)[:, None].expand_as(logp)


def online_rft_coefficient(correct: Tensor, logp: Tensor) -> Tensor:
    r"""Online RFT: the coefficient of RFT, but the answers are the policy's own.

    Equation   GC = 1{o is right},   o ~ π
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.3, eq. 12.
    Shapes     correct: (B,), logp: (B, T) -> (B, T)
    Raises     ValueError if shapes do not fit.

    >>> online_rft_coefficient(torch.tensor([True]), torch.zeros(1, 2))
    tensor([[1., 1.]])
    """
    return rft_coefficient(correct, logp)


def dpo_coefficient(
    logp_chosen: Tensor,
    logp_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    r"""DPO: a pair counts for more, the further its implicit rewards are the wrong way round.

    Equation   GC = σ(β h_l - β h_w),   h = log(π / ref)                      (σ: the sigmoid)
               plus for the chosen completion, minus for the rejected one
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.4, eq. 15; DPO, arXiv:2305.18290, eq. 8,
               which has β in front.
    Shapes     four times (N,), sums over tokens -> (N,)
    Raises     ValueError if shapes differ, or if beta is not positive.

    >>> zero = torch.zeros(1)
    >>> dpo_coefficient(torch.tensor([2.0]), torch.tensor([-1.0]), zero, zero)  # σ(-0.3)
    tensor([0.4256])
    """
    chosen = implicit_reward(logp_chosen.detach(), ref_chosen.detach(), beta=beta)
    rejected = implicit_reward(logp_rejected.detach(), ref_rejected.detach(), beta=beta)
    check_same_shape(chosen=chosen, rejected=rejected)
    return torch.sigmoid(rejected - chosen)


def ppo_coefficient(adv: Tensor) -> Tensor:
    r"""PPO: the advantage, in the first step of an update. There π = π_old, and nothing is clipped.

    Equation   GC = A_t
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.5, eq. 18.
    Shapes     adv: (B, T) -> (B, T)

    >>> ppo_coefficient(torch.tensor([[0.5, -1.0]]))
    tensor([[ 0.5000, -1.0000]])
    """
    return adv.detach().clone()


def grpo_coefficient(
    adv: Tensor, logp: Tensor, ref_logp: Tensor, *, kl_coef: float = 0.04
) -> Tensor:
    r"""GRPO at π = π_old: the group's advantage, and the pull to the reference of k3 as a loss.

    Equation   GC = A_i + β (ref/π - 1)                                       (kl_coef is β)
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.6, eq. 21; β = 0.04, section 4.2.
    Shapes     adv, logp, ref_logp: (B, T) -> (B, T)
    Raises     ValueError if shapes differ.

    >>> logp, ref_logp = torch.tensor([[1.0]]).log(), torch.tensor([[0.5]]).log()
    >>> grpo_coefficient(torch.ones(1, 1), logp, ref_logp)  # 1 + 0.04 (1/2 - 1)
    tensor([[0.9800]])
    """
    check_same_shape(adv=adv, logp=logp, ref_logp=ref_logp)
    log_ratio = ref_logp - logp
    capped = log_ratio > max_log_ratio(logp)  # where k3 is capped, and does not pull
    pull = torch.where(capped, 0, torch.expm1(log_ratio))
    return (adv + kl_coef * pull).detach()


# The table above, as functions: gradient_coefficient["GRPO"](adv, logp, ref_logp, kl_coef=0.04)
gradient_coefficient = {
    "SFT": sft_coefficient,
    "RFT": rft_coefficient,
    "online RFT": online_rft_coefficient,
    "DPO": dpo_coefficient,
    "PPO": ppo_coefficient,
    "GRPO": grpo_coefficient,
}
