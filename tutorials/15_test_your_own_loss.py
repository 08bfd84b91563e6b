# %%
# %pip install -q -e ..

# %% [markdown]
# # 15. Test your own loss
#
# *The reward rises. Is my loss right?*
#
# - **Paper**: PPO, [arXiv:1707.06347](https://arxiv.org/abs/1707.06347), section 3, eq. 7; GRPO,
#   DeepSeekMath, [arXiv:2402.03300](https://arxiv.org/abs/2402.03300), eq. 3
# - **Code**: `minirl/testing/conformance.py`: `check`, `properties`; `minirl/testing/golden.py`
# - **Tests**: `tests/testing/test_conformance.py`, `tests/testing/test_golden.py`
# - **Before this**: 05 (the clip), 08 (GRPO)
# - **Time**: 8 s on two CPU cores, with `MINIRL_FAST=1` as well
# - **Expect**: a loss with three mistakes fails 10 properties of 10, and raises the reward from
#   0.25 to 0.96 all the same
# - **Sweep**: `minirl check my_module:my_loss --against grpo --sign minimise`, then with
#   `--against ppo` and `--against dapo`: which properties hold for which algorithm?
#
# | what to inspect | healthy | if not |
# |---|---|---|
# | first line of the report | `ok` | mend what the first diagnosis names, and check again |
# | "another convention" | what your paper says | pass it as `fixed`, `reduced` or `sign` |
# | "no known slip" | absent | compare the two numbers of the example by hand |
# | `not asked` | nowhere | that property says nothing about your function |

# %%
import json
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch

from lesson import BLUE, GREY, judge, judge_test, keep, show
from minirl.equations.advantages import group_advantages
from minirl.equations.objectives import clipped_surrogate
from minirl.equations.reduce import aggregate
from minirl.testing.conformance import check, properties
from minirl.testing.example import MASK, OLD, REWARDS, probabilities, token_logprobs
from minirl.testing.golden import JSON, cases
from minirl.testing.slips import SLIPS

# %% [markdown]
# ## The question
#
# You wrote a GRPO loss, the reward rises, and you are not sure. You are in good company:
#
# - A PPO took means inside its two surrogates, before the min. Its author
#   [did not notice any regression](https://github.com/Omegastick/pytorch-cpp-rl/issues/14), and
#   wonders why it worked at all.
# - Another PPO took the min
#   [before it multiplied by the advantage](https://github.com/takuseno/ppo/issues/3). A book on
#   reasoning models [rewrote its clip](https://github.com/rasbt/reasoning-from-scratch/pull/240).
# - A clip [made no difference](https://github.com/openai/baselines/issues/87), because the old
#   log-probs were not those of the rollout.
# - A reader suspects that [GRPO is wrong](https://github.com/OpenRLHF/OpenRLHF/issues/768), and it
#   turns out to be right.
#
# In short: a rising reward says that the gradient points *roughly* uphill. In the first update
# after sampling the ratio is 1 and the clip is idle, so most wrong losses do that. Right means: the
# right value *and* the right gradient, at inputs where a mistake shows. Such inputs can be listed,
# and `check` asks for all of them in a second.

# %% [markdown]
# ## By hand
#
# The smallest check is one golden case: inputs, value, gradient, and the arithmetic in words.

# %%
case = cases("clipped_surrogate")[0]
print("why:     ", case.why)
print("π, π_old:", case.inputs["logp"].exp().tolist(), case.inputs["old_logp"].exp().tolist())
print("value:   ", case.value.tolist(), " gradient:", case.gradient["logp"].tolist())

# %% [markdown]
# The ratios are (1/4)/(1/2) = 0.5, (9/20)/(1/2) = 0.9 and (3/4)/(1/2) = 1.5. With A = 1 the terms
# are min(0.5, 0.8), min(0.9, 0.9) and min(1.5, 1.2). As $d\rho / d\log\pi = \rho$, the gradients
# are 0.5 and 0.9. The third term is the constant 1.2, with the gradient 0.
#
# The same numbers stand in a JSON file, for those who have no torch. A loss in NumPy has no
# autograd, but a gradient is also the difference of two values:
# $(f(x + h) - f(x - h)) / 2h$.

