"""Tests of minirl.equations.objectives."""

from functools import partial

import pytest
import torch

from minirl.equations.advantages import group_advantages
from minirl.equations.kl import exact_kl
from minirl.equations.objectives import (
    cispo,
    clipped_surrogate,
    clipped_value_loss,
    dppo,
    dual_clipped_surrogate,
    entropy,
    gspo_token,
    kl_penalised_surrogate,
    policy_gradient,
    ppo_objective,
    ptx_objective,
    sapo,
    sequence_clipped_surrogate,
    sequence_ratio,
    value_loss,
)
from minirl.equations.reduce import aggregate

NAN, INF = float("nan"), float("inf")
HIGHER = {"clip_low": 0.2, "clip_high": 0.28}
R1 = {"clip_low": 10.0, "clip_high": 10.0}
GSPO = {"clip_low": 3e-4, "clip_high": 4e-4}


def gspo(logp, old_logp, adv, mask):
    return sequence_clipped_surrogate(
        logp, old_logp, adv[:, 0], mask, length_normalised=True, **GSPO)


def r1(logp, old_logp, adv, mask):
    return sequence_clipped_surrogate(
        logp, old_logp, adv[:, 0], mask, length_normalised=False, **R1)


# (logp, old_logp, adv, mask) -> (B, T), or (B,) from the sequence forms
OBJECTIVES = {
    "PPO": lambda logp, old, adv, mask: clipped_surrogate(logp, old, adv),
    "DAPO": lambda logp, old, adv, mask: clipped_surrogate(logp, old, adv, **HIGHER),
    "dual clip": lambda logp, old, adv, mask: dual_clipped_surrogate(logp, old, adv),
    "delta 4": lambda logp, old, adv, mask: dual_clipped_surrogate(logp, old, adv, cap=4.0),
    "KL-penalised": lambda logp, old, adv, mask: kl_penalised_surrogate(
        logp, old, adv, torch.zeros_like(logp), 1.0),
    "CISPO": lambda logp, old, adv, mask: cispo(logp, old, adv, cap=1.28),
    "SAPO": lambda logp, old, adv, mask: sapo(logp, old, adv),
    "GSPO-token": gspo_token,
    "GSPO": gspo,
    "R1": r1,
}
SEQUENCE_FORMS = ("GSPO", "R1")
TOKEN_FORMS = [name for name in OBJECTIVES if name not in SEQUENCE_FORMS]
every_objective = pytest.mark.parametrize("name", list(OBJECTIVES))
every_token_objective = pytest.mark.parametrize("name", TOKEN_FORMS)


def gradient(function, x):
    leaf = x.clone().requires_grad_()
    function(leaf).sum().backward()
    return leaf.grad


def value_and_gradient(objective, ratio, adv, tokens=1):
    logp = torch.tensor([[ratio] * tokens], dtype=torch.float64).log().requires_grad_()
    zero = torch.zeros(1, tokens, dtype=torch.float64)
    value = objective(logp, zero, torch.full_like(zero, adv), torch.ones(1, tokens))
    value.sum().backward()
    return value.mean().item(), logp.grad.sum().item()


