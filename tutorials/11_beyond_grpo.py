# %%
# %pip install -q -e ..

# %% [markdown]
# # 11. DeepSeekMath beyond GRPO
#
# *Who is to blame for a wrong answer, who may call a calculator, and where do the texts come from?*
#
# - **Paper**: DeepSeekMath, [arXiv:2402.03300](https://arxiv.org/abs/2402.03300), sections 2.1, 3
#   and 4.1.3; Math-Shepherd, [arXiv:2312.08935](https://arxiv.org/abs/2312.08935), section 3.3;
#   fastText, [arXiv:1607.01759](https://arxiv.org/abs/1607.01759)
# - **Code**: `minirl/equations/advantages.py`: `process_advantages`; `minirl/equations/process.py`;
#   `minirl/tasks/tools.py`; `minirl/corpus/mining.py`
# - **Tests**: `tests/equations/test_process.py`, `tests/train/test_grpo_tools.py`,
#   `tests/corpus/test_mining.py`
# - **Before this**: 04 (credit per token), 08 (GRPO)
# - **Time**: 25 s on two CPU cores, with `MINIRL_FAST=1` as well
# - **Expect**: a true step of a wrong solution gets -1.94, a classifier finds topics without seeds
# - **Sweep**: `minirl prm`, `minirl grpo --task products --tools calculator`, `minirl mine`
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | advantage of the first wrong step, if all behind it are wrong | the lowest | shifted steps |
# | gradient of what a tool answered | 0 | it is in the mask |
# | pages kept as in the round before | rises to 98 % | the seeds still grow: another round |

# %%
import random
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import torch

from lesson import BLUE, GREEN, GREY, RED, judge, judge_test, keep, near, show
from minirl.corpus.classifier import TextClassifier
from minirl.corpus.decontaminate import NgramIndex
from minirl.corpus.mining import rank_and_cut, rich
from minirl.corpus.web import MATHS, benchmark, seed_texts, web
from minirl.equations.advantages import group_advantages, process_advantages
from minirl.equations.process import hard_estimate, soft_estimate
from minirl.inference.collect import collect
from minirl.lm.logprobs import token_logprobs
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.products import Products, product_demonstrations
from minirl.tasks.tools import TOOL_WORDS, calculate
from minirl.train.sft import SFTConfig, train_sft

# %% [markdown]
# ## The question
#
# GRPO is one section of a paper that has more: rewards for steps, tools, and a corpus of 120
# billion tokens. Readers ask:
#
# - *Is a step of the pseudocode a token, or a whole answer?*
#   [DeepSeek-Math#40](https://github.com/deepseek-ai/DeepSeek-Math/issues/40)
# - *Where is a trainer for process rewards?*
#   [trl#2127](https://github.com/huggingface/trl/pull/2127)
#
# The short answer. A step is a line of reasoning. Its reward is compared with those of *all steps*
# of the group, and every token gets the sum of the rewards from its step on. A tool's answer is
# read, and not learnt. And the texts come from a classifier that learns from what it found.

# %% [markdown]
# ## By hand
#
# Two solutions of "47+85=" with three steps each: two columns and the answer. The second forgets
# the carry in its second column. A step writes its column's total, then the digits found so far: 12
# first, then 13 and the 2. A reward for each step says whether it is true:
#
# | | step 1 | step 2 | answer |
# |---|---|---|---|
# | "7+5+0=12, 4+8+1=132, 132" | 1 | 1 | 1 |
# | "7+5+0=12, 4+8+0=122, 122" | 1 | 0 | 0 |
#
# **Outcome supervision** sees 1 and 0: mean 1/2, standard deviation 0.707, so every token of the
# first solution gets 0.707, and every token of the second -0.707. **Process supervision** has six
# rewards: mean 2/3, variance (4/9 + 8/9)/5 = 0.267, standard deviation 0.516. A true step is
# (1 - 2/3)/0.516 = 0.645, a wrong one -1.291. Then each step gets the **sum to the end**:
#
# | | step 1 | step 2 | answer |
# |---|---|---|---|
# | first | 3 · 0.645 = 1.936 | 1.291 | 0.645 |
# | second | 0.645 - 2.582 = -1.936 | -2.582 | -1.291 |

