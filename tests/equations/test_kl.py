"""Tests of minirl.equations.kl."""

import math

import pytest
import torch

from minirl.equations.kl import (
    AdaptiveKLController,
    adaptive_kl_coef,
    corrected_k3,
    exact_kl,
    generalised_jsd,
    k1,
    k2,
    k3,
    kl_shaped_rewards,
)
from minirl.equations.reduce import aggregate, masked_mean

INF, NAN = float("inf"), float("nan")
# one token of three: pi = (.4615, .2292, .3093)
LOGITS = torch.tensor([0.5, -0.2, 0.1]).double()
REF = torch.tensor([0.2, 0.5, 0.3]).double().log()
GRAD_KL = (0.28592, -0.22842, -0.05751)  # of KL(pi || ref) in the logits
GRAD_REVERSE = (0.26149, -0.27083, 0.00934)  # of KL(ref || pi)
every_estimator = pytest.mark.parametrize("estimator", [k1, k2, k3])


def gradient(objective, parameters):
    leaf = parameters.clone().requires_grad_()
    objective(leaf).backward()
    return leaf.grad


def near(actual, expected, tolerance=6e-6):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# log 2 = .693147, half its square .240227; k3: 1/2 + .693147 - 1 and 2 - .693147 - 1;
# slopes in logp: 1, log(pi/ref), 1 - ref/pi
@pytest.mark.parametrize("pi, ref, values, slopes", [
    (0.5, 0.25, (0.693147, 0.240227, 0.193147), (1.0, 0.693147, 0.5)),
    (0.25, 0.5, (-0.693147, 0.240227, 0.306853), (1.0, -0.693147, -1.0)),
    (0.3, 0.3, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
])
def test_hand_numbers(pi, ref, values, slopes):
    logp = torch.tensor([pi], dtype=torch.float64).log()
    ref_logp = torch.tensor([ref], dtype=torch.float64).log()
    for estimator, value, slope in zip((k1, k2, k3), values, slopes, strict=True):
        near(estimator(logp, ref_logp), [value], 1e-6)
        near(gradient(lambda x, k=estimator: k(x, ref_logp).sum(), logp), [slope], 1e-6)


@pytest.mark.parametrize("pi, ref, value", [
    # (log 2 + log 2/3) / 2 = (.693147 - .405465) / 2
    ((0.5, 0.5), (0.25, 0.75), 0.143841),
    # .25 log 1/2 + .75 log 3/2 = -.173287 + .304099
    ((0.25, 0.75), (0.5, 0.5), 0.130812),
    # an id that pi never takes adds nothing, even where the reference never takes it either
    ((1.0, 0.0), (0.5, 0.5), 0.693147),
    ((1.0, 0.0), (1.0, 0.0), 0.0),
    # but what pi takes and the reference never does is infinitely far
    ((0.5, 0.5), (1.0, 0.0), INF),
])
def test_exact_kl_hand_numbers(pi, ref, value):
    """Logits are shifted by constants, which must not matter."""
    logits, ref_logits = torch.tensor([pi]).log() + 3, torch.tensor([ref]).log() - 5
    assert exact_kl(logits, ref_logits).tolist() == pytest.approx([value], abs=1e-6)
    slope = gradient(lambda x: exact_kl(x, ref_logits).sum(), logits)
    assert (slope[torch.tensor([pi]) == 0] == 0).all()


def test_exact_kl_of_the_table():
    near(exact_kl(LOGITS, REF), 0.216570, 1e-6)
    near(exact_kl(REF, LOGITS), 0.213647, 1e-6)
    near(gradient(lambda x: exact_kl(x, REF), LOGITS), GRAD_KL)
    assert exact_kl(torch.randn(2, 5, 3), torch.randn(2, 5, 3)).shape == (2, 5)


def test_exact_kl_where_pi_underflows():
    """pi = (1, e^-200) is (1, 0) in float32. Beside a reference that never takes the second id the
    term was 0 * inf, a NaN; it must be infinite, or 0."""
    assert not exact_kl(torch.tensor([0.0, -200.0]), torch.tensor([0.0, -INF])).isnan()


@pytest.mark.parametrize("estimator, mean, variance, loss_gradient, reward_gradient", [
    (k1, 0.216570, 0.4155, (0.0, 0.0, 0.0), GRAD_KL),
    (k2, 0.231205, 0.02416, GRAD_KL, None),
    (k3, 0.216570, 0.02359, GRAD_REVERSE, (0.02444, 0.04242, -0.06685)),
])
def test_estimators_by_enumeration(estimator, mean, variance, loss_gradient, reward_gradient):
    """Value and gradient are two questions that the field mixes up.

    k1 as a loss is no penalty at all, k3 in the reward hardly one. Several code bases have the
    ratio the wrong way round, which the mean shows and the formula hides.
    """
    pi, logp = LOGITS.softmax(0), LOGITS.log_softmax(0)
    k = estimator(logp, REF)
    near((pi * k).sum(), mean, 1e-6)
    near((pi * (k - mean).square()).sum(), variance, 6e-5)
    near(gradient(lambda x: (pi * estimator(x.log_softmax(0), REF)).sum(), LOGITS), loss_gradient)
    if reward_gradient:  # E[k grad log pi], with k a number
        near(gradient(lambda x: (pi * k * x.log_softmax(0)).sum(), LOGITS), reward_gradient)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_loss_weighted_by_the_ratio_has_the_gradient_of_kl(estimator):
    """rho * k with rho = pi / sg(pi) has both halves of the gradient: unbiased for k1 and k3."""
    pi, logp = LOGITS.softmax(0), LOGITS.log_softmax(0)

    def loss(x):
        now = x.log_softmax(0)
        return (pi * (now - logp).exp() * estimator(now, REF)).sum()

    near(gradient(loss, LOGITS), GRAD_KL)


def two_tokens(logits):
    """Log-probs of all 9 sequences of two tokens from 3 ids: (4, 3) logits -> (9, 2).

    The first token chooses the second one's row.
    """
    logp = logits.log_softmax(-1)
    return torch.stack([logp[0][:, None].expand(3, 3), logp[1:]], -1).reshape(9, 2)


def test_two_tokens_by_enumeration():
    """Over sequences, the summed k1 (and k3) has the sequence's KL as its mean.

    k1 as a loss has no gradient. k2 has the right one only for the whole sequence's log-ratio:
    token by token it misses how the first token changes the second.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator).double()
    ref_logits = torch.randn(4, 3, generator=generator).double()
    logp, ref_logp = two_tokens(logits), two_tokens(ref_logits)  # (9, 2)
    pi = logp.sum(1).exp()  # (9,)
    near(pi.sum(), 1.0, 1e-12)

    def sequence_kl(x):  # over the 9 sequences as one distribution
        return exact_kl(two_tokens(x).sum(1), ref_logp.sum(1))

    def slope(loss):  # E[grad of loss(log-probs)], the samples held fixed
        return gradient(lambda x: (pi * loss(two_tokens(x))).sum(), logits)

    kl, grad_kl = sequence_kl(logits), gradient(sequence_kl, logits)
    first = logits[0].softmax(0)
    second_kl = (first * exact_kl(logits[1:], ref_logits[1:])).sum()
    near(exact_kl(logits[0], ref_logits[0]) + second_kl, kl, 1e-12)  # the chain rule
    for estimator in (k1, k3):
        near((pi * estimator(logp, ref_logp).sum(1)).sum(), kl, 1e-12)
    near(slope(lambda x: k1(x, ref_logp).sum(1)), torch.zeros(4, 3), 1e-12)
    near(slope(lambda x: k1(logp, ref_logp).sum(1) * x.sum(1)), grad_kl, 1e-12)
    near(slope(lambda x: k2(x.sum(1), ref_logp.sum(1))), grad_kl, 1e-12)
    by_token = slope(lambda x: k2(x, ref_logp).sum(1))
    assert (by_token - grad_kl).norm() > 0.05 * grad_kl.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [25.0, 1e-1, 1e-3, 1e-6])
def test_k2_and_k3_are_never_negative(dtype, scale):
    """A negative KL in a log makes people look for a bug. k1 may be negative for a token, these two
    may not, not even by rounding."""
    logp = torch.linspace(-scale, scale, 5001).to(dtype)
    zero = torch.zeros_like(logp)
    assert (k1(logp, zero) < 0).any()
    assert (k2(logp, zero) >= 0).all() and (k3(logp, zero) >= 0).all()


@pytest.mark.parametrize("log_ratio", [1e-3, -1e-3, 1e-4, -1e-4])
def test_small_log_ratios_keep_their_digits(log_ratio):
    """In float32 exp(x) - x - 1 is rounding noise of 6e-8 here; the right value is half the square,
    5e-7 and 5e-9."""
    logp, ref_logp = torch.tensor([log_ratio]), torch.zeros(1)
    assert k3(logp, ref_logp).item() == pytest.approx(log_ratio ** 2 / 2, rel=5e-3)


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("log_ratio", [100.0, -100.0])
def test_extreme_log_ratios_stay_finite(estimator, dtype, log_ratio):
    logp = torch.full((3,), log_ratio, dtype=dtype)
    value = estimator(logp, torch.zeros_like(logp))
    slope = gradient(lambda x: estimator(x, torch.zeros_like(x)).sum(), logp)
    assert value.dtype == dtype and value.isfinite().all() and slope.isfinite().all()


def test_k3_of_a_policy_far_from_its_reference():
    """Only the exponential is capped, and only from above: where pi / ref = e^30, k3 is 29 with
    slope 1.

    With a cap on both sides it would be 19 with slope 0. A policy that collapsed onto what its
    reference never says would feel no penalty.
    """
    pi = torch.tensor([1 - 1e-8, 1e-8]).double()
    ref = torch.tensor([1e-13, 1 - 1e-13]).double()
    k = k3(pi.log(), ref.log())
    near((pi * k).sum(), exact_kl(pi.log(), ref.log()), 1e-4)  # 29.93, nearly all from the first
    far = torch.tensor([-30.0]).double()
    near(gradient(lambda logp: k3(logp, far).sum(), torch.zeros(1).double()), [1.0], 1e-6)


def test_sums_grow_with_the_length_and_means_do_not():
    """A kl_coef is per token or per sequence: twice the tokens have twice the summed KL, and the
    same mean."""
    logp, mask = torch.tensor([[-1.0, -2.0, -0.5]]), torch.tensor([[1, 1, 0]])
    ref_logp = torch.tensor([[-1.5, -1.0, 0.0]])  # k1: .5, -1
    once, mask_twice = k1(logp, ref_logp), mask.repeat(1, 2)
    twice = k1(logp.repeat(1, 2), ref_logp.repeat(1, 2))
    assert aggregate(once, mask, "sequence_sum").item() == -0.5
    assert aggregate(twice, mask_twice, "sequence_sum").item() == -1.0
    assert masked_mean(once, mask).item() == masked_mean(twice, mask_twice).item() == -0.25


@every_estimator
def test_elementwise_and_inputs_stay(estimator):
    """Row order, padding and a NaN elsewhere change nothing: each value is that of its own slot."""
    generator = torch.Generator().manual_seed(0)
    logp = torch.randn(4, 3, generator=generator)
    ref_logp = torch.randn(4, 3, generator=generator)
    plain, order = estimator(logp, ref_logp), torch.tensor([2, 0, 3, 1])
    before = logp.clone(), ref_logp.clone()
    assert torch.equal(estimator(logp[order], ref_logp[order]), plain[order])
    assert torch.equal(logp, before[0]) and torch.equal(ref_logp, before[1])
    mask = torch.tensor([[0, 1, 1]] * 4)
    for junk in (NAN, 100.0):
        leaf = logp.masked_fill(mask == 0, junk).requires_grad_()
        ref_junk = ref_logp.masked_fill(mask == 0, junk / 2)
        value = aggregate(estimator(leaf, ref_junk), mask, "token_mean")
        value.backward()
        assert value.item() == pytest.approx(masked_mean(plain, mask).item(), abs=1e-6)
        assert leaf.grad[mask == 1].isfinite().all()
        assert junk != junk or (leaf.grad[mask == 0] == 0).all()


@pytest.mark.parametrize("estimator", [k1, k2, k3, exact_kl])
def test_bad_arguments_raise(estimator):
    """(B,) beside (B, T) with B == T broadcasts silently. A reference with a gradient is a
    forgotten no_grad."""
    for shape in ((3,), (3, 1), (1, 3)):
        with pytest.raises(ValueError, match="same shape"):
            estimator(torch.zeros(3, 3), torch.zeros(shape))
    with pytest.raises(ValueError, match="requires grad"):
        estimator(torch.zeros(3), torch.zeros(3, requires_grad=True))


def test_exact_kl_in_bfloat16_stays_finite():
    logits = torch.tensor([[50.0, -50.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    assert exact_kl(logits, -logits).isfinite().all()
    assert (exact_kl(logits, logits) == 0).all()
    assert gradient(lambda x: exact_kl(x, -logits).sum(), logits).isfinite().all()


# rho k3; the slope in logp is rho k3 + rho (1 - ref/pi), k3's own with its value added:
# .386294 + 2 / 2; .153426 - 1 / 2; .193147 + 1/2
@pytest.mark.parametrize("pi, old, ref, value, slope", [
    (0.5, 0.25, 0.25, 0.386294, 1.386294),
    (0.25, 0.5, 0.5, 0.153426, -0.346574),
    (0.5, 0.5, 0.25, 0.193147, 0.693147),
    (0.3, 0.6, 0.3, 0.0, 0.0),
])
def test_corrected_k3_hand_numbers(pi, old, ref, value, slope):
    logp, old_logp, ref_logp = torch.tensor([pi, old, ref]).double().log().view(3, 1)
    near(corrected_k3(logp, old_logp, ref_logp), [value], 1e-6)
    near(gradient(lambda x: corrected_k3(x, old_logp, ref_logp).sum(), logp), [slope], 1e-6)


@pytest.mark.parametrize("old", [(0.4615, 0.2292, 0.3093), (0.1, 0.3, 0.6), (0.7, 0.2, 0.1)])
def test_corrected_k3_under_an_older_policy(old):
    """Sampled from pi_old, k3 alone is off in value and gradient. The ratio repairs both, however
    far old is from new."""
    old = torch.tensor(old).double() / sum(old)

    def corrected(x):
        return (old * corrected_k3(x.log_softmax(0), old.log(), REF)).sum()

    def plain(x):
        return (old * k3(x.log_softmax(0), REF)).sum()

    near(corrected(LOGITS), 0.216570, 1e-6)
    near(gradient(corrected, LOGITS), GRAD_KL)
    assert (gradient(plain, LOGITS) - torch.tensor(GRAD_KL)).norm() > 0.05


def test_corrected_k3_far_off_and_bad_arguments():
    for dtype in (torch.float32, torch.float16):
        far = torch.tensor([100.0, -100.0, 0.0]).to(dtype)
        assert corrected_k3(far, -far, 0 * far).isfinite().all()
        slope = gradient(lambda x, far=far: corrected_k3(x, -far, 0 * far).float().sum(), far)
        assert slope.isfinite().all()
    good = torch.zeros(3, 3)
    for shape in ((3,), (3, 1), (1, 3)):
        for arguments in ((torch.zeros(shape), good), (good, torch.zeros(shape))):
            with pytest.raises(ValueError, match="same shape"):
                corrected_k3(good, *arguments)
    zero, leaf = torch.zeros(3), torch.zeros(3, requires_grad=True)
    for arguments in ((leaf, zero), (zero, leaf)):
        with pytest.raises(ValueError, match="requires grad"):
            corrected_k3(zero, *arguments)


HALF, QUARTER = torch.full((1, 3), 0.5).log(), torch.full((1, 3), 0.25).log()


# at half : quarter k1 = log 2 = .6931, k2 = .2402, k3 = .1931; times kl_coef .1; the score is 1
@pytest.mark.parametrize("mask, options, expected", [
    ([1, 1, 1], {}, [-0.0693, -0.0693, 0.9307]),
    # a prompt, or padding on the left
    ([0, 1, 1], {}, [0.0, -0.0693, 0.9307]),
    # padding on the right: the score is on the last sampled token, not after it, not at the end
    ([1, 1, 0], {}, [-0.0693, 0.9307, 0.0]),
    # tool output in between costs nothing
    ([1, 0, 1], {}, [-0.0693, 0.0, 0.9307]),
    # an immediate EOS has penalty and score in one slot
    ([0, 1, 0], {}, [0.0, 0.9307, 0.0]),
    ([1, 1, 0], {"estimator": k2}, [-0.0240, 0.9760, 0.0]),
    ([1, 1, 0], {"estimator": k3, "allow_biased": True}, [-0.0193, 0.9807, 0.0]),
    # a token that the reference likes better is rewarded
    ([1, 1, 0], {"swap": True}, [0.0693, 1.0693, 0.0]),
    ([1, 1, 0], {"kl_coef": 0.0}, [0.0, 1.0, 0.0]),
    ([1, 1, 0], {"kl_coef": 1.0, "score": -2.0}, [-0.6931, -2.6931, 0.0]),
    # no completion, no score
    ([0, 0, 0], {"score": 0.0}, [0.0, 0.0, 0.0]),
])
def test_kl_shaped_rewards_hand_numbers(mask, options, expected):
    """What stands outside the mask, NaN included, is nobody's reward.

    No input is written to, and nothing has a gradient.
    """
    options, mask = dict(options), torch.tensor([mask])
    score = torch.tensor([options.pop("score", 1.0)])
    kl_coef = options.pop("kl_coef", 0.1)
    logp, ref_logp = (QUARTER, HALF) if options.pop("swap", False) else (HALF, QUARTER)
    for junk in (0.0, 100.0, -INF, NAN):
        leaf = logp.masked_fill(mask == 0, junk).requires_grad_()
        ref = ref_logp.masked_fill(mask == 0, -junk).requires_grad_()
        score = score.clone().requires_grad_()
        before = leaf.detach().clone()
        m = mask.bool() if junk else mask
        rewards = kl_shaped_rewards(score, leaf, ref, m, kl_coef, **options)
        torch.testing.assert_close(rewards, torch.tensor([expected]), atol=6e-5, rtol=0)
        assert not rewards.requires_grad
        assert torch.equal(leaf.detach().nan_to_num(), before.nan_to_num())


def test_kl_shaped_rewards_row_by_row():
    scores = torch.tensor([1.0, 2.0, 3.0])
    logp = torch.tensor([[-1.0, -2.0], [-3.0, -1.0], [-0.5, -0.5]])
    ref_logp = torch.full((3, 2), -1.0)
    mask = torch.tensor([[1, 0], [1, 1], [0, 1]])  # k1 = 0 . ; -2 0 ; . 1/2
    rewards = kl_shaped_rewards(scores, logp, ref_logp, mask, 0.5)
    assert rewards.tolist() == [[1.0, 0.0], [1.0, 2.0], [0.0, 2.75]]


@pytest.mark.parametrize("options, message", [
    # E[k3 grad log pi] is 22 % as long as the gradient of the KL, at right angles to it
    ({"estimator": k3}, "allow_biased"),
    ({"scores": torch.ones(2, 1)}, r"\(B,\)"),
    ({"scores": torch.ones(3)}, r"\(B,\)"),
    ({"ref_logp": torch.zeros(2)}, r"ref_logp \(2,\)"),
    ({"mask": torch.ones(2)}, r"mask \(2,\)"),
    ({"logp": torch.zeros(2), "ref_logp": torch.zeros(2), "mask": torch.ones(2)}, r"\(B, T\)"),
    ({"scores": torch.tensor([1.0, NAN])}, "1 values that are not finite: leave"),
    ({"scores": torch.tensor([INF, 0.0])}, "finite"),
    ({"mask": torch.tensor([[1, 1], [0, 0]])}, "no sampled token to carry it: leave"),
])
def test_kl_shaped_rewards_bad_arguments_raise(options, message):
    good = {"scores": torch.ones(2), "logp": torch.zeros(2, 2), "ref_logp": torch.zeros(2, 2),
            "mask": torch.ones(2, 2), "kl_coef": 0.1}
    assert kl_shaped_rewards(**good).tolist() == [[0.0, 1.0], [0.0, 1.0]]
    with pytest.raises(ValueError, match=message):
        kl_shaped_rewards(**{**good, **options})


@pytest.mark.parametrize("kl, expected", [
    (0.0, 0.5), (-0.1, 0.5), (1.33, 0.5),
    (1.34, 1.0), (2.0, 1.0), (3.0, 1.0),
    (3.01, 2.0), (1e9, 2.0), (INF, 2.0),
])
def test_adaptive_kl_coef(kl, expected):
    """Target 2: half below 2 / 1.5 = 1.333, twice above 2 * 1.5 = 3; the edge belongs to the
    middle."""
    assert adaptive_kl_coef(1.0, kl, 2.0) == expected
    assert adaptive_kl_coef(0.04, kl, 2.0) == pytest.approx(0.04 * expected)


@pytest.mark.parametrize("kl, n, expected", [
    # e = ±.5, clipped to ±.2: 1 ± .2 * 256 / 10,000
    (9.0, 256, 1.00512), (3.0, 256, 0.99488), (6.0, 256, 1.0),
    # e = ±.1 stays: 1 ± .1 * .0256, 1 + .1 / 2
    (6.6, 256, 1.00256), (5.4, 256, 0.99744), (6.6, 5000, 1.05),
    # an estimate below 0 is just too small
    (0.0, 256, 0.99488), (-3.0, 256, 0.99488), (1e9, 256, 1.00512), (9.0, 0, 1.0),
])
def test_adaptive_kl_controller_hand_numbers(kl, n, expected):
    controller = AdaptiveKLController(0.15, target=6.0, horizon=10_000)
    controller.update(kl=kl, n_samples=n)
    assert controller.kl_coef == pytest.approx(0.15 * expected, rel=1e-9)
    controller.update(kl=kl, n_samples=n)
    assert controller.kl_coef == pytest.approx(0.15 * expected ** 2, rel=1e-9)


@pytest.mark.parametrize("start", [0.01, 5.0])
def test_adaptive_kl_controller_finds_the_target(start):
    """A policy whose KL is 0.9 / kl_coef is at 6 nats where kl_coef is 0.15.

    With the wrong sign of e it runs away instead.
    """
    controller = AdaptiveKLController(start, target=6.0, horizon=10_000)
    for _ in range(2000):
        controller.update(kl=0.9 / controller.kl_coef, n_samples=256)
    assert controller.kl_coef == pytest.approx(0.15, rel=1e-3)


def test_adaptive_kl_controller_never_turns_the_penalty_into_a_bonus():
    """60,000 samples at horizon 10,000 and a KL of 0 gave 1 - 0.2 * 6 = -0.2: a negative kl_coef
    for ever, a bonus for leaving the reference. At 5 horizons it is 1 - 0.2 * 5 = 0, and before
    that positive."""
    controller = AdaptiveKLController(0.15, target=6.0, horizon=10_000)
    for n in (50_000, 60_000, -1):
        with pytest.raises(ValueError, match=f"n_samples is {n} .*less than 5 horizons"):
            controller.update(kl=0.0, n_samples=n)
    assert controller.kl_coef == 0.15
    controller.update(kl=0.0, n_samples=49_999)
    assert controller.kl_coef == pytest.approx(0.15 * 0.2 / 10_000)


@pytest.mark.parametrize("call", [
    lambda: adaptive_kl_coef(0.0, 1.0, 1.0),
    lambda: adaptive_kl_coef(1.0, 1.0, 0.0),
    lambda: adaptive_kl_coef(-1.0, 1.0, 1.0),
    lambda: adaptive_kl_coef(1.0, NAN, 1.0),
    lambda: AdaptiveKLController(0.0, 6.0, 1e4),
    lambda: AdaptiveKLController(0.1, -6.0, 1e4),
    lambda: AdaptiveKLController(0.1, 6.0, 0),
    lambda: AdaptiveKLController(NAN, 6.0, 1e4),
    lambda: AdaptiveKLController(0.1, 6.0, 1e4).update(NAN, 8),
    lambda: AdaptiveKLController(0.1, 6.0, 1e4).update(INF, 8),
])
def test_controllers_bad_arguments_raise(call):
    """NaN compares false with everything: a NaN KL would silently leave kl_coef as it is, or make
    it NaN for ever."""
    with pytest.raises(ValueError, match="expected"):
        call()


# ---- generalised Jensen-Shannon divergence

LN = math.log
STUDENT, TEACHER, ONE_WORD = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]).double().log()


@pytest.mark.parametrize("teacher, beta, value, slope", [
    (TEACHER, 0.0, 0.75 * LN(3) - LN(2), 0.25),  # forward: π - π_T
    (TEACHER, 1.0, 0.143841, LN(3) / 4),  # reverse: π (ln(π / π_T) - KL)
    # M = (3/8, 5/8): 1/8 ln(2/3) + 3/8 ln(6/5) + 1/4 ln(4/3) + 1/4 ln(4/5);
    # slope 1/2 * 1/2 (ln(4/3) - ln(4/5)) / 2
    (TEACHER, 0.5, 0.125 * LN(2 / 3) + 0.375 * LN(1.2) + 0.25 * LN(16 / 15), LN(5 / 3) / 8),
    (ONE_WORD, 0.5, 0.75 * LN(4 / 3), -LN(3) / 8),
    (ONE_WORD, 0.25, 0.25 * LN(1.6) + 0.375 * LN(16 / 15), 0.75 * 0.25 * LN(0.6)),
    (STUDENT, 0.3, 0.0, 0.0),
])
def test_generalised_jsd_hand_numbers(teacher, beta, value, slope):
    """The gradient is (1 - β) π (ln(π / M) less its mean): for two tokens p q times the difference
    of the logs, 1/4 here."""
    logits = STUDENT.clone().requires_grad_()
    out = generalised_jsd(logits, teacher, beta)
    out.backward()
    assert out.item() == pytest.approx(value, abs=1e-6)
    assert logits.grad.tolist() == pytest.approx([slope, -slope], abs=1e-9)


def test_generalised_jsd_is_symmetric_in_its_names():
    """Student and teacher exchanged, with β for 1 - β, is the same divergence."""
    a, b = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(generalised_jsd(a, b, 0.3), generalised_jsd(b, a, 0.7))
    assert (generalised_jsd(a, b, 0.3) > 0).all()
    half = generalised_jsd(a, b, 0.5)
    assert (half < LN(2)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.9, 1.0])
def test_generalised_jsd_of_words_with_probability_0(dtype, beta):
    """A word that neither knows (-inf in both) is no NaN, in value or gradient. One that the
    student alone knows costs at most ln 1/(1 - β) a time, and is infinite for the reverse KL."""
    logits = torch.tensor([[0.0, -math.inf], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]], dtype=dtype)
    out = generalised_jsd(logits, teacher, beta)
    assert out[0].abs() < 1e-3 and out[1].isinf() == (beta == 1) and not out.isnan().any()
    if beta < 1:
        out.sum().backward()
        assert logits.grad.isfinite().all() and (logits.grad[1] != 0).all()


@pytest.mark.parametrize("call, message", [
    (lambda x: generalised_jsd(x, x[0], 0.5), "same shape"),
    (lambda x: generalised_jsd(x, x.clone().requires_grad_(), 0.5), "teacher_logits requires grad"),
    (lambda x: generalised_jsd(x, x, 1.5), r"beta is 1.5.*\[0, 1\]"),
    (lambda x: generalised_jsd(x, x, -0.5), "beta is -0.5"),
    (lambda x: generalised_jsd(x, x, NAN), "beta is nan"),
])
def test_bad_arguments_of_the_generalised_jsd_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3))