# One token of ratio .5 .9 1.1 1.25 1.5 5, or two of them for the sequence forms. GSPO takes their
# mean, R1 their product: .25 .81 1.21 1.5625 2.25 25. Value, and d/dlogp: rho A where nothing is
# clipped, 0 where it is.
# CISPO: min(rho, 1.28) log rho, and min(rho, 1.28); log rho is -.693147 -.105361 .095310 .223144
# .405465 1.609438.
# SAPO: 4/tau s, and rho 4 s (1 - s), with s = sigmoid(tau (rho - 1)), tau 1 and 1.05: at .5 s is
# .377541 and .371684.
@pytest.mark.parametrize("name, adv, values, slopes", [
    ("PPO", +1, (0.5, 0.9, 1.1, 1.2, 1.2, 1.2), (0.5, 0.9, 1.1, 0, 0, 0)),
    ("PPO", -1, (-0.8, -0.9, -1.1, -1.25, -1.5, -5), (0, -0.9, -1.1, -1.25, -1.5, -5)),
    ("DAPO", +1, (0.5, 0.9, 1.1, 1.25, 1.28, 1.28), (0.5, 0.9, 1.1, 1.25, 0, 0)),
    ("DAPO", -1, (-0.8, -0.9, -1.1, -1.25, -1.5, -5), (0, -0.9, -1.1, -1.25, -1.5, -5)),
    ("dual clip", +1, (0.5, 0.9, 1.1, 1.2, 1.2, 1.2), (0.5, 0.9, 1.1, 0, 0, 0)),
    ("dual clip", -1, (-0.8, -0.9, -1.1, -1.25, -1.5, -3), (0, -0.9, -1.1, -1.25, -1.5, 0)),
    ("delta 4", -1, (-0.8, -0.9, -1.1, -1.25, -1.5, -4), (0, -0.9, -1.1, -1.25, -1.5, 0)),
    ("KL-penalised", +1, (0.5, 0.9, 1.1, 1.25, 1.5, 5), (0.5, 0.9, 1.1, 1.25, 1.5, 5)),
    ("KL-penalised", -1,
     (-0.5, -0.9, -1.1, -1.25, -1.5, -5),
     (-0.5, -0.9, -1.1, -1.25, -1.5, -5)),
    ("CISPO", +1,
     (-0.346574, -0.094824, 0.104841, 0.278929, 0.518995, 2.060081),
     (0.5, 0.9, 1.1, 1.25, 1.28, 1.28)),
    ("CISPO", -1,
     (0.346574, 0.094824, -0.104841, -0.278929, -0.518995, -2.060081),
     (-0.5, -0.9, -1.1, -1.25, -1.28, -1.28)),
    ("SAPO", +1,
     (1.510163, 1.900083, 2.099917, 2.248706, 2.489837, 3.928055),
     (0.470007, 0.897754, 1.097255, 1.230670, 1.410022, 0.353254)),
    ("SAPO", -1,
     (-1.415938, -1.804854, -2.004670, -2.153336, -2.393585, -3.753242),
     (-0.467070, -0.897524, -1.096974, -1.228712, -1.401210, -0.291115)),
    ("GSPO", +1, (0.5, 0.9, 1.0004, 1.0004, 1.0004, 1.0004), (0.5, 0.9, 0, 0, 0, 0)),
    ("GSPO", -1, (-0.9997, -0.9997, -1.1, -1.25, -1.5, -5), (0, 0, -1.1, -1.25, -1.5, -5)),
    ("GSPO-token", +1, (0.5, 0.9, 1.0004, 1.0004, 1.0004, 1.0004), (0.5, 0.9, 0, 0, 0, 0)),
    ("GSPO-token", -1, (-0.9997, -0.9997, -1.1, -1.25, -1.5, -5), (0, 0, -1.1, -1.25, -1.5, -5)),
    # R1 counts each token in full: two of them, 2 rho^2. Its lower bound is 1 - 10 < 0: no floor
    ("R1", +1, (0.25, 0.81, 1.21, 1.5625, 2.25, 11), (0.5, 1.62, 2.42, 3.125, 4.5, 0)),
    ("R1", -1,
     (-0.25, -0.81, -1.21, -1.5625, -2.25, -25),
     (-0.5, -1.62, -2.42, -3.125, -4.5, -50)),
])
def test_clip_truth_table(name, adv, values, slopes):
    """Which side is clipped, and what is left of the gradient.

    With max instead of min for A < 0, a bug seen in the wild, PPO at rho 1.5 would have gradient 0
    and at rho 0.5 -0.5: bad samples would be pushed down for ever, and never pulled back.
    """
    tokens = 2 if name in SEQUENCE_FORMS else 1
    ratios = (0.5, 0.9, 1.1, 1.25, 1.5, 5.0)
    for ratio, value, slope in zip(ratios, values, slopes, strict=True):
        actual = value_and_gradient(OBJECTIVES[name], ratio, adv, tokens)
        assert actual == pytest.approx((value, slope), abs=1e-6), ratio


