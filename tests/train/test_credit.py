"""minirl/train/credit.py"""

from dataclasses import replace

import pytest
import torch

from minirl.equations.advantages import gdpo_advantages, process_advantages, spread
from minirl.inference.collect import Collected
from minirl.lm.rollouts import Rollouts
from minirl.tasks.problem import Problem
from minirl.train.credit import (
    decoupled_credit,
    outcome_credit,
    process_credit,
    step_of_token,
)
from minirl.train.grpo import GRPOConfig, train_grpo
from tests.train.small import TOKENIZER, Digits, Log, length, tiny, weights

P, G = 1, 2
PROMPTS, LENGTHS = [2, 2], [5, 3]                  # tokens of the prompts and of the completions
ENDS = [[2, 3, 5], [1, 3]]
STEPS = [[0, 0, 1, 2, 2], [0, 1, 1]]               # of each token
REWARDS = [[1.0, 0.0, 0.0], [1.0, 1.0]]


def completions(prompts=PROMPTS, lengths=LENGTHS, gap=None):
    """Return completions of zeros. Slot `gap` of the first row is tool output."""
    B, T = len(lengths), max(p + n for p, n in zip(prompts, lengths, strict=True))
    slots = torch.arange(T)
    start, count = torch.tensor(prompts), torch.tensor(lengths)
    mask = (slots >= start[:, None]) & (slots < (start + count)[:, None])
    if gap is not None:
        mask[0, gap] = False
    rollouts = Rollouts(torch.zeros(B, T, dtype=torch.long), mask, start, torch.zeros(B, T),
                        torch.zeros(B, dtype=torch.bool))
    return Collected([Problem("1=", "1")] * P, rollouts, [""] * B, {}, torch.zeros(B))


def by_hand(ends=ENDS, rewards=REWARDS):
    return lambda answers: (ends, rewards)


def test_outcome_supervision_gives_each_token_its_completions_advantage():
    answers, adv = completions(), torch.tensor([[0.5, -1.0]])
    assert outcome_credit(adv, answers).tolist() == [[0, 0] + [0.5] * 5, [0, 0] + [-1] * 3 + [0, 0]]


def test_decoupled_credit_compares_each_reward_by_itself():
    """Rewards (1, 0), (0, 1), (0, 1), (0, 1): their sums are equal, and so are z-scores that are
    added with the same weight. With weights 1 and 1/2 the rare reward counts: z is 1.5 and -0.5
    three times, so sums are 0.75 and -0.25, and the z-scores of these are 1.5 and -0.5 again."""
    answers = completions([1] * 4, [2] * 4)
    verdicts = {"rare": [1.0, 0.0, 0.0, 0.0], "common": [0.0, 1.0, 1.0, 1.0]}
    adv = torch.full((1, 4), 99.0)                     # what the sum gives is not read

    def credit(weights, verdicts=verdicts):
        return decoupled_credit(adv, replace(answers, verdicts=verdicts, weights=weights))[:, 1]

    assert credit({"rare": 1.0, "common": 1.0}).tolist() == pytest.approx([0.0] * 4, abs=1e-5)
    assert credit({"rare": 1.0, "common": 0.5}).tolist() == pytest.approx(
        [1.5, -0.5, -0.5, -0.5], abs=1e-3)
    swapped = credit({"common": 0.5, "rare": 1.0})     # the weights go by name, not by place
    assert torch.equal(swapped, credit({"rare": 1.0, "common": 0.5}))
    nothing = credit({"rare": 1.0}, {"rare": [None] * 4})
    assert nothing.tolist() == [0.0] * 4
    table = torch.tensor(list(verdicts.values())).T[None]
    assert torch.equal(swapped, gdpo_advantages(table, [1.0, 0.5])[0])


def test_each_token_belongs_to_the_step_that_ends_at_it_or_after_it():
    answers = completions()
    numbers = step_of_token(ENDS, answers)
    for row, mask, wanted in zip(numbers, answers.rollouts.mask, STEPS, strict=True):
        assert row[mask].tolist() == wanted


def test_process_supervision_by_hand():
    """Mean 3/5; five step rewards with the sum of squares 6/5, so the std is sqrt(3/10)."""
    right, wrong = 0.4 / 0.3 ** 0.5, -0.6 / 0.3 ** 0.5
    adv = process_credit(by_hand())(torch.tensor([[9.0, 9.0]]), completions())
    first = [right + 2 * wrong] * 2 + [2 * wrong] + [wrong] * 2
    second = [2 * right] + [right] * 2
    wanted = torch.tensor([[0.0, 0.0, *first], [0.0, 0.0, *second, 0.0, 0.0]])
    torch.testing.assert_close(adv, wanted, atol=2e-3, rtol=0)


