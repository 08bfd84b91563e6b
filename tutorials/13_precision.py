# %%
# %pip install -q -e ..

# %% [markdown]
# # 13. FP16 against BF16
#
# *Sampler and learner have the same weights: why is the ratio not 1, and what can be done?*
#
# - **Paper**: Defeating the training-inference mismatch via FP16,
#   [arXiv:2510.26788](https://arxiv.org/abs/2510.26788); Mixed Precision Training,
#   [arXiv:1710.03740](https://arxiv.org/abs/1710.03740), section 3; IcePop,
#   [arXiv:2510.18855](https://arxiv.org/abs/2510.18855)
# - **Code**: `minirl/lm/precision.py`: `round_to`, `LossScaler`; `minirl/equations/mismatch.py`;
#   `minirl/inference/mismatch.py`; `minirl/lm/batch_invariant.py`
# - **Tests**: `tests/lm/test_precision.py`, `tests/equations/test_mismatch.py`,
#   `tests/inference/test_mismatch.py`
# - **Before this**: 02 (log-probs of sampler and learner), 05 (the ratio), 08 (GRPO)
# - **Time**: 15 s on two CPU cores, with `MINIRL_FAST=1` as well
# - **Expect**: bfloat16 is 7 to 10 times as far off as float16, which rounds 8 times as finely
# - **Sweep**: `minirl precision` for any checkpoint; `minirl grpo --dtype float16` beside
#   `--dtype bfloat16`, and `--batch-invariant true`: compare `sampling/frac_far`
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | `sampling/frac_far`, the share of ratios outside [0.9, 1.1] | below 1 % | look at both dtypes |
# | `sampling/sample_share` | near 1 | weights that few completions carry: shorten or mask |
# | `frac_skipped_steps` in float16 | the first steps, then one in 2,000 | NaN, at any scale |

# %%
import copy
import random

import matplotlib.pyplot as plt
import torch

from lesson import BLUE, GREY, RED, judge, judge_test, keep, show
from minirl.equations.mismatch import (
    effective_sample_size,
    importance_ratio,
    masked_weights,
    sequence_weights,
    truncated_weights,
)
from minirl.equations.objectives import policy_gradient
from minirl.inference.mismatch import measure_mismatch, mismatch_table
from minirl.lm.precision import LossScaler, compute_in, round_to
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.testing.example import MASK, OLD, SCORES, probabilities, token_logprobs
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.precision_lab import product_mismatches
from minirl.train.sft import SFTConfig, train_sft

# %% [markdown]
# ## The question
#
# In reinforcement learning two programs compute the same log-probs. The *sampler* draws a token at
# a time, with keys and values that it has kept; the *learner* reads the whole text at once. Both
# round, and they add in different orders. People see it as a ratio that is not 1:
#
# - *Why do the sampler's log-probs differ from the trainer's, with the same weights?*
#   [trl#4159](https://github.com/huggingface/trl/issues/4159),
#   [AReaL#1290](https://github.com/inclusionAI/AReaL/issues/1290)
# - *Which correction, and on a token or on the whole answer?*
#   [trl#4772](https://github.com/huggingface/trl/issues/4772)
#
# The short answer. bfloat16 keeps 8 bits of a number and float16 keeps 11: three bits, so errors 8
# times as large. The errors of a text add up, so the ratio of a long answer may be anything. One
# remedy weighs the samples by π/μ, which is exact and may be noisy. Another one makes π/μ nearer to
# 1: finer rounding, or the same arithmetic on both sides.

# %% [markdown]
# ## By hand
#
# A number in binary is $\pm 1.b_1 b_2 \ldots \times 2^e$. With p bits, the leading 1 among them,
# neighbours between $2^e$ and $2^{e+1}$ are $2^{e+1-p}$ apart:
#
# | | bits | neighbours of 1 | neighbours of 5.3 | 5.3 becomes | 1 - 0.001 becomes |
# |---|---|---|---|---|---|
# | bfloat16 | 8 | 1 - 1/256, 1 + 1/128 | 1/32 apart | 5.3125 | 1 |
# | float16 | 11 | 1 - 1/2048, 1 + 1/1024 | 1/256 apart | 5.30078125 | 0.99902 |
#
# So a logit of 5.3 is off by 0.0125 or by 0.00078, and a probability by a factor of exp of that.

