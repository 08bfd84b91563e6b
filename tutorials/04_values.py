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
#   `value_loss`, `clipped_value_loss`; `minirl/lm/heads.py`: `value_model_from`;
#   `minirl/train/ppo.py`
# - **Tests**: `tests/equations/test_advantages.py`, `tests/lm/test_heads.py`,
#   `tests/train/test_ppo.py`
# - **Before this**: 00, 03
# - **Time**: 8 s on two CPU cores, with `MINIRL_FAST=1` as well
# - **Expect**: exact values .25, .5, 1 and 0; no bias at lambda = 1; a value function that starts
#   as a reward model and ends within 0.1 of the exact values
# - **Sweep**: `minirl ppo --lam 1.0`, then 0.95 and 0: compare `value/explained_variance` and how
#   fast the reward rises
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | `value/explained_variance` (1: V predicts all returns) | rises above 0 | `value_lr` is too low |
# | returns where gamma = 1 | the score at every token of a text | reward in a wrong slot |
# | advantage of the token before a mistake | not negative on average | values are wrong |
# | mean advantage before whitening | near 0 | values are off by a constant |
# | length | does not drift | gamma is below 1: short texts gain |

# %%
import inspect

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, GREEN, GREY, RED, judge, judge_test, keep, show
from minirl.equations.advantages import discounted_returns, gae
from minirl.equations.objectives import clipped_value_loss, value_loss
from minirl.equations.reduce import masked_whiten
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
# A reward model gives one number to a whole text, and PPO updates tokens. In the code the score is
# added to the last token's reward, and all other tokens get nothing but a KL penalty. People ask
# [how the reward is assigned to each step](https://github.com/openai/summarize-from-feedback/issues/6),
# [why only the last position gets it](https://github.com/OpenLMLab/MOSS-RLHF/issues/26),
# [what the value of an action token means, and whether it is a V or a Q](https://github.com/OpenRLHF/OpenRLHF/issues/719),
# and [which slot is the last one](https://github.com/huggingface/trl/issues/3750).
#
# In short: the score belongs to the end, because only there the text exists. What a token is worth
# is *derived*: the value $V(s)$ of a beginning $s$ is the reward to be expected from there, and a
# token's merit is how much the value rises when it is written. V reads only the tokens *before* the
# one in question. So it is a V, and no Q (which would know that token, too), and subtracting it
# from a reward causes no bias.

# %% [markdown]
# ## By hand
#
# The policy OLD answers "7+5=" with "12" (0.25), "13" (0.15), "10+1=11" (0.10) or "2" (0.50). Only
# "12" is right, and has the reward 1. A value is an average over the tree: what is the chance to
# end at "12" from here?
#
# - at the prompt: $V = 0.25$
# - after "1": the next token is "2" with probability 0.5, so $V = 0.5$
# - after "12": $V = 1$; after "13" or "10": $V = 0$; after "2": $V = 0$

# %%
p_old = probabilities(OLD)                                           # (4,)


def tree_values(p, rewards):
    """Return V(the tokens before slot t), (4, 8): the mean reward of all answers from there."""
    values = torch.zeros(4, 8, dtype=torch.float64)
    for i, tokens in enumerate(TOKENS):
        for t in range(len(tokens)):
            same = torch.tensor([other[:t] == tokens[:t] for other in TOKENS])
            values[i, t] = (p * rewards)[same].sum() / p[same].sum()
    return values


def at_the_end(scores):
    """Return rewards per token: the score at the last one, 0 before. (4,) -> (4, 8)"""
    rewards = torch.zeros(4, 8, dtype=torch.float64)
    rewards[torch.arange(4), LENGTHS - 1] = scores.double()
    return rewards


def show_rows(title, x, names=ANSWERS):
    print(title)
    for name, tokens, row in zip(names, TOKENS, x.tolist(), strict=True):
        cells = (f"{token}: {number:+.3f}" for token, number in zip(tokens, row, strict=False))
        print(f"  {name!r:10}", "  ".join(cells))


