"""Advantages: how much better a completion, a step or a token was than what was to be expected.

    with a value function    gae (and discounted_returns, what a value function learns)
    with a group             group_advantages (GRPO, Dr. GRPO), leave_one_out_advantages (RLOO), maxrl_advantages, opo_advantages,
                             process_advantages (rewards per step)
    with neither             batch_mean_advantages, reinforce_plus_plus_advantages (the batch),
                             remax_advantages (one greedy answer)

Groups are the last dimension: (P, G). Returns and values are per token: (B, T). Nothing here has a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.kl import kl_shaped_rewards
from minirl.equations.reduce import masked_whiten, within_rounding


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    r"""What is still to come: the discounted sum of this and all later rewards of a row.

    Equation   R_t = r_t + gamma R_{t+1}
    Paper      Williams 1992 (REINFORCE); GAE, arXiv:1506.02438, section 2; in RLHF gamma = 1: InstructGPT, arXiv:2203.02155, appendix C.
    Shapes     rewards, mask (B, T) -> (B, T), 0 under a zero mask; t counts sampled tokens, so tool output between them discounts nothing
    Gradient   none: rewards are numbers.
    Raises     ValueError if shapes differ, a reward under the mask is not finite or requires grad, or gamma is outside [0, 1].

    >>> discounted_returns(torch.tensor([[0.0, 2.0, 0.0, 4.0]]), torch.tensor([[0, 1, 0, 1]]), gamma=0.5)        # 2 + 4/2
    tensor([[0., 4., 0., 4.]])
    """
    zeros = torch.zeros_like(rewards)
    return gae(rewards, zeros, mask, gamma=gamma, lam=1.0)[0]


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95, bootstrap: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimation, and the returns that the value function is fitted to.

    Equation   delta_t = r_t + gamma V_{t+1} - V_t
               A_t     = delta_t + gamma lam A_{t+1}  =  sum_l (gamma lam)^l delta_{t+l},         returns_t = A_t + V_t
    Paper      GAE, arXiv:1506.02438, eqs. 9 and 16; PPO, arXiv:1707.06347, eqs. 11 and 12. lam = 0: delta (eq. 17); lam = 1: return - V (eq. 18).
    Shapes     rewards, values, mask (B, T), bootstrap (B,) -> advantages (B, T), returns (B, T), both 0 under a zero mask
    Gradient   none: both are numbers.
    Raises     ValueError if shapes differ, if a reward or value under the mask is not finite or requires grad, or if gamma or lam is outside [0, 1].
    See        kl.kl_shaped_rewards, which makes rewards; objectives.clipped_value_loss, which takes returns; reduce.masked_whiten.

    After the last sampled token V is 0: the episode is over. A row that was cut off (`truncated`) is not over, and `bootstrap` gives the V of the
    state behind it. A mask with gaps is stepped over: tool output takes no action, so "next" is the next sampled token.

    >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.8]])
    >>> adv, returns = gae(rewards, values, torch.ones(1, 3), lam=1.0)                   # 1 - 0.5, 1 - 0.6, 1 - 0.8
    >>> adv, returns
    (tensor([[0.5000, 0.4000, 0.2000]]), tensor([[1., 1., 1.]]))
    >>> gae(rewards, values, torch.ones(1, 3), lam=0.0)[0]                               # 0.6 - 0.5, 0.8 - 0.6, 1 - 0.8
    tensor([[0.1000, 0.2000, 0.2000]])
    """
    if not rewards.shape == values.shape == mask.shape or rewards.dim() != 2 or (bootstrap is not None and bootstrap.shape != rewards.shape[:1]):
        raise ValueError(f"rewards {tuple(rewards.shape)}, values {tuple(values.shape)}, mask {tuple(mask.shape)}, bootstrap "
                         f"{None if bootstrap is None else tuple(bootstrap.shape)}: three times (B, T), and (B,) for bootstrap, are wanted")
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma is {gamma}, lam {lam}: both in [0, 1] are wanted")
    mask, rewards = mask.bool(), rewards if rewards.is_floating_point() else rewards.float()
    values = values.to(rewards.dtype) if not values.is_floating_point() else values
    for name, x in (("rewards", rewards), ("values", values), ("bootstrap", bootstrap)):
        if x is not None and (x.requires_grad or not bool((x if name == "bootstrap" else x[mask]).isfinite().all())):
            raise ValueError(f"{name}: requires_grad {x.requires_grad}, or a number under the mask that is not finite: finite constants are wanted; detach them")
    adv = torch.zeros_like(values)
    next_adv = values.new_zeros(len(values))                                                 # (B,)
    next_value = torch.zeros_like(next_adv) if bootstrap is None else bootstrap.to(values.dtype)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_adv = torch.where(mask[:, t], delta + gamma * lam * next_adv, next_adv)         # a slot under a zero mask hands on what came from behind
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        adv[:, t] = torch.where(mask[:, t], next_adv, 0)
    return adv, torch.where(mask, adv + values, 0)


