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
# - **Code**: `minirl/equations/objectives.py`: `clipped_surrogate`, `dual_clipped_surrogate`,
#   `kl_penalised_surrogate`
# - **Tests**: `tests/equations/test_objectives.py`
# - **Before this**: 03 (advantages), 04 (PPO's loop)
# - **Time**: 10 s on two CPU cores; 8 s with `MINIRL_FAST=1`
# - **Expect**: no token clipped in the first inner epoch; 0.5 to 8 % of them in the fourth
# - **Sweep**: `minirl grpo --iterations 4 --lr 1e-3`, then `--iterations 1`: compare
#   `clip_ratio/low_mean` and `clip_ratio/high_mean` in `metrics.jsonl`
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | ratio in a batch's first update | 1, up to rounding | sampler and learner differ (tutorial 02) |
# | clip fraction with one update per batch | exactly 0 | the batch is reused |
# | clip fraction with several | above 0, and small | 0: one update; large: lower `lr` |

# %%
import copy
import inspect
import random

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, FAST, GREEN, GREY, RED, judge, judge_test, keep, show, slider
from minirl.equations.advantages import group_advantages, spread
from minirl.equations.kl import exact_kl
from minirl.equations.objectives import (
    clipped_surrogate,
    dual_clipped_surrogate,
    kl_penalised_surrogate,
    policy_gradient,
)
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
# People who read PPO's equation 7 and then look at a training run of GRPO ask three things:
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
# A policy OLD wrote the four answers to "7+5=". We would like to learn from them more than once.
# After the first update the policy is NEW, and its samples would be other ones. The **ratio**
#
# $$\rho_t = \frac{\pi_{new}(y_t \mid x, y_{<t})}{\pi_{old}(y_t \mid x, y_{<t})}$$
#
# corrects for that: a token that NEW writes twice as often counts twice. The **surrogate**
# $\rho_t A_t$ stands in for the expected reward near OLD (hence the name), and nowhere else. So
# PPO takes away the reason to leave a band of ratios, from $1-\epsilon$ to $1+\epsilon$:
#
# $$L_t = \min\big(\rho_t A_t,\ \text{clip}(\rho_t, 1-\epsilon, 1+\epsilon)\, A_t\big)$$
#
# Only the first two tokens of our answers are choices; the others are certain, with ratio 1. The
# **advantage** A says how much better an answer was than expected. Here it is the reward minus the
# group's mean, over the group's standard deviation (tutorial 08). The rewards are 1, 0, 0, 0 with
# mean 1/4 and deviation 1/2, so A is 1.5 for "12" and -0.5 for the others. With $\epsilon = 0.2$:
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
# does not count (rows 2 to 4), a loss beyond it does (rows 1 and 5). That asymmetry is the point.
# It lets the gradient bring back a token that went the wrong way.
#
# Code that *minimises* a loss has the minus sign inside, and then the pessimist takes the larger
# loss: $-\min(a, b) = \max(-a, -b)$. Both are right. Spinning Up writes the case $A < 0$ as
# $\max(\rho, 1-\epsilon) A$, which is right too: a larger ratio times a negative advantage is the
# smaller value.

# %%
plain, clipped = ratio * adv, ratio.clamp(0.8, 1.2) * adv
assert torch.equal(-torch.minimum(plain, clipped), torch.maximum(-plain, -clipped))
assert torch.equal(torch.minimum(plain, clipped)[1:], (ratio.clamp(min=0.8) * adv)[1:])
print("minus the min of rewards is the max of losses, for all", int(MASK.sum()), "tokens")

# %% [markdown]
# TRL has counted what is clipped in three ways
# ([trl#3144](https://github.com/huggingface/trl/issues/3144),
# [trl#3175](https://github.com/huggingface/trl/pull/3175)), and on our 16 tokens they say 7, 2
# and 5. The second counts the tokens that are outside and *flow*. Only the third counts those
# without a gradient. Its two halves are the metrics `clip_ratio/low_mean` (A < 0, ρ too small) and
# `clip_ratio/high_mean` (A > 0, ρ too large), in TRL and here.

