"""Advantages: how much better a completion, a step or a token was than expected.

    with a value function  gae; discounted_returns is what a value function learns
    with a group           group_advantages (GRPO, Dr. GRPO), leave_one_out_advantages (RLOO),
                           maxrl_advantages, opo_advantages, process_advantages (step rewards),
                           gdpo_advantages (several rewards), pass_at_k_advantages (the best of k)
    with the batch         batch_mean_advantages, reinforce_plus_plus_advantages
    with a greedy answer   remax_advantages
    with a teacher         distillation_advantages

Groups are the last dimension: (P, G). Returns and values are per token: (B, T). `spread` turns one
advantage per completion into one per token. Nothing here has a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minirl.equations.checks import check_constants

# advantages of their own file, which a reader looks for here first
from minirl.equations.distillation import distillation_advantages as distillation_advantages
from minirl.equations.distillation import distillation_values as distillation_values
from minirl.equations.kl import kl_shaped_rewards
from minirl.equations.reduce import SUM_OPERATIONS, masked_whiten, within_rounding


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    r"""The return of each token: the discounted sum of its reward and of all later ones.

    Equation   R_t = r_t + γ R_{t+1}
    Paper      Williams 1992 (REINFORCE); GAE, arXiv:1506.02438, section 2. In RLHF γ = 1:
               InstructGPT, arXiv:2203.02155, appendix C.
    Shapes     rewards, mask: (B, T) -> (B, T), 0 under a zero mask. t counts sampled tokens: tool
               output between them adds no discount.
    Gradient   none: rewards are numbers.
    Raises     ValueError if shapes differ, a reward under the mask is not finite or requires grad,
               or gamma is outside [0, 1].
    See        gae, of which this is the case V = 0, λ = 1.

    >>> rewards, mask = torch.tensor([[0.0, 2.0, 0.0, 4.0]]), torch.tensor([[0, 1, 0, 1]])
    >>> discounted_returns(rewards, mask, gamma=0.5)  # 2 + 4/2
    tensor([[0., 4., 0., 4.]])
    """
    zeros = torch.zeros_like(rewards)
    return gae(rewards, zeros, mask, gamma=gamma, lam=1.0)[0]


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimation, and the returns that the value function is fitted to.

    Equation   δ_t = r_t + γ V_{t+1} - V_t
               A_t = δ_t + γ λ A_{t+1} = Σ_l (γ λ)^l δ_{t+l}                (lam is λ)
               returns_t = A_t + V_t
    Paper      GAE, arXiv:1506.02438, eqs. 9 and 16; PPO, arXiv:1707.06347, eqs. 11 and 12.
               λ = 0 gives δ_t (GAE, eq. 17), λ = 1 gives the return minus V_t (eq. 18).
    Shapes     rewards, values, mask: (B, T), bootstrap: (B,) -> advantages (B, T), returns (B, T),
               both 0 under a zero mask
    Gradient   none: both are numbers.
    Raises     ValueError if shapes differ, if a reward or value under the mask is not finite or
               requires grad, or if gamma or lam is outside [0, 1].
    See        kl.kl_shaped_rewards for the rewards, objectives.clipped_value_loss for the returns,
               reduce.masked_whiten for the advantages.

    After the last sampled token V is 0, because the episode is over. A truncated row is not over:
    `bootstrap` is V of the state after its last token. Gaps in the mask are stepped over: tool
    output is no action, so "next" means the next sampled token.

    >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.8]])
    >>> gae(rewards, values, torch.ones(1, 3), lam=1.0)  # 1 - 0.5, 1 - 0.6, 1 - 0.8; returns 1
    (tensor([[0.5000, 0.4000, 0.2000]]), tensor([[1., 1., 1.]]))
    >>> gae(rewards, values, torch.ones(1, 3), lam=0.0)[0]  # 0.6 - 0.5, 0.8 - 0.6, 1 - 0.8
    tensor([[0.1000, 0.2000, 0.2000]])
    """
    _check_episodes(rewards, values, mask, bootstrap)
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma is {gamma}, lam {lam}: expected both in [0, 1]")
    mask = mask.bool()
    if not rewards.is_floating_point():
        rewards = rewards.float()
    if not values.is_floating_point():
        values = values.to(rewards.dtype)
    adv = torch.zeros_like(values)
    next_adv = values.new_zeros(len(values))  # (B,)
    next_value = torch.zeros_like(next_adv) if bootstrap is None else bootstrap.to(values.dtype)
    for t in reversed(range(values.shape[1])):
        sampled = mask[:, t]  # (B,); where it is 0, the next token stays the next token
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_adv = torch.where(sampled, delta + gamma * lam * next_adv, next_adv)
        next_value = torch.where(sampled, values[:, t], next_value)
        adv[:, t] = torch.where(sampled, next_adv, 0)
    returns = torch.where(mask, adv + values, 0)
    return adv, returns


