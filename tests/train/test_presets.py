"""minirl/train/presets.py: every preset has its paper's numbers, learns, and says what it reads."""

import copy
import random
from dataclasses import replace
from functools import partial
from math import inf

import pytest
import torch

from minirl.inference.evaluate import evaluate
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.objectives import clipped
from minirl.train.ppo import PPOConfig
from minirl.train.presets import (
    GRPO_PRESETS,
    PPO_PRESETS,
    PRESETS,
    PRETRAINED,
    TOY_LR,
    numbers_of,
)
from minirl.train.sft import SFTConfig, train_sft
from tests.train.small import TOKENIZER, Digits, Log, in_turn, length, save_step, tiny, weights

PAPERS = {
    "dr_grpo": dict(scale="none", aggregate="constant", kl_coef=0.0),
    "dapo": dict(clip_low=0.2, clip_high=0.28, aggregate="token_mean", kl_coef=0.0,
                 dynamic_sampling=True, max_draws=4),
    "gspo": dict(clip_low=3e-4, clip_high=4e-4, minibatches=4),
    "deepseekmath": dict(lr=1e-6, kl_coef=0.04, group_size=64, aggregate="sequence_mean"),
    "r1-zero": dict(lr=3e-6, kl_coef=0.001, group_size=16, prompts_per_step=512, ref_sync_steps=25,
                    minibatches=16),
    "lite-ppo": dict(scale="batch", aggregate="token_mean", kl_coef=0.0),
    "gmpo": dict(clip_high=0.4), "luspo": dict(aggregate="sequence_sum"),
    "passk": dict(pass_k=4, aggregate="sequence_sum"),
    "vespo": dict(vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0),
    "dppo": dict(dppo_delta=0.2, old_logp="sampler", aggregate="token_mean"),
    "clip-cov": dict(clip_low=1.0, clip_high=1.0, cov_share=2e-4, cov_low=1.0, cov_high=5.0,
                     aggregate="token_mean", kl_coef=0.0),
    "kl-cov": dict(cov_share=2e-3, cov_kl_coef=1.0, aggregate="token_mean", kl_coef=0.0),
    "icepop": dict(importance="token_mask", importance_min=0.5, importance_max=5.0),
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


@pytest.mark.parametrize("name", ["clip-cov", "kl-cov"])
def test_what_chooses_tokens_resumes_bit_for_bit(name):
    """Clip-Cov draws: with a generator that lives as long as the run, as a closure has one, a run
    that goes on after a kill draws other tokens than one that was never stopped."""
    preset, (save, state) = GRPO_PRESETS[name], save_step(2)
    config = GRPOConfig(**preset.numbers | dict(
        steps=4, prompts_per_step=4, max_new_tokens=4, lr=1e-2, warmup_steps=0, cov_share=0.2,
        **({"cov_low": 0.0} if name == "clip-cov" else {})))
    train = partial(train_grpo, tokenizer=TOKENIZER, task=Digits(number_of_digits), config=config)
    whole = weights(train(tiny(), **preset.arguments(config), save=save))
    model = tiny()
    model.load_state_dict(state["model"])
    assert torch.equal(weights(train(model, **preset.arguments(config), resume=state)), whole)
    plain = clipped(1.0, 1.0) if name == "clip-cov" else clipped(inf, inf)
    assert not torch.equal(weights(train(tiny(), objective=plain)), whole)     # tokens are chosen


# which fields a preset reads

NEW_VALUES = {"clip_low": 0.05, "clip_high": 0.07, "scale": "batch", "ddof": 0,   # no preset's
              "dual_clip": 6.0, "pass_k": 2, "dppo_delta": 0.01,
              "sapo_temp_pos": 2.0, "sapo_temp_neg": 2.0,
              "vespo_k_pos": 1.5, "vespo_lambda_pos": 1.5, "vespo_k_neg": 1.5,
              "vespo_lambda_neg": 1.5, "cov_share": 0.2, "cov_low": 4.0, "cov_high": 1.01,
              "cov_kl_coef": 0.5}


@pytest.mark.parametrize("name", NEW_VALUES)
@pytest.mark.parametrize("preset", GRPO_PRESETS)
def test_a_preset_reads_what_it_says_and_nothing_else(preset, name):
    """--clip-high with sapo, --scale with reinforce, --ddof with rloo: these experiments silently
    changed nothing. Here each field changes, for ratios from 0.1 to 10, advantages of both signs
    and uneven rewards."""
    config = GRPOConfig(**GRPO_PRESETS[preset].numbers | {"scale": "group"})
    logp = torch.linspace(-3.3, 1.0, 20).view(4, 5)
    adv, mask = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]).expand(4, 5), torch.ones(4, 5)
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [3.0, 1.0, 0.0, 2.0]])

    def results(config):
        variant = GRPO_PRESETS[preset].arguments(config)
        old_logp = logp - torch.linspace(-2.3, 2.3, 20).view(4, 5)
        advantages = variant.get("advantages", lambda rewards: rewards)      # gdpo has none
        return variant["objective"](logp, old_logp, adv, mask), advantages(rewards)

    changed = replace(config, **{name: NEW_VALUES[name]})
    same = map(torch.equal, results(config), results(changed))
    assert all(same) == (name not in GRPO_PRESETS[preset].reads)


