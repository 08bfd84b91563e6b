# %%
# %pip install -q -e ..

# %% [markdown]
# # 05. The clipped surrogate
#
# *Why is the ratio always 1, is it min or max, and what counts as clipped?*
#
# - **Paper**: PPO, [arXiv:1707.06347](https://arxiv.org/abs/1707.06347), section 3, eq. 7, and
#   section 4, eq. 8; the constraint that they replace: TRPO,
#   [arXiv:1502.05477](https://arxiv.org/abs/1502.05477)
# - **Code**: `minirl/equations/objectives.py`: `clipped_surrogate`, `kl_penalised_surrogate`,
#   `dual_clipped_surrogate`
# - **Tests**: `tests/equations/test_objectives.py`
# - **Before this**: 04 (advantages, PPO's loop)
# - **Time**: 10 s on two CPU cores; 8 s with `MINIRL_FAST=1`
# - **Expect**: no token clipped in the first inner epoch; 0.5 to 8 % of them in the fourth
# - **Sweep**: `minirl grpo --iterations 4 --lr 1e-3`, then `--iterations 1`: compare
#   `clip_ratio/low_mean` and `clip_ratio/high_mean` in `metrics.jsonl`
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | ratio in a batch's first update | 1, up to rounding | dropout, temperature or padding (02) |
# | clip fraction with one update per batch | exactly 0 | the batch is reused |
# | clip fraction with several | above 0, and small | 0: one update; large: lower `lr` |
# | `sampling/sampling_logp_difference/mean` | about 0 | the sampler is another policy (02) |

# %%
import copy
import inspect
import random

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, FAST, GREEN, GREY, RED, judge, judge_test, keep, show, slider
from minirl.equations.advantages import group_advantages, spread
from minirl.equations.kl import exact_kl
from minirl.equations.objectives import clipped_surrogate, kl_penalised_surrogate, policy_gradient
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.testing.example import (
    ANSWERS,
    MASK,
    NEW,
    OLD,
    REWARDS,
    TOKENS,
    probabilities,
    token_logprobs,
)
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.sft import SFTConfig, train_sft

# %% [markdown]
# ## The question
#
# Whoever has read PPO's equation 7 and then looks at a run of GRPO asks three things:
#
# - *Why is the ratio always 1, and the clip fraction always 0?*
#   [trl#2769](https://github.com/huggingface/trl/issues/2769),
#   [trl#3120](https://github.com/huggingface/trl/issues/3120),
#   [minimind#775](https://github.com/jingyaogong/minimind/issues/775),
#   [GRPO-Zero#4](https://github.com/policy-gradient/GRPO-Zero/issues/4)
# - *The paper has a min, the code has a max. Which is right?*
#   [AReaL#380](https://github.com/inclusionAI/AReaL/issues/380),
#   [baselines#1156](https://github.com/openai/baselines/issues/1156),
#   [spinningup#255](https://github.com/openai/spinningup/issues/255)
# - *What counts as clipped?* [trl#3144](https://github.com/huggingface/trl/issues/3144),
#   [trl#3032](https://github.com/huggingface/trl/issues/3032)
#
# The short answers. The ratio compares the policy with itself before the updates on this batch, so
# in the first of them it is 1. A min over objectives is a max over losses. A token is clipped if
# the clip takes its gradient away: its ratio is outside the band, *and* on the side to which its
# advantage pushes it.

