"""The precision lab as a figure of six panels: three about sampler and learner, three about
updates and gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from minirl.inference.mismatch import Mismatch, short
from minirl.lm.figures import COLOURS, DASHES, entry, legend_below, new_figure, save, tidy
from minirl.lm.precision import DTYPES
from minirl.train.precision_lab import INTERVAL, SMALLEST, UPDATE, UPDATES, PrecisionLab

BLUE, RED, GREEN, VIOLET, GOLD, GREY = COLOURS
DTYPE_COLOURS = {"float32": GREY, "bfloat16": RED, "float16": BLUE}
FLOOR = 1e-8                   # below it lie differences of exactly 0


def plot_precision(lab: PrecisionLab, out: Path) -> None:
    """Draw a lab into the PNG file `out`."""
    figure, axes = new_figure(2, 3, (14.4, 7.2))
    same = [pair for pair in lab.mismatches if pair.sampler == pair.learner]
    draw_pairs(axes[0], lab)
    draw_differences(axes[1], same)
    draw_spreads(axes[2], same, lab.products)
    draw_updates(axes[3], lab)
    draw_range(axes[4], lab)
    draw_scale(axes[5], lab)
    legend_below(figure, [
        entry("float32", color=GREY, linewidth=5), entry("bfloat16", color=RED, linewidth=5),
        entry("float16", color=BLUE, linewidth=5),
        entry("a policy's tokens", color="black", linewidth=2),
        entry("one matrix product with random weights, against float32: a line of slope 1/2",
              color="black", linewidth=1.4, linestyle=DASHES)])
    save(figure, out)


def draw_pairs(axis: Any, lab: PrecisionLab) -> None:
    """The mean |Δ log p| of each pair: groups of bars by the learner, in the sampler's colour."""
    for pair in lab.mismatches:
        place, shift = list(DTYPES).index(pair.learner), list(DTYPES).index(pair.sampler) - 1
        mean = max(FLOOR, float(pair.differences.mean()))
        axis.bar(place + 0.27 * shift, mean, 0.25, color=DTYPE_COLOURS[pair.sampler])
        axis.text(place + 0.27 * shift, mean * 1.15, short(mean),
                  ha="center", fontsize=7)
    axis.set_yscale("log")
    axis.set_ylim(top=10 * max(FLOOR, *(float(pair.differences.mean())
                                        for pair in lab.mismatches)))
    axis.set_xticks(range(len(DTYPES)), [f"{dtype}\nscores" for dtype in DTYPES])
    tidy(axis, "Mean |Δ log p| per token (colour: who samples)", y="nats")
    axis.grid(axis="x", visible=False)


def draw_differences(axis: Any, pairs: list[Mismatch]) -> None:
    """How |Δ log p| is spread over tokens, for one dtype on both sides."""
    bins = [10 ** (k / 5) for k in range(5 * round(math.log10(FLOOR)), 1)]
    for pair in pairs:
        values = pair.differences.clamp(min=FLOOR).numpy()
        colour = DTYPE_COLOURS[pair.sampler]
        axis.hist(values, bins, weights=[1 / len(values)] * len(values), histtype="stepfilled",
                  color=colour, alpha=0.16)
        axis.hist(values, bins, weights=[1 / len(values)] * len(values), histtype="step",
                  color=colour, linewidth=1.8)
    axis.set_xscale("log")
    axis.minorticks_off()
    exact = ", ".join(f"{float((pair.differences == 0).double().mean()):.0%}" for pair in pairs)
    axis.text(0.02, 0.97, f"leftmost: no difference ({exact})", transform=axis.transAxes,
              fontsize=8, va="top", color=GREY)
    axis.set_ylim(top=1.18 * axis.get_ylim()[1])
    tidy(axis, "The same dtype on both sides is no match", x="|Δ log p| of a token (nats)",
         y="share of tokens")


def draw_spreads(axis: Any, pairs: list[Mismatch], products: list[Mismatch]) -> None:
    """How far the log-ratio of a sequence is spread, against its length. Of independent errors it
    grows as the root of the length; a policy is sure of most tokens, and errs at few."""
    for look, some in (({"linewidth": 2}, pairs), ({"linewidth": 1.4, "linestyle": DASHES},
                                                   products)):
        for pair in some:
            spreads = [max(FLOOR, spread) for spread in pair.spreads()]
            axis.plot(range(1, len(spreads) + 1), spreads, color=DTYPE_COLOURS[pair.sampler],
                      **look)
    if any(len(line.get_xdata()) for line in axis.lines):
        axis.set_xscale("log")
        axis.set_yscale("log")
    axis.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
    axis.minorticks_off()
    tidy(axis, "Spread of the first n tokens' log-ratio", x="n",
         y="standard deviation of Σ log π/μ (nats)")


