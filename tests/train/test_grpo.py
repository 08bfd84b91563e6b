"""minirl/train/grpo.py"""

import random
from dataclasses import replace

import pytest
import torch

from minirl.lm.logprobs import token_logprobs
from minirl.lm.sampling import sample
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks.arithmetic import Arithmetic
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.metrics import NonFiniteError
from tests.train.small import TOKENIZER, Digits, copied, length, tiny, weights

CONFIG = GRPOConfig(steps=3, prompts_per_step=3, group_size=4, lr=1e-2, warmup_steps=0, min_lr_ratio=1.0, beta2=0.95, max_new_tokens=6)


def trained(rule=length, config=CONFIG, seed=0, **changes):
    return weights(train_grpo(tiny(), TOKENIZER, Digits(rule), replace(config, **changes), seed=seed))


def logged(rule=length, tokenizer=TOKENIZER, **changes):
    log = []
    train_grpo(tiny(), tokenizer, Digits(rule), replace(CONFIG, **changes), log=lambda step, metrics: log.append(metrics))
    return log


def test_three_steps_twice_are_the_same_bit_for_bit():
    assert torch.equal(trained(), trained())
    assert not torch.equal(trained(), trained(seed=1))


@pytest.mark.parametrize("how", ["sequence_mean", "token_mean", "sequence_sum", "constant"])
def test_a_micro_batch_split_changes_no_gradient(how, monkeypatch):
    """Gradient accumulation that averages micro-batch means has been wrong by factors of 0.5 to 4. Here the batch's own total divides."""
    whole, split = (first_gradient(monkeypatch, aggregate=how, token_budget=budget) for budget in (10_000, 12))
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)
    assert whole.abs().max() > 1e-3


def first_gradient(monkeypatch, **changes):
    """The gradient that the first step would clip."""
    kept = []

    def keep(model, max_norm, *, step):
        kept.append(torch.cat([p.grad.flatten().clone() for p in model.parameters()]))
        return 0.0

    monkeypatch.setattr("minirl.train.state.clip_gradient", keep)
    trained(steps=1, **changes)
    return kept[0]


@pytest.mark.parametrize("changes", [{}, dict(iterations=2, minibatches=3, ref_sync_steps=2)])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_continues_bit_for_bit(at, changes):
    kept, config = {}, replace(CONFIG, steps=4, **changes)

    def keep(state):
        if state.step == at:
            kept.update(model={k: v.clone() for k, v in state.model.state_dict().items()}, rest=copied(state.state_dict()))

    whole = weights(train_grpo(tiny(), TOKENIZER, Digits(length), config, save=keep))
    model = tiny()
    model.load_state_dict(kept["model"])
    assert torch.equal(weights(train_grpo(model, TOKENIZER, Digits(length), config, resume=kept["rest"])), whole)


def test_sampler_and_learner_agree_at_every_first_pass():
    """A ratio that is not 1 before the first update means that sampling and learning see two different policies."""
    for temperature in (1.0, 0.7):
        assert all(m["sampling/sampling_logp_difference/mean"] < 1e-5 for m in logged(temperature=temperature))


def test_nothing_is_clipped_in_a_single_pass_and_something_in_several():
    assert all(m["clip_ratio/low_mean"] == m["clip_ratio/high_mean"] == 0 for m in logged())
    several = logged(iterations=4, lr=5e-2)
    assert sum(m["clip_ratio/low_mean"] + m["clip_ratio/high_mean"] for m in several) > 0


def test_equal_rewards_teach_nothing():
    """Rounding errors of a mean, divided by a tiny std, have been trained on as advantages of 0.8."""
    assert torch.equal(trained(rule=lambda c: 0.7, kl_coef=0.0), weights(tiny()))


RAGGED = build_tokenizer()
RAGGED.stop_ids = list(range(0, TOKENIZER.vocab_size, 9))        # so that rows end at many lengths


def test_answers_that_are_equally_wrong_teach_nothing_however_long_they_are():
    """Dynamic sampling looked at rewards to which the penalty of length had been added: a batch
    without a right answer was kept, and taught length alone. DAPO's eq. 11 counts right answers."""
    log, optimizers, model = [], [], tiny()
    config = replace(CONFIG, dynamic_sampling=True, overlong_cache=6, kl_coef=0.0, weight_decay=0.1)
    train_grpo(model, RAGGED, Digits(lambda c: 0.0), config, log=lambda step, m: log.append(m),
               save=lambda state: optimizers.append(copied(state.optimizer.state_dict())))
    assert all(m["completions/min_length"] < m["completions/max_length"] for m in log)
    assert torch.equal(weights(model), weights(tiny()))
    assert [optimizer["state"] for optimizer in optimizers] == [{}] * 3
    for m in log:
        assert m["frac_reward_zero_std"] == 1 and not {"grad_norm", "entropy", "kl"} & set(m)
        assert m["reward"] == m["reward_std"] == 0 and m["learning_rate"] == CONFIG.lr


