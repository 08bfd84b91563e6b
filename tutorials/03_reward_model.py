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
# - **Time**: 10 s on two CPU cores, with `MINIRL_FAST=1` as well
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
# | mean score | any number | it says nothing: comparisons leave the zero open |
# | identical pairs | none | the loss has a floor: their share times ln 2 |

# %%
import inspect
import math
import random
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch

from lesson import BLUE, GREY, RED, judge, judge_test, keep, show
from minirl.equations.advantages import group_advantages
from minirl.equations.preferences import bradley_terry_loss, ranking_loss
from minirl.equations.reduce import masked_whiten
from minirl.equations.rewards import reward_bias, reward_gain_and_bias
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.instructions import FRAMES, WORDS, Instructions, right_answer, wrong_answer
from minirl.tasks.preferences import Ranking, draw_ranking, pairs
from minirl.testing.example import ANSWERS, OLD, QUESTION, SCORES, probabilities
from minirl.train.reward_model import RewardModelConfig, score_texts, train_reward_model

# %% [markdown]
# ## The question
#
# A reward model reads a prompt and a completion and returns one number. It has a hidden state at
# every token, so it could return a number for every token. Readers of code ask why it does not:
# [is it not supposed to be one reward per token?](https://github.com/OpenRLHF/OpenRLHF/pull/1037),
# [why is the last token the reward of the sentence?](https://github.com/deepspeedai/DeepSpeedExamples/issues/823),
# and [why are my scores 60 to 70, and not near zero?](https://github.com/huggingface/trl/issues/691)
#
# The answer is in the data. Nobody can say what one token is worth, but people can say which of two
# texts they prefer. Comparisons of whole texts can teach one number per text, and even that only up
# to a constant. Which token deserves the reward is a question for the value function, in
# tutorial 04.

# %% [markdown]
# ## By hand
#
# A labeller (a person who compares) has ranked the four answers to "7+5=", best first, and a reward
# model gives them the scores 2, 1, 0 and -1. The Bradley-Terry model says how likely a preference
# is. Only the difference of the two scores counts:
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
    print(f"difference {difference}, {times} x: P = {p:.4f}, loss {-math.log(p):.4f}")
print(f"mean over the six pairs: {total / 6:.6f}")
assert abs(total / 6 - 0.207038) < 1e-6

# %% [markdown]
# A model that knows nothing gives equal scores. Then every pair has the probability 1/2 and the
# loss ln 2 = 0.6931. Training starts there.
#
# **Scale.** Say a labeller prefers "12" to "13" in three of four cases. Then the slope of the mean
# loss is $\sigma(r_1 - r_2) - 3/4$. It is 0 at a difference of ln 3 = 1.0986, the log odds. For a
# steadier labeller, who does so in nine of ten cases, it is 0 at ln 9 = 2 ln 3. Same texts, twice
# the scale: the scale of a reward says how *consistent* the labellers were.
#
# **Zero.** Add 5 to all scores: no difference changes, so the loss does not. Every prompt may even
# have a zero of its own, because answers to *different* prompts are never compared
# ([nor should their scores be](https://github.com/OpenLMLab/MOSS-RLHF/issues/21)).
#
# **Tokens.** The same happens inside a text. "12" and "13" begin with the same token. Whatever
# reward the "1" got, it would cancel when the two are compared, so no comparison could teach it.

# %%
difference = torch.tensor([math.log(3), math.log(9)], dtype=torch.float64, requires_grad=True)
shares = torch.tensor([3 / 4, 9 / 10], dtype=torch.float64)
one_way, other_way = (bradley_terry_loss(sign * difference, 0 * shares) for sign in (1, -1))
slope, = torch.autograd.grad((shares * one_way + (1 - shares) * other_way).sum(), difference)
assert bool((slope.abs() < 1e-12).all()), "least at the log odds"
for name, scores in {"as they are": SCORES, "plus 5": SCORES + 5, "times 2": 2 * SCORES,
                     "all equal": torch.zeros_like(SCORES)}.items():
    print(f"scores {name:12} {scores[0].tolist()!s:24} loss {float(ranking_loss(scores)):.6f}")
