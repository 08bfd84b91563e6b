"""Tests of minirl.equations.mismatch."""

import itertools
from math import comb

import pytest
import torch

from minirl.equations.mismatch import effective_sample_size, importance_ratio, masked_weights, sequence_weights, truncated_weights

NAN, INF = float("nan"), float("inf")
RATIO = torch.tensor([[0.1, 0.5, 1.0], [2.9, 3.0, 5.0]])


def test_importance_ratio():
    """1/2 over 1/4, 1/4 over 1/2, equal; the derivative in logp is the ratio itself."""
    logp = torch.tensor([[0.5, 0.25, 0.3]]).log().requires_grad_()
    ratio = importance_ratio(logp, torch.tensor([[0.25, 0.5, 0.3]]).log())
    ratio.sum().backward()
    torch.testing.assert_close(ratio, torch.tensor([[2.0, 0.5, 1.0]]))
    torch.testing.assert_close(logp.grad, torch.tensor([[2.0, 0.5, 1.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("log_ratio, value, slope", [(100.0, 485165195.4, 0.0), (-100.0, 0.0, 0.0), (0.0, 1.0, 1.0)])
def test_importance_ratio_far_away(dtype, log_ratio, value, slope):
    """e^100 overflows; e^20 = 485,165,195 is held."""
    logp = torch.full((2,), log_ratio, dtype=dtype, requires_grad=True)
    ratio = importance_ratio(logp, torch.zeros(2, dtype=dtype))
    ratio.sum().backward()
    assert ratio.dtype == dtype and ratio.tolist() == pytest.approx([value] * 2, rel=4e-3, abs=1e-30)
    assert logp.grad.tolist() == pytest.approx([slope] * 2, abs=1e-30)


@pytest.mark.parametrize("weights, expected", [
    (lambda r: truncated_weights(r, 3.0), [[0.1, 0.5, 1.0], [2.9, 3.0, 3.0]]),
    (lambda r: truncated_weights(r, 0.5), [[0.1, 0.5, 0.5], [0.5, 0.5, 0.5]]),
    (lambda r: masked_weights(r, 3.0), [[0.1, 0.5, 1.0], [2.9, 3.0, 0.0]]),                  # the cap itself is kept
    (lambda r: masked_weights(r, 3.0, floor=0.5), [[0.0, 0.5, 1.0], [2.9, 3.0, 0.0]]),       # and the floor
    (lambda r: masked_weights(r, 0.05), [[0.0] * 3] * 2),
])
def test_bounded_weights(weights, expected):
    """Truncated: counts less. Masked: teaches nothing. Neither has a gradient, or the objective would learn to agree with the sampler."""
    for ratio in (RATIO, RATIO.clone().requires_grad_()):
        assert not weights(ratio).requires_grad
        torch.testing.assert_close(weights(ratio), torch.tensor(expected))
        torch.testing.assert_close(weights(ratio[:, 0]), torch.tensor(expected)[:, 0])       # per sequence, (B,), as well


def test_sequence_weights():
    """(.1, -.2, .3, 0): e^.2 = 1.221403; without the third e^-.1 = .904837; no tokens, no news. Twice the tokens, the square: not a mean."""
    logp = torch.tensor([[0.1, -0.2, 0.3, 0.0]] * 3, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]])
    weights = sequence_weights(logp, torch.zeros(3, 4), mask)
    torch.testing.assert_close(weights, torch.tensor([1.221403, 0.904837, 1.0]))
    assert not weights.requires_grad and not sequence_weights(torch.zeros(3, 4), logp, mask).requires_grad
    assert sequence_weights(logp.repeat(1, 2), torch.zeros(3, 8), mask.repeat(1, 2))[0].item() == pytest.approx(1.491825, abs=1e-6)      # e^.4
    assert sequence_weights(torch.full((2, 3), 100.0), torch.zeros(2, 3), torch.ones(2, 3)).isfinite().all()


@pytest.mark.parametrize("weights, expected", [
    ([1.0, 1.0, 2.0], 2.666667), ([0.3] * 7, 7.0), ([0.0, 5.0, 0.0], 1.0), ([2.0], 1.0),     # 16 / 6
    ([3.0, 4.0], 1.96), ([0.0, 0.0], 0.0), ([], 0.0),                                        # 49 / 25
    ([1e30, 1e30, 2e30], 2.666667), ([1e-30, 1e-30, 2e-30], 2.666667),                       # squares would overflow, and vanish
])
def test_effective_sample_size(weights, expected):
    assert effective_sample_size(torch.tensor(weights)).item() == pytest.approx(expected, abs=1e-5)
    assert effective_sample_size(torch.tensor(weights).double()).item() == pytest.approx(expected, abs=1e-6)


def test_effective_sample_size_of_counts():
    assert effective_sample_size(torch.tensor([1, 1, 2])).item() == pytest.approx(2.666667, abs=1e-5)


@pytest.mark.parametrize("length, variance", [(10, 0.105716), (100, 1.731726)])
def test_variance_grows_exponentially_with_the_length(length, variance):
    """Fair coins drawn, coins of 1/2 +- .0502494 meant: chi^2 = .0101 per token; over all 2^T sequences the weight has mean 1 and variance
    1.0101^T - 1. Sequences with the same number of heads have the same weight, so that T + 1 rows and their counts are all of them."""
    heads = torch.arange(length).expand(length + 1, length) < torch.arange(length + 1)[:, None]                 # (T + 1, T)
    logp = (0.5 + 0.0502494 * torch.where(heads, 1, -1).double()).log()
    chance = torch.tensor([comb(length, k) / 2 ** length for k in range(length + 1)], dtype=torch.float64)
    weights = sequence_weights(logp, torch.full_like(logp, 0.5).log(), torch.ones_like(logp))
    assert (chance * weights).sum().item() == pytest.approx(1.0, abs=1e-9)
    assert (chance * (weights - 1).square()).sum().item() == pytest.approx(variance, rel=1e-5)


def test_bias_of_the_gradient_by_enumeration():
    """Two tokens of three ids, drawn from another policy, all 9 sequences with their chances: weights of whole sequences give the exact gradient of
    E[R], truncated or masked too while the cap does not bite; token weights leave out what the other token's change did, and are here better than
    none; masked where the cap bites is worse than none (papers.md 2.15, another example: .042, .175, .398, 1.10)."""
    generator = torch.Generator().manual_seed(0)
    logits, drift, rewards = (torch.randn(*shape, generator=generator).double() for shape in ((4, 3), (4, 3), (9,)))
    pairs = list(itertools.product(range(3), repeat=2))                                      # a row of the table per first token

    def table(logits):                                                                       # (4, 3) -> (9, 2)
        logp = logits.log_softmax(-1)
        return torch.stack([torch.stack([logp[0, a], logp[1 + a, b]]) for a, b in pairs])

    def gradient(objective):
        leaf = logits.clone().requires_grad_()
        objective(table(leaf)).backward()
        return leaf.grad

    behavior, now, ones = table(logits + 0.5 * drift), table(logits), torch.ones(9, 2)
    chance = behavior.sum(1).exp()
    exact = gradient(lambda logp: (logp.sum(1).exp() * rewards).sum())
    sequence, token = sequence_weights(now, behavior, ones)[:, None], importance_ratio(now, behavior)

    def bias(weights):
        found = gradient(lambda logp: (chance[:, None] * weights * rewards[:, None] * logp).sum())
        return ((found - exact).norm() / exact.norm()).item()

    exactly = [bias(w) for w in (sequence, truncated_weights(sequence, 3.0), masked_weights(sequence, 3.0))]
    assert max(exactly) < 1e-12 and 1.5 < sequence.max() < 3
    found = [bias(w) for w in (truncated_weights(sequence, 1.5), token, torch.ones(9, 1), masked_weights(sequence, 1.5))]
    assert found == pytest.approx([0.089, 0.243, 0.576, 0.848], abs=1e-3)                    # measured; what is stated is their order
    # and the ratio of the sequence is an objective of its own: E_mu[rho R] has the exact gradient without any log-prob
    torch.testing.assert_close(gradient(lambda logp: (chance * importance_ratio(logp.sum(1), behavior.sum(1)) * rewards).sum()), exact)


@pytest.mark.parametrize("call, message", [
    (lambda x: importance_ratio(x, x[0]), r"behavior_logp is \(2,\) beside \(2, 2\): expected the same shape"),
    (lambda x: importance_ratio(x, x.clone().requires_grad_()), "behavior_logp requires grad"),
    (lambda x: sequence_weights(x, x, x[0]), r"mask \(2,\).*expected"), (lambda x: sequence_weights(x[0], x[0], x[0]), r"\(B, T\)"),
    (lambda x: truncated_weights(x, 0.0), "cap is 0.0.*positive"), (lambda x: truncated_weights(x, NAN), "cap is nan"),
    (lambda x: masked_weights(x, 0.5, floor=0.5), "floor is 0.5 and cap 0.5.*expected"),
    (lambda x: masked_weights(x, 1.0, floor=-0.1), "floor is -0.1"),
    (lambda x: effective_sample_size(x - 1), "negative"), (lambda x: effective_sample_size(x * NAN), "not finite"),
    (lambda x: effective_sample_size(x + INF), "not finite"),
])
def test_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 2))


def test_effective_sample_size_in_float16():
    """Of a thousand equal weights: 1000 squared is more than float16 holds, and it was infinite."""
    size = effective_sample_size(torch.ones(1000).half())
    assert size.dtype == torch.float16 and size.item() == 1000
    assert effective_sample_size(torch.ones(0)).item() == 0


def test_importance_ratio_in_float16_is_held():
    ratio = importance_ratio(torch.tensor([0.0, -100.0]).half(), torch.tensor([-100.0, 0.0]).half())
    assert ratio.tolist() == [pytest.approx(256, rel=0.01), 0.0]
