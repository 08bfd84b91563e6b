"""Losses from comparisons, one value per pair: for reward models, and for policies without one.

    bradley_terry_loss, ranking_loss     scores of a reward model
    dpo_loss, ipo_loss, simpo_loss       log-probs of a chosen and a rejected completion
    kto_loss                             log-probs of single completions, each good or bad

All are minimised. w is the chosen ("winning") and l the rejected ("losing") completion, σ the
sigmoid, h = log(π / ref). A completion's log-prob is the sum over its tokens,
(token_logprobs * mask).sum(1), unless a docstring says mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minirl.equations.checks import check_constants, check_positive, check_same_shape


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None) -> Tensor:
    r"""Reward-model loss of one comparison. Minimise.

    Equation   -log σ(r(x, y_w) - r(x, y_l) - margin)
    Paper      Stiennon et al., arXiv:2009.01325, section 3.4; Bradley and Terry 1952. The margin:
               Llama 2, arXiv:2307.09288, eq. 2.
    Shapes     chosen, rejected, margin: (N,) -> (N,)
    Gradient   through both scores: ∓ (1 - probability of the observed order).
    Raises     ValueError if shapes differ or are not (N,).
    See        ranking_loss, for K answers to one prompt.

    >>> bradley_terry_loss(torch.tensor([1.0986123]), torch.tensor([0.0]))  # odds 3 : 1, -log 3/4
    tensor([0.2877])
    """
    _check_one_each(chosen=chosen, rejected=rejected)
    if margin is None:
        return -F.logsigmoid(chosen - rejected)
    _check_one_each(chosen=chosen, margin=margin)
    return -F.logsigmoid(chosen - rejected - margin)


def ranking_loss(scores: Tensor) -> Tensor:
    r"""InstructGPT's reward-model loss: all pairs of K ranked answers, as one element. Minimise.

    Equation   -1 / C(K, 2) Σ_{i ranked before j} log σ(r_i - r_j)
    Paper      InstructGPT, arXiv:2203.02155, section 3.5, eq. 1; K from 4 to 9.
    Shapes     scores: (P, K), best first -> (P,)
    Gradient   through scores. Each answer needs one forward pass. InstructGPT found that a model
               overfits within an epoch if pairs are shuffled as though they were independent.
    Raises     ValueError if scores is not (P, K) with K ≥ 2.

    >>> ranking_loss(torch.tensor([[2.0, 1.0, 0.0, -1.0]]))  # (3 * .3133 + 2 * .1269 + .0486) / 6
    tensor([0.2070])
    """
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores is {tuple(scores.shape)}: expected (P, K) with at least two "
                         "answers per prompt, best first")
    better, worse = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1)
    return -F.logsigmoid(scores[:, better] - scores[:, worse]).mean(1)


def implicit_reward(logp: Tensor, ref_logp: Tensor, *, beta: float = 0.1) -> Tensor:
    r"""The reward for which a policy is already optimal under a KL penalty, up to a constant.

    Equation   r(x, y) = β log(π(y|x) / ref(y|x)) + β log Z(x)           (this is the first term)
    Paper      DPO, arXiv:2305.18290, section 4, eq. 5. The converse, π ∝ ref exp(r / β), is eq. 4.
    Shapes     logp, ref_logp: the same -> the same
    Gradient   through logp.
    Raises     ValueError if shapes differ, if ref_logp requires grad, or if beta is not positive.
    See        inference_time.reward_guided, the converse.

    >>> implicit_reward(torch.tensor([-1.0]), torch.tensor([-3.0]))  # 0.1 * 2
    tensor([0.2000])
    """
    check_same_shape(logp=logp, ref_logp=ref_logp)
    check_constants(ref_logp=ref_logp)
    check_positive(beta=beta)
    return beta * (logp - ref_logp)


def dpo_loss(
    logp_chosen: Tensor,
    logp_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    r"""Direct preference optimisation: the Bradley-Terry loss of the implicit rewards. Minimise.

    Equation   -log σ(β (h_w - h_l)),   h = log(π / ref)
    Paper      DPO, arXiv:2305.18290, section 4, eq. 7.
    Shapes     four times (N,), each the sum over a completion's tokens -> (N,)
    Gradient   through the policy's log-probs: ∓ β σ(β (h_l - h_w)) (eq. 8).
    Raises     ValueError if shapes differ or are not (N,), if a reference requires grad, or if beta
               is not positive.
    See        coefficients.dpo_coefficient, the weight in eq. 8; label_smoothed_dpo_loss.

    At π = ref the loss is log 2.

    >>> zero = torch.zeros(1)
    >>> dpo_loss(torch.tensor([2.0]), torch.tensor([-1.0]), zero, zero)  # -log σ(0.3)
    tensor([0.5544])
    """
    difference = _difference(logp_chosen, logp_rejected, ref_chosen, ref_rejected, beta)  # (N,)
    return -F.logsigmoid(beta * difference)


def label_smoothed_dpo_loss(
    logp_chosen: Tensor,
    logp_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
    smoothing: float = 0.1,
) -> Tensor:
    r"""Conservative DPO: assume that a share of the labels is the wrong way round. Minimise.

    Equation   -(1-ε) log σ(β (h_w - h_l)) - ε log σ(-β (h_w - h_l))           (smoothing is ε)
    Paper      Mitchell 2023, "A note on DPO with noisy preferences" (cDPO). TRL's "robust" is
               another loss: its ε terms have the other sign, over 1 - 2ε.
    Shapes     as dpo_loss
    Gradient   as dpo_loss, and zero where the odds are (1-ε) : ε.
    Raises     ValueError as dpo_loss, or if smoothing is outside [0, 1/2).

    >>> zero, chosen, rejected = torch.zeros(1), torch.tensor([2.0]), torch.tensor([-1.0])
    >>> label_smoothed_dpo_loss(chosen, rejected, zero, zero)  # 0.9 * 0.5544 + 0.1 * 0.8544
    tensor([0.5844])
    """
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"smoothing is {smoothing}: expected a share of wrong labels in [0, 1/2)")
    margin = beta * _difference(logp_chosen, logp_rejected, ref_chosen, ref_rejected, beta)
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def ipo_loss(
    logp_chosen: Tensor,
    logp_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    r"""Identity preference optimisation: pull the difference to a finite target. Minimise.

    Equation   (h_w - h_l - 1/(2β))²
    Paper      IPO, arXiv:2310.12036, section 5, eq. 17 (β is its τ).
    Erratum    The paper's h is a sum over tokens, as here. TRL's DPO and CPO trainers average over
               tokens: pass means to get their number.
    Shapes     as dpo_loss
    Gradient   through the policy's log-probs: ±2 (h_w - h_l - 1/(2β)).
    Raises     ValueError as dpo_loss.

    >>> zero = torch.zeros(1)
    >>> ipo_loss(torch.tensor([2.0]), torch.tensor([-1.0]), zero, zero)  # (3 - 5)²
    tensor([4.])
    """
    difference = _difference(logp_chosen, logp_rejected, ref_chosen, ref_rejected, beta)  # (N,)
    return (difference - 1 / (2 * beta)).square()


def simpo_loss(
    mean_logp_chosen: Tensor,
    mean_logp_rejected: Tensor,
    *,
    beta: float = 2.0,
    gamma_over_beta: float = 0.5,
) -> Tensor:
    r"""Simple preference optimisation: no reference, log-probs per token, a margin. Minimise.

    Equation   -log σ(β (m_w - m_l) - γ) = -log σ(β (m_w - m_l - γ/β))
               m = 1/|y| log π(y|x)                       (mean_logp is m)
    Paper      SimPO, arXiv:2405.14734, section 2.3, eq. 6; β from 2 to 2.5, γ/β about 0.5.
    Erratum    The paper gives the margin as γ. This argument is the ratio γ/β, as in the authors'
               code; TRL's simpo_gamma is γ.
    Shapes     twice (N,), each the mean over a completion's tokens -> (N,)
    Gradient   through both.
    Raises     ValueError if shapes differ or are not (N,), or if beta is not positive.

    >>> simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.5]))  # 2 (0.5 - 0.5) = 0: log 2
    tensor([0.6931])
    """
    _check_one_each(mean_logp_chosen=mean_logp_chosen, mean_logp_rejected=mean_logp_rejected)
    check_positive(beta=beta)
    return -F.logsigmoid(beta * (mean_logp_chosen - mean_logp_rejected - gamma_over_beta))


def kto_loss(
    logp: Tensor,
    ref_logp: Tensor,
    desirable: Tensor,
    *,
    kl: float | Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    r"""Kahneman-Tversky optimisation: single completions, each good or bad. Minimise.

    Equation   λ_D (1 - σ(β (h - z)))      where desirable
               λ_U (1 - σ(β (z - h)))      where not;   z = max(0, KL(π || ref))
               (desirable_weight is λ_D, undesirable_weight λ_U, kl the estimate of the KL)
    Paper      KTO, arXiv:2402.01306, section 4.1, eq. 8. z is estimated from completions paired
               with other prompts, and has no gradient.
    Shapes     logp, ref_logp: (N,), sums over tokens, desirable: (N,) bool, kl: scalar -> (N,)
    Gradient   through logp.
    Raises     ValueError if shapes differ or are not (N,), if ref_logp requires grad, if beta is
               not positive, or if desirable holds anything but yes and no (1 and 0).

    >>> zero = torch.zeros(2)
    >>> kto_loss(zero, zero, torch.tensor([True, False]), kl=0.0)
    tensor([0.5000, 0.5000])
    """
    _check_one_each(logp=logp, ref_logp=ref_logp, desirable=desirable)
    if not bool(((desirable == 0) | (desirable == 1)).all()):
        raise ValueError(f"desirable holds {desirable.unique().tolist()[:4]}: expected True for "
                         "good and False for bad; of labels 1 and -1 make them with labels > 0")
    check_positive(beta=beta)
    check_constants(ref_logp=ref_logp)
    z = torch.as_tensor(kl, dtype=logp.dtype, device=logp.device).detach().clamp(min=0)
    if z.dim():
        raise ValueError(f"kl is {tuple(z.shape)}: expected a scalar, one number for the batch")
    gain = beta * (logp - ref_logp - z)  # (N,)
    good = desirable_weight * torch.sigmoid(-gain)  # 1 - σ(x) = σ(-x)
    bad = undesirable_weight * torch.sigmoid(gain)
    return torch.where(desirable.bool(), good, bad)


def _difference(
    logp_chosen: Tensor,
    logp_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
) -> Tensor:
    """Return h_w - h_l, (N,), after the checks that all the losses of a pair share."""
    _check_one_each(logp_chosen=logp_chosen, logp_rejected=logp_rejected,
                    ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    check_constants(ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    check_positive(beta=beta)
    return (logp_chosen - ref_chosen) - (logp_rejected - ref_rejected)


def _check_one_each(**tensors: Tensor) -> None:
    """Raise ValueError unless all are (N,): from (B, T) each token would get a loss of its own."""
    check_same_shape(**tensors)
    name, x = next(iter(tensors.items()))
    if x.dim() != 1:
        raise ValueError(f"{name} is {tuple(x.shape)}: expected one number per completion, (N,); "
                         "add up a completion's tokens first, (token_logprobs * mask).sum(1)")
