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
# - **Expect**: loss 0 in the first step, about 0.004 later; reward from 1.4 to 1.7
# - **Sweep**: `minirl grpo --group-size 4`, then `--group-size 32`: compare `reward` and
#   `frac_reward_zero_std` in `metrics.jsonl`, and the time
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | loss of the first step | 0, up to rounding | a mean over tokens, or another reference |
# | loss later | about β times the KL | look at the reward: the loss measures no progress |
# | gradient norm where the loss is 0 | not 0 | no group has a spread: see the next row |
# | groups without a spread | well below 1 | other prompts, or a larger G |
# | reward | rises | groups without a spread teach nothing |

# %%
import copy
import difflib
import inspect
import random

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
)
from minirl.equations.kl import k3
from minirl.equations.objectives import clipped_surrogate
from minirl.equations.reduce import aggregate
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
# and the advantages of a group sum to 0. The *gradient* is not 0. What remains of the loss is the
# KL penalty: β times the distance from the reference, the model that training started from. The
# distance is 0 at first and grows as the policy moves. The batch size counts completions. And a
# group of equal rewards teaches nothing.

# %% [markdown]
# ## By hand
#
# **The group.** PPO asks how much better an answer was than expected. To know what to expect, it
# trains a second model, the value function V: the advantage is $R - V$. GRPO (group relative policy
# optimization) samples a **group** of G answers to the same prompt and expects their mean:
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
# (3/4) / (1/2) = **1.5** and (-1/4) / (1/2) = **-0.5**. (`eps` is added to the deviation, against
# division by almost 0. Here it is 0, for round numbers.)
#
# Why divide? The scores of a reward model have no zero, and each model has a scale of its own
# (tutorial 03). The advantages depend on neither.

# %%
adv = group_advantages(REWARDS, eps=0.0)  # step in: group_advantages
print("answers   ", *(f"{answer:>9}" for answer in ANSWERS))
for name, numbers in (("rewards", REWARDS), ("advantages", adv)):
    print(f"{name:10}", *(f"{x:9.2f}" for x in numbers[0].tolist()))
assert adv.tolist() == [[1.5, -0.5, -0.5, -0.5]]
torch.testing.assert_close(group_advantages(3 * SCORES + 7, eps=0.0),
                           group_advantages(SCORES, eps=0.0))

# %% [markdown]
# **The loss is 0.** It is minus the mean of the clipped surrogate ρ A, where ρ = π / π_old is the
# ratio. In the first update of a batch π is π_old, so every ratio is 1 (tutorial 05), and the
# surrogate is A itself. The mean over the tokens of an answer is its A, and the mean over answers
# is (1.5 - 0.5 - 0.5 - 0.5) / 4 = 0. This holds for any rewards, because the advantages of a group
# sum to 0.
#
# **The gradient is not.** Take the logit of "1" as first token, where both choices have probability
# 1/2. The slope of log π in this logit is 1 - 1/2 for the answers that begin with "1", and -1/2 for
# "2". A token has the weight A / length in the surrogate's mean, whose slope therefore is
# (1/2 · (1.5/3 - 0.5/3 - 0.5/8) - 1/2 · (-0.5/2)) / 4 = **0.0651**. The loss has -0.0651.

# %%
policy = tuple(logits.clone().requires_grad_() for logits in OLD)
logp = token_logprobs(policy)                                                # (4, 8)
surrogate = clipped_surrogate(logp, logp.detach(), spread(adv[0], MASK))     # (4, 8)
loss = -aggregate(surrogate, MASK, "sequence_mean")  # step in: aggregate
first, then = torch.autograd.grad(loss, policy, retain_graph=True)
print(f"loss {abs(loss.item()):.4f}")
print("its gradient: first token", [round(x, 4) for x in first.tolist()],
      "  after '1'", [round(x, 4) for x in then.tolist()])
assert loss.item() == 0
assert [round(x, 4) for x in first.tolist()] == [-0.0651, 0.0651]
assert then[0] < 0 < then[1:].min()

