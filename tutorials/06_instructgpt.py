# %%
# %pip install -q -e ..

# %% [markdown]
# # 06. InstructGPT
#
# *What does each of the three stages buy?*
#
# - **Paper**: InstructGPT, [arXiv:2203.02155](https://arxiv.org/abs/2203.02155), section 3, eq. 2,
#   appendix C; reward and distance: Gao et al., [arXiv:2210.10760](https://arxiv.org/abs/2210.10760)
# - **Code**: `minirl/train/instructgpt.py`: `train_instructgpt`, `supervise`, `learn_rewards`,
#   `reinforce`; `minirl/train/ppo.py`: `train_ppo`; `minirl/equations/kl.py`: `kl_shaped_rewards`;
#   `minirl/equations/objectives.py`: `ptx_objective`
# - **Tests**: `tests/train/test_instructgpt.py`, `tests/train/test_ppo.py`,
#   `tests/equations/test_kl.py`
# - **Before this**: 01 (SFT), 03 (reward model), 04 (values and PPO's loop), 05 (the clip)
# - **Time**: 55 s on two CPU cores; 20 s with `MINIRL_FAST=1`
# - **Expect**: a true reward near 0.4 for the base model, 0.6 to 0.7 after SFT, 1.1 to 1.2 after
#   PPO, and below SFT's after PPO without a KL penalty
# - **Sweep**: `minirl ppo`, then `minirl ppo --kl-coef 0 --steps 120` with the flags that the first
#   prints: compare `rewards/reward_model/mean` and `rewards/true_reward/mean` in `metrics.jsonl`
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | reward model's score | rises | learning rate, or a score that reaches no token |
# | KL to the start | rises, then stops | it rises without an end: `kl_coef` is too small |
# | true reward (people, held-out judges) | rises with the score | falls: the proxy is exploited |
# | loss on pretraining text | stays | rises: PPO-ptx, or fewer epochs of SFT |
# | a few completions | differ from prompt to prompt | one text for all: stop the run |

# %%
import copy
import inspect
import random
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, FAST, GREEN, GREY, RED, judge, judge_test, keep, show
from minirl.equations.inference_time import best_of_n, best_of_n_kl, reward_guided
from minirl.equations.kl import exact_kl, k1, kl_shaped_rewards
from minirl.equations.objectives import ptx_objective
from minirl.equations.preferences import ranking_loss
from minirl.equations.rewards import reward_bias
from minirl.equations.schedules import update_ema
from minirl.inference.evaluate import evaluate, text_loss
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.instructions import (
    KINDS,
    WORDS,
    Instructions,
    answers,
    base_texts,
    pretraining_text,
)
from minirl.testing.example import (
    ANSWERS,
    LENGTHS,
    MASK,
    OLD,
    REFERENCE,
    REWARDS,
    SCORES,
    probabilities,
    token_logprobs,
)
from minirl.train.encoding import encode_texts
from minirl.train.instructgpt import (
    MAX_NEW_TOKENS,
    InstructGPTConfig,
    rank_completions,
    reinforce,
    scored_by,
    train_instructgpt,
)
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.reward_model import preference_margins
from minirl.train.sft import SFTConfig, train_sft

# %% [markdown]
# ## The question
#
# InstructGPT has three stages, and people would like to leave some of them out:
#
# - *Do PPO and DPO need SFT first?*
#   [LLaMA-Factory#3940](https://github.com/hiyouga/LLaMA-Factory/issues/3940),
#   [unsloth#2732](https://github.com/unslothai/unsloth/issues/2732)
# - *Is PPO really better than SFT?* [RL4LMs#66](https://github.com/allenai/RL4LMs/issues/66)
# - *The reward converges, the KL grows and grows, and all prompts get the same answer. Why?*
#   [trl#204](https://github.com/huggingface/trl/issues/204)
# - *Which sign has the KL in the reward?* [trl#463](https://github.com/huggingface/trl/issues/463)
#
# | stage | what people give | what it buys |
# |---|---|---|
# | 1. SFT | **demonstrations**: answers they write | their average answer, mistakes included |
# | 2. reward model | **rankings** of answers of the model | a judge that never gets tired |
# | 3. PPO | nothing | an answer that the judge likes, at the price of one sample |
#
# The judge is the reward model. Stage 3 has two restraints: a **KL penalty** keeps the policy where
# the judge knows what it is talking about, and **PPO-ptx** keeps what the model could do before and
# nobody asks about now.

