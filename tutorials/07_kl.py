# %%
# %pip install -q -e ..

# %% [markdown]
# # 07. The KL penalty
#
# *k1, k2, k3: is k3 a KL, why is mine negative, and does it belong in the reward or in the loss?*
#
# - **Paper**: Schulman 2020, [Approximating KL divergence](http://joschu.net/blog/kl-approx.html);
#   InstructGPT, [arXiv:2203.02155](https://arxiv.org/abs/2203.02155), eq. 2; DeepSeekMath,
#   [arXiv:2402.03300](https://arxiv.org/abs/2402.03300), eqs. 3, 4 and 21; DeepSeek-V3.2,
#   [arXiv:2512.02556](https://arxiv.org/abs/2512.02556), eq. 7
# - **Code**: `minirl/equations/kl.py`: `k1`, `k2`, `k3`, `corrected_k3`, `exact_kl`,
#   `kl_shaped_rewards`; `minirl/equations/coefficients.py`: `grpo_coefficient`
# - **Tests**: `tests/equations/test_kl.py`
# - **Before this**: 00
# - **Time**: 7 s on two CPU cores; 5 s with `MINIRL_FAST=1`
# - **Expect**: k1 as a loss leaves the KL where it is; k2 and k3 as losses bring it to 0
# - **Sweep**: `for b in 0.001 0.01 0.1 1; do minirl grpo --kl-coef $b; done`: how far does `kl`
#   get, and what does it cost in `reward`?
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | `kl` in the first step | 0 | the reference is another model, or dropout is on |
# | mean k1 over many samples | at least 0 | another policy sampled: top-p, a minimal length |
# | `kl` at a higher `kl_coef` | lower | a wrong sign, or k1 as a loss |

# %%
import math

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, FAST, GREEN, GREY, RED, judge, judge_test, keep, show, slider
from minirl.equations.advantages import discounted_returns
from minirl.equations.coefficients import grpo_coefficient
from minirl.equations.kl import corrected_k3, exact_kl, k1, k2, k3, kl_shaped_rewards
from minirl.testing.example import (
    ANSWERS,
    MASK,
    OLD,
    REFERENCE,
    REWARDS,
    probabilities,
    token_logprobs,
)


def near(value, expected, tolerance=1e-9):
    """Return whether two tensors, or numbers, are equal."""
    value, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (value, expected))
    return torch.allclose(value, expected, rtol=0, atol=tolerance)


def text(row, digits=4):
    return "(" + ", ".join(f"{x:{digits + 3}.{digits}f}" for x in row.tolist()) + ")"


# %% [markdown]
# ## The question
#
# RL moves a policy $\pi$. A penalty keeps it near a *reference*, the model that it started from.
# The distance is the Kullback-Leibler divergence
# $\mathrm{KL}(\pi\,\|\,\mathrm{ref}) = \mathbb{E}_\pi[\log(\pi/\mathrm{ref})]$. It is 0 if both are
# equal, else positive. Training code rarely looks like that, and people ask:
#
# 1. GRPO's formula [does not look like a KL](https://github.com/huggingface/trl/issues/2854). Is it
#    one? Why is there
#    [no sum over the vocabulary](https://github.com/huggingface/trl/issues/3104)?
# 2. Why is the logged KL negative? ([trl](https://github.com/huggingface/trl/issues/925),
#    [LLaMA-Factory](https://github.com/hiyouga/LLaMA-Factory/issues/664),
#    [Spinning Up](https://github.com/openai/spinningup/issues/137))
# 3. In the reward or in the loss? ([trl](https://github.com/huggingface/trl/issues/2608), again
#    [here](https://github.com/huggingface/trl/issues/4967)) With
#    [which sign](https://github.com/huggingface/trl/issues/463)?
#
# The short answers: k3 is an estimate from one sampled token, and its mean is the KL. k1 is
# negative for every token that the reference likes more. And an estimate that is right as a *value*
# can be wrong as a *loss* or as a *reward*: put k1 in the reward, and k2 or k3 in the loss.
#
# (Notes on PPO sometimes say that "the KL divides the reward after the update by the reward
# before". Nothing divides rewards. What is divided are two probabilities of the same token, here
# that of the policy by that of the reference. The policy before the update appears in the ratio of
# tutorial 05.)

