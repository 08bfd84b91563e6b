"""minirl/train/sft.py"""

from dataclasses import FrozenInstanceError, asdict, replace
from inspect import signature

import pytest
import torch

import minirl.train.sft as page
from minirl.equations.schedules import cosine_to_floor
from minirl.lm.rollouts import span_mask
from minirl.lm.tokenizer import build_tokenizer
from minirl.train.encoding import encode_pairs
from minirl.train.metrics import NonFiniteError
from minirl.train.presets import SFT_PRESETS
from minirl.train.sft import SFTConfig, train_sft
from tests.train.small import (
    PAIRS,
    STANDSTILL,
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

CONFIG = SFTConfig(batch_size=8, lr=1e-3)


def weights_after(pairs=PAIRS, seed=0, **changes):
    """Return the weights after training."""
    config = replace(CONFIG, **changes)
    return weights(train_sft(tiny(), TOKENIZER, pairs, config, seed=seed))


def first_gradient(monkeypatch, pairs=PAIRS[:8], **changes):
    """Return the gradient of the first step, before clipping."""
    gradients = record_gradients(monkeypatch)
    weights_after(pairs, **changes)
    return flat(gradients[0])


def test_three_steps_twice_are_the_same_bit_for_bit():
    assert torch.equal(weights_after(dropout=0.1), weights_after(dropout=0.1))
    assert not torch.equal(weights_after(), weights_after(seed=1))


def test_a_micro_batch_split_changes_no_gradient(monkeypatch):
    """A mean of micro-batch means gives the tokens of short micro-batches too much weight. The
    page divides by the number of tokens of the whole batch."""
    whole = first_gradient(monkeypatch, token_budget=10_000)
    split = first_gradient(monkeypatch, token_budget=40)
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)
    assert whole.abs().max() > 1e-3


def test_the_order_of_the_rows_changes_no_gradient(monkeypatch):
    forwards = first_gradient(monkeypatch)
    backwards = first_gradient(monkeypatch, PAIRS[:8][::-1])
    torch.testing.assert_close(forwards, backwards, atol=1e-6, rtol=0)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_resume_continues_bit_for_bit(at):
    config = SFTConfig(batch_size=8, epochs=2, dropout=0.2)
    save, state = save_step(at)
    whole = train_sft(tiny(), TOKENIZER, PAIRS, config, save=save)

    model = tiny()
    model.load_state_dict(state["model"])
    train_sft(model, TOKENIZER, PAIRS, config, resume=state)
    assert torch.equal(weights(model), weights(whole))


def test_the_loss_is_on_the_completion_alone_with_its_eos():
    """The two rows of logits that count are those before "3" and before EOS."""
    prompts, completions = encode_pairs(TOKENIZER, [("1+2=", "3")], 128)
    assert prompts == [[TOKENIZER.bos_id, *TOKENIZER.encode("1+2=")]]
    assert completions == [[*TOKENIZER.encode("3"), TOKENIZER.eos_id]]

    model, log = tiny(), Log()
    logits = model(torch.tensor([prompts[0] + completions[0]])).detach()
    logp = logits.log_softmax(-1)[0]
    # tokens 0 to 4 are BOS, 1, +, 2 and =; "3" is token 5, and EOS token 6
    expected = -(logp[4, completions[0][0]] + logp[5, TOKENIZER.eos_id]) / 2
    train_sft(model, TOKENIZER, [("1+2=", "3")], SFTConfig(batch_size=1), log=log)
    assert log[0]["loss"] == pytest.approx(float(expected), abs=1e-5)


def test_what_a_tool_answers_in_a_completion_is_read_and_not_learnt():
    """Of ("a", "bc", "d") the loss is on a, d and EOS, each given all that stands before it."""
    pair = ("1=", ("a", "bc", "d"))
    ids = [*TOKENIZER.encode_prompt("1="), *TOKENIZER.encode("abcd"), TOKENIZER.eos_id]
    model, log = tiny(), Log()
    logp = model(torch.tensor([ids])).detach().log_softmax(-1)[0]
    # tokens 0 to 2 are BOS, 1 and =; a is token 3, d is token 6, and EOS token 7
    expected = -sum(logp[t - 1, ids[t]] for t in (3, 6, 7)) / 3
    train_sft(model, TOKENIZER, [pair], SFTConfig(batch_size=1), log=log)
    assert log[0]["loss"] == pytest.approx(float(expected), abs=1e-5)


def test_the_mask_of_a_completion_covers_its_eos():
    mask = span_mask(torch.tensor([2]), torch.tensor([4]), 6)
    assert mask.tolist() == [[False, False, True, True, False, False]]


def test_eos_is_trained_where_pad_is_eos():
    """Many checkpoints have no padding token, and use EOS. A mask made from `tokens != pad` hides
    every EOS then, and the model never learns to stop."""
    tokenizer = build_tokenizer()
    tokenizer.pad_id = tokenizer.eos_id
    model, pairs = tiny(), [("1+1=", "2"), ("10+10=", "20")] * 8

    def stop_probability():
        ids = tokenizer.encode_prompt("1+1=") + tokenizer.encode("2")
        probabilities = model(torch.tensor([ids])).detach().softmax(-1)
        return float(probabilities[0, -1, tokenizer.eos_id])

    before = stop_probability()
    config = SFTConfig(batch_size=8, epochs=30, lr=1e-2, warmup_steps=0)
    train_sft(model, tokenizer, pairs, config)
    assert before < 0.1 and stop_probability() > 0.5


@pytest.mark.parametrize("dropout, different", [(0.0, 1), (0.5, 3)])
def test_every_step_has_its_own_dropout(dropout, different):
    """One pair and no movement: the three losses are the same without dropout, and differ with
    it."""
    log = Log()
    config = SFTConfig(epochs=3, lr=STANDSTILL, dropout=dropout)
    train_sft(tiny(), TOKENIZER, PAIRS[:1], config, log=log)
    assert len({metrics["loss"] for metrics in log}) == different


