"""Curves of one run or several, on shared axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

from minirl.app.rundir import RunDir  # noqa: E402
from minirl.lm.tokenizer import read_json  # noqa: E402

# metric, title, unit, fixed lower and upper end of the axis (None: from the data; no lower end: a logarithmic axis)
PANELS = (
    ("rewards/accuracy/mean", "Accuracy on sampled training problems", "share right", 0.0, 1.0),
    ("completions/mean_length", "Mean response length", "tokens", 0.0, None),
    ("kl", "KL to the reference (k3)", "nats per token", 0.0, None),
    ("entropy", "Policy entropy", "nats per token", 0.0, None),
    ("loss", "Loss on completions", "nats per token", None, None),
    ("learning_rate", "Learning rate", "", 0.0, None),
)
MOST_PANELS = 4
COLOURS = ("#2563a8", "#c8553d", "#3a7d44", "#8b5fa8", "#b8860b", "#4b5563")


def plot_runs(runs: Sequence[RunDir], out: Path) -> None:
    """Draw the metrics that the runs have into the PNG file `out`. Raises ValueError if there is nothing to draw."""
    lines = [run.metrics() for run in runs]
    for run, metrics in zip(runs, lines):
        if not metrics:
            raise ValueError(f"{run.path} has no metrics yet: let it make a step, or name another run")
    panels = [panel for panel in PANELS if any(panel[0] in m for metrics in lines for m in metrics)][:MOST_PANELS]
    if not panels:
        raise ValueError(f"the runs {', '.join(str(run.path) for run in runs)} have none of the metrics {', '.join(p[0] for p in PANELS)}")
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.0 * rows), squeeze=False, layout="constrained")
    for axis, (name, title, unit, low, high) in zip(axes.flat, panels):
        for run, metrics, colour in zip(runs, lines, COLOURS * len(runs)):
            points = [(m["step"], m[name]) for m in metrics if name in m]
            if points:
                steps, values = zip(*points)
                # One step is a few hundred samples: show them, and lead the eye with the mean of their neighbours.
                axis.plot(steps, values, color=colour, alpha=0.28, linewidth=1)
                axis.plot(steps, smooth(values), color=colour, linewidth=2, label=run.path.name if len(runs) > 1 else "while training")
        for run, colour in zip(runs, COLOURS * len(runs)):
            held_out(axis, name, run, colour, labelled=run is runs[-1])
        axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
        axis.set_xlabel("step", fontsize=9)
        axis.set_ylabel(unit, fontsize=9)
        if low is None:
            axis.set_yscale("log")
        else:
            axis.set_ylim(low, None if high is None else high * 1.03)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels):]:
        axis.set_visible(False)
    if len(axes.flat[0].get_legend_handles_labels()[1]) > 1:
        axes.flat[0].legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(heading(runs), fontsize=11, x=0.01, ha="left")
    figure.savefig(out, dpi=130, format="png")
    plt.close(figure)


def held_out(axis, name: str, run: RunDir, colour: str, *, labelled: bool) -> None:
    """Circles for what the summary says of held-out problems, before the first step and after the last."""
    summary = read_json(run.path / "summary.json")
    keys = {"rewards/accuracy/mean": "accuracy", "completions/mean_length": "mean_length"}
    if name in keys and f"{keys[name]}_after" in summary:
        values = [summary[f"{keys[name]}_before"], summary[f"{keys[name]}_after"]]
        axis.plot([0, summary["steps"]], values, "o", color=colour, markersize=6, markerfacecolor="white", markeredgewidth=1.8, zorder=5,
                  clip_on=False, label="held-out problems, before and after" if labelled else None)


def smooth(values: Sequence[float], reach: int = 3) -> list[float]:
    """Mean of each value and its neighbours on either side, fewer at the ends."""
    windows = [values[max(0, i - reach):i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def heading(runs: Sequence[RunDir]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs"
    config = runs[0].config
    common = config.get("run", {})
    return f"minirl {config.get('command')}: {common.get('digits')}-digit {common.get('task')}, seed {common.get('seed')}"