# %% [markdown]
# ## By hand
#
# A policy OLD wrote the four answers to "7+5=", and we would like to learn from them more than
# once. After the first update the policy is NEW, and would write other answers. The **ratio**
#
# $$\rho_t = \frac{\pi_{new}(y_t \mid x, y_{<t})}{\pi_{old}(y_t \mid x, y_{<t})}$$
#
# corrects for that: a token that NEW writes twice as often counts twice. The **surrogate**
# $\rho_t A_t$ stands in for the expected reward near OLD (hence the name), and only there. So
# PPO takes away the reason to leave a band of ratios, from $1-\epsilon$ to $1+\epsilon$:
#
# $$L_t = \min\big(\rho_t A_t,\ \text{clip}(\rho_t, 1-\epsilon, 1+\epsilon)\, A_t\big)$$
#
# Only the first two tokens of our answers are choices; the others are certain, with ratio 1. The
# **advantage** A is how much better an answer was than expected: here the reward minus the group's
# mean, over its standard deviation (tutorial 08). Rewards of 1, 0, 0, 0 have mean 1/4 and deviation
# 1/2, so A is 1.5 for "12" and -0.5 for the others. With $\epsilon = 0.2$:
#
# | answer | token | A | ρ | ρ A | clip(ρ) A | min | gradient | so |
# |---|---|---|---|---|---|---|---|---|
# | 12 | 1 | 1.5 | 0.7 | **1.05** | 1.2 | 1.05 | 1.05 | flows: it became rarer, bring it back |
# | 12 | 2 | 1.5 | 1.5 | 2.25 | **1.8** | 1.8 | 0 | clipped: it has risen enough |
# | 13 | 1 | -0.5 | 0.7 | -0.35 | **-0.4** | -0.4 | 0 | clipped: it has fallen enough |
# | 13 | 3 | -0.5 | 0.5 | -0.25 | **-0.4** | -0.4 | 0 | clipped |
# | 2 | 2 | -0.5 | 1.3 | **-0.65** | -0.6 | -0.65 | -0.65 | flows: it became likelier |
#
# The gradient is with respect to $\log \pi_{new}$. Where $\rho A$ wins it is $\rho A$ itself,
# because $d\rho / d\log\pi = \rho$; where the clip wins it is 0, because a constant has no slope.

# %%
old_logp, logp = token_logprobs(OLD), token_logprobs(NEW)                     # (4, 8) each
adv = spread(group_advantages(REWARDS, eps=0.0).flatten(), MASK)             # (4, 8)
ratio = (logp - old_logp).exp()                                              # (4, 8)
leaf = logp.detach().requires_grad_()
value = clipped_surrogate(leaf, old_logp, adv)  # step in: clipped_surrogate
slope, = torch.autograd.grad((value * MASK).sum(), leaf)                     # (4, 8)

print("answer    token      A     ρ      L   gradient")
for i, answer in enumerate(ANSWERS):
    for t in range(2):
        print(f"{answer:8}  {TOKENS[i][t]:5}  {adv[i, t]:5.2f}  {ratio[i, t]:.2f}  "
              f"{value[i, t]:5.2f}      {slope[i, t]:5.2f}")

by_hand = torch.tensor([[1.05, 1.8], [-0.4, -0.4], [-0.4, -0.4], [-0.65, -0.5]]).double()
torch.testing.assert_close(value[:, :2].detach(), by_hand)
by_hand = torch.tensor([[1.05, 0.0], [0.0, 0.0], [0.0, 0.0], [-0.65, -0.5]]).double()
torch.testing.assert_close(slope[:, :2], by_hand)

# %% [markdown]
# The `min` is **pessimistic**: of two estimates it believes the lower one. A gain beyond the band
# does not count (rows 2 to 4), a loss beyond it does (rows 1 and 5). That asymmetry is the point:
# the gradient can bring back a token that went the wrong way.
#
# Code that *minimises* has the minus sign inside, and then the pessimist takes the larger loss:
# $-\min(a, b) = \max(-a, -b)$. Spinning Up's form for $A < 0$, $\max(\rho, 1-\epsilon) A$, is also
# right: a larger ratio times a negative advantage is the smaller value.
#
# What is clipped is counted in three ways, and on our 16 tokens they say 7, 2 and 5. The first, all
# ratios outside the band, is the clip fraction of Spinning Up and CleanRL. TRL began with the
# second, the tokens that are outside and *flow*, and now has the third
# ([trl#3144](https://github.com/huggingface/trl/issues/3144),
# [trl#3175](https://github.com/huggingface/trl/pull/3175)), as verl does: those without a gradient.
# Its halves are `clip_ratio/low_mean` (A < 0, ρ too small) and `clip_ratio/high_mean` (A > 0, ρ too
# large), in TRL and here.