# %%
outside = ((ratio < 0.8) | (ratio > 1.2)) & MASK
ways = {"ratio outside the band": outside,
        "ρ A < clip(ρ) A": (plain < clipped) & MASK,
        "no gradient although A is not 0": (slope == 0) & (adv != 0) & MASK}
for name, counted in ways.items():
    print(f"{name:32} {int(counted.sum())} of {int(MASK.sum())}")
low, high = (slope == 0) & (adv < 0) & MASK, (slope == 0) & (adv > 0) & MASK
print("clip_ratio/low_mean", float(low.sum() / MASK.sum()),
      "  clip_ratio/high_mean", float(high.sum() / MASK.sum()))
assert [int(counted.sum()) for counted in ways.values()] == [7, 2, 5]
assert torch.equal(outside, ways["ρ A < clip(ρ) A"] | low | high), "outside: it flows, or not"
assert int(low.sum()) == 4 and int(high.sum()) == 1

# %% [markdown]
# ## The function

# %%
show(clipped_surrogate)

# %% [markdown]
# ## What is divided by what
#
# One often reads that "the KL is done by dividing the reward after the update by the reward
# before it". Three things are mixed there, and they are easy to take apart:
#
# - **Probabilities** are divided, not rewards: how likely is this token now, and how likely was
#   it before? The reward enters once, through $A$, and no update changes it.
# - The divisor is the policy **before this update** (OLD), which every batch replaces. It is not
#   the reference, the model from which RL began and which stays as it is.
# - The ratio is no KL. The KL to the reference is a term of its own, in the reward or in the loss
#   (tutorial 07). The clip replaces another KL, that between OLD and NEW.
#
# That other KL came first. TRPO (2015) maximises $E[\rho A]$ under a hard constraint, an average
# $KL(\text{old} \| \text{new}) \leq \delta$, and needs second derivatives for it. PPO (2017)
# tries a penalty instead of the constraint (eq. 8), and prefers the clip (eq. 7), which needs
# nothing but the ratio:

# %%
show(kl_penalised_surrogate)
per_choice = [float(exact_kl(old, new)) for old, new in zip(OLD, NEW, strict=True)]
exact = per_choice[0] + 0.5 * per_choice[1]            # the second choice comes after "1" alone
estimate = old_logp - logp                                                   # (4, 8), unbiased
mean = float((probabilities(OLD) * (estimate * MASK).sum(1)).sum())
print(f"KL(OLD || NEW) = {per_choice[0]:.4f} + 0.5 x {per_choice[1]:.4f} = {exact:.4f}")
print(f"mean of log OLD - log NEW over the four answers: {mean:.4f}")
assert abs(exact - 0.1191) < 1e-4 and abs(mean - exact) < 1e-12
penalised = kl_penalised_surrogate(logp, old_logp, adv, estimate, kl_coef=1.0)
print(f"token 2 of '12': ρ A - KL = 2.25 - {float(estimate[0, 1]):.3f} "
      f"= {float(penalised[0, 1]):.3f}")
assert abs(float(penalised[0, 1]) - (2.25 + 0.405465)) < 1e-6

# %% [markdown]
# (An estimate of a KL from one token may be negative: -0.405 here. Only its mean is a KL.)
#
# There is a hole on the other side. Where $A < 0$ and the ratio is large, the pessimist believes
# any loss: a token that was nearly impossible and then became likely may dominate a batch.
# `dual_clipped_surrogate` puts a floor there, at 3 times the advantage; TRL calls it `delta`.

# %%
zero, minus_one = torch.zeros(1, 4), -torch.ones(1, 4)
huge = torch.tensor([[1.0, 2.0, 5.0, 100.0]]).log()
once, dual = clipped_surrogate(huge, zero, minus_one), dual_clipped_surrogate(huge, zero, minus_one)
print("A = -1, ρ = 1, 2, 5, 100:  clipped", [round(x, 3) for x in once[0].tolist()])
print("                      dual clipped", [round(x, 3) for x in dual[0].tolist()])
torch.testing.assert_close(once, torch.tensor([[-1.0, -2.0, -5.0, -100.0]]))
torch.testing.assert_close(dual, torch.tensor([[-1.0, -2.0, -3.0, -3.0]]))

