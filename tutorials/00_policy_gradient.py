# %%
# %pip install -q -e ..

# %% [markdown]
# # 00. The policy gradient
#
# *What does "maximise the expected reward" do to a policy?*
#
# - **Paper**: Williams 1992 (REINFORCE), [Machine Learning 8](https://doi.org/10.1007/BF00992696);
#   PPO, [arXiv:1707.06347](https://arxiv.org/abs/1707.06347), section 2.1, eqs. 1 and 2; the best
#   baseline: Greensmith, Bartlett and Baxter 2004,
#   [JMLR 5](https://jmlr.org/papers/v5/greensmith04a.html)
# - **Code**: `minirl/equations/objectives.py`: `policy_gradient`;
#   `minirl/equations/advantages.py`: `optimal_baseline`, `leave_one_out_advantages`,
#   `discounted_returns`
# - **Tests**: `tests/equations/test_objectives.py`, `tests/equations/test_advantages.py`,
#   `tests/test_ground_truth.py`
# - **Before this**: PyTorch and gradients; no reinforcement learning
# - **Time**: 6 s on two CPU cores; 5 s with `MINIRL_FAST=1`
# - **Expect**: with a baseline (explained below) every run ends on the best arm; without one, and
#   with rewards far from 0, a third of the runs do not
# - **Sweep**: `minirl grpo --preset reinforce`, then `--preset rloo` and `--preset grpo`: three
#   baselines; compare how steadily `reward` rises
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | mean reward | rises, and stays up | the learning rate is too high, or a baseline is missing |
# | advantages of one batch | some positive, some negative | the baseline is far off |
# | value of the "loss" | anything | it measures nothing: look at the reward |

# %%
import itertools

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import logsigmoid

from lesson import AMBER, BLUE, FAST, GREEN, GREY, RED, judge, judge_test, keep, show
from minirl.equations.advantages import (
    discounted_returns,
    leave_one_out_advantages,
    optimal_baseline,
)
from minirl.equations.objectives import policy_gradient
from minirl.testing.example import ANSWERS, MASK, OLD, REWARDS, probabilities, token_logprobs


def near(value, expected, tolerance=1e-9):
    """Return whether two tensors, or numbers, are equal."""
    value, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (value, expected))
    return torch.allclose(value, expected, rtol=0, atol=tolerance)


def text(row):
    return "(" + ", ".join(f"{x:.4g}" for x in row.tolist()) + ")"


# %% [markdown]
# ## The question
#
# A language model answers, the answer gets a reward, and training should make the expected reward
# large. But a sampled token has no derivative. What is differentiated then? And why does the loss
# in the log make no sense? People ask why
# [it goes to 0 while learning continues](https://github.com/DLR-RM/stable-baselines3/issues/1943),
# why [it rises](https://github.com/allenai/open-instruct/issues/836),
# why [it starts at 0](https://github.com/huggingface/trl/issues/2703), and
# why [it has a minus sign that the formula lacks](https://github.com/openai/spinningup/issues/436).
#
# The short answer: the gradient of the expected reward is the mean of $R\,\nabla\log\pi$ over the
# policy's own samples. Training code builds a number whose *gradient* is this mean. The value of
# that number means nothing.
#
# ## Six words
#
# | word | three-armed bandit (below) | language model |
# |---|---|---|
# | **state** | none: every round is the same | the prompt and the tokens so far |
# | **action** | which arm to pull | the next token |
# | **policy** $\pi$ | a softmax over three logits | the model: a softmax over the vocabulary |
# | **trajectory** | one action | all states and actions, from prompt to end: a text |
# | **reward** | what the arm pays | a score, usually one number for the whole text |
# | **return** | the reward | the sum of the rewards from a token on |
#
# The *expected reward* $J = \mathbb{E}[R]$ is the mean over everything that the policy may do,
# weighted by probability.

# %% [markdown]
# ## By hand
#
# A bandit is a machine with arms to pull. Ours pay 1, 2 and 4. The policy pulls them with the
# probabilities 1/2, 1/4 and 1/4, so
#
# $$J = \tfrac12\cdot 1 + \tfrac14\cdot 2 + \tfrac14\cdot 4 = 2.$$
#
# The parameters are the logits $\theta$. For a softmax,
# $\partial J/\partial\theta_a = \pi(a)\,(R_a - J)$, which gives $(-\tfrac12, 0, \tfrac12)$. That is
# what maximising does: an arm that pays more than the policy's average becomes more probable, an
# arm that pays less becomes less probable, and the second arm, which pays exactly the average,
# keeps its logit.

