# %%
# %pip install -q -e ..

# %% [markdown]
# # 08. GRPO
#
# *Why does the loss start at 0, and rise?*
#
# - **Paper**: DeepSeekMath, [arXiv:2402.03300](https://arxiv.org/abs/2402.03300), section 4.1:
#   eqs. 3 and 4, algorithm 1; dynamic sampling: DAPO,
#   [arXiv:2503.14476](https://arxiv.org/abs/2503.14476), eq. 11
# - **Code**: `minirl/train/grpo.py`; `minirl/equations/advantages.py`: `group_advantages`,
#   `spread`, `dynamic_sampling`, `process_advantages`
# - **Tests**: `tests/equations/test_advantages.py`, `tests/train/test_grpo.py`
# - **Before this**: 04 (PPO's loop), 05 (the ratio), 07 (k3)
# - **Time**: 40 s on two CPU cores; 18 s with `MINIRL_FAST=1`
# - **Expect**: loss 0 in the first step, some thousandths later; reward from 1.4 to 1.7
# - **Sweep**: `minirl grpo --group-size 4`, then `--group-size 32`: compare `reward` and
#   `frac_reward_zero_std` in `metrics.jsonl`, and the time
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | loss of the first step | 0, up to rounding | a mean over tokens, or another reference |
# | loss later | about β times the KL | no measure of progress: look at the reward |
# | gradient norm where the loss is 0 | not 0 | no group has a spread: see the next row |
# | groups without a spread | well below 1 | all right or all wrong: other prompts, or a larger G |
# | reward | rises | the same: advantages of 0 teach nothing |

# %%
import copy
import difflib
import inspect
import random
from unittest.mock import patch

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, FAST, GREEN, GREY, RED, judge, judge_test, keep, show
from minirl.equations.advantages import (
    dynamic_sampling,
    gae,
    group_advantages,
    leave_one_out_advantages,
    process_advantages,
    spread,
    zero_spread,
)
from minirl.equations.coefficients import gradient_coefficient
from minirl.equations.kl import k3
from minirl.equations.objectives import clipped_surrogate
from minirl.equations.reduce import aggregate, normaliser
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.testing.example import (
    ANSWERS,
    LENGTHS,
    MASK,
    OLD,
    REFERENCE,
    REWARDS,
    SCORES,
    TOKENS,
    probabilities,
    token_logprobs,
)
from minirl.train import grpo as grpo_page
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import train_ppo
from minirl.train.sft import SFTConfig, train_sft

# %% [markdown]
# ## The question
#
# GRPO's first log lines look like those of a broken run. These are asked again and again:
#
# - *Why is the loss 0 at first, and why does it rise while the model gets better?*
#   [trl#2703](https://github.com/huggingface/trl/issues/2703),
#   [trl#3452](https://github.com/huggingface/trl/issues/3452),
#   [open-r1#239](https://github.com/huggingface/open-r1/issues/239),
#   [unsloth#2291](https://github.com/unslothai/unsloth/issues/2291)
# - *Does the batch size count prompts or completions?*
#   [trl#3020](https://github.com/huggingface/trl/issues/3020),
#   [trl#3204](https://github.com/huggingface/trl/issues/3204),
#   [trl#3662](https://github.com/huggingface/trl/issues/3662),
#   [unsloth#1796](https://github.com/unslothai/unsloth/issues/1796)
# - *Why does the reward not rise?* [open-r1#436](https://github.com/huggingface/open-r1/issues/436),
#   [open-r1#474](https://github.com/huggingface/open-r1/issues/474),
#   [minimind#755](https://github.com/jingyaogong/minimind/issues/755)
#
# The short answers. In the first update of a batch the loss is minus the mean of the advantages,
# and the advantages of a group sum to 0. Its *gradient* is not 0. What remains of the loss is the
# KL penalty: β times the distance from the reference, the model that training started from. It is
# 0 at first, and rises because the policy moves. The batch size counts completions. And a group of
# equal rewards teaches nothing.

# %% [markdown]
# ## By hand
#
# **The idea.** PPO asks how much better an answer was than expected, and trains a second model,
# the value function V, to know what to expect: the advantage is $R - V$. GRPO (group relative
# policy optimization) samples a **group** of G answers to the same prompt and expects their mean:
#
# $$A_i = \frac{r_i - \text{mean}(r_1, \dots, r_G)}{\text{std}(r_1, \dots, r_G)}$$
#
# Our group is four answers to "7+5=" (`minirl/testing/example.py`). The policy OLD makes at most
# two choices, with these probabilities:
#
# ```text
#                  ┌─ 0.5 ─ 2 <eos>            "12"       right: reward 1
#     ┌─ 0.5 ─ 1 ──┼─ 0.3 ─ 3 <eos>            "13"       wrong: reward 0
# 7+5=│            └─ 0.2 ─ 0 + 1 = 1 1 <eos>  "10+1=11"  wrong
#     └─ 0.5 ─ 2 <eos>                         "2"        wrong
# ```
#
# The mean of 1, 0, 0, 0 is 1/4. The squared distances are 9/16, 1/16, 1/16, 1/16, which sum to 3/4;
# divided by G - 1 = 3 that is 1/4, so the standard deviation is 1/2. The advantages are
# (3/4) / (1/2) = **1.5** and (-1/4) / (1/2) = **-0.5**. (`eps` is added to the deviation, so that a
# tiny one does not blow up the result. Here it is 0, for round numbers.)