def spread(adv: Tensor, mask: Tensor) -> Tensor:
    r"""Give every sampled token the advantage of its completion.

    Equation   A_{i,t} = A_i
    Paper      DeepSeekMath, arXiv:2402.03300, section 4.1.2: with outcome supervision all tokens
               of a completion share its advantage.
    Shapes     adv: (B,), mask: (B, T) -> (B, T), 0 under a zero mask
    Raises     ValueError if shapes do not fit, or if adv requires grad.

    >>> spread(torch.tensor([0.5, -1.0]), torch.tensor([[0, 1, 1], [0, 1, 0]]))
    tensor([[ 0.0000,  0.5000,  0.5000],
            [ 0.0000, -1.0000,  0.0000]])
    """
    if mask.dim() != 2 or adv.shape != mask.shape[:1]:
        raise ValueError(f"adv {tuple(adv.shape)} beside mask {tuple(mask.shape)}: expected (B,), "
                         "one advantage per completion, beside (B, T)")
    check_constants(adv=adv)
    return torch.where(mask.bool(), adv[:, None], 0)


def group_advantages(
    rewards: Tensor, *, scale: str = "group", ddof: int = 1, eps: float = 1e-4
) -> Tensor:
    r"""Compare each reward with those of the other samples of its prompt.

    Equation   A_i = (r_i - mean(r)) / (std(r) + ε)                scale = "group"
               A_i = (r_i - mean(r)) / (std(all rewards) + ε)      scale = "batch"
               A_i = r_i - mean(r)                                 scale = "none"
               mean(r) is the group's in all three                 (eps is ε)
    Paper      DeepSeekMath, arXiv:2402.03300, section 4.1.2 (outcome supervision). scale = "none":
               Dr. GRPO, arXiv:2503.20783, section 3.2.
    Erratum    The paper writes "std" and leaves the divisor open: n - 1 (ddof = 1: here, TRL, verl)
               or n (ddof = 0). At G = 2 the advantages are ±0.71 or ±1.
    Shapes     rewards: (P, G) -> (P, G)
    Gradient   none: rewards are numbers.
    Raises     ValueError if rewards is not (P, G), holds an infinity or requires grad, if scale is
               unknown, or if ddof is not 0 or 1.
    See        spread, for one advantage per token; objectives.clipped_surrogate, which takes them.

    A NaN reward means "no verdict": mean and std leave it out, and its advantage is 0. Where all
    rewards of a group are equal, every advantage is exactly 0. The test is on max and min: the
    float32 mean of eight 0.7 is not 0.7, and 6e-8 / 1e-8 would be an advantage of 6. Rewards that
    differ by rounding alone, such as 0.3 and 0.1 + 0.2, count as equal: see zero_spread.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))  # mean 1/4, std 1/2
    tensor([[ 1.4997, -0.4999, -0.4999, -0.4999]])
    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale="none")
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    """
    rewards = _as_groups(rewards)
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale is {scale!r}: expected one of group, batch, none")
    if ddof not in (0, 1):
        raise ValueError(f"ddof is {ddof}: expected 0 (divide by n) or 1 (by n - 1)")
    count = (~rewards.isnan()).sum(-1, keepdim=True)  # (P, 1)
    centred = _centred(rewards)  # (P, G)
    if scale == "group":
        centred = centred / (_std(centred, count, ddof) + eps)
    elif scale == "batch":
        batch = _centred(rewards.flatten()[None])  # (1, P * G)
        centred = centred / (_std(batch, count.sum(), ddof) + eps)
    return torch.where(zero_spread(rewards), 0, centred).to(rewards.dtype)


