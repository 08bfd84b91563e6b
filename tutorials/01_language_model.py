# %%
# %pip install -q -e ..

# %% [markdown]
# # 01. A language model is a policy
#
# *What is a policy here: what are its states and actions, and when does an episode end?*
#
# - **Paper**: InstructGPT, [arXiv:2203.02155](https://arxiv.org/abs/2203.02155), section 3.5 and
#   appendix C.1; positions in attention: RoFormer,
#   [arXiv:2104.09864](https://arxiv.org/abs/2104.09864), section 3.2.2
# - **Code**: `minirl/lm/model.py`: `Transformer`; `minirl/train/sft.py`: `train_sft`;
#   `minirl/lm/rollouts.py`: `completion_batch`; `minirl/equations/schedules.py`: `cosine_to_floor`
# - **Tests**: `tests/lm/test_model.py`, `tests/train/test_sft.py`, `tests/lm/test_rollouts.py`
# - **Before this**: 00 (a policy, and the expected reward)
# - **Time**: 40 s on two CPU cores; 15 s with `MINIRL_FAST=1`
# - **Expect**: the validation loss of SFT is least after 0 to 2 of 16 epochs; the expected reward
#   grows on, from 0.54 to 0.65 or more
# - **Sweep**: `PEOPLE` from 0.5 to 1, the share of people's answers that are right: look at the
#   epoch of the least validation loss, and at the expected reward
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | slots under the mask | completion and EOS, no prompt | the loss is on the wrong tokens |
# | completions that were cut off | close to none | EOS is not trained |
# | how a checkpoint is chosen | by its reward | its validation loss says something else |

# %%
import copy
import inspect
import math
import random
import textwrap
from itertools import product

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, FAST, GREEN, GREY, RED, judge, judge_test, keep, show
from minirl.equations.reduce import aggregate, masked_mean
from minirl.equations.schedules import cosine_to_floor
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import ModelConfig, Transformer, before_attention
from minirl.lm.rollouts import completion_batch
from minirl.lm.sampling import sample
from minirl.lm.tiny import TinySizes, make_base
from minirl.train.encoding import encode_pairs
from minirl.train.instructgpt import DEMONSTRATIONS_SFT
from minirl.train.sft import SFTConfig, train_sft

torch.set_num_threads(1)               # the models are so small that a second one would only wait

# %% [markdown]
# ## The question
#
# The bandit of tutorial 00 chose one of three arms. A language model writes text. What is the arm
# here, and what is the policy? People ask it before anything else:
#
# - *What are state, action and reward for a text?*
#   [DeepSpeedExamples#552](https://github.com/deepspeedai/DeepSpeedExamples/issues/552)
# - *What comes before RL: a base model and SFT, or a model that is tuned already?*
#   [unsloth#2732](https://github.com/unslothai/unsloth/issues/2732)
# - *Why does my fine-tuned model never stop?*
#   [trl#1623](https://github.com/huggingface/trl/issues/1623)
# - *The validation loss rises, and yet the outputs improve?*
#   [gap-text2sql#10](https://github.com/awslabs/gap-text2sql/issues/10)
#
# The short answers. The **state** is the text so far, the **action** is the next token, and the
# **policy** is the model's softmax: a probability for each token of the vocabulary. An **episode**
# is one answer. It ends when the model chooses a special token, EOS ("end of sequence").
# Supervised fine-tuning (SFT) gives the policy its first behaviour, the choice of EOS included.
# And a loss is not a reward.