V = tree_values(p_old, REWARDS[0])
rewards = at_the_end(REWARDS[0])
show_rows("V before each token", V)
assert V[0, :3].tolist() == [0.25, 0.5, 1.0] and V[1, :3].tolist() == [0.25, 0.5, 0.0]
assert V[3, :2].tolist() == [0.25, 0.0]

# %% [markdown]
# How much does the value rise with a token? That is the temporal difference, GAE's eq. 9:
#
# $$ \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t) $$
#
# In RLHF $\gamma = 1$: a token is not worth less for standing earlier. For "12" the differences are
# 0.5 - 0.25, then 1 - 0.5, then 1 + 0 - 1 (behind the last token V is 0, as the text is over). For
# "13" they are 0.5 - 0.25, then 0 - 0.5, then 0. So the "1" was right *in both*, and the "3" was
# the mistake. Nobody said so, and the reward was one number. This is called credit assignment.

# %%
adv, returns = gae(rewards, V, MASK, lam=0.0)
show_rows("lambda = 0: A = delta", adv)
assert adv[0, :3].tolist() == [0.25, 0.5, 0.0] and adv[1, :3].tolist() == [0.25, -0.5, 0.0]
assert adv[3, :2].tolist() == [-0.25, 0.0]

# %% [markdown]
# That needs good values. The other extreme needs none: take what came in the end, minus V. GAE goes
# from one to the other (eqs. 16 to 18):
#
# $$ A_t = \delta_t + \gamma\lambda A_{t+1} = \sum_l (\gamma\lambda)^l\, \delta_{t+l}, \qquad
#    \lambda = 0:\ \delta_t, \qquad \lambda = 1:\ R - V(s_t) $$
#
# For "13" at $\lambda = 0.95$ the "1" gets 0.25 - 0.95 · 0.5 = -0.225; for "12" it gets
# 0.25 + 0.95 · 0.5 = 0.725.

# %%
for lam in (0.95, 1.0):
    adv, returns = gae(rewards, V, MASK, lam=lam)
    show_rows(f"lambda = {lam}", adv)
assert adv[0, :3].tolist() == [0.75, 0.5, 0.0] and adv[1, :3].tolist() == [-0.25, -0.5, 0.0]
assert torch.equal(returns, REWARDS[0][:, None] * MASK)      # R at every token, where gamma = 1

given_1 = p_old[:3] / p_old[:3].sum()                        # .5 .3 .2: what follows a "1"
first_token = adv[:3, 0]
mean, variance = given_1 @ first_token, given_1 @ (first_token - given_1 @ first_token) ** 2
print(f"lambda = 1, the first '1': mean {float(mean):.3f}, variance {float(variance):.3f}")
assert abs(float(mean) - 0.25) < 1e-12 and abs(float(variance) - 0.25) < 1e-12

# %% [markdown]
# At $\lambda = 1$ the "1" is blamed in "13" for what the "3" did. On average it still gets 0.25.
# The blame cancels over many samples: no bias, but variance.
#
# ## The function

# %%
show(gae)

# %%
r3, v3, all3 = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.5, 0.6, 0.8]]), torch.ones(1, 3)
golden = {0.95: [0.4705, 0.39, 0.2], 0.0: [0.1, 0.2, 0.2], 1.0: [0.5, 0.4, 0.2]}
for lam, expected in golden.items():
    a, _ = gae(r3, v3, all3, lam=lam)  # step in: gae
    print(f"r = 0 0 1, V = .5 .6 .8, lambda {lam:4}: A = {[round(x, 4) for x in a[0].tolist()]}")
    assert torch.allclose(a[0], torch.tensor(expected), atol=1e-6)

# %% [markdown]
# Two details decide whether it is right.
#
# **Cut off is not over.** A text that reached the token limit has no end, and no score. The state
# behind its last token has a value, and GAE starts from it (`bootstrap`). Say "1" was cut off:
# without the bootstrap it looks like a failure, with it like the good start that it is.
#
# **Gaps are stepped over.** A tool's output in the middle of a text is no action of the policy. Its
# slots have mask 0, and "next" means the next token that the policy wrote.

