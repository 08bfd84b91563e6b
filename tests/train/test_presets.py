"""minirl/train/presets.py: every name is a complete recipe, states its paper's numbers, and learns.
"""

import copy
import random
from dataclasses import replace

import pytest
import torch

from minirl.inference.evaluate import evaluate
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.tasks.problem import Problem
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.presets import GRPO_PRESETS, PPO_PRESETS, UNREAD, check_flags
from minirl.train.sft import SFTConfig, train_sft
from tests.train import small

STATED = {
    "dr_grpo": dict(scale="none", aggregate="constant", kl_coef=0.0),
    "dapo": dict(clip_low=0.2, clip_high=0.28, aggregate="token_mean", kl_coef=0.0),
    "gspo": dict(clip_low=3e-4, clip_high=4e-4, minibatches=4),
    "deepseekmath": dict(lr=1e-6, kl_coef=0.04, group_size=64, aggregate="sequence_mean"),
    "r1-zero": dict(lr=3e-6, kl_coef=0.001, group_size=16, prompts_per_step=512, ref_sync_steps=25,
                    minibatches=16),
    "trl": dict(lr=1e-6, kl_coef=0.0, group_size=8, aggregate="token_mean", ddof=1),
}


class CountDigits:
    """Reward: how many of the completion's tokens are digits."""

    name = "digits"
    rewards = {"digits": lambda prompts, completions, **_: [
        float(sum(letter.isdigit() for letter in c)) for c in completions]}

    def sample(self, n, rng, *, split="train"):
        return [Problem(prompt=rng.choice(["7=", "12+3="]), answer="7") for _ in range(n)]


def learn(name, **changes):
    """The metrics of a short run of a tiny model."""
    tokenizer, preset = build_tokenizer(), GRPO_PRESETS[name]
    torch.manual_seed(0)
    model = Transformer(ModelConfig(tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2,
                                    initializer_range=0.1))
    config = replace(GRPOConfig(**preset.numbers), lr=1e-2, warmup_steps=0, prompts_per_step=4,
                     group_size=8, max_new_tokens=4, overlong_cache=0,
                     minibatches=min(2, preset.numbers.get("minibatches", 1)), **changes)
    log = []
    train_grpo(model, tokenizer, CountDigits(), config, **preset.arguments(config),
               log=lambda step, metrics: log.append(metrics))
    return log


@pytest.mark.parametrize("name", GRPO_PRESETS)
def test_presets_state_their_papers_numbers(name):
    config = GRPOConfig(**GRPO_PRESETS[name].numbers)
    stated = STATED.get(name, {})
    assert {key: getattr(config, key) for key in stated} == stated
    assert config.iterations == 1 and config.temperature == 1.0


@pytest.mark.parametrize("name", GRPO_PRESETS)
def test_every_preset_learns(name):
    log = learn(name, steps=60)
    assert log[0]["reward"] < 0.5 and sum(m["reward"] for m in log[-5:]) / 5 > 2         # of 4
    assert all(m["sampling/sampling_logp_difference/mean"] < 1e-5 for m in log)


def test_the_sequence_ratio_of_gspo_is_clipped_where_a_token_ratio_is_not():
    clipped = {name: sum(m["clip_ratio/low_mean"] + m["clip_ratio/high_mean"]
                         for m in learn(name, steps=6)) for name in ("gspo", "cispo", "sapo")}
    assert clipped["gspo"] > 0 and clipped["cispo"] == clipped["sapo"] == 0


OTHER = {"clip_low": 0.05, "clip_high": 0.07, "scale": "batch", "ddof": 0}     # than any preset's


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("preset", GRPO_PRESETS)
def test_a_preset_reads_what_it_says_and_nothing_else(preset, name):
    """--clip-high with sapo, --scale with reinforce, --ddof with rloo: experiments that changed
    nothing, and said so nowhere. Each field is changed, and the preset's functions are asked at
    ratios from 0.1 to 10, at either sign, and at uneven rewards."""
    config = GRPOConfig(**GRPO_PRESETS[preset].numbers | {"scale": "group"})
    logp = torch.linspace(-3.3, 1.0, 20).view(4, 5)
    adv, mask = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]).expand(4, 5), torch.ones(4, 5)
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [3.0, 1.0, 0.0]])

    def results(config):
        variant = GRPO_PRESETS[preset].arguments(config)
        old_logp = logp - torch.linspace(-2.3, 2.3, 20).view(4, 5)
        return variant["objective"](logp, old_logp, adv, mask), variant["advantages"](rewards)

    same = map(torch.equal, results(config), results(replace(config, **{name: OTHER[name]})))
    assert all(same) == (name not in GRPO_PRESETS[preset].reads)


