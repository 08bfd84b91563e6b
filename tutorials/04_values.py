# %%
# %pip install -q -e ..

# %% [markdown]
# # 04. Values per token
#
# *Where do token values come from, and why is only the last token rewarded?*
#
# - **Paper**: GAE, [arXiv:1506.02438](https://arxiv.org/abs/1506.02438), eqs. 9 and 16 to 18; PPO,
#   [arXiv:1707.06347](https://arxiv.org/abs/1707.06347), eqs. 11 and 12; InstructGPT,
#   [arXiv:2203.02155](https://arxiv.org/abs/2203.02155), section 3.5
# - **Code**: `minirl/equations/advantages.py`: `gae`; `minirl/equations/objectives.py`:
#   `value_loss`; `minirl/lm/heads.py`: `value_model_from`; `minirl/train/ppo.py`
# - **Tests**: `tests/equations/test_advantages.py`, `tests/lm/test_heads.py`,
#   `tests/train/test_ppo.py`
# - **Before this**: 00, 03
# - **Time**: 8 s on two CPU cores, with `MINIRL_FAST=1` as well
# - **Expect**: exact values .25, .5, 1 and 0; no bias at lambda = 1; a value function that starts
#   as a reward model and ends within 0.1 of the exact values
# - **Sweep**: `minirl ppo --lam 1.0`, then 0.95 and 0: compare `value/explained_variance` and how
#   fast the reward rises
#
# The table is for your own training runs. Its words are explained below.
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | `value/explained_variance` (1: V predicts all returns) | rises above 0 | `value_lr` is too low |
# | returns in one text, if lambda = 1 and no KL penalty | all equal | reward in a wrong slot |
# | mean advantage before whitening | near 0 | values are off by a constant |
# | length of the texts | does not drift | a discount below 1 favours short texts |

# %%
import inspect

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, GREEN, GREY, RED, judge, judge_test, keep, show
from minirl.equations.advantages import discounted_returns, gae
from minirl.equations.objectives import value_loss
from minirl.lm.heads import score_ids, value_model_from
from minirl.lm.rollouts import completion_batch
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.preferences import Ranking
from minirl.testing.example import (
    ANSWERS,
    LENGTHS,
    MASK,
    OLD,
    QUESTION,
    REWARDS,
    TOKENS,
    probabilities,
    token_logprobs,
)
from minirl.train.ppo import train_ppo
from minirl.train.reward_model import RewardModelConfig, score_texts, train_reward_model

# %% [markdown]
# ## The question
#
# A reward model gives one number to a whole text, its score. PPO changes the probability of each
# token, and needs a number for each token. But its code adds the score to the reward of the last
# token only. (The others get nothing but a penalty, which tutorial 07 explains.) People ask
# [how the reward is assigned to each step](https://github.com/openai/summarize-from-feedback/issues/6),
# [why only the last position gets it](https://github.com/OpenLMLab/MOSS-RLHF/issues/26),
# [what the value of an action token means, and whether it is a V or a Q](https://github.com/OpenRLHF/OpenRLHF/issues/719),
# and [which slot is the last one](https://github.com/huggingface/trl/issues/3750).
#
# The short answer: the score comes with the last token, because only then there is a text to judge.
# What the other tokens are worth is computed from values. The *value* $V(s)$ of an unfinished text
# $s$ is the reward to be expected if the policy goes on from there. A token is worth what it adds:
# the value after it minus the value before it.
#
# V or Q? $V(s)$ knows the tokens before the one in question, $Q(s, a)$ knows that token, too. Here
# it is a V. It is subtracted, and a baseline must not know the action (tutorial 00).

# %% [markdown]
# ## By hand
#
# The policy OLD answers the question "7+5=" in one of four ways. Only "12" has a reward.
#
#                      ┌─ 0.5 ─ 2 <eos>              "12"        0.25   right: reward 1
#         ┌─ 0.5 ─ 1 ──┼─ 0.3 ─ 3 <eos>              "13"        0.15   wrong: reward 0
#     7+5=│            └─ 0.2 ─ 0 + 1 = 1 1 <eos>    "10+1=11"   0.10   wrong
#         └─ 0.5 ─ 2 <eos>                           "2"         0.50   wrong
#
# Here a value is the chance to end at "12":
#
# - at the prompt, $V = 0.25$
# - after "1", the next token is "2" with probability 0.5, so $V = 0.5$
# - after "12", $V = 1$; after "13", "10" or "2", $V = 0$
#
# In tensors, slot t is about token t, and holds the value of the state *before* that token.

