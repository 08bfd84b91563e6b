"""What kinds of arguments every equation takes, and random batches of them.

The kinds of arguments:
    tokens (B, T)       L learnt, C constant, W positive, M mask
    logits (B, T, V)    V learnt, U constant
    sequences (B,)      l learnt, c constant, w positive, b yes or no
    groups (P, G)       G rewards, N lengths
    scores (P, K)       K learnt
    steps (P, G, S)     S rewards, NaN where there is no step
    rewards (P, G, K)   R several for each sample, NaN where one has no verdict
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirl.equations import (
    advantages,
    coefficients,
    distillation,
    entropy,
    kl,
    mismatch,
    objectives,
    preferences,
    reduce,
    regression,
    rewards,
    sequence_objectives,
)

LEARNT = "LVlK"
PER_TOKEN = "LCWVU"
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
SCALES = tuple({"scale": scale} for scale in ("group", "batch", "none"))
LENGTH_NORMALISED = tuple({"length_normalised": x} for x in (True, False))

MEANS = tuple(how for how in reduce.AGGREGATIONS if how != "constant")     # without a total

# module, names, kinds of the arguments in order, then options. A keyword-only argument is
# "name=kind".
TABLE: list[tuple[Any, ...]] = [
    (reduce, "aggregate", "L M", *({"how": how, "total": 7.0} for how in reduce.AGGREGATIONS)),
    (reduce, "aggregate", "L M", *({"how": how} for how in MEANS)),
    (reduce, "masked_mean", "L M", {}, {"dim": 1}),
    (reduce, "masked_whiten", "L M", {}, {"shift_mean": False}),
    (reduce, "explained_variance", "C C M", {}),
    (kl, "k1 k2 k3", "L C", {}),
    (kl, "corrected_k3", "L C C", {}),
    (kl, "exact_kl", "V U", {}),
    (kl, "generalised_jsd", "V U", *({"beta": beta} for beta in (0.0, 0.3, 1.0))),
    (kl, "kl_shaped_rewards", "c C C M", {"kl_coef": 0.1}, {"kl_coef": 0.1, "estimator": kl.k2}),
    (advantages, "discounted_returns", "C M", {"gamma": 0.9}),
    (advantages, "gae", "C C M", {}, {"gamma": 0.9, "lam": 0.5}),
    (advantages, "gae", "C C M bootstrap=c", {}),
    (advantages, "group_advantages", "G", *SCALES),
    (advantages, "leave_one_out_advantages maxrl_advantages dynamic_sampling zero_spread", "G", {}),
    (advantages, "batch_mean_advantages", "G", {}),
    (advantages, "optimal_baseline opo_advantages", "G N", {}),
    (advantages, "remax_advantages", "G c", {}),
    (advantages, "spread", "c M", {}),
    (advantages, "process_advantages", "S", {}),
    (advantages, "gdpo_advantages", "R", {"weights": (1.0, 0.5, 0.25)}),
    (advantages, "pass_at_k_advantages", "G", {}, {"k": 2}),
    (advantages, "reinforce_plus_plus_advantages", "c C C M", {"kl_coef": 0.1}),
    (objectives, "policy_gradient value_loss", "L C", {}),
    (objectives, "clipped_surrogate dual_clipped_surrogate clipped_value_loss sapo", "L C C", {}),
    (objectives, "cispo", "L C C", {"cap": 5.0}),
    (objectives, "dppo", "L C C", {"delta": 0.2}),
    (objectives, "kl_penalised_surrogate", "L C C L", {"kl_coef": 0.1}),
    (objectives, "sequence_ratio", "L C M", *LENGTH_NORMALISED),
    (objectives, "sequence_clipped_surrogate", "L C c M",
     *({**options, **CLIP} for options in LENGTH_NORMALISED)),
    (objectives, "gspo_token", "L C C M", CLIP),
    (sequence_objectives, "gmpo", "L C c M", {}),
    (sequence_objectives, "luspo", "L C c M", CLIP),
    (sequence_objectives, "vespo", "L C C M", {}),
    (objectives, "entropy", "V", {}),
    (entropy, "entropy_mask", "C M", {"quantile": 0.4}),
    (entropy, "token_covariance", "C C M", {}),
    (entropy, "clip_cov_mask", "C M", {"share": 1.0, "low": 0.1, "high": 1.0}),
    (entropy, "kl_cov_mask", "C M", {"share": 0.3}),
    (distillation, "distillation_advantages", "C C", {}),
    (distillation, "distillation_values", "U U", {}),
    (objectives, "ppo_objective", "L L L", {}),
    (preferences, "bradley_terry_loss", "l l", {}),
    (preferences, "bradley_terry_loss", "l l margin=c", {}),
    (preferences, "ranking_loss", "K", {}),
    (preferences, "implicit_reward", "l c", {}),
    (preferences, "dpo_loss label_smoothed_dpo_loss ipo_loss", "l l c c", {}),
    (preferences, "simpo_loss", "l l", {}),
    (preferences, "kto_loss", "l c b", {"kl": 0.3}),
    (mismatch, "importance_ratio", "L C", {}),
    (mismatch, "truncated_weights", "W", {"cap": 1.5}),
    (mismatch, "masked_weights", "W", {"cap": 1.5, "floor": 0.5}),
    (mismatch, "icepop_weights", "W", {}),
    (mismatch, "sequence_weights prefix_weights minimum_prefix_weights", "C C M", {}),
    (mismatch, "off_policy_mask", "C C c M", {"delta": 0.3}),
    (mismatch, "geometric_mask", "C C M", {"low": 0.7, "high": 1.4}),
    (mismatch, "effective_sample_size", "w", {}),
    (coefficients, "sft_coefficient ppo_coefficient", "C", {}),
    (coefficients, "rft_coefficient online_rft_coefficient", "b C", {}),
    (coefficients, "dpo_coefficient", "c c c c", {}),
    (coefficients, "grpo_coefficient", "C C C", {}),
    (regression, "optimal_values", "G", {}),
    (regression, "astar_po_loss", "l c c c", {}),
    (rewards, "overlong_penalty", "w", {"max_length": 2, "cache": 1}),
    (rewards, "cosine_length_reward", "w b", {"max_length": 2}),
    (rewards, "reward_bias reward_gain_and_bias", "w", {}),
]


class Signature(NamedTuple):
    """A function, its arguments as pairs (keyword or "", kind), and its options."""

    function: Callable[..., Any]
    arguments: list[tuple[str, str]]
    options: dict[str, Any]

    @property
    def kinds(self) -> list[str]:
        return [kind for _, kind in self.arguments]

    @property
    def names(self) -> list[str]:
        """The arguments' names."""
        positional = iter(inspect.signature(self.function).parameters)
        return [keyword or next(positional) for keyword, _ in self.arguments]


def signatures() -> Iterator[Signature]:
    """Yield all rows of the table, one for each choice of options."""
    for module, names, arguments, *options in TABLE:
        pairs = [argument.rpartition("=")[::2] for argument in arguments.split()]
        for name, option in itertools.product(names.split(), options):
            yield Signature(getattr(module, name), pairs, option)


def batch(signature: Signature, mask: Tensor, *, seed: int = 5, dtype: torch.dtype = torch.float64
          ) -> dict[str, Tensor]:
    """Return random inputs by name. Their sizes are those of mask, (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name, kind in zip(signature.names, signature.kinds, strict=True):
        size = (len(mask),) if kind in "lcwb" else (*mask.shape, *[3] * (kind in "VUSR"))
        x = torch.randn(*size, generator=generator, dtype=torch.float64)
        if kind == "c":
            x = x * mask.any(1)                        # a row without tokens carries no score
        elif kind in "WwGN":
            x = x.abs() + 0.1
        elif kind in "SR":
            x[:, 1, 1:] = x[:, 2, 2:] = torch.nan
        inputs[name] = mask if kind == "M" else x > 0 if kind == "b" else x.to(dtype)
    return inputs