# %%
cut, one = torch.zeros(1, 1), torch.ones(1, 1)
over, _ = gae(cut, torch.tensor([[0.25]]), one)
not_over, _ = gae(cut, torch.tensor([[0.25]]), one, bootstrap=torch.tensor([0.5]))
print(f"'1', cut off: A = {float(over):+.2f} as an end, {float(not_over):+.2f} with V = 0.5 behind")
assert float(over) == -0.25 and float(not_over) == 0.25

gap, v4 = torch.tensor([[1, 0, 0, 1]]), torch.tensor([[0.5, 9.0, 9.0, 0.8]])
r4 = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
stepped, _ = gae(r4, v4, gap, lam=0.5)
print("two tokens around a tool's output:", [round(x, 4) for x in stepped[0].tolist()])
assert torch.allclose(stepped, torch.tensor([[0.3 + 0.5 * 0.2, 0.0, 0.0, 0.2]]))

# %% [markdown]
# ## Picture

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4), width_ratios=[1.45, 1])
NODES = {"prompt": (0, 0.1, 0.25), "1": (1, 0.55, 0.5), "12": (2, 1.1, 1.0), "13": (2, 0.55, 0.0),
         "10": (2, 0.0, 0.0), "2": (1, -0.55, 0.0)}
EDGES = (("prompt", "1", "1", 0.5), ("prompt", "2", "2", 0.5), ("1", "12", "2", 0.5),
         ("1", "13", "3", 0.3), ("1", "10", "0", 0.2))
for start, end, token, chance in EDGES:
    (x0, y0, v0), (x1, y1, v1) = NODES[start], NODES[end]
    delta = v1 - v0
    left.plot([x0, x1], [y0, y1], color=GREEN if delta > 0 else RED, linewidth=1 + 4 * abs(delta),
              linestyle="-" if delta > 0 else "--", zorder=1)
    left.text((x0 + x1) / 2, (y0 + y1) / 2, f"“{token}” ({chance}): {delta:+.2f}", ha="center",
              va="center", fontsize=8, bbox=dict(facecolor="white", edgecolor="none", pad=1.5))
for name, (x, y, value) in NODES.items():
    left.scatter(x, y, s=620, color=plt.cm.Blues(0.12 + 0.6 * value), edgecolor=BLUE, zorder=2)
    left.text(x, y, f"{value:g}", ha="center", va="center", fontsize=8, zorder=3)
    left.text(x, y - 0.26, name if name == "prompt" else f"“{name}”", ha="center", fontsize=8,
              color=GREY)
left.set(xlim=(-0.25, 2.3), ylim=(-0.95, 1.35), title="Values (circles) and what a token adds")
left.axis("off")
for x in range(3):
    for k, (lam, colour) in enumerate(zip((0.0, 0.95, 1.0), (BLUE, AMBER, RED), strict=True)):
        a = float(gae(rewards, V, MASK, lam=lam)[0][x, 0])
        right.bar(x + 0.27 * (k - 1), a, 0.25, color=colour, hatch=(None, "//", "..")[k],
                  edgecolor="white", label=f"λ = {lam:g}" if x == 0 else None)
right.axhline(0.25, color=GREY, linestyle=":", linewidth=1.2, label="what it is worth")
right.axhline(0, color="black", linewidth=0.8)
right.set(xticks=range(3), xticklabels=[f"“{answer}”" for answer in ANSWERS[:3]],
          xlabel="the answer it began", ylabel="advantage of the first “1”",
          title="Who is blamed for what follows")
right.grid(axis="x")
right.legend()
keep(figure, "04_tree")

# %% [markdown]
# ## Lambda: bias and variance
#
# The policy has five logits: two for the first token, three for the one after "1". The true
# gradient of the expected reward is known. So are the mean and the variance of the policy gradient
# $\sum_t A_t \nabla \log \pi(y_t)$ of one sampled answer: sums of four terms. The variance is added
# up over the five logits. We compare three value functions: the exact one, one that is wrong ("1"
# is worth 0.2, and "2" 0.3), and V = 0.

