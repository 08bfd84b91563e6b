# %%
# %pip install -q -e ..

# %% [markdown]
# # 02. Sampling, log-probs and the shift by one
#
# *Why does my ratio not start at 1?*
#
# - **Paper**: importance weights for the mismatch of sampler and learner: "FP16 against the
#   mismatch", [arXiv:2510.26788](https://arxiv.org/abs/2510.26788), section 3; top-p: Holtzman et
#   al., [arXiv:1904.09751](https://arxiv.org/abs/1904.09751)
# - **Code**: `minirl/lm/sampling.py`: `sample`; `minirl/lm/logprobs.py`: `token_logprobs`;
#   `minirl/equations/mismatch.py`: `importance_ratio`, `sequence_weights`
# - **Tests**: `tests/lm/test_sampling.py`, `tests/lm/test_logprobs.py`,
#   `tests/equations/test_mismatch.py`
# - **Before this**: 01 (logits, states, the mask)
# - **Time**: 20 s on two CPU cores; 10 s with `MINIRL_FAST=1`
# - **Expect**: ratios within 1e-5 of 1 in float32; with the temperature forgotten, a completion of
#   100 tokens has a weight of about e^-10
# - **Sweep**: `rollout(temperature=T)` against a learner at temperature 1, for T from 0.5 to 1.5:
#   look at the effective sample size
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | ratios before the first update | within 1e-5 of 1 in float32 | the table in "Break it" |
# | `sampling/sampling_logp_difference/mean` | about 1e-6; 1e-2 in bfloat16 | the same table |
# | spread of the weights of whole completions | none | sampler and learner are two policies |

# %%
import doctest
import inspect
import math

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, FAST, GREEN, GREY, RED, judge, judge_test, keep, show
from minirl.equations.kl import exact_kl
from minirl.equations.mismatch import effective_sample_size, importance_ratio, sequence_weights
from minirl.lm import sampling
from minirl.lm.decoding import draw, keep_likeliest
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
# reads them, computes the log-prob of each token, and changes the weights so that good tokens
# become likelier. Many algorithms compare the two by the **ratio**
#
# $$\rho_t = \frac{\pi(y_t \mid x, y_{<t})}{\mu(y_t \mid x, y_{<t})}
#   = \exp(\log \pi - \log \mu)$$
#
# with π the learner's policy and μ the sampler's. Before the first update both have the same
# weights, so every ratio must be 1. In practice it often is not:
#
# - [trlx#107](https://github.com/CarperAI/trlx/issues/107): *Ratio != 1 at start of PPO training*
# - [trl#4159](https://github.com/huggingface/trl/issues/4159): wrong at every temperature but 1
# - [trl#6789](https://github.com/huggingface/trl/issues/6789): biased by top-p and top-k
# - [trl#4772](https://github.com/huggingface/trl/issues/4772): *explosion* of the ratio
# - [NeMo-Aligner#68](https://github.com/NVIDIA/NeMo-Aligner/issues/68): padding changes log-probs
# - [minimind#814](https://github.com/jingyaogong/minimind/pull/814): a softmax in 16 bits
#
# The short answer: the learner did not compute the probability with which the sampler drew. There
# are at least six ways to get there, and each leaves its own trace. That the ratio starts at 1 is
# the cheapest test of a code base for RL.