@every_objective
@pytest.mark.parametrize("adv, tokens", [
    (1.0, 1), (-1.0, 1), (2.0, 1), (0.0, 1), (1.0, 3), (-2.0, 3),
])
def test_at_ratio_one_every_objective_is_the_policy_gradient(name, adv, tokens):
    """On-policy they are all one method: each token's slope is A.

    GSPO's mean shares one A between its tokens, R1 gives every token all of it.
    """
    logp = torch.full((1, tokens), -0.5, dtype=torch.float64)
    a, mask = torch.full_like(logp, adv), torch.ones(1, tokens)
    slope = gradient(lambda x: OBJECTIVES[name](x, logp, a, mask), logp)
    expected = torch.full_like(logp, adv / tokens if name == "GSPO" else adv)
    torch.testing.assert_close(slope, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("adv, ratio, bounds, value, slope", [
    (+1, 1.0, {}, 1.0, 1.0),
    (-1, 1.0, {}, -1.0, -1.0),
    (+2, 1.5, {}, 2.4, 0.0),
    (-2, 5.0, {}, -10.0, -10.0),
    (0, 1.5, {}, 0.0, 0.0),
    (0, 0.5, {}, 0.0, 0.0),
    (+1, 1.25, HIGHER, 1.25, 1.25),
    (+1, 1.5, HIGHER, 1.28, 0.0),
    (-1, 1.25, HIGHER, -1.25, -1.25),
    (-1, 0.75, HIGHER, -0.8, 0.0),
    (+1, 5.0, R1, 5.0, 5.0),
    (+1, 12.0, R1, 11.0, 0.0),
    (-1, 0.01, R1, -0.01, -0.01),  # 1 - 10 < 0: no floor
    (+1, 1.1, {"clip_high": 0.0}, 1.0, 0.0),
    (-1, 0.9, {"clip_low": 0.0}, -1.0, 0.0),
    (+1, 1.0, {"clip_high": 0.0}, 1.0, 1.0),
])
def test_clipped_surrogate_corners(adv, ratio, bounds, value, slope):
    """d/dlogp is rho A inside the bounds and 0 where clipped, whatever the size of A.

    Bounds of 0 leave ratio 1 itself its gradient.
    """
    def objective(logp, old_logp, adv, mask):
        return clipped_surrogate(logp, old_logp, adv, **bounds)

    assert value_and_gradient(objective, ratio, adv) == pytest.approx((value, slope), abs=1e-9)


# vocabulary 3, at most 2 tokens: 7 sequences
EOS = 2
SEQUENCES = [(EOS,)] + [(first, second) for first in (0, 1) for second in (0, 1, EOS)]
REWARDS = torch.tensor([0.3, 1.0, -0.5, 2.0, 0.0, 0.7, -1.0]).double()
MASK = torch.tensor([[1, len(s) > 1] for s in SEQUENCES]).long()


def sequence_logprobs(logits):
    """(3, 3) logits, row 0 for the first token, row 1 + first for the second -> (7, 2)."""
    logp = logits.log_softmax(-1)
    none = torch.zeros_like(logp[0, 0])  # after EOS
    rows = [(logp[0, s[0]], logp[1 + s[0], s[1]] if len(s) > 1 else none) for s in SEQUENCES]
    return torch.stack([torch.stack(row) for row in rows])


def test_gradient_at_ratio_one_is_the_policy_gradient_by_enumeration():
    """Over all sequences, each with its chance: on-policy, the gradient of the summed surrogate is
    that of E[reward] itself.

    With the mean over tokens it is not: a token of a long answer counts less than one of a short
    answer.
    """
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
    difference = gradients["sequence_mean"] - exact_leaf.grad
    assert difference.norm() > 0.1 * exact_leaf.grad.norm()


def test_off_policy_by_enumeration():
    """One token, sampled from another policy. Unclipped, E_old[rho A] is E_pi[A] in value and
    gradient; clipped, it is never more (pessimism)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, generator=generator).double().requires_grad_()
    old = torch.randn(4, generator=generator).double().log_softmax(0)
    adv = torch.tensor([1.0, -2.0, 0.5, 0.0]).double()
    exact = (logits.softmax(0) * adv).sum()
    exact_gradient, = torch.autograd.grad(exact, logits, retain_graph=True)
    logp = logits.log_softmax(0)
    surrogate = (old.exp() * clipped_surrogate(logp, old, adv, clip_low=1.0, clip_high=1e9)).sum()
    assert surrogate.item() == pytest.approx(exact.item(), abs=1e-12)
    slope, = torch.autograd.grad(surrogate, logits)
    torch.testing.assert_close(slope, exact_gradient, atol=1e-12, rtol=0)
    assert (old.exp() * clipped_surrogate(logits.log_softmax(0), old, adv)).sum() < exact


def test_a_loss_of_zero_still_learns():
    """"Why is my loss 0?" At ratio 1 and equal lengths the value is the mean advantage, 0, while
    the gradient is not."""
    adv = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).view(4, 1).expand(4, 3)
    logp = torch.full((4, 3), -1.0, requires_grad=True)
    surrogate = clipped_surrogate(logp, logp.detach(), adv)
    value = aggregate(surrogate, torch.ones(4, 3), "sequence_mean")
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-7)
    torch.testing.assert_close(logp.grad, adv / 12)
    assert (logp.grad[0] > 0).all() and (logp.grad[1:] < 0).all()


def test_unequal_lengths_move_the_value_but_not_every_mean():
    """Rows of 1 and 3 tokens, A = ±1: per sequence (1 - 1) / 2, per token (1 - 3) / 4."""
    logp, mask = torch.zeros(2, 3), torch.tensor([[1, 0, 0], [1, 1, 1]])
    surrogate = clipped_surrogate(logp, logp, torch.tensor([[1.0] * 3, [-1.0] * 3]))
    assert aggregate(surrogate, mask, "sequence_mean").item() == 0.0
    assert aggregate(surrogate, mask, "token_mean").item() == -0.5


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adv", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("log_ratio", [100.0, -100.0])
def test_extreme_ratios_stay_finite(name, dtype, adv, log_ratio):
    """One token whose log-prob moved by 100 must not make inf, or 0 * inf, of the batch.

    In float16 it did: it cannot hold exp(20), where a ratio is capped.
    """
    logp = torch.full((1, 2), log_ratio, dtype=dtype, requires_grad=True)
    zero, a = torch.zeros(1, 2, dtype=dtype), torch.full((1, 2), adv, dtype=dtype)
    value = OBJECTIVES[name](logp, zero, a, torch.ones(1, 2))
    value.sum().backward()
    assert value.isfinite().all() and logp.grad.isfinite().all()
    if adv > 0 and log_ratio > 0 and name in ("PPO", "dual clip", "DAPO"):
        bound = 1.28 if name == "DAPO" else 1.2
        assert value[0].tolist() == pytest.approx([bound] * 2, rel=4e-3)
    if adv == 0:
        assert (value == 0).all() and (logp.grad == 0).all()


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_stays(name, dtype):
    """SAPO's temperatures were a float32 tensor: bfloat16 came back as float32, and float64 had a
    1.05 that is off by 5e-8."""
    zero = torch.zeros(1, 2, dtype=dtype)
    value = OBJECTIVES[name](zero, zero, zero - 1, torch.ones(1, 2))
    assert value.dtype == dtype
    if name == "SAPO" and dtype == torch.float64:
        assert value[0].tolist() == pytest.approx([-2 / 1.05] * 2, abs=1e-12)


@every_token_objective
@pytest.mark.parametrize("wrong", [(3,), (3, 1), (1, 3)])
def test_shapes_that_would_broadcast_raise(name, wrong):
    """One advantage per sequence, (B,), beside (B, T) with B == T would silently broadcast along
    the wrong axis."""
    good, bad = torch.zeros(3, 3), torch.zeros(wrong)
    message = "expected the same shape; spread one number per sequence"
    for arguments in ((good, good, bad), (good, bad, good), (bad, good, good)):
        with pytest.raises(ValueError, match=message):
            OBJECTIVES[name](*arguments, good)


@every_objective
def test_constants_with_gradient_raise(name):
    """A forgotten detach on old_logp makes the ratio 1 for ever, with gradient 0."""
    x, leaf = torch.zeros(1, 2), torch.zeros(1, 2, requires_grad=True)
    with pytest.raises(ValueError, match="old_logp requires grad: .* detach"):
        OBJECTIVES[name](leaf, leaf.clone(), x, x)
    with pytest.raises(ValueError, match="adv.* requires.?grad.* constant"):
        OBJECTIVES[name](leaf, x, leaf.clone(), x)


GOOD = torch.zeros(3, 3)
LEAF = torch.zeros(3, 3, requires_grad=True)
surrogate_of_sequences = partial(sequence_clipped_surrogate, GOOD, GOOD, mask=GOOD)


@pytest.mark.parametrize("call, message", [
    *[(partial(function, GOOD, GOOD, GOOD, **{bound: value}), "clip_high")
      for function in (clipped_surrogate, dual_clipped_surrogate)
      for bound in ("clip_low", "clip_high")
      for value in (-0.1, NAN)],
    (lambda: gspo_token(GOOD, GOOD, GOOD, GOOD, clip_low=-0.1), "clip_low is -0.1"),
    (lambda: gspo_token(GOOD, GOOD, GOOD, torch.ones(3)), r"mask \(3,\)"),
    (lambda: surrogate_of_sequences(
        adv=torch.ones(3), clip_low=0.1, clip_high=-0.1, length_normalised=True),
     "clip_high -0.1"),
    (lambda: surrogate_of_sequences(adv=GOOD, length_normalised=True, **GSPO),
     r"adv is \(3, 3\) .* one constant per sequence, \(B,\)"),
    (lambda: surrogate_of_sequences(adv=torch.ones(3, 1), length_normalised=False, **GSPO),
     r"adv is \(3, 1\)"),
    (lambda: sequence_ratio(GOOD, GOOD, torch.ones(3), length_normalised=True),
     r"mask \(3,\) beside logp \(3, 3\): expected twice \(B, T\)"),
    (lambda: sequence_ratio(GOOD, torch.zeros(3), GOOD, length_normalised=True), "old_logp"),
    (lambda: sequence_ratio(GOOD[0], GOOD[0], GOOD[0], length_normalised=True), "T"),
    (lambda: dual_clipped_surrogate(GOOD, GOOD, GOOD, cap=1.2), "cap is 1.2"),
    (lambda: dual_clipped_surrogate(GOOD, GOOD, GOOD, clip_high=2.5, cap=3.0), "above"),
    (lambda: dual_clipped_surrogate(GOOD, GOOD, GOOD, cap=NAN), "cap"),
    (lambda: cispo(GOOD, GOOD, GOOD, cap=0.0), "cap is 0.0"),
    (lambda: cispo(GOOD, GOOD, GOOD, cap=NAN), "cap"),
    (lambda: sapo(GOOD, GOOD, GOOD, temp_pos=0.0), "temp_pos is 0.0"),
    (lambda: sapo(GOOD, GOOD, GOOD, temp_neg=-1.0), "temp_neg is -1.0"),
    (lambda: kl_penalised_surrogate(GOOD, GOOD, GOOD, torch.zeros(3), 0.1), r"kl is \(3,\)"),
    (lambda: policy_gradient(GOOD, torch.zeros(3)), "same shape"),
    (lambda: policy_gradient(GOOD, LEAF), "adv requires grad"),
    (lambda: value_loss(GOOD, torch.zeros(3)), "returns"),
    (lambda: value_loss(GOOD, LEAF), "returns requires grad"),
    (lambda: clipped_value_loss(GOOD, torch.zeros(3), GOOD), "old_values"),
    (lambda: clipped_value_loss(GOOD, GOOD, torch.zeros(3)), "returns"),
    (lambda: clipped_value_loss(GOOD, LEAF, GOOD), "old_values requires grad"),
    (lambda: clipped_value_loss(GOOD, GOOD, GOOD, clip=-0.1), "clip is -0.1"),
    (lambda: clipped_value_loss(GOOD, GOOD, GOOD, clip=NAN), "clip is nan"),
    (lambda: ppo_objective(GOOD, torch.zeros(3), GOOD), "shape"),
    (lambda: ppo_objective(GOOD, GOOD, torch.zeros(3, 1)), "shape"),
    (lambda: ptx_objective(torch.zeros(3), torch.tensor(0.0)), "two scalars"),
    (lambda: ptx_objective(torch.tensor(0.0), torch.zeros(1)), "two scalars"),
])
def test_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@every_objective
def test_rows_do_not_meet_and_inputs_stay(name):
    """Row order, padding on either side and what stands under a zero mask change nothing.

    No input is written to.
    """
    objective = OBJECTIVES[name]
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0]])
    logp = torch.randn(5, 3, generator=generator)
    old_logp = torch.randn(5, 3, generator=generator)
    adv = torch.randn(5, 1, generator=generator).expand(5, 3).clone()
    order, before = torch.tensor([2, 4, 0, 3, 1]), [x.clone() for x in (logp, old_logp, adv, mask)]
    plain = objective(logp, old_logp, adv, mask)
    assert plain.shape == ((5,) if name in SEQUENCE_FORMS else (5, 3))
    shuffled = objective(logp[order], old_logp[order], adv[order], mask[order])
    assert torch.equal(shuffled, plain[order])

    def total(logp, old_logp, adv, mask):
        value = objective(logp, old_logp, adv, mask)
        return value.sum() if value.dim() == 1 else aggregate(value, mask, "token_mean")

    slope = gradient(lambda x: total(x, old_logp, adv, mask), logp)
    for junk in (0.0, 50.0, -50.0, NAN):
        leaf = logp.masked_fill(mask == 0, junk).requires_grad_()
        value = total(leaf, old_logp.masked_fill(mask == 0, -junk / 2), adv, mask.bool())
        value.backward()
        assert junk != junk or (leaf.grad[mask == 0] == 0).all()
        assert value.item() == total(logp, old_logp, adv, mask).item()
        assert torch.equal(leaf.grad[mask == 1], slope[mask == 1])
    pad = torch.nn.functional.pad
    for sides in ((2, 0), (0, 2)):
        padded = [pad(x, sides, value=7.0) for x in (logp, old_logp)]
        padded += [pad(adv, sides, mode="replicate"), pad(mask, sides)]
        torch.testing.assert_close(total(*padded), total(logp, old_logp, adv, mask))
    inputs = (logp, old_logp, adv, mask)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_policy_gradient_hand_numbers():
    """The slope is A, whatever logp is."""
    logp, adv = torch.tensor([[-0.5, -2.0, -1.0]]), torch.tensor([[1.0, -1.0, 0.0]])
    assert policy_gradient(logp, adv).tolist() == [[-0.5, 2.0, 0.0]]
    assert gradient(lambda x: policy_gradient(x, adv), logp).tolist() == [[1.0, -1.0, 0.0]]


@pytest.mark.parametrize("ratio, adv, kl, kl_coef, value", [
    (2.0, 1.0, 0.5, 1.0, 1.5),  # 2 - .5
    (2.0, -1.0, 0.5, 1.0, -2.5),  # -2 - .5
    (0.5, 4.0, 0.25, 0.2, 1.95),  # 2 - .05
    (3.0, 1.0, 9.0, 0.0, 3.0),
])
def test_kl_penalised_surrogate_hand_numbers(ratio, adv, kl, kl_coef, value):
    """The KL is a penalty whatever the sign of A, and has its own gradient, -kl_coef."""
    logp, zero, kl = torch.tensor([[ratio]]).log(), torch.zeros(1, 1), torch.tensor([[kl]])
    objective = partial(kl_penalised_surrogate, logp, zero, zero + adv, kl_coef=kl_coef)
    assert objective(kl=kl).item() == pytest.approx(value, abs=1e-6)
    assert gradient(lambda x: objective(kl=x), kl).item() == pytest.approx(-kl_coef)


@pytest.mark.parametrize("estimator", [
    lambda log_ratio: -log_ratio,
    lambda log_ratio: log_ratio.exp() - 1 - log_ratio,
])
def test_kl_of_old_and_new_by_enumeration(estimator):
    """Under samples of pi_old: the KL of eq. 8 is KL(old || new), so the log-ratio is the other way
    round, and so is k3."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, generator=generator).double()
    old = torch.randn(4, generator=generator).double().log_softmax(0)
    no_adv = torch.zeros(4).double()

    def mean(x):
        logp = x.log_softmax(0)
        surrogate = kl_penalised_surrogate(logp, old, no_adv, estimator(logp - old), 1.0)
        return (old.exp() * surrogate).sum()

    def minus_kl(x):  # exact_kl's second argument is a constant
        return -(old.exp() * (old - x.log_softmax(0))).sum()

    assert mean(logits).item() == pytest.approx(-exact_kl(old, logits).item(), abs=1e-12)
    slopes = gradient(mean, logits), gradient(minus_kl, logits)
    torch.testing.assert_close(*slopes, atol=1e-12, rtol=0)


@pytest.mark.parametrize("log_ratio, mask, mean, product", [
    # e^.05, e^.2
    ([0.1, -0.2, 0.3, 0.0], [1, 1, 1, 1], 1.051271, 1.221403),
    # e^.2, e^.4: tool output in the middle does not count
    ([0.1, -0.2, 0.3, 0.0], [1, 0, 1, 0], 1.221403, 1.491825),
    # one token: mean and product are the same
    ([9.0, 0.4, NAN, 9.0], [0, 1, 0, 0], 1.491825, 1.491825),
    # no token: nothing has changed
    ([9.0, NAN, INF, -INF], [0, 0, 0, 0], 1.0, 1.0),
    # e^-.2, e^-.4
    ([-0.1, -0.3, 0.0, 0.0], [1, 1, 0, 0], 0.818731, 0.670320),
])
def test_sequence_ratio_hand_numbers(log_ratio, mask, mean, product):
    """Each token's slope is the ratio, divided by the length for a mean.

    It is exactly 0 outside the mask, even where NaN stands.
    """
    logp, mask, zero = torch.tensor([log_ratio]), torch.tensor([mask]), torch.zeros(1, 4)
    mean_slope = mean / max(1, int(mask.sum()))
    for length_normalised, ratio, slope in ((True, mean, mean_slope), (False, product, product)):
        function = partial(sequence_ratio, length_normalised=length_normalised)
        for m in (mask, mask.bool(), mask.float()):
            assert function(logp, zero, m).item() == pytest.approx(ratio, abs=1e-6)
        grad = gradient(lambda x, ratio_of=function: ratio_of(x, zero, mask), logp)
        torch.testing.assert_close(grad, slope * mask, atol=1e-6, rtol=0)


def test_sequence_ratio_of_long_completions():
    """2000 tokens that each moved by 1e-3: e^2 = 7.39 as a product, e^.001 as a mean.

    As a quotient of probabilities it would be 0 / 0. Beyond e^20 the ratio is capped.
    """
    logp = torch.full((1, 2000), -4.999, dtype=torch.float64)
    old_logp, mask = torch.full((1, 2000), -5.0, dtype=torch.float64), torch.ones(1, 2000)
    product = partial(sequence_ratio, old_logp=old_logp, mask=mask, length_normalised=False)
    mean = partial(sequence_ratio, old_logp=old_logp, mask=mask, length_normalised=True)
    assert product(logp).item() == pytest.approx(7.389056, abs=1e-5)
    assert mean(logp).item() == pytest.approx(1.0010005, abs=1e-7)
    assert product(logp + 1).item() == pytest.approx(4.851652e8, rel=1e-6)
    assert (gradient(product, logp + 1) == 0).all()


@pytest.mark.parametrize("adv, values, slopes", [
    ([1.0, -1.0], [1.2, -1.221403], [0.0, -1.221403]),
    ([0.5, 2.0], [0.6, 2.4], [0.0, 0.0]),
    ([-2.0, 0.0], [-2.442806, 0.0], [-2.442806, 0.0]),
])
def test_gspo_token_hand_numbers(adv, values, slopes):
    """d = .1 and .3: both tokens' ratio is e^.2 = 1.2214, where their own would be 1.105 and 1.350.

    Each has its own A, and its own clip.
    """
    logp, zero = torch.tensor([[0.1, 0.3, NAN]]), torch.zeros(1, 3)
    objective = partial(gspo_token, old_logp=zero, adv=torch.tensor([[*adv, 5.0]]),
                        mask=torch.tensor([[1, 1, 0]]), clip_low=0.2, clip_high=0.2)
    value = objective(logp)[:, :2]
    slope = gradient(lambda x: objective(x)[:, :2], logp)[:, :2]
    torch.testing.assert_close(value, torch.tensor([values]), atol=2e-6, rtol=0)
    torch.testing.assert_close(slope, torch.tensor([slopes]), atol=2e-6, rtol=0)


def test_cispo_loses_no_token_and_its_weight_has_no_gradient():
    """logp -1 and -3 after -1 and -3 - log 8: the ratios are 1 and 8, the second cut to 5.

    With a gradient through the weight the first slope would be 1 - 1 = 0.
    """
    logp, old_logp = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-1.0, -5.0794415]])
    adv = torch.tensor([[1.0, -2.0]])
    value = cispo(logp, old_logp, adv, cap=5.0)
    torch.testing.assert_close(value, torch.tensor([[-1.0, 30.0]]))
    slope = gradient(lambda x: cispo(x, old_logp, adv, cap=5.0), logp)
    torch.testing.assert_close(slope, torch.tensor([[1.0, -10.0]]))
    slope = gradient(lambda x: cispo(x, old_logp, adv, cap=10.0), logp)
    torch.testing.assert_close(slope, torch.tensor([[1.0, -16.0]]))


