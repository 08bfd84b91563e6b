"""minirl/train/grpo.py"""

import random
from dataclasses import FrozenInstanceError, asdict, replace
from inspect import signature

import pytest
import torch

import minirl.train.grpo as page
from minirl.equations.advantages import group_advantages
from minirl.inference.collect import collect
from minirl.lm.logprobs import token_logprobs
from minirl.lm.sampling import sample
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks.arithmetic import Arithmetic
from minirl.train import objectives
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.metrics import NonFiniteError
from tests.train.small import (
    STANDSTILL,
    TOKENIZER,
    Digits,
    Log,
    copy_of,
    flat,
    in_turn,
    length,
    record_calls,
    record_gradients,
    save_step,
    tiny,
    weights,
)

CONFIG = GRPOConfig(steps=3, prompts_per_step=3, group_size=4, lr=1e-2, warmup_steps=0,
                    min_lr_ratio=1.0, beta2=0.95, max_new_tokens=6)
RAGGED = build_tokenizer()
RAGGED.stop_ids = list(range(0, TOKENIZER.vocab_size, 9))   # completions of many lengths


def weights_after(rule=length, seed=0, **changes):
    """Return the weights after training."""
    config = replace(CONFIG, **changes)
    return weights(train_grpo(tiny(), TOKENIZER, Digits(rule), config, seed=seed))


def log_of(rule=length, tokenizer=TOKENIZER, **changes):
    """Return the metrics of each step."""
    log = Log()
    train_grpo(tiny(), tokenizer, Digits(rule), replace(CONFIG, **changes), log=log)
    return log


def first_gradient(monkeypatch, **changes):
    """Return the gradient of the first step, before clipping."""
    gradients = record_gradients(monkeypatch)
    weights_after(steps=1, **changes)
    return flat(gradients[0])


def test_three_steps_twice_are_the_same_bit_for_bit():
    assert torch.equal(weights_after(), weights_after())
    assert not torch.equal(weights_after(), weights_after(seed=1))


@pytest.mark.parametrize("how", ["sequence_mean", "token_mean", "sequence_sum", "constant"])
def test_a_micro_batch_split_changes_no_gradient(how, monkeypatch):
    """Gradient accumulation that averages means of micro-batches is wrong by factors of 0.5 to 4.
    The page divides by the total of the whole batch."""
    whole = first_gradient(monkeypatch, aggregate=how, token_budget=10_000)
    split = first_gradient(monkeypatch, aggregate=how, token_budget=12)
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)
    assert whole.abs().max() > 1e-3


@pytest.mark.parametrize("how", ["sequence_mean", "sequence_sum", "constant"])
def test_the_mean_gradient_of_two_minibatches_is_that_of_the_batch(how, monkeypatch):
    """Each minibatch divides by its own total, and the two have six rows each."""
    gradients = record_gradients(monkeypatch)
    weights_after(steps=1, aggregate=how, minibatches=2, lr=STANDSTILL)
    first, second = map(flat, gradients)
    whole = first_gradient(monkeypatch, aggregate=how)
    torch.testing.assert_close((first + second) / 2, whole, atol=1e-5, rtol=1e-5)


def test_every_pass_shuffles_all_rows_anew(monkeypatch):
    """12 rows in two minibatches, which are micro-batches here: 3 steps of 2 passes."""
    calls = record_calls(monkeypatch, page, "check_finite")
    weights_after(iterations=2, minibatches=2)
    minibatches = [frozenset(call.args[2].tolist()) for call in calls]
    firsts, seconds = minibatches[::2], minibatches[1::2]
    assert len(set(firsts)) == len(firsts) == 6
    for first, second in zip(firsts, seconds, strict=True):
        assert first | second == set(range(12))


