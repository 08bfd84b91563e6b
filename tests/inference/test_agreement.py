"""minirl/inference/agreement.py"""

import random

import pytest

from minirl.inference.agreement import agreement, area_under_curve

TRUE, FALSE = 1.0, 0.0


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    """Against all pairs, with ties, which count half."""
    rng = random.Random(0)
    for _ in range(50):
        good, bad = ([rng.randrange(6) / 5 for _ in range(rng.randrange(1, 9))] for _ in range(2))
        pairs = [(x > y) + (x == y) / 2 for x in good for y in bad]
        assert area_under_curve(good, bad) == pytest.approx(sum(pairs) / len(pairs))


def test_a_number_is_held_against_all_steps_so_far():
    """The second step is wrong; the third is true by itself, but no right way leads there."""
    result = agreement([[0.9, 0.6, 0.7], [0.9, 0.8, 0.7]], [[TRUE, FALSE, TRUE], [TRUE] * 3])
    assert result.steps == 6
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.ranked == pytest.approx((2 * 2 + 1 + 1 + 0.5 + 1) / 8)
    assert result.found == 0.0                                # no number is below 1/2


def test_the_first_wrong_step_must_be_found_exactly():
    truths = [[TRUE, FALSE], [TRUE, FALSE], [FALSE, FALSE], [TRUE, TRUE]]
    numbers = [[0.9, 0.1], [0.4, 0.1], [0.9, 0.9], [0.1, 0.1]]
    assert agreement(numbers, truths).found == pytest.approx(1 / 3)


def test_steps_without_a_verdict_are_left_out():
    result = agreement([[0.9, None], [0.2, 0.2]], [[TRUE, TRUE], [FALSE, None]])
    assert result.steps == 2 and result.accuracy == 1.0


@pytest.mark.parametrize("truth, found", [(TRUE, None), (FALSE, 1.0)])
def test_where_all_steps_are_alike_there_is_no_order(truth, found):
    result = agreement([[0.4, 0.6]], [[truth, truth]])
    assert result.ranked is None and result.found == found and result.accuracy == 0.5


@pytest.mark.parametrize("numbers, truths, message", [
    ([[0.5]], [[TRUE, TRUE]], "1 numbers for 2 steps"),
    ([[None]], [[TRUE]], "nothing to compare"),
    ([], [], "nothing to compare"),
])
def test_what_cannot_be_compared(numbers, truths, message):
    with pytest.raises(ValueError, match=message):
        agreement(numbers, truths)