# %%
leaves = [logits.clone().requires_grad_() for logits in OLD]
logp = token_logprobs(tuple(leaves))                                 # (4, 8)


def gradient(x):
    """Return the gradient of a scalar by all five logits, (5,)."""
    return torch.cat(torch.autograd.grad(x, leaves, retain_graph=True))


TRUE = gradient(probabilities(tuple(leaves)) @ REWARDS[0])
WRONG_V = V.clone()
WRONG_V[:3, 1], WRONG_V[3, 1] = 0.2, 0.3
VALUES = {"exact V": V, "wrong V": WRONG_V, "V = 0": torch.zeros_like(V)}


def bias_and_variance(values, lam):
    """Return |E[g] - true gradient| and the trace of the covariance of g, exactly."""
    adv, _ = gae(rewards, values, MASK, lam=lam)
    g = torch.stack([gradient((adv[i] * logp[i]).sum()) for i in range(4)])       # (4, 5)
    mean = p_old @ g
    return (float((mean - TRUE).norm()),
            float(p_old @ g.square().sum(1) - mean.square().sum()))


LAMBDAS = [k / 50 for k in range(51)]
results = {name: [bias_and_variance(values, lam) for lam in LAMBDAS]
           for name, values in VALUES.items()}
print(f"true gradient {[round(x, 3) for x in TRUE.tolist()]}, norm {float(TRUE.norm()):.4f}")
for name in results:
    (b0, v0), (b95, v95), (b1, v1) = (bias_and_variance(VALUES[name], lam) for lam in (0, 0.95, 1))
    print(f"{name:8} bias {b0:.4f} {b95:.4f} {b1:.4f}   variance {v0:.4f} {v95:.4f} {v1:.4f}"
          "   at lambda 0, 0.95, 1")
    assert b1 < 1e-9 and v0 < v95 < v1
assert max(b for b, _ in results["exact V"]) < 1e-9
assert results["exact V"][-1][1] > 2 * results["exact V"][0][1]
assert abs(results["V = 0"][0][0] - float(TRUE.norm())) < 1e-9

# %% [markdown]
# - With exact values there is no bias at any $\lambda$, and $\lambda = 0$ has less than half the
#   variance of $\lambda = 1$.
# - With wrong values the bias is gone only at $\lambda = 1$. There any V is a mere baseline.
# - With V = 0 and $\lambda = 0$ nothing is learnt at all: only `<eos>`, where the score is, gets an
#   advantage. The bias is the whole gradient.
#
# A batch of n answers divides the variance by n and leaves the bias. The mean squared error
# $\text{bias}^2 + \text{variance}/n$ is then least in between: closer to 1 the larger the batch.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.1))
for name, colour, style in zip(results, (BLUE, RED, AMBER), ("-", "--", "-."), strict=True):
    bias, variance = zip(*results[name], strict=True)
    axes[0].plot(LAMBDAS, bias, style, color=colour, label=name)
    axes[1].plot(LAMBDAS, variance, style, color=colour, label=name)
axes[0].axhline(float(TRUE.norm()), color=GREY, linewidth=0.8)
axes[0].text(1, float(TRUE.norm()) + 0.004, "norm of the gradient", ha="right", fontsize=8,
             color=GREY)
best = {}
for n, colour, style in ((4, GREEN, ":"), (16, BLUE, "-"), (128, GREY, "--")):
    errors = [b ** 2 + v / n for b, v in results["wrong V"]]
    best[n] = LAMBDAS[errors.index(min(errors))]
    axes[2].semilogy(LAMBDAS, errors, style, color=colour, label=f"n = {n}: best at {best[n]:.2f}")
    axes[2].plot(best[n], min(errors), "o", color=colour)
axes[0].set(xlabel="λ", ylabel="length of the bias", title="Bias", ylim=(-0.008, 0.27))
axes[1].set(xlabel="λ", ylabel="trace of the covariance", title="Variance", ylim=(0, None))
axes[2].set(xlabel="λ", ylabel="bias² + variance / n", title="Error of a batch, wrong V")
axes[0].legend(loc="lower left")
axes[2].legend(loc="lower left")
keep(figure, "04_lambda")
print("best lambda for batches of n answers:", best)
assert best[4] < best[16] < best[128] < 1