def test_it_learns_and_leaves_dropout_off():
    model, log = tiny(), Log()
    config = SFTConfig(batch_size=8, epochs=30, lr=1e-2, dropout=0.1)
    train_sft(model, TOKENIZER, PAIRS, config, log=log)
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]
    assert not model.training and model.dropout.p == 0.0


def test_metrics_are_those_of_the_whole_batch():
    split, whole = Log(), Log()
    train_sft(tiny(), TOKENIZER, PAIRS[:8], SFTConfig(batch_size=8, token_budget=40), log=split)
    train_sft(tiny(), TOKENIZER, PAIRS[:8], SFTConfig(batch_size=8), log=whole)
    for name in ("loss", "grad_norm", "num_tokens", "learning_rate"):
        assert split[0][name] == pytest.approx(whole[0][name], rel=1e-5), name


def test_micro_batches_are_planned_by_prompts_and_completions(monkeypatch):
    calls = record_calls(monkeypatch, page, "micro_batches")
    weights_after(batch_size=24, token_budget=99)
    (lengths, budget), = (call.args for call in calls)
    assert sorted(lengths.tolist()) == sorted(
        len(TOKENIZER.encode_prompt(x)) + len(TOKENIZER.encode(y)) + 1 for x, y in PAIRS)
    assert budget == 99


def test_metrics_count_epochs_and_tokens_and_show_the_learning_rate():
    """Three steps per epoch, of eight pairs each. Prompts count, and so does each EOS. The warm-up
    is shorter than the run, however long it is asked to be: 2 steps of 3."""
    log = Log()
    config = SFTConfig(epochs=2, batch_size=8, lr=1e-3, warmup_steps=4)
    train_sft(tiny(), TOKENIZER, PAIRS, config, log=log)
    epochs = [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2]
    assert [metrics["epoch"] for metrics in log] == pytest.approx(epochs)
    tokens = sum(len(TOKENIZER.encode_prompt(x)) + len(TOKENIZER.encode(y)) + 1 for x, y in PAIRS)
    assert (log[2]["num_tokens"], log[5]["num_tokens"]) == (tokens, 2 * tokens)
    assert all(0 < metrics["step_time"] < 60 for metrics in log)
    rates = [1e-3 * cosine_to_floor(step, 6, floor=0.02, warmup=4) for step in range(6)]
    assert [metrics["learning_rate"] for metrics in log] == pytest.approx(rates)
    short = Log()
    train_sft(tiny(), TOKENIZER, PAIRS, SFTConfig(batch_size=8), log=short)
    rates = [1e-2 * cosine_to_floor(step, 3, floor=0.02, warmup=2) for step in range(3)]
    assert [metrics["learning_rate"] for metrics in short] == pytest.approx(rates)


def test_instructgpt_preset():
    """Appendix C.1: 16 epochs, batch size 32, residual dropout 0.2, no warm-up, and a cosine to
    10 % of the learning rate."""
    config = SFTConfig(**SFT_PRESETS["instructgpt"].numbers)
    assert config.epochs == 16
    assert config.batch_size == 32
    assert config.dropout == 0.2
    assert config.warmup_steps == 0
    assert config.min_lr_ratio == 0.1

    log = Log()
    train_sft(tiny(), TOKENIZER, PAIRS, config, log=log)
    rates = [metrics["learning_rate"] for metrics in log]
    assert len(rates) == 16                # 24 pairs are one batch an epoch
    assert rates[0] == pytest.approx(9.65e-6) and rates[-1] == pytest.approx(9.65e-7)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("bad, message", [
    (dict(epochs=0), "epochs is 0"),
    (dict(lr=0.0), "lr is 0"),
    (dict(lr=float("nan")), "lr is nan"),
    (dict(dropout=1.0), "dropout is 1"),
    (dict(batch_size=-1), "batch_size is -1"),
])
def test_bad_numbers(bad, message):
    with pytest.raises(ValueError, match=message):
        SFTConfig(**bad)


def test_no_pairs_are_an_error():
    with pytest.raises(ValueError, match="nothing to learn from"):
        train_sft(tiny(), TOKENIZER, [], SFTConfig())


def test_a_pair_that_does_not_fit_the_context_is_an_error():
    pairs = [("1+1=", "2"), ("1+1=", "2" * 200)]
    with pytest.raises(ValueError, match="pair 1 has .* context of 128"):
        train_sft(tiny(), TOKENIZER, pairs, SFTConfig())


def test_an_update_that_breaks_the_weights_stops_the_run():
    """`minirl sft --lr 1e39` ended with "loss 7.013", exit code 0, and a model of nothing but
    NaN."""
    with pytest.raises(NonFiniteError, match="step 1: the update made"):
        weights_after(lr=1e39, warmup_steps=0)


def test_a_broken_model_stops_the_run_and_names_the_pair():
    model = tiny()
    break_weights(model)
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan .*the first is"):
        train_sft(model, TOKENIZER, PAIRS, SFTConfig())


def test_the_defaults():
    """The README and RESULTS.md quote runs with these numbers."""
    assert asdict(SFTConfig()) == dict(
        epochs=1, batch_size=32, lr=0.01, min_lr_ratio=0.02, warmup_steps=20,
        dropout=0.0, beta1=0.9, beta2=0.98, weight_decay=0.0, max_grad_norm=1.0,
        token_budget=8192)
    assert signature(train_sft).parameters["seed"].default == 0
    with pytest.raises(FrozenInstanceError):
        SFTConfig().lr = 1.0
