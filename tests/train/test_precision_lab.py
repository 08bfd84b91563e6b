"""minirl/train/precision_lab.py"""

import math
import random

import pytest
import torch

from minirl.inference.mismatch import Mismatch
from minirl.lm.precision import DTYPES
from minirl.lm.sampling import sample
from minirl.tasks.arithmetic import Arithmetic
from minirl.train import precision_lab as module
from minirl.train.precision_lab import (
    PrecisionLab,
    ScaledStep,
    gradient_sizes,
    lab_report,
    loss_on,
    lost_updates,
    product_mismatches,
    run_precision_lab,
    scaled_steps,
)
from tests.train.small import TOKENIZER, flat, tiny, weights

TASK = Arithmetic("addition", 2)


def rollouts_of(model):
    prompts = [TOKENIZER.encode_prompt(text) for text in ("7=", "12+3=")]
    return sample(model, prompts, group=4, max_new_tokens=6, eos_id=TOKENIZER.eos_id,
                  pad_id=TOKENIZER.pad_id, generator=torch.Generator().manual_seed(0))


def test_bfloat16_loses_every_update():
    """1 - 0.001 lies between 1 - 2^-8 = 0.9961 and 1, and nearer to 1. float16's neighbours below 1
    are 2^-11 apart, and 0.001 is 2.05 of these: two."""
    lost = lost_updates()
    assert set(lost["bfloat16"]) == {1.0}
    assert lost["float16"][1] == 1 - 2 ** -10 and lost["float16"][-1] == 1 - 100 * 2 ** -10
    assert lost["float32"][-1] == pytest.approx(0.9, abs=1e-5)
    assert {len(weights) for weights in lost.values()} == {101}


def test_the_share_of_gradients_that_float16_loses():
    """2^-25 is a tie between 0 and 2^-24, and goes to 0; the next number above it does not."""
    sizes = torch.tensor([2 ** -25, 1.001 * 2 ** -25, 2 ** -30, 1.0])
    lab = PrecisionLab([], [], {}, sizes, [])
    assert lab.lost() == 0.5
    assert lab.lost(2.0 ** 4) == 0.25 and lab.lost(2.0 ** 16) == 0.0


def test_gradient_sizes_are_those_of_the_loss():
    model = tiny()
    rollouts = rollouts_of(model)
    loss_on(model, rollouts).backward()
    expected = flat(p.grad.abs() for p in model.parameters() if p.grad is not None)
    assert torch.equal(gradient_sizes(model, rollouts), expected[expected > 0])
    assert all(p.grad is None for p in model.parameters())


def test_of_many_gradients_some_are_kept(monkeypatch):
    """A figure of the gradients of 135M weights took more memory than the model."""
    model = tiny()
    rollouts = rollouts_of(model)
    every = gradient_sizes(model, rollouts)
    monkeypatch.setattr(module, "MOST", 100)
    few = gradient_sizes(model, rollouts)
    k = -(-len(every) // 100)
    assert len(few) <= 100 and torch.equal(few, every[::k])


def test_the_scale_climbs_until_a_gradient_overflows():
    """From 2^16 it doubles every 10 steps. Near 2^40 every gradient overflows, and the scale falls
    step by step."""
    model = tiny()
    rollouts = rollouts_of(model)
    climbing = scaled_steps(model, rollouts, 21)
    assert [step.scale for step in climbing] == [2.0 ** 16] * 10 + [2.0 ** 17] * 10 + [2.0 ** 18]
    assert not any(step.skipped for step in climbing)
    before = weights(model)
    falling = scaled_steps(model, rollouts, 4, init_scale=2.0 ** 40)
    assert falling == [ScaledStep(2.0 ** k, True) for k in (40, 39, 38, 37)]
    assert torch.equal(weights(model), before), "a skipped step moves no weight"


def test_rounding_of_one_product_is_eight_times_as_coarse_in_bfloat16():
    coarse, fine = (product_mismatches(0, 16, 64)[i] for i in (0, 1))
    if coarse.sampler != "bfloat16":
        coarse, fine = fine, coarse
    assert (coarse.sampler, fine.sampler, fine.learner) == ("bfloat16", "float16", "float32")
    assert float(coarse.differences.mean() / fine.differences.mean()) == pytest.approx(8, rel=0.15)


def test_a_lab_leaves_the_policy_as_it_was_and_is_the_same_again(monkeypatch):
    monkeypatch.setattr(module, "product_mismatches", lambda seed: product_mismatches(seed, 2, 8))
    model = tiny()
    before, counted = weights(model), []

    class Counting:
        def update(self, n=1, note=""):
            counted.append(n)

    def lab(progress=None):
        return run_precision_lab(model, TOKENIZER, TASK, TASK.sample(3, random.Random(0)), group=2,
                                 max_new_tokens=6, steps=3, progress=progress)

    one, other = lab(Counting()), lab()
    assert torch.equal(weights(model), before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    pairs = [(pair.sampler, pair.learner) for pair in one.mismatches]
    assert pairs == [(sampler, learner) for sampler in DTYPES for learner in DTYPES]
    assert sum(counted) == 3 * 3 * 2 + 3
    for a, b in zip(one.mismatches, other.mismatches, strict=True):
        assert torch.equal(a.logp, b.logp) and torch.equal(a.behavior_logp, b.behavior_logp)
    assert one.steps == other.steps and torch.equal(one.gradients, other.gradients)


def test_the_report_by_hand():
    """|Δ log p| of 0.02 and 0.005: four times as far off."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    pairs = [Mismatch(dtype, dtype, torch.full((1, 2), size), torch.zeros(1, 2), mask)
             for dtype, size in (("float32", 0.0), ("bfloat16", 0.02), ("float16", 0.005))]
    gradients = torch.tensor([1.0, 2 ** -30])
    text = lab_report(PrecisionLab(pairs, [], {"bfloat16": [1.0, 1.0]}, gradients,
                                   [ScaledStep(65536.0, True), ScaledStep(32768.0, False)]))
    for piece in ("4.0 times as far", "1 in bfloat16", "50.00% zero, and 0.00%", "65,536 to 32,768",
                  "1 of them overflowed"):
        assert piece in text
    same = [Mismatch(dtype, dtype, mask * 0.0, mask * 0.0, mask) for dtype in DTYPES]
    assert math.isfinite(same[0].k3) and "agree to the bit" in lab_report(
        PrecisionLab(same, [], {}, gradients, [ScaledStep(1.0, False)]))