# %% [markdown]
# ## By hand
#
# **One answer's rewards.** The policy OLD has written the four answers to "7+5=". REFERENCE is the
# policy that RL started from, and the reward model gives the answers the scores 2, 1, 0 and -1.
# PPO wants a reward for each token. Equation 2 of the paper gives it the score at the last token
# (EOS), and at every token a penalty for being likelier than under the reference:
#
# $$ R_t = -\beta \log \frac{\pi(y_t \mid x, y_{<t})}{\pi_{ref}(y_t \mid x, y_{<t})}
#    \;+\; \text{score} \cdot 1\{y_t \text{ is the last}\} $$
#
# In "12" OLD writes "1" with probability 0.5 (REFERENCE: 0.75) and then "2" with 0.5 (0.25). The
# ratios are 2/3 and 2, and their logarithms -0.405 and 0.693. EOS is certain under both. So with
# $\beta = 0.02$, as in the paper, the rewards are 0.008, -0.014 and 2, and with $\beta = 1$ they
# are 0.405, -0.693 and 2: a rarer token earns something, a likelier one pays.

# %%
logp, ref_logp = token_logprobs(OLD), token_logprobs(REFERENCE)              # (4, 8) each
scores = SCORES[0]                                                           # (4,)
totals = {}
for beta in (0.02, 1.0):
    shaped = kl_shaped_rewards(scores, logp, ref_logp, MASK, beta)  # step in: kl_shaped_rewards
    totals[beta] = shaped.sum(1)                                             # (4,)
    print(f"β = {beta}")
    for i, answer in enumerate(ANSWERS):
        row = " ".join(f"{value:6.3f}" for value in shaped[i, :LENGTHS[i]])
        print(f"  {answer:8} {row:56} sum {totals[beta][i]:6.3f}")
by_hand = torch.tensor([0.405465, -0.693147, 2.0, 0, 0, 0, 0, 0]).double()
torch.testing.assert_close(shaped[0], by_hand, atol=1e-6, rtol=0)
assert totals[0.02].argmax() == 0 and totals[1.0].argmax() == 1

# %% [markdown]
# The sum over an answer is its score minus $\beta \log(\pi(y) / \pi_{ref}(y))$. With $\beta = 1$
# the penalty wins: "13" has a larger sum than the right answer.
#
# For two answers the sum is *more* than the score, as OLD writes them less often than REFERENCE. A
# log-ratio that is negative for one answer is no bug. The mean under OLD is the KL divergence, and
# that is never negative.

# %%
p = probabilities(OLD)                                                       # (4,)
kl = float((p * (logp - ref_logp).sum(1)).sum())
print("log-ratio of each answer:", [round(x, 3) for x in (logp - ref_logp).sum(1).tolist()])
print(f"KL(OLD || REFERENCE) = {kl:.4f}, expected score {float((p * scores).sum()):.4f}")
assert abs(kl - 0.2158) < 1e-4
for beta, total in totals.items():
    objective = float((p * total).sum())
    print(f"β = {beta:<4}  expected sum of rewards {objective:7.4f} = 0.15 - {beta} x {kl:.4f}")
    assert abs(objective - (0.15 - beta * kl)) < 1e-12

# %% [markdown]
# **The zero.** A ranking says nothing about where 0 is: the loss of stage 2 sees differences alone.
# PPO compares rewards with expected ones, so it does not see it either, but for one case: a
# completion that is cut off has no score, and gets a fixed reward of -1. If all scores were 10
# lower, cutting off would be the best of all answers. So before RL the scores are shifted until
# what people wrote, here say "12" and "13", has 0 on average (`reward_bias`).
#
# **The scale.** Nor is there an upper end. Scores that are three times as far apart have the same
# order and a smaller loss. A reward model is **unbounded**: what it has never seen may get any
# score, and PPO looks for just that. This is why the policy must be held.

