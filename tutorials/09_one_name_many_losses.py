# %%
# %pip install -q -e ..

# %% [markdown]
# # 09. One name, many losses
#
# *Divide by the length, by the standard deviation, over tokens or over answers: does it matter?*
#
# - **Paper**: DeepSeekMath, [arXiv:2402.03300](https://arxiv.org/abs/2402.03300), eq. 3; DAPO,
#   [arXiv:2503.14476](https://arxiv.org/abs/2503.14476), eq. 8; Dr. GRPO,
#   [arXiv:2503.20783](https://arxiv.org/abs/2503.20783), section 3; GSPO,
#   [arXiv:2507.18071](https://arxiv.org/abs/2507.18071), eqs. 5 and 7; DeepSeek-R1,
#   [arXiv:2501.12948](https://arxiv.org/abs/2501.12948), eq. 1
# - **Code**: `minirl/equations/reduce.py`: `aggregate`; `minirl/equations/advantages.py`;
#   `minirl/train/presets.py`
# - **Tests**: `tests/equations/test_reduce.py`, `tests/equations/test_advantages.py`
# - **Before this**: 05 (the clip), 08 (GRPO)
# - **Time**: 10 s on two CPU cores, with `MINIRL_FAST=1` as well
# - **Expect**: eight presets give four directions, and gradient norms from 0.05 to 4
# - **Sweep**: `minirl grpo --preset NAME` with `grpo`, `dr_grpo`, `dapo`, `rloo`, `maxrl`: compare
#   `completions/mean_length` and `grad_norm`, not the loss
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | loss and gradient, for other micro-batches | the same | means of means: pass the whole `total` |
# | length of wrong answers | grows no faster than that of right ones | look at 1/\|o\| |
# | `grad_norm` after a change of the mean | another scale | set `lr` and `max_grad_norm` anew |

# %%
import copy
import itertools
import math
import random
from functools import partial

import matplotlib.pyplot as plt
import torch

from lesson import BLUE, GREEN, GREY, RED, judge, judge_test, keep, show
from minirl.equations.advantages import (
    group_advantages,
    leave_one_out_advantages,
    maxrl_advantages,
    spread,
)
from minirl.equations.kl import k3
from minirl.equations.objectives import (
    clipped_surrogate,
    policy_gradient,
    sequence_clipped_surrogate,
    sequence_ratio,
)
from minirl.equations.reduce import aggregate, normaliser
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.testing.example import (
    ANSWERS,
    LENGTHS,
    MASK,
    NEW,
    OLD,
    REFERENCE,
    REWARDS,
    SCORES,
    probabilities,
    token_logprobs,
)
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.presets import GRPO_PRESETS
from minirl.train.sft import SFTConfig, train_sft

# %% [markdown]
# ## The question
#
# Many projects say "GRPO". Their users find that the formulas differ, and ask which is right:
#
# - *Why does the code not divide by the std, or by |o|?*
#   [tinker-cookbook#579](https://github.com/thinking-machines-lab/tinker-cookbook/issues/579),
#   [open-instruct#636](https://github.com/allenai/open-instruct/issues/636)
# - *Why should 1/|o| be a bias, when it divides a sum of |o| terms?*
#   [understand-r1-zero#25](https://github.com/sail-sg/understand-r1-zero/issues/25),
#   [#10](https://github.com/sail-sg/understand-r1-zero/issues/10),
#   [#11](https://github.com/sail-sg/understand-r1-zero/issues/11)
# - *Is the ratio that of a token or of the whole answer?*
#   [DeepSeek-R1#725](https://github.com/deepseek-ai/DeepSeek-R1/issues/725),
#   [reasoning-from-scratch#243](https://github.com/rasbt/reasoning-from-scratch/issues/243)
#
# The short answer. A constant factor is a learning rate to SGD, and hardly anything to Adam. One
# that depends on the *answer* (1/|o|) turns the gradient, and one that depends on the *prompt*
# (1/std) weighs prompts. Neither shows in the loss, whose value says nothing here.

