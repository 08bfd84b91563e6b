"""The one table in which names become numbers and functions: what `--preset` stands for.

    variants of GRPO    the default's numbers for the tiny model, and what defines the variant: try them side by side
    papers' settings    the numbers that a paper (or TRL) states, for models of billions of parameters

A preset's function takes by name those fields of the configuration that it reads, and gets no
others. So its signature says which flags count, and check_flags refuses the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from minirl.app.flags import flag
from minirl.equations.advantages import (batch_mean_advantages, group_advantages,
                                         leave_one_out_advantages, maxrl_advantages)
from minirl.equations.kl import AdaptiveKLController, adaptive_kl_coef
from minirl.equations.objectives import (cispo, clipped_surrogate, gspo_token, policy_gradient,
                                         sapo, sequence_clipped_surrogate)
from minirl.train.grpo import Advantages, GRPOConfig, Objective
from minirl.train.ppo import KLControl, PPOConfig
from minirl.train.r1 import rl_numbers


def reads(function: Callable) -> tuple[str, ...]:
    """The fields of the configuration that a preset's function takes."""
    return tuple(inspect.signature(function).parameters)


def with_fields(function: Callable, config) -> Callable:
    """What a preset's function makes of the fields that it takes."""
    return function(**{name: getattr(config, name) for name in reads(function)})


def without_mask(objective: Callable[..., Tensor], **numbers) -> Objective:
    """An equation of single tokens, in the signature that those of whole sequences need."""
    return lambda logp, old_logp, adv, mask: objective(logp, old_logp, adv, **numbers)


def own_advantages(scale, ddof) -> Advantages:
    """GRPO's."""
    return partial(group_advantages, scale=scale, ddof=ddof)


def own_objective(clip_low, clip_high) -> Objective:
    """GRPO's."""
    return without_mask(clipped_surrogate, clip_low=clip_low, clip_high=clip_high)


def whole_sequence(clip_low, clip_high) -> Objective:
    """One ratio per completion, the product of its tokens': spread over the row, so that sequence_mean gives the mean over completions."""
    def objective(logp, old_logp, adv, mask):
        value = sequence_clipped_surrogate(logp, old_logp, adv[:, 0], mask, clip_low=clip_low,
                                           clip_high=clip_high, length_normalised=False)
        return value[:, None].expand_as(logp)
    return objective


def sequence_ratio_per_token(clip_low, clip_high) -> Objective:
    return partial(gspo_token, clip_low=clip_low, clip_high=clip_high)


def score_function() -> Objective:
    return lambda logp, old_logp, adv, mask: policy_gradient(logp, adv)


@dataclass(frozen=True)
class GRPOPreset:
    """Numbers for GRPOConfig, and functions where they are not GRPO's own."""

    numbers: dict = field(default_factory=dict)
    advantages: Callable[..., Advantages] = own_advantages
    objective: Callable[..., Objective] = own_objective

    @property
    def reads(self) -> set[str]:
        return {*reads(self.advantages), *reads(self.objective)}

    def functions(self, config: GRPOConfig) -> dict:
        """What train_grpo takes beside the configuration."""
        return {"advantages": with_fields(self.advantages, config),
                "objective": with_fields(self.objective, config)}