# %%
bias = reward_bias(scores[:2])
print("shift", float(bias), "-> scores", (scores + bias).tolist())
assert float(bias) == -1.5
for name, values in {"as they are": scores, "10 lower": scores - 10, "shifted": scores + bias,
                     "3 times as far apart": 3 * scores}.items():
    print(f"{name:21} loss of the ranking {float(ranking_loss(values[None])):.4f}, "
          f"better than a cut-off: {int((values > -1.0).sum())} of 4")
assert PPOConfig().missing_eos_penalty == 1.0 and int((scores - 10 > -1.0).sum()) == 0
torch.testing.assert_close(ranking_loss(SCORES - 10), ranking_loss(SCORES))
assert float(ranking_loss(3 * SCORES)) < float(ranking_loss(SCORES)) < 0.2071

# %% [markdown]
# **PPO-ptx** adds the log-probability of pretraining text, weighted by $\gamma = 27.8$ (no
# discount: the paper uses the letter again). Say that it is -1.5 nats a token. Then the second
# term is 27.8 · (-1.5) = -41.7, and the value of the objective says nothing about the rewards any
# more. What counts is its gradient, and each term has its own batch.
#
# **EMA.** The policy that is kept is not the last one, but an exponential moving average of all.
# When a weight moves from 0 to 1 and stays, the average with a decay of 0.992 is at
# $1 - 0.992^n$ after $n$ updates: halfway after 87.

# %%
total = ptx_objective(torch.tensor(0.1457), torch.tensor(-1.5))  # step in: ptx_objective
print(f"PPO-ptx: 0.1457 + 27.8 x (-1.5) = {float(total):.4f}")
assert abs(float(total) + 41.5543) < 1e-4
average, updates = [torch.tensor([0.0])], 0
while float(average[0]) < 0.5:
    update_ema(average, [torch.tensor([1.0])], decay=0.992)
    updates += 1
print(f"EMA: {float(average[0]):.4f} after {updates} updates")
assert updates == 87

# %% [markdown]
# ## The function
#
# The pipeline is a page whose lines are pages. Each stage is one call, and starts from a copy of a
# model. There are two SFT models: people rank the completions of `sft` (16 epochs), and RL starts
# from `start` (2 epochs, with 10 % of pretraining text). The reward model is used twice: it scores
# completions and never changes, and a copy of it is where the value function starts (tutorial 04).

# %%
show(train_instructgpt)
show(reinforce)

# %% [markdown]
# What was computed by hand is in these lines of PPO's page:

# %%
CALLS = ("-config.missing_eos_penalty", "kl_shaped_rewards(", "ptx.add_gradient(", "update_ema(")
lines = inspect.getsource(train_ppo).splitlines()
calls = [next(line.strip() for line in lines if call in line) for call in CALLS]
print("\n".join(calls))
assert "decay=config.ema_decay" in calls[-1]

# %% [markdown]
# ## Picture
#
# What does stage 3 aim at? Under a KL penalty the best policy is known (DPO,
# [arXiv:2305.18290](https://arxiv.org/abs/2305.18290), eq. 4): the reference, tilted by the score,
# $\pi^* \propto \pi_{ref}\, e^{\text{score}/\beta}$. With four answers we can follow it for every
# β. Let the reward model make one mistake: people liked answers that show how they were found, and
# so it gives "10+1=11" a 3, and the right answer "12" a 2.5.

# %%
MISTAKEN = torch.tensor([2.5, 0.0, 3.0, -1.0]).double()                      # one wrong score
reference = probabilities(REFERENCE).log()                                   # (4,)
betas = torch.logspace(1.3, -1.5, 200).double()                              # from 20 to 0.03
tilted = torch.stack([reward_guided(reference, MISTAKEN, beta=float(b)) for b in betas])  # (200, 4)
proxy, truth = tilted.exp() @ MISTAKEN, tilted.exp() @ REWARDS[0]            # (200,) each
distance = exact_kl(tilted, reference.expand_as(tilted))                     # (200,)
peak = int(truth.argmax())
for i in (0, peak, -1):
    print(f"β {betas[i]:6.2f}: KL {distance[i]:.2f}, score {proxy[i]:.2f}, right {truth[i]:.2f}")
assert bool((proxy.diff() > 0).all()) and 0 < peak < 199, "the score rises, the truth has a peak"
assert float(truth[peak]) > 0.3 > 0.2 > float(reference[0].exp()) and truth[-1] < 1e-3
same = reward_guided(reference, 3 * MISTAKEN, beta=1.0)
torch.testing.assert_close(same, reward_guided(reference, MISTAKEN, beta=1 / 3))

figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2))
for i, (answer, colour) in enumerate(zip(ANSWERS, (BLUE, AMBER, RED, GREY), strict=True)):
    axes[0].plot(1 / betas, tilted[:, i].exp(), color=colour, label=f'"{answer}"',
                 linestyle=("-", "-.", "--", ":")[i])
axes[0].set(title="The best policy for each β", xlabel="1 / β (how little the penalty counts)",
            ylabel="probability", xscale="log", ylim=(0, 1))
axes[0].legend(loc="upper left")
axes[1].plot(distance, proxy / 3, color=RED, linestyle="--", label="score, as a share of 3")
axes[1].plot(distance, truth, color=BLUE, label='right: P("12")')
axes[1].plot(distance[peak], truth[peak], "o", color=BLUE)
axes[1].annotate(f"β = {betas[peak]:.1f}", (distance[peak], truth[peak]), xytext=(0, 7),
                 textcoords="offset points", ha="center", fontsize=8)
axes[1].axvline(-float(reference[2]), color=GREY, linewidth=0.8, linestyle="-")
axes[1].text(-float(reference[2]) - 0.03, 0.45, "-log P(10+1=11)", rotation=90, fontsize=8,
             color=GREY, ha="right", va="center")
axes[1].set(title="Score and truth over the distance", xlabel="KL to the reference, nats",
            ylabel="per answer", ylim=(0, 1.05), xlim=(0, None))
axes[1].legend(loc="upper left", bbox_to_anchor=(0, 0.97))
keep(figure, "06_tilt")

# %% [markdown]
# ![The best policy for each β, and its score and truth over the KL](figures/06_tilt.png)
#
# A little pressure is good: "12" gains by its high score. With more pressure the one mistake takes
# everything, and the score still rises. That is Goodhart's law: *a measure that becomes a target is
# no longer a good measure*. Scores that are three times as far apart have the effect of a third of
# β. As comparisons fix no scale, no β is right for every reward model.

# %% [markdown]
# ## In the loop
#
# The toy: short instructions ("sort dbca:", "count dbca:", "politely 3+4 for ann:") with a known
# **true reward**, 2 for a right answer minus up to 1 for its length. Nobody sees it but the people
# of the toy, and they err: 8 of 10 demonstrations are right, and rankings are noisy. The base model
# has read instructions, 6 of 10 of them followed, and other sentences.

# %%
TASK = Instructions()
N_ANSWERS, N_TEXTS, N_DEMONSTRATIONS, N_RANKED, HELD_OUT = (
    (14_000, 2_000, 256, 400, 96) if FAST else (30_000, 4_000, 512, 1_000, 256))
WIDTH = 40 if FAST else 64
PPO = PPOConfig(steps=12 if FAST else 30, episodes=64 if FAST else 128, lr=8e-4, kl_coef=0.1,
                minibatch_size=32 if FAST else 64, max_new_tokens=MAX_NEW_TOKENS)

model, tokenizer = make_base(TinySizes(WIDTH, num_heads=4, intermediate_size=4 * WIDTH), seed=0,
                             device="cpu", words=WORDS)
base = train_sft(model, tokenizer, base_texts(TASK, random.Random(0), n_answers=N_ANSWERS,
                                              n_texts=N_TEXTS),
                 SFTConfig(batch_size=128 if FAST else 64))
demonstrations = answers(TASK, N_DEMONSTRATIONS, random.Random(1), right_share=0.8)
pretraining = pretraining_text(2_000, random.Random(2))
unread = encode_texts(tokenizer, pretraining_text(500, random.Random(3)), base.config.max_seq_len)
print(f"{sum(w.numel() for w in base.parameters()):,} parameters")
for prompt, completion in demonstrations[:4]:
    print(f"a person writes: {prompt} {completion}")


def people(policy, n=N_RANKED, split="train"):
    """Return how noisy people rank 4 to 9 different completions of each of n prompts."""
    rankings = rank_completions(policy, tokenizer, TASK, n, noise=0.4, seed=0, split=split)
    seen.update(completion for ranking in rankings for completion in ranking.completions)
    return rankings