# %%
ARMS = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)                     # rewards (3,)
START = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()            # logits (3,)


def gradient(objective, logits):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(objective(leaf), leaf)[0]


exact = gradient(lambda logits: (logits.softmax(0) * ARMS).sum(), START)      # (3,)
print("E[R] =", (START.softmax(0) * ARMS).sum().item(), " its gradient:", text(exact))
assert near(exact, [-0.5, 0.0, 0.5])

# %% [markdown]
# Autograd went through the sum over all arms. Texts cannot be summed: 100 tokens out of 50,000 make
# $10^{470}$ of them. Three lines turn the sum into a mean over samples:
#
# $$\begin{aligned}
# \nabla J &= \sum_a R_a\,\nabla\pi(a) \\
#          &= \sum_a R_a\,\pi(a)\,\nabla\log\pi(a) \qquad\text{because }
#             \nabla\log\pi = \nabla\pi/\pi \\
#          &= \mathbb{E}_{a\sim\pi}\big[R_a\,\nabla\log\pi(a)\big]
# \end{aligned}$$
#
# This is the *score function trick*; the *score* is $\nabla\log\pi$. The reward needs no
# derivative: a program or a person may give it. For a softmax, the score of an action is its
# one-hot vector minus $\pi$. A sample of the first arm gives the estimate
# $1\cdot(1-\tfrac12, -\tfrac14, -\tfrac14)$. All three:

# %%
scores = torch.eye(3).double() - START.softmax(0)                             # (3, 3), by arm
single = ARMS[:, None] * scores                                               # (3, 3)
for arm, estimate in enumerate(single):
    print(f"arm {arm}, probability {START.softmax(0)[arm]:.2f}: estimate {text(estimate)}")
print("mean:", text(START.softmax(0) @ single))
assert near(START.softmax(0) @ single, exact)

# %% [markdown]
# ## The function

# %%
show(policy_gradient)

# %% [markdown]
# It takes the log-probs of what was sampled, and a weight for each, the *advantage*. So far the
# advantage is the reward. The error of a mean over $N$ samples shrinks like $1/\sqrt N$:

# %%
def sampled_objective(logits, actions):
    logp = logits.log_softmax(0)[actions]                                     # (N,)
    return policy_gradient(logp, ARMS[actions]).mean()  # step in: policy_gradient


generator = torch.Generator().manual_seed(0)
for n in (100, 10_000, 1_000_000):
    actions = torch.multinomial(START.softmax(0), n, replacement=True, generator=generator)
    estimate = gradient(lambda logits, a=actions: sampled_objective(logits, a), START)
    error = (estimate - exact).norm().item()
    print(f"{n:9,} samples: {text(estimate):28} off by {error:.4f}")
    assert error < 3 * (4.0625 / n) ** 0.5                # 4.0625: the variance, computed below

# %% [markdown]
# ## A text is a trajectory
#
# A language model chooses token after token. The probability of a text is a product, its log-prob
# is the sum $\log\pi(y\mid x) = \sum_t\log\pi(y_t\mid x, y_{<t})$, and so its score is a sum over
# tokens. Tutorials 03 to 09 use one question, `7+5=`, and four answers, of which only "12" is
# right. The policy begins with "1" or "2" (1/2 each). After "1" it writes "2", "3" or "0", with
# 0.5, 0.3 and 0.2. All other tokens are certain.
#
# The reward comes with the last token. The return of a token counts what comes from it on, so all
# tokens of a text have the same return. (`discounted_returns` can weight later rewards with a
# factor $\gamma$ per token; language models use $\gamma = 1$.)

# %%
tokens_left = MASK.flip(1).cumsum(1).flip(1)                                  # (4, 8)
token_rewards = torch.where(MASK & (tokens_left == 1), REWARDS.T, 0)          # (4, 8)
returns = discounted_returns(token_rewards, MASK)  # step in: discounted_returns
for answer, logp, p, row in zip(ANSWERS, token_logprobs(OLD), probabilities(OLD), returns,
                                strict=True):
    print(f"{answer:8} log-probs {text(logp[:2]):18} probability {p:.2f}  returns {text(row[:2])}")
