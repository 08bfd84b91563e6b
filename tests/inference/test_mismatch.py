"""minirl/inference/mismatch.py"""

import math
import random

import pytest
import torch

from minirl.inference.collect import collect
from minirl.inference.mismatch import (
    Mismatch,
    joined,
    measure_mismatch,
    mismatch_of_logits,
    mismatch_table,
)
from minirl.lm.precision import compute_in, sampling_in
from minirl.lm.text import WIDTH
from minirl.tasks.arithmetic import Arithmetic

TASK = Arithmetic("addition", 2)
PROBLEMS = TASK.sample(8, random.Random(0))
LOG2 = math.log(2)


def by_hand(dtype=torch.float32):
    """Two completions, of 2 tokens and of 1. Ratios π/μ: 2, 1/2 and 1.05; slots off the mask hold
    what must not matter."""
    behavior = torch.tensor([[9.0, 0.25, 0.5], [9.0, 0.4, math.nan]], dtype=dtype).log()
    logp = torch.tensor([[1.0, 0.5, 0.25], [math.inf, 0.42, 1.0]], dtype=dtype).log()
    mask = torch.tensor([[False, True, True], [False, True, False]])
    return Mismatch("bfloat16", "float32", logp, behavior, mask)


def test_numbers_by_hand():
    x = by_hand(torch.float64)
    assert x.differences.tolist() == pytest.approx([LOG2, LOG2, math.log(1.05)])
    assert x.probability_difference == pytest.approx((0.25 + 0.25 + 0.02) / 3)
    assert x.share_far == pytest.approx(2 / 3)
    assert x.sequence_log_ratios.tolist() == pytest.approx([0.0, math.log(1.05)])
    # weights 1 and 1.05: (2.05)² / (1 + 1.1025) of 2
    assert x.sample_share == pytest.approx(2.05 ** 2 / 2.1025 / 2)
    # log(μ/π): -log 2, log 2, -log 1.05
    assert x.k1 == pytest.approx(-math.log(1.05) / 3)
    # ρ - 1 - log ρ: 1 - log 2, -1/2 + log 2, 0.05 - log 1.05
    assert x.k3 == pytest.approx((0.55 - math.log(1.05)) / 3)
    # after one token: log 2 and log 1.05; only one completion has two
    middle = (LOG2 - math.log(1.05)) / 2
    assert x.spreads(least=2) == pytest.approx([math.sqrt(2) * middle])


def test_k1_and_k3_estimate_the_kl_of_the_sampler():
    """Tokens in the shares that μ = (1/2, 1/4, 1/4) draws them, against π = (1/4, 1/4, 1/2):
    KL(μ || π) = 1/2 log 2 + 0 - 1/4 log 2, and both estimates have it as their mean."""
    behavior = torch.tensor([[0.5, 0.5, 0.25, 0.25]], dtype=torch.float64).log()
    logp = torch.tensor([[0.25, 0.25, 0.25, 0.5]], dtype=torch.float64).log()
    x = Mismatch("a", "b", logp, behavior, torch.ones(1, 4, dtype=torch.bool))
    assert x.k1 == pytest.approx(LOG2 / 4) and x.k3 == pytest.approx(LOG2 / 4)


def test_padding_changes_nothing():
    x = by_hand(torch.float64)
    wide = Mismatch("a", "b", *joined([(x.logp[:1], x.behavior_logp[:1], x.mask[:1]),
                                       (x.logp[1:, :2], x.behavior_logp[1:, :2], x.mask[1:, :2])]))
    for name in ("share_far", "sample_share", "k1", "k3", "probability_difference"):
        assert getattr(wide, name) == getattr(x, name)
    assert wide.spreads(2) == x.spreads(2)


def measure(base, sampler, learners, **options):
    return measure_mismatch(*base, TASK, PROBLEMS, sampler=sampler, learners=learners, group=16,
                            max_new_tokens=24, **options)