# %%
plain, clipped = ratio * adv, ratio.clamp(0.8, 1.2) * adv
assert torch.equal(-torch.minimum(plain, clipped), torch.maximum(-plain, -clipped))
assert torch.equal(torch.minimum(plain, clipped)[1:], (ratio.clamp(min=0.8) * adv)[1:])
outside = ((ratio < 0.8) | (ratio > 1.2)) & MASK
low, high = (slope == 0) & (adv < 0) & MASK, (slope == 0) & (adv > 0) & MASK
ways = {"ratio outside the band": outside, "ρ A < clip(ρ) A": (plain < clipped) & MASK,
        "no gradient although A is not 0": low | high}
for name, counted in ways.items():
    print(f"{name:32} {int(counted.sum())} of {int(MASK.sum())}")
assert [int(counted.sum()) for counted in ways.values()] == [7, 2, 5]
assert torch.equal(outside, ways["ρ A < clip(ρ) A"] | low | high), "outside: it flows, or not"

# %% [markdown]
# ## The function

# %%
show(clipped_surrogate)

# %% [markdown]
# ## What is divided by what
#
# One often reads that "the KL is done by dividing the reward after the update by the reward
# before it". That mixes three things:
#
# - **Probabilities** are divided, not rewards: how likely is this token now, and how likely was
#   it before? The reward enters once, through $A$, and no update changes it.
# - The divisor is the policy **before this update** (OLD), which every batch replaces. It is not
#   the reference, the model from which RL began and which stays as it is.
# - The ratio is no KL. The KL to the reference is a term of its own, in the reward or in the loss
#   (tutorial 07). The clip stands in for another KL, that between OLD and NEW.
#
# Why stay near OLD at all? NEW answers "12" with probability 0.25 · 0.7 · 1.5 = 0.2625. The
# surrogate *adds* the moves of the two tokens, -0.3 and +0.5, and predicts 0.25 · 1.2 = 0.30. It
# misses -0.3 · 0.5, because a token's ratio corrects this token and not those before it. It is
# right to first order, while the moves are small.
#
# So TRPO (2015) maximises $E[\rho A]$ under a hard constraint, an average
# $KL(\text{old} \| \text{new}) \leq \delta$, and needs second derivatives for it. PPO (2017) tries
# a penalty instead (eq. 8: `kl_penalised_surrogate`), and finds that the clip (eq. 7), which needs
# nothing but the ratio, does better.

# %%
gain = probabilities(OLD)[:, None] * (ratio - 1) * spread(REWARDS.flatten(), MASK)
predicted, came = float(probabilities(OLD)[0] + gain.sum()), float(probabilities(NEW)[0])
print(f"P(12) under NEW: the surrogate predicts {predicted:.4f}, it is {came:.4f}")
assert abs(predicted - 0.30) < 1e-12 and abs(came - 0.2625) < 1e-12
first, then = (float(exact_kl(old, new)) for old, new in zip(OLD, NEW, strict=True))
mean = float((probabilities(OLD)[:, None] * (old_logp - logp) * MASK).sum())
print(f"KL(OLD || NEW) = {first:.4f} + 0.5 x {then:.4f} = {first + 0.5 * then:.4f} "
      f"= mean of log OLD - log NEW, {mean:.4f}")       # half of the answers make a second choice
assert abs(mean - 0.1191) < 1e-4 and abs(first + 0.5 * then - mean) < 1e-12

# %% [markdown]
# Two later repairs. A **dual clip** (exercise 2) bounds the corner that PPO leaves open: $A < 0$
# with a huge ratio, where one token may dominate a batch. And a band of *ratios* is narrow for rare
# tokens: with ε = 0.2, one of probability 0.01 may rise to 0.012, one of 0.9 up to 1. DAPO's
# **clip-higher** raises the upper bound alone, to 1.28.

# %% [markdown]
# ## Picture
#
# The value and the gradient against the ratio. The marks are the tokens of the table.

# %%
def value_and_slope(ratios, advantage, *, objective=clipped_surrogate, **bounds):
    """Return an objective's value and its gradient in log π, (N,) each, along ratios, (N,)."""
    x = ratios.clamp(min=1e-9).log()[None].requires_grad_()                  # (1, N)
    values = objective(x, torch.zeros_like(x), torch.full_like(x, advantage), **bounds)
    slopes, = torch.autograd.grad(values.sum(), x)
    return values[0].detach(), slopes[0]