assert near(probabilities(OLD), [0.25, 0.15, 0.10, 0.50])

policy = [logits.clone().requires_grad_() for logits in OLD]
by_text = torch.autograd.grad((probabilities(policy) * REWARDS[0]).sum(), policy)
objective = policy_gradient(token_logprobs(policy), returns).sum(1)           # (4,)
by_token = torch.autograd.grad((probabilities(OLD) * objective).sum(), policy)
print("\ngradient of E[R] = 0.25:", *map(text, by_text),
      "\ntoken by token:         ", *map(text, by_token))
assert all(near(a, b) for a, b in zip(by_text, by_token, strict=True))
assert near(by_token[0], [0.125, -0.125]) and near(by_token[1], [0.125, -0.075, -0.05])

# %% [markdown]
# ## Any baseline
#
# The bandit's rewards are all positive. So each sample raises its own action, even the worst: in
# the list above, a sample of arm 0 moves the logits by $(0.5, -0.25, -0.25)$. Only the mean is
# right, because better arms are raised more. Subtract a number $b$, the *baseline*, and actions
# below $b$ are lowered. The expected gradient stays the same:
#
# $$\mathbb{E}[b\,\nabla\log\pi(a)] = b\sum_a\nabla\pi(a) = b\,\nabla 1 = 0.$$
#
# So the estimate is *unbiased* with every $b$ that does not depend on the action. What changes is
# the *variance*, the mean squared distance of a single estimate from the true gradient.

# %%
BANDIT = (lambda x: x.log_softmax(0), START, ARMS)        # log-probs of parameters; those; rewards


def estimates(world, b):
    """Return the gradient estimate of each action, (actions, parameters), and its probability."""
    logp_of, parameters, rewards = world
    leaf = parameters.clone().requires_grad_()
    terms = policy_gradient(logp_of(leaf), rewards - b)                       # (actions,)
    rows = [torch.autograd.grad(term, leaf, retain_graph=True)[0] for term in terms]
    return torch.stack(rows), logp_of(parameters).exp()


def moments(world, b):
    """Return the mean and the variance of the estimate from one sample."""
    rows, probs = estimates(world, b)
    mean = probs @ rows
    return mean, (probs @ (rows - mean).square().sum(1)).item()


def best_baseline(world):
    logp_of, parameters, rewards = world
    rows, probs = estimates((logp_of, parameters, torch.ones_like(rewards)), 0)       # the scores
    weights = probs * rows.square().sum(1)                                            # (actions,)
    return optimal_baseline(rewards[None], weights[None]).item()  # step in: optimal_baseline


wanted = {0: 4.0625, 2: 0.5625, best_baseline(BANDIT): 0.4625, -100: 6554.0625}
for (b, expected), name in zip(wanted.items(), ("none", "mean reward", "best", "absurd"),
                               strict=True):
    mean, variance = moments(BANDIT, b)
    print(f"{name:12} b = {b:6.1f}: mean {text(mean)}, variance {variance:9.4f}")
    assert near(mean, exact) and near(variance, expected, 1e-6)
assert near(best_baseline(BANDIT), 2.4)

# %% [markdown]
# ## The best baseline is not the mean

# %%
show(optimal_baseline)

# %% [markdown]
# The variance is a parabola in $b$. At its lowest point each reward is weighted by the squared
# length of its score $s$: $b^* = \mathbb{E}[s^2 R]\,/\,\mathbb{E}[s^2]$. In the bandit that is 2.4,
# close to the mean reward of 2. It can be far away. Take a coin: one logit, heads with probability
# $p = 0.9$, reward 1 for heads and 0 for tails. The score is $1-p$ for heads and $-p$ for tails, so
# $b^* = 1 - p = 0.1$. The mean reward is 0.9.

# %%
P = 0.9
COIN = (lambda x: torch.cat([logsigmoid(x), logsigmoid(-x)]),                 # heads, tails
        torch.tensor([P / (1 - P)], dtype=torch.float64).log(),
        torch.tensor([1.0, 0.0], dtype=torch.float64))
