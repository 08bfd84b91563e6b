# %%
# %pip install -q -e ..

# %% [markdown]
# # 09. One name, many losses
#
# *Divide by the length, by the standard deviation, over tokens or over answers: does it matter?*
#
# - **Paper**: DeepSeekMath, [arXiv:2402.03300](https://arxiv.org/abs/2402.03300), eq. 3; DAPO,
#   [arXiv:2503.14476](https://arxiv.org/abs/2503.14476), eq. 8; Dr. GRPO,
#   [arXiv:2503.20783](https://arxiv.org/abs/2503.20783), section 3; GSPO,
#   [arXiv:2507.18071](https://arxiv.org/abs/2507.18071), eqs. 5 and 7; DeepSeek-R1,
#   [arXiv:2501.12948](https://arxiv.org/abs/2501.12948), eq. 1
# - **Code**: `minirl/equations/reduce.py`: `aggregate`; `minirl/equations/advantages.py`;
#   `minirl/train/presets.py`
# - **Tests**: `tests/equations/test_reduce.py`, `tests/equations/test_advantages.py`
# - **Before this**: 05 (the clip), 08 (GRPO)
# - **Time**: 10 s on two CPU cores, with `MINIRL_FAST=1` as well
# - **Expect**: eight presets give four directions, and gradient norms from 0.05 to 4
# - **Sweep**: `minirl grpo --preset NAME` with `grpo`, `dr_grpo`, `dapo`, `rloo`, `maxrl`: compare
#   `completions/mean_length` and `grad_norm`, not the loss
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | loss and gradient, for other micro-batches | the same | means of means: pass the whole `total` |
# | length of wrong answers | grows no faster than that of right ones | look at 1/\|o\| |
# | `grad_norm` after a change of the mean | another scale | set `lr` and `max_grad_norm` anew |

# %%
import copy
import itertools
import math
import random
from functools import partial

import matplotlib.pyplot as plt
import torch

from lesson import BLUE, GREEN, GREY, RED, judge, judge_test, keep, show
from minirl.equations.advantages import (
    group_advantages,
    leave_one_out_advantages,
    maxrl_advantages,
    spread,
)
from minirl.equations.kl import k3
from minirl.equations.objectives import (
    clipped_surrogate,
    policy_gradient,
    sequence_clipped_surrogate,
    sequence_ratio,
)
from minirl.equations.reduce import aggregate, normaliser
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.testing.example import (
    ANSWERS,
    LENGTHS,
    MASK,
    NEW,
    OLD,
    REFERENCE,
    REWARDS,
    probabilities,
    token_logprobs,
)
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.presets import GRPO_PRESETS
from minirl.train.sft import SFTConfig, train_sft

# %% [markdown]
# ## The question
#
# All of these projects say "GRPO". Their users find that the formulas differ, and ask which is
# right:
#
# - *Why does the code not divide by the std, or by |o|?*
#   [tinker-cookbook#579](https://github.com/thinking-machines-lab/tinker-cookbook/issues/579),
#   [open-instruct#636](https://github.com/allenai/open-instruct/issues/636)
# - *Why should 1/|o| be a bias, when it divides a sum of |o| terms?*
#   [understand-r1-zero#25](https://github.com/sail-sg/understand-r1-zero/issues/25),
#   [#10](https://github.com/sail-sg/understand-r1-zero/issues/10),
#   [#11](https://github.com/sail-sg/understand-r1-zero/issues/11)
# - *Is the ratio that of a token or of the whole answer?*
#   [DeepSeek-R1#725](https://github.com/deepseek-ai/DeepSeek-R1/issues/725),
#   [reasoning-from-scratch#243](https://github.com/rasbt/reasoning-from-scratch/issues/243)
#
# The short answer. A constant factor is a learning rate. A factor that depends on the *answer*
# (1/|o|) turns the gradient, and one that depends on the *prompt* (1/std) weighs prompts. Neither
# shows in the loss, whose value says nothing here.

# %% [markdown]
# ## By hand
#
# The four answers to "7+5=" have 3, 3, 8 and 2 tokens and the rewards 1, 0, 0, 0. Their mean is
# 1/4, and the standard deviation is 1/2 (dividing by n - 1) or 0.433 (by n). There are five ways to
# make **advantages** of that:
#
# | rule | "12" | the others | formula |
# |---|---|---|---|
# | Dr. GRPO | 3/4 | -1/4 | r - mean |
# | GRPO, std with n - 1 | 1.5 | -0.5 | (r - mean) / 0.5 |
# | GRPO, std with n | 1.732 | -0.577 | (r - mean) / 0.433 |
# | RLOO | 1 | -1/3 | r - mean of the other three |
# | MaxRL | 3 | -1 | (r - mean) / mean |
#
# All five are multiples of each other. **Inside one group they are the same direction.** What
# differs is how much a prompt counts, beside prompts on which more answers are right.