@pytest.mark.parametrize("changes", [
    {},
    dict(iterations=2, minibatches=3, ref_sync_steps=2),
], ids=["plain", "several passes"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_continues_bit_for_bit(at, changes):
    config = replace(CONFIG, steps=4, **changes)
    save, state = save_step(at)
    whole = train_grpo(tiny(), TOKENIZER, Digits(length), config, save=save)

    model = tiny()
    model.load_state_dict(state["model"])
    train_grpo(model, TOKENIZER, Digits(length), config, resume=state)
    assert torch.equal(weights(model), weights(whole))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_learner_agree_in_every_first_pass(temperature):
    """A ratio that is not 1 before the first update means that sampling and learning see two
    different policies."""
    for metrics in log_of(temperature=temperature):
        assert metrics["sampling/sampling_logp_difference/mean"] < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_all_log_probs_are_of_one_temperature(temperature):
    """While no weight moves, the ratio is 1 in every pass, and the KL is 0."""
    log = log_of(temperature=temperature, iterations=2, lr=STANDSTILL, clip_low=1e-4,
                 clip_high=1e-4)
    for metrics in log:
        assert metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0
        assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)


def test_the_samplers_log_probs_are_not_learnt_from(monkeypatch):
    """They are compared with the learner's, and no more."""
    expected = weights_after(iterations=2)

    def collect_with_others(*args, **options):
        answers = collect(*args, **options)
        answers.rollouts.behavior_logp.sub_(0.5)
        return answers

    monkeypatch.setattr(page, "collect", collect_with_others)
    assert torch.equal(weights_after(iterations=2), expected)
    difference = log_of(steps=1)[0]["sampling/sampling_logp_difference/mean"]
    assert difference == pytest.approx(0.5, abs=1e-4)


def test_each_clip_has_its_bound(monkeypatch):
    calls = record_calls(monkeypatch, objectives, "clipped_surrogate")
    weights_after(steps=1, clip_low=0.1, clip_high=0.3)
    assert [call.options for call in calls] == [{"clip_low": 0.1, "clip_high": 0.3}]


def test_nothing_is_clipped_in_a_single_pass():
    for metrics in log_of():
        assert metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0


def test_something_is_clipped_in_several_passes():
    log = log_of(iterations=4, lr=5e-2)
    assert sum(m["clip_ratio/low_mean"] + m["clip_ratio/high_mean"] for m in log) > 0


# rewards

def test_equal_rewards_teach_nothing():
    """The mean of equal rewards has a rounding error. Divided by a tiny std, it was trained on as
    an advantage of 0.8."""
    after = weights_after(rule=lambda completion: 0.7, kl_coef=0.0)
    assert torch.equal(after, weights(tiny()))


def test_advantages_have_the_configurations_scale_and_ddof(monkeypatch):
    calls = record_calls(monkeypatch, page, "group_advantages")
    weights_after(steps=1, scale="batch", ddof=0)
    assert [call.options for call in calls] == [{"scale": "batch", "ddof": 0}]


def test_dynamic_sampling_leaves_out_groups_that_do_not_differ(monkeypatch):
    """The second of three groups: each of its completions has the same reward. All tokens that
    were sampled are counted."""
    calls = record_calls(monkeypatch, page, "watch")
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0] * 4, [0.0, 1.0, 1.0, 1.0]])
    rule = in_turn(*rewards.flatten().tolist())
    kept = log_of(rule, steps=1, dynamic_sampling=True)[0]
    adv = group_advantages(rewards)[[0, 2]].flatten().tolist()
    learnt = [float(row[mask][0]) for call in calls
              for row, mask in zip(call.args[5], call.args[4].mask, strict=True)]
    assert sorted(learnt) == sorted(adv)
    assert kept["num_tokens"] == log_of(rule, steps=1)[0]["num_tokens"]