# %% [markdown]
# ## By hand
#
# Here is a transformer so small that a pocket calculator can follow it. The vocabulary has four
# tokens, and each is a direction in the plane, 90° from the one before: `7` at 45°, `+` at 135°,
# `5` at 225°, `=` at 315°. There is one layer with one head, and its feed-forward step is switched
# off. A norm stands before it, which scales the mean square to 1. That of (1, 1) is 1 already.
#
# **Attention** lets a token read itself and the tokens before it. Each token sends a **query**, and
# each has a **key** and a **value**. Here the query is twice the embedding; key and value are the
# embedding itself. Before query and key are compared, both are turned by their position, one radian
# per slot (RoPE). So a score depends on the angle between two tokens and on their distance:
#
# $$\text{score} = \frac{q \cdot k}{\sqrt 2} = \frac{2\sqrt2 \cdot \sqrt2}{\sqrt2}
# \cos(\text{angle} + \text{distance}) = 2.83 \cos(\text{angle} + \text{distance})$$
#
# For the last token of the text `7+5`:
#
# | `5` reads | angle | distance | score | exp(score) | weight |
# |---|---|---|---|---|---|
# | `7` | 180° | 2 rad | 2.83 cos(3.142 + 2) = 1.18 | 3.24 | 0.16 |
# | `+` | 90° | 1 rad | 2.83 cos(1.571 + 1) = -2.38 | 0.09 | 0.00 |
# | `5` | 0° | 0 rad | 2.83 cos(0) = 2.83 | 16.92 | 0.84 |
#
# Scores become weights by a **softmax**: exp of each, divided by their sum. The token reads the
# weighted mean of the values, 0.16 (1, 1) + 0.00 (-1, 1) + 0.84 (-1, -1) = (-0.68, -0.67). The
# output matrix turns that by 90° and makes it three times as long: (2.01, -2.04). This is *added*
# to the embedding: (-1, -1) + (2.01, -2.04) = (1.01, -3.04). The last norm makes that
# (0.45, -1.34). The **logits** are its products with the four embeddings, and a second softmax
# makes probabilities of them:
#
# | next token | logit | exp(logit) | probability |
# |---|---|---|---|
# | `7` (1, 1) | -0.89 | 0.41 | 0.05 |
# | `+` (-1, 1) | -1.79 | 0.17 | 0.02 |
# | `5` (-1, -1) | 0.89 | 2.45 | 0.27 |
# | `=` (1, -1) | 1.79 | 5.98 | 0.66 |
#
# This policy writes `=` after `7+5` with probability 0.66.

# %%
VOCABULARY = ["7", "+", "5", "="]
EMBEDDING = [[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]
hand = Transformer(ModelConfig(vocab_size=4, hidden_size=2, num_layers=1, num_heads=1,
                               rms_norm_eps=0.0)).double()
attention = hand.layers[0].self_attn
with torch.no_grad():
    hand.embed_tokens.weight.copy_(torch.tensor(EMBEDDING))    # the output matrix is the same one
    attention.q_proj.weight.copy_(2 * torch.eye(2))
    attention.k_proj.weight.copy_(torch.eye(2))
    attention.v_proj.weight.copy_(torch.eye(2))
    attention.o_proj.weight.copy_(3 * torch.tensor([[0.0, -1.0], [1.0, 0.0]]))  # 90°, 3 times
    hand.layers[0].mlp.down_proj.weight.zero_()                # no feed-forward step


@torch.no_grad()
def attention_weights(model, tokens):
    """Return how much each token reads of each other one in the first layer: (H, T, T)."""
    c, x = model.config, model.embed_tokens(tokens)                           # (T, d)
    cos, sin = model.rope(torch.arange(len(tokens)), x.dtype)
    w = model.layers[0].weights()
    q, k, _ = before_attention(x, cos, sin, w, c.num_heads, c.num_kv_heads, c.rms_norm_eps)
    scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(c.head_dim)       # (H, T, T)
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)            # not written yet
    return scores.masked_fill(later, -math.inf).softmax(-1)


text = torch.tensor([0, 1, 2])                                                # 7 + 5
weights = attention_weights(hand, text)[0]                                    # (T, T)
with torch.no_grad():
    logits = hand(text[None])[0]                                              # (T, V)
p = logits.softmax(-1)                                                        # (T, V)
print("what `5` reads:    ", "   ".join(
    f"{VOCABULARY[i]} {weight:.3f}" for i, weight in enumerate(weights[2].tolist())))
print("logits after `7+5`:", "   ".join(
    f"{token} {x:.3f}" for token, x in zip(VOCABULARY, logits[2].tolist(), strict=True)))
print("probabilities:     ", "   ".join(
    f"{token} {x:.3f}" for token, x in zip(VOCABULARY, p[2].tolist(), strict=True)))
torch.testing.assert_close(weights[2], torch.tensor([0.160, 0.005, 0.835]).double(),
                           atol=5e-4, rtol=0)
