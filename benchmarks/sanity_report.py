"""What benchmarks/sanity.py prints and draws: tables and two figures.

A record is a line of its file, for one run: what it differs in (precision, repair, lr, length,
width), seed, kept and asked (problems), before (the base model's accuracy on the kept ones), steps
(for each metric one number per step: accuracy, mismatch = |log π - log μ| of a token, ...), after
(accuracy in the sampler's arithmetic and in the learner's), ended (why it broke off), seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any, Protocol

from common import row, table_head
from minirl.lm.figures import (
    COLOURS,
    DASHES,
    entry,
    legend_below,
    log_scale,
    new_figure,
    save,
    smooth,
    tidy,
)
from study import Record

PASSED = 0.95                      # training accuracy, as a mean over WINDOW steps in a row
WINDOW, LAST = 5, 10               # steps
KNOBS = ("precision", "repair", "lr", "length", "width")
BLUE, RED, GREEN, PURPLE, GOLD, GREY = COLOURS
PRECISIONS: dict[str | int, dict[str, Any]] = {
    "float32": dict(color="#111827", linewidth=2.4), "float16": dict(color=GREEN, linewidth=1.8),
    "bfloat16": dict(color=BLUE, linewidth=1.8), 4: dict(color=GOLD, linewidth=1.8),
    3: dict(color=PURPLE, linewidth=1.8), 2: dict(color=RED, linewidth=2.4)}
REPAIRS: dict[str, dict[str, Any]] = {
    "none": dict(color=RED, linewidth=2.6),
    "token truncation": dict(color=BLUE, linewidth=1.5),
    "token masking": dict(color=BLUE, linewidth=1.5, linestyle=DASHES),
    "sequence truncation": dict(color=GREEN, linewidth=1.5),
    "sequence masking": dict(color=GREEN, linewidth=1.5, linestyle=DASHES),
    "geometric rejection": dict(color=GOLD, linewidth=1.5),
    "policy gradient": dict(color=PURPLE, linewidth=1.5),
    "GSPO": dict(color=GREY, linewidth=1.5),
    "π_old of the sampler": dict(color=GREY, linewidth=1.5, linestyle=DASHES),
    "batch-invariant": dict(color="#111827", linewidth=1.5, linestyle=DASHES)}


class Repair(Protocol):
    """What is read here of a row of sanity.REPAIRS."""

    @property
    def name(self) -> str: ...
    @property
    def what(self) -> str: ...


class Size(Protocol):
    """What is read here of sanity.SIZES: the usual values of the knobs, and others."""

    @property
    def lr(self) -> float: ...
    @property
    def lrs(self) -> tuple[float, ...]: ...
    @property
    def length(self) -> int: ...
    @property
    def lengths(self) -> tuple[int, ...]: ...
    @property
    def width(self) -> int: ...
    @property
    def widths(self) -> tuple[int, ...]: ...


def run_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a run differs in from the others of its seed."""
    return tuple(record[knob] for knob in KNOBS)


# what became of a run

def windows(record: Record) -> list[float]:
    """Return the training accuracy, as means over WINDOW steps in a row."""
    steps = record["steps"]["accuracy"]
    return [statistics.mean(steps[i:i + WINDOW]) for i in range(max(1, len(steps) - WINDOW + 1))]


def end(record: Record, name: str = "accuracy") -> float:
    return statistics.mean(record["steps"][name][-LAST:])


def passed_at(record: Record) -> int | None:
    """Return the step at which the test is passed, None where it is not."""
    return next((i + WINDOW for i, mean in enumerate(windows(record)) if mean >= PASSED), None)


def outcome(record: Record) -> str:
    """Return "passed", "collapsed" (the end is below half of the best), or "stays below"; a run
    may pass and collapse."""
    words = []
    if passed_at(record) is not None:
        words.append(f"passed at {passed_at(record)}")
    if record["ended"] or end(record) < max(windows(record)) / 2:
        words.append("collapsed")
    return ", ".join(words) or "stays below"


# the tables

def show(records: Sequence[Record], size: Size, repairs: Sequence[Repair], figures: Path) -> None:
    """Print the tables and draw the figures, of what there is."""
    usual = {"lr": size.lr, "length": size.length, "width": size.width}
    plain = {"repair": "none"} | usual
    print("\nthe dtype of both, or the bits of a sampler beside a float32 learner\n")
    table([(name_of(x), of(records, {"precision": x} | plain)) for x in PRECISIONS])
    for precision in (2, "bfloat16", "float16"):
        print(f"\nrepairs, {name_of(precision)}\n")
        table([(f"{repair.name}: {repair.what}",
                of(records, {"precision": precision, "repair": repair.name} | usual))
               for repair in repairs])
    print("\nother knobs, without a repair\n")
    table([(f"{knob} {value:g}, {name_of(precision)}",
            of(records, plain | {knob: value, "precision": precision}))
           for knob, values in knobs(size).items() for value in values for precision in PRECISIONS
           if value != usual[knob]])
    draw_curves(records, usual, repairs, figures / "sanity.png")
    draw_knobs(records, plain, knobs(size), figures / "sanity_knobs.png")


def knobs(size: Size) -> dict[str, list[float]]:
    return {"lr": sorted((size.lr, *size.lrs)), "length": sorted((size.length, *size.lengths)),
            "width": sorted((size.width, *size.widths))}


def of(records: Sequence[Record], values: Mapping[str, Any]) -> list[Record]:
    """Return the runs with these values of the knobs, one per seed."""
    return sorted((record for record in records
                   if all(record[knob] == value for knob, value in values.items())),
                  key=lambda record: record["seed"])