# %%
values = torch.tensor([5.3, 1 - 1e-3], dtype=torch.float64)
for dtype in ("bfloat16", "float16"):
    rounded = round_to(values, dtype)                                        # step in: round_to
    print(f"{dtype:9} {rounded[0]:.8f}  off by {rounded[0] - 5.3:.5f}     {rounded[1]:.5f}")
    assert torch.equal(rounded, values.to(getattr(torch, dtype)).double()), "torch's own cast"
assert round_to(values, "bfloat16").tolist() == [5.3125, 1.0]

# %% [markdown]
# The policy of "7+5=" has logits of log 0.5, log 0.3 and log 0.2 behind the "1". Suppose the
# sampler keeps **3 bits** of them: between 0.5 and 1 it knows multiples of 1/8, between 1 and 2
# multiples of 1/4.
#
# | | logit | in 3 bits | exp | μ | π | π/μ |
# |---|---|---|---|---|---|---|
# | "2" | -0.693 | -0.75 | 0.4724 | 0.4810 | 0.5 | 1.0394 |
# | "3" | -1.204 | -1.25 | 0.2865 | 0.2918 | 0.3 | 1.0283 |
# | "0" | -1.609 | -1.50 | 0.2231 | 0.2272 | 0.2 | 0.8802 |
#
# The exponentials sum to 0.9820, hence μ.


# %%
def in_bits(x, bits):
    """Round to so many bits of precision, whatever the exponent. Any shape -> the same"""
    distance = torch.ldexp(torch.ones_like(x), x.frexp().exponent - bits)
    return (x / distance).round() * distance


SAMPLER = tuple(in_bits(logits, 3) for logits in OLD)
logp, behavior_logp = token_logprobs(OLD), token_logprobs(SAMPLER)           # (4, 8) each
ratio = importance_ratio(logp, behavior_logp)  # step in: importance_ratio
print("logits in 3 bits:", SAMPLER[1].tolist())
print("π/μ of the second token:", [round(r, 4) for r in ratio[:3, 1].tolist()])
assert SAMPLER[1].tolist() == [-0.75, -1.25, -1.5] and torch.equal(in_bits(values, 8),
                                                                  round_to(values, "bfloat16"))
assert [round(r, 4) for r in ratio[:3, 1].tolist()] == [1.0394, 1.0283, 0.8802]

# %% [markdown]
# What does it do to the gradient? The samples come from μ, and the learner differentiates log π.
# There are four answers, so the mean over μ's samples is a sum of four terms, and exact. The scores
# are 2, 1, 0 and -1, as a reward model may give them. Five ways to weigh the samples:

# %%
def expected_gradient(weigh, sampler=SAMPLER):
    """Return the mean over the sampler's answers of w r ∇ log π, in the policy's logits, (5,)."""
    policy = [logits.clone().requires_grad_() for logits in OLD]
    logp, mu = token_logprobs(policy), token_logprobs(sampler)               # (4, 8) each
    terms = policy_gradient(logp, SCORES[0, :, None].expand_as(logp))        # (4, 8)
    weights = weigh(logp.detach(), mu)                                       # (4, 8), or (4, 1)
    each = torch.where(MASK, weights * terms, 0).sum(1)                      # (4,)
    return torch.cat(torch.autograd.grad((probabilities(sampler) * each).sum(), policy))