torch.testing.assert_close(logits[2], torch.tensor([-0.895, -1.789, 0.895, 1.789]).double(),
                           atol=2e-3, rtol=0)
torch.testing.assert_close(p[2], torch.tensor([0.05, 0.02, 0.27, 0.66]).double(),
                           atol=5e-3, rtol=0)

# %% [markdown]
# The same forward pass gave a row of logits for *every* prefix: slot t holds the policy in the
# state "the text up to slot t". So one pass over a finished text tells how likely each of its
# tokens was, when it was written. The probability of a whole text is the product of these, and its
# **log-prob** is their sum:
#
# $$\log \pi(y \mid x) = \sum_t \log \pi(y_t \mid x, y_{<t})$$
#
# As an episode, with the prompt x = `7` and the completion y = `+5=`:
#
# | state | action | probability | log-prob |
# |---|---|---|---|
# | `7` | `+` | 0.722 | -0.325 |
# | `7+` | `5` | 0.720 | -0.328 |
# | `7+5` | `=` | 0.664 | -0.409 |
# | | | product 0.345 | sum -1.063 |
#
# A text as a sequence of states and actions is a **trajectory**. The next state is the old one with
# the action behind it, so nothing is random but the policy.

# %%
episode = torch.tensor([[0, 1, 2, 3]])                                        # 7 + 5 =
with torch.no_grad():
    logp = token_logprobs(hand, episode)  # step in: token_logprobs
print("log-prob of each token:", [round(x, 3) for x in logp[0].tolist()], "(the first is given)")
print(f"sum {logp.sum():.3f}, probability of the completion {logp.sum().exp():.3f}")
assert [round(x, 3) for x in logp[0].tolist()] == [0, -0.325, -0.328, -0.409]
assert round(logp.sum().item(), 3) == -1.063 and round(logp.sum().exp().item(), 3) == 0.345

continuations = torch.tensor([[0, *rest] for rest in product(range(4), repeat=3)])    # (64, 4)
with torch.no_grad():
    total = token_logprobs(hand, continuations).sum(1).exp().sum().item()
print(f"all {len(continuations)} continuations of `7` by three tokens: {total:.6f}")
assert abs(total - 1) < 1e-9

# %% [markdown]
# ## The function
#
# From here on the model is a real one, if tiny: two layers with four heads each, and a vocabulary
# of all bytes and a few special tokens. It is to answer sums, such as "7+5=". **Supervised
# fine-tuning** takes pairs of a prompt and a completion that a person wrote (a **demonstration**),
# and raises the log-prob of the completion. The prompt is given by the world, not chosen by the
# policy, so it has no part in the loss. EOS is chosen, so it has. A **mask** says which slots
# count:

# %%
show(completion_batch)

# %%
SIZES = TinySizes(hidden_size=64, num_heads=4, intermediate_size=256, max_seq_len=32)
model, tokenizer = make_base(SIZES, seed=0, device="cpu")
print(f"{model.num_parameters():,} parameters, {tokenizer.vocab_size} tokens")
assert 140_000 < model.num_parameters() < 160_000
prompts, completions = encode_pairs(tokenizer, [("7+5=", "12"), ("2+3=", "5")], 32)
tokens, mask = completion_batch(  # step in: completion_batch
    prompts, completions, tokenizer.pad_id, "cpu")                            # (2, 8) each


def row(entries, width=6):
    return "".join(f"{entry:>{width}}" for entry in entries)


for i in range(2):
    print("token ", row(tokenizer.token(t) for t in tokens[i].tolist()))
    print("mask  ", row(mask[i].int().tolist()))
assert mask.int().tolist() == [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 0]]
assert tokens[mask].tolist() == [*tokenizer.encode("12"), tokenizer.eos_id,
                                 *tokenizer.encode("5"), tokenizer.eos_id]

# %% [markdown]
# The loss is minus the mean of the log-probs under the mask. Which logits does it reach? Those
# about the token at slot t stand in the slot *before* it, t - 1 (tutorial 02 is about this shift).
# So the gradient must be zero on all of the prompt but its last slot, whose logits are about the
# first token of the completion, and zero on the slot of EOS, behind which nothing comes.

# %%
show(masked_mean)