grid = torch.linspace(0.0, 2.0, 401).double()
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.3))
for advantage, colour, dash in ((1.5, BLUE, "-"), (-0.5, RED, "--")):
    for axis, curve in zip(axes, value_and_slope(grid, advantage), strict=True):
        axis.plot(grid, grid * advantage, color=GREY, linewidth=1, linestyle=":")
        axis.plot(grid, curve, color=colour, linestyle=dash, label=f"A = {advantage}")
MARKS = ((0, 0, "1"), (0, 1, "2"), (1, 0, "1"), (1, 1, "3, 0"), (3, 0, "2"))
for axis, heights, lift in ((axes[0], value.detach(), -14), (axes[1], slope, 6)):
    axis.axvspan(0.8, 1.2, color=GREEN, alpha=0.12, linewidth=0)
    axis.axhline(0, color="black", linewidth=0.6)
    for i, t, text in MARKS:
        x, y = float(ratio[i, t]), float(heights[i, t])
        axis.plot(x, y, "o", color=BLUE if i == 0 else RED, markersize=5)
        axis.annotate(f'"{text}"', (x, y), xytext=(0, lift if i == 1 else 6),
                      textcoords="offset points", fontsize=8, ha="center")
    axis.set(xlabel="ratio ρ = π_new / π_old", xlim=(0, 2), ylim=(-1.2, 2.6))
axes[0].set(title="Value", ylabel="L")
axes[1].set(title="Gradient", ylabel="dL / d log π_new")
axes[0].legend(loc="upper left")
axes[1].text(1.0, -1.1, "band 1 ± ε", ha="center", fontsize=8, color=GREEN)
axes[1].text(1.97, 1.0, "dotted: ρ A,\nwithout a clip", ha="right", fontsize=8, color=GREY)
keep(figure, "05_clip")

# %% [markdown]
# Move it yourself: [figures/05_clip.html](figures/05_clip.html) has sliders for the ratio, the
# advantage and epsilon. On which side does the gradient vanish if A is above 0, and if it is below?

# %%
points = torch.linspace(0.0, 2.0, 101).double()
advantages, epsilons = [-1.5, -1.0, -0.5, 0.5, 1.0, 1.5], [0.1, 0.2, 0.3, 0.4]


def table(curve):
    """Return curve(A, ε), numbers along `points`, for all advantages and epsilons."""
    return [[[round(y, 3) for y in curve(a, e).tolist()] for e in epsilons] for a in advantages]


curves = [table(lambda a, e, k=k: value_and_slope(points, a, clip_low=e, clip_high=e)[k])
          for k in range(2)]
plain_curve = {"label": "ρ A", "colour": GREY, "dash": "3 3",
               "values": table(lambda a, e: points * a)}
slider("05_clip", {
    "title": "The clipped surrogate",
    "note": "L = min(ρ A, clip(ρ, 1 - ε, 1 + ε) A). Its gradient with respect to log π is ρ A or 0."
            "\nA > 0: a token may rise up to 1 + ε. A < 0: it may fall down to 1 - ε. "
            "On the other side nothing is clipped.",
    "x": {"label": "ratio ρ", "values": [round(x, 3) for x in points.tolist()], "start": 75},
    "sliders": [{"label": "advantage A", "values": advantages, "start": 4},
                {"label": "epsilon ε", "values": epsilons, "start": 1}],
    "lines": [{"x": [[round(1 + sign * e, 3) for e in epsilons] for _ in advantages],
               "label": f"1 {mark} ε"} for sign, mark in ((-1, "-"), (1, "+"))],
    "panels": [{"title": title, "label": label, "low": -3, "high": 3, "curves": [
        plain_curve, {"label": label, "colour": BLUE, "values": values}]}
        for values, title, label in zip(curves, ("Value", "Gradient"), ("L", "dL / d log π"),
                                        strict=True)]})
assert [values[4][1][75] for values in curves] == [1.2, 0.0], "A = 1, ε = 0.2, ρ = 1.5"