@pytest.mark.parametrize("temp", [0.5, 1.0, 2.0])
def test_sapo_temperatures(temp):
    """At ratio 1 the value is 2/tau A and the slope A. A > 0 takes one temperature, A <= 0 the
    other. With a higher one the gradient fades sooner."""
    zero = torch.zeros(1, 1).double()
    positive = {"temp_pos": temp, "temp_neg": 9.0}
    negative = {"temp_pos": 9.0, "temp_neg": temp}
    for adv, options in ((1.0, positive), (-1.0, negative)):
        objective = partial(sapo, old_logp=zero, adv=zero + adv, **options)
        assert objective(zero).item() == pytest.approx(2 / temp * adv, abs=1e-12)
        assert gradient(objective, zero).item() == pytest.approx(adv, abs=1e-12)
    wide, narrow = (
        abs(gradient(partial(sapo, old_logp=zero, adv=zero + 1, temp_pos=t), zero + 1).item())
        for t in (temp, 2 * temp))
    assert 0 < narrow < wide < 2.7183


# 1/2 log 2 + 1/2 log 4; the slope in a logit is -p (log p + S): -.5 (-.693147 + 1.039721),
# -.25 (-1.386294 + 1.039721)
@pytest.mark.parametrize("p, value, slope", [
    ([0.5, 0.25, 0.25], 1.039721, [-0.173287, 0.086643, 0.086643]),
    ([0.25] * 4, 1.386294, [0.0] * 4),
    ([1.0, 0.0], 0.0, [0.0, 0.0]),
    ([0.5, 0.5, 0.0], 0.693147, [0.0, 0.0, 0.0]),
    ([1.0], 0.0, [0.0]),
])
def test_entropy_hand_numbers(p, value, slope):
    """An id of probability 0 adds 0 log 0 = 0 to value and gradient, and no NaN.

    A constant on all logits changes nothing.
    """
    for shift in (0.0, 7.0, -300.0):
        logits = torch.tensor([p], dtype=torch.float64).log() + shift
        expected = torch.tensor([value]).double()
        torch.testing.assert_close(entropy(logits), expected, atol=1e-6, rtol=0)
        expected = torch.tensor([slope]).double()
        torch.testing.assert_close(gradient(entropy, logits), expected, atol=1e-6, rtol=0)
    assert entropy(torch.randn(2, 5, 3)).shape == (2, 5)
    assert entropy(torch.tensor([0.0, -200.0, 300.0])).isfinite()