# %%
class LastStates(torch.nn.Module):
    """A model whose last hidden states, from which the logits come, are a leaf: we can look at
    their gradient."""

    def __init__(self, model, tokens):
        super().__init__()
        self.lm_head = model.lm_head
        self.states = model.hidden(tokens).detach().requires_grad_()          # (B, T, d)

    def hidden(self, tokens):
        return self.states


leaf = LastStates(model, tokens)
loss = -masked_mean(token_logprobs(leaf, tokens, mask=mask), mask)
loss.backward()
reached = leaf.states.grad.norm(dim=-1)                                       # (2, 8)
for i in range(2):
    print("token   ", row((tokenizer.token(t) for t in tokens[i].tolist()), 7))
    print("gradient", row((f"{x:.2f}" if x else "0" for x in reached[i].tolist()), 7))
assert (reached > 0).int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 0, 0]]
assert torch.equal(reached > 0, mask.roll(-1, 1)), "one slot before each token under the mask"

# %% [markdown]
# ## Picture
#
# The model that we followed by hand. On the left its tokens as directions, turned by their
# positions; the score is large where a key points where the query points. In the middle, what each
# token reads. On the right the policy in each of the three states.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.1), width_ratios=[1.1, 1.0, 1.1])
circle = axes[0]
circle.add_patch(plt.Circle((0, 0), math.sqrt(2), fill=False, color=GREY, alpha=0.4))
arrows = []
for i, token in enumerate("7+5"):
    angle = math.radians(45 + 90 * i) + i
    arrows.append((f"key of {token}", math.sqrt(2), angle, (BLUE, RED, GREEN)[i], "-"))
arrows.append(("query of 5", 2 * math.sqrt(2), angle, AMBER, "--"))
for (label, length, angle, colour, style), (x, y) in zip(
        arrows, ((1.0, 1.6), (-1.7, 0.25), (0.3, -0.85), (2.0, -1.75)), strict=True):
    end = length * math.cos(angle), length * math.sin(angle)
    circle.annotate("", end, (0, 0), zorder=3 - length, arrowprops=dict(
        arrowstyle="-|>", color=colour, lw=2, linestyle=style, shrinkA=0, shrinkB=0))
    circle.text(x, y, label, color=colour, ha="center", fontsize=9)
circle.set(xlim=(-2.4, 3.0), ylim=(-2.2, 2.2), aspect="equal", xticks=[], yticks=[],
           title="Keys and a query, turned")
circle.grid(False)
for spine in circle.spines.values():
    spine.set_visible(False)


def heat(axis, values, columns, rows, title, xlabel, ylabel):
    """Draw a table of probabilities, with those of at least 0.005 written out."""
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in product(range(values.shape[0]), range(values.shape[1])):
        if values[i, j] >= 0.005:
            axis.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8,
                      color="white" if values[i, j] > 0.55 else "black")
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.grid(False)


heat(axes[1], weights.numpy(), list("7+5"), list("7+5"), "Attention", "is read", "token")
heat(axes[2], p.T.numpy(), ["7", "7+", "7+5"], VOCABULARY, "The policy", "state", "next token")
keep(figure, "01_by_hand")

# %% [markdown]
# ## In the loop
#
# `train_sft` has the three stages of every offline page: batch, update, report. Its second one is
# the loss from above, with the completion tokens of the whole batch as `total`:

# %%
source = inspect.getsource(train_sft)
stage = source[source.index("        # 2. update"):source.index("        # 3. report")]
print(textwrap.dedent(stage))

# %% [markdown]
# The recipe is InstructGPT's (appendix C.1): 16 epochs, dropout of 0.2 on what each layer adds, and
# a learning rate that falls along a cosine to 10 % of its first value, without a warm-up.

# %%
show(cosine_to_floor)

