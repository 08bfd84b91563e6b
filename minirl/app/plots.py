"""Curves of one run or several, on shared axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

from minirl.app.rundir import RunDir  # noqa: E402
from minirl.app.text import wilson_interval  # noqa: E402
from minirl.lm.tokenizer import read_json  # noqa: E402

AUTO, LOG = "from the data", "from the data; logarithmic where they span much"
# metric -> title, unit, lower and upper end of the axis
PANELS = {
    "rewards/accuracy/mean": ("Accuracy on sampled training problems", "share right", 0.0, 1.0),
    "rewards/format_reward/mean": ("Answers in the asked form", "share", 0.0, 1.0),
    "rewards/language_consistency/mean": ("Reasoning in the language asked for", "share of words", 0.0, 1.0),
    "rewards/preference/mean": ("Reward model's score of general answers", "score", AUTO, AUTO),
    "rewards/general/true_reward/mean": ("True reward of general answers: what people want", "true reward", AUTO, AUTO),
    "rewards/reward_model/mean": ("Reward model's score: what is trained on", "score", AUTO, AUTO),
    "rewards/true_reward/mean": ("True reward: what people want", "true reward", AUTO, AUTO),
    "objective/kl": ("KL to the SFT policy", "nats per completion", AUTO, AUTO),
    "completions/mean_length": ("Mean response length", "tokens", 0.0, AUTO),
    "kl": ("KL to the reference (k3)", "nats per token", 0.0, AUTO),
    "entropy": ("Policy entropy", "nats per token", 0.0, AUTO),
    "value/explained_variance": ("Variance of returns that the value function explains", "share", AUTO, 1.0),
    "loss": ("Loss", "nats", LOG, AUTO),
    "accuracy": ("Comparisons that the reward model decides alike", "share", 0.0, 1.0),
    "margin": ("r(better) - r(worse)", "score", 0.0, AUTO),
    "rewards/accuracies": ("Comparisons that the implicit reward decides alike", "share", 0.0, 1.0),
    "rewards/margins": ("Implicit reward, chosen - rejected", "nats x beta", AUTO, AUTO),
    "learning_rate": ("Learning rate", "", 0.0, AUTO),
}
# command -> which of them, in order
SHOWN = {
    "grpo": ("rewards/accuracy/mean", "completions/mean_length", "kl", "entropy"),
    "r1": ("rewards/accuracy/mean", "completions/mean_length", "rewards/format_reward/mean", "rewards/language_consistency/mean", "rewards/preference/mean",
           "rewards/general/true_reward/mean"),
    "sft": ("loss", "learning_rate"),
    "rm": ("loss", "accuracy", "margin", "learning_rate"),
    "ppo": ("rewards/reward_model/mean", "rewards/true_reward/mean", "objective/kl", "completions/mean_length", "entropy", "value/explained_variance"),
    "dpo": ("loss", "rewards/accuracies", "rewards/margins", "learning_rate"),
}
COLOURS = ("#2563a8", "#c8553d", "#3a7d44", "#8b5fa8", "#b8860b", "#4b5563")


def plot_runs(runs: Sequence[RunDir], out: Path) -> None:
    """Draw the metrics that the runs have into the PNG file `out`. Raises ValueError if there is nothing to draw."""
    lines = [run.metrics() for run in runs]
    for run, metrics in zip(runs, lines):
        if not metrics:
            raise ValueError(f"{run.path} has no metrics yet: let it make a step, or name another run")
    wanted = dict.fromkeys(name for run in runs for name in shown(run))
    panels = [name for name in wanted if any(name in m for metrics in lines for m in metrics)]
    if not panels:
        raise ValueError(f"the runs {', '.join(str(run.path) for run in runs)} have none of the metrics {', '.join(PANELS)}")
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.0 * rows), squeeze=False, layout="constrained")
    for axis, name in zip(axes.flat, panels):
        title, unit, low, high = PANELS[name]
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
        values = [m[name] for metrics in lines for m in metrics if name in m]
        if low == LOG and 0 < 10 * min(values) < max(values):
            axis.set_yscale("log")
        elif low != LOG:
            axis.set_ylim(None if low == AUTO else low, None if high == AUTO else high * 1.03)
        tidy(axis)
    for axis in list(axes.flat)[len(panels):]:
        axis.set_visible(False)
    if len(axes.flat[0].get_legend_handles_labels()[1]) > 1:
        axes.flat[0].legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(heading(runs), fontsize=11, x=0.01, ha="left")
    figure.savefig(out, dpi=130, format="png")
    plt.close(figure)


def shown(run: RunDir) -> Sequence[str]:
    """The metrics to draw of a run. Reinforcement learning in a pipeline of R1 has its own: language and preferences."""
    config = run.config
    in_r1 = config.get("command") == "grpo" and "number_length" in config.get("run", {})
    return SHOWN["r1"] if in_r1 else SHOWN.get(config.get("command"), PANELS)


def held_out(axis, name: str, run: RunDir, colour: str, *, labelled: bool) -> None:
    """Circles for what the summary says of held-out problems, before the first step and after the last."""
    summary = read_json(run.path / "summary.json")
    keys = {"rewards/accuracy/mean": "accuracy", "completions/mean_length": "mean_length", "rewards/true_reward/mean": "true_reward",
            "rewards/reward_model/mean": "score"}
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
    if "number_length" in common:
        return f"minirl r1, {runs[0].path.name}: sums and stories in two languages, seed {common.get('seed')}"
    subject = f"{common['digits']}-digit {common['task']}" if "digits" in common else "instructions"
    return f"minirl {config.get('command')}: {subject}, seed {common.get('seed')}"


def plot_calibration(margins: Sequence[float], out: Path, bins: int = 8) -> None:
    """Predicted against observed: of comparisons of which the reward model is p sure, how many were decided its way. `margins`: r(better) - r(worse)."""
    sure = sorted(((1 / (1 + math.exp(-abs(m))), m > 0) for m in margins), key=lambda pair: pair[0])      # equally sure ones stay as they come
    figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    axis.plot([0.5, 1], [0.5, 1], color="#9ca3af", linewidth=1, linestyle="--", label="as sure as it is right")
    size = max(1, -(-len(sure) // bins))
    for i, start in enumerate(range(0, len(sure), size)):
        part = sure[start:start + size]
        p, right = sum(p for p, _ in part) / len(part), sum(agrees for _, agrees in part) / len(part)
        low, high = wilson_interval(right, len(part))
        axis.errorbar([p], [right], yerr=[[right - low], [high - right]], fmt="o", color=COLOURS[0], capsize=2,
                      label=f"{len(sure)} held-out comparisons, in parts of {size} (95 %)" if i == 0 else None)
    axis.set(xlim=(0.49, 1.01), ylim=(0.3, 1.02), xlabel="how sure the reward model is", ylabel="share in which the labeller agrees")
    axis.set_title("Calibration of the reward model", fontsize=10, loc="left", fontweight="bold")
    tidy(axis)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(out, dpi=130, format="png")
    plt.close(figure)


def plot_epochs(epochs: Sequence[dict], out: Path) -> None:
    """SFT's checkpoints: validation loss, the reward model's score and the true reward by epoch, with the one that was chosen."""
    figure, axes = plt.subplots(1, 3, figsize=(10.4, 2.9), layout="constrained")
    x = [e["epoch"] for e in epochs]
    chosen = next(e for e in epochs if e["chosen"])
    for axis, key, title in zip(axes, ("validation_loss", "score", "true_reward"), ("Validation loss", "Reward model's score", "True reward")):
        axis.plot(x, [e[key] for e in epochs], color=COLOURS[0], linewidth=2, marker="o", markersize=3)
        axis.plot([chosen["epoch"]], [chosen[key]], "o", color=COLOURS[1], markersize=8, markerfacecolor="none", markeredgewidth=2,
                  label="best score: chosen")
        axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
        axis.set_xlabel("epochs of demonstrations", fontsize=9)
        tidy(axis)
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(out, dpi=130, format="png")
    plt.close(figure)


def plot_stages(stages: Sequence[dict], out: Path) -> None:
    """What each stage of a pipeline is worth: right answers, language, length, and what people think of its general answers."""
    figure, axes = plt.subplots(2, 2, figsize=(10.4, 6.2), layout="constrained")
    names, x = [s["stage"] for s in stages], range(len(stages))
    for key, label, colour in (("easy", "easy", COLOURS[2]), ("hard", "hard", COLOURS[0]), ("majority", "hard, majority of samples", COLOURS[1]), ("pass", "hard, any of the samples", COLOURS[5])):
        axes[0, 0].plot(x, [s[key] for s in stages], "o-", color=colour, markersize=5, linewidth=1.4, label=label)
    axes[0, 0].legend(fontsize=8, frameon=False, loc="lower right")
    for axis, key, unit in ((axes[0, 1], "language", "share of words"), (axes[1, 0], "length", "tokens"), (axes[1, 1], "win_rate", "share")):
        axis.bar(x, [s[key] for s in stages], color=COLOURS[0], alpha=0.6)
        axis.set_ylabel(unit, fontsize=9)
    axes[1, 1].axhline(0.5, color=COLOURS[5], linewidth=1, linestyle="--")
    for axis, title, top in zip(axes.flat, ("Right answers", "Reasoning in the language asked for", "Response length", "General answers: wins against the sft stage"), (1.03, 1.03, None, 1.0)):
        axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
        axis.set_xticks(x, names, rotation=20, ha="right")
        axis.set_ylim(0, top)
        tidy(axis)
    figure.savefig(out, dpi=130, format="png")
    plt.close(figure)


def plot_hacking(too_long: RunDir, rounds: Sequence[RunDir], out: Path) -> None:
    """What a reward model says and what people say of general answers: where the preference reward goes on for too long, and where it stops in time, in rounds."""
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 3.4), layout="constrained")
    curves = [("one reward model, for too long", COLOURS[1], 0, too_long)]
    for n, run in enumerate(rounds):
        before = sum(len(earlier.metrics()) for earlier in rounds[:n])
        curves.append(("the pipeline, a reward model for each round" if n == 0 else None, COLOURS[0], before, run))
    for axis, name in zip(axes, ("rewards/preference/mean", "rewards/general/true_reward/mean")):
        for label, colour, before, run in curves:
            points = [(before + m["step"], m[name]) for m in run.metrics() if name in m]
            if points:
                steps, values = zip(*points)
                axis.plot(steps, values, color=colour, alpha=0.28, linewidth=1)
                axis.plot(steps, smooth(values), color=colour, linewidth=2, label=label)
        axis.set_title(PANELS[name][0], fontsize=10, loc="left", fontweight="bold")
        axis.set_xlabel("step", fontsize=9)
        axis.set_ylabel(PANELS[name][1], fontsize=9)
        tidy(axis)
    axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(out, dpi=130, format="png")
    plt.close(figure)


def tidy(axis) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
