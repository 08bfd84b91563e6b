# %% [markdown]
# # A reward for Korean: language consistency and DeepSeek-R1's stages
#
# Paper: DeepSeek-R1, [arXiv:2501.12948v2](https://arxiv.org/abs/2501.12948) (Nature 2025), eqs. 4 and 7; rejection sampling and distillation.
# Code: `minirl/tasks/rewards.py` `language_consistency`, `minirl/tasks/bilingual.py`, `minirl/train/r1.py`.
# Tests: `tests/tasks/test_rewards.py`, `tests/tasks/test_bilingual.py`, `tests/train/test_r1.py`.
# Time: 4 minutes on two CPU cores; with `MINIRL_FAST=1` one minute.
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | language, rewarded | rises to 0.98 and more within 40 steps | learning rate too low, or no group holds both languages: nothing to compare |
# | language, not rewarded | stays about where it was | something else pays for it: print the rewards of one group |
# | accuracy beside the language reward | within a few points of the run without it | the language's weight drowns the answer's |
# | accuracy when Korean alone is paid | falls behind | (it is meant to) |

# %%
import copy
import os
import random
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from minirl.app.evaluate import evaluate
from minirl.equations.advantages import group_advantages
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.bilingual import WORDS, Bilingual, demonstrations
from minirl.tasks.rewards import language_consistency
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.r1 import R1Config, rejection_sample
from minirl.train.sft import SFTConfig, train_sft

FAST = os.environ.get("MINIRL_FAST") == "1"
FIGURES = Path(tempfile.mkdtemp()) if FAST else Path(globals().get("__file__", "")).parent / "figures"

# %% [markdown]
# ## Question
#
# R1-Zero was paid for right answers in the right form, and mixed languages while it thought. Nothing about a mixture is wrong, so nothing in its reward stood against it. What
# does a reward for one language change, and what does it cost?

# %% [markdown]
# ## By hand
#
# Equation 7: the words of the target language in the chain of thought, over all its words. Numbers and signs are words of no language.

# %%
told = ["<think>일의 자리: 삼 더하기 사 은 칠</think><answer>7</answer>",         # 7 words, 7 Korean
        "<think>일의 자리: 삼 plus four is</think><answer>7</answer>",        # 6 words, 3 Korean
        "<think>ones: three plus four is seven</think><answer>7</answer>",  # none
        "<think></think><answer>7</answer>"]                                # no word at all: silence does not pay
shares = language_consistency([""] * 4, told, language=["ko"] * 4)
print("eq. 7, Korean wanted:", shares)
assert shares == [1.0, 1 / 2, 0.0, 0.0]

# %% [markdown]
# All four answers are right. With rules alone (accuracy + format, 2 each) the group has no spread, and GRPO has nothing to say. The language reward breaks the tie:

# %%
rules, spoken = torch.full((1, 4), 2.0), torch.tensor([shares])
print("advantages, rules alone:   ", group_advantages(rules))
print("advantages, with language: ", group_advantages(rules + spoken))
assert bool((group_advantages(rules) == 0).all())
assert group_advantages(rules + spoken).argmax() == 0 and group_advantages(rules + spoken)[0, 2] < 0

# %% [markdown]
# ## The function in the loop
#
# A base model that reads sums in two languages, half of the reasoning in both at once. Korean is wanted whatever the prompt is in. Three runs from the same model
# differ in what is paid: right answers, right answers in Korean, Korean alone.

# %%
task = Bilingual((2,), stories=0.0, reason_in="ko")
read = demonstrations(Bilingual((2,), stories=0.0), 14_000 if FAST else 24_000, random.Random(0), worked_share=0.6, brief_share=0.2, mixed_share=0.5, slip_share=0.5)
base, tokenizer = make_base(TinySizes(), seed=0, device="cpu", words=WORDS)
train_sft(base, tokenizer, read, SFTConfig(), seed=0)