# %%
recipe = DEMONSTRATIONS_SFT
steps = recipe.epochs * math.ceil(256 / recipe.batch_size)
factors = [cosine_to_floor(s, steps, floor=recipe.min_lr_ratio) for s in (0, steps // 2, steps - 1)]
print(f"epochs {recipe.epochs}, dropout {recipe.dropout}, warm-up {recipe.warmup_steps} steps, "
      "learning rate", ", ".join(f"{recipe.lr * factor:.2e}" for factor in factors))
assert (recipe.epochs, recipe.dropout, recipe.warmup_steps) == (16, 0.2, 0)
assert factors[0] == 1 and abs(factors[1] - 0.55) < 0.01 and abs(factors[2] - 0.1) < 1e-9

# %% [markdown]
# A **base model** has only read text; nobody has shown it what to do. Ours has read all 100 sums of
# one-digit numbers, half of the time with the right answer, and half of the time with the
# difference: "7+5=2". So it knows both tables, and does not know which one is wanted. People then
# show it, on 70 of the sums. They err, too: three in ten of *their* answers are differences.
#
# The other 30 sums, "7+5=" among them, are held out for two measurements. Both are exact, as a
# question has two answers that people give, and the model tells the probability of each.
#
# - The **validation loss** is the expected loss on people's answers:
#   -0.7 log π(sum | question) - 0.3 log π(difference | question), averaged over questions.
# - The **expected reward** is that of tutorial 00, with reward 1 for the right answer and 0 for any
#   other: the mean of π(sum | question).

# %%
PEOPLE = 0.7                                           # of people's answers are sums
SUMS = list(product(range(10), repeat=2))
HELD_OUT = random.Random(0).sample(SUMS, 30)
TAUGHT = [pair for pair in SUMS if pair not in HELD_OUT]
QUESTIONS = [(f"{a}+{b}=", str(a + b)) for a, b in HELD_OUT]
MISTAKES = [(f"{a}+{b}=", str(abs(a - b))) for a, b in HELD_OUT]
assert ("7+5=", "12") in QUESTIONS


def people(n, right_share, rng, sums):
    """Draw n questions with answers: the sum with probability right_share, else the difference."""
    def one(a, b):
        return f"{a}+{b}=", str(a + b if rng.random() < right_share else abs(a - b))

    return [one(*rng.choice(sums)) for _ in range(n)]


@torch.no_grad()
def probabilities(policy, pairs):
    """Return π(completion | prompt) of each pair, EOS included: (N,)."""
    encoded = encode_pairs(tokenizer, pairs, SIZES.max_seq_len)
    tokens, mask = completion_batch(*encoded, tokenizer.pad_id, "cpu")        # (N, T)
    return token_logprobs(policy, tokens, mask=mask).sum(1).exp()


def base_model(seed):
    model, _ = make_base(SIZES, seed=seed, device="cpu")
    texts = people(16_000, 0.5, random.Random(seed), SUMS)
    return train_sft(model, tokenizer, texts, SFTConfig(batch_size=64), seed=seed)


def fine_tune(base, seed, right_share):
    """Train a copy on people's answers -> the policies after 0, 1, ..., 16 epochs."""
    policies, policy = [base], copy.deepcopy(base)

    def keep_epoch(step, metrics):
        if metrics["epoch"] == int(metrics["epoch"]):
            policies.append(copy.deepcopy(policy).eval())

    shown = people(256, right_share, random.Random(1000 + seed), TAUGHT)
    train_sft(policy, tokenizer, shown, recipe, seed=seed, log=keep_epoch)
    return policies


def measure(policies, right_share):
    """Return curves over the epochs: the validation loss, its parts, and the reward."""
    sums = torch.stack([probabilities(policy, QUESTIONS) for policy in policies])       # (17, 30)
    differences = torch.stack([probabilities(policy, MISTAKES) for policy in policies])
    loss = -right_share * sums.log() - (1 - right_share) * differences.log()
    mistaken = torch.tensor([q != m for q, m in zip(QUESTIONS, MISTAKES, strict=True)])     # (30,)
    return {"all": loss.mean(1).tolist(), "right": (-sums.log()).mean(1).tolist(),
            "wrong": (-differences[:, mistaken].log()).mean(1).tolist(),
            "reward": sums.mean(1).tolist()}


runs = []
for seed in (1,) if FAST else (1, 2, 3):
    base = base_model(seed)
    policies = fine_tune(base, seed, PEOPLE)
    curves = measure(policies, PEOPLE)
    runs.append(curves)
    if seed == 1:
        before, after = policies[0], policies[-1]
        careful = measure(fine_tune(base, seed, 1.0), 1.0)     # people who never err
    print(f"seed {seed}               epoch" + row((0, 1, 4, 16), 8))
    for name, label in (("all", "validation loss"), ("right", "  on right answers"),
                        ("wrong", "  on wrong answers"), ("reward", "expected reward")):
        print(f"{label:26}" + row((f"{curves[name][e]:.3f}" for e in (0, 1, 4, 16)), 8))

least = [min(range(17), key=lambda epoch, c=c: c["all"][epoch]) for c in runs]
print("epoch of the least validation loss, by seed:", least)
for epoch, c in zip(least, runs, strict=True):
    assert epoch <= 2 and c["all"][-1] > c["all"][epoch] + 0.02, "the validation loss rises"
    assert c["reward"][-1] > c["reward"][epoch] + 0.03, "and the expected reward grows on"
    assert c["right"][-1] < c["right"][0] and c["wrong"][-1] > 1.5 * c["wrong"][0]

# %% [markdown]
# So the toy does what InstructGPT reports: the models overfit on validation loss after one epoch,
# and more epochs still help. The paper measured that by a reward model and by people's preferences,
# and it chose the checkpoint with the best reward. `compare_epochs` in
# `minirl/train/instructgpt.py` does so.
#
# The toy also shows *why* loss and reward part. Three in ten of the validation answers are
# mistakes. The surer the policy becomes, the less probability it leaves for them, and -log p grows
# without bound. On the right answers alone the loss falls. And if people never err, it does not
# rise:

# %%
share = PEOPLE + (1 - PEOPLE) * sum(a + b == abs(a - b) for a, b in HELD_OUT) / len(HELD_OUT)
print(f"people who never err: validation loss {careful['all'][1]:.3f} after 1 epoch, "
      f"{careful['all'][-1]:.3f} after 16; expected reward {careful['reward'][-1]:.3f}")
print(f"people who err: {share:.3f} of their answers are right; the policy's expected reward: "
      + ", ".join(f"{c['reward'][-1]:.3f}" for c in runs))
assert careful["all"][-1] < min(careful["all"]) + 0.005 and careful["reward"][-1] > 0.8
mean = sum(c["reward"][-1] for c in runs) / len(runs)
assert abs(mean - share) < 0.1 and careful["reward"][-1] > mean + 0.1

figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.4))
for axis, title in zip(axes, ("Validation loss", "Expected reward"), strict=True):
    axis.set(title=title, xlabel="epoch", xlim=(0, 23), xticks=range(0, 17, 4))
