# %%
# %pip install -q -e ..

# %% [markdown]
# # 14. A bug hunt
#
# *Nothing crashes, and the reward rises: which line is wrong?*
#
# - **Paper**: GRPO, DeepSeekMath, [arXiv:2402.03300](https://arxiv.org/abs/2402.03300), eq. 3;
#   PPO, [arXiv:1707.06347](https://arxiv.org/abs/1707.06347), eq. 7; The N+ Implementation Details
#   of RLHF with PPO, [arXiv:2403.17031](https://arxiv.org/abs/2403.17031)
# - **Code**: `minirl/train/grpo.py`, the same page; `minirl/testing/conformance.py`: `check`
# - **Tests**: `tests/train/test_grpo.py`, `tests/test_invariance.py`
# - **Before this**: 02 (the shift by one), 05 (the clip), 07 (the KL), 08 (GRPO)
# - **Time**: 8 s on two CPU cores, with `MINIRL_FAST=1` as well
# - **Expect**: of eight bugs that real projects had, seven end within 0.1 of the right reward
# - **Sweep**: put `REWARD_OF_WRONG` at 0 or 0.6, or `TEMPERATURE` at 1: which bugs disappear?
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | ratio to the log-probs that the sampler kept | 1 | the learner computes others |
# | gradient of EOS, and of what is behind it | some; none | look at the mask |
# | advantages of equal rewards | 0, not 1e-8 | look at the standard deviation |

# %%
import matplotlib.pyplot as plt
import torch

from lesson import BLUE, GREY, RED, judge, judge_test, keep, show
from minirl.equations.advantages import group_advantages
from minirl.equations.kl import k3
from minirl.equations.objectives import clipped_surrogate
from minirl.equations.reduce import aggregate
from minirl.testing.conformance import check

# %% [markdown]
# ## The question
#
# A bug in a loss does not crash. Some of these were found a year later, or by another's eyes:
#
# - [trl#6369](https://github.com/huggingface/trl/issues/6369): the mean divides by tokens that are
#   masked
# - [trl#2405](https://github.com/huggingface/trl/issues/2405): padding is EOS, and so EOS is masked
# - [trl#4159](https://github.com/huggingface/trl/issues/4159): the sampler's log-probs forget the
#   temperature (below, the learner's do)
# - [gpt-neox#1285](https://github.com/EleutherAI/gpt-neox/issues/1285): an index that is off by one
# - [verl#4597](https://github.com/volcengine/verl/issues/4597): equal rewards, and advantages that
#   are not 0
# - [Search-R1#88](https://github.com/PeterGriffinJin/Search-R1/issues/88): which completions are a
#   group?
#
# The short answer: the reward is a bad witness. Ask each piece of the page a question whose answer
# you know before you run it. Below are a page, eight bugs, and the questions are yours.

# %% [markdown]
# ## By hand
#
# The smallest world in which all eight can happen. A prompt is a digit and "=", say `2=`. The right
# completion is the next digit and EOS: `3` EOS. There are four digits, 0 follows 3. The policy is a
# table of logits for each prompt and previous token. **EOS pads, too**, as in many models. Rewards
# are 0.7 and 0.1, as with a bonus for the format.
#
# Four prompts, eight completions each, at most three tokens, temperature 0.7. The right page has
# four pieces:

# %%
DIGITS, EQUALS, EOS, NEW, G = 4, 4, 5, 3, 8
TEMPERATURE, REWARD_OF_WRONG = 0.7, 0.1


def logits_of(table, tokens):
    """Return the logits of the next token behind each token, (B, T) -> (B, T, V)."""
    return table[tokens[:, :1], tokens]


def logprobs(table, tokens):
    """Return the log-prob of each token of a completion: slots 2, 3, 4 -> (B, 3)."""
    logits = logits_of(table, tokens)[:, 1:-1] / TEMPERATURE         # slot 1 predicts slot 2
    return logits.log_softmax(-1).gather(-1, tokens[:, 2:, None]).squeeze(-1)


def advantages(rewards, group):
    """Compare each reward with its group: those of a prompt stand side by side. (B,) -> (B,)"""
    return group_advantages(rewards.view(-1, group)).flatten()


def objective(logp, old_logp, ref_logp, adv, beta):
    """Return the clipped surrogate minus the KL penalty, (B, 3)."""
    return clipped_surrogate(logp, old_logp, adv) - beta * k3(logp, ref_logp)


