# %%
# %pip install -q -e ..

# %% [markdown]
# # 07. The KL penalty
#
# *k1, k2, k3: is k3 a KL, why is mine negative, and does it belong in the reward or in the loss?*
#
# - **Paper**: Schulman 2020, [Approximating KL divergence](http://joschu.net/blog/kl-approx.html);
#   InstructGPT, [arXiv:2203.02155](https://arxiv.org/abs/2203.02155), eq. 2; DeepSeekMath,
#   [arXiv:2402.03300](https://arxiv.org/abs/2402.03300), eqs. 3, 4 and 21; on the gradients,
#   [arXiv:2510.01555](https://arxiv.org/abs/2510.01555)
# - **Code**: `minirl/equations/kl.py`: `k1`, `k2`, `k3`, `corrected_k3`, `exact_kl`,
#   `kl_shaped_rewards`; `minirl/equations/coefficients.py`: `grpo_coefficient`
# - **Tests**: `tests/equations/test_kl.py`
# - **Before this**: 00 (policy gradient), 05 (ratio)
# - **Time**: 7 s on two CPU cores, with `MINIRL_FAST=1` as well
# - **Expect**: k1 as a loss does not lower the KL; k2 and k3 as losses bring it to 0
# - **Sweep**: `for b in 0.001 0.01 0.1 1; do minirl grpo --kl-coef $b; done`: how far does `kl`
#   get, and what does it cost in `reward`?
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | `kl` in the first step | 0 | the reference is another model, or dropout is on |
# | mean of k1 (PPO: `objective/kl`) | at least 0 | another policy sampled: top-p, minimal length |
# | `kl` at a higher `kl_coef` | lower | a wrong sign, or k1 as a loss |

# %%
import math

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, GREEN, GREY, RED, judge, judge_test, keep, near, show, slider
from minirl.equations.advantages import discounted_returns, spread
from minirl.equations.coefficients import grpo_coefficient
from minirl.equations.kl import corrected_k3, exact_kl, k1, k2, k3, kl_shaped_rewards
from minirl.equations.objectives import clipped_surrogate
from minirl.testing.example import (
    ANSWERS,
    MASK,
    OLD,
    REFERENCE,
    REWARDS,
    probabilities,
    token_logprobs,
)


def text(row):
    return "(" + ", ".join(f"{x:7.4f}" for x in row.tolist()) + ")"


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
# (Notes on PPO sometimes say that the KL divides rewards, after and before the update. What is
# divided are two probabilities of one token: here the policy's by the reference's, in tutorial 05
# the policy's by that of the policy before the update.)

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
# A sampled answer shows only its own log-ratios. Three estimates are made of one log-ratio:
#
# $$k_1 = \log\frac{\pi}{\mathrm{ref}},\qquad k_2 = \tfrac12 k_1^2,\qquad
#   k_3 = \frac{\mathrm{ref}}{\pi} - \log\frac{\mathrm{ref}}{\pi} - 1.$$

# %%
logp, ref_logp, probs = token_logprobs(OLD), token_logprobs(REFERENCE), probabilities(OLD)
first, then = (exact_kl(a, b) for a, b in zip(OLD, REFERENCE, strict=True))
KL = first + 0.5 * then
print(f"exact: first choice {first:.4f}, second {then:.4f}, answers {KL:.4f}")
assert near(first, then) and near(first, math.log(2) / 2 - math.log(1.5) / 2)
sums = {k: k(logp, ref_logp).sum(1) for k in (k1, k2, k3)}                    # (4,) per answer
print("            ", *(f"{answer:>8}" for answer in ANSWERS), "     mean")
for estimator, row in sums.items():
    print(f"{estimator.__name__} of answers", *(f"{v:8.4f}" for v in row), f"{probs @ row:8.4f}")
assert near(sums[k1], [0.28768, -0.81093, -0.81093, 0.69315], 1e-5)
assert near(probs @ sums[k1], KL) and near(probs @ sums[k3], KL) and near(KL, 0.2158, 1e-4)
assert KL + 0.02 < probs @ sums[k2] and min(sums[k2].min(), sums[k3].min()) >= 0

