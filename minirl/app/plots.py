"""Curves of one run or several, on shared axes. matplotlib is loaded when something is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minirl.app.rundir import RunDir
from minirl.app.text import escaped, shortened, visible
from minirl.inference.intervals import wilson_interval
from minirl.lm.tokenizer import read_json

AUTO, LOG = "from the data", "from the data; logarithmic where they span much"


class Panel(NamedTuple):
    """What stands over and beside a metric's axes, and where they end."""

    title: str
    unit: str
    low: float | str
    high: float | str
    exact: bool = False            # set and not measured: nothing to smooth


# metric -> how it is drawn
PANELS = {
    "rewards/accuracy/mean":
        Panel("Accuracy on sampled training problems", "share right", 0.0, 1.0),
    "rewards/format_reward/mean":
        Panel("Answers in the asked form", "share", 0.0, 1.0),
    "rewards/language_consistency/mean":
        Panel("Reasoning in the language asked for", "share of words", 0.0, 1.0),
    "rewards/preference/mean":
        Panel("Reward model's score of general answers", "score", AUTO, AUTO),
    "rewards/general/true_reward/mean":
        Panel("True reward of general answers: what people want", "true reward", AUTO, AUTO),
    "rewards/reward_model/mean":
        Panel("Reward model's score: what is trained on", "score", AUTO, AUTO),
    "rewards/true_reward/mean":
        Panel("True reward: what people want", "true reward", AUTO, AUTO),
    "objective/kl":
        Panel("KL to the SFT policy", "nats per completion", AUTO, AUTO),
    "completions/mean_length":
        Panel("Mean response length", "tokens", 0.0, AUTO),
    "kl":
        Panel("KL to the reference (k3)", "nats per token", 0.0, AUTO),
    "entropy":
        Panel("Policy entropy", "nats per token", 0.0, AUTO),
    "value/explained_variance":
        Panel("Variance of returns that the value function explains", "share", AUTO, 1.0),
    "loss":
        Panel("Loss", "nats", LOG, AUTO),
    "accuracy":
        Panel("Comparisons that the reward model decides alike", "share", 0.0, 1.0),
    "margin":
        Panel("r(better) - r(worse)", "score", 0.0, AUTO),
    "rewards/accuracies":
        Panel("Comparisons that the implicit reward decides alike", "share", 0.0, 1.0),
    "rewards/margins":
        Panel("Implicit reward, chosen - rejected", "nats x beta", AUTO, AUTO),
    "learning_rate":
        Panel("Learning rate", "", 0.0, AUTO, exact=True),
}
# command -> which of them, in order
SHOWN = {
    "grpo": ("rewards/accuracy/mean", "completions/mean_length", "kl", "entropy"),
    "r1": ("rewards/accuracy/mean", "completions/mean_length", "rewards/format_reward/mean",
           "rewards/language_consistency/mean", "rewards/preference/mean",
           "rewards/general/true_reward/mean"),
    "sft": ("loss", "learning_rate"),
    "rm": ("loss", "accuracy", "margin", "learning_rate"),
    "ppo": ("rewards/reward_model/mean", "rewards/true_reward/mean", "objective/kl",
            "completions/mean_length", "entropy", "value/explained_variance"),
    "dpo": ("loss", "rewards/accuracies", "rewards/margins", "learning_rate"),
}
# metric -> its name in summary.json
HELD_OUT = {"rewards/accuracy/mean": "accuracy", "completions/mean_length": "mean_length",
            "rewards/true_reward/mean": "true_reward", "rewards/reward_model/mean": "score"}
COLOURS = ("#2563a8", "#c8553d", "#3a7d44", "#8b5fa8", "#b8860b", "#4b5563")
DASHES = (0, (4, 1.5))
REACH = 3                         # neighbours on either side in a smoothed curve
FEW = 12                          # points up to which each is marked
LONGEST_NAME = 36


