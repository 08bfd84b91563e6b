"""Tests of minirl.equations.advantages."""

import itertools
import math

import pytest
import torch

from minirl.equations.advantages import (
    batch_mean_advantages,
    discounted_returns,
    dynamic_sampling,
    gae,
    gdpo_advantages,
    group_advantages,
    leave_one_out_advantages,
    maxrl_advantages,
    opo_advantages,
    optimal_baseline,
    pass_at_k_advantages,
    process_advantages,
    reinforce_plus_plus_advantages,
    remax_advantages,
    spread,
    zero_spread,
)

NAN, INF = float("nan"), float("inf")
every_scale = pytest.mark.parametrize("scale", ["group", "batch", "none"])


def close(actual, expected, tolerance=6e-5):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def coin(p, size):
    """List all groups of `size` tosses of a coin that pays 1 for heads.

    Returns rewards (2^size, size), the chance of each group (2^size,), and the scores
    d log pi / d logit = action - p.
    """
    tosses = list(itertools.product([0.0, 1.0], repeat=size))
    rewards = torch.tensor(tosses, dtype=torch.float64)
    chance = (p ** rewards * (1 - p) ** (1 - rewards)).prod(1)
    return rewards, chance, rewards - p


@pytest.mark.parametrize("rewards, options, expected", [
    # mean 1/4; squares 9/16 + 3/16 = 3/4; std 1/2 (ddof 1), .433013 (ddof 0)
    ([[1.0, 0, 0, 0]], {"scale": "none"}, [[0.75, -0.25, -0.25, -0.25]]),
    ([[1.0, 0, 0, 0]], {}, [[1.4997, -0.4999, -0.4999, -0.4999]]),
    ([[1.0, 0, 0, 0]], {"ddof": 0}, [[1.7317, -0.5772, -0.5772, -0.5772]]),
    # mean 1/4; squares 2 * 9/16 + 6 * 1/16 = 3/2; std .462910 (ddof 1), .433013 (ddof 0)
    ([[1.0, 1, 0, 0, 0, 0, 0, 0]], {}, [[1.6198] * 2 + [-0.5399] * 6]),
    ([[1.0, 1, 0, 0, 0, 0, 0, 0]], {"ddof": 0}, [[1.7317] * 2 + [-0.5772] * 6]),
    # a pair: std .707107 or 1/2, whatever the rewards
    ([[1.0, 0.0], [-3.0, 5.0]], {"eps": 0.0}, [[0.7071, -0.7071], [-0.7071, 0.7071]]),
    ([[1.0, 0.0], [-3.0, 5.0]], {"eps": 0.0, "ddof": 0}, [[1.0, -1.0], [-1.0, 1.0]]),
    ([[1.0, 0.0]], {}, [[0.7070, -0.7070]]),
    ([[1.0, 0.0]], {"ddof": 0}, [[0.9998, -0.9998]]),
    # the batch: mean 3/4, squares 3/16 + 9/16 = 3/4, std 1/2 or .433013; the mean that is
    # subtracted is still the group's, 1/2
    ([[1.0, 0.0], [1.0, 1.0]], {"scale": "batch"}, [[0.9998, -0.9998], [0.0, 0.0]]),
    ([[1.0, 0.0], [1.0, 1.0]], {"scale": "batch", "ddof": 0}, [[1.1544, -1.1544], [0.0, 0.0]]),
])
def test_hand_numbers(rewards, options, expected):
    """The std may divide by n or by n - 1, or there is none: 1.73, 1.50 or 0.75 for one group.

    At G = 2 the advantages are ±1 or ±0.71, whatever the rewards.
    """
    adv = group_advantages(torch.tensor(rewards), **options)
    torch.testing.assert_close(adv, torch.tensor(expected), atol=6e-5, rtol=0)


@pytest.mark.parametrize("p, options, mean, variance", [
    (0.1, {"scale": "none"}, 0.07875, 0.00573),
    (0.1, {}, 0.19591, 0.03049),
    (0.1, {"ddof": 0}, 0.20944, 0.03485),
    (0.5, {"scale": "none"}, 0.21875, 0.00171),
    (0.5, {}, 0.43387, 0.00309),
    (0.5, {"ddof": 0}, 0.46381, 0.00353),
    (0.9, {"scale": "none"}, 0.07875, 0.00573),
    (0.9, {}, 0.19591, 0.03049),
    (0.9, {"ddof": 0}, 0.20944, 0.03485),
])
def test_policy_gradient_by_enumeration(p, options, mean, variance):
    """All 2^8 groups of a coin that pays 1 for heads: the true gradient is p (1 - p).

    Without std the estimate is 7/8 of it, because each sample is in its own baseline. With std it
    is 2.2 times too long at p = .1 and 1.7 times at p = .5: easy and hard prompts weigh more.
    """
    rewards, chance, scores = coin(p, 8)
    estimate = (group_advantages(rewards, **options) * scores).mean(1)  # (256,)
    exact = (chance * estimate).sum()
    assert exact.item() == pytest.approx(mean, abs=6e-6)
    assert (chance * (estimate - exact).square()).sum().item() == pytest.approx(variance, abs=1e-5)
    if options.get("scale") == "none":
        assert exact.item() == pytest.approx(7 / 8 * p * (1 - p), abs=1e-12)


@every_scale
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_rewards_give_exactly_zero(scale, dtype):
    """The float32 mean of eight 0.7 is off by 6e-8, and so is the std.

    Their quotient was an advantage of 0.8 for every sample. A group that differs stands beside the
    equal ones, so that the batch's std is not 0 either.
    """
    for n in range(2, 17):
        tenths = torch.arange(1, 24, dtype=torch.float64) / 10  # .1 .. 2.3
        equal = tenths[:, None].expand(23, n)
        rewards = torch.cat([equal, torch.tensor([[0.0] + [1.0] * (n - 1)])]).to(dtype)
        for ddof in (0, 1):
            adv = group_advantages(rewards, scale=scale, ddof=ddof, eps=1e-8)
            assert adv[:-1].abs().max() == 0 and adv[-1].abs().max() > 0.1
        alone = group_advantages(rewards[6:7], scale=scale)
        assert alone.abs().max() == 0


