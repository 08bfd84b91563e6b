# %%
# %pip install -q -e ..

# %% [markdown]
# # 03. The reward model
#
# *Why is the reward one number for a whole text?*
#
# - **Paper**: InstructGPT, [arXiv:2203.02155](https://arxiv.org/abs/2203.02155), section 3.5,
#   eq. 1 and appendix C.2; Ziegler et al., [arXiv:1909.08593](https://arxiv.org/abs/1909.08593),
#   section 2.1
# - **Code**: `minirl/equations/preferences.py`: `ranking_loss`; `minirl/equations/rewards.py`;
#   `minirl/train/reward_model.py`
# - **Tests**: `tests/equations/test_preferences.py`, `tests/train/test_reward_model.py`
# - **Before this**: 00, 01
# - **Time**: 12 s on two CPU cores, with `MINIRL_FAST=1` as well
# - **Expect**: held-out loss least after 1 to 3 epochs, and above ln 2 after 8; held-out accuracy
#   between 0.7 and 0.8 all the time
# - **Sweep**: `minirl rm --ranked-prompts 300 --epochs 1`, then 3 and 8: compare `pair_accuracy`
#   in `summary.json` (held-out pairs) with `accuracy` in `metrics.jsonl` (training pairs)
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | first loss | near ln 2 = 0.693 | far above: the head starts too large, or pairs are swapped |
# | held-out loss | falls, then stops | rises: too many epochs |
# | held-out accuracy | near what labellers agree on | 0.5: the score is read at a wrong token |
# | mean score | any number | (no comparison says where zero is; the bias sets it) |
# | identical pairs | none | the loss has a floor: their share of ln 2 |

# %%
import inspect
import math
import random
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch

from lesson import AMBER, BLUE, GREY, RED, judge, judge_test, keep, show
from minirl.equations.advantages import group_advantages
from minirl.equations.preferences import bradley_terry_loss, ranking_loss
from minirl.equations.reduce import masked_whiten
from minirl.equations.rewards import reward_bias, reward_gain_and_bias
from minirl.lm.rollouts import completion_batch
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.instructions import FRAMES, WORDS, Instructions, right_answer, wrong_answer
from minirl.tasks.preferences import Ranking, draw_ranking, pairs
from minirl.testing.example import ANSWERS, OLD, QUESTION, SCORES, probabilities
from minirl.train.reward_model import (
    RewardModelConfig,
    preference_margins,
    score_texts,
    train_reward_model,
)

# %% [markdown]
# ## The question
#
# A reward model reads a prompt and a completion and returns one number. The model has a hidden
# state behind every token, so it could return a number for every token. Readers of code ask why
# it does not:
# [is it not supposed to be one reward per token?](https://github.com/OpenRLHF/OpenRLHF/pull/1037),
# [why is the last token the reward of the sentence?](https://github.com/deepspeedai/DeepSpeedExamples/issues/823),
# and [why are my scores 60 to 70, and not near zero?](https://github.com/huggingface/trl/issues/691)
#
# The answer is in the data. Nobody can say what a token is worth. People can say which of two texts
# they like better, and a comparison of two whole texts can teach one number per text, up to a
# constant. A reward model is a translation of comparisons into numbers, and nothing more.
# Which token deserves the reward is a question for the value function, in tutorial 04.

# %% [markdown]
# ## By hand
#
# The question is "7+5=". A labeller (a person who compares) has ranked the four answers of our
# running example, best first, and a reward model gives them the scores 2, 1, 0 and -1. Bradley and
# Terry's model says how likely a preference is, and only the difference of two scores counts:
#
# $$ P(\text{first before second}) = \sigma(r_1 - r_2), \qquad
#    \text{loss} = -\log \sigma(r_\text{better} - r_\text{worse}) $$
#
# Four answers give $\binom{4}{2} = 6$ pairs. The scores differ by 1 three times, by 2 twice and
# by 3 once:

# %%
print(f"{QUESTION!r} ranked: ", ", ".join(f"{a!r} {s:+.0f}" for a, s in
                                          zip(ANSWERS, SCORES[0].tolist(), strict=True)))
total = 0.0
for difference, times in ((1, 3), (2, 2), (3, 1)):
    p = 1 / (1 + math.exp(-difference))
    total += times * -math.log(p)
    print(f"difference {difference}: {times} times, P = {p:.4f}, loss {-math.log(p):.4f}")