# %% [markdown]
# ## Where values come from
#
# Nobody has the tree. A value function is a model that is fitted by regression to returns: at every
# token of every sampled text, the target is what came in the end. The least squared error is at the
# mean of the targets, and the mean return from a state *is* its value. First without a model: a
# number for each of the states, from 0, with `value_loss`.

# %%
states = {tokens[:t]: None for tokens in TOKENS for t in range(len(tokens))}
index = {state: k for k, state in enumerate(states)}
place = torch.zeros(4, 8, dtype=torch.long)
for i, tokens in enumerate(TOKENS):
    for t in range(len(tokens)):
        place[i, t] = index[tokens[:t]]
table = torch.zeros(len(index), dtype=torch.float64, requires_grad=True)
weight = p_old[:, None] * MASK                                       # how often a slot is visited
for _ in range(400):
    loss = (weight * value_loss(table[place], returns)).sum()
    step, = torch.autograd.grad(loss, table)
    table = (table - step).detach().requires_grad_()
error = ((table.detach()[place] - V).abs() * MASK).max()
print(f"{len(index)} states, learnt by regression: largest error {float(error):.1e}")
assert float(error) < 1e-6

# %% [markdown]
# OpenAI's first PPO code clips the value loss, too: once a value has moved by 0.2, its gradient is
# 0 (`clipped_value_loss`). Neither PPO's paper nor InstructGPT's has this.

# %%
v_new = torch.tensor([[0.1, 0.3]], requires_grad=True)
clipped_value_loss(v_new, torch.zeros(1, 2), torch.ones(1, 2), clip=0.2).sum().backward()
slopes = [round(x, 4) for x in v_new.grad[0].tolist()]
print("from V = 0 towards 1; gradient at 0.1 and at 0.3:", slopes)
assert torch.allclose(v_new.grad, torch.tensor([[-0.9, 0.0]]))

# %% [markdown]
# A real value function is a transformer with a head of one output. Where does it start? InstructGPT
# copies the reward model. That is a good start at one place: behind the last token it gives exactly
# the reward model's score. Before that it reads a beginning as though it were a whole text. Let us
# train a reward model on the ranking of our four answers, and shift it so that "12" scores 0
# (tutorial 03). The shift is part of the head, so the copy has it, too.

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
start = slice(len(prompt), None)                                     # the answers' slots, (4, 8)
scores = score_texts(reward_model, tokenizer, [QUESTION] * 4, ANSWERS)
with torch.no_grad():
    at_start, end = value_model(tokens, mask)
print("reward model's scores:", [round(x, 3) for x in scores.tolist()])
print("V behind <eos>:       ", [round(x, 3) for x in end.tolist()])
assert torch.allclose(end, scores, atol=1e-5) and abs(float(scores[0])) < 1e-5
prefix = float(score_ids(reward_model, [prompt], [ids[0][:1]], tokenizer.pad_id))
print(f"V of '1': {float(at_start[0, start][1]):.3f}; reward model, '1' alone: {prefix:.3f}")
assert abs(float(at_start[0, start][1]) - prefix) < 1e-5

# %% [markdown]
# Now the regression. The rewards are the reward model's scores. Each answer counts as often as OLD
# writes it.

# %%
exact = tree_values(p_old, scores.double())
_, targets = gae(at_the_end(scores), at_start[:, start].double(), MASK, lam=1.0)
optimizer = torch.optim.Adam(value_model.parameters(), lr=2e-3)
errors = []
for step in range(200):
    values = value_model(tokens, mask)[0][:, start]
    errors.append(float((values.detach() - exact)[MASK].abs().max()))
    loss = (weight * value_loss(values, targets.float())).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:3}: value loss {float(loss.detach()):.4f}, "
              f"largest error {errors[-1]:.3f}")