def group_advantages(rewards: Tensor, *, scale: str = "group", ddof: int = 1, eps: float = 1e-4) -> Tensor:
    r"""Each reward against the other samples of its prompt.

    Equation   A_i = (r_i - mean(r)) / (std(r) + eps)                 scale = "group"
               A_i = (r_i - mean(r)) / (std(all rewards) + eps)       scale = "batch": the mean stays the group's
               A_i =  r_i - mean(r)                                   scale = "none"
    Paper      DeepSeekMath, arXiv:2402.03300, section 4.1.2 (outcome supervision); "none": Dr. GRPO, arXiv:2503.20783, section 3.2.
    Erratum    The paper writes "std" and leaves ddof open. TRL and verl take 1 (as here), others 0; at G = 2 that is +-0.71 or +-1.
    Shapes     rewards (P, G) -> (P, G)
    Gradient   none: rewards are numbers.
    Raises     ValueError if rewards is not (P, G), holds an infinity or requires grad, scale is unknown, or ddof is not 0 or 1.
    See        objectives.clipped_surrogate takes them, one per token of the completion.

    A NaN reward means "no verdict": it is left out of mean and std, and its advantage is 0. Where all rewards of a group are equal, every
    advantage is exactly 0 (asked of max and min: the float32 mean of eight 0.7 is not 0.7, and
    6e-8 / 1e-8 would be an advantage of 6). 0.3 and 0.1 + 0.2 are equal, too: see zero_spread.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))                     # mean 1/4, std 1/2
    tensor([[ 1.4997, -0.4999, -0.4999, -0.4999]])
    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale="none")
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    """
    rewards = _grouped(rewards)
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale is {scale!r}: one of group, batch, none is wanted")
    if ddof not in (0, 1):
        raise ValueError(f"ddof is {ddof}: 0 (divide by n) or 1 (by n - 1) is wanted")
    count = (~rewards.isnan()).sum(-1, keepdim=True)                            # (P, 1)
    centred = _centred(rewards)
    if scale == "group":
        centred = centred / (_std(centred, count, ddof) + eps)
    elif scale == "batch":
        everyone = _centred(rewards.flatten()[None])                            # (1, P * G)
        centred = centred / (_std(everyone, count.sum(), ddof) + eps)
    return torch.where(zero_spread(rewards), 0, centred).to(rewards.dtype)


