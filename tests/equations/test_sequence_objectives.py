"""Tests of minirl.equations.sequence_objectives."""

import math
from functools import partial

import pytest
import torch

from minirl.equations import objectives
from minirl.equations.objectives import gspo_token, policy_gradient, sequence_clipped_surrogate
from minirl.equations.reduce import aggregate
from minirl.equations.sequence_objectives import gmpo, luspo, vespo

NAN = float("nan")
GENERATOR = torch.Generator().manual_seed(0)
LOGP, OLD, ADV = torch.randn(3, 6, 5, generator=GENERATOR, dtype=torch.float64).mul(0.5).unbind()
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 1, 1],
                     [0, 0, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]])
ROW_ADV = ADV[:, 0]
BOUNDS = {"clip_low": 0.2, "clip_high": 0.28}
luspo_ = partial(luspo, **BOUNDS)


def value_and_slopes(function, log_ratio, adv):
    """Of one row, whose old log-probs are 0."""
    logp = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(logp)
    adv = torch.tensor([adv] if function is not vespo else [[adv] * len(log_ratio)]).double()
    value = function(logp, zero, adv, torch.ones_like(logp))
    value.sum().backward()
    return value.detach()[0].tolist(), logp.grad[0].tolist()


# Of the four pairs of sign and side, two are clipped: above for A > 0, below for A < 0
@pytest.mark.parametrize("log_ratio, adv, value, slopes", [
    ([0.5, 0.1], 1.0, math.exp(0.25), [0.0, math.exp(0.25) / 2]),  # (0.4 + 0.1) / 2
    ([0.5, 0.1], -1.0, -math.exp(0.3), [-math.exp(0.3) / 2] * 2),  # (0.5 + 0.1) / 2
    ([-0.5, 0.1], 1.0, math.exp(-0.2), [math.exp(-0.2) / 2] * 2),
    ([-0.5, 0.1], -1.0, -math.exp(-0.15), [0.0, -math.exp(-0.15) / 2]),
    ([0.0, 0.0], -3.0, -3.0, [-1.5, -1.5]),
    ([0.5, -0.5], 0.0, 0.0, [0.0, 0.0]),
    ([0.5, 0.5], 2.0, 2 * math.exp(0.4), [0.0, 0.0]),
    ([0.9], -1.0, -math.exp(0.9), [-math.exp(0.9)]),
])
def test_gmpo_truth_table(log_ratio, adv, value, slopes):
    came, came_slopes = value_and_slopes(gmpo, log_ratio, adv)
    assert came == pytest.approx(value, abs=1e-12)
    assert came_slopes == pytest.approx(slopes, abs=1e-12)


def test_gmpo_with_a_wide_clip_is_gspo_without_one():
    """The order of clip and mean is all that differs."""
    gspo = sequence_clipped_surrogate(LOGP, OLD, ROW_ADV, MASK, clip_low=1.0, clip_high=1e9,
                                      length_normalised=True)
    torch.testing.assert_close(gmpo(LOGP, OLD, ROW_ADV, MASK, clip=1e9), gspo)
    assert (gmpo(LOGP, OLD, ROW_ADV, MASK, clip=0.1) - gspo).abs().max() > 0.01


def test_gmpo_is_never_above_gspo():
    """Each token is clipped towards less, for either sign of A: a lower bound, as PPO's minimum."""
    gspo = sequence_clipped_surrogate(LOGP, OLD, ROW_ADV, MASK, clip_low=1.0, clip_high=1e9,
                                      length_normalised=True)
    assert (gmpo(LOGP, OLD, ROW_ADV, MASK, clip=0.1) <= gspo + 1e-12).all()


def test_one_outlier_is_cut_by_gmpo_and_drops_the_completion_in_gspo():
    """Nine tokens with ratio 1 and one with e^2, A = 1. GSPO's mean is e^0.2, above 1.0004: no
    token learns. GMPO cuts the one and keeps nine."""
    slopes = value_and_slopes(gmpo, [2.0] + [0.0] * 9, 1.0)[1]
    assert slopes[0] == 0 and slopes[1:] == pytest.approx([math.exp(0.04) / 10] * 9)
    gspo = partial(sequence_clipped_surrogate, clip_low=3e-4, clip_high=4e-4,
                   length_normalised=True)
    assert value_and_slopes(gspo, [2.0] + [0.0] * 9, 1.0)[1] == [0.0] * 10


@pytest.mark.parametrize("bounds", [BOUNDS, {"clip_low": 3e-4, "clip_high": 4e-4}])
def test_luspo_is_the_length_times_gspo(bounds):
    lengths = MASK.sum(1).clamp(min=1)
    gspo = sequence_clipped_surrogate(LOGP, OLD, ROW_ADV, MASK, length_normalised=True, **bounds)
    torch.testing.assert_close(luspo(LOGP, OLD, ROW_ADV, MASK, **bounds), lengths * gspo)


