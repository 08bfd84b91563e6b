"""Compositions of minirl.equations give TRL's numbers: the loss, and its gradient with respect to every log-prob. Skipped where TRL is not installed.

TRL's own methods run here, on a stand-in for the trainer that has only the attributes that they read: no line of its losses is typed again. A new
attribute that a later TRL reads raises AttributeError, which is a reason to look and not a difference in the numbers. All of it is in float64.
Where TRL does something else than the paper, or than we do, the test's docstring says so, and both numbers stand in it.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from minirl.equations.advantages import group_advantages, leave_one_out_advantages
from minirl.equations.kl import corrected_k3, k1, k3
from minirl.equations.mismatch import importance_ratio, masked_weights, sequence_weights, truncated_weights
from minirl.equations.objectives import (cispo, clipped_surrogate, dual_clipped_surrogate, gspo_token, policy_gradient, sapo,
                                         sequence_clipped_surrogate,
                                         sequence_ratio)
from minirl.equations.preferences import (bradley_terry_loss, dpo_loss, ipo_loss, kto_loss, label_smoothed_dpo_loss, ranking_loss, simpo_loss)
from minirl.equations.reduce import aggregate, masked_mean
from minirl.equations.rewards import overlong_penalty

pytest.importorskip("trl", reason="TRL is not installed: python -m pip install -c constraints.txt -e '.[test,parity]'")

from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardTrainer, RLOOTrainer                # noqa: E402
from trl.rewards import get_soft_overlong_punishment                                           # noqa: E402

NAN = float("nan")
GROUP, L_MAX = 4, 9
LENGTHS = [6, 3, 1, 5, 4, 6, 2, 3]                                                              # two groups of four, in rows of 6
MASK = (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).long()                                # (B, T)
GAPS = MASK * torch.tensor([[1, 1, 0, 1, 0, 1]]).long()                                         # the same with tool output in between
REWARDS = torch.tensor([[1.0, 0.0, 0.5, 0.0], [2.0, 1.0, -1.0, 0.25]]).double()                 # (P, G)
ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), num_processes=1, process_index=0, sync_gradients=True, gather=lambda x: x,
                              gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x, unwrap_model=lambda model: model)


def stand_in(**attributes):
    """What a trainer's method finds behind `self`. Anything that is not here raises."""
    model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    return SimpleNamespace(**{"accelerator": ACCELERATOR, "model": model, "ref_model": None, "aux_loss_enabled": False, "_tp_size": 1,
                              "_metrics": {"train": defaultdict(list)}, "_total_train_tokens": 0, **attributes})


def normal(*shape, seed, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def columns(seed=0):
    """logp (a leaf), old_logp and ref_logp (B, T), adv (B, T): ratios from about 0.3 to 3, so that every clip bites on both sides."""
    old = -1 - normal(8, 6, seed=seed).abs()
    logp = (old + normal(8, 6, seed=seed + 1, scale=0.5)).requires_grad_()
    adv = group_advantages(REWARDS).flatten()[:, None].expand(8, 6)
    return logp, old, old + normal(8, 6, seed=seed + 2, scale=0.5), adv


def same(theirs, ours, leaf, *, atol=1e-10):
    """TRL's loss is ours with a minus sign, in value and in gradient; and there is a gradient to compare. 1e-7 where one of the two rounds a constant
    to float32."""
    wanted, = torch.autograd.grad(theirs, leaf, retain_graph=True)
    got, = torch.autograd.grad(-ours, leaf)
    torch.testing.assert_close(-ours, theirs, atol=atol, rtol=0)
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)
    assert wanted.abs().max() > 1e-4