def test_the_presets_of_which_something_is_not_read():
    """By the papers, and not by our own table: which of these have a clip, and which a scale."""
    unread = {name: set(OTHER) - preset.reads for name, preset in GRPO_PRESETS.items()}
    scales, clips = {"scale", "ddof"}, {"clip_low", "clip_high"}
    assert {name: fields for name, fields in unread.items() if fields} == {
        "cispo": {"clip_low"}, "sapo": clips, "rloo": scales, "reinforce": scales | clips,
        "maxrl": scales | clips}
    assert {name: preset.reads for name, preset in PPO_PRESETS.items() if preset.reads} == {
        "ziegler": {"kl_target", "kl_horizon"}, "adaptive-kl": {"kl_target"}}


@pytest.mark.parametrize("command, preset, field, message", [
    ("grpo", "sapo", "clip_high",
     r"--clip-high is not read by preset sapo: .*\(grpo, dr_grpo, dapo,"),
    ("grpo", "cispo", "clip_low", "--clip-low is not read by preset cispo"),
    ("grpo", "reinforce", "scale", "--scale is not read by preset reinforce"),
    ("grpo", "rloo", "ddof", "--ddof is not read by preset rloo"),
    ("ppo", "ppo", "kl_target",
     r"--kl-target is not read by preset ppo: .*\(ziegler, adaptive-kl\)"),
    ("ppo", "adaptive-kl", "kl_horizon",
     r"--kl-horizon is not read by preset adaptive-kl: .*\(ziegler\)")])
def test_a_flag_for_what_a_preset_does_not_read_is_refused_by_name(
        command, preset, field, message):
    with pytest.raises(ValueError, match=message):
        check_flags(command, preset, ["lr", field])


@pytest.mark.parametrize("command, preset, fields", [
    ("grpo", "grpo", ["clip_low", "clip_high", "scale", "ddof", "lr"]),
    ("grpo", "cispo", ["clip_high"]), ("ppo", "ziegler", ["kl_target", "kl_horizon", "clip_low"]),
    ("dpo", "toy", ["lr", "beta"]), ("sft", "instructgpt", ["batch_size", "dropout"]),
    ("grpo", "reinforce", ["minibatches", "kl_coef"])])
def test_what_is_read_is_let_through(command, preset, fields):
    check_flags(command, preset, fields)


CASES = {"ref_sync_steps": (1, GRPOConfig(kl_coef=0.0)), "ddof": (0, GRPOConfig(scale="none")),
              "ptx_batch_size": (3, PPOConfig(ptx_coef=0.0))}


@pytest.mark.parametrize("field", UNREAD)
def test_what_other_numbers_leave_unread_is_refused_and_is_really_unread(field):
    """With the other number as it is, a run is the same to the bit; with another, it is not, and
    the flag is let through."""
    (other, value), (changed, config) = UNREAD[field], CASES[field]
    reading = replace(config, **{other: {"kl_coef": 0.1, "scale": "group", "ptx_coef": 0.5}[other]})
    command = "ppo" if isinstance(config, PPOConfig) else "grpo"
    with pytest.raises(ValueError, match=f"is not read where {other} is {value}: leave it out"):
        check_flags(command, command, [field], config)
    check_flags(command, command, [field], reading)
    assert torch.equal(learnt(config), learnt(replace(config, **{field: changed})))
    assert not torch.equal(learnt(reading), learnt(replace(reading, **{field: changed})))


def learnt(config):
    """The weights after three steps of a tiny model."""
    model, task = small.tiny(), small.Digits(small.length)
    config = replace(config, steps=3, lr=1e-2, warmup_steps=0, max_new_tokens=4)
    if isinstance(config, PPOConfig):
        texts = ["it rains", "we read"]
        train_ppo(model, small.TOKENIZER, task, replace(config, episodes=4), pretraining=texts)
    else:
        train_grpo(model, small.TOKENIZER, task, replace(config, prompts_per_step=2))
    return small.weights(model)


