"""minirl/train/dpo.py"""

import random
from dataclasses import FrozenInstanceError, asdict, replace
from functools import partial
from inspect import signature

import pytest
import torch

import minirl.train.dpo as page
from minirl.equations.preferences import ipo_loss, label_smoothed_dpo_loss, simpo_loss
from minirl.equations.schedules import cosine_to_floor
from minirl.tasks.preferences import Ranking
from minirl.train.dpo import DPOConfig, comparisons, train_dpo
from minirl.train.metrics import NonFiniteError
from minirl.train.presets import DPO_PRESETS
from tests.train.small import (
    RANKINGS,
    TOKENIZER,
    Log,
    break_weights,
    copy_of,
    flat,
    record_calls,
    record_gradients,
    save_step,
    tiny,
    weights,
)

CONFIG = DPOConfig(batch_size=3, lr=1e-2, beta=0.1, warmup_steps=0)
SIMPO = dict(loss=simpo_loss, reference_free=True, per_token=True)
LOSSES = {
    "label smoothing": dict(loss=label_smoothed_dpo_loss),
    "ipo": dict(loss=ipo_loss),
    "ipo, per token": dict(loss=ipo_loss, per_token=True),
    "simpo": SIMPO,
    "sums without a reference": dict(loss=simpo_loss, reference_free=True),
}
LOG_2 = 0.693147


def run(rankings=RANKINGS, seed=0, loss=None, reference_free=False, per_token=False, **changes):
    """Return the weights after training, and the metrics of each step."""
    log = Log()
    model = train_dpo(tiny(), TOKENIZER, rankings, replace(CONFIG, **changes), loss=loss,
                      reference_free=reference_free, per_token=per_token, seed=seed, log=log)
    return weights(model), log


def first_gradient(monkeypatch, rankings=RANKINGS, **changes):
    """Return the gradient of the first step, before clipping. The batch holds all rankings."""
    gradients = record_gradients(monkeypatch)
    run(rankings, batch_size=4, **changes)
    return flat(gradients[0])


def token_logp(model, completion):
    """Return log π of each token of a completion of "7=" and of its EOS, from a plain pass."""
    prompt = TOKENIZER.encode_prompt("7=")
    ids = torch.tensor([prompt + TOKENIZER.encode(completion) + [TOKENIZER.eos_id]])
    logp = model(ids)[0].log_softmax(-1)
    return torch.stack([logp[t - 1, ids[0, t]] for t in range(len(prompt), ids.shape[1])])


def test_three_steps_twice_are_the_same_bit_for_bit():
    assert torch.equal(run(epochs=2)[0], run(epochs=2)[0])
    assert not torch.equal(run()[0], run(seed=1)[0])


def test_comparisons_by_hand():
    """Rows 0 and 1 are a ranking of two: one pair. Rows 2, 3 and 4 are one of three: 2 is better
    than 3 and 4, and 3 than 4."""
    assert comparisons([2, 3]) == ([0, 2, 2, 3], [1, 3, 4, 4])


def test_the_first_loss_is_log_2_and_its_gradient_is_not_zero():
    """At the reference every margin is 0, and -log σ(0) = log 2. Another first loss means that
    policy and reference are not one model."""
    _, log = run()
    assert log[0]["loss"] == pytest.approx(LOG_2, abs=1e-6)
    assert log[0]["rewards/margins"] == log[0]["rewards/accuracies"] == 0.0
    assert log[0]["grad_norm"] > 1e-3
    assert log[1]["loss"] != pytest.approx(LOG_2, abs=1e-6)


def test_neither_micro_batches_nor_the_order_of_rankings_change_the_gradient(monkeypatch):
    whole = first_gradient(monkeypatch)
    split = first_gradient(monkeypatch, token_budget=1)
    reverse = first_gradient(monkeypatch, RANKINGS[::-1])
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(reverse, whole, atol=1e-6, rtol=0)
    assert whole.abs().max() > 1e-3


def test_the_first_gradient_by_hand(monkeypatch):
    """Eq. 8 at π = π_ref: the weight is σ(0) = 1/2, so the gradient of the loss is
    -β/2 ∇(log π(y_w) - log π(y_l)), with β = 0.1."""
    model = tiny()
    margin = token_logp(model, "7").sum() - token_logp(model, "77").sum()
    expected = flat(torch.autograd.grad(-0.05 * margin, list(model.parameters())))
    gradient = first_gradient(monkeypatch, [Ranking("7=", ("7", "77"))])
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_continues_bit_for_bit(at):
    """A checkpoint holds trained weights; the reference must still be the first policy."""
    config = replace(CONFIG, epochs=2)
    save, state = save_step(at)
    whole = train_dpo(tiny(), TOKENIZER, RANKINGS, config, save=save)

    model = tiny()
    model.load_state_dict(state["model"])
    train_dpo(model, TOKENIZER, RANKINGS, config, resume=state)
    assert torch.equal(weights(model), weights(whole))


