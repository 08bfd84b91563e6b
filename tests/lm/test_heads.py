"""One number per token, and one per sequence read by position."""

import pytest
import torch

from minirl.lm.heads import ScalarHead, ScalarModel, rollout_values, score_ids
from minirl.lm.rollouts import Rollouts, completion_batch


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


# a scalar model

ROWS = [([3, 4, 5], [6, 7]), ([3, 4, 5], [8]), ([9], [10, 11, 12, 13])]      # prompts and completions; the first two share their prompt


@pytest.fixture
def scalar_model(make_model):
    model = ScalarModel(make_model("qwen3"))
    model.head.linear.bias.data.fill_(0.25)
    return model.eval()


@torch.no_grad()
def plainly(model, ids):
    """V of the state behind a list of ids, from a pass over it alone."""
    return float(model.head(model.backbone.hidden(torch.tensor([ids])))[0, -1])


@torch.no_grad()
def test_values_stand_in_front_of_each_token_and_the_score_behind_the_last(scalar_model):
    """One slot off, and a value function has seen the token that it shall foresee, or a reward model has not seen the end."""
    model = scalar_model
    tokens, mask = completion_batch([p for p, _ in ROWS], [c for _, c in ROWS], 0, "cpu")
    values, end = model(tokens, mask)
    for row, (prompt, completion) in enumerate(ROWS):
        for t in range(tokens.shape[1]):
            expected = plainly(model, (prompt + completion)[:t]) if len(prompt) <= t < len(prompt) + len(completion) else 0.0
            assert float(values[row, t]) == pytest.approx(expected, abs=1e-5), (row, t)
        assert float(end[row]) == pytest.approx(plainly(model, prompt + completion), abs=1e-5)
    torch.testing.assert_close(model.scores(tokens, mask), end)


@torch.no_grad()
def test_a_value_is_the_score_of_the_prefix(scalar_model):
    """What a value function that starts from a reward model says first: InstructGPT, appendix C.4."""
    model = scalar_model
    tokens, mask = completion_batch([[9]], [[10, 11, 12, 13]], 0, "cpu")
    values, _ = model(tokens, mask)
    for t in range(2, 5):
        prefix, prefix_mask = completion_batch([[9]], [[10, 11, 12, 13][:t - 1]], 0, "cpu")
        assert float(model.scores(prefix, prefix_mask)) == pytest.approx(float(values[0, t]), abs=1e-5)


@torch.no_grad()
def test_padding_its_content_and_the_order_of_rows_change_nothing(scalar_model):
    model = scalar_model
    tokens, mask = completion_batch([p for p, _ in ROWS], [c for _, c in ROWS], 0, "cpu")
    values, end = model(tokens, mask)
    wider = torch.cat([tokens, torch.full((3, 4), 17)], dim=1)
    wider[~torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1) & (torch.arange(wider.shape[1]) >= 5)] = 5
    more = model(wider[[2, 0, 1]], torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1)[[2, 0, 1]])
    torch.testing.assert_close(more[0][:, :tokens.shape[1]], values[[2, 0, 1]], atol=1e-5, rtol=0)
    torch.testing.assert_close(more[1], end[[2, 0, 1]], atol=1e-5, rtol=0)


@torch.no_grad()
def test_rollout_values_and_score_ids_are_the_same_in_any_micro_batches(scalar_model):
    model = scalar_model
    tokens, mask = completion_batch([p for p, _ in ROWS], [c for _, c in ROWS], 0, "cpu")
    values, end = model(tokens, mask)
    rollouts = Rollouts(tokens, mask, torch.tensor([3, 3, 1]), torch.zeros(tokens.shape), torch.zeros(3, dtype=torch.bool))
    for budget in (1, 6, 1000):
        found = rollout_values(model, rollouts, token_budget=budget)
        torch.testing.assert_close(found[0], values, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[1], end, atol=1e-5, rtol=0)
        torch.testing.assert_close(score_ids(model, [p for p, _ in ROWS], [c for _, c in ROWS], 0, token_budget=budget), end, atol=1e-5, rtol=0)
    assert score_ids(model, [], [], 0).shape == (0,)


def test_a_shift_moves_every_value_and_score_alike(scalar_model):
    model = scalar_model
    tokens, mask = completion_batch([[3]], [[4, 5]], 0, "cpu")
    before = [x.detach() for x in model(tokens, mask)]
    model.shift(torch.tensor(1.5))
    after = model(tokens, mask)
    torch.testing.assert_close(after[0], before[0] + 1.5 * mask)
    torch.testing.assert_close(after[1], before[1] + 1.5)


def test_the_head_is_in_float32_also_where_products_are_not(scalar_model):
    """A reward in bfloat16 has two to three digits: of 3.14 and 3.15 one cannot be told from the other."""
    model = scalar_model
    tokens, mask = completion_batch([[3]], [[4, 5]], 0, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, end = model(tokens, mask)
    assert values.dtype == end.dtype == torch.float32


@pytest.mark.parametrize("mask, message", [([[0, 0, 0]], "nothing under it"), ([[1, 1, 0]], "asks for slot 0"), ([[0, 1]], "the same shape")])
def test_masks_that_a_scalar_model_refuses(mask, message, scalar_model):
    with pytest.raises(ValueError, match=message):
        scalar_model(torch.tensor([[3, 4, 5]]), torch.tensor(mask).bool())
