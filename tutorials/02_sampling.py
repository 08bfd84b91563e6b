# %%
# %pip install -q -e ..

# %% [markdown]
# # 02. Sampling, log-probs and the shift by one
#
# *Why does my ratio not start at 1?*
#
# - **Paper**: the ratio of learner to sampler: "Defeating the training-inference mismatch via
#   FP16", [arXiv:2510.26788](https://arxiv.org/abs/2510.26788), section 3; top-p: Holtzman et al.,
#   [arXiv:1904.09751](https://arxiv.org/abs/1904.09751)
# - **Code**: `minirl/lm/sampling.py`: `sample`; `minirl/lm/logprobs.py`: `token_logprobs`;
#   `minirl/equations/mismatch.py`: `importance_ratio`, `sequence_weights`
# - **Tests**: `tests/lm/test_sampling.py`, `tests/lm/test_logprobs.py`,
#   `tests/equations/test_mismatch.py`
# - **Before this**: 01 (logits, states, slots, the mask)
# - **Time**: 10 s on two CPU cores; 7 s with `MINIRL_FAST=1`
# - **Expect**: ratios within 1e-5 of 1 in float32; if the learner forgets a temperature of 0.7, the
#   product of the ratios of 100 tokens is about e^-11
# - **Sweep**: `rollout(temperature=T)` against a learner at temperature 1, for T from 0.5 to 1.5:
#   look at the effective sample size
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | ratios before the first update | within 1e-5 of 1 in float32 | see the table in "Break it" |
# | `sampling/sampling_logp_difference/mean` | about 1e-6; 1e-2 in bfloat16 | the same table |
# | product of a completion's ratios | close to 1 | sampler and learner are two policies |

# %%
import doctest
import math

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, FAST, GREEN, GREY, RED, judge, judge_test, keep, show
from minirl.equations.kl import exact_kl
from minirl.equations.mismatch import effective_sample_size, importance_ratio, sequence_weights
from minirl.lm import sampling
from minirl.lm.choice import draw, keep_likeliest
from minirl.lm.logprobs import linear_logprobs, token_logprobs
from minirl.lm.precision import compute_in
from minirl.lm.sampling import sample
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.arithmetic import Arithmetic
from minirl.train.grpo import GRPOConfig, train_grpo

torch.set_num_threads(1)               # the model is so small that a second one would only wait

# %% [markdown]
# ## The question
#
# Reinforcement learning on text has two halves. The **sampler** writes completions. The **learner**
# reads them, computes the log-prob of each token, and changes the model's parameters. Many
# algorithms compare the two by the **ratio**
#
# $$\rho_t = \frac{\pi(y_t \mid x, y_{<t})}{\mu(y_t \mid x, y_{<t})}
#   = \exp(\log \pi - \log \mu)$$
#
# with the learner's policy π and the sampler's policy μ. Why a ratio? The samples come from μ, but
# we want a mean under π. Multiply each sample by its ρ, and the mean is right, whatever we average:
# $\mathbb{E}_\mu[\rho f] = \sum \mu\,\frac{\pi}{\mu} f = \mathbb{E}_\pi[f]$.
#
# Before the first update, sampler and learner have the same parameters. So every ratio must be 1.
# In practice it often is not:
#
# - [trlx#107](https://github.com/CarperAI/trlx/issues/107): *Ratio != 1 at start of PPO training*
# - [trl#4159](https://github.com/huggingface/trl/issues/4159): wrong at every temperature but 1
# - [trl#6789](https://github.com/huggingface/trl/issues/6789): biased by top-p and top-k
# - [minimind#814](https://github.com/jingyaogong/minimind/pull/814): a softmax in 16 bits
#
# The short answer: the learner did not compute the probability with which the sampler drew. There
# are several ways to get there, and each leaves its own trace in the ratio.

