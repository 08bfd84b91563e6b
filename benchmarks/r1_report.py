"""What benchmarks/r1.py prints and draws: a table per claim, and one figure.

`seeds` has the runs of each seed by name, and of each run what its policies are worth, by stage.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from common import row, table_head, title
from minirl.app.rundir import RunDir
from minirl.lm.figures import COLOURS, smooth, tidy

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

Stages = dict[str, dict[str, Any]]     # by stage: the numbers of stages.json
Seeds = Sequence[dict[str, Stages]]    # by run

# number of seeds n -> the 97.5 % quantile with n - 1 degrees of freedom
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
# not on the way to the final policy
SIDE = ("too-long", "small-base", "small-rl", "distilled")
PREFERENCE, TRUE = "rewards/preference/mean", "rewards/general/true_reward/mean"
DIGITS = {"length": 1, "seconds": 1}   # of a column; 3 of the others
WINDOW = 10                            # steps that a number of the last table is a mean of


def over(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean of a number per seed, and half the width of its 95 % interval."""
    half = STUDENT_T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.{digits}f} +- {half:.{digits}f}"


def main_stages(seeds: Seeds) -> list[str]:
    """Return the policies on the way to the final one, in order."""
    return [name for name in seeds[0]["prompt"] if name not in SIDE]


def values(seeds: Seeds, run: str, stage: str, column: str) -> list[float]:
    return [seed[run][stage][column] for seed in seeds]


def cells(seeds: Seeds, run: str, stage: str, columns: Sequence[str]) -> list[str]:
    return [over(values(seeds, run, stage, column), DIGITS.get(column, 3)) for column in columns]


# the tables

def stages(seeds: Seeds) -> None:
    columns = ("easy", "hard", "majority", "pass", "format", "language", "length", "win_rate",
               "seconds")
    print("**Stage by stage** (hard problems except for the first column; win rate: general "
          "answers against the sft stage's)\n")
    print(table_head("", "easy, pass@1", "hard, pass@1", "maj@16", "pass@16", "format", "language",
                     "tokens", "win rate", "seconds"))
    for stage in main_stages(seeds):
        print(row(stage, *cells(seeds, "prompt", stage, columns)))
    print()


def languages(seeds: Seeds) -> None:
    """Compare target languages with the runs without a language reward, seed by seed."""
    print("**The language reward** (in all runs the cold start and the kept reasoning are in the "
          "target language; only the reward is left out)\n")
    print(table_head("target language", "rl-1: language", "hard", "less than without",
                     "final: language", "hard", "less than without"))
    titles = {"none": "the prompt's, not rewarded", "prompt": "the prompt's", "ko": "Korean",
              "en": "English"}
    for run, text in titles.items():
        line = [text]
        for stage in ("rl-1", main_stages(seeds)[-1]):
            without = values(seeds, "none", stage, "hard")
            hard = values(seeds, run, stage, "hard")
            loss = [a - b for a, b in zip(without, hard, strict=True)]
            line += [*cells(seeds, run, stage, ("language", "hard")),
                     "" if run == "none" else over(loss)]
        print(row(*line))
    print()


def cold_start(seeds: Seeds) -> None:
    """Compare a cold start from R1-Zero's own outputs with one from demonstrations."""
    print("**The cold start** (from the same base models; language and tokens are on hard "
          "problems)\n")
    print(table_head("cold start from", "stage", "easy", "hard", "language", "tokens"))
    for run, text in (("prompt", "R1-Zero's own outputs"), ("demonstrations", "demonstrations")):
        for stage in ("cold-start", "rl-1", main_stages(seeds)[-1]):
            columns = ("easy", "hard", "language", "length")
            print(row(text, stage, *cells(seeds, run, stage, columns)))
    print()


def distillation(seeds: Seeds) -> None:
    print("**Distillation**\n")
    print(table_head("", "easy", "hard", "maj@16", "pass@16", "language", "tokens", "seconds"))
    titles = {"small-base": "smaller base model", "small-rl": "RL on it",
              "distilled": "SFT on the final model's kept reasoning",
              main_stages(seeds)[-1]: "the final model"}
    for stage, text in titles.items():
        columns = ("easy", "hard", "majority", "pass", "language", "length", "seconds")
        print(row(text, *cells(seeds, "prompt", stage, columns)))
    print()


def hacking(runs: Sequence[RunDir]) -> None:
    """Print what the preference reward does when it goes on for too long."""
    print("**The preference reward for too long** (general answers while training, means of ten "
          "steps)\n")
    print(table_head("", "score, first", "score, last", "true reward, first", "best", "last"))
    windows = [window_means(run) for run in runs]
    print(row("one reward model, for too long", *map(over, zip(*windows, strict=True))))
    print()