def mean(terms, tokens):
    """Return the mean over the tokens of completions: up to the first EOS, and that one too."""
    ends = tokens[:, 2:] == EOS
    return aggregate(terms, ends.cumsum(1) - ends.long() == 0, "token_mean")


PAGE = {"logprobs": logprobs, "advantages": advantages, "objective": objective, "mean": mean}
tokens = torch.tensor([[2, EQUALS, 3, EOS, EOS], [2, EQUALS, 1, 1, EOS],
                       [3, EQUALS, EOS, EOS, EOS]])
table = torch.zeros(5, 6, 6).double()                 # [digit, previous token, next token]
table[2, EQUALS, 3] = TEMPERATURE * torch.tensor(5.0).double().log()     # "3" counts five-fold
logp = logprobs(table, tokens)
print("log-probs, as probabilities:", logp.exp()[:, 0].tolist())
print("counted slots:", [int(float(mean(row, tokens)) * 6 + 0.5) for row in
                         (torch.eye(3).double()[:, [i]].expand(3, 3) for i in range(3))])
assert torch.allclose(logp.exp()[:, 0], torch.tensor([5 / 10, 1 / 10, 1 / 6]).double())

# %% [markdown]
# By hand: behind `2=` the digit 3 has weight 5, the other five tokens have 1, so its probability is
# 5/10. The three completions have 2, 3 and 1 tokens: 6 in all.
#
# ## The function

# %%
show(clipped_surrogate)

# %% [markdown]
# ## Eight bugs
#
# Each piece has two wrong versions. Read them. Would you have seen it in a review?

# %%
def logprobs_1(table, tokens):
    logits = logits_of(table, tokens)[:, 2:] / TEMPERATURE
    return logits.log_softmax(-1).gather(-1, tokens[:, 2:, None]).squeeze(-1)


def logprobs_2(table, tokens):
    logits = logits_of(table, tokens)[:, 1:-1]
    return logits.log_softmax(-1).gather(-1, tokens[:, 2:, None]).squeeze(-1)


def mean_1(terms, tokens):
    return aggregate(terms, tokens[:, 2:] != EOS, "token_mean")


def mean_2(terms, tokens):
    ends = tokens[:, 2:] == EOS
    return torch.where(ends.cumsum(1) - ends.long() == 0, terms, 0).mean()


def advantages_1(rewards, group):
    return group_advantages(rewards.view(group, -1).T).T.flatten()


def advantages_2(rewards, group):
    rewards = rewards.view(-1, group).float()
    centred = rewards - rewards.mean(1, keepdim=True)
    return (centred / (rewards.std(1, keepdim=True) + 1e-8)).flatten().double()


def objective_1(logp, old_logp, ref_logp, adv, beta):
    ratio = (logp - old_logp).exp()
    return ratio.clamp(max=1.2) * adv - beta * k3(logp, ref_logp)


def objective_2(logp, old_logp, ref_logp, adv, beta):
    difference = logp - ref_logp
    return clipped_surrogate(logp, old_logp, adv) - beta * (difference.exp() - difference - 1)


WRONG = (logprobs_1, logprobs_2, advantages_1, advantages_2, objective_1, objective_2, mean_1,
         mean_2)
BUGS = {wrong.__name__: {wrong.__name__[:-2]: wrong} for wrong in WRONG}  # in which piece's place

# %% [markdown]
# ## Picture
#
# And this is the loop that they stand in: sample, judge, two updates with each batch.

# %%
def sampled(table, generator):
    """Return G completions of each prompt, side by side, (B, 2 + NEW)."""
    tokens = torch.tensor([[d, EQUALS] for d in range(DIGITS)]).repeat_interleave(G, 0)
    for _ in range(NEW):
        chances = (logits_of(table, tokens)[:, -1] / TEMPERATURE).softmax(-1)
        drawn = torch.multinomial(chances, 1, generator=generator)
        ended = (tokens[:, 2:] == EOS).any(1, keepdim=True)
        tokens = torch.cat([tokens, torch.where(ended, EOS, drawn)], 1)
    return tokens


def rewards_of(tokens):
    right = (tokens[:, 2] == (tokens[:, 0] + 1) % DIGITS) & (tokens[:, 3] == EOS)
    return torch.where(right, 0.7, REWARD_OF_WRONG).double()