for b, expected in {P: 0.0576, 0.0: 0.0009, best_baseline(COIN): 0.0}.items():
    (heads, tails), _ = estimates(COIN, b)
    mean, variance = moments(COIN, b)
    print(f"b = {b:.1f}: estimates {heads.item():.2f} and {tails.item():.2f}, "
          f"mean {mean.item():.2f}, variance {variance:.4f}")
    assert near(mean, [P * (1 - P)]) and near(variance, expected)
assert near(best_baseline(COIN), 1 - P)

# %% [markdown]
# With the mean as baseline, the rare tails makes a large step: $(0 - 0.9)\cdot(-0.9) = 0.81$, nine
# times the gradient. Here no baseline is better than the mean, and with $b^*$ every flip gives the
# exact gradient. Language models use the mean all the same: $s^2$ of each text would need a
# backward pass of its own.
#
# ## Picture

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.2), width_ratios=[1.3, 1, 1])
for height, (b, colour) in enumerate(((P, RED), (0.0, AMBER), (best_baseline(COIN), BLUE))):
    rows, probs = estimates(COIN, b)
    left.scatter(rows, [height] * 2, s=700 * probs + 15, color=colour, alpha=0.75)
    left.text(0.9, height + 0.22, f"variance {moments(COIN, b)[1]:.4f}", ha="right", fontsize=8)
left.axvline(P * (1 - P), color=GREY, linestyle=":", label="true gradient, 0.09")
left.set(title="Coin: estimates from one flip", xlabel="estimate (area: its probability)",
         xlim=(-0.12, 0.95), ylim=(-0.6, 3.2), yticks=range(3),
         yticklabels=["mean\nb = 0.9", "none\nb = 0", "best\nb = 0.1"])
left.legend(loc="upper right")
for axes, world, title, mean, span in ((middle, COIN, "Coin", P, (-0.4, 1.25)),
                                       (right, BANDIT, "Bandit", 2.0, (-0.6, 5.4))):
    grid = torch.linspace(*span, 61).tolist()
    curve = [moments(world, b)[1] for b in grid]
    axes.plot(grid, curve, color=GREY, linestyle="-")
    for b, name, colour, marker in ((mean, "mean", RED, "o"), (0.0, "none", AMBER, "s"),
                                    (best_baseline(world), "best", BLUE, "D")):
        axes.plot(b, moments(world, b)[1], marker, color=colour, markersize=8,
                  label=f"{name}, b = {b:.1f}")
    axes.set(title=f"{title}: variance", xlabel="baseline b", ylabel="variance of one estimate",
             ylim=(-0.06 * max(curve), 1.05 * max(curve)))
    axes.legend(loc="upper center")
keep(figure, "00_baselines")

# %% [markdown]
# ## In the loop
#
# Now the bandit learns: 200 independent runs, four samples per step, plain gradient ascent. The
# baselines are none, the mean of the other three samples (`leave_one_out_advantages`), and $b^*$.
# The grey line follows the exact gradient, the thin lines are single runs without a baseline. In
# the right panel all arms pay 10 more. That is the same task: the exact gradient does not change.

# %%
RUNS, STEPS, BATCH, LR = 200, 100 if FAST else 200, 4, 0.3
LABELS = {"exact": "exact gradient", "best": "best baseline", "others": "mean of the others",
          "none": "no baseline"}


def learn(kind, arms):
    """Return the expected reward of each run after each step, (STEPS + 1, RUNS)."""
    logits, generator = START.repeat(RUNS, 1), torch.Generator().manual_seed(0)
    curve = [logits.softmax(1) @ arms]
    for _ in range(STEPS):
        logits.requires_grad_()
        logp = logits.log_softmax(1)                                          # (RUNS, 3)
        probs = logp.detach().exp()
        actions = torch.multinomial(probs, BATCH, replacement=True, generator=generator)
        adv = arms[actions]                                                   # (RUNS, BATCH)
        if kind == "others":
            adv = leave_one_out_advantages(adv)
        elif kind == "best":
            lengths = 1 - 2 * probs + probs.square().sum(1, keepdim=True)     # |score|², (RUNS, 3)
            adv = adv - optimal_baseline(arms.expand(RUNS, 3), probs * lengths)
        objective = policy_gradient(logp.gather(1, actions), adv).mean(1)     # (RUNS,)
        if kind == "exact":
            objective = logp.exp() @ arms
        slope, = torch.autograd.grad(objective.sum(), logits)
        logits = logits.detach() + LR * slope
        curve.append(logits.softmax(1) @ arms)
    return torch.stack(curve)


figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.2))
share = {}
for axes, shift in zip(panels, (0, 10), strict=True):
    for kind, colour, dashes in zip(LABELS, (GREY, BLUE, GREEN, RED), ("-", "-", "--", "-."),
                                    strict=True):
        curve = learn(kind, ARMS + shift)
        share[kind, shift] = (curve[-1] > 3 + shift).double().mean().item()
        width, alpha = (5, 0.45) if kind == "exact" else (1.8, 1)
        axes.plot(curve.mean(1), color=colour, ls=dashes, lw=width, alpha=alpha, label=LABELS[kind])
        if kind == "none":
            axes.plot(curve[:, :8], color=RED, linestyle="-", linewidth=0.7, alpha=0.45)
    axes.axhline(4 + shift, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(title="Arms pay " + ", ".join(f"{r:.0f}" for r in ARMS + shift), xlabel="step",
             ylabel="expected reward", xlim=(0, STEPS), ylim=(0.9 + shift, 4.15 + shift))
panels[0].legend(loc="lower right")
keep(figure, "00_learning")
for kind, label in LABELS.items():
    print(f"{label:18} runs that end on the best arm: {share[kind, 0]:4.0%}, "
          f"with 10 more for each arm {share[kind, 10]:4.0%}")
assert all(value == 1 for (kind, shift), value in share.items() if (kind, shift) != ("none", 10))
assert 0.5 < share["none", 10] < 0.8

# %% [markdown]
# With rewards of 11, 12 and 14, whatever is sampled is raised by a lot. Some runs soon sample one
# arm only, and no sample is left to say that another pays more. With a baseline, four samples of
# one arm have advantages of 0 and change nothing.
#
# **The value of the loss.** Here are three losses, $-\mathbb{E}[(R-b)\log\pi]$ with $b = 0$, 2 and
# 10. Their gradients are the same at every step, so the policy learns the same with each. The
# expected reward always grows. Two losses rise before they fall, and one ends far above its start.

# %%
def follow(b, steps=60):
    """Return the loss and the expected reward of each step along the exact gradient."""
    logits, losses, expected_rewards = START, [], []
    for _ in range(steps):
        probs = logits.softmax(0)
        losses.append(-(probs @ policy_gradient(logits.log_softmax(0), ARMS - b)).item())
        expected_rewards.append((probs @ ARMS).item())
        logits = logits + LR * moments((BANDIT[0], logits, ARMS), b)[0]
    return losses, expected_rewards


figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.7))
paths = {b: follow(b) for b in (0, 2, 10)}
for b, (losses, rewards) in paths.items():
    right.plot(losses, label=f"b = {b}")
    print(f"b = {b:2}: loss {losses[0]:6.3f} -> {losses[-1]:6.3f}, "
          f"expected reward {rewards[0]:.2f} -> {rewards[-1]:.2f}")
left.plot(rewards)
left.set(title="One path ...", xlabel="step", ylabel="expected reward")
right.set(title="... with three losses", xlabel="step", ylabel="loss")
right.legend(loc="lower right")
keep(figure, "00_loss")
assert near(paths[0][1], paths[2][1]) and near(paths[2][1], paths[10][1])
assert rewards == sorted(rewards) and rewards[-1] > 3.9
assert all(paths[b][0][-1] < paths[b][0][0] < paths[b][0][2] for b in (0, 2))
assert paths[10][0][-1] > paths[10][0][0] + 7

# %% [markdown]
# In `minirl/train/grpo.py` (stage 4) the number is called `surrogate`, and the one minus sign
# stands before `aggregate`. With `--preset reinforce` its objective is this `policy_gradient`. What
# to look at is `reward`.
#
# ## Break it
#
# **A baseline that depends on the action.** Subtract the mean of the batch, each sample included.
# With two samples, half of a sample's baseline is its own reward, and half of the gradient is lost.
# There are only nine pairs of actions:

# %%
def expected_over_pairs(advantages):
    """Return the exact mean of the estimate from two samples. advantages: (1, 2) -> (1, 2)."""
    total = torch.zeros(3, dtype=torch.float64)
    for pair in map(list, itertools.product(range(3), repeat=2)):
        adv = advantages(ARMS[pair][None])[0]                                 # (2,)
        total += START.softmax(0)[pair].prod() * (adv[:, None] * scores[pair]).mean(0)
    return total