# %%
centred = partial(group_advantages, scale="none")
RULES = {"Dr. GRPO": centred, "GRPO, n - 1": partial(group_advantages, eps=0.0),
         "GRPO, n": partial(group_advantages, ddof=0, eps=0.0),
         "RLOO": leave_one_out_advantages, "MaxRL": maxrl_advantages}
print("advantages         '12'    others   factor on Dr. GRPO's")
factors = []
for name, rule in RULES.items():
    right, wrong = (float(a) for a in rule(REWARDS)[0, :2])
    factors.append(right / 0.75)
    print(f"  {name:14} {right:7.4f}  {wrong:7.4f}     {factors[-1]:.4f}")
    torch.testing.assert_close(rule(REWARDS), factors[-1] * centred(REWARDS))
assert all(abs(came - wanted) < 1e-9 for came, wanted in zip(
    factors, (1, 2, 4 / math.sqrt(3), 4 / 3, 4), strict=True))

# %% [markdown]
# Then 16 numbers, one per token, become one. Four **means** are in use. With ratio 1 every token
# of an answer contributes its advantage, 1.5 or -0.5, so the sums over the answers are 4.5, -1.5,
# -4 and -1:
#
# | mean | sum | value | weight of a token |
# |---|---|---|---|
# | `sequence_mean` | (1.5 - 0.5 - 0.5 - 0.5) / 4 | 0 | A / (4 \|o\|) |
# | `token_mean` | (4.5 - 1.5 - 4 - 1) / 16 | -2/16 | A / 16 |
# | `constant`, 4 answers of at most 8 tokens | the same sum / 32 | -2/32 | A / 32 |
# | `sequence_sum` | the same sum / 4 | -2/4 | A / 4 |

# %%
old_logp, logp = token_logprobs(OLD), token_logprobs(NEW)                    # (4, 8) each
ref_logp = token_logprobs(REFERENCE)
adv = spread(group_advantages(REWARDS, eps=0.0).flatten(), MASK)            # (4, 8)
SLOTS = float(MASK.numel())                                                  # 32 = 4 x 8
print("                 weight of one token of:", "  ".join(f"{a:>7}" for a in ANSWERS), "   value")
for how, wanted in (("sequence_mean", 0.0), ("token_mean", -2 / 16), ("constant", -2 / 32),
                    ("sequence_sum", -0.5)):
    leaf = old_logp.clone().requires_grad_()
    surrogate = clipped_surrogate(leaf, old_logp, adv)
    number = SLOTS if how == "constant" else None                # the others count by themselves
    value = aggregate(surrogate, MASK, how, total=number)  # step in: aggregate
    weight, = torch.autograd.grad(value, leaf)
    print(f"  {how:14}", " " * 23, "  ".join(f"{w:7.4f}" for w in weight[:, 0].tolist()),
          f"  {float(value.detach()):7.4f}")
    assert abs(float(value.detach()) - wanted) < 1e-12
    by_hand = {"sequence_mean": adv[:, 0] / (4 * LENGTHS), "token_mean": adv[:, 0] / 16,
               "constant": adv[:, 0] / 32, "sequence_sum": adv[:, 0] / 4}[how]
    torch.testing.assert_close(weight[:, 0], by_hand)

# %% [markdown]
# The last three differ by constants, 2 and 4. The first is another direction: a token of
# "10+1=11" counts a quarter of a token of "2", although both answers are equally wrong.

# %% [markdown]
# ## The function

# %%
show(aggregate)

# %% [markdown]
# ## Nine projects, one batch
#
# All of them need the same three things: samples of which some are better, a reward that says
# which, and a regulariser (a clip, or a KL to the reference). There is room between the three. This
# is what nine projects do, as of mid-2026, composed from minirl's functions: advantages, objective,
# weight of the KL (k3), and mean. At OLD every ratio is 1. At NEW the batch is used once more.

# %%
over_n = partial(group_advantages, ddof=0)                                   # eps is 1e-4
over_n_minus_1 = partial(group_advantages, ddof=1)
tiny_eps = partial(group_advantages, ddof=1, eps=1e-8)