def train(page, seed, updates=60, beta=0.02):
    """Train by this page, two updates with each batch -> the mean reward of each batch."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.zeros(DIGITS, 6, 6).double().requires_grad_()
    reference, rewards = table.detach().clone(), []
    optimizer = torch.optim.Adam([table], lr=0.15)
    for _ in range(updates):
        with torch.no_grad():
            tokens = sampled(table, generator)
            old_logp = page["logprobs"](table, tokens)
            ref_logp = page["logprobs"](reference, tokens)
            adv = page["advantages"](rewards_of(tokens), G)[:, None].expand_as(old_logp)
        for _ in range(2):
            logp = page["logprobs"](table, tokens)
            terms = page["objective"](logp, old_logp, ref_logp, adv, beta)
            loss = -page["mean"](terms, tokens)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rewards.append(float(rewards_of(tokens).mean()))
    return rewards


def curve(page):
    return torch.tensor([train(page, seed) for seed in range(3)]).mean(0)


right = curve(PAGE)
curves = {name: curve(PAGE | wrong) for name, wrong in BUGS.items()}
figure, axes = plt.subplots(2, 4, figsize=(9.6, 3.9), sharex=True, sharey=True)
for axis, (name, rewards) in zip(axes.T.flatten(), curves.items(), strict=True):
    axis.plot(right, color=GREY, linestyle="-", label="right")
    axis.plot(rewards, color=RED, linestyle="--", label="bug")
    axis.set(title=name, ylim=(0, 0.75))
axes[0, 0].legend(loc="center right")
axes[0, 0].set(ylabel="mean reward")
axes[1, 0].set(xlabel="batch", ylabel="mean reward")
keep(figure, "14_curves")
ends = {name: float(rewards[-10:].mean()) for name, rewards in curves.items()}
print(f"mean reward of the last ten batches: right {float(right[-10:].mean()):.3f}",
      *(f"  {name:13} {end:.3f}" for name, end in ends.items()), sep="\n")
silent = [name for name, end in ends.items() if abs(end - float(right[-10:].mean())) < 0.1]
print(f"{len(silent)} of 8 end within 0.1 of the right page")
assert len(silent) == 7 and "logprobs_1" not in silent

# %% [markdown]
# One of eight shows. The world is easy, and a gradient that is about right is enough. In a hard one
# the same bugs cost months: a length that drifts, an entropy that collapses, a run that needs
# another learning rate. So look at the gradient, and not at the reward.

# %% [markdown]
# ## In the loop
#
# The same batch, the same policy: what is the angle between each page's gradient and the right one?
# A policy that has half learnt its task samples a batch. We look at the first update, and at one
# for which the policy has moved away from the one that sampled.

# %%
def gradient(page, which):
    """Return a page's gradient where the policy has not moved since it sampled, or where it has."""
    generator = torch.Generator().manual_seed(0)
    table = torch.zeros(DIGITS, 6, 6).double()
    for d in range(DIGITS):                            # has half learnt it
        table[d, EQUALS, (d + 1) % DIGITS] = 1.0
        table[d, (d + 1) % DIGITS, EOS] = 1.0
    reference, tokens = torch.zeros_like(table), sampled(table, generator)
    moved = table + 0.3 * which * torch.randn(table.shape, generator=generator).double()
    leaf = moved.requires_grad_()
    adv = page["advantages"](rewards_of(tokens), G)[:, None].expand(-1, NEW)
    terms = page["objective"](page["logprobs"](leaf, tokens), page["logprobs"](table, tokens),
                              page["logprobs"](reference, tokens), adv, 0.02)
    return torch.autograd.grad(page["mean"](terms, tokens), leaf)[0].flatten()


cosines = {name: [float(torch.cosine_similarity(gradient(PAGE | wrong, which),
                                                gradient(PAGE, which), dim=0)) for which in (0, 1)]
           for name, wrong in BUGS.items()}
figure, axis = plt.subplots(figsize=(7.2, 2.9))
for i, (first, second) in enumerate(cosines.values()):
    axis.bar(i - 0.2, first, 0.38, color=BLUE, label="first update" if i == 0 else None)
    axis.bar(i + 0.2, second, 0.38, color=RED, label="a policy that moved" if i == 0 else None)
axis.set_xticks(range(8), [name.replace("_", "\n") for name in cosines])
axis.set(title="Cosine with the right gradient", ylim=(-0.3, 1.45))
axis.axhline(1, color="black", linewidth=0.8)
axis.legend(loc="upper right", ncols=2)
keep(figure, "14_cosines")
for name, (first, second) in cosines.items():
    print(f"  {name:13} {first:7.4f}  {second:7.4f}")