def trl_grpo(loss_type, logp, adv, *, old=None, ref=None, mask=MASK, level="token", clip=(0.2, 0.2), delta=None, beta=0.0, corrected=False,
             accumulate=1,
             tokens=None, weights=None, metrics=None, **options):
    """GRPOTrainer._compute_loss on given log-probs. `tokens`: of the whole batch, where this is one of `accumulate` micro-batches."""
    args = SimpleNamespace(**{"use_bias_correction_kl": corrected, "delta": delta, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05,
                              "steps_per_generation": accumulate, **options})
    self = stand_in(args=args, loss_type=loss_type, importance_sampling_level=level, epsilon_low=clip[0], epsilon_high=clip[1], beta=beta,
                    top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=weights is not None,
                    vllm_importance_sampling_correction=weights is not None,
                    current_gradient_accumulation_steps=accumulate, max_completion_length=L_MAX, _entropy_bonus_enabled=False,
                    _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None))
    ids = torch.zeros_like(mask)
    inputs = {"prompt_ids": ids[:, :2], "prompt_mask": mask[:, :2], "completion_ids": ids, "completion_mask": mask, "advantages": adv[:, 0],
              "num_items_in_batch": torch.as_tensor(float(mask.sum()) if tokens is None else tokens)}
    optional = {"old_per_token_logps": old, "ref_per_token_logps": ref, "importance_sampling_ratio": weights}
    inputs.update({name: x for name, x in optional.items() if x is not None})
    loss = GRPOTrainer._compute_loss(self, None, inputs)
    if metrics is not None:
        metrics.update(self._metrics["train"])
    return loss


HOW = {"grpo": "sequence_mean", "sapo": "sequence_mean", "bnpo": "token_mean", "dapo": "token_mean", "cispo": "token_mean", "dr_grpo": "constant",
       "luspo": "sequence_sum"}
ATOL = {loss_type: 1e-7 if loss_type == "sapo" else 1e-10 for loss_type in HOW}   # the temperatures 1.0 and 1.05 become float32 in a torch.where


def reduced(x, loss_type, mask=MASK):
    return aggregate(x, mask, HOW[loss_type], total=len(mask) * L_MAX if HOW[loss_type] == "constant" else None)


def surrogate(loss_type, logp, old, adv, clip=(0.2, 0.2), delta=None):
    if loss_type == "cispo":
        return cispo(logp, old, adv, cap=clip[1])
    if loss_type == "sapo":
        return sapo(logp, old, adv)
    bounds = {"clip_low": clip[0], "clip_high": clip[1]}
    return clipped_surrogate(logp, old, adv, **bounds) if delta is None else dual_clipped_surrogate(logp, old, adv, **bounds, cap=delta)


VARIANTS = {
    "plain": {}, "clip-higher": {"clip": (0.2, 0.28)}, "wide clip": {"clip": (0.5, 1.5)}, "delta": {"delta": 1.5}, "KL": {"beta": 0.04},
    "corrected KL": {"beta": 0.04, "corrected": True}, "all": {"clip": (0.2, 0.28), "delta": 1.5, "beta": 0.3, "corrected": True},
}


