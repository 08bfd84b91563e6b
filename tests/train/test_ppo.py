"""minirl/train/ppo.py"""

from dataclasses import replace

import pytest
import torch

import minirl.train.ppo as page
from minirl.equations.advantages import gae
from minirl.equations.kl import AdaptiveKLController
from minirl.inference import collect
from minirl.lm.heads import ScalarModel, score_ids
from minirl.lm.logprobs import token_logprobs
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.metrics import NonFiniteError
from minirl.train.presets import PPO_PRESETS
from tests.train import small
from tests.train.small import TOKENIZER, Digits, copied, length, weights

CONFIG = PPOConfig(steps=3, episodes=12, minibatch_size=6, lr=1e-2, value_lr=1e-2, warmup_steps=0, max_new_tokens=6, missing_eos_penalty=0.0)
TEXTS = ["the cat sat", "a dog ran home", "it rains", "we read"]


def tiny(eos=0.0):
    """With `eos`, a policy that ends early at times: its EOS is that much likelier."""
    model = small.tiny(tie_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.eos_id] += eos * model.norm.weight / 16 ** 0.5
    return model


def judge():
    torch.manual_seed(1)
    return ScalarModel(tiny())


def run(rule=length, seed=0, model=None, value_model=None, pretraining=(), kl_control=None, **changes):
    log = []
    model = train_ppo(model or tiny(), TOKENIZER, Digits(rule), replace(CONFIG, **changes), value_model=value_model or judge(), pretraining=pretraining,
                      kl_control=kl_control, seed=seed, log=lambda step, metrics: log.append(metrics))
    return weights(model), log


@pytest.fixture
def seen(monkeypatch):
    """Arguments and results of what the page calls, by name."""
    calls = {}

    def record(name, page=page):
        function = getattr(page, name)

        def recorded(*args, **kwargs):
            result = function(*args, **kwargs)
            calls.setdefault(name, []).append((args, kwargs, result))
            return result
        monkeypatch.setattr(page, name, recorded)

    record("sample", collect)
    for name in ("kl_shaped_rewards", "gae", "rollout_values", "rollout_logprobs", "masked_whiten"):
        record(name)
    return calls


def test_three_steps_twice_are_the_same_bit_for_bit():
    assert torch.equal(run()[0], run()[0])
    assert not torch.equal(run()[0], run(seed=1)[0])


def gradients(monkeypatch, **changes):
    """The gradients of policy and value function that the first update would clip."""
    kept = []

    def keep(model, max_norm, *, step):
        kept.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().clone() for p in model.parameters()]))      # its unembedding has none
        return 0.0

    monkeypatch.setattr("minirl.train.state.clip_gradient", keep)
    run(steps=1, **changes)
    return kept[:2]


@pytest.mark.parametrize("extra", [{}, dict(ptx_coef=0.5, ptx_batch_size=5, pretraining=TEXTS)])
def test_a_micro_batch_split_changes_no_gradient(extra, monkeypatch):
    """Of policy and value function, and with pretraining text beside."""
    whole, split = (gradients(monkeypatch, token_budget=budget, **extra) for budget in (10_000, 12))
    for a, b in zip(whole, split):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)
        assert a.abs().max() > 1e-3


def controlled(kl_coef, kl, completions):
    return kl_coef * (1.1 if kl > 0.01 else 0.9)


@pytest.mark.parametrize("changes", [{}, dict(epochs=2, minibatch_size=5, ptx_coef=0.3, pretraining=TEXTS, kl_control=controlled)])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_continues_bit_for_bit(at, changes):
    """Policy, value function, both optimizers, the reference, the average and the KL coefficient."""
    kept, rest = {}, {key: changes.pop(key) for key in ("pretraining", "kl_control") if key in changes} if changes else {}
    config = replace(CONFIG, steps=4, **changes)
    changes.update(rest)

    def keep(state):
        if state.step == at:
            kept.update(copied(state.state_dict()))

    whole = weights(train_ppo(tiny(), TOKENIZER, Digits(length), config, value_model=judge(), save=keep, **rest))
    model = tiny()
    model.load_state_dict(kept["model"])
    assert torch.equal(weights(train_ppo(model, TOKENIZER, Digits(length), config, value_model=judge(), resume=kept, **rest)), whole)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_learner_agree(temperature):
    assert all(m["sampling/sampling_logp_difference/mean"] < 1e-5 for m in run(temperature=temperature, episodes=6)[1])