config = GRPOConfig(steps=40 if FAST else 80, max_new_tokens=32, kl_coef=0.001, lr=6e-4)
PAID = {"right answers": dict(accuracy=1.0, format_reward=1.0, language_consistency=0.0),
        "right answers in Korean": dict(accuracy=1.0, format_reward=1.0, language_consistency=1.0),
        "Korean alone": dict(accuracy=0.0, format_reward=0.0, language_consistency=1.0)}
policies, curves, after = {}, {}, {}
for name, weights in PAID.items():
    curves[name] = []
    policies[name] = train_grpo(copy.deepcopy(base), tokenizer, task, config, reward_weights=weights, seed=0, log=lambda step, metrics, name=name: curves[name].append(metrics))
    found = evaluate(policies[name], tokenizer, task, n=256, samples=4, max_new_tokens=32)
    after[name] = (found.accuracy, found.rewards["language_consistency"])
    print(f"{name:24}  accuracy {after[name][0]:.3f}   Korean {after[name][1]:.3f}   e.g. {found.completions[0][0]}")

(acc_plain, ko_plain), (acc_both, ko_both), (acc_alone, ko_alone) = after.values()
assert min(ko_both, ko_alone) > (0.9 if FAST else 0.97), "what is paid for comes"
assert ko_plain < 0.8, "what is not paid for stays mixed"
assert acc_both > acc_plain - 0.05, "Korean costs little"
assert acc_alone < acc_both - 0.03, "and paid alone, it does not teach to add"

# %% [markdown]
# ## Picture

# %%
FIGURES.mkdir(exist_ok=True)
figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.2), layout="constrained")
for axis, metric, title in zip(axes, ("language_consistency", "accuracy"), ("Words of the reasoning in Korean", "Right answers")):
    for (name, metrics), colour in zip(curves.items(), ("#4b5563", "#2563a8", "#c8553d")):
        axis.plot(range(1, len(metrics) + 1), [m[f"rewards/{metric}/mean"] for m in metrics], color=colour, label=f"paid: {name}")
    axis.set(ylim=(0, 1.03), xlabel="step", ylabel="share")
    axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].legend(fontsize=8, frameon=False, loc="lower right")
figure.savefig(FIGURES / "korean.png", dpi=130)
plt.close(figure)
print("drawn: korean.png")

# %% [markdown]
# ![Words in Korean, and right answers, for the three rewards](figures/korean.png)
#
# ## From a reward to data: rejection sampling
#
# DeepSeek-R1's second half begins with the base model again, fine-tuned on what the first half's policy says: right, in form, in one language. The filter is the same
# three rules, and the model that reads what passed needs no reward to keep to Korean.

# %%
kept = rejection_sample(policies["right answers in Korean"], tokenizer, task, R1Config(kept_problems=256 if FAST else 1024, kept_samples=4, max_new_tokens=32), seed=0)
print(f"{len(kept)} reasonings kept, such as {kept[0]}")
assert all(language_consistency([""], [completion], ["ko"]) == [1.0] for _, completion in kept)
second = train_sft(copy.deepcopy(base), tokenizer, kept, SFTConfig(epochs=3, lr=2e-3, warmup_steps=0), seed=0)
found = evaluate(second, tokenizer, task, n=256, samples=4, max_new_tokens=32)
print(f"SFT of the base model on them: accuracy {found.accuracy:.3f}, Korean {found.rewards['language_consistency']:.3f}")
assert found.rewards["language_consistency"] > 0.95

# %% [markdown]
# ## Break it
#
# An empty chain of thought gets 0 from equation 7. Were it 1 ("no wrong word"), silence would be the surest way to keep to a language:

# %%
lenient = [1.0 if share == 0.0 and "<think></think>" in text else share for share, text in zip(shares, told)]
adv = group_advantages(torch.tensor([lenient]))
print("advantages where silence pays:", adv)
assert adv[0, 3] == adv[0, 0] > 0, "not thinking at all is as good as thinking in Korean"

# %% [markdown]
# ## Exercises
#
# 1. Write equation 7 for reasoning that is split into words already: `share(words, is_korean)`, 0 for no words.
# 2. Two completions of a group are right and in English, two are wrong and in Korean. At which weight of the language reward do both kinds get the same
#    advantage, if accuracy counts 1?
#
# `tutorials/solutions/10_deepseek_r1.py` has answers; `check_share` and `check_weight` tell whether yours are right.

