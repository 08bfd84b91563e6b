"""One batch, every convention: what each code base would compute from it.

A reader who comes from another code base finds its number here. There are two prompts with four
completions each. Only the first answer is right; the second group has no spread. Each expected
number is derived in the comment above it, with fractions, from the literals below. The names are
those of the projects that count that way. A convention that is a slip is in the table too, made of
our functions, and says so.
"""

from functools import partial

import pytest
import torch

from minirl.equations.advantages import (
    batch_mean_advantages,
    dynamic_sampling,
    gae,
    group_advantages,
    leave_one_out_advantages,
    maxrl_advantages,
    opo_advantages,
)
from minirl.equations.coefficients import grpo_coefficient
from minirl.equations.inference_time import majority_vote, pass_at_k
from minirl.equations.kl import corrected_k3, k1, k2, k3, kl_shaped_rewards
from minirl.equations.objectives import (
    cispo,
    clipped_surrogate,
    clipped_value_loss,
    dual_clipped_surrogate,
    policy_gradient,
    sequence_clipped_surrogate,
    sequence_ratio,
    value_loss,
)
from minirl.equations.preferences import dpo_loss, ipo_loss, label_smoothed_dpo_loss, simpo_loss
from minirl.equations.reduce import aggregate, masked_mean, masked_whiten


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def ragged(*rows, fill):
    return tensor([list(row) + [fill] * (4 - len(row)) for row in rows])


# ---- the batch

REWARDS = tensor([[1, 0, 0, 0], [0.7, 0.7, 0.7, 0.7]])  # (P, G)
# 20 tokens, 10 in each group; the last of each row is its EOS
LENGTHS = torch.tensor([1, 2, 3, 4, 4, 3, 2, 1])
MASK = (torch.arange(4) < LENGTHS[:, None]).long()  # (B, T)
# pi / pi_old
RATIO = ragged([1.5], [0.5, 1], [1, 2, 1], [5, 1, 1, 0.5],
               [1, 1, 1, 1], [1, 1, 1], [1, 1], [1], fill=1.0)
# pi / ref
OVER_REF = ragged([2], [2, 2], [2, 2, 2], [2, 2, 2, 2],
                  [0.5] * 4, [1, 1, 1], [1, 1], [1], fill=1.0)
OLD = tensor([[0.2] * 4] * 8).log()
LOGP = OLD + RATIO.log()  # row 0: 0.3; row 3: 1, 0.2, 0.2, 0.1
REF = LOGP - OVER_REF.log()
ADV = tensor([0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0])  # reward - mean of the group
A = ADV[:, None].expand(8, 4)
SURROGATE = clipped_surrogate(LOGP, OLD, A)
# the tokens with ratio 3/2, 1/2, 2, 5; A = 3/4, then -1/4
SELECTED = (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 0]))
ONLY_FIRST = slice(0, 4)  # the first group, where a group without spread is dropped


# ---- shorthands

def slopes(objective):
    """d objective / d logp of the four selected tokens."""
    leaf = LOGP.clone().requires_grad_()
    return torch.autograd.grad(objective(leaf).sum(), leaf)[0][SELECTED]


def first(rewards):
    """Advantage of the right answer, and of a wrong one."""
    return rewards[0, :2]


def token_mean(x, mask=MASK):
    return aggregate(x, mask, "token_mean")


def ratios(length_normalised):
    """The ratios of the first group's sequences."""
    return sequence_ratio(LOGP, OLD, MASK, length_normalised=length_normalised)[:4]


def of_sequences(length_normalised, low=0.2, high=0.2):
    return sequence_clipped_surrogate(LOGP, OLD, ADV, MASK, clip_low=low, clip_high=high,
                                      length_normalised=length_normalised)


def score_on(lengths, values):
    """GAE of a score of 1 on the last slot of a row of that length: gamma 1, lambda 0.95, no KL."""
    mask = (torch.arange(5) < lengths).long()[None]
    zero = torch.zeros(1, 5).double()
    rewards = kl_shaped_rewards(tensor([1.0]), zero, zero, mask, 0.0)
    return gae(rewards, tensor([values]), mask)[0][0]