# %% [markdown]
# ## By hand
#
# **One distribution.** After "7+5=" a policy gives the next token the probabilities in the first
# row below. The **temperature** T divides the logits before the softmax. That raises each
# probability to the power 1/T; then all are divided by their sum. **Top-k** keeps the k likeliest
# tokens. **Top-p** keeps the likeliest tokens until their probabilities add up to p or more. What
# is kept is divided by its sum, too.
#
# | | `1` | `2` | `3` | EOS | |
# |---|---|---|---|---|---|
# | policy | 1/2 | 1/4 | 1/8 | 1/8 | |
# | T = 0.5 | 16/22 | 4/22 | 1/22 | 1/22 | squares |
# | T = 2 | 0.369 | 0.261 | 0.185 | 0.185 | square roots |
# | top-k = 2 | 2/3 | 1/3 | 0 | 0 | |
# | top-p = 0.8 | 4/7 | 2/7 | 1/7 | 0 | 1/2 + 1/4 is less than 0.8, plus 1/8 is more |
#
# Now the sampler draws at T = 0.5, and the learner forgets the temperature. The ratio is the first
# row over the second: 0.69 for `1`, 1.38 for `2`, 2.75 for `3` and EOS. Its mean under the sampler
# is 16/22 · 0.69 + 4/22 · 1.38 + 2/22 · 2.75 = 1. (Put $f = 1$ above.) So the mean shows nothing.
# But the mean of its *logarithm* is -0.12. It is negative for any two different policies, because
# it is minus a KL divergence, a measure of how far two distributions are apart (tutorial 07):
#
# $$\mathbb{E}_\mu[\log \rho] = -\text{KL}(\mu \,\|\, \pi) \le 0$$
#
# With top-p = 0.8 the ratio is 7/8 for *every* token that can be drawn, and so its mean is 7/8, not
# 1. EOS is missing: what is never drawn, no ratio can bring back.

# %%
P = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8])                                # (V,)
NAMES = ["1", "2", "3", "EOS"]
OPTIONS = {                                            # temperature, top-k, top-p, expected μ
    "policy": (1.0, 0, 1.0, [1 / 2, 1 / 4, 1 / 8, 1 / 8]),
    "T = 0.5": (0.5, 0, 1.0, [16 / 22, 4 / 22, 1 / 22, 1 / 22]),
    "T = 2": (2.0, 0, 1.0, [0.3694, 0.2612, 0.1847, 0.1847]),
    "top-k = 2": (1.0, 2, 1.0, [2 / 3, 1 / 3, 0, 0]),
    "top-p = 0.8": (1.0, 0, 0.8, [4 / 7, 2 / 7, 1 / 7, 0])}
N = 100_000
uniform = torch.rand(N, generator=torch.Generator().manual_seed(0))           # (N,)
mu = {}
print("             probabilities                   share of draws          E[ratio]  E[log ratio]")
for name, (temperature, top_k, top_p, expected) in OPTIONS.items():
    logp = keep_likeliest((P.log() / temperature).log_softmax(-1)[None], top_k, top_p)[0]   # (V,)
    mu[name] = logp.exp()                                                     # (V,)
    ids, _ = draw(P.log().expand(N, 4), uniform, temperature, top_k, top_p)  # step in: draw
    share = torch.bincount(ids, minlength=4) / N
    can = mu[name] > 0                                                        # can be drawn, (V,)
    ratio = P[can] / mu[name][can]
    mean, mean_log = (mu[name][can] * ratio).sum(), (mu[name][can] * ratio.log()).sum()
    print(f"{name:12}", " ".join(f"{x:.3f}" for x in mu[name].tolist()), "  ",
          " ".join(f"{x:.3f}" for x in share.tolist()), f"   {mean:.3f}     {mean_log:6.3f}")
    torch.testing.assert_close(mu[name], torch.tensor(expected), atol=1e-4, rtol=0)
    assert (share - mu[name]).abs().max() < 0.01
    assert abs(mean - {"top-k = 2": 3 / 4, "top-p = 0.8": 7 / 8}.get(name, 1.0)) < 1e-6
    assert abs(mean_log + exact_kl(logp, P.log())) < 1e-6
    assert name != "T = 0.5" or abs(mean_log - -0.12) < 0.005