print(f"mean over the six pairs: {total / 6:.6f}")
assert abs(total / 6 - 0.207038) < 1e-6

# %% [markdown]
# A model that knows nothing gives equal scores. Every pair then has the probability 1/2, and the
# loss is ln 2 = 0.6931. That is where training starts.
#
# Which difference is learnt? Say a labeller prefers "12" to "13" in three of four cases. The loss
# is least where $\sigma(r_1 - r_2) = 3/4$: at a difference of ln 3 = 1.0986, the log odds. If
# a steadier labeller does so in nine of ten cases, it becomes ln 9 = 2 ln 3. Same texts, twice the
# scale: the scale of a reward says how *consistent* the labellers were.

# %%
difference = torch.linspace(-1.0, 4.0, 5001, dtype=torch.float64)
zero = torch.zeros_like(difference)
for share in (3 / 4, 9 / 10):
    expected = (share * bradley_terry_loss(difference, zero)
                + (1 - share) * bradley_terry_loss(zero, difference))
    best = float(difference[expected.argmin()])
    odds = share / (1 - share)
    print(f"preferred in {share:.0%} of cases: difference {best:.4f}, ln {odds:.0f} = "
          f"{math.log(odds):.4f}, loss {float(expected.min()):.4f}")
    assert abs(best - math.log(odds)) < 1e-3

# %% [markdown]
# And the zero? Add 5 to all scores, and no difference changes, so no loss does. Every prompt may
# even have a zero of its own, because answers to *different* prompts are never compared
# ([nor should their scores be](https://github.com/OpenLMLab/MOSS-RLHF/issues/21)).
# The same holds inside a text. "12" and "13" begin with the same token. Whatever reward the "1"
# gets, it cancels in their comparison:

# %%
reward_of_1, reward_of_2, reward_of_3 = 7.0, 2.0, 1.0                # any numbers
assert (reward_of_1 + reward_of_2) - (reward_of_1 + reward_of_3) == reward_of_2 - reward_of_3
for name, scores in {"as they are": SCORES, "plus 5": SCORES + 5, "times 2": 2 * SCORES,
                     "all equal": 0 * SCORES}.items():
    print(f"scores {name:12} {scores[0].tolist()!s:24} loss {float(ranking_loss(scores)):.6f}")
assert torch.allclose(ranking_loss(SCORES + 5), ranking_loss(SCORES))
assert abs(float(ranking_loss(0 * SCORES)) - math.log(2)) < 1e-12

# %% [markdown]
# ## The function

# %%
show(ranking_loss)

# %%
loss = ranking_loss(SCORES)  # step in: ranking_loss
one_by_one = [bradley_terry_loss(SCORES[:, i], SCORES[:, j])
              for i in range(4) for j in range(i + 1, 4)]
print(f"ranking_loss {float(loss):.6f}, mean of {len(one_by_one)} Bradley-Terry losses "
      f"{float(torch.cat(one_by_one).mean()):.6f}")
assert abs(float(loss) - 0.207038) < 1e-6
assert torch.allclose(loss, torch.cat(one_by_one).mean())

leaf = SCORES.clone().requires_grad_()
ranking_loss(leaf).sum().backward()
print("gradient:", ", ".join(f"{a!r} {g:+.4f}" for a, g in
                             zip(ANSWERS, leaf.grad[0].tolist(), strict=True)))
assert abs(float(leaf.grad[0, 0]) + (0.26894 + 0.11920 + 0.04743) / 6) < 1e-5
assert abs(float(leaf.grad.sum())) < 1e-12

# %% [markdown]
# Gradient descent pushes the best answer up and the worst down. The sum of the gradient is 0:
# nothing ever moves all four at once. That is the missing zero again.
#
# ## Picture

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.1))
x = torch.linspace(-3, 5, 200, dtype=torch.float64)
left.plot(x, bradley_terry_loss(x, torch.zeros_like(x)))
left.axhline(math.log(2), color=GREY, linestyle=":", linewidth=1)
left.text(4.95, math.log(2) + 0.06, "ln 2: knows nothing", ha="right", color=GREY, fontsize=8)
for d, times in ((1, 3), (2, 2), (3, 1)):
    value = float(bradley_terry_loss(torch.tensor([float(d)]), torch.zeros(1)))
    left.plot(d, value, "o", color=RED)
    left.annotate(f"{times} pair{'s' * (times > 1)}", (d, value), (d + 0.05, value + 0.13),
                  color=RED, fontsize=8)