# %%
p_old = probabilities(OLD)                                           # (4,)


def tree_values(p, scores):
    """Return V before each token, (4, 8): the mean score of all answers that begin like this."""
    values = torch.zeros(4, 8, dtype=torch.float64)
    for i, tokens in enumerate(TOKENS):
        for t in range(len(tokens)):
            same = torch.tensor([other[:t] == tokens[:t] for other in TOKENS])
            values[i, t] = (p * scores)[same].sum() / p[same].sum()
    return values


def at_the_end(scores):
    """Return rewards per token: the score at the last one, 0 before. (4,) -> (4, 8)"""
    rewards = torch.zeros(4, 8, dtype=torch.float64)
    rewards[torch.arange(4), LENGTHS - 1] = scores.double()
    return rewards


def show_rows(title, x):
    print(title)
    for name, tokens, row in zip(ANSWERS, TOKENS, x.tolist(), strict=True):
        cells = (f"{token}: {number:+.3f}" for token, number in zip(tokens, row, strict=False))
        print(f"  {name!r:10}", "  ".join(cells))


V, rewards = tree_values(p_old, REWARDS[0]), at_the_end(REWARDS[0])
show_rows("V before each token", V)
assert V[0, :3].tolist() == [0.25, 0.5, 1.0] and V[1, :3].tolist() == [0.25, 0.5, 0.0]
assert V[3, :2].tolist() == [0.25, 0.0]

# %% [markdown]
# What does a token add? Let $r_t$ be the reward that comes with token $t$: the score for the last
# token, `<eos>`, and 0 for all others. Behind `<eos>` nothing more can come, so there V is 0.
#
# $$ \delta_t = r_t + V(s_{t+1}) - V(s_t) $$
#
# This is the *temporal difference* (GAE, eq. 9; the paper has a factor $\gamma$ before
# $V(s_{t+1})$, which is 1 for language models: see "Break it").
#
# - "12": $0.5 - 0.25 = 0.25$ for "1", $1 - 0.5 = 0.5$ for "2", $1 + 0 - 1 = 0$ for `<eos>`
# - "13": $0.25$ for "1", $0 - 0.5 = -0.5$ for "3", $0$ for `<eos>`
#
# So "1" was right in both answers, and "3" was the mistake. The reward did not say so, as it was
# one number for the whole text. Finding this out is called *credit assignment*.

# %%
adv, _ = gae(rewards, V, MASK, lam=0.0)
show_rows("what each token adds", adv)
assert adv[0, :3].tolist() == [0.25, 0.5, 0.0] and adv[1, :3].tolist() == [0.25, -0.5, 0.0]
assert adv[3, :2].tolist() == [-0.25, 0.0]

# %% [markdown]
# If the values are wrong, so is $\delta_t$. The other way is to trust the reward $R$ that came in
# the end, and to use V only as a baseline: $R - V(s_t)$. That is the sum of all differences from
# the token on, because the values in between cancel. For the "1" of "12":
# $0.25 + 0.5 + 0 = 1 - 0.25$. For the "1" of "13": $0.25 - 0.5 + 0 = 0 - 0.25$.
#
# GAE, *generalised advantage estimation*, stands between the two. Each later difference counts
# less, by a factor $\lambda$ between 0 and 1:
#
# $$ A_t = \delta_t + \lambda\,\delta_{t+1} + \lambda^2\delta_{t+2} + \dots
#        = \delta_t + \lambda A_{t+1} $$
#
# $\lambda = 0$ gives $\delta_t$, and $\lambda = 1$ gives $R - V(s_t)$. At $\lambda = 0.95$, the "1"
# of "12" gets $0.25 + 0.95\cdot 0.5 = 0.725$, and the "1" of "13" gets
# $0.25 - 0.95\cdot 0.5 = -0.225$.

# %%
for lam in (0.0, 0.95, 1.0):
    adv, _ = gae(rewards, V, MASK, lam=lam)
    print(f"lambda {lam:4}: the '1' of '12' gets {float(adv[0, 0]):+.3f}, "
          f"the '1' of '13' {float(adv[1, 0]):+.3f}")