exact = [name for name, pair in cosines.items() if min(pair) > 1 - 1e-6]
assert exact == ["advantages_2", "mean_2"] and cosines["objective_1"][0] > 1 - 1e-6
assert cosines["objective_1"][1] < 0.9 and max(cosines["mean_1"]) < 0.9

# %% [markdown]
# Five kinds of silence. `advantages_1` and `mean_1` turn the gradient by 25 to 41 degrees, and the
# reward still rises. `logprobs_2` turns it by 4 to 7, `objective_2` by one. `objective_1` is exact
# as long as the ratio is 1, so no test with one update can find it. `mean_2` has the right
# direction and the wrong length, which depends on how much padding there is. And `advantages_2` is
# right in every group that has a spread.
#
# ## Break it
#
# It is in the other groups that it does harm. When all eight completions are right, their rewards
# are equal, and there is nothing to learn. In float32 the mean of eight times 0.7 is not 0.7:

# %%
equal = torch.full((8,), 0.7).double()
print("right:", advantages(equal, 8)[:2].tolist(), "  bug:", advantages_2(equal, 8)[:2].tolist())
noise = advantages_2(equal, 8)
assert float(advantages(equal, 8).abs().max()) == 0 and float(noise.abs().min()) > 0.5

# %% [markdown]
# A rounding error of 6e-8 divided by itself: each of the eight gets 0.81, as if it were much better
# than its own group. The sign is an accident of rounding. In
# [NeMo-RL#4161](https://github.com/NVIDIA-NeMo/RL/issues/4161) a residue of this kind made one
# advantage 4000 times too large.
#
# When you do not know what to ask any more, `minirl check` asks for you. It compares a function
# with the equation that it should be, on inputs at which mistakes show, and names the mistake where
# it knows it. Take it as the last resort: what you asked yourself once, you will ask again.

# %%
def surrogate_1(logp, old_logp, adv):
    return objective_1(logp, old_logp, torch.zeros_like(logp), adv, 0.0)


def kl_2(logp, ref_logp):
    return -objective_2(logp, logp.detach(), ref_logp, torch.zeros_like(logp), 1.0)


for function, equation in ((surrogate_1, "clipped_surrogate"), (kl_2, "k3")):
    report = check(function, equation)  # step in: check
    print(report, "\n")
    assert not report.ok

# %% [markdown]
# ## Exercises
#
# Solutions: `tutorials/solutions/14_bug_hunt.py`. Each exercise is a test of one piece. It has to
# pass for the right piece, and fail for both wrong ones. Questions that help: *what is the answer
# for a policy that I know? what must not matter, and what must? what if all are equal?*

# %%
def judge_twice(test, right):
    for wrong in BUGS.values():
        if right.__name__ in wrong:
            judge_test(test, right, wrong[right.__name__])


def exercise_1(function):
    """Raise AssertionError unless function(table, tokens) returns the log-probs that the sampler
    drew the completions with."""
    raise NotImplementedError


def check_1(test):
    judge_twice(test, logprobs)


judge(check_1, exercise_1)


# %%
def exercise_2(function):
    """Raise AssertionError unless function(terms, tokens) is the mean over the sampled tokens."""
    raise NotImplementedError


def check_2(test):
    judge_twice(test, mean)


judge(check_2, exercise_2)


# %%
def exercise_3(function):
    """Raise AssertionError unless function(rewards, group) compares each reward with its group."""
    raise NotImplementedError


def check_3(test):
    judge_twice(test, advantages)


judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | paper (arXiv:2402.03300) | here |
# |---|---|---|
# | policy | a transformer | a table: a logit for each prompt, previous token and next token |
# | mean | over each completion, then over completions | over all tokens |
# | reference | replaced now and then | stays |
# | reward | a reward model | a rule, with 0.1 for a wrong answer |

# %% [markdown]
# ## Find the bug
#
# The last piece is the objective: a surrogate and a KL. Its two bugs are well hidden. One has
# the right gradient in the first update, the other one has the right value wherever policy and
# reference agree. And both hold the policy near the reference. Write one test that fails for both.

# %%
def exercise_bug(function):
    """Raise AssertionError unless function(logp, old_logp, ref_logp, adv, beta) is the clipped
    surrogate (ε = 0.2) minus beta times an estimate of KL(π || π_ref) that is right on average."""
    raise NotImplementedError


def check_bug(test):
    judge_twice(test, objective)


judge(check_bug, exercise_bug)
