"""minirl/train/state.py in float16: the loss is scaled, and what overflows is skipped."""

from functools import partial

import pytest
import torch

from minirl.lm.heads import ScalarModel
from minirl.lm.logprobs import token_logprobs
from minirl.lm.precision import LossScaler, compute_in
from minirl.tasks.steps import Solution
from minirl.train.distill import DistillConfig, train_distill
from minirl.train.dpo import DPOConfig, train_dpo
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.metrics import NonFiniteError, Sums
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.process_reward import ProcessRewardConfig, train_process_reward
from minirl.train.reward_model import RewardModelConfig, train_reward_model
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.state import SMALLEST_SCALE, TrainState, apply_update, make_optimizer
from tests.train.small import (
    PAIRS,
    RANKINGS,
    TOKENIZER,
    Digits,
    Log,
    length,
    save_step,
    tiny,
    weights,
)

CPU = torch.device("cpu")
IN_FLOAT16 = partial(compute_in, "float16", CPU)
SOLUTIONS = [Solution("7=", ("7,", "7"), (1.0, 0.0)), Solution("12+3=", ("1,", "5"), (0.5, 1.0))]
TASK = Digits(length)
RL = {"steps": 2, "max_new_tokens": 6, "lr": 1e-3}
# name -> the page, given a model and how to follow it
PAGES = {
    "sft": lambda model, **hooks: train_sft(
        model, TOKENIZER, PAIRS, SFTConfig(batch_size=12, lr=1e-3), **hooks),
    "grpo": lambda model, **hooks: train_grpo(
        model, TOKENIZER, TASK, GRPOConfig(prompts_per_step=2, group_size=4, **RL), **hooks),
    "ppo": lambda model, **hooks: train_ppo(
        model, TOKENIZER, TASK, PPOConfig(episodes=8, minibatch_size=4, ptx_coef=0.5, **RL),
        pretraining=["it rains", "a dog ran"], **hooks),
    "distill": lambda model, **hooks: train_distill(
        model, TOKENIZER, TASK, DistillConfig(prompts_per_step=4, **RL), teacher=tiny(), **hooks),
    "dpo": lambda model, **hooks: train_dpo(
        model, TOKENIZER, RANKINGS, DPOConfig(batch_size=2), **hooks),
    "rm": lambda model, **hooks: train_reward_model(
        ScalarModel(model), TOKENIZER, RANKINGS, RewardModelConfig(batch_size=2), **hooks),
    "prm": lambda model, **hooks: train_process_reward(
        ScalarModel(model), TOKENIZER, SOLUTIONS, ProcessRewardConfig(batch_size=1), **hooks),
}


def after(name, context, **hooks):
    """The weights after a page's steps in this context, and the metrics of each."""
    log = Log()
    torch.manual_seed(1)    # a new head draws its weights
    with context():
        model = PAGES[name](tiny(), log=log, **hooks)
    return weights(model), log


@pytest.mark.parametrize("name", PAGES)
def test_every_page_scales_its_loss(name, monkeypatch):
    """And none forgets to divide again: the gradient's norm would be 256 times as long. At 2^16 the
    reward models' first step overflows."""
    monkeypatch.setattr("minirl.train.state.LossScaler", partial(LossScaler, 2.0 ** 8))
    _, log = after(name, IN_FLOAT16)
    _, expected = after(name, partial(compute_in, "float32", CPU, sampler="float16"))
    assert log[0]["loss_scale"] == 2.0 ** 8 and log[0]["frac_skipped_steps"] == 0.0
    assert log[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=0.02, abs=1e-6)
    assert not {"loss_scale", "frac_skipped_steps"} & expected[0].keys()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_resumes_bit_for_bit_with_its_scale(name, monkeypatch):
    monkeypatch.setattr("minirl.train.state.LossScaler",
                        partial(LossScaler, 2.0 ** 8, growth_interval=2))
    scales = []

    def keep(state):
        scales.append(state.scaler.state_dict())

    save, state = save_step(1)
    straight, _ = after(name, IN_FLOAT16, save=lambda state: (save(state), keep(state)))
    resumed, _ = after(name, IN_FLOAT16, resume=state, save=keep)
    assert torch.equal(resumed, straight)
    steps = len(scales) // 2 + 1
    assert scales[1:steps] == scales[steps:] and scales[0] == state["parts"]["loss_scaler"]
    assert scales[0] != scales[1], "a scaler that starts anew would be seen"


def test_a_run_does_not_go_on_in_another_precision():
    save, state = save_step(1)
    after("sft", IN_FLOAT16, save=save)
    with pytest.raises(ValueError, match="has the parts .*loss_scaler"):
        after("sft", partial(compute_in, "bfloat16", CPU), resume=state)