# %% [markdown]
# ## By hand
#
# The four answers to "7+5=" have 3, 3, 8 and 2 tokens and the rewards 1, 0, 0, 0: mean 1/4, and
# standard deviation 1/2 (dividing by n - 1) or 0.433 (by n). Five **advantages** come of that:
#
# | rule | "12" | the others | formula |
# |---|---|---|---|
# | Dr. GRPO | 3/4 | -1/4 | r - mean |
# | GRPO, std with n - 1 | 1.5 | -0.5 | (r - mean) / 0.5 |
# | GRPO, std with n | 1.732 | -0.577 | (r - mean) / 0.433 |
# | RLOO | 1 | -1/3 | r - mean of the other three |
# | MaxRL | 3 | -1 | (r - mean) / mean |
#
# All five are multiples of each other. **Inside one group they are the same direction.** What
# differs is how much this prompt counts beside others.

# %%
centred = partial(group_advantages, scale="none")
RULES = {"Dr. GRPO": (centred, 1), "GRPO, n - 1": (partial(group_advantages, eps=0.0), 2),
         "GRPO, n": (partial(group_advantages, ddof=0, eps=0.0), 4 / math.sqrt(3)),
         "RLOO": (leave_one_out_advantages, 4 / 3), "MaxRL": (maxrl_advantages, 4)}
print("advantages         '12'    others   factor on Dr. GRPO's")
for name, (rule, factor) in RULES.items():
    right, wrong = (float(a) for a in rule(REWARDS)[0, :2])
    print(f"  {name:14} {right:7.4f}  {wrong:7.4f}     {factor:.4f}")
    torch.testing.assert_close(rule(REWARDS), factor * centred(REWARDS))

# %% [markdown]
# Then 16 numbers, one per token, become one. Four **means** are in use. With ratio 1 every token of
# an answer contributes its advantage, so the sums over the answers are 4.5, -1.5, -4 and -1:
#
# | mean | sum | value | weight of a token |
# |---|---|---|---|
# | `sequence_mean` | (1.5 - 0.5 - 0.5 - 0.5) / 4 | 0 | A / (4 \|o\|) |
# | `token_mean` | (4.5 - 1.5 - 4 - 1) / 16 | -2/16 | A / 16 |
# | `constant`, 4 answers of at most 8 tokens | the same sum / 32 | -2/32 | A / 32 |
# | `sequence_sum` | the same sum / 4 | -2/4 | A / 4 |

# %%
old_logp, logp = token_logprobs(OLD), token_logprobs(NEW)                    # (4, 8) each
ref_logp = token_logprobs(REFERENCE)
adv = spread(group_advantages(REWARDS, eps=0.0).flatten(), MASK)            # (4, 8)
print("weight of one token of", *(f"{a:>9}" for a in ANSWERS), "    value")
for how, wanted, divisor in (("sequence_mean", 0, 4 * LENGTHS), ("token_mean", -2 / 16, 16),
                             ("constant", -2 / 32, 32), ("sequence_sum", -2 / 4, 4)):
    leaf = old_logp.clone().requires_grad_()
    surrogate = clipped_surrogate(leaf, old_logp, adv)
    number = 32 if how == "constant" else None                # the others count by themselves
    value = aggregate(surrogate, MASK, how, total=number)  # step in: aggregate
    weight = torch.autograd.grad(value, leaf)[0][:, 0]
    print(f"  {how:20}", *(f"{w:9.4f}" for w in weight.tolist()), f"{value.item():9.4f}")
    assert abs(value.item() - wanted) < 1e-12
    torch.testing.assert_close(weight, adv[:, 0] / divisor)

# %% [markdown]
# The last three differ by constants, 2 and 4. The first is another direction: a token of
# "10+1=11" counts a quarter of a token of "2", although both answers are equally wrong.
#
# ## The function

# %%
show(aggregate)

# %% [markdown]
# ## Nine projects, one batch
#
# All need samples of which some are better, and a reward that says which. To stay near the samples,
# some have a clip or a KL to the reference. Others (nanochat, which writes "GRPO" in quotation
# marks, GRPO-Zero, reasoning-from-scratch) take one small step, and sample anew. In a first step
# all ratios are 1 and every clip is idle: what differs is the advantage, the KL, and the mean. This
# is what nine projects do, as of mid-2026, composed from minirl's functions.

