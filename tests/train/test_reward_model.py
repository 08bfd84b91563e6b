"""minirl/train/reward_model.py"""

import random
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from minirl.lm.heads import ScalarModel
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks.preferences import Ranking, pairs
from minirl.train.metrics import NonFiniteError
from minirl.train.presets import RM_PRESETS
from minirl.train.reward_model import (
    RewardModelConfig,
    as_reward,
    score_texts,
    train_reward_model,
)
from tests.train import small
from tests.train.small import TOKENIZER, copied, tiny, weights

CONFIG = RewardModelConfig(batch_size=3, lr=1e-2)
RANKINGS = [*small.RANKINGS, Ranking("a", ("b", "bc", "bcd", "bcde")), Ranking("3=", ("33", "333"))]


def trained(rankings=RANKINGS, config=CONFIG, seed=0, **changes):
    return weights(train_reward_model(tiny(), TOKENIZER, rankings, replace(config, **changes), seed=seed))


def logged(rankings=RANKINGS, **changes):
    log = []
    train_reward_model(tiny(), TOKENIZER, rankings, replace(CONFIG, **changes), log=lambda step, metrics: log.append(metrics))
    return log


def test_three_steps_twice_are_the_same_bit_for_bit():
    assert torch.equal(trained(epochs=2), trained(epochs=2))
    assert not torch.equal(trained(), trained(seed=1))


def first_gradient(monkeypatch, rankings=RANKINGS, **changes):
    kept = []

    def keep(model, max_norm, *, step):
        kept.append(torch.cat([p.grad.flatten().clone() for p in model.parameters()]))
        return 0.0

    monkeypatch.setattr("minirl.train.state.clip_gradient", keep)
    trained(rankings, batch_size=6, **changes)
    return kept[0]


def test_neither_micro_batches_nor_the_order_of_rankings_change_the_gradient(monkeypatch):
    """Rankings of several K, and of one prompt, are in the batch; a prompt counts the same whatever its K."""
    whole = first_gradient(monkeypatch)
    torch.testing.assert_close(first_gradient(monkeypatch, token_budget=1), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(first_gradient(monkeypatch, rankings=RANKINGS[::-1]), whole, atol=1e-6, rtol=0)
    assert whole.abs().max() > 1e-3


def test_the_first_loss_by_hand():
    """Scores from a plain pass over each completion by itself, its EOS included; then -log sigmoid of each difference, the mean over a prompt's pairs."""
    torch.manual_seed(1)
    model = ScalarModel(tiny()).eval()
    losses = []
    for ranking in RANKINGS:
        ids = [TOKENIZER.encode_prompt(ranking.prompt) + TOKENIZER.encode(c) + [TOKENIZER.eos_id] for c in ranking.completions]
        scores = [float(model.head(model.backbone.hidden(torch.tensor([row])))[0, -1].detach()) for row in ids]
        differences = torch.tensor([a - b for a, b in combinations(scores, 2)])
        losses.append(float(torch.log1p(torch.exp(-differences)).mean()))
    log = []
    train_reward_model(model, TOKENIZER, RANKINGS, replace(CONFIG, batch_size=6), log=lambda step, metrics: log.append(metrics))
    assert log[0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_a_head_that_says_nothing_costs_log_2():
    model = ScalarModel(tiny())
    model.head.linear.weight.data.zero_()
    log = []
    train_reward_model(model, TOKENIZER, RANKINGS, CONFIG, log=lambda step, metrics: log.append(metrics))
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-6) and log[0]["margin"] == 0.0 and log[0]["accuracy"] == 0.0


@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_continues_bit_for_bit(at):
    kept, config = {}, replace(CONFIG, epochs=2)

    def keep(state):
        if state.step == at:
            kept.update(copied(state.state_dict()))

    whole = weights(train_reward_model(tiny(), TOKENIZER, RANKINGS, config, save=keep))
    again = train_reward_model(ScalarModel(tiny()), TOKENIZER, RANKINGS, config, resume=kept)
    assert torch.equal(weights(again), whole)


def test_it_learns_a_preference_that_holds_for_completions_it_has_not_seen():
    """Shorter is better: at least nine in ten of the comparisons of other numbers are decided so."""
    rng = random.Random(0)

    def some(n):
        return [Ranking(f"{rng.randrange(100)}=", tuple("".join(rng.choice("0123456789") for _ in range(length)) for length in (1, 3, 5, 7))) for _ in range(n)]

    model, log = tiny(), []
    model = train_reward_model(model, TOKENIZER, some(160), RewardModelConfig(batch_size=8, lr=1e-2), log=lambda step, metrics: log.append(metrics))
    compared = pairs(some(40))
    better, worse = (score_texts(model, TOKENIZER, [p for p, _, _ in compared], [pair[i] for pair in compared]) for i in (1, 2))
    assert float((better > worse).float().mean()) > 0.9 and log[-1]["accuracy"] > 0.9 > log[0]["accuracy"] and log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert not model.training


def test_demonstrations_score_zero_on_average_and_nothing_else_changes():
    demonstrations = [("7=", "7"), ("12+3=", "15"), ("3=", "3")]
    plain, shifted = (train_reward_model(tiny(), TOKENIZER, RANKINGS, CONFIG, demonstrations=d) for d in ((), demonstrations))
    scores = score_texts(shifted, TOKENIZER, *zip(*demonstrations))
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-6) and float(scores.abs().max()) > 1e-3
    before = score_texts(plain, TOKENIZER, *zip(*demonstrations))
    torch.testing.assert_close(scores - before, (scores - before)[:1].expand(3), atol=1e-6, rtol=0)