# %%
def numpy_surrogate(logp, old_logp, adv, *, clip_low=0.2, clip_high=0.2):
    ratio = np.exp(logp - old_logp)
    return np.minimum(ratio * adv, ratio.clip(1 - clip_low, 1 + clip_high) * adv)


golden = json.loads(JSON.read_text(encoding="utf-8"))["equations"]
others = [case for case in golden["clipped_surrogate"]["cases"] if not case["ours"]]
for case in others:
    inputs = {name: np.array(x) if isinstance(x, list) else x for name, x in case["inputs"].items()}
    assert np.allclose(numpy_surrogate(**inputs), case["value"]), case["why"]
    up, down = (numpy_surrogate(**inputs | {"logp": inputs["logp"] + h}) for h in (1e-6, -1e-6))
    assert np.allclose((up - down) / 2e-6, case["gradient"]["logp"], atol=1e-5), case["why"]
print(f"{len(golden)} equations, {sum(len(x['cases']) for x in golden.values())} cases; "
      f"value and gradient agree in {len(others)} cases of clipped_surrogate")

# %% [markdown]
# ## The function
#
# `check` asks for more than golden values. It compares your function with minirl's equation on
# sets of inputs. Each set is a *property*: agreement there, in value and gradient.

# %%
show(check)

# %%
def minirl_grpo(logp, old_logp, adv, mask):
    return -aggregate(clipped_surrogate(logp, old_logp, adv), mask, "sequence_mean")


report = check(minirl_grpo, "grpo", sign="minimise")  # step in: check
print(report)
assert report.ok and list(report.properties) == properties("grpo")
assert not check(minirl_grpo, "grpo").ok, "a loss is no objective: the sign has to be told"

# %% [markdown]
# `grpo` is a recipe: `clipped_surrogate`, averaged inside each answer first. Its properties:
#
# - **clip truth table**: one token, 12 ratios times 5 advantages
# - **a batch**: random numbers; the mask has gaps, and its rows have different lengths
# - **B == T**: as many rows as slots, so a wrong broadcast raises no error; one row is empty
# - **what stands under the mask**: 1e9, then NaN
# - **log-ratios of 100**, **float32**, **bfloat16**: numbers that overflow or round
# - **expectation**: the mean over *all* completions of a tiny world, written by the policy itself
#
# For a function without a mean, the golden cases come first: **golden values**.
#
# NumPy works here, too: `arrays=np.asarray`. Finite differences of float32 say little, so two
# properties are `not asked`. With pytest, one test for each property:
#
# ```python
# @pytest.mark.parametrize("only", properties("clipped_surrogate"))
# def test_my_surrogate(only):
#     report = check(my_surrogate, "clipped_surrogate", only=only)
#     assert report.ok, str(report)
# ```

# %%
report = check(numpy_surrogate, "clipped_surrogate", arrays=np.asarray)
left_out = [name for name, verdict in report.properties.items() if verdict == "not asked"]
print("NumPy:", "ok" if report.ok else "NOT ok", " not asked:", left_out)
assert report.ok and left_out == ["float32", "bfloat16"]

# %% [markdown]
# ## Picture
#
# `check` knows the slips that people make, as functions. Which property notices which slip? Dark:
# the property fails. Light: it holds, although the function is wrong. White: not a property of
# that equation.

# %%
EQUATIONS = ("clipped_surrogate", "sequence_clipped_surrogate", "k3", "group_advantages", "gae")
slips = [(name, slip) for name in EQUATIONS for slip in SLIPS[name]]
reports = [check(slip.function, name) for name, slip in slips]
columns = list(dict.fromkeys(name for report in reports for name in report.properties))
grid = np.array([[{"fails": 2, "holds": 1}.get(report.properties.get(column), 0)
                  for column in columns] for report in reports])             # (slips, properties)
noticed = {slip.function.__name__: {failure.property for failure in report.failures}
           for (_, slip), report in zip(slips, reports, strict=True)}
