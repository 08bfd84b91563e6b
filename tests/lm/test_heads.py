"""One number per token, and one per sequence read by position."""

import pytest
import torch

from minirl.lm.heads import ScalarHead


def head_of(weight, bias):
    head = ScalarHead(len(weight))
    head.linear.weight.data, head.linear.bias.data = torch.tensor([weight]), torch.tensor([bias])
    return head


def test_by_hand():
    """w = (1, -2), b = 0.5: (3, 1) -> 3 - 2 + 0.5 = 1.5; (0, 0) -> 0.5; (1, 1) -> -0.5; (0, 2) -> -3.5."""
    head = head_of([1.0, -2.0], 0.5)
    hidden = torch.tensor([[[3.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 2.0]]])
    assert head(hidden).tolist() == [[1.5, 0.5], [-0.5, -3.5]]
    assert head.reward(hidden, torch.tensor([1, 0])).tolist() == [0.5, -0.5]
    assert head.reward(hidden, torch.tensor([0, 1])).tolist() == [1.5, -3.5]


def test_start_values():
    torch.manual_seed(0)
    head = ScalarHead(2499)
    assert head.linear.weight.detach().std() == pytest.approx(1 / 50, rel=0.1) and head.linear.bias.item() == 0.0


@torch.no_grad()
def test_a_reward_is_the_same_under_any_padding(model, ragged):
    """A reward model that searches for the first padding id reads the wrong token where a real token has that id (as EOS often does)."""
    torch.manual_seed(0)
    head, width, pad = ScalarHead(32), 9, 9                                # 9 is a real token of two rows as well
    lengths = torch.tensor([len(row) for row in ragged])
    want = torch.stack([head(model.hidden(torch.tensor([row])))[0, -1] for row in ragged])
    right = torch.tensor([row + [pad] * (width - len(row)) for row in ragged])
    torch.testing.assert_close(head.reward(model.hidden(right), lengths - 1), want, atol=1e-5, rtol=1e-5)
    left = torch.tensor([[pad] * (width - len(row)) + row for row in ragged])
    hidden = model.hidden(left, starts=width - lengths)
    torch.testing.assert_close(head.reward(hidden, torch.full((4,), width - 1)), want, atol=1e-5, rtol=1e-5)


def test_a_reward_sends_its_gradient_to_the_named_slot_alone():
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    ScalarHead(4).reward(hidden, torch.tensor([2, 0])).sum().backward()
    assert (hidden.grad.abs().sum(-1) > 0).tolist() == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize("last", [[3, 0], [-1, 0], [0], [0, 0, 0], [[0], [0]]], ids=str)
def test_a_wrong_last_slot_raises(last):
    with pytest.raises(ValueError, match=r"\[0, 3\) per row"):
        ScalarHead(4).reward(torch.zeros(2, 3, 4), torch.tensor(last))