def batch_mean_advantages(rewards: Tensor) -> Tensor:
    r"""REINFORCE with a baseline that needs no groups: each reward against the mean of the batch.

    Equation   A_i = r_i - mean(all rewards)
    Paper      Williams 1992 (REINFORCE), section 4 ("reinforcement baseline").
    Shapes     rewards (P, G) -> (P, G)
    Gradient   none. Each of the N = P G samples is in its own baseline, so that the expectation is
               (N - 1)/N of the policy gradient.
    Raises     ValueError as group_advantages.
    See        group_advantages with scale="none", where the mean is that of the prompt's samples.

    NaN, "no verdict", is left out and gets 0. Where all rewards are equal, every advantage is 0.

    >>> batch_mean_advantages(torch.tensor([[1.0, 0.0], [0.0, float("nan")]]))           # mean 1/3
    tensor([[ 0.6667, -0.3333],
            [-0.3333,  0.0000]])
    """
    rewards = _grouped(rewards)
    if len(rewards) == 0:
        return rewards
    everyone = rewards.flatten()[None]                                          # (1, P * G)
    adv = torch.where(zero_spread(everyone), 0, _centred(everyone))
    return adv.view_as(rewards).to(rewards.dtype)


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    r"""RLOO: each reward against the mean of the others, a baseline that the sample itself has no part in.

    Equation   A_i = r_i - 1/(G - 1) sum_{j != i} r_j  =  G/(G - 1) (r_i - mean(r))
    Paper      RLOO, arXiv:2402.14740, section 3.2 (there r holds the KL penalty of the whole sequence).
    Shapes     rewards (P, G) -> (P, G)
    Gradient   none. Times grad log pi its expectation is exactly the policy gradient, at every G > 1; Dr. GRPO's is (G - 1)/G of it.
    Raises     ValueError as group_advantages.

    NaN, "no verdict", is left out and gets 0; so does a sample that has no other to be compared with.

    >>> leave_one_out_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))               # 1 - 0; 0 - 1/3
    tensor([[ 1.0000, -0.3333, -0.3333, -0.3333]])
    """
    rewards = _grouped(rewards)
    count = (~rewards.isnan()).sum(-1, keepdim=True)
    scaled = _centred(rewards) * count / (count - 1).clamp(min=1)
    return torch.where(zero_spread(rewards), 0, scaled).to(rewards.dtype)


def maxrl_advantages(rewards: Tensor) -> Tensor:
    r"""Maximum-likelihood RL: the reward's distance from the mean in units of the mean, so that hard prompts count for more.

    Equation   A_i = (r_i - mean(r)) / mean(r),  0 where mean(r) = 0
    Paper      MaxRL, arXiv:2602.02710. log p = -sum_k (1 - p)^k / k; the sum up to k = N is J_N.
    Erratum    With 0 where nothing was right, this is unbiased for the gradient of J_{G-1}, not of J_G.
    Shapes     rewards (P, G), not negative -> (P, G)
    Gradient   none.
    Raises     ValueError as group_advantages, and for a negative reward.

    >>> maxrl_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))      # (1 - 1/4) / (1/4) = 3
    tensor([[ 3., -1., -1., -1.],
            [ 0.,  0.,  0.,  0.]])
    """
    rewards = _grouped(rewards)
    if bool((rewards < 0).any()):
        raise ValueError(f"a reward is {float(rewards.nan_to_num().min())}: rewards of at least 0 are wanted, as they stand for a chance of being right")
    mean = _mean(rewards)                                                       # (P, 1)
    scaled = _centred(rewards) / torch.where(mean > 0, mean, 1)
    return torch.where(zero_spread(rewards), 0, scaled).to(rewards.dtype)


def optimal_baseline(rewards: Tensor, weights: Tensor) -> Tensor:
    r"""The baseline of least variance: a mean of the rewards in which a sample counts as much as its gradient is long.

    Equation   b = sum_i w_i r_i / sum_i w_i,   w_i = |grad log pi(o_i)|^2
    Paper      Weaver and Tao 2001, "The optimal reward baseline for gradient-based reinforcement learning"; b* = E[s^2 R] / E[s^2].
    Shapes     rewards, weights (P, G) -> (P, 1)
    Raises     ValueError as group_advantages, if shapes differ, or if a weight is negative, not finite or requires grad.
    See        opo_advantages, which takes lengths for w.

    The plain mean is not it: for a coin with p = 0.9 and reward 1 for heads, b* = 1 - p leaves no variance, b = p more than no baseline does.

    >>> optimal_baseline(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 3.0]]))
    tensor([[0.2500]])
    """
    rewards = _grouped(rewards)
    if weights.shape != rewards.shape or weights.requires_grad or not bool(((weights >= 0) & (weights < float("inf"))).all()):
        raise ValueError(f"weights {tuple(weights.shape)} beside rewards {tuple(rewards.shape)}, requires_grad {weights.requires_grad}: finite constants of the "
                         "same shape, none of them negative, are wanted")
    wide = torch.promote_types(rewards.dtype, torch.float32)                    # lengths add up
    weights = torch.where(rewards.isnan(), 0, weights.to(wide))
    total = weights.sum(-1, keepdim=True)
    weighted = (weights * rewards.nan_to_num(nan=0.0)).sum(-1, keepdim=True)
    return (weighted / torch.where(total > 0, total, 1)).to(rewards.dtype)