print(f"{len(slips)} slips, {len(columns)} properties; the ones that fewest properties notice:")
for name in sorted(noticed, key=lambda name: len(noticed[name]))[:4]:
    print(f"  {name:20}", "; ".join(sorted(noticed[name])))
assert all("golden values" in names for names in noticed.values()), "every slip is noticed"
assert noticed["rounding_over_eps"] <= {"golden values", "equal rewards teach nothing"}
assert "a batch" not in noticed["clip_without_min"]
for name in ("inverted_clip", "clip_alone", "no_clip"):
    assert "expectation over all completions" not in noticed[name], "ratio 1: the clip is idle"

figure, axis = plt.subplots(figsize=(7.6, 5.6))
axis.imshow(grid, cmap=plt.matplotlib.colors.ListedColormap(["white", "#cfdcec", BLUE]),
            vmin=0, vmax=2, aspect="auto")
axis.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
axis.set_yticks(range(len(slips)), [slip.function.__name__.replace("_", " ") for _, slip in slips])
axis.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
axis.set_yticks(np.arange(1, len(slips)) - 0.5, minor=True)
axis.grid(False)
axis.grid(which="minor", color="white", linewidth=2, linestyle="-", alpha=1)
axis.tick_params(which="both", length=0)
axis.spines[:].set_visible(False)
for name in EQUATIONS:
    rows = [i for i, (owner, _) in enumerate(slips) if owner == name]
    axis.text(len(columns) - 0.3, np.mean(rows), name.replace("_", "\n"), fontsize=8, color=GREY,
              va="center")
    axis.plot([len(columns) - 0.42] * 2, [rows[0] - 0.35, rows[-1] + 0.35], color=GREY,
              linewidth=1, linestyle="-", clip_on=False)
axis.set(title="Which property (across) notices which slip (down)", xlim=(-0.5, len(columns) - 0.5))
keep(figure, "15_matrix")

# %% [markdown]
# The golden values notice all of them: each case was written with a mistake in mind. A random batch
# does not. GSPO's clip without its min passes it, because the min has nothing to do in its four
# rows. And the column of the expectation explains why rewards rise. Three wrong clips pass there:
# the policy itself wrote those completions, every ratio is 1, and the gradient is right.
#
# Let us train with such losses on the four answers of the example (tutorial 05), with exact
# expectations: 12 batches, 8 passes over each.

# %%
def loss_of(objective):
    return lambda logp, old_logp, adv, mask: -aggregate(
        objective(logp, old_logp, adv), mask, "sequence_mean")


def climb(loss, *, batches=12, passes=8, lr=1.0, renew=False):
    """Minimise a loss, exactly -> the mean reward after each batch. renew: old_logp in each pass"""
    policy = [logits.clone().requires_grad_() for logits in OLD]
    curve = [0.25]
    for _ in range(batches):
        p, old_logp = probabilities(policy).detach(), token_logprobs(policy).detach()
        centred = REWARDS[0] - p @ REWARDS[0]                                # (4,)
        adv = centred / (p @ centred.square()).sqrt()                        # (4,)
        adv = [a * row[None] for a, row in zip(adv, MASK, strict=True)]      # four of (1, 8)
        for _ in range(passes):
            logp = token_logprobs(policy)
            old_logp = logp.detach() if renew else old_logp
            rows = [loss(logp[i:i + 1], old_logp[i:i + 1], adv[i], MASK[i:i + 1])
                    for i in range(4)]
            slopes = torch.autograd.grad((p * torch.stack(rows)).sum(), policy)
            for logits, slope in zip(policy, slopes, strict=True):
                logits.data -= lr * slope
        curve.append(float(probabilities(policy).detach() @ REWARDS[0]))
    return curve


wrong = {slip.function.__name__: slip.function for slip in SLIPS["clipped_surrogate"]}
RULES = {"PPO's clip": clipped_surrogate, "max where A < 0": wrong["inverted_clip"],
         "clip without min": wrong["clip_alone"], "no clip": wrong["no_clip"],
         "old / new": wrong["reversed_ratio"]}