# %%
adv = group_advantages(REWARDS, eps=0.0)  # step in: group_advantages
centred = group_advantages(REWARDS, scale="none")                            # (P, G) = (1, 4)
print("answers   ", *(f"{answer:>9}" for answer in ANSWERS))
for name, numbers in (("rewards", REWARDS), ("R - mean", centred), ("advantages", adv)):
    print(f"{name:10}", *(f"{x:9.2f}" for x in numbers[0].tolist()))
assert adv.tolist() == [[1.5, -0.5, -0.5, -0.5]]

# %% [markdown]
# Why divide? A reward model learns from comparisons (tutorial 03), so its scores have no zero, and
# each model has a scale of its own. The advantages do not depend on either:

# %%
torch.testing.assert_close(group_advantages(3 * SCORES + 7, eps=0.0),
                           group_advantages(SCORES, eps=0.0))
print("scores", SCORES[0].tolist(), "or 3 x scores + 7: advantages",
      [round(x, 2) for x in group_advantages(SCORES, eps=0.0)[0].tolist()])

# %% [markdown]
# **R - V against R - mean.** A value is the expected reward from here on. OLD writes "12" with
# probability 1/4, so the value of the prompt is 1/4. After a "1" it is 1/2 (the chance that "2"
# follows), after a "2" it is 0. With these exact values in place of a trained V, GAE (tutorial 04)
# with λ = 1 gives R - V at each token:

# %%
values = torch.tensor([[0.25, 0.5, 1.0, 0, 0, 0, 0, 0],                      # "1", "2", <eos>
                       [0.25, 0.5, 0.0, 0, 0, 0, 0, 0],
                       [0.25, 0.5, 0.0, 0, 0, 0, 0, 0],
                       [0.25, 0.0, 0.0, 0, 0, 0, 0, 0]]).double()            # (4, 8)
ends = torch.arange(8) == LENGTHS[:, None] - 1                               # (4, 8) the last token
token_rewards = torch.where(ends, REWARDS.T, 0)                              # (4, 8)
monte_carlo, _ = gae(token_rewards, values, MASK, lam=1.0)                   # (4, 8): R - V_t
exact, _ = gae(token_rewards, values, MASK, lam=0.0)                         # (4, 8): V_t+1 - V_t
print("first tokens, R - V(prompt):", monte_carlo[:, 0].tolist())
print("R - mean(group):            ", centred[0].tolist())
assert monte_carlo[:, 0].tolist() == centred[0].tolist() == [0.75, -0.25, -0.25, -0.25]

# %% [markdown]
# For the first token GRPO's baseline *is* PPO's: the mean of the group estimates V(prompt), and in
# this group it is exactly right. Then GRPO divides by the standard deviation.
#
# For later tokens they differ. GRPO has one number per answer, and `spread` gives it to all of its
# tokens. PPO has a value before each token, and can say which token made the difference. With λ = 0
# and exact values each token gets what it changed in the chance of being right:
#
# - "1" raises the chance from 1/4 to 1/2: +0.25, **in "13", too**
# - "3" or "0" after it lowers it from 1/2 to 0: -0.5
#
# GRPO blames the "1" of "13" like its "3". This is the price of having no value function: no
# **credit assignment** within an answer. It is paid in variance, hardly in bias. In the average
# over all answers that begin with "1", weighted by how often OLD writes them, the "1" gets its
# +0.25 back. (What bias there is comes from the mean, which contains the answer itself, and from
# the division: tutorial 09.)

# %%
per_token = spread(centred[0], MASK)                                         # (4, 8)
print("answer    token   exact   R - V   R - mean")
for i, answer in enumerate(ANSWERS):
    for t in range(2):
        print(f"{answer:8}  {TOKENS[i][t]:5}  {exact[i, t]:6.2f}  {monte_carlo[i, t]:6.2f}"
              f"    {per_token[i, t]:6.2f}")
assert exact[1, :2].tolist() == [0.25, -0.5] and per_token[1, :2].tolist() == [-0.25, -0.25]
weights = probabilities(OLD)[:3] / probabilities(OLD)[:3].sum()              # given "1"
average = float((weights * per_token[:3, 0]).sum())
print(f"average of R - mean for the token '1': {average:.2f}, as exact")
assert abs(average - 0.25) < 1e-12

