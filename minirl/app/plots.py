"""Curves of one run or several, on shared axes. matplotlib is loaded when something is drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minirl.app.rundir import RunDir
from minirl.app.tasks import title_of
from minirl.lm.figures import (
    COLOURS,
    REACH,
    Points,
    circle,
    draw,
    drawable,
    entry,
    legend_below,
    line_styles,
    log_scale,
    new_figure,
    save,
    smooth,
    tidy,
    whole_steps,
)
from minirl.lm.text import shortened


class Panel(NamedTuple):
    """What stands over and beside a metric's axes, and where they end; None: where the data do."""

    title: str
    unit: str
    low: float | None = None
    high: float | None = None
    exact: bool = False            # set, not measured: nothing to smooth
    log: bool = False              # a logarithmic axis where the values span more than a decade


# metric -> how it is drawn
PANELS = {
    "rewards/accuracy/mean":
        Panel("Accuracy on sampled training problems", "share right", 0.0, 1.0),
    "rewards/format_reward/mean": Panel("Answers in the asked form", "share", 0.0, 1.0),
    "rewards/language_consistency/mean":
        Panel("Reasoning in the language asked for", "share of words", 0.0, 1.0),
    "rewards/preference/mean": Panel("Reward model's score of general answers", "score"),
    "rewards/general/true_reward/mean":
        Panel("True reward of general answers: what people want", "true reward"),
    "rewards/reward_model/mean": Panel("Reward model's score: what is trained on", "score"),
    "rewards/true_reward/mean": Panel("True reward: what people want", "true reward"),
    "objective/kl": Panel("KL to the SFT policy", "nats per completion"),
    "completions/mean_length": Panel("Mean response length", "tokens", 0.0),
    "kl": Panel("KL to the reference (k3)", "nats per token", 0.0),
    "teacher_kl": Panel("KL to the teacher (k1)", "nats per token"),
    "entropy": Panel("Policy entropy", "nats per token", 0.0),
    "value/explained_variance":
        Panel("Variance of returns that the value function explains", "share", high=1.0),
    "loss": Panel("Loss", "nats", log=True),
    "accuracy": Panel("Comparisons or steps decided as the labels say", "share", 0.0, 1.0),
    "margin": Panel("r(better) - r(worse)", "score", 0.0),
    "rewards/accuracies": Panel("Comparisons the implicit reward decides alike", "share", 0.0, 1.0),
    "rewards/margins": Panel("Implicit reward, chosen - rejected", "nats x beta"),
    "learning_rate": Panel("Learning rate", "", 0.0, exact=True),
}
# command, or the command of a pipeline and that of its stage -> metrics, in order
METRICS = {
    "grpo": ("rewards/accuracy/mean", "completions/mean_length", "kl", "entropy"),
    "r1/grpo": ("rewards/accuracy/mean", "completions/mean_length", "rewards/format_reward/mean",
                "rewards/language_consistency/mean", "rewards/preference/mean",
                "rewards/general/true_reward/mean"),
    "distill": ("rewards/accuracy/mean", "teacher_kl", "completions/mean_length"),
    "sft": ("loss", "learning_rate"),
    **dict.fromkeys(("prm", "orm"), ("loss", "accuracy", "learning_rate")),
    "rm": ("loss", "accuracy", "margin", "learning_rate"),
    "ppo": ("rewards/reward_model/mean", "rewards/true_reward/mean", "objective/kl",
            "completions/mean_length", "entropy", "value/explained_variance"),
    "dpo": ("loss", "rewards/accuracies", "rewards/margins", "learning_rate"),
}
# metric -> its name in summary.json
HELD_OUT = {"rewards/accuracy/mean": "accuracy", "completions/mean_length": "mean_length",
            "rewards/true_reward/mean": "true_reward", "rewards/reward_model/mean": "score"}
LONGEST_NAME = 36
# of config.json: no part of a method
ENVIRONMENT = {"torch", "threads", "processes", "python", "platform"}