# %% [markdown]
# ## By hand
#
# **One distribution.** After "7+5=" a policy gives the next token the probabilities of the first
# row below. The **temperature** T divides the logits before the softmax, which raises probabilities
# to the power 1/T. **Top-k** keeps the k likeliest tokens, **top-p** the fewest whose probabilities
# reach p. What is kept is divided by its sum.
#
# | | `1` | `2` | `3` | EOS | |
# |---|---|---|---|---|---|
# | policy | 1/2 | 1/4 | 1/8 | 1/8 | |
# | T = 0.5 | 16/22 | 4/22 | 1/22 | 1/22 | squares, divided by their sum |
# | T = 2 | 0.369 | 0.261 | 0.185 | 0.185 | roots, divided by their sum |
# | top-k = 2 | 2/3 | 1/3 | 0 | 0 | |
# | top-p = 0.8 | 4/7 | 2/7 | 1/7 | 0 | 1/2 + 1/4 is not enough, with 1/8 it is |
#
# Now let a learner read a token that was drawn at T = 0.5, and forget the temperature. Its ratio is
# the first row over the second: 0.69 for `1`, 1.38 for `2`, 2.75 for `3` and for EOS. The mean of
# the ratio, under the sampler, is 16/22 · 0.69 + 4/22 · 1.38 + 2/22 · 2.75 = 1: nothing strange.
# But the mean of its *logarithm* is -0.12. It is negative for any two different policies, as minus
# a KL divergence (tutorial 07), which says how far two distributions are apart:
#
# $$E_\mu[\log \rho] = -\text{KL}(\mu \,\|\, \pi) \le 0$$
#
# With top-p the ratio is 7/8 for *every* token that can be drawn, and its mean is 7/8, not 1. A
# ratio corrects for a wrong distribution, but it cannot correct for tokens that are never drawn.

# %%
P = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8])                                # (V,)
NAMES = ["1", "2", "3", "EOS"]
OPTIONS = {"policy": (1.0, 0, 1.0), "T = 0.5": (0.5, 0, 1.0), "T = 2": (2.0, 0, 1.0),
           "top-k = 2": (1.0, 2, 1.0), "top-p = 0.8": (1.0, 0, 0.8)}
EXPECTED = {"policy": [1 / 2, 1 / 4, 1 / 8, 1 / 8], "T = 0.5": [16 / 22, 4 / 22, 1 / 22, 1 / 22],
            "T = 2": [0.3694, 0.2612, 0.1847, 0.1847], "top-k = 2": [2 / 3, 1 / 3, 0, 0],
            "top-p = 0.8": [4 / 7, 2 / 7, 1 / 7, 0]}
N = 100_000
uniform = torch.rand(N, generator=torch.Generator().manual_seed(0))           # (N,)
mu = {}
print("             probabilities                   drawn          E[ratio]   E[log ratio]")
for name, (temperature, top_k, top_p) in OPTIONS.items():
    logp = keep_likeliest((P.log() / temperature).log_softmax(-1)[None], top_k, top_p)  # (1, V)
    mu[name] = logp.exp()[0]                                                  # (V,)
    ids, _ = draw(P.log().expand(N, 4), uniform, temperature, top_k, top_p)  # step in: draw
    share = torch.bincount(ids, minlength=4) / N
    can = mu[name] > 0
    ratio = P[can] / mu[name][can]
    mean, mean_log = (mu[name][can] * ratio).sum(), (mu[name][can] * ratio.log()).sum()
    print(f"{name:12}", " ".join(f"{x:.3f}" for x in mu[name].tolist()), "  ",
          " ".join(f"{x:.3f}" for x in share.tolist()), f"   {mean:.3f}      {mean_log:6.3f}")
    torch.testing.assert_close(mu[name], torch.tensor(EXPECTED[name]), atol=1e-4, rtol=0)
    assert (share - mu[name]).abs().max() < 0.01
    assert abs(mean - {"top-k = 2": 3 / 4, "top-p = 0.8": 7 / 8}.get(name, 1.0)) < 1e-6
    assert mean_log < 1e-6 and (name != "T = 0.5" or abs(mean_log - -0.1226) < 1e-4)