def opo_advantages(rewards: Tensor, lengths: Tensor) -> Tensor:
    r"""On-policy RL with an optimal baseline: a completion's gradient is taken to be as long (squared) as its number of tokens.

    Equation   A_i = r_i - sum_j |o_j| r_j / sum_j |o_j|
    Paper      OPO, arXiv:2505.23585, section 3.
    Shapes     rewards, lengths (P, G) -> (P, G)
    Gradient   none.
    Raises     ValueError as optimal_baseline.

    >>> opo_advantages(torch.tensor([[1.0, 0.0]]), torch.tensor([[10, 30]]))           # baseline 10/40
    tensor([[ 0.7500, -0.2500]])
    """
    rewards = _grouped(rewards)
    return torch.where(zero_spread(rewards) | rewards.isnan(), 0, rewards - optimal_baseline(rewards, lengths))


def remax_advantages(rewards: Tensor, greedy_rewards: Tensor) -> Tensor:
    r"""ReMax: against the reward of the greedy answer to the same prompt, which costs one more completion and no group.

    Equation   A_i = r_i - r(greedy answer)
    Paper      ReMax, arXiv:2310.10505, section 4.
    Shapes     rewards (P, G), greedy_rewards (P,) -> (P, G)
    Gradient   none.
    Raises     ValueError as group_advantages, and if shapes do not fit.

    >>> remax_advantages(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]))
    tensor([[ 0., -1.]])
    """
    rewards = _grouped(rewards)
    if greedy_rewards.shape != rewards.shape[:1]:
        raise ValueError(f"greedy_rewards {tuple(greedy_rewards.shape)} beside rewards {tuple(rewards.shape)}: (P,) beside (P, G) is wanted")
    return (rewards - _grouped(greedy_rewards[:, None])).nan_to_num(nan=0.0)


def process_advantages(step_rewards: Tensor, *, ddof: int = 1, eps: float = 1e-4) -> Tensor:
    r"""GRPO with process supervision: every step's reward normalised over all steps of the group, then summed from each step to the end.

    Equation   r~_ij = (r_ij - mean(R)) / (std(R) + eps),  R = all step rewards of the group;    A_ij = sum_{k >= j} r~_ik
    Paper      DeepSeekMath, arXiv:2402.03300, section 4.1.3.
    Erratum    As for group_advantages the paper leaves ddof open.
    Shapes     step_rewards (P, G, S), NaN where a sample has no such step -> (P, G, S), 0 there
    Gradient   none.
    Raises     ValueError if the shape is not (P, G, S), a reward is infinite or requires grad, a step follows a missing one, or ddof is not 0 or 1.

    A token's advantage is that of the step it is in. Where all step rewards of a group are equal, every advantage is exactly 0.

    >>> nan = float("nan")                                                             # mean 3/4, std 1/2: -1.5 0.5 0.5 | 0.5
    >>> process_advantages(torch.tensor([[[0.0, 1.0, 1.0], [1.0, nan, nan]]]), eps=0.0)
    tensor([[[-0.5000,  1.0000,  0.5000],
             [ 0.5000,  0.0000,  0.0000]]])
    """
    if step_rewards.dim() != 3 or 0 in step_rewards.shape[1:]:
        raise ValueError(f"step_rewards is {tuple(step_rewards.shape)}: (P, G, S), one row of S steps per sample, is wanted")
    missing = step_rewards.isnan()
    if bool((missing.int().cummax(-1).values != missing).any()):
        raise ValueError("a step follows one that is NaN: NaN stands behind a sample's last step only; give every step a reward")
    normalised = group_advantages(step_rewards.flatten(1), ddof=ddof, eps=eps).view_as(step_rewards)
    return torch.where(missing, 0, normalised.flip(-1).cumsum(-1).flip(-1))