# %% [markdown]
# ## Picture
#
# The value and the gradient against the ratio, for the two advantages of the group. The marks are
# the tokens of the table.

# %%
def value_and_slope(ratios, advantage, *, objective=clipped_surrogate, **bounds):
    """Return an objective's value and its gradient with respect to log π, along a grid of ratios.

    Shapes     ratios: (N,) -> (N,), (N,)
    """
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
        axis.annotate(f'"{text}"', (x, y), xytext=(0, lift if i == 1 else 6 if i else 7),
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
# advantage and epsilon. Drag the ratio from left to right, once with A above 0 and once below.
# On which side does the gradient vanish?

# %%
points = torch.linspace(0.0, 2.0, 101).double()
advantages, epsilons = [-1.5, -1.0, -0.5, 0.5, 1.0, 1.5], [0.1, 0.2, 0.3, 0.4]


def rounded(curve):
    return [round(float(y), 3) for y in curve]


tables = [[value_and_slope(points, a, clip_low=e, clip_high=e) for e in epsilons]
          for a in advantages]
unclipped = [[rounded(points * a) for _ in epsilons] for a in advantages]
slider("05_clip", {
    "title": "The clipped surrogate",
    "note": "L = min(ρ A, clip(ρ, 1 - ε, 1 + ε) A). Its gradient with respect to log π is ρ A or 0."
            "\nA > 0: a token may rise up to 1 + ε. A < 0: it may fall down to 1 - ε. "
            "On the other side nothing is clipped.",
    "x": {"label": "ratio ρ", "values": rounded(points), "start": 75},
    "sliders": [{"label": "advantage A", "values": advantages, "start": 4},
                {"label": "epsilon ε", "values": epsilons, "start": 1}],
    "lines": [{"x": [[round(1 - e, 3) for e in epsilons] for _ in advantages], "label": "1 - ε"},
              {"x": [[round(1 + e, 3) for e in epsilons] for _ in advantages], "label": "1 + ε"}],
    "panels": [{"title": title, "label": label, "low": -3, "high": 3, "curves": [
        {"label": "ρ A", "colour": GREY, "dash": "3 3", "values": unclipped},
        {"label": label, "colour": BLUE, "values": [[rounded(pair[k]) for pair in row]
                                                    for row in tables]}]}
        for k, (title, label) in enumerate((("Value", "L"), ("Gradient", "dL / d log π")))]})
assert tables[4][1][0][75] == 1.2 and tables[4][1][1][75] == 0, "A = 1, ε = 0.2, ρ = 1.5"

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
# With one pass over a batch and one minibatch, nothing has changed since the answers were
# sampled. So `old = logp.detach()`: the same numbers, as a constant. The *value* of the ratio is 1
# for every token. Its *gradient* is not 0, because only the numerator depends on the weights. At
# ratio 1 it is $\rho A = A$, the gradient of `policy_gradient`, bit for bit. All of PPO's
# machinery is idle, and the update is REINFORCE with a better baseline. Nothing is wrong with
# that: a ratio of 1 says that the samples are fresh.

# %%
gradients = {}
for name, objective in (("clipped_surrogate", lambda x: clipped_surrogate(x, x.detach(), adv)),
                        ("policy_gradient", lambda x: policy_gradient(x, adv))):
    policy = [logits.clone().requires_grad_() for logits in OLD]
    expected = (probabilities(OLD)[:, None] * objective(token_logprobs(policy)) * MASK).sum()
    gradients[name] = torch.cat(torch.autograd.grad(expected, policy))
    print(f"{name:18} value {float(expected.detach()):6.3f}   gradient in the five logits "
          f"{[round(g, 4) for g in gradients[name].tolist()]}")
assert torch.equal(gradients["clipped_surrogate"], gradients["policy_gradient"])

# %% [markdown]
# The clip wakes up when a batch is used again, for several passes (inner epochs). A small model
# reads one-digit sums, half of them answered at random, and then learns by GRPO: once with one
# pass over each batch, once with four. The objective is `clipped_surrogate`, and our wrapper notes
# the ratios that it gets.

# %%
task = Arithmetic("addition", 1)
sizes = TinySizes(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=192)
base, tokenizer = make_base(sizes, seed=0, device="cpu")
print(f"{sum(p.numel() for p in base.parameters()):,} weights")
sums = demonstrations(task, 2400, random.Random(0), worked_share=0.0, guessed_share=0.5)
train_sft(base, tokenizer, sums, SFTConfig(lr=5e-3), seed=0)


def watched_run(**changes):
    """Train by GRPO -> the largest |ρ - 1| and three shares of tokens, for each call."""
    calls = []

    def objective(logp, old_logp, adv, mask):
        now, a = (logp - old_logp).detach().exp()[mask.bool()], adv[mask.bool()]
        calls.append((float((now - 1).abs().max()),
                      *(float(part.double().mean()) for part in (
                          ((now < 0.8) | (now > 1.2)) & (a != 0),
                          (now < 0.8) & (a < 0), (now > 1.2) & (a > 0)))))
        return clipped_surrogate(logp, old_logp, adv)

    numbers = dict(steps=4 if FAST else 6, lr=1e-3, warmup_steps=0, kl_coef=0.0, max_new_tokens=32)
    train_grpo(copy.deepcopy(base), tokenizer, task, GRPOConfig(**{**numbers, **changes}),
               objective=objective, seed=0, log=lambda step, metrics: print(
                   f"  step {step}  reward {metrics['reward']:.2f}  clipped low "
                   f"{metrics['clip_ratio/low_mean']:.4f}  high "
                   f"{metrics['clip_ratio/high_mean']:.4f}", flush=True))
    return torch.tensor(calls, dtype=torch.float64)                          # (calls, 4)


print("one pass over each batch")
once = watched_run()
print("four passes over each batch")
four = watched_run(iterations=4).view(-1, 4, 4)                              # (steps, passes, 4)
assert bool((once == 0).all()), "one update per batch: every ratio is exactly 1"
assert bool((four[:, 0, 0] < 1e-5).all()), "the first pass has ratio 1, too (recomputed)"
passes = four.mean(0)                                                        # (passes, 4)
print("pass   outside   clipped low   clipped high")
for k, (_, out, low, high) in enumerate(passes.tolist(), 1):
    print(f"{k}       {out:.4f}        {low:.4f}         {high:.4f}")
assert bool((passes[0, 1:] == 0).all()), "epoch 1: nothing"
assert bool((passes[1:, 2:].sum(1) > 0).all()) and 0.005 < passes[3, 2:].sum() < 0.08
assert passes[3, 1] > passes[3, 2:].sum(), "some are outside the band, and still flow"

# %% [markdown]
# The same happens with one pass and several minibatches: the second one sees a policy that has
# moved already.

# %%
two = watched_run(minibatches=2, steps=1)[:, 0]
print(f"largest |ρ - 1|, two minibatches of one pass: {two[0]:.6f}, {two[1]:.6f}")
assert two[0] < 1e-5 < 1e-3 < two[1]

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.0))
along = range(1, 5)
axes[0].plot(along, four[:, :, 0].T, color=GREY, linewidth=0.9, linestyle="-", alpha=0.6)
axes[0].plot(along, passes[:, 0], "o-", color=BLUE, label="mean over the batches")
axes[0].axhline(0.2, color=GREEN, linestyle="--", linewidth=1)
axes[0].text(1.0, 0.23, "ε", color=GREEN)
axes[0].set(title="How far a ratio moves", ylabel="largest |ρ - 1|", xlabel="pass over the batch",
            xticks=along)
