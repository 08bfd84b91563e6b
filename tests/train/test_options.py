"""minirl/train/options.py: GRPO's options, each of them off, and what contradicts itself."""

import dataclasses

import pytest

from minirl.train.grpo import GRPOConfig
from minirl.train.options import GRPOOptions


@pytest.mark.parametrize("changes, message", [
    (dict(importance_max=0.5, importance_min=0.5), "importance_max is 0.5 and importance_min 0.5"),
    (dict(importance_max=1.0, importance_min=2.0), "importance_max is 1.0 and importance_min 2.0"),
    (dict(geometric_max=0.9, geometric_min=1.1), "geometric_max is 0.9"),
    (dict(dual_clip=1.2), "dual_clip is 1.2 and clip_high 0.2"),
    (dict(dual_clip=1.25, clip_high=0.28), "a bound on the ratio above"),
    (dict(entropy_target=0.5, entropy_coef=2.0), "entropy_coef is 2.0"),
    (dict(entropy_target=0.5, entropy_coef_min=0.1), "a coefficient between the two"),
    (dict(cov_low=5.0), "cov_low is 5.0 and cov_high 5.0: a lower bound below"),
    (dict(cov_share=0.0), "cov_share is 0.0: a positive number"),
    (dict(max_draws=0), "max_draws is 0: at least 1"),
    (dict(off_policy=-1), "off_policy is -1"),
    (dict(off_policy=65), "off_policy is 65: at most 64"),
    (dict(old_logp="reference"), "old_logp is 'reference': one of learner, sampler"),
    (dict(importance="token"), "importance is 'token': one of none, token_truncate"),
    (dict(kl_estimator="k1"), "kl_estimator is 'k1': one of k3, corrected_k3, k2"),
    (dict(top_entropy=1.1), "top_entropy is 1.1: at most 1"),
    (dict(ref_mixup=0.0), "ref_mixup is 0.0: a positive number"),
    (dict(mask_truncated=1), "True or False is wanted"),
    (dict(off_policy_delta=float("nan")), "off_policy_delta is nan"),
    (dict(vespo_k_neg=0.0), "vespo_k_neg is 0.0: a positive number"),
    (dict(top_k=-1), "top_k is -1: at least 0"),
    (dict(top_p=0.0), "top_p is 0.0: a positive number"),
    (dict(min_p=1.1), "min_p is 1.1: at most 1"),
    (dict(repetition_penalty=0.0), "repetition_penalty is 0.0: a positive number"),
    (dict(top_k=5, old_logp="sampler"), "top_k is 5 and old_logp sampler: no ratio of the policy"),
    (dict(top_p=0.9, importance="token_mask"), "top_p is 0.9 and importance token_mask"),
    (dict(min_p=0.1, geometric_max=1.1), "min_p is 0.1 and geometric_max 1.1"),
    (dict(top_p=0.9, geometric_min=0.9), "top_p is 0.9 and geometric_min 0.9"),
    (dict(min_p=0.1, off_policy_delta=0.1), "min_p is 0.1 and off_policy_delta 0.1"),
    (dict(prompts_per_step=2 ** 11, group_size=2 ** 10), "completions a step"),
    (dict(overlong_cache=81), "the longest completion"),
    (dict(minibatches=129), "the completions of a step"),
])
def test_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**changes)


@pytest.mark.parametrize("changes", [
    dict(importance_max=0.0, importance_min=5.0),              # 0: no upper bound
    dict(geometric_min=0.9), dict(geometric_max=1.1), dict(dual_clip=1.3),
    dict(minibatches=128), dict(entropy_target=0.5), dict(entropy_target=0.5, entropy_coef=1.0),
    dict(entropy_coef=2.0),                                    # constant: no bounds
    dict(entropy_coef_min=0.1), dict(top_entropy=0.0), dict(ref_mixup=1.0),
    dict(top_p=0.9, off_policy=2),                             # nothing compares π with μ
    dict(repetition_penalty=1.2, importance="token_mask"),     # μ leaves no token out
])
def test_what_can_be(changes):
    GRPOConfig(**changes)


def test_every_option_is_one_of_the_configurations():
    options = {field.name: field.default for field in dataclasses.fields(GRPOOptions)}
    config = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    assert options.items() <= config.items()
