"""Tests of minirl.equations.objectives."""

import pytest
import torch

from minirl.equations.advantages import group_advantages
from minirl.equations.objectives import clipped_surrogate
from minirl.equations.reduce import aggregate

NAN = float("nan")


def value_and_gradient(ratio, adv, **bounds):
    logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    value = clipped_surrogate(logp, torch.zeros_like(logp).detach(), torch.full_like(logp, adv).detach(), **bounds)
    value.sum().backward()
    return value.item(), logp.grad.item()


HIGHER, R1 = {"clip_low": 0.2, "clip_high": 0.28}, {"clip_low": 10.0, "clip_high": 10.0}


@pytest.mark.parametrize("adv, ratio, bounds, value, slope", [
    (+1, 0.5, {}, 0.5, 0.5), (+1, 0.9, {}, 0.9, 0.9), (+1, 1.0, {}, 1.0, 1.0), (+1, 1.5, {}, 1.2, 0.0),             # good: capped above
    (-1, 0.5, {}, -0.8, 0.0), (-1, 0.9, {}, -0.9, -0.9), (-1, 1.0, {}, -1.0, -1.0), (-1, 1.5, {}, -1.5, -1.5),      # bad: capped below
    (+2, 1.5, {}, 2.4, 0.0), (-2, 5.0, {}, -10.0, -10.0), (0, 1.5, {}, 0.0, 0.0), (0, 0.5, {}, 0.0, 0.0),
    (+1, 1.25, HIGHER, 1.25, 1.25), (+1, 1.5, HIGHER, 1.28, 0.0), (-1, 1.25, HIGHER, -1.25, -1.25), (-1, 0.75, HIGHER, -0.8, 0.0),
    (+1, 5.0, R1, 5.0, 5.0), (+1, 12.0, R1, 11.0, 0.0), (-1, 0.01, R1, -0.01, -0.01),                               # 1 - 10 < 0: no floor
    (+1, 1.1, {"clip_high": 0.0}, 1.0, 0.0), (-1, 0.9, {"clip_low": 0.0}, -1.0, 0.0), (+1, 1.0, {"clip_high": 0.0}, 1.0, 1.0),
])
def test_truth_table(adv, ratio, bounds, value, slope):
    """d/dlogp is rho A inside and 0 where clipped. With max instead of min for A < 0, a bug seen in the wild, rho 1.5 would have gradient 0 and
    rho 0.5 would have -0.5: bad samples pushed down for ever, and never pulled back."""
    assert value_and_gradient(ratio, adv, **bounds) == pytest.approx((value, slope), abs=1e-9)


EOS = 2
SEQUENCES = [(EOS,)] + [(first, second) for first in (0, 1) for second in (0, 1, EOS)]       # vocabulary 3, at most 2 tokens: 7 of them
REWARDS = torch.tensor([0.3, 1.0, -0.5, 2.0, 0.0, 0.7, -1.0]).double()
MASK = torch.tensor([[1, len(s) > 1] for s in SEQUENCES]).long()


def sequence_logprobs(logits):
    """(3, 3) logits, row 0 for the first token, row 1 + first for the second -> (7, 2), 0 after EOS."""
    logp = logits.log_softmax(-1)
    return torch.stack([torch.stack([logp[0, s[0]], logp[1 + s[0], s[1]] if len(s) > 1 else torch.zeros_like(logp[0, 0])]) for s in SEQUENCES])


def test_gradient_at_ratio_one_is_the_policy_gradient_by_enumeration():
    """Over all sequences, each with its chance: on-policy, the gradient of the summed surrogate is that of E[reward] itself. With the mean over
    tokens it is not: a long answer counts per token less than a short one."""
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(3)).double()
    exact_leaf = logits.clone().requires_grad_()
    (sequence_logprobs(exact_leaf).sum(1).exp() * REWARDS).sum().backward()
    gradients = {}
    for how in ("sequence_sum", "sequence_mean"):
        leaf = logits.clone().requires_grad_()
        logp = sequence_logprobs(leaf)
        chance = logp.detach().sum(1).exp()
        assert chance.sum().item() == pytest.approx(1.0, abs=1e-12)
        surrogate = clipped_surrogate(logp, logp.detach(), REWARDS[:, None].expand_as(logp))
        value = aggregate(chance[:, None] * surrogate, MASK, how, total=1)
        value.backward()
        gradients[how] = leaf.grad
    torch.testing.assert_close(gradients["sequence_sum"], exact_leaf.grad, atol=1e-12, rtol=0)
    assert (gradients["sequence_mean"] - exact_leaf.grad).norm() > 0.1 * exact_leaf.grad.norm()