# %%
over_n = partial(group_advantages, ddof=0)                                   # eps is 1e-4
over_n_minus_1 = partial(group_advantages, ddof=1)
tiny_eps = partial(group_advantages, ddof=1, eps=1e-8)


def score_function(logp, old_logp, adv):
    return policy_gradient(logp, adv)                                        # knows no ratio


PROJECTS = {                   # advantages, objective, weight of the KL (k3), mean
    "nanochat": (centred, score_function, 0.0, "token_mean"),
    "tiny-grpo": (tiny_eps, clipped_surrogate, 0.01, "sequence_mean"),
    "GRPO-Zero": (over_n, score_function, 0.0, "token_mean"),
    "nano-aha-moment": (over_n, score_function, 0.001, "token_mean"),
    "simple_GRPO": (over_n_minus_1, clipped_surrogate, 0.04, "sequence_mean"),
    "rlhf-book": (tiny_eps, clipped_surrogate, 0.0, "sequence_mean"),
    "reasoning-from-scratch": (over_n_minus_1, score_function, 0.0, "sequence_sum"),
    "TRL, its default": (over_n_minus_1, clipped_surrogate, 0.0, "token_mean"),
    "understand-r1-zero": (centred, clipped_surrogate, 0.0, "constant"),
}


def gradient_of(project, rows=(0, 1, 2, 3), rewards=REWARDS):
    """Return the objective's value for a group of these answers, and its gradient in the logits."""
    advantages, objective, kl_coef, how = project
    policy, rows = [logits.clone().requires_grad_() for logits in OLD], torch.tensor(rows)
    logp, mask = token_logprobs(policy)[rows], MASK[rows]                    # (G, 8)
    adv = spread(advantages(rewards[:, rows]).flatten(), mask)               # (G, 8)
    terms = objective(logp, old_logp[rows], adv) - kl_coef * k3(logp, ref_logp[rows])
    value = aggregate(terms, mask, how, total=float(mask.numel()) if how == "constant" else None)
    return float(value.detach()), torch.cat(torch.autograd.grad(value, policy))      # (5,)


cosine = partial(torch.cosine_similarity, dim=0)
values, slopes = {}, {}
for name, project in PROJECTS.items():
    values[name], slopes[name] = gradient_of(project)
dr_grpo = slopes["understand-r1-zero"]
cosines = {name: float(cosine(slope, dr_grpo)) for name, slope in slopes.items()}
print("                          value   |gradient|   cosine with Dr. GRPO's")
for name, slope in slopes.items():
    print(f"{name:22} {values[name]:8.3f}     {float(slope.norm()):6.3f}      {cosines[name]:.4f}")
same = [name for name, cos in cosines.items() if cos > 1 - 1e-9]
assert same == ["nanochat", "GRPO-Zero", "reasoning-from-scratch", "TRL, its default",
                "understand-r1-zero"]
assert 1 - 1e-5 < cosines["nano-aha-moment"] < 1 - 1e-9, "its KL"
assert all((cosines[name] < 0.97) == (project[3] == "sequence_mean")
           for name, project in PROJECTS.items())
assert abs(values["TRL, its default"] + 0.125) < 1e-4 and max(values.values()) > 0.09

# %% [markdown]
# Five of the nine have the very same direction, and a KL of small weight turns a sixth by a hair.
# The three with 1/|o| have another one. The values tell nothing: `policy_gradient` has the value
# A log π where the surrogate has A, and the same gradient.
#
# ### Which of them is the policy gradient?
#
# One group is one sample. What does a convention do **on average**? A group of 4 is one of 35 (the
# order does not matter), each with a known probability, and the true gradient is known, too.