def shaped(how):
    """RLOO's advantages when the KL (0.1 log 2 for each token of the first group) is in the reward,
    summed or averaged over the completion."""
    k = k1(LOGP, REF)
    kl = (k * MASK).sum(1) if how == "sum" else masked_mean(k, MASK, dim=1)
    return leave_one_out_advantages(REWARDS - 0.1 * kl.view(2, 4))


def micro_batches(how):
    """Rows 0-1 (3 tokens) and 2-7 (17 tokens): each divided by its own tokens, or by the batch's
    20."""
    rows = (slice(0, 2), slice(2, 8))
    if how == "own":
        return sum(token_mean(SURROGATE[r], MASK[r]) for r in rows) / 2
    return sum(aggregate(SURROGATE[r], MASK[r], "token_mean", total=20) for r in rows)


def pair(x, mean=False):
    """Row 0, chosen, beside row 3, rejected: lengths 1 and 4."""
    rows = masked_mean(x, MASK, dim=1) if mean else (x * MASK).sum(1)
    return rows[0:1], rows[3:4]


def robust():
    """TRL's "robust" (arXiv:2403.00409), made of two of our losses: it undoes the noise, where
    label smoothing mixes it in."""
    (chosen, rejected), (ref_chosen, ref_rejected) = pair(LOGP), pair(REF)
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected)
    swapped = dpo_loss(rejected, chosen, ref_rejected, ref_chosen)
    return (0.9 * loss - 0.1 * swapped) / 0.8


VALUES = [0.5, 0.6, 0.8, 0.9, 0.7]
V, V_OLD, RETURNS = tensor([1.0, 0.3, -0.5]), tensor([0.5, 0.0, 0.0]), tensor([1.0, 1.0, 1.0])
TO_WHITEN = A * MASK  # 0.75 once, -0.25 nine times, 0 ten times


# ---- the table: for each question, whose answer, how, and the number

