# %%
# %pip install -q -e ..

# %% [markdown]
# # 10. DeepSeek-R1
#
# *Is SFT needed first, why does nothing grow, and why does the format come and the answer not?*
#
# - **Paper**: DeepSeek-R1, [arXiv:2501.12948v2](https://arxiv.org/abs/2501.12948) (Nature 2025):
#   rule rewards, eq. 4; language reward, eq. 7; cold start and rejection sampling
# - **Code**: `minirl/train/r1.py`: `cold_start_pairs`, `rejection_sample`, `train_r1`;
#   `minirl/tasks/rewards.py`: `language_consistency`; `minirl/tasks/bilingual.py`: `rewrite`
# - **Tests**: `tests/train/test_r1.py`, `tests/tasks/test_rewards.py`,
#   `tests/tasks/test_bilingual.py`
# - **Before this**: 08 (GRPO, groups and advantages)
# - **Time**: 2 minutes on two CPU cores; 20 s with `MINIRL_FAST=1`
# - **Expect**: R1-Zero from 0.46 to 0.95 right, in mixed languages; after cold start and language
#   reward as good, and in Korean; word problems without SFT first: format 0.98, right 0.03
# - **Sweep**: `minirl r1 --fast`, then with `--language-weight 0`: compare the column language of
#   the table at the end
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | right completions before RL | at least a few in a hundred | SFT first, or easier problems |
# | format | near 1 after 20 steps | print completions: is a tag missing, or is it cut off? |
# | accuracy, once the format is there | still rises | the reward was all format |
# | groups without spread | rise together with accuracy | with accuracy near 0: nothing is learnt |
# | tokens per completion | rise if long completions are right more often | count kinds, as below |
# | completions that are cut off | close to none | they count as wrong: allow more tokens |

# %%
import copy
import inspect
import random
import re

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, FAST, GREY, RED, judge, judge_test, keep, show
from minirl.equations.advantages import group_advantages
from minirl.inference.evaluate import evaluate
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.bilingual import WORDS, Bilingual, BilingualProblem, demonstrations, rewrite
from minirl.tasks.problem import JudgedTask
from minirl.tasks.rewards import format_reward, language_consistency
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.r1 import (
    COLD_START_SFT,
    LANGUAGE,
    RULES,
    SECOND_SFT,
    R1Config,
    cold_start_pairs,
    rejection_sample,
    train_r1,
)
from minirl.train.sft import SFTConfig, train_sft

# %% [markdown]
# ## The question
#
# DeepSeek-R1-Zero learnt to reason from two rules alone: is the answer right, and is the completion
# in the format `<think>…</think><answer>…</answer>`? Nobody showed it how. People who repeat this
# with their own model ask three things:
#
# 1. **Is supervised fine-tuning (SFT) needed first?**
#    [unsloth#2732](https://github.com/unslothai/unsloth/issues/2732),
#    [R1-V#121](https://github.com/StarsfieldAI/R1-V/issues/121),
#    [R1-V#159](https://github.com/StarsfieldAI/R1-V/issues/159)
# 2. **Why do my completions not grow?** They shrink, or they grow until they are cut off.
#    [VLM-R1#280](https://github.com/om-ai-lab/VLM-R1/issues/280),
#    [simpleRL-reason#65](https://github.com/hkust-nlp/simpleRL-reason/issues/65),
#    [verl#2736](https://github.com/volcengine/verl/issues/2736)
# 3. **Why does the format come, and the answer not?**
#    [trl#3903](https://github.com/huggingface/trl/issues/3903),
#    [trl#5298](https://github.com/huggingface/trl/issues/5298) (where one answer is that the reward
#    for accuracy was the wrong one: test your rewards by hand first)
#
# The short answers, which this tutorial measures:
#
# 1. RL makes frequent what the policy already samples and what is rewarded. If right answers are
#    among the samples, no SFT is needed. If they are not, a few demonstrations are.
# 2. Length is no goal. Completions grow where long ones are right more often. Where nothing depends
#    on length, the loss decides, and that of GRPO makes good completions shorter.
# 3. The format is easy: it is the same for all problems, and every group has some completions with
#    it and some without. It needs no right answer, and brings none.
#
# R1-Zero had one more fault: it mixed languages while reasoning. A mixture is not wrong, so no
# reward discouraged it. R1's further stages repair that. We build them, too.

