"""minirl/lm/rollouts.py: shapes, masks by length, and the cutting into micro-batches."""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch

from minirl.lm.rollouts import (
    TOKEN_BUDGET,
    Rollouts,
    completion_batch,
    micro_batches,
    right_pad,
    span_mask,
    with_prompts,
)
from minirl.lm.tokenizer import build_tokenizer

EOS = 9
TOKENS = [[1, 2, EOS, EOS, EOS, EOS, EOS],
          [3, 4, 5, 6, EOS, EOS, EOS],
          [EOS, 1, 2, 3, 4, EOS, EOS]]


def rollouts(**changes):
    """Prompts of 2, 1 and 4 tokens; completions of 1, 3 and 2; padding and EOS are both 9."""
    starts, ends = torch.tensor([2, 1, 4]), torch.tensor([3, 4, 6])
    mask = span_mask(starts, ends, 7)
    parts = {"tokens": torch.tensor(TOKENS), "mask": mask, "prompt_lengths": starts,
             "behavior_logp": -torch.arange(21.0).view(3, 7) * mask,
             "truncated": torch.tensor([False, True, False])}
    return Rollouts(**{**parts, **changes})


@pytest.mark.parametrize("name, shape", [
    ("mask", (3, 6)),
    ("mask", (7, 3)),
    ("behavior_logp", (3,)),
    ("behavior_logp", (1, 7)),
    ("prompt_lengths", (3, 1)),
    ("prompt_lengths", (7,)),
    ("truncated", (1,)),
], ids=str)
def test_wrong_shapes_raise(name, shape):
    """(B,) beside (B, T) broadcasts silently where B == T."""
    with pytest.raises(ValueError, match=rf"Rollouts\.{name} is \({shape[0]},"):
        rollouts(**{name: torch.zeros(shape)})


def test_lengths_and_ids_come_from_positions_and_not_from_values():
    r = rollouts()
    assert len(r) == 3 and r.completion_lengths.tolist() == [1, 3, 2]
    assert r.completion_ids() == [[EOS], [4, 5, 6], [4, EOS]]


def test_completion_ids_are_what_was_sampled_even_where_the_text_encodes_otherwise():
    """Decoding and encoding again merges 'a', 'b' into 'ab': the log-probs would then be of tokens
    that nobody sampled."""
    tokenizer = build_tokenizer(["ab ab ab"] * 9, vocab_size=264)
    a, b = (tokenizer.backend.token_to_id(c) for c in "ab")
    assert tokenizer.encode(tokenizer.decode([a, b])) != [a, b]
    r = Rollouts(torch.tensor([[0, a, b]]), torch.tensor([[False, True, True]]), torch.tensor([1]),
                 torch.zeros(1, 3), torch.tensor([True]))
    assert r.completion_ids() == [[a, b]]


@pytest.mark.parametrize("index, width",
                         [([0], 3), ([1, 0], 4), ([2, 1, 0], 6), ([1, 1], 4), ([], 0)], ids=str)
def test_rows_cut_the_width_and_keep_the_contents(index, width):
    r = rollouts()
    part = r.rows(torch.tensor(index, dtype=torch.long))
    assert part.tokens.shape == (len(index), width)
    assert part.completion_ids() == [r.completion_ids()[i] for i in index]
    for name in ("tokens", "mask", "behavior_logp"):
        assert torch.equal(getattr(part, name), getattr(r, name)[index, :width])
    for name in ("prompt_lengths", "truncated"):
        assert torch.equal(getattr(part, name), getattr(r, name)[index])
    assert r.tokens.shape == (3, 7)    # the whole is as it was


def test_rows_keep_every_sampled_token_after_tool_output():
    """The mask is 0 on tool output, so it may have gaps: counting it does not tell where a row
    ends."""
    r = rollouts()
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[0, [2, 5]] = True    # sampled, two tokens of a tool, sampled
    part = rollouts(mask=mask, behavior_logp=-mask.float()).rows(torch.tensor([0]))
    assert part.mask.sum() == 2 and part.tokens.tolist()[0][:6] == r.tokens.tolist()[0][:6]


def test_rollouts_do_not_change():
    """Sampler and learner hold the same object."""
    with pytest.raises(FrozenInstanceError):
        rollouts().truncated = torch.zeros(3, dtype=torch.bool)


def test_to_moves_every_part():
    r = rollouts().to("meta")
    parts = (r.tokens, r.mask, r.prompt_lengths, r.behavior_logp, r.truncated)
    assert {x.device.type for x in parts} == {"meta"}


# micro-batches