# %% [markdown]
# **The shift by one.** A model reads tokens and returns logits of the same length. The logits at
# slot t come from the tokens up to t, so they are about the token at slot t + 1. Here is a policy
# that is a table: behind each token its successor in `7 + 5 =` has probability 0.9, every other
# token 1/30.
#
# | slot | token | its logits are about | log-prob of the token | found at slot |
# |---|---|---|---|---|
# | 0 | `7` | slot 1 | 0, as nothing predicts it | |
# | 1 | `+` | slot 2 | log 0.9 = -0.105 | 0 |
# | 2 | `5` | slot 3 | log 0.9 = -0.105 | 1 |
# | 3 | `=` | slot 4 | log 0.9 = -0.105 | 2 |
#
# Forget the shift, and each token is scored by the logits that it caused itself: log 1/30 = -3.40.
# Nothing raises an error, as all shapes fit. In this library slot t of *every* tensor is about
# emitting token t, and the shift is in one file, `minirl/lm/logprobs.py`.

# %%
class Table(torch.nn.Module):
    """A policy that looks at the last token alone. A module with these two is enough for
    token_logprobs."""

    def __init__(self, probabilities):
        super().__init__()
        self.lm_head = torch.nn.Linear(*probabilities.shape, bias=False)
        self.lm_head.weight.data = probabilities.log().T.contiguous()

    def hidden(self, tokens):
        return torch.nn.functional.one_hot(tokens, len(self.lm_head.weight)).float()


successor = torch.full((4, 4), 1 / 30)
successor[torch.arange(4), (torch.arange(4) + 1) % 4] = 0.9
table, text = Table(successor), torch.tensor([[0, 1, 2, 3]])                  # 7 + 5 =
with torch.no_grad():
    logp = token_logprobs(table, text)                                        # (1, 4)
    logits = table.lm_head(table.hidden(text))                                # (1, 4, V)
unshifted = logits.log_softmax(-1).gather(2, text[..., None]).squeeze(2)      # the mistake, (1, 4)
print("with the shift:   ", [round(x, 3) for x in logp[0].tolist()])
print("without the shift:", [round(x, 3) for x in unshifted[0].tolist()])
torch.testing.assert_close(logp, torch.tensor([[0.0, 1, 1, 1]]) * math.log(0.9))
torch.testing.assert_close(unshifted, torch.full((1, 4), math.log(1 / 30)))

# %% [markdown]
# ## The function
#
# A sampler in its plainest form. It stands in the docstring of `minirl/lm/sampling.py`, where a
# test runs it. For each token it reads the whole text again; `sample` draws from the same
# distribution and reads nothing twice.

# %%
plain = doctest.DocTestParser().get_examples(sampling.__doc__)[0].source
names = {"torch": torch}
exec(plain, names)
print(plain)

# %%
show(token_logprobs)

# %% [markdown]
# A transformer with random weights is a policy like any other, so we need not train one: sampler
# and learner must agree on all of them. Three prompts of different lengths, a few completions each,
# and three temperatures. `behavior_logp` is what the sampler says of its own draws.

# %%
model, tokenizer = make_base(TinySizes(hidden_size=64, num_heads=4, intermediate_size=256,
                                       max_seq_len=128), seed=0, device="cpu")
PROMPTS = [tokenizer.encode_prompt(text) for text in ("7+5=", "12+34=", "1+2+3+4=")]
NEW, ROWS = 100, 12 if FAST else 40                    # tokens; completions of each prompt


def rollout(eos_id=None, pad_id=tokenizer.pad_id, **options):
    """Sample completions of 100 tokens, or to EOS where one is given."""
    return sample(model, PROMPTS, group=ROWS, max_new_tokens=NEW, eos_id=eos_id, pad_id=pad_id,
                  generator=torch.Generator().manual_seed(0), **options)


greedy = rollout(temperature=0).completion_ids()[0][:20]
assert greedy == names["plain_sample"](model, PROMPTS[0], 20, eos_id=-1, temperature=1e-6)

for temperature in (0.7, 1.0, 1.5):
    r = rollout(temperature=temperature)
    with torch.no_grad():
        logp = token_logprobs(model, r.tokens, mask=r.mask, temperature=temperature)  # (B, T)
    ratio = importance_ratio(logp, r.behavior_logp)  # step in: importance_ratio
    largest = (ratio[r.mask] - 1).abs().max().item()
    print(f"temperature {temperature}: {r.mask.sum()} tokens, ratios within {largest:.1e} of 1")
    assert largest < 1e-5 and bool((ratio[~r.mask] == 1).all())