def test_off_policy_by_enumeration():
    """One token, sampled from another policy: unclipped, E_old[rho A] is E_pi[A] in value and gradient; clipped, it is never more (pessimism)."""
    generator = torch.Generator().manual_seed(0)
    logits, old = torch.randn(4, generator=generator).double().requires_grad_(), torch.randn(4, generator=generator).double().log_softmax(0)
    adv = torch.tensor([1.0, -2.0, 0.5, 0.0]).double()
    exact = (logits.softmax(0) * adv).sum()
    wanted, = torch.autograd.grad(exact, logits, retain_graph=True)
    surrogate = (old.exp() * clipped_surrogate(logits.log_softmax(0), old, adv, clip_low=1.0, clip_high=1e9)).sum()
    assert surrogate.item() == pytest.approx(exact.item(), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(surrogate, logits)[0], wanted, atol=1e-12, rtol=0)
    assert (old.exp() * clipped_surrogate(logits.log_softmax(0), old, adv)).sum() < exact


def test_a_loss_of_zero_still_learns():
    """"Why is my loss 0?" At ratio 1 and equal lengths the value is the mean advantage, 0, while the gradient is not."""
    adv = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).view(4, 1).expand(4, 3)
    logp = torch.full((4, 3), -1.0, requires_grad=True)
    value = aggregate(clipped_surrogate(logp, logp.detach(), adv), torch.ones(4, 3), "sequence_mean")
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-7)
    torch.testing.assert_close(logp.grad, adv / 12)
    assert (logp.grad[0] > 0).all() and (logp.grad[1:] < 0).all()


def test_unequal_lengths_move_the_value_but_not_every_mean():
    """Rows of 1 and 3 tokens, A = +-1: per sequence (1 - 1) / 2 = 0, per token (1 - 3) / 4 = -1/2."""
    logp, mask = torch.zeros(2, 3), torch.tensor([[1, 0, 0], [1, 1, 1]])
    surrogate = clipped_surrogate(logp, logp, torch.tensor([[1.0] * 3, [-1.0] * 3]))
    assert aggregate(surrogate, mask, "sequence_mean").item() == 0.0 and aggregate(surrogate, mask, "token_mean").item() == -0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adv", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("log_ratio", [100.0, -100.0])
def test_extreme_ratios_stay_finite(dtype, adv, log_ratio):
    """One token whose log-prob moved by 100 must not make inf, or 0 * inf, of the batch."""
    logp = torch.full((1, 2), log_ratio, dtype=dtype, requires_grad=True)
    value = clipped_surrogate(logp, torch.zeros(1, 2, dtype=dtype), torch.full((1, 2), adv, dtype=dtype))
    value.sum().backward()
    assert value.dtype == dtype and value.isfinite().all() and logp.grad.isfinite().all()
    if adv > 0 and log_ratio > 0:
        assert value[0].tolist() == pytest.approx([1.2, 1.2], rel=4e-3)
    if adv == 0:
        assert (value == 0).all() and (logp.grad == 0).all()


@pytest.mark.parametrize("wrong", [(3,), (3, 1), (1, 3)])
def test_shapes_that_would_broadcast_raise(wrong):
    """One advantage per sequence, (B,), against (B, T) with B == T lands on the wrong axis without a word."""
    good = torch.zeros(3, 3)
    for arguments in ((good, good, torch.zeros(wrong)), (good, torch.zeros(wrong), good), (torch.zeros(wrong), good, good)):
        with pytest.raises(ValueError, match="same shape"):
            clipped_surrogate(*arguments)


def test_constants_with_gradient_and_bad_bounds_raise():
    """A forgotten detach on old_logp makes the ratio 1 for ever, with gradient 0."""
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="old_logp requires grad"):
        clipped_surrogate(x.clone().requires_grad_(), x.clone().requires_grad_(), x)
    with pytest.raises(ValueError, match="adv requires grad"):
        clipped_surrogate(x.clone().requires_grad_(), x, x.clone().requires_grad_())
    for bounds in ({"clip_low": -0.1}, {"clip_high": -0.1}):
        with pytest.raises(ValueError, match="clip_low"):
            clipped_surrogate(x, x, x, **bounds)


def test_elementwise_and_inputs_stay():
    """Row order, padding on either side and what stands under the mask change nothing; nothing is written to."""
    generator = torch.Generator().manual_seed(0)
    logp, old_logp, adv = (torch.randn(4, 3, generator=generator) for _ in range(3))
    before, plain, order = [x.clone() for x in (logp, old_logp, adv)], clipped_surrogate(logp, old_logp, adv), torch.tensor([2, 0, 3, 1])
    assert torch.equal(clipped_surrogate(logp[order], old_logp[order], adv[order]), plain[order])
    assert all(torch.equal(x, y) for x, y in zip((logp, old_logp, adv), before))
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]])
    results = []
    for junk in (0.0, 50.0, -50.0, NAN):
        leaf, filled = logp.masked_fill(mask == 0, junk).requires_grad_(), adv.masked_fill(mask == 0, junk)
        value = aggregate(clipped_surrogate(leaf, old_logp, filled), mask, "token_mean")
        value.backward()
        assert junk != junk or (leaf.grad[mask == 0] == 0).all()
        results.append((value.item(), leaf.grad[mask == 1]))
    assert all(value == results[0][0] and torch.equal(grad, results[0][1]) for value, grad in results)
