# %%
# %pip install -q -e ..

# %% [markdown]
# # 00. The policy gradient
#
# *What does "maximise the expected reward" do to a policy?*
#
# - **Paper**: Williams 1992 (REINFORCE), [Machine Learning 8](https://doi.org/10.1007/BF00992696);
#   PPO, [arXiv:1707.06347](https://arxiv.org/abs/1707.06347), section 2.1, eqs. 1 and 2;
#   Greensmith et al. 2004, [JMLR 5](https://jmlr.org/papers/v5/greensmith04a.html)
# - **Code**: `minirl/equations/objectives.py`: `policy_gradient`;
#   `minirl/equations/advantages.py`: `optimal_baseline`, `leave_one_out_advantages`,
#   `discounted_returns`
# - **Tests**: `tests/equations/test_objectives.py`, `tests/equations/test_advantages.py`,
#   `tests/test_ground_truth.py`
# - **Before this**: PyTorch and gradients; no reinforcement learning
# - **Time**: 6 s on two CPU cores; 5 s with `MINIRL_FAST=1`
# - **Expect**: two estimates of the same gradient, with variances of 4.06 and 0.56; of 200 training
#   runs without a baseline (explained below), a third fail
# - **Sweep**: `minirl grpo --preset reinforce`, then `--preset rloo` and `--preset grpo`: compare
#   how steadily `reward` rises
#
# The table is for your own training runs. Its words are explained below.
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | mean reward | rises, and stays up | the learning rate is too high, or a baseline is missing |
# | advantages of one batch | some positive, some negative | the baseline is far off |
# | value of the loss | anything | it measures nothing: look at the reward |

# %%
import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, FAST, GREY, RED, judge, judge_test, keep, near, show
from minirl.equations.advantages import (
    discounted_returns,
    leave_one_out_advantages,
    optimal_baseline,
)
from minirl.equations.objectives import policy_gradient
from minirl.testing.example import (
    ANSWERS,
    LENGTHS,
    MASK,
    OLD,
    REWARDS,
    probabilities,
    token_logprobs,
)


def row(vector):
    """Return a vector in short, to be printed."""
    return "(" + ", ".join(f"{x:.4g}" for x in vector.tolist()) + ")"


# %% [markdown]
# ## The question
#
# A language model writes an answer, and the answer gets a number, its *reward*: 1 if it is right,
# for example. Training should make the expected reward large. But the answer is sampled, and
# sampling has no derivative. What does `backward()` differentiate? And why does the loss that
# training prints look so strange? People ask why
# [it goes to 0 while learning continues](https://github.com/DLR-RM/stable-baselines3/issues/1943),
# why [it rises](https://github.com/allenai/open-instruct/issues/836), and why
# [it has a minus sign that the formula lacks](https://github.com/openai/spinningup/issues/436).
#
# The short answer: sample from the model, multiply the log-prob of each sample by its reward, and
# differentiate the mean. On average, its *gradient* is the gradient of the expected reward. Its
# *value* means nothing.
#
# | word | bandit (a gambling machine with arms to pull) | language model |
# |---|---|---|
# | **action** $a$ | pull one of the arms | write the next token |
# | **policy** $\pi$ | a softmax over three logits | the model: a softmax over all tokens |
# | **reward** $R$ | what the arm pays | one number for the whole text |
# | **expected reward** $J$ | mean over the arms, weighted by $\pi$ | mean over all texts |

