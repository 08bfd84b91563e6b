"""minirl/train/metrics.py"""

import copy
import math

import pytest
import torch

from minirl.inference.collect import Collected
from minirl.lm.logprobs import token_logprobs
from minirl.lm.precision import compute_in
from minirl.lm.rollouts import Rollouts
from minirl.tasks.problem import Problem
from minirl.train import grpo
from minirl.train.grpo import GRPOConfig
from minirl.train.metrics import (
    NonFiniteError,
    Sums,
    check_finite,
    check_judged,
    describe_variety,
    watch,
)
from tests.train.small import TOKENIZER, Digits, Log, length, record_calls, tiny


def test_means_are_those_of_all_values_and_not_of_the_parts():
    """A mean of micro-batch means gives one token the weight of a thousand: 100 tokens of 2.0 and
    900 of 0.5 have the mean 0.65, not 1.25."""
    sums = Sums()
    sums.add("loss", torch.full((10, 10), 2.0))
    sums.add("loss", torch.full((2, 900), 0.5), torch.tensor([[1] * 900, [0] * 900]))
    assert sums.means() == {"loss": pytest.approx(0.65)}


def test_parts_of_a_loss_add_up():
    """Two updates: micro-batches of 1 and 3 rows with losses 1 and 2, and one of 4 rows with 5.
    Their losses are 3 and 5, and the mean is 4."""
    sums = Sums()
    for loss, rows in ((1.0, 1), (2.0, 3), (5.0, 4)):
        sums.add("loss", loss, count=rows / 4)
    assert sums.means() == {"loss": pytest.approx(4.0)}


def test_an_empty_mask_adds_nothing():
    sums = Sums()
    sums.add("kl", torch.tensor([[float("nan")]]), torch.tensor([[0]]))
    assert sums.means() == {"kl": 0.0}


def test_numbers_are_values_of_their_own():
    sums = Sums()
    sums.add("grad_norm", 1.5)
    sums.add("grad_norm", 2.5)
    assert sums.means() == {"grad_norm": 2.0}


def test_a_loss_that_is_not_finite_shows_its_first_row():
    check_finite(torch.tensor(1.0), 1, [0], ["a"])
    says = r"step 7: the loss is nan .*\[2, 1\]; the first is 'c'"
    with pytest.raises(NonFiniteError, match=says):
        check_finite(torch.tensor(float("nan")), 7, torch.tensor([2, 1]), ["a", "b", "c"])


def test_one_verdict_is_enough():
    rewards = torch.tensor([float("nan"), 1.0])
    assert check_judged(rewards) is rewards
    with pytest.raises(ValueError, match="none of the 2 completions got a reward"):
        check_judged(rewards.new_full((2,), float("nan")))


def test_what_is_watched_by_hand():
    """A completion of four tokens and one of two: the quarters of the first are its tokens, those
    of the second the first and the third. Ratios π_old/μ are 1, 2, 1, 1 and 1/2, 1."""
    mask = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
    old = torch.where(mask, -1.0, 99.0)
    behavior = old - torch.tensor([[9.0, 1.0, 2.0, 1.0, 1.0], [9.0, 0.5, 1.0, 9.0, 9.0]]).log()
    batch = Rollouts(torch.zeros(2, 5).long(), mask, torch.ones(2).long(), behavior,
                     torch.zeros(2).bool())
    entropy = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0], [9.0, 5.0, 7.0, 9.0, 9.0]])
    logp = torch.zeros(2, 5, requires_grad=True)
    sums = Sums()
    watch(sums, logp * 2, logp, old, batch, torch.ones(2, 5), entropy)
    means = sums.means()
    assert [means[f"entropy/quarter_{i}"] for i in (1, 2, 3, 4)] == [3.0, 2.0, 5.0, 4.0]
    assert means["entropy"] == pytest.approx(22 / 6)
    assert means["sampling/ratio/min"] == pytest.approx(0.5)
    assert means["sampling/ratio/max"] == pytest.approx(2.0)
    assert means["sampling/ratio/mean"] == pytest.approx(6.5 / 6)
    assert means["sampling/sampling_logp_difference/max"] == pytest.approx(math.log(2))
    assert means["sampling/sampling_logp_difference/mean"] == pytest.approx(2 * math.log(2) / 6)


def test_variety_by_hand():
    """Two problems of one prompt and one of another, two completions each: the same text after
    another prompt is another completion."""
    problems = [Problem("1=", "1"), Problem("1=", "1"), Problem("2=", "2")]
    texts = ["a", "a", "b", "a", "a", "a"]
    answers = Collected(problems, None, texts, {}, torch.zeros(6))
    assert describe_variety(answers) == {"frac_unique_prompts": pytest.approx(2 / 3),
                                         "frac_unique_completions": pytest.approx(3 / 6)}


def test_the_mismatch_that_a_run_reports_is_that_of_its_own_samples(monkeypatch):
    """Sampler in bfloat16, learner in float32: mean and largest |log π - log μ| and the range of
    π/μ over the sampled tokens, computed once more from the rollouts."""
    model, log = tiny(), Log()
    first, collected = copy.deepcopy(model), record_calls(monkeypatch, grpo, "collect")
    config = GRPOConfig(steps=1, prompts_per_step=4, group_size=4, max_new_tokens=6)
    with compute_in("float32", model.device, sampler="bfloat16"):
        grpo.train_grpo(model, TOKENIZER, Digits(length), config, log=log)
        rollouts = collected[0].result.rollouts
        logp = token_logprobs(first, rollouts.tokens, mask=rollouts.mask).detach()
    difference = (logp - rollouts.behavior_logp)[rollouts.mask]
    assert difference.abs().mean() > 1e-4
    expected = {"sampling_logp_difference/mean": difference.abs().mean(),
                "sampling_logp_difference/max": difference.abs().max(),
                "ratio/mean": difference.exp().mean(), "ratio/min": difference.exp().min(),
                "ratio/max": difference.exp().max()}
    for name, value in expected.items():
        assert log[0][f"sampling/{name}"] == pytest.approx(float(value), rel=1e-3, abs=2e-6)