def score_function(logp, old_logp, adv):
    return policy_gradient(logp, adv)                                        # knows no ratio


PROJECTS = {
    "nanochat": (centred, score_function, 0.0, "token_mean"),
    "tiny-grpo": (tiny_eps, clipped_surrogate, 0.01, "sequence_mean"),
    "GRPO-Zero": (over_n, score_function, 0.0, "token_mean"),
    "nano-aha-moment": (over_n, score_function, 0.001, "token_mean"),
    "simple_GRPO": (over_n_minus_1, clipped_surrogate, 0.04, "sequence_mean"),
    "rlhf-book": (tiny_eps, clipped_surrogate, 0.0, "sequence_mean"),
    "reasoning-from-scratch": (over_n_minus_1, score_function, 0.0, "sequence_sum"),
    "TRL, its default": (over_n_minus_1, clipped_surrogate, 0.0, "token_mean"),
    "understand-r1-zero": (centred, clipped_surrogate, 0.0, "constant"),
}


def objective_of(project, logp, rows=(0, 1, 2, 3)):
    """Return what a project maximises, for a group that consists of these answers."""
    advantages, objective, kl_coef, how = project
    rows = torch.tensor(rows)
    mask = MASK[rows]
    adv = spread(advantages(REWARDS[:, rows]).flatten(), mask)               # (G, 8)
    terms = objective(logp[rows], old_logp[rows], adv) - kl_coef * k3(logp[rows], ref_logp[rows])
    return aggregate(terms, mask, how, total=float(mask.numel()) if how == "constant" else None)


def gradient_of(project, policy, rows=(0, 1, 2, 3)):
    """Return the objective's value, and its gradient in the policy's five logits, (5,)."""
    policy = [logits.clone().requires_grad_() for logits in policy]
    value = objective_of(project, token_logprobs(policy), rows)
    return float(value.detach()), torch.cat(torch.autograd.grad(value, policy))


cosine = partial(torch.cosine_similarity, dim=0)
baseline = gradient_of(PROJECTS["understand-r1-zero"], OLD)[1]
values, slopes = {}, {}
print("                          value        |gradient|     cosine with Dr. GRPO's at OLD")
print("                         OLD     NEW    OLD    NEW      OLD     NEW")
for name, project in PROJECTS.items():
    (value, slope), (later, later_slope) = (gradient_of(project, p) for p in (OLD, NEW))
    values[name], slopes[name] = value, slope
    print(f"{name:22} {value:7.3f} {later:7.3f}  {float(slope.norm()):.3f}  "
          f"{float(later_slope.norm()):.3f}   {float(cosine(slope, baseline)):.4f}  "
          f"{float(cosine(later_slope, baseline)):.4f}")

# %% [markdown]
# At OLD, five of the nine have the very same direction, and a KL of small weight turns a sixth by a
# hair. The three with 1/|o| have another one. The values lie between -0.125 and 0.092 and tell
# nothing: `policy_gradient` has the value A log π where the surrogate has A, and the same gradient.
#
# At NEW the projects without a ratio go on as before. The clip takes the second choice out: its
# ratios, 1.5 and 0.5, have moved far enough. Left is the first choice, which moved the wrong way.

# %%
same = [name for name, slope in slopes.items() if float(cosine(slope, baseline)) > 1 - 1e-9]
per_answer = [name for name, (_, _, _, how) in PROJECTS.items() if how == "sequence_mean"]
print("the same direction:", ", ".join(same))
assert same == ["nanochat", "GRPO-Zero", "reasoning-from-scratch", "TRL, its default",
                "understand-r1-zero"]
assert 1 - 1e-5 < float(cosine(slopes["nano-aha-moment"], baseline)) < 1 - 1e-9, "its KL"
assert all(float(cosine(slopes[name], baseline)) < 0.97 for name in per_answer)
assert min(values.values()) < -0.12 and max(values.values()) > 0.09
assert abs(values["TRL, its default"] + 0.125) < 1e-4
with_clip, without = (gradient_of(PROJECTS[name], NEW)[1] for name in ("rlhf-book", "nanochat"))
print("gradient at NEW in two logits of the first choice, three of the second")
for how, slope in (("with a clip", with_clip), ("without", without)):
    print(f"  {how:12}", "  ".join(f"{g:6.3f}" for g in slope.tolist()))
assert bool((with_clip[2:] == 0).all()) and float(with_clip[0]) > 0.08
assert float(cosine(without, baseline)) > 0.999