# %% [markdown]
# ## By hand
#
# **A group needs spread.** GRPO compares completions of the same prompt. If all are right, or all
# are wrong, their advantages are 0. Let $p$ be the probability that one completion is right. A
# group of $G$ has both kinds with probability
#
# $$1 - p^G - (1 - p)^G.$$
#
# For $p = 1/2$ and $G = 8$ it is $1 - 2/2^8 = 127/128$. For $p = 1/100$ it is
# $1 - 0.99^8 = 0.077$: of 16 groups in a step, about one has something to teach. For $p = 0$ none
# has.

# %%
def chance_of_spread(p, group):
    return 1 - p**group - (1 - p)**group


for p in (0.5, 0.1, 0.01, 0.001, 0.0):
    chance = chance_of_spread(p, 8)
    print(f"right with probability {p:5.3f}: {16 * chance:5.2f} of 16 groups of 8 have spread")
assert chance_of_spread(0.5, 8) == 127 / 128
assert round(chance_of_spread(0.01, 8), 3) == 0.077
assert chance_of_spread(0.0, 8) == 0

# %% [markdown]
# **Language consistency.** Equation 7 is the share of words in the chain of thought (what stands
# between the `<think>` tags) that belong to the target language. Numbers and signs belong to no
# language and do not count as words. Four completions that are all right:

# %%
completions = [
    "<think>일의 자리: 삼 더하기 사 은 칠</think><answer>7</answer>",        # 7 words, 7 Korean
    "<think>일의 자리: 삼 plus four is</think><answer>7</answer>",          # 6 words, 3 Korean
    "<think>ones: three plus four is seven</think><answer>7</answer>",      # none is Korean
    "<think></think><answer>7</answer>",                                    # no words: 0, not 1
]
shares = language_consistency([""] * 4, completions, ["ko"] * 4)  # step in: language_consistency
print("eq. 7, target language Korean:", shares)
assert shares == [1.0, 1 / 2, 0.0, 0.0]

# %% [markdown]
# With the rules alone (eq. 4: accuracy + format, 2 for each completion) this group has no spread,
# and GRPO learns nothing from it. The language reward, added with weight 1, breaks the tie. The
# rewards are then 3, 2.5, 2 and 2, with mean 2.375:

# %%
rules, korean = torch.full((1, 4), 2.0), torch.tensor([shares])             # (1, 4) each
adv = group_advantages(rules + korean)                                      # (1, 4)
print("advantages, rules alone:  ", group_advantages(rules))
print("advantages, with language:", adv)
assert bool((group_advantages(rules) == 0).all())
assert adv[0, 0] > adv[0, 1] > 0 > adv[0, 2] == adv[0, 3]
assert torch.equal((rules + korean).mean(), torch.tensor(2.375))

# %% [markdown]
# ## The function
#
# The reward is a rule in TRL's signature. What a word is, and what language it is in, is in
# `minirl/tasks/language.py`.

# %%
show(language_consistency)

# %% [markdown]
# ## A base model, and R1-Zero
#
# The toy has sums in English and in Korean. Our base model (0.3 million parameters, trained here
# from nothing) has read them with three kinds of reasoning:
#
# - *worked* (6 of 10): every column is worked out, and the answer is right;
# - *brief* (2 of 10): the totals of the columns alone; half of these have a slip;
# - *none* (2 of 10): an answer without reasoning; half of these have a slip, too.
#
# In half of the texts each column is in a language of its own. A quarter has no tags. Beside the
# sums the base model has read some word problems, which we need later.
#
# The target language is Korean, whatever language the prompt is in.

# %%
SUMS = Bilingual((2,), stories=0.0, reason_in="ko")                         # two digits
STORIES = Bilingual((2,), stories=1.0, reason_in="ko")
SIZES = TinySizes(hidden_size=64, num_heads=4, intermediate_size=256) if FAST else TinySizes()
READ = 11_000 if FAST else 24_000                                           # texts
LONGEST = 32                                                                # tokens

rng = random.Random(0)
texts = demonstrations(Bilingual((2,), stories=0.0), READ, rng, worked_share=0.6, brief_share=0.2,
                       mixed_share=0.5, slip_share=0.5, bare_share=0.25)
texts += demonstrations(Bilingual((2,), stories=1.0), READ // 8, rng, worked_share=0.0,
                        slip_share=0.5, bare_share=0.5)                     # no reasoning
base, tokenizer = make_base(SIZES, seed=0, device="cpu", words=WORDS)
train_sft(base, tokenizer, texts, SFTConfig(), seed=0,
          log=lambda step, metrics: step % 250 or print(f"step {step}: loss {metrics['loss']:.3f}"))


