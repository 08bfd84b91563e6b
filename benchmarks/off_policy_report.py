"""What benchmarks/off_policy.py prints and draws: two tables and a figure.

A record is a line of its file, for one run: seed, method, age (K), looks at held-out sums, drift
(|log π - log μ| of a sampled token, at each step), seconds. A point is one method at one distance
from the sampler in one world: world, step, method, drift, cosine, length, noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from common import row, table_head
from minirl.lm.figures import COLOURS, DASHES, entry, legend_below, new_figure, save, tidy
from study import Record

LAST_LOOKS = 3                     # the end of a run: a mean over these
FARTHEST = 0.5                     # drift; all worlds go farther
GRID = [FARTHEST * i / 50 for i in range(51)]


class Method(Protocol):
    """What is read here of a row of off_policy.METHODS."""

    @property
    def name(self) -> str: ...
    @property
    def what(self) -> str: ...


def of(runs: Sequence[Record], method: Method, age: int) -> list[Record]:
    """Return the runs of a method at one K, one per seed; at K = 0 all methods are the first."""
    chosen = [run for run in runs if run["age"] == age and run["method"] == method.name]
    return chosen or [run for run in runs if run["age"] == age == 0]


def end(run: Record) -> float:
    return statistics.mean(look["accuracy"] for look in run["looks"][-LAST_LOOKS:])


def run_drift(runs: Sequence[Record], age: int) -> float:
    """Return how far policies were from their samplers: the median over runs of a mean over steps,
    without the first K, in which the sampler is the base model."""
    return statistics.median(statistics.mean(run["drift"][age:]) for run in runs
                             if run["age"] == age)


# the tables

def table(runs: Sequence[Record], methods: Sequence[Method], ages: Sequence[int]) -> None:
    """Print accuracies at the end, and how far each policy went from its sampler."""
    later = [age for age in ages if age]
    print(table_head("method", "weight of A ∇ log π", *(
        f"K = {age}{what}" for age in later for what in (": accuracy", ", by seed", ", drift"))))
    first = of(runs, methods[0], 0)
    before = [run["looks"][0]["accuracy"] for run in first]
    print(row("base model", "", f"{statistics.mean(before):.3f}", by_seed(before), "",
              *[""] * 3 * (len(later) - 1)))
    ends = [end(run) for run in first]
    print(row("any, at K = 0", "1", f"{statistics.mean(ends):.3f}", by_seed(ends), "0",
              *[""] * 3 * (len(later) - 1)))
    for method in methods:
        cells = []
        for age in later:
            ends = [end(run) for run in of(runs, method, age)]
            drifts = [statistics.mean(run["drift"][age:]) for run in of(runs, method, age)]
            cells += [f"{statistics.mean(ends):.3f}", by_seed(ends),
                      f"{statistics.mean(drifts):.2f}"]
        print(row(method.name, method.what, *cells))
    print()


def by_seed(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def exact_table(exact: Sequence[Record], methods: Sequence[Method],
                drifts: Sequence[float]) -> None:
    """Print cosine, length and noise of expected gradients at a few distances."""
    worlds = len({point["world"] for point in exact})
    print(f"medians over {worlds} worlds, at |log π - log μ| = "
          + ", ".join(f"{drift:g}" for drift in drifts) + "\n")
    names = ("cosine", "length", "noise")
    print(table_head("method", *(f"{name} at {drift:g}" for name in names for drift in drifts)))
    for method in methods:
        print(row(method.name, *(f"{value:.2f}" for name in names
                                 for value in medians(exact, method, name, drifts))))
    print()


def learning_table(learnt: Mapping[str, Sequence[Sequence[float]]], age: int) -> None:
    """Print E[r] on the way of policies that learn without noise: means over worlds."""
    first = next(iter(learnt.values()))
    updates = len(first[0]) - 1
    steps = [updates // 4, updates // 2, updates]
    print(f"E[r] by exact gradients under the policy of {age} steps ago, means over {len(first)} "
          f"worlds; {statistics.mean(curve[0] for curve in first):.2f} before\n")
    print(table_head("method", *(f"after {step} steps" for step in steps), "the worst world"))
    for name, curves in learnt.items():
        print(row(name, *(f"{statistics.mean(curve[step] for curve in curves):.2f}"
                          for step in steps), f"{min(curve[-1] for curve in curves):.2f}"))
    print()


def medians(exact: Sequence[Record], method: Method, name: str,
            drifts: Sequence[float]) -> list[float]:
    """Return the median over worlds at each drift, between the steps of a world as on a line."""
    import numpy as np
    points = [point for point in exact if point["method"] == method.name]
    columns = []
    for world in sorted({point["world"] for point in points}):
        own = [point for point in points if point["world"] == world]
        columns.append(np.interp(drifts, [point["drift"] for point in own],
                                 [point[name] for point in own]))
    return list(map(float, np.median(columns, axis=0)))


# the figure

def draw(runs: Sequence[Record], exact: Sequence[Record], methods: Sequence[Method],
         ages: Sequence[int], out: Path) -> None:
    """Draw accuracy over steps for each K, and under it what is exactly known of the gradients."""
    figure, axes = new_figure(2, 3, (10.4, 6.6))
    looks = [{"color": colour, "linewidth": 2} for colour in COLOURS]
    looks.append({"color": "#111827", "linewidth": 2, "linestyle": DASHES})
    for axis, age in zip(axes, ages, strict=False):
        draw_curves(axis, runs, methods if age else methods[:1], age, looks)
    levels = [limit for axis in axes[:3] for limit in axis.get_ylim()]
    for axis in axes[:3]:
        axis.set_ylim(min(levels), max(levels))
    drifts = {age: run_drift(runs, age) for age in ages if age}
    panels = (("cosine", "Exactly: direction", "cosine with the right gradient"),
              ("length", "Exactly: length", "length / that of the right one"),
              ("noise", "Exactly: noise of one sample", "deviation / length of the right one"))
    for axis, (name, title, label) in zip(axes[3:], panels, strict=True):
        for method, style in zip(methods, looks, strict=True):
            axis.plot(GRID, medians(exact, method, name, GRID), **style)
        mark(axis, drifts)
        axis.set_xlim(0, FARTHEST)
        tidy(axis, title, x="|log π - log μ| of a sampled token, mean", y=label)
    axes[3].set_ylim(top=1.15)  # room for the marks
    axes[4].set_ylim(0, 1.15)
    axes[5].set_ylim(bottom=0)
    legend_below(figure, [entry(method.name, **style)
                          for method, style in zip(methods, looks, strict=True)])
    save(figure, out)


def draw_curves(axis: Any, runs: Sequence[Record], methods: Sequence[Method], age: int,
                looks: Sequence[dict[str, Any]]) -> None:
    """Draw the mean accuracy over seeds of each method at one K."""
    for method, style in zip(methods, looks, strict=False):
        by_seed = [run["looks"] for run in of(runs, method, age)]
        axis.plot([look["step"] for look in by_seed[0]],
                  [statistics.mean(look["accuracy"] for look in at)
                   for at in zip(*by_seed, strict=True)],
                  **(style if age else {"color": "#111827", "linewidth": 2}))
    axis.set_xlim(left=0)
    title = f"K = {age}: rollouts of {age} steps ago" if age else "K = 0: all methods are one"
    tidy(axis, title, x="step", y="" if age else "accuracy, held-out sums")


def mark(axis: Any, drifts: dict[int, float]) -> None:
    """Mark how far policies in training were from their samplers."""
    for age, drift in drifts.items():
        axis.axvline(drift, color="#9ca3af", linewidth=1, linestyle=":")
        axis.annotate(f"K = {age}", (drift, 1), xycoords=("data", "axes fraction"), fontsize=7,
                      xytext=(2, -8), textcoords="offset points", color="#4b5563")