def batch_mean_advantages(rewards: Tensor) -> Tensor:
    r"""Compare each reward with the mean of the batch: REINFORCE with a baseline, without groups.

    Equation   A_i = r_i - mean(all rewards)
    Paper      Williams 1992 (REINFORCE), section 4 ("reinforcement baseline").
    Shapes     rewards: (P, G) -> (P, G)
    Gradient   none. Each of the N = P G samples is part of its own baseline, so the expected
               estimate is (N - 1)/N of the policy gradient.
    Raises     ValueError as group_advantages.
    See        group_advantages with scale="none", where the mean is that of the prompt's samples.

    NaN, "no verdict", is left out and gets 0. Where all rewards are equal, every advantage is 0.

    >>> batch_mean_advantages(torch.tensor([[1.0, 0.0], [0.0, float("nan")]]))  # mean 1/3
    tensor([[ 0.6667, -0.3333],
            [-0.3333,  0.0000]])
    """
    rewards = _as_groups(rewards)
    if len(rewards) == 0:
        return rewards
    batch = rewards.flatten()[None]  # (1, P * G)
    adv = torch.where(zero_spread(batch), 0, _centred(batch))
    return adv.view_as(rewards).to(rewards.dtype)


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    r"""RLOO: compare each reward with the mean of the others, a baseline without the sample itself.

    Equation   A_i = r_i - 1/(G-1) Σ_{j≠i} r_j = G/(G-1) (r_i - mean(r))
    Paper      RLOO, arXiv:2402.14740, section 3.2. There r includes the KL penalty of the whole
               sequence.
    Shapes     rewards: (P, G) -> (P, G)
    Gradient   none. E[A ∇ log π] is exactly the policy gradient, at every G > 1; with
               Dr. GRPO's advantages it is (G-1)/G of it.
    Raises     ValueError as group_advantages.

    NaN, "no verdict", is left out and gets 0. So does a sample without others to compare with.

    >>> leave_one_out_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))  # 1 - 0; 0 - 1/3
    tensor([[ 1.0000, -0.3333, -0.3333, -0.3333]])
    """
    rewards = _as_groups(rewards)
    count = (~rewards.isnan()).sum(-1, keepdim=True)  # (P, 1)
    scaled = _centred(rewards) * count / (count - 1).clamp(min=1)
    return torch.where(zero_spread(rewards), 0, scaled).to(rewards.dtype)


def maxrl_advantages(rewards: Tensor) -> Tensor:
    r"""Maximum-likelihood RL: divide by the mean reward, so that hard prompts count for more.

    Equation   A_i = (r_i - mean(r)) / mean(r), and 0 where mean(r) = 0
    Paper      MaxRL, arXiv:2602.02710, of which the authors' code has the same numbers (they add
               1e-6 to the mean). It expands log p = -Σ_k (1-p)^k / k, p the chance of being right;
               J_N is this series up to k = N.
    Erratum    With 0 where no sample is right, the estimate is unbiased for ∇J_{G-1}, not ∇J_G.
               RL2ML, arXiv:2605.30154, is a family from RL to beyond maximum likelihood, of which
               nothing but this member is here.
    Shapes     rewards: (P, G), none negative -> (P, G)
    Gradient   none.
    Raises     ValueError as group_advantages, and for a negative reward.

    >>> rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    >>> maxrl_advantages(rewards)  # (1 - 1/4) / (1/4) = 3
    tensor([[ 3., -1., -1., -1.],
            [ 0.,  0.,  0.,  0.]])
    """
    rewards = _as_groups(rewards)
    if bool((rewards < 0).any()):
        raise ValueError(f"a reward is {float(rewards.nan_to_num().min())}: expected rewards of at "
                         "least 0, as their mean stands for the chance of being right")
    mean = _mean(rewards)  # (P, 1)
    scaled = _centred(rewards) / torch.where(mean > 0, mean, 1)
    return torch.where(zero_spread(rewards), 0, scaled).to(rewards.dtype)