# %% [markdown]
# ## By hand
#
# Our arms pay 1, 2 and 4. The policy pulls them with the probabilities 1/2, 1/4 and 1/4, so
#
# $$J = \mathbb{E}[R] = \tfrac12\cdot 1 + \tfrac14\cdot 2 + \tfrac14\cdot 4 = 2.$$
#
# The parameters are the logits $\theta$. A softmax has the derivative
# $\partial\pi(b)/\partial\theta_a = \pi(b)\,(1_{a=b} - \pi(a))$. Multiply by $R_b$ and add up over
# all arms $b$:
#
# $$\frac{\partial J}{\partial\theta_a} = \pi(a)\,R_a - \pi(a)\,J = \pi(a)\,(R_a - J).$$
#
# In numbers: $\tfrac12(1-2)$, $\tfrac14(2-2)$ and $\tfrac14(4-2)$, or $(-\tfrac12, 0, \tfrac12)$.
# This is what maximising does to a policy. An arm that pays more than the average $J$ becomes more
# probable, and an arm that pays less becomes less probable.

# %%
ARMS = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)                     # rewards (3,)
PROBS = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)                  # (3,)
START = PROBS.log()                                                           # logits (3,)

logits = START.clone().requires_grad_()
expected_reward = (logits.softmax(0) * ARMS).sum()
exact, = torch.autograd.grad(expected_reward, logits)                         # (3,)
print(f"E[R] = {expected_reward.item():.1f}, its gradient: {row(exact)}")
assert near(expected_reward, 2) and near(exact, [-0.5, 0.0, 0.5])

# %% [markdown]
# Autograd went through the sum over all arms. Nobody can sum over all texts: with 50,000 tokens to
# choose from, there are about $10^{470}$ texts of 100 tokens. Three lines turn the sum into a mean
# over samples:
#
# $$\begin{aligned}
# \nabla J &= \sum_a R_a\,\nabla\pi(a) \\
#          &= \sum_a \pi(a)\,R_a\,\nabla\log\pi(a) \qquad\text{because }
#             \nabla\log\pi = \nabla\pi/\pi \\
#          &= \mathbb{E}_{a\sim\pi}\big[R_a\,\nabla\log\pi(a)\big]
# \end{aligned}$$
#
# The reward is only a factor. It needs no derivative, so a program or a person may give it.
#
# $\nabla\log\pi(a)$ is called the *score* of the action, a word from statistics. (A reward model's
# score is something else.) For a softmax it is the one-hot vector of $a$ minus $\pi$, as in the
# gradient of the cross-entropy, with the other sign. So each sample gives one estimate of the
# gradient. If the first arm is pulled, it is
# $1\cdot\big((1,0,0)-(\tfrac12,\tfrac14,\tfrac14)\big) = (\tfrac12, -\tfrac14, -\tfrac14)$.

# %%
SCORES = torch.eye(3, dtype=torch.float64) - PROBS                            # (3, 3), a row an arm
singles = ARMS[:, None] * SCORES                                              # (3, 3)
for pays, p, estimate in zip(ARMS, PROBS, singles, strict=True):
    print(f"the arm that pays {pays:.0f}, probability {p:.2f}: estimate {row(estimate)}")
print("their mean, weighted by probability:   ", row(PROBS @ singles))
assert near(PROBS @ singles, exact)

# %% [markdown]
# No single estimate is right. Their mean is.
#
# ## The function

# %%
show(policy_gradient)

# %% [markdown]
# The last line is all of it. (`guard_gradient` refuses weights that require a gradient.) What a
# log-prob is multiplied by is its *advantage*. So far that is the reward. The derivative of
# `adv * logp` is the advantage times the score: the estimate from above. It is to be maximised.
# PyTorch's optimisers minimise, hence the minus sign in training code.
#
# The mean over $N$ samples comes closer to the exact gradient, with an error like $1/\sqrt N$:

# %%
generator = torch.Generator().manual_seed(0)
for n in (100, 10_000, 1_000_000):
    actions = PROBS.multinomial(n, replacement=True, generator=generator)     # (n,)
    logits = START.clone().requires_grad_()
    logp = logits.log_softmax(0)[actions]                                     # (n,)
    objective = policy_gradient(logp, ARMS[actions]).mean()  # step in: policy_gradient
    estimate, = torch.autograd.grad(objective, logits)
    error = (estimate - exact).norm().item()
    print(f"{n:9,} samples: {row(estimate):28} off by {error:.4f}")
    assert error < 6 / n ** 0.5

