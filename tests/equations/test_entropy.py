"""Tests of minirl.equations.entropy.

tests/test_ground_truth_further.py has the slope of the entropy.
"""

import pytest
import torch

from minirl.equations import objectives
from minirl.equations.entropy import (
    adaptive_entropy_coef,
    clip_cov_mask,
    entropy_mask,
    kl_cov_mask,
    token_covariance,
)

NAN = float("nan")
TEN = torch.arange(10.0)[torch.randperm(10, generator=torch.Generator().manual_seed(0))].view(2, 5)
ALL = torch.ones(2, 5)


# ---- entropy_mask

@pytest.mark.parametrize("quantile, kept", [
    (1.0, range(10)), (0.5, range(5, 10)), (0.2, (8, 9)), (0.19, (8, 9)), (0.0, (9,)),
])
def test_entropy_mask_keeps_a_share(quantile, kept):
    """Of 0 ... 9 the (1 - ρ)-quantile is 9 (1 - ρ), interpolated: 4.5, 7.2, 7.29, 9."""
    mask = entropy_mask(TEN, ALL, quantile=quantile)
    assert mask.dtype == torch.bool and mask.shape == TEN.shape
    assert sorted(TEN[mask].tolist()) == list(kept)


def test_entropy_mask_does_not_see_padding():
    """Zeros on padding would lower the quantile, and NaN would leave none."""
    entropies = torch.tensor([[4.0, 3.0, 0.0, NAN], [2.0, 1.0, 0.0, NAN]])
    mask = torch.tensor([[1, 1, 0, 0]] * 2)
    assert entropy_mask(entropies, mask, quantile=0.5).tolist() == [[True, True, False, False],
                                                                    [False] * 4]
    assert not entropy_mask(entropies, mask * 0, quantile=0.5).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_entropy_mask_of_any_type_has_no_gradient(dtype):
    entropies = TEN.to(dtype).requires_grad_()
    mask = entropy_mask(entropies, ALL, quantile=0.3)
    assert sorted(TEN[mask].tolist()) == [7, 8, 9] and not mask.requires_grad


def test_a_split_batch_has_other_thresholds():
    """Each half keeps its own upper half. So a page computes the mask for the whole batch."""
    entropies, ones = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2)
    whole = entropy_mask(entropies, ones, quantile=0.5)
    parts = [entropy_mask(entropies[i:i + 1], ones[:1], quantile=0.5) for i in range(2)]
    assert whole.tolist() == [[False, False], [True, True]]
    assert torch.cat(parts).tolist() == [[False, True], [False, True]]


def test_the_module_that_a_reader_looks_in_first_has_it():
    assert objectives.entropy_mask is entropy_mask


# ---- adaptive_entropy_coef

def test_adaptive_entropy_coef_follows_the_entropy():
    """Up by 0.1 while the entropy is 0.2 or less, down above it, between 0.05 and 0.25."""
    coef, path = 0.05, []
    for entropy in (0.3, 0.2, 0.1, 0.1, 0.4, 0.4, 0.4):
        coef = adaptive_entropy_coef(coef, entropy, 0.2, delta=0.1, low=0.05, high=0.25)
        path.append(round(coef, 6))
    assert path == [0.05, 0.15, 0.25, 0.25, 0.15, 0.05, 0.05]


def test_adaptive_entropy_coef_defaults():
    assert adaptive_entropy_coef(0.0, 1.0, 0.2) == 0.0
    assert adaptive_entropy_coef(0.0, 0.1, 0.2) == 0.005
    assert adaptive_entropy_coef(1.0, 0.1, 0.2) == 1.0


# ---- covariance

def test_token_covariance_hand_numbers():
    """log π -1 -2 -6, mean -3; A 2 0 1, mean 1. Deviations 2 1 -3 and 1 -1 0: 2, -1, 0. The mean of
    the three, 1/3, is the covariance."""
    logp = torch.tensor([[-1.0, NAN], [-2.0, -6.0]], requires_grad=True)
    adv = torch.tensor([[2.0, 9.0], [0.0, 1.0]])
    covariance = token_covariance(logp, adv, torch.tensor([[1, 0], [1, 1]]))
    assert covariance.tolist() == [[2.0, 0.0], [-1.0, 0.0]] and not covariance.requires_grad
    shifted = token_covariance(logp - 5, adv + 7, torch.tensor([[1, 0], [1, 1]]))
    torch.testing.assert_close(shifted, covariance)


def test_token_covariance_of_a_learnt_advantage_has_no_gradient():
    leaf = torch.ones(1, 2, requires_grad=True)
    assert not token_covariance(torch.zeros(1, 2), leaf, torch.ones(1, 2)).requires_grad


