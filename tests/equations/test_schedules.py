"""Tests of minirl.equations.schedules."""

import pytest

from minirl.equations.schedules import cosine_to_floor


@pytest.mark.parametrize("steps, options, expected", [
    (5, {}, [1.0, 0.868198, 0.55, 0.231802, 0.1]),                    # .1 + .9 (1 + c) / 2 with c = 1, .707107, 0, -.707107, -1
    (3, {"floor": 0.0}, [1.0, 0.5, 0.0]),
    (3, {"floor": 1.0}, [1.0, 1.0, 1.0]),
    (5, {"warmup": 2}, [1 / 3, 2 / 3, 1.0, 0.55, 0.1]),
    (4, {"warmup": 3, "floor": 0.5}, [0.25, 0.5, 0.75, 1.0]),         # all warm-up: the peak is the last step
    (1, {}, [1.0]),
    (2, {}, [1.0, 0.1]),
])
def test_hand_numbers(steps, options, expected):
    assert [cosine_to_floor(s, steps, **options) for s in range(steps)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("floor, warmup", [(0.1, 0), (0.0, 10), (0.3, 99)])
def test_rises_then_falls_to_the_floor(floor, warmup):
    """The first step already learns (factor above 0), the peak is 1, and the last step is at the floor: no off-by-one at either end."""
    factors = [cosine_to_floor(s, 101, floor=floor, warmup=warmup) for s in range(101)]
    assert factors[0] > 0 and max(factors) == factors[warmup] == 1.0 and factors[-1] == pytest.approx(floor, abs=1e-12)
    assert factors[:warmup + 1] == sorted(factors[:warmup + 1]) and factors[warmup:] == sorted(factors[warmup:], reverse=True)


@pytest.mark.parametrize("step, steps, options", [
    (5, 5, {}), (-1, 5, {}), (0, 0, {}), (0, 5, {"floor": -0.1}), (0, 5, {"floor": 1.1}), (0, 5, {"floor": float("nan")}),
    (0, 5, {"warmup": 5}), (0, 5, {"warmup": -1}),
])
def test_bad_arguments_raise(step, steps, options):
    with pytest.raises(ValueError, match="wanted"):
        cosine_to_floor(step, steps, **options)
