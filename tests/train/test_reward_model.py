"""minirl/train/reward_model.py"""

import random
from dataclasses import FrozenInstanceError, asdict, replace
from inspect import signature
from itertools import combinations

import pytest
import torch

import minirl.train.reward_model as page
from minirl.lm.heads import ScalarModel
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks.preferences import Ranking, pairs
from minirl.train.metrics import NonFiniteError
from minirl.train.presets import RM_PRESETS
from minirl.train.reward_model import (
    RewardModelConfig,
    as_reward,
    preference_margins,
    score_texts,
    train_reward_model,
)
from tests.train import small
from tests.train.small import (
    TOKENIZER,
    Log,
    break_weights,
    flat,
    record_calls,
    record_gradients,
    save_step,
    tiny,
    weights,
)

CONFIG = RewardModelConfig(batch_size=3, lr=1e-2)
RANKINGS = [
    *small.RANKINGS,
    Ranking("a", ("b", "bc", "bcd", "bcde")),
    Ranking("3=", ("33", "333")),
]


def train(rankings=RANKINGS, model=None, seed=0, log=None, **changes):
    """Return the reward model after training."""
    config = replace(CONFIG, **changes)
    return train_reward_model(model or tiny(), TOKENIZER, rankings, config, seed=seed, log=log)


def weights_after(*args, **options):
    return weights(train(*args, **options))


def first_gradient(monkeypatch, rankings=RANKINGS, **changes):
    """Return the gradient of the first step, before clipping. The batch holds all rankings."""
    gradients = record_gradients(monkeypatch)
    train(rankings, batch_size=6, **changes)
    return flat(gradients[0])


def test_three_steps_twice_are_the_same_bit_for_bit():
    assert torch.equal(weights_after(epochs=2), weights_after(epochs=2))
    assert not torch.equal(weights_after(), weights_after(seed=1))


def test_neither_micro_batches_nor_the_order_of_rankings_change_the_gradient(monkeypatch):
    """The batch has rankings of two, three and four completions, and two of one prompt. Each
    ranking counts the same, whatever its size."""
    whole = first_gradient(monkeypatch)
    split = first_gradient(monkeypatch, token_budget=1)
    reverse = first_gradient(monkeypatch, RANKINGS[::-1])
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(reverse, whole, atol=1e-6, rtol=0)
    assert whole.abs().max() > 1e-3


def plain_score(model, prompt, completion):
    """Return the score of a completion with its EOS, from a pass over this row alone."""
    ids = TOKENIZER.encode_prompt(prompt) + TOKENIZER.encode(completion) + [TOKENIZER.eos_id]
    hidden = model.backbone.hidden(torch.tensor([ids]))
    return float(model.head(hidden)[0, -1].detach())


def test_the_first_loss_and_its_metrics_by_hand():
    """-log σ of each difference of scores: the mean over a ranking's pairs, then over rankings. So
    are the difference itself, the margin, and how often it is positive, the accuracy."""
    torch.manual_seed(1)
    model = ScalarModel(tiny()).eval()
    every, losses, margins, accuracies = [], [], [], []
    for ranking in RANKINGS:
        scores = [plain_score(model, ranking.prompt, text) for text in ranking.completions]
        differences = torch.tensor([better - worse for better, worse in combinations(scores, 2)])
        every += scores
        losses.append(float(torch.log1p(torch.exp(-differences)).mean()))
        margins.append(float(differences.mean()))
        accuracies.append(float((differences > 0).float().mean()))
    log = Log()
    train(model=model, batch_size=6, log=log)
    for name, numbers in (("loss", losses), ("margin", margins), ("accuracy", accuracies),
                          ("mean_reward", every)):
        assert log[0][name] == pytest.approx(sum(numbers) / len(numbers), abs=1e-5), name


def test_a_head_of_zeros_costs_log_2():
    model, log = ScalarModel(tiny()), Log()
    model.head.linear.weight.data.zero_()
    train(model=model, log=log)
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-6)             # -log σ(0)
    assert log[0]["margin"] == 0.0
    assert log[0]["accuracy"] == 0.0