# %% [markdown]
# **Is k3 a KL?** No, it is an estimate, and so are k1 and k2. The means of k1 and k3 are the KL:
# k3 adds $\mathrm{ref}/\pi - 1$ to k1, and that has mean 0. The mean of k2 is a little higher. All
# three need one log-prob of each model. The exact sum needs all logits of both, often more than
# 100,000 at each token.
#
# **Why is mine negative?** "13" and "10+1=11" have k1 = -0.81: the reference likes them more. The
# mean over a small batch is negative now and then. If it *stays* negative, and its sign is right,
# the samples are not the policy's. A minimal length, for example, forbids short answers
# ([somebody's case](https://github.com/huggingface/trl/issues/1017)). Here it forbids "2", but the
# log-probs are those of the policy that may say "2".

# %%
for n, expected in ((1, 0.25), (8, 0.157)):
    batches = torch.cartesian_prod(*[torch.arange(4)] * n).view(-1, n)        # all 4^n batches
    chance = probs[batches].prod(1)[sums[k1][batches].mean(1) < 0].sum()
    print(f"batch of {n}: mean k1 is negative with probability {chance:.3f}")
    assert near(chance, expected, 5e-4)
forced = torch.where(torch.tensor([True, True, True, False]), probs, 0)
forced = forced / forced.sum()
print(f"mean k1 with a minimal length: {forced @ sums[k1]:.4f}, however many samples")
assert near(forced @ sums[k1], -math.log(1.5) + then)

# %% [markdown]
# ## The function

# %%
show(k3)
value = k3(logp, ref_logp)  # step in: k3
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
#   another divergence with the same minimum. In the logits it is simply $\pi - \mathrm{ref}$, as
#   for SFT on what the reference writes. The reward half is what it lacks.
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


WORDS = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)                   # logits
REF = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "ρ k3": on_policy_k3}
table = {name: four_numbers(estimator, WORDS, REF) for name, estimator in ESTIMATORS.items()}
leaf = WORDS.clone().requires_grad_()
true_slope, = torch.autograd.grad(exact_kl(leaf, REF), leaf)
print(f"exact KL {exact_kl(WORDS, REF):.4f}, its gradient {text(true_slope)}\n")
print("       mean   variance  gradient as a loss           gradient as a reward")
for name, (mean, variance, loss_half, reward_half) in table.items():
    print(f"{name:5} {mean:.4f}  {variance:.4f}   {text(loss_half)}  {text(reward_half)}")

assert near(exact_kl(WORDS, REF), 0.216570, 1e-6)
for name, mean, variance in (("k1", 0.216570, 0.4155), ("k2", 0.231205, 0.02416),
                             ("k3", 0.216570, 0.02359)):
    assert near(table[name][0], mean, 1e-6) and near(table[name][1], variance, 6e-5)
assert near(true_slope, [0.28592, -0.22842, -0.05751], 6e-6)
assert near(table["k1"][2], [0, 0, 0]) and near(table["k1"][3], true_slope)
assert near(table["k2"][2], true_slope) and near(table["ρ k3"][2], true_slope)
assert near(table["k3"][2], WORDS.softmax(0) - REF.exp())                     # (.261, -.271, .009)
assert near(table["k3"][3], true_slope - table["k3"][2])                      # (.024, .042, -.067)
assert near(torch.cosine_similarity(table["k3"][3], true_slope, dim=0), 0.037, 1e-3)

# %% [markdown]
# So a good estimate and a good penalty are two things. k2 is biased as a value and exact as a loss.
# k3 has the right mean, and near the reference far less variance than k1, because
# $\mathrm{ref}/\pi - 1$ is low where k1 is high. As a loss it is the gradient of the other KL, and
# as a reward it is useless: a short gradient, here at a right angle to that of the KL.
#
# All of this is about samples of $\pi$ itself. In later passes over a batch (tutorial 05) they come
# from $\pi_\mathrm{old}$, and then a loss needs the factor $\rho$ (exercise 2).
#
# ## Picture
#
# The table's columns for two words, with sliders for policy and reference:
# [figures/07_kl.html](figures/07_kl.html). As a loss, k3 is the straight line
# $\pi - \mathrm{ref}$, which touches the curve of the KL at the reference. Where does k3 scatter
# more than k1, and where does k3 as a reward push away from the reference?

