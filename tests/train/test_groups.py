"""minirl/train/groups.py: what a step draws, and what it learns from."""

import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from minirl.inference.collect import collect
from minirl.lm.rollouts import Rollouts
from minirl.lm.seeds import derive_seed
from minirl.tasks.problem import Problem
from minirl.train.groups import fill_up, joined, score, widened
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.metrics import Sums
from tests.train.small import TOKENIZER, Digits, Log, copy_of, in_turn, length, tiny, weights

CONFIG = GRPOConfig(steps=1, prompts_per_step=3, group_size=4, max_new_tokens=6, lr=1e-2,
                    warmup_steps=0, min_lr_ratio=1.0, dynamic_sampling=True, max_draws=4)
FLAT, SPREAD = [0.0] * 4, [1.0, 0.0, 0.0, 1.0]
SEED_OF = partial(derive_seed, 0, "grpo", 0)


def rule_of(*groups):
    """Return a rule whose verdicts are these groups', one after another."""
    return in_turn(*[verdict for group in groups for verdict in group])


def first_draw(task, config=CONFIG):
    return collect(tiny(), TOKENIZER, task, task.sample(3, random.Random(0)), group=4,
                   max_new_tokens=config.max_new_tokens,
                   generator=torch.Generator().manual_seed(0))


def filled(*groups, **changes):
    """Return all groups that fill_up has after drawing, where each draw's verdicts are the next."""
    task, config = Digits(rule_of(*groups)), replace(CONFIG, **changes)
    return fill_up(first_draw(task), tiny(), TOKENIZER, task, config, SEED_OF)


@pytest.mark.parametrize("groups, changes, drawn, kept", [
    ([SPREAD] * 3, {}, 3, 3),                                  # full at once: nothing is drawn
    ([SPREAD, FLAT, FLAT, SPREAD, SPREAD], {}, 5, 3),          # two are missing, two are drawn
    ([SPREAD, FLAT, FLAT, FLAT, SPREAD, SPREAD], {}, 6, 3),    # two, and then one
    ([FLAT], {}, 12, 0),                                       # three at each of four draws
    ([FLAT], {"max_draws": 2}, 6, 0),
    ([SPREAD, FLAT, FLAT], {"max_draws": 1}, 3, 1),            # none in their place, as before
    ([SPREAD, FLAT, FLAT], {"dynamic_sampling": False}, 3, 3),
])
def test_as_many_prompts_are_drawn_as_groups_are_missing(groups, changes, drawn, kept):
    """DAPO's batch is filled up, but no more than so often, and no group that differs is lost."""
    answers = filled(*groups, **changes)
    assert len(answers.problems) == drawn
    assert len(answers.completions) == len(answers.rollouts) == len(answers.rewards) == 4 * drawn
    _, rewards, chosen = score(answers, tiny(), TOKENIZER, Digits(length),
                               replace(CONFIG, **{**changes, "max_draws": 1}), SEED_OF, Sums())
    assert rewards.shape == (drawn, 4) and len(chosen) == 4 * kept


def test_draws_are_other_problems_and_other_samples():
    class Numbers(Digits):
        def sample(self, n, rng, *, split="train"):
            return [Problem(f"{rng.randrange(10 ** 6)}=", "7") for _ in range(n)]

    task = Numbers(rule_of(FLAT))
    task_problems = task.sample(3, random.Random(SEED_OF("problems")))
    answers = collect(tiny(), TOKENIZER, task, task_problems, group=4, max_new_tokens=6,
                      generator=torch.Generator().manual_seed(SEED_OF("sample")))
    answers = fill_up(answers, tiny(), TOKENIZER, task, CONFIG, SEED_OF)
    assert len({problem.prompt for problem in answers.problems}) == 12
    assert len(set(answers.completions)) > 40


def test_a_bounded_batch_stays_smaller_and_is_counted():
    """Of 12 groups one differs. The metrics are of all that were drawn: 1 of 12 groups, 2 of 48
    rewards are 1."""
    log, task = Log(), Digits(rule_of(*[FLAT] * 11, SPREAD))
    train_grpo(tiny(), TOKENIZER, task, CONFIG, log=log)
    assert log[0]["dynamic_sampling/drawn"] == 12 and log[0]["dynamic_sampling/kept"] == 1
    assert log[0]["frac_reward_zero_std"] == pytest.approx(11 / 12)
    assert log[0]["reward"] == pytest.approx(2 / 48)
    assert log[0]["grad_norm"] > 0


def test_a_filled_batch_learns_from_as_many_groups_as_a_batch_without_flat_ones(monkeypatch):
    """The mean over completions divides by 12 rows again, and not by 4."""
    import minirl.train.grpo as page
    rows = []

    def recording(mask, how, **options):
        rows.append(len(mask))
        return normaliser(mask, how, **options)

    normaliser = page.normaliser
    monkeypatch.setattr(page, "normaliser", recording)
    groups = [SPREAD, FLAT, FLAT, SPREAD, SPREAD]
    for draws, wanted in ((4, 12), (1, 4)):
        rows.clear()
        train_grpo(tiny(), TOKENIZER, Digits(rule_of(*groups)), replace(CONFIG, max_draws=draws))
        assert rows == [wanted]


def test_tokens_of_all_draws_are_counted():
    counts = []
    for draws in (1, 4):
        log = Log()
        train_grpo(tiny(), TOKENIZER, Digits(rule_of(FLAT)), replace(CONFIG, max_draws=draws),
                   log=log)
        counts.append(log[0]["num_tokens"])
    assert counts[1] > 3 * counts[0]