def test_clip_cov_mask_draws_its_share():
    """400 of 1000 tokens are candidates. 0.05 of 1000 tokens are 50, each candidate as likely as
    another: over 200 draws the least and the most drawn are within 5 sigma of 25 ± 4.7."""
    covariance = torch.zeros(10, 100)
    covariance[:, :40] = 2.0
    generator, times = torch.Generator().manual_seed(0), torch.zeros(10, 100)
    for _ in range(200):
        kept = clip_cov_mask(covariance, torch.ones(10, 100), share=0.05, generator=generator)
        assert (~kept).sum() == 50 and kept[:, 40:].all()
        times += ~kept
    assert 3 < times[:, :40].min() and times.max() < 48


def test_clip_cov_mask_repeats_with_its_generator():
    """... and leaves torch's own alone."""
    covariance, ones = 2 + torch.zeros(4, 25), torch.ones(4, 25)
    state = torch.get_rng_state()
    a, b, c = (clip_cov_mask(covariance, ones, share=0.1,
                             generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_clip_cov_mask_defaults_are_two_in_ten_thousand():
    """Between 1 and 5, neither included: 2e-4 of 20,000 tokens are 4, of 100 still 1."""
    covariance = torch.tensor([1.0, 5.0, 3.0, 0.0]).repeat(5000)[None]
    lost = ~clip_cov_mask(covariance, torch.ones_like(covariance))
    assert lost.sum() == 4 and (covariance[lost] == 3).all()
    assert (~clip_cov_mask(covariance[:, :100], torch.ones(1, 100))).sum() == 1


def test_clip_cov_mask_leaves_padding_out():
    """The share is of the tokens under the mask: 0.5 of 4, though 8 slots are candidates."""
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])
    kept = clip_cov_mask(2 + torch.zeros(1, 8), mask, share=0.5)
    assert kept.sum() == 2 and not kept[0, 4:].any()


@pytest.mark.parametrize("share, chosen", [(1.0, 10), (0.5, 5), (0.29, 2), (0.01, 1)])
def test_kl_cov_mask_takes_the_largest(share, chosen):
    mask = kl_cov_mask(TEN - 20, ALL, share=share)  # all negative: padding of 0 would be larger
    assert sorted(TEN[mask].tolist()) == list(range(10 - chosen, 10))


def test_kl_cov_mask_default_and_padding():
    covariance, mask = torch.arange(20_000.0)[None], torch.ones(1, 20_000)
    chosen = kl_cov_mask(covariance, mask).nonzero()[:, 1].tolist()
    assert chosen == [19_996, 19_997, 19_998, 19_999]
    mask[0, 19_000:] = 0
    chosen = kl_cov_mask(covariance, mask).nonzero()[:, 1].tolist()
    assert chosen == [18_997, 18_998, 18_999]  # 2e-4 of 19,000 are 3.8
    assert not kl_cov_mask(covariance, mask * 0).any()


ZERO = torch.zeros(2, 2)


@pytest.mark.parametrize("call, message", [
    (lambda: entropy_mask(ZERO, ZERO[0], quantile=0.2), "same shape"),
    (lambda: entropy_mask(ZERO, ZERO, quantile=1.1), "quantile is 1.1.*share"),
    (lambda: entropy_mask(ZERO, ZERO, quantile=-0.1), "quantile is -0.1"),
    (lambda: entropy_mask(ZERO, ZERO, quantile=NAN), "quantile is nan"),
    (lambda: adaptive_entropy_coef(0.1, NAN, 0.2), "entropy is nan"),
    (lambda: adaptive_entropy_coef(0.1, 0.1, 0.2, delta=0.0), "delta is 0.0"),
    (lambda: adaptive_entropy_coef(1.1, 0.1, 0.2), "entropy_coef is 1.1.*high 1.0"),
    (lambda: adaptive_entropy_coef(0.1, 0.1, 0.2, low=0.2), "low 0.2"),
    (lambda: token_covariance(ZERO, ZERO[0], ZERO), "same shape"),
    (lambda: clip_cov_mask(ZERO, ZERO[0]), "same shape"),
    (lambda: clip_cov_mask(ZERO, ZERO, share=0.0), r"share is 0.0.*\(0, 1\]"),
    (lambda: clip_cov_mask(ZERO, ZERO, low=5.0), "low is 5.0, high 5.0"),
    (lambda: clip_cov_mask(ZERO.clone().requires_grad_(), ZERO), "covariance requires grad"),
    (lambda: kl_cov_mask(ZERO, ZERO[0]), "same shape"),
    (lambda: kl_cov_mask(ZERO, ZERO, share=1.5), "share is 1.5"),
])
def test_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_bounds_of_arguments_are_allowed():
    assert entropy_mask(ZERO, ZERO + 1, quantile=1.0).all()
    assert adaptive_entropy_coef(0.0, 0.1, 0.2, low=0.0) > 0
    assert kl_cov_mask(ZERO, ZERO + 1, share=1.0).all()