def worth(name, policy, task=SUMS):
    """Ask a policy held-out problems, at temperature 1, and print a line of a table."""
    result = evaluate(policy, tokenizer, task, n=48 if FAST else 256, samples=4,
                      max_new_tokens=LONGEST)
    values = result.rewards
    print(f"{name:28} right {values['accuracy']:.3f}   format {values['format_reward']:.3f}   "
          f"Korean {values[LANGUAGE]:.3f}   tokens {result.mean_length:4.1f}")
    return result


before = worth("base model, sums", base)
print("for example", before.completions[0][0])

# %% [markdown]
# R1-Zero is GRPO (tutorial 08) from the base model on eq. 4: 1 for a right answer and 1 for the
# format. Beside it we train on the format alone, from the same base model, with the same numbers:
# once with GRPO's loss, and once with that of Dr. GRPO, which divides by a constant and not by the
# length of each completion (tutorial 09).

# %%
STEPS = 14 if FAST else 50
NUMBERS = (dict(prompts_per_step=8, lr=1e-3) if FAST else dict(prompts_per_step=16, lr=6e-4))


def reinforce(name, start, weights, task=SUMS, steps=STEPS, extra=None, **changes):
    """GRPO on a copy of a policy -> the new policy, and the metrics of each step."""
    config = GRPOConfig(steps=steps, group_size=8, kl_coef=0.001, max_new_tokens=LONGEST,
                        **NUMBERS, **changes)
    metrics = []

    def log(step, values):
        metrics.append(values)
        if step == 1 or step % 10 == 0:
            print(f"{name:24} step {step:3}   right {values['rewards/accuracy/mean']:.2f}   "
                  f"format {values['rewards/format_reward/mean']:.2f}   "
                  f"tokens {values['completions/mean_length']:4.1f}")

    watched = {**dict.fromkeys(task.rewards, 0.0), **weights}               # weight 0: only watched
    judged = JudgedTask(task, {**task.rewards, **(extra or {})}, watched)
    policy = train_grpo(copy.deepcopy(start), tokenizer, judged, config, seed=0, log=log)
    return policy, metrics


zero, zero_curve = reinforce("rules (R1-Zero)", base, RULES)
formal, formal_curve = reinforce("format alone", base, {"format_reward": 1.0})
fair, fair_curve = reinforce("format, Dr. GRPO", base, {"format_reward": 1.0},
                             aggregate="constant")
print()
after = worth("R1-Zero", zero)
only_format = worth("format alone", formal)
only_fair = worth("format alone, Dr. GRPO", fair)

# %% [markdown]
# Which completions became frequent? We sort them into kinds, and count.

# %%
def kinds_of(result):
    """Return {kind: (share, share of right ones, mean tokens)} of an evaluation's completions."""
    rows = []
    for row, right, tokens in zip(result.completions, result.verdicts["accuracy"], result.lengths,
                                  strict=True):
        for text, *numbers in zip(row, right, tokens, strict=True):
            reasoning = re.search(r"<think>(.*)</think>", text)
            kind = ("no tags" if reasoning is None else "none" if not reasoning[1]
                    else "worked" if re.search(r" plus| 더하기", reasoning[1]) else "brief")
            rows.append((kind, *numbers))
    table = {}
    for kind in ("worked", "brief", "none", "no tags"):
        right, tokens = zip(*[numbers for name, *numbers in rows if name == kind] or [(0.0, 0)],
                            strict=True)
        share = sum(name == kind for name, *_ in rows) / len(rows)
        table[kind] = share, sum(right) / len(right), sum(tokens) / len(tokens)
    return table


kinds, zero_kinds, formal_kinds = map(kinds_of, (before, after, only_format))
print(f"{'kind':9} {'tokens':>6} {'right':>7} | share: {'base':>6} {'R1-Zero':>8} "
      f"{'format alone':>13}")
for kind, (share, right, tokens) in kinds.items():
    print(f"{kind:9} {tokens:6.1f} {right:7.3f} | {share:13.3f} {zero_kinds[kind][0]:8.3f} "
          f"{formal_kinds[kind][0]:13.3f}")

assert kinds["worked"][1] > 3 * max(kinds["brief"][1], kinds["none"][1]), "long reasoning pays"
assert kinds["worked"][2] > 2 * kinds["none"][2], "and it is long"
assert zero_kinds["worked"][0] > kinds["worked"][0] > formal_kinds["worked"][0]
assert FAST or zero_kinds["worked"][0] > 0.9, "so R1-Zero reasons at length"

