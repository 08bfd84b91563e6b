"""minirl/train/presets.py: every preset has its paper's numbers, learns, and says what it reads."""

import copy
import random
from dataclasses import replace

import pytest
import torch

from minirl.inference.evaluate import evaluate
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.presets import GRPO_PRESETS, PPO_PRESETS, UNREAD, check_flags
from minirl.train.sft import SFTConfig, train_sft
from tests.train.small import TOKENIZER, Digits, Log, in_turn, length, tiny, weights

PAPERS = {
    "dr_grpo": dict(scale="none", aggregate="constant", kl_coef=0.0),
    "dapo": dict(clip_low=0.2, clip_high=0.28, aggregate="token_mean", kl_coef=0.0),
    "gspo": dict(clip_low=3e-4, clip_high=4e-4, minibatches=4),
    "deepseekmath": dict(lr=1e-6, kl_coef=0.04, group_size=64, aggregate="sequence_mean"),
    "r1-zero": dict(lr=3e-6, kl_coef=0.001, group_size=16, prompts_per_step=512, ref_sync_steps=25,
                    minibatches=16),
    "trl": dict(lr=1e-6, kl_coef=0.0, group_size=8, aggregate="token_mean", ddof=1),
}


def number_of_digits(completion):
    return float(sum(character.isdigit() for character in completion))


def log_of(name, **changes):
    """Return the metrics of a short run of a tiny model, which learns to write digits."""
    preset, log = GRPO_PRESETS[name], Log()
    config = replace(GRPOConfig(**preset.numbers), lr=1e-2, warmup_steps=0, prompts_per_step=4,
                     group_size=8, max_new_tokens=4, overlong_cache=0,
                     minibatches=min(2, preset.numbers.get("minibatches", 1)), **changes)
    train_grpo(tiny(), TOKENIZER, Digits(number_of_digits), config, **preset.arguments(config),
               log=log)
    return log


@pytest.mark.parametrize("name", GRPO_PRESETS)
def test_presets_have_their_papers_numbers(name):
    config = GRPOConfig(**GRPO_PRESETS[name].numbers)
    numbers = PAPERS.get(name, {})
    assert {field: getattr(config, field) for field in numbers} == numbers
    assert config.iterations == 1 and config.temperature == 1.0


@pytest.mark.parametrize("name", GRPO_PRESETS)
def test_every_preset_learns(name):
    log = log_of(name, steps=60)
    assert log[0]["reward"] < 0.5
    assert sum(metrics["reward"] for metrics in log[-5:]) / 5 > 2       # of at most 4 tokens
    assert all(metrics["sampling/sampling_logp_difference/mean"] < 1e-5 for metrics in log)


def test_the_sequence_ratio_of_gspo_is_clipped_where_a_token_ratio_is_not():
    def share_clipped(name):
        log = log_of(name, steps=6)
        return sum(m["clip_ratio/low_mean"] + m["clip_ratio/high_mean"] for m in log)

    assert share_clipped("gspo") > 0
    assert share_clipped("cispo") == share_clipped("sapo") == 0


# which fields a preset reads

NEW_VALUES = {"clip_low": 0.05, "clip_high": 0.07, "scale": "batch", "ddof": 0}   # no preset's


@pytest.mark.parametrize("name", NEW_VALUES)
@pytest.mark.parametrize("preset", GRPO_PRESETS)
def test_a_preset_reads_what_it_says_and_nothing_else(preset, name):
    """--clip-high with sapo, --scale with reinforce, --ddof with rloo: these experiments silently
    changed nothing. Here each field changes, for ratios from 0.1 to 10, advantages of both signs
    and uneven rewards."""
    config = GRPOConfig(**GRPO_PRESETS[preset].numbers | {"scale": "group"})
    logp = torch.linspace(-3.3, 1.0, 20).view(4, 5)
    adv, mask = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]).expand(4, 5), torch.ones(4, 5)
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [3.0, 1.0, 0.0]])

    def results(config):
        variant = GRPO_PRESETS[preset].arguments(config)
        old_logp = logp - torch.linspace(-2.3, 2.3, 20).view(4, 5)
        return variant["objective"](logp, old_logp, adv, mask), variant["advantages"](rewards)

    changed = replace(config, **{name: NEW_VALUES[name]})
    same = map(torch.equal, results(config), results(changed))
    assert all(same) == (name not in GRPO_PRESETS[preset].reads)


def test_what_presets_of_grpo_do_not_read():
    """By the papers, and not by our own table: which of these have a clip, and which a scale."""
    unread = {name: set(NEW_VALUES) - preset.reads for name, preset in GRPO_PRESETS.items()}
    scale, clip = {"scale", "ddof"}, {"clip_low", "clip_high"}
    assert {name: fields for name, fields in unread.items() if fields} == {
        "cispo": {"clip_low"},
        "sapo": clip,
        "rloo": scale,
        "reinforce": scale | clip,
        "maxrl": scale | clip,
    }


def test_what_presets_of_ppo_read():
    assert {name: preset.reads for name, preset in PPO_PRESETS.items() if preset.reads} == {
        "ziegler": {"kl_target", "kl_horizon"},
        "adaptive-kl": {"kl_target"},
    }