left.set(xlabel="score of the better minus score of the worse", ylabel="loss of a pair (nats)",
         title="Wrong order costs about its difference", ylim=(0, 3.2))
right.plot(x, torch.sigmoid(x))
for share, label in ((3 / 4, "3 of 4: ln 3"), (9 / 10, "9 of 10: ln 9")):
    at = math.log(share / (1 - share))
    right.plot([at, at, -3], [0, share, share], color=GREY, linestyle=":", linewidth=1)
    right.plot(at, share, "o", color=RED)
    right.annotate(label, (at, share), (at - 0.15, share + 0.02), color=RED, fontsize=8, ha="right")
right.set(xlabel="difference of two scores", ylabel="preferred (share of cases)", ylim=(0, 1.03),
          xlim=(-3, 5), title="A difference is the log odds")
keep(figure, "03_bradley_terry")

# %% [markdown]
# ## Zero and scale
#
# So somebody must choose a zero. InstructGPT shifts the scores so that the labellers' own
# demonstrations score 0 on average: then "above 0" means "better than what people wrote". Ziegler
# et al. also choose the scale: mean 0 and standard deviation 1 on samples of the first policy.
# Here, the demonstration is "12", and the samples are the four answers:

# %%
bias = reward_bias(SCORES[0, :1])
gain, shift = reward_gain_and_bias(SCORES[0])
print("InstructGPT:", (SCORES[0] + bias).tolist(), f"bias {float(bias):+.0f}")
print("Ziegler:    ", [round(x, 4) for x in (gain * SCORES[0] + shift).tolist()],
      f"gain {float(gain):.4f}, bias {float(shift):+.4f}")
assert (SCORES[0] + bias).tolist() == [0, -1, -2, -3]
assert abs(float(gain) - 1 / math.sqrt(1.25)) < 1e-9         # 2, 1, 0, -1: variance 1.25

# %% [markdown]
# RL does not depend on the choice, because it does not learn from rewards but from *advantages*:
# how much better a text was than expected, $A = R - V$. The expectation $V$ moves with the zero,
# and the difference stays. Then advantages are normalised, that is, divided by their standard
# deviation: over the batch (`masked_whiten`, in PPO code) or over the group of answers to one
# prompt (`group_advantages`, in GRPO). That removes the scale.

# %%
p_old = probabilities(OLD)                                           # (4,) .25 .15 .10 .50
for name, scores in {"r": SCORES[0], "r + 5": SCORES[0] + 5, "3 r + 5": 3 * SCORES[0] + 5}.items():
    expected = p_old @ scores                                        # V of the prompt
    adv = scores - expected
    white = masked_whiten(adv[None], torch.ones(1, 4))[0]
    group = group_advantages(scores[None])[0]
    print(f"{name:8} V {float(expected):5.2f}   A {[round(a, 2) for a in adv.tolist()]!s:29} "
          f"whitened {[round(a, 3) for a in white.tolist()]}")
    assert torch.allclose(white, torch.tensor([1.1619, 0.3873, -0.3873, -1.1619]).double(),
                          atol=1e-4)
    assert torch.allclose(group, white, atol=1e-3)       # a group's mean in place of V
assert abs(float(p_old @ SCORES[0]) - 0.15) < 1e-12

# %% [markdown]
# One place keeps the scale: the KL penalty. In $r - \beta\,\mathrm{KL}$, a reward of twice the
# scale is a $\beta$ of half the size.
#
# ## In the loop
#
# `train_reward_model` takes an SFT model, replaces its last layer by a head with one output, and
# reads that output behind the last token of each completion. Its second stage:

# %%
page = inspect.getsource(train_reward_model).splitlines()
first = next(i for i, line in enumerate(page) if "# 2. update" in line)
print("\n".join(page[first:first + 15]))

# %% [markdown]
# Now a real one, with 0.06 million parameters. The task is `tasks/instructions.py`: "sort dbca:",
# "count dbca:", and so on. Each question gets four texts, right or wrong, short or long. A labeller
# wants a right answer first and then a short one, and judges with noise (`draw_ranking`). Because
# the noise is known, so are the best accuracy and the least loss that any reward model can have.

