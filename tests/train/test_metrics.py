"""minirl/train/metrics.py"""

import pytest
import torch

from minirl.train.metrics import NonFiniteError, Sums, check_finite, check_judged


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
