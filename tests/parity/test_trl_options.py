"""GRPO's options: what train_grpo computes in stage 4 with a preset and its options is TRL's loss,
in value and in the gradient of every log-prob and entropy. Skipped where TRL is not installed.

Here stage 4 is `stage_four`: the page's own parts, in the page's order.
"""

import inspect
import math
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minirl.equations.advantages import group_advantages
from minirl.equations.entropy import entropy_mask
from minirl.equations.reduce import aggregate, normaliser
from minirl.inference.collect import Collected
from minirl.lm.rollouts import Rollouts
from minirl.train.credit import decoupled_credit
from minirl.train.grpo import GRPOConfig
from minirl.train.metrics import Sums
from minirl.train.presets import GRPO_PRESETS
from minirl.train.regularisers import KL_ESTIMATORS, EntropyBonus
from minirl.train.weights import token_weights
from tests.parity.trl_stand_ins import (
    MASK,
    NO_TRL,
    REWARDS,
    assert_close,
    assert_same_loss,
    columns,
    normal,
    stand_in,
)

trl = pytest.importorskip("trl", reason=NO_TRL)

L_MAX = 9
SEEN = MASK.bool()
ENTROPY = normal(8, 6, seed=11).abs()
# what TRL calls the loss of each of our presets, and the level of its ratio
LOSSES = {
    "grpo": ("grpo", "token"),
    "dr_grpo": ("dr_grpo", "token"),
    "trl": ("dapo", "token"),
    "cispo": ("cispo", "token"),
    "sapo": ("sapo", "token"),
    "gspo": ("grpo", "sequence"),
    "luspo": ("luspo", "sequence"),
    "vespo": ("vespo", "token"),
}


def configured(preset, **changes):
    """Return the preset and its configuration; TRL's clip at 0.2, but for the ratio of a whole
    completion, whose clip would never take effect."""
    changes = {"clip_low": 0.2, "clip_high": 0.2, "max_new_tokens": L_MAX, **changes}
    numbers = GRPO_PRESETS[preset].numbers | {"kl_coef": 0.0} | changes
    return GRPO_PRESETS[preset], GRPOConfig(**numbers)


def sampler(old):
    """Return the sampler's log-probs: ratios of old and these from 0.1 to 10."""
    return old - normal(8, 6, seed=7, scale=0.8)


def stage_four(preset, config, logp, old, behavior, ref, adv, entropy, *, mask=SEEN):
    """Return minus the loss of one micro-batch that is the whole minibatch."""
    objective = preset.arguments(config)["objective"]
    weights, bonus = token_weights(config), EntropyBonus(config, {})
    counted = mask if config.top_entropy == 1 else entropy_mask(
        entropy.detach(), mask, quantile=config.top_entropy)
    surrogate = objective(logp, old, adv, mask)
    if weights is not None:
        surrogate = surrogate * weights(logp.detach(), old, behavior, adv, counted, mask)
    if config.kl_coef:
        surrogate = surrogate - config.kl_coef * KL_ESTIMATORS[config.kl_estimator](logp, old, ref)
    total = normaliser(mask, config.aggregate, max_length=L_MAX)
    bonus.begin(counted)
    return (aggregate(surrogate, mask, config.aggregate, total=total)
            + bonus.of(entropy, counted))


