"""DeepSeek-R1's pipeline: reinforcement learning alone, then a cold start, reinforcement learning, rejection sampling, fine-tuning, and reinforcement learning again.

    Paper      DeepSeek-R1, arXiv:2501.12948v2 (Nature 2025); the language reward is its eq. 7

    base ── r1-zero     GRPO, right answers and format alone: reasoning grows, and nothing keeps it in one language
    base ── cold-start  SFT on a few hundred clean long reasonings
             └─ rl-1    GRPO, right answers + format + language consistency (eq. 7)
                 └─ kept, by rejection sampling: right, in form, in one language
    base ── sft         on what was kept and on general data
             └─ rl-2    GRPO once more

Same as the paper  the order of the stages and what each starts from: the SFT of the second half starts from the base model again, not from rl-1.
Different          reasoning alone is sampled, by rules; the second reinforcement learning has no general prompts and no preference model, and no part of
                   its own for them at the end.
Why                the toy has one kind of question. `general` data takes part in the SFT where it is given.

Each stage is one call of another page, on a copy of what it starts from.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from minirl.lm.sampling import sample
from minirl.tasks.problem import columns
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.state import check_positive, derive_seed

Page = Callable[..., object]                       # page(model, log=, save=, resume=) -> the trained model
Stage = Callable[[str, object, Page], object]      # stage(name, model to start from, page) -> the trained model
RULES = {"accuracy": 1.0, "format_reward": 1.0}    # DeepSeek-R1, section 2.2: equal weights


@dataclass(frozen=True)
class R1Config:
    """Defaults: the tiny model on sums told in two languages, on a laptop."""

    zero: GRPOConfig = field(default_factory=lambda: GRPOConfig(max_new_tokens=48, kl_coef=0.001))               # KL 0.001: R1-Zero
    cold_start: SFTConfig = field(default_factory=lambda: SFTConfig(epochs=4, lr=1e-3, warmup_steps=0, min_lr_ratio=0.1))
    reasoning: GRPOConfig = field(default_factory=lambda: GRPOConfig(steps=60, max_new_tokens=48, kl_coef=0.001))
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(epochs=2, lr=1e-3, warmup_steps=0, min_lr_ratio=0.1))      # 2 to 3 epochs, cosine to a tenth
    final: GRPOConfig = field(default_factory=lambda: GRPOConfig(max_new_tokens=48, kl_coef=0.001, temperature=0.7))    # temperature 0.7
    kept_problems: int = 512           # from which reasonings are kept
    kept_samples: int = 4              # completions of each
    language_weight: float = 1.0       # eq. 7 is added to the rules with this weight

    def __post_init__(self):
        check_positive(self, "kept_problems", "kept_samples")
        if not self.language_weight >= 0:
            raise ValueError(f"language_weight is {self.language_weight}: 0 or more is wanted")


def train_r1(model, tokenizer, task, config: R1Config, *, cold_start: Sequence[tuple[str, str]], general: Sequence[tuple[str, str]] = (), seed: int = 0,
             log: Callable[[int, dict], None] | None = None, stage: Stage | None = None):
    """Lead a base model through all stages, and return the last stage's model, in eval mode. `model` itself is not changed.

    task.rewards has accuracy, format_reward and language_consistency. cold_start and general are (prompt, completion) pairs. stage runs a stage, and may keep what
    came of it; left out, it copies the model and calls the page. log(step, metrics) is given to every page then. Raises ValueError where nothing is kept.
    """
    stage = stage or (lambda name, start, page: page(copy.deepcopy(start), log=log, save=None, resume=None))
    spoken = {**RULES, "language_consistency": config.language_weight}

    # 1. reinforcement learning alone: R1-Zero
    stage("r1-zero", model, lambda m, **hooks: train_grpo(m, tokenizer, task, config.zero, reward_weights={**RULES, "language_consistency": 0.0},
                                                          seed=derive_seed(seed, "r1-zero"), **hooks))

    # 2. a cold start, and reinforcement learning with a reward for keeping to one language     eq. 7
    cold = stage("cold-start", model, lambda m, **hooks: train_sft(m, tokenizer, cold_start, config.cold_start, seed=derive_seed(seed, "cold-start"), **hooks))
    first = stage("rl-1", cold, lambda m, **hooks: train_grpo(m, tokenizer, task, config.reasoning, reward_weights=spoken, seed=derive_seed(seed, "rl-1"), **hooks))

    # 3. rejection sampling, and a fine-tuning of the base model on what was kept
    def refine(m, **hooks):
        kept = rejection_sample(first, tokenizer, task, config, seed=derive_seed(seed, "kept"))
        return train_sft(m, tokenizer, [*kept, *general], config.sft, seed=derive_seed(seed, "sft"), **hooks)

    second = stage("sft", model, refine)

    # 4. reinforcement learning once more
    return stage("rl-2", second, lambda m, **hooks: train_grpo(m, tokenizer, task, config.final, reward_weights=spoken, seed=derive_seed(seed, "rl-2"), **hooks))


def rejection_sample(model, tokenizer, task, config: R1Config, *, seed: int) -> list[tuple[str, str]]:
    """(prompt, completion) pairs that are right, in form and in one language: of each problem the first such completion. Raises ValueError where there is none."""
    problems = task.sample(config.kept_problems, random.Random(derive_seed(seed, "problems")))
    generator = torch.Generator(model.device).manual_seed(derive_seed(seed, "sample"))
    rollouts = sample(model, [tokenizer.encode_prompt(p.prompt) for p in problems], group=config.kept_samples, max_new_tokens=config.reasoning.max_new_tokens,
                      eos_id=tokenizer.stop_ids, pad_id=tokenizer.pad_id, generator=generator)
    completions = [tokenizer.decode_completion(ids) for ids in rollouts.completion_ids()]
    prompts, known = [p.prompt for p in problems for _ in range(config.kept_samples)], columns(problems, repeat=config.kept_samples)
    verdicts = [task.rewards[name](prompts, completions, **known) for name in (*RULES, "language_consistency")]
    kept: dict[str, str] = {}
    for prompt, completion, cut, *judged in zip(prompts, completions, rollouts.truncated.tolist(), *verdicts):
        if not cut and all(verdict == 1.0 for verdict in judged):
            kept.setdefault(prompt, completion)
    if not kept:
        raise ValueError(f"of {len(completions)} completions none was right, in form and in one language: there is nothing to learn from; train rl-1 longer, or sample more")
    return list(kept.items())