axes[0].legend(loc="upper left")
_, out, low, high = (100 * passes.T).tolist()                                # % of the tokens
axes[1].bar(along, low, color=RED, width=0.5, label="clipped low: A < 0, ρ < 1 - ε")
axes[1].bar(along, high, bottom=low, color=AMBER, width=0.5, hatch="///", edgecolor="white",
            label="clipped high: A > 0, ρ > 1 + ε")
axes[1].plot(along, out, "D--", color=BLUE, markersize=4, label="outside 1 ± ε")
axes[1].set(title="What is clipped", ylabel="% of the tokens", xlabel="pass over the batch",
            xticks=along)
axes[1].legend(loc="upper left")
keep(figure, "05_epochs")

# %% [markdown]
# ## Break it
#
# A published notebook takes the **max** where A < 0, as if pessimism changed sides with the sign.
# What does it do? We hold one batch, the four answers with their exact probabilities under OLD,
# and climb the surrogate for 300 steps: far more than anybody would, to see where it ends.
#
# With the right clip the end can be predicted by hand. "12" pushes its tokens up to a ratio of 1.2:
# "1" goes from 0.5 to 0.6, and "2" after it from 0.5 to 0.6. Then it pushes no more, and "13",
# which also begins with "1", pushes back. So "12" goes from 0.25 to $0.6 \cdot 0.6 = 0.36$, give
# or take one step.

