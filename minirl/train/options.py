"""GRPO's options beyond the paper, all of them off: what the field added to the method.

train/grpo.py's configuration has these fields, too. What they mean in TRL's words:
tutorials/TRL.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minirl.train.checks import ROWS, at_most

# values that are "off" of what cuts the sampler's distribution, and of what compares π with μ
CUTS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
COMPARISONS = {"old_logp": "learner", "importance": "none", "geometric_max": 0.0,
               "geometric_min": 0.0, "off_policy_delta": 0.0}


@dataclass(frozen=True)
class GRPOOptions:
    """Fields of GRPOConfig. Zero is "off", where a field has no other word for it."""

    # which groups and tokens are learnt from
    dynamic_sampling: bool = False     # DAPO, eq. 11: drop groups without spread
    max_draws: int = 1                 # dynamic sampling: draws of prompts at most; 1: none again
    overlong_cache: int = 0            # DAPO, eq. 13: L_cache: the last tokens cost up to 1; 0: off
    mask_truncated: bool = False       # completions that were cut off are not learnt from
    top_entropy: float = 1.0           # arXiv:2506.01939: 0.2: the share of tokens, by entropy

    # another distribution than the policy's to sample from: see tutorials/TRL.md
    top_k: int = 0                     # the likeliest ids alone; 0: off
    top_p: float = 1.0                 # arXiv:1904.09751: the likeliest of this probability; 1: off
    min_p: float = 0.0                 # arXiv:2407.01082: a share of the likeliest's; 0: off
    repetition_penalty: float = 1.0    # CTRL, arXiv:1909.05858: 1.2; 1: off

    # rollouts that are not the policy's own
    off_policy: int = 0                # K: rollouts come from the policy of K steps ago
    old_logp: str = "learner"          # π_old: the learner before the update, or the sampler
    importance: str = "none"           # weights π_old/μ: (token|sequence)_(truncate|mask)
    importance_max: float = 3.0        # their upper bound C, arXiv:2510.26788; 0: none
    importance_min: float = 0.0        # a lower bound on these weights
    geometric_max: float = 0.0         # drop a completion whose mean ratio is above this; 0: off
    geometric_min: float = 0.0         # drop one whose mean ratio is below this
    off_policy_delta: float = 0.0      # δ, arXiv:2512.02556, eq. 9: drop old bad ones; 0: off

    # advantages, and the objective where a preset has one of its own
    ddof: int = 1                      # the std of a group divides by n - ddof
    pass_k: int = 4                    # k of passk, arXiv:2503.19595: at most the group
    dual_clip: float = 0.0             # c, arXiv:1912.09729: 3; TRL's delta; 0: off
    dppo_delta: float = 0.2            # δ of dppo, arXiv:2602.04879
    sapo_temp_pos: float = 1.0         # τ of sapo, arXiv:2511.20347, where A > 0
    sapo_temp_neg: float = 1.05        # τ of sapo where A <= 0
    vespo_k_pos: float = 2.0           # k of vespo, arXiv:2602.10693, where A >= 0
    vespo_lambda_pos: float = 3.0      # λ of vespo where A >= 0
    vespo_k_neg: float = 3.0           # k of vespo where A < 0
    vespo_lambda_neg: float = 2.0      # λ of vespo where A < 0
    cov_share: float = 2e-4            # of clip-cov and kl-cov, arXiv:2505.22617: of a micro-batch
    cov_low: float = 1.0               # clip-cov draws from tokens with covariances above this
    cov_high: float = 5.0              # ... and below this
    cov_kl_coef: float = 1.0           # β of kl-cov: no gradient in a batch's first update

    # what is added to the objective
    kl_estimator: str = "k3"           # k3, corrected_k3 (arXiv:2512.02556, eq. 7) or k2
    ref_mixup: float = 1.0             # TR-DPO, arXiv:2404.09656: the policy's share at a sync
    entropy_coef: float = 0.0          # weight of the mean entropy per token
    entropy_target: float = 0.0        # arXiv:2505.22312: adapt entropy_coef to it; 0: constant
    entropy_coef_min: float = 0.0      # the least that it adapts to
    entropy_coef_max: float = 1.0      # the most
    entropy_coef_delta: float = 0.005  # by how much it changes after an update

    @property
    def filters(self) -> dict[str, Any]:
        """What makes the sampler's μ another policy than π at this temperature, for `collect`."""
        return {name: getattr(self, name) for name in (*CUTS, "repetition_penalty")}


def check_options(config: Any) -> None:
    """Raise ValueError for a GRPOConfig whose numbers are too large, or contradict each other."""
    rows = config.prompts_per_step * config.group_size
    at_most(config, ROWS, "prompts_per_step", "group_size", what="completions a step")
    at_most(config, rows, "minibatches", what="the completions of a step")
    at_most(config, config.max_new_tokens, "overlong_cache", what="the longest completion")
    above(config, "importance_max", "importance_min")
    above(config, "geometric_max", "geometric_min")
    cuts, comparisons = ([name for name, off in fields.items() if getattr(config, name) != off]
                         for fields in (CUTS, COMPARISONS))
    if cuts and comparisons:
        raise ValueError(f"{cuts[0]} is {getattr(config, cuts[0])} and {comparisons[0]} "
                         f"{getattr(config, comparisons[0])}: no ratio of the policy to the "
                         "sampler makes up for tokens that the sampler cannot draw; leave one of "
                         "the two out")
    if config.dual_clip and config.dual_clip <= 1 + config.clip_high:
        raise ValueError(f"dual_clip is {config.dual_clip} and clip_high {config.clip_high}: a "
                         "bound on the ratio above 1 + clip_high is wanted, or 0 for none")
    if config.cov_low >= config.cov_high:
        raise ValueError(f"cov_low is {config.cov_low} and cov_high {config.cov_high}: a lower "
                         "bound below the upper one is wanted")
    low, high = config.entropy_coef_min, config.entropy_coef_max
    if config.entropy_target and not low <= config.entropy_coef <= high:
        raise ValueError(f"entropy_coef is {config.entropy_coef}, entropy_coef_min {low} and "
                         f"entropy_coef_max {high}: with an entropy_target, a coefficient between "
                         "the two is wanted")


def above(config: Any, high: str, low: str) -> None:
    """Raise ValueError unless an upper bound, where there is one (0: none), is above the lower."""
    most, least = getattr(config, high), getattr(config, low)
    if most and most <= least:
        raise ValueError(f"{high} is {most} and {low} {least}: an upper bound above the lower one "
                         "is wanted, or 0 for none")