def name_of(precision: str | int) -> str:
    return f"{precision} bits" if isinstance(precision, int) else precision


def table(rows: Sequence[tuple[str, Sequence[Record]]]) -> None:
    """Print a row for each set of runs that has any; numbers are by seed."""
    print(table_head("run", "best", "last 10 steps", "passed at step", "collapsed",
                     "mismatch: first step", "last 10 steps", "learner's accuracy"))
    for name, runs in rows:
        if runs:
            print(row(name, by_seed(max(windows(run)) for run in runs),
                      by_seed(end(run) for run in runs),
                      " / ".join(str(passed_at(run) or "-") for run in runs),
                      f"{sum('collapsed' in outcome(run) for run in runs)} of {len(runs)}",
                      by_seed((run["steps"]["mismatch"][0] for run in runs), ".1e"),
                      by_seed((end(run, "mismatch") for run in runs), ".1e"),
                      by_seed(run["after"].get("learner", 0.0) for run in runs)))


def by_seed(values: Any, form: str = ".2f") -> str:
    return " / ".join(f"{value:{form}}" for value in values)


# the figures

def draw_curves(records: Sequence[Record], usual: Mapping[str, Any], repairs: Sequence[Repair],
                out: Path) -> None:
    """Draw training accuracy and mismatch over steps: by precision, and by repair at 2 bits."""
    figure, axes = new_figure(2, 2, (10.4, 6.6))
    columns: list[list[tuple[str, list[Record], dict[str, Any]]]] = [
        [(name_of(x), of(records, {"precision": x, "repair": "none"} | usual), look)
         for x, look in PRECISIONS.items()],
        [(repair.name, of(records, {"precision": 2, "repair": repair.name} | usual),
          REPAIRS[repair.name]) for repair in repairs]]
    for i, curves in enumerate(columns):
        for _, runs, look in curves:
            for name, axis in (("accuracy", axes[i]), ("mismatch", axes[2 + i])):
                draw_mean([run["steps"][name] for run in runs], axis, look)
    titles = ("No repair: where a lower precision begins to matter",
              "A sampler of 2 bits: what the repairs do",
              "Where the test is passed, the mismatch falls", "Where it fails, it grows")
    for axis, title in zip(axes, titles, strict=True):
        top = axis in axes[:2]
        tidy(axis, title, x="" if top else "step",
             y="training accuracy" if top else "|log π - log μ| of a token")
        if top:
            axis.set_ylim(0, 1)
            axis.axhline(PASSED, color=GREY, linewidth=0.8, linestyle=":")
        else:
            low, high = axis.get_ylim()
            log_scale(axis, high / max(low, 1e-9))
    axes[0].legend(handles=legend(columns[0]), fontsize=8, frameon=False, ncols=2,
                   loc="lower right")
    legend_below(figure, legend(columns[1]), title="Right. Everywhere: means of "
                 f"{len({record['seed'] for record in records})} seeds, smoothed over 7 steps; "
                 "dotted: 95 %")
    save(figure, out)


def legend(curves: Sequence[tuple[str, list[Record], dict[str, Any]]]) -> list[Any]:
    return [entry(name, **look) for name, runs, look in curves if runs]


def draw_mean(by_run: Sequence[Sequence[float]], axis: Any, look: Mapping[str, Any]) -> None:
    """Draw the mean over seeds, as far as all of them go, without zeros on a logarithmic axis."""
    means = [statistics.mean(values) for values in zip(*by_run, strict=False)]
    if means and any(means):
        axis.plot(range(1, len(means) + 1), smooth(means), **look)


def draw_knobs(records: Sequence[Record], plain: Mapping[str, Any],
               values: Mapping[str, Sequence[float]], out: Path) -> None:
    """Draw the training accuracy at the end over the bits of the sampler, for each knob's values.
    """
    figure, axes = new_figure(1, 3, (10.4, 3.6))
    looks = [dict(color=colour, marker="o", markersize=4) for colour in (GREEN, BLUE, RED, PURPLE)]
    titles = {"lr": "Learning rate", "length": "Digits of a number", "width": "Width of the model"}
    for axis, (knob, its_values) in zip(axes, values.items(), strict=True):
        for value, look in zip(its_values, looks, strict=False):
            draw_over_bits(records, dict(plain) | {knob: value}, axis,
                           look | {"label": f"{value:g}"})
        tidy(axis, titles[knob], x="bits of the sampler's precision",
             y="training accuracy, last 10 steps")
        axis.set_ylim(0, 1)
        axis.legend(fontsize=8, frameon=False, loc="lower right")
    save(figure, out)


BITS: dict[str | int, int] = {2: 2, 3: 3, 4: 4, "bfloat16": 8, "float16": 11, "float32": 24}


def draw_over_bits(records: Sequence[Record], values: dict[str, Any], axis: Any,
                   look: dict[str, Any]) -> None:
    """Draw the mean of each precision that was run, with a line between neighbours alone, and the
    seeds as faint points."""
    by_bits = [[end(run) for run in of(records, values | {"precision": precision})]
               for precision in BITS]
    if not any(by_bits):
        return
    axis.plot([statistics.mean(ends) if ends else nan for ends in by_bits], **look)
    for i, ends in enumerate(by_bits):
        axis.plot([i] * len(ends), ends, ".", color=look["color"], alpha=0.3)
    axis.set_xticks(range(len(BITS)), [f"{bits}" for bits in BITS.values()])
