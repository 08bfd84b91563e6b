"""minirl/train/grpo.py with its options: whole steps."""

from dataclasses import replace

import pytest
import torch

import minirl.train.groups as groups
import minirl.train.grpo as page
from minirl.lm.logprobs import rollout_logprobs, token_logprobs
from minirl.lm.tokenizer import build_tokenizer
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.presets import GRPO_PRESETS
from tests.train.small import (
    STANDSTILL,
    TOKENIZER,
    Digits,
    Log,
    copy_of,
    flat,
    length,
    record_calls,
    record_gradients,
    save_step,
    tiny,
    weights,
)

RAGGED = build_tokenizer()
RAGGED.stop_ids = list(range(0, TOKENIZER.vocab_size, 9))   # completions of many lengths
CONFIG = GRPOConfig(steps=4, prompts_per_step=3, group_size=4, lr=1e-2, warmup_steps=0,
                    min_lr_ratio=1.0, beta2=0.95, max_new_tokens=6)
EVERYTHING = dict(
    off_policy=2, importance="token_truncate", importance_max=1.5, importance_min=0.1,
    geometric_min=0.5, geometric_max=2.0, off_policy_delta=0.02, top_entropy=0.6,
    mask_truncated=True, dual_clip=2.0, kl_estimator="corrected_k3", ref_sync_steps=2,
    ref_mixup=0.4, entropy_coef=0.05, entropy_target=4.1, entropy_coef_delta=0.01, minibatches=2,
    dynamic_sampling=True, max_draws=3, overlong_cache=3)


def digits(completion):
    return float(sum(character.isdigit() for character in completion))


def mixed(completion):
    """A rule that no policy learns soon, and by which most groups differ."""
    return float(sum(map(ord, completion)) % 3)


def trained(rule=length, *, log=None, save=None, arguments=None, **changes):
    """Return the model after training."""
    return train_grpo(tiny(), RAGGED, Digits(rule), replace(CONFIG, **changes), log=log, save=save,
                      **(arguments or {}))


def log_of(rule=length, arguments=None, **changes):
    log = Log()
    trained(rule, log=log, arguments=arguments, **changes)
    return log


def states_of(**changes):
    """Return a copy of the weights before the first step and after each step."""
    states = [tiny().state_dict()]
    trained(save=lambda state: states.append(copy_of(state.model.state_dict())), **changes)
    return states


# another distribution to sample from

@pytest.mark.parametrize("filters", [{"top_k": 4}, {"top_p": 0.6}, {"min_p": 0.3},
                                     {"repetition_penalty": 3.0}], ids=str)
def test_rollouts_are_drawn_as_the_filters_say(filters, monkeypatch):
    """The first draw of a step and those of dynamic sampling, and none by default."""
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    for changes, expected in ((filters, off | filters), ({}, off)):
        calls = record_calls(monkeypatch, page, "collect")
        more = record_calls(monkeypatch, groups, "collect")
        trained(mixed, steps=1, dynamic_sampling=True, max_draws=3, prompts_per_step=8,
                group_size=2, **changes)
        assert len(calls) == 1 and more
        for call in calls + more:
            assert {name: call.options[name] for name in off} == expected


def test_with_a_filter_the_ratio_to_the_sampler_is_what_it_keeps(monkeypatch):
    """sampling/ratio: the sum of the four largest probabilities, of each token that was drawn."""
    calls, log = record_calls(monkeypatch, page, "watch"), Log()
    trained(steps=1, log=log, top_k=4)
    kept = []
    for call in calls:
        *_, old, batch, _, _ = call.args
        p = tiny()(batch.tokens).softmax(-1).roll(1, dims=1)  # (b, T, V)
        four = p.topk(4).values.sum(-1)[batch.mask]
        torch.testing.assert_close((old - batch.behavior_logp).exp()[batch.mask], four)
        assert (p.gather(-1, batch.tokens[..., None])[..., 0] >= p.topk(4).values[..., 3])[
            batch.mask].all()
        kept.append(four.detach())
    assert log[0]["sampling/ratio/mean"] == pytest.approx(float(torch.cat(kept).mean()))
    assert log[0]["sampling/ratio/max"] < 0.5


# old rollouts

