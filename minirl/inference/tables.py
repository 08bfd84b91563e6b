"""Evaluations as text: one with its intervals, two policies or several side by side, and samples of
them. What a model wrote is made safe to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from minirl.inference.evaluate import Evaluation
from minirl.inference.intervals import mean_interval, wilson_interval
from minirl.lm.text import code_span, hanging, table


def evaluation_table(result: Evaluation, ks: Sequence[int], *, asked: int, samples: int,
                     temperature: float) -> str:
    """Return accuracy and unbiased pass@k, each with its 95 % interval, and the other means."""
    def number(mean: float) -> str:
        return "no verdict" if math.isnan(mean) else f"{mean:.3f}"

    n = len(result.problems)
    lines = [f"{n} distinct held-out problems, {samples} samples each, "
             f"temperature {temperature:g}"]
    if n < asked:
        lines.append(f"({asked} were asked for, and the task seems to have no more)")
    rows = [("", "mean", "95 % interval")]
    means = [("accuracy", result.accuracy, result.judged_problems)]
    means += [(f"pass@{k}", result.pass_at(k), problems_with_verdicts(result, k)) for k in ks]
    for name, mean, judged in means:
        low, high = wilson_interval(mean, judged)
        rows.append((name, number(mean), f"{low:.3f} to {high:.3f}"))
    if result.judged_problems < n:
        rows.append(("problems with a verdict", str(result.judged_problems), ""))
    rows += [(f"{name}, mean", number(mean), "") for name, mean in result.rewards.items()
             if name != "accuracy"]
    rows += [("response length, tokens", f"{result.mean_length:.1f}", ""),
             ("cut off", f"{result.truncated:.3f}", "")]
    return "\n".join([*lines, table(rows)])


def problems_with_verdicts(result: Evaluation, k: int) -> int:
    """Return how many problems have k verdicts or more: those that pass@k is the mean of."""
    return sum(sum(verdict is not None for verdict in verdicts) >= k
               for verdicts in result.verdicts["accuracy"])


def before_and_after(before: Evaluation, after: Evaluation, samples: int = 3) -> str:
    """Return a table of a policy before and after training, and what it says to a few problems."""
    both = before, after
    rows = [("", "before", "after"), ("accuracy (95 % interval)", *map(accuracy, both))]
    if any(result.judged_problems < len(result.problems) for result in both):
        rows.append(("problems with a verdict", *(str(r.judged_problems) for r in both)))
    rows += [(name.removesuffix("_reward").replace("_", " "),
              *(f"{result.rewards[name]:.3f}" for result in both))
             for name in before.rewards if name != "accuracy"]
    rows += [("mean response length, tokens", *(f"{r.mean_length:.1f}" for r in both))]
    lines = [f"{len(before.problems)} distinct held-out problems, temperature 1", table(rows), ""]
    for i, problem in enumerate(before.problems[:samples]):
        lines += hanging("", problem.prompt)
        for when, result in (("before", before), ("after", after)):
            lines.append(f"  {when}: {verdict(result, i)}")
            lines += hanging("    ", result.completions[i][0])
    return "\n".join(lines)


def accuracy(result: Evaluation) -> str:
    if result.judged_problems == 0:
        return "no verdict"
    low, high = wilson_interval(result.accuracy, result.judged_problems)
    return f"{result.accuracy:.3f} ({low:.3f} to {high:.3f})"


def comparison(policies: Mapping[str, Evaluation], samples: int = 4) -> str:
    """Return a row per policy of preference learning, and what the first and the last say to a few
    problems."""
    first, *_, last = policies.items()
    problems = first[1].problems
    rows = [("", "true reward", "right", "reward model", "KL", "tokens")]
    for name, result in policies.items():
        distance = result.kl_bound if result.kl is None else result.kl
        kl = "" if distance is None else f"{round(distance, 2) + 0.0:.2f}"  # not -0.00
        rows.append((name, mean_interval(result.numbers("true_reward")), f"{result.accuracy:.3f}",
                     f"{result.mean('reward_model'):.3f}", kl, f"{result.mean_length:.1f}"))
    lines = [f"{len(problems)} distinct held-out instructions", table(rows), ""]
    width = max(len(first[0]), len(last[0]))
    for i, problem in enumerate(problems[:samples]):
        lines += hanging("", problem.prompt)
        for name, result in (first, last):
            head = f"  {name:{width}}  {verdict(result, i)}  "
            lines += hanging(head, result.completions[i][0])
    return "\n".join(lines)


def markdown(evaluation: Evaluation, n: int, rewards: tuple[str, ...] = ()) -> str:
    """Return the first n problems with their first completions, as a list in Markdown, with the
    verdicts of these rewards."""
    lines = []
    for i, problem in enumerate(evaluation.problems[:n]):
        words = [verdict(evaluation, i)]
        words += [f"{name.replace('_', ' ')} {evaluation.verdicts[name][i][0]:.2f}"
                  for name in rewards]
        lines += [f"- {code_span(problem.prompt)} (right: {code_span(problem.answer)})",
                  f"  - {', '.join(words)}: {code_span(evaluation.completions[i][0])}"]
    return "\n".join(lines)


def verdict(evaluation: Evaluation, i: int) -> str:
    """Return right, wrong or no verdict for problem i's first completion."""
    accuracy = evaluation.verdicts["accuracy"][i][0]
    return "no verdict" if accuracy is None else "right" if accuracy == 1.0 else "wrong"
