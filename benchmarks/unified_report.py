"""What benchmarks/unified.py prints and draws: two tables and two figures.

A record is a line of its file, for one run: seed, method, curve (completions, accuracy), majority
and pass (one number for each K), seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from common import row, table_head
from minirl.lm.figures import COLOURS, DASHES, entry, legend_below, new_figure, save, tidy
from study import Record

BASE = "base model"                # the name of the lines about where all methods start
ONLINE = "the policy"              # the data source of the online methods
GREY = "#9ca3af"
COLUMNS = 4                        # of panels
Point = tuple[int, float]          # completions, accuracy


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


def of(runs: Sequence[Record], name: str) -> list[Record]:
    """Return the runs of a method, one per seed."""
    return [run for run in runs if run["method"] == name]


def mean_at(runs: Sequence[Record], name: str, column: str, i: int) -> float:
    """Return the mean over seeds of Maj@K or Pass@K, for K number i."""
    return statistics.mean(run[column][i] for run in of(runs, name))


# the tables

def methods(runs: Sequence[Record], methods: Sequence[Method]) -> None:
    """Print what each method is, and what its policies are worth."""
    print(table_head("method", "data source", "reward", "coefficient of ∇ log π", "accuracy",
                     "by seed"))
    print(row(BASE, "", "", "", *accuracies(runs, BASE)))
    for method in methods:
        print(row(method.name, method.source, method.reward, method.coefficient,
                  *accuracies(runs, method.name)))
    print()


def accuracies(runs: Sequence[Record], name: str) -> tuple[str, str]:
    """Return the mean over seeds, and each seed's accuracy."""
    by_seed = " / ".join(f"{run['pass'][0]:.3f}" for run in of(runs, name))
    return f"{mean_at(runs, name, 'pass', 0):.3f}", by_seed


def votes(runs: Sequence[Record], methods: Sequence[Method], ks: Sequence[int]) -> None:
    """Print Maj@K and Pass@K of each method, as means over seeds."""
    print(table_head("method", *(f"Maj@{k}" for k in ks), *(f"Pass@{k}" for k in ks)))
    for name in (BASE, *(method.name for method in methods)):
        print(row(name, *(f"{mean_at(runs, name, column, i):.3f}"
                          for column in ("majority", "pass") for i in range(len(ks)))))
    print()


# the figures

def draw_curves(runs: Sequence[Record], methods: Sequence[Method], out: Path) -> None:
    """Draw held-out accuracy over training, where the policy answers itself and where it does not.
    RFT, the simplest offline method with a reward, stands in grey beside the online ones, too."""
    figure, (left, right) = new_figure(1, 2, (10.4, 4.2))
    offline = [method for method in methods if method.source != ONLINE]
    online = [method for method in methods if method.source == ONLINE]
    levels = seed_levels(runs, methods)
    for axis, shown in ((left, offline), (right, online)):
        for method, colour in zip(shown, COLOURS, strict=False):
            draw_curve(axis, curves(runs, method.name), levels, colour, label=method.name)
    draw_curve(right, curves(runs, "RFT"), levels, GREY, label="RFT", linestyle=DASHES)
    top = max(axis.get_ylim()[1] for axis in (left, right))
    for axis, whose in ((left, "Offline: people's or the base model's answers"),
                        (right, "Online: the policy's own answers")):
        axis.set_ylim(0, top)
        axis.set_xlim(left=0)
        axis.legend(fontsize=8, frameon=False, loc="lower right")
        tidy(axis, whose, x="completions sampled (SFT: 8 for each demonstration)",
             y="accuracy on held-out sums")
    figure.suptitle(f"Means of {len(of(runs, BASE))} seeds, and the ranges around them once each "
                    "seed's mean over all methods is taken out", fontsize=8.5, x=0.01, ha="left")
    save(figure, out)


def curves(runs: Sequence[Record], name: str) -> list[list[Point]]:
    """Return a method's curve of each seed, from the base model on."""
    return [[*base["curve"], *run["curve"]]
            for base, run in zip(of(runs, BASE), of(runs, name), strict=True)]


def accuracy_table(curves: Sequence[Sequence[Point]]) -> list[list[float]]:
    """Return for each look an accuracy per seed."""
    return [[accuracy for _, accuracy in points] for points in zip(*curves, strict=True)]


def seed_levels(runs: Sequence[Record], methods: Sequence[Method]) -> list[list[float]]:
    """Return for each look and seed by how much the mean over methods is above that of all seeds.

    Base models differ more than methods do. Methods are compared seed by seed, so the ranges in the
    figure are those of what is left.
    """
    tables = [accuracy_table(curves(runs, method.name)) for method in methods]
    by_seed = [[statistics.mean(column) for column in zip(*looks, strict=True)]
               for looks in zip(*tables, strict=True)]
    return [[level - statistics.mean(look) for level in look] for look in by_seed]


def draw_curve(axis: Any, curves: Sequence[Sequence[Point]], levels: Sequence[Sequence[float]],
               colour: str, **look: Any) -> None:
    """Draw the mean over seeds as a line, and the range around it as an area."""
    x = [completions for completions, _ in curves[0]]
    columns = [[accuracy - level for accuracy, level in zip(*both, strict=True)]
               for both in zip(accuracy_table(curves), levels, strict=True)]
    axis.plot(x, list(map(statistics.mean, columns)), color=colour, linewidth=2, **look)
    axis.fill_between(x, list(map(min, columns)), list(map(max, columns)), color=colour,
                      alpha=0.12, linewidth=0)


def draw_votes(runs: Sequence[Record], methods: Sequence[Method], ks: Sequence[int],
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
        axis.set_ylim(0, 1.03)
        tidy(axis, method.name, x="K")
    legend_below(figure, [entry(f"{title}, {time}", color=colour, linestyle=line, linewidth=2)
                          for time, colour in (("before", GREY), ("after", COLOURS[0]))
                          for title, line in (("Maj@K", "-"), ("Pass@K", DASHES))])
    save(figure, out)