# %% [markdown]
# Worked completions are the longest, and they alone are right often. So the reward for right
# answers makes them frequent, and the mean length rises.
#
# With the format alone every kind earns the same, and yet completions without reasoning take over.
# That is GRPO's loss: it divides by the length of each completion, so a token of a good completion
# of 7 tokens weighs three times as much as a token of one of 21. With Dr. GRPO's loss most of the
# shrinking is gone. (The answers in VLM-R1#280 come to the same.) R1-Zero grows in spite of this
# bias.
#
# **No reward here asks for length. Reasoning grows where longer reasoning is right more often.
# Where it shrinks and no reward asks for that, look at the loss.**

# %% [markdown]
# ## Picture

# %%
PATHS = {"right": "rewards/accuracy/mean", "format": "rewards/format_reward/mean",
         "Korean": f"rewards/{LANGUAGE}/mean", "tokens": "completions/mean_length",
         "no spread": "frac_reward_zero_std"}


def curve(metrics, name, width=5):
    """A metric over steps, each the mean of the last `width` steps."""
    values = [step[PATHS[name]] for step in metrics]
    parts = [values[max(0, i - width + 1):i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def draw(axis, metrics, name, **style):
    values = curve(metrics, name)
    axis.plot(range(1, len(values) + 1), values, **style)


def passes(metrics, name, level=0.9):
    """The first step whose value is at least `level`; the number of steps if none is."""
    values = curve(metrics, name)
    return next((i + 1 for i, value in enumerate(values) if value >= level), len(values))


figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.3))
for name, colour, dash in (("format", AMBER, "-."), ("right", BLUE, "-"), ("Korean", GREY, ":")):
    draw(axes[0], zero_curve, name, color=colour, linestyle=dash, label=name)
axes[0].set(title="R1-Zero: the format first, then the answer", ylim=(0, 1.03), xlabel="step",
            ylabel="share of completions, or of words")
axes[0].legend(loc="lower right")
draw(axes[1], zero_curve, "tokens", color=BLUE, linestyle="-", label="R1-Zero: answer and format")
draw(axes[1], fair_curve, "tokens", color=AMBER, linestyle="-.",
     label="format alone, Dr. GRPO's loss")
draw(axes[1], formal_curve, "tokens", color=RED, linestyle="--", label="format alone")
for kind, label in (("worked", "worked reasoning"), ("none", "no reasoning")):
    axes[1].axhline(kinds[kind][2], color=GREY, linestyle=":", linewidth=1)
    axes[1].text(1, kinds[kind][2] + 0.3, label, color=GREY, fontsize=8)
axes[1].set(title="Length follows the reward, and the loss", ylim=(0, 27), xlabel="step",
            ylabel="tokens per completion")
axes[1].legend(loc="lower right")
keep(figure, "10_r1_zero")

print(f"R1-Zero passes 0.9: format at step {passes(zero_curve, 'format')}, right answers at step "
      f"{passes(zero_curve, 'right')} of {STEPS}")
assert passes(zero_curve, "format") < passes(zero_curve, "right"), "the format comes first"
assert only_format.rewards["format_reward"] > 0.9, "with its reward alone the format comes"
assert only_format.accuracy < before.accuracy, "and the answer does not"
assert only_fair.accuracy < before.accuracy + 0.05, "nor with Dr. GRPO's loss"
assert zero_curve[-1]["completions/clipped_ratio"] < 0.05, "nothing is cut off"
assert only_format.mean_length < min(before.mean_length, after.mean_length) - 2
assert only_fair.mean_length > only_format.mean_length + (0.5 if FAST else 2)
if not FAST:       # 14 steps from a weaker base model are too few for what follows
    assert after.accuracy > before.accuracy + 0.3
    assert after.mean_length > before.mean_length + 3, "R1-Zero's reasoning grows"
    assert after.rewards[LANGUAGE] < 0.7, "the languages stay mixed"

# %% [markdown]
# *Left: means of the last five steps of training. Right: the dotted lines are the mean lengths of
# the base model's completions of two kinds.*
#
# The format needs one habit, the same for all problems. A quarter of the base model's completions
# lack it, so nearly every group has spread in it. The answer needs every column of every problem,
# and nothing but the accuracy rewards it: with the format alone, right answers become fewer. A
# reward that rises may be the format alone. Look at the accuracy by itself.

# %% [markdown]
# ## SFT first, or not?
#
# R1-Zero needed no SFT: nearly half of the base model's completions were right. Now the same base
# model gets **word problems**. It can add, but of word problems it has read answers without
# reasoning, and it writes what it has read. We train with the rules of eq. 4, once from the base
# model, and once after SFT on 128 demonstrations that people (here: a program) worked out.