assert adv[0, :3].tolist() == [0.75, 0.5, 0.0] and adv[1, :3].tolist() == [-0.25, -0.5, 0.0]

p_after_1 = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)       # "12", "13", "10+1=11"
mean = p_after_1 @ adv[:3, 0]
variance = p_after_1 @ (adv[:3, 0] - mean) ** 2
print(f"lambda = 1, the first '1': mean {float(mean):.3f}, variance {float(variance):.3f}")
assert abs(float(mean) - 0.25) < 1e-12 and abs(float(variance) - 0.25) < 1e-12

# %% [markdown]
# At $\lambda = 1$ the "1" of "13" is blamed for what the "3" did. On average over answers it still
# gets 0.25. So there is no bias, but there is variance. At $\lambda = 0$ it gets 0.25 each time.
#
# ## The function

# %%
show(gae)

# %% [markdown]
# The loop goes from the last token to the first. Here is a text of three tokens. The differences
# are 0.1, 0.2 and 0.2. With $\lambda = 0.95$, from the end: 0.2, then $0.2 + 0.95\cdot 0.2 = 0.39$,
# then $0.1 + 0.95\cdot 0.39 = 0.4705$.

# %%
r3, v3, all3 = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.5, 0.6, 0.8]]), torch.ones(1, 3)
golden = {0.95: [0.4705, 0.39, 0.2], 0.0: [0.1, 0.2, 0.2], 1.0: [0.5, 0.4, 0.2]}
for lam, expected in golden.items():
    a, _ = gae(r3, v3, all3, lam=lam)  # step in: gae
    print(f"lambda {lam:4}: A = {[round(x, 4) for x in a[0].tolist()]}")
    assert torch.allclose(a[0], torch.tensor(expected), atol=1e-6)

# %% [markdown]
# **Cut off is not over.** A text that reaches the token limit is not finished, and V behind its
# last token is not 0. That value is the argument `bootstrap`. Say "1" was cut off. With 0 behind
# it, it looks like a failure. With 0.5 it looks like the good start that it is.

# %%
r1, v1, one = torch.zeros(1, 1), torch.tensor([[0.25]]), torch.ones(1, 1)
over, _ = gae(r1, v1, one)
cut_off, _ = gae(r1, v1, one, bootstrap=torch.tensor([0.5]))
print(f"'1' as an end: A = {float(over):+.2f}; cut off, with V = 0.5 behind: {float(cut_off):+.2f}")
assert float(over) == -0.25 and float(cut_off) == 0.25

# %% [markdown]
# ## Picture

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4), width_ratios=[1.4, 1])
NODES = {"prompt": (0, 0.1, 0.25), "1": (1, 0.55, 0.5), "12": (2, 1.1, 1.0), "13": (2, 0.55, 0.0),
         "10": (2, 0.0, 0.0), "2": (1, -0.55, 0.0)}
for start, end in (("prompt", "1"), ("prompt", "2"), ("1", "12"), ("1", "13"), ("1", "10")):
    (x0, y0, v0), (x1, y1, v1) = NODES[start], NODES[end]
    left.plot([x0, x1], [y0, y1], color=GREEN if v1 > v0 else RED, linewidth=1 + 4 * abs(v1 - v0),
              linestyle="-" if v1 > v0 else "--", zorder=1)
    left.text((x0 + x1) / 2, (y0 + y1) / 2, f"“{end[-1]}” adds {v1 - v0:+.2f}", ha="center",
              va="center", fontsize=9, bbox=dict(facecolor="white", edgecolor="none", pad=1.5))
for name, (x, y, value) in NODES.items():
    left.scatter(x, y, s=620, color=plt.cm.Blues(0.12 + 0.6 * value), edgecolor=BLUE, zorder=2)
    left.text(x, y, f"{value:g}", ha="center", va="center", fontsize=9, zorder=3)
    left.text(x, y - 0.27, name if name == "prompt" else f"“{name}”", ha="center", fontsize=9)