# %%
def max_for_negative(logp, old_logp, adv, *, clip_low=0.2, clip_high=0.2):
    """PPO-clip with the max where A < 0: wrong."""
    ratio = (logp - old_logp).exp()
    plain, clipped = ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv
    return torch.where(adv < 0, torch.maximum(plain, clipped), torch.minimum(plain, clipped))


def penalised_by_kl(logp, old_logp, adv):
    return kl_penalised_surrogate(logp, old_logp, adv, old_logp - logp, kl_coef=1.0)


def climb(objective, rewards, *, steps=300, lr=0.1):
    """Gradient ascent on one batch -> the answers' probabilities at each step, (steps + 1, 4)."""
    adv = spread(group_advantages(rewards, eps=0.0).flatten(), MASK)
    policy, path = [logits.clone().requires_grad_() for logits in OLD], []
    for _ in range(steps + 1):
        path.append(probabilities(policy).detach())
        value = objective(token_logprobs(policy), old_logp, adv)             # (4, 8)
        expected = (probabilities(OLD)[:, None] * value * MASK).sum()
        for logits, slope in zip(policy, torch.autograd.grad(expected, policy), strict=True):
            logits.data += lr * slope
    return torch.stack(path)


rules = {"min (PPO)": clipped_surrogate, "KL penalty, β = 1": penalised_by_kl,
         "max where A < 0": max_for_negative}
mistaken = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).double()     # a judge that takes "2" for right
print("after 300 steps on one batch      P(12), right verdicts    P(2), one wrong verdict")
ends = {}
for name, rule in rules.items():
    good, bad = climb(rule, REWARDS), climb(rule, mistaken)
    ends[name] = (good, bad)
    print(f"  {name:32} {float(good[-1, 0]):.3f}                    {float(bad[-1, 3]):.3f}")
assert 0.36 < ends["min (PPO)"][0][-1, 0] < 0.38, "0.6 x 0.6, and one step too far"
assert 0.6 < ends["min (PPO)"][1][-1, 3] < 0.63, "from 0.5 to 0.5 x 1.2, and one step too far"
assert ends["max where A < 0"][0][-1, 0] > 0.85 and ends["max where A < 0"][1][-1, 3] > 0.95

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.1))
for name, rule, colour, dash in (("min", clipped_surrogate, BLUE, "-"),
                                 ("max", max_for_negative, RED, "--")):
    axes[0].plot(grid, value_and_slope(grid, -1.0, objective=rule)[1], color=colour,
                 linestyle=dash, label=name)