# %% [markdown]
# ### Which of them is the policy gradient?
#
# One group is one sample. What does a convention do **on average**? We can say it exactly: a group
# of 4 is one of $4^4 = 256$, each with a known probability. The policy gradient of the expected
# reward is known exactly, too. So here is the mean of each convention's gradient beside it.

# %%
policy = [logits.clone().requires_grad_() for logits in OLD]
truth = torch.cat(torch.autograd.grad(probabilities(policy)[0], policy))     # ∇ P("12")
CONVENTIONS = {
    "RLOO, sequence_sum": (leave_one_out_advantages, "sequence_sum", 1.0),
    "no std, sequence_sum": (centred, "sequence_sum", 3 / 4),
    "no std, constant": (centred, "constant", 3 / 32),
    "std, sequence_sum": (over_n_minus_1, "sequence_sum", None),
    "std, token_mean": (over_n_minus_1, "token_mean", None),
    "std, sequence_mean": (over_n_minus_1, "sequence_mean", None),
}
print("expected gradient        cosine with the truth   length / the truth's")
angles = {}
for name, (advantages, how, factor) in CONVENTIONS.items():
    mean = torch.zeros(5).double()
    for rows in itertools.product(range(4), repeat=4):
        chance = probabilities(OLD)[list(rows)].prod()
        mean += chance * gradient_of((advantages, clipped_surrogate, 0.0, how), OLD, rows)[1]
    angles[name] = float(cosine(mean, truth))
    print(f"  {name:22} {angles[name]:.5f}                 {float(mean.norm() / truth.norm()):.4f}")
    assert factor is None or torch.allclose(mean, factor * truth), "the truth, times a constant"
assert angles["std, sequence_sum"] > 1 - 1e-6
assert 0.998 < angles["std, token_mean"] < 0.999 and 0.986 < angles["std, sequence_mean"] < 0.988

# %% [markdown]
# RLOO is the policy gradient. Dr. GRPO is, up to a constant: its (G - 1)/G = 3/4, and 1/8 for the
# length that it divides by. With a single prompt, the std changes only the length of the mean
# gradient. A mean over tokens turns it a little, because the divisor depends on the sampled
# lengths. 1/|o| turns it the most.
#
# That is what "bias" means, and it answers
# [#25](https://github.com/sail-sg/understand-r1-zero/issues/25): yes, a sum of |o| terms over |o|
# is of order 1 for every answer. But the policy gradient wants the *sum*, whatever the length:
# $\nabla \log \pi(o) = \sum_t \nabla \log \pi(o_t)$.

# %% [markdown]
# ### The ratio of a token or of the answer?
#
# DeepSeekMath's ratio is per token. DeepSeek-R1's eq. 1 writes the probability of the whole answer
# over the old one: the product of the token ratios. GSPO takes the |o|-th root of that product.

# %%
d, ones = torch.tensor([[0.1, -0.2, 0.3, 0.0]]).double(), torch.ones(1, 4)
root, product = (float(sequence_ratio(d, 0 * d, ones, length_normalised=n)) for n in (True, False))
print(f"log-ratios 0.1, -0.2, 0.3, 0: root e^0.05 = {root:.6f}, product e^0.2 = {product:.6f}")
assert round(root, 6) == 1.051271 and round(product, 6) == 1.221403

roots, products = (sequence_ratio(logp, old_logp, MASK, length_normalised=n)
                   for n in (True, False))
print("answer     token ratios   product (R1)   root (GSPO)")
for i, answer in enumerate(ANSWERS):
    first, second = (logp - old_logp).exp()[i, :2].tolist()
    print(f"{answer:9}  {first:.2f}  {second:.2f}       {products[i]:.4f}         {roots[i]:.4f}")
torch.testing.assert_close(products, torch.tensor([1.05, 0.35, 0.35, 1.3]).double())
assert abs(float(roots[0]) - 1.05 ** (1 / 3)) < 1e-12

# %% [markdown]
# On "12" the two moves nearly cancel: 0.7 times 1.5 is 1.05. With ε = 0.2 the token ratio clips
# the second token; the product clips nothing. And 0.05 is *far* for a root. GSPO's ε is 0.0003 and
# 0.0004, which is not a typing error: a root of thousands of factors hardly moves. So an ε belongs
# to its ratio, and R1's ε of 10 (in its first RL stage) to a product.