# %% [markdown]
# **The loss** is minus the mean of the clipped surrogate ρ A, where ρ = π / π_old is the ratio. In
# the first update of a batch π is π_old, so every ratio is 1 (tutorial 05), and the surrogate is A
# itself. The mean over each answer's tokens is that answer's A, and the mean over answers is
# (1.5 - 0.5 - 0.5 - 0.5) / 4 = 0. That holds for any rewards, because the advantages of a group sum
# to 0.
#
# But the loss is a *function* of the policy, and only its value at this point is 0. Its slope is
# the policy gradient. By hand, for the logit of "1" as first token: each of its appearances has
# the weight A / length, so 1.5/3 - 0.5/3 - 0.5/8 = 0.271, while "2" has -0.5/2 = -0.25. A softmax
# subtracts the sum (0.021) times the token's probability (1/2), and the mean over four answers
# divides by 4: (0.271 - 0.010) / 4 = 0.065.

# %%
policy = tuple(logits.clone().requires_grad_() for logits in OLD)
logp = token_logprobs(policy)                                                # (4, 8)
surrogate = clipped_surrogate(logp, logp.detach(), spread(adv[0], MASK))     # (4, 8)
loss = -aggregate(surrogate, MASK, "sequence_mean")  # step in: aggregate
first, then = torch.autograd.grad(loss, policy, retain_graph=True)
print(f"loss {abs(loss.item()):.4f}")
print("its gradient: first token", [round(x, 4) for x in first.tolist()],
      "  after '1'", [round(x, 4) for x in then.tolist()])
assert loss.item() == 0, "exactly"
torch.testing.assert_close(first, torch.tensor([-0.0651, 0.0651]).double(), atol=1e-4, rtol=0)
torch.testing.assert_close(then, torch.tensor([-0.0911, 0.0620, 0.0292]).double(), atol=1e-4,
                           rtol=0)

# %% [markdown]
# Minus the gradient raises "1", and "2" after it: this is "12".
#
# Two things move the value away from 0, and neither is progress. The first is another mean. DAPO
# and TRL's default take the mean over all 16 **tokens** of the batch, where long answers count
# more: (3 · 1.5 - 3 · 0.5 - 8 · 0.5 - 2 · 0.5) / 16 = -2/16. The loss is +0.125, since the long
# answer is a wrong one. (What that does to learning is tutorial 09.)
#
# The second is the KL penalty. Equation 3 subtracts β k3 from each token's surrogate, where k3
# estimates the KL to the reference and is never negative (tutorial 07). When training starts, the
# policy *is* the reference, and k3 is 0. Later it is not: with OLD as the policy and REFERENCE as
# the reference, the loss is β times the mean of k3.

# %%
token_mean = aggregate(surrogate, MASK, "token_mean").item()
print(f"token_mean of the surrogate: {token_mean:.4f} = -2/16")
assert token_mean == -2 / 16
BETA = 0.04                                                                  # DeepSeekMath
penalty = k3(logp, token_logprobs(REFERENCE))                                # (4, 8)
later = -aggregate(surrogate - BETA * penalty, MASK, "sequence_mean").item()
print(f"loss with the reference {later:.5f} = {BETA} x mean of k3, "
      f"{aggregate(penalty, MASK, 'sequence_mean').item():.4f}")
at_first = -aggregate(surrogate - BETA * k3(logp, logp.detach()), MASK, "sequence_mean").item()
assert at_first == 0 and bool((penalty >= 0).all())
assert abs(later - BETA * 0.0698) < 1e-5, "k3 is 0.0945 where π/ref = 2/3, and 0.1931 where it is 2"

# %% [markdown]
# ## The function

# %%
show(group_advantages)

# %%
show(spread)

# %% [markdown]
# ## PPO's page, and GRPO's
#
# `minirl/train/ppo.py` and `minirl/train/grpo.py` have the same five stages and the same names, so
# the two pages can be compared line by line. The fifth stage is the report.

# %%
def stage(page, number):
    """Return the lines of one numbered stage of a training page."""
    source = inspect.getsource(page)
    start, end = (source.index(f"# {n}. ") for n in (number, number + 1))
    return [line.strip() for line in source[start:end].splitlines() if line.strip()]


gone = []
print("stage      in both   only in PPO   only in GRPO")
for number, name in enumerate(("sample", "score", "freeze", "update"), 1):
    lines = list(difflib.ndiff(stage(train_ppo, number), stage(train_grpo, number)))
    same, minus, plus = (sum(line[:2] == sign for line in lines) for sign in ("  ", "- ", "+ "))
    print(f"{number} {name:8}  {same:6}   {minus:11}   {plus:12}")
    assert number > 1 or minus == plus == 0, "both sample alike"
    gone += [line[2:] for line in lines
             if line[:2] == "- " and ("value" in line or "gae" in line or "v_" in line)]
print("\nlines that went with the value model:", *gone, sep="\n  ")
assert len(gone) >= 8

