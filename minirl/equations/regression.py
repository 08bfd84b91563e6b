"""Regression onto the optimal advantage: RL with a KL penalty, as least squares.

The best policy for E[r] - β KL(π || ref) satisfies β log(π / ref) = r - V* for every completion,
with V* = β log E_ref[exp(r / β)]. A*-PO estimates V* once, from samples of the reference, and then
fits the equation, one sample per prompt.
"""

from __future__ import annotations

import math

from torch import Tensor

from minirl.equations.checks import check_constants, check_positive, check_same_shape


def optimal_values(rewards: Tensor, *, beta: float = 0.5) -> Tensor:
    r"""Estimate what the best policy near the reference would get, from the reference's samples.

    Equation   V*(x) = β log(1/G Σ_i exp(r_i / β))                       (beta is β_1)
    Paper      A*-PO, arXiv:2505.20686, of which the authors' code was read: it has the same
               numbers, and β_1 = 0.5.
    Shapes     rewards: (P, G), samples of the reference -> (P,)
    Gradient   none: a number.
    Raises     ValueError if rewards is not (P, G), holds an infinity or requires grad, or if beta
               is not positive.
    See        astar_po_loss, which takes it.

    It is between the mean (large β) and the maximum (small β). The estimate is biased downwards, as
    the log of a mean is, and consistent. NaN, "no verdict", is left out; a prompt without a verdict
    has the value NaN.

    >>> optimal_values(torch.tensor([[1.0, 0.0]]))  # 0.5 log((e² + 1) / 2)
    tensor([0.7169])
    """
    check_constants(rewards=rewards)
    check_positive(beta=beta)
    infinite = int(rewards.isinf().sum())
    if rewards.dim() != 2 or rewards.shape[1] == 0 or infinite:
        raise ValueError(f"rewards has the shape {tuple(rewards.shape)}, {infinite} of them "
                         "infinite: expected finite rewards (P, G), one row per prompt")
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    count = (~rewards.isnan()).sum(1)  # (P,)
    best = rewards.nan_to_num(nan=-math.inf).amax(1, keepdim=True)  # (P, 1): exp must not overflow
    shares = ((rewards - best) / beta).exp().nan_to_num(nan=0.0).sum(1) / count  # NaN of none
    return best[:, 0] + beta * shares.log()


def astar_po_loss(
    logp: Tensor, ref_logp: Tensor, rewards: Tensor, values: Tensor, *, beta: float = 1e-3
) -> Tensor:
    r"""A*-PO: fit the policy's implicit reward to the optimal advantage. Minimise.

    Equation   L_i = (β log(π(o_i) / ref(o_i)) - (r_i - V*_i))²          (beta is β_2)
    Paper      A*-PO, arXiv:2505.20686, of which the authors' code was read: it has the same
               numbers, and β_2 = 1e-3.
    Shapes     logp, ref_logp: log-probs of whole completions, rewards, values: all (N,) -> (N,)
    Gradient   through logp. Under any samples that reach every completion, the one minimum is
               ref exp(r / β) / Z if V* is exact, with the same β.
    Raises     ValueError if shapes differ, if all but logp requires grad, or if beta is not
               positive.
    See        optimal_values; preferences.implicit_reward, the term that is fitted.

    >>> logp, ref_logp = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    >>> astar_po_loss(logp, ref_logp, torch.ones(1), torch.zeros(1), beta=1.0)  # (log 2 - 1)²
    tensor([0.0942])
    """
    check_same_shape(logp=logp, ref_logp=ref_logp, rewards=rewards, values=values)
    check_constants(ref_logp=ref_logp, rewards=rewards, values=values)
    check_positive(beta=beta)
    if logp.dim() != 1:
        raise ValueError(f"logp is {tuple(logp.shape)}: expected (N,), one number per completion")
    return (beta * (logp - ref_logp) - (rewards - values)).square()