@every_scale
def test_no_verdict_is_left_out(scale):
    """One NaN reward made NaN of the whole group, and through the batch's std of every group."""
    rewards = torch.tensor([
        [1.0, NAN, 0, 0, 0], [NAN] * 5, [NAN, 3.0, NAN, NAN, NAN], [2.0, 2, NAN, 2, 2],
    ])
    adv = group_advantages(rewards, scale=scale)
    assert adv.isfinite().all() and adv[0, 1] == 0 and (adv[1:] == 0).all()
    judged = adv[0, [0, 2, 3, 4]]
    if scale == "batch":
        # judged: 1 0 0 0 3 2 2 2 2, mean 4/3, squares 26 - 16 = 10, std sqrt(10/8) = 1.118034;
        # the first is .75 / 1.118134
        expected = torch.tensor([0.6708, -0.2236, -0.2236, -0.2236])
        torch.testing.assert_close(judged, expected, atol=6e-5, rtol=0)
    else:
        without = group_advantages(torch.tensor([[1.0, 0, 0, 0]]), scale=scale)[0]
        torch.testing.assert_close(judged, without)


@every_scale
def test_alone_in_its_group(scale):
    """n - 1 = 0 made NaN of a group of one."""
    adv = group_advantages(torch.tensor([[1.0], [0.0], [NAN]]), scale=scale)
    assert adv.tolist() == [[0.0], [0.0], [0.0]]


@every_scale
def test_groups_are_rows(scale):
    """The order of groups and of samples carries no meaning, nor does a constant on all rewards.

    With "group" and "none" no group depends on another.
    """
    rewards = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).double()
    adv, before = group_advantages(rewards, scale=scale), rewards.clone()
    rows, samples = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([5, 0, 3, 1, 2, 4])
    shuffled = group_advantages(rewards[rows][:, samples], scale=scale)
    torch.testing.assert_close(shuffled, adv[rows][:, samples])
    torch.testing.assert_close(group_advantages(rewards + 100, scale=scale), adv)
    torch.testing.assert_close(adv.sum(1), torch.zeros(5).double())
    assert ((adv > 0) == (rewards > rewards.mean(1, keepdim=True))).all() and not adv.requires_grad
    if scale != "batch":
        torch.testing.assert_close(group_advantages(rewards[2:3], scale=scale), adv[2:3])
    assert torch.equal(rewards, before)


@every_scale
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_dtypes_stay_finite(scale, dtype):
    rewards = torch.tensor([[100, 0, 0, 0], [1, -1, 1, -1]], dtype=dtype)
    adv = group_advantages(rewards, scale=scale)
    assert adv.isfinite().all() and (adv[:, 0] > 0).all() and adv.is_floating_point()


@pytest.mark.parametrize("rewards, options, message", [
    (torch.zeros(4), {}, "shape"),
    (torch.zeros(2, 2, 2), {}, "shape"),
    (torch.tensor(1.0), {}, "shape"),
    (torch.tensor([[1.0, INF]]), {}, "finite"),
    (torch.tensor([[1.0, -INF], [0.0, NAN]]), {"scale": "none"}, "finite"),
    (torch.zeros(2, 2, requires_grad=True), {}, "rewards requires grad"),
    (torch.zeros(2, 2), {"scale": "std"}, "scale"),
    (torch.zeros(2, 2), {"ddof": 2}, "ddof"),
    (torch.zeros(2, 2), {"ddof": -1}, "ddof"),
])
def test_bad_arguments_raise(rewards, options, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, **options)


@pytest.mark.parametrize("row, expected", [
    ([0.7] * 8, True),
    ([0.0], True),
    ([NAN, NAN], True),
    ([1.0, NAN, 1.0], True),
    ([NAN, 0.3], True),
    ([-2.0, -2.0], True),
    ([0.0, 1.0], False),
    ([NAN, 0.0, 1.0], False),
    ([-1.0, NAN], True),
    ([1.0, 1.0 + 2e-7], False),  # not a rounding error: a larger tolerance would hide groups
])
def test_zero_spread(row, expected):
    assert zero_spread(torch.tensor([row])).tolist() == [[expected]]


