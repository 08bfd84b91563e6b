"""Entropy: which tokens decide it, and what keeps a policy from settling too early.

objectives.entropy is the entropy itself. Here are four ways to act on it:

    entropy_mask            train the few tokens at which the policy is undecided
    adaptive_entropy_coef   raise the bonus while the entropy is below a target
    token_covariance        how much a token's update lowers the entropy, and then
        clip_cov_mask       leave some of the tokens with a large one out
        kl_cov_mask         or penalise how far the largest ones move
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.checks import check_constants, check_positive, check_same_shape
from minirl.equations.reduce import masked_mean


def entropy_mask(entropy: Tensor, mask: Tensor, *, quantile: float) -> Tensor:
    r"""Keep the tokens with the highest entropy, the forks at which an answer is decided.

    Equation   keep token t if H_t ≥ the (1 - ρ)-quantile of all H under the mask
               (quantile is ρ, the share that is kept)
    Paper      Beyond the 80/20 rule, arXiv:2506.01939, section 5.1, eq. 6; ρ = 0.2. In TRL
               top_entropy_quantile.
    Erratum    Eq. 6 divides by the tokens that are kept; TRL, and train_grpo, by all. So the
               gradient is about ρ times the paper's.
    Shapes     entropy, mask: (B, T) -> (B, T) bool, False under a zero mask
    Gradient   none: it multiplies the surrogate, and neither the KL nor the normaliser.
    Raises     ValueError if shapes differ, or if quantile is outside [0, 1].
    See        lm.logprobs.linear_logprobs(return_entropy=True), which computes the entropies.

    1 keeps all, 0 the highest alone. The quantile is that of the tokens that are passed: pass the
    whole batch, or each micro-batch has a threshold of its own.

    >>> entropies = torch.tensor([[0.1, 2.0, 0.3, 1.0, 0.2, 9.0]])
    >>> entropy_mask(entropies, torch.tensor([[1, 1, 1, 1, 1, 0]]), quantile=0.4)  # above 0.58
    tensor([[False,  True, False,  True, False, False]])
    """
    check_same_shape(entropy=entropy, mask=mask)
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}: expected the share of tokens to keep, in [0, 1]")
    mask = mask.bool()
    wide = entropy.to(torch.promote_types(entropy.dtype, torch.float32))
    if not bool(mask.any()):
        return mask
    return (wide >= wide[mask].quantile(1 - quantile)) & mask


def adaptive_entropy_coef(
    entropy_coef: float,
    entropy: float,
    target: float,
    *,
    delta: float = 0.005,
    low: float = 0.0,
    high: float = 1.0,
) -> float:
    r"""Raise the weight of the entropy bonus by a step while the entropy is low, else lower it.

    Equation   c <- min(c + δ, high)   if H ≤ target
               c <- max(c - δ, low)    otherwise             (entropy_coef is c, delta is δ)
               the next update adds c H to the objective if H ≤ target, and no bonus otherwise
    Paper      Skywork-OR1, arXiv:2505.22312; the numbers are TRL's defaults (use_adaptive_entropy,
               target 0.2).
    Erratum    The authors' code asks whether H < target, and its scripts have δ = 1e-4, high = 5e-3
               and a first c of 0: TRL's steps are 50 times as large, and may go 200 times as far.
    Raises     ValueError if delta is not positive, entropy_coef is outside [low, high], or entropy
               is not a number.

    `entropy` is the mean over tokens, in nats, of the update just made.

    >>> [round(adaptive_entropy_coef(0.1, entropy, 0.2), 3) for entropy in (0.1, 0.2, 0.3)]
    [0.105, 0.105, 0.095]
    """
    check_positive(delta=delta)
    if not low <= entropy_coef <= high:
        raise ValueError(f"entropy_coef is {entropy_coef}, low {low}, high {high}: expected low <= "
                         "entropy_coef <= high")
    if entropy != entropy:
        raise ValueError(f"entropy is {entropy}: expected a number")
    if entropy <= target:
        return min(entropy_coef + delta, high)
    return max(entropy_coef - delta, low)


def token_covariance(logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
    r"""Return how much of the fall in entropy each token's update brings about.

    Equation   Cov_t = (log π_t - mean(log π)) (A_t - mean(A)),   means over all tokens of the batch
    Paper      The entropy mechanism, arXiv:2505.22617, section 4.2, eq. 10; theorem 2: a step of
               the natural policy gradient, A on each logit, changes a state's entropy by minus the
               covariance of log π and A under π: what is likely and good lowers it.
    Shapes     logp, adv, mask: (B, T) -> (B, T), 0 under a zero mask
    Gradient   none: it chooses tokens.
    Raises     ValueError if shapes differ.
    See        clip_cov_mask and kl_cov_mask, which choose.

    >>> logp, adv = torch.tensor([[-1.0, -3.0]]), torch.tensor([[2.0, 0.0]])
    >>> token_covariance(logp, adv, torch.ones(1, 2))  # 1 * 1, -1 * -1
    tensor([[1., 1.]])
    """
    check_same_shape(logp=logp, adv=adv, mask=mask)
    logp, adv = logp.detach(), adv.detach()
    product = (logp - masked_mean(logp, mask)) * (adv - masked_mean(adv, mask))
    return torch.where(mask.bool(), product, 0)


def clip_cov_mask(
    covariance: Tensor,
    mask: Tensor,
    *,
    share: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Clip-Cov: take the gradient from a few tokens, drawn from those with a large covariance.

    Equation   I = max(1, share N) tokens, drawn from those with low < Cov_t < high
               keep token t unless it is in I                              (N: tokens of the batch)
    Paper      The entropy mechanism, arXiv:2505.22617, section 4.2, eqs. 11 and 12 (Clip-Cov). The
               three numbers: section 4.3.
    Erratum    The authors' code, and verl's, draw from tokens that PPO's clip leaves alone: give
               the others a covariance of -inf.
    Shapes     covariance, mask: (B, T) -> (B, T) bool, False under a zero mask
    Gradient   none: it multiplies the surrogate.
    Raises     ValueError if shapes differ, if share is outside (0, 1], or unless low < high.
    See        token_covariance.

    >>> covariance = torch.tensor([[0.5, 2.0, 3.0, 9.0]])
    >>> clip_cov_mask(covariance, torch.ones(1, 4), share=1.0)  # all between 1 and 5
    tensor([[ True, False, False,  True]])
    """
    _check_selection(covariance, mask, share)
    if not low < high:
        raise ValueError(f"low is {low}, high {high}: expected low < high")
    mask = mask.bool()
    candidates = (mask & (covariance > low) & (covariance < high)).flatten().nonzero()[:, 0]
    order = torch.randperm(len(candidates), generator=generator)  # on the CPU, as its generator is
    drawn = candidates[order[:_count(mask, share)].to(candidates.device)]
    kept = mask.flatten().index_fill(0, drawn, False)
    return kept.view_as(mask)