# %%
def expected_gradient(advantages, how, group, rewards=REWARDS):
    """Return the mean gradient over all groups of so many answers from OLD, (5,)."""
    mean = torch.zeros(5).double()
    for rows in itertools.combinations_with_replacement(range(4), group):
        counts = torch.tensor([rows.count(i) for i in range(4)])
        orders = math.factorial(group) / math.prod(math.factorial(n) for n in counts.tolist())
        chance = orders * (probabilities(OLD) ** counts).prod()
        mean += chance * gradient_of((advantages, clipped_surrogate, 0.0, how), rows, rewards)[1]
    return mean


policy = [logits.clone().requires_grad_() for logits in OLD]
CONVENTIONS = {
    "RLOO, sequence_sum": (leave_one_out_advantages, "sequence_sum", REWARDS),
    "no std, constant": (centred, "constant", REWARDS),
    "std, sequence_sum": (over_n_minus_1, "sequence_sum", REWARDS),
    "std, token_mean": (over_n_minus_1, "token_mean", REWARDS),
    "std, sequence_mean": (over_n_minus_1, "sequence_mean", REWARDS),
    "std, sequence_sum, scores 2 1 0 -1": (over_n_minus_1, "sequence_sum", SCORES),
}
print("                                      cosine with the truth    length / the truth's")
print("                                        G = 4      G = 8          G = 4")
turned = {}
for name, (advantages, how, rewards) in CONVENTIONS.items():
    truth = torch.cat(torch.autograd.grad((probabilities(policy) * rewards[0]).sum(), policy))
    four, eight = (expected_gradient(advantages, how, group, rewards) for group in (4, 8))
    turned[name] = [round(float(cosine(mean, truth)), 5) for mean in (four, eight)]
    factor = float(four.norm() / truth.norm())
    print(f"  {name:36}  {turned[name][0]:.5f}    {turned[name][1]:.5f}        {factor:.4f}")
    wanted = {"RLOO, sequence_sum": 1, "no std, constant": 3 / 4 / 8}.get(name)
    assert wanted is None or torch.allclose(four, wanted * truth), "the truth, times a constant"
assert list(turned.values())[2:] == [[1.0, 1.0], [0.99845, 0.9995], [0.98682, 0.98682],
                                     [0.99843, 0.99953]]

# %% [markdown]
# RLOO is the policy gradient. Dr. GRPO is, up to a constant: its (G - 1)/G = 3/4, and 1/8 for the
# length that it divides by. With rewards of 0 and 1, the std changes only the length of a prompt's
# mean gradient; other rewards turn it. A token mean turns it, because the divisor depends on the
# sampled lengths, but less and less as more answers share the divisor. 1/|o| turns it the most, and
# no batch size helps.
#
# That is what "bias" means, and it answers
# [#25](https://github.com/sail-sg/understand-r1-zero/issues/25): yes, a sum of |o| terms over |o|
# is of order 1 for every answer. But the policy gradient wants the *sum*, whatever the length:
# $\nabla \log \pi(o) = \sum_t \nabla \log \pi(o_t)$.

# %% [markdown]
# ### The ratio of a token or of the answer?
#
# DeepSeekMath's ratio is per token. DeepSeek-R1's eq. 1 has one for the whole answer: the product
# of the token ratios. GSPO takes the |o|-th root of that product. To compare them the policy has to
# move, from OLD to NEW. Which of them, averaged over OLD's answers and without a clip, gives the
# policy gradient of NEW?

# %%
OPEN = dict(clip_low=1.0, clip_high=math.inf)                                # clips nothing
whole = partial(sequence_clipped_surrogate, old_logp=old_logp, adv=adv[:, 0], mask=MASK, **OPEN)
SURROGATES = {                                                               # each: (4, 8) -> (4,)
    "none": lambda logp: policy_gradient(logp, adv).sum(1),
    "token": lambda logp: clipped_surrogate(logp, old_logp, adv, **OPEN).sum(1),
    "product (R1)": partial(whole, length_normalised=False),
    "root (GSPO)": partial(whole, length_normalised=True),
}
cosines = {}
for name, surrogate in SURROGATES.items():
    policy = [logits.clone().requires_grad_() for logits in NEW]
    mean = (probabilities(OLD) * surrogate(token_logprobs(policy))).sum()
    slope, truth = (torch.cat(torch.autograd.grad(x, policy))
                    for x in (mean, probabilities(policy)[0]))
    cosines[name] = float(cosine(slope, truth))
    print(f"ratio: {name:14} cosine with the truth at NEW {cosines[name]:.4f}")
