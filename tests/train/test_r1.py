"""minirl/train/r1.py"""

import copy
import random
from dataclasses import replace

import pytest
import torch

from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import TAGS, build_tokenizer
from minirl.tasks.bilingual import WORDS, Bilingual, demonstrations
from minirl.train import r1
from minirl.train.grpo import GRPOConfig
from minirl.train.r1 import R1Config, rejection_sample, train_r1
from minirl.train.sft import SFTConfig, train_sft
from tests.train.small import weights

TOKENIZER = build_tokenizer(special_tokens=(*TAGS, *WORDS))
TASK = Bilingual(1)
RL = GRPOConfig(steps=2, prompts_per_step=2, group_size=4, max_new_tokens=20, lr=1e-4)
CONFIG = R1Config(zero=RL, cold_start=SFTConfig(batch_size=16, lr=1e-3), reasoning=RL, sft=SFTConfig(batch_size=8, lr=1e-3), final=RL, kept_problems=12, kept_samples=4)
COLD = demonstrations(TASK, 32, random.Random(0))


@pytest.fixture(scope="module")
def base():
    """A model that has read one-digit sums, so that some of its completions are right."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(TOKENIZER.vocab_size, hidden_size=48, num_layers=2, num_heads=4, rope_theta=100.0, qk_norm=True, initializer_range=0.15))
    read = demonstrations(TASK, 2400, random.Random(1), worked_share=0.8, mixed_share=0.3)
    return train_sft(model, TOKENIZER, read, SFTConfig(batch_size=32))


def led(base, **rest):
    """The stages, what each starts from, and the last model."""
    seen = {}

    def stage(name, start, page):
        seen[name] = (weights(start), page(copy.deepcopy(start), log=None, save=None, resume=None))
        return seen[name][1]

    return seen, train_r1(base, TOKENIZER, TASK, replace(CONFIG, **rest), cold_start=COLD, stage=stage)


def test_every_stage_starts_from_the_right_model(base):
    """rl-1 goes on from the cold start, rl-2 from the SFT, and that SFT begins with the base model again, not with rl-1. The base model is not changed."""
    before = weights(base)
    seen, last = led(base)
    assert list(seen) == ["r1-zero", "cold-start", "rl-1", "sft", "rl-2"]
    for name, origin in (("r1-zero", before), ("cold-start", before), ("rl-1", weights(seen["cold-start"][1])), ("sft", before), ("rl-2", weights(seen["sft"][1]))):
        assert torch.equal(seen[name][0], origin), name
        assert not torch.equal(weights(seen[name][1]), origin), name
    assert last is seen["rl-2"][1] and torch.equal(weights(base), before) and not last.training


def test_twice_is_the_same_bit_for_bit(base):
    first, again, other = (weights(train_r1(base, TOKENIZER, TASK, CONFIG, cold_start=COLD, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_r1_zero_is_not_paid_for_its_language_and_the_others_are(base, monkeypatch):
    asked = []
    monkeypatch.setattr(r1, "train_grpo", lambda m, *args, reward_weights, **rest: asked.append(reward_weights) or m.eval())
    led(base, language_weight=0.5)
    rules = {"accuracy": 1.0, "format_reward": 1.0}
    assert asked == [{**rules, "language_consistency": 0.0}, {**rules, "language_consistency": 0.5}, {**rules, "language_consistency": 0.5}]


def test_what_is_kept_is_right_in_form_and_in_one_language(base):
    kept = rejection_sample(base, TOKENIZER, TASK, replace(CONFIG, kept_problems=40, kept_samples=8), seed=0)
    problems = {p.prompt: p for p in TASK.sample(4000, random.Random(5))}
    assert 0 < len(kept) <= 40 and len(dict(kept)) == len(kept), "one for each problem"
    for prompt, completion in kept:
        problem = problems[prompt]
        assert all(reward([prompt], [completion], answer=[problem.answer], language=[problem.language]) == [1.0] for reward in TASK.rewards.values())


def test_nothing_to_keep_is_an_error(base):
    dumb = copy.deepcopy(base)
    with torch.no_grad():
        dumb.norm.weight.zero_()                             # every token is as likely as every other
    with pytest.raises(ValueError, match="of 48 completions none was right, in form and in one language"):
        rejection_sample(dumb, TOKENIZER, TASK, CONFIG, seed=0)


@pytest.mark.parametrize("bad, message", [(dict(kept_problems=0), "kept_problems is 0"), (dict(language_weight=-1.0), "language_weight is -1")])
def test_bad_numbers(bad, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **bad)