# %%
def check_share(share) -> None:
    korean = set("가나다라")
    cases = [(["가", "나"], 1.0), (["가", "x"], 0.5), (["x"], 0.0), ([], 0.0), (["가", "x", "y", "나"], 0.5)]
    for words, wanted in cases:
        got = share(words, lambda word: word in korean)
        assert got == wanted, f"share({words}) is {got}, and should be {wanted}"
    print("share: right")


def check_weight(weight: float) -> None:
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0]]) + weight * torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert torch.equal(group_advantages(rewards), torch.zeros(1, 4)), f"with {weight} the advantages are {group_advantages(rewards).tolist()[0]}"
    print("weight: right")


# %% [markdown]
# ## Deltas from the paper
#
# Sums in place of mathematics, 0.3 million parameters in place of 671 billion. The paper reports that the language reward costs a little accuracy; here it costs
# no more than a few points. The whole pipeline is `minirl r1`; on three seeds (`python benchmarks/r1.py`, means and 95 % intervals; hard problems but for the
# first column; the win rate is of general answers against the sft stage's):
#
# |  | easy | hard, pass@1 | maj@16 | pass@16 | format | language | tokens | win rate |
# |---|---|---|---|---|---|---|---|---|
# | base | 0.412 ± 0.083 | 0.407 ± 0.073 | 0.974 ± 0.059 | 0.997 ± 0.011 | 0.798 ± 0.062 | 0.447 ± 0.044 | 20.2 ± 1.0 | 0.458 ± 0.085 |
# | r1-zero: RL from right answers and format | 0.973 ± 0.007 | 0.967 ± 0.011 | 1.000 ± 0.000 | 1.000 ± 0.000 | 0.991 ± 0.003 | 0.748 ± 0.011 | 29.6 ± 0.7 | 0.483 ± 0.119 |
# | cold-start: SFT of the base model | 0.946 ± 0.005 | 0.931 ± 0.020 | 0.997 ± 0.011 | 1.000 ± 0.000 | 0.971 ± 0.010 | 0.952 ± 0.009 | 29.4 ± 0.5 | 0.474 ± 0.099 |
# | rl-1: RL with the language reward | 0.986 ± 0.007 | 0.972 ± 0.005 | 0.995 ± 0.011 | 1.000 ± 0.000 | 0.994 ± 0.001 | 0.991 ± 0.005 | 29.8 ± 0.5 | 0.482 ± 0.058 |
# | sft: the base model on kept reasonings | 0.993 ± 0.008 | 0.989 ± 0.009 | 0.997 ± 0.011 | 1.000 ± 0.000 | 0.999 ± 0.001 | 0.998 ± 0.001 | 29.8 ± 0.5 | 0.500 ± 0.000 |
# | rl-2: RL by the rules | 0.993 ± 0.006 | 0.987 ± 0.012 | 1.000 ± 0.000 | 1.000 ± 0.000 | 0.999 ± 0.002 | 0.999 ± 0.001 | 29.8 ± 0.5 | 0.505 ± 0.030 |
# | prefer-1: and by preference | 0.993 ± 0.006 | 0.986 ± 0.013 | 1.000 ± 0.000 | 1.000 ± 0.000 | 0.999 ± 0.002 | 0.999 ± 0.002 | 29.8 ± 0.5 | 0.600 ± 0.078 |
# | prefer-2: once more, the reward model renewed | 0.994 ± 0.007 | 0.986 ± 0.013 | 0.997 ± 0.011 | 1.000 ± 0.000 | 0.999 ± 0.001 | 0.999 ± 0.001 | 29.8 ± 0.5 | 0.693 ± 0.031 |
#
# As in the paper: reasoning grows and goes on mixing in R1-Zero; the cold start ends the mixing and costs accuracy, which the next RL wins back; the base model
# fine-tuned on kept reasonings is better than the policy that wrote them; the last stage lifts general answers. Not as in the paper: the cold start is enough to
# make up for most of the mixing, and rl-2 finds nothing left to learn.