assert torch.allclose(ranking_loss(SCORES + 5), ranking_loss(SCORES))
assert abs(float(ranking_loss(0 * SCORES)) - math.log(2)) < 1e-12

# %% [markdown]
# ## The function

# %%
show(ranking_loss)

# %%
leaf = SCORES.clone().requires_grad_()
loss = ranking_loss(leaf)  # step in: ranking_loss
loss.sum().backward()
print(f"loss {loss.item():.6f}; gradient:", ", ".join(
    f"{a!r} {g:+.4f}" for a, g in zip(ANSWERS, leaf.grad[0].tolist(), strict=True)))
assert abs(loss.item() - 0.207038) < 1e-6                            # as by hand
assert abs(float(leaf.grad[0, 0]) + (0.26894 + 0.11920 + 0.04743) / 6) < 1e-5
assert abs(float(leaf.grad.sum())) < 1e-12

# %% [markdown]
# Gradient descent raises the scores of the better answers and lowers those of the worse. The
# gradient sums to 0: nothing ever moves all four scores together. So the loss leaves the zero open.
#
# ## Picture

# %%
figure, axes = plt.subplots(figsize=(5.2, 3.1))
x = torch.linspace(-3, 5, 200)
axes.plot(x, torch.sigmoid(x))
for share, at, label in ((0.5, 0.0, "no preference: 0"), (3 / 4, math.log(3), "3 of 4: ln 3"),
                         (9 / 10, math.log(9), "9 of 10: ln 9")):
    axes.plot([at, at, -3], [0, share, share], color=GREY, linestyle=":", linewidth=1)
    axes.plot(at, share, "o", color=RED)
    axes.annotate(label, (at, share), (at - 0.15, share + 0.02), color=RED, fontsize=8, ha="right")
axes.set(xlabel="difference of two scores", ylabel="first preferred (share of cases)",
         ylim=(0, 1.03), xlim=(-3, 5), title="A difference of scores is the log odds")
keep(figure, "03_bradley_terry")

# %% [markdown]
# ## Zero and scale
#
# So somebody must choose a zero. InstructGPT shifts the scores so that the labellers' own
# demonstrations score 0 on average. Ziegler et al. also choose the scale: mean 0 and standard
# deviation 1 on samples of the first policy. Here the demonstration is "12", and the samples are
# the four answers:

# %%
bias = reward_bias(SCORES[0, :1])
gain, shift = reward_gain_and_bias(SCORES[0])
print("InstructGPT:", (SCORES[0] + bias).tolist(), f"bias {float(bias):+.0f}")
print("Ziegler:    ", [round(x, 4) for x in (gain * SCORES[0] + shift).tolist()],
      f"gain {float(gain):.4f}, bias {float(shift):+.4f}")
assert (SCORES[0] + bias).tolist() == [0, -1, -2, -3]
assert abs(float(gain) - 1 / math.sqrt(1.25)) < 1e-9         # 2, 1, 0, -1: variance 1.25

# %% [markdown]
# RL does not depend on this choice. It learns from *advantages*: how much better a text was than
# expected, $A = R - V$. The expectation $V$ moves with the zero, and the difference stays. Then the
# advantages are normalised, that is, divided by their standard deviation: over the batch in PPO
# code (`masked_whiten`), over the answers to one prompt in GRPO (`group_advantages`). That removes
# the scale.

# %%
p_old = probabilities(OLD)                                           # (4,) .25 .15 .10 .50
for name, scores in {"r": SCORES[0], "r + 5": SCORES[0] + 5, "3 r + 5": 3 * SCORES[0] + 5}.items():
    expected = p_old @ scores                                        # V of the prompt
    adv = scores - expected
    white = masked_whiten(adv[None], torch.ones(1, 4))[0]
    print(f"{name:8} V {float(expected):5.2f}   A {[round(a, 2) for a in adv.tolist()]!s:29} "
          f"whitened {[round(a, 3) for a in white.tolist()]}")
    assert torch.allclose(white, torch.tensor([1.1619, 0.3873, -0.3873, -1.1619]).double(),
                          atol=1e-4)
    assert torch.allclose(group_advantages(scores[None])[0], white, atol=1e-3)

