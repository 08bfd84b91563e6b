"""What an update makes large, one value per token or per sequence; averaging is reduce.aggregate. Only the value losses are made small.

    objective                     how a sample of an older policy counts, rho = pi / pi_old         arXiv
    policy_gradient               not at all: samples are the policy's own                          (Williams 1992)
    clipped_surrogate             rho, no further than 1 +- eps in the direction of gain            1707.06347 (PPO), 2402.03300 (GRPO)
    dual_clipped_surrogate        the same, and no less than cap A where A < 0                      1912.09729
    kl_penalised_surrogate        rho, and a price on KL(old || new)                                1707.06347
    sequence_clipped_surrogate    one rho for the whole completion, a product or its mean           2507.18071 (GSPO), 2501.12948 (R1)
    gspo_token                    the same value, with room for an advantage per token              2507.18071
    cispo                         a constant weight min(rho, cap): no token loses its gradient      2506.13585
    sapo                          a soft gate around rho = 1 instead of a clip                      2511.20347
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirl.equations.kl import max_log_ratio


def policy_gradient(logp: Tensor, adv: Tensor) -> Tensor:
    r"""The objective whose gradient is the policy gradient. Maximise.

    Equation   L_t = A_t log pi(y_t | x, y_<t)
    Paper      Williams 1992 (REINFORCE); PPO, arXiv:1707.06347, section 2.1, eqs. 1 and 2.
    Shapes     logp, adv: the same -> the same
    Gradient   through logp: A_t. It is the gradient of the expected reward only for samples of the policy itself.
    Raises     ValueError if shapes differ, or if adv requires grad.

    >>> policy_gradient(torch.tensor([[-0.5, -2.0]]), torch.tensor([[1.0, -1.0]]))
    tensor([[-0.5000,  2.0000]])
    """
    logp = _checked(logp, adv=adv)
    return adv * logp


def clipped_surrogate(logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    r"""PPO-clip objective, one value per token. Maximise.

    Equation   rho_t = exp(logp_t - old_logp_t)              (the paper calls rho_t "r_t(theta)")
               L_t   = min(rho_t A_t, clip(rho_t, 1 - eps_low, 1 + eps_high) A_t)
    Paper      PPO, arXiv:1707.06347, section 3, eq. 7, where eps_low = eps_high = 0.2. The same inner term: DeepSeekMath,
               arXiv:2402.03300, eq. 3. Two bounds ("clip-higher", 0.2 and 0.28): DAPO, arXiv:2503.14476, eq. 10.
    Shapes     logp, old_logp, adv: (B, T) -> (B, T)
    Gradient   through logp only; zero where A > 0 and rho > 1 + eps_high, and where A < 0 and rho < 1 - eps_low.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if a bound is negative.
    See        reduce.aggregate for the mean, kl.k3 for the penalty.

    A ratio above exp(20) = 4.9e8 is held there, with gradient 0, so that one broken token gives a large number and not an overflow.

    >>> rho = torch.tensor([[0.5, 1.0, 1.5]]); zero = torch.zeros(1, 3); one = torch.ones(1, 3)
    >>> clipped_surrogate(rho.log(), zero, one)          # the gain is capped above 1 + eps
    tensor([[0.5000, 1.0000, 1.2000]])
    >>> clipped_surrogate(rho.log(), zero, -one)         # pessimistic: min, never max
    tensor([[-0.8000, -1.0000, -1.5000]])
    """
    logp = _checked(logp, old_logp=old_logp, adv=adv)
    _check_clip(clip_low, clip_high)
    ratio = _ratio(logp, old_logp)                                                           # (B, T)
    return torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)


def dual_clipped_surrogate(logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2, cap: float = 3.0) -> Tensor:
    r"""PPO-clip with a floor: where A < 0, a ratio far above 1 costs no more than cap |A|. Maximise.

    Equation   L_t = max(min(rho A, clip(rho) A), cap A) where A < 0 ;   as clipped_surrogate where A >= 0
    Paper      Ye et al., "Mastering Complex Control in MOBA Games", arXiv:1912.09729 (dual-clip PPO), cap 3. TRL's `delta` (4 in INTELLECT-2,
               arXiv:2505.07291) is the same cap on rho.
    Shapes     logp, old_logp, adv: (B, T) -> (B, T)
    Gradient   as clipped_surrogate, and also zero where A < 0 and rho > cap.
    Raises     ValueError as clipped_surrogate, and if cap does not exceed 1 + clip_high (and 1).

    >>> zero = torch.zeros(1, 2); rho = torch.tensor([[2.0, 5.0]])
    >>> dual_clipped_surrogate(rho.log(), zero, torch.tensor([[-1.0, -1.0]]))           # 5 is capped at 3
    tensor([[-2., -3.]])
    """
    if not cap > 1 + clip_high:
        raise ValueError(f"cap is {cap} and 1 + clip_high {1 + clip_high}: a cap above it is wanted, or it would undo the clip")
    inner = clipped_surrogate(logp, old_logp, adv, clip_low=clip_low, clip_high=clip_high)
    return torch.where(adv < 0, torch.maximum(inner, cap * adv), inner)


def kl_penalised_surrogate(logp: Tensor, old_logp: Tensor, adv: Tensor, kl: Tensor, kl_coef: float) -> Tensor:
    r"""PPO's other objective: no clip, but a price on leaving the old policy. Maximise.

    Equation   L_t = rho_t A_t - beta KL[pi_old, pi](s_t)
    Paper      PPO, arXiv:1707.06347, section 4, eq. 8. The KL is old || new, and not to a reference. Under samples of pi_old both
               old_logp - logp and rho - 1 - log rho estimate it without bias, in value and gradient.
    Shapes     logp, old_logp, adv, kl: (B, T) -> (B, T)
    Gradient   through logp and kl.
    Raises     ValueError if shapes differ, or if old_logp or adv requires grad.
    See        kl.adaptive_kl_coef, which changes kl_coef between updates.

    >>> zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    >>> kl_penalised_surrogate(torch.tensor([[2.0]]).log(), zero, one, torch.tensor([[0.5]]), 1.0)          # 2 * 1 - 0.5
    tensor([[1.5000]])
    """
    logp = _checked(logp, old_logp=old_logp, adv=adv)
    if kl.shape != logp.shape:
        raise ValueError(f"kl is {tuple(kl.shape)} beside logp {tuple(logp.shape)}: the same shape is wanted")
    return _ratio(logp, old_logp) * adv - kl_coef * kl


def sequence_ratio(logp: Tensor, old_logp: Tensor, mask: Tensor, *, length_normalised: bool) -> Tensor:
    r"""One importance ratio for a whole completion: the product of its tokens' ratios, or their geometric mean.

    Equation   rho_i = pi(o_i) / pi_old(o_i) = exp(sum_t d_t) ;   s_i = rho_i^(1/|o_i|) = exp(mean_t d_t)      d_t = logp_t - old_logp_t
    Paper      GSPO, arXiv:2507.18071, eq. 7 (s); DeepSeek-R1, arXiv:2501.12948, eq. 1 (rho).
    Shapes     logp, old_logp, mask (B, T) -> (B,); 1 for an empty row
    Gradient   through logp; 0 where the ratio is above exp(20) and held there.
    Raises     ValueError if shapes differ, or if old_logp requires grad.

    >>> d = torch.tensor([[0.1, -0.2, 0.3, 0.0]]); zero, mask = torch.zeros(1, 4), torch.ones(1, 4)
    >>> sequence_ratio(d, zero, mask, length_normalised=True), sequence_ratio(d, zero, mask, length_normalised=False)      # e^0.05, e^0.2
    (tensor([1.0513]), tensor([1.2214]))
    """
    logp = _checked(logp, old_logp=old_logp)
    if mask.shape != logp.shape or logp.dim() != 2:
        raise ValueError(f"mask {tuple(mask.shape)} beside logp {tuple(logp.shape)}: twice (B, T) is wanted")
    log_ratio = torch.where(mask.bool(), logp - old_logp, 0).sum(1)                          # (B,)
    if length_normalised:
        log_ratio = log_ratio / mask.bool().sum(1).clamp(min=1)
    return log_ratio.clamp(max=max_log_ratio(logp)).exp()


def sequence_clipped_surrogate(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor, *, clip_low: float, clip_high: float,
                               length_normalised: bool) -> Tensor:
    r"""PPO-clip on the ratio of the whole completion, one value per sequence. Maximise.

    Equation   L_i = min(s_i A_i, clip(s_i, 1 - eps_low, 1 + eps_high) A_i)
    Paper      GSPO, arXiv:2507.18071, eq. 5, eps_low 3e-4, eps_high 4e-4 (length_normalised); DeepSeek-R1, arXiv:2501.12948, eq. 1 (not;
               RL stage 1: eps 10 in the Nature version).
    Shapes     logp, old_logp, mask (B, T), adv (B,) -> (B,); the mean over rows is the objective
    Gradient   through logp. At ratio 1 every token of row i has weight A_i / |o_i| (GSPO) or A_i (R1).
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if a bound is negative.
    See        clipped_surrogate, the same for each token.

    >>> d = torch.tensor([[0.1, 0.3]]); zero, mask, one = torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1)
    >>> sequence_clipped_surrogate(d, zero, one, mask, clip_low=0.2, clip_high=0.3, length_normalised=True)      # e^0.2
    tensor([1.2214])
    >>> sequence_clipped_surrogate(d, zero, one, mask, clip_low=0.2, clip_high=0.3, length_normalised=False)     # e^0.4 = 1.49: clipped
    tensor([1.3000])
    """
    _check_clip(clip_low, clip_high)
    if adv.shape != logp.shape[:1] or adv.requires_grad:
        raise ValueError(f"adv is {tuple(adv.shape)} beside logp {tuple(logp.shape)}, requires_grad {adv.requires_grad}: one constant per sequence, (B,), is wanted")
    ratio = sequence_ratio(logp, old_logp, mask, length_normalised=length_normalised)        # (B,)
    return torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)


def gspo_token(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Tensor:
    r"""GSPO with an advantage per token: the value of every token's ratio is the sequence's, its gradient its own. Maximise.

    Equation   s_it = sg[s_i] pi_t / sg[pi_t] ;   L_t = min(s_it A_t, clip(s_it, 1 - eps_low, 1 + eps_high) A_t)          sg: no gradient
    Paper      GSPO, arXiv:2507.18071, section 4.3, eqs. 13 and 14.
    Shapes     logp, old_logp, adv, mask: (B, T) -> (B, T)
    Gradient   through logp. With one advantage per row its sequence_mean has the value and gradient of sequence_clipped_surrogate.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if a bound is negative.

    >>> d = torch.tensor([[0.0, 0.0002]])
    >>> gspo_token(d, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2))                 # e^0.0001 for both tokens
    tensor([[1.0001, 1.0001]])
    """
    logp = _checked(logp, old_logp=old_logp, adv=adv)
    _check_clip(clip_low, clip_high)
    sequence = sequence_ratio(logp.detach(), old_logp, mask, length_normalised=True)[:, None]        # (B, 1)
    held = sequence >= sequence.new_tensor(max_log_ratio(logp)).exp()        # no gradient
    sampled = torch.where(mask.bool() & ~held, logp, 0)
    ratio = sequence * (sampled - sampled.detach()).exp()                                    # (B, T), value: the sequence's
    return torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)


def cispo(logp: Tensor, old_logp: Tensor, adv: Tensor, *, cap: float) -> Tensor:
    r"""Policy gradient with a capped, constant importance weight: a clipped token is weighed less, never dropped. Maximise.

    Equation   L_t = sg[min(rho_t, cap)] A_t log pi_t
    Paper      CISPO, MiniMax-M1, arXiv:2506.13585, section 3.1, eqs. 4 and 5: no lower bound in effect, cap = 1 + eps_high, averaged over tokens.
    Erratum    TRL's epsilon_high is this cap itself (5 recommended); in rlhf-book it is eps_high, so that the cap is 1 more.
    Shapes     logp, old_logp, adv: (B, T) -> (B, T)
    Gradient   through logp: min(rho, cap) A, never zero but for A = 0.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if cap is not positive.

    >>> cispo(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -3.0]]), torch.ones(1, 2), cap=5.0)     # ratios 1 and e^2 = 7.4, cut to 5
    tensor([[-1., -5.]])
    """
    logp = _checked(logp, old_logp=old_logp, adv=adv)
    if not cap > 0:
        raise ValueError(f"cap is {cap}: the largest weight, a positive number, is wanted")
    return _ratio(logp.detach(), old_logp).clamp(max=cap) * adv * logp


def sapo(logp: Tensor, old_logp: Tensor, adv: Tensor, *, temp_pos: float = 1.0, temp_neg: float = 1.05) -> Tensor:
    r"""Soft adaptive policy optimisation: a sigmoid gate around ratio 1 lets the gradient fade where a clip would cut it. Maximise.

    Equation   L_t = 4 / tau sigmoid(tau (rho_t - 1)) A_t,    tau = temp_pos where A > 0, else temp_neg
    Paper      SAPO, arXiv:2511.20347, eqs. 5 and 6 (constants as in TRL).
    Shapes     logp, old_logp, adv: (B, T) -> (B, T)
    Gradient   through logp: A rho 4 sigmoid (1 - sigmoid), which is A at rho = 1 and never exactly zero.
    Raises     ValueError if shapes differ, if old_logp or adv requires grad, or if a temperature is not positive.

    >>> rho = torch.tensor([[0.5, 1.0, 1.5]])                                                # 4 sigmoid(-0.5), 4/2, 4 sigmoid(0.5)
    >>> sapo(rho.log(), torch.zeros(1, 3), torch.ones(1, 3))
    tensor([[1.5102, 2.0000, 2.4898]])
    """
    logp = _checked(logp, old_logp=old_logp, adv=adv)
    if not (temp_pos > 0 and temp_neg > 0):
        raise ValueError(f"temp_pos is {temp_pos}, temp_neg {temp_neg}: positive numbers are wanted")
    temperature = torch.where(adv > 0, adv.new_tensor(temp_pos), adv.new_tensor(temp_neg))
    return 4 / temperature * torch.sigmoid(temperature * (_ratio(logp, old_logp) - 1)) * adv


def entropy(logits: Tensor) -> Tensor:
    r"""Entropy of each next-token distribution: the bonus that keeps a policy from settling too early. Maximise.

    Equation   S = -sum_v pi(v) log pi(v)
    Paper      PPO, arXiv:1707.06347, eq. 9 (times c2: 0.01 on Atari).
    Shapes     logits (..., V) -> (...)
    Gradient   through logits.
    See        lm.logprobs.linear_logprobs(return_entropy=True), which gives it without holding the logits.

    >>> entropy(torch.tensor([0.5, 0.25, 0.25]).log())                                       # 1/2 log 2 + 1/2 log 4
    tensor(1.0397)
    """
    logp = logits.log_softmax(-1)
    p = logp.exp()
    return (p * torch.where(p > 0, -logp, 0)).sum(-1)


def ppo_objective(surrogate: Tensor, value_loss: Tensor, entropy: Tensor, *, value_coef: float = 1.0, entropy_coef: float = 0.01) -> Tensor:
    r"""PPO with a value function and an entropy bonus, term by term. Maximise.

    Equation   L = L_CLIP - c1 L_VF + c2 S
    Paper      PPO, arXiv:1707.06347, section 5, eq. 9; c1 = 1, c2 = 0.01 on Atari.
    Erratum    The paper's L_VF is (V - V_targ)^2; the code bases' value_loss has a factor 1/2, so its c1 = 1 is theirs at 2.
    Shapes     three times the same -> the same
    Gradient   through all three.
    Raises     ValueError if shapes differ.

    >>> ppo_objective(torch.tensor(1.0), torch.tensor(0.5), torch.tensor(2.0))
    tensor(0.5200)
    """
    if not surrogate.shape == value_loss.shape == entropy.shape:
        raise ValueError(f"surrogate {tuple(surrogate.shape)}, value_loss {tuple(value_loss.shape)}, entropy {tuple(entropy.shape)}: the same shape is wanted")
    return surrogate - value_coef * value_loss + entropy_coef * entropy


def ptx_objective(objective: Tensor, pretraining_logp: Tensor, *, ptx_coef: float = 27.8) -> Tensor:
    r"""PPO-ptx: the reinforcement objective plus the log-likelihood of pretraining text, so that old skills are kept. Maximise.

    Equation   E[r - beta log(pi / pi_SFT)] + gamma E_pretrain[log pi(x)]                 (the paper's gamma is no discount)
    Paper      InstructGPT, arXiv:2203.02155, eq. 2; gamma 27.8, appendix C.4.
    Shapes     scalar, scalar (each already aggregated over its own batch) -> scalar
    Gradient   through both.
    Raises     ValueError if one of them is no scalar: two batches have two numbers of tokens.

    >>> ptx_objective(torch.tensor(0.5), torch.tensor(-2.0), ptx_coef=0.1)
    tensor(0.3000)
    """
    if objective.dim() or pretraining_logp.dim():
        raise ValueError(f"objective {tuple(objective.shape)}, pretraining_logp {tuple(pretraining_logp.shape)}: two scalars, each averaged over its own batch, are wanted")
    return objective + ptx_coef * pretraining_logp


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    r"""Half the squared distance to the return. Minimise.

    Equation   L_t = 1/2 (V_t - R_t)^2
    Paper      PPO, arXiv:1707.06347, eq. 9 (there without the 1/2).
    Shapes     values, returns: the same -> the same
    Gradient   through values: V - R.
    Raises     ValueError if shapes differ, or if returns requires grad.

    >>> value_loss(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    tensor([[2.]])
    """
    values = _checked(values, returns=returns)
    return 0.5 * (values - returns).square()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float = 0.2) -> Tensor:
    r"""The larger of two value losses: of the new value, and of the new value kept near the old one. Minimise.

    Equation   L_t = 1/2 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)
    Paper      none: PPO's first code (OpenAI baselines); neither the PPO nor the InstructGPT paper has it.
    Shapes     values, old_values, returns: the same -> the same
    Gradient   through values; zero where V has left the range around V_old in the direction of R, and is nearer to R than the range's edge.
    Raises     ValueError if shapes differ, if old_values or returns requires grad, or if clip is negative.

    >>> clipped_value_loss(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]))      # clipped to 0.2: 1/2 0.8^2
    tensor([[0.3200]])
    """
    values = _checked(values, old_values=old_values, returns=returns)
    if not clip >= 0:
        raise ValueError(f"clip is {clip}: a distance, not negative, is wanted")
    near = torch.maximum(torch.minimum(values, old_values + clip), old_values - clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def _ratio(logp: Tensor, old_logp: Tensor) -> Tensor:
    return (logp - old_logp).clamp(max=max_log_ratio(logp)).exp()


def _checked(x: Tensor, **constants: Tensor) -> Tensor:
    """The same shape for all, and no gradient through what the update takes as given.

    Where a constant is not finite, x has no gradient. Under a zero mask that may be: there the
    gradient of the aggregate is 0, but 0 times NaN would be NaN. Elsewhere the value shows it.
    """
    for name, constant in constants.items():
        if constant.shape != x.shape:
            raise ValueError(f"{name} is {tuple(constant.shape)} beside {tuple(x.shape)}: the same shape is wanted; spread one number per sequence over its "
                             "tokens with x[:, None].expand_as(logp)")
        if constant.requires_grad:
            raise ValueError(f"{name} requires grad: it is a constant of the update; detach it")
        x = torch.where(constant.isfinite(), x, x.detach())
    return x


def _check_clip(clip_low: float, clip_high: float) -> None:
    if not (clip_low >= 0 and clip_high >= 0):
        raise ValueError(f"clip_low is {clip_low}, clip_high {clip_high}: distances below and above 1, not negative, are wanted")