# %% [markdown]
# ## By hand
#
# The policy `OLD` and the `REFERENCE` answer `7+5=`. They make the same choices with different
# probabilities:
#
# | | "1" | "2" | then "2" | "3" | "0" |
# |---|---|---|---|---|---|
# | policy | 0.5 | 0.5 | 0.5 | 0.3 | 0.2 |
# | reference | 0.75 | 0.25 | 0.25 | 0.45 | 0.3 |
# | ratio policy / reference | 2/3 | 2 | 2 | 2/3 | 2/3 |
#
# So a log-ratio is $\log 2 = 0.6931$ or $-\log 1.5 = -0.4055$. In both states each has probability
# 1/2, and the KL is $(0.6931 - 0.4055)/2 = 0.1438$. The second choice exists only after "1", with
# probability 1/2. For whole answers the KL is $0.1438 + \tfrac12\cdot 0.1438 = 0.2158$.
#
# An answer that was sampled has only its own log-ratios. Three numbers are made of one:
#
# $$k_1 = \log\frac{\pi}{\mathrm{ref}},\qquad k_2 = \tfrac12 k_1^2,\qquad
#   k_3 = \frac{\mathrm{ref}}{\pi} - \log\frac{\mathrm{ref}}{\pi} - 1.$$

# %%
logp, ref_logp, probs = token_logprobs(OLD), token_logprobs(REFERENCE), probabilities(OLD)
first, then = (exact_kl(a, b) for a, b in zip(OLD, REFERENCE, strict=True))
print(f"exact: first choice {first:.4f}, second {then:.4f}, answers {first + 0.5 * then:.4f}\n")
assert near(first, then) and near(first, math.log(2) / 2 - math.log(1.5) / 2)
KL = 1.5 * first
sums = {}
for estimator in (k1, k2, k3):
    sums[estimator] = estimator(logp, ref_logp).sum(1)                        # (4,) per answer
    print(f"{estimator.__name__} of", *(f"{a} {v:7.4f} " for a, v in
                                        zip(ANSWERS, sums[estimator], strict=True)),
          f"  mean {probs @ sums[estimator]:.4f}")
assert near(sums[k1], [0.28768, -0.81093, -0.81093, 0.69315], 1e-5)
assert near(probs @ sums[k1], KL) and near(probs @ sums[k3], KL) and near(KL, 0.2158, 1e-4)
assert probs @ sums[k2] > KL + 0.02

# %% [markdown]
# **Is k3 a KL?** No, it is an estimate, and so are k1 and k2. The means of k1 and k3 are the KL
# (k3 adds $\mathrm{ref}/\pi - 1$ to k1, whose mean is 0); that of k2 is a little higher. All three
# need only the log-prob of the sampled token. The exact sum needs all logits of both models, and
# with 150,000 words that is a large tensor for each token.
#
# **Why is mine negative?** "13" and "10+1=11" have k1 = -0.81: the reference likes them more. The
# mean over a small batch is negative now and then:

# %%
for n, expected in ((1, 0.25), (8, 0.157)):
    batches = torch.cartesian_prod(*[torch.arange(4)] * n).view(-1, n)        # all 4^n batches
    chance = probs[batches].prod(1)[sums[k1][batches].mean(1) < 0].sum()
    print(f"batch of {n}: mean k1 is negative with probability {chance:.3f}")
    assert near(chance, expected, 5e-4)
assert min(sums[k2].min(), sums[k3].min()) >= 0

# %% [markdown]
# A mean that *stays* negative has another cause: the samples are not the policy's. A minimal length
# forbids short answers ([an example](https://github.com/huggingface/trl/issues/1017)). Here it
# forbids "2", but log-probs are those of the policy that may say "2":

# %%
forced = probs * torch.tensor([1.0, 1.0, 1.0, 0.0])
forced = forced / forced.sum()
print(f"mean k1 with a minimal length: {forced @ sums[k1]:.4f}, however many samples")
assert near(forced @ sums[k1], -math.log(1.5) + then)

# %% [markdown]
# ## The function

# %%
show(k3)

