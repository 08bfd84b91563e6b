"""minirl/lm/heads.py: one number per token, and one per sequence, read by position."""

import pytest
import torch

from minirl.lm.heads import ScalarHead, ScalarModel, rollout_values, score_ids, value_model_from
from minirl.lm.rollouts import Rollouts, completion_batch


def head_of(weight, bias):
    head = ScalarHead(len(weight))
    head.linear.weight.data, head.linear.bias.data = torch.tensor([weight]), torch.tensor([bias])
    return head


def test_by_hand():
    """w = (1, -2), b = 0.5: (3, 1) -> 3 - 2 + 0.5 = 1.5; (0, 0) -> 0.5; (1, 1) -> -0.5;
    (0, 2) -> -3.5."""
    head = head_of([1.0, -2.0], 0.5)
    hidden = torch.tensor([[[3.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 2.0]]])
    assert head(hidden).tolist() == [[1.5, 0.5], [-0.5, -3.5]]
    assert head.reward(hidden, torch.tensor([1, 0])).tolist() == [0.5, -0.5]
    assert head.reward(hidden, torch.tensor([0, 1])).tolist() == [1.5, -3.5]


def test_start_values():
    torch.manual_seed(0)
    head = ScalarHead(2499)
    assert head.linear.weight.detach().std() == pytest.approx(1 / 50, rel=0.1)
    assert head.linear.bias.item() == 0.0


@torch.no_grad()
def test_a_reward_is_the_same_under_any_padding(model, ragged):
    """A reward model that searches for the first padding id reads the wrong token where a real
    token has that id, as EOS often does. 9 is a real token of two rows as well."""
    torch.manual_seed(0)
    head, width, pad = ScalarHead(32), 9, 9
    lengths = torch.tensor([len(row) for row in ragged])
    alone = torch.stack([head(model.hidden(torch.tensor([row])))[0, -1] for row in ragged])
    right = torch.tensor([row + [pad] * (width - len(row)) for row in ragged])
    rewards = head.reward(model.hidden(right), lengths - 1)
    torch.testing.assert_close(rewards, alone, atol=1e-5, rtol=1e-5)
    left = torch.tensor([[pad] * (width - len(row)) + row for row in ragged])
    hidden = model.hidden(left, starts=width - lengths)
    rewards = head.reward(hidden, torch.full((4,), width - 1))
    torch.testing.assert_close(rewards, alone, atol=1e-5, rtol=1e-5)


def test_a_reward_sends_its_gradient_to_the_named_slot_alone():
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    ScalarHead(4).reward(hidden, torch.tensor([2, 0])).sum().backward()
    slots = hidden.grad.abs().sum(-1) > 0
    assert slots.tolist() == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize("last", [[3, 0], [-1, 0], [0], [0, 0, 0], [[0], [0]]], ids=str)
def test_a_wrong_last_slot_raises(last):
    with pytest.raises(ValueError, match=r"\[0, 3\) per row"):
        ScalarHead(4).reward(torch.zeros(2, 3, 4), torch.tensor(last))


# a scalar model

# prompts and completions; the first two share their prompt
ROWS = [([3, 4, 5], [6, 7]), ([3, 4, 5], [8]), ([9], [10, 11, 12, 13])]
PROMPTS, COMPLETIONS = ([row[i] for row in ROWS] for i in (0, 1))


def batch_of(prompts=PROMPTS, completions=COMPLETIONS):
    return completion_batch(prompts, completions, 0, "cpu")


@pytest.fixture
def scalar_model(make_model):
    model = ScalarModel(make_model("qwen3"))
    model.head.linear.bias.data.fill_(0.25)
    return model.eval()


@torch.no_grad()
def plain_value(model, ids):
    """V of the state after a list of ids, from a pass over it alone."""
    return float(model.head(model.backbone.hidden(torch.tensor([ids])))[0, -1])


@torch.no_grad()
def test_values_stand_before_each_token_and_the_score_after_the_last(scalar_model):
    """One slot off, and a value function has seen the token that it must foresee, or a reward model
    has not seen the end."""
    model = scalar_model
    tokens, mask = batch_of()
    values, end = model(tokens, mask)
    for row, (prompt, completion) in enumerate(ROWS):
        ids = prompt + completion
        for t in range(tokens.shape[1]):
            sampled = len(prompt) <= t < len(ids)
            expected = plain_value(model, ids[:t]) if sampled else 0.0
            assert float(values[row, t]) == pytest.approx(expected, abs=1e-5), (row, t)
        assert float(end[row]) == pytest.approx(plain_value(model, ids), abs=1e-5)
    torch.testing.assert_close(model.scores(tokens, mask), end)