def test_completions_that_are_equally_wrong_teach_nothing_however_long_they_are():
    """Dynamic sampling looked at rewards that already had the overlong penalty in them. So a batch
    without a right answer was kept, and taught length alone. DAPO's eq. 11 counts right answers."""
    log, moments, model = Log(), [], tiny()
    config = replace(CONFIG, dynamic_sampling=True, overlong_cache=6, kl_coef=0.0, weight_decay=0.1)
    train_grpo(model, RAGGED, Digits(lambda completion: 0.0), config, log=log,
               save=lambda state: moments.append(copy_of(state.optimizer.state_dict()["state"])))
    assert torch.equal(weights(model), weights(tiny()))
    assert moments == [{}] * 3             # the optimizer made no step
    for metrics in log:
        assert metrics["completions/min_length"] < metrics["completions/max_length"]
        assert metrics["frac_reward_zero_std"] == 1
        assert not {"grad_norm", "entropy", "kl"} & set(metrics)
        assert metrics["reward"] == metrics["reward_std"] == 0
        assert metrics["learning_rate"] == CONFIG.lr


def test_the_overlong_penalty_is_learnt_from_and_is_no_part_of_the_reward():
    """With a cache as long as a completion may be, the penalty of n tokens of 6 is -n/6."""
    plain, shaped = (log_of(in_turn(1.0, 0.0, 0.0, 1.0), RAGGED, steps=1, overlong_cache=cache)[0]
                     for cache in (0, 6))
    penalty = -shaped["completions/mean_length"] / 6
    assert shaped["rewards/overlong_penalty/mean"] == pytest.approx(penalty)
    assert shaped["completions/min_length"] < 6
    assert "rewards/overlong_penalty/mean" not in plain
    for name in ("reward", "reward_std", "frac_reward_zero_std", "rewards/rule/mean"):
        assert shaped[name] == plain[name], name
    assert shaped["grad_norm"] != pytest.approx(plain["grad_norm"], rel=1e-2)


def test_the_overlong_penalty_lowers_what_advantages_are_made_of():
    """Every reward is 1, and a completion of n of the 6 tokens costs n/6."""
    shaped, log = [], Log()

    def advantages(rewards):
        shaped.append(rewards)
        return group_advantages(rewards)

    config = replace(CONFIG, steps=1, overlong_cache=6)
    train_grpo(tiny(), RAGGED, Digits(lambda completion: 1.0), config, advantages=advantages,
               log=log)
    expected = 1 - log[0]["completions/mean_length"] / 6
    assert float(shaped[0].mean()) == pytest.approx(expected)
    assert float(shaped[0].max()) < 1


def test_a_completion_without_a_verdict_is_left_out_and_counted():
    """Of each four, one has no verdict, and the others have (1 + 0 + 1)/3 on average."""
    log = log_of(rule=in_turn(None, 1.0, 0.0, 1.0), steps=1)
    assert log[0]["frac_reward_none"] == 0.25
    assert log[0]["reward"] == pytest.approx(2 / 3)


def test_a_reward_without_a_verdict_on_this_batch_stops_nothing():
    """A language reward has no verdict on a batch of sums: None for every completion. The verdicts
    of the other rewards are enough."""
    def silent(prompts, completions, **_):
        return [None] * len(completions)

    task, log = Digits(length), Log()
    task.rewards = {**task.rewards, "silent": silent}
    train_grpo(tiny(), TOKENIZER, task, CONFIG, log=log)
    assert "rewards/rule/mean" in log[0] and "rewards/silent/mean" not in log[0]
    assert log[0]["frac_reward_none"] == 0


def test_nan_is_no_verdict_like_none():
    nan = weights_after(rule=in_turn(float("nan"), 1.0, 0.0, 1.0), steps=1)
    none = weights_after(rule=in_turn(None, 1.0, 0.0, 1.0), steps=1)
    assert torch.equal(nan, none) and bool(none.isfinite().all())


@pytest.mark.parametrize("reward, message", [
    (None, "none of the 12 completions got a reward"),
    (float("nan"), "none of the 12"),
    (float("inf"), "finite"),
])
def test_rewards_that_cannot_be_used(reward, message):
    with pytest.raises(ValueError, match=message):
        weights_after(rule=lambda completion: reward)