seen = set()                         # every text that people have ranked


# %% [markdown]
# The pipeline knows no file. It is given a `stage`, which runs a page on a copy of a model. Ours
# keeps each result, and looks at PPO's policy from time to time: at its true reward and its score,
# at its KL to the start, and at its loss on pretraining text that it has not read.

# %%
class Worth(NamedTuple):
    """What a policy is worth on held-out prompts; kl in nats per completion, text per token."""

    true: float
    right: float
    score: float
    kl: float
    text: float


models, curves = {}, {}
EVERY = 6 if FAST else 5               # steps


def ask(policy, **options):
    """Return a policy's completions of held-out prompts, judged by the truth and by the score."""
    judged = scored_by(models["rm"], tokenizer, TASK)
    return evaluate(policy, tokenizer, judged, n=HELD_OUT, max_new_tokens=MAX_NEW_TOKENS, seed=4,
                    **options)


def worth(policy):
    result = ask(policy, reference=models["rl-init"])
    return Worth(result.mean("true_reward"), result.accuracy, result.mean("reward_model"),
                 result.kl, text_loss(policy, tokenizer, unread))


def run_as(label):
    """Return a stage for a pipeline: it runs a page on a copy of the model `start`."""
    def stage(name, config, start, page):
        if name == "ppo":
            name, curves[label] = label, [worth(start)]

        def look(state):
            if name == label and state.step % EVERY == 0:
                point = worth(state.model)
                curves[label].append(point)
                print(f"  {label}, step {state.step:3}: score {point.score:5.2f}, true reward "
                      f"{point.true:5.2f}, KL {point.kl:5.2f}", flush=True)

        models[name] = page(copy.deepcopy(start), log=None, save=look, resume=None)
        print("done:", name, flush=True)
        return models[name]

    return stage


train_instructgpt(  # step in: train_instructgpt
    base, tokenizer, TASK, InstructGPTConfig(ppo=PPO), demonstrations=demonstrations,
    pretraining=pretraining, rank=people, seed=0, stage=run_as("PPO"))


def ppo(label, start, **changes):
    """Run stage 3 again, from a model and with other numbers."""
    return reinforce(start, tokenizer, TASK, replace(PPO, **changes), seed=0,
                     reward_model=models["rm"], pretraining=pretraining, stage=run_as(label))


ppo("PPO-ptx", models["rl-init"], ptx_coef=0.2)
ppo("PPO from base", base)           # without stage 1
margins = preference_margins(models["rm"], tokenizer, people(models["sft"], 50, "test"))
agreement = float((margins > 0).double().mean())
print(f"the reward model decides {agreement:.0%} of {len(margins)} held-out comparisons as people")
assert 0.55 < agreement < 0.85

# %% [markdown]
# The judge is of use without stage 3, too. **Best-of-n** samples n completions of the start and
# keeps the one with the highest score. It moves the policy by at most $\log n - (n-1)/n$ nats
# (`best_of_n_kl`), but it pays n samples for every answer.

# %%
SAMPLES = 16 if FAST else 32
many = ask(models["rl-init"], samples=SAMPLES)
best = {}                            # n -> the mean score and true reward of the best of n
for n in (2 ** k for k in range(SAMPLES.bit_length())):
    chosen = []
    for score, true in zip(many.verdicts["reward_model"], many.verdicts["true_reward"],
                           strict=True):
        for i in range(0, SAMPLES, n):                                       # every group of n
            winner = i + best_of_n(score[i:i + n])
            chosen.append((score[winner], true[winner]))
    best[n] = torch.tensor(chosen).mean(0).tolist()

names = {"base": "base", "SFT, 16 epochs": "sft", "SFT, 2 epochs + text": "rl-init", "PPO": "PPO",
         "PPO-ptx": "PPO-ptx", "PPO from base": "PPO from base"}
models["base"] = base
table = {name: worth(models[key]) for name, key in names.items()}
print(f"{HELD_OUT} held-out prompts     true reward   right   score     KL   loss on text")
for name, row in table.items():
    print(f"{name:24} {row.true:10.2f} {row.right:9.0%} {row.score:7.2f} {row.kl:6.2f} "
          f"{row.text:14.3f}")