# %% [markdown]
# The scale still counts in one place, the KL penalty: in $r - \beta\,\mathrm{KL}$, doubling $r$ is
# like halving $\beta$.
#
# ## In the loop
#
# `train_reward_model` takes an SFT model, replaces its last layer by a head with one output, and
# reads that output at the last token of each completion. Its second stage:

# %%
page = inspect.getsource(train_reward_model).splitlines()
first = next(i for i, line in enumerate(page) if "# 2. update" in line)
print("\n".join(page[first:first + 15]))

# %% [markdown]
# As in InstructGPT, all pairs of a prompt are *one* element of the batch, so the model reads each
# completion once. If the pairs were shuffled as though they were independent, it would read each
# completion K - 1 times. The paper reports that it then overfits within one epoch.
#
# Now a real model, with 0.06 million parameters. The task is `tasks/instructions.py`: "sort dbca:",
# "count dbca:", and so on. Each prompt has four texts, right or wrong, short or long. A labeller
# wants a right answer first and a short one second, and judges with noise (`draw_ranking`). Because
# the noise is known, so are the best accuracy and the least loss that any reward model can have.

# %%
class Labeller(NamedTuple):
    right: float             # what a right answer is worth
    short: float             # what 32 characters less are worth
    noise: float             # P(i before j) = sigmoid((worth_i - worth_j) / noise)


K, TASK = 4, Instructions()
FIRST, SECOND = torch.triu_indices(K, K, offset=1)                   # the six pairs of a ranking


def make_questions(n, split, seed):
    """Return n problems, each with K different texts."""
    rng, questions = random.Random(seed), []
    for problem in TASK.sample(n, rng, split=split):
        answers = (problem.answer, wrong_answer(problem, rng))
        texts = sorted({frame.format(answer) for frame in FRAMES for answer in answers})
        questions.append((problem, rng.sample(texts, K)))
    return questions


def worth(labeller, problem, texts):
    right = right_answer([problem.prompt] * K, texts, [problem.answer] * K)
    return [labeller.right * yes - labeller.short * len(text) / 32
            for yes, text in zip(right, texts, strict=True)]


def rank(labeller, questions, seed):
    """Return a labeller's rankings."""
    rng = random.Random(seed)
    return [draw_ranking(problem.prompt, texts, worth(labeller, problem, texts), rng,
                         noise=labeller.noise) for problem, texts in questions]


def preferred(labeller, questions):
    """Return how often a labeller prefers the first text of each pair, (n * 6,)."""
    worths = torch.tensor([worth(labeller, *question) for question in questions])    # (n, K)
    return torch.sigmoid((worths[:, FIRST] - worths[:, SECOND]) / labeller.noise).flatten()


def new_model():
    sizes = TinySizes(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=96)
    return make_base(sizes, seed=0, device="cpu", words=WORDS)       # and its tokenizer


def train(rankings, epochs, save=None):
    return train_reward_model(new_model()[0], tokenizer, rankings,
                              RewardModelConfig(epochs=epochs, lr=4e-3), seed=0, save=save)


def margins_of(model, items):
    """Return r(first) - r(second) for all pairs of n (prompt, texts), (n * 6,)."""
    scores = score_texts(model, tokenizer, [prompt for prompt, texts in items for _ in texts],
                         [text for _, texts in items for text in texts]).view(-1, K)
    return (scores[:, FIRST] - scores[:, SECOND]).flatten()