left.set(xlim=(-0.25, 2.3), ylim=(-0.95, 1.35), title="Values (in circles), and what a token adds")
left.axis("off")
for k, (lam, colour) in enumerate(((0.0, BLUE), (0.95, AMBER), (1.0, RED))):
    first = gae(rewards, V, MASK, lam=lam)[0][:3, 0]
    places = [answer + 0.27 * (k - 1) for answer in range(3)]
    right.bar(places, first.tolist(), 0.25, color=colour, label=f"λ = {lam:g}")
right.axhline(0.25, color=GREY, linestyle=":", linewidth=1.2, label="what “1” adds")
right.axhline(0, color="black", linewidth=0.8)
right.set(xticks=range(3), xticklabels=[f"“{answer}”" for answer in ANSWERS[:3]],
          xlabel="the answer", ylabel="advantage of the first “1”",
          title="One token, in three answers")
right.grid(axis="x")
right.legend()
keep(figure, "04_tree")

# %% [markdown]
# ## Lambda: bias and variance
#
# Which $\lambda$ is best, if the values are wrong? The example is small enough to know it exactly.
# The policy has five logits, two for the first token and three for the one after "1". One answer
# gives the estimate $\sum_t A_t\,\nabla\log\pi(y_t)$ of the gradient. The mean of all estimates
# minus the exact gradient is the *bias*. The variance is added up over the five logits. We compare
# three value functions: the exact one, a wrong one ("1" is worth 0.2, and "2" 0.3), and V = 0.

# %%
leaves = tuple(logits.clone().requires_grad_() for logits in OLD)    # (2,) and (3,)
logp = token_logprobs(leaves)                                        # (4, 8)


def gradient(x):
    """Return the gradient of a scalar by all five logits, (5,)."""
    return torch.cat(torch.autograd.grad(x, leaves, retain_graph=True))


TRUE = gradient(probabilities(leaves) @ REWARDS[0])
WRONG_V = V.clone()
WRONG_V[:3, 1], WRONG_V[3, 1] = 0.2, 0.3
VALUES = {"exact V": V, "wrong V": WRONG_V, "V = 0": torch.zeros_like(V)}


def bias_and_variance(values, lam):
    """Return the length of the bias, and the variance, exactly."""
    adv, _ = gae(rewards, values, MASK, lam=lam)
    g = torch.stack([gradient(adv[i] @ logp[i]) for i in range(4)])               # (4, 5)
    mean = p_old @ g
    return float((mean - TRUE).norm()), float(p_old @ (g - mean).square().sum(1))


LAMBDAS = [k / 50 for k in range(51)]
results = {name: [bias_and_variance(values, lam) for lam in LAMBDAS]
           for name, values in VALUES.items()}
print(f"exact gradient {[round(x, 3) for x in TRUE.tolist()]}, length {float(TRUE.norm()):.4f}")
print("lambda             0     0.95      1             0     0.95      1")
for name, values in VALUES.items():
    (b0, v0), (b95, v95), (b1, v1) = (bias_and_variance(values, lam) for lam in (0, 0.95, 1))
    print(f"{name:8} bias {b0:.4f} {b95:.4f} {b1:.4f}   variance {v0:.4f} {v95:.4f} {v1:.4f}")
    assert b1 < 1e-9 and v0 < v95 < v1
assert max(b for b, _ in results["exact V"]) < 1e-9
assert results["exact V"][-1][1] > 2 * results["exact V"][0][1]
assert abs(results["V = 0"][0][0] - float(TRUE.norm())) < 1e-9

# %% [markdown]
# - With exact values there is no bias at any $\lambda$, and $\lambda = 0$ has less than half the
#   variance of $\lambda = 1$.
# - With wrong values the bias is gone only at $\lambda = 1$. There any V is a mere baseline.
# - With V = 0 and $\lambda = 0$ nothing is learnt. Only `<eos>`, where the score is, has an
#   advantage. But its probability is 1, so it has no gradient. The bias is the whole gradient.
#
# The mean over $n$ answers has the same bias, and $1/n$ of the variance. Its mean squared error is
# $\text{bias}^2 + \text{variance}/n$. The best $\lambda$ is in between, and closer to 1 the larger
# the batch.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.1))
for name, colour, style in zip(results, (BLUE, RED, AMBER), ("-", "--", "-."), strict=True):
    bias, variance = zip(*results[name], strict=True)
    axes[0].plot(LAMBDAS, bias, style, color=colour, label=name)
    axes[1].plot(LAMBDAS, variance, style, color=colour, label=name)
