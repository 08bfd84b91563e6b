"""minirl/train/step_trace.py: what a page computed in one step, read out of its own variables."""

import sys

import pytest
import torch

from minirl.equations.advantages import group_advantages
from minirl.lm.logprobs import token_logprobs
from minirl.lm.precision import compute_in
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.step_trace import statements_of, traced
from tests.train.small import TOKENIZER, Digits, Log, length, tiny, weights

GRPO = GRPOConfig(steps=2, prompts_per_step=2, group_size=3, iterations=2, max_new_tokens=10,
                  lr=3e-2, warmup_steps=0, kl_coef=0.1)
PPO = PPOConfig(steps=1, episodes=6, epochs=2, minibatch_size=6, max_new_tokens=10, lr=3e-2,
                warmup_steps=0)


def trace_of(page, config, step=0, **arguments):
    """Return the trace of a step, the metrics of all, and the trained model."""
    log, model = Log(), tiny()
    with traced(page, step) as tracer:
        page(model, TOKENIZER, Digits(length), config, log=log, **arguments)
    return tracer.trace, log, model


def together(trace, name, update=None):
    """Return a number of all tokens: of one update, or of all, as a mean over a step is."""
    updates = trace.updates if update is None else [trace.updates[update]]
    return torch.tensor([x for u in updates for row in u.rows.values() for x in row[name]
                         if x is not None], dtype=torch.float64)


@pytest.mark.parametrize("page, config", [(train_grpo, GRPO), (train_ppo, PPO)])
def test_the_numbers_are_those_of_the_page(page, config):
    trace, log, _ = trace_of(page, config, config.steps - 1)
    metrics = log[-1]
    assert len(trace.updates) == 2
    assert float(together(trace, "entropy").mean()) == pytest.approx(metrics["entropy"])
    assert float(together(trace, "kl").mean()) == pytest.approx(metrics["kl"], rel=1e-5)
    clipped, adv = together(trace, "clipped"), together(trace, "adv")
    assert float((clipped * (adv > 0)).mean()) == pytest.approx(metrics["clip_ratio/high_mean"])
    assert float((clipped * (adv < 0)).mean()) == pytest.approx(metrics["clip_ratio/low_mean"])
    assert clipped.any() and not clipped.all()
    assert sum(u.loss for u in trace.updates) / 2 == pytest.approx(metrics["loss"], rel=1e-5)
    assert sum(u.grad_norm for u in trace.updates) / 2 == pytest.approx(metrics["grad_norm"])
    if page is train_ppo:
        assert float(together(trace, "value_loss").mean()) == pytest.approx(metrics["loss/value"])
        for row in trace.updates[0].rows.values():     # no discount: returns sum what is to come
            assert row["old_value"] == pytest.approx(row["value"])


@pytest.mark.parametrize("page, config", [(train_grpo, GRPO), (train_ppo, PPO)])
def test_each_token_has_its_part_of_the_loss_and_of_the_gradient(page, config):
    trace, _, _ = trace_of(page, config)
    for i, update in enumerate(trace.updates):
        assert float(together(trace, "gradient_share", i).sum()) == pytest.approx(1.0, abs=1e-5)
        assert float(together(trace, "loss", i).sum()) == pytest.approx(update.loss, abs=1e-6)


def test_a_part_of_the_gradient_is_that_of_its_backward_pass():
    """⟨c_t ∇ log π_t, g⟩ / |g|², with a backward pass for each token."""
    trace, _, _ = trace_of(train_grpo, GRPO)
    model = tiny().double()
    shares, gradients = [], []
    for row, numbers in trace.updates[0].rows.items():
        batch = trace.answers.rollouts.rows(torch.tensor([row]))
        logp = token_logprobs(model, batch.tokens, mask=batch.mask)[0]
        start = int(batch.prompt_lengths[0])
        for t, coefficient in enumerate(numbers["coefficient"]):
            grads = torch.autograd.grad(logp[start + t] * coefficient, list(model.parameters()),
                                        retain_graph=True, allow_unused=True)
            gradients.append(torch.cat([g.flatten() for g in grads if g is not None]))
            shares.append(numbers["gradient_share"][t])
    g = torch.stack(gradients).sum(0)
    assert float(g.norm()) == pytest.approx(trace.updates[0].grad_norm, rel=1e-4)
    expected = torch.stack(gradients) @ g / g.square().sum()
    assert shares == pytest.approx(expected.tolist(), abs=1e-5)


