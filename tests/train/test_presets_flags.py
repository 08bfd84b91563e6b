"""minirl/train/presets.py: flags that the preset, or the other numbers of a run, leave unread."""

from dataclasses import replace

import pytest
import torch

from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.presets import GRPO_PRESETS, UNREAD, check_flags
from tests.train.small import TOKENIZER, Digits, length, tiny, weights


@pytest.mark.parametrize("command, preset, field, message", [
    ("grpo", "sapo", "clip_high",
     r"--clip-high is not read by preset sapo: .*\(grpo, dr_grpo, dapo,"),
    ("grpo", "cispo", "clip_low", "--clip-low is not read by preset cispo"),
    ("grpo", "reinforce", "scale", "--scale is not read by preset reinforce"),
    ("grpo", "rloo", "ddof", "--ddof is not read by preset rloo"),
    ("grpo", "grpo", "dppo_delta", r"--dppo-delta is not read by preset grpo: .*\(dppo\)"),
    ("grpo", "gspo", "dual_clip", "--dual-clip is not read by preset gspo"),
    ("grpo", "gdpo", "scale", "--scale is not read by preset gdpo"),
    ("ppo", "ppo", "kl_target",
     r"--kl-target is not read by preset ppo: .*\(ziegler, adaptive-kl\)"),
    ("ppo", "adaptive-kl", "kl_horizon",
     r"--kl-horizon is not read by preset adaptive-kl: .*\(ziegler\)"),
])
def test_a_flag_that_a_preset_does_not_read_is_an_error(command, preset, field, message):
    with pytest.raises(ValueError, match=message):
        check_flags(command, preset, ["lr", field])


@pytest.mark.parametrize("command, preset, fields", [
    ("grpo", "grpo", ["clip_low", "clip_high", "scale", "ddof", "lr"]),
    ("grpo", "cispo", ["clip_high"]),
    ("grpo", "reinforce", ["minibatches", "kl_coef"]),
    ("grpo", "sapo", ["sapo_temp_pos", "off_policy", "importance"]),
    ("grpo", "gdpo", ["clip_high", "dual_clip", "entropy_coef"]),
    ("ppo", "ziegler", ["kl_target", "kl_horizon", "clip_low"]),
    ("dpo", "toy", ["lr", "beta"]),
    ("sft", "instructgpt", ["batch_size", "dropout"]),
])
def test_a_flag_that_is_read_is_no_error(command, preset, fields):
    check_flags(command, preset, fields)


def mixed(completion):
    """Of groups of these rewards, some differ and some do not."""
    return float(sum(map(ord, completion)) % 8 == 0)


def weights_after(config):
    """Return the weights of a tiny model after three steps."""
    model, task = tiny(), Digits(length if isinstance(config, PPOConfig) else mixed)
    config = replace(config, steps=3, lr=1e-2, warmup_steps=0, max_new_tokens=4)
    if isinstance(config, PPOConfig):
        texts = ["it rains", "we read"]
        train_ppo(model, TOKENIZER, task, replace(config, episodes=4), pretraining=texts)
    else:
        train_grpo(model, TOKENIZER, task, replace(config, prompts_per_step=2, group_size=4))
    return weights(model)