@pytest.mark.parametrize("token_budget", [1, 40, 100, 10_000])
def test_micro_batches_cover_all_rows_once_within_the_budget(token_budget):
    lengths = torch.randint(1, 60, (50,), generator=torch.Generator().manual_seed(0))
    batches = list(micro_batches(lengths, token_budget))
    assert sorted(torch.cat(batches).tolist()) == list(range(50))
    for rows in batches:
        assert len(rows) == 1 or int(lengths[rows].sum()) <= token_budget
    longest = [int(lengths[rows].max()) for rows in batches]
    assert longest == sorted(longest, reverse=True)
    # none is smaller than it must be: the next row would break the budget, or the rest comes in
    # even parts
    for i, (rows, after) in enumerate(zip(batches, batches[1:], strict=False)):
        rest = int(lengths[torch.cat(batches[i:])].sum())
        tokens = int(lengths[rows].sum())
        full = tokens + int(lengths[after[0]]) > token_budget
        assert full or tokens >= rest / math.ceil(rest / token_budget)


@pytest.mark.parametrize("lengths, budget, expected", [
    ([4, 4, 4, 4], 8, [[0, 1], [2, 3]]),
    ([4, 4, 4, 4], 7, [[0], [1], [2], [3]]),
    ([2, 10, 9, 3], 100, [[1, 2, 3, 0]]),
    ([2, 10, 9, 3], 20, [[1, 2], [3, 0]]),
    # tokens are counted, and not the padding to the longest
    ([50, 30, 2], 32, [[0], [1, 2]]),
    # two even parts, and not 32 and 8
    ([4] * 10, 32, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
    ([1] * 10, 4, [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    # a single row may exceed the budget
    ([50, 1], 20, [[0], [1]]),
    # empty rows
    ([0, 0], 8, [[0], [1]]),
    ([0, 3, 0], 8, [[1], [0], [2]]),
    ([], 20, []),
], ids=str)
def test_micro_batches_by_hand(lengths, budget, expected):
    batches = micro_batches(torch.tensor(lengths, dtype=torch.long), budget)
    assert [rows.tolist() for rows in batches] == expected


def test_the_default_budget():
    """Every page's configuration has it, and the times in RESULTS.md are measured with it."""
    assert TOKEN_BUDGET == 8192
    assert [len(rows) for rows in micro_batches(torch.full((10,), 2048))] == [4, 3, 3]


# padding and masks

def test_right_pad():
    rows = [[1, 2, 3], [], [4]]
    tokens, lengths = right_pad(rows, 7)
    assert tokens.tolist() == [[1, 2, 3], [7, 7, 7], [4, 7, 7]] and lengths.tolist() == [3, 0, 1]
    assert tokens.dtype == lengths.dtype == torch.int64 and rows == [[1, 2, 3], [], [4]]


def test_right_pad_of_no_rows():
    tokens, lengths = right_pad([], 7)
    assert tokens.shape == (0, 0) and lengths.shape == (0,)
    assert tokens.dtype == lengths.dtype == torch.int64


def test_span_mask():
    mask = span_mask(torch.tensor([0, 2, 3, 1]), torch.tensor([2, 4, 3, 9]), 4)
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]]


def test_a_completion_batch_by_hand():
    """Rows of 3 and 4 tokens; EOS is 9, and so is padding."""
    tokens, mask = completion_batch([[1, 2], [3]], [[9], [4, 5, 9]], 9, "cpu")
    assert tokens.tolist() == [[1, 2, 9, 9], [3, 4, 5, 9]]
    assert mask.int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]


def test_a_completion_batch_leaves_out_what_is_not_the_policys_own():
    """Of [5, 6, 7] the 6 is a tool's, of [8] nothing, whatever the ids are."""
    tokens, mask = completion_batch([[1], [2, 3]], [[5, 6, 7], [8]], 0, "cpu",
                                    own_tokens=[[True, False, True], [True]])
    assert tokens.tolist() == [[1, 5, 6, 7], [2, 3, 8, 0]]
    assert mask.int().tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]


def test_the_same_completions_behind_other_prompts():
    """Row 0 has a tool's answer (9) in its completion, row 1 is shorter than its new prompt."""
    rollouts = Rollouts(tokens=torch.tensor([[1, 2, 5, 9, 6], [1, 7, 8, 0, 0]]),
                        mask=torch.tensor([[0, 0, 1, 0, 1], [0, 1, 1, 0, 0]]).bool(),
                        prompt_lengths=torch.tensor([2, 1]),
                        behavior_logp=torch.tensor([[0, 0, -.5, 0, -.6], [0, -.7, -.8, 0, 0]]),
                        truncated=torch.tensor([False, True]))
    moved = with_prompts(rollouts, [[4], [4, 4, 4]], pad_id=0)
    assert moved.tokens.tolist() == [[4, 5, 9, 6, 0], [4, 4, 4, 7, 8]]
    assert moved.mask.tolist() == [[False, True, False, True, False],
                                   [False, False, False, True, True]]
    assert moved.prompt_lengths.tolist() == [1, 3]
    assert torch.equal(moved.behavior_logp, torch.tensor([[0, -.5, 0, -.6, 0],
                                                          [0, 0, 0, -.7, -.8]]))
    assert torch.equal(moved.truncated, rollouts.truncated)
    same = with_prompts(rollouts, [[1, 2], [1]], pad_id=0)
    assert all(torch.equal(getattr(same, name), column) for name, column in vars(rollouts).items())
