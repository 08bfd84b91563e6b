"""minirl/train/dpo.py"""

import random
from dataclasses import replace
from functools import partial

import pytest
import torch

import minirl.train.dpo as page
from minirl.equations.preferences import ipo_loss, label_smoothed_dpo_loss, simpo_loss
from minirl.tasks.preferences import Ranking
from minirl.train.dpo import DPOConfig, comparisons, train_dpo
from minirl.train.metrics import NonFiniteError
from minirl.train.presets import DPO_PRESETS
from tests.train.small import RANKINGS, TOKENIZER, copied, tiny, weights

CONFIG = DPOConfig(batch_size=3, lr=1e-2, beta=0.1, warmup_steps=0)


def run(rankings=RANKINGS, seed=0, loss=None, reference_free=False, per_token=False, **changes):
    log = []
    model = train_dpo(tiny(), TOKENIZER, rankings, replace(CONFIG, **changes), loss=loss,
                      reference_free=reference_free, per_token=per_token, seed=seed,
                      log=lambda step, metrics: log.append(metrics))
    return weights(model), log


def test_three_steps_twice_are_the_same_bit_for_bit():
    assert torch.equal(run(epochs=2)[0], run(epochs=2)[0])
    assert not torch.equal(run()[0], run(seed=1)[0])


def test_comparisons_by_hand():
    assert comparisons([2, 3]) == ([0, 2, 2, 3], [1, 3, 4, 4])


def test_the_first_loss_is_log_2_and_its_gradient_is_not_zero():
    """At the reference every margin is 0. A first loss that is not log 2 means that policy and reference are not one model."""
    _, log = run()
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-6) and log[0]["rewards/margins"] == 0.0 and log[0]["grad_norm"] > 1e-3
    assert log[1]["loss"] != pytest.approx(0.693147, abs=1e-6)


def first_gradient(monkeypatch, rankings=RANKINGS, **changes):
    kept = []

    def keep(model, max_norm, *, step):
        kept.append(torch.cat([p.grad.flatten().clone() for p in model.parameters()]))
        return 0.0

    monkeypatch.setattr("minirl.train.state.clip_gradient", keep)
    run(rankings, batch_size=4, **changes)
    return kept[0]


def test_neither_micro_batches_nor_the_order_of_rankings_change_the_gradient(monkeypatch):
    whole = first_gradient(monkeypatch)
    torch.testing.assert_close(first_gradient(monkeypatch, token_budget=1), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(first_gradient(monkeypatch, rankings=RANKINGS[::-1]), whole, atol=1e-6, rtol=0)
    assert whole.abs().max() > 1e-3


def test_the_first_gradient_is_half_beta_times_the_difference_of_the_scores(monkeypatch):
    """Eq. 8 at pi = ref: the weight is sigmoid(0) = 1/2, so the gradient is -beta / 2 (grad log pi(y_w) - grad log pi(y_l))."""
    model, prompt = tiny(), TOKENIZER.encode_prompt("7=")
    logp = []
    for completion in ("7", "77"):
        ids = torch.tensor([prompt + TOKENIZER.encode(completion) + [TOKENIZER.eos_id]])
        logits = model(ids)[0].log_softmax(-1)
        logp.append(sum(logits[t - 1, ids[0, t]] for t in range(len(prompt), ids.shape[1])))
    expected = torch.autograd.grad(-0.05 * (logp[0] - logp[1]), list(model.parameters()))
    found = first_gradient(monkeypatch, [Ranking("7=", ("7", "77"))])
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in expected]), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_continues_bit_for_bit(at):
    kept, config = {}, replace(CONFIG, epochs=2)

    def keep(state):
        if state.step == at:
            kept.update(copied(state.state_dict()))

    whole = weights(train_dpo(tiny(), TOKENIZER, RANKINGS, config, save=keep))
    model = tiny()
    model.load_state_dict(kept["model"])                                  # what a checkpoint holds: the reference must still be the first policy
    assert torch.equal(weights(train_dpo(model, TOKENIZER, RANKINGS, config, resume=kept)), whole)


def test_it_learns_what_is_preferred():
    rng = random.Random(0)
    rankings = [Ranking(f"{rng.randrange(100)}=", (str(rng.randrange(10)), "".join(rng.choice("0123456789") for _ in range(5)))) for _ in range(120)]
    _, log = run(rankings, batch_size=8, lr=3e-2)
    assert log[-1]["rewards/accuracies"] > 0.9 and log[-1]["loss"] < 0.5 * log[0]["loss"] and log[-1]["rewards/margins"] > 1.0


def test_another_loss_is_another_function():
    _, log = run(loss=partial(ipo_loss, beta=0.1))
    assert log[0]["loss"] == pytest.approx(25.0, abs=1e-4)                 # (0 - 1 / (2 * 0.1))^2