# %%
GRID = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)                    # π of the first word
REFS = torch.linspace(0.1, 0.9, 17, dtype=torch.float64)


def curves(ref):
    """Return the curves of both panels over GRID, for a reference probability."""
    logits = torch.stack([GRID, 1 - GRID], 1).log()                           # (49, 2)
    ref_logp = torch.stack([ref, 1 - ref]).log().expand_as(logits)
    numbers = {name: four_numbers(k, logits, ref_logp) for name, k in ESTIMATORS.items()}
    assert near(numbers["k1"][0], exact_kl(logits, ref_logp))
    assert near(numbers["k1"][3], numbers["k2"][2])                           # the KL's gradient
    return ({"mean of k1, k3": numbers["k3"][0], "mean of k2": numbers["k2"][0],
             "std of k1": numbers["k1"][1].sqrt(), "std of k3": numbers["k3"][1].sqrt()},
            {"k1 as reward": numbers["k1"][3][:, 0], "k3 as loss": numbers["k3"][2][:, 0],
             "k3 as reward": numbers["k3"][3][:, 0], "k1 as loss": numbers["k1"][2][:, 0]})


every = [curves(ref) for ref in REFS]
STYLES = ((BLUE, ""), (RED, "6 3"), (AMBER, "8 3 2 3"), (GREEN, "2 2"))
PANELS = (("Value", "nats", 0.0, 2.0), ("Gradient in word 1's logit", "", -0.9, 0.9))
slider("07_kl", {
    "title": "KL estimators, one token out of two words",
    "note": "Left: what a log shows. The mean of k1 and k3 is the KL.\n"
            "Right: what moves the policy. k1 as a reward and k2 as a loss have the KL's gradient.",
    "x": {"label": "policy: probability of word 1", "values": [round(x, 2) for x in GRID.tolist()],
          "start": 39},
    "sliders": [{"label": "reference: probability of word 1",
                 "values": [round(x, 2) for x in REFS.tolist()], "start": 4}],
    "panels": [{"title": title, "label": label, "low": low, "high": high, "curves": [
        {"label": name, "colour": colour, "dash": dash,
         "values": [[round(v, 4) for v in both[i][name].tolist()] for both in every]}
        for name, (colour, dash) in zip(every[0][i], STYLES, strict=True)]}
        for i, (title, label, low, high) in enumerate(PANELS)]})

values, slopes = every[4]                                                     # ref is 0.3
assert values["std of k3"][-1] > 2 * values["std of k1"][-1] and slopes["k3 as reward"][39] < -0.1
figure, panels = plt.subplots(1, 2, figsize=(7.8, 3.0))
for axes, named, (title, label, low, high) in zip(panels, every[4], PANELS, strict=True):
    for name, curve in named.items():
        axes.plot(GRID, curve, label=name)
    axes.axvline(REFS[4], color=GREY, linewidth=0.8, linestyle=":")
    axes.text(REFS[4] - 0.01, high, "reference", fontsize=8, color=GREY, ha="right", va="top",
              rotation=90)
    axes.set(title=title, ylabel=label, ylim=(low, high), xlabel="policy: probability of word 1")
    axes.legend(loc="upper center")
keep(figure, "07_kl")

# %% [markdown]
# ## In the loop
#
# "PPO multiplies the KL, GRPO subtracts it" is heard now and then. Both multiply an estimate by
# $\beta$ (`kl_coef`), and both subtract the product. In PPO's reward it then becomes a factor of
# $\nabla\log\pi$, the reward half. In GRPO's loss it has a derivative of its own, the loss half.
#
# | | InstructGPT's PPO (`minirl/train/ppo.py`) | GRPO (`minirl/train/grpo.py`, stage 4) |
# |---|---|---|
# | where | in each token's reward | in the loss |
# | estimate | k1, in `kl_shaped_rewards` | `k3` |
# | who pays | a token and all earlier ones, which led to it | the token alone |
#
# Both on one batch, the four answers, with $\beta = 0.1$. The reward (1 for "12") is score and
# advantage, without baseline or std. A token's weight is what multiplies its $\nabla\log\pi$: in
# PPO the return, in GRPO, at $\pi = \pi_\mathrm{old}$, eq. 21's $A + \beta(\mathrm{ref}/\pi - 1)$.