def linear_state(scale):
    """A state whose gradient is 30,000 per unit of loss: beyond 65,504 at any scale above 2."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    with IN_FLOAT16():
        state = TrainState(model, make_optimizer(model, SFTConfig(lr=0.1)))
    state.scaler.value = scale
    return state


def backward(state, slope):
    with IN_FLOAT16():
        out = state.model(torch.ones(1, 1))
    state.backward(out.sum().float() * slope, [3, 1], ["a", "b", "c", "d"])


def test_an_overflow_skips_the_step_and_halves_the_scale():
    """30,000 times 8 and times 4 is infinite in float16, times 2 it is a number."""
    state = linear_state(8.0)
    seen = []
    for step in range(3):
        sums = Sums()
        backward(state, 30_000.0)
        apply_update(state, 0.1, 1.0, sums)
        state.step = step + 1
        seen.append((sums.means(), state.model.weight.item()))
    assert [means["loss_scale"] for means, _ in seen] == [8.0, 4.0, 2.0]
    assert [means["frac_skipped_steps"] for means, _ in seen] == [1.0, 1.0, 0.0]
    assert ["grad_norm" in means for means, _ in seen] == [False, False, True]
    assert seen[2][0]["grad_norm"] == pytest.approx(30_000, rel=1e-3)
    assert [weight for _, weight in seen] == pytest.approx([1.0, 1.0, 0.9])
    assert state.model.weight.grad is None


def test_one_overflow_of_two_models_skips_that_ones_step():
    """As torch.amp.GradScaler does."""
    state, value = linear_state(2.0), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(value.weight)
    optimizer = make_optimizer(value, SFTConfig(lr=0.1))
    backward(state, 1.0)
    value.weight.grad = torch.full((1, 1), float("inf"))
    sums = Sums()
    apply_update(state, 0.1, 1.0, sums, (value, optimizer, 0.1))
    assert state.model.weight.item() == pytest.approx(0.9) and value.weight.item() == 1.0
    assert sums.means() == {"grad_norm": 1.0, "loss_scale": 2.0, "frac_skipped_steps": 1.0}
    assert state.scaler.value == 1.0


def test_a_scale_that_cannot_fall_ends_the_run_and_shows_the_row():
    state = linear_state(SMALLEST_SCALE)
    backward(state, 60_000.0)    # a number at scale 1
    message = r"step 1: the gradient on these rows overflows in float16.*Rows \[3, 1\].*is 'd'"
    with pytest.raises(NonFiniteError, match=message):
        backward(state, 70_000.0)


def test_a_loss_that_always_overflows_ends_the_run_within_17_steps():
    """From 2^16 the scale falls to 1 in 16 steps, and the next one is the last."""
    state = linear_state(2.0 ** 16)
    with pytest.raises(NonFiniteError, match="step 17: .*use --dtype bfloat16"):
        for _ in range(100):
            backward(state, 70_000.0)
            apply_update(state, 0.1, 1.0, Sums())
            state.step += 1
    assert state.model.weight.item() == 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_precisions_scale_nothing(dtype):
    model = torch.nn.Linear(1, 1)
    with compute_in(dtype, CPU):
        state = TrainState(model, make_optimizer(model, SFTConfig()))
    assert state.scaler is None and state.parts == {}


DTYPES = ["float32", "bfloat16", "float16"]


def planted(name, dtype, monkeypatch):
    """Run a page until a planted number stops it -> the rows that it trained on, micro-batch after
    micro-batch, and the error. No weight may have changed."""
    model, rows = tiny(), []
    before, backward = weights(model), TrainState.backward

    def watched(state, loss, its_rows, texts):
        rows.append([int(row) for row in its_rows])
        backward(state, loss, its_rows, texts)

    monkeypatch.setattr(TrainState, "backward", watched)
    monkeypatch.setattr("minirl.train.state.LossScaler", partial(LossScaler, SMALLEST_SCALE))
    with pytest.raises(NonFiniteError) as error, compute_in(dtype, CPU):
        PLANTED[name](model)
    assert torch.equal(weights(model), before), "it never reaches the weights"
    return rows, str(error.value)


SMALL = {"token_budget": 20}
PLANTED = {
    "sft": lambda model: train_sft(model, TOKENIZER, PAIRS, SFTConfig(batch_size=12, **SMALL)),
    "grpo": lambda model: train_grpo(model, TOKENIZER, TASK, GRPOConfig(
        prompts_per_step=2, group_size=4, **SMALL, **RL)),
    "ppo": lambda model: train_ppo(model, TOKENIZER, TASK, PPOConfig(
        episodes=8, minibatch_size=8, **SMALL, **RL)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PLANTED)
def test_an_infinite_gradient_is_reported_with_its_rows(name, dtype, monkeypatch):
    """The loss is finite; the gradient of the third micro-batch is not. In float32 it was reported
    without a row, after all micro-batches."""
    calls, forward = [], token_logprobs

    def logprobs(*args, **options):
        calls.append(1)
        out = forward(*args, **options)
        logp = out[0] if isinstance(out, tuple) else out
        if len(calls) == 3 and logp.requires_grad:
            logp.register_hook(lambda grad: grad * float("inf"))
        return out

    monkeypatch.setattr(f"minirl.train.{name}.token_logprobs", logprobs)
    rows, error = planted(name, dtype, monkeypatch)
    assert len(rows) == 3 and f"Rows {rows[2]}" in error
    assert ("overflows in float16" if dtype == "float16" else "although the loss is") in error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PLANTED)
def test_a_loss_that_is_not_finite_is_reported_with_its_rows(name, dtype, value, monkeypatch):
    """In float16 at any scale: no smaller one would help."""
    page = __import__(f"minirl.train.{name}", fromlist=["aggregate"])
    calls, aggregate = [], page.aggregate

    def broken(*args, **options):
        calls.append(1)
        return aggregate(*args, **options) * (value if len(calls) == 2 else 1)

    monkeypatch.setattr(page, "aggregate", broken)
    rows, error = planted(name, dtype, monkeypatch)
    assert len(rows) == 1, "the loss of the second micro-batch has no backward pass"
    assert "the loss is" in error and f"{rows[0]}" not in error and "Rows [" in error