def trl_loss(preset, config, logp, old, behavior, ref, adv, entropy, *, mask=SEEN, metrics=None,
             **attributes):
    """Return GRPOTrainer._compute_loss with the options that ours have names for."""
    loss_type, level = LOSSES[preset]
    cap = 1 + config.clip_high if loss_type == "cispo" else config.clip_high
    args = SimpleNamespace(
        use_bias_correction_kl=config.kl_estimator == "corrected_k3",
        delta=config.dual_clip or None,
        sapo_temperature_pos=config.sapo_temp_pos,
        sapo_temperature_neg=config.sapo_temp_neg,
        vespo_k_pos=config.vespo_k_pos,
        vespo_lambda_pos=config.vespo_lambda_pos,
        vespo_k_neg=config.vespo_k_neg,
        vespo_lambda_neg=config.vespo_lambda_neg,
        entropy_target=config.entropy_target,
        entropy_coef_min=config.entropy_coef_min,
        entropy_coef_max=config.entropy_coef_max,
        entropy_coef_delta=config.entropy_coef_delta,
        steps_per_generation=1,
    )
    self = stand_in(**{**dict(
        args=args,
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_low=config.clip_low,
        epsilon_high=cap,
        beta=config.kl_coef,
        top_entropy_quantile=config.top_entropy,
        off_policy_mask_threshold=config.off_policy_delta or None,
        use_vllm=config.importance != "none",
        vllm_importance_sampling_correction=config.importance != "none",
        current_gradient_accumulation_steps=1,
        max_completion_length=L_MAX,
        entropy_coef=config.entropy_coef,
        use_adaptive_entropy=config.entropy_target > 0,
        _entropy_bonus_enabled=config.entropy_coef != 0 or config.entropy_target > 0,
        _last_world_entropy=math.inf,
        _entropy_window_stats=None,
        get_off_policy_mask=trl.GRPOTrainer.get_off_policy_mask,
        get_gamma_weights=trl.GRPOTrainer.get_gamma_weights,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, entropy, None),
    ), **attributes})
    self.accelerator = SimpleNamespace(**{    # a copy: the other tests have the same one
        **vars(self.accelerator), "pad_across_processes": lambda x, dim, pad_index: x})
    self.get_high_entropy_mask = lambda *given: trl.GRPOTrainer.get_high_entropy_mask(self, *given)
    ids, mask = torch.zeros_like(MASK), mask.long()
    inputs = {
        "prompt_ids": ids[:, :2],
        "prompt_mask": torch.ones_like(ids)[:, :2],
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": adv[:, 0],
        "num_items_in_batch": mask.sum().double(),
        "old_per_token_logps": old,
        "sampling_per_token_logps": behavior,
        "ref_per_token_logps": ref,
    }
    if config.importance != "none":
        inputs["importance_sampling_ratio"] = trl_ratio(config, old, behavior, mask)
    loss = trl.GRPOTrainer._compute_loss(self, None, inputs)
    if metrics is not None:
        metrics.append(self)
    return loss


def own_lines(method, first, last):
    """Return a part of a method of TRL, from its line `first` to before `last`, as code."""
    lines = inspect.getsource(method).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i in range(start, len(lines)) if lines[i].strip().startswith(last))
    return compile(textwrap.dedent("\n".join(lines[start:end])), first, "exec")


def trl_ratio(config, old, behavior, mask):
    """Return what TRL's rollout stage makes of the log-probs, by the lines that it has for that."""
    code = own_lines(trl.GRPOTrainer._generate_and_score_completions,
                     "per_token_logps_diff = (old_per_token_logps", "# Compute the per-token log")
    names = {"torch": torch, "math": math, "mask": mask, "old_per_token_logps": old,
             "sampling_per_token_logps": behavior, "self": SimpleNamespace(
                 vllm_importance_sampling_mode=config.importance,
                 vllm_importance_sampling_clip_min=config.importance_min or None,
                 vllm_importance_sampling_clip_max=config.importance_max or None)}
    exec(code, names)
    return names["vllm_importance_sampling_ratio"]


def both(preset, *, mask=SEEN, **changes):
    """Assert that both losses are the same, in value and in gradient. Return the configuration."""
    table, config = configured(preset, **changes)
    logp, old, ref, adv = columns()
    entropy = ENTROPY.clone().requires_grad_()
    args = logp, old, sampler(old), ref, adv, entropy
    theirs = trl_loss(preset, config, *args, mask=mask)
    ours = stage_four(table, config, *args, mask=mask)
    atol = 1e-7 if preset == "sapo" else 1e-10     # a torch.where of TRL's rounds temperatures
    assert_same_loss(theirs, ours, logp, atol=1e-6 if preset == "vespo" else atol)
    if config.entropy_coef:
        theirs = trl_loss(preset, config, *args, mask=mask)
        ours = stage_four(table, config, *args, mask=mask)
        assert_same_loss(theirs, ours, entropy, atol=atol)
    return config


KL = {"no KL": {}, "KL": {"kl_coef": 0.3}}
CORRECTED = {"kl_coef": 0.3, "kl_estimator": "corrected_k3"}
MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
OPTIONS = {
    "delta": dict(dual_clip=1.5),
    "off-policy mask": dict(off_policy_delta=0.1),
    "top entropy": dict(top_entropy=0.3),
    "entropy bonus": dict(entropy_coef=0.2),
    "bonus of the top entropy": dict(entropy_coef=0.2, top_entropy=0.3),
    "everything": dict(off_policy_delta=0.1, top_entropy=0.5, entropy_coef=0.1,
                       importance="token_truncate", importance_max=1.5),
    **{mode: dict(importance=mode, importance_max=1.5, importance_min=0.4) for mode in MODES},
    **{f"{mode}, one bound": dict(importance=mode, importance_max=2.0) for mode in MODES},
    "no upper bound": dict(importance="token_mask", importance_max=0.0, importance_min=0.7),
}


