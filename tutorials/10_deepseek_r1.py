# %% [markdown]
# # A reward for Korean: language consistency and the stages of DeepSeek-R1
#
# Paper: DeepSeek-R1, [arXiv:2501.12948v2](https://arxiv.org/abs/2501.12948) (Nature 2025), eqs. 4
# and 7; rejection sampling and distillation.
# Code: `minirl/tasks/rewards.py` `language_consistency`, `minirl/tasks/bilingual.py`,
# `minirl/train/r1.py`.
# Tests: `tests/tasks/test_rewards.py`, `tests/tasks/test_bilingual.py`, `tests/train/test_r1.py`.
# Time: 4 minutes on two CPU cores; with `MINIRL_FAST=1` one minute.
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | language, rewarded | above 0.97 within 40 steps | lr too low, or no group mixes languages |
# | language, not rewarded | stays about where it was | print the rewards of one group |
# | accuracy beside the language reward | close to the run without it | lower its weight |
# | accuracy when only Korean is rewarded | falls behind | (this is expected) |

# %%
import copy
import os
import random
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from minirl.equations.advantages import group_advantages
from minirl.inference.evaluate import evaluate
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.bilingual import WORDS, Bilingual, demonstrations
from minirl.tasks.problem import JudgedTask
from minirl.tasks.rewards import language_consistency
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.r1 import R1Config, rejection_sample
from minirl.train.sft import SFTConfig, train_sft

FAST = os.environ.get("MINIRL_FAST") == "1"
HERE = Path(globals().get("__file__", "")).parent
FIGURES = Path(tempfile.mkdtemp()) if FAST else HERE / "figures"

# %% [markdown]
# ## Question
#
# R1-Zero was rewarded for right answers in the right format, and it mixed languages in its
# reasoning. A mixture is not wrong, so no reward discouraged it. What does a reward for one
# language change, and what does it cost?

# %% [markdown]
# ## By hand
#
# Equation 7 is the share of words in the chain of thought that belong to the target language.
# Numbers and signs belong to no language and do not count as words.

# %%
completions = [
    "<think>일의 자리: 삼 더하기 사 은 칠</think><answer>7</answer>",        # 7 words, 7 Korean
    "<think>일의 자리: 삼 plus four is</think><answer>7</answer>",          # 6 words, 3 Korean
    "<think>ones: three plus four is seven</think><answer>7</answer>",      # none is Korean
    "<think></think><answer>7</answer>",                                    # no words: 0, not 1
]
shares = language_consistency([""] * 4, completions, language=["ko"] * 4)
print("eq. 7, target language Korean:", shares)
assert shares == [1.0, 1 / 2, 0.0, 0.0]

# %% [markdown]
# All four answers are right. With the rules alone (accuracy + format, 2 for each completion) the
# group has no spread, and GRPO learns nothing from it. The language reward breaks the tie:

# %%
rules, korean = torch.full((1, 4), 2.0), torch.tensor([shares])             # (1, 4) each
print("advantages, rules alone:   ", group_advantages(rules))
print("advantages, with language: ", group_advantages(rules + korean))
assert bool((group_advantages(rules) == 0).all())
assert group_advantages(rules + korean).argmax() == 0
assert group_advantages(rules + korean)[0, 2] < 0

# %% [markdown]
# ## The function in the loop
#
# The base model has read sums in two languages. In half of what it read, the reasoning mixes them.
# The target language is Korean, whatever language the prompt is in. Three runs start from the same
# base model. They differ in what is rewarded: right answers, right answers in Korean, only Korean.

# %%
task = Bilingual((2,), stories=0.0, reason_in="ko")
texts = demonstrations(Bilingual((2,), stories=0.0), 14_000 if FAST else 24_000, random.Random(0),
                       worked_share=0.6, brief_share=0.2, mixed_share=0.5, slip_share=0.5)
base, tokenizer = make_base(TinySizes(), seed=0, device="cpu", words=WORDS)
train_sft(base, tokenizer, texts, SFTConfig(), seed=0)

config = GRPOConfig(steps=40 if FAST else 80, max_new_tokens=32, kl_coef=0.001, lr=6e-4)
WEIGHTS = {
    "right answers": dict(accuracy=1.0, format_reward=1.0, language_consistency=0.0),
    "right answers in Korean": dict(accuracy=1.0, format_reward=1.0, language_consistency=1.0),
    "only Korean": dict(accuracy=0.0, format_reward=0.0, language_consistency=1.0),
}
policies, curves, accuracy, language = {}, {}, {}, {}
for name, weights in WEIGHTS.items():
    curves[name] = []
    policies[name] = train_grpo(
        copy.deepcopy(base), tokenizer, JudgedTask(task, task.rewards, weights), config, seed=0,
        log=lambda step, metrics, name=name: curves[name].append(metrics))
    result = evaluate(policies[name], tokenizer, task, n=256, samples=4, max_new_tokens=32)
    accuracy[name], language[name] = result.accuracy, result.rewards["language_consistency"]
    print(f"{name:24}  accuracy {accuracy[name]:.3f}   Korean {language[name]:.3f}")
    print(f"    for example {result.completions[0][0]}")