axes[0].axhline(float(TRUE.norm()), color=GREY, linewidth=0.8)
axes[0].text(1, float(TRUE.norm()) + 0.005, "length of the gradient", ha="right", fontsize=8)
best = {}
for n, colour, style in ((4, GREEN, ":"), (16, BLUE, "-"), (128, GREY, "--")):
    errors = [b ** 2 + v / n for b, v in results["wrong V"]]
    best[n] = LAMBDAS[errors.index(min(errors))]
    axes[2].semilogy(LAMBDAS, errors, style, color=colour, label=f"n = {n}: best at {best[n]:.2f}")
    axes[2].plot(best[n], min(errors), "o", color=colour)
axes[0].set(xlabel="λ", ylabel="length of the bias", title="Bias", ylim=(-0.008, 0.27))
axes[1].set(xlabel="λ", ylabel="variance", title="Variance of one answer", ylim=(0, None))
axes[2].set(xlabel="λ", ylabel="bias² + variance / n", title="Error of n answers, wrong V")
axes[0].legend(loc="lower left")
axes[2].legend(loc="lower left")
keep(figure, "04_lambda")
print("best lambda for batches of n answers:", best)
assert best[4] < best[16] < best[128] < 1

# %% [markdown]
# ## Where values come from
#
# In real life nobody knows the tree. Values are learnt by regression: at every token of every
# sampled text, the target is the return, what came in the end. The returns from one state differ.
# After "1" they are 1, 0 and 0, with the probabilities 0.5, 0.3 and 0.2. The number with the least
# mean squared error is their mean, and the mean return from a state *is* its value.

# %%
for guess in (0.3, 0.4, 0.5, 0.6, 0.7):
    guesses = torch.full((3,), guess, dtype=torch.float64)
    loss = float(p_after_1 @ value_loss(guesses, REWARDS[0, :3]))
    print(f"guess {guess} for the value after '1': value loss {loss:.3f}")
    assert abs(loss - 0.125 - 0.5 * (guess - 0.5) ** 2) < 1e-9

# %% [markdown]
# A real value function is a transformer with one number as output. InstructGPT starts it as a copy
# of the reward model. Behind the last token the copy gives the score of the text. Before, it gives
# the score that the reward model would give to the unfinished text, and that is not yet a value.
#
# To see it, we train a tiny reward model on a ranking of the four answers, and shift it so that
# "12" scores 0 (tutorial 03).

# %%
sizes = TinySizes(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=96)
policy, tokenizer = make_base(sizes, seed=0, device="cpu")
reward_model = train_reward_model(
    policy, tokenizer, [Ranking(QUESTION, ANSWERS)], RewardModelConfig(epochs=6, batch_size=1),
    demonstrations=[(QUESTION, "12")])
value_model = value_model_from(reward_model, policy, seed=0)

prompt = tokenizer.encode_prompt(QUESTION)
ids = [[*tokenizer.encode(answer), tokenizer.eos_id] for answer in ANSWERS]
assert [len(row) for row in ids] == LENGTHS.tolist()
tokens, mask = completion_batch([prompt] * 4, ids, tokenizer.pad_id, "cpu")      # (4, T)
answer_slots = slice(len(prompt), None)
scores = score_texts(reward_model, tokenizer, [QUESTION] * 4, ANSWERS)           # (4,)
with torch.no_grad():
    before, behind = value_model(tokens, mask)                                   # (4, T), (4,)
before = before[:, answer_slots]                                                 # (4, 8)
print("reward model's scores:", [round(x, 3) for x in scores.tolist()])
print("V behind <eos>:       ", [round(x, 3) for x in behind.tolist()])
unfinished = float(score_ids(reward_model, [prompt], [ids[0][:1]], tokenizer.pad_id))
print(f"V after '1': {float(before[0, 1]):.3f}; reward model's score of '1': {unfinished:.3f}")
assert torch.allclose(behind, scores, atol=1e-5) and abs(float(scores[0])) < 1e-5
assert abs(float(before[0, 1]) - unfinished) < 1e-5

# %% [markdown]
# Now the regression. The return at every token is the score of its text, and each answer counts as
# often as OLD writes it.