WEIGHTS = {
    "none": lambda logp, mu: torch.ones_like(logp),
    "token, π_t/μ_t": importance_ratio,
    "token, at most 1.035": lambda logp, mu: truncated_weights(importance_ratio(logp, mu), 1.035),
    "sequence, π/μ": lambda logp, mu: sequence_weights(logp, mu, MASK)[:, None],
    "sequence, 0 if far": lambda logp, mu: masked_weights(
        sequence_weights(logp, mu, MASK), 1.035)[:, None],
}
truth = expected_gradient(WEIGHTS["none"], sampler=OLD)
errors = {}
for name, weigh in WEIGHTS.items():
    came = expected_gradient(weigh)
    errors[name] = float((came - truth).norm() / truth.norm())
    print(f"  {name:20} error {errors[name]:7.2%}   gradient", [round(g, 4) for g in came.tolist()])
print(f"  {'the truth':20}                 gradient", [round(g, 4) for g in truth.tolist()])
assert errors["sequence, π/μ"] < 1e-12 and errors["none"] > 0.02
assert 0 < errors["token, π_t/μ_t"] < errors["none"] < errors["sequence, 0 if far"]

# %% [markdown]
# The weight of the **whole answer** is exact: it turns a mean over μ into one over π. The weight of
# each token leaves the first two numbers wrong, those of the first token: it forgets that the
# *later* tokens came from μ, too. A bound on a weight adds a little bias. A mask drops what is
# beyond the bound, here the only right answer, with the ratio 1.0394: 56 %. Bias is the price for
# weights that are bounded; what that buys shows where answers are long.

# %% [markdown]
# ## The function

# %%
show(round_to)

# %% [markdown]
# ## Picture
#
# One matrix product with random weights (width 64, 512 tokens) is computed in each dtype and in
# float32, as if it made texts of 256 tokens. Left: the error of one token's log-prob. Right: how
# far the log-ratio of the first n tokens is spread. Independent errors add up as a random walk
# does: with √n.

# %%
products = product_mismatches(seed=0)                    # bfloat16 and float16 against float32
by_dtype = {pair.sampler: pair for pair in products}
mean = {dtype: float(pair.differences.mean()) for dtype, pair in by_dtype.items()}
spread = {dtype: pair.spreads() for dtype, pair in by_dtype.items()}
figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.1))
for dtype, colour, dash in (("bfloat16", RED, "-"), ("float16", BLUE, "--")):
    errors_of_tokens = by_dtype[dtype].differences.clamp(min=1e-6).log10().numpy()
    axes[0].hist(errors_of_tokens, bins=60, density=True, histtype="step", color=colour,
                 linestyle=dash, linewidth=1.6, label=dtype)
    n = torch.arange(1, len(spread[dtype]) + 1)
    axes[1].plot(n, spread[dtype], color=colour, linestyle=dash, label=dtype)
    axes[1].plot(n, spread[dtype][0] * n.sqrt(), color="black", linewidth=0.8, linestyle=":")
axes[0].set(title="|Δ log p| of a token", xlabel="log₁₀ of nats", ylabel="density", xlim=(-6, -1))
axes[1].set(title="Log-ratio of n tokens (dots: √n)", xlabel="n", ylabel="standard deviation, nats",
            xscale="log", yscale="log")
axes[0].legend(loc="upper left")
axes[1].legend(loc="upper left")
keep(figure, "13_errors")
times = mean["bfloat16"] / mean["float16"]
print(f"mean |Δ log p|: bfloat16 {mean['bfloat16']:.2e}, float16 {mean['float16']:.2e}, "
      f"{times:.1f} times; three bits are a factor of 8")
print(f"spread of 256 tokens: bfloat16 {spread['bfloat16'][-1]:.3f}, "
      f"float16 {spread['float16'][-1]:.3f} nats")
assert 7 < times < 9
assert all(0.8 < s[-1] / (s[0] * 16) < 1.25 for s in spread.values()), "16 is the root of 256"