@pytest.mark.parametrize("mask", [MASK, GAPS], ids=["ragged", "gaps"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"])
def test_grpo_token_level(loss_type, variant, mask):
    """Surrogate minus KL, then the mean. cispo: the same number for `cap` and TRL's epsilon_high, which is the cap itself (see below)."""
    logp, old, ref, adv = columns()
    options = VARIANTS[variant]
    ours = surrogate(loss_type, logp, old, adv, options.get("clip", (0.2, 0.2)), options.get("delta"))
    if "beta" in options:
        ours = ours - options["beta"] * (corrected_k3(logp, old, ref) if "corrected" in options else k3(logp, ref))
    same(trl_grpo(loss_type, logp, adv, old=old, ref=ref, mask=mask, **options), reduced(ours, loss_type, mask), logp, atol=ATOL[loss_type])


def test_the_columns_reach_every_branch():
    """Without this the tests above could agree on ratios that no clip touches."""
    logp, old, _, adv = columns()
    ratio, seen = (logp.detach() - old).exp(), MASK.bool()
    for bite in ((ratio > 1.28) & (adv > 0), (ratio < 0.8) & (adv < 0), (ratio > 1.28) & (adv < 0), (ratio < 0.8) & (adv > 0),
                 (ratio > 1.5) & (adv < 0)):
        assert (bite & seen).any()


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"])
def test_grpo_on_policy(loss_type):
    """No old log-probs: TRL takes logp.detach(), and so do we. The value is that of the advantages alone, the gradient is the policy gradient."""
    logp, _, _, adv = columns()
    same(trl_grpo(loss_type, logp, adv, clip=(0.2, 5.0) if loss_type == "cispo" else (0.2, 0.2)),
         reduced(surrogate(loss_type, logp, logp.detach(), adv, (0.2, 5.0) if loss_type == "cispo" else (0.2, 0.2)), loss_type), logp,
         atol=ATOL[loss_type])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"])
def test_grpo_sequence_level(loss_type, variant):
    """importance_sampling_level="sequence": the length-normalised ratio of GSPO in the place of every token's. A whole completion is one token here,
    whose log-ratio is log s_i. Under the corrected KL TRL multiplies k3 by s_i, no longer by the token's ratio."""
    logp, old, ref, adv = columns()
    options = VARIANTS[variant]
    clip = options.get("clip", (0.2, 0.2))
    s = sequence_ratio(logp, old, MASK, length_normalised=True)[:, None]                        # (B, 1)
    if loss_type == "cispo":
        ours = truncated_weights(s, clip[1]) * policy_gradient(logp, adv)
    else:
        ours = surrogate(loss_type, s.log(), torch.zeros_like(s), adv[:, :1], clip, options.get("delta")).expand_as(logp)
    if "beta" in options:
        ours = ours - options["beta"] * (s * k3(logp, ref) if "corrected" in options else k3(logp, ref))
    same(trl_grpo(loss_type, logp, adv, old=old, ref=ref, level="sequence", **options), reduced(ours, loss_type), logp, atol=ATOL[loss_type])


@pytest.mark.parametrize("clip", [(3e-4, 4e-4), (0.2, 0.3)])
def test_gspo_is_the_sequence_level_under_the_mean_per_sequence(clip):
    """GSPO's eq. 5 is TRL's level "sequence" with loss_type "grpo" (its documentation says so); with room per token it is gspo_token."""
    logp, old, _, adv = columns()
    bounds = {"clip_low": clip[0], "clip_high": clip[1]}
    theirs = trl_grpo("grpo", logp, adv, old=old, level="sequence", clip=clip)
    per_token = aggregate(gspo_token(logp, old, adv, MASK, **bounds), MASK, "sequence_mean")
    torch.testing.assert_close(-per_token, theirs, atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(-per_token, logp)[0], torch.autograd.grad(theirs, logp, retain_graph=True)[0], atol=1e-10, rtol=0)
    same(theirs, sequence_clipped_surrogate(logp, old, adv[:, 0], MASK, length_normalised=True, **bounds).mean(), logp)


def test_deviation_sequence_ratio_under_a_token_sum():
    """TRL's default loss_type with level "sequence" counts s_i once for each of its tokens (it warns and goes on): a long completion has more weight
    than GSPO gives it. On-policy, lengths 1 and 3, A = +1 and -1: GSPO (1 - 1) / 2 = 0; TRL's dapo (1 - 3 * 1) / 4 = -1/2."""
    logp = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    mask, adv = torch.tensor([[1, 0, 0], [1, 1, 1]]), torch.tensor([[1.0] * 3, [-1.0] * 3]).double()
    gspo = sequence_clipped_surrogate(logp, logp.detach(), adv[:, 0], mask, clip_low=0.2, clip_high=0.2, length_normalised=True).mean()
    theirs = trl_grpo("dapo", logp, adv, mask=mask, level="sequence")
    assert gspo.item() == 0.0 and -theirs.item() == -0.5
    assert torch.autograd.grad(gspo, logp)[0][:, 0].tolist() == pytest.approx([1 / 2, -1 / 6])
    assert torch.autograd.grad(-theirs, logp)[0][:, 0].tolist() == pytest.approx([1 / 4, -1 / 4])


def test_deviation_cispo_cap():
    """The paper's weight is min(rho, 1 + eps_high), TRL's is min(rho, epsilon_high): 0.2 there would multiply every gradient by 0.2. Ratio 2, A = 1:
    slope 1.2 (paper, our cap=1.2), and 0.2 in TRL with epsilon_high 0.2."""
    old, one, mask = torch.full((1, 1), -2.0).double(), torch.ones(1, 1).double(), torch.ones(1, 1).long()
    logp = (old + torch.tensor(2.0).log()).requires_grad_()
    slopes = [torch.autograd.grad(-trl_grpo("cispo", logp, one, old=old, mask=mask, clip=(0.2, high)), logp)[0].item() for high in (0.2, 1.2)]
    assert slopes == pytest.approx([0.2, 1.2])
    assert torch.autograd.grad(cispo(logp, old, one, cap=1.2).sum(), logp)[0].item() == pytest.approx(1.2)


def test_deviation_bnpo_depends_on_the_micro_batches():
    """Lengths 2 2 8 8, per-token values 1 1 1/4 1/4, as two micro-batches of two. The mean over all tokens is 8 / 20 = 0.4: TRL's dapo, and ours with
    the whole batch's total. TRL's bnpo divides each micro-batch by its own tokens: (1 + 1/4) / 2 = 0.625."""
    mask = (torch.arange(8) < torch.tensor([[2], [2], [8], [8]])).long()
    adv = torch.tensor([[1.0], [1.0], [0.25], [0.25]]).double().expand(4, 8)
    logp = torch.zeros(4, 8, dtype=torch.float64)
    parts = (slice(0, 2), slice(2, 4))
    theirs = {how: -sum(trl_grpo(how, logp[rows], adv[rows], mask=mask[rows], accumulate=2, tokens=20.0).item() for rows in parts)
              for how in ("bnpo", "dapo", "grpo", "dr_grpo")}
    whole = clipped_surrogate(logp, logp, adv)
    ours = sum(aggregate(whole[rows], mask[rows], "token_mean", total=20) for rows in parts).item()
    assert theirs == pytest.approx({"bnpo": 0.625, "dapo": 0.4, "grpo": 0.625, "dr_grpo": 8 / 36}) and ours == pytest.approx(0.4)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "sapo", "cispo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_sampler_mismatch_weighs_the_surrogate_but_not_the_kl(loss_type, level):
    """The importance weights multiply the surrogate; the KL is added afterwards, unweighted; tokens of weight 0 stay in the denominator."""
    logp, old, ref, adv = columns()
    weights = importance_ratio(old, old + normal(8, 6, seed=7, scale=0.7))
    weights = masked_weights(weights, 1.5, floor=0.5) if level == "token" else masked_weights(sequence_weights(old, ref, MASK), 1.5)[:, None]
    assert (weights == 0).any() and (weights > 0).any()
    ours = weights * surrogate(loss_type, logp, old, adv) - 0.1 * k3(logp, ref)
    same(trl_grpo(loss_type, logp, adv, old=old, ref=ref, beta=0.1, weights=weights), reduced(ours, loss_type), logp, atol=ATOL[loss_type])


def test_metrics():
    """kl and the clip fractions are means over the tokens under the mask, as ours are to be."""
    logp, old, ref, adv = columns()
    metrics = {}
    trl_grpo("grpo", logp, adv, old=old, ref=ref, beta=0.1, metrics=metrics)
    ratio = importance_ratio(logp.detach(), old)
    assert metrics["kl"] == pytest.approx([masked_mean(k3(logp, ref), MASK).item()], abs=1e-6)
    assert metrics["clip_ratio/low_mean"] == pytest.approx([masked_mean(((ratio < 0.8) & (adv < 0)).double(), MASK).item()], abs=1e-6)
    assert metrics["clip_ratio/high_mean"] == pytest.approx([masked_mean(((ratio > 1.2) & (adv > 0)).double(), MASK).item()], abs=1e-6)


def trl_rollouts(trainer, rewards, *, logps=(), mask=None, sampler=None, **attributes):
    """_generate_and_score_completions with a generator, reward functions and log-probs that are given. `rewards`: (B, number of functions)."""
    mask = torch.ones(len(rewards), 2).long() if mask is None else mask
    completions = [[7] * n for n in mask.sum(1).tolist()]
    generated = [[[1, 2]] * len(rewards), completions, None, [""] * len(rewards), sampler, {}, None, None]
    if trainer is RLOOTrainer:
        generated = [generated[0], generated[1], generated[3]]
    queue = list(logps)
    args = SimpleNamespace(per_device_train_batch_size=len(rewards), steps_per_generation=1, gradient_accumulation_steps=1,
                           gradient_checkpointing_kwargs=None)
    names = [f"f{i}" for i in range(rewards.shape[1])]
    self = stand_in(**{"args": args, "environment_factories": None, "environments": None, "tools": None, "_is_vlm": False,
                       "_generate": lambda prompts: generated,
                       "_tokenizer": SimpleNamespace(pad_token_id=0), "pad_to_multiple_of": None, "mask_truncated_completions": False,
                       "num_iterations": 1,
                       "use_vllm": sampler is not None, "vllm_importance_sampling_correction": sampler is not None, "beta": 0.0,
                       "num_generations": GROUP,
                       "_get_per_token_logps_and_entropies": lambda *_, **__: (queue.pop(0), None, None),
                       "_calculate_rewards": lambda *_: rewards.clone(),
                       "multi_objective_aggregation": "sum_then_normalize", "reward_weights": torch.ones(rewards.shape[1]), "reward_funcs": names,
                       "reward_func_names": names, "scale_rewards": "group", "reward_clip_range": None, "normalize_advantages": False,
                       "_logs": {"prompt": [], "completion": [], "advantages": [], "rewards": defaultdict(list), "extra": defaultdict(list)},
                       "_pending_extra_logs": defaultdict(list), "_pending_metrics": defaultdict(list), "ref_model": "reference", **attributes})
    return trainer._generate_and_score_completions(self, [{"prompt": "q"}] * len(rewards)), self._metrics["train"]


JUDGED = {"plain": REWARDS, "no verdict": torch.tensor([[1.0, NAN, 0.0, 0.5], [2.0, 1.0, -1.0, 0.25]]).double(),
          "one verdict, none": torch.tensor([[1.0, NAN, NAN, NAN], [NAN, NAN, NAN, NAN]]).double(),
          "equal": torch.tensor([[1.0] * 4, [0.0, 1.0, 0.0, 0.0]]).double()}


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("judged", JUDGED)
def test_group_advantages(judged, scale):
    """ddof 1, eps 1e-4; "batch" keeps the group's mean. A missing verdict is left out and gets advantage 0."""
    output, _ = trl_rollouts(GRPOTrainer, JUDGED[judged].view(-1, 1), scale_rewards=scale)
    # n / (n - 1) in float32
    torch.testing.assert_close(group_advantages(JUDGED[judged], scale=scale).flatten(), output["advantages"], atol=1e-7, rtol=0)


def test_group_advantages_of_several_rewards():
    """Reward functions are added with their weights; one without a verdict counts 0, as long as another has one."""
    two = torch.stack([REWARDS.flatten(), torch.tensor([1.0, NAN, 0, 1, 0, 0, 1, NAN]).double()], dim=1)
    output, _ = trl_rollouts(GRPOTrainer, two, reward_weights=torch.tensor([1.0, 0.5]))
    combined = (REWARDS.flatten() + 0.5 * two[:, 1].nan_to_num(nan=0.0)).view(2, 4)
    torch.testing.assert_close(group_advantages(combined).flatten(), output["advantages"], atol=1e-7, rtol=0)


def test_deviation_rounding_error_taken_for_a_difference():
    """Eight float32 rewards of 0.7 have a "mean" that is 6e-8 off. TRL makes advantages of 6e-4 of it, and frac_reward_zero_std says 0 (isclose has
    atol 1e-8): no group without a signal. Ours tests max == min: exactly 0."""
    rewards = torch.full((1, 8), 0.7)
    output, metrics = trl_rollouts(GRPOTrainer, rewards.view(-1, 1), num_generations=8)
    assert metrics["frac_reward_zero_std"] == [0.0] and output["advantages"].abs().max().item() == pytest.approx(5.96e-4, rel=1e-2)
    assert (group_advantages(rewards) == 0).all()


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_mismatch_weights(mode):
    """learner / sampler: per token, or the product over the completion without any normalisation; cut to [floor, cap], or 0 outside."""
    _, old, behavior, _ = columns()
    sampler = [row[:n].tolist() for row, n in zip(behavior, LENGTHS)]
    low = 0.5 if mode.endswith("mask") else None
    output, _ = trl_rollouts(GRPOTrainer, REWARDS.view(-1, 1), logps=[old], mask=MASK, sampler=sampler, vllm_importance_sampling_mode=mode,
                             vllm_importance_sampling_clip_min=low, vllm_importance_sampling_clip_max=1.5)
    ratio = importance_ratio(old, behavior) if mode.startswith("token") else sequence_weights(old, behavior, MASK)[:, None]
    ours = truncated_weights(ratio, 1.5) if mode.endswith("truncate") else masked_weights(ratio, 1.5, floor=0.5)
    seen = MASK.bool() if mode.startswith("token") else torch.ones(8, 1).bool()
    assert (ours[seen] != ratio[seen]).any()
    # TRL holds the sampler's in float32
    torch.testing.assert_close(ours[seen], output["importance_sampling_ratio"].double()[seen], atol=1e-6, rtol=0)


@pytest.mark.parametrize("beta", [0.0, 0.05])
@pytest.mark.parametrize("judged", ["plain", "no verdict", "one verdict, none", "equal"])
def test_rloo_advantages(judged, beta):
    """The reward minus the KL summed over the completion (k1 of the policy that sampled), against the mean of the others."""
    _, old, ref, _ = columns()
    output, metrics = trl_rollouts(RLOOTrainer, JUDGED[judged].view(-1, 1), logps=[old, ref], mask=MASK, beta=beta)
    shaped = JUDGED[judged] - beta * (k1(old, ref) * MASK).sum(1).view(2, 4)
    torch.testing.assert_close(leave_one_out_advantages(shaped).flatten(), output["advantages"], atol=1e-10, rtol=0)
    torch.testing.assert_close((old * MASK).sum(1), output["old_logps"], atol=1e-10, rtol=0)
    if beta:
        assert metrics["kl"] == pytest.approx([masked_mean(k1(old, ref), MASK).item()], abs=1e-6)


def test_rloo_loss():
    """The ratio of the whole completion, a product and not a mean, clipped like a token's: R1's eq. 1."""
    logp, old, _, _ = columns(seed=3)
    adv = leave_one_out_advantages(REWARDS).flatten()
    self = stand_in(epsilon_low=0.2, epsilon_high=0.28, _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None))
    ids = torch.zeros_like(MASK)
    theirs = RLOOTrainer._compute_loss(self, None,
                                       {"prompt_ids": ids[:, :2], "prompt_mask": MASK[:, :2], "completion_ids": ids, "completion_mask": MASK,
                                                    "old_logps": (old * MASK).sum(1), "advantages": adv})
    ratio = sequence_ratio(logp, old, MASK, length_normalised=False)
    assert ((ratio > 1.28) & (adv > 0)).any() and ((ratio < 0.8) & (adv < 0)).any()
    same(theirs, sequence_clipped_surrogate(logp, old, adv, MASK, clip_low=0.2, clip_high=0.28, length_normalised=False).mean(), logp)


def trl_reward_loss(scores, margin=None, centre=None):
    """RewardTrainer.compute_loss: chosen scores first, then the rejected ones."""
    inputs = {"attention_mask": torch.ones(len(scores), 2), **({} if margin is None else {"margin": margin})}
    return RewardTrainer.compute_loss(stand_in(args=SimpleNamespace(center_rewards_coefficient=centre)),
                                      lambda **_: SimpleNamespace(logits=scores[:, None]), inputs)


@pytest.mark.parametrize("margin", [None, torch.tensor([0.0, 0.5, 1.0, -0.5, 2.0]).double()], ids=["plain", "margin"])
def test_reward_model(margin):
    scores = normal(10, seed=3).requires_grad_()
    same(trl_reward_loss(scores, margin), -bradley_terry_loss(scores[:5], scores[5:], margin=margin).mean(), scores)


def test_deviation_pairs_instead_of_rankings():
    """InstructGPT takes all pairs of one prompt as one element, so that every prompt counts the same. TRL knows pairs only: a prompt with 4 ranked
    answers has six votes, one with 2 has one. Scores (1, 0) and (2, 1, 0, -1): 0.3133 and 0.2070, mean 0.2602; over seven pairs
    (0.3133 + 6 * 0.2070) / 7 = 0.2222. With one K for all the two agree."""
    two, four = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[2.0, 1.0, 0.0, -1.0]]).double()
    better, worse = torch.triu_indices(4, 4, offset=1)
    pairs = trl_reward_loss(torch.cat([two[0, :1], four[0, better], two[0, 1:], four[0, worse]]))
    assert torch.stack([ranking_loss(two), ranking_loss(four)]).mean().item() == pytest.approx(0.2602, abs=1e-4)
    assert pairs.item() == pytest.approx(0.2222, abs=1e-4)
    equal = normal(3, 4, seed=1).requires_grad_()
    same(trl_reward_loss(torch.cat([equal[:, better].flatten(), equal[:, worse].flatten()])), -ranking_loss(equal).mean(), equal)