@pytest.mark.parametrize("coefficients, value, slopes", [
    ({}, 0.52, (1.0, -1.0, 0.01)),
    ({"value_coef": 0.5, "entropy_coef": 0.0}, 0.75, (1.0, -0.5, 0.0)),
    ({"value_coef": 0.0, "entropy_coef": 0.1}, 1.2, (1.0, 0.0, 0.1)),
])
def test_ppo_objective_hand_numbers(coefficients, value, slopes):
    """1 - c1 / 2 + 2 c2: one objective to maximise, in which the value loss is minimised."""
    terms = [torch.tensor(x, requires_grad=True) for x in (1.0, 0.5, 2.0)]
    objective = ppo_objective(*terms, **coefficients)
    objective.backward()
    assert objective.item() == pytest.approx(value, abs=1e-6)
    assert [x.grad.item() for x in terms] == pytest.approx(slopes)


@pytest.mark.parametrize("coefficient, value, slope", [
    ({"ptx_coef": 0.1}, 0.3, 0.1), ({}, -55.1, 27.8), ({"ptx_coef": 0.0}, 0.5, 0.0),
])
def test_ptx_objective_hand_numbers(coefficient, value, slope):
    """.5 - 2 gamma: the log-likelihood is added, because likely text is a gain and not a loss."""
    terms = [torch.tensor(x, requires_grad=True) for x in (0.5, -2.0)]
    objective = ptx_objective(*terms, **coefficient)
    objective.backward()
    assert objective.item() == pytest.approx(value, abs=1e-5)
    assert [x.grad.item() for x in terms] == pytest.approx([1.0, slope])


