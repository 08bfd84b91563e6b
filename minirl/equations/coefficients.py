"""Gradient coefficients: six training methods as one formula, in which only the weight of a token's score differs.

    grad J = E[ 1/|o| sum_t GC(q, o, t) grad log pi(o_t | q, o_<t) ]                      DeepSeekMath, arXiv:2402.03300, eq. 5

    method       who answered            GC
    SFT          people                  1
    RFT          the SFT model           1 if right, else 0
    online RFT   the policy              1 if right, else 0
    DPO          the SFT model, pairs    +-sigmoid(beta h_l - beta h_w)
    PPO          the policy              A_t
    GRPO         the policy              A_i + beta (ref / pi - 1)

tests/equations/test_coefficients.py gets each of them from autograd, as the derivative of the method's own loss with respect to log pi.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.kl import max_log_ratio
from minirl.equations.preferences import implicit_reward


def sft_coefficient(logp: Tensor) -> Tensor:
    r"""Supervised fine-tuning: every token of a demonstration counts the same.

    Equation   GC = 1
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.1, eq. 7.
    Shapes     logp (B, T) -> (B, T)

    >>> sft_coefficient(torch.zeros(1, 2))
    tensor([[1., 1.]])
    """
    return torch.ones_like(logp)


def rft_coefficient(correct: Tensor, logp: Tensor) -> Tensor:
    r"""Rejection-sampling fine-tuning: SFT on those of the SFT model's own answers that are right.

    Equation   GC = 1{o is right}
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.2, eq. 10.
    Shapes     correct (B,), logp (B, T) -> (B, T)
    Raises     ValueError if shapes do not fit.

    >>> rft_coefficient(torch.tensor([True, False]), torch.zeros(2, 2))
    tensor([[1., 1.],
            [0., 0.]])
    """
    if logp.dim() != 2 or correct.shape != logp.shape[:1]:
        raise ValueError(f"correct {tuple(correct.shape)} beside logp {tuple(logp.shape)}: (B,) beside (B, T) is wanted")
    return correct.to(logp.dtype)[:, None].expand_as(logp)


def online_rft_coefficient(correct: Tensor, logp: Tensor) -> Tensor:
    r"""Online RFT: the same coefficient, but the answers are the policy's own. Only the source of the data differs.

    Equation   GC = 1{o is right},   o ~ pi
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.3, eq. 12.
    Shapes     correct (B,), logp (B, T) -> (B, T)
    Raises     ValueError if shapes do not fit.

    >>> online_rft_coefficient(torch.tensor([True]), torch.zeros(1, 2))
    tensor([[1., 1.]])
    """
    return rft_coefficient(correct, logp)


def dpo_coefficient(logp_chosen: Tensor, logp_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    r"""DPO: a pair counts as much as the implicit rewards get it wrong. Plus for the chosen, minus for the rejected completion.

    Equation   GC = sigmoid(beta h_l - beta h_w),   h = log(pi / ref)
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.4, eq. 15; DPO, arXiv:2305.18290, eq. 8, which has beta in front.
    Shapes     four times (N,), sums over tokens -> (N,)
    Raises     ValueError if shapes differ, or if beta is not positive.

    >>> zero = torch.zeros(1)
    >>> dpo_coefficient(torch.tensor([2.0]), torch.tensor([-1.0]), zero, zero)            # sigmoid(-0.3)
    tensor([0.4256])
    """
    chosen, rejected = (implicit_reward(logp.detach(), ref.detach(), beta=beta) for logp, ref in ((logp_chosen, ref_chosen), (logp_rejected, ref_rejected)))
    if chosen.shape != rejected.shape:
        raise ValueError(f"chosen {tuple(chosen.shape)} and rejected {tuple(rejected.shape)}: the same shape is wanted")
    return torch.sigmoid(rejected - chosen)


def ppo_coefficient(adv: Tensor) -> Tensor:
    r"""PPO: the advantage. It holds for the first step of an update, where pi is still pi_old and nothing is clipped.

    Equation   GC = A_t
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.5, eq. 18.
    Shapes     adv (B, T) -> (B, T)

    >>> ppo_coefficient(torch.tensor([[0.5, -1.0]]))
    tensor([[ 0.5000, -1.0000]])
    """
    return adv.detach().clone()


def grpo_coefficient(adv: Tensor, logp: Tensor, ref_logp: Tensor, *, kl_coef: float = 0.04) -> Tensor:
    r"""GRPO: the group's advantage, and a pull to the reference that k3 as a loss gives. At pi = pi_old.

    Equation   GC = A_i + beta (ref / pi - 1)
    Paper      DeepSeekMath, arXiv:2402.03300, appendix A.1.6, eq. 21; beta 0.04, section 4.2.
    Shapes     adv, logp, ref_logp: (B, T) -> (B, T)
    Raises     ValueError if shapes differ.

    >>> grpo_coefficient(torch.ones(1, 1), torch.tensor([[1.0]]).log(), torch.tensor([[0.5]]).log())      # 1 + 0.04 (1/2 - 1)
    tensor([[0.9800]])
    """
    if not adv.shape == logp.shape == ref_logp.shape:
        raise ValueError(f"adv {tuple(adv.shape)}, logp {tuple(logp.shape)}, ref_logp {tuple(ref_logp.shape)}: the same shape is wanted")
    log_ratio = ref_logp - logp
    held = log_ratio > max_log_ratio(logp)                                  # there k3 does not pull
    return (adv + kl_coef * torch.where(held, 0, torch.expm1(log_ratio))).detach()


# The table above, as functions: gradient_coefficient["GRPO"](adv, logp, ref_logp, kl_coef=0.04)
gradient_coefficient = {"SFT": sft_coefficient, "RFT": rft_coefficient, "online RFT": online_rft_coefficient, "DPO": dpo_coefficient, "PPO": ppo_coefficient,
                        "GRPO": grpo_coefficient}
