"""minirl/train/weights.py: what a token counts for, by hand."""

import itertools
from dataclasses import replace

import pytest
import torch

from minirl.equations.reduce import aggregate
from minirl.lm.logprobs import token_logprobs
from minirl.lm.rollouts import Rollouts
from minirl.train.grpo import GRPOConfig
from minirl.train.metrics import Sums
from minirl.train.weights import IMPORTANCE, counted_tokens, token_weights
from tests.train.small import TOKENIZER, tiny

# two completions of two and three tokens; ratios π_old/μ 4 1/2 | 2 1 1/8, products 2 and 1/4
MASK = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1]]).bool()
RATIO = torch.tensor([[9.0, 4.0, 0.5, 9.0], [9.0, 2.0, 1.0, 0.125]])
OLD = RATIO.log()
ZERO = torch.zeros(2, 4)
ADV = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, -1.0, -1.0, -1.0]])


def weights_of(logp=ZERO, old=OLD, behavior=ZERO, adv=ADV, counted=MASK, mask=MASK, **options):
    return token_weights(GRPOConfig(**options))(logp, old, behavior, adv, counted, mask)


def test_nothing_configured_has_no_weights():
    """None, and not ones: a page without weights multiplies by nothing."""
    assert token_weights(GRPOConfig()) is None


@pytest.mark.parametrize("options, first, second", [
    (dict(importance="token_truncate"), [3, 0.5], [2, 1, 0.125]),            # C = 3
    (dict(importance="token_truncate", importance_max=1.5, importance_min=0.25),
     [1.5, 0.5], [1.5, 1, 0.25]),
    (dict(importance="token_truncate", importance_max=0), [4, 0.5], [2, 1, 0.125]),
    (dict(importance="token_mask"), [0, 0.5], [2, 1, 0.125]),
    (dict(importance="token_mask", importance_max=2, importance_min=0.5), [0, 0.5], [2, 1, 0]),
    (dict(importance="token_mask", importance_max=0, importance_min=1), [4, 0], [2, 1, 0]),
    (dict(importance="sequence_truncate"), [2, 2], [0.25] * 3),
    (dict(importance="sequence_truncate", importance_max=1.5, importance_min=0.5),
     [1.5, 1.5], [0.5] * 3),
    (dict(importance="sequence_mask", importance_max=1.5), [0, 0], [0.25] * 3),
    (dict(importance="sequence_mask", importance_min=0.5), [2, 2], [0] * 3),
    # geometric means 2^(1/2) = 1.41 and 4^(-1/3) = 0.63
    (dict(geometric_max=1.4), [0, 0], [1] * 3),
    (dict(geometric_min=0.65), [1, 1], [0] * 3),
    (dict(geometric_max=1.4, geometric_min=0.65), [0, 0], [0] * 3),
    (dict(importance="token_truncate", geometric_min=0.65), [3, 0.5], [0] * 3),
])
def test_weights_by_hand(options, first, second):
    weights = weights_of(**options)
    assert weights[0, 1:3].tolist() == pytest.approx(first)
    assert weights[1, 1:].tolist() == pytest.approx(second)
    assert not weights[~MASK].any()


def test_the_off_policy_mask_by_hand():
    """mean(log μ - log π) is 0.3 in both rows. The second is worse than its group: it is dropped
    above δ. It is the learner now, and not before the update, that has moved away."""
    logp = torch.full((2, 4), -0.3)
    kept = weights_of(logp=logp, old=ZERO, off_policy_delta=0.31)
    dropped = weights_of(logp=logp, old=ZERO, off_policy_delta=0.29)
    assert kept[MASK].tolist() == [1.0] * 5
    assert dropped[MASK].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert bool((weights_of(logp=ZERO, old=logp, off_policy_delta=0.29)[MASK] == 1).all())


def test_tokens_that_do_not_count():
    counted = MASK & torch.tensor([False, True, False, True])
    assert weights_of(counted=counted, top_entropy=0.5).tolist() == counted.float().tolist()


def test_without_top_entropy_every_token_counts():
    counted = torch.zeros_like(MASK)
    assert bool(weights_of(counted=counted, geometric_max=99.0)[MASK].all())