# %%
value = k3(logp, ref_logp)  # step in: k3
print(value[:2, :3])
assert near(value[0, :2], [1.5 - math.log(1.5) - 1, 0.5 + math.log(2) - 1])

# %% [markdown]
# ## One table, three questions
#
# A penalty is there for its gradient. $\mathbb{E}_\pi[k] = \sum \pi\,k$ is a sum of products, and
# so its derivative has two halves:
#
# $$\nabla\,\mathbb{E}_\pi[k] \;=\; \underbrace{\mathbb{E}_\pi[\nabla k]}_{\text{loss half}}
#   \;+\; \underbrace{\mathbb{E}_\pi[k\,\nabla\log\pi]}_{\text{reward half}}.$$
#
# A loss term is differentiated at fixed samples: that is the first half. A reward is a number, and
# the policy gradient (tutorial 00) makes the second half of it. Neither place gives both. So the
# question is which half of which estimate is the gradient of the KL:
#
# - k1: $\nabla k_1 = \nabla\log\pi$ has mean 0. The loss half is nothing, the reward half is all.
# - k2: $\nabla k_2 = k_1\nabla\log\pi$, the same as the reward half of k1. The loss half is all.
# - k3: $\nabla k_3 = (1 - \mathrm{ref}/\pi)\nabla\log\pi$. The loss half is
#   $-\sum\mathrm{ref}\,\nabla\log\pi$, the gradient of $\mathrm{KL}(\mathrm{ref}\,\|\,\pi)$,
#   another divergence with the same minimum. In the logits it is simply $\pi - \mathrm{ref}$: that
#   of SFT on what the reference writes. The reward half is a difference of two gradients.
# - $\rho\,k_3$ with $\rho = \pi/\pi_\mathrm{old}$ (`corrected_k3`): the derivative of $\rho$ adds
#   the reward half to the loss half.
#
# Exactly, for one token out of three words. The policy is the softmax of (0.5, -0.2, 0.1), the
# reference is (0.2, 0.5, 0.3):

# %%
def on_policy_k3(logp, ref_logp):
    return corrected_k3(logp, logp.detach(), ref_logp)  # step in: corrected_k3


def four_numbers(estimator, logits, ref_logp):
    """Return mean, variance, loss half and reward half: (...), (...), (..., V) and (..., V)."""
    leaf = logits.clone().requires_grad_()
    logp = leaf.log_softmax(-1)
    probs, k = logp.detach().exp(), estimator(logp, ref_logp)
    mean = (probs * k.detach()).sum(-1)
    variance = (probs * (k.detach() - mean[..., None]).square()).sum(-1)
    loss_half, = torch.autograd.grad((probs * k).sum(), leaf, retain_graph=True)
    reward_half, = torch.autograd.grad((probs * k.detach() * logp).sum(), leaf)
    return mean, variance, loss_half, reward_half


def slope_of_kl(logits, ref_logp):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(exact_kl(leaf, ref_logp).sum(), leaf)[0]


WORDS = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)                   # logits
REF = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "ρ k3": on_policy_k3}
table = {name: four_numbers(estimator, WORDS, REF) for name, estimator in ESTIMATORS.items()}
true_slope = slope_of_kl(WORDS, REF)
print(f"exact KL {exact_kl(WORDS, REF):.4f}, its gradient {text(true_slope)}\n")
print("       mean   variance  gradient as a loss           gradient as a reward")
for name, (mean, variance, loss_half, reward_half) in table.items():
    print(f"{name:5} {mean:.4f}  {variance:.4f}   {text(loss_half)}  {text(reward_half)}")

GRAD_KL, REVERSE = [0.28592, -0.22842, -0.05751], [0.26149, -0.27083, 0.00934]
assert near(exact_kl(WORDS, REF), 0.216570, 1e-6) and near(true_slope, GRAD_KL, 6e-6)
assert near(torch.stack([table[k][0] for k in ("k1", "k2", "k3")]),
            [0.216570, 0.231205, 0.216570], 1e-6)
assert near(torch.stack([table[k][1] for k in ("k1", "k2", "k3")]),
            [0.4155, 0.02416, 0.02359], 6e-5)