@pytest.mark.parametrize("command, preset, field, message", [
    ("grpo", "sapo", "clip_high",
     r"--clip-high is not read by preset sapo: .*\(grpo, dr_grpo, dapo,"),
    ("grpo", "cispo", "clip_low", "--clip-low is not read by preset cispo"),
    ("grpo", "reinforce", "scale", "--scale is not read by preset reinforce"),
    ("grpo", "rloo", "ddof", "--ddof is not read by preset rloo"),
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
    ("ppo", "ziegler", ["kl_target", "kl_horizon", "clip_low"]),
    ("dpo", "toy", ["lr", "beta"]),
    ("sft", "instructgpt", ["batch_size", "dropout"]),
])
def test_a_flag_that_is_read_is_no_error(command, preset, fields):
    check_flags(command, preset, fields)


def weights_after(config):
    """Return the weights of a tiny model after three steps."""
    model, task = tiny(), Digits(length)
    config = replace(config, steps=3, lr=1e-2, warmup_steps=0, max_new_tokens=4)
    if isinstance(config, PPOConfig):
        texts = ["it rains", "we read"]
        train_ppo(model, TOKENIZER, task, replace(config, episodes=4), pretraining=texts)
    else:
        train_grpo(model, TOKENIZER, task, replace(config, prompts_per_step=2))
    return weights(model)


# a field, another value of it, a configuration that leaves it unread, and a number by which another
# one reads it
CASES = [
    ("ref_sync_steps", 1, GRPOConfig(kl_coef=0.0), dict(kl_coef=0.1)),
    ("ddof", 0, GRPOConfig(scale="none"), dict(scale="group")),
    ("ptx_batch_size", 3, PPOConfig(ptx_coef=0.0), dict(ptx_coef=0.5)),
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
    assert PPO_PRESETS["ppo"].arguments(PPOConfig(kl_coef=0.0)) == {}


def test_a_penalty_is_an_error_where_rewards_are_probabilities():
    """--preset maxrl --overlong-cache 16 trained until the first completion that was too long."""
    config = GRPOConfig(overlong_cache=16)
    with pytest.raises(ValueError, match="--overlong-cache gives .* preset maxrl cannot take"):
        check_flags("grpo", "maxrl", ["overlong_cache"], config)
    for preset in set(GRPO_PRESETS) - {"maxrl"}:
        check_flags("grpo", preset, ["overlong_cache"], config)


def test_the_pages_own_functions_are_those_of_preset_grpo():
    """They are written twice, and must be the same."""
    config = GRPOConfig(steps=2, prompts_per_step=2, iterations=3, max_new_tokens=4, lr=1e-1,
                        clip_low=0.1, ddof=0)
    own = train_grpo(tiny(), TOKENIZER, Digits(length), config)
    arguments = GRPO_PRESETS["grpo"].arguments(config)
    presets = train_grpo(tiny(), TOKENIZER, Digits(length), config, **arguments)
    assert torch.equal(weights(own), weights(presets))


def test_reinforce_with_a_missing_verdict_trains():
    """A completion without a verdict had NaN for its advantage, and the run stopped there."""
    preset, task = GRPO_PRESETS["reinforce"], Digits(in_turn(None, 1.0, 0.0, 1.0))
    config = GRPOConfig(**preset.numbers, steps=2, prompts_per_step=2, max_new_tokens=4)
    after = weights(train_grpo(tiny(), TOKENIZER, task, config, **preset.arguments(config)))
    assert bool(after.isfinite().all())
    assert not torch.equal(after, weights(tiny()))


# whole runs

@pytest.fixture(scope="module", params=[0, 1, 2])
def toy_base(request):
    """The main job's base model, which gets about half of the sums right, its tokenizer, and the
    seed."""
    seed = request.param
    model, tokenizer = make_base(TinySizes(), seed=seed, device="cpu")
    pairs = demonstrations(Arithmetic(), 24_000, random.Random(seed), worked_share=0.5,
                           guessed_share=0.5)
    return train_sft(model, tokenizer, pairs, SFTConfig(), seed=seed), tokenizer, seed


@pytest.mark.slow
@pytest.mark.parametrize("name", GRPO_PRESETS)
def test_every_preset_learns_sums(name, toy_base):
    """30 steps at the toy's learning rate and batch size raise the accuracy on held-out sums by
    more than 0.2, with every seed."""
    (base, tokenizer, seed), preset = toy_base, GRPO_PRESETS[name]
    model, task = copy.deepcopy(base), Arithmetic()
    lr = min(4e-4, max(2e-4, preset.numbers.get("lr", 4e-4)))
    config = replace(GRPOConfig(**preset.numbers), steps=30, prompts_per_step=16, group_size=8,
                     warmup_steps=3, lr=lr,
                     minibatches=min(4, preset.numbers.get("minibatches", 1)))
    before = evaluate(base, tokenizer, task, n=512, seed=seed).accuracy
    train_grpo(model, tokenizer, task, config, **preset.arguments(config), seed=seed)
    after = evaluate(model, tokenizer, task, n=512, seed=seed).accuracy
    print(f"{name} seed {seed}: {before:.3f} -> {after:.3f}")
    assert after > before + 0.2