@pytest.mark.parametrize("log_ratio, adv, value, slopes", [
    ([0.3, 0.1], 1.0, 2 * math.exp(0.2), [math.exp(0.2)] * 2),  # 1.2214 < 1.28
    ([0.5, 0.1], 1.0, 2.56, [0.0, 0.0]),  # e^0.3 = 1.35
    ([0.5, 0.1], -1.0, -2 * math.exp(0.3), [-math.exp(0.3)] * 2),
    ([-0.5, -0.1], -1.0, -1.6, [0.0, 0.0]),  # e^-0.3 = 0.74 counts as 0.8
    ([-0.5, -0.1], 1.0, 2 * math.exp(-0.3), [math.exp(-0.3)] * 2),
])
def test_luspo_truth_table(log_ratio, adv, value, slopes):
    came, came_slopes = value_and_slopes(luspo_, log_ratio, adv)
    assert came == pytest.approx(value, abs=1e-12)
    assert came_slopes == pytest.approx(slopes, abs=1e-12)


def test_luspo_counts_every_token_alike_on_policy_and_gspo_does_not():
    """Slopes of rows of 5, 2, 3, 1 and 4 tokens: A each, or A / |o|."""
    for function, share in ((luspo_, MASK.sum(1).clamp(min=1)), (partial(
            sequence_clipped_surrogate, length_normalised=True, **BOUNDS), torch.ones(6))):
        leaf = LOGP.clone().requires_grad_()
        function(leaf, LOGP, ROW_ADV, MASK).sum().backward()
        expected = ROW_ADV * share / MASK.sum(1).clamp(min=1)
        torch.testing.assert_close(leaf.grad, torch.where(MASK.bool(), expected[:, None], 0))


# φ(w) = w^k e^(λ (1 - w)) at w = 1/2, 1, 2, 4: k 2, λ 3, and k 3, λ 2
@pytest.mark.parametrize("w, gains, losses", [
    (0.5, math.exp(1.5) / 4, math.exp(1) / 8),
    (1.0, 1.0, 1.0),
    (2.0, 4 * math.exp(-3), 8 * math.exp(-2)),
    (4.0, 16 * math.exp(-9), 64 * math.exp(-6)),
])
def test_vespo_weights(w, gains, losses):
    """The weight is that of the product over the row, spread here in two ways, and it is what the
    gradient of every token is multiplied with."""
    for log_ratio in ([math.log(w), 0.0], [math.log(w) + 1, -1.0]):
        for adv, phi in ((2.0, gains), (0.25, gains), (-0.25, losses), (-2.0, losses)):
            value, slopes = value_and_slopes(vespo, log_ratio, adv)
            assert slopes == pytest.approx([adv * phi] * 2)
            assert value == pytest.approx([adv * phi * x for x in log_ratio])


def test_vespo_weights_are_largest_at_k_over_lambda():
    """2/3 and 3/2: (2/3)² e = 1.2081, (3/2)³ e^-1 = 1.2416."""
    w = torch.arange(1, 400).double() / 100
    one = torch.ones(len(w), 1).double()
    for sign, best, most in ((1.0, 0.67, 1.2081), (-1.0, 1.5, 1.2416)):
        logp = w.log()[:, None].requires_grad_()
        vespo(logp, 0 * one, sign * one, one).sum().backward()
        weights = sign * logp.grad[:, 0]
        assert w[weights.argmax()].item() == best
        assert weights.max().item() == pytest.approx(most, abs=1e-4)


def test_vespo_s_product_is_capped():
    """Where λ is so small that φ hardly falls: w = e^25 counts as e^20, times e^(-1e-12 e^20)."""
    zero = torch.zeros(1, 1).double()
    logp = (zero + 25).requires_grad_()
    vespo(logp, zero, zero + 1, zero + 1, k_pos=1.0, lam_pos=1e-12).sum().backward()
    assert logp.grad.item() == pytest.approx(math.exp(20), rel=1e-3)


def test_vespo_on_policy_is_the_policy_gradient():
    expected = torch.where(MASK.bool(), policy_gradient(LOGP, ADV), 0)
    torch.testing.assert_close(vespo(LOGP, LOGP, ADV, MASK), expected)


def test_vespo_takes_the_numbers_of_the_sign_token_by_token():
    """A = 0 counts with the positive ones, where it does not matter."""
    adv = torch.tensor([[1.0, -1.0]]).double()
    old, one = torch.zeros(1, 2).double(), torch.ones(1, 2)
    logp = torch.tensor([[0.0, math.log(2)]]).double().requires_grad_()
    out = vespo(logp, old, adv, one, k_pos=1.0, lam_pos=0.5, k_neg=4.0, lam_neg=1.0)
    out.sum().backward()
    assert logp.grad[0].tolist() == pytest.approx([2 * math.exp(-0.5), -16 * math.exp(-1)])