def gdpo_advantages(
    rewards: Tensor, weights: Sequence[float] | Tensor, *, eps: float = 1e-4
) -> Tensor:
    r"""GDPO: compare each of several rewards in its group before they are added up.

    Equation   z_{i,k} = (r_{i,k} - mean(r_k)) / (std(r_k) + ε)          over the group, for each k
               s_i = Σ_k w_k z_{i,k}
               A_i = (s_i - mean(s)) / (std(s) + ε)                      over the batch
    Paper      GDPO, arXiv:2601.05242, of which the authors' code was read: what they made of TRL
               has the same numbers. In TRL multi_objective_aggregation "normalize_then_sum".
    Erratum    With a single reward that is GRPO, without the batch's step. What they made of verl
               has mean and std of the batch over tokens: a long completion counts for more.
    Shapes     rewards: (P, G, K), weights: (K,) -> (P, G)
    Gradient   none: rewards are numbers.
    Raises     ValueError if rewards is not (P, G, K), holds an infinity or requires grad, or if
               weights is not (K,).
    See        group_advantages, which GRPO applies to Σ_k w_k r_k.

    (1, 0) and (0, 1) have one sum, so GRPO cannot tell them apart. Here the reward with the smaller
    spread counts for more, and they cancel only where both spread alike. NaN is no verdict of that
    reward; a completion without any verdict has the advantage 0. A reward that is equal for a whole
    group adds exactly 0.

    >>> rewards = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    >>> gdpo_advantages(rewards, [1.0, 1.0])  # z = ±(1.5, -0.5, -0.5, -0.5): the sum is 0
    tensor([[0., 0., 0., 0.]])
    >>> gdpo_advantages(rewards, [1.0, 0.0])  # GRPO's of the first reward
    tensor([[ 1.4998, -0.4999, -0.4999, -0.4999]])
    """
    weights = torch.as_tensor(weights)
    if rewards.dim() != 3 or 0 in rewards.shape[1:] or weights.shape != rewards.shape[-1:]:
        raise ValueError(f"rewards {tuple(rewards.shape)}, weights {tuple(weights.shape)}: "
                         "expected (P, G, K), K rewards for each sample, and (K,)")
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    if len(rewards) == 0:
        return rewards.sum(-1)
    wide = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    scores = torch.stack([group_advantages(reward, eps=eps) for reward in wide.unbind(-1)], -1)
    terms = scores * weights.to(scores)  # (P, G, K)
    total, size = terms.sum(-1), terms.abs().sum(-1)  # (P, G)
    # what is left of terms that cancel is rounding, which eps would make an advantage of
    cancelled = within_rounding(size, size + total.abs(), operations=SUM_OPERATIONS)
    total = torch.where(cancelled, 0, total).masked_fill(rewards.isnan().all(-1), torch.nan)
    adv = group_advantages(total.flatten()[None], eps=eps)  # (1, P * G)
    return adv.view_as(total).to(rewards.dtype)


def pass_at_k_advantages(rewards: Tensor, *, k: int | None = None) -> Tensor:
    r"""Train for the best of k samples: only a sample that no other one of its k matches counts.

    Equation   A_i = mean of max(r_S) - max(r_{S without i}) over all sets S of k samples with i
               k = G: A = r_(1) - r_(2) for the best sample, 0 for the others   (k=None)
    Paper      Tang et al., arXiv:2503.19595 (k = G, r_(1) - r_(2)); here its mean over all sets,
               which makes use of more than k samples.
    Erratum    Pass@k training, arXiv:2508.10751, with M_i the mean of max(r_S) over all sets with i
               and R that over all sets, has (M_i - R) / sqrt(R (1 - R)): wrong samples are pushed
               down (-0.447 in the second example, against 0.447), and where k = G all are 0. The
               mean of (M_i - R) ∇ log π is (1 - k/G) times that of A.
    Shapes     rewards: (P, G) -> (P, G)
    Gradient   none. E[A ∇ log π] is exactly 1/k of the gradient of E[max of k rewards], pass@k
               where a reward is 0 or 1.
    Raises     ValueError as group_advantages, or unless 2 ≤ k ≤ G.
    See        maxrl_advantages: with rewards 0 and 1 the sum of all k, 1 to G, is r_i / mean(r).

    With k = G a group with two best samples teaches nothing, and no wrong sample is pushed down
    for any k. NaN, "no verdict", is left out (k=None: of G, too); a group with fewer than k
    verdicts gets 0.

    >>> pass_at_k_advantages(torch.tensor([[3.0, 1.0, 2.0, 0.0]]))  # 3 - 2
    tensor([[1., 0., 0., 0.]])
    >>> pass_at_k_advantages(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), k=2)  # 2 of 3 others are wrong
    tensor([[0.6667, 0.6667, 0.0000, 0.0000]])
    """
    rewards = _as_groups(rewards)
    size = rewards.shape[1]
    if k is not None and not 2 <= k <= size:
        raise ValueError(f"k is {k} and the group has {size} samples: expected 2 <= k <= G")
    judged = ~rewards.isnan()
    order = rewards.nan_to_num(nan=-torch.inf).argsort(-1, descending=True)
    ordered = rewards.nan_to_num(nan=0.0).gather(-1, order)  # (P, G), without a verdict last
    gain = ordered[:, :, None] - ordered[:, None, :]  # (P, G, G), of the row over the column
    share = _share_of_sets(judged.sum(-1, keepdim=True), size, k).to(gain.dtype)  # (P, G)
    adv = (gain * share[:, None, :]).triu(1).sum(-1)
    return torch.zeros_like(adv).scatter(-1, order, adv)