# %% [markdown]
# **The shift by one.** A model reads tokens and returns logits for each slot. Those at slot t come
# from the tokens up to t, so they are about the *next* token, at slot t + 1. Take a policy that is
# a table: after each token, its successor in `7 + 5 =` has the probability 0.9, and each of the
# other three tokens 1/30.
#
# | slot | token | log-prob of this token | its logits are at slot |
# |---|---|---|---|
# | 0 | `7` | 0: it is given | |
# | 1 | `+` | log 0.9 = -0.105 | 0 |
# | 2 | `5` | log 0.9 = -0.105 | 1 |
# | 3 | `=` | log 0.9 = -0.105 | 2 |
#
# Forget the shift, and each token is scored by logits that have read this token already: log 1/30 =
# -3.40. Nothing raises an error, because all shapes fit. In this library, slot t of *every* tensor
# is about choosing token t. The shift is in one file, `minirl/lm/logprobs.py`.

# %%
successor = torch.full((4, 4), 1 / 30)                 # a row for the last token, (4, 4)
successor[torch.arange(4), (torch.arange(4) + 1) % 4] = 0.9
text = torch.arange(4)                                                        # 7 + 5 =
shifted = successor[text[:-1], text[1:]].log()                                # slots 1 to 3
unshifted = successor[text, text].log()                                       # the mistake
print("with the shift:   ", [round(x, 3) for x in shifted.tolist()])
print("without the shift:", [round(x, 3) for x in unshifted.tolist()])
torch.testing.assert_close(shifted, torch.full((3,), math.log(0.9)))
torch.testing.assert_close(unshifted, torch.full((4,), math.log(1 / 30)))

# %% [markdown]
# ## The function
#
# This is a sampler in its plainest form. It stands in the docstring of `minirl/lm/sampling.py`,
# where a test compares it with `sample`. It reads the whole text again for each token; `sample`
# reads nothing twice.

# %%
print(doctest.DocTestParser().get_examples(sampling.__doc__)[0].source)

# %% [markdown]
# The learner's half is `token_logprobs`, where the shift is. The two meet in the ratio:

# %%
show(importance_ratio)

# %% [markdown]
# A transformer with random weights is a policy like any other, so we need not train one to see
# whether sampler and learner agree. `behavior_logp` is what the sampler reports about its own
# draws. The three prompts have different lengths. The sampler pads them on the left, so that all
# rows write their next token into the same column. The learner pads on the right. Neither may
# change a log-prob ([NeMo-Aligner#68](https://github.com/NVIDIA/NeMo-Aligner/issues/68) is about
# one that did).

# %%
model, tokenizer = make_base(TinySizes(hidden_size=64, num_heads=4, intermediate_size=256,
                                       max_seq_len=128), seed=0, device="cpu")
PROMPTS = [tokenizer.encode_prompt(text) for text in ("7+5=", "12+34=", "1+2+3+4=")]
NEW, ROWS = 100, 12 if FAST else 40                    # tokens; completions of each prompt


def rollout(**options):
    """Sample completions of 100 tokens each: there is no EOS at which they could end."""
    return sample(model, PROMPTS, group=ROWS, max_new_tokens=NEW, eos_id=None,
                  pad_id=tokenizer.pad_id, generator=torch.Generator().manual_seed(0), **options)


for temperature in (0.7, 1.0, 1.5):
    r = rollout(temperature=temperature)
    with torch.no_grad():
        logp = token_logprobs(  # step in: token_logprobs
            model, r.tokens, mask=r.mask, temperature=temperature)            # (B, T)
    ratio = importance_ratio(logp, r.behavior_logp)                           # (B, T)
    largest = (ratio[r.mask] - 1).abs().max().item()
    print(f"temperature {temperature}: {r.mask.sum()} tokens, ratios within {largest:.1e} of 1")
    assert largest < 1e-5 and bool((ratio[~r.mask] == 1).all())