figure, axis = plt.subplots(figsize=(6.8, 3.4))
print("                  reward after 1, 4, 12 batches   properties that fail")
for name, rule in RULES.items():
    curve = climb(loss_of(rule))
    verdicts = list(check(rule, "clipped_surrogate").properties.values())
    failing = verdicts.count("fails")
    print(f"  {name:16}", *(f"{curve[i]:7.2f}" for i in (1, 4, 12)),
          f"{failing:15} of {len(verdicts)}")
    assert (curve[-1] > 0.95) == (curve[1] > 0.25) == (name != "old / new")
    assert (failing == 0) == (name == "PPO's clip")
    axis.plot(curve, label=f"{name}: {failing} of {len(verdicts)} properties fail")
axis.set(xlabel="batch", ylabel="mean reward", title="Rewards rise with wrong losses, too",
         ylim=(-0.02, 1.02))
axis.legend(loc="center right", bbox_to_anchor=(1, 0.4))
keep(figure, "15_reward")

# %% [markdown]
# Only the ratio upside down shows in the reward. The wrong max and the loss without a clip even
# look better than PPO. Tutorial 05 shows what they lack: the clip bounds what one batch can ask
# for, also where the judge is mistaken.

# %% [markdown]
# ## In the loop
#
# Somebody's first GRPO. It has three mistakes. The clamp at 20 is none: it keeps an exploded ratio
# a number.

# %%
def draft_1(logp, old_logp, adv, mask):
    ratio = (logp - old_logp).clamp(max=20).exp()
    plain, clipped = ratio * adv, ratio.clamp(0.8, 1.2) * adv
    terms = torch.where(adv < 0, torch.maximum(plain, clipped), torch.minimum(plain, clipped))
    return -(terms * mask).mean()


def summary(function, against="grpo", **settings):
    """Check a function and print the report in short -> its failures by property."""
    report = check(function, against, **settings)
    failures = {failure.property: failure for failure in report.failures}
    print(f"{function.__name__} against {against}, {settings}: "
          f"{len(failures)} of {len(report.properties)} fail")
    for text in dict.fromkeys(failure.diagnosis for failure in report.failures):
        names = [name for name, failure in failures.items() if failure.diagnosis == text]
        print(textwrap.fill("; ".join(names), 95, initial_indent="  ", subsequent_indent="  "))
        print(textwrap.fill(text or "no known slip", 95, initial_indent="    -> ",
                            subsequent_indent="       "))
    return failures


failures = summary(draft_1, sign="minimise")
reward = climb(draft_1)[-1]
print(f"reward after 12 batches: {reward:.2f}")
assert list(failures) == properties("grpo") and reward > 0.94
assert "takes the maximum" in failures["clip truth table"].diagnosis

# %% [markdown]
# Everything fails, so where to begin? At the simplest property: the truth table has one token and
# no padding, and there the report knows the slip. A loss of several mistakes fits no *single* slip,
# so other properties say "no known slip". Mend the max, and check again.

# %%
def draft_2(logp, old_logp, adv, mask):
    ratio = (logp - old_logp).clamp(max=20).exp()
    terms = torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv)
    return -(terms * mask).mean()


failures = summary(draft_2, sign="minimise")
assert "clip truth table" not in failures and "a batch" in failures
assert any(word in failures["a batch"].diagnosis for word in ("constant", "padding"))

# %% [markdown]
# The clip is right now. The mean divides by all slots, padding included. With a constant number of
# slots that is a convention (Dr. GRPO); here it depends on the longest answer of the batch. Divide
# by the tokens instead:

# %%
def draft_3(logp, old_logp, adv, mask):
    ratio = (logp - old_logp).clamp(max=20).exp()
    terms = torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv)
    return -(terms * mask).sum() / mask.sum()


failures = summary(draft_3, sign="minimise")
assert "token_mean" in failures["a batch"].diagnosis and failures["a batch"].choice
as_ppo = summary(draft_3, "ppo", sign="minimise")
assert list(as_ppo) == ["what stands under the mask never matters"]