def optimal_baseline(rewards: Tensor, weights: Tensor) -> Tensor:
    r"""Return the baseline of least variance: rewards weighted by the squared length of gradients.

    Equation   b = Σ_i w_i r_i / Σ_i w_i,   w_i = |∇ log π(o_i)|²
    Paper      Greensmith et al. 2004, "Variance reduction techniques for gradient estimates in
               reinforcement learning" (JMLR 5): b* = E[s² R] / E[s²], s = ∇ log π.
    Erratum    Weaver and Tao 2001, "The optimal reward baseline for gradient-based reinforcement
               learning", has the mean reward: that is optimal only where s² tells nothing of R.
    Shapes     rewards, weights: (P, G) -> (P, 1)
    Raises     ValueError as group_advantages, if shapes differ, or if a weight is negative, not
               finite or requires grad.
    See        opo_advantages, which takes lengths as weights.

    The mean reward is another number. For a coin with p = 0.9 that pays 1 for heads, b* = 1 - p
    leaves no variance at all, and b = p leaves more than no baseline.

    >>> optimal_baseline(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 3.0]]))  # 1 / (1 + 3)
    tensor([[0.2500]])
    """
    rewards = _as_groups(rewards)
    check_constants(weights=weights)
    usable = (weights >= 0) & (weights < float("inf"))
    if weights.shape != rewards.shape or not bool(usable.all()):
        raise ValueError(f"weights {tuple(weights.shape)} beside rewards {tuple(rewards.shape)}: "
                         "expected the same shape, and finite weights, none of them negative")
    wide = torch.promote_types(rewards.dtype, torch.float32)  # the sum of lengths is large
    weights = torch.where(rewards.isnan(), 0, weights.to(wide))
    total = weights.sum(-1, keepdim=True)
    weighted = (weights * rewards.nan_to_num(nan=0.0)).sum(-1, keepdim=True)
    return (weighted / torch.where(total > 0, total, 1)).to(rewards.dtype)


def opo_advantages(rewards: Tensor, lengths: Tensor) -> Tensor:
    r"""Subtract the optimal baseline, with the number of tokens for the gradient's squared length.

    Equation   A_i = r_i - Σ_j |o_j| r_j / Σ_j |o_j|
    Paper      OPO, arXiv:2505.23585, section 3.
    Shapes     rewards, lengths: (P, G) -> (P, G)
    Gradient   none.
    Raises     ValueError as optimal_baseline.

    >>> opo_advantages(torch.tensor([[1.0, 0.0]]), torch.tensor([[10, 30]]))  # baseline 10/40
    tensor([[ 0.7500, -0.2500]])
    """
    rewards = _as_groups(rewards)
    adv = rewards - optimal_baseline(rewards, lengths)
    return torch.where(zero_spread(rewards) | rewards.isnan(), 0, adv)


