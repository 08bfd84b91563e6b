"""The figures of benchmarks/test_time_report.py. Thick lines are means over seeds, bands reach from
the lowest seed to the highest, thin lines are one seed each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from minirl.lm.figures import COLOURS, DASHES, entry, legend_below, new_figure, save, tidy

Table = Sequence[Sequence[float]]  # for each x, a number per seed
Curve = tuple[int, Sequence[float], Table, Sequence[float]]     # step, xs, measured, predicted
INK, GREY = "0.25", "0.6"
DOTS = (0, (1, 1.6))


def draw_axes(steps: Sequence[int], flops: Sequence[float], one: Table, voted: Table,
              ns: Sequence[int], curves: Sequence[Curve], out: Path) -> None:
    """Draw accuracy against the compute of training, and of answering. The checkpoints with which
    the right panel's curves start are marked in the left one."""
    figure, (left, right) = new_figure(1, 2, (10.4, 4.3))
    right.sharey(left)
    xs = [flops[1] / 3, *flops[1:]]                      # the base model: there is no log 0
    line(left, xs, one, INK)
    line(left, xs, voted, INK, linestyle=DASHES)
    for (step, costs, measured, expected), colour in zip(curves, COLOURS, strict=False):
        i = steps.index(step)
        look = dict(color=colour, markersize=8, markeredgewidth=2, zorder=5)
        left.plot(xs[i], mean(one[i]), "o", **look)
        left.plot(xs[i], mean(voted[i]), "o", markerfacecolor="white", **look)
        line(right, costs, measured, colour, marker="o", markersize=4.5)
        right.plot(costs, expected, color="black", linewidth=1.3, linestyle=DOTS, zorder=6)
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_ylim(0, 1.03)
    left.axvline((xs[0] * xs[1]) ** 0.5, color=GREY, linewidth=0.8, linestyle=":")
    tidy(left, "More training", x="FLOPs of reinforcement learning (left of the line: none)",
         y="accuracy on held-out 3-digit sums")
    tidy(right, "More answers per question, and a vote",
         x=f"FLOPs per question, of {ns[0]}, {ns[1]}, {ns[2]}, ..., {ns[-1]} answers")
    legend_below(figure, [
        entry("one answer", color=INK, linewidth=2),
        entry(f"majority of {ns[-1]}", color=INK, linewidth=2, linestyle=DASHES),
        *(entry(f"after {step} steps" if step else "base model", color=colour, marker="o",
                linewidth=2) for (step, *_), colour in zip(curves, COLOURS, strict=False)),
        entry("predicted from other samples", color="black", linewidth=1.3, linestyle=DOTS)])
    save(figure, out)


def line(axis: Any, xs: Sequence[float], table: Table, colour: str, **look: Any) -> None:
    """Draw the mean over seeds and the range around it."""
    axis.fill_between(xs, list(map(min, table)), list(map(max, table)), color=colour, alpha=0.12,
                      linewidth=0)
    axis.plot(xs, list(map(mean, table)), color=colour, linewidth=2, **look)


ARM_LOOKS: dict[str, dict[str, Any]] = {
    "one length": dict(color=COLOURS[1], linestyle=DASHES),
    "one length, RL": dict(color=COLOURS[1]),
    "any length": dict(color=COLOURS[0], linestyle=DASHES),
    "any length, RL at no cost": dict(color=COLOURS[3]),
    "any length, RL": dict(color=COLOURS[0]),
}