# %%
BETA = 0.1
shaped = kl_shaped_rewards(REWARDS[0], logp, ref_logp, MASK, BETA)  # step in: kl_shaped_rewards
returns = discounted_returns(shaped, MASK)                                    # (4, 8)
adv = spread(REWARDS[0], MASK)                                                # (4, 8)
leaf = logp.clone().requires_grad_()
ppo = clipped_surrogate(leaf, logp, returns)                                  # (4, 8)
grpo = clipped_surrogate(leaf, logp, adv) - BETA * k3(leaf, ref_logp)         # (4, 8)
in_ppo, in_grpo = (torch.autograd.grad((x * MASK).sum(), leaf)[0] for x in (ppo, grpo))
print("           PPO's rewards                weights: PPO                 GRPO")
for i, answer in enumerate(ANSWERS):
    print(f"{answer:8}", *(text(x[i, :3]) for x in (shaped, in_ppo, in_grpo)))
assert near(shaped[0, :3], [0.1 * math.log(1.5), -0.1 * math.log(2), 1])
assert near(in_ppo, returns) and near(in_ppo[0, :3], [0.97123, 0.93069, 1], 1e-5)
assert near(in_grpo, grpo_coefficient(adv, logp, ref_logp, kl_coef=BETA) * MASK)
assert near(in_grpo[0, :3], [1 + 0.1 * (1.5 - 1), 1 + 0.1 * (0.5 - 1), 1])

# %% [markdown]
# The first token of "12" shows who pays. The reference says "1" more often, so GRPO raises its
# weight, to 1.05. PPO lowers it, to 0.9712: the "2" that follows costs 0.0693, more than the 0.0405
# that the "1" earns.
#
# **What do they do to whole answers?** A whole answer is one choice out of four, so the table above
# holds for its summed log-ratio. But training code treats each token by itself. How far is the
# gradient then from that of the answers' KL, relative to its length? At the policy, and at 30 % and
# 10 % of the way from the reference to it:

# %%
def slope(policy, objective):
    """Return the gradient of objective(policy) in the policy's five logits, (5,)."""
    leaves = tuple(logits.clone().requires_grad_() for logits in policy)
    return torch.cat(torch.autograd.grad(objective(leaves), leaves))


def answers_kl(policy):
    return exact_kl(token_logprobs(policy).sum(1), ref_logp.sum(1))


def penalty(estimator, place):
    """Return a function: policy -> the exact gradient of an estimator, token by token."""
    def gradient(policy):
        now, chances = token_logprobs(policy), probabilities(policy)          # (4, 8), (4,)
        costs = kl_shaped_rewards(torch.zeros(4).double(), now, ref_logp, MASK, -1.0,
                                  estimator=estimator, allow_biased=True)
        to_go = discounted_returns(costs, MASK)                               # (4, 8)
        return slope(policy, lambda leaves: chances @ (
            to_go * token_logprobs(leaves) if place == "reward" else
            estimator(token_logprobs(leaves), ref_logp)).sum(1))
    return gradient


def exact_kl_in_the_loss(policy):
    """Return the gradient of each state's exact KL, with the sampled states held fixed."""
    after_1 = probabilities(policy)[:3].sum()
    return slope(policy, lambda leaves: exact_kl(leaves[0], REFERENCE[0])
                 + after_1 * exact_kl(leaves[1], REFERENCE[1]))


CHOICES = {f"{name} in the {place}": penalty(ESTIMATORS[name], place) for name, place in (
    ("k1", "reward"), ("k2", "loss"), ("ρ k3", "loss"), ("k3", "loss"), ("k3", "reward"),
    ("k1", "loss"))}
places = [tuple(b + part * (a - b) for a, b in zip(OLD, REFERENCE, strict=True))
          for part in (1.0, 0.3, 0.1)]