# %%
step_rewards = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]])            # (P, G, S) = (1, 2, 3)
adv = process_advantages(step_rewards, eps=0.0)  # step in: process_advantages
print("outcome:", group_advantages(step_rewards[..., -1], eps=0.0).round(decimals=3).tolist())
print("process:", adv.round(decimals=3).tolist())
assert near(adv[0, 1], [-1.9365, -2.5820, -1.2910], 1e-4)

# %% [markdown]
# The first wrong step has the lowest advantage: there is the blame. But the first step of the
# second solution is *true*, and gets -1.936 all the same, as the sum looks at what comes. It is no
# verdict on the step, it is a return, as in tutorial 04. Only beside the first solution, where the
# same step has 1.936, does it cancel out.
#
# Who knows whether a step is true? **Math-Shepherd** asks the policy: go on from the step N times.
# The share of right answers is its *soft* label, whether any was right its *hard* one. With N = 4:

# %%
verdicts = torch.tensor([[1.0, 1.0, 0.0, 1.0],       # from step 1: a carry may still be forgotten
                         [0.0, 0.0, 0.0, 0.0],       # from "4+8+0=122": hopeless
                         [0.0, 1.0, 0.0, 0.0]])      # the same, and one made a second mistake
soft = soft_estimate(verdicts)
print("soft:", soft.tolist(), " hard:", hard_estimate(soft).tolist())
assert hard_estimate(soft).tolist() == [1.0, 0.0, 1.0] and soft.tolist() == [0.75, 0.0, 0.25]

# %% [markdown]
# The third row is the trouble with hard labels: with enough completions one is right by luck.
#
# ## The function

# %%
show(process_advantages)

# %% [markdown]
# ## Picture
#
# How often is a hard label wrong? A wrong step passes if one of N completions is right by luck, in
# $1 - (1 - \epsilon)^N$ of the cases. A true step fails if none is right, in $(1 - p)^N$, where p
# is how often the policy ends well from there. More completions repair the one and spoil the other.

# %%
N = torch.arange(1, 65).double()
figure, axis = plt.subplots(figsize=(6.0, 3.3))
for luck, dash in ((0.01, "-"), (0.05, "--")):
    axis.plot(N, 1 - (1 - luck) ** N, color=RED, linestyle=dash,
              label=f"wrong step passes, luck {luck}")
for p, dash in ((0.5, "-"), (0.1, "--")):
    axis.plot(N, (1 - p) ** N, color=BLUE, linestyle=dash, label=f"true step fails, p = {p}")
axis.axvline(8, color=GREY, linewidth=0.8, linestyle=":")
axis.set(title="Errors of a hard label from N completions (paper: 8)", xlabel="N",
         ylabel="chance of a wrong label", xscale="log", ylim=(0, 1.35))
axis.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
axis.minorticks_off()
axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
axis.legend(loc="upper left", ncols=2)
keep(figure, "11_labels")
print(f"N = 8: {1 - 0.95 ** 8:.2f} of wrong steps pass at a luck of 0.05, {0.9 ** 8:.2f} of true "
      "ones fail at p = 0.1")

# %% [markdown]
# ## In the loop
#
# **A tool.** A small model has read products: half of them call a calculator, half are guessed. It
# writes `<tool>47*36</tool>`, then the result is put into its row, and it goes on. The row is one
# sequence of ids; the mask says which of them the policy has drawn.

# %%
task = Products(digits=2)
base, tokenizer = make_base(TinySizes(hidden_size=48, num_layers=2, num_heads=4,
                                      intermediate_size=192), seed=0, device="cpu",
                            words=TOOL_WORDS)