@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_continues_bit_for_bit(at):
    config = replace(CONFIG, epochs=2)
    save, state = save_step(at)
    whole = train_reward_model(tiny(), TOKENIZER, RANKINGS, config, save=save)
    again = train_reward_model(ScalarModel(tiny()), TOKENIZER, RANKINGS, config, resume=state)
    assert torch.equal(weights(again), weights(whole))


def test_it_learns_a_preference_that_holds_for_completions_it_has_not_seen():
    """Shorter is better: the model decides nine of ten comparisons of other numbers so."""
    rng = random.Random(0)

    def number(length):
        return "".join(rng.choice("0123456789") for _ in range(length))

    def shorter_first(n):
        return [Ranking(f"{rng.randrange(100)}=", tuple(map(number, (1, 3, 5, 7))))
                for _ in range(n)]

    log = Log()
    model = train_reward_model(tiny(), TOKENIZER, shorter_first(160),
                               RewardModelConfig(batch_size=8, lr=1e-2), log=log)
    assert log[-1]["accuracy"] > 0.9 > log[0]["accuracy"]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert not model.training

    prompts, chosen, rejected = zip(*pairs(shorter_first(40)), strict=True)
    better = score_texts(model, TOKENIZER, prompts, chosen)
    worse = score_texts(model, TOKENIZER, prompts, rejected)
    assert float((better > worse).float().mean()) > 0.9