assert near(table["k1"][2], [0, 0, 0]) and near(table["k1"][3], GRAD_KL, 6e-6)
assert near(table["k2"][2], GRAD_KL, 6e-6) and near(table["ρ k3"][2], GRAD_KL, 6e-6)
assert near(table["k3"][2], REVERSE, 6e-6) and near(table["k3"][2], WORDS.softmax(0) - REF.exp())
assert near(table["k3"][3], [0.02444, 0.04242, -0.06685], 6e-6)
assert near(torch.cosine_similarity(table["k3"][3], true_slope, dim=0), 0.037, 1e-3)

# %% [markdown]
# The variance explains why k3 is liked: with the same mean it scatters far less than k1 (only near
# the reference, as a figure below shows). But it is useless as a reward. Its gradient is short,
# and here at a right angle to that of the KL.
#
# ## Picture
#
# Left, each estimate against the ratio. Right, its slope in $\log\pi$: how hard a loss pulls at a
# sampled token. k3 pulls down a token that the policy says too often with a force below 1, and
# pulls up one that it says too rarely with a force that has no bound.

# %%
ratio = torch.logspace(math.log10(1 / 8), math.log10(8), 121).double()
figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.2))
for estimator in (k1, k2, k3):
    leaf = ratio.log().requires_grad_()
    k = estimator(leaf, torch.zeros(121).double())
    left.plot(ratio, k.detach(), label=estimator.__name__)
    pull, = torch.autograd.grad(k.sum(), leaf)
    right.plot(ratio, pull, label=estimator.__name__)
assert pull.max() < 1 and near(pull.min(), 1 - 8, 1e-5)   # of k3, at the ends of the axis
for axes, title, label in ((left, "Value", "estimate, nats"),
                           (right, "Slope: the pull as a loss", "derivative in log π")):
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle="-")
    axes.set(title=title, xlabel="π / ref of the sampled token", ylabel=label, xscale="log",
             xticks=[1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8],
             xticklabels=["1/8", "1/4", "1/2", "1", "2", "4", "8"], ylim=(-4, 5.2))
    axes.minorticks_off()
left.legend(loc="lower right")
keep(figure, "07_estimators")

# %% [markdown]
# The gradients of the table as arrows, turned round: where a penalty pushes the policy. Three
# logits whose changes add up to 0 are a plane with a direction for each word.

# %%
CORNERS = torch.tensor([[0.0, 1.0], [-0.75 ** 0.5, -0.5], [0.75 ** 0.5, -0.5]]).double()


def arrow(axes, slope, label, **style):
    x, y = (-slope @ CORNERS * (2 / 3) ** 0.5).tolist()                       # keeps lengths
    if math.hypot(x, y) < 1e-9:
        axes.plot(0, 0, "o", color=style["color"], markersize=9, zorder=9)
    axes.annotate("", (x, y), (0, 0), zorder=style.pop("zorder"), arrowprops=dict(
        arrowstyle="-|>", mutation_scale=12 + 3 * style["linewidth"], shrinkA=0, shrinkB=0,
        **style))
    axes.plot([], [], label=label, **style)


figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.5))
for axes, half, title in zip(panels, (2, 3), ("As a loss", "As a reward"), strict=True):
    for (x, y), word in zip(0.3 * CORNERS, "ABC", strict=True):
        axes.plot([0, x], [0, y], color=GREY, linewidth=0.7, linestyle=":")
        axes.text(1.25 * x, 1.25 * y, f"more of\nword {word}", ha="center", va="center",
                  fontsize=8, color=GREY)
    arrow(axes, true_slope, "exact KL", color="#d1d5db", linewidth=8, linestyle="-", zorder=1)
    for name, colour, style in (("k1", BLUE, "-"), ("k2", RED, "--"), ("k3", AMBER, "-.")):
        note = " (nothing)" if name == "k1" and half == 2 else ""
        arrow(axes, table[name][half], name + note, color=colour, linewidth=2, linestyle=style,
              zorder=5)
    axes.set(title=title, xlim=(-0.6, 0.45), ylim=(-0.36, 0.42), xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.legend(loc="upper left", handlelength=2.5)
keep(figure, "07_gradients")

# %% [markdown]
# The same for two words, with sliders for policy and reference. In the right panel, k3 as a loss
# is the straight line $\pi - \mathrm{ref}$. It touches the curve of the KL at the reference.

# %%
GRID = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)                    # π of the first word
REFS = torch.linspace(0.1, 0.9, 17, dtype=torch.float64)