pairs = product_demonstrations(task, 3000, random.Random(0), tool_share=0.5)
train_sft(base, tokenizer, pairs, SFTConfig(lr=5e-3), seed=0)
answers = collect(base, tokenizer, task, task.sample(32, random.Random(1)), max_new_tokens=48,
                  tools=[calculate], generator=torch.Generator().manual_seed(0))
calls = [session.calls for session in answers.sessions]
row = next(i for i, text in enumerate(answers.completions)
           if "<result>" in text and text.isascii())
rollouts = answers.rollouts.rows(torch.tensor([row]))
ids, mask = rollouts.tokens[0], rollouts.mask[0]
start, end = int(rollouts.prompt_lengths[0]), int(rollouts.lengths[0])
print("the row:    ", answers.completions[row])
print("drawn:      ", "".join("." if m else "_" for m in mask[start:end].tolist()),
      "  (_: what the calculator answered)")
print(f"{sum(calls)} calls in {len(calls)} completions")
leaf = token_logprobs(base, rollouts.tokens, mask=rollouts.mask)              # (1, T)
answered = (~mask[start:end]).nonzero().squeeze(1) + start
assert sum(calls) > 0 and len(answered) > 0 and bool((leaf[0, answered] == 0).all())

# %% [markdown]
# What was answered has no log-prob, so nothing that is made of log-probs learns from it. But the
# next tokens attend to it. (Whether the model copies the result yet is what a reward is for.)
#
# **A corpus.** DeepSeekMath starts from a seed corpus of mathematical pages, and finds 35 million.
# Here is a web of 6,000 pages whose truth is known. Its mathematics has six topics, and the seeds
# are about the first two. A round: learn to tell the seeds from random pages, rank the web, keep
# the best sixth. A part of a site of which more than half was kept is mathematical, and all its
# pages are seeds for the next round.

# %%
pages = list(web(6000, seed=0))
texts, words = [page.text for page in pages], np.array([len(page.text.split()) for page in pages])
topics = np.array([page.fields["topic"] for page in pages])
sites = [page.site for page in pages]
seeds, rng, recalls, added = seed_texts(200), random.Random(0), [], set()
for number in range(3):
    others = [i for i in rng.sample(range(6000), 600) if i not in added]
    known = seeds + [texts[i] for i in sorted(added)]
    classifier = TextClassifier(buckets=2 ** 15).fit(
        known + [texts[i] for i in others], [1] * len(known) + [0] * len(others))
    kept = rank_and_cut(classifier.scores(texts), words, int(words.sum() / 6))
    recalls.append([float(kept[topics == topic].mean()) for topic in MATHS])
    of_sites = Counter(site for site, k in zip(sites, kept, strict=True) if k)
    found = rich(of_sites, Counter(sites), 0.5)
    added = {i for i, site in enumerate(sites) if site in found}
    print(f"round {number + 1}: {len(known)} seeds, recall",
          *(f"{topic} {r:.2f}" for topic, r in zip(MATHS, recalls[-1], strict=True)), sep="  ")
figure, axis = plt.subplots(figsize=(6.8, 3.2))
for number, colour in enumerate((GREY, BLUE, GREEN)):
    axis.bar(np.arange(6) + 0.27 * (number - 1), recalls[number], 0.25, color=colour,
             label=f"round {number + 1}")
axis.set_xticks(range(6), [topic.replace(" ", "\n") for topic in MATHS])
axis.set(title="Pages of each topic that are found (seeds: sums, algebra)", ylabel="recall",
         ylim=(0, 1.25))
axis.legend(loc="upper right", ncols=3)
keep(figure, "11_recall")
first, last = recalls[0], recalls[-1]
assert min(first[:2]) > 0.6 and sum(last) > sum(first) + 0.5

# %% [markdown]
# Geometry and statistics, which no seed is about, are found nearly whole by the third round: they
# share sites with what was known. That is what the rounds are for: a classifier knows its seeds,
# and a site knows its neighbours. The last two topics are further away, and a sixth of the web is
# soon full without them. The first, unsure classifier keeps some of their pages; the next ones fill
# the sixth with pages that they are surer of. `minirl mine` takes four rounds and a larger web, and
# finds all six.