def plot_runs(runs: Sequence[RunDir], out: Path) -> None:
    """Draw the metrics that the runs have into the PNG file `out`.

    Raises ValueError if there is nothing to draw.
    """
    lines = [run.metrics() for run in runs]
    for run, metrics in zip(runs, lines, strict=True):
        if not metrics:
            raise ValueError(f"{run.path} has no metrics yet: let it make a step, or name another "
                             "run")
    curves = {name: [points(metrics, name) for metrics in lines]
              for run in runs for name in metrics_of(run)}
    curves = {name: of_runs for name, of_runs in curves.items() if any(of_runs)}
    if not curves:
        raise ValueError(f"the runs {', '.join(str(run.path) for run in runs)} have none of the "
                         f"metrics {', '.join(PANELS)}")
    columns = 2 if len(curves) > 1 else 1
    rows = -(-len(curves) // columns)
    figure, axes = new_figure(rows, columns, (5.2 * columns, 2.9 * rows))
    groups = by_seed(runs)
    styles = line_styles(len(groups))
    for axis, (name, of_runs) in zip(axes, curves.items(), strict=False):
        for group, style in zip(groups, styles, strict=True):
            draw_seeds(axis, [of_runs[i] for i in group], style, exact=PANELS[name].exact)
            for i in group:
                draw_held_out(axis, name, runs[i], style["color"])
        label_axes(axis, PANELS[name], [value for of_run in of_runs for _, value in of_run])
    for axis in axes[len(curves):]:
        axis.set_visible(False)
    fits = round(11 * figure.get_figwidth())
    figure.suptitle(drawable(shortened(heading(runs), fits)), fontsize=11, x=0.01, ha="left")
    smoothed = any(not PANELS[name].exact and len(of_runs[0]) > 1
                   for name, of_runs in curves.items())
    legend_below(figure, legend_entries(runs, groups, styles, smoothed=smoothed))
    save(figure, out)


def by_seed(runs: Sequence[RunDir]) -> list[list[int]]:
    """Return the numbers of the runs in groups: those that differ in their seed alone."""
    groups: dict[str, dict[Any, int]] = {}           # what a run is, but for its seed -> by seed
    for i, run in enumerate(runs):
        config = {key: value for key, value in run.config.items() if key not in ENVIRONMENT}
        settings = dict(config.pop("settings", {}))
        seed = settings.pop("seed", None)
        key = json.dumps([config, settings], sort_keys=True)
        if seed is None or seed in groups.get(key, {}):      # no other seed, as far as is known
            key = json.dumps(i)
        groups.setdefault(key, {})[seed] = i
    return [list(group.values()) for group in groups.values()]


def draw_seeds(axis: Any, curves: Sequence[Points], style: Mapping[str, Any], *, exact: bool
               ) -> None:
    """Draw one run's curve; of several seeds their mean, and a band from the least to the largest,
    at the steps that all have."""
    if len(curves) == 1:
        draw(axis, curves[0], style, exact=exact)
        return
    values = [dict(curve) for curve in curves if curve]
    steps = sorted(set.intersection(*map(set, values))) if values else []
    if steps:
        columns = [[curve[step] for curve in values] for step in steps]
        low, high = (smooth([end(column) for column in columns]) for end in (min, max))
        axis.fill_between(steps, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axis.plot(steps, smooth([sum(column) / len(column) for column in columns]), linewidth=2,
                  **style)


def metrics_of(run: RunDir) -> Sequence[str]:
    """Return the metrics to draw of a run."""
    command = run.config.get("command", "")
    in_pipeline = f"{run.config.get('stage_of')}/{command}"
    return METRICS.get(in_pipeline, METRICS.get(command, tuple(PANELS)))


def points(metrics: Sequence[Mapping[str, Any]], name: str) -> Points:
    """Return the steps where a run has a finite value, with these values."""
    pairs = [(m["step"], m.get(name)) for m in metrics]
    return [(step, value) for step, value in pairs
            if isinstance(value, (int, float)) and math.isfinite(value)]


def draw_held_out(axis: Any, name: str, run: RunDir, colour: Any) -> None:
    """Draw circles for the summary's means on held-out problems, before and after training."""
    summary, key = run.summary, HELD_OUT.get(name)
    ends = [(0, summary.get(f"{key}_before")), (summary.get("steps"), summary.get(f"{key}_after"))]
    ends = [(x, y) for x, y in ends if x is not None and y is not None]
    if ends:
        axis.plot(*zip(*ends, strict=True), linestyle="none", zorder=5, clip_on=False,
                  **circle(colour))


def legend_entries(runs: Sequence[RunDir], groups: Sequence[Sequence[int]],
                   styles: Sequence[Mapping[str, Any]], *, smoothed: bool) -> list[Any]:
    entries = []
    if len(runs) > 1:
        labels = names(runs)
        entries = [entry(labels[group[0]] + (f": mean and range of {len(group)} seeds"
                                             if len(group) > 1 else ""), linewidth=2, **style)
                   for group, style in zip(groups, styles, strict=True)]
    elif smoothed:
        entries = [entry("each step", linewidth=1, alpha=0.4, **styles[0]),
                   entry(f"mean of up to {2 * REACH + 1} steps", linewidth=2, **styles[0])]
    if any(f"{key}_after" in run.summary for run in runs for key in HELD_OUT.values()):
        entries.append(entry("held-out problems, before and after", linestyle="none",
                             **circle(COLOURS[5])))
    return entries


def names(runs: Sequence[RunDir]) -> list[str]:
    """Return the runs' folders, with as many of those above as it takes to tell them apart."""
    parts = [run.path.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(p[-depth:]) for p in parts]
        if len(set(labels)) == len(set(parts)):
            break
    short = [shortened(label, LONGEST_NAME) for label in labels]
    return short if len(set(short)) == len(set(labels)) else labels


def heading(runs: Sequence[RunDir]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs"
    config = runs[0].config
    command = config.get("command")
    if "stage_of" in config:
        command = f"{config['stage_of']}, {runs[0].path.name}"
    task = f": {title_of(config['task'])}" if "task" in config else ""
    return f"minirl {command}{task}, seed {config.get('settings', {}).get('seed')}"


# what all curves share

def label_axes(axis: Any, panel: Panel, values: Iterable[float]) -> None:
    values = list(values)
    if panel.log:
        if 0 < 10 * min(values) < max(values):
            log_scale(axis, max(values) / min(values))
    else:
        scale(axis, panel)
    whole_steps(axis)
    tidy(axis, panel.title, x="step", y=panel.unit)


def scale(axis: Any, panel: Panel) -> None:
    """Set the panel's ends, with room above the curves; print small numbers as 2e-05."""
    from matplotlib.ticker import FuncFormatter
    low, most = panel.low, axis.dataLim.y1
    if panel.high is not None:
        axis.set_ylim(top=1.03 * panel.high)
    elif low is not None and most > low:
        axis.set_ylim(top=low + 1.06 * (most - low))
    if low is not None:
        axis.set_ylim(bottom=low)
    if 0 < most < 0.002:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