blank, tokenizer = new_model()
assert 0.05e6 < sum(weight.numel() for weight in blank.parameters()) < 0.07e6
usual = Labeller(right=2.0, short=1.0, noise=0.5)
training = rank(usual, make_questions(128, "train", seed=0), seed=0)
held_out_questions = make_questions(150, "test", seed=1)
held_out = rank(usual, held_out_questions, seed=2)
p = preferred(usual, held_out_questions)
BEST_ACCURACY = float(torch.maximum(p, 1 - p).mean())
LEAST_LOSS = float(-(p * p.log() + (1 - p) * (1 - p).log()).mean())
print("a ranking:", training[0])
print(f"no reward model can do better than accuracy {BEST_ACCURACY:.3f}, loss {LEAST_LOSS:.3f}")
texts, spread = K * len(training), 2 * len(pairs(training))
print(f"texts that an epoch reads: {texts}; with every pair on its own: {spread}")
assert spread == (K - 1) * texts

# %% [markdown]
# ## One epoch against several
#
# InstructGPT trains its reward model for one epoch: several epochs "quickly" overfit (appendix
# C.2). Here are eight epochs on 128 rankings. After each we measure loss and accuracy, also on 150
# held-out rankings of other prompts.

# %%
EPOCHS = 8
curve, margins = [], {}


def share_right(margin):
    return float((margin > 0).float().mean())