def test_spread():
    """Every sampled token has its completion's advantage, the padding 0."""
    adv, mask = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0]])
    expected = [[0.0, 0.5, 0.5], [-1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]
    for m in (mask, mask.bool(), mask.float()):
        assert spread(adv, m).tolist() == expected
    assert spread(adv.double(), mask).dtype == torch.float64


@pytest.mark.parametrize("adv, mask, message", [
    (torch.zeros(3, 3), torch.ones(3, 3), r"adv \(3, 3\) beside mask \(3, 3\)"),
    (torch.zeros(3, 1), torch.ones(3, 3), r"adv \(3, 1\)"),
    (torch.zeros(2), torch.ones(3, 3), r"adv \(2,\)"),
    (torch.zeros(3), torch.ones(3), r"\(B, T\)"),
    (torch.zeros(3, requires_grad=True), torch.ones(3, 3), "adv requires grad"),
])
def test_spread_bad_arguments_raise(adv, mask, message):
    with pytest.raises(ValueError, match=message):
        spread(adv, mask)


# ---- with a value function

@pytest.mark.parametrize("rewards, mask, gamma, expected", [
    ([0, 0, 1], [1, 1, 1], 1.0, [1, 1, 1]),
    ([1, 2, 4], [1, 1, 1], 1.0, [7, 6, 4]),
    ([1, 2, 4], [1, 1, 1], 0.5, [3, 4, 4]),  # 1 + 4/2, 2 + 4/2, 4
    ([1, 2, 4], [1, 1, 1], 0.0, [1, 2, 4]),
    ([9, 2, 4], [0, 1, 1], 0.5, [0, 4, 4]),  # a reward outside the mask does not count
    ([1, 2, 9], [1, 1, 0], 0.5, [2, 2, 0]),
    ([1, 9, 4], [1, 0, 1], 0.5, [3, 0, 4]),  # one step from the first token to the third, not two
    ([9, 1, 9], [0, 1, 0], 0.5, [0, 1, 0]),
    ([9, 9, 9], [0, 0, 0], 0.5, [0, 0, 0]),
])
def test_discounted_returns(rewards, mask, gamma, expected):
    rewards, mask = torch.tensor([rewards]).double(), torch.tensor([mask])
    assert discounted_returns(rewards, mask, gamma=gamma).tolist() == [expected]
    holes = rewards.masked_fill(mask == 0, NAN)
    assert discounted_returns(holes, mask.float(), gamma=gamma).tolist() == [expected]


def test_discounted_returns_of_whole_numbers():
    """Integer rewards 0 and 1 made the result an integer too: 0.5 silently became 0."""
    returns = discounted_returns(torch.tensor([[0, 1]]), torch.ones(1, 2), gamma=0.5)
    assert returns.tolist() == [[0.5, 1.0]]


V = [0.5, 0.6, 0.8]
GAE_TABLE = [
    # delta = .6 - .5, .8 - .6, 1 - .8 = .1 .2 .2; with lam .95: .2, .2 + .19, .1 + .95 * .39;
    # returns = A + V
    ([0, 0, 1], V, [1, 1, 1], {}, [0.4705, 0.39, 0.2], [0.9705, 0.99, 1.0]),
    ([0, 0, 1], V, [1, 1, 1], {"lam": 0.0}, [0.1, 0.2, 0.2], [0.6, 0.8, 1.0]),
    ([0, 0, 1], V, [1, 1, 1], {"lam": 1.0}, [0.5, 0.4, 0.2], [1.0, 1.0, 1.0]),
    # the score one slot after the EOS, where V is .9, gives another answer: delta .1 .2 .1 .1;
    # .1, .1 + .095, .2 + .18525, .1 + .3659875
    ([0, 0, 0, 1], [*V, 0.9], [1, 1, 1, 1], {}, [0.465987, 0.38525, 0.195, 0.1],
     [0.965987, 0.98525, 0.995, 1.0]),
    # gamma 1/2: delta = .3 - .5, .4 - .6, .2; gamma lam = 1/4: .2, -.2 + .05, -.2 - .0375
    ([0, 0, 1], V, [1, 1, 1], {"gamma": 0.5, "lam": 0.5}, [-0.2375, -0.15, 0.2],
     [0.2625, 0.45, 1.0]),
    ([0, 0, 1], V, [1, 1, 1], {"gamma": 0.0}, [-0.5, -0.6, 0.2], [0.0, 0.0, 1.0]),
    # tool output in the middle, padding on either side: stepped over
    ([0, 7, 0, 1], [0.5, 9, 0.6, 0.8], [1, 0, 1, 1], {}, [0.4705, 0, 0.39, 0.2],
     [0.9705, 0, 0.99, 1.0]),
    ([7, 0, 0, 7, 1, 7], [9, 0.5, 0.6, 9, 0.8, 9], [0, 1, 1, 0, 1, 0], {},
     [0, 0.4705, 0.39, 0, 0.2, 0], [0, 0.9705, 0.99, 0, 1.0, 0]),
    # truncated, and the state after it is worth .5: the last delta is .7; then .2 + .665,
    # .1 + .95 * .865
    ([0, 0, 1], V, [1, 1, 1], {"bootstrap": 0.5}, [0.92175, 0.865, 0.7], [1.42175, 1.465, 1.5]),
    ([0, 0, 1], V, [1, 1, 1], {"bootstrap": 0.5, "lam": 1.0}, [1.0, 0.9, 0.7], [1.5, 1.5, 1.5]),
    # the last delta is 1 + .25 - .8
    ([0, 0, 1, 7], [*V, 9], [1, 1, 1, 0], {"bootstrap": 0.5, "gamma": 0.5, "lam": 0.0},
     [-0.2, -0.2, 0.45, 0], [0.3, 0.4, 1.25, 0]),
    # an immediate EOS; no token at all
    ([1, 7, 7], [0.5, 9, 9], [1, 0, 0], {}, [0.5, 0, 0], [1.0, 0, 0]),
    ([7, 7], [9, 9], [0, 0], {"bootstrap": 0.5}, [0, 0], [0, 0]),
]


@pytest.mark.parametrize("rewards, values, mask, options, adv, returns", GAE_TABLE)
@pytest.mark.parametrize("junk", [0.0, NAN, -INF])
def test_gae_hand_numbers(rewards, values, mask, options, adv, returns, junk):
    """What stands under a zero mask, NaN too, does not matter. No input is written to."""
    mask = torch.tensor([mask])
    rewards = torch.tensor([rewards]).double().masked_fill(mask == 0, junk)
    values = torch.tensor([values]).double().masked_fill(mask == 0, junk)
    options = dict(options)
    if "bootstrap" in options:
        options["bootstrap"] = torch.tensor([options["bootstrap"]]).double()
    before = rewards.clone(), values.clone()
    result = gae(rewards, values, mask, **options)
    close(result[0], [adv], 1e-6)
    close(result[1], [returns], 1e-6)
    torch.testing.assert_close((rewards, values), before, equal_nan=True, atol=0, rtol=0)


def test_gae_rows_do_not_meet():
    """Of two rows, one truncated and one that ended: the first one's bootstrap is its own."""
    rewards, values = torch.tensor([[0.0, 0, 1]] * 2), torch.tensor([V] * 2)
    bootstrap = torch.tensor([0.5, 0.0])
    adv, returns = gae(rewards, values, torch.ones(2, 3), lam=1.0, bootstrap=bootstrap)
    close(adv, [[1.0, 0.9, 0.7], [0.5, 0.4, 0.2]])
    close(returns, [[1.5] * 3, [1.0] * 3])


def test_gae_of_whole_number_values():
    """Integer zeros as values made integers of the advantages: 0.5 became 0."""
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2, dtype=torch.long)
    adv, returns = gae(rewards, values, torch.ones(1, 2), gamma=0.5, lam=1.0)
    assert adv.tolist() == returns.tolist() == [[0.5, 1.0]]


GAE_GOOD = {"rewards": torch.zeros(2, 2), "values": torch.zeros(2, 2), "mask": torch.ones(2, 2)}