# %%
people = demonstrations(STORIES, 128, random.Random(1))
primed = train_sft(copy.deepcopy(base), tokenizer, people, COLD_START_SFT, seed=0)
WORD_STEPS = 12 if FAST else 30
direct, direct_curve = reinforce("no SFT first", base, RULES, STORIES, WORD_STEPS)
taught, taught_curve = reinforce("SFT first", primed, RULES, STORIES, WORD_STEPS)
print()
stories = {name: worth(name, policy, STORIES) for name, policy in (
    ("base model, word problems", base), ("no SFT, then RL", direct),
    ("SFT on 128 demonstrations", primed), ("SFT, then RL", taught))}

# %% [markdown]
# Before any training, how many groups have something to teach? By hand from the share of right
# completions, and counted (groups of the four samples of a problem). By hand it is a little more:
# problems differ, and an easy or a hard one has less spread than one of middling difficulty.

# %%
def groups_with_both(result):
    """The share of problems that have right and wrong samples."""
    rows = result.verdicts["accuracy"]
    return sum(0 < sum(row) < len(row) for row in rows) / len(rows)


for name, result in (("sums", before), ("word problems", stories["base model, word problems"])):
    print(f"{name:14} right {result.accuracy:.3f}   groups of 4 with spread: by hand "
          f"{chance_of_spread(result.accuracy, 4):.3f}, counted {groups_with_both(result):.3f}")
assert groups_with_both(before) > (0.2 if FAST else 0.6)
assert groups_with_both(stories["base model, word problems"]) < 0.1

# %% [markdown]
# Without SFT the reward rises nevertheless, and it is all format. Right answers are so rare that
# few groups have one, and once the format is learnt most groups are equal: nothing is left to learn
# from.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0))
TITLES = {"right": "Right answers", "format": "Format", "no spread": "Groups without spread"}
for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
    draw(axis, direct_curve, name, color=RED, linestyle="--", label="no SFT first")
    draw(axis, taught_curve, name, color=BLUE, linestyle="-", label="SFT first")
    axis.set(title=title, ylim=(-0.02, 1.03), xlabel="step")
axes[0].set_ylabel("share")
axes[0].legend(loc="center right")
keep(figure, "10_sft_first")

last = curve(direct_curve, "no spread")[-1]
print(f"groups without spread in the last steps, no SFT first: {last:.2f}")
assert stories["no SFT, then RL"].rewards["format_reward"] > 0.9 and last > 0.5
assert stories["no SFT, then RL"].accuracy < 0.1, "the format came, the answer did not"
assert stories["no SFT, then RL"].mean_length < 10, "and nothing grew"
assert stories["SFT on 128 demonstrations"].accuracy > 0.08
assert taught_curve[0]["frac_reward_zero_std"] < 0.2
if not FAST:       # SFT and RL are as good as the base model's sums, and here it adds less well
    assert stories["SFT on 128 demonstrations"].accuracy > 0.4
    assert stories["SFT, then RL"].accuracy > stories["SFT on 128 demonstrations"].accuracy + 0.15

# %% [markdown]
# 128 demonstrations are far too few to teach addition: the base model needed thousands of texts for
# that. They taught the policy to use, in word problems, what it could do already. RL does the
# rest. That is what a cold start is for. So before you train, sample a few hundred completions of
# your problems, and count how many groups have both right and wrong ones.

# %% [markdown]
# ## A reward for Korean
#
# R1-Zero's reasoning is in two languages. Three runs from the same base model differ in what is
# rewarded: right answers (that is R1-Zero, from above), right answers in Korean, only Korean.

# %%
LESS = 7 if FAST else STEPS
both, both_curve = reinforce("right, in Korean", base, {**RULES, LANGUAGE: 1.0}, steps=LESS)
only, only_curve = reinforce("only Korean", base, {LANGUAGE: 1.0}, steps=LESS)
print()
in_korean, just_korean = worth("right answers in Korean", both), worth("only Korean", only)
print("for example", just_korean.completions[0][0])

figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
RUNS = {"right answers": (zero_curve, GREY, ":"),
        "right answers in Korean": (both_curve, BLUE, "-"), "only Korean": (only_curve, RED, "--")}
