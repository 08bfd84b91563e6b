# %%
# %pip install -q -e ..

# %% [markdown]
# # 16. A real model
#
# *It works on the toy. What changes with a real checkpoint?*
#
# - **Paper**: SmolLM2, [arXiv:2502.02737](https://arxiv.org/abs/2502.02737); GSM8K,
#   [arXiv:2110.14168](https://arxiv.org/abs/2110.14168); ZeRO,
#   [arXiv:1910.02054](https://arxiv.org/abs/1910.02054), section 3, for the bytes
# - **Code**: `minirl/lm/checkpoint.py`: `load_pretrained`, `save_pretrained`; `minirl/lm/chat.py`:
#   `Chat`, `render`; `minirl/lm/memory_plan.py`: `memory_plan`; `minirl/tasks/gsm8k.py`:
#   `load_gsm8k`; `minirl/train/step_trace.py`: `traced`
# - **Tests**: `tests/parity/test_real_checkpoints.py`, `tests/parity/test_chat_templates.py`,
#   `tests/parity/test_hand_over.py`
# - **Before this**: 02 (sampling), 08 (GRPO)
# - **Time**: 4 minutes on two CPU cores with SmolLM2; 30 s with the stand-in, which takes its place
#   where `MINIRL_CHECKPOINT` names none
# - **Expect**: 134,515,008 parameters, counted by hand; 2.15 GB for training them; no word problem
#   solved, so nothing to learn there; sums in chat form, whose mean reward rises from 0.10 to 0.42
#   in 13 steps (the stand-in's from 0.19 to 0.44 in 81)
# - **Sweep**: `minirl grpo --init HuggingFaceTB/SmolLM2-135M-Instruct --task gsm8k --data FILE`,
#   then with `--data tutorials/hand_over/problems.jsonl` in place of both: which learns?
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | memory, planned | below what the machine has | a smaller micro-batch, or a smaller model |
# | a prompt, as it is read | turns of its template | `--chat-template`, `--system-prompt` |
# | completions that are cut off | few | more tokens, or a prompt that asks for less |
# | groups whose rewards differ | more than one in ten | easier problems, or a reward with steps |
# | ratio at the first update | exactly 1 | sampler and learner are two policies: tutorial 02 |

# %%
import importlib.util
import json
import math
import os
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from hand_over.reward import right_number
from hand_over_to_trl import DATA, arguments, be_quiet, compare, read_task, stand_in
from lesson import AMBER, BLUE, FAST, GREEN, GREY, RED, judge, judge_test, keep, show
from minirl.inference.collect import collect
from minirl.lm.chat import Chat, render
from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.memory_plan import Work, memory_plan
from minirl.lm.model import ModelConfig
from minirl.tasks.gsm8k import load_gsm8k
from minirl.tasks.problem import listed
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.step_trace import traced

# %% [markdown]
# ## The question
#
# Somebody takes an instruct model of 1.5 billion parameters, GSM8K and GRPO, and
# [the reward does not rise](https://github.com/huggingface/open-r1/issues/474). For others it is
# [low from the start](https://github.com/huggingface/open-r1/issues/436), the format reward is
# [always 0](https://github.com/huggingface/open-r1/issues/235), or
# [reward and loss are both 0](https://github.com/huggingface/trl/issues/3452). The algorithm is the
# one that learnt sums in a minute on the toy. What is new with a real model are four things outside
# of the algorithm:
#
# 1. **Memory.** A model that samples well on your machine may be far too large to train on it.
#    This can be worked out before the first step.
# 2. **The form.** A chat model answers in turns. Asked in another form, it is a worse policy.
# 3. **Signal.** A group whose rewards are all equal teaches nothing. How many of your groups
#    differ is known after one batch, before any training.
# 4. **Leaving.** A larger model needs a larger machine, and other software. The checkpoint, the
#    reward and the data should go there unchanged.
#
# Here is a real model, if you have one: the environment variable `MINIRL_CHECKPOINT` names a folder
# or a hub id, such as `HuggingFaceTB/SmolLM2-135M-Instruct`. Without it, a tiny stand-in takes its
# place: it has a chat template and has read sums, and everything below runs on it, too. (This
# notebook was run with SmolLM2's weights as a package has them, rounded to 4 bits:
# `python -m tests.parity.real_files FOLDER`.)