# %%
leaf, alive = logp.clone().requires_grad_(), {}
whole = partial(sequence_clipped_surrogate, leaf, old_logp, adv[:, 0], MASK)
for name, bounds in {"GSPO, ε 0.0003 / 0.0004": (3e-4, 4e-4, True),
                     "product, ε 0.2": (0.2, 0.2, False)}.items():
    value = whole(clip_low=bounds[0], clip_high=bounds[1], length_normalised=bounds[2])
    slope, = torch.autograd.grad(value.sum(), leaf)
    alive[name] = [answer for answer, row in zip(ANSWERS, slope, strict=True) if bool(row.any())]
    print(f"{name:24} answers that still have a gradient: {', '.join(alive[name])}")
assert list(alive.values()) == [["2"], ["12", "2"]]

# %% [markdown]
# ## Picture
#
# **Length.** "10+1=11" is wrong. What if it were longer? The weight of one of its tokens, and that
# of the whole answer, for each mean, relative to its 8 tokens.

# %%
longest = 64
lengths = torch.arange(2, longest + 1)
weights = {how: [] for how in ("sequence_mean", "token_mean", "constant")}
for length in lengths.tolist():
    mask = torch.arange(longest) < torch.tensor([[3], [3], [length], [2]])
    for how, row in weights.items():
        leaf = torch.zeros(4, longest).double().requires_grad_()
        terms = policy_gradient(leaf, spread(adv[:, 0], mask))
        value = aggregate(terms, mask, how, total=4.0 * longest if how == "constant" else None)
        row.append(float(torch.autograd.grad(value, leaf)[0][2, 0]))
weights = {how: torch.tensor(row) / row[6] for how, row in weights.items()}    # row[6]: 8 tokens
at_64 = {how: round(float(row[-1]), 4) for how, row in weights.items()}
print("weight of one token at 64 tokens, relative to 8:", at_64)
assert at_64 == {"sequence_mean": 0.125, "token_mean": 0.2222, "constant": 1.0}

figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.1))
STYLES = {"sequence_mean": ("sequence_mean: 1/|o|", RED, "--"),
          "token_mean": ("token_mean", BLUE, "-"),
          "constant": ("constant, sequence_sum", GREEN, ":")}
for how, (label, colour, dash) in STYLES.items():
    for axis, curve in zip(axes, (weights[how], weights[how] * lengths / 8), strict=True):
        axis.plot(lengths, curve, color=colour, linestyle=dash, label=label)
for axis in axes:
    axis.axvline(8, color=GREY, linewidth=0.8, linestyle="-")
    axis.set(xscale="log", yscale="log", xlabel="tokens of the wrong answer",
             xticks=[2, 4, 8, 16, 32, 64], xticklabels=[2, 4, 8, 16, 32, 64])
    axis.minorticks_off()
axes[0].set(title="One token of it", ylabel="weight, relative to 8 tokens",
            yticks=[0.125, 0.25, 0.5, 1, 2, 4], yticklabels=["1/8", "1/4", "1/2", 1, 2, 4])
axes[1].set(title="The whole answer", yticks=[0.25, 0.5, 1, 2, 4, 8],
            yticklabels=["1/4", "1/2", 1, 2, 4, 8])
axes[1].legend(loc="upper left")
keep(figure, "09_length")

# %% [markdown]
# With 1/|o| a mistake costs the same however long it is, so each of 64 wrong tokens is discouraged
# an eighth as much as each of 8. Among right answers the short ones gain most per token. So wrong
# answers may grow. With a constant every token of every wrong answer weighs the same. A token mean
# stands between: one long answer makes all tokens of its *batch* lighter.
#
# **Difficulty.** A prompt whose answers are right with probability p has the policy gradient
# p(1 - p) in its logit. A group of 8 has k right answers with a binomial probability, so the mean
# of each estimator is a sum of nine terms.

# %%
G = 8
chances = torch.linspace(0.005, 0.995, 199).double()                         # p, (N,)
groups = (torch.arange(G) < torch.arange(G + 1)[:, None]).double()           # (9, 8): k right of 8
binomial = torch.stack([math.comb(G, k) * chances ** k * (1 - chances) ** (G - k)
                        for k in range(G + 1)], dim=1)                       # (N, 9)
ESTIMATORS = {"RLOO": leave_one_out_advantages, "Dr. GRPO": centred, "GRPO": over_n_minus_1,
              "MaxRL": maxrl_advantages}