def test_a_pair_is_what_sampling_and_scoring_give(base):
    """The sampler's log-probs are those of collect in its dtype, and in float32 both agree."""
    exact, halves = measure(base, "float32", ["float32", "bfloat16"])
    with compute_in("float32", torch.device("cpu")):
        answers = collect(*base, TASK, PROBLEMS, group=16, max_new_tokens=24,
                          generator=torch.Generator().manual_seed(0))
    assert torch.equal(exact.behavior_logp, answers.rollouts.behavior_logp)
    assert torch.equal(exact.behavior_logp, halves.behavior_logp)
    assert torch.equal(exact.mask, halves.mask) and not torch.equal(exact.logp, halves.logp)
    assert exact.differences.max() < 1e-5 < 1e-3 < halves.differences.max()
    assert (exact.sampler, halves.learner) == ("float32", "bfloat16")


def test_a_sampler_set_around_it_does_not_matter(base):
    plain = measure(base, "float32", ["float32"])[0]
    with compute_in("bfloat16", torch.device("cpu"), sampler="float16"):
        assert torch.equal(measure(base, "float32", ["float32"])[0].logp, plain.logp)
        with sampling_in(torch.device("cpu")):
            assert torch.get_autocast_dtype("cpu") is torch.float16


def test_bfloat16_is_eight_times_as_far_as_float16(base):
    """Three bits of mantissa are a factor of 2^3, on a model of this library as well."""
    coarse = measure(base, "bfloat16", ["float32"])[0].differences.mean()
    fine = measure(base, "float16", ["float32"])[0].differences.mean()
    assert 6 < coarse / fine < 10


def test_the_papers_miniature():
    """One product of width 64 with 512 outputs, logits of standard deviation 2: against float32,
    |Δ log p| is 8.3e-4 in float16 and 6.5e-3 in bfloat16, 7.9 times as much. The errors of tokens
    are independent, so over 256 of them the standard deviation is 16 times a token's. (One sample
    gave 0.020 and 0.146 for it; here it is 0.016 and 0.13.)"""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(128 * 256, 64, generator=g)
    weight = torch.randn(512, 64, generator=g) / 4
    ids = torch.multinomial((hidden @ weight.T).softmax(-1), 1, generator=g).squeeze(1)

    def pair(sampler):
        return mismatch_of_logits(hidden, weight, ids, 256, sampler=sampler, learner="float32")

    fine, coarse = pair("float16"), pair("bfloat16")
    means = [float(x.differences.mean()) for x in (fine, coarse)]
    assert means == pytest.approx([8.3e-4, 6.5e-3], rel=0.2)
    assert means[1] / means[0] == pytest.approx(7.9, rel=0.1)
    sums = [float(x.sequence_log_ratios.std()) for x in (fine, coarse)]
    assert sums == pytest.approx([0.020, 0.146], rel=0.3)
    tokens = [float(x.differences.square().mean().sqrt()) for x in (fine, coarse)]
    assert sums == pytest.approx([16 * token for token in tokens], rel=0.15)
    for x, at_the_end in zip((fine, coarse), sums, strict=True):    # it grows as the root of n
        spreads = x.spreads()
        assert len(spreads) == 256 and spreads[-1] == pytest.approx(at_the_end)
        assert spreads[255] / spreads[15] == pytest.approx(4.0, rel=0.25)


def test_the_table_has_a_row_for_each_pair():
    lines = mismatch_table([by_hand(), by_hand()]).splitlines()
    assert len(lines) == 3 and "bfloat16" in lines[1]
    assert "4.8e-1" in lines[1] and "66.7%" in lines[1]
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize("sampler, learners", [("half", ["float32"]), ("float32", ["float8"])])
def test_an_unknown_dtype_raises(base, sampler, learners):
    with pytest.raises(ValueError, match="one of float32, bfloat16, float16 is wanted"):
        measure(base, sampler, learners)
