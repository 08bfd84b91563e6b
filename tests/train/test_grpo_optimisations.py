"""What makes training fast changes no result: each optimisation on and off, through whole steps of
GRPO."""

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
from tests.train.small import Log, weights

TOKENIZER = build_tokenizer()
TOKENIZER.stop_ids = list(range(0, TOKENIZER.vocab_size, 9))   # so that rows end at many lengths
CONFIG = GRPOConfig(steps=2, prompts_per_step=3, group_size=4, iterations=2, lr=3e-3,
                    warmup_steps=0, min_lr_ratio=1.0, max_new_tokens=8, temperature=1.3,
                    kl_coef=0.05)


class Lengths:
    """Longer is better. Prompts have two lengths."""

    rewards = {"length": lambda prompts, completions, **_: [float(len(c)) for c in completions]}

    def sample(self, n, rng: random.Random, *, split="train"):
        return [Problem(prompt=rng.choice(["7=", "12+3="]), answer="7") for _ in range(n)]


def run(compiled=False, **changes):
    """Return the weights after two steps, and each step's metrics, of a model like Qwen3."""
    torch.manual_seed(1)
    model = Transformer(ModelConfig(TOKENIZER.vocab_size, hidden_size=16, num_layers=2, num_heads=2,
                                    num_kv_heads=1, qk_norm=True, initializer_range=0.2))
    model.compiled, log = compiled, Log()
    train_grpo(model, TOKENIZER, Lengths(), replace(CONFIG, **changes), log=log)
    for metrics in log:
        del metrics["step_time"]
    return weights(model), log


def rows_leave_at_once(patch):
    patch.setattr(decoding, "WORTH_LEAVING", 0.0)


def rows_never_leave(patch):
    patch.setattr(decoding, "WORTH_LEAVING", 2.0)


def look_for_ends_every_third_step(patch):
    patch.setitem(decoding.ASK, "cpu", 3)


def decode_as_on_cuda(patch):
    def recording_decoder(model, *sizes, **forms):
        return decoding.Decoder(model, *sizes, **forms, recording=True)

    patch.setattr(sampling, "decoder_for", recording_decoder)


def fused_attention(patch):
    patch.setattr(attention, "SHORT", 0)


def attention_in_one_piece(patch):
    patch.setattr(distinct, "WORTH_A_PIECE", 0.0)


def attention_in_many_pieces(patch):
    patch.setattr(distinct, "WORTH_A_PIECE", 1.0)


def prompts_are_not_shared(patch):
    def own_row(tokens, prompt, used):
        return torch.arange(len(tokens))

    patch.setattr(distinct, "same_prompt", own_row)


def one_logit_row_at_a_time(patch):
    patch.setattr(logprobs, "chunk_rows", lambda *_: 1)


def compile_all(patch):
    patch.setattr(model_module, "MANY", 1)
    patch.setattr(logprobs, "WORTH_COMPILING", 0)


SWITCHES = {
    "rows leave at once": rows_leave_at_once,
    "rows never leave": rows_never_leave,
    "ends are looked for every third step": look_for_ends_every_third_step,
    "steps as on CUDA": decode_as_on_cuda,
    "fused attention": fused_attention,
    "attention in one piece": attention_in_one_piece,
    "attention in many pieces": attention_in_many_pieces,
    "prompts are not shared": prompts_are_not_shared,
    "one logit row at a time": one_logit_row_at_a_time,
    "compiled": compile_all,
}


@pytest.fixture(scope="module")
def plain():
    return run()


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_nothing_that_is_learnt(name, plain, monkeypatch):
    """The same tokens, rewards and metrics, and the same weights within float32's rounding. A
    second run has the same bits, and a run in micro-batches the same weights."""
    plain_weights, plain_log = plain
    SWITCHES[name](monkeypatch)
    compiled = name == "compiled"
    after, log = run(compiled)
    for metrics, expected in zip(log, plain_log, strict=True):
        assert metrics["sampling/sampling_logp_difference/mean"] < 1e-5
        assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-5)
    torch.testing.assert_close(after, plain_weights, atol=2e-4, rtol=0)
    again, _ = run(compiled)
    assert torch.equal(again, after)
    split, _ = run(compiled, token_budget=40)
    torch.testing.assert_close(split, after, atol=2e-4, rtol=0)


def test_the_run_has_rows_of_many_lengths_and_learns(plain):
    """Otherwise the switches above would have nothing to change."""
    _, log = plain
    assert log[0]["completions/min_length"] < 4
    assert log[0]["completions/max_length"] == 8
    assert log[0]["grad_norm"] > 0.01