def window_means(run: RunDir) -> tuple[float, ...]:
    """Return the first and the last mean of the score, and the first, best and last of the true
    reward."""
    score, true = too_long(run, PREFERENCE), too_long(run, TRUE)
    means = [statistics.mean(true[i:i + WINDOW]) for i in range(max(1, len(true) - WINDOW + 1))]
    return (statistics.mean(score[:WINDOW]), statistics.mean(score[-WINDOW:]), means[0],
            max(means), means[-1])


def too_long(run: RunDir, metric: str) -> list[float]:
    """Return a metric of each step of the stage too-long that has it."""
    steps = RunDir(run.path / "too-long").metrics()
    return [step[metric] for step in steps if metric in step]


# the figure

def draw(seeds: Seeds, runs: Sequence[RunDir], out: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(10.6, 6.6), layout="constrained")
    draw_right(axes[0, 0], seeds)
    draw_language(axes[0, 1], seeds)
    draw_distillation(axes[1, 0], seeds)
    draw_hacking(axes[1, 1], runs)
    names = main_stages(seeds)
    for axis in axes[0]:
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
        axis.set_ylim(0, 1.03)
    for axis in axes.flat:
        tidy(axis)
    for axis in (axes[0, 0], axes[0, 1], axes[1, 1]):
        axis.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(f"DeepSeek-R1 in miniature: means and ranges of {len(seeds)} seeds",
                    fontsize=11, x=0.01, ha="left")
    figure.savefig(out, dpi=130)
    plt.close(figure)


def line(axis: Any, x: Sequence[int], columns: Sequence[Sequence[float]], label: str, colour: str,
         **look: Any) -> None:
    """Draw means over seeds as a line, and ranges as an area. `columns` has a list per x."""
    axis.plot(x, list(map(statistics.mean, columns)), color=colour, label=label, **look)
    axis.fill_between(x, list(map(min, columns)), list(map(max, columns)), color=colour,
                      alpha=0.15, linewidth=0)


def draw_right(axis: Any, seeds: Seeds) -> None:
    names = main_stages(seeds)
    for column, label, colour in (("easy", "easy", COLOURS[2]), ("hard", "hard", COLOURS[0]),
                                  ("majority", "hard, majority of 16", COLOURS[1]),
                                  ("pass", "hard, any of 16", COLOURS[5])):
        line(axis, range(len(names)), [values(seeds, "prompt", name, column) for name in names],
             label, colour, marker="o", markersize=5, linewidth=1.6)
    title(axis, "Right answers, stage by stage")


def draw_language(axis: Any, seeds: Seeds) -> None:
    names = main_stages(seeds)
    for run, label, colour in (("none", "not rewarded", COLOURS[5]),
                               ("prompt", "the prompt's", COLOURS[0]),
                               ("ko", "Korean", COLOURS[1]), ("en", "English", COLOURS[2])):
        line(axis, range(len(names)), [values(seeds, run, name, "language") for name in names],
             label, colour, marker="o", markersize=5, linewidth=1.6)
    title(axis, "Reasoning in the language asked for, share of words")


def draw_distillation(axis: Any, seeds: Seeds) -> None:
    bars = (("small-base", COLOURS[5]), ("small-rl", COLOURS[1]), ("distilled", COLOURS[0]),
            (main_stages(seeds)[-1], COLOURS[2]))
    for x, (stage, colour) in enumerate(bars):
        for i, (column, alpha) in enumerate((("easy", 0.45), ("hard", 0.9))):
            numbers = values(seeds, "prompt", stage, column)
            mean = statistics.mean(numbers)
            axis.bar(x + 0.36 * i - 0.18, mean, 0.34, color=colour, alpha=alpha,
                     yerr=[[mean - min(numbers)], [max(numbers) - mean]],
                     error_kw=dict(linewidth=1))
    axis.set_xticks(range(4), ["smaller\nbase model", "RL on it",
                               "SFT on the final\nmodel's reasoning", "the final\nmodel"])
    axis.set_ylim(0, 1.03)
    title(axis, "Distillation: right answers to easy (pale) and hard problems")


def draw_hacking(axis: Any, runs: Sequence[RunDir]) -> None:
    for metric, label, colour in ((TRUE, "true reward: what people want", COLOURS[0]),
                                  (PREFERENCE, "reward model's score", COLOURS[1])):
        steps = list(zip(*(smooth(too_long(run, metric), 5) for run in runs), strict=False))
        line(axis, range(1, len(steps) + 1), steps, label, colour, linewidth=2)
    axis.set_xlabel("rollouts with the preference reward", fontsize=9)
    title(axis, "The preference reward for too long")