@pytest.mark.parametrize("function", [gmpo, luspo_, vespo])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("far", [600.0, -600.0])
def test_far_away_is_a_number(function, dtype, far):
    """e^600 overflows; the ratio is capped, and has no gradient there."""
    logp = torch.full((2, 2), far, dtype=dtype, requires_grad=True)
    adv = torch.tensor([1.0, -1.0]).to(dtype)
    adv = adv[:, None].expand(2, 2) if function is vespo else adv
    out = function(logp, torch.zeros(2, 2, dtype=dtype), adv, torch.ones(2, 2))
    out.sum().backward()
    assert out.isfinite().all() and logp.grad.isfinite().all() and out.dtype == dtype
    assert (logp.grad == 0).all()


@pytest.mark.parametrize("function", [gmpo, luspo_, vespo])
def test_junk_under_the_mask_reaches_nothing(function):
    """Padding of NaN: value and gradient are those of padding of 0."""
    results = []
    for junk in (0.0, NAN):
        hidden = ~MASK.bool()
        logp = LOGP.masked_fill(hidden, junk).requires_grad_()
        adv = ADV.masked_fill(hidden, junk) if function is vespo else ROW_ADV
        out = function(logp, OLD.masked_fill(hidden, -junk), adv, MASK)
        total = aggregate(out, MASK, "token_mean") if function is vespo else out.mean()
        total.backward()
        results.append((out.detach(), logp.grad))
    torch.testing.assert_close(*results)


def test_names_stand_where_a_reader_looks_first():
    for function in (gmpo, luspo, vespo):
        assert getattr(objectives, function.__name__) is function


def test_vespo_and_gspo_token_take_an_advantage_per_token_and_the_others_one_per_row():
    for function in (vespo, gspo_token):
        assert function(LOGP, OLD, ADV, MASK).shape == (6, 5)
    for function in (gmpo, luspo_):
        assert function(LOGP, OLD, ROW_ADV, MASK).shape == (6,)


SQUARE = torch.zeros(2, 2)


@pytest.mark.parametrize("call, message", [
    (lambda: gmpo(SQUARE, SQUARE, SQUARE, SQUARE), r"adv is \(2, 2\).*one constant per sequence"),
    (lambda: luspo_(SQUARE, SQUARE, SQUARE, SQUARE), r"adv is \(2, 2\)"),
    (lambda: gmpo(SQUARE, SQUARE, SQUARE[0], SQUARE[0]), r"mask \(2,\)"),
    (lambda: gmpo(SQUARE, SQUARE[0], SQUARE[0], SQUARE), r"old_logp is \(2,\)"),
    (lambda: vespo(SQUARE, SQUARE, SQUARE[0], SQUARE), r"adv is \(2,\)"),
    (lambda: vespo(SQUARE, SQUARE, SQUARE, SQUARE[0]), r"mask \(2,\)"),
    (lambda: vespo(SQUARE[0], SQUARE[0], SQUARE[0], SQUARE[0]), r"twice \(B, T\)"),
    (lambda: gmpo(SQUARE, SQUARE, SQUARE[0], SQUARE, clip=0.0), "clip is 0.0"),
    (lambda: luspo(SQUARE, SQUARE, SQUARE[0], SQUARE, clip_low=-0.1, clip_high=0.2), "is -0.1"),
    (lambda: luspo(SQUARE, SQUARE, SQUARE[0], SQUARE, clip_low=0.1, clip_high=-0.2), "high -0.2"),
    (lambda: gmpo(SQUARE, SQUARE, SQUARE[0].clone().requires_grad_(), SQUARE), "adv requires"),
    (lambda: gmpo(SQUARE, SQUARE.clone().requires_grad_(), SQUARE[0], SQUARE), "old_logp req"),
    (lambda: vespo(SQUARE, SQUARE, SQUARE.clone().requires_grad_(), SQUARE), "adv requires"),
    (lambda: vespo(SQUARE, SQUARE, SQUARE, SQUARE, k_pos=0.0), "k_pos is 0.0"),
    (lambda: vespo(SQUARE, SQUARE, SQUARE, SQUARE, lam_pos=0.0), "lam_pos is 0.0"),
    (lambda: vespo(SQUARE, SQUARE, SQUARE, SQUARE, k_neg=0.0), "k_neg is 0.0"),
    (lambda: vespo(SQUARE, SQUARE, SQUARE, SQUARE, lam_neg=0.0), "lam_neg is 0.0"),
])
def test_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_clip_of_zero_is_allowed_where_it_is_a_distance():
    luspo(SQUARE, SQUARE, SQUARE[0], SQUARE, clip_low=0.0, clip_high=0.0)