# %%
class Labeller(NamedTuple):
    right: float             # what a right answer is worth
    short: float             # what 32 characters less are worth
    noise: float             # P(i before j) = sigmoid((worth_i - worth_j) / noise)


K = 4
TASK = Instructions()
FIRST, SECOND = torch.triu_indices(K, K, offset=1)                   # the six pairs of a ranking


def make_questions(n, split, seed):
    """Return n problems, each with K different texts: right or wrong, short or long."""
    rng, questions = random.Random(seed), []
    for problem in TASK.sample(n, rng, split=split):
        answers = (problem.answer, wrong_answer(problem, rng))
        texts = sorted({frame.format(answer) for frame in FRAMES for answer in answers})
        questions.append((problem, rng.sample(texts, K)))
    return questions


def worth(labeller, problem, texts):
    """Return what each text is worth to a labeller."""
    right = right_answer([problem.prompt] * K, texts, [problem.answer] * K)
    return [labeller.right * yes - labeller.short * len(text) / 32
            for yes, text in zip(right, texts, strict=True)]


def rank(labeller, questions, seed):
    """Return a labeller's rankings."""
    rng = random.Random(seed)
    return [draw_ranking(problem.prompt, texts, worth(labeller, problem, texts), rng,
                         noise=labeller.noise) for problem, texts in questions]


def preferred(labeller, questions):
    """Return how often a labeller prefers the first text of each pair, (n, 6)."""
    worths = torch.tensor([worth(labeller, *question) for question in questions])    # (n, K)
    return torch.sigmoid((worths[:, FIRST] - worths[:, SECOND]) / labeller.noise)


def scores_of(model, items):
    """Return the scores of the K texts of each (prompt, texts): (n, K)."""
    return score_texts(model, tokenizer, [prompt for prompt, texts in items for _ in texts],
                       [text for _, texts in items for text in texts]).view(-1, K)


def new_model():
    sizes = TinySizes(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=96)
    return make_base(sizes, seed=0, device="cpu", words=WORDS)


blank, tokenizer = new_model()
size = sum(weight.numel() for weight in blank.parameters())
assert 0.05e6 < size < 0.07e6
usual = Labeller(right=2.0, short=1.0, noise=0.5)
held_out_questions = make_questions(150, "test", seed=1)
train = rank(usual, make_questions(128, "train", seed=0), seed=0)
held_out = rank(usual, held_out_questions, seed=2)
p = preferred(usual, held_out_questions).double()
BEST_ACCURACY = float(torch.maximum(p, 1 - p).mean())
LEAST_LOSS = float(-(p * p.log() + (1 - p) * (1 - p).log()).mean())
print("a ranking:", train[0])
print(f"no reward model can do better than accuracy {BEST_ACCURACY:.3f}, loss {LEAST_LOSS:.3f}")

# %% [markdown]
# ## One epoch against several
#
# InstructGPT trains its reward model for one epoch: several epochs "quickly" overfit (appendix
# C.2). Here are eight epochs on 128 rankings, measured after each, also on 150 held-out rankings:
# other prompts, which the model has not seen.

# %%
def measure(model, rankings):
    """Return the loss, and the margins r(better) - r(worse) of all pairs."""
    scores = scores_of(model, [(r.prompt, r.completions) for r in rankings])   # best first
    return float(ranking_loss(scores).mean()), scores[:, FIRST] - scores[:, SECOND]


def share_right(margins):
    return float((margins > 0).float().mean())


EPOCHS = 8
curve, margins, tokens_read = [], {}, {}