# %%
torch.manual_seed(0)
NAME = os.environ.get("MINIRL_CHECKPOINT", "")
REAL = bool(NAME) and not FAST
task = read_task(DATA)                                   # sums, as messages, with one reward
if REAL:
    model, tokenizer = load_pretrained(NAME, dtype=torch.float32)
    tokenizer = tokenizer.with_chat(Chat())
    print(f"a real checkpoint: {Path(NAME).name}")
else:
    model, tokenizer = stand_in(listed(task), sums=1500 if FAST else 6000)
    print("no MINIRL_CHECKPOINT, so a tiny stand-in: the numbers below are the stand-in's")
config = model.config
print(f"{config.num_layers} layers of width {config.hidden_size}, {config.vocab_size:,} tokens")

# %% [markdown]
# ## By hand
#
# How large is SmolLM2-135M? Its config.json says: 49,152 tokens, width 576, 30 layers, 9 heads for
# queries and 3 for keys and values, of size 64, and a feed-forward layer of 1,536.
#
# | | parameters |
# |---|---|
# | embedding, which is the head, too | 49,152 · 576 = 28,311,552 |
# | queries and output, per layer | 2 · 576 · (9 · 64) = 663,552 |
# | keys and values, per layer | 2 · 576 · (3 · 64) = 221,184 |
# | feed-forward, per layer | 3 · 576 · 1,536 = 2,654,208 |
# | two norms, per layer | 2 · 576 = 1,152 |
# | 30 layers | 30 · 3,540,096 = 106,202,880 |
# | the last norm | 576 |
# | together | 134,515,008 |

# %%
def count(vocab, width, layers, heads, kv_heads, size, inner, *, tied):
    """Return how many parameters a Llama has, without biases and norms of heads."""
    layer = 2 * width * heads * size + 2 * width * kv_heads * size + 3 * width * inner + 2 * width
    return vocab * width * (1 if tied else 2) + layers * layer + width


SMOLLM2 = dict(vocab=49_152, width=576, layers=30, heads=9, kv_heads=3, size=64, inner=1536)
P = sum(p.numel() for p in model.parameters())
own = count(config.vocab_size, config.hidden_size, config.num_layers, config.num_heads,
            config.num_kv_heads, config.head_dim, config.intermediate_size,
            tied=config.tie_embeddings)
own += 2 * config.head_dim * config.num_layers * config.qk_norm     # Qwen3 has norms in its heads
print(f"SmolLM2-135M: {count(**SMOLLM2, tied=True):,} parameters by hand")
print(f"this model:   {P:,} parameters, by hand {own:,}")
assert count(**SMOLLM2, tied=True) == 134_515_008
assert own == P

# %% [markdown]
# Training holds 16 bytes for each, in float32: the weight 4, its gradient 4, AdamW's two moments 8.
# For SmolLM2 that is 2.15 GB, in a model that samples in 0.54. The rest depends on the batch:
#
# - **the cache** of keys and values while it samples: 2 · layers · kv_heads · size · 4 bytes for
#   each token, for all completions at once
# - **the logits** of a micro-batch: 4 bytes for each token *and each of the 49,152 words*. This is
#   what people forget. minirl computes them a chunk of tokens at a time (`minirl/lm/logprobs.py`)
# - **the activations** of a micro-batch: what a forward pass keeps for its backward pass,
#   fifteen to twenty numbers for each token, layer and feature of the width (measured below)