def test_the_penalty_of_length_is_learnt_from_and_is_no_part_of_the_reward():
    """With a cache as long as an answer may be, the penalty of n tokens of 6 is -n/6."""
    verdicts = iter([1.0, 0.0, 0.0, 1.0] * 100)
    plain, shaped = (logged(lambda c: next(verdicts), RAGGED, steps=1, overlong_cache=cache)[0]
                     for cache in (0, 6))
    penalty = -shaped["completions/mean_length"] / 6
    assert shaped["rewards/overlong_penalty/mean"] == pytest.approx(penalty)
    assert shaped["completions/min_length"] < 6 and "rewards/overlong_penalty/mean" not in plain
    for name in ("reward", "reward_std", "frac_reward_zero_std", "rewards/rule/mean"):
        assert shaped[name] == plain[name], name
    assert shaped["grad_norm"] != pytest.approx(plain["grad_norm"], rel=1e-2)


def test_a_group_without_verdicts_is_left_out_and_counted():
    verdicts = iter([None, 1.0, 0.0, 1.0] * 100)
    log = logged(rule=lambda c: next(verdicts), steps=1)
    assert log[0]["frac_reward_none"] == 0.25 and log[0]["reward"] == pytest.approx(2 / 3)


def test_a_rule_without_a_verdict_on_this_batch_stops_nothing():
    """A language reward, say, on a batch of sums: None for every completion. The other rules' verdicts are enough."""
    task, log = Digits(length), []
    task.rewards = {**task.rewards, "silent": lambda prompts, completions, **_: [None] * len(completions)}
    train_grpo(tiny(), TOKENIZER, task, CONFIG, log=lambda step, metrics: log.append(metrics))
    assert "rewards/rule/mean" in log[0] and "rewards/silent/mean" not in log[0] and log[0]["frac_reward_none"] == 0


def test_nan_is_no_verdict_like_none():
    def trained_on(missing):
        verdicts = iter([missing, 1.0, 0.0, 1.0] * 100)
        return trained(rule=lambda c: next(verdicts), steps=1)

    assert torch.equal(trained_on(float("nan")), trained_on(None)) and bool(trained_on(None).isfinite().all())


@pytest.mark.parametrize("reward, message", [(None, "none of the 12 completions got a reward"), (float("nan"), "none of the 12"), (float("inf"), "finite")])
def test_rewards_that_cannot_be_used(reward, message):
    with pytest.raises(ValueError, match=message):
        trained(rule=lambda c: reward)


def test_it_learns_what_is_rewarded():
    log = logged(rule=lambda c: float(c.count("5")), steps=40, prompts_per_step=4, group_size=8, max_new_tokens=4, kl_coef=0.0)
    assert log[0]["reward"] < 0.5 and sum(m["reward"] for m in log[-5:]) / 5 > 2


def test_more_kl_penalty_keeps_the_policy_closer():
    """The sign of the penalty: raising kl_coef must lower the KL."""
    free, tied = (logged(rule=lambda c: float(any(digit in c for digit in "5678")), steps=25, group_size=8, kl_coef=kl_coef)[-1]["kl"]
                  for kl_coef in (1e-6, 1.0))
    assert tied < 0.5 * free