# %% [markdown]
# ## Picture
#
# What the options do to one distribution; the dashed line is the policy. The temperature changes
# all probabilities and keeps every token possible. Top-k and top-p make unlikely tokens impossible.

# %%
figure, axes = plt.subplots(1, 5, figsize=(9.6, 2.5), sharey=True)
for axis, (name, values) in zip(axes, mu.items(), strict=True):
    axis.bar(NAMES, values.tolist(), color=GREY if name == "policy" else BLUE, width=0.7)
    axis.step([-0.5, *range(4), 3.5], [0.5, *P.tolist(), 1 / 8], where="mid", color="black",
              linewidth=1, linestyle="--")
    for i, value in enumerate(values.tolist()):
        axis.text(i, max(value, P[i]) + 0.02, f"{value:.3f}".lstrip("0") if value else "0",
                  ha="center", fontsize=9)
    axis.set(title=name, ylim=(0, 0.85))
    axis.grid(False)
axes[0].set_ylabel("probability")
keep(figure, "02_distribution")

# %% [markdown]
# ## In the loop
#
# `train_grpo` gives `config.temperature` to the sampler (stage 1) and to the learner (stages 3 and
# 4), and sets dropout to 0. It has no top-p, because a truncated sampler is not the policy that is
# trained. Its own ratio (tutorial 05) compares the learner with the learner before the update. That
# one starts at 1 whatever the sampler did, so it hides a mismatch. Therefore the loop also reports
# the mean difference of learner and sampler, under TRL's name for it:

# %%
config = GRPOConfig(steps=2, prompts_per_step=4, group_size=4, max_new_tokens=24, temperature=0.7,
                    kl_coef=0.0)
seen = {}
for dtype in ("float32", "bfloat16"):
    learner, _ = make_base(TinySizes(), seed=0, device="cpu")
    with compute_in(dtype, torch.device("cpu")):
        train_grpo(learner, tokenizer, Arithmetic(digits=1), config, seed=0,
                   log=lambda step, metrics, dtype=dtype: seen.setdefault(dtype, []).append(
                       metrics["sampling/sampling_logp_difference/mean"]))
    print(f"{dtype:9}", "mean |log π - log μ| of each step:", [f"{x:.1e}" for x in seen[dtype]])
assert max(seen["float32"]) < 1e-5 and 1e-3 < max(seen["bfloat16"]) < 0.1

pair = torch.tensor([10.03, 10.0])
print(f"logits 10.03 and 10, in bfloat16: {pair.bfloat16().tolist()}")
assert pair.bfloat16().tolist() == [10.0, 10.0]

# %% [markdown]
# In bfloat16 even a correct loop does not agree with itself. A bfloat16 number has 8 significant
# bits, so between 8 and 16 its steps are 1/16 wide, and the logit 10.03 becomes 10. The sampler
# reads one token at a time and the learner a whole text. They add up in different orders, and round
# to different numbers.
#
# ## Break it
#
# Five ways to break the agreement. None of them raises an error. The **weight** of a completion is
# the product of its tokens' ratios, so the log of the weight is a *sum*, and small deviations add
# up over 100 tokens. The **effective sample size** (ESS) says how many of N completions count, if
# each has its weight: $(\sum w)^2 / \sum w^2$. It is N if all weights are equal, and 1 if one
# weight is much larger than all others.

# %%
@torch.no_grad()
def log_ratio(r, *, temperature=1.0, dropout=0.0, dtype="float32", shift=True):
    """Return log π - log μ of sampled tokens (B, 100) and the weights of completions (B,)."""
    torch.manual_seed(0)
    model.set_dropout(dropout)
    model.train()
    with compute_in(dtype, torch.device("cpu")):
        logp = token_logprobs(model, r.tokens, mask=r.mask, temperature=temperature)  # (B, T)
        if not shift:                                  # each token by the logits at its own slot
            logp = model(r.tokens).log_softmax(-1).gather(2, r.tokens[..., None]).squeeze(2)
    model.set_dropout(0.0)
    model.eval()
    difference = (logp - r.behavior_logp)[r.mask].view(len(r), NEW)
    return difference, sequence_weights(logp, r.behavior_logp, r.mask)