@pytest.mark.parametrize("lag", [0, 1, 3])
def test_rollouts_come_from_the_policy_of_so_many_steps_ago(lag, monkeypatch):
    """Recomputed by the weights of step max(0, t - K), their log-probs are the sampler's."""
    calls = record_calls(monkeypatch, page, "collect")
    states = states_of(off_policy=lag)
    assert len(calls) == 4
    for step, call in enumerate(calls):
        rollouts, logp = call.result.rollouts, {}
        for t in {max(0, step - lag), step}:
            model = tiny()
            model.load_state_dict(states[t])
            logp[t] = rollout_logprobs(model, rollouts)
        torch.testing.assert_close(logp[max(0, step - lag)], rollouts.behavior_logp, atol=1e-5,
                                   rtol=0)
        if lag and step:
            assert (logp[step] - rollouts.behavior_logp).abs().max() > 1e-3


def test_the_metrics_say_how_old_rollouts_are():
    fresh, old = log_of()[-1], log_of(off_policy=3)[-1]
    assert fresh["sampling/sampling_logp_difference/max"] < 1e-5
    assert fresh["sampling/ratio/min"] == pytest.approx(1, abs=1e-5)
    assert old["sampling/ratio/min"] < 0.98 and old["sampling/ratio/max"] > 1.02
    assert (old["sampling/sampling_logp_difference/max"]
            > old["sampling/sampling_logp_difference/mean"] > 1e-3)


def test_whose_log_probs_the_ratio_starts_from(monkeypatch):
    """With the sampler's, the ratio is π/μ, and something is clipped in a single pass."""
    olds = {}
    for whose in ("learner", "sampler"):
        calls = record_calls(monkeypatch, page, "watch")
        log_of(off_policy=1, old_logp=whose)
        olds[whose] = calls[-1].args
    _, _, logp, old, batch, *_ = olds["learner"]
    assert torch.equal(logp.detach(), old)
    _, _, logp, old, batch, *_ = olds["sampler"]
    assert torch.equal(old, batch.behavior_logp)
    assert (logp.detach() - old).abs().max() > 1e-3


def test_the_samplers_log_probs_need_no_forward_pass(monkeypatch):
    calls = record_calls(monkeypatch, page, "rollout_logprobs")
    trained(old_logp="sampler", kl_coef=0.0, minibatches=2)
    assert calls == []


def test_on_policy_both_are_the_same():
    """The sampler's log-probs are the learner's but for rounding."""
    learner, sampler = (weights(trained(steps=2, old_logp=whose)) for whose in
                        ("learner", "sampler"))
    torch.testing.assert_close(learner, sampler, atol=1e-4, rtol=0)


def test_importance_weights_are_one_on_policy():
    plain, weighed = (weights(trained(steps=2, **changes)) for changes in (
        {}, dict(importance="token_truncate", geometric_min=0.9, geometric_max=1.1)))
    torch.testing.assert_close(plain, weighed, atol=1e-4, rtol=0)
    metrics = log_of(importance="token_truncate")[-1]
    assert metrics["weights/mean"] == pytest.approx(1, abs=1e-4)
    assert metrics["weights/zero_tokens"] == metrics["weights/zero_completions"] == 0


def test_old_bad_completions_are_left_out():
    log = log_of(off_policy=3, off_policy_delta=1e-4)
    assert 0 < log[-1]["weights/zero_completions"] < 1
    assert log[0]["weights/zero_completions"] < 0.5        # the first step's are not old


# resume and splits

@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_continues_bit_for_bit_with_every_option(at):
    """Old policies, the reference, the coefficient and the optimizer are all in the state."""
    save, state = save_step(at)
    whole = trained(mixed, save=save, **EVERYTHING)
    assert {"past-0", "past-1", "reference"} == state["parts"].keys()
    assert {"entropy_coef", "entropy_bonus"} == state["numbers"].keys()
    model = tiny()
    model.load_state_dict(state["model"])
    train_grpo(model, RAGGED, Digits(mixed), replace(CONFIG, **EVERYTHING), resume=state)
    assert torch.equal(weights(model), weights(whole))
    assert not torch.equal(weights(model), weights(trained(mixed)))


def test_a_state_of_another_configuration_is_refused():
    save, state = save_step(1)
    trained(save=save, off_policy=1)
    with pytest.raises(ValueError, match="it is of another configuration"):
        train_grpo(tiny(), RAGGED, Digits(length), CONFIG, resume=state)


