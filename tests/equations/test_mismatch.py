"""Tests of minirl.equations.mismatch."""

import itertools
from math import comb

import pytest
import torch

from minirl.equations.mismatch import (
    effective_sample_size,
    geometric_mask,
    icepop_weights,
    importance_ratio,
    masked_weights,
    minimum_prefix_weights,
    off_policy_mask,
    prefix_weights,
    sequence_weights,
    truncated_weights,
)

NAN, INF = float("nan"), float("inf")
RATIO = torch.tensor([[0.1, 0.5, 1.0], [2.9, 3.0, 5.0]])


def test_importance_ratio():
    """1/2 over 1/4, 1/4 over 1/2, equal. The derivative in logp is the ratio itself."""
    logp = torch.tensor([[0.5, 0.25, 0.3]]).log().requires_grad_()
    ratio = importance_ratio(logp, torch.tensor([[0.25, 0.5, 0.3]]).log())
    ratio.sum().backward()
    torch.testing.assert_close(ratio, torch.tensor([[2.0, 0.5, 1.0]]))
    torch.testing.assert_close(logp.grad, torch.tensor([[2.0, 0.5, 1.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("log_ratio, value, slope", [
    (100.0, 485165195.4, 0.0), (-100.0, 0.0, 0.0), (0.0, 1.0, 1.0),
])
def test_importance_ratio_far_away(dtype, log_ratio, value, slope):
    """e^100 overflows, so the ratio is capped at e^20 = 485,165,195."""
    logp = torch.full((2,), log_ratio, dtype=dtype, requires_grad=True)
    ratio = importance_ratio(logp, torch.zeros(2, dtype=dtype))
    ratio.sum().backward()
    assert ratio.dtype == dtype
    assert ratio.tolist() == pytest.approx([value] * 2, rel=4e-3, abs=1e-30)
    assert logp.grad.tolist() == pytest.approx([slope] * 2, abs=1e-30)


def test_importance_ratio_in_float16_is_capped():
    logp, behavior_logp = torch.tensor([0.0, -100.0]).half(), torch.tensor([-100.0, 0.0]).half()
    ratio = importance_ratio(logp, behavior_logp)
    assert ratio.tolist() == [pytest.approx(256, rel=0.01), 0.0]


@pytest.mark.parametrize("weights, expected", [
    (lambda r: truncated_weights(r, 3.0), [[0.1, 0.5, 1.0], [2.9, 3.0, 3.0]]),
    (lambda r: truncated_weights(r, 0.5), [[0.1, 0.5, 0.5], [0.5, 0.5, 0.5]]),
    # the cap itself is kept, and the floor
    (lambda r: masked_weights(r, 3.0), [[0.1, 0.5, 1.0], [2.9, 3.0, 0.0]]),
    (lambda r: masked_weights(r, 3.0, floor=0.5), [[0.0, 0.5, 1.0], [2.9, 3.0, 0.0]]),
    (lambda r: masked_weights(r, 0.05), [[0.0] * 3] * 2),
])
def test_bounded_weights(weights, expected):
    """Truncated: counts less. Masked: does not count.

    Neither has a gradient, or the objective would learn to agree with the sampler. Weights are per
    token, (B, T), or per sequence, (B,).
    """
    expected = torch.tensor(expected)
    for ratio in (RATIO, RATIO.clone().requires_grad_()):
        assert not weights(ratio).requires_grad
        torch.testing.assert_close(weights(ratio), expected)
        torch.testing.assert_close(weights(ratio[:, 0]), expected[:, 0])


def test_sequence_weights():
    """(.1, -.2, .3, 0): e^.2 = 1.221403; without the third e^-.1 = .904837; without tokens 1.

    Twice the tokens give the square, e^.4: it is not a mean.
    """
    logp = torch.tensor([[0.1, -0.2, 0.3, 0.0]] * 3, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]])
    weights = sequence_weights(logp, torch.zeros(3, 4), mask)
    torch.testing.assert_close(weights, torch.tensor([1.221403, 0.904837, 1.0]))
    assert not weights.requires_grad
    assert not sequence_weights(torch.zeros(3, 4), logp, mask).requires_grad
    twice = sequence_weights(logp.repeat(1, 2), torch.zeros(3, 8), mask.repeat(1, 2))
    assert twice[0].item() == pytest.approx(1.491825, abs=1e-6)
    zero, far = torch.zeros(2, 3), torch.full((2, 3), 100.0)
    assert sequence_weights(far, zero, torch.ones(2, 3)).isfinite().all()


@pytest.mark.parametrize("weights, expected", [
    ([1.0, 1.0, 2.0], 2.666667),  # 16 / 6
    ([0.3] * 7, 7.0),
    ([0.0, 5.0, 0.0], 1.0),
    ([2.0], 1.0),
    ([3.0, 4.0], 1.96),  # 49 / 25
    ([0.0, 0.0], 0.0),
    ([], 0.0),
    ([1e30, 1e30, 2e30], 2.666667),  # the squares would overflow
    ([1e-30, 1e-30, 2e-30], 2.666667),  # and vanish
])
def test_effective_sample_size(weights, expected):
    size = effective_sample_size(torch.tensor(weights))
    assert size.item() == pytest.approx(expected, abs=1e-5)
    size = effective_sample_size(torch.tensor(weights).double())
    assert size.item() == pytest.approx(expected, abs=1e-6)


def test_effective_sample_size_of_counts():
    size = effective_sample_size(torch.tensor([1, 1, 2]))
    assert size.item() == pytest.approx(2.666667, abs=1e-5)


def test_effective_sample_size_in_float16():
    """Of a thousand equal weights: 1000 squared overflows float16, and the size was infinite."""
    size = effective_sample_size(torch.ones(1000).half())
    assert size.dtype == torch.float16 and size.item() == 1000
    assert effective_sample_size(torch.ones(0)).item() == 0


@pytest.mark.parametrize("length, variance", [(10, 0.105716), (100, 1.731726)])
def test_variance_grows_exponentially_with_the_length(length, variance):
    """The sampler tosses fair coins, the learner's have 1/2 ± .0502494: chi^2 = .0101 per token.

    Over all 2^T sequences the weight has mean 1 and variance 1.0101^T - 1. Sequences with the same
    number of heads have the same weight, so T + 1 rows and their counts are all of them.
    """
    heads = torch.arange(length) < torch.arange(length + 1)[:, None]  # (T + 1, T)
    logp = (0.5 + 0.0502494 * torch.where(heads, 1, -1).double()).log()
    counts = [comb(length, k) / 2 ** length for k in range(length + 1)]
    chance = torch.tensor(counts, dtype=torch.float64)
    weights = sequence_weights(logp, torch.full_like(logp, 0.5).log(), torch.ones_like(logp))
    assert (chance * weights).sum().item() == pytest.approx(1.0, abs=1e-9)
    assert (chance * (weights - 1).square()).sum().item() == pytest.approx(variance, rel=1e-5)


def test_bias_of_the_gradient_by_enumeration():
    """Two tokens of three ids, sampled from another policy: all 9 sequences with their chances.

    Weights of whole sequences give the exact gradient of E[R], truncated or masked too, until the
    cap takes effect. Token weights leave out what the other token's change did; here they are
    better than none. Masked weights whose cap takes effect are worse than none.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator).double()
    drift = torch.randn(4, 3, generator=generator).double()
    rewards = torch.randn(9, generator=generator).double()
    pairs = list(itertools.product(range(3), repeat=2))  # one row of logits per first token

    def table(logits):  # (4, 3) -> (9, 2)
        logp = logits.log_softmax(-1)
        return torch.stack([torch.stack([logp[0, a], logp[1 + a, b]]) for a, b in pairs])

    def gradient(objective):
        leaf = logits.clone().requires_grad_()
        objective(table(leaf)).backward()
        return leaf.grad

    behavior, now = table(logits + 0.5 * drift), table(logits)
    chance = behavior.sum(1).exp()
    exact = gradient(lambda logp: (logp.sum(1).exp() * rewards).sum())
    sequence = sequence_weights(now, behavior, torch.ones(9, 2))[:, None]
    token = importance_ratio(now, behavior)

    def bias(weights):
        slope = gradient(lambda logp: (chance[:, None] * weights * rewards[:, None] * logp).sum())
        return ((slope - exact).norm() / exact.norm()).item()

    unbiased = (sequence, truncated_weights(sequence, 3.0), masked_weights(sequence, 3.0))
    assert max(map(bias, unbiased)) < 1e-12
    assert 1.5 < sequence.max() < 3
    biased = (truncated_weights(sequence, 1.5), token, torch.ones(9, 1),
              masked_weights(sequence, 1.5))
    # the numbers are measured; the claim is their order
    assert list(map(bias, biased)) == pytest.approx([0.089, 0.243, 0.576, 0.848], abs=1e-3)

    # the ratio of the sequence is an objective of its own: E_mu[rho R] has the exact gradient
    # without any log-prob
    def ratio_objective(logp):
        return (chance * importance_ratio(logp.sum(1), behavior.sum(1)) * rewards).sum()

    torch.testing.assert_close(gradient(ratio_objective), exact)


@pytest.mark.parametrize("call, message", [
    (lambda x: importance_ratio(x, x[0]),
     r"behavior_logp is \(2,\) beside \(2, 2\): expected the same shape"),
    (lambda x: importance_ratio(x, x.clone().requires_grad_()), "behavior_logp requires grad"),
    (lambda x: sequence_weights(x, x, x[0]), r"mask \(2,\).*expected"),
    (lambda x: sequence_weights(x[0], x[0], x[0]), r"\(B, T\)"),
    (lambda x: truncated_weights(x, 0.0), "cap is 0.0.*positive"),
    (lambda x: truncated_weights(x, NAN), "cap is nan"),
    (lambda x: masked_weights(x, 0.5, floor=0.5), "floor is 0.5 and cap 0.5.*expected"),
    (lambda x: masked_weights(x, 1.0, floor=-0.1), "floor is -0.1"),
    (lambda x: effective_sample_size(x - 1), "negative"),
    (lambda x: effective_sample_size(x * NAN), "not finite"),
    (lambda x: effective_sample_size(x + INF), "not finite"),
])
def test_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 2))


# ---- IcePop, prefixes, masks of completions

def test_icepop_is_masked_weights_with_its_bounds():
    """0.5 and 5 by default, both inside; the weight is the ratio, not 1."""
    ratio = torch.tensor([[0.49, 0.5, 1.3], [5.0, 5.1, 0.0]])
    expected = torch.tensor([[0.0, 0.5, 1.3], [5.0, 0.0, 0.0]])
    torch.testing.assert_close(icepop_weights(ratio), expected)
    torch.testing.assert_close(icepop_weights(ratio, low=0.1, high=1.3),
                               masked_weights(ratio, 1.3, floor=0.1))
    assert not icepop_weights(ratio.requires_grad_()).requires_grad


def of_prefixes(function, rows, mask=None):
    """Weights of rows of ratios, whose sampler has log-probs of -1."""
    log_ratio = torch.tensor(rows).log()
    logp = (log_ratio - 1).requires_grad_()
    weights = function(logp, torch.full_like(log_ratio, -1.0).requires_grad_(),
                       torch.ones_like(log_ratio) if mask is None else torch.tensor(mask))
    assert not weights.requires_grad
    return weights


def test_prefix_weights():
    """Products up to each token; a gap counts for nothing, and rows do not meet."""
    rows = [[2.0, 3.0, 0.5], [1.0, 4.0, 0.25]]
    torch.testing.assert_close(of_prefixes(prefix_weights, rows),
                               torch.tensor([[2.0, 6.0, 3.0], [1.0, 4.0, 1.0]]))
    gap = of_prefixes(prefix_weights, rows, [[1, 0, 1], [0, 1, 0]])
    torch.testing.assert_close(gap, torch.tensor([[2.0, 0.0, 1.0], [0.0, 4.0, 0.0]]))


def test_prefix_weights_end_in_the_weight_of_the_sequence():
    logp, behavior_logp = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    last = prefix_weights(logp, behavior_logp, torch.ones(5, 4))[:, 3]
    torch.testing.assert_close(last, sequence_weights(logp, behavior_logp, torch.ones(5, 4)))


def test_minimum_prefix_weights():
    """Ratios 2 3 1/2 4 3: before them nothing, 2, 2, 1/2, 1/2."""
    rows = [[2.0, 3.0, 0.5, 4.0, 3.0], [0.5, 4.0, 1.0, 1.0, 1.0]]
    torch.testing.assert_close(of_prefixes(minimum_prefix_weights, rows), torch.tensor(
        [[2.0, 6.0, 1.0, 2.0, 1.5], [0.5, 2.0, 0.5, 0.5, 0.5]]))
    # the gap's 3 and 0.5 are nobody's; the first token behind a gap has nothing before it
    gap = of_prefixes(minimum_prefix_weights, rows, [[1, 0, 0, 1, 1], [0, 1, 1, 0, 0]])
    torch.testing.assert_close(gap, torch.tensor(
        [[2.0, 0.0, 0.0, 8.0, 6.0], [0.0, 4.0, 4.0, 0.0, 0.0]]))


def test_minimum_prefix_weights_do_not_grow_with_the_length():
    """1.1 a token: the product of 200 is 1.9e8, the surrogate 1.21."""
    rows = [[1.1] * 200]
    assert of_prefixes(prefix_weights, rows)[0, -1].item() == pytest.approx(1.1 ** 200, rel=1e-3)
    assert of_prefixes(minimum_prefix_weights, rows)[0, -1].item() == pytest.approx(1.21)


@pytest.mark.parametrize("function", [prefix_weights, minimum_prefix_weights])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_prefixes_are_capped(function, dtype):
    logp, zero = torch.full((2, 3), 100.0, dtype=dtype), torch.zeros(2, 3, dtype=dtype)
    weights = function(logp, zero, torch.ones(2, 3))
    assert weights.isfinite().all() and weights.dtype == dtype
    assert function(-logp, zero, torch.ones(2, 3)).double().max() < 1e-30


@pytest.mark.parametrize("ratios, adv, delta, kept", [
    ([0.5, 0.5], -1.0, 0.7, True),  # the mean of ln 2 is 0.693
    ([0.5, 0.5], -1.0, 0.69, False),
    ([0.5, 0.5], 1.0, 0.69, True),
    ([0.5, 0.5], 0.0, 0.69, True),
    ([0.25, 1.0], -1.0, 0.69, False),  # (ln 4 + 0) / 2
    ([0.25, 4.0], -1.0, 0.01, True),
    ([9.0, 9.0], -1.0, 0.01, True),  # the other way: the policy likes it more
])
def test_off_policy_mask(ratios, adv, delta, kept):
    logp = (torch.tensor([ratios]).log() - 1).requires_grad_()
    mask = off_policy_mask(logp, torch.full((1, 2), -1.0), torch.tensor([adv]), torch.ones(1, 2),
                           delta=delta)
    assert mask.tolist() == [kept] and mask.dtype == torch.bool


def test_masks_of_completions_do_not_see_padding():
    """A row of which one token is sampled, ratio 1/4, beside padding of NaN; an empty row is
    kept."""
    logp, behavior = torch.tensor([[0.25, NAN], [NAN, NAN]]).log(), torch.zeros(2, 2)
    mask, adv = torch.tensor([[1, 0], [0, 0]]), torch.tensor([-1.0, -1.0])
    assert off_policy_mask(logp, behavior, adv, mask, delta=1.0).tolist() == [False, True]
    assert geometric_mask(logp, behavior, mask, low=0.5, high=2.0).tolist() == [False, True]
    assert geometric_mask(logp, behavior, mask, low=0.2, high=2.0).tolist() == [True, True]


@pytest.mark.parametrize("ratios, kept", [
    ([2.0, 0.5], True), ([2.0, 2.0], False), ([0.5, 0.5], False), ([1.25] * 2, True),
    ([1.2] * 2, True), ([0.9] * 2, True), ([1.6, 1.0], False), ([1.5, 1.0], True),
])
def test_geometric_mask(ratios, kept):
    """Between 0.8 and 1.25, the roots of the products: 1, 2, 1/2, 1.25, 1.2, 0.9, 1.265, 1.225."""
    log_ratio = torch.tensor([ratios]).double().log()
    mask = geometric_mask(log_ratio, torch.zeros(1, 2).double(), torch.ones(1, 2), low=0.8,
                          high=1.25 + 1e-12)
    assert mask.tolist() == [kept] and mask.dtype == torch.bool


@pytest.mark.parametrize("call, message", [
    (lambda x: icepop_weights(x, low=5.0), "floor is 5.0 and cap 5.0"),
    (lambda x: prefix_weights(x, x, x[0]), r"mask \(2,\): expected three times \(B, T\)"),
    (lambda x: prefix_weights(x[0], x[0], x[0]), r"\(B, T\)"),
    (lambda x: minimum_prefix_weights(x, x[0], x), r"behavior_logp \(2,\)"),
    (lambda x: off_policy_mask(x, x, x, x, delta=0.1), r"adv is \(2, 2\)"),
    (lambda x: off_policy_mask(x, x, x[0], x[0], delta=0.1), r"mask \(2,\)"),
    (lambda x: off_policy_mask(x, x, x[0], x, delta=0.0), "delta is 0.0"),
    (lambda x: geometric_mask(x, x, x, low=1.0, high=1.0), "low is 1.0 and high 1.0"),
    (lambda x: geometric_mask(x, x, x, low=-1.0, high=1.0), "low is -1.0"),
    (lambda x: geometric_mask(x, x, x[0], low=0.5, high=2.0), r"mask \(2,\)"),
])
def test_bad_arguments_of_the_newer_ones_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 2))


def test_a_floor_of_zero_is_allowed():
    one = torch.ones(1, 1)
    assert geometric_mask(-100 * one, 0 * one, one, low=0.0, high=1.0).all()
