"""The one table in which names become numbers and functions: what `--preset` stands for.

    variants          the numbers of the tiny model, and what defines the variant
    papers' settings  the numbers that a paper (or TRL) gives, for models of billions of parameters

A run that starts from a pretrained checkpoint takes PRETRAINED in the place of the tiny model's
numbers: see numbers_of.

A preset's functions take by name the fields of the configuration that they read, and get no others.
So their signatures say which fields count, and check_flags refuses flags for the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch

from minirl.equations.advantages import (
    batch_mean_advantages,
    group_advantages,
    leave_one_out_advantages,
    maxrl_advantages,
    pass_at_k_advantages,
)
from minirl.equations.kl import AdaptiveKLController, adaptive_kl_coef, exact_kl, generalised_jsd
from minirl.equations.process import hard_estimate
from minirl.lm.divergence import Divergence
from minirl.lm.text import flag
from minirl.train.credit import Advantages, decoupled_credit
from minirl.train.objectives import (
    Objective,
    bell,
    capped,
    clip_cov,
    clipped,
    geometric_mean,
    kl_cov,
    score_function,
    sequence_ratio,
    soft_gate,
    trust_region,
    whole_sequence,
)
from minirl.train.r1 import rl_numbers
from minirl.train.regularisers import KLControl


class Preset:
    """Numbers for a command's configurations, and functions for its page where a paper has its own.

    numbers     values by field; each goes to the configuration that has the field
    functions   by the page's parameter: each makes an equation from the fields that it names
    """

    def __init__(self, numbers: dict[str, Any] | None = None, /, **functions: Callable[..., Any]):
        self.numbers, self.functions = numbers or {}, functions

    @property
    def reads(self) -> set[str]:
        """Return the fields of the configuration that the functions read."""
        return {name for function in self.functions.values()
                for name in inspect.signature(function).parameters}

    def arguments(self, config: Any) -> dict[str, Any]:
        """Return what the page takes beside its configuration."""
        return {name: function(**{field: getattr(config, field)
                                  for field in inspect.signature(function).parameters})
                for name, function in self.functions.items()}


def grouped(scale: str, ddof: int) -> Advantages:
    return partial(group_advantages, scale=scale, ddof=ddof)


def best_of_k(pass_k: int) -> Advantages:
    return partial(pass_at_k_advantages, k=pass_k)


def jensen_shannon(jsd_beta: float) -> Divergence:
    return partial(generalised_jsd, beta=jsd_beta)


def grpo(numbers: dict[str, Any] | None = None, *,
         advantages: Callable[..., Advantages] = grouped,
         objective: Callable[..., Objective] = clipped) -> Preset:
    """Return a preset of GRPO: its own advantages and objective where none are given."""
    return Preset(numbers, advantages=advantages, objective=objective)


SFT_PRESETS = {
    "toy": Preset(),
    # InstructGPT, appendix C.1; lr 9.65e-6 is that of the 1.3B and 6B models
    "instructgpt": Preset(dict(epochs=16, batch_size=32, lr=9.65e-6, min_lr_ratio=0.1,
                               warmup_steps=0, dropout=0.2, beta1=0.9, beta2=0.95)),
}

RM_PRESETS = {
    "toy": Preset(),
    # InstructGPT, appendix C.2: 6B; K from 4 to 9, so up to 2,304 comparisons in a batch
    "instructgpt": Preset(dict(epochs=1, batch_size=64, lr=9e-6, min_lr_ratio=0.1)),
}

PRM_PRESETS = {
    # Math-Shepherd, arXiv:2312.08935, section 3.3: soft estimates (eq. 4), hard ones (eq. 3)
    "soft": Preset(),
    "hard": Preset(estimate=lambda: hard_estimate),
    # DeepSeekMath, section 4.2: the learning rate of its reward models
    "deepseekmath": Preset(dict(lr=2e-5, min_lr_ratio=1.0)),
}

DPO_PRESETS = {
    "toy": Preset(),
    # DPO, appendix B: RMSprop there, and a linear warm-up over 150 steps
    "dpo": Preset(dict(beta=0.1, batch_size=64, lr=1e-6, min_lr_ratio=1.0, warmup_steps=150)),
}

DISTILL_PRESETS = {
    # Thinking Machines 2025, "On-policy distillation": reverse KL, of the sampled tokens
    "sampled": Preset(),
    # the same KL, exact in each state
    "exact": Preset(divergence=lambda: exact_kl),
    # GKD, arXiv:2306.13649: half of the batches from the teacher, a generalised JSD
    "gkd": Preset(dict(on_policy_share=0.5), divergence=jensen_shannon),
    # GKD's baseline, supervised KD: the teacher's completions, forward KL (β = 0)
    "supervised": Preset(dict(on_policy_share=0.0), divergence=lambda: jensen_shannon(0.0)),
}

GRPO_PRESETS = {
    # DeepSeekMath's objective, eq. 3
    "grpo": grpo(),
    # arXiv:2503.20783: no 1/|o|, no std, no KL
    "dr_grpo": grpo(dict(scale="none", aggregate="constant", kl_coef=0.0)),
    # arXiv:2503.14476: clip-higher, mean over tokens, only groups that differ (others are drawn in
    # their place, three times), a penalty on the last fifth of the length (4096 of 20480), no KL
    "dapo": grpo(dict(clip_high=0.28, aggregate="token_mean", kl_coef=0.0, dynamic_sampling=True,
                      max_draws=4, overlong_cache=16)),
    # arXiv:2507.18071: the sequence's ratio moves little; in the first of the minibatches it is 1
    "gspo": grpo(dict(clip_low=3e-4, clip_high=4e-4, kl_coef=0.0, minibatches=4, lr=2e-4),
                 objective=sequence_ratio),
    # arXiv:2506.13585: weights are capped at 1 + clip_high; mean over tokens, no KL
    "cispo": grpo(dict(clip_high=4.0, aggregate="token_mean", kl_coef=0.0, minibatches=2),
                  objective=capped),
    # arXiv:2511.20347
    "sapo": grpo(dict(kl_coef=0.0, minibatches=2), objective=soft_gate),
    # arXiv:2402.14740: the completion is one action, the others' mean its baseline (the paper has a
    # KL penalty in the reward; here there is none)
    "rloo": grpo(dict(kl_coef=0.0), advantages=lambda: leave_one_out_advantages,
                 objective=whole_sequence),
    # Williams 1992, with the mean reward of the batch as the baseline: no groups
    "reinforce": grpo(dict(aggregate="sequence_sum", kl_coef=0.0),
                      advantages=lambda: batch_mean_advantages, objective=score_function),
    # arXiv:2602.02710
    "maxrl": grpo(dict(aggregate="sequence_sum", kl_coef=0.0),
                  advantages=lambda: maxrl_advantages, objective=score_function),
    # arXiv:2503.19595, over all sets of k: a completion counts where no other of its k is as good
    "passk": grpo(dict(aggregate="sequence_sum", kl_coef=0.0), advantages=best_of_k,
                  objective=score_function),
    # arXiv:2601.05242: each reward is compared in its group before they are added up
    "gdpo": Preset(dict(kl_coef=0.0), objective=clipped, credit=lambda: decoupled_credit),
    # Lite PPO, arXiv:2508.08221: the group's mean, the batch's std, mean over tokens, no KL
    "lite-ppo": grpo(dict(scale="batch", aggregate="token_mean", kl_coef=0.0)),
    # arXiv:2507.20673: the geometric mean of ratios, each clipped at e^0.4
    "gmpo": grpo(dict(clip_high=0.4, kl_coef=0.0, minibatches=2), objective=geometric_mean),
    # arXiv:2602.05261: GSPO's ratio, without its 1/|o|
    "luspo": grpo(dict(clip_low=3e-4, clip_high=4e-4, kl_coef=0.0, minibatches=4, lr=2e-4,
                       aggregate="sequence_sum"), objective=sequence_ratio),
    # arXiv:2602.10693: the completion's ratio weighs log π, softly; mean over tokens
    "vespo": grpo(dict(aggregate="token_mean", kl_coef=0.0, minibatches=2), objective=bell),
    # arXiv:2602.04879: a trust region of probabilities, around the sampler
    "dppo": grpo(dict(aggregate="token_mean", kl_coef=0.0, minibatches=2, old_logp="sampler"),
                 objective=trust_region),
    # arXiv:2505.22617, with the numbers of verl's recipes for 7B (8 updates for a batch):
    # the tokens whose update lowers the entropy most have no gradient, beside a wide clip; or a
    # penalty on how far they move, and no clip
    "clip-cov": grpo(dict(clip_low=1.0, clip_high=1.0, aggregate="token_mean", kl_coef=0.0,
                          minibatches=4), objective=clip_cov),
    "kl-cov": grpo(dict(cov_share=2e-3, aggregate="token_mean", kl_coef=0.0, minibatches=4),
                   objective=kl_cov),
    # arXiv:2510.18855: tokens on which learner and sampler disagree do not count
    "icepop": grpo(dict(importance="token_mask", importance_min=0.5, importance_max=5.0)),

    # DeepSeekMath, section 4.2: one update per exploration (and a maximal length of 1024)
    "deepseekmath": grpo(dict(lr=1e-6, min_lr_ratio=1.0, warmup_steps=0, kl_coef=0.04,
                              group_size=64, prompts_per_step=16, iterations=1, minibatches=1,
                              aggregate="sequence_mean")),
    # DeepSeek-R1 v2 / Nature, R1-Zero (maximal length 32768). Its eq. 1 has whole-sequence ratios,
    # without 1/|o_i|; so has its KL, eq. 2, which here is the mean over tokens.
    "r1-zero": grpo(rl_numbers(1), objective=whole_sequence),
    # TRL 1.x, GRPOConfig's defaults (maximal length 512; its learning rate falls linearly to 0)
    "trl": grpo(dict(lr=1e-6, min_lr_ratio=0.0, warmup_steps=0, kl_coef=0.0, group_size=8,
                     iterations=1, minibatches=1, clip_low=0.2, clip_high=0.2,
                     aggregate="token_mean", scale="group", ddof=1, temperature=1.0,
                     beta2=0.999)),
}


def proportional(kl_target: float, kl_horizon: int) -> KLControl:
    """Ziegler et al., arXiv:1909.08593, section 2.2."""
    def control(kl_coef: float, kl: float, completions: int) -> float:
        controller = AdaptiveKLController(kl_coef, kl_target, kl_horizon)
        controller.update(kl, completions)
        return controller.kl_coef

    return control


def half_or_double(kl_target: float) -> KLControl:
    """PPO, arXiv:1707.06347, section 4."""
    return lambda kl_coef, kl, completions: adaptive_kl_coef(kl_coef, kl, kl_target)


PPO_PRESETS = {
    "ppo": Preset(),
    # InstructGPT, eq. 2, with a γ for the toy; both terms are means over tokens
    "ppo-ptx": Preset(dict(ptx_coef=0.2)),
    "ziegler": Preset(dict(kl_coef=0.15, kl_target=6.0, kl_horizon=10_000),
                      kl_control=proportional),
    # the paper's KL is from the old policy; here it is the one in the reward
    "adaptive-kl": Preset(kl_control=half_or_double),

    # InstructGPT, appendix C.4. The paper gives neither the released policies' lr nor GAE's λ: here
    # the lr is the value function's (5e-6 for 175B), and λ is the default.
    "instructgpt": Preset(dict(episodes=512, minibatch_size=64, epochs=1, clip_low=0.2,
                               clip_high=0.2, kl_coef=0.02, gamma=1.0, temperature=1.0,
                               warmup_steps=10, ema_decay=0.992, lr=9e-6, value_lr=9e-6,
                               ptx_coef=27.8, ptx_batch_size=512, beta1=0.9, beta2=0.95)),
}

# R1's other numbers follow from its scale: see r1.rl_numbers
R1_PRESETS = {
    "toy": Preset(),
    # a smaller toy that takes a minute: shorter numbers, fewer samples
    "fast": Preset(dict(number_length=2, examples=20_000, general_examples=4_000,
                        ranked_prompts=200, too_long=2, samples=4, eval_problems=32,
                        scale=64.0, zero_steps=12, cold_start_problems=128, reasoning_steps=12,
                        kept_problems=256, final_steps=6, preference_steps=16)),
    # arXiv:2501.12948v2: 10,400 steps of 512 outputs, 1,300 + 400 in the last stage; the paper does
    # not say how many steps rl-1 has
    "paper": Preset(dict(scale=1.0, zero_steps=650, reasoning_steps=650, final_steps=81,
                         preference_steps=25, rounds=1, max_new_tokens=32_768)),
}

SEARCH_PRESETS = {
    "toy": Preset(),
    # Hugging Face's search-and-learn (Beeching, Tunstall and Rush 2024)
    "search-and-learn": Preset(dict(largest=256, expansions=4, temperature=0.8,
                                    max_new_tokens=2048)),
}

PRESETS = {"sft": SFT_PRESETS, "rm": RM_PRESETS, "prm": PRM_PRESETS, "dpo": DPO_PRESETS,
           "distill": DISTILL_PRESETS, "grpo": GRPO_PRESETS, "ppo": PPO_PRESETS, "r1": R1_PRESETS,
           "search": SEARCH_PRESETS}

PRETRAINED_SIZE = 20_000_000    # weights from which a checkpoint counts as pretrained
TOY_LR = 1e-4                   # learning rates from here on are the tiny model's

# What a pretrained checkpoint takes instead of the tiny model's numbers.
PRETRAINED: dict[str, dict[str, Any]] = {
    "sft": dict(lr=2e-5),                                  # TRL's default
    "rm": dict(lr=9e-6),                                   # InstructGPT, appendix C.2
    "dpo": dict(lr=1e-6),                                  # DPO, appendix B
    # word problems on a laptop; a GPU has room for more prompts, and longer completions
    "grpo": dict(lr=1e-5, steps=10, prompts_per_step=4, max_new_tokens=128, token_budget=2048,
                 eval_problems=64),
    "ppo": dict(lr=9e-6, value_lr=9e-6),                   # InstructGPT, appendix C.4
}


def numbers_of(command: str, preset: str, *, pretrained: bool = False) -> dict[str, Any]:
    """Return a preset's numbers by field. For a pretrained checkpoint its learning rates of the
    tiny model, which would ruin the checkpoint, give way to those of PRETRAINED.

    >>> [numbers_of("grpo", "gspo", pretrained=large)["lr"] for large in (False, True)]
    [0.0002, 1e-05]
    """
    numbers = PRESETS[command][preset].numbers
    if not pretrained:
        return numbers
    kept = {name: value for name, value in numbers.items() if name != "lr" or value < TOY_LR}
    return PRETRAINED.get(command, {}) | kept


# a field, and the value of another field with which no page reads it
UNREAD = {"ref_sync_steps": ("kl_coef", 0), "ddof": ("scale", "none"),
          "ptx_batch_size": ("ptx_coef", 0), "kl_estimator": ("kl_coef", 0),
          "ref_mixup": ("ref_sync_steps", 0), "max_draws": ("dynamic_sampling", False),
          "importance": ("old_logp", "sampler"), "importance_max": ("importance", "none"),
          "importance_min": ("importance", "none"), "geometric_max": ("old_logp", "sampler"),
          "geometric_min": ("old_logp", "sampler"), "entropy_coef_min": ("entropy_target", 0),
          "entropy_coef_max": ("entropy_target", 0), "entropy_coef_delta": ("entropy_target", 0)}


def check_flags(command: str, preset: str, flag_names: Collection[str],
                config: Any = None) -> None:
    """Raise ValueError for a field that was given as a flag and that a run of this preset does not
    read. With the finished configuration, also for a field that its other numbers leave unread, a
    controller that could change nothing, and a penalty that the advantages could not take."""
    presets = PRESETS[command]
    for name in flag_names:
        readers = [other for other in presets if name in presets[other].reads]
        if readers and preset not in readers:
            raise ValueError(f"{flag(name)} is not read by preset {preset}: leave it out, or "
                             f"choose one that reads it ({', '.join(readers)})")
        if config is not None and name in UNREAD:
            other, value = UNREAD[name]
            if getattr(config, other) == value:
                raise ValueError(f"{flag(name)} is not read where {other} is {value}: leave it "
                                 f"out, or give another {flag(other)}")
    if config is None:
        return
    if getattr(config, "on_policy_share", 1) < 1 and not presets[preset].functions:
        raise ValueError(f"{flag('on_policy_share')} is {config.on_policy_share}, and preset "
                         f"{preset} learns from the student's own samples alone: choose gkd")
    if "kl_control" in presets[preset].functions and config.kl_coef == 0:
        raise ValueError("kl_coef is 0 and would stay 0, as this preset's controller multiplies"
                         " it: give a positive one, or choose a preset without a controller")
    functions = presets[preset].arguments(config)
    if "advantages" in functions:                    # of no verdict: is the group large enough?
        functions["advantages"](torch.full((1, config.group_size), torch.nan))
    if getattr(config, "overlong_cache", 0):
        check_penalty(preset, functions, config.group_size)


def check_penalty(preset: str, functions: dict[str, Any], group: int) -> None:
    """Raise ValueError if a preset's functions cannot learn from rewards below 0."""
    if "advantages" not in functions:
        raise ValueError(f"{flag('overlong_cache')} is not read by preset {preset}, which compares "
                         "each reward by itself, and the penalty is none of them: leave it out")
    try:
        functions["advantages"](-torch.arange(float(group))[None])
    except ValueError as error:
        raise ValueError(f"{flag('overlong_cache')} gives rewards below 0, which preset "
                         f"{preset} cannot take: leave it out ({error})") from error