# %%
show(importance_ratio)

# %% [markdown]
# **Padding.** A batch is a rectangle, and completions end where they like. The sampler pads prompts
# on the *left*, so that all rows write their next token into the same column. The learner gets rows
# padded on the *right*. Neither may change a log-prob: a row that is sampled and scored in company
# has the log-probs that it has alone. And the value of the padding must not matter, even if it is
# EOS, as in the many models that have no padding token. A mask made of lengths sees to that; a mask
# made of token values takes EOS away, and with it the learning to stop (tutorial 01).

# %%
eos = tokenizer.eos_id
apart, same = rollout(eos_id=eos), rollout(eos_id=eos, pad_id=eos)
with torch.no_grad():
    logp = token_logprobs(model, same.tokens, mask=same.mask)
    rows = range(0, len(same), 7)
    alone = [token_logprobs(model, same.rows(torch.tensor([i])).tokens,
                            mask=same.rows(torch.tensor([i])).mask).sum() for i in rows]
difference = max(abs(float(x - logp[i].sum())) for x, i in zip(alone, rows, strict=True))
ended = (same.mask & (same.tokens == eos)).sum().item()
by_value = same.mask & (same.tokens != eos)
print(f"{len(same)} completions, {ended} of them end with EOS, lengths "
      f"{same.completion_lengths.min()} to {same.completion_lengths.max()}")
print(f"log-prob of a completion in a batch and alone: {difference:.1e} apart at most")
print(f"EOS under a mask made of lengths: {ended}, and under one made of token values: "
      f"{(same.tokens[by_value] == eos).sum()}")
assert torch.equal(apart.tokens[apart.mask], same.tokens[same.mask])
assert torch.equal(apart.behavior_logp, same.behavior_logp)
assert ended == (~same.truncated).sum() > 3 and difference < 1e-3

# %% [markdown]
# ## Picture
#
# What the options do to one distribution. The temperature changes all probabilities and keeps every
# token possible. Top-k and top-p make the unlikely ones impossible.

# %%
figure, axes = plt.subplots(1, 5, figsize=(9.6, 2.5), sharey=True)
for axis, (name, values) in zip(axes, mu.items(), strict=True):
    axis.bar(NAMES, values.tolist(), color=GREY if name == "policy" else BLUE, width=0.7)
    axis.step([-0.5, *range(4), 3.5], [0.5, *P.tolist(), 1 / 8], where="mid", color="black",
              linewidth=1, linestyle="--")
    for i, value in enumerate(values.tolist()):
        axis.text(i, max(value, P[i]) + 0.02, f"{value:.3f}".lstrip("0") if value else "0",
                  ha="center", fontsize=8)
    axis.set(title=name, ylim=(0, 0.85))
    axis.grid(False)
axes[0].set_ylabel("probability")
keep(figure, "02_distribution")

# %% [markdown]
# ## In the loop
#
# `train_grpo` samples and scores at `config.temperature`, in stages 1, 3 and 4. It has no top-p, as
# a truncated sampler is not the policy that is trained; `minirl sample` has it. Before training,
# the page sets dropout to 0.
#
# Its own ratio (tutorial 05) compares the learner with the learner before the update, and that one
# starts at 1 whatever the sampler did. So it hides a mismatch instead of showing it. That is why
# the page also reports the mean difference between learner and sampler, under TRL's name for it.

# %%
source = inspect.getsource(train_grpo).splitlines()
print("\n".join(line.strip() for line in source if "temperature" in line or "dropout" in line))

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

# %% [markdown]
# In bfloat16 even the honest loop does not agree with itself. A bfloat16 number has 8 significant
# bits, so near 10 its steps are 1/16 wide, and a logit of 10.03 becomes 10. The sampler reads one
# token at a time and the learner a whole text, so sums are taken in another order and are rounded
# to other numbers.