# %% [markdown]
# The reasons for what else differs:
#
# | stage | PPO | GRPO | why |
# |---|---|---|---|
# | 1 | one completion per prompt | G of them | the group is the baseline |
# | 2 | scores, fixed for a cut-off answer | advantages, from `group_advantages` | there is no V |
# | 3 | old log-probs, always | only if a batch is used twice | else `logp.detach()` is the same |
# | 3 | KL in the token rewards, before GAE | – | there is no return per token |
# | 4 | value loss, entropy bonus | k3 in the loss | the KL must stand somewhere |
#
# A value model is usually about as large as the policy, and needs gradients and Adam's two moments,
# too. GRPO saves them, and pays with prompts: 128 completions are 128 prompts for PPO, and 16 for
# GRPO with G = 8.
#
# **Three things suffice** for such a method: *data* that say what is better, a *regulariser* that
# keeps the policy near what it was, and a *reward*, from a model or a rule. Most named algorithms
# are a choice of the three:
#
# | method | what is better | regulariser | reward | function |
# |---|---|---|---|---|
# | SFT | what people wrote | few epochs | 1 for each | `train_sft` |
# | RFT | own answers that are right | few epochs | a rule, 0 or 1 | `rejection_sample` |
# | DPO | pairs of answers | the reference, in its loss | implicit | `train_dpo` |
# | PPO | tokens that V did not expect | KL in the reward, clip | a model | `train_ppo` |
# | GRPO | answers above their group | k3 in the loss, clip | a model or a rule | `train_grpo` |
#
# (RFT is rejection-sampling fine-tuning: SFT on the right ones of a model's own answers.)
# DeepSeekMath's equation 5 says it in one line. Every method moves the policy along
# $\nabla \log \pi$ of each token, and they differ in the **coefficient** in front of it. These are
# the coefficients of the first token of our four answers (DPO sees the pair "12" and "13" alone):

# %%
old, ref = token_logprobs(OLD), token_logprobs(REFERENCE)                    # (4, 8) each
right = REWARDS[0] == 1                                                      # (4,)
pair = float(gradient_coefficient["DPO"](*(x[i:i + 1].sum(1) for x in (old, ref) for i in (0, 1)),
                                         beta=0.1))
grpo = gradient_coefficient["GRPO"](spread(adv[0], MASK), old, ref, kl_coef=BETA)
first_token = {
    "SFT on a demonstration": [1.0, 0.0, 0.0, 0.0],
    "RFT": gradient_coefficient["RFT"](right, old)[:, 0].tolist(),
    "DPO": [pair, -pair, 0.0, 0.0],
    "PPO, exact values": gradient_coefficient["PPO"](exact)[:, 0].tolist(),
    "GRPO": grpo[:, 0].tolist(),
}
for name, numbers in first_token.items():
    print(f"{name:24}", *(f"{x:8.3f}" for x in numbers))
assert [round(x, 2) for x in first_token["GRPO"]] == [1.52, -0.48, -0.48, -0.52]
assert first_token["PPO, exact values"] == [0.25, 0.25, 0.25, -0.25]

# %% [markdown]
# GRPO's row is 1.5 and -0.5, plus β (ref/π - 1): ±0.02, the pull to REFERENCE, which writes a "1"
# first more often than OLD.

# %% [markdown]
# ## Prompts and completions in a batch
#
# A step draws P prompts and samples G completions of each. Row $p \cdot G + g$ is completion g of
# prompt p, so `rewards.view(P, G)` has a group in each row. minirl asks for P and G. TRL asks for
# **completions**, and divides by G to get the prompts:
#
# | | minirl | TRL 1.16 |
# |---|---|---|
# | G | `group_size` | `num_generations` |
# | completions sampled at once | P · G | `generation_batch_size` |
# | P | `prompts_per_step` | `generation_batch_size` / `num_generations` |
# | updates per pass over them | `minibatches` | `steps_per_generation` / accumulation steps |
# | passes over them | `iterations` (μ) | `num_iterations` |
# | through the model at once | `token_budget`, in tokens | `per_device_train_batch_size` |
#
# Unless it is given, `generation_batch_size` is `per_device_train_batch_size` times the number of
# devices times `steps_per_generation`, and that is the number of accumulation steps. So 8
# completions on one device, without accumulation, are *one* prompt if `num_generations` is 8.
#
# What goes through the model at once, a **micro-batch**, needs no complete group: the advantages
# are numbers by then. It does need the divisor of the whole batch. Our four answers in two halves,
# under `token_mean`:

# %%
total = normaliser(MASK, "token_mean")                                       # 16 tokens
terms = spread(adv[0], MASK)
halves = [(terms[rows], MASK[rows]) for rows in (slice(0, 2), slice(2, 4))]
together = [float(aggregate(x, mask, "token_mean", total=total)) for x, mask in halves]
alone = [float(aggregate(x, mask, "token_mean")) for x, mask in halves]
print(f"divided by the batch's 16 tokens: {together[0]:.4f} + {together[1]:.4f} "
      f"= {sum(together):.4f}")
