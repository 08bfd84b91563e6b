"""minirl/train/ppo.py"""

from dataclasses import FrozenInstanceError, asdict, replace
from inspect import signature

import pytest
import torch

import minirl.train.ppo as page
from minirl.equations.advantages import gae
from minirl.equations.kl import AdaptiveKLController
from minirl.inference import collect, sampler
from minirl.lm.heads import ScalarModel, score_ids
from minirl.lm.logprobs import token_logprobs
from minirl.train import objectives
from minirl.train.metrics import NonFiniteError
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.presets import PPO_PRESETS
from tests.train import small
from tests.train.small import (
    STANDSTILL,
    TOKENIZER,
    Digits,
    Log,
    flat,
    in_turn,
    length,
    record_calls,
    record_gradients,
    save_step,
    weights,
)

CONFIG = PPOConfig(steps=3, episodes=12, minibatch_size=6, lr=1e-2, value_lr=1e-2, warmup_steps=0,
                   max_new_tokens=6, missing_eos_penalty=0.0)
TEXTS = ["the cat sat", "a dog ran home", "it rains", "we read"]


def tiny(eos=0.0):
    """Return the policy. With `eos` it also ends completions early, as its EOS is likelier."""
    model = small.tiny(tie_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.eos_id] += eos * model.norm.weight / 16 ** 0.5
    return model


def scalar_model():
    """Return a reward model, from which the value function starts."""
    torch.manual_seed(1)
    return ScalarModel(tiny())


def run(rule=length, seed=0, model=None, value_model=None, pretraining=(), kl_control=None,
        **changes):
    """Return the weights after training, and the metrics of each step."""
    log = Log()
    model = train_ppo(model or tiny(), TOKENIZER, Digits(rule), replace(CONFIG, **changes),
                      value_model=value_model or scalar_model(), pretraining=pretraining,
                      kl_control=kl_control, seed=seed, log=log)
    return weights(model), log


@pytest.fixture
def calls(monkeypatch):
    """The calls of the functions that the page uses, by name."""
    names = ("kl_shaped_rewards", "gae", "rollout_values", "rollout_logprobs", "masked_whiten",
             "check_finite")
    by_name = {name: record_calls(monkeypatch, page, name) for name in names}
    return {**by_name,
            "clipped_surrogate": record_calls(monkeypatch, objectives, "clipped_surrogate"),
            "sample": record_calls(monkeypatch, sampler, "sample")}


def all_gradients(monkeypatch, **changes):
    """Return the gradients of policy and value function in each update of the first step, before
    clipping."""
    models = record_gradients(monkeypatch)
    run(steps=1, **changes)
    policies, values = models[::2], models[1::2]
    return [(flat(policy), flat(x for x in value if x is not None))    # its unembedding has none
            for policy, value in zip(policies, values, strict=True)]


def gradients(monkeypatch, **changes):
    """Return the gradients of policy and value function in the first update, before clipping."""
    return all_gradients(monkeypatch, **changes)[0]


def test_three_steps_twice_are_the_same_bit_for_bit():
    assert torch.equal(run()[0], run()[0])
    assert not torch.equal(run()[0], run(seed=1)[0])


@pytest.mark.parametrize("extra", [
    {},
    dict(ptx_coef=0.5, ptx_batch_size=5, pretraining=TEXTS),
], ids=["ppo", "ppo-ptx"])
def test_a_micro_batch_split_changes_no_gradient(extra, monkeypatch):
    """Neither the policy's nor the value function's, also with pretraining texts."""
    whole = gradients(monkeypatch, token_budget=10_000, **extra)
    split = gradients(monkeypatch, token_budget=12, **extra)
    for a, b in zip(whole, split, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)
        assert a.abs().max() > 1e-3