def test_what_stands_under_a_zero_mask_does_not_matter():
    """An infinite weight there would be NaN in the gradient: 0 times infinity."""
    broken = torch.where(MASK, OLD, float("inf"))
    for mode in IMPORTANCE:
        weights = weights_of(old=broken, importance=mode)
        assert torch.equal(weights, weights_of(importance=mode))
        logp = ZERO.clone().requires_grad_()
        aggregate(logp * weights, MASK, "sequence_mean").backward()
        assert bool(logp.grad.isfinite().all())


@pytest.mark.parametrize("one, other", itertools.combinations(
    [dict(importance="token_mask"), dict(geometric_max=1.4), dict(off_policy_delta=0.1),
     dict(top_entropy=0.5)], 2))
def test_several_are_a_product(one, other):
    args = dict(logp=torch.full((2, 4), -0.2), counted=MASK & torch.tensor([0, 1, 0, 1]).bool())
    both = weights_of(**args, **one, **other)
    assert torch.equal(both, weights_of(**args, **one) * weights_of(**args, **other))


# the tokens of the highest entropy

def rollouts_of(lengths):
    tokens = torch.randint(3, TOKENIZER.vocab_size, (len(lengths), max(lengths) + 2),
                           generator=torch.Generator().manual_seed(0))
    slots = torch.arange(tokens.shape[1])
    mask = (slots >= 2) & (slots < 2 + torch.tensor(lengths)[:, None])
    B = len(lengths)
    return Rollouts(tokens, mask, torch.full((B,), 2), torch.zeros(tokens.shape),
                    torch.zeros(B).bool())


def test_the_threshold_is_that_of_the_whole_batch():
    """So no split into micro-batches changes which tokens count. TRL has a threshold for each."""
    model, rollouts = tiny(), rollouts_of([7, 1, 4, 6, 2])
    config = GRPOConfig(top_entropy=0.25)
    whole = counted_tokens(model, rollouts, config)
    assert int(whole.sum()) == 5                                   # of 20 tokens
    assert not whole[~rollouts.mask].any()
    for budget in (1, 9, 17):
        split = counted_tokens(model, rollouts, replace(config, token_budget=budget))
        assert torch.equal(split, whole)
    _, entropy = token_logprobs(model, rollouts.tokens, mask=rollouts.mask, return_entropy=True)
    assert entropy[whole].min() > entropy[rollouts.mask & ~whole].max()


def test_with_all_tokens_no_model_is_asked():
    rollouts = rollouts_of([3, 2])
    assert counted_tokens(None, rollouts, GRPOConfig()) is rollouts.mask


def test_entropies_are_of_the_temperature_that_is_sampled_at():
    model, rollouts = tiny(), rollouts_of([7, 1, 4, 6, 2])
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    ones = [counted_tokens(model, rollouts, GRPOConfig(top_entropy=0.3, temperature=t))
            for t in (1.0, 3.0)]
    assert not torch.equal(*ones)


# metrics

def test_what_weights_leave_by_hand():
    """Weights 0 0 | 2 0 1: three of five tokens are removed, and one of two completions."""
    sums = Sums()
    sums.add_weights(torch.tensor([[7.0, 0.0, 0.0, 7.0], [7.0, 2.0, 0.0, 1.0]]), MASK)
    assert sums.means() == {"weights/mean": pytest.approx(0.6), "weights/min": 0.0,
                            "weights/max": 2.0, "weights/zero_tokens": pytest.approx(0.6),
                            "weights/zero_completions": 0.5}


def test_ranges_of_micro_batches_are_the_batchs():
    values, mask = torch.tensor([[1.0, 5.0, -3.0], [2.0, 9.0, 4.0]]), torch.ones(2, 3).bool()
    mask[1, 1] = False
    whole, split = Sums(), Sums()
    whole.add_range("x", values, mask)
    for i in range(2):
        split.add_range("x", values[i:i + 1], mask[i:i + 1])
    assert whole.means() == split.means() == {"x/mean": 1.8, "x/min": -3.0, "x/max": 5.0}
    empty = Sums()
    empty.add_range("x", values, torch.zeros_like(mask))
    assert empty.means() == {"x/mean": 0.0}