def test_demonstrations_score_zero_on_average_and_nothing_else_changes():
    """All scores are shifted by one number."""
    demonstrations = [("7=", "7"), ("12+3=", "15"), ("3=", "3")]
    prompts, completions = zip(*demonstrations, strict=True)
    plain = train_reward_model(tiny(), TOKENIZER, RANKINGS, CONFIG)
    shifted = train_reward_model(tiny(), TOKENIZER, RANKINGS, CONFIG, demonstrations=demonstrations)
    before = score_texts(plain, TOKENIZER, prompts, completions)
    after = score_texts(shifted, TOKENIZER, prompts, completions)
    assert float(after.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(after.abs().max()) > 1e-3
    shift = after - before
    torch.testing.assert_close(shift, shift[:1].expand(3), atol=1e-6, rtol=0)


def test_as_a_reward_it_reads_the_ids_that_were_sampled():
    """A completion that was cut off has no EOS, and is scored without one. From texts alone, each
    completion is scored with its EOS."""
    reward = as_reward(train(), TOKENIZER)
    ids = TOKENIZER.encode("77")
    whole, cut = reward(["7="] * 2, ["77", "77"], answer=["7", "7"],
                        completion_ids=[[*ids, TOKENIZER.eos_id], ids])
    assert cut != pytest.approx(whole, abs=1e-4)
    assert reward(["7="], ["77"], answer=["7"]) == [pytest.approx(whole, abs=1e-6)]
    conversation = [{"role": "assistant", "content": "77"}]
    assert reward(["7="], [conversation]) == [pytest.approx(whole, abs=1e-6)]


def test_a_margin_per_comparison_is_positive_where_the_model_agrees():
    model = train()
    margins = preference_margins(model, TOKENIZER, [Ranking("q", ("a", "b", "c"))])
    a, b, c = score_texts(model, TOKENIZER, ["q"] * 3, ["a", "b", "c"])
    torch.testing.assert_close(margins, torch.stack([a - b, a - c, b - c]))


def test_the_end_is_read_by_position_where_pad_is_eos():
    """Where padding is EOS, a search for the first padding token finds the completion's own EOS,
    and the score is read one token too early."""
    tokenizer = build_tokenizer()
    tokenizer.pad_id = tokenizer.eos_id
    model = train_reward_model(tiny(), tokenizer, RANKINGS, CONFIG)
    assert torch.equal(weights(model), weights_after())


def test_instructgpt_preset():
    """Appendix C.2."""
    config = RewardModelConfig(**RM_PRESETS["instructgpt"].numbers)
    assert config.epochs == 1
    assert config.batch_size == 64
    assert config.lr == 9e-6
    assert config.min_lr_ratio == 0.1


def test_the_learning_rate_falls_to_a_tenth():
    log = Log()
    train(lr=9e-6, batch_size=1, log=log)
    rates = [metrics["learning_rate"] for metrics in log]
    assert rates[0] == pytest.approx(9e-6) and rates[-1] == pytest.approx(9e-7)
    assert rates == sorted(rates, reverse=True)


def test_metrics_do_not_depend_on_micro_batches():
    """Rankings have two to four completions. In loss, accuracy and margin each ranking counts
    once, and in the mean reward each completion, however the batch is split."""
    whole, split = Log(), Log()
    train(batch_size=6, token_budget=10_000, log=whole)
    train(batch_size=6, token_budget=1, log=split)
    assert whole[0].keys() == split[0].keys()
    assert whole[0]["margin"] != 0 and 0 < whole[0]["accuracy"] < 1
    for name in set(whole[0]) - {"step_time"}:
        assert split[0][name] == pytest.approx(whole[0][name], rel=1e-4, abs=1e-6), name


def ids_of(ranking):
    """Return how many tokens a ranking has: the prompt in front of each completion, and each
    EOS."""
    prompt = len(TOKENIZER.encode_prompt(ranking.prompt))
    return sum(prompt + len(TOKENIZER.encode(text)) + 1 for text in ranking.completions)


def test_micro_batches_are_planned_by_all_tokens_of_a_ranking(monkeypatch):
    """Rankings of one size are read together: one call for each of the sizes 2, 3 and 4."""
    calls = record_calls(monkeypatch, page, "micro_batches")
    train(batch_size=6, token_budget=99)
    lengths = [length for call in calls for length in call.args[0].tolist()]
    assert sorted(lengths) == sorted(map(ids_of, RANKINGS))
    assert [call.args[1] for call in calls] == [99] * 3


def test_metrics_count_epochs_and_tokens():
    """Two steps per epoch, of three rankings each."""
    log = Log()
    train(epochs=2, log=log)
    assert [metrics["epoch"] for metrics in log] == [0.5, 1.0, 1.5, 2.0]
    tokens = sum(map(ids_of, RANKINGS))
    assert (log[1]["num_tokens"], log[3]["num_tokens"]) == (tokens, 2 * tokens)
    assert all(0 < metrics["step_time"] < 60 for metrics in log)


# errors

def test_no_rankings_are_an_error():
    with pytest.raises(ValueError, match="nothing to learn from"):
        train([])


def test_a_ranking_that_does_not_fit_the_context_is_an_error():
    ranking = Ranking("q", ("a", "b" * 200), "data.jsonl, line 3")
    message = "data.jsonl, line 3 has .* context of 128: cut, it would have no end"
    with pytest.raises(ValueError, match=message):
        train([ranking])


@pytest.mark.parametrize("bad, message", [
    (dict(batch_size=0), "batch_size is 0: at least 1"),
    (dict(lr=float("nan")), "lr is nan: a positive number"),
])
def test_bad_numbers(bad, message):
    with pytest.raises(ValueError, match=message):
        RewardModelConfig(**bad)


def test_an_update_that_breaks_the_weights_stops_the_run():
    with pytest.raises(NonFiniteError, match="step 1: the update made"):
        train(lr=1e39)


def test_a_broken_model_stops_the_run_and_names_the_ranking():
    model = tiny()
    break_weights(model)
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan .*the first is Ranking"):
        train(model=model)


def test_the_defaults():
    """The README and RESULTS.md quote runs with these numbers."""
    assert asdict(RewardModelConfig()) == dict(
        epochs=1, batch_size=8, lr=0.002, min_lr_ratio=0.1, beta1=0.9, beta2=0.95,
        weight_decay=0.0, max_grad_norm=1.0, token_budget=8192)
    assert signature(train_reward_model).parameters["seed"].default == 0
    with pytest.raises(FrozenInstanceError):
        RewardModelConfig().lr = 1.0