assert 1 - cosines["product (R1)"] < 1e-12 and cosines["root (GSPO)"] > 0.999
assert cosines["token"] < cosines["none"] < 0.97

product, root = (float(sequence_ratio(logp, old_logp, MASK, length_normalised=n)[0])
                 for n in (False, True))
print(f"'12': token ratios 0.7 and 1.5, product {product:.2f}, root {root:.4f}")
assert abs(product - 1.05) < 1e-12 and abs(root - 1.05 ** (1 / 3)) < 1e-12
variance = [((1.1 ** 2 + 0.9 ** 2) / 2) ** T - 1 for T in (1, 100, 1000)]
print("variance of a product of T ratios, each 0.9 or 1.1:",
      ", ".join(f"T = {T}: {v:,.2f}" for T, v in zip((1, 100, 1000), variance, strict=True)))
assert [round(v, 2) for v in variance[:2]] == [0.01, 1.7] and round(variance[2]) == 20_958

# %% [markdown]
# The product is the importance weight of an answer: with it, the mean *is* the policy gradient of
# NEW. Its price is variance: 0.01 for one token with a ratio of 0.9 or 1.1, and 20,958 for 1000 of
# them. A token's ratio corrects that token, but not those before it (tutorial 05); so far from OLD,
# that is no better than none. The root is a compromise, with 1/|o| built in: at ratio 1 its
# gradient is that of `sequence_mean`.
#
# So an ε belongs to its ratio. On "12", ε = 0.2 clips the token ratio 1.5 and not the product 1.05.
# GSPO's 0.0003 and 0.0004 are no typing error: a root of thousands of factors hardly moves. And
# R1's ε of 10 (in its first RL stage) is half a clip: no ratio is below 1 - 10.

# %% [markdown]
# ## Picture
#
# **Length.** "10+1=11" is wrong. What if it were longer? The weight of one of its tokens, for each
# mean, relative to that at 8 tokens:

# %%
longest = 64
lengths = torch.arange(2, longest + 1)
weights = {how: [] for how in ("sequence_mean", "token_mean", "constant")}
for length in lengths.tolist():
    mask = torch.arange(longest) < torch.tensor([[3], [3], [length], [2]])
    for how, row in weights.items():
        leaf = torch.zeros(4, longest).double().requires_grad_()
        terms = policy_gradient(leaf, spread(adv[:, 0], mask))
        value = aggregate(terms, mask, how, total=4.0 * longest if how == "constant" else None)
        row.append(float(torch.autograd.grad(value, leaf)[0][2, 0]))
weights = {how: torch.tensor(row) / row[6] for how, row in weights.items()}    # row[6]: 8 tokens
at_64 = {how: round(float(row[-1]), 4) for how, row in weights.items()}
print("weight of one token at 64 tokens, relative to 8:", at_64)
assert at_64 == {"sequence_mean": 0.125, "token_mean": 0.2222, "constant": 1.0}

figure, axis = plt.subplots(figsize=(5.6, 3.3))
for curve, label, colour, dash in zip(
        weights.values(), ("sequence_mean: 1/|o|", "token_mean", "constant, sequence_sum"),
        (RED, BLUE, GREEN), ("--", "-", ":"), strict=True):
    axis.plot(lengths, curve, color=colour, linestyle=dash, label=label)
axis.axvline(8, color=GREY, linewidth=0.8, linestyle="-")
axis.set(title="One token of a wrong answer", xlabel="tokens of the wrong answer",
         ylabel="weight, relative to 8 tokens", xscale="log", yscale="log",
         xticks=[2, 4, 8, 16, 32, 64], xticklabels=[2, 4, 8, 16, 32, 64],
         yticks=[0.125, 0.25, 0.5, 1, 2, 4], yticklabels=["1/8", "1/4", "1/2", 1, 2, 4])
axis.minorticks_off()
axis.legend()
keep(figure, "09_length")