# %% [markdown]
# At 256 tokens, bfloat16's ratio is off by some 14 %, float16's by 2 %. At 10,000 tokens, which a
# reasoning model writes, the same walk gives 0.86 nats in bfloat16: a factor of 2.4, up or down.
# How many of the samples are still worth something, weighed as whole answers? For log-normal
# weights of spread s, the effective sample size is n · exp(-s²).

# %%
generator = torch.Generator().manual_seed(0)
print("spread s of the log-ratio   ESS of 10,000 samples   exp(-s²)")
for s in (0.02, 0.15, 0.9, 2.0):
    weights = (s * torch.randn(10_000, generator=generator).double()).exp()
    share = float(effective_sample_size(weights)) / 10_000
    exact = float(torch.tensor(-s * s).exp())
    print(f"  {s:24}   {share:20.3f}   {exact:8.3f}")
    assert abs(share - exact) < 0.06

# %% [markdown]
# ## In the loop
#
# A small model reads one-digit sums, worked out step by step. Then it samples in each dtype, and
# scores its own tokens in the same dtype:

# %%
task = Arithmetic("addition", 1)
sizes = TinySizes(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=192)
base, tokenizer = make_base(sizes, seed=0, device="cpu")
sums = demonstrations(task, 2400, random.Random(0), worked_share=0.5, guessed_share=0.5)
train_sft(base, tokenizer, sums, SFTConfig(lr=5e-3), seed=0)

problems = task.sample(16, random.Random(1))
same = [pair for dtype in ("float32", "float16", "bfloat16")
        for pair in measure_mismatch(base, tokenizer, task, problems, sampler=dtype,
                                     learners=[dtype], group=8, max_new_tokens=40)]
print(mismatch_table(same))
float32, float16, bfloat16 = (float(pair.differences.mean()) for pair in same)
print(f"\nbfloat16 is {bfloat16 / float16:.1f} times as far off as float16")
assert float32 < 1e-5 and 4 < bfloat16 / float16 < 14

# %% [markdown]
# The same dtype on both sides is no match: the order of the additions differs. `k1` of sampler and
# learner may be negative, as tutorial 07 says; `k3` may not.
#
# `minirl grpo` reports this as `sampling/...` in every run. Three runs of one step, from the same
# model: in bfloat16, in float16, and in bfloat16 with the same arithmetic on both sides
# (`--batch-invariant true`). There the sampler computes with the learner's kernels, and no sum
# depends on what else is in the batch.

# %%
def one_step(dtype, **how):
    """Return the metrics of one step of GRPO, computed in a dtype."""
    config = GRPOConfig(steps=1, prompts_per_step=8, warmup_steps=0, max_new_tokens=40)
    reports = []
    with compute_in(dtype, torch.device("cpu"), **how):
        train_grpo(copy.deepcopy(base), tokenizer, task, config, seed=0,
                   log=lambda step, metrics: reports.append(metrics))
    return reports[0]


RUNS = {"bfloat16": one_step("bfloat16"), "float16": one_step("float16"),
        "bfloat16, batch-invariant": one_step("bfloat16", batch_invariant=True)}
print("                             |Δ log p|   largest    far    sample share   loss scale")
for name, metrics in RUNS.items():
    difference = "sampling/sampling_logp_difference"
    print(f"  {name:26} {metrics[difference + '/mean']:9.1e} {metrics[difference + '/max']:9.1e}"
          f" {metrics['sampling/frac_far']:6.1%}   {metrics['sampling/sample_share']:10.3f}"
          f"     {metrics.get('loss_scale', 1):8.0f}")
assert RUNS["bfloat16, batch-invariant"]["sampling/sampling_logp_difference/max"] == 0

# %% [markdown]
# Zero, to the bit: what is added in the same order is rounded in the same way. It costs speed, and
# it needs the same kernels on both sides, which a separate sampler seldom has.
#
# ## Break it
#
# float16 is finer, but its range is small. A gradient below $2^{-25}$ = 3e-8 becomes 0, and above
# 65504 it becomes infinite. So the loss is multiplied by a scale, and the gradients are divided by
# it again. `LossScaler` finds the scale by trying: an overflow skips the step and halves it.
# bfloat16 has float32's range, and another trap: **weights** in it. A step of 0.001 from 1 rounds
# back to 1. The weights have to stay in float32 (master weights).