# %% [markdown]
# So the update makes "1" more likely, and "2" after it: the answer "12".
#
# **The loss rises.** Two things move it away from 0, and neither is progress. One is another mean.
# DAPO and TRL's default take the mean over all 16 **tokens** of the batch, where long answers count
# more: (3 · 1.5 - 3 · 0.5 - 8 · 0.5 - 2 · 0.5) / 16 = -2/16. The loss is +0.125, because the long
# answer is a wrong one (tutorial 09).
#
# The other is the KL penalty. Equation 3 subtracts β k3 from the surrogate of each token, where k3
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
assert abs(later - BETA * 0.0698) < 1e-5 and bool((penalty >= 0).all())

# %% [markdown]
# ## The function

# %%
show(group_advantages)

# %% [markdown]
# ## Picture
#
# **R - V against R - mean.** A value is the expected reward from here on. OLD writes "12" with
# probability 1/4, so the value of the prompt is 1/4. After "1" it is 1/2 (the probability of "2"),
# after a wrong token 0. With these exact values, GAE (tutorial 04) gives R - V at each token where
# λ = 1, and where λ = 0 what each token changed.

# %%
values = torch.tensor([[0.25, 0.5, 1.0, 0, 0, 0, 0, 0],                      # "1", "2", <eos>
                       [0.25, 0.5, 0.0, 0, 0, 0, 0, 0],
                       [0.25, 0.5, 0.0, 0, 0, 0, 0, 0],
                       [0.25, 0.0, 0.0, 0, 0, 0, 0, 0]]).double()            # (4, 8)
ends = torch.arange(8) == LENGTHS[:, None] - 1                               # (4, 8) the last token
token_rewards = torch.where(ends, REWARDS.T, 0)                              # (4, 8)
monte_carlo, _ = gae(token_rewards, values, MASK, lam=1.0)                   # (4, 8): R - V_t
exact, _ = gae(token_rewards, values, MASK, lam=0.0)                         # (4, 8): V_t+1 - V_t
per_token = spread(group_advantages(REWARDS, scale="none")[0], MASK)         # (4, 8): R - mean

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
# At the first token GRPO's baseline *is* PPO's: the mean of the group estimates V(prompt), and in
# this group it is exactly right. Later they differ. PPO has a value before each token. GRPO has one
# number per answer, and `spread` gives it to all tokens. The "1" of "13" was a good choice: it
# raised the chance of a right answer from 1/4 to 1/2. GRPO gives it -0.25, like the "3" that
# followed. Without a value function there is no **credit assignment** within an answer.
#
# The price is variance, and hardly bias: the average over all answers that begin with "1", weighted
# by how often OLD writes them, gives the "1" its +0.25 back. (The bias that is left: tutorial 09.)

# %%
print("first tokens, R - V:", monte_carlo[:, 0].tolist(), "  R - mean:", per_token[:, 0].tolist())
assert monte_carlo[:, 0].tolist() == per_token[:, 0].tolist() == [0.75, -0.25, -0.25, -0.25]
assert exact[1, :2].tolist() == [0.25, -0.5] and per_token[1, :2].tolist() == [-0.25, -0.25]
weights = probabilities(OLD)[:3] / probabilities(OLD)[:3].sum()              # given "1"
average = float((weights * per_token[:3, 0]).sum())
print(f"R - mean of the token '1', averaged over the answers: {average:+.2f}")
assert abs(average - 0.25) < 1e-12

# %% [markdown]
# ## Groups without a spread
#
# If all G answers are right, or all wrong, every advantage is 0, and so is the gradient (but for
# the KL). A prompt that the policy solves with probability p gives a useful group with probability
# $1 - p^G - (1-p)^G$. The metric `frac_reward_zero_std` is the share of the others, and
# `dynamic_sampling` drops them.