print(f"each by its own 6 and 10 tokens:  mean of {alone[0]:.4f} and {alone[1]:.4f} "
      f"= {sum(alone) / 2:.4f}")
assert sum(together) == token_mean and sum(alone) / 2 == 0 != token_mean

# %% [markdown]
# ## Picture
#
# First the credit of each token. GRPO's map has one colour per answer. The exact one shows which
# token decided.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.6), sharey=True)
PANELS = {"Exact: what the token changed": exact, "PPO, λ = 1: R - V": monte_carlo,
          "GRPO: R - mean": per_token}
for axis, (title, numbers) in zip(axes, PANELS.items(), strict=True):
    shown = torch.where(MASK, numbers, float("nan"))
    axis.imshow(shown.numpy(), cmap="RdBu", vmin=-1.0, vmax=1.0, aspect="auto")
    for i, row in enumerate(TOKENS):
        for t, token in enumerate(row):
            text = f"{token.replace('<eos>', 'end')}\n{numbers[i, t]:+.2f}"
            axis.text(t, i, text.replace("+0.00", "0"), ha="center", va="center", fontsize=6.5)
    axis.set(title=title, xlabel="token", yticks=range(4), yticklabels=ANSWERS)
    axis.grid(visible=False)
axes[0].set(ylabel="answer")
keep(figure, "08_credit")

# %% [markdown]
# ![Advantages of each token: exact, PPO and GRPO](figures/08_credit.png)
#
# Second, the groups that teach something. If all G answers are right, or all wrong, every advantage
# is 0, and so is the gradient (but for the KL). A prompt that the policy solves with probability p
# gives a useful group with probability $1 - p^G - (1-p)^G$. The metric `frac_reward_zero_std`
# counts the others, and `dynamic_sampling` drops them:

# %%
rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
print("rewards of three groups:", rewards.tolist())
print("advantages:             ", [[round(x, 1) for x in row]
                                   for row in group_advantages(rewards).tolist()])
print("kept:                   ", dynamic_sampling(rewards).tolist())
assert dynamic_sampling(rewards).tolist() == [False, True, False]
assert bool((group_advantages(rewards)[[0, 2]] == 0).all())

chance = torch.linspace(0.0, 1.0, 101)
generator = torch.Generator().manual_seed(0)
GROUPS = 1_000 if FAST else 4_000
figure, axis = plt.subplots(figsize=(5.6, 3.2))
furthest = 0.0
for G, colour, dash, mark in ((2, GREY, ":", "v"), (4, AMBER, "-.", "s"), (8, BLUE, "-", "o"),
                              (64, RED, "--", "D")):
    axis.plot(chance, 1 - chance ** G - (1 - chance) ** G, color=colour, linestyle=dash)
    axis.plot([], [], mark, color=colour, linestyle=dash, markersize=4, label=f"G = {G}")
    for p in (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95):
        drawn = (torch.rand(GROUPS, G, generator=generator) < p).float()     # (groups, G)
        share = float((~zero_spread(drawn)).float().mean())
        axis.plot(p, share, mark, color=colour, markersize=4)
        furthest = max(furthest, abs(share - (1 - p ** G - (1 - p) ** G)))
axis.set(xlabel="chance p that an answer is right", ylabel="share of useful groups",
         title="Lines: exact. Marks: simulated.", ylim=(0, 1.05), xlim=(0, 1))
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=4)
keep(figure, "08_groups")
print(f"largest distance between simulated and exact: {furthest:.3f}")
assert furthest < (0.06 if FAST else 0.03)               # fewer groups are drawn in the fast mode
shares = {G: 1 - 0.1 ** G - 0.9 ** G for G in (4, 8, 64)}
print("useful groups at p = 0.1:", {G: round(share, 3) for G, share in shares.items()})
assert [round(share, 2) for share in shares.values()] == [0.34, 0.57, 1.0]

# %% [markdown]
# ![Share of useful groups against the chance of a right answer](figures/08_groups.png)
#
# At p = 0.1 one group of 4 in three is useful, more than one group of 8 in two, and almost every
# group of 64. At p = 0 no group size helps: GRPO makes a right answer more frequent, it does not
# invent one. So where a reward does not rise, look at `frac_reward_zero_std` first.

# %% [markdown]
# ## In the loop
#
# A tiny model reads one-digit sums. Half of them are worked out, and half of the others are
# guessed. Then GRPO rewards a right answer with 1 and the right format with 1. Four runs start from
# this model:
#
# - β = 0.04, DeepSeekMath's
# - β = 0: no KL penalty
# - β = 0.04, and the reference is **renewed** every few steps: iterative GRPO, the outer loop of
#   the paper's algorithm 1 (which retrains the reward model there, too)
# - β = 0.04, but the rewards are **shuffled** among the completions of the batch
#
# The page does not log the loss, as it says nothing about progress. But it passes each loss to
# `check_finite`, and there we look at it.