def test_without_options_the_state_is_what_it_was():
    """Checkpoints that were written before there were options can go on."""
    save, state = save_step(1)
    trained(save=save)
    assert state["parts"].keys() == {"reference"} and state["numbers"] == {}


def test_a_micro_batch_split_changes_no_gradient_with_every_option(monkeypatch):
    gradients = record_gradients(monkeypatch)
    for budget in (10_000, 12):
        trained(mixed, steps=3, token_budget=budget, **EVERYTHING)
    half = len(gradients) // 2
    assert half == 6
    for whole, split in zip(gradients[:half], gradients[half:], strict=True):
        assert flat(whole).abs().max() > 1e-4
        torch.testing.assert_close(flat(split), flat(whole), atol=1e-5, rtol=0)


def test_metrics_are_the_whole_batchs_with_every_option():
    whole, split = (log_of(mixed, steps=2, token_budget=budget, lr=STANDSTILL, **EVERYTHING)
                    for budget in (10_000, 12))
    for one, other in zip(whole, split, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"step_time"}:
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


# weights

def test_own_weights_multiply_the_surrogate_and_not_the_kl(monkeypatch):
    """Weights of 0 leave the gradient of the KL, which is 0 in the first step."""
    def nothing(logp, old_logp, behavior_logp, adv, counted, mask):
        assert not any(x.requires_grad for x in (logp, old_logp, behavior_logp, adv))
        assert counted.dtype == mask.dtype == torch.bool
        return torch.zeros_like(logp)

    gradients = record_gradients(monkeypatch)
    trained(steps=1, kl_coef=0.5, arguments={"weights": nothing})
    assert flat(gradients[0]).abs().max() < 1e-6
    trained(steps=1, arguments={"weights": lambda logp, *_: 2 * torch.ones_like(logp)}, kl_coef=0.0)
    trained(steps=1, kl_coef=0.0)
    torch.testing.assert_close(flat(gradients[1]), 2 * flat(gradients[2]))


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_only_the_tokens_of_the_highest_entropy_are_learnt(share):
    metrics = log_of(steps=1, top_entropy=share)[0]
    assert share - 0.02 <= metrics["weights/mean"] < share + 0.15  # first tokens have one entropy
    assert metrics["weights/zero_tokens"] == pytest.approx(1 - metrics["weights/mean"])


def test_nothing_is_weighed_unless_it_is_asked_for():
    assert not [name for name in log_of(steps=1)[0] if name.startswith("weights/")]


# the reference and the KL

def test_the_reference_is_mixed_by_hand():
    """ref <- 0.25 π + 0.75 ref after steps 2 and 4."""
    save, state = save_step(4)
    states = states_of(ref_sync_steps=2, ref_mixup=0.25)
    trained(save=save, ref_sync_steps=2, ref_mixup=0.25)
    for name, first in states[0].items():
        expected = 0.25 * states[2][name] + 0.75 * first
        expected = 0.25 * states[4][name] + 0.75 * expected
        torch.testing.assert_close(state["parts"]["reference"][name], expected, atol=1e-6, rtol=0)


def test_the_whole_share_is_a_copy():
    save, state = save_step(4)
    trained(save=save, ref_sync_steps=2)
    reference, model = state["parts"]["reference"], state["model"]
    assert all(torch.equal(reference[name], model[name]) for name in model)


def test_estimators_have_one_value_on_policy_and_other_gradients(monkeypatch):
    """After the same first step, k3 and ρ k3 are the same number, as ρ = 1, but not the same loss.
    k2 is another number, with the gradient of ρ k3: log(π/ref) ∇ log π."""
    save, state = save_step(1)
    trained(steps=1, lr=5e-2, save=save)
    gradients, kl = record_gradients(monkeypatch), {}
    for estimator in ("k3", "corrected_k3", "k2"):
        log, model = Log(), tiny()
        model.load_state_dict(state["model"])
        config = replace(CONFIG, steps=2, kl_coef=10.0, kl_estimator=estimator)
        train_grpo(model, RAGGED, Digits(length), config, log=log, resume=copy_of(state))
        kl[estimator] = log[0]["kl"]
    assert kl["k3"] == pytest.approx(kl["corrected_k3"], rel=1e-5)
    assert kl["k3"] > 1e-3 and kl["k2"] != pytest.approx(kl["k3"], rel=1e-3)
    assert (flat(gradients[0]) - flat(gradients[1])).abs().max() > 1e-3
    torch.testing.assert_close(flat(gradients[1]), flat(gradients[2]), atol=1e-5, rtol=1e-4)