def test_credit_falls_most_on_the_first_wrong_step():
    adv = process_credit(by_hand())(torch.zeros(1, 2), completions())
    assert int(adv[0].argmin()) == 2 + ENDS[0][0]              # its first token


def test_a_share_of_the_outcome_is_added():
    outcome, answers = torch.tensor([[0.5, -1.0]]), completions()
    alone, both = (process_credit(by_hand(), outcome=w)(outcome, answers) for w in (0.0, 2.0))
    torch.testing.assert_close(both - alone, 2 * outcome_credit(outcome, answers))


def test_one_step_per_completion_is_outcome_supervision():
    """With the reward of each completion on its only step, and the same normalisation."""
    answers = completions()
    adv = process_credit(by_hand([[5], [3]], [[1.0], [0.0]]))(torch.zeros(1, 2), answers)
    one = process_advantages(torch.tensor([[[1.0], [0.0]]])).flatten()
    torch.testing.assert_close(adv, spread(one, answers.rollouts.mask))


def test_prompts_of_other_lengths_and_padding_change_nothing():
    plain = process_credit(by_hand())(torch.zeros(1, 2), completions())
    moved = process_credit(by_hand())(torch.zeros(1, 2), completions(prompts=[1, 4]))
    for row, shifted, n in zip(plain, moved, LENGTHS, strict=True):
        assert row[row != 0].tolist() == shifted[shifted != 0].tolist()
        assert len(row[row != 0]) == n


def test_tool_output_inside_a_step_gets_nothing():
    answers = completions(gap=4)
    adv = process_credit(by_hand())(torch.zeros(1, 2), answers)
    assert float(adv[0, 4]) == 0.0
    assert float(adv[0, 5]) == float(adv[0, 6]) != 0.0


def test_steps_that_are_all_alike_teach_nothing():
    credit = process_credit(by_hand(rewards=[[0.7] * 3, [0.7] * 2]))
    assert not credit(torch.zeros(1, 2), completions()).any()


@pytest.mark.parametrize("ends, rewards, message", [
    ([[2, 5]], [[1.0, 1.0]], "2 completions, the steps of 1"),
    ([[2, 5], [3]], [[1.0], [1.0]], r"completion 0 has 5 tokens.*\[2, 5\], and 1 rewards"),
    ([[2, 4], [3]], [[1.0, 0.0], [1.0]], r"completion 0 has 5 tokens"),
    ([[5], []], [[1.0], []], r"completion 1 has 3 tokens"),
])
def test_steps_of_other_completions_are_refused(ends, rewards, message):
    with pytest.raises(ValueError, match=message):
        process_credit(by_hand(ends, rewards))(torch.zeros(1, 2), completions())


# in the page

CONFIG = GRPOConfig(steps=2, prompts_per_step=3, group_size=4, lr=1e-2, kl_coef=0.0,
                    max_new_tokens=6)


def trained(credit, **changes):
    model, log = tiny(), Log()
    train_grpo(model, TOKENIZER, Digits(length), replace(CONFIG, **changes), credit=credit, log=log)
    return weights(model), log


def halves(answers):
    """Two steps per completion; the second is good where it is long."""
    lengths = answers.rollouts.completion_lengths.tolist()
    return [[1, n] if n > 1 else [n] for n in lengths], [
        [0.0, float(n)] if n > 1 else [0.0] for n in lengths]


def test_the_page_learns_from_the_credit_that_it_is_given():
    plain, _ = trained(outcome_credit)
    process, _ = trained(process_credit(halves))
    nothing, _ = trained(lambda adv, answers: torch.zeros(answers.rollouts.tokens.shape))
    assert not torch.equal(plain, process)
    assert torch.equal(nothing, weights(tiny()))


@pytest.mark.parametrize("changes", [dict(token_budget=1), dict(token_budget=40)])
def test_neither_micro_batches_nor_dynamic_sampling_shift_the_credit(changes):
    whole, _ = trained(process_credit(halves), dynamic_sampling=True)
    split, _ = trained(process_credit(halves), dynamic_sampling=True, **changes)
    torch.testing.assert_close(whole, split, atol=1e-5, rtol=0)
