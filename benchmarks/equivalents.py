"""Mutants that no test can kill, as they change no result: name -> why.

A number in brackets counts: "1 -> 0 (3)" is the third such change in the function.
"""

from __future__ import annotations

TWO_D = "the tensor is 2-D, and its last dimension is the second"
ONE = "these differ with at most one verdict, where equal rewards give 0 anyway"
HIDDEN = "what is under the mask is taken out again at the end"
VERDICTS = "the verdicts are read, and not their weighted sum"
NO_SET = "no set of k holds what is there, so its share is 0"
EQUIVALENT: dict[str, str] = {
    "equations/advantages.py _mean: -1 -> 1": TWO_D,
    "equations/advantages.py _mean: -1 -> 1 (2)": TWO_D,
    "equations/advantages.py _mean: 1 -> 0 (3)": ONE,
    "equations/advantages.py _mean: judged.sum(-1, keepdim=True).clamp(min=1) "
    "-> judged.sum(-1, keepdim=True)":
        ONE,
    "equations/advantages.py _std: (count - ddof).clamp(min=1) -> count - ddof": ONE,
    "equations/advantages.py _std: -1 -> 1": TWO_D,
    "equations/advantages.py _std: 1 -> 0 (2)": ONE,
    "equations/advantages.py discounted_returns: 0 -> 1": "returns are advantages over values of 0",
    "equations/advantages.py dynamic_sampling: -1 -> 1": TWO_D,
    "equations/advantages.py group_advantages: -1 -> 1": TWO_D,
    "equations/advantages.py leave_one_out_advantages: (count - 1).clamp(min=1) -> count - 1": ONE,
    "equations/advantages.py leave_one_out_advantages: -1 -> 1": TWO_D,
    "equations/advantages.py leave_one_out_advantages: 1 -> 0 (3)": ONE,
    "equations/advantages.py maxrl_advantages: 1 -> 0":
        "a mean of 0 means rewards of 0, which are equal",
    "equations/advantages.py maxrl_advantages: mean > 0 -> mean >= 0":
        "a mean of 0 means rewards of 0, which are equal",
    "equations/advantages.py _share_of_sets: (count - 1).clamp(min=0) -> count - 1": NO_SET,
    "equations/advantages.py _share_of_sets: 0 -> 1 (2)": NO_SET,
    "equations/advantages.py _share_of_sets: behind.clamp(min=0) -> behind": NO_SET,
    "equations/advantages.py gdpo_advantages: rewards.sum(-1) -> rewards.mean(-1)":
        "there is no prompt, so no number",
    "equations/advantages.py gdpo_advantages: terms.abs().sum(-1) -> terms.abs().mean(-1)":
        "it only says how large rounding may be",
    "equations/advantages.py pass_at_k_advantages: -1 -> 1": TWO_D,
    "equations/advantages.py pass_at_k_advantages: -1 -> 1 (2)": TWO_D,
    "equations/advantages.py pass_at_k_advantages: -1 -> 1 (3)": TWO_D,
    "equations/advantages.py pass_at_k_advantages: -1 -> 1 (5)": TWO_D,
    "equations/advantages.py pass_at_k_advantages: 0.0 -> 1": NO_SET,
    "equations/advantages.py pass_at_k_advantages: 1 -> 0 (5)":
        "a sample gains nothing over itself",
    "equations/advantages.py optimal_baseline: -1 -> 1": TWO_D,
    "equations/advantages.py optimal_baseline: -1 -> 1 (2)": TWO_D,
    "equations/advantages.py optimal_baseline: 0.0 -> 1": "its weight is 0 already",
    "equations/advantages.py zero_spread: -1 -> 1": TWO_D,
    "equations/advantages.py zero_spread: -1 -> 1 (2)": TWO_D,
    "equations/inference_time.py majority_accuracy: 1 -> 0 (2)": "0 is even, and refused as such",
    "equations/inference_time.py _convolution: steps.clamp(min=0) -> steps":
        "what is below the diagonal is taken out by the where",
    "equations/inference_time.py plurality_accuracy: 0 -> 1 (4)":
        "where size <= k a column is added to none",
    "equations/inference_time.py plurality_accuracy: p > 0 -> p >= 0":
        "an answer that nobody gives has no vote",
    "equations/inference_time.py plurality_accuracy: rest < -1e-09 -> rest <= -1e-09":
        "1 minus a number near 1 is a multiple of 2^-53, and -1e-9 is none",
    "equations/kl.py _kl: 0 -> 1 (2)": "it is multiplied by p = 0",
    "equations/kl.py generalised_jsd: 10000.0 -> 10001.0": "e^-10001 is 0, too",
    "equations/kl.py kl_shaped_rewards: 0 -> 1 (2)": HIDDEN,
    "equations/kl.py kl_shaped_rewards: 0 -> 1 (3)": HIDDEN,
    "equations/objectives.py dppo: adv > 0 -> adv >= 0": "at A = 0 value and gradient are 0",
    "equations/objectives.py dual_clipped_surrogate: adv < 0 -> adv <= 0":
        "at A = 0 both sides are 0",
    "equations/objectives.py entropy: 0 -> 1 (2)": "it is multiplied by p = 0",
    "equations/objectives.py gspo_token: 0 -> 1": "the constant is subtracted from itself",
    "equations/objectives.py sapo: adv > 0 -> adv >= 0": "at A = 0 value and gradient are 0",
    "equations/process.py process_reward_loss: 0 -> 1": "a step without a label has 0 at the end",
    "equations/process.py process_reward_loss: 0 -> 1 (2)":
        "a step without a label has 0 at the end",
    "equations/reduce.py aggregate: 1 -> 0 (2)": "the sum of column sums is the sum of row sums",
    "equations/reduce.py explained_variance: 1 -> 0 (2)": "the outer where hides the quotient",
    "equations/reduce.py explained_variance: returns.detach() -> returns":
        "it is only compared, and a comparison has no gradient",
    "equations/reduce.py within_rounding: high.abs() -> high":
        "if high is negative, low is larger in size",
    "equations/schedules.py cosine_to_floor: step < warmup -> step <= warmup":
        "at step = warmup both branches give 1",
    "equations/sequence_objectives.py gmpo: adv > 0 -> adv >= 0":
        "at A = 0 value and gradient are 0",
    "equations/sequence_objectives.py vespo: adv >= 0 -> adv > 0":
        "at A = 0 value and gradient are 0",
    "lm/logprobs.py _gradient: 1.0 -> 0": "x / 1.0 is x, and only takes time",
    "lm/logprobs.py _statistics: -1 -> 1": TWO_D,
    "lm/logprobs.py _statistics: -1 -> 1 (2)": TWO_D,
    "lm/logprobs.py _statistics: -1 -> 1 (3)": TWO_D,
    "lm/logprobs.py _statistics: -1 -> 1 (4)": TWO_D,
    "lm/logprobs.py _statistics: -1 -> 1 (5)": TWO_D,
    "lm/logprobs.py _statistics: 1.0 -> 0": "x / 1.0 is x, and only takes time",
    "lm/logprobs.py _statistics: True -> False (2)": "the dimension is squeezed at once",
    "lm/logprobs.py linear_logprobs: False -> True (2)":
        "autocast leaves products with out= and sums in float32 as they are",
    "lm/rollouts.py micro_batches: True -> False (2)": "torch's sort on a CPU is stable either way",
    "lm/rollouts.py micro_batches: end < len(sizes) -> end <= len(sizes)":
        "behind the last row the tokens are the rest, and no share is larger than the rest",
    "train/dpo.py train_dpo: policy.detach() -> policy":
        "metrics are detached where they are added",
    "train/instructgpt.py rank_completions: 1.0 -> 0": VERDICTS,
    "train/r1.py good_completions: 1.0 -> 0": VERDICTS,
}