# %% [markdown]
# ## In the loop
#
# Where does the ratio come from? These are the lines of `minirl/train/grpo.py` that decide it:

# %%
for line in inspect.getsource(train_grpo).splitlines():
    if any(word in line for word in ("on_policy", "range(config.iterations)", "old = logp",
                                     "= objective(logp")):
        print(line)

# %% [markdown]
# With one pass over a batch and one minibatch, the weights are still those that wrote the answers.
# So `old = logp.detach()`: the same numbers, as a constant. The *value* of the ratio is 1, but its
# *gradient* is not 0, because only the numerator depends on the weights. It is $\rho A = A$, as for
# `policy_gradient`. PPO's machinery is idle, and the update is REINFORCE with a better baseline.
# Nothing is wrong with that.
#
# But such a ratio is 1 **by construction**, and proves nothing. If a fast sampler (vLLM, in
# bfloat16) or an old copy of the weights wrote the answers, they are off-policy all the same. Only
# another ratio shows it: learner over sampler (tutorial 02).

# %%
leaf = old_logp.clone().requires_grad_()
surrogate = clipped_surrogate(leaf, leaf.detach(), adv)
gradients = [torch.autograd.grad((objective * MASK).sum(), leaf)[0]
             for objective in (surrogate, policy_gradient(leaf, adv))]
print("ratio 1: value", surrogate[:, 0].tolist(), " gradient", gradients[0][:, 0].tolist())
assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], adv)

# %% [markdown]
# The clip wakes up when a batch is used again, for several passes (inner epochs). A small model
# reads one-digit sums, half of them answered at random, and then learns by GRPO. Our wrapper of
# `clipped_surrogate` notes the ratios that it gets.

# %%
task = Arithmetic("addition", 1)
sizes = TinySizes(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=192)
base, tokenizer = make_base(sizes, seed=0, device="cpu")
sums = demonstrations(task, 2400, random.Random(0), worked_share=0.0, guessed_share=0.5)
train_sft(base, tokenizer, sums, SFTConfig(lr=5e-3), seed=0)


def watched_run(**changes):
    """Train by GRPO -> the largest |ρ - 1| and three shares of tokens, for each call, (calls, 4)"""
    calls = []

    def objective(logp, old_logp, adv, mask):
        now, a = (logp - old_logp).detach().exp()[mask.bool()], adv[mask.bool()]
        low, high = (now < 0.8) & (a < 0), (now > 1.2) & (a > 0)
        away = ((now < 0.8) | (now > 1.2)) & (a != 0)
        calls.append(((now - 1).abs().max(), *(x.double().mean() for x in (away, low, high))))
        return clipped_surrogate(logp, old_logp, adv)

    numbers = dict(steps=4 if FAST else 6, lr=1e-3, warmup_steps=0, kl_coef=0.0, max_new_tokens=32)
    train_grpo(copy.deepcopy(base), tokenizer, task, GRPOConfig(**{**numbers, **changes}),
               objective=objective, seed=0, log=lambda step, metrics: print(
                   f"{metrics['reward']:.2f}", end="  ", flush=True))
    print()
    return torch.tensor(calls, dtype=torch.float64)


print("rewards, one pass over each batch:  ", end="")
once = watched_run()
print("rewards, four passes over each batch: ", end="")
four = watched_run(iterations=4).view(-1, 4, 4)                              # (steps, passes, 4)
print("reward, one pass, two minibatches: ", end="")
two = watched_run(minibatches=2, steps=1)[:, 0]
passes = four.mean(0)                                                        # (passes, 4)
print("pass   largest |ρ - 1|   outside   clipped low   clipped high")
for k, (most, out, low, high) in enumerate(passes.tolist(), 1):
    print(f"{k}      {most:.4f}            {out:.4f}    {low:.4f}        {high:.4f}")
assert bool((once == 0).all()), "one update per batch: every ratio is exactly 1"
assert bool((four[:, 0, 0] < 1e-5).all()), "the first pass has ratio 1, too (recomputed)"
assert bool((passes[0, 1:] == 0).all()), "pass 1: nothing is clipped"
assert bool((passes[1:, 2:].sum(1) > 0).all()) and 0.005 < passes[3, 2:].sum() < 0.08
assert passes[3, 1] > passes[3, 2:].sum(), "some are outside the band, and still flow"
assert passes[3, 0] > 0.5, "and some are far outside"
assert two[0] < 1e-5 < 1e-3 < two[1], "a second minibatch sees a policy that has moved already"