TABLE = {
    # Deviations 3/4 and -1/4, squares 9/16 + 3/16 = 3/4: std sqrt(1/4) = 0.5 with ddof 1,
    # sqrt(3/16) = 0.433013 with ddof 0
    "std and eps": [
        # 0.75 / 0.5001
        ("ddof 1, 1e-4: TRL, simple_GRPO, reasoning-from-scratch; ours",
         lambda: first(group_advantages(REWARDS)), [1.499700, -0.499900]),
        ("ddof 1, 1e-6: verl",
         lambda: first(group_advantages(REWARDS, eps=1e-6)), [1.499997, -0.499999]),
        ("ddof 1, 1e-8: tiny-grpo, rlhf-book, oat",
         lambda: first(group_advantages(REWARDS, eps=1e-8)), [1.5, -0.5]),
        # 0.75 / 0.433113
        ("ddof 0, 1e-4: GRPO-Zero, nano-aha",
         lambda: first(group_advantages(REWARDS, ddof=0)), [1.731651, -0.577217]),
        # 0.5 / sqrt(1/2)
        ("two samples, ddof 1",
         lambda: group_advantages(tensor([[1, 0]]), eps=0.0)[0], [0.707107, -0.707107]),
        # 0.5 / sqrt(1/4)
        ("two samples, ddof 0",
         lambda: group_advantages(tensor([[1, 0]]), eps=0.0, ddof=0)[0], [1.0, -1.0]),
    ],
    # The clipped surrogate over the first group sums to -2.5 (see "mean over what"). The second
    # group adds nothing but its ten tokens.
    "group without spread": [
        # -2.5 / 20
        ("kept, with advantage 0: TRL, ours", lambda: token_mean(SURROGATE), -0.125),
        # -2.5 / 10
        ("dropped: simple_GRPO, DAPO",
         lambda: token_mean(SURROGATE[ONLY_FIRST], MASK[ONLY_FIRST]), -0.25),
        ("which prompts DAPO keeps", lambda: dynamic_sampling(REWARDS).double(), [1.0, 0.0]),
        # Row 4 has A = 0 and ref / pi = 2: its slope is 0 + 0.1 (2 - 1), from the KL. Row 0 has
        # 0.75 + 0.1 (1/2 - 1). On-policy.
        ("GRPO's coefficient, rows 0 and 4",
         lambda: grpo_coefficient(A, LOGP, REF, kl_coef=0.1)[[0, 4], 0], [0.70, 0.10]),
    ],
    # In the reward: 1 2 3 4 tokens of log 2 each, times 0.1
    "where the KL goes": [
        # 1 - 0.1 log 2 + 0.1 log 2 (2 + 3 + 4) / 3 = 1 + 0.2 log 2
        ("in the reward, summed: RLOO, InstructGPT, OpenRLHF, TRL",
         lambda: shaped("sum")[0, 0], 1.138629),
        # the penalties cancel
        ("in the reward, averaged: rlhf-book", lambda: shaped("mean")[0, 0], 1.0),
        # Row 3, four tokens: -0.1 log 2 on each, the score (0) on the last
        ("in the reward, per token: InstructGPT, PPO",
         lambda: kl_shaped_rewards(REWARDS.flatten(), LOGP, REF, MASK, 0.1)[3], [-0.069315] * 4),
        # -0.125 minus 0.1 times the mean of k3
        ("in the loss: GRPO, TRL with beta 0.1",
         lambda: token_mean(SURROGATE - 0.1 * k3(LOGP, REF)), -0.140794),
        ("nowhere: DAPO, Dr. GRPO, nanochat", lambda: token_mean(SURROGATE), -0.125),
    ],
    # Ten tokens with pi / ref = 2, four with 1/2, six with 1; over 20. log 2 = 0.693147, half its
    # square 0.240227
    "KL": [
        # (10 - 4) 0.693147 / 20
        ("k1: TRL, OpenRLHF, verl", lambda: masked_mean(k1(LOGP, REF), MASK), 0.207944),
        ("k1 with the opposite sign: rlhf-book",
         lambda: masked_mean(k1(REF, LOGP), MASK), -0.207944),
        # 14 * 0.240227 / 20
        ("k2", lambda: masked_mean(k2(LOGP, REF), MASK), 0.168159),
        # (10 (1/2 + log 2 - 1) + 4 (2 - log 2 - 1)) / 20
        ("k3: TRL, tiny-grpo, nano-aha, simple_GRPO, verl",
         lambda: masked_mean(k3(LOGP, REF), MASK), 0.157944),
        # (10 * 0.306853 + 4 * 0.193147) / 20
        ("k3, flipped: rlhf-book", lambda: masked_mean(k3(REF, LOGP), MASK), 0.192056),
        # The ratios of the first group add up to 1.5 + 1.5 + 4 + 7.5 = 14.5:
        # (14.5 * 0.193147 + 4 * 0.306853) / 20
        ("rho k3: DeepSeek-V3.2, TRL use_bias_correction_kl",
         lambda: masked_mean(corrected_k3(LOGP, OLD, REF), MASK), 0.201402),
    ],
    # Clip 0.2. Row 0: 1.2 * 3/4 = 0.9. Row 1: -(0.8 + 1)/4 = -0.45. Row 2: -(1 + 2 + 1)/4 = -1.
    # Row 3: -(5 + 1 + 1 + 0.8)/4 = -1.95. Sum -2.5
    "mean over what": [
        # (0.9 - 0.225 - 1/3 - 0.4875) / 8
        ("per sequence: GRPO, TRL grpo, tiny-grpo, simple_GRPO, rlhf-book",
         lambda: aggregate(SURROGATE, MASK, "sequence_mean"), -0.018229),
        # -2.5 / 20, in any micro-batches
        ("all tokens: DAPO, TRL dapo, GRPO-Zero, nano-aha",
         lambda: micro_batches("whole"), -0.125),
        # (0.45 / 3 - 2.95 / 17) / 2
        ("a micro-batch's tokens: TRL bnpo, rlhf-book dapo",
         lambda: micro_batches("own"), -0.011765),
        # -2.5 / 8
        ("sum per sequence: RLOO, reasoning-from-scratch (over 8 prompts' samples)",
         lambda: aggregate(SURROGATE, MASK, "sequence_sum"), -0.3125),
    ],
    "constant total": [
        ("max_completion_length 5: TRL dr_grpo",
         lambda: aggregate(SURROGATE, MASK, "constant", total=8 * 5), -0.0625),
        ("generate_max_length 3000: oat, understand-r1-zero",
         lambda: aggregate(SURROGATE, MASK, "constant", total=8 * 3000), -1.041667e-4),
    ],
    # Products 3/2, 1/2, 2, 5/2; roots 3/2, 0.707107, 1.259921, 1.257433
    "ratio of a sequence": [
        ("product: R1, TRL RLOO", lambda: ratios(False), [1.5, 0.5, 2.0, 2.5]),
        ("geometric mean: GSPO, TRL sequence",
         lambda: ratios(True), [1.5, 0.707107, 1.259921, 1.257433]),
    ],
    # With clip 0.2 row 0 is 0.9, row 1 -0.2 (0.8 is the larger), rows 2 and 3 -ratio / 4
    "ratio per token or per sequence": [
        ("per token: PPO, GRPO", lambda: aggregate(SURROGATE, MASK, "sequence_mean"), -0.018229),
        # (0.9 - 0.2 - 0.5 - 0.625) / 8
        ("product: R1 eq. 1, TRL RLOO", lambda: of_sequences(False).mean(), -0.053125),
        # (0.9 - 0.2 - 0.314980 - 0.314358) / 8
        ("geometric mean: GSPO", lambda: of_sequences(True).mean(), 0.008833),
        # (0.7503 - 0.249925 - 0.629339) / 8
        ("GSPO's own 3e-4 and 4e-4", lambda: of_sequences(True, 3e-4, 4e-4).mean(), -0.016120),
        # (0.9 - 2 * 0.2 - 3 * 0.314980 - 4 * 0.314358) / 20: every token of a row counts the
        # row's ratio
        ("geometric mean under a token sum: TRL dapo",
         lambda: token_mean(of_sequences(True)[:, None].expand(8, 4)), -0.085119),
    ],
    # Over 20 tokens. What changes against -2.5 is row 0 (A > 0, ratio 3/2) and the token of row 3
    # with ratio 5 (A < 0)
    "clip": [
        ("0.2, 0.2: PPO", lambda: token_mean(SURROGATE), -0.125),
        # +0.08 * 3/4 = +0.06
        ("0.2, 0.28: DAPO",
         lambda: token_mean(clipped_surrogate(LOGP, OLD, A, clip_high=0.28)), -0.122),
        # -4/4 for -5/4
        ("delta 4: INTELLECT-2, TRL",
         lambda: token_mean(dual_clipped_surrogate(LOGP, OLD, A, cap=4.0)), -0.1125),
        # -3/4 for -5/4
        ("dual clip 3: verl",
         lambda: token_mean(dual_clipped_surrogate(LOGP, OLD, A, cap=3.0)), -0.10),
        # nothing is clipped: 1.125 - 0.375 - 1 - 1.875 = -2.125
        ("10: R1, RL stage 1",
         lambda: token_mean(clipped_surrogate(LOGP, OLD, A, clip_low=10.0, clip_high=10.0)),
         -0.10625),
    ],
    # For ratios 3/2 1/2 2 5 and A = 3/4 -1/4 -1/4 -1/4: ratio A, or 0 where clipped
    "slope under a clip": [
        ("PPO, GRPO, DAPO",
         lambda: slopes(lambda x: clipped_surrogate(x, OLD, A)), [0.0, 0.0, -0.5, -1.25]),
        ("dual clip 3, delta 4",
         lambda: slopes(lambda x: dual_clipped_surrogate(x, OLD, A, cap=4.0)),
         [0.0, 0.0, -0.5, 0.0]),
        ("no ratio: nanochat, GRPO-Zero, nano-aha",
         lambda: slopes(lambda x: policy_gradient(x, A)), [0.75, -0.25, -0.25, -0.25]),
    ],
    "slope of CISPO": [
        ("cap 1 + 0.2: the paper",
         lambda: slopes(lambda x: cispo(x, OLD, A, cap=1.2)), [0.9, -0.125, -0.3, -0.3]),
        ("cap 0.2: TRL with epsilon_high 0.2",
         lambda: slopes(lambda x: cispo(x, OLD, A, cap=0.2)), [0.15, -0.05, -0.05, -0.05]),
        ("cap 5: TRL as recommended",
         lambda: slopes(lambda x: cispo(x, OLD, A, cap=5.0)), [1.125, -0.125, -0.5, -1.25]),
        ("lower bound 0.8 too: rlhf-book",
         lambda: slopes(lambda x: RATIO.clamp(0.8, 1.2) * policy_gradient(x, A)),
         [0.9, -0.2, -0.3, -0.3]),
    ],
    # Without each row's EOS 12 tokens are left, and row 0, the only right answer, has none:
    # -0.2 - 0.75 - 1.75 = -2.7
    "EOS": [
        ("trained: TRL, GRPO-Zero, nano-aha, ours", lambda: token_mean(SURROGATE), -0.125),
        # -2.7 / 12
        ("masked where pad == eos: tiny-grpo, rlhf-book, simple_GRPO",
         lambda: token_mean(SURROGATE, (torch.arange(4) < LENGTHS[:, None] - 1).long()), -0.225),
    ],
    # lambda 0.95, gamma 1, V = .5 .6 .8 (.9 .7 after the EOS)
    "slot of the score": [
        # 1 - .8 = .2; .2 + .95 * .2 = .39; .1 + .95 * .39 = .4705
        ("the EOS: rlhf-book, nanoRLHF, ours",
         lambda: score_on(3, VALUES), [0.4705, 0.39, 0.2, 0.0, 0.0]),
        # 1 - .9 = .1; .1 + .95 * .1 = .195; .2 + .95 * .195 = .38525;
        # .1 + .95 * .38525 = .4659875
        ("one slot after it: TRL PPO",
         lambda: score_on(4, VALUES), [0.4659875, 0.38525, 0.195, 0.1, 0.0]),
        # 1 - .7 = .3; -.2 + .95 * .3 = .085; .1 + .95 * .085 = .18075;
        # .2 + .95 * .18075 = .3717125; .1 + .95 * .3717125 = .453126875
        ("last index of the row: lm-human-preference-details",
         lambda: score_on(5, VALUES), [0.453126875, 0.3717125, 0.18075, 0.085, 0.3]),
    ],
    # The token of row 0. Mean (0.75 - 9/4) / 20 = -0.075; sum of squares
    # 9/16 + 9/16 - 20 * 0.005625 = 1.0125; deviation 0.825; eps 1e-8 takes 3e-7
    "whitening": [
        # 0.825 / sqrt(1.0125 / 19)
        ("batch, ddof 1: TRL PPO, ours", lambda: masked_whiten(TO_WHITEN, MASK)[0, 0], 3.573824),
        # 0.825 / sqrt(1.0125 / 20) = 0.825 / 0.225
        ("batch, ddof 0", lambda: masked_whiten(TO_WHITEN, MASK, ddof=0)[0, 0], 3.666666),
        # 3.573824 - 0.075
        ("no shift (rewards: TRL, lm-human-preference-details)",
         lambda: masked_whiten(TO_WHITEN, MASK, shift_mean=False)[0, 0], 3.498824),
        # the first group as a minibatch: mean -0.15, squares 1.125 - 0.225 = 0.9,
        # 0.9 / sqrt(0.9 / 9)
        ("per minibatch: cleanrl",
         lambda: masked_whiten(TO_WHITEN[ONLY_FIRST], MASK[ONLY_FIRST])[0, 0], 2.846050),
        ("none: rlhf-book", lambda: TO_WHITEN[0, 0], 0.75),
    ],
    # V = 1, 0.3, -0.5, V_old = 0.5, 0, 0, return 1: squares 0, 0.49, 2.25. Clipped to 0.7, 0.2,
    # -0.2: 0.09, 0.64, 1.44. The larger: 0.09, 0.64, 2.25
    "value loss": [
        # 2.98 / 6
        ("half, clipped: TRL, verl, cleanrl",
         lambda: clipped_value_loss(V, V_OLD, RETURNS).mean(), 0.496667),
        # 2.74 / 6
        ("half, not clipped", lambda: value_loss(V, RETURNS).mean(), 0.456667),
        # 2.74 / 3
        ("PPO's eq. 9: no half", lambda: 2 * value_loss(V, RETURNS).mean(), 0.913333),
    ],
    # Mean 1/4; the others' mean is 0 for the right answer, 1/3 for a wrong one
    "advantage": [
        ("REINFORCE, no baseline", lambda: first(REWARDS), [1.0, 0.0]),
        ("Dr. GRPO, nanochat, oat",
         lambda: first(group_advantages(REWARDS, scale="none")), [0.75, -0.25]),
        # mean of all 3.8 / 8
        ("REINFORCE, the batch's mean",
         lambda: first(batch_mean_advantages(REWARDS)), [0.525, -0.475]),
        ("RLOO, 4/3 of Dr. GRPO's",
         lambda: first(leave_one_out_advantages(REWARDS)), [1.0, -0.333333]),
        ("GRPO", lambda: first(group_advantages(REWARDS)), [1.499700, -0.499900]),
        # mean of all 3.8 / 8 = 0.475; squares around it 0.275625 + 3 * 0.225625 + 4 * 0.050625
        # = 1.155; / 7 = 0.165, sqrt 0.406202; 0.75 / 0.406302
        ("TRL scale_rewards batch",
         lambda: first(group_advantages(REWARDS, scale="batch")), [1.845918, -0.615306]),
        # (1 - 1/4) / (1/4)
        ("MaxRL", lambda: first(maxrl_advantages(REWARDS)), [3.0, -1.0]),
        # baseline 1 / 10: one right token of ten
        ("OPO", lambda: first(opo_advantages(REWARDS, LENGTHS.view(2, 4))), [0.9, -0.1]),
    ],
    # One right of four, k = 2: no right one in C(3, 2) = 3 of C(4, 2) = 6 pairs
    "pass@2": [
        ("unbiased: human-eval, search-and-learn, ours", lambda: pass_at_k(4, 1, 2), 0.5),
        # 1 - 3/10
        ("unbiased, of 5, 2 right", lambda: pass_at_k(5, 2, 2), 0.7),
    ],
    # Row 0 chosen (1 token, h = log 2), row 3 rejected (4 tokens, h = 4 log 2), beta 0.1:
    # 1 / (2 beta) = 5
    "IPO": [
        # (3 log 2 + 5)^2 = 7.079442^2
        ("sums: the paper, rlhf-book, ours",
         lambda: ipo_loss(*pair(LOGP), *pair(REF))[0], 50.118493),
        # (log 2 - log 2 - 5)^2
        ("means: TRL DPO and CPO",
         lambda: ipo_loss(*pair(LOGP, True), *pair(REF, True))[0], 25.0),
    ],
    # Means per token: log 0.3 = -1.203973 and log(0.2 * 0.2 * 0.1) / 4 = -1.380365; difference
    # 0.176392. -log sigmoid(x) = log(1 + e^-x)
    "SimPO": [
        # x = 2 (0.176392 - 0.5)
        ("gamma / beta 0.5, beta 2: the authors, rlhf-book, ours",
         lambda: simpo_loss(*pair(LOGP, True))[0], 1.068227),
        # x = 0.017639 - 0.5
        ("gamma 0.5, beta 0.1: TRL's defaults",
         lambda: simpo_loss(*pair(LOGP, True), beta=0.1, gamma_over_beta=5.0)[0], 0.963134),
        # x = 0.352783 - 0.5
        ("gamma 0.5, beta 2, read as gamma",
         lambda: simpo_loss(*pair(LOGP, True), gamma_over_beta=0.25)[0], 0.769461),
    ],
    # beta (h_w - h_l) = -0.3 log 2: L = log(1 + 2^0.3) = 0.802515, and with the labels swapped
    # L' = L - 0.3 log 2 = 0.594570
    "DPO": [
        ("plain: TRL sigmoid", lambda: dpo_loss(*pair(LOGP), *pair(REF))[0], 0.802515),
        # 0.9 L + 0.1 L'
        ("smoothing 0.1: cDPO, the DPO repository, rlhf-book",
         lambda: label_smoothed_dpo_loss(*pair(LOGP), *pair(REF))[0], 0.781720),
        # (0.9 L - 0.1 L') / 0.8
        ("robust 0.1: TRL", lambda: robust()[0], 0.828508),
    ],
    # Log-ratios log 3/2, log 1/2 twice, log 2, log 5, else 0: half squares
    # 0.082201 + 3 * 0.240227 + 1.295145 = 2.098026
    "approx_kl": [
        # / 20
        ("k2 over the tokens", lambda: masked_mean(k2(LOGP, OLD), MASK), 0.104901),
        # / 32
        ("k2 over all slots, padding too: TRL PPO", lambda: k2(LOGP, OLD).mean(), 0.065563),
        # 0.094535 + 2 * 0.193147 + 0.306853 + 2.390562 = 3.178244
        ("rho - 1 - log rho: cleanrl", lambda: masked_mean(k3(OLD, LOGP), MASK), 0.158912),
    ],
}
ROWS = {f"{question}: {who}": (compute, expected)
        for question, answers in TABLE.items() for who, compute, expected in answers}