# %%
def trained(dtype, epochs=40, lr=3e-5):
    """Fine-tune the base on 64 sums with its weights kept in a dtype -> the loss in each step, and
    the share of weights that moved."""
    model, losses = copy.deepcopy(base), []

    def keep_in_dtype(state):
        if dtype != "float32":
            for p in state.model.parameters():
                p.data = round_to(p.data, dtype)

    train_sft(model, tokenizer, sums[:64], SFTConfig(
        lr=lr, batch_size=64, epochs=epochs, warmup_steps=0, min_lr_ratio=1.0), seed=0,
        log=lambda step, metrics: losses.append(metrics["loss"]), save=keep_in_dtype)
    starts = [q if dtype == "float32" else round_to(q, dtype) for q in base.parameters()]
    moved = torch.cat([(p != q).flatten() for p, q in zip(model.parameters(), starts, strict=True)])
    return losses, float(moved.double().mean())


kept = {}
for dtype in ("float32", "float16", "bfloat16"):
    losses, moved = trained(dtype)
    kept[dtype] = moved, losses[0] - losses[-1]
    print(f"weights in {dtype:8}: {moved:4.0%} of them moved, and the loss fell by "
          f"{losses[0] - losses[-1]:.4f}")
assert kept["bfloat16"][0] < 0.5 and kept["bfloat16"][1] < 0.8 * kept["float32"][1]

scaler, weight = LossScaler(init_scale=2.0 ** 16, growth_interval=10), torch.nn.Parameter(
    torch.zeros(1))
optimizer, scales, skipped = torch.optim.SGD([weight], lr=0.0), [], []
for step in range(120):
    size = 3.0 if step < 60 else 0.2                       # the gradients become smaller
    gradient = (size * scaler.scale(torch.ones(()))).to(torch.float16).float()
    weight.grad = gradient[None]                           # as float16 has it
    scales.append(scaler.value)
    skipped.append(not scaler.step(optimizer))
    scaler.update()

figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.1))
updates = {dtype: [torch.ones(()).double()] for dtype in ("float32", "float16", "bfloat16")}
for dtype, colour, dash in zip(updates, (GREY, BLUE, RED), ("-", "--", "-."), strict=True):
    for _ in range(100):
        w = updates[dtype][-1] - 1e-3
        updates[dtype].append(w if dtype == "float32" else round_to(w, dtype))
    axes[0].plot(updates[dtype], color=colour, linestyle=dash, label=dtype)
axes[0].set(title="A weight of 1, minus 0.001, 100 times", xlabel="update", ylabel="weight")
axes[0].legend(loc="lower left")
axes[1].step(range(1, 121), scales, where="post", color=BLUE)
over = [i + 1 for i in range(120) if skipped[i]]
axes[1].plot(over, [scales[i - 1] for i in over], linestyle="", marker="x", color=RED,
             label="overflow: no step, half the scale")
axes[1].axvline(61, color=GREY, linewidth=0.8, linestyle=":")
axes[1].set(title="The scale of the loss", xlabel="step (from 61 on: smaller gradients)",
            ylabel="scale", yscale="log", ylim=(8e3, 1.5e6))
axes[1].set_yscale("log", base=2)
axes[1].legend(loc="lower right")
keep(figure, "13_range")
print(f"the weight ends at {', '.join(f'{float(w[-1]):.4f} ({d})' for d, w in updates.items())}")
print(f"skipped steps: {over}; the scale was at most {max(scales[:60]):.0f}, then "
      f"{max(scales[60:]):.0f}")
assert float(updates["bfloat16"][-1]) == 1.0 and abs(float(updates["float16"][-1]) - 0.9) < 0.003

