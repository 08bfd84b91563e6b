"""Learning from a teacher whose probabilities are known: a reward for every token that is sampled.

The student samples, and the teacher says how likely it would have been to do the same. The mean of
this reward under the student is -KL(π || π_T), so maximising it imitates the teacher where the
student goes. kl.generalised_jsd is the other way: the divergence of the whole vocabulary as a loss.
"""

from __future__ import annotations

from torch import Tensor

from minirl.equations.checks import check_same_shape
from minirl.equations.kl import exact_kl


def distillation_advantages(logp: Tensor, teacher_logp: Tensor) -> Tensor:
    r"""On-policy distillation: how much likelier the teacher finds the token than the student.

    Equation   A_t = sg[log π_T(y_t) - log π(y_t)]                      (sg: no gradient)
    Paper      GKD, arXiv:2306.13649, which minimises the divergence itself; as an advantage, with
               discount 0: Thinking Machines 2025, "On-policy distillation", whose code takes the
               sampler's log π.
    Shapes     logp, teacher_logp: the same -> the same
    Gradient   none. Times ∇ log π its mean is -∇ KL(π || π_T) of the states visited; how a token
               changes the states that follow is left out (discount 0), unlike with
               advantages.discounted_returns of it.
    Raises     ValueError if shapes differ.
    See        distillation_values, its baseline; objectives.clipped_surrogate, which takes it.

    >>> logp, teacher_logp = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    >>> distillation_advantages(logp, teacher_logp)  # -log 2, log 2
    tensor([-0.6931,  0.6931])
    """
    check_same_shape(logp=logp, teacher_logp=teacher_logp)
    return teacher_logp.detach() - logp.detach()


def distillation_values(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""The exact value of each state under distillation_advantages, to subtract as a baseline.

    Equation   V(s_t) = -KL(π || π_T)(s_t);   use A_t - V(s_t)
    Paper      vOPD, arXiv:2605.07865 ("KL for a KL"), of which the abstract was read. It is the
               mean of A_t over the vocabulary, so no value function has to be learnt.
    Erratum    "Reducing variance" holds where the teacher is surer than the student. Where it is
               less sure, the variance grows: rare tokens have the longest gradients and A > 0, but
               V is negative. tests/test_ground_truth_further.py has the numbers, by enumeration.
    Shapes     logits, teacher_logits: (..., V) -> (...)
    Gradient   none. A baseline that depends on the state alone leaves the mean gradient as it is.
    Raises     ValueError if shapes differ.
    See        kl.exact_kl; advantages.optimal_baseline, which weighs by the gradients' lengths.

    >>> half, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> distillation_values(half, teacher)  # -(log 2 + log 2/3) / 2
    tensor(-0.1438)
    """
    return -exact_kl(logits.detach(), teacher_logits.detach())