expected = {}
for name, rule in ESTIMATORS.items():
    # ∇ log π in the logit is 1 - p for a right answer and -p for a wrong one
    score = groups[None] - chances[:, None, None]                            # (N, 9, 8)
    expected[name] = (binomial * (rule(groups)[None] * score).mean(-1)).sum(1)

exact = chances * (1 - chances)
for p, wanted in ((0.1, 0.19591), (0.5, 0.43387)):
    n = int((chances - p).abs().argmin())
    came = float(expected["GRPO"][n])
    print(f"p = {p}: true {p * (1 - p):.2f}, GRPO {came:.3f} = x {came / (p * (1 - p)):.2f}, "
          f"Dr. GRPO {float(expected['Dr. GRPO'][n]):.5f}")
    assert abs(came - wanted) < 1e-4
torch.testing.assert_close(expected["RLOO"], exact)
torch.testing.assert_close(expected["Dr. GRPO"], 7 / 8 * exact)
torch.testing.assert_close(expected["MaxRL"], (1 - chances) * (1 - (1 - chances) ** (G - 1)))
lift = {name: float((curve / exact).max()) for name, curve in expected.items()}
print("largest weight of a prompt:", "  ".join(f"{name} {w:.2f}" for name, w in lift.items()))
assert 2.4 < lift["GRPO"] < 2.5 and 6.8 < lift["MaxRL"] < G - 1

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.1))
for (name, curve), colour, dash in zip(expected.items(), (GREEN, GREY, BLUE, RED),
                                       ("-", ":", "--", "-."), strict=True):
    axes[0].plot(chances, curve, color=colour, linestyle=dash, label=name)
    axes[1].plot(chances, curve / exact, color=colour, linestyle=dash, label=name)
axes[1].plot(chances, exact ** -0.5, color="black", linewidth=0.9, linestyle="-",
             label="1 / √(p(1 - p))")
axes[0].set(title="Expected gradient, G = 8", xlabel="chance p of a right answer",
            ylabel="gradient in the logit")
axes[1].set(title="Weight of the prompt", xlabel="chance p of a right answer",
            ylabel="gradient / p(1 - p)", ylim=(0, 8.5))
axes[1].legend(loc="upper center", ncols=2)
keep(figure, "09_difficulty")

# %% [markdown]
# RLOO and Dr. GRPO weigh all prompts alike. The std lifts the hard prompts *and* the easy ones: at
# p = 0.1 the gradient is 2.18 times the true one, at p = 0.5 it is 1.74 times. In large groups the
# factor would be $1/\sqrt{p(1-p)}$, the black line. In a group of 8 it stays below 2.5, because one
# right answer of 8 has the same std whether p is 0.1 or 0.001. MaxRL lifts the hard ones alone,
# towards 1/p and at most G - 1 times. This is a choice of what to learn from, more than a bug.

# %% [markdown]
# ## In the loop
#
# `minirl grpo --preset NAME` looks up `minirl/train/presets.py`. Eight of its names, and what each
# puts together:

# %%
NAMES = ("grpo", "gspo", "dr_grpo", "rloo", "dapo", "trl", "r1-zero", "maxrl")
print("preset    objective       mean           advantages                 std of the")
for name in NAMES:
    preset = GRPO_PRESETS[name]
    numbers = {"aggregate": GRPOConfig.aggregate, "scale": GRPOConfig.scale, **preset.numbers}
    rule = preset.arguments(GRPOConfig())["advantages"]
    print(f"{name:9} {preset.functions['objective'].__name__:15} {numbers['aggregate']:14} "
          f"{getattr(rule, 'func', rule).__name__:26} "
          f"{numbers['scale'] if 'scale' in preset.reads else '-'}")

# %% [markdown]
# A real batch. A small model reads one-digit sums, half of them worked out step by step and half
# answered at once, so that its completions are long and short. It then samples 16 groups of 8, and
# each preset makes a gradient of the same 128 completions (KL and filters set aside). How do the
# gradients of all weights compare?

# %%
task = Arithmetic("addition", 1)
sizes = TinySizes(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=192)
base, tokenizer = make_base(sizes, seed=0, device="cpu")
sums = demonstrations(task, 2400, random.Random(0), worked_share=0.5, guessed_share=0.5)
train_sft(base, tokenizer, sums, SFTConfig(lr=5e-3), seed=0)