@pytest.mark.parametrize("values, returns, loss, slope", [
    (1.0, 3.0, 2.0, -2.0), (3.0, 1.0, 2.0, 2.0), (0.5, 0.5, 0.0, 0.0), (-1.0, 0.0, 0.5, -1.0),
])
def test_value_loss_hand_numbers(values, returns, loss, slope):
    """Half the square, so that the slope is V - R itself."""
    values, returns = torch.tensor([[values]]), torch.tensor([[returns]])
    assert value_loss(values, returns).item() == loss
    assert gradient(lambda x: value_loss(x, returns), values).item() == slope


@pytest.mark.parametrize("values, returns, clip, loss, slope", [
    # near V_old = 0: half of .9^2
    (0.1, 1.0, 0.2, 0.405, -0.9),
    # moved towards R, beyond the edge: half of .8^2, from the edge, without a gradient
    (0.5, 1.0, 0.2, 0.32, 0.0),
    (-0.5, -1.0, 0.2, 0.32, 0.0),
    # past R, and still nearer to it than the edge: no gradient either
    (1.5, 1.0, 0.2, 0.32, 0.0),
    # so far past R that the edge was better: pulled back
    (2.0, 1.0, 0.2, 0.5, 1.0),
    # moved away from R: 1.5^2 / 2, pulled back
    (-0.5, 1.0, 0.2, 1.125, -1.5),
    (0.5, -1.0, 0.2, 1.125, 1.5),
    # no room at all, and all of it
    (0.1, 1.0, 0.0, 0.5, 0.0),
    (0.5, 1.0, 9.0, 0.125, -0.5),
])
def test_clipped_value_loss_hand_numbers(values, returns, clip, loss, slope):
    """Never less than the loss without a clip: the larger of the two, as the surrogate takes the
    smaller. With min for max the second row would be .125.

    V_old is moved as well, because clip(V, -eps, eps) forgets to add it.
    """
    for shift in (0.0, 10.0):
        v, v_old, r = (
            torch.tensor([[x + shift]], dtype=torch.float64) for x in (values, 0.0, returns))
        clipped = partial(clipped_value_loss, old_values=v_old, returns=r, clip=clip)
        assert clipped(v).item() == pytest.approx(loss, abs=1e-9)
        assert gradient(clipped, v).item() == pytest.approx(slope, abs=1e-9)
        assert clipped(v) >= value_loss(v, r)


