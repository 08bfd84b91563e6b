"""From rewards to advantages and importance weights: minirl.equations give what TRL's trainers
compute from a batch of completions. Skipped where TRL is not installed."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from minirl.equations.advantages import group_advantages, leave_one_out_advantages
from minirl.equations.kl import k1
from minirl.equations.mismatch import (
    importance_ratio,
    masked_weights,
    sequence_weights,
    truncated_weights,
)
from minirl.equations.reduce import masked_mean
from minirl.equations.rewards import overlong_penalty
from tests.parity.trl_stand_ins import (
    LENGTHS,
    MASK,
    NAN,
    NO_TRL,
    REWARDS,
    assert_close,
    columns,
    stand_in,
)

trl = pytest.importorskip("trl", reason=NO_TRL)

JUDGED = {
    "plain": REWARDS,
    "no verdict": torch.tensor([[1.0, NAN, 0.0, 0.5], [2.0, 1.0, -1.0, 0.25]]).double(),
    "one verdict, none": torch.tensor([[1.0, NAN, NAN, NAN], [NAN, NAN, NAN, NAN]]).double(),
    "equal": torch.tensor([[1.0] * 4, [0.0, 1.0, 0.0, 0.0]]).double(),
}


def trl_rollouts(trainer, rewards, *, logps=(), mask=None, sampler=None, **attributes):
    """Return what trainer._generate_and_score_completions returns, and the metrics that it logs.

    rewards: (B, number of reward functions). logps: what the policy and then the reference say of
    the completions. sampler: what the sampler said of them.
    """
    mask = torch.ones(len(rewards), 2).long() if mask is None else mask
    prompts, texts = [[1, 2]] * len(rewards), [""] * len(rewards)
    completions = [[7] * n for n in mask.sum(1).tolist()]
    if trainer is trl.RLOOTrainer:
        generated = [prompts, completions, texts]
    else:
        generated = [prompts, completions, None, texts, sampler, {}, None, None]
    args = SimpleNamespace(
        per_device_train_batch_size=len(rewards),
        steps_per_generation=1,
        gradient_accumulation_steps=1,
        gradient_checkpointing_kwargs=None,
    )
    queue = list(logps)
    names = [f"f{i}" for i in range(rewards.shape[1])]
    logs = {"prompt": [], "completion": [], "advantages": [], "rewards": defaultdict(list),
            "extra": defaultdict(list)}
    self = stand_in(**{
        "args": args,
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "_is_vlm": False,
        "_generate": lambda prompts: generated,
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "pad_to_multiple_of": None,
        "mask_truncated_completions": False,
        "num_iterations": 1,
        "use_vllm": sampler is not None,
        "vllm_importance_sampling_correction": sampler is not None,
        "beta": 0.0,
        "num_generations": 4,
        "_get_per_token_logps_and_entropies": lambda *_, **__: (queue.pop(0), None, None),
        "_calculate_rewards": lambda *_: rewards.clone(),
        "multi_objective_aggregation": "sum_then_normalize",
        "reward_weights": torch.ones(rewards.shape[1]),
        "reward_funcs": names,
        "reward_func_names": names,
        "scale_rewards": "group",
        "reward_clip_range": None,
        "normalize_advantages": False,
        "_logs": logs,
        "_pending_extra_logs": defaultdict(list),
        "_pending_metrics": defaultdict(list),
        "ref_model": "reference",
        **attributes,
    })
    output = trainer._generate_and_score_completions(self, [{"prompt": "q"}] * len(rewards))
    return output, self._metrics["train"]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("judged", JUDGED)
def test_group_advantages(judged, scale):
    """ddof 1, eps 1e-4; "batch" keeps the group's mean. A completion without a verdict is left out
    and has advantage 0. TRL has n / (n - 1) in float32."""
    rewards = JUDGED[judged]
    output, _ = trl_rollouts(trl.GRPOTrainer, rewards.view(-1, 1), scale_rewards=scale)
    ours = group_advantages(rewards, scale=scale).flatten()
    assert_close(ours, output["advantages"], atol=1e-7)


def test_group_advantages_of_several_rewards():
    """Rewards are added with their weights. One without a verdict counts 0, as long as another one
    has a verdict."""
    second = torch.tensor([1.0, NAN, 0, 1, 0, 0, 1, NAN]).double()
    both = torch.stack([REWARDS.flatten(), second], dim=1)  # (B, 2)
    output, _ = trl_rollouts(trl.GRPOTrainer, both, reward_weights=torch.tensor([1.0, 0.5]))
    combined = REWARDS + 0.5 * second.nan_to_num(nan=0.0).view(2, 4)
    assert_close(group_advantages(combined).flatten(), output["advantages"], atol=1e-7)


def test_deviation_rounding_error_taken_for_a_difference():
    """The "mean" of eight float32 rewards of 0.7 is 6e-8 off. TRL makes advantages of 6e-4 of it,
    and its frac_reward_zero_std says 0, as its isclose has atol 1e-8. Ours tests max == min:
    exactly 0."""
    rewards = torch.full((1, 8), 0.7)
    output, metrics = trl_rollouts(trl.GRPOTrainer, rewards.view(-1, 1), num_generations=8)
    assert metrics["frac_reward_zero_std"] == [0.0]
    assert output["advantages"].abs().max().item() == pytest.approx(5.96e-4, rel=1e-2)
    assert (group_advantages(rewards) == 0).all()


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate",
                                  "sequence_mask"])
def test_mismatch_weights(mode):
    """learner / sampler: per token, or the product over the completion, without a normalisation.
    "truncate" cuts the ratio to the cap, and "mask" makes it 0 outside of [floor, cap]. TRL has the
    sampler's log-probs in float32."""
    level, how = mode.split("_")
    _, old, behavior, _ = columns()
    sampler = [row[:n].tolist() for row, n in zip(behavior, LENGTHS, strict=True)]
    output, _ = trl_rollouts(
        trl.GRPOTrainer, REWARDS.view(-1, 1), logps=[old], mask=MASK, sampler=sampler,
        vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_max=1.5,
        vllm_importance_sampling_clip_min=0.5 if how == "mask" else None)

    if level == "token":
        ratio, seen = importance_ratio(old, behavior), MASK.bool()
    else:
        ratio, seen = sequence_weights(old, behavior, MASK)[:, None], torch.ones(8, 1).bool()
    if how == "truncate":
        ours = truncated_weights(ratio, 1.5)
    else:
        ours = masked_weights(ratio, 1.5, floor=0.5)
    assert (ours[seen] != ratio[seen]).any()
    assert_close(ours[seen], output["importance_sampling_ratio"].double()[seen], atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.05])
@pytest.mark.parametrize("judged", JUDGED)
def test_rloo_advantages(judged, beta):
    """The reward minus the KL summed over the completion (k1 of the policy that sampled), against
    the mean of the other completions."""
    _, old, ref, _ = columns()
    rewards = JUDGED[judged]
    output, metrics = trl_rollouts(trl.RLOOTrainer, rewards.view(-1, 1), logps=[old, ref],
                                   mask=MASK, beta=beta)
    shaped = rewards - beta * (k1(old, ref) * MASK).sum(1).view(2, 4)
    assert_close(leave_one_out_advantages(shaped).flatten(), output["advantages"])
    assert_close((old * MASK).sum(1), output["old_logps"])
    if beta:
        kl = masked_mean(k1(old, ref), MASK).item()
        assert metrics["kl"] == pytest.approx([kl], abs=1e-6)


def test_soft_overlong_punishment():
    rewards = pytest.importorskip("trl.rewards")
    punish = rewards.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    lengths = [0, 1, 79, 80, 81, 90, 99, 100, 101, 500]
    ours = overlong_penalty(torch.tensor(lengths), max_length=100, cache=20)
    assert ours.tolist() == pytest.approx(punish([[1] * n for n in lengths]))