def look(state):
    if state.step % (len(train) // 8) == 0:                          # the end of an epoch
        (loss, known), (held_loss, unseen) = (measure(state.model, r) for r in (train, held_out))
        curve.append((loss, share_right(known), held_loss, share_right(unseen)))
        margins[len(curve)] = unseen
        tokens_read["together"] = state.num_tokens / len(curve)
        print(f"epoch {len(curve)}: loss {loss:.3f}, held out {held_loss:.3f};  accuracy "
              f"{share_right(known):.3f}, held out {share_right(unseen):.3f}")


config = RewardModelConfig(epochs=EPOCHS, lr=4e-3, batch_size=8)
reward_model = train_reward_model(new_model()[0], tokenizer, train, config, seed=0, save=look)
train_loss, train_accuracy, held_loss, held_accuracy = zip(*curve, strict=True)
best_epoch = 1 + held_loss.index(min(held_loss))
print(f"least held-out loss after epoch {best_epoch}")
assert best_epoch <= 4
assert train_accuracy[-1] > 0.93 and train_loss[-1] < 0.25
assert held_loss[-1] > min(held_loss) + 0.15 and held_loss[-1] > math.log(2)
assert max(held_accuracy) - held_accuracy[-1] < 0.06

figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.1))
epochs = range(1, EPOCHS + 1)
for axis, on_train, on_held_out, limit, word in (
        (left, train_loss, held_loss, LEAST_LOSS, "least loss possible"),
        (right, train_accuracy, held_accuracy, BEST_ACCURACY, None)):
    axis.plot(epochs, on_train, "o-", color=BLUE, label="training rankings")
    axis.plot(epochs, on_held_out, "s--", color=RED, label="held-out rankings")
    axis.axhline(limit, color=GREY, linestyle=":", linewidth=1.2, label=word)
    axis.set(xlabel="epoch", xticks=list(epochs))
left.axhline(math.log(2), color=GREY, linewidth=0.8)
left.text(1, math.log(2) + 0.015, "ln 2", color=GREY, fontsize=8)
left.set(ylabel="loss (nats per pair)", ylim=(0, 1.15), title="The held-out loss falls, then rises")
right.set(ylabel="pairs in the right order (share)", ylim=(0.5, 1.02),
          title="The held-out accuracy hardly moves")
left.legend(loc="upper left")
right.text(8.3, BEST_ACCURACY + 0.008, "best accuracy possible", color=GREY, fontsize=8, ha="right")
keep(figure, "03_epochs")

# %% [markdown]
# The training pairs are learnt by heart. On held-out pairs the *order* hardly suffers, and the
# *loss* becomes worse than that of a model that knows nothing. So what goes wrong? The model
# becomes too sure. Its difference of two scores claims a probability,
# $\sigma(|r_1 - r_2|)$. A model is *calibrated* if it is right as often as it claims:

# %%
def calibration(margin, edges=(0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0001)):
    """Return how sure a model is and how often it is right, a point per bin: claimed, right."""
    sure = torch.sigmoid(margin.abs())
    bins = [(sure >= low) & (sure < high) for low, high in zip(edges, edges[1:], strict=False)]
    return [(float(sure[b].mean()), share_right(margin[b])) for b in bins if int(b.sum()) >= 20]


gap = {}
figure, axes = plt.subplots(figsize=(4.6, 3.6))
axes.plot([0.5, 1], [0.5, 1], color=GREY, linestyle=":", linewidth=1.2, label="calibrated")
for epoch, colour, style in ((best_epoch, BLUE, "o-"), (EPOCHS, RED, "s--")):
    sure = torch.sigmoid(margins[epoch].abs())
    gap[epoch] = float(sure.mean()) - share_right(margins[epoch])
    points = calibration(margins[epoch])
    axes.plot(*zip(*points, strict=True), style, color=colour, label=f"after epoch {epoch}")
    print(f"epoch {epoch}: claims {float(sure.mean()):.3f}, is right "
          f"{share_right(margins[epoch]):.3f}, too sure by {gap[epoch]:.3f}")
axes.set(xlabel="how sure the model is (probability)", ylabel="how often it is right (share)",
         xlim=(0.5, 1.01), ylim=(0.4, 1.01), title="More epochs, more overconfidence")
axes.legend(loc="upper left")
keep(figure, "03_calibration")
assert torch.allclose(preference_margins(reward_model, tokenizer, held_out).view(-1, 6),
                      margins[EPOCHS], atol=1e-4)
assert gap[EPOCHS] > 0.08 and gap[EPOCHS] > gap[best_epoch] + 0.04

# %% [markdown]
# PPO sees differences of scores, and cannot know how often they are right. So one stops early.
#
# ## All pairs of a prompt, together
#
# K completions make $\binom{K}{2}$ comparisons. InstructGPT treats them as *one* element of the
# batch, so each completion is read once. Shuffled as if they were independent, each pair is read on
# its own, and each completion goes through the model K - 1 times. The paper reports that the
# model then overfits within one epoch, since those comparisons share their texts.