@pytest.mark.parametrize("compute, expected", ROWS.values(), ids=ROWS)
def test_convention(compute, expected):
    actual = torch.as_tensor(compute(), dtype=torch.float64)
    tolerance = 6e-7 if actual.abs().max() > 1e-3 else 6e-11
    assert actual.tolist() == pytest.approx(expected, abs=tolerance, rel=0)


@pytest.mark.parametrize("question", TABLE)
def test_conventions_differ(question):
    """A question with one answer would be no question: at least two numbers differ."""
    assert len({str(expected) for _, _, expected in TABLE[question]}) > 1


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("eps", [1e-4, 1e-6, 1e-8])
def test_no_spread_no_advantage(ddof, eps):
    """In float32 the mean of equal rewards is off by up to 6e-8.

    eps 1e-8 makes an advantage of 0.8 of that, for all samples alike (tiny-grpo, rlhf-book, oat),
    and 1e-4 one of 6e-4 (TRL). Here max == min is tested first: exactly 0, whatever the reward and
    the size of the group.
    """
    for value in (0.1, 0.3, 0.7, 1.1, 2.3, -0.7, 1e6):
        for size in (2, 3, 7, 8, 16, 33):
            rewards = torch.full((1, size), value)
            assert (group_advantages(rewards, ddof=ddof, eps=eps) == 0).all()