# %%
STEPS, SYNC = (16, 6) if FAST else (40, 10)
task = Arithmetic(digits=1)
base, tokenizer = make_base(TinySizes(), seed=0, device="cpu")
texts = demonstrations(task, 2_000 if FAST else 3_000, random.Random(0), worked_share=0.5,
                       guessed_share=0.5)
train_sft(base, tokenizer, texts, SFTConfig(), seed=0)
real_check = grpo_page.check_finite


def grpo_run(title, *, advantages=None, **changes):
    """Train a copy of the base model -> the metrics of each step, with its loss."""
    numbers = dict(steps=STEPS, lr=5e-4, min_lr_ratio=1.0, kl_coef=BETA, max_new_tokens=24)
    losses, rows = [], []

    def look(loss, *rest):
        losses.append(loss.item())
        real_check(loss, *rest)

    def log(step, metrics):
        rows.append({**metrics, "loss": losses[-1]})
        if step == 1 or step % (STEPS // 4) == 0:
            print(f"  step {step:3}  loss {abs(losses[-1]):.5f}  reward {metrics['reward']:.2f}"
                  f"  gradient norm {metrics['grad_norm']:.3f}", flush=True)

    print(title)
    with patch.object(grpo_page, "check_finite", look):
        train_grpo(copy.deepcopy(base), tokenizer, task, GRPOConfig(**numbers | changes), seed=0,
                   advantages=advantages, log=log)
    assert len(losses) == STEPS, "one micro-batch in each step"
    return {name: torch.tensor([row.get(name, float("nan")) for row in rows]) for name in (
        "loss", "reward", "kl", "grad_norm", "frac_reward_zero_std")}


def shuffled(rewards):
    """Give each completion the reward of another, drawn from the whole batch."""
    order = torch.randperm(rewards.numel(), generator=generator)
    return group_advantages(rewards.flatten()[order].view_as(rewards))


runs = {"β = 0.04": grpo_run("β = 0.04"),
        "β = 0": grpo_run("β = 0", kl_coef=0.0),
        "renewed": grpo_run("β = 0.04, reference renewed", ref_sync_steps=SYNC),
        "shuffled": grpo_run("β = 0.04, rewards shuffled", advantages=shuffled)}

# %%
def ends_of(curve):
    """Return the means of the first and of the last five steps."""
    return float(curve[:5].mean()), float(curve[-5:].mean())


print("steps         first 5  last 5   first 5  last 5   first 5  last 5")
print("                   loss            reward       groups without spread")
for name, run in runs.items():
    pairs = [ends_of(run[key]) for key in ("loss", "reward", "frac_reward_zero_std")]
    loss, reward, flat = ((abs(start), end) for start, end in pairs)
    print(f"{name:10}    {loss[0]:.4f}  {abs(loss[1]):.4f}     {reward[0]:.2f}  {reward[1]:.2f}"
          f"        {flat[0]:.2f}  {flat[1]:.2f}")
main, free, renewed, noise = runs.values()
for run in runs.values():
    assert abs(run["loss"][0]) < 1e-6 < 0.01 < run["grad_norm"][0], "no loss, but a gradient"
assert ends_of(main["loss"])[1] > 3e-4, "the loss rises ..."
assert ends_of(main["reward"])[1] > ends_of(main["reward"])[0] + 0.1, "... and so does the reward"
assert bool((free["loss"].abs() < 1e-6).all()), "without a KL the loss is 0 in every step ..."
assert ends_of(free["reward"])[1] > ends_of(free["reward"])[0] + 0.1, "... and the policy learns"
assert bool((renewed["loss"][::SYNC].abs() < 1e-6).all()), "a new reference: the loss is 0 again"
assert ends_of(noise["loss"])[1] > 3e-4, "shuffled rewards: the loss rises just as well ..."
assert ends_of(noise["reward"])[1] < ends_of(main["reward"])[1] - 0.1, "... and nothing is learnt"
assert ends_of(noise["reward"])[1] < ends_of(noise["reward"])[0] + 0.05
assert FAST or ends_of(main["frac_reward_zero_std"])[1] > 0.3     # the fast mode stops too soon
per_answer, logged = float(main["loss"].mean()), BETA * float(main["kl"].mean())
print(f"mean loss {per_answer:.4f}; β x the logged KL {logged:.4f}")
assert 0.5 < per_answer / logged < 3, "two means of one k3: over answers, and over tokens"

# %%
STYLES = {"β = 0.04": (BLUE, "-"), "β = 0": (AMBER, "-."), "renewed": (GREEN, ":"),
          "shuffled": (RED, "--")}
figure, axes = plt.subplots(1, 3, figsize=(9.0, 2.9))
along = range(1, STEPS + 1)
for axis, key in zip(axes, ("loss", "reward", "frac_reward_zero_std"), strict=True):
    for name, run in runs.items():
        curve = run[key]
        if key != "loss":                                                    # mean of five steps
            curve = curve.unfold(0, 5, 1).mean(1)
        axis.plot(along[-len(curve):], curve, color=STYLES[name][0], linestyle=STYLES[name][1],
                  label=name)
    axis.set(xlabel="step", xlim=(0, STEPS + 1))
axes[0].set(title="Loss", ylabel="loss")
axes[1].set(title="Reward (mean of 5 steps)", ylabel="right + format")
axes[2].set(title="Groups without a spread", ylabel="share", ylim=(0, 1))
axes[2].legend(loc="upper left")
keep(figure, "08_loss")

# %% [markdown]
# ![Loss, reward and groups without spread over the steps](figures/08_loss.png)
#
# The answer to the question in one picture. Without a KL penalty the loss is 0 from the first step
# to the last, and the reward rises all the same. With one, the loss is β times the distance from
# the reference. It rises because the policy has moved, and falls back to 0 when the reference is
# renewed. The shuffled run lacks the first of the three things, data on what is better: its loss
# rises as well, and it learns nothing. So look at the reward, the KL and the gradient norm, and at
# the loss only to see whether it is finite.
#
# On the right: as the policy gets better, more groups have no spread, and a step teaches less.

# %% [markdown]
# ## Rewards for steps
#
# GRPO can also use a reward for each *step* of an answer (process supervision, section 4.1.3). All
# step rewards of the group are normalised together; a step's advantage is the sum from that step to
# the end. By hand, for two answers with the step rewards 0.2, 0.8 and 0.5, 0.1, 0.9: the mean is
# 0.5 and the standard deviation 0.3536. The normalised rewards are -0.8485, 0.8485 and
# 0, -1.1314, 1.1314. The sums to the end are 0, 0.8485 and 0, 0, 1.1314.

# %%
nan = float("nan")                                                           # no third step
steps = torch.tensor([[[0.2, 0.8, nan], [0.5, 0.1, 0.9]]]).double()          # (P, G, S)
step_adv = process_advantages(steps, eps=0.0)                                # (P, G, S)
print("advantages of the steps:", [[round(x, 4) + 0.0 for x in row]
                                   for row in step_adv[0].tolist()])
torch.testing.assert_close(step_adv, torch.tensor([[[0, 0.8485, 0], [0, 0, 1.1314]]]).double(),
                           atol=1e-4, rtol=0)

# %% [markdown]
# A weak step that is followed by a strong one is not blamed. These advantages do not sum to 0 over
# the group, so with them the loss need not start at 0.

# %% [markdown]
# ## Break it
#
# **A group of one** has no other answer to be compared with. **Equal rewards** must give exactly 0.
# The formula alone does not: the float32 mean of eight 0.7 is not 0.7, and a small ε magnifies the
# last digit to an advantage of 0.8 for every answer. `group_advantages` looks at the largest and
# the smallest reward first.
#
# **Groups in the wrong order.** Take two prompts. The first is easy, and all four answers are
# right. The second is hard, and all are wrong. Neither teaches anything. But if rows that were
# sampled prompt by prompt are read as if the prompts alternated, every group has two of each:

# %%
def plain_formula(rewards, eps):
    """The equation and nothing else, one group in each row."""
    centred = rewards - rewards.mean(1, keepdim=True)                        # (P, G)
    variance = centred.square().sum(1, keepdim=True) / (rewards.shape[1] - 1)
    return centred / (variance.sqrt() + eps)


one, equal = torch.tensor([[1.0]]), torch.full((1, 8), 0.7)
print("a group of one: formula", plain_formula(one, 1e-4).tolist(), "  group_advantages",
      group_advantages(one).tolist())
try:
    GRPOConfig(group_size=1)
except ValueError as error:
    print("GRPOConfig:", error)
else:
    raise AssertionError("a group of one is refused")
print(f"eight rewards of 0.7: formula with ε = 1e-8 {float(plain_formula(equal, 1e-8)[0, 0]):.2f}, "
      f"with 1e-4 {float(plain_formula(equal, 1e-4)[0, 0]):.5f}; group_advantages",
      float(group_advantages(equal, eps=1e-8)[0, 0]))
assert bool(plain_formula(one, 1e-4).isnan().all()) and float(group_advantages(one)) == 0
assert abs(float(plain_formula(equal, 1e-8)[0, 0]) - 0.81) < 0.01
assert bool((group_advantages(equal, eps=1e-8) == 0).all())

easy_and_hard = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])                     # row p * G + g
as_sampled = group_advantages(easy_and_hard.view(2, 4))                      # (P, G)
alternating = group_advantages(easy_and_hard.view(4, 2).T).T.reshape(2, 4)   # wrong
print("groups as they were sampled:", [round(x, 2) for x in as_sampled.flatten().tolist()])
print("groups read as alternating: ", [round(x, 2) for x in alternating.flatten().tolist()])
assert bool((as_sampled == 0).all()) and abs(float(alternating.sum())) < 1e-6
assert bool((alternating[0] > 0.8).all()) and bool((alternating[1] < -0.8).all())