for name, label, colour, style in (
        ("wrong", "their mistakes\nalone", RED, "--"), ("all", "people who err", BLUE, "-"),
        ("right", "their right\nanswers alone", GREEN, "-.")):
    curve = torch.tensor([c[name] for c in runs]).mean(0)                     # (17,)
    axes[0].plot(curve, color=colour, linestyle=style)
    axes[0].text(16.3, curve[-1], label, color=colour, va="center", fontsize=8)
axes[0].plot(careful["all"], color=GREY, linestyle=":")
axes[0].text(16.3, careful["all"][-1], "people who\nnever err", color=GREY, va="center", fontsize=8)
axes[0].set(ylabel="nats per answer", ylim=(0, 1.7))
for epoch, c in zip(least, runs, strict=True):
    axes[1].plot(c["reward"], color=BLUE, linestyle="-", linewidth=1.2)
    axes[1].plot(epoch, c["reward"][epoch], "o", color=BLUE)
axes[1].plot(careful["reward"], color=GREY, linestyle=":")
axes[1].axhline(share, color="black", linestyle="--", linewidth=1)
axes[1].text(16.3, mean, "taught by people\nwho err, a line a seed", color=BLUE, fontsize=8,
             va="top")
axes[1].text(16.3, careful["reward"][-1], "by people who\nnever err", color=GREY, va="center",
             fontsize=8)
axes[1].text(0.4, share + 0.012, "people who err", fontsize=8)
axes[1].text(2.6, 0.555, "dots: least validation loss", color=BLUE, fontsize=8)
axes[1].set(ylabel="π(right answer | question)", ylim=(0.5, 1))
keep(figure, "01_epochs")

