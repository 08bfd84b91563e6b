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
    # π/μ: 1.05 everywhere
    logp = (behavior + math.log(1.05)).requires_grad_()
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
    assert means["sampling/frac_far"] == pytest.approx(2 / 6), "2 and 1/2"
    # completions weigh 2 and 1/2: (2.5)² / (4 + 1/4) of 2
    assert means["sampling/sample_share"] == pytest.approx(2.5 ** 2 / 4.25 / 2)
    assert means["drift/frac_far"] == 0.0
    assert means["drift/logp_difference/mean"] == pytest.approx(math.log(1.05), rel=1e-4)
    # 1.05⁴ and 1.05²
    a, b = 1.05 ** 4, 1.05 ** 2
    assert means["drift/sample_share"] == pytest.approx((a + b) ** 2 / (a * a + b * b) / 2)


def test_the_sample_share_is_the_batchs_under_any_split():
    """Rows of 20 tokens with log-ratios of 0 to 200, whose weights overflow: a mean of the shares
    of micro-batches would be 1. A row without a sampled token is none of them."""
    slope = torch.tensor([10.0, 10.0 - math.log(3) / 20, 0.0, 5.0])
    logp = slope[:, None].expand(4, 20)
    mask = torch.ones(4, 20).bool()
    mask[3] = False

    def share(splits):
        sums = Sums()
        for rows in splits:
            sums.add_distance("drift", logp[rows], torch.zeros(len(rows), 20), mask[rows])
        return sums.means()["drift/sample_share"]

    # weights 1, 1/3 and 0 of three rows: (4/3)² / (10/9)
    expected = pytest.approx(16 / 10 / 3, rel=1e-4)
    assert share([[0, 1, 2, 3]]) == expected and share([[3], [0], [2], [1]]) == expected
    assert share([[3]]) == 0.0


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


@pytest.mark.parametrize("options", [{}, {"old_logp": "sampler"}, {"iterations": 2}])
def test_drift_is_what_the_sampler_is_away_whatever_the_ratio_is_taken_to(options):
    """Rollouts of the policy of a step ago. With old_logp = "sampler" the ratio is taken to μ, and
    sampling/... reads as if nothing had moved; drift/... does not, under any split."""
    def metrics(budget):
        model, log = tiny(), Log()
        config = GRPOConfig(steps=2, prompts_per_step=4, group_size=4, max_new_tokens=6, lr=0.02,
                            warmup_steps=0, off_policy=1, token_budget=budget, **options)
        grpo.train_grpo(model, TOKENIZER, Digits(length), config, log=log)
        return log

    fresh, old = metrics(10_000)
    assert fresh["drift/frac_far"] == 0.0 or "iterations" in options
    assert old["drift/logp_difference/mean"] > 0.01 and old["drift/frac_far"] > 0
    assert 0 < old["drift/sample_share"] < 0.999
    if "old_logp" in options:
        assert old["sampling/ratio/min"] == old["sampling/ratio/max"] == 1.0
        assert old["sampling/frac_far"] == 0.0 and old["sampling/sample_share"] == 1.0
    elif "iterations" not in options:
        assert old["sampling/frac_far"] == old["drift/frac_far"], "one update: π_old is π"
    split = metrics(20)[1]
    for name in old:
        if name.startswith(("sampling/", "drift/")):
            assert split[name] == pytest.approx(old[name], rel=1e-3, abs=1e-5), name


def test_a_batch_invariant_run_reports_a_ratio_of_exactly_one():
    model, log = tiny(), Log()
    config = GRPOConfig(steps=2, prompts_per_step=4, group_size=4, max_new_tokens=6,
                        token_budget=40)
    with compute_in("bfloat16", model.device, batch_invariant=True):
        grpo.train_grpo(model, TOKENIZER, Digits(length), config, log=log)
    for step in log:
        assert step["sampling/ratio/min"] == step["sampling/ratio/max"] == 1.0
        assert step["drift/logp_difference/max"] == 0.0 and step["drift/sample_share"] == 1.0
        assert step["grad_norm"] > 0