# ---- dppo

# π, μ, A, slope: δ = 0.2. Up to 0.2 away any ratio counts, beyond it only the way back
@pytest.mark.parametrize("now, then, adv, slope", [
    (0.05, 0.01, 1.0, 5.0),
    (0.05, 0.01, -1.0, -5.0),
    (0.50, 0.29, 1.0, 0.0),
    (0.50, 0.29, -1.0, -0.50 / 0.29),
    (0.29, 0.50, 1.0, 0.58),
    (0.29, 0.50, -1.0, 0.0),
    (0.31, 0.50, -1.0, -0.62),
    (0.48, 0.29, 1.0, 0.48 / 0.29),
    (0.50, 0.50, 3.0, 3.0),
    (0.90, 0.10, 0.0, 0.0),
    (0.20, 0.005, 1.0, 20.0),  # the ratio 40 is cut to 20, and the token not dropped
])
def test_dppo_truth_table(now, then, adv, slope):
    logp, old_logp, adv = torch.tensor([[[now]], [[then]], [[adv]]], dtype=torch.float64)
    logp = logp.log().requires_grad_()
    out = dppo(logp, old_logp.log(), adv, delta=0.2)
    out.backward()
    assert logp.grad.item() == pytest.approx(slope, abs=1e-9)
    assert out.item() == pytest.approx(slope * logp.item(), abs=1e-9)