# %%
def plan(P, *, vocab, width, layers, heads, kv_heads, size, inner, rows, tokens, batch):
    """Return the bytes of a GRPO step in float32, part by part. rows completions are sampled at
    once, each of so many tokens with its prompt; a micro-batch has `batch` tokens."""
    return {"weights": 4 * P, "gradients": 4 * P, "moments": 8 * P,
            "cache": rows * tokens * layers * 2 * kv_heads * size * 4,
            "activations": batch * layers * 20 * width * 4,
            "logits": batch * vocab * 4}


QWEN = dict(vocab=151_936, width=896, layers=24, heads=14, kv_heads=2, size=64, inner=4864)
LLAMA = dict(vocab=32_000, width=4096, layers=32, heads=32, kv_heads=32, size=128, inner=11_008)
STEP = dict(rows=128, tokens=612, batch=4096)            # 16 prompts of 100, 8 answers of 512
MODELS = {"SmolLM2, 135M": (SMOLLM2, True), "Qwen2.5, 0.5B": (QWEN, True),
          "Llama 2, 7B": (LLAMA, False)}
plans = {name: plan(count(**sizes, tied=tied), **sizes, **STEP)
         for name, (sizes, tied) in MODELS.items()}
print(f"{'GB':15}", *(f"{part:>11}" for part in [*plans["Llama 2, 7B"], "all"]))
for name, parts in plans.items():
    print(f"{name:15}", *(f"{x / 1e9:11.2f}" for x in [*parts.values(), sum(parts.values())]))
assert round(sum(list(plans["SmolLM2, 135M"].values())[:3]) / 1e9, 2) == 2.15
assert plans["SmolLM2, 135M"]["logits"] > plans["SmolLM2, 135M"]["weights"]

# %% [markdown]
# Of the small model, the logits of 4,096 tokens alone would take more than its weights: 4,096 ·
# 49,152 · 4 bytes = 0.81 GB. Of the large one, weights, gradients and moments alone are more than
# an H100 has, so no batch is small enough: [Many GPUs, on paper](many_gpus.md).
#
# Is the plan right? One step, and the bytes of all its tensors; and what a forward pass keeps:

# %%
def kept(model, tokens):
    """Return the bytes that a forward pass keeps for the backward pass, beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    bytes_of = {}

    def note(x):
        bytes_of[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        hidden = model.hidden(tokens)                    # holds on to all of it
    assert hidden.requires_grad
    return sum(size for place, size in bytes_of.items() if place not in weights)


one, two = (kept(model, torch.zeros(1, T, dtype=torch.long)) for T in (48, 96))
features = (two - one) / 48 / config.num_layers / config.hidden_size / 4
print(f"{features:.1f} numbers for each token, layer and feature")
assert 10 < features < 30

seen = {}


def measure(state):
    """Note the bytes of weights, gradients and moments after a step."""
    tensors = {"weights": list(model.parameters()),
               "gradients": [p.grad for p in model.parameters() if p.grad is not None],
               "moments": [x for moments in state.optimizer.state.values()
                           for x in moments.values() if torch.is_tensor(x) and x.dim()]}
    seen.update({name: sum(x.numel() * x.element_size() for x in group)
                 for name, group in tensors.items()})


before = {name: x.clone() for name, x in model.state_dict().items()}
small = GRPOConfig(steps=1, prompts_per_step=4, group_size=4, max_new_tokens=8, lr=1e-6, kl_coef=0,
                   warmup_steps=0)
train_grpo(model, tokenizer, task, small, seed=0, save=measure)
print({name: f"{x / 1e6:.1f} MB, {x / P:.2f} bytes a parameter" for name, x in seen.items()})
model.load_state_dict(before)
assert seen["weights"] == 4 * P and seen["moments"] == 8 * P

# %% [markdown]
# Gradients are dropped after each update, so they are 0 here. Their 4 bytes are held while the
# backward pass runs.
#
# `minirl grpo` plans in more detail before its first step (`minirl/lm/memory_plan.py`, a formula
# for each part): a prompt is computed once for its group, logits come in chunks, and sampling and
# learning follow one another, so the larger of the two counts. For SmolLM2, without and with
# gradient checkpointing, which computes each layer a second time rather than keep it:

# %%
smollm2 = ModelConfig(49_152, hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3,
                      intermediate_size=1536)
work_of_a_step = Work(rows=128, prompt=100, completion=512, group=8, token_budget=4096)
planned = {again: memory_plan(smollm2, replace(work_of_a_step, gradient_checkpointing=again))
           for again in (False, True)}
print(planned[False].table())
for again, own_plan in planned.items():
    print(f"gradient checkpointing {again}: " + ", ".join(
        f"{name} {sum(parts.values()) / 1e9:.2f} GB" for name, parts in own_plan.phases.items())
        + f", in all {own_plan.total / 1e9:.2f} GB at most")
assert sum(planned[True].phases["learning"].values()) < sum(
    planned[False].phases["learning"].values())

# %% [markdown]
# ## The function
#
# What does the policy read? A chat model never saw `What is 3+4?` at the beginning of a text. It
# saw turns, and the checkpoint brings the program that writes them: its chat template.

# %%
show(render)

# %%
problem = listed(task)[34]
ids = tokenizer.encode_prompt(problem.prompt)
print("in the file:   ", list(problem.prompt.messages))
print("policy reads:  ", repr(tokenizer.prompt_text(problem.prompt)))
print("ids:           ", ids[:6], "...", ids[-3:], f"{len(ids)} in all")
print("a stop token:  ", [tokenizer.token(i) for i in tokenizer.stop_ids],
      " padding:", repr(tokenizer.token(tokenizer.pad_id)))
assert tokenizer.decode(ids) == tokenizer.prompt_text(problem.prompt)
assert len(ids) > len(tokenizer.plain.encode(problem.prompt))

# %% [markdown]
# Where padding and stop are one token, as in SmolLM2, a mask made from token values would take the
# stop for padding, and the policy would never learn to stop. minirl's masks are made from lengths
# (tutorial 02).
#
# Word problems come in GSM8K's form, with the answer behind `####`. Eight of them, easy ones:

# %%
WORD_PROBLEMS = [
    ("Tom has 3 apples and buys 4 more. How many has he?", "3+4=<<3+4=7>>7\n#### 7"),
    ("A box holds 6 eggs. How many are in 5 boxes?", "6*5=<<6*5=30>>30\n#### 30"),
    ("Ann had 12 pens and lost 5. How many are left?", "12-5=<<12-5=7>>7\n#### 7"),
    ("A bus has 20 seats, 8 are free. How many are taken?", "20-8=<<20-8=12>>12\n#### 12"),
    ("24 sweets are shared by 4 children. How many each?", "24/4=<<24/4=6>>6\n#### 6"),
    ("Mia reads 10 pages a day. How many in a week?", "10*7=<<10*7=70>>70\n#### 70"),
    ("A coat is $50, a hat $15. What do both cost?", "50+15=<<50+15=65>>65\n#### 65"),
    ("Half of 18 birds fly off. How many stay?", "18/2=<<18/2=9>>9\n#### 9"),
]
work = Path(tempfile.mkdtemp())
file = work / "train.jsonl"
file.write_text("".join(json.dumps({"question": question, "answer": answer}) + "\n"
                        for question, answer in WORD_PROBLEMS))
gsm8k = load_gsm8k(os.environ.get("MINIRL_GSM8K") or file)         # GSM8K itself, if you have it
words = list(gsm8k)[:8]
chat = tokenizer.with_chat(Chat("End with #### and the number.") if REAL else Chat())
answers = collect(model, chat, gsm8k, words, group=4,  # step in: collect
                  max_new_tokens=80 if REAL else 24, generator=torch.Generator().manual_seed(0))
word_rewards = answers.rewards.view(8, 4)                # (P, G)
print("the first answer:", repr(answers.completions[0][:300]))
print("right, of 4 each:", word_rewards.sum(1).int().tolist())
print(f"cut off: {answers.rollouts.truncated.float().mean():.2f}")

# %% [markdown]
# ## Picture
#
# First the memory of the three models, beside what machines have.

# %%
figure, axis = plt.subplots(figsize=(7.2, 3.0))
left = [0.0] * len(plans)
colours = [BLUE, RED, AMBER, GREEN, GREY, "#a58fc0"]
for part, colour in zip(plans["Llama 2, 7B"], colours, strict=True):
    widths = [parts[part] / 1e9 for parts in plans.values()]
    axis.barh(list(plans), widths, left=left, color=colour, label=part, height=0.6)
    left = [a + b for a, b in zip(left, widths, strict=True)]
for size, name in ((16, "a laptop"), (80, "an H100")):
    axis.axvline(size, color="black", linewidth=1, linestyle="--")
    axis.text(size + 1, 0.5, f"{name}: {size} GB", fontsize=8, va="center")
axis.set(xlabel="GB", title="What a GRPO step holds in float32")
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
axis.legend(ncols=6, loc="upper center", bbox_to_anchor=(0.45, -0.2))
keep(figure, "16_memory")
assert left[0] < 16 < 80 < left[2]

# %% [markdown]
# Then the signal. With p the chance of a right answer, all G completions are equal with
# probability p^G + (1 - p)^G. The rest of the groups teach something. One batch of your own
# problems shows where you are, before any training.

# %%
sums = collect(model, tokenizer, task, task.sample(16, random.Random(0)), group=8,
               max_new_tokens=16 if REAL else 8, generator=torch.Generator().manual_seed(0))
sum_rewards = sums.rewards.view(16, 8)


def differing(rewards):
    """Return the share of groups whose rewards are not all equal. (P, G)"""
    return float((rewards.max(1).values > rewards.min(1).values).float().mean())


figure, axis = plt.subplots(figsize=(6.4, 3.2))
p = torch.linspace(0, 1, 201)
for G in (4, 8, 16):
    axis.plot(p, 1 - p**G - (1 - p)**G, label=f"groups of {G}")
for name, rewards, marker in (("word problems", word_rewards, "s"), ("sums", sum_rewards, "o")):
    right = float((rewards == 1).float().mean())
    axis.plot(right, differing(rewards), marker, color="black", markersize=7,
              label=f"{name}, groups of {rewards.shape[1]}", linestyle="none", clip_on=False,
              zorder=5)
    print(f"{name}: {right:.3f} right, {differing(rewards):.2f} of the groups teach something")
axis.set(xlabel="share of right completions", ylabel="groups that teach", ylim=(-0.02, 1.02),
         title="What is never solved teaches nothing, nor what always is")
axis.legend(loc="lower center")
keep(figure, "16_groups")
assert differing(sum_rewards) > 0.3 and differing(sum_rewards) > differing(word_rewards)

# %% [markdown]
# Points of several difficulties do not lie on a line of one p, and `right_number` has a reward in
# between (0.5 where the right number ends a longer text), which makes more groups differ. The order
# is plain all the same: on these word problems this model has nothing to learn from, whatever the
# learning rate. What helps is in that picture, too: easier problems, larger groups, a reward with
# steps in between; or a better model, or SFT first (tutorial 10).
#
# ## In the loop
#
# So we train on the sums. First one step, traced: these are the page's own variables, read as a
# debugger would (`minirl trace` shows the same as a page for the browser).

# %%
numbers = dict(prompts_per_step=4 if REAL else 16, group_size=8, max_new_tokens=16 if REAL else 8,
               lr=1e-5 if REAL else 1e-3, kl_coef=0.0, warmup_steps=0, min_lr_ratio=1.0)
with traced(train_grpo) as tracer:
    train_grpo(model, tokenizer, task, GRPOConfig(steps=1, **numbers), seed=2)
trace = tracer.trace
update = trace.updates[0]
row = max(update.rows, key=lambda row: max(map(abs, update.rows[row]["adv"])))
tokens = update.rows[row]
print(f"completion {row}: {trace.answers.completions[row]!r}, reward "
      f"{float(trace.answers.rewards[row])}")
print("token          log-prob  ratio  advantage  share of |gradient|  log-prob after")
for t, i in enumerate(trace.answers.rollouts.completion_ids()[row]):
    print(f"{tokenizer.token(i)!r:14} {tokens['logp'][t]:8.3f} {tokens['ratio'][t]:6.3f} "
          f"{tokens['adv'][t]:10.3f} {tokens['gradient_share'][t]:20.3f} "
          f"{tokens['logp_after'][t]:15.3f}")
assert all(ratio == 1 for ratio in tokens["ratio"])
share = sum(x for numbers_ in update.rows.values() for x in numbers_["gradient_share"])
print(f"shares of all tokens of all completions: {share:.4f}")
assert math.isclose(share, 1, abs_tol=1e-2)

# %% [markdown]
# The ratio is exactly 1: sampler and learner are one policy, also with 49,152 words and 30 layers.
# A token's share says how much of the gradient's length it makes, negative where it pulls against
# the rest. Now some steps:

# %%
STEPS = 4 if FAST else 12 if REAL else 80
curve = []
train_grpo(model, tokenizer, task, GRPOConfig(steps=STEPS, **numbers), seed=0,
           log=lambda step, metrics: curve.append(metrics))
after = collect(model, tokenizer, task, task.sample(16, random.Random(0)), group=8,
                max_new_tokens=16 if REAL else 8, generator=torch.Generator().manual_seed(0))
print(f"mean reward of the same 16 problems: {float(sum_rewards.mean()):.3f} before, "
      f"{float(after.rewards.mean()):.3f} after {STEPS + 1} steps")
print(f"such as: {sums.completions[0]!r} -> {after.completions[0]!r}")
figure, axis = plt.subplots(figsize=(6.4, 2.8))
axis.plot(range(1, STEPS + 1), [metrics["reward"] for metrics in curve], label="reward")
axis.plot(range(1, STEPS + 1), [1 - metrics["frac_reward_zero_std"] for metrics in curve],
          label="groups that teach")
axis.set(xlabel="step", ylim=(-0.02, 1.02), title="Sums, in chat form")
axis.legend()
keep(figure, "16_reward")
assert FAST or float(after.rewards.mean()) > float(sum_rewards.mean())

# %% [markdown]
# Look at what changed. SmolLM2 could add before: right sums were among its answers. It also talked,
# and was cut off. What it learns in a dozen steps is to say what is paid for, and to stop. With few
# steps, RL finds what is there (tutorial 10).
#
# ## Break it
#
# The same weights, the same questions, the same reward, and no chat template: the prompt is the
# message's text, with nothing around it. Many a first run does this, as nothing complains.

# %%
plain = collect(model, tokenizer.plain, task, task.sample(16, random.Random(0)), group=8,
                max_new_tokens=16 if REAL else 8, generator=torch.Generator().manual_seed(0))
print(f"with the template: reward {float(after.rewards.mean()):.3f}, such as "
      f"{after.completions[1]!r}")
print(f"without:           reward {float(plain.rewards.mean()):.3f}, such as "
      f"{plain.completions[1]!r}")
assert float(plain.rewards.mean()) < float(after.rewards.mean())

# %% [markdown]
# From there, GRPO would first have to teach what the template gives for nothing. If your reward is
# low from the start, print `tokenizer.prompt_text(prompt)` before you change the learning rate.
#
# ## Leaving
#
# What we have trained is a folder in Hugging Face's layout. If transformers is installed, it is
# asked whether the model in there is ours.

# %%
save_pretrained(model, tokenizer, work / "final")
print(*sorted(path.name for path in (work / "final").iterdir()))
again, again_tokenizer = load_pretrained(work / "final")
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
assert again_tokenizer.with_chat(Chat()).encode_prompt(problem.prompt) == ids
if all(importlib.util.find_spec(name) for name in ("transformers", "datasets", "trl")):
    be_quiet()
    compare(work / "final", model, tokenizer, task, arguments(["--asked", "8"]))
else:
    print("without the extra parity, transformers cannot be asked")

# %% [markdown]
# From here on, `python tutorials/hand_over_to_trl.py --model FOLDER` trains with minirl, then with
# TRL, from one folder, with one reward function and one data file, and comes back. What changes on
# more than one GPU, and when to leave for TRL, verl or OpenRLHF, is in
# [Many GPUs, on paper](many_gpus.md).

# %% [markdown]
# ## Exercises
#
# The answers are in `tutorials/solutions/16_a_real_model.py`.

# %%
def exercise_1(P, memory):
    """Return how many GPUs are needed, at least, to train P parameters in float32, if weights,
    gradients and moments are spread over them evenly, and a fifth of each GPU's memory (in bytes)
    stays free for the rest."""
    raise NotImplementedError


def check_1(gpus):
    for P, memory, expected in ((134_515_008, 80e9, 1), (4e9, 80e9, 1), (7e9, 80e9, 2),
                                (70e9, 80e9, 18), (70e9, 141e9, 10)):
        number = gpus(P, memory)
        assert number == expected, (f"for {P / 1e9:.1f}B and {memory / 1e9:.0f} GB it is {number}, "
                                    f"and should be {expected}")


judge(check_1, exercise_1)


# %%
def exercise_2(p, G):
    """Return the share of groups of G completions that teach something, if each completion is
    right with probability p, and a right one gets 1, a wrong one 0."""
    raise NotImplementedError


def check_2(share):
    for p, G, expected in ((0.5, 2, 0.5), (0.5, 8, 1 - 2 / 256), (0.0, 8, 0.0), (1.0, 8, 0.0),
                           (0.1, 2, 0.18)):
        value = share(p, G)
        assert math.isclose(value, expected, abs_tol=1e-9), (
            f"for p = {p}, G = {G} it is {value}, and should be {expected}")


judge(check_2, exercise_2)


# %%
CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def exercise_3(messages):
    """Return a conversation as SmolLM2 and Qwen read it, up to where the assistant's turn begins:
    what the template CHATML writes, without a template."""
    raise NotImplementedError


def check_3(written):
    user = {"role": "user", "content": "What is 3+4?"}
    for messages in ([user], [{"role": "system", "content": "Be brief."}, user],
                     [user, {"role": "assistant", "content": "7"}, user]):
        expected = render(CHATML, messages, add_generation_prompt=True, tools=None, variables={})
        text = written(messages)
        assert text == expected, f"it is {text!r}, and should be {expected!r}"


judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | DeepSeekMath, section 4.2 | here |
# |---|---|---|
# | model | 7 billion parameters, fine-tuned on mathematics | 135 million, or the stand-in |
# | questions | GSM8K and MATH, 144,000 | 100 sums |
# | completions of a question | 64, up to 1,024 tokens | 8, up to 16 |
# | questions in a batch | 16 | 4 or 16 |
# | learning rate, KL | 1e-6, 0.04 | 1e-5 or 1e-3, none |
# | reward | a reward model | a rule, with a step in between |
#
# A learning rate that suits the stand-in is 1,000 times that of the paper. Small models take more,
# and so do few steps; on your own model begin with 1e-6 and watch the ratio and the KL.

# %% [markdown]
# ## Find the bug
#
# This reward for sums has a bug, and many a first reward has it. A policy will find it within
# minutes: it pays for lists of numbers. Write a test that passes for `right_number` and fails for
# this one.

# %%
def number_inside(completions, answer, **_):
    """1.0 for the right number alone, 0.5 where it is in a longer text, else 0.0."""
    texts = [messages[-1]["content"].strip().rstrip(".") for messages in completions]
    return [1.0 if text == right else 0.5 if right in text else 0.0
            for text, right in zip(texts, answer, strict=True)]


def exercise_bug(function):
    """Raise AssertionError where function(completions=, answer=) pays for wrong answers. The text
    of a completion is in its one message: [{"role": "assistant", "content": text}]."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, right_number, number_inside)


judge(check_bug, exercise_bug)