def plot_runs(runs: Sequence[RunDir], out: Path) -> None:
    """Draw the metrics that the runs have into the PNG file `out`.

    Raises ValueError if there is nothing to draw.
    """
    lines = [run.metrics() for run in runs]
    for run, metrics in zip(runs, lines):
        if not metrics:
            raise ValueError(f"{run.path} has no metrics yet: let it make a step, or name another "
                             "run")
    wanted = dict.fromkeys(name for run in runs for name in shown(run))
    panels = [name for name in wanted if any(points(metrics, name) for metrics in lines)]
    if not panels:
        raise ValueError(f"the runs {', '.join(str(run.path) for run in runs)} have none of the "
                         f"metrics {', '.join(PANELS)}")
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(rows, columns, (5.2 * columns, 2.9 * rows))
    styles = line_styles(len(runs))
    for axis, name in zip(axes.flat, panels):
        for run, metrics, style in zip(runs, lines, styles):
            curve(axis, points(metrics, name), style, exact=PANELS[name].exact)
            held_out(axis, name, run, style["color"])
        drawn = [value for metrics in lines for _, value in points(metrics, name)]
        label_axes(axis, PANELS[name], drawn)
    for axis in list(axes.flat)[len(panels):]:
        axis.set_visible(False)
    fits = round(11 * figure.get_figwidth())
    figure.suptitle(drawable(shortened(heading(runs), fits)), fontsize=11, x=0.01, ha="left")
    smoothed = any(not PANELS[name].exact and len(points(lines[0], name)) > 1 for name in panels)
    legend_below(figure, legend_entries(runs, styles, smoothed=smoothed))
    save(figure, out)


def points(metrics: Sequence[dict], name: str) -> list[tuple[int, float]]:
    """(step, value) where a run has a finite one."""
    pairs = [(m["step"], m.get(name)) for m in metrics]
    return [(step, value) for step, value in pairs
            if isinstance(value, (int, float)) and math.isfinite(value)]


def curve(axis, points: Sequence[tuple[int, float]], style: dict, *, exact: bool = False) -> None:
    """A line through exact points; through measured ones a faint line, and a line of their means.

    One step is a few hundred samples: the points show the noise, and the mean leads the eye.
    """
    if not points:
        return
    steps, values = zip(*points)
    marker = {"marker": "o", "markersize": 3.5} if len(points) <= FEW else {}
    if exact:
        axis.plot(steps, values, linewidth=2, **style, **marker)
    else:
        axis.plot(steps, values, alpha=0.28, linewidth=1, **style, **marker)
        alone = marker if len(points) == 1 else {}
        axis.plot(steps, smooth(values), linewidth=2, **style, **alone)


def line_styles(n: int) -> list[dict]:
    """A look for each of n runs: six colours, then the same dashed; of more, shades in order."""
    if n <= 2 * len(COLOURS):
        return [{"color": colour, "linestyle": line} for line in ("-", DASHES)
                for colour in COLOURS][:n]
    import matplotlib
    shades = matplotlib.colormaps["viridis"]
    return [{"color": shades(0.95 * i / (n - 1)), "linestyle": "-"} for i in range(n)]


def legend_entries(runs: Sequence[RunDir], styles: Sequence[dict], *, smoothed: bool) -> list:
    from matplotlib.lines import Line2D

    def entry(label: str, **look):
        return Line2D([], [], label=drawable(label), **look)

    if len(runs) > 1:
        entries = [entry(name, linewidth=2, **style) for name, style in zip(names(runs), styles)]
    elif smoothed:
        entries = [entry("each step", linewidth=1, alpha=0.4, **styles[0]),
                   entry(f"mean of up to {2 * REACH + 1} steps", linewidth=2, **styles[0])]
    else:
        entries = []
    summaries = [read_json(run.path / "summary.json") for run in runs]
    if any(f"{key}_after" in summary for summary in summaries for key in HELD_OUT.values()):
        look = circle(COLOURS[5])
        entries.append(entry("held-out problems, before and after", linestyle="none", **look))
    return entries


def names(runs: Sequence[RunDir]) -> list[str]:
    """What tells the runs apart: their folders' names, with as many of those above as it takes."""
    parts = [run.path.resolve().parts for run in runs]
    longest = max(map(len, parts))
    for depth in range(1, longest + 1):
        found = ["/".join(p[-depth:]) for p in parts]
        if len(set(found)) == len(set(parts)):
            break
    short = [shortened(name, LONGEST_NAME) for name in found]
    return short if len(set(short)) == len(set(found)) else found


def shown(run: RunDir) -> Sequence[str]:
    """The metrics to draw of a run. Reinforcement learning in a pipeline of R1 has its own."""
    config = run.config
    in_r1 = config.get("command") == "grpo" and "number_length" in config.get("run", {})
    return SHOWN["r1"] if in_r1 else SHOWN.get(config.get("command"), PANELS)


def held_out(axis, name: str, run: RunDir, colour) -> None:
    """Circles for what the summary says of held-out problems, before and after training."""
    summary = read_json(run.path / "summary.json")
    key = HELD_OUT.get(name)
    before, after = summary.get(f"{key}_before"), summary.get(f"{key}_after")
    ends = [(0, before), (summary.get("steps"), after)]
    ends = [(x, y) for x, y in ends if x is not None and y is not None]
    if ends:
        axis.plot(*zip(*ends), linestyle="none", zorder=5, clip_on=False, **circle(colour))