# %% [markdown]
# "Another convention" is no mistake: the mean over all tokens is right for PPO and DAPO. GRPO's
# eq. 3 has $\frac{1}{|o_i|}$ inside the sum over answers. You decide which one you meant.

# %%
def draft_4(logp, old_logp, adv, mask):
    ratio = (logp - old_logp).clamp(max=20).exp()
    terms = torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv)
    return -((terms * mask).sum(1) / mask.sum(1)).mean()


report = check(draft_4, "grpo", sign="minimise")
print(report)
assert {failure.property for failure in report.failures} == {
    "B == T, and an empty row", "what stands under the mask never matters"}

# %% [markdown]
# Two causes of NaN are left. A row without a token has 0/0, so the count needs a `clamp(min=1)`.
# And a product with the mask does not hide a NaN, because 0 · NaN is NaN
# ([OpenRLHF#1240](https://github.com/OpenRLHF/OpenRLHF/pull/1240)). `torch.where` does, if it comes
# *before* the exp: behind it, the NaN returns in the gradient.

# %%
def draft_5(logp, old_logp, adv, mask):
    ratio = torch.where(mask, logp - old_logp, 0).clamp(max=20).exp()
    terms = torch.where(mask, torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv), 0)
    return -(terms.sum(1) / mask.sum(1).clamp(min=1)).mean()


assert not summary(draft_5, sign="minimise")
seen = torch.tensor([True, False])
for name, late in (("before", False), ("behind", True)):
    x = torch.tensor([0.0, torch.nan], requires_grad=True)
    y = torch.where(seen, x.exp(), 0) if late else torch.where(seen, x, 0).exp()
    slope, = torch.autograd.grad(y.sum(), x)
    print(f"where {name} the exp: gradient {slope.tolist()}")
    assert bool(slope.isnan().any()) == late

# %% [markdown]
# The other half of GRPO are its advantages. DeepSeekMath does not say whether the standard
# deviation divides by n or n - 1. This one divides by n:

# %%
def my_advantages(rewards):
    std = rewards.std(1, keepdim=True, correction=0)
    return (rewards - rewards.mean(1, keepdim=True)) / (std + 1e-4)


failures = summary(my_advantages, "group_advantages")
assert failures["a batch"].choice and "ddof" in failures["a batch"].diagnosis
failures = summary(my_advantages, "group_advantages", fixed={"ddof": 0})
assert list(failures) == ["equal rewards teach nothing"]
equal = my_advantages(torch.full((1, 8), 0.7))
print(f"eight rewards of 0.7: A = {float(equal[0, 0]):.1e}")
assert bool((equal.abs() > 1e-4).all())

# %% [markdown]
# `fixed` tells `check` of your choice, and a slip is left. The mean of eight times 0.7 is off by a
# rounding in float32, and the division magnifies it. Compare max and min first, and give equal
# rewards 0.
#
# Some numbers are a choice of minirl alone. A NaN reward is "no verdict" here, and the others of
# its group are normalised without it. You need not agree, so only `strict=True` asks for that:

# %%
def mended_advantages(rewards):
    equal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return torch.where(equal, 0, my_advantages(rewards))


def no_verdict_is_a_zero(rewards):
    return group_advantages(rewards.nan_to_num(0.0))


assert not summary(mended_advantages, "group_advantages", fixed={"ddof": 0})
assert not summary(no_verdict_is_a_zero, "group_advantages")
assert list(summary(no_verdict_is_a_zero, "group_advantages", strict=True)) == ["golden values"]

# %% [markdown]
# ## Break it
#
# What can `check` not see? It knows your *function*, and nothing around it. Three losses that are
# `ok`, and three trainings that are wrong all the same:
#
# **The wrong `old_logp`.** The caller computes it anew in each pass
# ([a real case](https://github.com/openai/baselines/issues/87)). Then the ratio is always 1, and
# nothing is ever clipped. By hand: the clip stops "1" and the "2" after it at 1.2 times their 0.5,
# so one batch brings "12" to about $0.6 \cdot 0.6 = 0.36$, and not further.