PAIR_MASK = (torch.arange(6) < torch.tensor([6, 3, 1, 5, 2, 4, 6, 3])[:, None]).long()           # four chosen, four rejected


def pairs(seed=0):
    """Log-probs (2N, T): a leaf, and the reference's."""
    ref = -1 - normal(8, 6, seed=seed).abs()
    return (ref + normal(8, 6, seed=seed + 1)).requires_grad_(), ref


def outputs_of(logp, mask):
    zero = torch.zeros_like(logp)
    return SimpleNamespace(log_probs=logp * mask, entropy=zero, mean_logits=zero, is_top1=zero.bool())


def with_prompt(mask):
    """TRL's masks cover the prompt too, one token of it here, and its log-probs start at the second token."""
    return torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)


def trl_dpo(loss_type, logp, ref, mask=PAIR_MASK, *, beta=0.1, smoothing=0.0):
    """DPOTrainer._compute_loss with precomputed reference log-probs."""
    self = stand_in(args=SimpleNamespace(discopop_tau=0.05), ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
                    loss_types=[loss_type],
                    loss_weights=[1.0], beta=beta, label_smoothing=smoothing, use_weighting=False)
    ref_chosen, ref_rejected = (ref * mask).sum(1).chunk(2)
    full = with_prompt(mask)
    inputs = {"input_ids": torch.zeros_like(full), "attention_mask": torch.ones_like(full), "completion_mask": full, "ref_chosen_logps": ref_chosen,
              "ref_rejected_logps": ref_rejected}
    return DPOTrainer._compute_loss(self, lambda **_: outputs_of(logp, mask), inputs, return_outputs=False)