with torch.no_grad():
    learnt = value_model(tokens, mask)[0][:, start]
    assert torch.allclose(score_texts(reward_model, tokenizer, [QUESTION] * 4, ANSWERS), scores)
print(f"largest error of a value: {errors[0]:.3f} at the start, {errors[-1]:.3f} at the end")
assert errors[-1] < 0.1 < 0.25 < errors[0]

figure, axes = plt.subplots(figsize=(6.6, 3.2))
SHOWN = {"prompt": (0, 0), "“1”": (0, 1), "“2”": (3, 1), "“12”": (0, 2), "“13”": (1, 2),
         "“10”": (2, 2), "“10+1=11”": (2, 7)}
for x, (i, t) in enumerate(SHOWN.values()):
    axes.plot([x - 0.3, x + 0.3], [float(exact[i, t])] * 2, "-", color="black", linewidth=1.5,
              label="exact: expected score" if x == 0 else None)
    axes.plot(x - 0.12, float(at_start[i, len(prompt) + t]), "s", color=RED,
              label="start: reward model, read early" if x == 0 else None)
    axes.plot(x + 0.12, float(learnt[i, t]), "o", color=BLUE,
              label="after the regression" if x == 0 else None)
axes.set(xticks=range(len(SHOWN)), xticklabels=SHOWN, xlabel="state: what is written so far",
         ylabel="V (in units of the score)", title="A reward model becomes a value function")
axes.legend(loc="best")
keep(figure, "04_regression")

# %% [markdown]
# Only the value function was trained. The reward model is a second copy, and stays as it is: one
# network, used twice, fixed as the reward and trained on as the value.
#
# ## In the loop
#
# PPO's page does all this in its third stage, before any update:

# %%
page = inspect.getsource(train_ppo).splitlines()
first, last = (next(i for i, line in enumerate(page) if mark in line)
               for mark in ("# 3. freeze", "# 4. update"))
print("\n".join(page[first:last]).rstrip())

# %% [markdown]
# - `rollout_values` gives V before each sampled token, and V behind the last one for the bootstrap
#   of rows that were cut off.
# - `kl_shaped_rewards` puts the score at the last sampled token, and the KL penalty at every token.
# - `masked_whiten` comes *after* `gae` has made the returns. Whitened first, the advantages would
#   no longer add up to a return, and V would learn numbers without a meaning:

# %%
adv, returns = gae(rewards, V, MASK, lam=0.95)
too_early = (masked_whiten(adv, MASK) + V)[0, :3]
print("targets of V for '12':", [round(x, 3) for x in returns[0, :3].tolist()],
      " if whitened before:", [round(x, 3) for x in too_early.tolist()])
assert torch.allclose(returns[0, :3], torch.tensor([0.975, 1.0, 1.0]).double())
assert float(too_early.max()) > 2               # more than any answer's reward

# %% [markdown]
# ## Break it
#
# **The score at every token.** "Each token belongs to a good text, so each gets its score." Then a
# text's total reward is its score times its length. Say the scores are 1, 0.5, 0.5 and 0:

# %%
graded = torch.tensor([1.0, 0.5, 0.5, 0.0]).double()
once = discounted_returns(at_the_end(graded), MASK)[:, 0]
every = discounted_returns(graded[:, None] * MASK, MASK)[:, 0]
for answer, a, b in zip(ANSWERS, once.tolist(), every.tolist(), strict=True):
    print(f"{answer!r:10} total reward {a:.1f} once, {b:.1f} at every token")
assert ANSWERS[once.argmax()] == "12" and ANSWERS[every.argmax()] == "10+1=11"

# %% [markdown]
# The longest text wins.
#
# **The score in a padding slot.** One slot too far, and the mask hides it: all returns are 0, and
# the right answer looks like a failure. Some code
# [keeps that slot](https://github.com/huggingface/trl/issues/3750) in GAE. Then the score arrives,
# through the value of a state that does not exist (here 0.9):