# %%
kept, renewed = (climb(draft_5, batches=1, passes=100, renew=renew)[-1] for renew in (False, True))
print(f"P(12) after 100 passes over one batch: {kept:.2f}; old_logp renewed: {renewed:.2f}")
assert 0.36 < kept < 0.42 and renewed > 0.9

# %% [markdown]
# **The mean of two means.** This loss is right for PPO, on a whole batch. The caller splits the
# batch in two and takes the mean of both results. Our four answers have 3, 3, 8 and 2 tokens. With
# the advantages 3, -1, -1, -1 and the ratio 1, the halves have $(9 - 3) / 6 = 1$ and
# $-10 / 10 = -1$, and the whole has $(6 - 10) / 16 = -0.25$. `check` has another target for that:
# `aggregate`, a mean that is told by how many tokens to divide.

# %%
def minirl_ppo(logp, old_logp, adv, mask):
    return -aggregate(clipped_surrogate(logp, old_logp, adv), mask, "token_mean")


assert check(minirl_ppo, "ppo", sign="minimise").ok
adv = torch.tensor([3.0, -1.0, -1.0, -1.0]).double()[:, None] * MASK
zeros = torch.zeros(4, 8).double()
whole, *halves = (-float(minirl_ppo(zeros[rows], zeros[rows], adv[rows], MASK[rows]))
                  for rows in (slice(0, 4), slice(0, 2), slice(2, 4)))
print(f"objective: whole {whole:+.2f}; halves {halves[0]:+.2f} and {halves[1]:+.2f}, "
      f"their mean {sum(halves) / 2:+.2f}")
assert (whole, halves) == (-0.25, [1.0, -1.0])

# %% [markdown]
# **What no probe has.** `check` asks finitely many questions. Its widest batch has 11 slots, so
# this loss is `ok`, and ignores the second half of a text of 128 tokens:

# %%
def only_64_tokens(logp, old_logp, adv, mask):
    return draft_5(logp[:, :64], old_logp[:, :64], adv[:, :64], mask[:, :64])


assert check(only_64_tokens, "grpo", sign="minimise").ok
leaf = torch.zeros(1, 128, requires_grad=True)
only_64_tokens(leaf, torch.zeros(1, 128), torch.ones(1, 128), torch.ones(1, 128).bool()).backward()
print("tokens with a gradient:", int((leaf.grad != 0).sum()), "of 128")
assert int((leaf.grad != 0).sum()) == 64

# %% [markdown]
# So `check` is one test of several. The others: the ratio of the first pass is 1 (tutorial 02); a
# batch in pieces gives the gradient of the whole; and log-probs, masks, samplers and rewards have
# checks of their own (`minirl check --list`).
#
# ## Exercises
#
# Solutions stand in `tutorials/solutions/15_test_your_own_loss.py`.

# %%
def exercise_1(logp, old_logp, adv, mask):
    """DAPO's loss, to be minimised: the bounds 0.8 and 1.28, the mean over all tokens. It must
    pass check(exercise_1, "dapo", sign="minimise")."""
    raise NotImplementedError


def check_1(answer):
    ones = torch.ones(1, 1)
    came = float(answer(0.25 * ones, 0 * ones, ones, ones.bool()))          # ratio e^0.25 = 1.284
    assert abs(came + 1.28) < 1e-6, f"A = 1, ratio 1.284: the loss is -1.28, not {came}"
    report = check(answer, "dapo", sign="minimise")
    assert report.ok, str(report)


judge(check_1, exercise_1)

# %% [markdown]
# Three losses, each with one mistake. Compare the numbers that came with the right ones. (`check`
# prints the objective, so a loss has the other sign here.)

# %%
def suspect(bound, rows_mean):
    def loss(logp, old_logp, adv, mask):
        ratio = torch.where(mask, logp - old_logp, 0).clamp(max=20).exp()
        terms = torch.where(mask, torch.minimum(ratio * adv, bound(ratio) * adv), 0)
        return -rows_mean(terms.sum(1) / mask.sum(1).clamp(min=1), mask)
    return loss