@pytest.mark.parametrize("wrong, message", [
    ({"values": torch.zeros(2)}, r"values \(2,\)"),
    ({"mask": torch.ones(2, 1)}, r"mask \(2, 1\)"),
    ({"rewards": torch.zeros(1, 2)}, r"rewards \(1, 2\)"),
    ({name: torch.zeros(2) for name in GAE_GOOD}, r"\(B, T\)"),
    ({"bootstrap": torch.zeros(2, 1)}, r"\(B,\) for bootstrap"),
    ({"bootstrap": torch.zeros(3)}, "bootstrap"),
    ({"gamma": 1.01}, "gamma is 1.01"),
    ({"gamma": -0.1}, "gamma"),
    ({"lam": 1.5}, "lam 1.5"),
    ({"lam": NAN}, "lam nan"),
    ({"rewards": torch.tensor([[0.0, NAN], [0, 0]])}, "rewards: .* finite"),
    ({"values": torch.tensor([[0.0, INF], [0, 0]])}, "values: .* finite"),
    ({"bootstrap": torch.tensor([NAN, 0.0])}, "bootstrap: .* finite"),
    ({"values": torch.zeros(2, 2, requires_grad=True)}, "values requires grad: .* detach"),
    ({"rewards": torch.zeros(2, 2, requires_grad=True)}, "rewards requires grad"),
    ({"bootstrap": torch.zeros(2, requires_grad=True)}, "bootstrap requires grad"),
])
def test_gae_bad_arguments_raise(wrong, message):
    """With B == T, values (B,) would broadcast along the wrong axis.

    If values had a gradient, the advantage would train the value head.
    """
    with pytest.raises(ValueError, match=message):
        gae(**{**GAE_GOOD, **wrong})
    if wrong.keys() <= {"rewards", "mask", "gamma"}:
        good = {"rewards": GAE_GOOD["rewards"], "mask": GAE_GOOD["mask"]}
        with pytest.raises(ValueError, match=message):
            discounted_returns(**{**good, **wrong})


# ---- with a group

def opo(rewards):
    return opo_advantages(rewards, torch.ones(rewards.shape, dtype=torch.long))


def remax(rewards):
    return remax_advantages(rewards, torch.zeros(len(rewards)))


every_baseline = pytest.mark.parametrize(
    "advantages", [leave_one_out_advantages, maxrl_advantages, opo, remax])


@pytest.mark.parametrize("advantages, rewards, expected", [
    # the means of the others: 0, 1/3
    (leave_one_out_advantages, [[1.0, 0, 0, 0]], [[1.0, -0.3333, -0.3333, -0.3333]]),
    (leave_one_out_advantages, [[1.0, 0], [-3, 5]], [[1.0, -1.0], [-8.0, 8.0]]),
    # 1 - 8/2, 2 - 7/2, 6 - 3/2
    (leave_one_out_advantages, [[1.0, 2, 6]], [[-3.0, -1.5, 4.5]]),
    (leave_one_out_advantages, [[1.0, NAN, 0, 0, 0], [NAN, 3, NAN, NAN, NAN]],
     [[1.0, 0, -0.3333, -0.3333, -0.3333], [0] * 5]),
    # (1 - 1/4) / (1/4)
    (maxrl_advantages, [[1.0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
     [[3.0, -1, -1, -1], [0] * 4, [0] * 4]),
    (maxrl_advantages, [[1.0, 1, 0, 0], [1, 1, 1, 0]],
     [[1.0, 1, -1, -1], [0.3333, 0.3333, 0.3333, -1]]),
    (maxrl_advantages, [[1.0, NAN, 0, NAN], [NAN, NAN, NAN, NAN]], [[1.0, 0, -1, 0], [0] * 4]),
    # equal lengths: the plain mean
    (opo, [[1.0, 0, 0, 0]], [[0.75, -0.25, -0.25, -0.25]]),
    # baseline 10 / 40
    (lambda r: opo_advantages(r, torch.tensor([[10, 30]])), [[1.0, 0]], [[0.75, -0.25]]),
    (lambda r: opo_advantages(r, torch.tensor([[30, 10]])), [[1.0, 0]], [[0.25, -0.75]]),
    (lambda r: opo_advantages(r, torch.tensor([[10, 99, 30]])), [[1.0, NAN, 0]],
     [[0.75, 0, -0.25]]),
    # a completion without tokens has no weight
    (lambda r: opo_advantages(r, torch.tensor([[0, 5]])), [[1.0, 0]], [[1.0, 0]]),
    (lambda r: remax_advantages(r, torch.tensor([1.0, 0.5])), [[1.0, 0], [1, NAN]],
     [[0.0, -1], [0.5, 0]]),
    # no verdict on the greedy answer: nothing to compare with
    (lambda r: remax_advantages(r, torch.tensor([NAN])), [[1.0, 0]], [[0.0, 0]]),
])
def test_other_baselines_hand_numbers(advantages, rewards, expected):
    close(advantages(torch.tensor(rewards)), expected)


@pytest.mark.parametrize("weights, expected", [
    ([1.0, 3.0], 0.25),
    ([3.0, 1.0], 0.75),
    ([0.0, 1.0], 0.0),
    ([2.0, 0.0], 1.0),
    ([0.0, 0.0], 0.0),  # no weight at all
])
def test_optimal_baseline_hand_numbers(weights, expected):
    """The rewards are 1 and 0, so the baseline is the first weight's share."""
    rewards = torch.tensor([[1.0, 0.0]])
    assert optimal_baseline(rewards, torch.tensor([weights])).tolist() == [[expected]]
    rewards = torch.tensor([[NAN, 1.0, 0.0]])
    assert optimal_baseline(rewards, torch.tensor([[7.0, *weights]])).tolist() == [[expected]]


@pytest.mark.parametrize("advantages", [leave_one_out_advantages, maxrl_advantages, opo])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_rewards_give_exactly_zero_for_every_baseline(advantages, dtype):
    """0.7 minus the mean of eight 0.7 is 6e-8, and G/(G - 1) or a small mean enlarges it.

    A group of one has nothing to compare with.
    """
    tenths = torch.arange(1, 24, dtype=torch.float64) / 10  # .1 .. 2.3
    for n in range(1, 17):
        adv = advantages(tenths[:, None].expand(23, n).to(dtype))
        assert (adv == 0).all() and adv.dtype == dtype
    assert advantages(torch.tensor([[NAN, 0.7, NAN]])).tolist() == [[0.0] * 3]


@every_baseline
def test_groups_are_rows_for_every_baseline(advantages):
    rewards = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)).double()
    adv, before = advantages(rewards), rewards.clone()
    rows, samples = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([5, 0, 3, 1, 2, 4])
    close(advantages(rewards[rows][:, samples]), adv[rows][:, samples], 1e-12)
    close(advantages(rewards[2:3]), adv[2:3], 1e-12)
    assert torch.equal(rewards, before) and not adv.requires_grad
    holes = torch.cat([rewards, torch.full((5, 2), NAN).double()], 1)
    close(advantages(holes)[:, :6], adv, 1e-12)
    assert (advantages(holes)[:, 6:] == 0).all()
    assert advantages((rewards > 0.5).long()).is_floating_point()