def test_clip_on_the_wrong_side():
    """With max in the place of min for A < 0 (reasoning-from-scratch, chapter 7) ratio 1/2 would
    have slope -1/8 and ratio 5 none: a bad token that is already rare is pushed on, and one that
    became likely is left alone. Ours: 0 and -5/4."""
    slope = slopes(partial(clipped_surrogate, old_logp=OLD, adv=A))
    assert slope[[1, 3]].tolist() == [0.0, pytest.approx(-1.25)]


def test_pass_at_k_against_other_estimators():
    """Four samples, the first of them right, k = 2. The unbiased estimate is 1/2, the plug-in
    1 - (3/4)^2 = 7/16.

    "Any of the first two" (nanochat) is 1, and 0 if the right one came last: its mean over the four
    places is 2/4, but each value is 0 or 1.
    """
    right = REWARDS[0].tolist()
    rotations = [right[i:] + right[:i] for i in range(4)]
    first_two = [float(any(x == 1.0 for x in order[:2])) for order in rotations]
    assert first_two[0] == 1.0 and sum(first_two) / 4 == pass_at_k(4, 1, 2) == 0.5
    assert 1 - (1 - 1 / 4) ** 2 == 7 / 16 < pass_at_k(4, 1, 2)


@pytest.mark.parametrize("answers, winner", [
    (["4", "6", "6", "4"], "4"),
    (["6", "4", "4", "6"], "6"),
    ([None, "6", "4", "4", "6"], "6"),
    ([None, None], None),
])
def test_majority_ties(answers, winner):
    """Two votes each: the answer that came first wins (search-and-learn, ours). In
    reasoning-from-scratch, chapter 4, the result is None."""
    assert majority_vote(answers) == winner