# %%
rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
for row, numbers, keeps in zip(rewards, group_advantages(rewards, eps=0.0),
                               dynamic_sampling(rewards), strict=True):
    print(f"rewards {row.tolist()}  advantages {numbers.tolist()!s:24}  kept: {bool(keeps)}")
    assert bool(keeps) == bool(numbers.any()) == (row.min() < row.max())

chance = torch.linspace(0.0, 1.0, 201)
figure, axis = plt.subplots(figsize=(5.6, 3.2))
for G, colour, dash in ((2, GREY, ":"), (4, AMBER, "-."), (8, BLUE, "-"), (64, RED, "--")):
    axis.plot(chance, 1 - chance ** G - (1 - chance) ** G, color=colour, linestyle=dash,
              label=f"G = {G}")
axis.set(xlabel="probability p of a right answer", ylabel="share of useful groups",
         title="Too hard and too easy prompts teach nothing", ylim=(0, 1.05), xlim=(0, 1))
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=4)
keep(figure, "08_groups")
shares = {G: 1 - 0.1 ** G - 0.9 ** G for G in (4, 8, 64)}
print("useful groups at p = 0.1:", {G: round(share, 3) for G, share in shares.items()})
assert [round(share, 2) for share in shares.values()] == [0.34, 0.57, 1.0]

# %% [markdown]
# At p = 0.1 one group of 4 in three is useful, more than one group of 8 in two, and almost every
# group of 64. At p = 0 no group size helps: GRPO makes right answers more frequent, it does not
# invent them. So where a reward does not rise, look at `frac_reward_zero_std` first.
#
# ## PPO's page, and GRPO's
#
# `minirl/train/ppo.py` and `minirl/train/grpo.py` have the same stages and the same names, so the
# two pages can be compared line by line:

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
    assert number > 1 or minus == plus == 1, "both sample alike, but for who samples"
    gone += [line[2:] for line in lines
             if line[:2] == "- " and ("value" in line or "gae" in line or "v_" in line)]
print("\nlines that only the value model needs:", *gone, sep="\n  ")
assert len(gone) >= 8

# %% [markdown]
# | stage | PPO | GRPO | why |
# |---|---|---|---|
# | 1 | one completion per prompt | G of them | the group is the baseline |
# | 1 | the policy samples | the policy, or an older one | `off_policy`: 0 steps older |
# | 2 | scores; a fixed one for a cut-off answer | advantages; DAPO's options | there is no V |
# | 3 | old log-probs, always | only if a batch is used twice | else `logp.detach()` is the same |
# | 3 | KL in the token rewards, before GAE | – | GRPO has no token rewards |
# | 4 | value loss | k3 in the loss | the KL must stand somewhere |
#
# A value model is usually about as large as the policy, and needs gradients and Adam's two moments,
# too. GRPO saves it, and pays with prompts: 128 completions are 128 prompts for PPO, and 16 for
# GRPO with G = 8.
#
# ## Three things suffice
#
# Such a method needs *data* that show what is better, a *regulariser* that keeps the policy near
# what it was, and a *reward* from a model or a rule. Most named algorithms are a choice of these
# three:
#
# | method | what is better | regulariser | reward | function |
# |---|---|---|---|---|
# | SFT | what people wrote | few epochs | 1 for each | `train_sft` |
# | RFT | own answers that are right | few epochs | a rule, 0 or 1 | `rejection_sample` |
# | DPO | the preferred one of a pair | the reference, in its loss | implicit | `train_dpo` |
# | PPO | tokens that did better than V expected | KL in the reward, clip | a model | `train_ppo` |
# | GRPO | answers above their group | k3 in the loss, clip | a model or a rule | `train_grpo` |
#
# (RFT is rejection-sampling fine-tuning: SFT on the right ones of a model's own answers.)
# DeepSeekMath's equation 5 puts them in one formula: every method moves the policy along
# $\nabla \log \pi$ of each token, and they differ in the coefficient in front of it
# (`minirl/equations/coefficients.py`).
#
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
# By default `generation_batch_size` is `per_device_train_batch_size` times the number of devices
# times the number of accumulation steps. So 8 completions on one device, without accumulation, are
# *one* prompt if `num_generations` is 8 (exercise 1). A micro-batch need not hold complete groups:
# the advantages are numbers by then. It does need the divisor of the whole batch (tutorial 09).
#
# ## In the loop
#
# A tiny model learns one-digit sums by SFT. Half of the demonstrations are worked out, a quarter
# answer at once, and a quarter guess. Then GRPO rewards a right answer with 1 and the right format
# with 1. Four runs start from this model:
#
# - β = 0.04, as in DeepSeekMath
# - β = 0: no KL penalty
# - β = 0.04, and the reference is **renewed** every few steps: iterative GRPO, the outer loop of
#   the paper's algorithm 1 (which retrains the reward model there, too)
# - β = 0.04, but the rewards are **shuffled** among the completions of the batch