@pytest.mark.parametrize("function", [
    leave_one_out_advantages,
    maxrl_advantages,
    opo,
    remax,
    dynamic_sampling,
    lambda r: optimal_baseline(r, torch.ones(r.shape)),
])
def test_bad_rewards_raise(function):
    for shape in ((4,), (2, 2, 2), (2, 0)):
        with pytest.raises(ValueError, match=r"\(P, G\), one row per prompt"):
            function(torch.zeros(shape))
    for rewards in (torch.tensor([[1.0, INF]]), torch.tensor([[-INF, NAN]])):
        with pytest.raises(ValueError, match="1 of them infinite"):
            function(rewards)
    with pytest.raises(ValueError, match="requires grad"):
        function(torch.zeros(2, 2, requires_grad=True))


REWARDS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize("call, message", [
    (lambda: maxrl_advantages(torch.tensor([[1.0, -0.5]])), "a reward is -0.5: .* at least 0"),
    (lambda: maxrl_advantages(torch.tensor([[NAN, -0.5]])), "at least 0"),
    (lambda: optimal_baseline(REWARDS, torch.ones(2)), r"weights \(2,\)"),
    (lambda: optimal_baseline(REWARDS, torch.tensor([[1.0, -1], [1, 1]])), "negative"),
    (lambda: opo_advantages(REWARDS, torch.ones(2, 1)), r"weights \(2, 1\)"),
    (lambda: opo_advantages(REWARDS, -torch.ones(2, 2)), "negative"),
    (lambda: remax_advantages(REWARDS, torch.ones(2, 1)), r"greedy_rewards \(2, 1\)"),
    (lambda: remax_advantages(REWARDS, torch.ones(3)), r"\(P,\) beside"),
    (lambda: process_advantages(torch.zeros(2, 3)), r"\(2, 3\): expected \(P, G, S\)"),
    (lambda: process_advantages(torch.zeros(1, 2, 0)), r"\(P, G, S\)"),
    (lambda: process_advantages(torch.tensor([[[NAN, 1.0]]])),
     "a step follows one that is NaN: .* give"),
    (lambda: process_advantages(torch.tensor([[[1.0, INF]]])), "infinite"),
    (lambda: process_advantages(torch.zeros(1, 2, 2, requires_grad=True)), "requires grad"),
    (lambda: process_advantages(torch.zeros(1, 2, 2), ddof=2), "ddof is 2"),
])
def test_other_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("call", [
    lambda: remax_advantages(REWARDS, torch.tensor([INF, 0.0])),
    lambda: remax_advantages(REWARDS, torch.zeros(2, requires_grad=True)),
    lambda: optimal_baseline(REWARDS, torch.tensor([[NAN, 1], [1, 1]])),
    lambda: optimal_baseline(REWARDS, torch.tensor([[INF, 1], [1, 1]])),
    lambda: optimal_baseline(REWARDS, torch.ones(2, 2, requires_grad=True)),
])
def test_second_argument_is_a_finite_constant_too(call):
    """An infinite greedy reward gave advantages of -3.4e38, a NaN or infinite weight a baseline of
    NaN. Either could pass on a gradient."""
    with pytest.raises(ValueError, match="finite|negative|requires grad"):
        call()


@pytest.mark.parametrize("p, mean, variance", [
    (0.1, 0.09, 0.00749), (0.5, 0.25, 0.00223), (0.9, 0.09, 0.00749),
])
def test_leave_one_out_by_enumeration(p, mean, variance):
    """The mean is the policy gradient p (1 - p) itself, at every size from 2 on.

    Dr. GRPO's is (G - 1)/G of it.
    """
    for size in (2, 3, 8):
        rewards, chance, score = coin(p, size)
        estimate = (leave_one_out_advantages(rewards) * score).mean(1)
        assert (chance * estimate).sum().item() == pytest.approx(mean, abs=1e-12)
    assert (chance * (estimate - mean).square()).sum().item() == pytest.approx(variance, abs=6e-6)


# log p = -sum_k (1 - p)^k / k. Cut off after k = N, its slope in the logit is
# (1 - p)(1 - (1 - p)^N): .9 * .1, .9 * .19, .9 * (1 - .9^7); .5 * 7/8
@pytest.mark.parametrize("p, size, mean", [
    (0.1, 2, 0.09), (0.1, 3, 0.171), (0.1, 8, 0.469533),
    (0.5, 4, 0.4375),
    (0.9, 2, 0.09), (0.9, 3, 0.099),
])
def test_maxrl_by_enumeration(p, size, mean):
    """With 0 where nothing was right, the mean is the gradient of the sum up to G - 1, not G.

    At G = 2 that is REINFORCE; at p = .1 and G = 8 it is five times as much. Hard prompts count
    for more.
    """
    rewards, chance, score = coin(p, size)
    estimate = (maxrl_advantages(rewards) * score).mean(1)
    assert (chance * estimate).sum().item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("baseline, variance", [("optimal", 0.0), (0.9, 0.0576), (0.0, 0.0009)])
def test_the_mean_is_not_the_best_baseline(baseline, variance):
    """A coin with p = .9. With b = 1 - p both sides give .09 and nothing varies.

    With b = p, the mean reward, heads give .01 and tails .81: worse than no baseline (.1 and 0).
    """
    heads_and_tails = [[[1.0] * 9 + [0.0]], [[0.1] * 9 + [-0.9]]]
    rewards, score = torch.tensor(heads_and_tails, dtype=torch.float64)
    b = baseline
    if baseline == "optimal":
        b = optimal_baseline(rewards, score.square())
        assert b.item() == pytest.approx(0.1, abs=1e-12)
    estimate = (rewards - b) * score
    assert estimate.mean().item() == pytest.approx(0.09, abs=1e-12)
    assert estimate.var(correction=0).item() == pytest.approx(variance, abs=1e-12)