both = "right answers in Korean"
assert min(language[both], language["only Korean"]) > (0.9 if FAST else 0.97), "rewarded: it comes"
assert language["right answers"] < 0.8, "not rewarded: the languages stay mixed"
assert accuracy[both] > accuracy["right answers"] - 0.05, "Korean costs little accuracy"
assert accuracy["only Korean"] < accuracy[both] - 0.03, "rewarding only Korean teaches no addition"

# %% [markdown]
# ## Picture

# %%
FIGURES.mkdir(exist_ok=True)
figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.2), layout="constrained")
PANELS = {"language_consistency": "Words of the reasoning in Korean", "accuracy": "Right answers"}
for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
    for (name, metrics), colour in zip(curves.items(), ("#4b5563", "#2563a8", "#c8553d"),
                                       strict=True):
        axis.plot(range(1, len(metrics) + 1), [m[f"rewards/{metric}/mean"] for m in metrics],
                  color=colour, label=f"rewarded: {name}")
    axis.set(ylim=(0, 1.03), xlabel="step", ylabel="share")
    axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].legend(fontsize=8, frameon=False, loc="lower right")
figure.savefig(FIGURES / "korean.png", dpi=130)
plt.close(figure)
print("wrote korean.png")

# %% [markdown]
# ![Words in Korean, and right answers, for the three rewards](figures/korean.png)
#
# ## From a reward to data: rejection sampling
#
# The second half of DeepSeek-R1 starts again from the base model. It is fine-tuned on completions
# of the first half's policy that are right, in the format and in one language. The same three rules
# filter them. A model that is fine-tuned on the result keeps to Korean without a reward.

# %%
numbers = R1Config(kept_problems=256 if FAST else 1024, kept_samples=4, max_new_tokens=32)
kept = rejection_sample(policies[both], tokenizer, task, numbers, seed=0)
print(f"{len(kept)} completions kept, for example {kept[0]}")
assert all(language_consistency([""], [text], ["ko"]) == [1.0] for _, text in kept)
second = train_sft(copy.deepcopy(base), tokenizer, kept,
                   SFTConfig(epochs=3, lr=2e-3, warmup_steps=0), seed=0)
result = evaluate(second, tokenizer, task, n=256, samples=4, max_new_tokens=32)
korean_share = result.rewards["language_consistency"]
print(f"base model after SFT on them: accuracy {result.accuracy:.3f}, Korean {korean_share:.3f}")
assert korean_share > 0.95

# %% [markdown]
# ## Break it
#
# Equation 7 gives 0 to an empty chain of thought. If it gave 1 ("no word in another language"),
# not thinking at all would be the surest way to keep to one language:

# %%
lenient = [1.0 if "<think></think>" in text else share
           for share, text in zip(shares, completions, strict=True)]
adv = group_advantages(torch.tensor([lenient]))                             # (1, 4)
print("advantages if an empty chain of thought gets 1:", adv)
assert adv[0, 3] == adv[0, 0] > 0, "not thinking is rewarded like thinking in Korean"

# %% [markdown]
# ## Exercises
#
# 1. Write equation 7 for reasoning that is already split into words: `share(words, is_korean)`,
#    0 for no words.
# 2. Two completions of a group are right and in English, two are wrong and in Korean. At which
#    weight of the language reward do both kinds get the same advantage, if accuracy has weight 1?
#
# The answers are in `tutorials/solutions/10_deepseek_r1.py`. `check_share` and `check_weight` tell
# you whether yours are right.

# %%
def check_share(share) -> None:
    korean = set("가나다라")
    cases = [(["가", "나"], 1.0), (["가", "x"], 0.5), (["x"], 0.0), ([], 0.0),
             (["가", "x", "y", "나"], 0.5)]
    for words, expected in cases:
        value = share(words, lambda word: word in korean)
        assert value == expected, f"share({words}) is {value}, and should be {expected}"
    print("share: right")


def check_weight(weight: float) -> None:
    accuracy = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    language = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    adv = group_advantages(accuracy + weight * language)
    assert torch.equal(adv, torch.zeros(1, 4)), f"with {weight} the advantages are {adv.tolist()}"
    print("weight: right")


# %% [markdown]
# ## Deltas from the paper
#
# The toy has sums in place of mathematics, and 0.3 million parameters in place of 671 billion. The
# paper reports that the language reward costs a little accuracy. Here it costs at most a few
# points.
#
# The whole pipeline is `minirl r1`. These are means and 95 % intervals over three seeds, on hard
# problems except for the first column (`python benchmarks/r1.py`; all columns are in
# [benchmarks/RESULTS.md](../benchmarks/RESULTS.md)). In these runs the cold start came from 300
# demonstrations. The win rate is that of general answers
# against those of the stage sft.
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
# r1-zero learns from right answers and format; cold-start is SFT of the base model; rl-1 adds the
# language reward; sft fine-tunes the base model on kept completions; rl-2 learns by the rules;
# prefer-1 learns by preference, too, and prefer-2 once more with a new reward model.
#
# As in the paper: the reasoning of R1-Zero grows and keeps mixing languages. The cold start ends
# the mixing and costs accuracy, which the next RL stage wins back. The base model fine-tuned on
# kept completions is better than the policy that wrote them. The last stage improves general
# answers. Not as in the paper: the cold start alone removes most of the mixing, and rl-2 finds
# nothing left to learn.
