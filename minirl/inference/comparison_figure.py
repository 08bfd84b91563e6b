"""A comparison as a figure: accuracy against tokens for each task, and a verifier that is pleased
for too long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minirl.equations.inference_time import best_of_n_kl
from minirl.inference.comparison import Comparison
from minirl.inference.points import Point, mean
from minirl.lm.figures import COLOURS, DASHES, entry, legend_below, new_figure, save, tidy

BLUE, RED, GREEN, VIOLET, GOLD, GREY = COLOURS
LINES = {                                   # method -> colour and marker
    "majority vote": (BLUE, "o"),
    "best of n, ORM": (RED, "s"),
    "best of n, PRM min": (VIOLET, "D"),
    "weighted vote, PRM min": ("#2aa198", "P"),
    "beam search": (GREEN, "^"),
    "DVTS": (GOLD, "v"),
    "any of n is right": (GREY, ""),        # the ceiling: no bars
}
PLEASED = {"ORM": RED, "PRM min": VIOLET}   # verifier -> colour


def plot_comparison(comparisons: Sequence[Comparison], out: Path) -> None:
    """Draw a panel for each task, and one of over-optimisation, into the PNG file `out`."""
    pleased = any(comparison.pleased for comparison in comparisons)
    panels = len(comparisons) + pleased
    columns = min(2, panels)
    rows = -(-panels // columns)
    figure, axes = new_figure(rows, columns, (5.4 * columns, 3.5 * rows))
    for axis, comparison in zip(axes, comparisons, strict=False):
        draw_accuracy(axis, comparison)
    if pleased:
        draw_pleased(axes[len(comparisons)], max(comparisons, key=fall))
    for axis in axes[panels:]:
        axis.set_visible(False)
    methods = comparisons[0].methods
    entries = [entry(method, color=colour, marker=marker, markersize=4, linewidth=1.6)
               for method, (colour, marker) in LINES.items() if method in methods]
    entries += [entry("dashed: predicted from other samples", color=GREY, linestyle=DASHES,
                      linewidth=1.2)]
    legend_below(figure, entries)
    save(figure, out)


def draw_accuracy(axis: Any, comparison: Comparison) -> None:
    """Accuracy against tokens, n = 1, 2, 4, ...: measured with 95 % intervals, predicted dashed."""
    for method, (colour, marker) in LINES.items():
        points = comparison.methods.get(method, [])
        if not points:
            continue
        x = [point.tokens for point in points]
        y = [point.accuracy for point in points]
        axis.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.6)
        if marker:
            bars = [[point.accuracy - point.interval[0] for point in points],
                    [point.interval[1] - point.accuracy for point in points]]
            axis.errorbar(x, y, yerr=bars, fmt="none", color=colour, alpha=0.35, elinewidth=0.9)
        draw_predicted(axis, points, colour)
    axis.set_xscale("log")
    axis.set_ylim(lowest(comparison), 1.02)
    plain_ticks(axis)
    tidy(axis, f"{comparison.task}, {comparison.problems} problems, n = 1 to "
               f"{max(point.n for point in comparison.points)} (bars: 95 %)",
         x="tokens per problem: prompt, drawn and verified", y="share right")


def lowest(comparison: Comparison) -> float:
    """Where the axis of accuracy starts: a round number below all bars."""
    least = min(point.interval[0] for point in comparison.points)
    return math.floor(10 * least - 0.2) / 10


def draw_predicted(axis: Any, points: Sequence[Point], colour: str) -> None:
    predicted = [(point.tokens, mean(point.predicted)) for point in points
                 if point.predicted is not None]
    if predicted:
        x, y = zip(*predicted, strict=True)
        axis.plot(x, y, color=colour, linestyle=DASHES, linewidth=1.2, alpha=0.8)


def draw_pleased(axis: Any, comparison: Comparison) -> None:
    """What verifiers say of the best of n by their scores, and how often it is right, against how
    far the choice is from the policy."""
    for verifier, colour in PLEASED.items():
        if rows := comparison.pleased.get(verifier):
            kl = [best_of_n_kl(n) for n, _, _ in rows]
            axis.plot(kl, [score for _, score, _ in rows], color=colour, linewidth=1.4,
                      linestyle=":", label=f"what the {verifier} says")
            axis.plot(kl, [right for _, _, right in rows], color=colour, linewidth=1.8, marker="o",
                      markersize=3.5, label=f"right, best of n by the {verifier}")
    axis.set_ylim(0, 1.02)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    numbers = next(iter(comparison.pleased.values()))
    tidy(axis, f"Pleasing a verifier for too long, n = 1 to {numbers[-1][0]}: {comparison.task}",
         x="KL from the policy, log n - (n - 1) / n, nats", y="score, or share right")


def fall(comparison: Comparison) -> float:
    """How far the share of right answers falls behind its best n, at most over verifiers."""
    return max((max(right for _, _, right in rows) - rows[-1][2]
                for name, rows in comparison.pleased.items() if name in PLEASED), default=0.0)


def plain_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