@pytest.mark.parametrize("kl", KL)
@pytest.mark.parametrize("preset", LOSSES)
def test_every_loss(preset, kl):
    both(preset, **KL[kl])


@pytest.mark.parametrize("kl", KL)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("preset", ["grpo", "trl", "dr_grpo"])
def test_every_option(preset, option, kl):
    both(preset, **OPTIONS[option], **KL[kl])


@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "delta"])
@pytest.mark.parametrize("preset", ["cispo", "sapo"])
def test_options_beside_other_losses(preset, option):
    both(preset, **OPTIONS[option], kl_coef=0.1)


@pytest.mark.parametrize("option", ["off-policy mask", "entropy bonus", "sequence_truncate",
                                    "sequence_mask"])
@pytest.mark.parametrize("preset", ["gspo", "luspo"])
def test_options_beside_the_ratio_of_a_completion(preset, option):
    both(preset, **OPTIONS[option], kl_coef=0.1)


@pytest.mark.parametrize("preset", ["gspo", "luspo"])
def test_deviation_weights_of_tokens_beside_the_ratio_of_a_completion(preset):
    """With level "sequence" every token of TRL's loss has the gradient of the whole s_i, so a mask
    over tokens makes a completion count less, and its masked tokens are still learnt. Ours is
    GSPO-token: a token of weight 0 gets no gradient. The value is the same."""
    table, config = configured(preset, top_entropy=0.3)
    logp, old, ref, adv = columns()
    args = logp, old, old, ref, adv, ENTROPY
    theirs, ours = trl_loss(preset, config, *args), -stage_four(table, config, *args)
    assert_close(ours, theirs)
    dropped = SEEN & ~entropy_mask(ENTROPY, SEEN, quantile=0.3)
    for loss, learnt in ((theirs, True), (ours, False)):
        gradient, = torch.autograd.grad(loss, logp)
        assert bool(gradient[dropped].any()) == learnt


@pytest.mark.parametrize("option", ["off-policy mask", "top entropy", "entropy bonus"])
def test_options_beside_vespo(option):
    both("vespo", **OPTIONS[option], kl_coef=0.1)


@pytest.mark.parametrize("option", [None, *OPTIONS])
@pytest.mark.parametrize("preset", ["grpo", "trl", "cispo", "sapo"])
def test_the_corrected_kl(preset, option):
    changes = OPTIONS[option] if option else {}
    if preset in ("cispo", "sapo") and "dual_clip" in changes:
        pytest.skip("has no clip")
    both(preset, **changes, **CORRECTED)


def test_the_options_change_something():
    """Otherwise the tests above could agree on masks that leave nothing out."""
    for name, changes in OPTIONS.items():
        logp, old, ref, adv = columns()
        args = logp, old, sampler(old), ref, adv, ENTROPY
        difference = (stage_four(*configured("grpo"), *args)
                      - stage_four(*configured("grpo", **changes), *args))
        assert abs(difference.item()) > 1e-3, name


@pytest.mark.parametrize("preset", ["grpo", "trl", "dr_grpo"])
@pytest.mark.parametrize("option", [{}, CORRECTED, OPTIONS["top entropy"], OPTIONS["everything"]],
                         ids=["plain", "KL", "top entropy", "everything"])
def test_completions_that_were_cut_off_are_left_out(preset, option):
    """TRL sets their completion_mask to 0. They are in no token sum and no KL, and one of the rows
    of a mean over completions."""
    truncated = torch.tensor([0, 1, 0, 0, 1, 0, 0, 0]).bool()
    rollouts = Rollouts(torch.zeros_like(MASK), SEEN, torch.zeros(8).long(), torch.zeros(8, 6),
                        truncated)
    both(preset, mask=rollouts.without(truncated).mask, **option)


def test_deviation_the_corrected_kl_of_a_sequence_level():
    """TRL multiplies k3 by the completion's ratio s_i where the level is "sequence". Ours is the
    token's ratio with every preset, as in DeepSeek-V3.2's eq. 7. Lengths 1 are the same."""
    table, config = configured("gspo", **CORRECTED)
    logp, old, ref, adv = columns()
    args = logp, old, old, ref, adv, ENTROPY
    difference = trl_loss("gspo", config, *args) + stage_four(table, config, *args)
    assert abs(difference.item()) > 1e-4
    one = SEEN & (torch.arange(6) < 1)
    assert_close(-stage_four(table, config, *args, mask=one),
                 trl_loss("gspo", config, *args, mask=one))


