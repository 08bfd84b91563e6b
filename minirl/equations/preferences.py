"""Learning from comparisons: reward models from rankings, and policies from pairs without a reward model. All are minimised, one value per pair.

    bradley_terry_loss, ranking_loss     scores of a reward model
    dpo_loss, ipo_loss, simpo_loss       log-probs of a chosen and a rejected completion
    kto_loss                             log-probs of single completions, each good or bad

A completion's log-prob is the sum over its tokens, (token_logprobs * mask).sum(1), unless a docstring says mean. h = log(pi / ref).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None) -> Tensor:
    r"""Reward-model loss of one comparison. Minimise.

    Equation   -log sigmoid(r(x, y_w) - r(x, y_l) - margin)
    Paper      Stiennon et al., arXiv:2009.01325, section 3.4; Bradley and Terry 1952; margin: Llama 2, arXiv:2307.09288, eq. 2.
    Shapes     chosen, rejected, margin (N,) -> (N,)
    Gradient   through both scores: -+ (1 - probability of the observed order).
    Raises     ValueError if shapes differ or are not (N,).
    See        ranking_loss, for K answers to one prompt.

    >>> bradley_terry_loss(torch.tensor([1.0986123]), torch.tensor([0.0]))                # odds 3 : 1, -log 3/4
    tensor([0.2877])
    """
    margins = {} if margin is None else {"margin": margin}
    _one_each(chosen=chosen, rejected=rejected, **margins)
    return -F.logsigmoid(chosen - rejected - (0 if margin is None else margin))


def ranking_loss(scores: Tensor) -> Tensor:
    r"""InstructGPT's reward-model loss: the mean over all pairs of K ranked answers, as one element of the batch. Minimise.

    Equation   -1 / C(K, 2) sum_{i ranked before j} log sigmoid(r_i - r_j)
    Paper      InstructGPT, arXiv:2203.02155, section 3.5, eq. 1; K from 4 to 9.
    Shapes     scores (P, K), best first -> (P,)
    Gradient   through scores. Each answer needs one forward pass; pairs shuffled as if independent let the model overfit within an epoch.
    Raises     ValueError if scores is not (P, K) with K >= 2.

    >>> ranking_loss(torch.tensor([[2.0, 1.0, 0.0, -1.0]]))                               # (3 * 0.3133 + 2 * 0.1269 + 0.0486) / 6
    tensor([0.2070])
    """
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores is {tuple(scores.shape)}: (P, K) with at least two answers per prompt, best first, is wanted")
    better, worse = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1)
    return -F.logsigmoid(scores[:, better] - scores[:, worse]).mean(1)


def implicit_reward(logp: Tensor, ref_logp: Tensor, *, beta: float = 0.1) -> Tensor:
    r"""The reward for which a policy is already the best under a KL penalty, up to a constant per prompt.

    Equation   r(x, y) = beta log(pi(y|x) / ref(y|x)) + beta log Z(x);   this is the first term
    Paper      DPO, arXiv:2305.18290, section 4, eq. 5; the converse, pi proportional to ref exp(r / beta), is eq. 4.
    Shapes     logp, ref_logp: the same -> the same
    Gradient   through logp.
    Raises     ValueError if shapes differ, if ref_logp requires grad, or if beta is not positive.

    >>> implicit_reward(torch.tensor([-1.0]), torch.tensor([-3.0]))
    tensor([0.2000])
    """
    _same_shapes(logp=logp, ref_logp=ref_logp)
    _check_constants(ref_logp=ref_logp)
    _check_positive(beta=beta)
    return beta * (logp - ref_logp)


def dpo_loss(logp_chosen: Tensor, logp_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    r"""Direct preference optimisation: the Bradley-Terry loss of the implicit rewards. Minimise.

    Equation   -log sigmoid(beta (h_w - h_l)),   h = log(pi / ref)
    Paper      DPO, arXiv:2305.18290, section 4, eq. 7.
    Shapes     four times (N,), each the sum over a completion's tokens -> (N,)
    Gradient   through the policy's log-probs: -+ beta sigmoid(beta (h_l - h_w)) (eq. 8). log 2 at pi = ref.
    Raises     ValueError if shapes differ or are not (N,), if a reference requires grad, or if beta
               is not positive.
    See        coefficients.dpo_coefficient, the weight of eq. 8; label_smoothed_dpo_loss.

    >>> zero = torch.zeros(1)
    >>> dpo_loss(torch.tensor([2.0]), torch.tensor([-1.0]), zero, zero)                   # -log sigmoid(0.3)
    tensor([0.5544])
    """
    return -F.logsigmoid(beta * _difference(logp_chosen, logp_rejected, ref_chosen, ref_rejected, beta))


def label_smoothed_dpo_loss(logp_chosen: Tensor, logp_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1,
                            smoothing: float = 0.1) -> Tensor:
    r"""Conservative DPO: a share of the labels is taken to be the wrong way round. Minimise.

    Equation   -(1 - eps) log sigmoid(beta (h_w - h_l)) - eps log sigmoid(-beta (h_w - h_l))
    Paper      Mitchell 2023, "A note on DPO with noisy preferences" (cDPO). TRL's "robust" is another: its eps terms have the other sign, over 1 - 2 eps.
    Shapes     as dpo_loss
    Gradient   as dpo_loss, and zero where the odds are (1 - eps) : eps.
    Raises     ValueError as dpo_loss, or if smoothing is outside [0, 1/2).

    >>> zero = torch.zeros(1)
    >>> label_smoothed_dpo_loss(torch.tensor([2.0]), torch.tensor([-1.0]), zero, zero)    # 0.9 * 0.5544 + 0.1 * 0.8544
    tensor([0.5844])
    """
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"smoothing is {smoothing}: a share of wrong labels in [0, 1/2) is wanted")
    margin = beta * _difference(logp_chosen, logp_rejected, ref_chosen, ref_rejected, beta)
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def ipo_loss(logp_chosen: Tensor, logp_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    r"""Identity preference optimisation: pull the difference to a finite goal instead of ever further. Minimise.

    Equation   (h_w - h_l - 1 / (2 beta))^2
    Paper      IPO, arXiv:2310.12036, section 5, eq. 17 (there beta is tau).
    Erratum    The paper's h is a sum over tokens, as here; TRL's DPO and CPO trainers average over tokens: for their number pass means.
    Shapes     as dpo_loss
    Gradient   through the policy's log-probs: +-2 (h_w - h_l - 1 / (2 beta)).
    Raises     ValueError as dpo_loss.

    >>> zero = torch.zeros(1)
    >>> ipo_loss(torch.tensor([2.0]), torch.tensor([-1.0]), zero, zero)                   # (3 - 5)^2
    tensor([4.])
    """
    return (_difference(logp_chosen, logp_rejected, ref_chosen, ref_rejected, beta) - 1 / (2 * beta)).square()


def simpo_loss(mean_logp_chosen: Tensor, mean_logp_rejected: Tensor, *, beta: float = 2.0, gamma_over_beta: float = 0.5) -> Tensor:
    r"""Simple preference optimisation: no reference, log-probs per token, and a margin. Minimise.

    Equation   -log sigmoid(beta (mean_logp_w - mean_logp_l) - gamma) = -log sigmoid(beta (mean_logp_w - mean_logp_l - gamma_over_beta))
    Paper      SimPO, arXiv:2405.14734, section 2.3, eq. 6; beta 2 to 2.5, gamma / beta about 0.5.
    Erratum    The margin is given as gamma here, as gamma / beta there: TRL's simpo_gamma is gamma, this argument the ratio, as in the authors' code.
    Shapes     twice (N,), each the mean over a completion's tokens -> (N,)
    Gradient   through both.
    Raises     ValueError if shapes differ or are not (N,), or if beta is not positive.

    >>> simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.5]))                            # 2 (0.5 - 0.5) = 0: log 2
    tensor([0.6931])
    """
    _one_each(mean_logp_chosen=mean_logp_chosen, mean_logp_rejected=mean_logp_rejected)
    _check_positive(beta=beta)
    return -F.logsigmoid(beta * (mean_logp_chosen - mean_logp_rejected - gamma_over_beta))


def kto_loss(logp: Tensor, ref_logp: Tensor, desirable: Tensor, *, kl: float | Tensor, beta: float = 0.1, desirable_weight: float = 1.0,
             undesirable_weight: float = 1.0) -> Tensor:
    r"""Kahneman-Tversky optimisation: single completions, good or bad, valued against what the policy gains anywhere. Minimise.

    Equation   lambda_D (1 - sigmoid(beta (h - z))) where desirable,  lambda_U (1 - sigmoid(beta (z - h))) where not;   z = max(0, KL(pi || ref))
    Paper      KTO, arXiv:2402.01306, section 4.1, eq. 8. z is estimated from completions paired with other prompts, and has no gradient.
    Shapes     logp, ref_logp (N,), sums over tokens, desirable (N,) bool, kl scalar -> (N,)
    Gradient   through logp.
    Raises     ValueError if shapes differ or are not (N,), if ref_logp requires grad, if beta is
               not positive, or if desirable holds something else than yes and no (1 and 0).

    >>> kto_loss(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0]), torch.tensor([True, False]), kl=0.0)
    tensor([0.5000, 0.5000])
    """
    _one_each(logp=logp, ref_logp=ref_logp, desirable=desirable)
    if not bool(((desirable == 0) | (desirable == 1)).all()):
        raise ValueError(f"desirable holds {desirable.unique().tolist()[:4]}: True for good and "
                         "False for bad are wanted; of labels 1 and -1 make them with labels > 0")
    _check_positive(beta=beta)
    _check_constants(ref_logp=ref_logp)
    z = torch.as_tensor(kl, dtype=logp.dtype, device=logp.device).detach().clamp(min=0)
    if z.dim():
        raise ValueError(f"kl is {tuple(z.shape)}: a scalar, one number for the batch, is wanted")
    gain = beta * (logp - ref_logp - z)
    return torch.where(desirable.bool(), desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))      # 1 - sigmoid(x) = sigmoid(-x)


def _difference(logp_chosen: Tensor, logp_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """h_w - h_l, checked."""
    _one_each(logp_chosen=logp_chosen, logp_rejected=logp_rejected,
              ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    _check_constants(ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    _check_positive(beta=beta)
    return (logp_chosen - ref_chosen) - (logp_rejected - ref_rejected)


def _same_shapes(**tensors: Tensor) -> None:
    if len({x.shape for x in tensors.values()}) > 1:
        raise ValueError(", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items()) + ": the same shape is wanted")


def _one_each(**tensors: Tensor) -> None:
    """The same shape, (N,). Log-probs of tokens, (B, T), would give a loss for each token."""
    _same_shapes(**tensors)
    name, x = next(iter(tensors.items()))
    if x.dim() != 1:
        raise ValueError(f"{name} is {tuple(x.shape)}: one number per completion, (N,), is wanted; "
                         "add up a completion's tokens first, (token_logprobs * mask).sum(1)")


def _check_constants(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.requires_grad:
            raise ValueError(f"{name} requires grad: the reference is a constant; compute it under torch.no_grad(), or detach it")


def _check_positive(**numbers: float) -> None:
    for name, x in numbers.items():
        if not x > 0:
            raise ValueError(f"{name} is {x}: a positive number is wanted")
