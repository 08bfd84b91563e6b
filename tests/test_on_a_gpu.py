"""Every training page on CUDA. Pages that draw nothing give the numbers of a CPU there; those that
sample learn from the policy that sampled. Voting and the searches choose at temperature 0 what they
choose on a CPU."""

import math

import pytest
import torch

from minirl.inference.budget_forcing import budget_forcing
from minirl.inference.guided import guided_decoding
from minirl.inference.tree_search import beam_search, diverse_tree_search
from minirl.inference.voting import best_of_n_sampling, majority_voting
from minirl.lm import compiled as compiling
from minirl.lm.branches import Branches
from minirl.lm.choice import Choice
from minirl.lm.heads import ScalarModel
from minirl.lm.precision import compute_in
from minirl.train.dpo import DPOConfig, train_dpo
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.reward_model import RewardModelConfig, train_reward_model
from minirl.train.sft import SFTConfig, train_sft
from tests.train.small import (
    PAIRS,
    RANKINGS,
    TOKENIZER,
    Digits,
    Log,
    copy_of,
    length,
    tiny,
    weights,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SFT = SFTConfig(batch_size=8, lr=1e-3)
REWARD_MODEL = RewardModelConfig(batch_size=3, lr=1e-3)
DPO = DPOConfig(batch_size=3, lr=1e-3, warmup_steps=0)
GRPO = GRPOConfig(steps=2, prompts_per_step=3, group_size=4, iterations=2, minibatches=2, lr=1e-3,
                  warmup_steps=0, kl_coef=0.05, max_new_tokens=12)
PPO = PPOConfig(steps=2, episodes=12, minibatch_size=6, lr=1e-3, value_lr=1e-3, warmup_steps=0,
                max_new_tokens=12, missing_eos_penalty=0.0, entropy_coef=0.01)


def ppo(model, **options):
    value_model = ScalarModel(tiny()).to(model.device)
    return train_ppo(model, TOKENIZER, Digits(length), PPO, value_model=value_model,
                     pretraining=["it rains", "we read"], **options)


# pages that learn from fixed data, and pages that sample
OFFLINE = {
    "sft": lambda model, **k: train_sft(model, TOKENIZER, PAIRS, SFT, **k),
    "reward model": lambda model, **k: train_reward_model(model, TOKENIZER, RANKINGS, REWARD_MODEL,
                                                          **k),
    "dpo": lambda model, **k: train_dpo(model, TOKENIZER, RANKINGS, DPO, **k),
}
SAMPLED = {
    "grpo": lambda model, **k: train_grpo(model, TOKENIZER, Digits(length), GRPO, **k),
    "ppo": ppo,
}
PAGES = OFFLINE | SAMPLED


def run(page, device="cuda", dtype="float32", compiled=False, **options):
    """The page's metrics, step by step, and the weights that it ends with."""
    log, model = Log(), tiny().to(device)
    model.compiled = compiled
    with compute_in(dtype, model.device):
        model = page(model, log=log, **options)
    # falling back to uncompiled code would compare it with itself
    assert not (compiled and compiling._broken)
    assert all(math.isfinite(v) for metrics in log for v in metrics.values())
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {(device, torch.float32)}
    steps = [{k: v for k, v in metrics.items() if k != "step_time"} for metrics in log]
    return steps, weights(model).cpu()


def differences(log):
    """How far the sampler's log-probs are from the learner's, in each step."""
    return [metrics["sampling/sampling_logp_difference/mean"] for metrics in log]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", OFFLINE)
def test_fixed_data_is_learnt_as_on_a_cpu(name, compiled):
    log, after = run(PAGES[name], compiled=compiled)
    cpu_log, cpu_after = run(PAGES[name], device="cpu")
    for metrics, expected in zip(log, cpu_log, strict=True):
        assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(after, cpu_after, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PAGES)
def test_two_steps_in_either_dtype(name, dtype):
    """In bfloat16 backward failed, where rows share a prompt: autocast sums in float32 on CUDA, and
    on a CPU does not."""
    log, after = run(PAGES[name], dtype=dtype)
    _, of_another_seed = run(PAGES[name], dtype=dtype, seed=1)
    assert not torch.equal(after, of_another_seed) and log[0]["grad_norm"] > 0
    if name in SAMPLED:
        assert max(differences(log)) < (1e-5 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("name", SAMPLED)
def test_compiled_the_learner_is_the_sampler(name):
    log, _ = run(PAGES[name], compiled=True)
    assert max(differences(log)) < 1e-5


@pytest.mark.parametrize("name", SAMPLED)
def test_resume_continues_bit_for_bit(name):
    states = []
    _, whole = run(PAGES[name], save=lambda state: states.append(copy_of(state.state_dict())))
    _, resumed = run(PAGES[name], resume=states[0])
    assert torch.equal(resumed, whole)


# asking without training

def steps_of(prompts, completions):
    """A score for a completion as one step: a number made of its ids."""
    return [[sum(ids) % 97 / 97] for ids in completions]


def whole(prompts, completions):
    return [row[0] for row in steps_of(prompts, completions)]


GREEDY = {"max_new_tokens": 12, "temperature": 0}
ASKED = {
    "majority voting": lambda model, ids: majority_voting(model, TOKENIZER, ids, n=9, **GREEDY),
    "best of n": lambda model, ids: best_of_n_sampling(model, TOKENIZER, ids, whole, n=4, **GREEDY),
    "beam search": lambda model, ids: beam_search(model, TOKENIZER, ids, steps_of, **GREEDY),
    "DVTS": lambda model, ids: diverse_tree_search(model, TOKENIZER, ids, steps_of, **GREEDY),
    "guided decoding": lambda model, ids: guided_decoding(
        model, ids, whole, beta=0.5, n=3, eos_id=TOKENIZER.stop_ids, **GREEDY),
    "budget forcing": lambda model, ids: budget_forcing(
        model, TOKENIZER, ids, n=3, most=8, extensions=2, **GREEDY),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ASKED)
def test_without_chance_a_search_is_that_of_a_cpu(name, compiled):
    prompts = [TOKENIZER.encode_prompt(text) for text in ("1+2=", "7=", "the sum of 12 and 30 is ")]
    results = []
    for device in ("cpu", "cuda"):
        model = tiny().to(device)
        model.compiled = compiled and device == "cuda"
        results.append(ASKED[name](model, prompts))
    cpu, cuda = results
    assert cuda.completions == cpu.completions and cuda.ended == cpu.ended
    assert cuda.chosen == cpu.chosen and cuda.spent == cpu.spent


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_branches_grow_as_on_a_cpu(dtype):
    """Rows are copied, dropped, given tokens and cut back; of bfloat16 only that it can be done, as
    its roundings differ."""
    tokens = []
    for device in ("cpu", "cuda"):
        model = tiny().to(device)
        with compute_in(dtype, model.device):
            branches = Branches(model, [[3, 1, 4, 1, 5], [9], [2, 6]])
            branches.select([0, 1, 2] * 14)
            branches.grow([1 + i % 20 for i in range(42)], stops=[], choice=Choice(0, 0, 1.0))
            branches.select([41, 3, 3, 20, 7])
            branches.give(1, [4, 8])
            branches.take_back(3)
            branches.grow([3, 5, 1, 9, 2], stops=[], choice=Choice(0, 0, 1.0))
            assert branches.next_logits().isfinite().all()
        tokens.append(branches.tokens)
    assert [len(row) for row in tokens[0]] == [len(row) for row in tokens[1]]
    assert tokens[0] == tokens[1] or dtype == "bfloat16"