cold, warm, nucleus = rollout(temperature=0.7), rollout(), rollout(top_p=0.95)
CAUSES = {
    "nothing wrong": log_ratio(cold, temperature=0.7),
    "temperature forgotten": log_ratio(cold),
    "top-p in the sampler": log_ratio(nucleus),
    "dropout in the learner": log_ratio(warm, dropout=0.05),
    "bfloat16 in the learner": log_ratio(warm, dtype="bfloat16"),
    "no shift by one": log_ratio(warm, shift=False),
}
print("                               log ratio of a token            of 100 tokens    ESS / N")
print("                           mean   spread    lowest  highest     mean   spread")
ess = {name: effective_sample_size(w.double()) / len(w) for name, (_, w) in CAUSES.items()}
for name, (d, _) in CAUSES.items():
    total = d.sum(1)
    print(f"{name:24} {d.mean():8.4f} {d.std():8.4f}  {d.min():8.3f} {d.max():8.3f} "
          f"{total.mean():8.2f} {total.std():8.2f}   {ess[name]:6.3f}")

right, forgotten, truncated, dropped, rounded, unshifted = (d for d, _ in CAUSES.values())
assert right.abs().max() < 1e-5
assert forgotten.mean() < -0.05 and abs(forgotten.exp().mean() - 1) < 0.1
assert truncated.max() < 1e-5 and truncated.min() > math.log(0.95) - 1e-4
assert truncated.sum(1).mean() < -4 and ess["top-p in the sampler"] > 0.99
assert dropped.mean() < -0.05 and unshifted.mean() < -0.05 and unshifted.std() > 1
assert abs(rounded.mean()) < 0.1 * rounded.std()
assert 0.6 < rounded.sum(1).std() / (rounded.std() * NEW ** 0.5) < 1.5, "it grows with the root"

# %% [markdown]
# Each cause has its own trace:
#
# | cause | log ratio of a token | log weight of a completion | remedy |
# |---|---|---|---|
# | none | 0, within 1e-5 | 0 | |
# | temperature | below 0 on average, wide | falls, spreads | give it to the learner |
# | top-p, top-k | log of the kept share, below 0 | falls, hardly spreads | train without them |
# | dropout | below 0 on average, wide | falls, spreads | switch it off |
# | bfloat16 | about 0, narrow | spreads with the *root* of the length | float16; cap the weights |
# | no shift | below 0 on average, the widest | falls, spreads | shift in one place only |
#
# A sum that falls says that sampler and learner are two policies: on average, each token adds minus
# the KL. Rounding has hardly any direction, so its sum walks at random. ESS does not see
# everything: top-p makes all weights too small, but all by the same factor.

# %%
positions = torch.arange(1, NEW + 1)
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.8))
for d, colour, style, label in (
        (right, GREY, "-", "nothing wrong"), (truncated, GREEN, "-.", "top-p 0.95"),
        (forgotten, BLUE, "-", "temperature forgotten"), (dropped, RED, "--", "dropout 0.05")):
    walk = d.cumsum(1)                                                        # (B, 100)
    low, high = walk[:, 9::10].quantile(torch.tensor([0.1, 0.9]), dim=0)
    axes[0].fill_between(positions[9::10], low, high, color=colour, alpha=0.15, linewidth=0)
    axes[0].plot(positions, walk.mean(0), color=colour, linestyle=style, label=label)
axes[0].set(title="Two policies: the sum falls", xlabel="tokens of the completion",
            ylabel="log weight, mean and 80 % band")
