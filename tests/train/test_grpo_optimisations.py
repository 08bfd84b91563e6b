"""What is done for speed changes no result: each optimisation on and off, through whole steps of a training page."""

import random
from dataclasses import replace

import pytest
import torch

from minirl.lm import attention, decoding, distinct, logprobs, sampling
from minirl.lm import model as model_module
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks.problem import Problem
from minirl.train.grpo import GRPOConfig, train_grpo

TOKENIZER = build_tokenizer()
CONFIG = GRPOConfig(steps=2, prompts_per_step=3, group_size=4, iterations=2, lr=3e-3, warmup_steps=0, min_lr_ratio=1.0, max_new_tokens=8, temperature=1.3, kl_coef=0.05)


class Lengths:
    """Longer is better; prompts of two lengths, and stops among the letters, so that rows end at many lengths."""

    rewards = {"length": lambda prompts, completions, **_: [float(len(c)) for c in completions]}

    def sample(self, n, rng: random.Random, *, split="train"):
        return [Problem(prompt=rng.choice(["7=", "12+3="]), answer="7") for _ in range(n)]


def run(compiled=False, **changes):
    """(weights after two steps, each step's metrics) of one model of the Qwen3 kind."""
    torch.manual_seed(1)
    model = Transformer(ModelConfig(TOKENIZER.vocab_size, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, qk_norm=True, initializer_range=0.2))
    model.compiled, log = compiled, []
    tokenizer = build_tokenizer()
    tokenizer.stop_ids = list(range(0, TOKENIZER.vocab_size, 9))
    train_grpo(model, tokenizer, Lengths(), replace(CONFIG, **changes), log=lambda step, metrics: log.append(metrics))
    return torch.cat([p.detach().flatten() for p in model.parameters()]), [{k: v for k, v in m.items() if k != "step_time"} for m in log]


def recording(patch):
    patch.setattr(sampling, "decoder_for", lambda model, *sizes, padded: decoding.Decoder(model, *sizes, padded=padded, recording=True))


SWITCHES = {
    "rows leave at once": lambda patch: patch.setattr(decoding, "WORTH_LEAVING", 0.0),
    "rows never leave": lambda patch: patch.setattr(decoding, "WORTH_LEAVING", 2.0),
    "ends are looked for every third step": lambda patch: patch.setitem(decoding.ASK, "cpu", 3),
    "steps as on CUDA": recording,
    "fused attention": lambda patch: patch.setattr(attention, "SHORT", 0),
    "attention in one piece": lambda patch: patch.setattr(distinct, "WORTH_A_PIECE", 0.0),
    "attention in many pieces": lambda patch: patch.setattr(distinct, "WORTH_A_PIECE", 1.0),
    "prompts are not shared": lambda patch: patch.setattr(distinct, "same_prompt", lambda tokens, first, used: torch.arange(len(tokens))),
    "one logit row at a time": lambda patch: patch.setattr(logprobs, "chunk_rows", lambda *_: 1),
    "compiled": lambda patch: (patch.setattr(model_module, "MANY", 1), patch.setattr(logprobs, "WORTH_COMPILING", 0)),
}


@pytest.fixture(scope="module")
def plain():
    return run()


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_nothing_that_is_learnt(name, plain, monkeypatch):
    """The same tokens, rewards and metrics, and weights within float32's rounding; twice the same bits; and the same under micro-batches."""
    SWITCHES[name](monkeypatch)
    weights, log = run(compiled=name == "compiled")
    for got, want in zip(log, plain[1]):
        assert got["sampling/sampling_logp_difference/mean"] < 1e-5        # the learner's policy is the sampler's
        assert got == pytest.approx(want, rel=1e-3, abs=1e-5)
    torch.testing.assert_close(weights, plain[0], atol=2e-4, rtol=0)
    again, _ = run(compiled=name == "compiled")
    assert torch.equal(again, weights)
    split, _ = run(compiled=name == "compiled", token_budget=40)
    torch.testing.assert_close(split, weights, atol=2e-4, rtol=0)


def test_the_run_has_rows_of_many_lengths_and_learns(plain):
    """Or the switches above would have nothing to change."""
    metrics = plain[1][0]
    assert metrics["completions/min_length"] < 4 and metrics["completions/max_length"] == 8 and metrics["grad_norm"] > 0.01