def remax_advantages(rewards: Tensor, greedy_rewards: Tensor) -> Tensor:
    r"""ReMax: compare with the reward of the prompt's greedy answer, one more completion each.

    Equation   A_i = r_i - r(greedy answer)
    Paper      ReMax, arXiv:2310.10505, section 4.
    Shapes     rewards: (P, G), greedy_rewards: (P,) -> (P, G)
    Gradient   none.
    Raises     ValueError as group_advantages, and if shapes do not fit.

    >>> remax_advantages(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]))
    tensor([[ 0., -1.]])
    """
    rewards = _as_groups(rewards)
    if greedy_rewards.shape != rewards.shape[:1]:
        raise ValueError(f"greedy_rewards {tuple(greedy_rewards.shape)} beside rewards "
                         f"{tuple(rewards.shape)}: expected (P,) beside (P, G)")
    baseline = _as_groups(greedy_rewards[:, None], "greedy_rewards")  # (P, 1)
    return (rewards - baseline).nan_to_num(nan=0.0)


def process_advantages(step_rewards: Tensor, *, ddof: int = 1, eps: float = 1e-4) -> Tensor:
    r"""GRPO with process supervision: normalise step rewards over the group, then sum to the end.

    Equation   r̃_{i,j} = (r_{i,j} - mean(R)) / (std(R) + ε),   R = all step rewards of the group
               A_{i,j} = Σ_{k≥j} r̃_{i,k}
    Paper      DeepSeekMath, arXiv:2402.03300, section 4.1.3.
    Erratum    The paper leaves ddof open, as for group_advantages.
    Shapes     step_rewards: (P, G, S), NaN where a sample has no such step -> (P, G, S), 0 there
    Gradient   none.
    Raises     ValueError if the shape is not (P, G, S), a reward is infinite or requires grad, a
               step follows a missing one, or ddof is not 0 or 1.

    A token's advantage is that of its step. Where all step rewards of a group are equal, every
    advantage is exactly 0.

    >>> nan = float("nan")  # mean 3/4, std 1/2: the steps become -1.5 0.5 0.5 | 0.5
    >>> process_advantages(torch.tensor([[[0.0, 1.0, 1.0], [1.0, nan, nan]]]), eps=0.0)
    tensor([[[-0.5000,  1.0000,  0.5000],
             [ 0.5000,  0.0000,  0.0000]]])
    """
    if step_rewards.dim() != 3 or 0 in step_rewards.shape[1:]:
        raise ValueError(f"step_rewards is {tuple(step_rewards.shape)}: expected (P, G, S), one "
                         "row of S steps per sample")
    missing = step_rewards.isnan()
    if bool((missing.int().cummax(-1).values != missing).any()):
        raise ValueError("a step follows one that is NaN: NaN may stand only after a sample's last "
                         "step; give every step a reward")
    steps = group_advantages(step_rewards.flatten(1), ddof=ddof, eps=eps).view_as(step_rewards)
    return torch.where(missing, 0, steps.flip(-1).cumsum(-1).flip(-1))


def reinforce_plus_plus_advantages(
    scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, kl_coef: float
) -> Tensor:
    r"""REINFORCE++: the KL-shaped return of each token, whitened over all tokens of the batch.

    Equation   A_t = (R_t - mean) / std over the batch,   R_t = score - β Σ_{s≥t} k1_s
    Paper      REINFORCE++, arXiv:2501.03262, section 3. No group, no value function.
    Shapes     scores: (B,), logp, ref_logp, mask: (B, T) -> (B, T)
    Gradient   none.
    Raises     ValueError as kl.kl_shaped_rewards.

    >>> scores, zero = torch.tensor([1.0, 0.0]), torch.zeros(2, 2)
    >>> adv = reinforce_plus_plus_advantages(scores, zero, zero, torch.ones(2, 2), 0.1)
    >>> adv  # returns 1 1 0 0: mean 1/2, variance 1/3
    tensor([[ 0.8660,  0.8660],
            [-0.8660, -0.8660]])
    """
    rewards = kl_shaped_rewards(scores, logp, ref_logp, mask, kl_coef)  # (B, T)
    return masked_whiten(discounted_returns(rewards, mask), mask)


def dynamic_sampling(rewards: Tensor) -> Tensor:
    r"""DAPO's filter: keep the prompts whose samples got different rewards; the others have A = 0.

    Equation   keep the prompt if 0 < #right < G
    Paper      DAPO, arXiv:2503.14476, section 3.2, eq. 11. DAPO then samples further prompts until
               the batch is full.
    Shapes     rewards: (P, G) -> (P,) bool
    Raises     ValueError as group_advantages.

    >>> dynamic_sampling(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    tensor([False,  True, False])
    """
    return ~zero_spread(_as_groups(rewards)).squeeze(-1)


