"""minirl/app/presets.py: every name is a complete recipe, states its paper's numbers, and learns."""

import copy
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from minirl.app.cli import main
from minirl.app.evaluate import evaluate
from minirl.app.presets import GRPO_PRESETS
from minirl.app.training import BaseConfig, make_base
from minirl.equations.advantages import group_advantages
from minirl.equations.objectives import clipped_surrogate
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.tasks.problem import Problem
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.sft import SFTConfig, train_sft

STATED = {
    "dr_grpo": dict(scale="none", aggregate="constant", kl_coef=0.0), "dapo": dict(clip_low=0.2, clip_high=0.28, aggregate="token_mean", kl_coef=0.0),
    "gspo": dict(clip_low=3e-4, clip_high=4e-4, minibatches=4), "deepseekmath": dict(lr=1e-6, kl_coef=0.04, group_size=64, aggregate="sequence_mean"),
    "r1-zero": dict(lr=3e-6, kl_coef=0.001, group_size=16, prompts_per_step=512, ref_sync_steps=25, minibatches=16),
    "trl": dict(lr=1e-6, kl_coef=0.0, group_size=8, aggregate="token_mean", ddof=1),
}


class CountDigits:
    """Reward: how many of the completion's tokens are digits."""

    rewards = {"digits": lambda prompts, completions, **_: [float(sum(letter.isdigit() for letter in c)) for c in completions]}

    def sample(self, n, rng, *, split="train"):
        return [Problem(prompt=rng.choice(["7=", "12+3="]), answer="7") for _ in range(n)]


def learn(name, **changes):
    """The mean reward at the start and at the end of a short run of a tiny model."""
    tokenizer, preset = build_tokenizer(), GRPO_PRESETS[name]
    torch.manual_seed(0)
    model = Transformer(ModelConfig(tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2, initializer_range=0.1))
    config = replace(GRPOConfig(**preset.numbers), lr=1e-2, warmup_steps=0, prompts_per_step=4, group_size=8, max_new_tokens=4, overlong_cache=0,
                     minibatches=min(2, preset.numbers.get("minibatches", 1)), **changes)
    log = []
    train_grpo(model, tokenizer, CountDigits(), config, **preset.functions(config), log=lambda step, metrics: log.append(metrics))
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
    assert log[0]["reward"] < 0.5 and sum(m["reward"] for m in log[-5:]) / 5 > 2                   # of 4
    assert all(m["sampling/sampling_logp_difference/mean"] < 1e-5 for m in log)


def test_the_sequence_ratio_of_gspo_is_clipped_where_a_token_ratio_is_not():
    clipped = {name: sum(m["clip_ratio/low_mean"] + m["clip_ratio/high_mean"] for m in learn(name, steps=6)) for name in ("gspo", "cispo", "sapo")}
    assert clipped["gspo"] > 0 and clipped["cispo"] == clipped["sapo"] == 0


@pytest.mark.parametrize("name, advantage, ratio_of_four", [("grpo", 1.4997, 1.2), ("dr_grpo", 0.75, 1.2), ("dapo", 1.4997, 1.28), ("gspo", 1.4997, 1.0004),
                                                            ("rloo", 1.0, 1.2), ("maxrl", 3.0, 1.386294)])
def test_the_command_line_hands_the_functions_on(name, advantage, ratio_of_four, base, tmp_path, monkeypatch):
    """What --preset names must reach the page: the advantage of one right answer in four, and the objective of a ratio of 4 at A = 1 (log 4 = 1.386294)."""
    seen = {}
    monkeypatch.setattr("minirl.app.training.train_grpo", lambda *args, advantages, objective, **rest: seen.update(advantages=advantages, objective=objective))
    main(["grpo", "--preset", name, "--init", str(base), "--max-new-tokens", "17", "--eval-problems", "4", "--run-dir", str(tmp_path / name)])
    config = GRPOConfig(**GRPO_PRESETS[name].numbers)
    advantages = seen["advantages"] or partial(group_advantages, scale=config.scale)
    objective = seen["objective"] or (lambda logp, old, adv, mask: clipped_surrogate(logp, old, adv, clip_high=config.clip_high))
    one = torch.ones(1, 1)
    assert advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))[0, 0].item() == pytest.approx(advantage, abs=1e-4)
    assert objective((4 * one).log(), 0 * one, one, one).item() == pytest.approx(ratio_of_four, abs=1e-4)


@pytest.fixture(scope="module", params=[0, 1, 2])
def toy_base(request):
    """The main job's base model, which answers about half of the sums right."""
    (model, tokenizer), config = make_base(BaseConfig(), seed=request.param, device="cpu"), BaseConfig()
    pairs = demonstrations(Arithmetic(), config.examples, random.Random(request.param), worked_share=config.worked_share,
                           guessed_share=config.guessed_share)
    return train_sft(model, tokenizer, pairs, SFTConfig(), seed=request.param), tokenizer, request.param


@pytest.mark.slow
@pytest.mark.parametrize("name", GRPO_PRESETS)
def test_every_preset_learns_sums(name, toy_base):
    """30 steps at the toy's learning rate and batch: accuracy on held-out sums up by at least 0.2, on every seed."""
    (first, tokenizer, seed), preset = toy_base, GRPO_PRESETS[name]
    model, task = copy.deepcopy(first), Arithmetic()
    config = replace(GRPOConfig(**preset.numbers), steps=30, prompts_per_step=16, group_size=8, warmup_steps=3, lr=min(4e-4, max(2e-4, preset.numbers.get("lr", 4e-4))),
                     minibatches=min(4, preset.numbers.get("minibatches", 1)))
    before = evaluate(first, tokenizer, task, n=512, seed=seed).accuracy
    train_grpo(model, tokenizer, task, config, **preset.functions(config), seed=seed)
    after = evaluate(model, tokenizer, task, n=512, seed=seed).accuracy
    print(f"{name} seed {seed}: {before:.3f} -> {after:.3f}")
    assert after > before + 0.2
