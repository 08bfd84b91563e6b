"""Two pages with all objectives, KL estimators, means and advantages, each with its value and its
gradient as minirl computes them: figures/cheat_sheet.pdf, cheat_sheet_1.png and cheat_sheet_2.png.

    python tutorials/cheat_sheet.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from torch import Tensor

from lesson import BLUE, FIGURES, GREY, RED
from minirl.equations.advantages import (
    group_advantages,
    leave_one_out_advantages,
    maxrl_advantages,
)
from minirl.equations.kl import k1, k2, k3
from minirl.equations.objectives import (
    cispo,
    clipped_surrogate,
    dppo,
    dual_clipped_surrogate,
    policy_gradient,
    sapo,
)
from minirl.equations.reduce import aggregate
from minirl.testing.example import LENGTHS, MASK, REWARDS

A4 = (8.27, 11.69)                                          # inches
OLD_PROBABILITY = 0.25             # of the token: it matters where log π stands, and to DPPO
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]      # logp, old_logp, adv -> values

OBJECTIVES: dict[str, tuple[str, str, Objective]] = {
    "policy gradient": (r"$A \log\pi$", "Williams 1992",
                        lambda logp, old, adv: policy_gradient(logp, adv)),
    "PPO, GRPO": (r"$\min(\rho A,\ \mathrm{clip}(\rho, 1-\varepsilon, 1+\varepsilon) A)$",
                  "1707.06347, eq. 7; ε = 0.2", clipped_surrogate),
    "DAPO, clip-higher": (r"the same, $\varepsilon_{low} = 0.2,\ \varepsilon_{high} = 0.28$",
                          "2503.14476, eq. 10", partial(clipped_surrogate, clip_high=0.28)),
    "dual clip": (r"$\max(\mathrm{PPO},\ cA)$ where $A < 0$", "1912.09729; c = 3",
                  partial(dual_clipped_surrogate, cap=3.0)),
    "CISPO": (r"$sg[\min(\rho, cap)]\ A \log\pi$", "2506.13585; cap = 2", partial(cispo, cap=2.0)),
    "SAPO": (r"$\frac{4}{\tau}\,\sigma(\tau(\rho - 1))\, A$",
             "2511.20347, eqs. 5, 6; τ = 1, 1.05", sapo),
    "DPPO": (r"$sg[\rho]\ A \log\pi$ until $\pi$ has moved by δ",
             "2602.04879, eq. 12; δ = 0.1, in A's direction", partial(dppo, delta=0.1)),
}
ESTIMATORS = {"k1": (r"$\log r,\ r = \pi/\pi_{ref}$", k1),
              "k2": (r"$(\log r)^2 / 2$", k2), "k3": (r"$1/r - 1 + \log r$", k3)}
MEANS = {"k1": "0", "k2": "∇KL(π || π_ref)", "k3": "∇KL(π_ref || π)"}       # of the gradients
WHOLE = ("Of a whole completion: GSPO is PPO with the |o|-th root of the product of all ρ, "
         "R1's eq. 1 with the product.\nGMPO clips the ρ in the root, LUSPO multiplies GSPO by "
         "|o|, VESPO weighs log π by a bell of the product: equations/sequence_objectives.py")


def value_and_slope(function: Callable[[Tensor], Tensor], logp: Tensor) -> tuple[Tensor, Tensor]:
    """Return a function of log-probs and its gradient at each, (N,) both."""
    leaf = logp.clone().requires_grad_()
    value = function(leaf)
    slope, = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def tidy(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=8)
    axis.tick_params(labelsize=6)
    axis.axhline(0, color="black", linewidth=0.6)


def objectives_page() -> Figure:
    """Page 1: what a token of ratio ρ counts, and how it pulls, for A = 1 and for A = -1."""
    figure, axes = plt.subplots(len(OBJECTIVES), 3, figsize=A4, gridspec_kw={
        "width_ratios": [1.15, 1, 1]})
    figure.suptitle("minirl: objectives, maximised (a token, ρ = π/π_old, π_old = 1/4)",
                    fontsize=11, weight="bold")
    ratio = torch.linspace(0.05, 3.9, 400).double()
    old = torch.full_like(ratio, OLD_PROBABILITY).log()
    logp = old + ratio.log()
    for (label, value_axis, slope_axis), (name, (formula, source, objective)) in zip(
            axes, OBJECTIVES.items(), strict=True):
        label.axis("off")
        label.text(0, 0.8, name, fontsize=10, weight="bold", va="top")
        label.text(0, 0.52, formula, fontsize=9, va="top")
        label.text(0, 0.16, source, fontsize=7, color=GREY, va="top")
        for adv, colour, dash in ((1.0, BLUE, "-"), (-1.0, RED, "--")):
            value, slope = value_and_slope(
                lambda x, adv=adv, f=objective: f(x, old, torch.full_like(x, adv)), logp)
            for axis, curve in ((value_axis, value), (slope_axis, slope)):
                axis.plot(ratio, curve, color=colour, linestyle=dash, linewidth=1.4,
                          label=f"A = {adv:+.0f}")
                axis.axvline(1, color=GREY, linewidth=0.6, linestyle=":")
        tidy(value_axis, "value" if name == "policy gradient" else "")
        tidy(slope_axis, "gradient in log π" if name == "policy gradient" else "")
        value_axis.set_ylim(-4.2, 4.2)
        slope_axis.set_ylim(-4.2, 4.2)
    axes[0, 1].legend(fontsize=7, loc="lower right")
    for axis in axes[-1, 1:]:
        axis.set_xlabel("ρ", fontsize=8)
    figure.supxlabel(WHOLE, fontsize=7, color=GREY)
    return figure


def rest_page() -> Figure:
    """Page 2: estimates of the KL, what a token weighs by each mean, advantages of one group."""
    figure = plt.figure(figsize=A4)
    grid = figure.add_gridspec(4, 3, height_ratios=[1, 1, 0.7, 0.7])
    figure.suptitle("minirl: KL estimators, means and advantages", fontsize=11, weight="bold")
    ratio = torch.linspace(0.1, 4.0, 400).double()                  # π / π_ref
    zero = torch.zeros_like(ratio)
    for i, (name, (formula, estimator)) in enumerate(ESTIMATORS.items()):
        value, slope = value_and_slope(lambda x, f=estimator: f(x, zero), ratio.log())
        for row, curve, what in ((0, value, "value"), (1, slope, "gradient in log π")):
            axis = figure.add_subplot(grid[row, i])
            axis.plot(ratio, curve, color=BLUE if row == 0 else RED, linestyle="-", linewidth=1.4)
            axis.axvline(1, color=GREY, linewidth=0.6, linestyle=":")
            tidy(axis, f"{name}:  {formula}" if row == 0 else what)
            axis.set_ylim(-2.6, 6.5)
            if row == 1:
                axis.set_xlabel(f"π / π_ref; mean over π: {MEANS[name]}", fontsize=7)
    text = figure.add_subplot(grid[2, :])
    text.axis("off")
    text.set_title("Means of per-token terms: reduce.aggregate(x, mask, how), and the weight of "
                   "one token of the four answers to 7+5=", fontsize=8)
    text.table(means_table(), loc="upper center", cellLoc="left", edges="horizontal").scale(1, 1.5)
    text = figure.add_subplot(grid[3, :])
    text.axis("off")
    text.set_title("Advantages of the group of rewards 1, 0, 0, 0", fontsize=8)
    text.table(advantages_table(), loc="upper center", cellLoc="left",
               edges="horizontal").scale(1, 1.5)
    return figure


def means_table() -> list[list[str]]:
    """Return a row for each mean: what it is, who uses it, and the weight of a token of answers of
    2, 3 and 8 tokens."""
    rows = [["how", "equation", "in", *(f"|o| = {n}" for n in (2, 3, 8))]]
    for how, equation, who in (
            ("sequence_mean", "1/B Σ_i 1/|o_i| Σ_t", "GRPO"),
            ("token_mean", "1/Σ|o_i| Σ_i Σ_t", "DAPO, PPO, TRL"),
            ("constant", "1/(B L) Σ_i Σ_t", "Dr. GRPO (L = 8)"),
            ("sequence_sum", "1/B Σ_i Σ_t", "RLOO, R1's eq. 1")):
        leaf = torch.zeros(MASK.shape, dtype=torch.float64, requires_grad=True)
        total = 8.0 * len(MASK) if how == "constant" else None
        weight = torch.autograd.grad(aggregate(leaf, MASK, how, total=total), leaf)[0][:, 0]
        by_length = dict(zip(LENGTHS.tolist(), weight.tolist(), strict=True))
        rows.append([how, equation, who, *(f"{by_length[n]:.4f}" for n in (2, 3, 8))])
    return rows


def advantages_table() -> list[list[str]]:
    """Return a row for each rule: its equation, and what the right and a wrong completion get."""
    rows = [["rule", "equation", "right", "wrong"]]
    for name, equation, rule in (
            ("GRPO", "(r - mean) / std, n - 1", partial(group_advantages, eps=0.0)),
            ("Dr. GRPO", "r - mean", partial(group_advantages, scale="none")),
            ("RLOO", "r - mean of the others", leave_one_out_advantages),
            ("MaxRL", "(r - mean) / mean", maxrl_advantages)):
        adv = rule(REWARDS)[0]
        rows.append([name, equation, f"{float(adv[0]):.4f}", f"{float(adv[1]):.4f}"])
    return rows


def main(folder: Path = FIGURES) -> None:
    folder.mkdir(exist_ok=True)
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")           # the same file from the same program
    with PdfPages(folder / "cheat_sheet.pdf") as pdf:
        for number, figure in enumerate((objectives_page(), rest_page()), 1):
            pdf.savefig(figure)
            figure.savefig(folder / f"cheat_sheet_{number}.png", dpi=110)
            plt.close(figure)


if __name__ == "__main__":
    main()