# %% [markdown]
# Every answer to the easy prompt is praised, and every answer to the hard one blamed, whatever it
# says. The advantages still sum to 0, so the loss still starts at 0. It does not show that the
# comparison within a prompt is lost.

# %% [markdown]
# ## Exercises
#
# Write the body, run the cell, and it says how you stand. Solutions are in
# `tutorials/solutions/08_grpo.py`.

# %%
def exercise_1(completions_per_device, devices, accumulation_steps, group_size, prompts, epochs):
    """Return how many prompts an optimizer step has, and how many steps training takes.

    TRL's numbers: each batch of samples is used once. `prompts` is the size of the data set.
    """
    raise NotImplementedError


def check_1(answer):
    # trl#3204: "the job shows 4k steps. Shouldn't it be 666?"
    came = answer(4, 3, 2, 6, 8_000, 2)
    assert came == (4, 4_000), f"4 x 3 x 2 completions are 4 groups of 6; you say {came}"
    assert answer(8, 1, 1, 8, 100, 1) == (1, 100), "8 completions on one device: one prompt"


judge(check_1, exercise_1)


# %%
def exercise_2(p, group_size, wanted):
    """Return how many prompts must be drawn, on average, until `wanted` groups have a spread.

    Each answer is right with chance p. This is what DAPO's dynamic sampling pays.
    """
    raise NotImplementedError