# scores, rewards, values

def test_the_score_stands_on_the_last_sampled_token(seen):
    """On the EOS, or the last token of an answer that has none, and never on padding: one slot behind it, the value function would learn that nothing comes."""
    model = tiny(eos=6.0)
    run(rule=lambda c: 5.0, steps=1, kl_coef=0.0, model=model, episodes=40)
    _, _, rollouts = seen["sample"][0]
    (scores, *_), _, rewards = seen["kl_shaped_rewards"][0]
    assert len(set(rollouts.lengths.tolist())) > 3 and 0 < int(rollouts.truncated.sum()) < 40
    for row, (last, cut) in enumerate(zip((rollouts.lengths - 1).tolist(), rollouts.truncated.tolist())):
        assert rewards[row].nonzero().flatten().tolist() == ([] if cut else [last])
        assert cut or (float(rewards[row, last]) == 5.0 and int(rollouts.tokens[row, last]) == TOKENIZER.eos_id)


def test_the_penalty_stands_on_every_sampled_token_and_is_zero_at_the_start(seen):
    run(steps=2, kl_coef=0.5, episodes=24)
    (_, logp, ref_logp, mask, kl_coef), _, rewards = seen["kl_shaped_rewards"][0]
    assert kl_coef == 0.5 and torch.equal(logp, ref_logp)                   # the reference is the first policy
    (scores, logp, ref_logp, mask, _), _, rewards = seen["kl_shaped_rewards"][1]
    expected = -0.5 * (logp - ref_logp) * mask
    last = mask.cumsum(1) == mask.sum(1, keepdim=True)
    torch.testing.assert_close(torch.where(last | ~mask, 0, rewards), torch.where(last | ~mask, 0, expected))
    assert float(expected.abs().sum()) > 0


def test_the_value_function_starts_as_the_reward_model(seen):
    """Its first value of a state is what the reward model says of the prefix; the reward model itself is not changed."""
    reward_model = judge()
    before = weights(reward_model)
    run(steps=1, value_model=reward_model)
    _, _, rollouts = seen["sample"][0]
    _, _, (values, end) = seen["rollout_values"][0]
    ids, starts = rollouts.tokens.tolist(), rollouts.prompt_lengths.tolist()
    for row in range(4):
        for t in range(starts[row] + 1, int(rollouts.lengths[row])):
            score = score_ids(reward_model, [ids[row][:starts[row]]], [ids[row][starts[row]:t]], 0)
            assert float(values[row, t]) == pytest.approx(float(score), abs=1e-5)
        assert float(end[row]) == pytest.approx(float(score_ids(reward_model, [ids[row][:starts[row]]], [ids[row][starts[row]:int(rollouts.lengths[row])]], 0)), abs=1e-5)
    assert torch.equal(weights(reward_model), before)


def test_an_answer_that_was_cut_off_is_not_over(seen):
    """Its score is left out, the value of its last state stands for what was to come, and the penalty is taken; of one that ended, neither."""
    run(rule=lambda c: 3.0, steps=1, model=tiny(eos=6.0), episodes=40, missing_eos_penalty=0.7, kl_coef=0.0)
    _, _, rollouts = seen["sample"][0]
    _, _, (_, end) = seen["rollout_values"][0]
    (scores, *_), _, _ = seen["kl_shaped_rewards"][0]
    cut = rollouts.truncated
    assert 0 < int(cut.sum()) < 40
    assert torch.equal(scores, torch.where(cut, -0.7, 3.0))
    assert torch.equal(seen["gae"][0][1]["bootstrap"], torch.where(cut, end, 0))