# %%
exact = tree_values(p_old, scores.double())                          # (4, 8)
returns = discounted_returns(at_the_end(scores), MASK)               # (4, 8)
often = p_old[:, None] * MASK                                        # (4, 8)
optimizer = torch.optim.Adam(value_model.parameters(), lr=2e-3)
errors = []
for step in range(200):
    values = value_model(tokens, mask)[0][:, answer_slots]
    errors.append(float((values.detach() - exact)[MASK].abs().max()))
    loss = (often * value_loss(values, returns.float())).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:3}: value loss {float(loss.detach()):7.4f}, "
              f"largest error of a value {errors[-1]:.3f}")
least = float((often * value_loss(exact, returns)).sum())
print(f"the loss of the exact values is {least:.4f}")
learnt = values.detach()
assert errors[-1] < 0.1 < 0.25 < errors[0] and abs(float(loss.detach()) - least) < 0.01
assert torch.allclose(score_texts(reward_model, tokenizer, [QUESTION] * 4, ANSWERS), scores)

figure, axes = plt.subplots(figsize=(6.6, 3.2))
STATES = {"prompt": (0, 0), "“1”": (0, 1), "“2”": (3, 1), "“12”": (0, 2), "“13”": (1, 2),
          "“10”": (2, 2), "“10+1=11”": (2, 7)}
rows, columns = zip(*STATES.values(), strict=True)
x = torch.arange(len(STATES))
axes.hlines(exact[rows, columns], x - 0.3, x + 0.3, color="black", label="exact: expected score")
axes.plot(x - 0.12, before[rows, columns], "s", color=RED, label="start: copy of the reward model")
axes.plot(x + 0.12, learnt[rows, columns], "o", color=BLUE, label="after the regression")
axes.set(xticks=x, xticklabels=STATES, xlabel="state: what is written so far",
         ylabel="V (in units of the score)", title="A reward model becomes a value function")
axes.legend(loc="lower right")
keep(figure, "04_regression")

# %% [markdown]
# The loss does not go to 0, and should not: the returns from one state differ, and V is their mean.
# The reward model has stayed as it was. So it is used twice: one copy is fixed and gives the
# rewards, and the other is trained on as the value function.
#
# ## In the loop
#
# PPO's training page does all this in its third stage, before any update:

# %%
page = inspect.getsource(train_ppo).splitlines()
first, last = (next(i for i, line in enumerate(page) if mark in line)
               for mark in ("# 3. freeze", "# 4. update"))
print("\n".join(page[first:last]).rstrip())

# %% [markdown]
# - `rollout_values` gives V before each sampled token, and V behind the last one. The latter is the
#   bootstrap of texts that were cut off.
# - `kl_shaped_rewards` puts the score at the last token, and a penalty at every token (tutorial
#   07).
# - `masked_whiten` subtracts the mean of the batch's advantages and divides by their standard
#   deviation (*whitening*), because a reward model's scores have neither zero nor scale (tutorial
#   03). It must come after `gae`, which returns $A_t + V(s_t)$ as the target of V.
#
# ## Break it
#
# **The score at every token.** Then a text's total reward is its score times its length, and the
# longest text wins. Say the scores are 1, 0.5, 0.5 and 0:

# %%
graded = torch.tensor([1.0, 0.5, 0.5, 0.0]).double()
once = discounted_returns(at_the_end(graded), MASK)[:, 0]
every = discounted_returns(graded[:, None] * MASK, MASK)[:, 0]
for answer, a, b in zip(ANSWERS, once.tolist(), every.tolist(), strict=True):
    print(f"{answer!r:10} total reward {a:.1f} once, {b:.1f} at every token")
assert ANSWERS[once.argmax()] == "12" and ANSWERS[every.argmax()] == "10+1=11"

# %% [markdown]
# **The score one slot too far.** It lands on padding, and the mask hides it. Every token of the
# right answer is blamed:

# %%
too_far = torch.zeros(4, 8, dtype=torch.float64)
too_far[0, LENGTHS[0]] = 1.0                                         # behind the <eos> of "12"
lost, _ = gae(too_far, V, MASK, lam=1.0)
print("advantages of '12':", [round(x, 3) for x in lost[0, :3].tolist()])
assert lost[0, :3].tolist() == [-0.25, -0.5, -1.0]