def first_gradient(name):
    """Return the gradient of the first update under a preset, (weights,), and its metrics."""
    fields = ("aggregate", "scale", "ddof", "clip_low", "clip_high")
    numbers = {key: n for key, n in GRPO_PRESETS[name].numbers.items() if key in fields}
    config = GRPOConfig(steps=1, warmup_steps=0, kl_coef=0.0, max_new_tokens=40,
                        max_grad_norm=1e9, **numbers)
    moments, reports = [], []

    def save(state):           # after one step, Adam's first moment is (1 - beta1) x the gradient
        moments.extend(state.optimizer.state[p]["exp_avg"].flatten() / (1 - config.beta1)
                       for group in state.optimizer.param_groups for p in group["params"])

    train_grpo(copy.deepcopy(base), tokenizer, task, config, seed=0, save=save,
               log=lambda step, metrics: reports.append(metrics),
               **GRPO_PRESETS[name].arguments(config))
    return torch.cat(moments), reports[0]


grads, norms = {}, {}
for name in NAMES:
    grads[name], metrics = first_gradient(name)
    norms[name] = metrics["grad_norm"]
    print(f"{name:8} |gradient| {norms[name]:.3f}   (reward {metrics['reward']:.3f}, "
          f"{metrics['completions/min_length']:.0f} to {metrics['completions/max_length']:.0f} "
          "tokens)", flush=True)
stacked = torch.stack([grads[name] / grads[name].norm() for name in NAMES])
angles = stacked @ stacked.T                                                 # (8, 8)
alike = [("grpo", "gspo"), ("dr_grpo", "rloo"), ("dapo", "trl"), ("trl", "r1-zero")]
different = itertools.combinations(("grpo", "dr_grpo", "dapo", "maxrl"), 2)
assert all(angles[NAMES.index(a), NAMES.index(b)] > 0.9999 for a, b in alike)
assert all(angles[NAMES.index(a), NAMES.index(b)] < 0.995 for a, b in different)
mean_length = metrics["completions/mean_length"]
print(f"rloo / dr_grpo {norms['rloo'] / norms['dr_grpo']:.2f} = 40 x 8/7;   "
      f"r1-zero / trl {norms['r1-zero'] / norms['trl']:.2f} = the mean length {mean_length:.2f}")
assert abs(norms["rloo"] / norms["dr_grpo"] - 40 * 8 / 7) < 0.1
assert abs(norms["r1-zero"] / norms["trl"] - mean_length) < 0.02
assert norms["dr_grpo"] < 0.1 and norms["r1-zero"] > 60 * norms["dr_grpo"]

# %%
figure, axis = plt.subplots(figsize=(5.6, 3.9))
picture = axis.imshow(angles.tolist(), cmap="Blues", vmin=0.5, vmax=1.0)
for i, j in itertools.product(range(len(NAMES)), repeat=2):
    axis.text(j, i, f"{float(angles[i, j]):.2f}", ha="center", va="center", fontsize=8,
              color="white" if angles[i, j] > 0.85 else "black")
axis.set(xticks=range(len(NAMES)), yticks=range(len(NAMES)), xticklabels=NAMES,
         yticklabels=[f"{name}   |g| = {norms[name]:.2f}" for name in NAMES],
         title="Cosine between gradients, one batch")
axis.tick_params(axis="x", rotation=35)
axis.grid(False)
figure.colorbar(picture, label="cosine")
keep(figure, "09_directions")

# %% [markdown]
# Eight names, four directions. In the first update `gspo` is `grpo`: both have 1/|o| and the std,
# and the ratio is 1. `rloo` is `dr_grpo` times a constant: 40 tokens at most, and G/(G - 1) = 8/7.
# `dapo`, `trl` and `r1-zero` sum the same terms, and divide by the number of tokens or of answers.
# The lengths of the gradients differ by a factor of 70. Adam's steps hardly depend on that, but
# `max_grad_norm` and the balance with a KL do: after a change of the mean, set them anew.

# %% [markdown]
# ## Break it
#
# Memory is short, so the batch is split into micro-batches, and their gradients add up. The total
# must be that of the **whole** batch. Each micro-batch gets it as `total`:

# %%
ratio_one = clipped_surrogate(old_logp, old_logp, adv)                       # A for each token
SPLITS = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))


def accumulated(parts, total=None):
    """Sum over micro-batches what each divides by `total`; without it, the mean of their means."""
    each = [float(aggregate(ratio_one[list(rows)], MASK[list(rows)], "token_mean", total=total))
            for rows in parts]
    return sum(each) if total else sum(each) / len(each)