def look(state):
    if state.step % (len(training) // 8) == 0:                       # the end of an epoch
        seen, unseen = (margins_of(state.model, [(r.prompt, r.completions) for r in rankings])
                        for rankings in (training, held_out))        # best first
        losses = [float(bradley_terry_loss(m, 0 * m).mean()) for m in (seen, unseen)]
        curve.append((*losses, share_right(seen), share_right(unseen)))
        margins[len(curve)] = unseen
        print("epoch {}: loss {:.3f}, held out {:.3f};  accuracy {:.3f}, held out {:.3f}".format(
            len(curve), *curve[-1]))


train(training, EPOCHS, save=look)
train_loss, held_loss, train_accuracy, held_accuracy = zip(*curve, strict=True)
best_epoch = 1 + held_loss.index(min(held_loss))
print(f"least held-out loss after epoch {best_epoch}")
assert best_epoch <= 3 and 0.7 < min(held_accuracy) and max(held_accuracy) < 0.8
assert train_accuracy[-1] > 0.93 and train_loss[-1] < 0.25
assert held_loss[-1] > min(held_loss) + 0.15 and held_loss[-1] > math.log(2)
assert max(held_accuracy) - held_accuracy[-1] < 0.06

# %% [markdown]
# The training pairs are learnt by heart. On held-out pairs the *order* hardly suffers, but the
# *loss* becomes worse than that of a model that knows nothing: the model is too sure. A difference
# of scores claims a probability, $\sigma(|r_1 - r_2|)$. A model is *calibrated* if it is right as
# often as it claims:

# %%
def calibration(margin, edges=(0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0001)):
    """Return how sure a model is and how often it is right, a point per bin: claimed, right."""
    sure = torch.sigmoid(margin.abs())
    bins = [(sure >= low) & (sure < high) for low, high in zip(edges, edges[1:], strict=False)]
    return [(float(sure[b].mean()), share_right(margin[b])) for b in bins if int(b.sum()) >= 20]


figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
epochs, gap = range(1, EPOCHS + 1), {}
left.plot(epochs, train_loss, "o-", color=BLUE, label="training rankings")
left.plot(epochs, held_loss, "s--", color=RED, label="held-out rankings")
left.axhline(LEAST_LOSS, color=GREY, linestyle=":", linewidth=1.2, label="least loss possible")
left.axhline(math.log(2), color=GREY, linewidth=0.8)
left.text(1, math.log(2) + 0.015, "ln 2", color=GREY, fontsize=8)
left.set(xlabel="epoch", xticks=list(epochs), ylabel="loss (nats per pair)", ylim=(0, 1.15),
         title="The held-out loss falls, then rises")
right.plot([0.5, 1], [0.5, 1], color=GREY, linestyle=":", linewidth=1.2, label="calibrated")
for epoch, colour, style in ((best_epoch, BLUE, "o-"), (EPOCHS, RED, "s--")):
    claimed = float(torch.sigmoid(margins[epoch].abs()).mean())
    gap[epoch] = claimed - held_accuracy[epoch - 1]
    print(f"epoch {epoch}: claims {claimed:.3f}, is right {held_accuracy[epoch - 1]:.3f}, "
          f"too sure by {gap[epoch]:.3f}")
    right.plot(*zip(*calibration(margins[epoch]), strict=True), style, color=colour,
               label=f"held-out, after epoch {epoch}")
right.set(xlabel="how sure the model is (probability)", ylabel="how often it is right (share)",
          xlim=(0.5, 1.01), ylim=(0.4, 1.01), title="More epochs, more overconfidence")
for axis in (left, right):
    axis.legend(loc="upper left")
keep(figure, "03_epochs")
assert gap[EPOCHS] > 0.08 and gap[EPOCHS] > gap[best_epoch] + 0.04

# %% [markdown]
# PPO takes a large difference of scores for a large improvement, and cannot know how often the
# reward model is right. So the training of a reward model stops early.
#
# ## Labellers who disagree
#
# Rankings come from many people. Here are five: the labeller from above ("usual"); "careless", with
# the same taste and twice the noise; "strict", who counts only right answers; "brief", who likes
# short texts above all; and "talkative", who likes long ones. How often do two of them agree?

# %%
LABELLERS = {"usual": usual, "careless": Labeller(2.0, 1.0, noise=1.0),
             "strict": Labeller(3.0, 0.0, 0.5), "brief": Labeller(0.5, 2.0, 0.5),
             "talkative": Labeller(2.0, -1.0, 0.5)}
prefers = {name: preferred(labeller, held_out_questions) for name, labeller in LABELLERS.items()}
ceiling = {name: float(torch.maximum(p, 1 - p).mean()) for name, p in prefers.items()}


def agreement(p, q):
    """Return how often two draws agree that prefer the first text with probabilities p and q."""
    return float((p * q + (1 - p) * (1 - q)).mean())


print("agreement", *(f"{name:>10}" for name in prefers), " best possible")
for name, p in prefers.items():
    print(f"{name:9}", *(f"{agreement(p, q):10.3f}" for q in prefers.values()),
          f"{ceiling[name]:10.3f}")
    assert agreement(p, p) < ceiling[name]
of_two = sum(agreement(p, q) for p in prefers.values() for q in prefers.values() if p is not q) / 20
print(f"two different labellers agree on {of_two:.3f} of the pairs")

# %% [markdown]
# InstructGPT's labellers agree with each other 72.6 ± 1.5 % of the time (section 3.4), and its
# reward models predict them with an accuracy of 72.4 ± 0.4 % (section 4.1). The first number looks
# like an upper bound of the second, but it is not. Say a text is preferred with probability
# $p = 0.7$. Two labellers agree in $p^2 + (1 - p)^2 = 58 \%$ of cases, and a model that always
# sides with the majority is right in 70 %. The bound is $E[\max(p, 1 - p)]$, the last column above,
# and it is never less than the agreement.
#
# Now one budget, 480 rankings: all from "brief", or 96 from each of the five.

# %%
questions = make_questions(480, "train", seed=3)
data = {"brief alone": rank(LABELLERS["brief"], questions, seed=4),
        "all five": [ranking for i, labeller in enumerate(LABELLERS.values())
                     for ranking in rank(labeller, questions[i::5], seed=5 + i)]}
accuracy = {}
for name, rankings in data.items():
    margin = margins_of(train(rankings, epochs=2), [(problem.prompt, texts)
                                                    for problem, texts in held_out_questions])
    accuracy[name] = {who: agreement((margin > 0).float(), p) for who, p in prefers.items()}
    print(f"trained on {name:12}", *(f"{who} {a:.3f} " for who, a in accuracy[name].items()))
one, five = accuracy.values()
print(f"mean of the five: {sum(one.values()) / 5:.3f} and {sum(five.values()) / 5:.3f}")
assert one["brief"] > five["brief"] + 0.03 and one["talkative"] < 0.55 < min(five.values())
assert sum(five.values()) > sum(one.values()) + 5 * 0.04
assert sum(five.values()) / 5 > of_two

figure, axes = plt.subplots(figsize=(6.6, 3.1))
for offset, colour, hatch, (name, values) in zip((-0.2, 0.2), (RED, BLUE), ("//", None),
                                                 accuracy.items(), strict=True):
    axes.bar([x + offset for x in range(5)], values.values(), 0.38, color=colour, hatch=hatch,
             edgecolor="white", label=f"trained on {name}")
axes.hlines(ceiling.values(), [x - 0.42 for x in range(5)], [x + 0.42 for x in range(5)],
            color=GREY, linewidth=1.6, label="best possible")
axes.axhline(0.5, color="black", linewidth=0.8)
axes.text(4.6, 0.505, "coin", fontsize=8, ha="right")
axes.set(xticks=range(5), xticklabels=prefers, ylim=(0.35, 1.0), xlabel="whose comparisons",
         ylabel="right (share of pairs)", title="One labeller's taste, or everybody's")
axes.grid(axis="x")
axes.legend(loc="upper center", ncols=3)
keep(figure, "03_labellers")

# %% [markdown]
# The reward model of "brief" is the better one for "brief" and no better than a coin for
# "talkative". That of all five is better than a coin for each of them, and on average agrees with
# them more often than they agree with each other. A reward model has the taste of the people who
# were asked.
#
# ## Break it
#
# A common accident: completions are cut to a maximal length, and two texts differ only after the
# cut. Then both have the same tokens and the same score, and nothing can be learnt from the pair.
# Of 5000 pairs from a public data set
# [352 were lost like this](https://github.com/natolambert/rlhf-book/pull/504), and
# [other code](https://github.com/OpenRLHF/OpenRLHF/issues/1311) loses them, too.
#
# Cut our four answers to one token: "12", "13" and "10+1=11" all become "1". Three of the six pairs
# are identical, each with loss ln 2, and no score can bring the mean below half of ln 2:

# %%
for apart in (0.0, 2.0, 20.0):
    one, two = torch.tensor([apart, 0.0])                            # scores of "1" and "2"
    cut = torch.stack([one, one, one, two])[None]
    print(f"scores of '1' and '2' differ by {apart:4.1f}: loss {float(ranking_loss(cut)):.4f}")
assert abs(float(ranking_loss(cut)) - 3 / 6 * math.log(2)) < 1e-6
try:
    Ranking(QUESTION, ("1", "1", "1", "2"))
except ValueError as error:
    print("minirl refuses them:", error)
else:
    raise AssertionError("equal completions were accepted")

# %% [markdown]
# ## Exercises
#
# Solutions are in `tutorials/solutions/03_reward_model.py`.

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
# | epochs | 1: more overfit "quickly" | least held-out loss after 1 to 3 |
# | learning rate | 9e-6, a cosine to 10 % | 4e-3, a cosine to 10 % |
# | ties | left out | none: noise decides |
#
# `minirl rm --preset instructgpt` takes the paper's numbers.

# %% [markdown]
# ## Find the bug
#
# A reward model's head gives a number at every slot. This function takes the one at the last token
# of each row. It has a silent bug, modelled on
# [a real one](https://github.com/huggingface/trl/pull/6952): on most batches it is right. Write a
# test that fails for it. Rows have `lengths` tokens, `<eos>` included, and are padded on the right
# with `pad_id`. In many tokenizers this is the id of `<eos>`, too.

# %%
def read_last(values, tokens, lengths, pad_id):
    """Return values (B, T) at the last token of each row, (B,). Rows have `lengths` tokens."""
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