def test_dppo_and_ppo_disagree_on_rare_and_on_likely_tokens():
    """Figure 1 of the paper in numbers, A = 1, ε = δ = 0.2. From 0.01 to 0.05 the ratio is 5: PPO
    stops, DPPO goes on. From 0.80 to 0.95 it is 1.19: PPO goes on. From 0.5 to 0.75 both stop."""
    def learns(objective, now, then):
        logp = torch.tensor([[now]]).log().requires_grad_()
        objective(logp, torch.tensor([[then]]).log(), torch.ones(1, 1)).sum().backward()
        return bool(logp.grad != 0)

    tight = partial(dppo, delta=0.1)
    for now, then, ppo_learns, dppo_learns in (
            (0.05, 0.01, False, True), (0.95, 0.80, True, False), (0.75, 0.50, False, False)):
        assert learns(clipped_surrogate, now, then) == ppo_learns
        assert learns(tight, now, then) == dppo_learns


def test_dppo_exactly_at_its_bound():
    """1/2 from 1/4 with δ = 1/4, in exact binary fractions: still inside, on either side."""
    logp = torch.tensor([[0.5, 0.25]]).double().log().requires_grad_()
    old = torch.tensor([[0.25, 0.5]]).double().log()
    moved = (logp.exp() - old.exp()).abs().max().item()
    dppo(logp, old, torch.tensor([[1.0, -1.0]]).double(), delta=moved).sum().backward()
    assert logp.grad[0].tolist() == pytest.approx([2.0, -0.5])


@pytest.mark.parametrize("call, message", [
    (lambda x: dppo(x, x, x, delta=0.0), "delta is 0.0"),
    (lambda x: dppo(x, x, x, delta=0.1, cap=0.0), "cap is 0.0"),
    (lambda x: dppo(x, x[0], x, delta=0.1), "old_logp is"),
    (lambda x: dppo(x, x, x.clone().requires_grad_(), delta=0.1), "adv requires grad"),
])
def test_bad_arguments_of_dppo_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 2))