for axis, (name, title) in zip(axes, {"Korean": "Words of the reasoning in Korean",
                                      "right": "Right answers"}.items(), strict=True):
    for label, (metrics, colour, dash) in RUNS.items():
        draw(axis, metrics, name, color=colour, linestyle=dash, label=f"rewarded: {label}")
    axis.set(title=title, ylim=(0, 1.03), xlabel="step", ylabel="share")
axes[0].legend(loc="lower right")
keep(figure, "10_korean")

korean_of = {name: result.rewards[LANGUAGE] for name, result in (
    ("rules", after), ("both", in_korean), ("only", just_korean))}
assert min(korean_of["both"], korean_of["only"]) > korean_of["rules"] + 0.1, "rewarded: it comes"
assert just_korean.accuracy < in_korean.accuracy, "rewarding only Korean teaches no addition"
if not FAST:
    assert min(korean_of["both"], korean_of["only"]) > 0.85
    assert in_korean.accuracy > after.accuracy - 0.05, "Korean costs little accuracy"
    assert just_korean.accuracy < before.accuracy - 0.05
    assert kinds_of(just_korean)["brief"][0] > 3 * kinds["brief"][0], "it is brief"

# %% [markdown]
# Where right answers are rewarded, too, Korean costs hardly any accuracy. Where it is the only
# reward, the accuracy falls below that of the base model: brief reasoning in Korean earns as much
# as worked reasoning, and it is shorter.

# %% [markdown]
# ## In the loop
#
# All of DeepSeek-R1 is one page, `minirl/train/r1.py`, whose lines are other pages. These are its
# stages:

# %%
for line in inspect.getsource(train_r1).splitlines():
    if re.match(r" +# \d\. ", line):
        print(line.strip())

# %% [markdown]
# We go through the first three on our sums. The data of the **cold start** are R1-Zero's own
# outputs: what is right and in the format is kept, and rewritten in one language where it mixes
# two. In the paper people and another model refine the outputs. Here `rewrite` replaces words:

# %%
problem = BilingualProblem("", "7", language="ko")
refined = rewrite(problem, completions[1])
print(f"{completions[1]}\n{refined}")
assert refined == "<think>일의 자리: 삼 더하기 사 은</think><answer>7</answer>"
show(cold_start_pairs)

# %%
ASK = R1Config(cold_start_problems=128 if FAST else 96, kept_problems=128 if FAST else 512,
               kept_samples=4, max_new_tokens=LONGEST)
unchanged = cold_start_pairs(zero, tokenizer, SUMS, ASK, None, seed=0, required=False)
pairs = cold_start_pairs(zero, tokenizer, SUMS, ASK, rewrite, seed=0)  # step in: cold_start_pairs
print(f"{ASK.cold_start_problems} problems: {len(unchanged)} outputs of R1-Zero are right and in "
      f"Korean as they are, {len(pairs)} after rewriting")
cold = train_sft(copy.deepcopy(base), tokenizer, pairs, COLD_START_SFT, seed=0)

first, _ = reinforce("after the cold start", cold, {**RULES, LANGUAGE: 1.0},
                     steps=8 if FAST else 30)
kept = rejection_sample(first, tokenizer, SUMS, ASK, seed=0)
second = train_sft(copy.deepcopy(base), tokenizer, kept, SECOND_SFT, seed=0)
print(f"{ASK.kept_problems} problems: {len(kept)} completions are kept by rejection sampling\n")
STAGES = {"base model": base, "R1-Zero": zero, "cold start: SFT on its own": cold,
          "RL with language reward": first, "SFT on what is kept": second}
stages = {name: worth(name, policy) for name, policy in STAGES.items()}

# %% [markdown]
# Read it line by line. R1-Zero buys right answers, in mixed languages. The cold start is SFT of the
# base model on a few outputs: it buys Korean, and costs accuracy. RL with the language reward wins
# the accuracy back and keeps to Korean. The last line starts from the base model again, as in the
# paper: SFT on completions of the RL policy that are right, in the format and in one language
# (**rejection sampling**). It is better than the policy that wrote them, since it has seen its good
# completions alone, and it keeps to Korean though no reward asks for it any more.

# %%
figure, axis = plt.subplots(figsize=(9.6, 2.9))
LABELS = ("base model", "R1-Zero", "cold start", "RL with\nlanguage reward", "SFT on\nwhat is kept")
for shift, (label, metric, colour) in zip((-0.2, 0.2), (
        ("right answers", "accuracy", BLUE), ("words in Korean", LANGUAGE, AMBER)), strict=True):
    heights = [result.rewards[metric] for result in stages.values()]
    bars = axis.bar([i + shift for i in range(5)], heights, 0.38, color=colour, label=label)
    axis.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