GRPO_PRESETS = {
    # DeepSeekMath's objective, eq. 3
    "grpo": GRPOPreset(),
    # arXiv:2503.20783: no 1/|o|, no std, no KL
    "dr_grpo": GRPOPreset(dict(scale="none", aggregate="constant", kl_coef=0.0)),
    # arXiv:2503.14476: clip-higher, mean over tokens, only groups that differ (without sampling more in their place), soft punishment of long
    # answers (over a fifth of the room, as 4096 of 20480), no KL
    "dapo": GRPOPreset(dict(clip_high=0.28, aggregate="token_mean", kl_coef=0.0, dynamic_sampling=True, overlong_cache=16)),
    # arXiv:2507.18071: the sequence's ratio, which moves little; four mini-batches, or it would be 1
    "gspo": GRPOPreset(dict(clip_low=3e-4, clip_high=4e-4, kl_coef=0.0, minibatches=4, lr=2e-4),
                       objective=sequence_ratio_per_token),
    # arXiv:2506.13585: cap 1 + eps_high; mean over tokens, no KL
    "cispo": GRPOPreset(dict(clip_high=4.0, aggregate="token_mean", kl_coef=0.0, minibatches=2),
                        objective=lambda clip_high: without_mask(cispo, cap=1 + clip_high)),
    # arXiv:2511.20347
    "sapo": GRPOPreset(dict(kl_coef=0.0, minibatches=2), objective=lambda: without_mask(sapo)),
    # arXiv:2402.14740: the completion as one action, the others' mean as its baseline (the paper's KL penalty is part of the reward; none here)
    "rloo": GRPOPreset(dict(kl_coef=0.0), advantages=lambda: leave_one_out_advantages,
                       objective=whole_sequence),
    # Williams 1992, with the mean reward of the batch as the baseline: no groups
    "reinforce": GRPOPreset(dict(aggregate="sequence_sum", kl_coef=0.0),
                            advantages=lambda: batch_mean_advantages, objective=score_function),
    # arXiv:2602.02710
    "maxrl": GRPOPreset(dict(aggregate="sequence_sum", kl_coef=0.0),
                        advantages=lambda: maxrl_advantages, objective=score_function),

    # DeepSeekMath, section 4.2: lr 1e-6, KL 0.04, 64 samples per question, batch 1024, one update per exploration (max length 1024)
    "deepseekmath": GRPOPreset(dict(lr=1e-6, min_lr_ratio=1.0, warmup_steps=0, kl_coef=0.04, group_size=64, prompts_per_step=16, iterations=1, minibatches=1,
                                    aggregate="sequence_mean")),
    # DeepSeek-R1 v2 / Nature, R1-Zero (max length 32768). Its eq. 1 has whole-sequence ratios, without 1/|o_i|; so has its KL, eq. 2, which here is the tokens' mean.
    "r1-zero": GRPOPreset(rl_numbers(1), objective=whole_sequence),
    # TRL 1.x, GRPOConfig's defaults: loss_type "dapo", beta 0, epsilon 0.2, 8 generations (max_completion_length 512; its learning rate falls
    # on a straight line to 0, here on a cosine)
    "trl": GRPOPreset(dict(lr=1e-6, min_lr_ratio=0.0, warmup_steps=0, kl_coef=0.0, group_size=8, iterations=1, minibatches=1, clip_low=0.2, clip_high=0.2,
                           aggregate="token_mean", scale="group", ddof=1, temperature=1.0, beta2=0.999)),
}


@dataclass(frozen=True)
class PPOPreset:
    """Numbers for PPOConfig, and a controller of kl_coef where there is one."""

    numbers: dict = field(default_factory=dict)
    controller: Callable[..., KLControl] | None = None

    @property
    def reads(self) -> set[str]:
        return {*reads(self.controller)} if self.controller else set()

    def kl_control(self, config: PPOConfig) -> KLControl | None:
        """What train_ppo takes beside the configuration; None leaves kl_coef as it is. Raises
        ValueError for a kl_coef of 0, as a controller multiplies it."""
        if self.controller is None:
            return None
        if config.kl_coef == 0:
            raise ValueError("kl_coef is 0 and would stay 0, as this preset's controller multiplies"
                             " it: give a positive one, or choose a preset without a controller")
        return with_fields(self.controller, config)


def ziegler(kl_target, kl_horizon) -> KLControl:
    def control(kl_coef: float, kl: float, completions: int) -> float:
        controller = AdaptiveKLController(kl_coef, kl_target, kl_horizon)
        controller.update(kl, completions)
        return controller.kl_coef
    return control


def half_or_twice(kl_target) -> KLControl:
    return lambda kl_coef, kl, completions: adaptive_kl_coef(kl_coef, kl, kl_target)