@torch.no_grad()
def test_a_value_is_the_score_of_the_prefix(scalar_model):
    """What a value function that starts from a reward model says first: InstructGPT, appendix
    C.4."""
    model, ids = scalar_model, [10, 11, 12, 13]
    values, _ = model(*batch_of([[9]], [ids]))
    for t in range(2, 5):
        score = float(model.scores(*batch_of([[9]], [ids[:t - 1]])))
        assert score == pytest.approx(float(values[0, t]), abs=1e-5)


@torch.no_grad()
def test_padding_its_content_and_the_order_of_rows_change_nothing(scalar_model):
    model, order = scalar_model, [2, 0, 1]
    tokens, mask = batch_of()
    T = tokens.shape[1]
    values, end = model(tokens, mask)
    wider = torch.cat([tokens, torch.full((3, 4), 17)], dim=1)
    wide_mask = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    wider[~wide_mask & (torch.arange(T + 4) >= 5)] = 5
    other_values, other_end = model(wider[order], wide_mask[order])
    torch.testing.assert_close(other_values[:, :T], values[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(other_end, end[order], atol=1e-5, rtol=0)


@torch.no_grad()
def test_rollout_values_and_score_ids_are_the_same_in_any_micro_batches(scalar_model):
    model = scalar_model
    tokens, mask = batch_of()
    values, end = model(tokens, mask)
    rollouts = Rollouts(tokens, mask, torch.tensor([3, 3, 1]), torch.zeros(tokens.shape),
                        torch.zeros(3, dtype=torch.bool))
    for budget in (1, 6, 1000):
        in_parts = rollout_values(model, rollouts, token_budget=budget)
        torch.testing.assert_close(in_parts[0], values, atol=1e-5, rtol=0)
        torch.testing.assert_close(in_parts[1], end, atol=1e-5, rtol=0)
        scores = score_ids(model, PROMPTS, COMPLETIONS, 0, token_budget=budget)
        torch.testing.assert_close(scores, end, atol=1e-5, rtol=0)
    assert score_ids(model, [], [], 0).shape == (0,)


def test_a_shift_moves_every_value_and_score_alike(scalar_model):
    model = scalar_model
    tokens, mask = batch_of([[3]], [[4, 5]])
    before = [x.detach() for x in model(tokens, mask)]
    model.shift(torch.tensor(1.5))
    after = model(tokens, mask)
    torch.testing.assert_close(after[0], before[0] + 1.5 * mask)
    torch.testing.assert_close(after[1], before[1] + 1.5)


def test_a_scalar_model_is_compiled_where_its_transformer_is(scalar_model):
    assert scalar_model.compiled is False
    scalar_model.compiled = True
    assert scalar_model.backbone.compiled is True and scalar_model.compiled is True
    scalar_model.compiled = False
    assert scalar_model.backbone.compiled is False


def test_the_head_is_in_float32_also_where_products_are_not(scalar_model):
    """A reward in bfloat16 has two to three digits: 3.14 and 3.15 are one number."""
    tokens, mask = batch_of([[3]], [[4, 5]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, end = scalar_model(tokens, mask)
    assert values.dtype == end.dtype == torch.float32


@pytest.mark.parametrize("mask, message", [
    ([[0, 0, 0]], "nothing under it"),
    ([[1, 1, 0]], "asks for slot 0"),
    ([[0, 1]], "the same shape"),
])
def test_masks_that_a_scalar_model_refuses(mask, message, scalar_model):
    with pytest.raises(ValueError, match=message):
        scalar_model(torch.tensor([[3, 4, 5]]), torch.tensor(mask).bool())


# where a value function starts

def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_value_model_starts_as_a_copy_that_can_be_trained(scalar_model, make_model):
    scalar_model.requires_grad_(False)
    scalar_model.set_dropout(0.3)
    copy = value_model_from(scalar_model, make_model(), seed=0)
    assert torch.equal(weights(copy), weights(scalar_model))
    assert copy.backbone.dropout.p == 0.0 and scalar_model.backbone.dropout.p == 0.3
    assert all(p.requires_grad for p in copy.parameters())
    copy.shift(torch.tensor(1.0))
    assert not torch.equal(weights(copy), weights(scalar_model))


def test_without_one_it_starts_from_the_policy_with_a_head_of_its_seed(make_model):
    policy, state = make_model(), torch.get_rng_state()
    a, b, c = (value_model_from(None, policy, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))
    for model in (a, c):
        assert torch.equal(weights(model.backbone), weights(policy))
        assert model.backbone.embed_tokens.weight is not policy.embed_tokens.weight