# %% [markdown]
# **A discount.** With a factor $\gamma = 0.9$ for each token, the reward of "10+1=11" reaches its
# first token as $0.9^7 = 0.48$. If all four answers had the reward 1, the shortest would be best:

# %%
worth = discounted_returns(at_the_end(torch.ones(4)), MASK, gamma=0.9)
for answer, row, n in zip(ANSWERS, worth, LENGTHS.tolist(), strict=True):
    print(f"{answer!r:10} return of its first token {float(row[0]):.3f} = 0.9 ^ {n - 1}")
assert abs(float(worth[2, 0]) - 0.9 ** 7) < 1e-12 and ANSWERS[worth[:, 0].argmax()] == "2"

# %% [markdown]
# ## Exercises
#
# The answers are in `tutorials/solutions/04_values.py`.

# %%
def exercise_1(rewards, values, lam):
    """Write GAE for one text: two lists of T numbers -> the list of T advantages."""
    raise NotImplementedError


def check_1(answer):
    for lam, expected in golden.items():
        came = answer([0.0, 0.0, 1.0], [0.5, 0.6, 0.8], lam)
        assert len(came) == 3, f"three advantages are wanted, not {len(came)}"
        assert all(abs(a - b) < 1e-6 for a, b in zip(came, expected, strict=True)), (
            f"lambda {lam}: {came}, not {expected}; behind the last token V is 0")
    assert abs(answer([-0.1, 1.0], [0.0, 0.0], 0.5)[0] - 0.4) < 1e-6, "rewards in between count"


judge(check_1, exercise_1)


# %%
def exercise_2(lam, n):
    """V is 0 everywhere, and the score comes with the last token. Which share of the score is the
    advantage of the token n places before the last?"""
    raise NotImplementedError


def check_2(answer):
    assert answer(0.95, 0) == 1.0, "the last token itself gets all of it"
    assert abs(answer(0.95, 2) - 0.9025) < 1e-9, "one more factor lambda for each token in between"
    assert abs(answer(0.95, 100) - 0.005921) < 1e-6, "100 tokens earlier, 0.6 % arrive"
    assert answer(1.0, 1000) == 1.0 and answer(0.0, 1) == 0.0


judge(check_2, exercise_2)

# %% [markdown]
# The last one says why long texts need good values, or $\lambda = 1$.
#
# ## Deltas from the paper
#
# | | paper | here |
# |---|---|---|
# | GAE: tasks | robots that walk, a reward at each step | texts, a reward at the end |
# | InstructGPT: V | 6 billion parameters, from the reward model | the same start, 0.06 million |
# | InstructGPT: gamma, lambda | no discount; lambda is not given | 1 and 0.95 |
# | PPO: value loss | squared error | half of it; PPO's page clips it (OpenAI's code did, too) |
# | whitening | in neither paper | after the returns, over the batch |

# %% [markdown]
# ## Find the bug
#
# A policy calls a calculator in the middle of its text. The policy did not write the output, so the
# mask is 0 there. `gae` steps over this gap: the token after the output is the *next* token of the
# one before it. The GAE below is right for all texts without a gap, and silently wrong with one. It
# is modelled on [a real bug](https://github.com/radixark/miles/pull/1827). Write a test that fails
# for it.

# %%
def gae_with_tools(rewards, values, mask, *, gamma=1.0, lam=0.95):
    """GAE over the tokens under the mask -> (advantages, returns), (B, T) each."""
    mask = mask.bool()
    adv = torch.zeros_like(values)
    next_adv = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        own = mask[:, t]
        delta = torch.where(own, rewards[:, t] + gamma * next_value - values[:, t], 0)
        next_adv = delta + gamma * lam * next_adv
        next_value = torch.where(own, values[:, t], next_value)
        adv[:, t] = torch.where(own, next_adv, 0)
    return adv, torch.where(mask, adv + values, 0)


no_gap, _ = gae_with_tools(rewards, V, MASK)
assert torch.allclose(no_gap, gae(rewards, V, MASK)[0])      # right here


def exercise_bug(function):
    """Test a function like gae(rewards, values, mask, *, gamma, lam): assert what it returns."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, gae, gae_with_tools)


judge(check_bug, exercise_bug)