def circle(colour) -> dict:
    return {"marker": "o", "color": colour, "markersize": 6, "markerfacecolor": "white",
            "markeredgewidth": 1.8}


def smooth(values: Sequence[float], reach: int = REACH) -> list[float]:
    """Mean of each value and its neighbours on either side, fewer at the ends."""
    windows = [values[max(0, i - reach):i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def heading(runs: Sequence[RunDir]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs"
    config = runs[0].config
    common = config.get("run", {})
    if "number_length" in common:
        return (f"minirl r1, {runs[0].path.name}: sums and stories in two languages, "
                f"seed {common.get('seed')}")
    on_sums = "digits" in common
    subject = f"{common['digits']}-digit {common['task']}" if on_sums else "instructions"
    return f"minirl {config.get('command')}: {subject}, seed {common.get('seed')}"


def plot_calibration(margins: Sequence[float], out: Path, bins: int = 8) -> None:
    """Of comparisons of which the reward model is p sure, how many were decided its way.

    `margins`: r(better) - r(worse).
    """
    judged = [(1 / (1 + math.exp(-abs(m))), m > 0) for m in margins if not math.isnan(m)]
    sure = sorted(judged, key=lambda pair: pair[0])            # equally sure ones stay as they come
    figure, axes = new_figure(1, 1, (4.6, 4.2))
    axis = axes[0, 0]
    axis.plot([0.5, 1], [0.5, 1], color="#9ca3af", linewidth=1, linestyle="--",
              label="as sure as it is right")
    size = max(1, -(-len(sure) // bins))
    for i, start in enumerate(range(0, len(sure), size)):
        part = sure[start:start + size]
        p = sum(p for p, _ in part) / len(part)
        right = sum(agrees for _, agrees in part) / len(part)
        low, high = wilson_interval(right, len(part))
        label = f"{len(sure)} held-out comparisons, in parts of {size} (95 %)" if i == 0 else None
        axis.errorbar([p], [right], yerr=[[right - low], [high - right]], fmt="o",
                      color=COLOURS[0], capsize=2, label=label)
    axis.set(xlim=(0.49, 1.01), ylim=(-0.02, 1.02), xlabel="how sure the reward model is",
             ylabel="share in which the labeller agrees")
    axis.set_title("Calibration of the reward model", fontsize=10, loc="left", fontweight="bold")
    tidy(axis)
    legend_below(figure, axis.get_legend_handles_labels()[0])
    save(figure, out)


def plot_epochs(epochs: Sequence[dict], out: Path) -> None:
    """SFT's checkpoints by epoch, with the one that was chosen."""
    figure, axes = new_figure(1, 3, (10.4, 2.9))
    x = [e["epoch"] for e in epochs]
    chosen = next(e for e in epochs if e["chosen"])
    titles = {"validation_loss": "Validation loss", "score": "Reward model's score",
              "true_reward": "True reward"}
    for axis, (key, title) in zip(axes.flat, titles.items()):
        axis.plot(x, [e[key] for e in epochs], color=COLOURS[0], linewidth=2, marker="o",
                  markersize=3)
        axis.plot([chosen["epoch"]], [chosen[key]], "o", color=COLOURS[1], markersize=8,
                  markerfacecolor="none", markeredgewidth=2, label="best score: chosen")
        axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
        axis.set_xlabel("epochs of demonstrations", fontsize=9)
        whole_steps(axis)
        tidy(axis)
    legend_below(figure, axes[0, 0].get_legend_handles_labels()[0])
    save(figure, out)


def plot_stages(stages: Sequence[dict], out: Path) -> None:
    """What each stage of a pipeline is worth: right answers, language, length, general answers."""
    figure, axes = new_figure(2, 2, (10.4, 6.2))
    right, language, length, wins = axes.flat
    x, stage_names = range(len(stages)), [drawable(s["stage"]) for s in stages]
    for key, label, colour in (("easy", "easy", COLOURS[2]), ("hard", "hard", COLOURS[0]),
                               ("majority", "hard, majority of samples", COLOURS[1]),
                               ("pass", "hard, any of the samples", COLOURS[5])):
        right.plot(x, [s[key] for s in stages], "o-", color=colour, markersize=5, linewidth=1.4,
                   label=label, clip_on=False)
    for axis, key in ((language, "language"), (length, "length"), (wins, "win_rate")):
        axis.bar(x, [s[key] for s in stages], color=COLOURS[0], alpha=0.6)
    wins.axhline(0.5, color=COLOURS[5], linewidth=1, linestyle="--")
    for axis, title, unit, top in (
            (right, "Right answers", "share", 1.03),
            (language, "Reasoning in the language asked for", "share of words", 1.03),
            (length, "Response length", "tokens", None),
            (wins, "General answers: wins against the sft stage", "share", 1.0)):
        axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
        axis.set_ylabel(unit, fontsize=9)
        axis.set_xticks(x, stage_names, rotation=20, ha="right")
        axis.set_ylim(0, top)
        tidy(axis)
    legend_below(figure, right.get_legend_handles_labels()[0], title="Right answers")
    save(figure, out)


def plot_hacking(too_long: RunDir, rounds: Sequence[RunDir], out: Path) -> None:
    """What a reward model says and what people say of general answers: where the preference reward
    goes on for too long, and where it stops in time, in rounds."""
    from matplotlib.lines import Line2D
    figure, axes = new_figure(1, 2, (10.4, 3.4))
    curves = [(0, too_long, {"color": COLOURS[1]})]
    for n, run in enumerate(rounds):
        before = sum(len(earlier.metrics()) for earlier in rounds[:n])
        curves.append((before, run, {"color": COLOURS[0]}))
    names = "rewards/preference/mean", "rewards/general/true_reward/mean"
    for axis, name in zip(axes.flat, names):
        drawn = []
        for before, run, style in curves:
            moved = [(before + step, value) for step, value in points(run.metrics(), name)]
            curve(axis, moved, style)
            drawn += [value for _, value in moved]
        label_axes(axis, PANELS[name], drawn)
    labels = {COLOURS[1]: "one reward model, for too long",
              COLOURS[0]: "the pipeline, a reward model for each round"}
    legend_below(figure, [Line2D([], [], linewidth=2, color=colour, label=label)
                          for colour, label in labels.items()])
    save(figure, out)


# what all figures share

def new_figure(rows: int, columns: int, size: tuple[float, float]):
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def legend_below(figure, entries: Sequence, title: str | None = None) -> None:
    """One legend for the whole figure, under its axes, in as many columns as there is room for."""
    if not entries:
        return
    lengths = [len(entry.get_label()) + 7 for entry in entries]
    for columns in range(len(entries), 0, -1):
        rows = -(-len(entries) // columns)
        longest = [max(lengths[i:i + rows]) for i in range(0, len(entries), rows)]
        if sum(longest) <= 13 * figure.get_figwidth():                  # letters to an inch
            break
    figure.set_figheight(figure.get_figheight() + 0.2 * (rows + (title is not None)))
    figure.legend(handles=list(entries), loc="outside lower left", ncols=columns, fontsize=8,
                  frameon=False, title=title, title_fontsize=8, alignment="left")


def label_axes(axis, panel: Panel, values: Sequence[float]) -> None:
    axis.set_title(panel.title, fontsize=10, loc="left", fontweight="bold")
    axis.set_xlabel("step", fontsize=9)
    axis.set_ylabel(panel.unit, fontsize=9)
    if panel.low == LOG and 0 < 10 * min(values) < max(values):
        log_scale(axis, max(values) / min(values))
    elif panel.low != LOG:
        scale(axis, panel)
    whole_steps(axis)
    tidy(axis)


def scale(axis, panel: Panel) -> None:
    """The panel's ends, with room above what is drawn; small numbers as 2e-05."""
    from matplotlib.ticker import FuncFormatter
    low, high, most = panel.low, panel.high, axis.dataLim.y1
    if high != AUTO:
        axis.set_ylim(top=1.03 * high)
    elif low != AUTO and most > low:
        axis.set_ylim(top=low + 1.06 * (most - low))
    if low != AUTO:
        axis.set_ylim(bottom=low)
    if 0 < most < 0.002:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def log_scale(axis, span: float) -> None:
    """Ticks at 1, 2, 5, 10, ... as plain numbers; over more than three decades at powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 1000 else (1,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def whole_steps(axis) -> None:
    """There is no step 1.25. A single step has room on both sides."""
    from matplotlib.ticker import MaxNLocator
    low, high = axis.dataLim.intervalx
    if low == high:
        axis.set_xlim(low - 1, high + 1)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=(1, 2, 5, 10), integer=True,
                                             min_n_ticks=1))


def drawable(text: str) -> str:
    """The text for matplotlib to draw as it is: no formula between $, no letter its font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    text = "".join(c if ord(c) in glyphs else escaped(c) for c in visible(text)).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text         # a legend leaves out names in _


def save(figure, out: Path) -> None:
    figure.savefig(out, dpi=130, format="png")


def tidy(axis) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