@pytest.mark.parametrize("rewards, expected", [
    ([[0.0, 0], [0, 1], [1, 1]], [False, True, False]),
    ([[NAN, 1.0, 1], [NAN, 0, 1], [NAN, NAN, 1], [NAN, NAN, NAN]], [False, True, False, False]),
    ([[0.7] * 8, [0.7] * 7 + [0.6]], [False, True]),
    ([[1.0], [0.0]], [False, False]),
    ([[0, 1]], [True]),
    ([[-1.0, 1.0]], [True]),
])
def test_dynamic_sampling(rewards, expected):
    """It keeps exactly the prompts that have an advantage: the others only dilute the batch."""
    rewards = torch.tensor(rewards)
    keep = dynamic_sampling(rewards)
    assert keep.tolist() == expected
    assert keep.tolist() == group_advantages(rewards).ne(0).any(1).tolist()


@pytest.mark.parametrize("steps, options, expected", [
    # five steps, mean 1/2, squares .09 + .09 + 0 + .16 + .16 = .5; std sqrt(.5 / 4) = .353553
    # or sqrt(.1) = .316228; -.3 + .3, then .3; 0, 0, .4
    ([[0.2, 0.8, NAN], [0.5, 0.1, 0.9]], {"eps": 0.0},
     [[0.0, 0.848528, 0.0], [0.0, 0.0, 1.131371]]),
    ([[0.2, 0.8, NAN], [0.5, 0.1, 0.9]], {"eps": 0.0, "ddof": 0},
     [[0.0, 0.948683, 0.0], [0.0, 0.0, 1.264911]]),
    # .3 and .4 over .353653
    ([[0.2, 0.8, NAN], [0.5, 0.1, 0.9]], {}, [[0.0, 0.848288, 0.0], [0.0, 0.0, 1.131051]]),
    # 0 1 1 1: mean 3/4, std 1/2: -1.5 .5 .5, and .5
    ([[0.0, 1.0, 1.0], [1.0, NAN, NAN]], {"eps": 0.0}, [[-0.5, 1.0, 0.5], [0.5, 0.0, 0.0]]),
    # the third sample has no verdict
    ([[0.0, 1.0, 1.0], [1.0, NAN, NAN], [NAN, NAN, NAN]], {"eps": 0.0},
     [[-0.5, 1.0, 0.5], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ([[0.7, 0.7, 0.7], [0.7, 0.7, NAN]], {"eps": 1e-8}, [[0.0] * 3, [0.0] * 3]),
    ([[0.3, NAN]], {}, [[0.0, 0.0]]),
    ([[NAN, NAN]], {}, [[0.0, 0.0]]),
    # G = 1: steps are still compared with steps
    ([[1.0, 0.0]], {"eps": 0.0}, [[0.0, -0.707107]]),
])
def test_process_advantages_hand_numbers(steps, options, expected):
    """A step is credited with what it leads to: the sum runs from it to the end of its sample.

    Another prompt beside it changes nothing.
    """
    other_prompt = [[9.0] * len(row) for row in steps]
    adv = process_advantages(torch.tensor([steps, other_prompt]).double(), **options)
    close(adv[0], expected, 1e-6)
    assert (adv[1] == 0).all()


# ---- with the batch

# R = (1 - .2 log 2, 1 - .1 log 2) = .861371 .930685, and 0 0: mean .448014,
# squares .170864 .232971 .200717 .200717, / 3, root: .518095
@pytest.mark.parametrize("scores, mask, kl_coef, expected", [
    ([1.0, 0.0], [[1, 1], [1, 1]], 0.1, [[0.797839, 0.931626], [-0.864733, -0.864733]]),
    # 1 1 0 0: mean 1/2, var 4/4/3
    ([1.0, 0.0], [[1, 1], [1, 1]], 0.0, [[0.866025, 0.866025], [-0.866025, -0.866025]]),
    # 1 . 0 0: mean 1/3, var (4 + 1 + 1)/9/2
    ([1.0, 0.0], [[1, 0], [1, 1]], 0.0, [[1.154701, 0.0], [-0.577350, -0.577350]]),
    # only one row has tokens, and they are equal
    ([1.0, 0.0], [[1, 1], [0, 0]], 0.0, [[0.0, 0.0], [0.0, 0.0]]),
    ([1.0, 1.0], [[1, 1], [1, 1]], 0.0, [[0.0, 0.0], [0.0, 0.0]]),
])
def test_reinforce_plus_plus_hand_numbers(scores, mask, kl_coef, expected):
    """The first row left its reference by log 2 per token.

    The KL to come lowers an early token more than a late one. The mean is over tokens.
    """
    logp = torch.tensor([[0.5, 0.5], [0.3, 0.3]]).log()
    ref_logp = torch.tensor([[0.25, 0.25], [0.3, 0.3]]).log()
    scores, mask = torch.tensor(scores), torch.tensor(mask)
    for junk in (0.0, NAN):
        leaf = logp.masked_fill(mask == 0, junk).requires_grad_()
        adv = reinforce_plus_plus_advantages(scores, leaf, ref_logp, mask, kl_coef)
        close(adv, expected, 3e-6)
        assert not adv.requires_grad
    with pytest.raises(ValueError, match="expected"):
        reinforce_plus_plus_advantages(scores[:, None], logp, ref_logp, mask, kl_coef)
    with pytest.raises(ValueError, match="finite"):
        reinforce_plus_plus_advantages(torch.tensor([NAN, 0.0]), logp, ref_logp, mask, kl_coef)


@pytest.mark.parametrize("rewards, expected", [
    # mean of all 3/5: what the prompt's other samples got does not matter
    ([[1.0, 1.0], [1.0, 0.0], [0.0, NAN]], [[0.4, 0.4], [0.4, -0.6], [-0.6, 0.0]]),
    ([[2.0], [4.0], [NAN]], [[-1.0], [1.0], [0.0]]),
    ([[0.7] * 4] * 2, [[0.0] * 4] * 2),
    ([[NAN, NAN]], [[0.0, 0.0]]),
    ([[5.0]], [[0.0]]),
])
def test_batch_mean_hand_numbers(rewards, expected):
    """rewards - rewards.nanmean() passed a NaN on to every weight, and gave each of eight 0.7 an
    advantage of 6e-8."""
    close(batch_mean_advantages(torch.tensor(rewards)), expected, 1e-6)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_batch_mean_by_enumeration(size):
    """All tosses of `size` coins of p = 0.3: the expected gradient is (N - 1) / N of p (1 - p),
    because the sample is in its own baseline."""
    rewards, chance, score = coin(0.3, size)
    adv = torch.stack([batch_mean_advantages(row[:, None])[:, 0] for row in rewards])
    expected = (chance * (adv * score).mean(1)).sum().item()
    assert expected == pytest.approx((size - 1) / size * 0.3 * 0.7, abs=1e-12)


# ---- numbers as computers hold them

def test_group_advantages_in_float16():
    """300 squared overflows float16: the std was infinite, and every advantage 0."""
    rewards = torch.tensor([[300.0, 0.0, 0.0, 0.0]]).half()  # mean 75, std 150
    adv = group_advantages(rewards, eps=0.0)
    assert adv.dtype == torch.float16 and adv.tolist() == [[1.5, -0.5, -0.5, -0.5]]


SUMS = [0.3, 0.1 + 0.2, 0.3]  # the second is 0.30000000000000004


@pytest.mark.parametrize("advantages", [
    group_advantages,
    lambda r: group_advantages(r, scale="batch", eps=0.0),
    lambda r: group_advantages(r, eps=0.0),
    leave_one_out_advantages,
    maxrl_advantages,
    batch_mean_advantages,
    lambda r: opo_advantages(r, torch.tensor([[1, 2, 3]])),
    lambda r: process_advantages(r[None], eps=0.0)[0],
])
@pytest.mark.parametrize("rewards", [
    torch.tensor([SUMS], dtype=torch.float64),
    torch.tensor([[1e6, 1e6 + 0.0625, 1e6]]),
    torch.tensor([[0.7, 0.703, 0.7]]).bfloat16(),
    torch.tensor([[1.0, 1 - 2 ** -24, NAN]]),
])
def test_rewards_that_differ_by_rounding_alone_are_equal(advantages, rewards):
    """Weighted sums of the same rewards, added in two orders, are no difference to learn from.

    Yet one sample had an advantage of 1.15 without eps, and its group counted as one that learns.
    """
    assert rewards[0, 0] != rewards[0, 1]
    assert zero_spread(rewards).item() and not dynamic_sampling(rewards).item()
    assert (advantages(rewards) == 0).all()


@pytest.mark.parametrize("advantages", [
    leave_one_out_advantages,
    batch_mean_advantages,
    maxrl_advantages,
    group_advantages,
    lambda r: group_advantages(r, scale="batch"),
    lambda r: opo_advantages(r, torch.full(r.shape, 1000)),
])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_large_groups_in_narrow_types(advantages, dtype):
    """The sum of 512 rewards around 300 overflows float16, and so does that of 512 lengths: the
    mean was infinite, and the advantages NaN."""
    rewards = torch.tensor([[304.0] * 256 + [296.0] * 256]).to(dtype)
    expected = advantages(rewards.double())
    assert advantages(rewards).dtype == dtype
    torch.testing.assert_close(advantages(rewards).double(), expected, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("advantages", [
    group_advantages,
    lambda r: group_advantages(r, scale="batch"),
    leave_one_out_advantages,
    maxrl_advantages,
    batch_mean_advantages,
    lambda r: opo_advantages(r, r),
])
def test_no_prompts(advantages):
    assert advantages(torch.zeros(0, 4)).shape == (0, 4)
    with pytest.raises(ValueError, match="expected"):
        advantages(torch.zeros(4, 0))


def test_no_tokens():
    """Rows of width 0, as in a batch whose completions are all empty, were an IndexError."""
    none = torch.zeros(2, 0)
    assert [x.shape for x in gae(none, none, none)] == [(2, 0)] * 2
    assert discounted_returns(none, none).shape == (2, 0)


def test_no_prompts_have_no_steps():
    assert process_advantages(torch.zeros(0, 2, 3)).shape == (0, 2, 3)


# ---- GDPO

@pytest.mark.parametrize("rewards, weights, adv", [
    # two samples: z-scores ±0.707 each, then the sum's again
    ([[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0], [0.0, 0.0]),
    ([[1.0, 0.0], [0.0, 1.0]], [2.0, 1.0], [0.707107, -0.707107]),
    ([[1.0, 0.0], [0.0, 1.0]], [1.0, 2.0], [-0.707107, 0.707107]),
    ([[9.0, 1.0], [0.0, 0.0]], [1.0, 1.0], [0.707107, -0.707107]),
    # four samples, 1 and 2 right: z 1.5 -.5 -.5 -.5 and .866 .866 -.866 -.866: sums 2.366 .366
    # -1.366 -1.366, squares 5.598 .134 1.866 1.866 = 9.464, / 3 = 3.155, root 1.776
    ([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]], [1.0, 1.0],
     [1.332, 0.206, -0.769, -0.769]),
])
def test_gdpo_hand_numbers(rewards, weights, adv):
    for w in (weights, tuple(weights), torch.tensor(weights)):
        came = gdpo_advantages(torch.tensor([rewards]), w, eps=0.0)
        torch.testing.assert_close(came, torch.tensor([adv]), atol=6e-4, rtol=0)


def test_gdpo_of_one_reward_is_whitened_twice():
    """Over one prompt the second z-score changes nothing; over several it is that of the batch: 4
    samples of 2 prompts have variance 1/2 each, 2 * 0.5 / 3 in all."""
    rewards = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(gdpo_advantages(rewards[..., None], [1.0], eps=0.0),
                               group_advantages(rewards, eps=0.0))
    two = gdpo_advantages(torch.tensor([[[3.0], [1.0]], [[5.0], [1.0]]]), [1.0], eps=0.0)
    torch.testing.assert_close(two, torch.tensor([[1.0, -1.0]] * 2) * math.sqrt(3) / 2)


def test_gdpo_does_not_see_the_scale_of_a_reward():
    """Each reward times its own factor, plus its own constant per prompt: the same advantages.
    GRPO's sum would be all of the second reward."""
    rewards = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)).double()
    moved = rewards * torch.tensor([0.01, 1000.0]) + torch.randn(3, 1, 2).double()
    torch.testing.assert_close(gdpo_advantages(moved, [1.0, 0.5], eps=0.0),
                               gdpo_advantages(rewards, [1.0, 0.5], eps=0.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gdpo_of_rewards_that_cancel_is_exactly_zero(dtype):
    """0.7 and 0.3 for 0.3 and 0.7: the z-scores add up to rounding, 6e-8 and not 0, and the second
    z-score would make 1 of it."""
    rewards = torch.tensor([[[0.7, 0.3], [0.3, 0.7], [0.7, 0.3]]], dtype=dtype)
    adv = gdpo_advantages(rewards, [1.0, 1.0], eps=1e-12)
    assert adv.dtype == dtype and (adv == 0).all()
    for value in (0.1, 0.3, 0.7):  # no reward has any spread
        assert (gdpo_advantages(torch.full((2, 8, 3), value, dtype=dtype), [1.0] * 3) == 0).all()


def test_gdpo_of_missing_verdicts():
    """The second reward says nothing of the third sample, which then counts with the first alone;
    nobody says anything of the fourth: 0, and it is in no mean. z of the first: 1.155 -.577 -.577;
    of the second .707 -.707 0: sums 1.862 -1.284 -.577, squares 3.467 1.650 .333, / 2, root
    1.651."""
    nan = float("nan")
    rewards = torch.tensor([[[1.0, 1.0], [0.0, 0.0], [0.0, nan], [nan, nan]]])
    adv = gdpo_advantages(rewards, [1.0, 1.0], eps=0.0)
    torch.testing.assert_close(adv, torch.tensor([[1.128, -0.778, -0.350, 0.0]]), atol=6e-4,
                               rtol=0)


def test_gdpo_of_whole_numbers_and_of_no_prompt():
    assert gdpo_advantages(torch.tensor([[[1, 0], [0, 0]]]), [1, 1], eps=0.0).tolist() == [
        pytest.approx([0.707107, -0.707107])]
    assert gdpo_advantages(torch.zeros(0, 4, 2), [1.0, 1.0]).shape == (0, 4)


# ---- pass@k

@pytest.mark.parametrize("rewards, k, adv", [
    ([3.0, 1.0, 2.0, 0.0], None, [1.0, 0.0, 0.0, 0.0]),
    ([3.0, 1.0, 2.0, 0.0], 4, [1.0, 0.0, 0.0, 0.0]),
    # k = 3: the 3 beats 2, 2, 1 in its pairs of others; the 2 beats 1 in {1, 0} alone
    ([3.0, 1.0, 2.0, 0.0], 3, [4 / 3, 0.0, 1 / 3, 0.0]),
    # k = 2: 3 beats 1 2 0 by 2 1 3; 1 beats 0 by 1; 2 beats 1 and 0 by 1 and 2
    ([3.0, 1.0, 2.0, 0.0], 2, [2.0, 1 / 3, 1.0, 0.0]),
    ([1.0, 1.0, 0.0], None, [0.0, 0.0, 0.0]),
    ([1.0, 1.0, 0.0], 2, [0.5, 0.5, 0.0]),
    ([-1.0, -3.0], None, [2.0, 0.0]),
    ([1.0, NAN, 0.0], None, [1.0, 0.0, 0.0]),
    ([1.0, NAN, 0.0], 3, [0.0, 0.0, 0.0]),
    ([1.0, NAN, 0.0], 2, [1.0, 0.0, 0.0]),
    ([1.0, NAN, NAN], None, [0.0, 0.0, 0.0]),
    ([NAN, NAN], 2, [0.0, 0.0]),
])
def test_pass_at_k_hand_numbers(rewards, k, adv):
    came = pass_at_k_advantages(torch.tensor([rewards]), k=k)
    torch.testing.assert_close(came, torch.tensor([adv]))


@pytest.mark.parametrize("size", [4, 6])
def test_pass_at_k_is_the_mean_over_all_sets(size):
    """max with i minus max without i, over all sets of k that hold i, literally."""
    rewards = torch.randn(2, size, generator=torch.Generator().manual_seed(0)).double()
    rewards[1, 1] = rewards[1, 0]
    for k in range(2, size + 1):
        adv = pass_at_k_advantages(rewards, k=k)
        for row, came in zip(rewards.tolist(), adv.tolist(), strict=True):
            for i in range(size):
                others = [x for j, x in enumerate(row) if j != i]
                sets = list(itertools.combinations(others, k - 1))
                gains = [max(0.0, row[i] - max(rest)) for rest in sets]
                assert came[i] == pytest.approx(sum(gains) / len(sets), abs=1e-12)


def test_pass_at_k_of_right_and_wrong_by_counting():
    """c right of G: a right one is alone in C(G - c, k - 1) of its C(G - 1, k - 1) sets. Large
    groups keep their digits."""
    for size, right, k in ((8, 2, 4), (64, 3, 16), (200, 5, 100)):
        rewards = torch.zeros(1, size).double()
        rewards[0, :right] = 1
        adv = pass_at_k_advantages(rewards, k=k)
        share = math.comb(size - right, k - 1) / math.comb(size - 1, k - 1)
        assert adv[0, :right].tolist() == pytest.approx([share] * right, rel=1e-9)
        assert (adv[0, right:] == 0).all()


def test_pass_at_k_of_equal_rewards_is_exactly_zero():
    for value in (0.1, 0.3, 0.7, 1e6):
        for k in (2, 5, None):
            assert (pass_at_k_advantages(torch.full((2, 5), value), k=k) == 0).all()


@pytest.mark.parametrize("call, message", [
    (lambda: gdpo_advantages(torch.zeros(2, 3), [1.0]), r"rewards \(2, 3\).*\(P, G, K\)"),
    (lambda: gdpo_advantages(torch.zeros(2, 3, 2), [1.0]), r"weights \(1,\)"),
    (lambda: gdpo_advantages(torch.zeros(2, 3, 2), 1.0), r"weights \(\)"),
    (lambda: gdpo_advantages(torch.zeros(2, 0, 2), [1.0, 1.0]), r"\(2, 0, 2\)"),
    (lambda: gdpo_advantages(torch.zeros(2, 3, 0), []), r"\(2, 3, 0\)"),
    (lambda: gdpo_advantages(torch.full((1, 2, 1), math.inf), [1.0]), "infinite"),
    (lambda: gdpo_advantages(torch.zeros(1, 2, 1, requires_grad=True), [1.0]), "requires grad"),
    (lambda: pass_at_k_advantages(torch.zeros(2, 3), k=1), "k is 1 and the group has 3 samples"),
    (lambda: pass_at_k_advantages(torch.zeros(2, 3), k=4), "k is 4"),
    (lambda: pass_at_k_advantages(torch.zeros(3)), r"\(3,\)"),
    (lambda: pass_at_k_advantages(torch.full((1, 2), math.inf)), "infinite"),
])
def test_bad_arguments_of_the_newer_ones_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