def test_as_a_reward_it_reads_what_was_sampled():
    """The ids themselves, so that an answer that was cut off is scored without an EOS, and nothing is decoded and encoded again."""
    model = train_reward_model(tiny(), TOKENIZER, RANKINGS, CONFIG)
    reward = as_reward(model, TOKENIZER)
    ids = TOKENIZER.encode("77")
    whole, cut = reward(["7="] * 2, ["77", "77"], completion_ids=[[*ids, TOKENIZER.eos_id], ids], answer=["7", "7"])
    assert reward(["7="], ["77"], answer=["7"]) == [pytest.approx(whole, abs=1e-6)] and cut != pytest.approx(whole, abs=1e-4)
    assert reward(["7="], [[{"role": "assistant", "content": "77"}]]) == [pytest.approx(whole, abs=1e-6)]


def test_the_end_is_read_by_position_where_pad_is_eos():
    """Looking for the first padding token finds the EOS of a checkpoint that has no other, and reads the token before it."""
    tokenizer = build_tokenizer()
    tokenizer.pad_id = tokenizer.eos_id
    assert torch.equal(weights(train_reward_model(tiny(), tokenizer, RANKINGS, CONFIG)), trained())


def test_instructgpt_preset():
    config = RewardModelConfig(**RM_PRESETS["instructgpt"].numbers)
    assert (config.epochs, config.batch_size, config.lr, config.min_lr_ratio) == (1, 64, 9e-6, 0.1)
    rates = [m["learning_rate"] for m in logged(lr=9e-6, batch_size=1)]
    assert rates[0] == pytest.approx(9e-6) and rates[-1] == pytest.approx(9e-7) and rates == sorted(rates, reverse=True)


def test_what_cannot_be_learnt_from_is_named():
    with pytest.raises(ValueError, match="nothing to learn from"):
        trained([])
    with pytest.raises(ValueError, match="data.jsonl, line 3 has .* context of 128: cut, it would have no end"):
        trained([Ranking("q", ("a", "b" * 200), "data.jsonl, line 3")])
    with pytest.raises(ValueError, match="batch_size is 0: at least 1"):
        RewardModelConfig(batch_size=0)
    with pytest.raises(ValueError, match="lr is nan: a positive number"):
        RewardModelConfig(lr=float("nan"))


def test_metrics_do_not_depend_on_micro_batches():
    """Rankings of two to four completions: a prompt counts once in loss, accuracy and margin, and a
    completion once in the mean reward, however they are split."""
    whole, split = (logged(batch_size=6, token_budget=budget)[0] for budget in (10_000, 1))
    assert whole.keys() == split.keys() and whole["margin"] != 0 and 0 < whole["accuracy"] < 1
    for name in set(whole) - {"step_time"}:
        assert split[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name


def test_an_update_that_breaks_the_weights_stops_the_run():
    with pytest.raises(NonFiniteError, match="step 1: the update made"):
        trained(lr=1e39)


def test_a_broken_model_stops_the_run_and_names_the_ranking():
    model = tiny()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan .*the first is Ranking"):
        train_reward_model(model, TOKENIZER, RANKINGS, CONFIG)