# %%
pair = torch.tensor([10.03, 10.0])
print(f"logits 10.03 and 10, in bfloat16: {pair.bfloat16().tolist()}; "
      f"the ratio of their probabilities is {(pair[0] - pair[1]).exp():.3f}, rounded: 1")
assert pair.bfloat16().tolist() == [10.0, 10.0]

# %% [markdown]
# ## Break it
#
# Five ways to break the agreement, and none of them raises an error. The **weight** of a completion
# is the product of its tokens' ratios, so its logarithm is the *sum* of theirs, and small
# deviations add up over 100 tokens. The **effective sample size** (ESS) says how many completions
# the weights leave, as a share of all: if one weight is much larger than all others, one is left.

# %%
show(sequence_weights)

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
print("                               log ratio of a token            of 100 tokens      ESS")
print("                           mean   spread    lowest  highest     mean   spread   share")
for name, (d, weights) in CAUSES.items():
    total, ess = d.sum(1), effective_sample_size(weights.double()) / len(weights)
    print(f"{name:24} {d.mean():8.4f} {d.std():8.4f}  {d.min():8.3f} {d.max():8.3f} "
          f"{total.mean():8.2f} {total.std():8.2f}   {ess:5.3f}")

right, forgotten, truncated, dropped, rounded, unshifted = (d for d, _ in CAUSES.values())
assert right.abs().max() < 1e-5
assert forgotten.mean() < -0.05 and abs(forgotten.exp().mean() - 1) < 0.1
assert truncated.max() < 1e-5 and truncated.min() > math.log(0.95) - 1e-4
assert dropped.mean() < -0.05 and unshifted.mean() < -0.05 and unshifted.std() > 1
assert abs(rounded.mean()) < 0.1 * rounded.std()
assert 0.6 < rounded.sum(1).std() / (rounded.std() * NEW ** 0.5) < 1.5, "it grows with the root"

# %% [markdown]
# Each cause has its own trace:
#
# | cause | log ratio of a token | of a completion | remedy |
# |---|---|---|---|
# | none | 0, within 1e-5 | 0 | |
# | temperature | below 0 on average, wide | falls, spreads | give it to the learner |
# | top-p, top-k | log of the kept share, below 0 | falls, hardly spreads | train without them |
# | dropout | below 0 on average, wide | falls, spreads | switch it off |
# | bfloat16 | 0 on average, narrow | spreads with the *root* of the length | tutorial 13 |
# | no shift | below 0 on average, the widest | falls, spreads | one shift in one place |
#
# A sum that falls says that sampler and learner are two policies: each token adds minus their KL
# divergence on average. Rounding has hardly any direction, so its sum walks at random. ESS does not
# see everything: top-p makes all weights too small, but all by the same share.

# %%
@torch.no_grad()
def divergence(r):
    """Return the exact KL(μ || π) in each visited state, sampler at 0.7, learner at 1: (B, 100)."""
    logits = model(r.tokens)                                                  # (B, T, V)
    kl = exact_kl(logits / 0.7, logits)                                       # (B, T)
    return kl[r.mask.roll(-1, 1)].view(len(r), NEW)    # a token's state is the slot before it


kl = divergence(cold)
print(f"temperature forgotten: mean log ratio {forgotten.mean():.3f}, "
      f"exact expectation, minus the KL: {-kl.mean():.3f}")
assert abs(forgotten.mean() + kl.mean()) < 0.02

positions = torch.arange(1, NEW + 1)
figure, axes = plt.subplots(1, 2, figsize=(7.6, 2.8))
for d, colour, style, label in (
        (right, GREY, "-", "nothing wrong"), (truncated, GREEN, "-.", "top-p 0.95"),
        (forgotten, BLUE, "-", "temperature forgotten"), (dropped, RED, "--", "dropout 0.05")):
    walk = d.cumsum(1)                                                        # (B, 100)
    low, high = walk[:, 9::10].quantile(torch.tensor([0.1, 0.9]), dim=0)
    axes[0].fill_between(positions[9::10], low, high, color=colour, alpha=0.15, linewidth=0)
    axes[0].plot(positions, walk.mean(0), color=colour, linestyle=style, label=label)