# %% [markdown]
# ## Subtract a baseline
#
# All three arms pay something. So each sample raises its own arm, even if it is the worst: the
# first estimate above is $(\tfrac12, -\tfrac14, -\tfrac14)$. Only the mean over many samples is
# right, because better arms are raised more.
#
# Now subtract a number $b$, the *baseline*, from every reward. Then arms that pay less than $b$ are
# lowered. And the mean of the estimates stays the same, because what we subtract is 0 on average:
#
# $$\mathbb{E}[b\,\nabla\log\pi(a)] = b\sum_a\pi(a)\,\nabla\log\pi(a) = b\sum_a\nabla\pi(a)
#   = b\,\nabla 1 = 0.$$
#
# So the estimate is *unbiased* for every $b$: its mean is the exact gradient. What $b$ changes is
# the *variance*, the mean squared distance of one estimate from the exact gradient. Without a
# baseline, the three estimates above have the squared distances 1.625, 3.5 and 9.5 from
# $(-\tfrac12, 0, \tfrac12)$. The variance is
# $\tfrac12\cdot 1.625+\tfrac14\cdot 3.5+\tfrac14\cdot 9.5 = 4.0625$.

# %%
def moments(probs, scores, rewards, b):
    """Return the mean of the estimates (R - b) times score, and their variance."""
    estimates = (rewards - b)[:, None] * scores                               # (arms, parameters)
    mean = probs @ estimates
    return mean, (probs @ (estimates - mean).square().sum(1)).item()


for name, b, expected in (("no baseline", 0, 4.0625), ("mean reward", 2, 0.5625),
                          ("absurd", -100, 6554.0625)):
    mean, variance = moments(PROBS, SCORES, ARMS, b)
    print(f"{name:12} b = {b:4}: mean {row(mean)}, variance {variance:9.4f}")
    assert near(mean, exact) and near(variance, expected)

# %% [markdown]
# ## The best baseline is not the mean
#
# Write $s$ for the score of a sample and $s^2$ for its squared length. The variance is
# $\mathbb{E}[(R-b)^2 s^2] - |\nabla J|^2$, a parabola in $b$. At its lowest point the derivative is
# 0, so $\mathbb{E}[(R-b)\,s^2] = 0$, and
#
# $$b^* = \frac{\mathbb{E}[s^2 R]}{\mathbb{E}[s^2]},$$
#
# a mean of the rewards in which a long score counts more. For the bandit it is 2.4, close to the
# mean reward. The two can be far apart. Take a coin with one logit $\theta$. It shows heads with
# probability $p = \sigma(\theta) = 0.9$ and pays 1, or tails and pays 0. The mean reward is
# 0.9. The scores are the derivatives of $\log p$ and $\log(1-p)$: $1-p = 0.1$ for heads and
# $-p = -0.9$ for tails. So
#
# $$b^* = \frac{0.9\cdot 0.1^2\cdot 1 + 0.1\cdot 0.9^2\cdot 0}{0.9\cdot 0.1^2 + 0.1\cdot 0.9^2}
#   = \frac{0.009}{0.09} = 0.1.$$

# %%
def best_baseline(probs, scores, rewards):
    weights = probs * scores.square().sum(1)                                  # (arms,)
    return optimal_baseline(rewards[None], weights[None]).item()  # step in: optimal_baseline


COIN = (torch.tensor([0.9, 0.1], dtype=torch.float64),                        # heads, tails
        torch.tensor([[0.1], [-0.9]], dtype=torch.float64),                   # their scores
        torch.tensor([1.0, 0.0], dtype=torch.float64))                        # their rewards
