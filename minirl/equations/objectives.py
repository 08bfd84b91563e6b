"""What an update maximises, one value per token or per sequence; reduce.aggregate takes the mean.

Only the two value losses at the end are minimised. The objectives differ in how a sample of an
older policy counts (ρ = π / π_old):

    policy_gradient             as a sample of the policy itself               Williams 1992
    clipped_surrogate           by ρ, without a gain beyond 1 ± ε              PPO, GRPO, DAPO
    dual_clipped_surrogate      the same, and never less than cap A if A < 0   dual-clip PPO
    kl_penalised_surrogate      by ρ, with a penalty on KL(old || new)         PPO
    sequence_clipped_surrogate  by one ρ for the whole completion              GSPO, R1
    gspo_token                  the same, with an advantage per token          GSPO
    gmpo, luspo, vespo          by other ratios of the whole completion        GMPO, LUSPO, VESPO
    cispo                       by the constant min(ρ, cap)                    CISPO
    dppo                        the same, until its probability moves by δ     DPPO
    sapo                        by a soft gate around ρ = 1                    SAPO
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.checks import (
    check_constants,
    check_positive,
    check_same_shape,
    guard_gradient,
)
from minirl.equations.entropy import entropy_mask as entropy_mask  # it stands beside entropy, too
from minirl.equations.kl import max_log_ratio

# objectives of their own file, which a reader looks for here first
from minirl.equations.sequence_objectives import gmpo as gmpo
from minirl.equations.sequence_objectives import luspo as luspo
from minirl.equations.sequence_objectives import vespo as vespo


def policy_gradient(logp: Tensor, adv: Tensor) -> Tensor:
    r"""The objective whose gradient is the policy gradient. Maximise.

    Equation   L_t = A_t log π(y_t | x, y_{<t})
    Paper      Williams 1992 (REINFORCE); PPO, arXiv:1707.06347, section 2.1, eqs. 1 and 2.
    Shapes     logp, adv: the same -> the same
    Gradient   through logp: A_t. It is the gradient of the expected reward only under samples of
               the policy itself.
    Raises     ValueError if shapes differ, or if adv requires grad.

    >>> policy_gradient(torch.tensor([[-0.5, -2.0]]), torch.tensor([[1.0, -1.0]]))
    tensor([[-0.5000,  2.0000]])
    """
    logp = guard_gradient(logp, adv=adv)
    return adv * logp


def clipped_surrogate(
    logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    r"""PPO-clip objective, one value per token. Maximise.

    Equation   ρ_t = exp(logp_t - old_logp_t)                 (the paper calls ρ_t "r_t(θ)")
               L_t = min(ρ_t A_t, clip(ρ_t, 1-ε_low, 1+ε_high) A_t)
               (clip_low is ε_low, clip_high is ε_high)
    Paper      PPO, arXiv:1707.06347, section 3, eq. 7, where ε_low = ε_high = 0.2. The same inner
               term: DeepSeekMath, arXiv:2402.03300, eq. 3. Two bounds ("clip-higher", 0.2 and
               0.28): DAPO, arXiv:2503.14476, eq. 10.
    Shapes     logp, old_logp, adv: (B, T) -> (B, T)
    Gradient   through logp only; zero where A > 0 and ρ > 1+ε_high, and where A < 0 and
               ρ < 1-ε_low.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if a bound is
               negative.
    See        reduce.aggregate for the mean, kl.k3 for the penalty.

    A ratio above exp(20) = 4.9e8 is capped there, with gradient 0: one broken token gives a large
    number, not an overflow.

    >>> rho = torch.tensor([[0.5, 1.0, 1.5]]); zero = torch.zeros(1, 3); one = torch.ones(1, 3)
    >>> clipped_surrogate(rho.log(), zero, one)  # the gain is capped above 1 + ε
    tensor([[0.5000, 1.0000, 1.2000]])
    >>> clipped_surrogate(rho.log(), zero, -one)  # pessimistic: min, never max
    tensor([[-0.8000, -1.0000, -1.5000]])
    """
    logp = guard_gradient(logp, old_logp=old_logp, adv=adv)
    _check_clip(clip_low, clip_high)
    ratio = _ratio(logp, old_logp)  # (B, T)
    return torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)


def dual_clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    adv: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    cap: float = 3.0,
) -> Tensor:
    r"""PPO-clip with a floor: where A < 0, no ratio costs more than cap |A|. Maximise.

    Equation   L_t = max(min(ρ_t A_t, clip(ρ_t, 1-ε_low, 1+ε_high) A_t), c A_t)   where A_t < 0
               L_t = min(ρ_t A_t, clip(ρ_t, 1-ε_low, 1+ε_high) A_t)               where A_t ≥ 0
               (cap is c)
    Paper      Ye et al., "Mastering Complex Control in MOBA Games", arXiv:1912.09729 (dual-clip
               PPO), c = 3. TRL's `delta` (4 in INTELLECT-2, arXiv:2505.07291) is the same cap on ρ.
    Shapes     logp, old_logp, adv: (B, T) -> (B, T)
    Gradient   as clipped_surrogate, and also zero where A < 0 and ρ > c.
    Raises     ValueError as clipped_surrogate, and if cap is not above 1 + clip_high.

    >>> zero = torch.zeros(1, 2); rho = torch.tensor([[2.0, 5.0]])
    >>> dual_clipped_surrogate(rho.log(), zero, torch.tensor([[-1.0, -1.0]]))  # 5 is capped at 3
    tensor([[-2., -3.]])
    """
    if not cap > 1 + clip_high:
        raise ValueError(f"cap is {cap} and 1 + clip_high {1 + clip_high}: expected a cap above "
                         "it, or it would undo the clip")
    inner = clipped_surrogate(logp, old_logp, adv, clip_low=clip_low, clip_high=clip_high)
    return torch.where(adv < 0, torch.maximum(inner, cap * adv), inner)


def kl_penalised_surrogate(
    logp: Tensor, old_logp: Tensor, adv: Tensor, kl: Tensor, kl_coef: float
) -> Tensor:
    r"""PPO's other objective: no clip, but a penalty on leaving the old policy. Maximise.

    Equation   L_t = ρ_t A_t - β KL(π_old || π)(s_t)                        (kl_coef is β)
    Paper      PPO, arXiv:1707.06347, section 4, eq. 8. The KL is KL(old || new), not to a
               reference. Under samples of π_old both old_logp - logp and ρ - 1 - log ρ estimate
               it without bias, in value and gradient.
    Shapes     logp, old_logp, adv, kl: (B, T) -> (B, T)
    Gradient   through logp and kl.
    Raises     ValueError if shapes differ, or if old_logp or adv requires grad.
    See        kl.adaptive_kl_coef, which changes kl_coef between updates.

    >>> logp, zero = torch.tensor([[2.0]]).log(), torch.zeros(1, 1)
    >>> kl_penalised_surrogate(logp, zero, zero + 1, zero + 0.5, kl_coef=1.0)  # 2 * 1 - 0.5
    tensor([[1.5000]])
    """
    logp = guard_gradient(logp, old_logp=old_logp, adv=adv)
    if kl.shape != logp.shape:
        raise ValueError(f"kl is {tuple(kl.shape)} beside logp {tuple(logp.shape)}: expected the "
                         "same shape")
    return _ratio(logp, old_logp) * adv - kl_coef * kl


def sequence_ratio(
    logp: Tensor, old_logp: Tensor, mask: Tensor, *, length_normalised: bool
) -> Tensor:
    r"""One importance ratio per completion: the product of its tokens' ratios, or their mean.

    Equation   ρ_i = π(o_i) / π_old(o_i) = exp(Σ_t d_t),   d_t = logp_t - old_logp_t
               s_i = ρ_i^(1/|o_i|) = exp(1/|o_i| Σ_t d_t)          (length_normalised)
    Paper      GSPO, arXiv:2507.18071, eq. 7 (s_i); DeepSeek-R1, arXiv:2501.12948, eq. 1 (ρ_i).
    Shapes     logp, old_logp, mask: (B, T) -> (B,); 1 for an empty row
    Gradient   through logp; 0 where the ratio is above exp(20) and capped there.
    Raises     ValueError if shapes differ, or if old_logp requires grad.

    >>> d, zero, mask = torch.tensor([[0.1, -0.2, 0.3, 0.0]]), torch.zeros(1, 4), torch.ones(1, 4)
    >>> sequence_ratio(d, zero, mask, length_normalised=True)  # the geometric mean, e^0.05
    tensor([1.0513])
    >>> sequence_ratio(d, zero, mask, length_normalised=False)  # the product, e^0.2
    tensor([1.2214])
    """
    logp = guard_gradient(logp, old_logp=old_logp)
    if mask.shape != logp.shape or logp.dim() != 2:
        raise ValueError(f"mask {tuple(mask.shape)} beside logp {tuple(logp.shape)}: expected "
                         "twice (B, T)")
    log_ratio = torch.where(mask.bool(), logp - old_logp, 0).sum(1)  # (B,)
    if length_normalised:
        log_ratio = log_ratio / mask.bool().sum(1).clamp(min=1)
    return log_ratio.clamp(max=max_log_ratio(logp)).exp()


def sequence_clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    adv: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    length_normalised: bool,
) -> Tensor:
    r"""PPO-clip on the ratio of the whole completion, one value per sequence. Maximise.

    Equation   L_i = min(s_i A_i, clip(s_i, 1-ε_low, 1+ε_high) A_i)      (s_i: sequence_ratio)
    Paper      GSPO, arXiv:2507.18071, eq. 5: length_normalised, ε_low 3e-4, ε_high 4e-4.
               DeepSeek-R1, arXiv:2501.12948, eq. 1: not length_normalised; ε is 10 in the first
               RL stage (Nature version).
    Shapes     logp, old_logp, mask: (B, T), adv: (B,) -> (B,). The objective is the mean over rows.
    Gradient   through logp. At ratio 1 every token of row i has the weight A_i / |o_i| (GSPO) or
               A_i (R1).
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if a bound is
               negative.
    See        clipped_surrogate, the same for each token.

    >>> d, zero, mask = torch.tensor([[0.1, 0.3]]), torch.zeros(1, 2), torch.ones(1, 2)
    >>> from functools import partial
    >>> surrogate = partial(sequence_clipped_surrogate, clip_low=0.2, clip_high=0.3)
    >>> surrogate(d, zero, torch.ones(1), mask, length_normalised=True)  # e^0.2
    tensor([1.2214])
    >>> surrogate(d, zero, torch.ones(1), mask, length_normalised=False)  # e^0.4 = 1.49: clipped
    tensor([1.3000])
    """
    _check_clip(clip_low, clip_high)
    check_constants(adv=adv)
    if adv.shape != logp.shape[:1]:
        raise ValueError(f"adv is {tuple(adv.shape)} beside logp {tuple(logp.shape)}: expected one "
                         "constant per sequence, (B,)")
    ratio = sequence_ratio(logp, old_logp, mask, length_normalised=length_normalised)  # (B,)
    return torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)


def gspo_token(
    logp: Tensor,
    old_logp: Tensor,
    adv: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:
    r"""GSPO with an advantage per token: each ratio has the sequence's value. Maximise.

    Equation   s_{i,t} = sg[s_i] π_t / sg[π_t]                (sg: no gradient; s_i: sequence_ratio)
               L_t = min(s_{i,t} A_t, clip(s_{i,t}, 1-ε_low, 1+ε_high) A_t)
    Paper      GSPO, arXiv:2507.18071, section 4.3, eqs. 13 and 14.
    Shapes     logp, old_logp, adv, mask: (B, T) -> (B, T)
    Gradient   through logp, for each token its own. With one advantage per row, "sequence_mean"
               gives the value and gradient of sequence_clipped_surrogate.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if a bound is
               negative.

    >>> d, zero, one = torch.tensor([[0.0, 0.0002]]), torch.zeros(1, 2), torch.ones(1, 2)
    >>> gspo_token(d, zero, one, one)  # e^0.0001 for both tokens
    tensor([[1.0001, 1.0001]])
    """
    logp = guard_gradient(logp, old_logp=old_logp, adv=adv)
    _check_clip(clip_low, clip_high)
    sequence = sequence_ratio(logp.detach(), old_logp, mask, length_normalised=True)[:, None]
    largest = sequence.new_tensor(max_log_ratio(logp)).exp()
    capped = sequence >= largest  # (B, 1); a capped ratio has no gradient
    sampled = torch.where(mask.bool() & ~capped, logp, 0)
    ratio = sequence * (sampled - sampled.detach()).exp()  # (B, T); its value is the sequence's
    return torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)


def cispo(logp: Tensor, old_logp: Tensor, adv: Tensor, *, cap: float) -> Tensor:
    r"""Policy gradient with a capped, constant importance weight: no token is dropped. Maximise.

    Equation   L_t = sg[min(ρ_t, cap)] A_t log π_t                        (sg: no gradient)
    Paper      CISPO, MiniMax-M1, arXiv:2506.13585, section 3.1, eqs. 4 and 5. There cap = 1+ε_high,
               no lower bound takes effect, and the mean is over tokens.
    Erratum    TRL's epsilon_high is this cap (5 recommended). In rlhf-book it is ε_high: the cap is
               1 more.
    Shapes     logp, old_logp, adv: (B, T) -> (B, T)
    Gradient   through logp: min(ρ, cap) A, never zero unless A is.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if cap is not
               positive.

    >>> logp, old_logp = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -3.0]])
    >>> cispo(logp, old_logp, torch.ones(1, 2), cap=5.0)  # ratios 1 and e^2 = 7.4, cut to 5
    tensor([[-1., -5.]])
    """
    logp = guard_gradient(logp, old_logp=old_logp, adv=adv)
    check_positive(cap=cap)
    return _ratio(logp.detach(), old_logp).clamp(max=cap) * adv * logp


def dppo(
    logp: Tensor, old_logp: Tensor, adv: Tensor, *, delta: float, cap: float = 20.0
) -> Tensor:
    r"""Policy gradient inside a trust region of probabilities, not of their ratio. Maximise.

    Equation   L_t = sg[min(ρ_t, cap)] A_t log π_t M_t                    (sg: no gradient)
               M_t = 1{π_t - μ_t ≤ δ}    where A_t > 0
               M_t = 1{π_t - μ_t ≥ -δ}   elsewhere            (delta is δ, old_logp is log μ_t)
    Paper      DPPO, arXiv:2602.04879v3, section 4.3, eq. 12, with the binary total variation of
               eq. 13: |π_t - μ_t| is that of "this token or another". δ is 0.15 (appendix C.1) or
               0.2 (appendix E).
    Erratum    Eq. 12 has no cap, and section 5.4 finds that capped ratios do harm. Yet appendix E
               caps at 5, the authors' code at 10, and verl's loss, as here, at 20: a ratio of 100
               then weighs a fifth. float("inf") is eq. 12.
    Shapes     logp, old_logp, adv: (B, T) -> (B, T)
    Gradient   through logp: min(ρ, cap) A, and zero where the update would move π_t further than δ
               away. A ratio of 5 is allowed for a token of μ = 0.01 and refused for one of 0.15.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if delta or cap is
               not positive.
    See        clipped_surrogate, whose region is one of ratios; cispo, which has none. old_logp is
               the sampler's log-prob in the paper, so that δ bounds the mismatch as well.

    >>> logp, old_logp = torch.tensor([[0.05, 0.75]]).log(), torch.tensor([[0.01, 0.15]]).log()
    >>> dppo(logp, old_logp, torch.ones(1, 2), delta=0.2)  # 5 log 0.05, then 0.75 - 0.15 > 0.2
    tensor([[-14.9787,  -0.0000]])
    """
    logp = guard_gradient(logp, old_logp=old_logp, adv=adv)
    check_positive(delta=delta, cap=cap)
    moved = logp.exp() - old_logp.exp()  # (B, T), only compared
    inside = torch.where(adv > 0, moved <= delta, moved >= -delta)  # (B, T)
    weights = _ratio(logp.detach(), old_logp).clamp(max=cap) * inside
    return weights * adv * logp


def sapo(
    logp: Tensor, old_logp: Tensor, adv: Tensor, *, temp_pos: float = 1.0, temp_neg: float = 1.05
) -> Tensor:
    r"""Soft adaptive policy optimisation: a gate lets the gradient fade, not end. Maximise.

    Equation   L_t = 4/τ σ(τ (ρ_t - 1)) A_t                               (σ: the sigmoid)
               τ = temp_pos where A_t > 0, temp_neg elsewhere
    Paper      SAPO, arXiv:2511.20347, eqs. 5 and 6; the temperatures are TRL's defaults.
    Shapes     logp, old_logp, adv: (B, T) -> (B, T)
    Gradient   through logp: A ρ 4 σ (1-σ), which is A at ρ = 1 and never exactly zero.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if a temperature is
               not positive.

    >>> rho = torch.tensor([[0.5, 1.0, 1.5]])
    >>> sapo(rho.log(), torch.zeros(1, 3), torch.ones(1, 3))  # 4 σ(-0.5), 4/2, 4 σ(0.5)
    tensor([[1.5102, 2.0000, 2.4898]])
    """
    logp = guard_gradient(logp, old_logp=old_logp, adv=adv)
    check_positive(temp_pos=temp_pos, temp_neg=temp_neg)
    temperature = torch.where(adv > 0, adv.new_tensor(temp_pos), adv.new_tensor(temp_neg))
    gate = torch.sigmoid(temperature * (_ratio(logp, old_logp) - 1))  # (B, T)
    return 4 / temperature * gate * adv


def entropy(logits: Tensor) -> Tensor:
    r"""Entropy of each next-token distribution, a bonus against settling too early. Maximise.

    Equation   S = -Σ_v π(v) log π(v)
    Paper      PPO, arXiv:1707.06347, eq. 9. Its weight there, c_2, is 0.01 on Atari.
    Shapes     logits: (..., V) -> (...)
    Gradient   through logits.
    See        lm.logprobs.linear_logprobs(return_entropy=True), which does not hold the logits.

    >>> entropy(torch.tensor([0.5, 0.25, 0.25]).log())  # 1/2 log 2 + 1/2 log 4
    tensor(1.0397)
    """
    logp = logits.log_softmax(-1)
    p = logp.exp()
    return (p * torch.where(p > 0, -logp, 0)).sum(-1)


def ppo_objective(
    surrogate: Tensor,
    value_loss: Tensor,
    entropy: Tensor,
    *,
    value_coef: float = 1.0,
    entropy_coef: float = 0.01,
) -> Tensor:
    r"""PPO with a value function and an entropy bonus, term by term. Maximise.

    Equation   L = L^CLIP - c_1 L^VF + c_2 S           (value_coef is c_1, entropy_coef is c_2)
    Paper      PPO, arXiv:1707.06347, section 5, eq. 9; c_1 = 1, c_2 = 0.01 on Atari.
    Erratum    The paper's L^VF is (V - V_targ)². In code bases, and here, value_loss has a factor
               1/2: the paper's c_1 = 1 is a value_coef of 2.
    Shapes     surrogate, value_loss, entropy: the same -> the same
    Gradient   through all three.
    Raises     ValueError if shapes differ.

    >>> ppo_objective(torch.tensor(1.0), torch.tensor(0.5), torch.tensor(2.0))
    tensor(0.5200)
    """
    check_same_shape(surrogate=surrogate, value_loss=value_loss, entropy=entropy)
    return surrogate - value_coef * value_loss + entropy_coef * entropy


def ptx_objective(
    objective: Tensor, pretraining_logp: Tensor, *, ptx_coef: float = 27.8
) -> Tensor:
    r"""PPO-ptx: add the log-likelihood of pretraining text, so that old skills are kept. Maximise.

    Equation   E[r - β log(π / π_SFT)] + γ E_pretrain[log π(x)]
               (ptx_coef is γ, no discount; objective is the first expectation)
    Paper      InstructGPT, arXiv:2203.02155, eq. 2; γ = 27.8, appendix C.4.
    Shapes     scalar, scalar (each already aggregated over its own batch) -> scalar
    Gradient   through both.
    Raises     ValueError if one is not a scalar: the two batches have different token counts.

    >>> ptx_objective(torch.tensor(0.5), torch.tensor(-2.0), ptx_coef=0.1)  # 0.5 - 0.2
    tensor(0.3000)
    """
    if objective.dim() or pretraining_logp.dim():
        raise ValueError(f"objective {tuple(objective.shape)}, pretraining_logp "
                         f"{tuple(pretraining_logp.shape)}: expected two scalars, each averaged "
                         "over its own batch")
    return objective + ptx_coef * pretraining_logp


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    r"""Half the squared distance to the return. Minimise.

    Equation   L_t = 1/2 (V_t - R_t)²
    Paper      PPO, arXiv:1707.06347, eq. 9 (without the 1/2).
    Shapes     values, returns: the same -> the same
    Gradient   through values: V - R.
    Raises     ValueError if shapes differ, or if returns requires grad.

    >>> value_loss(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    tensor([[2.]])
    """
    values = guard_gradient(values, returns=returns)
    return 0.5 * (values - returns).square()


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float = 0.2
) -> Tensor:
    r"""The larger of two value losses: with the new value, and with it kept near the old. Minimise.

    Equation   L_t = 1/2 max((V_t - R_t)², (clip(V_t, V_old-ε, V_old+ε) - R_t)²)       (clip is ε)
    Paper      none: PPO's first code (OpenAI baselines). Neither the PPO nor the InstructGPT paper
               has it.
    Shapes     values, old_values, returns: the same -> the same
    Gradient   through values; zero where V has left the range around V_old towards R, and is nearer
               to R than the edge of the range.
    Raises     ValueError if shapes differ, if old_values or returns requires grad, or if clip is
               negative.

    >>> values, old_values, returns = torch.tensor([[[1.0]], [[0.0]], [[1.0]]])
    >>> clipped_value_loss(values, old_values, returns)  # V is clipped to 0.2: 1/2 0.8²
    tensor([[0.3200]])
    """
    values = guard_gradient(values, old_values=old_values, returns=returns)
    if not clip >= 0:
        raise ValueError(f"clip is {clip}: expected a distance, at least 0")
    near = torch.maximum(torch.minimum(values, old_values + clip), old_values - clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def _ratio(logp: Tensor, old_logp: Tensor) -> Tensor:
    """Return the importance ratio, capped where it would overflow."""
    return (logp - old_logp).clamp(max=max_log_ratio(logp)).exp()


def _check_clip(clip_low: float, clip_high: float) -> None:
    if not (clip_low >= 0 and clip_high >= 0):
        raise ValueError(f"clip_low is {clip_low}, clip_high {clip_high}: expected distances below "
                         "and above 1, at least 0")