def test_the_mean_gradient_of_two_minibatches_is_that_of_the_batch(monkeypatch):
    """Each minibatch divides by its own total, and the two have six rows each."""
    changes = dict(aggregate="sequence_mean", lr=STANDSTILL, value_lr=STANDSTILL)
    first, second = all_gradients(monkeypatch, minibatch_size=6, **changes)
    whole = gradients(monkeypatch, minibatch_size=12, **changes)
    for a, b, c in zip(first, second, whole, strict=True):
        torch.testing.assert_close((a + b) / 2, c, atol=1e-5, rtol=1e-5)


def test_every_epoch_shuffles_all_rows_anew(calls):
    """12 rows in minibatches of 6, which are micro-batches here: 3 steps of 2 epochs."""
    run(epochs=2)
    minibatches = [frozenset(call.args[2].tolist()) for call in calls["check_finite"]]
    firsts, seconds = minibatches[::2], minibatches[1::2]
    assert len(set(firsts)) == len(firsts) == 6
    for first, second in zip(firsts, seconds, strict=True):
        assert first | second == set(range(12))


def adapt(kl_coef, kl, completions):
    return kl_coef * (1.1 if kl > 0.01 else 0.9)


@pytest.mark.parametrize("changes, options", [
    ({}, {}),
    (dict(epochs=2, minibatch_size=5, ptx_coef=0.3), dict(pretraining=TEXTS, kl_control=adapt)),
], ids=["plain", "several passes"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_continues_bit_for_bit(at, changes, options):
    """Policy, value function, both optimizers, the reference, the average and kl_coef."""
    config = replace(CONFIG, steps=4, **changes)
    save, state = save_step(at)
    whole = train_ppo(tiny(), TOKENIZER, Digits(length), config, value_model=scalar_model(),
                      save=save, **options)

    model = tiny()
    model.load_state_dict(state["model"])
    train_ppo(model, TOKENIZER, Digits(length), config, value_model=scalar_model(), resume=state,
              **options)
    assert torch.equal(weights(model), weights(whole))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_learner_agree(temperature):
    for metrics in run(temperature=temperature, episodes=6)[1]:
        assert metrics["sampling/sampling_logp_difference/mean"] < 1e-5


def test_the_samplers_log_probs_are_not_learnt_from(monkeypatch):
    """They are compared with the learner's, and no more."""
    expected, _ = run(epochs=2)

    def collect_with_others(*args, **options):
        answers = collect.collect(*args, **options)
        answers.rollouts.behavior_logp.sub_(0.5)
        return answers

    monkeypatch.setattr(page, "collect", collect_with_others)
    after, log = run(epochs=2)
    assert torch.equal(after, expected)
    assert log[0]["sampling/sampling_logp_difference/mean"] == pytest.approx(0.5, abs=1e-4)


# scores, rewards, values

def test_the_score_stands_on_the_last_sampled_token(calls):
    """On the EOS, and never on padding: one slot behind the EOS, the value function would learn
    that nothing comes. A completion that was cut off has no score, and here no penalty."""
    run(rule=lambda completion: 5.0, steps=1, kl_coef=0.0, model=tiny(eos=6.0), episodes=40)
    rollouts = calls["sample"][0].result
    rewards = calls["kl_shaped_rewards"][0].result
    assert len(set(rollouts.lengths.tolist())) > 3
    assert 0 < int(rollouts.truncated.sum()) < 40
    for row, length_of_row in enumerate(rollouts.lengths.tolist()):
        last, slots = length_of_row - 1, rewards[row].nonzero().flatten().tolist()
        if rollouts.truncated[row]:
            assert slots == []
        else:
            assert slots == [last]
            assert float(rewards[row, last]) == 5.0
            assert int(rollouts.tokens[row, last]) == TOKENIZER.eos_id


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_kl_penalty_is_zero_at_the_start(calls, temperature):
    """The reference is the first policy."""
    run(steps=1, kl_coef=0.5, episodes=24, temperature=temperature)
    _, logp, ref_logp, _, kl_coef = calls["kl_shaped_rewards"][0].args
    assert kl_coef == 0.5 and torch.equal(logp, ref_logp)


def test_the_kl_penalty_stands_on_every_sampled_token(calls):
    """Of the second step; the last sampled token, which also has the score, is left out."""
    run(steps=2, kl_coef=0.5, episodes=24)
    (_, logp, ref_logp, mask, _), _, rewards = calls["kl_shaped_rewards"][1]
    expected = -0.5 * (logp - ref_logp) * mask
    last = mask.cumsum(1) == mask.sum(1, keepdim=True)
    left_out = last | ~mask
    torch.testing.assert_close(torch.where(left_out, 0, rewards),
                               torch.where(left_out, 0, expected))
    assert float(expected.abs().sum()) > 0


def test_the_value_function_starts_as_the_reward_model(calls):
    """Its value of a state is the reward model's score of the tokens so far. The reward model
    itself does not change."""
    reward_model = scalar_model()
    before = weights(reward_model)
    run(steps=1, value_model=reward_model)
    assert torch.equal(weights(reward_model), before)

    rollouts = calls["sample"][0].result
    values, end = calls["rollout_values"][0].result
    for row in range(4):
        tokens = rollouts.tokens[row].tolist()
        start, stop = int(rollouts.prompt_lengths[row]), int(rollouts.lengths[row])

        def score(t, tokens=tokens, start=start):
            return float(score_ids(reward_model, [tokens[:start]], [tokens[start:t]], 0))

        for t in range(start + 1, stop):
            assert float(values[row, t]) == pytest.approx(score(t), abs=1e-5)
        assert float(end[row]) == pytest.approx(score(stop), abs=1e-5)


def test_a_completion_that_was_cut_off_is_not_over(calls):
    """It has the penalty in place of its score, and the value of its last state stands for what
    was to come. A completion that ended has neither."""
    run(rule=lambda completion: 3.0, steps=1, model=tiny(eos=6.0), episodes=40, kl_coef=0.0,
        missing_eos_penalty=0.7)
    cut = calls["sample"][0].result.truncated
    _, end = calls["rollout_values"][0].result
    scores = calls["kl_shaped_rewards"][0].args[0]
    assert 0 < int(cut.sum()) < 40
    assert torch.equal(scores, torch.where(cut, -0.7, 3.0))
    assert torch.equal(calls["gae"][0].options["bootstrap"], torch.where(cut, end, 0))


def test_metrics_say_what_was_trained_on(calls, monkeypatch):
    """Every completion is cut off here, so each costs the penalty and no score counts. `reward`
    said 1, and no metric said -0.7. TRL's objective/scores does; objective/rlhf_reward is this
    minus the KL penalty."""
    monkeypatch.setattr(TOKENIZER, "stop_ids", [])
    _, log = run(rule=lambda completion: 1.0, steps=2, episodes=10, missing_eos_penalty=0.7,
                 kl_coef=0.5)                                # and not as many rows as tokens
    for metrics, call in zip(log, calls["kl_shaped_rewards"], strict=True):
        _, logp, ref_logp, mask, _ = call.args
        assert metrics["completions/clipped_ratio"] == 1
        assert metrics["reward"] == metrics["rewards/rule/mean"] == 1
        assert metrics["objective/scores"] == pytest.approx(-0.7)
        kl = float(((logp - ref_logp) * mask).sum(1).mean())
        assert metrics["objective/kl"] == pytest.approx(kl)
        assert metrics["objective/rlhf_reward"] == pytest.approx(-0.7 - 0.5 * kl)
        assert 0 < metrics["step_time"] < 60
    assert abs(log[1]["objective/kl"]) > 1e-3


def test_the_loss_is_the_mean_over_minibatches(monkeypatch):
    averages = record_calls(monkeypatch, page, "aggregate")
    _, log = run(steps=1)
    losses = [-float(call.result.detach()) for call in averages]
    assert len(losses) == 2 and min(map(abs, losses)) > 1e-3
    assert log[0]["loss"] == pytest.approx(sum(losses) / 2)


def test_the_mean_score_is_over_completions_with_a_verdict(calls):
    """Some completions ended, some were cut off, and every fourth has no verdict."""
    _, log = run(rule=in_turn(None, 2.0, 2.0, 2.0), steps=1, model=tiny(eos=6.0), episodes=40,
                 missing_eos_penalty=0.5)
    cut = calls["sample"][0].result.truncated.view(10, 4)[:, [1, 2, 3]].float()
    scores = -0.5 * cut + 2.0 * (1 - cut)
    assert 0 < cut.mean() < 1
    assert log[0]["reward"] == 2.0
    assert log[0]["objective/scores"] == pytest.approx(float(scores.mean()))


@pytest.mark.parametrize("whiten", [True, False])
def test_constant_rewards_that_are_foreseen_give_no_policy_gradient(whiten):
    """The value of every state is 1/2, and a score of 1/2 comes, or is what a cut completion is
    worth. So every advantage is 0, and whitening must not blow up a rounding error."""
    value_model, model, log = scalar_model(), tiny(eos=6.0), Log()
    value_model.head.linear.weight.data.zero_()
    value_model.head.linear.bias.data.fill_(0.5)
    before = weights(model)
    config = replace(CONFIG, kl_coef=0.0, whiten_advantages=whiten)
    train_ppo(model, TOKENIZER, Digits(lambda completion: 0.5), config, value_model=value_model,
              log=log)
    assert torch.equal(weights(model), before)
    assert len(log) == 3
    for metrics in log:
        assert metrics["loss/value"] == 0.0
        assert metrics["value/explained_variance"] == 0.0
        assert metrics["grad_norm"] == 0.0


def test_advantages_are_gaes_whitened_over_the_batch(calls):
    run(steps=1, lam=0.8, gamma=0.9)
    (rewards, values, mask), options, (adv, returns) = calls["gae"][0]
    assert options["lam"] == 0.8 and options["gamma"] == 0.9
    torch.testing.assert_close(gae(rewards, values, mask, **options)[1], returns)

    (before, white_mask), _, white = calls["masked_whiten"][0]
    assert torch.equal(before, adv) and torch.equal(white_mask, mask)
    assert float(white[mask].mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(white[mask].std()) == pytest.approx(1.0, abs=1e-4)


def test_advantages_may_stay_as_they_are(calls):
    run(steps=1, whiten_advantages=False)
    adv, _ = calls["gae"][0].result
    rows = calls["check_finite"][0].args[2]
    minibatch = calls["clipped_surrogate"][0].args[2]
    assert calls["masked_whiten"] == []
    assert torch.equal(minibatch, adv[rows, :minibatch.shape[1]])


def test_a_row_without_a_verdict_is_left_out():
    _, log = run(rule=in_turn(None, 1.0, float("nan"), 2.0), steps=1)
    assert log[0]["reward"] == 1.5
    assert log[0]["frac_reward_none"] == 0.5


def test_a_batch_without_a_verdict_is_an_error():
    with pytest.raises(ValueError, match="none of the 12 completions got a reward"):
        run(rule=lambda completion: None)


# update

def test_nothing_is_clipped_in_a_single_pass():
    for metrics in run(minibatch_size=12)[1]:
        assert metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0


def test_something_is_clipped_in_several_passes():
    _, log = run(epochs=4, lr=5e-2)
    assert sum(m["clip_ratio/low_mean"] + m["clip_ratio/high_mean"] for m in log) > 0


def test_each_clip_has_its_bound(calls):
    run(steps=1, clip_low=0.1, clip_high=0.3)
    for call in calls["clipped_surrogate"]:
        assert call.options == {"clip_low": 0.1, "clip_high": 0.3}


def test_a_value_clip_of_0_is_no_bound():
    def weights_with(value_clip):
        return run(epochs=3, value_clip=value_clip)[0]

    assert torch.equal(weights_with(0.0), weights_with(1e9))
    assert not torch.equal(weights_with(0.0), weights_with(1e-3))


def test_value_coef_scales_the_value_functions_gradient_alone(monkeypatch):
    policy, value = gradients(monkeypatch, value_coef=1.0)
    same, half = gradients(monkeypatch, value_coef=0.5)
    assert torch.equal(same, policy)
    torch.testing.assert_close(half, value / 2, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_result_is_the_average_of_the_weights(decay):
    """average = decay * average + (1 - decay) * weights after every update, from the first policy
    on. With a decay of 0 the result is the last weights."""
    model, updates = tiny(), []
    average = weights(model)
    config = replace(CONFIG, minibatch_size=12, ema_decay=decay)       # one update a step
    train_ppo(model, TOKENIZER, Digits(length), config, value_model=scalar_model(),
              save=lambda state: updates.append(weights(state.model)))
    for updated in updates:
        average = decay * average + (1 - decay) * updated
    torch.testing.assert_close(weights(model), average, atol=1e-6, rtol=0)


def test_a_policy_in_bfloat16_is_averaged_in_float32():
    """A step of 1/256 of a weight is lost in bfloat16: an average with decay 0.9 would never
    move."""
    model = tiny().to(torch.bfloat16)
    before = weights(model)
    config = replace(CONFIG, lr=1e-1)
    train_ppo(model, TOKENIZER, Digits(length), config, value_model=scalar_model())
    assert model.dtype == torch.bfloat16
    assert not torch.equal(weights(model), before)


def test_learning_rates_warm_up_from_a_tenth_and_then_stay():
    _, log = run(steps=5, warmup_steps=3, episodes=4)
    rates = [metrics["learning_rate"] for metrics in log]
    assert rates == pytest.approx([1e-3, 4e-3, 7e-3, 1e-2, 1e-2])


def test_policy_and_value_function_have_their_own_learning_rates():
    """Both warm up alike: a tenth, four tenths, seven tenths."""
    rates = []

    def save(state):
        optimizers = state.optimizer, state.parts["value_optimizer"]
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])

    config = replace(CONFIG, warmup_steps=3, lr=1e-2, value_lr=1e-3)
    train_ppo(tiny(), TOKENIZER, Digits(length), config, value_model=scalar_model(), save=save)
    policy, value = zip(*rates, strict=True)
    assert policy == pytest.approx((1e-3, 4e-3, 7e-3))
    assert value == pytest.approx((1e-4, 4e-4, 7e-4))


def test_pretraining_text_adds_its_gradient(monkeypatch):
    """Eq. 2: γ times the gradient of the text's mean log-likelihood per token, EOS included, on
    top of PPO's. There is one text, so every draw is this one; its BOS is given."""
    plain, _ = gradients(monkeypatch)
    both, _ = gradients(monkeypatch, ptx_coef=0.5, ptx_batch_size=8, pretraining=["ab"])

    model = tiny()
    ids = torch.tensor([[TOKENIZER.bos_id, *TOKENIZER.encode("ab"), TOKENIZER.eos_id]])
    mask = torch.tensor([[False, True, True, True]])
    loss = -0.5 * token_logprobs(model, ids, mask=mask).sum() / 3
    expected = flat(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(both - plain, expected, atol=1e-5, rtol=1e-4)


def test_ptx_keeps_the_text_in_mind():
    _, log = run(steps=12, ptx_coef=2.0, pretraining=TEXTS, ptx_batch_size=4)
    assert log[-1]["loss/pretraining"] < log[0]["loss/pretraining"] - 0.3


def test_ptx_needs_text():
    with pytest.raises(ValueError, match="nothing to read"):
        run(ptx_coef=1.0)


def test_a_controller_sets_the_next_steps_coefficient():
    arguments = []

    def double(kl_coef, kl, completions):
        arguments.append((kl_coef, kl, completions))
        return kl_coef * 2

    _, log = run(kl_control=double)
    coefficients, distances, counts = zip(*arguments, strict=True)
    assert coefficients == pytest.approx((0.1, 0.2, 0.4))
    assert [metrics["kl_coef"] for metrics in log] == pytest.approx([0.1, 0.2, 0.4])
    assert distances == tuple(metrics["objective/kl"] for metrics in log)
    assert distances[0] == 0.0
    assert set(counts) == {12}


def test_zieglers_controller_by_hand():
    """The KL is 9, and the target 6: an error of 9/6 - 1 = 0.5, held at 0.2. So the coefficient
    grows by the factor 1 + 0.2 * 256/10,000 = 1.00512."""
    config = PPOConfig(**PPO_PRESETS["ziegler"].numbers)
    control = PPO_PRESETS["ziegler"].arguments(config)["kl_control"]
    reference = AdaptiveKLController(0.15, target=6.0, horizon=10_000)
    reference.update(9.0, 256)
    assert control(0.15, 9.0, 256) == reference.kl_coef == pytest.approx(0.15 * 1.00512)


def test_ppos_controller_by_hand():
    """Half the coefficient below 1/1.5 of the target, twice the coefficient above 1.5 of it."""
    control = PPO_PRESETS["adaptive-kl"].arguments(PPOConfig(kl_target=1.0))["kl_control"]
    coefficients = [control(0.1, kl, 128) for kl in (0.5, 1.0, 1.6)]
    assert coefficients == pytest.approx([0.05, 0.1, 0.2])


def test_the_papers_preset():
    """InstructGPT, appendix C.4."""
    config = PPOConfig(**PPO_PRESETS["instructgpt"].numbers)
    assert (config.episodes, config.minibatch_size, config.epochs) == (512, 64, 1)
    assert (config.clip_low, config.clip_high) == (0.2, 0.2)
    assert (config.kl_coef, config.gamma, config.temperature) == (0.02, 1.0, 1.0)
    assert (config.warmup_steps, config.ema_decay, config.value_lr) == (10, 0.992, 9e-6)
    assert (config.ptx_coef, config.beta1, config.beta2) == (27.8, 0.9, 0.95)


# what is learnt

def test_an_entropy_bonus_keeps_the_policy_undecided():
    def last_entropy(entropy_coef):
        _, log = run(rule=lambda completion: float(completion.count("5")), steps=15, episodes=24,
                     minibatch_size=24, entropy_coef=entropy_coef)
        return log[-1]["entropy"]

    assert last_entropy(0.5) > last_entropy(0.0)


def test_it_learns_what_is_rewarded():
    """The reward is 1 for each ASCII character minus 1 for each other one: about 1 at the start.
    A tag such as <think> is one token of seven characters, and the policy finds these."""
    def rule(completion):
        return float(sum(1 if character.isascii() else -1 for character in completion))

    _, log = run(rule, steps=40, episodes=32, minibatch_size=16, model=tiny(eos=6.0), kl_coef=0.0,
                 ema_decay=0.0, missing_eos_penalty=1.0)
    assert log[-1]["reward"] > 5.0 > 2.0 > log[0]["reward"]


def test_a_penalty_keeps_it_near():
    def last_kl(kl_coef):
        _, log = run(rule=lambda completion: -length(completion), steps=25, episodes=32,
                     minibatch_size=16, model=tiny(eos=5.0), kl_coef=kl_coef)
        return log[-1]["objective/kl"]

    assert last_kl(10.0) < 0.5 * last_kl(0.0)


def test_without_the_penalty_a_policy_that_would_be_scored_badly_never_ends():
    """The price of bootstrapping: where every end is scored below 0, it is better not to end. That
    is what missing_eos_penalty is for, and why it is on by default."""
    def last_clipped_ratio(penalty):
        _, log = run(rule=lambda completion: -2.0, steps=30, episodes=32, minibatch_size=16,
                     model=tiny(eos=6.0), kl_coef=0.0, missing_eos_penalty=penalty)
        return log[-1]["completions/clipped_ratio"]

    assert PPOConfig().missing_eos_penalty > 0
    assert last_clipped_ratio(0.0) > 0.9
    assert last_clipped_ratio(4.0) < 0.3


def test_metrics_do_not_depend_on_micro_batches():
    whole = run(steps=1, token_budget=10_000)[1][0]
    split = run(steps=1, token_budget=12)[1][0]
    for name in set(whole) - {"step_time"}:
        assert split[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name


# errors

@pytest.mark.parametrize("bad, message", [
    (dict(episodes=0), "episodes is 0"),
    (dict(value_lr=0.0), "value_lr is 0"),
    (dict(kl_coef=-1.0), "kl_coef is -1"),
    (dict(ema_decay=1.0), "ema_decay is 1"),
    (dict(lam=2.0), "lam is 2.0: at most 1"),
    (dict(temperature=float("nan")), "temperature is nan"),
])
def test_bad_numbers(bad, message):
    with pytest.raises(ValueError, match=message):
        run(**bad)


def test_a_prompt_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="model's context of 128"):
        run(max_new_tokens=127)


def test_a_text_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="text 1 has 302 tokens, more than the model's"):
        run(ptx_coef=1.0, pretraining=["short", "x" * 300])


@pytest.mark.parametrize("broken", ["lr", "value_lr"])
def test_an_update_that_breaks_the_weights_stops_the_run(broken):
    """The policy's or the value function's: loss and gradient are finite, and the step is not."""
    with pytest.raises(NonFiniteError, match="step 1: the update made"):
        run(**{broken: 1e39})


@pytest.mark.parametrize("reward", [float("inf"), -float("inf")])
def test_an_infinite_reward_stops_the_run(reward):
    with pytest.raises(ValueError, match="not finite"):
        run(rule=lambda completion: reward)


def test_a_loss_that_is_not_finite_stops_the_run_and_shows_the_row(monkeypatch):
    monkeypatch.setattr(page, "clipped_value_loss",
                        lambda values, *args, **options: values * float("nan"))
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan .*Row"):
        run()


def test_a_text_whose_loss_is_not_finite_stops_the_run_and_is_shown(monkeypatch):
    monkeypatch.setattr("minirl.train.pretraining.token_logprobs",
                        lambda *args, **options: token_logprobs(*args, **options) * float("nan"))
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan .*the cat sat"):
        run(ptx_coef=1.0, pretraining=TEXTS[:1])


def test_a_broken_value_function_stops_the_run():
    value_model = scalar_model()
    value_model.head.linear.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="values: .*not finite"):
        run(value_model=value_model)


def test_the_defaults():
    """The README and RESULTS.md quote runs with these numbers."""
    assert asdict(PPOConfig()) == dict(
        steps=60, episodes=128, epochs=1, minibatch_size=64, lr=0.0003, value_lr=0.001,
        warmup_steps=5, kl_coef=0.1, kl_target=1.0, kl_horizon=1000, clip_low=0.2,
        clip_high=0.2, aggregate="token_mean", gamma=1.0, lam=0.95, value_clip=0.2,
        value_coef=1.0, entropy_coef=0.0, whiten_advantages=True, ptx_coef=0.0,
        ptx_batch_size=64, ema_decay=0.9, missing_eos_penalty=1.0, max_new_tokens=16,
        temperature=1.0, beta1=0.9, beta2=0.95, weight_decay=0.0, max_grad_norm=1.0,
        token_budget=8192)
    assert signature(train_ppo).parameters["seed"].default == 0
    with pytest.raises(FrozenInstanceError):
        PPOConfig().lr = 1.0