axes[0].legend(loc="lower left")
walks = rounded.cumsum(1)[::len(rounded) // 6, 9::10]                          # six completions
axes[1].plot(positions[9::10], walks.T, color=AMBER, linestyle="-", linewidth=1)
for sign in (-1, 1):
    axes[1].plot(positions, sign * rounded.std() * positions ** 0.5, color="black", linestyle="--",
                 linewidth=1.2)
axes[1].text(100, 0.245, "dashed: ± spread of a token · √length", ha="right", fontsize=8.5)
axes[1].set(ylim=(-0.3, 0.3), title="bfloat16: the sum walks at random",
            xlabel="tokens of the completion", ylabel="log weight of six completions")
keep(figure, "02_causes")

for n in (1, 10, 30, 100):
    size = effective_sample_size(forgotten[:, :n].sum(1).double().exp()).item()
    print(f"temperature forgotten, after {n:3} tokens: ESS {size:5.1f} of {len(forgotten)}")
    assert n > 1 or size > 0.5 * len(forgotten)
assert size < 0.25 * len(forgotten)

# %% [markdown]
# So the forgotten temperature looks harmless token by token, where the mean ratio is 1. But of the
# weights of whole completions nearly all are close to 0, and one or a few carry everything.
#
# ## Exercises
#
# Write the body of each function. The solutions are in `tutorials/solutions/02_sampling.py`.

# %%
def exercise_1(p, top_p):
    """Top-p on a list of probabilities: a list of the same length, 0 for what is not kept."""
    raise NotImplementedError


def check_1(answer):
    for p, top_p, expected in (
            ([1 / 2, 1 / 4, 1 / 8, 1 / 8], 0.7, [2 / 3, 1 / 3, 0, 0]),
            ([1 / 8, 1 / 2, 1 / 4, 1 / 8], 0.7, [0, 2 / 3, 1 / 3, 0]),
            ([0.4, 0.6], 0.5, [0, 1]), ([0.4, 0.6], 1.0, [0.4, 0.6])):
        came = list(answer(p, top_p))
        assert len(came) == len(p) and all(
            abs(x - y) < 1e-6 for x, y in zip(came, expected, strict=True)), \
            f"top-p {top_p} of {p}: expected {expected}, and got {came}"


def exercise_2(logits, tokens):
    """The log-prob of each token of one text, logits (T, V), tokens (T,) -> (T,); slot 0 is 0."""
    raise NotImplementedError


def check_2(answer):
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]])
    came = answer(p.log() + 7.0, torch.tensor([2, 0, 2]))    # logits are log-probs but for a number
    assert came.shape == (3,), f"expected a log-prob for each of 3 tokens, and got {came.shape}"
    assert torch.allclose(came.exp(), torch.tensor([1.0, 0.5, 0.8])), \
        f"expected probabilities 1 (by definition), 0.5 and 0.8, and got {came.exp().tolist()}"


judge(check_1, exercise_1)
judge(check_2, exercise_2)

# %% [markdown]
# ## Deltas from the paper
#
# | | large systems | here |
# |---|---|---|
# | sampler and learner | two programs, such as vLLM and FSDP | one model, run in two ways |
# | precision | bfloat16 or float16 in both | float32, and bfloat16 to see what it does |
# | policy | trained | random weights, as agreement does not depend on them |
# | weights | truncated or masked at a cap | without a cap |

# %% [markdown]
# ## Find the bug
#
# This is the heart of a learner: logits, already shifted, become log-probs of the tokens that were
# sampled at a temperature. It has a silent bug, which a large project once had. Write a test that
# passes for a right function and fails for this one. A test takes the function that it tests, calls
# it with numbers of your choice, and raises AssertionError where the result is wrong.

# %%
def learner_logprobs(logits, targets, temperature):
    """Log-probs of the targets at a temperature: (N, V), (N,) -> (N,)."""
    logp = logits.log_softmax(-1)
    return logp.gather(1, targets[:, None]).squeeze(1) / temperature


def exercise_bug(function):
    """A test of function(logits, targets, temperature)."""
    raise NotImplementedError


def check_bug(test):
    def right_logprobs(logits, targets, temperature):
        return linear_logprobs(logits, torch.eye(logits.shape[1]), targets, temperature=temperature)

    judge_test(test, right_logprobs, learner_logprobs)


judge(check_bug, exercise_bug)