def sums(x, mask=PAIR_MASK):
    return (x * mask).sum(1).chunk(2)


def means(x, mask=PAIR_MASK):
    return masked_mean(x, mask, dim=1).chunk(2)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo(beta):
    logp, ref = pairs()
    same(trl_dpo("sigmoid", logp, ref, beta=beta), -dpo_loss(*sums(logp), *sums(ref), beta=beta).mean(), logp)
    same(trl_dpo("sigmoid_norm", logp, ref, beta=beta), -dpo_loss(*means(logp), *means(ref), beta=beta).mean(), logp)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_of_means(beta):
    logp, ref = pairs()
    same(trl_dpo("ipo", logp, ref, beta=beta), -ipo_loss(*means(logp), *means(ref), beta=beta).mean(), logp)


def test_deviation_ipo_averages():
    """IPO's eq. 17 has log-probs of completions, which are sums over tokens; TRL's DPO trainer averages. h_w = 1 + 1, h_l = -1/4 four times, beta
    0.1: sums (2 + 1 - 5)^2 = 4, means (1 + 1/4 - 5)^2 = 14.0625."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    logp, ref = torch.tensor([[1.0] * 4, [-0.25] * 4]).double(), torch.zeros(2, 4).double()
    assert ipo_loss(*sums(logp, mask), *sums(ref, mask)).item() == pytest.approx(4.0)
    assert trl_dpo("ipo", logp, ref, mask).item() == ipo_loss(*means(logp, mask), *means(ref, mask)).item() == pytest.approx(14.0625)


def test_deviation_robust_is_not_label_smoothing():
    """Both take a share eps of the labels to be wrong. cDPO mixes the two losses, (1 - eps) L + eps L'; TRL's "robust" (arXiv:2403.00409) undoes the
    noise, ((1 - eps) L - eps L') / (1 - 2 eps). Margin 0.3, eps 0.1: L = 0.5544, L' = 0.8544; 0.5844 and (0.4989 - 0.0854) / 0.8 = 0.5169."""
    mask, ref = torch.ones(2, 1).long(), torch.zeros(2, 1).double()
    logp = torch.tensor([[2.0], [-1.0]]).double().requires_grad_()
    ours, theirs = label_smoothed_dpo_loss(*sums(logp, mask), *sums(ref, mask)), trl_dpo("robust", logp, ref, mask, smoothing=0.1)
    assert ours.item() == pytest.approx(0.5844, abs=1e-4) and theirs.item() == pytest.approx(0.5169, abs=1e-4)
    clean, flipped = dpo_loss(*sums(logp, mask), *sums(ref, mask)), dpo_loss(*reversed(sums(logp, mask)), *reversed(sums(ref, mask)))
    same(theirs, -((0.9 * clean - 0.1 * flipped) / 0.8).sum(), logp)


@pytest.mark.parametrize("drift", [0.3, -0.3], ids=["KL > 0", "KL held at 0"])
def test_kto(drift):
    """z is the mean log-ratio of completions under other prompts, at least 0, without a gradient."""
    logp, ref = pairs()
    label = torch.tensor([True, False, True, True, False, False, True, False])
    mismatched = ref.sum(1) + drift
    self = stand_in(_compute_kl_logps=lambda model, batch: mismatched, calculate_KL=True, precompute_ref_logps=True, loss_type="kto", beta=0.2,
                    desirable_weight=1.0, undesirable_weight=1.5)
    full = with_prompt(PAIR_MASK)
    theirs = KTOTrainer._compute_loss(self, lambda **_: outputs_of(logp, PAIR_MASK), {
        "input_ids": torch.zeros_like(full), "attention_mask": torch.ones_like(full), "completion_mask": full, "label": label,
        "ref_logps": (ref * PAIR_MASK).sum(1),
        "ref_KL_logps": ref.sum(1)}, return_outputs=False)
    ours = kto_loss((logp * PAIR_MASK).sum(1), (ref * PAIR_MASK).sum(1), label, kl=drift, beta=0.2, undesirable_weight=1.5)
    same(theirs, -ours.mean(), logp)


def cpo_trainer():
    return pytest.importorskip("trl.experimental.cpo", reason="this TRL has no CPO trainer").CPOTrainer


def trl_cpo(loss_type, chosen, rejected, *, beta, gamma=0.5, smoothing=0.0):
    self = stand_in(alpha=0.0, loss_type=loss_type, beta=beta, simpo_gamma=gamma, label_smoothing=smoothing)
    return cpo_trainer().cpo_loss(self, chosen, rejected)[0].mean()


@pytest.mark.parametrize("beta, gamma", [(2.0, 1.0), (0.1, 0.5), (2.5, 0.0)])
def test_simpo(beta, gamma):
    """From logits on: TRL's mean per token is ours, and its simpo_gamma is our gamma_over_beta times beta."""
    logits = normal(8, 7, 5, seed=4).requires_grad_()
    ids = torch.randint(5, (8, 7), generator=torch.Generator().manual_seed(5))
    labels = torch.cat([torch.full((8, 1), -100), ids[:, 1:].masked_fill(PAIR_MASK == 0, -100)], dim=1)
    theirs = trl_cpo("simpo", *cpo_trainer().get_batch_logps(logits, labels, average_log_prob=True).chunk(2), beta=beta, gamma=gamma)
    logp = logits.log_softmax(-1)[:, :6].gather(-1, ids[:, 1:, None]).squeeze(-1)               # (B, 6)
    same(theirs, -simpo_loss(*means(logp), beta=beta, gamma_over_beta=gamma / beta).mean(), logits)


def test_deviation_simpo_margin():
    """gamma is added after beta has multiplied: TRL's defaults, beta 0.1 and gamma 0.5, ask for a lead of 5 nats per token; the paper asks for about
    0.5. Log-probs -1 and -1.5: -log sigmoid(0.05 - 0.5) = 0.9432 there, with gamma_over_beta 0.5 -log sigmoid(0) = 0.6931 here."""
    chosen, rejected = torch.tensor([-1.0]).double(), torch.tensor([-1.5]).double()
    assert trl_cpo("simpo", chosen, rejected, beta=0.1).item() == pytest.approx(0.9432, abs=1e-4)
    assert simpo_loss(chosen, rejected, beta=0.1, gamma_over_beta=5.0).item() == pytest.approx(0.9432, abs=1e-4)
    assert simpo_loss(chosen, rejected, beta=0.1, gamma_over_beta=0.5).item() == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_lives_in_cpo(smoothing):
    """cDPO's mixture is in TRL's CPO trainer, which has no reference: ours with a reference of 0."""
    logp, _ = pairs()
    zero = torch.zeros(4).double()
    same(trl_cpo("sigmoid", *sums(logp), beta=0.3, smoothing=smoothing),
         -label_smoothed_dpo_loss(*sums(logp), zero, zero, beta=0.3, smoothing=smoothing).mean(), logp)


def test_soft_overlong_punishment():
    lengths = [0, 1, 79, 80, 81, 90, 99, 100, 101, 500]
    theirs = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)([[1] * n for n in lengths])
    assert overlong_penalty(torch.tensor(lengths), max_length=100, cache=20).tolist() == pytest.approx(theirs)