# %% [markdown]
# ## Exercises
#
# Solutions: `tutorials/solutions/13_precision.py`.

# %%
def exercise_1(logp, behavior_logp, adv, mask, cap):
    """Return the mean over tokens of min(π_t/μ_t, cap) A log π_t: policy gradient with truncated
    importance weights (TIS). logp, behavior_logp, adv, mask: (B, T) -> scalar. Compose minirl's
    functions."""
    raise NotImplementedError


def check_1(answer):
    leaf = logp.clone().requires_grad_()
    adv = SCORES[0, :, None].expand_as(leaf)
    value = answer(leaf, behavior_logp, adv, MASK, 1.035)
    slope, = torch.autograd.grad(value, leaf)
    wanted = torch.tensor([2 * 1.035, 1.0283, 0.0])[:, None] / 16  # weight times score, 16 tokens
    came = slope[:3, 1:2]
    assert torch.allclose(came.float(), wanted, atol=1e-4), (
        f"the gradient of the second tokens is {wanted.flatten().tolist()}, and yours is "
        f"{came.flatten().tolist()}")


judge(check_1, exercise_1)


# %%
def exercise_2(pi, mu):
    """Return how large the variance of the weight π(o)/μ(o) is over the sampler's answers, for
    answers of T tokens that are all drawn from the same distributions π and μ.

    pi, mu: (V,) probabilities of a token -> a function of T. The tokens are independent.
    """
    raise NotImplementedError


def check_2(answer):
    pi, mu = torch.tensor([0.5, 0.3, 0.2]).double(), SAMPLER[1].softmax(0)
    variance = answer(pi, mu)
    one = float((pi.square() / mu).sum() - 1)
    for T, wanted in ((1, one), (2, 2 * one + one ** 2), (1000, (1 + one) ** 1000 - 1)):
        came = float(variance(T))
        assert abs(came - wanted) < 1e-6 * max(1, wanted), (
            f"with {T} tokens it is {wanted:.6f}, and yours is {came:.6f}")


judge(check_2, exercise_2)

# %% [markdown]
# With 3 bits, one token has a variance of 0.0042, and a thousand tokens one of 68. That is how
# "exact" becomes useless, and why the repairs that are used cut, mask, or look at each token.
#
# ## Deltas from the paper
#
# | | paper (arXiv:2510.26788) | here |
# |---|---|---|
# | models | 1.5B to 30B | 0.09M; `benchmarks/RESULTS.md` has 0.3M, 10.7M and 135M |
# | float16's mismatch | 24 times smaller than bfloat16's | 7 to 10 times: what three bits give |
# | bfloat16 | collapses on problems that it could solve | the toy does not; it takes 2 or 3 bits |
# | sampler and learner | vLLM, and FSDP | one program; with and without a cache |
# | weights | float32 for the optimizer | the same |

# %% [markdown]
# ## Find the bug
#
# In float16 a step gets gradients that are multiplied by the scale. They must be divided by it, and
# clipped to a norm. This function does both, its author has tested it with a scale of 1, and with
# SGD training crawls (Adam hides it: every gradient is merely clipped). Write a test that passes
# for `unscaled_and_clipped` and fails for this function.

# %%
def unscaled_and_clipped(gradient, scale, max_norm):
    """Return a scaled gradient, (n,), as a step may take it: unscaled, of norm max_norm at most."""
    gradient = gradient / scale
    return gradient * (max_norm / gradient.norm()).clamp(max=1)


def step_with_a_bug(gradient, scale, max_norm):
    """Return a scaled gradient, (n,), as a step may take it: unscaled, of norm max_norm at most."""
    gradient = gradient * (max_norm / gradient.norm()).clamp(max=1)
    return gradient / scale


def exercise_bug(function):
    """Raise AssertionError unless function(gradient, scale, max_norm) is right."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, unscaled_and_clipped, step_with_a_bug)


judge(check_bug, exercise_bug)