def test_a_run_that_draws_again_is_the_same_after_a_resume():
    config, task = replace(CONFIG, steps=3), Digits(length)
    states = []
    whole = train_grpo(tiny(), TOKENIZER, task, config,
                       save=lambda state: states.append(copy_of(state.state_dict())))
    model = tiny()
    model.load_state_dict(states[0]["model"])
    train_grpo(model, TOKENIZER, task, config, resume=states[0])
    assert torch.equal(weights(model), weights(whole))


def test_the_penalty_lowers_the_rewards_and_not_what_is_kept():
    """Groups of equal rewards are dropped, whatever their lengths; a completion of 6 of 6 tokens
    costs 1 with a cache of 6. Without draws there are no metrics of them."""
    task, sums = Digits(rule_of(SPREAD, FLAT, SPREAD)), Sums()
    answers = first_draw(task)
    config = replace(CONFIG, max_draws=1, overlong_cache=6)
    _, rewards, chosen = score(answers, tiny(), TOKENIZER, task, config, SEED_OF, sums)
    penalty = -answers.rollouts.completion_lengths.view(3, 4) / 6
    expected = torch.tensor([SPREAD, FLAT, SPREAD]) + penalty
    torch.testing.assert_close(rewards, expected)
    assert bool((penalty < 0).all()) and chosen.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert set(sums.means()) == {"frac_reward_zero_std", "rewards/overlong_penalty/mean"}


def test_no_verdict_in_the_first_draw_may_be_one_in_the_next():
    nan = [None] * 4
    answers = filled(nan, nan, nan, SPREAD, SPREAD, SPREAD)
    _, rewards, chosen = score(answers, tiny(), TOKENIZER, Digits(length),
                               replace(CONFIG, max_draws=1), SEED_OF, Sums())
    assert chosen.tolist() == list(range(12, 24)) and bool(rewards[:3].isnan().all())
    with pytest.raises(ValueError, match="none of the 48 completions got a reward"):
        score(filled(nan), tiny(), TOKENIZER, Digits(length), replace(CONFIG, max_draws=1), SEED_OF,
              Sums())


def test_joined_groups_by_hand():
    """Rows of 3 and of 2 tokens: the shorter ones are filled up with the pad id."""
    task = Digits(length)
    first, second = (first_draw(task, replace(CONFIG, max_new_tokens=n)) for n in (7, 3))
    both = joined(first, second, pad_id=5)
    wide, narrow = first.rollouts.tokens.shape[1], second.rollouts.tokens.shape[1]
    assert narrow < wide == both.rollouts.tokens.shape[1]
    assert wide != len(first.rollouts), "a width that is a number of rows would not be noticed"
    assert torch.equal(both.rollouts.tokens[:12], first.rollouts.tokens)
    assert torch.equal(both.rollouts.tokens[12:, :narrow], second.rollouts.tokens)
    assert bool((both.rollouts.tokens[12:, narrow:] == 5).all())
    assert not both.rollouts.mask[12:, narrow:].any()
    assert torch.equal(both.rollouts.lengths,
                       torch.cat([first.rollouts.lengths, second.rollouts.lengths]))
    assert both.rewards.tolist() == first.rewards.tolist() + second.rewards.tolist()
    assert both.verdicts["rule"] == first.verdicts["rule"] + second.verdicts["rule"]
    assert both.problems == [*first.problems, *second.problems]
    assert both.weights == {"rule": 1.0}


def test_widened():
    assert widened(torch.tensor([[1, 2]]), 3, 9).tolist() == [[1, 2, 9]]
    assert widened(torch.tensor([1, 2]), 3, 9).tolist() == [1, 2]
    assert widened(torch.ones(1, 2).bool(), 3, 0).tolist() == [[True, True, False]]


def test_rollouts_without_some_rows_have_an_empty_mask_there():
    mask = torch.ones(2, 3).bool()
    rollouts = Rollouts(torch.zeros(2, 3).long(), mask, torch.zeros(2).long(), torch.zeros(2, 3),
                        torch.tensor([True, False]))
    assert rollouts.without(rollouts.truncated).mask.tolist() == [[False] * 3, [True] * 3]
    assert bool(rollouts.mask.all()), "the rollouts themselves are as they were"


def test_cut_off_completions_are_not_learnt_from():
    """A rule that rewards what is cut off teaches nothing where that is masked, and the groups'
    means still contain it."""
    def rule(completion):
        return float(len(completion) == 6)

    config = replace(CONFIG, dynamic_sampling=False, max_draws=1, kl_coef=0.1, prompts_per_step=8)
    log, masked = Log(), Log()
    train_grpo(tiny(), TOKENIZER, Digits(rule), config, log=log)
    train_grpo(tiny(), TOKENIZER, Digits(rule), replace(config, mask_truncated=True), log=masked)
    assert 0 < log[0]["completions/clipped_ratio"] == masked[0]["completions/clipped_ratio"]
    assert masked[0]["reward"] == log[0]["reward"]
    assert masked[0]["completions/mean_length"] == log[0]["completions/mean_length"]
    assert masked[0]["num_tokens"] == log[0]["num_tokens"]
    assert masked[0]["grad_norm"] != log[0]["grad_norm"]


def test_a_batch_of_which_everything_is_cut_off_changes_nothing():
    """A model that never stops: no token is left, and the loss is 0, not NaN."""
    tokenizer = TOKENIZER
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_id] = 0.0
    log = Log()
    config = replace(CONFIG, dynamic_sampling=False, max_draws=1, max_new_tokens=1,
                     mask_truncated=True, kl_coef=0.1, aggregate="token_mean")
    train_grpo(model, tokenizer, Digits(length), config, log=log)
    assert log[0]["completions/clipped_ratio"] > 0.9
    assert math.isfinite(log[0]["loss"])