def curves(ref):
    """Return the curves of both panels over GRID, for a reference probability."""
    logits = torch.stack([GRID, 1 - GRID], 1).log()                           # (49, 2)
    ref_logp = torch.stack([ref, 1 - ref]).log().expand_as(logits)
    numbers = {name: four_numbers(k, logits, ref_logp) for name, k in ESTIMATORS.items()}
    assert near(numbers["k1"][0], exact_kl(logits, ref_logp))
    assert near(numbers["k1"][3], slope_of_kl(logits, ref_logp))
    assert near(numbers["k2"][2], slope_of_kl(logits, ref_logp))
    return ({"mean of k1, k3": numbers["k3"][0], "mean of k2": numbers["k2"][0],
             "std of k1": numbers["k1"][1].sqrt(), "std of k3": numbers["k3"][1].sqrt()},
            {"k1 as reward": numbers["k1"][3][:, 0], "k3 as loss": numbers["k3"][2][:, 0],
             "k3 as reward": numbers["k3"][3][:, 0], "k1 as loss": numbers["k1"][2][:, 0]})


every = [curves(ref) for ref in REFS]
STYLES = ((BLUE, ""), (RED, "6 3"), (AMBER, "8 3 2 3"), (GREEN, "2 2"))
PANELS = (("Value", "nats", 0.0, 1.5), ("Gradient in word 1's logit", "", -0.6, 0.6))
slider("07_kl", {
    "title": "KL estimators, one token out of two words",
    "note": "Left: what a log shows. The mean of k1 and k3 is the KL.\n"
            "Right: what moves the policy. k1 as a reward and k2 as a loss have the KL's gradient.",
    "x": {"label": "policy: probability of word 1", "values": [round(x, 2) for x in GRID.tolist()],
          "start": 34},
    "sliders": [{"label": "reference: probability of word 1",
                 "values": [round(x, 2) for x in REFS.tolist()], "start": 4}],
    "panels": [{"title": title, "label": label, "low": low, "high": high, "curves": [
        {"label": name, "colour": colour, "dash": dash,
         "values": [[round(v, 4) for v in both[i][name].tolist()] for both in every]}
        for name, (colour, dash) in zip(every[0][i], STYLES, strict=True)]}
        for i, (title, label, low, high) in enumerate(PANELS)]})

assert every[4][0]["std of k3"][-1] > 2 * every[4][0]["std of k1"][-1]        # far from it
figure, panels = plt.subplots(1, 2, figsize=(7.8, 3.0))
for axes, named, (title, label, low, high), corner in zip(
        panels, every[4], PANELS, ("upper center", "lower center"), strict=True):
    for name, values in named.items():
        axes.plot(GRID, values, label=name)
    axes.axvline(REFS[4], color=GREY, linewidth=0.8, linestyle=":")
    axes.text(REFS[4] - 0.01, high, "reference", fontsize=8, color=GREY, ha="right", va="top",
              rotation=90)
    axes.set(title=title, ylabel=label, ylim=(low, high), xlabel="policy: probability of word 1")
    axes.legend(loc=corner)
keep(figure, "07_kl")

# %% [markdown]
# ## In the loop
#
# "PPO multiplies the KL, GRPO subtracts it" is heard now and then. Both multiply the estimate by
# $\beta$ (`kl_coef`), and both subtract the product. They differ in three points:
#
# | | InstructGPT's PPO (`minirl/train/ppo.py`) | GRPO (`minirl/train/grpo.py`, stage 4) |
# |---|---|---|
# | where | in each token's reward | in the loss |
# | estimate | k1, in `kl_shaped_rewards` | `k3` |
# | who pays | a token and all earlier ones, which led to it | the token alone |
#
# On the four answers, with $\beta = 0.1$ and the rule's reward (1 for "12") as the score. A token's
# weight is what multiplies its $\nabla\log\pi$. In PPO that is the return, in GRPO, at
# $\pi = \pi_\mathrm{old}$, the coefficient $A + \beta(\mathrm{ref}/\pi - 1)$ of eq. 21:

# %%
BETA = 0.1
shaped = kl_shaped_rewards(REWARDS[0], logp, ref_logp, MASK, BETA)  # step in: kl_shaped_rewards
in_reward = discounted_returns(shaped, MASK)                                  # (4, 8)
adv = torch.where(MASK, REWARDS[0][:, None], 0)
in_loss = grpo_coefficient(adv, logp, ref_logp, kl_coef=BETA)                 # (4, 8)
for i, answer in enumerate(ANSWERS):
    print(f"{answer:8} rewards {text(shaped[i, :3])}  PPO weights {text(in_reward[i, :3])}  "
          f"GRPO {text(in_loss[i, :3])}")
assert near(in_reward[0, :3], [1 - 0.1 * 0.28768, 1 - 0.1 * 0.69315, 1], 1e-5)
assert near(in_loss[0, :3], [1.05, 0.95, 1.0])
half = torch.tensor([[0.5]], dtype=torch.float64).log()   # ref/π = 1/2, β = 0.04, A = 1
assert near(grpo_coefficient(torch.ones(1, 1), torch.zeros(1, 1), half.float()), 0.98, 1e-6)

# %% [markdown]
# **k3 is refused in the reward.** `kl_shaped_rewards` raises, because near the reference, where
# training begins, the gradient of the KL shrinks in proportion to the distance, and that of k3 in
# the reward with its square:

# %%
try:
    kl_shaped_rewards(REWARDS[0], logp, ref_logp, MASK, BETA, estimator=k3)
    message = ""
except ValueError as error:
    message = str(error)
print(message, "\n")
assert "k3 in the reward" in message


def slope(policy, objective):
    """Return the gradient of objective(log-probs) in the policy's five logits, (5,)."""
    leaves = tuple(logits.clone().requires_grad_() for logits in policy)
    return torch.cat(torch.autograd.grad(objective(token_logprobs(leaves)), leaves))


def in_the_reward(policy, estimator):
    """Return the exact gradient of the penalty that `estimator` is, as a reward."""
    weights, now = probabilities(policy), token_logprobs(policy)
    penalty = -kl_shaped_rewards(torch.zeros(4).double(), now, ref_logp, MASK, 1.0,
                                 estimator=estimator, allow_biased=True)      # (4, 8)
    to_go = discounted_returns(penalty, MASK)
    return slope(policy, lambda logp: weights @ (to_go * logp).sum(1))


def as_a_loss(policy, estimator, weights=None):
    """Return the gradient of the penalty as a loss: exact, or of samples that have weights."""
    weights = probabilities(policy) if weights is None else weights           # (4,)
    return slope(policy, lambda logp: weights @ estimator(logp, ref_logp).sum(1))


whole_kl = slope(OLD, lambda logp: logp.sum(1).exp() @ (logp - ref_logp).sum(1))
assert near(in_the_reward(OLD, k1), whole_kl)
for estimator in (k2, on_policy_k3):                      # as a loss: for the answer, by token
    whole = slope(OLD, lambda logp, k=estimator: probs @ k(logp.sum(1), ref_logp.sum(1)))
    assert near(whole, whole_kl) and not near(as_a_loss(OLD, estimator), whole_kl, 0.03)
for part in (1.0, 0.3, 0.1, 0.03):
    between = tuple(b + part * (a - b) for a, b in zip(OLD, REFERENCE, strict=True))
    right, wrong = in_the_reward(between, k1), in_the_reward(between, k3)
    share = (wrong.norm() / right.norm()).item()
    cosine = torch.cosine_similarity(right, wrong, dim=0).item()
    print(f"{part:4.0%} of the way to the policy: gradient of k3 in the reward is {share:6.2%} of "
          f"that of the KL, cosine {cosine:5.2f}")
    assert share < 0.25 * part and (cosine < 0) == (part == 1)

