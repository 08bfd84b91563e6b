"""minirl/lm/rope.py: the turn by hand, its pairs, and what stretching leaves alone."""

import math

import pytest
import torch

from minirl.lm.rope import Rope, rotate, scale_frequencies


def turned(rope, x, position):
    return rotate(x.view(1, 1, 1, -1), *rope(torch.tensor([position]), x.dtype)).flatten()


@pytest.mark.parametrize("x, position, expected", [
    ([1.0, 0.0], 0, [1.0, 0.0]),
    ([1.0, 0.0], 1, [0.5403, 0.8415]),
    ([0.0, 1.0], 1, [-0.8415, 0.5403]),
    ([1.0, 0.0], 2, [-0.4161, 0.9093]),
])
def test_rope_turns_two_features_by_the_position(x, position, expected):
    """One pair: frequency theta^0 = 1, so position 1 turns by one radian: cos 1 = 0.5403,
    sin 1 = 0.8415."""
    rope = Rope(2, 4, theta=10_000.0, scaling=None)
    torch.testing.assert_close(turned(rope, torch.tensor(x), position), torch.tensor(expected),
                               atol=1e-4, rtol=0)


@pytest.mark.parametrize("feature, expected", [
    (0, [0.5403, 0.0, 0.8415, 0.0]),
    (1, [0.0, 0.9950, 0.0, 0.0998]),
])
def test_rope_pairs_the_halves_and_not_the_neighbours(feature, expected):
    """D = 4, theta = 100: features (0, 2) turn by 1 a position, features (1, 3) by
    100^(-1/2) = 0.1. cos 0.1 = 0.9950, sin 0.1 = 0.0998."""
    rope = Rope(4, 4, theta=100.0, scaling=None)
    torch.testing.assert_close(turned(rope, torch.eye(4)[feature], 1), torch.tensor(expected),
                               atol=1e-4, rtol=0)


def test_rope_scores_depend_on_the_distance_alone():
    rope = Rope(8, 64, theta=10_000.0, scaling=None).double()
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(8, generator=g, dtype=torch.float64) for _ in range(2))

    def score(m, n):
        return float(turned(rope, q, m) @ turned(rope, k, n))

    assert score(12, 9) == pytest.approx(score(5, 2), abs=1e-5)
    assert score(63, 60) == pytest.approx(score(5, 2), abs=1e-5)
    assert abs(score(6, 2) - score(5, 2)) > 1e-2


def test_llama3_scaling_keeps_fast_turns_and_slows_slow_ones():
    """Turns within the first 8192 positions: from 4 on they keep their frequency, up to 1 it is
    divided by 8, and halfway (2.5) it is the mean: (1 + 1/8) / 2 = 0.5625."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    turns = torch.tensor([100.0, 4.0, 2.5, 1.0, 0.1], dtype=torch.float64)
    f = turns * 2 * math.pi / 8192
    expected = torch.tensor([1.0, 1.0, 0.5625, 0.125, 0.125], dtype=torch.float64)
    torch.testing.assert_close(scale_frequencies(f, scaling) / f, expected)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "default"}, {"type": "default"}], ids=str)
def test_no_scaling(scaling):
    assert scale_frequencies(torch.ones(3), scaling).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_unknown_rope_scaling_raises(make_model, key):
    with pytest.raises(ValueError, match="yarn"):
        make_model(rope_scaling={key: "yarn", "factor": 4.0})