# %% [markdown]
# Imitation leads about as far as the people who are imitated. A reward can lead further: nobody has
# to write the right answer, if somebody or some rule can tell it from a wrong one. The answer to
# "SFT first?" is in the picture, too. This base model is right half of the time, so RL could start
# from it. From a model that never writes a right answer, no reward would ever come.
#
# The expected reward is a mean. Here is what is behind it: one run's policy in three states of the
# question "7+5=", which nobody demonstrated to it, and each of the 30 questions before and after.

# %%
ids = [tokenizer.encode(str(digit))[0] for digit in range(10)] + [tokenizer.eos_id]
states = ["7+5=", "7+5=1", "7+5=12"]


@torch.no_grad()
def next_token(policy, state):
    """Return the policy in a state: the probabilities of the ten digits and of EOS, (11,)."""
    return policy(torch.tensor([tokenizer.encode_prompt(state)]))[0, -1].softmax(-1)[ids]


table = torch.stack([next_token(after, state) for state in states], dim=1)   # (11, 3)
was, now = probabilities(before, QUESTIONS), probabilities(after, QUESTIONS)  # (30,) each
for name, policy in (("before", before), ("after", after)):
    twelve, two = probabilities(policy, [("7+5=", "12"), ("7+5=", "2")]).tolist()
    print(f'{name:6} SFT:  "12" {twelve:.2f}   "2" {two:.2f}   others {1 - twelve - two:.2f}')
print(f"the right answer became likelier for {(now > was).sum()} of {len(QUESTIONS)} questions")
index = QUESTIONS.index(("7+5=", "12"))
assert (now > was).sum() > 20 and now[index] > was[index] + 0.1

figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.6))
heat(axes[0], table.numpy(), states, [*map(str, range(10)), "<eos>"], "The policy after SFT",
     "state", "next token")