# %%
figure, axis = plt.subplots(figsize=(5.6, 3.2))
along = range(1, 5)
_, out, low, high = (100 * passes.T).tolist()                                # % of the tokens
axis.bar(along, low, color=RED, width=0.5, label="clipped low: A < 0, ρ < 1 - ε")
axis.bar(along, high, bottom=low, color=AMBER, width=0.5, hatch="///", edgecolor="white",
         label="clipped high: A > 0, ρ > 1 + ε")
axis.plot(along, out, "D--", color=BLUE, markersize=4, label="outside 1 ± ε, clipped or not")
axis.set(title="What is clipped", ylabel="% of the tokens", xlabel="pass over the batch",
         xticks=along)
axis.legend(loc="upper left")
keep(figure, "05_epochs")

# %% [markdown]
# Few tokens are clipped, and yet single ratios run far past ε. The clip takes away a token's own
# gradient; it does not hold the token. Other tokens share its weights, and Adam's momentum goes on.
# It is no trust region: to know how far the policy went, log the KL or the largest ratio.

# %% [markdown]
# ## Break it
#
# A published notebook takes the **max** where A < 0, as if pessimism changed sides with the sign.
# What does it do? We hold one batch, the four answers with their exact probabilities under OLD, and
# climb the surrogate for 300 steps, to see where it ends.
#
# With the right clip the end can be predicted by hand: "1" and the "2" after it stop at 1.2 times
# their 0.5, so "12" goes from 0.25 to about $0.6 \cdot 0.6 = 0.36$.

# %%
def max_for_negative(logp, old_logp, adv, *, clip_low=0.2, clip_high=0.2):
    """PPO-clip with the max where A < 0: wrong."""
    ratio = (logp - old_logp).exp()
    plain, clipped = ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv
    return torch.where(adv < 0, torch.maximum(plain, clipped), torch.minimum(plain, clipped))


def climb(objective, rewards, *, steps=300, lr=0.1):
    """Return the answers' probabilities after gradient ascent on one batch of OLD's, (4,)."""
    adv = spread(group_advantages(rewards, eps=0.0).flatten(), MASK)
    policy = [logits.clone().requires_grad_() for logits in OLD]
    for _ in range(steps):
        value = objective(token_logprobs(policy), old_logp, adv)             # (4, 8)
        expected = (probabilities(OLD)[:, None] * value * MASK).sum()
        for logits, slope in zip(policy, torch.autograd.grad(expected, policy), strict=True):
            logits.data += lr * slope
    return probabilities(policy).detach()


rules = {"min (PPO)": clipped_surrogate, "max where A < 0": max_for_negative,
         "KL penalty, β = 1": lambda new, old, adv: kl_penalised_surrogate(
             new, old, adv, old - new, kl_coef=1.0)}
mistaken = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).double()     # a judge that takes "2" for right
print("                     A = -1: gradient at ρ =      after 300 steps")
print("                           0.5      1.5       P(12)   P(2), mistaken judge")
slopes, ends = {}, {}
for name, rule in rules.items():
    slopes[name] = value_and_slope(torch.tensor([0.5, 1.5]).double(), -1.0, objective=rule)[1]
    ends[name] = float(climb(rule, REWARDS)[0]), float(climb(rule, mistaken)[3])
    print(f"  {name:20}", *(f"{x:8.3f}" for x in (*slopes[name].tolist(), *ends[name])))
right, wrong = ends["min (PPO)"]
assert 0.36 < right < 0.38, "0.6 x 0.6, and one step too far"
assert 0.6 < wrong < 0.63, "from 0.5 to 0.5 x 1.2, and one step too far"
assert slopes["min (PPO)"].tolist() == [0.0, -1.5]
assert slopes["max where A < 0"].tolist() == [-0.5, 0.0]
assert ends["max where A < 0"][0] > 0.85 and ends["max where A < 0"][1] > 0.95