# what is learnt

def test_it_learns_what_is_rewarded():
    log = log_of(rule=lambda completion: float(completion.count("5")), steps=40,
                 prompts_per_step=4, group_size=8, max_new_tokens=4, kl_coef=0.0)
    assert log[0]["reward"] < 0.5
    assert sum(metrics["reward"] for metrics in log[-5:]) / 5 > 2


def test_more_kl_penalty_keeps_the_policy_closer():
    """The sign of the penalty: raising kl_coef must lower the KL."""
    def rule(completion):
        return float(any(digit in completion for digit in "5678"))

    free = log_of(rule, steps=25, group_size=8, kl_coef=1e-6)[-1]["kl"]
    held = log_of(rule, steps=25, group_size=8, kl_coef=1.0)[-1]["kl"]
    assert held < 0.5 * free


def test_without_a_kl_penalty_there_is_no_kl():
    assert "kl" not in log_of(kl_coef=0.0, steps=1)[0]
    assert log_of(steps=1)[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_the_reference_is_replaced_when_asked():
    """With the reference replaced after every step, each step starts at KL 0."""
    for metrics in log_of(ref_sync_steps=1):
        assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert log_of()[-1]["kl"] > 1e-5


def test_eos_is_trained_where_pad_is_eos():
    """A policy whose reward is higher for shorter completions must learn to stop, also with a
    tokenizer whose padding is its EOS."""
    tokenizer = build_tokenizer()
    tokenizer.pad_id = tokenizer.eos_id
    model = tiny()

    def stop_probability():
        ids = torch.tensor([tokenizer.encode_prompt("7=") + [tokenizer.eos_id]])
        return float(token_logprobs(model, ids)[0, -1].detach().exp())

    before = stop_probability()
    config = replace(CONFIG, steps=40, group_size=16, kl_coef=0.0)
    train_grpo(model, tokenizer, Digits(lambda completion: -length(completion)), config)
    assert before < 0.1 and stop_probability() > 0.5


# metrics

def test_metrics_are_those_of_the_whole_batch():
    whole, split = log_of(steps=1)[0], log_of(steps=1, token_budget=12)[0]
    for name in ("reward", "kl", "entropy", "grad_norm", "completions/mean_length", "num_tokens",
                 "sampling/sampling_logp_difference/mean"):
        assert split[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name


def test_every_metric_is_that_of_the_whole_batch_in_several_passes():
    """Rows of many lengths, some of them clipped, each row a micro-batch of its own."""
    several = dict(steps=1, iterations=3, minibatches=2, lr=5e-2, overlong_cache=4)
    whole = log_of(length, RAGGED, token_budget=9999, **several)[0]
    split = log_of(length, RAGGED, token_budget=1, **several)[0]
    assert whole.keys() == split.keys()
    assert whole["clip_ratio/low_mean"] + whole["clip_ratio/high_mean"] > 0
    for name in set(whole) - {"step_time"}:
        assert split[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-5), name


def test_metrics_of_a_batch_by_hand():
    """Rewards 1, 0, 0, 0 in each of three groups: the mean is 1/4. The squared deviations of a
    group are (3/4)² + 3 (1/4)² = 3/4, so the variance is (3 * 3/4) / (12 - 1) = 9/44."""
    metrics = log_of(rule=in_turn(1.0, 0.0, 0.0, 0.0), steps=1)[0]
    assert metrics["reward"] == 0.25
    assert metrics["reward_std"] == pytest.approx((9 / 44) ** 0.5)
    assert metrics["frac_reward_zero_std"] == 0
    assert metrics["loss"] == pytest.approx(0, abs=1e-6)
    assert metrics["grad_norm"] > 1e-3


def test_the_loss_is_the_mean_over_minibatches(monkeypatch):
    averages = record_calls(monkeypatch, page, "aggregate")
    metrics = log_of(steps=1, iterations=2, minibatches=2, lr=5e-2, kl_coef=1.0)[0]
    losses = [-float(call.result.detach()) for call in averages]
    assert len(losses) == 4 and max(map(abs, losses)) > 1e-3
    assert metrics["loss"] == pytest.approx(sum(losses) / 4)


def test_how_many_groups_teach_nothing():
    """Two groups of three have equal rewards."""
    metrics = log_of(rule=in_turn(*[1.0, 0.0, 0.0, 0.0], *[1.0] * 4, *[0.0] * 4), steps=1)[0]
    assert metrics["frac_reward_zero_std"] == pytest.approx(2 / 3)
    assert 0 < metrics["step_time"] < 60


@pytest.mark.parametrize("changes, calls", [
    ({}, 0), ({"kl_coef": 0.1}, 1), ({"iterations": 2}, 1), ({"minibatches": 2}, 1),
    ({"kl_coef": 0.1, "iterations": 2, "minibatches": 2}, 2),
])
def test_no_log_prob_is_computed_without_need(changes, calls, monkeypatch):
    """The old ones count where there are several updates, the reference's where there is a
    penalty."""
    recorded = record_calls(monkeypatch, page, "rollout_logprobs")
    weights_after(steps=1, **{"kl_coef": 0.0, **changes})
    assert len(recorded) == calls


def test_the_learning_rate_rises_and_falls():
    """lr 1, one step of warm-up, then a cosine to 0.1. The third rate is
    0.1 + 0.9 (1 + cos(π/3))/2 = 0.775, the fourth 0.1 + 0.9 (1 + cos(2π/3))/2 = 0.325."""
    log = log_of(steps=5, warmup_steps=1, min_lr_ratio=0.1, lr=1.0, max_grad_norm=1e-9)
    rates = [metrics["learning_rate"] for metrics in log]
    assert rates == pytest.approx([0.5, 1.0, 0.775, 0.325, 0.1])


def test_the_learning_rate_may_stay():
    log = log_of(warmup_steps=0, min_lr_ratio=1.0, lr=1e-3)
    assert [metrics["learning_rate"] for metrics in log] == [1e-3] * 3


def test_dropout_is_off_while_reinforcing():
    """Dropout makes the learner another policy than the sampler: ratios away from 1 before any
    update."""
    model, log = tiny(), Log()
    model.set_dropout(0.5)
    model.train()
    train_grpo(model, TOKENIZER, Digits(length), CONFIG, log=log)
    assert log[0]["sampling/sampling_logp_difference/mean"] < 1e-5


def test_one_step_by_hand():
    """The page against its parts: at ratio 1 the first gradient is that of
    -1/B Σ_i 1/|o_i| Σ_t A_i log π(o_i,t)."""
    problems = Arithmetic("addition", 2).sample(3, random.Random(3))
    task, log = Digits(length), Log()
    task.sample = lambda n, rng, split="train": problems
    config = replace(CONFIG, steps=1, kl_coef=0.0, max_grad_norm=1e9)
    train_grpo(tiny(), TOKENIZER, task, config, log=log)

    model = tiny()
    generator = torch.Generator().manual_seed(derive_seed(0, "grpo", 0, "sample"))
    prompts = [TOKENIZER.encode_prompt(problem.prompt) for problem in problems]
    rollouts = sample(model, prompts, group=4, max_new_tokens=6, eos_id=TOKENIZER.eos_id,
                      pad_id=TOKENIZER.pad_id, generator=generator)
    texts = [TOKENIZER.decode_completion(ids) for ids in rollouts.completion_ids()]
    rewards = torch.tensor([length(text) for text in texts]).view(3, 4)
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    adv = ((rewards - mean) / (std + 1e-4)).flatten()

    logp = model(rollouts.tokens).log_softmax(-1)
    ends = rollouts.prompt_lengths + rollouts.completion_lengths
    loss = 0
    for i in range(12):
        slots = range(int(rollouts.prompt_lengths[i]), int(ends[i]))
        row = torch.stack([logp[i, t - 1, rollouts.tokens[i, t]] for t in slots])
        loss = loss - adv[i] * row.mean() / 12
    loss.backward()
    norm = flat(p.grad for p in model.parameters()).norm()
    assert log[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


# errors

@pytest.mark.parametrize("bad, message", [
    (dict(group_size=1), "group_size is 1: at least 2"),
    (dict(max_new_tokens=0), "max_new_tokens is 0"),
    (dict(temperature=-1.0), "temperature is -1"),
    (dict(temperature=0.0), "temperature is 0"),
    (dict(aggregate="mean"), "aggregate is 'mean'"),
    (dict(kl_coef=-0.1), "kl_coef is -0.1"),
    (dict(steps=0), "steps is 0"),
    (dict(minibatches=99), "minibatches is 99"),
    (dict(lr=float("nan")), "lr is nan"),
])
def test_bad_numbers(bad, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **bad)


def test_a_prompt_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="model's context of 128"):
        weights_after(max_new_tokens=127)


def test_a_broken_model_stops_the_run_before_the_step():
    model = tiny()
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    before = weights(model)
    with pytest.raises(ValueError, match="logits that are not finite"):
        train_grpo(model, TOKENIZER, Digits(length), CONFIG)
    assert torch.equal(weights(model), before)


def test_an_update_that_breaks_the_weights_stops_the_run():
    """Loss and gradient are finite, and the step is not. Such weights were saved, with exit
    code 0."""
    with pytest.raises(NonFiniteError, match="step 1: the update made"):
        weights_after(lr=1e39)


def test_a_loss_that_is_not_finite_stops_the_run_and_shows_the_row(monkeypatch):
    """A loop that skips NaN losses and goes on drops optimizer steps silently."""
    monkeypatch.setattr("minirl.train.regularisers.k3", lambda logp, ref_logp: logp * float("nan"))
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan .*Row"):
        weights_after()


def test_the_defaults():
    """The README and RESULTS.md quote runs with these numbers."""
    options = dict(
        max_draws=1, mask_truncated=False, top_entropy=1.0, off_policy=0, old_logp="learner",
        importance="none", importance_max=3.0, importance_min=0.0, geometric_max=0.0,
        geometric_min=0.0, off_policy_delta=0.0, top_k=0, top_p=1.0, min_p=0.0,
        repetition_penalty=1.0, pass_k=4, dual_clip=0.0, dppo_delta=0.2,
        sapo_temp_pos=1.0, sapo_temp_neg=1.05, vespo_k_pos=2.0, vespo_lambda_pos=3.0,
        vespo_k_neg=3.0, vespo_lambda_neg=2.0, cov_share=2e-4, cov_low=1.0, cov_high=5.0,
        cov_kl_coef=1.0, kl_estimator="k3", ref_mixup=1.0, entropy_coef=0.0,
        entropy_target=0.0, entropy_coef_min=0.0, entropy_coef_max=1.0, entropy_coef_delta=0.005)
    assert asdict(GRPOConfig()) == options | dict(
        steps=44, prompts_per_step=16, group_size=8, iterations=1, minibatches=1,
        lr=0.0004, warmup_steps=3, min_lr_ratio=0.1, kl_coef=0.01, ref_sync_steps=0,
        clip_low=0.2, clip_high=0.2, aggregate="sequence_mean", scale="group", ddof=1,
        dynamic_sampling=False, overlong_cache=0, max_new_tokens=80, temperature=1.0,
        beta1=0.9, beta2=0.999, weight_decay=0.0, max_grad_norm=1.0, token_budget=8192)
    assert signature(train_grpo).parameters["seed"].default == 0
    with pytest.raises(FrozenInstanceError):
        GRPOConfig().lr = 1.0