axes[1].plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
axes[1].plot(was, now, "o", color=BLUE, markersize=5, alpha=0.7)
axes[1].plot(was[index], now[index], "s", color=RED, markersize=7)
axes[1].text(was[index] - 0.16, now[index], '"7+5="', color=RED, ha="right", va="center")
axes[1].set(title="π(right answer) of each question", xlabel="before SFT", ylabel="after SFT",
            xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal")
keep(figure, "01_policy")

# %% [markdown]
# ## Break it
#
# What if EOS is not under the mask? This happens without anybody asking for it. Many models have
# no padding token, so their EOS is used for padding, and then code that hides padding by its value
# hides EOS as well ([trl#3091](https://github.com/huggingface/trl/pull/3091) tells how it came back
# once). Two models learn the same sums from nothing, one of them with that mask.

# %%
def train(hide_eos, steps=150):
    model, _ = make_base(SIZES, seed=5, device="cpu")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rng = random.Random(5)
    for _ in range(steps):
        pairs = encode_pairs(tokenizer, people(64, 1.0, rng, SUMS), 32)
        tokens, mask = completion_batch(*pairs, tokenizer.eos_id, "cpu")      # pad = EOS, (64, T)
        if hide_eos:
            mask = mask & (tokens != tokenizer.eos_id)
        loss = -aggregate(token_logprobs(model, tokens, mask=mask), mask, "token_mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


questions = [tokenizer.encode_prompt(prompt) for prompt, _ in QUESTIONS]
for hide_eos in (False, True):
    model = train(hide_eos)
    rollouts = sample(model, questions, group=8, max_new_tokens=16, eos_id=tokenizer.eos_id,
                      pad_id=tokenizer.eos_id, generator=torch.Generator().manual_seed(0))
    cut_off = rollouts.truncated.float().mean().item()
    texts = [tokenizer.decode_completion(ids) for ids in rollouts.completion_ids()]
    begins = sum(text.startswith(QUESTIONS[i // 8][1]) for i, text in enumerate(texts)) / len(texts)
    print(f"EOS {'hidden ' if hide_eos else 'trained'}   cut off {cut_off:4.0%}   right so far "
          f"{begins:4.0%}   for example {QUESTIONS[0][0]}{texts[0]!r}")
    assert begins > 0.9 and (cut_off > 0.99 if hide_eos else cut_off < 0.01)

# %% [markdown]
# Both models begin most answers with the right digits. The second one was never told what comes
# behind them, so it writes on until it is cut off, and its text as a whole is wrong. In this
# library masks come from lengths, never from token values, so EOS is trained whatever the padding.

# %% [markdown]
# ## Exercises
#
# Write the body of each function. The checks say how it stands; the solutions are in
# `tutorials/solutions/01_language_model.py`.

# %%
def exercise_1(q, k):
    """Causal attention weights (T, T) of queries and keys (T, D), without positions."""
    raise NotImplementedError


def check_1(answer):
    # with D = 4 and q = (2, 0, 0, 0), the scores are the keys' first features: 0, log 3, log 4
    q, k = torch.zeros(3, 4), torch.zeros(3, 4)
    q[:, 0], k[:, 0] = 2.0, torch.tensor([1.0, 3.0, 4.0]).log()
    expected = torch.tensor([[1, 0, 0], [1 / 4, 3 / 4, 0], [1 / 8, 3 / 8, 4 / 8]])
    came = answer(q, k)
    assert came.shape == (3, 3) and torch.allclose(came, expected, atol=1e-6), \
        f"expected rows 1; 1/4 3/4; 1/8 3/8 4/8, and got {came.tolist()}"


def exercise_2(prompt_length, completion_length):
    """The slots, counted from 0, whose logits get a gradient from the SFT loss. EOS counts."""
    raise NotImplementedError


def check_2(answer):
    for lengths, expected in (((5, 3), [4, 5, 6]), ((1, 1), [0]), ((3, 2), [2, 3])):
        came = list(answer(*lengths))
        assert came == expected, f"prompt and completion {lengths}: slots {expected}, not {came}"


def exercise_3(p, limit):
    """The expected length of a completion, if EOS has probability p in each state, and at most
    `limit` tokens are sampled. EOS counts."""
    raise NotImplementedError


def check_3(answer):
    # p = 1/2, two tokens at most: half of them have length 1, the others 2
    for (p, limit), expected in (((0.5, 2), 1.5), ((1.0, 9), 1.0), ((0.0, 9), 9.0),
                                 ((0.25, 3), 2.3125)):
        came = answer(p, limit)
        assert abs(came - expected) < 1e-9, f"p {p}, limit {limit}: {expected}, not {came}"


judge(check_1, exercise_1)
judge(check_2, exercise_2)
judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | InstructGPT | here |
# |---|---|---|
# | model | GPT-3 of 1.3, 6 and 175 billion parameters | 150 thousand parameters |
# | demonstrations | about 13 thousand prompts, by about 40 labellers | 256 answers to 70 sums |
# | epochs, dropout, schedule | 16, 0.2, a cosine to 10 % without warm-up | the same |
# | learning rate, batch | 9.65e-6, 32 (6B) | 1e-3, 32 |
# | reward | a reward model's, and people's preferences | the exact expected reward |
# | why validation loss and reward part | not said | people's mistakes, in this toy |
#
# Not as in the paper: the model here has seen the held-out questions while it was pretrained, with
# both answers. SFT teaches it which answer is wanted, not how to add.

# %% [markdown]
# ## Find the bug
#
# The function below computes the SFT loss of a batch in parts, to save memory, and it has a silent
# bug: the loss looks healthy, training goes on, and nothing is raised. Write a test that passes for
# a right function and fails for this one. A test takes the function that it tests, calls it with
# log-probs and a mask of your choice (four rows, say), and raises AssertionError where it is wrong.

# %%
def loss_in_parts(logp, mask, rows_per_part):
    """Minus the mean log-prob of the tokens under the mask, (B, T) -> a number."""
    losses = []
    for start in range(0, len(logp), rows_per_part):
        rows = slice(start, start + rows_per_part)
        losses.append(-masked_mean(logp[rows], mask[rows]))
    return torch.stack(losses).mean()


def exercise_bug(function):
    """A test of function(logp, mask, rows_per_part)."""
    raise NotImplementedError


def check_bug(test):
    def right_loss(logp, mask, rows_per_part):
        parts = zip(logp.split(rows_per_part), mask.split(rows_per_part), strict=True)
        return -sum(aggregate(x, m, "token_mean", total=mask.sum()) for x, m in parts)

    judge_test(test, right_loss, loss_in_parts)


judge(check_bug, exercise_bug)
