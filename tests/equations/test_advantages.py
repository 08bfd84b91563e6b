"""Tests of minirl.equations.advantages."""

import itertools

import pytest
import torch

from minirl.equations.advantages import group_advantages, zero_spread

NAN, INF = float("nan"), float("inf")
every_scale = pytest.mark.parametrize("scale", ["group", "batch", "none"])


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
    # batch: mean of all 3/4, squares 3/16 + 9/16 = 3/4, std 1/2 or .433013; the mean that is taken off stays the group's 1/2
    ([[1.0, 0.0], [1.0, 1.0]], {"scale": "batch"}, [[0.9998, -0.9998], [0.0, 0.0]]),
    ([[1.0, 0.0], [1.0, 1.0]], {"scale": "batch", "ddof": 0}, [[1.1544, -1.1544], [0.0, 0.0]]),
])
def test_hand_numbers(rewards, options, expected):
    """Divide by n or by n - 1, or not at all: the same four rewards give 1.73, 1.50 or 0.75, and at G = 2 always +-1 or +-0.71."""
    torch.testing.assert_close(group_advantages(torch.tensor(rewards), **options), torch.tensor(expected), atol=6e-5, rtol=0)


@pytest.mark.parametrize("p, options, mean, variance", [
    (0.1, {"scale": "none"}, 0.07875, 0.00573), (0.1, {}, 0.19591, 0.03049), (0.1, {"ddof": 0}, 0.20944, 0.03485),
    (0.5, {"scale": "none"}, 0.21875, 0.00171), (0.5, {}, 0.43387, 0.00309), (0.5, {"ddof": 0}, 0.46381, 0.00353),
    (0.9, {"scale": "none"}, 0.07875, 0.00573), (0.9, {}, 0.19591, 0.03049), (0.9, {"ddof": 0}, 0.20944, 0.03485),
])
def test_policy_gradient_by_enumeration(p, options, mean, variance):
    """A coin that pays its own side, all 2^8 groups: the true gradient is p (1 - p). Without std the estimate is 7/8 of it, since each sample is
    in its own baseline; with std it is 2.2 times too long at p = .1 and 1.7 times at p = .5: easy and hard prompts weigh more."""
    rewards = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)), dtype=torch.float64)          # (256, 8)
    chance = (p ** rewards * (1 - p) ** (1 - rewards)).prod(1)                              # (256,)
    estimate = (group_advantages(rewards, **options) * (rewards - p)).mean(1)                # d log pi / d logit = action - p
    exact = (chance * estimate).sum()
    assert exact.item() == pytest.approx(mean, abs=6e-6)
    assert (chance * (estimate - exact).square()).sum().item() == pytest.approx(variance, abs=1e-5)
    if options.get("scale") == "none":
        assert exact.item() == pytest.approx(7 / 8 * p * (1 - p), abs=1e-12)


@every_scale
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_rewards_give_exactly_zero(scale, dtype):
    """The float32 mean of eight 0.7 is off by 6e-8, so is the std, and their quotient was an advantage of 0.8 for every sample: learning from
    nothing. Beside a group that differs, so that the batch's std is not 0 either."""
    for n in range(2, 17):
        equal = (torch.arange(1, 24, dtype=torch.float64) / 10)[:, None].expand(23, n)       # .1 .. 2.3, n times each
        rewards = torch.cat([equal, torch.tensor([[0.0] + [1.0] * (n - 1)])]).to(dtype)
        for ddof in (0, 1):
            adv = group_advantages(rewards, scale=scale, ddof=ddof, eps=1e-8)
            assert adv[:-1].abs().max() == 0 and adv[-1].abs().max() > 0.1
        assert group_advantages(rewards[6:7], scale=scale).abs().max() == 0                  # and alone


@every_scale
def test_no_verdict_is_left_out(scale):
    """One NaN reward used to make NaN of the group, and through the batch's std of every group."""
    rewards = torch.tensor([[1.0, NAN, 0, 0, 0], [NAN] * 5, [NAN, 3.0, NAN, NAN, NAN], [2.0, 2, NAN, 2, 2]])
    adv = group_advantages(rewards, scale=scale)
    assert adv.isfinite().all() and adv[0, 1] == 0 and (adv[1:] == 0).all()
    if scale == "batch":          # judged: 1 0 0 0 3 2 2 2 2, mean 4/3, squares 26 - 16 = 10, std sqrt(10/8) = 1.118034; .75 / 1.118134
        torch.testing.assert_close(adv[0, [0, 2, 3, 4]], torch.tensor([0.6708, -0.2236, -0.2236, -0.2236]), atol=6e-5, rtol=0)
    else:
        torch.testing.assert_close(adv[0, [0, 2, 3, 4]], group_advantages(torch.tensor([[1.0, 0, 0, 0]]), scale=scale)[0])


@every_scale
def test_alone_in_its_group(scale):
    """n - 1 = 0 made NaN of a group of one."""
    assert group_advantages(torch.tensor([[1.0], [0.0], [NAN]]), scale=scale).tolist() == [[0.0], [0.0], [0.0]]


@every_scale
def test_groups_are_rows(scale):
    """Group and sample order carry no meaning; with "group" and "none" no group sees another; adding a constant to all rewards changes nothing."""
    rewards = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).double()
    adv, before = group_advantages(rewards, scale=scale), rewards.clone()
    rows, samples = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([5, 0, 3, 1, 2, 4])
    torch.testing.assert_close(group_advantages(rewards[rows][:, samples], scale=scale), adv[rows][:, samples])
    torch.testing.assert_close(group_advantages(rewards + 100, scale=scale), adv)
    torch.testing.assert_close(adv.sum(1), torch.zeros(5).double())
    assert ((adv > 0) == (rewards > rewards.mean(1, keepdim=True))).all() and not adv.requires_grad
    if scale != "batch":
        torch.testing.assert_close(group_advantages(rewards[2:3], scale=scale), adv[2:3])
    assert torch.equal(rewards, before)


@every_scale
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_dtypes_stay_finite(scale, dtype):
    adv = group_advantages(torch.tensor([[100, 0, 0, 0], [1, -1, 1, -1]], dtype=dtype), scale=scale)
    assert adv.isfinite().all() and (adv[:, 0] > 0).all() and adv.is_floating_point()


@pytest.mark.parametrize("rewards, options, message", [
    (torch.zeros(4), {}, "shape"), (torch.zeros(2, 2, 2), {}, "shape"), (torch.tensor(1.0), {}, "shape"),
    (torch.tensor([[1.0, INF]]), {}, "finite"), (torch.tensor([[1.0, -INF], [0.0, NAN]]), {"scale": "none"}, "finite"),
    (torch.zeros(2, 2, requires_grad=True), {}, "requires_grad"),
    (torch.zeros(2, 2), {"scale": "std"}, "scale"), (torch.zeros(2, 2), {"ddof": 2}, "ddof"), (torch.zeros(2, 2), {"ddof": -1}, "ddof"),
])
def test_bad_arguments_raise(rewards, options, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, **options)


@pytest.mark.parametrize("row, expected", [
    ([0.7] * 8, True), ([0.0], True), ([NAN, NAN], True), ([1.0, NAN, 1.0], True), ([NAN, 0.3], True), ([-2.0, -2.0], True),
    ([0.0, 1.0], False), ([NAN, 0.0, 1.0], False), ([-1.0, NAN], True),
    ([1.0, 1.0 + 2e-7], False),                    # different is different: a tolerance here would count groups that do learn
])
def test_zero_spread(row, expected):
    assert zero_spread(torch.tensor([row])).tolist() == [[expected]]