def test_what_presets_of_grpo_do_not_read():
    """By the papers, and not by our own table: which of these have a clip, and which a scale."""
    scale, clip = {"scale", "ddof"}, {"clip_low", "clip_high"}
    unread = {name: (scale | clip) - preset.reads for name, preset in GRPO_PRESETS.items()}
    assert {name: fields for name, fields in unread.items() if fields} == {
        "cispo": {"clip_low"},
        "sapo": clip,
        "rloo": scale,
        "reinforce": scale | clip,
        "maxrl": scale | clip,
        "passk": scale | clip,
        "gdpo": scale,
        "gmpo": {"clip_low"},
        "vespo": clip,
        "dppo": clip,
        "kl-cov": clip,
    }


def test_what_one_preset_alone_reads():
    for prefix in ("sapo", "vespo", "dppo"):
        fields = {name for name in NEW_VALUES if name.startswith(prefix)}
        assert fields and fields <= GRPO_PRESETS[prefix].reads
        assert not [name for name, preset in GRPO_PRESETS.items()
                    if name != prefix and preset.reads & fields]
    readers = {name: {field for field in preset.reads if field.startswith("cov_")}
               for name, preset in GRPO_PRESETS.items()}
    assert {name: fields for name, fields in readers.items() if fields} == {
        "clip-cov": {"cov_share", "cov_low", "cov_high"}, "kl-cov": {"cov_share", "cov_kl_coef"}}


def test_what_presets_of_ppo_read():
    assert {name: preset.reads for name, preset in PPO_PRESETS.items() if preset.reads} == {
        "ziegler": {"kl_target", "kl_horizon"},
        "adaptive-kl": {"kl_target"},
    }


def test_ppo_without_a_controller_takes_none():
    assert PPO_PRESETS["ppo"].arguments(PPOConfig(kl_coef=0.0)) == {}


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


@pytest.mark.parametrize("command", PRETRAINED)
def test_no_preset_gives_a_pretrained_checkpoint_the_toys_learning_rate(command):
    for preset in PRESETS[command]:
        assert numbers_of(command, preset, pretrained=True)["lr"] < TOY_LR
        assert numbers_of(command, preset) == PRESETS[command][preset].numbers


def test_papers_numbers_and_what_defines_a_variant_stay_for_a_pretrained_checkpoint():
    paper = numbers_of("grpo", "deepseekmath", pretrained=True)
    assert (paper["lr"], paper["prompts_per_step"], paper["steps"]) == (1e-6, 16, 10)
    variant = numbers_of("grpo", "gspo", pretrained=True)
    assert (variant["lr"], variant["clip_low"]) == (1e-5, 3e-4)