# %%
STEPS, SYNC = (16, 6) if FAST else (40, 10)
task = Arithmetic(digits=1)
base, tokenizer = make_base(TinySizes(), seed=0, device="cpu")
texts = demonstrations(task, 2_000 if FAST else 3_000, random.Random(0), worked_share=0.5,
                       guessed_share=0.5)
train_sft(base, tokenizer, texts, SFTConfig(), seed=0)


def grpo_run(title, *, advantages=None, **changes):
    """Train a copy of the base model -> the metrics of each step."""
    numbers = dict(steps=STEPS, lr=5e-4, min_lr_ratio=1.0, kl_coef=BETA, max_new_tokens=24)
    rows = []

    def log(step, metrics):
        rows.append(metrics)
        if step == 1 or step % (STEPS // 4) == 0:
            print(f"  step {step:3}  loss {abs(metrics['loss']):.5f}  reward "
                  f"{metrics['reward']:.2f}  gradient norm {metrics['grad_norm']:.3f}", flush=True)

    print(title)
    train_grpo(copy.deepcopy(base), tokenizer, task, GRPOConfig(**numbers | changes), seed=0,
               advantages=advantages, log=log)
    return {name: torch.tensor([row.get(name, 0.0) for row in rows])
            for name in ("loss", "reward", "kl", "grad_norm", "frac_reward_zero_std")}


generator = torch.Generator().manual_seed(0)


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


print("mean of the first and of the last five steps")
print("               loss                reward          groups without a spread")
for name, run in runs.items():
    print(f"{name:9}", "     ".join(
        "{:.4f} -> {:.4f}".format(*map(abs, ends_of(run[key])))
        for key in ("loss", "reward", "frac_reward_zero_std")))
    assert abs(run["loss"][0]) < 1e-6 < 0.01 < run["grad_norm"][0], "no loss, but a gradient"
main, free, renewed, noise = runs.values()
assert ends_of(main["loss"])[1] > 3e-4, "the loss rises ..."
assert ends_of(main["reward"])[1] > ends_of(main["reward"])[0] + 0.1, "... and so does the reward"
assert bool((free["loss"].abs() < 1e-6).all()), "without a KL the loss is 0 in every step ..."
assert ends_of(free["reward"])[1] > ends_of(free["reward"])[0] + 0.1, "... and the policy learns"
assert bool((renewed["loss"][::SYNC].abs() < 1e-6).all()), "a new reference: the loss is 0 again"
assert ends_of(noise["loss"])[1] > 3e-4, "shuffled rewards: the loss rises just as well ..."
assert ends_of(noise["reward"])[1] < ends_of(noise["reward"])[0] + 0.05, "... nothing is learnt"
assert FAST or ends_of(main["frac_reward_zero_std"])[1] > 0.3     # the fast mode stops too soon
print(f"mean loss {main['loss'].mean():.4f}, β x mean KL {BETA * main['kl'].mean():.4f}")
assert 0.5 < main["loss"].mean() / (BETA * main["kl"].mean()) < 3      # over answers; over tokens

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
axes[1].set(title="Reward (mean of 5 steps)", ylabel="reward")
axes[2].set(title="Groups without a spread", ylabel="share", ylim=(0, 1))
axes[2].legend(loc="upper left")
keep(figure, "08_loss")

# %% [markdown]
# Without a KL penalty the loss is 0 from the first step to the last, and the reward rises all the
# same. With one, the loss is about β times the distance from the reference. It rises because the
# policy has moved, and falls back to 0 when the reference is renewed. The shuffled run has no data
# that show what is better: its loss rises as well, and it learns nothing. So look at the reward,
# the KL and the gradient norm. Of the loss you need to know only that it is finite.
#
# On the right: as the policy gets better, more groups have no spread, and a step teaches less.
#
# ## Rewards for steps
#
# GRPO can also use a reward for each *step* of an answer (process supervision, section 4.1.3). All
# step rewards of the group are normalised together, and a step's advantage is the sum from that
# step to the end. Take two answers with the step rewards 0.2, 0.8 and 0.5, 0.1, 0.9. The mean is
# 0.5 and the standard deviation 0.3536. The normalised rewards are -0.8485, 0.8485 and
# 0, -1.1314, 1.1314, and their sums to the end are 0, 0.8485 and 0, 0, 1.1314.

# %%
nan = float("nan")                                                           # no third step
steps = torch.tensor([[[0.2, 0.8, nan], [0.5, 0.1, 0.9]]]).double()          # (P, G, S)
step_adv = process_advantages(steps, eps=0.0)                                # (P, G, S)
print("advantages of the steps:", [[round(x, 4) + 0.0 for x in row]
                                   for row in step_adv[0].tolist()])
torch.testing.assert_close(step_adv, torch.tensor([[[0, 0.8485, 0], [0, 0, 1.1314]]]).double(),
                           atol=1e-4, rtol=0)

# %% [markdown]
# A weak step that is followed by a strong one gets no negative advantage. These advantages do not
# sum to 0 over the group, so here the loss need not start at 0.
#
# ## Break it
#
# If all rewards are equal, every advantage must be exactly 0. The formula alone does not give that.
# The float32 mean of eight 0.7 is not 0.7, and a small ε magnifies the error in the last digit to
# an advantage of 0.8 for every answer. A group of one is divided by G - 1 = 0, which gives NaN.
# `group_advantages` first compares the largest reward with the smallest.

# %%
def plain_formula(rewards, eps):
    """The equation and nothing else, one group in each row."""
    centred = rewards - rewards.mean(1, keepdim=True)                        # (P, G)
    variance = centred.square().sum(1, keepdim=True) / (rewards.shape[1] - 1)
    return centred / (variance.sqrt() + eps)


equal, one = torch.full((1, 8), 0.7), torch.tensor([[1.0]])
for title, rewards in (("eight rewards of 0.7", equal), ("a group of one", one)):
    for eps in (1e-8, 1e-4):
        print(f"{title:20}  ε = {eps:.0e}  formula {float(plain_formula(rewards, eps)[0, 0]):7.4f}"
              f"  group_advantages {float(group_advantages(rewards, eps=eps)[0, 0]):.0f}")
        assert bool((group_advantages(rewards, eps=eps) == 0).all())
assert abs(float(plain_formula(equal, 1e-8)[0, 0]) - 0.81) < 0.01
assert bool(plain_formula(one, 1e-4).isnan().all())

# %% [markdown]
# ## Exercises
#
# Solutions are in `tutorials/solutions/08_grpo.py`.

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
# | equal rewards | not mentioned | advantages are exactly 0 |
# | iterative GRPO | reference and reward model renewed | the reference |
#
# DeepSeek-R1 has G = 16, β = 0.001 and a reference that is renewed every 400 updates, which are 25
# batches of samples (`minirl grpo --preset r1-zero`).

# %% [markdown]
# ## Find the bug
#
# The function takes the rewards of a batch in one row, completion g of prompt p at $p \cdot G + g$,
# as a trainer with several devices has them. It has one bug, and training with it runs. Write a
# test that passes for `right_advantages` and fails for this function.

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