def test_metrics_say_what_was_trained_on(seen, monkeypatch):
    """Where every answer is cut off, each costs the penalty and no score counts; `reward` says 1,
    and nothing said -0.7. The score is TRL's objective/scores; less the price of the KL it is
    objective/rlhf_reward."""
    monkeypatch.setattr(TOKENIZER, "stop_ids", [])
    _, log = run(rule=lambda c: 1.0, steps=2, missing_eos_penalty=0.7, kl_coef=0.5)
    for step, ((scores, logp, ref_logp, mask, _), _, _) in zip(log, seen["kl_shaped_rewards"]):
        assert step["completions/clipped_ratio"] == step["reward"] == step["rewards/rule/mean"] == 1
        assert step["objective/scores"] == pytest.approx(-0.7)
        kl = float(((logp - ref_logp) * mask).sum(1).mean())
        assert step["objective/kl"] == pytest.approx(kl)
        assert step["objective/rlhf_reward"] == pytest.approx(-0.7 - 0.5 * kl)
    assert abs(log[1]["objective/kl"]) > 1e-3


def test_the_score_that_was_trained_on_is_that_of_those_that_were_judged(seen):
    """Of some the end came, of some it did not, and of every fourth there is no verdict."""
    verdicts = iter([None, 2.0, 2.0, 2.0] * 100)
    _, log = run(rule=lambda c: next(verdicts), steps=1, model=tiny(eos=6.0), episodes=40,
                 missing_eos_penalty=0.5)
    cut = seen["sample"][0][2].truncated.view(10, 4)[:, [1, 2, 3]].float()
    scores = -0.5 * cut + 2.0 * (1 - cut)
    assert 0 < cut.mean() < 1 and log[0]["reward"] == 2.0
    assert log[0]["objective/scores"] == pytest.approx(float(scores.mean()))


@pytest.mark.parametrize("whiten", [True, False])
def test_constant_rewards_that_are_foreseen_give_no_policy_gradient(whiten):
    """The value function says c of every state, and c comes, or is what a cut answer is worth: no advantage is left, nor one that whitening could blow up."""
    value_model, model = judge(), tiny(eos=6.0)
    value_model.head.linear.weight.data.zero_()
    value_model.head.linear.bias.data.fill_(0.5)
    before, log = weights(model), []
    train_ppo(model, TOKENIZER, Digits(lambda c: 0.5), replace(CONFIG, kl_coef=0.0, whiten_advantages=whiten), value_model=value_model,
              log=lambda step, metrics: log.append(metrics))
    assert torch.equal(weights(model), before)
    assert [(m["loss/value"], m["value/explained_variance"], m["grad_norm"]) for m in log] == [(0.0, 0.0, 0.0)] * 3


def test_advantages_are_gaes_whitened_over_the_batch(seen):
    run(steps=1, lam=0.8, gamma=0.9)
    (rewards, values, mask), options, (adv, returns) = seen["gae"][0]
    assert options["lam"] == 0.8 and options["gamma"] == 0.9
    (whitened, white_mask), _, result = seen["masked_whiten"][0]
    assert torch.equal(whitened, adv) and torch.equal(white_mask, mask)
    assert float(result[mask].mean()) == pytest.approx(0.0, abs=1e-5) and float(result[mask].std()) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(gae(rewards, values, mask, **options)[1], returns)


def test_a_row_without_a_verdict_is_left_out():
    verdicts = iter([None, 1.0, float("nan"), 2.0] * 100)
    _, log = run(rule=lambda c: next(verdicts), steps=1)
    assert log[0]["reward"] == 1.5 and log[0]["frac_reward_none"] == 0.5
    with pytest.raises(ValueError, match="none of the 12 completions got a reward"):
        run(rule=lambda c: None)


# update