# %% [markdown]
# ## Break it
#
# Some of these pages quote the benchmark. Who trains on them measures memory. The paper throws a
# page out that has ten words in a row in common with a question, or a whole question of 3 to 9
# words. Before the filter, how many of the kept pages have one?

# %%
index = NgramIndex(benchmark(0))
contaminated = index.contained([text for text, k in zip(texts, kept, strict=True) if k])
planted = np.array([page.fields["planted"] for page in pages], bool)
print(f"{int(contaminated.sum())} of {int(kept.sum())} kept pages hold a question; "
      f"{int((kept & planted).sum())} were planted there")
assert int(contaminated.sum()) == int((kept & planted).sum())
one_word_off = NgramIndex(["What is 214 times 355 plus 120?"])
assert one_word_off.contains("WHAT IS 214 TIMES 355 PLUS 120")
assert not one_word_off.contains("What do 214 times 355 and 120 make?"), "a paraphrase passes"

# %% [markdown]
# ## Exercises
#
# Solutions: `tutorials/solutions/11_beyond_grpo.py`.

# %%
def exercise_1(step_rewards):
    """Return advantages in which a step is blamed for itself alone: each step reward normalised
    over all steps of its group, without the sum. (P, G, S), NaN: no such step -> (P, G, S), 0 there
    """
    raise NotImplementedError


def check_1(answer):
    nan = float("nan")
    rewards = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0], [1.0, nan, nan]]])
    wanted = torch.tensor([[[0.6455, 0.6455, 0.6455], [0.6455, -1.2910, -1.2910]],
                           [[-1.5, 0.5, 0.5], [0.5, 0.0, 0.0]]])
    came = answer(rewards)
    assert near(came, wanted, 2e-3), f"expected {wanted.tolist()}, got {came.tolist()}"


judge(check_1, exercise_1)


# %%
def exercise_2(p, luck, N):
    """Return the chances that a true step and a wrong one get the hard label 1, a pair.

    p, luck: how often the policy is right from either. N completions each.
    """
    raise NotImplementedError


def check_2(answer):
    for p, luck, n in ((0.5, 0.05, 8), (0.1, 0.0, 3), (1.0, 0.2, 1)):
        came, wanted = answer(p, luck, n), (1 - (1 - p) ** n, 1 - (1 - luck) ** n)
        assert near(came, wanted), f"p {p}, luck {luck}, N {n}: {wanted}, and yours is {came}"


judge(check_2, exercise_2)

# %% [markdown]
# ## Deltas from the paper
#
# | | paper (arXiv:2402.03300) | here |
# |---|---|---|
# | process rewards | a model, trained like Math-Shepherd's | the truth; `minirl prm` trains one |
# | tools | Python programs | a calculator that parses |
# | web | 40 billion pages | 6,000, made up, so that recall is known |
# | a mathematical site | a tenth of its pages is kept, and people look at paths | half |

# %% [markdown]
# ## Find the bug
#
# Another `process_advantages`, which passes for solutions of equal length. Write a test that it
# fails.

# %%
def advantages_with_a_bug(step_rewards):
    """Normalise step rewards over the group, then sum to the end. (P, G, S) -> (P, G, S)"""
    missing = step_rewards.isnan()
    filled = torch.where(missing, 0, step_rewards).flatten(1)
    steps = (filled - filled.mean(1, keepdim=True)) / (filled.std(1, keepdim=True) + 1e-4)
    steps = torch.where(missing, 0, steps.view_as(step_rewards))
    return steps.flip(-1).cumsum(-1).flip(-1)


def exercise_bug(function):
    """Raise AssertionError unless function(step_rewards) is right: (P, G, S) -> (P, G, S)."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, process_advantages, advantages_with_a_bug)


judge(check_bug, exercise_bug)