total = normaliser(MASK, "token_mean")
print("two micro-batches of answers   with the whole total   mean of their means")
means = []
for parts in SPLITS:
    means.append(accumulated(parts))
    names = " | ".join(", ".join(ANSWERS[i] for i in rows) for rows in parts)
    print(f"  {names:26}   {accumulated(parts, total):7.4f}                {means[-1]:7.4f}")
    assert abs(accumulated(parts, total) + 2 / 16) < 1e-12
assert [round(mean, 4) for mean in means] == [0.0, -0.2273, 0.1]

# %% [markdown]
# Three ways to split one batch give three objectives, of both signs. In the first split a token of
# "12" weighs 1/12 of its advantage and a token of "2" 1/20, only because of its neighbours. A mean
# of means is right where all divisors are equal, so it passes every test with equal lengths. Large
# projects had it for a while ([verl#906](https://github.com/volcengine/verl/pull/906),
# [open-instruct#1161](https://github.com/allenai/open-instruct/pull/1161)).

# %% [markdown]
# ## Exercises
#
# Solutions are in `tutorials/solutions/09_one_name_many_losses.py`.

# %%
def exercise_1(logp, old_logp, rewards, mask):
    """Return what TRL maximises by default (see PROJECTS), a scalar. Compose minirl's functions."""
    raise NotImplementedError


def check_1(answer):
    for name, now, wanted in (("OLD", old_logp, -0.124975), ("NEW", logp, -0.118726)):
        came = float(answer(now, old_logp, REWARDS, MASK))
        assert abs(came - wanted) < 1e-6, f"at {name} it is {wanted}, and yours is {came:.6f}"


judge(check_1, exercise_1)


# %%
def exercise_2(x, mask, parts, how):
    """Return aggregate(x, mask, how) of the whole batch, but look only at one part at a time.

    parts: lists of rows, which together are the batch. how: "sequence_mean" or "token_mean".
    """
    raise NotImplementedError


def check_2(answer):
    for how, wanted in (("token_mean", -0.125), ("sequence_mean", 0.0)):
        for parts in (*SPLITS, ((0,), (1, 2, 3))):
            came = float(answer(ratio_one, MASK, [list(rows) for rows in parts], how))
            assert abs(came - wanted) < 1e-9, f"{how}, {parts}: expected {wanted}, got {came:.4f}"


judge(check_2, exercise_2)


# %%
def exercise_3(right, group):
    """Return the factor by which 1/std (with n - 1) lifts a group with so many right answers."""
    raise NotImplementedError


def check_3(answer):
    for right, group, wanted in ((1, 4, 2.0), (1, 8, 2.828427), (4, 8, 1.870829), (7, 8, 2.828427)):
        came = float(answer(right, group))
        assert abs(came - wanted) < 1e-5, f"{right} right of {group}: {wanted}, not {came:.6f}"


judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | paper | here |
# |---|---|---|
# | std of a group | DeepSeekMath leaves n or n - 1 open | `ddof`, 1 by default |
# | ratio of DeepSeek-R1, eq. 1 | product over the answer, no 1/\|o\| | `r1-zero`: product |
# | KL of DeepSeek-R1, eq. 2 | of the whole answer | mean over tokens |
# | Dr. GRPO's constant | the largest length, in its code 3000 | `max_new_tokens` |
# | DAPO's mean | over the tokens of a group | over the tokens of the batch, as in its code |
# | RLOO | KL in the reward | no KL |

# %% [markdown]
# ## Find the bug
#
# RLOO compares each reward with the others' mean. This function goes on in the same spirit, and
# divides by the others' standard deviation
# ([NeMo-RL#1518](https://github.com/NVIDIA-NeMo/RL/issues/1518) tells where that leads). It has one
# bug. No NaN and no large number shows it. Write a test that passes for `group_advantages` and
# fails for this function: what must be true of any advantage?

# %%
def advantages_with_a_bug(rewards):
    """Compare each reward with the mean and the spread of the others. (P, G) -> (P, G)"""
    others = rewards.shape[-1] - 1
    mean = (rewards.sum(-1, keepdim=True) - rewards) / others
    squares = (rewards.square().sum(-1, keepdim=True) - rewards.square()) / others
    std = (squares - mean.square()).clamp(min=0).sqrt()
    equal = std < 1e-6                                    # no spread, nothing to learn
    return torch.where(equal, 0, (rewards - mean) / torch.where(equal, 1, std))


def exercise_bug(function):
    """Raise AssertionError unless function(rewards) is an advantage: (P, G) -> (P, G)."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, group_advantages, advantages_with_a_bug)


judge(check_bug, exercise_bug)
