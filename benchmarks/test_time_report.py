"""Tables and figures of what benchmarks/test_time.py has measured.

    python benchmarks/test_time_report.py FOLDER [--figures FOLDER]

What is asked of a policy is a list of problems: the right answer, and for each sample its answer,
its tokens, those of its thinking, and whether its work is right.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

import test_time_figures as figures
from common import row, table_head
from minirl.equations.advantages import group_advantages
from minirl.equations.inference_time import majority_vote, pass_at_k, plurality_accuracy

Problems = Sequence[dict[str, Any]]
NS = (1, 2, 4, 8, 16, 32, 64)
SAMPLES = 64                       # of a problem; where there are more, the others predict
ARMS = ("one length", "one length, RL", "any length", "any length, RL at no cost", "any length, RL")
VOTERS = ("none", "none, RL", "any length", "any length, RL")
CUT = ("cut, before RL", "cut, after RL")
DIGITS = ("1", "2", "3")
SIZES = ("1 digit", "2 digits", "3 digits")
WHOLE = (9, 19, 30, 42)            # tokens of 1, 2, 3 and 4 columns, with their commas
FORMS = ("open", "yes or no")
GROUP = 8                          # completions of a problem, in training
# FLOPs per parameter and token: 2 to sample; in training also 6 to learn, and 2 for the reference
SAMPLING, TRAINING = 2, 10
WINDOW = 8                         # steps that a point of a curve over training is a mean of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args()
    for file, report in (("predicted.json", axes), ("budgets.json", thinking),
                         ("guessing-yes-or-no.json", guessing)):
        folders = sorted(folder.parent for folder in args.runs.glob(f"seed-*/{file}"))
        if folders:
            report(folders, args.figures)
            print(flush=True)


# what is computed of samples

def majority_at(problems: Problems, n: int) -> float:
    """Return how often the majority of n is right, over disjoint groups of n samples."""
    votes = [majority_vote(problem["answers"][i:i + n]) == problem["right"]
             for problem in problems for i in range(0, min(SAMPLES, len(problem["answers"])), n)]
    return mean(votes)


def predicted_majority(problems: Problems, n: int) -> float:
    """Return how often it must be right, if a problem's answers are distributed as the samples
    after the first SAMPLES are."""
    chances = []
    for problem in problems:
        answers = problem["answers"][SAMPLES:]
        shares = {answer: count / len(answers) for answer, count in Counter(answers).items()
                  if answer is not None}
        right = shares.pop(problem["right"], 0.0)
        chances.append(plurality_accuracy(right, list(shares.values()), n))
    return mean(chances)


def right_leads(problems: Problems) -> float:
    """Return the share of problems whose right answer is more frequent than any wrong one: what
    voting comes to with ever more votes."""
    leads = []
    for problem in problems:
        counts = Counter(answer for answer in problem["answers"] if answer is not None)
        right = counts.pop(problem["right"], 0)
        leads.append(right > max(counts.values(), default=0))
    return mean(leads)


def any_right(problems: Problems, k: int) -> float:
    return mean(pass_at_k(len(problem["answers"]),
                                     problem["answers"].count(problem["right"]), k)
                           for problem in problems)


def mean_of(problems: Problems, column: str) -> float:
    return mean(x for problem in problems for x in problem[column])


def accuracy(problems: Problems) -> float:
    return mean(answer == problem["right"]
                           for problem in problems for answer in problem["answers"])


def luck(right: Sequence[float], work: Sequence[float]) -> float:
    """Return the share of rewarded completions whose work is not right; NaN where none is
    rewarded."""
    rewarded = [w for r, w in zip(right, work, strict=True) if r == 1]
    return rewarded.count(0.0) / len(rewarded) if rewarded else math.nan


def signal_to_noise(right: Sequence[float], work: Sequence[float], group: int) -> float:
    """Return by how much a completion's advantage is higher where its work is right, in standard
    deviations of what is left.

    Equation   (E[A | right work] - E[A | wrong work]) / std of A around these means
    """
    adv = group_advantages(torch.tensor(right).view(-1, group)).flatten().tolist()
    by_work = [[a for a, w in zip(adv, work, strict=True) if w == truth] for truth in (0.0, 1.0)]
    if not all(by_work):
        return math.nan
    centres = [mean(numbers) for numbers in by_work]
    rest = [(a - centre) ** 2 for numbers, centre in zip(by_work, centres, strict=True)
            for a in numbers]
    return (centres[1] - centres[0]) / math.sqrt(max(mean(rest), 1e-12))


def windows(steps: Sequence[dict[str, Any]], measure: Callable[..., float]) -> list[float]:
    """Return a measure of the completions of each WINDOW steps."""
    numbers = []
    for i in range(0, len(steps), WINDOW):
        right, work = ([x for step in steps[i:i + WINDOW] for x in step[name]]
                       for name in ("right", "work"))
        numbers.append(measure(right, work))
    return numbers


def over_seeds(numbers: Sequence[float], digits: int = 3) -> str:
    """Return "median (smallest to largest)"."""
    middle, low, high = (f"{f(numbers):.{digits}f}" for f in (median, min, max))
    return f"{middle} ({low} to {high})"


def read(folders: Sequence[Path], name: str) -> list[Any]:
    return [json.loads((folder / f"{name}.json").read_text()) for folder in folders]


def slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-").lower()


# train compute and test compute

def axes(folders: Sequence[Path], out: Path) -> None:
    runs, predictions = read(folders, "axes"), read(folders, "predicted")
    looks = list(zip(*(run["looks"] for run in runs), strict=True))       # for each step, by seed
    flops = [mean(training_flops(run, look) for run, look in zip(runs, by_seed, strict=True))
             for by_seed in looks]
    voted = [{n: [majority_at(look["asked"], n) for look in by_seed] for n in NS}
             for by_seed in looks]
    print(f"axes, {len(runs)} seeds\n")
    print(table_head("steps", "FLOPs of training", "tokens per answer", *(f"maj@{n}" for n in NS),
                     "right answer leads", f"pass@{NS[-1]}"))
    for by_seed, cost, votes in zip(looks, flops, voted, strict=True):
        asked = [look["asked"] for look in by_seed]
        print(row(by_seed[0]["step"], f"{cost:.1e}",
                  f"{mean(mean_of(problems, 'tokens') for problems in asked):.1f}",
                  *(f"{mean(votes[n]):.3f}" for n in NS), f"{mean(map(right_leads, asked)):.3f}",
                  f"{mean(any_right(problems, NS[-1]) for problems in asked):.3f}"))
    print("\n" + table_head("steps", *(f"maj@{n}, measured - predicted" for n in NS)))
    curves = []
    for by_seed, votes in zip(looks, voted, strict=True):
        step = by_seed[0]["step"]
        if str(step) in predictions[0]:
            expected = list(map(mean, zip(*(by_n[str(step)] for by_n in predictions), strict=True)))
            xs = [n * mean(answering_flops(run, look) for run, look in
                           zip(runs, by_seed, strict=True)) for n in NS]
            curves.append((step, xs, [votes[n] for n in NS], expected))
            print(row(step, *(f"{mean(votes[n]) - prediction:+.3f}"
                              for n, prediction in zip(NS, expected, strict=True))))
    exchange(runs)
    figures.draw_axes([look[0]["step"] for look in looks], flops, [votes[1] for votes in voted],
                      [votes[NS[-1]] for votes in voted], NS, curves, out / "two_axes.png")


def training_flops(run: dict[str, Any], look: dict[str, Any]) -> float:
    return TRAINING * run["parameters"] * look["trained"]


def answering_flops(run: dict[str, Any], look: dict[str, Any]) -> float:
    return SAMPLING * run["parameters"] * mean_of(look["asked"], "tokens")


def exchange(runs: Sequence[dict[str, Any]]) -> None:
    """Print what it costs to be as often right as the base model's votes are, by voting and by
    training, and after how many questions training is cheaper."""
    print("\n" + table_head("seed", "base model, one answer", f"maj@{NS[-1]}",
                            "FLOPs per question, of voting", "of one answer",
                            "FLOPs of training until one answer is as good",
                            "questions after which training is cheaper"))
    for seed, run in enumerate(runs):
        base = run["looks"][0]
        target = majority_at(base["asked"], NS[-1])
        as_good = next((look for look in run["looks"] if accuracy(look["asked"]) >= target), None)
        if as_good is not None:
            voting, once = NS[-1] * answering_flops(run, base), answering_flops(run, as_good)
            training = training_flops(run, as_good)
            print(row(seed, f"{accuracy(base['asked']):.3f}", f"{target:.3f}", f"{voting:.1e}",
                      f"{once:.1e}", f"{training:.1e}", f"{training / (voting - once):,.0f}"))


# how long to think

def thinking(folders: Sequence[Path], out: Path) -> None:
    arms = {arm: read(folders, f"thinking-{slug(arm)}") for arm in ARMS}
    print(f"thinking, {len(folders)} seeds\n")
    print(table_head("", *(f"tokens of thinking, {digits}" for digits in SIZES),
                     *(f"accuracy, {digits}" for digits in SIZES)))
    for arm, runs in arms.items():
        print(row(arm, *(over_seeds([mean_of(run[d], "thought") for run in runs], 1)
                         for d in DIGITS),
                  *(over_seeds([accuracy(run[d]) for run in runs], 2) for d in DIGITS)))
    votes = {arm: read(folders, f"votes-{slug(arm)}") for arm in VOTERS}
    print("\n" + table_head("3-digit sums", "tokens per answer", *(f"maj@{n}" for n in NS)))
    for arm, runs in votes.items():
        print(row(arm, over_seeds([mean_of(run, "tokens") for run in runs], 1),
                  *(over_seeds([majority_at(run, n) for run in runs], 2) for n in NS)))
    budgets = read(folders, "budgets")
    print("\n" + table_head("thinking cut after", "accuracy before RL", "after RL"))
    for i, most in enumerate(point["most"] for point in budgets[0][CUT[0]]):
        print(row(most, *(over_seeds([run[cut][i]["right"] for run in budgets], 2) for cut in CUT)))
    print("\n" + table_head("ends of thinking refused", *(f"{what}, {when} RL" for when in
                            ("before", "after") for what in ("tokens", "accuracy"))))
    for n in (0, 1, 2):
        print(row(n, *(over_seeds([run[f"Wait, {n} x"][i][name] for run in budgets], digits)
                       for i in (0, 1) for name, digits in (("tokens", 1), ("right", 2)))))
    def by_digits(measure: Callable[[Problems], float]) -> dict[str, list[list[float]]]:
        return {arm: [[measure(run[d]) for run in runs] for d in DIGITS]
                for arm, runs in arms.items()}

    figures.draw_lengths(list(map(int, DIGITS)), by_digits(lambda asked: mean_of(asked, "thought")),
                         by_digits(accuracy), WHOLE[:len(DIGITS)], out / "thinking_length.png")
    figures.draw_sequential(
        {arm: ([n * mean(mean_of(run, "tokens") for run in runs) for n in NS],
               [[majority_at(run, n) for run in runs] for n in NS]) for arm, runs in votes.items()},
        (list(map(mean, columns(budgets, "tokens"))), columns(budgets, "right")),
        out / "sequential.png")


def columns(runs: Sequence[dict[str, Any]], name: str) -> list[list[float]]:
    """Return a number per seed for each cut, after RL, that leaves whole columns: with the tag that
    opens the thinking they have one token more."""
    return [[point[name] for point in points]
            for points in zip(*(run[CUT[1]] for run in runs), strict=True)
            if points[0]["most"] - 1 in WHOLE]


# guesses

def guessing(folders: Sequence[Path], out: Path) -> None:
    before = read(folders, "guessing-base")
    runs = {form: read(folders, f"guessing-{slug(form)}") for form in FORMS}
    print(f"guessing, {len(folders)} seeds\n")
    print("base model, yes or no: right answers where the work is right, by seed: "
          + " / ".join(f"{right_where_worked(run[FORMS[1]]):.2f}" for run in before) + "\n")
    print(table_head("", *(f"{what}, {form}" for form in FORMS for what in
                           ("right answers", "right work"))))
    print(row("base model", *held_out(before)))
    for form, trained in runs.items():
        print(row(f"GRPO on {form}", *held_out([run["after"] for run in trained])))
    print("\n" + table_head("in training on", "steps", "right answers", "right work",
                            "right by luck", "signal / noise of the advantage"))
    for form, trained in runs.items():
        curves = [training_curves(run["steps"]) for run in trained]
        for i in (0, len(curves[0]["luck"]) // 2, -1):
            first = range(0, len(trained[0]["steps"]), WINDOW)[i]
            print(row(form, f"{first + 1} to {first + WINDOW}",
                      *(over_seeds([curve[name][i] for curve in curves], 2)
                        for name in ("right", "work", "luck", "signal"))))
    figures.draw_guessing({form: [training_curves(run["steps"]) for run in trained]
                           for form, trained in runs.items()}, WINDOW, out / "guessing.png")


def held_out(runs: Sequence[dict[str, Problems]]) -> list[str]:
    return [over_seeds([measure(run[form]) for run in runs]) for form in FORMS
            for measure in (accuracy, lambda problems: mean_of(problems, "work"))]


def right_where_worked(problems: Problems) -> float:
    """Return how often the answer is right where the work is: whether a model can compare."""
    return mean(answer == problem["right"] for problem in problems
                for answer, work in zip(problem["answers"], problem["work"], strict=True) if work)


def training_curves(steps: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    return {"right": windows(steps, lambda right, work: mean(right)),
            "work": windows(steps, lambda right, work: mean(work)),
            "luck": windows(steps, luck),
            "signal": windows(steps, partial(signal_to_noise, group=GROUP))}


if __name__ == "__main__":
    main()