# a field, another value of it, a configuration that leaves it unread, and a number by which another
# one reads it
CASES = [
    ("ref_sync_steps", 1, GRPOConfig(kl_coef=0.0), dict(kl_coef=0.1)),
    ("ddof", 0, GRPOConfig(scale="none"), dict(scale="group")),
    ("ptx_batch_size", 3, PPOConfig(ptx_coef=0.0), dict(ptx_coef=0.5)),
    ("kl_estimator", "corrected_k3", GRPOConfig(kl_coef=0.0), dict(kl_coef=0.1)),
    ("ref_mixup", 0.5, GRPOConfig(kl_coef=0.5), dict(ref_sync_steps=1)),
    ("max_draws", 3, GRPOConfig(), dict(dynamic_sampling=True)),
    ("importance", "token_mask", GRPOConfig(old_logp="sampler", off_policy=1),
     dict(old_logp="learner")),
    ("importance_max", 1.001, GRPOConfig(off_policy=1), dict(importance="token_truncate")),
    ("importance_min", 0.999, GRPOConfig(off_policy=1), dict(importance="token_mask")),
    ("geometric_max", 1.0001, GRPOConfig(old_logp="sampler", off_policy=1),
     dict(old_logp="learner")),
    ("geometric_min", 0.9999, GRPOConfig(old_logp="sampler", off_policy=1),
     dict(old_logp="learner")),
    # the entropies are 5.4894 and 5.4891: the coefficient falls, to its minimum, and rises again
    ("entropy_coef_min", 0.05, GRPOConfig(entropy_coef=0.1, entropy_coef_delta=0.09),
     dict(entropy_target=5.4892)),
    ("entropy_coef_max", 0.1, GRPOConfig(entropy_coef=0.1), dict(entropy_target=9.0)),
    ("entropy_coef_delta", 0.2, GRPOConfig(entropy_coef=0.1), dict(entropy_target=9.0)),
]


@pytest.mark.parametrize("field, value, config, change", CASES, ids=[case[0] for case in CASES])
def test_a_flag_that_other_numbers_leave_unread_is_an_error(field, value, config, change):
    """Where it is unread, a run with another value is the same to the bit; where it is read, it is
    not, and the flag is no error."""
    other, number = UNREAD[field]
    command = "ppo" if isinstance(config, PPOConfig) else "grpo"
    with pytest.raises(ValueError, match=f"is not read where {other} is {number}: leave it out"):
        check_flags(command, command, [field], config)
    changed = replace(config, **{field: value})
    assert torch.equal(weights_after(config), weights_after(changed))

    reading = replace(config, **change)
    check_flags(command, command, [field], reading)
    changed = replace(reading, **{field: value})
    assert not torch.equal(weights_after(reading), weights_after(changed))


def test_every_unread_field_has_a_case():
    assert {field for field, *_ in CASES} == set(UNREAD)


@pytest.mark.parametrize("preset", ["ziegler", "adaptive-kl"])
def test_a_controller_has_something_to_multiply(preset):
    """--preset adaptive-kl --kl-coef 0 trained a reward model and a policy before it stopped."""
    with pytest.raises(ValueError, match="kl_coef is 0 and would stay 0"):
        check_flags("ppo", preset, ["kl_coef"], PPOConfig(kl_coef=0.0))
    check_flags("ppo", "ppo", ["kl_coef"], PPOConfig(kl_coef=0.0))


def test_k_samples_are_of_one_group():
    """--preset passk --group-size 2 would have sampled first."""
    with pytest.raises(ValueError, match="k is 4 and the group has 2 samples"):
        check_flags("grpo", "passk", ["group_size"], GRPOConfig(group_size=2))
    check_flags("grpo", "passk", ["group_size", "pass_k"], GRPOConfig(group_size=2, pass_k=2))
    with pytest.raises(ValueError, match="--pass-k is not read by preset grpo"):
        check_flags("grpo", "grpo", ["pass_k"], GRPOConfig())


def test_a_penalty_is_an_error_where_rewards_are_probabilities():
    """--preset maxrl --overlong-cache 16 trained until the first completion that was too long."""
    config = GRPOConfig(overlong_cache=16)
    with pytest.raises(ValueError, match="--overlong-cache gives .* preset maxrl cannot take"):
        check_flags("grpo", "maxrl", ["overlong_cache"], config)
    with pytest.raises(ValueError, match="--overlong-cache is not read by preset gdpo"):
        check_flags("grpo", "gdpo", ["overlong_cache"], config)
    for preset in set(GRPO_PRESETS) - {"maxrl", "gdpo"}:
        check_flags("grpo", preset, ["overlong_cache"], config)
