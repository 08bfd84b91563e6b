"""Solutions of tutorials/07_kl.py, and answers that its checks must refuse."""

from __future__ import annotations

import torch

from minirl.equations.kl import corrected_k3, exact_kl, k1, k2, k3


def exercise_1(logp, ref_logp):
    """k2 - k2.detach() is 0 and has k2's gradient. Add the number that you want to see. verl calls
    it k3+. (On-policy, ρ k3 does it, too.)"""
    gradient, value = k2(logp, ref_logp), k3(logp, ref_logp)
    return gradient - gradient.detach() + value.detach()


def exercise_2(logp, old_logp, ref_logp):
    """ρ k3: the ratio's own derivative adds the reward half. ρ k1 has the same mean gradient, and
    so has k2 with a detached ρ."""
    return corrected_k3(logp, old_logp, ref_logp)


def exercise_bug(function):
    """The ratio is upside down, π/ref in place of ref/π, as in rlhf-book's `approx_kl3`. Formulas
    and signs do not show it, the mean under the policy does: it has to be the KL."""
    logits = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    ref = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    probs = logits.softmax(0)
    mean = probs @ function(probs.log(), ref.log())
    wanted = exact_kl(logits, ref.log())
    assert torch.allclose(mean, wanted), f"the mean is {mean:.4f}, the KL {wanted:.4f}"


def _never_negative(function):
    logp = torch.linspace(-3, 0, 50)
    assert (function(logp, torch.full((50,), -1.5)) >= 0).all()


def _zero_at_the_reference(function):
    logp = torch.tensor([0.5, 0.1]).log()
    assert torch.equal(function(logp, logp), torch.zeros(2))


def _half_a_square_nearby(function):
    logp = torch.tensor([-1.0, -1.001], dtype=torch.float64)
    ref_logp = torch.tensor([-1.001, -1.0], dtype=torch.float64)
    assert torch.allclose(function(logp, ref_logp), torch.full((2,), 5e-7).double(), rtol=1e-2)


def _always_the_kl(function):
    """Wants the KL from each token: fails for the right function."""
    logits = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    ref_logp = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    value = function(logits.log_softmax(0), ref_logp)
    assert torch.allclose(value, exact_kl(logits, ref_logp).expand(3))


WRONG = {
    "exercise_1": [
        k3,                                                                   # gradient of k3
        k2,                                                                   # value of k2
        lambda logp, ref_logp: k2(logp, ref_logp) + k3(logp, ref_logp).detach(),
        lambda logp, ref_logp: (                                              # the other way round
            k3(logp, ref_logp) - k3(logp, ref_logp).detach() + k2(logp, ref_logp).detach()),
        lambda logp, ref_logp: (                                              # both gradients
            k2(logp, ref_logp) - k2(logp, ref_logp).detach() + k3(logp, ref_logp)),
    ],
    "exercise_2": [
        lambda logp, old_logp, ref_logp: k1(logp, ref_logp),
        lambda logp, old_logp, ref_logp: k2(logp, ref_logp),                  # right on-policy
        lambda logp, old_logp, ref_logp: k3(logp, ref_logp),
        lambda logp, old_logp, ref_logp: (                                    # ρ is detached
            (logp - old_logp).detach().exp() * k3(logp, ref_logp)),
        lambda logp, old_logp, ref_logp: k3(logp, old_logp),                  # to the old policy
    ],
    "exercise_bug": [_never_negative, _zero_at_the_reference, _half_a_square_nearby,
                     _always_the_kl, lambda function: None],
}