for n in (4, 16):
    print(f"best of {n:<16} {best[n][1]:10.2f} {best[n][0]:17.2f} {best_of_n_kl(n):6.2f} (bound)")

start, rl, ptx = table["SFT, 2 epochs + text"], table["PPO"], table["PPO-ptx"]
slack = 0.2 if FAST else 0.0         # a small gain is lost in the noise of small models
assert start.true > table["base"].true + 0.05 - slack, "stage 1 pays"
assert best[4][1] > start.true + 0.2 - slack, "stage 2 pays: the judge finds better answers"
assert rl.true > start.true + 0.2 - 2 * slack and rl.score > start.score + 0.1, "stage 3 pays"
assert best[SAMPLES][1] < max(true for _, true in best.values()), "more samples do not help"
assert 0.3 < rl.kl < 4.0
assert table["SFT, 16 epochs"].text > start.text + 0.02, "the tax of stage 1"
assert ptx.text < rl.text - 0.005 and ptx.text < start.text + 0.003, "ptx keeps old text"
assert FAST or rl.text > start.text + 0.003, "PPO alone does not (12 steps are too few to see it)"
assert abs(rl.true - best[4][1]) < 0.25, "one sample of PPO is worth about the best of 4"
assert ptx.true > rl.true - 0.2 and abs(table["PPO from base"].true - rl.true) < 0.3

# %% [markdown]
# What each stage buys here:
#
# 1. **SFT** makes what people write likelier, and no more: it aims at answers of which 80 % are
#    right.
# 2. **The reward model** knows more than the policy does. Among four samples there is a better one,
#    and it finds it: ranking answers is easier than writing them. But it is no oracle, and the best
#    of many samples is not better than the best of a few.
# 3. **PPO** moves what best-of-n finds into the weights. One sample is then worth about what the
#    best of four was.
#
# Does RL need SFT first? Here it does not: PPO from the base model arrives where the others do, as
# some of the base model's samples were good, and RL makes good samples likelier. It cannot do that
# where there are none. (The judge learnt from rankings of SFT's completions in both cases.)
#
# The last column shows the **alignment tax**, what the policy forgets. Sixteen epochs of nothing
# but demonstrations unlearn other text. This is why RL starts from the second model: a tenth of
# what it reads is pretraining text. PPO raises the loss again, and ptx takes that back. In this toy
# it costs no true reward.

# %% [markdown]
# ## Break it
#
# Now without the penalty, `kl_coef=0`, and for longer. We know the truth. Whoever trains on the
# preferences of people sees the score alone.

# %%
ppo("no KL", models["rl-init"], kl_coef=0.0, steps=36 if FAST else 60)
held, free = curves["PPO"], curves["no KL"]
peak = max(free, key=lambda point: point.true)
print("            score   true reward     KL   loss on text")
for label, point in (("start", free[0]), ("its peak", peak), ("end", free[-1]), ("PPO", held[-1])):
    print(f"{label:9} {point.score:8.2f} {point.true:13.2f} {point.kl:6.1f} {point.text:14.3f}")
assert free[-1].score > held[-1].score + 0.1, "the judge likes it better than PPO with a penalty"
assert free[-1].true < peak.true - 0.1 and free[-1].true < held[-1].true, "people do not"
assert FAST or free[-1].true < free[0].true - 0.05, "they even liked the start better"
assert all(b.score > a.score - 0.05 for a, b in zip(free, free[1:], strict=False))
assert 0.5 < peak.kl < 5.0 and held[-1].true > peak.true - 0.2 - slack
assert free[-1].kl > 2 * held[-1].kl and free[-1].text > held[-1].text

figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.3))
MARKS = {"no KL": (RED, "--", "o"), "PPO": (BLUE, "-", "s"), "PPO-ptx": (GREEN, ":", "D")}
for label, (colour, dash, mark) in MARKS.items():
    for axis, field in zip(axes, ("score", "true", "text"), strict=True):
        axis.plot([point.kl for point in curves[label]],
                  [getattr(point, field) for point in curves[label]], color=colour,
                  linestyle=dash, marker=mark, markersize=3.5, label=label)
for axis, i in zip(axes, (0, 1), strict=False):
    axis.plot([best_of_n_kl(n) for n in best], [values[i] for values in best.values()],
              color=AMBER, linestyle="-.", marker="^", markersize=4, label="best of n (bound)")
