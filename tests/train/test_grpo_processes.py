"""The training pages in two processes: the same updates and metrics as in one, on the same batch.

The completions are a function of the prompt alone, so that they do not depend on which process
samples them.
"""

import hashlib

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from minirl.lm import world
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.preferences import Ranking
from minirl.tasks.problem import JudgedTask
from minirl.tasks.user_rollouts import with_rollouts
from minirl.train.distill import DistillConfig, train_distill
from minirl.train.dpo import DPOConfig, train_dpo
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.metrics import check_judged
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.reward_model import RewardModelConfig, train_reward_model
from minirl.train.sft import SFTConfig, train_sft

SMALL = TinySizes(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8, max_seq_len=32)
PAIRS = [("1+1=", "2"), ("12+30=", "42"), ("9+9=", "18"), ("7+0=", "7"), ("100+11=", "111")]
RANKINGS = [Ranking(prompt, [answer, "99999", "0"]) for prompt, answer in PAIRS]
GRPO = {"steps": 2, "prompts_per_step": 5, "group_size": 3, "max_new_tokens": 8, "lr": 1e-2,
        "warmup_steps": 0}
NOT_COMPARED = {"step_time", "mean_reward"}  # which hangs on a reward model's bias, see below


def written(prompts, sampler):
    """Completions that hang on the prompt and on its place in the group, of 1 to 7 digits."""
    completions, seen = [], {}
    for prompt in prompts:
        seen[prompt] = seen.get(prompt, 0) + 1
        digits = int(hashlib.sha256(f"{prompt}{seen[prompt]}".encode()).hexdigest(), 16)
        completions.append(sampler.tokenizer.encode(str(digits)[:1 + digits % 7]))
    return {"prompt_ids": [sampler.tokenizer.encode_prompt(prompt) for prompt in prompts],
            "completion_ids": completions}


def digit_sum(completions, **columns):
    """A reward with a spread in nearly every group; none where the completion begins with a 4."""
    return [None if text.startswith("4") else sum(map(int, text)) / 10 for text in completions]


def task():
    judged = JudgedTask(Arithmetic(digits=2), {"digits": digit_sum}, {"digits": 1.0})
    return with_rollouts(judged, written)


def grpo(**options):
    return lambda model, tokenizer, log: train_grpo(
        model, tokenizer, task(), GRPOConfig(**GRPO, **options), log=log)


def ppo(model, tokenizer, log):
    config = PPOConfig(steps=2, episodes=7, minibatch_size=7, epochs=2, max_new_tokens=8,
                       lr=1e-2, warmup_steps=0)
    return train_ppo(model, tokenizer, task(), config, log=log)


def distill(model, tokenizer, log):
    teacher, _ = make_base(SMALL, seed=1, device="cpu")
    config = DistillConfig(steps=2, prompts_per_step=5, max_new_tokens=8, lr=1e-2, warmup_steps=0)
    return train_distill(model, tokenizer, task(), config, teacher=teacher, log=log)


PAGES = {
    "sft": lambda m, t, log: train_sft(m, t, PAIRS, SFTConfig(batch_size=2, warmup_steps=0),
                                       log=log),
    "dpo": lambda m, t, log: train_dpo(m, t, RANKINGS, DPOConfig(batch_size=2), log=log),
    "rm": lambda m, t, log: train_reward_model(m, t, RANKINGS, RewardModelConfig(batch_size=2),
                                               log=log),
    "grpo": grpo(),
    "batch scale, filtered, entropy": grpo(
        scale="batch", dynamic_sampling=True, top_entropy=0.4, entropy_coef=0.01, iterations=2,
        overlong_cache=4, aggregate="token_mean", token_budget=64),
    "adaptive entropy": grpo(entropy_target=1.0, kl_coef=0.0, aggregate="sequence_mean"),
    "ppo": ppo,
    "distill": distill,
}


def run(name):
    """All weights after two updates, and the metrics of each."""
    model, tokenizer = make_base(SMALL, seed=0, device="cpu")
    lines = []
    trained = PAGES[name](model, tokenizer, lambda step, metrics: lines.append(
        {key: value for key, value in metrics.items() if key not in NOT_COMPARED}))
    # but a reward model's bias: no ranking says anything of it, and Adam makes steps of noise
    weights = [p for key, p in trained.named_parameters() if not key.endswith("linear.bias")]
    return nn.utils.parameters_to_vector(weights).detach(), lines


def test_pages_in_two_processes(tmp_path):
    """All of it in one pair of processes, as a pair takes seconds to start."""
    multiprocessing.spawn(one_process, args=(str(tmp_path / "store"),), nprocs=2)


def one_process(rank, store):
    torch.set_num_threads(1)
    alone = {name: run(name) for name in PAGES}
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    try:
        for name, (weights, metrics) in alone.items():
            its_weights, its_metrics = run(name)
            assert torch.equal(*world.gather(its_weights)), name
            assert torch.allclose(its_weights, weights, rtol=1e-4, atol=2e-5), name
            for mine, other in zip(its_metrics, metrics, strict=True):
                assert mine == pytest.approx(other, rel=1e-3, abs=1e-5), name
        minibatches_that_only_one_process_has()
        nothing_to_learn_from(rank)
    finally:
        dist.destroy_process_group()


def minibatches_that_only_one_process_has():
    """The processes drop and draw different numbers of groups, and still update together."""
    model, tokenizer = make_base(SMALL, seed=0, device="cpu")
    norms = []
    config = GRPOConfig(**GRPO | {"prompts_per_step": 2}, minibatches=4, dynamic_sampling=True,
                        max_draws=3)
    train_grpo(model, tokenizer, task(), config,
               log=lambda step, metrics: norms.append(metrics["grad_norm"]))
    texts = [a + b for a, b in PAIRS]
    train_ppo(model, tokenizer, task(), PPOConfig(
        steps=1, episodes=3, minibatch_size=2, max_new_tokens=8, ptx_coef=0.5, ptx_batch_size=2),
        pretraining=texts, log=lambda step, metrics: norms.append(metrics["loss/pretraining"]))
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert torch.equal(*world.gather(weights)) and world.gather(norms)[0] == norms
    assert len(norms) == 3 and all(norm > 0 for norm in norms)


def nothing_to_learn_from(rank):
    """No verdict in one process alone is no reason to stop; none in any process is, in both."""
    rewards = torch.tensor([float("nan"), float("nan") if rank else 1.0])
    assert check_judged(rewards) is rewards
    with pytest.raises(ValueError, match="none of the 2 completions got a reward"):
        check_judged(torch.full((2,), float("nan")))
