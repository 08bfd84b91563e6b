"""Which values a page's configuration may have: an interval for each number, a list for some texts.

A field's name means the same on every page, so its interval stands here once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from numbers import Integral, Real
from typing import Any

ROWS = 2 ** 20                  # completions or texts in one batch: they are in memory together
COUNT = "[1, 1_000_000_000]"    # at a millisecond per step, eleven days
COUNT_OR_NONE = "[0, 1_000_000_000]"
SIDE_BY_SIDE = f"[1, {ROWS}]"
POSITIVE = "(0, inf)"
NOT_NEGATIVE = "[0, inf)"
SHARE = "[0, 1]"
DECAY = "[0, 1)"

INTERVALS = {
    "steps": COUNT, "epochs": COUNT, "iterations": COUNT, "minibatches": COUNT, "batch_size": COUNT,
    "minibatch_size": COUNT, "max_new_tokens": COUNT, "token_budget": COUNT, "kl_horizon": COUNT,
    "zero_steps": COUNT, "reasoning_steps": COUNT, "final_steps": COUNT, "preference_steps": COUNT,
    "rounds": COUNT,
    "warmup_steps": COUNT_OR_NONE, "ref_sync_steps": COUNT_OR_NONE, "overlong_cache": COUNT_OR_NONE,
    "prompts_per_step": SIDE_BY_SIDE, "episodes": SIDE_BY_SIDE, "ptx_batch_size": SIDE_BY_SIDE,
    "kept_problems": SIDE_BY_SIDE, "cold_start_problems": f"[0, {ROWS}]",
    "kept_samples": f"[1, {ROWS // 512}]",                    # of 512 problems at a time
    "group_size": f"[2, {ROWS}]",
    "lr": POSITIVE, "value_lr": POSITIVE, "max_grad_norm": POSITIVE, "temperature": POSITIVE,
    "final_temperature": POSITIVE, "beta": POSITIVE, "kl_target": POSITIVE, "scale": POSITIVE,
    "clip_low": NOT_NEGATIVE,                                 # DeepSeek-R1's is 10: no lower bound
    "clip_high": NOT_NEGATIVE, "value_clip": NOT_NEGATIVE, "kl_coef": NOT_NEGATIVE,
    "value_coef": NOT_NEGATIVE, "entropy_coef": NOT_NEGATIVE, "ptx_coef": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE, "missing_eos_penalty": NOT_NEGATIVE,
    "language_weight": NOT_NEGATIVE,
    "top_k": COUNT_OR_NONE, "top_p": "(0, 1]", "min_p": SHARE, "repetition_penalty": POSITIVE,
    "pass_k": f"[2, {ROWS}]", "max_draws": "[1, 1000]", "off_policy": "[0, 64]",
    "top_entropy": SHARE, "ref_mixup": "(0, 1]",
    "importance_max": NOT_NEGATIVE, "importance_min": NOT_NEGATIVE, "dppo_delta": "(0, 1]",
    "geometric_max": NOT_NEGATIVE, "geometric_min": NOT_NEGATIVE, "off_policy_delta": NOT_NEGATIVE,
    "dual_clip": NOT_NEGATIVE, "sapo_temp_pos": POSITIVE, "sapo_temp_neg": POSITIVE,
    "vespo_k_pos": POSITIVE, "vespo_lambda_pos": POSITIVE, "vespo_k_neg": POSITIVE,
    "vespo_lambda_neg": POSITIVE, "cov_share": "(0, 1]", "cov_low": NOT_NEGATIVE,
    "cov_high": POSITIVE, "cov_kl_coef": NOT_NEGATIVE, "entropy_target": NOT_NEGATIVE,
    "entropy_coef_min": NOT_NEGATIVE, "entropy_coef_max": NOT_NEGATIVE,
    "entropy_coef_delta": POSITIVE,
    "gamma": SHARE, "lam": SHARE, "min_lr_ratio": SHARE, "ddof": SHARE, "general_share": "(0, 1]",
    "on_policy_share": SHARE, "jsd_beta": SHARE, "teacher_decay": SHARE,
    "beta1": DECAY, "beta2": DECAY, "ema_decay": DECAY, "dropout": DECAY,
}
CHOICES = {"aggregate": ("sequence_mean", "token_mean", "sequence_sum", "constant"),
           "scale": ("group", "batch", "none"), "old_logp": ("learner", "sampler"),
           "importance": ("none", "token_truncate", "token_mask", "sequence_truncate",
                          "sequence_mask"),
           "kl_estimator": ("k3", "corrected_k3", "k2")}
SEVERAL = re.compile(r"tuple\[(\w+), \.\.\.\]")
KINDS = {"int": (Integral, "a whole number"), "float": (Real, "a number"),
         "bool": (bool, "True or False"), "str": (str, "a text")}


def check(config: Any, **intervals: str) -> None:
    """Raise ValueError for a field of another type than declared, or outside its interval.

    `intervals` adds to INTERVALS, by field name. "[0, 1)" contains 0 but not 1; none contains
    NaN. A numeric field without an interval is a mistake of the caller: KeyError.
    """
    intervals = INTERVALS | intervals
    for field in dataclasses.fields(config):
        value, (kind, *optional) = getattr(config, field.name), field.type.split(" | ")
        if value is None and optional:
            continue
        if (several := SEVERAL.fullmatch(kind)) is not None:
            for one in value:
                _check_value(field.name, one, several[1], intervals)
        else:
            _check_value(field.name, value, kind, intervals)


def _check_value(name: str, value: Any, kind: str, intervals: dict[str, str]) -> None:
    wanted, words = KINDS[kind]
    if not isinstance(value, wanted) or isinstance(value, bool) != (kind == "bool"):
        came = f"{value!r}, of type {type(value).__name__}"
        raise ValueError(f"{name} is {came}: {words} is wanted")
    if kind in ("int", "float") and (limit := outside(value, intervals[name])):
        raise ValueError(f"{name} is {value}: {limit} is wanted")
    choices = CHOICES.get(name)
    if kind == "str" and choices is not None and value not in choices:
        raise ValueError(f"{name} is {value!r}: one of {', '.join(choices)} is wanted")


def at_most(config: Any, most: int, *names: str, what: str) -> None:
    """Raise ValueError for fields whose product exceeds `most`, which is `what`."""
    values = [getattr(config, name) for name in names]
    if math.prod(values) > most:
        came = " and ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        raise ValueError(f"{came.replace(' ', ' is ', 1)}: at most {most:,} is wanted, {what}")


def outside(value: Any, interval: str) -> str | None:
    """Return what is wanted in place of a value outside an interval; None if it is inside.

    >>> outside(1.0, "[0, 1)"), outside(0.0, "(0, inf)"), outside(0.0, "[0, 1)")
    ('less than 1', 'a positive number', None)
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    if not (value > low or value == low and interval[0] == "["):
        return f"at least {low:,.15g}" if interval[0] == "[" else "a positive number"
    if value < high or value == high and interval[-1] == "]":
        return None
    if high == float("inf"):
        return "a finite number"
    return f"at most {high:,.15g}" if interval[-1] == "]" else f"less than {high:,.15g}"
