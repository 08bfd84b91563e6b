"""minirl/train/sft.py"""

import pytest
import torch

from minirl.lm.rollouts import span_mask
from minirl.lm.tokenizer import build_tokenizer
from minirl.train.encoding import encode_pairs
from minirl.train.metrics import NonFiniteError
from minirl.train.presets import SFT_PRESETS
from minirl.train.sft import SFTConfig, train_sft
from tests.train.small import PAIRS, TOKENIZER, copied, tiny, weights


def trained(pairs=PAIRS, seed=0, **config):
    return weights(train_sft(tiny(), TOKENIZER, pairs, SFTConfig(**{"batch_size": 8, "lr": 1e-3} | config), seed=seed))


def test_three_steps_twice_are_the_same_bit_for_bit():
    assert torch.equal(trained(dropout=0.1), trained(dropout=0.1))
    assert not torch.equal(trained(), trained(seed=1))


def first_gradient(monkeypatch, pairs=PAIRS[:8], **config):
    """The gradient that the first step would clip."""
    kept = []

    def keep(model, max_norm, *, step):
        kept.append(torch.cat([p.grad.flatten().clone() for p in model.parameters()]))
        return 0.0

    monkeypatch.setattr("minirl.train.state.clip_gradient", keep)
    trained(pairs, **config)
    return kept[0]


def test_a_micro_batch_split_changes_no_gradient(monkeypatch):
    """The mean of micro-batch means weighs short micro-batches too much; the number of tokens of the whole batch does not."""
    whole, split = (first_gradient(monkeypatch, token_budget=budget) for budget in (10_000, 40))
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)
    assert whole.abs().max() > 1e-3


def test_the_order_of_the_rows_changes_no_gradient(monkeypatch):
    torch.testing.assert_close(first_gradient(monkeypatch), first_gradient(monkeypatch, PAIRS[:8][::-1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_resume_continues_bit_for_bit(at):
    states = {}
    config = SFTConfig(batch_size=8, epochs=2, dropout=0.2)

    def keep(state):
        if state.step == at:
            states["model"], states["rest"] = {k: v.clone() for k, v in state.model.state_dict().items()}, copied(state.state_dict())

    whole = weights(train_sft(tiny(), TOKENIZER, PAIRS, config, save=keep))
    model = tiny()
    model.load_state_dict(states["model"])
    assert torch.equal(weights(train_sft(model, TOKENIZER, PAIRS, config, resume=states["rest"])), whole)


def test_the_loss_is_on_the_completion_alone_with_its_eos():
    prompts, completions = encode_pairs(TOKENIZER, [("1+2=", "3")], 128)
    assert prompts == [[TOKENIZER.bos_id, *TOKENIZER.encode("1+2=")]] and completions == [[*TOKENIZER.encode("3"), TOKENIZER.eos_id]]
    losses = []
    model = tiny()
    before = model(torch.tensor([prompts[0] + completions[0]])).detach().log_softmax(-1)[0]
    expected = -(before[4, completions[0][0]] + before[5, TOKENIZER.eos_id]) / 2          # slots 5 and 6, told by the logits before them
    train_sft(model, TOKENIZER, [("1+2=", "3")], SFTConfig(batch_size=1), log=lambda step, metrics: losses.append(metrics["loss"]))
    assert losses[0] == pytest.approx(float(expected), abs=1e-5)


def test_eos_is_trained_where_pad_is_eos():
    """Many checkpoints have no padding token. A mask made from `tokens != pad` then hides every EOS, and the model never learns to stop."""
    tokenizer = build_tokenizer()
    tokenizer.pad_id = tokenizer.eos_id
    mask = span_mask(torch.tensor([2]), torch.tensor([4]), 6)
    assert mask.tolist() == [[False, False, True, True, False, False]]
    model, pairs = tiny(), [("1+1=", "2"), ("10+10=", "20")] * 8

    def stop_probability():
        ids = tokenizer.encode_prompt("1+1=") + tokenizer.encode("2")
        return float(model(torch.tensor([ids])).detach().softmax(-1)[0, -1, tokenizer.eos_id])

    before = stop_probability()
    train_sft(model, tokenizer, pairs, SFTConfig(batch_size=8, epochs=30, lr=1e-2, warmup_steps=0))
    assert before < 0.1 and stop_probability() > 0.5


def test_it_learns_and_leaves_dropout_off():
    losses, model = [], tiny()
    train_sft(model, TOKENIZER, PAIRS, SFTConfig(batch_size=8, epochs=30, lr=1e-2, dropout=0.1), log=lambda step, metrics: losses.append(metrics["loss"]))
    assert losses[-1] < 0.6 * losses[0] and not model.training and model.dropout.p == 0.0


def test_metrics_are_those_of_the_whole_batch():
    log = []
    train_sft(tiny(), TOKENIZER, PAIRS[:8], SFTConfig(batch_size=8, token_budget=40), log=lambda step, metrics: log.append(metrics))
    train_sft(tiny(), TOKENIZER, PAIRS[:8], SFTConfig(batch_size=8), log=lambda step, metrics: log.append(metrics))
    for name in ("loss", "grad_norm", "num_tokens", "learning_rate"):
        assert log[0][name] == pytest.approx(log[1][name], rel=1e-5)


def test_instructgpt_preset():
    """Appendix C.1: 16 epochs, residual dropout 0.2, cosine to 10 % of the learning rate, no warm-up."""
    config = SFTConfig(**SFT_PRESETS["instructgpt"].numbers)
    assert (config.epochs, config.dropout, config.min_lr_ratio, config.warmup_steps, config.batch_size) == (16, 0.2, 0.1, 0, 32)
    rates = []
    train_sft(tiny(), TOKENIZER, PAIRS, config, log=lambda step, metrics: rates.append(metrics["learning_rate"]))
    assert len(rates) == 16 and rates[0] == pytest.approx(9.65e-6) and rates[-1] == pytest.approx(9.65e-7) and rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("bad, message", [(dict(epochs=0), "epochs is 0"), (dict(lr=0.0), "lr is 0"), (dict(dropout=1.0), "dropout is 1"),
                                          (dict(lr=float("nan")), "lr is nan"), (dict(batch_size=-1), "batch_size is -1")])
def test_bad_numbers(bad, message):
    with pytest.raises(ValueError, match=message):
        SFTConfig(**bad)


def test_bad_data():
    with pytest.raises(ValueError, match="nothing to learn from"):
        train_sft(tiny(), TOKENIZER, [], SFTConfig())
    with pytest.raises(ValueError, match="pair 1 has .* context of 128"):
        train_sft(tiny(), TOKENIZER, [("1+1=", "2"), ("1+1=", "2" * 200)], SFTConfig())


def test_an_update_that_breaks_the_weights_stops_the_run():
    """minirl sft --lr 1e39 ended with "loss 7.013", exit code 0 and a model of NaN alone."""
    with pytest.raises(NonFiniteError, match="step 1: the update made"):
        trained(lr=1e39, warmup_steps=0)


def test_a_broken_model_stops_the_run_and_names_the_pair():
    model = tiny()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan .*the first is"):
        train_sft(model, TOKENIZER, PAIRS, SFTConfig())