def draw_updates(axis: Any, lab: PrecisionLab) -> None:
    for dtype, weights in lab.weights.items():
        wide = {"linewidth": 5, "alpha": 0.45} if dtype == "float32" else {"linewidth": 2}
        axis.plot(range(len(weights)), weights, color=DTYPE_COLOURS[dtype], **wide)
        axis.annotate(f"{weights[-1]:.4g}", (len(weights) - 1, weights[-1]), fontsize=8,
                      color=DTYPE_COLOURS[dtype], textcoords="offset points",
                      xytext=(4, 3 if dtype == "float16" else -4))
    axis.set_xlim(-0.04 * UPDATES, 1.14 * UPDATES)
    axis.set_ylim(1 - 1.12 * UPDATES * UPDATE, 1 + 0.08 * UPDATES * UPDATE)
    tidy(axis, f"A weight of 1, {UPDATES} updates of -{UPDATE}: bfloat16 loses all",
         x="update", y="weight")


def draw_range(axis: Any, lab: PrecisionLab) -> None:
    """The sizes of gradients, without and with the scale, over the range of float16."""
    scale = lab.steps[0].scale if lab.steps else 2.0 ** 16
    sizes = lab.gradients.log2()
    bins = list(range(-44, 18))
    share = [1 / max(1, len(sizes))] * len(sizes)
    for shift, colour, label in (
            (0.0, GOLD, f"as they are: {lab.lost():.1%} become 0"),
            (math.log2(scale), GREEN, f"times 2^{math.log2(scale):.0f}: {lab.lost(scale):.1%} do")):
        axis.hist((sizes + shift).clamp(bins[0], bins[-1]).numpy(), bins, weights=share,
                  color=colour, alpha=0.55, label=label)
    top = axis.get_ylim()[1] * 1.5
    axis.axvspan(bins[0], math.log2(SMALLEST) - 1, color=GREY, alpha=0.14, linewidth=0)
    axis.axvspan(16, 18, color=RED, alpha=0.3, linewidth=0)
    for x, text in ((-34.5, "float16: 0"), (-19.3, "subnormal"), (-3.0, "normal numbers")):
        axis.text(x, top * 0.73, text, fontsize=8, ha="center", color=GREY)
    axis.text(15.6, top * 0.73, "infinite", fontsize=8, ha="right", color=RED)
    axis.axvline(-14, color=GREY, linewidth=0.8, linestyle=DASHES)
    axis.set_ylim(0, top)
    axis.set_xlim(bins[0], bins[-1])
    axis.set_xticks(range(-40, 17, 8), [f"$2^{{{k}}}$" for k in range(-40, 17, 8)])
    axis.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    tidy(axis, "Gradients in float32, and float16's range", x="|gradient| of a weight",
         y="share of weights")


def draw_scale(axis: Any, lab: PrecisionLab) -> None:
    scales = torch.tensor([step.scale for step in lab.steps]).log2().tolist()
    axis.step(range(1, len(scales) + 1), scales, where="post", color=BLUE, linewidth=2)
    skipped = [(i, scale) for i, (scale, step) in enumerate(zip(scales, lab.steps, strict=True), 1)
               if step.skipped]
    if skipped:
        x, y = zip(*skipped, strict=True)
        axis.plot(x, y, linestyle="", marker="x", color=RED, markersize=7, markeredgewidth=2)
    axis.plot([], [], linestyle="", marker="x", color=RED, markeredgewidth=2,
              label=f"overflow: step skipped, scale halved ({len(skipped)} of {len(scales)})")
    if scales:
        low, high = min(scales), max(scales)
        axis.set_ylim(low - 1, high + 1.6)
        ticks = range(math.floor(low), math.ceil(high) + 1)
        axis.set_yticks(ticks, [f"$2^{{{k}}}$" for k in ticks])
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    tidy(axis, f"The scale of the loss (doubles after {INTERVAL} good steps)",
         x="step of training in float16", y="scale")
