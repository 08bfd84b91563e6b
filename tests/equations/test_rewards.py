"""Tests of minirl.equations.rewards."""

import pytest
import torch

from minirl.equations.rewards import (
    cosine_length_reward,
    overlong_penalty,
    repetition_penalty,
    reward_bias,
    reward_gain_and_bias,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("length, options, expected", [
    # DAPO's own numbers: free up to 20480 - 4096 = 16384, half way down at 18432
    (0, {}, 0.0),
    (16_383, {}, 0.0),
    (16_384, {}, 0.0),
    (17_408, {}, -0.25),
    (18_432, {}, -0.5),
    (20_480, {}, -1.0),
    (20_481, {}, -1.0),
    (10 ** 6, {}, -1.0),
    (6, {"max_length": 10, "cache": 4}, 0.0),
    (7, {"max_length": 10, "cache": 4}, -0.25),
    (10, {"max_length": 10, "cache": 4}, -1.0),
    # all slope
    (5, {"max_length": 10, "cache": 10}, -0.5),
    # a cliff
    (9, {"max_length": 10, "cache": 1}, 0.0),
    (10, {"max_length": 10, "cache": 1}, -1.0),
])
def test_overlong_penalty_hand_numbers(length, options, expected):
    """At the longest allowed length the line has reached -1: no jump where the answer is cut off.

    No penalty is 0 and not -0, which prints as a penalty.
    """
    penalty = overlong_penalty(torch.tensor([length, 0]), **options)
    assert penalty.tolist() == [expected, 0.0] and penalty.is_floating_point()
    assert torch.equal(penalty.signbit(), penalty < 0)


def test_overlong_penalty_shapes_and_dtypes():
    lengths = torch.tensor([[4, 7], [8, 12]])
    for dtype in (torch.int16, torch.int64, torch.float32):
        penalty = overlong_penalty(lengths.to(dtype), max_length=10, cache=4)
        assert penalty.tolist() == [[0.0, -0.25], [-0.5, -1.0]]
        assert overlong_penalty(lengths.tolist(), max_length=10, cache=4).tolist() == \
            penalty.tolist()
    assert overlong_penalty(torch.tensor([]), max_length=10, cache=4).shape == (0,)


@pytest.mark.parametrize("lengths, options, message", [
    ([1, -1], {}, "least length -1"),
    ([1], {"cache": 0}, "cache 0"),
    ([1], {"cache": -4}, "cache"),
    ([1], {"max_length": 10, "cache": 11}, "max_length is 10, cache 11"),
    ([], {"cache": 0}, "the least length 0"),
])
def test_overlong_penalty_bad_arguments_raise(lengths, options, message):
    with pytest.raises(ValueError, match=message + ".*expected"):
        overlong_penalty(torch.tensor(lengths), **options)


# cos 0°, 60°, 90°, 120°: shares 1, 3/4, 1/2, 1/4 of the way from the longest to the shortest
@pytest.mark.parametrize("length, if_right, if_wrong", [
    (0, 2.0, -10.0), (4, 1.75, -7.5), (6, 1.5, -5.0), (8, 1.25, -2.5),
    (12, -10.0, -10.0), (13, -10.0, -10.0)])
def test_cosine_length_reward_hand_numbers(length, if_right, if_wrong):
    both = cosine_length_reward([length, length], [True, False], max_length=12)
    assert both.tolist() == pytest.approx([if_right, if_wrong], abs=1e-6)


def test_cosine_length_reward_turns_the_wish_for_length_over():
    """A right answer should be short, a wrong one long; no wrong one is worth a right one."""
    lengths = torch.arange(100)
    right = cosine_length_reward(lengths, torch.ones(100), max_length=100)
    wrong = cosine_length_reward(lengths, torch.zeros(100), max_length=100)
    assert (right.diff() < 0).all() and (wrong.diff() > 0).all()
    assert right.min() > 1 and wrong.max() < 0
    # one token before the end, 1 - cos(π/100) = 4.93e-4: half of it, of 1 and of 10
    assert (right[-1] - 1).item() == pytest.approx(2.467e-4, abs=2e-7)
    assert wrong[-1].item() == pytest.approx(-2.467e-3, abs=2e-6)


def test_cosine_length_reward_shapes_and_dtypes():
    lengths = torch.tensor([[0, 50], [100, 50]])
    correct = torch.tensor([[1, 0], [1, 1]])
    for kind in (torch.int64, torch.float32, torch.float64, torch.bool):
        reward = cosine_length_reward(lengths, correct.to(kind), max_length=100)
        assert reward.dtype == torch.float32
        assert reward.tolist() == [[2.0, pytest.approx(-5.0, abs=1e-6)],
                                   [-10.0, pytest.approx(1.5, abs=1e-6)]]
    assert cosine_length_reward(lengths.double(), correct, max_length=9).dtype == torch.float64
    assert cosine_length_reward([], [], max_length=9).shape == (0,)


@pytest.mark.parametrize("lengths, correct, options, message", [
    ([1.0, 2.0], [True], {}, r"lengths \(2,\), correct \(1,\)"),
    ([[1.0]], [True], {}, r"lengths \(1, 1\), correct \(1,\)"),
    ([1.0, -2.0], [True, True], {}, "the least length is -2.0"),
    ([1.0], [True], {"max_length": 0}, "max_length is 0")])
def test_cosine_length_reward_bad_arguments_raise(lengths, correct, options, message):
    with pytest.raises(ValueError, match=message + ".*expected"):
        cosine_length_reward(lengths, correct, **options)


@pytest.mark.parametrize("tokens, options, penalty", [
    ("abab", {"n": 2}, -1 / 3),               # ab ba ab
    ("aaaa", {"n": 1}, -3 / 4),
    ("aaaa", {"n": 4}, 0.0),
    ("aaaa", {"n": 5}, 0.0),
    ("abcabc", {}, -1 / 4),                   # abc bca cab abc
    ("abcabc", {"max_penalty": -8.0}, -2.0),
    ("aaaa", {"max_penalty": 0.0}, 0.0),
    ("", {}, 0.0)])
def test_repetition_penalty_hand_numbers(tokens, options, penalty):
    """No penalty is 0 and not -0, which prints as a penalty. Words, ids and tensors count alike."""
    ids = [ord(token) for token in tokens]
    for form in (tokens, list(tokens), ids, tuple(ids), torch.tensor(ids)):
        value = repetition_penalty(form, **options)
        assert value == pytest.approx(penalty) and str(value) != "-0.0"


def test_repetition_penalty_grows_to_its_maximum():
    penalties = [repetition_penalty([7] * length) for length in range(1, 200)]
    assert penalties == sorted(penalties, reverse=True) and -1 < penalties[-1] < -0.99


@pytest.mark.parametrize("options", [{"n": 0}, {"n": -1}, {"max_penalty": 0.1},
                                     {"max_penalty": NAN}])
def test_repetition_penalty_bad_arguments_raise(options):
    with pytest.raises(ValueError, match="expected n of at least 1"):
        repetition_penalty([1, 1], **options)


@pytest.mark.parametrize("scores, bias", [
    ([1.0, 3.0], -2.0), ([-0.5], 0.5), ([4.0, 4.0, 4.0, -12.0], 0.0), ([0.0, 0.0, 6.0], -2.0),
])
def test_reward_bias_hand_numbers(scores, bias):
    """The bias is added: a reward model that gives demonstrations 2 is moved down by 2."""
    scores = torch.tensor(scores)
    assert reward_bias(scores).item() == bias
    assert (scores + reward_bias(scores)).mean().item() == 0.0


@pytest.mark.parametrize("scores, options, gain, bias", [
    # mean 2, std of the population 1 (n - 1 would give 1.41)
    ([1.0, 3.0], {}, 1.0, -2.0),
    # 2 r + 1 = 3 and 7
    ([1.0, 3.0], {"mean": 5.0, "std": 2.0}, 2.0, 1.0),
    # mean 1, var (3 + 9) / 4 = 3
    ([0.0, 0.0, 0.0, 4.0], {}, 0.577350, -0.577350),
    # r / 2 - 2 = -1.5 and -.5
    ([1.0, 3.0], {"std": 0.5, "mean": -1.0}, 0.5, -2.0),
])
def test_reward_gain_and_bias_hand_numbers(scores, options, gain, bias):
    """The mean is the mean after the gain: a bias of mean - mean(r) forgets it."""
    scores = torch.tensor(scores)
    actual = reward_gain_and_bias(scores, **options)
    assert [x.item() for x in actual] == pytest.approx([gain, bias], abs=1e-6)
    scaled = actual[0] * scores + actual[1]
    assert scaled.mean().item() == pytest.approx(options.get("mean", 0.0), abs=1e-6)
    assert scaled.std(correction=0).item() == pytest.approx(options.get("std", 1.0), abs=1e-6)


def test_scores_that_are_all_equal_raise():
    """An untrained reward model, or a head that always gives 0.9: the float32 mean of three 0.9 is
    not 0.9, so their spread was 6e-8 and the gain 16,777,216."""
    for n in range(2, 65):
        for value in torch.arange(1, 24, dtype=torch.float64).div(10).float():
            with pytest.raises(ValueError, match=f"{n} scores without any spread"):
                reward_gain_and_bias(value.repeat(n))


@pytest.mark.parametrize("scores, message", [
    (torch.tensor([]), r"\(0,\)"),
    (torch.tensor(1.0), r"\(\)"),
    (torch.ones(2, 2), r"\(2, 2\)"),
    (torch.tensor([1.0, NAN]), "1 of them"),
    (torch.tensor([INF, -INF]), "2 of them"),
])
@pytest.mark.parametrize("function", [reward_bias, reward_gain_and_bias])
def test_bad_scores_raise(function, scores, message):
    with pytest.raises(ValueError, match=message + ".*expected"):
        function(scores)


def test_one_score_has_no_spread():
    with pytest.raises(ValueError, match="1 scores without any spread"):
        reward_gain_and_bias(torch.tensor([1.0]))


def test_scores_that_differ_by_rounding_alone_have_no_spread():
    """0.3 and 0.1 + 0.2: with a gain of 1.8e16 the rewards would be made of the last digit."""
    for scores in ([0.3, 0.1 + 0.2], [1.0, 1 - 2 ** -53]):
        with pytest.raises(ValueError, match="2 scores without any spread"):
            reward_gain_and_bias(torch.tensor(scores, dtype=torch.float64))