# entropy

def test_an_entropy_bonus_raises_the_entropy():
    """Rewards for digits make the policy sure; a bonus keeps it undecided."""
    numbers = dict(steps=30, prompts_per_step=4, group_size=8, kl_coef=0.0, max_new_tokens=4)
    plain = log_of(digits, **numbers)[-1]["entropy"]
    held = log_of(digits, entropy_coef=1.0, **numbers)[-1]["entropy"]
    assert held > plain + 0.3


def test_the_adaptive_coefficient_starts_and_ends_with_the_target():
    """The entropy of a fresh model is above 1 nat: no bonus. Below a target of 100 nats the
    coefficient rises by δ after each update."""
    low = log_of(entropy_target=1.0)
    assert [metrics["entropy_coef"] for metrics in low] == [0.0] * 4
    high = log_of(entropy_target=100.0, entropy_coef_delta=0.01)
    assert [metrics["entropy_coef"] for metrics in high] == pytest.approx([0.01, 0.02, 0.03, 0.04])
    assert torch.equal(weights(trained(entropy_target=1.0)), weights(trained()))
    assert "entropy_coef" not in log_of(entropy_coef=0.1)[0]


def test_the_bonus_is_over_the_tokens_that_count(monkeypatch):
    calls = record_calls(monkeypatch, page.EntropyBonus, "of")
    trained(steps=1, entropy_coef=0.1, top_entropy=0.3)
    _, entropy, counted = calls[0].args
    assert 0 < int(counted.sum()) < counted.numel()
    assert float(calls[0].result.detach()) == pytest.approx(
        0.1 * float(entropy.detach()[counted].mean()), rel=1e-5)


# metrics of collapse

def test_entropy_by_quarter_averages_to_the_entropy():
    """With completions of 4 tokens each quarter is one token."""
    log = Log()
    train_grpo(tiny(), TOKENIZER, Digits(length), replace(CONFIG, steps=1, max_new_tokens=4,
                                                         group_size=16), log=log)
    if log[0]["completions/min_length"] == 4:
        quarters = [log[0][f"entropy/quarter_{i}"] for i in (1, 2, 3, 4)]
        assert sum(quarters) / 4 == pytest.approx(log[0]["entropy"])


def test_a_collapsed_policy_has_few_different_completions():
    model, log = tiny(), Log()
    with torch.no_grad():
        model.norm.weight.mul_(1000)               # it is sure of one text for each prompt
    train_grpo(model, TOKENIZER, Digits(length), replace(CONFIG, steps=1), log=log)
    fresh = log_of(steps=1)[0]
    assert log[0]["frac_unique_completions"] <= 3 / 12 < fresh["frac_unique_completions"]
    assert fresh["frac_unique_prompts"] in (1 / 3, 2 / 3)       # of two that there are
    assert log[0]["entropy"] < 0.1 < fresh["entropy"]


# two rewards

class Two(Digits):
    """Rewards for digits, and for length, which is worth half."""

    def __init__(self):
        super().__init__(digits)

        def long(prompts, completions, answer, **_):
            return [length(completion) for completion in completions]

        self.rewards = {**self.rewards, "long": long}
        self.weights = {"rule": 1.0, "long": 0.5}


def test_gdpo_learns_from_each_reward_by_itself():
    preset, log, plain = GRPO_PRESETS["gdpo"], Log(), Log()
    config = replace(CONFIG, **preset.numbers, steps=25, prompts_per_step=4, group_size=8)
    train_grpo(tiny(), RAGGED, Two(), config, **preset.arguments(config), log=log)
    train_grpo(tiny(), RAGGED, Two(), replace(config, steps=1), log=plain)
    for name in ("rewards/rule/mean", "rewards/long/mean"):
        assert sum(m[name] for m in log[-5:]) / 5 > log[0][name] + 0.2
    assert log[0]["reward"] == plain[0]["reward"] and log[0]["grad_norm"] != plain[0]["grad_norm"]


def test_token_logprobs_of_an_empty_mask_are_zeros():
    """What a micro-batch of cut-off completions asks for."""
    tokens = torch.zeros(2, 3).long()
    logp, entropy = token_logprobs(tiny(), tokens, mask=torch.zeros(2, 3).bool(),
                                   return_entropy=True)
    assert not logp.any() and not entropy.any()