def zero_spread(rewards: Tensor) -> Tensor:
    r"""Return True for a group without differences: all verdicts equal, or none. (P, G) -> (P, 1).

    Equal means equal but for rounding: a weighted sum of several rewards may be 0.1 + 0.2 for one
    sample and 0.3 for another, and that is no difference to learn from.

    >>> zero_spread(torch.tensor([[0.7, 0.7, 0.7], [0.0, 1.0, float("nan")]]))
    tensor([[ True],
            [False]])
    """
    high = rewards.nan_to_num(nan=-torch.inf).amax(-1, keepdim=True)
    low = rewards.nan_to_num(nan=torch.inf).amin(-1, keepdim=True)
    return within_rounding(low, high)


def _check_episodes(
    rewards: Tensor, values: Tensor, mask: Tensor, bootstrap: Tensor | None
) -> None:
    """Raise ValueError unless shapes fit, and all that the mask shows is a finite constant."""
    after = rewards.new_zeros(rewards.shape[:1]) if bootstrap is None else bootstrap
    one_shape = rewards.shape == values.shape == mask.shape and rewards.dim() == 2
    if not one_shape or after.shape != rewards.shape[:1]:
        raise ValueError(f"rewards {tuple(rewards.shape)}, values {tuple(values.shape)}, mask "
                         f"{tuple(mask.shape)}, bootstrap {tuple(after.shape)}: expected three "
                         "times (B, T), and (B,) for bootstrap")
    check_constants(rewards=rewards, values=values, bootstrap=after)
    shown = mask.bool()
    for name, x in (("rewards", rewards[shown]), ("values", values[shown]), ("bootstrap", after)):
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name}: a number under the mask is not finite: expected finite "
                             "numbers; leave such rows out of the batch")


def _share_of_sets(count: Tensor, size: int, k: int | None) -> Tensor:
    """Return for each place m in the order of a group, best first, the share of the sets of k that
    hold a certain better sample and in which m is the second best: (P, 1) -> (P, G).

    The other k - 2 come from the count - 1 - m behind m, and all sets choose k - 1 of count - 1.
    """
    place = torch.arange(size, device=count.device)
    if k is None:
        return (place == 1) & (count > 1)
    sets = torch.tensor([math.comb(n, k - 2) for n in range(size)], dtype=torch.float64)
    every = torch.tensor([max(1, math.comb(n, k - 1)) for n in range(size)], dtype=torch.float64)
    behind = count - 1 - place
    share = sets.to(count.device)[behind.clamp(min=0)] / every.to(count.device)[
        (count - 1).clamp(min=0)]
    return torch.where(behind >= 0, share, 0)


def _as_groups(rewards: Tensor, name: str = "rewards") -> Tensor:
    """Return (P, G) rewards as floating-point numbers; counts and yes-or-no are rewards too."""
    if rewards.dim() != 2 or rewards.shape[1] == 0:
        raise ValueError(f"{name} has the shape {tuple(rewards.shape)}: expected (P, G), one row "
                         "per prompt")
    check_constants(**{name: rewards})
    infinite = int(rewards.isinf().sum())
    if infinite:
        raise ValueError(f"{name}: {infinite} of them infinite: expected finite numbers, or NaN "
                         "for no verdict")
    return rewards if rewards.is_floating_point() else rewards.float()


def _centred(rewards: Tensor) -> Tensor:
    """Return rewards minus their group's mean, 0 without a verdict. (P, G), float32 at least."""
    return torch.where(rewards.isnan(), 0, rewards - _mean(rewards))


def _mean(rewards: Tensor) -> Tensor:
    """Return the mean of each group's verdicts, (P, 1), float32 at least: float16 overflows."""
    judged = ~rewards.isnan()
    wide = torch.promote_types(rewards.dtype, torch.float32)
    total = torch.where(judged, rewards, 0).to(wide).sum(-1, keepdim=True)
    return total / judged.sum(-1, keepdim=True).clamp(min=1)


def _std(centred: Tensor, count: Tensor, ddof: int) -> Tensor:
    """Return the standard deviation of centred values in the last dimension; 0 of fewer than 2."""
    return (centred.square().sum(-1, keepdim=True) / (count - ddof).clamp(min=1)).sqrt()
