"""What benchmarks/unified.py prints and draws: two tables and two figures.

A run is a line of its file: seed, method, curve (completions, accuracy), majority and pass (one
number for each K), seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from common import row, spread, table_head
from minirl.lm.figures import COLOURS, DASHES, entry, legend_below, new_figure, save, tidy

BASE = "base model"                # the name of the lines about where all methods start
GREY = "#9ca3af"
COLUMNS = 4                        # of panels
Run = dict[str, Any]


class Method(Protocol):
    """What is read here of a row of unified.METHODS."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def reward(self) -> str: ...
    @property
    def coefficient(self) -> str: ...


def of(runs: Sequence[Run], name: str) -> list[Run]:
    """Return the runs of a method, one per seed."""
    return [run for run in runs if run["method"] == name]


def mean_at(runs: Sequence[Run], name: str, column: str, i: int) -> float:
    """Return the mean over seeds of Maj@K or Pass@K, for K number i."""
    return statistics.mean(run[column][i] for run in of(runs, name))


# the tables

def methods(runs: Sequence[Run], methods: Sequence[Method]) -> None:
    """Print what each method is, and what its policies are worth."""
    print(table_head("method", "data source", "reward", "coefficient of ∇ log π", "accuracy"))
    print(row(BASE, "", "", "", accuracies(runs, BASE)))
    for method in methods:
        print(row(method.name, method.source, method.reward, method.coefficient,
                  accuracies(runs, method.name)))
    print()


def accuracies(runs: Sequence[Run], name: str) -> str:
    return spread([run["pass"][0] for run in of(runs, name)], 3)


def votes(runs: Sequence[Run], methods: Sequence[Method], ks: Sequence[int]) -> None:
    """Print Maj@K and Pass@K of each method, as means over seeds."""
    print(table_head("method", *(f"Maj@{k}" for k in ks), *(f"Pass@{k}" for k in ks)))
    for name in (BASE, *(method.name for method in methods)):
        print(row(name, *(f"{mean_at(runs, name, column, i):.3f}"
                          for column in ("majority", "pass") for i in range(len(ks)))))
    print()


# the figures

def draw_curves(runs: Sequence[Run], methods: Sequence[Method], out: Path) -> None:
    """Draw held-out accuracy over training: dashed where the policy does not sample itself."""
    figure, (axis,) = new_figure(1, 1, (7.4, 4.4))
    start = mean_at(runs, BASE, "pass", 0)
    entries = []
    for method, colour in zip(methods, COLOURS[:4] + ("#0f9d9d",) + COLOURS[4:], strict=False):
        curves = [run["curve"] for run in of(runs, method.name)]
        steps = list(zip(*curves, strict=True))            # for each look a point per seed
        x = [0, *(points[0][0] for points in steps)]
        columns = [[start], *([accuracy for _, accuracy in points] for points in steps)]
        look = {"color": colour, "linewidth": 2,
                "linestyle": "-" if method.source == "the policy" else DASHES}
        axis.plot(x, list(map(statistics.mean, columns)), **look)
        axis.fill_between(x, list(map(min, columns)), list(map(max, columns)), color=colour,
                          alpha=0.12, linewidth=0)
        entries.append(entry(f"{method.name} (answers of {method.source})", **look))
    axis.set_xlim(0, x[-1])
    tidy(axis, f"From one base model: means and ranges of {len(curves)} seeds",
         x="completions sampled (SFT: 8 for each demonstration)",
         y="accuracy on held-out sums")
    legend_below(figure, entries)
    save(figure, out)


def draw_votes(runs: Sequence[Run], methods: Sequence[Method], ks: Sequence[int],
               out: Path) -> None:
    """Draw a panel per method: Maj@K and Pass@K, before and after it."""
    rows = -(-len(methods) // COLUMNS)
    figure, axes = new_figure(rows, COLUMNS, (10.4, 2.7 * rows))
    for axis in axes[len(methods):]:
        axis.set_visible(False)
    for axis, method in zip(axes, methods, strict=False):
        for name, colour in ((BASE, GREY), (method.name, COLOURS[0])):
            for column, line in (("majority", "-"), ("pass", DASHES)):
                values = [mean_at(runs, name, column, i) for i in range(len(ks))]
                axis.plot(ks, values, color=colour, linestyle=line, marker="o", markersize=3)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, [str(k) for k in ks])
        axis.set_ylim(0.25, 1.02)
        tidy(axis, method.name, x="K")
    legend_below(figure, [entry(f"{title}, {time}", color=colour, linestyle=line, linewidth=2)
                          for time, colour in (("before", GREY), ("after", COLOURS[0]))
                          for title, line in (("Maj@K", "-"), ("Pass@K", DASHES))])
    save(figure, out)