def check_2(answer):
    for p, group_size, wanted, expected in ((0.5, 2, 16, 32.0), (0.1, 4, 16, 46.5387),
                                            (0.9, 8, 16, 28.0932)):
        came = answer(p, group_size, wanted)
        assert came is not None and abs(came - expected) < 1e-3, \
            f"p = {p}, G = {group_size}: expected {expected}, not {came}"


judge(check_2, exercise_2)


# %%
def exercise_3(rewards, mask):
    """Return values (B, T) with which GAE (λ = 1) gives RLOO's advantages to every token.

    rewards: (P, G). RLOO compares each reward with the mean of the *others* in its group.
    A value model and a group differ in one thing: where the baseline comes from.
    """
    raise NotImplementedError


def check_3(answer):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.5]]).double()
    mask, last = torch.cat([MASK, MASK]), torch.cat([ends, ends])            # (8, 8)
    came = answer(rewards, mask)
    assert came is not None and came.shape == mask.shape, "expected a value for each token, (B, T)"
    tokens = torch.where(last, rewards.flatten()[:, None], 0)                # (8, 8)
    now, _ = gae(tokens, came.double(), mask, lam=1.0)
    assert torch.allclose(now[0, :3], torch.ones(3).double()), "'12': 1 minus the mean of 0, 0, 0"
    wanted = spread(leave_one_out_advantages(rewards).flatten(), mask)
    assert torch.allclose(now, wanted), f"expected {wanted[:, 0].tolist()} at the first tokens"


judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | DeepSeekMath, sections 4.1 and 4.2 | here |
# |---|---|---|
# | reward | a trained reward model | rules: right answer 1, format 1 |
# | model, questions | 7B, 144K of GSM8K and MATH | 0.3M, one-digit sums |
# | G, longest answer | 64, 1024 tokens | 8, 24 tokens |
# | learning rate, β | 1e-6, 0.04 | 5e-4, 0.04 |
# | updates per batch of samples | one | one |
# | std | divisor left open | G - 1 (`ddof=1`); ε = 1e-4 |
# | equal rewards | not mentioned | exactly 0, decided by the largest and the smallest |
# | iterative GRPO | reference and reward model renewed | the reference |
#
# DeepSeek-R1 has G = 16, β = 0.001 and a reference that is renewed every 400 updates, which are 25
# batches of samples (`minirl grpo --preset r1-zero`).

# %% [markdown]
# ## Find the bug
#
# The function takes the rewards of a batch in one row, completion g of prompt p at $p \cdot G + g$,
# as a trainer with several devices has them. It has one bug. Training with it runs. Write a test
# that passes for `right_advantages` and fails for this function.

# %%
def right_advantages(rewards, group_size):
    """Advantages of a flat batch. (P * G,) -> (P * G,)"""
    return group_advantages(rewards.view(-1, group_size)).flatten()


def advantages_with_a_bug(rewards, group_size):
    """Advantages of a flat batch. (P * G,) -> (P * G,)"""
    groups = rewards.view(-1, group_size)                                    # (P, G)
    mean = groups.mean(1).repeat(group_size)                                 # (P * G,)
    std = groups.std(1).repeat(group_size)                                   # (P * G,)
    return (rewards - mean) / (std + 1e-4)


def exercise_bug(function):
    """Raise AssertionError unless function(rewards, group_size) compares within groups alone.

    A hint: what must happen to the advantages when two prompts change places?
    """
    raise NotImplementedError


def check_bug(test):
    judge_test(test, right_advantages, advantages_with_a_bug)


judge(check_bug, exercise_bug)