# %% [markdown]
# With 1/|o| a mistake costs the same however long it is, so each of 64 wrong tokens is discouraged
# an eighth as much as each of 8; of right answers, the short ones gain most per token. So wrong
# answers may grow. With a constant every wrong token weighs the same, and long answers make most of
# the gradient. With a token mean, one long answer makes all tokens of its *batch* lighter.
#
# **Difficulty.** A prompt whose answers are right with probability p has the policy gradient
# p(1 - p) in its logit. In a group of 8 the number of right answers is binomial, so the mean of
# each estimator is a sum of nine terms.

# %%
G = 8
chances = torch.linspace(0.005, 0.995, 199).double()                         # p, (N,)
groups = (torch.arange(G) < torch.arange(G + 1)[:, None]).double()           # (9, 8): k right of 8
binomial = torch.stack([math.comb(G, k) * chances ** k * (1 - chances) ** (G - k)
                        for k in range(G + 1)], dim=1)                       # (N, 9)
ESTIMATORS = {"RLOO": leave_one_out_advantages, "Dr. GRPO": centred, "GRPO": over_n_minus_1,
              "MaxRL": maxrl_advantages}
expected = {}
for name, rule in ESTIMATORS.items():
    # ∇ log π in the logit is 1 - p for a right answer and -p for a wrong one
    score = groups[None] - chances[:, None, None]                            # (N, 9, 8)
    expected[name] = (binomial * (rule(groups)[None] * score).mean(-1)).sum(1)

exact = chances * (1 - chances)
torch.testing.assert_close(expected["RLOO"], exact)
torch.testing.assert_close(expected["Dr. GRPO"], 7 / 8 * exact)
torch.testing.assert_close(expected["MaxRL"], (1 - chances) * (1 - (1 - chances) ** (G - 1)))
lift = {name: curve / exact for name, curve in expected.items()}
print("weight of a prompt, least and most:", "  ".join(
    f"{name} {float(w.min()):.2f} {float(w.max()):.2f}" for name, w in lift.items()))
assert 1.73 < lift["GRPO"].min() < 1.74 and 2.4 < lift["GRPO"].max() < 2.5
assert 6.8 < lift["MaxRL"].max() < G - 1

figure, axis = plt.subplots(figsize=(5.6, 3.3))
for (name, curve), colour, dash in zip(lift.items(), (GREEN, GREY, BLUE, RED),
                                       ("-", ":", "--", "-."), strict=True):
    axis.plot(chances, curve, color=colour, linestyle=dash, label=name)
axis.plot(chances, exact ** -0.5, color="black", linewidth=0.9, linestyle="-",
          label="1 / √(p(1 - p))")
axis.set(title="Weight of a prompt, G = 8", xlabel="chance p of a right answer",
         ylabel="expected gradient / p(1 - p)", ylim=(0, 8.5))
axis.legend(loc="upper center", ncols=2)
keep(figure, "09_difficulty")

# %% [markdown]
# RLOO and Dr. GRPO weigh all prompts alike. The std lifts the hard prompts *and* the easy ones. In
# large groups its factor would be $1/\sqrt{p(1-p)}$, the black line. In a group of 8 it is milder,
# 1.74 in the middle and at most 2.46 at the ends, because one right answer of 8 has the same std
# whether p is 0.1 or 0.001. MaxRL lifts the hard prompts alone, towards 1/p and at most G - 1
# times. That is a choice of what to learn from, more than a bug. One std for the whole batch
# (`scale="batch"`) makes no choice.

# %% [markdown]
# ## In the loop
#
# The names of `minirl grpo --preset NAME` are in `minirl/train/presets.py`. A small model reads
# one-digit sums, half of them worked out step by step and half answered at once, so that its
# completions are long and short. It samples 16 groups of 8, and each preset makes a gradient of the
# same 128 completions, KL and filters set aside.

# %%
task = Arithmetic("addition", 1)
sizes = TinySizes(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=192)
base, tokenizer = make_base(sizes, seed=0, device="cpu")
sums = demonstrations(task, 2400, random.Random(0), worked_share=0.5, guessed_share=0.5)
train_sft(base, tokenizer, sums, SFTConfig(lr=5e-3), seed=0)