def test_nothing_is_clipped_in_a_single_pass_and_something_in_several():
    assert all(m["clip_ratio/low_mean"] == m["clip_ratio/high_mean"] == 0 for m in run(minibatch_size=12)[1])
    assert sum(m["clip_ratio/low_mean"] + m["clip_ratio/high_mean"] for m in run(epochs=4, lr=5e-2)[1]) > 0


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_result_is_the_average_of_the_weights(decay):
    """average <- decay average + (1 - decay) weights after every update, from the first policy on; decay 0 is the last weights."""
    after = []
    model = tiny()
    average = weights(model)
    train_ppo(model, TOKENIZER, Digits(length), replace(CONFIG, minibatch_size=12, ema_decay=decay), value_model=judge(), save=lambda state: after.append(weights(state.model)))
    for w in after:
        average = decay * average + (1 - decay) * w
    torch.testing.assert_close(weights(model), average, atol=1e-6, rtol=0)


def test_learning_rates_warm_up_from_a_tenth_and_then_stay():
    rates = [m["learning_rate"] for m in run(steps=5, warmup_steps=3, episodes=4)[1]]
    assert rates == pytest.approx([1e-3, 4e-3, 7e-3, 1e-2, 1e-2])


def test_pretraining_text_adds_its_gradient(monkeypatch):
    """Eq. 2: the gradient is PPO's plus gamma times that of the mean log-likelihood of the text, per token, EOS included."""
    plain = gradients(monkeypatch)[0]
    both = gradients(monkeypatch, ptx_coef=0.5, ptx_batch_size=8, pretraining=["ab"])[0]      # the one text there is
    model, ids = tiny(), torch.tensor([[TOKENIZER.bos_id, *TOKENIZER.encode("ab"), TOKENIZER.eos_id]])
    mask = torch.tensor([[False, True, True, True]])
    text = torch.autograd.grad(-0.5 * token_logprobs(model, ids, mask=mask).sum() / 3, list(model.parameters()))
    torch.testing.assert_close(both - plain, torch.cat([g.flatten() for g in text]), atol=1e-5, rtol=1e-4)


def test_ptx_keeps_the_text_in_mind():
    log = run(steps=12, ptx_coef=2.0, pretraining=TEXTS, ptx_batch_size=4)[1]
    assert log[-1]["loss/pretraining"] < log[0]["loss/pretraining"] - 0.3


def test_a_policy_in_bfloat16_is_averaged_in_float32():
    """A step of 1/256 of a weight is lost in bfloat16: an average with decay 0.9 would never move."""
    model = tiny().to(torch.bfloat16)
    before = weights(model)
    train_ppo(model, TOKENIZER, Digits(length), replace(CONFIG, lr=1e-1), value_model=judge())
    assert model.dtype == torch.bfloat16 and not torch.equal(weights(model), before)


def test_ptx_needs_text():
    with pytest.raises(ValueError, match="nothing to read"):
        run(ptx_coef=1.0)


def test_a_controller_sets_the_next_steps_coefficient():
    asked = []

    def control(kl_coef, kl, completions):
        asked.append((kl_coef, kl, completions))
        return kl_coef * 2

    _, log = run(kl_control=control)
    assert [m["kl_coef"] for m in log] == pytest.approx([0.1, 0.2, 0.4]) and [a[0] for a in asked] == pytest.approx([0.1, 0.2, 0.4])
    assert [a[1] for a in asked] == [m["objective/kl"] for m in log] and asked[0][1] == 0.0 and {a[2] for a in asked} == {12}


def test_the_two_controllers_of_the_papers():
    config = PPOConfig(**PPO_PRESETS["ziegler"].numbers)
    ours = PPO_PRESETS["ziegler"].arguments(config)["kl_control"](0.15, 9.0, 256)
    reference = AdaptiveKLController(0.15, target=6.0, horizon=10_000)
    reference.update(9.0, 256)
    assert ours == reference.kl_coef == pytest.approx(0.15 * 1.00512)
    rule = PPO_PRESETS["adaptive-kl"].arguments(PPOConfig(kl_target=1.0))["kl_control"]
    assert [rule(0.1, kl, 128) for kl in (0.5, 1.0, 1.6)] == pytest.approx([0.05, 0.1, 0.2])