assert near(best_baseline(PROBS, SCORES, ARMS), 2.4) and near(best_baseline(*COIN), 0.1)
for name, b, expected in (("mean reward", 0.9, 0.0576), ("no baseline", 0, 0.0009),
                          ("best", 0.1, 0)):
    heads, tails = (COIN[2] - b) * COIN[1][:, 0]
    mean, variance = moments(*COIN, b)
    print(f"{name}, b = {b}: heads gives {heads:.2f}, tails {abs(tails):.2f}, "
          f"mean {mean.item():.2f}, variance {variance:.4f}")
    assert near(mean, 0.09) and near(variance, expected)

# %% [markdown]
# With the mean reward as baseline, tails makes a large step: $(0 - 0.9)\cdot(-0.9) = 0.81$, nine
# times the gradient. On this coin the mean reward is worse than no baseline at all. With $b^*$,
# every flip gives the exact gradient. Language models use the mean all the same: to know $s^2$,
# each text would need a backward pass of its own.
#
# ## Picture

# %%
figure, axes = plt.subplots(figsize=(6, 3))
probs, scores, rewards = COIN
for height, (b, colour) in enumerate(((0.9, RED), (0, AMBER), (0.1, BLUE))):
    estimates = (rewards - b) * scores[:, 0]
    axes.scatter(estimates, [height] * 2, s=700 * probs + 15, color=colour, alpha=0.75)
    axes.text(0.93, height + 0.2, f"variance {moments(*COIN, b)[1]:.4f}", ha="right")
axes.axvline(0.09, color=GREY, linestyle=":", label="exact gradient, 0.09")
axes.set(title="What one flip of the coin estimates", xlim=(-0.12, 0.97), ylim=(-0.5, 3),
         xlabel="estimate (large dot: heads, small dot: tails)", yticks=range(3),
         yticklabels=["mean reward\nb = 0.9", "no baseline\nb = 0", "best\nb = 0.1"])
axes.legend(loc="upper right")
keep(figure, "00_baselines")

# %% [markdown]
# ## In the loop
#
# Does the variance matter? Let the bandit learn, with arms that pay 11, 12 and 14. That is the same
# task: the exact gradient does not change. A step draws four samples and goes 0.3 times the mean of
# their estimates uphill. The baseline of a sample is the mean of the other three rewards
# (`leave_one_out_advantages`), or there is none.

# %%
RUNS, STEPS, LR = 200, 100 if FAST else 200, 0.3


def learn(arms, baseline):
    """Return the expected reward of each run after each step, (STEPS + 1, RUNS)."""
    logits, generator = START.repeat(RUNS, 1), torch.Generator().manual_seed(0)
    curve = [logits.softmax(1) @ arms]
    for _ in range(STEPS):
        logits.requires_grad_()
        actions = logits.detach().softmax(1).multinomial(4, replacement=True, generator=generator)
        adv = leave_one_out_advantages(arms[actions]) if baseline else arms[actions]
        logp = logits.log_softmax(1).gather(1, actions)                       # (RUNS, 4)
        slope, = torch.autograd.grad(policy_gradient(logp, adv).mean(1).sum(), logits)
        logits = logits.detach() + LR * slope
        curve.append(logits.softmax(1) @ arms)
    return torch.stack(curve)


figure, axes = plt.subplots(figsize=(5.6, 3.2))
for baseline, name, colour, style in ((True, "mean of the others", BLUE, "-"),
                                      (False, "no baseline", RED, "--")):
    curve = learn(ARMS + 10, baseline)
    share = (curve[-1] > 13).double().mean().item()
    print(f"{name:18}: {share:4.0%} of {RUNS} runs end on the best arm")
    assert share == 1 if baseline else 0.5 < share < 0.8
    axes.plot(curve.mean(1), color=colour, linestyle=style, linewidth=2.5, label=name)
axes.plot(curve[:, :8], color=RED, linestyle="-", linewidth=0.7, alpha=0.45)
axes.set(title="Mean of all runs, and eight runs without a baseline", xlabel="step",
         ylabel="expected reward", xlim=(0, STEPS))