def kl_cov_mask(covariance: Tensor, mask: Tensor, *, share: float = 2e-4) -> Tensor:
    r"""KL-Cov: choose the tokens with the largest covariance, to penalise how far they move.

    Equation   I = the max(1, share N) tokens with the largest Cov_t       (N: tokens of the batch)
               L_t = ρ_t A_t - 1{t in I} β KL(π_old || π)(s_t)
    Paper      The entropy mechanism, arXiv:2505.22617, section 4.2, eqs. 13 and 14 (KL-Cov). β is 1
               there (section 4.3), and listing 1 estimates the KL by |log ρ_t|.
    Erratum    The share is 2e-4 for the paper's model of 32B, and 2e-3 for that of 7B. verl's
               default is the first.
    Shapes     covariance, mask: (B, T) -> (B, T) bool: True for the tokens in I
    Gradient   none: it multiplies the penalty.
    Raises     ValueError if shapes differ, or if share is outside (0, 1].
    See        token_covariance; objectives.kl_penalised_surrogate, with the penalty times this.

    >>> kl_cov_mask(torch.tensor([[0.5, 2.0, 3.0, 9.0]]), torch.tensor([[1, 1, 1, 0]]), share=0.4)
    tensor([[False, False,  True, False]])
    """
    _check_selection(covariance, mask, share)
    mask = mask.bool()
    if not bool(mask.any()):
        return mask
    shown = covariance.masked_fill(~mask, -torch.inf).flatten()
    chosen = torch.zeros_like(mask).flatten()
    chosen[shown.topk(_count(mask, share)).indices] = True
    return chosen.view_as(mask)


def _count(mask: Tensor, share: float) -> int:
    return max(1, int(share * int(mask.sum())))


def _check_selection(covariance: Tensor, mask: Tensor, share: float) -> None:
    check_same_shape(covariance=covariance, mask=mask)
    check_constants(covariance=covariance)
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}: expected a part of the tokens, in (0, 1]")