def test_the_papers_preset():
    """InstructGPT, appendix C.4."""
    c = PPOConfig(**PPO_PRESETS["instructgpt"].numbers)
    assert (c.episodes, c.minibatch_size, c.epochs, c.clip_low, c.clip_high, c.kl_coef, c.gamma, c.temperature) == (512, 64, 1, 0.2, 0.2, 0.02, 1.0, 1.0)
    assert (c.warmup_steps, c.ema_decay, c.value_lr, c.ptx_coef, c.beta1, c.beta2) == (10, 0.992, 9e-6, 27.8, 0.9, 0.95)


def test_an_entropy_bonus_keeps_the_policy_undecided():
    plain, bonus = (run(rule=lambda c: float(c.count("5")), steps=15, episodes=24, minibatch_size=24, entropy_coef=coef)[1][-1]["entropy"] for coef in (0.0, 0.5))
    assert bonus > plain


def test_it_learns_what_is_rewarded():
    """1 for each ASCII character, and 1 less for each other: about 1 at the start. (Tags such as <think> are one token of seven characters, and it finds them.)"""
    log = run(rule=lambda c: float(sum(1 if x.isascii() else -1 for x in c)), steps=40, episodes=32, minibatch_size=16, model=tiny(eos=6.0), kl_coef=0.0,
              ema_decay=0.0, missing_eos_penalty=1.0)[1]
    assert log[-1]["reward"] > 5.0 > 2.0 > log[0]["reward"]


def test_a_penalty_keeps_it_near():
    free, held = (run(rule=lambda c: -float(len(c)), steps=25, episodes=32, minibatch_size=16, model=tiny(eos=5.0), kl_coef=coef)[1][-1]["objective/kl"] for coef in (0.0, 10.0))
    assert held < 0.5 * free


def test_without_the_penalty_a_policy_that_would_be_scored_badly_never_ends():
    """The price of bootstrapping: where every end is scored below 0, not ending is better. That is what missing_eos_penalty is for, and why it is on."""
    assert PPOConfig().missing_eos_penalty > 0
    lazy, made = (run(rule=lambda c: -2.0, steps=30, episodes=32, minibatch_size=16, model=tiny(eos=6.0), kl_coef=0.0, missing_eos_penalty=penalty)[1][-1]
                  for penalty in (0.0, 4.0))
    assert lazy["completions/clipped_ratio"] > 0.9 and made["completions/clipped_ratio"] < 0.3


def test_metrics_do_not_depend_on_micro_batches():
    whole, split = (run(steps=1, token_budget=budget)[1][0] for budget in (10_000, 12))
    for name in whole:
        if name != "step_time":
            assert split[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("bad, message", [(dict(episodes=0), "episodes is 0"), (dict(value_lr=0.0), "value_lr is 0"), (dict(kl_coef=-1.0), "kl_coef is -1"),
                                          (dict(ema_decay=1.0), "ema_decay is 1"),
                                          (dict(lam=2.0), "lam is 2.0: at most 1"),
                                          (dict(temperature=float("nan")), "temperature is nan")])
def test_bad_numbers(bad, message):
    with pytest.raises(ValueError, match=message):
        run(**bad)


def test_a_prompt_or_a_text_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="model's context of 128"):
        run(max_new_tokens=127)
    with pytest.raises(ValueError, match="text 1 has 302 tokens, more than the model's"):
        run(ptx_coef=1.0, pretraining=["short", "x" * 300])


@pytest.mark.parametrize("broken", ["lr", "value_lr"])
def test_an_update_that_breaks_the_weights_stops_the_run(broken):
    """The policy's and the value function's: loss and gradient are finite, and the step is not."""
    with pytest.raises(NonFiniteError, match="step 1: the update made"):
        run(**{broken: 1e39})


@pytest.mark.parametrize("reward", [float("inf"), -float("inf")])
def test_an_infinite_reward_stops_the_run(reward):
    with pytest.raises(ValueError, match="not finite"):
        run(rule=lambda c: reward)


def test_a_broken_value_function_stops_the_run():
    value_model = judge()
    value_model.head.linear.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="values: .*not finite"):
        run(value_model=value_model)