# %%
spread = [Ranking(prompt, (chosen, rejected)) for prompt, chosen, rejected in pairs(train)]


def count(state):
    tokens_read["spread"] = state.num_tokens


# 16 pairs are 32 texts a step, as 8 rankings of 4 are
one_epoch = RewardModelConfig(epochs=1, lr=4e-3, batch_size=16)
spread_model = train_reward_model(new_model()[0], tokenizer, spread, one_epoch, seed=0, save=count)
ratio = tokens_read["spread"] / tokens_read["together"]
print(f"{len(train)} rankings, {len(spread)} pairs: {ratio:.2f} times the tokens in an epoch")
spread_loss = measure(spread_model, held_out)[0]
print(f"held-out loss after one epoch: {spread_loss:.3f}, together {held_loss[0]:.3f}")
print(f"K = 9: {9 * 8 // 2} pairs, {9 * 8} texts instead of 9")
assert abs(ratio - (K - 1)) < 1e-9
assert spread_loss < held_loss[-1]

# %% [markdown]
# Here the cost is certain: three times the tokens. The overfitting does not show. Our model starts
# from random weights and needs more than one look at each text, and the spread pairs give it three.
#
# ## Labellers who disagree
#
# Rankings come from many people. Here are five. "careless" has the usual taste and twice the noise,
# "strict" counts only right answers, "brief" likes short texts above all, "talkative" likes long
# ones.

# %%
LABELLERS = {"usual": usual, "careless": Labeller(2.0, 1.0, noise=1.0),
             "strict": Labeller(3.0, 0.0, 0.5), "brief": Labeller(0.5, 2.0, 0.5),
             "talkative": Labeller(2.0, -1.0, 0.5)}
prefers = {name: preferred(labeller, held_out_questions).double()
           for name, labeller in LABELLERS.items()}


def agreement(p, q):
    """Return how often two draws agree that prefer the first text with probabilities p and q."""
    return float((p * q + (1 - p) * (1 - q)).mean())


print("agreement", *(f"{name:>10}" for name in prefers), " best possible")
ceiling = {name: float(torch.maximum(p, 1 - p).mean()) for name, p in prefers.items()}
for name, p in prefers.items():
    print(f"{name:9}", *(f"{agreement(p, q):10.3f}" for q in prefers.values()),
          f"{ceiling[name]:10.3f}")
    assert agreement(p, p) < ceiling[name]
of_two = sum(agreement(p, q) for a, p in prefers.items() for b, q in prefers.items()
             if a != b) / 20
pooled = torch.stack(list(prefers.values())).mean(0)
best_pooled = float(torch.maximum(pooled, 1 - pooled).mean())
print(f"two different labellers agree on {of_two:.3f} of the pairs")
print(f"one reward model for all five: right in at most {best_pooled:.3f}")
assert of_two < best_pooled

# %% [markdown]
# InstructGPT's labellers agree with each other 72.6 ± 1.5 % of the time (section 3.4), and its
# reward models predict them with an accuracy of 72.4 ± 0.4 % (section 4.1). It is tempting to read
# the first as an upper bound of the second. It is a yardstick, and no bound. Say a text is
# preferred with probability $p = 0.7$. Two labellers agree in $p^2 + (1 - p)^2 = 58 \%$ of cases,
# and a model that always sides with the majority is right in 70 %. The bound is
# $E[\max(p, 1 - p)]$, and it is never less than the agreement.
#
# Now one budget, 480 rankings: all from one labeller, or 96 from each.

# %%
questions = make_questions(480, "train", seed=3)
data = {"brief alone": rank(LABELLERS["brief"], questions, seed=4),
        "all five": [ranking for i, labeller in enumerate(LABELLERS.values())
                     for ranking in rank(labeller, questions[i::5], seed=5 + i)]}
accuracy = {}
for name, rankings in data.items():
    model = train_reward_model(new_model()[0], tokenizer, rankings,
                               RewardModelConfig(epochs=2, lr=4e-3), seed=0)
    scores = scores_of(model, [(problem.prompt, texts) for problem, texts in held_out_questions])
    decides = (scores[:, FIRST] > scores[:, SECOND]).double()
    accuracy[name] = [agreement(decides, p) for p in prefers.values()]
    each = (f"{who} {a:.3f} " for who, a in zip(prefers, accuracy[name], strict=True))
    print(f"{name:20}", *each, f" mean {sum(accuracy[name]) / 5:.3f}")