def first_gradient(name):
    """Return the gradient of the first update under a preset, (weights,), and its metrics."""
    fields = ("aggregate", "scale", "ddof", "clip_low", "clip_high")
    numbers = {key: n for key, n in GRPO_PRESETS[name].numbers.items() if key in fields}
    config = GRPOConfig(steps=1, warmup_steps=0, kl_coef=0.0, max_new_tokens=40,
                        max_grad_norm=1e9, **numbers)
    moments, reports = [], []

    def save(state):           # after one step, Adam's first moment is (1 - beta1) x the gradient
        moments.extend(state.optimizer.state[p]["exp_avg"].flatten() / (1 - config.beta1)
                       for group in state.optimizer.param_groups for p in group["params"])

    train_grpo(copy.deepcopy(base), tokenizer, task, config, seed=0, save=save,
               log=lambda step, metrics: reports.append(metrics),
               **GRPO_PRESETS[name].arguments(config))
    return torch.cat(moments), reports[0]


NAMES = ("grpo", "gspo", "dr_grpo", "rloo", "dapo", "trl", "r1-zero", "maxrl")
grads, norms = {}, {}
for name in NAMES:
    grads[name], metrics = first_gradient(name)
    norms[name] = metrics["grad_norm"]
units = {name: grad / grad.norm() for name, grad in grads.items()}
FOUR = ("grpo", "dr_grpo", "dapo", "maxrl")
print("preset   |gradient|   cosine with", *(f"{name:>8}" for name in FOUR))
for name in NAMES:
    print(f"{name:8} {norms[name]:10.3f}  ", " " * 11,
          *(f"{float(units[name] @ units[other]):8.2f}" for other in FOUR))
alike = [("grpo", "gspo"), ("dr_grpo", "rloo"), ("dapo", "trl"), ("trl", "r1-zero")]
assert all(units[a] @ units[b] > 0.9999 for a, b in alike)
assert all(units[a] @ units[b] < 0.995 for a, b in itertools.combinations(FOUR, 2))
assert all(units["grpo"] @ units[other] < 0.75 for other in FOUR[1:])
length = metrics["completions/mean_length"]
print(f"rloo / dr_grpo {norms['rloo'] / norms['dr_grpo']:.2f} = 40 x 8/7,  r1-zero / trl "
      f"{norms['r1-zero'] / norms['trl']:.2f} = the mean length, {length:.2f}")
assert abs(norms["rloo"] / norms["dr_grpo"] - 40 * 8 / 7) < 0.1
assert abs(norms["r1-zero"] / norms["trl"] - length) < 0.02
assert norms["dr_grpo"] < 0.1 and norms["r1-zero"] > 60 * norms["dr_grpo"]

# %% [markdown]
# Eight names, four directions, and 1/|o| is the largest difference by far. In the first update
# `gspo` is `grpo`: both have 1/|o| and the std, and the ratio is 1. `rloo` is `dr_grpo` times a
# constant: 40 tokens at most, and G/(G - 1) = 8/7. `dapo`, `trl` and `r1-zero` sum the same terms,
# and divide by the tokens or by the answers. The lengths differ by a factor of 70. Adam hardly
# notices, but `max_grad_norm` and the balance with a KL do: after a change of the mean, set them
# anew.

# %% [markdown]
# ## Break it
#
# Memory is short, so the batch is split into micro-batches, and their gradients add up. The divisor
# must be that of the **whole** batch. Each micro-batch gets it as `total`:

# %%
ratio_one = clipped_surrogate(old_logp, old_logp, adv)                       # A for each token
SPLITS = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))


def accumulated(parts, total=None):
    """Sum over micro-batches what each divides by `total`; without it, the mean of their means."""
    each = [float(aggregate(ratio_one[list(rows)], MASK[list(rows)], "token_mean", total=total))
            for rows in parts]
    return sum(each) if total else sum(each) / len(each)