axes[0].plot(positions, -kl.mean(0).cumsum(0), color="black", linestyle=":", linewidth=1,
             label="minus the KL, exact")
axes[0].set(title="Two policies: the sum falls", xlabel="tokens of the completion",
            ylabel="log weight, mean and 80 % band")
axes[0].legend(loc="lower left")
walks = rounded.cumsum(1)[::len(rounded) // 6, 9::10]                          # six completions
axes[1].plot(positions[9::10], walks.T, color=AMBER, linestyle="-", linewidth=1)
for sign in (-1, 1):
    axes[1].plot(positions, sign * rounded.std() * positions ** 0.5, color="black", linestyle="--",
                 linewidth=1.2)
axes[1].text(100, 0.235, "dashed: ± spread of a token · √length", ha="right", fontsize=8)
axes[1].set(ylim=(-0.3, 0.3), title="bfloat16: six completions walk at random",
            xlabel="tokens of the completion", ylabel="log weight")
keep(figure, "02_causes")

# %% [markdown]
# The forgotten temperature once more, as ratios. Token by token it looks harmless: the mean ratio
# is 1. But of the completions' weights nearly all are close to 0, and very few carry everything.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.0))
axes[0].hist(forgotten.exp().flatten().clamp(max=3.2).numpy(), bins=64, range=(0, 3.2), color=BLUE,
             density=True)
axes[0].axvline(1, color="black", linestyle="--", linewidth=1.2)
axes[0].set(title="Ratio of a token", xlabel="ratio (the last bar: 3.2 and more)", ylabel="density")
axes[0].text(1.04, axes[0].get_ylim()[1] * 0.92, "where all should be", fontsize=8)
for n, colour in ((10, GREEN), (30, AMBER), (100, BLUE)):
    axes[1].hist(forgotten[:, :n].sum(1).numpy(), bins=30, range=(-26, 6), color=colour, alpha=0.6,
                 density=True, label=f"{n} tokens")
axes[1].axvline(0, color="black", linestyle="--", linewidth=1.2)
axes[1].set(title="Weight of a completion", xlabel="log weight", ylabel="density")
axes[1].legend(loc="upper left")
keep(figure, "02_weights")
for n in (1, 10, 30, 100):
    w = forgotten[:, :n].sum(1).double().exp()
    print(f"{n:3} tokens: ESS {effective_sample_size(w) / len(w):.2f} of the completions")
assert effective_sample_size(forgotten[:, :1].sum(1).exp()) > 0.5 * len(forgotten)
assert effective_sample_size(forgotten.sum(1).double().exp()) < 0.25 * len(forgotten)

# %% [markdown]
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


def exercise_3(mu, pi):
    """The expected ratio under the sampler, two lists of probabilities over the same tokens."""
    raise NotImplementedError


def check_3(answer):
    for mu, pi, expected in (([0.8, 0.2], [0.5, 0.5], 1.0),
                             ([4 / 7, 2 / 7, 1 / 7, 0.0], [1 / 2, 1 / 4, 1 / 8, 1 / 8], 7 / 8),
                             ([0.0, 1.0], [0.9, 0.1], 0.1)):
        came = answer(mu, pi)
        assert abs(came - expected) < 1e-9, f"sampler {mu}, learner {pi}: {expected}, not {came}"


judge(check_1, exercise_1)
judge(check_2, exercise_2)
judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | in the large | here |
# |---|---|---|
# | sampler and learner | two programs, such as vLLM and FSDP | one model, run in two ways |
# | precision | bfloat16 or float16 in both | float32, and bfloat16 to see what it does |
# | policy | trained | random weights, as agreement does not depend on them |
# | weights | truncated or masked at a cap | shown without a cap; see tutorial 13 |

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