with_itself = expected_over_pairs(lambda rewards: rewards - rewards.mean())
of_others = expected_over_pairs(leave_one_out_advantages)
print("mean of both samples:     ", text(with_itself))
print("mean of the other sample: ", text(of_others))
assert near(with_itself, exact / 2) and near(of_others, exact)

# %% [markdown]
# With $N$ samples the factor is $(N-1)/N$: the gradient is shorter, and points the same way. A
# baseline that predicts the reward of the *action* does more harm: if it predicts perfectly,
# $R_a - R_a = 0$, and nothing is learnt. A baseline may look at the state, never at the action.

# %% [markdown]
# ## Exercises
#
# The answers are in `tutorials/solutions/00_policy_gradient.py`.

# %%
def exercise_1(probs, rewards, baseline):
    """Return the variance of the gradient estimate from one sample of a softmax policy, without
    autograd. probs and rewards are (A,), the parameters are the logits."""
    raise NotImplementedError


def check_1(answer):
    for probs, rewards, baseline, expected in (
            ([0.5, 0.25, 0.25], [1, 2, 4], 0, 4.0625), ([0.5, 0.25, 0.25], [1, 2, 4], 2, 0.5625),
            ([0.9, 0.1], [1, 0], 0.9, 0.1152), ([0.9, 0.1], [1, 0], 0.1, 0.0)):
        value = answer(torch.tensor(probs).double(), torch.tensor(rewards).double(), baseline)
        assert near(value, expected, 1e-6), (
            f"{probs}, rewards {rewards}, baseline {baseline}: {value}, wanted {expected}")


judge(check_1, exercise_1)


def exercise_2(p, heads, tails):
    """A coin shows heads with probability p. Heads pays `heads`, tails pays `tails`. Return the
    baseline of least variance for the gradient in its logit."""
    raise NotImplementedError


def check_2(answer):
    for (p, heads, tails), expected in (((0.9, 1, 0), 0.1), ((0.75, 3, 1), 1.5), ((0.5, 4, 0), 2)):
        value = answer(p, heads, tails)
        assert near(value, expected), f"p = {p}, {heads} or {tails}: {value}, wanted {expected}"


judge(check_2, exercise_2)


def exercise_3(logp, rewards, mask):
    """All three are (B, T). Return the objective of a batch of texts, a scalar: weight each token's
    log-prob by the rewards from this token on, add up each text, and average over the texts."""
    raise NotImplementedError


def check_3(answer):
    logp = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0]])
    rewards = torch.tensor([[0.5, 0.0, 1.0], [0.0, 2.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    value = float(answer(logp, rewards, mask))            # returns 1.5, 1, 1 and 2, 2
    assert near(value, -5.25, 1e-6), f"{value}, wanted (-1.5 - 2 - 3 - 2 - 2) / 2 = -5.25"


judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | elsewhere | here |
# |---|---|---|
# | actions | Williams: the outputs of random units in a network | arms, and tokens |
# | baseline | Williams: a running average of rewards | the mean of the other samples |
# | best baseline | Greensmith et al.: Markov chains of any length | one action |
# | optimiser | Adam, in training pages | plain gradient ascent |
# | expectation | estimated from samples | enumerated, with samples beside it |
#
# ## Find the bug
#
# `centred_objective` takes logits, the arms that were pulled, and what each arm pays. Maximising it
# should follow the policy gradient, with the expected reward as baseline. It has a bug, and a
# policy that is trained with it learns all the same. Write a test that finds it. A test takes such
# a function, and raises AssertionError if it is wrong.

# %%
def centred_objective(logits, actions, rewards):
    """Mean over actions (N,) of log π, times the reward minus the expected reward."""
    expected = (logits.softmax(0) * rewards).sum()
    return ((rewards[actions] - expected) * logits.log_softmax(0)[actions]).mean()


def right_objective(logits, actions, rewards):
    expected = (logits.detach().softmax(0) * rewards).sum()
    return policy_gradient(logits.log_softmax(0)[actions], rewards[actions] - expected).mean()


def exercise_bug(function):
    """Raise AssertionError unless function(logits, actions, rewards) has the right gradient."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, right_objective, centred_objective)


judge(check_bug, exercise_bug)
