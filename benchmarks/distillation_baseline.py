"""When does "KL for a KL" lower the variance? On-policy distillation with and without its exact
baseline, by enumeration: no sampling, no training.

    python benchmarks/distillation_baseline.py          # two tables; --figure PNG draws both

The advantage of a token is log π_T - log π, and its exact baseline V = -KL(π || π_T) of the state
(vOPD, arXiv:2605.07865). What is printed is the variance of the gradient with the baseline over the
variance without: below 1 it helps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from common import row, table_head
from minirl.equations.distillation import distillation_advantages, distillation_values
from minirl.testing.oracle import Oracle, Table

SHARPNESS = 0.25, 0.33, 0.5, 0.67, 0.8, 1.25, 1.5, 2.0, 3.0, 4.0
SURE = 0.5, 0.6, 0.7, 0.8, 0.9, 0.99
WORLDS = 8


def of_a_state(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the ratio of the variances in states with free logits: (..., V) -> (...)."""
    logp, teacher_logp = logits.log_softmax(-1), teacher.log_softmax(-1)
    p = logp.exp()
    adv = distillation_advantages(logp, teacher_logp)                              # (..., V)
    scores = torch.eye(p.shape[-1], dtype=p.dtype) - p[..., None, :]               # (..., V, V)
    mean = (p * adv)[..., None, :] @ scores                                        # (..., 1, V)

    def variance(credit: Tensor) -> Tensor:
        return (p * (credit[..., None] * scores - mean).square().sum(-1)).sum(-1)

    centred = adv - distillation_values(logits, teacher)[..., None]
    return variance(centred) / variance(adv)


def of_a_world(seed: int, sharpness: float) -> float:
    """Return the ratio for completions of at most 3 of 3 tokens; the teacher's logits are the
    student's times `sharpness`."""
    oracle = Oracle(3, 3, 2)
    student, teacher = oracle.table(seed=seed), oracle.table(seed=seed)
    teacher.lm_head.weight.data *= sharpness
    plain, centred = (variance(oracle, student, teacher, baseline) for baseline in (False, True))
    return centred / plain


def variance(oracle: Oracle, student: Table, teacher: Table, baseline: bool) -> float:
    logp, teacher_logp = oracle.logp(student), oracle.logp(teacher).detach()
    credit = distillation_advantages(logp, teacher_logp)
    if baseline:
        credit = credit - distillation_values(oracle.logits(student), oracle.logits(teacher))
    terms = torch.where(oracle.mask, credit * logp, 0)
    each = torch.stack([oracle.gradient(student, terms[i].sum()) for i in range(len(oracle))])
    p = oracle.prob(logp).detach()[:, None]
    return (p * (each - (p * each).sum(0)).square()).sum().item()


def two_tokens(p: Tensor, q: Tensor) -> Tensor:
    """Return the ratio where the student gives a token p, and the teacher q; the other has the
    rest."""
    logits, teacher = (torch.stack([x, 1 - x], -1).log() for x in (p, q))
    return of_a_state(logits, teacher)


def draw(path: Path, worlds: dict[float, list[float]]) -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    grid = torch.linspace(0.5025, 0.9975, 200, dtype=torch.float64)
    p, q = torch.meshgrid(grid, grid, indexing="xy")                               # p along x
    ratio = two_tokens(p, q).clamp(max=2).nan_to_num(1.0)                          # 0 / 0 at p = q
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6))
    figure.set_layout_engine("constrained", wspace=0.08)
    mesh = left.pcolormesh(grid, grid, ratio, cmap="RdBu_r", vmin=0, vmax=2, rasterized=True)
    left.plot([0.5, 1], [0.5, 1], color="black", linewidth=1.5)
    left.text(0.69, 0.88, "the teacher is surer:\nless variance", ha="center", fontsize=11)
    left.text(0.84, 0.61, "the student is surer:\nmore variance", ha="center", fontsize=11)
    left.set(xlabel="student's probability of its likelier token",
             ylabel="teacher's probability of that token",
             xlim=(0.5, 1), ylim=(0.5, 1), title="One state with two tokens")
    bar = figure.colorbar(mesh, ax=left, ticks=[0, 0.5, 1, 1.5, 2])
    bar.set_label("variance with / without the baseline")
    right.axhspan(1, 1.7, color="#d6604d", alpha=0.12)
    right.axhline(1, color="black", linewidth=1.5)
    for seed in range(WORLDS):
        right.plot(list(worlds), [values[seed] for values in worlds.values()], color="#2166ac",
                   marker="o", markersize=3, linewidth=1, alpha=0.7)
    right.set(xscale="log", ylim=(0.5, 1.7), xlabel="teacher's logits / student's logits",
              ylabel="variance with / without the baseline",
              title="Eight small worlds: a surer teacher helps")
    right.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    right.minorticks_off()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=None, metavar="PNG")
    figure = parser.parse_args().figure
    print("Two tokens: variance with the baseline over variance without\n")
    print(table_head("student's p", *(f"teacher {q}" for q in SURE)))
    for p in SURE:
        q = torch.tensor(SURE, dtype=torch.float64)
        ratios = two_tokens(torch.full_like(q, p), q).tolist()
        print(row(p, *("-" if p == other else f"{ratio:.2f}"
                       for ratio, other in zip(ratios, SURE, strict=True))))
    print(f"\n{WORLDS} worlds (3 tokens, up to 3 a completion), the teacher's logits times s\n")
    print(table_head("s", "least", "median", "most"))
    worlds = {s: [of_a_world(seed, s) for seed in range(WORLDS)] for s in SHARPNESS}
    for s, values in worlds.items():
        ordered = torch.tensor(values).sort().values
        print(row(s, *(f"{x:.2f}" for x in (ordered[0], ordered.median(), ordered[-1]))))
    if figure:
        draw(figure, worlds)


if __name__ == "__main__":
    main()