PPO_PRESETS = {
    "ppo": PPOPreset(),
    # InstructGPT, eq. 2, with a gamma for the toy: here both terms are means over tokens
    "ppo-ptx": PPOPreset(dict(ptx_coef=0.2)),
    # Ziegler et al., arXiv:1909.08593, section 2.2: a proportional controller
    "ziegler": PPOPreset(dict(kl_coef=0.15, kl_target=6.0, kl_horizon=10_000), controller=ziegler),
    # PPO, section 4: half or twice (the paper's KL is old || new; here it is the one that is penalised)
    "adaptive-kl": PPOPreset(controller=half_or_twice),

    # InstructGPT, appendix C.4: 512 episodes in mini-batches of 64, one inner epoch, clip 0.2, KL 0.02, no discount, temperature 1, warm-up over 10
    # iterations from a tenth and then constant, weights averaged with 0.992, value lr 9e-6 (5e-6 for 175B), pretraining gradients times 27.8. The paper
    # names neither the released policies' lr nor GAE's lambda: here the lr is the value function's, and lambda the default.
    "instructgpt": PPOPreset(dict(episodes=512, minibatch_size=64, epochs=1, clip_low=0.2, clip_high=0.2, kl_coef=0.02, gamma=1.0, temperature=1.0, warmup_steps=10,
                                  ema_decay=0.992, lr=9e-6, value_lr=9e-6, ptx_coef=27.8, ptx_batch_size=512, beta1=0.9, beta2=0.95)),
}

# configuration -> numbers. All of R1's other numbers follow from its scale (train/r1.rl_numbers).
R1_PRESETS = {
    "toy": {},
    # what can be seen in a minute: shorter numbers, fewer samples
    "fast": {"run": dict(number_length=2, examples=20_000, general_examples=4_000, cold_start_examples=100, ranked_prompts=200, too_long=4, samples=4, eval_problems=32),
             "r1": dict(scale=64.0, zero_steps=12, reasoning_steps=12, kept_problems=256, final_steps=6, preference_steps=6)},
    # arXiv:2501.12948v2: 10,400 steps of 512 outputs, 1,300 + 400 in the last stage; the steps of rl-1 are not told
    "paper": {"r1": dict(scale=1.0, zero_steps=650, reasoning_steps=650, final_steps=81, preference_steps=25, rounds=1, max_new_tokens=32_768)},
}

# a page's field, and the value of another field with which nothing reads it
IDLE = {"ref_sync_steps": ("kl_coef", 0), "ddof": ("scale", "none"),
        "ptx_batch_size": ("ptx_coef", 0)}


def check_flags(preset: str, given: Collection[str],
                config: GRPOConfig | PPOConfig | None = None) -> None:
    """Raise ValueError for a field that was given as a flag, and that a run of this preset does not
    read. With the finished configuration, also for one that its other numbers leave unread, for a
    controller that could change nothing, and for a penalty that the advantages could not take."""
    presets = next((table for table in (GRPO_PRESETS, PPO_PRESETS) if preset in table), {})
    for name in given:
        readers = [other for other in presets if name in presets[other].reads]
        if readers and preset not in readers:
            raise ValueError(f"{flag(name)} is not read by preset {preset}: leave it out, or "
                             f"choose one that reads it ({', '.join(readers)})")
        if config is not None and name in IDLE:
            other, value = IDLE[name]
            if getattr(config, other) == value:
                raise ValueError(f"{flag(name)} is not read where {other} is {value}: leave it "
                                 f"out, or give another {flag(other)}")
    if isinstance(config, PPOConfig):
        presets[preset].kl_control(config)
    if isinstance(config, GRPOConfig) and config.overlong_cache:
        try:
            presets[preset].functions(config)["advantages"](torch.tensor([[0.0, -1.0]]))
        except ValueError as error:
            raise ValueError(f"{flag('overlong_cache')} punishes length by rewards below 0, which "
                             f"preset {preset} cannot take: leave it out ({error})") from error