for axis, title, label in zip(axes, ("What the judge says", "What people want",
                                     "What was known before"),
                              ("reward model's score", "true reward", "loss on text, nats/token"),
                              strict=True):
    axis.set_xscale("function", functions=(lambda x: x.clip(0) ** 0.5, lambda x: x ** 2))
    axis.set(title=title, ylabel=label, xlabel="KL to the start, nats (root scale)",
             xticks=[0, 1, 4, 9, 16, 25], xlim=(0, 1.1 * free[-1].kl))
axes[1].axhline(free[0].true, color=GREY, linewidth=0.8, linestyle="-")
axes[1].text(free[-1].kl, free[0].true + 0.01, "start", ha="right", fontsize=8, color=GREY)
axes[0].legend(loc="lower right")
keep(figure, "06_goodhart")

# %% [markdown]
# ![Score, true reward and loss on text over the KL](figures/06_goodhart.png)
#
# The score rises all the way, and nothing in it warns. The true reward rises with it at first, has
# its peak at a KL of about two nats, and ends below the start. With the penalty PPO stops near the
# peak. What do the policies write?

# %%
written = {name: ask(models[key]) for name, key in
           (("start", "rl-init"), ("PPO", "PPO"), ("no KL", "no KL"))}
print("share right   " + "".join(f"{kind:>10}" for kind in KINDS))
for name, result in written.items():
    shares = []
    for kind in KINDS:
        rows = [value for problem, value in zip(result.problems, result.numbers("accuracy"),
                                                strict=True) if problem.prompt.startswith(kind)]
        shares.append(sum(rows) / len(rows))
    print(f"  {name:10}  " + "".join(f"{share:10.0%}" for share in shares))
for i in range(6):
    print(f"\n{written['start'].problems[i].prompt}")
    for name, result in written.items():
        print(f"  {name:6} score {result.verdicts['reward_model'][i][0]:5.2f}, true reward "
              f"{result.verdicts['true_reward'][i][0]:5.2f}: {result.completions[i][0]!r}")
often = {name: Counter(row[0] for row in result.completions).most_common(5)
         for name, result in written.items()}
print("\nno KL, most frequent:", often["no KL"])
known = {name: sum(row[0] in seen for row in result.completions) / HELD_OUT
         for name, result in written.items()}
print("texts that people have ranked before:", {k: f"{v:.0%}" for k, v in known.items()})
repeated = {name: sum(count for _, count in pairs) / HELD_OUT for name, pairs in often.items()}
print("share of the five most frequent:", {k: f"{v:.0%}" for k, v in repeated.items()})
assert FAST or repeated["no KL"] > repeated["start"] + 0.1
assert FAST or known["no KL"] < known["start"] - 0.05

# %% [markdown]
# Most of these texts are in no ranking. Nobody has told the reward model that they are bad. Their
# score is an accident of its weights, and PPO has looked for the accidents that are large. A few
# texts serve most of the prompts, which is what
# [trl#204](https://github.com/huggingface/trl/issues/204) saw. New rankings of what the policy
# writes now would repair the judge, and in the paper some of the rankings are of PPO's completions.
# Until then the penalty holds the policy where the old ones apply.

# %% [markdown]
# ## Exercises
#
# Write the body, run the cell, and it says how you stand. Solutions are in
# `tutorials/solutions/06_instructgpt.py`.

# %%
def exercise_1(score, log_ratios, kl_coef):
    """Return the rewards of one completion's tokens, as a list of numbers.

    log_ratios are log(π / π_ref) of its tokens, EOS included. There is no padding.
    """
    raise NotImplementedError


def check_1(answer):
    for score, ratios, beta, wanted in ((2.0, (-0.4, 0.7, 0.0), 0.1, (0.04, -0.07, 2.0)),
                                        (-1.0, (0.5, 0.3), 0.2, (-0.1, -1.06)),
                                        (3.0, (1.0,), 1.0, (2.0,))):
        came = answer(score, list(ratios), beta)
        assert len(came) == len(ratios), "a reward for each token"
        assert all(abs(a - b) < 1e-6 for a, b in zip(came, wanted, strict=True)), \
            f"score {score}, log-ratios {ratios}, β = {beta}: expected {wanted}"