def reinforce_plus_plus_advantages(scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    r"""REINFORCE++: the reward to come, KL penalty included, normalised over all tokens of the batch. No group, no value function.

    Equation   A_t = (R_t - mean) / std over the batch,   R_t = score - beta sum_{s >= t} k1_s
    Paper      REINFORCE++, arXiv:2501.03262, section 3.
    Shapes     scores (B,), logp, ref_logp, mask (B, T) -> (B, T)
    Gradient   none.
    Raises     ValueError as kl.kl_shaped_rewards.

    >>> zero = torch.zeros(2, 2)
    >>> reinforce_plus_plus_advantages(torch.tensor([1.0, 0.0]), zero, zero, torch.ones(2, 2), 0.1)        # 1 1 0 0: mean 1/2, var 1/3
    tensor([[ 0.8660,  0.8660],
            [-0.8660, -0.8660]])
    """
    return masked_whiten(discounted_returns(kl_shaped_rewards(scores, logp, ref_logp, mask, kl_coef), mask), mask)


def dynamic_sampling(rewards: Tensor) -> Tensor:
    r"""DAPO's filter: the prompts whose groups teach something, because not all of their samples got the same reward.

    Equation   keep the prompt if 0 < #right < G                                       (DAPO then samples more prompts until the batch is full)
    Paper      DAPO, arXiv:2503.14476, section 3.2, eq. 11.
    Shapes     rewards (P, G) -> (P,) bool
    Raises     ValueError as group_advantages.

    >>> dynamic_sampling(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    tensor([False,  True, False])
    """
    return ~zero_spread(_grouped(rewards)).squeeze(-1)


def zero_spread(rewards: Tensor) -> Tensor:
    r"""Groups in which nothing can be compared: all judged rewards equal, or none judged. (P, G) -> (P, 1) bool.

    Equal but for rounding: a weighted sum of several rewards may come out as 0.1 + 0.2 for one
    sample and as 0.3 for another, and that is no difference to learn from.

    >>> zero_spread(torch.tensor([[0.7, 0.7, 0.7], [0.0, 1.0, float("nan")]]))
    tensor([[ True],
            [False]])
    """
    high = rewards.nan_to_num(nan=-torch.inf).amax(-1, keepdim=True)
    low = rewards.nan_to_num(nan=torch.inf).amin(-1, keepdim=True)
    return within_rounding(low, high)


def _grouped(rewards: Tensor) -> Tensor:
    """Checked rewards (P, G), as floating-point numbers: counts and yes-or-no are rewards too."""
    if rewards.dim() != 2 or rewards.shape[1] == 0 or rewards.requires_grad or bool(rewards.isinf().any()):
        raise ValueError(f"rewards: shape {tuple(rewards.shape)}, requires_grad {rewards.requires_grad}, {int(rewards.isinf().sum())} of them infinite: "
                         "finite numbers (NaN for no verdict) of shape (P, G), one row per prompt, are wanted")
    return rewards if rewards.is_floating_point() else rewards.float()


def _centred(rewards: Tensor) -> Tensor:
    """Rewards minus their group's mean; 0 where there is no verdict. (P, G), float32 at least."""
    return torch.where(rewards.isnan(), 0, rewards - _mean(rewards))


def _mean(rewards: Tensor) -> Tensor:
    """The mean of each group's verdicts. (P, 1), float32 at least, as float16 ends at 65,504."""
    judged = ~rewards.isnan()
    wide = torch.where(judged, rewards, 0).to(torch.promote_types(rewards.dtype, torch.float32))
    return wide.sum(-1, keepdim=True) / judged.sum(-1, keepdim=True).clamp(min=1)


def _std(centred: Tensor, count: Tensor, ddof: int) -> Tensor:
    """Standard deviation along the last dimension from already centred values; 0 of fewer than two."""
    return (centred.square().sum(-1, keepdim=True) / (count - ddof).clamp(min=1)).sqrt()