brief, talkative = (list(prefers).index(name) for name in ("brief", "talkative"))
one, five = accuracy.values()
assert one[brief] > five[brief] + 0.03 and one[talkative] < 0.55
assert sum(five) > sum(one) + 5 * 0.04 and min(five) > 0.55
assert of_two < sum(five) / 5 < best_pooled

# %%
figure, axes = plt.subplots(figsize=(6.6, 3.3))
for offset, colour, hatch, (name, values) in zip((-0.2, 0.2), (RED, BLUE), ("//", None),
                                                 accuracy.items(), strict=True):
    axes.bar([x + offset for x in range(5)], values, 0.38, color=colour, hatch=hatch,
             edgecolor="white", label=f"trained on {name}")
for x, (name, best) in enumerate(ceiling.items()):
    others = [agreement(prefers[name], q) for who, q in prefers.items() if who != name]
    axes.plot([x - 0.42, x + 0.42], [best, best], color=GREY, linestyle="-", linewidth=1.6,
              label="best possible for this labeller" if x == 0 else None)
    axes.plot([x - 0.42, x + 0.42], [sum(others) / 4] * 2, color=AMBER, linestyle="--",
              linewidth=1.6, label="agreement with the other four" if x == 0 else None)
axes.set(xticks=range(5), xticklabels=prefers, ylim=(0.35, 1.08), xlabel="whose comparisons",
         ylabel="reward model agrees (share)", title="One labeller's taste, or everybody's")
axes.axhline(0.5, color="black", linewidth=0.8)
axes.text(4.6, 0.505, "coin", fontsize=8, ha="right")
axes.grid(axis="x")
axes.legend(loc="upper center", ncols=2)
keep(figure, "03_labellers")

# %% [markdown]
# The reward model of "brief" is the better one for "brief" and no better than a coin for
# "talkative". That of all five suits nobody perfectly and everybody better than chance: it agrees
# with them more often than they agree with each other. A reward model has the taste of those who
# were asked.
#
# ## Break it
#
# A common accident: completions are cut to a maximal length, and two texts differ only behind the
# cut. Then both have the same tokens and the same score: loss ln 2, and no gradient. Of 5000
# pairs that were drawn from a public data set
# [352 were lost like this](https://github.com/natolambert/rlhf-book/pull/504), and
# [other code](https://github.com/OpenRLHF/OpenRLHF/issues/1311) loses them, too.
# Cut our four answers to one token: "12", "13" and "10+1=11" all become "1". Three of the six pairs
# are identical, and no score can bring the loss below half of ln 2:

# %%
for apart in (0.0, 2.0, 20.0):
    one, two = torch.tensor([apart, 0.0])                            # scores of "1" and "2"
    cut = torch.stack([one, one, one, two])[None]
    print(f"scores of '1' and '2' differ by {apart:4.1f}: loss {float(ranking_loss(cut)):.4f}")
assert abs(float(ranking_loss(cut)) - 3 / 6 * math.log(2)) < 1e-6

same = torch.tensor([0.7], requires_grad=True)
bradley_terry_loss(same, same).sum().backward()
print("gradient of an identical pair:", float(same.grad))
assert float(same.grad) == 0.0
print(f"352 of 5000 pairs identical: the loss stays above {352 / 5000 * math.log(2):.4f}")

try:
    Ranking(QUESTION, ("1", "1", "1", "2"))
except ValueError as error:
    print("minirl refuses them:", error)
else:
    raise AssertionError("equal completions were accepted")

# %% [markdown]
# ## Exercises
#
# Solutions stand in `tutorials/solutions/03_reward_model.py`.

# %%
def exercise_1(scores):
    """Write ranking_loss with two plain loops: scores (P, K), best first -> (P,)."""
    raise NotImplementedError


def check_1(answer):
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0]])
    came = answer(scores)
    assert came.shape == (3,), f"one loss per prompt is wanted, (3,), not {tuple(came.shape)}"
    assert torch.allclose(came, torch.tensor([0.207038, 0.693147, 1.870868]), atol=1e-5), (
        f"{came.tolist()}: the mean over the C(4, 2) = 6 pairs of each prompt is wanted")
    assert abs(float(answer(torch.tensor([[3.0, 0.0]]))) - 0.048587) < 1e-5, "K may be 2"