# %% [markdown]
# Outside the band, the max lets the gradient flow exactly where it should be 0, and stops it where
# it should flow: a wrong token that became likelier is never brought back. P(12) looks like faster
# learning. P(2) shows the same speed towards a mistake of the judge, and the clip cannot know which
# of the two it sees. It bounds what **one batch** asks for, and the next one, sampled from the new
# policy, decides again. The KL penalty holds the policy, too; how near depends on β, which PPO's
# section 4 adapts after each batch (`adaptive_kl_coef`).

# %% [markdown]
# ## Exercises
#
# Write the body and run the cell. Solutions: `tutorials/solutions/05_clipped_surrogate.py`.

# %%
def exercise_1(ratio, adv, clip_low, clip_high):
    """Return which tokens are clipped, as a tensor of booleans: those without a gradient.

    Work it out from ratio and adv, without autograd. A token with A = 0 does not count.
    """
    raise NotImplementedError


def check_1(answer):
    # our 16 tokens, then two bounds: clip_low 0.2, clip_high 0.28
    assert int((answer(ratio, adv, 0.2, 0.2) & MASK).sum()) == 5, "5 of our 16 tokens"
    x = torch.tensor([0.5, 0.79, 1.0, 1.25, 1.3])
    for a, wanted in ((1.0, [False, False, False, False, True]),
                      (-1.0, [True, True, False, False, False]), (0.0, [False] * 5)):
        came = answer(x, torch.full_like(x, a), 0.2, 0.28).tolist()
        assert came == wanted, f"A = {a}, ρ = {x.tolist()}: expected {wanted}"


judge(check_1, exercise_1)


# %%
def exercise_2(ratio, adv, clip, cap):
    """Return the dual clip's loss of each token, to be minimised, as code bases write it.

    Where A < 0, a token costs at most cap |A|, however large its ratio. (verl has a cap of 3 as
    clip_ratio_c, TRL has delta, minirl has dual_clipped_surrogate: write it without.)
    """
    raise NotImplementedError


def check_2(answer):
    x = torch.tensor([0.5, 1.0, 1.5, 5.0, 100.0])
    for a, wanted in ((1.0, [-0.5, -1.0, -1.2, -1.2, -1.2]), (-1.0, [0.8, 1.0, 1.5, 3.0, 3.0])):
        came = answer(x, torch.full_like(x, a), 0.2, 3.0)
        assert came is not None and torch.allclose(came, torch.tensor(wanted)), \
            f"A = {a}, ρ = {x.tolist()}: expected {wanted}"


judge(check_2, exercise_2)

# %% [markdown]
# ## Deltas from the paper
#
# | | PPO, sections 3 and 6.1 | here |
# |---|---|---|
# | objective | eq. 7, a mean over timesteps | the same for each token; the mean is `aggregate`'s |
# | advantage | GAE of a value function | one per answer, from its group |
# | reuse of a batch | 3 epochs (Atari) or 10 (MuJoCo) | 1 by default; 4 passes in this tutorial |
# | ε | 0.2, the best of 0.1, 0.2, 0.3 | 0.2; two bounds in DAPO: 0.2 and 0.28 |
# | TRPO's constraint | section 2.2 | shown as the penalty of eq. 8; no second derivatives |

# %% [markdown]
# ## Find the bug
#
# The author of this function was afraid of overflow. It has one bug. Training with it runs, and
# rewards rise. Write a test that passes for `clipped_surrogate` and fails for this function.

# %%
def surrogate_with_a_bug(logp, old_logp, adv, *, clip_low=0.2, clip_high=0.2):
    """PPO-clip, one value per token. Maximise."""
    bounds = torch.tensor([1 - clip_low, 1 + clip_high]).log()
    log_ratio = torch.clamp(logp - old_logp, float(bounds[0]), float(bounds[1]))  # stays finite
    ratio = log_ratio.exp()
    return torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)


def exercise_bug(function):
    """Raise AssertionError unless function(logp, old_logp, adv) is PPO's clipped surrogate."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, clipped_surrogate, surrogate_with_a_bug)


judge(check_bug, exercise_bug)