def test_ratios_follow_from_update_to_update():
    """The first update's are 1; the second one's come from what the first has left."""
    trace, _, model = trace_of(train_grpo, GRPO, 1)
    first, second = (together(trace, "ratio", i) for i in (0, 1))
    assert first.eq(1).all() and not second.eq(1).all()
    for row, numbers in trace.updates[0].rows.items():
        assert numbers["logp_after"] == pytest.approx(trace.updates[1].rows[row]["logp"], abs=1e-5)
    rollouts = trace.answers.rollouts
    logp = token_logprobs(model, rollouts.tokens, mask=rollouts.mask)[rollouts.mask]
    assert sorted(together(trace, "logp_after", 1).tolist()) == pytest.approx(
        sorted(logp.tolist()), abs=1e-5)
    rewards = trace.answers.rewards.view(2, 3)
    adv = group_advantages(rewards).flatten()
    assert {row: numbers["adv"][0] for row, numbers in trace.updates[0].rows.items()} == (
        pytest.approx(dict(enumerate(adv.tolist()))))


def test_micro_batches_change_no_number():
    whole, _, _ = trace_of(train_grpo, GRPO)
    parts, _, _ = trace_of(train_grpo, GRPOConfig(**{**vars(GRPO), "token_budget": 1}))
    for a, b in zip(whole.updates, parts.updates, strict=True):
        assert sorted(a.rows) == sorted(b.rows) == list(range(6))
        assert a.loss == pytest.approx(b.loss, abs=1e-6)
        for row in a.rows:
            for name, values in a.rows[row].items():
                assert values == pytest.approx(b.rows[row][name], abs=1e-4), name


def test_tracing_changes_nothing_and_ends():
    _, log, model = trace_of(train_grpo, GRPO, 1)
    alone, plain = Log(), tiny()
    train_grpo(plain, TOKENIZER, Digits(length), GRPO, log=alone)
    assert torch.equal(weights(model), weights(plain))
    timeless = [{k: v for k, v in metrics.items() if k != "step_time"} for metrics in log]
    assert timeless == [{k: v for k, v in metrics.items() if k != "step_time"}
                        for metrics in alone]
    before = sys.gettrace()
    with pytest.raises(ZeroDivisionError), traced(train_grpo):
        1 / 0  # noqa: B018
    assert sys.gettrace() is before


def test_a_row_that_is_masked_has_no_numbers():
    longer = {**vars(GRPO), "mask_truncated": True, "max_new_tokens": 100}
    trace, _, _ = trace_of(train_grpo, GRPOConfig(**longer))
    truncated = trace.answers.rollouts.truncated.tolist()
    assert any(truncated) and not all(truncated)
    for row, numbers in trace.updates[0].rows.items():
        blank = [x is None for x in numbers["logp"]]
        assert blank == [truncated[row]] * len(blank)


def test_float16_is_unscaled():
    with compute_in("float16", torch.device("cpu")):
        trace, log, _ = trace_of(train_grpo, GRPOConfig(**{**vars(GRPO), "steps": 1}))
    norms = [update.grad_norm for update in trace.updates]
    assert sum(norms) / 2 == pytest.approx(log[0]["grad_norm"], rel=1e-4)
    assert float(together(trace, "gradient_share", 0).sum()) == pytest.approx(1, abs=0.02)


def test_without_an_update_there_is_no_trace():
    config = GRPOConfig(**{**vars(GRPO), "dynamic_sampling": True})
    with traced(train_grpo) as tracer:
        train_grpo(tiny(), TOKENIZER, Digits(lambda _: 1.0), config)
    assert tracer.trace is None


def test_a_page_without_a_policy_update_is_refused():
    for page in (train_grpo, train_ppo):
        assert set(statements_of(page).values()) == {"backward", "update"}
    with pytest.raises(ValueError, match="group_advantages does not call state.backward"):
        statements_of(group_advantages)