def draw_lengths(digits: Sequence[int], tokens: Mapping[str, Table], accuracy: Mapping[str, Table],
                 whole: Sequence[int], out: Path) -> None:
    """Draw how long each arm thinks about sums of so many digits, and how often it is right."""
    figure, (left, right) = new_figure(1, 2, (10.4, 4.0))
    left.plot(digits, whole, "_", color="black", markersize=26, markeredgewidth=1.4, zorder=6)
    for shift, (arm, look) in enumerate(ARM_LOOKS.items()):
        xs = [d + 0.025 * (shift - 2) for d in digits]   # ranges side by side
        for axis, table in ((left, tokens[arm]), (right, accuracy[arm])):
            axis.vlines(xs, list(map(min, table)), list(map(max, table)), color=look["color"],
                        linewidth=1.2, alpha=0.7)
            axis.plot(xs, list(map(mean, table)), marker="o", markersize=5, linewidth=2, **look)
    left.set_ylim(bottom=0)
    right.set_ylim(0, 1.03)
    for axis in (left, right):
        axis.set_xticks(digits)
    tidy(left, "How long they think", x="digits of the numbers to add", y="tokens of thinking")
    tidy(right, "How often they are right", x="digits of the numbers to add",
         y="accuracy on held-out sums")
    titles = {"one length": "2 columns: SFT", "one length, RL": "2 columns: RL, tokens cost",
              "any length": "1 to 4 columns: SFT", "any length, RL at no cost":
              "1 to 4 columns: RL", "any length, RL": "1 to 4 columns: RL, tokens cost"}
    legend_below(figure, [
        *(entry(titles[arm], linewidth=2, marker="o", markersize=5, **look)
          for arm, look in ARM_LOOKS.items()),
        entry("a column per digit", color="black", linewidth=1.4)])
    save(figure, out)


def draw_sequential(votes: Mapping[str, tuple[Sequence[float], Table]],
                    cut: tuple[Sequence[float], Table], out: Path) -> None:
    """Draw accuracy against tokens per question, spent on votes or on one chain."""
    figure, (axis,) = new_figure(1, 1, (7.4, 4.3))
    titles = ("no thinking: SFT", "no thinking: RL", "chains of random length: SFT",
              "chains of random length: RL")
    looks = [dict(color=COLOURS[4], linestyle=DASHES), dict(color=COLOURS[4]),
             dict(color=COLOURS[0], linestyle=DASHES), dict(color=COLOURS[0])]
    for (xs, table), look in zip(votes.values(), looks, strict=True):
        by_seed(axis, xs, table, marker="o", **look)
    by_seed(axis, *cut, marker="s", color=COLOURS[1])
    axis.set_xscale("log")
    axis.set_ylim(0, 1.03)
    ticks = (10, 20, 50, 100, 200, 500, 1000, 2000)
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.minorticks_off()
    tidy(axis, "One chain of thought, or a vote of 1, 2, 4, ..., 64 answers",
         x="tokens per question", y="accuracy on held-out 3-digit sums")
    legend_below(figure, [
        *(entry(f"votes, {title}", linewidth=2, marker="o", markersize=4.5, **look)
          for title, look in zip(titles, looks, strict=True)),
        entry("one chain after RL, cut after 1 to 4 columns", color=COLOURS[1], linewidth=2,
              marker="s", markersize=4.5)])
    save(figure, out)


def by_seed(axis: Any, xs: Sequence[float], table: Table, marker: str, **look: Any) -> None:
    """Draw the mean over seeds, and each seed, where a band would hide how they differ."""
    axis.plot(xs, table, linewidth=0.8, alpha=0.4, **look)
    axis.plot(xs, list(map(mean, table)), linewidth=2, marker=marker, markersize=4.5, **look)


def draw_guessing(curves: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], window: int,
                  out: Path) -> None:
    """Draw, over training on either form, how often the work is right, how often a reward is luck,
    and how well the advantage tells right work from wrong."""
    figure, axes = new_figure(1, 3, (11.4, 3.7))
    titles = {"work": "Right work", "luck": "Rewarded, although the work is wrong",
              "signal": "Signal / noise of the advantage"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for runs, colour in zip(curves.values(), COLOURS, strict=False):
            table = list(zip(*(run[name] for run in runs), strict=True))
            line(axis, [window * (i + 0.5) for i in range(len(table))], table, colour)
        tidy(axis, title, x=f"step (means of {window})")
        axis.set_xlim(left=0)
    axes[0].set_ylim(0, 1.03)
    axes[1].set_ylim(0, 1.03)
    axes[2].set_ylim(bottom=0)
    tidy(axes[0], y="share of completions")
    tidy(axes[1], y="share of rewarded completions")
    tidy(axes[2], y="difference / standard deviation")
    legend_below(figure, [entry(f"trained on {form} questions", color=colour, linewidth=2)
                          for form, colour in zip(curves, COLOURS, strict=False)])
    save(figure, out)