SUSPECTS = {
    "A": suspect(lambda ratio: ratio.log().clamp(-0.2, 0.28).exp(), lambda rows, mask: rows.mean()),
    "B": suspect(lambda ratio: ratio.clamp(0.8, 1.28), lambda rows, mask: rows[mask.any(1)].mean()),
    "C": suspect(lambda ratio: ratio.clamp(0.72, 1.2), lambda rows, mask: rows.mean())}
for name, loss in SUSPECTS.items():
    report = check(loss, "grpo", sign="minimise", fixed={"clip_high": 0.28})
    first = report.failures[0]
    print(f"{name}: {len(report.failures)} of {len(report.properties)} fail, first: "
          f"{first.property}; {float(first.came):.4f} instead of {float(first.wanted):.4f}")
CAUSES = ("bounds swapped", "bounds on the log-ratio", "empty rows left out", "padding counted",
          "ratio detached")


def exercise_2():
    """Return which of the CAUSES each loss has, as {"A": ..., "B": ..., "C": ...}."""
    raise NotImplementedError


def check_2(answer):
    came = answer()
    assert set(came.values()) <= set(CAUSES), f"choose among {CAUSES}"
    for name, hint in (("A", "what is the logarithm of the number that came?"),
                       ("B", "which property fails, and what has its batch that others have not?"),
                       ("C", "the number that came is a bound: which one?")):
        right = CAUSES[{"A": 1, "B": 2, "C": 0}[name]]
        assert came.get(name) == right, f"{name}: {hint}"


judge(check_2, exercise_2)

# %% [markdown]
# ## Deltas from the paper
#
# | | paper | what `check` takes for right |
# |---|---|---|
# | clip | PPO: one ε | two bounds, 0.2 and 0.2 by default |
# | standard deviation | DeepSeekMath: n or n - 1 is left open | n - 1; n is "another convention" |
# | equal rewards | DeepSeekMath: 0 / 0 | advantage 0 |
# | an answer without a token | not mentioned | counts as an answer, adds 0 |
# | a ratio of $e^{100}$ | not mentioned | any large number, but no NaN |
# | mean | GRPO's eq. 3: inside each answer first | the same, for `grpo` |

# %% [markdown]
# ## Find the bug
#
# This loss passes the unit test that everybody writes: golden numbers, values and gradients. In
# training, one pass over each batch works, and with two passes nothing is learnt. `check` finds the
# bug. Find it, then write a test that fails for this loss, and passes for `draft_5`.

# %%
def loss_with_a_bug(logp, old_logp, adv, mask):
    """GRPO's clipped loss. Minimise."""
    ratio = torch.where(mask, logp - old_logp, 0).clamp(max=20).exp()
    adv *= -1                                          # a loss is what costs
    terms = torch.maximum(ratio * adv, ratio.clamp(0.8, 1.2) * adv)
    return (torch.where(mask, terms, 0).sum(1) / mask.sum(1).clamp(min=1)).mean()


def first_test(function):
    logp = torch.tensor([[0.5, 1.5], [1.5, 0.5]]).log().requires_grad_()    # the ratios
    adv = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    loss = function(logp, torch.zeros(2, 2), adv, torch.ones(2, 2).bool())
    loss.backward()
    assert abs(float(loss.detach()) + (0.5 + 1.2 - 1.5 - 0.8) / 4) < 1e-6
    assert torch.allclose(logp.grad, -torch.tensor([[0.5, 0.0], [-1.5, 0.0]]) / 4)


first_test(draft_5)
first_test(loss_with_a_bug)
rewards = {n: climb(loss_with_a_bug, passes=n)[-1] for n in (1, 2)}
print("first_test passes; reward after 12 batches of 1 and of 2 passes:",
      *(f"{reward:.2f}" for reward in rewards.values()))
assert rewards[1] > 0.4 and rewards[2] < 0.3
assert not check(loss_with_a_bug, "grpo", sign="minimise").ok


def exercise_bug(function):
    """Test a function like draft_5(logp, old_logp, adv, mask): assert what it should do."""
    raise NotImplementedError


def check_bug(test):
    judge_test(test, draft_5, loss_with_a_bug)


judge(check_bug, exercise_bug)
