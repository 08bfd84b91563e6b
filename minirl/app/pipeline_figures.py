"""Figures of pipelines: what a reward model, the epochs of SFT and each stage are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minirl.app.plots import PANELS, label_axes, points
from minirl.app.rundir import RunDir
from minirl.inference.intervals import wilson_interval
from minirl.lm.figures import (
    COLOURS,
    draw,
    drawable,
    entry,
    legend_below,
    new_figure,
    save,
    tidy,
    whole_steps,
)


def plot_calibration(margins: Sequence[float], out: Path, bins: int = 8) -> None:
    """Of comparisons of which the reward model is p sure, draw how many were decided its way.

    `margins`: r(better) - r(worse).
    """
    comparisons = [(1 / (1 + math.exp(-abs(m))), m > 0) for m in margins if not math.isnan(m)]
    comparisons.sort(key=lambda pair: pair[0])         # equally sure ones keep their order
    figure, (axis,) = new_figure(1, 1, (4.6, 4.2))
    axis.plot([0.5, 1], [0.5, 1], color="#9ca3af", linewidth=1, linestyle="--",
              label="as sure as it is right")
    size = max(1, -(-len(comparisons) // bins))
    label = f"{len(comparisons)} held-out comparisons, in parts of {size} (95 %)"
    for start in range(0, len(comparisons), size):
        part = comparisons[start:start + size]
        p, right = (sum(column) / len(part) for column in zip(*part, strict=True))
        low, high = wilson_interval(right, len(part))
        axis.errorbar([p], [right], yerr=[[right - low], [high - right]], fmt="o",
                      color=COLOURS[0], capsize=2, label=None if start else label)
    axis.set(xlim=(0.49, 1.01), ylim=(-0.02, 1.02), xlabel="how sure the reward model is",
             ylabel="share in which the labeller agrees")
    tidy(axis, "Calibration of the reward model")
    legend_below(figure, axis.get_legend_handles_labels()[0])
    save(figure, out)


def plot_epochs(epochs: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw SFT's checkpoints by epoch, with the one that was chosen."""
    figure, axes = new_figure(1, 3, (10.4, 2.9))
    best = next(epoch for epoch in epochs if epoch["chosen"])
    titles = {"validation_loss": "Validation loss", "score": "Reward model's score",
              "true_reward": "True reward"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        axis.plot([e["epoch"] for e in epochs], [e[key] for e in epochs], color=COLOURS[0],
                  linewidth=2, marker="o", markersize=3)
        axis.plot([best["epoch"]], [best[key]], "o", color=COLOURS[1], markersize=8,
                  markerfacecolor="none", markeredgewidth=2, label="best score: chosen")
        whole_steps(axis)
        tidy(axis, title, x="epochs of demonstrations")
    legend_below(figure, axes[0].get_legend_handles_labels()[0])
    save(figure, out)


def plot_stages(stages: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw what each stage of a pipeline is worth."""
    figure, axes = new_figure(2, 2, (10.4, 6.2))
    right, language, length, wins = axes
    for key, label, colour in (("easy", "easy", COLOURS[2]), ("hard", "hard", COLOURS[0]),
                               ("majority", "hard, majority of samples", COLOURS[1]),
                               ("pass", "hard, any of the samples", COLOURS[5])):
        right.plot(range(len(stages)), [s[key] for s in stages], "o-", color=colour, markersize=5,
                   linewidth=1.4, label=label, clip_on=False)
    for axis, key in ((language, "language"), (length, "length"), (wins, "win_rate")):
        axis.bar(range(len(stages)), [s[key] for s in stages], color=COLOURS[0], alpha=0.6)
    wins.axhline(0.5, color=COLOURS[5], linewidth=1, linestyle="--")
    for axis, title, unit, top in (
            (right, "Right answers", "share", 1.03),
            (language, "Reasoning in the language asked for", "share of words", 1.03),
            (length, "Response length", "tokens", None),
            (wins, "General answers: wins against the sft stage", "share", 1.0)):
        tidy(axis, title, y=unit)
        axis.set_xticks(range(len(stages)), [drawable(s["stage"]) for s in stages], rotation=20,
                        ha="right")
        axis.set_ylim(0, top)
    legend_below(figure, right.get_legend_handles_labels()[0], title="Right answers")
    save(figure, out)


def plot_hacking(too_long: RunDir, rounds: Sequence[RunDir], out: Path) -> None:
    """Draw the reward model's score and the true reward of general answers: where the preference
    reward goes on for too long, and where it stops in time, in rounds."""
    figure, axes = new_figure(1, 2, (10.4, 3.4))
    runs = [(0, too_long, COLOURS[1])]
    for n, run in enumerate(rounds):
        before = sum(len(earlier.metrics()) for earlier in rounds[:n])
        runs.append((before, run, COLOURS[0]))
    for axis, name in zip(axes, ("rewards/preference/mean", "rewards/general/true_reward/mean"),
                          strict=True):
        values = []
        for before, run, colour in runs:
            curve = [(before + step, value) for step, value in points(run.metrics(), name)]
            draw(axis, curve, {"color": colour})
            values += [value for _, value in curve]
        label_axes(axis, PANELS[name], values)
    legend_below(figure, [
        entry("one reward model, for too long", linewidth=2, color=COLOURS[1]),
        entry("the pipeline, a reward model for each round", linewidth=2, color=COLOURS[0])])
    save(figure, out)