@pytest.mark.parametrize("preset", ["ziegler", "adaptive-kl"])
def test_a_controller_has_something_to_multiply(preset):
    """--preset adaptive-kl --kl-coef 0 trained a reward model and a policy before it stopped."""
    with pytest.raises(ValueError, match="kl_coef is 0 and would stay 0"):
        check_flags("ppo", preset, ["kl_coef"], PPOConfig(kl_coef=0.0))
    check_flags("ppo", "ppo", ["kl_coef"], PPOConfig(kl_coef=0.0))
    assert PPO_PRESETS["ppo"].arguments(PPOConfig(kl_coef=0.0)) == {}


def test_a_penalty_is_refused_where_rewards_stand_for_a_chance():
    """--preset maxrl --overlong-cache 16 trained until the first answer that was too long."""
    config = GRPOConfig(overlong_cache=16)
    with pytest.raises(ValueError, match="--overlong-cache gives .* preset maxrl cannot take"):
        check_flags("grpo", "maxrl", ["overlong_cache"], config)
    for preset in set(GRPO_PRESETS) - {"maxrl"}:
        check_flags("grpo", preset, ["overlong_cache"], config)


def test_a_page_without_functions_is_preset_grpo():
    """The page's own functions and the table's are written twice, and must be the same."""
    config = GRPOConfig(steps=2, prompts_per_step=2, iterations=3, max_new_tokens=4, lr=1e-1,
                        clip_low=0.1, ddof=0)
    variant = GRPO_PRESETS["grpo"].arguments(config)
    weights = []
    for arguments in ({}, variant):
        model = small.tiny()
        train_grpo(model, small.TOKENIZER, small.Digits(small.length), config, **arguments)
        weights.append(small.weights(model))
    assert torch.equal(*weights)


def test_reinforce_with_a_missing_verdict_trains():
    """A completion without a verdict had NaN for its advantage, and the run stopped there."""
    verdicts, preset = iter([None, 1.0, 0.0, 1.0] * 100), GRPO_PRESETS["reinforce"]
    config = GRPOConfig(**preset.numbers, steps=2, prompts_per_step=2, max_new_tokens=4)
    model = small.tiny()
    train_grpo(model, small.TOKENIZER, small.Digits(lambda c: next(verdicts)), config,
               **preset.arguments(config))
    after = small.weights(model)
    assert bool(after.isfinite().all()) and not torch.equal(after, small.weights(small.tiny()))


@pytest.fixture(scope="module", params=[0, 1, 2])
def toy_base(request):
    """The main job's base model, which answers about half of the sums right."""
    seed = request.param
    model, tokenizer = make_base(TinySizes(), seed=seed, device="cpu")
    pairs = demonstrations(Arithmetic(), 24_000, random.Random(seed), worked_share=0.5,
                           guessed_share=0.5)
    return train_sft(model, tokenizer, pairs, SFTConfig(), seed=seed), tokenizer, seed


@pytest.mark.slow
@pytest.mark.parametrize("name", GRPO_PRESETS)
def test_every_preset_learns_sums(name, toy_base):
    """30 steps at the toy's learning rate and batch: accuracy on held-out sums up by at least 0.2,
    on every seed."""
    (first, tokenizer, seed), preset = toy_base, GRPO_PRESETS[name]
    model, task = copy.deepcopy(first), Arithmetic()
    lr = min(4e-4, max(2e-4, preset.numbers.get("lr", 4e-4)))
    config = replace(GRPOConfig(**preset.numbers), steps=30, prompts_per_step=16, group_size=8,
                     warmup_steps=3, lr=lr,
                     minibatches=min(4, preset.numbers.get("minibatches", 1)))
    before = evaluate(first, tokenizer, task, n=512, seed=seed).accuracy
    train_grpo(model, tokenizer, task, config, **preset.arguments(config), seed=seed)
    after = evaluate(model, tokenizer, task, n=512, seed=seed).accuracy
    print(f"{name} seed {seed}: {before:.3f} -> {after:.3f}")
    assert after > before + 0.2
