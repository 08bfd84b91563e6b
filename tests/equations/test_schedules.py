"""Tests of minirl.equations.schedules."""

import pytest
import torch

from minirl.equations.schedules import cosine_to_floor, update_ema, warmup_to_constant

NAN = float("nan")


@pytest.mark.parametrize("steps, options, expected", [
    # .1 + .9 (1 + c) / 2 with c = 1, .707107, 0, -.707107, -1
    (5, {}, [1.0, 0.868198, 0.55, 0.231802, 0.1]),
    (3, {"floor": 0.0}, [1.0, 0.5, 0.0]),
    (3, {"floor": 1.0}, [1.0, 1.0, 1.0]),
    (5, {"warmup": 2}, [1 / 3, 2 / 3, 1.0, 0.55, 0.1]),
    # all warm-up: the peak is the last step
    (4, {"warmup": 3, "floor": 0.5}, [0.25, 0.5, 0.75, 1.0]),
    (1, {}, [1.0]),
    (2, {}, [1.0, 0.1]),
])
def test_hand_numbers(steps, options, expected):
    factors = [cosine_to_floor(s, steps, **options) for s in range(steps)]
    assert factors == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("floor, warmup", [(0.1, 0), (0.0, 10), (0.3, 99)])
def test_rises_then_falls_to_the_floor(floor, warmup):
    """The first step already learns (factor above 0), the peak is 1, and the last step is at the
    floor: no off-by-one at either end."""
    factors = [cosine_to_floor(s, 101, floor=floor, warmup=warmup) for s in range(101)]
    assert factors[0] > 0 and max(factors) == factors[warmup] == 1.0
    assert factors[-1] == pytest.approx(floor, abs=1e-12)
    assert factors[:warmup + 1] == sorted(factors[:warmup + 1])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


@pytest.mark.parametrize("step, steps, options", [
    (5, 5, {}),
    (-1, 5, {}),
    (0, 0, {}),
    (0, 5, {"floor": -0.1}),
    (0, 5, {"floor": 1.1}),
    (0, 5, {"floor": NAN}),
    (0, 5, {"warmup": 5}),
    (0, 5, {"warmup": -1}),
])
def test_bad_arguments_raise(step, steps, options):
    with pytest.raises(ValueError, match="expected"):
        cosine_to_floor(step, steps, **options)


@pytest.mark.parametrize("decay, steps, expected", [
    # 1 -> 2 and -1 -> 1: the distance left is 1 and 2, then .9 of it
    ({"decay": 0.9}, 1, [1.1, -0.8]),
    ({"decay": 0.9}, 2, [1.19, -0.62]),
    ({"decay": 1.0}, 5, [1.0, -1.0]),
    ({"decay": 0.0}, 1, [2.0, 1.0]),
    ({}, 1, [1.008, -0.984]),
    ({}, 100, [1.552114, 0.104228]),  # .992^100 = .447886
])
def test_update_ema_hand_numbers(decay, steps, expected):
    """In place, because the averages are a model's own weights.

    The weights themselves do not change, and nothing is on the graph.
    """
    average, frozen = torch.nn.Parameter(torch.tensor([1.0])), torch.tensor([[-1.0]])
    weights = [torch.nn.Parameter(torch.tensor([2.0])), torch.tensor([[1.0]]).double()]
    for _ in range(steps):
        update_ema(iter([average, frozen]), iter(weights), **decay)  # as model.parameters() is
    assert [average.item(), frozen.item()] == pytest.approx(expected, abs=2e-6)
    assert average.is_leaf and average.grad_fn is None
    assert [w.item() for w in weights] == [2.0, 1.0]


@pytest.mark.parametrize("averages, weights, decay", [
    ([1], [1], -0.1),
    ([1], [1], 1.1),
    ([1], [1], NAN),
    ([1, 1], [1], 0.9),
    ([1], [1, 1], 0.9),
    ([1, 2], [1, 3], 0.9),
    ([2], [1], 0.9),
])
def test_update_ema_bad_arguments_raise(averages, weights, decay):
    """zip would stop at the shorter list and lerp would broadcast (1,) over (2,).

    No average may have moved before the error is raised.
    """
    averages = [torch.zeros(n) for n in averages]
    with pytest.raises(ValueError, match="expected"):
        update_ema(averages, [torch.ones(n) for n in weights], decay=decay)
    assert all((a == 0).all() for a in averages)


def test_update_ema_in_low_precision_raises():
    """A step of 0.008 is lost beside 1 in bfloat16."""
    with pytest.raises(ValueError, match="bfloat16: expected float32 or float64"):
        update_ema([torch.ones(1).bfloat16()], [torch.zeros(1)])


def test_warmup_to_constant_by_hand():
    """InstructGPT, appendix C.4: 10 iterations from a tenth of the peak, then the peak."""
    rates = [warmup_to_constant(step) for step in range(12)]
    rising = [0.1, 0.19, 0.28, 0.37, 0.46, 0.55, 0.64, 0.73, 0.82, 0.91]
    assert rates == pytest.approx([*rising, 1.0, 1.0])
    assert warmup_to_constant(0, warmup=0) == 1.0
    assert warmup_to_constant(0, start=1.0) == 1.0
    assert warmup_to_constant(0, start=0.0) == 0.0
    assert warmup_to_constant(10 ** 9) == 1.0


@pytest.mark.parametrize("bad", [
    {"step": -1}, {"step": 0, "warmup": -1}, {"step": 0, "start": 1.5}, {"step": 0, "start": NAN},
])
def test_warmup_to_constant_bad_arguments_raise(bad):
    with pytest.raises(ValueError, match="expected"):
        warmup_to_constant(**bad)