# %% [markdown]
# At the policy itself it even points away from the reference.
#
# **Same β, another policy.** Where does training end? With k1 in the reward, at the policy that
# maximises $\mathbb{E}[R] - \beta\,\mathrm{KL}(\pi\,\|\,\mathrm{ref})$. It has a formula
# (exercise 3). k3 in the loss stands for $\mathrm{KL}(\mathrm{ref}\,\|\,\pi)$ of each token, which
# resists more when the policy gives up what the reference writes. So a `kl_coef` found for one
# method says little about the other. Gradient ascent on exact gradients, with $\beta = 0.3$:

# %%
def policy_after(penalty, beta=0.3, steps=300 if FAST else 600, lr=1.0):
    """Return the policy that learns from exact gradients of the reward, minus a penalty."""
    policy = OLD
    for _ in range(steps):
        up = slope(policy, lambda logp: logp.sum(1).exp() @ REWARDS[0])
        up = up - beta * penalty(policy)
        policy = tuple(a + lr * b for a, b in zip(policy, up.split([2, 3]), strict=True))
    return policy


ENDS = {"k1 in the reward": lambda policy: in_the_reward(policy, k1),
        "k3 in the loss": lambda policy: as_a_loss(policy, k3),
        "k1 in the loss": lambda policy: as_a_loss(policy, k1)}
right_answer = {}
for name, penalty in ENDS.items():
    policy = policy_after(penalty)
    right_answer[name] = probabilities(policy)[0].item()
    kl = probabilities(policy) @ k1(token_logprobs(policy), ref_logp).sum(1)
    print(f"{name:17} P(12) = {right_answer[name]:.4f}, KL = {kl:.4f}")
print(f"formula           P(12) = {0.86611:.4f}")
assert near(right_answer["k1 in the reward"], 0.86611, 1e-3)
assert right_answer["k3 in the loss"] < 0.75 and right_answer["k1 in the loss"] > 0.99

# %% [markdown]
# k1 in the loss ends where no penalty would: its exact gradient is 0.
#
# ## Break it
#
# Take the reward away. Only the penalty is left, and the policy should fall back to the reference.
# Four penalties with exact gradients, and k1 in the loss once more with eight sampled answers per
# step:

# %%
STEPS, RUNS = 60, 5


def fall(penalty, lr=0.5):
    """Return the exact KL before each step of gradient descent on a penalty."""
    policy, curve = OLD, []
    for _ in range(STEPS):
        now = token_logprobs(policy)
        curve.append((probabilities(policy) @ k1(now, ref_logp).sum(1)).item())
        policy = tuple(a - lr * b for a, b in
                       zip(policy, penalty(policy).split([2, 3]), strict=True))
    return curve


def sampled_k1(policy):
    answers = torch.multinomial(probabilities(policy), 8, replacement=True, generator=generator)
    return as_a_loss(policy, k1, weights=answers.bincount(minlength=4).double() / 8)


figure, axes = plt.subplots(figsize=(6.4, 3.4))
generator = torch.Generator().manual_seed(0)
falls = {}
for run in range(RUNS):
    falls[run] = fall(sampled_k1)
    axes.plot(falls[run], color=RED, linestyle="-", linewidth=0.8, alpha=0.5,
              label=None if run else "k1 in the loss, 8 samples")
for (name, penalty), colour, style in zip(
        {"k1 in the loss": ENDS["k1 in the loss"], "k1 in the reward": ENDS["k1 in the reward"],
         "k2 in the loss": lambda policy: as_a_loss(policy, k2),
         "k3 in the loss": ENDS["k3 in the loss"]}.items(),
        (RED, BLUE, GREEN, AMBER), ("--", "-", ":", "-."), strict=True):
    falls[name] = fall(penalty)
    axes.plot(falls[name], color=colour, linestyle=style, linewidth=2.2, label=name + ", exact")
    print(f"{name:17} KL {falls[name][0]:.4f} -> {falls[name][-1]:.4f}")
axes.set(title="Only the penalty is left", xlabel="step", ylabel="KL to the reference, nats",
         xlim=(0, STEPS), ylim=(-0.03, 1.05))
axes.legend(loc="upper left")
keep(figure, "07_break")
drift = [falls[run][-1] for run in range(RUNS)]
print("with samples, k1 in the loss ends at", ", ".join(f"{kl:.2f}" for kl in drift))
assert near(falls["k1 in the loss"], [float(KL)] * STEPS)
assert all(falls[name][-1] < 0.001 for name in list(falls)[-3:])
assert sum(drift) / RUNS > KL