axes[0].axvspan(0.8, 1.2, color=GREEN, alpha=0.12, linewidth=0)
axes[0].set(title="A = -1: gradient", xlabel="ratio ρ", ylabel="dL / d log π_new")
axes[0].legend(loc="lower left")
for (name, paths), colour, dash in zip(ends.items(), (BLUE, GREEN, RED), ("-", ":", "--"),
                                       strict=True):
    for axis, path, answer in zip(axes[1:], paths, (0, 3), strict=True):
        axis.plot(path[:, answer], color=colour, linestyle=dash, label=name)
axes[1].axhline(0.36, color=GREY, linewidth=0.8, linestyle="-")
axes[1].text(300, 0.30, "0.6 · 0.6", ha="right", fontsize=8, color=GREY)
axes[2].axhline(0.6, color=GREY, linewidth=0.8, linestyle="-")
axes[2].text(300, 0.545, "1.2 · 0.5", ha="right", fontsize=8, color=GREY)
axes[1].set(title="Right verdicts", xlabel="step on one batch", ylabel='P("12")', ylim=(0, 1))
axes[2].set(title="One wrong verdict", xlabel="step on one batch", ylabel='P("2")', ylim=(0, 1))
axes[1].legend(loc="upper left", bbox_to_anchor=(0, 1.02))
keep(figure, "05_max")

# %% [markdown]
# With the max, the gradient flows exactly where it should be 0, and is 0 where it should flow. A
# wrong token is pushed down without an end, and one that became likelier by mistake is never
# brought back. In the middle that looks like faster learning. On the right it is the same speed
# towards a mistake of the judge. The clip cannot know which of the two it sees. It bounds what
# **one batch** can do, and the next batch, sampled from the new policy, decides again.
#
# The KL penalty also holds the policy near OLD. How near depends on β, which PPO's section 4 adapts
# after each batch (`adaptive_kl_coef`).

# %% [markdown]
# ## Exercises
#
# Write the body, run the cell, and it says how you stand. Solutions are in
# `tutorials/solutions/05_clipped_surrogate.py`.

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
def exercise_2(ratio, adv, clip):
    """Return the loss of each token as code bases write it: no min, and to be minimised."""
    raise NotImplementedError


def check_2(answer):
    x = torch.tensor([0.5, 1.0, 1.5])
    for a, wanted in ((1.0, [-0.5, -1.0, -1.2]), (-1.0, [0.8, 1.0, 1.5])):
        came = answer(x, torch.full_like(x, a), 0.2)
        assert came is not None and torch.allclose(came, torch.tensor(wanted)), \
            f"A = {a}, ρ = 0.5, 1, 1.5: expected {wanted}"


judge(check_2, exercise_2)


# %%
def exercise_3(logp, adv):
    """Return ρ A of fresh samples, for which no old_logp was kept.

    Its value must be A, and its gradient with respect to logp must be A as well.
    """
    raise NotImplementedError


def check_3(answer):
    x, a = torch.tensor([-0.5, -2.0]).requires_grad_(), torch.tensor([1.5, -0.5])
    came = answer(x, a)
    assert torch.allclose(came, a), "the value: ratio 1 times A"
    assert came.requires_grad, "no gradient flows: detach the divisor, not the numerator"
    slope, = torch.autograd.grad(came.sum(), x)
    assert torch.allclose(slope, a), f"the gradient is {slope.tolist()}, expected A"


judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | PPO, sections 3 and 6.1 | here |
# |---|---|---|
# | objective | eq. 7, a mean over timesteps | the same for each token; the mean is `aggregate`'s |
# | advantage | GAE of a value function | one per answer, from its group |
# | reuse of a batch | 3 to 10 epochs of minibatches | 1 by default; 4 passes in this tutorial |
# | ε | 0.2, the best of 0.1, 0.2, 0.3 | 0.2; two bounds in DAPO: 0.2 and 0.28 |
# | overflow of ρ | not mentioned | a ratio above exp(20) is capped, with gradient 0 |
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