def test_without_kl_there_is_no_reference_and_no_kl():
    assert "kl" not in logged(kl_coef=0.0, steps=1)[0]
    assert logged(steps=1)[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_reference_is_replaced_when_asked():
    """With the reference replaced after every step, each step starts at KL 0."""
    assert all(m["kl"] == pytest.approx(0.0, abs=1e-6) for m in logged(ref_sync_steps=1))
    assert logged()[-1]["kl"] > 1e-5


def test_eos_is_trained_where_pad_is_eos():
    """A policy that is paid for short answers must learn to stop, also with a tokenizer whose padding is its EOS."""
    tokenizer = build_tokenizer()
    tokenizer.pad_id = tokenizer.eos_id
    model = tiny()

    def stops_at_once():
        ids = torch.tensor([tokenizer.encode_prompt("7=") + [tokenizer.eos_id]])
        return float(token_logprobs(model, ids)[0, -1].detach().exp())

    before = stops_at_once()
    train_grpo(model, tokenizer, Digits(lambda c: -float(len(c))), replace(CONFIG, steps=40, group_size=16, kl_coef=0.0))
    assert before < 0.1 and stops_at_once() > 0.5


def test_metrics_are_those_of_the_whole_batch():
    one, split = logged(steps=1)[0], logged(steps=1, token_budget=12)[0]
    for name in ("reward", "kl", "entropy", "grad_norm", "completions/mean_length", "num_tokens", "sampling/sampling_logp_difference/mean"):
        assert split[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


def test_every_metric_is_that_of_the_whole_batch_in_several_passes():
    """Ragged rows, and clipped ones among them, a micro-batch each."""
    several = dict(steps=1, iterations=3, minibatches=2, lr=5e-2, overlong_cache=4)
    one, split = (logged(length, RAGGED, token_budget=budget, **several)[0] for budget in (9999, 1))
    assert one.keys() == split.keys()
    assert one["clip_ratio/low_mean"] + one["clip_ratio/high_mean"] > 0
    for name in set(one) - {"step_time"}:
        assert split[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


def test_metrics_of_a_known_batch():
    """Rewards 1, 0, 0, 0 in each group: mean 1/4, squares (1 - 1/4)^2 + 3 (1/4)^2 = 3/4 in each of three groups, variance (9/4) / 11."""
    verdicts = iter([1.0, 0.0, 0.0, 0.0] * 100)
    metrics = logged(rule=lambda c: next(verdicts), steps=1)[0]
    assert metrics["reward"] == 0.25 and metrics["reward_std"] == pytest.approx((9 / 44) ** 0.5) and metrics["frac_reward_zero_std"] == 0


@pytest.mark.parametrize("bad, message", [
    (dict(group_size=1), "group_size is 1: at least 2"), (dict(max_new_tokens=0), "max_new_tokens is 0"), (dict(temperature=-1.0), "temperature is -1"),
    (dict(temperature=0.0), "temperature is 0"), (dict(aggregate="mean"), "aggregate is 'mean'"), (dict(kl_coef=-0.1), "kl_coef is -0.1"),
    (dict(steps=0), "steps is 0"), (dict(minibatches=99), "minibatches is 99"), (dict(lr=float("nan")), "lr is nan")])
def test_bad_numbers(bad, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **bad)


def test_a_prompt_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="model's context of 128"):
        trained(max_new_tokens=127)


def test_a_broken_model_stops_the_run_before_the_step():
    model = tiny()
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    before = weights(model)
    with pytest.raises(ValueError, match="logits that are not finite"):
        train_grpo(model, TOKENIZER, Digits(length), CONFIG)
    assert torch.equal(weights(model), before)


def test_an_update_that_breaks_the_weights_stops_the_run():
    """Loss and gradient are finite, and the step is not: such weights were saved, exit code 0."""
    with pytest.raises(NonFiniteError, match="step 1: the update made"):
        trained(lr=1e39)


def test_a_loss_that_is_not_finite_stops_the_run_and_shows_the_row(monkeypatch):
    """A loop that skips NaN losses and goes on drops optimizer steps silently."""
    monkeypatch.setattr("minirl.train.grpo.k3", lambda logp, ref_logp: logp * float("nan"))
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan .*Row"):
        trained()


def test_learning_rate_rises_falls_or_stays():
    rates = [m["learning_rate"] for m in logged(steps=5, warmup_steps=1, min_lr_ratio=0.1, lr=1.0, max_grad_norm=1e-9)]
    assert rates == pytest.approx([0.5, 1.0, 0.775, 0.325, 0.1])                    # 0.1 + 0.9 (1 + cos(pi/3)) / 2 = 0.775
    assert [m["learning_rate"] for m in logged(warmup_steps=0, min_lr_ratio=1.0, lr=1e-3)] == [1e-3] * 3


def test_dropout_is_off_while_reinforcing():
    """Dropout makes the learner another policy than the sampler: ratios away from 1 before any update."""
    model = tiny()
    model.set_dropout(0.5)
    model.train()
    log = []
    train_grpo(model, TOKENIZER, Digits(length), CONFIG, log=lambda step, metrics: log.append(metrics))
    assert log[0]["sampling/sampling_logp_difference/mean"] < 1e-5


def test_one_arithmetic_step_by_hand():
    """The page against its parts: one step's gradient is that of  -mean over sequences of the mean of A_i log pi  at ratio 1."""
    task, model = Arithmetic("addition", 2), tiny()
    config = replace(CONFIG, steps=1, kl_coef=0.0, max_grad_norm=1e9)
    seen = {}
    ruled = Digits(length)
    ruled.sample = lambda n, rng, split="train": seen.setdefault("problems", task.sample(n, random.Random(3)))
    norms = []
    train_grpo(tiny(), TOKENIZER, ruled, config, log=lambda step, metrics: norms.append(metrics["grad_norm"]))

    generator = torch.Generator().manual_seed(derive_seed(0, "grpo", 0, "sample"))
    rollouts = sample(model, [TOKENIZER.encode_prompt(p.prompt) for p in seen["problems"]], group=4, max_new_tokens=6, eos_id=TOKENIZER.eos_id,
                      pad_id=TOKENIZER.pad_id, generator=generator)
    rewards = torch.tensor([length(TOKENIZER.decode_completion(ids)) for ids in rollouts.completion_ids()]).view(3, 4)
    adv = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    logp = model(rollouts.tokens).log_softmax(-1)
    loss = 0
    for i in range(12):
        start, end = int(rollouts.prompt_lengths[i]), int(rollouts.prompt_lengths[i] + rollouts.completion_lengths[i])
        picked = torch.stack([logp[i, t - 1, rollouts.tokens[i, t]] for t in range(start, end)])
        loss = loss - adv[i] * picked.mean() / 12
    loss.backward()
    assert norms[0] == pytest.approx(float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm()), rel=1e-4)