SIMPO = dict(loss=simpo_loss, reference_free=True, per_token=True)
LOSSES = {
    "label smoothing": dict(loss=label_smoothed_dpo_loss), "ipo": dict(loss=ipo_loss),
    "ipo, per token": dict(loss=ipo_loss, per_token=True), "simpo": SIMPO,
    "sums without a reference": dict(loss=simpo_loss, reference_free=True),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_of_the_header_train(name):
    """SimPO "is passed as loss", the header said, and it was a TypeError: it wants means, and no
    reference. Each loss falls on the rankings that it learns, and prefers what is preferred."""
    rankings = [Ranking("7=", ("7", "123")), Ranking("2=", ("2", "345"))] * 4
    _, log = run(rankings, batch_size=8, epochs=30, min_lr_ratio=1.0, **LOSSES[name])
    assert log[-1]["loss"] < 0.9 * log[0]["loss"] and log[-1]["rewards/accuracies"] == 1.0


def plain_logp(model, completion):
    """log pi of a completion of "7=", token by token, from a plain pass."""
    prompt = TOKENIZER.encode_prompt("7=")
    ids = torch.tensor([prompt + TOKENIZER.encode(completion) + [TOKENIZER.eos_id]])
    logits = model(ids)[0].log_softmax(-1)
    return torch.stack([logits[t - 1, ids[0, t]] for t in range(len(prompt), ids.shape[1])])


@pytest.mark.parametrize("budget", [10_000, 1])
def test_simpo_by_hand(budget):
    """Eq. 6: -log sigmoid(2 (mean_w - mean_l - 1/2)), the mean over pairs; the rewards are beta
    times the means, the log-probs sums."""
    rankings = [Ranking("7=", ("7", "777")), Ranking("7=", ("12", "345"))]
    _, log = run(rankings, batch_size=2, token_budget=budget, **SIMPO)
    pairs = [[plain_logp(tiny(), c).detach() for c in r.completions] for r in rankings]
    margins = torch.stack([2 * (w.mean() - l.mean() - 0.5) for w, l in pairs])
    assert log[0]["loss"] == pytest.approx(float(torch.log1p(torch.exp(-margins)).mean()), abs=1e-5)
    chosen = torch.stack([w.mean() for w, _ in pairs])
    assert log[0]["rewards/chosen"] == pytest.approx(0.1 * float(chosen.mean()), abs=1e-5)
    sums = torch.stack([l.sum() for _, l in pairs])
    assert log[0]["logps/rejected"] == pytest.approx(float(sums.mean()), abs=1e-4)


def test_a_mean_over_tokens_is_of_policy_and_reference(monkeypatch):
    """At pi = ref IPO's loss is 5^2 either way, and its slope -10; what differs is the gradient."""
    rankings = [Ranking("7=", ("7", "777"))]
    sums, means = (first_gradient(monkeypatch, rankings, loss=ipo_loss, per_token=per_token)
                   for per_token in (False, True))
    model = tiny()
    chosen, rejected = (plain_logp(model, completion).mean() for completion in ("7", "777"))
    expected = torch.autograd.grad(-10 * (chosen - rejected), list(model.parameters()))
    expected = torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(means, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(sums, means, atol=1e-3)


def test_without_a_reference_none_is_made_kept_or_asked(monkeypatch):
    """It is a copy of the model, and a pass per micro-batch, for numbers that the loss ignores."""
    asked, function, states = [], page.token_logprobs, []

    def recorded(model, *args, **options):
        asked.append(model)
        return function(model, *args, **options)

    monkeypatch.setattr(page, "token_logprobs", recorded)
    monkeypatch.setattr(page, "freeze", lambda model: pytest.fail("a reference was made"))
    model = tiny()
    train_dpo(model, TOKENIZER, RANKINGS, CONFIG, **SIMPO,
              save=lambda state: states.append(copied(state.state_dict())))
    assert asked and all(each is model for each in asked) and states[0]["parts"] == {}
    again = tiny()
    train_dpo(again, TOKENIZER, RANKINGS, CONFIG, resume=states[0], **SIMPO)
    assert torch.equal(weights(again), weights(model))


@pytest.mark.parametrize("name", ["dpo", *LOSSES])
def test_metrics_do_not_depend_on_micro_batches(name):
    """Rankings of two to four completions, several comparisons each."""
    options = LOSSES.get(name, {})
    whole, split = (run(batch_size=4, epochs=2, token_budget=budget, **options)[1][1]
                    for budget in (10_000, 1))
    assert whole.keys() == split.keys() and whole["rewards/margins"] != 0
    for metric in set(whole) - {"step_time"}:
        assert split[metric] == pytest.approx(whole[metric], rel=1e-4, abs=1e-5), metric


def test_the_papers_preset():
    config = DPOConfig(**DPO_PRESETS["dpo"].numbers)
    assert (config.beta, config.batch_size, config.lr, config.warmup_steps) == (0.1, 64, 1e-6, 150)


def test_what_cannot_be_learnt_from_is_named():
    with pytest.raises(ValueError, match="nothing to learn from"):
        run([])
    with pytest.raises(ValueError, match="beta is 0"):
        DPOConfig(beta=0.0)
    with pytest.raises(ValueError, match="reference_free is given without a loss"):
        run(reference_free=True)
    with pytest.raises(NonFiniteError, match="step 1: the update made"):
        run(lr=1e39)
    model = tiny()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan .*the first is Ranking"):
        train_dpo(model, TOKENIZER, RANKINGS, CONFIG)