errors = []
print("error of the gradient     policy    30 %    10 %")
for name, choice in {"exact KL in the loss": exact_kl_in_the_loss, **CHOICES}.items():
    pairs = [(choice(place), slope(place, answers_kl)) for place in places]
    errors.append([((came - wanted).norm() / wanted.norm()).item() for came, wanted in pairs])
    print(f"  {name:22}", *(f"{error:7.3f}" for error in errors[-1]))
for k in (k2, on_policy_k3):                                                  # of whole answers
    assert near(slope(OLD, answers_kl), slope(OLD, lambda leaves, k=k: probs @ k(
        token_logprobs(leaves).sum(1), ref_logp.sum(1))))
second_order = [0.135, 0.030, 0.009]
assert near(errors, [second_order, [0, 0, 0], second_order, second_order, [0.058, 0.044, 0.019],
                     [1.021, 0.959, 0.982], [1, 1, 1]], 6e-4)

# %% [markdown]
# Only k1 in the reward is exact. Even the sum over the vocabulary is not: as a loss it leaves out
# that a token changes which states follow. The gradients of k2 and $\rho\,k_3$ have the same mean.
# (TRL 1.16 has $\rho\,k_3$; verl's `k3+` has the value of k3 and the gradient of k2: exercise 1.)
# Near the reference these errors vanish, and so does that of plain k3. k3 in the reward is the
# opposite: there it is no penalty at all. So `kl_shaped_rewards` refuses it, unless you pass
# `allow_biased=True`.
#
# ## Break it
#
# Put k1 and k3 in either place, and train with exact gradients. First with a reward of 1
# for "12" and $\beta = 0.3$: the best policy is the reference times $e^{R/\beta}$, normalised
# (tutorial 06). Then without a reward: the policy should fall back to the reference. There, k1 in
# the loss also gets eight sampled answers per step.

# %%
def ascend(penalty, reward=0.0, beta=1.0, steps=60):
    """Maximise reward * P("12") - beta * penalty -> the KL before each step, and P("12") after."""
    policy, curve = OLD, []
    for _ in range(steps):
        curve.append(answers_kl(policy).item())
        up = reward * slope(policy, lambda leaves: probabilities(leaves)[0])
        change = (up - beta * penalty(policy)).split([2, 3])
        policy = tuple(a + 0.5 * b for a, b in zip(policy, change, strict=True))
    return curve, probabilities(policy)[0].item()


def sampled_k1(policy):
    rows = torch.multinomial(probabilities(policy), 8, replacement=True, generator=generator)
    return slope(policy, lambda leaves: k1(token_logprobs(leaves), ref_logp)[rows].sum(1).mean())


generator = torch.Generator().manual_seed(0)
drift = [ascend(sampled_k1)[0] for _ in range(5)]
reference = probabilities(REFERENCE).log()                                    # (4,)
best = torch.softmax(reference + REWARDS[0] / 0.3, 0)
best_kl = exact_kl(best.log(), reference).item()
figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.1))
left.axhline(best_kl, color=GREY, linewidth=5, linestyle="-", alpha=0.35, label="best policy")
for run, curve in enumerate(drift):
    right.plot(curve, color=RED, linestyle="-", linewidth=0.8, alpha=0.5,
               label=None if run else "k1 in the loss, 8 samples")
ends = {"best policy": (best[0].item(), best_kl, 0.0)}
for name, colour, style in (("k1 in the reward", BLUE, "-"), ("k3 in the loss", AMBER, "-."),
                            ("k1 in the loss", RED, "--"), ("k3 in the reward", GREEN, ":")):
    both, right_answer = ascend(CHOICES[name], reward=1.0, beta=0.3, steps=500)
    alone, _ = ascend(CHOICES[name])
    ends[name] = right_answer, both[-1], alone[-1]
    for axes, curve in ((left, both), (right, alone)):
        axes.plot(curve, color=colour, linestyle=style, label=name)
for axes, title, corner in ((left, "Reward and penalty, β = 0.3", "lower right"),
                            (right, "Only the penalty is left", "upper left")):
    axes.set(title=title, xlabel="step")
    axes.legend(loc=corner)