judge(check_1, exercise_1)


# %%
def exercise_2(wins, losses):
    """A text won `wins` comparisons with another and lost `losses`. Which difference of the two
    scores has the least loss? (And what if it never lost?)"""
    raise NotImplementedError


def check_2(answer):
    assert abs(answer(3, 1) - 1.098612) < 1e-5, f"3 wins, 1 loss: {answer(3, 1)}, not ln 3"
    assert abs(answer(1, 9) + 2.197225) < 1e-5, "more losses than wins: the score is lower"
    assert answer(5, 5) == 0, "as many wins as losses: equal scores"
    assert answer(4, 0) == math.inf, "never lost: nothing stops the difference from growing"


judge(check_2, exercise_2)


# %%
def exercise_3(agreement):
    """Two labellers agree on this share of the pairs. If all pairs are equally hard, which accuracy
    does the best reward model have?  Hint: agreement = p ** 2 + (1 - p) ** 2."""
    raise NotImplementedError


def check_3(answer):
    assert abs(answer(0.58) - 0.7) < 1e-9, "p = 0.7 gives an agreement of 0.58"
    assert abs(answer(1.0) - 1.0) < 1e-9, "labellers who always agree can be predicted"
    assert abs(answer(0.5) - 0.5) < 1e-9, "coins cannot be predicted"
    assert abs(answer(0.726) - 0.836155) < 1e-5, "InstructGPT's 72.6 %"


judge(check_3, exercise_3)

# %% [markdown]
# ## Deltas from the paper
#
# | | InstructGPT | here |
# |---|---|---|
# | model | 6 billion parameters, from a fine-tuned model | 0.06 million, from random weights |
# | rankings | of 33 thousand prompts, K from 4 to 9 | of 128 to 480 prompts, K = 4 |
# | labellers | about 40 people | five formulas with noise |
# | epochs | 1: more overfit "quickly" | the least held-out loss after epoch 1 to 3 |
# | learning rate | 9e-6, a cosine to 10 % | 4e-3, a cosine to 10 % |
# | pairs of a prompt | one element; shuffled, they overfit | one element; shuffled, they cost |
# | ties | left out | none: noise decides |
#
# `minirl rm --preset instructgpt` takes the paper's numbers.

# %% [markdown]
# ## Find the bug
#
# A reward model's head gives a number at every slot. This function takes the one behind the last
# token of each row. It has a silent bug, modelled on
# [a real one](https://github.com/huggingface/trl/pull/6952): on most batches, nothing is wrong.
# Write a test that fails for it. Rows have `lengths` tokens, and are padded on the right with
# `pad_id`. In many tokenizers that is the id of `<eos>`, too.

# %%
def read_last(values, tokens, lengths, pad_id):
    """Return values (B, T) behind the last token of each row, (B,). Rows have `lengths` tokens."""
    is_pad = tokens == pad_id
    first_pad = torch.where(is_pad.any(1), is_pad.float().argmax(1), tokens.shape[1])
    return values.gather(1, first_pad[:, None] - 1).squeeze(1)


def right_read_last(values, tokens, lengths, pad_id):
    return values.gather(1, lengths[:, None] - 1).squeeze(1)


def exercise_bug(function):
    """Test a function like read_last(values, tokens, lengths, pad_id): assert what it returns."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, right_read_last, read_last)


judge(check_bug, exercise_bug)

# %% [markdown]
# In minirl a score is read by position, from a mask that is built from lengths. So padding changes
# nothing, on whichever side it stands and whatever its id is:

# %%
ids, text = tokenizer.encode_prompt("count abc:"), [*tokenizer.encode("3"), tokenizer.eos_id]
longer = [*tokenizer.encode("well, the answer is 3"), tokenizer.eos_id]
tokens, mask = completion_batch([ids, ids], [text, longer], tokenizer.eos_id, "cpu")
alone = completion_batch([ids], [text], tokenizer.pad_id, "cpu")
in_batch = float(reward_model.scores(tokens, mask)[0].detach())
by_itself = float(reward_model.scores(*alone)[0].detach())
print(f"score of '3': padded with <eos>, in a batch, {in_batch:.4f}; alone {by_itself:.4f}")
assert abs(in_batch - by_itself) < 1e-4