def test_deviation_importance_weights_beside_vespo():
    """TRL takes π_old/μ into VESPO's w. Ours does so by old_logp="sampler", where w is the product
    of π/μ: the same, unless a bound cuts off a ratio."""
    table, config = configured("vespo", importance="token_truncate", importance_max=0.0,
                               importance_min=1e-6)
    logp, old, ref, adv = columns()
    behavior = old + normal(8, 6, seed=5, scale=0.1)
    theirs = trl_loss("vespo", config, logp, old, behavior, ref, adv, ENTROPY)
    own = replace(config, importance="none", old_logp="sampler")
    ours = stage_four(table, own, logp, behavior, behavior, ref, adv, ENTROPY)
    assert_same_loss(theirs, ours, logp, atol=1e-6)


# the adaptive entropy coefficient

def test_the_adaptive_entropy_coefficient_over_updates():
    """Ten updates with entropies around the target: coefficient, loss and gradient are TRL's."""
    table, config = configured("trl", entropy_coef=0.02, entropy_target=0.8,
                               entropy_coef_delta=0.013, entropy_coef_max=0.03,
                               entropy_coef_min=0.01)
    logp, old, ref, adv = columns()
    numbers, trainers = {}, []
    bonus = EntropyBonus(config, numbers)
    memory = dict(entropy_coef=config.entropy_coef, _last_world_entropy=math.inf)
    coefs = []
    for scale in (1.5, 0.5, 0.6, 0.7, 2.0, 2.0, 0.4, 0.4, 0.4, 0.4):
        entropy = (scale * ENTROPY).requires_grad_()
        args = logp, old, old, ref, adv, entropy
        theirs = trl_loss("trl", config, *args, metrics=trainers, **memory)
        memory = {name: getattr(trainers[-1], name) for name in memory}
        plain = stage_four(table, replace(config, entropy_coef=0.0, entropy_target=0.0), *args)
        bonus.begin(SEEN)
        ours = plain + bonus.of(entropy, SEEN)
        bonus.adapt(Sums())
        assert_same_loss(theirs, ours, logp)
        gradients = [torch.autograd.grad(x, entropy, allow_unused=True)[0]
                     for x in (trl_loss("trl", config, *args, **{
                         **memory, **{"entropy_coef": 0.0}}), plain)]
        assert gradients[1] is None
        coefs.append(numbers["entropy_coef"])
        assert numbers["entropy_coef"] == memory["entropy_coef"]
        active = memory["_last_world_entropy"] <= config.entropy_target
        assert numbers["entropy_bonus"] == (memory["entropy_coef"] if active else 0.0)
    assert min(coefs) == 0.01 and max(coefs) == 0.03      # both ends are reached


# GDPO

@pytest.mark.parametrize("missing", [False, True], ids=["all verdicts", "some missing"])
def test_gdpo(missing):
    """TRL's lines for multi_objective_aggregation="normalize_then_sum", and our credit."""
    first = REWARDS.flatten().clone()
    second = normal(8, seed=3)
    if missing:
        first[2] = second[2] = second[5] = math.nan
    per_function = torch.stack([first, second], 1)
    code = own_lines(trl.GRPOTrainer._generate_and_score_completions,
                     "grouped = rewards_per_func.view", "is_std_zero = torch.isclose")
    from trl.trainer.utils import nanstd
    names = {"torch": torch, "nanstd": nanstd, "rewards_per_func": per_function,
             "num_generations": 4, "device": "cpu",
             "unscorable_mask": per_function.isnan().all(1), "self": SimpleNamespace(
                 reward_funcs=[None, None], reward_weights=torch.tensor([1.0, 0.5]).double())}
    exec(code, names)
    theirs = names["advantages"].nan_to_num(nan=0.0)

    rollouts = Rollouts(torch.zeros_like(MASK), SEEN, torch.zeros(8).long(), torch.zeros(8, 6),
                        torch.zeros(8).bool())
    verdicts = {"first": first.tolist(), "second": second.tolist()}
    answers = Collected([None] * 2, rollouts, [""] * 8, verdicts, first,
                        weights={"first": 1.0, "second": 0.5})
    adv = decoupled_credit(group_advantages(REWARDS), answers)
    assert_close(adv[:, 0].double(), theirs, atol=1e-5)    # ours are float32
    assert torch.equal(adv, torch.where(SEEN, adv[:, :1], 0))