def test_it_learns_what_is_preferred():
    """One digit is better than five."""
    rng = random.Random(0)
    rankings = []
    for _ in range(120):
        prompt, short = f"{rng.randrange(100)}=", str(rng.randrange(10))
        long = "".join(rng.choice("0123456789") for _ in range(5))
        rankings.append(Ranking(prompt, (short, long)))
    _, log = run(rankings, batch_size=8, lr=3e-2)
    assert log[-1]["rewards/accuracies"] > 0.9
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert log[-1]["rewards/margins"] > 1.0


# other losses

def test_another_loss_is_another_function():
    """IPO at π = π_ref: (0 - 1/(2 β))², with β = 0.1, is 5² = 25."""
    _, log = run(loss=partial(ipo_loss, beta=0.1))
    assert log[0]["loss"] == pytest.approx(25.0, abs=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_of_the_header_train(name):
    """The page's header said that SimPO "is passed as `loss`", and it was a TypeError: SimPO takes
    means, and no reference. Each loss falls on the rankings that it learns, and comes to prefer
    what they prefer."""
    rankings = [Ranking("7=", ("7", "123")), Ranking("2=", ("2", "345"))] * 4
    _, log = run(rankings, batch_size=8, epochs=30, min_lr_ratio=1.0, **LOSSES[name])
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert log[-1]["rewards/accuracies"] == 1.0


@pytest.mark.parametrize("budget", [10_000, 1])
def test_simpo_by_hand(budget):
    """Eq. 6: -log σ(2 (mean_w - mean_l - 1/2)), the mean over pairs. The metrics `rewards/*` are
    β times the means, and `logps/*` are sums."""
    rankings = [Ranking("7=", ("7", "777")), Ranking("7=", ("12", "345"))]
    _, log = run(rankings, batch_size=2, token_budget=budget, **SIMPO)

    model = tiny()
    better = [token_logp(model, ranking.completions[0]).detach() for ranking in rankings]
    worse = [token_logp(model, ranking.completions[1]).detach() for ranking in rankings]
    means = torch.stack([logp.mean() for logp in better])
    margins = 2 * (means - torch.stack([logp.mean() for logp in worse]) - 0.5)
    loss = torch.log1p(torch.exp(-margins)).mean()
    assert log[0]["loss"] == pytest.approx(float(loss), abs=1e-5)
    assert log[0]["rewards/chosen"] == pytest.approx(0.1 * float(means.mean()), abs=1e-5)
    sums = torch.stack([logp.sum() for logp in worse])
    assert log[0]["logps/rejected"] == pytest.approx(float(sums.mean()), abs=1e-4)


def test_a_mean_over_tokens_is_of_policy_and_reference(monkeypatch):
    """At π = π_ref the margin is 0 for sums and for means: IPO's loss is 5², and its slope in the
    margin -2 * 5. Sums and means differ in the gradient of the margin."""
    rankings = [Ranking("7=", ("7", "777"))]
    sums = first_gradient(monkeypatch, rankings, loss=ipo_loss, per_token=False)
    means = first_gradient(monkeypatch, rankings, loss=ipo_loss, per_token=True)

    model = tiny()
    margin = token_logp(model, "7").mean() - token_logp(model, "777").mean()
    expected = flat(torch.autograd.grad(-10 * margin, list(model.parameters())))
    torch.testing.assert_close(means, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(sums, means, atol=1e-3)


def test_no_reference_is_made_or_run_for_a_loss_without_one(monkeypatch):
    """A reference costs a copy of the model and a pass per micro-batch, for numbers that the loss
    ignores."""
    models, token_logprobs = [], page.token_logprobs

    def record(model, *args, **options):
        models.append(model)
        return token_logprobs(model, *args, **options)

    monkeypatch.setattr(page, "token_logprobs", record)
    monkeypatch.setattr(page, "freeze", lambda model: pytest.fail("a reference was made"))
    model = tiny()
    train_dpo(model, TOKENIZER, RANKINGS, CONFIG, **SIMPO)
    assert models and all(each is model for each in models)


def test_a_run_without_a_reference_saves_none_and_resumes(monkeypatch):
    states = []
    whole = train_dpo(tiny(), TOKENIZER, RANKINGS, CONFIG, **SIMPO,
                      save=lambda state: states.append(copy_of(state.state_dict())))
    assert states[0]["parts"] == {}
    monkeypatch.setattr(page, "freeze", lambda model: pytest.fail("a reference was made"))
    again = train_dpo(tiny(), TOKENIZER, RANKINGS, CONFIG, resume=states[0], **SIMPO)
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("name", ["dpo", *LOSSES])
def test_metrics_do_not_depend_on_micro_batches(name):
    """Rankings of two to four completions: the number of pairs differs from one to the next."""
    options = {"batch_size": 4, "epochs": 2, **LOSSES.get(name, {})}
    whole = run(token_budget=10_000, **options)[1][1]
    split = run(token_budget=1, **options)[1][1]
    assert whole.keys() == split.keys() and whole["rewards/margins"] != 0
    for metric in set(whole) - {"step_time"}:
        assert split[metric] == pytest.approx(whole[metric], rel=1e-4, abs=1e-5), metric


def ids_of(ranking):
    """Return how many tokens a ranking has: the prompt in front of each completion, and each
    EOS."""
    prompt = len(TOKENIZER.encode_prompt(ranking.prompt))
    return sum(prompt + len(TOKENIZER.encode(text)) + 1 for text in ranking.completions)


def test_micro_batches_are_planned_by_all_tokens_of_a_ranking(monkeypatch):
    calls = record_calls(monkeypatch, page, "micro_batches")
    run(batch_size=4, token_budget=99)
    (lengths, budget), = (call.args for call in calls)
    assert sorted(lengths.tolist()) == sorted(map(ids_of, RANKINGS)) and budget == 99


def test_metrics_count_epochs_and_tokens_and_show_the_learning_rate():
    """Two steps per epoch, of three rankings and one. The warm-up is shorter than the run, however
    long it is asked to be: 3 steps of 4."""
    log = run(epochs=2, lr=1e-3, warmup_steps=9)[1]
    assert [metrics["epoch"] for metrics in log] == [0.5, 1.0, 1.5, 2.0]
    tokens = sum(map(ids_of, RANKINGS))
    assert (log[1]["num_tokens"], log[3]["num_tokens"]) == (tokens, 2 * tokens)
    assert all(0 < metrics["step_time"] < 60 for metrics in log)
    rates = [1e-3 * cosine_to_floor(step, 4, floor=0.1, warmup=3) for step in range(4)]
    assert [metrics["learning_rate"] for metrics in log] == pytest.approx(rates)


def test_the_papers_preset():
    """DPO, appendix B."""
    config = DPOConfig(**DPO_PRESETS["dpo"].numbers)
    assert config.beta == 0.1
    assert config.batch_size == 64
    assert config.lr == 1e-6
    assert config.warmup_steps == 150


# errors

def test_no_rankings_are_an_error():
    with pytest.raises(ValueError, match="nothing to learn from"):
        run([])


def test_a_beta_of_0_is_an_error():
    with pytest.raises(ValueError, match="beta is 0"):
        DPOConfig(beta=0.0)


def test_dpos_own_loss_needs_a_reference():
    with pytest.raises(ValueError, match="reference_free is given without a loss"):
        run(reference_free=True)


def test_an_update_that_breaks_the_weights_stops_the_run():
    with pytest.raises(NonFiniteError, match="step 1: the update made"):
        run(lr=1e39)


def test_a_broken_model_stops_the_run_and_names_the_ranking():
    model = tiny()
    break_weights(model)
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan .*the first is Ranking"):
        train_dpo(model, TOKENIZER, RANKINGS, CONFIG)


def test_the_defaults():
    """The README and RESULTS.md quote runs with these numbers."""
    assert asdict(DPOConfig()) == dict(
        epochs=1, batch_size=16, lr=0.001, min_lr_ratio=0.1, warmup_steps=3, beta=0.3,
        beta1=0.9, beta2=0.95, weight_decay=0.0, max_grad_norm=1.0, token_budget=8192)
    options = signature(train_dpo).parameters
    names = "seed", "reference_free", "per_token"
    assert [options[name].default for name in names] == [0, False, False]
    with pytest.raises(FrozenInstanceError):
        DPOConfig().lr = 1.0