left.set_ylabel("KL to the reference, nats")
keep(figure, "07_break")
print("                  with a reward: P(12)      KL    without: KL")
for name, row in ends.items():
    print(f"{name:24}         {row[0]:.4f}  {row[1]:.4f}         {row[2]:.4f}")
wandered = sorted(curve[-1] for curve in drift)
print("with samples, k1 in the loss ends at", ", ".join(f"{kl:.2f}" for kl in wandered))
assert near(ends["best policy"][:2], [0.86611, 1.08389], 1e-4)
assert near(ends["k1 in the reward"], ends["best policy"], 2e-3)
assert ends["k3 in the loss"][0] < 0.75 and ends["k3 in the loss"][2] < 1e-4
assert ends["k1 in the loss"][0] > 0.99 and near(ends["k1 in the loss"][2], KL)
assert near(-reference[0], 1.674, 1e-4)                                       # of "12" alone
assert ends["k3 in the reward"][1] > ends["k1 in the loss"][1] > 1.6
assert wandered[0] < KL / 2 and wandered[-1] > 2 * KL

# %% [markdown]
# - **k1 in the reward** ends at the best policy.
# - **k3 in the loss** ends nearer to the reference. Its $\mathrm{KL}(\mathrm{ref}\,\|\,\pi)$ has no
#   bound when the policy gives up what the reference writes. The other KL has: a policy that says
#   only "12" is at 1.674. So a `kl_coef` found for one place says little about the other.
# - **k1 in the loss** is no penalty. It makes *whatever was sampled* less probable. That is noise
#   around 0: the policy wanders, and nothing pulls it back. It was so in
#   [open-instruct](https://github.com/allenai/open-instruct/pull/535) and in
#   [NeMo RL](https://github.com/NVIDIA-NeMo/RL/pull/2506).
# - **k3 in the reward** is worse than no penalty: beside a reward it pushes further away.
#
# ## Exercises
#
# The answers are in `tutorials/solutions/07_kl.py`.

# %%
def exercise_1(logp, ref_logp):
    """Return a loss for each token, (N,), whose value is k3, for the log, and whose mean gradient
    under the policy is that of KL(π || ref), for the update. Use k2, k3 and detach."""
    raise NotImplementedError


def check_1(answer):
    leaf = WORDS.clone().requires_grad_()
    loss = answer(leaf.log_softmax(0), REF)
    assert near(loss, [0.26952, 0.40165, 0.00047], 1e-5), f"value {text(loss)}, wanted that of k3"
    slope, = torch.autograd.grad(WORDS.softmax(0) @ loss, leaf)
    assert near(slope, [0.28592, -0.22842, -0.05751], 1e-5), (
        f"gradient {text(slope)}, wanted (0.2859, -0.2284, -0.0575)")


judge(check_1, exercise_1)


def exercise_2(logp, old_logp, ref_logp):
    """The tokens were sampled by an older policy. Return a loss for each of them, (N,), whose mean
    gradient over such samples is the gradient of KL(π || ref)."""
    raise NotImplementedError


def check_2(answer):
    old = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)                  # it sampled
    leaf = WORDS.clone().requires_grad_()
    slope, = torch.autograd.grad(old @ answer(leaf.log_softmax(0), old.log(), REF), leaf)
    assert near(slope, [0.28592, -0.22842, -0.05751], 1e-5), (
        f"gradient {text(slope)}, wanted (0.2859, -0.2284, -0.0575)")


judge(check_2, exercise_2)

# %% [markdown]
# ## Deltas from the paper
#
# | | paper | here |
# |---|---|---|
# | k3 | DeepSeekMath, eq. 4: "unbiased" | as a value; as a loss, the gradient of another KL |
# | $\rho\,k_3$ | DeepSeek-V3.2 (arXiv:2512.02556), eq. 7 | `corrected_k3`; `minirl grpo` has k3 |
# | large ratios | none | ref/$\pi$ is capped at exp(20), so that nothing overflows |
# | tokens | GRPO: the mean over an answer's tokens | here their sum, so that it is a KL |
# | $\beta$ | 0.02 (InstructGPT), 0.04 (DeepSeekMath), 0.001 (R1-Zero) | 0.01 in `minirl grpo` |
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