total = normaliser(MASK, "token_mean")
print("two micro-batches of answers   with the whole total   mean of their means")
means = []
for parts in SPLITS:
    means.append(accumulated(parts))
    names = " | ".join(", ".join(ANSWERS[i] for i in rows) for rows in parts)
    print(f"  {names:26}   {accumulated(parts, total):7.4f}                {means[-1]:7.4f}")
    assert abs(accumulated(parts, total) + 2 / 16) < 1e-12
assert [round(mean, 4) for mean in means] == [0.0, -0.2273, 0.1]

# %% [markdown]
# Three ways to split one batch give three objectives, of both signs. In the first split a token of
# "12" weighs 1/12 of its advantage and a token of "2" 1/20, only because of its neighbours. A mean
# of means is right where all divisors are equal, so it passes every test with equal lengths. verl
# and open-instruct have had it ([verl#906](https://github.com/volcengine/verl/pull/906),
# [open-instruct#1161](https://github.com/allenai/open-instruct/pull/1161)), and nanochat and TRL's
# `bnpo` divide each pass by its own tokens.

# %% [markdown]
# ## Exercises
#
# Solutions: `tutorials/solutions/09_one_name_many_losses.py`.

# %%
def exercise_1(logp, old_logp, rewards, mask):
    """Return what TRL maximises by default (see PROJECTS), a scalar. Compose minirl's functions."""
    raise NotImplementedError


def check_1(answer):
    for name, now, wanted in (("OLD", old_logp, -0.124975), ("NEW", logp, -0.118726)):
        came = float(answer(now, old_logp, REWARDS, MASK))
        assert abs(came - wanted) < 1e-6, f"at {name} it is {wanted}, and yours is {came:.6f}"


judge(check_1, exercise_1)


# %%
def exercise_2(x, mask, parts, how):
    """Return aggregate(x, mask, how) of the whole batch, but look only at one part at a time.

    parts: lists of rows, which together are the batch. how: "sequence_mean" or "token_mean".
    """
    raise NotImplementedError


def check_2(answer):
    for how, wanted in (("token_mean", -0.125), ("sequence_mean", 0.0)):
        for parts in (*SPLITS, ((0,), (1, 2, 3))):
            came = float(answer(ratio_one, MASK, [list(rows) for rows in parts], how))
            assert abs(came - wanted) < 1e-9, f"{how}, {parts}: expected {wanted}, got {came:.4f}"


judge(check_2, exercise_2)

# %% [markdown]
# ## Deltas from the paper
#
# | | paper | here |
# |---|---|---|
# | std of a group | DeepSeekMath leaves n or n - 1 open | `ddof`, 1 by default |
# | ratio of DeepSeek-R1, eq. 1 | product over the answer, no 1/\|o\| | `r1-zero`: product |
# | Dr. GRPO's constant | the largest length, in its code 3000 | `max_new_tokens` |
# | DAPO's mean | over the tokens of a group | over the tokens of the batch, as in its code |
# | RLOO | KL in the reward | no KL |

# %% [markdown]
# ## Find the bug
#
# RLOO compares each reward with the others' mean. This function also divides by the others'
# standard deviation. Where that was 0, a real library once gave advantages of a million
# ([NeMo-RL#1518](https://github.com/NVIDIA-NeMo/RL/issues/1518)). The author has seen to that, and
# still there is one bug. Write a test that passes for `group_advantages` and fails for this
# function: what must be true of any advantage?

# %%
def advantages_with_a_bug(rewards):
    """Compare each reward with the mean and the spread of the others. (P, G) -> (P, G)"""
    others = rewards.shape[-1] - 1
    mean = (rewards.sum(-1, keepdim=True) - rewards) / others
    squares = (rewards.square().sum(-1, keepdim=True) - rewards.square()) / others
    std = (squares - mean.square()).clamp(min=0).sqrt()
    equal = std < 1e-6                                    # no spread, nothing to learn
    return torch.where(equal, 0, (rewards - mean) / torch.where(equal, 1, std))


def exercise_bug(function):
    """Raise AssertionError unless function(rewards) is an advantage: (P, G) -> (P, G)."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, group_advantages, advantages_with_a_bug)


judge(check_bug, exercise_bug)