# %% [markdown]
# The loss of k1 is the mean log-prob of the samples, minus a constant. Descending it makes
# *whatever was sampled* less probable. That is noise around 0: the policy wanders, on average away.
# It has happened in [open-instruct](https://github.com/allenai/open-instruct/pull/535) and in
# [NeMo RL](https://github.com/NVIDIA-NeMo/RL/pull/2506).
#
# ## Exercises
#
# The answers are in `tutorials/solutions/07_kl.py`.

# %%
def exercise_1(pi, ref):
    """Return k1, k2 and k3, three floats, of a token with probability pi under the policy and ref
    under the reference. Python's math is enough."""
    raise NotImplementedError


def check_1(answer):
    for pi, ref, expected in ((0.5, 0.25, (0.693147, 0.240227, 0.193147)),
                              (0.25, 0.5, (-0.693147, 0.240227, 0.306853)), (0.3, 0.3, (0, 0, 0))):
        value = answer(pi, ref)
        assert near(value, expected, 1e-6), f"{pi} and {ref}: {value}, wanted {expected}"


judge(check_1, exercise_1)


def exercise_2(logp, old_logp, ref_logp):
    """The tokens were sampled by an older policy. Return a loss for each of them, (N,), whose mean
    gradient over such samples is the gradient of KL(π || ref)."""
    raise NotImplementedError


def check_2(answer):
    old = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)                  # it sampled
    leaf = WORDS.clone().requires_grad_()
    value = torch.autograd.grad(old @ answer(leaf.log_softmax(0), old.log(), REF), leaf)[0]
    assert near(value, [0.28592, -0.22842, -0.05751], 1e-5), (
        f"{text(value)}, wanted (0.2859, -0.2284, -0.0575)")


judge(check_2, exercise_2)


def exercise_3(ref_probs, rewards, beta):
    """Return the probabilities of the policy that maximises E[R] - beta KL(π || ref)."""
    raise NotImplementedError


def check_3(answer):
    ref_probs = probabilities(REFERENCE)                                      # (4,)
    for beta, expected in ((1.0, (0.38548, 0.25526, 0.17018, 0.18908)),
                           (0.5, (0.63034, 0.15357, 0.10238, 0.11376))):
        value = answer(ref_probs, REWARDS[0], beta)
        assert near(value, expected, 1e-4), f"beta {beta}: {text(value)}, wanted {expected}"


judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | paper | here |
# |---|---|---|
# | k3 | DeepSeekMath, eq. 4: "unbiased" | as a value; as a loss its gradient is another one |
# | $\rho\,k_3$ | DeepSeek-V3.2, eq. 7 | `corrected_k3`, not used by `minirl/train/grpo.py` |
# | large ratios | none | ref/$\pi$ is capped at exp(20), so that nothing overflows |
# | tokens | GRPO: the mean over an answer's tokens | their sum, so that it is a KL |
# | $\beta$ | 0.02 (InstructGPT), 0.04 (DeepSeekMath), 0.001 (R1-Zero) | 0.01 in `minirl grpo` |
#
# For whole texts, three choices have the gradient of the KL: k1 in the reward, and as losses k2 and
# $\rho\,k_3$ of the text's summed log-ratio. Token by token, k2 and $\rho\,k_3$ leave out that a
# token changes which states follow. The docstring of `minirl/equations/kl.py` has the overview.
#
# ## Find the bug
#
# `kl_estimate` should be k3. It is never negative, it is 0 where the policy equals the reference,
# and near there it has the right size. It has a bug all the same. Write a test that finds it. A
# test takes such a function of `logp` and `ref_logp`, and raises AssertionError if it is wrong.

# %%
def kl_estimate(logp, ref_logp):
    log_ratio = logp - ref_logp
    return log_ratio.exp() - log_ratio - 1


def exercise_bug(function):
    """Raise AssertionError unless function(logp, ref_logp) is k3."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, k3, kl_estimate)


judge(check_bug, exercise_bug)