axes.legend(loc=(0.55, 0.06))
keep(figure, "00_learning")

# %% [markdown]
# Without a baseline each sample raises its own arm by a lot. Some runs soon pull one arm only, and
# no sample is left to show that another pays more. With a baseline, four samples of the same arm
# have advantages of 0 and change nothing.
#
# **The value of the loss.** The loss is the mean of $-(R-b)\log\pi$. Follow the exact gradient, and
# print this mean for two baselines. Both losses have the same gradient, and the expected reward
# grows at every step. But the first loss rises before it falls, and the second ends far above its
# start.

# %%
logits, losses, expected_rewards = START, [], []
for step in range(60):
    probs = logits.softmax(0)
    losses.append([-(probs @ policy_gradient(probs.log(), ARMS - b)).item() for b in (0, 10)])
    expected_rewards.append((probs @ ARMS).item())
    if step in (0, 2, 10, 59):
        print(f"step {step:2}: expected reward {expected_rewards[-1]:.2f}, "
              f"loss {losses[-1][0]:5.2f} (b = 0), {losses[-1][1]:5.2f} (b = 10)")
    logits = logits + LR * probs * (ARMS - probs @ ARMS)
assert expected_rewards == sorted(expected_rewards)
assert losses[2][0] > losses[0][0] and losses[-1][1] > losses[0][1] + 7

# %% [markdown]
# In `minirl/train/grpo.py` (stage 4) the number is called `surrogate`, a stand-in for the expected
# reward. With `--preset reinforce` it is this `policy_gradient`. The minus sign stands in the line
# that makes it a loss.
#
# ## Break it
#
# **A baseline that depends on the action.** Why the mean of the *others*? Take the mean of the
# whole batch, the sample itself included. With two samples, half of a sample's baseline is its own
# reward, and half of the gradient is lost. There are nine pairs of arms, so the mean is exact:

# %%
with_itself = of_the_other = 0
for i in range(3):
    for j in range(3):
        rewards = ARMS[[i, j]]                                                # (2,)
        weighted = PROBS[i] * PROBS[j] * SCORES[[i, j]] / 2                   # (2, 3)
        with_itself += (rewards - rewards.mean()) @ weighted
        of_the_other += leave_one_out_advantages(rewards[None])[0] @ weighted
print("mean of both samples:    ", row(with_itself))
print("mean of the other sample:", row(of_the_other))
assert near(with_itself, exact / 2) and near(of_the_other, exact)

# %% [markdown]
# With $N$ samples $(N-1)/N$ of the gradient are left, in the right direction. A baseline that
# predicts the reward of the *action* does more harm. If it predicts perfectly, all advantages are
# $R_a - R_a = 0$, and nothing is learnt. A baseline must not know the action.
#
# ## A text is a trajectory
#
# A text is written in many actions. Three more words: a **state** is what the policy knows when it
# acts, the prompt and the tokens so far. A **trajectory** is all states and actions from the prompt
# to the end, a text. The **return** of an action is the sum of the rewards from there on.
#
# The probability of a text $y$ is a product, so its log-prob is a sum over its tokens,
# $\log\pi(y) = \sum_t\log\pi(y_t\mid y_{<t})$. Each term is weighted by its token's return, because
# a token cannot change rewards that came before it.
#
# Tutorials 03 to 09 use one question, `7+5=`. The policy can say only four things:
#
#                      ┌─ 0.5 ─ 2 <eos>              "12"        0.25   right: reward 1
#         ┌─ 0.5 ─ 1 ──┼─ 0.3 ─ 3 <eos>              "13"        0.15   wrong: reward 0
#     7+5=│            └─ 0.2 ─ 0 + 1 = 1 1 <eos>    "10+1=11"   0.10   wrong
#         └─ 0.5 ─ 2 <eos>                           "2"         0.50   wrong
#
# The reward comes with the last token, `<eos>`. So all tokens of "12" have the return 1.

