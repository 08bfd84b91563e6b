"""minirl/train/process_reward.py"""

import math
import random
from dataclasses import replace

import pytest
import torch

from minirl.equations.process import hard_estimate
from minirl.inference.collect import collect
from minirl.inference.steps import step_ends
from minirl.lm.heads import ScalarModel
from minirl.tasks.steps import Solution
from minirl.train.metrics import NonFiniteError
from minirl.train.presets import PRM_PRESETS
from minirl.train.process_reward import (
    ProcessRewardConfig,
    as_reward,
    as_step_rewards,
    score_steps,
    solution_chances,
    train_process_reward,
)
from tests.train.small import (
    TOKENIZER,
    Digits,
    Log,
    break_weights,
    flat,
    length,
    record_gradients,
    save_step,
    tiny,
    weights,
)

CONFIG = ProcessRewardConfig(batch_size=3, lr=1e-2)
SOLUTIONS = [
    Solution("7=", ("1,", "22,", "3"), (1.0, 0.25, 0.0)),
    Solution("12+3=", ("15",), (1.0,)),
    Solution("7=", ("77,", "7"), (None, 0.0)),
    Solution("2=", ("2,", "2,", "2,", "2"), (0.125, 0.0, 0.0, 0.0)),
    Solution("a", ("b,", "cd"), (0.5, 1.0)),
    Solution("3=", ("3", ), (0.0,)),
]


def train(solutions=SOLUTIONS, model=None, seed=0, log=None, estimate=None, **changes):
    """Return the process reward model after training."""
    return train_process_reward(model or tiny(), TOKENIZER, solutions, replace(CONFIG, **changes),
                                estimate=estimate, seed=seed, log=log)


def weights_after(*args, **options):
    return weights(train(*args, **options))


def first_gradient(monkeypatch, solutions=SOLUTIONS, **changes):
    """Return the gradient of the first step, before clipping. The batch holds all solutions."""
    gradients = record_gradients(monkeypatch)
    train(solutions, batch_size=6, **changes)
    return flat(gradients[0])


def prefixes(solution):
    """Return the ids of the prompt with the first step, with two steps, ...; EOS ends the last."""
    ids = TOKENIZER.encode_prompt(solution.prompt)
    rows = [ids := ids + TOKENIZER.encode(step) for step in solution.steps]
    return [*rows[:-1], [*rows[-1], TOKENIZER.eos_id]]


def plain_scores(model, solution):
    """Return the score behind each step, each from a pass over that prefix alone."""
    return [float(model.head(model.backbone.hidden(torch.tensor([ids])))[0, -1].detach())
            for ids in prefixes(solution)]


def fresh():
    torch.manual_seed(1)
    return ScalarModel(tiny()).eval()


def test_a_step_is_read_behind_its_last_token():
    """In a batch, with padding, as from each prefix alone."""
    model = fresh()
    chances = solution_chances(model, TOKENIZER, SOLUTIONS)
    for row, solution in zip(chances, SOLUTIONS, strict=True):
        wanted = [1 / (1 + math.exp(-score)) for score in plain_scores(model, solution)]
        assert row == pytest.approx(wanted, abs=1e-5)


def test_two_steps_that_end_in_one_token_have_one_score():
    scores = score_steps(fresh(), [[1, 2]], [[3, 4, 5]], [[2, 2, 3]], pad_id=0).detach()
    assert scores.shape == (1, 3) and float(scores[0, 0]) == float(scores[0, 1])
    assert float(scores[0, 1]) != float(scores[0, 2])


