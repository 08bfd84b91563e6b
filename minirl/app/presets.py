"""The one table in which names become numbers and functions: what `--preset` stands for.

    variants of GRPO    the default's numbers for the tiny model, and what defines the variant: try them side by side
    papers' settings    the numbers that a paper (or TRL) states, for models of billions of parameters
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from minirl.equations.advantages import leave_one_out_advantages, maxrl_advantages
from minirl.equations.kl import AdaptiveKLController, adaptive_kl_coef
from minirl.equations.objectives import cispo, gspo_token, policy_gradient, sapo, sequence_clipped_surrogate
from minirl.train.grpo import Advantages, GRPOConfig, Objective
from minirl.train.ppo import KLControl, PPOConfig
from minirl.train.r1 import rl_numbers


@dataclass(frozen=True)
class GRPOPreset:
    """Numbers for GRPOConfig, and functions where they are not GRPO's own. The functions take their own numbers from the finished configuration."""

    numbers: dict = field(default_factory=dict)
    advantages: Callable[[GRPOConfig], Advantages] | None = None
    objective: Callable[[GRPOConfig], Objective] | None = None

    def functions(self, config: GRPOConfig) -> dict:
        """What train_grpo takes beside the configuration; None leaves GRPO's own."""
        return {"advantages": self.advantages and self.advantages(config), "objective": self.objective and self.objective(config)}


def without_mask(objective: Callable[..., Tensor], **numbers) -> Objective:
    """An equation of single tokens, in the signature that those of whole sequences need."""
    return lambda logp, old_logp, adv, mask: objective(logp, old_logp, adv, **numbers)


def whole_sequence(config: GRPOConfig) -> Objective:
    """One ratio per completion, the product of its tokens': spread over the row, so that sequence_mean gives the mean over completions."""
    def objective(logp, old_logp, adv, mask):
        value = sequence_clipped_surrogate(logp, old_logp, adv[:, 0], mask, clip_low=config.clip_low, clip_high=config.clip_high, length_normalised=False)
        return value[:, None].expand_as(logp)
    return objective


def score_function(config: GRPOConfig) -> Objective:
    return lambda logp, old_logp, adv, mask: policy_gradient(logp, adv)


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
                       objective=lambda c: partial(gspo_token, clip_low=c.clip_low, clip_high=c.clip_high)),
    # arXiv:2506.13585: cap 1 + eps_high; mean over tokens, no KL
    "cispo": GRPOPreset(dict(clip_high=4.0, aggregate="token_mean", kl_coef=0.0, minibatches=2), objective=lambda c: without_mask(cispo, cap=1 + c.clip_high)),
    # arXiv:2511.20347
    "sapo": GRPOPreset(dict(kl_coef=0.0, minibatches=2), objective=lambda c: without_mask(sapo)),
    # arXiv:2402.14740: the completion as one action, the others' mean as its baseline (the paper's KL penalty is part of the reward; none here)
    "rloo": GRPOPreset(dict(kl_coef=0.0), advantages=lambda c: leave_one_out_advantages, objective=whole_sequence),
    # Williams 1992, with the mean reward of the batch as the baseline: no groups
    "reinforce": GRPOPreset(dict(aggregate="sequence_sum", kl_coef=0.0), advantages=lambda c: lambda rewards: rewards - rewards.nanmean(), objective=score_function),
    # arXiv:2602.02710
    "maxrl": GRPOPreset(dict(aggregate="sequence_sum", kl_coef=0.0), advantages=lambda c: maxrl_advantages, objective=score_function),

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
    kl_control: Callable[[PPOConfig], KLControl] | None = None


def ziegler(config: PPOConfig) -> KLControl:
    def control(kl_coef: float, kl: float, completions: int) -> float:
        controller = AdaptiveKLController(kl_coef, config.kl_target, config.kl_horizon)
        controller.update(kl, completions)
        return controller.kl_coef
    return control


PPO_PRESETS = {
    "ppo": PPOPreset(),
    # InstructGPT, eq. 2, with a gamma for the toy: here both terms are means over tokens
    "ppo-ptx": PPOPreset(dict(ptx_coef=0.2)),
    # Ziegler et al., arXiv:1909.08593, section 2.2: a proportional controller
    "ziegler": PPOPreset(dict(kl_coef=0.15, kl_target=6.0, kl_horizon=10_000), kl_control=ziegler),
    # PPO, section 4: half or twice (the paper's KL is old || new; here it is the one that is penalised)
    "adaptive-kl": PPOPreset(kl_control=lambda c: lambda kl_coef, kl, completions: adaptive_kl_coef(kl_coef, kl, c.kl_target)),

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