judge(check_1, exercise_1)


# %%
def exercise_2(scores, log_ratios):
    """Predict what a β does: return the one at which two answers have the same sum of rewards.

    scores and log_ratios are pairs of numbers; log_ratios are summed over each answer.
    """
    raise NotImplementedError


def check_2(answer):
    for scores, ratios, wanted in (((2.0, 1.0), (0.287682, -0.810930), 0.9102),
                                   ((2.0, 0.0), (0.287682, -0.810930), 1.8205),
                                   ((-1.0, 2.0), (-0.5, 1.0), 2.0)):
        came = answer(scores, ratios)
        assert abs(came - wanted) < 1e-3, \
            f"scores {scores}, log-ratios {ratios}: expected β = {wanted}, came {came:.4f}"


judge(check_2, exercise_2)


# %%
def exercise_3(p, scores, n):
    """Return how probable each answer is under best-of-n, (4,).

    p (4,) are the probabilities of a sample, scores (4,) the reward model's, all different. Begin
    with: how probable is it that none of n samples has a score above that of answer i?
    """
    raise NotImplementedError


def check_3(answer):
    p = probabilities(REFERENCE)
    for scores, n, wanted in ((SCORES[0], 1, (0.1875, 0.3375, 0.225, 0.25)),
                              (SCORES[0], 2, (0.3398, 0.4345, 0.1631, 0.0625)),
                              (MISTAKEN, 4, (0.2416, 0.1152, 0.6392, 0.0039))):
        came = answer(p, scores, n)
        assert torch.allclose(came, torch.tensor(wanted).double(), atol=1e-4), \
            f"scores {scores.tolist()}, n = {n}: expected {wanted}, came {came.tolist()}"
        assert exact_kl(came.log(), p.log()) < best_of_n_kl(n) + 1e-9, "the bound holds"


judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | InstructGPT | here |
# |---|---|---|
# | people | about 40 labellers | one formula, and noise |
# | demonstrations | 13K prompts | 512 |
# | SFT, for rankings | 16 epochs, dropout 0.2, cosine to 10 % | the same but for the lr |
# | its checkpoint | what the reward model likes best | the last (tutorial 01 chooses) |
# | SFT, where RL starts | 2 epochs, with 10 % of pretraining data | the same |
# | rankings | 33K prompts, K = 4 to 9 completions | 1,000 prompts, K = 4 to 9 |
# | reward model | 6B, for policies up to 175B | as large as the policy |
# | its training | 1 epoch, lr 9e-6, batches of 64 prompts | 1 epoch, lr 2e-3, 8 prompts |
# | PPO's data | 31K prompts, 256K episodes | new prompts, 3,840 episodes |
# | PPO's steps | batch 512, minibatch 64, one pass, ε = 0.2 | batch 128, the others equal |
# | KL in the reward | β = 0.02 | β = 0.1: this reward model deserves less trust |
# | value function | starts as the reward model | the same |
# | ptx | γ = 27.8 | γ = 0.2, and a mean over tokens for each term |
# | EMA of the weights | 0.992 | 0.9, as there are 60 updates in all |
# | the tax is measured on | public data sets | loss on pretraining text |

# %% [markdown]
# ## Find the bug
#
# This function puts the score into the rewards, as `kl_shaped_rewards` does. It has one bug, which
# people have asked about in a real library. Nothing crashes. Write a test that passes for
# `kl_shaped_rewards` and fails for this function.

# %%
def rewards_with_a_bug(scores, logp, ref_logp, mask, kl_coef):
    """Per-token rewards: a KL penalty on every sampled token, and the score on the last one."""
    rewards = -kl_coef * k1(logp, ref_logp) * mask                           # (B, T)
    first, length = mask.int().argmax(1), mask.sum(1)                        # (B,) each
    end = (first + length).clamp(max=mask.shape[1] - 1)                      # stay inside the row
    rewards[torch.arange(len(mask)), end] += scores
    return rewards


def exercise_bug(function):
    """Raise AssertionError unless function(scores, logp, ref_logp, mask, kl_coef) is right."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, kl_shaped_rewards, rewards_with_a_bug)


judge(check_bug, exercise_bug)