def test_the_first_loss_by_hand():
    """The mean over the twelve steps with a label, whichever solution they are of."""
    model, log = fresh(), Log()
    losses = []
    for solution in SOLUTIONS:
        for score, label in zip(plain_scores(model, solution), solution.labels, strict=True):
            if label is not None:
                p = 1 / (1 + math.exp(-score))
                losses.append(-label * math.log(p) - (1 - label) * math.log(1 - p))
    train(model=model, batch_size=6, log=log)
    assert len(losses) == 12
    assert log[0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_three_steps_twice_are_the_same_bit_for_bit():
    assert torch.equal(weights_after(epochs=2), weights_after(epochs=2))
    assert not torch.equal(weights_after(), weights_after(seed=1))


def test_neither_micro_batches_nor_the_order_of_solutions_change_the_gradient(monkeypatch):
    whole = first_gradient(monkeypatch)
    split = first_gradient(monkeypatch, token_budget=1)
    reverse = first_gradient(monkeypatch, SOLUTIONS[::-1])
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(reverse, whole, atol=1e-6, rtol=0)
    assert whole.abs().max() > 1e-3


def test_a_step_without_a_label_teaches_nothing(monkeypatch):
    """Also where a whole solution has none."""
    some = [*SOLUTIONS[:2], Solution("9=", ("9,", "99"), (None, None))]
    with_it = first_gradient(monkeypatch, some)
    without = first_gradient(monkeypatch, some[:2])
    torch.testing.assert_close(with_it, without, atol=1e-7, rtol=0)


def test_hard_labels_are_those_of_the_estimate():
    hard = [replace(s, labels=tuple(None if x is None else float(x > 0) for x in s.labels))
            for s in SOLUTIONS]
    assert torch.equal(weights_after(estimate=hard_estimate), weights_after(hard))
    assert not torch.equal(weights_after(hard), weights_after())


def test_sampled_ids_are_kept_and_nothing_is_tokenised_again():
    """"77" as one token that the tokenizer would never write."""
    ids = (TOKENIZER.encode("7")[0], TOKENIZER.encode("8")[0], TOKENIZER.eos_id)
    sampled = Solution("7=", ("77,", "7"), (1.0, 0.0), ids, (1, 3))
    model = fresh()
    chance = solution_chances(model, TOKENIZER, [sampled])[0]
    rows = [[*TOKENIZER.encode_prompt("7="), *ids[:end]] for end in (1, 3)]
    wanted = [float(model.head(model.backbone.hidden(torch.tensor([row])))[0, -1].sigmoid()
                    .detach()) for row in rows]
    assert chance == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_continues_bit_for_bit(at):
    config = replace(CONFIG, epochs=2)
    save, state = save_step(at)
    whole = train_process_reward(tiny(), TOKENIZER, SOLUTIONS, config, save=save)
    again = train_process_reward(ScalarModel(tiny()), TOKENIZER, SOLUTIONS, config, resume=state)
    assert torch.equal(weights(again), weights(whole))


def test_it_learns_which_step_goes_wrong():
    """A step with a 7 is wrong, and so is all that follows it."""
    rng = random.Random(0)

    def solution():
        steps = [f"{rng.randrange(10)}{rng.choice('0123457')}," for _ in range(3)]
        good = [not any("7" in step for step in steps[:j + 1]) for j in range(3)]
        return Solution(f"{rng.randrange(10)}=", tuple(steps), tuple(map(float, good)))

    log = Log()
    model = train_process_reward(tiny(), TOKENIZER, [solution() for _ in range(600)],
                                 ProcessRewardConfig(batch_size=16, lr=1e-2, epochs=4), log=log)
    assert log[-1]["accuracy"] > 0.9 > log[0]["accuracy"]
    assert not model.training
    held_out = [solution() for _ in range(50)]
    chances = solution_chances(model, TOKENIZER, held_out)
    right = [(chance > 0.5) == (label == 1.0) for row, s in zip(chances, held_out, strict=True)
             for chance, label in zip(row, s.labels, strict=True)]
    assert sum(right) / len(right) > 0.9


def test_it_goes_on_from_a_reward_model():
    first = train()
    before = weights(first).clone()
    again = train(model=first, lr=1e-3)
    assert again is first and not torch.equal(weights(again), before)


def test_as_the_rewards_of_steps_it_reads_what_was_sampled():
    model, task = fresh(), Digits(length)
    answers = collect(tiny(), TOKENIZER, task, task.sample(3, random.Random(0)), group=2,
                      max_new_tokens=7, generator=torch.Generator().manual_seed(0))
    ends, rewards = as_step_rewards(model, TOKENIZER)(answers)
    ids = answers.rollouts.completion_ids()
    assert ends == [step_ends(TOKENIZER, row) for row in ids]
    least = as_reward(model, TOKENIZER)([p.prompt for p in answers.problems for _ in range(2)],
                                        answers.completions, completion_ids=ids)
    for i, (row, reward) in enumerate(zip(ids, rewards, strict=True)):
        prompt = TOKENIZER.encode_prompt(answers.problems[i // 2].prompt)
        scores = score_steps(model, [prompt], [row], [ends[i]], TOKENIZER.pad_id)
        assert reward == pytest.approx(scores[0].sigmoid().tolist(), abs=1e-5)
        assert least[i] == pytest.approx(min(reward), abs=1e-6)


def test_one_score_for_a_solution():
    model = fresh()
    row, = solution_chances(model, TOKENIZER, SOLUTIONS[:1])
    ids = [prefixes(SOLUTIONS[0])[-1][len(TOKENIZER.encode_prompt("7=")):]]
    for how, wanted in (("last", row[-1]), ("min", min(row)), ("product", math.prod(row))):
        reward = as_reward(model, TOKENIZER, how=how)
        assert reward(["7="], ["1,22,3"], completion_ids=ids) == pytest.approx([wanted], abs=1e-5)


@pytest.mark.parametrize("solutions, message", [
    ([], "nothing to learn from"),
    ([Solution("7=", ("7",), (None,))], "no step of 1 solutions has a label"),
    ([Solution("7=", ("7" * 2048,), (1.0,), source="a.jsonl, line 3")], "a.jsonl, line 3 has"),
])
def test_what_nothing_can_be_learnt_from(solutions, message):
    with pytest.raises(ValueError, match=message):
        train(solutions)


def test_broken_weights_stop_the_run():
    model = tiny()
    break_weights(model)
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan"):
        train(model=model)


def test_presets():
    assert PRM_PRESETS["soft"].arguments(CONFIG) == {}
    assert PRM_PRESETS["hard"].arguments(CONFIG) == {"estimate": hard_estimate}
    ProcessRewardConfig(**PRM_PRESETS["deepseekmath"].numbers)