axis.set(xticks=range(5), xticklabels=LABELS, ylim=(0, 1.2), ylabel="share",
         title="What each stage buys")
axis.grid(axis="x", alpha=0)
axis.set_axisbelow(True)
axis.legend(ncols=2, loc="upper left", bbox_to_anchor=(0.0, 1.02))
keep(figure, "10_stages")

right_of = {name: result.accuracy for name, result in stages.items()}
korean_of = {name: result.rewards[LANGUAGE] for name, result in stages.items()}
assert len(pairs) > 1.5 * len(unchanged), "rewriting saves most of what R1-Zero wrote"
assert all(language_consistency([""], [text], ["ko"]) == [1.0] for _, text in pairs + kept)
assert korean_of["cold start: SFT on its own"] > korean_of["R1-Zero"] + 0.1
assert korean_of["SFT on what is kept"] > (0.8 if FAST else 0.95), "Korean, without a reward for it"
if not FAST:
    assert right_of["cold start: SFT on its own"] < right_of["R1-Zero"] - 0.03
    assert right_of["RL with language reward"] > right_of["cold start: SFT on its own"] + 0.03
    assert korean_of["RL with language reward"] > 0.9
    assert right_of["SFT on what is kept"] > right_of["RL with language reward"]

# %% [markdown]
# ## Break it
#
# Equation 7 gives 0 to an empty chain of thought. A "cleaner" version could give 1: no word of it
# is in another language. Then not thinking at all is the surest way to keep to one language. By
# hand, on the four completions from above, and then in a run from the base model:

# %%
def lenient(prompts, completions, language, **_):
    shares = language_consistency(prompts, completions, language)
    return [1.0 if "<think></think>" in text else share
            for text, share in zip(completions, shares, strict=True)]


adv = group_advantages(torch.tensor([lenient([""] * 4, completions, ["ko"] * 4)]))    # (1, 4)
print("advantages if an empty chain of thought gets 1:", adv)
assert adv[0, 3] == adv[0, 0] > 0, "not thinking is rewarded like thinking in Korean"

silent, silent_curve = reinforce("empty gets 1", base, {"lenient": 1.0}, steps=7 if FAST else 25,
                                 extra={"lenient": lenient})
quiet = worth("empty gets 1", silent)
print(f"completions without reasoning: {kinds['none'][0]:.2f} before, "
      f"{kinds_of(quiet)['none'][0]:.2f} after")
assert kinds_of(quiet)["none"][0] > kinds["none"][0] + (0.1 if FAST else 0.5)
assert quiet.accuracy < before.accuracy

# %% [markdown]
# ## Exercises
#
# The answers are in `tutorials/solutions/10_deepseek_r1.py`.

# %%
def exercise_1(words, is_korean):
    """Equation 7 for reasoning that is already split into words: is_korean(word) says which words
    count. No words give 0."""
    raise NotImplementedError


def check_1(share):
    cases = [("가 나", 1.0), ("가 x", 0.5), ("x", 0.0), ("", 0.0), ("가 x y 나", 0.5),
             ("가 가 x", 2 / 3)]
    for text, expected in cases:
        value = share(text.split(), lambda word: word in "가나다라")
        assert value == expected, f"for {text.split()} it is {value}, and should be {expected}"


judge(check_1, exercise_1)


# %%
def exercise_2():
    """Two completions of a group are right and in English, two are wrong and in Korean. Accuracy
    has weight 1. Return the weight of the language reward at which both kinds get the same
    advantage."""
    raise NotImplementedError


def check_2(answer):
    weight = answer()
    adv = group_advantages(torch.tensor([[1.0, 1.0, weight, weight]]))
    assert torch.equal(adv, torch.zeros(1, 4)), f"with {weight} the advantages are {adv.tolist()}"


judge(check_2, exercise_2)


# %%
def exercise_3(p):
    """Return the smallest group size at which a group has both right and wrong completions with
    probability 1/2 or more, if a completion is right with probability p."""
    raise NotImplementedError


def check_3(size):
    for p, expected in ((0.5, 2), (0.1, 7), (0.9, 7), (0.01, 69), (0.007, 99)):
        assert size(p) == expected, f"for p = {p} it is {size(p)}, and should be {expected}"


judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | DeepSeek-R1 (numbers: v2, Nature) | here |
# |---|---|---|
# | model | 671 billion parameters | 0.3 million |
# | problems | mathematics, code, science | sums |
# | R1-Zero: lr, KL, temperature | 3e-6, 0.001, 1 | 6e-4, 0.001, 1 |
# | samples of a prompt; steps | 16; 10,400 | 8; 50 |
# | length of R1-Zero's reasoning | grows over thousands of steps | 16 to 21 tokens: all there is |
# | ratio in GRPO (tutorial 09) | of the sequence; clip 10 in R1's first RL | per token; clip 0.2 |
# | cold start | thousands of outputs, refined by people | 96 problems, words replaced |
# | language reward | eq. 7, in R1's first RL; costs a little accuracy | the same; hardly any |
# | rejection sampling | 600,000 completions, 200,000 of other tasks | 512 problems |
# | second RL | 1,700 steps, temperature 0.7; preferences in the last 400 | none |
#
# `minirl r1` runs all stages, on harder sums and on word problems. The table has means and 95 %
# intervals over three seeds, on hard problems except for the first column
# (`python benchmarks/r1.py`; more in [benchmarks/RESULTS.md](../benchmarks/RESULTS.md)). In these
# runs the cold start came from 300 demonstrations, as it might come from people. The win rate is
# that of general answers against those of the stage sft.
#
# | stage | easy | hard | language | tokens | win rate |
# |---|---|---|---|---|---|
# | base | 0.412 ± 0.083 | 0.407 ± 0.073 | 0.447 ± 0.044 | 20.2 ± 1.0 | 0.458 ± 0.085 |
# | r1-zero | 0.973 ± 0.007 | 0.967 ± 0.011 | 0.748 ± 0.011 | 29.6 ± 0.7 | 0.483 ± 0.119 |
# | cold-start | 0.946 ± 0.005 | 0.931 ± 0.020 | 0.952 ± 0.009 | 29.4 ± 0.5 | 0.474 ± 0.099 |
# | rl-1 | 0.986 ± 0.007 | 0.972 ± 0.005 | 0.991 ± 0.005 | 29.8 ± 0.5 | 0.482 ± 0.058 |
# | sft | 0.993 ± 0.008 | 0.989 ± 0.009 | 0.998 ± 0.001 | 29.8 ± 0.5 | 0.500 ± 0.000 |
# | rl-2 | 0.993 ± 0.006 | 0.987 ± 0.012 | 0.999 ± 0.001 | 29.8 ± 0.5 | 0.505 ± 0.030 |
# | prefer-1 | 0.993 ± 0.006 | 0.986 ± 0.013 | 0.999 ± 0.002 | 29.8 ± 0.5 | 0.600 ± 0.078 |
# | prefer-2 | 0.994 ± 0.007 | 0.986 ± 0.013 | 0.999 ± 0.001 | 29.8 ± 0.5 | 0.693 ± 0.031 |
#
# The stages rl-2 and prefer are the second RL: by the rules, then by preference as well. Today the
# default cold start comes from R1-Zero's own outputs, as above. A newer run of three seeds compares
# the two from the same base models (hard problems):
#
# | cold start from | cold-start: right | language | rl-1: right | prefer-2: right |
# |---|---|---|---|---|
# | R1-Zero's own outputs | 0.950 ± 0.047 | 0.977 ± 0.010 | 0.970 ± 0.035 | 0.980 ± 0.039 |
# | 300 demonstrations | 0.914 ± 0.072 | 0.947 ± 0.027 | 0.962 ± 0.041 | 0.986 ± 0.022 |
#
# As in the paper: the reasoning of R1-Zero grows and keeps mixing languages; the base model
# fine-tuned on kept completions is better than the policy that wrote them; preferences improve
# general answers alone. Not as in the paper: the cold start alone removes most of the mixing, and
# rl-2 finds nothing left to learn.
#
# R1's smaller models learn from the large one by SFT alone. `distill` in `minirl/train/r1.py` does
# that beside RL on the smaller model. On hard problems SFT reached 0.955 ± 0.022 and RL
# 0.876 ± 0.044 (same runs, three seeds).

# %% [markdown]
# ## Find the bug
#
# This format reward has a bug, modelled on a real one, and nothing crashes. It is silent until a
# policy finds it. Write a test that passes for `format_reward` and fails for this one.

# %%
PATTERN = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)


def format_by_pattern(prompts, completions, **_):
    """1.0 for <think>…</think><answer>…</answer>, each tag once and in this order, else 0.0."""
    return [float(PATTERN.fullmatch(text) is not None) for text in completions]


def exercise_bug(function):
    """Raise AssertionError where function(prompts, completions) is no right format reward."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, format_reward, format_by_pattern)


judge(check_bug, exercise_bug)