# %%
too_far = torch.zeros(4, 8, dtype=torch.float64)
too_far[0, LENGTHS[0]] = 1.0                                         # behind the <eos> of "12"
lost, _ = gae(too_far, V, MASK, lam=1.0)
kept, _ = gae(torch.tensor([[0.0, 0, 0, 1]]), torch.tensor([[0.5, 0.6, 0.8, 0.9]]),
              torch.ones(1, 4))
print("'12', score hidden:", [round(x, 3) for x in lost[0, :3].tolist()])
print("one slot later:    ", [round(x, 4) for x in kept[0].tolist()], "instead of", golden[0.95])
assert lost[0, :3].tolist() == [-0.25, -0.5, -1.0]
assert torch.allclose(kept[0], torch.tensor([0.465987, 0.38525, 0.195, 0.1]), atol=1e-5)

# %% [markdown]
# **A discount.** With $\gamma = 0.9$, a reward at the end of "10+1=11" reaches its first token as
# $0.9^7 = 0.48$. And if all four answers had the reward 1, the shortest would be the best:

# %%
worth = discounted_returns(at_the_end(torch.ones(4)), MASK, gamma=0.9)
for answer, row, n in zip(ANSWERS, worth, LENGTHS.tolist(), strict=True):
    print(f"{answer!r:10} return of its first token {float(row[0]):.3f} = 0.9 ^ {n - 1}")
assert abs(float(worth[2, 0]) - 0.9 ** 7) < 1e-12 and ANSWERS[worth[:, 0].argmax()] == "2"

# %% [markdown]
# ## Exercises
#
# Solutions stand in `tutorials/solutions/04_values.py`.

# %%
def exercise_1(rewards, values, lam):
    """Write GAE for one text, gamma = 1: two lists of T numbers -> the list of T advantages."""
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
def exercise_2(first, then):
    """A policy begins with "1" or "2" (probabilities first), and after "1" goes on with "2", "3" or
    "0" (probabilities then). Return V(prompt) and V("1"), if only "12" has the reward 1."""
    raise NotImplementedError


def check_2(answer):
    for first, then, expected in (([0.5, 0.5], [0.5, 0.3, 0.2], (0.25, 0.5)),
                                  ([0.35, 0.65], [0.75, 0.15, 0.10], (0.2625, 0.75)),
                                  ([1.0, 0.0], [0.1, 0.9, 0.0], (0.1, 0.1))):
        came = answer(first, then)
        assert all(abs(a - b) < 1e-9 for a, b in zip(came, expected, strict=True)), (
            f"first {first}, then {then}: {tuple(came)}, not {expected}; a new policy, new values")


judge(check_2, exercise_2)


# %%
def exercise_3(lam, n):
    """With V = 0, gamma = 1 and a score at the last token: which share of the score is the
    advantage of the token n places before the last?"""
    raise NotImplementedError


def check_3(answer):
    assert answer(0.95, 0) == 1.0, "the last token itself gets all of it"
    assert abs(answer(0.95, 2) - 0.9025) < 1e-9, "each token further from the end: once more lambda"
    assert abs(answer(0.95, 100) - 0.005921) < 1e-6, "100 tokens earlier, 0.6 % arrive"
    assert answer(1.0, 1000) == 1.0 and answer(0.0, 1) == 0.0


judge(check_3, exercise_3)

# %% [markdown]
# The last one says why long texts want good values, or $\lambda = 1$.
#
# ## Deltas from the paper
#
# | | paper | here |
# |---|---|---|
# | GAE: fitting V | in a trust region | gradient descent on the squared error |
# | GAE: tasks | robots that walk, a reward at each step | texts, a reward at the end |
# | InstructGPT: V | 6 billion parameters, from the reward model | the same start, 0.06 million |
# | InstructGPT: gamma, lambda | no discount; lambda is not given | 1 and 0.95 |
# | PPO: value loss | squared error | half of it, clipped on PPO's page |
# | whitening | in neither paper | after the returns, over the batch |

# %% [markdown]
# ## Find the bug
#
# A policy calls a calculator in the middle of its text. This GAE is right for every text without a
# gap, and silently wrong with one. It is modelled on
# [a real bug](https://github.com/radixark/miles/pull/1827). Write a test that fails for it.

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