# %%
token_rewards = torch.zeros(4, 8, dtype=torch.float64)          # a row an answer, a column a token
token_rewards[range(4), LENGTHS - 1] = REWARDS[0]
returns = discounted_returns(token_rewards, MASK)  # step in: discounted_returns
p = probabilities(OLD)                                                        # (4,)
for i, answer in enumerate(ANSWERS):
    print(f"{answer:8} probability {p[i]:.2f}, returns {row(returns[i, :LENGTHS[i]])}")
assert near(p, [0.25, 0.15, 0.10, 0.50]) and near(returns[0, :3], [1, 1, 1])

policy = tuple(logits.clone().requires_grad_() for logits in OLD)   # first token, and after "1"
by_text = torch.autograd.grad(probabilities(policy) @ REWARDS[0], policy)
objective = policy_gradient(token_logprobs(policy), returns).sum(1)           # (4,), by answer
by_token = torch.autograd.grad(p @ objective, policy)
print("gradient of E[R]:", *map(row, by_text), " token by token:", *map(row, by_token))
assert all(near(a, b) for a, b in zip(by_text, by_token, strict=True))
assert near(by_token[0], [0.125, -0.125]) and near(by_token[1], [0.125, -0.075, -0.05])

# %% [markdown]
# By hand, for a first token "1": $\pi(a)\,(R_a - J) = \tfrac12(\tfrac12 - \tfrac14) = 0.125$, where
# $R_a = \tfrac12$ is the reward to be expected after "1". Tutorial 04 is about this number.
#
# ## Exercises
#
# The answers are in `tutorials/solutions/00_policy_gradient.py`.

# %%
def exercise_1(logp, rewards):
    """Both are (N,): the log-probs of N sampled actions, and their rewards. Return the loss, a
    scalar to be minimised. The baseline of a sample is the mean of the other rewards."""
    raise NotImplementedError


def check_1(answer):
    for logp, rewards, expected in (([-1, -2], [1, 0], -0.5), ([-1, -2, -3], [3, 0, 0], -1.5),
                                    ([-1, -2, -3], [5, 5, 5], 0)):
        value = answer(torch.tensor(logp).double(), torch.tensor(rewards).double())
        assert near(value, expected), f"{logp}, rewards {rewards}: {value}, not {expected}"


judge(check_1, exercise_1)


def exercise_2(logp, rewards, mask):
    """All three are (B, T): a row a text, and mask 0 where it is over. Return the objective, a
    scalar to be maximised: each log-prob weighted by the return, added up over a text, and the mean
    over the texts."""
    raise NotImplementedError


def check_2(answer):
    logp = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0]])
    rewards = torch.tensor([[0.5, 0.0, 1.0], [0.0, 2.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    value = float(answer(logp, rewards, mask))            # returns 1.5, 1, 1 and 2, 2
    assert near(value, -5.25, 1e-6), f"{value}, not (-1.5 - 2 - 3 - 2 - 2) / 2 = -5.25"


judge(check_2, exercise_2)

# %% [markdown]
# ## Deltas from the paper
#
# | | elsewhere | here |
# |---|---|---|
# | actions | Williams: the outputs of random units in a network | arms, and tokens |
# | baseline | Williams: a running average of rewards | the mean of the other samples |
# | best baseline | Greensmith et al.: many actions in a row | one action |
# | later rewards | often count less, by a factor for each step (*discount*) | count in full |
#
# ## Find the bug
#
# `centred_objective` takes logits, the arms that were pulled, and what each arm pays. Maximising it
# should follow the policy gradient, with the expected reward as baseline. It has a bug, and a
# policy that is trained with it learns all the same. Write a test that finds it: a function that
# takes such an objective, and raises AssertionError if it is wrong.

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
